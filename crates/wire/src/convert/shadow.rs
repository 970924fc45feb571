//! Counts of what policies in shadow mode would have changed, as they travel.

use super::ConvertError;
use super::record::{bounded, would_from_wire, would_to_wire};
use crate::proto;
use model::shadow::{EXAMPLES_MAX, ShadowCount, ShadowReport, ShadowTally, TALLIES_MAX};
use model::{DecisionId, PolicyId, Timestamp};
use prost::Message;

/// LIMIT: bytes of one report.
pub(crate) const REPORT_BYTES_MAX: usize = 1024 * 1024;
/// LIMIT: bytes of the name of a run.
const RUN_BYTES_MAX: usize = 64;

/// A report on its way to the control plane or the operator. Tallies beyond the bounds are left out.
pub fn shadow_report_to_wire(report: &ShadowReport) -> proto::ShadowReport {
    let mut wire = proto::ShadowReport {
        workload: report.workload.clone(),
        run: report.run.clone(),
        tried: report.tried,
        untried: report.untried,
        refused: super::record::cut(report.refused.as_deref().unwrap_or_default()),
        tallies: report.tallies.iter().take(TALLIES_MAX).map(tally_to_wire).collect(),
    };
    while wire.encoded_len() > REPORT_BYTES_MAX {
        wire.tallies.truncate(wire.tallies.len() / 2);
    }
    wire
}

fn tally_to_wire(tally: &ShadowTally) -> proto::ShadowTally {
    let count = |count: &ShadowCount| proto::ShadowCount {
        would: would_to_wire(count.would).into(),
        count: count.count,
        first_ms: count.first.millis(),
        last_ms: count.last.millis(),
        examples: count.examples.iter().take(EXAMPLES_MAX).map(ToString::to_string).collect(),
    };
    proto::ShadowTally {
        policy: tally.policy.to_string(),
        kind: tally.kind.clone(),
        position: tally.position.clone(),
        counts: tally.counts.iter().map(count).collect(),
    }
}

/// A report that was received.
///
/// # Errors
/// - [`ConvertError`] naming the field: too large, too many, too long, an unknown answer, one that stands twice, not an id.
pub fn shadow_report_from_wire(wire: proto::ShadowReport) -> Result<ShadowReport, ConvertError> {
    let bytes = wire.encoded_len();
    if bytes > REPORT_BYTES_MAX {
        return Err(ConvertError::new("report", format!("{bytes} bytes, {REPORT_BYTES_MAX} at most")));
    }
    if wire.tallies.len() > TALLIES_MAX {
        return Err(ConvertError::new("tallies", format!("{} entries, {TALLIES_MAX} at most", wire.tallies.len())));
    }
    if wire.run.len() > RUN_BYTES_MAX {
        return Err(ConvertError::new("run", format!("{} bytes, {RUN_BYTES_MAX} at most", wire.run.len())));
    }
    bounded("workload", &wire.workload)?;
    bounded("refused", &wire.refused)?;
    let tally = |(index, tally)| tally_from_wire(tally).map_err(|error: ConvertError| error.within(&format!("tallies[{index}]")));
    Ok(ShadowReport {
        workload: wire.workload,
        run: wire.run,
        tried: wire.tried,
        untried: wire.untried,
        refused: (!wire.refused.is_empty()).then_some(wire.refused),
        tallies: wire.tallies.into_iter().enumerate().map(tally).collect::<Result<_, _>>()?,
    })
}

fn tally_from_wire(wire: proto::ShadowTally) -> Result<ShadowTally, ConvertError> {
    for (path, text) in [("policy", &wire.policy), ("kind", &wire.kind), ("position", &wire.position)] {
        bounded(path, text)?;
    }
    let mut counts: Vec<ShadowCount> = Vec::new();
    for (index, count) in wire.counts.into_iter().enumerate() {
        let count = count_from_wire(count).map_err(|error| error.within(&format!("counts[{index}]")))?;
        if counts.iter().any(|known| known.would == count.would) {
            return Err(ConvertError::new(format!("counts[{index}].would"), "it stands twice"));
        }
        counts.push(count);
    }
    Ok(ShadowTally { policy: PolicyId::from_text(&wire.policy), kind: wire.kind, position: wire.position, counts })
}

fn count_from_wire(wire: proto::ShadowCount) -> Result<ShadowCount, ConvertError> {
    if wire.examples.len() > EXAMPLES_MAX {
        return Err(ConvertError::new("examples", format!("{} entries, {EXAMPLES_MAX} at most", wire.examples.len())));
    }
    let example = |text: &String| DecisionId::parse(text).map_err(|error| ConvertError::new("examples", error));
    Ok(ShadowCount {
        would: would_from_wire(wire.would)?,
        count: wire.count,
        first: Timestamp::from_millis(wire.first_ms),
        last: Timestamp::from_millis(wire.last_ms),
        examples: wire.examples.iter().map(example).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::decision::Would;

    fn report() -> ShadowReport {
        let count = |would| ShadowCount {
            would,
            count: 7,
            first: Timestamp::from_millis(1),
            last: Timestamp::from_millis(2),
            examples: vec![DecisionId::from_random([1; 16])],
        };
        ShadowReport {
            workload: "shop/server".into(),
            run: "1".into(),
            tried: 9,
            untried: 1,
            refused: Some("p.yaml:3: no".into()),
            tallies: vec![ShadowTally {
                policy: PolicyId::from_text("shop/p/x"),
                kind: "forbid".into(),
                position: "p.yaml:3".into(),
                counts: Would::ALL.map(count).to_vec(),
            }],
        }
    }

    #[test]
    fn a_report_arrives_as_it_was_and_one_beyond_the_bounds_does_not() {
        assert_eq!(shadow_report_from_wire(shadow_report_to_wire(&report())), Ok(report()));
        let wire = || shadow_report_to_wire(&report());
        let first = |change: fn(&mut proto::ShadowTally)| {
            let mut wire = wire();
            change(&mut wire.tallies[0]);
            wire
        };
        for (wrong, path) in [
            (proto::ShadowReport { run: "x".repeat(65), ..wire() }, "run"),
            (proto::ShadowReport { workload: "x".repeat(5000), ..wire() }, "workload"),
            (proto::ShadowReport { tallies: vec![proto::ShadowTally::default(); 1001], ..wire() }, "tallies"),
            (first(|tally| tally.policy = "x".repeat(5000)), "tallies[0].policy"),
            (first(|tally| tally.counts[0].would = 9), "tallies[0].counts[0].would"),
            (first(|tally| tally.counts[1].would = 1), "tallies[0].counts[1].would"),
            (first(|tally| tally.counts[0].examples = vec!["d-1".into()]), "tallies[0].counts[0].examples"),
            (
                first(|tally| tally.counts[0].examples = vec![DecisionId::from_random([1; 16]).to_string(); 6]),
                "tallies[0].counts[0].examples",
            ),
        ] {
            assert_eq!(shadow_report_from_wire(wrong).map_err(|error| error.path), Err(path.to_owned()));
        }
        let many = ShadowReport { tallies: vec![report().tallies[0].clone(); 2000], ..report() };
        assert_eq!(shadow_report_from_wire(shadow_report_to_wire(&many)).expect("cut").tallies.len(), 1000);
    }
}
