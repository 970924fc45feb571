//! Policies that are tried beside the live ones: what the answer would be if they were in force. They never change it.

use crate::PolicyError;
use crate::compile::{Policies, Rule, Take, compile_taking};
use crate::country;
use crate::decide::{Denied, decide};
use crate::explain::explain;
use crate::headers;
use crate::slice::admits;
use crate::vocabulary::group_of;
use model::authz::{AttributeType, AuthzRequest, Question};
use model::decision::{Decision, Effect, Shadowed, Would};
use model::ids::PolicyId;
use model::reason::Reason;
use model::roles::Roles;
use model::snapshot::{AuthorizationPolicy, Sensitive, TokenIssuer};
use std::collections::{BTreeMap, BTreeSet};

/// The live policies of one workload together with those in shadow mode, compiled as if all of them decided. Immutable.
#[derive(Debug)]
pub struct Shadow {
    pub(crate) all: Policies,
    /// Those in shadow mode.
    pub(crate) tried: BTreeSet<PolicyId>,
}

/// One policy in shadow mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried<'a> {
    /// The policy.
    pub id: &'a PolicyId,
    /// `permit` or `forbid`.
    pub kind: &'static str,
    /// Where it stands: `policies/payments.yaml:12`.
    pub position: &'a str,
}

impl Shadow {
    /// Compiles `live` and `shadow` together; `None` if no policy is in shadow mode: none of `shadow`, and none of `live` that says
    /// `@mode("shadow")`. Cost: that of [`crate::compile`] for all of them.
    ///
    /// # Errors
    /// - as [`crate::compile`]: nothing is tried then, and what is live is not touched by it.
    pub fn compile(
        live: &[AuthorizationPolicy],
        shadow: &[AuthorizationPolicy],
        issuers: &[TokenIssuer],
        roles: &Roles,
    ) -> Result<Option<Self>, Vec<PolicyError>> {
        let may_be_annotated = |policy: &AuthorizationPolicy| policy.text.contains("@mode");
        if shadow.is_empty() && !live.iter().any(may_be_annotated) {
            return Ok(None);
        }
        let both: Vec<AuthorizationPolicy> = live.iter().chain(shadow).cloned().collect();
        let all = compile_taking(Take::All, &both, issuers, roles)?;
        let is_tried = |rule: &&Rule| rule.is_shadow || shadow.iter().any(|resource| resource.name == rule.resource);
        let tried: BTreeSet<PolicyId> = all.rules.iter().filter(is_tried).map(|rule| rule.id.clone()).collect();
        Ok((!tried.is_empty()).then_some(Self { all, tried }))
    }

    /// The same; what is told of them shows no value that is sensitive.
    #[must_use]
    pub fn concealing(self, sensitive: Sensitive) -> Self {
        Self { all: self.all.concealing(sensitive), ..self }
    }

    /// The policies in shadow mode, in the order of the source.
    pub fn policies(&self) -> impl Iterator<Item = Tried<'_>> {
        self.rules().map(|rule| {
            let kind = if rule.effect == cedar_policy::Effect::Permit { "permit" } else { "forbid" };
            Tried { id: &rule.id, kind, position: &rule.position }
        })
    }

    /// As [`Policies::body_fields`], for the live policies and those in shadow mode.
    pub fn body_fields(&self, action: &str) -> Option<&BTreeMap<String, AttributeType>> {
        self.all.body_fields(action)
    }

    /// As [`Policies::header_names`], for the live policies and those in shadow mode.
    pub fn header_names(&self, action: &str) -> &[String] {
        self.all.header_names(action)
    }

    /// As [`Policies::reads_country`], for the live policies and those in shadow mode.
    pub fn reads_country(&self, action: &str) -> bool {
        self.all.reads_country(action)
    }

    /// As [`Policies::reads_any_country`], for the live policies and those in shadow mode.
    pub fn reads_any_country(&self) -> bool {
        self.all.reads_any_country()
    }

    /// The policies in shadow mode that could look at the body of a request with this action.
    pub fn body_readers(&self, action: &str) -> Vec<PolicyId> {
        let group = group_of(action);
        let reads = |rule: &&Rule| rule.reads_body() && admits(&rule.body.action, action, group);
        self.rules().filter(reads).map(|rule| rule.id.clone()).collect()
    }

    /// What the answer would be with these policies in force, if it is another than `live`; `None` if it is the same.
    ///
    /// Cost: that of [`decide`]; some microseconds more where the answers differ.
    pub fn differs(&self, question: &Question<'_>, live: &Decision) -> Option<Shadowed> {
        let decided = decide(&self.all, question, live.id, live.revision);
        match (live.effect, decided) {
            (Effect::Allow, Ok(_)) | (Effect::Deny, Err(_)) => None,
            (Effect::Deny, Ok(permit)) => Some(Shadowed::new(Would::Allow, self.of_shadow(&permit.decision().determining))),
            (Effect::Allow, Err(denied)) if denied.decision.reason == Some(Reason::PolicyError) => {
                let failed = self.failing(question, &denied);
                let told = self.all.conceal(denied).errors;
                Some(Shadowed { detail: Some(told.join("; ")), ..Shadowed::new(Would::Fail, failed) })
            }
            (Effect::Allow, Err(denied)) => Some(Shadowed::new(Would::Deny, self.of_shadow(&denied.decision.determining))),
        }
    }

    /// Says in words why the answer would be another. Costs as [`explain`]: off the request path.
    pub fn explain(&self, request: &AuthzRequest, live: &Decision, shadowed: &mut Shadowed) {
        if shadowed.would != Would::Deny {
            return;
        }
        let determining = shadowed.policies.clone().into();
        let would = Decision { effect: Effect::Deny, reason: Some(Reason::DeniedByPolicy), determining, ..live.clone() };
        shadowed.detail = explain(&self.all, request, &would).nearest_miss;
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.all.rules.iter().filter(|rule| self.tried.contains(&rule.id))
    }

    fn of_shadow(&self, determining: &[PolicyId]) -> Vec<PolicyId> {
        determining.iter().filter(|id| self.tried.contains(*id)).cloned().collect()
    }

    /// The policies in shadow mode that could not be evaluated: those that an error names, and those that read a header which can be
    /// read in two ways, or a country that could not be looked up.
    fn failing(&self, question: &Question<'_>, denied: &Denied) -> Vec<PolicyId> {
        let flaws = headers::flaws(question, self.header_names(question.action));
        let is_unlocated = country::flaw(question).is_some();
        let is_named = |rule: &&Rule| {
            let name = format!("`{}`", rule.id);
            denied.errors.iter().any(|error| error.contains(&name))
                || flaws.iter().any(|(header, _)| headers::are_read(&rule.reads, header))
                || is_unlocated && country::is_read(&rule.reads)
        };
        self.rules().filter(is_named).map(|rule| rule.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
