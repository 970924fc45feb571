//! The grammar of a chunked body (RFC 9112 §7.1), stricter than the standard where readers are known to differ.

use super::head::{LENGTH_MAX, Lines, framing_word};
use super::{FramingRefusal, Rules};
use message::Fields;

/// LIMIT: digits of a chunk size; more can only be zeros or an overflow.
const SIZE_DIGITS_MAX: u8 = 16;
/// LIMIT: bytes of all chunk extensions of a body. They mean nothing to us, and other readers stop at 16 KiB.
const EXTENSION_BYTES_MAX: usize = 4096;
/// LIMIT: bytes of the trailer section, which is held back until it is complete. Other readers stop at 16 KiB.
const TRAILER_BYTES_MAX: usize = 8192;

/// A chunked body of which some bytes were seen.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    stage: Stage,
    size: u64,
    digits: u8,
    extension_bytes: usize,
    trailers: Lines,
    lenient: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Size,
    SizePadding,
    ExtensionStart,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
}

/// What the next bytes of a chunked body are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// So many bytes of data.
    Data(usize),
    /// So many bytes that only frame the data; the body goes on.
    Framing(usize),
    /// The body ends with these bytes: its last chunk and its trailers.
    Ended(usize),
    /// So many sound bytes, and after them it says two things.
    Refused(usize, FramingRefusal),
}

impl Chunked {
    /// A body of a response: applications are known to pad a chunk's size with spaces, which nobody reads in two ways.
    pub(super) fn of_response() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    /// Looks at the bytes that follow those that were taken before. `Framing(0)`: more must come first.
    pub(super) fn next(&mut self, bytes: &[u8], rules: &Rules, trailers: &mut Fields) -> Chunk {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.stage {
                Stage::Data if at > 0 => break,
                Stage::Data => {
                    let count = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len());
                    self.size = self.size.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                    if self.size == 0 {
                        self.stage = Stage::DataCr;
                    }
                    return Chunk::Data(count);
                }
                Stage::Trailers if at > 0 => break,
                Stage::Trailers => return self.trailers(bytes, rules, trailers),
                _ => match self.framing(byte) {
                    Ok(()) => at += 1,
                    Err(rule) => return Chunk::Refused(at, FramingRefusal::AmbiguousBody { rule }),
                },
            }
        }
        Chunk::Framing(at)
    }

    /// One byte between the data of two chunks.
    fn framing(&mut self, byte: u8) -> Result<(), &'static str> {
        self.stage = match (self.stage, byte) {
            (Stage::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => return self.size_digit(byte),
            (Stage::Size, b'\r') if self.digits > 0 => Stage::SizeLf,
            (Stage::Size, b';') if self.digits > 0 => Stage::ExtensionStart,
            (Stage::Size | Stage::SizePadding, b' ') if self.digits > 0 && self.lenient => Stage::SizePadding,
            (Stage::SizePadding, b'\r') => Stage::SizeLf,
            (Stage::Size | Stage::SizePadding, _) => return Err("a chunk size that is not hexadecimal digits alone"),
            (Stage::Extension, b'\r') => Stage::SizeLf,
            // White space is allowed here by the standard and never sent; a line feed here has split messages in two before.
            (Stage::ExtensionStart | Stage::Extension, b'!'..=b'~') => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err("chunk extensions of more than 4096 bytes");
                }
                Stage::Extension
            }
            (Stage::ExtensionStart | Stage::Extension, _) => return Err("a chunk extension that is not visible ASCII"),
            (Stage::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { Stage::Trailers } else { Stage::Data }
            }
            (Stage::DataCr, b'\r') => Stage::DataLf,
            (Stage::DataLf, b'\n') => Stage::Size,
            (Stage::SizeLf, _) => return Err("a chunk size line that does not end in CRLF"),
            (Stage::DataCr | Stage::DataLf | Stage::Data | Stage::Trailers, _) => {
                return Err("a chunk that does not end in CRLF");
            }
        };
        Ok(())
    }

    fn size_digit(&mut self, byte: u8) -> Result<(), &'static str> {
        let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
        self.digits += 1;
        // INVARIANT: at most 16 digits of 4 bits, so the shift loses none.
        if self.digits > SIZE_DIGITS_MAX {
            return Err("a chunk size of more than 16 digits");
        }
        self.size = (self.size << 4) | digit;
        if self.size > LENGTH_MAX { Err("a chunk size of 2^63 or more") } else { Ok(()) }
    }

    /// The trailer section, which `bytes` begin with: nothing of it goes before all of it may.
    fn trailers(&mut self, bytes: &[u8], rules: &Rules, trailers: &mut Fields) -> Chunk {
        let limit = TRAILER_BYTES_MAX.min(rules.head_bytes_max);
        let bytes = bytes.get(..limit).unwrap_or(bytes);
        let ended = self.trailers.scan(bytes, rules.headers_max, |name, value| match framing_word(name) {
            // RFC 9110 §6.5.1
            Some(_) => Err(FramingRefusal::AmbiguousBody { rule: "a framing header among the trailers" }),
            None => {
                trailers.push(name, value.trim_ascii());
                Ok(())
            }
        });
        match ended {
            Ok(Some(length)) => Chunk::Ended(length),
            Ok(None) if bytes.len() >= limit => {
                Chunk::Refused(0, FramingRefusal::AmbiguousBody { rule: "trailers of more than 8192 bytes" })
            }
            Ok(None) => Chunk::Framing(0),
            Err(refusal) => Chunk::Refused(0, refusal.in_body()),
        }
    }
}
