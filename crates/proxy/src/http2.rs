//! HTTP/2 on a connection: what moves its bytes ([`Driver`]), and its streams as the caller's side ([`Served`]) and as the side
//! towards an application or a peer ([`Called`]).
//!
//! The protocol itself is `message::http2`'s. A connection's streams are served by tasks of the same worker, so that what many of
//! them have to say goes out in one write.

mod called;
mod served;
mod stream;

pub use called::{Called, Calls};
pub use served::Served;
pub use stream::Stream;

use crate::accept::LAST_WORDS_DEADLINE;
use crate::buffer::Buffer;
use crate::io::Io;
use identity::HandshakeRefusal;
use identity::handshake::refused_by_peer;
use message::Fields;
use message::http2::{Connection, ConnectionError, ErrorCode, Event, Role, Settings, StreamId};
use model::{Limit, Limits};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// LIMIT: bytes of one stream that wait for whoever reads it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// LIMIT: bytes of all streams of one connection. So much larger than a stream's that those who do not read cannot stop the others:
/// the connection is shared, and what waits on one stream must not be what another waits for.
const CONNECTION_WINDOW_BYTES: u32 = 128 * 1024 * 1024;
/// How often the connection's credits and its peer's life are looked at.
const TICK: Duration = Duration::from_secs(1);
/// A peer that says nothing for so many ticks while streams are open is asked for a sign of life, and given up after as many again.
const SILENT_TICKS: u32 = 5;
/// Bytes read before those who wait for them get their turn.
const READ_BYTES_TURN: usize = 256 * 1024;

/// Why a connection and all its streams have ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// Both sides are done.
    #[error("the connection was closed")]
    Closed,
    /// The peer did not take our certificate (RFC 8446 §4.4.2.4: told only when we first read).
    #[error("the peer refused this sidecar: {0}")]
    NotTaken(HandshakeRefusal),
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The other side does not speak HTTP/2 as it should.
    #[error("no HTTP/2: {0}")]
    Protocol(ConnectionError),
    /// The peer gave no sign of life.
    #[error("the peer said nothing for {} s", TICK.as_secs() * u64::from(SILENT_TICKS) * 2)]
    Silent,
    /// The stream alone was reset.
    #[error("the stream was reset: {}", .0.name())]
    Reset(ErrorCode),
}

impl Ended {
    fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self.clone())
    }

    /// The end that an error of a stream comes from.
    pub fn found_in(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

/// What a connection's driver and its streams share. All of them belong to one worker.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Who waits for something on a stream.
    waiting: HashMap<StreamId, Waker>,
    /// Streams that callers have opened.
    arrived: VecDeque<StreamId>,
    driver: Option<Waker>,
    ended: Option<Ended>,
}

/// Moves the bytes of a connection. Nothing moves unless it is polled.
#[derive(Debug)]
pub struct Driver {
    io: Io,
    input: Buffer,
    shared: Shared,
    tick: Interval,
    silent_ticks: u32,
    unflushed: bool,
    is_server: bool,
}

/// What is announced to the other side, and held against it.
fn settings(limits: &Limits) -> Settings {
    Settings {
        max_concurrent_streams: u32::try_from(limits.of(Limit::StreamsPerConnection)).unwrap_or(u32::MAX),
        stream_window: STREAM_WINDOW_BYTES,
        connection_window: CONNECTION_WINDOW_BYTES,
        head_bytes_max: u32::try_from(limits.of(Limit::RequestHeadBytes)).unwrap_or(u32::MAX),
        fields_max: limits.size(Limit::RequestHeaders),
        enable_connect_protocol: true,
        ..Settings::default()
    }
}

/// A connection that requests come from, of which `input` was read before.
pub fn serve(io: Io, input: Buffer, limits: &Limits) -> Driver {
    Driver::new(io, input, Role::Server, settings(limits))
}

/// A connection that requests go out on.
pub fn call(io: Io, limits: &Limits) -> (Calls, Driver) {
    // An application's heads are not bounded by what its callers may send.
    let settings = Settings { head_bytes_max: 256 * 1024, fields_max: 512, ..settings(limits) };
    let driver = Driver::new(io, Buffer::default(), Role::Client, settings);
    (Calls::of(driver.shared.clone()), driver)
}

impl Shared {
    /// Remembers who waits for something on a stream, and sees to it that what was written goes out.
    fn wait(state: &mut State, id: StreamId, cx: &Context<'_>) {
        match state.waiting.get_mut(&id) {
            Some(known) => known.clone_from(cx.waker()),
            None => {
                state.waiting.insert(id, cx.waker().clone());
            }
        }
    }
}

impl State {
    fn wake(&mut self, id: StreamId) {
        // Kept, so that a stream's next wait costs no place in the map.
        if let Some(waiting) = self.waiting.get(&id) {
            waiting.wake_by_ref();
        }
    }

    /// Something was written: the driver is to send it.
    fn push(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn end(&mut self, why: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for (_, waiting) in self.waiting.drain() {
            waiting.wake();
        }
        self.push();
    }

    /// A stream's holder lets go of it, and of the memory of its trailers.
    fn release(&mut self, id: StreamId, trailers: Fields) {
        self.waiting.remove(&id);
        self.connection.release(id);
        self.connection.recycle_trailers(trailers);
        self.push();
    }

    fn take_events(&mut self, is_server: bool) {
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Head(id) if is_server && !self.waiting.contains_key(&id) => self.arrived.push_back(id),
                Event::Head(id) | Event::Readable(id) | Event::Writable(id) | Event::Reset(id, _) => self.wake(id),
                Event::Goaway { .. } | Event::SettingsChanged => {}
            }
        }
    }
}

impl Driver {
    fn new(io: Io, input: Buffer, role: Role, settings: Settings) -> Self {
        let connection = Connection::new(role, settings);
        let state = State { connection, waiting: HashMap::new(), arrived: VecDeque::new(), driver: None, ended: None };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            io,
            input,
            shared: Shared(Arc::new(Mutex::new(state))),
            tick,
            silent_ticks: 0,
            unflushed: true,
            is_server: role == Role::Server,
        }
    }

    /// Moves bytes until a caller has opened a stream or the connection has ended.
    ///
    /// # Errors
    /// - [`Ended`].
    pub async fn next(&mut self) -> Result<Served, Ended> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Moves bytes until the connection has ended: for one that calls, which nobody opens streams on.
    pub async fn run(mut self) -> Ended {
        loop {
            if let Err(ended) = self.next().await {
                // The other side may be gone already.
                let _told = timeout(LAST_WORDS_DEADLINE, self.end()).await;
                return ended;
            }
        }
    }

    /// Whether the other side has begun to speak HTTP/2.
    pub fn is_begun(&self) -> bool {
        self.shared.0.lock().connection.is_settled()
    }

    /// Takes no further requests; those under way go on to their end.
    pub fn shutdown(&self) {
        let mut state = self.shared.0.lock();
        state.connection.shutdown();
        state.push();
    }

    /// The same, for whoever waits for something else too.
    ///
    /// # Errors
    /// - [`Ended`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Served, Ended>> {
        if let Poll::Ready(Err(ended)) = self.poll_move(cx) {
            self.shared.0.lock().end(ended);
        }
        let mut state = self.shared.0.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.clone()));
        }
        match state.arrived.pop_front() {
            Some(id) => {
                state.waiting.insert(id, cx.waker().clone());
                Poll::Ready(Ok(Served::of(self.shared.clone(), id)))
            }
            None => Poll::Pending,
        }
    }

    /// The same; where it is wanted, everybody who waits for something on a stream is woken.
    ///
    /// # Errors
    /// - [`Ended`].
    pub fn poll_next_waking(&mut self, cx: &mut Context<'_>, is_wanted: &AtomicBool) -> Poll<Result<Served, Ended>> {
        if is_wanted.load(Ordering::Relaxed) && is_wanted.swap(false, Ordering::Relaxed) {
            self.shared.0.lock().waiting.values().for_each(Waker::wake_by_ref);
        }
        self.poll_next(cx)
    }

    /// Reads and writes as much as goes. Ready only when the connection ends.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        while self.tick.poll_tick(cx).is_ready() {
            self.ticked()?;
        }
        let over = self.poll_read(cx);
        {
            let mut state = self.shared.0.lock();
            if let Some(ended) = &state.ended {
                return Poll::Ready(Err(ended.clone()));
            }
            if !state.driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                state.driver = Some(cx.waker().clone());
            }
        }
        let written = self.poll_write(cx);
        match (over, written) {
            // What we had to say about the end is said first, as far as it goes at once.
            (Err(ended), _) => Poll::Ready(Err(ended)),
            (Ok(()), Poll::Ready(Err(error))) => Poll::Ready(Err(Ended::Broken(error.to_string()))),
            (Ok(()), _) if self.shared.0.lock().connection.is_ended() => Poll::Ready(Err(Ended::Closed)),
            (Ok(()), _) => Poll::Pending,
        }
    }

    fn ticked(&mut self) -> Result<(), Ended> {
        let mut state = self.shared.0.lock();
        state.connection.second_passed();
        if state.connection.held_streams() == 0 {
            self.silent_ticks = 0;
            return Ok(());
        }
        self.silent_ticks += 1;
        if self.silent_ticks == SILENT_TICKS {
            state.connection.ping();
        }
        if self.silent_ticks >= SILENT_TICKS * 2 { Err(Ended::Silent) } else { Ok(()) }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        let mut turn = 0;
        loop {
            self.take_input()?;
            if !self.shared.0.lock().connection.takes_input() {
                // What we have to answer goes out first.
                return Ok(());
            }
            match self.input.poll_fill(&mut self.io, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(Ended::Broken("the other side closed it".to_owned())),
                Poll::Ready(Ok(count)) => {
                    self.silent_ticks = 0;
                    turn += count;
                    if turn >= READ_BYTES_TURN {
                        self.take_input()?;
                        cx.waker().wake_by_ref();
                        return Ok(());
                    }
                }
                Poll::Ready(Err(error)) => {
                    return Err(match refused_by_peer(&error) {
                        Some(refusal) => Ended::NotTaken(refusal),
                        None => Ended::Broken(error.to_string()),
                    });
                }
            }
        }
    }

    /// Hands everything that was read to the protocol.
    fn take_input(&mut self) -> Result<(), Ended> {
        if self.input.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.0.lock();
        let taken = state.connection.receive(self.input.data());
        state.take_events(self.is_server);
        match taken {
            Ok(count) => {
                self.input.consume(count);
                Ok(())
            }
            Err(error) => Err(Ended::Protocol(error)),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.0.lock();
        while !state.connection.output().is_empty() {
            self.unflushed = true;
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, state.connection.output()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.connection.sent(count);
            state.take_events(self.is_server);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our side of the connection, when everything was written.
    ///
    /// # Errors
    /// - the connection's.
    pub async fn end(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write(cx)).await?;
        std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.0.lock().end(Ended::Closed);
    }
}
