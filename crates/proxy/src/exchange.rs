//! One request and its response between two connections: the two sides, and the bytes that go up while others come down.

use crate::facts::{Facts, forward_trailers, is_spelt};
use crate::http1::{self, Body, BodyFault, ClientFault, Length};
use crate::http2;
use message::{Fields, Head};
use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// What is written down of an exchange while it is under way. A worker uses it again for its next one.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The request's head; made ready for the next hop where it lies.
    pub request: Head,
    /// What the request says.
    pub facts: Facts,
    /// The response's head.
    pub answer: Head,
}

/// LIMIT: exchanges that a worker keeps for the next use.
const SPARE_MAX: usize = 64;

/// An exchange is moved about while it is under way: where it lies must stay the same.
type Kept = Box<Exchange>;

thread_local! {
    static SPARE: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

impl Exchange {
    /// One whose heads say nothing yet; the facts are those of an earlier one until they are collected. It may hold its memory.
    pub fn take() -> Box<Self> {
        let mut exchange = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        exchange.request.clear();
        exchange.answer.clear();
        exchange
    }

    /// Keeps the memory for the next one.
    pub fn give_back(self: Box<Self>) {
        // A thread that ends keeps nothing, and one large head does not stay for ever.
        let _kept = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX
                && self.request.fields.capacity() <= KEPT_BYTES_MAX
                && self.answer.fields.capacity() <= KEPT_BYTES_MAX
            {
                spare.push(self);
            }
        });
    }
}

/// LIMIT: bytes of header lines that a kept exchange may have room for.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// The side that the request comes from.
#[derive(Debug)]
pub enum Downstream<'a> {
    /// A connection of HTTP/1.
    Http1(&'a mut http1::Server),
    /// A stream of HTTP/2.
    Http2(&'a mut http2::Served),
}

/// The side that the request goes to.
#[derive(Debug)]
pub enum Upstream {
    /// A connection of HTTP/1.
    Http1(Box<http1::Client>),
    /// A stream of HTTP/2.
    Http2(Box<http2::Called>),
}

impl Downstream<'_> {
    /// The length of the request's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        match self {
            Self::Http1(server) => server.body_length(),
            Self::Http2(stream) => stream.body_length(),
        }
    }

    /// Waits for some of the request's body.
    ///
    /// # Errors
    /// - [`BodyFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, BodyFault>> {
        match self {
            Self::Http1(server) => server.poll_body(cx),
            Self::Http2(stream) => stream.poll_body(cx),
        }
    }

    /// What is there of the request's body.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Http1(server) => server.data(),
            Self::Http2(stream) => stream.data(),
        }
    }

    /// Takes the first `count` bytes of it away.
    pub fn consume(&mut self, count: usize) {
        match self {
            Self::Http1(server) => server.consume(count),
            Self::Http2(stream) => stream.consume(count),
        }
    }

    /// The trailers of a request's body that has ended.
    pub fn trailers(&mut self) -> &mut Fields {
        match self {
            Self::Http1(server) => server.trailers(),
            Self::Http2(stream) => stream.trailers(),
        }
    }

    /// No further request is taken on the connection.
    pub const fn close(&mut self) {
        match self {
            Self::Http1(server) => server.close(),
            // The others on it go on.
            Self::Http2(_) => {}
        }
    }

    /// An interim response (1xx).
    pub fn inform(&mut self, head: &Head) {
        match self {
            Self::Http1(server) => server.inform(head),
            Self::Http2(stream) => stream.inform(head),
        }
    }

    /// The response's head.
    pub fn respond(&mut self, head: &Head, length: Length) {
        match self {
            Self::Http1(server) => server.respond(head, length),
            Self::Http2(stream) => stream.respond(head, length),
        }
    }

    /// Takes some of the response's body; how much of it.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Http1(server) => server.poll_write(cx, data),
            Self::Http2(stream) => stream.poll_write(cx, data),
        }
    }

    /// The end of the response's body.
    pub fn finish(&mut self, trailers: &Fields) {
        match self {
            Self::Http1(server) => server.finish(trailers),
            Self::Http2(stream) => stream.finish(trailers),
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(server) => server.poll_flush(cx),
            // The connection's driver does it.
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the caller has taken its request back, or its connection broke.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(server) => server.poll_gone(cx),
            Self::Http2(stream) => stream.poll_gone(cx),
        }
    }

    /// The response cannot be brought to its end: the caller must not take what came for all of it.
    pub fn abort(&mut self) {
        match self {
            Self::Http1(server) => server.abort(),
            Self::Http2(stream) => stream.abort(),
        }
    }
}

impl Upstream {
    /// Begins an exchange. Nothing is written yet.
    pub fn request(&mut self, head: &Head, facts: &Facts, length: Length) {
        match self {
            Self::Http1(client) => client.request(head, facts.authority.as_bytes(), length),
            Self::Http2(stream) => stream.request(head, facts, length),
        }
    }

    /// Takes some of the request's body; how much of it.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Http1(client) => client.poll_write(cx, data),
            Self::Http2(stream) => stream.poll_write(cx, data),
        }
    }

    /// The end of the request's body.
    pub fn finish(&mut self, trailers: &Fields) {
        match self {
            Self::Http1(client) => client.finish(trailers),
            Self::Http2(stream) => stream.finish(trailers),
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// - the connection's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(client) => client.poll_flush(cx),
            // The connection's driver does it.
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Waits for the next head: an interim one (1xx), which another follows, or the response's.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), ClientFault>> {
        match self {
            Self::Http1(client) => client.poll_head(cx, head),
            Self::Http2(stream) => stream.poll_head(cx, head),
        }
    }

    /// Waits for some of the response's body.
    ///
    /// # Errors
    /// - [`ClientFault`].
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Body, ClientFault>> {
        match self {
            Self::Http1(client) => client.poll_body(cx),
            Self::Http2(stream) => stream.poll_body(cx),
        }
    }

    /// The length of the response's body, where its head says it.
    pub const fn body_length(&self) -> Option<u64> {
        match self {
            Self::Http1(client) => client.body_length(),
            Self::Http2(stream) => stream.body_length(),
        }
    }

    /// What is there of the response's body.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Http1(client) => client.data(),
            Self::Http2(stream) => stream.data(),
        }
    }

    /// Takes the first `count` bytes of it away.
    pub fn consume(&mut self, count: usize) {
        match self {
            Self::Http1(client) => client.consume(count),
            Self::Http2(stream) => stream.consume(count),
        }
    }

    /// The trailers of a response's body that has ended.
    pub fn trailers(&mut self) -> &mut Fields {
        match self {
            Self::Http1(client) => client.trailers(),
            Self::Http2(stream) => stream.trailers(),
        }
    }

    /// Whether nothing came back since the request was begun.
    pub const fn is_unheard(&self) -> bool {
        match self {
            Self::Http1(client) => client.is_unheard(),
            Self::Http2(stream) => stream.is_unheard(),
        }
    }

    /// Carries on with a request of which nothing has left on another connection.
    pub fn take_over(&mut self, other: &mut Self) {
        if let (Self::Http1(client), Self::Http1(other)) = (self, other) {
            client.take_over(other);
        }
    }

    /// Whether nothing of the request has left.
    pub fn is_unsent(&self) -> bool {
        match self {
            Self::Http1(client) => client.is_unsent(),
            Self::Http2(stream) => stream.is_unsent(),
        }
    }
}

/// Why a request's body did not go up.
#[derive(Debug)]
pub enum Stuck {
    /// The caller's side.
    Caller(BodyFault),
    /// The side that it goes to.
    Upstream(io::Error),
}

/// A request's body on its way up.
#[derive(Debug, Default)]
pub struct Upload {
    /// What a policy has read already, and how much of it went.
    held: Option<(Vec<u8>, usize)>,
    /// What the caller's head said of its length.
    declared: Option<u64>,
    /// Whether trailers may follow it to the next hop.
    may_trail: bool,
    over: bool,
    /// All of it was written, too.
    left: bool,
    /// When the next hop last took something of it. Whoever takes is not silent yet.
    taken: Option<Instant>,
    untouched: bool,
    /// Names that no trailer may bear.
    withheld: Vec<String>,
    /// A copy of what goes up, for policies in shadow mode.
    copied: Option<Box<Copied>>,
}

/// A copy of a body, within a bound.
#[derive(Debug)]
struct Copied {
    bytes: Vec<u8>,
    bytes_max: usize,
    is_whole: bool,
}

impl Upload {
    /// A body that streams.
    pub fn streaming(down: &Downstream<'_>) -> Self {
        Self {
            held: None,
            declared: down.body_length(),
            // In HTTP/1 they need a body whose length nobody says; in HTTP/2 they follow any that is not empty.
            may_trail: match down {
                Downstream::Http1(_) => down.body_length().is_none(),
                Downstream::Http2(_) => down.body_length() != Some(0),
            },
            over: false,
            left: false,
            taken: None,
            untouched: true,
            withheld: Vec::new(),
            copied: None,
        }
    }

    /// A body that was read before. `declared`: what the caller's head said of its length.
    pub const fn held(bytes: Vec<u8>, declared: Option<u64>) -> Self {
        let held = Some((bytes, 0));
        let withheld = Vec::new();
        Self { held, declared, may_trail: true, over: false, left: false, taken: None, untouched: true, withheld, copied: None }
    }

    /// What a policy has read already.
    pub fn whole(&self) -> Option<&[u8]> {
        self.held.as_ref().map(|(bytes, _)| bytes.as_slice())
    }

    /// Has a copy kept of what goes up, as long as it has no more than `bytes_max` bytes.
    pub fn copy(&mut self, bytes_max: usize) {
        self.copied = Some(Box::new(Copied { bytes: Vec::new(), bytes_max, is_whole: true }));
    }

    /// The copy of a body that went up to its end, or why there is none; `None` if it did not, or nobody asked for one.
    pub fn copied(&mut self) -> Option<Result<Vec<u8>, String>> {
        let copied = self.copied.take_if(|_| self.over)?;
        if copied.is_whole {
            return Some(Ok(copied.bytes));
        }
        Some(Err(format!("the body is over limit `policyBodyBytes` ({})", copied.bytes_max)))
    }

    /// No trailer goes on under a name that policies read as a header, that carries the token, or by which the application is told of the
    /// user: one that merges the two would see what nobody decided on.
    pub fn withhold<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        if self.may_trail {
            self.withheld = names.cloned().collect();
        }
    }

    /// How long it is, as the next hop is told.
    pub fn length(&self, trailers: &Fields) -> Length {
        match (&self.held, self.declared) {
            (_, Some(0)) => Length::None,
            (Some((bytes, _)), _) if trailers.is_empty() => Length::Known(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            (Some(_), _) | (None, None) => Length::Unknown,
            (None, Some(length)) => Length::Known(length),
        }
    }

    /// Whether all of it has left.
    pub const fn has_left(&self) -> bool {
        self.left
    }

    /// When something of it was last taken.
    pub const fn taken(&self) -> Option<Instant> {
        self.taken
    }

    /// Whether it could be sent from its beginning once more.
    pub fn rewind(&mut self) -> bool {
        match &mut self.held {
            Some((_, at)) => {
                (*at, self.over) = (0, false);
                true
            }
            None => self.untouched && !std::mem::take(&mut self.over),
        }
    }

    /// Moves what can be moved. Ready when all of it has left.
    pub fn poll(&mut self, down: &mut Downstream<'_>, up: &mut Upstream, cx: &mut Context<'_>) -> Poll<Result<(), Stuck>> {
        loop {
            if self.over {
                ready!(up.poll_flush(cx)).map_err(Stuck::Upstream)?;
                self.left = true;
                return Poll::Ready(Ok(()));
            }
            let body = match &self.held {
                Some((bytes, at)) => Poll::Ready(Ok(if *at < bytes.len() { Body::Data } else { Body::Ended })),
                None => down.poll_body(cx),
            };
            match body {
                Poll::Pending => {
                    // What is there goes on at once; the rest may take its time.
                    let _later = up.poll_flush(cx).map_err(Stuck::Upstream)?;
                    return Poll::Pending;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(Stuck::Caller(fault))),
                Poll::Ready(Ok(Body::Ended)) => {
                    let trailers = down.trailers();
                    forward_trailers(trailers);
                    if !self.withheld.is_empty() {
                        trailers.retain(|name, _| !self.withheld.iter().any(|withheld| is_spelt(name, withheld)));
                    }
                    up.finish(trailers);
                    self.over = true;
                }
                Poll::Ready(Ok(Body::Data)) => {
                    match &mut self.held {
                        Some((bytes, at)) => {
                            *at += ready!(up.poll_write(cx, bytes.get(*at..).unwrap_or_default())).map_err(Stuck::Upstream)?;
                        }
                        None => {
                            let count = ready!(up.poll_write(cx, down.data())).map_err(Stuck::Upstream)?;
                            if let Some(copied) = &mut self.copied {
                                copied.add(down.data().get(..count).unwrap_or_default());
                            }
                            down.consume(count);
                            self.untouched = false;
                        }
                    }
                    self.taken = Some(Instant::now());
                }
            }
        }
    }
}

impl Copied {
    fn add(&mut self, bytes: &[u8]) {
        self.is_whole &= self.bytes.len() + bytes.len() <= self.bytes_max;
        if self.is_whole {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.bytes = Vec::new();
        }
    }
}

/// Moves a response's body down to its end, and flushes.
///
/// # Errors
/// - which side broke.
pub fn poll_download(
    up: &mut Upstream,
    down: &mut Downstream<'_>,
    over: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Fallen>> {
    loop {
        if *over {
            return down.poll_flush(cx).map_err(|_| Fallen::Caller);
        }
        match up.poll_body(cx) {
            Poll::Pending => {
                let _later = down.poll_flush(cx).map_err(|_| Fallen::Caller)?;
                return Poll::Pending;
            }
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(Fallen::Upstream(fault))),
            Poll::Ready(Ok(Body::Ended)) => {
                forward_trailers(up.trailers());
                down.finish(up.trailers());
                *over = true;
            }
            Poll::Ready(Ok(Body::Data)) => {
                let count = ready!(down.poll_write(cx, up.data())).map_err(|_| Fallen::Caller)?;
                up.consume(count);
            }
        }
    }
}

/// Who broke in the middle of a response.
#[derive(Debug)]
pub enum Fallen {
    /// The caller does not take it any more.
    Caller,
    /// It does not come.
    Upstream(ClientFault),
}
