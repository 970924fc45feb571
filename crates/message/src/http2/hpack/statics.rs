//! The static table, and what kind of line a name makes.

/// What a field name means to the one who puts a head together. Told once per name, kept in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) enum Class {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
    Plain,
    Cookie,
    ContentLength,
    Te,
    /// Belongs to one connection of HTTP/1. RFC 9113 §8.2.2.
    Forbidden,
    /// Not a field name, or a pseudo-header that nobody knows. RFC 9113 §8.2.1, §8.3.
    Malformed,
}

impl Class {
    /// Tells what a name from the wire means.
    pub(in crate::http2) fn of(name: &[u8]) -> Self {
        match name {
            b"cookie" => Self::Cookie,
            b"content-length" => Self::ContentLength,
            b"te" => Self::Te,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => Self::Forbidden,
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":status" => Self::Status,
            name if !name.is_empty() && name.iter().all(|byte| is_name_byte(*byte)) => Self::Plain,
            _ => Self::Malformed,
        }
    }
}

/// Whether a byte may stand in a field name of HTTP/2: `tchar` of RFC 9110 §5.6.2 without upper case.
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'^' | b'`' | b'|' | b'~')
}

/// Whether a value may be passed on: no control character but HTAB, no white space at its ends. RFC 9113 §8.2.1, RFC 9110 §5.5.
pub(in crate::http2) fn is_sound_value(value: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // No early exit: the loop runs over many bytes at once.
    let bad = value.iter().fold(false, |bad, byte| bad | ((*byte < 0x20) & (*byte != b'\t')) | (*byte == 0x7f));
    !bad && !edge(value.first()) && !edge(value.last())
}

/// The place of a name's first line in the static table, 0 where it has none. RFC 7541 appendix A.
pub(super) fn static_name(name: &[u8]) -> u8 {
    match name {
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => 0,
    }
}

/// RFC 7541 appendix A. The first line has index 1.
#[rustfmt::skip]
pub(super) const STATIC_TABLE: [(&[u8], &[u8], Class); 61] = [
    (b":authority", b"", Class::Authority),
    (b":method", b"GET", Class::Method),
    (b":method", b"POST", Class::Method),
    (b":path", b"/", Class::Path),
    (b":path", b"/index.html", Class::Path),
    (b":scheme", b"http", Class::Scheme),
    (b":scheme", b"https", Class::Scheme),
    (b":status", b"200", Class::Status),
    (b":status", b"204", Class::Status),
    (b":status", b"206", Class::Status),
    (b":status", b"304", Class::Status),
    (b":status", b"400", Class::Status),
    (b":status", b"404", Class::Status),
    (b":status", b"500", Class::Status),
    (b"accept-charset", b"", Class::Plain),
    (b"accept-encoding", b"gzip, deflate", Class::Plain),
    (b"accept-language", b"", Class::Plain),
    (b"accept-ranges", b"", Class::Plain),
    (b"accept", b"", Class::Plain),
    (b"access-control-allow-origin", b"", Class::Plain),
    (b"age", b"", Class::Plain),
    (b"allow", b"", Class::Plain),
    (b"authorization", b"", Class::Plain),
    (b"cache-control", b"", Class::Plain),
    (b"content-disposition", b"", Class::Plain),
    (b"content-encoding", b"", Class::Plain),
    (b"content-language", b"", Class::Plain),
    (b"content-length", b"", Class::ContentLength),
    (b"content-location", b"", Class::Plain),
    (b"content-range", b"", Class::Plain),
    (b"content-type", b"", Class::Plain),
    (b"cookie", b"", Class::Cookie),
    (b"date", b"", Class::Plain),
    (b"etag", b"", Class::Plain),
    (b"expect", b"", Class::Plain),
    (b"expires", b"", Class::Plain),
    (b"from", b"", Class::Plain),
    (b"host", b"", Class::Plain),
    (b"if-match", b"", Class::Plain),
    (b"if-modified-since", b"", Class::Plain),
    (b"if-none-match", b"", Class::Plain),
    (b"if-range", b"", Class::Plain),
    (b"if-unmodified-since", b"", Class::Plain),
    (b"last-modified", b"", Class::Plain),
    (b"link", b"", Class::Plain),
    (b"location", b"", Class::Plain),
    (b"max-forwards", b"", Class::Plain),
    (b"proxy-authenticate", b"", Class::Plain),
    (b"proxy-authorization", b"", Class::Plain),
    (b"range", b"", Class::Plain),
    (b"referer", b"", Class::Plain),
    (b"refresh", b"", Class::Plain),
    (b"retry-after", b"", Class::Plain),
    (b"server", b"", Class::Plain),
    (b"set-cookie", b"", Class::Plain),
    (b"strict-transport-security", b"", Class::Plain),
    (b"transfer-encoding", b"", Class::Forbidden),
    (b"user-agent", b"", Class::Plain),
    (b"vary", b"", Class::Plain),
    (b"via", b"", Class::Plain),
    (b"www-authenticate", b"", Class::Plain),
];
