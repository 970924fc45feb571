//! What a person is told of a token. That it is what `verify` does is held by every test of `verify`.

use super::*;
use crate::key_set::{KeySet, KeySets};
use model::Limits;
use model::authz::AttributeType;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::ClaimMapping;
use model::token::{Requirements, RevokedTokens};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::issuer::Issuer;

const SECONDS: u64 = 1_800_000_000;
const NOW: Timestamp = Timestamp::from_seconds(SECONDS);
const SHA: &str = "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0";

struct Site {
    issuer: Issuer,
    configured: TokenIssuer,
    has_keys: bool,
    told: BTreeMap<String, ClaimPath>,
    revoked: Option<Revocations>,
    certificate: Option<[u8; 32]>,
    sensitive: BTreeSet<String>,
}

impl Site {
    fn new() -> Self {
        let configured = TokenIssuer {
            name: "login".to_owned(),
            issuer: "https://login.example".to_owned(),
            audiences: vec!["bank".to_owned()],
            keys: KeySource::Discovery,
            introspection: None,
            algorithms: vec![JwtAlgorithm::EdDsa],
            roles_claim: ClaimPath::parse("realm_access.roles").ok(),
            attributes: BTreeMap::from([(
                "limit".to_owned(),
                ClaimMapping { claim: ClaimPath::parse("tenant.limit").expect("path"), kind: AttributeType::Long },
            )]),
            require: Requirements::default(),
        };
        Self {
            issuer: Issuer::generate(JwtAlgorithm::EdDsa, "k1"),
            configured,
            has_keys: true,
            told: BTreeMap::new(),
            revoked: None,
            certificate: None,
            sensitive: BTreeSet::new(),
        }
    }

    fn explain(&self, token: &str) -> Explained {
        let limits = Limits::default();
        let mut keys = KeySets::default();
        if self.has_keys {
            let document = self.issuer.jwks().to_string();
            let set = KeySet::parse(document.as_bytes(), &self.configured, NOW, &limits).expect("keys");
            keys = keys.with("login", Arc::new(set));
        }
        let issuers = std::slice::from_ref(&self.configured);
        let rules = Rules { issuers, keys: &keys, limits: &limits, told: &self.told };
        let known = Known { revoked: self.revoked.as_ref(), certificate: self.certificate, sensitive: &self.sensitive };
        explain(token, &rules, &known, NOW)
    }

    fn token(&self, changes: &Value) -> String {
        let mut claims = json!({
            "iss": "https://login.example", "sub": "tina", "aud": "bank", "exp": SECONDS + 300, "iat": SECONDS - 10,
            "scope": "pay", "realm_access": { "roles": ["teller"] }, "tenant": { "id": "acme", "limit": 1000 },
        });
        for (name, value) in changes.as_object().expect("object") {
            claims[name] = value.clone();
        }
        claims.as_object_mut().expect("object").retain(|_, value| !value.is_null());
        self.issuer.mint(&claims)
    }

    fn of(&self, changes: &Value) -> Explained {
        self.explain(&self.token(changes))
    }
}

fn step<'e>(explained: &'e Explained, what: &str) -> &'e Step {
    let found = explained.steps.iter().find(|step| step.what == what);
    found.unwrap_or_else(|| panic!("no step {what}: {:?}", explained.steps))
}

fn refused(explained: &Explained) -> Vec<&str> {
    let steps = explained.steps.iter().filter(|step| matches!(step.outcome, Outcome::Refused(_)));
    steps.map(|step| step.what.as_str()).collect()
}

#[test]
fn a_good_token_is_told_with_what_it_becomes_and_what_else_must_be_true() {
    let site = Site::new();
    let explained = site.of(&json!({}));
    assert!(matches!(explained.verdict, Verdict::Good(_)), "{explained:?}");
    assert!(refused(&explained).is_empty());
    let user = explained.user.as_ref().expect("a user");
    assert_eq!(
        (user.subject.as_str(), user.roles.as_slice(), user.scopes.as_slice()),
        ("tina", &["teller".to_owned()][..], &["pay".to_owned()][..])
    );
    assert_eq!(explained.provided, ["it is not revoked, which only a running mesh knows"]);
    for (what, found) in [
        ("form", "a JWT"),
        ("header", "alg EdDSA, typ at+jwt, kid k1"),
        ("iss", "https://login.example: `login`"),
        ("kid", "k1"),
        ("signature", "good by that key"),
        ("aud", "bank"),
        ("exp", "2027-01-15T08:05:00.000Z, in 5 min"),
        ("iat", "2027-01-15T07:59:50.000Z, 10 s ago"),
        ("nbf", "(absent)"),
        ("cnf", "not bound"),
        ("roles", "[teller]"),
        ("attribute limit", "1000"),
        ("sender", "a bearer token"),
    ] {
        assert_eq!(step(&explained, what).found, found, "{what}");
    }
    assert_eq!(step(&explained, "exp").wanted, "after 2027-01-15T08:00:00.000Z, with 30 s of clock skew allowed");
    assert_eq!(step(&explained, "kid").wanted, "one of k1 (EdDSA)");
}

#[test]
fn it_goes_on_after_a_failure_and_the_first_is_the_verdict() {
    let mut site = Site::new();
    site.configured.require = Requirements {
        scopes: vec!["pay".to_owned(), "read".to_owned()],
        claims: BTreeMap::from([(ClaimPath::parse("tenant.id").expect("path"), vec!["umbrella".to_owned()])]),
        acr: vec!["gold".to_owned()],
        max_age: Some(Duration::from_secs(3600)),
        at_jwt: true,
        sender: SenderConstraint::Any,
        ..Requirements::default()
    };
    let explained = site
        .of(&json!({ "aud": "other", "exp": SECONDS - 11_520, "nbf": SECONDS + 100, "auth_time": SECONDS - 7200, "sub": "" }));
    let expected = ["profile", "aud", "exp", "nbf", "sub", "claim tenant.id", "scope", "acr", "auth_time", "sender"];
    assert_eq!(refused(&explained), expected);
    assert!(
        matches!(&explained.verdict, Verdict::Refused(Refusal::ClaimMissing { claim }) if claim == "client_id"),
        "{explained:?}"
    );
    assert_eq!(step(&explained, "exp").found, "2027-01-15T04:48:00.000Z, 3 h 12 min ago");
    assert_eq!(step(&explained, "auth_time").wanted, "a login at most 1 h ago, with 30 s of clock skew allowed");
    assert!(explained.user.is_none(), "no subject, no user");
    let mut forged = site.token(&json!({ "aud": "other" })).into_bytes();
    let at = forged.len() - 3;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let explained = site.explain(std::str::from_utf8(&forged).expect("text"));
    assert_eq!(refused(&explained).first(), Some(&"signature"));
    assert!(refused(&explained).contains(&"aud") && matches!(explained.verdict, Verdict::Refused(Refusal::Signature { .. })));
}

#[test]
fn without_keys_the_signature_is_unknown_and_everything_else_is_told() {
    let mut site = Site::new();
    site.has_keys = false;
    let good = site.of(&json!({}));
    assert!(matches!(good.verdict, Verdict::Unknown(_)), "{good:?}");
    assert_eq!(step(&good, "signature").outcome, Outcome::Unknown(NO_KEYS));
    assert!(good.user.is_some() && refused(&good).is_empty());
    let expired = site.of(&json!({ "exp": SECONDS - 100 }));
    assert!(matches!(expired.verdict, Verdict::Refused(Refusal::Expired { .. })), "whatever its signature is: {expired:?}");
    let none = site.explain("e30.e30.e30");
    assert!(matches!(none.verdict, Verdict::Refused(Refusal::Malformed { .. })));
}

#[test]
fn an_opaque_token_is_told_to_be_asked_about_and_by_whom() {
    let mut site = Site::new();
    site.configured.introspection = Some(Introspection {
        endpoint: None,
        prefix: String::new(),
        client_id: "rondel".to_owned(),
        authentication: ClientAuthentication::SecretBasic { secret_file: "/run/secrets/rondel".to_owned() },
    });
    let explained = site.explain("2YotnFZFEjr1zCsicMWpAA");
    assert!(matches!(explained.verdict, Verdict::Unknown(_)) && explained.issuer.as_deref() == Some("login"));
    let asked = &step(&explained, "introspection").found;
    assert_eq!(
        asked,
        "asked of `login` at the `introspection_endpoint` of the metadata of https://login.example, as client `rondel` by client_secret_basic"
    );
    let long = site.explain(&"a".repeat(100_000));
    assert!(matches!(long.verdict, Verdict::Refused(Refusal::TooLong { .. })), "{long:?}");
    assert!(matches!(site.of(&json!({})).verdict, Verdict::Good(_)), "a JWT beside");
    if let Some(asked) = &mut site.configured.introspection {
        asked.prefix = "ours_".to_owned();
    }
    let explained = site.explain("2YotnFZFEjr1zCsicMWpAA");
    assert!(matches!(explained.verdict, Verdict::Refused(Refusal::Malformed { .. })) && refused(&explained) == ["form"]);
}

#[test]
fn who_may_send_a_bound_token_is_told_and_a_certificate_at_hand_is_compared() {
    let mut site = Site::new();
    let bound = json!({ "cnf": { "x5t#S256": SHA } });
    let explained = site.of(&bound);
    assert!(matches!(explained.verdict, Verdict::Good(_)));
    let hex = "0380ed2f626650c840b2f263e6d2b29fae12ab39ae5db32b25ad27efad72e6fd";
    assert!(explained.provided.iter().any(|each| each.contains(hex) && each.contains("mutual TLS")), "{:?}", explained.provided);
    let own: [u8; 32] = URL_SAFE_NO_PAD.decode(SHA).expect("base64url").try_into().expect("32 bytes");
    site.certificate = Some(own);
    let explained = site.of(&bound);
    assert!(matches!(explained.verdict, Verdict::Good(_)) && explained.provided.len() == 1, "{explained:?}");
    site.certificate = Some([7; 32]);
    let explained = site.of(&bound);
    assert!(matches!(explained.verdict, Verdict::Refused(Refusal::NotHolder { .. })) && refused(&explained) == ["certificate"]);
    site.configured.require.dpop_nonce = true;
    let explained = site.of(&json!({ "cnf": { "jkt": SHA } }));
    assert!(matches!(explained.verdict, Verdict::Good(_)));
    let told = explained.provided.last().expect("told");
    assert!(told.contains(SHA) && told.contains("DPoP") && told.contains("nonce"), "{told}");
    site.configured.require.sender = SenderConstraint::Dpop;
    let explained = site.of(&json!({}));
    assert!(matches!(explained.verdict, Verdict::Refused(Refusal::NotHolder { .. })) && refused(&explained) == ["sender"]);
    let explained = site.of(&json!({ "cnf": { "kid": "k" } }));
    assert!(matches!(explained.verdict, Verdict::Refused(Refusal::SenderConstrained)) && refused(&explained) == ["cnf"]);
}

#[test]
fn a_revoked_token_is_refused_where_revocations_are_known() {
    let mut site = Site::new();
    let revoked =
        RevokedTokens { subject: Some("tina".to_owned()), until: NOW.plus(Duration::from_secs(60)), ..RevokedTokens::default() };
    site.revoked = Some(Revocations::of(&[revoked]));
    let explained = site.of(&json!({}));
    assert!(matches!(explained.verdict, Verdict::Refused(Refusal::Revoked { .. })) && refused(&explained) == ["revoked"]);
    let other = site.of(&json!({ "sub": "bob" }));
    assert!(matches!(other.verdict, Verdict::Good(_)) && other.provided.is_empty(), "{other:?}");
    let expired = site.of(&json!({ "exp": SECONDS - 100 }));
    assert_eq!(step(&expired, "revoked").outcome, Outcome::Unknown(NOT_GOOD));
}

#[test]
fn sensitive_claims_are_shown_nowhere_and_nothing_moves_the_cursor() {
    let mut site = Site::new();
    site.sensitive = BTreeSet::from(["limit".to_owned()]);
    let path = |text| ClaimPath::parse(text).expect(text);
    site.configured.require.claims =
        BTreeMap::from([(path("tenant.limit"), vec!["4711".to_owned()]), (path("tenant"), vec!["4711".to_owned()])]);
    site.told = BTreeMap::from([("x-limit".to_owned(), path("tenant.limit"))]);
    let explained = site.of(&json!({ "tenant": { "limit": 4711 }, "aud": "a\r\n\u{1b}[2J" }));
    for step in &explained.steps {
        assert!(!step.found.contains("4711") && !step.wanted.contains("4711"), "{step:?}");
        assert!(!step.found.chars().any(char::is_control), "{step:?}");
    }
    let long = site.of(&json!({ "aud": "x".repeat(4000) }));
    assert!(step(&long, "aud").found.len() < 100);
}

#[test]
fn durations_are_spoken_in_their_two_largest_units() {
    for (millis, told) in [
        (0, "0 s"),
        (400, "400 ms"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (61_000, "1 min 1 s"),
        (11_520_000, "3 h 12 min"),
        (7_200_000, "2 h"),
        (90_061_000, "1 d 1 h"),
    ] {
        assert_eq!(spoken(Duration::from_millis(millis)), told);
    }
}
