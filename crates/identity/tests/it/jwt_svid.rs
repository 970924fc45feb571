//! JWT-SVIDs and the bundle document, each rule by its clause.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::bundle_document::{self, BundleDocument, BundleDocumentError};
use identity::jwt_svid::{self, AUDIENCES_MAX, JwkError, JwtAuthority, JwtBundles, JwtIssueRefusal, JwtKey, JwtRefusal};
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use std::time::Duration;
use testkit::pki::TestAuthority;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const LIFE: Duration = Duration::from_secs(300);

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("domain")
}

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web").expect("id")
}

fn bundles(of: &[(&str, &JwtKey)]) -> JwtBundles {
    let bundle = |(name, key): &(&str, &JwtKey)| TrustBundle {
        jwt_authorities: vec![key.public().to_jwk_json()],
        ..TrustBundle::x509(domain(name), vec![Vec::new()])
    };
    JwtBundles::from_model(&of.iter().map(bundle).collect::<Vec<_>>()).expect("bundles")
}

fn audience(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A token whose header and claims the test writes, signed by the key all the same (ES256).
fn forged(key: &JwtKey, header: &str, claims: &str) -> String {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.to_pkcs8_der()).expect("key");
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).expect("signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header(key: &JwtKey, more: &str) -> String {
    format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"{more}}}", key.public().key_id())
}

const CLAIMS: &str = r#"{"sub":"spiffe://bank.example/ns/bank/sa/web","aud":["ledger"],"exp":1800000300}"#;

#[test]
fn jwt_svid_3_a_token_carries_sub_aud_and_exp_and_reads_back() {
    let key = JwtKey::generate().expect("key");
    let issued = jwt_svid::issue(&key, &id(), &audience(&["ledger", "fraud"]), LIFE, NOW).expect("issued");
    let read = jwt_svid::verify(&issued.token, "fraud", &bundles(&[("bank.example", &key)]), NOW).expect("believed");
    assert_eq!(
        (read.id(), read.audiences(), read.expires_at()),
        (&id(), audience(&["ledger", "fraud"]).as_slice(), NOW.plus(LIFE))
    );
    let claims: serde_json::Value = serde_json::from_slice(read.claims_json()).expect("claims");
    assert_eq!((claims["iat"].as_u64(), claims["sub"].as_str()), (Some(NOW.seconds()), Some(id().as_str())));
    assert!(!format!("{key:?} {issued:?}").contains(&issued.token), "secrets are not shown");
    let again = JwtKey::from_pkcs8_der(&key.to_pkcs8_der()).expect("reads back");
    assert_eq!(again.public().to_jwk_json(), key.public().to_jwk_json());
}

#[test]
fn jwt_svid_3_2_an_issuer_signs_for_an_audience_only() {
    let key = JwtKey::generate().expect("key");
    let issue = |audiences: &[String], life| jwt_svid::issue(&key, &id(), audiences, life, NOW).map(drop);
    assert_eq!(issue(&[], LIFE), Err(JwtIssueRefusal::NoAudience));
    assert_eq!(issue(&audience(&["ledger", ""]), LIFE), Err(JwtIssueRefusal::NoAudience));
    assert_eq!(issue(&vec!["x".to_owned(); AUDIENCES_MAX + 1], LIFE), Err(JwtIssueRefusal::TooMany));
    assert_eq!(issue(&["x".repeat(2049)], LIFE), Err(JwtIssueRefusal::TooMany));
    assert_eq!(issue(&audience(&["ledger"]), Duration::from_millis(999)), Err(JwtIssueRefusal::NoLifetime));
}

#[test]
fn jwt_svid_5_a_validator_refuses_what_breaks_a_rule() {
    let (key, stranger) = (JwtKey::generate().expect("key"), JwtKey::generate().expect("key"));
    let bundles = bundles(&[("bank.example", &key), ("other.example", &stranger)]);
    let malformed = |part| JwtRefusal::Malformed { part };
    let claims = |from: &str, to: &str| {
        assert!(CLAIMS.contains(from), "{from}");
        CLAIMS.replace(from, to)
    };
    let good = header(&key, "");
    let untrusted = |name: &str| JwtRefusal::Untrusted { trust_domain: domain(name) };
    let expired = JwtRefusal::Expired { at: NOW, now: NOW };
    let table = [
        ("2.1 none", forged(&key, &good.replace("ES256", "none"), CLAIMS), JwtRefusal::Algorithm),
        ("2.1 a symmetric algorithm", forged(&key, &good.replace("ES256", "HS256"), CLAIMS), JwtRefusal::Algorithm),
        ("2.1 an algorithm beyond the list", forged(&key, &good.replace("ES256", "EdDSA"), CLAIMS), JwtRefusal::Algorithm),
        ("2.1 not the key's algorithm", forged(&key, &good.replace("ES256", "RS256"), CLAIMS), JwtRefusal::KeyAlgorithm),
        ("2.1 not the key's curve", forged(&key, &good.replace("ES256", "ES384"), CLAIMS), JwtRefusal::KeyAlgorithm),
        ("2.2 no kid", forged(&key, r#"{"alg":"ES256"}"#, CLAIMS), JwtRefusal::NoKeyId),
        ("2.3 another typ", forged(&key, &header(&key, r#","typ":"at+jwt""#), CLAIMS), JwtRefusal::Type),
        ("7515 4.1.11 crit", forged(&key, &header(&key, r#","crit":["x"]"#), CLAIMS), JwtRefusal::Critical),
        ("a header twice", forged(&key, &header(&key, r#","alg":"none""#), CLAIMS), malformed("header")),
        (
            "3.1 no sub",
            forged(&key, &good, &claims(r#""sub":"spiffe://bank.example/ns/bank/sa/web","#, "")),
            malformed("payload"),
        ),
        ("3.1 sub is no SPIFFE ID", forged(&key, &good, &claims("spiffe://", "https://")), JwtRefusal::Subject),
        ("3.1 sub is a trust domain", forged(&key, &good, &claims("/ns/bank/sa/web", "")), JwtRefusal::Subject),
        ("3.2 no aud", forged(&key, &good, &claims(r#""aud":["ledger"],"#, "")), malformed("payload")),
        ("3.2 another aud", forged(&key, &good, &claims("ledger", "fraud")), JwtRefusal::Audience { expected: "ledger".into() }),
        ("3.3 no exp", forged(&key, &good, &claims(r#","exp":1800000300"#, "")), malformed("payload")),
        ("3.3 expired", forged(&key, &good, &claims("1800000300", "1800000000")), expired),
        ("3.3 exp is no date", forged(&key, &good, &claims("1800000300", "1e300")), malformed("exp")),
        ("a claim twice", forged(&key, &good, &claims("\"aud\"", "\"exp\":1,\"aud\"")), malformed("payload")),
        (
            "nbf in the future",
            forged(&key, &good, &claims("\"exp\"", "\"nbf\":1800000001,\"exp\"")),
            JwtRefusal::NotYetValid { at: Timestamp::from_seconds(1_800_000_001), now: NOW },
        ),
        ("4 the key of another trust domain", forged(&stranger, &header(&stranger, ""), CLAIMS), untrusted("bank.example")),
        (
            "4 a trust domain without a bundle",
            forged(&key, &good, &claims("spiffe://bank", "spiffe://nobody")),
            untrusted("nobody.example"),
        ),
        ("4 another's signature under our kid", forged(&stranger, &good, CLAIMS), JwtRefusal::Signature),
        ("2 not compact", "{}".to_owned(), malformed("it has not three parts")),
        ("2 four parts", format!("{}.x", forged(&key, &good, CLAIMS)), malformed("it has not three parts")),
        ("2 padded", forged(&key, &good, CLAIMS) + "=", malformed("signature")),
        ("too long", "x".repeat(jwt_svid::TOKEN_BYTES_MAX + 1), JwtRefusal::TooLong { bytes: jwt_svid::TOKEN_BYTES_MAX + 1 }),
    ];
    for (name, token, expected) in table {
        assert_eq!(jwt_svid::verify(&token, "ledger", &bundles, NOW).err(), Some(expected), "{name}");
    }
    for (name, token) in [
        ("typ JWT", forged(&key, &header(&key, r#","typ":"JWT""#), CLAIMS)),
        ("typ JOSE", forged(&key, &header(&key, r#","typ":"JOSE""#), CLAIMS)),
        ("one audience as text", forged(&key, &good, &claims("[\"ledger\"]", "\"ledger\""))),
        ("a fraction", forged(&key, &good, &claims("1800000300", "1800000300.5"))),
        ("claims of the issuer's own", forged(&key, &good, &claims("\"aud\"", "\"x\":{\"y\":1},\"aud\""))),
    ] {
        jwt_svid::verify(&token, "ledger", &bundles, NOW).expect(name);
    }
}

#[test]
fn jwt_svid_4_2_a_key_of_a_bundle_has_a_kid_and_no_secret() {
    let jwk = String::from_utf8(JwtKey::generate().expect("key").public().to_jwk_json()).expect("JSON");
    let changed = |from: &str, to: &str| {
        assert!(jwk.contains(from), "{from} in {jwk}");
        JwtAuthority::from_jwk_json(jwk.replace(from, to).as_bytes()).err()
    };
    assert_eq!(changed("\"kid\"", "\"id\""), Some(JwkError::Malformed), "no kid");
    assert_eq!(changed("\"kty\"", "\"d\":\"AA\",\"kty\""), Some(JwkError::Malformed), "a private key");
    assert_eq!(changed("P-256", "P-384"), Some(JwkError::Malformed), "coordinates of another length");
    assert_eq!(changed("P-256", "secp256k1"), Some(JwkError::Kind), "a curve of no algorithm");
    assert_eq!(changed("\"EC\"", "\"oct\""), Some(JwkError::Kind), "a symmetric key");
    let point = serde_json::json!({ "kty": "EC", "kid": "a", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode([1; 32]), "y": URL_SAFE_NO_PAD.encode([1; 32]) });
    assert_eq!(JwtAuthority::from_jwk_json(point.to_string().as_bytes()).err(), Some(JwkError::Kind), "not on the curve");
    let weak = serde_json::json!({ "kty": "RSA", "kid": "a", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
    assert_eq!(JwtAuthority::from_jwk_json(weak.to_string().as_bytes()).err(), Some(JwkError::Kind), "RSA of 1024 bits");
    for garbage in ["", "[]", "{}", "x"] {
        assert_eq!(JwtAuthority::from_jwk_json(garbage.as_bytes()).err(), Some(JwkError::Malformed), "{garbage}");
    }
}

#[test]
fn bundle_4_a_document_reads_back_what_it_writes() {
    let (authority, key) = (TestAuthority::new("bank.example"), JwtKey::generate().expect("key"));
    let document = BundleDocument {
        x509_authorities: vec![authority.certificate_der().to_vec(), authority.twin().certificate_der().to_vec()],
        jwt_authorities: vec![key.public().to_jwk_json()],
        sequence: Some(7),
        refresh_hint: Some(Duration::from_secs(60)),
        ignored: 0,
    };
    let json = bundle_document::write(&document);
    assert_eq!(bundle_document::parse(json.as_bytes(), &domain("bank.example")), Ok(document.clone()));
    let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let keys = read["keys"].as_array().expect("keys");
    assert_eq!(
        keys.iter().map(|key| key["use"].as_str().expect("use")).collect::<Vec<_>>(),
        ["x509-svid", "x509-svid", "jwt-svid"]
    );
    assert!(
        keys[0].get("kid").is_none() && keys[0]["kty"] == "EC" && keys[0]["x5c"].as_array().is_some_and(|x5c| x5c.len() == 1)
    );
    let empty = bundle_document::write(&BundleDocument::default());
    assert_eq!(
        (empty.as_str(), bundle_document::parse(empty.as_bytes(), &domain("a"))),
        (r#"{"keys":[]}"#, Ok(BundleDocument::default()))
    );
}

#[test]
fn bundle_4_2_what_is_for_somebody_else_is_passed_over_and_what_is_broken_is_named() {
    let authority = TestAuthority::new("bank.example");
    let document = BundleDocument { x509_authorities: vec![authority.certificate_der().to_vec()], ..BundleDocument::default() };
    let json = bundle_document::write(&document);
    let (bank, other) = (domain("bank.example"), domain("other.example"));
    let parse = |json: &str| bundle_document::parse(json.as_bytes(), &bank);
    for (name, text) in [
        ("an unknown use", json.replace("x509-svid", "wit-svid")),
        ("no use", json.replace("\"use\":\"x509-svid\",", "").replace(",\"use\":\"x509-svid\"", "")),
    ] {
        let read = parse(&text).expect(name);
        assert_eq!((read.x509_authorities.len(), read.ignored), (0, 1), "{name}");
    }
    let second = json.replace("\"],", "\",\"bm90IGEgY2VydGlmaWNhdGU=\"],");
    assert_eq!(parse(&second).map(|read| read.x509_authorities.len()), Ok(1), "only the first of x5c counts");
    let hint = |value: &str| parse(&json.replace("{\"keys\"", &format!("{{\"spiffe_refresh_hint\":{value},\"keys\"")));
    assert_eq!(hint("0").expect("sound").refresh_hint, None);
    assert_eq!(hint("9").expect("sound").refresh_hint, Some(Duration::from_secs(9)));
    assert!(matches!(hint("-1"), Err(BundleDocumentError::NotKeySet { .. })));
    let foreign = bundle_document::parse(json.as_bytes(), &other);
    assert!(matches!(foreign, Err(BundleDocumentError::Foreign { index: 1, .. })), "{foreign:?}");
    for (name, text) in [
        ("not base64", json.replace("\"x5c\":[\"", "\"x5c\":[\"!")),
        ("no list", json.replace("\"x5c\":[", "\"x5c\":7,\"y5c\":[")),
    ] {
        assert!(matches!(parse(&text), Err(BundleDocumentError::Authority { index: 1, .. })), "{name}");
    }
    let leaf = authority.good(&authority.id("web"));
    let leaf = base64::engine::general_purpose::STANDARD.encode(&leaf.chain[0]);
    let text = format!(r#"{{"keys":[{{"use":"x509-svid","kty":"EC","x5c":["{leaf}"]}}]}}"#);
    assert!(matches!(parse(&text), Err(BundleDocumentError::Authority { rule, .. }) if rule.contains("CA=true")), "a leaf");
    let jwt = r#"{"keys":[{"use":"jwt-svid","kty":"EC"}]}"#;
    assert!(matches!(parse(jwt), Err(BundleDocumentError::Authority { index: 1, .. })), "no kid");
    for garbage in ["", "[]", "{}", "{\"keys\":7}"] {
        assert!(matches!(parse(garbage), Err(BundleDocumentError::NotKeySet { .. })), "{garbage}");
    }
    let many = format!("{{\"keys\":[{}]}}", vec!["{}"; 257].join(","));
    assert!(matches!(parse(&many), Err(BundleDocumentError::TooMany { .. })));
    let large = " ".repeat(bundle_document::DOCUMENT_BYTES_MAX + 1);
    assert!(matches!(parse(&large), Err(BundleDocumentError::TooLarge { .. })));
}
