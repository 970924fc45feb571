//! The configuration stream: receive, apply whole or refuse whole, then say so.

use crate::anchor::Anchor;
use crate::clock;
use crate::control_link;
use crate::country::{self, CountryFile};
use crate::disk::{self, DiskFailure};
use crate::issuers;
use crate::listener::{BindFailure, Listeners};
use crate::rehearsal;
use crate::shadow;
use crate::state::{Active, Shared};
use crate::telemetry::decisions::{Explainer, Told};
use crate::workers::Workers;
use identity::Credentials;
use identity::bundle::{BundleError, TrustBundles};
use identity::credentials::CredentialsError;
use model::{DecisionRecord, Revision, Snapshot};
use policy::{Policies, PolicyError, Shadow};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wire::client::{Answers, ControlClient, Hello, Received, Updates};
use wire::{Candidate, Subscription};

/// First pause after a lost stream; it doubles up to the maximum.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// For the opening of the stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// For the records in flight to arrive when a report stream is ended by us.
const REPORT_END_DEADLINE: Duration = Duration::from_secs(5);
/// Records on their way in one report stream.
const REPORTS_IN_FLIGHT: usize = 64;

/// Why a configuration is refused. The text goes to the control plane as the nack's reason.
#[derive(Debug, thiserror::Error)]
pub enum ApplyFailure {
    /// It is the configuration of another workload.
    #[error("the configuration is for `{got}`, this sidecar stands beside `{wanted}`")]
    Foreign {
        /// Who we are.
        wanted: String,
        /// Whose it is.
        got: String,
    },
    /// It is older than the one in force.
    #[error("revision {got} is older than revision {running}, which is in force")]
    Older {
        /// The revision in force.
        running: Revision,
        /// The offered one.
        got: Revision,
    },
    /// A policy does not compile.
    #[error("policies: {0}")]
    Policies(String),
    /// A bundle cannot be used.
    #[error("trust bundles: {0}")]
    Bundles(#[from] BundleError),
    /// The own SVID does not stand under the new bundles.
    #[error("own SVID under the new trust bundles: {0}")]
    Credentials(#[from] CredentialsError),
    /// A listener cannot be opened.
    #[error("{0}")]
    Bind(#[from] BindFailure),
    /// The configuration and the start of this process disagree about capture: addresses would be taken for what they are not.
    #[error("`captured` is {} in the configuration, and this sidecar was started {} `--capture`", !wanted, if *wanted { "with" } else { "without" })]
    Capture {
        /// How the process was started.
        wanted: bool,
    },
    /// The control plane's signature is not one over this configuration.
    #[error("signature: {0}")]
    Signature(#[from] DiskFailure),
}

/// Applies configurations. The only owner of the listening sockets.
#[derive(Debug)]
pub struct Applier {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    listeners: Listeners,
}

impl Applier {
    /// With nothing applied.
    pub fn new(shared: Arc<Shared>, workers: Arc<Workers>) -> Self {
        Self { shared, workers, listeners: Listeners::default() }
    }

    /// Puts a snapshot and its compiled policies in force: everything that can fail happens before the first change.
    ///
    /// # Errors
    /// - [`ApplyFailure`]; what was in force stays in force.
    pub fn apply(&mut self, snapshot: Snapshot, compiled: Compiled) -> Result<(), ApplyFailure> {
        let wanted = &self.shared.settings.workload;
        if snapshot.workload != *wanted {
            return Err(ApplyFailure::Foreign { wanted: wanted.to_string(), got: snapshot.workload.to_string() });
        }
        let credentials = self.shared.credentials();
        if let Some(own) = credentials.as_ref().map(|credentials| credentials.svid().id())
            && *own != snapshot.identity
        {
            return Err(ApplyFailure::Foreign { wanted: own.to_string(), got: snapshot.identity.to_string() });
        }
        if snapshot.captured != self.shared.settings.capture {
            return Err(ApplyFailure::Capture { wanted: self.shared.settings.capture });
        }
        let running = self.shared.revision();
        if snapshot.revision < running {
            return Err(ApplyFailure::Older { running, got: snapshot.revision });
        }
        let bundles = Arc::new(bundles_of(&snapshot)?);
        let credentials = credentials.map(|own| own.with_bundles(bundles, clock::now())).transpose()?;
        self.shared.metrics.shadow_refused.set(compiled.shadow_refused.is_some().into());
        let active = Arc::new(self.shared.prepared(snapshot, compiled));
        let bound = self.listeners.bind(&active)?;

        if let Some(credentials) = credentials {
            let issued_at = model::Timestamp::from_millis(self.shared.issued_at.load(Ordering::Acquire));
            self.shared.replace_credentials(Arc::new(credentials), issued_at);
        }
        // An SVID that leaves the list has ended, and its connections with it.
        let before = self.shared.active();
        let is_known = |svid| before.as_ref().is_some_and(|before| before.snapshot.revoked.contains(svid));
        let is_revoking = !active.snapshot.revoked.iter().all(is_known);
        self.shared.replace_config(active);
        if is_revoking {
            self.end_revoked();
        }
        for worker in self.workers.each() {
            // What is under way for long is decided again.
            worker.connections.look();
        }
        self.listeners.switch(bound, &self.shared, &self.workers);
        Ok(())
    }

    /// Ends what is open with peers whose SVID is refused from now on.
    fn end_revoked(&self) {
        if let Some(own) = self.shared.credentials() {
            self.shared.opened.cut(|serial| own.bundles().is_revoked(serial));
        }
        for worker in self.workers.each() {
            worker.pool.leave_peers();
            worker.connections.look();
        }
    }

    /// Opens the ports to which traffic is redirected, before any configuration: until one is applied they refuse.
    ///
    /// # Errors
    /// - [`BindFailure`](crate::listener::BindFailure) naming the address.
    pub fn capture(&mut self) -> Result<(), crate::listener::BindFailure> {
        let addresses = self.shared.settings.capture_addresses();
        self.listeners.capture(&addresses, &self.shared, &self.workers)
    }

    /// Stops accepting connections of peers. The application may still open some: it is served until it is gone.
    pub fn close_inbound(&mut self) {
        self.listeners.close_inbound();
    }
}

/// What peers are checked with under a snapshot.
///
/// # Errors
/// - [`BundleError`] naming the authority that cannot be one.
pub fn bundles_of(snapshot: &Snapshot) -> Result<TrustBundles, BundleError> {
    Ok(restricted(TrustBundles::from_model(&snapshot.bundles)?, snapshot))
}

/// Bundles from elsewhere, under which everything that a snapshot refuses stays refused.
pub fn restricted(bundles: TrustBundles, snapshot: &Snapshot) -> TrustBundles {
    let revoked = snapshot.revoked.iter().map(|svid| svid.serial.clone());
    bundles.restricted(revoked, snapshot.post_quantum_required)
}

/// A snapshot's policies, compiled.
#[derive(Debug)]
pub struct Compiled {
    /// The policies.
    pub policies: Policies,
    /// The same together with those in shadow mode, if there are any.
    pub shadow: Option<Shadow>,
    /// Why those in shadow mode are not tried.
    pub shadow_refused: Option<String>,
    /// The database of countries, if a policy reads the country. That it cannot be read is told and denies the calls it is needed for.
    pub country_file: Option<Arc<CountryFile>>,
}

/// Compiles a snapshot's policies, and reads the database of countries if they need it; `before`: what is in force. Costs up to seconds for the largest texts: not for an async task. What is wrong with those in shadow
/// mode is told, and no reason not to put the others in force.
///
/// # Errors
/// - [`ApplyFailure::Policies`] with every error's place.
pub fn compile(snapshot: &Snapshot, before: Option<&Active>) -> Result<Compiled, ApplyFailure> {
    let listed = |errors: Vec<PolicyError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let policies = policy::compile(&snapshot.policies, &snapshot.issuers, &snapshot.roles)
        .map_err(|errors| ApplyFailure::Policies(listed(errors)))?
        .concealing(snapshot.sensitive.clone());
    let shadow = Shadow::compile(&snapshot.policies, &snapshot.shadow, &snapshot.issuers, &snapshot.roles).map_err(listed);
    if let Err(errors) = &shadow {
        tracing::warn!(errors, "the policies in shadow mode are not tried; those that decide are in force");
    }
    let shadow_refused = shadow.as_ref().err().cloned();
    let shadow = shadow.ok().flatten().map(|shadow| shadow.concealing(snapshot.sensitive.clone()));
    let reads_country = policies.reads_any_country() || shadow.as_ref().is_some_and(Shadow::reads_any_country);
    let before = before.and_then(|active| active.country_file.as_ref());
    let country_file = snapshot.country_database.as_ref().filter(|_| reads_country);
    let country_file = country_file.map(|path| CountryFile::open(path, &snapshot.limits, before));
    Ok(Compiled { policies, shadow, shadow_refused, country_file })
}

/// Keeps the configuration stream open for as long as the process lives.
pub async fn run(mut applier: Applier, anchor: Anchor) {
    let shared = Arc::clone(&applier.shared);
    let mut identities = shared.credentials.subscribe();
    let mut pause = PAUSE_MIN;
    let mut told = false;
    loop {
        if identities.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            ended = session(&mut applier, &anchor) => ended,
            () = shared.drained() => {
                applier.close_inbound();
                return std::future::pending().await;
            }
        };
        let was_connected = shared.control_connected.swap(false, Ordering::Relaxed);
        shared.metrics.control_connected.set(0);
        if was_connected {
            pause = PAUSE_MIN;
            told = false;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(cause = ended, "the configuration stream is down; the last good configuration stays in force");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Opens a stream with the present SVID.
async fn open(shared: &Shared, anchor: &Anchor) -> Result<(Answers, Updates), String> {
    let channel = control_link::channel(shared, anchor).await.map_err(|failure| failure.to_string())?;
    let hello = Hello {
        workload: shared.settings.workload.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: shared.revision(),
    };
    // Without a configuration nobody has said the limit yet: then the largest that it can be set to holds.
    let limit = model::Limit::ConfigMessageBytes;
    let bytes_max = shared.active().map_or(limit.range().1, |active| active.snapshot.limits.of(limit));
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    ControlClient::new(channel).config(hello, bytes_max, OPEN_DEADLINE).await.map_err(|failure| failure.to_string())
}

/// Waits for a later SVID than that of `serial`.
async fn rotated(identities: &mut watch::Receiver<Option<Arc<Credentials>>>, serial: Option<&str>) {
    let later = |now: &Option<Arc<Credentials>>| now.as_ref().is_some_and(|own| Some(own.svid().serial()) != serial);
    if identities.wait_for(later).await.is_err() {
        std::future::pending().await
    }
}

/// One stream after the other, each opened with the SVID of its time, until one ends by itself. Returns why it ended.
async fn session(applier: &mut Applier, anchor: &Anchor) -> String {
    let shared = Arc::clone(&applier.shared);
    let mut identities = shared.credentials.subscribe();
    let mut stream = None;
    loop {
        let serial = shared.serial();
        let opened = match open(&shared, anchor).await {
            Ok(opened) => opened,
            Err(failure) => return failure,
        };
        if stream.is_none() {
            tracing::info!("the configuration stream is up");
        }
        // The control plane ends a stream with the SVID that it was opened with: a new SVID opens the next one before that, and
        // only here is the earlier one dropped.
        let stream = stream.insert(opened);
        let answers = stream.0.clone();
        tokio::select! {
            ended = follow(applier, anchor, stream) => return ended,
            () = rotated(&mut identities, serial.as_deref()) => {}
            () = issuers::tell(&shared, answers.clone()) => {}
            () = country::tell(&shared, answers) => {}
        }
    }
}

/// The life of one stream. Returns why it ended.
async fn follow(applier: &mut Applier, anchor: &Anchor, (sender, receiver): &mut (Answers, Updates)) -> String {
    let shared = Arc::clone(&applier.shared);
    // A new stream begins with the whole: what an earlier stream had acknowledged is not taken for granted.
    let mut subscription = Subscription::new();
    loop {
        let update = match receiver.next().await {
            Ok(Some(Received::Update(update))) => *update,
            Ok(Some(Received::Rehearsal(order))) => {
                // Beside the stream: what it takes must not hold up a configuration.
                let (shared, anchor, sender) = (Arc::clone(&shared), anchor.clone(), sender.clone());
                tokio::spawn(async move {
                    let report = rehearsal::take(&shared, &anchor, order).await;
                    // The control plane may be gone: then nobody waits for it.
                    let _told = sender.report(report).await;
                });
                continue;
            }
            Ok(None) => return "the control plane ended the stream".to_owned(),
            Err(failure) => return failure.to_string(),
        };
        shared.control_connected.store(true, Ordering::Relaxed);
        shared.metrics.control_connected.set(1);
        let answer = match subscription.receive(update) {
            Ok(candidate) => match put_in_force(applier, &candidate, anchor).await {
                Ok(()) => {
                    tracing::info!(revision = %candidate.snapshot.revision, "configuration in force");
                    subscription.accept(candidate)
                }
                Err(failure) => {
                    tracing::warn!(revision = %candidate.snapshot.revision, %failure, "configuration refused; the last good one stays");
                    shared.metrics.config_rejected.inc();
                    if let Err(failure) = believe(applier, &candidate, anchor).await {
                        tracing::warn!(%failure, "whom that configuration believes is not in force either");
                    }
                    subscription.refuse(candidate, &failure.to_string())
                }
            },
            Err(nack) => {
                tracing::warn!(reason = %nack, "a message of the control plane cannot be read; the last good configuration stays");
                shared.metrics.config_rejected.inc();
                nack.into()
            }
        };
        if let Err(failure) = sender.send(answer).await {
            return failure.to_string();
        }
    }
}

/// Checks, applies and keeps one snapshot. That it cannot be kept on disk is logged, not refused: it is in force.
async fn put_in_force(applier: &mut Applier, candidate: &Candidate, anchor: &Anchor) -> Result<(), ApplyFailure> {
    disk::check(&candidate.snapshot, &candidate.signature, anchor)?;
    let (snapshot, policies) = compiled(candidate.snapshot.clone(), &applier.shared).await?;
    applier.apply(snapshot, policies)?;
    if let Err(failure) = disk::save(&applier.shared.settings.state, &candidate.snapshot, &candidate.signature) {
        tracing::warn!(%failure, "the configuration in force could not be kept on disk");
    }
    if let Err(failure) = anchor.learn(&candidate.snapshot.bundles) {
        tracing::warn!(%failure, "the trust bundle in force could not be kept on disk");
    }
    Ok(())
}

/// Puts in force whom a configuration believes that is refused otherwise: a port that is taken must keep no revoked certificate
/// alive. Nothing else of it is in force, and nothing of it is kept on disk.
async fn believe(applier: &mut Applier, candidate: &Candidate, anchor: &Anchor) -> Result<(), ApplyFailure> {
    disk::check(&candidate.snapshot, &candidate.signature, anchor)?;
    let refused = &candidate.snapshot;
    let Some(active) = applier.shared.active() else { return Ok(()) };
    let is_ours = refused.workload == active.snapshot.workload && refused.identity == active.snapshot.identity;
    if !is_ours || refused.revision < active.snapshot.revision {
        return Ok(());
    }
    let (bundles, revoked) = (refused.bundles.clone(), refused.revoked.clone());
    let revoked_tokens = refused.revoked_tokens.clone();
    let snapshot = Snapshot { bundles, revoked, revoked_tokens, ..active.snapshot.clone() };
    if snapshot == active.snapshot {
        return Ok(());
    }
    let (snapshot, policies) = compiled(snapshot, &applier.shared).await?;
    applier.apply(snapshot, policies)?;
    if let Err(failure) = anchor.learn(&candidate.snapshot.bundles) {
        tracing::warn!(%failure, "the trust bundle in force could not be kept on disk");
    }
    Ok(())
}

async fn compiled(snapshot: Snapshot, shared: &Shared) -> Result<(Snapshot, Compiled), ApplyFailure> {
    let before = shared.active();
    let compiled =
        tokio::task::spawn_blocking(move || compile(&snapshot, before.as_deref()).map(|policies| (snapshot, policies))).await;
    compiled.map_err(|_| ApplyFailure::Policies("the compilation ended by itself".to_owned()))?
}

/// Explains decision records and sends them to the control plane; those that cannot be sent wait in the bounded queue.
pub async fn report(shared: Arc<Shared>, anchor: Anchor, mut told: mpsc::Receiver<Arc<Told>>, mut explainer: Explainer) {
    let mut unsent: Option<DecisionRecord> = None;
    let mut identities = shared.credentials.subscribe();
    loop {
        if unsent.is_none() {
            tokio::select! {
                next = told.recv() => {
                    let Some(next) = next else { return };
                    unsent = explained(&shared, &mut explainer, next).await;
                }
                () = shadow::is_there(&shared) => {}
            }
        }
        if identities.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let serial = shared.serial();
        if let Ok(channel) = control_link::channel(&shared, &anchor).await {
            let (sender, receiver) = mpsc::channel(REPORTS_IN_FLIGHT);
            let client = ControlClient::new(channel);
            let mut call = std::pin::pin!(client.report(receiver));
            let ended = tokio::select! {
                () = shadow::tell(&shared, client.clone()) => Ok(0),
                ended = &mut call => ended.map_err(|failure| failure.to_string()),
                // The queue closes at the end of the process, and with a new SVID, which opens the next stream: what is in
                // flight then arrives before the call ends.
                () = feed(&shared, (&mut told, &mut unsent, &mut explainer), sender, rotated(&mut identities, serial.as_deref())) => {
                    timeout(REPORT_END_DEADLINE, call).await.map_or_else(|slow| Err(slow.to_string()), |ended| ended.map_err(|failure| failure.to_string()))
                }
            };
            if let Err(cause) = ended {
                tracing::debug!(cause, "the report stream ended");
            }
        }
        tokio::time::sleep(PAUSE_MIN).await;
    }
}

/// The record with its explanation, kept for who asks on this machine too.
async fn explained(shared: &Shared, explainer: &mut Explainer, told: Arc<Told>) -> Option<DecisionRecord> {
    let record = explainer.explain(told).await?;
    shared.recent.explained(&record);
    Some(record)
}

/// Feeds one report stream until it is closed, nothing more can come, or `rotated` ends.
async fn feed(
    shared: &Shared,
    (told, unsent, explainer): (&mut mpsc::Receiver<Arc<Told>>, &mut Option<DecisionRecord>, &mut Explainer),
    sender: mpsc::Sender<DecisionRecord>,
    rotated: impl Future<Output = ()>,
) {
    let mut rotated = std::pin::pin!(rotated);
    loop {
        if unsent.is_none() {
            // Only the wait is cut short: a record that was taken is explained and kept.
            let next = tokio::select! {
                next = told.recv() => next,
                () = &mut rotated => None,
            };
            let Some(next) = next else { return };
            *unsent = explained(shared, explainer, next).await;
        }
        let Ok(place) = sender.reserve().await else { return };
        if let Some(record) = unsent.take() {
            place.send(record);
        }
    }
}
