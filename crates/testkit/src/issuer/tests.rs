//! The development issuer does what it is told, well and badly.

use super::*;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request; the whole answer as text, empty if there was none.
async fn get(server: &IssuerServer, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", server.address());
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    // A reset is one way of being gone.
    let _read = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

async fn served() -> (Issuer, IssuerServer) {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "k1");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let server = issuer.serve(listener).expect("address");
    (issuer, server)
}

#[tokio::test]
async fn a_well_behaved_server_answers_with_the_keys_of_the_moment_and_counts() {
    let (issuer, server) = served().await;
    let discovery: Value = serde_json::from_str(body(&get(&server, "/.well-known/openid-configuration").await)).expect("JSON");
    assert_eq!(discovery["issuer"], server.url());
    assert_eq!(discovery["jwks_uri"], format!("{}/jwks", server.url()));
    assert_eq!(body(&get(&server, "/jwks").await), issuer.jwks().to_string());
    issuer.add_key(JwtAlgorithm::EdDsa, "k2");
    assert_eq!(body(&get(&server, "/jwks").await), issuer.jwks().to_string());
    assert!(get(&server, "/other").await.starts_with("HTTP/1.1 404 "));
    assert_eq!(server.fetches(), Fetches { discovery: 1, jwks: 2, introspection: 0 });
}

#[tokio::test]
async fn a_badly_behaved_server_does_exactly_what_it_was_told() {
    let (issuer, server) = served().await;
    let good = issuer.jwks().to_string();
    let delay = Duration::from_millis(50);
    server.behave(Behaviour::Slow(delay));
    let began = Instant::now();
    assert_eq!(body(&get(&server, "/jwks").await), good);
    assert!(began.elapsed() >= delay);
    server.behave(Behaviour::Gone);
    assert_eq!(get(&server, "/jwks").await, "");
    server.behave(Behaviour::Status(503));
    assert!(get(&server, "/jwks").await.starts_with("HTTP/1.1 503 "));
    server.behave(Behaviour::Garbage);
    assert!(serde_json::from_str::<Value>(body(&get(&server, "/jwks").await)).is_err());
    server.behave(Behaviour::Oversized(300_000));
    assert_eq!(body(&get(&server, "/jwks").await).len(), 300_000);
    server.behave(Behaviour::Redirecting("http://127.0.0.1:1/jwks".to_owned()));
    let answer = get(&server, "/jwks").await;
    assert!(answer.starts_with("HTTP/1.1 302 ") && answer.contains("location: http://127.0.0.1:1/jwks"), "{answer}");
    server.behave(Behaviour::OtherIssuer("https://attacker.example".to_owned()));
    assert!(get(&server, "/.well-known/openid-configuration").await.contains(r#""issuer":"https://attacker.example""#));
    server.behave(Behaviour::Well);
    assert_eq!(body(&get(&server, "/jwks").await), good);
    assert_eq!(server.fetches(), Fetches { discovery: 1, jwks: 7, introspection: 0 });
}

#[tokio::test]
async fn a_dropped_server_listens_no_more() {
    let (_issuer, server) = served().await;
    let address = server.address();
    drop(server);
    // The task ends when the runtime next looks at it.
    let gone = tokio::time::timeout(Duration::from_secs(5), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("gone");
}

#[test]
fn keys_are_added_rotated_and_removed() {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "k1");
    let kids = || issuer.jwks()["keys"].as_array().expect("list").iter().map(|key| key["kid"].to_string()).collect::<Vec<_>>();
    issuer.add_key(JwtAlgorithm::EdDsa, "k2");
    assert_eq!((kids(), issuer.header()["kid"].clone()), (vec![r#""k1""#.to_owned(), r#""k2""#.to_owned()], json!("k2")));
    issuer.remove_key("k2");
    assert_eq!((kids(), issuer.header()["alg"].clone()), (vec![r#""k1""#.to_owned()], json!("ES256")));
    issuer.rotate(JwtAlgorithm::Rs256, "k3");
    assert_eq!((kids(), issuer.header()["alg"].clone()), (vec![r#""k3""#.to_owned()], json!("RS256")));
    assert!(issuer.jwks()["keys"][0].get("d").is_none(), "no private half is published");
}

#[test]
fn every_hostile_token_differs_from_the_good_one() {
    let claims = json!({ "iss": "https://login.example", "sub": "alice", "aud": "bank", "nested": { "a": { "b": 1 } } });
    let issuer = Issuer::generate(JwtAlgorithm::EdDsa, "k1");
    // Ed25519 signatures are deterministic: the same content is the same text.
    let good = issuer.mint(&claims);
    assert_eq!(good, issuer.mint(&claims));
    for (at, hostile) in Hostile::ALL.into_iter().enumerate() {
        assert_ne!(issuer.mint_hostile(hostile, &claims), good, "{hostile:?}");
        assert!(!Hostile::ALL[..at].contains(&hostile), "{hostile:?} stands twice");
    }
}

#[tokio::test]
async fn metadata_can_stand_where_rfc_8414_has_them() {
    let (_issuer, server) = served().await;
    let (below, between) = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server");
    assert!(get(&server, between).await.starts_with("HTTP/1.1 404 "));
    server.behave(Behaviour::OnlyRfc8414);
    assert!(get(&server, below).await.starts_with("HTTP/1.1 404 "));
    assert!(get(&server, between).await.contains(r#""introspection_endpoint""#));
}
