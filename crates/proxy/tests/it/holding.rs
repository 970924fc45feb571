//! Callers that hold on to what others need, and calls that are decided as one thing and carried as another.

use crate::sidecar::{DEADLINE, Setup, Sidecar, Tls, application, application_of_http2, free};
use bytes::Bytes;
use http::{Request, Response};
use model::snapshot::Protocol;
use model::{Limit, SpiffeId};
use std::net::SocketAddr;
use std::time::Duration;
use testkit::pki::LawlessClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";

/// A good caller that offers one ALPN, or none.
pub(crate) async fn announcing(sidecar: &Sidecar, alpn: &[&str]) -> Tls {
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let good = sidecar.control.hostile.good(&id);
    let client = LawlessClient::new().presenting(&good.chain, &good.key).alpn(alpn);
    client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap()
}

/// An application that answers with the bytes that came within half a second.
async fn showing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while timeout(Duration::from_millis(500), stream.read_buf(&mut seen))
                    .await
                    .is_ok_and(|read| read.is_ok_and(|count| count > 0))
                {}
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", seen.len());
                let _gone = stream.write_all(&[head.as_bytes(), &seen].concat()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_without_a_preface_does_not_keep_its_place() {
    let limits = &[(Limit::RequestHeadMs, 500), (Limit::InboundConnections, 1)];
    let sidecar = Sidecar::start(application().await, Setup { limits, ..Setup::default() }).await;
    let mut held = announcing(&sidecar, &["h2"]).await;
    timeout(DEADLINE, held.read_to_end(&mut Vec::new())).await.expect("it is ended").ok();
    // Its place is free a moment after its end is seen.
    sleep(Duration::from_millis(300)).await;
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"));
    assert!(sidecar.logged("head_timeout").await["detail"].as_str().unwrap().contains("limit `requestHeadMs` (500 ms)"));
}

#[tokio::test]
async fn a_connection_that_breaks_its_protocol_is_ended_and_told() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    // A first frame that is not SETTINGS; a frame of a kind that is none, longer than any may be.
    for (alpn, words, told) in [
        ("h2", &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x08\x06\0\0\0\0\0pingpong"[..], "the first frame is not SETTINGS"),
        ("rondel-mux", &[0xff; 16], "broke the protocol between sidecars"),
    ] {
        let mut stream = announcing(&sidecar, &[alpn]).await;
        stream.write_all(words).await.unwrap();
        timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.expect("it is ended").ok();
        let deadline = Instant::now() + DEADLINE;
        let of_client = "\"principal\":\"spiffe://shop.example/ns/shop/sa/client\"";
        let is_told = |line: &str| ["\"request_malformed\"", told, of_client].iter().all(|part| line.contains(part));
        while !sidecar.log().lines().any(is_told) {
            assert!(Instant::now() < deadline, "{alpn}: {}", sidecar.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_refused_caller_that_does_not_read_holds_no_place() {
    let limits = &[(Limit::RequestsUnderWay, 4), (Limit::QueueMs, 200), (Limit::IdleMs, 1000)];
    let policy = "@id(\"mesh\") permit (principal, action, resource) when { principal has account };";
    let sidecar = Sidecar::start(application().await, Setup { permissive: true, policy, limits, ..Setup::default() }).await;
    let stream = TcpStream::connect(sidecar.inbound).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let mut kept = Vec::new();
    for _ in 0..8 {
        let (answer, _) = client.send_request(Request::get("http://server/").body(()).unwrap(), true).unwrap();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 403);
        kept.push(answer);
    }
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"));
    sidecar.logged("idle_timeout").await;
}

#[tokio::test]
async fn streams_that_are_not_read_stop_nobody_else() {
    let address = application_of_http2(|asked, mut respond| async move {
        let size = if asked.uri().path() == "/big" { 4 << 20 } else { 10 };
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from(vec![b'x'; size]), true).unwrap();
    })
    .await;
    let sidecar = Sidecar::start(address, Setup { permissive: true, ..Setup::default() }).await;
    let connect = async || {
        let (client, connection) = h2::client::handshake(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
        tokio::spawn(connection);
        client.ready().await.unwrap()
    };
    let get = async |client: &mut h2::client::SendRequest<Bytes>, path: &str| {
        let (answer, _) = client.send_request(Request::get(format!("http://server{path}")).body(()).unwrap(), true).unwrap();
        timeout(DEADLINE, answer).await.unwrap().unwrap()
    };
    let mut slow = connect().await;
    let mut kept = Vec::new();
    for _ in 0..32 {
        kept.push(get(&mut slow, "/big").await);
    }
    let mut body = get(&mut connect().await, "/small").await.into_body();
    let read = timeout(DEADLINE, body.data()).await.expect("in time").unwrap().unwrap();
    assert_eq!(read.len(), 10);
}

#[tokio::test]
async fn a_body_that_is_never_finished_is_given_up_when_its_answer_is_long_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = [0; 4096];
                while let Ok(1..) = stream.read(&mut seen).await {
                    if seen.starts_with(b"POST") || seen.starts_with(b"GET") {
                        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                }
            });
        }
    });
    let limits = &[(Limit::IdleMs, 1000), (Limit::ConnectionsPerEndpoint, 1)];
    let sidecar = Sidecar::start(address, Setup { limits, ..Setup::default() }).await;
    let mut held = sidecar.caller().await;
    held.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx").await.unwrap();
    let mut seen = Vec::new();
    timeout(DEADLINE, held.read_to_end(&mut seen)).await.expect("it is ended").ok();
    assert!(seen.starts_with(b"HTTP/1.1 404"));
    let deadline = Instant::now() + DEADLINE;
    while !sidecar.exchange(GET).await.starts_with("HTTP/1.1 404") {
        assert!(Instant::now() < deadline, "the application's connection is still held");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_request_that_is_announced_as_opaque_gets_round_no_policy() {
    let policy = "@id(\"all\") permit (principal, action, resource); @id(\"admin\") forbid (principal, action, resource) \
                  when { context.request.path like \"/admin*\" };";
    let sidecar = Sidecar::start(showing().await, Setup { protocol: Protocol::Detect, policy, ..Setup::default() }).await;
    let request = b"GET /admin HTTP/1.1\r\nhost: a\r\nx-rondel-user: root\r\nconnection: close\r\n\r\n";
    // What no reader of ours takes for a request, some application may: a policy that asks for a path denies it.
    let odd = b"GET /admin\r\n\r\n";
    for (alpn, words, expected) in [
        (&["http/1.1"][..], &request[..], "HTTP/1.1 403"),
        (&["rondel-tcp"], request, ""),
        (&[], request, ""),
        (&["rondel-tcp"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (&["rondel-tcp"], odd, ""),
    ] {
        let mut stream = announcing(&sidecar, alpn).await;
        stream.write_all(words).await.unwrap();
        let mut seen = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut seen)).await.expect("it is ended").ok();
        let seen = String::from_utf8_lossy(&seen);
        assert!(if expected.is_empty() { seen.is_empty() } else { seen.starts_with(expected) }, "{alpn:?}: {seen}");
    }
    assert!(sidecar.logged("request_malformed").await["detail"].as_str().unwrap().contains("announced as opaque"));
    assert_eq!(sidecar.logged("policy_error").await["kind"], "tunnel");
}

#[tokio::test]
async fn a_probe_is_answered_whoever_else_holds_connections() {
    let (listen, application) = (free(), application().await);
    let arguments =
        ["--probe", &format!("tcp://:{}", application.port()), "--probe-listen", &listen.to_string()].map(str::to_owned);
    let _sidecar = Sidecar::start(application, Setup { arguments: arguments.into(), ..Setup::default() }).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(TcpStream::connect(listen).await.unwrap());
    }
    for _ in 0..40 {
        let mut probe = TcpStream::connect(listen).await.unwrap();
        probe.write_all(format!("GET /probe/{} HTTP/1.1\r\nhost: a\r\n\r\n", application.port()).as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, probe.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn what_is_forwarded_is_what_was_said_and_no_more() {
    let sidecar = Sidecar::start(showing().await, Setup::default()).await;
    let chunked = |method: &str, announced: &str, trailers: &str| {
        format!(
            "{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nte: trailers\r\n{announced}transfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n{trailers}\r\n"
        )
    };
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        let answer = sidecar.exchange(chunked(method, "", "").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{method}: {answer}");
    }
    let (announced, trailers) =
        ("trailer: x-forwarded-for, X-Real-IP, x-sum\r\n", "x-forwarded-for: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nx-sum: 1\r\n");
    let answer = sidecar.exchange(chunked("POST", announced, trailers).as_bytes()).await;
    assert!(answer.contains("x-sum: 1") && !answer.contains("6.6.6.6"), "{answer}");
}

#[tokio::test]
async fn a_body_whose_encoding_is_said_twice_is_not_read_as_plain() {
    let policy = "@id(\"small\") permit (principal, action, resource) when { context.request has body && context.request.body.amount <= 100 };";
    let sidecar = Sidecar::start(application().await, Setup { policy, ..Setup::default() }).await;
    for (lines, expected) in [
        ("", "200"),
        ("content-encoding: identity\r\n", "200"),
        ("content-encoding: br\r\n", "403"),
        ("content-encoding: br\r\ncontent-encoding: br\r\n", "403"),
        ("content-encoding: identity\r\ncontent-encoding: br\r\n", "403"),
        ("content-encoding: \u{e9}\r\n", "403"),
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n{lines}content-length: 12\r\n\r\n{{\"amount\":1}}"
        );
        let answer = sidecar.exchange(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{lines}: {answer}");
    }
}
