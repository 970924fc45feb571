//! What the check of a token costs, cold (every check in order) and warm (remembered), beside the crypto library's plain check of the
//! same signature.
//!
//! `cargo run --release --package token --example verification [SECONDS]`; part of `make bench`.

#![expect(clippy::expect_used, reason = "a measurement, of tokens that are known to be sound")]

use model::snapshot::{JwtAlgorithm, KeySource, TokenIssuer};
use model::{Limits, Timestamp};
use serde_json::json;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::issuer::Issuer;
use token::{KeySet, KeySets, TokenCache};

/// Calls `work` for so long; microseconds of one call.
fn cost(length: Duration, mut work: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut done = 0_u32;
    while begun.elapsed() < length {
        // The clock is asked for seldom: it costs as much as what is measured.
        for _ in 0..64 {
            work();
        }
        done += 64;
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(done)
}

fn main() {
    let length = Duration::from_secs(std::env::args().nth(1).map_or(2, |text| text.parse().expect("seconds")));
    let now = Timestamp::from_seconds(1_800_000_000);
    println!("one token, microseconds on one core    plain check     cold (of plain)     warm");
    for algorithm in [JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa] {
        let issuer = Issuer::generate(algorithm, "k1");
        let configured = TokenIssuer {
            name: "login".to_owned(),
            issuer: "https://login.example".to_owned(),
            audiences: vec!["shop".to_owned()],
            keys: KeySource::Discovery,
            introspection: None,
            algorithms: JwtAlgorithm::ALL.to_vec(),
            roles_claim: model::ClaimPath::parse("roles").ok(),
            require: model::token::Requirements::default(),
            attributes: BTreeMap::new(),
        };
        let limits = Limits::default();
        let set = KeySet::parse(issuer.jwks().to_string().as_bytes(), &configured, now, &limits).expect("keys");
        let keys = KeySets::default().with("login", Arc::new(set));
        let issuers = [configured];
        // As an access token of RFC 9068 is.
        let text = issuer.mint(&json!({
            "iss": "https://login.example", "sub": "5ba552d67", "aud": ["shop"], "exp": now.seconds() + 600, "iat": now.seconds(),
            "jti": "dbe39bf3a3ba4238a513f51d6e1691c4", "client_id": "s6BhdRkqt3", "scope": "openid profile payments:write",
            "roles": ["teller", "auditor"],
        }));
        let plain = plain(&issuer, &text);
        let plain = cost(length, plain);
        let told = std::collections::BTreeMap::new();
        let rules = token::Rules { issuers: &issuers, keys: &keys, limits: &limits, told: &told };
        let verified = || token::verify(black_box(&text), &rules, now).expect("good");
        let cold = cost(length, || drop(verified()));
        let cache = TokenCache::new(10_000);
        let generation = token::Generation { config: 1, keys: 1 };
        cache.remember(&verified(), generation);
        let warm = cost(length, || drop(cache.find(black_box(&text), generation, now).expect("remembered")));
        println!("{:<6} ({} bytes) {plain:>29.2} {cold:>16.2} ({:.2}) {warm:>8.2}", algorithm.as_str(), text.len(), cold / plain);
    }
}

/// The crypto library's check of this token's signature by the issuer's key, already parsed.
fn plain(issuer: &Issuer, text: &str) -> impl Fn() {
    let (signed, signature) = text.rsplit_once('.').expect("three parts");
    let (signed, signature) = (signed.to_owned(), decoded(signature));
    let key = parsed(issuer);
    move || key.verify_sig(black_box(signed.as_bytes()), black_box(&signature)).expect("the issuer's own")
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

/// The issuer's one key, by the library alone.
fn parsed(issuer: &Issuer) -> aws_lc_rs::signature::ParsedPublicKey {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    };
    let jwks = issuer.jwks();
    let number = |name: &str| decoded(jwks.pointer(&format!("/keys/0/{name}")).and_then(|value| value.as_str()).expect("member"));
    let kty = jwks.pointer("/keys/0/kty").and_then(|value| value.as_str());
    match kty {
        Some("RSA") => {
            let key = RsaPublicKeyComponents { n: number("n"), e: number("e") };
            key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).expect("RSA")
        }
        Some("EC") => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [vec![4], number("x"), number("y")].concat()).expect("P-256")
        }
        _ => ParsedPublicKey::new(&ED25519, number("x")).expect("Ed25519"),
    }
}
