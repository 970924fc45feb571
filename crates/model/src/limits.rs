//! Every bound of the data plane: a name, a default, a unit and a reason. `docs/limits.md` is made from this table.

use std::time::Duration;

/// A named bound. `MeshConfig` may set each by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Bytes of a request's head: request line and headers.
    RequestHeadBytes,
    /// Header lines of a request.
    RequestHeaders,
    /// Bytes of a body that is held back because a policy reads it.
    PolicyBodyBytes,
    /// Nesting of a JSON body that a policy reads.
    PolicyBodyDepth,
    /// Bytes of an OAuth2 token.
    TokenBytes,
    /// Milliseconds from accept to the end of the TLS handshake.
    HandshakeMs,
    /// Milliseconds from the first byte of a request's head to its last.
    RequestHeadMs,
    /// Milliseconds for a whole body that a policy reads.
    PolicyBodyMs,
    /// Milliseconds that a connection may stay without a request or, for opaque TCP, without a byte.
    IdleMs,
    /// Milliseconds to connect to an endpoint, handshake included.
    ConnectMs,
    /// Milliseconds from the last that was taken of a request to the head of its response; gRPC's callers say their own.
    ResponseHeadMs,
    /// Open inbound connections.
    InboundConnections,
    /// Open outbound connections from the application.
    OutboundConnections,
    /// Concurrent HTTP/2 streams of one connection.
    StreamsPerConnection,
    /// Open connections to one endpoint, per worker.
    ConnectionsPerEndpoint,
    /// Inbound requests under way in the sidecar.
    RequestsUnderWay,
    /// Milliseconds that a request may wait for a place among them.
    QueueMs,
    /// Milliseconds that open requests get to end after SIGTERM.
    DrainMs,
    /// Decision records that wait to be sent to the control plane.
    DecisionQueue,
    /// Bytes of one message on the configuration stream.
    ConfigMessageBytes,
    /// Bytes of a database of countries.
    CountryDatabaseBytes,
    /// Bytes of a key set document.
    JwksBytes,
    /// Milliseconds for one fetch of discovery or a key set.
    JwksFetchMs,
    /// Milliseconds between two fetches for one issuer that an unknown key id asks for.
    JwksRefetchFloorMs,
    /// Milliseconds after which a fetched key set is refreshed.
    JwksRefreshMs,
    /// Milliseconds after which a key set that could not be refreshed is no longer believed.
    JwksMaxAgeMs,
    /// Milliseconds for one introspection of an opaque token.
    IntrospectionMs,
    /// Milliseconds for which the answer about an active opaque token is believed.
    IntrospectionCacheMs,
    /// Milliseconds for which an opaque token that is not active is refused without asking again.
    IntrospectionInactiveMs,
    /// Introspections under way.
    IntrospectionsUnderWay,
    /// Milliseconds of clock difference that are tolerated in tokens.
    ClockSkewMs,
    /// Milliseconds after it was made for which a DPoP proof is accepted.
    DpopProofMs,
    /// DPoP proofs that are remembered, so that none is accepted twice.
    DpopProofs,
}

impl Limit {
    /// Every limit, in the order of the documentation.
    pub const ALL: [Self; 33] = [
        Self::RequestHeadBytes,
        Self::RequestHeaders,
        Self::PolicyBodyBytes,
        Self::PolicyBodyDepth,
        Self::TokenBytes,
        Self::HandshakeMs,
        Self::RequestHeadMs,
        Self::PolicyBodyMs,
        Self::IdleMs,
        Self::ConnectMs,
        Self::ResponseHeadMs,
        Self::InboundConnections,
        Self::OutboundConnections,
        Self::StreamsPerConnection,
        Self::ConnectionsPerEndpoint,
        Self::RequestsUnderWay,
        Self::QueueMs,
        Self::DrainMs,
        Self::DecisionQueue,
        Self::ConfigMessageBytes,
        Self::CountryDatabaseBytes,
        Self::JwksBytes,
        Self::JwksFetchMs,
        Self::JwksRefetchFloorMs,
        Self::JwksRefreshMs,
        Self::JwksMaxAgeMs,
        Self::IntrospectionMs,
        Self::IntrospectionCacheMs,
        Self::IntrospectionInactiveMs,
        Self::IntrospectionsUnderWay,
        Self::ClockSkewMs,
        Self::DpopProofMs,
        Self::DpopProofs,
    ];

    /// The name that a user writes in `MeshConfig` and reads in errors.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The value where `MeshConfig` says nothing.
    pub const fn default_value(self) -> u64 {
        self.row().1
    }

    /// The smallest and largest value that `MeshConfig` may set.
    pub const fn range(self) -> (u64, u64) {
        (self.row().2, self.row().3)
    }

    /// What it bounds, why, and what raising it costs: one sentence.
    pub const fn about(self) -> &'static str {
        self.row().4
    }

    /// The limit of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.name() == name)
    }

    const fn row(self) -> (&'static str, u64, u64, u64, &'static str) {
        match self {
            Self::RequestHeadBytes => (
                "requestHeadBytes",
                65_536,
                1024,
                1_048_576,
                "bytes of a request's head; each open HTTP/1 connection may hold this much",
            ),
            Self::RequestHeaders => {
                ("requestHeaders", 100, 10, 1000, "header lines of a request; parsing and policy cost grow with it")
            }
            Self::PolicyBodyBytes => (
                "policyBodyBytes",
                262_144,
                0,
                16_777_216,
                "bytes of a body held in memory while a policy reads it; other bodies stream without a bound",
            ),
            Self::PolicyBodyDepth => {
                ("policyBodyDepth", 32, 1, 128, "nesting of a JSON body that a policy reads; guards the parser's stack")
            }
            Self::TokenBytes => {
                ("tokenBytes", 16_384, 512, 65_536, "bytes of an OAuth2 token; longer ones are refused before they are decoded")
            }
            Self::HandshakeMs => ("handshakeMs", 5000, 100, 60_000, "milliseconds from accept to the end of the TLS handshake"),
            Self::RequestHeadMs => (
                "requestHeadMs",
                10_000,
                100,
                120_000,
                "milliseconds from the first byte of a request's head to its last; ends slow-head attacks",
            ),
            Self::PolicyBodyMs => ("policyBodyMs", 10_000, 100, 300_000, "milliseconds for a whole body that a policy reads"),
            Self::IdleMs => (
                "idleMs",
                300_000,
                1000,
                86_400_000,
                "milliseconds that a connection may stay without a request or, for opaque TCP, without a byte",
            ),
            Self::ConnectMs => (
                "connectMs",
                3000,
                50,
                60_000,
                "milliseconds to connect to an endpoint by TCP; the TLS handshake has `handshakeMs` of its own",
            ),
            Self::ResponseHeadMs => (
                "responseHeadMs",
                60_000,
                100,
                86_400_000,
                "milliseconds from the last byte that was taken of a request to the head of its response; not for gRPC, whose callers set a deadline of their own",
            ),
            Self::InboundConnections => {
                ("inboundConnections", 10_000, 1, 1_000_000, "open inbound connections; each costs memory and a file descriptor")
            }
            Self::OutboundConnections => (
                "outboundConnections",
                10_000,
                1,
                1_000_000,
                "open connections from the application; each costs memory and a file descriptor",
            ),
            Self::StreamsPerConnection => (
                "streamsPerConnection",
                256,
                1,
                10_000,
                "concurrent streams of one connection: of HTTP/2, and of HTTP/1 between two sidecars",
            ),
            Self::ConnectionsPerEndpoint => {
                ("connectionsPerEndpoint", 1024, 1, 100_000, "open connections to one endpoint, per worker")
            }
            Self::RequestsUnderWay => (
                "requestsUnderWay",
                10_000,
                1,
                1_000_000,
                "inbound requests under way in the sidecar; those beyond it wait `queueMs`, then get 503",
            ),
            Self::QueueMs => {
                ("queueMs", 1000, 0, 60_000, "milliseconds that a request waits for a place among `requestsUnderWay`")
            }
            Self::DrainMs => ("drainMs", 10_000, 0, 3_600_000, "milliseconds that open requests get to end after SIGTERM"),
            Self::DecisionQueue => (
                "decisionQueue",
                1024,
                16,
                65_536,
                "decision records that wait to be sent to the control plane; beyond it they are dropped and counted",
            ),
            Self::ConfigMessageBytes => {
                ("configMessageBytes", 4_194_304, 65_536, 67_108_864, "bytes of one message on the configuration stream")
            }
            Self::CountryDatabaseBytes => (
                "countryDatabaseBytes",
                134_217_728,
                1024,
                1_073_741_824,
                "bytes of a database of countries, which a sidecar holds in memory while a policy reads the country",
            ),
            Self::JwksBytes => ("jwksBytes", 262_144, 1024, 4_194_304, "bytes of a discovery or key set document"),
            Self::JwksFetchMs => ("jwksFetchMs", 5000, 100, 60_000, "milliseconds for one fetch of discovery or a key set"),
            Self::JwksRefetchFloorMs => (
                "jwksRefetchFloorMs",
                30_000,
                1000,
                3_600_000,
                "milliseconds between two fetches for one issuer that an unknown key id asks for; shields the issuer from invented ids",
            ),
            Self::JwksRefreshMs => {
                ("jwksRefreshMs", 300_000, 1000, 86_400_000, "milliseconds after which a fetched key set is refreshed")
            }
            Self::JwksMaxAgeMs => (
                "jwksMaxAgeMs",
                86_400_000,
                10_000,
                604_800_000,
                "milliseconds after which a key set that could not be refreshed is no longer believed",
            ),
            Self::IntrospectionMs => (
                "introspectionMs",
                2000,
                50,
                60_000,
                "milliseconds for one introspection of an opaque token, connecting included",
            ),
            Self::IntrospectionCacheMs => (
                "introspectionCacheMs",
                30_000,
                0,
                3_600_000,
                "milliseconds for which the answer about an active opaque token is believed; a token that its issuer revokes lives on for so long",
            ),
            Self::IntrospectionInactiveMs => (
                "introspectionInactiveMs",
                5000,
                0,
                600_000,
                "milliseconds for which an opaque token that is not active is refused without asking again",
            ),
            Self::IntrospectionsUnderWay => (
                "introspectionsUnderWay",
                128,
                1,
                10_000,
                "introspections of different tokens under way at once at one issuer, half of them for one caller; beyond it requests get `issuer_unavailable`",
            ),
            Self::ClockSkewMs => {
                ("clockSkewMs", 30_000, 0, 300_000, "milliseconds of clock difference that are tolerated in tokens")
            }
            Self::DpopProofMs => (
                "dpopProofMs",
                60_000,
                1000,
                300_000,
                "milliseconds after it was made for which a DPoP proof is accepted; each is remembered for so long, and the clock skew",
            ),
            Self::DpopProofs => (
                "dpopProofs",
                200_000,
                1000,
                10_000_000,
                "DPoP proofs that are remembered, about 100 bytes each; beyond it, or beyond a sixteenth of it by one key, more are refused",
            ),
        }
    }
}

/// The values in force: defaults, and what `MeshConfig` set over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    values: [u64; Limit::ALL.len()],
}

impl Default for Limits {
    fn default() -> Self {
        Self { values: Limit::ALL.map(Limit::default_value) }
    }
}

/// A limit was set outside its range. The operator who wrote it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{name}` is {value}, outside {min} to {max}")]
pub struct LimitOutOfRange {
    /// The limit's name.
    pub name: &'static str,
    /// The value that was asked for.
    pub value: u64,
    /// The smallest value allowed.
    pub min: u64,
    /// The largest value allowed.
    pub max: u64,
}

impl Limits {
    /// Sets one limit.
    ///
    /// # Errors
    /// - [`LimitOutOfRange`] if the value is outside the limit's range; nothing is changed then.
    pub fn set(&mut self, limit: Limit, value: u64) -> Result<(), LimitOutOfRange> {
        let (min, max) = limit.range();
        if value < min || value > max {
            return Err(LimitOutOfRange { name: limit.name(), value, min, max });
        }
        for (slot, each) in self.values.iter_mut().zip(Limit::ALL) {
            if each == limit {
                *slot = value;
            }
        }
        Ok(())
    }

    /// The value in force, in the limit's unit.
    pub fn of(&self, limit: Limit) -> u64 {
        self.values
            .iter()
            .zip(Limit::ALL)
            .find(|(_, each)| *each == limit)
            .map_or_else(|| limit.default_value(), |(value, _)| *value)
    }

    /// The value in force as a count or size of this machine.
    pub fn size(&self, limit: Limit) -> usize {
        usize::try_from(self.of(limit)).unwrap_or(usize::MAX)
    }

    /// The value in force of a limit in milliseconds.
    pub fn duration(&self, limit: Limit) -> Duration {
        Duration::from_millis(self.of(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_named_once_and_its_default_is_in_range() {
        for limit in Limit::ALL {
            let (min, max) = limit.range();
            assert!((min..=max).contains(&limit.default_value()), "{}", limit.name());
            assert_eq!(Limit::named(limit.name()), Some(limit));
        }
    }

    #[test]
    fn a_limit_outside_its_range_is_refused_and_changes_nothing() {
        let mut limits = Limits::default();
        assert!(limits.set(Limit::RequestHeadBytes, 1023).is_err());
        assert!(limits.set(Limit::RequestHeadBytes, 1_048_577).is_err());
        assert_eq!(limits, Limits::default());
        limits.set(Limit::RequestHeadBytes, 1024).expect("in range");
        assert_eq!(limits.of(Limit::RequestHeadBytes), 1024);
    }
}
