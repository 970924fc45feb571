//! The closed set of reasons for every refusal, failure and close. The same word stands in the access log, the metric,
//! the response header `x-rondel-reason` and `docs/reasons.md`, which is made from this table.

use std::fmt;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The caller sent what is not acceptable.
    Caller,
    /// The application behind this sidecar.
    Application,
    /// The called service or its sidecar.
    Upstream,
    /// This sidecar.
    Sidecar,
    /// The control plane or a token issuer.
    Control,
}

impl Side {
    /// The word in logs: `caller`, `application`, `upstream`, `sidecar`, `control`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Application => "application",
            Self::Upstream => "upstream",
            Self::Sidecar => "sidecar",
            Self::Control => "control",
        }
    }
}

/// Why a call or connection was refused, failed or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A client spoke plaintext at a port that demands mutual TLS.
    PlaintextRefused,
    /// A captured connection to a port of the application that the workload does not declare.
    PortUnknown,
    /// A connection to the sidecar's own port that no redirection brought there.
    RedirectLoop,
    /// The peer presented no certificate.
    PeerCertificateMissing,
    /// The peer's chain does not lead to an authority of its trust domain.
    PeerUntrusted,
    /// The operator has revoked the peer's certificate.
    PeerRevoked,
    /// The peer's certificate has expired.
    PeerExpired,
    /// The peer's certificate is not valid yet.
    PeerNotYetValid,
    /// The peer's certificate breaks a rule of the SPIFFE X509-SVID profile.
    PeerProfile,
    /// The peer is genuine, but not the workload that was called.
    PeerUnexpected,
    /// The handshake did not end in time.
    HandshakeTimeout,
    /// The handshake broke: protocol version, cipher, ALPN, or a closed connection.
    HandshakeFailed,
    /// The request's head could not be read.
    RequestMalformed,
    /// Two readers could see two different requests in the same bytes.
    FramingAmbiguous,
    /// `Host` and the request target disagree, or there is no or more than one host.
    HostInvalid,
    /// The path cannot be normalised.
    PathInvalid,
    /// A head larger than `requestHeadBytes` or with more lines than `requestHeaders`.
    HeadTooLarge,
    /// A head slower than `requestHeadMs`.
    HeadTimeout,
    /// A body that a policy reads is larger than `policyBodyBytes`.
    BodyTooLarge,
    /// A body that a policy reads is slower than `policyBodyMs`, or ended early.
    BodyIncomplete,
    /// A JSON body that a policy reads could be read in two ways: a key stands twice, or it is nested too deeply.
    BodyAmbiguous,
    /// A method or upgrade that this port does not carry.
    MethodNotSupported,
    /// The request needs a user, and carried no token.
    TokenMissing,
    /// The token is not a JWT, or too long.
    TokenMalformed,
    /// More than one token came, or one in two places.
    TokenTwice,
    /// The token's algorithm is not one that its issuer may use.
    TokenAlgorithm,
    /// The token's issuer is not configured.
    TokenIssuerUnknown,
    /// The token names a key that its issuer does not have.
    TokenKeyUnknown,
    /// The token's signature is wrong.
    TokenSignature,
    /// The token was made for another audience.
    TokenAudience,
    /// Its issuer says that the token is not active (RFC 7662 §2.2).
    TokenInactive,
    /// The token has expired.
    TokenExpired,
    /// The token is not valid yet.
    TokenNotYetValid,
    /// A claim is missing or not of its declared type.
    TokenClaim,
    /// The operator has revoked the token.
    TokenRevoked,
    /// The token lacks a scope that its issuer's configuration demands.
    TokenScope,
    /// The user did not log in strongly or recently enough (RFC 9470).
    TokenStepUp,
    /// Whoever sent the token did not show that it is its own.
    TokenSender,
    /// The DPoP proof is not good.
    DpopProof,
    /// The DPoP proof lacks a nonce of this sidecar.
    DpopNonce,
    /// No key set of the issuer could be had.
    IssuerUnavailable,
    /// A `forbid` policy applies.
    DeniedByPolicy,
    /// No `permit` policy applies.
    NotPermitted,
    /// A policy failed while it was evaluated.
    PolicyError,
    /// A captured connection that leads to no upstream, where `egress` is `refuse`.
    EgressRefused,
    /// The upstream has no endpoint.
    UpstreamNoEndpoint,
    /// No connection to the upstream could be made.
    UpstreamConnect,
    /// No TLS connection to the upstream could be made.
    UpstreamHandshake,
    /// The upstream does not believe this workload's certificate.
    IdentityRefused,
    /// The upstream closed before it answered.
    UpstreamReset,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The upstream's answer could not be read.
    UpstreamMalformed,
    /// No connection to the application could be made.
    ApplicationConnect,
    /// The application closed before it answered.
    ApplicationReset,
    /// The application did not answer in time.
    ApplicationTimeout,
    /// The application's answer could not be read.
    ApplicationMalformed,
    /// The sidecar has no identity or configuration yet.
    NotReady,
    /// The sidecar is going down.
    Draining,
    /// `inboundConnections` or `outboundConnections` is reached.
    Overloaded,
    /// The caller went away before the answer was sent.
    CallerGone,
    /// The caller asks for work that leads nowhere: HTTP/2 streams reset before they are answered, frames that carry nothing.
    Flooding,
    /// Nothing moved on the connection for `idleMs`.
    IdleTimeout,
    /// The connection reached its maximum age.
    ConnectionAge,
    /// An invariant of the sidecar is broken.
    Internal,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 64] = [
        Self::PlaintextRefused,
        Self::PortUnknown,
        Self::RedirectLoop,
        Self::PeerCertificateMissing,
        Self::PeerUntrusted,
        Self::PeerRevoked,
        Self::PeerExpired,
        Self::PeerNotYetValid,
        Self::PeerProfile,
        Self::PeerUnexpected,
        Self::HandshakeTimeout,
        Self::HandshakeFailed,
        Self::RequestMalformed,
        Self::FramingAmbiguous,
        Self::HostInvalid,
        Self::PathInvalid,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::BodyTooLarge,
        Self::BodyIncomplete,
        Self::BodyAmbiguous,
        Self::MethodNotSupported,
        Self::TokenMissing,
        Self::TokenMalformed,
        Self::TokenTwice,
        Self::TokenAlgorithm,
        Self::TokenIssuerUnknown,
        Self::TokenKeyUnknown,
        Self::TokenSignature,
        Self::TokenAudience,
        Self::TokenInactive,
        Self::TokenExpired,
        Self::TokenNotYetValid,
        Self::TokenClaim,
        Self::TokenRevoked,
        Self::TokenScope,
        Self::TokenStepUp,
        Self::TokenSender,
        Self::DpopProof,
        Self::DpopNonce,
        Self::IssuerUnavailable,
        Self::DeniedByPolicy,
        Self::NotPermitted,
        Self::PolicyError,
        Self::EgressRefused,
        Self::UpstreamNoEndpoint,
        Self::UpstreamConnect,
        Self::UpstreamHandshake,
        Self::IdentityRefused,
        Self::UpstreamReset,
        Self::UpstreamTimeout,
        Self::UpstreamMalformed,
        Self::ApplicationConnect,
        Self::ApplicationReset,
        Self::ApplicationTimeout,
        Self::ApplicationMalformed,
        Self::NotReady,
        Self::Draining,
        Self::Overloaded,
        Self::CallerGone,
        Self::Flooding,
        Self::IdleTimeout,
        Self::ConnectionAge,
        Self::Internal,
    ];

    /// The stable word: snake case, as in logs, metrics and headers.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Whose fault it is.
    pub const fn side(self) -> Side {
        self.row().1
    }

    /// Whose fault it is where this side called: then the peer of the `peer_…` reasons is the upstream.
    pub const fn side_of_call(self) -> Side {
        match self {
            Self::PeerCertificateMissing
            | Self::PeerUntrusted
            | Self::PeerRevoked
            | Self::PeerExpired
            | Self::PeerNotYetValid
            | Self::PeerProfile => Side::Upstream,
            other => other.side(),
        }
    }

    /// What a caller may be told: one sentence that helps no attacker.
    pub const fn public_text(self) -> &'static str {
        self.row().2
    }

    /// What the person at fault can do.
    pub const fn fix(self) -> &'static str {
        self.row().3
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    const fn row(self) -> (&'static str, Side, &'static str, &'static str) {
        use Side::{Application, Caller, Control, Sidecar, Upstream};
        match self {
            Self::PlaintextRefused => (
                "plaintext_refused",
                Caller,
                "this port speaks mutual TLS only",
                "call through a sidecar, or speak mutual TLS with an SVID of the mesh",
            ),
            Self::PortUnknown => (
                "port_unknown",
                Caller,
                "nothing is offered at this port",
                "declare the port in `inbound` of the workload, or exclude it from capture",
            ),
            Self::RedirectLoop => (
                "redirect_loop",
                Caller,
                "this port takes redirected connections only",
                "call the application's port, not the sidecar's; look at `rondel-proxy capture check`",
            ),
            Self::PeerCertificateMissing => {
                ("peer_certificate_missing", Caller, "a client certificate is required", "present an X.509-SVID of the mesh")
            }
            Self::PeerUntrusted => (
                "peer_untrusted",
                Caller,
                "the peer's certificate is not trusted",
                "use an SVID issued by an authority in the trust bundle of its own trust domain",
            ),
            Self::PeerRevoked => (
                "peer_revoked",
                Caller,
                "the peer's certificate is revoked",
                "`rondel ca status` shows since when and why; a new join token gets its workload another",
            ),
            Self::PeerExpired => (
                "peer_expired",
                Caller,
                "the peer's certificate has expired",
                "look why the peer's sidecar could not rotate: `rondel status`",
            ),
            Self::PeerNotYetValid => (
                "peer_not_yet_valid",
                Caller,
                "the peer's certificate is not valid yet",
                "compare the clocks of the two machines",
            ),
            Self::PeerProfile => (
                "peer_profile",
                Caller,
                "the peer's certificate is not an X.509-SVID",
                "issue it with exactly one URI SAN, CA=false and digitalSignature",
            ),
            Self::PeerUnexpected => (
                "peer_unexpected",
                Upstream,
                "the upstream is not who it should be",
                "look at the upstream's address: another workload answers there",
            ),
            Self::HandshakeTimeout => (
                "handshake_timeout",
                Caller,
                "the TLS handshake took too long",
                "look at the network between the peers; limit `handshakeMs`",
            ),
            Self::HandshakeFailed => {
                ("handshake_failed", Caller, "the TLS handshake failed", "speak TLS 1.3 with a protocol that the port carries")
            }
            Self::RequestMalformed => {
                ("request_malformed", Caller, "the request could not be read", "send a head as RFC 9112 §2 says")
            }
            Self::FramingAmbiguous => (
                "framing_ambiguous",
                Caller,
                "the request's length is ambiguous",
                "send either one Content-Length or Transfer-Encoding: chunked, and no folded or bare-LF lines",
            ),
            Self::HostInvalid => (
                "host_invalid",
                Caller,
                "the request's host is not valid",
                "send exactly one Host that agrees with the request target",
            ),
            Self::PathInvalid => (
                "path_invalid",
                Caller,
                "the request's path is not valid",
                "send an absolute path without encoded slashes, NUL or broken percent-encoding",
            ),
            Self::HeadTooLarge => (
                "head_too_large",
                Caller,
                "the request's head is too large",
                "send fewer or shorter headers, or raise `requestHeadBytes` or `requestHeaders`",
            ),
            Self::HeadTimeout => {
                ("head_timeout", Caller, "the request's head took too long", "send the head at once, or raise `requestHeadMs`")
            }
            Self::BodyTooLarge => {
                ("body_too_large", Caller, "the request's body is too large", "send a smaller body, or raise `policyBodyBytes`")
            }
            Self::BodyIncomplete => {
                ("body_incomplete", Caller, "the request's body did not arrive", "send the whole body, or raise `policyBodyMs`")
            }
            Self::BodyAmbiguous => (
                "body_ambiguous",
                Caller,
                "the request's body can be read in two ways",
                "send JSON in which no key stands twice, nested less than `policyBodyDepth`",
            ),
            Self::MethodNotSupported => (
                "method_not_supported",
                Caller,
                "the method is not supported here",
                "use a method other than CONNECT or TRACE and no protocol upgrade",
            ),
            Self::TokenMissing => (
                "token_missing",
                Caller,
                "a token is required",
                "send `Authorization: Bearer` with a token of a configured issuer",
            ),
            Self::TokenMalformed => {
                ("token_malformed", Caller, "the token could not be read", "send exactly one JWT in the Authorization header")
            }
            Self::TokenTwice => {
                ("token_twice", Caller, "more than one token was sent", "send one token, in one of the places that `token` names")
            }
            Self::TokenAlgorithm => (
                "token_algorithm",
                Caller,
                "the token's algorithm is not accepted",
                "sign with one of the RS, PS or ES algorithms or EdDSA, as the issuer is configured",
            ),
            Self::TokenIssuerUnknown => (
                "token_issuer_unknown",
                Caller,
                "the token's issuer is not known",
                "use a token of an issuer that a `TokenIssuer` names",
            ),
            Self::TokenKeyUnknown => (
                "token_key_unknown",
                Caller,
                "the token's key is not known",
                "look whether the issuer publishes the key; a new one is fetched at most every `jwksRefetchFloorMs`",
            ),
            Self::TokenSignature => {
                ("token_signature", Caller, "the token's signature is wrong", "get a new token from the issuer")
            }
            Self::TokenAudience => (
                "token_audience",
                Caller,
                "the token is for another audience",
                "ask the issuer for a token with the audience of this mesh",
            ),
            Self::TokenInactive => {
                ("token_inactive", Caller, "the issuer says that the token is not active", "get a new token from the issuer")
            }
            Self::TokenExpired => ("token_expired", Caller, "the token has expired", "get a new token from the issuer"),
            Self::TokenNotYetValid => (
                "token_not_yet_valid",
                Caller,
                "the token is not valid yet",
                "compare the clocks of issuer and sidecar; limit `clockSkewMs`",
            ),
            Self::TokenClaim => (
                "token_claim",
                Caller,
                "a claim of the token is missing or malformed",
                "compare the token with the claim mapping of its `TokenIssuer`",
            ),
            Self::TokenRevoked => {
                ("token_revoked", Caller, "the token is revoked", "`rondel token revoked` shows what is; get a new token")
            }
            Self::TokenScope => {
                ("token_scope", Caller, "the token lacks a scope", "ask the issuer for the scopes that the challenge names")
            }
            Self::TokenStepUp => (
                "token_step_up",
                Caller,
                "the user must log in again, or in a stronger way",
                "log in as `acr_values` and `max_age` of the challenge say",
            ),
            Self::TokenSender => (
                "token_sender",
                Caller,
                "the token is not shown to be the caller's own",
                "call with the certificate or the DPoP key that the token is bound to",
            ),
            Self::DpopProof => {
                ("dpop_proof", Caller, "the DPoP proof is not valid", "make a new proof for each request, as RFC 9449 §4.2 says")
            }
            Self::DpopNonce => {
                ("dpop_nonce", Caller, "the DPoP proof needs a nonce", "make the proof anew with the `DPoP-Nonce` of this answer")
            }
            Self::IssuerUnavailable => (
                "issuer_unavailable",
                Control,
                "the token cannot be checked now",
                "look at the issuer's discovery and key set addresses from the sidecar",
            ),
            Self::DeniedByPolicy => {
                ("denied_by_policy", Caller, "not allowed", "`rondel authz explain ID` shows the policy that forbids it")
            }
            Self::NotPermitted => {
                ("not_permitted", Caller, "not allowed", "`rondel authz explain ID` shows what would have to change")
            }
            Self::PolicyError => (
                "policy_error",
                Caller,
                "not allowed",
                "`rondel authz explain ID` shows the policy and what it could not decide by: a body or header that cannot be read, a sum that overflows",
            ),
            Self::EgressRefused => (
                "egress_refused",
                Caller,
                "the destination is not in the mesh",
                "declare it in `upstreams` of the workload, or set `egress: allow`",
            ),
            Self::UpstreamNoEndpoint => (
                "upstream_no_endpoint",
                Control,
                "the upstream has no endpoint",
                "look whether a workload of the service exists: `rondel status`",
            ),
            Self::UpstreamConnect => (
                "upstream_connect",
                Upstream,
                "the upstream could not be reached",
                "look whether the upstream's sidecar runs and listens",
            ),
            Self::UpstreamHandshake => (
                "upstream_handshake",
                Upstream,
                "no secure connection to the upstream could be made",
                "look at the detail: the upstream must speak TLS 1.3, with this protocol and a key exchange that both know",
            ),
            Self::IdentityRefused => (
                "identity_refused",
                Sidecar,
                "the upstream does not believe who is calling",
                "look at the alert in the detail: this workload's SVID is revoked (`rondel ca status`), has ended, or is of an \
                 authority that the upstream does not know",
            ),
            Self::UpstreamReset => {
                ("upstream_reset", Upstream, "the upstream closed the connection", "look at the upstream's log")
            }
            Self::UpstreamTimeout => (
                "upstream_timeout",
                Upstream,
                "the upstream did not answer in time",
                "look at the upstream's latency, or raise `responseHeadMs`",
            ),
            Self::UpstreamMalformed => {
                ("upstream_malformed", Upstream, "the upstream's answer could not be read", "look at what the upstream sends")
            }
            Self::ApplicationConnect => (
                "application_connect",
                Application,
                "the application could not be reached",
                "look whether the application runs and listens on its port",
            ),
            Self::ApplicationReset => {
                ("application_reset", Application, "the application closed the connection", "look at the application's log")
            }
            Self::ApplicationTimeout => (
                "application_timeout",
                Application,
                "the application did not answer in time",
                "look at the application's latency, or raise `responseHeadMs`",
            ),
            Self::ApplicationMalformed => (
                "application_malformed",
                Application,
                "the application's answer could not be read",
                "look at what the application sends",
            ),
            Self::NotReady => {
                ("not_ready", Sidecar, "the sidecar is not ready", "look at `/ready` of the sidecar: it says what is missing")
            }
            Self::Draining => ("draining", Sidecar, "the sidecar is going down", "try another instance"),
            Self::Overloaded => (
                "overloaded",
                Sidecar,
                "the sidecar has too many connections",
                "raise `inboundConnections` or `outboundConnections`, or add instances",
            ),
            Self::CallerGone => ("caller_gone", Caller, "the caller went away", "look at the caller's timeouts"),
            Self::Flooding => (
                "flooding",
                Caller,
                "the connection asks for work that leads nowhere",
                "wait for answers before giving them up; send fewer resets, pings and empty frames",
            ),
            Self::IdleTimeout => ("idle_timeout", Caller, "the connection was idle", "raise `idleMs`"),
            Self::ConnectionAge => {
                ("connection_age", Sidecar, "the connection reached its maximum age", "nothing: the peer connects again")
            }
            Self::Internal => ("internal", Sidecar, "an error inside the sidecar", "report it with the sidecar's log"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word() {
        for reason in Reason::ALL {
            assert_eq!(Reason::named(reason.as_str()), Some(reason));
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }
}
