//! From an accepted socket to a served connection: who calls, and what is spoken.
//!
//! Inbound, the handshake makes the principal and ALPN says the protocol. Outbound, the address says what is called, and the
//! declared protocol wins; where none is declared, whoever speaks first decides, and nobody is kept waiting to find out.

use crate::buffer::Buffer;
use crate::connection::{Caller, Connection, serve_http1, serve_http2, serve_mux};
use crate::detect::Guess;
use crate::ending::Ending;
use crate::io::Io;
use crate::prefixed::{self, Prefixed, last_words};
use crate::rehearsal::Rehearsal;
use crate::reply;
use crate::state::{Active, Shared};
use crate::telemetry::access_log::{Direction, Entry};
use crate::tunnel;
use crate::workers::Worker;
use bytes::BytesMut;
use identity::handshake::{self, Alpn, HandshakeRefusal, Serves};
use model::snapshot::{Egress, Inbound, Protocol};
use model::{Limit, Reason};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// The first byte of a TLS connection (RFC 8446 §5.1: ContentType handshake).
const TLS_HANDSHAKE_RECORD: u8 = 0x16;
/// How long what an application says first is held back on a permissive port: a peer's handshake may still be on its way, and must
/// not be answered in plaintext.
const HELLO_GRACE: Duration = Duration::from_secs(1);
/// For the answer on a connection that ends with it.
pub(crate) const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// An accepted socket.
#[derive(Debug)]
pub struct Arrival {
    /// The socket, registered with the worker's runtime.
    pub stream: TcpStream,
    /// The other end.
    pub remote: SocketAddr,
    /// Where the other end wanted to go: the listener's address, or the original destination of a redirected connection.
    pub local: SocketAddr,
    /// What the process shares.
    pub shared: Arc<Shared>,
    /// The worker that serves it.
    pub worker: Arc<Worker>,
}

impl Arrival {
    fn connection(self, caller: Caller) -> (TcpStream, Arc<Connection>) {
        let Self { stream, remote, local, shared, worker } = self;
        (stream, Connection::new(shared, worker, remote, local, caller))
    }
}

/// Serves a connection from a peer: the handshake makes the principal, ALPN says the protocol.
pub async fn inbound(arrival: Arrival) {
    let (shared, remote) = (&arrival.shared, arrival.remote);
    let refuse = |reason, detail: String| refuse_connection(shared, remote, Direction::Inbound, reason, detail);
    let (Some(active), Some(credentials)) = (shared.active(), shared.credentials()) else {
        return refuse(Reason::NotReady, "no configuration or identity yet".into());
    };
    let Some(listener) = active.inbound_at(arrival.local) else {
        return refuse(Reason::PortUnknown, format!("no `inbound` of the workload listens at {}", arrival.local));
    };
    if listener.permissive {
        match Box::pin(first_of_permissive(arrival, &active, listener)).await {
            Some(secure) => return handshake(secure, &active, &credentials, listener.protocol, Instant::now()).await,
            None => return,
        }
    }
    let (deadline, begun) = (active.snapshot.limits.duration(Limit::HandshakeMs), Instant::now());
    let first = timeout(deadline, prefixed::first_byte(&arrival.stream)).await;
    if let Ok(Ok(Some(byte))) = first
        && byte != TLS_HANDSHAKE_RECORD
    {
        return Box::pin(refuse_plaintext(arrival.stream, remote, &arrival.shared, deadline)).await;
    }
    handshake(arrival, &active, &credentials, listener.protocol, begun).await;
}

async fn handshake(
    arrival: Arrival,
    active: &Arc<Active>,
    credentials: &identity::credentials::Credentials,
    protocol: Protocol,
    begun: Instant,
) {
    let Arrival { stream, remote, local, shared, worker } = arrival;
    // One deadline from the first word on, or from accept where the first word must be the handshake's.
    let deadline = active.snapshot.limits.duration(Limit::HandshakeMs);
    let left = deadline.saturating_sub(begun.elapsed());
    let shadow = shared.rehearsal.read().as_ref().and_then(Rehearsal::shadow);
    // The stream is boxed at once: it is large, and the connection would have room for it wherever it is handed on.
    let shaken = async {
        let (stream, peer, alpn) =
            handshake::accept_or_rehearse(stream, credentials, shadow.as_deref(), Serves::from(protocol), left).await?;
        Ok((Box::new(stream), peer, alpn))
    };
    let shaken = Box::pin(shaken).await.map_err(|refusal| match refusal {
        HandshakeRefusal::Timeout { .. } => HandshakeRefusal::Timeout { deadline },
        other => other,
    });
    shared.metrics.handshake("inbound", shaken.as_ref().map(|(_, peer, _)| peer).map_err(HandshakeRefusal::reason));
    let (stream, peer, alpn) = match shaken {
        // The rehearsal of a rotation ends with its handshake.
        Ok((mut stream, _, Some(Alpn::RehearseActivated | Alpn::RehearseRetired))) => {
            let _ended = timeout(LAST_WORDS_DEADLINE, stream.shutdown()).await;
            return;
        }
        Ok(shaken) => shaken,
        Err(refusal) => {
            return refuse_connection(&shared, remote, Direction::Inbound, refusal.reason(), refusal.to_string());
        }
    };
    let connection = Connection::new(shared, worker, remote, local, Caller::Peer(peer));
    let nothing = Buffer::default();
    match (protocol, alpn) {
        (Protocol::Http | Protocol::Detect, Some(Alpn::Http2)) => {
            Box::pin(serve_http2(Io::Accepted(stream), nothing, connection, active)).await
        }
        (Protocol::Http | Protocol::Detect, Some(Alpn::Mux)) => {
            Box::pin(serve_mux(Io::Accepted(stream), connection, active)).await
        }
        (Protocol::Http, _) | (Protocol::Detect, Some(Alpn::Http1)) => {
            serve_http1(Io::Accepted(stream), nothing, connection, active).await;
        }
        (Protocol::Tcp, _) => Box::pin(tunnel::inbound(*stream, &connection, active)).await,
        (Protocol::Detect, _) => Box::pin(opaque(*stream, connection, active)).await,
    }
}

/// A peer's connection that was announced as opaque, or as nothing, at a port that may speak HTTP too: decided as a connection,
/// unless it begins a request, which the policies must see as one.
async fn opaque<S>(mut stream: S, connection: Arc<Connection>, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (idle, patience) = waits(active);
    let mut prefix = BytesMut::new();
    let words = timeout(idle, prefixed::first_words(&mut stream, &mut prefix, patience));
    let first = tokio::select! {
        biased;
        guess = words => Ok(guess),
        spoken = async { Box::pin(tunnel::application_speaks(&connection, active)).await } => Err(spoken),
    };
    match first {
        Ok(Ok(Ok(Guess::Http1 | Guess::Http2))) => {
            let detail = "HTTP on a connection that was announced as opaque; announce `h2` or `http/1.1` by ALPN".to_owned();
            refuse_connection(&connection.shared, connection.remote, Direction::Inbound, Reason::RequestMalformed, detail);
        }
        Ok(Ok(Ok(Guess::Opaque | Guess::Unclear))) => {
            Box::pin(tunnel::inbound(Prefixed::new(prefix, stream), &connection, active)).await;
        }
        Ok(Err(_)) => connection.tell_ending(Ending::Idle, &active.snapshot.limits),
        // The peer has gone.
        Ok(Ok(Err(_))) => {}
        Err(application) => Box::pin(tunnel::inbound_to(Prefixed::new(prefix, stream), application, &connection, active)).await,
    }
}

/// Serves a plaintext caller of a permissive port to its end; gives the arrival back if it begins a TLS handshake.
async fn first_of_permissive(arrival: Arrival, active: &Arc<Active>, listener: &Inbound) -> Option<Arrival> {
    let (idle, patience) = waits(active);
    let plain = Connection::new(
        Arc::clone(&arrival.shared),
        Arc::clone(&arrival.worker),
        arrival.remote,
        arrival.local,
        Caller::Plaintext,
    );
    let application = async {
        // HTTP's clients speak first, also where its servers do not wait for them (RFC 9113 §3.4).
        if listener.protocol == Protocol::Http {
            return std::future::pending().await;
        }
        let spoken = tunnel::application_speaks(&plain, active).await;
        tokio::time::sleep(HELLO_GRACE).await;
        spoken
    };
    let first = async {
        tokio::select! {
            first = prefixed::first_byte(&arrival.stream) => Ok(first),
            spoken = application => Err(spoken),
        }
    };
    match timeout(idle, first).await {
        Ok(Ok(Ok(Some(TLS_HANDSHAKE_RECORD)))) => return Some(arrival),
        Ok(Ok(Ok(Some(_)))) => {}
        Err(_) => {
            plain.tell_ending(Ending::Idle, &active.snapshot.limits);
            return None;
        }
        // The caller has gone: nothing to serve and nothing to tell.
        Ok(Ok(Ok(None) | Err(_))) => return None,
        Ok(Err(application)) => {
            plain.shared.metrics.plaintext(arrival.remote.ip());
            let (stream, connection) = arrival.connection(Caller::Plaintext);
            Box::pin(tunnel::inbound_to(stream, application, &connection, active)).await;
            return None;
        }
    }
    plain.shared.metrics.plaintext(arrival.remote.ip());
    let (mut stream, connection) = arrival.connection(Caller::Plaintext);
    let mut prefix = BytesMut::new();
    let guess = match listener.protocol {
        Protocol::Tcp => Guess::Opaque,
        Protocol::Http | Protocol::Detect => {
            timeout(idle, prefixed::first_words(&mut stream, &mut prefix, patience)).await.ok()?.ok()?
        }
    };
    let input = Buffer::of(&prefix);
    match (listener.protocol, guess) {
        (Protocol::Http | Protocol::Detect, Guess::Http2) => {
            Box::pin(serve_http2(stream.into(), input, connection, active)).await
        }
        (Protocol::Http, _) | (Protocol::Detect, Guess::Http1) => serve_http1(stream.into(), input, connection, active).await,
        (Protocol::Tcp, _) | (Protocol::Detect, _) => {
            Box::pin(tunnel::inbound(Prefixed::new(prefix, stream), &connection, active)).await;
        }
    }
    None
}

/// Serves a connection from the application.
pub async fn outbound(arrival: Arrival) {
    let Some(active) = arrival.shared.active() else {
        let detail = "no configuration yet".to_owned();
        return refuse_connection(&arrival.shared, arrival.remote, Direction::Outbound, Reason::NotReady, detail);
    };
    let protocol = active.upstream_at(arrival.local).map(|called| called.upstream.protocol);
    let (mut stream, connection) = arrival.connection(Caller::Application);
    match protocol {
        Some(Protocol::Tcp) => Box::pin(tunnel::outbound(stream, &connection, &active)).await,
        Some(Protocol::Http) => {
            // An application may open a connection long before it speaks; only idleness ends that.
            let (idle, patience) = waits(&active);
            let mut prefix = BytesMut::new();
            match timeout(idle, prefixed::first_words(&mut stream, &mut prefix, patience)).await {
                Ok(Ok(guess)) => serve_http(stream.into(), Buffer::of(&prefix), guess, connection, &active).await,
                Ok(Err(_)) => {}
                Err(_) => connection.tell_ending(Ending::Idle, &active.snapshot.limits),
            }
        }
        Some(Protocol::Detect) => detect_outbound(stream, connection, &active).await,
        None if active.snapshot.egress == Egress::Allow => Box::pin(tunnel::pass(stream, &connection, &active)).await,
        None => {
            let detail = format!("{} belongs to no upstream, and `egress` is `refuse`", connection.local);
            refuse_connection(&connection.shared, connection.remote, Direction::Outbound, Reason::EgressRefused, detail);
        }
    }
}

/// Connects at once and lets whoever speaks first decide: a client that begins a request of HTTP is served as such, everything
/// else is carried as it is.
async fn detect_outbound(mut stream: TcpStream, connection: Arc<Connection>, active: &Arc<Active>) {
    let (idle, patience) = waits(active);
    let mut prefix = BytesMut::new();
    let words = timeout(idle, prefixed::first_words(&mut stream, &mut prefix, patience));
    let first = tokio::select! {
        // Looked at in this order, so that a request that is there already never costs a connection.
        biased;
        guess = words => Ok(guess),
        // Made only where it is waited for; boxed, so that a connection of HTTP has no room for it.
        spoken = async { Box::new(Box::pin(tunnel::upstream_speaks(&connection, active)).await) } => Err(spoken),
    };
    match first {
        Ok(Ok(Ok(guess @ (Guess::Http1 | Guess::Http2)))) => {
            serve_http(stream.into(), Buffer::of(&prefix), guess, connection, active).await;
        }
        Ok(Ok(Ok(Guess::Opaque | Guess::Unclear))) => {
            Box::pin(tunnel::outbound(Prefixed::new(prefix, stream), &connection, active)).await;
        }
        Ok(Err(_)) => connection.tell_ending(Ending::Idle, &active.snapshot.limits),
        // The application has gone.
        Ok(Ok(Err(_))) => {}
        Err(upstream) => Box::pin(tunnel::outbound_to(Prefixed::new(prefix, stream), *upstream, &connection, active)).await,
    }
}

/// How long a connection may stay without its first byte, and how long its first line may take from there on.
fn waits(active: &Active) -> (Duration, Duration) {
    let limits = &active.snapshot.limits;
    (limits.duration(Limit::IdleMs), limits.duration(Limit::RequestHeadMs))
}

async fn serve_http(io: Io, input: Buffer, guess: Guess, connection: Arc<Connection>, active: &Arc<Active>) {
    match guess {
        Guess::Http2 => Box::pin(serve_http2(io, input, connection, active)).await,
        // What is no HTTP/1 either is answered by its framing.
        Guess::Http1 | Guess::Opaque | Guess::Unclear => serve_http1(io, input, connection, active).await,
    }
}

/// Notes a connection that was refused before anything could be answered on it.
pub(crate) fn refuse_connection(shared: &Arc<Shared>, remote: SocketAddr, direction: Direction, reason: Reason, detail: String) {
    let mut entry = Entry::begin(shared, "connection", direction, remote);
    entry.reason = Some(reason);
    entry.detail = Some(detail.clone());
    entry.revision = shared.revision();
    entry.note_method(b"connect");
    shared.tell_record(reason, Some(detail), 0, &entry);
}

/// Tells a plaintext client in its own language that this port speaks mutual TLS.
async fn refuse_plaintext(mut stream: TcpStream, remote: SocketAddr, shared: &Arc<Shared>, deadline: Duration) {
    let reason = Reason::PlaintextRefused;
    let mut entry = Entry::begin(shared, "connection", Direction::Inbound, remote);
    entry.reason = Some(reason);
    entry.status = reply::status(reason).as_u16();
    entry.revision = shared.revision();
    entry.note_method(b"connect");
    shared.tell_record(reason, None, entry.status, &entry);
    let bytes = reply::raw(reason, "", entry.decision);
    let _sent = timeout(deadline.min(LAST_WORDS_DEADLINE), last_words(&mut stream, &bytes)).await;
}
