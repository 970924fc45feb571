//! What policies in shadow mode would have changed, by workload and policy, over time and within a bound.

use model::decision::Would;
use model::shadow::{EXAMPLES_MAX, ShadowCount, ShadowReport, ShadowTally};
use model::{DecisionId, PolicyId, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};

/// LIMIT: spans of time that are told apart of one count; older ones are joined in pairs, so that what is long ago is known coarsely.
const SPANS_MAX: usize = 256;
/// What was counted within so many milliseconds is one span.
const SPAN_MS: u64 = 10_000;
/// LIMIT: policies that are known of one workload; those that changed nothing for longest go first.
const POLICIES_MAX: usize = 2000;

/// The counts of the whole mesh.
#[derive(Debug, Default)]
pub(crate) struct Shadows {
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// One workload's.
#[derive(Debug, Default)]
struct Kept {
    /// What its sidecar said last: within one run, counts grow.
    last: Option<ShadowReport>,
    tried: History,
    untried: History,
    policies: BTreeMap<(PolicyId, Would), Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    history: History,
    first: Timestamp,
    last: Timestamp,
    examples: Vec<DecisionId>,
}

/// How often something happened, and about when.
#[derive(Debug, Default)]
struct History {
    spans: VecDeque<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: Timestamp,
    until: Timestamp,
    count: u64,
}

impl History {
    fn add(&mut self, now: Timestamp, count: u64) {
        if count == 0 {
            return;
        }
        match self.spans.back_mut() {
            Some(span) if now.millis().saturating_sub(span.from.millis()) < SPAN_MS => {
                (span.until, span.count) = (now, span.count + count);
            }
            _ => self.spans.push_back(Span { from: now, until: now, count }),
        }
        if self.spans.len() > SPANS_MAX {
            let recent = self.spans.split_off(SPANS_MAX / 2);
            let joined = self.spans.make_contiguous().chunks(2).filter_map(|pair| {
                let (first, last) = (pair.first()?, pair.last()?);
                Some(Span { from: first.from, until: last.until, count: pair.iter().map(|span| span.count).sum() })
            });
            self.spans = joined.chain(recent).collect();
        }
    }

    /// How often since then: a span that only ends later counts whole.
    fn since(&self, since: Timestamp) -> u64 {
        self.spans.iter().filter(|span| span.until >= since).map(|span| span.count).sum()
    }

    /// When the first span since then begins.
    fn first(&self, since: Timestamp) -> Option<Timestamp> {
        self.spans.iter().find(|span| span.until >= since).map(|span| span.from)
    }
}

impl Shadows {
    /// Takes what a sidecar says. The same report twice counts once.
    pub(crate) fn take(&self, report: ShadowReport, now: Timestamp) {
        let mut kept = self.kept.lock();
        let kept = kept.entry(report.workload.clone()).or_default();
        let before = kept.last.take().filter(|last| last.run == report.run);
        if let Some(later) = before.as_ref().filter(|last| last.tried > report.tried || last.untried > report.untried) {
            // Overtaken on its way.
            kept.last = Some(later.clone());
            return;
        }
        let (tried, untried) = before.as_ref().map_or((0, 0), |last| (last.tried, last.untried));
        kept.tried.add(now, report.tried.saturating_sub(tried));
        kept.untried.add(now, report.untried.saturating_sub(untried));
        for tally in &report.tallies {
            for count in &tally.counts {
                let known = before.as_ref().map_or(0, |last| counted(last, &tally.policy, count.would));
                kept.count(&tally.policy, count, count.count.saturating_sub(known), now);
            }
        }
        kept.last = Some(report);
    }

    /// What was counted since then, by workload: of one or of all.
    pub(crate) fn since(&self, workload: Option<&str>, since: Timestamp) -> Vec<ShadowReport> {
        let kept = self.kept.lock();
        let wanted = kept.iter().filter(|(name, _)| workload.is_none_or(|wanted| wanted == name.as_str()));
        wanted.map(|(name, kept)| kept.report(name, since)).collect()
    }

    /// Forgets the workloads that are no longer configured.
    pub(crate) fn retain(&self, is_configured: impl Fn(&str) -> bool) {
        self.kept.lock().retain(|name, _| is_configured(name));
    }
}

fn counted(report: &ShadowReport, policy: &PolicyId, would: Would) -> u64 {
    let tally = report.tallies.iter().find(|tally| tally.policy == *policy);
    tally.and_then(|tally| tally.counts.iter().find(|count| count.would == would)).map_or(0, |count| count.count)
}

impl Kept {
    fn count(&mut self, policy: &PolicyId, said: &ShadowCount, more: u64, now: Timestamp) {
        if more == 0 {
            return;
        }
        let key = (policy.clone(), said.would);
        if !self.policies.contains_key(&key) && self.policies.len() >= POLICIES_MAX {
            let oldest = self.policies.iter().min_by_key(|(_, counted)| counted.last).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.policies.remove(&oldest));
        }
        let counted = self.policies.entry(key).or_default();
        if counted.history.spans.is_empty() {
            counted.first = said.first;
        }
        counted.history.add(now, more);
        counted.last = said.last;
        let new = said.examples.iter().filter(|id| !counted.examples.contains(*id)).copied().collect::<Vec<_>>();
        counted.examples.extend(new);
        let surplus = counted.examples.len().saturating_sub(EXAMPLES_MAX);
        counted.examples.drain(..surplus);
    }

    fn report(&self, workload: &str, since: Timestamp) -> ShadowReport {
        let mut tallies: BTreeMap<&PolicyId, ShadowTally> = BTreeMap::new();
        for tally in self.last.iter().flat_map(|last| &last.tallies).filter(|tally| !tally.kind.is_empty()) {
            tallies.insert(&tally.policy, ShadowTally { counts: Vec::new(), ..tally.clone() });
        }
        for ((policy, would), counted) in &self.policies {
            let count = counted.history.since(since);
            let Some(first) = counted.history.first(since).map(|first| first.max(counted.first)) else { continue };
            // The first of all is known exactly.
            let first = if since <= counted.first { counted.first } else { first };
            let gone =
                || ShadowTally { policy: policy.clone(), kind: String::new(), position: String::new(), counts: Vec::new() };
            let examples = counted.examples.clone();
            let count = ShadowCount { would: *would, count, first, last: counted.last, examples };
            tallies.entry(policy).or_insert_with(gone).counts.push(count);
        }
        ShadowReport {
            workload: workload.to_owned(),
            run: String::new(),
            tried: self.tried.since(since),
            untried: self.untried.since(since),
            refused: self.last.as_ref().and_then(|last| last.refused.clone()),
            tallies: tallies.into_values().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(run: &str, tried: u64, denied: u64) -> ShadowReport {
        let count = |count| ShadowCount {
            would: Would::Deny,
            count,
            first: Timestamp::from_millis(500),
            last: Timestamp::from_millis(600 + count),
            examples: vec![DecisionId::from_random([u8::try_from(count).expect("small"); 16])],
        };
        ShadowReport {
            workload: "shop/server".into(),
            run: run.into(),
            tried,
            untried: 0,
            refused: None,
            tallies: vec![ShadowTally {
                policy: PolicyId::from_text("shop/p/x"),
                kind: "forbid".into(),
                position: "p.yaml:3".into(),
                counts: (denied > 0).then(|| count(denied)).into_iter().collect(),
            }],
        }
    }

    fn seen(shadows: &Shadows, since: u64) -> (u64, u64) {
        let reports = shadows.since(None, Timestamp::from_millis(since));
        let counts = |report: &ShadowReport| report.tallies[0].counts.first().map_or(0, |count| count.count);
        reports.first().map_or((0, 0), |report| (report.tried, counts(report)))
    }

    #[test]
    fn a_report_that_comes_twice_counts_once_and_a_new_run_begins_anew() {
        let shadows = Shadows::default();
        for (at, report, expected) in [
            (1_000, report("a", 10, 0), (10, 0)),
            (1_000, report("a", 10, 0), (10, 0)),
            (21_000, report("a", 15, 3), (15, 3)),
            (21_000, report("a", 14, 2), (15, 3)),
            (41_000, report("b", 4, 1), (19, 4)),
        ] {
            shadows.take(report, Timestamp::from_millis(at));
            assert_eq!(seen(&shadows, 0), expected, "{at}");
        }
        assert_eq!(seen(&shadows, 21_001), (4, 1));
        assert_eq!(seen(&shadows, 50_000), (0, 0));
        assert!(shadows.since(Some("shop/other"), Timestamp::default()).is_empty());
        let count = shadows.since(Some("shop/server"), Timestamp::default())[0].tallies[0].counts[0].clone();
        assert_eq!((count.first.millis(), count.last.millis(), count.examples.len()), (500, 601, 2));
        shadows.retain(|name| name != "shop/server");
        assert!(shadows.since(None, Timestamp::default()).is_empty());
    }

    #[test]
    fn what_is_long_ago_is_known_coarsely_and_none_of_it_is_lost() {
        let mut history = History::default();
        for number in 0..100_000 {
            history.add(Timestamp::from_millis(number * SPAN_MS), 1);
        }
        assert!(history.spans.len() <= SPANS_MAX, "{}", history.spans.len());
        assert_eq!(history.since(Timestamp::default()), 100_000);
        assert_eq!(history.since(Timestamp::from_millis(99_990 * SPAN_MS)), 10);
    }
}
