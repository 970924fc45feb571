//! `rondel identity revoke`: certificates that are refused from now on.

use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, short, table};
use model::Revision;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wire::operator::{OperatorClient, WorkloadStatus};

/// For every connected sidecar to have put the revocation in force.
const IN_FORCE_DEADLINE: Duration = Duration::from_secs(15);

/// What to revoke.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Revoke {
    /// A whole SPIFFE ID (all its certificates), or a serial number as `rondel certs` shows it
    #[arg(value_name = "SPIFFE-ID|SERIAL")]
    what: String,
    /// Why, for whoever reads it later
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    at: Where,
}

/// How far a revocation has come.
pub(crate) struct InForce {
    /// Connected sidecars that have not put it in force.
    pub(crate) behind: Vec<String>,
    /// Sidecars that are not connected.
    pub(crate) away: Vec<String>,
    /// Since it was asked for.
    pub(crate) took: Duration,
}

/// Waits until every connected sidecar has put this revision in force.
pub(crate) async fn in_force(client: &mut OperatorClient, revision: Revision, begun: Instant) -> anyhow::Result<InForce> {
    loop {
        let workloads = client.status(DEADLINE).await?.workloads;
        let named = |are: &dyn Fn(&WorkloadStatus) -> bool| -> Vec<String> {
            workloads.iter().filter(|each| are(each)).map(|each| each.name.to_string()).collect()
        };
        let behind = named(&|each| each.connected && each.revision < revision);
        if behind.is_empty() || begun.elapsed() > IN_FORCE_DEADLINE {
            return Ok(InForce { behind, away: named(&|each| !each.connected), took: begun.elapsed() });
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// 0 once every connected sidecar refuses them, else 1.
pub(crate) async fn revoke(arguments: &Revoke, output: Output) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut client = arguments.at.connect().await?;
    let revocation = client.revoke(&arguments.what, &arguments.reason, DEADLINE).await?;
    let InForce { behind, away, took } = in_force(&mut client, revocation.revision, begun).await?;
    let now = operator::now();
    match output {
        Output::Json => {
            let revoked = revocation.revoked.iter().map(|each| {
                serde_json::json!({
                    "serial": each.serial, "identity": each.identity, "until": each.until.seconds(),
                    "revoked_at": each.revoked_at.seconds(), "reason": each.reason,
                })
            });
            println!(
                "{:#}",
                serde_json::json!({
                    "revoked": revoked.collect::<Vec<_>>(), "revision": revocation.revision,
                    "in_force_after_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "behind": behind,
                    "away": away,
                })
            );
        }
        Output::Text => {
            let mut rows = vec![["SERIAL", "IDENTITY", "WOULD HAVE LIVED"].map(str::to_owned).to_vec()];
            let row = |each: &wire::operator::RevokedRecord| {
                vec![each.serial.clone(), each.identity.clone(), short(each.until.since(now))]
            };
            rows.extend(revocation.revoked.iter().map(row));
            let out = table(&rows);
            match out.split_once('\n') {
                Some((head, rest)) => print!("{}\n{rest}", bold(head)),
                None => print!("{out}"),
            }
            if behind.is_empty() {
                println!("refused by every connected sidecar after {} ms (revision {})", took.as_millis(), revocation.revision);
            } else {
                println!("not in force yet at {} after {} s: `rondel status`", behind.join(", "), took.as_secs());
            }
            if !away.is_empty() {
                println!("away, and told when it comes back: {}", away.join(", "));
            }
            println!(
                "what is issued from now on is believed: by a new join token (`rondel join-token`; `rondel up` makes one by itself)"
            );
            println!("to keep the identity out, remove its workload from the configuration first");
        }
    }
    Ok(if behind.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
