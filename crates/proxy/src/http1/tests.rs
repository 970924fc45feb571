//! Both sides of a connection over real loopback sockets: against bytes written by hand, and against each other.

use super::*;
use crate::buffer::Buffer;
use crate::framing::Rules;
use crate::io::Io;
use message::{Fields, Head};
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// The two ends of a connection. `socket_bytes`: what their kernel holds, as far as it can be told (it doubles it).
pub(crate) async fn loopback(socket_bytes: Option<u32>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let socket = TcpSocket::new_v4().expect("socket");
    if let Some(bytes) = socket_bytes {
        socket.set_send_buffer_size(bytes).expect("sets");
        socket.set_recv_buffer_size(bytes).expect("sets");
        let size = usize::try_from(bytes).expect("size");
        socket2::SockRef::from(&listener).set_recv_buffer_size(size).expect("sets");
        socket2::SockRef::from(&listener).set_send_buffer_size(size).expect("sets");
    }
    let (opened, accepted) = tokio::join!(socket.connect(listener.local_addr().expect("address")), listener.accept());
    (opened.expect("connects"), accepted.expect("accepts").0)
}

const RULES: Rules = Rules { head_bytes_max: 16 * 1024, headers_max: 64, head_deadline: Duration::from_secs(10) };
/// Nothing here takes so long; a test that would hang says so.
const DEADLINE: Duration = Duration::from_secs(60);

async fn server(socket_bytes: Option<u32>) -> (TcpStream, Server) {
    let (far, near) = loopback(socket_bytes).await;
    (far, Server::new(Io::Plain(near), Buffer::default(), RULES))
}

async fn client(socket_bytes: Option<u32>) -> (Client, TcpStream) {
    let (near, far) = loopback(socket_bytes).await;
    (Client::new(Io::Plain(near)), far)
}

fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in lines {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

fn request(method: &str, path: &str, lines: &[(&str, &str)]) -> Head {
    Head { method: method.into(), path: path.into(), fields: fields(lines), ..Head::default() }
}

fn response(status: u16, lines: &[(&str, &str)]) -> Head {
    Head { status, fields: fields(lines), ..Head::default() }
}

fn lines(fields: &Fields) -> Vec<String> {
    let line = |(name, value)| format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
    fields.iter().map(line).collect()
}

/// Bytes that differ everywhere, so that a lost or doubled piece is seen.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

impl Server {
    /// The next request, and its body to its end.
    async fn whole(&mut self, head: &mut Head) -> Result<Vec<u8>, BodyFault> {
        assert_eq!(self.next(head).await.expect("reads"), Next::Request);
        self.body().await
    }

    async fn body(&mut self) -> Result<Vec<u8>, BodyFault> {
        let mut body = Vec::new();
        while poll_fn(|cx| self.poll_body(cx)).await? == Body::Data {
            body.extend_from_slice(self.data());
            self.consume(usize::MAX);
        }
        assert!(self.is_request_over());
        Ok(body)
    }

    async fn answer(&mut self, head: &Head, length: Length, body: &[u8]) {
        self.respond(head, length);
        let mut rest = body;
        while !rest.is_empty() {
            let count = poll_fn(|cx| self.poll_write(cx, rest)).await.expect("writes");
            rest = &rest[count..];
        }
        self.finish(&Fields::default());
        poll_fn(|cx| self.poll_flush(cx)).await.expect("flushes");
    }
}

impl Client {
    /// Sends a whole request.
    async fn send(&mut self, head: &Head, length: Length, body: &[u8]) -> io::Result<()> {
        self.request(head, b"a", length);
        let mut rest = body;
        while !rest.is_empty() {
            let count = poll_fn(|cx| self.poll_write(cx, rest)).await?;
            rest = &rest[count..];
        }
        self.finish(&Fields::default());
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// The next head and, unless it is an interim one, the body to its end.
    async fn whole(&mut self) -> Result<(Head, Vec<u8>), ClientFault> {
        let (mut head, mut body) = (Head::default(), Vec::new());
        poll_fn(|cx| self.poll_head(cx, &mut head)).await?;
        if !head.is_informational() {
            while poll_fn(|cx| self.poll_body(cx)).await? == Body::Data {
                body.extend_from_slice(self.data());
                self.consume(usize::MAX);
            }
        }
        Ok((head, body))
    }
}

/// Everything that a caller hears until the other side ends.
async fn heard(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("an end").expect("reads");
    String::from_utf8(bytes).expect("text")
}

/// The head of a request, as the other side reads it off the wire; what follows it stays there.
async fn head_heard(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(timeout(DEADLINE, stream.read_u8()).await.expect("in time").expect("a byte"));
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn pipelined_requests_are_served_one_after_the_other() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        .await
        .expect("writes");
    far.write_all(b"PUT /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
        .await
        .expect("writes");
    far.shutdown().await.expect("shuts down");
    let mut head = Head::default();
    for (line, length, body) in [("GET /1", Some(0), ""), ("POST /2", Some(3), "abc"), ("PUT /3", None, "de")] {
        assert_eq!(server.next(&mut head).await.expect("reads"), Next::Request);
        assert_eq!(format!("{} {}", String::from_utf8_lossy(&head.method), String::from_utf8_lossy(&head.path)), line);
        assert_eq!((server.body_length(), server.is_request_over()), (length, length == Some(0)), "{line}");
        assert_eq!(server.body().await.expect("a body"), body.as_bytes(), "{line}");
        assert_eq!(lines(server.trailers()), if body == "de" { vec!["x-sum: 5"] } else { vec![] }, "{line}");
        server.answer(&response(200, &[("x-of", line)]), Length::Known(2), b"ok").await;
        assert!(server.goes_on(), "{line}");
    }
    assert_eq!(server.next(&mut head).await.expect("reads"), Next::End);
    server.end().await.expect("ends");
    let one = |line| format!("HTTP/1.1 200 OK\r\nx-of: {line}\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(heard(far).await, ["GET /1", "POST /2", "PUT /3"].map(one).concat());
}

#[tokio::test]
async fn a_body_is_chunked_where_its_length_is_unknown_and_trailers_follow_it() {
    let (mut near, mut far) = client(None).await;
    near.request(&request("POST", "/x", &[("content-length", "99"), ("te", "trailers")]), b"a:1", Length::Unknown);
    assert!(near.is_unsent() && near.is_unheard());
    for piece in ["hello", "0123456789abcdefg"] {
        assert_eq!(poll_fn(|cx| near.poll_write(cx, piece.as_bytes())).await.expect("writes"), piece.len());
    }
    near.finish(&fields(&[("x-sum", "1")]));
    poll_fn(|cx| near.poll_flush(cx)).await.expect("flushes");
    assert!(!near.is_unsent() && near.is_unheard());
    let expected = "POST /x HTTP/1.1\r\nhost: a:1\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
        5\r\nhello\r\n11\r\n0123456789abcdefg\r\n0\r\nx-sum: 1\r\n\r\n";
    let mut bytes = vec![0; expected.len()];
    far.read_exact(&mut bytes).await.expect("reads");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);

    let answer = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nX-Sum: 2\r\n\r\n";
    // However it arrives.
    for byte in answer {
        far.write_all(&[*byte]).await.expect("writes");
        tokio::task::yield_now().await;
    }
    let (head, body) = near.whole().await.expect("an answer");
    assert_eq!((head.status, head.reason.as_slice(), body.as_slice()), (200, b"Fine".as_slice(), b"abcd".as_slice()));
    assert_eq!(lines(near.trailers()), ["x-sum: 2"]);
    assert!(near.goes_on() && !near.is_unheard());
}

#[tokio::test]
async fn a_head_request_and_answers_without_a_body_have_none_whatever_they_announce() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    far.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await.expect("writes");
    far.shutdown().await.expect("shuts down");
    let mut head = Head::default();
    let length = [("content-length", "9")];
    for (status, length, announced, body) in [
        (200, &length[..], Length::Known(9), b"123456789".as_slice()),
        (204, &[], Length::Unknown, b""),
        (304, &length, Length::Known(9), b""),
        (200, &[], Length::Known(0), b""),
    ] {
        server.whole(&mut head).await.expect("a request");
        server.answer(&response(status, length), announced, body).await;
        assert!(server.goes_on(), "{status}");
    }
    server.end().await.expect("ends");
    let expected = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\
        HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(heard(far).await, expected);

    let (mut near, mut far) = client(None).await;
    for (method, status) in [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified"), ("HEAD", "404")] {
        near.send(&request(method, "/", &[]), Length::None, b"").await.expect("sends");
        assert_eq!(head_heard(&mut far).await, format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
        far.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n").as_bytes()).await.expect("writes");
        let (head, body) = near.whole().await.expect("an answer");
        assert_eq!((lines(&head.fields), body.len()), (vec!["content-length: 9".to_owned()], 0), "{method} {status}");
        assert!(near.goes_on(), "{method} {status}");
    }
}

#[tokio::test]
async fn rfc9112_9_3_a_connection_goes_on_if_both_sides_say_so() {
    for (version, lines, goes_on, said) in [
        ("1.1", "", true, ""),
        ("1.1", "Connection: keep-alive\r\n", true, ""),
        ("1.1", "Connection: close\r\n", false, "connection: close\r\n"),
        ("1.1", "Connection: x, ,CLOSE\r\n", false, "connection: close\r\n"),
        ("1.1", "Connection: x\r\nconnection: close\r\n", false, "connection: close\r\n"),
        ("1.1", "Connection: closed\r\n", true, ""),
        ("1.0", "", false, "connection: close\r\n"),
        ("1.0", "Connection: Keep-Alive\r\n", true, "connection: keep-alive\r\n"),
        ("1.0", "Connection: keep-alive, close\r\n", false, "connection: close\r\n"),
    ] {
        let (mut far, mut server) = server(None).await;
        far.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n").as_bytes()).await.expect("writes");
        server.whole(&mut Head::default()).await.expect("a request");
        server.answer(&response(200, &[]), Length::Known(2), b"ok").await;
        assert_eq!(server.goes_on(), goes_on, "{version} {lines}");
        drop(server);
        assert_eq!(heard(far).await, format!("HTTP/{version} 200 OK\r\n{said}content-length: 2\r\n\r\nok"), "{version} {lines}");
    }
    for (answer, goes_on) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", true),
        ("HTTP/1.1 200 OK\r\nConnection: Close\r\ncontent-length: 1\r\n\r\na", false),
        ("HTTP/1.1 200 OK\r\nConnection: keep-alive,  close \r\ncontent-length: 1\r\n\r\na", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", false),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\ncontent-length: 1\r\n\r\na", true),
        // What nobody asked for follows.
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n\r\n", false),
    ] {
        let (mut near, mut far) = client(None).await;
        near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
        head_heard(&mut far).await;
        assert!(!near.goes_on(), "an answer is still to come");
        far.write_all(answer.as_bytes()).await.expect("writes");
        let (_, body) = near.whole().await.expect("an answer");
        assert_eq!((body.as_slice(), near.goes_on()), (b"a".as_slice(), goes_on), "{answer}");
    }
}

#[tokio::test]
async fn whoever_serves_can_say_that_no_further_request_is_taken() {
    let (mut far, mut server) = server(None).await;
    far.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)).await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    server.close();
    server.answer(&response(503, &[]), Length::Known(0), b"").await;
    assert!(!server.goes_on());
    far.shutdown().await.expect("shuts down");
    server.end().await.expect("ends");
    assert_eq!(heard(far).await, "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_the_connection_for_http_1_0() {
    for keep in ["", "Connection: keep-alive\r\n"] {
        let (mut far, mut server) = server(None).await;
        far.write_all(format!("GET / HTTP/1.0\r\nHost: a\r\n{keep}\r\n").as_bytes()).await.expect("writes");
        server.whole(&mut Head::default()).await.expect("a request");
        // HTTP/1.0 knows no interim response.
        server.inform(&response(103, &[("link", "x")]));
        server.answer(&response(200, &[]), Length::Unknown, b"some").await;
        assert!(!server.goes_on());
        drop(server);
        assert_eq!(heard(far).await, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nsome");
    }
    for version in ["1.0", "1.1"] {
        let (mut near, mut far) = client(None).await;
        near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
        head_heard(&mut far).await;
        far.write_all(format!("HTTP/{version} 200 OK\r\nConnection: keep-alive\r\n\r\nso").as_bytes()).await.expect("writes");
        let mut head = Head::default();
        poll_fn(|cx| near.poll_head(cx, &mut head)).await.expect("a head");
        assert_eq!(near.body_length(), None);
        far.write_all(b"me").await.expect("writes");
        drop(far);
        let mut body = Vec::new();
        while poll_fn(|cx| near.poll_body(cx)).await.expect("a body") == Body::Data {
            body.extend_from_slice(near.data());
            near.consume(usize::MAX);
        }
        assert_eq!((body.as_slice(), near.goes_on()), (b"some".as_slice(), false));
    }
}

#[tokio::test]
async fn interim_responses_pass_before_the_one_that_counts() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    server.inform(&response(100, &[]));
    server.inform(&response(103, &[("link", "x")]));
    assert!(server.goes_on());
    server.answer(&response(200, &[]), Length::Known(1), b"a").await;
    assert!(server.goes_on());
    drop(server);
    let expected =
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na";
    assert_eq!(heard(far).await, expected);

    let (mut near, mut far) = client(None).await;
    near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
    // `Connection` in an interim response says nothing of the connection's end.
    far.write_all(expected.replace("link: x", "connection: close").as_bytes()).await.expect("writes");
    for status in [100, 103] {
        let (head, _) = near.whole().await.expect("interim");
        assert_eq!((head.status, near.goes_on()), (status, false));
    }
    let (head, body) = near.whole().await.expect("the answer");
    assert_eq!((head.status, head.fields.len(), body.as_slice(), near.goes_on()), (200, 1, b"a".as_slice(), true));
}

#[tokio::test]
async fn what_follows_a_switch_is_kept_for_the_next_protocol() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw").await.expect("writes");
    let mut head = Head::default();
    server.whole(&mut head).await.expect("a request");
    server.respond(&response(101, &[("upgrade", "x")]), Length::None);
    poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
    assert_eq!(server.next(&mut head).await.expect("reads"), Next::End, "the next protocol was read as a request");
    let (io, behind) = server.into_parts();
    assert_eq!(behind.data(), b"raw");
    drop(io);
    assert_eq!(heard(far).await, "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n");

    let (mut near, mut far) = client(None).await;
    near.send(&request("GET", "/", &[("upgrade", "x")]), Length::None, b"").await.expect("sends");
    far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nraw").await.expect("writes");
    poll_fn(|cx| near.poll_head(cx, &mut head)).await.expect("a head");
    assert_eq!((head.status, near.goes_on()), (101, false));
    assert_eq!(near.into_parts().1.data(), b"raw");
}

#[tokio::test]
async fn a_body_of_a_known_length_that_ends_early_is_not_taken_for_a_whole_one() {
    // The caller's.
    for (sent, told) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", Some(9)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", None),
    ] {
        let (mut far, mut server) = server(None).await;
        far.write_all(sent.as_bytes()).await.expect("writes");
        far.shutdown().await.expect("shuts down");
        assert_eq!(server.next(&mut Head::default()).await.expect("reads"), Next::Request);
        assert_eq!(server.body_length(), told);
        let fault = server.body().await.expect_err(sent);
        assert!(matches!(fault, BodyFault::Early), "{sent}: {fault}");
        assert!(!server.is_request_over() && !server.goes_on());
    }
    // The application's.
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-len",
        "",
    ] {
        let (mut near, mut far) = client(None).await;
        near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
        head_heard(&mut far).await;
        far.write_all(answer.as_bytes()).await.expect("writes");
        drop(far);
        let fault = near.whole().await.expect_err(answer);
        assert!(
            matches!(&fault, ClientFault::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof),
            "{answer}: {fault}"
        );
        assert_eq!((near.goes_on(), near.is_unheard()), (false, answer.is_empty()));
    }
    // Ours: a response and a request that we cannot bring to their ends.
    let (mut far, mut server) = server(None).await;
    far.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)).await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    server.answer(&response(200, &[]), Length::Known(9), b"abc").await;
    assert!(!server.goes_on(), "the next response would be read as the rest of this one");
    let (mut near, mut far) = client(None).await;
    near.send(&request("POST", "/", &[]), Length::Known(9), b"abc").await.expect("sends");
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("writes");
    near.whole().await.expect("an answer");
    assert!(!near.goes_on(), "the next request would be read as the rest of this one");
}

#[tokio::test]
async fn more_of_a_body_than_was_announced_is_never_written() {
    let (mut far, mut server) = server(None).await;
    far.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)).await.expect("writes");
    for (length, taken) in [(Length::Known(3), 3), (Length::Known(0), 0)] {
        server.whole(&mut Head::default()).await.expect("a request");
        server.respond(&response(200, &[]), length);
        if taken > 0 {
            assert_eq!(poll_fn(|cx| server.poll_write(cx, b"abcdef")).await.expect("writes"), taken);
        }
        assert!(poll_fn(|cx| server.poll_write(cx, b"def")).await.is_err());
        server.finish(&Fields::default());
    }
    poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
    drop(server);
    let expected = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(heard(far).await, expected);
}

#[tokio::test]
async fn what_is_no_response_is_told_from_a_broken_connection() {
    for (answer, rule) in [
        ("220 ready\r\n", "no status line"),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "not a number"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "hexadecimal"),
    ] {
        let (mut near, mut far) = client(None).await;
        near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
        far.write_all(answer.as_bytes()).await.expect("writes");
        let fault = near.whole().await.expect_err(answer);
        assert!(matches!(fault, ClientFault::Malformed(said) if said.contains(rule)), "{answer}: {fault}");
        assert!(!near.goes_on());
    }
}

#[tokio::test]
async fn large_bodies_go_both_ways_at_once_through_small_sockets() {
    const BYTES: usize = 3_000_000;
    let body = noise(BYTES);
    let known = Length::Known(BYTES.try_into().expect("length"));
    for (up, down) in [(known, known), (Length::Unknown, known), (known, Length::Unknown), (Length::Unknown, Length::Unknown)] {
        let (near, far) = loopback(Some(4096)).await;
        let (mut near, mut server) = (Client::new(Io::Plain(near)), Server::new(Io::Plain(far), Buffer::default(), RULES));
        // Sends back what comes while it comes.
        let echo = async {
            let mut head = Head::default();
            assert_eq!(server.next(&mut head).await.expect("reads"), Next::Request);
            server.respond(&response(200, &[]), down);
            while poll_fn(|cx| server.poll_body(cx)).await.expect("a body") == Body::Data {
                let mut rest = server.data().to_vec();
                server.consume(usize::MAX);
                while !rest.is_empty() {
                    let count = poll_fn(|cx| server.poll_write(cx, &rest)).await.expect("writes");
                    rest.drain(..count);
                }
                poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
            }
            server.finish(&Fields::default());
            poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
            assert!(server.goes_on());
        };
        let call = async {
            near.request(&request("POST", "/", &[]), b"a", up);
            let (mut sent, mut finished, mut head, mut came) = (0, false, None, Vec::new());
            poll_fn(|cx| {
                while sent < BYTES
                    && let Poll::Ready(count) = near.poll_write(cx, &body[sent..(sent + 70_001).min(BYTES)])
                {
                    sent += count.expect("writes");
                }
                if sent == BYTES && !std::mem::replace(&mut finished, true) {
                    near.finish(&Fields::default());
                }
                let _later = near.poll_flush(cx).map(|flushed| flushed.expect("flushes"));
                if head.is_none() {
                    let mut read = Head::default();
                    match near.poll_head(cx, &mut read) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(told) => told.expect("a head"),
                    }
                    head = Some(read);
                }
                loop {
                    match near.poll_body(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(told) => match told.expect("a body") {
                            Body::Ended => return Poll::Ready(()),
                            Body::Data => {
                                // Not all of it at once.
                                let some = near.data().len().div_ceil(2);
                                came.extend_from_slice(&near.data()[..some]);
                                near.consume(some);
                            }
                        },
                    }
                }
            })
            .await;
            assert!(came == body, "{} bytes came back otherwise", came.len());
            assert!(near.goes_on());
        };
        timeout(DEADLINE, async { tokio::join!(echo, call) }).await.expect("an end");
    }
}

#[tokio::test]
async fn a_large_answer_that_is_not_flushed_in_between_goes_out_whole_in_every_framing() {
    let body = noise(3_000_000);
    let known = Length::Known(body.len().try_into().expect("length"));
    let framings = [("1.1", known), ("1.1", Length::Unknown), ("1.0", known), ("1.0", Length::Unknown)];
    for ((version, length), socket_bytes) in framings.into_iter().flat_map(|each| [(each, 4096), (each, 200_000)]) {
        let (mut far, mut server) = server(Some(socket_bytes)).await;
        // A request of HTTP/1.0, which a client of ours never makes.
        far.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes()).await.expect("writes");
        let mut near = Client::new(Io::Plain(far));
        let body = &body;
        let served = async move {
            server.whole(&mut Head::default()).await.expect("a request");
            server.answer(&response(200, &[]), length, body).await;
            assert_eq!(server.goes_on(), version == "1.1");
        };
        let ((), came) = timeout(DEADLINE, async { tokio::join!(served, near.whole()) }).await.expect("an end");
        let came = came.expect("an answer").1;
        assert!(came == *body, "{version} {length:?}: {} bytes", came.len());
    }
}

#[tokio::test]
async fn one_connection_carries_many_exchanges_and_holds_nothing_between_them() {
    let (near, far) = loopback(None).await;
    let (mut near, mut server) = (Client::new(Io::Plain(near)), Server::new(Io::Plain(far), Buffer::default(), RULES));
    let mut head = Head::default();
    for round in 0..50_usize {
        let body = noise(round * 97);
        let length = if round % 2 == 0 { Length::Known(body.len().try_into().expect("length")) } else { Length::Unknown };
        let (asked, told) = (request("POST", "/", &[]), response(200, &[]));
        let (sent, came) = tokio::join!(near.send(&asked, length, &body), server.whole(&mut head));
        sent.expect("sends");
        assert!(came.expect("a body") == body, "{round}");
        let (_, answer) = tokio::join!(server.answer(&told, length, &body), near.whole());
        assert!(answer.expect("an answer").1 == body, "{round}");
        assert!(near.goes_on() && server.goes_on(), "{round}");
        assert!(!near.is_spent(), "{round}");
    }
}

/// Asks until the kernel has told.
async fn is_spent_soon(client: &mut Client) -> bool {
    let told = async {
        while !client.is_spent() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, told).await.is_ok()
}

#[tokio::test]
async fn a_kept_connection_is_spent_once_the_other_side_closed_it_or_spoke_unasked() {
    for unasked in [None, Some(b"HTTP/1.1 408 Request Timeout\r\n\r\n")] {
        let (mut near, mut far) = client(None).await;
        near.send(&request("GET", "/", &[]), Length::None, b"").await.expect("sends");
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("writes");
        near.whole().await.expect("an answer");
        for _ in 0..100 {
            assert!(near.goes_on() && !near.is_spent(), "an idle connection");
            tokio::task::yield_now().await;
        }
        match unasked {
            Some(bytes) => far.write_all(bytes).await.expect("writes"),
            None => drop(far),
        }
        assert!(is_spent_soon(&mut near).await);
        assert_eq!(near.goes_on(), unasked.is_none(), "bytes that nobody asked for");
    }
}

#[tokio::test]
async fn a_request_of_which_nothing_has_left_goes_on_elsewhere() {
    let (mut first, gone) = client(None).await;
    drop(gone);
    let (mut second, mut far) = client(None).await;
    first.request(&request("HEAD", "/x", &[]), b"a", Length::None);
    first.finish(&Fields::default());
    assert!(first.is_unsent());
    second.take_over(&mut first);
    poll_fn(|cx| second.poll_flush(cx)).await.expect("flushes");
    assert_eq!(head_heard(&mut far).await, "HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(!second.is_unsent());
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await.expect("writes");
    let (head, body) = second.whole().await.expect("an answer to HEAD");
    assert_eq!((head.status, body.len(), second.goes_on()), (200, 0, true));
}

#[tokio::test]
async fn a_small_body_that_nobody_wants_does_not_cost_the_connection_and_a_large_or_late_one_does() {
    for (announced, sent, goes_on) in [(3000, 3000, true), (3001, 3000, false), (1_000_000, 1_000_000, false)] {
        let (mut far, mut server) = server(None).await;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {announced}\r\n\r\n").into_bytes();
        let served = async move {
            assert_eq!(server.next(&mut Head::default()).await.expect("reads"), Next::Request);
            server.answer(&response(403, &[]), Length::Known(0), b"").await;
            server.skip_body();
            assert_eq!((server.is_request_over(), server.goes_on()), (goes_on, goes_on), "{sent} of {announced}");
        };
        let sends = async {
            // The other side does not take all of it.
            let _sent = far.write_all(&[head, noise(sent)].concat()).await;
        };
        tokio::join!(sends, served);
    }
}

#[tokio::test]
async fn the_last_words_reach_a_caller_that_still_sends_and_ends_when_it_likes() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET /\nrest").await.expect("writes");
    assert!(matches!(server.next(&mut Head::default()).await.expect("reads"), Next::Refused(_)));
    let gone = std::cell::Cell::new(false);
    let answers = async {
        server.last_words(b"stop").await.expect("ends");
        // Its kernel would throw away what it has not read yet if we closed while it sends.
        assert!(gone.get(), "the connection was not left to the caller");
    };
    let sends = async {
        let mut said = [0; 4];
        far.read_exact(&mut said).await.expect("no reset");
        for _ in 0..20 {
            far.write_all(&[b'x'; 1000]).await.expect("the caller can still send");
            tokio::task::yield_now().await;
            assert_eq!(far.read(&mut [0; 1]).await.expect("no reset"), 0);
        }
        gone.set(true);
        drop(far);
        assert_eq!(&said, b"stop");
    };
    timeout(DEADLINE, async { tokio::join!(answers, sends) }).await.expect("an end");
}

#[tokio::test]
async fn a_caller_that_never_stops_sending_is_not_read_for_ever() {
    let (mut far, mut server) = server(None).await;
    let answers = async move {
        let ended = server.last_words(b"stop").await;
        drop(server);
        ended
    };
    let sends = async {
        // Until the other side is gone.
        while far.write_all(&[b'x'; 10_000]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let (ended, ()) = timeout(DEADLINE, async { tokio::join!(answers, sends) }).await.expect("an end");
    ended.expect("ends");
}

#[tokio::test]
async fn a_caller_of_http_1_0_sees_a_reset_where_a_response_breaks_off() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    server.respond(&response(200, &[]), Length::Unknown);
    poll_fn(|cx| server.poll_write(cx, b"abc")).await.expect("writes");
    poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
    server.abort();
    drop(server);
    let ended = far.read_to_end(&mut Vec::new()).await.expect_err("an end that looks like a good one");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn after_an_abort_nothing_more_is_taken() {
    let (mut far, mut server) = server(None).await;
    far.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)).await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    server.respond(&response(200, &[]), Length::Unknown);
    poll_fn(|cx| server.poll_write(cx, b"abc")).await.expect("writes");
    server.abort();
    assert!(server.is_aborted() && !server.goes_on());
    poll_fn(|cx| server.poll_flush(cx)).await.expect("flushes");
    drop(server);
    let mut bytes = Vec::new();
    // Unread requests make the kernel say it with a reset.
    let _reset = far.read_to_end(&mut bytes).await;
    assert!(!String::from_utf8_lossy(&bytes).contains("0\r\n\r\n"), "a response that was not whole has an end");
}

#[tokio::test]
async fn lines_keep_their_order_and_the_length_is_ours_to_say() {
    let (mut far, mut server) = server(None).await;
    far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    server.whole(&mut Head::default()).await.expect("a request");
    let lines = [("x-b", "2"), ("content-length", "77"), ("x-a", "1"), ("x-b", "3")];
    server.answer(&response(299, &lines), Length::Known(5), b"abcde").await;
    drop(server);
    assert_eq!(heard(far).await, "HTTP/1.1 299 \r\nx-b: 2\r\nx-a: 1\r\nx-b: 3\r\ncontent-length: 5\r\n\r\nabcde");
}
