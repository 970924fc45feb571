//! `rondel authz test`: cases that the policies must decide as it is written.

use super::question::{self, Answer};
use crate::origin::{Origin, Site};
use crate::output::{Output, bold, plain};
use anyhow::{Context, bail};
use config::cases::{Case, Expected};
use model::{Effect, PolicyId, ServiceName, Timestamp};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The moment of a case that does not say one: no policy of its method reads it.
const NO_TIME: Timestamp = Timestamp::from_millis(0);

/// Files of cases, and the policies that they are about.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// Files of cases (`kind: AuthorizationTest`), or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// The directory of YAML with the policies
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// Run only the cases whose name has this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Write the outcomes as JUnit XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// What came of one case.
#[derive(Debug, serde::Serialize)]
struct Ran {
    suite: String,
    name: String,
    file: String,
    line: u32,
    passed: bool,
    /// What was expected and what came; absent if it passed.
    problem: Option<String>,
    /// Why the policies said so; absent if it passed.
    explanation: Option<String>,
}

/// Runs every case; exit code 0 if all passed, 1 if one failed.
pub(super) async fn run(test: &Test, output: Output) -> anyhow::Result<ExitCode> {
    let cases = read(test)?;
    let mut origin = Origin::Directory(Box::new(crate::origin::mesh(&test.config)?));
    let mut sites: BTreeMap<ServiceName, Site> = BTreeMap::new();
    let mut ran = Vec::with_capacity(cases.len());
    for case in &cases {
        let outcome = one(case, &mut origin, &mut sites).await;
        let (problem, explanation) = match outcome {
            Ok(answer) => (mismatch(&case.expected, &answer), answer.nearest().map(str::to_owned)),
            Err(error) => (Some(format!("cannot be asked: {error:#}")), None),
        };
        let (suite, name, file) = (case.suite.clone(), case.name.clone(), case.file.clone());
        let explanation = explanation.filter(|_| problem.is_some());
        ran.push(Ran { suite, name, file, line: case.line, passed: problem.is_none(), problem, explanation });
    }
    if let Some(path) = &test.junit {
        std::fs::write(path, super::junit::document(ran.iter().map(Ran::as_junit)))
            .with_context(|| format!("--junit {}", path.display()))?;
    }
    let failed = ran.iter().filter(|ran| !ran.passed).count();
    match output {
        Output::Json => {
            let all = serde_json::json!({ "cases": ran.len(), "passed": ran.len() - failed, "failed": failed, "results": ran });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Output::Text => print!("{}", text(&ran, failed)),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cases of all files, in their order.
fn read(test: &Test) -> anyhow::Result<Vec<Case>> {
    let mut sources = Vec::new();
    for path in &test.paths {
        if path.is_dir() {
            let found = config::read(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
            let named = |source: config::Source| config::Source {
                file: format!("{}", path.join(source.file).display()),
                text: source.text,
            };
            sources.extend(found.into_iter().map(named));
        } else {
            sources.push(config::read_one(path)?);
        }
    }
    let (mut cases, mut errors) = (Vec::new(), Vec::new());
    for source in &sources {
        match config::cases::parse(source) {
            Ok(found) => cases.extend(found),
            Err(found) => errors.extend(found),
        }
    }
    if !errors.is_empty() {
        let told: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
        bail!("the cases cannot be read:{}", told.concat());
    }
    if let Some(part) = &test.filter {
        cases.retain(|case| case.name.contains(part.as_str()));
    }
    if cases.is_empty() {
        bail!("no case to run: a run of nothing shows nothing");
    }
    Ok(cases)
}

/// Asks the question of one case.
async fn one(case: &Case, origin: &mut Origin, sites: &mut BTreeMap<ServiceName, Site>) -> anyhow::Result<Answer> {
    let call = &case.call;
    let caller = origin.caller(&call.caller).context("`as`")?;
    let service = origin.called(call.on.as_deref(), &caller).await?;
    if !sites.contains_key(&service) {
        let site = origin.site(&service).await?;
        sites.insert(service.clone(), site);
    }
    let site = sites.get(&service).context("no such workload")?;
    known(&case.expected, site)?;
    if call.at.is_none() && site.policies.reads_time(&call.method) {
        bail!("policies of {} read the time: write `request.at`, or the case shows another thing every day", call.method);
    }
    if call.address.is_none() && site.policies.reads_address(&call.method) {
        bail!("policies of {} read the caller's address: write `request.address`", call.method);
    }
    question::ask(site, caller, call, NO_TIME).map_err(anyhow::Error::msg)
}

/// What is expected must be possible: the named policies are there, and can determine such a decision.
fn known(expected: &Expected, site: &Site) -> anyhow::Result<()> {
    let known: BTreeMap<&str, bool> = site.policies.each().map(|(id, permits)| (id.as_str(), permits)).collect();
    for id in &expected.by {
        match known.get(id.as_str()) {
            None => {
                let is_tried = site
                    .snapshot
                    .shadow
                    .iter()
                    .any(|tried| id.strip_prefix(tried.name.as_str()).is_some_and(|own| own.starts_with('/')));
                if is_tried {
                    bail!("`expect.by`: `{}` is in shadow mode, where it decides nothing", model::ids::printable(id));
                }
                let near = config::suggestion(id, known.keys().copied());
                bail!("`expect.by`: no policy `{}` at `{}`{near}", model::ids::printable(id), site.snapshot.workload);
            }
            Some(permits) if *permits != (expected.effect == Effect::Allow) => {
                let (kind, other) = if *permits { ("permit", "denies") } else { ("forbid", "allows") };
                bail!("`expect.by`: `{id}` is a {kind}, which never {other} a call");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What was expected and did not come.
fn mismatch(expected: &Expected, answer: &Answer) -> Option<String> {
    let reason = answer.reason.map_or(String::new(), |reason| format!(" ({reason})"));
    let by = |ids: &[PolicyId]| ids.iter().map(PolicyId::as_str).collect::<Vec<_>>().join(", ");
    let got = format!("{}{reason}", if answer.allowed { "allow" } else { "deny" });
    let got = if answer.determining.is_empty() { got } else { format!("{got} by {}", by(&answer.determining)) };
    let is_allow = expected.effect == Effect::Allow;
    let word = if is_allow { "allow" } else { "deny" };
    if is_allow != answer.allowed {
        return Some(format!("expected {word}, got {got}"));
    }
    if expected.reason.is_some() && expected.reason != answer.reason {
        return Some(format!("expected {word} ({}), got {got}", expected.reason.map_or("", |reason| reason.as_str())));
    }
    let mut wanted = expected.by.clone();
    wanted.sort();
    wanted.dedup();
    let is_same = wanted.is_empty() || wanted.iter().map(String::as_str).eq(answer.determining.iter().map(PolicyId::as_str));
    (!is_same).then(|| format!("expected {word} by {}, got {got}", wanted.join(", ")))
}

impl Ran {
    fn as_junit(&self) -> super::junit::Row<'_> {
        let place = format!("{}:{}", self.file, self.line);
        super::junit::Row {
            suite: &self.suite,
            name: &self.name,
            place,
            problem: self.problem.as_deref(),
            detail: self.explanation.as_deref(),
        }
    }
}

fn text(ran: &[Ran], failed: usize) -> String {
    let mut out = String::new();
    for ran in ran.iter().filter(|ran| !ran.passed) {
        let _ok = writeln!(out, "{} {} / {}", bold("FAILED"), plain(&ran.suite), plain(&ran.name));
        let _ok = writeln!(out, "  at        {}:{}", ran.file, ran.line);
        let _ok = writeln!(out, "  problem   {}", plain(ran.problem.as_deref().unwrap_or_default()));
        if let Some(explanation) = &ran.explanation {
            let _ok = writeln!(out, "  nearest   {}", plain(explanation));
        }
    }
    let mut suites: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for ran in ran {
        let (all, passed) = suites.entry(&ran.suite).or_default();
        *all += 1;
        *passed += usize::from(ran.passed);
    }
    for (suite, (all, passed)) in suites {
        let _ok = writeln!(out, "{}: {passed} of {all} passed", plain(suite));
    }
    let cases = if ran.len() == 1 { "case" } else { "cases" };
    let _ok = writeln!(out, "{} {cases}: {} passed, {failed} failed", ran.len(), ran.len() - failed);
    out
}
