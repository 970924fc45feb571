//! Opaque tokens: whom they are sent to, what is remembered of the answers, and what becomes of them when the issuer is away.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application};
use crate::tokens::{POLICY, claims, issuer, trusted, with_token};
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::TokenIssuer;
use model::{Limit, Reason};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::issuer::{Behaviour, IssuerServer};
use testkit::pki;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

pub(crate) fn asking(server: &IssuerServer, authentication: ClientAuthentication) -> TokenIssuer {
    let introspection = Introspection { endpoint: None, prefix: String::new(), client_id: "rondel".into(), authentication };
    TokenIssuer { introspection: Some(introspection), ..trusted(server) }
}

/// A file in a directory of its own, kept for the test.
pub(crate) fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, text).unwrap();
    (dir, path.display().to_string())
}

pub(crate) fn active(server: &IssuerServer) -> Value {
    let mut answer = claims(server, json!({ "client_id": "web" }));
    answer["active"] = json!(true);
    answer
}

#[tokio::test]
async fn an_opaque_token_is_asked_about_once_and_remembered_within_its_bounds() {
    let (issuer, server) = issuer().await;
    let (_dir, secret_file) = file("s3cret\n");
    let issuers = vec![asking(&server, ClientAuthentication::SecretBasic { secret_file: secret_file.clone() })];
    let limits = &[(Limit::IntrospectionCacheMs, 3000), (Limit::IntrospectionInactiveMs, 3000)];
    let sidecar = Sidecar::start(application().await, Setup { policy: POLICY, issuers, limits, ..Setup::default() }).await;
    server.says("opaque-1", active(&server));
    // The keys are there: what they change later is not what is looked at here.
    assert!(
        with_token(&sidecar, &issuer.mint(&claims(&server, json!({})))).await.starts_with("HTTP/1.1 200"),
        "{}",
        sidecar.log()
    );

    // Twenty at once are one question.
    server.behave(Behaviour::Slow(Duration::from_millis(300)));
    let all = futures_util::future::join_all((0..20).map(|_| with_token(&sidecar, "opaque-1"))).await;
    for answer in &all {
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-rondel-user: tina"), "{answer}{}", sidecar.log());
    }
    assert_eq!(server.fetches().introspection, 1, "single flight");
    let asked = server.asked().unwrap();
    assert_eq!(asked.authorization.as_deref(), Some("Basic cm9uZGVsOnMzY3JldA=="), "`rondel:s3cret`");
    assert_eq!(asked.body, "token=opaque-1&token_type_hint=access_token");
    server.behave(Behaviour::Well);
    assert!(with_token(&sidecar, "opaque-1").await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.fetches().introspection, 1, "remembered");

    // A JWT is checked by its signature and never sent, good or bad.
    let jwt = issuer.mint(&claims(&server, json!({})));
    assert!(with_token(&sidecar, &jwt).await.starts_with("HTTP/1.1 200"));
    assert!(with_token(&sidecar, &format!("{jwt}x")).await.starts_with("HTTP/1.1 401"));
    assert_eq!(server.fetches().introspection, 1, "a JWT was sent away");

    // The issuer's no, for a while.
    for _ in 0..5 {
        let answer = with_token(&sidecar, "opaque-2").await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains(Reason::TokenInactive.as_str()), "{answer}");
        assert!(answer.contains("error=\"invalid_token\"") && !answer.contains("opaque-2"), "{answer}");
    }
    assert_eq!(server.fetches().introspection, 2, "what is not active is not asked about again");

    // Both are asked about again after their time, with whatever secret the file holds then.
    std::fs::write(&secret_file, "n3w").unwrap();
    server.says("opaque-1", json!({ "active": false }));
    server.says("opaque-2", active(&server));
    let deadline = Instant::now() + DEADLINE;
    while !with_token(&sidecar, "opaque-1").await.starts_with("HTTP/1.1 401") {
        assert!(Instant::now() < deadline, "a token that is not active any more is still good");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(server.asked().unwrap().authorization.as_deref(), Some("Basic cm9uZGVsOm4zdw=="), "`rondel:n3w`");
    while !with_token(&sidecar, "opaque-2").await.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "a token that is active now is still refused");
        sleep(Duration::from_millis(100)).await;
    }
    for token in ["opaque-1", "opaque-2", "s3cret"] {
        assert!(!sidecar.log().contains(token), "a token or secret is logged");
    }
}

#[tokio::test]
async fn what_the_issuer_says_of_an_opaque_token_is_judged_as_a_jwt_is() {
    let (_issuer, server) = issuer().await;
    let (_dir, secret_file) = file("s3cret");
    let issuers = vec![asking(&server, ClientAuthentication::SecretPost { secret_file })];
    let sidecar = Sidecar::start(application().await, Setup { policy: POLICY, issuers, ..Setup::default() }).await;
    let now = pki::now().seconds();
    for (number, (member, value, expected)) in [
        ("aud", json!("other"), Reason::TokenAudience),
        ("exp", json!(now - 60), Reason::TokenExpired),
        ("nbf", json!(now + 120), Reason::TokenNotYetValid),
        ("roles", json!(5), Reason::TokenClaim),
        ("iss", json!("https://evil.example"), Reason::IssuerUnavailable),
        ("active", json!("true"), Reason::IssuerUnavailable),
    ]
    .into_iter()
    .enumerate()
    {
        let token = format!("opaque-{number}");
        let mut answer = active(&server);
        answer[member] = value;
        server.says(&token, answer);
        let answer = with_token(&sidecar, &token).await;
        let status = if expected == Reason::IssuerUnavailable { "503" } else { "401" };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(expected.as_str()), "{member}: {answer}");
    }
    assert_eq!(server.asked().unwrap().body, "token=opaque-5&token_type_hint=access_token&client_id=rondel&client_secret=s3cret");
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_fails_its_opaque_tokens_only_and_holds_nobody_longer_than_its_limit() {
    let (_issuer, server) = issuer().await;
    let (other_issuer, other) = issuer_of_jwts().await;
    let (_dir, secret_file) = file("s3cret");
    let mut jwts = trusted(&other);
    jwts.name = "other".into();
    let issuers = vec![asking(&server, ClientAuthentication::SecretBasic { secret_file: secret_file.clone() }), jwts];
    let limits = &[(Limit::IntrospectionMs, 500), (Limit::IntrospectionsUnderWay, 4)];
    let sidecar = Sidecar::start(application().await, Setup { policy: POLICY, issuers, limits, ..Setup::default() }).await;
    server.says("warm", active(&server));
    assert!(with_token(&sidecar, "warm").await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    for (number, behaviour) in [
        Behaviour::Gone,
        Behaviour::Status(401),
        Behaviour::Status(500),
        Behaviour::Garbage,
        Behaviour::Oversized(1 << 20),
        Behaviour::Redirecting(other.url().to_owned()),
        Behaviour::Slow(Duration::from_secs(30)),
    ]
    .into_iter()
    .enumerate()
    {
        server.behave(behaviour.clone());
        let began = Instant::now();
        // More at once than may be under way: all are answered all the same.
        let tokens: Vec<String> = (0..8).map(|each| format!("opaque-{number}-{each}")).collect();
        for answer in futures_util::future::join_all(tokens.iter().map(|token| with_token(&sidecar, token))).await {
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("issuer_unavailable"), "{behaviour:?}: {answer}");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{behaviour:?} held requests up");
        let good = with_token(&sidecar, &other_issuer.mint(&claims(&other, json!({})))).await;
        assert!(good.starts_with("HTTP/1.1 200"), "{behaviour:?}: {good}");
        assert!(with_token(&sidecar, "warm").await.starts_with("HTTP/1.1 200"), "{behaviour:?}: what was good is good");
    }
    assert_eq!(other.fetches().introspection, 0, "a token went to an issuer that it is not for");
    let told: Value = serde_json::from_str(body(&sidecar.admin("/issuers").await)).unwrap();
    let asked = &told["issuers"][0]["introspection"];
    assert!(asked["failure"]["text"].as_str().unwrap().contains("`introspectionMs`"), "{told}");
    assert_eq!(asked["endpoint"], format!("{}/introspect", server.url()));

    server.behave(Behaviour::Well);
    server.says("later", active(&server));
    assert!(with_token(&sidecar, "later").await.starts_with("HTTP/1.1 200"), "{}", sidecar.log());
    std::fs::remove_file(&secret_file).unwrap();
    server.says("latest", active(&server));
    assert!(with_token(&sidecar, "latest").await.starts_with("HTTP/1.1 503"), "without the secret nobody is asked");
}

async fn issuer_of_jwts() -> (testkit::issuer::Issuer, IssuerServer) {
    issuer().await
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// What a server of introspection does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It keeps it.
    Keeps,
    /// It closes it without a word once it has answered.
    Closes,
    /// It takes the next question on it, and closes it without an answer.
    Swallows,
    /// It says that it closes it, and does.
    SaysClose,
}

/// How many connections came, and how many questions.
#[derive(Debug, Default)]
struct Counted {
    connections: AtomicU32,
    questions: AtomicU32,
    assertions: Mutex<Vec<String>>,
}

/// A server that says yes to every token, in its manner.
async fn introspecting(manner: Manner, answer: Value) -> (String, Arc<Counted>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/introspect", listener.local_addr().unwrap());
    let counted = Arc::new(Counted::default());
    let counts = Arc::clone(&counted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counts.connections.fetch_add(1, Ordering::AcqRel);
            tokio::spawn(answering(stream, manner, answer.to_string(), Arc::clone(&counts)));
        }
    });
    (url, counted)
}

async fn answering(mut stream: TcpStream, manner: Manner, answer: String, counts: Arc<Counted>) {
    for number in 0.. {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        let wanted = loop {
            let head = text.split_once("\r\n\r\n").map(|(head, body)| (head.to_ascii_lowercase(), body.len()));
            if let Some((head, got)) = head {
                let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
                if got >= length.unwrap_or(0) {
                    break text.clone();
                }
            }
            match stream.read(&mut bytes).await {
                Ok(count) if count > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
                _ => return,
            }
        };
        counts.questions.fetch_add(1, Ordering::AcqRel);
        if let Some((_, assertion)) = wanted.split_once("client_assertion=") {
            counts.assertions.lock().unwrap().push(assertion.to_owned());
        }
        if manner == Manner::Swallows && number > 0 {
            return;
        }
        let close = if manner == Manner::SaysClose { "connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{close}content-length: {}\r\n\r\n", answer.len());
        if stream.write_all((head + &answer).as_bytes()).await.is_err() || matches!(manner, Manner::Closes | Manner::SaysClose) {
            return;
        }
    }
}

#[tokio::test]
async fn a_connection_to_the_issuer_is_kept_and_one_that_it_closed_costs_nobody_an_answer() {
    let (_issuer, server) = issuer().await;
    for (manner, connections, questions) in
        [(Manner::Keeps, 1, 10), (Manner::Closes, 10, 10), (Manner::SaysClose, 10, 10), (Manner::Swallows, 10, 19)]
    {
        let (url, counted) = introspecting(manner, active(&server)).await;
        let dir = tempfile::tempdir().unwrap();
        let key_file = testkit::web::write(dir.path()).key.display().to_string();
        let mut asked = asking(&server, ClientAuthentication::PrivateKeyJwt { key_file, key_id: None });
        asked.introspection.as_mut().unwrap().endpoint = Some(url);
        let sidecar =
            Sidecar::start(application().await, Setup { policy: POLICY, issuers: vec![asked], ..Setup::default() }).await;
        for number in 0..10 {
            let answer = with_token(&sidecar, &format!("opaque-{number}")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{manner:?} {number}: {answer}{}", sidecar.log());
        }
        let (got_connections, got_questions) =
            (counted.connections.load(Ordering::Acquire), counted.questions.load(Ordering::Acquire));
        assert_eq!((got_connections, got_questions), (connections, questions), "{manner:?}");
        let mut assertions = counted.assertions.lock().unwrap().clone();
        let all = assertions.len();
        assertions.sort();
        assertions.dedup();
        assert_eq!((assertions.len(), all), (all, usize::try_from(questions).unwrap()), "{manner:?}: an assertion is good once");
    }
}
