//! What the schema says is sensitive is told nowhere: not to the caller, in no record, in no log, at no admin port.

use crate::headers::recorded;
use crate::sidecar::{Setup, Sidecar, application};
use std::collections::BTreeSet;

/// Denies with values of a body and a header on both sides, and fails with a value in the evaluator's words.
const POLICY: &str = r#"
@id("small") permit (principal, action == Action::"POST", resource)
when { context.request has body && context.request.body.amount < 10 };
@id("account") permit (principal, action == Action::"POST", resource)
when { context.request.headers has "x-account" && context.request.headers["x-account"] == "mine" };
@id("sum") permit (principal, action == Action::"PUT", resource)
when { context.request has body && context.request.body.amount + 9223372036854775807 > 0 };
"#;

fn call(method: &str) -> Vec<u8> {
    let body = "{\"amount\": 31337}";
    let kind = "content-type: application/json\r\nx-account: ch-4711\r\nconnection: close\r\n";
    format!("{method} /x HTTP/1.1\r\nhost: server\r\n{kind}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_sensitive_value_is_told_nowhere() {
    let mut sidecar = Sidecar::start(application().await, Setup { policy: POLICY, ..Setup::default() }).await;
    for (is_hidden, revision) in [(false, 1), (true, 2)] {
        if is_hidden {
            sidecar.snapshot.sensitive.body = BTreeSet::from(["amount".to_owned()]);
            sidecar.snapshot.sensitive.headers = BTreeSet::from(["x-account".to_owned()]);
            sidecar.publish().await;
        }
        let before = sidecar.log().len();
        let mut told = String::new();
        for (method, status) in [("POST", 403), ("PUT", 403)] {
            let answer = sidecar.exchange(&call(method)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(!answer.contains("31337") && !answer.contains("4711"), "the caller is told no value in any case: {answer}");
            let id = answer.lines().find_map(|line| line.strip_prefix("x-rondel-decision: ")).expect("an id");
            let record = recorded(&sidecar, id).await;
            assert_eq!(record.revision.0, revision);
            told.push_str(&format!("{record:#?}"));
        }
        sidecar.logged("policy_error").await;
        told.push_str(&sidecar.log()[before..]);
        for value in ["31337", "ch-4711"] {
            assert_eq!(told.contains(value), !is_hidden, "`{value}` at revision {revision}: {told}");
        }
        assert_eq!(told.contains("(redacted)"), is_hidden, "{told}");
    }
}
