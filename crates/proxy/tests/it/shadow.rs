//! Policies in shadow mode: they change no answer, hold back no byte, and say what they would have changed.

use crate::headers::recorded;
use crate::sidecar::{DEADLINE, Setup, Sidecar, application, policy, read_all};
use model::DecisionRecord;
use model::decision::Would;
use model::shadow::{ShadowCount, ShadowReport};
use model::snapshot::AuthorizationPolicy;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// POST and DELETE are allowed.
const LIVE: &str = r#"@id("write") permit (principal, action in [Action::"POST", Action::"DELETE"], resource);"#;
/// Reads would be allowed, deletions and large amounts denied, and an amount that is too large cannot be added to.
const TRIED: &str = r#"
@id("read") permit (principal, action == Action::"GET", resource);
@id("keep") forbid (principal, action == Action::"DELETE", resource);
@id("large") forbid (principal, action == Action::"POST", resource)
when { context.request has body && context.request.body.amount + 1 > 500 };
"#;

fn tried(text: &str) -> AuthorizationPolicy {
    AuthorizationPolicy { name: "shop/tried".into(), file: "tried.yaml".into(), ..policy(text) }
}

async fn trying(live: &'static str, text: &str) -> Sidecar {
    let mut sidecar = Sidecar::start(application().await, Setup { policy: live, ..Setup::default() }).await;
    sidecar.snapshot.shadow = vec![tried(text)];
    sidecar.publish().await;
    sidecar
}

fn call(method: &str, body: &str) -> Vec<u8> {
    let kind = "content-type: application/json\r\nconnection: close\r\n";
    format!("{method} /x HTTP/1.1\r\nhost: server\r\n{kind}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn id(answer: &str) -> String {
    answer.lines().find_map(|line| line.strip_prefix("x-rondel-decision: ")).expect("an id").to_owned()
}

/// What the record of a call says of the policies in shadow mode.
async fn shadowed(sidecar: &Sidecar, bytes: &[u8], status: u16) -> (Option<(Would, String)>, DecisionRecord) {
    let answer = sidecar.exchange(bytes).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    let record = recorded(sidecar, &id(&answer)).await;
    let names = |shadowed: &model::decision::Shadowed| {
        let names: Vec<&str> = shadowed.policies.iter().map(|policy| policy.as_str().trim_start_matches("shop/tried/")).collect();
        (shadowed.would, names.join(" "))
    };
    (record.shadow.as_ref().map(names), record)
}

/// Waits for a report that satisfies the test.
async fn reported(sidecar: &Sidecar, is_it: impl Fn(&ShadowReport) -> bool) -> ShadowReport {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let last = sidecar.control.shadows.lock().last().cloned();
        if let Some(report) = last.as_ref().filter(|report| is_it(report)) {
            return report.clone();
        }
        assert!(Instant::now() < deadline, "{last:#?}\n{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
}

fn count(report: &ShadowReport, name: &str) -> Option<ShadowCount> {
    let tally = report.tallies.iter().find(|tally| tally.policy.as_str() == format!("shop/tried/{name}"))?;
    tally.counts.first().cloned()
}

#[tokio::test]
async fn a_policy_in_shadow_mode_changes_no_answer_and_says_what_it_would_change() {
    let sidecar = trying(LIVE, TRIED).await;
    for (method, body, status, expected) in [
        ("GET", "", 403, Some((Would::Allow, "read"))),
        ("DELETE", "", 200, Some((Would::Deny, "keep"))),
        ("POST", "{\"amount\": 499}", 200, None),
        ("POST", "{\"amount\": 500}", 200, Some((Would::Deny, "large"))),
        ("POST", "{\"amount\": 9223372036854775807}", 200, Some((Would::Fail, "large"))),
        ("POST", "{\"amount\": 1, \"amount\": 2}", 200, Some((Would::Fail, "large"))),
        ("PUT", "", 403, None),
    ] {
        let (would, record) = shadowed(&sidecar, &call(method, body), status).await;
        assert_eq!(would, expected.map(|(would, name)| (would, name.to_owned())), "{method} {body}: {record:#?}");
    }
    let (_, record) = shadowed(&sidecar, &call("POST", "{\"amount\": 800}"), 200).await;
    let why = record.shadow.expect("another answer").detail.expect("explained");
    assert!(why.contains("shop/tried/large (tried.yaml:11)") && why.contains("801 > 500"), "{why}");
    assert!(record.explanation.expect("of the live ones").policies.iter().all(|policy| !policy.id.as_str().contains("tried")));

    let report = reported(&sidecar, |report| report.tried == 8).await;
    assert_eq!(report.untried, 0);
    let large = report.tallies.iter().find(|tally| tally.policy.as_str() == "shop/tried/large").expect("large");
    assert_eq!((large.kind.as_str(), large.position.as_str()), ("forbid", "tried.yaml:11"));
    let counts: Vec<_> = large.counts.iter().map(|count| (count.would, count.count, count.examples.len())).collect();
    assert_eq!(counts, [(Would::Deny, 2, 2), (Would::Fail, 2, 2)]);
    let keep = count(&report, "keep").expect("counted");
    assert_eq!((keep.count, keep.first), (1, keep.last));
    let metrics = sidecar.admin("/metrics").await;
    for line in [
        "rondel_shadow_tried_total 8",
        "rondel_shadow_untried_total 0",
        "rondel_shadow_would_total{policy=\"shop/tried/large\",would=\"would_deny\"} 2",
        "rondel_shadow_would_total{policy=\"shop/tried/read\",would=\"would_allow\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn one_policy_of_a_resource_can_be_in_shadow_mode() {
    let live = r#"@id("write") permit (principal, action, resource);
        @mode("shadow") @id("none") forbid (principal, action, resource);"#;
    let sidecar = Sidecar::start(application().await, Setup { policy: live, ..Setup::default() }).await;
    let (would, _) = shadowed(&sidecar, &call("GET", ""), 200).await;
    assert_eq!(would, Some((Would::Deny, "shop/server/none".to_owned())));
}

#[tokio::test]
async fn policies_in_shadow_mode_that_cannot_be_tried_are_told_and_deny_nobody() {
    let mut sidecar = trying(LIVE, "forbid (principal, action, resource) when { context.nothing };").await;
    let (would, _) = shadowed(&sidecar, &call("POST", "{}"), 200).await;
    assert_eq!(would, None);
    let refused = reported(&sidecar, |report| report.refused.is_some()).await.refused.expect("refused");
    assert!(refused.contains("tried.yaml:8:") && refused.contains("nothing"), "{refused}");
    assert_eq!(sidecar.metric("rondel_shadow_refused").await, 1);
    // Mended, they are tried.
    sidecar.snapshot.shadow = vec![tried(TRIED)];
    sidecar.publish().await;
    assert_eq!(shadowed(&sidecar, &call("DELETE", ""), 200).await.0, Some((Would::Deny, "keep".to_owned())));
    assert_eq!(sidecar.metric("rondel_shadow_refused").await, 0);
    assert_eq!(reported(&sidecar, |report| report.tried == 1).await.refused, None);
}

/// An application that tells of every byte when it comes, and answers at the last of `length`.
async fn telling(length: usize) -> (std::net::SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, told) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    all.extend_from_slice(&buffer[..count]);
                    let head = all.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                    let _gone = seen.try_send(head.map_or_else(Vec::new, |at| all[at..].to_vec()));
                    if head.is_some_and(|at| all.len() >= at + length) {
                        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                        all.clear();
                    }
                }
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_body_that_only_a_policy_in_shadow_mode_reads_is_not_held_back() {
    let body = "{\"amount\": 500}";
    let (application, mut told) = telling(body.len()).await;
    let mut sidecar = Sidecar::start(application, Setup { policy: LIVE, ..Setup::default() }).await;
    sidecar.snapshot.shadow = vec![tried(TRIED)];
    sidecar.publish().await;
    let bytes = call("POST", body);
    let half = bytes.len() - 5;
    let mut caller = sidecar.caller().await;
    caller.write_all(&bytes[..half]).await.unwrap();
    // The application has it before the rest was sent.
    let begun = body.as_bytes()[..body.len() - 5].to_vec();
    while timeout(DEADLINE, told.recv()).await.unwrap().unwrap() != begun {}
    caller.write_all(&bytes[half..]).await.unwrap();
    let answer = read_all(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let record = recorded(&sidecar, &id(&answer)).await;
    assert_eq!(record.shadow.map(|shadowed| shadowed.would), Some(Would::Deny), "and was decided by the whole of it");

    // One that breaks off is not decided a second time.
    let mut caller = sidecar.caller().await;
    caller.write_all(&bytes[..half]).await.unwrap();
    while timeout(DEADLINE, told.recv()).await.unwrap().unwrap() != begun {}
    drop(caller);
    assert_eq!(reported(&sidecar, |report| report.untried == 1).await.tried, 1);
}

#[tokio::test]
async fn a_body_beyond_the_limit_goes_up_whole_and_would_be_refused() {
    let limits = &[(model::Limit::PolicyBodyBytes, 64)];
    let mut sidecar = Sidecar::start(application().await, Setup { policy: LIVE, limits, ..Setup::default() }).await;
    sidecar.snapshot.shadow = vec![tried(TRIED)];
    sidecar.publish().await;
    let (would, record) =
        shadowed(&sidecar, &call("POST", &format!("{{\"amount\": 1, \"x\": \"{}\"}}", "y".repeat(64))), 200).await;
    assert_eq!(would, Some((Would::Fail, "large".to_owned())));
    assert!(record.shadow.expect("told").detail.expect("why").contains("`policyBodyBytes` (64)"));
}

#[tokio::test]
async fn a_body_that_live_policies_read_too_is_read_once_more_with_what_the_others_declare() {
    let live = r#"@id("some") permit (principal, action, resource) when { context.request has body && context.request.body.amount > 0 };"#;
    let mut sidecar = Sidecar::start(application().await, Setup { policy: live, ..Setup::default() }).await;
    let more = r#"@id("named") forbid (principal, action, resource) when { context.request has body && context.request.body.name == "eve" };"#;
    let mut resource = tried(more);
    resource.body.insert("name".into(), model::authz::AttributeType::String);
    sidecar.snapshot.shadow = vec![resource];
    sidecar.publish().await;
    for (body, status, expected) in [
        ("{\"amount\": 1, \"name\": \"eve\"}", 200, Some((Would::Deny, "named".to_owned()))),
        ("{\"amount\": 1, \"name\": \"ann\"}", 200, None),
        // Only the policy in shadow mode declares the field that this key could be taken for.
        ("{\"amount\": 1, \"NAME\": \"eve\"}", 200, Some((Would::Fail, "named".to_owned()))),
        ("{\"amount\": 0, \"name\": \"eve\"}", 403, None),
    ] {
        assert_eq!(shadowed(&sidecar, &call("POST", body), status).await.0, expected, "{body}");
    }
}
