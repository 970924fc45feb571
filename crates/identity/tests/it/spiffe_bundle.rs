//! SPIFFE Trust Domain and Bundle, clause by clause. The table is in `docs/spiffe.md`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::bundle_document::{self, BundleDocument, BundleDocumentError, DOCUMENT_BYTES_MAX};
use identity::jwt_svid::JwtKey;
use identity::{PeerRefusal, TrustBundles, X509Svid};
use model::TrustDomain;
use model::snapshot::TrustBundle;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::pki::{self, Leaf, TestAuthority, authority_params};

fn domain() -> TrustDomain {
    TrustDomain::parse("bank.example").expect("domain")
}

fn parse(set: &Value) -> Result<BundleDocument, BundleDocumentError> {
    bundle_document::parse(set.to_string().as_bytes(), &domain())
}

fn written(document: &BundleDocument) -> Value {
    serde_json::from_str(&bundle_document::write(document)).expect("JSON")
}

fn full() -> BundleDocument {
    let jwt = || JwtKey::generate().expect("key").public().to_jwk_json();
    let x509 = || TestAuthority::new("bank.example").certificate_der().to_vec();
    BundleDocument {
        x509_authorities: vec![x509(), x509()],
        jwt_authorities: vec![jwt(), jwt()],
        sequence: Some(u64::MAX),
        refresh_hint: Some(Duration::from_secs(300)),
        ignored: 0,
    }
}

/// A sound entry of each use in which this member has this value, or is missing.
fn entries(name: &str, value: Option<&Value>) -> [Value; 2] {
    let set = written(&full());
    [0, 2].map(|at| {
        let mut entry = set["keys"][at].clone();
        let members = entry.as_object_mut().expect("object");
        members.remove(name);
        members.extend(value.map(|value| (name.to_owned(), value.clone())));
        entry
    })
}

/// How many authorities of each kind are taken, and how many entries are ignored.
fn counts(keys: &[Value]) -> (usize, usize, usize) {
    let read = parse(&json!({ "keys": keys })).expect("sound");
    (read.x509_authorities.len(), read.jwt_authorities.len(), read.ignored)
}

#[test]
fn bundle_3_the_keys_vouch_for_no_other_trust_domain() {
    let (bank, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    let both = TrustBundles::from_model(&[bank.bundle(), partner.bundle()]).expect("bundles");
    let forged = bank.mint(&Leaf::good(&partner.id("web"))).chain;
    assert_eq!(X509Svid::parse(&forged, &both, pki::now()).err(), Some(PeerRefusal::Untrusted));
    let foreign = BundleDocument { x509_authorities: vec![partner.certificate_der().to_vec()], ..BundleDocument::default() };
    let refused = parse(&written(&foreign));
    assert!(matches!(refused, Err(BundleDocumentError::Foreign { index: 1, .. })), "{refused:?}");
}

#[test]
fn bundle_4_a_bundle_is_a_jwk_set_and_reads_back() {
    let document = full();
    let set = written(&document);
    assert_eq!(parse(&set), Ok(document));
    let mut members: Vec<&String> = set.as_object().expect("object").keys().collect();
    members.sort_unstable();
    assert_eq!(members, ["keys", "spiffe_refresh_hint", "spiffe_sequence"]);
    for noise in ["", "[]", "null", "7", "{", "{\"keys\":[]} x", "{\"keys\":[],\"keys\":[]}"] {
        let refused = bundle_document::parse(noise.as_bytes(), &domain());
        assert!(matches!(refused, Err(BundleDocumentError::NotKeySet { .. })), "{noise}");
    }
}

#[test]
fn bundle_4_1_a_parameter_of_somebody_else_is_neither_required_nor_refused() {
    let document = full();
    let mut set = written(&document);
    set["x-vendor"] = json!({ "keys": 1 });
    set["keys"][0]["x-vendor"] = json!([1]);
    set["keys"][2]["x-vendor"] = json!(null);
    assert_eq!(parse(&set), Ok(document));
    assert_eq!(parse(&json!({ "keys": [] })), Ok(BundleDocument::default()));
}

#[test]
fn bundle_4_1_1_the_sequence_is_an_integer_of_64_bits() {
    for sequence in [0, 1, 12_035_488, u64::MAX] {
        let set = json!({ "keys": [], "spiffe_sequence": sequence });
        let read = parse(&set).expect("sound");
        assert_eq!((read.sequence, written(&read)), (Some(sequence), set));
    }
    for wrong in [json!(-1), json!(1.5), json!("1"), json!(null), json!(1e30), json!([1])] {
        let refused = parse(&json!({ "keys": [], "spiffe_sequence": wrong }));
        assert!(matches!(refused, Err(BundleDocumentError::NotKeySet { .. })), "{wrong}");
    }
}

#[test]
fn bundle_4_1_2_the_refresh_hint_is_an_integer_of_seconds() {
    let hint = |value: &Value| parse(&json!({ "keys": [], "spiffe_refresh_hint": value }));
    let read = hint(&json!(2_419_200)).expect("sound");
    assert_eq!(read.refresh_hint, Some(Duration::from_secs(2_419_200)));
    assert_eq!(written(&read)["spiffe_refresh_hint"], 2_419_200);
    assert_eq!(hint(&json!(0)).expect("sound").refresh_hint, None, "it says nothing about when");
    for wrong in [json!(-1), json!(1.5), json!("60"), json!(null), json!({})] {
        assert!(matches!(hint(&wrong), Err(BundleDocumentError::NotKeySet { .. })), "{wrong}");
    }
}

#[test]
fn bundle_4_1_3_keys_is_required() {
    for set in [json!({}), json!({ "spiffe_sequence": 1 }), json!({ "keys": null }), json!({ "keys": {} }), json!({ "Keys": [] })]
    {
        assert!(matches!(parse(&set), Err(BundleDocumentError::NotKeySet { .. })), "{set}");
    }
}

#[test]
fn bundle_4_1_3_without_a_usable_key_nobody_of_the_trust_domain_is_believed() {
    let revoked = parse(&json!({ "keys": [] })).expect("an empty list is a bundle");
    let moved = parse(&json!({ "keys": entries("use", Some(&json!("wit-svid"))) })).expect("sound");
    assert_eq!((revoked.ignored, moved.ignored), (0, 2));
    let (bank, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    for read in [revoked, moved] {
        assert_eq!(written(&read), json!({ "keys": [] }), "and can be published");
        // The trust domain is left out of the set: an empty bundle in it would be a mistake, not a revocation.
        let own = TrustBundle::x509(domain(), read.x509_authorities);
        assert!(TrustBundles::from_model(&[own, partner.bundle()]).is_err());
        let rest = TrustBundles::from_model(&[partner.bundle()]).expect("sound");
        let refused = X509Svid::parse(&bank.good(&bank.id("web")).chain, &rest, pki::now()).err();
        assert_eq!(refused, Some(PeerRefusal::Untrusted));
    }
}

#[test]
fn bundle_4_2_1_an_unknown_key_type_is_ignored() {
    let good = written(&full())["keys"].as_array().expect("keys").clone();
    for kty in [Some(json!("oct")), Some(json!("AKP")), Some(json!("ec")), Some(json!("")), Some(json!(7)), None] {
        let keys = [entries("kty", kty.as_ref()).as_slice(), &good].concat();
        assert_eq!(counts(&keys), (2, 2, 2), "{kty:?}");
    }
    // An unknown type decides before anything else of the entry is looked at.
    let other = json!({ "use": "jwt-svid", "kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA", "x": [] });
    assert_eq!(counts(&[other, json!({ "use": "x509-svid", "kty": "AKP", "x5c": 7 })]), (0, 0, 2));
    // RFC 7517 §5, to which the clause leads: so is a known type with a curve, or of a strength, that is not supported.
    let [_, curve] = entries("crv", Some(&json!("secp256k1")));
    let [_, type_for_signatures] = entries("kty", Some(&json!("OKP")));
    let weak = json!({ "use": "jwt-svid", "kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB" });
    assert_eq!(counts(&[&[curve, type_for_signatures, weak], good.as_slice()].concat()), (2, 2, 3));
}

#[test]
fn bundle_4_2_2_a_missing_or_unknown_use_is_ignored() {
    let uses = [Some("sig"), Some("wit-svid"), Some("X509-SVID"), Some("Jwt-Svid"), Some(""), None];
    for purpose in uses.map(|purpose| purpose.map(Value::from)).into_iter().chain([Some(json!(7)), Some(json!(["jwt-svid"]))]) {
        assert_eq!(counts(&entries("use", purpose.as_ref())), (0, 0, 2), "{purpose:?}");
    }
    // What is ignored is not looked at: it may be broken in a way that we know.
    let broken = json!({ "use": "other", "kty": "EC", "kid": 7, "x": [], "d": "secret" });
    assert_eq!(counts(&[broken, json!(7), json!([])]), (0, 0, 3));
}

#[test]
fn bundle_4_2_2_a_key_is_used_for_its_own_purpose_alone() {
    let document = full();
    for (purpose, x509, jwt) in
        [("x509-svid", document.x509_authorities.clone(), Vec::new()), ("jwt-svid", Vec::new(), document.jwt_authorities.clone())]
    {
        let mut set = written(&document);
        set["keys"].as_array_mut().expect("list").retain(|key| key["use"] == purpose);
        let read = parse(&set).expect("sound");
        assert_eq!((read.x509_authorities, read.jwt_authorities), (x509, jwt), "{purpose}");
    }
}

/// SPIFFE JWT-SVID §6.1.
#[test]
fn jwt_svid_6_1_an_entry_without_an_id_is_refused() {
    for (name, value) in [("kid", None), ("kid", Some(json!(""))), ("x", None), ("d", Some(json!("AAAA")))] {
        let [_, entry] = entries(name, value.as_ref());
        let refused = parse(&json!({ "keys": [entry] }));
        assert!(matches!(refused, Err(BundleDocumentError::Authority { index: 1, .. })), "{name}: {refused:?}");
    }
}

/// SPIFFE JWT-SVID §6.2.
#[test]
fn jwt_svid_6_2_the_keys_for_tokens_are_taken_out_by_their_use() {
    let document = full();
    let mut set = written(&document);
    let keys = set["keys"].as_array_mut().expect("list");
    keys.push(keys[2].clone());
    let mut other = keys[3].clone();
    other["use"] = json!("sig");
    keys.push(other);
    let read = parse(&set).expect("sound");
    assert_eq!((&read.jwt_authorities, read.ignored), (&document.jwt_authorities, 1), "the same key twice is one");
}

/// SPIFFE X509-SVID §6.1: an operator's root may have any of these keys.
#[test]
fn x509_svid_6_1_authorities_of_every_usual_kind_of_key_are_published() {
    let kinds = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "EC", "P-256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "EC", "P-384"),
        (&rcgen::PKCS_RSA_SHA256, "RSA", ""),
        (&rcgen::PKCS_ED25519, "OKP", "Ed25519"),
    ];
    for (algorithm, kty, curve) in kinds {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("key");
        let root = authority_params(&domain(), "root").self_signed(&key).expect("certificate").der().to_vec();
        let document = BundleDocument { x509_authorities: vec![root], ..BundleDocument::default() };
        let set = written(&document);
        assert_eq!((&set["keys"][0]["kty"], set["keys"][0]["crv"].as_str().unwrap_or_default()), (&json!(kty), curve));
        assert_eq!(parse(&set), Ok(document), "{kty} {curve}");
    }
}

#[test]
fn a_bundle_document_is_bounded_in_size_and_in_number() {
    let jwt = |count: usize| (0..count).map(|_| JwtKey::generate().expect("key").public().to_jwk_json()).collect();
    let most = BundleDocument { jwt_authorities: jwt(64), ..BundleDocument::default() };
    assert_eq!(parse(&written(&most)), Ok(most), "at the bound");
    let more = BundleDocument { jwt_authorities: jwt(65), ..BundleDocument::default() };
    assert!(matches!(parse(&written(&more)), Err(BundleDocumentError::TooMany { max: 64, .. })));
    let many = json!({ "keys": vec![json!({}); 257] });
    assert!(matches!(parse(&many), Err(BundleDocumentError::TooMany { max: 256, .. })));
    let large = vec![b' '; DOCUMENT_BYTES_MAX + 1];
    let refused = bundle_document::parse(&large, &domain());
    assert_eq!(refused, Err(BundleDocumentError::TooLarge { bytes: large.len() }));
}

#[test]
fn what_is_published_but_no_authority_refuses_the_document_by_its_place() {
    let authority = TestAuthority::new("bank.example");
    let leaf = STANDARD.encode(&authority.good(&authority.id("web")).chain[0]);
    for (x5c, told) in [(json!([leaf]), "CA=true"), (json!(["!"]), "base64"), (json!([7]), "base64"), (json!(7), "not a list")] {
        let refused = parse(&json!({ "keys": [{}, { "use": "x509-svid", "kty": "EC", "x5c": x5c }] }));
        assert!(matches!(&refused, Err(BundleDocumentError::Authority { index: 2, rule }) if rule.contains(told)), "{refused:?}");
    }
}

#[test]
fn no_byte_of_a_document_makes_us_stumble() {
    let text = bundle_document::write(&full()).into_bytes();
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 0x01;
        // A letter of a member that nobody reads may change nothing; nothing may break.
        let _read_or_not = bundle_document::parse(&changed, &domain());
        assert!(bundle_document::parse(&text[..at], &domain()).is_err(), "cut at {at}");
    }
}
