//! Decisions that were made, told and explained.

use super::shadow;
use crate::operator::{DEADLINE, Where};
use crate::output::{Output, bold, plain, table};
use model::decision::{Explanation, Outcome};
use model::{DecisionId, DecisionRecord, Effect, Reason};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Explains one decision; exit code 1 if the control plane does not know it.
pub(crate) async fn explain(id: DecisionId, at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let Some(record) = at.connect().await?.decision(id, DEADLINE).await? else {
        anyhow::bail!("decision `{id}` is not among the recent records; refused calls are kept, allowed ones only in part");
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&record)?),
        Output::Text => print!("{}", text(&record)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists recent decisions.
pub(crate) async fn decisions(denied: bool, limit: u32, at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let records = at.connect().await?.decisions(limit, denied, DEADLINE).await?;
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&records)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["AT", "DECISION", "EFFECT", "REASON", "WORKLOAD", "PRINCIPAL", "CALL"].map(str::to_owned).to_vec()];
    for record in &records {
        rows.push(vec![
            record.at.to_string(),
            record.id.to_string(),
            effect(record.effect).to_owned(),
            record.reason.clone().unwrap_or_default(),
            record.workload.clone(),
            record.principal.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{} {}", record.action, record.path),
        ]);
    }
    print!("{}", table(&rows));
    Ok(ExitCode::SUCCESS)
}

const fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    }
}

fn text(record: &DecisionRecord) -> String {
    let mut out = String::new();
    let reason = record.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
    let heading = format!("{} {}{reason}", effect(record.effect).to_uppercase(), record.id);
    let _ok = writeln!(out, "{}", bold(&plain(&heading)));
    let principal = record.principal.as_deref().unwrap_or("nobody who proved an identity");
    let user = record.user.as_deref().map_or(String::new(), |user| format!(" for user {user}"));
    let _ok = writeln!(out, "  who       {}", plain(&format!("{principal}{user}")));
    let _ok = writeln!(out, "  what      {}", plain(&format!("{} {} on {}", record.action, record.path, record.resource)));
    let _ok = writeln!(out, "  where     {} at revision {}, {}", plain(&record.workload), record.revision, record.at);
    if let Some(detail) = &record.detail {
        let _ok = writeln!(out, "  detail    {}", plain(detail));
    }
    if let Some(shadowed) = &record.shadow {
        shadow::told(&mut out, shadowed);
    }
    match &record.explanation {
        Some(explanation) => explained(&mut out, explanation),
        None => {
            let _ok = writeln!(out, "  policies  not asked: the call ended before");
            if let Some(reason) = record.reason.as_deref().and_then(Reason::named) {
                let _ok = writeln!(out, "  mend      {}", reason.fix());
            }
        }
    }
    out
}

fn explained(out: &mut String, explanation: &Explanation) {
    if let Some(miss) = &explanation.nearest_miss {
        let _ok = writeln!(out, "  nearest   {}", plain(miss));
    }
    let _ok = writeln!(out, "  policies");
    for policy in &explanation.policies {
        let mark = match policy.outcome {
            Outcome::Applied => "applied",
            Outcome::NotApplied => "did not apply",
            Outcome::Errored => "FAILED",
        };
        let which = format!("{} {} at {}", policy.kind, policy.id, policy.position);
        let _ok = writeln!(out, "    {}: {mark}", plain(&which));
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::decision::PolicyOutcome;
    use model::{PolicyId, Revision, Timestamp, WorkloadName};

    #[test]
    fn nothing_that_a_caller_says_moves_what_stands_beside_it() {
        let evil = "x\u{202e}y\u{1b}[2J\nALLOW";
        let workload = WorkloadName::parse("bank/payments").expect("a name");
        let service = model::ServiceName::parse("bank/payments").expect("a name");
        let (id, at) = (DecisionId::from_random([1; 16]), Timestamp::from_millis(0));
        let mut record = DecisionRecord::refused(id, at, &workload, &service, Reason::NotPermitted, 403, Revision(1));
        let said = || evil.to_owned();
        (record.reason, record.detail, record.principal, record.user) = (Some(said()), Some(said()), Some(said()), Some(said()));
        (record.workload, record.resource, record.action, record.path) = (said(), said(), said(), said());
        record.explanation = Some(Explanation {
            attributes: vec![(said(), said())],
            nearest_miss: Some(said()),
            policies: vec![PolicyOutcome {
                id: PolicyId::from_text(evil),
                kind: said(),
                position: said(),
                outcome: Outcome::NotApplied,
                failed: vec![said()],
            }],
        });
        let told = text(&record);
        assert!(!told.contains(['\u{202e}', '\u{1b}']) && !told.contains("\nALLOW"), "{told}");
        assert_eq!(told.matches("\\u{202e}").count(), 15, "{told}");
    }
}
