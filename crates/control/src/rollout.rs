//! Which proxy holds what: connections, acknowledged revisions, refusals, SVIDs.

use crate::desired::Desired;
use crate::rotation::Witness;
use crate::troubles::Trouble;
use model::issuers::IssuerReport;
use model::{Revision, Timestamp, WorkloadName};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What is known of one workload's sidecar.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The stream that is its own now; an earlier one was replaced.
    session: Option<u64>,
    pub(crate) acked: Revision,
    pub(crate) rejected: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) svid_expires_at: Option<Timestamp>,
    pub(crate) issued: u64,
    /// The authority of the SVID that its stream was opened with, and the key exchange; as long as the stream is up.
    proven: Option<String>,
    pub(crate) key_exchange: Option<&'static str>,
    /// What it told of its issuers, and when; as long as the stream is up.
    pub(crate) issuers: Option<(Timestamp, Arc<Vec<IssuerReport>>)>,
    /// What it told that an operator must look at; as long as the stream is up.
    troubles: Vec<model::issuers::Trouble>,
}

impl Seen {
    /// Whether its configuration stream is up.
    pub(crate) const fn connected(&self) -> bool {
        self.session.is_some()
    }
}

/// The state of every sidecar. Workloads that are no longer configured are forgotten when they are gone.
#[derive(Debug, Default)]
pub(crate) struct Rollout {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    seen: BTreeMap<WorkloadName, Seen>,
    sessions: u64,
    last: Option<(Revision, Duration)>,
}

/// What a stream was opened with.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// The SVID's, which need not be one that this control plane issued.
    pub(crate) serial: String,
    pub(crate) authority: Option<String>,
    pub(crate) not_after: Timestamp,
    pub(crate) key_exchange: &'static str,
}

impl Rollout {
    /// A stream begins, of a sidecar that says what it runs; an earlier one of the same workload is replaced. Returns the stream's
    /// number.
    pub(crate) fn connected(&self, workload: &WorkloadName, runs: Revision, opened: Opened) -> u64 {
        let mut inner = self.inner.lock();
        inner.sessions += 1;
        let session = inner.sessions;
        let seen = inner.seen.entry(workload.clone()).or_default();
        seen.session = Some(session);
        seen.acked = runs;
        seen.serial = Some(opened.serial);
        seen.svid_expires_at = Some(opened.not_after);
        seen.authority.clone_from(&opened.authority);
        seen.proven = opened.authority;
        seen.key_exchange = Some(opened.key_exchange);
        seen.issuers = None;
        seen.troubles.clear();
        session
    }

    /// Whether this stream was replaced by a later one.
    pub(crate) fn is_replaced(&self, workload: &WorkloadName, session: u64) -> bool {
        self.inner.lock().seen.get(workload).and_then(|seen| seen.session) != Some(session)
    }

    /// A stream has ended.
    pub(crate) fn disconnected(&self, workload: &WorkloadName, session: u64) {
        let mut inner = self.inner.lock();
        if let Some(seen) = inner.seen.get_mut(workload)
            && seen.session == Some(session)
        {
            seen.session = None;
            seen.proven = None;
            seen.key_exchange = None;
            seen.issuers = None;
            seen.troubles.clear();
        }
    }

    /// A sidecar has put a revision in force; what comes on a stream that was replaced says nothing of the one that is there now.
    /// Notes the time since publication when it was the last of the connected.
    pub(crate) fn acked(&self, workload: &WorkloadName, session: u64, revision: Revision, desired: &Desired) {
        let mut inner = self.inner.lock();
        if let Some(seen) = inner.seen.get_mut(workload).filter(|seen| seen.session == Some(session)) {
            seen.acked = revision;
            seen.rejected = None;
        }
        let all = inner.seen.values().filter(|seen| seen.connected()).all(|seen| seen.acked == desired.revision);
        let told = inner.last.is_some_and(|(last, _)| last == desired.revision);
        if all && !told {
            inner.last = Some((desired.revision, desired.published_at.elapsed()));
        }
    }

    /// A sidecar refuses a revision.
    pub(crate) fn rejected(&self, workload: &WorkloadName, session: u64, revision: Revision, reason: &str) {
        if let Some(seen) = self.inner.lock().seen.get_mut(workload).filter(|seen| seen.session == Some(session)) {
            seen.rejected = Some(format!("revision {revision}: {reason}"));
        }
    }

    /// A sidecar tells of its issuers.
    pub(crate) fn told(&self, workload: &WorkloadName, session: u64, issuers: Vec<IssuerReport>, now: Timestamp) {
        if let Some(seen) = self.inner.lock().seen.get_mut(workload).filter(|seen| seen.session == Some(session)) {
            seen.issuers = Some((now, Arc::new(issuers)));
        }
    }

    /// A sidecar tells of everything that an operator must look at there.
    pub(crate) fn troubled(&self, workload: &WorkloadName, session: u64, troubles: Vec<model::issuers::Trouble>) {
        if let Some(seen) = self.inner.lock().seen.get_mut(workload).filter(|seen| seen.session == Some(session)) {
            seen.troubles = troubles;
        }
    }

    /// What the connected sidecars told of.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let inner = self.inner.lock();
        let each = inner.seen.iter().flat_map(|(workload, seen)| seen.troubles.iter().map(move |trouble| (workload, trouble)));
        let told = |(workload, trouble): (&WorkloadName, &model::issuers::Trouble)| Trouble {
            message: format!("{workload}: {}", trouble.text),
            since: Some(trouble.at),
        };
        each.map(told).collect()
    }

    /// An SVID was issued to it.
    pub(crate) fn issued(&self, workload: &WorkloadName, serial: String, authority: String, not_after: Timestamp) {
        let mut inner = self.inner.lock();
        let seen = inner.seen.entry(workload.clone()).or_default();
        seen.serial = Some(serial);
        seen.authority = Some(authority);
        seen.svid_expires_at = Some(not_after);
        seen.issued += 1;
    }

    /// An SVID that was issued before this process started.
    pub(crate) fn restored(&self, workload: &WorkloadName, serial: &str, authority: &str, not_after: Timestamp) {
        let mut inner = self.inner.lock();
        let seen = inner.seen.entry(workload.clone()).or_default();
        if seen.svid_expires_at.is_none_or(|known| known < not_after) {
            seen.serial = Some(serial.to_owned());
            seen.authority = Some(authority.to_owned());
            seen.svid_expires_at = Some(not_after);
        }
        seen.issued = 1;
    }

    /// Forgets the workloads that are not configured any more, once they are gone and their last SVID has ended.
    pub(crate) fn forget_others(&self, configured: &BTreeSet<&WorkloadName>, now: Timestamp) {
        self.inner.lock().seen.retain(|workload, seen| {
            seen.connected() || configured.contains(workload) || seen.svid_expires_at.is_some_and(|end| now < end)
        });
    }

    /// What every sidecar's stream proves at this moment.
    pub(crate) fn witnesses(&self) -> Vec<Witness> {
        let inner = self.inner.lock();
        let witness = |(workload, seen): (&WorkloadName, &Seen)| Witness {
            workload: workload.to_string(),
            is_connected: seen.connected(),
            acked: seen.acked,
            rejected: seen.rejected.clone(),
            proven: seen.proven.clone(),
            alive: Vec::new(),
        };
        inner.seen.iter().map(witness).collect()
    }

    /// The workloads whose stream is up.
    pub(crate) fn connected_workloads(&self) -> Vec<WorkloadName> {
        let inner = self.inner.lock();
        inner.seen.iter().filter(|(_, seen)| seen.connected()).map(|(workload, _)| workload.clone()).collect()
    }

    /// What is known of one workload.
    pub(crate) fn of(&self, workload: &WorkloadName) -> Seen {
        self.inner.lock().seen.get(workload).cloned().unwrap_or_default()
    }

    /// The revision that was last in force at every connected sidecar, and how long that took from its publication.
    pub(crate) fn last(&self) -> Option<(Revision, Duration)> {
        self.inner.lock().last
    }

    /// Sidecars whose stream is up.
    pub(crate) fn connections(&self) -> usize {
        self.inner.lock().seen.values().filter(|seen| seen.connected()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Arc<Desired> {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(crate::store::Store::open(&dir.path().join("control.redb")).expect("store"));
        let text = "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: a }\nspec:\n  trustDomain: a.example\n";
        let sources = vec![config::Source { file: "a.yaml".into(), text: text.into() }];
        let begun = crate::desired::Begun::read(&store, Ok(sources)).expect("begun");
        crate::desired::Board::begin(store, begun, config::Trust::default()).expect("board").current()
    }

    fn opened(authority: &str) -> Opened {
        Opened {
            serial: "01".into(),
            authority: Some(authority.into()),
            not_after: Timestamp::from_seconds(9),
            key_exchange: "X25519",
        }
    }

    #[test]
    fn workloads_that_are_gone_for_good_are_forgotten() {
        let rollout = Rollout::default();
        let names = ["a/configured", "a/connected", "a/away", "a/gone"].map(|name| WorkloadName::parse(name).expect("name"));
        let (before, now, after) = (Timestamp::from_seconds(9), Timestamp::from_seconds(10), Timestamp::from_seconds(11));
        for (name, end) in names.iter().zip([before, before, after, before]) {
            let session = rollout.connected(name, Revision(1), opened("0b"));
            rollout.issued(name, "0a".into(), "0b".into(), end);
            if name != &names[1] {
                rollout.disconnected(name, session);
            }
        }
        rollout.forget_others(&BTreeSet::from([&names[0]]), now);
        let left: Vec<String> = rollout.witnesses().into_iter().map(|witness| witness.workload).collect();
        assert_eq!(left, ["a/away", "a/configured", "a/connected"]);
    }

    #[test]
    fn the_troubles_of_a_sidecar_are_told_by_its_name_for_as_long_as_it_is_there() {
        let rollout = Rollout::default();
        let name = WorkloadName::parse("a/b").expect("name");
        let trouble = |text: &str| vec![model::issuers::Trouble { at: Timestamp::from_seconds(5), text: text.into() }];
        let first = rollout.connected(&name, Revision(0), opened("0a"));
        rollout.troubled(&name, first, trouble("a file is gone"));
        let told = Trouble { message: "a/b: a file is gone".to_owned(), since: Some(Timestamp::from_seconds(5)) };
        assert_eq!(rollout.troubles(), [told]);
        let second = rollout.connected(&name, Revision(0), opened("0a"));
        assert_eq!(rollout.troubles(), [], "the next stream begins without");
        rollout.troubled(&name, first, trouble("late"));
        assert_eq!(rollout.troubles(), [], "what it tells late is not the later one's");
        rollout.troubled(&name, second, trouble("again"));
        assert_eq!(rollout.troubles().len(), 1);
        rollout.troubled(&name, second, Vec::new());
        assert_eq!(rollout.troubles(), []);
        rollout.troubled(&name, second, trouble("again"));
        rollout.disconnected(&name, second);
        assert_eq!(rollout.troubles(), []);
    }

    #[test]
    fn a_later_stream_replaces_an_earlier_one_whose_end_changes_nothing() {
        let rollout = Rollout::default();
        let name = WorkloadName::parse("a/b").expect("name");
        let first = rollout.connected(&name, Revision(0), opened("0a"));
        let second = rollout.connected(&name, Revision(4), opened("0b"));
        // Who issued it does not matter.
        let seen = rollout.of(&name);
        assert_eq!((seen.serial.as_deref(), seen.svid_expires_at), (Some("01"), Some(Timestamp::from_seconds(9))));
        assert!(rollout.is_replaced(&name, first) && !rollout.is_replaced(&name, second));
        rollout.disconnected(&name, first);
        assert!(rollout.of(&name).connected());
        let witnesses = rollout.witnesses();
        assert_eq!((witnesses[0].proven.as_deref(), witnesses[0].acked), (Some("0b"), Revision(4)));
        let desired = desired();
        rollout.acked(&name, first, Revision(9), &desired);
        rollout.rejected(&name, first, Revision(9), "no room");
        let seen = rollout.of(&name);
        assert_eq!((seen.acked, seen.rejected), (Revision(4), None), "what it acknowledges late is not the later one's");
        rollout.acked(&name, second, Revision(9), &desired);
        assert_eq!(rollout.of(&name).acked, Revision(9));
        rollout.told(&name, first, vec![IssuerReport::default()], Timestamp::from_seconds(1));
        assert!(rollout.of(&name).issuers.is_none(), "what it tells late is not the later one's");
        rollout.told(&name, second, vec![IssuerReport::default()], Timestamp::from_seconds(1));
        assert!(rollout.of(&name).issuers.is_some());
        rollout.disconnected(&name, second);
        assert!(!rollout.of(&name).connected() && rollout.of(&name).issuers.is_none());
        assert_eq!(rollout.witnesses()[0].proven, None, "what is away proves nothing");
    }
}
