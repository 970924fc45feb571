//! Tokens of every kind against a sidecar that fetches its issuer's real keys.

use crate::reasons::{peer, playing};
use crate::sidecar::{Setup, Sidecar, application, free};
use model::snapshot::{Endpoint, JwtAlgorithm, KeySource, TokenIssuer};
use model::token::Requirements;
use model::{ClaimPath, Limit, Revision, SpiffeId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use testkit::issuer::{Behaviour, Hostile, Issuer, IssuerServer};
use testkit::pki;
use tokio::net::TcpListener;

pub(crate) const POLICY: &str =
    r#"@id("teller") permit (principal, action, resource) when { context has user && context.user in Role::"teller" };"#;

pub(crate) async fn issuer() -> (Issuer, IssuerServer) {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "key-1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = issuer.serve(listener).unwrap();
    (issuer, server)
}

pub(crate) fn trusted(server: &IssuerServer) -> TokenIssuer {
    TokenIssuer {
        name: "login".into(),
        issuer: server.url().to_owned(),
        audiences: vec!["shop".into()],
        keys: KeySource::Discovery,
        introspection: None,
        algorithms: vec![JwtAlgorithm::Es256],
        roles_claim: ClaimPath::parse("roles").ok(),
        attributes: BTreeMap::new(),
        require: Requirements::default(),
    }
}

pub(crate) fn claims(server: &IssuerServer, change: Value) -> Value {
    let now = pki::now().seconds();
    let mut claims =
        json!({ "iss": server.url(), "aud": "shop", "sub": "tina", "roles": ["teller"], "iat": now, "exp": now + 60 });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub(crate) async fn with_token(sidecar: &Sidecar, token: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    sidecar.exchange(request.as_bytes()).await
}

#[tokio::test]
async fn good_tokens_pass_and_every_bad_one_gets_401_with_a_challenge() {
    let (issuer, server) = issuer().await;
    let sidecar =
        Sidecar::start(application().await, Setup { policy: POLICY, issuers: vec![trusted(&server)], ..Setup::default() }).await;
    let good = with_token(&sidecar, &issuer.mint(&claims(&server, json!({})))).await;
    assert!(good.starts_with("HTTP/1.1 200") && good.contains("x-rondel-user: tina"), "{good}");

    let none = sidecar.exchange(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(none.starts_with("HTTP/1.1 401") && none.contains("www-authenticate: Bearer realm=\"shop.example\"\r\n"), "{none}");
    assert!(none.contains("x-rondel-reason: token_missing"), "{none}");

    let now = pki::now().seconds();
    let stranger = Issuer::generate(JwtAlgorithm::Es256, "key-1");
    let unknown = Issuer::generate(JwtAlgorithm::Es256, "key-9");
    for (name, token, reason) in [
        ("expired", issuer.mint(&claims(&server, json!({ "exp": now - 60 }))), "token_expired"),
        ("not yet", issuer.mint(&claims(&server, json!({ "nbf": now + 120 }))), "token_not_yet_valid"),
        ("audience", issuer.mint(&claims(&server, json!({ "aud": "other" }))), "token_audience"),
        ("issuer", issuer.mint(&claims(&server, json!({ "iss": "https://evil.example" }))), "token_issuer_unknown"),
        ("forged", stranger.mint(&claims(&server, json!({}))), "token_signature"),
        ("claim", issuer.mint(&claims(&server, json!({ "roles": 5 }))), "token_claim"),
        ("key", unknown.mint(&claims(&server, json!({}))), "token_key_unknown"),
        ("not a token", "neither.header-nor.claims".to_owned(), "token_malformed"),
        ("none", issuer.mint_hostile(Hostile::AlgNone, &claims(&server, json!({}))), "token_algorithm"),
    ] {
        let answer = with_token(&sidecar, &token).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{name}: {answer}");
        assert!(answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{name}: {answer}");
        assert!(answer.contains("error=\"invalid_token\""), "{name}: {answer}");
        assert!(!answer.contains(&token) && !sidecar.log().contains(&token), "{name}: a token is never told");
    }
    let auditor = with_token(&sidecar, &issuer.mint(&claims(&server, json!({ "roles": ["auditor"] })))).await;
    assert!(auditor.starts_with("HTTP/1.1 403"), "{auditor}");
    let two = sidecar
        .exchange(b"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\nconnection: close\r\n\r\n")
        .await;
    assert!(two.starts_with("HTTP/1.1 400") && two.contains("token_twice"), "{two}");
}

#[tokio::test]
async fn every_hostile_token_is_refused() {
    let (issuer, server) = issuer().await;
    let sidecar =
        Sidecar::start(application().await, Setup { policy: POLICY, issuers: vec![trusted(&server)], ..Setup::default() }).await;
    // White space around a header's value is not part of it (RFC 9110 §5.5): that trick never reaches the token's reader.
    for hostile in Hostile::ALL.into_iter().filter(|hostile| *hostile != Hostile::TrailingSpace) {
        let token = issuer.mint_hostile(hostile, &claims(&server, json!({})));
        // A trick that cannot even stand in a header is refused by the grammar of the head.
        let answer = with_token(&sidecar, &token).await;
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("200 OK"), "{hostile:?}: {answer}");
    }
}

#[tokio::test]
async fn a_new_key_is_fetched_once_when_it_is_met_and_old_ones_outlive_an_outage() {
    let (issuer, server) = issuer().await;
    let sidecar = Sidecar::start(
        application().await,
        Setup {
            policy: POLICY,
            issuers: vec![trusted(&server)],
            limits: &[(Limit::JwksRefetchFloorMs, 1000)],
            ..Setup::default()
        },
    )
    .await;
    let old = issuer.mint(&claims(&server, json!({})));
    assert!(with_token(&sidecar, &old).await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    issuer.add_key(JwtAlgorithm::Es256, "key-2");
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "key-2" });
    let answer = with_token(&sidecar, &issuer.mint_with_header(&header, &claims(&server, json!({})))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the key is fetched while the request waits: {answer}");

    server.behave(Behaviour::Gone);
    let fetched = server.fetches();
    for number in 0..20 {
        let unknown = issuer.mint_with_header(
            &json!({ "alg": "ES256", "typ": "JWT", "kid": format!("made-up-{number}") }),
            &claims(&server, json!({})),
        );
        assert!(with_token(&sidecar, &unknown).await.starts_with("HTTP/1.1 401"));
    }
    let asked = server.fetches().discovery - fetched.discovery;
    assert!(asked <= 4, "20 made-up key ids asked the issuer {asked} times");
    let again = issuer.mint(&claims(&server, json!({ "sub": "nina" })));
    assert!(with_token(&sidecar, &again).await.starts_with("HTTP/1.1 200"), "known keys outlive the outage");
}

#[tokio::test]
async fn an_issuer_without_keys_fails_its_own_tokens_only_and_blocks_nothing() {
    let (issuer, server) = issuer().await;
    let (_dead_issuer, dead) = self::issuer().await;
    for behaviour in
        [Behaviour::Gone, Behaviour::Garbage, Behaviour::Oversized(1 << 20), Behaviour::Redirecting(server.url().to_owned())]
    {
        dead.behave(behaviour.clone());
        let mut other = trusted(&dead);
        other.name = "dead".into();
        let setup = Setup { policy: POLICY, issuers: vec![trusted(&server), other], ..Setup::default() };
        let sidecar = Sidecar::start(application().await, setup).await;
        let answer = with_token(&sidecar, &issuer.mint(&claims(&server, json!({})))).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{behaviour:?}: {answer}{}", sidecar.log());
        let answer = with_token(&sidecar, &issuer.mint(&claims(&dead, json!({})))).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("issuer_unavailable"), "{behaviour:?}: {answer}");
    }
}

#[tokio::test]
async fn an_issuer_in_the_mesh_gives_its_keys_by_mutual_tls_and_from_its_own_identity_alone() {
    let (issuer, plaintext) = issuer().await;
    let token = issuer.mint(&claims(&plaintext, json!({})));
    let mut sidecar = Sidecar::start(application().await, Setup { policy: POLICY, ..Setup::default() }).await;
    let keys = issuer.jwks().to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
    let answer: &'static [u8] = Box::leak(answer.into_bytes().into_boxed_slice());
    let other = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/other").unwrap();
    let in_plaintext = plaintext.url().strip_prefix("http://").unwrap().parse().unwrap();
    for (name, address, expected) in [
        ("nobody there", free(), "503"),
        ("another workload", playing(&sidecar, &other, answer).await, "503"),
        ("the issuer's keys without its certificate", in_plaintext, "503"),
        ("the issuer", playing(&sidecar, &peer(), answer).await, "200"),
    ] {
        let keys =
            KeySource::Workload { uri: format!("http://{address}/jwks"), endpoint: Endpoint { address, identity: peer() } };
        sidecar.snapshot.revision = Revision(sidecar.snapshot.revision.0 + 1);
        sidecar.snapshot.issuers = vec![TokenIssuer { keys, ..trusted(&plaintext) }];
        sidecar.control.send(sidecar.control.whole(&sidecar.snapshot, name));
        assert_eq!(sidecar.control.answer().await, Ok(name.to_owned()));
        let got = with_token(&sidecar, &token).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {expected}")), "{name}: {got}\n{}", sidecar.log());
    }
}
