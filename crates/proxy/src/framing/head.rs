//! The grammar of a request's head (RFC 9112 §3 and §5). Each byte is looked at once, wherever the reads cut the head.

use super::{FramingRefusal, Rules};
use message::{Head, Version};

/// What a request's head says about the bytes that follow it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complete {
    /// Bytes of the head, the empty line that ends it included.
    pub(super) length: usize,
    /// Where the body ends.
    pub(super) body: BodyLength,
    /// After this message the connection may speak another protocol.
    pub(super) switches: bool,
}

/// Where a request's body ends (RFC 9112 §6.3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// After so many bytes; 0 where nothing is said.
    Fixed(u64),
    /// After the last chunk.
    Chunked,
}

/// A head of which some bytes were seen. Cursors count from the head's first byte.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    at: usize,
    part: usize,
    stage: Stage,
    lines: Lines,
    method: (usize, usize),
    target: (usize, usize),
    said: Said,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Start,
    EmptyLineLf,
    Method,
    Target,
    Version,
    LineLf,
    Lines,
}

const LINE: FramingRefusal = FramingRefusal::Malformed { rule: "the request line is not `METHOD target HTTP/1.0` or `HTTP/1.1`" };
const BARE_LF: FramingRefusal = FramingRefusal::Ambiguous { rule: "a line feed without a carriage return" };
const BARE_CR: FramingRefusal = FramingRefusal::Ambiguous { rule: "a carriage return without a line feed" };
const NUL: FramingRefusal = FramingRefusal::Ambiguous { rule: "a NUL" };

/// The longest request target. LIMIT: what HTTP libraries can hold.
const TARGET_BYTES_MAX: usize = 65_534;
/// The longest header name. LIMIT: ours; registered names are below 40 bytes, and other readers stop at 65,535.
const NAME_BYTES_MAX: usize = 1024;
/// The largest length that no reader takes for a negative one.
pub(super) const LENGTH_MAX: u64 = i64::MAX.unsigned_abs();

impl HeadScan {
    /// Goes on with the head that `bytes` begin with; `None` until it is complete.
    ///
    /// # Errors
    /// - the first violation in the order of the bytes, so that it does not depend on how they were cut.
    pub(super) fn scan(&mut self, bytes: &[u8], rules: &Rules, head: &mut Head) -> Result<Option<Complete>, FramingRefusal> {
        let limit = rules.head_bytes_max;
        let bytes = bytes.get(..limit).unwrap_or(bytes);
        while self.stage != Stage::Lines
            && let Some(&byte) = bytes.get(self.at)
        {
            self.request_line(byte, bytes)?;
        }
        if self.stage == Stage::Lines {
            let said = &mut self.said;
            let noted = self.lines.scan(bytes, rules.headers_max, |name, value| {
                said.note(name, value)?;
                head.fields.push(name, value.trim_ascii());
                Ok(())
            })?;
            if let Some(length) = noted {
                self.write_line(bytes, head);
                return self.said.conclude(length).map(Some);
            }
        }
        if bytes.len() >= limit {
            return Err(FramingRefusal::HeadTooLarge { limit, seen: limit.saturating_add(1) });
        }
        Ok(None)
    }

    /// Whether more of a head was seen than the empty line that may precede it (RFC 9112 §2.2).
    pub(super) const fn is_begun(&self) -> bool {
        match self.stage {
            Stage::Start => false,
            Stage::Method => self.at > self.part,
            _ => true,
        }
    }

    /// One step in the request line; `byte` stands at the cursor.
    fn request_line(&mut self, byte: u8, bytes: &[u8]) -> Result<(), FramingRefusal> {
        match self.stage {
            Stage::Start if byte == b'\r' => self.enter(Stage::EmptyLineLf, 1),
            Stage::Start => self.enter(Stage::Method, 0),
            Stage::EmptyLineLf if byte == b'\n' => self.enter(Stage::Method, 1),
            Stage::EmptyLineLf => return Err(BARE_CR),
            Stage::Method => {
                self.at += run(bytes, self.at, is_token);
                match bytes.get(self.at) {
                    Some(b' ') if self.at > self.part => {
                        self.method = (self.part, self.at);
                        self.said.connect = bytes.get(self.part..self.at) == Some(b"CONNECT");
                        self.enter(Stage::Target, 1);
                    }
                    Some(&byte) => return Err(unexpected(byte, LINE)),
                    None => {}
                }
            }
            Stage::Target => {
                self.at += run(bytes, self.at, is_target);
                if self.at - self.part > TARGET_BYTES_MAX {
                    return Err(FramingRefusal::Malformed { rule: "a request target of more than 65534 bytes" });
                }
                match bytes.get(self.at) {
                    Some(b' ') if self.at > self.part => {
                        if !is_readable(bytes.get(self.part..self.at).unwrap_or_default()) {
                            return Err(FramingRefusal::Malformed { rule: "the request target is no URI" });
                        }
                        self.target = (self.part, self.at);
                        self.enter(Stage::Version, 1);
                    }
                    Some(&byte) => return Err(unexpected(byte, LINE)),
                    None => {}
                }
            }
            Stage::Version => self.version(byte)?,
            Stage::LineLf if byte == b'\n' => {
                self.enter(Stage::Lines, 1);
                self.lines.at = self.at;
            }
            Stage::LineLf => return Err(BARE_CR),
            Stage::Lines => {}
        }
        Ok(())
    }

    /// The request line, in its parts. The target was found readable.
    fn write_line(&self, bytes: &[u8], head: &mut Head) {
        let part = |(from, to): (usize, usize)| bytes.get(from..to).unwrap_or_default();
        head.version = if self.said.http10 { Version::Http10 } else { Version::Http11 };
        Head::set(&mut head.method, part(self.method));
        let target = part(self.target);
        if target.starts_with(b"/") || target == b"*" {
            return Head::set(&mut head.path, target);
        }
        let Ok(uri) = http::Uri::try_from(target) else { return };
        Head::set(&mut head.scheme, uri.scheme_str().unwrap_or_default().as_bytes());
        Head::set(&mut head.authority, uri.authority().map_or("", http::uri::Authority::as_str).as_bytes());
        Head::set(&mut head.path, uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str).as_bytes());
    }

    fn version(&mut self, byte: u8) -> Result<(), FramingRefusal> {
        const NAME: &[u8] = b"HTTP/1.";
        let index = self.at - self.part;
        match NAME.get(index) {
            Some(expected) if *expected == byte => self.at += 1,
            None if index == NAME.len() && matches!(byte, b'0' | b'1') => {
                self.said.http10 = byte == b'0';
                self.at += 1;
            }
            None if index > NAME.len() && byte == b'\r' => self.enter(Stage::LineLf, 1),
            _ => return Err(unexpected(byte, LINE)),
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage, skip: usize) {
        self.at += skip;
        self.part = self.at;
        self.stage = stage;
    }
}

/// Header or trailer lines, up to the empty line that ends them (RFC 9112 §5).
#[derive(Debug, Default)]
pub(super) struct Lines {
    at: usize,
    name: usize,
    colon: usize,
    stage: FieldStage,
    count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum FieldStage {
    #[default]
    LineStart,
    Name,
    Value,
    ValueLf,
    EndLf,
}

impl Lines {
    /// Goes on with the lines in `bytes` and notes each one as name and value, the value with the white space around it.
    /// Gives the place behind the empty line, or `None` until that was seen.
    ///
    /// # Errors
    /// - the first violation in the order of the bytes, or what `note` returns.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        lines_max: usize,
        mut note: impl FnMut(&[u8], &[u8]) -> Result<(), FramingRefusal>,
    ) -> Result<Option<usize>, FramingRefusal> {
        while let Some(&byte) = bytes.get(self.at) {
            match self.stage {
                FieldStage::LineStart => self.line_start(byte, lines_max)?,
                FieldStage::Name => self.name(bytes)?,
                FieldStage::Value => {
                    self.at += value_run(bytes.get(self.at..).unwrap_or_default());
                    match bytes.get(self.at) {
                        Some(b'\r') => self.enter(FieldStage::ValueLf),
                        Some(&byte) => {
                            let rule = "a control character in a header value";
                            return Err(unexpected(byte, FramingRefusal::Ambiguous { rule }));
                        }
                        None => {}
                    }
                }
                FieldStage::ValueLf if byte == b'\n' => {
                    let name = bytes.get(self.name..self.colon).unwrap_or_default();
                    let value = bytes.get(self.colon + 1..self.at - 1).unwrap_or_default();
                    note(name, value)?;
                    self.enter(FieldStage::LineStart);
                }
                FieldStage::EndLf if byte == b'\n' => return Ok(Some(self.at + 1)),
                FieldStage::ValueLf | FieldStage::EndLf => return Err(BARE_CR),
            }
        }
        Ok(None)
    }

    fn line_start(&mut self, byte: u8, lines_max: usize) -> Result<(), FramingRefusal> {
        match byte {
            b'\r' => self.enter(FieldStage::EndLf),
            b' ' | b'\t' if self.count == 0 => {
                return Err(FramingRefusal::Ambiguous { rule: "white space before the first header" });
            }
            b' ' | b'\t' => return Err(FramingRefusal::Ambiguous { rule: "a folded header line" }),
            _ if self.count >= lines_max => {
                return Err(FramingRefusal::TooManyHeaders { limit: lines_max, seen: lines_max.saturating_add(1) });
            }
            _ => {
                self.count += 1;
                self.name = self.at;
                self.stage = FieldStage::Name;
            }
        }
        Ok(())
    }

    fn name(&mut self, bytes: &[u8]) -> Result<(), FramingRefusal> {
        let ambiguous = |rule| FramingRefusal::Ambiguous { rule };
        self.at += run(bytes, self.at, is_token);
        if self.at - self.name > NAME_BYTES_MAX {
            return Err(FramingRefusal::Malformed { rule: "a header name of more than 1024 bytes" });
        }
        match bytes.get(self.at) {
            Some(b':') if self.at == self.name => return Err(ambiguous("an empty header name")),
            Some(b':') => {
                self.colon = self.at;
                self.enter(FieldStage::Value);
            }
            Some(b' ' | b'\t') => return Err(ambiguous("white space in or after a header name")),
            Some(b'\r') => return Err(ambiguous("a header line without a colon")),
            Some(&byte) => return Err(unexpected(byte, ambiguous("a header name that is not a token"))),
            None => {}
        }
        Ok(())
    }

    fn enter(&mut self, stage: FieldStage) {
        self.at += 1;
        self.stage = stage;
    }
}

/// What the lines of a head say about its framing.
#[derive(Debug, Default)]
struct Said {
    http10: bool,
    connect: bool,
    upgrade: bool,
    host: bool,
    chunked: bool,
    length: Option<u64>,
}

impl Said {
    /// Notes one header line.
    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), FramingRefusal> {
        let ambiguous = |rule| Err(FramingRefusal::Ambiguous { rule });
        match framing_word(name) {
            None => return Ok(()),
            // Applications that read headers as CGI variables take both spellings for one (RFC 3875 §4.1.18).
            Some(_) if name.contains(&b'_') => return ambiguous("a framing header spelt with an underscore"),
            Some(Word::Host) if self.host => return Err(FramingRefusal::HostTwice),
            Some(Word::Host) => self.host = true,
            // Nobody goes on to HTTP/2 in this way: the offer is not passed on, and the message stays one of HTTP/1 (RFC 9110 §7.8).
            Some(Word::Upgrade) => self.upgrade |= upgrade_offers(value).next().is_some(),
            Some(Word::ContentLength | Word::TransferEncoding) if value.contains(&b'\t') => {
                return ambiguous("a tab beside the value of a framing header");
            }
            Some(Word::ContentLength) if self.length.is_some() => return ambiguous("two `Content-Length` lines"),
            Some(Word::ContentLength) => self.length = Some(decimal(value.trim_ascii())?),
            Some(Word::TransferEncoding) if self.http10 => return ambiguous("`Transfer-Encoding` in HTTP/1.0"),
            Some(Word::TransferEncoding) if self.chunked => return ambiguous("two `Transfer-Encoding` lines"),
            Some(Word::TransferEncoding) if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                return ambiguous("`Transfer-Encoding` is not `chunked` alone");
            }
            Some(Word::TransferEncoding) => self.chunked = true,
        }
        // RFC 9112 §6.1 lets a server take the chunks and forget the length; we don't, because another reader may not.
        if self.chunked && self.length.is_some() {
            return ambiguous("`Content-Length` beside `Transfer-Encoding`");
        }
        Ok(())
    }

    fn conclude(&self, length: usize) -> Result<Complete, FramingRefusal> {
        if !self.host && !self.http10 {
            return Err(FramingRefusal::HostMissing);
        }
        let body = if self.chunked { BodyLength::Chunked } else { BodyLength::Fixed(self.length.unwrap_or(0)) };
        Ok(Complete { length, body, switches: self.connect || self.upgrade })
    }
}

/// The protocols that an `Upgrade` line offers, without HTTP/2, which is not entered in this way (RFC 9113 §3.1).
pub(crate) fn upgrade_offers(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let offers = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    offers.filter(|offer| !offer.is_empty() && !offer.eq_ignore_ascii_case(b"h2c"))
}

/// A header that decides where a message ends or to whom it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Host,
    Upgrade,
    ContentLength,
    TransferEncoding,
}

/// The framing header of this name, in any case, with `_` taken for `-`.
pub(super) fn framing_word(name: &[u8]) -> Option<Word> {
    let (word, which): (&[u8], Word) = match name.len() {
        4 => (b"host", Word::Host),
        7 => (b"upgrade", Word::Upgrade),
        14 => (b"content-length", Word::ContentLength),
        17 => (b"transfer-encoding", Word::TransferEncoding),
        _ => return None,
    };
    let folded = name.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() });
    folded.eq(word.iter().copied()).then_some(which)
}

/// A length in digits alone (RFC 9110 §8.6): no sign, list, space or other base, and no leading zero that could be read as octal.
fn decimal(text: &[u8]) -> Result<u64, FramingRefusal> {
    let wrong = FramingRefusal::Ambiguous { rule: "`Content-Length` is not one decimal number" };
    if text.is_empty() || (text.len() > 1 && text.starts_with(b"0")) {
        return Err(wrong);
    }
    let mut length = 0u64;
    for byte in text {
        if !byte.is_ascii_digit() {
            return Err(wrong);
        }
        length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
    }
    if length > LENGTH_MAX {
        return Err(FramingRefusal::Ambiguous { rule: "a `Content-Length` of 2^63 or more" });
    }
    Ok(length)
}

/// The refusal of a byte that may not stand where it stands: the ones that split lines differently for others come first.
const fn unexpected(byte: u8, otherwise: FramingRefusal) -> FramingRefusal {
    match byte {
        b'\n' => BARE_LF,
        0 => NUL,
        _ => otherwise,
    }
}

/// How many bytes from `at` on are of a kind.
fn run(bytes: &[u8], at: usize, kind: impl Fn(u8) -> bool) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(|byte| !kind(*byte)).unwrap_or(rest.len())
}

/// How many bytes are characters of a header value. Sixteen are looked at together: values are the longest part of a head.
pub(super) fn value_run(bytes: &[u8]) -> usize {
    let (sixteens, _) = bytes.as_chunks::<16>();
    let whole = sixteens.iter().take_while(|sixteen| sixteen.iter().fold(true, |all, byte| all & is_value(*byte))).count() * 16;
    whole + run(bytes, whole, is_value)
}

/// A character of a token (RFC 9110 §5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    matches!(byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9'
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// A character of a request target. A fragment, which some readers cut off, and the delimiters of RFC 3986 are not among them.
const fn is_target(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'#' | b'"' | b'<' | b'>' | b'`')
}

/// Whether a request target is a URI. One that begins with `/` is readable because of its characters.
fn is_readable(target: &[u8]) -> bool {
    target.starts_with(b"/") || http::Uri::try_from(target).is_ok()
}

/// A character of a header value (RFC 9110 §5.5).
const fn is_value(byte: u8) -> bool {
    // Without branches, so that many are looked at together.
    (byte == b'\t') | (byte >= b' ') & (byte != 0x7f)
}
