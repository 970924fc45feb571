//! Whom an opaque token is sent to, what is sent, and what the answer is worth.

use super::*;
use model::Reason;
use model::snapshot::{JwtAlgorithm, KeySource};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const SECONDS: u64 = 1_800_000_000;

fn issuer(name: &str, prefix: Option<&str>) -> TokenIssuer {
    TokenIssuer {
        name: name.to_owned(),
        issuer: format!("https://{name}.example"),
        audiences: vec!["bank".to_owned()],
        keys: KeySource::Discovery,
        introspection: prefix.map(|prefix| Introspection {
            endpoint: None,
            prefix: prefix.to_owned(),
            client_id: "a client:1".to_owned(),
            authentication: ClientAuthentication::SecretBasic { secret_file: "/secret".to_owned() },
        }),
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: model::ClaimPath::parse("roles").ok(),
        attributes: BTreeMap::new(),
        require: Default::default(),
    }
}

/// What the issuer `login` says of the token `opaque`.
fn told_by(answer: &[u8]) -> Result<Introspected, IntrospectionError> {
    let (keys, limits, told) = (crate::KeySets::default(), model::Limits::default(), BTreeMap::new());
    let rules = Rules { issuers: &[], keys: &keys, limits: &limits, told: &told };
    introspected(answer, "opaque", &issuer("login", Some("")), &rules, NOW)
}

#[test]
fn an_opaque_token_goes_to_the_one_issuer_that_it_is_for_and_a_jwt_to_none() {
    let asked = |token: &str, issuers: &[TokenIssuer]| {
        opaque(token, issuers).map(|found| found.map(|(issuer, _)| issuer.name.clone())).map_err(|refusal| refusal.reason())
    };
    let jwt_only = [issuer("login", None)];
    let one = [issuer("login", None), issuer("rest", Some(""))];
    let two = [issuer("ours", Some("ours_")), issuer("theirs", Some("t.")), issuer("login", None)];
    let three = [issuer("ours", Some("ours_")), issuer("rest", Some(""))];
    let malformed = Err(Reason::TokenMalformed);
    for (issuers, token, expected) in [
        (&jwt_only[..], "opaque", Ok(None)),
        (&one, "2YotnFZFEjr1zCsicMWpAA", Ok(Some("rest".to_owned()))),
        (&one, "a.b", Ok(Some("rest".to_owned()))),
        (&one, "a.b.c.d", Ok(Some("rest".to_owned()))),
        (&one, "a.b.c", Ok(None)),
        (&one, "a.b.c.d.e", Ok(None)),
        (&one, "eyJhbGciOiJub25lIn0", Ok(None)),
        (&one, "eyJhbGciOiJub25lIn0.e30.", Ok(None)),
        (&two, "ours_1", Ok(Some("ours".to_owned()))),
        (&two, "t.a.b", Ok(Some("theirs".to_owned()))),
        (&two, "2YotnFZFEjr1zCsicMWpAA", malformed.clone()),
        (&two, "Ours_1", malformed.clone()),
        (&two, "eyJhbGciOiJub25lIn0.e30.", Ok(None)),
        (&three, "ours_1", Ok(Some("ours".to_owned()))),
        (&three, "our_1", Ok(Some("rest".to_owned()))),
    ] {
        assert_eq!(asked(token, issuers), expected, "{token}");
    }
}

#[test]
fn what_is_sent_is_a_form_with_the_client_shown_as_configured() {
    let sent = |authentication: ClientAuthentication, credential: &[u8]| {
        let mut issuer = issuer("login", Some(""));
        let asked = issuer.introspection.as_mut().expect("asked");
        asked.authentication = authentication;
        let asked = asked.clone();
        ask("a+b/c==", &issuer, &asked, credential, NOW)
            .map(|ask| (ask.body.to_string(), ask.authorization.map(|text| text.to_string())))
    };
    let (basic, post) = (
        || ClientAuthentication::SecretBasic { secret_file: "/s".to_owned() },
        || ClientAuthentication::SecretPost { secret_file: "/s".to_owned() },
    );
    let form = "token=a%2Bb%2Fc%3D%3D&token_type_hint=access_token";
    // RFC 6749 §2.3.1: `a client:1` and `p&ss w%rd`, form-encoded, then base64.
    let expected = format!("Basic {}", STANDARD.encode("a%20client%3A1:p%26ss%20w%25rd"));
    for file in [b"p&ss w%rd".as_slice(), b"p&ss w%rd\n", b"p&ss w%rd\r\n"] {
        assert_eq!(sent(basic(), file), Ok((form.to_owned(), Some(expected.clone()))));
    }
    let body = format!("{form}&client_id=a%20client%3A1&client_secret=s");
    assert_eq!(sent(post(), b"s\n"), Ok((body, None)));
    assert_eq!(sent(ClientAuthentication::Svid, b""), Ok((format!("{form}&client_id=a%20client%3A1"), None)));
    for file in [b"".as_slice(), b"\n", b"a\nb", b"\xff"] {
        assert_eq!(sent(basic(), file), Err(IntrospectionError::Secret), "{file:?}");
        assert_eq!(sent(post(), file), Err(IntrospectionError::Secret), "{file:?}");
    }
    let key = |id: Option<&str>| ClientAuthentication::PrivateKeyJwt { key_file: "/k".to_owned(), key_id: id.map(str::to_owned) };
    for file in
        [b"".as_slice(), b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"-----BEGIN EC PRIVATE KEY-----"]
    {
        assert_eq!(sent(key(None), file), Err(IntrospectionError::Key));
    }
}

/// RFC 7523 §3: the issuer checks the assertion by the client's public key. Here another implementation is the issuer.
#[test]
fn an_assertion_is_the_clients_own_for_this_issuer_and_one_minute() {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
    let pem = |der: &[u8]| format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("key");
    let ed = Ed25519KeyPair::generate().expect("key");
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("key");
    let ec_public = jsonwebtoken::DecodingKey::from_ec_der(ec.public_key().as_ref());
    let ed_public = jsonwebtoken::DecodingKey::from_ed_der(ed.public_key().as_ref());
    let rsa_public = jsonwebtoken::DecodingKey::from_rsa_der(rsa.public_key().as_ref());
    let ec_pem = pem(ec.to_pkcs8v1().expect("document").as_ref());
    let ed_pem = pem(ed.to_pkcs8().expect("document").as_ref());
    let rsa_pem = pem(AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&rsa).expect("document").as_ref());
    for (pem, public, algorithm) in [(ec_pem, ec_public, "ES256"), (ed_pem, ed_public, "EdDSA"), (rsa_pem, rsa_public, "RS256")] {
        let mut issuer = issuer("login", Some(""));
        let asked = issuer.introspection.as_mut().expect("asked");
        asked.client_id = "rondel".to_owned();
        asked.authentication = ClientAuthentication::PrivateKeyJwt { key_file: "/k".to_owned(), key_id: Some("k1".to_owned()) };
        let asked = asked.clone();
        let sent = ask("opaque", &issuer, &asked, pem.as_bytes(), NOW).expect(algorithm);
        assert!(sent.authorization.is_none() && sent.body.contains("&client_id=rondel&client_assertion_type="), "{}", *sent.body);
        let (_, assertion) = sent.body.split_once("&client_assertion=").expect("assertion");
        let mut rules = jsonwebtoken::Validation::new(algorithm.parse().expect("algorithm"));
        rules.validate_exp = false;
        rules.set_audience(&["https://login.example"]);
        let read = jsonwebtoken::decode::<Value>(assertion, &public, &rules).expect(algorithm);
        assert_eq!(read.header.kid.as_deref(), Some("k1"));
        assert_eq!((&read.claims["iss"], &read.claims["sub"]), (&json!("rondel"), &json!("rondel")));
        assert_eq!((&read.claims["iat"], &read.claims["exp"]), (&json!(SECONDS), &json!(SECONDS + 60)));
        let again = ask("opaque", &issuer, &asked, pem.as_bytes(), NOW).expect(algorithm);
        assert_ne!(*again.body, *sent.body, "`jti` is another each time (RFC 7523 §3)");
    }
}

fn answered(changes: &Value) -> Result<Introspected, IntrospectionError> {
    let mut answer = json!({
        "active": true, "iss": "https://login.example", "aud": "bank", "sub": "alice", "client_id": "web", "exp": SECONDS + 300,
        "scope": "read write", "roles": ["teller"],
    });
    for (name, value) in changes.as_object().expect("changes") {
        if value.is_null() {
            answer.as_object_mut().expect("object").remove(name);
        } else {
            answer[name] = value.clone();
        }
    }
    told_by(answer.to_string().as_bytes())
}

#[test]
fn rfc7662_an_active_answer_is_the_user_and_is_believed_for_its_bound() {
    for (name, changes, subject, believed) in [
        ("all of it", json!({}), "alice", 30),
        ("ends before the bound", json!({ "exp": SECONDS + 10 }), "alice", 10),
        ("no exp", json!({ "exp": null }), "alice", 30),
        ("no iss", json!({ "iss": null }), "alice", 30),
        ("one of several audiences", json!({ "aud": ["other", "bank"] }), "alice", 30),
        ("the client itself", json!({ "sub": null }), "web", 30),
    ] {
        let Ok(Introspected::Active(claims)) = answered(&changes) else { panic!("{name}") };
        assert_eq!(claims.user().subject, subject, "{name}");
        assert_eq!((claims.user().issuer.as_str(), claims.user().roles.as_slice()), ("login", ["teller".to_owned()].as_slice()));
        assert_eq!(claims.user().scopes, ["read", "write"]);
        assert_eq!(claims.remember_until(), NOW.plus(Duration::from_secs(believed)), "{name}");
    }
}

#[test]
fn rfc9068_1_the_profile_is_one_of_jwts_and_asks_nothing_of_an_opaque_token() {
    let mut issuer = issuer("login", Some(""));
    issuer.require.at_jwt = true;
    issuer.require.scopes = vec!["pay".to_owned()];
    let (keys, limits, told) = (crate::KeySets::default(), model::Limits::default(), BTreeMap::new());
    let rules = Rules { issuers: std::slice::from_ref(&issuer), keys: &keys, limits: &limits, told: &told };
    for (scope, is_good) in [("pay", true), ("read", false)] {
        // Neither `iat` nor `jti` nor `client_id` (§2.2): an answer need not have them (RFC 7662 §2.2).
        let answer = json!({ "active": true, "aud": "bank", "sub": "alice", "exp": SECONDS + 300, "scope": scope });
        let read = introspected(answer.to_string().as_bytes(), "opaque", &issuer, &rules, NOW).expect("an answer");
        assert_eq!(matches!(read, Introspected::Active(_)), is_good, "whatever else is demanded is: {read:?}");
    }
}

#[test]
fn rfc7662_whatever_is_not_active_for_us_and_now_is_refused() {
    for (name, changes, expected) in [
        ("not active", json!({ "active": false }), Reason::TokenInactive),
        ("another audience", json!({ "aud": "other" }), Reason::TokenAudience),
        ("no audience", json!({ "aud": null }), Reason::TokenClaim),
        ("expired", json!({ "exp": SECONDS - 60 }), Reason::TokenExpired),
        ("not yet", json!({ "nbf": SECONDS + 60 }), Reason::TokenNotYetValid),
        ("issued in the future", json!({ "iat": SECONDS + 60 }), Reason::TokenNotYetValid),
        ("nobody", json!({ "sub": null, "client_id": null }), Reason::TokenClaim),
        ("a line break in the subject", json!({ "sub": "a\nb" }), Reason::TokenClaim),
        ("roles of another type", json!({ "roles": 5 }), Reason::TokenClaim),
    ] {
        let Ok(Introspected::Refused(refusal)) = answered(&changes) else { panic!("{name}") };
        assert_eq!(refusal.reason(), expected, "{name}");
    }
}

#[test]
fn rfc7662_an_answer_that_says_nothing_clearly_is_no_answer() {
    for (name, changes, expected) in [
        ("active is a text", json!({ "active": "true" }), IntrospectionError::Answer),
        ("active is a number", json!({ "active": 1 }), IntrospectionError::Answer),
        ("no active", json!({ "active": null }), IntrospectionError::Answer),
        ("another issuer", json!({ "iss": "https://attacker.example" }), IntrospectionError::OtherIssuer),
        ("iss is a list", json!({ "iss": ["https://login.example"] }), IntrospectionError::OtherIssuer),
    ] {
        assert_eq!(answered(&changes).expect_err(name), expected, "{name}");
    }
    let read = |text: &str| told_by(text.as_bytes());
    for text in ["", "<html>", "[]", "true", r#"{"active":false,"active":true}"#, r#"{"active":true}}"#] {
        assert_eq!(read(text).expect_err(text), IntrospectionError::Answer, "{text}");
    }
}

#[test]
fn nothing_that_is_printed_holds_the_secret() {
    let issuer = issuer("login", Some(""));
    let asked = issuer.introspection.clone().expect("asked");
    let sent = ask("opaque", &issuer, &asked, b"s3cret", NOW).expect("ask");
    assert_eq!(format!("{sent:?}"), "Ask(redacted)");
}
