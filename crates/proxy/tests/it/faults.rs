//! Applications and callers that fail in the middle: the reason is the true one, and memory stays bounded.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application, read_all};
use http::Request;
use model::Limit;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep, timeout};

/// How often a fault is met where its memory is looked at.
const TIMES: usize = 100;

/// Memory since `before`, after a fault was met many times: told, and bounded.
fn bounded(sidecar: &Sidecar, before: u64, what: &str) {
    let grown = sidecar.resident_kib().saturating_sub(before);
    println!("{TIMES} times {what}: {grown} KiB more");
    assert!(grown < 16 * 1024, "{grown} KiB: {what}");
}

/// An application that answers the first request of a connection, and closes it when it reads anything of the second.
async fn forgetful() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_request_that_met_a_closing_connection_is_repeated_only_if_that_is_safe() {
    let (address, seen) = forgetful().await;
    let sidecar = Sidecar::start(address, Setup::default()).await;
    let get = "GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nhost: server\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert!(sidecar.exchange(get.as_bytes()).await.starts_with("HTTP/1.1 200"));
    // The kept connection closes when it is used again: the application has seen this one twice, and the caller once.
    assert!(sidecar.exchange(get.as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    let answer = sidecar.exchange(post.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("application_reset"), "{answer}");
    assert_eq!(seen.load(Ordering::Relaxed), 4, "a POST was repeated");
    sidecar.logged("application_reset").await;
    let before = sidecar.resident_kib();
    for _ in 0..TIMES {
        assert!(sidecar.exchange(get.as_bytes()).await.starts_with("HTTP/1.1 200"));
    }
    bounded(&sidecar, before, "closed at the moment of reuse");
}

#[tokio::test]
async fn a_request_is_repeated_once_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers when three have come, so that three connections are kept; then it answers none on any connection.
    let (seen, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (counted, together) = (Arc::clone(&counted), Arc::clone(&together));
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 && counted.fetch_add(1, Ordering::Relaxed) < 3 {
                    together.wait().await;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    let sidecar = Sidecar::start(address, Setup::default()).await;
    let get = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    let answers = tokio::join!(sidecar.exchange(get), sidecar.exchange(get), sidecar.exchange(get));
    assert!([answers.0, answers.1, answers.2].iter().all(|answer| answer.starts_with("HTTP/1.1 200")));
    let answer = sidecar.exchange(get).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("application_reset"), "{answer}");
    assert_eq!(seen.load(Ordering::Relaxed), 3 + 2, "on a kept connection and on a new one");
}

/// An application that says this at once when it is connected to, after it read something, and then does what is asked.
pub(crate) async fn saying(answer: &'static [u8], reset: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _read = stream.read(&mut [0; 16]).await;
                let _sent = stream.write_all(answer).await;
                if reset {
                    sleep(Duration::from_millis(50)).await;
                    // Unread bytes make the kernel reset the connection.
                    return;
                }
                sleep(DEADLINE).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_silent_application_and_one_that_breaks_off_are_told_apart() {
    let limits = &[(Limit::ResponseHeadMs, 300)];
    let sidecar = Sidecar::start(saying(b"", false).await, Setup { limits, ..Setup::default() }).await;
    let get = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    let answer = sidecar.exchange(get).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("application_timeout"), "{answer}");
    let line = sidecar.logged("application_timeout").await;
    assert!(line["detail"].as_str().unwrap().contains("limit `responseHeadMs` (300 ms)"), "{line}");
    let before = sidecar.resident_kib();
    let mut waiting = Vec::new();
    for _ in 0..TIMES {
        let mut stream = sidecar.caller().await;
        stream.write_all(get).await.unwrap();
        waiting.push(stream);
    }
    for mut stream in waiting {
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 504"));
    }
    bounded(&sidecar, before, "accepted and not answered");

    let broken = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", true).await;
    let sidecar = Sidecar::start(broken, Setup::default()).await;
    let answer = sidecar.exchange(get).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
    assert_eq!(sidecar.logged("application_reset").await["status"], 200);
    let before = sidecar.resident_kib();
    for _ in 0..TIMES {
        assert!(sidecar.exchange(get).await.ends_with("half"));
    }
    bounded(&sidecar, before, "reset in mid body");
}

#[tokio::test]
async fn an_upload_and_a_grpc_answer_may_take_their_time() {
    let limits = &[(Limit::ResponseHeadMs, 400)];
    // Answers a second after the whole request has come, where it is gRPC; otherwise at once.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.ends_with(b"the end") {
                assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
            }
            if seen.windows(16).any(|part| part == b"application/grpc") {
                sleep(Duration::from_secs(1)).await;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        }
    });
    let sidecar = Sidecar::start(address, Setup { limits, ..Setup::default() }).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: server\r\ncontent-length: 47\r\nconnection: close\r\n\r\n").await.unwrap();
    for part in [&b"0123456789"[..], b"0123456789", b"0123456789", b"0123456789", b"the end"] {
        sleep(Duration::from_millis(250)).await;
        stream.write_all(part).await.unwrap();
    }
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{}", sidecar.log());
    let call = |kind: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: server\r\ncontent-type: {kind}\r\ncontent-length: 7\r\nconnection: close\r\n\r\nthe end"
        )
    };
    let answer = sidecar.exchange(call("application/grpc").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // An upload that stops is no longer one.
    let mut stream = sidecar.caller().await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: server\r\ncontent-length: 47\r\n\r\n0123456789").await.unwrap();
    let mut seen = [0; 12];
    timeout(DEADLINE, stream.read_exact(&mut seen)).await.expect("in time").unwrap();
    assert_eq!(&seen, b"HTTP/1.1 504");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_reaches_the_caller_and_poisons_nothing() {
    let early = saying(b"HTTP/1.1 413 Too Much\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno", false).await;
    let sidecar = Sidecar::start(early, Setup::default()).await;
    let before = sidecar.resident_kib();
    for _ in 0..TIMES {
        let mut stream = sidecar.caller().await;
        stream.write_all(b"POST / HTTP/1.1\r\nhost: server\r\ncontent-length: 1000000\r\n\r\nbegin").await.unwrap();
        let mut seen = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut seen)).await.expect("in time").unwrap();
        assert_eq!(&seen, b"HTTP/1.1 413");
    }
    bounded(&sidecar, before, "answered before the request ended");
}

#[tokio::test]
async fn an_interim_answer_claims_nothing_and_there_are_not_too_many() {
    let claims = b"HTTP/1.1 103 Early\r\nx-rondel-principal: boss\r\nconnection: close\r\ncontent-length: 5\r\nlink: x\r\n\r\n\
                   HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let sidecar = Sidecar::start(saying(claims, false).await, Setup::default()).await;
    let get = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    let answer = sidecar.exchange(get).await;
    assert!(answer.starts_with("HTTP/1.1 103") && answer.contains("link: x") && answer.contains("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("boss") && !answer.contains("content-length: 5"), "{answer}");

    let endless: &'static [u8] = Box::leak(b"HTTP/1.1 103 Early\r\n\r\n".repeat(1000).into_boxed_slice());
    let sidecar = Sidecar::start(saying(endless, false).await, Setup::default()).await;
    let answer = sidecar.exchange(get).await;
    assert!(answer.contains("HTTP/1.1 502") && answer.contains("application_malformed"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 103").count(), 16);
}

#[tokio::test]
async fn an_empty_line_is_no_request_and_holds_no_connection() {
    let sidecar = Sidecar::start(application().await, Setup { limits: &[(Limit::RequestHeadMs, 500)], ..Setup::default() }).await;
    for before in ["", "GET / HTTP/1.1\r\nhost: server\r\n\r\n"] {
        let mut held = sidecar.caller().await;
        held.write_all(before.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        held.write_all(b"\r\n").await.unwrap();
        let _answer = read_all(&mut held).await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_behind_an_early_answer_ends_the_exchange() {
    let early = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegin", false).await;
    let limits = &[(Limit::RequestsUnderWay, 1), (Limit::QueueMs, 3000)];
    let sidecar = Sidecar::start(early, Setup { limits, ..Setup::default() }).await;
    for _ in 0..3 {
        let mut stream = sidecar.caller().await;
        stream.write_all(b"PUT / HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
        let mut seen = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut seen)).await.expect("in time").unwrap();
        assert_eq!(&seen, b"HTTP/1.1 200");
        stream.write_all(b"ZZ\r\n").await.unwrap();
        // The one place among the requests under way is free for the next.
        let _rest = read_all(&mut stream).await;
    }
    sidecar.logged("caller_gone").await;
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_and_are_then_refused_by_name() {
    let limits = &[(Limit::RequestsUnderWay, 2), (Limit::QueueMs, 300)];
    let sidecar = Sidecar::start(saying(b"", false).await, Setup { limits, ..Setup::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = sidecar.caller().await;
        stream.write_all(b"GET /held HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
        open.push(stream);
    }
    sleep(Duration::from_millis(200)).await;
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-rondel-reason: overloaded"), "{answer}");
    let line = sidecar.logged("overloaded").await;
    assert_eq!(line["detail"], "limit `requestsUnderWay` (2) was reached for `queueMs` (300 ms)");
}

#[tokio::test]
async fn a_caller_that_sends_or_reads_a_byte_at_a_time_costs_little() {
    let sidecar = Sidecar::start(application().await, Setup { limits: &[(Limit::RequestHeadMs, 700)], ..Setup::default() }).await;
    let mut slow = sidecar.caller().await;
    for byte in b"GET /s" {
        slow.write_all(&[*byte]).await.unwrap();
        sleep(Duration::from_millis(150)).await;
    }
    let answer = read_all(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("head_timeout"), "{answer}");

    // 64 MiB that nobody reads must wait at the application, not in the sidecar.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let large = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _read = stream.read(&mut [0; 4096]).await;
                let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n").await;
                let _sent = stream.write_all(&vec![7; 64 << 20]).await;
            });
        }
    });
    let sidecar = Sidecar::start(large, Setup::default()).await;
    let before = sidecar.resident_kib();
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut stream = sidecar.caller().await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
        let _byte = timeout(DEADLINE, stream.read_u8()).await.expect("in time").unwrap();
        readers.push(stream);
    }
    for second in 1..=3_u8 {
        for stream in &mut readers {
            let _byte = timeout(DEADLINE, stream.read_u8()).await.expect("in time").unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        let grown = sidecar.resident_kib().saturating_sub(before);
        println!("8 callers that read a byte a second of 64 MiB each, after {second} s: {grown} KiB more");
        assert!(grown < 24 * 1024, "{grown} KiB for 8 callers that hardly read");
    }
    assert!(!sidecar.log().contains("\"reason\":\""), "they are given up: {}", sidecar.log());
}

#[tokio::test]
async fn streams_that_are_reset_as_fast_as_they_open_stall_nobody_and_cost_no_memory() {
    let sidecar = Sidecar::start(application().await, Setup { permissive: true, ..Setup::default() }).await;
    let before = sidecar.resident_kib();
    let mut ended = 0;
    for _ in 0..4 {
        let stream = TcpStream::connect(sidecar.inbound).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        for _ in 0..1000 {
            let is_ready = std::future::poll_fn(|cx| client.poll_ready(cx));
            if timeout(DEADLINE, is_ready).await.expect("in time").is_err() {
                ended += 1;
                break;
            }
            let request = Request::get("http://server/").body(()).unwrap();
            let Ok((_response, mut send)) = client.send_request(request, false) else { break };
            send.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        drop(client);
        let _ended = timeout(DEADLINE, driver).await;
    }
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let grown = sidecar.resident_kib().saturating_sub(before);
    let line = sidecar.logged("flooding").await;
    assert_eq!(line["detail"], "no HTTP/2: too many streams were reset before they were answered", "{line}");
    println!("4 times 1,000 streams reset at once: {grown} KiB more, {ended} connections ended by the sidecar");
    assert!(grown < 16 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn idle_connections_cost_little_memory() {
    // The sidecar is started with the customary soft limit of 1,024 descriptors; the callers are all in this process.
    let mut own = getrlimit(Resource::Nofile);
    own.current = own.maximum;
    setrlimit(Resource::Nofile, own).unwrap();
    let wanted = own.maximum.map_or(10_000, |most| most.saturating_sub(2_000).min(10_000));
    let sidecar =
        Sidecar::start(application().await, Setup { limits: &[(Limit::InboundConnections, 20_000)], ..Setup::default() }).await;
    let before = sidecar.resident_kib();
    let mut open = Vec::new();
    for _ in 0..wanted {
        let mut stream = timeout(DEADLINE, sidecar.caller()).await.expect("it is taken");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
        let _byte = timeout(DEADLINE, stream.read_u8()).await.expect("in time").unwrap();
        open.push(stream);
    }
    let grown = sidecar.resident_kib().saturating_sub(before);
    println!("{wanted} idle connections: {} KiB each", grown / wanted);
    assert!(grown / wanted < 32, "{grown} KiB for {wanted} connections");
    let answer = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(open);
}

#[tokio::test]
async fn a_sidecar_that_may_open_no_more_files_says_so_and_goes_on_when_it_may() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let pid = Pid::from_raw(i32::try_from(sidecar.pid()).unwrap());
    let most = prlimit(pid, Resource::Nofile, Rlimit { current: Some(8), ..getrlimit(Resource::Nofile) }).unwrap();
    let mut waiting = TcpStream::connect(sidecar.inbound).await.unwrap();
    waiting.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !sidecar.log().contains("connections cannot be accepted") {
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
    prlimit(pid, Resource::Nofile, most).unwrap();
    let mut first = [0; 12];
    timeout(DEADLINE, waiting.read_exact(&mut first)).await.expect("in time").unwrap();
    assert_eq!(&first, b"HTTP/1.1 400");
    assert_eq!(sidecar.log().matches("connections cannot be accepted").count(), 1, "{}", sidecar.log());
}

#[tokio::test]
async fn an_application_that_pauses_in_the_middle_of_a_body_loses_nothing() {
    const BODY: usize = 32 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        // Long enough for every buffer on the way to be full and stay so.
        sleep(Duration::from_secs(14)).await;
        let mut left = BODY;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => left -= count,
                _ => return,
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let sidecar = Sidecar::start(address, Setup::default()).await;
    let mut stream = sidecar.caller().await;
    let head = format!("POST / HTTP/1.1\r\nhost: server\r\nconnection: close\r\ncontent-length: {BODY}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // What TLS still holds when the last write returns goes only with a flush.
    let sent = timeout(DEADLINE * 2, async {
        stream.write_all(&vec![7; BODY]).await?;
        stream.flush().await
    });
    let sent = sent.await.expect("in time");
    let mut answer = Vec::new();
    timeout(DEADLINE * 3, stream.read_to_end(&mut answer)).await.expect("the sidecar closes").ok();
    assert!(sent.is_ok() && answer.ends_with(b"ok"), "{sent:?} {answer:?}\n{}", sidecar.log());
}
