//! Field blocks from the peer: which stream they are for, and what their end makes of it.

use super::assembly::Purpose;
use super::connection::{Connection, Event, Received, Role, StreamId};
use super::error::{ConnectionError, ErrorCode};
use super::flood::{BLOCK_FACTOR, CONTINUATIONS_MAX, HEADS_MAX, LINE_FACTOR};
use super::frame::{Frame, flag, wide};
use super::head::{Arrival, ArrivalKind};
use super::receive::{Absent, dependency, frame_size, unpadded};
use super::settings::{FRAME_SIZE_MIN, WINDOW_INITIAL};
use super::streams::{Broken, Half, Stream};

/// A field block whose end is still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    stream: u32,
    end_stream: bool,
    purpose: Purpose,
    /// The stream is to be reset with this once the block is decoded.
    fault: Option<ErrorCode>,
    continuations: u32,
    bytes: usize,
}

impl Connection {
    /// RFC 9113 §6.2.
    pub(super) fn take_headers(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        let mut fragment = unpadded(frame, payload)?;
        let mut depends_on_itself = false;
        if frame.has(flag::PRIORITY) {
            let (priority, rest) = fragment.split_first_chunk::<5>().ok_or(frame_size(frame))?;
            depends_on_itself = dependency(priority) == frame.stream;
            fragment = rest;
        }
        let end_stream = frame.has(flag::END_STREAM);
        let (purpose, mut fault) = match self.streams.get(frame.stream) {
            Some(stream) => self.purpose_on(stream, end_stream)?,
            None => self.purpose_of_new(frame.stream)?,
        };
        if depends_on_itself && purpose != Purpose::Discard {
            fault = Some(ErrorCode::PROTOCOL_ERROR);
        }
        let purpose = if fault.is_some() { Purpose::Discard } else { purpose };
        self.assembly.begin(purpose);
        self.decoder.begin();
        self.line.clear();
        let block = Block { stream: frame.stream, end_stream, purpose, fault, continuations: 0, bytes: 0 };
        self.take_fragment(block, fragment, frame.has(flag::END_HEADERS))
    }

    /// RFC 9113 §6.10.
    pub(super) fn take_continuation(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ConnectionError> {
        let Some(mut block) = self.block.take() else { return Err(ConnectionError::ContinuationAlone) };
        if block.stream != frame.stream {
            return Err(ConnectionError::BlockInterrupted { kind: frame.kind });
        }
        block.continuations += 1;
        if block.continuations > CONTINUATIONS_MAX {
            return Err(ConnectionError::BlockTooLarge);
        }
        self.take_fragment(block, payload, frame.has(flag::END_HEADERS))
    }

    /// What a block is for on a stream that is held.
    fn purpose_on(&self, stream: &Stream, end_stream: bool) -> Result<(Purpose, Option<ErrorCode>), ConnectionError> {
        match (stream.broken, stream.receiving) {
            (Some(Broken { by_peer: true, .. }), _) => Err(ConnectionError::StreamClosed { stream: stream.id }),
            (Some(_), _) => Ok((Purpose::Discard, None)),
            (None, Half::Ended) if stream.sending == Half::Ended => Err(ConnectionError::StreamClosed { stream: stream.id }),
            (None, Half::Ended) => Ok((Purpose::Discard, Some(ErrorCode::STREAM_CLOSED))),
            (None, Half::Waiting) => Ok((Purpose::Response, None)),
            // Trailers end their stream. RFC 9113 §8.1.
            (None, Half::Open) if end_stream => Ok((Purpose::Trailers, None)),
            (None, Half::Open) => Ok((Purpose::Discard, Some(ErrorCode::PROTOCOL_ERROR))),
        }
    }

    /// What a block is for on a stream that is not held. RFC 9113 §5.1.1, §5.1.2.
    fn purpose_of_new(&mut self, id: u32) -> Result<(Purpose, Option<ErrorCode>), ConnectionError> {
        match self.absent(id) {
            Absent::Ignored => {
                self.credits.spend_idle_frame()?;
                return Ok((Purpose::Discard, None));
            }
            Absent::Closed if self.role == Role::Client || self.ended_streams.contains(&id) => {
                return Err(ConnectionError::StreamClosed { stream: id });
            }
            Absent::Idle if self.role == Role::Client => return Err(ConnectionError::StreamIdle { stream: id }),
            Absent::Closed => return Err(ConnectionError::StreamNumber { stream: id }),
            Absent::Idle if id.is_multiple_of(2) => return Err(ConnectionError::StreamNumber { stream: id }),
            Absent::Idle => {}
        }
        self.highest = id;
        if self.goaway_sent.is_some_and(|last| id > last) {
            self.credits.spend_idle_frame()?;
            return Ok((Purpose::Discard, None));
        }
        // The second bound is on streams that have ended and that the application still holds.
        let limit = self.settings.max_concurrent_streams;
        if self.open >= limit || self.streams.len() >= wide(limit).saturating_mul(2) {
            return Ok((Purpose::Discard, Some(ErrorCode::REFUSED_STREAM)));
        }
        Ok((Purpose::Request, None))
    }

    fn take_fragment(&mut self, mut block: Block, fragment: &[u8], end: bool) -> Result<(), ConnectionError> {
        block.bytes += fragment.len();
        let bound = |factor: usize| wide(self.settings.head_bytes_max.max(FRAME_SIZE_MIN)).saturating_mul(factor);
        if block.bytes > bound(BLOCK_FACTOR) {
            return Err(ConnectionError::BlockTooLarge);
        }
        if self.line.is_empty() {
            let used = self.decoder.decode(fragment, &mut self.assembly).map_err(|_| ConnectionError::Compression)?;
            self.line.extend_from_slice(fragment.get(used..).unwrap_or_default());
        } else {
            self.line.extend_from_slice(fragment);
            let used = self.decoder.decode(&self.line, &mut self.assembly).map_err(|_| ConnectionError::Compression)?;
            self.line.drain(..used.min(self.line.len()));
        }
        if !end {
            if self.line.len() > bound(LINE_FACTOR) {
                return Err(ConnectionError::BlockTooLarge);
            }
            self.block = Some(block);
            return Ok(());
        }
        if !self.line.is_empty() {
            return Err(ConnectionError::Compression);
        }
        self.finish_block(block)
    }

    fn finish_block(&mut self, block: Block) -> Result<(), ConnectionError> {
        let extended_connect = self.settings.enable_connect_protocol;
        let well_formed = self.assembly.finish(extended_connect);
        let fault = block.fault.or(if well_formed { None } else { Some(ErrorCode::PROTOCOL_ERROR) });
        match (fault, block.purpose) {
            (None, Purpose::Request) => self.begin_request(block),
            (None, Purpose::Response) => self.begin_response(block),
            (None, Purpose::Trailers) => self.end_with_trailers(block),
            (None, Purpose::Discard) => Ok(()),
            (Some(code), _) => self.refuse(block.stream, code),
        }
    }

    /// Resets the stream of a block, which may not be held.
    fn refuse(&mut self, id: u32, code: ErrorCode) -> Result<(), ConnectionError> {
        if self.streams.get(id).is_some() {
            return self.stream_error(id, code);
        }
        self.output.reset(id, code);
        self.remember_reset(id);
        self.credits.spend_reset()
    }

    fn begin_request(&mut self, block: Block) -> Result<(), ConnectionError> {
        // A tunnel has no length. RFC 9110 §9.3.6.
        let expected = self.assembly.content_length.filter(|_| self.assembly.head.method != b"CONNECT");
        if block.end_stream && expected.is_some_and(|length| length > 0) {
            return self.refuse(block.stream, ErrorCode::PROTOCOL_ERROR);
        }
        let mut stream = self.new_stream(block.stream);
        stream.receiving = if block.end_stream { Half::Ended } else { Half::Open };
        stream.expected = expected;
        self.streams.insert(stream);
        self.open += 1;
        self.credits.head();
        self.deliver(block, ArrivalKind::Whole);
        Ok(())
    }

    fn begin_response(&mut self, block: Block) -> Result<(), ConnectionError> {
        let status = self.assembly.head.status;
        let Some(stream) = self.streams.get_mut(block.stream) else { return Ok(()) };
        if (100..200).contains(&status) {
            // RFC 9113 §8.1, §8.6: it ends nothing, and there is no upgrade.
            if block.end_stream || status == 101 {
                return self.stream_error(block.stream, ErrorCode::PROTOCOL_ERROR);
            }
            if usize::from(stream.heads) + 1 >= HEADS_MAX || self.assembly.too_large {
                return self.stream_error(block.stream, ErrorCode::ENHANCE_YOUR_CALM);
            }
            self.deliver(block, ArrivalKind::Informational);
            return Ok(());
        }
        let without_body = stream.answer_without_body || matches!(status, 204 | 304);
        let expected = self.assembly.content_length.filter(|_| !without_body);
        if block.end_stream && expected.is_some_and(|length| length > 0) {
            return self.stream_error(block.stream, ErrorCode::PROTOCOL_ERROR);
        }
        stream.expected = expected;
        stream.receiving = if block.end_stream { Half::Ended } else { Half::Open };
        self.credits.head();
        self.deliver(block, ArrivalKind::Whole);
        self.settle(block.stream);
        Ok(())
    }

    fn deliver(&mut self, block: Block, kind: ArrivalKind) {
        let kind = if self.assembly.too_large { ArrivalKind::TooLarge } else { kind };
        let head = std::mem::replace(&mut self.assembly.head, self.spare_heads.take());
        if let Some(stream) = self.streams.get_mut(block.stream) {
            stream.heads += 1;
        }
        self.heads.push_back(Received { stream: block.stream, head, arrival: Arrival { kind, end: block.end_stream } });
        self.events.push_back(Event::Head(StreamId(block.stream)));
    }

    fn end_with_trailers(&mut self, block: Block) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.get_mut(block.stream) else { return Ok(()) };
        if stream.expected.is_some_and(|length| length > 0) {
            return self.stream_error(block.stream, ErrorCode::PROTOCOL_ERROR);
        }
        if self.assembly.too_large {
            return self.stream_error(block.stream, ErrorCode::ENHANCE_YOUR_CALM);
        }
        stream.trailers = Some(std::mem::replace(&mut self.assembly.head.fields, self.spare_trailers.take()));
        stream.receiving = Half::Ended;
        if !stream.readable_queued {
            stream.readable_queued = true;
            self.events.push_back(Event::Readable(StreamId(block.stream)));
        }
        self.settle(block.stream);
        Ok(())
    }

    /// A stream with the windows that hold now.
    pub(super) fn new_stream(&self, id: u32) -> Stream {
        // Until the peer has our settings, it may use what holds without.
        let floor = if self.settings_acknowledged { 0 } else { WINDOW_INITIAL };
        let mut stream = Stream::new(id, i64::from(self.peer.stream_window), i64::from(self.settings.stream_window.max(floor)));
        stream.born = self.seconds;
        stream
    }
}
