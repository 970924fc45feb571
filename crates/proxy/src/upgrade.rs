//! Going on with another protocol: a WebSocket of HTTP/1.1 (RFC 6455 §4) or of HTTP/2 (RFC 8441), or any other `Upgrade`.
//!
//! The request that asks for it is decided like every other. What follows is carried as it is, until the policies no longer
//! permit the request that began it.

use crate::connection::Connection;
use crate::facts::Upgrade;
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::tunnel;
use crate::upstream::pool::Lease;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use model::{AuthzRequest, Reason};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// From a granted switch to the bytes of the next protocol: the HTTP libraries of both sides have to let go.
const SWITCH_DEADLINE: Duration = Duration::from_secs(5);

/// What a request asks to go on with, kept while it is sent on.
#[derive(Debug)]
pub struct Asked {
    upgrade: Upgrade,
    /// The caller's stream, where it is one of HTTP/2; a connection of HTTP/1.1 is taken over by whoever owns it.
    near: Option<OnUpgrade>,
    /// What let the request in, to be asked again while the new protocol is spoken.
    question: Option<AuthzRequest>,
}

/// A granted switch whose near side is not free yet.
#[derive(Debug)]
pub struct Switched {
    far: OnUpgrade,
    entry: Entry,
    question: Option<AuthzRequest>,
    _lease: Lease,
}

impl Asked {
    /// Takes from the head what carries the switch, and writes into it what asks the next hop for the same. Call it when the head
    /// was made ready for the next hop.
    pub fn prepare(upgrade: Option<Upgrade>, head: &mut Parts, question: Option<AuthzRequest>) -> Option<Self> {
        let upgrade = upgrade?;
        let near = head.extensions.remove::<OnUpgrade>();
        if let Upgrade::Line(protocol) = &upgrade {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol.clone());
        }
        Some(Self { upgrade, near, question })
    }

    /// Whether this answer grants the switch.
    pub fn is_granted(&self, response: &Response<Incoming>) -> bool {
        match self.upgrade {
            Upgrade::Line(_) => response.status() == StatusCode::SWITCHING_PROTOCOLS,
            Upgrade::ExtendedConnect => response.status().is_success(),
        }
    }

    /// Whether the caller's connection cannot carry another request, although the switch was not granted: what came behind the
    /// request may be of the new protocol.
    pub const fn ends_connection(&self) -> bool {
        matches!(self.upgrade, Upgrade::Line(_))
    }

    /// Arranges for the two sides to be joined as soon as both are free. `active` is what let the request in.
    pub fn grant(self, far: OnUpgrade, entry: Entry, lease: Lease, connection: &Arc<Connection>, active: Arc<Active>) {
        let switched = Switched { far, entry, question: self.question, _lease: lease };
        match self.near {
            Some(near) if matches!(self.upgrade, Upgrade::ExtendedConnect) => {
                let connection = Arc::clone(connection);
                tokio::spawn(async move {
                    // A caller that has gone ends the entry as such.
                    let Ok(Ok(near)) = timeout(SWITCH_DEADLINE, near).await else { return };
                    switched.carry(TokioIo::new(near), &connection, &active).await;
                });
            }
            Some(_) | None => *connection.switched.lock() = Some(Box::new(switched)),
        }
    }
}

impl Switched {
    /// Joins the two sides until one ends.
    pub async fn carry<S>(mut self, near: S, connection: &Connection, active: &Arc<Active>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(SWITCH_DEADLINE, self.far).await {
            Ok(Ok(far)) => tunnel::carry(near, TokioIo::new(far), connection, active, self.entry, self.question).await,
            Ok(Err(_)) | Err(_) => {
                self.entry.reason = Some(match connection.direction() {
                    Direction::Inbound => Reason::ApplicationReset,
                    Direction::Outbound => Reason::UpstreamReset,
                });
            }
        }
    }
}
