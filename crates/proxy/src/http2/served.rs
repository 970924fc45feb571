//! A stream that a caller has opened.

use super::{Ended, Shared, take_body};
use crate::buffer::Buffer;
use crate::http1::{Body, BodyFault, Length};
use message::http2::{ArrivalKind, BodyState, ErrorCode, StreamId};
use message::{Fields, Head};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One request of a caller, and the response to it.
#[derive(Debug)]
pub struct Served {
    shared: Shared,
    id: StreamId,
    input: Buffer,
    trailers: Fields,
    body_length: Option<u64>,
    is_head: bool,
    ended: bool,
}

impl Served {
    pub(super) fn of(shared: Shared, id: StreamId) -> Self {
        let input = Buffer::small();
        Self { shared, id, input, trailers: Fields::default(), body_length: None, is_head: false, ended: false }
    }

    /// Takes the request's head: false if it was larger than allowed. `None`: the caller has taken it back.
    pub fn take_head(&mut self, head: &mut Head) -> Option<bool> {
        let arrival = self.shared.0.lock().connection.take_head(self.id, head)?;
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
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Body::Data));
        }
        let mut state = self.shared.0.lock();
        take_body(&mut state, self.id, &mut self.input);
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Body::Data));
        }
        match state.connection.body_state(self.id) {
            BodyState::Ended => Poll::Ready(Ok(Body::Ended)),
            BodyState::EndedWithTrailers => {
                state.connection.take_trailers(self.id, &mut self.trailers);
                Poll::Ready(Ok(Body::Ended))
            }
            BodyState::Reset(code) => Poll::Ready(Err(BodyFault::Broken(Ended::Reset(code).to_string()))),
            BodyState::More => match &state.ended {
                Some(ended) => Poll::Ready(Err(BodyFault::Broken(ended.to_string()))),
                None => {
                    Shared::wait(&mut state, self.id, cx);
                    Poll::Pending
                }
            },
        }
    }

    /// What is there of the request's body.
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

    /// Ready when the caller does not want the response any more.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.0.lock();
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
        self.ended = none;
        self.send_head(head, none);
    }

    fn send_head(&mut self, head: &Head, end: bool) {
        let mut state = self.shared.0.lock();
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
        let mut state = self.shared.0.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.error()));
        }
        let sent = match state.connection.send_data(self.id, data, false) {
            Ok(sent) => sent,
            Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error))),
        };
        state.push();
        if sent == 0 {
            Shared::wait(&mut state, self.id, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(sent))
    }

    /// The end of the response's body.
    pub fn finish(&mut self, trailers: &Fields) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut state = self.shared.0.lock();
        // As above: who is gone needs no end.
        let _gone = match trailers.is_empty() {
            true => state.connection.send_data(self.id, &[], true).map(drop),
            false => state.connection.send_trailers(self.id, trailers),
        };
        state.push();
    }

    /// The response cannot be brought to its end: the caller must not take what came for all of it.
    pub fn abort(&mut self) {
        if !self.ended {
            let mut state = self.shared.0.lock();
            state.connection.reset(self.id, ErrorCode::INTERNAL_ERROR);
            state.push();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let trailers = std::mem::take(&mut self.trailers);
        self.shared.0.lock().release(self.id, trailers);
    }
}

impl AsyncRead for Served {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let served = self.get_mut();
        if ready!(served.poll_body(cx)).map_err(io::Error::other)? == Body::Data {
            let count = served.data().len().min(buf.remaining());
            buf.put_slice(served.data().get(..count).unwrap_or_default());
            served.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Served {
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
