//! Lines to field blocks. Text is written plain, never in Huffman code: what comes again is one byte anyway, and what does not is
//! cheaper to copy than to code.

use super::statics::static_name;
use super::table::Table;
use super::{Class, TABLE_BYTES};

/// Slots of the table's index. Twice as many as lines fit into 4096 bytes.
const SLOTS: usize = 256;
/// How many neighbours a line may lie in.
const NEIGHBOURS: usize = 4;
/// Lines remembered as seen once.
const SEEN: usize = 256;

/// The sending side of HPACK.
///
/// A line enters the table when it is sent for the second time: what is different on each request (a trace id, a date) never
/// drives out what is always the same.
#[derive(Debug)]
pub(in crate::http2) struct Encoder {
    table: Table,
    /// By hash: a line's hash and its number in the table.
    slots: Vec<(u32, u32)>,
    /// Hashes of lines that were sent and are not in the table.
    seen: Vec<u32>,
    /// Numbers of the lines of the last blocks, one list for heads and one for trailers: the next is nearly always the same, line by
    /// line, and then nothing is hashed.
    guesses: [Vec<u32>; 2],
    section: Section,
    /// Lines of the block at hand so far.
    position: usize,
    /// Table sizes to tell at the start of the next block: the smallest that held in between, and the last. RFC 7541 §4.2.
    resized: Option<(usize, usize)>,
    index_secrets: bool,
    text: Vec<u8>,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) enum Section {
    Head,
    Trailers,
}

/// LIMIT: lines of a block that are guessed.
const GUESSES_MAX: usize = 32;
/// A number that never was in the table: no line is found by it, as its age is larger than the table.
const NUMBER_NEVER: u32 = u32::MAX / 2;

impl Encoder {
    /// `index_secrets`: whether credentials may enter the table (see `Settings::index_secrets`).
    pub(in crate::http2) fn new(index_secrets: bool) -> Self {
        let limit = usize::try_from(TABLE_BYTES).unwrap_or(usize::MAX);
        Self {
            table: Table::new(limit),
            slots: Vec::new(),
            seen: Vec::new(),
            guesses: [Vec::new(), Vec::new()],
            section: Section::Head,
            position: 0,
            resized: None,
            index_secrets,
            text: Vec::new(),
        }
    }

    /// The peer allows a table of this many bytes. We never use more than [`TABLE_BYTES`].
    pub(in crate::http2) fn set_limit(&mut self, bytes: u32) {
        let limit = usize::try_from(bytes.min(TABLE_BYTES)).unwrap_or(usize::MAX);
        let before = self.resized.map_or(self.table.limit(), |(_, last)| last);
        if limit != before {
            let smallest = self.resized.map_or(limit, |(smallest, _)| smallest.min(limit));
            self.resized = Some((smallest, limit));
        }
    }

    /// A new block begins.
    pub(in crate::http2) fn begin(&mut self, out: &mut Vec<u8>, section: Section) {
        self.section = section;
        self.position = 0;
        if let Some((smallest, last)) = self.resized.take() {
            self.table.set_limit(smallest);
            self.table.set_limit(last);
            if smallest < last {
                integer(out, 0x20, 5, smallest);
            }
            integer(out, 0x20, 5, last);
        }
    }

    /// One of the lines that the static table has as a whole.
    pub(in crate::http2) fn whole(&self, out: &mut Vec<u8>, index: u8) {
        out.push(0x80 | index);
    }

    /// A line whose name is not a pseudo-header.
    pub(in crate::http2) fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        if !self.index_secrets && is_secret(name) {
            literal(out, 0x10, 4, static_name(name), name, value);
            return;
        }
        self.line(out, name, value, None);
    }

    /// A line. `known`: the index of its name in the static table, where the caller knows it.
    pub(in crate::http2) fn line(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], known: Option<u8>) {
        let position = self.position;
        self.position += 1;
        let [heads, trailers] = &mut self.guesses;
        let guesses = if self.section == Section::Head { heads } else { trailers };
        if let Some(guess) = guesses.get(position)
            && let Some((age, entry)) = self.table.by_number(*guess)
            && entry.value == value
            && entry.name == name
        {
            integer(out, 0x80, 7, age + 62);
            return;
        }
        let hash = hash(name, value);
        if let Some((age, number)) = self.find(hash, name, value) {
            self.guess(position, number);
            integer(out, 0x80, 7, age + 62);
            return;
        }
        let known = known.unwrap_or_else(|| static_name(name));
        if known == 16 && value == b"gzip, deflate" {
            out.push(0x80 | 16);
            return;
        }
        if self.is_worth_keeping(hash, name.len() + value.len()) {
            literal(out, 0x40, 6, known, name, value);
            self.keep(hash, name, value);
        } else {
            literal(out, 0, 4, known, name, value);
        }
    }

    #[inline]
    fn find(&self, hash: u32, name: &[u8], value: &[u8]) -> Option<(usize, u32)> {
        let home = place(hash);
        for slot in (home..home + NEIGHBOURS).map(|slot| slot % SLOTS) {
            let (known, number) = *self.slots.get(slot)?;
            if known == hash
                && let Some((age, entry)) = self.table.by_number(number)
                && entry.value == value
                && entry.name == name
            {
                return Some((age, number));
            }
        }
        None
    }

    fn guess(&mut self, position: usize, number: u32) {
        let [heads, trailers] = &mut self.guesses;
        let guesses = if self.section == Section::Head { heads } else { trailers };
        if position < GUESSES_MAX {
            if guesses.len() <= position {
                guesses.resize(position + 1, NUMBER_NEVER);
            }
            if let Some(guess) = guesses.get_mut(position) {
                *guess = number;
            }
        }
    }

    /// Whether the line was sent before. Remembers it.
    fn is_worth_keeping(&mut self, hash: u32, length: usize) -> bool {
        if length > self.table.limit() / 4 {
            return false;
        }
        if self.seen.is_empty() {
            self.seen.resize(SEEN, 0);
        }
        let Some(seen) = self.seen.get_mut(place(hash) % SEEN) else { return false };
        if *seen == hash {
            *seen = 0;
            return true;
        }
        *seen = hash;
        false
    }

    fn keep(&mut self, hash: u32, name: &[u8], value: &[u8]) {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, (0, NUMBER_NEVER));
        }
        self.text.clear();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        let number = self.table.inserted();
        self.table.insert(&self.text, name.len(), Class::Plain, true);
        let home = place(hash);
        // The slot whose line is gone or the oldest.
        let age = |slot: &usize| self.slots.get(*slot).map_or(0, |(_, held)| number.wrapping_sub(*held));
        let oldest = (home..home + NEIGHBOURS).map(|slot| slot % SLOTS).max_by_key(age);
        if let Some(slot) = oldest.and_then(|slot| self.slots.get_mut(slot)) {
            *slot = (hash, number);
        }
    }
}

/// Fields that carry credentials. RFC 7541 §7.1.3.
fn is_secret(name: &[u8]) -> bool {
    matches!(name, b"authorization" | b"cookie" | b"set-cookie" | b"proxy-authorization")
}

fn place(hash: u32) -> usize {
    usize::try_from(hash >> 24).unwrap_or(0)
}

/// Eight bytes at a time. Not against attackers: the index is bounded in size and in steps, a collision costs one literal.
#[inline]
fn hash(name: &[u8], value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = u64::try_from(name.len() << 32 | value.len()).unwrap_or(0);
    for text in [name, value] {
        let (chunks, rest) = text.as_chunks::<8>();
        for chunk in chunks {
            state = (state.rotate_left(23) ^ u64::from_le_bytes(*chunk)).wrapping_mul(FACTOR);
        }
        if let Some(last) = text.last_chunk::<8>() {
            state = (state.rotate_left(23) ^ u64::from_le_bytes(*last)).wrapping_mul(FACTOR);
        } else {
            let last = rest.iter().fold(0_u64, |last, byte| last << 8 | u64::from(*byte));
            state = (state.rotate_left(23) ^ last).wrapping_mul(FACTOR);
        }
    }
    let mixed = (state ^ state >> 29).wrapping_mul(FACTOR);
    u32::try_from(mixed >> 32).unwrap_or(0)
}

/// RFC 7541 §6.2.
fn literal(out: &mut Vec<u8>, kind: u8, prefix_bits: u32, known: u8, name: &[u8], value: &[u8]) {
    integer(out, kind, prefix_bits, usize::from(known));
    if known == 0 {
        integer(out, 0, 7, name.len());
        out.extend_from_slice(name);
    }
    integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// RFC 7541 §5.1.
#[inline]
fn integer(out: &mut Vec<u8>, kind: u8, prefix_bits: u32, value: usize) {
    let mask = (1_usize << prefix_bits) - 1;
    if value < mask {
        out.push(kind | low(value));
        return;
    }
    out.push(kind | low(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | low(rest & 0x7f));
        rest >>= 7;
    }
    out.push(low(rest));
}

/// INVARIANT: called with values below 256 only.
#[inline]
fn low(value: usize) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(0)
}
