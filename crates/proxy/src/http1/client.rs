//! The side of a connection of HTTP/1 that requests go out on, one after the other.

use super::writing::Writing;
use super::{Body, Length};
use crate::buffer::Buffer;
use crate::framing::{Answering, Part};
use crate::io::Io;
use crate::upstream::pool::OpenPlace;
use message::{Fields, Head, Version};
use std::io;
use std::task::{Context, Poll, Waker, ready};

/// A connection to an application or a peer.
#[derive(Debug)]
pub struct Client {
    io: Io,
    input: Buffer,
    answering: Answering,
    piece: usize,
    trailers: Fields,
    writing: Writing,
    keep: bool,
    is_head: bool,
    /// Whether anything came since the request was written.
    heard: bool,
    /// Its place among the connections to its target, where it is counted there.
    place: Option<OpenPlace>,
}

/// Why a response did not come.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// The connection ended or broke.
    #[error("{0}")]
    Broken(io::Error),
    /// It is no response.
    #[error("{0}")]
    Malformed(&'static str),
}

impl Client {
    /// A fresh connection.
    pub fn new(io: Io) -> Self {
        Self {
            io,
            input: Buffer::default(),
            answering: Answering::new(),
            piece: 0,
            trailers: Fields::default(),
            writing: Writing::default(),
            keep: true,
            is_head: false,
            heard: false,
            place: None,
        }
    }

    /// The same, counted for as long as it is open.
    #[must_use]
    pub fn placed(mut self, place: OpenPlace) -> Self {
        self.place = Some(place);
        self
    }

    /// Begins an exchange: the request's head. Nothing is written yet.
    pub fn request(&mut self, head: &Head, host: &[u8], length: Length) {
        self.answering = Answering::new();
        self.trailers.clear();
        self.is_head = head.method == b"HEAD";
        self.heard = false;
        self.writing.request(head, host, length);
    }

    /// Takes some of the request's body; how much of it.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.writing.poll_data(&mut self.io, cx, data)
    }

    /// The end of the request's body.
    pub fn finish(&mut self, trailers: &Fields) {
        self.keep &= self.writing.finish(trailers);
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.poll_flush(&mut self.io, cx)
    }

    /// Waits for the next head: an interim one (1xx), which another follows, or the response's.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), ClientFault>> {
        loop {
            match self.answering.step(self.input.data(), self.is_head, head, &mut self.trailers) {
                Part::Head(count) => {
                    self.input.consume(count);
                    if head.status >= 200 || head.status == 101 {
                        self.keep &= is_kept(head) && !self.answering.is_until_close();
                    }
                    return Poll::Ready(Ok(()));
                }
                Part::Malformed(rule) => return Poll::Ready(Err(ClientFault::Malformed(rule))),
                Part::More | Part::Ended | Part::Data(_) | Part::Between(_) => {}
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let early = io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed before the answer was whole");
                return Poll::Ready(Err(ClientFault::Broken(early)));
            }
            self.heard = true;
        }
    }

    /// Waits for some of the response's body.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, ClientFault>> {
        loop {
            if self.piece > 0 {
                return Poll::Ready(Ok(Body::Data));
            }
            match self.answering.step(self.input.data(), self.is_head, &mut Head::default(), &mut self.trailers) {
                Part::Data(count) => self.piece = count,
                Part::Between(count) => self.input.consume(count),
                Part::Ended => return Poll::Ready(Ok(Body::Ended)),
                Part::Malformed(rule) => return Poll::Ready(Err(ClientFault::Malformed(rule))),
                Part::More | Part::Head(_) => match ready!(self.poll_fill(cx))? {
                    0 if self.answering.is_until_close() => return Poll::Ready(Ok(Body::Ended)),
                    0 => {
                        let early = io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed inside the body");
                        return Poll::Ready(Err(ClientFault::Broken(early)));
                    }
                    _ => {}
                },
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ClientFault>> {
        self.input.poll_fill(&mut self.io, cx).map_err(ClientFault::Broken)
    }

    /// The length of the response's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        self.answering.length()
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

    /// Whether nothing came back since the request was begun.
    pub const fn is_unheard(&self) -> bool {
        !self.heard
    }

    /// Whether nothing of the request has left.
    pub const fn is_unsent(&self) -> bool {
        self.writing.is_untouched()
    }

    /// Carries on with a request of which nothing has left on another connection.
    pub fn take_over(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.writing, &mut other.writing);
        self.is_head = other.is_head;
    }

    /// Whether the connection may carry another request: request and response are whole, nobody wants to close, and nothing came
    /// that was not asked for.
    pub const fn goes_on(&self) -> bool {
        self.keep
            && self.writing.is_ended()
            && self.writing.is_empty()
            && self.answering.is_ended()
            && self.piece == 0
            && self.input.is_empty()
    }

    /// Whether a kept connection was closed meanwhile, or says what nobody asked for. Costs no system call where the kernel has
    /// told nothing.
    pub fn is_spent(&mut self) -> bool {
        if let Io::Shared(stream) = &self.io {
            return stream.is_spent();
        }
        let mut cx = Context::from_waker(Waker::noop());
        self.input.poll_fill(&mut self.io, &mut cx).is_ready()
    }

    /// The stream, and what was read of it that belongs to no message.
    pub fn into_parts(self) -> (Io, Buffer, Option<OpenPlace>) {
        (self.io, self.input, self.place)
    }
}

/// Whether the response lets the connection go on (RFC 9112 §9.3).
fn is_kept(head: &Head) -> bool {
    let says = |word: &[u8]| {
        let lists = head.fields.values(b"connection").flat_map(|list| list.split(|byte| *byte == b','));
        lists.map(<[u8]>::trim_ascii).any(|each| each.eq_ignore_ascii_case(word))
    };
    match head.version {
        Version::Http10 => says(b"keep-alive"),
        Version::Http11 | Version::Http2 => !says(b"close"),
    }
}
