use super::*;

#[derive(Debug, PartialEq)]
enum Expected {
    Fine,
    Stream(u32, ErrorCode),
    Connection(ErrorCode),
}

use Expected::{Connection as Ends, Fine, Stream};

const PROTOCOL: ErrorCode = ErrorCode::PROTOCOL_ERROR;
const CLOSED: ErrorCode = ErrorCode::STREAM_CLOSED;
const SIZE: ErrorCode = ErrorCode::FRAME_SIZE_ERROR;
const FLOW: ErrorCode = ErrorCode::FLOW_CONTROL_ERROR;

fn code(payload: &[u8]) -> ErrorCode {
    ErrorCode(u32::from_be_bytes(payload.try_into().unwrap()))
}

fn outcome(connection: &mut Connection, frames: &[Vec<u8>]) -> Expected {
    let (result, _) = give(connection, frames);
    let sent = written(connection);
    if let Err(error) = result {
        let (last, payload) = sent.last().unwrap();
        assert_eq!((last.kind, code(&payload[4..8])), (kind::GOAWAY, error.code()));
        assert!(connection.is_ended());
        return Ends(error.code());
    }
    assert_eq!(result, Ok(frames.concat().len()));
    match sent.iter().find(|(frame, _)| frame.kind == kind::RST_STREAM) {
        Some((frame, payload)) => Stream(frame.stream, code(payload)),
        None => Fine,
    }
}

fn check(connection: fn() -> Connection, rules: Vec<(&str, Vec<Vec<u8>>, Expected)>) {
    for (name, frames, expected) in rules {
        assert_eq!(outcome(&mut connection(), &frames), expected, "{name}");
        // The same one byte after the other.
        let (mut connection, mut kept, mut failed) = (connection(), Vec::new(), None);
        for byte in frames.concat() {
            kept.push(byte);
            match connection.receive(&kept) {
                Ok(used) => drop(kept.drain(..used)),
                Err(error) => failed = Some(error.code()),
            }
        }
        assert_eq!(failed.map(Ends), if matches!(expected, Ends(_)) { Some(expected) } else { None }, "{name}, bytewise");
    }
}

fn padded(kind: u8, flags: u8, stream: u32, padding: u8, payload: &[u8]) -> Vec<u8> {
    let content = [&[padding][..], payload].concat();
    frame(kind, flags | flag::PADDED, stream, &content)
}

#[test]
fn frames_of_a_wrong_size_or_place() {
    check(
        server,
        vec![
            ("6.1 DATA on stream 0", vec![data(0, false, b"a")], Ends(PROTOCOL)),
            (
                "6.1 padding as long as the frame",
                vec![headers(1, false, POST), padded(kind::DATA, 0, 1, 2, b"a")],
                Ends(PROTOCOL),
            ),
            ("6.1 padding of the whole content", vec![headers(1, false, POST), padded(kind::DATA, 0, 1, 1, b"a")], Fine),
            ("6.1 PADDED without a length", vec![headers(1, false, POST), frame(kind::DATA, flag::PADDED, 1, b"")], Ends(SIZE)),
            ("6.2 HEADERS on stream 0", vec![headers(0, true, GET)], Ends(PROTOCOL)),
            ("6.2 padding as long as the frame", vec![padded(kind::HEADERS, 5, 1, 9, b"\x82")], Ends(PROTOCOL)),
            ("6.2 PRIORITY without its bytes", vec![frame(kind::HEADERS, 0x25, 1, b"\0\0")], Ends(SIZE)),
            ("6.3 PRIORITY on stream 0", vec![frame(kind::PRIORITY, 0, 0, &[0; 5])], Ends(PROTOCOL)),
            ("6.3 PRIORITY of 4 bytes", vec![headers(1, false, POST), frame(kind::PRIORITY, 0, 1, &[0; 4])], Stream(1, SIZE)),
            ("6.3 PRIORITY on an idle stream", vec![frame(kind::PRIORITY, 0, 5, &[0, 0, 0, 1, 0])], Fine),
            ("5.3 an idle stream on itself", vec![frame(kind::PRIORITY, 0, 5, &[0, 0, 0, 5, 0])], Ends(PROTOCOL)),
            ("6.4 RST_STREAM on stream 0", vec![number(kind::RST_STREAM, 0, 8)], Ends(PROTOCOL)),
            ("6.4 RST_STREAM of 3 bytes", vec![headers(1, false, POST), frame(kind::RST_STREAM, 0, 1, &[0; 3])], Ends(SIZE)),
            ("6.4 RST_STREAM on an idle stream", vec![number(kind::RST_STREAM, 1, 8)], Ends(PROTOCOL)),
            ("6.5 SETTINGS on a stream", vec![frame(kind::SETTINGS, 0, 1, &[])], Ends(PROTOCOL)),
            ("6.5 SETTINGS of 5 bytes", vec![frame(kind::SETTINGS, 0, 0, &[0; 5])], Ends(SIZE)),
            ("6.5 acknowledgement with content", vec![frame(kind::SETTINGS, flag::ACK, 0, &[0; 6])], Ends(SIZE)),
            ("6.6 PUSH_PROMISE", vec![headers(1, false, POST), frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])], Ends(PROTOCOL)),
            ("6.7 PING on a stream", vec![frame(kind::PING, 0, 1, &[0; 8])], Ends(PROTOCOL)),
            ("6.7 PING of 7 bytes", vec![frame(kind::PING, 0, 0, &[0; 7])], Ends(SIZE)),
            ("6.8 GOAWAY on a stream", vec![frame(kind::GOAWAY, 0, 1, &[0; 8])], Ends(PROTOCOL)),
            ("6.8 GOAWAY of 7 bytes", vec![frame(kind::GOAWAY, 0, 0, &[0; 7])], Ends(SIZE)),
            ("6.9 WINDOW_UPDATE of 3 bytes", vec![frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3])], Ends(SIZE)),
            ("6.9 WINDOW_UPDATE of 0", vec![number(kind::WINDOW_UPDATE, 0, 0)], Ends(PROTOCOL)),
            ("6.9 of 0 on a stream", vec![headers(1, false, POST), number(kind::WINDOW_UPDATE, 1, 0)], Stream(1, PROTOCOL)),
            ("6.9 on an idle stream", vec![number(kind::WINDOW_UPDATE, 1, 1)], Ends(PROTOCOL)),
            ("6.9.1 beyond the largest window", vec![number(kind::WINDOW_UPDATE, 0, 0x7fff_ffff)], Ends(FLOW)),
            (
                "6.9.1 beyond the largest window of a stream",
                vec![headers(1, false, POST), number(kind::WINDOW_UPDATE, 1, 0x7fff_ffff)],
                Stream(1, FLOW),
            ),
            (
                "6.9.2 settings beyond the largest window",
                vec![headers(1, false, POST), number(kind::WINDOW_UPDATE, 1, 0x7fff_0000), settings(&[(4, 0x7fff_ffff)])],
                Ends(FLOW),
            ),
            ("4.2 a frame that is too long", vec![headers(1, false, POST), data(1, false, &[0; 16_385])], Ends(SIZE)),
            ("4.1 an unknown type", vec![frame(0xbb, 0xff, 7, b"anything")], Fine),
            ("4.1 unknown flags and the reserved bit", vec![frame(kind::PING, 0xfe, 0x8000_0000, &[0; 8])], Fine),
        ],
    );
}

#[test]
fn settings_that_must_not_be() {
    check(
        server,
        vec![
            ("ENABLE_PUSH 2", vec![settings(&[(2, 2)])], Ends(PROTOCOL)),
            ("ENABLE_PUSH 1", vec![settings(&[(2, 1)])], Fine),
            ("INITIAL_WINDOW_SIZE 2^31", vec![settings(&[(4, 0x8000_0000)])], Ends(FLOW)),
            ("MAX_FRAME_SIZE 16,383", vec![settings(&[(5, 16_383)])], Ends(PROTOCOL)),
            ("MAX_FRAME_SIZE 2^24", vec![settings(&[(5, 1 << 24)])], Ends(PROTOCOL)),
            ("ENABLE_CONNECT_PROTOCOL 2", vec![settings(&[(8, 2)])], Ends(PROTOCOL)),
            ("an unknown setting", vec![settings(&[(0xff, 7)])], Fine),
        ],
    );
    check(
        client,
        vec![
            ("ENABLE_PUSH 1 from a server", vec![settings(&[(2, 1)])], Ends(PROTOCOL)),
            ("ENABLE_CONNECT_PROTOCOL taken back", vec![settings(&[(8, 1)]), settings(&[(8, 0)])], Ends(PROTOCOL)),
        ],
    );
}

#[test]
fn the_connection_begins_with_preface_and_settings() {
    for (name, input) in [
        ("something else", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a wrong end", [&PREFACE[..20], b"abcd"].concat()),
        ("no settings", [PREFACE.to_vec(), frame(kind::PING, 0, 0, &[0; 8])].concat()),
        ("an acknowledgement", [PREFACE.to_vec(), frame(kind::SETTINGS, flag::ACK, 0, &[])].concat()),
    ] {
        let mut connection = Connection::new(Role::Server, Settings::default());
        assert_eq!(connection.receive(&input).map_err(ConnectionError::code), Err(PROTOCOL), "{name}");
        assert_eq!(connection.receive(&[]).map_err(ConnectionError::code), Err(PROTOCOL), "{name}, again");
    }
    assert_eq!(Connection::new(Role::Server, Settings::default()).receive(&PREFACE[..10]), Ok(0));
}

#[test]
fn frames_in_a_wrong_state_of_the_stream() {
    let reset = || number(kind::RST_STREAM, 1, 8);
    check(
        server,
        vec![
            ("5.1 DATA, idle", vec![data(1, true, b"")], Ends(PROTOCOL)),
            ("5.1 DATA, half-closed", vec![headers(1, true, GET), data(1, true, b"a")], Stream(1, CLOSED)),
            ("5.1 HEADERS, half-closed", vec![headers(1, true, GET), headers(1, true, GET)], Stream(1, CLOSED)),
            ("5.1 DATA after RST_STREAM", vec![headers(1, false, POST), reset(), data(1, true, b"a")], Ends(CLOSED)),
            ("5.1 HEADERS after RST_STREAM", vec![headers(1, false, POST), reset(), headers(1, true, GET)], Ends(CLOSED)),
            (
                "5.1 WINDOW_UPDATE after RST_STREAM",
                vec![headers(1, false, POST), reset(), number(kind::WINDOW_UPDATE, 1, 1)],
                Fine,
            ),
            ("5.1.1 an even number", vec![headers(2, true, GET)], Ends(PROTOCOL)),
            ("5.1.1 a smaller number", vec![headers(5, true, GET), headers(3, true, GET)], Ends(PROTOCOL)),
            ("5.1.1 DATA on a number that was left out", vec![headers(5, true, GET), data(3, true, b"")], Ends(CLOSED)),
            ("6.10 CONTINUATION alone", vec![frame(kind::CONTINUATION, 4, 1, &[])], Ends(PROTOCOL)),
            (
                "6.10 CONTINUATION of another stream",
                vec![frame(kind::HEADERS, 1, 1, &block(GET)), frame(kind::CONTINUATION, 4, 3, &[])],
                Ends(PROTOCOL),
            ),
            (
                "6.10 another frame within a block",
                vec![frame(kind::HEADERS, 1, 1, &block(GET)), frame(kind::PING, 0, 0, &[0; 8])],
                Ends(PROTOCOL),
            ),
            (
                "6.10 an unknown frame within a block",
                vec![frame(kind::HEADERS, 1, 1, &block(GET)), frame(0xaa, 0, 0, &[])],
                Ends(PROTOCOL),
            ),
            (
                "4.3 a block that stops within a line",
                vec![frame(kind::HEADERS, 5, 1, &block(GET)[..9])],
                Ends(ErrorCode::COMPRESSION_ERROR),
            ),
        ],
    );
    check(
        client,
        vec![
            ("5.1 HEADERS, idle", vec![headers(5, true, &[(":status", "200")])], Ends(PROTOCOL)),
            ("5.1 an even number", vec![headers(2, true, &[(":status", "200")])], Ends(PROTOCOL)),
            ("8.1 DATA before the head", vec![data(1, false, b"a")], Stream(1, PROTOCOL)),
            ("6.6 PUSH_PROMISE", vec![frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])], Ends(PROTOCOL)),
        ],
    );
}

#[test]
fn malformed_requests() {
    let with = |line: (&'static str, &'static str)| headers(1, false, &[POST, &[line]].concat());
    let without = |name: &str| headers(1, true, &GET.iter().copied().filter(|(known, _)| *known != name).collect::<Vec<_>>());
    let set = |name: &str, value: &'static str| {
        let lines: Vec<_> = GET.iter().map(|(known, text)| (*known, if *known == name { value } else { *text })).collect();
        headers(1, true, &lines)
    };
    let mut rules = vec![
        ("host without :authority", vec![without(":authority")], Fine),
        ("asterisk with OPTIONS", vec![headers(1, true, &[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")])], Fine),
        ("CONNECT", vec![headers(1, false, &[(":method", "CONNECT"), (":authority", "a:1")])], Fine),
        ("te: trailers", vec![with(("te", "trailers"))], Fine),
        (
            "equal content-length twice",
            vec![headers(1, false, &[POST, &[("content-length", "1"), ("content-length", "1")]].concat())],
            Fine,
        ),
        ("tab and high bytes", vec![with(("x", "a\tb\u{e4}"))], Fine),
    ];
    let malformed = vec![
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("empty path", set(":path", "")),
        ("path without a slash", set(":path", "a")),
        ("asterisk with GET", set(":path", "*")),
        ("space in the path", set(":path", "/a b")),
        ("space in the method", set(":method", "GET /")),
        ("empty method", set(":method", "")),
        ("user part", set(":authority", "u@a")),
        ("path in the authority", set(":authority", "a/b")),
        ("method twice", with((":method", "POST"))),
        ("path twice", with((":path", "/"))),
        ("status in a request", with((":status", "200"))),
        ("unknown pseudo-header", with((":foo", "a"))),
        ("protocol without RFC 8441", headers(1, false, &[&[(":protocol", "websocket")], POST].concat())),
        ("pseudo-header behind a field", headers(1, true, &[&[("x", "y")], GET].concat())),
        ("CONNECT with a path", headers(1, false, &[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")])),
        ("CONNECT without authority", headers(1, false, &[(":method", "CONNECT")])),
        ("upper case", with(("X-a", "b"))),
        ("empty name", with(("", "b"))),
        ("colon in a name", with(("a:b", "b"))),
        ("connection", with(("connection", "close"))),
        ("keep-alive", with(("keep-alive", "1"))),
        ("proxy-connection", with(("proxy-connection", "close"))),
        ("transfer-encoding", with(("transfer-encoding", "chunked"))),
        ("upgrade", with(("upgrade", "h2c"))),
        ("te", with(("te", "gzip"))),
        ("te with more", with(("te", "trailers, gzip"))),
        ("line feed", with(("x", "a\nb"))),
        ("return", with(("x", "a\rb"))),
        ("zero", with(("x", "a\0b"))),
        ("leading space", with(("x", " a"))),
        ("trailing tab", with(("x", "a\t"))),
        ("content-length list", with(("content-length", "1, 1"))),
        ("content-length sign", with(("content-length", "+1"))),
        ("content-length empty", with(("content-length", ""))),
        ("content-length beyond 64 bits", with(("content-length", "18446744073709551616"))),
        ("two of content-length", headers(1, false, &[POST, &[("content-length", "1"), ("content-length", "2")]].concat())),
        ("content-length without body", headers(1, true, &[GET, &[("content-length", "1")]].concat())),
    ];
    rules.extend(malformed.into_iter().map(|(name, bytes)| (name, vec![bytes], Stream(1, PROTOCOL))));
    let long = || with(("content-length", "3"));
    rules.extend([
        ("length and DATA agree", vec![long(), data(1, false, b"ab"), data(1, true, b"c")], Fine),
        ("too much DATA", vec![long(), data(1, false, b"abcd")], Stream(1, PROTOCOL)),
        ("too little DATA", vec![long(), data(1, true, b"ab")], Stream(1, PROTOCOL)),
        ("too little DATA, trailers", vec![long(), headers(1, true, &[("x", "y")])], Stream(1, PROTOCOL)),
        ("trailers", vec![headers(1, false, POST), headers(1, true, &[("x", "y")])], Fine),
        ("trailers that do not end", vec![headers(1, false, POST), headers(1, false, &[("x", "y")])], Stream(1, PROTOCOL)),
        ("pseudo-header in trailers", vec![headers(1, false, POST), headers(1, true, &[(":path", "/")])], Stream(1, PROTOCOL)),
        ("connection in trailers", vec![headers(1, false, POST), headers(1, true, &[("connection", "a")])], Stream(1, PROTOCOL)),
    ]);
    check(server, rules);
}

#[test]
fn extended_connect_is_taken_where_it_was_announced() {
    let announcing = || settled(Role::Server, Settings { enable_connect_protocol: true, ..Settings::default() });
    let connect =
        [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/chat"), (":authority", "a")];
    check(
        announcing,
        vec![
            ("whole", vec![headers(1, false, &connect)], Fine),
            ("without path", vec![headers(1, false, &[&connect[..3], &connect[4..]].concat())], Stream(1, PROTOCOL)),
            ("without authority", vec![headers(1, false, &connect[..4])], Stream(1, PROTOCOL)),
            ("with GET", vec![headers(1, false, &[&GET[..1], &connect[1..]].concat())], Stream(1, PROTOCOL)),
        ],
    );
}

#[test]
fn responses() {
    let on = |end: bool, lines: &[(&str, &str)]| headers(1, end, lines);
    check(
        client,
        vec![
            ("whole", vec![on(true, &[(":status", "200")])], Fine),
            ("no status", vec![on(true, &[("x", "y")])], Stream(1, PROTOCOL)),
            ("two of status", vec![on(true, &[(":status", "200"), (":status", "200")])], Stream(1, PROTOCOL)),
            ("status of two digits", vec![on(true, &[(":status", "20")])], Stream(1, PROTOCOL)),
            ("status with a sign", vec![on(true, &[(":status", "+20")])], Stream(1, PROTOCOL)),
            ("status below 100", vec![on(true, &[(":status", "099")])], Stream(1, PROTOCOL)),
            ("path in a response", vec![on(true, &[(":status", "200"), (":path", "/")])], Stream(1, PROTOCOL)),
            ("informational and final", vec![on(false, &[(":status", "103")]), on(true, &[(":status", "200")])], Fine),
            ("informational that ends", vec![on(true, &[(":status", "103")])], Stream(1, PROTOCOL)),
            ("101", vec![on(false, &[(":status", "101")])], Stream(1, PROTOCOL)),
            ("length without body", vec![on(true, &[(":status", "200"), ("content-length", "5")])], Stream(1, PROTOCOL)),
            ("length of 304 without body", vec![on(true, &[(":status", "304"), ("content-length", "5")])], Fine),
            ("a second head", vec![on(false, &[(":status", "200")]), on(false, &[(":status", "200")])], Stream(1, PROTOCOL)),
        ],
    );
}

#[test]
fn an_answer_to_head_may_have_a_length_and_no_body() {
    let mut connection = settled(Role::Client, Settings::default());
    let head = Head { method: b"HEAD".to_vec(), scheme: b"http".to_vec(), path: b"/".to_vec(), ..Head::default() };
    let stream = connection.open(&head, true).unwrap();
    written(&mut connection);
    let (result, events) = give(&mut connection, &[headers(1, true, &[(":status", "200"), ("content-length", "5")])]);
    assert!(result.is_ok());
    assert_eq!(events, [Event::Head(stream)]);
}

#[test]
fn a_stream_that_we_reset_is_ignored_and_one_that_ended_is_not() {
    let mut connection = server();
    accepted(&mut connection, &[headers(1, false, POST), headers(3, true, GET)]);
    let mut head = Head::default();
    assert!(connection.take_head(StreamId(1), &mut head).is_some());
    connection.release(StreamId(1));
    head.clear();
    head.status = 200;
    connection.send_head(StreamId(3), &head, true).unwrap();
    connection.release(StreamId(3));
    assert_eq!(connection.held_streams(), 0);
    assert_eq!(
        outcome(&mut connection, &[data(1, false, b"late"), headers(1, true, &[("x", "y")])]),
        Stream(1, ErrorCode::CANCEL)
    );
    assert_eq!(outcome(&mut connection, &[number(kind::RST_STREAM, 3, 0), number(kind::WINDOW_UPDATE, 3, 9)]), Fine);
    assert_eq!(outcome(&mut connection, &[headers(3, true, GET)]), Ends(CLOSED));
}
