//! Requests that are cut off by neither of the two who talk: by the end of the process, of a certificate, of a peer's sidecar.

use crate::faults::saying;
use crate::sidecar::{ALLOW_ALL, DEADLINE, Setup, Sidecar, free};
use model::snapshot::{Endpoint, Protocol, Upstream};
use model::{Limit, ServiceName, SpiffeId};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::time::Duration;
use testkit::pki::{self, LawlessClient, LawlessServer, Leaf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn what_is_under_way_when_a_drain_is_over_is_told() {
    const REQUESTS: usize = 20;
    let silent = saying(b"", false).await;
    let mut sidecar = Sidecar::start(silent, Setup { limits: &[(Limit::DrainMs, 300)], ..Setup::default() }).await;
    let mut callers = Vec::new();
    for number in 0..REQUESTS {
        let mut caller = sidecar.caller().await;
        caller.write_all(format!("GET /cut/{number} HTTP/1.1\r\nhost: server\r\n\r\n").as_bytes()).await.unwrap();
        caller.flush().await.unwrap();
        callers.push(caller);
    }
    sleep(Duration::from_millis(300)).await;
    kill_process(Pid::from_raw(i32::try_from(sidecar.pid()).unwrap()).unwrap(), Signal::TERM).unwrap();
    sidecar.until_ended().await;
    let log = sidecar.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("\"path\":\"/cut/")).collect();
    assert_eq!(lines.len(), REQUESTS, "{log}");
    assert!(lines.iter().all(|line| line.contains("\"reason\":\"draining\"")), "{lines:#?}");
}

#[tokio::test]
async fn an_answer_that_the_end_of_a_certificate_cuts_off_does_not_look_whole() {
    let unending = saying(b"HTTP/1.1 200 OK\r\n\r\nhalf", false).await;
    let sidecar = Sidecar::start(unending, Setup::default()).await;
    let mut leaf = Leaf::good(&SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap());
    leaf.not_after = pki::now().plus(Duration::from_secs(3));
    let presented = sidecar.control.hostile.mint(&leaf);
    let client = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
    let mut caller = client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
    caller.write_all(b"GET / HTTP/1.0\r\nhost: server\r\n\r\n").await.unwrap();
    caller.flush().await.unwrap();
    let read = timeout(DEADLINE, caller.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(read.is_err(), "the end of TLS was announced");
    let line = sidecar.logged("connection_age").await;
    assert_eq!(line["side"], "sidecar", "{line}");
    assert!(!sidecar.log().contains("caller_gone"), "{}", sidecar.log());
}

/// Kinds of frames between sidecars.
const OPEN: u8 = 0;
const DATA: u8 = 1;
const RESET: u8 = 3;
const LEAVING: u8 = 5;

/// A peer's sidecar that takes one stream, leaves when the second is opened, and serves whoever connects then.
async fn leaving(server: LawlessServer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut tls = server.accept(stream).await.unwrap();
            tokio::spawn(async move {
                let mut header = [0; 8];
                while tls.read_exact(&mut header).await.is_ok() {
                    let stream = u32::from_be_bytes(header[4..].try_into().unwrap());
                    let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
                    tls.read_exact(&mut payload).await.unwrap();
                    let said = match (header[3], number) {
                        (OPEN, 1) if stream > 1 => [frame(LEAVING, 0, b""), frame(RESET, stream, b"")].concat(),
                        (DATA, 2..) => frame(DATA, stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
                        _ => Vec::new(),
                    };
                    tls.write_all(&said).await.unwrap();
                    tls.flush().await.unwrap();
                }
            });
        }
    });
    address
}

/// A frame between sidecars (docs/decisions/0012-many-streams-between-sidecars.md).
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_request_that_meets_a_peer_that_leaves_goes_to_its_successor() {
    let mut sidecar = Sidecar::start(saying(b"", false).await, Setup::default()).await;
    let identity = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/other").unwrap();
    let presented = sidecar.control.hostile.good(&identity);
    let address = leaving(LawlessServer::presenting(&presented.chain, &presented.key, &["rondel-mux"])).await;
    let called = free();
    sidecar.snapshot.upstreams = vec![Upstream {
        service: ServiceName::parse("shop/other").unwrap(),
        listen: Some(called),
        protocol: Protocol::Http,
        endpoints: vec![Endpoint { address, identity }],
    }];
    sidecar.enforce(ALLOW_ALL).await;
    let ask = || async {
        let mut stream = TcpStream::connect(called).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: other\r\n\r\n").await.unwrap();
        stream
    };
    // It holds the connection open, unanswered.
    let _first = ask().await;
    sleep(Duration::from_millis(500)).await;
    let mut second = ask().await;
    let mut answer = vec![0; 4096];
    let count = timeout(DEADLINE, second.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..count]));
}
