//! A stream that we open.

use super::{Ended, Shared, Stream};
use crate::facts::Facts;
use crate::http1::{Body, ClientFault, Length};
use message::http2::{ArrivalKind, BodyState, ErrorCode};
use message::{Fields, Head};
use std::io;
use std::task::{Context, Poll, ready};

/// A connection's streams, for whoever opens them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Calls(Shared);

/// One request to an application or a peer, and the response to it.
#[derive(Debug)]
pub struct Called {
    stream: Stream,
    body_length: Option<u64>,
    heard: bool,
    /// The response ended with its head.
    is_over: bool,
}

impl Calls {
    pub(super) const fn of(shared: Shared) -> Self {
        Self(shared)
    }

    /// A request that is about to be sent; `None` if the connection takes no more now.
    pub fn begin(&self) -> Option<Called> {
        let state = self.0.0.lock();
        (state.ended.is_none() && state.connection.can_open().is_ok()).then(|| Called {
            stream: Stream::of(self.0.clone(), None),
            body_length: None,
            heard: false,
            is_over: false,
        })
    }

    /// Whether no stream can be opened any more.
    pub fn is_over(&self) -> bool {
        use message::http2::CannotOpen;
        let state = self.0.0.lock();
        state.ended.is_some() || matches!(state.connection.can_open(), Err(CannotOpen::GoingAway | CannotOpen::Exhausted))
    }

    /// Requests that are under way on it.
    pub fn streams(&self) -> usize {
        self.0.0.lock().connection.held_streams()
    }

    /// No stream is to be opened any more.
    pub fn leave(&self) {
        let mut state = self.0.0.lock();
        state.connection.shutdown();
        state.push();
    }
}

impl Called {
    /// Begins an exchange.
    pub fn request(&mut self, head: &Head, facts: &Facts, length: Length) {
        debug_assert_eq!(head.authority, facts.authority.as_bytes(), "the head was made ready for this hop");
        let end = length == Length::None && head.method != b"CONNECT";
        self.stream.ended = end;
        let mut state = self.stream.shared.0.lock();
        self.stream.id = state.connection.open(head, end).ok();
        state.push();
    }

    /// Takes some of the request's body; how much of it.
    ///
    /// # Errors
    /// - the stream's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(cx, data)
    }

    /// The end of the request's body.
    pub fn finish(&mut self, trailers: &Fields) {
        self.stream.finish(trailers);
    }

    /// Waits for the next head: an interim one (1xx), which another follows, or the response's.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), ClientFault>> {
        let mut state = self.stream.shared.0.lock();
        let Some(id) = self.stream.id else {
            let refused = state.ended.clone().unwrap_or(Ended::Reset(ErrorCode::REFUSED_STREAM));
            return Poll::Ready(Err(ClientFault::Broken(refused.error())));
        };
        if let Some(arrival) = state.connection.take_head(id, head) {
            self.heard = true;
            if arrival.kind == ArrivalKind::TooLarge {
                return Poll::Ready(Err(ClientFault::Malformed("a head of more than 262144 bytes or 512 lines")));
            }
            if !head.is_informational() {
                let declared = head.fields.first(b"content-length").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                self.body_length = if arrival.end { Some(0) } else { declared };
                self.is_over = arrival.end;
            }
            return Poll::Ready(Ok(()));
        }
        if let BodyState::Reset(code) = state.connection.body_state(id) {
            return Poll::Ready(Err(ClientFault::Broken(Ended::Reset(code).error())));
        }
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ClientFault::Broken(ended.error())));
        }
        Shared::wait(&mut state, id, cx);
        Poll::Pending
    }

    /// Waits for some of the response's body.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, ClientFault>> {
        Poll::Ready(match ready!(self.stream.poll_body(cx)) {
            Ok(Body::Data) => Ok(Body::Data),
            Ok(Body::Ended) => {
                self.is_over = true;
                Ok(Body::Ended)
            }
            // A response that was whole is not undone by what came after it.
            Err(Ended::Reset(_)) if self.is_over => Ok(Body::Ended),
            Err(ended) => Err(ClientFault::Broken(ended.error())),
        })
    }

    /// The length of the response's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        self.body_length
    }

    /// What is there of the response's body.
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
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Whether nothing came back since the request was begun.
    pub const fn is_unheard(&self) -> bool {
        !self.heard
    }

    /// Whether the other side has said that it has not looked at the request (RFC 9113 §8.7), or could not be asked at all.
    pub fn is_unsent(&self) -> bool {
        let Some(id) = self.stream.id else { return true };
        matches!(self.stream.shared.0.lock().connection.body_state(id), BodyState::Reset(ErrorCode::REFUSED_STREAM))
    }
}
