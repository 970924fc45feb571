//! SPIFFE JWT-SVID, clause by clause. The table is in `docs/spiffe.md`.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaSignatureEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use identity::bundle_document;
use identity::jwt_svid::{
    self, AUDIENCE_BYTES_MAX, AUDIENCES_MAX, JwkError, JwtAuthority, JwtBundles, JwtIssueRefusal, JwtKey, JwtRefusal, JwtSvid,
    TOKEN_BYTES_MAX,
};
use identity::key::KeyFailure;
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use serde_json::{Value, json};
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const US: &str = "spiffe://bank.example/ns/bank/sa/ledger";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("domain")
}

fn web() -> SpiffeId {
    SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web").expect("id")
}

fn untrusted(name: &str) -> JwtRefusal {
    JwtRefusal::Untrusted { trust_domain: domain(name) }
}

fn malformed(part: &'static str) -> Option<JwtRefusal> {
    Some(JwtRefusal::Malformed { part })
}

/// Bundles of these trust domains, each with these keys.
fn bundles(of: &[(&str, &[Vec<u8>])]) -> JwtBundles {
    let bundle = |(name, keys): &(&str, &[Vec<u8>])| TrustBundle {
        jwt_authorities: keys.to_vec(),
        ..TrustBundle::x509(domain(name), vec![Vec::new()])
    };
    JwtBundles::from_model(&of.iter().map(bundle).collect::<Vec<_>>()).expect("bundles")
}

fn jwk(key: &JwtKey) -> Vec<u8> {
    key.public().to_jwk_json()
}

/// A key, the bundle of `bank.example` with it alone, and tokens signed by it that say whatever a test wants.
struct Bank {
    key: JwtKey,
    bundles: JwtBundles,
}

impl Bank {
    fn new() -> Self {
        let key = JwtKey::generate().expect("key");
        let bundles = bundles(&[("bank.example", &[jwk(&key)])]);
        Self { key, bundles }
    }

    fn issue(&self) -> String {
        jwt_svid::issue(&self.key, &web(), &[US.to_owned()], 5 * MINUTE, NOW).expect("issued").token
    }

    fn kid(&self) -> String {
        self.key.public().key_id().to_owned()
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid(), "typ": "JWT" })
    }

    fn mint(&self, header: &str, claims: &str) -> String {
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &self.key.to_pkcs8_der()).expect("key");
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
        format!("{signed}.{}", BASE64URL.encode(signature))
    }

    /// What becomes of a token with this header.
    fn with_header(&self, header: &Value) -> Result<JwtSvid, JwtRefusal> {
        self.verify(&self.mint(&header.to_string(), &claims().to_string()))
    }

    /// What becomes of a token whose claim has this value, or is missing.
    fn with_claim(&self, claim: &str, value: Option<Value>) -> Result<JwtSvid, JwtRefusal> {
        let mut claims = claims();
        let members = claims.as_object_mut().expect("object");
        members.remove(claim);
        members.extend(value.map(|value| (claim.to_owned(), value)));
        self.with_claims(&claims.to_string())
    }

    fn with_claims(&self, claims: &str) -> Result<JwtSvid, JwtRefusal> {
        self.verify(&self.mint(&self.header().to_string(), claims))
    }

    fn verify(&self, token: &str) -> Result<JwtSvid, JwtRefusal> {
        jwt_svid::verify(token, US, &self.bundles, NOW)
    }
}

fn claims() -> Value {
    json!({ "sub": web().as_str(), "aud": [US], "exp": NOW.seconds() + 300 })
}

/// The header and the claims of a token.
fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| BASE64URL.decode(part).expect("base64url"));
    let mut json = || serde_json::from_slice(&parts.next().expect("part")).expect("JSON");
    (json(), json())
}

#[test]
fn jwt_svid_2_no_header_but_those_of_the_standard() {
    let bank = Bank::new();
    assert_eq!(parts(&bank.issue()).0, bank.header(), "an issuer writes no other");
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("jku", json!("https://evil.example/keys")),
        ("jwk", serde_json::from_slice(&jwk(&bank.key)).expect("JSON")),
        ("x5c", json!([])),
        ("cty", json!("JWT")),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
        ("private", json!(null)),
    ] {
        let mut header = bank.header();
        header[name] = value;
        assert_eq!(bank.with_header(&header).err(), Some(JwtRefusal::Header), "{name}");
    }
    let twice = format!(r#"{{"alg":"none","alg":"ES256","kid":"{}"}}"#, bank.kid());
    assert_eq!(bank.verify(&bank.mint(&twice, &claims().to_string())).err(), malformed("header"));
}

#[test]
fn jwt_svid_2_1_any_algorithm_outside_the_table_is_refused() {
    let bank = Bank::new();
    for name in ["none", "None", "", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "dir", "RSA-OAEP", "PS257"] {
        let header = json!({ "alg": name, "kid": bank.kid() });
        assert_eq!(bank.with_header(&header).err(), Some(JwtRefusal::Algorithm), "{name}");
    }
    for header in [json!({ "kid": bank.kid() }), json!({ "alg": null }), json!({ "alg": ["ES256"] }), json!({ "alg": 256 })] {
        assert_eq!(bank.with_header(&header).err(), malformed("header"), "{header}");
    }
    // Without a signature: the classic.
    let token = bank.issue();
    let (signed, _) = token.rsplit_once('.').expect("dot");
    let (_, payload) = signed.split_once('.').expect("dot");
    let unsigned = format!("{}.{payload}.", BASE64URL.encode(r#"{"alg":"none"}"#));
    assert_eq!(bank.verify(&unsigned).err(), Some(JwtRefusal::Algorithm));
    assert_eq!(bank.verify(&format!("{signed}.")).err(), Some(JwtRefusal::Signature));
}

fn number(name: &str, bytes: &[u8]) -> (String, Value) {
    (name.to_owned(), Value::from(BASE64URL.encode(bytes)))
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

fn ec(algorithm: &'static EcdsaSigningAlgorithm, curve: &str, bytes: usize) -> (Value, Sign) {
    let pair = EcdsaKeyPair::generate(algorithm).expect("key");
    let point = pair.public_key().as_ref().to_vec();
    let mut jwk = json!({ "kty": "EC", "crv": curve, "kid": "k", "use": "jwt-svid" });
    let members = jwk.as_object_mut().expect("object");
    members.extend([number("x", &point[1..=bytes]), number("y", &point[1 + bytes..])]);
    let sign = move |message: &[u8]| pair.sign(&SystemRandom::new(), message).expect("signature").as_ref().to_vec();
    (jwk, Box::new(sign))
}

fn rsa(encoding: &'static RsaSignatureEncoding) -> (Value, Sign) {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("key");
    let public = pair.public_key();
    let mut jwk = json!({ "kty": "RSA", "kid": "k", "use": "jwt-svid" });
    jwk.as_object_mut().expect("object").extend([
        number("n", public.modulus().big_endian_without_leading_zero()),
        number("e", public.exponent().big_endian_without_leading_zero()),
    ]);
    let sign = move |message: &[u8]| {
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("signature");
        signature
    };
    (jwk, Box::new(sign))
}

#[test]
fn jwt_svid_2_1_all_nine_algorithms_are_verified_each_by_its_own_keys() {
    let keys: [(&str, (Value, Sign)); 9] = [
        ("ES256", ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32)),
        ("ES384", ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48)),
        ("ES512", ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521", 66)),
        ("RS256", rsa(&signature::RSA_PKCS1_SHA256)),
        ("RS384", rsa(&signature::RSA_PKCS1_SHA384)),
        ("RS512", rsa(&signature::RSA_PKCS1_SHA512)),
        ("PS256", rsa(&signature::RSA_PSS_SHA256)),
        ("PS384", rsa(&signature::RSA_PSS_SHA384)),
        ("PS512", rsa(&signature::RSA_PSS_SHA512)),
    ];
    for (name, (jwk, sign)) in &keys {
        let bundles = bundles(&[("bank.example", &[jwk.to_string().into_bytes()])]);
        let verify = |algorithm: &str| {
            let header = json!({ "alg": algorithm, "kid": "k" }).to_string();
            let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims().to_string()));
            let token = format!("{signed}.{}", BASE64URL.encode(sign(signed.as_bytes())));
            jwt_svid::verify(&token, US, &bundles, NOW).map(|svid| svid.id().clone())
        };
        assert_eq!(verify(name), Ok(web()), "{name}");
        for (other, _) in keys.iter().filter(|(other, _)| other != name) {
            let is_rsa = |name: &str| !name.starts_with("ES");
            let refusal = if is_rsa(name) && is_rsa(other) { JwtRefusal::Signature } else { JwtRefusal::KeyAlgorithm };
            assert_eq!(verify(other), Err(refusal), "signed as {name}, told as {other}");
        }
    }
}

#[test]
fn jwt_svid_2_2_kid_is_optional_and_selects_the_key_if_set() {
    let (bank, next) = (Bank::new(), JwtKey::generate().expect("key"));
    let (rs, _) = rsa(&signature::RSA_PKCS1_SHA256);
    let without = bank.mint(r#"{"alg":"ES256"}"#, &claims().to_string());
    assert_eq!(bank.verify(&without).expect("one key alone can be meant").id(), &web());
    for keys in
        [[jwk(&next), jwk(&bank.key), rs.to_string().into_bytes()], [rs.to_string().into_bytes(), jwk(&bank.key), jwk(&next)]]
    {
        let all = bundles(&[("bank.example", &keys)]);
        assert_eq!(jwt_svid::verify(&without, US, &all, NOW).expect("one of them signed it").id(), &web());
        jwt_svid::verify(&bank.issue(), US, &all, NOW).expect("the named one is taken");
        let lie = bank.mint(&json!({ "alg": "ES256", "kid": next.public().key_id() }).to_string(), &claims().to_string());
        assert_eq!(jwt_svid::verify(&lie, US, &all, NOW).err(), Some(JwtRefusal::Signature));
    }
    for keys in [vec![jwk(&next), rs.to_string().into_bytes()], vec![rs.to_string().into_bytes(), jwk(&next)]] {
        let others = bundles(&[("bank.example", &keys)]);
        assert_eq!(jwt_svid::verify(&without, US, &others, NOW).err(), Some(JwtRefusal::Signature), "none of them signed it");
    }
    assert_eq!(bank.with_header(&json!({ "alg": "ES256", "kid": "other" })).err(), Some(untrusted("bank.example")));
    for wrong in [json!(7), json!(null)] {
        assert_eq!(bank.with_header(&json!({ "alg": "ES256", "kid": wrong })).err(), malformed("header"), "{wrong}");
    }
}

#[test]
fn jwt_svid_2_3_typ_is_jwt_or_jose_if_set() {
    let bank = Bank::new();
    let with = |typ: Value| bank.with_header(&json!({ "alg": "ES256", "kid": bank.kid(), "typ": typ }));
    for good in ["JWT", "JOSE"] {
        with(json!(good)).expect(good);
    }
    for wrong in ["jwt", "at+jwt", "wit+jwt", ""] {
        assert_eq!(with(json!(wrong)).err(), Some(JwtRefusal::Type), "{wrong}");
    }
    for wrong in [json!(null), json!(["JWT"])] {
        assert_eq!(with(wrong.clone()).err(), malformed("header"), "{wrong}");
    }
    bank.with_header(&json!({ "alg": "ES256", "kid": bank.kid() })).expect("absent");
}

#[test]
fn jwt_svid_3_other_claims_are_handed_on_and_a_claim_twice_is_refused() {
    let bank = Bank::new();
    let svid =
        bank.with_claim("https://bank.example/branch", Some(json!({ "city": "Ulm" }))).expect("private claims may be there");
    let read: Value = serde_json::from_slice(svid.claims_json()).expect("JSON");
    assert_eq!(read["https://bank.example/branch"]["city"], "Ulm");
    let text = claims().to_string();
    for more in [r#"{"sub":"spiffe://bank.example/mallory","#, r#"{"exp":9999999999,"#, r#"{"\u0061ud":"x","#] {
        assert_eq!(bank.with_claims(&text.replacen('{', more, 1)).err(), malformed("payload"), "{more}");
    }
    for noise in ["", "[]", "7", "{", "{}{}", "null"] {
        assert_eq!(bank.with_claims(noise).err(), malformed("payload"), "{noise}");
    }
}

#[test]
fn jwt_svid_3_a_token_says_who_for_whom_and_until_when_and_reads_back() {
    let bank = Bank::new();
    let issued = jwt_svid::issue(&bank.key, &web(), &["fraud".to_owned(), US.to_owned()], 5 * MINUTE, NOW).expect("issued");
    let svid = bank.verify(&issued.token).expect("believed");
    assert_eq!((svid.id(), svid.audiences()), (&web(), &["fraud".to_owned(), US.to_owned()][..]));
    assert_eq!((svid.expires_at(), issued.expires_at), (NOW.plus(5 * MINUTE), NOW.plus(5 * MINUTE)));
    let (_, claims) = parts(&issued.token);
    assert!(claims["exp"].is_u64() && claims["iat"] == NOW.seconds(), "{claims}");
    assert!(!format!("{issued:?} {:?}", bank.key).contains(&issued.token), "a token is never printed");
}

#[test]
fn jwt_svid_3_1_sub_is_the_spiffe_id_of_a_workload() {
    let bank = Bank::new();
    assert_eq!(parts(&bank.issue()).1["sub"], web().as_str());
    assert_eq!(bank.with_claim("sub", None).err(), malformed("payload"));
    assert_eq!(bank.with_claim("sub", Some(json!([web().as_str()]))).err(), malformed("payload"));
    for sub in ["", "web", "spiffe://bank.example", "spiffe://bank.example/", "https://bank.example/x", "spiffe:///x"] {
        assert_eq!(bank.with_claim("sub", Some(json!(sub))).err(), Some(JwtRefusal::Subject), "{sub}");
    }
}

#[test]
fn jwt_svid_3_2_aud_is_required() {
    let bank = Bank::new();
    for aud in [None, Some(json!(null)), Some(json!(7)), Some(json!([US, 7])), Some(json!({ "aud": US }))] {
        assert_eq!(bank.with_claim("aud", aud.clone()).err(), malformed("payload"), "{aud:?}");
    }
    let refused = bank.with_claim("aud", Some(json!([]))).err();
    assert_eq!(refused, Some(JwtRefusal::Audience { expected: US.to_owned() }), "for nobody");
    let issue = |audiences: &[String]| jwt_svid::issue(&bank.key, &web(), audiences, MINUTE, NOW).err();
    assert_eq!(issue(&[]), Some(JwtIssueRefusal::NoAudience));
    assert_eq!(issue(&[US.to_owned(), String::new()]), Some(JwtIssueRefusal::NoAudience));
}

#[test]
fn jwt_svid_3_2_the_validator_is_among_the_audiences() {
    let bank = Bank::new();
    for good in [json!(US), json!([US]), json!(["reports", US])] {
        bank.with_claim("aud", Some(good.clone())).expect("for us");
    }
    for foreign in [json!("reports"), json!(["reports", "spiffe://bank.example/"]), json!(format!("{US}/")), json!("")] {
        let refused = bank.with_claim("aud", Some(foreign.clone())).err();
        assert_eq!(refused, Some(JwtRefusal::Audience { expected: US.to_owned() }), "{foreign}");
    }
}

#[test]
fn jwt_svid_3_3_exp_is_required() {
    let bank = Bank::new();
    for exp in [None, Some(json!(null)), Some(json!("1800000300")), Some(json!([1_800_000_300])), Some(json!(true))] {
        assert_eq!(bank.with_claim("exp", exp.clone()).err(), malformed("payload"), "{exp:?}");
    }
    for exp in [json!(-1), json!(1e300)] {
        assert_eq!(bank.with_claim("exp", Some(exp.clone())).err(), malformed("exp"), "{exp}");
    }
    for lifetime in [Duration::ZERO, Duration::from_millis(999)] {
        let refused = jwt_svid::issue(&bank.key, &web(), &[US.to_owned()], lifetime, NOW).err();
        assert_eq!(refused, Some(JwtIssueRefusal::NoLifetime));
    }
}

/// RFC 7519 §4.1.4 and §4.1.5, to which the clause leads.
#[test]
fn jwt_svid_4_exp_and_nbf_are_kept_to_the_millisecond() {
    let (bank, milli) = (Bank::new(), Duration::from_millis(1));
    let issued = jwt_svid::issue(&bank.key, &web(), &[US.to_owned()], MINUTE, NOW).expect("issued");
    let end = issued.expires_at;
    let at = |now| jwt_svid::verify(&issued.token, US, &bank.bundles, now).map(|svid| svid.expires_at());
    assert_eq!(at(end.minus(milli)), Ok(end));
    assert_eq!(at(end), Err(JwtRefusal::Expired { at: end, now: end }));
    bank.with_claim("nbf", Some(json!(NOW.seconds()))).expect("from now on");
    let early = bank.with_claim("nbf", Some(json!(NOW.seconds() + 1))).err();
    assert_eq!(early, Some(JwtRefusal::NotYetValid { at: Timestamp::from_seconds(NOW.seconds() + 1), now: NOW }));
    for wrong in [json!(null), json!("soon")] {
        assert_eq!(bank.with_claim("nbf", Some(wrong.clone())).err(), malformed("payload"), "{wrong}");
    }
    // RFC 7519 §2: a moment may have a fraction.
    bank.with_claim("exp", Some(json!(1_800_000_000.5))).expect("not over yet");
}

#[test]
fn jwt_svid_4_only_a_key_of_the_subjects_own_trust_domain_vouches_for_it() {
    let (bank, partner) = (Bank::new(), JwtKey::generate().expect("key"));
    let both = bundles(&[("bank.example", &[jwk(&bank.key)]), ("partner.example", &[jwk(&partner)])]);
    let issue = |id: &str| {
        let id = SpiffeId::parse(id).expect("id");
        jwt_svid::issue(&partner, &id, &[US.to_owned()], MINUTE, NOW).expect("issued").token
    };
    let verify = |token: &str| jwt_svid::verify(token, US, &both, NOW).map(|svid| svid.id().to_string());
    assert_eq!(verify(&issue("spiffe://bank.example/ns/bank/sa/web")), Err(untrusted("bank.example")));
    assert_eq!(verify(&issue("spiffe://elsewhere.example/x")), Err(untrusted("elsewhere.example")));
    assert_eq!(verify(&issue("spiffe://partner.example/x")).as_deref(), Ok("spiffe://partner.example/x"));
    // Another's signature under our `kid`, and under none.
    let impostor = Bank { key: partner, bundles: both.clone() };
    for header in [json!({ "alg": "ES256", "kid": bank.kid() }), json!({ "alg": "ES256" })] {
        assert_eq!(impostor.with_header(&header).err(), Some(JwtRefusal::Signature), "{header}");
    }
}

#[test]
fn jwt_svid_4_a_token_changed_in_any_character_is_refused() {
    let bank = Bank::new();
    let token = bank.issue();
    for at in 0..token.len() {
        for by in ["A", "_", ".", "=", " ", "\u{e4}"] {
            let changed = format!("{}{by}{}", &token[..at], &token[at + 1..]);
            assert!(changed == token || bank.verify(&changed).is_err(), "character {at} is now `{by}`");
        }
        assert!(bank.verify(&token[..at]).is_err(), "cut at {at}");
    }
    // An ECDSA signature is two numbers of fixed length (RFC 7518 §3.4), never DER.
    let (signed, _) = token.rsplit_once('.').expect("dot");
    let der = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, &bank.key.to_pkcs8_der()).expect("key");
    let der = der.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
    assert_eq!(bank.verify(&format!("{signed}.{}", BASE64URL.encode(der))).err(), Some(JwtRefusal::Signature));
}

#[test]
fn jwt_svid_5_1_compact_serialization_only() {
    let bank = Bank::new();
    let token = bank.issue();
    let parts: Vec<&str> = token.split('.').collect();
    let flattened = json!({ "protected": parts[0], "payload": parts[1], "signature": parts[2] }).to_string();
    let general = json!({ "payload": parts[1], "signatures": [{ "protected": parts[0], "signature": parts[2] }] }).to_string();
    for (name, text) in [
        ("JSON, flattened", flattened),
        ("JSON, general", general),
        ("four parts", format!("{token}.")),
        ("five parts, as of JWE", format!("{token}..")),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("one part", parts[0].to_owned()),
        ("nothing", String::new()),
        ("padding", format!("{token}=")),
        ("a line break", format!("{token}\n")),
        ("a scheme", format!("Bearer {token}")),
    ] {
        assert!(matches!(bank.verify(&text), Err(JwtRefusal::Malformed { .. })), "{name}");
    }
}

#[test]
fn jwt_svid_6_1_a_key_is_published_with_its_use_and_an_id_and_nothing_secret() {
    let key = JwtKey::generate().expect("key");
    let document = bundle_document::BundleDocument { jwt_authorities: vec![jwk(&key)], ..Default::default() };
    let set: Value = serde_json::from_str(&bundle_document::write(&document)).expect("JSON");
    let [entry] = set["keys"].as_array().expect("keys").as_slice() else { panic!("one key: {set}") };
    assert_eq!((&entry["use"], &entry["kid"]), (&json!("jwt-svid"), &json!(key.public().key_id())));
    let mut members: Vec<&str> = entry.as_object().expect("object").keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["crv", "kid", "kty", "use", "x", "y"]);
    let again = JwtKey::from_pkcs8_der(&key.to_pkcs8_der()).expect("reads back");
    assert_eq!(jwk(&again), jwk(&key), "a restart changes no id");
    let p384 = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).expect("key").to_pkcs8v1().expect("document");
    for der in [p384.as_ref(), &[], &[0x30; 2000]] {
        assert_eq!(JwtKey::from_pkcs8_der(der).err(), Some(KeyFailure::Rejected));
    }
}

#[test]
fn jwt_svid_6_1_what_is_no_public_key_with_an_id_is_refused() {
    let good: Value = serde_json::from_slice(&jwk(&JwtKey::generate().expect("key"))).expect("JSON");
    let (rsa, _) = rsa(&signature::RSA_PKCS1_SHA256);
    let one = BASE64URL.encode([1; 32]);
    let with = |jwk: &Value, name: &str, value: &Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value.clone();
        JwtAuthority::from_jwk_json(jwk.to_string().as_bytes()).err()
    };
    for (jwk, name, value) in [
        (&good, "kid", json!(null)),
        (&good, "kid", json!("")),
        (&good, "kid", json!("k".repeat(257))),
        (&good, "kty", json!(null)),
        (&good, "x", json!(null)),
        (&good, "x", json!(7)),
        (&good, "x", json!("!")),
        (&good, "y", json!("AAAA")),
        (&good, "d", json!(one)),
        (&rsa, "d", json!(one)),
        (&rsa, "n", json!(null)),
    ] {
        assert_eq!(with(jwk, name, &value), Some(JwkError::Malformed), "{name} {value}");
    }
    for (jwk, name, value) in [
        (&good, "kty", json!("oct")),
        (&good, "kty", json!("OKP")),
        (&good, "crv", json!("secp256k1")),
        (&good, "crv", json!(null)),
        (&good, "x", json!(one)),
        (&rsa, "n", json!(BASE64URL.encode([0xff; 128]))),
        (&rsa, "n", json!(BASE64URL.encode([0xff; 1025]))),
        (&rsa, "e", json!("Ag")),
        (&rsa, "e", json!("AQ")),
        (&rsa, "e", json!("")),
    ] {
        assert_eq!(with(jwk, name, &value), Some(JwkError::Kind), "{name} {value}");
    }
    for noise in [&b""[..], b"[]", b"{}", b"\xff", &[b' '; 9000]] {
        assert_eq!(JwtAuthority::from_jwk_json(noise).err(), Some(JwkError::Malformed));
    }
}

#[test]
fn jwt_svid_6_2_a_trust_domain_without_a_key_supports_no_tokens() {
    let bank = Bank::new();
    let none = bundles(&[("bank.example", &[]), ("partner.example", &[jwk(&bank.key)])]);
    for bundles in [none, JwtBundles::default()] {
        for token in [bank.issue(), bank.mint(r#"{"alg":"ES256"}"#, &claims().to_string())] {
            assert_eq!(jwt_svid::verify(&token, US, &bundles, NOW).err(), Some(untrusted("bank.example")));
        }
    }
}

/// RFC 7517 §4.5, to which the clause leads: ids should be distinct, and are not always.
#[test]
fn jwt_svid_6_2_two_keys_of_one_id_both_count() {
    let (bank, other) = (Bank::new(), Bank::new());
    let renamed = String::from_utf8(jwk(&other.key)).expect("text").replace(&other.kid(), &bank.kid()).into_bytes();
    for keys in [[jwk(&bank.key), renamed.clone()], [renamed.clone(), jwk(&bank.key)]] {
        let both = bundles(&[("bank.example", &keys)]);
        for signer in [&bank, &other] {
            let token = signer.mint(&bank.header().to_string(), &claims().to_string());
            assert_eq!(jwt_svid::verify(&token, US, &both, NOW).expect("one of them signed it").id(), &web());
        }
        let stranger = Bank::new().mint(&bank.header().to_string(), &claims().to_string());
        assert_eq!(jwt_svid::verify(&stranger, US, &both, NOW).err(), Some(JwtRefusal::Signature));
    }
}

#[test]
fn jwt_svid_7_2_audiences_and_sizes_are_bounded() {
    let bank = Bank::new();
    let issue =
        |count: usize, bytes: usize| jwt_svid::issue(&bank.key, &web(), &vec!["a".repeat(bytes); count], MINUTE, NOW).map(drop);
    assert_eq!(issue(AUDIENCES_MAX, 8), Ok(()));
    assert_eq!(issue(1, AUDIENCE_BYTES_MAX), Ok(()));
    assert_eq!(issue(AUDIENCES_MAX + 1, 8), Err(JwtIssueRefusal::TooMany));
    assert_eq!(issue(1, AUDIENCE_BYTES_MAX + 1), Err(JwtIssueRefusal::TooMany));
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(bank.verify(&long).err(), Some(JwtRefusal::TooLong { bytes: long.len() }));
    let many = TrustBundle {
        jwt_authorities: (0..=jwt_svid::AUTHORITIES_MAX).map(|_| jwk(&bank.key)).collect(),
        ..TrustBundle::x509(domain("bank.example"), Vec::new())
    };
    assert_eq!(JwtBundles::from_model(&[many]).err(), Some(JwkError::TooMany));
}
