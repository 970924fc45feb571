use super::*;
use crate::fixture::*;
use crate::{compile, decide};
use model::AuthzRequest;
use model::Country;
use model::Roles;
use model::authz::HeaderRead;
use model::ids::{DecisionId, Revision};

const LIVE: &str = r#"@id("write") permit (principal, action == Action::"POST", resource);"#;

fn shadow(live: &str, tried: &str) -> Result<Option<Shadow>, Vec<PolicyError>> {
    let amount = [("amount", AttributeType::Long)];
    Shadow::compile(&[resource("p", live, &amount)], &[resource("s", tried, &amount)], &[bank_issuer()], &Roles::default())
}

/// `allow` or `deny`, and what it would be: `allow, would_deny s/limit`.
fn said(live: &str, tried: &str, request: &AuthzRequest) -> String {
    let live_policies = policies(live);
    let tried = shadow(live, tried).unwrap_or_else(|errors| panic!("{errors:#?}")).expect("a policy in shadow mode");
    let decided = decide(&live_policies, &request.as_question(), DecisionId::from_random([7; 16]), Revision(3));
    let decision = decided.map_or_else(|denied| denied.decision, |permit| permit.decision().clone());
    let word = if decision.effect == Effect::Allow { "allow" } else { "deny" };
    match tried.differs(&request.as_question(), &decision) {
        None => word.to_owned(),
        Some(Shadowed { would, policies, .. }) => {
            let ids: Vec<&str> = policies.iter().filter_map(|id| id.as_str().strip_prefix("bank/")).collect();
            format!("{word}, {} {}", would.as_str(), ids.join(" "))
        }
    }
}

#[test]
fn a_policy_in_shadow_mode_says_what_would_change_and_whose_doing_it_is() {
    let lower = r#"@id("lower") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 499 };"#;
    let read = r#"@id("read") permit (principal, action in Action::"read", resource);"#;
    let overflow = r#"@id("sum") forbid (principal, action, resource) when { context.request has body && context.request.body.amount + 9223372036854775807 > 0 };"#;
    let tenant = r#"@id("tenant") forbid (principal, action, resource) when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] == "other" };"#;
    let abroad = r#"@id("abroad") forbid (principal, action, resource) when { context.source has country && context.source.country == "DE" };"#;
    let get = || changed(|request| request.action = "GET".into());
    let nowhere = || changed(|request| request.source.country = Country::Unavailable);
    for (name, tried, request, expected) in [
        ("a forbid that applies", lower, transfer(), "allow, would_deny s/lower"),
        ("a forbid that does not", lower, changed(|request| amount(request, 499)), "allow"),
        ("a denial stays one", lower, get(), "deny"),
        ("a permit that applies", read, get(), "deny, would_allow s/read"),
        ("a permit of what is allowed anyway", read, transfer(), "allow"),
        ("an error", overflow, transfer(), "allow, would_fail s/sum"),
        ("an error where the answer is a denial", overflow, get(), "deny"),
        ("a header of two lines", tenant, with_header("x-tenant", HeaderRead::Twice), "allow, would_fail s/tenant"),
        ("a country that could not be looked up", abroad, nowhere(), "allow, would_fail s/abroad"),
        ("a country that could not be looked up, and nobody reads", tenant, nowhere(), "allow"),
        ("a header of one", tenant, transfer(), "allow"),
    ] {
        assert_eq!(said(LIVE, tried, &request), expected, "{name}");
        // The same said of one policy instead of a resource.
        let annotated = format!("{LIVE} {}", tried.replacen("@id", "@mode(\"shadow\") @id", 1));
        let of_one = said(&annotated, "", &request).replace("s/", "p/");
        assert_eq!(of_one, expected.replace("s/", "p/"), "{name}, annotated");
    }
}

#[test]
fn what_is_in_shadow_mode_is_in_no_live_set_whatever_is_wrong_with_it() {
    for wrong in [
        "when { context.nothing }",
        "when { context.request.body.amount > \"x\" }",
        "when { context.request.headers[\"cookie\"] == \"x\" }",
        "when { principal == Workload::\"nobody\" }",
    ] {
        let text = format!("{LIVE} @mode(\"shadow\") @id(\"broken\") forbid (principal, action, resource) {wrong};");
        let live =
            compile(&[resource("p", &text, &[])], &[], &Roles::default()).unwrap_or_else(|errors| panic!("{wrong}: {errors:#?}"));
        assert_eq!(live.header_names("POST"), [""; 0], "{wrong}");
        assert_eq!(verdict(&live, &transfer()), "allow write", "{wrong}");
        // It is told with its place.
        let errors = Shadow::compile(&[resource("p", &text, &[])], &[], &[], &Roles::default()).expect_err(wrong);
        assert!(errors.iter().all(|error| error.file == "policies/p.yaml" && error.line == 10), "{wrong}: {errors:#?}");
    }
}

#[test]
fn the_mode_is_one_of_two_words() {
    for (mode, live, tried) in [("enforce", "denied_by_policy f", false), ("shadow", "allow write", true)] {
        let text = format!("{LIVE} @mode(\"{mode}\") @id(\"f\") forbid (principal, action, resource);");
        assert_eq!(verdict(&policies(&text), &transfer()), live);
        let shadow = Shadow::compile(&[resource("p", &text, &[])], &[], &[], &Roles::default()).expect(mode);
        assert_eq!(shadow.is_some(), tried, "{mode}");
    }
    for mode in ["Shadow", "shadow ", "", "dry-run"] {
        let text = format!("@mode(\"{mode}\") permit (principal, action, resource);");
        let errors = compile(&[resource("p", &text, &[])], &[], &Roles::default()).expect_err("another word");
        assert!(errors[0].message.contains("neither `enforce` nor `shadow`"), "{errors:#?}");
    }
    assert!(shadow(LIVE, "").expect("empty").is_none(), "a resource in shadow mode without a policy");
}

#[test]
fn why_the_answer_would_be_another_is_said_with_the_values() {
    let lower = r#"@id("lower") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 499 };"#;
    let tried = shadow(LIVE, lower).expect("sound").expect("tried");
    let permit = decide(&policies(LIVE), &transfer().as_question(), DecisionId::from_random([7; 16]), Revision(3));
    let live = permit.expect("allowed").decision().clone();
    let mut shadowed = tried.differs(&transfer().as_question(), &live).expect("differs");
    tried.explain(&transfer(), &live, &mut shadowed);
    let detail = shadowed.detail.expect("explained");
    assert!(
        detail.starts_with("forbidden by bank/s/lower (policies/s.yaml:10) because") && detail.contains("500 > 499"),
        "{detail}"
    );
    let names: Vec<_> = tried.policies().map(|each| (each.id.to_string(), each.kind, each.position.to_owned())).collect();
    assert_eq!(names, [("bank/s/lower".to_owned(), "forbid", "policies/s.yaml:10".to_owned())]);
}
