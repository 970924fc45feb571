//! The caller's side of a connection of HTTP/1: requests in, responses out.

use super::writing::Writing;
use super::{Body, Length};
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::framing::{Framing, FramingRefusal, Rules, Step};
use crate::io::Io;
use message::{Fields, Head, Version};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, timeout_at};

/// What came next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A request, whose head was written down.
    Request,
    /// Nothing: the caller has ended the connection between two messages.
    End,
    /// What no reader should see as a request.
    Refused(FramingRefusal),
}

/// A connection that requests come from, one after the other.
#[derive(Debug)]
pub struct Server {
    io: Io,
    input: Buffer,
    framing: Framing,
    /// Bytes of data at the beginning of the input.
    piece: usize,
    trailers: Fields,
    writing: Writing,
    version: Version,
    keep: bool,
    is_head: bool,
    aborted: bool,
    half_closed: bool,
}

/// Why a body of a request did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyFault {
    /// Its end could be seen in two places.
    #[error("{0}")]
    Framing(FramingRefusal),
    /// The caller ended early.
    #[error("the caller ended the connection inside the body")]
    Early,
    /// The connection, or the caller's stream, broke.
    #[error("{0}")]
    Broken(String),
}

impl Server {
    /// A connection of which `input` was read before.
    pub fn new(io: Io, input: Buffer, rules: Rules) -> Self {
        Self {
            io,
            input,
            framing: Framing::new(rules),
            piece: 0,
            trailers: Fields::default(),
            writing: Writing::default(),
            version: Version::Http11,
            keep: true,
            is_head: false,
            aborted: false,
            half_closed: false,
        }
    }

    /// Waits for the first byte of what comes next: false if the caller has ended the connection instead, or it broke.
    pub fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.input.is_empty() {
            return Poll::Ready(true);
        }
        if self.half_closed {
            return Poll::Ready(false);
        }
        self.input.poll_fill(&mut self.io, cx).map(|read| read.is_ok_and(|count| count > 0))
    }

    /// The head of the next request, within its deadline from its first byte.
    ///
    /// # Errors
    /// - the connection's.
    ///
    /// Cancel safety: nothing is lost, and the same `head` must be given again.
    pub async fn next(&mut self, head: &mut Head) -> io::Result<Next> {
        let mut deadline = None;
        loop {
            if !self.framing.is_in_head() {
                head.clear();
            }
            match self.framing.step(self.input.data(), head, &mut self.trailers) {
                Step::Head(count) => {
                    self.input.consume(count);
                    self.begin(head);
                    return Ok(Next::Request);
                }
                Step::Refused(_, refusal) => return Ok(Next::Refused(refusal)),
                Step::More if self.half_closed => return Ok(self.framing.ended().map_or(Next::End, Next::Refused)),
                Step::More => {}
                Step::Data(_) | Step::Between(_) | Step::Switched => return Ok(Next::End),
            }
            // From the first byte on, be it of an empty line, nobody may take for ever.
            let is_idle = self.input.is_empty();
            let read = std::future::poll_fn(|cx| self.input.poll_fill(&mut self.io, cx));
            let count = if is_idle {
                read.await?
            } else {
                let by = *deadline.get_or_insert_with(|| Instant::now() + self.framing.rules().head_deadline);
                match timeout_at(by, read).await {
                    Ok(read) => read?,
                    Err(_) if self.framing.is_in_head() => return Ok(Next::Refused(self.framing.late(self.input.len()))),
                    Err(_) => return Ok(Next::End),
                }
            };
            if count == 0 {
                return Ok(self.framing.ended().map_or(Next::End, Next::Refused));
            }
        }
    }

    fn begin(&mut self, head: &Head) {
        let says = |word: &[u8]| {
            let lists = head.fields.values(b"connection").flat_map(|list| list.split(|byte| *byte == b','));
            lists.map(<[u8]>::trim_ascii).any(|each| each.eq_ignore_ascii_case(word))
        };
        self.version = head.version;
        self.keep = match head.version {
            Version::Http10 => says(b"keep-alive") && !says(b"close"),
            Version::Http11 | Version::Http2 => !says(b"close"),
        };
        self.is_head = head.method == b"HEAD";
        // What follows an offer of another protocol is not read as HTTP, whether or not it was meant.
        self.keep &= !self.framing.switches();
    }

    /// The length of the request's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        self.framing.length()
    }

    /// Waits for some of the request's body.
    ///
    /// # Errors
    /// - [`BodyFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, BodyFault>> {
        loop {
            if self.piece > 0 {
                return Poll::Ready(Ok(Body::Data));
            }
            if self.framing.is_between() {
                return Poll::Ready(Ok(Body::Ended));
            }
            // No head can come inside a body.
            match self.framing.step(self.input.data(), &mut Head::default(), &mut self.trailers) {
                Step::Data(count) => self.piece = count,
                Step::Between(count) => self.input.consume(count),
                Step::Refused(_, refusal) => return Poll::Ready(Err(BodyFault::Framing(refusal))),
                Step::More => match ready!(self.input.poll_fill(&mut self.io, cx)) {
                    Ok(0) => return Poll::Ready(Err(BodyFault::Early)),
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Err(BodyFault::Broken(error.to_string()))),
                },
                Step::Head(_) | Step::Switched => return Poll::Ready(Ok(Body::Ended)),
            }
        }
    }

    /// What is there of the body.
    pub fn data(&self) -> &[u8] {
        self.input.data().get(..self.piece).unwrap_or_default()
    }

    /// Takes the first `count` bytes of it away.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.piece);
        self.piece -= count;
        self.input.consume(count);
    }

    /// The trailers of a body that has ended.
    pub const fn trailers(&mut self) -> &mut Fields {
        &mut self.trailers
    }

    /// Whether every byte of the request was taken.
    pub const fn is_request_over(&self) -> bool {
        self.piece == 0 && self.framing.is_between()
    }

    /// No further request is taken after this one.
    pub const fn close(&mut self) {
        self.keep = false;
    }

    /// Ready when the connection broke while the request is answered. A caller that only says nothing more may still read.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_request_over() || self.half_closed {
            return Poll::Pending;
        }
        while self.input.len() < BUFFER_BYTES {
            match ready!(self.input.poll_fill(&mut self.io, cx)) {
                Err(_) => return Poll::Ready(()),
                Ok(0) => {
                    self.half_closed = true;
                    return Poll::Pending;
                }
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Whether the caller has said that it says nothing more.
    pub const fn is_half_closed(&self) -> bool {
        self.half_closed
    }

    /// The response cannot be brought to its end: what came of it goes out, and the connection ends without a word more.
    pub fn abort(&mut self) {
        (self.keep, self.aborted) = (false, true);
        // Where the end of the connection is the end of the response, only a reset tells that it is not whole.
        if self.version == Version::Http10 {
            self.io.reset_when_dropped();
        }
    }

    /// Whether the connection is to end without a word more.
    pub const fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// Takes what is there of a body that nobody wants, so that a small one does not cost its caller the connection.
    pub fn skip_body(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = LAST_READ_BYTES_MAX;
        while left > 0 && matches!(self.poll_body(&mut cx), Poll::Ready(Ok(Body::Data))) {
            left = left.saturating_sub(self.piece);
            self.consume(usize::MAX);
        }
    }

    /// Whether another request may come: the message under way has an end of its own, and nobody wants to close.
    pub const fn goes_on(&self) -> bool {
        self.keep && self.writing.is_ended() && self.is_request_over()
    }

    /// An interim response (1xx). One of HTTP/1.0 knows none.
    pub fn inform(&mut self, head: &Head) {
        if self.version != Version::Http10 {
            self.writing.interim(head);
        }
    }

    /// The response's head. Without an end of its own the body ends with the connection.
    pub fn respond(&mut self, head: &Head, length: Length) {
        let none = self.is_head || matches!(head.status, 100..=199 | 204 | 304);
        self.keep &= !(self.version == Version::Http10 && length == Length::Unknown && !none);
        self.writing.response(head, if none { Length::None } else { length }, self.version, self.keep);
    }

    /// Takes some of the response's body; how much of it.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_head {
            return Poll::Ready(Ok(data.len()));
        }
        self.writing.poll_data(&mut self.io, cx, data)
    }

    /// The end of the response's body.
    pub fn finish(&mut self, trailers: &Fields) {
        // A length that was not reached leaves a message that never ends: the connection cannot go on.
        self.keep &= self.writing.finish(trailers);
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.poll_flush(&mut self.io, cx)
    }

    /// Writes a whole message and ends our side of the connection.
    ///
    /// # Errors
    /// - the connection's.
    pub async fn last_words(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writing.raw(bytes);
        self.end().await
    }

    /// Ends our side of the connection, when everything was written. What the caller still sends is read and forgotten, within
    /// bounds, so that its kernel does not discard our words with a reset.
    ///
    /// # Errors
    /// - the connection's.
    pub async fn end(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await?;
        std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await?;
        let mut left = LAST_READ_BYTES_MAX;
        while left > 0 {
            self.input = Buffer::default();
            let count = std::future::poll_fn(|cx| self.input.poll_fill(&mut self.io, cx)).await?;
            if count == 0 {
                break;
            }
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    /// The stream, and what was read of it that belongs to no message.
    pub fn into_parts(self) -> (Io, Buffer) {
        (self.io, self.input)
    }
}

/// LIMIT: bytes that are read of a caller who is told that its connection ends.
const LAST_READ_BYTES_MAX: usize = 64 * 1024;
