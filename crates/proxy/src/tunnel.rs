//! Opaque TCP: decided once as a connection, decided again when the policies change, copied in between.

use crate::connection::Connection;
use crate::country::Origin;
use crate::prefixed::Prefixed;
use crate::reply::Refusal;
use crate::revocable::Revocable;
use crate::state::{Active, Called};
use crate::telemetry::access_log::{Direction, Entry};
use crate::upstream::{self, Failed, Failure};
use bytes::BytesMut;
use identity::handshake::Alpn;
use model::snapshot::Inbound;
use model::{AuthzRequest, DecisionId, Limit, Question, Reason, Source};
use policy::Permit;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use token::VerifiedClaims;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Bytes that one direction of a tunnel holds.
const COPY_BYTES: usize = 16 * 1024;

/// The action of an opaque connection.
const CONNECT: &str = "connect";

/// What let an inbound connection or upgrade in: it must go on being true.
#[derive(Debug)]
pub struct LetIn {
    /// What the policies were asked.
    pub question: AuthzRequest,
    /// Where it comes from.
    pub origin: Origin,
    /// What the token says, if there was one.
    pub claims: Option<VerifiedClaims>,
}

impl LetIn {
    /// A request without a token, for as long as nobody says that it has one.
    pub fn of(question: &Question<'_>, origin: Origin) -> Box<Self> {
        Box::new(Self { question: question.to_request(), origin, claims: None })
    }
}

/// A connection to a peer's sidecar.
type PeerStream = identity::ClientStream<Revocable>;

/// The far end of a tunnel, and what of it was read already.
pub type Far<S> = Prefixed<S>;

/// A connection from a peer to the application.
pub async fn inbound<S>(stream: S, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some((entry, let_in, listener)) = admitted(connection, active) else { return };
    match upstream::connect_tcp(listener.application, &active.snapshot.limits).await {
        Ok(application) => carry(stream, application, connection, active, entry, let_in).await,
        Err(failure) => fail(entry, Failed { application: true, failure }),
    }
}

/// The same, where the application was connected to before and has spoken first.
pub async fn inbound_to<S>(stream: S, application: Far<TcpStream>, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some((entry, let_in, _)) = admitted(connection, active) else { return };
    carry(stream, application, connection, active, entry, let_in).await;
}

/// Asks the policies for the action `connect`. The permit is spent on this one connection.
fn admitted<'a>(connection: &Connection, active: &'a Arc<Active>) -> Option<(Entry, Option<LetIn>, &'a Inbound)> {
    let listener = active.inbound_at(connection.local)?;
    let mut entry = begin(connection, active, Direction::Inbound);
    entry.upstream = Some(listener.application.into());
    let question = question(connection, active)?;
    let _permit: Permit = decide(&question.as_question(), connection, active, &mut entry)?;
    Some((entry, Some(LetIn { question, origin: Origin::of_connection(connection), claims: None }), listener))
}

/// Connects to the application and waits until it speaks, if the policies let this caller connect; otherwise waits for ever.
pub async fn application_speaks(connection: &Connection, active: &Arc<Active>) -> Far<TcpStream> {
    let permitted = active.inbound_at(connection.local).filter(|_| {
        let id = DecisionId::from_random([0; 16]);
        // Only whether to listen to the application: the connection is decided, and told of, when there is one.
        question(connection, active)
            .is_some_and(|asked| policy::decide(&active.policies, &asked.as_question(), id, active.snapshot.revision).is_ok())
    });
    let Some(listener) = permitted else { return pending().await };
    match upstream::connect_tcp(listener.application, &active.snapshot.limits).await {
        Ok(stream) => speaks(stream).await,
        Err(_) => pending().await,
    }
}

/// Connects to the upstream and waits until it speaks. If it cannot be reached, that is told when the application has spoken.
pub async fn upstream_speaks(connection: &Connection, active: &Arc<Active>) -> Far<PeerStream> {
    let Some(called) = active.upstream_at(connection.local) else { return pending().await };
    match reach(called, connection, active).await {
        Ok(stream) => speaks(stream).await,
        Err(_) => pending().await,
    }
}

async fn speaks<S: AsyncRead + Unpin>(mut stream: S) -> Far<S> {
    let mut prefix = BytesMut::with_capacity(COPY_BYTES);
    match stream.read_buf(&mut prefix).await {
        Ok(1..) => Prefixed::new(prefix, stream),
        // It closed without a word: that is told to the caller when it has spoken.
        Ok(0) | Err(_) => pending().await,
    }
}

/// A connection from the application to an upstream.
pub async fn outbound<S>(stream: S, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(called) = active.upstream_at(connection.local) else { return };
    let mut entry = begin(connection, active, Direction::Outbound);
    entry.upstream = Some((&called.upstream.service).into());
    match reach(called, connection, active).await {
        Ok(peer) => carry(stream, peer, connection, active, entry, None).await,
        Err(failure) => fail(entry, Failed { application: false, failure }),
    }
}

/// The same, where the upstream was connected to before and has spoken first.
pub async fn outbound_to<S>(stream: S, upstream: Far<PeerStream>, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut entry = begin(connection, active, Direction::Outbound);
    entry.upstream = active.upstream_at(connection.local).map(|called| (&called.upstream.service).into());
    carry(stream, upstream, connection, active, entry, None).await;
}

/// A redirected connection from the application to somewhere outside the mesh: it goes on to where it was going, as it is.
pub async fn pass(stream: TcpStream, connection: &Connection, active: &Arc<Active>) {
    let mut entry = begin(connection, active, Direction::Outbound);
    entry.upstream = Some(connection.local.into());
    match upstream::connect_tcp(connection.local, &active.snapshot.limits).await {
        Ok(far) => carry(stream, far, connection, active, entry, None).await,
        Err(failure) => fail(entry, Failed { application: false, failure }),
    }
}

/// An opaque connection to the first endpoint that can be reached.
async fn reach(called: Called<'_>, connection: &Connection, active: &Arc<Active>) -> Result<PeerStream, Failure> {
    let mut last = Failure::NoEndpoint;
    for endpoint in called.endpoints() {
        match upstream::connect_peer(endpoint, &[Alpn::Tcp], active, &connection.shared).await {
            Ok((peer, _)) => return Ok(peer),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

fn begin(connection: &Connection, active: &Active, direction: Direction) -> Entry {
    let mut entry = Entry::begin(&connection.shared, "tunnel", direction, connection.remote);
    entry.principal = connection.principal().or_else(|| Some(active.snapshot.identity.clone().into()));
    entry.key_exchange = connection.key_exchange();
    entry.revision = active.snapshot.revision;
    entry.note_method(b"connect");
    "/".clone_into(&mut entry.path);
    entry
}

fn fail(mut entry: Entry, failed: Failed) {
    entry.reason = Some(failed.reason());
    entry.detail = Some(failed.to_string());
}

/// What the policies are asked of an opaque connection.
fn question(connection: &Connection, active: &Active) -> Option<AuthzRequest> {
    let country = Origin::of_connection(connection).country(active, connection, CONNECT);
    Some(AuthzRequest {
        principal: connection.principal()?,
        user: None,
        action: CONNECT.to_owned(),
        resource: active.snapshot.service.clone(),
        path: "/".to_owned(),
        host: String::new(),
        headers: Vec::new(),
        body: None,
        body_note: None,
        source: Source { address: connection.remote.ip(), country },
        now: crate::clock::now(),
    })
}

/// Asks the policies; a denial is noted in the entry and told to the operator's records.
fn decide(question: &Question<'_>, connection: &Connection, active: &Arc<Active>, entry: &mut Entry) -> Option<Permit> {
    match policy::decide(&active.policies, question, entry.decision, active.snapshot.revision) {
        Ok(permit) => {
            connection.shared.try_beside(question, permit.decision(), None, active);
            Some(permit)
        }
        Err(mut denied) => {
            // An open connection cannot be answered with a challenge.
            denied.user_could_be_allowed = false;
            entry.reason = denied.decision.reason;
            let decision = denied.decision.clone();
            let refusal = Refusal::denied(denied, active);
            connection.shared.try_beside(question, &decision, Some(&refusal), active);
            None
        }
    }
}

/// Copies both ways until both sides have ended, or something asks for the end. `let_in` is looked at again whenever the
/// configuration changes.
pub async fn carry<A, B>(near: A, far: B, connection: &Connection, active: &Arc<Active>, mut entry: Entry, let_in: Option<LetIn>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let moved_ms = AtomicU64::new(0);
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let there = Copied { from: End::Near, to: End::Far, started, moved_ms: &moved_ms };
    let back = Copied { from: End::Far, to: End::Near, started, moved_ms: &moved_ms };
    let both = async { tokio::try_join!(copy(near_read, far_write, there), copy(far_read, near_write, back)).map(drop) };
    tokio::select! {
        ended = both => match ended {
            Ok(()) => entry.ended(),
            Err((end, error)) => {
                entry.reason = Some(match (end, connection.direction()) {
                    (End::Near, _) => Reason::CallerGone,
                    (End::Far, Direction::Inbound) => Reason::ApplicationReset,
                    (End::Far, Direction::Outbound) => Reason::UpstreamReset,
                });
                entry.detail = Some(error.to_string());
            }
        },
        reason = ending(connection, active, let_in, started, &moved_ms) => {
            entry.reason = Some(reason);
            if reason == Reason::IdleTimeout {
                entry.detail = Some(format!("no byte for limit `idleMs` ({} ms)", active.snapshot.limits.of(Limit::IdleMs)));
            }
        }
    }
}

/// An end of a tunnel, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The caller's.
    Near,
    /// The called one's.
    Far,
}

/// One direction of a tunnel.
struct Copied<'a> {
    from: End,
    to: End,
    started: Instant,
    moved_ms: &'a AtomicU64,
}

/// Copies one direction; the end of the source is passed on as the end of the sink, so that half-closed works.
async fn copy<R, W>(mut source: ReadHalf<R>, mut sink: WriteHalf<W>, way: Copied<'_>) -> Result<(), (End, io::Error)>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let at = |end| move |error| (end, error);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = source.read(&mut buffer).await.map_err(at(way.from))?;
        if count == 0 {
            return sink.shutdown().await.map_err(at(way.to));
        }
        sink.write_all(buffer.get(..count).unwrap_or_default()).await.map_err(at(way.to))?;
        sink.flush().await.map_err(at(way.to))?;
        way.moved_ms.store(u64::try_from(way.started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Waits for what ends a tunnel from our side: drain, age, idleness, or policies that no longer permit it.
async fn ending(
    connection: &Connection,
    active: &Arc<Active>,
    let_in: Option<LetIn>,
    started: Instant,
    moved_ms: &AtomicU64,
) -> Reason {
    let limits = &active.snapshot.limits;
    let idle_max = limits.duration(Limit::IdleMs);
    let aged = async {
        match (connection.age_max(active), active.upstream_at(connection.local)) {
            (Some(age), _) => tokio::time::sleep(age).await,
            // Between sidecars; what leads elsewhere has no identity to grow old.
            (None, Some(_)) => tokio::time::sleep(active.snapshot.connection_age_max).await,
            (None, None) => pending().await,
        }
    };
    let drained = async {
        if connection.direction() == Direction::Outbound {
            // What the application still says goes on until it is gone.
            return pending().await;
        }
        connection.shared.drained().await;
        // Before the process itself ends, so that the end is told for what it is.
        tokio::time::sleep(limits.duration(Limit::DrainMs) * 8 / 10).await;
    };
    let idled = async {
        loop {
            let moved = Duration::from_millis(moved_ms.load(Ordering::Relaxed));
            let idle = started.elapsed().saturating_sub(moved);
            if idle >= idle_max {
                return;
            }
            tokio::time::sleep((idle_max - idle).max(Duration::from_millis(100))).await;
        }
    };
    tokio::select! {
        () = drained => Reason::Draining,
        () = aged => Reason::ConnectionAge,
        () = idled => Reason::IdleTimeout,
        reason = denied_by_change(connection, active, let_in) => reason,
    }
}

/// Waits until a changed configuration no longer permits what let this connection in (design §9.9).
async fn denied_by_change(connection: &Connection, decided: &Active, let_in: Option<LetIn>) -> Reason {
    let mut configs = connection.shared.config.subscribe();
    let Some(LetIn { question, origin, claims }) = let_in else { return pending().await };
    if configs.borrow().as_ref().is_some_and(|now| now.snapshot.revision != decided.snapshot.revision) {
        // It changed between the decision and now.
        configs.mark_changed();
    }
    loop {
        if configs.changed().await.is_err() {
            return pending().await;
        }
        let Some(active) = configs.borrow_and_update().clone() else { continue };
        if active.inbound_at(connection.local).is_some_and(|listener| !connection.may_speak(listener)) {
            return Reason::PlaintextRefused;
        }
        let still_taken = |claims: &VerifiedClaims| active.still_takes(claims, crate::clock::now());
        if let Some(Err(refusal)) = claims.as_ref().map(still_taken) {
            return refusal.reason();
        }
        let mut entry = begin(connection, &active, Direction::Inbound);
        let country = origin.country(&active, connection, &question.action);
        let again = Question { now: crate::clock::now(), country, ..question.as_question() };
        let permitted = decide(&again, connection, &active, &mut entry).is_some();
        entry.ended();
        if !permitted {
            return entry.reason.unwrap_or(Reason::NotPermitted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_one_direction_leaves_the_other_open() {
        let (mut client, near) = tokio::io::duplex(64);
        let (mut server, far) = tokio::io::duplex(64);
        let moved = AtomicU64::new(0);
        let started = Instant::now();
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let copies = async {
            let there = Copied { from: End::Near, to: End::Far, started, moved_ms: &moved };
            let back = Copied { from: End::Far, to: End::Near, started, moved_ms: &moved };
            tokio::try_join!(copy(near_read, far_write, there), copy(far_read, near_write, back)).map(drop)
        };
        let talk = async {
            client.write_all(b"ask").await.expect("ask");
            client.shutdown().await.expect("half-close");
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.expect("read to the end");
            assert_eq!(asked, b"ask");
            server.write_all(b"answer").await.expect("answer after the half-close");
            server.shutdown().await.expect("close");
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.expect("read the answer");
            assert_eq!(answered, b"answer");
        };
        let (copied, ()) = tokio::join!(copies, talk);
        copied.expect("both directions end cleanly");
    }
}
