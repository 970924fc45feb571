//! Why a call was denied: the operator is told all of it, on the sidecar's own machine too, and the caller a word and an id.

use crate::headers::recorded;
use crate::sidecar::{Setup, Sidecar, application};

const POLICY: &str = r#"
@id("small") permit (principal, action == Action::"POST", resource)
when { context.request has body && context.request.body.amount < 10 };
@id("no-deletes") forbid (principal, action == Action::"DELETE", resource);
@id("delete") permit (principal, action == Action::"DELETE", resource);
"#;

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[tokio::test]
async fn a_caller_is_told_a_word_and_an_id_and_the_operator_the_rest() {
    let sidecar = Sidecar::start(application().await, Setup { policy: POLICY, ..Setup::default() }).await;
    let large = "{\"amount\": 5000}";
    let head =
        format!("host: server\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n", large.len());
    for (method, reason, determining, miss) in [
        ("POST", "not_permitted", None, "would be allowed by shop/server/small if context.request.body.amount < 10 (5000 < 10)"),
        ("DELETE", "denied_by_policy", Some("shop/server/no-deletes"), "; shop/server/delete would allow it otherwise"),
    ] {
        let answer = sidecar.exchange(format!("{method} /x HTTP/1.1\r\n{head}\r\n{large}").as_bytes()).await;
        let told: serde_json::Value = serde_json::from_str(body(&answer)).expect("problem+json");
        let mut members: Vec<&str> = told.as_object().expect("an object").keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["decision", "reason", "status", "title", "type"], "{answer}");
        assert_eq!(told["reason"], reason);
        for secret in ["small", "no-deletes", "5000", "amount", "policy.yaml", "shop/server"] {
            assert!(!answer.contains(secret), "`{secret}` is the operator's: {answer}");
        }

        let id = told["decision"].as_str().expect("an id");
        recorded(&sidecar, id).await;
        let list: serde_json::Value = serde_json::from_str(body(&sidecar.admin("/decisions").await)).expect("a list");
        assert_eq!((list[0]["id"].as_str(), &list[0]["explanation"]), (Some(id), &serde_json::Value::Null));
        let shown: serde_json::Value =
            serde_json::from_str(body(&sidecar.admin(&format!("/decisions/{id}")).await)).expect("one");
        let explanation = &shown["explanation"];
        assert!(explanation["nearest_miss"].as_str().is_some_and(|text| text.ends_with(miss)), "{shown:#}");
        let policies = explanation["policies"].as_array().expect("policies");
        let applied = policies.iter().find(|policy| policy["outcome"] == "applied" && policy["kind"] == "forbid");
        assert_eq!(applied.and_then(|policy| policy["id"].as_str()), determining, "{shown:#}");
        assert!(policies.iter().all(|policy| policy["position"].as_str().is_some_and(|place| place.starts_with("policy.yaml:"))));
        let read = serde_json::json!(["context.request.body.amount", "5000"]);
        let attributes = explanation["attributes"].as_array().expect("attributes");
        assert!(method != "POST" || attributes.contains(&read), "{shown:#}");
    }
    for path in ["/decisions/d-00000000000000000000000000000000", "/decisions/x", "/decisions/../config"] {
        assert!(sidecar.admin(path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
}
