//! The sidecar as a resource server: where tokens are taken from, what the application gets of them, who may send them, and what
//! callers are told.

use crate::sidecar::{ALLOW_ALL, DEADLINE, Setup, Sidecar, Tls, application, free, read_all};
use crate::tokens::{claims, issuer, trusted, with_token};
use http::Request;
use model::snapshot::{JwtAlgorithm, TokenIssuer};
use model::token::{Requirements, RevokedTokens, SenderConstraint, TokenUse};
use model::{ClaimPath, Limit, SpiffeId, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use testkit::issuer::{Issuer, IssuerServer, sha256_base64url};
use testkit::pki::{self, LawlessClient, Presented};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

fn demanding(server: &IssuerServer, require: Requirements) -> TokenIssuer {
    TokenIssuer { require, ..trusted(server) }
}

fn resource(identifier: &str) -> TokenUse {
    TokenUse { resource: Some(identifier.to_owned()), ..TokenUse::default() }
}

async fn get(sidecar: &Sidecar, path: &str, lines: &str) -> String {
    sidecar.exchange(format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n{lines}\r\n").as_bytes()).await
}

/// The values of `WWW-Authenticate`, in order.
fn challenges(answer: &str) -> Vec<&str> {
    answer.lines().filter_map(|line| line.strip_prefix("www-authenticate: ")).collect()
}

#[tokio::test]
async fn rfc6750_3_rfc9470_3_and_rfc9728_5_1_a_challenge_says_what_would_do() {
    let (issuer, server) = issuer().await;
    let require = Requirements {
        scopes: vec!["pay".into()],
        acr: vec!["gold".into()],
        max_age: Some(Duration::from_secs(60)),
        ..Requirements::default()
    };
    let setup =
        Setup { issuers: vec![demanding(&server, require)], token: resource("https://shop.example/api"), ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let now = pki::now().seconds();
    let at = "resource_metadata=\"https://shop.example/.well-known/oauth-protected-resource/api\"";
    for (change, status, reason, wanted) in [
        (
            json!({ "acr": "gold", "auth_time": now }),
            "403",
            "token_scope",
            &["error=\"insufficient_scope\"", "scope=\"pay\""][..],
        ),
        (
            json!({ "scope": "pay", "auth_time": now }),
            "401",
            "token_step_up",
            &["error=\"insufficient_user_authentication\"", "acr_values=\"gold\"", "max_age=\"60\""],
        ),
        (
            json!({ "scope": "pay", "acr": "gold", "auth_time": now - 200 }),
            "401",
            "token_step_up",
            &["error=\"insufficient_user_authentication\""],
        ),
        (json!({ "exp": now - 100 }), "401", "token_expired", &["error=\"invalid_token\""]),
    ] {
        let answer = with_token(&sidecar, &issuer.mint(&claims(&server, change.clone()))).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{change}: {answer}");
        assert!(answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{change}: {answer}");
        let told = challenges(&answer);
        assert!(told.len() == 1 && told[0].starts_with("Bearer realm=\"shop.example\", ") && told[0].contains(at), "{answer}");
        assert!(wanted.iter().all(|wanted| told[0].contains(wanted)), "{change}: {answer}");
    }
    let good = json!({ "scope": "pay", "acr": "gold", "auth_time": now });
    let answer = with_token(&sidecar, &issuer.mint(&claims(&server, good))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn rfc9728_3_the_metadata_of_the_resource_is_served_to_whoever_asks() {
    let (_issuer, server) = issuer().await;
    let require = Requirements { scopes: vec!["pay".into()], sender: SenderConstraint::Any, ..Requirements::default() };
    let token = TokenUse { query: Some("access_token".into()), ..resource("https://shop.example/api") };
    let nobody = "forbid (principal, action, resource);";
    let setup = Setup { policy: nobody, issuers: vec![demanding(&server, require)], token, ..Setup::default() };
    let mut sidecar = Sidecar::start(application().await, setup).await;
    let path = "/.well-known/oauth-protected-resource";
    for path in [path, &format!("{path}/api")] {
        let answer = get(&sidecar, path, "").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/json"), "{answer}");
        let metadata: Value = serde_json::from_str(body).unwrap();
        let expected = json!({
            "resource": "https://shop.example/api",
            "authorization_servers": [server.url()],
            "scopes_supported": ["pay"],
            "bearer_methods_supported": ["header", "query"],
            "tls_client_certificate_bound_access_tokens": true,
            "dpop_signing_alg_values_supported": JwtAlgorithm::ALL.map(JwtAlgorithm::as_str),
        });
        assert_eq!(metadata, expected);
    }
    let head = sidecar.exchange(format!("HEAD {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    for other in [&format!("{path}/other"), &format!("{path}/api/x"), "/api"] {
        assert!(get(&sidecar, other, "").await.starts_with("HTTP/1.1 403"), "{other}");
    }
    sidecar.snapshot.token.resource = None;
    sidecar.publish().await;
    assert!(get(&sidecar, path, "").await.starts_with("HTTP/1.1 403"), "nothing is served where nothing is said");
}

#[tokio::test]
async fn grpc_is_told_in_its_own_words_in_one_head() {
    let (issuer, server) = issuer().await;
    let require = Requirements { scopes: vec!["pay".into()], ..Requirements::default() };
    let user = "permit (principal, action, resource) when { context has user && context.user.subject == \"tina\" };";
    let setup = Setup { policy: user, issuers: vec![demanding(&server, require)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let good = sidecar.control.hostile.good(&SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap());
    let client = LawlessClient::new().presenting(&good.chain, &good.key).alpn(&["h2"]);
    let stream = client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let scoped = json!({ "scope": "pay", "sub": "nina" });
    for (name, token, status, reason) in [
        ("no token", None, "16", "token_missing"),
        ("no token that can be read", Some("x".to_owned()), "16", "token_malformed"),
        ("no scope", Some(issuer.mint(&claims(&server, json!({})))), "7", "token_scope"),
        ("no permit", Some(issuer.mint(&claims(&server, scoped))), "7", "not_permitted"),
    ] {
        let mut request = Request::post("http://server/shop.Till/Pay").header("content-type", "application/grpc");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        let line = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!((answer.status().as_u16(), line("content-type")), (200, "application/grpc"), "{name}");
        assert_eq!((line("grpc-status"), line("x-rondel-reason")), (status, reason), "{name}");
        assert!(!line("grpc-message").is_empty() && answer.body().is_end_stream(), "{name}: a head is all there is");
    }
}

#[tokio::test]
async fn rfc6750_2_a_token_comes_from_one_configured_place_and_reaches_the_application_only_if_wanted() {
    let (issuer, server) = issuer().await;
    let path = |text| ClaimPath::parse(text).unwrap();
    let token = TokenUse {
        cookie: Some("session".into()),
        query: Some("access_token".into()),
        strip: true,
        claims: BTreeMap::from([("x-user".into(), path("sub")), ("x-tenants".into(), path("org.tenants"))]),
        ..TokenUse::default()
    };
    let setup = Setup { issuers: vec![trusted(&server)], token, ..Setup::default() };
    let mut sidecar = Sidecar::start(application().await, setup).await;
    let change = json!({ "sub": "tina", "org": { "tenants": ["acme", "Müller"] } });
    let jwt = issuer.mint(&claims(&server, change));
    let evil = "x-user: evil\r\nX-TENANTS: evil\r\nx_user: evil\r\nx.tenants: evil\r\nconnection: x-user\r\ndpop: evil\r\n";
    for (place, lines) in [
        ("/a?b=1&c=2".to_owned(), format!("{evil}authorization: Bearer {jwt}\r\ncookie: theme=dark\r\n")),
        ("/a?b=1&c=2".to_owned(), format!("{evil}cookie: theme=dark; session={jwt}\r\n")),
        (format!("/a?b=1&access_token={jwt}&c=2"), format!("{evil}cookie: theme=dark\r\n")),
    ] {
        let answer = get(&sidecar, &place, &lines).await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains(&jwt) && !answer.contains("evil"), "{place}: {answer}");
        assert!(answer.contains("GET /a?b=1&c=2 HTTP/1.1\r\n") && answer.contains("cookie: theme=dark\r\n"), "{answer}");
        assert!(answer.contains("x-user: tina\r\n") && answer.contains("x-tenants: acme,M%C3%BCller\r\n"), "{answer}");
        assert!(!answer.contains("authorization"), "{answer}");
    }
    // Without a token nobody is told to be somebody, in a head or in trailers.
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\nx-user: evil\r\n\r\n0\r\nx-user: evil\r\nx_tenants: evil\r\nx-sum: 1\r\n\r\n";
    let answer = sidecar.exchange(chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("evil"), "{answer}");
    for (place, lines) in [
        ("/".to_owned(), format!("authorization: Bearer {jwt}\r\ncookie: session={jwt}\r\n")),
        (format!("/?access_token={jwt}"), format!("cookie: session={jwt}\r\n")),
        (format!("/?access_token={jwt}"), format!("authorization: Bearer {jwt}\r\n")),
        (format!("/?access_token={jwt}&access%5ftoken={jwt}"), String::new()),
        ("/".to_owned(), format!("cookie: session={jwt}\r\ncookie: session={jwt}\r\n")),
    ] {
        let answer = get(&sidecar, &place, &lines).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("x-rondel-reason: token_twice\r\n"), "{place}: {answer}");
        assert!(challenges(&answer)[0].contains("error=\"invalid_request\""), "{answer}");
    }
    assert!(!sidecar.log().contains(&jwt), "no token is logged, from wherever it came");

    // Passed on as it came.
    sidecar.snapshot.token.strip = false;
    sidecar.publish().await;
    let answer = get(&sidecar, &format!("/a?access_token={jwt}"), "").await;
    assert!(answer.contains(&format!("GET /a?access_token={jwt} ")) && answer.contains("x-user: tina\r\n"), "{answer}");
    // A place that is not configured is none.
    sidecar.snapshot.token = TokenUse { header: "x-token".into(), ..TokenUse::default() };
    sidecar.publish().await;
    let answer =
        get(&sidecar, &format!("/?access_token={jwt}"), &format!("cookie: session={jwt}\r\nauthorization: Basic x\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("x-rondel-user"), "{answer}");
    let answer = get(&sidecar, "/", &format!("x-token: {jwt}\r\n")).await;
    assert!(answer.contains("x-rondel-user: tina\r\n"), "{answer}");
}

pub(crate) async fn as_holder(sidecar: &Sidecar, presented: &Presented, request: &str) -> String {
    let client = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
    let mut stream: Tls = client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

#[tokio::test]
async fn rfc8705_3_a_certificate_bound_token_is_of_use_to_its_holder_alone() {
    let (issuer, server) = issuer().await;
    let require = Requirements { sender: SenderConstraint::Certificate, ..Requirements::default() };
    let sidecar =
        Sidecar::start(application().await, Setup { issuers: vec![demanding(&server, require)], ..Setup::default() }).await;
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let (own, others) = (sidecar.control.hostile.good(&id), sidecar.control.hostile.good(&id));
    let thumbprint = sha256_base64url(&own.chain[0]);
    let bound = issuer.mint(&claims(&server, json!({ "cnf": { "x5t#S256": thumbprint } })));
    let request =
        |token: &str| format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    for _remembered in 0..2 {
        assert!(as_holder(&sidecar, &own, &request(&bound)).await.starts_with("HTTP/1.1 200"));
        let stolen = as_holder(&sidecar, &others, &request(&bound)).await;
        assert!(stolen.starts_with("HTTP/1.1 401") && stolen.contains("x-rondel-reason: token_sender\r\n"), "{stolen}");
        assert!(challenges(&stolen)[0].contains("error=\"invalid_token\""), "{stolen}");
    }
    let unbound = as_holder(&sidecar, &own, &request(&issuer.mint(&claims(&server, json!({}))))).await;
    assert!(unbound.starts_with("HTTP/1.1 401") && unbound.contains("token_sender"), "{unbound}");
}

/// A proof of `key` for a request of `sidecar` with `token`.
pub(crate) fn proof(key: &Issuer, token: &str, jti: &str, nonce: Option<&str>, change: Value) -> String {
    let jwk = key.jwks()["keys"][0].clone();
    let mut payload = json!({
        "jti": jti, "htm": "GET", "htu": "https://shop.example/pay", "iat": pki::now().seconds(),
        "ath": sha256_base64url(token.as_bytes()),
    });
    if let Some(nonce) = nonce {
        payload["nonce"] = nonce.into();
    }
    for (name, value) in change.as_object().unwrap() {
        payload[name] = value.clone();
    }
    key.mint_with_header(&json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": jwk }), &payload)
}

/// RFC 7638 §3.2.
pub(crate) fn thumbprint(key: &Issuer) -> String {
    let jwk = &key.jwks()["keys"][0];
    let text = format!("{{\"crv\":{},\"kty\":{},\"x\":{},\"y\":{}}}", jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
    sha256_base64url(text.as_bytes())
}

#[tokio::test]
async fn rfc9449_7_a_dpop_token_is_of_use_with_a_fresh_proof_and_a_nonce_of_this_sidecar() {
    let (issuer, server) = issuer().await;
    let require = Requirements { sender: SenderConstraint::Dpop, dpop_nonce: true, ..Requirements::default() };
    let setup =
        Setup { issuers: vec![demanding(&server, require)], arguments: vec!["--workers".into(), "3".into()], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let key = Issuer::generate(JwtAlgorithm::Es256, "own");
    let bound = issuer.mint(&claims(&server, json!({ "cnf": { "jkt": thumbprint(&key) } })));
    let send = async |scheme: &str, proof: &str| {
        get(&sidecar, "/pay?x=1", &format!("authorization: {scheme} {bound}\r\ndpop: {proof}\r\n")).await
    };
    let none = get(&sidecar, "/pay", "authorization: Bearer x\r\n").await;
    assert!(challenges(&none)[0].starts_with("DPoP ") && challenges(&none)[0].contains("algs=\""), "{none}");

    let first = send("DPoP", &proof(&key, &bound, "1", None, json!({}))).await;
    assert!(first.starts_with("HTTP/1.1 401") && first.contains("x-rondel-reason: dpop_nonce\r\n"), "{first}");
    assert!(challenges(&first)[0].contains("error=\"use_dpop_nonce\""), "{first}");
    let nonce = first.lines().find_map(|line| line.strip_prefix("dpop-nonce: ")).unwrap().to_owned();
    let good = proof(&key, &bound, "1", Some(&nonce), json!({}));
    let answer = send("DPoP", &good).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-rondel-user: tina"), "{answer}");

    // Every connection goes to another worker, and one of them has seen it.
    for _worker in 0..6 {
        let replayed = send("DPoP", &good).await;
        assert!(replayed.starts_with("HTTP/1.1 401") && replayed.contains("x-rondel-reason: dpop_proof\r\n"), "{replayed}");
        assert!(challenges(&replayed)[0].contains("error=\"invalid_dpop_proof\""), "{replayed}");
    }
    let downgraded = send("Bearer", &proof(&key, &bound, "2", Some(&nonce), json!({}))).await;
    assert!(downgraded.starts_with("HTTP/1.1 401") && downgraded.contains("token_sender"), "{downgraded}");
    let thief = Issuer::generate(JwtAlgorithm::Es256, "own");
    for (name, proof) in [
        ("another key", proof(&thief, &bound, "3", Some(&nonce), json!({}))),
        ("another method", proof(&key, &bound, "4", Some(&nonce), json!({ "htm": "POST" }))),
        ("another path", proof(&key, &bound, "5", Some(&nonce), json!({ "htu": "https://shop.example/" }))),
        ("pre-dated", proof(&key, &bound, "6", Some(&nonce), json!({ "iat": pki::now().seconds() + 300 }))),
        ("old", proof(&key, &bound, "7", Some(&nonce), json!({ "iat": pki::now().seconds() - 300 }))),
        ("another token", proof(&key, "other", "8", Some(&nonce), json!({}))),
    ] {
        let answer = send("DPoP", &proof).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("dpop_proof"), "{name}: {answer}");
    }
}

/// An application that answers each connection's request when it is let.
async fn held_back() -> (SocketAddr, Arc<Notify>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, gate) = (Arc::clone(&came), Arc::clone(&go));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (told, gate) = (Arc::clone(&told), Arc::clone(&gate));
            tokio::spawn(async move {
                while let Ok(1..) = stream.read(&mut [0; 8192]).await {
                    told.notify_one();
                    gate.notified().await;
                    gate.notify_one();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (address, came, go)
}

#[tokio::test]
async fn a_token_judged_by_an_earlier_configuration_is_not_remembered_for_the_next() {
    let (issuer, server) = issuer().await;
    let (application, came, go) = held_back().await;
    let limits = &[(Limit::RequestsUnderWay, 1), (Limit::QueueMs, 30_000)];
    let mut sidecar = Sidecar::start(application, Setup { issuers: vec![trusted(&server)], limits, ..Setup::default() }).await;
    let token = issuer.mint(&claims(&server, json!({})));
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    let (mut first, mut second) = (sidecar.caller().await, sidecar.caller().await);
    first.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    timeout(DEADLINE, came.notified()).await.unwrap();
    // This one has taken its configuration, and waits for the first one's place.
    second.write_all(request.as_bytes()).await.unwrap();
    second.flush().await.unwrap();
    // One thread serves all: when a later caller is answered, what came before was begun. This one is refused before any place.
    assert!(sidecar.exchange(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    sidecar.snapshot.issuers[0].audiences = vec!["another".into()];
    sidecar.publish().await;
    go.notify_one();
    let earlier = read_all(&mut second).await;
    assert!(earlier.starts_with("HTTP/1.1 200"), "it is decided whole by the configuration that it took: {earlier}");
    let later = sidecar.exchange(request.as_bytes()).await;
    assert!(later.starts_with("HTTP/1.1 401") && later.contains("token_audience"), "{later}");
}

#[tokio::test]
async fn a_revoked_token_is_refused_though_it_is_remembered_and_others_go_on() {
    let (issuer, server) = issuer().await;
    let mut sidecar =
        Sidecar::start(application().await, Setup { policy: ALLOW_ALL, issuers: vec![trusted(&server)], ..Setup::default() })
            .await;
    let token = issuer.mint(&claims(&server, json!({ "jti": "j1" })));
    let other = issuer.mint(&claims(&server, json!({ "jti": "j2" })));
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"));
    let until = Timestamp::from_seconds(pki::now().seconds() + 3600);
    sidecar.snapshot.revoked_tokens = vec![RevokedTokens { jti: Some("j1".into()), until, ..RevokedTokens::default() }];
    // In force even if the rest of the configuration cannot be: another listens at this port.
    let taken = free();
    let _other = TcpListener::bind(taken).await.unwrap();
    let inbound = sidecar.snapshot.inbound.clone();
    sidecar.snapshot.inbound[0].listen = taken;
    sidecar.snapshot.revision = model::Revision(sidecar.snapshot.revision.0 + 1);
    sidecar.control.send(sidecar.control.whole(&sidecar.snapshot, "taken"));
    assert!(sidecar.control.answer().await.is_err());
    let refused = with_token(&sidecar, &token).await;
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("x-rondel-reason: token_revoked\r\n"), "{refused}");
    assert!(with_token(&sidecar, &other).await.starts_with("HTTP/1.1 200"));
    sidecar.snapshot.inbound = inbound;
    sidecar.snapshot.revoked_tokens = Vec::new();
    sidecar.publish().await;
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"), "taken back");
}

#[tokio::test]
async fn what_a_revoked_token_keeps_open_is_ended_and_others_go_on() {
    let (issuer, server) = issuer().await;
    let mut sidecar = Sidecar::start(trickling().await, Setup { issuers: vec![trusted(&server)], ..Setup::default() }).await;
    let mut open = Vec::new();
    for (jti, path, wanted) in
        [("j1", "/stream", "200"), ("j1", "/chat", "101"), ("j2", "/stream", "200"), ("j2", "/chat", "101")]
    {
        let token = issuer.mint(&claims(&server, json!({ "jti": jti })));
        let switch = if path == "/chat" { "upgrade: websocket\r\nconnection: upgrade\r\n" } else { "" };
        let mut stream = sidecar.caller().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n{switch}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 12];
        timeout(DEADLINE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(head, format!("HTTP/1.1 {wanted}").as_bytes(), "{path}");
        open.push((jti, path, stream));
    }
    let until = Timestamp::from_seconds(pki::now().seconds() + 3600);
    sidecar.snapshot.revoked_tokens = vec![RevokedTokens { jti: Some("j1".into()), until, ..RevokedTokens::default() }];
    sidecar.publish().await;
    for (jti, path, mut stream) in open {
        if jti == "j1" {
            let _rest = read_all(&mut stream).await;
        } else {
            let mut seen = 0;
            while seen < 64 {
                let count = timeout(DEADLINE, stream.read(&mut [0; 64])).await.expect("it goes on").unwrap();
                assert!(count > 0, "{path} of another token goes on");
                seen += count;
            }
        }
    }
    let log = sidecar.logged("token_revoked").await;
    assert_eq!(log["reason"], "token_revoked");
}

/// An application that answers without an end: a byte every few milliseconds, in chunks or after an upgrade.
pub(crate) async fn trickling() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = [0; 8192];
                let count = stream.read(&mut seen).await.unwrap();
                let is_upgrade = seen[..count].starts_with(b"GET /chat");
                let (head, bytes): (&[u8], &[u8]) = if is_upgrade {
                    (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"x")
                } else {
                    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n")
                };
                stream.write_all(head).await.unwrap();
                while stream.write_all(bytes).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
    });
    address
}
