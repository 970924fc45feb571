//! A connection while it is served: its caller, its requests, and the ends that it may come to.

use crate::accept::{LAST_WORDS_DEADLINE, refuse_connection};
use crate::body::Body;
use crate::clock;
use crate::framing::{self, Rules};
use crate::prefixed::{self, Prefixed};
use crate::reply;
use crate::request;
use crate::state::{Active, Shared};
use crate::telemetry::access_log::{Direction, Entry};
use crate::upgrade::Switched;
use crate::workers::Worker;
use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::handshake::VerifiedPeer;
use model::snapshot::Inbound;
use model::{Limit, Limits, Principal, Reason};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// What is known of a connection for as long as it lives. A request takes everything else from the snapshot.
#[derive(Debug)]
pub struct Connection {
    /// What the process shares.
    pub shared: Arc<Shared>,
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    /// The other end.
    pub remote: SocketAddr,
    /// Where the other end wanted to go, by which the snapshot knows it.
    pub local: SocketAddr,
    /// Who holds the other end.
    pub caller: Caller,
    /// The switch to another protocol that an answer has granted; carried out when the HTTP library has let go of the connection.
    pub switched: Mutex<Option<Box<Switched>>>,
    activity: Activity,
}

/// Who holds the other end of a connection.
#[derive(Debug)]
pub enum Caller {
    /// A workload that proved its identity in this connection's handshake.
    Peer(VerifiedPeer),
    /// Somebody who spoke plaintext to a permissive port.
    Plaintext,
    /// The application beside this sidecar.
    Application,
}

/// When something last moved, and how much is under way.
#[derive(Debug)]
struct Activity {
    started: Instant,
    moved_ms: AtomicU64,
    requests: AtomicUsize,
}

/// Why a connection is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Draining,
    Age,
    Idle,
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(shared: Arc<Shared>, worker: Arc<Worker>, remote: SocketAddr, local: SocketAddr, caller: Caller) -> Self {
        let activity = Activity { started: Instant::now(), moved_ms: AtomicU64::new(0), requests: AtomicUsize::new(0) };
        Self { shared, worker, remote, local, caller, switched: Mutex::new(None), activity }
    }

    /// The verified peer, if there is one.
    pub const fn peer(&self) -> Option<&VerifiedPeer> {
        match &self.caller {
            Caller::Peer(peer) => Some(peer),
            Caller::Plaintext | Caller::Application => None,
        }
    }

    /// Who calls, as the policies see it; `None` for the application, whose calls are decided where they arrive.
    pub fn principal(&self) -> Option<Principal> {
        match &self.caller {
            Caller::Peer(peer) => Some(Principal::Workload(peer.id().clone())),
            Caller::Plaintext => Some(Principal::Unauthenticated),
            Caller::Application => None,
        }
    }

    /// Whether this port still takes what this caller speaks: a permissive one may have become strict since it connected.
    pub const fn may_speak(&self, listener: &Inbound) -> bool {
        !matches!(self.caller, Caller::Plaintext) || listener.permissive
    }

    /// Which way its calls go.
    pub const fn direction(&self) -> Direction {
        match self.caller {
            Caller::Peer(_) | Caller::Plaintext => Direction::Inbound,
            Caller::Application => Direction::Outbound,
        }
    }

    /// The protection space of challenges: the trust domain.
    pub fn realm(&self) -> String {
        self.shared.active().map_or_else(String::new, |active| active.snapshot.identity.trust_domain().to_string())
    }

    /// How long the connection may go on from now. Between sidecars it has a maximum age, so that a rotated or revoked identity
    /// does not live on in it, and it never outlives the certificate that opened it, nor does what is under way on it.
    pub fn age_max(&self, active: &Active) -> Option<Duration> {
        let peer = self.peer()?;
        Some(active.snapshot.connection_age_max.min(peer.not_after().since(clock::now())))
    }

    /// Counts a request for as long as it is under way.
    pub fn request_begins(self: &Arc<Self>) -> UnderWay {
        self.activity.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Waits until a connection that was asked to end must be ended: when nothing is under way any more and a grace has passed, or
    /// when the certificate that opened it has ended. Whoever holds the other end may do nothing at all.
    async fn overdue(&self) {
        loop {
            tokio::time::sleep(ENDING_GRACE).await;
            let certificate_ended = self.peer().is_some_and(|peer| peer.not_after() <= clock::now());
            if certificate_ended || self.activity.requests.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Notes that the connection has ended because we asked for it.
    fn tell_ending(&self, why: Ending, limits: &Limits) {
        let mut entry = Entry::begin(&self.shared, "connection", self.direction(), self.remote);
        entry.principal = self.principal();
        entry.revision = self.shared.revision();
        "connect".clone_into(&mut entry.method);
        let after = self.activity.started.elapsed().as_secs();
        let (reason, detail) = match why {
            Ending::Draining => (Reason::Draining, format!("open for {after} s")),
            Ending::Age => (Reason::ConnectionAge, format!("open for {after} s")),
            Ending::Idle => (Reason::IdleTimeout, format!("no request for limit `idleMs` ({} ms)", limits.of(Limit::IdleMs))),
        };
        entry.reason = Some(reason);
        entry.detail = Some(detail);
    }

    fn idle_for(&self) -> Duration {
        if self.activity.requests.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let moved = Duration::from_millis(self.activity.moved_ms.load(Ordering::Relaxed));
        self.activity.started.elapsed().saturating_sub(moved)
    }

    /// Waits until the connection should end by itself: drain, maximum age (between sidecars only), or idleness.
    async fn ending(&self, limits: &Limits, age: Option<Duration>) -> Ending {
        let drained = async {
            // What the application still calls goes on until it is gone.
            match self.direction() {
                Direction::Inbound => self.shared.drained().await,
                Direction::Outbound => std::future::pending().await,
            }
        };
        let idle_max = limits.duration(Limit::IdleMs);
        let aged = async {
            match age {
                Some(age) => tokio::time::sleep(age).await,
                None => std::future::pending().await,
            }
        };
        let idled = async {
            loop {
                let idle = self.idle_for();
                if idle >= idle_max {
                    return;
                }
                tokio::time::sleep((idle_max - idle).max(Duration::from_millis(100))).await;
            }
        };
        tokio::select! {
            () = drained => Ending::Draining,
            () = aged => Ending::Age,
            () = idled => Ending::Idle,
        }
    }
}

/// One request under way, until it is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Connection>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let activity = &self.0.activity;
        let moved = u64::try_from(activity.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        activity.moved_ms.store(moved, Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For the other end of a connection to take notice that it is being ended.
const ENDING_GRACE: Duration = Duration::from_secs(2);
/// LIMIT: bytes of one HTTP/2 stream that wait for whoever reads it.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// LIMIT: bytes of all streams of one connection. So much larger than a stream's that those who do not read cannot stop the others:
/// the connection is shared, and what waits on one stream must not be what another waits for.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 128 * 1024 * 1024;
/// What the HTTP library may hold beyond one head, so that the guard's bound is always the first to be met.
const PARSER_MARGIN_BYTES: usize = 64 * 1024;
/// What a caller may still send while it is told that its connection ends.
const LAST_WORDS_READ_MAX: usize = 64 * 1024;

/// Sends an answer and ends the connection. What the caller still sends is read, bounded, so that its kernel does not discard
/// the answer with a reset.
pub(crate) async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    prefixed::discard(stream, LAST_WORDS_READ_MAX).await
}

/// The life of an HTTP/1 connection: the framing guard lets only unambiguous messages through to the parser.
pub(crate) async fn serve_http1<S>(stream: S, connection: Arc<Connection>, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &active.snapshot.limits;
    let rules = Rules {
        head_bytes_max: limits.size(Limit::RequestHeadBytes),
        headers_max: limits.size(Limit::RequestHeaders),
        head_deadline: limits.duration(Limit::RequestHeadMs),
    };
    let (io, refused) = framing::guard(stream, rules);
    let mut builder = http1::Builder::new();
    // The guard bounds the head first; the parser's own bounds lie above it.
    builder.half_close(true).max_headers(limits.size(Limit::RequestHeaders) + 1).timer(TokioTimer::new());
    builder.header_read_timeout(None).max_buf_size(rules.head_bytes_max + PARSER_MARGIN_BYTES);
    let mut served = builder.serve_connection(TokioIo::new(io), service_fn(|request| answer(request, Arc::clone(&connection))));
    let mut ending = pin!(connection.ending(limits, connection.age_max(active)));
    let mut overdue = pin!(connection.overdue());
    let mut asked = None;
    loop {
        tokio::select! {
            () = overdue.as_mut(), if asked.is_some() => break,
            // The guard holds the stream open for as long as it has a refusal that was not answered.
            _ended = &mut served => break,
            why = ending.as_mut(), if asked.is_none() => {
                asked = Some(why);
                Pin::new(&mut served).graceful_shutdown();
            }
        }
    }
    if let Some(why) = asked {
        connection.tell_ending(why, limits);
    }
    let parts = served.into_parts();
    let (mut stream, held) = parts.io.into_inner().into_parts();
    let switched = connection.switched.lock().take();
    if let Some(switched) = switched {
        // What the HTTP library has read ahead comes before what the guard has held back.
        let mut ahead = BytesMut::from(parts.read_buf);
        ahead.unsplit(held);
        return switched.carry(Prefixed::new(ahead, stream), &connection, active).await;
    }
    // A refusal within a body was answered by whoever read the body.
    if let Some(refusal) = refused.take()
        && !refusal.ends_body()
    {
        let mut entry = Entry::begin(&connection.shared, "access", connection.direction(), connection.remote);
        entry.principal = connection.principal();
        entry.reason = Some(refusal.reason());
        entry.status = reply::status(refusal.reason()).as_u16();
        entry.detail = Some(refusal.to_string());
        entry.revision = active.snapshot.revision;
        connection.shared.tell_record(refusal.reason(), entry.detail.clone(), entry.status, &entry);
        let bytes = reply::raw(refusal.reason(), &refusal.to_string(), entry.decision, &connection.realm());
        // The caller may be gone already; the entry tells the refusal in any case.
        let _sent = timeout(LAST_WORDS_DEADLINE, last_words(&mut stream, &bytes)).await;
    }
}

/// The life of an HTTP/2 connection.
pub(crate) async fn serve_http2<S>(stream: S, connection: Arc<Connection>, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &active.snapshot.limits;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(u32::try_from(limits.of(Limit::StreamsPerConnection)).unwrap_or(u32::MAX))
        .max_header_list_size(u32::try_from(limits.of(Limit::RequestHeadBytes)).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let service = service_fn(|request| answer(request, Arc::clone(&connection)));
    // Until the preface has come the HTTP library knows no deadline.
    let preface = timeout(limits.duration(Limit::RequestHeadMs), prefixed::read_preface(stream)).await;
    let Ok(Ok((stream, true))) = preface else {
        let detail = format!("no HTTP/2 preface within limit `requestHeadMs` ({} ms)", limits.of(Limit::RequestHeadMs));
        return refuse_connection(&connection.shared, connection.remote, connection.direction(), Reason::HeadTimeout, detail);
    };
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut ending = pin!(connection.ending(limits, connection.age_max(active)));
    let mut overdue = pin!(connection.overdue());
    let mut asked = None;
    loop {
        tokio::select! {
            () = overdue.as_mut(), if asked.is_some() => break,
            _ended = served.as_mut() => break,
            why = ending.as_mut(), if asked.is_none() => {
                asked = Some(why);
                served.as_mut().graceful_shutdown();
            }
        }
    }
    if let Some(why) = asked {
        connection.tell_ending(why, limits);
    }
}

/// One request, to whichever page of `request` this connection's side says. Never fails: a refusal is an answer.
async fn answer(request: Request<Incoming>, connection: Arc<Connection>) -> Result<Response<Body>, Infallible> {
    Ok(match connection.caller {
        Caller::Peer(_) | Caller::Plaintext => request::inbound(request, Arc::clone(&connection)).await,
        Caller::Application => request::outbound(request, Arc::clone(&connection)).await,
    })
}
