//! Whether a token is the caller's own: bound to its certificate (RFC 8705 §3) or to a key that it proves to have (RFC 9449).

use crate::dpop::{self, Asked};
use crate::places::{Presented, Scheme};
use crate::refusal::Refusal;
use crate::replay::Proofs;
use crate::verify::VerifiedClaims;
use model::token::SenderConstraint;
use model::{Limits, Timestamp};
use std::fmt::Write;

/// Who sent a token, and with what.
#[derive(Debug)]
pub struct Caller<'a, P> {
    /// The SHA-256 of the certificate of its mutual TLS, lower-case hexadecimal.
    pub certificate: Option<&'a str>,
    /// The values of its `DPoP` lines.
    pub proofs: P,
    /// What it asks.
    pub asked: Asked<'a>,
}

/// What the answer must tell the caller.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Nonces {
    /// The nonce for its next proofs, where that of this one will soon be too old.
    pub next: Option<String>,
}

/// Checks that whoever sent a token may use it, on each request. Costs nothing for a bearer token, a signature check for a proof.
///
/// A token that says it is bound is held to that whatever the configuration says: a bound token is never a bearer token (RFC 9449 §7.1).
///
/// # Errors
/// - [`Refusal::NotHolder`], [`Refusal::Proof`], [`Refusal::ProofNonce`], [`Refusal::ProofsFull`].
pub fn held<'p>(
    claims: &VerifiedClaims,
    presented: &Presented<'_>,
    caller: Caller<'_, impl Iterator<Item = &'p [u8]>>,
    known: &Proofs,
    limits: &Limits,
    now: Timestamp,
) -> Result<Nonces, Refusal> {
    let said = claims.said();
    is_bound(claims.sender(), said.certificate.is_some(), said.key.is_some())?;
    if let Some(certificate) = &said.certificate {
        is_certificate(certificate, caller.certificate)?;
    }
    match (&said.key, presented.scheme) {
        (None, Scheme::Bearer) => Ok(Nonces::default()),
        (None, Scheme::Dpop) => Err(not_holder("the token is not bound to a key, and was sent as one that is")),
        (Some(_), Scheme::Bearer) => {
            Err(Refusal::NotHolder { rule: "the token is bound to a key, and was sent as a bearer token", by_proof: true })
        }
        (Some(key), Scheme::Dpop) => {
            let mut proofs = caller.proofs;
            let proof = proofs.next().ok_or(Refusal::Proof { rule: "there is no `DPoP` header" })?;
            if proofs.next().is_some() {
                return Err(Refusal::Proof { rule: "there is more than one `DPoP` header" });
            }
            let proof = std::str::from_utf8(proof).map_err(|_| Refusal::Proof { rule: "it is not text" })?;
            dpop::check(proof, &presented.text, *key, claims.wants_nonce(), &caller.asked, known, limits, now)
        }
    }
}

/// Whether a token is bound in the way that its issuer's configuration demands.
pub(crate) const fn is_bound(demanded: SenderConstraint, to_certificate: bool, to_key: bool) -> Result<(), Refusal> {
    match demanded {
        SenderConstraint::Certificate if !to_certificate => {
            Err(not_holder("the token is not bound to a certificate, as `require.sender` of its issuer demands"))
        }
        SenderConstraint::Dpop if !to_key => {
            Err(not_holder("the token is not bound to a key, as `require.sender` of its issuer demands"))
        }
        SenderConstraint::Any if !to_certificate && !to_key => {
            Err(not_holder("the token is bound to neither certificate nor key, as `require.sender` of its issuer demands"))
        }
        SenderConstraint::None | SenderConstraint::Certificate | SenderConstraint::Dpop | SenderConstraint::Any => Ok(()),
    }
}

/// Whether the caller's certificate, told by its SHA-256 in lower-case hexadecimal, is the one that a token is bound to (RFC 8705 §3).
pub(crate) fn is_certificate(bound_to: &[u8; 32], caller: Option<&str>) -> Result<(), Refusal> {
    let is_it = caller == Some(hexadecimal(bound_to).as_str());
    if is_it { Ok(()) } else { Err(not_holder("the token is bound to another certificate than the caller's")) }
}

const fn not_holder(rule: &'static str) -> Refusal {
    Refusal::NotHolder { rule, by_proof: false }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // A String takes everything.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
