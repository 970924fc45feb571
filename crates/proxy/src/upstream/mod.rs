//! Sending a request on: to the application beside us, which takes a [`Permit`], or to a peer whose identity is checked.

pub mod pool;

use crate::exchange::{Downstream, Stuck, Upload, Upstream};
use crate::facts::{self, Facts, Hop};
use crate::framing::FramingRefusal;
use crate::http1::{BodyFault, Client, ClientFault, Length};
use crate::http2;
use crate::io::Io;
use crate::mux::{self, Side};
use crate::revocable::Revocable;
use crate::state::{Active, Called, Shared};
use crate::workers::Worker;
use identity::handshake::{self, Alpn, HandshakeRefusal};
use message::{Head, Version};
use model::snapshot::Endpoint;
use model::{Limit, Reason};
use policy::Permit;
use pool::{Host, Lease, Target, Warm};
use socket2::{SockRef, TcpKeepalive};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
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

/// LIMIT: interim responses (1xx) to one request: they are handed on whether or not the caller reads.
const INTERIM_MAX: usize = 16;

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
        /// What was seen.
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
        /// What was seen.
        detail: String,
    },
    /// The caller's own body broke while it was sent on.
    #[error("the caller's body ended early: {detail}")]
    CallerBody {
        /// What was seen.
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
            (Failure::Handshake { refusal, .. } | Failure::NotTaken(refusal), _) => refusal.reason_of_call(),
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

/// A request that is about to be sent on.
#[derive(Debug)]
pub struct Sending<'a, 'b> {
    /// Its head, made ready for the next hop.
    pub request: &'a Head,
    /// What it says.
    pub facts: &'a Facts,
    /// Where the response's head is written down.
    pub answer: &'a mut Head,
    /// Where its body comes from, and interim responses go.
    pub down: &'a mut Downstream<'b>,
    /// Its body.
    pub upload: Upload,
    /// The configuration that it is sent by.
    pub active: &'a Active,
    /// Interim responses that came.
    pub interim: usize,
}

/// A request that was answered with a head. The body of either may be still to come.
#[derive(Debug)]
pub struct Sent {
    /// Where the response's body comes from.
    pub upstream: Upstream,
    /// The request's body.
    pub upload: Upload,
    /// The other side takes no more of it.
    pub stuck: bool,
    retire_at: Instant,
    lease: Lease,
}

impl Sent {
    /// What to call it when the response breaks.
    pub fn reset(&self) -> Reason {
        self.lease.reset()
    }

    /// The response has ended: its connection may serve another request.
    pub fn give_back(self) {
        let Self { upstream, retire_at, lease, .. } = self;
        match upstream {
            Upstream::Http1(client) if client.goes_on() => lease.keep(client, retire_at),
            Upstream::Http1(_) | Upstream::Http2(_) => {}
        }
    }
}

/// Sends a permitted request to the application.
///
/// # Errors
/// - [`Failed`] with `application: true`.
pub async fn send_to_application(
    permit: Permit,
    sending: &mut Sending<'_, '_>,
    address: SocketAddr,
    worker: &Worker,
) -> Result<Sent, Failed> {
    // The permit is spent here: it cannot let a second request through.
    drop(permit);
    let host = worker.pool.host(Target::Application(address));
    exchange(sending, std::slice::from_ref(&host), None).await.map_err(|failure| Failed { application: true, failure })
}

/// Sends a request of the application to the least busy endpoint of an upstream that can be reached, over mutual TLS.
///
/// # Errors
/// - [`Failed`] with `application: false`.
pub async fn send_to_peer(
    sending: &mut Sending<'_, '_>,
    called: Called<'_>,
    shared: &Shared,
    worker: &Worker,
) -> Result<Sent, Failed> {
    let failed = |failure| Failed { application: false, failure };
    if let [endpoint] = called.endpoints() {
        let host = worker.pool.host(Target::Peer(endpoint));
        return exchange(sending, std::slice::from_ref(&host), Some(shared)).await.map_err(failed);
    }
    let hosts = called.endpoints().iter().map(|endpoint| worker.pool.host(Target::Peer(endpoint)));
    let mut hosts: Vec<Arc<Host>> = hosts.collect();
    // That with the fewest requests under way from this worker first.
    hosts.sort_by_key(|host| host.in_flight());
    exchange(sending, &hosts, Some(shared)).await.map_err(failed)
}

/// One request and the head of its response.
///
/// A connection that was kept or is shared may be closed by the other side at the very moment of reuse. Then the request is tried
/// once more on another one, if and only if none of it was sent, or its method is idempotent (RFC 9110 §9.2.2), it has no body and
/// it asks for no other protocol.
async fn exchange(sending: &mut Sending<'_, '_>, hosts: &[Arc<Host>], shared: Option<&Shared>) -> Result<Sent, Failure> {
    let active = sending.active;
    let length = sending.upload.length(sending.down.trailers());
    let may_switch = sending.request.fields.first(b"upgrade").is_some();
    let is_repeatable = length == Length::None && !may_switch && sending.facts.method.is_idempotent();
    let mut unsent: Option<Upstream> = None;
    let mut may_be_warm = true;
    loop {
        let is_http2 = sending.request.version == Version::Http2;
        let Acquired { lease, mut upstream, retire_at, is_warm } = acquire(hosts, is_http2, may_be_warm, active, shared).await?;
        match &mut unsent {
            Some(before) => upstream.take_over(before),
            None => upstream.request(sending.request, sending.facts, length),
        }
        let patience = Patience::with(sending.request, &active.snapshot.limits);
        match patience.wait(sending, &mut upstream).await {
            Ok(()) if sending.answer.status == 101 && !may_switch => {
                return Err(Failure::Malformed { detail: "a switch of protocols that nobody asked for".to_owned() });
            }
            Ok(()) => {
                let upload = std::mem::take(&mut sending.upload);
                return Ok(Sent { upstream, upload, stuck: false, retire_at, lease });
            }
            Err(Failure::Reset { .. }) if is_warm && may_be_warm && upstream.is_unheard() && upstream.is_unsent() => {
                // Bytes that wait to be written go with their connection's successor; what a stream took would have to come again.
                let is_http1 = matches!(upstream, Upstream::Http1(_));
                if !is_http1 && !sending.upload.rewind() {
                    return Err(Failure::Reset { detail: "the stream was refused, and its body was under way".to_owned() });
                }
                unsent = is_http1.then_some(upstream);
            }
            Err(Failure::Reset { .. }) if is_warm && may_be_warm && upstream.is_unheard() && is_repeatable => {
                sending.upload.rewind();
            }
            Err(failure) => return Err(failure),
        }
        may_be_warm = false;
    }
}

/// How long the head of a response is waited for.
struct Patience {
    limit: Duration,
    deadline: Instant,
    /// The caller says by itself how long it waits (`grpc-timeout`), and many servers send the head only with the first message,
    /// which may be hours away. Its end, and the end of either connection, is noticed all the same.
    is_grpc: bool,
}

impl Patience {
    fn with(head: &Head, limits: &model::Limits) -> Self {
        let limit = limits.duration(Limit::ResponseHeadMs);
        let is_grpc = head.fields.first(b"content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
        Self { limit, deadline: Instant::now() + limit, is_grpc }
    }

    /// Sends, and waits for the response's head, which is late when it comes neither in time after the request's head nor after the
    /// last that was taken of its body.
    async fn wait(&self, sending: &mut Sending<'_, '_>, upstream: &mut Upstream) -> Result<(), Failure> {
        let mut stuck = None;
        if self.is_grpc {
            return poll_fn(|cx| poll_answer(sending, upstream, &mut stuck, cx)).await;
        }
        let mut late = pin!(tokio::time::sleep_until(self.deadline));
        poll_fn(|cx| {
            if let Poll::Ready(answered) = poll_answer(sending, upstream, &mut stuck, cx) {
                return Poll::Ready(answered);
            }
            while late.as_mut().poll(cx).is_ready() {
                let extended = sending.upload.taken().map_or(self.deadline, |taken| taken + self.limit);
                if extended <= late.deadline() {
                    let limit = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
                    return Poll::Ready(Err(Failure::Timeout { limit }));
                }
                late.as_mut().reset(extended);
            }
            Poll::Pending
        })
        .await
    }
}

/// Sends what is still to send and looks for the response's head. `stuck`: why no more of the request is taken; it may be answered
/// all the same.
fn poll_answer(
    sending: &mut Sending<'_, '_>,
    upstream: &mut Upstream,
    stuck: &mut Option<io::Error>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Failure>> {
    if sending.down.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(Failure::CallerBody { detail: "the caller took the request back".to_owned() }));
    }
    if stuck.is_none() {
        match sending.upload.poll(sending.down, upstream, cx) {
            Poll::Ready(Err(Stuck::Caller(BodyFault::Framing(refusal)))) => {
                return Poll::Ready(Err(Failure::CallerFraming(refusal)));
            }
            Poll::Ready(Err(Stuck::Caller(fault))) => {
                return Poll::Ready(Err(Failure::CallerBody { detail: fault.to_string() }));
            }
            Poll::Ready(Err(Stuck::Upstream(error))) => *stuck = Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
    }
    loop {
        match ready!(upstream.poll_head(cx, sending.answer)) {
            Ok(()) if matches!(sending.answer.status, 100 | 102..=199) => {
                sending.interim += 1;
                if sending.interim > INTERIM_MAX {
                    return Poll::Ready(Err(Failure::Malformed { detail: format!("more than {INTERIM_MAX} interim answers") }));
                }
                facts::forward_headers(&mut sending.answer.fields, Hop::Answer);
                sending.answer.fields.retain(|name, _| name != b"content-length");
                sending.down.inform(sending.answer);
                // The caller may wait for this word before it sends its body; if it is gone, that is noticed elsewhere.
                let _later = sending.down.poll_flush(cx);
            }
            Ok(()) => return Poll::Ready(Ok(())),
            Err(fault) => return Poll::Ready(Err(classify(fault, stuck.take()))),
        }
    }
}

fn classify(fault: ClientFault, stuck: Option<io::Error>) -> Failure {
    let error = match fault {
        ClientFault::Malformed(rule) => return Failure::Malformed { detail: rule.to_owned() },
        ClientFault::Broken(error) => stuck.unwrap_or(error),
    };
    if let Some(http2::Ended::Protocol(detail)) = http2::Ended::found_in(&error) {
        return Failure::Malformed { detail: detail.clone() };
    }
    let not_taken = match (mux::Ended::found_in(&error), http2::Ended::found_in(&error)) {
        (Some(mux::Ended::NotTaken(refusal)), _) | (_, Some(http2::Ended::NotTaken(refusal))) => Some(refusal.clone()),
        (Some(_), _) | (_, Some(_)) => None,
        (None, None) => handshake::refused_by_peer(&error),
    };
    not_taken.map_or_else(|| Failure::Reset { detail: error.to_string() }, Failure::NotTaken)
}

/// A connection to send on.
struct Acquired {
    lease: Lease,
    upstream: Upstream,
    retire_at: Instant,
    is_warm: bool,
}

/// A connection to the first host that has one warm or lets one be made; nothing of the request is sent before.
async fn acquire(
    hosts: &[Arc<Host>],
    is_http2: bool,
    may_be_warm: bool,
    active: &Active,
    shared: Option<&Shared>,
) -> Result<Acquired, Failure> {
    let mut last = Failure::NoEndpoint;
    for host in hosts {
        let lease = host.lease();
        // What is done once for many requests is not to make the room that each of them takes larger: it has its own.
        let made = if is_http2 {
            if may_be_warm && let Some((called, retire_at)) = host.call() {
                return Ok(Acquired { lease, upstream: Upstream::Http2(Box::new(called)), retire_at, is_warm: true });
            }
            Box::pin(connect_http2(host, active, shared))
                .await
                .map(|(called, retire_at)| (Upstream::Http2(Box::new(called)), retire_at))
        } else {
            if may_be_warm && let Some(Warm { client, retire_at, .. }) = host.warm_http1() {
                return Ok(Acquired { lease, upstream: Upstream::Http1(client), retire_at, is_warm: true });
            }
            // Its connection is as old as any that was kept, and may have been closed as well.
            if may_be_warm && let Some((stream, retire_at)) = host.stream() {
                let client = Box::new(Client::new(Io::Shared(stream)));
                return Ok(Acquired { lease, upstream: Upstream::Http1(client), retire_at, is_warm: true });
            }
            Box::pin(connect_http1(host, active, shared))
                .await
                .map(|(client, retire_at)| (Upstream::Http1(Box::new(client)), retire_at))
        };
        match made {
            Ok((upstream, retire_at)) => return Ok(Acquired { lease, upstream, retire_at, is_warm: false }),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Opens a connection of HTTP/2 that later requests share, and begins the first on it.
async fn connect_http2(host: &Arc<Host>, active: &Active, shared: Option<&Shared>) -> Result<(http2::Called, Instant), Failure> {
    let limits = &active.snapshot.limits;
    let limit = limits.size(Limit::ConnectionsPerEndpoint);
    let waiting = limits.duration(Limit::ConnectMs) + limits.duration(Limit::HandshakeMs);
    // Others may be making the very connection that this one can share.
    let _turn = timeout(waiting, host.turn()).await.ok();
    if let Some(called) = host.call() {
        return Ok(called);
    }
    let place = host.open(limit)?;
    let (io, age) = match host.target() {
        pool::Known::Application(address) => (Io::Plain(connect_tcp(*address, limits).await?), APPLICATION_CONNECTION_AGE),
        pool::Known::Peer(endpoint) => {
            let shared = shared.ok_or(Failure::NoIdentity)?;
            let (stream, _) = connect_peer(endpoint, &[Alpn::Http2], active, shared).await?;
            (Io::from(stream), active.snapshot.connection_age_max * RETIRE_AT_TENTHS / 10)
        }
    };
    let (calls, driver) = http2::call(io, limits);
    tokio::spawn(async move {
        let _place = place;
        // How a shared connection ends is told by the requests that meet it.
        let _ended = driver.run().await;
    });
    host.share_http2(calls, Instant::now() + age);
    let called = host.call().ok_or(Failure::Full { limit });
    host.leave_if_left();
    called
}

/// Opens a connection to a target, or a stream on one that is open.
async fn connect_http1(host: &Arc<Host>, active: &Active, shared: Option<&Shared>) -> Result<(Client, Instant), Failure> {
    let limits = &active.snapshot.limits;
    let limit = limits.size(Limit::ConnectionsPerEndpoint);
    let endpoint = match host.target() {
        pool::Known::Application(address) => {
            let place = host.open(limit)?;
            let stream = connect_tcp(*address, limits).await?;
            return Ok((Client::new(Io::Plain(stream)).placed(place), Instant::now() + APPLICATION_CONNECTION_AGE));
        }
        pool::Known::Peer(endpoint) => endpoint,
    };
    let shared = shared.ok_or(Failure::NoIdentity)?;
    // Others may be making the very connection that this one can share. One that is not made in time is told of by who makes it.
    let waiting = limits.duration(Limit::ConnectMs) + limits.duration(Limit::HandshakeMs);
    let _turn = if host.shares() { timeout(waiting, host.turn()).await.ok() } else { None };
    if let Some((stream, retire_at)) = host.stream() {
        return Ok((Client::new(Io::Shared(stream)), retire_at));
    }
    let place = host.open(limit)?;
    let (stream, alpn) = connect_peer(endpoint, &[Alpn::Mux, Alpn::Http1], active, shared).await?;
    let retire_at = Instant::now() + active.snapshot.connection_age_max * RETIRE_AT_TENTHS / 10;
    host.learn_shares(alpn == Alpn::Mux);
    if alpn != Alpn::Mux {
        return Ok((Client::new(Io::from(stream)).placed(place), retire_at));
    }
    let (streams, driver) = mux::over(stream, Side::Opener);
    tokio::spawn(async move {
        let _place = place;
        // How a shared connection ends is told by the requests that meet it.
        let _ended = driver.run().await;
    });
    host.share(streams, retire_at);
    let stream = host.stream().ok_or(Failure::Full { limit });
    host.leave_if_left();
    let (stream, retire_at) = stream?;
    Ok((Client::new(Io::Shared(stream)), retire_at))
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

/// A mutual TLS connection to a peer whose full SPIFFE ID was checked, and the protocol that it chose from those offered.
///
/// # Errors
/// - [`Failure`] naming the step that failed.
pub async fn connect_peer(
    endpoint: &Endpoint,
    alpn: &[Alpn],
    active: &Active,
    shared: &Shared,
) -> Result<(identity::ClientStream<Revocable>, Alpn), Failure> {
    let limits = &active.snapshot.limits;
    let credentials = shared.credentials().ok_or(Failure::NoIdentity)?;
    let address = endpoint.address;
    let stream = Revocable::new(connect_tcp(address, limits).await?);
    let expected = std::slice::from_ref(&endpoint.identity);
    let shaken = handshake::connect(stream, &credentials, expected, alpn, limits.duration(Limit::HandshakeMs)).await;
    shared.metrics.handshake("outbound", shaken.as_ref().map(|(_, peer, _)| peer).map_err(HandshakeRefusal::reason_of_call));
    let (stream, peer, alpn) = shaken.map_err(|refusal| Failure::Handshake { address, refusal })?;
    shared.opened.note(stream.get_ref().0, peer.serial());
    // Revoked while the handshake was under way: whoever cuts may have looked before it was noted.
    if shared.credentials().is_some_and(|own| own.bundles().is_revoked(peer.serial())) {
        return Err(Failure::Handshake { address, refusal: identity::PeerRefusal::Revoked.into() });
    }
    Ok((stream, alpn))
}
