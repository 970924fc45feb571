//! Decision records on their way to the control plane: queued on the request path, explained off it.

use crate::reply::{self, Refusal};
use crate::state::{Active, Shared};
use crate::telemetry::access_log::Entry;
use model::{AuthzRequest, Decision, DecisionRecord, Effect, Question as Asked, Reason, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Records of *allowed* calls that are told per second; denials are told without this bound. Each costs half a millisecond to
/// explain, so that this is a two-hundredth of a core at most.
const ALLOWED_PER_SECOND: u64 = 10;

/// Records of callers who proved no identity that are told per second: strangers must not push the records of workloads out.
const ANONYMOUS_PER_SECOND: u64 = 20;

/// A decided question, kept so that it can be explained.
#[derive(Debug)]
pub struct Question {
    /// The configuration that decided.
    pub active: Arc<Active>,
    /// What was asked.
    pub request: AuthzRequest,
    /// What was answered.
    pub decision: Decision,
}

/// One record and, if policies were asked, the question.
#[derive(Debug)]
pub struct Told {
    /// The record, without its explanation.
    pub record: DecisionRecord,
    /// What the explanation is made from.
    pub question: Option<Box<Question>>,
}

impl Told {
    /// The record with its explanation. Costs up to a millisecond: call it off the request path.
    pub fn explained(self) -> DecisionRecord {
        let mut record = self.record;
        if let Some(question) = self.question {
            record.explanation = Some(policy::explain(&question.active.policies, &question.request, &question.decision));
        }
        record
    }
}

/// The queue's entrance.
#[derive(Debug)]
pub struct Decisions {
    queue: mpsc::Sender<Told>,
    allowed: PerSecond,
    anonymous: PerSecond,
}

/// Lets so many through in a second: all at once after a rest, else evenly spread, so that the work that each brings does not come
/// in a heap. The time (milliseconds since the epoch) at which those that went through would be over, one after the other.
#[derive(Debug, Default)]
struct PerSecond(AtomicU64);

impl PerSecond {
    /// Whether there is room for one more now.
    fn takes(&self, now: Timestamp, bound: u64) -> bool {
        let next = |over: u64| {
            let (now, in_a_second) = (now.millis(), now.millis() + 1000);
            // Later than that it is only where the clock was set back: begin anew.
            let begin = if over > in_a_second { now } else { over.max(now) };
            Some(begin + 1000 / bound).filter(|over| *over <= in_a_second)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

impl Decisions {
    /// A queue of `capacity` records and its exit.
    pub fn queue(capacity: usize) -> (Self, mpsc::Receiver<Told>) {
        let (queue, receiver) = mpsc::channel(capacity);
        (Self { queue, allowed: PerSecond::default(), anonymous: PerSecond::default() }, receiver)
    }

    /// Whether a record with this effect would be taken now, so that the caller can spare the making of it.
    pub fn wants(&self, effect: Effect, now: Timestamp) -> bool {
        effect == Effect::Deny || self.allowed.takes(now, ALLOWED_PER_SECOND)
    }

    /// Queues a record; false if the queue is full. Never waits.
    pub fn tell(&self, told: Told) -> bool {
        self.queue.try_send(told).is_ok()
    }
}

impl Shared {
    /// Tells the operator's records of a decision by policy. An allowed one is told only while there is room for it.
    pub fn tell_decision(&self, decision: &Decision, asked: &Asked<'_>, active: &Arc<Active>, refusal: Option<&Refusal>) {
        if !self.decisions.wants(decision.effect, asked.now) {
            return;
        }
        let request = asked.to_request();
        // Nobody answers on an opaque connection.
        let answered = refusal.filter(|_| request.action != "connect");
        let status = answered.map_or(0, |refusal| reply::status(refusal.reason()).as_u16());
        let mut record = DecisionRecord::of(decision, &self.settings.workload, &request, status);
        if let Some(refusal) = refusal {
            record.reason = Some(refusal.reason().as_str().to_owned());
            record.detail = Some(refusal.to_string());
        }
        let question = Question { active: Arc::clone(active), request, decision: decision.clone() };
        self.tell(Told { record, question: Some(Box::new(question)) });
    }

    /// Tells the operator's records of a request that was refused before the policies were asked.
    pub fn tell_refusal(&self, refusal: &Refusal, entry: &Entry) {
        // A denial by policy was told by `tell_decision`; a failure of the destination is no decision.
        if matches!(refusal, Refusal::Denied(_) | Refusal::Failed(_)) {
            return;
        }
        let reason = refusal.reason();
        self.tell_record(reason, Some(refusal.to_string()), reply::status(reason).as_u16(), entry);
    }

    /// Tells the operator's records of a refused call or connection.
    pub fn tell_record(&self, reason: Reason, detail: Option<String>, status: u16, entry: &Entry) {
        let Some(active) = self.active() else { return };
        if entry.principal.is_none() && !self.decisions.anonymous.takes(entry.at(), ANONYMOUS_PER_SECOND) {
            self.metrics.decisions_dropped.inc();
            return;
        }
        let snapshot = &active.snapshot;
        let workload = &self.settings.workload;
        let mut record =
            DecisionRecord::refused(entry.decision, entry.at(), workload, &snapshot.service, reason, status, snapshot.revision);
        record.detail = detail;
        record.principal = entry.principal.as_ref().map(ToString::to_string);
        record.user = entry.user.as_ref().map(|user| user.subject.clone());
        record.action = entry.method.to_string();
        record.path.clone_from(&entry.path);
        self.tell(Told { record, question: None });
    }

    /// Queues a record; one that finds the queue full is dropped and counted.
    fn tell(&self, told: Told) {
        if !self.decisions.tell(told) {
            self.metrics.decisions_dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_records_are_bounded_per_second_and_denials_are_not() {
        let (decisions, _exit) = Decisions::queue(16);
        let at = |millis: u64| Timestamp::from_millis(1_000_000 + millis);
        let taken = |millis| (0..200).filter(|_| decisions.wants(Effect::Allow, at(millis))).count();
        // After a rest as many as a second has room for, then one by one.
        assert_eq!([0_u64, 99, 100, 150, 200, 1000, 9000].map(taken), [10, 0, 1, 0, 1, 8, 10]);
        assert_eq!((0..200).filter(|_| decisions.wants(Effect::Deny, at(9000))).count(), 200);
        assert_eq!((0..200).filter(|_| decisions.anonymous.takes(at(0), ANONYMOUS_PER_SECOND)).count(), 20);
        // A clock that was set back costs nothing.
        assert_eq!([8000_u64, 8100].map(taken), [10, 1]);
    }
}
