//! Looking at the first bytes of a connection and giving them back.

use crate::detect::{Guess, detect};
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

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

/// Reads into `prefix` until it is clear what the client speaks; one that ends before speaks nothing that is HTTP, and one that
/// takes longer than `patience` from its first byte on leaves it unclear.
///
/// # Errors
/// - the stream's.
///
/// Cancel safety: what was read is in `prefix`.
pub async fn first_words<S: AsyncRead + Unpin>(stream: &mut S, prefix: &mut BytesMut, patience: Duration) -> io::Result<Guess> {
    let mut by = None;
    loop {
        match detect(prefix) {
            Guess::Unclear => {}
            clear => return Ok(clear),
        }
        prefix.reserve(READ_BYTES);
        let read = stream.read_buf(prefix);
        let count = match by {
            None => read.await?,
            Some(by) => match timeout_at(by, read).await {
                Ok(read) => read?,
                Err(_) => return Ok(Guess::Unclear),
            },
        };
        by.get_or_insert_with(|| Instant::now() + patience);
        if count == 0 {
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

/// What a caller may still send while it is told that its connection ends.
const LAST_WORDS_READ_MAX: usize = 64 * 1024;

/// Sends an answer and ends the connection. What the caller still sends is read, bounded, so that its kernel does not discard
/// the answer with a reset.
///
/// # Errors
/// - the stream's.
pub async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    discard(stream, LAST_WORDS_READ_MAX).await
}

/// Reads and forgets up to `limit` bytes.
///
/// # Errors
/// - the stream's.
async fn discard<S: AsyncRead + Unpin>(stream: &mut S, limit: usize) -> io::Result<()> {
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

    // Without these two whoever writes would copy what lies in several places into one.
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
