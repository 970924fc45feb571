//! The grammar of a response (RFC 9112 §4 and §6.3). Applications are read more patiently than callers: what they say goes back to
//! one caller and decides nothing. Where a message ends must be certain all the same.

use super::chunked::{Chunk, Chunked};
use super::head::{LENGTH_MAX, is_token, value_run};
use super::{FramingRefusal, Rules};
use memchr::memchr;
use message::{Fields, Head, Version};

/// LIMIT: bytes of a response's head.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// LIMIT: lines of a response's head.
const LINES_MAX: usize = 512;
/// The bounds of a response's trailers.
const TRAILER_RULES: Rules =
    Rules { head_bytes_max: HEAD_BYTES_MAX, headers_max: LINES_MAX, head_deadline: std::time::Duration::MAX };

/// Where in a response we are. Pure: bytes in, what they are out.
#[derive(Debug, Default)]
pub struct Answering {
    phase: Phase,
    /// Bytes of the head that hold no end of it.
    looked: usize,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Ended,
}

/// What the next bytes of a response are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing yet: more must come.
    More,
    /// So many bytes of a whole head, which was written down. An interim one (1xx) is followed by another.
    Head(usize),
    /// So many bytes of data.
    Data(usize),
    /// So many bytes that only frame the data.
    Between(usize),
    /// The response has ended; they belong to nothing that was asked for.
    Ended,
    /// They are no response, and why.
    Malformed(&'static str),
}

impl Answering {
    /// Before the response to a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the last byte of the response was taken.
    pub const fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Whether the end of the connection is the end of the response.
    pub const fn is_until_close(&self) -> bool {
        matches!(self.phase, Phase::UntilClose)
    }

    /// The bytes of the body that are to come, where the head said it.
    pub const fn length(&self) -> Option<u64> {
        match self.phase {
            Phase::Length(length) => Some(length),
            Phase::Ended => Some(0),
            Phase::Head | Phase::Chunked(_) | Phase::UntilClose => None,
        }
    }

    /// Looks at `bytes`, of which the first is the first that was not taken yet. `to_head`: the request was a `HEAD`, so that no body
    /// follows. A head is written into `head`, trailers into `trailers`.
    pub fn step(&mut self, bytes: &[u8], to_head: bool, head: &mut Head, trailers: &mut Fields) -> Part {
        match &mut self.phase {
            Phase::Ended => Part::Ended,
            _ if bytes.is_empty() => Part::More,
            Phase::Head => self.head(bytes, to_head, head).unwrap_or_else(Part::Malformed),
            Phase::UntilClose => Part::Data(bytes.len()),
            Phase::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                if *left == 0 {
                    self.phase = Phase::Ended;
                }
                Part::Data(count)
            }
            Phase::Chunked(chunked) => match chunked.next(bytes, &TRAILER_RULES, trailers) {
                Chunk::Data(count) => Part::Data(count),
                Chunk::Framing(0) => Part::More,
                Chunk::Framing(count) => Part::Between(count),
                Chunk::Ended(count) => {
                    self.phase = Phase::Ended;
                    Part::Between(count)
                }
                Chunk::Refused(_, refusal) => Part::Malformed(rule_of(refusal)),
            },
        }
    }

    fn head(&mut self, bytes: &[u8], to_head: bool, head: &mut Head) -> Result<Part, &'static str> {
        let Some(length) = self.head_end(bytes) else {
            if !could_be_response(bytes) {
                return Err("it begins with no status line of HTTP/1");
            }
            return if bytes.len() > HEAD_BYTES_MAX { Err("a head of more than 262144 bytes") } else { Ok(Part::More) };
        };
        self.looked = 0;
        head.clear();
        let said = parse(bytes.get(..length).unwrap_or_default(), head)?;
        let has_body = !to_head && !matches!(head.status, 100..=199 | 204 | 304);
        if head.status != 101 && head.status < 200 {
            return Ok(Part::Head(length));
        }
        self.phase = match said {
            _ if !has_body => Phase::Ended,
            Said { chunked: true, .. } => Phase::Chunked(Chunked::of_response()),
            Said { length: Some(0), .. } => Phase::Ended,
            Said { length: Some(length), .. } => Phase::Length(length),
            Said { length: None, .. } => Phase::UntilClose,
        };
        Ok(Part::Head(length))
    }

    /// The place behind the empty line that ends a head.
    fn head_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut from = self.looked;
        while let Some(feed) = memchr(b'\n', bytes.get(from..)?) {
            let next = from + feed + 1;
            match bytes.get(next..)? {
                [b'\n', ..] => return Some(next + 1),
                [b'\r', b'\n', ..] => return Some(next + 2),
                [] | [b'\r'] => break,
                _ => from = next,
            }
        }
        self.looked = from;
        None
    }
}

fn could_be_response(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    let seen = bytes.len().min(START.len());
    bytes.get(..seen) == START.get(..seen)
}

fn rule_of(refusal: FramingRefusal) -> &'static str {
    match refusal {
        FramingRefusal::Ambiguous { rule } | FramingRefusal::AmbiguousBody { rule } | FramingRefusal::Malformed { rule } => rule,
        FramingRefusal::HeadTooLarge { .. }
        | FramingRefusal::TooManyHeaders { .. }
        | FramingRefusal::HeadTimeout { .. }
        | FramingRefusal::HostMissing
        | FramingRefusal::HostTwice => "its trailers are over the bounds",
    }
}

/// What the lines of a response say about its framing.
#[derive(Debug, Default)]
struct Said {
    chunked: bool,
    length: Option<u64>,
}

/// Reads a whole head: lines that end in CRLF, or in a bare line feed as some applications write them.
fn parse(bytes: &[u8], head: &mut Head) -> Result<Said, &'static str> {
    let mut rest = bytes;
    let mut lines = std::iter::from_fn(|| {
        let (line, behind) = rest.split_at_checked(memchr(b'\n', rest)?)?;
        rest = behind.get(1..)?;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    });
    status_line(lines.next().unwrap_or_default(), head)?;
    let mut said = Said::default();
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = memchr(b':', line).ok_or("a header line without a colon")?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err("a header name that is not a token");
        }
        if value_run(value) < value.len() {
            return Err("a control character in a header value");
        }
        if head.fields.len() >= LINES_MAX {
            return Err("a head of more than 512 lines");
        }
        note(name, value, head, &mut said)?;
        head.fields.push(name, value);
    }
    if said.chunked && head.version == Version::Http10 {
        return Err("`Transfer-Encoding` in HTTP/1.0");
    }
    Ok(said)
}

fn status_line(line: &[u8], head: &mut Head) -> Result<(), &'static str> {
    const WRONG: &str = "its first line is no status line of HTTP/1";
    let rest = line.strip_prefix(b"HTTP/1.").ok_or(WRONG)?;
    let (version, rest) = rest.split_first().ok_or(WRONG)?;
    head.version = match version {
        b'0' => Version::Http10,
        b'1' => Version::Http11,
        _ => return Err(WRONG),
    };
    let rest = rest.strip_prefix(b" ").ok_or(WRONG)?;
    let (digits, rest) = rest.split_at_checked(3).ok_or(WRONG)?;
    if !digits.iter().all(u8::is_ascii_digit) || digits.starts_with(b"0") {
        return Err(WRONG);
    }
    head.status = digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    let phrase = if rest.is_empty() { rest } else { rest.strip_prefix(b" ").ok_or(WRONG)? };
    if value_run(phrase) < phrase.len() {
        return Err(WRONG);
    }
    Head::set(&mut head.reason, phrase);
    Ok(())
}

fn note(name: &[u8], value: &[u8], head: &Head, said: &mut Said) -> Result<(), &'static str> {
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        if said.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err("`Transfer-Encoding` is not `chunked` alone");
        }
        said.chunked = true;
    } else if name.eq_ignore_ascii_case(b"content-length") {
        // A list of equal lengths is one length (RFC 9110 §8.6).
        for each in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let length = decimal(each).ok_or("`Content-Length` is not a number")?;
            if said.length.is_some_and(|known| known != length) {
                return Err("two different `Content-Length`");
            }
            said.length = Some(length);
        }
    }
    debug_assert!(head.status >= 100, "the status line is read first");
    Ok(())
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = text.iter().fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    (length <= LENGTH_MAX).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a response is, fed in pieces of `step` bytes: status, data, lines, and whether it ended.
    fn read(bytes: &[u8], to_head: bool, step: usize) -> Result<(u16, Vec<u8>, usize, bool), &'static str> {
        let (mut answering, mut head, mut trailers) = (Answering::new(), Head::default(), Fields::default());
        let (mut held, mut data) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            held.extend_from_slice(piece);
            loop {
                let taken = match answering.step(&held, to_head, &mut head, &mut trailers) {
                    Part::More | Part::Ended => break,
                    Part::Head(count) | Part::Between(count) => count,
                    Part::Data(count) => {
                        data.extend_from_slice(&held[..count]);
                        count
                    }
                    Part::Malformed(rule) => return Err(rule),
                };
                held.drain(..taken);
            }
        }
        Ok((head.status, data, head.fields.len() + trailers.len(), answering.is_ended()))
    }

    /// A response, whether it is to a `HEAD`, and then: its status, its data, and whether it ended.
    type Case = (&'static [u8], bool, u16, &'static [u8], bool);

    #[test]
    fn rfc9112_6_3_the_end_of_a_response_is_where_the_standard_says() {
        let cases: [Case; 16] = [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcX", false, 200, b"abc", true),
            (b"HTTP/1.1 200\r\ncontent-length: 3\r\n\r\nabc", false, 200, b"abc", true),
            (b"HTTP/1.1 200 \r\ncontent-length: 3, 3\r\n\r\nabc", false, 200, b"abc", true),
            (b"HTTP/1.0 200 OK\n\nabc", false, 200, b"abc", false),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", false, 200, b"abc", false),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", true, 200, b"", true),
            (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", false, 304, b"", true),
            (b"HTTP/1.1 204 No\r\n\r\n", false, 204, b"", true),
            (b"HTTP/1.1 101 Switching\r\nupgrade: a\r\n\r\nraw", false, 101, b"", true),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", false, 200, b"a", true),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false, 200, b"abc", true),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3  \r\nabc\r\n0\r\n\r\n", false, 200, b"abc", true),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x\r\na\r\n2\r\nbc\r\n0\r\nt: 1\r\n\r\n",
                false,
                200,
                b"abc",
                true,
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
                false,
                200,
                b"a",
                true,
            ),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, 200, b"", true),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", false, 200, b"abc", false),
        ];
        for (bytes, to_head, status, data, ended) in cases {
            for step in [1, 2, 7, 4096] {
                let text = String::from_utf8_lossy(bytes);
                let read = read(bytes, to_head, step).unwrap_or_else(|rule| panic!("{text}: {rule}"));
                assert_eq!((read.0, read.1.as_slice(), read.3), (status, data, ended), "{text} by {step}");
            }
        }
    }

    #[test]
    fn what_is_no_response_is_malformed_whatever_the_reads() {
        let cases: [(&[u8], &str); 15] = [
            (b"220 ready\r\n", "status line"),
            (b"HTTP/2 200 OK\r\n\r\n", "status line"),
            (b"HTTP/1.2 200 OK\r\n\r\n", "status line"),
            (b"HTTP/1.1  200 OK\r\n\r\n", "status line"),
            (b"HTTP/1.1 20 OK\r\n\r\n", "status line"),
            (b"HTTP/1.1 099 OK\r\n\r\n", "status line"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "status line"),
            (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "colon"),
            (b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n", "token"),
            (b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", "colon"),
            (b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", "control"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "two different"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "not a number"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "alone"),
            (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/1.0"),
        ];
        for (bytes, text) in cases {
            for step in [1, 3, 4096] {
                let rule = read(bytes, false, step).expect_err(&String::from_utf8_lossy(bytes));
                assert!(rule.contains(text), "{}: {rule}", String::from_utf8_lossy(bytes));
            }
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &[b'a'; 300_000]].concat();
        assert!(read(&endless, false, 65_536).expect_err("endless").contains("262144"));
    }
}
