use super::*;
use crate::fixture::*;
use crate::text::DEPTH_MAX;
use model::authz::AttributeType::{self, Long, String as Text};
use std::time::{Duration, Instant};

const AMOUNT: [(&str, AttributeType); 1] = [("amount", Long)];

fn errors(text: &str) -> Vec<PolicyError> {
    compiled(&[resource("p", text, &AMOUNT)]).err().unwrap_or_default()
}

/// One line each: `line:column message`.
fn printed(text: &str) -> Vec<String> {
    errors(text).iter().map(|error| format!("{}:{} {}", error.line, error.column, error.message)).collect()
}

fn when(condition: &str) -> String {
    format!("permit (principal, action, resource) when {{ {condition} }};")
}

#[test]
fn the_policies_of_the_bank_are_sound() {
    let bank = [resource("payments", PAYMENTS, &AMOUNT), resource("ledger", LEDGER, &[])];
    let policies = compiled(&bank).unwrap_or_else(|errors| panic!("{errors:#?}"));
    let ids: Vec<&str> = policies.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(ids, ["bank/payments/transfer-within-limit", "bank/payments/audit", "bank/ledger/post", "bank/ledger/read"]);
    let positions: Vec<&str> = policies.rules.iter().map(|rule| rule.position.as_str()).collect();
    assert_eq!(
        positions,
        ["policies/payments.yaml:11", "policies/payments.yaml:26", "policies/ledger.yaml:11", "policies/ledger.yaml:14"]
    );
}

#[test]
fn a_policy_without_id_is_named_by_its_position() {
    let policies = policies(
        "permit (principal, action, resource);\n@id(\"b\") forbid (principal, action, resource);\npermit (principal, action, resource);",
    );
    let ids: Vec<&str> = policies.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(ids, ["bank/p/policy0", "bank/p/b", "bank/p/policy2"]);
}

#[test]
fn an_error_says_line_of_the_file_and_column() {
    // The resource's text begins on line 10 of its file.
    for (text, expected) in [
        ("permit (principal action, resource);", "10:19 unexpected token `action`"),
        ("\n\npermit (principal, action, resource)\nwhen { context.request.pfad == \"/\" };", "13:8 "),
        ("permit (principal, action, resource)\n  when { context.request.path == 7 };", "11:10 "),
        (
            "permit (principal, action, resource)\n  when { context.request.host == \"äö\" && context.request.path < 7 };",
            "11:42 ",
        ),
        ("permit (principal, action, resource);\npermit (principal, action, resource", "11:36 unexpected end of input"),
        ("permit (principal, action, resource);\n\n  permit (principal == User::\"a\", action, resource);", "12:3 "),
        ("permit (principal, action, resource) when {\n  context.user.limit > 3 };", "11:3 "),
        ("permit (principal, action == Action::\"TRACE\", resource);", "10:30 "),
        ("permit (principal, action, resource) when { context.request.body.amuont > 3 };", "10:45 "),
        ("permit (principal, action, resource)\nwhen { principal in Gruppe::\"a\" };", "11:21 "),
        ("\u{feff}permit (principal, action, resource);", "10:1 "),
    ] {
        let found = printed(text);
        assert!(found.first().is_some_and(|error| error.starts_with(expected)), "{text}\n{found:#?}");
    }
    let error = errors("\n@id(\"x\") permit (principal, action, resource) when { 1 };").remove(0);
    assert_eq!(error.policy.as_ref().map(PolicyId::as_str), Some("bank/p/x"));
    assert!(error.to_string().starts_with("policies/p.yaml:11:"), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
fn all_mistakes_are_told_at_once_and_each_once() {
    let text = "permit (principal, action, resource) when { context.request.pfad == \"/\" };\n".repeat(3);
    let lines: Vec<u32> = errors(&text).iter().map(|error| error.line).collect();
    assert_eq!(lines, [10, 11, 12], "one per policy, though every action finds it");
    let two = [resource("a", "permit", &[]), resource("b", "forbid", &[])];
    let files: Vec<String> = compiled(&two).expect_err("both").into_iter().map(|error| error.file).collect();
    assert_eq!(files, ["policies/a.yaml", "policies/b.yaml"]);
}

#[test]
fn what_follows_from_a_mistake_is_not_told_beside_it() {
    let wrong = "context has user && context.user has limit && context.user.limit == \"9\" && context.user.limit > 1";
    let found = printed(&when(wrong));
    assert!(found.len() == 1 && !found[0].contains("optional attribute"), "{found:#?}");
    let unsafe_alone = printed(&when("context.user has limit && context.user.limit > 1"));
    assert!(unsafe_alone.iter().any(|error| error.contains("optional attribute")), "{unsafe_alone:#?}");
}

#[test]
fn what_cannot_be_enforced_as_written_is_refused() {
    for (name, text, expected) in [
        ("template", "permit (principal == ?principal, action, resource);", "template"),
        ("annotation", "@effect(\"shadow\") permit (principal, action, resource);", "unknown annotation `@effect`"),
        ("id without a value", "@id permit (principal, action, resource);", "is not a policy id"),
        ("empty id", "@id(\"\") permit (principal, action, resource);", "is not a policy id"),
        ("id with a line break", "@id(\"a\\nb\") permit (principal, action, resource);", "is not a policy id"),
        ("id that begins with a space", "@id(\" a\") permit (principal, action, resource);", "is not a policy id"),
        ("the same id", "@id(\"a\") permit (principal, action, resource);".repeat(2).leak(), "policy id `bank/p/a` stands twice"),
        (
            "an id that is another's default",
            "@id(\"policy1\") permit (principal, action, resource); forbid (principal, action, resource);",
            "policy id `bank/p/policy1` stands twice",
        ),
        ("never true", when("context.request.path == \"a\" && false").leak(), "policy is impossible"),
        (
            "a user that calls",
            "forbid (principal is User, action, resource);",
            "never a `User`: for whom it calls is `context.user`",
        ),
        (
            "a role that calls",
            "permit (principal in Role::\"teller\", action, resource);",
            "`context has user && context.user in Role",
        ),
        (
            "an action group as an action",
            "permit (principal, action == Action::\"write\", resource);",
            "write `action in Action::",
        ),
        ("a group that workloads are not in", "permit (principal in Namespace::\"bank\", action, resource);", "impossible"),
        (
            "a misspelt attribute behind `has`",
            when("!(context has usr)").leak(),
            "`context` has no attribute `usr`; it can have `user`",
        ),
        (
            "a misspelt user attribute behind `has`",
            when("!(context has user && context.user has limti)").leak(),
            "`context.user` has no attribute `limti`",
        ),
        (
            "a misspelt body field behind a nested `has`",
            when("!(context.request has body.amuont)").leak(),
            "`context.request.body` has no attribute `amuont`",
        ),
        ("an unguarded optional attribute", when("context.source.country == \"CH\"").leak(), "country"),
        ("an unguarded body", when("context.request.body.amount > 3").leak(), "body"),
        ("a number with a fraction", when("context.request has body && context.request.body.amount > 1.5").leak(), ""),
        ("an unknown function", when("regex(context.request.path)").leak(), "regex"),
        ("a wrong address", when("context.source.address.isInRange(ip(\"10.0.0.0/99\"))").leak(), "10.0.0.0/99"),
        ("a Cyrillic letter in a role", when("context has user && context.user in Role::\"t\u{435}ller\"").leak(), "script"),
        ("a turned writing direction", when("context.request.path == \"/a\u{202e}b\"").leak(), "BIDI"),
    ] {
        let found = printed(text);
        assert!(found.iter().any(|error| error.contains(expected)), "{name}: {text}\n{found:#?}");
    }
}

#[test]
fn names_in_other_scripts_are_accepted() {
    for text in ["/支付/v2", "/überweisung", "/платежи", "/支払い"] {
        assert_eq!(printed(&when(&format!("context.request.path == \"{text}\""))), [""; 0], "{text}");
    }
}

#[test]
fn a_body_that_nobody_declared_cannot_be_read() {
    for condition in ["context.request has body", "!(context.request has body)", "context.request has body.amount"] {
        let found = compiled(&[resource("p", &when(condition), &[])]).expect_err(condition);
        assert!(found[0].message.contains("declares no `body`"), "{condition}: {found:?}");
    }
    let other = [resource("a", &when("context.request has body"), &[]), resource("b", &when("true"), &AMOUNT)];
    assert_eq!(compiled(&other).expect_err("a alone declares for a")[0].file, "policies/a.yaml");
}

#[test]
fn a_header_that_policies_cannot_read_is_refused_at_its_name_with_what_to_write() {
    for (name, expected) in [
        ("X-Tenant", "header names are in lower case: write `x-tenant` for `X-Tenant`"),
        ("x tenant", "`x tenant` is not a header name: write 1 to 128 letters"),
        ("x-tenant:", "is not a header name"),
        ("", "`` is not a header name"),
        (":authority", "is not a header name"),
        ("x-t\u{e4}nant", "is not a header name"),
        ("authorization", "write conditions on `context.user`"),
        ("cookie", "write conditions on `context.user`"),
        ("proxy-authorization", "it is a secret"),
        ("proxy_authorization", "policies cannot read the header `proxy_authorization`: it is a secret"),
        ("x-rondel-principal", "write conditions on `principal`"),
        ("x_rondel-user", "write conditions on `principal`"),
        ("x-forwarded-client-cert", "write conditions on `principal`"),
        ("x-forwarded-for", "write `context.source.address`"),
        ("forwarded", "write `context.source.address`"),
        ("connection", "does not reach the application"),
        ("te", "does not reach the application"),
        ("trailer", "does not reach the application"),
        ("transfer-encoding", "does not reach the application"),
        ("upgrade", "does not reach the application"),
        ("keep-alive", "does not reach the application"),
        ("http2-settings", "does not reach the application"),
        ("proxy-connection", "does not reach the application"),
        ("host", "write `context.request.host`"),
    ] {
        for condition in
            [format!("context.request.headers has \"{name}\""), format!("context.request.headers[\"{name}\"] == \"a\"")]
        {
            let text =
                format!("permit (principal, action, resource)\n  when {{ context.request.path != \"{name}\" && {condition} }};");
            let found = printed(&text);
            let column = 40 + name.chars().count() + if condition.contains(" has ") { 28 } else { 24 };
            let found = found.first().map_or("", String::as_str);
            assert!(
                found.starts_with(&format!("11:{column} ")) && found.contains(expected),
                "{condition}: {found}, not at {column}"
            );
        }
    }
    assert_eq!(
        printed(&when("context.request.headers has HOST")),
        ["10:73 header names are in lower case: write `host` for `HOST`"]
    );
    for (text, expected) in [
        ("context.request.headers == context.request.headers", "10:61 headers are read one by one"),
        ("context.request has headers", "10:65 headers are read one by one"),
        ("context.request.headers.tenant == \"a\"", "10:45 unable to guarantee safety of access to optional attribute"),
        ("context.request.headers has tenant && context.request.headers.tenant == 1", "10:83 "),
    ] {
        let found = printed(&when(text));
        assert!(found.first().is_some_and(|error| error.starts_with(expected)), "{text}: {found:?}");
    }
    let many: String = (0..=headers::NAMES_MAX).map(|at| when(&format!("context.request.headers has \"x-{at}\""))).collect();
    assert_eq!(printed(&many).len(), 1);
    assert!(printed(&many)[0].contains("read more than 32 headers"), "{many}");
    for name in
        ["x-tenant", "x_tenant", "proxy-status", "user-agent", "content-type", "content-length", "x-rondel", "x!#$%&'*+.^`|~"]
    {
        assert_eq!(printed(&when(&format!("context.request.headers has \"{name}\""))), [""; 0], "{name}");
    }
}

#[test]
fn only_the_headers_that_a_policy_of_the_action_reads_are_asked_for() {
    let reads = |action: &str, name: &str| when(&format!("context.request.headers has \"{name}\"")).replace("action,", action);
    let post = reads("action == Action::\"POST\",", "x-b") + &reads("action in Action::\"write\",", "x-a");
    let policies = compiled(&[
        resource("a", &post, &[]),
        resource("b", &reads("action == Action::\"GET\",", "x-c"), &[]),
        resource("c", "permit (principal, action, resource) when { context.request.path == \"/\" };", &[]),
    ])
    .expect("sound");
    for (action, expected) in [
        ("POST", vec!["x-a", "x-b"]),
        ("PUT", vec!["x-a"]),
        ("GET", vec!["x-c"]),
        ("HEAD", vec![]),
        ("connect", vec![]),
        ("BREW", vec![]),
    ] {
        assert_eq!(policies.header_names(action), expected, "{action}");
    }
    for whole in [
        "context.request == context.request",
        "context == context",
        "(if context has user then context.request else context.request).path == \"/\"",
    ] {
        let policies = compiled(&[resource("a", &when(whole), &[]), resource("b", &post, &[])]).expect("sound");
        assert_eq!(policies.header_names("GET"), ["x-a", "x-b"], "{whole}: it sees the headers too");
    }
}

#[test]
fn contradicting_declarations_are_refused() {
    let reads = |field: &str, value: &str| when(&format!("context.request has body && context.request.body.{field} == {value}"));
    let long = resource("a", &reads("amount", "1"), &[("amount", Long)]);
    let text = resource("b", &reads("amount", "\"1\""), &[("amount", Text)]);
    let found = compiled(&[long.clone(), text.clone()]).expect_err("two types");
    assert_eq!(
        found[0].to_string(),
        "policies/b.yaml:10:1: body field `amount` is String here and Long in `bank/a`, for the same action"
    );
    let elsewhere = text.text.replace("action,", "action == Action::\"PUT\",");
    let posts = long.text.replace("action,", "action == Action::\"POST\",");
    let apart = [AuthorizationPolicy { text: posts, ..long.clone() }, AuthorizationPolicy { text: elsewhere, ..text }];
    assert!(compiled(&apart).is_ok(), "different actions never meet");
    let twice = compiled(&[long.clone(), long.clone()]).expect_err("same name");
    assert!(twice[0].message.contains("stands twice"), "{twice:?}");

    let mut other = issuer(&[("limit", Text)]);
    other.name = "partner".into();
    let found = compile(std::slice::from_ref(&long), &[bank_issuer(), other], &model::Roles::default())
        .expect_err("two types of one attribute");
    assert!(found[0].message.contains("`limit` is Long in issuer `bank-login` and String in `partner`"), "{found:?}");
    let found = compile(&[long], &[issuer(&[("scopes", Text)])], &model::Roles::default()).expect_err("a fixed attribute");
    assert!(found[0].message.contains("every user has already"), "{found:?}");
}

#[test]
fn only_the_body_that_a_policy_of_the_action_reads_is_asked_for() {
    let reads = "context.request has body && context.request.body.amount > 0";
    let text = format!(
        "permit (principal, action == Action::\"POST\", resource) when {{ {reads} }};
         permit (principal, action in Action::\"read\", resource);"
    );
    let currency = when("context.request has body && context.request.body.currency == \"CHF\"")
        .replace("action,", "action == Action::\"PUT\",");
    let policies = compiled(&[
        resource("a", &text, &AMOUNT),
        resource("b", &currency, &[("currency", Text), ("note", Text)]),
        resource("c", "permit (principal, action, resource);", &[("unread", Text)]),
    ])
    .expect("sound");
    assert_eq!(policies.body_fields("POST"), Some(&shape(&AMOUNT)));
    assert_eq!(policies.body_fields("PUT"), Some(&shape(&[("currency", Text), ("note", Text)])));
    for action in ["GET", "DELETE", "connect", "BREW"] {
        assert_eq!(policies.body_fields(action), None, "{action}");
    }
    for whole in ["context.request == context.request", "context == context"] {
        assert!(crate::fixture::policies(&when(whole)).body_fields("GET").is_some(), "{whole}: it sees the body too");
    }
    let everything = compiled(&[resource("a", &when(reads), &AMOUNT), resource("b", &currency, &[("currency", Text)])]);
    assert_eq!(everything.expect("sound").body_fields("PUT"), Some(&shape(&[("amount", Long), ("currency", Text)])));
}

#[test]
fn actions_with_the_same_policies_share_a_slice() {
    let policies = policies(
        "permit (principal, action in Action::\"read\", resource); forbid (principal, action, resource) when { context has user };",
    );
    let slice = |action: &str| Arc::as_ptr(&policies.actions[action].slice);
    assert_eq!(slice("GET"), slice("HEAD"));
    assert_eq!(slice("PUT"), slice("DELETE"));
    // An opaque connection has no path to look policies up by.
    assert_ne!(slice("PUT"), slice("connect"));
    assert_ne!(slice("GET"), slice("PUT"));
}

#[test]
fn no_policies_compile_to_nothing() {
    for resources in [vec![], vec![resource("p", "", &[])], vec![resource("p", "// later\n", &AMOUNT)]] {
        assert!(compiled(&resources).expect("sound").is_empty());
    }
    assert!(!policies("permit (principal, action, resource);").is_empty());
}

#[test]
fn a_megabyte_of_policies_is_refused_and_no_text_hangs() {
    let many: String = (0..600).map(|at| when(&format!("context.request.path == \"/{at}\""))).collect();
    let wide: String = (0..10_000).map(|at| format!("\"/{at}\",")).collect();
    let started = Instant::now();
    for (name, text, sound) in [
        ("a megabyte", many.repeat(1 + 1_000_000 / many.len()), false),
        ("a long comment", format!("//{}", "x".repeat(TEXT_BYTES_MAX - 2)), true),
        ("one byte more", format!("//{}", "x".repeat(TEXT_BYTES_MAX - 1)), false),
        ("many policies", many, true),
        ("a large set", when(&format!("[{wide}].contains(context.request.path)")), true),
        ("semicolons", ";".repeat(200_000), false),
        ("words", "a ".repeat(100_000), false),
        ("annotations", "@id(\"a\")".repeat(20_000), false),
        ("an open string", format!("permit(\"{}", "\\\"".repeat(100_000)), false),
        ("brackets", "(".repeat(200_000), false),
        ("signs", "!".repeat(200_000), false),
        ("mistakes", when("context.request.pfad == \"/\"").repeat(1000), false),
    ] {
        let found = compiled(&[resource("p", &text, &AMOUNT)]).map(|_| ());
        assert_eq!(found.is_ok(), sound, "{name}: {found:?}");
        let count = found.err().map_or(0, |errors| errors.len());
        assert!(count <= ERRORS_MAX + 1, "{name}: {count} errors");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_deepest_policies_fit_half_a_thread_s_stack() {
    let deep = DEPTH_MAX - 8;
    let brackets = (DEPTH_MAX - 8) / 3;
    let paths = vec!["context.request.path == \"a\""; deep - 2];
    let conditions = [
        paths.join(" && "),
        paths.join(" || "),
        format!("{} == 1", vec!["1"; deep].join(" + ")),
        format!("{} == 1", vec!["1"; deep].join(" * ")),
        format!("{}true{}", "(".repeat(brackets), ")".repeat(brackets)),
        format!("{}true{}", "if true then true else ".repeat(deep), ""),
        format!("{}true{}", "if (".repeat(brackets / 2), ") then true else false".repeat(brackets / 2)),
        format!("{}1{} == [1]", "[".repeat(brackets), "]".repeat(brackets)),
        format!("{}1{} == {{a: 1}}", "{a:".repeat(brackets), "}".repeat(brackets)),
        format!("context{} == 1", ".a".repeat(deep)),
        format!("true {}", "} when { true".repeat(deep)),
    ];
    let all = move || {
        for condition in conditions {
            let text = when(&condition);
            assert!(survey(&text).is_ok(), "{text}");
            if let Ok(policies) = compiled(&[resource("p", &text, &AMOUNT)]) {
                let decision = match decided(&policies, &transfer()) {
                    Ok(permit) => permit.decision().clone(),
                    Err(denied) => denied.decision,
                };
                assert_eq!(crate::explain(&policies, &transfer(), &decision).policies.len(), 1);
            }
        }
    };
    // Threads have 2 MiB unless told otherwise.
    std::thread::Builder::new().stack_size(1 << 20).spawn(all).expect("spawns").join().expect("fits");
}

#[test]
fn an_id_is_what_it_seems_to_be() {
    let told = |id: &str| printed(&format!("@id(\"{id}\") permit (principal, action, resource);"));
    for id in [
        "a\u{202e}b",
        "lim\u{200b}it",
        "lim\u{ad}it",
        "te\u{2066}x",
        "t\u{435}ller",
        "a\u{e0041}",
        "x\u{2028}y",
        "l\u{ff49}mit",
        "\u{feff}a",
        "\u{3bf}wner",
    ] {
        let told = told(id);
        assert!(told.len() == 1 && told[0].contains("is not a policy id"), "{id:?}: {told:?}");
        assert!(!told[0].contains(['\u{202e}', '\u{200b}', '\u{2066}']), "{told:?}");
    }
    for id in ["limit", "within limit (EUR)", "лимит", "限额-2", "سقف", "grenze-für-kunden", "a→b"] {
        assert_eq!(told(id), [""; 0], "{id}");
    }
}
