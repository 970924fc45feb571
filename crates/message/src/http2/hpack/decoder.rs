//! Field blocks to lines.

use super::statics::STATIC_TABLE;
use super::table::{Entry, Table};
use super::{Broken, Class, TABLE_BYTES, huffman, is_sound_value};

/// Takes the lines of a block as they are decoded.
pub(in crate::http2) trait Lines {
    /// One line. `sound`: the value holds nothing that is forbidden.
    fn line(&mut self, name: &[u8], value: &[u8], class: Class, sound: bool);
}

/// The receiving side of HPACK.
#[derive(Debug)]
pub(in crate::http2) struct Decoder {
    table: Table,
    /// The largest table that the peer may choose.
    limit: usize,
    /// Nothing but table sizes was in this block so far. RFC 7541 §4.2.
    at_start: bool,
    /// The peer must begin its next block with a smaller table, as our settings are acknowledged. RFC 7541 §4.2.
    must_shrink: bool,
    /// Name and value of the literal at hand.
    text: Vec<u8>,
}

/// A string that is not decoded yet.
#[derive(Clone, Copy)]
struct Raw<'a> {
    bytes: &'a [u8],
    huffman: bool,
}

impl Decoder {
    /// Starts with the table of [`TABLE_BYTES`] that both sides have before settings.
    pub(in crate::http2) fn new() -> Self {
        let limit = usize::try_from(TABLE_BYTES).unwrap_or(usize::MAX);
        Self { table: Table::new(limit), limit, at_start: true, must_shrink: false, text: Vec::new() }
    }

    /// The peer has acknowledged this HEADER_TABLE_SIZE.
    pub(in crate::http2) fn settings_acknowledged(&mut self, bytes: u32) {
        self.limit = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.must_shrink = self.table.limit() > self.limit;
    }

    /// Gives the memory of the last literal back.
    pub(in crate::http2) fn trim(&mut self) {
        self.text = Vec::new();
    }

    /// A new block begins.
    pub(in crate::http2) fn begin(&mut self) {
        self.at_start = true;
    }

    /// Decodes the whole lines in `block` and returns how many bytes they took; the rest is to be given again with more behind it.
    ///
    /// # Errors
    /// [`Broken`]: the connection cannot go on.
    pub(in crate::http2) fn decode(&mut self, block: &[u8], lines: &mut impl Lines) -> Result<usize, Broken> {
        let mut rest = block;
        while let Some(first) = rest.first() {
            let after = if first & 0x80 != 0 {
                self.indexed(rest, lines)?
            } else if first & 0xe0 == 0x20 {
                self.table_size(rest)?
            } else {
                self.literal(rest, first & 0x40 != 0, lines)?
            };
            let Some(after) = after else { break };
            rest = after;
        }
        Ok(block.len() - rest.len())
    }

    /// RFC 7541 §6.1.
    #[inline]
    fn indexed<'a>(&mut self, input: &'a [u8], lines: &mut impl Lines) -> Result<Option<&'a [u8]>, Broken> {
        let Some((index, rest)) = integer(input, 7)? else { return Ok(None) };
        self.fields_begin()?;
        let entry = self.entry(index)?;
        lines.line(entry.name, entry.value, entry.class, entry.sound);
        Ok(Some(rest))
    }

    /// RFC 7541 §6.2.
    fn literal<'a>(&mut self, input: &'a [u8], keep: bool, lines: &mut impl Lines) -> Result<Option<&'a [u8]>, Broken> {
        let Some((index, rest)) = integer(input, if keep { 6 } else { 4 })? else { return Ok(None) };
        // Both strings are cut out before any is decoded: a line that is not whole costs next to nothing however often it is tried.
        let (name, rest) = if index == 0 {
            let Some((name, rest)) = string(rest)? else { return Ok(None) };
            (Some(name), rest)
        } else {
            (None, rest)
        };
        let Some((value, rest)) = string(rest)? else { return Ok(None) };
        self.fields_begin()?;
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        let class = match name {
            Some(name) => {
                decode_string(name, &mut text)?;
                Class::of(&text)
            }
            None => {
                let entry = self.entry(index)?;
                text.extend_from_slice(entry.name);
                entry.class
            }
        };
        let split = text.len();
        decode_string(value, &mut text)?;
        let (name, value) = text.split_at_checked(split).unwrap_or_default();
        let sound = is_sound_value(value);
        lines.line(name, value, class, sound);
        if keep {
            self.table.insert(&text, split, class, sound);
        }
        self.text = text;
        Ok(Some(rest))
    }

    /// RFC 7541 §6.3.
    fn table_size<'a>(&mut self, input: &'a [u8]) -> Result<Option<&'a [u8]>, Broken> {
        let Some((size, rest)) = integer(input, 5)? else { return Ok(None) };
        if !self.at_start || size > self.limit {
            return Err(Broken);
        }
        self.table.set_limit(size);
        self.must_shrink = false;
        Ok(Some(rest))
    }

    #[inline]
    fn fields_begin(&mut self) -> Result<(), Broken> {
        self.at_start = false;
        if self.must_shrink { Err(Broken) } else { Ok(()) }
    }

    /// RFC 7541 §2.3.3.
    #[inline]
    fn entry(&self, index: usize) -> Result<Entry<'_>, Broken> {
        let place = index.checked_sub(1).ok_or(Broken)?;
        match STATIC_TABLE.get(place) {
            Some((name, value, class)) => Ok(Entry { name, value, class: *class, sound: true }),
            None => self.table.by_age(place - STATIC_TABLE.len()).ok_or(Broken),
        }
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

fn decode_string(raw: Raw<'_>, text: &mut Vec<u8>) -> Result<(), Broken> {
    if raw.huffman {
        huffman::decode(raw.bytes, text)
    } else {
        text.extend_from_slice(raw.bytes);
        Ok(())
    }
}

/// RFC 7541 §5.2. `None` where the string is not whole.
fn string(input: &[u8]) -> Result<Option<(Raw<'_>, &[u8])>, Broken> {
    let Some(first) = input.first() else { return Ok(None) };
    let Some((length, rest)) = integer(input, 7)? else { return Ok(None) };
    Ok(rest.split_at_checked(length).map(|(bytes, rest)| (Raw { bytes, huffman: first & 0x80 != 0 }, rest)))
}

/// RFC 7541 §5.1. `None` where the number is not whole.
///
/// LIMIT: four bytes behind the first, which is 2^28 and more: no index or length of ours is near, and nothing overflows.
#[inline]
fn integer(input: &[u8], prefix_bits: u32) -> Result<Option<(usize, &[u8])>, Broken> {
    let Some((first, mut rest)) = input.split_first() else { return Ok(None) };
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value < mask {
        return Ok(Some((value, rest)));
    }
    for shift in [0, 7, 14, 21] {
        let Some((byte, behind)) = rest.split_first() else { return Ok(None) };
        rest = behind;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some((value, rest)));
        }
    }
    Err(Broken)
}
