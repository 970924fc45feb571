//! The whole order of checks, against tokens of an issuer that shares no code with the verifier.

use super::*;
use crate::cache::{Generation, TokenCache};
use crate::explain::{Known, Outcome, Step, Verdict, explain};
use crate::key_set::KeySet;
use crate::revocation::Revocations;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::authz::AttributeType;
use model::snapshot::{ClaimMapping, JwtAlgorithm, KeySource};
use model::token::Requirements;
use model::{AttributeValue, ClaimPath, Reason};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use testkit::issuer::{Hostile, Issuer};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const NOW_SECONDS: u64 = 1_800_000_000;
const URL: &str = "https://login.example";

mod demands;
mod holders;

/// What `verify` says, which must be what it is explained by: for every token of every test.
fn verify(token: &str, rules: &Rules<'_>, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
    let verified = super::verify(token, rules, now);
    let (sensitive, revoked) = (BTreeSet::new(), Revocations::default());
    let known = Known { revoked: Some(&revoked), certificate: None, sensitive: &sensitive };
    let explained = explain(token, rules, &known, now);
    let first = explained.steps.iter().find_map(|step| match &step.outcome {
        Outcome::Refused(refusal) => Some(refusal),
        Outcome::Holds | Outcome::Unknown(_) => None,
    });
    match (&verified, &explained.verdict) {
        (Ok(claims), Verdict::Good(good)) => {
            assert!(first.is_none() && good.user() == claims.user(), "{:?}", explained.steps);
            assert_eq!(explained.user.as_ref(), Some(&**claims.user()), "what the steps read is what is believed");
        }
        // Who may send it is looked at on each request.
        (Ok(_), Verdict::Refused(Refusal::NotHolder { .. })) => {}
        (Err(Refusal::IssuerUnavailable { issuer }), verdict) if rules.keys.get(issuer).is_none() => {
            assert!(!matches!(verdict, Verdict::Good(_)), "{verdict:?}");
        }
        (Err(refusal), Verdict::Refused(told)) => {
            assert_eq!(refusal, told, "{:?}", explained.steps);
            assert_eq!(first, Some(refusal), "the first step that fails is why: {:?}", explained.steps);
        }
        (verified, verdict) => panic!("{verified:?} is explained by {verdict:?}: {:?}", explained.steps),
    }
    let signature = token.rsplit('.').next().unwrap_or_default();
    let shows = |step: &Step| step.found.contains(signature) || step.wanted.contains(signature);
    assert!(signature.len() < 16 || !explained.steps.iter().any(shows), "the signature is shown: {:?}", explained.steps);
    verified
}

/// One configured issuer with its keys.
struct Site {
    issuer: Issuer,
    issuers: Vec<TokenIssuer>,
    keys: KeySets,
    limits: Limits,
}

impl Site {
    fn new(algorithm: JwtAlgorithm) -> Self {
        let issuer = Issuer::generate(algorithm, "k1");
        let issuers = vec![configured("login", URL)];
        let keys = keys_of(&KeySets::default(), &issuers[0], &issuer);
        Self { issuer, issuers, keys, limits: Limits::default() }
    }

    fn verify(&self, token: &str) -> Result<VerifiedClaims, Refusal> {
        self.verify_at(token, NOW)
    }

    fn verify_at(&self, token: &str, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
        verify(token, &rules(&self.issuers, &self.keys, &self.limits), now)
    }

    /// The outcome of a token with these claims changed; `null` takes one out.
    fn outcome(&self, changes: &Value) -> Result<VerifiedClaims, Refusal> {
        self.verify(&self.issuer.mint(&claims(changes)))
    }
}

/// Rules that tell the application of nothing.
fn rules<'a>(issuers: &'a [TokenIssuer], keys: &'a KeySets, limits: &'a Limits) -> Rules<'a> {
    static NOTHING: BTreeMap<String, ClaimPath> = BTreeMap::new();
    Rules { issuers, keys, limits, told: &NOTHING }
}

const fn of_config(config: u64) -> Generation {
    Generation { config, keys: 3 }
}

fn configured(name: &str, url: &str) -> TokenIssuer {
    let mapping = |claim: &str, kind| ClaimMapping { claim: ClaimPath::parse(claim).expect(claim), kind };
    TokenIssuer {
        name: name.to_owned(),
        issuer: url.to_owned(),
        audiences: vec!["bank".to_owned(), "bank-next".to_owned()],
        keys: KeySource::Discovery,
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: ClaimPath::parse("roles").ok(),
        require: Requirements::default(),
        attributes: BTreeMap::from([
            ("limit".to_owned(), mapping("limit", AttributeType::Long)),
            ("country".to_owned(), mapping("\"https://bank.example/country\"", AttributeType::String)),
            ("senior".to_owned(), mapping("senior", AttributeType::Boolean)),
            ("branches".to_owned(), mapping("branches", AttributeType::StringSet)),
        ]),
    }
}

fn keys_of(keys: &KeySets, configured: &TokenIssuer, issuer: &Issuer) -> KeySets {
    let document = issuer.jwks().to_string();
    let set = KeySet::parse(document.as_bytes(), configured, NOW, &Limits::default()).expect("key set");
    keys.with(&configured.name, Arc::new(set))
}

fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": URL,
        "sub": "alice",
        "aud": "bank",
        "exp": NOW_SECONDS + 300,
        "iat": NOW_SECONDS - 10,
        "jti": "7b1a",
    });
    let members = claims.as_object_mut().expect("object");
    for (name, value) in changes.as_object().expect("object") {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn login() -> String {
    "login".to_owned()
}

#[test]
fn a_good_token_of_each_algorithm_becomes_its_user() {
    for algorithm in JwtAlgorithm::ALL {
        let site = Site::new(algorithm);
        let token = site.issuer.mint(&claims(&json!({
            "roles": ["teller", "auditor", "teller"],
            "scope": "payments:write openid",
            "limit": 1000,
            "https://bank.example/country": "CH",
            "senior": true,
            "branches": ["zurich", "bern"],
            "unmapped": { "a": [1, 2] },
        })));
        let verified = site.verify(&token).expect("good");
        let expected = User {
            issuer: login(),
            subject: "alice".to_owned(),
            roles: vec!["auditor".to_owned(), "teller".to_owned()],
            scopes: vec!["openid".to_owned(), "payments:write".to_owned()],
            attributes: BTreeMap::from([
                ("limit".to_owned(), AttributeValue::Long(1000)),
                ("country".to_owned(), AttributeValue::String("CH".to_owned())),
                ("senior".to_owned(), AttributeValue::Boolean(true)),
                ("branches".to_owned(), AttributeValue::StringSet(vec!["bern".to_owned(), "zurich".to_owned()])),
            ]),
        };
        assert_eq!(**verified.user(), expected, "{algorithm:?}");
        assert_eq!(verified.issuer(), "login");
        assert_eq!(verified.expires_at(), NOW.plus(Duration::from_secs(300)));
        assert_eq!(verified.digest(), digest_of(&token));
    }
}

/// The exact refusal of every trick. Matched without `_`, so that a new trick must be given one.
fn expected_refusal(hostile: Hostile, algorithm: JwtAlgorithm) -> Refusal {
    let malformed = |rule| Refusal::Malformed { rule };
    match hostile {
        Hostile::AlgNone
        | Hostile::AlgNoneInOtherCase
        | Hostile::AlgNoneSigned
        | Hostile::HmacByPublicPem
        | Hostile::HmacByPublicDer
        | Hostile::HmacByPublicJwk
        | Hostile::HmacByNothing
        | Hostile::KidPath => Refusal::AlgorithmUnsupported,
        Hostile::AlgOfAnotherKey => {
            let said = if algorithm == JwtAlgorithm::Rs256 { JwtAlgorithm::Es256 } else { JwtAlgorithm::Rs256 };
            Refusal::KeyAlgorithm { issuer: login(), algorithm: said }
        }
        Hostile::KidUnknown | Hostile::KidPathSigned | Hostile::KidSql | Hostile::KidNewline => {
            Refusal::KeyUnknown { issuer: login() }
        }
        Hostile::KidList => malformed("its `kid` is not a text"),
        Hostile::Jku
        | Hostile::X5u
        | Hostile::EmbeddedJwk
        | Hostile::ForeignKey
        | Hostile::SignatureStripped
        | Hostile::PayloadSwapped
        | Hostile::SignatureOfZeros
        | Hostile::SignatureInDer
        | Hostile::SignatureWithTail => Refusal::Signature { issuer: login() },
        // What is left of the text may or may not be base64url; see the test.
        Hostile::Truncated => Refusal::Signature { issuer: login() },
        Hostile::SignaturePartStripped | Hostile::FiveParts => malformed("it has not three parts"),
        Hostile::Padded => malformed("its payload is not base64url"),
        Hostile::TrailingSpace => malformed("its signature is not base64url"),
        Hostile::ClaimTwice | Hostile::NestedClaimTwice => malformed("its payload has a claim twice"),
        Hostile::HeaderTwice => malformed("its header has a key twice"),
        Hostile::Crit => malformed("its header has `crit`"),
        Hostile::PayloadUnencoded => malformed("its header has `b64` other than true"),
        Hostile::OtherType => malformed("its `typ` is neither JWT nor at+jwt"),
        Hostile::HeaderNotObject => malformed("its header is not a JSON object"),
        Hostile::PayloadNotObject => malformed("its payload is not a JSON object"),
        Hostile::OtherIssuer => Refusal::IssuerUnknown { configured: 1 },
        Hostile::Bound => unreachable!("it verifies, and is nobody's who sends it as a bearer token"),
    }
}

#[test]
fn every_hostile_token_is_refused_with_its_exact_reason() {
    for algorithm in JwtAlgorithm::ALL {
        let site = Site::new(algorithm);
        for hostile in Hostile::ALL.into_iter().filter(|hostile| *hostile != Hostile::Bound) {
            let token = site.issuer.mint_hostile(hostile, &claims(&json!({})));
            let refusal = site.verify(&token).expect_err(&format!("{hostile:?} {algorithm:?}"));
            let is_cut_text =
                hostile == Hostile::Truncated && refusal == (Refusal::Malformed { rule: "its signature is not base64url" });
            assert!(is_cut_text || refusal == expected_refusal(hostile, algorithm), "{hostile:?} {algorithm:?}: {refusal}");
        }
    }
}

#[test]
fn no_single_changed_character_of_a_token_is_accepted() {
    for algorithm in [JwtAlgorithm::Es256, JwtAlgorithm::EdDsa, JwtAlgorithm::Rs256, JwtAlgorithm::Ps256] {
        let site = Site::new(algorithm);
        let token = site.issuer.mint(&claims(&json!({})));
        for at in 0..token.len() {
            for letter in ["A", "z", "-", "_", ".", "=", " ", "+"] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, letter);
                assert!(changed == token || site.verify(&changed).is_err(), "{algorithm:?}: {letter} at {at}");
            }
        }
    }
}

#[test]
fn a_text_that_is_no_token_is_refused() {
    let site = Site::new(JwtAlgorithm::Es256);
    let good = site.issuer.mint(&claims(&json!({})));
    for text in
        ["", ".", "..", "...", "a.b.c", "e30.e30.e30", "e30.e30.", "null", "😀.😀.😀", &format!("{good}."), &format!(".{good}")]
    {
        assert!(matches!(site.verify(text), Err(Refusal::Malformed { .. })), "{text}");
    }
}

#[test]
fn a_token_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
    let mut site = Site::new(JwtAlgorithm::EdDsa);
    let token = site.issuer.mint(&claims(&json!({ "x": "y".repeat(1000) })));
    site.limits.set(Limit::TokenBytes, u64::try_from(token.len()).expect("small")).expect("in range");
    assert!(site.verify(&token).is_ok());
    site.limits.set(Limit::TokenBytes, u64::try_from(token.len() - 1).expect("small")).expect("in range");
    let refusal = site.verify(&token).expect_err("too long");
    assert_eq!(refusal, Refusal::TooLong { bytes: token.len(), limit: token.len() - 1 });
    assert_eq!(refusal.reason(), Reason::TokenMalformed);
}

#[test]
fn times_hold_to_the_skew_and_not_a_millisecond_beyond() {
    let site = Site::new(JwtAlgorithm::Es256);
    let (exp, skew) = (NOW_SECONDS + 300, Duration::from_secs(30));
    let exp_at = Timestamp::from_seconds(exp);
    let ms = Duration::from_millis(1);
    let token = site.issuer.mint(&claims(&json!({ "exp": exp })));
    assert!(site.verify_at(&token, exp_at.plus(skew).minus(ms)).is_ok());
    let refusal = site.verify_at(&token, exp_at.plus(skew)).expect_err("expired");
    assert_eq!(refusal, Refusal::Expired { ago: skew });
    assert_eq!(refusal.reason(), Reason::TokenExpired);
    for claim in ["nbf", "iat"] {
        let from = Timestamp::from_seconds(NOW_SECONDS + 100);
        let token = site.issuer.mint(&claims(&json!({ claim: NOW_SECONDS + 100 })));
        assert!(site.verify_at(&token, from.minus(skew)).is_ok(), "{claim}");
        let refusal = site.verify_at(&token, from.minus(skew).minus(ms)).expect_err(claim);
        assert_eq!(refusal, Refusal::NotYetValid { claim, ahead: skew + ms });
        assert_eq!(refusal.reason(), Reason::TokenNotYetValid);
    }
}

#[test]
fn without_skew_the_times_hold_to_the_millisecond() {
    let mut site = Site::new(JwtAlgorithm::Es256);
    site.limits.set(Limit::ClockSkewMs, 0).expect("in range");
    let half = NOW.plus(Duration::from_millis(500));
    let token = site.issuer.mint(&claims(&json!({ "exp": 1_800_000_000.5_f64 })));
    assert!(site.verify_at(&token, half.minus(Duration::from_millis(1))).is_ok());
    assert_eq!(site.verify_at(&token, half).expect_err("expired"), Refusal::Expired { ago: Duration::ZERO });
    let token = site.issuer.mint(&claims(&json!({ "nbf": 1_800_000_000.5_f64, "iat": null })));
    assert!(site.verify_at(&token, half).is_ok());
    assert!(site.verify_at(&token, half.minus(Duration::from_millis(1))).is_err());
}

#[test]
fn a_time_far_away_overflows_nothing() {
    let site = Site::new(JwtAlgorithm::Es256);
    for exp in [json!(i64::MAX), json!(1e15)] {
        assert!(site.outcome(&json!({ "exp": exp })).is_ok(), "{exp}");
    }
    for (changes, claim) in [
        (json!({ "exp": -1 }), "exp"),
        (json!({ "exp": u64::MAX }), "exp"),
        (json!({ "exp": 1e300 }), "exp"),
        (json!({ "exp": "1900000000" }), "exp"),
        (json!({ "exp": true }), "exp"),
        (json!({ "exp": [1_900_000_000] }), "exp"),
        (json!({ "nbf": "0" }), "nbf"),
        (json!({ "iat": -0.5 }), "iat"),
    ] {
        let refusal = site.outcome(&changes).expect_err(claim);
        let expected = Refusal::ClaimType { claim: claim.to_owned(), expected: "a number of seconds since 1970" };
        assert_eq!(refusal, expected, "{changes}");
    }
    assert!(matches!(site.outcome(&json!({ "exp": 0 })), Err(Refusal::Expired { .. })));
    assert!(matches!(site.outcome(&json!({ "nbf": i64::MAX })), Err(Refusal::NotYetValid { .. })));
    let token = site.issuer.mint(&claims(&json!({})));
    assert!(site.verify_at(&token, Timestamp::default()).is_err(), "a clock at the epoch is behind every `iat`");
}

#[test]
fn a_null_is_not_the_same_as_absent() {
    let site = Site::new(JwtAlgorithm::Es256);
    for claim in ["iss", "sub", "aud", "exp", "nbf", "iat", "roles", "scope", "limit"] {
        let mut claims = claims(&json!({}));
        claims.as_object_mut().expect("object").insert(claim.to_owned(), Value::Null);
        let refusal = site.verify(&site.issuer.mint(&claims)).expect_err(claim);
        assert!(matches!(&refusal, Refusal::ClaimType { claim: named, .. } if named == claim), "{claim}: {refusal}");
    }
}

#[test]
fn a_missing_claim_is_named() {
    let site = Site::new(JwtAlgorithm::Es256);
    for claim in ["iss", "sub", "aud", "exp"] {
        let refusal = site.outcome(&json!({ claim: null })).expect_err(claim);
        assert_eq!(refusal, Refusal::ClaimMissing { claim: claim.to_owned() });
        assert_eq!(refusal.reason(), Reason::TokenClaim);
    }
    assert!(site.outcome(&json!({ "iat": null, "jti": null })).is_ok(), "these two are not needed");
}

#[test]
fn one_of_the_audiences_must_be_ours() {
    let site = Site::new(JwtAlgorithm::Es256);
    for audience in [json!("bank"), json!("bank-next"), json!(["bank"]), json!(["other", "bank"])] {
        assert!(site.outcome(&json!({ "aud": audience })).is_ok(), "{audience}");
    }
    for (audience, given) in [
        (json!("other"), 1),
        (json!(""), 1),
        (json!("Bank"), 1),
        (json!("bank "), 1),
        (json!("bank other"), 1),
        (json!([]), 0),
        (json!(["other", "ban", "bankx"]), 3),
    ] {
        let refusal = site.outcome(&json!({ "aud": audience })).expect_err("not ours");
        assert_eq!(refusal, Refusal::Audience { issuer: login(), given }, "{audience}");
        assert_eq!(refusal.reason(), Reason::TokenAudience);
    }
    for audience in [json!(1), json!({ "bank": 1 }), json!(["bank", 1]), json!([["bank"]])] {
        let refusal = site.outcome(&json!({ "aud": audience })).expect_err("no audience");
        assert!(matches!(refusal, Refusal::ClaimType { .. }), "{audience}: {refusal}");
    }
}

#[test]
fn a_subject_is_a_text_that_can_stand_in_a_header() {
    let site = Site::new(JwtAlgorithm::Es256);
    for subject in ["alice", "spiffe://bank.example/ns/bank/sa/web", "Zoë", "a b"] {
        assert_eq!(site.outcome(&json!({ "sub": subject })).expect(subject).user().subject, subject);
    }
    for subject in [
        json!(42),
        json!(["alice"]),
        json!(""),
        json!("a\nb"),
        json!("a\r\nx-rondel-user: admin"),
        json!("a\u{0}"),
        json!("\u{85}"),
    ] {
        let refusal = site.outcome(&json!({ "sub": subject })).expect_err("no subject");
        assert!(matches!(&refusal, Refusal::ClaimType { claim, .. } if claim == "sub"), "{subject}: {refusal}");
    }
}

#[test]
fn roles_and_scopes_come_as_a_list_or_as_words() {
    let site = Site::new(JwtAlgorithm::Es256);
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (roles, expected) in [
        (json!(["teller", "auditor"]), list(&["auditor", "teller"])),
        (json!("teller auditor"), list(&["auditor", "teller"])),
        (json!("  teller  "), list(&["teller"])),
        (json!(""), list(&[])),
        (json!([]), list(&[])),
        (json!(["team lead"]), list(&["team lead"])),
    ] {
        assert_eq!(site.outcome(&json!({ "roles": roles })).expect("roles").user().roles, expected, "{roles}");
    }
    for (changes, expected) in [
        (json!({ "scope": "a b" }), list(&["a", "b"])),
        (json!({ "scp": ["a", "b"] }), list(&["a", "b"])),
        (json!({ "scp": "a b" }), list(&["a", "b"])),
        (json!({ "scope": "a", "scp": ["b"] }), list(&["a"])),
        (json!({ "scope": "", "scp": ["b"] }), list(&[])),
        (json!({}), list(&[])),
    ] {
        assert_eq!(site.outcome(&changes).expect("scopes").user().scopes, expected, "{changes}");
    }
    for (claim, value) in [
        ("roles", json!(1)),
        ("roles", json!({ "teller": true })),
        ("roles", json!(["a", 1])),
        ("scope", json!(1)),
        ("scp", json!([1])),
    ] {
        let refusal = site.outcome(&json!({ claim: value })).expect_err(claim);
        assert!(matches!(&refusal, Refusal::ClaimType { claim: named, .. } if named == claim), "{claim}: {refusal}");
    }
    let mut unmapped = Site::new(JwtAlgorithm::Es256);
    unmapped.issuers[0].roles_claim = None;
    assert!(unmapped.outcome(&json!({ "roles": ["admin"] })).expect("good").user().roles.is_empty(), "no mapping, no roles");
}

#[test]
fn a_mapped_claim_of_another_type_refuses_the_token() {
    let site = Site::new(JwtAlgorithm::Es256);
    assert!(site.outcome(&json!({})).expect("all are optional").user().attributes.is_empty());
    for (claim, value, expected) in [
        ("limit", json!("1000"), "Long"),
        ("limit", json!(1000.0), "Long"),
        ("limit", json!(1000.5), "Long"),
        ("limit", json!(u64::MAX), "Long"),
        ("limit", json!(true), "Long"),
        ("limit", json!([1000]), "Long"),
        ("https://bank.example/country", json!(1), "String"),
        ("https://bank.example/country", json!(["CH"]), "String"),
        ("senior", json!("true"), "Boolean"),
        ("senior", json!(1), "Boolean"),
        ("branches", json!("zurich bern"), "StringSet"),
        ("branches", json!(["zurich", 1]), "StringSet"),
        ("branches", json!({}), "StringSet"),
    ] {
        let refusal = site.outcome(&json!({ claim: value })).expect_err(claim);
        let claim = if claim.contains('/') { format!("\"{claim}\"") } else { claim.to_owned() };
        assert_eq!(refusal, Refusal::ClaimType { claim, expected }, "{value}");
        assert_eq!(refusal.reason(), Reason::TokenClaim);
    }
    let extremes = site.outcome(&json!({ "limit": i64::MIN })).expect("in range");
    assert_eq!(extremes.user().attributes.get("limit"), Some(&AttributeValue::Long(i64::MIN)));
}

#[test]
fn unknown_issuers_and_loose_matches_are_refused() {
    let site = Site::new(JwtAlgorithm::Es256);
    for iss in ["https://login.example/", "https://LOGIN.example", "http://login.example", "login", "", " https://login.example"]
    {
        let refusal = site.outcome(&json!({ "iss": iss })).expect_err(iss);
        assert_eq!(refusal, Refusal::IssuerUnknown { configured: 1 }, "{iss}");
        assert_eq!(refusal.reason(), Reason::TokenIssuerUnknown);
    }
    let refusal =
        verify(&site.issuer.mint(&claims(&json!({}))), &rules(&[], &site.keys, &site.limits), NOW).expect_err("none configured");
    assert_eq!(refusal, Refusal::IssuerUnknown { configured: 0 });
}

#[test]
fn two_issuers_with_the_same_key_id_cannot_speak_for_each_other() {
    let mut site = Site::new(JwtAlgorithm::Es256);
    let other = Issuer::generate(JwtAlgorithm::Es256, "k1");
    site.issuers.push(configured("partner", "https://partner.example"));
    site.keys = keys_of(&site.keys, &site.issuers[1], &other);
    let (ours, theirs) = (claims(&json!({})), claims(&json!({ "iss": "https://partner.example" })));
    assert_eq!(site.verify(&site.issuer.mint(&ours)).expect("ours").issuer(), "login");
    assert_eq!(site.verify(&other.mint(&theirs)).expect("theirs").issuer(), "partner");
    let refusal = site.verify(&other.mint(&ours)).expect_err("their key, our name");
    assert_eq!(refusal, Refusal::Signature { issuer: login() });
    let refusal = site.verify(&site.issuer.mint(&theirs)).expect_err("our key, their name");
    assert_eq!(refusal, Refusal::Signature { issuer: "partner".to_owned() });
}

#[test]
fn an_algorithm_outside_the_issuers_list_is_refused_although_the_key_is_known() {
    let mut site = Site::new(JwtAlgorithm::EdDsa);
    site.issuers[0].algorithms = vec![JwtAlgorithm::Es256];
    let refusal = site.outcome(&json!({})).expect_err("not in the list");
    assert_eq!(refusal, Refusal::AlgorithmNotAllowed { issuer: login(), algorithm: JwtAlgorithm::EdDsa });
    assert_eq!(refusal.reason(), Reason::TokenAlgorithm);
}

#[test]
fn unknown_algorithms_are_refused_whatever_they_are_called() {
    let site = Site::new(JwtAlgorithm::Es256);
    for alg in ["none", "HS256", "HS384", "HS512", "es256", "ES256 ", "ES256K", "PS257", "RS1", "Ed448", ""] {
        let token = site.issuer.mint_with_header(&json!({ "alg": alg, "kid": "k1" }), &claims(&json!({})));
        assert_eq!(site.verify(&token).expect_err(alg), Refusal::AlgorithmUnsupported, "{alg}");
    }
    for alg in [Value::Null, json!(1), json!(["ES256"])] {
        let token = site.issuer.mint_with_header(&json!({ "alg": alg, "kid": "k1" }), &claims(&json!({})));
        assert_eq!(site.verify(&token).expect_err("no text"), Refusal::Malformed { rule: "its header has no `alg`" });
    }
}

#[test]
fn the_type_is_an_access_tokens_or_left_out() {
    let site = Site::new(JwtAlgorithm::Es256);
    let outcome = |typ: Value| {
        let mut header = site.issuer.header();
        header["typ"] = typ;
        site.verify(&site.issuer.mint_with_header(&header, &claims(&json!({}))))
    };
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt"] {
        assert!(outcome(json!(typ)).is_ok(), "{typ}");
    }
    for typ in [
        json!("dpop+jwt"),
        json!("logout+jwt"),
        json!("secevent+jwt"),
        json!("JOSE"),
        json!(""),
        json!("JWT "),
        json!(1),
        json!(["JWT"]),
        Value::Null,
    ] {
        assert!(matches!(outcome(typ.clone()), Err(Refusal::Malformed { .. })), "{typ}");
    }
    let untyped = site.issuer.mint_with_header(&json!({ "alg": "ES256", "kid": "k1" }), &claims(&json!({})));
    assert!(site.verify(&untyped).is_ok());
}

#[test]
fn addresses_and_keys_in_the_header_do_not_matter_if_the_signature_is_the_issuers() {
    let site = Site::new(JwtAlgorithm::Es256);
    let mut header = site.issuer.header();
    for (name, value) in [
        ("jku", json!("https://attacker.example")),
        ("jwk", json!({ "kty": "oct", "k": "AA" })),
        ("x5u", json!(1)),
        ("b64", json!(true)),
    ] {
        header[name] = value;
    }
    assert!(site.verify(&site.issuer.mint_with_header(&header, &claims(&json!({})))).is_ok());
}

#[test]
fn a_token_without_key_id_is_checked_only_if_one_key_fits() {
    let mut site = Site::new(JwtAlgorithm::Es256);
    let token = site.issuer.mint_with_header(&json!({ "alg": "ES256" }), &claims(&json!({})));
    assert!(site.verify(&token).is_ok());
    site.issuer.add_key(JwtAlgorithm::EdDsa, "k2");
    site.keys = keys_of(&site.keys, &site.issuers[0], &site.issuer);
    assert!(site.verify(&token).is_ok(), "the other key is for another algorithm");
    site.issuer.add_key(JwtAlgorithm::Es256, "k3");
    site.keys = keys_of(&site.keys, &site.issuers[0], &site.issuer);
    let refusal = site.verify(&token).expect_err("two fit");
    assert_eq!(refusal, Refusal::KeyAmbiguous { issuer: login(), fitting: 2 });
    assert_eq!(refusal.reason(), Reason::TokenKeyUnknown);
}

#[test]
fn unknown_keys_after_a_rotation_are_told_from_an_issuer_without_keys() {
    let mut site = Site::new(JwtAlgorithm::Es256);
    let old = site.issuer.mint(&claims(&json!({})));
    site.issuer.rotate(JwtAlgorithm::Es256, "k2");
    let new = site.issuer.mint(&claims(&json!({})));
    let refusal = site.verify(&new).expect_err("not fetched yet");
    assert_eq!(refusal, Refusal::KeyUnknown { issuer: login() });
    assert_eq!(refusal.reason(), Reason::TokenKeyUnknown);
    site.keys = keys_of(&site.keys, &site.issuers[0], &site.issuer);
    assert!(site.verify(&new).is_ok());
    assert!(site.verify(&old).is_err(), "the old key is gone");
    site.keys = KeySets::default();
    let refusal = site.verify(&new).expect_err("no keys");
    assert_eq!(refusal, Refusal::IssuerUnavailable { issuer: login() });
    assert_eq!(refusal.reason(), Reason::IssuerUnavailable);
}

#[test]
fn a_key_set_is_believed_to_its_maximum_age_and_not_a_millisecond_longer() {
    let site = Site::new(JwtAlgorithm::Es256);
    let token = site.issuer.mint(&claims(&json!({ "exp": NOW_SECONDS + 1_000_000 })));
    let end = NOW.plus(site.limits.duration(Limit::JwksMaxAgeMs));
    let verified = site.verify_at(&token, end).expect("still believed");
    let late = end.plus(Duration::from_millis(1));
    assert_eq!(site.verify_at(&token, late).expect_err("too old"), Refusal::IssuerUnavailable { issuer: login() });
    let cache = TokenCache::new(10);
    cache.remember(&verified, of_config(1));
    assert!(cache.find(&token, of_config(1), end.minus(Duration::from_millis(1))).is_some());
    assert!(cache.find(&token, of_config(1), late).is_none(), "nor is what it verified remembered for longer");
}

#[test]
fn a_remembered_token_ends_with_its_generation_and_its_expiry() {
    let site = Site::new(JwtAlgorithm::Es256);
    let token = site.issuer.mint(&claims(&json!({})));
    let other = site.issuer.mint(&claims(&json!({ "sub": "bob" })));
    let cache = TokenCache::new(100);
    assert!(cache.find(&token, of_config(7), NOW).is_none() && cache.is_empty());
    let verified = site.verify(&token).expect("good");
    cache.remember(&verified, of_config(7));
    let found = cache.find(&token, of_config(7), NOW).expect("remembered");
    assert!(Arc::ptr_eq(found.user(), verified.user()), "nothing is copied");
    assert!(cache.find(&other, of_config(7), NOW).is_none(), "another token");
    assert!(cache.find(&format!("{token} "), of_config(7), NOW).is_none(), "not the same text");
    assert!(
        cache.find(&token, of_config(8), NOW).is_none() && cache.find(&token, of_config(6), NOW).is_none(),
        "another generation"
    );
    assert!(cache.find(&token, Generation { config: 7, keys: 4 }, NOW).is_none(), "other keys");
    let end = verified.expires_at();
    assert!(cache.find(&token, of_config(7), end.minus(Duration::from_millis(1))).is_some());
    assert!(cache.find(&token, of_config(7), end).is_none(), "skew is not allowed for here");
}

#[test]
fn the_cache_never_holds_more_than_its_capacity() {
    let site = Site::new(JwtAlgorithm::EdDsa);
    let cache = TokenCache::new(50);
    for number in 0..200 {
        let token = site.issuer.mint(&claims(&json!({ "jti": number })));
        cache.remember(&site.verify(&token).expect("good"), of_config(1));
    }
    assert!((1..=50).contains(&cache.len()), "{}", cache.len());
    let nothing = TokenCache::new(0);
    let token = site.issuer.mint(&claims(&json!({})));
    nothing.remember(&site.verify(&token).expect("good"), of_config(1));
    assert_eq!(nothing.len(), 0);
}

#[test]
fn nothing_that_is_printed_holds_the_token_or_its_claims() {
    let site = Site::new(JwtAlgorithm::Es256);
    let secrets = ["s3cret-subject", "s3cret-audience", "s3cret-issuer", "s3cret-kid", "s3cret-role"];
    let good = site.issuer.mint(&claims(&json!({ "sub": secrets[0], "roles": [secrets[4]] })));
    let verified = site.verify(&good).expect("good");
    let cache = TokenCache::new(10);
    cache.remember(&verified, of_config(1));
    let mut printed = vec![format!("{verified:?}"), format!("{cache:?}"), format!("{:?}", site.keys)];
    let mut header = site.issuer.header();
    header["kid"] = json!(secrets[3]);
    for token in [
        site.issuer.mint(&claims(&json!({ "aud": secrets[1] }))),
        site.issuer.mint(&claims(&json!({ "iss": secrets[2] }))),
        site.issuer.mint_with_header(&header, &claims(&json!({}))),
        site.issuer.mint(&claims(&json!({ "roles": { secrets[4]: 1 } }))),
        format!("{good}x"),
    ] {
        let refusal = site.verify(&token).expect_err("refused");
        printed.push(format!("{refusal} {refusal:?}"));
    }
    let parts: Vec<&str> = good.split('.').collect();
    for text in &printed {
        assert!(secrets.iter().chain(&parts).all(|secret| !text.contains(secret)), "{text}");
    }
}

#[test]
fn rfc7515_tokens_pass_the_signature_and_stop_at_the_missing_audience() {
    let vectors: Value = serde_json::from_str(include_str!("../testdata/rfc.json")).expect("vectors");
    let issuer = configured("login", "joe");
    for vector in vectors["signatures"].as_array().expect("list") {
        let clause = vector["clause"].as_str().expect("clause");
        let document = json!({ "keys": [vector["jwk"]] }).to_string();
        let set = KeySet::parse(document.as_bytes(), &issuer, NOW, &Limits::default()).expect(clause);
        let keys = KeySets::default().with("login", Arc::new(set));
        let token = vector["token"].as_str().expect("token");
        let refusal = verify(token, &rules(std::slice::from_ref(&issuer), &keys, &Limits::default()), NOW).expect_err(clause);
        let expected = if vector["payload_is_claims"] == true {
            Refusal::ClaimMissing { claim: "aud".to_owned() }
        } else {
            Refusal::Malformed { rule: "its payload is not a JSON object" }
        };
        assert_eq!(refusal, expected, "{clause}");
    }
}

/// Another implementation of RFC 7519 as the judge: what it refuses, we refuse too.
#[test]
fn nothing_is_accepted_that_another_implementation_refuses() {
    for algorithm in JwtAlgorithm::ALL {
        let site = Site::new(algorithm);
        // The judge does not know P-521.
        let Ok(known) = algorithm.as_str().parse() else { continue };
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(site.issuer.jwks()["keys"][0].clone()).expect("jwk");
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).expect("key");
        let mut rules = jsonwebtoken::Validation::new(known);
        rules.validate_exp = false;
        rules.set_issuer(&[URL]);
        rules.set_audience(&["bank", "bank-next"]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let judge = |token: &str| jsonwebtoken::decode::<Value>(token, &key, &rules);
        let good = site.issuer.mint(&claims(&json!({})));
        assert!(judge(&good).is_ok() && site.verify(&good).is_ok(), "{algorithm:?}: both accept a good token");
        for hostile in Hostile::ALL {
            let token = site.issuer.mint_hostile(hostile, &claims(&json!({})));
            assert!(judge(&token).is_ok() || site.verify(&token).is_err(), "{hostile:?} {algorithm:?}");
        }
        for changes in [json!({ "aud": [] }), json!({ "aud": ["x", "bank"] }), json!({ "iss": ["x"] }), json!({ "sub": null })] {
            let token = site.issuer.mint(&claims(&changes));
            assert!(judge(&token).is_ok() || site.verify(&token).is_err(), "{changes} {algorithm:?}");
        }
    }
}

#[test]
fn the_hostile_der_signature_is_a_true_signature_in_the_wrong_form() {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "k1");
    let jwk = issuer.jwks()["keys"][0].clone();
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().expect("text")).expect("base64url");
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let token = issuer.mint_hostile(Hostile::SignatureInDer, &claims(&json!({})));
    let (signed, signature) = token.rsplit_once('.').expect("parts");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    assert!(UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(signed.as_bytes(), &signature).is_ok());
}

#[test]
fn spiffe_jwt_svid_2_3_and_3_a_jwt_svid_is_accepted_from_its_own_trust_domain_only_and_for_an_audience_of_ours() {
    let domain = model::TrustDomain::parse("partner.example").expect("domain");
    let partner = Issuer::generate(JwtAlgorithm::Es256, "authority-1");
    let mut configured = configured("partner", "spiffe://partner.example");
    configured.keys = KeySource::JwtSvid(domain);
    let mut authority = partner.jwks()["keys"][0].clone();
    authority["use"] = json!("jwt-svid");
    let authorities = [authority.to_string().into_bytes()];
    let set = KeySet::of_bundle(&authorities, &configured, NOW, &Limits::default()).expect("keys");
    let mut site = Site::new(JwtAlgorithm::Es256);
    site.keys = site.keys.with("partner", Arc::new(set));
    site.issuers.push(configured);
    let billing = json!({ "sub": "spiffe://partner.example/billing", "iss": null });
    for (typ, is_good) in [
        (json!("JWT"), true),
        (json!("JOSE"), true),
        (json!("jwt"), false),
        (json!("jose"), false),
        (Value::Null, false),
        (json!("at+jwt"), false),
        (json!("application/at+jwt"), false),
        (json!("dpop+jwt"), false),
        (json!("jose+json"), false),
        (json!(["JOSE"]), false),
    ] {
        let header = json!({ "alg": "ES256", "kid": "authority-1", "typ": typ });
        let outcome = site.verify(&partner.mint_with_header(&header, &claims(&billing)));
        assert_eq!(outcome.is_ok(), is_good, "SPIFFE JWT-SVID §2.3: {typ}: {outcome:?}");
        assert!(is_good || matches!(outcome, Err(Refusal::Malformed { .. })), "{typ}");
    }
    let untyped = partner.mint_with_header(&json!({ "alg": "ES256", "kid": "authority-1" }), &claims(&billing));
    assert!(site.verify(&untyped).is_ok(), "SPIFFE JWT-SVID §2.3: the type is optional");
    for more in ["jku", "jwk", "x5u", "x5c", "cty", "nonce"] {
        let mut header = json!({ "alg": "ES256", "kid": "authority-1" });
        header[more] = json!("x");
        let outcome = site.verify(&partner.mint_with_header(&header, &claims(&billing)));
        assert!(matches!(outcome, Err(Refusal::Malformed { .. })), "SPIFFE JWT-SVID §2: {more}: {outcome:?}");
    }
    let header = json!({ "alg": "ES256", "kid": "authority-1", "typ": "JWT" });
    let verify = |issuer: &Issuer, changes: &Value| site.verify(&issuer.mint_with_header(&header, &claims(changes)));
    let with = |name: &str, value: Value| {
        let mut changes = billing.clone();
        changes[name] = value;
        changes
    };
    let good = verify(&partner, &billing).expect("good");
    assert_eq!((good.issuer(), good.user().subject.as_str()), ("partner", "spiffe://partner.example/billing"));
    let spire =
        verify(&partner, &with("iss", json!("https://spire.partner.example"))).expect("an `iss` of nobody's does not matter");
    assert_eq!(spire.issuer(), "partner");
    for (name, issuer, changes, expected) in [
        ("another trust domain", &partner, with("sub", json!("spiffe://other.example/billing")), Reason::TokenClaim),
        ("a trust domain alone", &partner, with("sub", json!("spiffe://partner.example")), Reason::TokenClaim),
        ("no SPIFFE ID", &partner, with("sub", json!("billing")), Reason::TokenClaim),
        ("the login issuer's name", &partner, with("iss", json!(URL)), Reason::TokenKeyUnknown),
        (
            "our own name for it",
            &partner,
            json!({ "iss": "spiffe://partner.example", "sub": "alice" }),
            Reason::TokenIssuerUnknown,
        ),
        ("by another's key", &Issuer::generate(JwtAlgorithm::Es256, "authority-1"), billing.clone(), Reason::TokenSignature),
        ("another audience", &partner, with("aud", json!("other")), Reason::TokenAudience),
        ("no audience", &partner, with("aud", Value::Null), Reason::TokenClaim),
        ("no end", &partner, with("exp", Value::Null), Reason::TokenClaim),
    ] {
        assert_eq!(verify(issuer, &changes).expect_err(name).reason(), expected, "{name}");
    }
}

#[test]
fn spiffe_jwt_svid_2_1_every_algorithm_but_eddsa_is_one_of_a_jwt_svid() {
    for algorithm in JwtAlgorithm::ALL {
        let partner = Issuer::generate(algorithm, "authority-1");
        let mut configured = configured("partner", "spiffe://partner.example");
        configured.keys = KeySource::JwtSvid(model::TrustDomain::parse("partner.example").expect("domain"));
        let mut authority = partner.jwks()["keys"][0].clone();
        authority["use"] = json!("jwt-svid");
        let set = KeySet::of_bundle(&[authority.to_string().into_bytes()], &configured, NOW, &Limits::default()).expect("keys");
        let keys = KeySets::default().with("partner", Arc::new(set));
        let header = json!({ "alg": algorithm.as_str(), "kid": "authority-1" });
        let token = partner.mint_with_header(&header, &claims(&json!({ "sub": "spiffe://partner.example/billing" })));
        let outcome = verify(&token, &rules(std::slice::from_ref(&configured), &keys, &Limits::default()), NOW);
        let is_refused = matches!(outcome, Err(Refusal::AlgorithmNotAllowed { .. }));
        assert_eq!((outcome.is_ok(), is_refused), (algorithm != JwtAlgorithm::EdDsa, algorithm == JwtAlgorithm::EdDsa));
    }
}
