//! Bytes on their way. A buffer holds memory only while it holds bytes: what is idle costs nothing, and a worker's next buffer is
//! its last one.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a buffer that did not have to grow: four full TLS records, so that large bodies need few system calls.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of a buffer for one of many streams, most of which carry small messages.
pub const SMALL_BYTES: usize = 4 * 1024;
/// LIMIT: empty buffers that a worker keeps for the next use.
const SPARE_MAX: usize = 16;
/// LIMIT: the same, of small ones.
const SPARE_SMALL_MAX: usize = 128;

#[derive(Default)]
struct Spare {
    large: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
}

thread_local! {
    /// Each worker is one thread, so nobody else asks for these.
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// A queue of bytes: filled at its end, taken from its beginning.
#[derive(Default)]
pub struct Buffer {
    /// Initialised to its length; empty while nothing is held.
    memory: Vec<u8>,
    start: usize,
    end: usize,
    is_small: bool,
}

impl Buffer {
    /// A buffer that begins with little memory.
    pub fn small() -> Self {
        Self { memory: Vec::new(), start: 0, end: 0, is_small: true }
    }

    /// A buffer that begins with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        buffer.push(bytes);
        buffer
    }

    /// What it holds.
    pub fn data(&self) -> &[u8] {
        self.memory.get(self.start..self.end).unwrap_or_default()
    }

    /// How many bytes it holds.
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it holds nothing.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes the first `count` bytes away; all of them if there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
        if self.is_empty() {
            self.let_go();
        }
    }

    /// Adds bytes, growing as it must: whoever calls it knows a bound.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_all([bytes]);
    }

    /// Adds several pieces, one behind the other.
    #[inline]
    pub fn push_all<const N: usize>(&mut self, pieces: [&[u8]; N]) {
        let count = pieces.iter().map(|piece| piece.len()).sum();
        if count == 0 {
            return;
        }
        if self.memory.len() - self.end < count {
            self.room(count);
        }
        let Some(mut room) = self.memory.get_mut(self.end..self.end + count) else { return };
        for piece in pieces {
            let Some((place, rest)) = room.split_at_mut_checked(piece.len()) else { return };
            place.copy_from_slice(piece);
            room = rest;
        }
        self.end += count;
    }

    /// Reads once from `io`; 0 at its end. A full buffer grows up to twice its size, so that whoever calls it must know when to stop.
    pub fn poll_fill<T: AsyncRead + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(self.room(1));
        let polled = Pin::new(io).poll_read(cx, &mut read);
        let count = read.filled().len();
        self.end += count;
        if self.is_empty() {
            self.let_go();
        }
        polled.map_ok(|()| count)
    }

    /// Writes what it holds to `io`, in as few calls as it takes.
    pub fn poll_drain<T: AsyncWrite + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let count = ready!(Pin::new(&mut *io).poll_write(cx, self.data()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// At least `least` bytes behind what it holds.
    fn room(&mut self, least: usize) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = SPARE.with_borrow_mut(|spare| match self.is_small {
                true => spare.small.pop().unwrap_or_else(|| vec![0; SMALL_BYTES]),
                false => spare.large.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES]),
            });
        }
        if self.memory.len() - self.end < least && self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        if self.memory.len() - self.end < least {
            self.memory.resize((self.end + least).max(self.memory.len() * 2), 0);
        }
        self.memory.get_mut(self.end..).unwrap_or_default()
    }

    fn let_go(&mut self) {
        (self.start, self.end) = (0, 0);
        let memory = std::mem::take(&mut self.memory);
        // A thread that ends keeps nothing.
        let _kept = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            match memory.len() {
                BUFFER_BYTES if spare.large.len() < SPARE_MAX => spare.large.push(memory),
                SMALL_BYTES if spare.small.len() < SPARE_SMALL_MAX => spare.small.push(memory),
                _ => {}
            }
        });
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl std::fmt::Debug for Buffer {
    /// Without the bytes, which may be a token's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_an_empty_buffer_holds_no_memory() {
        let mut buffer = Buffer::default();
        let (mut pushed, mut taken) = (0_u32, 0_u32);
        for round in 0..2000_u32 {
            let bytes: Vec<u8> = (0..round % 97).flat_map(|each| (pushed + each).to_le_bytes()).collect();
            pushed += round % 97;
            buffer.push(&bytes);
            while buffer.len() > 4 * usize::try_from(round % 500).unwrap() {
                assert_eq!(buffer.data().get(..4), Some(&taken.to_le_bytes()[..]));
                taken += 1;
                buffer.consume(4);
            }
        }
        buffer.consume(usize::MAX);
        assert!(buffer.memory.is_empty() && buffer.is_empty());
        let kept = || SPARE.with_borrow(|spare| spare.large.iter().map(Vec::len).collect::<Vec<_>>());
        assert_eq!(kept(), [BUFFER_BYTES], "the next buffer is the last one");
        buffer.push(&vec![7; 3 * BUFFER_BYTES]);
        assert_eq!((buffer.len(), kept().len()), (3 * BUFFER_BYTES, 0));
        drop(buffer);
        assert_eq!(kept(), [0; 0], "a buffer that grew is kept");
        drop(Buffer::of(b"small"));
        assert_eq!(kept(), [BUFFER_BYTES]);
    }
}
