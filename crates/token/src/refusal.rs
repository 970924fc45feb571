//! Every way in which a token is refused.

use crate::explain::spoken;
use model::Reason;
use model::snapshot::JwtAlgorithm;
use std::time::Duration;

/// Why a token is not good. Holds names from the configuration and numbers, never the token or a value of its claims.
///
/// Mostly the caller, or the issuer that made the token, must mend it; [`Refusal::IssuerUnavailable`] is the operator's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not exactly one signed JWT in the compact form, or it could be read in two ways.
    #[error("the token is malformed: {rule}")]
    Malformed {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// There is more than one, or one in two places (RFC 6750 §2: a client must not use more than one method).
    #[error("{rule}")]
    Twice {
        /// What there is more than one of.
        rule: &'static str,
    },
    /// It is longer than limit `tokenBytes`.
    #[error("the token has {bytes} bytes, more than limit `tokenBytes` ({limit})")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Its `alg` is none of [`JwtAlgorithm::ALL`]; among others `none` and every symmetric one.
    #[error("the token's algorithm is none of {}", JwtAlgorithm::ALL.map(JwtAlgorithm::as_str).join(", "))]
    AlgorithmUnsupported,
    /// Its `alg` is not in the issuer's list.
    #[error("issuer `{issuer}` may not use algorithm {}", algorithm.as_str())]
    AlgorithmNotAllowed {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// The token's algorithm.
        algorithm: JwtAlgorithm,
    },
    /// The key that it names is for another algorithm.
    #[error("the token's key of issuer `{issuer}` is not for algorithm {}", algorithm.as_str())]
    KeyAlgorithm {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// The token's algorithm.
        algorithm: JwtAlgorithm,
    },
    /// No configured issuer has its `iss`.
    #[error("the token's `iss` is not that of any of the {configured} configured issuers")]
    IssuerUnknown {
        /// How many issuers are configured.
        configured: usize,
    },
    /// There is no key set of the issuer, or it is older than limit `jwksMaxAgeMs`.
    #[error("no current key set of issuer `{issuer}`")]
    IssuerUnavailable {
        /// The `TokenIssuer`'s name.
        issuer: String,
    },
    /// The issuer has no key of the token's `kid`. A fetch of its keys may help.
    #[error("issuer `{issuer}` has no such key")]
    KeyUnknown {
        /// The `TokenIssuer`'s name.
        issuer: String,
    },
    /// The token names no key and several of the issuer's fit.
    #[error("the token names no key, and {fitting} of issuer `{issuer}` fit")]
    KeyAmbiguous {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// How many keys fit.
        fitting: usize,
    },
    /// The signature is not the key's over this header and payload.
    #[error("the token's signature is not valid by the key of issuer `{issuer}`")]
    Signature {
        /// The `TokenIssuer`'s name.
        issuer: String,
    },
    /// None of its audiences is one of the issuer's configured ones.
    #[error("none of the token's {given} audiences is accepted from issuer `{issuer}`")]
    Audience {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// How many audiences the token names.
        given: usize,
    },
    /// Its `exp` has passed by more than limit `clockSkewMs`.
    #[error("the token expired {} ago", spoken(*ago))]
    Expired {
        /// How long ago, skew not counted.
        ago: Duration,
    },
    /// Its `nbf` or `iat` is ahead by more than limit `clockSkewMs`.
    #[error("the token's `{claim}` is {} ahead", spoken(*ahead))]
    NotYetValid {
        /// `nbf` or `iat`.
        claim: &'static str,
        /// How far ahead, skew not counted.
        ahead: Duration,
    },
    /// A claim that must be there is not.
    #[error("the token has no claim `{claim}`")]
    ClaimMissing {
        /// The claim's name or path.
        claim: String,
    },
    /// A claim is not of the type that it must have.
    #[error("the token's claim `{claim}` is not {expected}")]
    ClaimType {
        /// The claim's name, as the configuration or a standard says it.
        claim: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Its issuer says that it is not active (RFC 7662 §2.2): expired, revoked, or never issued.
    #[error("issuer `{issuer}` says that the token is not active")]
    Inactive {
        /// The `TokenIssuer`'s name.
        issuer: String,
    },
    /// A claim has none of the values that the issuer's configuration demands.
    #[error("the token's claim `{claim}` has none of the values that `require` of issuer `{issuer}` names")]
    ClaimValue {
        /// The claim's path.
        claim: String,
        /// The `TokenIssuer`'s name.
        issuer: String,
    },
    /// It lacks a scope that the issuer's configuration demands (RFC 6750 §3.1 `insufficient_scope`).
    #[error("the token lacks scope `{missing}`, which `require` of issuer `{issuer}` names")]
    Scope {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// The first that is missing.
        missing: String,
        /// All that are demanded, with spaces between.
        required: String,
    },
    /// The user must log in again, or in a stronger way (RFC 9470 §3).
    #[error("the token's {what} falls short of `require` of issuer `{issuer}`")]
    StepUp {
        /// The `TokenIssuer`'s name.
        issuer: String,
        /// `acr` or `auth_time`.
        what: &'static str,
        /// What would do, with spaces between; empty if any would.
        acr_values: String,
        /// Seconds since the login that would do.
        max_age: Option<u64>,
    },
    /// The operator has revoked it.
    #[error("the token is revoked, by its {by}")]
    Revoked {
        /// `jti`, `sub`, `client_id`, `azp` or `iat`.
        by: &'static str,
    },
    /// Whoever sent it did not show that it is its own.
    #[error("{rule}")]
    NotHolder {
        /// What was not shown.
        rule: &'static str,
        /// Whether a DPoP proof would show it.
        by_proof: bool,
    },
    /// The DPoP proof is not good (RFC 9449 §4.3).
    #[error("the DPoP proof is not good: {rule}")]
    Proof {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The DPoP proof lacks a nonce of this sidecar, or has an old one (RFC 9449 §9).
    #[error("the DPoP proof has no current nonce")]
    ProofNonce {
        /// A current one.
        nonce: String,
    },
    /// Too many DPoP proofs are remembered: by this key, or in all.
    #[error("more than {limit} DPoP proofs {whose} are remembered, of limit `dpopProofs`")]
    ProofsFull {
        /// How many may be.
        limit: usize,
        /// `of one key` or `in all`.
        whose: &'static str,
    },
    /// It is bound to a key of its holder (RFC 7800 `cnf`) in a way that nobody here can check. Taking it as a bearer token
    /// would undo the binding.
    #[error("the token is bound to a key of its holder (`cnf`) in a way other than `x5t#S256` and `jkt`")]
    SenderConstrained,
}

impl Refusal {
    /// The stable word for the log, the metric and the caller.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Malformed { .. } | Self::TooLong { .. } => Reason::TokenMalformed,
            Self::Twice { .. } => Reason::TokenTwice,
            Self::AlgorithmUnsupported | Self::AlgorithmNotAllowed { .. } | Self::KeyAlgorithm { .. } => Reason::TokenAlgorithm,
            Self::IssuerUnknown { .. } => Reason::TokenIssuerUnknown,
            Self::IssuerUnavailable { .. } => Reason::IssuerUnavailable,
            Self::KeyUnknown { .. } | Self::KeyAmbiguous { .. } => Reason::TokenKeyUnknown,
            Self::Signature { .. } => Reason::TokenSignature,
            Self::Audience { .. } => Reason::TokenAudience,
            Self::Inactive { .. } => Reason::TokenInactive,
            Self::Expired { .. } => Reason::TokenExpired,
            Self::NotYetValid { .. } => Reason::TokenNotYetValid,
            Self::ClaimMissing { .. } | Self::ClaimType { .. } | Self::ClaimValue { .. } => Reason::TokenClaim,
            Self::Scope { .. } => Reason::TokenScope,
            Self::StepUp { .. } => Reason::TokenStepUp,
            Self::Revoked { .. } => Reason::TokenRevoked,
            Self::NotHolder { .. } | Self::SenderConstrained => Reason::TokenSender,
            Self::Proof { .. } => Reason::DpopProof,
            Self::ProofNonce { .. } => Reason::DpopNonce,
            Self::ProofsFull { .. } => Reason::Overloaded,
        }
    }
}
