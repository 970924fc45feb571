//! The framing guard: HTTP/1 bytes reach the parser only when no reader could see another message in them.
//!
//! Read [`guard`] and [`FramingRefusal`] first. The guard stands between a connection's stream and the HTTP library. It holds
//! each request's head back until it is complete and sound, and follows the body to its end, so that it knows where the next
//! head begins. What it lets through it does not change. What a request *means* is not its business but that of `facts`.

mod chunked;
mod head;

use bytes::{Buf, BufMut, BytesMut};
use chunked::{Chunked, Progress};
pub(crate) use head::upgrade_offers;
use head::{BodyLength, Head};
use model::{Limit, Reason};
use parking_lot::Mutex;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes of a head, from its first byte to the end of the empty line (`requestHeadBytes`). No more than this is read ahead.
    pub head_bytes_max: usize,
    /// Header lines of a head, and trailer lines of a body (`requestHeaders`).
    pub headers_max: usize,
    /// From the first byte of a head to its last (`requestHeadMs`).
    pub head_deadline: Duration,
}

/// Why the bytes of a caller are not handed to the parser. The caller must mend it, unless a limit is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingRefusal {
    /// The head is larger than the limit. The caller must send less, or the operator raise the limit.
    #[error("head of {seen} or more bytes is over limit `{}` ({limit})", Limit::RequestHeadBytes.name())]
    HeadTooLarge {
        /// The limit, in bytes.
        limit: usize,
        /// The least that the head would have been, in bytes.
        seen: usize,
    },
    /// The head has more lines than the limit.
    #[error("{seen} or more header lines are over limit `{}` ({limit})", Limit::RequestHeaders.name())]
    TooManyHeaders {
        /// The limit, in lines.
        limit: usize,
        /// The least that the head would have had, in lines.
        seen: usize,
    },
    /// The head did not arrive in time.
    #[error("head was not complete within limit `{}` ({} ms): {seen} bytes came", Limit::RequestHeadMs.name(), .limit.as_millis())]
    HeadTimeout {
        /// The limit.
        limit: Duration,
        /// The bytes that came.
        seen: usize,
    },
    /// Two readers could see two different requests in the head.
    #[error("ambiguous head: {rule}")]
    Ambiguous {
        /// What makes it ambiguous.
        rule: &'static str,
    },
    /// Two readers could see two different ends of the body. The head was let through already, so the request is under way.
    #[error("ambiguous body: {rule}")]
    AmbiguousBody {
        /// What makes it ambiguous.
        rule: &'static str,
    },
    /// The head is not one of HTTP/1.0 or HTTP/1.1.
    #[error("malformed head: {rule}")]
    Malformed {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// An HTTP/1.1 request without `Host` (RFC 9112 §3.2).
    #[error("no `Host` line")]
    HostMissing,
    /// More than one `Host` line (RFC 9112 §3.2).
    #[error("more than one `Host` line")]
    HostTwice,
}

impl FramingRefusal {
    /// The stable word.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::HeadTooLarge { .. } | Self::TooManyHeaders { .. } => Reason::HeadTooLarge,
            Self::HeadTimeout { .. } => Reason::HeadTimeout,
            Self::Ambiguous { .. } | Self::AmbiguousBody { .. } => Reason::FramingAmbiguous,
            Self::Malformed { .. } => Reason::RequestMalformed,
            Self::HostMissing | Self::HostTwice => Reason::HostInvalid,
        }
    }

    /// Whether it ended a body. Then the request was handed on already and whoever reads the body answers it; any other
    /// refusal is of a request that nobody has seen, and is answered by whoever owns the connection.
    pub const fn ends_body(&self) -> bool {
        matches!(self, Self::AmbiguousBody { .. })
    }

    /// The refusal that broke a body, from the error that its reader got: the error itself or one of its causes.
    pub fn found_in(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // An `io::Error` names the cause of what it carries as its own, and so would be stepped over.
            let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let found = carried.and_then(|carried| carried.downcast_ref()).or_else(|| error.downcast_ref());
            if let Some(refusal) = found {
                return Some(*refusal);
            }
            cause = error.source();
        }
        None
    }

    /// The same, found in a trailer section.
    const fn in_body(self) -> Self {
        match self {
            Self::Ambiguous { rule } | Self::Malformed { rule } => Self::AmbiguousBody { rule },
            Self::TooManyHeaders { .. } => Self::AmbiguousBody { rule: "more trailer lines than `requestHeaders`" },
            Self::HeadTooLarge { .. }
            | Self::HeadTimeout { .. }
            | Self::AmbiguousBody { .. }
            | Self::HostMissing
            | Self::HostTwice => self,
        }
    }
}

/// Where a guard leaves the refusal that ended its connection.
#[derive(Clone, Debug)]
pub struct Refused(Arc<Mutex<Option<FramingRefusal>>>);

impl Refused {
    /// The refusal, once. `None` if the connection ended without one.
    pub fn take(&self) -> Option<FramingRefusal> {
        self.0.lock().take()
    }

    fn waits(&self) -> bool {
        self.0.lock().is_some()
    }
}

/// Guards the requests that come in from `io`.
///
/// A refused head looks to the reader like the end of the stream, and a refused body like an error that carries the
/// [`FramingRefusal`]. As long as the refusal was not taken from the cell, `poll_shutdown` only flushes: the HTTP library
/// can end the connection in its own way, and the caller is still there to be answered.
pub fn guard<T>(io: T, rules: Rules) -> (GuardedIo<T>, Refused) {
    let refused = Refused(Arc::new(Mutex::new(None)));
    let framing = Framing { rules, phase: Phase::Head(Head::default()), switches: false };
    let io = GuardedIo { io, framing, held: BytesMut::new(), sound: 0, deadline: None, told: false, refused: refused.clone() };
    (io, refused)
}

/// A byte stream that only sound requests come out of. Writes go through untouched.
pub struct GuardedIo<T> {
    io: T,
    framing: Framing,
    /// What was read and not let through yet. Empty, without memory of its own, except in the middle of a head or of trailers, or
    /// where one read brought more than a message.
    held: BytesMut,
    /// How many bytes of `held`, from the first, may go.
    sound: usize,
    /// Armed by the first byte of a head that is not complete.
    deadline: Option<Pin<Box<Sleep>>>,
    told: bool,
    refused: Refused,
}

impl<T> GuardedIo<T> {
    /// The stream itself, without what was read ahead.
    pub fn into_inner(self) -> T {
        self.io
    }

    /// The stream and the bytes that were read from it and not let through: after a `CONNECT` or an `Upgrade` they are
    /// of the protocol that follows.
    pub fn into_parts(self) -> (T, BytesMut) {
        (self.io, self.held)
    }
}

impl<T: AsyncRead + Unpin> GuardedIo<T> {
    /// Reads into the caller's buffer and takes back what may not go yet. `false` if nothing may.
    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        // What is taken back is at most a head's worth, however large the caller's buffer is.
        let most = self.framing.left().saturating_add(self.framing.rules.head_bytes_max);
        if buf.remaining() <= most {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        } else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            buf.advance(count);
        }
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            // Between two messages a clean end; inside a body an early one, which the parser tells by itself.
            return Poll::Ready(Ok(true));
        }
        let sound = self.framing.pass(fresh);
        self.held.extend_from_slice(fresh.get(sound..).unwrap_or_default());
        buf.set_filled(before + sound);
        Poll::Ready(Ok(sound > 0))
    }

    /// Reads more of what must be complete before it may go: a head, or trailers. `false` at a clean end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let room = self.framing.rules.head_bytes_max.saturating_sub(self.held.len());
        self.held.reserve(room.min(READ_BYTES));
        let read = pin!(self.io.read_buf(&mut (&mut self.held).limit(room))).poll(cx);
        let Phase::Head(head) = &self.framing.phase else {
            return read.map_ok(|count| count > 0);
        };
        match read {
            Poll::Ready(Ok(0)) if head.is_blank() => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(0)) => {
                self.framing.refuse(FramingRefusal::Malformed { rule: "the connection ended inside the head" });
                Poll::Ready(Ok(true))
            }
            Poll::Ready(read) => Poll::Ready(read.map(|_| true)),
            Poll::Pending if head.is_blank() => Poll::Pending,
            Poll::Pending => {
                let limit = self.framing.rules.head_deadline;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(deadline.as_mut().poll(cx));
                self.framing.refuse(FramingRefusal::HeadTimeout { limit, seen: self.held.len() });
                Poll::Ready(Ok(true))
            }
        }
    }

    /// Hands out bytes that may go.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.sound.min(buf.remaining());
        buf.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.advance(count);
        self.sound -= count;
        self.deadline = None;
        if self.held.is_empty() {
            // An idle connection holds no memory.
            self.held = BytesMut::new();
        }
    }

    /// What the reader gets where nothing more goes through, if this is such a place.
    fn stopped(&mut self) -> Option<io::Result<()>> {
        let refusal = match self.framing.phase {
            Phase::Refused(refusal) => refusal,
            Phase::Switched => return Some(Ok(())),
            Phase::Head(_) | Phase::Length(_) | Phase::Chunked(_) => return None,
        };
        // Told only when the reader has come to this place: until then the messages before it have their say.
        if !self.told {
            self.told = true;
            *self.refused.0.lock() = Some(refusal);
        }
        let ends_body = refusal.ends_body();
        Some(if ends_body { Err(io::Error::new(io::ErrorKind::InvalidData, refusal)) } else { Ok(()) })
    }
}

/// LIMIT: bytes asked for in one read of a head that did not come whole.
const READ_BYTES: usize = 4096;

impl<T: AsyncRead + Unpin> AsyncRead for GuardedIo<T> {
    /// Cancel safe, and without an allocation for a head that comes in one read.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guarded = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if guarded.sound > 0 {
                guarded.give(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(stopped) = guarded.stopped() {
                return Poll::Ready(stopped);
            }
            if guarded.held.is_empty() {
                if ready!(guarded.poll_through(cx, buf))? {
                    return Poll::Ready(Ok(()));
                }
            } else {
                guarded.sound = guarded.framing.pass(&guarded.held);
                let waits = guarded.sound == 0 && guarded.framing.waits();
                if waits && !ready!(guarded.poll_more(cx))? {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GuardedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refused.waits() {
            return Pin::new(&mut self.io).poll_flush(cx);
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    // Without these two the HTTP library would copy every write into one buffer.
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<T> fmt::Debug for GuardedIo<T> {
    /// Without the bytes held back, which may be a token's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedIo").field("framing", &self.framing).field("held_bytes", &self.held.len()).finish_non_exhaustive()
    }
}

/// Where in a stream of requests we are. Pure: bytes in, how many of them may go out.
#[derive(Debug)]
struct Framing {
    rules: Rules,
    phase: Phase,
    /// The message under way asks for another protocol after it.
    switches: bool,
}

#[derive(Debug)]
enum Phase {
    /// In or before a head.
    Head(Head),
    /// In a body of which so many bytes are to come; never 0.
    Length(u64),
    /// In a chunked body.
    Chunked(Chunked),
    /// Behind a `CONNECT` or `Upgrade` request: what follows may not be HTTP. It stays held until the stream is taken apart.
    Switched,
    /// Nothing more goes through.
    Refused(FramingRefusal),
}

impl Framing {
    /// Looks at bytes of which the first is the first that did not go yet, and says how many of them may go now.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty()) {
            let count = self.step(rest);
            if count == 0 {
                break;
            }
            passed += count;
        }
        passed
    }

    fn step(&mut self, rest: &[u8]) -> usize {
        match &mut self.phase {
            Phase::Head(head) => match head.scan(rest, &self.rules) {
                Ok(None) => 0,
                Ok(Some(complete)) => {
                    self.switches = complete.switches;
                    match complete.body {
                        BodyLength::Fixed(0) => self.message_ended(),
                        BodyLength::Fixed(length) => self.phase = Phase::Length(length),
                        BodyLength::Chunked => self.phase = Phase::Chunked(Chunked::default()),
                    }
                    complete.length
                }
                Err(refusal) => {
                    self.refuse(refusal);
                    0
                }
            },
            Phase::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                if *left == 0 {
                    self.message_ended();
                }
                count
            }
            Phase::Chunked(chunked) => {
                let (count, progress) = chunked.pass(rest, &self.rules);
                match progress {
                    Progress::More => {}
                    Progress::Ended => self.message_ended(),
                    Progress::Refused(refusal) => self.refuse(refusal),
                }
                count
            }
            Phase::Switched | Phase::Refused(_) => 0,
        }
    }

    fn message_ended(&mut self) {
        self.phase = if self.switches { Phase::Switched } else { Phase::Head(Head::default()) };
    }

    fn refuse(&mut self, refusal: FramingRefusal) {
        self.phase = Phase::Refused(refusal);
    }

    /// Whether only more bytes can bring it further.
    const fn waits(&self) -> bool {
        matches!(self.phase, Phase::Head(_) | Phase::Length(_) | Phase::Chunked(_))
    }

    /// Bytes that are certainly still of the body under way.
    fn left(&self) -> usize {
        let left = match &self.phase {
            Phase::Length(left) => *left,
            Phase::Chunked(chunked) => chunked.left(),
            Phase::Head(_) | Phase::Switched | Phase::Refused(_) => 0,
        };
        usize::try_from(left).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests;
