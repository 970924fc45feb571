//! What the application sends.

use crate::Fields;

use super::connection::{Connection, Event, Role, StreamId};
use super::error::{CannotOpen, CannotSend};
use super::frame::{flag, kind, narrow, wide};
use super::head::Head;
use super::hpack::{Encoder, Section};
use super::settings::WINDOW_MAX;
use super::streams::{Half, Stream};

impl Connection {
    /// Opens a stream with a request. `end`: it has no body and no trailers. Client only. The head is not checked: it must obey
    /// RFC 9113 §8.2 and §8.3, as one from [`take_head`](Self::take_head) does.
    ///
    /// # Errors
    /// * [`CannotOpen::TooMany`]: the peer allows no more streams now; one has to end first.
    /// * [`CannotOpen::GoingAway`], [`CannotOpen::Exhausted`]: this connection opens no more streams.
    /// * [`CannotOpen::Server`]: a server does not open streams.
    pub fn open(&mut self, head: &Head, end: bool) -> Result<StreamId, CannotOpen> {
        self.can_open()?;
        let id = self.next;
        self.next += 2;
        let mut stream = self.new_stream(id);
        stream.sending = if end { Half::Ended } else { Half::Open };
        stream.answer_without_body = head.method == b"HEAD" || head.method == b"CONNECT";
        self.streams.insert(stream);
        self.open += 1;
        self.used = true;
        self.credits.head();
        let encoder = &mut self.encoder;
        let frame_bytes_max = wide(self.peer.max_frame_size);
        self.output.field_block(end_flag(end), id, frame_bytes_max, |out| request(encoder, out, head));
        Ok(StreamId(id))
    }

    /// Whether [`open`](Self::open) would open a stream now.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn can_open(&self) -> Result<(), CannotOpen> {
        if self.role == Role::Server {
            Err(CannotOpen::Server)
        } else if self.failed.is_some() || self.goaway_received.is_some() || self.goaway_sent.is_some() {
            Err(CannotOpen::GoingAway)
        } else if self.next > WINDOW_MAX {
            Err(CannotOpen::Exhausted)
        } else if self.open >= self.peer.max_concurrent_streams {
            Err(CannotOpen::TooMany)
        } else {
            Ok(())
        }
    }

    /// Sends the head of a response: any number of informational ones, then the final one. Server only. `end`: it has no body and no
    /// trailers; ignored with an informational one. The head is not checked.
    ///
    /// # Errors
    /// * [`CannotSend::Gone`], [`CannotSend::Reset`]: nobody will read it.
    /// * [`CannotSend::OutOfOrder`]: the final head was sent already, or this is a client.
    pub fn send_head(&mut self, stream: StreamId, head: &Head, end: bool) -> Result<(), CannotSend> {
        let held = self.sendable(stream)?;
        if held.sending != Half::Waiting {
            return Err(CannotSend::OutOfOrder);
        }
        let end = end && !head.is_informational();
        if !head.is_informational() {
            held.sending = if end { Half::Ended } else { Half::Open };
        }
        let encoder = &mut self.encoder;
        let frame_bytes_max = wide(self.peer.max_frame_size);
        self.output.field_block(end_flag(end), stream.0, frame_bytes_max, |out| response(encoder, out, head));
        if end {
            self.sent_end(stream);
        }
        Ok(())
    }

    /// Sends the first part of `bytes` for which there is room: in the stream's window, in the connection's, and in the output
    /// (`output_bytes_max`). Returns how many bytes those were. `end`: the stream ends behind them; applied only when all were taken.
    /// If less than all was taken, an [`Event::Writable`] comes later. An end without bytes needs no room.
    ///
    /// # Errors
    /// * [`CannotSend::Gone`], [`CannotSend::Reset`]: nobody will read it.
    /// * [`CannotSend::OutOfOrder`]: the head was not sent, or the end was.
    pub fn send_data(&mut self, stream: StreamId, bytes: &[u8], end: bool) -> Result<usize, CannotSend> {
        let frame_bytes_max = wide(self.peer.max_frame_size);
        let room = self.settings.output_bytes_max.saturating_sub(self.output.len());
        let connection_window = usize::try_from(self.send_window).unwrap_or(0);
        let held = self.sendable(stream)?;
        if held.sending != Half::Open {
            return Err(CannotSend::OutOfOrder);
        }
        let stream_window = usize::try_from(held.send_window).unwrap_or(0);
        let count = bytes.len().min(room).min(connection_window).min(stream_window);
        let (now, later) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
        let end = end && later.is_empty();
        held.send_window -= i64::from(narrow(now.len()));
        held.refused_room = !later.is_empty();
        if end {
            held.sending = Half::Ended;
        }
        // A stream whose own window is closed is put in line as it opens.
        if !later.is_empty() && stream_window > count && !held.in_line {
            held.in_line = true;
            self.waiting.push_back(stream.0);
        }
        self.send_window -= i64::from(narrow(now.len()));
        let mut rest = now;
        while let Some((part, behind)) = rest.split_at_checked(frame_bytes_max) {
            if behind.is_empty() {
                break;
            }
            self.output.frame(kind::DATA, 0, stream.0, part);
            rest = behind;
        }
        if !rest.is_empty() || end {
            self.output.frame(kind::DATA, end_flag(end), stream.0, rest);
            self.credits.body();
        }
        if end {
            self.sent_end(stream);
        }
        Ok(count)
    }

    /// Ends a stream with trailers.
    ///
    /// # Errors
    /// As [`send_data`](Self::send_data).
    pub fn send_trailers(&mut self, stream: StreamId, trailers: &Fields) -> Result<(), CannotSend> {
        let held = self.sendable(stream)?;
        if held.sending != Half::Open {
            return Err(CannotSend::OutOfOrder);
        }
        held.sending = Half::Ended;
        let encoder = &mut self.encoder;
        let frame_bytes_max = wide(self.peer.max_frame_size);
        self.output.field_block(flag::END_STREAM, stream.0, frame_bytes_max, |out| {
            encoder.begin(out, Section::Trailers);
            trailers.iter().for_each(|(name, value)| encoder.field(out, name, value));
        });
        self.sent_end(stream);
        Ok(())
    }

    /// Tells those that wait for room that there is some, once there is enough to be worth it.
    pub(super) fn wake_waiting(&mut self) {
        if self.send_window <= 0 || self.output.len() > self.settings.output_bytes_max / 2 {
            return;
        }
        while let Some(id) = self.waiting.pop_front() {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.in_line = false;
            // One whose own window has closed meanwhile stays refused, and comes back as it opens.
            if stream.refused_room && stream.send_window > 0 {
                stream.refused_room = false;
                self.events.push_back(Event::Writable(StreamId(id)));
            }
        }
    }

    #[inline]
    fn sendable(&mut self, stream: StreamId) -> Result<&mut Stream, CannotSend> {
        if self.failed.is_some() {
            return Err(CannotSend::Gone);
        }
        let held = self.streams.get_mut(stream.0).ok_or(CannotSend::Gone)?;
        match held.broken.map(|broken| broken.code).or(held.unwanted) {
            Some(code) => Err(CannotSend::Reset(code)),
            None => Ok(held),
        }
    }

    fn sent_end(&mut self, stream: StreamId) {
        if self.role == Role::Server {
            self.credits.answered();
        }
        self.settle(stream.0);
    }
}

fn end_flag(end: bool) -> u8 {
    if end { flag::END_STREAM } else { 0 }
}

/// RFC 9113 §8.3.1. The numbers are places in the static table of RFC 7541 appendix A.
fn request(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head) {
    encoder.begin(out, Section::Head);
    match head.method.as_slice() {
        b"GET" => encoder.whole(out, 2),
        b"POST" => encoder.whole(out, 3),
        method => encoder.line(out, b":method", method, Some(2)),
    }
    match head.scheme.as_slice() {
        b"" => {}
        b"http" => encoder.whole(out, 6),
        b"https" => encoder.whole(out, 7),
        scheme => encoder.line(out, b":scheme", scheme, Some(6)),
    }
    if !head.authority.is_empty() {
        encoder.line(out, b":authority", &head.authority, Some(1));
    }
    match head.path.as_slice() {
        b"" => {}
        b"/" => encoder.whole(out, 4),
        path => encoder.line(out, b":path", path, Some(4)),
    }
    if !head.protocol.is_empty() {
        encoder.line(out, b":protocol", &head.protocol, Some(0));
    }
    head.fields.iter().for_each(|(name, value)| encoder.field(out, name, value));
}

/// RFC 9113 §8.3.2.
fn response(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head) {
    encoder.begin(out, Section::Head);
    match head.status {
        200 => encoder.whole(out, 8),
        204 => encoder.whole(out, 9),
        206 => encoder.whole(out, 10),
        304 => encoder.whole(out, 11),
        400 => encoder.whole(out, 12),
        404 => encoder.whole(out, 13),
        500 => encoder.whole(out, 14),
        status => {
            let digit = |place: u16| b'0' + u8::try_from(status / place % 10).unwrap_or(0);
            encoder.line(out, b":status", &[digit(100), digit(10), digit(1)], Some(8));
        }
    }
    head.fields.iter().for_each(|(name, value)| encoder.field(out, name, value));
}
