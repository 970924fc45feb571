//! `rondel authz shadow`: what policies in shadow mode would have changed.

use crate::operator::{DEADLINE, Where, now};
use crate::output::{Output, bold, plain};
use model::decision::{Shadowed, Would};
use model::shadow::{ShadowReport, ShadowTally};
use model::{Timestamp, WorkloadName};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// Shows what was counted since then, or ever.
pub(crate) async fn run(
    workload: Option<&WorkloadName>,
    since: Option<Duration>,
    at: &Where,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let since = since.map(|ago| {
        let millis = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Timestamp::from_millis(now().millis().saturating_sub(millis))
    });
    let reports = at.connect().await?.shadow(workload, since, DEADLINE).await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&reports)?),
        Output::Text => print!("{}", text(&reports, since)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A time ago: a whole number and one of `s`, `m`, `h`, `d`.
pub(crate) fn ago(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as `30s`, `10m`, `12h` or `7d`");
    let seconds = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.get(..text.len() - 1).unwrap_or("").parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// What a record says of the policies in shadow mode.
pub(super) fn told(out: &mut String, shadowed: &Shadowed) {
    let by: Vec<&str> = shadowed.policies.iter().map(|policy| policy.as_str()).collect();
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
    let detail = shadowed.detail.as_deref().map_or(String::new(), |detail| format!(": {detail}"));
    let line = format!("{}{by}{detail}", words(shadowed.would));
    let _ok = writeln!(out, "  shadow    {}", plain(&line));
}

const fn words(would: Would) -> &'static str {
    match would {
        Would::Allow => "would be allowed",
        Would::Deny => "would be denied",
        Would::Fail => "would be denied for a failure",
    }
}

fn text(reports: &[ShadowReport], since: Option<Timestamp>) -> String {
    let since = since.map_or(String::new(), |since| format!(" since {since}"));
    if reports.is_empty() {
        return format!(
            "no policy is in shadow mode, or nothing was told of one yet{since}\n\
             write `mode: shadow` in an AuthorizationPolicy, or `@mode(\"shadow\")` before one policy\n"
        );
    }
    let mut out = String::new();
    for report in reports {
        let untried = match report.untried {
            0 => String::new(),
            count => format!(", {count} not tried for want of their body"),
        };
        let _ok = writeln!(out, "{}: {} calls tried{untried}{since}", bold(&plain(&report.workload)), report.tried);
        if let Some(refused) = &report.refused {
            let _ok = writeln!(out, "  NOT TRIED NOW: {}", plain(refused));
        }
        for tally in &report.tallies {
            tallied(&mut out, tally);
        }
    }
    out
}

fn tallied(out: &mut String, tally: &ShadowTally) {
    let place = if tally.kind.is_empty() {
        " (not in shadow mode any more)".to_owned()
    } else {
        format!(" ({} at {})", tally.kind, tally.position)
    };
    let policy = match tally.policy.as_str() {
        "-" => "(no single policy)",
        policy => policy,
    };
    let _ok = writeln!(out, "  {}{}", plain(policy), plain(&place));
    if tally.counts.is_empty() {
        let _ok = writeln!(out, "    changes nothing");
    }
    for count in &tally.counts {
        let _ok = writeln!(out, "    {} {}, first {}, last {}", count.would.as_str(), count.count, count.first, count.last);
        for id in count.examples.iter().rev() {
            let _ok = writeln!(out, "      rondel authz explain {id}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::shadow::ShadowCount;
    use model::{DecisionId, PolicyId};

    #[test]
    fn a_time_ago_is_a_number_and_a_unit() {
        for (text, seconds) in [("30s", 30), ("10m", 600), ("12h", 43_200), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(ago(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "10", "-1s", "1.5h", "1h30m", "99999999999999999999d", "18446744073709551615d", "10é"] {
            assert!(ago(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_report_says_what_was_tried_and_what_would_have_changed() {
        let at = Timestamp::from_millis(1_795_514_400_000);
        let count = ShadowCount {
            would: Would::Deny,
            count: 3,
            first: at,
            last: at,
            examples: vec![DecisionId::from_random([1; 16]), DecisionId::from_random([2; 16])],
        };
        let tally = |name: &str, counts: Vec<ShadowCount>| ShadowTally {
            policy: PolicyId::from_text(name),
            kind: "forbid".into(),
            position: "p.yaml:3".into(),
            counts,
        };
        let report = ShadowReport {
            workload: "bank/payments".into(),
            run: String::new(),
            tried: 9,
            untried: 1,
            refused: Some("p.yaml:4:1: no\u{1b}[2J".into()),
            tallies: vec![tally("bank/p/lower", vec![count]), tally("bank/p/quiet", Vec::new())],
        };
        let told = text(&[report], None);
        for said in [
            "9 calls tried, 1 not tried for want of their body\n",
            "NOT TRIED NOW: p.yaml:4:1: no\\u{1b}[2J\n",
            "  bank/p/lower (forbid at p.yaml:3)\n    would_deny 3, first ",
            "  bank/p/quiet (forbid at p.yaml:3)\n    changes nothing\n",
        ] {
            assert!(told.contains(said), "{said}\n{told}");
        }
        let newest = told.find(&DecisionId::from_random([2; 16]).to_string());
        assert!(newest < told.find(&DecisionId::from_random([1; 16]).to_string()) && newest.is_some(), "{told}");
        assert!(text(&[], None).contains("mode: shadow"));
    }
}
