//! Whatever the policies and the request: the decision is that of Cedar's own authorizer over all policies at once, except
//! that an error denies; and what is told of the decision fits it.

use super::*;
use crate::compile;
use crate::vocabulary::Vocabulary;
use cedar_policy::{Authorizer, Context, Entities, EntityUid, PolicySet, Request};
use model::decision::Outcome;
use model::ids::ServiceName;
use model::snapshot::AuthorizationPolicy;
use model::{AttributeValue, Header};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::str::FromStr;

fn scope() -> impl Strategy<Value = String> {
    let principal = select(vec![
        "principal",
        "principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\"",
        "principal == Workload::\"spiffe://bank.example/ns/bank/sa/fraud\"",
        "principal is Workload",
    ]);
    let action = select(vec![
        "action",
        "action == Action::\"POST\"",
        "action in Action::\"read\"",
        "action in [Action::\"write\", Action::\"connect\"]",
        "action in [Action::\"GET\", Action::\"POST\"]",
    ]);
    let resource = select(vec!["resource", "resource == Service::\"bank/payments\"", "resource is Service"]);
    (principal, action, resource).prop_map(|(p, a, r)| format!("({p}, {a}, {r})"))
}

/// A condition that the validator accepts anywhere. Those on the body are for resources that declare one.
fn condition(body: bool) -> impl Strategy<Value = String> {
    let mut all = vec![
        "context has user && context.user in Role::\"teller\"",
        "context has user && context.user in [Role::\"auditor\", Role::\"clerk\"]",
        "context has user && context.user in Role::\"deputy\"",
        "context has user && context.user has limit && context.user.limit >= 1000",
        "context has user && context.user has limit && context.user.limit + 9223372036854775000 > 0",
        "context has user && context.user.scopes.contains(\"openid\")",
        "context.request.path == \"/transfers\"",
        "context.request.path like \"/t*\"",
        "context.source has country && context.source.country == \"CH\"",
        "context.source.address.isInRange(ip(\"10.0.0.0/8\"))",
        "context.now > datetime(\"2026-11-24\")",
        "principal has namespace && principal.namespace == \"bank\"",
        "resource.name == \"payments\"",
        "action in Action::\"write\"",
        "context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] == \"acme\"",
        "context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] like \"*e*\"",
        "context.request has headers.beta && context.request.headers.beta == context.request.path",
        "context.request.headers has beta",
    ];
    if body {
        all.extend([
            "context.request has body && context.request.body.amount > 100",
            "context.request has body && context.request.body.amount + 9223372036854775707 > 0",
            "context.request has body && context has user && context.user has limit && context.request.body.amount <= context.user.limit",
        ]);
    }
    select(all).prop_map(|text| format!("({text})"))
}

fn clause(body: bool) -> impl Strategy<Value = String> {
    let parts = prop::collection::vec((condition(body), any::<bool>()), 1..4);
    (select(vec!["when", "unless"]), select(vec![" && ", " || "]), parts).prop_map(|(word, operator, parts)| {
        let parts = parts.iter().map(|(text, negated)| if *negated { format!("!{text}") } else { text.clone() });
        format!("{word} {{ {} }}", parts.collect::<Vec<_>>().join(operator))
    })
}

fn policy(body: bool) -> impl Strategy<Value = String> {
    let clauses = prop::collection::vec(clause(body), 0..3);
    (select(vec!["permit", "permit", "forbid"]), scope(), clauses)
        .prop_map(|(effect, scope, clauses)| format!("{effect} {scope} {};\n", clauses.join(" ")))
}

fn some_resource(name: &'static str) -> impl Strategy<Value = AuthorizationPolicy> {
    let shapes = vec![
        vec![],
        vec![("amount", AttributeType::Long)],
        vec![("amount", AttributeType::Long), ("note", AttributeType::String)],
    ];
    select(shapes).prop_flat_map(move |shape| {
        let policies = prop::collection::vec(policy(!shape.is_empty()), 0..5);
        policies.prop_map(move |policies| resource(name, &policies.concat(), &shape))
    })
}

fn some_user() -> impl Strategy<Value = model::User> {
    let roles = subsequence(vec!["teller", "auditor", "chief", "deputy"], 0..=4);
    (roles, proptest::option::of(select(vec![0, 999, 1000, 5000])), any::<bool>()).prop_map(|(roles, limit, scoped)| {
        let mut alice = user(&roles);
        alice.attributes.clear();
        alice.attributes.extend(limit.map(|limit| ("limit".to_owned(), AttributeValue::Long(limit))));
        alice.scopes.truncate(usize::from(scoped));
        alice
    })
}

fn some_body() -> impl Strategy<Value = Option<BTreeMap<String, AttributeValue>>> {
    let amount = proptest::option::of(select(vec![0, 100, 101, 5000]));
    proptest::option::of((amount, any::<bool>()).prop_map(|(amount, note)| {
        let amount = amount.map(|amount| ("amount".to_owned(), AttributeValue::Long(amount)));
        let note = note.then(|| ("note".to_owned(), AttributeValue::String("x".into())));
        amount.into_iter().chain(note).collect()
    }))
}

fn some_header(name: &'static str) -> impl Strategy<Value = Header<'static>> {
    let value = |text: &'static str| HeaderRead::Value(text.into());
    let absent = || HeaderRead::Absent;
    let reads =
        vec![value("acme"), value("evil"), value("/t"), absent(), absent(), absent(), HeaderRead::Twice, HeaderRead::Unreadable];
    select(reads).prop_map(move |read| Header { name: name.into(), read })
}

fn some_request() -> impl Strategy<Value = AuthzRequest> {
    let facts = (
        select(vec!["web", "fraud", "payments"]),
        select(vec!["GET", "POST", "PUT", "connect"]),
        select(vec!["bank/payments", "bank/ledger"]),
        select(vec!["/transfers", "/", "/t"]),
        select(vec!["10.1.2.3", "192.0.2.1", "2001:db8::1"]),
        proptest::option::of(select(vec!["CH", "DE"])),
        proptest::option::of(some_user()),
        some_body(),
        (some_header("x-tenant"), some_header("beta")),
    );
    facts.prop_map(|(principal, action, resource, path, address, country, user, body, headers)| AuthzRequest {
        principal: id(principal),
        user: user.map(Arc::new),
        action: action.to_owned(),
        resource: ServiceName::parse(resource).expect("name"),
        path: path.to_owned(),
        headers: vec![headers.0, headers.1],
        body,
        source: model::Source {
            address: address.parse().expect("address"),
            country: country.and_then(model::CountryCode::parse).into(),
        },
        ..transfer()
    })
}

/// What Cedar says of every policy, with facts written down and checked against the schema independently of ours.
#[derive(Debug, Default)]
struct Reference {
    permits: BTreeSet<String>,
    forbids: BTreeSet<String>,
    errors: BTreeSet<String>,
    /// Policies that could apply to the action and read a header that can be read in two ways.
    flawed: BTreeSet<String>,
}

impl Reference {
    fn ask(&mut self, resource: &AuthorizationPolicy, request: &AuthzRequest) {
        let schema = Vocabulary::of(&[bank_issuer()]).expect("sound").schema(&resource.body, &names()).expect("sound");
        let uid = |kind: &str, id: &str| EntityUid::from_json(json!({ "type": kind, "id": id })).expect("uid");
        let (principal, action) = (uid("Workload", request.principal.as_str()), uid("Action", &request.action));
        let called = uid("Service", request.resource.as_str());
        // An opaque connection has less to tell than the schema, which speaks of requests, asks for.
        let checked = (request.action != "connect").then_some(&schema);
        let context = context(resource, request);
        let context = Context::from_json_value(context, checked.map(|schema| (schema, &action))).expect("context");
        let entities = Entities::from_json_value(entities(request), Some(&schema)).expect("entities");
        let question = Request::new(principal, action, called, context, checked).expect("request");
        let all = PolicySet::from_str(&seen(resource, request)).expect("policies");
        for policy in all.policies() {
            let name = format!("{}/{}", resource.name, policy.id());
            let flawed = |header: &Header<'_>| header.read.flaw().is_some() && policy.to_string().contains(&*header.name);
            if request.action != "connect" && admits(policy, &request.action) && request.headers.iter().any(flawed) {
                self.flawed.insert(name);
                continue;
            }
            let alone = PolicySet::from_policies([policy.clone()]).expect("one");
            let response = Authorizer::new().is_authorized(&question, &alone, &entities);
            if response.diagnostics().errors().next().is_some() {
                self.errors.insert(name);
            } else if response.diagnostics().reason().next().is_some() {
                let permit = policy.effect() == cedar_policy::Effect::Permit;
                if permit { &mut self.permits } else { &mut self.forbids }.insert(name);
            }
        }
    }

    fn verdict(&self) -> (Option<Reason>, BTreeSet<String>) {
        if !self.flawed.is_empty() {
            (Some(Reason::PolicyError), BTreeSet::new())
        } else if !self.forbids.is_empty() {
            (Some(Reason::DeniedByPolicy), self.forbids.clone())
        } else if !self.errors.is_empty() {
            (Some(Reason::PolicyError), BTreeSet::new())
        } else if !self.permits.is_empty() {
            (None, self.permits.clone())
        } else {
            (Some(Reason::NotPermitted), BTreeSet::new())
        }
    }
}

fn names() -> crate::headers::HeaderNames {
    ["x-tenant", "beta"].map(str::to_owned).into()
}

/// Whether the scope of a policy, as Cedar reads it, lets the action in.
fn admits(policy: &cedar_policy::Policy, action: &str) -> bool {
    let group = if action == "GET" { "read" } else { "write" };
    let is_it = |uid: &EntityUid| [action, group].contains(&uid.id().unescaped());
    match policy.action_constraint() {
        cedar_policy::ActionConstraint::Any => true,
        cedar_policy::ActionConstraint::In(uids) => uids.iter().any(is_it),
        cedar_policy::ActionConstraint::Eq(uid) => is_it(&uid),
    }
}

/// The policies as they come out for this call: where there is a body without all declared fields, looking at it fails.
fn seen(resource: &AuthorizationPolicy, request: &AuthzRequest) -> String {
    let Some(body) = &request.body else { return resource.text.clone() };
    if resource.body.keys().all(|name| body.contains_key(name)) {
        return resource.text.clone();
    }
    let fails = "(9223372036854775807 + 1)";
    let text = resource.text.replace("context.request.body.amount", fails);
    text.replace("context.request has body", &format!("({fails} == 0)"))
}

fn context(resource: &AuthorizationPolicy, request: &AuthzRequest) -> Value {
    let mut context = json!({
        // An opaque connection has none of them.
        "request": if request.action == "connect" { json!({}) } else {
            let values = request.headers.iter().filter_map(|header| Some((header.name.to_string(), json!(header.read.value()?))));
            json!({ "path": request.path, "host": request.host, "headers": values.collect::<serde_json::Map<_, _>>() })
        },
        "source": { "address": { "__extn": { "fn": "ip", "arg": request.source.address.to_string() } } },
        "now": { "__extn": { "fn": "datetime", "arg": "2026-11-24T10:00:00Z" } },
    });
    if request.user.is_some() {
        context["user"] = json!({ "__entity": { "type": "User", "id": "bank-login#alice" } });
    }
    if let Some(country) = request.source.country.known() {
        context["source"]["country"] = json!(country);
    }
    if let Some(body) = &request.body {
        let declared: Vec<_> = body.iter().filter(|(name, _)| resource.body.contains_key(*name)).collect();
        if !declared.is_empty() && declared.len() == resource.body.len() {
            context["request"]["body"] = declared.into_iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        }
    }
    context
}

fn entities(request: &AuthzRequest) -> Value {
    let (namespace, name) = request.resource.as_str().split_once('/').expect("pair");
    let account = request.principal.as_str().rsplit('/').next();
    let mut all = vec![
        json!({ "uid": { "type": "Workload", "id": request.principal }, "parents": [], "attrs": {
            "id": request.principal, "trust_domain": "bank.example", "namespace": "bank", "account": account,
        } }),
        json!({ "uid": { "type": "Service", "id": request.resource }, "parents": [], "attrs": { "namespace": namespace, "name": name } }),
    ];
    if let Some(user) = &request.user {
        let parents: Vec<Value> = user.roles.iter().map(|role| json!({ "type": "Role", "id": role })).collect();
        let mut attributes = json!(user.attributes);
        attributes["issuer"] = json!(user.issuer);
        attributes["subject"] = json!(user.subject);
        attributes["scopes"] = json!(user.scopes);
        all.push(json!({ "uid": { "type": "User", "id": "bank-login#alice" }, "parents": parents, "attrs": attributes }));
    }
    for (role, within) in bank_roles().declared() {
        let parents: Vec<Value> = within.iter().map(|role| json!({ "type": "Role", "id": role })).collect();
        all.push(json!({ "uid": { "type": "Role", "id": role }, "parents": parents, "attrs": {} }));
    }
    Value::Array(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_decision_is_that_of_cedar_except_that_an_error_denies(
        a in some_resource("a"), b in some_resource("b"), request in some_request(), other in some_user(),
    ) {
        let resources = [a, b];
        // Some combinations can never be true, and are refused for it.
        let Ok(policies) = compile(&resources, &[bank_issuer()], &bank_roles()) else { return Ok(()) };
        let mut reference = Reference::default();
        resources.iter().for_each(|resource| reference.ask(resource, &request));
        let (reason, determining) = reference.verdict();

        let outcome = decided(&policies, &request);
        let could = outcome.as_ref().is_err_and(|denied| denied.user_could_be_allowed);
        let decision = match outcome {
            Ok(permit) => permit.decision().clone(),
            Err(denied) => denied.decision,
        };
        prop_assert_eq!(decision.reason, reason);
        prop_assert_eq!(decision.effect == Effect::Allow, reason.is_none());
        prop_assert_eq!(decision.determining.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), determining);

        if request.user.is_none() && reason == Some(Reason::NotPermitted) {
            let known = AuthzRequest { user: Some(Arc::new(other)), ..request.clone() };
            prop_assert!(could || decided(&policies, &known).is_err(), "a user would have been allowed");
        } else {
            prop_assert!(!could);
        }

        let explanation = crate::explain(&policies, &request, &decision);
        prop_assert_eq!(explanation.policies.len(), policies.rules.len());
        prop_assert!(explanation.nearest_miss.is_some() || reason.is_none());
        for policy in &explanation.policies {
            let id = policy.id.as_str();
            let expected = if reference.errors.contains(id) || reference.flawed.contains(id) {
                Outcome::Errored
            } else if reference.permits.contains(id) || reference.forbids.contains(id) {
                Outcome::Applied
            } else {
                Outcome::NotApplied
            };
            prop_assert_eq!(policy.outcome, expected, "{}", id);
            prop_assert_eq!(policy.failed.is_empty(), expected == Outcome::Applied, "{:?}", policy);
        }
    }
}

#[test]
fn the_generators_make_policies_that_compile_and_decisions_of_every_kind() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut sound, mut kinds) = (0, BTreeSet::new());
    for _ in 0..300 {
        let tree = (some_resource("a"), some_request()).new_tree(&mut runner).expect("generates");
        let (resource, request) = tree.current();
        if let Ok(policies) = compile(&[resource], &[bank_issuer()], &bank_roles()) {
            sound += 1;
            kinds.insert(decided(&policies, &request).err().and_then(|denied| denied.decision.reason));
        }
    }
    assert!(sound > 150, "{sound} of 300");
    let expected = [None, Some(Reason::DeniedByPolicy), Some(Reason::NotPermitted), Some(Reason::PolicyError)];
    assert_eq!(kinds, BTreeSet::from(expected));
}
