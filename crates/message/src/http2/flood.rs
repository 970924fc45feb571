//! Bounds on work that a peer makes for nothing. There is no clock here: a peer has credits, spends them on work that leads
//! nowhere, and regains them with work that leads somewhere and as the driver says that time has passed.

use super::error::ConnectionError;

/// LIMIT: requests reset by the client before their answer was sent in full, or refused as malformed. Opening and resetting a stream costs an
/// attacker 30 bytes and us a request with all it leads to (CVE-2023-44487; and with resets provoked from us, CVE-2025-8671). A
/// client that gives up a full window of 256 requests twice in a moment is within the bound.
const RESETS_MAX: u32 = 512;
/// LIMIT: resets regained per second: what a client with deadlines of half a second and all its streams taken by them resets. As many
/// wasted requests are an ordinary load.
const RESETS_PER_SECOND: u32 = 512;
/// Calls of `second_passed` that a stream must have seen for its reset to cost nothing: it lived for a second at least. Who keeps
/// streams open that long is bounded by the number of concurrent ones.
pub(super) const LIFE_SECONDS: u32 = 2;

/// LIMIT: frames that carry nothing: PING, SETTINGS, PRIORITY, empty DATA, unknown types, frames for closed streams. Each costs
/// its sender 9 to 17 bytes, and us an answer at worst. Ten thousand are some milliseconds of work.
const IDLE_FRAMES_MAX: u32 = 10_000;
/// LIMIT: idle frames regained per second: many times what keep-alive and bandwidth probes send.
const IDLE_FRAMES_PER_SECOND: u32 = 1000;
/// Idle frames regained with a request, its priority and its window updates among them.
const IDLE_FRAMES_PER_HEAD: u32 = 8;

/// LIMIT: CONTINUATION frames of one field block. With frames of the smallest allowed maximum this is a mebibyte; who sends less in
/// each sends them to cost work (CERT VU#421644).
pub(super) const CONTINUATIONS_MAX: u32 = 64;
/// LIMIT: bytes of one field block as they come, over `Settings::head_bytes_max`. Up to here a head that is too large is still
/// decoded, so that it can be answered with 431; beyond, the connection ends.
pub(super) const BLOCK_FACTOR: usize = 4;
/// LIMIT: the part of a field block that waits for the rest of its line, over `Settings::head_bytes_max`. Nothing else of a block
/// is kept as it came.
pub(super) const LINE_FACTOR: usize = 2;

/// LIMIT: heads that wait for the application on one stream: one final head and the informational ones before it.
pub(super) const HEADS_MAX: usize = 8;
/// LIMIT: streams that we have reset and whose frames may still be on their way; four bytes each. Frames for older ones are ignored as
/// well, as we cannot tell.
pub(super) const RESET_STREAMS_MAX: usize = 1024;
/// LIMIT: streams that ended and are remembered to tell the peer which rule it breaks. Not needed for correctness.
pub(super) const ENDED_STREAMS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Credits {
    resets: u32,
    idle_frames: u32,
}

impl Credits {
    pub(super) fn new() -> Self {
        Self { resets: RESETS_MAX, idle_frames: IDLE_FRAMES_MAX }
    }

    /// A stream was reset without an answer by the peer's doing.
    pub(super) fn spend_reset(&mut self) -> Result<(), ConnectionError> {
        self.resets = self.resets.checked_sub(1).ok_or(ConnectionError::TooManyResets)?;
        Ok(())
    }

    /// A frame that carries nothing.
    pub(super) fn spend_idle_frame(&mut self) -> Result<(), ConnectionError> {
        self.idle_frames = self.idle_frames.checked_sub(1).ok_or(ConnectionError::TooManyIdleFrames)?;
        Ok(())
    }

    /// A message's head came or was sent whole.
    #[inline]
    pub(super) fn head(&mut self) {
        self.idle_frames = (self.idle_frames + IDLE_FRAMES_PER_HEAD).min(IDLE_FRAMES_MAX);
    }

    /// Part of a body came or was sent. Bandwidth probes answer to data that we send with a PING each.
    #[inline]
    pub(super) fn body(&mut self) {
        self.idle_frames = (self.idle_frames + 1).min(IDLE_FRAMES_MAX);
    }

    /// A request was answered to its end.
    #[inline]
    pub(super) fn answered(&mut self) {
        self.resets = (self.resets + 1).min(RESETS_MAX);
    }

    pub(super) fn second_passed(&mut self) {
        self.resets = (self.resets + RESETS_PER_SECOND).min(RESETS_MAX);
        self.idle_frames = (self.idle_frames + IDLE_FRAMES_PER_SECOND).min(IDLE_FRAMES_MAX);
    }
}
