//! Many streams on one mutual TLS connection between two sidecars (ALPN `rondel-mux`).
//!
//! Read [`Driver`] and [`Stream`] first. A stream carries what a connection of its own would carry, byte for byte: HTTP/1 stays
//! HTTP/1. What many streams have to say goes in one TLS record and one system call, which is where the cost of a hop lies, and a
//! new stream costs no handshake. Streams wait for each other only in the kernel: each has a window of its own.
//!
//! A frame is eight bytes (three of length, one of kind, four of stream, all big-endian) and its payload; docs/decisions has the why.

mod stream;

pub use stream::Stream;

use crate::accept::LAST_WORDS_DEADLINE;
use crate::buffer::Buffer;
use identity::HandshakeRefusal;
use identity::handshake::refused_by_peer;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// LIMIT: bytes of one stream that wait for whoever reads it.
const WINDOW_BYTES: u32 = 256 * 1024;
/// LIMIT: bytes of one frame, so that a large body lets the others come between.
const FRAME_BYTES_MAX: usize = 32 * 1024;
/// LIMIT: bytes of all streams that wait to be written; a stream that wants more waits itself.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// LIMIT: the same with what has no window of its own. A peer that makes us answer and never reads is cut off.
const OUTPUT_BYTES_CUT_OFF: usize = 1024 * 1024;
/// Bytes read before those who wait for them get their turn.
const READ_BYTES_TURN: usize = 256 * 1024;
/// A peer that says nothing for so long while streams are open is asked for a sign of life, and given up after as long again.
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// Streams that may be opened before the peer has told its bound.
const STREAMS_UNTOLD: u32 = 32;

const HEADER_BYTES: usize = 8;
const OPEN: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;
const RESET: u8 = 3;
const WINDOW: u8 = 4;
const LEAVING: u8 = 5;
const STREAMS: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;

/// Which end of the connection this is: the one that opened it opens the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Opener,
    /// Takes up to so many at a time.
    Taker {
        /// The limit `streamsPerConnection`.
        streams_max: u32,
    },
}

/// Why a connection and all its streams have ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// The other end closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer did not take our certificate (RFC 8446 §4.4.2.4: told only when we first read).
    #[error("the peer refused this sidecar: {0}")]
    NotTaken(HandshakeRefusal),
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer does not keep the protocol.
    #[error("the peer broke the protocol between sidecars: {0}")]
    Protocol(&'static str),
    /// The peer gave no sign of life.
    #[error("the peer said nothing for {} s", PROBE_EVERY.as_secs() * 2)]
    Silent,
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

/// A connection's streams, as those see them who open them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mux(Arc<Mutex<State>>);

/// Moves the bytes of a connection. Nothing moves unless it is polled.
#[derive(Debug)]
pub struct Driver<T> {
    io: T,
    input: Buffer,
    output: Buffer,
    /// The stream whose payload is under way, and how much of it is to come.
    payload: Option<(u32, usize)>,
    mux: Mux,
    probe: Interval,
    heard: bool,
    probed: bool,
    flushed: bool,
}

#[derive(Debug)]
struct State {
    output: Buffer,
    streams: HashMap<u32, Slot, BuildHasherDefault<ById>>,
    arrived: VecDeque<u32>,
    side: Side,
    last: u32,
    streams_max: u32,
    driver: Option<Waker>,
    crowded: Vec<Waker>,
    leaving: bool,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Slot {
    inbox: Buffer,
    reader: Option<Waker>,
    writer: Option<Waker>,
    send_window: u32,
    receive_window: u32,
    read: u32,
    peer_ended: bool,
    we_ended: bool,
    reset: bool,
}

/// Stream numbers are counted, not chosen, so that they need no hash.
#[derive(Default)]
struct ById(u64);

impl Hasher for ById {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash << 8) | u64::from(*byte));
    }

    fn write_u32(&mut self, number: u32) {
        // Spread over all bits: the map looks at the upper ones too.
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The streams of a connection, and what moves them.
pub fn over<T>(io: T, side: Side) -> (Mux, Driver<T>) {
    let mut state = State {
        output: Buffer::default(),
        streams: HashMap::default(),
        arrived: VecDeque::new(),
        side,
        last: 0,
        streams_max: STREAMS_UNTOLD,
        driver: None,
        crowded: Vec::new(),
        leaving: false,
        ended: None,
    };
    if let Side::Taker { streams_max } = side {
        state.streams_max = streams_max;
        state.control(STREAMS, 0, &streams_max.to_be_bytes());
    }
    let mux = Mux(Arc::new(Mutex::new(state)));
    let mut probe = interval(PROBE_EVERY);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let driver = Driver {
        io,
        input: Buffer::default(),
        output: Buffer::default(),
        payload: None,
        mux: mux.clone(),
        probe,
        heard: true,
        probed: false,
        flushed: true,
    };
    (mux, driver)
}

impl Mux {
    /// Opens a stream; `None` if the connection takes no more. Nothing is waited for.
    pub fn open(&self) -> Option<Stream> {
        let mut state = self.0.lock();
        let full = state.streams.len() >= usize::try_from(state.streams_max).unwrap_or(usize::MAX);
        if state.ended.is_some() || state.leaving || full || state.side != Side::Opener {
            return None;
        }
        // Four thousand million streams are more than a connection's age allows; one that ran out takes no more.
        let id = state.last.checked_add(1)?;
        state.last = id;
        state.streams.insert(id, Slot::new());
        state.control(OPEN, id, &[]);
        drop(state);
        Some(Stream { id, mux: self.clone() })
    }

    /// Whether no stream can be opened any more.
    pub fn is_over(&self) -> bool {
        let state = self.0.lock();
        state.ended.is_some() || state.leaving
    }

    /// Streams that somebody holds.
    pub fn streams(&self) -> usize {
        self.0.lock().streams.len()
    }

    /// No stream is to be opened any more; the peer is told.
    pub fn leave(&self) {
        let mut state = self.0.lock();
        if !state.leaving {
            state.leaving = true;
            state.control(LEAVING, 0, &[]);
        }
    }
}

impl State {
    /// Appends a frame that no window bounds.
    fn control(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        self.frame(kind, stream, payload);
        if self.output.len() > OUTPUT_BYTES_CUT_OFF {
            self.end(Ended::Protocol("it makes us answer and does not read"));
        }
    }

    fn frame(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        self.output.push_all([&[a, b, c, kind, d, e, f, g], payload]);
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn end(&mut self, why: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for slot in self.streams.values_mut() {
            slot.wake_both();
        }
        self.crowded.drain(..).for_each(Waker::wake);
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// A frame without a payload that is passed on in pieces.
    fn take(&mut self, kind: u8, id: u32, payload: &[u8]) -> Result<(), &'static str> {
        if matches!(kind, END | RESET | WINDOW) {
            self.must_know(id)?;
        }
        match (kind, payload.len()) {
            (OPEN, 0) => return self.opened(id),
            (END, 0) => {
                if let Some(slot) = self.streams.get_mut(&id) {
                    if std::mem::replace(&mut slot.peer_ended, true) {
                        return Err("a stream that ends twice");
                    }
                    slot.wake_reader();
                }
            }
            (RESET, 0) => {
                if let Some(slot) = self.streams.get_mut(&id) {
                    slot.reset = true;
                    slot.wake_both();
                }
            }
            (WINDOW, 4) => {
                let more = number(payload);
                if let Some(slot) = self.streams.get_mut(&id) {
                    slot.send_window = slot.send_window.checked_add(more).ok_or("a window of more than 2^32 bytes")?;
                    if let Some(writer) = slot.writer.take() {
                        writer.wake();
                    }
                }
            }
            (LEAVING, 0) => self.leaving = true,
            (STREAMS, 4) if self.side == Side::Opener => self.streams_max = number(payload),
            (PING, 0) => self.control(PONG, 0, &[]),
            (PONG, 0) => {}
            _ => return Err("a frame that is not known"),
        }
        Ok(())
    }

    /// A frame of a stream must be of one that was opened, however long ago.
    const fn must_know(&self, id: u32) -> Result<(), &'static str> {
        if id == 0 || id > self.last { Err("a frame of a stream that was never opened") } else { Ok(()) }
    }

    fn opened(&mut self, id: u32) -> Result<(), &'static str> {
        if self.side == Side::Opener || id != self.last.wrapping_add(1) {
            return Err("a stream that is not the next one");
        }
        self.last = id;
        // Counted until whoever serves it has let go, so that opening and resetting in turn gains nothing.
        // The peer is done with a stream before whoever serves it here has let go.
        let most = self.streams_max.saturating_add(self.streams_max / 4);
        if self.leaving || self.streams.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            self.control(RESET, id, &[]);
        } else {
            self.streams.insert(id, Slot::new());
            self.arrived.push_back(id);
        }
        Ok(())
    }

    /// Some bytes of a stream.
    fn deliver(&mut self, id: u32, bytes: &[u8]) -> Result<(), &'static str> {
        self.must_know(id)?;
        // One that was let go is not read any more.
        let Some(slot) = self.streams.get_mut(&id) else { return Ok(()) };
        if slot.peer_ended {
            return Err("bytes behind the end of a stream");
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        slot.receive_window = slot.receive_window.checked_sub(count).ok_or("more bytes than the window")?;
        slot.inbox.push(bytes);
        slot.wake_reader();
        Ok(())
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            inbox: Buffer::small(),
            reader: None,
            writer: None,
            send_window: WINDOW_BYTES,
            receive_window: WINDOW_BYTES,
            read: 0,
            peer_ended: false,
            we_ended: false,
            reset: false,
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn wake_both(&mut self) {
        self.wake_reader();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

fn number(payload: &[u8]) -> u32 {
    payload.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Moves bytes until a stream has arrived or the connection has ended.
    pub async fn next(&mut self) -> Result<Stream, Ended> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Moves bytes until the connection has ended: for whoever opens streams and is offered none.
    pub async fn run(mut self) -> Ended {
        loop {
            if let Err(ended) = self.next().await {
                self.end().await;
                return ended;
            }
        }
    }

    /// Tells the other end that nothing more comes, if it still listens.
    pub async fn end(&mut self) {
        let told = std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx));
        let _gone = timeout(LAST_WORDS_DEADLINE, told).await;
    }

    /// The streams.
    pub const fn mux(&self) -> &Mux {
        &self.mux
    }

    /// The same, for whoever waits for something else too.
    ///
    /// # Errors
    /// - [`Ended`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, Ended>> {
        if let Poll::Ready(Err(ended)) = self.poll_move(cx) {
            self.mux.0.lock().end(ended);
        }
        let mut state = self.mux.0.lock();
        if let Some(id) = state.arrived.pop_front() {
            // More may have arrived; whoever asks again gets them.
            return Poll::Ready(Ok(Stream { id, mux: self.mux.clone() }));
        }
        state.ended.as_ref().map_or(Poll::Pending, |ended| Poll::Ready(Err(ended.clone())))
    }

    /// Reads and writes as much as goes. Ready only when the connection ends.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        while self.probe.poll_tick(cx).is_ready() {
            self.sign_of_life()?;
        }
        self.poll_read(cx)?;
        self.await_word(cx)?;
        if let Poll::Ready(Err(ended)) = self.poll_write(cx) {
            return Poll::Ready(Err(ended));
        }
        if self.is_over() { Poll::Ready(Err(Ended::Closed)) } else { Poll::Pending }
    }

    fn sign_of_life(&mut self) -> Result<(), Ended> {
        let mut state = self.mux.0.lock();
        if std::mem::take(&mut self.heard) || state.streams.is_empty() {
            self.probed = false;
        } else if self.probed {
            return Err(Ended::Silent);
        } else {
            self.probed = true;
            state.control(PING, 0, &[]);
        }
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        let mut turn = 0;
        loop {
            match self.input.poll_fill(&mut self.io, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(Ended::Closed),
                Poll::Ready(Ok(count)) => {
                    self.heard = true;
                    self.frames().map_err(Ended::Protocol)?;
                    turn += count;
                    if turn >= READ_BYTES_TURN {
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

    /// Asks to be polled when a stream has something to say. An error: the connection has ended.
    fn await_word(&self, cx: &Context<'_>) -> Result<(), Ended> {
        let mut state = self.mux.0.lock();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        if !state.driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            state.driver = Some(cx.waker().clone());
        }
        Ok(())
    }

    /// Whether nobody will open a stream any more, none is left, and everything was written.
    fn is_over(&self) -> bool {
        let state = self.mux.0.lock();
        let is_written = self.output.is_empty() && state.output.is_empty() && self.flushed;
        state.side == Side::Opener && state.leaving && state.streams.is_empty() && is_written
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let broken = |error: io::Error| Ended::Broken(error.to_string());
        loop {
            if self.output.is_empty() {
                let mut state = self.mux.0.lock();
                std::mem::swap(&mut self.output, &mut state.output);
                if !state.crowded.is_empty() {
                    state.crowded.drain(..).for_each(Waker::wake);
                }
            }
            if self.output.is_empty() {
                if !self.flushed {
                    ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(broken)?;
                    self.flushed = true;
                }
                return Poll::Pending;
            }
            self.flushed = false;
            ready!(self.output.poll_drain(&mut self.io, cx)).map_err(broken)?;
        }
    }

    /// Hands out every byte of the input that can be handed out.
    fn frames(&mut self) -> Result<(), &'static str> {
        let mut state = self.mux.0.lock();
        loop {
            if let Some((id, left)) = self.payload {
                let bytes = self.input.data();
                let count = left.min(bytes.len());
                state.deliver(id, bytes.get(..count).unwrap_or_default())?;
                self.input.consume(count);
                self.payload = (left > count).then_some((id, left - count));
                if left > count {
                    return Ok(());
                }
            }
            let bytes = self.input.data();
            let Some((&[a, b, c, kind, d, e, f, g], rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(()) };
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            let id = u32::from_be_bytes([d, e, f, g]);
            if length > FRAME_BYTES_MAX {
                return Err("a frame of more than 32768 bytes");
            }
            if kind == DATA {
                self.input.consume(HEADER_BYTES);
                self.payload = Some((id, length));
                continue;
            }
            let Some(payload) = rest.get(..length) else { return Ok(()) };
            state.take(kind, id, payload)?;
            self.input.consume(HEADER_BYTES + length);
        }
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.mux.0.lock().end(Ended::Closed);
    }
}

#[cfg(test)]
mod tests;
