//! A token issuer for tests and for the bank's demo: keys, key set, discovery document and tokens, good and hostile ones.
//!
//! [`Issuer`] makes keys and tokens; [`Hostile`] names every bad token it can make; [`IssuerServer`] answers discovery and key set
//! requests over HTTP/1.1 and can be told to behave badly. Signing is written against AWS-LC directly and shares no code with
//! `token`, which checks what is made here.

#![expect(clippy::expect_used, reason = "the library fails to sign only when memory is out: a test may end there")]

mod hostile;
mod server;

pub use hostile::Hostile;
pub use server::{Asked, Behaviour, Fetches, IssuerServer};

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::snapshot::JwtAlgorithm;
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A development token issuer. Clones share the same keys, so that a key can be added while a server answers.
#[derive(Clone)]
pub struct Issuer {
    keys: Arc<Mutex<Vec<SigningKey>>>,
}

/// One key of an issuer.
#[derive(Clone)]
struct SigningKey {
    kid: String,
    pair: Arc<Pair>,
    /// Whether tokens are signed by it; a published key that is not may still check old ones.
    active: bool,
}

/// A private key with its public half, and what it signs by.
enum Pair {
    Rsa(RsaKeyPair, JwtAlgorithm, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair, JwtAlgorithm, &'static str),
    EdDsa(Ed25519KeyPair),
}

impl Issuer {
    /// An issuer with one key of its own.
    pub fn generate(algorithm: JwtAlgorithm, kid: &str) -> Self {
        let issuer = Self { keys: Arc::default() };
        issuer.add_key(algorithm, kid);
        issuer
    }

    /// Adds a key to the key set and signs by it from now on. The older ones stay published.
    pub fn add_key(&self, algorithm: JwtAlgorithm, kid: &str) {
        let mut keys = self.keys();
        keys.iter_mut().for_each(|key| key.active = false);
        keys.push(SigningKey { kid: kid.to_owned(), pair: Arc::new(Pair::generate(algorithm)), active: true });
    }

    /// Makes a new key the only one: what was signed before cannot be checked any more.
    pub fn rotate(&self, algorithm: JwtAlgorithm, kid: &str) {
        self.add_key(algorithm, kid);
        self.keys().retain(|key| key.active);
    }

    /// Takes a key out of the key set. Tokens are signed by the newest one left.
    pub fn remove_key(&self, kid: &str) {
        let mut keys = self.keys();
        keys.retain(|key| key.kid != kid);
        if let Some(newest) = keys.last_mut() {
            newest.active = true;
        }
    }

    /// The key set document (RFC 7517 §5).
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.keys().iter().map(|key| key.pair.jwk(&key.kid)).collect();
        json!({ "keys": keys })
    }

    /// The discovery document (OpenID Connect Discovery §3) of an issuer at `base_url`, without a trailing `/`.
    pub fn discovery(&self, base_url: &str) -> Value {
        let algorithms: Vec<&str> = self.keys().iter().map(|key| key.pair.algorithm().as_str()).collect();
        json!({
            "issuer": base_url,
            "jwks_uri": format!("{base_url}/jwks"),
            "token_endpoint": format!("{base_url}/token"),
            "introspection_endpoint": format!("{base_url}/introspect"),
            "response_types_supported": ["token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// The header of the tokens that [`Issuer::mint`] makes.
    pub fn header(&self) -> Value {
        let key = self.signing_key();
        json!({ "alg": key.pair.algorithm().as_str(), "typ": "at+jwt", "kid": key.kid })
    }

    /// A token with exactly these claims, signed by the newest key.
    pub fn mint(&self, claims: &Value) -> String {
        self.mint_with_header(&self.header(), claims)
    }

    /// A token with exactly this header and these claims, signed by the newest key, whatever the header says.
    pub fn mint_with_header(&self, header: &Value, claims: &Value) -> String {
        self.mint_text(&header.to_string(), &claims.to_string())
    }

    /// A token with exactly these texts as header and payload, which need not be JSON, signed by the newest key.
    pub fn mint_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self.signing_key().pair.sign(signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }

    /// A token that must be refused. `claims` are what it would be worth.
    pub fn mint_hostile(&self, hostile: Hostile, claims: &Value) -> String {
        hostile::mint(self, hostile, claims)
    }

    fn keys(&self) -> MutexGuard<'_, Vec<SigningKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signing_key(&self) -> SigningKey {
        self.keys().iter().rfind(|key| key.active).cloned().expect("an issuer has a key until its last is removed")
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<String> = self.keys().iter().map(|key| key.kid.clone()).collect();
        f.debug_struct("Issuer").field("kids", &kids).finish()
    }
}

impl Pair {
    fn generate(algorithm: JwtAlgorithm) -> Self {
        let rsa = |encoding| Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key"), algorithm, encoding);
        let ec = |curve, name| Self::Ec(EcdsaKeyPair::generate(curve).expect("an EC key"), algorithm, name);
        match algorithm {
            JwtAlgorithm::Rs256 => rsa(&RSA_PKCS1_SHA256),
            JwtAlgorithm::Rs384 => rsa(&RSA_PKCS1_SHA384),
            JwtAlgorithm::Rs512 => rsa(&RSA_PKCS1_SHA512),
            JwtAlgorithm::Ps256 => rsa(&RSA_PSS_SHA256),
            JwtAlgorithm::Ps384 => rsa(&RSA_PSS_SHA384),
            JwtAlgorithm::Ps512 => rsa(&RSA_PSS_SHA512),
            JwtAlgorithm::Es256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            JwtAlgorithm::Es384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            JwtAlgorithm::Es512 => ec(&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            JwtAlgorithm::EdDsa => Self::EdDsa(Ed25519KeyPair::generate().expect("an Ed25519 key")),
        }
    }

    fn algorithm(&self) -> JwtAlgorithm {
        match self {
            Self::Rsa(_, algorithm, _) | Self::Ec(_, algorithm, _) => *algorithm,
            Self::EdDsa(_) => JwtAlgorithm::EdDsa,
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(pair, _, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &SystemRandom::new(), message, &mut signature).expect("an RSA signature");
                signature
            }
            Self::Ec(pair, ..) => pair.sign(&SystemRandom::new(), message).expect("an ECDSA signature").as_ref().to_vec(),
            Self::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// The public half as a JWK (RFC 7518 §6, RFC 8037 §2).
    fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Rsa(pair, ..) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({ "kty": "RSA", "n": base64url(public.n), "e": base64url(public.e) })
            }
            Self::Ec(pair, _, curve) => {
                // 4, then both coordinates (SEC 1 §2.3.3).
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
                json!({ "kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y) })
            }
            Self::EdDsa(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref()) }),
        };
        if let Some(members) = jwk.as_object_mut() {
            members.insert("kid".to_owned(), kid.into());
            members.insert("use".to_owned(), "sig".into());
            members.insert("alg".to_owned(), self.algorithm().as_str().into());
        }
        jwk
    }

    /// The public half as a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER.
    fn public_der(&self) -> Vec<u8> {
        let der: Result<PublicKeyX509Der<'_>, _> = match self {
            Self::Rsa(pair, ..) => pair.public_key().as_der(),
            Self::Ec(pair, ..) => pair.public_key().as_der(),
            Self::EdDsa(pair) => pair.public_key().as_der(),
        };
        der.expect("a public key has an encoding").as_ref().to_vec()
    }
}

/// The SHA-256 of bytes in base64url: what `ath`, `x5t#S256` and `jkt` are written in.
pub fn sha256_base64url(bytes: &[u8]) -> String {
    base64url(digest::digest(&digest::SHA256, bytes))
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests;
