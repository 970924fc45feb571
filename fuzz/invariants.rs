//! What must hold for any bytes. The fuzz targets and the ordinary tests of the seeds call the same functions; a failed
//! assertion is the finding.

use message::http2::{self, BodyState, Event, Role, Settings, StreamId};
use message::{Fields, Head};
use proxy::detect::{Guess, detect as guess};
use proxy::facts::{self, Facts, Hop};
use proxy::framing::{Answering, Framing, Part, Rules, Step};
use proxy::mux::{self, Side};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const RULES: Rules = Rules { head_bytes_max: 4096, headers_max: 32, head_deadline: Duration::from_secs(3600) };
/// Bytes at a time.
const STEPS: [usize; 3] = [1, 7, 1000];

/// The grammar of requests reads the same however the bytes arrive, only bytes that arrived, and nothing that it would not read
/// again.
pub(crate) fn framing(input: &[u8]) {
    let whole = requests(input, usize::MAX);
    assert!(input.starts_with(&whole.passed), "it made bytes up");
    for step in STEPS {
        assert_eq!(requests(input, step), whole, "by {step}");
    }
    let again = requests(&whole.passed, usize::MAX);
    assert_eq!((again.passed, again.heads), (whole.passed, whole.heads), "what was sound is not sound");
}

/// The grammar of responses reads the same however the bytes arrive, to `HEAD` and to other requests.
pub(crate) fn answer(input: &[u8]) {
    for to_head in [false, true] {
        let whole = responses(input, to_head, usize::MAX);
        for step in STEPS {
            assert_eq!(responses(input, to_head, step), whole, "by {step}");
        }
    }
}

/// More bytes never turn a clear answer into another.
pub(crate) fn detect(input: &[u8]) {
    let last = guess(input);
    for end in 0..input.len() {
        let before = guess(input.get(..end).unwrap_or_default());
        assert!(before == Guess::Unclear || before == last, "{before:?} after {end} bytes, then {last:?}");
    }
}

/// A request target and host that are accepted are forwarded in a form that is accepted as the same.
pub(crate) fn target(input: &[u8]) {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (target, host) = (input.get(..line).unwrap_or_default(), input.get(line + 1..).unwrap_or(b"a"));
    let mut head = Head { method: b"GET".to_vec(), ..Head::default() };
    if target.starts_with(b"/") || target == b"*" {
        head.path = target.to_vec();
    } else {
        let Ok(uri) = http::Uri::try_from(target) else { return };
        head.scheme = uri.scheme_str().unwrap_or_default().into();
        head.authority = uri.authority().map_or("", http::uri::Authority::as_str).into();
        head.path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str).into();
    }
    head.fields.push(b"host", host);
    let mut first = Facts::default();
    if first.collect(&head).is_err() {
        return;
    }
    assert!(first.path.starts_with('/'), "{:?}", first.path);
    assert!(!first.path.split('/').any(|segment| segment == "." || segment == ".."), "{:?}", first.path);
    assert!(first.path_and_query.starts_with(&first.path) && first.authority.starts_with(&first.host));
    let mut forwarded = Head { method: b"GET".to_vec(), path: first.path_and_query.clone().into(), ..Head::default() };
    forwarded.scheme = first.scheme.into();
    forwarded.fields.push(b"host", first.authority.as_bytes());
    // Into facts that hold something else already, as a worker does it.
    let mut again = first.clone();
    again.path.push('x');
    again.collect(&forwarded).expect("what is forwarded is accepted");
    assert_eq!(again, first);
}

/// Whatever a caller says of itself, no application reads it: header lines and trailers, one `name: value` per line of the input.
/// Nobody reads `x-forwarded-client-cert` on the way; it is removed, and set anew.
pub(crate) fn claims(input: &[u8]) {
    let mut said = Fields::default();
    for line in input.split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if !name.is_empty() && name.iter().all(is_token) {
            said.push(name, value.get(1..).unwrap_or_default().trim_ascii());
        }
    }
    let mut forwarded = said.clone();
    facts::forward_headers(&mut forwarded, Hop::Inbound);
    let mut once_more = forwarded.clone();
    facts::forward_headers(&mut once_more, Hop::Inbound);
    assert!(once_more.iter().eq(forwarded.iter()), "what is forwarded would not be forwarded as it is");
    facts::forwarded_for(&mut forwarded, Ipv4Addr::LOCALHOST.into(), false);
    facts::forward_trailers(&mut said);
    let mut origins = 0;
    for (name, value) in forwarded.iter().chain(said.iter()) {
        // As a CGI program sees it, where every header is a variable.
        let variable: String =
            name.iter().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase().into() } else { '_' }).collect();
        let is_ours = variable.starts_with("X_RONDEL_") || variable == "X_FORWARDED_CLIENT_CERT";
        assert!(!is_ours && !matches!(variable.as_str(), "FORWARDED" | "X_REAL_IP" | "CONNECTION" | "PROXY"), "{variable}");
        if variable == "X_FORWARDED_FOR" {
            origins += 1;
            assert_eq!(value, b"127.0.0.1");
        }
    }
    assert_eq!(origins, 1);
}

/// The streams between two sidecars are the same however the bytes arrive, for both ends; memory stays in its bounds.
pub(crate) fn mux(input: &[u8]) {
    for side in [Side::Opener, Side::Taker { streams_max: 4 }] {
        let whole = streams(input, side, usize::MAX);
        for step in STEPS {
            let cut = streams(input, side, step);
            assert_eq!(cut.ended, whole.ended, "by {step}");
            // Where a connection ends, nobody is handed what arrived in the same turn.
            if whole.ended.is_none() {
                assert_eq!(cut, whole, "by {step}");
            }
        }
    }
}

/// A connection of HTTP/2 says the same however the bytes arrive. The first byte says who reads them: `s`, a server, or a client
/// with two requests under way.
pub(crate) fn http2(input: &[u8]) {
    let Some((who, input)) = input.split_first() else { return };
    let role = if *who == b's' { Role::Server } else { Role::Client };
    let whole = conversation(input, role, usize::MAX);
    for step in STEPS {
        let cut = conversation(input, role, step);
        // A server forgets a stream that it reset before anybody took its head; late frames on it are judged otherwise then.
        if role == Role::Client || cut.resets.is_empty() {
            assert_eq!(cut, whole, "by {step}");
        }
    }
}

/// What was read of a stream of messages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    passed: Vec<u8>,
    heads: Vec<Head>,
    data: Vec<u8>,
    trailers: Vec<Fields>,
    /// Whether it ended for a reason of its own.
    refused: bool,
    ended: bool,
}

fn requests(input: &[u8], step: usize) -> Read {
    let (mut framing, mut head, mut trailers) = (Framing::new(RULES), Head::default(), Fields::default());
    let (mut read, mut held) = (Read::default(), Vec::new());
    'pieces: for piece in input.chunks(step) {
        held.extend_from_slice(piece);
        loop {
            if !framing.is_in_head() {
                head.clear();
            }
            let taken = match framing.step(&held, &mut head, &mut trailers) {
                Step::More => break,
                Step::Head(count) => {
                    read.heads.push(head.clone());
                    count
                }
                Step::Data(count) => {
                    read.data.extend_from_slice(held.get(..count).unwrap_or_default());
                    count
                }
                Step::Between(count) => {
                    if framing.is_between() {
                        read.trailers.push(trailers.clone());
                    }
                    count
                }
                Step::Refused(count, refusal) => {
                    assert_eq!(framing.step(&held, &mut head, &mut trailers), Step::Refused(0, refusal));
                    read.refused = true;
                    read.passed.extend(held.drain(..count));
                    break 'pieces;
                }
                Step::Switched => {
                    read.ended = true;
                    break 'pieces;
                }
            };
            assert!(taken > 0, "a step that goes nowhere");
            read.passed.extend(held.drain(..taken));
        }
        assert!(held.len() <= RULES.head_bytes_max, "{} bytes wait", held.len());
    }
    read
}

fn responses(input: &[u8], to_head: bool, step: usize) -> Read {
    let (mut answering, mut head, mut trailers) = (Answering::new(), Head::default(), Fields::default());
    let (mut read, mut held) = (Read::default(), Vec::new());
    'pieces: for piece in input.chunks(step) {
        held.extend_from_slice(piece);
        loop {
            let taken = match answering.step(&held, to_head, &mut head, &mut trailers) {
                Part::More => break,
                Part::Ended => {
                    assert!(answering.is_ended());
                    break 'pieces;
                }
                Part::Head(count) => {
                    assert!((100..=999).contains(&head.status));
                    read.heads.push(head.clone());
                    count
                }
                Part::Data(count) => {
                    read.data.extend_from_slice(held.get(..count).unwrap_or_default());
                    count
                }
                Part::Between(count) => count,
                Part::Malformed(_) => {
                    read.refused = true;
                    break 'pieces;
                }
            };
            assert!(taken > 0, "a step that goes nowhere");
            assert!(input.get(read.passed.len()..).is_some_and(|rest| rest.starts_with(held.get(..taken).unwrap_or_default())));
            read.passed.extend(held.drain(..taken));
        }
    }
    read.ended = answering.is_ended();
    if read.ended {
        read.trailers.push(trailers);
    }
    if read.refused {
        // How many bytes between two chunks were sound before the one that was not depends on the reads.
        read.passed.clear();
    }
    read
}

/// What one end of a connection of many streams made of its bytes.
#[derive(Debug, PartialEq, Eq)]
struct Streams {
    /// What each stream that was opened or arrived says, and whether it ended.
    said: Vec<(Vec<u8>, String)>,
    answered: Vec<u8>,
    ended: Option<String>,
}

fn streams(input: &[u8], side: Side, step: usize) -> Streams {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    let _entered = runtime.enter();
    let wire = Wire(Rc::new(RefCell::new(Bytes { left: input.to_vec(), allowed: 0, answered: Vec::new() })));
    let (handle, mut driver) = mux::over(wire.clone(), side);
    let mut held: Vec<_> = if side == Side::Opener { (0..4).filter_map(|_| handle.open()).collect() } else { Vec::new() };
    let mut cx = Context::from_waker(Waker::noop());
    let mut ended = None;
    while !wire.0.borrow().left.is_empty() && ended.is_none() {
        wire.0.borrow_mut().allowed = step;
        loop {
            match pin!(driver.next()).poll(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(stream)) => held.push(stream),
                Poll::Ready(Err(why)) => {
                    ended = Some(why.to_string());
                    break;
                }
            }
        }
    }
    let said = held.iter_mut().map(|stream| drained(stream, &mut cx)).collect();
    let answered = std::mem::take(&mut wire.0.borrow_mut().answered);
    Streams { said, answered, ended }
}

fn drained(stream: &mut mux::Stream, cx: &mut Context<'_>) -> (Vec<u8>, String) {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        let mut read = ReadBuf::new(&mut buf);
        match Pin::new(&mut *stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => return (all, "ended".into()),
            Poll::Ready(Ok(())) => all.extend_from_slice(read.filled()),
            Poll::Ready(Err(error)) => return (all, error.kind().to_string()),
            Poll::Pending => return (all, "open".into()),
        }
        assert!(all.len() <= 256 * 1024, "more than a window");
    }
}

/// The heads with what came behind them, and why the connection failed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Conversation {
    heads: Vec<(u32, Head)>,
    bodies: BTreeMap<u32, (Vec<u8>, BodyState, Fields)>,
    resets: Vec<(u32, u32)>,
    goaways: Vec<(u32, u32)>,
    failed: Option<http2::ConnectionError>,
}

fn conversation(input: &[u8], role: Role, step: usize) -> Conversation {
    let mut connection = http2::Connection::new(role, Settings::default());
    let (mut seen, mut known) = (Conversation::default(), Vec::new());
    if role == Role::Client {
        let head = Head { method: b"GET".to_vec(), scheme: b"http".to_vec(), path: b"/".to_vec(), ..Head::default() };
        known.extend([true, false].into_iter().filter_map(|end| connection.open(&head, end).ok()));
    }
    let mut held = Vec::new();
    for piece in input.chunks(step) {
        held.extend_from_slice(piece);
        loop {
            let taken = connection.receive(&held);
            note(&mut connection, &mut seen, &mut known);
            assert!(connection.output().len() <= 1 << 20, "{} bytes of answers", connection.output().len());
            connection.sent(usize::MAX);
            match taken {
                Ok(0) => break,
                Ok(count) => drop(held.drain(..count)),
                Err(error) => {
                    assert_eq!(connection.receive(&held), Err(error), "a failed connection goes on");
                    seen.failed = Some(error);
                    break;
                }
            }
        }
        if seen.failed.is_some() {
            break;
        }
        assert!(held.len() <= 16_384 + 9, "{} bytes wait", held.len());
    }
    for stream in known {
        let (body, state, mut trailers) = (connection.body(stream).to_vec(), connection.body_state(stream), Fields::default());
        let came = connection.take_trailers(stream, &mut trailers);
        assert_eq!(came, state == BodyState::EndedWithTrailers);
        seen.bodies.insert(stream.number(), (body, state, trailers));
    }
    // Of a stream that was reset, what nobody had taken yet is gone.
    for (stream, _) in &seen.resets {
        seen.heads.retain(|(of, _)| of != stream);
        seen.bodies.remove(stream);
    }
    seen
}

fn note(connection: &mut http2::Connection, seen: &mut Conversation, known: &mut Vec<StreamId>) {
    while let Some(event) = connection.next_event() {
        match event {
            Event::Head(stream) => {
                let mut head = Head::default();
                if connection.take_head(stream, &mut head).is_some() {
                    assert!(head.fields.iter().all(|(name, _)| !name.is_empty() && !name.starts_with(b":")));
                    seen.heads.push((stream.number(), head));
                }
                if !known.contains(&stream) {
                    known.push(stream);
                }
            }
            Event::Reset(stream, code) => seen.resets.push((stream.number(), code.0)),
            Event::Goaway { last, code } => seen.goaways.push((last, code.0)),
            Event::Readable(_) | Event::Writable(_) | Event::SettingsChanged => {}
        }
    }
}

/// Gives so many bytes and then none until more are allowed; takes everything.
#[derive(Clone)]
struct Wire(Rc<RefCell<Bytes>>);

struct Bytes {
    left: Vec<u8>,
    allowed: usize,
    answered: Vec<u8>,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.0.borrow_mut();
        let count = bytes.left.len().min(bytes.allowed).min(buf.remaining());
        if count == 0 {
            return Poll::Pending;
        }
        bytes.allowed -= count;
        bytes.left.drain(..count).for_each(|byte| buf.put_slice(&[byte]));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().answered.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
