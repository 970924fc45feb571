//! What a request costs: a client and a server in memory, calls as gRPC makes them (8 fields, 100 bytes up, 1 KiB down, trailers),
//! 64 at a time. Prints nanoseconds per request for each side: the median over all turns, as a machine that does other things too
//! would spoil a mean.
//!
//! `cargo run --release -p message --example cost`

use std::time::{Duration, Instant};

use message::Fields;
use message::http2::{BodyState, Connection, Event, Head, Role, Settings, StreamId};

const REQUESTS: u32 = 1_000_000;
const WARM: u32 = 10_000;
const AT_A_TIME: u32 = 64;
const UP: &[u8] = &[b'u'; 100];
const DOWN: &[u8] = &[b'd'; 1024];

/// What an application holds on its side.
struct Side {
    connection: Connection,
    head: Head,
    trailers: Fields,
    sent: Head,
    sent_trailers: Fields,
    /// What came from the other side.
    input: Vec<u8>,
    /// Of each turn.
    spent: Vec<Duration>,
    started: u32,
    done: u32,
    bytes: usize,
}

impl Side {
    fn new(role: Role) -> Self {
        Self {
            connection: Connection::new(role, Settings::default()),
            head: Head::default(),
            trailers: Fields::default(),
            sent: Head::default(),
            sent_trailers: Fields::default(),
            input: Vec::new(),
            spent: Vec::new(),
            started: 0,
            done: 0,
            bytes: 0,
        }
    }

    fn request(&mut self) {
        let head = &mut self.sent;
        head.clear();
        head.method.extend_from_slice(b"POST");
        head.scheme.extend_from_slice(b"http");
        head.authority.extend_from_slice(b"accounts.bank.svc.cluster.local:8080");
        head.path.extend_from_slice(b"/bank.accounts.v1.Accounts/Transfer");
        head.fields.push(b"content-type", b"application/grpc");
        head.fields.push(b"te", b"trailers");
        head.fields.push(b"user-agent", b"grpc-go/1.70.0");
        head.fields.push(b"grpc-accept-encoding", b"gzip");
        head.fields.push(b"grpc-timeout", b"1S");
        head.fields.push(b"authorization", &[b't'; 600]);
        let mut trace = *b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        // Different on each request.
        for (place, digit) in trace.iter_mut().skip(3).zip(0..8) {
            *place = b'a' + u8::try_from(self.started >> (4 * digit) & 0xf).unwrap_or(0);
        }
        head.fields.push(b"traceparent", &trace);
        head.fields.push(b"x-tenant", b"bank");
    }

    fn client_turn(&mut self) {
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Head(stream) => {
                    self.connection.take_head(stream, &mut self.head);
                }
                Event::Readable(stream) => {
                    if self.read(stream) {
                        self.connection.release(stream);
                        self.done += 1;
                    }
                }
                Event::Writable(_) | Event::Reset(..) | Event::Goaway { .. } | Event::SettingsChanged => {}
            }
        }
        while self.started < self.done + AT_A_TIME && self.started < REQUESTS + WARM {
            self.request();
            let Ok(stream) = self.connection.open(&self.sent, false) else { return };
            if self.connection.send_data(stream, UP, true) != Ok(UP.len()) {
                eprintln!("no room for a body");
            }
            self.started += 1;
        }
    }

    fn server_turn(&mut self) {
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Head(stream) => {
                    self.connection.take_head(stream, &mut self.head);
                }
                Event::Readable(stream) => {
                    if self.read(stream) {
                        self.answer(stream);
                    }
                }
                Event::Writable(_) | Event::Reset(..) | Event::Goaway { .. } | Event::SettingsChanged => {}
            }
        }
    }

    fn answer(&mut self, stream: StreamId) {
        self.sent.clear();
        self.sent.status = 200;
        self.sent.fields.push(b"content-type", b"application/grpc");
        self.sent.fields.push(b"grpc-encoding", b"identity");
        self.sent_trailers.clear();
        self.sent_trailers.push(b"grpc-status", b"0");
        self.sent_trailers.push(b"grpc-message", b"");
        let sent = self.connection.send_head(stream, &self.sent, false);
        let body = self.connection.send_data(stream, DOWN, false);
        let trailers = self.connection.send_trailers(stream, &self.sent_trailers);
        if (sent, body, trailers) != (Ok(()), Ok(DOWN.len()), Ok(())) {
            eprintln!("an answer was not sent");
        }
        self.connection.release(stream);
        self.done += 1;
    }

    /// Takes the body; returns whether all of it came.
    fn read(&mut self, stream: StreamId) -> bool {
        let count = self.connection.body(stream).len();
        self.bytes += count;
        self.connection.consume(stream, count);
        match self.connection.body_state(stream) {
            BodyState::More => false,
            BodyState::EndedWithTrailers => self.connection.take_trailers(stream, &mut self.trailers),
            BodyState::Ended | BodyState::Reset(_) => true,
        }
    }

    /// One turn of this side, with the time that it takes; then what it wrote goes to the other.
    fn turn(&mut self, other: &mut Self, act: impl FnOnce(&mut Self)) {
        let before = Instant::now();
        match self.connection.receive(&self.input) {
            Ok(used) => {
                self.input.drain(..used);
            }
            Err(error) => eprintln!("{error}"),
        }
        act(self);
        self.spent.push(before.elapsed());
        other.input.extend_from_slice(self.connection.output());
        self.connection.sent(usize::MAX);
    }
}

fn main() {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    let mut bytes = 0;
    while client.done < REQUESTS + WARM {
        client.turn(&mut server, Side::client_turn);
        bytes += server.input.len();
        server.turn(&mut client, Side::server_turn);
        if client.connection.failure().is_some() || server.connection.failure().is_some() {
            return;
        }
    }
    for (name, side) in [("client", &mut client), ("server", &mut server)] {
        side.spent.sort_unstable();
        let median = side.spent.get(side.spent.len() / 2).copied().unwrap_or_default();
        println!("{name}: {} ns per request, {} bytes of bodies", median.as_nanos() / u128::from(AT_A_TIME), side.bytes);
    }
    println!("{} bytes up per request", bytes / usize::try_from(REQUESTS + WARM).unwrap_or(1));
}
