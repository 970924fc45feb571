//! An issuer's public keys (RFC 7517, RFC 7518 §6, RFC 8037), each pinned to its one algorithm when it is read.

use crate::header;
use crate::json::{self, Json, JsonFault, Object};
use crate::jwks::KeySetError;
use crate::refusal::Refusal;
use crate::verify::digest_of;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, EcdsaVerificationAlgorithm,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::ids::printable;
use model::snapshot::{JwtAlgorithm, KeySource, TokenIssuer};
use model::{Limit, Limits, Timestamp};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// LIMIT: bytes of the modulus of an RSA key by which DPoP proofs are signed: 4096 bits.
const PROOF_MODULUS_BYTES_MAX: usize = 512;
/// LIMIT: bytes of its exponent: 65537 has three.
const PROOF_EXPONENT_BYTES_MAX: usize = 3;

/// The keys by which one issuer's tokens are checked. Never empty, never symmetric.
pub struct KeySet {
    keys: Vec<VerificationKey>,
    /// Milliseconds.
    fetched_at: AtomicU64,
    ignored: usize,
    digest: [u8; 32],
    /// Whether it is believed only so long after it came.
    ages: bool,
}

/// One public key, parsed and checked once.
pub(crate) struct VerificationKey {
    id: Option<String>,
    algorithm: JwtAlgorithm,
    key: ParsedPublicKey,
}

impl KeySet {
    /// Reads a JWK set.
    ///
    /// - `json`: the document as fetched
    /// - `issuer`: whose keys they are; its list of algorithms decides which can be used
    /// - `fetched_at`: when the document came
    ///
    /// A key that cannot be used is left out and counted: symmetric (`oct`), not for signatures (`use`, `key_ops`), for an
    /// algorithm that the issuer may not use, malformed or too weak, or with its private half published.
    ///
    /// # Errors
    /// - [`KeySetError::TooLarge`] beyond limit `jwksBytes`.
    /// - [`KeySetError::NotJson`], [`KeySetError::NotKeySet`] if it is not a JWK set, or has a key twice in an object.
    /// - [`KeySetError::KeyIdTwice`] if two usable keys cannot be told apart.
    /// - [`KeySetError::NoUsableKey`] if none is left.
    pub fn parse(json: &[u8], issuer: &TokenIssuer, fetched_at: Timestamp, limits: &Limits) -> Result<Self, KeySetError> {
        let document = document(json, limits)?;
        let Some(Json::List(entries)) = document.get("keys") else {
            return Err(KeySetError::NotKeySet);
        };
        let mut keys: Vec<VerificationKey> = Vec::new();
        for key in entries.iter().flat_map(|entry| usable(entry, issuer)) {
            let same = |other: &VerificationKey| other.id == key.id && other.algorithm == key.algorithm;
            // RFC 7517 §4.5 wants ids distinct: with two keys of one id, which of them a token means is anybody's guess.
            if let Some(id) = key.id.as_deref().filter(|_| keys.iter().any(same)) {
                return Err(KeySetError::KeyIdTwice { id: printable(id) });
            }
            keys.push(key);
        }
        let ignored = entries.iter().filter(|entry| usable(entry, issuer).is_empty()).count();
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey { ignored });
        }
        let ages = !matches!(issuer.keys, KeySource::Inline(_) | KeySource::JwtSvid(_));
        Ok(Self { keys, fetched_at: AtomicU64::new(fetched_at.millis()), ignored, digest: digest_of(json), ages })
    }

    /// The keys of a trust bundle, by which JWT-SVIDs are checked (SPIFFE JWT-SVID §4).
    ///
    /// - `authorities`: each a JSON Web Key with a `kid`
    ///
    /// # Errors
    /// - as of [`KeySet::parse`].
    pub fn of_bundle(
        authorities: &[Vec<u8>],
        issuer: &TokenIssuer,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Self, KeySetError> {
        let document = [b"{\"keys\":[".as_slice(), &authorities.join(&b','), b"]}"].concat();
        Self::parse(&document, issuer, now, limits)
    }

    /// The usable keys in the document's order: id, if it has one, and algorithm.
    pub fn keys(&self) -> impl Iterator<Item = (Option<&str>, JwtAlgorithm)> {
        self.keys.iter().map(|key| (key.id.as_deref(), key.algorithm))
    }

    /// Whether another set was read from the very same bytes.
    pub fn is_same_document(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Notes that the issuer still says the same.
    pub fn seen_again(&self, now: Timestamp) {
        self.fetched_at.fetch_max(now.millis(), Ordering::AcqRel);
    }

    /// The moment after which it is no longer believed: limit `jwksMaxAgeMs` after it last came. What the configuration itself holds is
    /// believed for as long as the configuration.
    pub fn believed_until(&self, limits: &Limits) -> Timestamp {
        if self.ages { self.fetched_at().plus(limits.duration(Limit::JwksMaxAgeMs)) } else { Timestamp::from_millis(u64::MAX) }
    }

    /// The ids of the usable keys, in the document's order. A key without an id is not among them.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(|key| key.id.as_deref())
    }

    /// When the document last came.
    pub fn fetched_at(&self) -> Timestamp {
        Timestamp::from_millis(self.fetched_at.load(Ordering::Acquire))
    }

    /// How many keys of the document cannot be used.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The one key that a token means.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: JwtAlgorithm, issuer: &str) -> Result<&VerificationKey, Refusal> {
        let unknown = || Refusal::KeyUnknown { issuer: issuer.to_owned() };
        let mut named = self.keys.iter().filter(|key| id.is_none() || key.id.as_deref() == id).peekable();
        if named.peek().is_none() {
            return Err(unknown());
        }
        let fitting: Vec<&VerificationKey> = named.filter(|key| key.algorithm == algorithm).collect();
        match (fitting.as_slice(), id) {
            ([one], _) => Ok(one),
            ([], Some(_)) => Err(Refusal::KeyAlgorithm { issuer: issuer.to_owned(), algorithm }),
            ([], None) => Err(unknown()),
            (several, _) => Err(Refusal::KeyAmbiguous { issuer: issuer.to_owned(), fitting: several.len() }),
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("keys", &self.keys.len())
            .field("fetched_at", &self.fetched_at())
            .field("ignored", &self.ignored)
            .finish()
    }
}

impl VerificationKey {
    /// Whether `signature` is this key's over `signed`. An ECDSA signature is the two numbers in full length (RFC 7518 §3.4),
    /// never DER.
    pub(crate) fn check(&self, signed: &str, signature: &[u8]) -> Result<(), Unspecified> {
        self.key.verify_sig(signed.as_bytes(), signature)
    }
}

/// Parses a bounded JSON object that an issuer sent.
pub(crate) fn document(json: &[u8], limits: &Limits) -> Result<Object, KeySetError> {
    let limit = limits.size(Limit::JwksBytes);
    if json.len() > limit {
        return Err(KeySetError::TooLarge { bytes: json.len(), limit });
    }
    match json::parse(json) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(KeySetError::NotJson { rule: "it is not an object" }),
        Err(JsonFault::Syntax) => Err(KeySetError::NotJson { rule: "it does not parse" }),
        Err(JsonFault::DuplicateKey) => Err(KeySetError::NotJson { rule: "a key stands twice in an object" }),
    }
}

/// The keys of one JWK by which the issuer's tokens can be checked: one, or none; of a trust bundle one for each algorithm that fits, since
/// a bundle does not say which (SPIFFE JWT-SVID §4).
fn usable(entry: &Json, issuer: &TokenIssuer) -> Vec<VerificationKey> {
    let Json::Object(jwk) = entry else { return Vec::new() };
    let is_bundle = matches!(issuer.keys, KeySource::JwtSvid(_));
    let Some((id, declared)) = described(jwk, is_bundle) else { return Vec::new() };
    let text = |name: &str| jwk.get(name).and_then(Json::text);
    let Some(kty) = text("kty") else { return Vec::new() };
    let kind = (kty, text("crv"));
    // RFC 8725 §3.1: one algorithm per key. What its kind leaves open, its `alg` says, or else the first of the issuer's list.
    let may_be = |algorithm: &JwtAlgorithm| fits(kind, *algorithm) && declared.is_none_or(|said| said == *algorithm);
    let fitting = issuer.algorithms.iter().copied().filter(may_be).take(if is_bundle { JwtAlgorithm::ALL.len() } else { 1 });
    let key = |algorithm| Some(VerificationKey { id: id.clone(), algorithm, key: public_key(jwk, algorithm)? });
    fitting.filter_map(key).collect()
}

/// The id of a key for signatures, and the algorithm that it declares. `None` if it is for something else, or says so unclearly.
fn described(jwk: &Object, is_bundle: bool) -> Option<(Option<String>, Option<JwtAlgorithm>)> {
    let is_for_signatures = match jwk.get("use") {
        None => true,
        // SPIFFE Trust Domain and Bundle §4.2.2.
        Some(word) if is_bundle => word.text() == Some("jwt-svid"),
        Some(word) => word.text() == Some("sig"),
    };
    let may_verify = match jwk.get("key_ops") {
        None => true,
        Some(operations) => operations.texts().is_some_and(|words| words.contains(&"verify")),
    };
    // A private key that everybody can fetch vouches for nobody.
    if !is_for_signatures || !may_verify || jwk.contains_key("d") {
        return None;
    }
    let declared = match jwk.get("alg") {
        None => None,
        Some(word) => Some(word.text().and_then(header::algorithm)?),
    };
    let id = match jwk.get("kid") {
        None => None,
        Some(kid) => Some(kid.text()?.to_owned()),
    };
    Some((id, declared))
}

/// The key that a DPoP proof brings along (RFC 9449 §4.2), for this algorithm.
pub(crate) fn proof_key(jwk: &Object, algorithm: JwtAlgorithm) -> Option<VerificationKey> {
    let text = |name: &str| jwk.get(name).and_then(Json::text);
    // Its caller chose it: one of 8192 bits with a long exponent takes a hundred times as long to check as one of 2048 with the usual.
    let is_short = |name, bytes_max| number(jwk, name).is_none_or(|number| number.len() <= bytes_max);
    if !is_short("n", PROOF_MODULUS_BYTES_MAX) || !is_short("e", PROOF_EXPONENT_BYTES_MAX) {
        return None;
    }
    let key = fits((text("kty")?, text("crv")), algorithm).then(|| public_key(jwk, algorithm))??;
    Some(VerificationKey { id: None, algorithm, key })
}

/// A parameter in base64url.
fn number(jwk: &Object, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jwk.get(name)?.text()?).ok()
}

/// Whether a key of this type and curve is for this algorithm (RFC 7518 §3.1, §6.2.1.1; RFC 8037 §3.1).
fn fits((kty, crv): (&str, Option<&str>), algorithm: JwtAlgorithm) -> bool {
    use JwtAlgorithm::{EdDsa, Es256, Es384, Es512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    match algorithm {
        Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512 => kty == "RSA",
        Es256 => kty == "EC" && crv == Some("P-256"),
        Es384 => kty == "EC" && crv == Some("P-384"),
        Es512 => kty == "EC" && crv == Some("P-521"),
        EdDsa => kty == "OKP" && crv == Some("Ed25519"),
    }
}

/// The public key of a JWK as one for this algorithm; `None` unless its type, curve and strength fit.
fn public_key(jwk: &Object, algorithm: JwtAlgorithm) -> Option<ParsedPublicKey> {
    let number = |name| number(jwk, name);
    match algorithm {
        JwtAlgorithm::Rs256 => rsa(&number("n")?, &number("e")?, &RSA_PKCS1_2048_8192_SHA256),
        JwtAlgorithm::Rs384 => rsa(&number("n")?, &number("e")?, &RSA_PKCS1_2048_8192_SHA384),
        JwtAlgorithm::Rs512 => rsa(&number("n")?, &number("e")?, &RSA_PKCS1_2048_8192_SHA512),
        JwtAlgorithm::Ps256 => rsa(&number("n")?, &number("e")?, &RSA_PSS_2048_8192_SHA256),
        JwtAlgorithm::Ps384 => rsa(&number("n")?, &number("e")?, &RSA_PSS_2048_8192_SHA384),
        JwtAlgorithm::Ps512 => rsa(&number("n")?, &number("e")?, &RSA_PSS_2048_8192_SHA512),
        JwtAlgorithm::Es256 => elliptic(&number("x")?, &number("y")?, 32, &ECDSA_P256_SHA256_FIXED),
        JwtAlgorithm::Es384 => elliptic(&number("x")?, &number("y")?, 48, &ECDSA_P384_SHA384_FIXED),
        JwtAlgorithm::Es512 => elliptic(&number("x")?, &number("y")?, 66, &ECDSA_P521_SHA512_FIXED),
        JwtAlgorithm::EdDsa => ed25519(&number("x")?),
    }
}

/// RFC 7518 §3.3 demands 2048 bits or more; above 8192 a check would cost an attacker's issuer too little and us too much.
fn rsa(n: &[u8], e: &[u8], parameters: &'static RsaParameters) -> Option<ParsedPublicKey> {
    let bits = n.len().saturating_mul(8).saturating_sub(usize::try_from(n.first()?.leading_zeros()).ok()?);
    let is_odd = e.last().is_some_and(|last| last % 2 == 1);
    if !(2048..=8192).contains(&bits) || !is_odd || e == [1] || e.len() > 4 {
        return None;
    }
    RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters).ok()
}

/// RFC 7518 §6.2.1: both coordinates in full length; the library checks that the point is on the curve.
fn elliptic(x: &[u8], y: &[u8], bytes: usize, curve: &'static EcdsaVerificationAlgorithm) -> Option<ParsedPublicKey> {
    if x.len() != bytes || y.len() != bytes {
        return None;
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(curve, point).ok()
}

fn ed25519(x: &[u8]) -> Option<ParsedPublicKey> {
    if x.len() != 32 {
        return None;
    }
    ParsedPublicKey::new(&ED25519, x).ok()
}

/// The key sets of all issuers, by the `TokenIssuer`'s name. Immutable: a change is a new value. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KeySets {
    sets: BTreeMap<String, Arc<KeySet>>,
}

impl KeySets {
    /// These, with one issuer's replaced or added.
    #[must_use]
    pub fn with(&self, issuer: &str, keys: Arc<KeySet>) -> Self {
        let mut sets = self.sets.clone();
        sets.insert(issuer.to_owned(), keys);
        Self { sets }
    }

    /// One issuer's.
    pub fn get(&self, issuer: &str) -> Option<&Arc<KeySet>> {
        self.sets.get(issuer)
    }

    /// These, without the issuers whose name `keep` does not accept.
    #[must_use]
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self {
            sets: self.sets.iter().filter(|(name, _)| keep(name)).map(|(name, set)| (name.clone(), Arc::clone(set))).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
