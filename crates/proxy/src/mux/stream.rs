//! One of the streams of a connection, as a byte stream like any other.

use super::{DATA, END, FRAME_BYTES_MAX, Mux, OUTPUT_BYTES_MAX, RESET, Slot, WINDOW, WINDOW_BYTES};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) id: u32,
    pub(super) mux: Mux,
}

impl Stream {
    /// The connection that it is a stream of.
    pub const fn mux(&self) -> &Mux {
        &self.mux
    }

    /// Whether the other end has ended or reset it, or sent something that nobody asked for.
    pub fn is_spent(&self) -> bool {
        let state = self.mux.0.lock();
        let spent = |slot: &Slot| slot.peer_ended || slot.reset || slot.we_ended || !slot.inbox.is_empty();
        state.ended.is_some() || state.streams.get(&self.id).is_none_or(spent)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.mux.0.lock();
        let state = &mut *guard;
        let Some(slot) = state.streams.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        let count = slot.inbox.len().min(buf.remaining());
        if count > 0 {
            buf.put_slice(slot.inbox.data().get(..count).unwrap_or_default());
            slot.inbox.consume(count);
            slot.read += u32::try_from(count).unwrap_or(u32::MAX);
            if slot.read >= WINDOW_BYTES / 2 && !slot.peer_ended {
                let more = std::mem::take(&mut slot.read);
                slot.receive_window += more;
                state.control(WINDOW, self.id, &more.to_be_bytes());
            }
            return Poll::Ready(Ok(()));
        }
        if slot.peer_ended {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.error()));
        }
        if slot.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        slot.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut guard = self.mux.0.lock();
        let state = &mut *guard;
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.error()));
        }
        let crowded = state.output.len() >= OUTPUT_BYTES_MAX;
        let Some(slot) = state.streams.get_mut(&self.id).filter(|slot| !slot.reset && !slot.we_ended) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let window = usize::try_from(slot.send_window).unwrap_or(usize::MAX);
        let count = buf.len().min(window).min(FRAME_BYTES_MAX);
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if count == 0 || crowded {
            slot.writer = Some(cx.waker().clone());
            if crowded && !state.crowded.iter().any(|known| known.will_wake(cx.waker())) {
                state.crowded.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        slot.send_window -= u32::try_from(count).unwrap_or(u32::MAX);
        state.frame(DATA, self.id, buf.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.mux.0.lock();
        if let Some(slot) = state.streams.get_mut(&self.id)
            && !slot.we_ended
            && !slot.reset
        {
            slot.we_ended = true;
            state.control(END, self.id, &[]);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.mux.0.lock();
        let Some(slot) = state.streams.remove(&self.id) else { return };
        if !(slot.reset || slot.we_ended && slot.peer_ended) {
            state.control(RESET, self.id, &[]);
        }
        // The last stream of a connection that is being left takes it along.
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
    }
}
