//! A line of JSON, written as its members come, without a value of each in between.

use crate::clock;
use model::Timestamp;
use std::io::Write;
use std::net::SocketAddr;

/// One object on a line of its own.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    next: u8,
}

impl<'a> Line<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        Self { out, next: b'{' }
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    /// A member whose name needs no escape.
    fn name(&mut self, name: &str) {
        self.out.push(std::mem::replace(&mut self.next, b','));
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A text, or `null`.
    pub(super) fn text(&mut self, name: &str, value: Option<&str>) {
        self.name(name);
        match value {
            None => self.out.extend_from_slice(b"null"),
            Some(value) => {
                self.out.push(b'"');
                escape(value.as_bytes(), self.out);
                self.out.push(b'"');
            }
        }
    }

    /// A text that needs no escape.
    pub(super) fn plain(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(value);
        self.out.push(b'"');
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        decimal(value, self.out);
    }

    /// RFC 3339, in UTC, with milliseconds.
    pub(super) fn time(&mut self, name: &str, at: Timestamp) {
        self.name(name);
        self.out.push(b'"');
        clock::with_second(at, |text| self.out.extend_from_slice(text.as_bytes()));
        let millis = at.millis() % 1000;
        self.out.push(b'.');
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            self.out.push(b'0' + u8::try_from(digit).unwrap_or_default());
        }
        self.out.extend_from_slice(b"Z\"");
    }

    /// Address and port, an IPv6 address in brackets.
    pub(super) fn address(&mut self, name: &str, address: SocketAddr) {
        self.name(name);
        self.out.push(b'"');
        match address {
            SocketAddr::V4(address) => {
                for (place, octet) in address.ip().octets().into_iter().enumerate() {
                    if place > 0 {
                        self.out.push(b'.');
                    }
                    decimal(octet.into(), self.out);
                }
                self.out.push(b':');
                decimal(address.port().into(), self.out);
            }
            SocketAddr::V6(_) => {
                // Writing to a Vec cannot fail.
                let _ok = write!(self.out, "{address}");
            }
        }
        self.out.push(b'"');
    }
}

fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        out.push(b'0' + u8::try_from(number % 10).unwrap_or_default());
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// How many bytes need no escape. Sixteen are looked at together.
fn plain_run(text: &[u8]) -> usize {
    let is_plain = |byte: u8| (byte > 0x1f) & (byte != b'"') & (byte != b'\\');
    let (sixteens, _) = text.as_chunks::<16>();
    let whole = sixteens.iter().take_while(|sixteen| sixteen.iter().fold(true, |all, byte| all & is_plain(*byte))).count() * 16;
    let rest = text.get(whole..).unwrap_or_default();
    whole + rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len())
}

/// RFC 8259 §7.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_at(plain_run(rest));
        out.extend_from_slice(plain);
        let Some((byte, tail)) = tail.split_first() else { return };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            byte => {
                let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_a_reader_of_json_reads() {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out);
        let odd = "\"\\\n\t\0\u{1f}\u{7f}ä𝄞</ as long as several steps of the look, \\ and more".repeat(3);
        line.text("odd", Some(&odd));
        line.text("none", None);
        line.plain("plain", b"d-1");
        line.number("zero", 0);
        line.number("most", u64::MAX);
        line.time("at", Timestamp::from_millis(1_795_000_000_007));
        line.address("v4", "10.77.1.2:65535".parse().unwrap());
        line.address("v6", "[2001:db8::1]:1".parse().unwrap());
        line.end();
        let read: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        let expected = serde_json::json!({
            "odd": odd, "none": null, "plain": "d-1", "zero": 0, "most": u64::MAX,
            "at": Timestamp::from_millis(1_795_000_000_007).to_string(),
            "v4": "10.77.1.2:65535", "v6": "[2001:db8::1]:1",
        });
        assert_eq!(read, expected);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
