use super::code::{Code, Pattern, Range};
use super::constant;
use crate::fixture::*;
use cedar_policy::pst::UnaryOp;

fn pattern(text: &str) -> Pattern {
    Pattern { pieces: text.split('*').map(Into::into).collect() }
}

#[test]
fn a_pattern_matches_the_whole_text() {
    for (written, text, matches) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("*", "a", true),
        ("**", "", true),
        ("/a", "/a", true),
        ("/a", "/ab", false),
        ("/a*", "/a", true),
        ("/a*", "/abc", true),
        ("/a*", "/b", false),
        ("*a", "ba", true),
        ("*a", "ab", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("ab*ba", "aba", false),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "abbc", true),
        ("a*b*c", "ac", false),
        ("a*bc*c", "abc", false),
        ("a*bc*c", "abcc", true),
        ("*é*", "caf\u{e9}", true),
        ("*e*", "caf\u{e9}", false),
    ] {
        assert_eq!(pattern(written).matches(text), matches, "{written} {text}");
    }
}

#[test]
fn what_a_policy_writes_out_is_what_cedar_reads() {
    let range = |text: &str, prefix| Code::Address(Range { address: text.parse().expect("address"), prefix });
    for (constructor, text, expected) in [
        (UnaryOp::Ip, "10.0.0.0/8", Some(range("10.0.0.0", 8))),
        (UnaryOp::Ip, "10.1.2.3", Some(range("10.1.2.3", 32))),
        (UnaryOp::Ip, "2001:db8::1", Some(range("2001:db8::1", 128))),
        (UnaryOp::Ip, "2001:db8::/32", Some(range("2001:db8::", 32))),
        (UnaryOp::Ip, "10.0.0.0/33", None),
        (UnaryOp::Decimal, "1.0", Some(Code::Decimal(10_000))),
        (UnaryOp::Decimal, "-0.5", Some(Code::Decimal(-5000))),
        (UnaryOp::Decimal, "-1.0001", Some(Code::Decimal(-10_001))),
        (UnaryOp::Decimal, "922337203685477.5807", Some(Code::Decimal(i64::MAX))),
        (UnaryOp::Decimal, "-922337203685477.5808", Some(Code::Decimal(i64::MIN))),
        (UnaryOp::Decimal, "1.00001", None),
        (UnaryOp::Datetime, "1970-01-02", Some(Code::Datetime(86_400_000))),
        (UnaryOp::Datetime, "1969-12-31T23:59:59.999Z", Some(Code::Datetime(-1))),
        (UnaryOp::Datetime, "2026-11-24T10:00:00+0100", Some(Code::Datetime(1_795_510_800_000))),
        (UnaryOp::Datetime, "2026-02-30", None),
        (UnaryOp::Duration, "1d2h3m4s5ms", Some(Code::Duration(93_784_005))),
        (UnaryOp::Duration, "-1s", Some(Code::Duration(-1000))),
        (UnaryOp::Duration, "1w", None),
        (UnaryOp::Not, "true", None),
    ] {
        assert_eq!(constant::of(constructor, text), expected, "{constructor} {text}");
    }
}

#[test]
fn what_has_no_translation_is_left_to_cedar_and_named() {
    let when = |condition: &str| policies(&format!("permit (principal, action, resource) when {{ {condition} }};"));
    for condition in [
        "context.source == context.source",
        "(if context.request.path == \"/a\" then principal else principal).id == \"x\"",
        "User::\"bank-login#alice\" in Role::\"teller\"",
        "{ a: 1 } == { a: 1 }",
    ] {
        let interpreted: Vec<String> = when(condition).interpreted().map(ToString::to_string).collect();
        assert_eq!(interpreted, ["bank/p/policy0"], "{condition}");
    }
    for text in [PAYMENTS, LEDGER] {
        assert_eq!(policies(text).interpreted().count(), 0, "{text}");
    }
    // They decide all the same, beside those that were translated.
    assert_eq!(verdict(&when("User::\"bank-login#alice\" in Role::\"teller\""), &transfer()), "allow policy0");
    let mixed = policies(
        "permit (principal, action, resource); forbid (principal, action, resource) when { context.source == context.source };",
    );
    assert_eq!(verdict(&mixed, &transfer()), "denied_by_policy policy1");
}

#[test]
fn a_policy_is_found_by_path_or_role_whatever_stands_around_the_key() {
    let role = "context has user && context.user in [Role::\"teller\", Role::\"auditor\"]";
    for (condition, expected) in [
        ("context.request.path == \"/transfers\"", "allow policy0"),
        ("\"/transfers\" == context.request.path", "allow policy0"),
        ("context.request.path == \"/other\"", "not_permitted"),
        (role, "allow policy0"),
        ("context has user && context.user in Role::\"auditor\"", "not_permitted"),
        // Not a key: it need not hold.
        ("context.request.path == \"/other\" || principal is Workload", "allow policy0"),
        ("!(context.request.path == \"/other\")", "allow policy0"),
        // What stands before the path fails, and so the policy does.
        ("9223372036854775807 + 1 > 0 && context.request.path == \"/other\"", "policy_error"),
        ("context.request.path == \"/other\" && 9223372036854775807 + 1 > 0", "not_permitted"),
    ] {
        let policies = policies(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        assert_eq!(verdict(&policies, &transfer()), expected, "{condition}");
    }
    // On an opaque connection asking for the path fails.
    let path = policies("permit (principal, action, resource) when { context.request.path == \"/other\" };");
    assert_eq!(verdict(&path, &changed(|request| request.action = "connect".into())), "policy_error");
}

/// Conditions on the transfer of the fixture, each with what it is.
const TRUTHS: [(&str, bool); 63] = [
    ("ip(\"10.0.0.0/8\").isInRange(ip(\"10.0.0.0/16\"))", false),
    ("ip(\"10.0.0.0/16\").isInRange(ip(\"10.0.0.0/8\"))", true),
    ("ip(\"10.0.0.0\").isInRange(ip(\"::/0\"))", false),
    ("ip(\"2001:db8::/32\").isInRange(ip(\"2001:db8::/33\"))", false),
    ("context.source.address == ip(\"10.1.2.3\")", true),
    ("context.source.address == ip(\"10.1.2.3/31\")", false),
    ("ip(\"127.0.0.0/8\").isLoopback()", true),
    ("ip(\"127.0.0.0/7\").isLoopback()", false),
    ("ip(\"::1/127\").isLoopback()", false),
    ("ip(\"224.0.0.0/4\").isMulticast()", true),
    ("ip(\"224.0.0.0/3\").isMulticast()", false),
    ("[\"a\", \"b\"] == [\"b\", \"a\", \"a\"]", true),
    ("[\"a\", \"b\"] == [\"a\"]", false),
    ("[\"a\"] == [\"a\", \"b\"]", false),
    ("[1, 2] == [2, 1]", true),
    ("[1, 2] == [1]", false),
    ("[1] == [1, 2]", false),
    ("context has user && context.user.scopes == [\"openid\"]", true),
    ("context has user && context.user.scopes == [\"openid\", \"else\"]", false),
    ("context has user && [\"openid\", \"else\"] == context.user.scopes", false),
    ("context has user && [\"openid\", \"else\"].containsAll(context.user.scopes)", true),
    ("context has user && context.user.scopes.containsAll([\"openid\", \"else\"])", false),
    ("context has user && context.user.scopes.containsAny([\"openid\", \"else\"])", true),
    ("context has user && context.user.scopes.containsAny([\"else\"])", false),
    ("context has user && context.user.scopes.isEmpty()", false),
    ("[context.request.path].contains(\"/transfers\")", true),
    ("[context.request.path, \"x\"].contains(\"y\")", false),
    ("[1, 2].contains(2)", true),
    ("[1, 2].contains(3)", false),
    ("[principal].contains(principal)", true),
    ("principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\"", true),
    ("principal in [Workload::\"spiffe://bank.example/ns/bank/sa/web\", Workload::\"unauthenticated\"]", true),
    ("principal in [Workload::\"unauthenticated\"]", false),
    ("context has user && context.user == User::\"bank-login#alice\"", true),
    ("context has user && context.user == User::\"bank-login#alice2\"", false),
    ("context has user && context.user == User::\"bank-login#\"", false),
    ("context has user && User::\"bank-login#alice\" == context.user", true),
    ("context has user && context.user is User in Role::\"teller\"", true),
    ("context has user && context.user in (if action == Action::\"GET\" then Role::\"clerk\" else Role::\"teller\")", true),
    ("context has user && context.user in (if action == Action::\"GET\" then Role::\"teller\" else Role::\"clerk\")", false),
    ("action in Action::\"write\"", true),
    ("action in Action::\"read\"", false),
    ("action in [Action::\"read\", Action::\"POST\"]", true),
    ("resource in Service::\"bank/payments\"", true),
    ("context has user && context.user has limit && context.user.limit > 999", true),
    ("context has user && context.user has limit && context.user.limit > 1000", false),
    ("context has user && context.user has limit && context.user.limit >= 1000", true),
    ("context has user && context.user has limit && context.user.limit < 1000", false),
    ("context has user && context.user has limit && context.user.limit <= 1000", true),
    ("context has user && context.user has limit && context.user.limit * 2 - 1 + -1 == 1998", true),
    ("context has user && context.user has staff", false),
    ("context has user.limit", true),
    ("context has user.staff", false),
    ("decimal(\"1.10\") == decimal(\"1.1\")", true),
    ("decimal(\"1.1\").lessThan(decimal(\"1.1\"))", false),
    ("decimal(\"1.1\").lessThanOrEqual(decimal(\"1.1\"))", true),
    ("decimal(\"-1.1\").greaterThan(decimal(\"-1.2\"))", true),
    ("decimal(\"1.1\").greaterThanOrEqual(decimal(\"1.2\"))", false),
    ("context.now.toDate() == datetime(\"2026-11-24\")", true),
    ("context.now.toTime() == duration(\"10h\")", true),
    ("context.now.offset(duration(\"-10h\")) == datetime(\"2026-11-24\")", true),
    ("context.now.durationSince(datetime(\"2026-11-23\")).toHours() == 34", true),
    ("datetime(\"1969-12-31T23:00:00Z\").toDate() == datetime(\"1969-12-31\")", true),
];

#[test]
fn every_operator_gives_what_cedar_gives() {
    for (condition, expected) in TRUTHS {
        // A condition that the validator knows to be false for ever would be refused: it is beside one that it cannot know.
        let text = format!("permit (principal, action, resource) when {{ context.request.path == \"/none\" || ({condition}) }};");
        let policies = policies(&text);
        assert_eq!(policies.interpreted().count(), 0, "{condition}");
        let request = transfer();
        let id = model::DecisionId::from_random([7; 16]);
        let judged = crate::decide_by_reference(&policies, &request.as_question(), id, model::Revision(3));
        assert_eq!(judged.is_ok(), expected, "Cedar: {condition}");
        assert_eq!(decided(&policies, &request).is_ok(), expected, "{condition}");
    }
}

#[test]
fn a_policy_that_a_user_meets_by_two_roles_is_told_once() {
    let of = |condition: &str| {
        let roles = "context has user && context.user in [Role::\"teller\", Role::\"auditor\"]";
        policies(&format!("permit (principal, action, resource) when {{ {roles} && {condition} }};"))
    };
    let both = changed(|request| request.user = Some(std::sync::Arc::new(user(&["teller", "auditor", "chief"]))));
    assert_eq!(verdict(&of("true"), &both), "allow policy0");
    let denied = decided(&of("9223372036854775807 + 1 > 0"), &both).expect_err("it overflows");
    assert_eq!(denied.errors.len(), 1, "{:?}", denied.errors);
}

#[test]
fn large_sets_from_callers_are_compared_through_a_table() {
    use model::authz::{AttributeType, AttributeValue};
    use std::collections::BTreeMap;
    let text = "permit (principal, action, resource) when { context has user && context.user has branches && context.request has body && context.user.branches.containsAll(context.request.body.branches) };";
    let policies = compiled(&[resource("p", text, &[("branches", AttributeType::StringSet)])]).expect("sound");
    let names = |from: usize, to: usize| AttributeValue::StringSet((from..to).map(|number| format!("b{number}")).collect());
    for (asked, expected) in [((0, 900), true), ((500, 1000), true), ((500, 1001), false), ((0, 3), true), ((999, 1001), false)] {
        let request = changed(|request| {
            let mut alice = user(&[]);
            alice.attributes.insert("branches".into(), names(0, 1000));
            request.user = Some(std::sync::Arc::new(alice));
            request.body = Some(BTreeMap::from([("branches".to_owned(), names(asked.0, asked.1))]));
        });
        assert_eq!(decided(&policies, &request).is_ok(), expected, "{asked:?}");
    }
}
