use super::*;

const GOOD: &str = "apiVersion: rondel.dev/v1alpha1
kind: AuthorizationTest
metadata: { name: transfers }
spec:
  on: bank/payments
  users:
    tina: { roles: [teller], attributes: { limit: 1000, country: DE, staff: true, branches: [a, b] } }
  cases:
    - name: within the limit
      as: bank/web
      user: tina
      request: { method: POST, path: /transfers, headers: { x-tenant: [a, b], x-one: c }, body: { amount: 5 }, at: \"2026-11-24T10:00:00Z\", address: 10.0.0.1 }
      expect: { decision: allow, by: [bank/payments/transfer] }
    - name: nobody
      as: bank/web
      on: bank/ledger
      request: { method: GET, path: / }
      expect: { decision: deny, reason: token_missing }
";

fn cases(text: &str) -> Result<Vec<Case>, Vec<ConfigError>> {
    parse(&Source { file: "t.yaml".to_owned(), text: text.to_owned() })
}

#[test]
fn a_case_says_who_calls_what_and_what_must_become_of_it() {
    let found = cases(GOOD).unwrap_or_else(|errors| panic!("{errors:?}"));
    let [first, second] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((first.suite.as_str(), first.name.as_str(), first.line), ("transfers", "within the limit", 9));
    let call = &first.call;
    assert_eq!((call.caller.as_str(), call.on.as_deref()), ("bank/web", Some("bank/payments")));
    let user = call.user.as_ref().expect("user");
    assert_eq!((user.subject.as_str(), user.roles.as_slice()), ("tina", ["teller".to_owned()].as_slice()));
    assert_eq!(user.attributes["limit"], AttributeValue::Long(1000));
    assert_eq!(user.attributes["country"], AttributeValue::String("DE".into()));
    assert_eq!(user.attributes["staff"], AttributeValue::Boolean(true));
    assert_eq!(user.attributes["branches"], AttributeValue::StringSet(vec!["a".into(), "b".into()]));
    assert_eq!(call.body.as_deref(), Some(br#"{"amount":5}"#.as_slice()));
    let lines: Vec<String> = call.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(lines, ["x-one: c", "x-tenant: a", "x-tenant: b"]);
    assert_eq!(call.at.expect("time").to_string(), "2026-11-24T10:00:00.000Z");
    assert_eq!(first.expected, Expected { effect: Effect::Allow, by: vec!["bank/payments/transfer".into()], reason: None });
    assert_eq!(second.call.on.as_deref(), Some("bank/ledger"));
    assert_eq!(second.expected.reason, Some(Reason::TokenMissing));
}

#[test]
fn every_mistake_in_a_case_is_told_with_its_place() {
    for (from, to, place, message) in [
        ("kind: AuthorizationTest", "kind: AuthorizationPolicy", "t.yaml:2:7", "is not `AuthorizationTest`"),
        ("name: transfers }", "name: transfers, namespace: bank }", "t.yaml:3:", "remove it"),
        ("user: tina", "user: tine", "t.yaml:11:", "did you mean `tina`?"),
        ("expect: { decision: allow", "expect: { decision: allowed", "t.yaml:13:", "did you mean `allow`?"),
        ("expect: { decision: allow", "expekt: { decision: allow", "t.yaml:", "did you mean `expect`?"),
        ("reason: token_missing", "reason: token_mising", "t.yaml:18:", "did you mean `token_missing`?"),
        ("reason: token_missing", "reason: token_expired", "t.yaml:18:", "no reason of policies"),
        ("reason: token_missing", "reason: token_missing, by: [x]", "t.yaml:18:", "only a denial by a `forbid`"),
        ("by: [bank/payments/transfer]", "by: []", "t.yaml:13:", "`by` is empty"),
        ("by: [bank/payments/transfer]", "reason: not_permitted", "t.yaml:13:", "has no reason"),
        ("name: nobody", "name: within the limit", "t.yaml:14:", "a second case"),
        ("name: nobody", "name: \" \"", "t.yaml:14:", "needs a name"),
        ("address: 10.0.0.1", "address: here", "t.yaml:12:", "not an IP address"),
        ("2026-11-24T10:00:00Z", "yesterday", "t.yaml:12:", "is not a time"),
        ("body: { amount: 5 }", "body: { amount: 5, amount: 6 }", "t.yaml:12:", "duplicate"),
        ("body: { amount: 5 }", "body: { amount: 5 }, bodyText: x", "t.yaml:12:", "two bodies"),
        ("method: GET, path: /", "method: GET", "t.yaml:14:", "`request.path` is missing"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let errors = cases(&GOOD.replace(from, to)).expect_err(to);
        let told = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(told.starts_with(place) && told.contains(message), "{to}: {told}");
    }
    let none = GOOD.split_once("cases:").map(|(before, _)| format!("{before}cases: []\n")).expect("cases");
    assert!(cases(&none).expect_err("no case")[0].message.contains("no case"));
}
