//! One JSON line per request and per refused or opaque connection, written exactly once, also when the caller goes away.

use crate::clock;
use crate::connection::UnderWay;
use crate::gate::Place;
use crate::state::Shared;
use model::{DecisionId, Principal, Reason, Revision, Side, Timestamp};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Lines that wait for the writer; beyond it they are dropped and counted.
const LINES_WAITING_MAX: usize = 8192;

/// Which way a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the application.
    Inbound,
    /// From the application.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// To the thread that writes standard output.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Option<mpsc::Sender<String>>,
}

impl AccessLog {
    /// Starts the writer; `wanted` false makes a log that discards.
    ///
    /// # Errors
    /// - the operating system's, if the writer's thread cannot be made.
    pub fn start(wanted: bool) -> std::io::Result<Self> {
        if !wanted {
            return Ok(Self { lines: None });
        }
        let (sender, mut receiver) = mpsc::channel::<String>(LINES_WAITING_MAX);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut batch = Vec::new();
            while receiver.blocking_recv_many(&mut batch, 512) > 0 {
                let text = batch.concat();
                batch.clear();
                let mut out = std::io::stdout().lock();
                // A closed standard output must not end the proxy.
                let _ignored = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        })?;
        Ok(Self { lines: Some(sender) })
    }
}

/// What is told of one request or connection. Written when it is dropped.
#[derive(Debug)]
pub struct Entry {
    shared: Arc<Shared>,
    kind: &'static str,
    direction: Direction,
    started: Instant,
    at: Timestamp,
    ended: bool,
    /// Names this call in log, response and decision record.
    pub decision: DecisionId,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Who calls, once it is known.
    pub principal: Option<Principal>,
    /// The place among the requests under way, given back with the entry.
    pub place: Option<Place>,
    /// The request, as its connection counts it, until the last byte of the answer.
    pub under_way: Option<UnderWay>,
    /// The user's subject.
    pub user: Option<String>,
    /// HTTP method or `connect`.
    pub method: String,
    /// Normalised path.
    pub path: String,
    /// HTTP status, 0 for none.
    pub status: u16,
    /// Why not.
    pub reason: Option<Reason>,
    /// Operator's text.
    pub detail: Option<String>,
    /// Where the call went.
    pub upstream: Option<String>,
    /// The revision that decided.
    pub revision: Revision,
}

impl Entry {
    /// Begins the entry of one call with a fresh decision id.
    pub fn begin(shared: &Arc<Shared>, kind: &'static str, direction: Direction, peer: SocketAddr) -> Self {
        Self {
            shared: Arc::clone(shared),
            kind,
            direction,
            started: Instant::now(),
            at: clock::now(),
            ended: false,
            decision: DecisionId::from_random(identity::random_bytes().unwrap_or_default()),
            peer,
            principal: None,
            place: None,
            under_way: None,
            user: None,
            method: String::new(),
            path: String::new(),
            status: 0,
            reason: None,
            detail: None,
            upstream: None,
            revision: Revision(0),
        }
    }

    /// When the call came.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// Notes that the response was delivered to its end; an entry that is dropped before says `caller_gone`.
    pub fn ended(&mut self) {
        self.ended = true;
    }

    fn line(&self, took: Duration) -> String {
        let line = serde_json::json!({
            "kind": self.kind,
            "at": self.at.to_string(),
            "direction": self.direction.as_str(),
            "workload": self.shared.settings.workload.as_str(),
            "principal": self.principal.as_ref().map(Principal::as_str),
            "peer": self.peer,
            "user": self.user,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "reason": self.reason.map(Reason::as_str),
            "side": self.reason.map(Reason::side).map(Side::as_str),
            "detail": self.detail,
            "decision": self.decision.to_string(),
            "duration_us": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "upstream": self.upstream,
            "revision": self.revision,
        });
        let mut text = line.to_string();
        text.push('\n');
        text
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.ended && self.reason.is_none() {
            self.reason = Some(Reason::CallerGone);
        }
        let took = self.started.elapsed();
        let metrics = &self.shared.metrics;
        if self.kind == "access" {
            metrics.request(self.direction.as_str(), self.status, self.reason, took);
        } else {
            metrics.connection(self.direction.as_str(), self.reason);
        }
        if let Some(lines) = &self.shared.access_log.lines
            && lines.try_send(self.line(took)).is_err()
        {
            metrics.access_log_dropped.inc();
        }
    }
}
