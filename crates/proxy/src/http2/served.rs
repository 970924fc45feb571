//! A stream that a caller has opened.

use super::{Shared, Stream};
use crate::http1::{Body, BodyFault, Length};
use message::http2::{ArrivalKind, BodyState, ErrorCode, StreamId};
use message::{Fields, Head};
use std::io;
use std::task::{Context, Poll};

/// One request of a caller, and the response to it.
#[derive(Debug)]
pub struct Served {
    stream: Stream,
    id: StreamId,
    body_length: Option<u64>,
    is_head: bool,
}

impl Served {
    pub(super) fn of(shared: Shared, id: StreamId) -> Self {
        Self { stream: Stream::of(shared, Some(id)), id, body_length: None, is_head: false }
    }

    /// Takes the request's head: false if it was larger than allowed. `None`: the caller has taken it back.
    pub fn take_head(&mut self, head: &mut Head) -> Option<bool> {
        let arrival = self.stream.shared.0.lock().connection.take_head(self.id, head)?;
        let declared = head.fields.first(b"content-length").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        self.body_length = if arrival.end { Some(0) } else { declared };
        self.is_head = head.method == b"HEAD";
        Some(arrival.kind != ArrivalKind::TooLarge)
    }

    /// The length of the request's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        self.body_length
    }

    /// Waits for some of the request's body.
    ///
    /// # Errors
    /// - [`BodyFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, BodyFault>> {
        self.stream.poll_body(cx).map_err(|ended| BodyFault::Broken(ended.to_string()))
    }

    /// What is there of the request's body.
    pub fn data(&self) -> &[u8] {
        self.stream.data()
    }

    /// Takes the first `count` bytes of it away.
    pub fn consume(&mut self, count: usize) {
        self.stream.consume(count);
    }

    /// The trailers of a body that has ended.
    pub const fn trailers(&mut self) -> &mut Fields {
        self.stream.trailers()
    }

    /// The bytes of a stream that speaks another protocol now.
    pub const fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Ready when the caller does not want the response any more.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.stream.shared.0.lock();
        if state.ended.is_some() || matches!(state.connection.body_state(self.id), BodyState::Reset(_)) {
            return Poll::Ready(());
        }
        Shared::wait(&mut state, self.id, cx);
        Poll::Pending
    }

    /// An interim response (1xx).
    pub fn inform(&mut self, head: &Head) {
        self.send_head(head, false);
    }

    /// The response's head.
    pub fn respond(&mut self, head: &Head, length: Length) {
        let none = self.is_head || matches!(head.status, 204 | 304) || matches!(length, Length::None | Length::Known(0));
        self.stream.ended = none;
        self.send_head(head, none);
    }

    fn send_head(&mut self, head: &Head, end: bool) {
        let mut state = self.stream.shared.0.lock();
        // A caller that is gone is noticed when the response's end is asked for.
        let _gone = state.connection.send_head(self.id, head, end);
        state.push();
    }

    /// Takes some of the response's body; how much of it.
    ///
    /// # Errors
    /// - the stream's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_head || data.is_empty() {
            return Poll::Ready(Ok(data.len()));
        }
        self.stream.poll_write(cx, data)
    }

    /// The end of the response's body.
    pub fn finish(&mut self, trailers: &Fields) {
        self.stream.finish(trailers);
    }

    /// The response cannot be brought to its end: the caller must not take what came for all of it.
    pub fn abort(&mut self) {
        if !self.stream.ended {
            let mut state = self.stream.shared.0.lock();
            state.connection.reset(self.id, ErrorCode::INTERNAL_ERROR);
            state.push();
        }
    }
}
