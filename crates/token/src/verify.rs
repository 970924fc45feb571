//! The order in which a token is checked, and the evidence that it was.

use crate::claims;
use crate::header::{Header, Parts};
use crate::key_set::KeySets;
use crate::refusal::Refusal;
use aws_lc_rs::digest;
use model::snapshot::TokenIssuer;
use model::{Limit, Limits, Timestamp, User};
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
/// - `issuers`: whose tokens are accepted; the first with the token's `iss` counts
/// - `keys`: what was fetched from them
/// - `now`: wall clock, UTC
///
/// Costs one signature check, tens to hundreds of microseconds; see [`crate::TokenCache`]. Does not block.
///
/// Sources: RFC 7515 §5.2, RFC 7519 §7.2, RFC 8725 §3, RFC 9068 §4.
///
/// # Errors
/// - [`Refusal`], the first in this function's order; [`Refusal::KeyUnknown`] and [`Refusal::IssuerUnavailable`] may be mended
///   by a fetch of that issuer's keys.
pub fn verify(
    token: &str,
    issuers: &[TokenIssuer],
    keys: &KeySets,
    limits: &Limits,
    now: Timestamp,
) -> Result<VerifiedClaims, Refusal> {
    let limit = limits.size(Limit::TokenBytes);
    if token.len() > limit {
        return Err(Refusal::TooLong { bytes: token.len(), limit });
    }
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    let issuer = claims::issuer(&parts.payload, issuers)?;
    if !issuer.algorithms.contains(&header.algorithm) {
        return Err(Refusal::AlgorithmNotAllowed { issuer: issuer.name.clone(), algorithm: header.algorithm });
    }
    let unavailable = || Refusal::IssuerUnavailable { issuer: issuer.name.clone() };
    // INVARIANT: an issuer's tokens are checked by its own key set only, whatever key ids the others use.
    let key_set = keys.get(&issuer.name).ok_or_else(unavailable)?;
    let believed_until = key_set.believed_until(limits);
    if now > believed_until {
        return Err(unavailable());
    }
    let key = key_set.find(header.key_id, header.algorithm, &issuer.name)?;
    key.check(parts.signed, &parts.signature).map_err(|_| Refusal::Signature { issuer: issuer.name.clone() })?;
    // Only from here on the payload is what the issuer said.
    let expires_at = claims::check(&parts.payload, issuer, limits, now)?;
    let user = claims::user(&parts.payload, issuer)?;
    Ok(evidence(user, expires_at, believed_until, token))
}

/// What was checked, as the evidence that it was; `believed_until`: when those who vouch for it are too old.
pub(crate) fn evidence(user: User, expires_at: Timestamp, believed_until: Timestamp, token: &str) -> VerifiedClaims {
    let remember_until = expires_at.min(believed_until);
    VerifiedClaims(Arc::new(Verified { user: Arc::new(user), expires_at, remember_until, digest: digest_of(token) }))
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
