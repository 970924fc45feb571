//! Prometheus metrics. Every label is from a closed set or from the configuration, so that the number of series is bounded.

use crate::telemetry::requests::{RequestMetrics, Requests};
use identity::{Credentials, VerifiedPeer};
use model::decision::Would;
use model::{Reason, Timestamp};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Labels of `rondel_handshakes_total` and `rondel_connections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    direction: &'static str,
    reason: &'static str,
}

/// Labels of `rondel_certificate_expires_at_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkLabels {
    link: &'static str,
    trust_domain: String,
    id: String,
}

/// Labels of `rondel_key_exchanges_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupLabels {
    direction: &'static str,
    group: &'static str,
}

/// LIMIT: source addresses that are told apart.
const PLAINTEXT_SOURCES_MAX: usize = 100;

/// Labels of `rondel_plaintext_connections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabels {
    source: String,
}

/// LIMIT: policies in shadow mode that are told apart.
const SHADOW_POLICIES_MAX: usize = 100;

/// Labels of `rondel_shadow_would_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ShadowLabels {
    policy: String,
    would: &'static str,
}

/// Labels of metrics by token issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IssuerLabels {
    /// The `TokenIssuer`'s name.
    pub issuer: String,
}

/// The counters of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests that ended.
    pub requests: Arc<Requests>,
    handshakes: Family<OutcomeLabels, Counter>,
    connections: Family<OutcomeLabels, Counter>,
    plaintext: Family<SourceLabels, Counter>,
    plaintext_sources: Mutex<BTreeSet<IpAddr>>,
    svid_expires_at_seconds: Gauge,
    certificate_expires_at_seconds: Family<LinkLabels, Gauge>,
    key_exchanges: Family<GroupLabels, Counter>,
    /// How far this machine's clock is ahead of the control plane's, in milliseconds.
    pub clock_ahead_ms: Gauge,
    /// SVIDs obtained since the start.
    pub svid_rotations: Counter,
    /// Failed attempts to obtain one.
    pub svid_failures: Counter,
    /// SVIDs issued for the application since the start.
    pub application_svids: Counter,
    /// Failed attempts to have one issued.
    pub application_svid_failures: Counter,
    /// Streams of the Workload API that are open.
    pub workload_api_streams: Gauge,
    /// 1 while the application's traffic is known to be redirected to this sidecar.
    pub capture_proven: Gauge,
    /// Connections that ended by a panic; the others went on.
    pub connection_panics: Counter,
    /// Worker threads that were replaced.
    pub worker_restarts: Counter,
    /// The revision in force.
    pub config_revision: Gauge,
    /// Policies in force.
    pub policies: Gauge,
    /// Those of them that the reference evaluator decides.
    pub policies_interpreted: Gauge,
    /// Configurations refused with a nack.
    pub config_rejected: Counter,
    /// 1 while the configuration stream is up.
    pub control_connected: Gauge,
    /// Decision records that were dropped because the queue was full.
    pub decisions_dropped: Counter,
    /// Calls that were decided a second time, with the policies in shadow mode.
    pub shadow_tried: Counter,
    /// Calls that could not be: a policy in shadow mode reads a body that was not there to be read.
    pub shadow_untried: Counter,
    /// 1 while the file of the database of countries cannot be read.
    pub country_database_failed: Gauge,
    /// Seconds since the epoch at which the database of countries in use was made; 0 without one.
    pub country_database_built_at_seconds: Gauge,
    /// 1 while the policies in shadow mode of the configuration in force cannot be tried.
    pub shadow_refused: Gauge,
    shadow_would: Family<ShadowLabels, Counter>,
    shadow_policies: Mutex<BTreeSet<String>>,
    /// Access log lines that were dropped because the writer was slower than the traffic.
    pub access_log_dropped: Counter,
    /// Seconds since the epoch at which an issuer's key set was fetched.
    pub keys_fetched_at_seconds: Family<IssuerLabels, Gauge>,
    /// Failed fetches by issuer.
    pub keys_fetch_failures: Family<IssuerLabels, Counter>,
    /// Questions about opaque tokens by issuer.
    pub introspections: Family<IssuerLabels, Counter>,
    /// Those without an answer.
    pub introspection_failures: Family<IssuerLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("rondel"),
            requests: Arc::default(),
            handshakes: Family::default(),
            connections: Family::default(),
            plaintext: Family::default(),
            plaintext_sources: Mutex::default(),
            capture_proven: Gauge::default(),
            connection_panics: Counter::default(),
            worker_restarts: Counter::default(),
            svid_expires_at_seconds: Gauge::default(),
            certificate_expires_at_seconds: Family::default(),
            key_exchanges: Family::default(),
            clock_ahead_ms: Gauge::default(),
            svid_rotations: Counter::default(),
            svid_failures: Counter::default(),
            application_svids: Counter::default(),
            application_svid_failures: Counter::default(),
            workload_api_streams: Gauge::default(),
            config_revision: Gauge::default(),
            policies: Gauge::default(),
            policies_interpreted: Gauge::default(),
            config_rejected: Counter::default(),
            control_connected: Gauge::default(),
            decisions_dropped: Counter::default(),
            shadow_tried: Counter::default(),
            shadow_untried: Counter::default(),
            country_database_failed: Gauge::default(),
            country_database_built_at_seconds: Gauge::default(),
            shadow_refused: Gauge::default(),
            shadow_would: Family::default(),
            shadow_policies: Mutex::default(),
            access_log_dropped: Counter::default(),
            keys_fetched_at_seconds: Family::default(),
            keys_fetch_failures: Family::default(),
            introspections: Family::default(),
            introspection_failures: Family::default(),
        };
        metrics.register();
        metrics.register_country();
        metrics.register_shadow();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register_collector(Box::new(RequestMetrics(Arc::clone(&self.requests))));
        registry.register("handshakes", "TLS handshakes by direction and reason; `ok` succeeded", self.handshakes.clone());
        registry.register("connections_closed", "Connections that ended, by direction and reason", self.connections.clone());
        registry.register(
            "plaintext_connections",
            "Plaintext connections to permissive ports by source address; `other` beyond 100 addresses",
            self.plaintext.clone(),
        );
        registry.register(
            "capture_proven",
            "1 while the application's traffic is known to be redirected here",
            self.capture_proven.clone(),
        );
        registry.register("connection_panics", "Connections that ended by a panic", self.connection_panics.clone());
        registry.register("worker_restarts", "Worker threads that were replaced", self.worker_restarts.clone());
        registry.register(
            "svid_expires_at_seconds",
            "When the SVID in use ends, seconds since the epoch",
            self.svid_expires_at_seconds.clone(),
        );
        registry.register(
            "certificate_expires_at_seconds",
            "When each link of the own chain, and each authority that is trusted, ends, seconds since the epoch",
            self.certificate_expires_at_seconds.clone(),
        );
        registry.register(
            "key_exchanges",
            "TLS handshakes that succeeded, by direction and key exchange group",
            self.key_exchanges.clone(),
        );
        registry.register(
            "clock_ahead_ms",
            "How far this machine's clock is ahead of the control plane's, in milliseconds",
            self.clock_ahead_ms.clone(),
        );
        registry.register("svid_rotations", "SVIDs obtained since the start", self.svid_rotations.clone());
        registry.register("svid_failures", "Failed attempts to obtain an SVID", self.svid_failures.clone());
        registry.register("application_svids", "SVIDs issued for the application", self.application_svids.clone());
        registry.register(
            "application_svid_failures",
            "Failed attempts to have an SVID issued for the application",
            self.application_svid_failures.clone(),
        );
        registry.register("workload_api_streams", "Open streams of the Workload API", self.workload_api_streams.clone());
        registry.register("config_revision", "Revision of the configuration in force", self.config_revision.clone());
        registry.register("policies", "Policies in force", self.policies.clone());
        registry.register(
            "policies_interpreted",
            "Policies in force that are not compiled: each costs some microseconds a call",
            self.policies_interpreted.clone(),
        );
        registry.register("config_rejected", "Configurations refused with a nack", self.config_rejected.clone());
        registry.register("control_connected", "1 while the configuration stream is up", self.control_connected.clone());
        registry.register("decisions_dropped", "Decision records dropped at a full queue", self.decisions_dropped.clone());
        registry.register("access_log_dropped", "Access log lines dropped at a full queue", self.access_log_dropped.clone());
        registry.register(
            "issuer_keys_fetched_at_seconds",
            "When an issuer's key set was fetched, seconds since the epoch",
            self.keys_fetched_at_seconds.clone(),
        );
        registry.register("issuer_keys_fetch_failures", "Failed fetches of an issuer's keys", self.keys_fetch_failures.clone());
        registry.register("introspections", "Questions to an issuer about opaque tokens", self.introspections.clone());
        let failures = self.introspection_failures.clone();
        registry.register("introspection_failures", "Questions about opaque tokens that had no answer", failures);
    }

    fn register_country(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "country_database_failed",
            "1 while the file of the database of countries cannot be read",
            self.country_database_failed.clone(),
        );
        registry.register(
            "country_database_built_at_seconds",
            "When the database of countries in use was made, seconds since the epoch; 0 without one",
            self.country_database_built_at_seconds.clone(),
        );
    }

    fn register_shadow(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "shadow_tried",
            "Calls decided a second time, with the policies in shadow mode",
            self.shadow_tried.clone(),
        );
        registry.register(
            "shadow_untried",
            "Calls not decided a second time: a policy in shadow mode reads a body that was not there to be read",
            self.shadow_untried.clone(),
        );
        registry.register(
            "shadow_refused",
            "1 while the policies in shadow mode of the configuration in force cannot be tried",
            self.shadow_refused.clone(),
        );
        registry.register(
            "shadow_would",
            "Answers that would have been another by policy in shadow mode; `other` beyond 100 policies, `-` by none alone",
            self.shadow_would.clone(),
        );
    }

    /// Notes when each link of the chain in use ends, and each authority that is trusted.
    pub fn certificates(&self, own: &Credentials) {
        let seconds = |at: Timestamp| i64::try_from(at.seconds()).unwrap_or(i64::MAX);
        self.svid_expires_at_seconds.set(seconds(own.svid().not_after()));
        self.certificate_expires_at_seconds.clear();
        for link in own.links() {
            let labels = LinkLabels { link: link.kind, trust_domain: link.trust_domain, id: link.id };
            self.certificate_expires_at_seconds.get_or_create(&labels).set(seconds(link.not_after));
        }
    }

    /// Counts one handshake: with whom, or why not.
    pub fn handshake(&self, direction: &'static str, shaken: Result<&VerifiedPeer, Reason>) {
        let reason = match shaken {
            Ok(peer) => {
                self.key_exchanges.get_or_create(&GroupLabels { direction, group: peer.key_exchange_group() }).inc();
                "ok"
            }
            Err(reason) => reason.as_str(),
        };
        self.handshakes.get_or_create(&OutcomeLabels { direction, reason }).inc();
    }

    /// Counts one connection that ended.
    pub fn connection(&self, direction: &'static str, reason: Option<Reason>) {
        let reason = reason.map_or("ok", Reason::as_str);
        self.connections.get_or_create(&OutcomeLabels { direction, reason }).inc();
    }

    /// Counts one plaintext connection to a permissive port. Addresses beyond the bound are counted together.
    pub fn plaintext(&self, source: IpAddr) {
        let mut known = self.plaintext_sources.lock();
        let is_told = known.contains(&source) || (known.len() < PLAINTEXT_SOURCES_MAX && known.insert(source));
        drop(known);
        let source = if is_told { source.to_string() } else { "other".to_owned() };
        self.plaintext.get_or_create(&SourceLabels { source }).inc();
    }

    /// Counts one answer that would have been another. Policies beyond the bound are counted together.
    pub fn shadowed(&self, policy: &str, would: Would) {
        let mut known = self.shadow_policies.lock();
        let is_told = known.contains(policy) || (known.len() < SHADOW_POLICIES_MAX && known.insert(policy.to_owned()));
        drop(known);
        let policy = if is_told { policy.to_owned() } else { "other".to_owned() };
        self.shadow_would.get_or_create(&ShadowLabels { policy, would: would.as_str() }).inc();
    }

    /// The exposition text (OpenMetrics 1.0).
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ok = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
