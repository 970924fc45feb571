use super::*;
use crate::fixture::*;
use model::authz::{AttributeType::Long, AttributeValue, User};
use std::sync::Arc;

use model::authz::AttributeType;
use model::country::{Country, CountryCode};

const AMOUNT: [(&str, AttributeType); 1] = [("amount", Long)];

fn payments() -> Policies {
    compiled(&[resource("payments", PAYMENTS, &AMOUNT)]).expect("sound")
}

fn explained(policies: &Policies, request: &AuthzRequest) -> Explanation {
    let decision = match decided(policies, request) {
        Ok(permit) => permit.decision().clone(),
        Err(denied) => denied.decision,
    };
    explain(policies, request, &decision)
}

fn nearest(policies: &Policies, request: &AuthzRequest) -> String {
    explained(policies, request).nearest_miss.unwrap_or_default()
}

fn as_user(roles: &[&str], change: impl FnOnce(&mut User)) -> AuthzRequest {
    let mut alice = user(roles);
    change(&mut alice);
    changed(|request| request.user = Some(Arc::new(alice)))
}

/// A permit for everyone with this condition.
fn when(condition: &str) -> Policies {
    policies(&format!("@id(\"it\") permit (principal, action, resource) when {{ {condition} }};"))
}

#[test]
fn the_nearest_miss_is_told_in_words() {
    let transfer = "would be allowed by bank/payments/transfer-within-limit if";
    let failed = "denied because bank/payments/transfer-within-limit (policies/payments.yaml:11) failed:";
    let audit = "would be allowed by bank/payments/audit if";
    for (request, expected) in [
        (transfer_of(5000), format!("{transfer} context.request.body.amount <= context.user.limit (5000 <= 1000)")),
        (transfer_of(0), format!("{transfer} context.request.body.amount > 0 (0 > 0)")),
        (as_user(&["auditor"], |_| ()), format!("{transfer} the user had the role teller (it has: auditor)")),
        (as_user(&["clerk", "auditor"], |_| ()), format!("{transfer} the user had the role teller (it has: clerk, auditor)")),
        (
            as_user(&["chief"], |user| drop(user.attributes.insert("limit".into(), AttributeValue::Long(1)))),
            format!("{transfer} context.request.body.amount <= context.user.limit (500 <= 1)"),
        ),
        (as_user(&[], |_| ()), format!("{transfer} the user had the role teller (it has none)")),
        (
            as_user(&["auditor"], |user| user.attributes.clear()),
            format!(
                "{transfer} the user had the role teller (it has: auditor), the user had the attribute `limit`, \
                 the user had the attribute `country` and 2 more conditions held"
            ),
        ),
        (
            changed(|r| r.user = None),
            format!("{transfer} the call carried a user's token, the user had the role teller and 4 more conditions held"),
        ),
        (
            changed(|r| r.source.country = CountryCode::parse("DE").into()),
            format!("{transfer} context.source.country == context.user.country (\"DE\" == \"CH\")"),
        ),
        (
            changed(|r| r.source.country = Country::Unknown),
            format!("{transfer} the country of the call were known and 1 more condition held"),
        ),
        (
            changed(|r| (r.body, r.body_note) = (None, Some("the content type is not JSON in UTF-8".into()))),
            format!("{failed} the content type is not JSON in UTF-8"),
        ),
        (
            changed(|r| r.body = Some(BTreeMap::from([("amount".into(), AttributeValue::String("5".into()))]))),
            format!("{failed} the body has no `amount` of type Long"),
        ),
        (
            changed(|r| r.path = "/transfers/1".into()),
            format!("{transfer} context.request.path == \"/transfers\" (\"/transfers/1\" == \"/transfers\")"),
        ),
        (
            changed(|r| r.principal = id("fraud")),
            format!(
                "{transfer} the caller were spiffe://bank.example/ns/bank/sa/web (it is spiffe://bank.example/ns/bank/sa/fraud)"
            ),
        ),
        (changed(|r| r.action = "PUT".into()), format!("{transfer} the method were POST (it is PUT)")),
        (changed(|r| r.action = "GET".into()), format!("{audit} the user had the role auditor (it has: teller)")),
        (
            changed(|r| r.action = "BREW".into()),
            "the method `BREW` is none that policies can allow: GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE, connect".into(),
        ),
    ] {
        assert_eq!(nearest(&payments(), &request), expected, "{request:#?}");
    }
}

#[test]
fn the_headers_that_were_read_are_shown_and_what_was_wrong_with_one() {
    let tenant = "context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] == \"acme\"";
    let path = "context.request.headers[\"x-tenant\"]";
    let shown = |explanation: &Explanation| -> Vec<String> {
        explanation.attributes.iter().map(|(path, value)| format!("{path} is {value}")).collect()
    };
    let other = with_header("x-tenant", read_of(&[b"other"]));
    let explanation = explained(&when(tenant), &other);
    assert_eq!(shown(&explanation), [format!("{path} is \"other\"")]);
    assert_eq!(explanation.policies[0].failed, [format!("{path} == \"acme\": \"other\" == \"acme\" is false")]);
    let wish = format!("would be allowed by bank/p/it if {path} == \"acme\" (\"other\" == \"acme\")");
    assert_eq!(explanation.nearest_miss, Some(wish));

    let absent = explained(&when(tenant), &with_header("x-tenant", read_of(&[])));
    assert_eq!(shown(&absent), [format!("{path} is (absent)")]);
    let wish = format!("would be allowed by bank/p/it if {path} were there and 1 more condition held");
    assert_eq!(absent.nearest_miss, Some(wish));

    let twice = explained(&when(tenant), &with_header("x-tenant", read_of(&[b"acme", b"acme"])));
    assert_eq!(shown(&twice), [format!("{path} is (header `x-tenant` stands more than once)")]);
    assert_eq!(twice.policies[0].outcome, Outcome::Errored);
    assert_eq!(twice.policies[0].failed, ["header `x-tenant` stands more than once"]);
    let miss = "denied because bank/p/it (policies/p.yaml:10) failed: header `x-tenant` stands more than once";
    assert_eq!(twice.nearest_miss.as_deref(), Some(miss));
}

fn transfer_of(money: i64) -> AuthzRequest {
    changed(|request| amount(request, money))
}

#[test]
fn each_condition_that_did_not_hold_is_listed_with_its_values() {
    let request = as_user(&["auditor"], |user| drop(user.attributes.remove("limit")));
    let explanation = explained(&payments(), &request);
    let [transfer, audit] = explanation.policies.as_slice() else { panic!("{explanation:#?}") };
    assert_eq!((transfer.kind.as_str(), transfer.position.as_str()), ("permit", "policies/payments.yaml:11"));
    assert_eq!(transfer.outcome, Outcome::NotApplied);
    assert_eq!(
        transfer.failed,
        [
            "context.user in Role::\"teller\": it has: auditor",
            "context.user has limit: context.user.limit is absent",
            "context.request.body.amount <= context.user.limit: context.user.limit is absent",
        ]
    );
    assert_eq!(audit.failed, ["action in Action::\"read\": it is POST"]);
    let value = |path: &str| explanation.attributes.iter().find(|(known, _)| known == path).map(|(_, value)| value.as_str());
    for (path, expected) in [
        ("context.user", "User::\"bank-login#alice\" with the roles auditor"),
        ("context.user.limit", "(absent)"),
        ("context.user.country", "\"CH\""),
        ("context.request.path", "\"/transfers\""),
        ("context.request.body.amount", "500"),
        ("context.source.country", "\"CH\""),
    ] {
        assert_eq!(value(path), Some(expected), "{path}");
    }
    let paths: Vec<&String> = explanation.attributes.iter().map(|(path, _)| path).collect();
    assert!(paths.is_sorted(), "{paths:?}");
}

#[test]
fn every_form_of_condition_is_explained() {
    for (condition, line, wish) in [
        (
            "context.request.path != \"/transfers\"",
            "\"/transfers\" != \"/transfers\" is false",
            "(\"/transfers\" != \"/transfers\")",
        ),
        (
            "context.request.path like \"/x*\"",
            "context.request.path = \"/transfers\" is false",
            "(context.request.path = \"/transfers\")",
        ),
        (
            "[\"/a\", \"/b\"].contains(context.request.path)",
            "[\"/a\", \"/b\"].contains(\"/transfers\") is false",
            ".contains(\"/transfers\"))",
        ),
        ("context.source.address.isInRange(ip(\"192.0.2.0/24\"))", ".isInRange(", "isInRange"),
        ("context.now < datetime(\"2026-01-01\")", "2026-11-24", "2026-01-01"),
        ("context has user && context.user.scopes.contains(\"pay\")", "[\"openid\"].contains(\"pay\") is false", "(["),
        (
            "context has user && !(context.user in Role::\"teller\")",
            "it has: teller",
            "the user did not have the role teller (it has: teller)",
        ),
        (
            "context has user && context.user in [Role::\"a\", Role::\"b\"]",
            "it has: teller",
            "the user had one of the roles a, b (it has: teller)",
        ),
        ("!(context has user)", "context.user is there", "context.user were absent"),
        (
            "!(context.request.path == \"/transfers\")",
            "\"/transfers\" == \"/transfers\" is true",
            "!(context.request.path == \"/transfers\") (\"/transfers\" == \"/transfers\")",
        ),
        ("principal has namespace && principal.namespace == \"shop\"", "\"bank\" == \"shop\" is false", "(\"bank\" == \"shop\")"),
        ("action in Action::\"read\"", "Action::\"POST\" in Action::\"read\" is false", "(Action::\"POST\" in Action::\"read\")"),
        (
            "context.request.path == \"/a\" || context.request.host == \"b\"",
            "context.request.host = \"payments\", context.request.path = \"/transfers\" is false",
            "(context.request.path == \"/a\") || (context.request.host == \"b\") (context.request.host = ",
        ),
        (
            "if context.request.path == \"/a\" then true else false",
            "context.request.path = \"/transfers\" is false",
            "context.request.path = \"/transfers\"",
        ),
        (
            "context has user && context.user has staff && context.user.staff",
            "context.user.staff is absent",
            "the user had the attribute `staff`",
        ),
        ("principal is Workload && context.request.host == \"x\"", "\"payments\" == \"x\"", "(\"payments\" == \"x\")"),
    ] {
        let explanation = explained(&when(condition), &transfer());
        let failed = &explanation.policies[0].failed;
        assert!(failed.iter().any(|found| found.contains(line)), "{condition}\n{failed:#?}");
        let nearest = explanation.nearest_miss.unwrap_or_default();
        assert!(nearest.starts_with("would be allowed by bank/p/it if ") && nearest.contains(wish), "{condition}\n{nearest}");
    }
}

#[test]
fn unless_is_explained_as_what_must_not_be() {
    let text = "permit (principal, action, resource) unless { context.request.path == \"/transfers\" || context.request.host == \"x\" };";
    let explanation = explained(&policies(text), &transfer());
    assert_eq!(
        explanation.policies[0].failed,
        ["!(context.request.path == \"/transfers\"): \"/transfers\" == \"/transfers\" is true"]
    );
}

#[test]
fn a_forbid_is_named_with_its_conditions() {
    let text = "permit (principal, action, resource);
        @id(\"high\") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 100 };
        @id(\"closed\") forbid (principal, action == Action::\"POST\", resource);
        @id(\"other\") forbid (principal, action == Action::\"GET\", resource);";
    let explanation = explained(&policies(text), &transfer());
    assert_eq!(
        explanation.nearest_miss.as_deref(),
        Some(
            "forbidden by bank/p/high (policies/p.yaml:11) because context.request has body and \
             context.request.body.amount > 100 (500 > 100); by bank/p/closed (policies/p.yaml:12) because it has no conditions; \
             bank/p/policy0 would allow it otherwise"
        )
    );
    let alone = "@id(\"closed\") forbid (principal, action, resource);
        @id(\"read\") permit (principal, action == Action::\"GET\", resource);";
    let nearest = nearest(&policies(alone), &transfer());
    let both =
        "; without that it would not be permitted either: would be allowed by bank/p/read if the method were GET (it is POST)";
    assert!(nearest.starts_with("forbidden by bank/p/closed") && nearest.ends_with(both), "{nearest}");
    let outcomes: Vec<Outcome> = explanation.policies.iter().map(|policy| policy.outcome).collect();
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Applied, Outcome::Applied, Outcome::NotApplied]);
    assert_eq!(explanation.policies[3].failed, ["action == Action::\"GET\": it is POST"]);
}

#[test]
fn a_failed_policy_is_named_with_its_error() {
    let text = "permit (principal, action, resource);
        forbid (principal, action, resource) when { context.request has body && context.request.body.amount + 9223372036854775807 > 0 };";
    let explanation = explained(&policies(text), &transfer());
    let failed = explanation.nearest_miss.clone().unwrap_or_default();
    assert!(failed.starts_with("denied because bank/p/policy1 (policies/p.yaml:11) failed: "), "{failed}");
    assert!(failed.contains("does not fit 64 bits"), "{failed}");
    assert_eq!(explanation.policies[1].outcome, Outcome::Errored);
    assert!(explanation.policies[1].failed[0].contains("does not fit 64 bits"), "{explanation:#?}");

    let stale = as_user(&["teller"], |user| drop(user.attributes.insert("limit".into(), AttributeValue::Boolean(true))));
    let nearest = nearest(&payments(), &stale);
    assert!(nearest.contains("user attribute `limit` is Boolean, and the policies were checked with Long"), "{nearest}");
}

#[test]
fn a_user_that_no_policy_of_the_action_reads_fails_nothing() {
    let text = "permit (principal, action == Action::\"GET\", resource) when { context has user };
        permit (principal, action == Action::\"POST\", resource) when { context.request.path == \"/a\" };";
    let stale = as_user(&["teller"], |user| drop(user.attributes.insert("limit".into(), AttributeValue::Boolean(true))));
    let explanation = explained(&policies(text), &stale);
    let outcomes: Vec<Outcome> = explanation.policies.iter().map(|policy| policy.outcome).collect();
    assert_eq!(outcomes, [Outcome::NotApplied, Outcome::NotApplied]);
}

#[test]
fn what_would_have_denied_an_allowed_call_is_told_too() {
    let path = "context.request.path == \"/transfers\"";
    let open = "@id(\"open\") permit (principal, action, resource);";
    let home = "@id(\"home\") permit (principal, action, resource) when { context.source has country && context.source.country == \"CH\" };";
    let large =
        "@id(\"large\") forbid (principal, action == Action::\"POST\", resource) when { context.request.host == \"other\" };";
    let far = format!(
        "@id(\"far\") forbid (principal, action, resource) when {{ {path} && context.request.host == \"x\" && context.request.host like \"y*\" }};"
    );
    let elsewhere = "@id(\"get\") forbid (principal, action == Action::\"GET\", resource);";
    let rests = "would be denied without context.source has country or context.source.country == \"CH\" (\"CH\" == \"CH\"): \
                 bank/p/home alone allows it";
    let near = "would be forbidden by bank/p/large if context.request.host == \"other\" (\"payments\" == \"other\")";
    for (text, expected) in [
        (home.to_owned(), rests.to_owned()),
        (format!("{open} {large}"), near.to_owned()),
        (format!("{home} {far} {large}"), format!("{rests}; {near}")),
        (format!("{home} {elsewhere}"), rests.to_owned()),
        // Whatever one permit lacks, the other has.
        (format!("{home} {open}"), String::new()),
        (open.to_owned(), String::new()),
    ] {
        assert_eq!(nearest(&policies(&text), &transfer()), expected, "{text}");
    }
}

#[test]
fn without_a_permit_there_is_nothing_near() {
    for text in ["", "forbid (principal, action == Action::\"GET\", resource);"] {
        assert_eq!(nearest(&policies(text), &transfer()), "no permit policy selects this workload");
    }
    let allowed = explained(&payments(), &transfer());
    assert_eq!(allowed.policies[0].outcome, Outcome::Applied);
    assert_eq!(allowed.policies[0].failed, [""; 0]);
}

#[test]
fn the_nearest_permit_is_for_this_call_before_it_is_nearly_met() {
    let text = "@id(\"far\") permit (principal, action == Action::\"GET\", resource);
        @id(\"two\") permit (principal, action, resource) when { context.request.path == \"/a\" && context.request.host == \"b\" };
        @id(\"one\") permit (principal, action, resource) when { context.request.path == \"/a\" };
        @id(\"also\") permit (principal, action, resource) when { context.request.path == \"/b\" };";
    let found = nearest(&policies(text), &transfer());
    assert!(found.starts_with("would be allowed by bank/p/one if"), "{found}");
}

#[test]
fn an_explanation_is_bounded_and_printable() {
    let text: String = (0..300)
        .map(|at| format!("@id(\"p{at}\") permit (principal, action == Action::\"{}\", resource) when {{ context.request.path == \"/{at}\" }};", if at % 2 == 0 { "GET" } else { "POST" }))
        .collect();
    let text = format!("{text} @id(\"last\") forbid (principal, action, resource);");
    let explanation = explained(&policies(&text), &transfer());
    assert_eq!(explanation.policies.len(), POLICIES_MAX);
    let posts = explanation.policies.iter().filter(|policy| policy.failed.len() == 1).count();
    assert_eq!(posts, 150, "those that admit the action come before the others");
    assert_eq!(explanation.policies[POLICIES_MAX - 1].id.as_str(), "bank/p/last", "the determining one is kept, in its place");

    let long = changed(|r| {
        r.path = format!("/{}\n\u{1b}[31m", "x".repeat(10_000));
        let mut alice = user(&["a\nb"; 100]);
        alice.subject = "\u{202e}evil\r\n".repeat(1000);
        r.user = Some(Arc::new(alice));
        r.body_note = Some("why\n".repeat(1000));
        r.body = None;
    });
    let wide = format!("[{}].contains(context.request.path)", "\"/a\",".repeat(5000));
    for policies in [payments(), when(&wide), when("context.request has body")] {
        let explanation = explained(&policies, &long);
        let texts = explanation.policies.iter().flat_map(|policy| policy.failed.iter());
        let values = explanation.attributes.iter().map(|(_, value)| value);
        for text in texts.chain(values).chain(&explanation.nearest_miss) {
            assert!(text.chars().count() < 4000, "{} characters", text.chars().count());
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}

#[test]
fn a_path_is_written_as_cedar_reads_it() {
    for (path, expected) in [
        (vec!["context", "user"], "context.user"),
        (vec!["context", "request", "body", "the \"amount\""], "context.request.body[\"the \\\"amount\\\"\"]"),
        (vec!["context", "if"], "context[\"if\"]"),
        (vec!["context", "1st"], "context[\"1st\"]"),
        (vec!["context", ""], "context[\"\"]"),
    ] {
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        assert_eq!(path_text(&path), expected);
        assert!(Expression::from_str(expected).is_ok(), "{expected}");
    }
}

#[test]
fn a_field_with_an_odd_name_is_explained_too() {
    let text =
        "permit (principal, action, resource) when { context.request has body && context.request.body[\"the amount\"] > 7 };";
    let policies = compiled(&[resource("p", text, &[("the amount", Long)])]).expect("sound");
    let request = changed(|r| r.body = Some(BTreeMap::from([("the amount".to_owned(), AttributeValue::Long(5))])));
    assert_eq!(explained(&policies, &request).policies[0].failed, ["context.request.body[\"the amount\"] > 7: 5 > 7 is false"]);
}

#[test]
fn a_country_that_could_not_be_looked_up_is_told_where_a_policy_reads_it() {
    let request = changed(|r| r.source.country = Country::Unavailable);
    let explained = explained(&policies(crate::fixture::PAYMENTS), &request);
    let reading: Vec<_> = explained.policies.iter().filter(|policy| policy.outcome == Outcome::Errored).collect();
    assert!(!reading.is_empty(), "{explained:#?}");
    assert!(reading.iter().all(|policy| policy.failed[0].contains("database of countries cannot be read")), "{reading:#?}");
    let country = explained.attributes.iter().find(|(path, _)| path == "context.source.country").expect("read");
    assert!(country.1.contains("could not be looked up"), "{country:?}");
}
