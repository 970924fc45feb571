//! What a connection speaks, told from the first bytes of whoever speaks first. Pure: nothing here waits.
//!
//! Nothing about security hangs on the guess: what is not HTTP is decided as a connection, and what is HTTP goes through the
//! grammar of `framing`.

/// LIMIT: bytes of a request line that are looked at. A longer line without an end is no HTTP that could be served.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a client say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// A request line of HTTP/1.0 or HTTP/1.1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Neither.
    Opaque,
    /// It may still become any of them.
    Unclear,
}

/// Says what `bytes`, the first of a connection, begin. More bytes never turn a clear answer into another.
pub fn detect(bytes: &[u8]) -> Guess {
    let seen = bytes.len().min(HTTP2_PREFACE.len());
    if bytes.get(..seen) == HTTP2_PREFACE.get(..seen) {
        return if seen == HTTP2_PREFACE.len() { Guess::Http2 } else { Guess::Unclear };
    }
    // RFC 9112 §2.2: a server ignores an empty line before the request line.
    let mut line = bytes;
    while let Some(rest) = line.strip_prefix(b"\r\n") {
        line = rest;
    }
    let skipped = bytes.len() - line.len();
    if skipped >= LINE_BYTES_MAX {
        return Guess::Opaque;
    }
    if line.is_empty() || line == b"\r" {
        return Guess::Unclear;
    }
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    match line.get(method) {
        None if method <= METHOD_BYTES_MAX => return Guess::Unclear,
        Some(b' ') if method > 0 && method <= METHOD_BYTES_MAX => {}
        Some(_) | None => return Guess::Opaque,
    }
    let end = line.iter().position(|byte| *byte == b'\n');
    let text = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    // A target is made of visible characters (RFC 3986 §2); binary protocols betray themselves soon.
    if skipped + text.len() >= LINE_BYTES_MAX || !text.iter().all(|byte| matches!(byte, b'\r' | b' '..)) {
        return Guess::Opaque;
    }
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    match end {
        None => Guess::Unclear,
        Some(_) if text.ends_with(b" HTTP/1.1") || text.ends_with(b" HTTP/1.0") => Guess::Http1,
        Some(_) => Guess::Opaque,
    }
}

/// LIMIT: bytes of a method.
const METHOD_BYTES_MAX: usize = 64;

/// RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: [(&[u8], Guess); 16] = [
        (b"GET / HTTP/1.1\r\n", Guess::Http1),
        (b"\r\nPROPFIND /a b HTTP/1.0\n", Guess::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Guess::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSN", Guess::Opaque),
        (b"PING\r\n", Guess::Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Guess::Opaque),
        (b"SET /key value\r\n", Guess::Opaque),
        (b"\x16\x03\x01\x02\x00", Guess::Opaque),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Guess::Opaque),
        (b"GET /\x00 HTTP/1.1\r\n", Guess::Opaque),
        (b"EHLO client.example\r\n", Guess::Opaque),
        (b"", Guess::Unclear),
        (b"\r\n", Guess::Unclear),
        (b"PRI ", Guess::Unclear),
        (b"GET /a?b=\xc3\xa9", Guess::Unclear),
        (b"GET / HTTP/1.1", Guess::Unclear),
    ];

    #[test]
    fn first_bytes_say_what_a_connection_speaks() {
        for (bytes, wanted) in CASES {
            assert_eq!(detect(bytes), wanted, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn more_bytes_never_turn_a_clear_answer() {
        for (bytes, wanted) in CASES {
            let answers: Vec<Guess> = (0..=bytes.len()).map(|end| detect(&bytes[..end])).collect();
            let clear = answers.iter().position(|answer| *answer != Guess::Unclear).unwrap_or(answers.len());
            assert!(answers[clear..].iter().all(|answer| *answer == wanted), "{bytes:?}: {answers:?}");
            if wanted != Guess::Unclear {
                assert_eq!(detect(&[bytes, b" more\r\nand more \x00"].concat()), wanted, "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_waited_for_for_ever() {
        assert_eq!(detect(&[b"GET /".as_slice(), &vec![b'a'; LINE_BYTES_MAX]].concat()), Guess::Opaque);
        assert_eq!(detect(&b"\r\n".repeat(LINE_BYTES_MAX)), Guess::Opaque);
        assert_eq!(detect(&[b"GET /".as_slice(), &vec![b'a'; LINE_BYTES_MAX], b" HTTP/1.1\r\n"].concat()), Guess::Opaque);
        assert_eq!(detect(&[b"\r\n".repeat(LINE_BYTES_MAX).as_slice(), b"GET"].concat()), Guess::Opaque);
        assert_eq!(detect(&[b'G'; METHOD_BYTES_MAX + 1]), Guess::Opaque);
    }
}
