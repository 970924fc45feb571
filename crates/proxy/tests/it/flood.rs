//! Bad tokens in great number: they cost whoever sends them, and nobody else.

use crate::sidecar::{DEADLINE, Setup, Sidecar, Tls, application};
use crate::tokens::{POLICY, claims, issuer, trusted, with_token};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Connections that send bad tokens.
const FLOODS: u64 = 32;
/// Calls of the good caller meanwhile.
const CALLS: u64 = 200;
/// What the sidecar may grow by: connections and the log's buffers, but nothing that is kept of a token.
const GROWTH_KIB_MAX: u64 = 12 * 1024;

/// One request on a connection that stays open; the whole answer.
async fn call(stream: &mut Tls, token: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        let count = timeout(DEADLINE, stream.read(&mut buffer)).await.expect("an answer").expect("an open connection");
        assert!(count > 0, "the connection ended within {text:?}");
        seen.extend_from_slice(&buffer[..count]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_tokens_fails_no_good_call_and_leaves_nothing_in_memory() {
    let (issuer, server) = issuer().await;
    let setup = Setup { policy: POLICY, issuers: vec![trusted(&server)], ..Setup::default() };
    let sidecar = Arc::new(Sidecar::start(application().await, setup).await);
    let good = issuer.mint(&claims(&server, json!({})));
    assert!(with_token(&sidecar, &good).await.starts_with("HTTP/1.1 200"));
    let before = sidecar.resident_kib();

    let (signed, _) = good.rsplit_once('.').unwrap();
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let floods: Vec<_> = (0..FLOODS)
        .map(|number| {
            let (sidecar, signed, stop, sent) = (Arc::clone(&sidecar), signed.to_owned(), Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let mut stream = sidecar.caller().await;
                for count in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A signature of the right form that nobody made.
                    let token = format!("{signed}.{:0>85}A", format!("{number}x{count}"));
                    let answer = call(&mut stream, &token).await;
                    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut caller = sidecar.caller().await;
    for number in 0..CALLS {
        // Every tenth token is one that was never seen, so that it is checked amid the bad ones.
        let fresh = issuer.mint(&claims(&server, json!({ "jti": format!("fresh-{number}") })));
        let token = if number % 10 == 0 { &fresh } else { &good };
        let answer = call(&mut caller, token).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "call {number}: {answer}");
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.await.unwrap();
    }
    let (sent, grown) = (sent.load(Ordering::Relaxed), sidecar.resident_kib().saturating_sub(before));
    println!("{sent} bad tokens beside {CALLS} good calls; the sidecar grew by {grown} KiB");
    assert!(sent > CALLS, "only {sent} bad tokens were sent");
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB more after {sent} bad tokens");
    assert_eq!(server.fetches().jwks, 1, "forged tokens make nobody ask the issuer");
}
