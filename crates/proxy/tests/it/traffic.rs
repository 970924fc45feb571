//! What applications say to each other besides plain requests: other protocols, plaintext where it is let in, h2c offers.

use crate::sidecar::{ALLOW_ALL, DEADLINE, Setup, Sidecar, Tls, application, read_all};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use model::snapshot::Protocol;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

pub(crate) const ASK: &str =
    "GET /chat HTTP/1.1\r\nhost: server\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";

/// An application that answers the first head with `answer` and echoes everything after it.
pub(crate) async fn switching(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let end = loop {
                    if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                        break end + 4;
                    }
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                };
                let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
                assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(&seen[end..]).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn expect(stream: &mut Tls, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    timeout(DEADLINE, stream.read_exact(&mut got)).await.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
}

pub(crate) async fn head(stream: &mut Tls) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let byte = timeout(DEADLINE, stream.read_u8()).await.expect("in time").unwrap();
        seen.push(byte);
    }
    String::from_utf8(seen).unwrap()
}

pub(crate) const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: a\r\n\r\n";

#[tokio::test]
async fn a_websocket_is_carried_whole_and_ends_when_the_policy_no_longer_permits_it() {
    let mut sidecar = Sidecar::start(switching(SWITCH).await, Setup::default()).await;
    let mut stream = sidecar.caller().await;
    // What comes right behind the head belongs to the next protocol.
    stream.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
    let answer = head(&mut stream).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("connection: upgrade\r\nupgrade: websocket"), "{answer}");
    expect(&mut stream, b"early").await;
    stream.write_all(b"GET / HTTP/1.1\r\nthis is no HTTP any more\r\n\r\n").await.unwrap();
    expect(&mut stream, b"GET / HTTP/1.1\r\nthis is no HTTP any more\r\n\r\n").await;

    sidecar.enforce("@id(\"all\") permit (principal, action, resource); @id(\"x\") permit (principal, action, resource);").await;
    stream.write_all(b"still").await.unwrap();
    expect(&mut stream, b"still").await;
    sidecar.enforce("@id(\"no-chat\") forbid (principal, action, resource) when { context.request.path == \"/chat\" };").await;
    assert_eq!(read_all(&mut stream).await, "");
    let line = sidecar.logged("denied_by_policy").await;
    assert_eq!((&line["status"], &line["path"]), (&101.into(), &"/chat".into()));
}

#[tokio::test]
async fn a_switch_that_is_not_granted_is_an_answer_like_any_other() {
    const NO: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
    let sidecar = Sidecar::start(switching(NO).await, Setup::default()).await;
    let answer = sidecar.exchange(ASK.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with("\r\n\r\nno"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn an_application_that_switches_unasked_is_told_as_at_fault() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _read = stream.read(&mut [0; 1024]).await;
            let _sent = stream.write_all(SWITCH.as_bytes()).await;
        }
    });
    let sidecar = Sidecar::start(address, Setup::default()).await;
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("application_"), "{answer}");
}

#[tokio::test]
async fn an_offer_of_h2c_is_ignored_and_the_connection_goes_on() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let offer = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let first = format!("GET /1 HTTP/1.1\r\nhost: server\r\n{offer}\r\n");
    let last = format!("GET /2 HTTP/1.1\r\nhost: server\r\n{}\r\n", offer.replace("Upgrade,", "close, Upgrade,"));
    let answer = sidecar.exchange(format!("{first}{last}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert!(!answer.contains("h2c") && !answer.to_ascii_lowercase().contains("http2-settings"), "{answer}");
}

/// An application that speaks HTTP/2 and echoes what an extended CONNECT carries.
async fn websocket_over_http2() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                let mut connection = builder.enable_connect_protocol().handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let protocol = request.extensions().get::<h2::ext::Protocol>().map(|name| name.as_str().to_owned());
                        assert_eq!((request.method(), protocol.as_deref()), (&Method::CONNECT, Some("websocket")));
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                            send.send_data(data, false).unwrap();
                        }
                        let _ended = send.send_data(Bytes::new(), true);
                    });
                }
            });
        }
    });
    address
}

async fn http2(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

#[tokio::test]
async fn a_websocket_over_http2_is_decided_as_the_get_that_it_replaces() {
    let policy =
        "@id(\"read\") permit (principal, action == Action::\"GET\", resource) when { context.request.path == \"/chat\" };";
    let setup = Setup { permissive: true, policy, ..Setup::default() };
    let sidecar = Sidecar::start(websocket_over_http2().await, setup).await;
    let mut client = http2(sidecar.inbound).await;
    let ask = |path: &str| {
        let uri = format!("http://server{path}");
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        request
    };
    let (response, mut send) = client.send_request(ask("/chat"), false).unwrap();
    let response = timeout(DEADLINE, response).await.expect("in time").unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    send.send_data(Bytes::from_static(b"over http2"), false).unwrap();
    let mut body = response.into_body();
    let echoed = timeout(DEADLINE, body.data()).await.expect("in time").unwrap().unwrap();
    assert_eq!(echoed, "over http2");
    send.send_data(Bytes::new(), true).unwrap();

    let (response, _send) = client.send_request(ask("/other"), false).unwrap();
    assert_eq!(timeout(DEADLINE, response).await.expect("in time").unwrap().status(), StatusCode::FORBIDDEN);
    let plain = Request::builder().method(Method::CONNECT).uri("server:1").body(()).unwrap();
    let (response, _send) = client.send_request(plain, true).unwrap();
    assert_eq!(timeout(DEADLINE, response).await.expect("in time").unwrap().status(), StatusCode::NOT_IMPLEMENTED);
}

/// An application that speaks first and echoes then.
async fn banner() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _sent = stream.write_all(b"220 ready\r\n").await;
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_permissive_port_serves_who_speaks_first_whoever_that_is() {
    let setup = Setup { permissive: true, protocol: Protocol::Detect, ..Setup::default() };
    let mut sidecar = Sidecar::start(banner().await, setup).await;
    let mut quiet = TcpStream::connect(sidecar.inbound).await.unwrap();
    let mut first = [0; 11];
    timeout(DEADLINE, quiet.read_exact(&mut first)).await.expect("in time").unwrap();
    assert_eq!(&first, b"220 ready\r\n");
    quiet.write_all(b"half").await.unwrap();
    quiet.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(DEADLINE, quiet.read_to_end(&mut rest)).await.expect("in time").unwrap();
    assert_eq!(rest, b"half");

    // A peer of the mesh is still asked for its certificate, although the application would speak first.
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    // The banner is no HTTP, and meets the request before or after it was sent.
    assert!(answer.contains("application_malformed") || answer.contains("application_reset"), "{answer}");
    assert_eq!(sidecar.metric("rondel_plaintext_connections_total{source=\"127.0.0.1\"}").await, 1);

    // Who is not permitted to connect does not even hear the banner.
    sidecar.enforce("@id(\"mesh\") permit (principal, action, resource) when { principal has account };").await;
    let mut stranger = TcpStream::connect(sidecar.inbound).await.unwrap();
    assert!(timeout(Duration::from_millis(1500), stranger.read_u8()).await.is_err(), "a stranger heard something");
    stranger.write_all(b"PING\r\n").await.unwrap();
    assert!(timeout(DEADLINE, stranger.read_u8()).await.expect("in time").is_err());
    sidecar.logged("not_permitted").await;
    sidecar.enforce(ALLOW_ALL).await;
}

#[tokio::test]
async fn a_port_that_becomes_strict_ends_the_plaintext_that_is_open() {
    let mut sidecar = Sidecar::start(application().await, Setup { permissive: true, ..Setup::default() }).await;
    let get = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";
    let mut stream = TcpStream::connect(sidecar.inbound).await.unwrap();
    stream.write_all(get).await.unwrap();
    let mut first = [0; 12];
    timeout(DEADLINE, stream.read_exact(&mut first)).await.expect("in time").unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");

    sidecar.snapshot.inbound[0].permissive = false;
    sidecar.enforce(ALLOW_ALL).await;
    stream.write_all(get).await.unwrap();
    let mut rest = Vec::new();
    let _ended = timeout(Duration::from_secs(3), stream.read_to_end(&mut rest)).await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("HTTP/1.1 400") && rest.contains("plaintext_refused"), "{rest}");
    assert!(!rest.contains("200 OK"), "served after the port became strict: {rest}");
}

#[tokio::test]
async fn a_port_that_becomes_strict_ends_opaque_plaintext_too() {
    let setup = Setup { permissive: true, protocol: Protocol::Tcp, ..Setup::default() };
    let mut sidecar = Sidecar::start(banner().await, setup).await;
    let mut stream = TcpStream::connect(sidecar.inbound).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut first = [0; 16];
    timeout(DEADLINE, stream.read_exact(&mut first)).await.expect("in time").unwrap();
    assert_eq!(&first, b"220 ready\r\nhello");
    sidecar.snapshot.inbound[0].permissive = false;
    sidecar.enforce(ALLOW_ALL).await;
    assert!(timeout(Duration::from_secs(5), stream.read_u8()).await.expect("ended").is_err());
    sidecar.logged("plaintext_refused").await;
}
