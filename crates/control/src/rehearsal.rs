//! The rehearsal of a rotation: every connected sidecar gets an SVID of a shadow authority and makes real handshakes with it.
//!
//! The shadow authority lives in memory for the length of the rehearsal. No bundle, revision or record knows of it.

use crate::ca::Ca;
use crate::desired::Board;
use crate::rollout::Rollout;
use identity::authority::{Authority, AuthorityError};
use identity::key::KeyFailure;
use model::snapshot::TrustBundle;
use model::{Timestamp, WorkloadName};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use wire::rehearsal::{Handshake, Order, Report, Step};

/// Life of the shadow authority; a rehearsal is over long before.
const SHADOW_LIFETIME: Duration = Duration::from_secs(600);
/// For every sidecar to get its shadow SVID.
const PREPARE_DEADLINE: Duration = Duration::from_secs(20);
/// For every sidecar to make its handshakes.
const SHAKE_DEADLINE: Duration = Duration::from_secs(60);

/// Why there is no rehearsal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalFailure {
    /// One at a time.
    #[error("a rehearsal is under way; wait for its end")]
    UnderWay,
    /// Nobody is there.
    #[error("no sidecar is connected: there is nobody to rehearse with")]
    Nobody,
    /// No shadow authority could be made.
    #[error("shadow authority: {0}")]
    Authority(#[from] AuthorityError),
    /// No randomness.
    #[error("{0}")]
    Key(#[from] KeyFailure),
}

/// One sidecar's part.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) workload: String,
    pub(crate) failure: Option<String>,
    pub(crate) handshakes: Vec<Handshake>,
}

/// The orders to the streams, and what they bring back.
#[derive(Debug)]
pub(crate) struct Rehearsals {
    order: watch::Sender<Option<Arc<Order>>>,
    reports: Mutex<BTreeMap<WorkloadName, Report>>,
    reported: Notify,
    under_way: tokio::sync::Mutex<()>,
}

impl Default for Rehearsals {
    fn default() -> Self {
        Self {
            order: watch::Sender::new(None),
            reports: Mutex::default(),
            reported: Notify::new(),
            under_way: tokio::sync::Mutex::default(),
        }
    }
}

impl Rehearsals {
    /// Told of every order.
    pub(crate) fn orders(&self) -> watch::Receiver<Option<Arc<Order>>> {
        self.order.subscribe()
    }

    /// A sidecar reports the step that was ordered last.
    pub(crate) fn report(&self, workload: &WorkloadName, report: Report) {
        let is_expected = self.order.borrow().as_ref().is_some_and(|order| order.id == report.id);
        if is_expected {
            self.reports.lock().insert(workload.clone(), report);
            self.reported.notify_one();
        }
    }

    /// The whole rehearsal. Gives each sidecar's part and the number of SVIDs that the shadow authority issued.
    pub(crate) async fn run(
        &self,
        ca: &Ca,
        board: &Board,
        rollout: &Rollout,
        now: Timestamp,
    ) -> Result<(Vec<Part>, u64), RehearsalFailure> {
        let Ok(_one) = self.under_way.try_lock() else { return Err(RehearsalFailure::UnderWay) };
        let connected: BTreeSet<WorkloadName> = rollout.connected_workloads().into_iter().collect();
        if connected.is_empty() {
            return Err(RehearsalFailure::Nobody);
        }
        let domain = board.current().mesh.settings.trust_domain.clone();
        let shadow = Authority::generate(&domain, now, SHADOW_LIFETIME)?;
        let bundle = TrustBundle::x509(domain, vec![shadow.certificate_der().to_vec()]);
        let id = format!("r-{}", hex::encode(identity::random_bytes::<8>()?));
        ca.set_shadow(Some((id.clone(), shadow)));
        // Also if whoever asked goes away in the middle.
        let _end = End { rehearsals: self, ca, id: id.clone() };

        let prepared = self.step(&id, Step::Prepare(bundle), &connected, PREPARE_DEADLINE).await;
        let ready: BTreeSet<WorkloadName> =
            prepared.iter().filter(|(_, told)| told.is_ok()).map(|(name, _)| name.clone()).collect();
        let issued = u64::try_from(ready.len()).unwrap_or(u64::MAX);
        let mut shaken = self.step(&id, Step::Shake, &ready, SHAKE_DEADLINE).await;
        let mut parts = Vec::new();
        for (workload, told) in prepared {
            let told = told.and_then(|_| shaken.remove(&workload).unwrap_or_else(|| Err("did not answer".to_owned())));
            let (failure, handshakes) = match told {
                Ok(report) => (None, report.handshakes),
                Err(failure) => (Some(failure), Vec::new()),
            };
            parts.push(Part { workload: workload.to_string(), failure, handshakes });
        }
        // Who is away would hold up a real rotation, or be cut off by it: neither is a success.
        for workload in board.current().mesh.workloads.iter().map(|workload| &workload.name) {
            if !connected.contains(workload) {
                let failure = Some("is not connected; a rotation would wait until it is, or until its SVID ends".to_owned());
                parts.push(Part { workload: workload.to_string(), failure, handshakes: Vec::new() });
            }
        }
        parts.sort_by(|one, other| one.workload.cmp(&other.workload));
        Ok((parts, issued))
    }

    /// Orders one step and waits for the reports of all who take part.
    async fn step(
        &self,
        id: &str,
        step: Step,
        who: &BTreeSet<WorkloadName>,
        within: Duration,
    ) -> BTreeMap<WorkloadName, Result<Report, String>> {
        self.reports.lock().clear();
        self.order.send_replace(Some(Arc::new(Order { id: id.to_owned(), step })));
        let deadline = Instant::now() + within;
        loop {
            let reported = self.reported.notified();
            if who.iter().all(|workload| self.reports.lock().contains_key(workload)) {
                break;
            }
            if timeout_at(deadline, reported).await.is_err() {
                break;
            }
        }
        let mut reports = std::mem::take(&mut *self.reports.lock());
        let mut told = BTreeMap::new();
        for workload in who {
            let outcome = match reports.remove(workload) {
                Some(Report { failure: Some(failure), .. }) => Err(failure),
                Some(report) => Ok(report),
                None => Err(format!("did not answer within {} s", within.as_secs())),
            };
            told.insert(workload.clone(), outcome);
        }
        told
    }
}

/// Ends a rehearsal, however it comes to its end.
struct End<'a> {
    rehearsals: &'a Rehearsals,
    ca: &'a Ca,
    id: String,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.ca.set_shadow(None);
        let order = Order { id: self.id.clone(), step: Step::End };
        self.rehearsals.order.send_replace(Some(Arc::new(order)));
    }
}
