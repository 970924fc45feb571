//! The decision: forbid over permit over deny, and any error denies.

use crate::compile::{ActionSlice, Policies};
use crate::facts::{Facts, Setting};
use crate::headers;
use crate::memory::Memory;
use crate::slice::{ByPrincipal, Group};
use model::authz::Question;
use model::decision::{Decision, Effect};
use model::ids::{DecisionId, PolicyId, Revision};
use model::reason::Reason;
use std::sync::Arc;

/// Evidence that the policies allow one call. Made by [`decide`] alone, and spent on that call: it cannot be cloned.
#[derive(Debug)]
#[must_use = "a permit is spent on the call that it was given for"]
pub struct Permit {
    decision: Decision,
}

impl Permit {
    /// The decision that it proves.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }
}

/// The policies do not allow the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The decision, with its reason: `denied_by_policy`, `policy_error` or `not_permitted`.
    pub decision: Decision,
    /// Whether the same call on behalf of some user could be allowed: there was no user, nothing forbids the call, and of
    /// some permit everything holds but its conditions on the user. Then 401 is the better answer.
    pub user_could_be_allowed: bool,
    /// What failed during evaluation, for the operator.
    pub errors: Arc<[String]>,
}

/// Decides whether a call may go on.
///
/// A matching forbid denies with `denied_by_policy`; else any policy that failed denies with `policy_error` (the
/// reference authorizer would skip it, and so let a failing forbid pass); else a matching permit allows; else
/// `not_permitted`. A header that policies of the action read and that can be read in two ways ([`model::HeaderRead::flaw`]) denies
/// with `policy_error`, whatever else holds. Cost: tens of microseconds; grows with the policies whose scope admits action and
/// principal.
///
/// # Errors
/// - [`Denied`] unless a permit applies and nothing forbids or fails.
pub fn decide(policies: &Policies, question: &Question<'_>, id: DecisionId, revision: Revision) -> Result<Permit, Denied> {
    let action = policies.actions.get(question.action);
    let concluded = action.map_or_else(Conclusion::default, |action| conclude(policies, action, question));
    concluded.told(id, revision)
}

/// The same as [`decide`], word for word, with `memory` for calls whose facts were met before: these cost less than a quarter of a
/// microsecond, and allocate nothing.
///
/// # Errors
/// - as [`decide`].
pub fn decide_remembering(
    policies: &Policies,
    memory: &mut Memory,
    question: &Question<'_>,
    id: DecisionId,
    revision: Revision,
) -> Result<Permit, Denied> {
    let action = policies.actions.get(question.action);
    let recall = |action: &ActionSlice| memory.recall(policies, &action.slice, question, || conclude(policies, action, question));
    action.map_or_else(Conclusion::default, recall).told(id, revision)
}

/// What the policies say of a question, without what names this one call. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conclusion {
    /// Why not; `None` only with `is_permitted`.
    reason: Option<Reason>,
    is_permitted: bool,
    determining: Arc<[PolicyId]>,
    user_could_be_allowed: bool,
    errors: Arc<[String]>,
}

impl Conclusion {
    fn told(self, id: DecisionId, revision: Revision) -> Result<Permit, Denied> {
        let Self { determining, user_could_be_allowed, errors, .. } = self;
        if self.is_permitted {
            return Ok(Permit { decision: Decision { id, effect: Effect::Allow, reason: None, determining, revision } });
        }
        let reason = Some(self.reason.unwrap_or(Reason::NotPermitted));
        let decision = Decision { id, effect: Effect::Deny, reason, determining, revision };
        Err(Denied { decision, user_could_be_allowed, errors })
    }

    fn denied(reason: Reason, determining: Vec<PolicyId>, errors: Vec<String>) -> Self {
        let (determining, errors) = (sorted(determining), errors.into());
        Self { reason: Some(reason), is_permitted: false, determining, user_could_be_allowed: false, errors }
    }
}

fn sorted(mut ids: Vec<PolicyId>) -> Arc<[PolicyId]> {
    ids.sort();
    ids.into()
}

fn conclude(policies: &Policies, action: &ActionSlice, question: &Question<'_>) -> Conclusion {
    let flaws = headers::flaws(question, &action.slice.headers);
    if !flaws.is_empty() {
        let errors = flaws.into_iter().map(|(_, error)| error).collect();
        return Conclusion::denied(Reason::PolicyError, Vec::new(), errors);
    }
    let Findings { forbids, permits, errors } = evaluate(policies, action, question);
    if !forbids.is_empty() {
        return Conclusion::denied(Reason::DeniedByPolicy, forbids, errors);
    }
    if !errors.is_empty() {
        return Conclusion::denied(Reason::PolicyError, Vec::new(), errors);
    }
    if permits.is_empty() {
        let denied = Conclusion::denied(Reason::NotPermitted, Vec::new(), Vec::new());
        return Conclusion { user_could_be_allowed: user_could_be_allowed(policies, action, question), ..denied };
    }
    Conclusion { is_permitted: true, determining: sorted(permits), ..Conclusion::default() }
}

/// The policies that applied, and the errors.
#[derive(Debug, Default)]
struct Findings {
    forbids: Vec<PolicyId>,
    permits: Vec<PolicyId>,
    errors: Vec<String>,
}

fn evaluate(policies: &Policies, action: &ActionSlice, question: &Question<'_>) -> Findings {
    let mut findings = Findings::default();
    for group in &action.slice.groups {
        match Facts::of(question, setting(policies, action, group)) {
            Ok(facts) => findings.ask(policies, &group.policies, question, &facts),
            Err(error) => findings.errors.push(error),
        }
    }
    findings
}

/// Whether a permit would hold without its conditions on the user.
fn user_could_be_allowed(policies: &Policies, action: &ActionSlice, question: &Question<'_>) -> bool {
    question.user.is_none()
        && action.slice.groups.iter().any(|group| {
            let mut findings = Findings::default();
            if let Ok(facts) = Facts::of(question, setting(policies, action, group)) {
                findings.ask(policies, &group.without_user, question, &facts);
            }
            !findings.permits.is_empty()
        })
}

fn setting<'a>(policies: &'a Policies, action: &'a ActionSlice, group: &'a Group) -> Setting<'a> {
    Setting {
        names: &policies.names,
        action: &action.entity,
        attributes: &policies.attributes,
        roles: &policies.roles,
        shape: &group.shape,
        headers: &group.headers,
        wants: group.wants,
    }
}

impl Findings {
    fn ask(&mut self, policies: &Policies, sets: &ByPrincipal, question: &Question<'_>, facts: &Facts) {
        for set in sets.of(question.principal.as_str()) {
            let response = policies.authorizer.is_authorized(&facts.request, set, &facts.entities);
            let applied = response.diagnostics().reason().map(|id| PolicyId::from_text(id.as_ref()));
            match response.decision() {
                cedar_policy::Decision::Allow => self.permits.extend(applied),
                cedar_policy::Decision::Deny => self.forbids.extend(applied),
            }
            self.errors.extend(response.diagnostics().errors().map(ToString::to_string));
        }
    }
}

#[cfg(test)]
mod tests;
