//! Policies in shadow mode: what they would have changed, counted and told. Nothing here changes an answer.
//!
//! A call is decided a second time when its answer is known already. A body that only such a policy reads is not held back: it goes
//! up as it comes, a copy is kept within `policyBodyBytes`, and the second decision waits for its end.

use crate::exchange::Upload;
use crate::facts::Facts;
use crate::reply::Refusal;
use crate::state::{Active, Shared};
use crate::telemetry::metrics::Metrics;
use crate::{body, facts, workers};
use message::Head;
use model::decision::{Shadowed, Would};
use model::shadow::{EXAMPLES_MAX, ShadowCount, ShadowReport, ShadowTally, TALLIES_MAX};
use model::{AuthzRequest, Decision, DecisionId, Effect, Limit, PolicyId, Question, Timestamp};
use parking_lot::Mutex;
use policy::{BodyFacts, Shadow};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use wire::client::ControlClient;

/// How often the control plane is told, where there is something new.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// For the control plane to take it.
const TELL_DEADLINE: Duration = Duration::from_secs(5);
/// What cannot be laid to a policy.
const NOBODY: &str = "-";
/// What is beyond the bound.
const OTHER: &str = "other";

/// The body, for the second decision of a call.
#[derive(Debug)]
enum Body {
    /// No policy reads it, or the live ones see all that is read.
    AsLive,
    /// What the policies in shadow mode would see of it; why they could not.
    Read(Result<Option<BodyFacts>, String>),
    /// It is still to come.
    Coming,
}

/// The second decision of a call, before the first.
#[derive(Debug)]
pub struct Trial(Body);

/// A call that was allowed, whose second decision waits for its body. Told when it is dropped, at the latest.
#[derive(Debug)]
pub struct Pending {
    shared: Arc<Shared>,
    active: Arc<Active>,
    request: AuthzRequest,
    decision: Decision,
    content_type: Option<String>,
    content_encoding: Option<String>,
    is_told: bool,
}

impl Trial {
    /// Looks at the body as the policies in shadow mode would; has it copied while it goes up, where they alone read it. `None`: nothing
    /// is tried.
    pub fn of(active: &Active, facts: &Facts, head: &Head, upload: &mut Upload) -> Option<Self> {
        let shadow = active.shadow.as_ref()?;
        let action = facts.method.as_str();
        let Some(declared) = shadow.body_fields(action) else { return Some(Self(Body::AsLive)) };
        let limits = &active.snapshot.limits;
        Some(Self(match upload.whole() {
            Some(_) if active.policies.body_fields(action) == Some(declared) => Body::AsLive,
            Some(bytes) => Body::Read(read(shadow, action, head, bytes, limits)),
            None => {
                upload.copy(limits.size(Limit::PolicyBodyBytes));
                Body::Coming
            }
        }))
    }

    /// Decides a second time, counts and tells. Gives what waits for a body that is still to come.
    pub fn decide(
        self,
        question: &Question<'_>,
        decision: &Decision,
        refusal: Option<&Refusal>,
        (shared, active): (&Arc<Shared>, &Arc<Active>),
        head: &Head,
    ) -> Option<Box<Pending>> {
        match (self.0, decision.effect) {
            (Body::Coming, Effect::Allow) => {
                let text = |name| facts::only_value(&head.fields, name).map(str::to_owned);
                return Some(Box::new(Pending {
                    shared: Arc::clone(shared),
                    active: Arc::clone(active),
                    request: question.to_request(),
                    decision: decision.clone(),
                    content_type: text("content-type"),
                    content_encoding: encoding(head).map(str::to_owned),
                    is_told: false,
                }));
            }
            // What a caller sends that is refused already is not waited for.
            (Body::Coming, Effect::Deny) => {
                shared.metrics.shadow_untried.inc();
                shared.tell_decision(decision, question, active, refusal, None);
            }
            (Body::AsLive, _) => shared.try_beside(question, decision, refusal, active),
            (Body::Read(Ok(read)), _) => {
                let (body, body_note) = body::seen(read.as_ref());
                shared.try_beside(&Question { body, body_note, ..*question }, decision, refusal, active);
            }
            (Body::Read(Err(why)), _) => shared.unreadable(question, decision, refusal, active, &why),
        }
        None
    }
}

impl Pending {
    /// The body's end: `copied` is what was kept of it, or why it was not.
    pub fn finish(mut self: Box<Self>, copied: Option<Result<Vec<u8>, String>>) {
        let Some(copied) = copied else { return };
        let Some(shadow) = &self.active.shadow else { return };
        self.is_told = true;
        let action = &self.request.action;
        let read = copied.and_then(|bytes| {
            let (kind, encoding) = (self.content_type.as_deref(), self.content_encoding.as_deref());
            read_as(shadow, action, kind, encoding, &bytes, &self.active.snapshot.limits)
        });
        let question = self.request.as_question();
        match read {
            Ok(read) => {
                let (body, body_note) = body::seen(read.as_ref());
                let question = Question { body, body_note, ..question };
                self.shared.try_beside(&question, &self.decision, None, &self.active);
            }
            Err(why) => self.shared.unreadable(&question, &self.decision, None, &self.active, &why),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_told {
            self.shared.metrics.shadow_untried.inc();
            self.shared.tell_decision(&self.decision, &self.request.as_question(), &self.active, None, None);
        }
    }
}

/// Lines that are not one readable value are an encoding all the same.
fn encoding(head: &Head) -> Option<&str> {
    let is_coded = head.fields.first(b"content-encoding").is_some();
    facts::only_value(&head.fields, "content-encoding").or_else(|| is_coded.then_some("unreadable"))
}

fn read(shadow: &Shadow, action: &str, head: &Head, bytes: &[u8], limits: &model::Limits) -> Result<Option<BodyFacts>, String> {
    read_as(shadow, action, facts::only_value(&head.fields, "content-type"), encoding(head), bytes, limits)
}

fn read_as(
    shadow: &Shadow,
    action: &str,
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    bytes: &[u8],
    limits: &model::Limits,
) -> Result<Option<BodyFacts>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let nothing = BTreeMap::new();
    let declared = shadow.body_fields(action).unwrap_or(&nothing);
    let depth = limits.size(Limit::PolicyBodyDepth);
    policy::read_body(content_type, content_encoding, bytes, declared, depth).map(Some).map_err(|refusal| refusal.to_string())
}

impl Shared {
    /// Tells of a decision, after a second one with the policies in shadow mode, if there are any.
    pub fn try_beside(&self, question: &Question<'_>, decision: &Decision, refusal: Option<&Refusal>, active: &Arc<Active>) {
        let shadowed = active.shadow.as_ref().and_then(|shadow| {
            self.metrics.shadow_tried.inc();
            let differs = || shadow.differs(question, decision);
            // Whatever is wrong with a trial costs the trial.
            catch_unwind(AssertUnwindSafe(differs)).unwrap_or_else(|_| {
                let detail = Some("the evaluation ended by a panic; please report it".to_owned());
                Some(Shadowed { detail, ..Shadowed::new(Would::Fail, Vec::new()) })
            })
        });
        self.tell_decision(decision, question, active, refusal, shadowed);
    }

    /// Tells of a decision whose body the policies in shadow mode could not read: enforced, they would have the call refused.
    fn unreadable(
        &self,
        question: &Question<'_>,
        decision: &Decision,
        refusal: Option<&Refusal>,
        active: &Arc<Active>,
        why: &str,
    ) {
        self.metrics.shadow_tried.inc();
        let readers = active.shadow.as_ref().filter(|_| decision.effect == Effect::Allow);
        let shadowed = readers.map(|shadow| Shadowed {
            detail: Some(why.to_owned()),
            ..Shadowed::new(Would::Fail, shadow.body_readers(question.action))
        });
        self.tell_decision(decision, question, active, refusal, shadowed);
    }
}

/// What was counted since the start of the process.
#[derive(Debug)]
pub struct Tallies {
    run: String,
    counted: Mutex<BTreeMap<PolicyId, Vec<ShadowCount>>>,
}

impl Default for Tallies {
    fn default() -> Self {
        Self { run: DecisionId::from_random(workers::random_bytes()).to_string(), counted: Mutex::default() }
    }
}

impl Tallies {
    /// Counts what would have been. `recorded`: the decision, if a record of it is on its way.
    pub fn count(&self, shadowed: &Shadowed, at: Timestamp, recorded: Option<DecisionId>, metrics: &Metrics) {
        let nobody = [PolicyId::from_text(NOBODY)];
        let policies = if shadowed.policies.is_empty() { &nobody } else { shadowed.policies.as_slice() };
        let mut counted = self.counted.lock();
        for policy in policies {
            metrics.shadowed(policy.as_str(), shadowed.would);
            let is_known = counted.contains_key(policy) || counted.len() < TALLIES_MAX - 1;
            let counts = counted.entry(if is_known { policy.clone() } else { PolicyId::from_text(OTHER) }).or_default();
            let at_would = counts.iter().position(|count| count.would == shadowed.would).unwrap_or_else(|| {
                counts.push(ShadowCount::new(shadowed.would, at));
                counts.len() - 1
            });
            let Some(count) = counts.get_mut(at_would) else { continue };
            (count.count, count.last) = (count.count + 1, at);
            if let Some(id) = recorded {
                if count.examples.len() == EXAMPLES_MAX {
                    count.examples.remove(0);
                }
                count.examples.push(id);
            }
        }
    }

    /// Everything that was counted, and the policies that are tried now.
    fn report(&self, active: &Active, workload: &str, metrics: &Metrics) -> ShadowReport {
        let mut tallies: BTreeMap<PolicyId, ShadowTally> = BTreeMap::new();
        for tried in active.shadow.iter().flat_map(Shadow::policies).take(TALLIES_MAX) {
            let (kind, position) = (tried.kind.to_owned(), tried.position.to_owned());
            tallies.insert(tried.id.clone(), ShadowTally { policy: tried.id.clone(), kind, position, counts: Vec::new() });
        }
        for (policy, counts) in self.counted.lock().iter() {
            let gone =
                || ShadowTally { policy: policy.clone(), kind: String::new(), position: String::new(), counts: Vec::new() };
            tallies.entry(policy.clone()).or_insert_with(gone).counts.clone_from(counts);
        }
        ShadowReport {
            workload: workload.to_owned(),
            run: self.run.clone(),
            tried: metrics.shadow_tried.get(),
            untried: metrics.shadow_untried.get(),
            refused: active.shadow_refused.clone(),
            tallies: tallies.into_values().take(TALLIES_MAX).collect(),
        }
    }
}

/// Waits until there are policies in shadow mode.
pub async fn is_there(shared: &Shared) {
    let mut configs = shared.config.subscribe();
    let has_some =
        |active: &Option<Arc<Active>>| active.as_ref().is_some_and(|it| it.shadow.is_some() || it.shadow_refused.is_some());
    if configs.wait_for(has_some).await.is_err() {
        std::future::pending().await
    }
}

/// Tells the control plane what was counted, for as long as the connection is good. Never ends by itself.
pub async fn tell(shared: &Shared, client: ControlClient) {
    let mut told = None;
    loop {
        let report =
            shared.active().map(|active| shared.shadow.report(&active, shared.settings.workload.as_str(), &shared.metrics));
        let is_something =
            |report: &ShadowReport| report.tried + report.untried > 0 || report.refused.is_some() || !report.tallies.is_empty();
        // Where nothing was ever tried there is nothing to tell.
        if let Some(report) = report.filter(|report| is_something(report) || told.is_some())
            && told.as_ref() != Some(&report)
        {
            match client.shadow(&report, TELL_DEADLINE).await {
                Ok(()) => told = Some(report),
                // An older control plane does not know of it; another failure ends the connection, and the next begins anew.
                Err(failure) => tracing::debug!(%failure, "what the policies in shadow mode would have changed is not told"),
            }
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_by_policy_and_answer_with_the_newest_examples_and_a_bound() {
        let (tallies, metrics) = (Tallies::default(), Metrics::default());
        let policy = |name: &str| PolicyId::from_text(name);
        let id = |number: u8| DecisionId::from_random([number; 16]);
        for number in 0..7 {
            let shadowed = Shadowed::new(Would::Deny, vec![policy("a"), policy("b")]);
            tallies.count(&shadowed, Timestamp::from_millis(number.into()), (number != 6).then(|| id(number)), &metrics);
        }
        tallies.count(&Shadowed::new(Would::Allow, vec![policy("a")]), Timestamp::from_millis(9), None, &metrics);
        tallies.count(&Shadowed::new(Would::Fail, Vec::new()), Timestamp::from_millis(9), None, &metrics);
        {
            let counted = tallies.counted.lock();
            assert_eq!(counted.keys().map(PolicyId::as_str).collect::<Vec<_>>(), ["-", "a", "b"]);
            let [deny, allow] = counted[&policy("a")].as_slice() else { panic!("{counted:?}") };
            assert_eq!((deny.count, deny.first.millis(), deny.last.millis(), allow.count), (7, 0, 6, 1));
            assert_eq!(deny.examples, [1, 2, 3, 4, 5].map(id));
        }
        for number in 0..TALLIES_MAX {
            tallies.count(
                &Shadowed::new(Would::Deny, vec![policy(&format!("many-{number}"))]),
                Timestamp::from_millis(9),
                None,
                &metrics,
            );
        }
        let counted = tallies.counted.lock();
        assert_eq!(counted.len(), TALLIES_MAX);
        assert!(counted[&policy(OTHER)][0].count > 1);
        drop(counted);
        let text = metrics.text();
        assert!(text.contains("rondel_shadow_would_total{policy=\"a\",would=\"would_deny\"} 7"), "{text}");
        assert!(text.contains("policy=\"other\""), "{text}");
        assert!(text.matches("rondel_shadow_would_total").count() <= 210, "{text}");
    }
}
