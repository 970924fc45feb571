//! Buffers that are kept for the next message.

use crate::Fields;

use super::head::Head;

/// LIMIT: buffers of one kind that are kept: as many messages as one read commonly holds.
const COUNT_MAX: usize = 64;
/// LIMIT: bytes of one buffer, and of all buffers of one kind. Nothing is kept after a second without use.
const BYTES_MAX: usize = 16 * 1024;
const TOTAL_BYTES_MAX: usize = 256 * 1024;

/// A buffer that can be used again.
pub(super) trait Buffer: Default {
    fn clear(&mut self);
    fn capacity(&self) -> usize;
}

/// Buffers of one kind.
#[derive(Debug, Default)]
pub(super) struct Spares<T> {
    buffers: Vec<T>,
    bytes: usize,
}

impl<T: Buffer> Spares<T> {
    #[inline]
    pub(super) fn take(&mut self) -> T {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    #[inline]
    pub(super) fn put(&mut self, mut buffer: T) {
        let bytes = buffer.capacity();
        let fits = self.buffers.len() < COUNT_MAX && self.bytes + bytes <= TOTAL_BYTES_MAX;
        if fits && (1..=BYTES_MAX).contains(&bytes) {
            buffer.clear();
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Buffer for Vec<u8> {
    fn clear(&mut self) {
        Vec::clear(self);
    }

    fn capacity(&self) -> usize {
        Vec::capacity(self)
    }
}

impl Buffer for Fields {
    fn clear(&mut self) {
        Fields::clear(self);
    }

    fn capacity(&self) -> usize {
        Fields::capacity(self)
    }
}

impl Buffer for Head {
    fn clear(&mut self) {
        Head::clear(self);
    }

    fn capacity(&self) -> usize {
        Head::capacity(self)
    }
}
