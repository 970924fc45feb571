//! Decision records on their way to the control plane: queued on the request path, explained off it.

use crate::reply::{self, Refusal};
use crate::state::{Active, Shared};
use crate::telemetry::access_log::Entry;
use crate::workers;
use model::decision::Shadowed;
use model::{AuthzRequest, Decision, DecisionRecord, Effect, Question as Asked, Reason};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

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
    /// The record with its explanation. Costs up to a millisecond.
    pub fn explained(&self) -> DecisionRecord {
        let mut record = self.record.clone();
        if let Some(question) = &self.question {
            let Question { active, request, decision } = question.as_ref();
            record.explanation = Some(policy::explain(&active.policies, request, decision));
            if let (Some(shadow), Some(shadowed)) = (&active.shadow, &mut record.shadow) {
                shadow.explain(request, decision, shadowed);
            }
        }
        record
    }
}

/// LIMIT: decisions that wait for their explanation; more are not told.
const EXPLAINING_MAX: usize = 8;

/// Explains decisions, one after the other, on a thread that gives way to the workers.
#[derive(Debug)]
pub struct Explainer(std::sync::mpsc::SyncSender<(Arc<Told>, oneshot::Sender<DecisionRecord>)>);

impl Explainer {
    /// Starts the thread, which ends with the explainer.
    ///
    /// # Errors
    /// - the operating system's, if the thread cannot be made.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<(Arc<Told>, oneshot::Sender<DecisionRecord>)>(EXPLAINING_MAX);
        std::thread::Builder::new().name("explain".into()).spawn(move || {
            workers::give_way();
            for (told, back) in receiver {
                // A decision that cannot be explained costs its own record only; its sender is dropped, which says so.
                let Ok(record) = catch_unwind(AssertUnwindSafe(|| told.explained())) else { continue };
                // Nobody waits any more when the process ends.
                let _later = back.send(record);
            }
        })?;
        Ok(Self(sender))
    }

    /// The record with its explanation; `None` if it could not be explained.
    pub async fn explain(&mut self, told: Arc<Told>) -> Option<DecisionRecord> {
        let (back, record) = oneshot::channel();
        // Whoever asks waits for the answer before it asks again: only what was given up meanwhile may be before it.
        self.0.try_send((told, back)).ok()?;
        record.await.ok()
    }
}

/// The queue's entrance.
#[derive(Debug)]
pub struct Decisions {
    queue: mpsc::Sender<Arc<Told>>,
    allowed: PerSecond,
    /// Allowed calls that policies in shadow mode would have denied: the others must not push them out.
    shadowed: PerSecond,
    anonymous: PerSecond,
}

/// Lets so many through in a second: all at once after a rest, else evenly spread, so that the work that each brings does not come
/// in a heap.
#[derive(Debug)]
struct PerSecond {
    begun: Instant,
    /// When those that went through would be over, one after the other, in milliseconds from `begun`.
    over: AtomicU64,
}

impl PerSecond {
    fn new() -> Self {
        Self { begun: Instant::now(), over: AtomicU64::new(0) }
    }

    /// Whether there is room for one more. By a clock that only goes forward, and when it is asked for: when a request came says
    /// nothing about when it was decided.
    fn takes(&self, now: Instant, bound: u64) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX);
        let next = |over: u64| Some(over.max(now) + 1000 / bound).filter(|over| *over <= now + 1000);
        self.over.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

impl Decisions {
    /// A queue of `capacity` records and its exit.
    pub fn queue(capacity: usize) -> (Self, mpsc::Receiver<Arc<Told>>) {
        let (queue, receiver) = mpsc::channel(capacity);
        (Self { queue, allowed: PerSecond::new(), shadowed: PerSecond::new(), anonymous: PerSecond::new() }, receiver)
    }

    /// Whether a record with this effect would be taken now, so that the caller can spare the making of it.
    pub fn wants(&self, effect: Effect, is_shadowed: bool) -> bool {
        let bound = if is_shadowed { &self.shadowed } else { &self.allowed };
        effect == Effect::Deny || bound.takes(Instant::now(), ALLOWED_PER_SECOND)
    }

    /// Queues a record; false if the queue is full. Never waits.
    pub fn tell(&self, told: Arc<Told>) -> bool {
        self.queue.try_send(told).is_ok()
    }
}

impl Shared {
    /// Tells the operator's records of a decision by policy. An allowed one is told only while there is room for it.
    /// `shadowed`: what it would be with the policies in shadow mode, if that is another; it is counted in any case.
    pub fn tell_decision(
        &self,
        decision: &Decision,
        asked: &Asked<'_>,
        active: &Arc<Active>,
        refusal: Option<&Refusal>,
        shadowed: Option<Shadowed>,
    ) {
        let is_told = self.decisions.wants(decision.effect, shadowed.is_some())
            && self.tell_decided(decision, asked, active, refusal, shadowed.clone());
        if let Some(shadowed) = shadowed {
            self.shadow.count(&shadowed, asked.now, is_told.then_some(decision.id), &self.metrics);
        }
    }

    fn tell_decided(
        &self,
        decision: &Decision,
        asked: &Asked<'_>,
        active: &Arc<Active>,
        refusal: Option<&Refusal>,
        shadowed: Option<Shadowed>,
    ) -> bool {
        let request = asked.to_request();
        // Nobody answers on an opaque connection.
        let answered = refusal.filter(|_| request.action != "connect");
        let status = answered.map_or(0, |refusal| reply::status(refusal.reason()).as_u16());
        let mut record = DecisionRecord::of(decision, &self.settings.workload, &request, status);
        if let Some(refusal) = refusal {
            record.reason = Some(refusal.reason().as_str().to_owned());
            record.detail = Some(refusal.to_string());
        }
        record.shadow = shadowed;
        let question = Question { active: Arc::clone(active), request, decision: decision.clone() };
        self.tell(Told { record, question: Some(Box::new(question)) })
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
        if entry.principal.is_none() && !self.decisions.anonymous.takes(Instant::now(), ANONYMOUS_PER_SECOND) {
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

    /// Queues a record; one that finds the queue full is dropped and counted. Whether it was queued.
    fn tell(&self, told: Told) -> bool {
        let told = Arc::new(told);
        self.recent.keep(&told);
        let is_queued = self.decisions.tell(told);
        if !is_queued {
            self.metrics.decisions_dropped.inc();
        }
        is_queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn allowed_records_are_bounded_per_second_and_denials_are_not() {
        let (decisions, _exit) = Decisions::queue(16);
        let at = |millis| decisions.allowed.begun + Duration::from_millis(millis);
        let taken = |millis| (0..200).filter(|_| decisions.allowed.takes(at(millis), ALLOWED_PER_SECOND)).count();
        // After a rest as many as a second has room for, then one by one.
        assert_eq!([0_u64, 99, 100, 150, 200, 1000, 9000].map(taken), [10, 0, 1, 0, 1, 8, 10]);
        // What is asked a little out of order makes no room.
        assert_eq!([8999_u64, 9000, 8000].map(taken), [0, 0, 0]);
        assert_eq!((0..200).filter(|_| decisions.wants(Effect::Deny, false)).count(), 200);
        assert_eq!((0..200).filter(|_| decisions.anonymous.takes(decisions.anonymous.begun, ANONYMOUS_PER_SECOND)).count(), 20);
    }
}
