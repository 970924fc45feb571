//! `rondel issuers`: each issuer's keys, their age and what went wrong last, at every sidecar.

use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, plain, short, table};
use model::issuers::{IntrospectionReport, IssuerReport};
use model::{Timestamp, WorkloadName};
use std::process::ExitCode;
use wire::issuers::WorkloadIssuers;

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this workload's sidecar, `namespace/name`
    #[arg(long, value_parser = WorkloadName::parse)]
    workload: Option<WorkloadName>,
    #[command(flatten)]
    at: Where,
}

/// 0 if every sidecar has keys of every issuer and the last fetch and question went well, else 1.
pub(crate) async fn run(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let found = arguments.at.connect().await?.issuers(arguments.workload.as_ref(), DEADLINE).await?;
    let now = operator::now();
    match output {
        Output::Json => println!("{:#}", json(&found)),
        Output::Text => print!("{}", text(&found, now)),
    }
    let is_well = |report: &IssuerReport| {
        let answers = report.introspection.as_ref().is_none_or(|asked| asked.failure.is_none());
        report.failure.is_none() && !report.keys.is_empty() && answers
    };
    let is_good = found.iter().all(|each| each.told_at.is_some() && each.issuers.iter().all(is_well));
    Ok(if is_good || output == Output::Json { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn json(found: &[WorkloadIssuers]) -> serde_json::Value {
    let at = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let trouble = |failure: &Option<model::issuers::Trouble>| {
        failure.as_ref().map(|failure| serde_json::json!({ "at": failure.at.to_string(), "text": failure.text }))
    };
    let issuer = |report: &IssuerReport| {
        let keys = report.keys.iter().map(|key| serde_json::json!({ "id": key.id, "algorithm": key.algorithm }));
        serde_json::json!({
            "name": report.name, "issuer": report.issuer, "source": report.source, "keys": keys.collect::<Vec<_>>(),
            "ignored": report.ignored, "fetched_at": at(report.fetched_at), "next_at": at(report.next_at),
            "believed_until": at(report.believed_until), "failure": trouble(&report.failure),
            "introspection": report.introspection.as_ref().map(|asked| serde_json::json!({
                "endpoint": asked.endpoint, "authentication": asked.authentication, "prefix": asked.prefix,
                "answered_at": at(asked.answered_at), "asked": asked.asked, "failed": asked.failed, "failure": trouble(&asked.failure),
            })),
        })
    };
    let workloads = found.iter().map(|each| {
        serde_json::json!({
            "workload": each.workload, "told_at": at(each.told_at),
            "issuers": each.issuers.iter().map(issuer).collect::<Vec<_>>(),
        })
    });
    serde_json::json!({ "workloads": workloads.collect::<Vec<_>>() })
}

fn text(found: &[WorkloadIssuers], now: Timestamp) -> String {
    let mut rows =
        vec![["WORKLOAD", "ISSUER", "KEYS", "AGE", "NEXT", "BELIEVED FOR", "OPAQUE TOKENS"].map(str::to_owned).to_vec()];
    let mut told = String::new();
    for each in found {
        if each.told_at.is_none() {
            told.push_str(&format!("{}: its sidecar has not told of its issuers\n", each.workload));
        }
        for report in &each.issuers {
            rows.push(row(each, report, now));
            let asked = report.introspection.as_ref().and_then(|asked| asked.failure.as_ref());
            for (what, failure) in [("keys", report.failure.as_ref()), ("introspection", asked)] {
                if let Some(failure) = failure {
                    let ago = short(now.since(failure.at));
                    told.push_str(&format!("{} {}: {what}, {ago} ago: {}\n", each.workload, report.name, plain(&failure.text)));
                }
            }
            if report.ignored > 0 {
                told.push_str(&format!("{} {}: {} keys cannot be used\n", each.workload, report.name, report.ignored));
            }
        }
    }
    let out = table(&rows);
    match out.split_once('\n') {
        Some((head, rest)) => format!("{}\n{rest}{told}", bold(head)),
        None => out + &told,
    }
}

fn row(workload: &WorkloadIssuers, report: &IssuerReport, now: Timestamp) -> Vec<String> {
    let keys: Vec<String> =
        report.keys.iter().map(|key| format!("{} {}", key.id.as_deref().unwrap_or("(no id)"), key.algorithm)).collect();
    let until = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| short(at.since(now)));
    let believed = match report.believed_until {
        _ if report.keys.is_empty() => "-".to_owned(),
        None => "always".to_owned(),
        Some(at) if at <= now => "NO LONGER".to_owned(),
        Some(at) => short(at.since(now)),
    };
    vec![
        workload.workload.to_string(),
        report.name.clone(),
        if keys.is_empty() { "NONE".to_owned() } else { keys.join(", ") },
        report.fetched_at.map_or_else(|| "-".to_owned(), |at| short(now.since(at))),
        until(report.next_at),
        believed,
        report.introspection.as_ref().map_or_else(|| "-".to_owned(), opaque),
    ]
}

fn opaque(asked: &IntrospectionReport) -> String {
    let state = match (&asked.failure, asked.answered_at) {
        (Some(_), _) => "NO ANSWER",
        (None, Some(_)) => "answers",
        (None, None) => "not asked yet",
    };
    format!("{state}, {} asked, {} failed", asked.asked, asked.failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::issuers::{KeyReport, Trouble};

    #[test]
    fn a_sidecar_without_keys_stands_out_and_its_error_is_told() {
        let now = Timestamp::from_seconds(1000);
        let good = IssuerReport {
            name: "login".into(),
            keys: vec![KeyReport { id: Some("k1".into()), algorithm: "ES256".into() }],
            fetched_at: Some(Timestamp::from_seconds(900)),
            next_at: Some(Timestamp::from_seconds(1200)),
            believed_until: Some(Timestamp::from_seconds(87_300)),
            ..IssuerReport::default()
        };
        let trouble = Trouble { at: Timestamp::from_seconds(990), text: "status 503\nx".into() };
        let bad = IssuerReport { name: "other".into(), failure: Some(trouble), ..IssuerReport::default() };
        let workload = WorkloadName::parse("shop/web").expect("name");
        let away = WorkloadIssuers { workload: WorkloadName::parse("shop/away").expect("name"), told_at: None, issuers: vec![] };
        let found = [WorkloadIssuers { workload, told_at: Some(now), issuers: vec![good, bad] }, away];
        let text = text(&found, now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "shop/web  login   k1 ES256  1m 40s  3m 20s  23h 58m       -");
        assert_eq!(lines[2], "shop/web  other   NONE      -       -       -             -");
        assert_eq!(lines[3], "shop/web other: keys, 10s ago: status 503\\nx");
        assert_eq!(lines[4], "shop/away: its sidecar has not told of its issuers");
    }
}
