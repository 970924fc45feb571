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
    match claims.sender() {
        SenderConstraint::Certificate if said.certificate.is_none() => {
            return Err(not_holder("the token is not bound to a certificate, as `require.sender` of its issuer demands"));
        }
        SenderConstraint::Dpop if said.key.is_none() => {
            return Err(not_holder("the token is not bound to a key, as `require.sender` of its issuer demands"));
        }
        SenderConstraint::Any if said.certificate.is_none() && said.key.is_none() => {
            return Err(not_holder(
                "the token is bound to neither certificate nor key, as `require.sender` of its issuer demands",
            ));
        }
        SenderConstraint::None | SenderConstraint::Certificate | SenderConstraint::Dpop | SenderConstraint::Any => {}
    }
    if let Some(certificate) = &said.certificate
        && caller.certificate != Some(hexadecimal(certificate).as_str())
    {
        return Err(not_holder("the token is bound to another certificate than the caller's"));
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

const fn not_holder(rule: &'static str) -> Refusal {
    Refusal::NotHolder { rule, by_proof: false }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // A String takes everything.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
