//! What both sides of a stream do alike: the body that comes, and the one that goes.

use super::{Ended, Shared};
use crate::buffer::Buffer;
use crate::http1::Body;
use message::Fields;
use message::http2::{BodyState, ErrorCode, StreamId};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// LIMIT: bytes of a body that were taken from a stream and not handed on.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// One stream, until it is dropped.
#[derive(Debug)]
pub struct Stream {
    pub(super) shared: Shared,
    /// Not there where the stream could not be opened.
    pub(super) id: Option<StreamId>,
    input: Buffer,
    trailers: Fields,
    /// Nothing more goes.
    pub(super) ended: bool,
}

impl Stream {
    pub(super) fn of(shared: Shared, id: Option<StreamId>) -> Self {
        Self { shared, id, input: Buffer::small(), trailers: Fields::default(), ended: false }
    }

    /// Waits for some of the body that comes.
    ///
    /// # Errors
    /// - [`Ended`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, Ended>> {
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Body::Data));
        }
        let Some(id) = self.id else { return Poll::Ready(Ok(Body::Ended)) };
        let mut state = self.shared.0.lock();
        let body = state.connection.body(id);
        let count = body.len().min(PIECE_BYTES_MAX);
        if count > 0 {
            self.input.push(body.get(..count).unwrap_or_default());
            state.connection.consume(id, count);
            state.push();
            return Poll::Ready(Ok(Body::Data));
        }
        match state.connection.body_state(id) {
            BodyState::Ended => Poll::Ready(Ok(Body::Ended)),
            BodyState::EndedWithTrailers => {
                state.connection.take_trailers(id, &mut self.trailers);
                Poll::Ready(Ok(Body::Ended))
            }
            BodyState::Reset(code) => Poll::Ready(Err(Ended::Reset(code))),
            BodyState::More => match &state.ended {
                Some(ended) => Poll::Ready(Err(ended.clone())),
                None => {
                    Shared::wait(&mut state, id, cx);
                    Poll::Pending
                }
            },
        }
    }

    /// What is there of the body.
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

    /// Takes some of the body that goes; how much of it.
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

    /// The end of the body that goes.
    pub fn finish(&mut self, trailers: &Fields) {
        let Some(id) = self.id else { return };
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut state = self.shared.0.lock();
        // A stream that is gone is noticed by who waits for what comes, or by who asks for its end.
        let _gone = match trailers.is_empty() {
            true => state.connection.send_data(id, &[], true).map(drop),
            false => state.connection.send_trailers(id, trailers),
        };
        state.push();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let trailers = std::mem::take(&mut self.trailers);
            self.shared.0.lock().release(id, trailers);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if ready!(stream.poll_body(cx)).map_err(|ended| ended.error())? == Body::Data {
            let count = stream.data().len().min(buf.remaining());
            buf.put_slice(stream.data().get(..count).unwrap_or_default());
            stream.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
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
