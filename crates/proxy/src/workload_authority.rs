//! Lets callers of gRPC's C core in: over a Unix socket they name the server by the socket's path with percent signs, which is no
//! `:authority` (RFC 3986 §3.2.2), and the HTTP/2 of the server resets their streams for it.
//!
//! The name says nothing to a server behind a socket. Its percent signs are overwritten on the way in, where HPACK has the name and
//! the value as plain literals, as that library writes them. Nothing else is touched, and no length changes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113 §3.4.
const PREFACE_BYTES: usize = 24;
/// RFC 9113 §4.1.
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
/// LIMIT: bytes of a HEADERS frame that is looked into; the server takes none that is larger.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// The field's name as a literal of its length (RFC 7541 §5.2).
const NAME: &[u8] = b"\x0a:authority";

/// A stream of HTTP/2 from a client.
#[derive(Debug)]
pub(crate) struct Lenient<S> {
    inner: S,
    /// Bytes of the preface or of a frame that still pass as they are.
    passing: usize,
    has_begun: bool,
    /// A frame's head, and the whole of a HEADERS frame, until it is complete.
    held: Vec<u8>,
    /// What was looked at and waits for the reader.
    ready: Vec<u8>,
}

impl<S> Lenient<S> {
    pub(crate) const fn new(inner: S) -> Self {
        Self { inner, passing: PREFACE_BYTES, has_begun: false, held: Vec::new(), ready: Vec::new() }
    }

    /// Whether the whole preface has come.
    pub(crate) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (now, later) = bytes.split_at(self.passing.min(bytes.len()));
                self.ready.extend_from_slice(now);
                self.passing -= now.len();
                self.has_begun |= self.passing == 0;
                bytes = later;
                continue;
            }
            let wanted = frame_bytes(&self.held);
            let (now, later) = bytes.split_at((wanted - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() < FRAME_HEAD_BYTES {
                continue;
            }
            let whole = frame_bytes(&self.held);
            let is_looked_at = self.held.get(3) == Some(&HEADERS) && whole <= HEADERS_BYTES_MAX;
            if !is_looked_at {
                self.passing = whole - self.held.len();
            } else if self.held.len() < whole {
                continue;
            } else {
                overwrite(&mut self.held);
            }
            self.ready.append(&mut self.held);
        }
    }
}

/// The bytes of a frame whose beginning this is: of its head, as long as that is not whole.
fn frame_bytes(begun: &[u8]) -> usize {
    match begun {
        [high, middle, low, ..] if begun.len() >= FRAME_HEAD_BYTES => {
            FRAME_HEAD_BYTES + (usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low))
        }
        _ => FRAME_HEAD_BYTES,
    }
}

/// Overwrites the percent signs of a literal `:authority` whose value is not Huffman-coded and shorter than 127 bytes.
fn overwrite(frame: &mut [u8]) {
    let Some(at) = frame.windows(NAME.len()).position(|window| window == NAME) else { return };
    let Some((length, rest)) = frame.get_mut(at + NAME.len()..).and_then(<[u8]>::split_first_mut) else { return };
    if *length >= 0x7f {
        return;
    }
    for byte in rest.iter_mut().take(usize::from(*length)).filter(|byte| **byte == b'%') {
        *byte = b'-';
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.take(read.filled());
        }
        let count = this.ready.len().min(buf.remaining());
        buf.put_slice(this.ready.get(..count).unwrap_or_default());
        this.ready.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn only_a_plain_authority_is_touched_however_the_bytes_arrive() {
        let value =
            |text: &str| [b"@\x0a:authority".as_slice(), &[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
        let (before, after) = (value("tmp%2Fa.sock"), value("tmp-2Fa.sock"));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // In a DATA frame the same bytes are the caller's own.
        let whole =
            |headers: &[u8]| [preface.clone(), frame(4, &[]), frame(1, headers), frame(0, &before), frame(1, b"x%y")].concat();
        for step in [1, 2, 7, 24, 4096] {
            let mut lenient = Lenient::new(());
            for bytes in whole(&before).chunks(step) {
                lenient.take(bytes);
            }
            assert_eq!(lenient.ready, whole(&after), "{step}");
        }
    }

    #[test]
    fn a_frame_that_is_cut_or_too_large_is_not_waited_for() {
        let mut lenient = Lenient::new(());
        lenient.take(&[0; PREFACE_BYTES]);
        let large = frame(1, &vec![b'%'; HEADERS_BYTES_MAX]);
        lenient.take(&large[..100]);
        assert_eq!(lenient.ready.len(), PREFACE_BYTES + 100, "passed on as it is");
        for (name, value) in [("cut before its length", b"\x0a:authority".as_slice()), ("a long length", b"\x0a:authority\x7f%")]
        {
            let mut bytes = value.to_vec();
            overwrite(&mut bytes);
            assert_eq!(bytes, value, "{name}");
        }
        let mut bytes = b"\x0a:authority\x05%%".to_vec();
        overwrite(&mut bytes);
        assert_eq!(bytes, b"\x0a:authority\x05--", "what is there of it");
    }
}
