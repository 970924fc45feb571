//! The JWT-SVID (SPIFFE JWT-SVID): an authority's signing key, the public keys of a bundle, and the check of a token.

pub use crate::jwk::{AUTHORITIES_MAX, JwkError, JwtAuthority};

use crate::jwk::Algorithm;
use crate::key::KeyFailure;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use zeroize::Zeroizing;

/// LIMIT: bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// LIMIT: audiences of a token.
pub const AUDIENCES_MAX: usize = 32;
/// LIMIT: bytes of one audience: a SPIFFE ID of any length fits.
pub const AUDIENCE_BYTES_MAX: usize = 2048;

/// Why no token is signed. The caller must mend what it asked for, or the machine its random generator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtIssueRefusal {
    /// A token for nobody (SPIFFE JWT-SVID §3.2).
    #[error("a JWT-SVID needs at least one audience, and none that is empty")]
    NoAudience,
    /// Too many, or too long.
    #[error("a JWT-SVID has at most {AUDIENCES_MAX} audiences of {AUDIENCE_BYTES_MAX} bytes")]
    TooMany,
    /// A life of less than a second.
    #[error("a JWT-SVID lives for at least a second")]
    NoLifetime,
    /// No signature could be made.
    #[error("{0}")]
    Key(#[from] KeyFailure),
}

/// Why a token is not believed. Whoever sent it, or its issuer, must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtRefusal {
    /// It is longer than the bound.
    #[error("the token has {bytes} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not a JWT in the compact form (SPIFFE JWT-SVID §2).
    #[error("the token is not a JWT in the compact form: {part}")]
    Malformed {
        /// Which part cannot be read.
        part: &'static str,
    },
    /// The algorithm is not one of SPIFFE JWT-SVID §2.1.
    #[error("the algorithm is not one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 and PS512")]
    Algorithm,
    /// `typ` is there and says something else (SPIFFE JWT-SVID §2.3).
    #[error("`typ` is neither `JWT` nor `JOSE`")]
    Type,
    /// A header that no JWT-SVID has (SPIFFE JWT-SVID §2).
    #[error("its header has more than `alg`, `kid` and `typ`")]
    Header,
    /// `sub` is not the SPIFFE ID of a workload (SPIFFE JWT-SVID §3.1).
    #[error("`sub` is not the SPIFFE ID of a workload")]
    Subject,
    /// No bundle of the subject's own trust domain has this key, or any.
    #[error("no authority in the trust bundle of `{trust_domain}` has the key that it is signed with")]
    Untrusted {
        /// The subject's trust domain.
        trust_domain: TrustDomain,
    },
    /// The key is for another algorithm.
    #[error("the key that it is signed with is not for its algorithm")]
    KeyAlgorithm,
    /// The signature is wrong.
    #[error("the signature does not match")]
    Signature,
    /// It is for somebody else (SPIFFE JWT-SVID §3.2).
    #[error("it is not for the audience `{expected}`")]
    Audience {
        /// The audience that was asked about.
        expected: String,
    },
    /// It has ended (SPIFFE JWT-SVID §3.3).
    #[error("it expired at {at}, it is {now}")]
    Expired {
        /// Its `exp`.
        at: Timestamp,
        /// The moment of the check.
        now: Timestamp,
    },
    /// `nbf` lies in the future (RFC 7519 §4.1.5).
    #[error("it is valid from {at}, it is {now}")]
    NotYetValid {
        /// Its `nbf`.
        at: Timestamp,
        /// The moment of the check.
        now: Timestamp,
    },
}

/// An authority's private key for JWT-SVIDs: ECDSA on P-256, `ES256`. `Debug` shows nothing of it.
pub struct JwtKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    key_id: String,
}

/// A token that was signed.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedJwt {
    /// The compact form.
    pub token: String,
    /// Its `exp`.
    pub expires_at: Timestamp,
}

/// A token that kept every rule at the moment of its check. Evidence: only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct JwtSvid {
    id: SpiffeId,
    audiences: Vec<String>,
    expires_at: Timestamp,
    claims: Vec<u8>,
}

/// The JWT authorities by trust domain. Immutable; a change is a new value.
#[derive(Clone, Debug, Default)]
pub struct JwtBundles {
    domains: BTreeMap<TrustDomain, Vec<JwtAuthority>>,
}

impl JwtKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// - [`KeyFailure::Random`] if the generator fails.
    pub fn generate() -> Result<Self, KeyFailure> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| KeyFailure::Random)?;
        let document = pair.to_pkcs8v1().map_err(|_| KeyFailure::Random)?;
        Ok(Self::of(pair, Zeroizing::new(document.as_ref().to_vec())))
    }

    /// Reads a key as [`to_pkcs8_der`](Self::to_pkcs8_der) writes it (RFC 5208, DER).
    ///
    /// # Errors
    /// - [`KeyFailure::Rejected`] if it is anything else.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyFailure> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| KeyFailure::Rejected)?;
        Ok(Self::of(pair, Zeroizing::new(der.to_vec())))
    }

    fn of(pair: EcdsaKeyPair, pkcs8: Zeroizing<Vec<u8>>) -> Self {
        let key_id = key_id(pair.public_key().as_ref());
        Self { pair, pkcs8, key_id }
    }

    /// The key as a PKCS#8 document (RFC 5208, DER), in memory that is overwritten when it is dropped.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// Its public half, as it belongs into the bundle.
    pub fn public(&self) -> JwtAuthority {
        let point = self.pair.public_key().as_ref().to_vec();
        JwtAuthority::p256(self.key_id.clone(), point)
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssuedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedJwt").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct HeaderOut<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

#[derive(Serialize)]
struct ClaimsOut<'a> {
    sub: &'a str,
    aud: &'a [String],
    exp: u64,
    iat: u64,
}

/// Signs a JWT-SVID for `id` that is good for these audiences and for so long from now, in whole seconds.
///
/// # Errors
/// - [`JwtIssueRefusal`].
pub fn issue(
    key: &JwtKey,
    id: &SpiffeId,
    audiences: &[String],
    lifetime: Duration,
    now: Timestamp,
) -> Result<IssuedJwt, JwtIssueRefusal> {
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return Err(JwtIssueRefusal::NoAudience);
    }
    if audiences.len() > AUDIENCES_MAX || audiences.iter().any(|audience| audience.len() > AUDIENCE_BYTES_MAX) {
        return Err(JwtIssueRefusal::TooMany);
    }
    if lifetime < Duration::from_secs(1) {
        return Err(JwtIssueRefusal::NoLifetime);
    }
    let expires_at = Timestamp::from_seconds(now.plus(lifetime).seconds());
    let header = HeaderOut { alg: "ES256", kid: &key.key_id, typ: "JWT" };
    let claims = ClaimsOut { sub: id.as_str(), aud: audiences, exp: expires_at.seconds(), iat: now.seconds() };
    let part =
        |json: serde_json::Result<Vec<u8>>| json.map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(|_| KeyFailure::Encoding);
    let signed = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(&claims))?);
    let signature = key.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| KeyFailure::Sign)?;
    Ok(IssuedJwt { token: format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)), expires_at })
}

#[derive(Deserialize)]
struct HeaderIn {
    alg: String,
    #[serde(default, deserialize_with = "crate::present")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "crate::present")]
    typ: Option<String>,
    #[serde(flatten)]
    more: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct ClaimsIn {
    sub: String,
    aud: Audiences,
    exp: f64,
    #[serde(default, deserialize_with = "crate::present")]
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

/// Checks a token: form, algorithm, signature by a key of its subject's own trust domain, audience and time, without an allowance
/// for skewed clocks.
///
/// # Errors
/// - [`JwtRefusal`].
///
/// Cost: one signature check; without a `kid`, one per key of the trust domain that is for the algorithm.
pub fn verify(token: &str, audience: &str, bundles: &JwtBundles, now: Timestamp) -> Result<JwtSvid, JwtRefusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(JwtRefusal::TooLong { bytes: token.len() });
    }
    let malformed = |part| JwtRefusal::Malformed { part };
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(malformed("it has not three parts"));
    };
    let decoded = |text: &str, part| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed(part));
    // A member that stands twice is an error of the reader.
    let read: HeaderIn = serde_json::from_slice(&decoded(header, "header")?).map_err(|_| malformed("header"))?;
    let algorithm = Algorithm::named(&read.alg).ok_or(JwtRefusal::Algorithm)?;
    // SPIFFE JWT-SVID §2: `crit` among them, which would change what the others mean (RFC 7515 §4.1.11).
    if !read.more.is_empty() {
        return Err(JwtRefusal::Header);
    }
    if read.typ.is_some_and(|typ| typ != "JWT" && typ != "JOSE") {
        return Err(JwtRefusal::Type);
    }
    let claims = decoded(payload, "payload")?;
    let said: ClaimsIn = serde_json::from_slice(&claims).map_err(|_| malformed("payload"))?;
    let id = SpiffeId::parse(&said.sub).map_err(|_| JwtRefusal::Subject)?;
    // INVARIANT: a subject is vouched for by its own trust domain's keys only, whatever key ids the others use.
    let keys = bundles.domains.get(id.trust_domain()).map(Vec::as_slice).unwrap_or_default();
    let signed = token.get(..header.len() + 1 + payload.len()).unwrap_or_default();
    let signature = decoded(signature, "signature")?;
    let mut refusal = Some(JwtRefusal::Untrusted { trust_domain: id.trust_domain().clone() });
    // SPIFFE JWT-SVID §2.2: without a `kid` any of them may be meant, and two may have the same (RFC 7517 §4.5).
    for key in keys.iter().filter(|key| read.kid.as_deref().is_none_or(|id| key.key_id() == id)) {
        match key.check(algorithm, signed.as_bytes(), &signature) {
            Err(JwtRefusal::KeyAlgorithm) if refusal == Some(JwtRefusal::Signature) => {}
            outcome => refusal = outcome.err(),
        }
        if refusal.is_none() {
            break;
        }
    }
    refusal.map_or(Ok(()), Err)?;
    // Only from here on the payload is what the authority said.
    let audiences = match said.aud {
        Audiences::One(one) => vec![one],
        Audiences::Many(many) => many,
    };
    if !audiences.iter().any(|each| each == audience) {
        return Err(JwtRefusal::Audience { expected: audience.to_owned() });
    }
    let expires_at = moment(said.exp).ok_or(malformed("exp"))?;
    if now >= expires_at {
        return Err(JwtRefusal::Expired { at: expires_at, now });
    }
    if let Some(at) = said.nbf.map(|nbf| moment(nbf).ok_or(malformed("nbf"))).transpose()?
        && now < at
    {
        return Err(JwtRefusal::NotYetValid { at, now });
    }
    Ok(JwtSvid { id, audiences, expires_at, claims })
}

impl JwtSvid {
    /// The workload.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whom it is for.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Its `exp`.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Every claim, a JSON object as it was signed.
    pub fn claims_json(&self) -> &[u8] {
        &self.claims
    }
}

impl JwtBundles {
    /// From the bundles of a snapshot. A trust domain without JWT authorities vouches for no token.
    ///
    /// # Errors
    /// - [`JwkError`] of the first key that cannot be one.
    pub fn from_model(bundles: &[TrustBundle]) -> Result<Self, JwkError> {
        let mut domains = BTreeMap::new();
        for bundle in bundles {
            if bundle.jwt_authorities.len() > AUTHORITIES_MAX {
                return Err(JwkError::TooMany);
            }
            let keys = bundle.jwt_authorities.iter().map(|jwk| JwtAuthority::from_jwk_json(jwk)).collect::<Result<_, _>>()?;
            domains.insert(bundle.trust_domain.clone(), keys);
        }
        Ok(Self { domains })
    }
}

/// A key id that says which key it is and nothing else.
fn key_id(public_key: &[u8]) -> String {
    let digest = crate::sha256(public_key);
    crate::hex(digest.get(..16).unwrap_or_default())
}

/// A NumericDate (RFC 7519 §2), which may have a fraction.
fn moment(seconds: f64) -> Option<Timestamp> {
    // Beyond the year 9999 it is no date that anybody meant.
    (0.0..=253_402_300_799.0).contains(&seconds).then(|| Timestamp::from_millis(0).plus(Duration::from_secs_f64(seconds)))
}
