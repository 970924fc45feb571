//! Policies that are edited while requests flow: each request is decided by one version, and none fails.

use crate::sidecar::{DEADLINE, Setup, Sidecar, Tls, application, policy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// Permits `/even` in even revisions, and `/odd` in odd ones.
fn version(revision: u64) -> String {
    let path = if revision.is_multiple_of(2) { "even" } else { "odd" };
    format!("@id(\"{path}\") permit (principal, action, resource) when {{ context.request.path == \"/{path}\" }};")
}

/// One request on an open connection: its status.
async fn ask(stream: &mut Tls, path: &str) -> u16 {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: server\r\n\r\n").as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
            if body.len() >= length.unwrap() {
                return head.split(' ').nth(1).unwrap().parse().unwrap();
            }
        }
        assert!(timeout(DEADLINE, stream.read_buf(&mut seen)).await.expect("in time").unwrap() > 0, "ended: {text}");
    }
}

#[tokio::test]
async fn while_policies_are_edited_each_request_is_decided_by_one_version_and_none_fails() {
    let odd = "@id(\"odd\") permit (principal, action, resource) when { context.request.path == \"/odd\" };";
    let mut sidecar = Sidecar::start(application().await, Setup { policy: odd, ..Setup::default() }).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for _ in 0..4 {
        let (mut stream, is_over) = (sidecar.caller().await, Arc::clone(&is_over));
        callers.push(tokio::spawn(async move {
            let mut answers = BTreeMap::<(&str, u16), usize>::new();
            while !is_over.load(Ordering::Relaxed) {
                for path in ["/even", "/odd"] {
                    *answers.entry((path, ask(&mut stream, path).await)).or_default() += 1;
                }
            }
            answers
        }));
    }
    for revision in 2..22 {
        sidecar.enforce(&version(revision)).await;
        sleep(Duration::from_millis(20)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for caller in callers {
        let answers = caller.await.expect("no connection ends");
        assert!(answers.keys().all(|(_, status)| matches!(status, 200 | 403)), "{answers:?}");
        assert_eq!(answers.len(), 4, "every answer was met: {answers:?}");
        asked += answers.values().sum::<usize>();
    }
    // Each line tells the version that decided, and the answer is that version's.
    let deadline = Instant::now() + DEADLINE;
    let lines = loop {
        let log = sidecar.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line["path"] == "/even" || line["path"] == "/odd").collect();
        if lines.len() >= asked {
            break lines;
        }
        assert!(Instant::now() < deadline, "{} of {asked} lines", lines.len());
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(lines.len(), asked);
    for line in &lines {
        let is_permitted = (line["path"] == "/even") == line["revision"].as_u64().unwrap().is_multiple_of(2);
        assert_eq!(line["status"], if is_permitted { 200 } else { 403 }, "{line}");
    }
    // And so do the records.
    let by_id: BTreeMap<&str, &serde_json::Value> = lines.iter().map(|line| (line["decision"].as_str().unwrap(), line)).collect();
    let records = sidecar.control.records.lock();
    let known = records.iter().filter_map(|record| Some((record, by_id.get(record.id.to_string().as_str())?)));
    let known: Vec<_> = known.collect();
    assert!(known.len() > 20, "{} records", known.len());
    for (record, line) in known {
        assert_eq!(
            (line["revision"].as_u64().unwrap(), line["status"] == 200),
            (record.revision.0, record.effect == model::Effect::Allow)
        );
        let explained = &record.explanation.as_ref().expect("explained").policies[0];
        let path = if record.revision.0.is_multiple_of(2) { "shop/server/even" } else { "shop/server/odd" };
        assert_eq!(explained.id.as_str(), path, "explained by the version that decided");
    }
}

#[tokio::test]
async fn a_hundred_policies_are_put_in_force_without_a_pause() {
    let mut sidecar = Sidecar::start(application().await, Setup::default()).await;
    let mut stream = sidecar.caller().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let caller = {
        let is_over = Arc::clone(&is_over);
        tokio::spawn(async move {
            let mut took = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                assert_eq!(ask(&mut stream, "/page").await, 200);
                took.push(begun.elapsed());
            }
            took
        })
    };
    let mut applied = Vec::new();
    for round in 0..3 {
        let rule = |number: usize| {
            format!(
                "@id(\"r{number}\") permit (principal, action, resource) when {{ context.request.path like \"/{round}-{number}/*\" }};\n"
            )
        };
        let text: String = (0..99).map(rule).chain([crate::sidecar::ALLOW_ALL.to_owned()]).collect();
        sidecar.snapshot.policies = vec![policy(&text)];
        let begun = Instant::now();
        sidecar.publish().await;
        applied.push(begun.elapsed().as_millis());
        sleep(Duration::from_millis(200)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut took = caller.await.unwrap();
    took.sort();
    let at = |part: usize| took[(took.len() - 1) * part / 1000].as_micros();
    eprintln!(
        "100 policies in force after {applied:?} ms; {} requests meanwhile: median {} us, 99.9 % {} us, longest {} us",
        took.len(),
        at(500),
        at(999),
        at(1000)
    );
}
