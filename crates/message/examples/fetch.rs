//! Sends requests to a server that speaks HTTP/2 without TLS, 32 at a time, and prints what comes back: the client side against
//! `nghttpd --no-tls` and its like.
//!
//! `cargo run --release -p message --example fetch -- 127.0.0.1:8080 /path 1000 [bytes of body]`

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::TcpStream;

use message::Fields;
use message::http2::{BodyState, Connection, Event, Head, Role, Settings, StreamId};

const AT_A_TIME: usize = 32;

struct Client {
    connection: Connection,
    head: Head,
    request: Head,
    trailers: Fields,
    body: Vec<u8>,
    /// Bytes of the body that were sent.
    calls: HashMap<StreamId, usize>,
    statuses: BTreeMap<u16, u32>,
    bytes: usize,
    left: u32,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |or: &str| arguments.next().unwrap_or_else(|| or.to_owned());
    let (address, path) = (next("127.0.0.1:8080"), next("/"));
    let (left, length) = (next("1").parse().unwrap_or(1), next("0").parse().unwrap_or(0));
    let mut request =
        Head { scheme: b"http".to_vec(), authority: address.clone().into_bytes(), path: path.into_bytes(), ..Head::default() };
    request.method.extend_from_slice(if length == 0 { b"GET" } else { b"POST" });
    request.fields.push(b"user-agent", b"rondel");
    let mut client = Client {
        connection: Connection::new(Role::Client, Settings::default()),
        head: Head::default(),
        request,
        trailers: Fields::default(),
        body: vec![b'x'; length],
        calls: HashMap::new(),
        statuses: BTreeMap::new(),
        bytes: 0,
        left,
    };
    client.run(&mut TcpStream::connect(address)?)?;
    println!("{:?}, {} bytes", client.statuses, client.bytes);
    Ok(())
}

impl Client {
    fn run(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let (mut input, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            while self.left > 0 && self.calls.len() < AT_A_TIME {
                let end = self.body.is_empty();
                let Ok(stream) = self.connection.open(&self.request, end) else { break };
                self.left -= 1;
                self.calls.insert(stream, 0);
                self.send(stream);
            }
            if self.left == 0 && self.calls.is_empty() {
                self.connection.shutdown();
            }
            stream.write_all(self.connection.output())?;
            self.connection.sent(usize::MAX);
            self.take_events();
            if self.connection.is_ended() {
                return Ok(());
            }
            if !self.connection.output().is_empty() {
                continue;
            }
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            input.extend_from_slice(chunk.get(..count).unwrap_or_default());
            let used = self.connection.receive(&input).map_err(io::Error::other)?;
            input.drain(..used);
            self.take_events();
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Head(stream) => {
                    let arrival = self.connection.take_head(stream, &mut self.head);
                    *self.statuses.entry(self.head.status).or_default() += 1;
                    if arrival.is_some_and(|arrival| arrival.end) {
                        self.finish(stream);
                    }
                }
                Event::Readable(stream) => self.read(stream),
                Event::Writable(stream) => self.send(stream),
                Event::Reset(stream, code) => {
                    println!("reset: {code}");
                    self.finish(stream);
                }
                Event::Goaway { .. } | Event::SettingsChanged => println!("{event:?}"),
            }
        }
    }

    fn read(&mut self, stream: StreamId) {
        let count = self.connection.body(stream).len();
        self.bytes += count;
        self.connection.consume(stream, count);
        match self.connection.body_state(stream) {
            BodyState::More => return,
            BodyState::EndedWithTrailers => {
                self.connection.take_trailers(stream, &mut self.trailers);
            }
            BodyState::Ended | BodyState::Reset(_) => {}
        }
        self.finish(stream);
    }

    fn send(&mut self, stream: StreamId) {
        let Some(sent) = self.calls.get_mut(&stream) else { return };
        let rest = self.body.get(*sent..).unwrap_or_default();
        if !rest.is_empty() {
            *sent += self.connection.send_data(stream, rest, true).unwrap_or(rest.len());
        }
    }

    fn finish(&mut self, stream: StreamId) {
        self.connection.release(stream);
        self.calls.remove(&stream);
    }
}
