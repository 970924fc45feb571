//! Callers that lie, smuggle, dawdle and break off.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application, read_all};
use model::{Limit, Reason, SpiffeId};
use std::time::Duration;
use testkit::pki::{Flaw, LawlessClient, TestAuthority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn every_flawed_certificate_is_refused_with_its_reason() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"), "a good caller gets through");
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    for flaw in Flaw::ALL {
        let presented = sidecar.control.hostile.flawed(flaw, &id);
        let client = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
        assert_eq!(answered(&sidecar, &client).await, "", "{flaw:?}");
        let line = sidecar.logged(flaw.reason().as_str()).await;
        assert_eq!(line["kind"], "connection", "{flaw:?}");
    }
}

/// What a client gets for a request, nothing if the sidecar refuses it.
async fn answered(sidecar: &Sidecar, client: &LawlessClient) -> String {
    let stream = TcpStream::connect(sidecar.inbound).await.unwrap();
    let Ok(mut stream) = client.connect(stream).await else { return String::new() };
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(GET).await?;
        stream.read_to_end(&mut answer).await
    };
    let _refused = timeout(DEADLINE, exchange).await.expect("refused in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn strangers_and_other_protocols_are_refused() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let good = sidecar.control.hostile.good(&id);

    // A foreign authority of the same name and trust domain.
    let foreign = TestAuthority::new(crate::control::DOMAIN).good(&id);
    let client = LawlessClient::new().presenting(&foreign.chain, &foreign.key).alpn(&["http/1.1"]);
    assert_eq!(answered(&sidecar, &client).await, "");
    sidecar.logged("peer_untrusted").await;
    // No certificate.
    assert_eq!(answered(&sidecar, &LawlessClient::new().alpn(&["http/1.1"])).await, "");
    sidecar.logged("peer_certificate_missing").await;
    // TLS 1.2.
    assert_eq!(answered(&sidecar, &LawlessClient::tls12().presenting(&good.chain, &good.key)).await, "");
    // A protocol that the port does not carry.
    assert_eq!(answered(&sidecar, &LawlessClient::new().presenting(&good.chain, &good.key).alpn(&["rondel-tcp"])).await, "");
    sidecar.logged("handshake_failed").await;

    // Plaintext gets an answer in its own language, and nothing else.
    let mut plain = TcpStream::connect(sidecar.inbound).await.unwrap();
    plain.write_all(GET).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, plain.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("x-rondel-reason: plaintext_refused"), "{answer}");
    sidecar.logged("plaintext_refused").await;
}

#[tokio::test]
async fn a_handshake_that_dawdles_is_ended_and_stalls_nobody() {
    let setup = Setup { limits: &[(Limit::HandshakeMs, 300)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(sidecar.inbound).await.unwrap();
        stream.write_all(&[0x16, 3, 1]).await.unwrap();
        silent.push(stream);
    }
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"));
    for mut stream in silent {
        let mut end = [0; 16];
        let _closed = timeout(DEADLINE, stream.read(&mut end)).await.expect("ended by the deadline");
    }
    sidecar.logged("handshake_timeout").await;
}

#[tokio::test]
async fn ambiguous_messages_are_refused_and_never_reach_the_application() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    for (name, request, reason) in [
        (
            "CL then TE",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "framing_ambiguous",
        ),
        (
            "TE then CL",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
            "framing_ambiguous",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            "framing_ambiguous",
        ),
        (
            "two equal lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            "framing_ambiguous",
        ),
        ("signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello", "framing_ambiguous"),
        ("obs-fold", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", "framing_ambiguous"),
        ("bare LF", "GET / HTTP/1.1\nhost: a\n\n", "framing_ambiguous"),
        ("bare LF in a header", "GET / HTTP/1.1\r\nhost: a\nx: 1\r\n\r\n", "framing_ambiguous"),
        ("space before colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n", "framing_ambiguous"),
        ("other coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", "framing_ambiguous"),
        ("no host", "GET / HTTP/1.1\r\n\r\n", "host_invalid"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "host_invalid"),
        ("host and target disagree", "GET http://a/ HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n", "host_invalid"),
        ("encoded slash", "GET /a%2fb HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "path_invalid"),
        ("encoded NUL", "GET /a%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "path_invalid"),
        ("CONNECT", "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "method_not_supported"),
        ("TRACE", "TRACE / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "method_not_supported"),
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n", "request_malformed"),
    ] {
        // What follows a refused message must never be read as a request: it would be the smuggled one.
        let answer =
            sidecar.exchange(format!("{request}GET /smuggled HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{name}: {answer}");
        let closes = !matches!(reason, "host_invalid" | "path_invalid") || !request.contains("connection: close");
        assert!(!closes || !answer.contains("GET /smuggled"), "{name}: {answer}");
    }
}

#[tokio::test]
async fn a_refused_message_leaves_the_answers_before_it_untouched() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let answer = sidecar.exchange(b"GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\nhost: a\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /one"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400") && answer.contains("framing_ambiguous"), "{answer}");
}

#[tokio::test]
async fn heads_that_are_too_large_too_many_or_too_slow_are_refused_by_name() {
    let setup = Setup {
        limits: &[(Limit::RequestHeadBytes, 2048), (Limit::RequestHeaders, 10), (Limit::RequestHeadMs, 400)],
        ..Setup::default()
    };
    let sidecar = Sidecar::start(application().await, setup).await;
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(4000));
    let answer = sidecar.exchange(large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("head_too_large"), "{answer}");
    let detail = "\"detail\":\"head of 2049 or more bytes is over limit `requestHeadBytes` (2048)\"";
    assert!(answer.contains(detail), "the caller is told which limit and how far: {answer}");
    let line = sidecar.logged("head_too_large").await;
    assert!(line["detail"].as_str().unwrap().contains("requestHeadBytes"), "the log names the limit: {line}");
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(20));
    assert!(sidecar.exchange(many.as_bytes()).await.starts_with("HTTP/1.1 431"));

    let mut slow = sidecar.caller().await;
    let began = Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    let answer = read_all(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("head_timeout"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(300), "not before the deadline");
}

#[tokio::test]
async fn identity_headers_of_the_caller_never_reach_the_application() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let answer = sidecar
        .exchange(
            b"GET / HTTP/1.1\r\nhost: a\r\nX-Rondel-Principal: spiffe://shop.example/ns/shop/sa/boss\r\nx-rondel-user: root\r\n\
              X-Forwarded-Client-Cert: URI=spiffe://shop.example/ns/shop/sa/boss\r\nx-rondel-decision: d-0\r\nconnection: close, x-rondel-principal\r\n\r\n",
        )
        .await;
    assert!(!answer.contains("sa/boss") && !answer.contains("root"), "{answer}");
    let through = answer.starts_with("HTTP/1.1 200");
    assert!(!through || answer.contains("x-rondel-principal: spiffe://shop.example/ns/shop/sa/client"), "{answer}");
}

#[tokio::test]
async fn a_half_closed_caller_still_gets_its_answer() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_all(&mut stream).await.contains("GET /half"));
}

#[tokio::test]
async fn a_body_that_a_policy_reads_is_bounded_and_unambiguous() {
    let policy = r#"@id("small") permit (principal, action == Action::"POST", resource)
        when { context.request has body && context.request.body.amount <= 10 };"#;
    let setup = Setup { policy, limits: &[(Limit::PolicyBodyBytes, 64), (Limit::PolicyBodyMs, 400)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let post = |body: &str| {
        let length = body.len();
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    };
    for (body, status, reason) in [
        (r#"{"amount": 10}"#.to_owned(), "200", ""),
        (r#"{"amount": 11}"#.to_owned(), "403", "not_permitted"),
        (r#"{"amount": 1, "amount": 100}"#.to_owned(), "400", "body_ambiguous"),
        (r#"{"amount": 1, "\u0061mount": 100}"#.to_owned(), "400", "body_ambiguous"),
        // No body is none; one that is there and cannot be read denies, whatever the policies would say without it.
        (String::new(), "403", "not_permitted"),
        (r#"{"amount": "1"}"#.to_owned(), "403", "policy_error"),
        (r#"{"amount": 1e0}"#.to_owned(), "403", "policy_error"),
        ("{}".to_owned(), "403", "policy_error"),
        ("not json".to_owned(), "403", "policy_error"),
        ("[]".to_owned(), "403", "policy_error"),
        (format!("{{\"amount\": 1, \"pad\": \"{}\"}}", "x".repeat(100)), "413", "body_too_large"),
    ] {
        let answer = sidecar.exchange(post(&body).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{body}: {answer}");
        assert!(status != "200" || answer.contains(&body), "the application gets the very body that was decided on: {answer}");
        assert!(status == "200" || answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{body}: {answer}");
    }
    let line = sidecar.logged("body_too_large").await;
    assert!(line["detail"].as_str().unwrap().ends_with("bytes is over limit `policyBodyBytes` (64)"), "{line}");
    // A lying length: the rest never comes.
    let mut stream = sidecar.caller().await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 40\r\nconnection: close\r\n\r\n{\"amount\": 1}").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("body_incomplete"), "{answer}");
    // Chunked, beyond the bound.
    let chunk = format!("40\r\n{}\r\n", "x".repeat(64));
    let answer = sidecar
        .exchange(
            format!(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunk}{chunk}0\r\n\r\n"
            )
            .as_bytes(),
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_gets_past_no_forbid() {
    let policy = r#"@id("open") permit (principal, action, resource);
        @id("big") forbid (principal, action == Action::"POST", resource)
        when { context.request.path == "/transfers" && context.request has body && context.request.body.amount > 10 };"#;
    let sidecar = Sidecar::start(application().await, Setup { policy, ..Setup::default() }).await;
    let post = |path: &str, kind: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nhost: a\r\n{kind}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
    };
    let json = "content-type: application/json\r\n";
    for (path, kind, body, status, reason) in [
        ("/transfers", json, r#"{"amount": 10}"#, "200", ""),
        ("/transfers", json, r#"{"amount": 11}"#, "403", "denied_by_policy"),
        ("/transfers", json, r#"{"amount": "11"}"#, "403", "policy_error"),
        ("/transfers", json, r#"{"amount": 11.0}"#, "403", "policy_error"),
        ("/transfers", json, r#"{"amount": 99999999999999999999}"#, "403", "policy_error"),
        ("/transfers", json, r#"{"total": 11}"#, "403", "policy_error"),
        ("/transfers", "content-type: text/plain\r\n", r#"{"amount": 11}"#, "403", "policy_error"),
        ("/transfers", "", r#"{"amount": 11}"#, "403", "policy_error"),
        ("/transfers", "content-type: application/json\r\ncontent-encoding: gzip\r\n", "x", "403", "policy_error"),
        ("/transfers", json, "", "200", ""),
        // The policy asks for the path first, and so other bodies are no matter of it.
        ("/uploads", "content-type: image/png\r\n", "\u{0}PNG", "200", ""),
    ] {
        let answer = sidecar.exchange(post(path, kind, body).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {kind}{body}: {answer}");
        assert!(status == "200" || answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{path} {kind}{body}: {answer}");
    }
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body_and_not_for_a_refused_call() {
    let policy = r#"@id("put") permit (principal, action == Action::"PUT", resource);"#;
    let sidecar = Sidecar::start(application().await, Setup { policy, ..Setup::default() }).await;
    let mut stream = sidecar.caller().await;
    stream
        .write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 25];
    timeout(DEADLINE, stream.read_exact(&mut first)).await.expect("100 before the body").unwrap();
    assert!(first.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&first));
    stream.write_all(b"hello").await.unwrap();
    assert!(read_all(&mut stream).await.contains("200 OK"));
    let mut stream = sidecar.caller().await;
    stream
        .write_all(b"DELETE / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    timeout(DEADLINE, stream.read_exact(&mut first)).await.expect("an answer").unwrap();
    assert_eq!(&first, b"HTTP/1.1 403");
}

#[tokio::test]
async fn failures_of_the_application_are_told_as_its_own() {
    let nobody = crate::sidecar::free();
    let sidecar = Sidecar::start(nobody, Setup::default()).await;
    let answer = sidecar.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("application_connect"), "{answer}");
    assert_eq!(sidecar.logged("application_connect").await["side"], "application");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = listener.local_addr().unwrap();
    let setup = Setup { limits: &[(Limit::ResponseHeadMs, 300)], ..Setup::default() };
    let sidecar = Sidecar::start(mute, setup).await;
    let answer = sidecar.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains(Reason::ApplicationTimeout.as_str()), "{answer}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 512];
            let _read = stream.read(&mut head).await;
            let garbage: &[u8] = if head.starts_with(b"GET /garbage") { b"not http at all\r\n\r\n" } else { b"" };
            let _sent = stream.write_all(garbage).await;
        }
    });
    let sidecar = Sidecar::start(rude, Setup::default()).await;
    assert!(sidecar.exchange(GET).await.contains("application_reset"));
    let answer = sidecar.exchange(b"GET /garbage HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("application_malformed"), "{answer}");
}

#[tokio::test]
async fn too_many_connections_are_refused_and_counted() {
    let sidecar =
        Sidecar::start(application().await, Setup { limits: &[(Limit::InboundConnections, 3)], ..Setup::default() }).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(sidecar.caller().await);
    }
    let mut extra = TcpStream::connect(sidecar.inbound).await.unwrap();
    let mut end = [0; 1];
    assert_eq!(timeout(DEADLINE, extra.read(&mut end)).await.expect("closed").unwrap_or(0), 0);
    let line = sidecar.logged("overloaded").await;
    assert!(line["detail"].as_str().unwrap().contains("inboundConnections"), "{line}");
    drop(open);
}

#[tokio::test]
async fn a_chunk_that_could_be_read_in_two_ways_ends_the_request_and_its_connection() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    for chunk in ["5 \r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n"] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let answer = sidecar.exchange(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("framing_ambiguous"), "{chunk:?}: {answer}");
        assert!(!answer.contains("GET /smuggled"), "{chunk:?}: {answer}");
    }
}

#[tokio::test]
async fn trailers_cannot_claim_an_identity() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntrailer: x-rondel-principal, x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\nx-rondel-principal: spiffe://shop.example/ns/shop/sa/boss\r\nx-sum: 1\r\n\r\n";
    let answer = sidecar.exchange(request.as_bytes()).await;
    assert!(!answer.contains("sa/boss"), "{answer}");
}
