//! The application's own SVID: of another key than the sidecar's, issued once somebody asks for it, renewed while anybody listens.

use crate::anchor::Anchor;
use crate::clock;
use crate::control_link;
use crate::rotate::{self, ISSUE_DEADLINE, IssueFailure, SLEEP_MAX};
use crate::state::Shared;
use identity::credentials::Credentials;
use identity::key::PrivateKey;
use identity::rotation::{self, RotationState, Step};
use identity::{X509Svid, csr};
use model::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use wire::client::{ControlClient, IssueCall};

/// How long one who asks may wait for an attempt to end: a connection, a handshake, and the call.
const OBTAIN_DEADLINE: Duration = Duration::from_secs(20);

/// While nothing is held, an application waits: the pauses between attempts stop growing after so many failures, at 8 s.
const PAUSES_GROW_FOR: u32 = 4;

/// An SVID and its key, to be handed to the application.
#[derive(Debug)]
pub struct ApplicationSvid {
    svid: X509Svid,
    key: PrivateKey,
    issued_at: Timestamp,
}

impl ApplicationSvid {
    /// The certificate chain and what it says.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// The private key, which is nobody else's.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    fn state(&self, failures: u32, last_attempt: Option<Timestamp>) -> RotationState {
        RotationState {
            not_before: self.svid.not_before(),
            not_after: self.svid.not_after(),
            issued_at: self.issued_at,
            failures,
            last_attempt,
        }
    }
}

/// Why the application gets no SVID now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoSvid {
    /// The workload has no identity that could be lent: not yet, or not any more.
    #[error("this workload has no identity yet; once it has an SVID of its own, the application gets one")]
    NoIdentity,
    /// The last attempt failed, and there is no earlier SVID that is still good.
    #[error("no SVID could be issued for the application: {0}")]
    Failed(Arc<IssueFailure>),
    /// No attempt has ended in time.
    #[error("no SVID was issued for the application within {} ms", OBTAIN_DEADLINE.as_millis())]
    Timeout,
}

/// What is held, and how the last attempt went.
#[derive(Debug, Default)]
struct Held {
    svid: Option<Arc<ApplicationSvid>>,
    /// Attempts that have ended.
    attempts: u64,
    /// Why the last one failed, and before which moment no other is made.
    failure: Option<(Arc<IssueFailure>, Timestamp)>,
    /// Spreads the renewals of those that started together.
    jitter: f64,
}

/// Holds the application's SVID and keeps it fresh.
#[derive(Debug)]
pub struct ApplicationSvids {
    shared: Arc<Shared>,
    anchor: Anchor,
    held: watch::Sender<Held>,
    listeners: watch::Sender<usize>,
}

/// Somebody who wants to have the latest SVID; while there is one, it is renewed.
#[derive(Debug)]
pub struct Listener {
    svids: Arc<ApplicationSvids>,
    changes: watch::Receiver<Held>,
}

impl ApplicationSvids {
    /// With none yet.
    pub fn new(shared: Arc<Shared>, anchor: Anchor) -> Arc<Self> {
        let held = Held { jitter: rotate::jitter(), ..Held::default() };
        Arc::new(Self { shared, anchor, held: watch::Sender::new(held), listeners: watch::Sender::new(0) })
    }

    /// From now on the SVID is kept fresh, until what is returned is dropped.
    pub fn listen(self: &Arc<Self>) -> Listener {
        self.listeners.send_modify(|count| *count += 1);
        Listener { svids: Arc::clone(self), changes: self.held.subscribe() }
    }

    /// The SVID that is held, if it has not ended and is not revoked.
    fn good(&self, now: Timestamp) -> Option<Arc<ApplicationSvid>> {
        let held = self.held.borrow().svid.clone()?;
        (now < held.svid.not_after() && !self.shared.revokes(held.svid.serial())).then_some(held)
    }

    /// The loop: wait while nobody listens, wait, or issue, for as long as the process lives.
    pub async fn run(&self) {
        let (mut configured, mut identities) = (self.shared.config.subscribe(), self.shared.credentials.subscribe());
        let mut listeners = self.listeners.subscribe();
        let (mut failures, mut last_attempt) = (0, None);
        // An SVID that must be replaced before its time, and since when.
        let mut urgent: Option<(String, Timestamp)> = None;
        loop {
            if listeners.wait_for(|count| *count > 0).await.is_err() {
                return;
            }
            let now = clock::now();
            let good = self.good(now);
            let overtaken = good.as_ref().filter(|good| self.shared.is_tainted(&good.svid));
            urgent = overtaken.map(|good| match urgent.take() {
                Some((known, since)) if known == good.svid.serial() && since <= now => (known, since),
                Some(_) | None => (good.svid.serial().to_owned(), now),
            });
            let jitter = self.held.borrow().jitter;
            let step = match (good, last_attempt) {
                // Only a proven workload is answered: without an identity there is nothing to ask with.
                _ if !self.shared.has_identity(now) => Step::WaitUntil(now.plus(SLEEP_MAX)),
                (Some(good), _) => {
                    let since = urgent.as_ref().map(|(_, since)| *since);
                    rotation::next_of(now, &good.state(failures, last_attempt), since, jitter)
                }
                (None, Some(attempt)) => rotation::retry(now, attempt, failures.clamp(1, PAUSES_GROW_FOR), jitter),
                (None, None) => Step::Issue,
            };
            match step {
                Step::WaitUntil(at) => {
                    let sleep = tokio::time::sleep(at.since(now).clamp(Duration::from_millis(20), SLEEP_MAX));
                    tokio::select! {
                        () = sleep => {}
                        Ok(()) = configured.changed() => {}
                        Ok(()) = identities.changed() => {}
                        Ok(()) = listeners.changed() => {}
                    }
                }
                Step::Issue => {
                    last_attempt = Some(now);
                    let outcome = self.issue().await;
                    failures = if outcome.is_ok() { 0 } else { failures + 1 };
                    self.note(outcome, now, failures);
                }
            }
        }
    }

    /// Keeps the outcome of an attempt and tells those who wait for it. A failure takes nothing away.
    fn note(&self, outcome: Result<ApplicationSvid, IssueFailure>, attempted: Timestamp, failures: u32) {
        let metrics = &self.shared.metrics;
        match outcome {
            Ok(issued) => {
                metrics.application_svids.inc();
                tracing::info!(serial = issued.svid.serial(), not_after = %issued.svid.not_after(), "SVID issued for the application");
                self.held.send_modify(|held| {
                    let (svid, attempts) = (Some(Arc::new(issued)), held.attempts + 1);
                    *held = Held { svid, attempts, failure: None, jitter: rotate::jitter() };
                });
            }
            Err(failure) => {
                metrics.application_svid_failures.inc();
                if failures == 1 || failures.is_multiple_of(10) {
                    tracing::warn!(failures, %failure, "no SVID could be issued for the application");
                }
                self.held.send_modify(|held| {
                    let again = match rotation::retry(attempted, attempted, failures.min(PAUSES_GROW_FOR), held.jitter) {
                        Step::WaitUntil(at) => at,
                        Step::Issue => attempted,
                    };
                    held.attempts += 1;
                    held.failure = Some((Arc::new(failure), again));
                });
            }
        }
    }

    /// One issuance over a channel that the sidecar's own SVID speaks for.
    async fn issue(&self) -> Result<ApplicationSvid, IssueFailure> {
        let shared = &self.shared;
        let key = PrivateKey::generate()?;
        let own = shared.credentials().map(|own| own.svid().id().clone());
        let wanted = own.unwrap_or_else(|| self.anchor.control_plane.clone());
        let request = csr::build(&key, &wanted)?;
        let channel = control_link::channel(shared, &self.anchor).await?;
        let workload = shared.settings.workload.to_string();
        let call = IssueCall { csr: request, workload, for_application: true, ..IssueCall::default() };
        let issued = ControlClient::new(channel).issue(call, ISSUE_DEADLINE).await?;
        let now = clock::now();
        let bundles = rotate::bundles_with(shared, &issued)?;
        // As any peer would check it, and that it is this key's.
        let svid = Credentials::build(&key, issued.chain, Arc::new(bundles), now)?.svid().clone();
        if *svid.id() != wanted {
            return Err(IssueFailure::Foreign { wanted, got: svid.id().clone() });
        }
        Ok(ApplicationSvid { svid, key, issued_at: now })
    }
}

impl Listener {
    /// The SVID to use now. Waits for an attempt if there is none that is good, or if it is due; if the attempt fails, the one that is
    /// held is given until it ends.
    ///
    /// # Errors
    /// - [`NoSvid`].
    pub async fn obtain(&mut self) -> Result<Arc<ApplicationSvid>, NoSvid> {
        let svids = &self.svids;
        let now = clock::now();
        let good = svids.good(now);
        if good.is_none() && !svids.shared.has_identity(now) {
            return Err(NoSvid::NoIdentity);
        }
        let (seen, is_backing_off, jitter) = {
            let held = self.changes.borrow_and_update();
            (held.attempts, held.failure.as_ref().is_some_and(|(_, again)| *again > now), held.jitter)
        };
        let is_fresh = |good: &ApplicationSvid| rotation::next(now, Some(&good.state(0, None)), jitter) != Step::Issue;
        let is_settled = good.as_deref().is_some_and(is_fresh) || is_backing_off || !svids.shared.has_identity(now);
        if !is_settled {
            let ended = timeout(OBTAIN_DEADLINE, self.changes.wait_for(|held| held.attempts > seen)).await;
            if ended.is_err() {
                return svids.good(clock::now()).ok_or(NoSvid::Timeout);
            }
        }
        let failure = svids.held.borrow().failure.as_ref().map(|(failure, _)| Arc::clone(failure));
        svids.good(clock::now()).ok_or_else(|| failure.map_or(NoSvid::Timeout, NoSvid::Failed))
    }

    /// Waits until another SVID is held, or another attempt has failed.
    pub async fn changed(&mut self) {
        // The sender lives as long as `self`, so that this ends with a change only.
        let _changed = self.changes.changed().await.is_ok();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.svids.listeners.send_modify(|count| *count = count.saturating_sub(1));
    }
}
