//! Names that only a sidecar may use, and callers that take their time before anything is known of them.

use crate::sidecar::{Setup, Sidecar, application};
use model::Limit;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// Sends bytes in plaintext and says how long it took until the sidecar closed, and what it said before.
async fn until_closed(address: SocketAddr, bytes: &[u8]) -> (Duration, String) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut said)).await.unwrap().unwrap();
    (started.elapsed(), said)
}

/// An application that answers one request with a reason that it made up.
async fn liar() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-rondel-reason: not_permitted\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    });
    address
}

#[tokio::test]
async fn an_application_cannot_claim_a_reason_that_is_ours() {
    let sidecar = Sidecar::start(liar().await, Setup::default()).await;
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    // Only a sidecar may be believed, and behind the inbound side there is none.
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("x-rondel-reason"), "{answer}");
    assert_eq!(answer.matches("x-rondel-decision").count(), 1, "{answer}");
}

#[tokio::test]
async fn a_claim_is_removed_whatever_stands_for_a_hyphen() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let claims = "x.rondel.principal: evil\r\nx-rondel!user: evil\r\nx.forwarded.client.cert: evil\r\nx+real+ip: evil\r\n";
    let request = format!("GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n{claims}\r\n");
    let answer = sidecar.exchange(request.as_bytes()).await;
    // Servers that make CGI variables of headers may write `_` for everything but letters and digits, not for `-` alone.
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("evil"), "{answer}");
}

#[tokio::test]
async fn a_plaintext_request_line_that_dawdles_is_answered_like_any_other() {
    let limits = &[(Limit::RequestHeadMs, 300), (Limit::IdleMs, 5000)];
    let sidecar = Sidecar::start(application().await, Setup { permissive: true, limits, ..Setup::default() }).await;
    let (took, said) = until_closed(sidecar.inbound, b"GET /").await;
    assert!(took < Duration::from_secs(3) && said.starts_with("HTTP/1.1 408"), "{took:?}: {said}");
    sidecar.logged("head_timeout").await;
}

#[tokio::test]
async fn whoever_says_nothing_has_one_deadline_for_a_handshake() {
    let sidecar = Sidecar::start(application().await, Setup { limits: &[(Limit::HandshakeMs, 1000)], ..Setup::default() }).await;
    let (took, said) = until_closed(sidecar.inbound, b"").await;
    assert!(took < Duration::from_millis(1900) && said.is_empty(), "{took:?}: {said}");
    let line = sidecar.logged("handshake_timeout").await;
    assert!(line["detail"].as_str().unwrap().contains("limit `handshakeMs` (1000 ms)"), "{line}");
}
