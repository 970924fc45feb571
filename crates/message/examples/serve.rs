//! Answers every request with 200 and its own body (or a short text where it has none): something for `curl
//! --http2-prior-knowledge`, `nghttp`, `h2load` and `h2spec` to talk to.
//!
//! `cargo run --release -p message --example serve -- 127.0.0.1:8080`

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use message::Fields;
use message::http2::{ArrivalKind, BodyState, CannotSend, Connection, Event, Head, Role, Settings, StreamId};

const TEXT: &[u8] = b"a carousel of lances\n";

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        thread::spawn(move || match Server::new().serve(stream) {
            Ok(()) => {}
            Err(error) => eprintln!("{error}"),
        });
    }
    Ok(())
}

struct Server {
    connection: Connection,
    /// Streams that are answered with `TEXT`.
    texts: HashSet<StreamId>,
    request: Head,
    response: Head,
    trailers: Fields,
    part: Vec<u8>,
}

impl Server {
    fn new() -> Self {
        Self {
            connection: Connection::new(Role::Server, Settings::default()),
            texts: HashSet::new(),
            request: Head::default(),
            response: Head::default(),
            trailers: Fields::default(),
            part: Vec::new(),
        }
    }

    fn serve(&mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while !self.connection.is_ended() {
            let waiting = self.connection.output();
            if !waiting.is_empty() {
                let count = stream.write(waiting)?;
                self.connection.sent(count);
                self.answer_events();
                continue;
            }
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(chunk.get(..count).unwrap_or_default());
            while let Ok(used) = self.connection.receive(&input).inspect_err(|error| eprintln!("{error}")) {
                input.drain(..used);
                self.answer_events();
                if self.connection.takes_input() {
                    break;
                }
                stream.write_all(self.connection.output())?;
                self.connection.sent(usize::MAX);
            }
        }
        Ok(())
    }

    fn answer_events(&mut self) {
        while let Some(event) = self.connection.next_event() {
            let answered = match event {
                Event::Head(stream) => self.begin(stream).and_then(|()| self.go_on(stream)),
                Event::Readable(stream) | Event::Writable(stream) => self.go_on(stream),
                Event::Reset(stream, _) => Err((stream, CannotSend::Gone)),
                Event::Goaway { .. } | Event::SettingsChanged => Ok(()),
            };
            if let Err((stream, _)) = answered {
                self.texts.remove(&stream);
                self.connection.release(stream);
            }
        }
    }

    fn begin(&mut self, stream: StreamId) -> Result<(), (StreamId, CannotSend)> {
        let Some(arrival) = self.connection.take_head(stream, &mut self.request) else { return Ok(()) };
        self.response.clear();
        self.response.status = if arrival.kind == ArrivalKind::TooLarge { 431 } else { 200 };
        self.response.fields.push(b"server", b"rondel");
        if arrival.end {
            self.texts.insert(stream);
        }
        self.connection.send_head(stream, &self.response, self.request.method == b"HEAD").map_err(|error| (stream, error))
    }

    fn go_on(&mut self, stream: StreamId) -> Result<(), (StreamId, CannotSend)> {
        if self.texts.contains(&stream) {
            if self.connection.send_data(stream, TEXT, true).map_err(|error| (stream, error))? == TEXT.len() {
                return Err((stream, CannotSend::Gone));
            }
            // What was taken of the text is not counted here: it is sent again from its beginning.
            return Ok(());
        }
        self.part.clear();
        self.part.extend_from_slice(self.connection.body(stream));
        let state = self.connection.body_state(stream);
        let end = state == BodyState::Ended;
        let sent = self.connection.send_data(stream, &self.part, end).map_err(|error| (stream, error))?;
        self.connection.consume(stream, sent);
        if sent < self.part.len() || state == BodyState::More {
            return Ok(());
        }
        if state == BodyState::EndedWithTrailers {
            self.connection.take_trailers(stream, &mut self.trailers);
            self.connection.send_trailers(stream, &self.trailers).map_err(|error| (stream, error))?;
        }
        Err((stream, CannotSend::Gone))
    }
}
