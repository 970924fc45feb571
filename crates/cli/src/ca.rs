//! `rondel ca`: the authority that signs certificates, and its rotation.

use crate::certs::short_id;
use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, plain, table};
use crate::status::left;
use model::Timestamp;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wire::operator::{AuthorityStatus, Rehearsed};

/// For the control plane's whole rehearsal.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(120);
/// For a new authority to be signed by whoever stands above it.
const PREPARE_DEADLINE: Duration = Duration::from_secs(45);
/// How often the control plane is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often those that hold a step up are named again.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// How to rotate.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Rotate {
    /// Change nothing: real handshakes between the real sidecars, with certificates of a shadow authority
    #[arg(long)]
    rehearse: bool,
    /// Begin it and do not wait; it goes on by itself
    #[arg(long, conflicts_with = "rehearse")]
    no_wait: bool,
    #[command(flatten)]
    at: Where,
}

/// 0 always: what is under way is no failure.
pub(crate) async fn status(at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let status = at.connect().await?.authority_status(DEADLINE).await?;
    match output {
        Output::Json => println!("{:#}", json(&status)),
        Output::Text => print!("{}", text(&status, operator::now())),
    }
    Ok(ExitCode::SUCCESS)
}

/// 0 once the old authority is retired (or all handshakes of the rehearsal succeeded), else 1. Ctrl-C ends the watching, not the rotation.
pub(crate) async fn rotate(arguments: &Rotate, output: Output) -> anyhow::Result<ExitCode> {
    if arguments.rehearse {
        return rehearse(&arguments.at, output).await;
    }
    let mut client = arguments.at.connect().await?;
    let before = client.authority_status(DEADLINE).await?;
    // One that is under way is watched to its end: begun before an interruption, or by the control plane itself.
    let mut status = if before.next_step.is_some() { before } else { client.rotate_authority(PREPARE_DEADLINE).await? };
    let begun = Instant::now();
    let mut told = Told::default();
    loop {
        told.tell(&status, output, begun);
        if status.next_step.is_none() || arguments.no_wait {
            break;
        }
        sleep(LOOK_EVERY).await;
        // A control plane that is restarted meanwhile goes on where it was.
        match client.authority_status(DEADLINE).await {
            Ok(now) => status = now,
            Err(_) => match arguments.at.connect().await {
                Ok(again) => client = again,
                Err(_) if told.away.is_none_or(|since| since.elapsed() > REMIND_EVERY) => {
                    told.away = Some(Instant::now());
                    note(output, "the control plane does not answer; the rotation goes on when it does", begun);
                }
                Err(_) => {}
            },
        }
    }
    if output == Output::Json {
        println!("{}", json(&status));
    } else if status.next_step.is_none() {
        let active = status.authorities.iter().find(|authority| authority.state == "active");
        let id = active.map_or("-", |active| short_id(&active.id));
        println!("the authority is rotated: {id} signs, and nothing of the old one is left ({} s)", begun.elapsed().as_secs());
    } else {
        println!("the rotation goes on by itself; `rondel ca status` shows how far it is");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was told of a rotation, so that a line says something new.
#[derive(Default)]
struct Told {
    stages: BTreeSet<String>,
    held: BTreeSet<(String, String)>,
    reminded: Option<Instant>,
    away: Option<Instant>,
}

impl Told {
    fn tell(&mut self, status: &AuthorityStatus, output: Output, begun: Instant) {
        for authority in &status.authorities {
            let said = match authority.state.as_str() {
                "prepared" => "is prepared: every sidecar is told to believe it",
                "active" if status.authorities.iter().any(|each| each.state == "prepared") => "signs until the next one does",
                "active" => "is active: it signs from now on",
                "old" => "is old: it signs no more",
                "tainted" => "is tainted: what it signed is renewed now",
                _ => continue,
            };
            if self.stages.insert(format!("{} {}", authority.id, authority.state)) {
                note(output, &format!("authority {} {said}", short_id(&authority.id)), begun);
            }
        }
        let Some(step) = &status.next_step else { return };
        let held: BTreeSet<(String, String)> = status.held_up_by.iter().cloned().collect();
        let is_due = self.reminded.is_none_or(|at| at.elapsed() > REMIND_EVERY);
        for (who, why) in held.iter().filter(|each| is_due || !self.held.contains(*each)) {
            note(output, &format!("`{step}` waits for {who}: {why}"), begun);
        }
        for (who, _) in self.held.difference(&held) {
            if !held.iter().any(|(other, _)| other == who) {
                note(output, &format!("{who} holds it up no more"), begun);
            }
        }
        if is_due {
            self.reminded = Some(Instant::now());
        }
        self.held = held;
    }
}

fn note(output: Output, text: &str, begun: Instant) {
    let text = plain(text);
    match output {
        Output::Text => println!("{:>6.1} s  {text}", begun.elapsed().as_secs_f32()),
        Output::Json => eprintln!("{text}"),
    }
}

async fn rehearse(at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let mut client = at.connect().await?;
    if output == Output::Text {
        println!("rehearsing: every sidecar gets a certificate of a shadow authority and calls its upstreams' sidecars with it");
    }
    let rehearsed = client.rehearse(REHEARSAL_DEADLINE).await?;
    let is_good = rehearsed.signer_failure.is_none()
        && rehearsed
            .proxies
            .iter()
            .all(|proxy| proxy.failure.is_none() && proxy.handshakes.iter().all(|handshake| handshake.failure.is_none()));
    match output {
        Output::Json => println!("{:#}", rehearsed_json(&rehearsed, is_good)),
        Output::Text => print!("{}", rehearsed_text(&rehearsed, is_good)),
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rehearsed_json(rehearsed: &Rehearsed, is_good: bool) -> serde_json::Value {
    let proxies = rehearsed.proxies.iter().map(|proxy| {
        let handshakes = proxy.handshakes.iter().map(|handshake| {
            serde_json::json!({
                "address": handshake.address, "identity": handshake.identity, "phase": handshake.phase, "failure": handshake.failure,
            })
        });
        serde_json::json!({
            "workload": proxy.workload, "failure": proxy.failure, "handshakes": handshakes.collect::<Vec<_>>(),
        })
    });
    serde_json::json!({
        "signer": rehearsed.signer, "signer_failure": rehearsed.signer_failure,
        "good": is_good, "proxies": proxies.collect::<Vec<_>>(), "issued": rehearsed.issued,
        "took_ms": u64::try_from(rehearsed.took.as_millis()).unwrap_or(u64::MAX),
    })
}

fn rehearsed_text(rehearsed: &Rehearsed, is_good: bool) -> String {
    let mut rows = vec![["WORKLOAD", "CALLS", "PHASE", "OUTCOME"].map(str::to_owned).to_vec()];
    let mut shaken = 0;
    for proxy in &rehearsed.proxies {
        if let Some(failure) = &proxy.failure {
            rows.push(vec![proxy.workload.clone(), "-".into(), "-".into(), format!("FAILED: {failure}")]);
        } else if proxy.handshakes.is_empty() {
            rows.push(vec![proxy.workload.clone(), "-".into(), "-".into(), "ok: calls nobody".into()]);
        }
        for handshake in &proxy.handshakes {
            shaken += usize::from(handshake.failure.is_none());
            let outcome = handshake.failure.as_ref().map_or_else(|| "ok".to_owned(), |failure| format!("FAILED: {failure}"));
            let callee = format!("{} at {}", handshake.identity, handshake.address);
            rows.push(vec![proxy.workload.clone(), callee, handshake.phase.clone(), outcome]);
        }
    }
    let mut out = table(&rows);
    if let Some((head, rest)) = out.split_once('\n') {
        out = format!("{}\n{rest}", bold(head));
    }
    match (rehearsed.signer.as_str(), &rehearsed.signer_failure) {
        (_, Some(failure)) => out.push_str(&format!("FAILED: nobody would sign another authority: {failure}\n")),
        ("command", None) => out.push_str(
            "not rehearsed: whether the signing program signs; a rotation asks it first, and changes nothing if it does not\n",
        ),
        (_, None) => {}
    }
    let (issued, ms) = (rehearsed.issued, rehearsed.took.as_millis());
    out.push_str(&format!("{issued} certificates of the shadow authority, {shaken} handshakes, {ms} ms; nothing has changed\n"));
    out.push_str(if is_good {
        "a rotation would go through: `rondel ca rotate`\n"
    } else {
        "a rotation would not go through: mend what failed first\n"
    });
    out
}

fn json(status: &AuthorityStatus) -> serde_json::Value {
    let authorities = status.authorities.iter().map(|authority| {
        serde_json::json!({
            "id": authority.id, "state": authority.state, "since": authority.since.seconds(), "source": authority.source,
            "not_before": authority.not_before.seconds(), "not_after": authority.not_after.seconds(), "alive": authority.alive,
            "chain_length": authority.chain.len(),
        })
    });
    let held = status.held_up_by.iter().map(|(who, why)| serde_json::json!({ "who": who, "why": why }));
    let federated = status.federated.iter().map(|each| {
        serde_json::json!({
            "trust_domain": each.trust_domain, "url": each.url, "authorities": each.authorities,
            "fetched_at": each.fetched_at.map(Timestamp::seconds), "next_at": each.next_at.seconds(), "failure": each.failure,
        })
    });
    let revoked = status.revoked.iter().map(|each| {
        serde_json::json!({
            "serial": each.serial, "identity": each.identity, "until": each.until.seconds(),
            "revoked_at": each.revoked_at.seconds(), "reason": each.reason,
        })
    });
    serde_json::json!({
        "trust_domain": status.trust_domain,
        "authorities": authorities.collect::<Vec<_>>(),
        "next_step": status.next_step,
        "held_up_by": held.collect::<Vec<_>>(),
        "federated": federated.collect::<Vec<_>>(),
        "revoked": revoked.collect::<Vec<_>>(),
        "bundle_endpoint": status.bundle_endpoint.as_ref().map(|each| serde_json::json!({
            "listen": each.listen, "sequence": each.sequence, "refresh_hint_seconds": each.refresh_hint.as_secs(),
            "given": each.given, "failure": each.failure,
        })),
    })
}

fn text(status: &AuthorityStatus, now: Timestamp) -> String {
    let titled = |rows: Vec<Vec<String>>| {
        let out = table(&rows);
        match out.split_once('\n') {
            Some((head, rest)) => format!("{}\n{rest}", bold(head)),
            None => out,
        }
    };
    let mut rows = vec![["AUTHORITY", "STATE", "SINCE", "LEFT", "SIGNED BY", "ALIVE"].map(str::to_owned).to_vec()];
    for each in &status.authorities {
        rows.push(vec![
            short_id(&each.id).to_owned(),
            each.state.clone(),
            each.since.to_string(),
            left(Some(each.not_after), now),
            each.source.clone(),
            each.alive.to_string(),
        ]);
    }
    let mut out = format!("trust domain {}\n{}", status.trust_domain, titled(rows));
    match &status.next_step {
        None => out.push_str("no rotation is under way\n"),
        Some(step) if status.held_up_by.is_empty() => out.push_str(&format!("a rotation is under way; next: {step}\n")),
        Some(step) => {
            out.push_str(&format!("a rotation is under way; `{step}` waits for:\n"));
            for (who, why) in &status.held_up_by {
                out.push_str(&format!("  {who}: {}\n", plain(why)));
            }
        }
    }
    if let Some(served) = &status.bundle_endpoint {
        let (listen, sequence, given) = (&served.listen, served.sequence, served.given);
        out.push_str(&format!("this bundle is served at {listen}: sequence {sequence}, given {given} times\n"));
        if let Some(failure) = &served.failure {
            out.push_str(&format!("  TROUBLE: {}\n", plain(failure)));
        }
    }
    if !status.federated.is_empty() {
        let mut rows = vec![["FOREIGN TRUST DOMAIN", "AUTHORITIES", "FETCHED", "NEXT", "ENDPOINT"].map(str::to_owned).to_vec()];
        for each in &status.federated {
            rows.push(vec![
                each.trust_domain.clone(),
                each.authorities.to_string(),
                each.fetched_at.map_or_else(|| "NEVER".to_owned(), |at| at.to_string()),
                left(Some(each.next_at), now).replace("EXPIRED", "now"),
                each.url.clone(),
            ]);
        }
        out.push_str(&titled(rows));
        for each in &status.federated {
            if let Some(failure) = &each.failure {
                out.push_str(&format!("  {}: {}\n", each.trust_domain, plain(failure)));
            }
        }
    }
    if !status.revoked.is_empty() {
        let mut rows = vec![["REVOKED", "IDENTITY", "UNTIL", "REASON"].map(str::to_owned).to_vec()];
        for each in &status.revoked {
            rows.push(vec![each.serial.clone(), each.identity.clone(), left(Some(each.until), now), each.reason.clone()]);
        }
        out.push_str(&titled(rows));
    }
    out
}
