//! `rondel authz check`: what is wrong with policies, and what is probably not meant.

use crate::output::{Output, plain};
use config::Mesh;
use model::snapshot::Protocol;
use policy::{Lint, Provided, Shadow};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

/// Every code that can be told, and what it stands for (`docs/policy-checks.md`).
const CODES: [(&str, &str); 27] = [
    ("RA001", "something else than a policy is wrong"),
    ("RA002", "the text is not Cedar"),
    ("RA003", "a type or an attribute is not that of the schema, or something optional is read without `has`"),
    ("RA004", "a body is read that nobody declared"),
    ("RA005", "a header that policies cannot read"),
    ("RA006", "a policy that can never apply"),
    ("RA007", "a policy that selects nobody"),
    ("RA008", "an `@id`, an annotation or a template that cannot stand"),
    ("RA009", "beyond a bound"),
    ("RA010", "two declarations that contradict each other"),
    ("RA011", "a text that reads otherwise than it looks"),
    ("RA101", "a policy that never matches where it is enforced"),
    ("RA102", "a permit whose calls are all forbidden"),
    ("RA103", "a permit for every caller of the mesh"),
    ("RA104", "a role that nobody can have"),
    ("RA105", "a role that the mesh does not declare"),
    ("RA106", "a caller that there is not"),
    ("RA107", "a country, where none is known"),
    ("RA108", "a user, where no token is accepted"),
    ("RA109", "a declared body that no policy reads"),
    ("RA110", "the header of the country, which anybody can claim"),
    ("RA111", "plaintext callers, where none gets in"),
    ("RA112", "a permit that adds nothing to another"),
    ("RA113", "a forbid that a call without a body passes"),
    ("RA114", "a policy for a namespace without workloads"),
    ("RA115", "a service that denies every call"),
    ("RA116", "a country that there cannot be"),
];

/// A directory, and how severely it is looked at.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The directory of YAML
    #[arg(required_unless_present = "list")]
    dir: Option<PathBuf>,
    /// Print every code and what it stands for
    #[arg(long, conflicts_with_all = ["dir", "deny", "allow"])]
    list: bool,
    /// What makes the exit code 1 beside errors
    #[arg(long, value_enum, value_name = "WHAT")]
    deny: Option<Deny>,
    /// Pass over the warnings of a code; may be given more than once
    #[arg(long, value_name = "CODE")]
    allow: Vec<String>,
}

/// What is not let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Deny {
    /// Warnings too.
    Warnings,
}

/// One thing that was found.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
struct Finding {
    file: String,
    line: u32,
    column: u32,
    code: &'static str,
    severity: &'static str,
    message: String,
}

/// Looks at every policy; exit code 1 for an error, and for a warning with `--deny warnings`.
pub(super) fn run(check: &Check, output: Output) -> anyhow::Result<ExitCode> {
    let Some(dir) = check.dir.as_deref().filter(|_| !check.list) else {
        list(output);
        return Ok(ExitCode::SUCCESS);
    };
    let is_warning = |code: &str| CODES.iter().any(|(known, _)| *known == code) && code.starts_with("RA1");
    if let Some(code) = check.allow.iter().find(|code| !is_warning(code)) {
        anyhow::bail!("--allow {code}: only warnings can be passed over; `rondel authz check --list` says which there are");
    }
    let sources = config::read(dir).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut found: Vec<Finding> = match config::parse(&sources) {
        Ok(mesh) => lints(&mesh).into_iter().map(warning).collect(),
        Err(errors) => errors
            .into_iter()
            .map(|error| Finding {
                file: error.file,
                line: error.line,
                column: error.column,
                code: error.code,
                severity: "error",
                message: error.message,
            })
            .collect(),
    };
    found.retain(|finding| !check.allow.iter().any(|code| code == finding.code));
    found.sort();
    let errors = found.iter().filter(|finding| finding.severity == "error").count();
    let warnings = found.len() - errors;
    let is_bad = errors > 0 || warnings > 0 && check.deny == Some(Deny::Warnings);
    match output {
        Output::Json => {
            let all = serde_json::json!({ "ok": !is_bad, "errors": errors, "warnings": warnings, "findings": found });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Output::Text => {
            for Finding { file, line, column, code, severity, message } in &found {
                println!("{}:{line}:{column}: {severity} {code}: {}", plain(file), plain(message));
            }
            let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            println!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
        }
    }
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn list(output: Output) {
    let severity = |code: &str| if code.starts_with("RA0") { "error" } else { "warning" };
    match output {
        Output::Json => {
            let all: Vec<_> = CODES
                .iter()
                .map(|(code, about)| serde_json::json!({ "code": code, "severity": severity(code), "about": about }))
                .collect();
            println!("{}", serde_json::Value::from(all));
        }
        Output::Text => CODES.iter().for_each(|(code, about)| println!("{code} {}: {about}", severity(code))),
    }
}

fn warning(lint: Lint) -> Finding {
    let policy = lint.policy.map_or(String::new(), |policy| format!("policy `{policy}`: "));
    let message = format!("{policy}{}", lint.message);
    Finding { file: lint.file, line: lint.line, column: lint.column, code: lint.code, severity: "warning", message }
}

/// What is so at every service that a policy selects, and what is so of a service or of the mesh.
fn lints(mesh: &Mesh) -> Vec<Lint> {
    let mut domains = vec![mesh.settings.trust_domain.clone()];
    domains.extend(mesh.settings.federation.iter().map(|each| each.trust_domain.clone()));
    let workloads: BTreeSet<_> = mesh.workloads.iter().map(|workload| workload.identity.clone()).collect();
    // Workloads of one service may accept the tokens of different issuers.
    let sites: BTreeMap<_, _> =
        mesh.workloads.iter().map(|workload| ((&workload.service, &workload.issuers), workload)).collect();
    // By place and code: how many services, and the last text.
    let mut seen: BTreeMap<(String, u32, u32, &'static str), (usize, Lint)> = BTreeMap::new();
    let mut all = Vec::new();
    for ((service, _), site) in &sites {
        let instances = mesh.workloads.iter().filter(|workload| workload.service == **service);
        let inbound: Vec<_> = instances.flat_map(|workload| &workload.inbound).collect();
        let (policies, tried, issuers) = (mesh.policies_of(site), mesh.shadow_of(site), mesh.issuers_of(site));
        let roles = &mesh.settings.roles;
        let Ok(compiled) = policy::compile(&policies, &issuers, roles) else { continue };
        let Ok(shadow) = Shadow::compile(&policies, &tried, &issuers, roles) else { continue };
        let provided = Provided {
            service,
            domains: &domains,
            workloads: &workloads,
            issuers: &issuers,
            roles,
            country: mesh.settings.country.as_ref(),
            country_database: mesh.settings.country_database.is_some(),
            opaque: inbound.iter().any(|each| each.protocol != Protocol::Http),
            http: inbound.iter().any(|each| each.protocol != Protocol::Tcp),
            permissive: inbound.iter().any(|each| each.permissive),
        };
        let both = [policies.as_slice(), tried.as_slice()].concat();
        for lint in policy::lint(&compiled, shadow.as_ref(), &both, &provided) {
            let key = (lint.file.clone(), lint.line, lint.column, lint.code);
            seen.entry(key).or_insert_with(|| (0, lint)).0 += 1;
        }
        if !inbound.is_empty() && !compiled.each().any(|(_, permits)| permits) {
            let message = format!("every call of `{service}` is denied: no permit selects it");
            let place = policies.first().map_or((".".to_owned(), 1), |policy| (policy.file.clone(), policy.line));
            all.push(Lint { file: place.0, line: place.1, column: 1, code: "RA115", policy: None, message });
        }
    }
    for selected in &mesh.policies {
        let selects = sites.keys().filter(|(service, _)| selected.selects(service)).count();
        let policy = &selected.policy;
        if selects == 0 {
            let message = format!("it selects nobody: no workload is in the namespace `{}`", selected.namespace);
            all.push(Lint { file: policy.file.clone(), line: policy.line, column: 1, code: "RA114", policy: None, message });
        }
        let lines = u32::try_from(policy.text.lines().count()).unwrap_or(u32::MAX);
        let is_own =
            |lint: &Lint| lint.file == policy.file && (policy.line..=policy.line.saturating_add(lines)).contains(&lint.line);
        all.extend(seen.values().filter(|(count, lint)| *count == selects && is_own(lint)).map(|(_, lint)| lint.clone()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::CODES;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_that_is_told_is_in_the_list() {
        let sources = [
            include_str!("check.rs")
                .split("#[cfg(test)]")
                .next()
                .unwrap_or_default()
                .split_once("/// A directory,")
                .map_or("", |(_, told)| told),
            include_str!("../../../policy/src/lint.rs"),
            include_str!("../../../policy/src/flaw.rs"),
            include_str!("../../../config/src/error.rs"),
        ];
        let told = sources
            .iter()
            .flat_map(|text| text.split('"').skip(1).step_by(2))
            .filter(|text| text.len() == 5 && text.starts_with("RA"));
        let known: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(told.collect::<BTreeSet<_>>(), known);
        assert_eq!(known.len(), CODES.len(), "each once");
    }
}
