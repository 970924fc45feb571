//! Decisions that were made already, by exactly the facts that the policies read.

use crate::compile::Policies;
use crate::decide::Conclusion;
use crate::slice::{Slice, Wants};
use foldhash::quality::RandomState;
use model::Principal;
use model::authz::{HeaderRead, Question, User};
use model::ids::ServiceName;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

/// LIMIT: decisions of one generation; two are remembered. What is asked for lives on, however many others come and go.
const GENERATION_MAX: usize = 512;
/// LIMIT: bytes of path, host and headers of a call whose decision is remembered.
const TEXT_BYTES_MAX: usize = 512;

/// What policies found for calls that looked the same to them. Belongs to one thread; a new configuration empties it.
///
/// Only what a policy reads is built for it (`Wants`), so that the facts by which a decision is remembered are all the facts that
/// it could have been made from. A decision that reads the time or a body is never remembered.
#[derive(Debug, Default)]
pub struct Memory {
    policies: Option<Arc<()>>,
    /// Keyed, and never compared alone: two facts with the same hash push each other out, and are not taken for each other.
    seed: RandomState,
    /// Decisions that were asked for since the last change of generations.
    young: Generation,
    /// Decisions of the generation before, less those that were asked for again.
    old: Generation,
}

/// Decisions by the hash of their facts.
type Generation = HashMap<u64, Remembered, BuildHasherDefault<Hashed>>;

/// Passes a hash on as it is.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = self.0.rotate_left(8) ^ hash;
    }
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
    /// One for each name of the slice, in its order.
    headers: Vec<Option<HeaderRead<'static>>>,
    country: Option<String>,
    address: Option<IpAddr>,
    conclusion: Conclusion,
}

impl Memory {
    /// What was concluded of a call with the same facts; otherwise what `conclude` gives now.
    pub(crate) fn recall(
        &mut self,
        policies: &Policies,
        slice: &Slice,
        question: &Question<'_>,
        conclude: impl FnOnce() -> Conclusion,
    ) -> Conclusion {
        let headers = || question.headers.iter().filter_map(|header| header.read.value());
        let length = || question.path.len() + question.host.len() + headers().map(str::len).sum::<usize>();
        if !slice.is_repeatable || length() > TEXT_BYTES_MAX {
            return conclude();
        }
        if !self.policies.as_ref().is_some_and(|known| Arc::ptr_eq(known, &policies.identity)) {
            self.young.clear();
            self.old.clear();
            self.policies = Some(Arc::clone(&policies.identity));
        }
        let hash = self.hash(slice, question);
        if let Some(known) = self.young.get(&hash).filter(|known| known.is_of(slice, question)) {
            return known.conclusion.clone();
        }
        let known = self.old.remove(&hash).filter(|known| known.is_of(slice, question));
        let known = known.unwrap_or_else(|| Remembered::of(slice, question, conclude()));
        let conclusion = known.conclusion.clone();
        if self.young.len() >= GENERATION_MAX {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(hash, known);
        conclusion
    }

    fn hash(&self, slice: &Slice, question: &Question<'_>) -> u64 {
        let wants = slice.wants;
        let mut hasher = self.seed.build_hasher();
        // The user's attributes are compared, not hashed.
        let user = question.user.filter(|_| wants.user).map(|user| user.subject.as_str());
        (question.action, question.principal.as_str(), question.resource.as_str(), user).hash(&mut hasher);
        wants.path.then_some(question.path).hash(&mut hasher);
        wants.host.then_some(question.host).hash(&mut hasher);
        slice.headers.iter().for_each(|name| question.header(name).and_then(HeaderRead::value).hash(&mut hasher));
        wants.country.then_some(question.country).hash(&mut hasher);
        wants.address.then_some(question.address).hash(&mut hasher);
        hasher.finish()
    }
}

impl Remembered {
    fn of(slice: &Slice, question: &Question<'_>, conclusion: Conclusion) -> Self {
        let wants = slice.wants;
        let read = |name: &String| question.header(name).cloned().map(HeaderRead::into_owned);
        Self {
            action: question.action.to_owned(),
            principal: question.principal.clone(),
            resource: question.resource.clone(),
            user: question.user.filter(|_| wants.user).cloned(),
            path: wants.path.then(|| question.path.to_owned()),
            host: wants.host.then(|| question.host.to_owned()),
            headers: slice.headers.iter().map(read).collect(),
            country: question.country.filter(|_| wants.country).map(str::to_owned),
            address: wants.address.then_some(question.address),
            conclusion,
        }
    }

    /// Whether every fact that can be read is the same.
    fn is_of(&self, slice: &Slice, question: &Question<'_>) -> bool {
        let Wants { user, path, host, country, address, .. } = slice.wants;
        let same_user = || match (&self.user, question.user) {
            // The same verified token gives the same user.
            (Some(known), Some(user)) => Arc::ptr_eq(known, user) || known == user,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let same_headers = || slice.headers.iter().map(|name| question.header(name)).eq(self.headers.iter().map(Option::as_ref));
        self.action == question.action
            && self.principal == *question.principal
            && self.resource == *question.resource
            && (!user || same_user())
            && (!path || self.path.as_deref() == Some(question.path))
            && (!host || self.host.as_deref() == Some(question.host))
            && same_headers()
            && (!country || self.country.as_deref() == question.country)
            && (!address || self.address == Some(question.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{amount, changed, compiled, decided, id, read_of, resource, transfer, user, with_header};
    use crate::{Denied, Permit, decide_remembering};
    use model::AuthzRequest;
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
            r#"@id("p") permit (principal, action, resource) when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] == "acme" };"#,
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
            with_header("x-tenant", read_of(&[b"other"])),
            with_header("x-tenant", read_of(&[])),
            with_header("x-tenant", read_of(&[b"acme", b"acme"])),
            with_header("x-tenant", read_of(&[b"\xff"])),
            changed(|request| request.headers.clear()),
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
                        let question = request.as_question();
                        let got = told(decide_remembering(&policies, &mut memory, &question, id, Revision(3)));
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
        let headers = vec!["x-tenant".to_owned()];
        let slice = Slice { groups: Vec::new(), wants: Wants::ALL, headers, is_repeatable: true, body_fields: None };
        let last = requests.len() - 1;
        for (number, one) in requests.iter().enumerate() {
            let known = Remembered::of(&slice, &one.as_question(), Conclusion::default());
            for (other, two) in requests.iter().enumerate() {
                // The last three differ by time and body, which are never remembered.
                let is_same = number == other || [number, other].iter().all(|at| [0, last - 2, last - 1, last].contains(at));
                assert_eq!(known.is_of(&slice, &two.as_question()), is_same, "{one:?} {two:?}");
            }
        }
    }

    /// How often these paths, asked for one after the other, had to be evaluated.
    fn evaluated(memory: &mut Memory, policies: &Policies, paths: impl Iterator<Item = String>) -> usize {
        let slice = &policies.actions["POST"].slice;
        let mut evaluated = 0;
        for path in paths {
            let request = changed(|request| request.path = path);
            memory.recall(policies, slice, &request.as_question(), || {
                evaluated += 1;
                Conclusion::default()
            });
            assert!(memory.young.len() + memory.old.len() <= 2 * GENERATION_MAX);
        }
        evaluated
    }

    #[test]
    fn the_same_facts_are_evaluated_once_and_the_memory_is_bounded() {
        let (texts, _) = cases();
        let policies = compiled(&[resource("p", texts[7], &[])]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let mut memory = Memory::default();
        let distinct = 6 * GENERATION_MAX;
        let twice = (0..distinct).flat_map(|number| [format!("/{number}"), format!("/{number}")]);
        assert_eq!(evaluated(&mut memory, &policies, twice), distinct);
        assert_eq!(memory.young.len() + memory.old.len(), 2 * GENERATION_MAX);
    }

    #[test]
    fn what_is_asked_for_again_and_again_is_not_pushed_out_by_what_is_asked_for_once() {
        let (texts, _) = cases();
        let policies = compiled(&[resource("p", texts[7], &[])]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let mut memory = Memory::default();
        let hot = || (0..100).map(|number| format!("/hot/{number}"));
        assert_eq!(evaluated(&mut memory, &policies, hot()), 100);
        for round in 0..20 {
            let cold = (0..300).map(|number| format!("/cold/{round}/{number}"));
            assert_eq!(evaluated(&mut memory, &policies, cold), 300);
            assert_eq!(evaluated(&mut memory, &policies, hot()), 0, "round {round}");
        }
    }
}
