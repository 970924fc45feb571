use super::*;
use crate::fixture::*;
use model::AuthzRequest;
use model::Principal;
use model::authz::{AttributeType, AttributeValue, HeaderRead};
use model::country::{Country, CountryCode};
use model::ids::SpiffeId;
use std::collections::BTreeMap;
use std::sync::Arc;

const OVERFLOW: &str = "context.request has body && context.request.body.amount + 9223372036854775807 > 0";

fn with_user(change: impl FnOnce(&mut model::User)) -> AuthzRequest {
    let mut alice = user(&["teller"]);
    change(&mut alice);
    changed(|request| request.user = Some(Arc::new(alice)))
}

#[test]
fn the_bank_s_rules_decide_transfers() {
    let payments = policies(PAYMENTS);
    for (name, request, expected) in [
        ("within limit", transfer(), "allow transfer-within-limit"),
        ("at the limit", changed(|r| amount(r, 1000)), "allow transfer-within-limit"),
        ("over the limit", changed(|r| amount(r, 1001)), "not_permitted"),
        ("nothing", changed(|r| amount(r, 0)), "not_permitted"),
        ("negative", changed(|r| amount(r, -5)), "not_permitted"),
        ("from abroad", changed(|r| r.source.country = CountryCode::parse("DE").into()), "not_permitted"),
        ("from nowhere", changed(|r| r.source.country = Country::Unknown), "not_permitted"),
        ("from where nobody could look up", changed(|r| r.source.country = Country::Unavailable), "policy_error"),
        ("no body", changed(|r| r.body = None), "not_permitted"),
        (
            "a body of another type",
            changed(|r| r.body = Some(BTreeMap::from([("amount".into(), AttributeValue::String("5".into()))]))),
            "policy_error",
        ),
        ("another path", changed(|r| r.path = "/transfers/".into()), "not_permitted"),
        ("another caller", changed(|r| r.principal = id("fraud")), "not_permitted"),
        ("a plaintext caller", changed(|r| r.principal = Principal::Unauthenticated), "not_permitted"),
        (
            "the same account of another trust domain",
            changed(|r| r.principal = SpiffeId::parse("spiffe://evil.example/ns/bank/sa/web").expect("id").into()),
            "not_permitted",
        ),
        ("no user", changed(|r| r.user = None), "not_permitted"),
        ("another role", with_user(|u| u.roles = vec!["clerk".into()]), "not_permitted"),
        ("no limit", with_user(|u| drop(u.attributes.remove("limit"))), "not_permitted"),
        ("another method", changed(|r| r.action = "PUT".into()), "not_permitted"),
        ("a method in lower case", changed(|r| r.action = "post".into()), "not_permitted"),
        (
            "an auditor reads",
            changed(|r| {
                r.action = "GET".into();
                r.user = Some(Arc::new(user(&["auditor"])))
            }),
            "allow audit",
        ),
        (
            "an auditor heads",
            changed(|r| {
                r.action = "HEAD".into();
                r.user = Some(Arc::new(user(&["x", "auditor"])))
            }),
            "allow audit",
        ),
        ("an auditor posts", changed(|r| r.user = Some(Arc::new(user(&["auditor"])))), "not_permitted"),
        ("a teller reads", changed(|r| r.action = "GET".into()), "not_permitted"),
    ] {
        assert_eq!(verdict(&payments, &request), expected, "{name}");
    }
}

#[test]
fn the_bank_s_rules_decide_who_reaches_the_ledger() {
    let ledger = policies(LEDGER);
    for (account, action, path, expected) in [
        ("payments", "POST", "/entries", "allow post"),
        ("payments", "GET", "/entries", "not_permitted"),
        ("payments", "POST", "/", "not_permitted"),
        ("fraud", "GET", "/anything", "allow read"),
        ("fraud", "POST", "/entries", "not_permitted"),
        ("web", "POST", "/entries", "not_permitted"),
        ("web", "GET", "/entries", "not_permitted"),
    ] {
        let request = changed(|r| (r.principal, r.action, r.path) = (id(account), action.into(), path.into()));
        assert_eq!(verdict(&ledger, &request), expected, "{account} {action} {path}");
    }
}

#[test]
fn a_user_of_a_role_is_a_user_of_all_that_it_is_within() {
    let in_role = |role: &str| {
        policies(&format!(
            "@id(\"p\") permit (principal, action, resource) when {{ context has user && context.user in {role} }};"
        ))
    };
    for (held, asked, expected) in [
        ("chief", "Role::\"chief\"", "allow p"),
        ("chief", "Role::\"deputy\"", "allow p"),
        ("chief", "Role::\"teller\"", "allow p"),
        ("chief", "Role::\"auditor\"", "allow p"),
        ("chief", "[Role::\"x\", Role::\"teller\"]", "allow p"),
        ("deputy", "Role::\"teller\"", "allow p"),
        ("deputy", "Role::\"auditor\"", "not_permitted"),
        ("teller", "Role::\"deputy\"", "not_permitted"),
        ("teller", "Role::\"chief\"", "not_permitted"),
        ("Chief", "Role::\"teller\"", "not_permitted"),
    ] {
        let request = changed(|request| request.user = Some(Arc::new(user(&[held]))));
        assert_eq!(verdict(&in_role(asked), &request), expected, "{held} in {asked}");
        // What is remembered follows them too.
        let both = changed(|request| request.user = Some(Arc::new(user(&["clerk", held, "deputy"]))));
        assert_eq!(verdict(&in_role("Role::\"teller\""), &both), "allow p", "{held}");
    }
    let forbid = "permit (principal, action, resource); @id(\"no\") forbid (principal, action, resource) when { context has user && context.user in Role::\"teller\" };";
    let request = changed(|request| request.user = Some(Arc::new(user(&["chief"]))));
    assert_eq!(verdict(&policies(forbid), &request), "denied_by_policy no");
}

#[test]
fn forbid_over_permit_over_deny_and_any_error_denies() {
    let permit = "@id(\"p\") permit (principal, action, resource);";
    let web = "@id(\"w\") permit (principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\", action, resource);";
    let forbid = "@id(\"f\") forbid (principal, action, resource);";
    let named = "@id(\"n\") forbid (principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\", action, resource);";
    let other = "@id(\"o\") forbid (principal == Workload::\"spiffe://bank.example/ns/bank/sa/fraud\", action, resource);";
    let broken = |effect: &str| format!("@id(\"b-{effect}\") {effect} (principal, action, resource) when {{ {OVERFLOW} }};");
    let (broken_forbid, broken_permit) = (broken("forbid"), broken("permit"));
    for (texts, expected) in [
        (vec![], "not_permitted"),
        (vec![permit], "allow p"),
        (vec![web, permit], "allow p w"),
        (vec![forbid], "denied_by_policy f"),
        (vec![permit, forbid], "denied_by_policy f"),
        (vec![web, forbid, named], "denied_by_policy f n"),
        (vec![permit, named], "denied_by_policy n"),
        (vec![permit, other], "allow p"),
        (vec![permit, &broken_forbid], "policy_error"),
        (vec![web, &broken_forbid], "policy_error"),
        (vec![permit, &broken_permit], "policy_error"),
        (vec![web, &broken_permit], "policy_error"),
        (vec![&broken_permit], "policy_error"),
        (vec![permit, forbid, &broken_permit], "denied_by_policy f"),
    ] {
        assert_eq!(verdict(&policies(&texts.concat()), &transfer()), expected, "{texts:?}");
    }
    let denied = decided(&policies(&format!("{permit}{broken_forbid}")), &transfer()).expect_err("denied");
    assert_eq!(denied.errors.len(), 1);
    assert!(
        denied.errors[0].contains("bank/p/b-forbid") && denied.errors[0].contains("does not fit 64 bits"),
        "{:?}",
        denied.errors
    );
    assert!(!denied.user_could_be_allowed);
    assert_eq!((denied.decision.id, denied.decision.revision), (DecisionId::from_random([7; 16]), Revision(3)));
}

#[test]
fn unknown_actions_are_denied_even_where_everything_is_permitted() {
    let open = policies("permit (principal, action, resource);");
    for action in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "connect"] {
        assert_eq!(verdict(&open, &changed(|r| r.action = action.into())), "allow policy0", "{action}");
    }
    for action in ["", "get", "read", "write", "TRACE", "CONNECT", "PROPFIND", "GET ", "G\u{0}ET"] {
        let request = changed(|r| (r.action, r.user) = (action.into(), None));
        assert_eq!(verdict(&open, &request), "not_permitted", "{action}");
        assert!(!decided(&open, &request).expect_err("denied").user_could_be_allowed, "{action}");
    }
}

#[test]
fn every_fact_can_be_read() {
    for (condition, expected) in [
        ("principal.id == \"spiffe://bank.example/ns/bank/sa/web\"", true),
        ("principal.trust_domain == \"bank.example\"", true),
        ("principal has namespace && principal.namespace == \"bank\"", true),
        ("principal has account && principal.account == \"web\"", true),
        ("principal has account && principal.account == \"payments\"", false),
        ("(if context has user then principal else principal).id like \"*/web\"", true),
        ("resource == Service::\"bank/payments\"", true),
        ("resource.namespace == \"bank\" && resource.name == \"payments\"", true),
        ("action == Action::\"POST\"", true),
        ("action in Action::\"write\"", true),
        ("action in Action::\"read\"", false),
        ("context.request.host == \"payments\"", true),
        ("context.source.address.isInRange(ip(\"10.0.0.0/8\"))", true),
        ("context.source.address.isInRange(ip(\"10.2.0.0/16\"))", false),
        ("context.now > datetime(\"2026-11-24T09:59:59Z\") && context.now < datetime(\"2026-11-24T10:00:01Z\")", true),
        ("context.now.toTime() >= duration(\"10h\")", true),
        ("context has user && context.user == User::\"bank-login#alice\"", true),
        ("context has user && context.user.issuer == \"bank-login\" && context.user.subject == \"alice\"", true),
        ("context has user && context.user.scopes.contains(\"openid\")", true),
        ("context has user && context.user has branches && context.user.branches.contains(\"north\")", true),
        ("context has user && context.user has staff && context.user.staff", true),
        ("context has user && context.user in [Role::\"clerk\", Role::\"teller\"]", true),
        ("context == context", true),
    ] {
        let request = with_user(|u| {
            u.attributes.insert("branches".into(), AttributeValue::StringSet(vec!["south".into(), "north".into()]));
            u.attributes.insert("staff".into(), AttributeValue::Boolean(true));
        });
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let expected = if expected { "allow policy0" } else { "not_permitted" };
        assert_eq!(verdict(&policies(&text), &request), expected, "{condition}");
    }
}

#[test]
fn a_country_that_could_not_be_looked_up_denies_every_call_whose_policies_read_it() {
    let known = CountryCode::parse("DE").into();
    for (condition, reads) in [
        ("context.source has country && context.source.country == \"KP\"", true),
        ("context.source has country", true),
        ("context has source.country", true),
        ("!(context.source has country)", true),
        ("context.source == context.source", true),
        ("(if context has user then context.source else context.source) has country", true),
        ("context.source.address.isLoopback()", false),
        ("context.request.path == \"/nowhere\"", false),
    ] {
        let text = format!(
            "permit (principal, action, resource); forbid (principal, action in Action::\"write\", resource) when {{ {condition} }};"
        );
        let all = policies(&text);
        for (action, country) in
            [("POST", Country::Unavailable), ("GET", Country::Unavailable), ("GET", Country::Unknown), ("GET", known)]
        {
            let request = changed(|r| (r.action, r.source.country) = (action.into(), country));
            let denies = reads && action == "POST";
            let expected = if denies { "policy_error" } else { "allow policy0" };
            assert_eq!(verdict(&all, &request), expected, "{condition}: {action} {country:?}");
            assert_eq!(all.reads_country(action), denies, "{condition}: {action}");
        }
        assert_eq!(all.reads_any_country(), reads, "{condition}");
    }
}

#[test]
fn headers_are_read_by_name_and_in_either_syntax() {
    let acme = || HeaderRead::Value("acme".into());
    let tenant = "context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] == \"acme\"";
    let plain = "context.request.headers has tenant && context.request.headers.tenant == \"acme\"";
    let nested = "context.request has headers.tenant && context.request.headers.tenant == \"acme\"";
    let lacking = "!(context.request.headers has \"x-tenant\")";
    for (condition, name, read, expected) in [
        (tenant, "x-tenant", acme(), "allow policy0"),
        (tenant, "x-tenant", HeaderRead::Value("Acme".into()), "not_permitted"),
        (tenant, "x-tenant", HeaderRead::Value("acme, acme".into()), "not_permitted"),
        (tenant, "x-tenant", HeaderRead::Value(String::new().into()), "not_permitted"),
        (tenant, "x-tenant", HeaderRead::Absent, "not_permitted"),
        (plain, "tenant", acme(), "allow policy0"),
        (plain, "tenant", HeaderRead::Absent, "not_permitted"),
        (nested, "tenant", acme(), "allow policy0"),
        (nested, "tenant", HeaderRead::Absent, "not_permitted"),
        (lacking, "x-tenant", HeaderRead::Absent, "allow policy0"),
        (lacking, "x-tenant", acme(), "not_permitted"),
    ] {
        let policies = policies(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        assert_eq!(verdict(&policies, &with_header(name, read.clone())), expected, "{condition} {read:?}");
    }
}

#[test]
fn a_header_that_can_be_read_in_two_ways_denies_every_call_that_it_could_decide() {
    let text = "@id(\"open\") permit (principal, action, resource);
        @id(\"evil\") forbid (principal, action in Action::\"write\", resource) when {
            context.request.path == \"/elsewhere\" && context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] == \"evil\" };";
    let policies = policies(text);
    let evil = || HeaderRead::Value("evil".into());
    let at = |path: &str, action: &str, read: HeaderRead<'static>| {
        let mut request = with_header("x-tenant", read);
        (request.path, request.action) = (path.into(), action.into());
        request
    };
    for (read, expected) in [
        (HeaderRead::Absent, "allow open"),
        (HeaderRead::Value("acme".into()), "allow open"),
        (evil(), "denied_by_policy evil"),
        (HeaderRead::Twice, "policy_error"),
        (HeaderRead::Unreadable, "policy_error"),
        (HeaderRead::OtherSpelling, "policy_error"),
        (HeaderRead::Nominated, "policy_error"),
    ] {
        assert_eq!(verdict(&policies, &at("/elsewhere", "POST", read.clone())), expected, "{read:?}");
        assert_eq!(
            verdict(&policies, &at("/elsewhere", "GET", read.clone())),
            "allow open",
            "no policy of GET reads it: {read:?}"
        );
        if let Some(flaw) = read.flaw() {
            // Also where the policy would not have come to look at it.
            let denied = decided(&policies, &at("/", "POST", read)).expect_err("denied");
            assert_eq!(denied.errors.to_vec(), [format!("header `x-tenant` {flaw}")]);
            assert!(!denied.user_could_be_allowed);
        }
    }
    // A proxy that did not look cannot say that there is none.
    let unread = changed(|request| request.headers.clear());
    assert_eq!(verdict(&policies, &unread), "policy_error");
    let denied = decided(&policies, &unread).expect_err("denied");
    assert_eq!(denied.errors.to_vec(), ["header `x-tenant` was not read when the call came"]);
}

#[test]
fn an_opaque_connection_has_no_headers_as_it_has_no_path() {
    for condition in ["context.request.headers has \"x-tenant\"", "!(context.request.headers has \"x-tenant\")"] {
        for effect in ["permit", "forbid"] {
            let text =
                format!("permit (principal, action, resource); {effect} (principal, action, resource) when {{ {condition} }};");
            let opaque = changed(|r| (r.action, r.path, r.host) = ("connect".into(), "/".into(), String::new()));
            for request in [opaque.clone(), AuthzRequest { headers: Vec::new(), ..opaque }] {
                assert_eq!(verdict(&policies(&text), &request), "policy_error", "{text}");
            }
        }
    }
    let apart = "permit (principal, action == Action::\"connect\", resource);
        permit (principal, action in Action::\"write\", resource) when { context.request.headers has \"x-tenant\" };";
    assert_eq!(verdict(&policies(apart), &changed(|r| r.action = "connect".into())), "allow policy0");
}

#[test]
fn what_looks_at_the_whole_request_sees_every_header_of_the_workload() {
    // Neither resource may hide from the other what it compares.
    let whole =
        "forbid (principal, action, resource) when { context.request != context.request || context.request.path == \"/x\" };";
    let named = "permit (principal, action == Action::\"GET\", resource) when { context.request.headers has tenant };";
    let policies = compiled(&[resource("a", whole, &[]), resource("b", named, &[])]).expect("sound");
    for action in ["GET", "POST", "connect"] {
        assert_eq!(policies.header_names(action), ["tenant"], "{action}");
    }
}

#[test]
fn addresses_match_ranges_of_their_family_however_they_are_written() {
    let within = |range: &str| {
        policies(&format!("forbid (principal, action, resource) when {{ context.source.address.isInRange(ip(\"{range}\")) }};"))
    };
    for (address, range) in [
        ("10.9.9.9", "10.0.0.0/8"),
        ("::ffff:10.9.9.9", "10.0.0.0/8"),
        ("2001:db8::7", "2001:db8::/32"),
        ("::1", "::1"),
        ("::10.9.9.9", "::/96"),
        ("fe80::1", "fe80::/10"),
    ] {
        let request = changed(|r| r.source.address = address.parse().expect(address));
        assert_eq!(verdict(&within(range), &request), "denied_by_policy policy0", "{address} {range}");
    }
}

#[test]
fn names_are_compared_byte_for_byte() {
    let role = |role: &str| {
        policies(&format!(
            "permit (principal, action, resource) when {{ context has user && context.user in Role::\"{role}\" }};"
        ))
    };
    for (written, held, expected) in [
        ("teller", "teller", true),
        ("teller", "Teller", false),
        ("teller", "teller ", false),
        ("teller", "t\u{435}ller", false),
        ("teller", "tell\u{200b}er", false),
        ("caf\u{e9}", "caf\u{e9}", true),
        ("caf\u{e9}", "cafe\u{301}", false),
        ("a\\\"b", "a\"b", true),
        ("", "", true),
        ("teller", "teller\", Role::\"admin", false),
    ] {
        let request = with_user(|u| u.roles = vec![held.into()]);
        assert_eq!(decided(&role(written), &request).is_ok(), expected, "{written:?} {held:?}");
    }
}

#[test]
fn users_of_two_issuers_are_two_users() {
    let text = "permit (principal, action, resource) when { context has user && context.user == User::\"bank-login#alice\" };";
    assert_eq!(verdict(&policies(text), &transfer()), "allow policy0");
    assert_eq!(verdict(&policies(text), &with_user(|u| u.issuer = "partner".into())), "not_permitted");
    assert_eq!(
        verdict(&policies(text), &with_user(|u| (u.issuer, u.subject) = ("bank".into(), "login#alice".into()))),
        "not_permitted"
    );
}

#[test]
fn an_attribute_of_another_type_than_the_policies_know_denies() {
    // Compared as it is it would be unequal, and so would slip through a forbid.
    let text = "permit (principal, action, resource);
        forbid (principal, action, resource) when { context has user && context.user has limit && context.user.limit == 1000 };";
    assert_eq!(verdict(&policies(text), &transfer()), "denied_by_policy policy1");
    let stale = with_user(|u| drop(u.attributes.insert("limit".into(), AttributeValue::String("1000".into()))));
    assert_eq!(verdict(&policies(text), &stale), "policy_error");
    let unmapped = with_user(|u| drop(u.attributes.insert("mood".into(), AttributeValue::String("good".into()))));
    assert_eq!(verdict(&policies(text), &unmapped), "denied_by_policy policy1");
}

#[test]
fn each_resource_sees_the_body_that_it_declares() {
    let limit = "@id(\"limit\") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 100 };";
    let open = "@id(\"open\") permit (principal, action, resource);";
    let currency = "@id(\"currency\") forbid (principal, action, resource) when { context.request has body && context.request.body.currency != \"CHF\" };";
    let policies = compiled(&[
        resource("a", limit, &[("amount", AttributeType::Long)]),
        resource("b", currency, &[("currency", AttributeType::String)]),
        resource("c", open, &[]),
    ])
    .expect("sound");
    let long = |value| AttributeValue::Long(value);
    let text = |value: &str| AttributeValue::String(value.into());
    for (body, expected) in [
        (vec![("amount", long(5)), ("currency", text("CHF"))], "allow open"),
        (vec![("amount", long(500)), ("currency", text("CHF"))], "denied_by_policy limit"),
        (vec![("amount", long(5)), ("currency", text("EUR"))], "denied_by_policy currency"),
        (vec![("amount", long(500)), ("currency", text("EUR"))], "denied_by_policy limit currency"),
        // A field of the other resource that is missing must not hide this one.
        (vec![("amount", long(500))], "denied_by_policy limit"),
        (vec![("currency", text("EUR"))], "denied_by_policy currency"),
        (vec![("amount", text("500")), ("currency", text("EUR"))], "denied_by_policy currency"),
        // What is there and cannot be read allows nothing.
        (vec![("amount", long(5))], "policy_error"),
        (vec![("amount", text("5")), ("currency", text("CHF"))], "policy_error"),
        (vec![], "policy_error"),
    ] {
        let body: BTreeMap<String, AttributeValue> = body.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let request = changed(|r| r.body = Some(body.clone()));
        assert_eq!(verdict(&policies, &request), expected, "{body:?}");
    }
}

#[test]
fn a_body_is_there_only_with_all_fields_of_the_resource() {
    let text = "permit (principal, action, resource) when { context.request has body };";
    let both = [("amount", AttributeType::Long), ("note", AttributeType::String)];
    let policies = compiled(&[resource("p", text, &both)]).expect("sound");
    let amount = ("amount".to_owned(), AttributeValue::Long(1));
    let note = ("note".to_owned(), AttributeValue::String(String::new()));
    for (body, expected) in [
        (Some(BTreeMap::from([amount.clone(), note.clone()])), "allow policy0"),
        (Some(BTreeMap::from([amount])), "policy_error"),
        (Some(BTreeMap::from([note])), "policy_error"),
        (Some(BTreeMap::new()), "policy_error"),
        (None, "not_permitted"),
    ] {
        assert_eq!(verdict(&policies, &changed(|r| r.body = body.clone())), expected, "{body:?}");
    }
}

#[test]
fn a_body_that_cannot_be_read_gets_past_no_forbid_and_hinders_no_policy_that_does_not_look() {
    let open = "permit (principal, action, resource);";
    let forbid = |condition: &str| format!("{open} forbid (principal, action, resource) when {{ {condition} }};");
    let permit = |condition: &str| format!("permit (principal, action, resource) when {{ {condition} }};");
    let big = "context.request has body && context.request.body.amount > 100";
    let unreadable = changed(|r| (r.body, r.body_note) = (None, Some("the body is not JSON".into())));
    let none = changed(|r| r.body = None);
    for (text, for_unreadable, for_none) in [
        (forbid(big), "policy_error", "allow policy0"),
        (forbid("!(context.request has body)"), "policy_error", "denied_by_policy policy1"),
        (forbid("context.request has body.amount && context.request.body.amount > 100"), "policy_error", "allow policy0"),
        (forbid("context has request.body.amount && context.request.body.amount > 100"), "policy_error", "allow policy0"),
        // The path is asked first, and is another.
        (forbid(&format!("context.request.path == \"/else\" && {big}")), "allow policy0", "allow policy0"),
        (forbid(&format!("context.request.path == \"/transfers\" && {big}")), "policy_error", "allow policy0"),
        (forbid("context.request.path == \"/transfers\""), "denied_by_policy policy1", "denied_by_policy policy1"),
        (permit(big), "policy_error", "not_permitted"),
        (permit(&format!("context.request.path == \"/else\" && {big}")), "not_permitted", "not_permitted"),
        (permit(&format!("context.request.path == \"/transfers\" || {big}")), "allow policy0", "allow policy0"),
    ] {
        let policies = policies(&text);
        assert_eq!(verdict(&policies, &unreadable), for_unreadable, "{text}");
        assert_eq!(verdict(&policies, &none), for_none, "{text}");
        for request in [&unreadable, &none] {
            let (question, id) = (request.as_question(), DecisionId::from_random([7; 16]));
            let judged = decide_by_reference(&policies, &question, id, Revision(3)).map_err(|denied| denied.decision.reason);
            let decided = decided(&policies, request).map_err(|denied| denied.decision.reason);
            assert_eq!(decided.map(drop), judged.map(drop), "{text}");
        }
    }
}

#[test]
fn a_missing_user_is_worth_asking_for_only_if_a_user_would_do() {
    let anonymous = changed(|r| r.user = None);
    let permit = |condition: &str| format!("permit (principal, action, resource) {condition};");
    let teller = "context has user && context.user in Role::\"teller\"";
    for (text, expected) in [
        (String::new(), false),
        (permit("when { context.request.path == \"/other\" }"), false),
        (permit(&format!("when {{ {teller} }}")), true),
        (permit(&format!("when {{ {teller} && context.request.path == \"/transfers\" }}")), true),
        (permit(&format!("when {{ {teller} && context.request.path == \"/other\" }}")), false),
        (permit(&format!("when {{ context.request.path == \"/other\" }} when {{ {teller} }}")), false),
        (permit("unless { !(context has user) }"), true),
        (permit("unless { !(context has user) || context.request.path == \"/transfers\" }"), false),
        (permit("unless { !(context has user) || context.request.path == \"/other\" }"), true),
        // The whole conjunct speaks of the user, though half of it does not.
        (permit("when { context has user || context.request.path == \"/other\" }"), true),
        // The caller is the wrong one, whoever the user is.
        (PAYMENTS.replace("sa/web", "sa/teller-desk"), false),
        (PAYMENTS.to_owned(), true),
        // A forbid applies to every user.
        (permit(&format!("when {{ {teller} }}")) + "forbid (principal, action, resource);", false),
        (
            permit(&format!("when {{ {teller} }}")) + &format!("forbid (principal, action, resource) when {{ {OVERFLOW} }};"),
            false,
        ),
        // An amount that no limit could cover is still for the user's limit to say.
        (
            permit(
                "when { context has user && context.user has limit && context.request has body && context.request.body.amount <= context.user.limit }",
            ),
            true,
        ),
    ] {
        let denied = decided(&policies(&text), &anonymous).expect_err(&text);
        assert_eq!(denied.user_could_be_allowed, expected, "{text}");
        let known = decided(&policies(&text), &with_user(|u| u.roles.clear()));
        assert!(known.is_ok() || known.is_err_and(|denied| !denied.user_could_be_allowed), "with a user: {text}");
    }
    let foreign = changed(|r| (r.user, r.principal) = (None, id("fraud")));
    assert!(!decided(&policies(PAYMENTS), &foreign).expect_err("denied").user_could_be_allowed);
    let no_body = changed(|r| (r.user, r.body) = (None, None));
    assert!(!decided(&policies(PAYMENTS), &no_body).expect_err("denied").user_could_be_allowed);
}

mod property;
