//! The order in which a token is checked, and the evidence that it was.

use crate::claims::{self, Said};
use crate::header::{Header, Parts, TYPE_RULE, Type};
use crate::json::{Json, Object};
use crate::key_set::{KeySet, KeySets, VerificationKey};
use crate::refusal::Refusal;
use crate::require;
use aws_lc_rs::digest;
use model::snapshot::{JwtAlgorithm, KeySource, TokenIssuer};
use model::token::SenderConstraint;
use model::{ClaimPath, Limit, Limits, Timestamp, User};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Evidence that a token was verified: only [`verify`] and [`crate::introspection::introspected`] make it. Holds no token. Cheap to clone.
#[derive(Clone)]
pub struct VerifiedClaims(Arc<Verified>);

struct Verified {
    user: Arc<User>,
    expires_at: Timestamp,
    remember_until: Timestamp,
    digest: [u8; 32],
    said: Said,
    sender: SenderConstraint,
    wants_nonce: bool,
}

/// What tokens are verified by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Whose tokens are accepted; the first with the token's `iss` counts.
    pub issuers: &'a [TokenIssuer],
    /// What was fetched from them.
    pub keys: &'a KeySets,
    /// The bounds in force.
    pub limits: &'a Limits,
    /// Headers, and the claims that they are to tell the application.
    pub told: &'a BTreeMap<String, ClaimPath>,
}

impl VerifiedClaims {
    /// The user that the token is about.
    pub fn user(&self) -> &Arc<User> {
        &self.0.user
    }

    /// The name of the `TokenIssuer` whose key signed the token.
    pub fn issuer(&self) -> &str {
        &self.0.user.issuer
    }

    /// The token's `exp`, clock skew not counted.
    pub fn expires_at(&self) -> Timestamp {
        self.0.expires_at
    }

    /// What the token says of itself.
    pub(crate) fn said(&self) -> &Said {
        &self.0.said
    }

    /// By what its issuer's configuration wants the caller to show that the token is its own.
    pub(crate) fn sender(&self) -> SenderConstraint {
        self.0.sender
    }

    /// Whether its issuer's configuration wants nonces in proofs.
    pub(crate) fn wants_nonce(&self) -> bool {
        self.0.wants_nonce
    }

    /// Headers that tell the application of claims, with values that can stand in a head.
    pub fn told(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.said.told.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The SHA-256 of the token as it was sent.
    pub fn digest(&self) -> [u8; 32] {
        self.0.digest
    }

    /// The moment from which these claims must be verified anew: `exp`, or when the key set that verified them is too old.
    pub(crate) fn remember_until(&self) -> Timestamp {
        self.0.remember_until
    }
}

impl fmt::Debug for VerifiedClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedClaims")
            .field("issuer", &self.issuer())
            .field("expires_at", &self.0.expires_at)
            .finish_non_exhaustive()
    }
}

/// Verifies a token: who made it, whether it is for us, now, and what it says of the user.
///
/// - `token`: what [`crate::bearer`] found
/// - `rules`: whose tokens are accepted, by which keys
/// - `now`: wall clock, UTC
///
/// Costs one signature check, tens to hundreds of microseconds; see [`crate::TokenCache`]. Does not block.
///
/// Sources: RFC 7515 §5.2, RFC 7519 §7.2, RFC 8725 §3, RFC 9068 §4.
///
/// # Errors
/// - [`Refusal`], the first in this function's order; [`Refusal::KeyUnknown`] and [`Refusal::IssuerUnavailable`] may be mended
///   by a fetch of that issuer's keys.
pub fn verify(token: &str, rules: &Rules<'_>, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
    is_short_enough(token, rules.limits)?;
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    let issuer = claims::issuer(&parts.payload, rules.issuers)?;
    is_header_allowed(&parts.header, header.typ, issuer)?;
    is_algorithm_allowed(header.algorithm, issuer)?;
    let (key_set, believed_until) = believed_keys(issuer, rules, now)?;
    let key = key_set.find(header.key_id, header.algorithm, &issuer.name)?;
    is_signed(&parts, key, issuer)?;
    // Only from here on the payload is what the issuer said.
    if issuer.require.at_jwt {
        require::profile(&parts.payload)?;
    }
    let judged = claims::judge(&parts.payload, issuer, rules, now)?;
    Ok(evidence(judged, issuer, believed_until, token))
}

/// Whether a token is within limit `tokenBytes`.
pub(crate) fn is_short_enough(token: &str, limits: &Limits) -> Result<(), Refusal> {
    let (bytes, limit) = (token.len(), limits.size(Limit::TokenBytes));
    if bytes > limit { Err(Refusal::TooLong { bytes, limit }) } else { Ok(()) }
}

/// Whether an issuer's tokens may have this header.
pub(crate) fn is_header_allowed(header: &Object, typ: Type, issuer: &TokenIssuer) -> Result<(), Refusal> {
    let malformed = |rule| Err(Refusal::Malformed { rule });
    match (&issuer.keys, typ) {
        (KeySource::JwtSvid(_), _) => is_jwt_svid_header(header),
        (_, Type::Jose) => malformed(TYPE_RULE),
        // RFC 9068 §4.
        (_, Type::Unsaid | Type::Jwt) if issuer.require.at_jwt => {
            malformed("its `typ` is not at+jwt, which its issuer's profile demands")
        }
        (_, Type::Unsaid | Type::Jwt | Type::AtJwt) => Ok(()),
    }
}

/// SPIFFE JWT-SVID §2, §2.3: no member but these three, and of types these two, as they are written.
fn is_jwt_svid_header(header: &Object) -> Result<(), Refusal> {
    if header.keys().any(|name| !["alg", "kid", "typ"].contains(&name.as_str())) {
        return Err(Refusal::Malformed { rule: "its header has more than `alg`, `kid` and `typ`, as no JWT-SVID's has" });
    }
    match header.get("typ").map(Json::text) {
        None | Some(Some("JWT" | "JOSE")) => Ok(()),
        Some(_) => Err(Refusal::Malformed { rule: "its `typ` is neither JWT nor JOSE, as a JWT-SVID's is" }),
    }
}

/// Whether an issuer may use this algorithm. No JWT-SVID is signed by EdDSA (SPIFFE JWT-SVID §2.1).
pub(crate) fn is_algorithm_allowed(algorithm: JwtAlgorithm, issuer: &TokenIssuer) -> Result<(), Refusal> {
    let is_jwt_svid = matches!(issuer.keys, KeySource::JwtSvid(_));
    let is_allowed = issuer.algorithms.contains(&algorithm) && !(is_jwt_svid && algorithm == JwtAlgorithm::EdDsa);
    if is_allowed { Ok(()) } else { Err(Refusal::AlgorithmNotAllowed { issuer: issuer.name.clone(), algorithm }) }
}

/// The issuer's keys, and until when they are believed.
pub(crate) fn believed_keys<'r>(
    issuer: &TokenIssuer,
    rules: &Rules<'r>,
    now: Timestamp,
) -> Result<(&'r KeySet, Timestamp), Refusal> {
    let unavailable = || Refusal::IssuerUnavailable { issuer: issuer.name.clone() };
    // INVARIANT: an issuer's tokens are checked by its own key set only, whatever key ids the others use.
    let key_set = rules.keys.get(&issuer.name).ok_or_else(unavailable)?;
    let believed_until = key_set.believed_until(rules.limits);
    if now > believed_until { Err(unavailable()) } else { Ok((key_set, believed_until)) }
}

/// Whether this key of the issuer signed what the token says.
pub(crate) fn is_signed(parts: &Parts<'_>, key: &VerificationKey, issuer: &TokenIssuer) -> Result<(), Refusal> {
    key.check(parts.signed, &parts.signature).map_err(|_| Refusal::Signature { issuer: issuer.name.clone() })
}

/// What was judged, as the evidence that it was; `believed_until`: when those who vouch for it are too old.
pub(crate) fn evidence(judged: claims::Judged, issuer: &TokenIssuer, believed_until: Timestamp, token: &str) -> VerifiedClaims {
    let claims::Judged { user, said, expires_at, holds_until } = judged;
    VerifiedClaims(Arc::new(Verified {
        user: Arc::new(user),
        expires_at,
        remember_until: holds_until.min(believed_until),
        digest: digest_of(token),
        said,
        sender: issuer.require.sender,
        wants_nonce: issuer.require.dpop_nonce,
    }))
}

/// What a token is remembered by: its SHA-256.
pub fn digest_of(token: impl AsRef<[u8]>) -> [u8; 32] {
    let mut bytes = [0; 32];
    let digest = digest::digest(&digest::SHA256, token.as_ref());
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    bytes
}

#[cfg(test)]
mod tests;
