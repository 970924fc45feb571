//! Frames by hand, and a small random generator. Rules are in `rules.rs`, two sides that talk in `pair.rs`, hostile bytes in
//! `hostile.rs`.

mod bounds;
mod hostile;
mod pair;
mod rules;

use super::frame::{Frame, HEADER_BYTES, PREFACE, flag, kind};
use super::*;

/// Deterministic: a failing test fails again.
pub(in crate::http2) struct Random(pub(in crate::http2) u64);

impl Random {
    pub(in crate::http2) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(in crate::http2) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Frame { length: payload.len() as u32, kind, flags, stream }.header().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Literals without indexing.
fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in lines {
        for (first, text) in [(Some(0), name), (None, value)] {
            bytes.extend(first);
            assert!(text.len() < 127 + 128);
            if text.len() < 127 {
                bytes.push(text.len() as u8);
            } else {
                bytes.extend([127, (text.len() - 127) as u8]);
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

const GET: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
const POST: &[(&str, &str)] = &[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

fn headers(stream: u32, end: bool, lines: &[(&str, &str)]) -> Vec<u8> {
    let end = if end { flag::END_STREAM } else { 0 };
    frame(kind::HEADERS, flag::END_HEADERS | end, stream, &block(lines))
}

fn data(stream: u32, end: bool, bytes: &[u8]) -> Vec<u8> {
    frame(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, bytes)
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

fn number(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

/// The frames that wait to be written; they count as written.
fn written(connection: &mut Connection) -> Vec<(Frame, Vec<u8>)> {
    let mut rest = connection.output().strip_prefix(PREFACE).unwrap_or(connection.output());
    let mut frames = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let frame = Frame::parse(header);
        let (payload, behind) = behind.split_at(frame.length as usize);
        frames.push((frame, payload.to_vec()));
        rest = behind;
    }
    assert!(rest.is_empty());
    connection.sent(usize::MAX);
    frames
}

/// A connection behind the exchange of settings.
fn settled(role: Role, settings_of_ours: Settings) -> Connection {
    let mut connection = Connection::new(role, settings_of_ours);
    let mut input = if role == Role::Server { PREFACE.to_vec() } else { Vec::new() };
    input.extend(settings(&[]));
    input.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
    assert_eq!(connection.receive(&input), Ok(input.len()));
    assert_eq!(connection.next_event(), Some(Event::SettingsChanged));
    written(&mut connection);
    connection
}

fn server() -> Connection {
    settled(Role::Server, Settings::default())
}

/// A client with a request without body on stream 1, and one with a body to come on stream 3.
fn client() -> Connection {
    let mut connection = settled(Role::Client, Settings::default());
    let mut head = Head::default();
    head.method.extend_from_slice(b"GET");
    head.scheme.extend_from_slice(b"http");
    head.path.extend_from_slice(b"/");
    for end in [true, false] {
        connection.open(&head, end).unwrap();
    }
    written(&mut connection);
    connection
}

/// Gives everything to the connection, and takes all events.
fn give(connection: &mut Connection, frames: &[Vec<u8>]) -> (Result<usize, ConnectionError>, Vec<Event>) {
    let result = connection.receive(&frames.concat());
    (result, std::iter::from_fn(|| connection.next_event()).collect())
}

/// The same where nothing may be wrong.
fn accepted(connection: &mut Connection, frames: &[Vec<u8>]) -> Vec<Event> {
    let (result, events) = give(connection, frames);
    assert_eq!(result, Ok(frames.concat().len()));
    events
}
