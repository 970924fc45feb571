//! `rondel authz can`: may this call be made?

use super::question::{self, Answer, word};
use crate::operator::{self, Where};
use crate::origin::Origin;
use crate::output::{Output, bold, plain};
use anyhow::{Context, bail};
use config::cases::{Call, CallUser};
use model::Timestamp;
use std::fmt::Write as _;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// LIMIT: bytes of a body that is asked about. No policy reads more.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A call that has not been made.
#[derive(Debug, clap::Args)]
pub(crate) struct Can {
    /// Who calls: a workload's `namespace/name`, a whole SPIFFE ID, or `unauthenticated`
    #[arg(long = "as", value_name = "WORKLOAD")]
    caller: String,
    /// The called service, `namespace/name`; needless where the caller calls one only
    #[arg(long, value_name = "SERVICE")]
    on: Option<String>,
    /// On whose behalf: the subject of the token
    #[arg(long, value_name = "SUBJECT")]
    user: Option<String>,
    /// The name of the token issuer; needless where there is one only
    #[arg(long, requires = "user")]
    issuer: Option<String>,
    /// A role of the user; may be given more than once
    #[arg(long = "role", requires = "user")]
    roles: Vec<String>,
    /// An OAuth scope of the user; may be given more than once
    #[arg(long = "scope", requires = "user")]
    scopes: Vec<String>,
    /// An attribute of the user as policies name it, `limit=1000`; the elements of a set with commas; may be given more than once
    #[arg(long = "attribute", value_name = "NAME=VALUE", requires = "user", value_parser = pair)]
    attributes: Vec<(String, String)>,
    /// The host that the request names
    #[arg(long)]
    host: Option<String>,
    /// A header line, `x-tenant: acme`; may be given more than once
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The body, or `@FILE`, or `@-` for what comes at the standard input; JSON unless a header says otherwise
    #[arg(long)]
    body: Option<String>,
    /// The country of the call, if the caller is believed about it or a database is asked
    #[arg(long)]
    country: Option<String>,
    /// The address from which the call comes
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// When, `2026-11-24T10:00:00Z`; now, if left out
    #[arg(long, value_parser = Timestamp::parse)]
    at: Option<Timestamp>,
    /// Ask a directory of YAML instead of the control plane
    #[arg(long, value_name = "DIR")]
    offline: Option<PathBuf>,
    /// The method, or `connect` for an opaque connection
    method: String,
    /// The path, as policies see it: normalised, without the query
    #[arg(default_value = "/")]
    path: String,
    #[command(flatten)]
    plane: Where,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write `NAME: VALUE`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Asks; exit code 0 if it may, 1 if it may not.
pub(super) async fn run(can: &Can, output: Output) -> anyhow::Result<ExitCode> {
    let mut origin = Origin::of(can.offline.as_deref(), &can.plane).await?;
    let caller = origin.caller(&can.caller)?;
    let service = origin.called(can.on.as_deref(), &caller).await.context("--on")?;
    let site = origin.site(&service).await?;
    let user = match &can.user {
        Some(subject) => Some(CallUser {
            issuer: can.issuer.clone(),
            subject: subject.clone(),
            roles: can.roles.clone(),
            scopes: can.scopes.clone(),
            attributes: question::typed(&can.attributes, &site.snapshot.issuers).map_err(anyhow::Error::msg)?,
        }),
        None => None,
    };
    let call = Call {
        caller: can.caller.clone(),
        on: can.on.clone(),
        user,
        method: can.method.clone(),
        path: can.path.clone(),
        host: can.host.clone(),
        headers: can.headers.clone(),
        body: can.body.as_deref().map(body).transpose()?,
        country: can.country.clone(),
        address: Some(can.address),
        at: can.at,
    };
    let answer = question::ask(&site, caller, &call, operator::now()).map_err(anyhow::Error::msg)?;
    let policies = match &can.offline {
        Some(dir) => format!("of {}", dir.display()),
        None => format!("in force, revision {}", site.snapshot.revision),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print!("{}", text(&answer, &policies)),
    }
    Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn body(text: &str) -> anyhow::Result<Vec<u8>> {
    let Some(name) = text.strip_prefix('@') else { return Ok(text.as_bytes().to_vec()) };
    let mut bytes = Vec::new();
    let read = match name {
        "-" => std::io::stdin().take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes),
        _ => std::fs::File::open(Path::new(name)).and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("--body {text}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > BODY_BYTES_MAX {
        bail!("--body {text}: more than {BODY_BYTES_MAX} bytes");
    }
    Ok(bytes)
}

fn text(answer: &Answer, policies: &str) -> String {
    let mut out = String::new();
    let heading = match (answer.allowed, answer.reason) {
        (true, _) => "ALLOW".to_owned(),
        (false, Some(reason)) => format!("DENY ({reason})"),
        (false, None) => "DENY".to_owned(),
    };
    let _ok = writeln!(out, "{}", bold(&heading));
    let request = &answer.request;
    let user = request.user.as_ref().map_or(String::new(), |user| format!(" for user {}", plain(&user.subject)));
    let _ok = writeln!(out, "  who       {}{user}", request.principal);
    let _ok = writeln!(out, "  what      {} {} on {}", request.action, request.path, request.resource);
    let _ok = writeln!(out, "  policies  {policies}");
    if !answer.determining.is_empty() {
        let ids: Vec<&str> = answer.determining.iter().map(model::PolicyId::as_str).collect();
        let _ok = writeln!(out, "  because   {}", plain(&ids.join(", ")));
    }
    if let Some(nearest) = answer.nearest() {
        let _ok = writeln!(out, "  nearest   {}", plain(nearest));
    }
    let Some(explanation) = &answer.explanation else { return out };
    for policy in &explanation.policies {
        let _ok =
            writeln!(out, "    {} {} at {}: {}", policy.kind, plain(policy.id.as_str()), policy.position, word(policy.outcome));
        for failed in &policy.failed {
            let _ok = writeln!(out, "      - {}", plain(failed));
        }
    }
    if !explanation.attributes.is_empty() {
        let _ok = writeln!(out, "  attributes");
        for (name, value) in &explanation.attributes {
            let _ok = writeln!(out, "    {} = {}", plain(name), plain(value));
        }
    }
    out
}
