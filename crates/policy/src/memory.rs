//! Decisions that were made already, by exactly the facts that the policies read.

use crate::compile::Policies;
use crate::decide::Findings;
use crate::slice::{Slice, Wants};
use model::Principal;
use model::authz::{AuthzRequest, User};
use model::ids::ServiceName;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

/// LIMIT: decisions that are remembered; beyond it all are forgotten, and those that are still asked for come back.
const DECISIONS_MAX: usize = 1024;
/// LIMIT: bytes of path and host of a call whose decision is remembered.
const TEXT_BYTES_MAX: usize = 512;

/// What policies found for calls that looked the same to them. Belongs to one thread; a new configuration empties it.
///
/// Only what a policy reads is built for it (`Wants`), so that the facts by which a decision is remembered are all the facts that
/// it could have been made from. A decision that reads the time or a body is never remembered.
#[derive(Debug, Default)]
pub struct Memory {
    policies: Option<Arc<()>>,
    seed: RandomState,
    decisions: HashMap<u64, Remembered>,
}

/// One decision. A fact that no policy of the action reads is not here.
#[derive(Debug)]
struct Remembered {
    action: String,
    principal: Principal,
    resource: ServiceName,
    user: Option<Arc<User>>,
    path: Option<String>,
    host: Option<String>,
    country: Option<String>,
    address: Option<IpAddr>,
    findings: Findings,
}

impl Memory {
    /// What was found for a call with the same facts; otherwise what `evaluate` finds now.
    pub(crate) fn recall(
        &mut self,
        policies: &Policies,
        slice: &Slice,
        request: &AuthzRequest,
        evaluate: impl FnOnce() -> Findings,
    ) -> Findings {
        let wants = slice.wants;
        if !slice.is_repeatable || request.path.len() + request.host.len() > TEXT_BYTES_MAX {
            return evaluate();
        }
        if !self.policies.as_ref().is_some_and(|known| Arc::ptr_eq(known, &policies.identity)) {
            self.decisions.clear();
            self.policies = Some(Arc::clone(&policies.identity));
        }
        let hash = self.hash(wants, request);
        if let Some(known) = self.decisions.get(&hash).filter(|known| known.is_of(wants, request)) {
            return known.findings.clone();
        }
        let findings = evaluate();
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.clear();
        }
        self.decisions.insert(hash, Remembered::of(wants, request, findings.clone()));
        findings
    }

    fn hash(&self, wants: Wants, request: &AuthzRequest) -> u64 {
        let user = request.user.as_ref().filter(|_| wants.user).map(|user| (&user.issuer, &user.subject));
        self.seed.hash_one((
            (&request.action, request.principal.as_str(), request.resource.as_str(), user),
            wants.path.then_some(&request.path),
            wants.host.then_some(&request.host),
            wants.country.then_some(&request.source.country),
            wants.address.then_some(request.source.address),
        ))
    }
}

impl Remembered {
    fn of(wants: Wants, request: &AuthzRequest, findings: Findings) -> Self {
        Self {
            action: request.action.clone(),
            principal: request.principal.clone(),
            resource: request.resource.clone(),
            user: request.user.clone().filter(|_| wants.user),
            path: wants.path.then(|| request.path.clone()),
            host: wants.host.then(|| request.host.clone()),
            country: request.source.country.clone().filter(|_| wants.country),
            address: wants.address.then_some(request.source.address),
            findings,
        }
    }

    /// Whether every fact that can be read is the same.
    fn is_of(&self, wants: Wants, request: &AuthzRequest) -> bool {
        let same_user = || match (&self.user, &request.user) {
            // The same verified token gives the same user.
            (Some(known), Some(user)) => Arc::ptr_eq(known, user) || known == user,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.action == request.action
            && self.principal == request.principal
            && self.resource == request.resource
            && (!wants.user || same_user())
            && (!wants.path || self.path.as_ref() == Some(&request.path))
            && (!wants.host || self.host.as_ref() == Some(&request.host))
            && (!wants.country || self.country == request.source.country)
            && (!wants.address || self.address == Some(request.source.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{amount, changed, compiled, decided, id, resource, transfer, user};
    use crate::{Denied, Permit, decide_remembering};
    use model::ids::{DecisionId, Revision};
    use model::time::Timestamp;

    fn told(outcome: Result<Permit, Denied>) -> Result<model::Decision, Denied> {
        outcome.map(|permit| permit.decision().clone())
    }

    /// A policy for each fact, and one for several; requests that differ from the first in one fact each.
    fn cases() -> (Vec<&'static str>, Vec<AuthzRequest>) {
        let policies = vec![
            r#"@id("p") permit (principal, action, resource);"#,
            r#"@id("p") permit (principal == Workload::"spiffe://bank.example/ns/bank/sa/web", action, resource);"#,
            r#"@id("p") permit (principal, action, resource) when { principal has account && principal.account == "web" };"#,
            r#"@id("p") permit (principal, action == Action::"POST", resource);"#,
            r#"@id("p") permit (principal, action, resource) when { resource.name == "payments" };"#,
            r#"@id("p") permit (principal, action, resource) when { context has user && context.user in Role::"teller" };"#,
            r#"@id("p") permit (principal, action, resource) when { context has user && context.user has limit && context.user.limit > 999 };"#,
            r#"@id("p") permit (principal, action, resource) when { context.request.path like "/transfers*" };"#,
            r#"@id("p") permit (principal, action, resource) when { context.request.host == "payments" };"#,
            r#"@id("p") permit (principal, action, resource) when { context.source has country && context.source.country == "CH" };"#,
            r#"@id("p") permit (principal, action, resource) when { context.source.address.isInRange(ip("10.0.0.0/8")) };"#,
            r#"@id("p") permit (principal, action, resource) when { context.now < datetime("2027-11-24T00:00:00Z") };"#,
            r#"@id("p") permit (principal, action, resource) when { context.request has body && context.request.body.amount < 501 };"#,
            r#"@id("p") permit (principal, action, resource); @id("q") forbid (principal, action, resource) when { context.request.path == "/x" || (context has user && context.user in Role::"auditor") };"#,
        ];
        let with_user = |change: fn(&mut User)| {
            changed(|request| {
                let mut other = user(&["teller"]);
                change(&mut other);
                request.user = Some(Arc::new(other));
            })
        };
        let requests = vec![
            transfer(),
            changed(|request| request.principal = id("other")),
            changed(|request| request.principal = Principal::Unauthenticated),
            changed(|request| request.action = "GET".into()),
            changed(|request| request.action = "UNKNOWN".into()),
            changed(|request| request.resource = ServiceName::parse("bank/ledger").expect("name")),
            changed(|request| request.user = None),
            // The same subject with another claim each: only the claims tell them apart.
            with_user(|user| user.roles = vec!["auditor".into()]),
            with_user(|user| {
                user.attributes.insert("limit".into(), model::authz::AttributeValue::Long(1));
            }),
            with_user(|user| user.subject = "bob".into()),
            changed(|request| request.path = "/x".into()),
            changed(|request| request.path = format!("/transfers/{}", "x".repeat(TEXT_BYTES_MAX))),
            changed(|request| request.host = "else".into()),
            changed(|request| request.source.country = Some("DE".into())),
            changed(|request| request.source.country = None),
            changed(|request| request.source.address = "192.0.2.1".parse().expect("address")),
            changed(|request| request.now = Timestamp::from_seconds(1_900_000_000)),
            changed(|request| amount(request, 502)),
            changed(|request| request.body = None),
        ];
        (policies, requests)
    }

    #[test]
    fn what_is_remembered_is_what_would_be_decided_anew() {
        let (texts, requests) = cases();
        let mut memory = Memory::default();
        for text in texts {
            // A body is declared only where it is read: a declared one is never remembered.
            let body: &[_] = if text.contains("body") { &[("amount", model::authz::AttributeType::Long)] } else { &[] };
            let policies = compiled(&[resource("p", text, body)]).unwrap_or_else(|errors| panic!("{errors:#?}"));
            let mut verdicts = std::collections::HashSet::new();
            for first in &requests {
                for second in &requests {
                    for request in [first, second, first] {
                        let id = DecisionId::from_random([7; 16]);
                        let got = told(decide_remembering(&policies, &mut memory, request, id, Revision(3)));
                        verdicts.insert(got.is_ok());
                        assert_eq!(got, told(decided(&policies, request)), "{text}\n{request:?}");
                    }
                }
            }
            assert_eq!(verdicts.len(), 2, "the requests must tell apart what the policy reads: {text}");
        }
    }

    #[test]
    fn a_decision_is_that_of_its_own_facts_also_if_two_hashes_meet() {
        let (_, requests) = cases();
        for (number, one) in requests.iter().enumerate() {
            let known = Remembered::of(Wants::ALL, one, Findings::default());
            for (other, two) in requests.iter().enumerate() {
                // The last three differ by time and body, which are never remembered.
                let is_same = number == other || [number, other].iter().all(|at| [0, 16, 17, 18].contains(at));
                assert_eq!(known.is_of(Wants::ALL, two), is_same, "{one:?} {two:?}");
            }
        }
    }

    #[test]
    fn the_same_facts_are_evaluated_once_and_the_memory_is_bounded() {
        let (texts, _) = cases();
        let policies = compiled(&[resource("p", texts[7], &[])]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let mut memory = Memory::default();
        let slice = &policies.actions["POST"].slice;
        let mut evaluated = 0;
        for number in 0..3 * DECISIONS_MAX {
            let request = changed(|request| request.path = format!("/{number}"));
            for _ in 0..2 {
                memory.recall(&policies, slice, &request, || {
                    evaluated += 1;
                    Findings::default()
                });
            }
            assert!(memory.decisions.len() <= DECISIONS_MAX);
        }
        assert_eq!(evaluated, 3 * DECISIONS_MAX);
    }
}
