//! What a message travels on: one type for every kind of connection, so that the data path is written once.

use crate::mux;
use crate::revocable::Revocable;
use identity::{ClientStream, ServerStream};
use socket2::SockRef;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A byte stream.
#[derive(Debug)]
pub enum Io {
    /// The application's own connection, or one to it.
    Plain(TcpStream),
    /// A mutual TLS connection that a peer opened.
    Accepted(Box<ServerStream<TcpStream>>),
    /// A mutual TLS connection that we opened.
    Opened(Box<ClientStream<Revocable>>),
    /// One of many streams on a mutual TLS connection between sidecars.
    Shared(mux::Stream),
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl From<ClientStream<Revocable>> for Io {
    fn from(stream: ClientStream<Revocable>) -> Self {
        Self::Opened(Box::new(stream))
    }
}

impl From<mux::Stream> for Io {
    fn from(stream: mux::Stream) -> Self {
        Self::Shared(stream)
    }
}

impl Io {
    /// The other end is to see a reset when this is dropped, where it would take a plain end for a good one. TLS and streams of the
    /// mux tell the difference by themselves.
    pub fn reset_when_dropped(&self) {
        if let Self::Plain(stream) = self {
            // A socket that refuses this ends plainly.
            let _refused = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Accepted(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Opened(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Shared(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Accepted(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Self::Opened(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Self::Shared(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Accepted(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Opened(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Shared(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Accepted(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Opened(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Shared(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
