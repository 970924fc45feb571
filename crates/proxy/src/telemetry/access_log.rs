//! One JSON line per request and per refused or opaque connection, written exactly once, also when the caller goes away.

use crate::clock;
use crate::connection::UnderWay;
use crate::gate::Place;
use crate::reply::Refusal;
use crate::standing;
use crate::state::Shared;
use crate::telemetry::json::Line;
use crate::workers;
use model::authz::User;
use model::ids::ServiceName;
use model::{DecisionId, Principal, Reason, Revision, Side, Timestamp};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;
use tokio::time::Instant;

/// LIMIT: bytes of lines of one worker that wait for the writer; beyond it lines are dropped and counted.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Lines are gathered for so long before they are written: many go out in one system call, and the writer, which may share a core
/// with a worker, interrupts it seldom.
const GATHERED_FOR: Duration = Duration::from_millis(100);
/// So many bytes of one worker are written at once, so that memory stays small under load.
const GATHERED_BYTES: usize = 256 * 1024;

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
    lines: Option<Arc<Lines>>,
    writer: Option<Thread>,
}

/// Lines that wait, those of each worker for themselves.
#[derive(Debug)]
struct Lines {
    blocks: Vec<Mutex<Vec<u8>>>,
    waiting: AtomicBool,
}

impl Lines {
    /// Writes everything that waits.
    fn write(&self, spare: &mut Vec<u8>) {
        // Taken before the lines are, so that who finishes the log waits for lines that were taken and not written.
        let mut out = std::io::stdout().lock();
        self.waiting.store(false, Ordering::Release);
        for block in &self.blocks {
            spare.clear();
            std::mem::swap(&mut *block.lock(), spare);
            if !spare.is_empty() {
                // A closed standard output must not end the proxy.
                let _ignored = out.write_all(spare).and_then(|()| out.flush());
                // After a stall of the reader it is large, and one after the other would keep it.
                spare.clear();
                spare.shrink_to(GATHERED_BYTES);
            }
        }
    }
}

impl AccessLog {
    /// Starts the writer; `wanted` false makes a log that discards.
    ///
    /// # Errors
    /// - the operating system's, if the writer's thread cannot be made.
    pub fn start(wanted: bool) -> std::io::Result<Self> {
        if !wanted {
            return Ok(Self { lines: None, writer: None });
        }
        let blocks = (0..workers::count_max()).map(|_| Mutex::default()).collect();
        let lines = Arc::new(Lines { blocks, waiting: AtomicBool::new(false) });
        let written = Arc::clone(&lines);
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            workers::give_way();
            let mut spare = Vec::new();
            loop {
                while !written.waiting.load(Ordering::Acquire) {
                    std::thread::park();
                }
                std::thread::park_timeout(GATHERED_FOR);
                written.write(&mut spare);
            }
        })?;
        Ok(Self { lines: Some(lines), writer: Some(writer.thread().clone()) })
    }

    /// Writes what waits: before the process ends.
    pub fn finish(&self) {
        if let Some(lines) = &self.lines {
            lines.write(&mut Vec::new());
        }
    }

    /// Adds a line; false if too many wait.
    fn add(&self, line: impl FnOnce(&mut Vec<u8>)) -> bool {
        let (Some(lines), Some(writer)) = (&self.lines, &self.writer) else { return true };
        let Some(block) = lines.blocks.get(workers::index() % lines.blocks.len().max(1)) else { return false };
        let mut waiting = block.lock();
        if waiting.len() >= WAITING_BYTES_MAX {
            return false;
        }
        let before = waiting.len();
        line(&mut waiting);
        let is_full = before < GATHERED_BYTES && waiting.len() >= GATHERED_BYTES;
        drop(waiting);
        let is_first = !lines.waiting.load(Ordering::Relaxed) && !lines.waiting.swap(true, Ordering::AcqRel);
        if is_full || is_first {
            writer.unpark();
        }
        true
    }
}

/// LIMIT: texts that a worker keeps for the next entries, and the bytes of one.
const SPARE_TEXTS_MAX: usize = 64;
const SPARE_TEXT_BYTES_MAX: usize = 1024;

thread_local! {
    static SPARE_TEXTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Where a call went.
#[derive(Clone, Debug)]
pub enum Towards {
    /// To an address.
    Address(SocketAddr),
    /// To a service.
    Service(ServiceName),
}

impl From<SocketAddr> for Towards {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<&ServiceName> for Towards {
    fn from(service: &ServiceName) -> Self {
        Self::Service(service.clone())
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
    /// The key exchange of the connection that the caller opened by TLS.
    pub key_exchange: Option<&'static str>,
    /// The place among the requests under way, given back with the entry.
    pub place: Option<Place>,
    /// The request, as its connection counts it: until the last byte of the answer, or until it is refused.
    pub under_way: Option<UnderWay>,
    /// The user.
    pub user: Option<Arc<User>>,
    /// HTTP method or `connect`.
    pub method: Cow<'static, str>,
    /// Normalised path.
    pub path: String,
    /// HTTP status, 0 for none.
    pub status: u16,
    /// Why not.
    pub reason: Option<Reason>,
    /// Operator's text.
    pub detail: Option<String>,
    /// Where the call went.
    pub upstream: Option<Towards>,
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
            decision: DecisionId::from_random(workers::random_bytes()),
            peer,
            principal: None,
            key_exchange: None,
            place: None,
            under_way: None,
            user: None,
            method: Cow::Borrowed(""),
            path: SPARE_TEXTS.with_borrow_mut(Vec::pop).unwrap_or_default(),
            status: 0,
            reason: None,
            detail: None,
            upstream: None,
            revision: Revision(0),
        }
    }

    /// Notes who calls a port of the application, how its connection was secured, and which revision decides.
    pub fn note_caller(&mut self, revision: Revision, principal: &Principal, key_exchange: Option<&'static str>) {
        (self.revision, self.principal, self.key_exchange) = (revision, Some(principal.clone()), key_exchange);
    }

    /// Notes the method, as it was sent.
    pub fn note_method(&mut self, method: &[u8]) {
        const USUAL: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "connect"];
        let usual = USUAL.into_iter().find(|known| known.as_bytes() == method);
        self.method = usual.map_or_else(|| Cow::Owned(String::from_utf8_lossy(method).into_owned()), Cow::Borrowed);
    }

    /// When the call came.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// When the call came, by a clock that only goes forward.
    pub const fn begun(&self) -> Instant {
        self.started
    }

    /// Notes that changed policies ended the call: the decision that is told is the later one.
    pub fn denied_again(&mut self, ended: standing::Ended) -> Refusal {
        self.reason = Some(ended.refusal.reason());
        let after = self.started.elapsed().as_secs();
        self.detail = Some(format!("no longer permitted at revision {}, {after} s after it began", ended.revision));
        (self.decision, self.revision) = (ended.decision, ended.revision);
        ended.refusal
    }

    /// Notes that the response was delivered to its end; an entry that is dropped before says `caller_gone`, or `internal` where a
    /// panic drops it.
    pub fn ended(&mut self) {
        self.ended = true;
    }

    fn write(&self, took: Duration, out: &mut Vec<u8>) {
        let mut line = Line::begin(out);
        line.text("kind", Some(self.kind));
        line.time("at", self.at);
        line.text("direction", Some(self.direction.as_str()));
        line.text("workload", Some(self.shared.settings.workload.as_str()));
        line.text("principal", self.principal.as_ref().map(Principal::as_str));
        line.address("peer", self.peer);
        if self.key_exchange.is_some() {
            line.text("key_exchange", self.key_exchange);
        }
        line.text("user", self.user.as_ref().map(|user| user.subject.as_str()));
        line.text("method", Some(&self.method));
        line.text("path", Some(&self.path));
        line.number("status", self.status.into());
        line.text("reason", self.reason.map(Reason::as_str));
        let side = if self.direction == Direction::Inbound { Reason::side } else { Reason::side_of_call };
        line.text("side", self.reason.map(side).map(Side::as_str));
        line.text("detail", self.detail.as_deref());
        line.plain("decision", self.decision.text().as_bytes());
        line.number("duration_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        match &self.upstream {
            Some(Towards::Address(address)) => line.address("upstream", *address),
            Some(Towards::Service(service)) => line.text("upstream", Some(service.as_str())),
            None => line.text("upstream", None),
        }
        line.number("revision", self.revision.0);
        line.end();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.ended && self.reason.is_none() {
            let cut = self.under_way.as_ref().and_then(UnderWay::cut);
            self.reason = Some(if std::thread::panicking() { Reason::Internal } else { cut.unwrap_or(Reason::CallerGone) });
        }
        let took = self.started.elapsed();
        let metrics = &self.shared.metrics;
        if self.kind == "access" {
            metrics.requests.count(self.direction == Direction::Inbound, self.status, self.reason, took);
        } else {
            metrics.connection(self.direction.as_str(), self.reason);
        }
        if !self.shared.access_log.add(|out| self.write(took, out)) {
            metrics.access_log_dropped.inc();
        }
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        // A thread that ends keeps nothing.
        let _kept = SPARE_TEXTS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_TEXTS_MAX && path.capacity() <= SPARE_TEXT_BYTES_MAX {
                spare.push(path);
            }
        });
    }
}
