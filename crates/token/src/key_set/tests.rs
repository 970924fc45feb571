//! Which keys of a set are used, and for what.

use super::*;
use serde_json::{Value, json};
use testkit::issuer::Issuer;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn configured(algorithms: &[JwtAlgorithm]) -> TokenIssuer {
    TokenIssuer {
        name: "login".to_owned(),
        issuer: "joe".to_owned(),
        audiences: vec!["bank".to_owned()],
        keys: model::snapshot::KeySource::Discovery,
        introspection: None,
        algorithms: algorithms.to_vec(),
        roles_claim: None,
        require: Default::default(),
        attributes: BTreeMap::new(),
    }
}

fn parse(document: &Value) -> Result<KeySet, KeySetError> {
    KeySet::parse(document.to_string().as_bytes(), &configured(&JwtAlgorithm::ALL), NOW, &Limits::default())
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../testdata/rfc.json")).expect("vectors")
}

/// The public JWK of a fresh key, with members changed; `null` takes one out.
fn jwk(algorithm: JwtAlgorithm, changes: &Value) -> Value {
    let mut jwk = Issuer::generate(algorithm, "k1").jwks()["keys"][0].clone();
    for (name, value) in changes.as_object().expect("changes") {
        let members = jwk.as_object_mut().expect("jwk");
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    jwk
}

#[test]
fn rfc7515_and_rfc8037_signatures_hold_and_any_other_byte_does_not() {
    for vector in vectors()["signatures"].as_array().expect("list") {
        let clause = vector["clause"].as_str().expect("clause");
        let set = parse(&json!({ "keys": [vector["jwk"]] })).expect(clause);
        let token = vector["token"].as_str().expect("token");
        let (signed, signature) = token.rsplit_once('.').expect("parts");
        let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let key = &set.keys[0];
        assert!(key.check(signed, &signature).is_ok(), "{clause}");
        assert!(key.check(&signed.replacen('.', "..", 1), &signature).is_err(), "{clause}: other text");
        assert!(key.check(signed, &signature[..signature.len() - 1]).is_err(), "{clause}: short");
        assert!(key.check(signed, &[]).is_err(), "{clause}: empty");
        for at in 0..signature.len() {
            signature[at] ^= 1;
            assert!(key.check(signed, &signature).is_err(), "{clause}: byte {at}");
            signature[at] ^= 1;
        }
    }
}

#[test]
fn rfc7517_and_rfc8037_key_sets_give_the_keys_for_signatures_only() {
    for vector in vectors()["key_sets"].as_array().expect("list") {
        let clause = vector["clause"].as_str().expect("clause");
        let ignored = usize::try_from(vector["ignored"].as_u64().expect("number")).expect("small");
        let usable: Vec<&str> = vector["usable"].as_array().expect("list").iter().filter_map(Value::as_str).collect();
        match parse(&vector["jwks"]) {
            Ok(set) => {
                assert_eq!(set.key_ids().collect::<Vec<_>>(), usable, "{clause}");
                assert_eq!(set.ignored(), ignored, "{clause}");
            }
            Err(error) => {
                assert!(usable.is_empty(), "{clause}: {error}");
                assert_eq!(error, KeySetError::NoUsableKey { ignored }, "{clause}");
            }
        }
    }
}

#[test]
fn a_key_that_cannot_be_used_is_left_out_and_counted() {
    use JwtAlgorithm::{EdDsa, Es256, Rs256};
    // The same 64 bytes, cut at the wrong place.
    let mut shifted = jwk(Es256, &json!({}));
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(shifted[name].as_str().expect("text")).expect("base64url");
    let (x, y) = (bytes("x"), bytes("y"));
    shifted["x"] = json!(URL_SAFE_NO_PAD.encode(&x[..31]));
    shifted["y"] = json!(URL_SAFE_NO_PAD.encode([&x[31..], y.as_slice()].concat()));
    let off_curve = URL_SAFE_NO_PAD.encode([7; 32]);
    let weak = URL_SAFE_NO_PAD.encode([[0xff_u8; 127].as_slice(), &[1]].concat());
    let short_of_2048 = URL_SAFE_NO_PAD.encode([&[0x7f_u8], [0xff_u8; 255].as_slice()].concat());
    let huge = URL_SAFE_NO_PAD.encode([0xff_u8; 1025]);
    for (name, entry) in [
        ("no object", json!("k1")),
        ("null", Value::Null),
        ("no kty", jwk(Es256, &json!({ "kty": null }))),
        ("unknown kty", jwk(Es256, &json!({ "kty": "AKP" }))),
        ("kty in other case", jwk(Es256, &json!({ "kty": "ec" }))),
        ("symmetric", json!({ "kty": "oct", "k": "AAAA", "kid": "k1", "alg": "HS256", "use": "sig" })),
        ("symmetric, said to be ES256", json!({ "kty": "oct", "k": "AAAA", "kid": "k1", "alg": "ES256" })),
        ("for encryption", jwk(Es256, &json!({ "use": "enc" }))),
        ("unknown use", jwk(Es256, &json!({ "use": "x" }))),
        ("use is a list", jwk(Es256, &json!({ "use": ["sig"] }))),
        ("cannot verify", jwk(Es256, &json!({ "key_ops": ["sign"] }))),
        ("key_ops is a text", jwk(Es256, &json!({ "key_ops": "verify" }))),
        ("P-384", jwk(Es256, &json!({ "crv": "P-384" }))),
        ("secp256k1", jwk(Es256, &json!({ "crv": "secp256k1" }))),
        ("no curve", jwk(Es256, &json!({ "crv": null }))),
        ("point off the curve", jwk(Es256, &json!({ "x": off_curve }))),
        ("point at zero", jwk(Es256, &json!({ "x": URL_SAFE_NO_PAD.encode([0; 32]), "y": URL_SAFE_NO_PAD.encode([0; 32]) }))),
        ("short coordinate", jwk(Es256, &json!({ "x": URL_SAFE_NO_PAD.encode([1; 31]) }))),
        ("padded coordinate", jwk(Es256, &json!({ "x": format!("{off_curve}=") }))),
        ("coordinates cut at the wrong place", shifted),
        ("no y", jwk(Es256, &json!({ "y": null }))),
        ("EC with alg RS256", jwk(Es256, &json!({ "alg": "RS256" }))),
        ("EC with alg ES384", jwk(Es256, &json!({ "alg": "ES384" }))),
        ("alg is a list", jwk(Es256, &json!({ "alg": ["ES256"] }))),
        ("RSA with alg ES256", jwk(Rs256, &json!({ "alg": "ES256" }))),
        ("RSA with alg HS256", jwk(Rs256, &json!({ "alg": "HS256" }))),
        ("P-521 with alg ES384", jwk(JwtAlgorithm::Es512, &json!({ "alg": "ES384" }))),
        ("a point of P-521 called P-384", jwk(JwtAlgorithm::Es512, &json!({ "crv": "P-384", "alg": "ES384" }))),
        ("a point of P-384 called P-521", jwk(JwtAlgorithm::Es384, &json!({ "crv": "P-521", "alg": "ES512" }))),
        ("RSA-PSS with a weak key", jwk(JwtAlgorithm::Ps512, &json!({ "n": weak }))),
        ("RSA with alg RSA-OAEP", jwk(Rs256, &json!({ "alg": "RSA-OAEP" }))),
        ("RSA of 1024 bits", jwk(Rs256, &json!({ "n": weak }))),
        ("RSA of 2047 bits", jwk(Rs256, &json!({ "n": short_of_2048 }))),
        ("RSA of 8200 bits", jwk(Rs256, &json!({ "n": huge }))),
        ("RSA with an empty modulus", jwk(Rs256, &json!({ "n": "" }))),
        ("RSA with exponent 1", jwk(Rs256, &json!({ "e": "AQ" }))),
        ("RSA with an even exponent", jwk(Rs256, &json!({ "e": "Ag" }))),
        ("RSA with a huge exponent", jwk(Rs256, &json!({ "e": URL_SAFE_NO_PAD.encode([1; 9]) }))),
        ("Ed448", jwk(EdDsa, &json!({ "crv": "Ed448" }))),
        ("Ed25519 too short", jwk(EdDsa, &json!({ "x": URL_SAFE_NO_PAD.encode([1; 31]) }))),
        ("Ed25519 with alg ES256", jwk(EdDsa, &json!({ "alg": "ES256" }))),
        ("private half published", jwk(EdDsa, &json!({ "d": "AAAA" }))),
        ("kid is a number", jwk(EdDsa, &json!({ "kid": 1 }))),
    ] {
        assert_eq!(parse(&json!({ "keys": [entry] })).expect_err(name), KeySetError::NoUsableKey { ignored: 1 }, "{name}");
        let beside = parse(&json!({ "keys": [entry, jwk(Es256, &json!({ "kid": "good" }))] })).expect(name);
        assert_eq!((beside.key_ids().collect::<Vec<_>>(), beside.ignored()), (vec!["good"], 1), "{name}");
    }
}

#[test]
fn what_a_jwk_may_leave_out_or_add_does_not_matter() {
    use JwtAlgorithm::{EdDsa, Es256, Rs256};
    for (name, entry, expected) in [
        ("no use, no alg", jwk(Rs256, &json!({ "use": null, "alg": null })), Rs256),
        ("RSA with alg PS256", jwk(Rs256, &json!({ "alg": "PS256" })), JwtAlgorithm::Ps256),
        ("P-384 without alg", jwk(JwtAlgorithm::Es384, &json!({ "alg": null })), JwtAlgorithm::Es384),
        ("P-521 without alg", jwk(JwtAlgorithm::Es512, &json!({ "alg": null })), JwtAlgorithm::Es512),
        ("key_ops", jwk(Es256, &json!({ "use": null, "key_ops": ["verify", "wrapKey"] })), Es256),
        ("alg of RFC 9864", jwk(EdDsa, &json!({ "alg": "Ed25519" })), EdDsa),
        ("certificate beside", jwk(Es256, &json!({ "x5c": ["AAAA"], "x5t": "x", "x5u": "https://a.example" })), Es256),
        ("no kid", jwk(Es256, &json!({ "kid": null })), Es256),
    ] {
        let set = parse(&json!({ "keys": [entry] })).expect(name);
        assert_eq!((set.keys[0].algorithm, set.ignored()), (expected, 0), "{name}");
    }
}

#[test]
fn a_key_for_an_algorithm_that_the_issuer_may_not_use_is_left_out() {
    let document = json!({ "keys": [jwk(JwtAlgorithm::EdDsa, &json!({}))] }).to_string();
    let only_es256 = configured(&[JwtAlgorithm::Es256]);
    let error = KeySet::parse(document.as_bytes(), &only_es256, NOW, &Limits::default()).expect_err("left out");
    assert_eq!(error, KeySetError::NoUsableKey { ignored: 1 });
}

#[test]
fn an_rsa_key_without_alg_is_for_the_first_algorithm_of_the_issuer_that_fits() {
    use JwtAlgorithm::{Es256, Ps256, Ps512, Rs256};
    let document = json!({ "keys": [jwk(Rs256, &json!({ "alg": null }))] }).to_string();
    for (list, expected) in [(vec![Es256, Ps512, Rs256], Ps512), (vec![Ps256], Ps256), (JwtAlgorithm::ALL.to_vec(), Rs256)] {
        let set = KeySet::parse(document.as_bytes(), &configured(&list), NOW, &Limits::default()).expect("one key");
        assert_eq!(set.keys[0].algorithm, expected, "{list:?}");
        let other = set.find(Some("k1"), if expected == Ps256 { Rs256 } else { Ps256 }, "login");
        assert!(matches!(other, Err(Refusal::KeyAlgorithm { .. })), "one key, one algorithm (RFC 8725 §3.1)");
    }
}

#[test]
fn a_document_that_is_no_key_set_is_refused_whole() {
    let key = jwk(JwtAlgorithm::Es256, &json!({}));
    let twice_in_key = json!({ "keys": [key] }).to_string().replacen("[{", r#"[{"kty":"EC","#, 1);
    for (text, expected) in [
        (String::new(), KeySetError::NotJson { rule: "it does not parse" }),
        ("<html>".to_owned(), KeySetError::NotJson { rule: "it does not parse" }),
        ("[]".to_owned(), KeySetError::NotJson { rule: "it is not an object" }),
        (twice_in_key, KeySetError::NotJson { rule: "a key stands twice in an object" }),
        ("{}".to_owned(), KeySetError::NotKeySet),
        (key.to_string(), KeySetError::NotKeySet),
        (r#"{"keys":{}}"#.to_owned(), KeySetError::NotKeySet),
        (r#"{"keys":[]}"#.to_owned(), KeySetError::NoUsableKey { ignored: 0 }),
        (
            json!({ "keys": [key, jwk(JwtAlgorithm::Es256, &json!({}))] }).to_string(),
            KeySetError::KeyIdTwice { id: "k1".to_owned() },
        ),
    ] {
        let got = KeySet::parse(text.as_bytes(), &configured(&JwtAlgorithm::ALL), NOW, &Limits::default());
        assert_eq!(got.expect_err(&text), expected, "{text}");
    }
}

#[test]
fn a_document_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
    let limits = Limits::default();
    let limit = limits.size(Limit::JwksBytes);
    let mut text = Issuer::generate(JwtAlgorithm::Es256, "k1").jwks().to_string();
    text.extend(std::iter::repeat_n(' ', limit - text.len()));
    let issuer = configured(&JwtAlgorithm::ALL);
    assert!(KeySet::parse(text.as_bytes(), &issuer, NOW, &limits).is_ok());
    text.push(' ');
    let error = KeySet::parse(text.as_bytes(), &issuer, NOW, &limits).expect_err("too large");
    assert_eq!(error, KeySetError::TooLarge { bytes: limit + 1, limit });
}

#[test]
fn the_same_id_for_two_algorithms_is_two_keys() {
    let rsa = jwk(JwtAlgorithm::Rs256, &json!({}));
    let set = parse(&json!({ "keys": [rsa, jwk(JwtAlgorithm::Es256, &json!({}))] })).expect("RFC 7517 §4.5 allows it");
    for algorithm in [JwtAlgorithm::Rs256, JwtAlgorithm::Es256] {
        assert_eq!(set.find(Some("k1"), algorithm, "login").expect("one fits").algorithm, algorithm);
    }
}

#[test]
fn a_token_finds_the_key_that_it_names_or_the_only_one_that_fits() {
    use JwtAlgorithm::{EdDsa, Es256, Rs256};
    let set = parse(&json!({ "keys": [
        jwk(Es256, &json!({ "kid": "a" })),
        jwk(Es256, &json!({ "kid": "b" })),
        jwk(EdDsa, &json!({ "kid": null })),
    ] }))
    .expect("three keys");
    let issuer = || "login".to_owned();
    for (kid, algorithm, expected) in [
        (Some("a"), Es256, Ok(Some("a"))),
        (Some("b"), Es256, Ok(Some("b"))),
        (Some("A"), Es256, Err(Refusal::KeyUnknown { issuer: issuer() })),
        (Some(""), EdDsa, Err(Refusal::KeyUnknown { issuer: issuer() })),
        (Some("a"), EdDsa, Err(Refusal::KeyAlgorithm { issuer: issuer(), algorithm: EdDsa })),
        (None, EdDsa, Ok(None)),
        (None, Es256, Err(Refusal::KeyAmbiguous { issuer: issuer(), fitting: 2 })),
        (None, Rs256, Err(Refusal::KeyUnknown { issuer: issuer() })),
    ] {
        let got = set.find(kid, algorithm, "login").map(|key| key.id.as_deref());
        assert_eq!(got, expected, "{kid:?} {algorithm:?}");
    }
}

#[test]
fn key_sets_are_values_that_a_change_leaves_alone() {
    let set = || Arc::new(parse(&Issuer::generate(JwtAlgorithm::Es256, "k1").jwks()).expect("set"));
    let none = KeySets::default();
    let two = none.with("a", set()).with("b", set());
    let only_b = two.retain(|name| name == "b");
    assert!(none.get("a").is_none() && two.get("a").is_some() && two.get("b").is_some());
    assert!(only_b.get("a").is_none() && only_b.get("b").is_some() && only_b.get("B").is_none());
}

#[test]
fn a_trust_bundle_gives_its_keys_for_every_algorithm_that_fits_and_never_ages() {
    let mut issuer = configured(&JwtAlgorithm::ALL);
    issuer.keys = KeySource::JwtSvid(model::TrustDomain::parse("partner.example").expect("domain"));
    let authority =
        |algorithm, kid: &str, word: Value| jwk(algorithm, &json!({ "kid": kid, "alg": null, "use": word })).to_string();
    let authorities = [
        authority(JwtAlgorithm::Rs256, "r", json!("jwt-svid")),
        authority(JwtAlgorithm::Es384, "e", Value::Null),
        authority(JwtAlgorithm::Es256, "x", json!("x509-svid")),
    ];
    let authorities: Vec<Vec<u8>> = authorities.into_iter().map(String::into_bytes).collect();
    let set = KeySet::of_bundle(&authorities, &issuer, NOW, &Limits::default()).expect("keys");
    let found: Vec<(Option<&str>, JwtAlgorithm)> = set.keys().collect();
    use JwtAlgorithm::{Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    let rsa = [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512].map(|algorithm| (Some("r"), algorithm));
    assert_eq!(found, [&rsa[..], &[(Some("e"), Es384)]].concat());
    assert_eq!(set.ignored(), 1, "a key of X.509-SVIDs is none of JWT-SVIDs");
    assert_eq!(set.believed_until(&Limits::default()), Timestamp::from_millis(u64::MAX));
    assert!(KeySet::of_bundle(&[], &issuer, NOW, &Limits::default()).is_err(), "no key, no set");
    assert!(KeySet::of_bundle(&[b"{}],\"x\":[{}".to_vec()], &issuer, NOW, &Limits::default()).is_err(), "not pasted together");
}

#[test]
fn the_same_document_seen_again_lives_on_and_another_is_told_apart() {
    let document = json!({ "keys": [jwk(JwtAlgorithm::Es256, &json!({}))] });
    let (one, two) = (parse(&document).expect("set"), parse(&document).expect("set"));
    assert!(one.is_same_document(&two));
    assert!(!one.is_same_document(&parse(&json!({ "keys": [jwk(JwtAlgorithm::Es256, &json!({}))] })).expect("set")));
    let later = NOW.plus(std::time::Duration::from_secs(60));
    one.seen_again(later);
    assert_eq!(one.fetched_at(), later);
    one.seen_again(NOW);
    assert_eq!(one.fetched_at(), later, "a clock that was set back makes no key younger");
    let age = Limits::default().duration(Limit::JwksMaxAgeMs);
    assert_eq!(one.believed_until(&Limits::default()), later.plus(age));
}
