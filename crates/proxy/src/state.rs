//! What all connections of the process share: three live cells, each replaced whole, and the things that count.

use crate::clock;
use crate::country::{self, CountryFile};
use crate::gate::Gate;
use crate::introspect::Introspections;
use crate::issuers::Issuers;
use crate::rehearsal::Rehearsal;
use crate::revocable::Opened;
use crate::rotate;
use crate::settings::Settings;
use crate::shadow::Tallies;
use crate::standing::STREAM_AFTER;
use crate::sync::Compiled;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::decisions::Decisions;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::recent::Recent;
use crate::turns::Turns;
use futures_util::FutureExt;
use identity::X509Svid;
use identity::credentials::Credentials;
use identity::rotation;
use model::snapshot::TrustBundle;
use model::snapshot::{Endpoint, Inbound, Upstream};
use model::{Principal, Revision, Snapshot, Timestamp};
use parking_lot::RwLock;
use policy::{Policies, Shadow};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use token::{KeySets, Proofs, Resource, Revocations, TokenCache, VerifiedClaims};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Verified tokens that are remembered per process.
const TOKENS_REMEMBERED: usize = 10_000;

/// A snapshot together with its compiled policies: what a request works from, taken once per request.
#[derive(Debug)]
pub struct Active {
    /// The configuration.
    pub snapshot: Snapshot,
    /// Its policies, compiled.
    pub policies: Policies,
    /// The same together with those in shadow mode, if there are any.
    pub shadow: Option<Shadow>,
    /// Why those in shadow mode are not tried.
    pub shadow_refused: Option<String>,
    /// The workload itself, as a caller of others.
    pub principal: Principal,
    /// Which replacement of the configuration it is; whatever it judges is remembered by it.
    pub generation: u64,
    /// The tokens that it refuses.
    pub revoked_tokens: Revocations,
    /// The metadata of its protected resource.
    pub resource: Option<Resource>,
    /// The database of countries, if there is one and a policy reads the country.
    pub country_file: Option<Arc<CountryFile>>,
}

impl Active {
    /// The headers to read of a request with this action: those that some policy reads, also in shadow mode.
    pub fn header_names(&self, action: &str) -> &[String] {
        self.shadow.as_ref().map_or_else(|| self.policies.header_names(action), |shadow| shadow.header_names(action))
    }

    /// Whether some policy of this action reads the country, also in shadow mode.
    pub fn reads_country(&self, action: &str) -> bool {
        self.shadow.as_ref().map_or_else(|| self.policies.reads_country(action), |shadow| shadow.reads_country(action))
    }

    /// Passes what a token that was good when it came has opened, for as long as its issuer is believed and it is not revoked.
    ///
    /// # Errors
    /// - [`token::Refusal::IssuerUnknown`], [`token::Refusal::Revoked`].
    pub fn still_takes(&self, claims: &VerifiedClaims, now: Timestamp) -> Result<(), token::Refusal> {
        let issuers = &self.snapshot.issuers;
        if !issuers.iter().any(|issuer| issuer.name == claims.issuer()) {
            return Err(token::Refusal::IssuerUnknown { configured: issuers.len() });
        }
        self.revoked_tokens.check(claims, now)
    }

    /// The inbound port at this address.
    pub fn inbound_at(&self, listen: SocketAddr) -> Option<&Inbound> {
        self.snapshot.inbound.iter().find(|inbound| inbound.listen == listen)
    }

    /// The upstream that the application means by this address: its own address, or that of one of its endpoints.
    pub fn upstream_at(&self, address: SocketAddr) -> Option<Called<'_>> {
        let upstreams = &self.snapshot.upstreams;
        if let Some(upstream) = upstreams.iter().find(|upstream| upstream.listen == Some(address)) {
            return Some(Called { upstream, endpoint: None });
        }
        let mut endpoints = upstreams.iter().flat_map(|upstream| upstream.endpoints.iter().map(move |each| (upstream, each)));
        let (upstream, endpoint) = endpoints.find(|(_, endpoint)| self.snapshot.captured && endpoint.address == address)?;
        Some(Called { upstream, endpoint: Some(endpoint) })
    }
}

/// What the application calls.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// The service.
    pub upstream: &'a Upstream,
    /// The one endpoint, where the application called it by its own address.
    pub endpoint: Option<&'a Endpoint>,
}

impl Called<'_> {
    /// Where the call may go.
    pub fn endpoints(&self) -> &[Endpoint] {
        self.endpoint.map_or(&self.upstream.endpoints, std::slice::from_ref)
    }
}

/// A request that met a token by an unknown key asks for that issuer's keys to be fetched.
#[derive(Debug)]
pub struct KeyRequest {
    /// The `TokenIssuer`'s name.
    pub issuer: String,
    /// Told when a fetch ended or was not due; the request then checks its token once more.
    pub done: oneshot::Sender<()>,
}

/// What the process shares. Made once in `start`.
#[derive(Debug)]
pub struct Shared {
    /// What the process was told at its start.
    pub settings: Settings,
    /// Live cell: the configuration in force. `None` until the first was applied.
    pub config: watch::Sender<Option<Arc<Active>>>,
    /// Live cell: own SVID and trust bundles. `None` until the first was issued.
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
    /// Live cell: the issuers' keys.
    pub keys: watch::Sender<Arc<KeySets>>,
    /// Counts every replacement of the configuration, after it was replaced.
    pub generation: AtomicU64,
    /// When this was made.
    started: Instant,
    /// When the configuration was replaced last, in milliseconds since then.
    changed_ms: AtomicU64,
    /// Counts the configurations that were made to be put in force.
    made: AtomicU64,
    /// Counts every replacement of the keys, after they were replaced; whatever they verify is remembered by it.
    pub keys_generation: AtomicU64,
    /// Verified tokens.
    pub tokens: TokenCache,
    /// Turns at checking tokens that are not among them.
    pub turns: Turns,
    /// DPoP proofs that came.
    pub proofs: Proofs,
    /// Connections to peers, to be cut off when an SVID is revoked.
    pub opened: Opened,
    /// The rehearsal of a rotation, while one is under way.
    pub rehearsal: RwLock<Option<Rehearsal>>,
    /// Questions to issuers about opaque tokens.
    pub introspections: Introspections,
    /// What is known of the issuers, for people.
    pub issuers: Issuers,
    /// To the task that fetches keys.
    pub key_requests: mpsc::Sender<KeyRequest>,
    /// To the task that tells the control plane of decisions.
    pub decisions: Decisions,
    /// What policies in shadow mode would have changed.
    pub shadow: Tallies,
    /// The latest of them, for who asks on this machine.
    pub recent: Recent,
    /// To the task that writes the access log.
    pub access_log: AccessLog,
    /// Counters.
    pub metrics: Metrics,
    /// Places for inbound requests.
    pub gate: Gate,
    /// Whether the application's traffic is known to be redirected to this process.
    pub capture_proven: AtomicBool,
    /// Whether this process' own connections are redirected back to it, so that none may be carried further.
    pub capture_loops: AtomicBool,
    /// The other end of the last connection to the destination that only the redirection leads here.
    pub capture_seen: watch::Sender<Option<SocketAddr>>,
    /// Told when somebody on the machine asks the sidecar to end.
    pub quit: Notify,
    /// True once SIGTERM came.
    pub draining: watch::Sender<bool>,
    /// Whether the configuration stream is up.
    pub control_connected: AtomicBool,
    /// When the SVID in use was issued, in milliseconds; 0 before the first.
    pub issued_at: AtomicU64,
    /// How far this machine's clock is ahead of the control plane's, in milliseconds; negative if it is behind.
    pub clock_ahead_ms: AtomicI64,
}

impl Shared {
    /// How often configuration or keys were replaced. Read it before the configuration that it is to be compared with.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether requests may be under way that a change of the configuration was too early for.
    pub fn is_changing(&self) -> bool {
        let changed = Duration::from_millis(self.changed_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(changed) < STREAM_AFTER * 2
    }

    /// Empty cells.
    pub fn new(
        settings: Settings,
        key_requests: mpsc::Sender<KeyRequest>,
        decisions: Decisions,
        access_log: AccessLog,
        metrics: Metrics,
    ) -> Self {
        Self {
            settings,
            config: watch::Sender::new(None),
            credentials: watch::Sender::new(None),
            keys: watch::Sender::new(Arc::new(KeySets::default())),
            generation: AtomicU64::new(0),
            started: Instant::now(),
            changed_ms: AtomicU64::new(0),
            made: AtomicU64::new(0),
            keys_generation: AtomicU64::new(0),
            tokens: TokenCache::new(TOKENS_REMEMBERED),
            turns: Turns::default(),
            proofs: Proofs::since(clock::now()),
            opened: Opened::default(),
            rehearsal: RwLock::new(None),
            introspections: Introspections::default(),
            issuers: Issuers::default(),
            key_requests,
            decisions,
            shadow: Tallies::default(),
            recent: Recent::default(),
            access_log,
            metrics,
            gate: Gate::default(),
            capture_proven: AtomicBool::new(false),
            capture_loops: AtomicBool::new(false),
            capture_seen: watch::Sender::new(None),
            quit: Notify::new(),
            draining: watch::Sender::new(false),
            control_connected: AtomicBool::new(false),
            issued_at: AtomicU64::new(0),
            clock_ahead_ms: AtomicI64::new(0),
        }
    }

    /// The configuration in force.
    pub fn active(&self) -> Option<Arc<Active>> {
        self.config.borrow().clone()
    }

    /// The credentials in force.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.borrow().clone()
    }

    /// The serial number of the SVID in force.
    pub fn serial(&self) -> Option<String> {
        self.credentials.borrow().as_ref().map(|own| own.svid().serial().to_owned())
    }

    /// The revision in force, 0 if none.
    pub fn revision(&self) -> Revision {
        self.config.borrow().as_ref().map_or(Revision(0), |active| active.snapshot.revision)
    }

    /// A configuration that is to be put in force, with everything that is made of it once.
    pub fn prepared(&self, snapshot: Snapshot, compiled: Compiled) -> Active {
        let Compiled { policies, shadow, shadow_refused, country_file } = compiled;
        Active {
            policies,
            shadow,
            shadow_refused,
            principal: snapshot.identity.clone().into(),
            generation: self.made.fetch_add(1, Ordering::Relaxed),
            revoked_tokens: Revocations::of(&snapshot.revoked_tokens),
            resource: Resource::of(&snapshot),
            country_file,
            snapshot,
        }
    }

    /// Puts a configuration in force, whole.
    pub fn replace_config(&self, active: Arc<Active>) {
        let count = |policies: usize| i64::try_from(policies).unwrap_or(i64::MAX);
        self.metrics.policies.set(count(active.policies.len()));
        self.metrics.policies_interpreted.set(count(active.policies.interpreted().count()));
        self.metrics.config_revision.set(i64::try_from(active.snapshot.revision.0).unwrap_or(i64::MAX));
        self.config.send_replace(Some(active));
        country::note(self);
        self.recent.let_go();
        self.changed_ms.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts key sets in force, whole.
    pub fn replace_keys(&self, keys: KeySets) {
        self.keys.send_replace(Arc::new(keys));
        self.keys_generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts credentials in force, whole: the next handshake takes them.
    pub fn replace_credentials(&self, credentials: Arc<Credentials>, issued_at: Timestamp) {
        self.issued_at.store(issued_at.millis(), Ordering::Release);
        self.metrics.certificates(&credentials);
        self.credentials.send_replace(Some(credentials));
    }

    /// Whether the SVID in use is revoked.
    pub fn is_revoked(&self) -> bool {
        self.credentials.borrow().as_ref().is_some_and(|own| own.bundles().is_revoked(own.svid().serial()))
    }

    /// Whether an SVID of this serial number is refused.
    pub fn revokes(&self, serial: &str) -> bool {
        self.credentials.borrow().as_ref().is_some_and(|own| own.bundles().is_revoked(serial))
    }

    /// Whether the authority of an SVID of the own trust domain is about to be retired.
    pub fn is_tainted(&self, svid: &X509Svid) -> bool {
        let Some(issuer) = svid.authority_key_id() else { return false };
        self.own_bundle().is_some_and(|bundle| bundle.tainted.iter().any(|tainted| tainted == issuer))
    }

    /// Whether the own SVID speaks for the workload.
    pub fn has_identity(&self, now: Timestamp) -> bool {
        self.credentials.borrow().as_ref().is_some_and(|own| rotate::is_good(own, now))
    }

    /// The bundles in force, own and foreign; without a configuration those that came with the SVID.
    pub fn bundles(&self) -> Vec<TrustBundle> {
        let active = self.active().map(|active| active.snapshot.bundles.clone());
        active.or_else(|| Some(self.credentials()?.bundles().to_model())).unwrap_or_default()
    }

    /// The bundle of the own trust domain that is in force.
    pub fn own_bundle(&self) -> Option<TrustBundle> {
        let active = self.active()?;
        let own = active.snapshot.identity.trust_domain();
        active.snapshot.bundles.iter().find(|bundle| bundle.trust_domain == *own).cloned()
    }

    /// The life of the SVID in use, as the rotation plan wants it.
    pub fn rotation_state(&self, failures: u32, last_attempt: Option<Timestamp>) -> Option<rotation::RotationState> {
        let credentials = self.credentials()?;
        let svid = credentials.svid();
        Some(rotation::RotationState {
            not_before: svid.not_before(),
            not_after: svid.not_after(),
            issued_at: Timestamp::from_millis(self.issued_at.load(Ordering::Acquire)),
            failures,
            last_attempt,
        })
    }

    /// Runs a part of a connection beside it, on the same worker. A panic ends this part only, and is counted.
    pub fn watch(self: &Arc<Self>, part: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        // An `async` block would hold the part twice: where it was before it was waited for, and where it is.
        tokio::spawn(AssertUnwindSafe(part).catch_unwind().map(move |ended| {
            if ended.is_err() {
                shared.metrics.connection_panics.inc();
                tracing::error!("a request ended by a panic; please report it");
            }
        }));
    }

    /// Waits until SIGTERM came.
    pub async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        // The sender lives as long as `self`, so that this can only end with the word.
        let _told = draining.wait_for(|draining| *draining).await.is_ok();
    }

    /// Whether a policy reads the country, and there is no database that was ever read.
    fn lacks_countries(&self) -> bool {
        let Some(active) = self.active() else { return false };
        let lacks = active.country_file.as_ref().is_some_and(|file| file.built_at().is_none());
        lacks && active.policies.reads_any_country()
    }

    /// What is not as it should be, and no reason not to be called.
    pub fn degraded(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        if !self.control_connected.load(Ordering::Relaxed) {
            degraded.push("control plane: not connected; working on the last good configuration".to_owned());
        }
        let failure = self.active().and_then(|active| active.country_file.as_ref()?.failure());
        degraded.extend(failure.map(|failure| format!("country: {}", failure.text)));
        degraded
    }

    /// What is missing before this sidecar may be called ready. Empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.active().is_none() {
            missing.push("configuration: none applied yet");
        }
        match self.rotation_state(0, None) {
            None if self.settings.identity_socket.is_some() => {
                missing.push("identity: the identity socket has given no SVID that can be used; the log says why");
            }
            None => missing.push("identity: no SVID issued yet"),
            Some(state) if !rotation::ready(clock::now(), &state) => {
                missing.push("identity: the SVID is near its end and was not rotated");
            }
            Some(_) if self.is_revoked() && self.settings.identity_socket.is_some() => {
                missing.push("identity: the SVID is revoked; the identity socket must give another");
            }
            Some(_) if self.is_revoked() => missing.push("identity: the SVID is revoked; a new join token gets another"),
            Some(_) => {}
        }
        if self.capture_loops.load(Ordering::Acquire) {
            missing.push(
                "capture: the sidecar's own connections are redirected back to it; run it as the user or group that \
                 `rondel-proxy capture apply --proxy-uid` or `--proxy-gid` was told",
            );
        } else if self.settings.capture && !self.capture_proven.load(Ordering::Acquire) {
            missing.push("capture: the application's traffic is not redirected here; run `rondel-proxy capture apply`");
        }
        if self.lacks_countries() {
            missing.push("country: a policy reads it, and its database cannot be read; the log and `rondel status` say why");
        }
        if *self.draining.borrow() {
            missing.push("draining: SIGTERM received");
        }
        missing
    }
}
