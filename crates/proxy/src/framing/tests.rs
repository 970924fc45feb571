//! How the tests work: a stream of bytes is cut in every way into reads, and what is read of it must not depend on the cuts.

use super::*;
use crate::buffer::Buffer;
use crate::http1::tests::loopback;
use crate::http1::{Body, BodyFault, Length, Next, Server};
use crate::io::Io;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use message::Version;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RULES: Rules = Rules { head_bytes_max: 1024, headers_max: 8, head_deadline: Duration::from_secs(10) };

/// What is known of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    line: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    /// The body's error, if it broke; what is wrong with it, where somebody told.
    broken: Option<Option<FramingRefusal>>,
}

impl Seen {
    fn of(head: &Head) -> Self {
        let version = match head.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2.0",
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let origin = if head.scheme.is_empty() { String::new() } else { text(&head.scheme) + "://" };
        let target = origin + &text(&head.authority) + &text(&head.path);
        Self { line: format!("{} {target} {version}", text(&head.method)), headers: lines(&head.fields), ..Self::default() }
    }
}

fn lines(fields: &Fields) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect()
}

/// What a stream of bytes is found to be.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The bytes of whole heads and of bodies: what anybody gets to see.
    passed: Vec<u8>,
    refusal: Option<FramingRefusal>,
    requests: Vec<Seen>,
    /// The bytes that were never taken.
    left: Vec<u8>,
}

/// Reads everything, in reads of at most `read_bytes`.
fn outcome(pieces: impl IntoIterator<Item = Vec<u8>>, read_bytes: usize, rules: Rules) -> Outcome {
    let (mut framing, mut head, mut trailers) = (Framing::new(rules), Head::default(), Fields::default());
    let mut seen = Outcome { passed: Vec::new(), refusal: None, requests: Vec::new(), left: Vec::new() };
    let mut switched = false;
    for read in pieces.into_iter().flat_map(|piece| piece.chunks(read_bytes).map(<[u8]>::to_vec).collect::<Vec<_>>()) {
        seen.left.extend_from_slice(&read);
        while seen.refusal.is_none() && !switched {
            if !framing.is_in_head() {
                head.clear();
            }
            let was_in_body = !framing.is_between();
            let taken = match framing.step(&seen.left, &mut head, &mut trailers) {
                Step::More => {
                    assert!(seen.left.len() < rules.head_bytes_max, "{} bytes wait", seen.left.len());
                    break;
                }
                Step::Head(count) => {
                    seen.requests.push(Seen::of(&head));
                    count
                }
                Step::Data(count) => {
                    seen.requests.last_mut().expect("a head first").body.extend_from_slice(&seen.left[..count]);
                    count
                }
                Step::Between(count) => {
                    seen.requests.last_mut().expect("a head first").trailers = lines(&trailers);
                    count
                }
                Step::Refused(count, refusal) => {
                    seen.refusal = Some(refusal);
                    assert_eq!(refusal.ends_body(), was_in_body, "{refusal}");
                    count
                }
                Step::Switched => {
                    switched = true;
                    break;
                }
            };
            assert!(taken > 0 || seen.refusal.is_some(), "a step that goes nowhere");
            seen.passed.extend(seen.left.drain(..taken));
        }
    }
    if seen.refusal.is_none() {
        seen.refusal = framing.ended();
    }
    if let Some(refusal) = seen.refusal {
        let again = framing.step(GOOD, &mut head, &mut trailers);
        assert_eq!(again, Step::Refused(0, refusal), "a refused stream goes on");
        assert_eq!(framing.ended(), None, "told twice");
    }
    seen
}

/// The outcome of `input` fed whole, byte by byte and cut in two at every place, in small and large reads.
fn outcome_in_every_way(name: &str, input: &[u8], rules: Rules) -> Outcome {
    let whole = outcome([input.to_vec()], 8192, rules);
    assert_eq!([whole.passed.as_slice(), &whole.left].concat(), input, "{name}: bytes were lost or made up");
    for read_bytes in [1, 7, 8192] {
        let bytewise = outcome(input.iter().map(|byte| vec![*byte]), read_bytes, rules);
        assert_eq!(bytewise, whole, "{name}: byte by byte, reads of {read_bytes}");
        for cut in 0..input.len() {
            let (first, second) = input.split_at(cut);
            let cut_in_two = outcome([first.to_vec(), second.to_vec()], read_bytes, rules);
            assert_eq!(cut_in_two, whole, "{name}: cut at {cut}, reads of {read_bytes}");
        }
    }
    whole
}

fn passes(name: &str, input: &[u8]) {
    let outcome = outcome_in_every_way(name, input, RULES);
    assert_eq!(outcome.refusal, None, "{name}");
    assert_eq!(outcome.passed, input, "{name}");
}

/// `sound` is taken and `rest` is not: the stream ends there for a reason that says `text`.
fn stops(name: &str, sound: &[u8], rest: &[u8], reason: Reason, text: &str) {
    let outcome = outcome_in_every_way(name, &[sound, rest].concat(), RULES);
    let refusal = outcome.refusal.unwrap_or_else(|| panic!("{name}: not refused"));
    assert_eq!(refusal.reason(), reason, "{name}: {refusal}");
    assert!(refusal.to_string().contains(text), "{name}: {refusal}");
    assert_eq!(outcome.passed, sound, "{name}");
}

const GOOD: &[u8] = b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn sound_requests_pass_byte_for_byte() {
    let cases: [(&str, &[u8]); 23] = [
        ("nothing", b""),
        ("minimal", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("HTTP/1.0 needs no host", b"GET / HTTP/1.0\r\n\r\n"),
        ("an empty line before the request line", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no space after the colon", b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"),
        ("tabs and spaces around a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \t b \t\r\n\r\n"),
        ("an empty value", b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"),
        ("obs-text in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\xff\r\n\r\n"),
        ("every token character", b"G!#$%&'*+-.^_`|~9 / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~9: b\r\n\r\n"),
        ("absolute form", b"GET http://a:80/b?c HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        ("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("colons in a value", b"GET / HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        ("a length", GOOD),
        ("a length of zero", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("spaces around a length", b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:  2  \r\n\r\nab"),
        ("a body that looks like a request", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\n\n\n\0"),
        ("chunks", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\r\nc\r\n0\r\n\r\n"),
        ("the coding in another case", b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:Chunked\r\n\r\n0\r\n\r\n"),
        (
            "a chunk that looks like the end",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000b\r\n\r\n0\r\n\r\nGET \r\n0\r\n\r\n",
        ),
        (
            "extensions",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nA;n=v;m=\"w\"\r\n0123456789\r\n0;last\r\n\r\n",
        ),
        (
            "trailers",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        ),
        ("a body cut short by its sender", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"),
        ("chunks cut short by their sender", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na"),
    ];
    for (name, input) in cases {
        passes(name, input);
    }
    let piped = [GOOD, b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", GOOD, b"\r\n", GOOD].concat();
    passes("pipelined", &piped);
    // Some old clients send one after a body; no request follows, so there is nothing to let through and nothing to refuse.
    let outcome = outcome_in_every_way("an empty line at the end", &[GOOD, b"\r\n"].concat(), RULES);
    assert_eq!((outcome.passed.as_slice(), outcome.refusal), (GOOD, None));
}

#[test]
fn rfc9112_3_a_malformed_request_line_is_refused() {
    let cases: [(&str, &[u8], &str); 24] = [
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00", "request line"),
        ("no space", b"GET\r\n\r\n", "request line"),
        ("no version", b"GET /\r\n\r\n", "request line"),
        ("an empty version", b"GET / \r\n\r\n", "request line"),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a space after the version", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "request line"),
        ("a space before the method", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a tab for a space", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a tab in the target", b"GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a vertical tab in the target", b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("no target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a method that is no token", b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a target outside ASCII", b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("a target that is no URI", b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", "no URI"),
        ("HTTP/0.9", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", "request line"),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", "request line"),
        ("HTTP/1.10", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", "request line"),
        ("HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "request line"),
        ("http in lower case", b"GET / http/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("two empty lines before it", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "request line"),
        ("an end inside it", b"GET / HT", "ended inside"),
        ("an end inside the headers", b"GET / HTTP/1.1\r\nHost: a\r\n", "ended inside"),
    ];
    for (name, input, text) in cases {
        stops(name, b"", input, Reason::RequestMalformed, text);
        stops(name, GOOD, input, Reason::RequestMalformed, text);
    }
}

#[test]
fn rfc9112_5_header_lines_that_split_differently_elsewhere_are_refused() {
    let cases: [(&str, &[u8], &str); 23] = [
        ("a bare line feed as an empty line", b"\nGET / HTTP/1.1\r\n", "line feed"),
        ("a bare line feed in the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", "line feed"),
        ("a bare line feed in the target", b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n", "line feed"),
        ("a bare line feed after a header", b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "line feed"),
        ("a bare line feed in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\n: b\r\n\r\n", "line feed"),
        ("a bare line feed at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", "line feed"),
        ("a bare carriage return in the request line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", "carriage return"),
        ("a bare carriage return in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", "carriage return"),
        ("two carriage returns", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "carriage return"),
        ("a bare carriage return at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n", "carriage return"),
        ("a bare carriage return first", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", "carriage return"),
        ("a NUL in a value", b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "NUL"),
        ("a NUL in a name", b"GET / HTTP/1.1\r\nHo\0st: a\r\n\r\n", "NUL"),
        ("a NUL in the target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "NUL"),
        ("a vertical tab in a value", b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n", "control character"),
        ("a DEL in a value", b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", "control character"),
        ("a folded line", b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "folded"),
        ("a line folded with a tab", b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", "folded"),
        ("white space before the first header", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "before the first"),
        ("a space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "white space in or after"),
        ("a tab before the colon", b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", "white space in or after"),
        ("an empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "empty header name"),
        ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "without a colon"),
    ];
    for (name, input, text) in cases {
        stops(name, b"", input, Reason::FramingAmbiguous, text);
        stops(name, GOOD, input, Reason::FramingAmbiguous, text);
    }
    for odd in *b"()<>@,;\\\"/[]?={}\x0b\x7f\x80\xff" {
        let input = [b"GET / HTTP/1.1\r\nHost: a\r\nX".as_slice(), &[odd], b"Y: b\r\n\r\n"].concat();
        stops(&format!("{odd:#x} in a name"), GOOD, &input, Reason::FramingAmbiguous, "not a token");
    }
}

#[test]
fn rfc9112_6_two_ways_to_find_the_end_of_a_body_are_refused() {
    let cases: [(&str, &[u8], &str); 43] = [
        ("length, then coding", b"Content-Length: 4\r\nTransfer-Encoding: chunked", "beside"),
        ("coding, then length", b"Transfer-Encoding: chunked\r\nContent-Length: 4", "beside"),
        ("length zero, then coding", b"Content-Length: 0\r\nX: y\r\nTransfer-Encoding: chunked", "beside"),
        ("two lengths", b"Content-Length: 4\r\nContent-Length: 5", "two `Content-Length`"),
        ("two equal lengths", b"Content-Length: 4\r\nContent-Length: 4", "two `Content-Length`"),
        ("two lengths in two cases", b"Content-Length: 4\r\nCONTENT-LENGTH: 4", "two `Content-Length`"),
        ("a list of lengths", b"Content-Length: 4, 4", "one decimal"),
        ("a list of one length", b"Content-Length: 4,", "one decimal"),
        ("an empty length", b"Content-Length:", "one decimal"),
        ("a length of spaces", b"Content-Length:   ", "one decimal"),
        ("a positive length", b"Content-Length: +4", "one decimal"),
        ("a negative length", b"Content-Length: -4", "one decimal"),
        ("a hexadecimal length", b"Content-Length: 0x4", "one decimal"),
        ("hexadecimal digits", b"Content-Length: a", "one decimal"),
        ("a length that may be octal", b"Content-Length: 010", "one decimal"),
        ("a length with a space", b"Content-Length: 1 0", "one decimal"),
        ("a length with a fraction", b"Content-Length: 4.0", "one decimal"),
        ("an exponent", b"Content-Length: 1e1", "one decimal"),
        ("digits of another script", "Content-Length: ٤".as_bytes(), "one decimal"),
        ("a length with underscores between digits", b"Content-Length: 1_0", "one decimal"),
        ("a quoted length", b"Content-Length: \"4\"", "one decimal"),
        ("2^63", b"Content-Length: 9223372036854775808", "2^63"),
        ("2^64", b"Content-Length: 18446744073709551616", "2^63"),
        ("a hundred digits", &[b"Content-Length: ".as_slice(), &[b'9'; 100]].concat(), "2^63"),
        ("a tab before a length", b"Content-Length:\t4", "a tab"),
        ("a tab after a length", b"Content-Length: 4\t", "a tab"),
        ("a tab before the coding", b"Transfer-Encoding:\tchunked", "a tab"),
        ("a tab after the coding", b"Transfer-Encoding: chunked\t", "a tab"),
        ("a vertical tab before the coding", b"Transfer-Encoding: \x0bchunked", "control character"),
        ("a vertical tab after the coding", b"Transfer-Encoding: chunked\x0b", "control character"),
        ("a folded coding", b"Transfer-Encoding:\r\n chunked", "`chunked` alone"),
        ("a space before the colon", b"Transfer-Encoding : chunked", "white space"),
        ("another coding", b"Transfer-Encoding: xchunked", "`chunked` alone"),
        ("identity", b"Transfer-Encoding: identity", "`chunked` alone"),
        ("an empty coding", b"Transfer-Encoding:", "`chunked` alone"),
        ("two codings", b"Transfer-Encoding: gzip, chunked", "`chunked` alone"),
        ("chunked not last", b"Transfer-Encoding: chunked, identity", "`chunked` alone"),
        ("chunked twice", b"Transfer-Encoding: chunked, chunked", "`chunked` alone"),
        ("a parameter", b"Transfer-Encoding: chunked;q=1", "`chunked` alone"),
        ("a quoted coding", b"Transfer-Encoding: \"chunked\"", "`chunked` alone"),
        ("chunked on two lines", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "two `Transfer-Encoding`"),
        ("an underscore in the coding's name", b"Transfer_Encoding: chunked", "underscore"),
        ("an underscore in the length's name", b"content_length: 4", "underscore"),
    ];
    for (name, lines, text) in cases {
        let input = [b"POST / HTTP/1.1\r\nHost: a\r\n".as_slice(), lines, b"\r\n\r\n0\r\n\r\n"].concat();
        stops(name, b"", &input, Reason::FramingAmbiguous, text);
        stops(name, GOOD, &input, Reason::FramingAmbiguous, text);
    }
    let input = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    stops("a coding in HTTP/1.0", GOOD, input, Reason::FramingAmbiguous, "HTTP/1.0");
}

#[test]
fn rfc9112_7_chunks_that_end_elsewhere_for_others_are_refused() {
    let long = [b"1;".as_slice(), &[b'x'; 4096]].concat();
    let cases: [(&str, &[u8], &[u8], &str); 33] = [
        ("no size", b"", b"\r\n0\r\n\r\n", "hexadecimal"),
        ("only an extension", b"", b";x\r\n", "hexadecimal"),
        ("a negative size", b"", b"-1\r\n", "hexadecimal"),
        ("a positive size", b"", b"+1\r\n", "hexadecimal"),
        ("a prefixed size", b"0", b"x1\r\n", "hexadecimal"),
        ("a size that is no number", b"", b"g\r\n", "hexadecimal"),
        ("a space before the size", b"", b" 1\r\nx\r\n", "hexadecimal"),
        ("a space after the size", b"1", b" \r\nx\r\n", "hexadecimal"),
        ("a tab after the size", b"1", b"\t\r\nx\r\n", "hexadecimal"),
        ("a vertical tab after the size", b"1", b"\x0b\r\nx\r\n", "hexadecimal"),
        ("an underscore in the size", b"1", b"_0\r\n", "hexadecimal"),
        ("a size of 2^64", b"1000000000000000", b"0\r\n", "16 digits"),
        ("a size of 2^63", b"800000000000000", b"0\r\n", "2^63"),
        ("a size of 17 zeros", b"0000000000000000", b"0\r\n", "16 digits"),
        ("a bare line feed after the size", b"1", b"\nx\r\n", "hexadecimal"),
        ("a bare carriage return after the size", b"1\r", b"x\r\n", "size line"),
        ("two carriage returns after the size", b"1\r", b"\r\nx\r\n", "size line"),
        ("a bare line feed in an extension", b"1;x", b"\nx\r\n", "extension"),
        ("a bare carriage return in an extension", b"1;x\r", b"y\r\n", "size line"),
        ("a space in an extension", b"1;x", b" =y\r\n", "extension"),
        ("a space before an extension", b"1", b" ;x\r\n", "hexadecimal"),
        ("an empty extension", b"1;", b"\r\nx\r\n", "extension"),
        ("a NUL in an extension", b"1;x", b"\0\r\n", "extension"),
        ("a tab in an extension", b"1;x=", b"\ty\r\n", "extension"),
        ("a long extension", &long, b"x\r\n", "4096 bytes"),
        ("data longer than its size", b"1\r\na", b"b\r\n", "end in CRLF"),
        ("data ended by a bare line feed", b"1\r\na", b"\n0\r\n\r\n", "end in CRLF"),
        ("data ended by a bare carriage return", b"1\r\na\r", b"0\r\n\r\n", "end in CRLF"),
        ("a bare line feed as the end", b"0\r\n", b"\n", "line feed"),
        ("a bare carriage return as the end", b"0\r\n", b"\rGET", "carriage return"),
        ("a folded trailer", b"0\r\n", b"X: a\r\n b\r\n\r\n", "folded"),
        ("a trailer ended by a bare line feed", b"0\r\n", b"X: a\n\r\n", "line feed"),
        ("nine trailers", b"0\r\n", b"A:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\n\r\n", "requestHeaders"),
    ];
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (name, sound, rest, text) in cases {
        for before in [b"".as_slice(), b"3\r\nabc\r\n"] {
            let sound = [head, before, sound].concat();
            if sound.len() < 1000 {
                stops(name, &sound, rest, Reason::FramingAmbiguous, text);
            } else {
                let whole = outcome([[sound.as_slice(), rest].concat()], 8192, RULES);
                assert_eq!(whole.passed, sound, "{name}");
                assert!(whole.refusal.is_some_and(|refusal| refusal.to_string().contains(text)), "{name}");
            }
        }
    }
    for name in ["Content-Length", "transfer-encoding", "HOST", "content_length", "Upgrade"] {
        let rest = format!("{name}: 1\r\n\r\n");
        stops(name, &[head.as_slice(), b"0\r\n"].concat(), rest.as_bytes(), Reason::FramingAmbiguous, "among the trailers");
    }
}

#[test]
fn rfc9112_3_2_exactly_one_host_is_needed() {
    let cases: [(&str, &[u8], &str); 5] = [
        ("none", b"GET / HTTP/1.1\r\n\r\n", "no `Host`"),
        ("none among others", b"GET / HTTP/1.1\r\nX-Host: a\r\nHosts: a\r\n\r\n", "no `Host`"),
        ("two", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "more than one"),
        ("two equal ones in two cases", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nhOST: a\r\n\r\n", "more than one"),
        ("two in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", "more than one"),
    ];
    for (name, input, text) in cases {
        stops(name, GOOD, input, Reason::HostInvalid, text);
    }
}

#[test]
fn a_head_passes_at_its_limit_and_is_refused_one_over() {
    let head = |value: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "v".repeat(value)).into_bytes();
    let fixed = head(0).len();
    for (rules, split) in [(RULES, 8192), (RULES, 100), (RULES, 1)] {
        let pieces = |bytes: Vec<u8>| bytes.chunks(split).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let at = head(rules.head_bytes_max - fixed);
        let passed = outcome(pieces([GOOD, &at, GOOD].concat()), 8192, rules);
        assert_eq!((passed.passed, passed.refusal), ([GOOD, &at, GOOD].concat(), None));
        let over = outcome(pieces([GOOD, &head(rules.head_bytes_max - fixed + 1)].concat()), 8192, rules);
        let refusal = FramingRefusal::HeadTooLarge { limit: 1024, seen: 1025 };
        assert_eq!((over.passed, over.refusal), (GOOD.to_vec(), Some(refusal)));
        assert_eq!(refusal.to_string(), "head of 1025 or more bytes is over limit `requestHeadBytes` (1024)");
        assert_eq!(refusal.reason(), Reason::HeadTooLarge);
    }
    let lines = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1)).into_bytes();
    passes("as many lines as allowed", &lines(RULES.headers_max));
    stops("one line more", GOOD, &lines(RULES.headers_max + 1), Reason::HeadTooLarge, "9 or more header lines");
    let endless = outcome([vec![b'A'; 10_000]], 8192, RULES);
    assert_eq!(endless.refusal.map(|refusal| refusal.reason()), Some(Reason::HeadTooLarge));
    let rules = Rules { head_bytes_max: 1 << 20, ..RULES };
    let long = [b"GET /".as_slice(), &[b'a'; 65_534], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let refusal = outcome([long], 8192, rules).refusal;
    assert_eq!(refusal, Some(FramingRefusal::Malformed { rule: "a request target of more than 65534 bytes" }));
    let long = [b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice(), &[b'a'; 1025], b": b\r\n\r\n"].concat();
    let refusal = outcome([long], 8192, rules).refusal;
    assert_eq!(refusal, Some(FramingRefusal::Malformed { rule: "a header name of more than 1024 bytes" }));
}

#[test]
fn trailers_pass_at_their_limit_and_are_refused_one_over() {
    let rules = Rules { head_bytes_max: 1 << 20, ..RULES };
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".as_slice();
    for (size, refused) in [(8192, false), (8193, true)] {
        let trailers = format!("X: {}\r\n\r\n", "v".repeat(size - 7)).into_bytes();
        let seen = outcome([[head, &trailers].concat()], 8192, rules);
        assert_eq!(seen.refusal.is_some(), refused, "{size}");
        assert_eq!(seen.passed.len(), if refused { head.len() } else { head.len() + size });
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_deadline_from_its_first_byte_and_an_idle_connection_has_none() {
    let (mut caller, io) = loopback(None).await;
    let (mut server, mut head) = (Server::new(Io::Plain(io), Buffer::default(), RULES), Head::default());
    for before in ["", "\r\n"] {
        caller.write_all(before.as_bytes()).await.expect("write");
        let idle = tokio::time::timeout(Duration::from_secs(3600), server.next(&mut head)).await;
        match before {
            "" => assert!(idle.is_err(), "an idle connection was ended"),
            _ => assert_eq!(idle.expect("an empty line holds a connection").expect("read"), Next::End),
        }
        // A slow head within its deadline passes, and the next one has a deadline of its own.
        caller.write_all(b"GET / HTTP/1.1\r\n").await.expect("write");
        let rest = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            caller.write_all(b"Host: a\r\n\r\n").await.expect("write");
        };
        let (next, ()) = tokio::join!(server.next(&mut head), rest);
        assert_eq!((next.expect("read"), Seen::of(&head).line.as_str()), (Next::Request, "GET / HTTP/1.1"));
    }
    caller.write_all(b"G").await.expect("write");
    let begun = tokio::time::Instant::now();
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            caller.write_all(b"E").await.expect("write");
        }
    };
    let next = tokio::select! { next = server.next(&mut head) => next.expect("read"), () = trickle => Next::End };
    let refusal = FramingRefusal::HeadTimeout { limit: RULES.head_deadline, seen: 4 };
    assert_eq!((next, begun.elapsed().as_secs()), (Next::Refused(refusal), 10));
    assert_eq!(refusal.to_string(), "head was not complete within limit `requestHeadMs` (10000 ms): 4 bytes came");
    assert_eq!(refusal.reason(), Reason::HeadTimeout);
    let again = server.next(&mut head).await.expect("read");
    assert_eq!(again, Next::Refused(refusal), "a refused connection goes on");
}

#[test]
fn every_byte_that_is_no_header_value_is_found_wherever_it_stands() {
    for byte in 0..=u8::MAX {
        let sound = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        for place in 0..40 {
            let mut value = [b'v'; 40];
            value[place] = byte;
            assert_eq!(head::value_run(&value), if sound { 40 } else { place }, "byte {byte:#x} at {place}");
        }
    }
}

#[test]
fn bytes_that_wait_are_bounded_whatever_comes() {
    // That they are is asserted wherever a step asks for more.
    for last in [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n".as_slice(), b"GET / HTTP/1.1\r\nHo"] {
        for read_bytes in [1000, 1023, 65_536] {
            let flood = [GOOD.repeat(1000).as_slice(), last, &[b'x'; 100_000]].concat();
            let seen = outcome([flood], read_bytes, RULES);
            assert!(seen.requests.len() >= 1000);
            let ends = seen.refusal.map(|refusal| refusal.reason());
            assert_eq!(ends, if last.starts_with(b"POST") { None } else { Some(Reason::HeadTooLarge) });
        }
    }
    let trailers =
        [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ".as_slice(), &[b'x'; 100_000]].concat();
    let seen = outcome([trailers], 100, RULES);
    assert_eq!(seen.refusal, Some(FramingRefusal::AmbiguousBody { rule: "trailers of more than 8192 bytes" }));
}

#[test]
fn after_connect_or_upgrade_nothing_is_parsed_or_let_through() {
    let cases: [&[u8]; 4] = [
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nupgrade: h2c, foo/1\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nUPGRADE: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for input in cases {
        for after in [b"".as_slice(), b"\x81\x05hello\n\n", GOOD] {
            let outcome = outcome_in_every_way("switch", &[GOOD, input, after].concat(), RULES);
            assert_eq!((outcome.passed, outcome.refusal), ([GOOD, input].concat(), None));
            assert_eq!(outcome.left, after, "what follows is lost");
        }
    }
}

// Our reading, the connection and the HTTP library together.

fn pairs(headers: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

async fn read_request(request: http::Request<Incoming>) -> Seen {
    let (head, mut body) = request.into_parts();
    let mut seen = Seen {
        line: format!("{} {} {:?}", head.method, head.uri, head.version),
        headers: pairs(&head.headers),
        ..Seen::default()
    };
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => seen.body.extend_from_slice(&data),
            Ok(Err(frame)) => seen.trailers = pairs(&frame.into_trailers().expect("trailers")),
            Err(_) => {
                seen.broken = Some(None);
                break;
            }
        }
    }
    seen
}

/// What the HTTP library alone makes of these bytes: another reader of the same grammar.
async fn read_by_the_library(pieces: Vec<Vec<u8>>) -> (Vec<Seen>, hyper::Result<()>, Vec<u8>) {
    let (mut caller, io) = tokio::io::duplex(4096);
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let service = service_fn(move |request| {
        let seen = Arc::clone(&seen);
        async move {
            let request = read_request(request).await;
            seen.lock().push(request);
            Ok::<_, Infallible>(http::Response::new(Full::new(bytes::Bytes::new())))
        }
    });
    let mut builder = http1::Builder::new();
    builder.half_close(true).max_headers(RULES.headers_max + 1);
    let server = builder.serve_connection(TokioIo::new(io), service);
    let client = async {
        let (mut reads, mut writes) = tokio::io::split(&mut caller);
        let mut responses = Vec::new();
        let write = async {
            for piece in pieces {
                // The server may have gone already.
                let _sent = writes.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            let _closed = writes.shutdown().await;
        };
        let (read, ()) = tokio::join!(reads.read_to_end(&mut responses), write);
        read.expect("responses");
        responses
    };
    let (ended, responses) = tokio::join!(server, client);
    let requests = requests.lock().clone();
    (requests, ended, responses)
}

/// What happened on one connection of ours.
struct Served {
    requests: Vec<Seen>,
    refusal: Option<FramingRefusal>,
    /// Everything that the caller was sent, an answer of the owner to a refusal of a head included.
    responses: Vec<u8>,
}

const OWNERS_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

/// Serves a connection as the proxy does: one request after the other, then the owner's answer to a refused head.
async fn serve(pieces: Vec<Vec<u8>>, answer: &[u8], socket_bytes: u32) -> Served {
    let (mut caller, io) = loopback(Some(socket_bytes)).await;
    let mut server = Server::new(Io::Plain(io), Buffer::default(), RULES);
    let (mut head, mut requests) = (Head::default(), Vec::new());
    let server = async {
        loop {
            match server.next(&mut head).await.expect("read") {
                Next::End => break,
                Next::Request => {}
                Next::Refused(refusal) => {
                    server.last_words(OWNERS_ANSWER).await.expect("last words");
                    return Some(refusal);
                }
            }
            let mut seen = Seen::of(&head);
            let refusal = loop {
                match poll_fn(|cx| server.poll_body(cx)).await {
                    Ok(Body::Data) => {
                        seen.body.extend_from_slice(server.data());
                        server.consume(usize::MAX);
                    }
                    Ok(Body::Ended) => break None,
                    Err(BodyFault::Framing(refusal)) => break Some(refusal),
                    Err(fault) => panic!("{fault}"),
                }
            };
            seen.trailers = lines(server.trailers());
            seen.broken = refusal.map(Some);
            requests.push(seen);
            server.respond(&Head { status: 200, ..Head::default() }, Length::Known(answer.len().try_into().expect("length")));
            let mut rest = answer;
            while !rest.is_empty() {
                let count = poll_fn(|cx| server.poll_write(cx, rest)).await.expect("write");
                rest = &rest[count..];
            }
            server.finish(&Fields::default());
            if refusal.is_some() || !server.goes_on() {
                server.end().await.expect("end");
                return refusal;
            }
        }
        server.end().await.expect("end");
        None
    };
    let client = async {
        let (mut reads, mut writes) = caller.split();
        let mut responses = Vec::new();
        let write = async {
            for piece in pieces {
                // The server may have gone already.
                let _sent = writes.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            let _closed = writes.shutdown().await;
        };
        let (read, ()) = tokio::join!(reads.read_to_end(&mut responses), write);
        read.expect("responses");
        responses
    };
    let (refusal, responses) = tokio::join!(server, client);
    Served { requests, refusal, responses }
}

#[tokio::test]
async fn the_owner_answers_a_refused_head_after_every_earlier_response_went_out_whole() {
    let answer: &[u8] = &[b'r'; 100_000];
    let bad = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for socket_bytes in [1024, 4096, 1 << 20] {
        let served = serve(vec![[GOOD, GOOD, bad].concat()], answer, socket_bytes).await;
        assert_eq!(served.requests.len(), 2);
        assert!(served.refusal.is_some_and(|refusal| !refusal.ends_body()));
        let bodies = served.responses.iter().filter(|byte| **byte == b'r').count();
        assert!(bodies >= 2 * answer.len(), "responses of {bodies} bytes through sockets of {socket_bytes}");
        assert!(served.responses.ends_with(OWNERS_ANSWER));
    }
}

#[tokio::test]
async fn a_broken_body_is_told_to_its_reader_who_answers_once() {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".as_slice();
    for answer in [b"".as_slice(), &[b'r'; 100_000]] {
        let served = serve(vec![[GOOD, head, b"1 \r\nx\r\n0\r\n\r\n", GOOD].concat()], answer, 1024).await;
        assert_eq!(served.requests.len(), 2);
        assert_eq!(served.requests[0].broken, None);
        assert_eq!((served.requests[1].broken, served.requests[1].body.as_slice()), (Some(served.refusal), b"abc".as_slice()));
        assert!(served.refusal.is_some());
        let responses = served.responses.windows(9).filter(|window| window.starts_with(b"HTTP/1.1 ")).count();
        assert_eq!(responses, 2);
        assert_eq!(served.responses.iter().filter(|byte| **byte == b'r').count() / 100_000 * 100_000, 2 * answer.len());
    }
}

#[tokio::test]
async fn what_the_library_alone_lets_through_is_refused() {
    // Both are answered with 200 by the library; see RFC 9112 §6.3 and §2.2.
    for head in ["GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n", "GET / HTTP/1.1\nHost: a\n"]
    {
        let input = format!("{head}\r\n0\r\n\r\n").into_bytes();
        let (_, _, response) = read_by_the_library(vec![input.clone()]).await;
        assert!(response.starts_with(b"HTTP/1.1 200"), "the library refuses {head:?} by now: this rule can be looked at again");

        let served = serve(vec![input], b"", 4096).await;
        assert_eq!((served.requests.len(), served.responses.as_slice()), (0, OWNERS_ANSWER));
    }
}

// Random streams.

/// A sound request, and what a service must see of it.
#[derive(Clone, Debug)]
struct Sample {
    bytes: Vec<u8>,
    seen: Seen,
}

fn field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let value = proptest::collection::vec(prop_oneof![0x21u8..0x7f, 0x80u8..=0xff], 0..12);
    ("x-[a-z0-9!#$%&'*+.^_`|~-]{0,8}", value)
}

fn fields(most: usize) -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    proptest::collection::btree_map("x-[a-z0-9!#$%&'*+.^_`|~-]{0,8}", field(), 0..most)
        .prop_map(|map| map.into_iter().map(|(name, (_, value))| (name, value)).collect())
}

#[derive(Clone, Debug)]
enum SampleBody {
    None,
    Length(Vec<u8>),
    Chunks(Vec<(Vec<u8>, String)>, Vec<(String, Vec<u8>)>),
}

fn body() -> impl Strategy<Value = SampleBody> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 1..most);
    let chunk = (bytes(40), "(;[a-z]{1,3}(=[a-z0-9]{1,4})?)?");
    prop_oneof![
        Just(SampleBody::None),
        bytes(300).prop_map(SampleBody::Length),
        (proptest::collection::vec(chunk, 0..5), fields(3)).prop_map(|(chunks, trailers)| SampleBody::Chunks(chunks, trailers)),
    ]
}

prop_compose! {
    fn sample()(method in "GET|PUT|POST|X-Y", target in "/[a-zA-Z0-9/?%&=._~;:@!$'()*+,|{}-]{0,20}", fields in fields(5), body in body()) -> Sample {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n").into_bytes();
        let mut seen = Seen { line: format!("{method} {target} HTTP/1.1"), headers: vec![("host".into(), b"a".to_vec())], ..Seen::default() };
        let line = |bytes: &mut Vec<u8>, name: &str, value: &[u8]| {
            bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        };
        for (name, value) in fields {
            line(&mut bytes, &name, &value);
            seen.headers.push((name, value));
        }
        match body {
            SampleBody::None => bytes.extend_from_slice(b"\r\n"),
            SampleBody::Length(data) => {
                let length = data.len().to_string();
                line(&mut bytes, "Content-Length", length.as_bytes());
                seen.headers.push(("content-length".into(), length.into_bytes()));
                bytes.extend_from_slice(&[b"\r\n", data.as_slice()].concat());
                seen.body = data;
            }
            SampleBody::Chunks(chunks, trailers) => {
                line(&mut bytes, "Transfer-Encoding", b"chunked");
                seen.headers.push(("transfer-encoding".into(), b"chunked".to_vec()));
                bytes.extend_from_slice(b"\r\n");
                for (data, extension) in chunks {
                    bytes.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
                    bytes.extend_from_slice(&[data.as_slice(), b"\r\n"].concat());
                    seen.body.extend_from_slice(&data);
                }
                bytes.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
                    line(&mut bytes, &name, &value);
                    seen.trailers.push((name, value));
                }
                bytes.extend_from_slice(b"\r\n");
            }
        }
        Sample { bytes, seen }
    }
}

/// Cuts bytes into pieces of the given sizes, over and over.
fn cut(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, tail) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece.to_vec());
        rest = tail;
    }
    pieces
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1usize..8, 1usize..200, Just(4000)], 1..6)
}

fn sorted(mut pairs: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    pairs.sort();
    pairs
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(future)
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sound_stream_passes_byte_for_byte_and_the_library_sees_the_same_requests(
        samples in proptest::collection::vec(sample(), 0..5), sizes in sizes(), read_bytes in 1usize..300,
    ) {
        let stream: Vec<u8> = samples.iter().flat_map(|sample| sample.bytes.clone()).collect();
        let ours = outcome(cut(&stream, &sizes), read_bytes, RULES);
        prop_assert_eq!((&ours.passed, ours.refusal), (&stream, None));
        let (theirs, ended, _) = block_on(read_by_the_library(cut(&stream, &sizes)));
        prop_assert!(ended.is_ok(), "{:?}", ended);
        prop_assert_eq!((ours.requests.len(), theirs.len()), (samples.len(), samples.len()));
        for (sample, reading) in samples.iter().zip(ours.requests) {
            prop_assert_eq!(&reading, &sample.seen);
        }
        for (sample, reading) in samples.into_iter().zip(theirs) {
            prop_assert_eq!(reading.line, sample.seen.line);
            prop_assert_eq!(sorted(reading.headers), sorted(sample.seen.headers));
            prop_assert_eq!(reading.body, sample.seen.body);
            prop_assert_eq!(sorted(reading.trailers), sorted(sample.seen.trailers));
            prop_assert_eq!(reading.broken, None);
        }
    }

    #[test]
    fn a_connection_reads_what_the_grammar_reads_however_the_bytes_arrive(
        samples in proptest::collection::vec(sample(), 0..5), sizes in sizes(),
    ) {
        let stream: Vec<u8> = samples.iter().flat_map(|sample| sample.bytes.clone()).collect();
        let served = block_on(serve(cut(&stream, &sizes), b"", 4096));
        prop_assert_eq!(served.refusal, None);
        let expected: Vec<_> = samples.into_iter().map(|sample| sample.seen).collect();
        prop_assert_eq!(served.requests, expected);
    }

    #[test]
    fn whatever_is_done_to_a_stream_the_outcome_does_not_depend_on_its_cuts_and_the_library_finds_no_fault_with_it(
        samples in proptest::collection::vec(sample(), 1..4), place in any::<prop::sample::Index>(),
        odd in prop_oneof![prop::sample::select(b"\r\n\t\0\x0b :;,0+-_".to_vec()), any::<u8>()], how in 0u8..4,
        sizes_a in sizes(), sizes_b in sizes(), read_bytes in 1usize..300,
    ) {
        let mut stream: Vec<u8> = samples.iter().flat_map(|sample| sample.bytes.clone()).collect();
        let place = place.index(stream.len());
        match how {
            0 => stream[place] = odd,
            1 => stream.insert(place, odd),
            2 => { stream.remove(place); }
            _ => stream.truncate(place),
        }
        let whole = outcome([stream.clone()], 8192, RULES);
        prop_assert_eq!(&[whole.passed.as_slice(), &whole.left].concat(), &stream);
        let cut_up = outcome(cut(&stream, &sizes_a), read_bytes, RULES);
        prop_assert_eq!(&cut_up, &whole);
        // What we pass on, as somebody behind us would read it.
        let (theirs, ended, _) = block_on(read_by_the_library(cut(&whole.passed, &sizes_b)));
        prop_assert!(!ended.as_ref().is_err_and(hyper::Error::is_parse), "{:?}", ended);
        // The library takes nothing behind a request of HTTP/1.0.
        let old = whole.requests.iter().any(|request| request.line.ends_with("HTTP/1.0"));
        prop_assert!(theirs.len() == whole.requests.len() || old, "{:?} {:?}", theirs, whole.requests);
        for (theirs, ours) in theirs.into_iter().zip(whole.requests) {
            prop_assert_eq!(theirs.line, ours.line);
            prop_assert_eq!(sorted(theirs.headers), sorted(ours.headers));
            // A body that was cut off has ended for nobody.
            prop_assert_eq!(theirs.body, ours.body);
            if theirs.broken.is_none() {
                prop_assert_eq!(sorted(theirs.trailers), sorted(ours.trailers));
            }
        }
    }
}
