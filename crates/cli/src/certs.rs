//! `rondel certs`: every workload's certificate, and who signed it.

use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, table};
use crate::status::left;
use model::Timestamp;
use std::process::ExitCode;
use wire::operator::{AuthorityRecord, AuthorityStatus, MeshStatus};

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    at: Where,
}

/// 0 if no certificate has ended, else 1.
pub(crate) async fn run(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let mut client = arguments.at.connect().await?;
    let status = client.status(DEADLINE).await?;
    let authorities = client.authority_status(DEADLINE).await?;
    let now = operator::now();
    match output {
        Output::Json => println!("{:#}", json(&status, &authorities)),
        Output::Text => print!("{}", text(&status, &authorities, now)),
    }
    let has_ended = status.workloads.iter().any(|each| each.svid_expires_at.is_some_and(|end| end <= now));
    Ok(if has_ended && output == Output::Text { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn signer<'a>(id: Option<&str>, authorities: &'a AuthorityStatus) -> Option<&'a AuthorityRecord> {
    authorities.authorities.iter().find(|authority| Some(authority.id.as_str()) == id)
}

fn json(status: &MeshStatus, authorities: &AuthorityStatus) -> serde_json::Value {
    let workloads = status.workloads.iter().map(|each| {
        let signer = signer(each.authority.as_deref(), authorities);
        serde_json::json!({
            "name": each.name, "identity": each.identity, "serial": each.serial, "authority": each.authority,
            "authority_state": signer.map(|signer| signer.state.as_str()),
            "authority_expires_at": signer.map(|signer| signer.not_after.seconds()),
            "chain_length": signer.map(|signer| signer.chain.len() + 1),
            "expires_at": each.svid_expires_at.map(Timestamp::seconds), "key_exchange": each.key_exchange,
            "application_svids": each.application_svids,
            "revoked": authorities.revoked.iter().any(|revoked| Some(revoked.serial.as_str()) == each.serial.as_deref()),
        })
    });
    serde_json::json!({ "workloads": workloads.collect::<Vec<_>>() })
}

fn text(status: &MeshStatus, authorities: &AuthorityStatus, now: Timestamp) -> String {
    let head = ["WORKLOAD", "SERIAL", "LEFT", "AUTHORITY", "AUTHORITY LEFT", "CHAIN", "KEY EXCHANGE", "APP"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for each in &status.workloads {
        let signer = signer(each.authority.as_deref(), authorities);
        let is_revoked = authorities.revoked.iter().any(|revoked| Some(revoked.serial.as_str()) == each.serial.as_deref());
        rows.push(vec![
            each.name.to_string(),
            each.serial.clone().unwrap_or_else(|| "-".to_owned()),
            if is_revoked { "REVOKED".to_owned() } else { left(each.svid_expires_at, now) },
            match (signer, &each.authority) {
                (Some(signer), _) => format!("{} {}", short_id(&signer.id), signer.state),
                (None, Some(id)) => format!("{} retired", short_id(id)),
                (None, None) => "-".to_owned(),
            },
            signer.map_or_else(|| "-".to_owned(), |signer| left(Some(signer.not_after), now)),
            // The root is not sent.
            signer.map_or_else(|| "-".to_owned(), |signer| (signer.chain.len() + 1).to_string()),
            each.key_exchange.clone().unwrap_or_else(|| "-".to_owned()),
            each.application_svids.to_string(),
        ]);
    }
    let out = table(&rows);
    match out.split_once('\n') {
        Some((head, rest)) => format!("{}\n{rest}", bold(head)),
        None => out,
    }
}

/// Enough of a key id to tell authorities apart.
pub(crate) fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
