//! `rondel status`: every workload as the control plane sees it.

use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, plain, short, table};
use model::Timestamp;
use std::process::ExitCode;
use wire::operator::{MeshStatus, WorkloadStatus};

/// 0 if every workload is connected and in sync and the configuration has no error, else 1.
pub(crate) async fn run(at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let status = at.connect().await?.status(DEADLINE).await?;
    let now = operator::now();
    match output {
        Output::Json => println!("{:#}", json(&status)),
        Output::Text => print!("{}", text(&status, now)),
    }
    let healthy = |each: &WorkloadStatus| each.connected && state(each, &status) == "SYNCED";
    let is_good = status.errors.is_empty() && status.workloads.iter().all(healthy);
    // A JSON reader wants the answer, not our judgement of it.
    Ok(if is_good || output == Output::Json { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// SYNCED, STALE or REJECTED.
pub(crate) fn state(workload: &WorkloadStatus, status: &MeshStatus) -> &'static str {
    if workload.rejected.is_some() {
        "REJECTED"
    } else if workload.revision == status.revision {
        "SYNCED"
    } else {
        "STALE"
    }
}

/// Time left of an SVID, or that there is none.
pub(crate) fn left(expires_at: Option<Timestamp>, now: Timestamp) -> String {
    match expires_at {
        None => "none".to_owned(),
        Some(at) if at <= now => "EXPIRED".to_owned(),
        Some(at) => short(at.since(now)),
    }
}

fn json(status: &MeshStatus) -> serde_json::Value {
    let workloads = status.workloads.iter().map(|each| {
        serde_json::json!({
            "name": each.name, "identity": each.identity, "connected": each.connected, "state": state(each, status),
            "revision": each.revision, "rejected": each.rejected, "svid_expires_at": each.svid_expires_at.map(Timestamp::seconds),
            "serial": each.serial, "rotations": each.rotations,
        })
    });
    let errors = status.errors.iter().map(|error| {
        serde_json::json!({
            "file": error.file, "line": error.line, "column": error.column, "message": error.message,
            "since": error.since.to_string(),
        })
    });
    serde_json::json!({
        "revision": status.revision,
        "publish_to_last_ack_ms": status.publish_to_last_ack_ms,
        "errors": errors.collect::<Vec<_>>(),
        "workloads": workloads.collect::<Vec<_>>(),
    })
}

fn text(status: &MeshStatus, now: Timestamp) -> String {
    let mut rows =
        vec![["WORKLOAD", "IDENTITY", "CERTIFICATE", "ROTATIONS", "CONNECTED", "REVISION"].map(str::to_owned).to_vec()];
    for each in &status.workloads {
        rows.push(vec![
            each.name.to_string(),
            each.identity.to_string(),
            left(each.svid_expires_at, now),
            each.rotations.to_string(),
            if each.connected { "yes" } else { "NO" }.to_owned(),
            format!("{} {}", state(each, status), each.revision),
        ]);
    }
    let mut out = table(&rows);
    if let Some((head, rest)) = out.split_once('\n') {
        out = format!("{}\n{rest}", bold(head));
    }
    for each in &status.workloads {
        if let Some(reason) = &each.rejected {
            out.push_str(&format!("{} refuses the configuration: {}\n", each.name, plain(reason)));
        }
    }
    out.push_str(&format!("revision {}", status.revision));
    if let Some(ms) = status.publish_to_last_ack_ms {
        out.push_str(&format!(", in force everywhere {ms} ms after it was published"));
    }
    out.push('\n');
    for error in &status.errors {
        out.push_str(&format!(
            "configuration refused since {}, the last good one stays in force:\n  {}:{}:{}: {}\n",
            error.since, error.file, error.line, error.column, error.message
        ));
    }
    out
}
