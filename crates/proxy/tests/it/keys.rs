//! Where an issuer's keys come from, over real sockets and files, and what is told of them.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application};
use crate::tokens::{POLICY, claims, issuer, trusted, with_token};
use model::snapshot::{JwtAlgorithm, KeySource, TokenIssuer};
use model::{Limit, TrustDomain};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::issuer::{Behaviour, Issuer, IssuerServer};
use testkit::pki;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

async fn until(sidecar: &Sidecar, what: &str, token: &str, status: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = with_token(sidecar, token).await;
        if answer.starts_with(&format!("HTTP/1.1 {status}")) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {answer}\n{}", sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
}

async fn told(sidecar: &Sidecar) -> Value {
    let answer = sidecar.admin("/issuers").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn metadata_of_rfc_8414_lead_to_the_keys_and_those_of_another_issuer_do_not() {
    let (issuer, server) = issuer().await;
    server.behave(Behaviour::OnlyRfc8414);
    let setup = || Setup { policy: POLICY, issuers: vec![trusted(&server)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup()).await;
    let token = issuer.mint(&claims(&server, json!({})));
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    drop(sidecar);
    for behaviour in [
        Behaviour::OtherIssuer("https://evil.example".into()),
        Behaviour::OtherIssuer(format!("{}/", server.url())),
        Behaviour::Slow(Duration::from_secs(30)),
        Behaviour::Status(404),
    ] {
        server.behave(behaviour.clone());
        let setup = Setup { limits: &[(Limit::JwksFetchMs, 300)], ..setup() };
        let sidecar = Sidecar::start(application().await, setup).await;
        let answer = with_token(&sidecar, &token).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("issuer_unavailable"), "{behaviour:?}: {answer}");
        let told = told(&sidecar).await;
        assert!(told["issuers"][0]["failure"]["text"].is_string() && told["issuers"][0]["keys"] == json!([]), "{told}");
    }
}

#[tokio::test]
async fn keys_in_the_configuration_need_no_server_and_keys_in_a_file_are_read_again_when_it_changes() {
    let (inline, file) = (Issuer::generate(JwtAlgorithm::Ps256, "inline"), Issuer::generate(JwtAlgorithm::Es384, "file-1"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let write = |text: &str| {
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
    };
    write(&file.jwks().to_string());
    let of = |name: &str, keys: KeySource| TokenIssuer {
        name: name.into(),
        issuer: format!("https://{name}.example"),
        audiences: vec!["shop".into()],
        keys,
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: model::ClaimPath::parse("roles").ok(),
        attributes: Default::default(),
        require: Default::default(),
    };
    let issuers =
        vec![of("inline", KeySource::Inline(inline.jwks().to_string())), of("file", KeySource::File(path.display().to_string()))];
    let sidecar = Sidecar::start(application().await, Setup { policy: POLICY, issuers, ..Setup::default() }).await;
    let now = pki::now().seconds();
    let token = |issuer: &Issuer, name: &str| {
        issuer.mint(&json!({ "iss": format!("https://{name}.example"), "aud": "shop", "sub": "tina", "roles": ["teller"], "exp": now + 600 }))
    };
    assert!(with_token(&sidecar, &token(&inline, "inline")).await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    let first = token(&file, "file");
    assert!(with_token(&sidecar, &first).await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    assert!(with_token(&sidecar, &token(&file, "inline")).await.starts_with("HTTP/1.1 401"), "each by its own keys");

    // A new key beside the old one, then the new one alone.
    file.add_key(JwtAlgorithm::EdDsa, "file-2");
    write(&file.jwks().to_string());
    let second = token(&file, "file");
    until(&sidecar, "a key that came into the file", &second, "200").await;
    assert!(with_token(&sidecar, &first).await.starts_with("HTTP/1.1 200"));
    file.remove_key("file-1");
    write(&file.jwks().to_string());
    until(&sidecar, "a key that left the file", &first, "401").await;
    assert!(with_token(&sidecar, &second).await.starts_with("HTTP/1.1 200"));

    // A file that is broken or gone ends nothing that is known, and is told.
    write("{");
    let deadline = Instant::now() + DEADLINE;
    while told(&sidecar).await["issuers"][0]["failure"].is_null() {
        assert!(Instant::now() < deadline, "nothing is told of a broken file");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(with_token(&sidecar, &second).await.starts_with("HTTP/1.1 200"));
    let told = told(&sidecar).await;
    let (file, inline) = (&told["issuers"][0], &told["issuers"][1]);
    assert_eq!(file["keys"], json!([{ "id": "file-2", "algorithm": "EdDSA" }]));
    assert_eq!(inline["keys"], json!([{ "id": "inline", "algorithm": "PS256" }]));
    assert!(file["believed_until_ms"].is_u64() && inline["believed_until_ms"].is_null(), "{told}");
}

#[tokio::test]
async fn keys_that_cannot_be_refreshed_serve_until_their_hard_maximum_age_and_no_longer() {
    let (issuer, server) = issuer().await;
    let limits = &[(Limit::JwksMaxAgeMs, 10_000), (Limit::JwksRefreshMs, 1000), (Limit::JwksFetchMs, 300)];
    let setup = Setup { policy: POLICY, issuers: vec![trusted(&server)], limits, ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let token = issuer.mint(&claims(&server, json!({ "exp": pki::now().seconds() + 600 })));
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    let fetched = told(&sidecar).await["issuers"][0]["fetched_at_ms"].as_u64().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while told(&sidecar).await["issuers"][0]["fetched_at_ms"].as_u64().unwrap() == fetched {
        assert!(Instant::now() < deadline, "the keys are not refreshed");
        sleep(Duration::from_millis(100)).await;
    }
    server.behave(Behaviour::Gone);
    let gone = Instant::now();
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"), "stale keys serve while they are fetched");
    until(&sidecar, "keys beyond their age", &token, "503").await;
    assert!(gone.elapsed() > Duration::from_secs(7), "they were given up after {:?}", gone.elapsed());
    server.behave(Behaviour::Well);
    until(&sidecar, "the issuer is back", &token, "200").await;
}

#[tokio::test]
async fn an_svid_of_a_trust_domain_is_a_token_by_the_keys_of_its_bundle() {
    let partner = Issuer::generate(JwtAlgorithm::Es256, "authority-1");
    let (_login_issuer, login) = self::issuer().await;
    let mut sidecar = Sidecar::start(application().await, Setup { policy: POLICY, ..Setup::default() }).await;
    sidecar.snapshot.bundles[0].jwt_authorities = Vec::new();
    let domain = TrustDomain::parse("shop.example").unwrap();
    let authority = |issuer: &Issuer| {
        let mut jwk = issuer.jwks()["keys"][0].clone();
        jwk["use"] = json!("jwt-svid");
        jwk.to_string().into_bytes()
    };
    sidecar.snapshot.issuers = vec![
        TokenIssuer {
            keys: KeySource::JwtSvid(domain),
            name: "mesh".into(),
            issuer: "spiffe://shop.example".into(),
            ..trusted(&login)
        },
        trusted(&login),
    ];
    sidecar.publish().await;
    let now = pki::now().seconds();
    let svid = |issuer: &Issuer, sub: &str| {
        let header = json!({ "alg": "ES256", "kid": "authority-1", "typ": "JWT" });
        issuer.mint_with_header(&header, &json!({ "aud": ["shop"], "sub": sub, "roles": ["teller"], "exp": now + 600 }))
    };
    let good = svid(&partner, "spiffe://shop.example/ns/shop/sa/web");
    let answer = with_token(&sidecar, &good).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("issuer_unavailable"), "no key is no trust: {answer}");
    sidecar.snapshot.bundles[0].jwt_authorities = vec![authority(&partner)];
    sidecar.publish().await;
    let answer = with_token(&sidecar, &good).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}{}", sidecar.log());
    assert!(answer.contains("x-rondel-user: spiffe://shop.example/ns/shop/sa/web"), "{answer}");
    let foreign = svid(&partner, "spiffe://partner.example/web");
    assert!(with_token(&sidecar, &foreign).await.starts_with("HTTP/1.1 401"), "of another trust domain");
    // The authority is retired: its tokens end with it.
    sidecar.snapshot.bundles[0].jwt_authorities = vec![authority(&Issuer::generate(JwtAlgorithm::Es256, "authority-2"))];
    sidecar.publish().await;
    let answer = with_token(&sidecar, &good).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("token_key_unknown"), "{answer}");
}

/// A refresh that brings other keys ends what was verified by those that are gone, remembered or not.
#[tokio::test]
async fn a_refresh_ends_what_was_verified_by_keys_that_are_gone() {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "key-1");
    let server: IssuerServer = issuer.serve(TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let limits = &[(Limit::JwksRefreshMs, 1000)];
    let setup = Setup { policy: POLICY, issuers: vec![trusted(&server)], limits, ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let token = issuer.mint(&claims(&server, json!({})));
    assert!(with_token(&sidecar, &token).await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    issuer.rotate(JwtAlgorithm::Es256, "key-2");
    until(&sidecar, "a token by a key that is gone", &token, "401").await;
}

/// RFC 7517 §4.5: an issuer signs with a new key while the sidecar is in the middle of a fetch that brings the old ones.
#[tokio::test]
async fn a_key_rotated_in_the_middle_of_a_fetch_is_found_by_the_first_token_that_it_signed() {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "key-1");
    let server: IssuerServer = issuer.serve(TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let limits = &[(Limit::JwksRefreshMs, 1000)];
    let setup = Setup { policy: POLICY, issuers: vec![trusted(&server)], limits, ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    assert!(with_token(&sidecar, &issuer.mint(&claims(&server, json!({})))).await.starts_with("HTTP/1.1 200"));
    // What it answers is what it had when it was asked.
    server.behave(Behaviour::Slow(Duration::from_millis(500)));
    let asked = server.fetches().jwks;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while server.fetches().jwks == asked {
        assert!(tokio::time::Instant::now() < deadline, "no refresh: {}", sidecar.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    issuer.rotate(JwtAlgorithm::Es256, "key-2");
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "key-2" });
    let answer = with_token(&sidecar, &issuer.mint_with_header(&header, &claims(&server, json!({})))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{}", sidecar.log());
    // Two fetches that tokens asked for are thirty seconds apart.
    let known = server.fetches().jwks;
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "invented" });
    for number in 0..5 {
        let token = issuer.mint_with_header(&header, &claims(&server, json!({ "sub": format!("user-{number}") })));
        assert!(with_token(&sidecar, &token).await.contains("token_key_unknown"));
    }
    assert!(server.fetches().jwks - known <= 3, "invented keys made it ask {} times", server.fetches().jwks - known);
}
