//! Tokens that are bound to their holder: to a certificate (RFC 8705) or to a key of which each request brings a proof (RFC 9449).

use super::*;
use crate::dpop::{Asked, thumbprint};
use crate::holder::{Caller, Nonces, held};
use crate::json::{self, Json};
use crate::places::{Presented, Scheme};
use crate::replay::Proofs;
use model::token::SenderConstraint;
use std::borrow::Cow;

const CERTIFICATE: &str = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

/// A caller with a key, and what it knows of the sidecar.
struct Holder {
    site: Site,
    key: Issuer,
    proofs: Proofs,
}

fn plain(path: &[u8], out: &mut String) -> Result<(), &'static str> {
    out.clear();
    // What the sidecar does in full: one escape of what needs none.
    out.push_str(&String::from_utf8_lossy(path).replace("%61", "a"));
    Ok(())
}

fn asked() -> Asked<'static> {
    Asked { method: "POST", authority: "api.example", path: "/pay", normalise: plain }
}

fn sha256(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest_of(text))
}

impl Holder {
    fn new(algorithm: JwtAlgorithm) -> Self {
        Self {
            site: Site::new(JwtAlgorithm::Es256),
            key: Issuer::generate(algorithm, "own"),
            proofs: Proofs::since(Timestamp::default()),
        }
    }

    fn jwk(&self) -> Value {
        self.key.jwks()["keys"][0].clone()
    }

    fn thumbprint(&self) -> String {
        let Ok(Json::Object(jwk)) = json::parse(self.jwk().to_string().as_bytes()) else { panic!("a key") };
        URL_SAFE_NO_PAD.encode(thumbprint(&jwk).expect("a sound key"))
    }

    /// A token that is bound to the key.
    fn token(&self) -> String {
        self.site.issuer.mint(&claims(&json!({ "cnf": { "jkt": self.thumbprint() } })))
    }

    /// A proof for a token, with members of header and payload changed; `null` takes one out.
    fn proof(&self, token: &str, header: &Value, payload: &Value) -> String {
        let algorithm = self.jwk()["alg"].clone();
        let mut head = json!({ "typ": "dpop+jwt", "alg": algorithm, "jwk": self.jwk() });
        let mut body =
            json!({ "jti": "p1", "htm": "POST", "htu": "https://api.example/pay", "iat": NOW_SECONDS, "ath": sha256(token) });
        for (to, changes) in [(&mut head, header), (&mut body, payload)] {
            for (name, value) in changes.as_object().expect("object") {
                to[name] = value.clone();
            }
            to.as_object_mut().expect("object").retain(|_, value| !value.is_null());
        }
        self.key.mint_with_header(&head, &body)
    }

    fn sends(
        &self,
        token: &str,
        scheme: Scheme,
        certificate: Option<&str>,
        proofs: &[&str],
        now: Timestamp,
    ) -> Result<Nonces, Refusal> {
        let verified = self.site.verify_at(token, now).expect("a good token");
        let presented = Presented { text: Cow::Borrowed(token), scheme };
        let caller = Caller { certificate, proofs: proofs.iter().map(|proof| proof.as_bytes()), asked: asked() };
        held(&verified, &presented, caller, &self.proofs, &self.site.limits, now)
    }

    fn proves(&self, token: &str, proof: &str) -> Result<Nonces, Refusal> {
        self.sends(token, Scheme::Dpop, None, &[proof], NOW)
    }
}

#[test]
fn rfc8705_3_a_token_bound_to_a_certificate_is_good_in_its_connection_alone() {
    let holder = Holder::new(JwtAlgorithm::Es256);
    let bound = holder.site.issuer.mint(&claims(&json!({ "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode([0x5e; 32]) } })));
    let send = |certificate| holder.sends(&bound, Scheme::Bearer, certificate, &[], NOW);
    assert_eq!(send(Some(CERTIFICATE)), Ok(Nonces::default()));
    for other in [None, Some(""), Some(&CERTIFICATE[2..]), Some(&*CERTIFICATE.replace("5e", "5d"))] {
        assert!(matches!(send(other), Err(Refusal::NotHolder { by_proof: false, .. })), "{other:?}");
    }
}

#[test]
fn an_issuer_may_demand_that_its_tokens_are_bound_and_a_bound_token_is_held_to_it_in_any_case() {
    let mut holder = Holder::new(JwtAlgorithm::Es256);
    let jkt = holder.thumbprint();
    let x5t = URL_SAFE_NO_PAD.encode([0x5e; 32]);
    let mint = |cnf: Option<Value>| holder.site.issuer.mint(&claims(&cnf.map_or_else(|| json!({}), |cnf| json!({ "cnf": cnf }))));
    let tokens = [
        mint(None),
        mint(Some(json!({ "x5t#S256": x5t }))),
        mint(Some(json!({ "jkt": jkt }))),
        mint(Some(json!({ "jkt": jkt, "x5t#S256": x5t }))),
    ];
    for (sender, expected) in [
        (SenderConstraint::None, [true, true, true, true]),
        (SenderConstraint::Certificate, [false, true, false, true]),
        (SenderConstraint::Dpop, [false, false, true, true]),
        (SenderConstraint::Any, [false, true, true, true]),
    ] {
        holder.site.issuers[0].require.sender = sender;
        for ((token, number), is_good) in tokens.iter().zip(0..).zip(expected) {
            let is_keyed = number >= 2;
            let scheme = if is_keyed { Scheme::Dpop } else { Scheme::Bearer };
            let proof = holder.proof(token, &json!({}), &json!({ "jti": format!("{sender:?}{number}") }));
            let got = holder.sends(token, scheme, Some(CERTIFICATE), &[&proof], NOW);
            assert_eq!(got.is_ok(), is_good, "{sender:?}, token {number}: {got:?}");
            // RFC 9449 §7.1: the downgrade, and the other way round.
            let (other, fresh) = if is_keyed { (Scheme::Bearer, "b") } else { (Scheme::Dpop, "d") };
            let proof = holder.proof(token, &json!({}), &json!({ "jti": fresh }));
            let got = holder.sends(token, other, Some(CERTIFICATE), &[&proof], NOW);
            assert!(matches!(got, Err(Refusal::NotHolder { .. })), "{sender:?}, token {number}: {got:?}");
        }
    }
    let keyed = &tokens[3];
    let proof = holder.proof(keyed, &json!({}), &json!({ "jti": "both" }));
    assert!(holder.sends(keyed, Scheme::Dpop, None, &[&proof], NOW).is_err(), "bound to both, and only one is shown");
}

#[test]
fn rfc9449_4_3_a_proof_is_good_once_for_each_algorithm() {
    for algorithm in JwtAlgorithm::ALL {
        let holder = Holder::new(algorithm);
        let token = holder.token();
        let proof = holder.proof(&token, &json!({}), &json!({}));
        assert_eq!(holder.proves(&token, &proof), Ok(Nonces::default()), "{algorithm:?}");
        assert_eq!(holder.proves(&token, &proof), Err(Refusal::Proof { rule: "it came before" }), "§11.1, {algorithm:?}");
        let again = holder.proof(&token, &json!({}), &json!({ "htu": "https://api.example/pay", "x": 1 }));
        assert!(holder.proves(&token, &again).is_err(), "another proof with the same `jti`");
        let next = holder.proof(&token, &json!({}), &json!({ "jti": "p2" }));
        assert!(holder.proves(&token, &next).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn rfc9449_4_3_every_check_of_its_list_refuses() {
    let holder = Holder::new(JwtAlgorithm::Es256);
    let (token, other) = (holder.token(), Holder::new(JwtAlgorithm::Es256));
    let mut with_private = holder.jwk();
    with_private["d"] = "AAAA".into();
    let rsa = Issuer::generate(JwtAlgorithm::Rs256, "r").jwks()["keys"][0].clone();
    let keep = json!({});
    for (name, header, payload, rule) in [
        ("3: jti", keep.clone(), json!({ "jti": null }), "`jti`"),
        ("3: htm", keep.clone(), json!({ "htm": null }), "`htm`"),
        ("3: htu", keep.clone(), json!({ "htu": null }), "`htu`"),
        ("3: iat", keep.clone(), json!({ "iat": null }), "`iat`"),
        ("3: ath", keep.clone(), json!({ "ath": null }), "`ath`"),
        ("3: an empty jti", keep.clone(), json!({ "jti": "" }), "`jti`"),
        ("3: a long jti", keep.clone(), json!({ "jti": "x".repeat(257) }), "`jti`"),
        ("4: typ", json!({ "typ": "JWT" }), keep.clone(), "`typ`"),
        ("4: no typ", json!({ "typ": null }), keep.clone(), "`typ`"),
        ("5: none", json!({ "alg": "none" }), keep.clone(), "`alg`"),
        ("5: symmetric", json!({ "alg": "HS256" }), keep.clone(), "`alg`"),
        ("5: no alg", json!({ "alg": null }), keep.clone(), "`alg`"),
        ("5: of another key", json!({ "alg": "EdDSA" }), keep.clone(), "sound key"),
        ("6: another key", json!({ "jwk": other.jwk() }), keep.clone(), "bound to"),
        ("6: another kind of key", json!({ "jwk": rsa }), keep.clone(), "bound to"),
        ("6: no key", json!({ "jwk": null }), keep.clone(), "no `jwk`"),
        ("6: symmetric key", json!({ "jwk": { "kty": "oct" } }), keep.clone(), "sound key"),
        ("7: private part", json!({ "jwk": with_private }), keep.clone(), "private"),
        ("7: secret", json!({ "jwk": { "kty": "oct", "k": "AAAA" } }), keep.clone(), "private"),
        ("8: htm", keep.clone(), json!({ "htm": "GET" }), "`htm`"),
        ("8: htm in another case", keep.clone(), json!({ "htm": "post" }), "`htm`"),
        ("9: another path", keep.clone(), json!({ "htu": "https://api.example/pay2" }), "`htu`"),
        ("9: another host", keep.clone(), json!({ "htu": "https://api.example.evil/pay" }), "`htu`"),
        ("9: another port", keep.clone(), json!({ "htu": "https://api.example:8443/pay" }), "`htu`"),
        ("9: another scheme", keep.clone(), json!({ "htu": "ftp://api.example/pay" }), "`htu`"),
        ("9: a user", keep.clone(), json!({ "htu": "https://api.example@evil/pay" }), "`htu`"),
        ("9: a query", keep.clone(), json!({ "htu": "https://api.example/pay?a" }), "`htu`"),
        ("9: a path only", keep.clone(), json!({ "htu": "/pay" }), "`htu`"),
        ("9: no text", keep.clone(), json!({ "htu": ["https://api.example/pay"] }), "`htu`"),
        ("11: pre-dated", keep.clone(), json!({ "iat": NOW_SECONDS + 31 }), "ahead"),
        ("11: old", keep.clone(), json!({ "iat": NOW_SECONDS - 91 }), "longer ago"),
        ("11: no number", keep.clone(), json!({ "iat": "now" }), "`iat`"),
        ("12a: another token", keep.clone(), json!({ "ath": sha256("other") }), "`ath`"),
        ("12a: padded", keep.clone(), json!({ "ath": format!("{}=", sha256(&token)) }), "`ath`"),
        ("crit", json!({ "crit": ["exp"] }), keep.clone(), "`crit`"),
        ("b64", json!({ "b64": false }), keep.clone(), "`crit` or `b64`"),
    ] {
        let refusal = holder.proves(&token, &holder.proof(&token, &header, &payload)).expect_err(name);
        let Refusal::Proof { rule: told } = &refusal else { panic!("{name}: {refusal}") };
        assert!(told.contains(rule), "{name}: {told}");
        assert_eq!(refusal.reason(), Reason::DpopProof);
    }
    // 12b: a sound proof by a key that the token is not bound to.
    let stolen = other.proof(&token, &keep, &keep);
    let refusal = holder.proves(&token, &stolen).expect_err("stolen");
    assert!(refusal.to_string().contains("not the one that the token is bound to"), "{refusal}");
    let (head, _) = stolen.rsplit_once('.').expect("three parts");
    let refusal = holder.proves(&token, &format!("{head}.AAAA")).expect_err("forged");
    assert!(refusal.to_string().contains("not the one that the token is bound to"), "another's key is not even tried: {refusal}");
    let own = holder.proof(&token, &keep, &keep);
    let (head, _) = own.rsplit_once('.').expect("three parts");
    let refusal = holder.proves(&token, &format!("{head}.AAAA")).expect_err("forged");
    assert!(refusal.to_string().contains("signature"), "{refusal}");
    // 1 and 2: exactly one header with one JWT.
    let proof = holder.proof(&token, &keep, &keep);
    let send = |proofs: &[&str]| holder.sends(&token, Scheme::Dpop, None, proofs, NOW);
    let proof = proof.as_str();
    for proofs in [&[][..], &[proof, proof], &[""], &["a.b.c"], &[&format!("{proof}.")], &[&format!("{proof}, {proof}")]] {
        assert!(matches!(send(proofs), Err(Refusal::Proof { .. })), "{proofs:?}");
    }
    let long = format!("{proof}{}", "A".repeat(holder.site.limits.size(Limit::TokenBytes)));
    assert!(matches!(send(&[&long]), Err(Refusal::Proof { .. })));
    let twice = holder.key.mint_text(
        &json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": holder.jwk() }).to_string(),
        r#"{"jti":"a","jti":"b","htm":"POST"}"#,
    );
    assert!(matches!(send(&[&twice]), Err(Refusal::Proof { rule: "its payload has a claim twice" })));
    assert!(send(&[proof]).is_ok(), "none of those was remembered as this one");
}

#[test]
fn rfc9449_4_3_a_key_that_is_not_sound_or_costs_too_much_is_refused_though_the_token_is_bound_to_it() {
    let holder = Holder::new(JwtAlgorithm::Es256);
    let (long, short) = (URL_SAFE_NO_PAD.encode([0xff; 1024]), URL_SAFE_NO_PAD.encode([0xff; 256]));
    for (name, algorithm, jwk) in [
        ("off the curve", "ES256", json!({ "kty": "EC", "crv": "P-256", "x": sha256("a"), "y": sha256("b") })),
        ("8192 bits", "RS256", json!({ "kty": "RSA", "n": long, "e": "AQAB" })),
        ("a long exponent", "RS256", json!({ "kty": "RSA", "n": short, "e": URL_SAFE_NO_PAD.encode([0xff; 4]) })),
    ] {
        let Ok(Json::Object(members)) = json::parse(jwk.to_string().as_bytes()) else { panic!("a key") };
        let jkt = URL_SAFE_NO_PAD.encode(thumbprint(&members).expect("a thumbprint"));
        let token = holder.site.issuer.mint(&claims(&json!({ "cnf": { "jkt": jkt } })));
        let proof = holder.proof(&token, &json!({ "alg": algorithm, "jwk": jwk }), &json!({}));
        let refusal = holder.proves(&token, &proof).expect_err(name);
        assert!(refusal.to_string().contains("sound key"), "{name}: {refusal}");
    }
}

#[test]
fn a_proof_from_before_the_process_began_needs_a_nonce_of_this_one() {
    let mut holder = Holder::new(JwtAlgorithm::Es256);
    holder.proofs = Proofs::since(NOW);
    let token = holder.token();
    let proves = |jti: &str, iat: u64, nonce: Option<&str>| {
        holder.proves(&token, &holder.proof(&token, &json!({}), &json!({ "jti": jti, "iat": iat, "nonce": nonce })))
    };
    let Err(Refusal::ProofNonce { nonce }) = proves("a", NOW_SECONDS - 1, None) else { panic!("it may have come before") };
    assert_eq!(proves("a", NOW_SECONDS - 1, Some(&nonce)), Ok(Nonces::default()));
    assert_eq!(proves("b", NOW_SECONDS, None), Ok(Nonces::default()));
}

#[test]
fn rfc9449_4_3_the_address_is_compared_when_both_are_normalised() {
    let holder = Holder::new(JwtAlgorithm::Es256);
    let token = holder.token();
    for (number, htu) in [
        "https://api.example/pay",
        "http://api.example/pay",
        "HTTPS://API.example/pay",
        "https://api.example:443/pay",
        "http://api.example:80/pay",
        "https://api.example/p%61y",
    ]
    .into_iter()
    .enumerate()
    {
        let proof = holder.proof(&token, &json!({}), &json!({ "htu": htu, "jti": format!("n{number}") }));
        assert!(holder.proves(&token, &proof).is_ok(), "{htu}");
    }
    for htu in ["http://api.example:443/pay", "https://api.example:80/pay", "https://api.example/PAY", "https:///pay"] {
        let proof = holder.proof(&token, &json!({}), &json!({ "htu": htu, "jti": "x" }));
        assert!(holder.proves(&token, &proof).is_err(), "{htu}");
    }
}

#[test]
fn rfc9449_8_and_9_a_demanded_nonce_is_given_renewed_and_believed_from_here_only() {
    let mut holder = Holder::new(JwtAlgorithm::Es256);
    holder.site.issuers[0].require = Requirements { sender: SenderConstraint::Dpop, dpop_nonce: true, ..Requirements::default() };
    let token = holder.token();
    let with = |holder: &Holder, jti: &str, nonce: Option<&str>| {
        let proof = holder.proof(&token, &json!({}), &json!({ "jti": jti, "nonce": nonce }));
        holder.proves(&token, &proof)
    };
    let Err(Refusal::ProofNonce { nonce }) = with(&holder, "a", None) else { panic!("a nonce is demanded") };
    assert_eq!(with(&holder, "a", Some(&nonce)), Ok(Nonces::default()), "what was refused for its nonce was not remembered");
    let others = Proofs::since(Timestamp::default()).nonce(NOW);
    assert!(matches!(with(&holder, "b", Some(&others)), Err(Refusal::ProofNonce { .. })), "another sidecar's");
    // The one before is still good, and the answer gives the next.
    let earlier = holder.proofs.nonce(NOW.minus(Duration::from_secs(120)));
    assert_eq!(with(&holder, "c", Some(&earlier)), Ok(Nonces { next: Some(nonce) }));
    let ended = holder.proofs.nonce(NOW.minus(Duration::from_secs(240)));
    assert!(matches!(with(&holder, "d", Some(&ended)), Err(Refusal::ProofNonce { .. })));
    holder.site.issuers[0].require.dpop_nonce = false;
    assert!(with(&holder, "e", None).is_ok());
    assert!(matches!(with(&holder, "f", Some("made-up")), Err(Refusal::ProofNonce { .. })), "whoever sends one means it");
}

#[test]
fn rfc7638_3_1_and_rfc9449_7_1_the_published_examples() {
    let parsed = |text: &str| match json::parse(text.as_bytes()) {
        Ok(Json::Object(object)) => object,
        Ok(_) | Err(_) => panic!("{text}"),
    };
    let rsa = parsed(
        r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
    );
    assert_eq!(
        thumbprint(&rsa).map(|print| URL_SAFE_NO_PAD.encode(print)).as_deref(),
        Some("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")
    );
    // RFC 9449 figures 5 and 12: the token, the proof beside it, and the thumbprint that the token is bound to (figure 8).
    let token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
    let proof = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA";
    let mut bound = [0; 32];
    bound.copy_from_slice(&URL_SAFE_NO_PAD.decode("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I").expect("base64"));
    let get = Asked { method: "GET", authority: "resource.example.org", path: "/protectedresource", normalise: plain };
    let at = |seconds: u64| Timestamp::from_seconds(1_562_262_618 + seconds);
    let check = |token, now| {
        crate::dpop::check(proof, token, bound, false, &get, &Proofs::since(Timestamp::default()), &Limits::default(), now)
    };
    assert_eq!(check(token, at(1)), Ok(Nonces::default()));
    assert!(check(token, at(100)).is_err() && check("another", at(1)).is_err());
}
