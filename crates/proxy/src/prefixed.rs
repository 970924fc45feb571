//! Looking at the first bytes of a connection and giving them back.

use crate::detect::{Guess, detect};
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes asked for in one read of what a client says first.
const READ_BYTES: usize = 1024;

/// A stream of which some bytes were read already: they come first.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: BytesMut,
    inner: S,
}

impl<S> Prefixed<S> {
    /// A stream with the bytes that were read from it.
    pub const fn new(prefix: BytesMut, inner: S) -> Self {
        Self { prefix, inner }
    }
}

/// Reads into `prefix` until it is clear what the client speaks; one that ends before speaks nothing that is HTTP.
///
/// # Errors
/// - the stream's.
///
/// Cancel safety: what was read is in `prefix`.
pub async fn first_words<S: AsyncRead + Unpin>(stream: &mut S, prefix: &mut BytesMut) -> io::Result<Guess> {
    loop {
        match detect(prefix) {
            Guess::Unclear => {}
            clear => return Ok(clear),
        }
        prefix.reserve(READ_BYTES);
        if stream.read_buf(prefix).await? == 0 {
            return Ok(Guess::Opaque);
        }
    }
}

/// The first byte of a connection, left in it; `None` if it ended before.
///
/// # Errors
/// - the operating system's.
pub async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0; 1];
    let count = stream.peek(&mut byte).await?;
    Ok(byte.first().copied().filter(|_| count > 0))
}

/// Reads until it is certain whether the connection begins with the HTTP/2 preface; what was read stays in the stream.
///
/// # Errors
/// - the stream's.
pub async fn read_preface<S: AsyncRead + Unpin>(mut inner: S) -> io::Result<(Prefixed<S>, bool)> {
    let mut prefix = BytesMut::with_capacity(1024);
    loop {
        let certain = prefix.len().min(HTTP2_PREFACE.len());
        if prefix.get(..certain) != HTTP2_PREFACE.get(..certain) {
            return Ok((Prefixed { prefix, inner }, false));
        }
        if certain == HTTP2_PREFACE.len() {
            return Ok((Prefixed { prefix, inner }, true));
        }
        if inner.read_buf(&mut prefix).await? == 0 {
            return Ok((Prefixed { prefix, inner }, false));
        }
    }
}

/// Reads and forgets up to `limit` bytes.
///
/// # Errors
/// - the stream's.
pub async fn discard<S: AsyncRead + Unpin>(stream: &mut S, limit: usize) -> io::Result<()> {
    let mut scratch = [0; 4096];
    let mut left = limit;
    while left > 0 {
        let count = stream.read(&mut scratch).await?;
        if count == 0 {
            return Ok(());
        }
        left = left.saturating_sub(count);
    }
    Ok(())
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(self.prefix.get(..count).unwrap_or_default());
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    // Without these two hyper would fall back to copying every write into one buffer.
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_preface_is_recognised_at_any_split_and_nothing_is_lost() {
        for (sent, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
            (b"PRI / HTTP/1.1\r\nhost: a\r\n\r\n", false),
            (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", false),
            (b"P", false),
            (b"", false),
        ] {
            for step in [1, 5, 64] {
                let chunks: Vec<Vec<u8>> = sent.chunks(step).map(<[u8]>::to_vec).collect();
                let (mut stream, preface) = read_preface(Chunks(chunks)).await.expect("read");
                assert_eq!(preface, expected, "{sent:?} by {step}");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.expect("rest");
                assert_eq!(all, sent, "by {step}");
            }
        }
    }

    /// Gives one chunk a read.
    struct Chunks(Vec<Vec<u8>>);

    impl AsyncRead for Chunks {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.0.is_empty() {
                let chunk = self.0.remove(0);
                buf.put_slice(&chunk);
            }
            Poll::Ready(Ok(()))
        }
    }
}
