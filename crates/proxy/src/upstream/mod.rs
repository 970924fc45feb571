//! Sending a request on: to the application beside us, which takes a [`Permit`], or to a peer whose identity is checked.

pub mod pool;

use crate::body::{Body, Taken};
use crate::connection::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::framing::FramingRefusal;
use crate::state::{Active, Called, Shared};
use crate::workers::Worker;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::handshake::{self, Alpn, HandshakeRefusal};
use model::snapshot::Endpoint;
use model::{Limit, Reason};
use policy::Permit;
use pool::{Host, Lease, Sender, Target};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long a connection to the application may be reused: it is on the same machine and has no identity to lose.
const APPLICATION_CONNECTION_AGE: Duration = Duration::from_secs(3600);

/// A host that is cut off closes nothing: a kept connection asks for a sign of life after the first of these, again after each
/// of the second, and is given up after three (tcp(7)). `TCP_USER_TIMEOUT` would not do: it also ends a connection whose other side
/// lives and only pauses its reading.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// Our side stops using a connection at this share of its maximum age, so that the other side never closes one in use.
const RETIRE_AT_TENTHS: u32 = 8;

/// What did not work on the way to a target.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The service has no endpoint.
    #[error("no workload of the service is known")]
    NoEndpoint,
    /// The TCP connection failed.
    #[error("connect to {address}: {detail}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// The operating system's word.
        detail: String,
    },
    /// The connection was not made in time.
    #[error("connect to {address}: not done within limit `connectMs` ({limit} ms)")]
    ConnectTimeout {
        /// Where to.
        address: SocketAddr,
        /// The limit.
        limit: u64,
    },
    /// The peer is not who it should be, or does not take us.
    #[error("handshake with {address}: {refusal}")]
    Handshake {
        /// Where to.
        address: SocketAddr,
        /// Why.
        refusal: HandshakeRefusal,
    },
    /// The peer does not take our certificate, as it said only when we first read (RFC 8446 §4.4.2.4).
    #[error("the peer refused this sidecar: {0}")]
    NotTaken(HandshakeRefusal),
    /// Too many connections to the target are open.
    #[error("limit `connectionsPerEndpoint` ({limit}) is reached")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The connection broke before the response's head.
    #[error("the connection broke before the answer: {detail}")]
    Reset {
        /// What the HTTP library says.
        detail: String,
    },
    /// No response's head in time.
    #[error("no answer within limit `responseHeadMs` ({limit} ms)")]
    Timeout {
        /// The limit.
        limit: u64,
    },
    /// The response could not be read.
    #[error("the answer could not be read: {detail}")]
    Malformed {
        /// What the HTTP library says.
        detail: String,
    },
    /// The caller's own body broke while it was sent on.
    #[error("the caller's body ended early: {detail}")]
    CallerBody {
        /// What the HTTP library says.
        detail: String,
    },
    /// The framing of the caller's body could be read in two ways.
    #[error("{0}")]
    CallerFraming(FramingRefusal),
    /// This sidecar has no SVID to call with.
    #[error("no SVID was issued to this sidecar yet")]
    NoIdentity,
}

/// A failure and where it happened.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct Failed {
    /// Whether the application or a peer was being reached.
    pub application: bool,
    /// What did not work.
    pub failure: Failure,
}

impl Failed {
    /// The reason, which says the side too.
    pub const fn reason(&self) -> Reason {
        match (&self.failure, self.application) {
            (Failure::NoEndpoint, _) => Reason::UpstreamNoEndpoint,
            (Failure::Connect { .. } | Failure::ConnectTimeout { .. }, true) => Reason::ApplicationConnect,
            (Failure::Connect { .. } | Failure::ConnectTimeout { .. }, false) => Reason::UpstreamConnect,
            (Failure::Handshake { refusal, .. }, _) => refusal.reason(),
            (Failure::NotTaken(refusal), _) => refusal.reason(),
            (Failure::Full { .. }, _) => Reason::Overloaded,
            (Failure::Reset { .. }, true) => Reason::ApplicationReset,
            (Failure::Reset { .. }, false) => Reason::UpstreamReset,
            (Failure::Timeout { .. }, true) => Reason::ApplicationTimeout,
            (Failure::Timeout { .. }, false) => Reason::UpstreamTimeout,
            (Failure::Malformed { .. }, true) => Reason::ApplicationMalformed,
            (Failure::Malformed { .. }, false) => Reason::UpstreamMalformed,
            (Failure::CallerBody { .. }, _) => Reason::CallerGone,
            (Failure::CallerFraming(refusal), _) => refusal.reason(),
            (Failure::NoIdentity, _) => Reason::NotReady,
        }
    }
}

/// Sends a permitted request to the application.
///
/// # Errors
/// - [`Failed`] with `application: true`.
pub async fn send_to_application(
    permit: Permit,
    request: Request<Body>,
    address: SocketAddr,
    active: &Active,
    worker: &Worker,
) -> Result<(Response<Incoming>, Lease), Failed> {
    // The permit is spent here: it cannot let a second request through.
    drop(permit);
    let host = worker.pool.host(&Target::Application(address));
    exchange(request, &[host], active, None).await.map_err(|failure| Failed { application: true, failure })
}

/// Sends a request of the application to the least busy endpoint of an upstream that can be reached, over mutual TLS.
///
/// # Errors
/// - [`Failed`] with `application: false`.
pub async fn send_to_peer(
    request: Request<Body>,
    called: Called<'_>,
    active: &Active,
    shared: &Shared,
    worker: &Worker,
) -> Result<(Response<Incoming>, Lease), Failed> {
    let hosts = in_order(called, worker);
    exchange(request, &hosts, active, Some(shared)).await.map_err(|failure| Failed { application: false, failure })
}

/// The endpoints, that with the fewest requests under way from this worker first.
fn in_order(called: Called<'_>, worker: &Worker) -> Vec<Arc<Host>> {
    let hosts = called.endpoints().iter().map(|endpoint| worker.pool.host(&Target::Peer(endpoint.clone())));
    let mut hosts: Vec<Arc<Host>> = hosts.collect();
    hosts.sort_by_key(|host| host.in_flight());
    hosts
}

/// One request and the head of its response.
///
/// A connection that was kept may be closed by the other side at the very moment of reuse. Then the request is tried once more on
/// a new connection, if and only if none of it was sent or its method is idempotent (RFC 9110 §9.2.2) and it has no body.
async fn exchange(
    mut request: Request<Body>,
    hosts: &[Arc<Host>],
    active: &Active,
    shared: Option<&Shared>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let limits = &active.snapshot.limits;
    let patience = Patience::with(&mut request, limits);
    let is_http2 = request.version() == Version::HTTP_2;
    let may_switch = request.headers().contains_key(UPGRADE);
    let mut may_be_warm = true;
    loop {
        let (mut lease, mut sender, is_warm) = acquire(hosts, is_http2, may_be_warm, active, shared).await?;
        let again = if is_warm { repeatable(&request) } else { None };
        match patience.wait(send(&mut sender, request)).await? {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !may_switch => {
                return Err(Failure::Malformed { detail: "a switch of protocols that nobody asked for".to_owned() });
            }
            Ok(response) => {
                if let Sender::Http1(sender, retire_at) = sender {
                    lease.keep(sender, retire_at);
                }
                return Ok((response, lease));
            }
            Err(mut error) => match error.take_message() {
                Some(unsent) if is_warm => {
                    request = unsent;
                    may_be_warm = false;
                }
                Some(_) | None => match (classify(&error.into_error()), again) {
                    (Failure::Reset { .. }, Some(whole)) => {
                        request = whole;
                        may_be_warm = false;
                    }
                    (failure, _) => return Err(failure),
                },
            },
        }
    }
}

/// How long the head of a response is waited for.
struct Patience {
    limit: Duration,
    deadline: Instant,
    /// What of the request is still to come.
    taken: Option<Arc<Taken>>,
    /// The caller says by itself how long it waits (`grpc-timeout`), and many servers send the head only with the first message,
    /// which may be hours away. Its end, and the end of either connection, is noticed all the same.
    is_grpc: bool,
}

impl Patience {
    fn with(request: &mut Request<Body>, limits: &model::Limits) -> Self {
        let limit = limits.duration(Limit::ResponseHeadMs);
        let content_type = request.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        let is_grpc = content_type.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        Self { limit, deadline: Instant::now() + limit, taken: request.body_mut().watch(), is_grpc }
    }

    /// Waits for `head`, which is late when it comes neither in time after the request's head nor after the last that was taken of
    /// its body.
    async fn wait<T>(&self, head: impl Future<Output = T>) -> Result<T, Failure> {
        let mut head = pin!(head);
        if self.is_grpc {
            return Ok(head.await);
        }
        let mut deadline = self.deadline;
        loop {
            if let Ok(head) = tokio::time::timeout_at(deadline, head.as_mut()).await {
                return Ok(head);
            }
            let extended = self.taken.as_ref().map_or(deadline, |taken| taken.last() + self.limit);
            if extended <= deadline {
                return Err(Failure::Timeout { limit: u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX) });
            }
            deadline = extended;
        }
    }
}

/// A connection to the first host that has one warm or lets one be made; nothing of the request is sent before.
async fn acquire(
    hosts: &[Arc<Host>],
    is_http2: bool,
    may_be_warm: bool,
    active: &Active,
    shared: Option<&Shared>,
) -> Result<(Lease, Sender, bool), Failure> {
    let mut last = Failure::NoEndpoint;
    for host in hosts {
        let lease = host.lease();
        let warm = match (may_be_warm, is_http2) {
            (true, true) => host.warm_http2(),
            (true, false) => host.warm_http1(),
            (false, _) => None,
        };
        if let Some(sender) = warm {
            return Ok((lease, sender, true));
        }
        match connect(host, is_http2, active, shared).await {
            Ok(sender) => return Ok((lease, sender, false)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// The same request once more, if sending it twice is the same as sending it once.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut again = Request::new(Body::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

async fn send(sender: &mut Sender, request: Request<Body>) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
    match sender {
        Sender::Http1(sender, _) => sender.try_send_request(request).await,
        Sender::Http2(sender) => sender.try_send_request(request).await,
    }
}

fn classify(error: &hyper::Error) -> Failure {
    if let Some(refusal) = FramingRefusal::found_in(error) {
        return Failure::CallerFraming(refusal);
    }
    if let Some(refusal) = handshake::refused_by_peer(error) {
        return Failure::NotTaken(refusal);
    }
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.downcast_ref::<crate::body::BodyError>().is_some() {
            return Failure::CallerBody { detail: cause.to_string() };
        }
        detail = format!("{detail}: {cause}");
        source = cause.source();
    }
    if error.is_parse() { Failure::Malformed { detail } } else { Failure::Reset { detail } }
}

/// Opens a connection to a target and starts its driver on this worker.
async fn connect(host: &Arc<Host>, is_http2: bool, active: &Active, shared: Option<&Shared>) -> Result<Sender, Failure> {
    let limits = &active.snapshot.limits;
    let place = host.open(limits.size(Limit::ConnectionsPerEndpoint))?;
    match host.target() {
        Target::Application(address) => {
            let stream = connect_tcp(*address, limits).await?;
            drive(stream, host, is_http2, APPLICATION_CONNECTION_AGE, place).await
        }
        Target::Peer(endpoint) => {
            let shared = shared.ok_or(Failure::NoIdentity)?;
            let alpn = if is_http2 { Alpn::Http2 } else { Alpn::Http1 };
            let stream = connect_peer(endpoint, alpn, active, shared).await?;
            let age = active.snapshot.connection_age_max * RETIRE_AT_TENTHS / 10;
            drive(stream, host, is_http2, age, place).await
        }
    }
}

/// A TCP connection with `TCP_NODELAY`, which ends by itself when it is idle and the other side is cut off.
///
/// # Errors
/// - [`Failure::Connect`] or [`Failure::ConnectTimeout`].
pub async fn connect_tcp(address: SocketAddr, limits: &model::Limits) -> Result<TcpStream, Failure> {
    let connected = timeout(limits.duration(Limit::ConnectMs), TcpStream::connect(address)).await;
    let connected = connected.map_err(|_| Failure::ConnectTimeout { address, limit: limits.of(Limit::ConnectMs) })?;
    let failed = |error: std::io::Error| Failure::Connect { address, detail: error.to_string() };
    let stream = connected.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let alive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&alive).map_err(failed)?;
    Ok(stream)
}

/// A mutual TLS connection to a peer whose full SPIFFE ID was checked.
///
/// # Errors
/// - [`Failure`] naming the step that failed.
pub async fn connect_peer(
    endpoint: &Endpoint,
    alpn: Alpn,
    active: &Active,
    shared: &Shared,
) -> Result<identity::ClientStream<TcpStream>, Failure> {
    let limits = &active.snapshot.limits;
    let credentials = shared.credentials().ok_or(Failure::NoIdentity)?;
    let address = endpoint.address;
    let stream = connect_tcp(address, limits).await?;
    let expected = std::slice::from_ref(&endpoint.identity);
    let shaken = handshake::connect(stream, &credentials, expected, alpn, limits.duration(Limit::HandshakeMs)).await;
    shared.metrics.handshake("outbound", shaken.as_ref().err().map(HandshakeRefusal::reason));
    let (stream, _peer) = shaken.map_err(|refusal| Failure::Handshake { address, refusal })?;
    Ok(stream)
}

async fn drive<S>(stream: S, host: &Arc<Host>, is_http2: bool, age: Duration, place: pool::OpenPlace) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let retire_at = Instant::now() + age;
    let io = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(STREAM_WINDOW_BYTES);
        builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        builder.keep_alive_interval(Duration::from_secs(20)).keep_alive_timeout(Duration::from_secs(10));
        let (sender, connection) = builder.handshake(io).await.map_err(|error| classify(&error))?;
        tokio::spawn(async move {
            let _place = place;
            // How a pooled connection ends is told by the request that met it.
            let _ended = connection.await;
        });
        host.share(sender.clone(), retire_at);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await.map_err(|error| classify(&error))?;
        tokio::spawn(async move {
            let _place = place;
            let _ended = connection.with_upgrades().await;
        });
        Ok(Sender::Http1(sender, retire_at))
    }
}
