//! Attacks on the resource server: by callers of the mesh, and by issuers that are slow.

use crate::headers::over_http2;
use crate::opaque::{active, asking, file};
use crate::resource_server::{as_holder, proof, thumbprint, trickling};
use crate::sidecar::{DEADLINE, Setup, Sidecar, Tls, application, application_of_http2};
use crate::tokens::{claims, issuer, trusted, with_token};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use model::introspection::ClientAuthentication;
use model::snapshot::{JwtAlgorithm, TokenIssuer};
use model::token::TokenUse;
use model::{ClaimPath, Limit, SpiffeId};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::issuer::{Behaviour, Issuer, IssuerServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// An application of HTTP/2 that tells in its answer which trailers came.
async fn telling() -> SocketAddr {
    application_of_http2(|request, mut answer| async move {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.data().await {}
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        let told = Response::builder().header("x-trailers", names.join(" ")).body(()).unwrap();
        answer.send_response(told, true).unwrap();
    })
    .await
}

#[tokio::test]
async fn trailers_of_http2_tell_of_no_user_whether_or_not_a_length_was_said() {
    let path = |text| ClaimPath::parse(text).unwrap();
    let token = TokenUse { claims: BTreeMap::from([("x-user".into(), path("sub"))]), ..TokenUse::default() };
    let sidecar = Sidecar::start(telling().await, Setup { token, ..Setup::default() }).await;
    let (client, connection) = h2::client::handshake(over_http2(&sidecar).await).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for length in [Some("5"), None] {
        let mut request = Request::post("http://server/page");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let trailers = ["x-user", "x_user", "x-sum", "dpop", "authorization", "cookie"];
        let trailers = trailers.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("evil")));
        body.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200, "{length:?}");
        assert_eq!(answer.headers()["x-trailers"], "x-sum", "with content-length {length:?}");
    }
}

#[tokio::test]
async fn a_token_header_of_its_own_comes_in_no_trailer() {
    let (issuer, server) = issuer().await;
    let token = TokenUse { header: "x-token".into(), ..TokenUse::default() };
    let setup = Setup { issuers: vec![trusted(&server)], token, ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let jwt = issuer.mint(&claims(&server, json!({})));
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-token: {jwt}\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\nx-token: evil\r\nx_token: evil\r\nx-sum: 1\r\n\r\n"
    );
    let answer = sidecar.exchange(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-sum: 1") && !answer.contains("evil"), "{answer}");
}

#[tokio::test]
async fn a_proof_is_not_good_again_after_the_sidecar_was_restarted() {
    let (issuer, server) = issuer().await;
    let setup = Setup { issuers: vec![trusted(&server)], ..Setup::default() };
    let mut sidecar = Sidecar::start(application().await, setup).await;
    // Past the second in which it began: the moments in proofs are whole seconds.
    sleep(Duration::from_millis(1100)).await;
    let key = Issuer::generate(JwtAlgorithm::Es256, "own");
    let bound = issuer.mint(&claims(&server, json!({ "cnf": { "jkt": thumbprint(&key) } })));
    let proof = |jti: &str, nonce: Option<&str>| proof(&key, &bound, jti, nonce, json!({}));
    let request = |proof: &str| {
        format!(
            "GET /pay HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\nauthorization: DPoP {bound}\r\ndpop: {proof}\r\n\r\n"
        )
    };
    let used = proof("1", None);
    let answer = sidecar.exchange(request(&used).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}{}", sidecar.log());
    sidecar.restart();
    sidecar.until_ready().await;
    let replayed = sidecar.exchange(request(&used).as_bytes()).await;
    assert!(replayed.starts_with("HTTP/1.1 401") && replayed.contains("x-rondel-reason: dpop_nonce\r\n"), "{replayed}");
    // Whoever has the key makes another.
    let nonce = replayed.lines().find_map(|line| line.strip_prefix("dpop-nonce: ")).unwrap();
    let answer = sidecar.exchange(request(&proof("2", Some(nonce))).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// An issuer of opaque tokens that begin with its name.
fn named(name: &str, server: &IssuerServer, secret_file: &str, is_discovered: bool) -> TokenIssuer {
    let mut issuer = asking(server, ClientAuthentication::SecretBasic { secret_file: secret_file.to_owned() });
    issuer.name = name.to_owned();
    let introspection = issuer.introspection.as_mut().unwrap();
    introspection.prefix = format!("{name}_");
    introspection.endpoint = (!is_discovered).then(|| format!("{}/introspect", server.url()));
    issuer
}

/// One request by this identity.
async fn by(sidecar: &Sidecar, id: &str, token: &str) -> String {
    let presented = sidecar.control.hostile.good(&SpiffeId::parse(id).unwrap());
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    as_holder(sidecar, &presented, &request).await
}

const THIEF: &str = "spiffe://shop.example/ns/shop/sa/thief";
const GATEWAY: &str = "spiffe://shop.example/ns/shop/sa/gateway";

/// Invented tokens by one caller, so many at a time, until it is dropped.
fn flooding(sidecar: &Arc<Sidecar>, prefix: &'static str, at_once: usize) -> JoinSet<()> {
    let mut floods = JoinSet::new();
    for number in 0..at_once {
        let sidecar = Arc::clone(sidecar);
        floods.spawn(async move {
            for count in 0.. {
                let answer = by(&sidecar, THIEF, &format!("{prefix}{number}x{count}")).await;
                assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    floods
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_slow_to_say_where_it_is_asked_delays_no_others_opaque_tokens() {
    let ((_, slow), (_, good)) = (issuer().await, issuer().await);
    let (_dir, secret) = file("s3cret");
    slow.behave(Behaviour::Slow(Duration::from_secs(60)));
    let issuers = vec![named("slow", &slow, &secret, true), named("good", &good, &secret, true)];
    let limits = &[(Limit::IntrospectionMs, 15_000), (Limit::JwksFetchMs, 15_000)];
    let sidecar = Arc::new(Sidecar::start(application().await, Setup { issuers, limits, ..Setup::default() }).await);
    let mut floods = flooding(&sidecar, "slow_", 2);
    sleep(Duration::from_millis(500)).await;
    for number in 0..5 {
        let token = format!("good_{number}");
        good.says(&token, active(&good));
        let answer = by(&sidecar, GATEWAY, &token).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
    }
    let failures = sidecar.metric("rondel_introspection_failures_total{issuer=\"slow\"}").await;
    assert_eq!(failures, 0, "the slow issuer was given up before");
    assert!(floods.try_join_next().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_to_a_slow_issuer_leave_room_for_those_to_another() {
    let ((_, slow), (_, good)) = (issuer().await, issuer().await);
    let (_dir, secret) = file("s3cret");
    slow.behave(Behaviour::Slow(Duration::from_secs(60)));
    let issuers = vec![named("slow", &slow, &secret, false), named("good", &good, &secret, false)];
    let limits = &[(Limit::IntrospectionMs, 1000), (Limit::IntrospectionsUnderWay, 4)];
    let sidecar = Arc::new(Sidecar::start(application().await, Setup { issuers, limits, ..Setup::default() }).await);
    let _floods = flooding(&sidecar, "slow_", 8);
    sleep(Duration::from_millis(200)).await;
    for number in 0..20 {
        let token = format!("good_{number}");
        good.says(&token, active(&good));
        // By the very caller that also asks about the others.
        let answer = by(&sidecar, THIEF, &token).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_callers_invented_opaque_tokens_leave_room_for_those_of_another() {
    let (_, server) = issuer().await;
    let (_dir, secret) = file("s3cret");
    let issuers = vec![named("login", &server, &secret, false)];
    let limits = &[(Limit::IntrospectionMs, 2000), (Limit::IntrospectionsUnderWay, 4), (Limit::IntrospectionInactiveMs, 0)];
    let sidecar = Arc::new(Sidecar::start(application().await, Setup { issuers, limits, ..Setup::default() }).await);
    server.behave(Behaviour::Slow(Duration::from_millis(300)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut floods = JoinSet::new();
    for number in 0..8 {
        let (sidecar, stop) = (Arc::clone(&sidecar), Arc::clone(&stop));
        floods.spawn(async move {
            for count in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let answer = by(&sidecar, THIEF, &format!("login_{number}x{count}")).await;
                assert!(answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 503"), "{answer}");
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    sleep(Duration::from_millis(200)).await;
    for number in 0..10 {
        let token = format!("login_good{number}");
        server.says(&token, active(&server));
        let answer = by(&sidecar, GATEWAY, &token).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = floods.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn what_a_token_of_an_issuer_that_is_believed_no_more_keeps_open_is_ended() {
    let (issuer, server) = issuer().await;
    let mut sidecar = Sidecar::start(trickling().await, Setup { issuers: vec![trusted(&server)], ..Setup::default() }).await;
    let token = issuer.mint(&claims(&server, json!({})));
    let mut open: Vec<Tls> = Vec::new();
    for (path, switch, wanted) in [("/stream", "", "200"), ("/chat", "connection: upgrade\r\nupgrade: websocket\r\n", "101")] {
        let mut stream = sidecar.caller().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n{switch}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 12];
        timeout(DEADLINE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(head, format!("HTTP/1.1 {wanted}").as_bytes(), "{path}");
        open.push(stream);
    }
    sidecar.snapshot.issuers.clear();
    sidecar.publish().await;
    for mut stream in open {
        let until_its_end = async { while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} };
        timeout(DEADLINE, until_its_end).await.expect("it is ended");
    }
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 401"));
}
