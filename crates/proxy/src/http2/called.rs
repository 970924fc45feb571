//! A stream that we open.

use super::{Ended, Shared, take_body};
use crate::buffer::Buffer;
use crate::facts::Facts;
use crate::http1::{Body, ClientFault, Length};
use message::http2::{ArrivalKind, BodyState, ErrorCode, StreamId};
use message::{Fields, Head};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection's streams, for whoever opens them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Calls(Shared);

/// One request to an application or a peer, and the response to it.
#[derive(Debug)]
pub struct Called {
    shared: Shared,
    /// Not there where the stream could not be opened.
    id: Option<StreamId>,
    input: Buffer,
    trailers: Fields,
    body_length: Option<u64>,
    ended: bool,
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
            shared: self.0.clone(),
            id: None,
            input: Buffer::small(),
            trailers: Fields::default(),
            body_length: None,
            ended: false,
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
        self.ended = end;
        let mut state = self.shared.0.lock();
        self.id = state.connection.open(head, end).ok();
        state.push();
    }

    /// Takes some of the request's body; how much of it.
    ///
    /// # Errors
    /// - the stream's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.0.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.error()));
        }
        let Some(id) = self.id else { return Poll::Ready(Err(Ended::Reset(ErrorCode::REFUSED_STREAM).error())) };
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let sent = match state.connection.send_data(id, data, false) {
            Ok(sent) => sent,
            Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error))),
        };
        state.push();
        if sent == 0 {
            Shared::wait(&mut state, id, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(sent))
    }

    /// The end of the request's body.
    pub fn finish(&mut self, trailers: &Fields) {
        let Some(id) = self.id else { return };
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut state = self.shared.0.lock();
        // A stream that is gone is noticed by who waits for the response.
        let _gone = match trailers.is_empty() {
            true => state.connection.send_data(id, &[], true).map(drop),
            false => state.connection.send_trailers(id, trailers),
        };
        state.push();
    }

    /// Waits for the next head: an interim one (1xx), which another follows, or the response's.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), ClientFault>> {
        let mut state = self.shared.0.lock();
        let Some(id) = self.id else {
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
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Body::Data));
        }
        let Some(id) = self.id else { return Poll::Ready(Ok(Body::Ended)) };
        let mut state = self.shared.0.lock();
        take_body(&mut state, id, &mut self.input);
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Body::Data));
        }
        match state.connection.body_state(id) {
            BodyState::Ended => {
                self.is_over = true;
                Poll::Ready(Ok(Body::Ended))
            }
            BodyState::EndedWithTrailers => {
                state.connection.take_trailers(id, &mut self.trailers);
                self.is_over = true;
                Poll::Ready(Ok(Body::Ended))
            }
            BodyState::Reset(_) if self.is_over => Poll::Ready(Ok(Body::Ended)),
            BodyState::Reset(code) => Poll::Ready(Err(ClientFault::Broken(Ended::Reset(code).error()))),
            BodyState::More => match &state.ended {
                Some(ended) => Poll::Ready(Err(ClientFault::Broken(ended.error()))),
                None => {
                    Shared::wait(&mut state, id, cx);
                    Poll::Pending
                }
            },
        }
    }

    /// The length of the response's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        self.body_length
    }

    /// What is there of the response's body.
    pub fn data(&self) -> &[u8] {
        self.input.data()
    }

    /// Takes the first `count` bytes of it away.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
    }

    /// The trailers of a body that has ended.
    pub const fn trailers(&mut self) -> &mut Fields {
        &mut self.trailers
    }

    /// Whether nothing came back since the request was begun.
    pub const fn is_unheard(&self) -> bool {
        !self.heard
    }

    /// Whether the other side has said that it has not looked at the request (RFC 9113 §8.7), or could not be asked at all.
    pub fn is_unsent(&self) -> bool {
        let Some(id) = self.id else { return true };
        matches!(self.shared.0.lock().connection.body_state(id), BodyState::Reset(ErrorCode::REFUSED_STREAM))
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let trailers = std::mem::take(&mut self.trailers);
            self.shared.0.lock().release(id, trailers);
        }
    }
}

impl AsyncRead for Called {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let called = self.get_mut();
        if ready!(called.poll_body(cx)).map_err(io::Error::other)? == Body::Data {
            let count = called.data().len().min(buf.remaining());
            buf.put_slice(called.data().get(..count).unwrap_or_default());
            called.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Called {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish(&Fields::default());
        Poll::Ready(Ok(()))
    }
}
