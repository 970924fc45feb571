//! Bytes that wait to be written: one buffer for everything, used again.

use super::error::ErrorCode;
use super::frame::{Frame, HEADER_BYTES, kind, narrow};

/// Written bytes in front of the buffer beyond which it is moved together, if they are also the larger part.
const WRITTEN_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// Bytes of control frames that wait, as if they were written before everything else: what really waits is more by what was in
    /// front of them at most, and that is bounded.
    control: usize,
    /// Something was put here since [`Output::trim`].
    used: bool,
}

impl Output {
    #[inline]
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Bytes of control frames that wait. Bodies never count here, or two sides that send to each other would stop reading for it,
    /// and wait for each other for ever.
    #[inline]
    pub(super) fn control(&self) -> usize {
        self.control
    }

    pub(super) fn sent(&mut self, count: usize) {
        self.control = self.control.saturating_sub(count);
        self.written = self.written.saturating_add(count).min(self.bytes.len());
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
            self.control = 0;
        } else if self.written > WRITTEN_BYTES_MAX && self.written > self.len() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Gives the memory back if nothing was written since the last call.
    pub(super) fn trim(&mut self) {
        if self.bytes.is_empty() && !self.used {
            self.bytes = Vec::new();
        }
        self.used = false;
    }

    #[inline]
    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.used = true;
        self.bytes.extend_from_slice(&Frame { length: narrow(payload.len()), kind, flags, stream }.header());
        self.bytes.extend_from_slice(payload);
    }

    /// A frame that is not bounded by room for bodies.
    #[inline]
    pub(super) fn control_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.control += HEADER_BYTES + payload.len();
        self.frame(kind, flags, stream, payload);
    }

    pub(super) fn reset(&mut self, stream: u32, code: ErrorCode) {
        self.control_frame(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
    }

    pub(super) fn window_update(&mut self, stream: u32, bytes: u32) {
        self.control_frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    }

    pub(super) fn goaway(&mut self, last: u32, code: ErrorCode) {
        let [a, b, c, d] = last.to_be_bytes();
        let [e, f, g, h] = code.0.to_be_bytes();
        self.control_frame(kind::GOAWAY, 0, 0, &[a, b, c, d, e, f, g, h]);
    }

    /// Writes a field block with `block`, and gives it its frames: HEADERS and, where it is longer than `frame_bytes_max`,
    /// CONTINUATION. `flags`: those of HEADERS beside END_HEADERS. RFC 9113 §4.3.
    pub(super) fn field_block(&mut self, flags: u8, stream: u32, frame_bytes_max: usize, block: impl FnOnce(&mut Vec<u8>)) {
        self.used = true;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        block(&mut self.bytes);
        let length = self.bytes.len() - start - HEADER_BYTES;
        if length <= frame_bytes_max {
            let header =
                Frame { length: narrow(length), kind: kind::HEADERS, flags: flags | super::frame::flag::END_HEADERS, stream };
            if let Some(place) = self.bytes.get_mut(start..start + HEADER_BYTES) {
                place.copy_from_slice(&header.header());
            }
            return;
        }
        let whole = self.bytes.split_off(start);
        let mut kind = kind::HEADERS;
        let mut flags = flags;
        let mut parts = whole.get(HEADER_BYTES..).unwrap_or_default().chunks(frame_bytes_max.max(1)).peekable();
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { super::frame::flag::END_HEADERS } else { 0 };
            self.frame(kind, flags | last, stream, part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// Puts bytes that are no frame.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}
