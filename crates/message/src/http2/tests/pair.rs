use std::collections::HashMap;

use super::*;
use crate::Fields;

/// One request with its answer, as one side sees it.
#[derive(Default)]
struct Call {
    /// Bytes that this side sends, and how many it has.
    length: usize,
    sent: usize,
    /// May send: nothing was refused, or Writable came.
    writable: bool,
    ended: bool,
    came: usize,
    head_came: bool,
}

struct Side {
    connection: Connection,
    calls: HashMap<StreamId, Call>,
    /// Bytes on their way to this side.
    wire: Vec<u8>,
    finished: usize,
    reset: usize,
}

/// Byte of a body by its place: both sides know it.
fn byte(stream: StreamId, down: bool, place: usize) -> u8 {
    ((stream.number() as usize * 31 + place * 7 + usize::from(down)) % 251) as u8
}

impl Side {
    fn new(role: Role, random: &mut Random) -> Self {
        let settings = Settings {
            max_concurrent_streams: 1 + random.below(40) as u32,
            stream_window: [1, 10, 300, 5000, 100_000][random.below(5)],
            connection_window: 65_535 + random.below(100_000) as u32,
            output_bytes_max: [200, 3000, 100_000][random.below(3)],
            header_table_bytes: [0, 100, 4096][random.below(3)],
            ..Settings::default()
        };
        Self { connection: Connection::new(role, settings), calls: HashMap::new(), wire: Vec::new(), finished: 0, reset: 0 }
    }

    fn is_client(&self) -> bool {
        self.connection.role == Role::Client
    }

    fn take(&mut self, random: &mut Random) {
        // Any part of what is on its way arrives.
        let count = if random.below(3) == 0 { random.below(self.wire.len() + 1) } else { self.wire.len() };
        let used = self.connection.receive(&self.wire[..count]).unwrap();
        self.wire.drain(..used);
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Head(stream) => self.head(stream, random),
                Event::Readable(_) | Event::Goaway { .. } | Event::SettingsChanged => {}
                Event::Writable(stream) => self.calls.get_mut(&stream).unwrap().writable = true,
                Event::Reset(stream, _) => self.gone(stream),
            }
        }
    }

    fn head(&mut self, stream: StreamId, random: &mut Random) {
        let mut head = Head::default();
        let Some(_) = self.connection.take_head(stream, &mut head) else { return };
        if self.is_client() {
            self.calls.get_mut(&stream).unwrap().head_came = true;
            assert_eq!(head.status, 200);
            assert_eq!(head.fields.first(b"x-stream"), Some(stream.number().to_string().as_bytes()));
            return;
        }
        assert_eq!((&head.path[..], head.fields.first(b"x-same")), (&b"/same"[..], Some(&b"always"[..])));
        let call = Call { length: length(random), writable: true, head_came: true, ..Call::default() };
        self.calls.insert(stream, call);
        head.clear();
        head.status = 200;
        head.fields.push(b"x-stream", stream.number().to_string().as_bytes());
        self.connection.send_head(stream, &head, false).unwrap();
    }

    fn gone(&mut self, stream: StreamId) {
        self.connection.release(stream);
        self.calls.remove(&stream);
        self.reset += 1;
    }

    /// Everything that the application could do on its streams, or some of it.
    fn act(&mut self, random: &mut Random) {
        let mut streams: Vec<StreamId> = self.calls.keys().copied().collect();
        streams.sort();
        for stream in streams {
            if random.below(400) == 0 {
                self.connection.reset(stream, ErrorCode::CANCEL);
                self.gone(stream);
                continue;
            }
            if random.below(4) > 0 && self.go_on(stream, random) {
                self.connection.release(stream);
                self.calls.remove(&stream);
                self.finished += 1;
            }
        }
    }

    /// Reads and writes. Returns whether the call is over.
    fn go_on(&mut self, stream: StreamId, random: &mut Random) -> bool {
        let down = !self.is_client();
        let call = self.calls.get_mut(&stream).unwrap();
        let body = self.connection.body(stream);
        let count = if random.below(2) == 0 { body.len() } else { random.below(body.len() + 1) };
        for (place, came) in body[..count].iter().enumerate() {
            assert_eq!(*came, byte(stream, !down, call.came + place));
        }
        call.came += count;
        self.connection.consume(stream, count);
        if call.writable && !call.ended {
            let bytes: Vec<u8> = (call.sent..call.length).map(|place| byte(stream, down, place)).take(70_000).collect();
            let with_trailers = call.length.is_multiple_of(2);
            let last = call.sent + bytes.len() == call.length;
            match self.connection.send_data(stream, &bytes, last && !with_trailers) {
                Ok(sent) => {
                    call.sent += sent;
                    call.writable = sent == bytes.len();
                    call.ended = last && call.writable;
                    if call.ended && with_trailers {
                        let mut trailers = Fields::default();
                        trailers.push(b"x-length", call.length.to_string().as_bytes());
                        self.connection.send_trailers(stream, &trailers).unwrap();
                    }
                }
                Err(CannotSend::Reset(_)) => call.ended = true,
                Err(other) => panic!("{other}"),
            }
        }
        let unread = !self.connection.body(stream).is_empty();
        let mut trailers = Fields::default();
        match self.connection.body_state(stream) {
            _ if unread => return false,
            BodyState::More => return false,
            BodyState::Ended => {}
            BodyState::EndedWithTrailers => {
                assert!(self.connection.take_trailers(stream, &mut trailers));
                assert_eq!(trailers.first(b"x-length"), Some(call.came.to_string().as_bytes()));
            }
            BodyState::Reset(code) => panic!("{code}"),
        }
        call.ended
    }

    fn send(&mut self, other: &mut Self, random: &mut Random) {
        let waiting = self.connection.output();
        let count = if random.below(2) == 0 { waiting.len() } else { random.below(waiting.len() + 1) };
        other.wire.extend_from_slice(&waiting[..count]);
        self.connection.sent(count);
    }

    fn check_empty(&self, seed: u64) {
        let connection = &self.connection;
        assert_eq!((connection.held_streams(), connection.open_streams(), connection.heads.len()), (0, 0, 0), "seed {seed}");
        assert_eq!((connection.output().len(), self.wire.len()), (0, 0), "seed {seed}");
        let window = connection.receive_window + i64::from(connection.due);
        assert_eq!(window, i64::from(connection.settings.connection_window), "seed {seed}: nothing of the window is lost");
    }
}

fn length(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 0,
        1 => random.below(200),
        2 => random.below(5000),
        _ => random.below(40_000),
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let random = &mut random;
    let (mut client, mut server) = (Side::new(Role::Client, random), Side::new(Role::Server, random));
    // A window of one byte makes each byte a round trip.
    let slow = client.connection.settings.stream_window.min(server.connection.settings.stream_window) < 100;
    let total = if slow { 5 } else { 60 };
    let (mut opened, mut quiet) = (0, 0);
    while opened < total || !client.calls.is_empty() || !server.calls.is_empty() {
        let before = (client.finished, client.reset, server.connection.receive_window, client.connection.receive_window);
        while opened < total && client.connection.can_open().is_ok() && random.below(3) > 0 {
            let mut head =
                Head { method: b"POST".to_vec(), scheme: b"http".to_vec(), path: b"/same".to_vec(), ..Head::default() };
            head.fields.push(b"x-same", b"always");
            head.fields.push(b"x-other", opened.to_string().as_bytes());
            let stream = client.connection.open(&head, false).unwrap();
            let length = if slow { random.below(300) } else { length(random) };
            client.calls.insert(stream, Call { length, writable: true, ..Call::default() });
            opened += 1;
        }
        client.act(random);
        client.send(&mut server, random);
        server.take(random);
        if slow {
            server.calls.values_mut().filter(|call| call.sent == 0).for_each(|call| call.length = call.length.min(301));
        }
        server.act(random);
        server.send(&mut client, random);
        client.take(random);
        client.connection.second_passed();
        server.connection.second_passed();
        let after = (client.finished, client.reset, server.connection.receive_window, client.connection.receive_window);
        quiet = if before == after { quiet + 1 } else { 0 };
        assert!(quiet < 3000, "seed {seed}: a deadlock");
    }
    for _ in 0..200 {
        client.send(&mut server, random);
        server.take(random);
        server.send(&mut client, random);
        client.take(random);
    }
    client.check_empty(seed);
    server.check_empty(seed);
    assert_eq!(client.finished + client.reset, total);
    client.connection.shutdown();
    server.connection.shutdown();
    for _ in 0..20 {
        client.send(&mut server, random);
        server.take(random);
        server.send(&mut client, random);
        client.take(random);
    }
    assert!(server.connection.goaway_sent.is_some() && server.connection.goaway_received.is_some());
}

/// Each is a connection of its own kind.
const SEEDS: u64 = 40;

#[test]
fn every_byte_arrives_whatever_the_windows_and_the_chunks() {
    for seed in 0..SEEDS {
        run(seed);
    }
}
