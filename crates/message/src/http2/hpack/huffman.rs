//! The Huffman code of RFC 7541 appendix B, read many bits at a time.
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols. Its lengths are therefore all
//! there is to know, and the tables are made from them at compile time.

use super::Broken;

/// Bits per symbol; the last is the end-of-string symbol.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Bits looked at in one go: every symbol that is common in fields has a shorter code.
const FAST_BITS: u32 = 10;
/// The longest code.
const LENGTH_MAX: u32 = 30;
/// Place of the end-of-string symbol in `LENGTHS`. It must not be in a string. RFC 7541 §5.2.
const END_OF_STRING: u16 = 256;

/// Codes of one length.
#[derive(Clone, Copy)]
struct Level {
    /// First code that is longer than these, moved to the left end of 32 bits (and so up to 2^32).
    limit: u64,
    /// First code of this length.
    first: u32,
    /// Place of its symbol in `SYMBOLS`.
    offset: u16,
}

struct Tables {
    /// By the next `FAST_BITS` bits: length * 256 + symbol; 0 for longer codes.
    fast: [u16; 1 << FAST_BITS],
    levels: [Level; LENGTH_MAX as usize + 1],
    /// In the order of their codes.
    symbols: [u16; 257],
    codes: [u32; 257],
}

static TABLES: Tables = tables();

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "runs at compile time, where a wrong index is an error"
)]
const fn tables() -> Tables {
    let mut made = Tables {
        fast: [0; 1 << FAST_BITS],
        levels: [Level { limit: 0, first: 0, offset: 0 }; LENGTH_MAX as usize + 1],
        symbols: [0; 257],
        codes: [0; 257],
    };
    let (mut length, mut code, mut count) = (1_u32, 0_u32, 0_u16);
    while length <= LENGTH_MAX {
        code <<= 1;
        made.levels[length as usize].first = code;
        made.levels[length as usize].offset = count;
        let mut symbol = 0_u16;
        while symbol <= END_OF_STRING {
            if LENGTHS[symbol as usize] as u32 == length {
                made.symbols[count as usize] = symbol;
                made.codes[symbol as usize] = code;
                if length <= FAST_BITS {
                    let start = code << (FAST_BITS - length);
                    let mut low = 0;
                    while low < 1 << (FAST_BITS - length) {
                        made.fast[(start + low) as usize] = (length as u16) << 8 | symbol;
                        low += 1;
                    }
                }
                count += 1;
                code += 1;
            }
            symbol += 1;
        }
        made.levels[length as usize].limit = (code as u64) << (32 - length);
        length += 1;
    }
    made
}

/// Adds the decoded text to `text`.
///
/// # Errors
/// [`Broken`] for an end-of-string symbol, and for padding of eight bits and more or with a zero in it. RFC 7541 §5.2.
pub(super) fn decode(input: &[u8], text: &mut Vec<u8>) -> Result<(), Broken> {
    let mut rest = input.iter();
    // The next bits are at the left end; `count` of them are real, zeros follow.
    let (mut bits, mut count) = (0_u64, 0_u32);
    loop {
        while count <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let entry = usize::try_from(bits >> (64 - FAST_BITS)).ok().and_then(|place| TABLES.fast.get(place)).copied().unwrap_or(0);
        let [length, symbol] = entry.to_be_bytes();
        let length = u32::from(length);
        if length != 0 {
            if length > count {
                break;
            }
            text.push(symbol);
            bits <<= length;
            count -= length;
            continue;
        }
        let Some((length, symbol)) = long(bits) else { return Err(Broken) };
        if length > count {
            break;
        }
        let Ok(symbol) = u8::try_from(symbol) else { return Err(Broken) };
        text.push(symbol);
        bits <<= length;
        count -= length;
    }
    let padding_is_ones = count < 8 && (count == 0 || bits >> (64 - count) == (1 << count) - 1);
    if padding_is_ones { Ok(()) } else { Err(Broken) }
}

/// Length and symbol of a code that is longer than `FAST_BITS`.
#[cold]
fn long(bits: u64) -> Option<(u32, u16)> {
    let next = bits >> 32;
    let (length, level) = (0_u32..).zip(&TABLES.levels).skip(FAST_BITS as usize).find(|(_, level)| next < level.limit)?;
    let code = u32::try_from(next >> (32 - length)).ok()?;
    let place = usize::try_from(code.checked_sub(level.first)?).ok()? + usize::from(level.offset);
    TABLES.symbols.get(place).map(|symbol| (length, *symbol))
}

#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0_u64, 0_u32);
    for byte in text {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        bits = bits << length | u64::from(TABLES.codes[usize::from(*byte)]);
        count += length;
        while count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    if count > 0 {
        out.push(((bits << (8 - count) | (0xff >> count)) & 0xff) as u8);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut text = Vec::new();
        decode(input, &mut text).map(|()| text)
    }

    #[test]
    fn every_byte_comes_back() {
        for byte in 0..=255_u8 {
            for count in 1..9 {
                let text = vec![byte; count];
                assert_eq!(decoded(&encode(&text)).unwrap(), text, "byte {byte}");
            }
        }
        let all: Vec<u8> = (0..=255).rev().chain(0..=255).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn codes_are_those_of_the_appendix() {
        for (symbol, code, length) in [
            (0_usize, 0x1ff8_u32, 13),
            (1, 0x7f_ffd8, 23),
            (usize::from(b'0'), 0, 5),
            (usize::from(b'A'), 0x21, 6),
            (usize::from(b'z'), 0x7b, 7),
            (255, 0x3ff_ffee, 26),
            (256, 0x3fff_ffff, 30),
        ] {
            assert_eq!((TABLES.codes[symbol], LENGTHS[symbol]), (code, length), "symbol {symbol}");
        }
    }

    #[test]
    fn rfc7541_5_2_padding_and_end_of_string_are_checked() {
        for (name, input) in [
            ("eight bits of padding", &[0xff][..]),
            ("a letter and eight bits more", &[0x1f, 0xff]),
            ("a letter and sixteen bits more", &[0x1f, 0xff, 0xff]),
            ("zeros as padding", &[0x18]),
            ("end of string", &[0xff, 0xff, 0xff, 0xff]),
            ("end of string and more", &[0xff, 0xff, 0xff, 0xfc, 0x1f]),
        ] {
            assert!(decoded(input).is_err(), "{name}");
        }
        assert_eq!(decoded(&[0x1f]).unwrap(), b"a");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }
}
