//! The decision: forbid over permit over deny, and any error denies.

use crate::compile::{ActionSlice, Policies};
use crate::compiled::evaluate::View;
use crate::country;
use crate::facts::{self, Facts, Setting};
use crate::headers;
use crate::slice::{ByPrincipal, Group, Sets};
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
/// with `policy_error`, whatever else holds; so does a country that could not be looked up ([`model::Country::Unavailable`]), where one of
/// them reads it, and a body that is there and cannot be read, where a policy comes to look at it.
/// Cost: some tens of nanoseconds for each policy that admits the action, the principal, and the path or role that it asks for. Allocates
/// only if several policies apply, or none.
///
/// # Errors
/// - [`Denied`] unless a permit applies and nothing forbids or fails.
pub fn decide(policies: &Policies, question: &Question<'_>, id: DecisionId, revision: Revision) -> Result<Permit, Denied> {
    let action = policies.actions.get(question.action);
    let concluded = action.map_or_else(Conclusion::default, |action| conclude(policies, action, question, &Asked::Compiled));
    concluded.told(id, revision)
}

/// The same as [`decide`] from Cedar's own evaluator alone: its judge in tests, and its measure. Cost: tens of microseconds and some for
/// each policy; more for the first decision.
///
/// # Errors
/// - as [`decide`].
pub fn decide_by_reference(
    policies: &Policies,
    question: &Question<'_>,
    id: DecisionId,
    revision: Revision,
) -> Result<Permit, Denied> {
    let action = policies.actions.get(question.action);
    let groups = policies.reference(question.action);
    let concluded =
        action.map_or_else(Conclusion::default, |action| conclude(policies, action, question, &Asked::Reference(groups)));
    concluded.told(id, revision)
}

/// Who is asked.
enum Asked<'a> {
    /// The translated policies, and the reference evaluator for those that were not translated.
    Compiled,
    /// The reference evaluator for all of them.
    Reference(&'a [Group]),
}

/// What the policies say of a question, without what names this one call.
#[derive(Debug, Default)]
struct Conclusion {
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

    fn denied(reason: Reason, determining: Arc<[PolicyId]>, errors: Vec<String>) -> Self {
        Self { reason: Some(reason), is_permitted: false, determining, user_could_be_allowed: false, errors: errors.into() }
    }
}

fn conclude(policies: &Policies, action: &ActionSlice, question: &Question<'_>, asked: &Asked<'_>) -> Conclusion {
    let flaws = headers::flaws(question, &action.slice.headers);
    if !flaws.is_empty() {
        let errors = flaws.into_iter().map(|(_, error)| error).collect();
        return Conclusion::denied(Reason::PolicyError, Arc::default(), errors);
    }
    if let Some(flaw) = country::flaw(question).filter(|_| action.slice.reads_country) {
        return Conclusion::denied(Reason::PolicyError, Arc::default(), vec![flaw.to_owned()]);
    }
    let user = question.user.filter(|_| action.slice.reads_user);
    if let Some(misfit) = user.and_then(|user| facts::misfit(user, &policies.attributes)) {
        return Conclusion::denied(Reason::PolicyError, Arc::default(), vec![misfit]);
    }
    let Findings { forbids, permits, errors, .. } = match asked {
        Asked::Compiled => evaluate(policies, action, question),
        Asked::Reference(groups) => interpret(policies, action, groups, question),
    };
    if !forbids.is_empty() {
        return Conclusion::denied(Reason::DeniedByPolicy, policies.ids(&forbids), errors);
    }
    if !errors.is_empty() {
        return Conclusion::denied(Reason::PolicyError, Arc::default(), errors);
    }
    if permits.is_empty() {
        let user_could_be_allowed = question.user.is_none() && user_could_be_allowed(policies, action, question, asked);
        return Conclusion { user_could_be_allowed, ..Conclusion::denied(Reason::NotPermitted, Arc::default(), Vec::new()) };
    }
    Conclusion { is_permitted: true, determining: policies.ids(&permits), ..Conclusion::default() }
}

/// The policies that applied, by their position, and the errors.
#[derive(Debug, Default)]
struct Findings {
    forbids: Numbers,
    permits: Numbers,
    errors: Vec<String>,
    /// Those that failed: a user with two roles meets a policy of both twice.
    failed: Numbers,
}

/// Positions of policies. Most decisions find one: more than that are put on the heap.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    first: Option<u32>,
    more: Vec<u32>,
}

impl Numbers {
    /// Adds a position; false if it is there already.
    fn add(&mut self, number: u32) -> bool {
        match self.first {
            None => self.first = Some(number),
            Some(first) if first == number || self.more.contains(&number) => return false,
            Some(_) => self.more.push(number),
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// All of them, or the only one.
    pub(crate) fn only_or_all(&self) -> Result<u32, impl Iterator<Item = u32>> {
        match self.first {
            Some(only) if self.more.is_empty() => Ok(only),
            first => Err(first.into_iter().chain(self.more.iter().copied())),
        }
    }
}

fn evaluate(policies: &Policies, action: &ActionSlice, question: &Question<'_>) -> Findings {
    let mut findings = interpret(policies, action, &action.slice.interpreted, question);
    action.slice.index.each(question, &policies.roles, |number| {
        let Some((rule, program)) = policies.program(number) else { return };
        let view = View { question, shape: &rule.shape, roles: &policies.roles };
        match program.applies(&view) {
            Ok(false) => {}
            Ok(true) => {
                let applied =
                    if rule.effect == cedar_policy::Effect::Permit { &mut findings.permits } else { &mut findings.forbids };
                applied.add(number);
            }
            Err(failure) => {
                if findings.failed.add(number) {
                    findings.errors.push(format!("policy `{}`: {}", rule.id, failure.told(&view)));
                }
            }
        }
    });
    findings
}

/// What the reference evaluator finds.
fn interpret(policies: &Policies, action: &ActionSlice, groups: &[Group], question: &Question<'_>) -> Findings {
    let mut findings = Findings::default();
    for group in groups {
        match Facts::of(question, setting(policies, action, group)) {
            Ok(facts) => findings.ask(policies, &sets(policies, group, question).policies, question, &facts),
            Err(error) => findings.errors.push(error),
        }
    }
    findings
}

fn sets<'a>(policies: &Policies, group: &'a Group, question: &Question<'_>) -> &'a Sets {
    let view = View { question, shape: &group.shape, roles: &policies.roles };
    if view.unreadable_body().is_some() { &group.unreadable } else { &group.readable }
}

/// Whether a permit would hold without its conditions on the user.
fn user_could_be_allowed(policies: &Policies, action: &ActionSlice, question: &Question<'_>, asked: &Asked<'_>) -> bool {
    let (compiled, groups) = match asked {
        Asked::Compiled => (true, action.slice.interpreted.as_slice()),
        Asked::Reference(groups) => (false, *groups),
    };
    let by_program = || {
        action.slice.index.of_user(question).filter_map(|number| policies.program(number)).any(|(rule, program)| {
            program.applies_but_for_the_user(&View { question, shape: &rule.shape, roles: &policies.roles })
        })
    };
    (compiled && by_program())
        || groups.iter().any(|group| {
            let mut findings = Findings::default();
            if let Ok(facts) = Facts::of(question, setting(policies, action, group)) {
                findings.ask(policies, &sets(policies, group, question).without_user, question, &facts);
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
            let applied = response.diagnostics().reason().filter_map(|id| policies.number_of(id.as_ref()));
            let found = match response.decision() {
                cedar_policy::Decision::Allow => &mut self.permits,
                cedar_policy::Decision::Deny => &mut self.forbids,
            };
            for number in applied {
                found.add(number);
            }
            self.errors.extend(response.diagnostics().errors().map(ToString::to_string));
        }
    }
}

#[cfg(test)]
mod tests;
