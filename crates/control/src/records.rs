//! Recent decision records, bounded, by id.

use model::{DecisionId, DecisionRecord, Effect};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// Records that are kept; the oldest go first. Allowed ones never push out more than half.
const RECORDS_MAX: usize = 20_000;

/// Bytes of text that are kept; a compromised sidecar can fill this, and no more.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The records of the whole mesh.
#[derive(Debug, Default)]
pub(crate) struct Records {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<DecisionId, DecisionRecord>,
    allowed: VecDeque<DecisionId>,
    denied: VecDeque<DecisionId>,
    bytes: usize,
}

impl Kept {
    /// Forgets the oldest record of the longer of the two queues.
    fn forget_oldest(&mut self) {
        let queue = if self.allowed.len() > self.denied.len() { &mut self.allowed } else { &mut self.denied };
        if let Some(record) = queue.pop_front().and_then(|oldest| self.by_id.remove(&oldest)) {
            self.bytes = self.bytes.saturating_sub(bytes(&record));
        }
    }
}

/// About as many as the record's texts have.
fn bytes(record: &DecisionRecord) -> usize {
    let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let explained = record.explanation.as_ref().map_or(0, |explanation| {
        let policies = explanation.policies.iter().map(|policy| 128 + policy.failed.iter().map(String::len).sum::<usize>());
        let attributes = explanation.attributes.iter().map(|(path, value)| 48 + path.len() + value.len());
        policies.sum::<usize>() + attributes.sum::<usize>() + of(&explanation.nearest_miss)
    });
    512 + record.path.len() + of(&record.detail) + of(&record.principal) + of(&record.user) + explained
}

impl Records {
    /// Keeps a record. One id is kept once: a sidecar cannot rewrite what it told.
    pub(crate) fn keep(&self, record: DecisionRecord) {
        let mut kept = self.kept.lock();
        let (id, effect) = (record.id, record.effect);
        if kept.by_id.contains_key(&id) {
            return;
        }
        kept.bytes += bytes(&record);
        kept.by_id.insert(id, record);
        let queue = match effect {
            Effect::Allow => &mut kept.allowed,
            Effect::Deny => &mut kept.denied,
        };
        queue.push_back(id);
        while kept.allowed.len() > RECORDS_MAX / 2 || kept.denied.len() > RECORDS_MAX / 2 || kept.bytes > BYTES_MAX {
            kept.forget_oldest();
        }
    }

    /// The record of this id.
    pub(crate) fn find(&self, id: DecisionId) -> Option<DecisionRecord> {
        self.kept.lock().by_id.get(&id).cloned()
    }

    /// The newest records first, at most `limit`.
    pub(crate) fn recent(&self, limit: usize, only_denied: bool) -> Vec<DecisionRecord> {
        let kept = self.kept.lock();
        let newest = |queue: &VecDeque<DecisionId>| -> Vec<DecisionRecord> {
            queue.iter().rev().take(limit).filter_map(|id| kept.by_id.get(id)).cloned().collect()
        };
        let mut recent = newest(&kept.denied);
        if !only_denied {
            recent.extend(newest(&kept.allowed));
        }
        recent.sort_by_key(|record| std::cmp::Reverse(record.at));
        recent.truncate(limit);
        recent
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.lock().by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Reason, Revision, ServiceName, Timestamp, WorkloadName};

    fn record(number: u64) -> DecisionRecord {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let (workload, service) = (WorkloadName::parse("a/b").expect("name"), ServiceName::parse("a/b").expect("name"));
        let at = Timestamp::from_millis(number);
        DecisionRecord::refused(DecisionId::from_random(id), at, &workload, &service, Reason::NotPermitted, 403, Revision(1))
    }

    #[test]
    fn records_are_bounded_and_the_newest_come_first() {
        let records = Records::default();
        for number in 0..30_000 {
            records.keep(record(number));
        }
        assert_eq!(records.len(), RECORDS_MAX / 2);
        let recent = records.recent(2, true);
        assert_eq!(recent.iter().map(|record| record.at.millis()).collect::<Vec<_>>(), [29_999, 29_998]);
        assert!(records.find(record(0).id).is_none() && records.find(record(29_999).id).is_some());
    }

    #[test]
    fn large_records_are_bounded_by_their_bytes() {
        let records = Records::default();
        for number in 0..3_000 {
            records.keep(DecisionRecord { detail: Some("x".repeat(60_000)), ..record(number) });
        }
        assert!((1_000..1_200).contains(&records.len()), "{}", records.len());
        assert!(records.find(record(2_999).id).is_some());
    }

    #[test]
    fn a_record_cannot_be_rewritten() {
        let records = Records::default();
        records.keep(record(1));
        records.keep(DecisionRecord { effect: Effect::Allow, ..record(1) });
        assert_eq!(records.find(record(1).id).map(|record| record.effect), Some(Effect::Deny));
    }
}
