//! Which HTTP status answers a refusal. Nothing else knows status codes of refusals.

use crate::Reason;

impl Reason {
    /// The status (RFC 9110 §15). Total, so that a new reason must be given one.
    pub const fn status(self) -> u16 {
        match self {
            Self::RequestMalformed
            | Self::FramingAmbiguous
            | Self::HostInvalid
            | Self::PathInvalid
            | Self::BodyIncomplete
            | Self::BodyAmbiguous
            | Self::TokenTwice
            | Self::PlaintextRefused
            | Self::PortUnknown
            | Self::RedirectLoop
            | Self::HandshakeFailed
            | Self::CallerGone
            | Self::Flooding
            | Self::IdleTimeout => 400,
            Self::HeadTimeout => 408,
            Self::HeadTooLarge => 431,
            Self::BodyTooLarge => 413,
            Self::MethodNotSupported => 501,
            Self::TokenMissing
            | Self::TokenMalformed
            | Self::TokenAlgorithm
            | Self::TokenIssuerUnknown
            | Self::TokenKeyUnknown
            | Self::TokenSignature
            | Self::TokenAudience
            | Self::TokenInactive
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenClaim
            | Self::TokenRevoked
            | Self::TokenStepUp
            | Self::TokenSender
            | Self::DpopProof
            | Self::DpopNonce => 401,
            Self::TokenScope | Self::DeniedByPolicy | Self::NotPermitted | Self::PolicyError | Self::EgressRefused => 403,
            Self::PeerCertificateMissing
            | Self::PeerUntrusted
            | Self::PeerRevoked
            | Self::PeerExpired
            | Self::PeerNotYetValid
            | Self::PeerProfile
            | Self::PeerUnexpected
            | Self::HandshakeTimeout
            | Self::UpstreamConnect
            | Self::UpstreamHandshake
            | Self::IdentityRefused
            | Self::UpstreamReset
            | Self::UpstreamMalformed
            | Self::ApplicationConnect
            | Self::ApplicationReset
            | Self::ApplicationMalformed => 502,
            Self::UpstreamTimeout | Self::ApplicationTimeout => 504,
            Self::IssuerUnavailable
            | Self::UpstreamNoEndpoint
            | Self::NotReady
            | Self::Draining
            | Self::Overloaded
            | Self::ConnectionAge => 503,
            Self::Internal => 500,
        }
    }
}
