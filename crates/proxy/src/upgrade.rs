//! Going on with another protocol: a WebSocket of HTTP/1.1 (RFC 6455 §4) or of HTTP/2 (RFC 8441), or any other `Upgrade`.
//!
//! The request that asks for it is decided like every other. What follows is carried as it is, until the policies no longer
//! permit the request that began it.

use crate::buffer::Buffer;
use crate::connection::Connection;
use crate::exchange::{Downstream, Upstream};
use crate::facts::Upgrade;
use crate::http1::Length;
use crate::io::Io;
use crate::prefixed::Prefixed;
use crate::response::Received;
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::tunnel::{self, LetIn};
use crate::upstream::pool::OpenPlace;
use message::Head;
use model::Reason;
use std::future::poll_fn;
use std::sync::Arc;

/// What a request asks to go on with, kept while it is sent on.
#[derive(Debug)]
pub struct Asked {
    upgrade: Upgrade,
    /// What let the request in, to be asked again while the new protocol is spoken.
    let_in: Option<Box<LetIn>>,
}

/// What the other side granted.
#[derive(Debug)]
pub struct Granted {
    /// The protocol that its answer names, of HTTP/1.
    pub protocol: Option<Vec<u8>>,
}

/// A granted switch of a connection of HTTP/1, which is carried on by whoever owns it.
#[derive(Debug)]
pub struct Switched {
    far: Io,
    /// What was read of the far side behind its answer.
    ahead: Buffer,
    _place: Option<OpenPlace>,
    entry: Entry,
    let_in: Option<LetIn>,
    active: Arc<Active>,
}

impl Asked {
    /// Writes into the head what asks the next hop for the same. Call it when the head was made ready for the next hop.
    pub fn prepare(upgrade: Option<Upgrade>, head: &mut Head, let_in: Option<Box<LetIn>>) -> Option<Box<Self>> {
        let upgrade = upgrade?;
        if let Upgrade::Line(protocol) = &upgrade {
            head.fields.push(b"connection", b"upgrade");
            head.fields.push(b"upgrade", protocol);
        }
        Some(Box::new(Self { upgrade, let_in }))
    }

    /// Whether this answer grants the switch.
    pub const fn is_granted(&self, status: u16) -> bool {
        match self.upgrade {
            Upgrade::Line(_) => status == 101,
            Upgrade::ExtendedConnect => matches!(status, 200..=299),
        }
    }

    /// Whether the caller's connection cannot carry another request, although the switch was not granted: what came behind the
    /// request may be of the new protocol.
    pub const fn ends_connection(&self) -> bool {
        matches!(self.upgrade, Upgrade::Line(_))
    }
}

/// Tells the caller that the switch it asked for is granted, and joins the two sides: here for a stream of HTTP/2, else by whoever owns
/// the caller's connection. `head`: the answer's, made ready for the caller.
pub async fn grant(
    granted: Granted,
    received: Received,
    head: &mut Head,
    down: &mut Downstream<'_>,
    mut entry: Entry,
    connection: &Arc<Connection>,
) -> Option<Switched> {
    let Received { sent, asked, active, admitted, .. } = received;
    let let_in = asked.and_then(|asked| asked.let_in);
    let claims = admitted.and_then(|admitted| admitted.claims);
    let let_in = let_in.map(|let_in| LetIn { claims, ..*let_in });
    match (down, sent.upstream) {
        (Downstream::Http1(server), Upstream::Http1(client)) => {
            head.fields.push(b"connection", b"upgrade");
            if let Some(protocol) = granted.protocol {
                head.fields.push(b"upgrade", &protocol);
            }
            server.respond(head, Length::None);
            // A caller that is gone is met by whoever carries on.
            let _gone = poll_fn(|cx| server.poll_flush(cx)).await;
            let (far, ahead, place) = client.into_parts();
            Some(Switched { far, ahead, _place: place, entry, let_in, active })
        }
        (Downstream::Http2(served), Upstream::Http2(called)) => {
            served.respond(head, Length::Unknown);
            tunnel::carry(served.stream(), called.into_stream(), connection, &active, entry, let_in).await;
            None
        }
        // The protocol is kept from end to end, so that the two sides speak alike.
        (Downstream::Http1(_), Upstream::Http2(_)) | (Downstream::Http2(_), Upstream::Http1(_)) => {
            entry.reason = Some(match connection.direction() {
                Direction::Inbound => Reason::ApplicationReset,
                Direction::Outbound => Reason::UpstreamReset,
            });
            None
        }
    }
}

impl Switched {
    /// Joins the two sides until one ends. `near`: the caller's, of which `behind` was read behind its request.
    pub async fn carry(self, near: Io, behind: &Buffer, connection: &Connection) {
        let near = Prefixed::new(behind.data().into(), near);
        let far = Prefixed::new(self.ahead.data().into(), self.far);
        tunnel::carry(near, far, connection, &self.active, self.entry, self.let_in).await;
    }
}
