//! Writing messages: the head as lines, the body in whichever framing the head announced.

use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::Io;
use message::{Fields, Head, Version};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// How long a body is, as far as is known when its head is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is none, and none is announced.
    None,
    /// So many bytes.
    Known(u64),
    /// It ends where it ends.
    Unknown,
}

/// A body of so many bytes at least is handed to the kernel from where it lies.
const DIRECT_BYTES_MIN: usize = 8 * 1024;
/// Less room than this is not filled up: what waits is written first.
const ROOM_BYTES_MIN: usize = 8 * 1024;
/// LIMIT: bytes that wait to be written before more is taken.
const WAITING_BYTES_MAX: usize = BUFFER_BYTES;
/// What frames a chunk: 16 digits and two line ends at most.
const CHUNK_FRAMING_BYTES: usize = 20;

/// What is written of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Framing {
    #[default]
    Ended,
    Length(u64),
    Chunked,
    UntilClose,
}

/// The bytes on their way out of one connection.
#[derive(Debug, Default)]
pub(super) struct Writing {
    output: Buffer,
    framing: Framing,
    unflushed: bool,
    /// Whether some of the message under way has left.
    left: bool,
}

impl Writing {
    /// Whether nothing of the message under way has left.
    pub(super) const fn is_untouched(&self) -> bool {
        !self.left
    }

    fn poll_drain(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.output.len();
        let polled = self.output.poll_drain(io, cx);
        self.left |= self.output.len() < before;
        polled
    }

    /// Whether the message under way is whole, as far as we know of it.
    pub(super) const fn is_ended(&self) -> bool {
        matches!(self.framing, Framing::Ended)
    }

    /// Whether anything waits to be written.
    pub(super) const fn is_empty(&self) -> bool {
        self.output.is_empty()
    }

    /// A request's first line and lines.
    pub(super) fn request(&mut self, head: &Head, host: &[u8], length: Length) {
        self.left = false;
        self.output.push_all([&head.method, b" ", &head.path, b" HTTP/1.1\r\n"]);
        self.line(b"host", host);
        self.lines(&head.fields, length, b"host");
    }

    /// A response's first line and lines. `close` is said as the version understands it.
    pub(super) fn response(&mut self, head: &Head, length: Length, version: Version, keep: bool) {
        let [a, b, c] = [head.status / 100 % 10, head.status / 10 % 10, head.status % 10]
            .map(|digit| b'0' + u8::try_from(digit).unwrap_or_default());
        let phrase = if head.reason.is_empty() { phrase(head.status) } else { head.reason.as_slice() };
        // A caller of HTTP/1.0 is told that it was understood as such.
        let minor = if version == Version::Http10 { b'0' } else { b'1' };
        self.output.push_all([b"HTTP/1.", &[minor, b' ', a, b, c, b' '], phrase, b"\r\n"]);
        match (version, keep) {
            (_, false) if head.status != 101 => self.line(b"connection", b"close"),
            (Version::Http10, true) => self.line(b"connection", b"keep-alive"),
            _ => {}
        }
        if version == Version::Http10 && length == Length::Unknown {
            self.lines(&head.fields, Length::None, b"");
            self.framing = Framing::UntilClose;
        } else {
            // RFC 9110 §8.6: these have no length at all.
            let without: &[u8] = if matches!(head.status, 100..=199 | 204) { b"content-length" } else { b"" };
            self.lines(&head.fields, length, without);
        }
    }

    /// An interim response (1xx).
    pub(super) fn interim(&mut self, head: &Head) {
        self.response(head, Length::None, Version::Http11, true);
    }

    fn lines(&mut self, fields: &Fields, length: Length, without: &[u8]) {
        for (name, value) in fields.iter() {
            // The length is written by what is known of the body, not by what somebody said.
            if name != without && (name != b"content-length" || length == Length::None) {
                self.line(name, value);
            }
        }
        self.framing = match length {
            Length::None => Framing::Ended,
            Length::Known(length) => {
                let mut text = [0; 20];
                self.line(b"content-length", decimal(length, &mut text));
                if length == 0 { Framing::Ended } else { Framing::Length(length) }
            }
            Length::Unknown => {
                self.line(b"transfer-encoding", b"chunked");
                Framing::Chunked
            }
        };
        self.output.push(b"\r\n");
    }

    fn line(&mut self, name: &[u8], value: &[u8]) {
        self.output.push_all([name, b": ", value, b"\r\n"]);
    }

    /// Bytes that are a message already.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }

    /// Takes some of a body; how much of it. Pending: nothing, until what waits was written.
    pub(super) fn poll_data(&mut self, io: &mut Io, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let is_direct = matches!(self.framing, Framing::Length(_)) && data.len() >= DIRECT_BYTES_MIN;
        let wanted = data.len().min(ROOM_BYTES_MIN) + CHUNK_FRAMING_BYTES;
        if !self.output.is_empty() && (is_direct || self.output.len() + wanted > WAITING_BYTES_MAX) {
            ready!(self.poll_drain(io, cx))?;
        }
        let room = WAITING_BYTES_MAX.saturating_sub(self.output.len()).max(1);
        let taken = match self.framing {
            Framing::Ended => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "more of a body than was announced")));
            }
            Framing::Chunked => {
                let count = data.len().min(room.saturating_sub(CHUNK_FRAMING_BYTES).max(1));
                self.chunk(data.get(..count).unwrap_or_default());
                count
            }
            Framing::Length(left) => {
                let data = data.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(data);
                let count = if self.output.is_empty() && data.len() >= DIRECT_BYTES_MIN {
                    (self.unflushed, self.left) = (true, true);
                    ready!(Pin::new(io).poll_write(cx, data))?
                } else {
                    let count = data.len().min(room);
                    self.output.push(data.get(..count).unwrap_or_default());
                    count
                };
                let left = left - u64::try_from(count).unwrap_or(left);
                self.framing = if left == 0 { Framing::Ended } else { Framing::Length(left) };
                count
            }
            Framing::UntilClose => {
                let count = data.len().min(room);
                self.output.push(data.get(..count).unwrap_or_default());
                count
            }
        };
        Poll::Ready(Ok(taken))
    }

    fn chunk(&mut self, data: &[u8]) {
        let mut digits = [0; 16];
        self.output.push(hexadecimal(data.len(), &mut digits));
        self.output.push(b"\r\n");
        self.output.push(data);
        self.output.push(b"\r\n");
    }

    /// The end of a body. A known length that was not reached makes the message one that never ends: false.
    pub(super) fn finish(&mut self, trailers: &Fields) -> bool {
        match std::mem::take(&mut self.framing) {
            Framing::Ended => true,
            Framing::UntilClose => {
                self.framing = Framing::UntilClose;
                true
            }
            Framing::Chunked => {
                self.output.push(b"0\r\n");
                for (name, value) in trailers.iter() {
                    self.line(name, value);
                }
                self.output.push(b"\r\n");
                true
            }
            Framing::Length(left) => {
                self.framing = Framing::Length(left);
                false
            }
        }
    }

    /// Writes everything that waits.
    pub(super) fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.output.is_empty() {
            self.unflushed = true;
            ready!(self.poll_drain(io, cx))?;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

fn decimal(mut number: u64, text: &mut [u8; 20]) -> &[u8] {
    let mut used = 0;
    for place in text.iter_mut().rev() {
        *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    text.get(text.len() - used..).unwrap_or_default()
}

fn hexadecimal(mut number: usize, text: &mut [u8; 16]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut used = 0;
    for place in text.iter_mut().rev() {
        *place = DIGITS.get(number % 16).copied().unwrap_or_default();
        number /= 16;
        used += 1;
        if number == 0 {
            break;
        }
    }
    text.get(text.len() - used..).unwrap_or_default()
}

/// The usual phrase of a status; empty for one that has none.
fn phrase(status: u16) -> &'static [u8] {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 1, 9, 10, 4096, 65_535, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
            let size = usize::try_from(number).unwrap();
            assert_eq!(hexadecimal(size, &mut [0; 16]), format!("{size:x}").as_bytes());
        }
    }
}
