//! Every way in which a token is refused.

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
    #[error("the token expired {} ms ago", ago.as_millis())]
    Expired {
        /// How long ago, skew not counted.
        ago: Duration,
    },
    /// Its `nbf` or `iat` is ahead by more than limit `clockSkewMs`.
    #[error("the token's `{claim}` is {} ms ahead", ahead.as_millis())]
    NotYetValid {
        /// `nbf` or `iat`.
        claim: &'static str,
        /// How far ahead, skew not counted.
        ahead: Duration,
    },
    /// A claim that must be there is not.
    #[error("the token has no claim `{claim}`")]
    ClaimMissing {
        /// The claim's name.
        claim: &'static str,
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
    /// It is bound to a key of its holder (RFC 7800 `cnf`). Nobody here proves possession of that key, so that taking it as a
    /// bearer token would undo the binding.
    #[error("the token is bound to a key of its holder (`cnf`), and cannot be used as a bearer token")]
    SenderConstrained,
}

impl Refusal {
    /// The stable word for the log, the metric and the caller.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Malformed { .. } | Self::TooLong { .. } => Reason::TokenMalformed,
            Self::AlgorithmUnsupported | Self::AlgorithmNotAllowed { .. } | Self::KeyAlgorithm { .. } => Reason::TokenAlgorithm,
            Self::IssuerUnknown { .. } => Reason::TokenIssuerUnknown,
            Self::IssuerUnavailable { .. } => Reason::IssuerUnavailable,
            Self::KeyUnknown { .. } | Self::KeyAmbiguous { .. } => Reason::TokenKeyUnknown,
            Self::Signature { .. } => Reason::TokenSignature,
            Self::Audience { .. } => Reason::TokenAudience,
            Self::Inactive { .. } => Reason::TokenInactive,
            Self::Expired { .. } => Reason::TokenExpired,
            Self::NotYetValid { .. } => Reason::TokenNotYetValid,
            Self::ClaimMissing { .. } | Self::ClaimType { .. } | Self::SenderConstrained => Reason::TokenClaim,
        }
    }
}
