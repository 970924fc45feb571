//! Addresses, discovery, and the fetch schedule.

use super::*;
use model::snapshot::{JwtAlgorithm, KeySource};
use std::collections::BTreeMap;

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn issuer(url: &str) -> TokenIssuer {
    TokenIssuer {
        name: "login".to_owned(),
        issuer: url.to_owned(),
        audiences: vec!["bank".to_owned()],
        keys: KeySource::Discovery,
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: None,
        require: Default::default(),
        attributes: BTreeMap::new(),
    }
}

#[test]
fn metadata_stand_below_the_issuer_or_between_its_host_and_its_path() {
    for (url, below, between) in [
        (
            "https://login.example",
            "https://login.example/.well-known/openid-configuration",
            "https://login.example/.well-known/oauth-authorization-server",
        ),
        (
            "https://login.example/",
            "https://login.example/.well-known/openid-configuration",
            "https://login.example/.well-known/oauth-authorization-server",
        ),
        (
            "https://login.example/realms/bank",
            "https://login.example/realms/bank/.well-known/openid-configuration",
            "https://login.example/.well-known/oauth-authorization-server/realms/bank",
        ),
        (
            "http://127.0.0.1:8080/a/",
            "http://127.0.0.1:8080/a/.well-known/openid-configuration",
            "http://127.0.0.1:8080/.well-known/oauth-authorization-server/a",
        ),
    ] {
        assert_eq!(metadata_urls(&issuer(url)), [below, between]);
    }
}

#[test]
fn the_introspection_endpoint_is_the_one_for_the_client_and_as_sound_as_the_keys_address() {
    let of = |document: &str| Metadata::parse(document.as_bytes(), &issuer("https://login.example"), &Limits::default());
    let both = of(r#"{"issuer":"https://login.example","introspection_endpoint":"https://login.example/i",
            "mtls_endpoint_aliases":{"introspection_endpoint":"https://mtls.login.example/i"}}"#)
    .expect("sound");
    assert_eq!(both.introspection_endpoint(false), Ok("https://login.example/i"));
    assert_eq!(both.introspection_endpoint(true), Ok("https://mtls.login.example/i"), "RFC 8705 §5");
    let one = of(r#"{"issuer":"https://login.example","introspection_endpoint":"https://login.example/i"}"#).expect("sound");
    assert_eq!(one.introspection_endpoint(true), Ok("https://login.example/i"));
    let none = of(r#"{"issuer":"https://login.example"}"#).expect("sound");
    assert_eq!(none.introspection_endpoint(false), Err(KeySetError::AddressMissing { what: "introspection_endpoint" }));
    for uri in
        ["http://127.0.0.1/i", "https://169.254.169.254/i", "https://metadata.google.internal/i", "https://user@login.example/i"]
    {
        let document = format!(r#"{{"issuer":"https://login.example","introspection_endpoint":"{uri}"}}"#);
        assert!(matches!(of(&document), Err(KeySetError::Address { .. })), "{uri}");
    }
}

#[test]
fn a_discovery_document_is_believed_only_for_its_own_issuer_and_a_sound_address() {
    let of = |configured: &str, document: &str| {
        let metadata = Metadata::parse(document.as_bytes(), &issuer(configured), &Limits::default())?;
        metadata.jwks_uri().map(str::to_owned)
    };
    let good = r#"{"issuer":"https://login.example","jwks_uri":"https://keys.example/jwks"}"#;
    assert_eq!(of("https://login.example", good).as_deref(), Ok("https://keys.example/jwks"));
    let local = r#"{"issuer":"http://127.0.0.1:18100","jwks_uri":"http://127.0.0.1:18100/jwks"}"#;
    assert_eq!(of("http://127.0.0.1:18100", local).as_deref(), Ok("http://127.0.0.1:18100/jwks"));
    for (name, configured, document) in [
        ("trailing slash", "https://login.example/", good),
        ("other case", "https://LOGIN.example", good),
        (
            "other issuer",
            "https://login.example",
            r#"{"issuer":"https://attacker.example","jwks_uri":"https://keys.example/jwks"}"#,
        ),
        ("no issuer", "https://login.example", r#"{"jwks_uri":"https://keys.example/jwks"}"#),
        ("issuer is a list", "https://login.example", r#"{"issuer":["https://login.example"],"jwks_uri":"https://k.example"}"#),
    ] {
        assert!(matches!(of(configured, document), Err(KeySetError::IssuerMismatch { .. })), "{name}");
    }
    let twice = r#"{"issuer":"https://login.example","jwks_uri":"https://a.example","jwks_uri":"https://b.example"}"#;
    assert_eq!(of("https://login.example", twice), Err(KeySetError::NotJson { rule: "a key stands twice in an object" }));
    let none = r#"{"issuer":"https://login.example"}"#;
    assert_eq!(of("https://login.example", none), Err(KeySetError::AddressMissing { what: "jwks_uri" }));
    for uri in ["http://keys.example/jwks", "http://169.254.169.254/latest", "https://169.254.169.254/", "file:///etc/passwd", ""]
    {
        let document = format!(r#"{{"issuer":"https://login.example","jwks_uri":"{uri}"}}"#);
        assert!(matches!(of("https://login.example", &document), Err(KeySetError::Address { .. })), "{uri}");
    }
    let inward = r#"{"issuer":"https://login.example","jwks_uri":"http://127.0.0.1:15000/config"}"#;
    let error = of("https://login.example", inward).expect_err("a remote issuer points at this machine");
    assert!(error.to_string().contains("plaintext"), "{error}");
    let limits = Limits::default();
    let long = " ".repeat(limits.size(Limit::JwksBytes) + 1);
    assert!(matches!(of("https://login.example", &long), Err(KeySetError::TooLarge { .. })));
}

#[test]
fn an_address_is_fetched_from_only_if_it_is_https_or_this_machine() {
    for url in [
        "https://login.example/jwks",
        "https://login.example",
        "https://login.example:8443/a?b=c",
        "https://login.example?x",
        "https://10.0.0.7/jwks",
        "https://127.0.0.1/jwks",
        "https://[2001:db8::1]:443/jwks",
        "https://a_b.c-d.example/",
        "http://127.0.0.1:18100/jwks",
        "http://127.9.9.9/jwks",
        "http://[::1]:18100/jwks",
        "http://localhost:18100/jwks",
    ] {
        assert_eq!(fetchable(url), Ok(()), "{url}");
    }
    for url in [
        "",
        "https://",
        "https:///jwks",
        "ftp://login.example/",
        "HTTPS://login.example/",
        "//login.example/jwks",
        "http://login.example/jwks",
        "http://10.0.0.7/jwks",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://localhost.attacker.example/",
        "http://127.0.0.1.attacker.example/",
        "http://127.0.0.1@attacker.example/",
        "https://user:password@login.example/",
        "https://login.example/#fragment",
        "https://login.example\\@attacker.example/",
        "https://login.example/a b",
        "https://login.example/\n",
        "https://lögin.example/",
        "https://login%2eexample/",
        "https://login..example/",
        "https://login.example./",
        "https://login.example:0/",
        "https://login.example:65536/",
        "https://login.example:+1/",
        "https://login.example:/",
        "https://[::1/",
        "https://[::1]x/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://127.1/",
        "https://0x7f.0x1/",
        "https://0177.0.0.1/",
        "http://2130706433/",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fe80::1]/",
        "https://[fd00:ec2::254]/",
        "https://[fd00:ec2::23]/",
        "https://[fd20:ce::254]/",
        "https://[fd00:c1::a9fe:a9fe]/",
        "https://[64:ff9b::169.254.169.254]/",
        "https://[64:ff9b:1::a9fe:a9fe]/",
        "https://[2002:a9fe:a9fe::1]/",
        "https://[::169.254.169.254]/",
        "https://[64:ff9b::100.100.100.200]/",
        "https://192.0.0.192/",
        "https://0.1.2.3/",
        "https://168.63.129.16/",
        "https://100.100.100.200/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://metadata.google.internal/computeMetadata/v1/",
        "https://METADATA/",
    ] {
        assert!(matches!(fetchable(url), Err(KeySetError::Address { .. })), "{url}");
    }
    let error = fetchable("https://user@login.example/").expect_err("user name");
    assert_eq!(error.to_string(), "`https://user@login.example/` must not be fetched from: it has a user name");
}

fn seconds(count: u64) -> Timestamp {
    START.plus(Duration::from_secs(count))
}

#[test]
fn the_schedule_says_fetch_or_until_when() {
    // Refresh 300 s, floor 30 s, maximum age a day. All times in seconds after the start.
    let state = |fetched: Option<u64>, attempted: Option<u64>, failures, wanted: Option<u64>| FetchState {
        fetched_at: fetched.map(seconds),
        attempted_at: attempted.map(seconds),
        failures,
        wanted_at: wanted.map(seconds),
        demanded_at: None,
    };
    let demanded = |at, state: FetchState| FetchState { demanded_at: Some(seconds(at)), ..state };
    let wait = |at| FetchStep::WaitUntil(seconds(at));
    for (name, state, now, expected) in [
        ("never tried", state(None, None, 0, None), 0, FetchStep::Fetch),
        ("fresh", state(Some(0), Some(0), 0, None), 1, wait(300)),
        ("just before refresh", state(Some(0), Some(0), 0, None), 299, wait(300)),
        ("refresh", state(Some(0), Some(0), 0, None), 300, FetchStep::Fetch),
        ("first failed, 1 s", state(None, Some(0), 1, None), 0, wait(1)),
        ("first failed, over", state(None, Some(0), 1, None), 1, FetchStep::Fetch),
        ("second failed, 2 s", state(None, Some(0), 2, None), 1, wait(2)),
        ("seventh failed, capped", state(None, Some(0), 7, None), 1, wait(60)),
        ("hundredth failed, capped", state(None, Some(0), 100, None), 59, wait(60)),
        ("hundredth failed, over", state(None, Some(0), u32::MAX, None), 60, FetchStep::Fetch),
        ("first never ended", state(None, Some(0), 0, None), 0, wait(1)),
        ("refresh failed", state(Some(0), Some(300), 1, None), 300, wait(301)),
        ("refresh failed again", state(Some(0), Some(301), 3, None), 302, wait(305)),
        ("asked for the first time", state(Some(0), Some(0), 0, Some(1)), 1, FetchStep::Fetch),
        ("asked just after a refresh", demanded(40, state(Some(299), Some(299), 0, Some(299))), 299, FetchStep::Fetch),
        ("asked, floor over", demanded(0, state(Some(0), Some(0), 0, Some(40))), 40, FetchStep::Fetch),
        ("asked, floor not over", demanded(0, state(Some(0), Some(0), 0, Some(10))), 10, wait(30)),
        ("asked just before refresh", demanded(280, state(Some(0), Some(280), 0, Some(290))), 299, wait(300)),
        ("asked, and the last ask is ahead", demanded(500, state(Some(0), Some(0), 0, Some(10))), 10, FetchStep::Fetch),
        ("asked before the last attempt", state(Some(50), Some(50), 0, Some(49)), 90, wait(350)),
        ("asked, and the last fetch failed", demanded(100, state(Some(0), Some(100), 1, Some(101))), 102, wait(130)),
        ("asked, never fetched, failing", state(None, Some(0), 6, Some(5)), 5, wait(32)),
        ("the clock was set back", state(Some(5000), Some(5000), 0, None), 100, FetchStep::Fetch),
        ("the clock was set back during a fetch", state(Some(5000), Some(90), 0, None), 100, FetchStep::Fetch),
        ("the clock was set back, and fetches fail", state(Some(5000), Some(100), 2, None), 100, wait(102)),
    ] {
        assert_eq!(next(&state, &KeySource::Discovery, &Limits::default(), seconds(now)), expected, "{name}");
    }
}

#[test]
fn a_key_set_is_refreshed_well_before_it_is_too_old() {
    let mut limits = Limits::default();
    limits.set(Limit::JwksRefreshMs, 86_400_000).expect("in range");
    limits.set(Limit::JwksMaxAgeMs, 20_000).expect("in range");
    let state = FetchState { fetched_at: Some(START), attempted_at: Some(START), ..FetchState::default() };
    assert_eq!(next(&state, &KeySource::Discovery, &limits, START), FetchStep::WaitUntil(seconds(10)));
}

/// Lets a program run for `span` in steps of `step`, with a token by an unknown key at each; returns how often it fetched.
fn fetches_under_attack(mut state: FetchState, span: Duration, step: Duration, is_up: bool) -> u32 {
    let (mut now, mut fetches) = (START, 0);
    while now < START.plus(span) {
        state.wanted_at = Some(now);
        if next(&state, &KeySource::Discovery, &Limits::default(), now) == FetchStep::Fetch {
            fetches += 1;
            (state.attempted_at, state.demanded_at) = (Some(now), Some(now));
            state.wanted_at = None;
            if is_up {
                state.fetched_at = Some(now);
                state.failures = 0;
            } else {
                state.failures += 1;
            }
        }
        now = now.plus(step);
    }
    fetches
}

#[test]
fn a_thousand_invented_key_ids_in_a_second_cost_one_fetch() {
    let known = START.minus(Duration::from_secs(60));
    let state = FetchState { fetched_at: Some(known), attempted_at: Some(known), ..FetchState::default() };
    let (second, step) = (Duration::from_secs(1), Duration::from_millis(1));
    assert_eq!(fetches_under_attack(state.clone(), second, step, true), 1);
    assert_eq!(fetches_under_attack(state.clone(), second, step, false), 1);
    assert_eq!(fetches_under_attack(state, Duration::from_secs(600), Duration::from_millis(100), true), 20, "one in 30 s");
    // While nothing was ever fetched the back-off rules: at 0, 1, 3, 7, 15, 31, 63 s and then every minute.
    let never = FetchState::default();
    assert_eq!(fetches_under_attack(never, Duration::from_secs(600), Duration::from_millis(100), false), 15);
}
