//! The decision: forbid over permit over deny, and any error denies.

use crate::compile::{ActionSlice, Policies};
use crate::facts::{Facts, Setting};
use crate::memory::Memory;
use crate::slice::{ByPrincipal, Group};
use model::authz::AuthzRequest;
use model::decision::{Decision, Effect};
use model::ids::{DecisionId, PolicyId, Revision};
use model::reason::Reason;

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
    pub errors: Vec<String>,
}

/// Decides whether a call may go on.
///
/// A matching forbid denies with `denied_by_policy`; else any policy that failed denies with `policy_error` (the
/// reference authorizer would skip it, and so let a failing forbid pass); else a matching permit allows; else
/// `not_permitted`. Cost: tens of microseconds; grows with the policies whose scope admits action and principal.
///
/// # Errors
/// - [`Denied`] unless a permit applies and nothing forbids or fails.
pub fn decide(policies: &Policies, request: &AuthzRequest, id: DecisionId, revision: Revision) -> Result<Permit, Denied> {
    let action = policies.actions.get(request.action.as_str());
    let found = action.map(|action| evaluate(policies, action, request)).unwrap_or_default();
    concluded(found, policies, request, id, revision)
}

/// The same as [`decide`], word for word, with `memory` for calls whose facts were met before: these cost about a microsecond.
///
/// # Errors
/// - as [`decide`].
pub fn decide_remembering(
    policies: &Policies,
    memory: &mut Memory,
    request: &AuthzRequest,
    id: DecisionId,
    revision: Revision,
) -> Result<Permit, Denied> {
    let action = policies.actions.get(request.action.as_str());
    let recall = |action: &ActionSlice| memory.recall(policies, &action.slice, request, || evaluate(policies, action, request));
    let found = action.map(recall).unwrap_or_default();
    concluded(found, policies, request, id, revision)
}

fn concluded(
    found: Findings,
    policies: &Policies,
    request: &AuthzRequest,
    id: DecisionId,
    revision: Revision,
) -> Result<Permit, Denied> {
    let decided = |effect, reason, mut determining: Vec<PolicyId>| {
        determining.sort();
        Decision { id, effect, reason, determining, revision }
    };
    let denied = |reason, determining| decided(Effect::Deny, Some(reason), determining);
    let Findings { forbids, permits, errors } = found;
    if !forbids.is_empty() {
        return Err(Denied { decision: denied(Reason::DeniedByPolicy, forbids), user_could_be_allowed: false, errors });
    }
    if !errors.is_empty() {
        return Err(Denied { decision: denied(Reason::PolicyError, Vec::new()), user_could_be_allowed: false, errors });
    }
    if permits.is_empty() {
        let decision = denied(Reason::NotPermitted, Vec::new());
        return Err(Denied { decision, user_could_be_allowed: user_could_be_allowed(policies, request), errors });
    }
    Ok(Permit { decision: decided(Effect::Allow, None, permits) })
}

/// The policies that applied, and the errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    forbids: Vec<PolicyId>,
    permits: Vec<PolicyId>,
    errors: Vec<String>,
}

fn evaluate(policies: &Policies, action: &ActionSlice, request: &AuthzRequest) -> Findings {
    let mut findings = Findings::default();
    for group in &action.slice.groups {
        match Facts::of(request, setting(policies, action, group)) {
            Ok(facts) => findings.ask(policies, &group.policies, request, &facts),
            Err(error) => findings.errors.push(error),
        }
    }
    findings
}

/// Whether a permit would hold without its conditions on the user.
fn user_could_be_allowed(policies: &Policies, request: &AuthzRequest) -> bool {
    let Some(action) = policies.actions.get(request.action.as_str()).filter(|_| request.user.is_none()) else { return false };
    action.slice.groups.iter().any(|group| {
        let mut findings = Findings::default();
        if let Ok(facts) = Facts::of(request, setting(policies, action, group)) {
            findings.ask(policies, &group.without_user, request, &facts);
        }
        !findings.permits.is_empty()
    })
}

fn setting<'a>(policies: &'a Policies, action: &'a ActionSlice, group: &'a Group) -> Setting<'a> {
    Setting {
        names: &policies.names,
        action: &action.entity,
        attributes: &policies.attributes,
        shape: &group.shape,
        wants: group.wants,
    }
}

impl Findings {
    fn ask(&mut self, policies: &Policies, sets: &ByPrincipal, request: &AuthzRequest, facts: &Facts) {
        for set in sets.of(request.principal.as_str()) {
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
