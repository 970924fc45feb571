//! Frames from the peer. Field blocks go on in `headers.rs`.

use super::connection::{Connection, Event, Role, StreamId, give_back_stream};
use super::error::{ConnectionError, ErrorCode};
use super::flood::LIFE_SECONDS;
use super::frame::{Frame, HEADER_BYTES, PREFACE, flag, kind, narrow, setting, wide};
use super::settings::{FRAME_SIZE_MAX, FRAME_SIZE_MIN, WINDOW_INITIAL, WINDOW_MAX};
use super::streams::{Broken, Half, Stream};

/// Payload of the PING between the two GOAWAY of a graceful end. Those of keep-alive count from 1.
pub(super) const DRAIN_PING: &[u8; 8] = &[0xff; 8];

/// A stream that is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// It was never opened.
    Idle,
    /// Frames for it may still be on their way: we reset it, or said that we would not look at it.
    Ignored,
    Closed,
}

impl Connection {
    /// Takes all whole frames from `input`, and returns how many bytes that were; the caller keeps the rest and gives it again with
    /// more behind it. At most `max_frame_size` + 9 bytes are ever left while input is taken.
    ///
    /// While more than `output_bytes_max` bytes of control frames wait to be written, nothing is taken
    /// ([`takes_input`](Self::takes_input) is false): a peer that asks for answers must read them. The driver writes, then calls
    /// again with the same bytes.
    ///
    /// # Errors
    /// Any [`ConnectionError`]: the peer broke a rule, GOAWAY lies in the output, and the connection is over. Every further call gives
    /// the same.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize, ConnectionError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.used = true;
        self.take_frames(input).inspect_err(|error| {
            let last = self.goaway_sent.unwrap_or(u32::MAX).min(self.highest);
            self.goaway_sent = Some(last);
            self.output.goaway(last, error.code());
            self.failed = Some(*error);
        })
    }

    /// Whether [`receive`](Self::receive) takes input now.
    pub fn takes_input(&self) -> bool {
        self.output.control() <= self.settings.output_bytes_max
    }

    fn take_frames(&mut self, input: &[u8]) -> Result<usize, ConnectionError> {
        let mut rest = input;
        if self.preface_due {
            let length = rest.len().min(PREFACE.len());
            if rest.get(..length) != PREFACE.get(..length) {
                return Err(ConnectionError::Preface);
            }
            if length < PREFACE.len() {
                return Ok(0);
            }
            rest = rest.get(length..).unwrap_or_default();
            self.preface_due = false;
        }
        while self.takes_input()
            && let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>()
        {
            let frame = Frame::parse(header);
            if frame.length > self.settings.max_frame_size {
                return Err(ConnectionError::FrameTooLong { length: frame.length });
            }
            let Some((payload, behind)) = behind.split_at_checked(wide(frame.length)) else { break };
            self.take_frame(frame, payload)?;
            rest = behind;
        }
        Ok(input.len() - rest.len())
    }

    fn take_frame(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        if self.block.is_some() && frame.kind != kind::CONTINUATION {
            return Err(ConnectionError::BlockInterrupted { kind: frame.kind });
        }
        if self.settings_due && (frame.kind != kind::SETTINGS || frame.has(flag::ACK)) {
            return Err(ConnectionError::SettingsMissing);
        }
        match frame.kind {
            kind::DATA => self.take_data(frame, payload),
            kind::HEADERS => self.take_headers(frame, payload),
            kind::PRIORITY => self.take_priority(frame, payload),
            kind::RST_STREAM => self.take_reset(frame, payload),
            kind::SETTINGS => self.take_settings(frame, payload),
            kind::PUSH_PROMISE => Err(ConnectionError::Push),
            kind::PING => self.take_ping(frame, payload),
            kind::GOAWAY => self.take_goaway(frame, payload),
            kind::WINDOW_UPDATE => self.take_window_update(frame, payload),
            kind::CONTINUATION => self.take_continuation(frame, payload),
            // RFC 9113 §5.5.
            _ => self.credits.spend_idle_frame(),
        }
    }

    /// RFC 9113 §6.1.
    fn take_data(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        let content = unpadded(frame, payload)?;
        // Padding counts. RFC 9113 §6.9.1.
        self.receive_window -= i64::from(frame.length);
        if self.receive_window < 0 {
            return Err(ConnectionError::WindowExceeded);
        }
        let end = frame.has(flag::END_STREAM);
        if content.is_empty() && !end {
            self.credits.spend_idle_frame()?;
        } else {
            self.credits.body();
        }
        let Some(stream) = self.streams.get_mut(frame.stream) else {
            self.give_back(frame.length);
            return match self.absent(frame.stream) {
                Absent::Idle => Err(idle(frame)),
                Absent::Closed => Err(ConnectionError::StreamClosed { stream: frame.stream }),
                Absent::Ignored => self.credits.spend_idle_frame(),
            };
        };
        let wrong = match (stream.broken, stream.receiving) {
            (Some(Broken { by_peer: true, .. }), _) => return Err(ConnectionError::StreamClosed { stream: frame.stream }),
            (Some(_), _) => {
                self.give_back(frame.length);
                return Ok(());
            }
            (None, Half::Ended) => Some(ErrorCode::STREAM_CLOSED),
            (None, Half::Waiting) => Some(ErrorCode::PROTOCOL_ERROR),
            (None, Half::Open) => count_data(stream, i64::from(frame.length), content.len(), end),
        };
        if let Some(code) = wrong {
            self.give_back(frame.length);
            return self.stream_error(frame.stream, code);
        }
        if !content.is_empty() {
            if stream.inbox.capacity() == 0 {
                stream.inbox = self.spare_inboxes.take();
            } else if stream.taken > stream.unread().len() {
                stream.inbox.drain(..stream.taken);
                stream.taken = 0;
            }
            stream.inbox.extend_from_slice(content);
        }
        if end {
            stream.receiving = Half::Ended;
        }
        if !stream.readable_queued && (end || !content.is_empty()) {
            stream.readable_queued = true;
            self.events.push_back(Event::Readable(StreamId(frame.stream)));
        }
        let padding = frame.length - narrow(content.len());
        if padding > 0 {
            give_back_stream(stream, padding, self.settings.stream_window, &mut self.output);
            self.give_back(padding);
        }
        if end {
            self.settle(frame.stream);
        }
        Ok(())
    }

    /// RFC 9113 §6.3. Read for errors only.
    fn take_priority(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        on_stream(frame)?;
        self.credits.spend_idle_frame()?;
        // Of a stream that we reset nothing is judged any more, however the bytes were cut.
        let is_spared = matches!(self.absent(frame.stream), Absent::Ignored);
        let Some(priority) = payload.first_chunk::<5>().filter(|_| payload.len() == 5) else {
            return match self.streams.get(frame.stream) {
                Some(_) => self.stream_error(frame.stream, ErrorCode::FRAME_SIZE_ERROR),
                None if is_spared => Ok(()),
                None => Err(frame_size(frame)),
            };
        };
        if dependency(priority) != frame.stream {
            return Ok(());
        }
        match self.streams.get(frame.stream) {
            Some(_) => self.stream_error(frame.stream, ErrorCode::PROTOCOL_ERROR),
            None if is_spared => Ok(()),
            None => Err(ConnectionError::DependsOnItself { stream: frame.stream }),
        }
    }

    /// RFC 9113 §6.4.
    fn take_reset(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        on_stream(frame)?;
        let code = ErrorCode(number(frame, payload)?);
        let Some(stream) = self.streams.get(frame.stream) else {
            return match self.absent(frame.stream) {
                Absent::Idle => Err(idle(frame)),
                Absent::Closed | Absent::Ignored => self.credits.spend_idle_frame(),
            };
        };
        if stream.is_closed() {
            return self.credits.spend_idle_frame();
        }
        if self.role == Role::Client && stream.receiving == Half::Ended {
            return self.stop_request(frame.stream, code);
        }
        let young = self.seconds.wrapping_sub(stream.born) < LIFE_SECONDS;
        let wasted = self.role == Role::Server && stream.sending != Half::Ended && young;
        let unseen = self.role == Role::Server && stream.heads > 0;
        self.break_stream(frame.stream, code, true);
        if unseen {
            // The application has not looked at it: it need not hear of it at all.
            self.forget(frame.stream);
        } else {
            self.events.push_back(Event::Reset(StreamId(frame.stream), code));
        }
        if wasted { self.credits.spend_reset() } else { Ok(()) }
    }

    /// The answer is there in full, and stays; the rest of the request is not wanted. RFC 9113 §8.1.
    fn stop_request(&mut self, id: u32, code: ErrorCode) -> Result<(), ConnectionError> {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sending = Half::Ended;
            stream.unwanted = Some(code);
            // Who waits for room learns of it by trying.
            self.events.push_back(Event::Writable(StreamId(id)));
        }
        self.settle(id);
        Ok(())
    }

    /// RFC 9113 §6.5.
    fn take_settings(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        on_connection(frame)?;
        if frame.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(frame_size(frame));
            }
            return self.take_settings_ack();
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(frame_size(frame));
        }
        if !self.settings_due {
            self.credits.spend_idle_frame()?;
        }
        let before = self.peer;
        if self.settings_due {
            // What a peer does not say is unlimited. RFC 9113 §6.5.2.
            self.peer.max_concurrent_streams = u32::MAX;
        }
        for [a, b, c, d, e, f] in settings {
            self.take_setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes([*c, *d, *e, *f]))?;
        }
        // Once per frame, and not per setting: a frame can hold thousands, and each would walk over all streams.
        self.move_send_windows(i64::from(self.peer.stream_window) - i64::from(before.stream_window))?;
        self.encoder.set_limit(self.peer.header_table_bytes);
        if self.settings_due || self.peer != before {
            self.events.push_back(Event::SettingsChanged);
        }
        self.settings_due = false;
        self.output.control_frame(kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    fn take_setting(&mut self, setting: u16, value: u32) -> Result<(), ConnectionError> {
        let wrong = ConnectionError::SettingValue { setting, value };
        match setting {
            setting::HEADER_TABLE_SIZE => self.peer.header_table_bytes = value,
            // Only a client may allow push, and we never push.
            setting::ENABLE_PUSH if value > u32::from(self.role == Role::Server) => return Err(wrong),
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_concurrent_streams = value,
            setting::INITIAL_WINDOW_SIZE if value > WINDOW_MAX => return Err(wrong),
            setting::INITIAL_WINDOW_SIZE => self.peer.stream_window = value,
            setting::MAX_FRAME_SIZE if !(FRAME_SIZE_MIN..=FRAME_SIZE_MAX).contains(&value) => return Err(wrong),
            setting::MAX_FRAME_SIZE => self.peer.max_frame_size = value,
            setting::MAX_HEADER_LIST_SIZE => self.peer.head_bytes_max = Some(value),
            // It cannot be taken back. RFC 8441 §3.
            setting::ENABLE_CONNECT_PROTOCOL if value > 1 || value == 0 && self.peer.connect_protocol => return Err(wrong),
            setting::ENABLE_CONNECT_PROTOCOL => self.peer.connect_protocol = value == 1 && self.role == Role::Client,
            _ => {}
        }
        Ok(())
    }

    /// RFC 9113 §6.5.3.
    fn take_settings_ack(&mut self) -> Result<(), ConnectionError> {
        if self.settings_acknowledged {
            return self.credits.spend_idle_frame();
        }
        self.settings_acknowledged = true;
        self.decoder.settings_acknowledged(self.settings.header_table_bytes);
        // Streams before this were opened with the window that holds without settings, if that is larger.
        let less = i64::from(WINDOW_INITIAL) - i64::from(self.settings.stream_window);
        if less > 0 {
            self.streams.iter_mut().for_each(|stream| stream.receive_window -= less);
        }
        Ok(())
    }

    /// RFC 9113 §6.9.2.
    fn move_send_windows(&mut self, change: i64) -> Result<(), ConnectionError> {
        if change == 0 {
            return Ok(());
        }
        for stream in self.streams.iter_mut() {
            stream.send_window += change;
            if stream.send_window > i64::from(WINDOW_MAX) {
                return Err(ConnectionError::WindowOverflow);
            }
            if stream.send_window > 0 && stream.refused_room && !stream.in_line {
                stream.in_line = true;
                self.waiting.push_back(stream.id);
            }
        }
        self.wake_waiting();
        Ok(())
    }

    /// RFC 9113 §6.7.
    fn take_ping(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        on_connection(frame)?;
        let Some(text) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else { return Err(frame_size(frame)) };
        if !frame.has(flag::ACK) {
            self.credits.spend_idle_frame()?;
            self.output.control_frame(kind::PING, flag::ACK, 0, text);
        } else if self.draining && text == DRAIN_PING {
            self.goaway(ErrorCode::NO_ERROR);
        } else if self.ping_waiting && *text == self.pings.to_be_bytes() {
            self.ping_waiting = false;
        } else {
            self.credits.spend_idle_frame()?;
        }
        Ok(())
    }

    /// RFC 9113 §6.8.
    fn take_goaway(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        on_connection(frame)?;
        let Some([a, b, c, d, e, f, g, h]) = payload.first_chunk::<8>() else { return Err(frame_size(frame)) };
        self.credits.spend_idle_frame()?;
        let last = u32::from_be_bytes([a & 0x7f, *b, *c, *d]);
        let code = ErrorCode(u32::from_be_bytes([*e, *f, *g, *h]));
        let before = self.goaway_received.unwrap_or(u32::MAX);
        // A later one may only take streams away.
        let last = last.min(before);
        self.goaway_received = Some(last);
        self.events.push_back(Event::Goaway { last, code });
        if self.role == Role::Client && last < before {
            let unseen = self.streams.iter_mut().filter(|stream| stream.id > last && !stream.is_closed());
            let unseen: Vec<u32> = unseen.map(|stream| stream.id).collect();
            for id in unseen {
                self.break_stream(id, ErrorCode::REFUSED_STREAM, true);
                self.events.push_back(Event::Reset(StreamId(id), ErrorCode::REFUSED_STREAM));
            }
        }
        Ok(())
    }

    /// RFC 9113 §6.9.
    fn take_window_update(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        let more = number(frame, payload)? & WINDOW_MAX;
        if frame.stream == 0 {
            if more == 0 {
                return Err(ConnectionError::WindowUpdateEmpty);
            }
            self.send_window += i64::from(more);
            if self.send_window > i64::from(WINDOW_MAX) {
                return Err(ConnectionError::WindowOverflow);
            }
            self.wake_waiting();
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(frame.stream) else {
            return match self.absent(frame.stream) {
                Absent::Idle => Err(idle(frame)),
                // Not counted: an update crosses with the end of each stream.
                Absent::Closed | Absent::Ignored => Ok(()),
            };
        };
        if stream.is_closed() {
            return Ok(());
        }
        if more == 0 {
            return self.stream_error(frame.stream, ErrorCode::PROTOCOL_ERROR);
        }
        stream.send_window += i64::from(more);
        if stream.send_window > i64::from(WINDOW_MAX) {
            return self.stream_error(frame.stream, ErrorCode::FLOW_CONTROL_ERROR);
        }
        if stream.send_window > 0 && stream.refused_room && !stream.in_line {
            stream.in_line = true;
            self.waiting.push_back(frame.stream);
            self.wake_waiting();
        }
        Ok(())
    }

    /// What a stream is that nobody holds. RFC 9113 §5.1.
    pub(super) fn absent(&self, id: u32) -> Absent {
        let highest = match self.role {
            Role::Server => self.highest,
            Role::Client => self.next.saturating_sub(1),
        };
        if id.is_multiple_of(2) || id > highest {
            Absent::Idle
        } else if self.role == Role::Server && self.goaway_sent.is_some_and(|last| id > last)
            || id <= self.reset_floor
            || self.reset_streams.iter().rev().any(|reset| *reset == id)
        {
            Absent::Ignored
        } else {
            Absent::Closed
        }
    }

    /// Resets a stream as the peer broke a rule on it. Spends a credit: the peer can have as much work done by this as by resetting.
    ///
    /// # Errors
    /// Too many of them.
    pub(super) fn stream_error(&mut self, id: u32, code: ErrorCode) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.get(id) else { return Ok(()) };
        if stream.broken.is_some() {
            return Ok(());
        }
        let unseen = self.role == Role::Server && stream.heads > 0;
        self.break_stream(id, code, false);
        if unseen {
            self.forget(id);
        } else {
            self.events.push_back(Event::Reset(StreamId(id), code));
        }
        self.credits.spend_reset()
    }
}

/// Counts DATA of `length` bytes, `content` of them without padding, against the window and against the length that was promised
/// (RFC 9113 §6.9, §8.1.1). Returns what is wrong with it.
#[inline]
fn count_data(stream: &mut Stream, length: i64, content: usize, end: bool) -> Option<ErrorCode> {
    stream.receive_window -= length;
    if stream.receive_window < 0 {
        return Some(ErrorCode::FLOW_CONTROL_ERROR);
    }
    let expected = stream.expected?;
    stream.expected = expected.checked_sub(u64::try_from(content).unwrap_or(u64::MAX));
    match stream.expected {
        None => Some(ErrorCode::PROTOCOL_ERROR),
        Some(1..) if end => Some(ErrorCode::PROTOCOL_ERROR),
        Some(_) => None,
    }
}

/// Without padding. RFC 9113 §6.1, §6.2.
pub(super) fn unpadded(frame: Frame, payload: &[u8]) -> Result<&[u8], ConnectionError> {
    on_stream(frame)?;
    if !frame.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(frame_size(frame))?;
    let content = rest.len().checked_sub(usize::from(*padding)).and_then(|length| rest.get(..length));
    content.ok_or(ConnectionError::Padding)
}

/// The stream on which another depends, by the five bytes that say so. RFC 9113 §6.3.
pub(super) fn dependency(priority: &[u8; 5]) -> u32 {
    let [a, b, c, d, _] = *priority;
    u32::from_be_bytes([a & 0x7f, b, c, d])
}

fn number(frame: Frame, payload: &[u8]) -> Result<u32, ConnectionError> {
    let number = <[u8; 4]>::try_from(payload).map_err(|_| frame_size(frame))?;
    Ok(u32::from_be_bytes(number))
}

fn on_stream(frame: Frame) -> Result<(), ConnectionError> {
    if frame.stream == 0 { Err(misplaced(frame)) } else { Ok(()) }
}

fn on_connection(frame: Frame) -> Result<(), ConnectionError> {
    if frame.stream == 0 { Ok(()) } else { Err(misplaced(frame)) }
}

fn misplaced(frame: Frame) -> ConnectionError {
    ConnectionError::StreamMisplaced { kind: frame.kind, stream: frame.stream }
}

fn idle(frame: Frame) -> ConnectionError {
    ConnectionError::StreamIdle { stream: frame.stream }
}

pub(super) fn frame_size(frame: Frame) -> ConnectionError {
    ConnectionError::FrameSize { kind: frame.kind, length: frame.length }
}
