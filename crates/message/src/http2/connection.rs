//! One side of a connection: its parts, events, bodies and end.

use std::collections::VecDeque;

use crate::Fields;

use super::assembly::Assembly;
use super::error::{ConnectionError, ErrorCode};
use super::flood::{Credits, ENDED_STREAMS_MAX, RESET_STREAMS_MAX};
use super::frame::{PREFACE, kind, wide};
use super::head::{Arrival, Head};
use super::headers::Block;
use super::hpack::{Decoder, Encoder};
use super::output::Output;
use super::settings::{PeerSettings, Settings, WINDOW_INITIAL};
use super::spare::Spares;
use super::streams::{Broken, Half, Stream, Streams};

/// Which side of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes requests.
    Server,
    /// Sends requests.
    Client,
}

/// A stream of one connection: one request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(super) u32);

impl StreamId {
    /// The number in frames: 1 to 2^31-1, odd.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What happened. From [`Connection::next_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A head came: take it with [`Connection::take_head`]. A server hears of a stream by this.
    Head(StreamId),
    /// Body, the end of the stream, or trailers came. At most one per stream is in the queue.
    Readable(StreamId),
    /// There is room for a stream for which [`Connection::send_data`] had taken less than all; or, on a client, the server has
    /// answered in full and does not want the rest, which the next `send_data` tells (`CannotSend::Reset`). The answer stays.
    Writable(StreamId),
    /// The stream was reset by the peer, or by us as the peer broke a rule. What came and was not taken is gone. Still to be
    /// released.
    Reset(StreamId, ErrorCode),
    /// The peer ends the connection: no stream can be opened any more. A client's streams above `last` were not looked at; each has
    /// its own `Reset` with REFUSED_STREAM, and may be sent again elsewhere.
    Goaway {
        /// The last stream that the peer has or may have looked at.
        last: u32,
        /// Why.
        code: ErrorCode,
    },
    /// The peer's settings came or changed: see [`Connection::peer_settings`].
    SettingsChanged,
}

/// What follows behind the bytes of [`Connection::body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyState {
    /// More is to come.
    More,
    /// Nothing: those bytes are the last.
    Ended,
    /// Trailers, and those bytes are the last.
    EndedWithTrailers,
    /// Nothing: the stream was reset, or is not there (CANCEL).
    Reset(ErrorCode),
}

/// A head that waits for the application.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) stream: u32,
    pub(super) head: Head,
    pub(super) arrival: Arrival,
}

/// One side of an HTTP/2 connection.
///
/// The driver calls, in this order and again and again: [`receive`](Self::receive), [`next_event`](Self::next_event) until there is
/// none, whatever the events ask for, and writes [`output`](Self::output). Nothing here blocks, and nothing is allocated for a
/// request once buffers are warm.
///
/// # Bounds
/// Memory is bounded by `Settings`: inboxes by `connection_window`, heads by `max_concurrent_streams` times `head_bytes_max`,
/// output by twice `output_bytes_max` and the heads that the application itself sends. Work that a peer makes for nothing is bounded
/// by credits (`flood.rs`).
#[derive(Debug)]
pub struct Connection {
    pub(super) role: Role,
    pub(super) settings: Settings,
    pub(super) peer: PeerSettings,
    pub(super) output: Output,
    pub(super) events: VecDeque<Event>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) assembly: Assembly,
    /// The field block whose end is still to come.
    pub(super) block: Option<Block>,
    /// Its last line as far as it came.
    pub(super) line: Vec<u8>,
    pub(super) streams: Streams,
    /// Streams that count towards the limit of concurrent ones.
    pub(super) open: u32,
    pub(super) heads: VecDeque<Received>,
    pub(super) spare_heads: Spares<Head>,
    pub(super) spare_trailers: Spares<Fields>,
    pub(super) spare_inboxes: Spares<Vec<u8>>,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    /// Bytes that were taken and that the peer may not send again yet.
    pub(super) due: u32,
    /// Streams that wait for room in the output or in the connection's window, longest first.
    pub(super) waiting: VecDeque<u32>,
    /// Server: the highest stream that the client opened.
    pub(super) highest: u32,
    /// Client: the next stream.
    pub(super) next: u32,
    /// Streams that we reset, and streams that ended, newest last.
    pub(super) reset_streams: VecDeque<u32>,
    pub(super) ended_streams: VecDeque<u32>,
    /// The highest stream that we reset and do not remember: below it nobody can tell any more.
    pub(super) reset_floor: u32,
    pub(super) credits: Credits,
    pub(super) preface_due: bool,
    pub(super) settings_due: bool,
    pub(super) settings_acknowledged: bool,
    pub(super) failed: Option<ConnectionError>,
    /// The first GOAWAY of a graceful end was sent, the second was not.
    pub(super) draining: bool,
    pub(super) goaway_sent: Option<u32>,
    pub(super) goaway_received: Option<u32>,
    pub(super) ping_waiting: bool,
    pub(super) pings: u64,
    /// Calls of [`Connection::second_passed`], modulo 2^32.
    pub(super) seconds: u32,
    /// Something came since [`Connection::second_passed`].
    pub(super) used: bool,
}

impl Connection {
    /// Begins a connection: the preface (client) and SETTINGS lie in the output.
    pub fn new(role: Role, settings: Settings) -> Self {
        let settings = settings.in_range();
        let mut output = Output::default();
        if role == Role::Client {
            output.raw(PREFACE);
        }
        let pairs = settings.announced(role == Role::Server);
        let payload: Vec<u8> =
            pairs.iter().flat_map(|(setting, value)| setting.to_be_bytes().into_iter().chain(value.to_be_bytes())).collect();
        output.control_frame(kind::SETTINGS, 0, 0, &payload);
        if settings.connection_window > WINDOW_INITIAL {
            output.window_update(0, settings.connection_window - WINDOW_INITIAL);
        }
        Self {
            role,
            peer: PeerSettings::default(),
            output,
            events: VecDeque::new(),
            decoder: Decoder::new(),
            encoder: Encoder::new(settings.index_secrets),
            assembly: Assembly::new(wide(settings.head_bytes_max), settings.fields_max),
            block: None,
            line: Vec::new(),
            streams: Streams::default(),
            open: 0,
            heads: VecDeque::new(),
            spare_heads: Spares::default(),
            spare_trailers: Spares::default(),
            spare_inboxes: Spares::default(),
            send_window: i64::from(WINDOW_INITIAL),
            receive_window: i64::from(settings.connection_window),
            due: 0,
            waiting: VecDeque::new(),
            highest: 0,
            next: 1,
            reset_streams: VecDeque::new(),
            ended_streams: VecDeque::new(),
            reset_floor: 0,
            credits: Credits::new(),
            preface_due: role == Role::Server,
            settings_due: true,
            settings_acknowledged: false,
            failed: None,
            draining: false,
            goaway_sent: None,
            goaway_received: None,
            ping_waiting: false,
            pings: 0,
            seconds: 0,
            used: true,
            settings,
        }
    }

    /// The next thing that happened. To be called until it gives `None` after each [`Connection::receive`] and
    /// [`Connection::sent`]: events that nobody takes pile up.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(event) = self.events.pop_front() {
            let holds = match event {
                Event::Head(id) => self.streams.get(id.0).is_some_and(|stream| stream.heads > 0),
                Event::Readable(id) => match self.streams.get_mut(id.0) {
                    Some(stream) => std::mem::take(&mut stream.readable_queued) && stream.broken.is_none(),
                    None => false,
                },
                Event::Writable(id) => self.streams.get(id.0).is_some_and(|stream| stream.broken.is_none()),
                Event::Reset(id, _) => self.streams.get(id.0).is_some(),
                Event::Goaway { .. } | Event::SettingsChanged => true,
            };
            if holds {
                return Some(event);
            }
        }
        None
    }

    /// Takes the stream's oldest head that was not taken. What `head` held is forgotten; its memory is used again. `None`: there is
    /// none (any more: the stream may have been reset).
    pub fn take_head(&mut self, stream: StreamId, head: &mut Head) -> Option<Arrival> {
        // Heads are taken in the order in which they came, nearly always: it is the first.
        let place = self.heads.iter().position(|received| received.stream == stream.0)?;
        let received = self.heads.remove(place)?;
        if let Some(stream) = self.streams.get_mut(stream.0) {
            stream.heads = stream.heads.saturating_sub(1);
        }
        let before = std::mem::replace(head, received.head);
        head.version = crate::Version::Http2;
        self.spare_heads.put(before);
        Some(received.arrival)
    }

    /// The bytes of the stream's body that are there. Empty for a stream that is not there.
    #[inline]
    pub fn body(&self, stream: StreamId) -> &[u8] {
        self.streams.get(stream.0).map(Stream::unread).unwrap_or_default()
    }

    /// What follows behind [`Connection::body`].
    #[inline]
    pub fn body_state(&self, stream: StreamId) -> BodyState {
        match self.streams.get(stream.0) {
            None => BodyState::Reset(ErrorCode::CANCEL),
            Some(Stream { broken: Some(broken), .. }) => BodyState::Reset(broken.code),
            Some(Stream { receiving: Half::Ended, trailers, .. }) => match trailers {
                Some(_) => BodyState::EndedWithTrailers,
                None => BodyState::Ended,
            },
            Some(_) => BodyState::More,
        }
    }

    /// Takes the first `count` bytes of the body away, and lets the peer send as many again. WINDOW_UPDATE goes out for half a window
    /// at a time.
    pub fn consume(&mut self, stream: StreamId, count: usize) {
        let Some(held) = self.streams.get_mut(stream.0) else { return };
        let count = count.min(held.unread().len());
        held.taken += count;
        let count = super::frame::narrow(count);
        if held.taken == held.inbox.len() {
            held.taken = 0;
            let inbox = std::mem::take(&mut held.inbox);
            self.spare_inboxes.put(inbox);
        }
        give_back_stream(held, count, self.settings.stream_window, &mut self.output);
        self.give_back(count);
    }

    /// Takes the trailers. Returns whether there were any; if not, `trailers` is empty.
    pub fn take_trailers(&mut self, stream: StreamId, trailers: &mut Fields) -> bool {
        match self.streams.get_mut(stream.0).and_then(|stream| stream.trailers.take()) {
            Some(came) => {
                let before = std::mem::replace(trailers, came);
                self.spare_trailers.put(before);
                true
            }
            None => {
                trailers.clear();
                false
            }
        }
    }

    /// Gives the memory of trailers that are not needed any more back, for the next that come.
    pub fn recycle_trailers(&mut self, trailers: Fields) {
        self.spare_trailers.put(trailers);
    }

    /// Lets go of a stream: it is forgotten at once. One that has not ended is reset, with NO_ERROR if a server has answered it in
    /// full (RFC 9113 §8.1), else with CANCEL.
    pub fn release(&mut self, stream: StreamId) {
        let Some(held) = self.streams.get(stream.0) else { return };
        if !held.is_closed() {
            let answered = self.role == Role::Server && held.sending == Half::Ended;
            self.break_stream(stream.0, if answered { ErrorCode::NO_ERROR } else { ErrorCode::CANCEL }, false);
        }
        self.forget(stream.0);
    }

    /// Resets a stream. It is still to be released; what came and was not taken is gone.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.streams.get(stream.0).is_some_and(|held| !held.is_closed()) {
            self.break_stream(stream.0, code, false);
        }
    }

    /// What the peer announced.
    pub fn peer_settings(&self) -> &PeerSettings {
        &self.peer
    }

    /// Whether the peer has sent its settings. A client may wait for it where it depends on one of them (`:protocol`).
    pub fn is_settled(&self) -> bool {
        !self.settings_due
    }

    /// Streams open in the sense of RFC 9113 §5.1.2.
    pub fn open_streams(&self) -> u32 {
        self.open
    }

    /// Streams that the application has not released.
    pub fn held_streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes to write.
    #[inline]
    pub fn output(&self) -> &[u8] {
        self.output.waiting()
    }

    /// The first `count` bytes of the output were written. May lead to [`Event::Writable`].
    pub fn sent(&mut self, count: usize) {
        self.output.sent(count);
        if !self.waiting.is_empty() {
            self.wake_waiting();
        }
    }

    /// Sends a PING. Returns whether it did: there is at most one that waits for its answer.
    pub fn ping(&mut self) -> bool {
        if self.ping_waiting || self.failed.is_some() {
            return false;
        }
        self.ping_waiting = true;
        self.pings += 1;
        self.output.control_frame(kind::PING, 0, 0, &self.pings.to_be_bytes());
        true
    }

    /// Whether every PING of ours was answered.
    pub fn ping_answered(&self) -> bool {
        !self.ping_waiting
    }

    /// Begins a graceful end. A server sends GOAWAY with 2^31-1 and a PING; with the answer to it, every request that was on its way
    /// has come, and GOAWAY with the last stream goes out (RFC 9113 §6.8). Streams go on to their end. A client opens no more.
    pub fn shutdown(&mut self) {
        if self.draining || self.goaway_sent.is_some() || self.failed.is_some() {
            return;
        }
        match self.role {
            Role::Server => {
                self.draining = true;
                self.output.goaway(super::settings::WINDOW_MAX, ErrorCode::NO_ERROR);
                self.output.control_frame(kind::PING, 0, 0, super::receive::DRAIN_PING);
            }
            Role::Client => self.goaway(ErrorCode::NO_ERROR),
        }
    }

    /// Sends GOAWAY with the last stream that was looked at: streams above it are ignored from now on. The second step of
    /// [`Connection::shutdown`], for a driver that does not want to wait for the answer to PING; or the end for another reason.
    pub fn goaway(&mut self, code: ErrorCode) {
        if self.failed.is_some() {
            return;
        }
        let last = self.goaway_sent.unwrap_or(u32::MAX).min(self.highest);
        self.draining = false;
        self.goaway_sent = Some(last);
        self.output.goaway(last, code);
    }

    /// Whether nothing is left to do: one side has said that it ends (or the connection failed), no stream is held, and everything is
    /// written. The driver closes the transport.
    pub fn is_ended(&self) -> bool {
        let ending = self.goaway_sent.is_some() || self.goaway_received.is_some();
        self.output.len() == 0 && (self.failed.is_some() || ending && self.streams.len() == 0)
    }

    /// Why the connection failed, if it did.
    pub fn failure(&self) -> Option<ConnectionError> {
        self.failed
    }

    /// To be called once a second: gives the peer back some of its credits, and memory that was not needed in the last second.
    pub fn second_passed(&mut self) {
        self.seconds = self.seconds.wrapping_add(1);
        self.credits.second_passed();
        self.output.trim();
        if !std::mem::take(&mut self.used) && self.streams.len() == 0 {
            self.streams.trim();
            self.spare_heads = Spares::default();
            self.spare_trailers = Spares::default();
            self.spare_inboxes = Spares::default();
            self.heads = VecDeque::new();
            self.events.shrink_to_fit();
            self.line = Vec::new();
            self.decoder.trim();
            self.assembly.trim();
        }
    }

    /// Resets a stream on the wire and for the application.
    pub(super) fn break_stream(&mut self, id: u32, code: ErrorCode, by_peer: bool) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        stream.broken = Some(Broken { code, by_peer });
        if let Some(trailers) = stream.trailers.take() {
            self.spare_trailers.put(trailers);
        }
        let unread = super::frame::narrow(stream.unread().len());
        stream.taken = 0;
        let inbox = std::mem::take(&mut stream.inbox);
        if std::mem::take(&mut stream.counted) {
            self.open = self.open.saturating_sub(1);
        }
        self.spare_inboxes.put(inbox);
        self.give_back(unread);
        if !by_peer {
            self.output.reset(id, code);
        }
    }

    /// A stream leaves memory.
    pub(super) fn forget(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(id) else { return };
        let unread = super::frame::narrow(stream.unread().len());
        self.give_back(unread);
        self.spare_inboxes.put(stream.inbox);
        if let Some(trailers) = stream.trailers {
            self.spare_trailers.put(trailers);
        }
        if stream.counted {
            self.open = self.open.saturating_sub(1);
        }
        if stream.in_line {
            self.waiting.retain(|waiting| *waiting != id);
        }
        for _ in 0..stream.heads {
            let place = self.heads.iter().position(|received| received.stream == id);
            if let Some(received) = place.and_then(|place| self.heads.remove(place)) {
                self.spare_heads.put(received.head);
            }
        }
        match stream.broken {
            Some(Broken { by_peer: false, .. }) => self.remember_reset(id),
            Some(_) | None => {
                remember(&mut self.ended_streams, id, ENDED_STREAMS_MAX);
            }
        }
    }

    /// Frames for this stream may still come, and are no error.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if let Some(oldest) = remember(&mut self.reset_streams, id, RESET_STREAMS_MAX) {
            self.reset_floor = self.reset_floor.max(oldest);
        }
    }

    /// A stream whose two directions have ended no longer counts.
    pub(super) fn settle(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.is_closed()
            && std::mem::take(&mut stream.counted)
        {
            self.open = self.open.saturating_sub(1);
        }
    }

    /// Lets the peer send `count` bytes again on the connection.
    #[inline]
    pub(super) fn give_back(&mut self, count: u32) {
        self.due = self.due.saturating_add(count);
        if self.due >= self.settings.connection_window / 2 {
            self.output.window_update(0, self.due);
            self.receive_window += i64::from(self.due);
            self.due = 0;
        }
    }
}

/// Lets the peer send `count` bytes again on a stream.
#[inline]
pub(super) fn give_back_stream(stream: &mut Stream, count: u32, window: u32, output: &mut Output) {
    // A stream that has ended needs no window.
    if stream.receiving == Half::Ended || stream.broken.is_some() {
        return;
    }
    stream.due += count;
    if stream.due >= (window / 2).max(1) {
        output.window_update(stream.id, stream.due);
        stream.receive_window += i64::from(stream.due);
        stream.due = 0;
    }
}

/// Returns the one that is forgotten for it.
fn remember(streams: &mut VecDeque<u32>, id: u32, count_max: usize) -> Option<u32> {
    let oldest = if streams.len() >= count_max { streams.pop_front() } else { None };
    streams.push_back(id);
    oldest
}
