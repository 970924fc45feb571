//! Policies that no control plane should send: each is refused whole with its place, and what was in force stays.

use crate::sidecar::{Setup, Sidecar, application, policy};
use model::Revision;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";

fn when(condition: &str) -> String {
    format!("permit (principal, action, resource) when {{ {condition} }};")
}

#[tokio::test]
async fn hostile_policies_are_refused_whole_and_what_was_in_force_stays() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let control = &sidecar.control;
    let mut tried = Vec::new();
    let id = |id: &str| format!("@id(\"{id}\") permit (principal, action, resource);");
    for (name, text, said) in [
        ("no Cedar", "allow everything".to_owned(), "unexpected"),
        ("a type error", when("context.request.path > 1"), "unexpected type"),
        ("a body field of another type", when("context.request has body && context.request.body.amount == \"1\""), "type"),
        ("an unknown attribute", when("context.request.pfad == \"/\""), "pfad"),
        ("an unknown attribute behind `has`", when("context.request has pfad"), "pfad"),
        ("an optional attribute without `has`", when("context.user in Role::\"x\""), "user"),
        ("an unknown type", when("principal in Gruppe::\"x\""), "Gruppe"),
        ("an unknown annotation", format!("@allow(\"all\") {}", when("true")), "unknown annotation"),
        ("a mode of another spelling", format!("@mode(\"SHADOW\") {}", when("true")), "neither `enforce` nor `shadow`"),
        ("an id twice", id("a").repeat(2), "stands twice"),
        ("an id with a line break", id("a\\nb"), "is not a policy id"),
        ("an id with a null", id("a\\0b"), "is not a policy id"),
        ("an id without end", id(&"a".repeat(1000)), "is not a policy id"),
        ("an id that is blank", id(" "), "is not a policy id"),
        ("a role with a Cyrillic letter", when("context has user && context.user in Role::\"t\u{435}ller\""), "script"),
        ("a text that turns direction", when("context.request.path == \"/\u{202e}txt\""), "BIDI"),
        ("a confusable identifier", when("context.r\u{435}quest.path == \"/\""), ""),
        ("a template", "permit (principal == ?principal, action, resource);".to_owned(), "template"),
        ("brackets", when(&"(".repeat(10_000)), "deeper"),
        ("a long chain", when(&vec!["true"; 10_000].join(" && ")), "deeper"),
        ("negations", when(&format!("{}true", "!".repeat(10_000))), "deeper"),
        ("a megabyte", id("a").repeat(20_000), "bytes long"),
        ("an integer beyond 64 bits", when("9223372036854775808 > 0"), ""),
    ] {
        let mut bad = sidecar.snapshot.clone();
        bad.revision = Revision(2);
        bad.policies = vec![policy(&text)];
        bad.shadow.clone_from(&tried);
        control.send(control.whole(&bad, name));
        let reason = control.answer().await.expect_err(name);
        assert!(reason.contains("policy.yaml:8") && reason.contains(said), "{name}: {reason}");
        assert!(reason.len() <= 4096 && !reason.contains('\n'), "{name}: {reason}");
        // In shadow mode the same denies nobody, and is tried by nobody.
        bad.policies.clone_from(&sidecar.snapshot.policies);
        bad.shadow = vec![model::snapshot::AuthorizationPolicy { name: "shop/tried".into(), ..policy(&text) }];
        control.send(control.whole(&bad, name));
        assert_eq!(control.answer().await, Ok(name.to_owned()), "{name}");
        tried = bad.shadow;
        assert_eq!(sidecar.metric("rondel_shadow_refused").await, 1, "{name}");
        assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"), "{name}: the last good policies decide");
    }
}
