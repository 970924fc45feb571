//! Puts a head or trailers together from decoded lines, within bounds, and says whether they are well-formed.

use super::head::Head;
use super::hpack::{Class, LINE_OVERHEAD, Lines};

/// What a field block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Request,
    Response,
    Trailers,
    /// Decoded only to keep the state of compression.
    Discard,
}

/// Bits of the pseudo-headers that came.
mod bit {
    pub(super) const METHOD: u8 = 1;
    pub(super) const SCHEME: u8 = 2;
    pub(super) const AUTHORITY: u8 = 4;
    pub(super) const PATH: u8 = 8;
    pub(super) const PROTOCOL: u8 = 16;
    pub(super) const STATUS: u8 = 32;
}

/// The block at hand. One per connection, as blocks never interleave.
#[derive(Debug)]
pub(super) struct Assembly {
    /// What came so far.
    pub(super) head: Head,
    /// Beyond one of the bounds: what came later is not kept.
    pub(super) too_large: bool,
    pub(super) content_length: Option<u64>,
    purpose: Purpose,
    pseudo_seen: u8,
    field_seen: bool,
    malformed: bool,
    cookie: Vec<u8>,
    bytes: usize,
    lines: usize,
    bytes_max: usize,
    lines_max: usize,
}

impl Assembly {
    pub(super) fn new(bytes_max: usize, lines_max: usize) -> Self {
        Self {
            head: Head::default(),
            too_large: false,
            content_length: None,
            purpose: Purpose::Discard,
            pseudo_seen: 0,
            field_seen: false,
            malformed: false,
            cookie: Vec::new(),
            bytes: 0,
            lines: 0,
            bytes_max,
            lines_max,
        }
    }

    pub(super) fn begin(&mut self, purpose: Purpose) {
        self.head.clear();
        self.cookie.clear();
        self.too_large = false;
        self.content_length = None;
        self.purpose = purpose;
        self.pseudo_seen = 0;
        self.field_seen = false;
        self.malformed = false;
        self.bytes = 0;
        self.lines = 0;
    }

    /// Gives the memory of past blocks back, unless a block is at hand.
    pub(super) fn trim(&mut self) {
        if self.purpose == Purpose::Discard {
            self.head = Head::default();
            self.cookie = Vec::new();
        }
    }

    /// All lines came. Returns whether they are well-formed as far as they were kept. `extended_connect`: `:protocol` is allowed.
    pub(super) fn finish(&mut self, extended_connect: bool) -> bool {
        if !self.cookie.is_empty() {
            self.head.fields.push_lower(b"cookie", &self.cookie);
        }
        if self.malformed || self.too_large {
            return !self.malformed;
        }
        match self.purpose {
            Purpose::Request => self.is_request(extended_connect),
            Purpose::Response => self.pseudo_seen & bit::STATUS != 0,
            Purpose::Trailers | Purpose::Discard => true,
        }
    }

    /// RFC 9113 §8.3.1, §8.5, RFC 8441 §4.
    fn is_request(&self, extended_connect: bool) -> bool {
        let Head { method, scheme, authority, path, protocol, .. } = &self.head;
        let seen = |bit: u8| self.pseudo_seen & bit != 0;
        if method.is_empty() || authority.iter().any(|byte| matches!(byte, b'@' | b'/' | b'?' | b'#' | b'\\')) {
            return false;
        }
        let connect = method == b"CONNECT";
        if connect && !seen(bit::PROTOCOL) {
            return !seen(bit::SCHEME) && !seen(bit::PATH) && !authority.is_empty();
        }
        let extended = connect && extended_connect && !protocol.is_empty() && !authority.is_empty();
        if seen(bit::PROTOCOL) && !extended {
            return false;
        }
        let asterisk = path == b"*" && method == b"OPTIONS";
        !scheme.is_empty() && (path.first() == Some(&b'/') || asterisk)
    }

    fn pseudo(&mut self, class: Class, value: &[u8]) {
        let head = &mut self.head;
        let (bit, place) = match (self.purpose, class) {
            (Purpose::Request, Class::Method) => (bit::METHOD, &mut head.method),
            (Purpose::Request, Class::Scheme) => (bit::SCHEME, &mut head.scheme),
            (Purpose::Request, Class::Authority) => (bit::AUTHORITY, &mut head.authority),
            (Purpose::Request, Class::Path) => (bit::PATH, &mut head.path),
            (Purpose::Request, Class::Protocol) => (bit::PROTOCOL, &mut head.protocol),
            (Purpose::Response, Class::Status) => {
                let status = status(value).filter(|_| !self.field_seen && self.pseudo_seen == 0);
                self.malformed |= status.is_none();
                head.status = status.unwrap_or(0);
                self.pseudo_seen = bit::STATUS;
                return;
            }
            _ => {
                self.malformed = true;
                return;
            }
        };
        let sound = match class {
            Class::Method | Class::Protocol => value.iter().all(|byte| is_token_byte(*byte)),
            _ => value.iter().all(|byte| *byte > b' ' && *byte != 0x7f),
        };
        // Before the fields, and once. RFC 9113 §8.3.
        self.malformed |= self.field_seen || self.pseudo_seen & bit != 0 || !sound;
        self.pseudo_seen |= bit;
        place.extend_from_slice(value);
    }

    fn special(&mut self, name: &[u8], value: &[u8], class: Class) {
        match class {
            Class::Cookie => {
                // RFC 9113 §8.2.3.
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
            }
            // Trailers do not frame anything: RFC 9110 §6.5.1.
            Class::ContentLength if self.purpose == Purpose::Trailers => {}
            Class::ContentLength => match (content_length(value), self.content_length) {
                (Some(length), None) => {
                    self.content_length = Some(length);
                    self.head.fields.push_lower(name, value);
                }
                (Some(length), Some(before)) if length == before => {}
                _ => self.malformed = true,
            },
            // RFC 9113 §8.2.2.
            Class::Te if value.eq_ignore_ascii_case(b"trailers") => self.head.fields.push_lower(name, value),
            _ => self.malformed = true,
        }
    }
}

impl Lines for Assembly {
    #[inline]
    fn line(&mut self, name: &[u8], value: &[u8], class: Class, sound: bool) {
        if self.purpose == Purpose::Discard {
            return;
        }
        self.bytes += name.len() + value.len() + LINE_OVERHEAD;
        // Crumbs of a cookie become one line.
        self.lines += usize::from(class != Class::Cookie || self.cookie.is_empty());
        self.too_large |= self.bytes > self.bytes_max || self.lines > self.lines_max;
        if self.too_large {
            return;
        }
        self.malformed |= !sound;
        match class {
            Class::Plain => {
                self.field_seen = true;
                self.head.fields.push_lower(name, value);
            }
            Class::Method | Class::Scheme | Class::Authority | Class::Path | Class::Protocol | Class::Status => {
                self.pseudo(class, value);
            }
            Class::Cookie | Class::ContentLength | Class::Te | Class::Forbidden | Class::Malformed => {
                self.field_seen = true;
                self.special(name, value, class);
            }
        }
    }
}

/// Three digits from 100 to 999. RFC 9110 §15.
fn status(value: &[u8]) -> Option<u16> {
    let [b'1'..=b'9', _, _] = value else { return None };
    value.iter().try_fold(0, |status, byte| byte.is_ascii_digit().then(|| status * 10 + u16::from(byte - b'0')))
}

/// One number and nothing else: no list, no sign. RFC 9110 §8.6.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
