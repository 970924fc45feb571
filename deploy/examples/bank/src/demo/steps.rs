//! Steps 1, 3, 4 and 5: what must happen, and go on happening.

use crate::client::{self, GERMANY};
use crate::mesh::{Bank, workloads};
use crate::report::{Report, quote, say};
use anyhow::Context;
use http::Method;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the load runs while certificates rotate: with a life of 20 s, each rotates about every 10.
const ROTATION_TIME: Duration = Duration::from_secs(34);
/// Rotations of every workload that are promised in that time.
const ROTATIONS_MIN: usize = 2;
/// Clients of the load.
const CLIENTS: usize = 4;
/// Pause of a client between two transfers.
const PAUSE: Duration = Duration::from_millis(15);

fn transfer(amount: i64) -> Value {
    json!({ "from": "alice", "to": "bob", "amount": amount, "currency": "EUR" })
}

/// Step 1: one transfer from end to end.
pub(crate) async fn allowed(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    report.step(1, "An allowed transfer, end to end");
    let token = client::token(bank.issuer(), &json!({ "user": "tina" })).await?;
    say("   tina (teller, limit 1000, DE) sends 250 from DE: client -> web -> payments -> fraud, ledger");
    let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(&token), &transfer(250)).await?;
    let body = answer.json();
    let hops = body["trace"].as_array().cloned().unwrap_or_default();
    let mut took_part = BTreeSet::new();
    for hop in &hops {
        let text = |name: &str| hop[name].as_str().unwrap_or("-").to_owned();
        if hop["caller"].is_string() {
            quote(5, &format!("{:9} for {}, called by {}", text("service"), text("user"), text("caller")));
            quote(15, &format!("decision {}", text("decision")));
        } else {
            quote(5, &format!("{:9} called by the client at {}", text("service"), text("client")));
        }
        took_part.extend([text("identity"), text("caller")].into_iter().filter(|id| id.starts_with("spiffe://")));
    }
    let seen = format!("{} {}", answer.status, body["transfer"]);
    report.promise("allowed", "a transfer within the rules", &seen, answer.status == 201);
    for id in &took_part {
        say(&format!("     {id}"));
    }
    report.promise(
        "allowed",
        "four workloads proved themselves",
        &format!("{} SPIFFE IDs", took_part.len()),
        took_part.len() == 4,
    );

    let auditor = client::token(bank.issuer(), &json!({ "user": "aura" })).await?;
    let read = client::call(GERMANY, bank.web(), Method::GET, "/transfers", Some(&auditor), &Value::Null).await?;
    let seen = format!("{} {} entries", read.status, read.json()["count"]);
    report.promise("allowed", "an auditor reads", &seen, read.status == 200);
    Ok(())
}

/// The file that step 3 edits, and the rule in it.
const EDITED_FILE: &str = "policies/payments.yaml";
const EDITED_RULE: &str = "context.request.body.amount <= context.user.limit";

/// Step 3: an edit in force everywhere, then a broken one that changes nothing, then the original again.
pub(crate) async fn policy(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    report.step(3, "A policy is edited on disk");
    let file = bank.mesh_dir().join(EDITED_FILE);
    let original = std::fs::read_to_string(&file).context("read the policy")?;
    let tight = original.replace(EDITED_RULE, "context.request.body.amount * 2 <= context.user.limit");
    anyhow::ensure!(tight != original, "the rule that this step edits is not in `{EDITED_FILE}`");
    let token = client::token(bank.issuer(), &json!({ "user": "tina" })).await?;

    let before = pay(bank, &token, 800).await?;
    say("   `amount <= limit` becomes `amount * 2 <= limit`");
    let written = Instant::now();
    let status = edit(bank, &tight).await?;
    let seen = format!(
        "revision {} at {} of 4 sidecars {} ms after the write ({} ms from publish to last ack)",
        status["revision"],
        workloads(&status).iter().filter(|each| each["state"] == "SYNCED").count(),
        written.elapsed().as_millis(),
        status["publish_to_last_ack_ms"]
    );
    report.promise("policy", "in force at every sidecar", &seen, bank.all_synced(&status));
    let after = pay(bank, &token, 800).await?;
    let seen = format!("800 before: {}, after: {}", before.short(), after.short());
    report.promise("policy", "the edit decides", &seen, before.status == 201 && after.status == 403);

    broken_edit(bank, report, &tight).await?;
    let (large, small) = (pay(bank, &token, 800).await?, pay(bank, &token, 400).await?);
    let seen = format!("800: {}, 400: {}", large.short(), small.short());
    report.promise("policy", "the last good policy stays", &seen, large.status == 403 && small.status == 201);

    let status = edit(bank, &original).await?;
    let restored = pay(bank, &token, 800).await?;
    let is_kept = restored.status == 201 && status["errors"] == json!([]);
    report.promise("policy", "the original is back in force", &format!("800: {}", restored.short()), is_kept);
    Ok(())
}

/// One transfer by tina from where she may make it.
async fn pay(bank: &Bank, token: &str, amount: i64) -> anyhow::Result<client::Answer> {
    client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(token), &transfer(amount)).await
}

/// Writes a good text, and waits until every sidecar has it.
async fn edit(bank: &Bank, text: &str) -> anyhow::Result<Value> {
    let revision = bank.status().await?["revision"].as_u64().context("the control plane is away")?;
    replace(&bank.mesh_dir().join(EDITED_FILE), text)?;
    let is_in_force = |status: &Value| status["revision"].as_u64() > Some(revision) && bank.all_synced(status);
    bank.until("the edit in force at every sidecar", is_in_force).await
}

/// Writes a text with a misspelt attribute: the error must say where, and what is wrong.
async fn broken_edit(bank: &Bank, report: &mut Report, good: &str) -> anyhow::Result<()> {
    say("   then a broken edit: `context.user.limt`");
    replace(&bank.mesh_dir().join(EDITED_FILE), &good.replace("context.user.limit", "context.user.limt"))?;
    let status = bank.until("the error", |status| status["errors"].as_array().is_some_and(|list| !list.is_empty())).await?;
    let error = &status["errors"][0];
    let message = error["message"].as_str().unwrap_or_default();
    let line = error["line"].as_u64().and_then(|line| usize::try_from(line).ok());
    let is_line =
        line.and_then(|line| good.lines().nth(line.checked_sub(1)?)).is_some_and(|it| it.contains("context.user.limit"));
    let seen = format!("{}:{}: {message}", error["file"].as_str().unwrap_or_default(), error["line"]);
    report.promise(
        "policy",
        "a broken edit is refused",
        &seen,
        error["file"] == EDITED_FILE && is_line && message.contains("limt"),
    );
    Ok(())
}

/// Moves a new file over the old one, as an editor does.
fn replace(file: &std::path::Path, text: &str) -> anyhow::Result<()> {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, text)
        .and_then(|()| std::fs::rename(&fresh, file))
        .with_context(|| format!("write `{}`", file.display()))
}

/// What a load came to.
#[derive(Debug, Default)]
struct Load {
    good: u64,
    failed: Vec<String>,
}

/// Steady transfers by several clients until `done` ends.
async fn under_load<T>(bank: &Bank, done: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, Load)> {
    let token = client::token(bank.issuer(), &json!({ "user": "frank" })).await?;
    let load = RefCell::new(Load::default());
    let one = || forever(bank, &token, &load);
    let all = async { tokio::join!(one(), one(), one(), one()) };
    let value = tokio::select! {
        value = done => value?,
        ((), (), (), ()) = all => anyhow::bail!("the load ended by itself"),
    };
    let load = load.take();
    Ok((value, load))
}

async fn forever(bank: &Bank, token: &str, load: &RefCell<Load>) {
    loop {
        let answer = client::call(client::FRANCE, bank.web(), Method::POST, "/transfers", Some(token), &transfer(10)).await;
        match answer {
            Ok(answer) if answer.status == 201 => load.borrow_mut().good += 1,
            Ok(answer) => load.borrow_mut().failed.push(answer.short()),
            Err(error) => load.borrow_mut().failed.push(format!("{error:#}")),
        }
        sleep(PAUSE).await;
    }
}

/// Step 4: certificates rotate under load.
pub(crate) async fn rotation(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    report.step(4, "Certificates rotate under load");
    say(&format!("   {CLIENTS} clients make transfers for {} s", ROTATION_TIME.as_secs()));
    let watch = async {
        let mut serials: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let deadline = Instant::now() + ROTATION_TIME;
        while Instant::now() < deadline {
            for each in workloads(&bank.status().await?) {
                if let (Some(name), Some(serial)) = (each["name"].as_str(), each["serial"].as_str()) {
                    serials.entry(name.to_owned()).or_default().insert(serial.to_owned());
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(serials)
    };
    let (serials, load) = under_load(bank, watch).await?;
    let rotations: Vec<String> = serials.iter().map(|(name, seen)| format!("{name} {}", seen.len().saturating_sub(1))).collect();
    let is_kept = serials.len() == 4 && serials.values().all(|seen| seen.len() > ROTATIONS_MIN);
    report.promise("rotation", "every certificate rotated", &rotations.join(", "), is_kept);
    report.promise("rotation", "no request failed", &told(&load), load.failed.is_empty() && load.good > 100);
    Ok(())
}

fn told(load: &Load) -> String {
    let first = load.failed.first().map_or_else(String::new, |first| format!(", the first: {first}"));
    format!("{} transfers, {} failed{first}", load.good, load.failed.len())
}

/// Step 5: the control plane dies and comes back.
pub(crate) async fn control_plane(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    report.step(5, "The control plane is killed");
    let root = bank.state().join("control/bundle.pem");
    let before = std::fs::read(&root).context("read the trust root")?;
    let killed = Instant::now();
    let outage = async {
        kill(bank.control_pid()?)?;
        sleep(Duration::from_millis(200)).await;
        let away = bank.status().await?.is_null();
        say("   killed; `rondel up` starts it again in 3 s; transfers go on meanwhile");
        let back = bank.until("all sidecars reconnected", |status| bank.all_synced(status)).await?;
        let reconnected = killed.elapsed();
        // What comes after the outage counts too.
        sleep(Duration::from_secs(2)).await;
        Ok((away, back, reconnected))
    };
    let ((away, back, reconnected), load) = under_load(bank, outage).await?;
    report.promise("control", "traffic goes on without it", &told(&load), away && load.failed.is_empty() && load.good > 20);
    let connected = workloads(&back).iter().filter(|each| each["connected"] == true).count();
    let seen = format!("{connected} of 4 after {:.1} s", reconnected.as_secs_f64());
    report.promise("control", "everything reconnects", &seen, connected == 4);
    let after = std::fs::read(&root).context("read the trust root")?;
    let print = |bundle: &[u8]| identity::sha256(bundle).iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
    let seen = format!("SHA-256 {}… before, {}… after", print(&before), print(&after));
    report.promise("control", "same trust root", &seen, before == after);
    Ok(())
}

fn kill(pid: i32) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("kill the control plane")
}
