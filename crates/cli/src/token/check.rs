//! `rondel token check`: why a token is good or bad, step by step, and what a sidecar would answer.

use crate::operator::{self, Where};
use crate::origin::Origin;
use crate::output::{Output, bold, plain};
use anyhow::{Context, bail};
use model::snapshot::{KeySource, TokenIssuer};
use model::token::TokenUse;
use model::{Snapshot, Timestamp, User, WorkloadName};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use token::{
    Explained, KeySet, KeySetError, KeySets, Known, Outcome, Refusal, Request, Resource, Revocations, Rules, Step, Verdict,
};

/// LIMIT: bytes that are read of a file or the standard input.
const INPUT_BYTES_MAX: u64 = 1024 * 1024;
/// What stands for a value that is shown nowhere.
const REDACTED: &str = "(redacted)";

const EXAMPLES: &str = "Examples:
  pbpaste | rondel token check - --for shop/till
  rondel token check @token.jwt --for shop/till --offline mesh --keys jwks.json --at 2027-01-31T12:00:00Z";

/// A token, and where it would be sent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    /// The token; `-` for what comes at the standard input or `@FILE`, so that it stands in no history
    token: String,
    /// The workload that is called, `namespace/name`
    #[arg(long = "for", value_name = "WORKLOAD", value_parser = WorkloadName::parse)]
    workload: WorkloadName,
    /// Read a directory of YAML instead of asking the control plane; then it is not known what is revoked
    #[arg(long, value_name = "DIR")]
    offline: Option<PathBuf>,
    /// The keys of the token's issuer: a JWK set, or the trust bundle of a JWT-SVID. Those in the configuration are there anyway
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The certificate of whoever would send it, PEM, for a token that is bound to one
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// When: `2027-01-31T12:00:00Z`, or seconds since 1970; now, if left out
    #[arg(long, value_name = "TIME", value_parser = super::revoke::moment)]
    at: Option<Timestamp>,
    #[command(flatten)]
    plane: Where,
}

/// What came of it.
struct Answer {
    workload: WorkloadName,
    at: Timestamp,
    /// Where the issuer's keys come from, or why they are not at hand.
    keys: Option<String>,
    explained: Explained,
    /// `WWW-Authenticate` of the sidecar.
    challenges: Vec<String>,
    /// The user, as it may be shown.
    user: Option<serde_json::Value>,
    /// What would mend it, where that is known.
    hint: Option<String>,
}

/// The keys at hand, and where each issuer's come from or why they do not.
struct Keys {
    sets: KeySets,
    told: BTreeMap<String, String>,
    unusable: BTreeMap<String, anyhow::Error>,
}

/// Takes every step.
pub(super) async fn run(check: &Check, output: Output) -> anyhow::Result<ExitCode> {
    let sent = sent(&check.token)?;
    let certificate = check.certificate.as_deref().map(fingerprint).transpose()?;
    let mut origin = Origin::of(check.offline.as_deref(), &check.plane).await?;
    let workloads = origin.workloads();
    if !workloads.contains_key(&check.workload) {
        let near = config::suggestion(check.workload.as_str(), workloads.keys().map(WorkloadName::as_str));
        bail!("no workload `{}`{near}", check.workload);
    }
    let snapshot = origin.snapshot(&check.workload).await?;
    let at = check.at.unwrap_or_else(operator::now);
    let given = check.keys.as_deref().map(|file| Ok::<_, anyhow::Error>((file, read(file)?))).transpose().context("--keys")?;
    let mut keys = keys(&snapshot, given.as_ref().map(|(file, bytes)| (*file, bytes.as_slice())), at);
    let revoked = check.offline.is_none().then(|| Revocations::of(&snapshot.revoked_tokens));
    let (place, text) = placed(&sent, &snapshot);
    let rules = Rules { issuers: &snapshot.issuers, keys: &keys.sets, limits: &snapshot.limits, told: &snapshot.token.claims };
    let known = Known { revoked: revoked.as_ref(), certificate, sensitive: &snapshot.sensitive.user };
    let mut explained = token::explain(text, &rules, &known, at);
    if let Some(error) = explained.issuer.as_ref().and_then(|name| keys.unusable.remove(name)) {
        return Err(error);
    }
    if let Outcome::Refused(refusal) = &place.outcome {
        explained.verdict = Verdict::Refused(refusal.clone());
    }
    explained.steps.insert(0, place);
    let challenges = match &explained.verdict {
        Verdict::Refused(refusal) => token::challenges(Some(refusal), Some(&snapshot), Resource::of(&snapshot).as_ref()),
        Verdict::Good(_) | Verdict::Unknown(_) => Vec::new(),
    };
    let code = match &explained.verdict {
        Verdict::Good(_) => 0,
        Verdict::Refused(_) => 1,
        Verdict::Unknown(_) => 3,
    };
    let keys = explained.issuer.as_ref().and_then(|name| keys.told.remove(name));
    let user = explained.user.as_ref().map(|user| shown(user, &snapshot));
    let hint = hint(&explained, &origin, &check.workload);
    let answer = Answer { workload: check.workload.clone(), at, keys, explained, challenges, user, hint };
    match output {
        Output::Json => println!("{:#}", json(&answer)),
        Output::Text => print!("{}", text_of(&answer)),
    }
    Ok(ExitCode::from(code))
}

/// The token as it was given, perhaps with a scheme before it.
fn sent(given: &str) -> anyhow::Result<String> {
    let text = match (given, given.strip_prefix('@')) {
        ("-", _) => bounded(std::io::stdin()).context("the standard input")?,
        (_, Some(file)) => read(Path::new(file))?,
        (token, None) => token.as_bytes().to_vec(),
    };
    let text = String::from_utf8(text).ok().context("the token is not text")?;
    let text = text.trim();
    if text.is_empty() {
        bail!("there is no token: write it, `@FILE`, or `-` for the standard input");
    }
    Ok(text.to_owned())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let opened = std::fs::File::open(file).with_context(|| format!("`{}`", file.display()))?;
    bounded(opened).with_context(|| format!("`{}`", file.display()))
}

fn bounded(from: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > INPUT_BYTES_MAX {
        bail!("more than {INPUT_BYTES_MAX} bytes (limit `INPUT_BYTES_MAX`): no sidecar takes a token of more than `tokenBytes`");
    }
    Ok(bytes)
}

/// The SHA-256 of the first certificate of a PEM file.
fn fingerprint(file: &Path) -> anyhow::Result<[u8; 32]> {
    let pem = read(file).context("--certificate")?;
    let certificate = CertificateDer::from_pem_slice(&pem);
    let certificate =
        certificate.map_err(|error| anyhow::anyhow!("--certificate `{}`: no PEM certificate: {error}", file.display()))?;
    Ok(token::digest_of(certificate))
}

/// Whether the token would be found where the workload's tokens are taken from, and its text.
fn placed<'t>(sent: &'t str, snapshot: &Snapshot) -> (Step, &'t str) {
    let places = &snapshot.token;
    let scheme = sent.split_once(' ').filter(|(word, _)| ["bearer", "dpop"].iter().any(|each| word.eq_ignore_ascii_case(each)));
    let value = match scheme {
        Some(_) => sent.to_owned(),
        None => format!("Bearer {sent}"),
    };
    let request = Request { header: [value.as_bytes()].into_iter(), cookies: std::iter::empty(), query: None };
    let outcome = match token::presented(places, request) {
        Ok(Some(_)) => Outcome::Holds,
        Ok(None) => Outcome::Refused(Refusal::Malformed { rule: "there is no token" }),
        Err(refusal) => Outcome::Refused(refusal),
    };
    let found = if outcome == Outcome::Holds { "one token" } else { "not one token" };
    let step = Step {
        what: "place".to_owned(),
        wanted: wanted_place(places),
        found: format!("{found}, in {}", header(places)),
        outcome,
    };
    (step, scheme.map_or(sent, |(_, token)| token.trim_start()))
}

fn header(places: &TokenUse) -> String {
    match places.header.as_str() {
        "authorization" => "header `authorization` behind `Bearer` or `DPoP`".to_owned(),
        other => format!("header `{other}`"),
    }
}

fn wanted_place(places: &TokenUse) -> String {
    let cookie = places.cookie.as_ref().map(|name| format!("cookie `{name}`"));
    let query = places.query.as_ref().map(|name| format!("parameter `{name}` of the query"));
    let all: Vec<String> = [Some(header(places)), cookie, query].into_iter().flatten().collect();
    format!("one token in one place: {}", all.join(", "))
}

/// The keys of the workload's issuers, as far as they can be had without asking anybody.
fn keys(snapshot: &Snapshot, given: Option<(&Path, &[u8])>, at: Timestamp) -> Keys {
    let mut keys = Keys { sets: KeySets::default(), told: BTreeMap::new(), unusable: BTreeMap::new() };
    for issuer in &snapshot.issuers {
        let (read, told) = match given {
            Some((file, bytes)) => {
                let set = KeySet::parse(bytes, issuer, at, &snapshot.limits);
                (Some(set), format!("of `{}` (--keys)", file.display()))
            }
            None => at_hand(issuer, snapshot, at),
        };
        match read {
            Some(Ok(set)) => keys.sets = keys.sets.with(&issuer.name, Arc::new(set)),
            Some(Err(error)) => {
                let error = anyhow::Error::new(error).context(format!("the keys of issuer `{}`, {told}", issuer.name));
                keys.unusable.insert(issuer.name.clone(), error);
            }
            None => {}
        }
        keys.told.insert(issuer.name.clone(), told);
    }
    keys
}

/// An issuer's keys where they lie, and what is to be told of that.
fn at_hand(issuer: &TokenIssuer, snapshot: &Snapshot, at: Timestamp) -> (Option<Result<KeySet, KeySetError>>, String) {
    let limits = &snapshot.limits;
    let fetched = |from: &str| (None, format!("not at hand: sidecars fetch them from {from}; give them with --keys FILE"));
    match &issuer.keys {
        KeySource::Inline(jwks) => (Some(KeySet::parse(jwks.as_bytes(), issuer, at, limits)), "of the configuration".to_owned()),
        KeySource::File(file) => match read(Path::new(file)) {
            Ok(bytes) => (Some(KeySet::parse(&bytes, issuer, at, limits)), format!("of `{file}`")),
            Err(error) => (None, format!("not at hand: {error:#}; give them with --keys FILE")),
        },
        KeySource::JwtSvid(domain) => {
            let bundle = snapshot.bundles.iter().find(|bundle| bundle.trust_domain == *domain);
            let authorities = bundle.map(|bundle| bundle.jwt_authorities.as_slice()).unwrap_or_default();
            if authorities.is_empty() {
                return (None, format!("not at hand: they are in the bundle of trust domain {domain}; give it with --keys FILE"));
            }
            (Some(KeySet::of_bundle(authorities, issuer, at, limits)), format!("of the bundle of trust domain {domain}"))
        }
        KeySource::Discovery => fetched(&format!("where the metadata of {} say (`jwks_uri`)", issuer.issuer)),
        KeySource::JwksUri(uri) | KeySource::Workload { uri, .. } => fetched(uri),
    }
}

/// That the mesh knows the issuer, and this workload does not believe it.
fn hint(explained: &Explained, origin: &Origin, workload: &WorkloadName) -> Option<String> {
    let (Verdict::Refused(Refusal::IssuerUnknown { .. }), Origin::Directory(mesh)) = (&explained.verdict, origin) else {
        return None;
    };
    let said = &explained.steps.iter().find(|step| step.what == "iss")?.found;
    let known = mesh.issuers.iter().find(|issuer| model::ids::printable(&issuer.issuer) == *said)?;
    Some(format!("`{}` is a `TokenIssuer` of the mesh, and not among the `issuers` of `{workload}`", known.name))
}

/// A user without what is shown nowhere, and with every role that its roles are within.
fn shown(user: &User, snapshot: &Snapshot) -> serde_json::Value {
    let value = |(name, value): (&String, &model::AttributeValue)| {
        let is_hidden = snapshot.sensitive.user.contains(name);
        let value = if is_hidden { REDACTED.into() } else { serde_json::to_value(value).unwrap_or_default() };
        (name.clone(), value)
    };
    let attributes: serde_json::Map<String, serde_json::Value> = user.attributes.iter().map(value).collect();
    let within: BTreeSet<&String> = user.roles.iter().flat_map(|role| snapshot.roles.above(role)).collect();
    let within: Vec<&String> = within.into_iter().filter(|role| !user.roles.contains(role)).collect();
    serde_json::json!({
        "subject": user.subject, "roles": user.roles, "roles_within": within, "scopes": user.scopes, "attributes": attributes,
    })
}

fn json(answer: &Answer) -> serde_json::Value {
    let explained = &answer.explained;
    let (verdict, why, told) = match &explained.verdict {
        Verdict::Good(_) => ("good", None, None),
        Verdict::Refused(refusal) => {
            let reason = refusal.reason();
            let told = serde_json::json!({
                "status": reason.status(), "reason": reason.as_str(), "www_authenticate": answer.challenges,
            });
            ("refused", Some(refusal.to_string()), Some(told))
        }
        Verdict::Unknown(why) => ("unknown", Some((*why).to_owned()), None),
    };
    let step = |step: &Step| {
        let (outcome, why) = match &step.outcome {
            Outcome::Holds => ("holds", None),
            Outcome::Refused(refusal) => ("refused", Some(refusal.to_string())),
            Outcome::Unknown(why) => ("unknown", Some((*why).to_owned())),
        };
        serde_json::json!({ "step": step.what, "outcome": outcome, "wanted": step.wanted, "found": step.found, "why": why })
    };
    serde_json::json!({
        "verdict": verdict, "why": why, "workload": answer.workload.as_str(), "at": answer.at.to_string(),
        "issuer": explained.issuer, "keys": answer.keys, "steps": explained.steps.iter().map(step).collect::<Vec<_>>(),
        "user": answer.user, "provided": explained.provided, "answer": told, "hint": answer.hint,
    })
}

fn text_of(answer: &Answer) -> String {
    let mut out = String::new();
    let explained = &answer.explained;
    let heading = match &explained.verdict {
        Verdict::Good(_) => "GOOD".to_owned(),
        Verdict::Refused(refusal) => format!("REFUSED ({})", refusal.reason()),
        Verdict::Unknown(why) => format!("UNKNOWN: {why}"),
    };
    let _ok = writeln!(out, "{}", bold(&heading));
    let _ok = writeln!(out, "  for      {}, at {}", answer.workload, answer.at);
    if let Some(name) = &explained.issuer {
        let _ok = writeln!(out, "  issuer   {name}");
    }
    if let Some(keys) = &answer.keys {
        let _ok = writeln!(out, "  keys     {}", plain(keys));
    }
    tell_steps(&mut out, &explained.steps);
    if let Some(user) = &answer.user {
        let believed = if matches!(explained.verdict, Verdict::Good(_)) { "" } else { ", if it were good" };
        let _ok = writeln!(out, "  user{believed}");
        tell_user(&mut out, user);
    }
    match &explained.verdict {
        Verdict::Good(_) if !explained.provided.is_empty() => {
            let _ok = writeln!(out, "  provided that");
            for each in &explained.provided {
                let _ok = writeln!(out, "    - {}", plain(each));
            }
        }
        Verdict::Good(_) | Verdict::Unknown(_) => {}
        Verdict::Refused(refusal) => {
            let reason = refusal.reason();
            let is_unsigned = |step: &Step| step.what == "signature" && matches!(step.outcome, Outcome::Unknown(_));
            let or = match explained.steps.iter().any(is_unsigned) {
                true => ", or another: its signature could not be checked",
                false => "",
            };
            let _ok = writeln!(out, "  answer   {} {reason}{or}", reason.status());
            for each in &answer.challenges {
                let _ok = writeln!(out, "    WWW-Authenticate: {}", plain(each));
            }
        }
    }
    if let Some(hint) = &answer.hint {
        let _ok = writeln!(out, "  hint     {}", plain(hint));
    }
    out
}

/// Each step, and of those that do not hold what would do.
fn tell_steps(out: &mut String, steps: &[Step]) {
    let _ok = writeln!(out, "  steps");
    let width = steps.iter().map(|step| step.what.chars().count()).max().unwrap_or(0);
    for step in steps {
        let mark = match step.outcome {
            Outcome::Holds => "ok",
            Outcome::Refused(_) => "NO",
            Outcome::Unknown(_) => "?",
        };
        let _ok = writeln!(out, "    {mark:<2}  {:width$}  {}", plain(&step.what), plain(&step.found));
        let why = match &step.outcome {
            Outcome::Holds => continue,
            Outcome::Refused(_) => "",
            Outcome::Unknown(why) => &format!("; {why}"),
        };
        let _ok = writeln!(out, "{:1$}wanted: {2}{why}", "", 10 + width, plain(&step.wanted));
    }
}

/// What policies see of the user.
fn tell_user(out: &mut String, user: &serde_json::Value) {
    let words = |value: &serde_json::Value| match value {
        serde_json::Value::Array(all) if all.is_empty() => "(none)".to_owned(),
        serde_json::Value::Array(all) => all.iter().map(|each| each.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", "),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    for name in ["subject", "roles", "scopes"] {
        let within = match &user["roles_within"] {
            serde_json::Value::Array(all) if name == "roles" && !all.is_empty() => {
                format!(", and so {}", words(&user["roles_within"]))
            }
            _ => String::new(),
        };
        let _ok = writeln!(out, "    {name:<8} {}", plain(&(words(&user[name]) + &within)));
    }
    for (name, value) in user["attributes"].as_object().into_iter().flatten() {
        let _ok = writeln!(out, "    {} = {}", plain(name), plain(&words(value)));
    }
}
