//! Connections that we opened to peers: no byte passes on one any more once the peer's SVID is revoked.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Entries after which those of connections that have ended are looked for.
const SWEEP_AT: usize = 64;

/// A TCP connection that can be cut off from elsewhere. Costs one relaxed load per read and write.
#[derive(Debug)]
pub struct Revocable {
    stream: TcpStream,
    revoked: Arc<AtomicBool>,
}

/// The open connections by the serial of the peer's SVID.
#[derive(Debug, Default)]
pub struct Opened {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_serial: HashMap<String, Vec<Weak<AtomicBool>>>,
    noted: usize,
    sweep_at: usize,
}

impl Revocable {
    /// A connection whose peer is not known yet.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, revoked: Arc::default() }
    }

    fn check(&self) -> io::Result<()> {
        if self.revoked.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer's certificate is revoked"));
        }
        Ok(())
    }
}

impl Opened {
    /// Notes with whom a connection was made.
    pub fn note(&self, connection: &Revocable, serial: &str) {
        let mut inner = self.inner.lock();
        inner.by_serial.entry(serial.to_owned()).or_default().push(Arc::downgrade(&connection.revoked));
        inner.noted += 1;
        if inner.noted >= inner.sweep_at.max(SWEEP_AT) {
            inner.sweep();
        }
    }

    /// Cuts off every connection with a peer whose serial is revoked.
    pub fn cut(&self, is_revoked: impl Fn(&str) -> bool) {
        let inner = self.inner.lock();
        let revoked = inner.by_serial.iter().filter(|(serial, _)| is_revoked(serial)).flat_map(|(_, open)| open);
        for open in revoked.filter_map(Weak::upgrade) {
            open.store(true, Ordering::Relaxed);
        }
    }
}

impl Inner {
    fn sweep(&mut self) {
        self.by_serial.retain(|_, open| {
            open.retain(|each| each.strong_count() > 0);
            !open.is_empty()
        });
        self.noted = self.by_serial.values().map(Vec::len).sum();
        self.sweep_at = self.noted * 2;
    }
}

impl AsyncRead for Revocable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Revocable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (Revocable, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().expect("bound")), listener.accept());
        (Revocable::new(ours.expect("connect")), theirs.expect("accept").0)
    }

    #[tokio::test]
    async fn no_byte_passes_once_the_peer_is_revoked_and_others_go_on() {
        let opened = Opened::default();
        let ((mut revoked, mut its_peer), (mut other, mut other_peer)) = (pair().await, pair().await);
        opened.note(&revoked, "0a");
        opened.note(&other, "0b");
        revoked.write_all(b"before").await.expect("open");
        opened.cut(|serial| serial == "0a");
        its_peer.write_all(b"late").await.expect("sent");
        other_peer.write_all(b"x").await.expect("sent");
        assert!(revoked.read_u8().await.is_err() && revoked.write_all(b"x").await.is_err());
        assert_eq!(other.read_u8().await.expect("goes on"), b'x');
    }

    #[tokio::test]
    async fn connections_that_have_ended_are_forgotten() {
        let opened = Opened::default();
        let (kept, _peer) = pair().await;
        opened.note(&kept, "ff");
        for number in 0..1000 {
            let (ended, _peer) = pair().await;
            opened.note(&ended, &format!("{number:02x}"));
        }
        let inner = opened.inner.lock();
        assert!(inner.by_serial.len() <= SWEEP_AT && inner.by_serial.contains_key("ff"), "{}", inner.by_serial.len());
    }
}
