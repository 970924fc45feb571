//! A connection while it is served: its caller, its requests, and the ends that it may come to.

use crate::accept::{LAST_WORDS_DEADLINE, refuse_connection};
use crate::buffer::Buffer;
use crate::clock;
use crate::country::Located;
use crate::ending::{Asked, Ending};
use crate::exchange::{Downstream, Exchange};
use crate::framing::{FramingRefusal, Rules};
use crate::http1::{self, Next};
use crate::http2;
use crate::io::Io;
use crate::mux::{self, Side};
use crate::reply;
use crate::request;
use crate::state::{Active, Shared};
use crate::telemetry::access_log::{Direction, Entry};
use crate::upgrade::Switched;
use crate::workers::Worker;
use futures_util::task::AtomicWaker;
use identity::handshake::VerifiedPeer;
use model::snapshot::Inbound;
use model::{Limit, Limits, Principal, Reason, SpiffeId};
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::ReusableBoxFuture;

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
    /// When the connection was made that carries it: its own beginning, or that of the connection that it is a stream of.
    since: Instant,
    /// It is a stream of a connection that tells of its end for all of them.
    is_stream: bool,
    /// What it was asked for, as a number of [`Ending`].
    ends: AtomicU8,
    /// Whoever serves it and wants to know of its end.
    waker: AtomicWaker,
    /// What is under way on it is to look at the configuration. A connection of HTTP/1 does so whenever it is woken.
    is_to_wake: AtomicBool,
    registered: usize,
    /// The country of the other end's address.
    pub(crate) located: Located,
    identity_line: OnceLock<String>,
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
    asked_ms: AtomicU64,
}

impl Activity {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(shared: Arc<Shared>, worker: Arc<Worker>, remote: SocketAddr, local: SocketAddr, caller: Caller) -> Arc<Self> {
        Self::since(Instant::now(), false, shared, worker, remote, local, caller)
    }

    fn since(
        since: Instant,
        is_stream: bool,
        shared: Arc<Shared>,
        worker: Arc<Worker>,
        remote: SocketAddr,
        local: SocketAddr,
        caller: Caller,
    ) -> Arc<Self> {
        let started = Instant::now();
        let activity =
            Activity { started, moved_ms: AtomicU64::new(0), requests: AtomicUsize::new(0), asked_ms: AtomicU64::new(0) };
        let (ends, waker, identity_line) = (AtomicU8::new(0), AtomicWaker::new(), OnceLock::new());
        let is_to_wake = AtomicBool::new(false);
        let register = Arc::clone(&worker);
        register.connections.register(|registered| Self {
            shared,
            worker,
            remote,
            local,
            caller,
            since,
            is_stream,
            ends,
            waker,
            is_to_wake,
            registered,
            located: Located::default(),
            identity_line,
            activity,
        })
    }

    /// A stream of this connection, for one that carries many: the same two ends, and no longer a life.
    fn stream(&self) -> Arc<Self> {
        let caller = match &self.caller {
            Caller::Peer(peer) => Caller::Peer(peer.clone()),
            Caller::Plaintext => Caller::Plaintext,
            Caller::Application => Caller::Application,
        };
        let (shared, worker) = (Arc::clone(&self.shared), Arc::clone(&self.worker));
        Self::since(self.since, true, shared, worker, self.remote, self.local, caller)
    }

    /// Whether it is to end after what is under way.
    pub fn is_asked_to_end(&self) -> bool {
        self.asked() != Asked::No
    }

    fn asked(&self) -> Asked {
        Asked::ALL.get(usize::from(self.ends.load(Ordering::Relaxed))).copied().unwrap_or(Asked::No)
    }

    fn ask(&self, asked: Asked) {
        let number = Asked::ALL.iter().position(|each| *each == asked).and_then(|place| u8::try_from(place).ok());
        self.ends.store(number.unwrap_or(0), Ordering::Relaxed);
        self.waker.wake();
    }

    /// Ends it at once, and what is under way on it: the process ends.
    pub fn cut(&self) {
        self.ask(Asked::AtOnce(Ending::Draining));
    }

    /// Looks whether it should end, and has what is under way on it look at a changed configuration: called once a second, at every
    /// change, and when the process drains.
    pub fn look(&self) {
        let Some(active) = self.shared.active() else { return };
        if self.activity.requests.load(Ordering::Relaxed) > 0 && self.shared.is_changing() {
            self.is_to_wake.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
        if self.is_revoked() {
            return self.ask(Asked::AtOnce(Ending::Revoked));
        }
        match self.asked() {
            Asked::No => {
                if let Some(why) = self.due(&active) {
                    self.activity.asked_ms.store(self.activity.now_ms(), Ordering::Relaxed);
                    self.ask(Asked::ToEnd(why));
                }
            }
            Asked::ToEnd(why) => {
                let certificate_ended = self.peer().is_some_and(|peer| peer.not_after() <= clock::now());
                let asked_for = self.activity.now_ms().saturating_sub(self.activity.asked_ms.load(Ordering::Relaxed));
                let is_graced = u128::from(asked_for) >= ENDING_GRACE.as_millis();
                if certificate_ended || is_graced && self.activity.requests.load(Ordering::Relaxed) == 0 {
                    self.ask(Asked::AtOnce(why));
                }
            }
            Asked::AtOnce(_) => {}
        }
    }

    /// Whether the peer's SVID is refused since the handshake.
    fn is_revoked(&self) -> bool {
        let Some(peer) = self.peer() else { return false };
        self.shared.credentials.borrow().as_ref().is_some_and(|own| own.bundles().is_revoked(peer.serial()))
    }

    /// Why it should end by itself: drain, maximum age (between sidecars only), or idleness.
    fn due(&self, active: &Active) -> Option<Ending> {
        // What the application still calls goes on until it is gone.
        if self.direction() == Direction::Inbound && *self.shared.draining.borrow() {
            return Some(Ending::Draining);
        }
        if self.age_max(active).is_some_and(|left| left.is_zero()) {
            return Some(Ending::Age);
        }
        (self.idle_for() >= active.snapshot.limits.duration(Limit::IdleMs)).then_some(Ending::Idle)
    }

    /// Ready when it was asked for more of an end than `known`. Costs two atomic operations.
    fn poll_asked(&self, known: Asked, cx: &Context<'_>) -> Poll<Asked> {
        self.waker.register(cx.waker());
        match self.asked() {
            asked if asked == known => Poll::Pending,
            asked => Poll::Ready(asked),
        }
    }

    /// What the application is told of the peer's certificate; `None` for a plaintext caller. `own`: who answers here.
    pub fn identity_line(&self, own: &SpiffeId) -> Option<&str> {
        let peer = self.peer()?;
        let line = || format!("By={own};Hash={};URI={}", peer.fingerprint_sha256(), peer.id());
        Some(self.identity_line.get_or_init(line))
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

    /// How the keys of the caller's connection were agreed; `None` where it is not TLS.
    pub fn key_exchange(&self) -> Option<&'static str> {
        self.peer().map(VerifiedPeer::key_exchange_group)
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

    /// How long the connection may go on from now. Between sidecars it has a maximum age, so that a rotated or revoked identity
    /// does not live on in it, and it never outlives the certificate that opened it, nor does what is under way on it.
    pub fn age_max(&self, active: &Active) -> Option<Duration> {
        let peer = self.peer()?;
        let left = active.snapshot.connection_age_max.saturating_sub(self.since.elapsed());
        Some(left.min(peer.not_after().since(clock::now())))
    }

    /// Counts a request for as long as it is under way.
    pub fn request_begins(self: &Arc<Self>) -> UnderWay {
        self.activity.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Notes that the connection has ended because we asked for it, or waited in vain.
    pub(crate) fn tell_ending(&self, why: Ending, limits: &Limits) {
        let after = self.activity.started.elapsed().as_secs();
        let detail = match why {
            Ending::Draining | Ending::Age => format!("open for {after} s"),
            Ending::Revoked => format!("the SVID {} is revoked", self.peer().map_or("", VerifiedPeer::serial)),
            Ending::Idle => format!("no request for limit `idleMs` ({} ms)", limits.of(Limit::IdleMs)),
        };
        self.tell_end(why.reason(), detail);
    }

    /// Notes that the connection has ended, by our doing.
    fn tell_end(&self, reason: Reason, detail: String) {
        let mut entry = Entry::begin(&self.shared, "connection", self.direction(), self.remote);
        entry.principal = self.principal();
        entry.revision = self.shared.revision();
        entry.note_method(b"connect");
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
}

/// One request under way, until it is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Connection>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.connections.forget(self.registered);
    }
}

impl UnderWay {
    /// Why its connection was cut under it, if it was.
    pub fn cut(&self) -> Option<Reason> {
        match self.0.asked() {
            Asked::AtOnce(why) => Some(why.reason()),
            Asked::No | Asked::ToEnd(_) => None,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let activity = &self.0.activity;
        activity.moved_ms.store(activity.now_ms(), Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For the other end of a connection to take notice that it is being ended.
const ENDING_GRACE: Duration = Duration::from_secs(2);

/// The life of an HTTP/1 connection: one request after the other. `input`: what was read of it before.
pub(crate) async fn serve_http1(io: Io, input: Buffer, connection: Arc<Connection>, active: &Arc<Active>) {
    let limits = &active.snapshot.limits;
    let rules = Rules {
        head_bytes_max: limits.size(Limit::RequestHeadBytes),
        headers_max: limits.size(Limit::RequestHeaders),
        head_deadline: limits.duration(Limit::RequestHeadMs),
    };
    // Handed to each request's room and back.
    let mut server = Box::new(http1::Server::new(io, input, rules));
    let ended = loop {
        if let Err(why) = arrived(&mut server, &connection).await {
            break why;
        }
        let (back, turn) = Room::take(take_turn(server, Arc::clone(&connection))).await;
        server = back;
        match turn {
            Turn::Answered(None) if !connection.is_asked_to_end() && server.goes_on() => {}
            Turn::Answered(None) => break connection.asked().why(),
            Turn::Answered(Some(switched)) => {
                let (io, behind) = server.into_parts();
                return Box::pin(switched.carry(io, &behind, &connection)).await;
            }
            Turn::Refused(refusal) => return Box::pin(refuse_message(refusal, server, &connection, active)).await,
            Turn::End => break None,
        }
    };
    if let Some(why) = ended.filter(|_| !connection.is_stream) {
        connection.tell_ending(why, limits);
    }
    if !server.is_aborted() {
        // The caller may be gone already.
        let _ended = timeout(LAST_WORDS_DEADLINE, server.end()).await;
    }
}

/// Waits for the first byte of the next request. An error: it does not come any more, because the caller has ended the connection, or
/// because the connection was asked to end, and why.
async fn arrived(server: &mut http1::Server, connection: &Connection) -> Result<(), Option<Ending>> {
    poll_fn(|cx| match server.poll_arrived(cx) {
        Poll::Ready(true) => Poll::Ready(Ok(())),
        Poll::Ready(false) => Poll::Ready(Err(None)),
        Poll::Pending => connection.poll_asked(Asked::No, cx).map(|asked| Err(asked.why())),
    })
    .await
}

/// What became of what had arrived on a connection.
pub(crate) enum Turn {
    /// A request, which was answered. The connection may speak another protocol now.
    Answered(Option<Box<Switched>>),
    /// What no reader should see as a request.
    Refused(FramingRefusal),
    /// The end of the connection.
    End,
}

/// Reads one request and answers it.
pub(crate) async fn take_turn(mut server: Box<http1::Server>, connection: Arc<Connection>) -> (Box<http1::Server>, Turn) {
    let mut exchange = Exchange::take();
    let turn = match server.next(&mut exchange.request).await {
        Ok(Next::Request) => Turn::Answered(one_request(&mut exchange, &mut server, &connection).await.map(Box::new)),
        Ok(Next::Refused(refusal)) => Turn::Refused(refusal),
        Ok(Next::End) | Err(_) => Turn::End,
    };
    exchange.give_back();
    (server, turn)
}

/// LIMIT: rooms for requests that a worker keeps.
const SPARE_ROOMS_MAX: usize = 64;

thread_local! {
    static SPARE_ROOMS: RefCell<Vec<TurnRoom>> = const { RefCell::new(Vec::new()) };
}

type TurnRoom = ReusableBoxFuture<'static, (Box<http1::Server>, Turn)>;

/// Where a request is while it is under way. A worker's next request takes the room of its last one, so that a connection that waits
/// has none and a request costs no allocation.
struct Room(Option<TurnRoom>);

impl Room {
    fn take(turn: impl Future<Output = (Box<http1::Server>, Turn)> + Send + 'static) -> Self {
        Self(Some(match SPARE_ROOMS.with_borrow_mut(Vec::pop) {
            Some(mut room) => {
                room.set(turn);
                room
            }
            None => ReusableBoxFuture::new(turn),
        }))
    }
}

impl Future for Room {
    type Output = (Box<http1::Server>, Turn);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(room) = &mut self.0 else { return Poll::Pending };
        let polled = room.poll(cx);
        if polled.is_ready()
            && let Some(room) = self.0.take()
        {
            // A thread that ends keeps nothing.
            let _kept = SPARE_ROOMS.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE_ROOMS_MAX {
                    spare.push(room);
                }
            });
        }
        polled
    }
}

/// One request, to whichever page of `request` this connection's side says.
async fn one_request(exchange: &mut Exchange, server: &mut http1::Server, connection: &Arc<Connection>) -> Option<Switched> {
    let answered = {
        let mut down = Downstream::Http1(server);
        let mut answer = pin!(request::answer(exchange, &mut down, connection));
        poll_fn(|cx| {
            if let Poll::Ready(switched) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(switched));
            }
            match connection.poll_asked(Asked::No, cx) {
                Poll::Ready(Asked::AtOnce(_)) => Poll::Ready(None),
                Poll::Ready(Asked::No | Asked::ToEnd(_)) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    };
    let Some(switched) = answered else {
        // What was begun of the answer must not look whole.
        server.abort();
        return None;
    };
    server.skip_body();
    switched
}

/// A request that nobody sees, because no two readers might see the same one. It is answered, and the connection ends.
async fn refuse_message(refusal: FramingRefusal, mut server: Box<http1::Server>, connection: &Arc<Connection>, active: &Active) {
    let mut entry = Entry::begin(&connection.shared, "access", connection.direction(), connection.remote);
    entry.principal = connection.principal();
    entry.reason = Some(refusal.reason());
    entry.status = reply::status(refusal.reason()).as_u16();
    entry.detail = Some(refusal.to_string());
    entry.revision = active.snapshot.revision;
    connection.shared.tell_record(refusal.reason(), entry.detail.clone(), entry.status, &entry);
    let bytes = reply::raw(refusal.reason(), &refusal.to_string(), entry.decision);
    // The caller may be gone already; the entry tells the refusal in any case.
    let _sent = timeout(LAST_WORDS_DEADLINE, server.last_words(&bytes)).await;
}

/// The life of a connection that carries many of HTTP/1 between two sidecars.
pub(crate) async fn serve_mux(io: Io, connection: Arc<Connection>, active: &Arc<Active>) {
    let limits = &active.snapshot.limits;
    let streams_max = u32::try_from(limits.of(Limit::StreamsPerConnection)).unwrap_or(u32::MAX);
    let (streams, mut driver) = mux::over(io, Side::Taker { streams_max });
    let mut asked = Asked::No;
    while let Some(next) = next_or_asked(poll_fn(|cx| driver.poll_next(cx)), &connection, &mut asked).await {
        match (next, asked) {
            (Some(Ok(stream)), _) => {
                let stream_of = connection.stream();
                let (active, under_way) = (Arc::clone(active), connection.request_begins());
                connection.shared.watch(async move {
                    let _under_way = under_way;
                    serve_http1(Io::Shared(stream), Buffer::default(), stream_of, &active).await;
                });
            }
            (Some(Err(ended)), _) => {
                if let mux::Ended::Protocol(_) = ended {
                    connection.tell_end(Reason::RequestMalformed, ended.to_string());
                }
                break;
            }
            (None, _) => streams.leave(),
        }
    }
    if let Some(why) = asked.why() {
        connection.tell_ending(why, limits);
    }
    driver.end().await;
}

/// What comes next of a connection that carries many requests: `Some(None)` when it was asked to end, `None` when it must.
async fn next_or_asked<T>(next: impl Future<Output = T>, connection: &Connection, asked: &mut Asked) -> Option<Option<T>> {
    let mut next = pin!(next);
    poll_fn(|cx| {
        if let Poll::Ready(next) = next.as_mut().poll(cx) {
            return Poll::Ready(Some(Some(next)));
        }
        connection.poll_asked(*asked, cx).map(|more| {
            *asked = more;
            matches!(more, Asked::ToEnd(_) | Asked::No).then_some(None)
        })
    })
    .await
}

/// The life of an HTTP/2 connection. `input`: what was read of it before.
pub(crate) async fn serve_http2(io: Io, input: Buffer, connection: Arc<Connection>, active: &Arc<Active>) {
    let limits = &active.snapshot.limits;
    let mut driver = http2::serve(io, input, limits);
    let mut begun = pin!(tokio::time::sleep(limits.duration(Limit::RequestHeadMs)));
    let (mut asked, mut looked) = (Asked::No, false);
    loop {
        let next = next_or_asked(
            poll_fn(|cx| match driver.poll_next_waking(cx, &connection.is_to_wake) {
                Poll::Pending if !looked && begun.as_mut().poll(cx).is_ready() => Poll::Ready(None),
                polled => polled.map(Some),
            }),
            &connection,
            &mut asked,
        );
        match next.await {
            Some(Some(Some(Ok(served)))) => connection.shared.watch(serve_stream(served, Arc::clone(&connection))),
            Some(Some(Some(Err(ended)))) => {
                if let http2::Ended::Protocol(error) = ended {
                    let reason = if error.is_flood() { Reason::Flooding } else { Reason::RequestMalformed };
                    connection.tell_end(reason, ended.to_string());
                }
                break;
            }
            None => break,
            Some(None) => driver.shutdown(),
            Some(Some(None)) => {
                looked = true;
                if !driver.is_begun() {
                    let limit = limits.of(Limit::RequestHeadMs);
                    let detail = format!("no HTTP/2 preface within limit `requestHeadMs` ({limit} ms)");
                    let (shared, direction) = (&connection.shared, connection.direction());
                    return refuse_connection(shared, connection.remote, direction, Reason::HeadTimeout, detail);
                }
            }
        }
    }
    if let Some(why) = asked.why() {
        connection.tell_ending(why, limits);
    }
    let _ended = timeout(LAST_WORDS_DEADLINE, driver.end()).await;
}

/// One request of HTTP/2.
pub(crate) async fn serve_stream(mut served: http2::Served, connection: Arc<Connection>) {
    let mut exchange = Exchange::take();
    match served.take_head(&mut exchange.request) {
        Some(true) => {
            // A stream that goes on in another protocol is carried where it was granted.
            let _carried = request::answer(&mut exchange, &mut Downstream::Http2(&mut served), &connection).await;
        }
        Some(false) => request::too_large(&mut Downstream::Http2(&mut served), &connection).await,
        None => {}
    }
    exchange.give_back();
}
