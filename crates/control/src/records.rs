//! Recent decision records, bounded, by id.

use model::{DecisionId, DecisionRecord, Effect};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// Records that are kept; the oldest go first. Allowed ones never push out more than half.
const RECORDS_MAX: usize = 20_000;

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
}

impl Records {
    /// Keeps a record. One id is kept once: a sidecar cannot rewrite what it told.
    pub(crate) fn keep(&self, record: DecisionRecord) {
        let mut kept = self.kept.lock();
        let (id, effect) = (record.id, record.effect);
        if kept.by_id.contains_key(&id) {
            return;
        }
        kept.by_id.insert(id, record);
        let queue = match effect {
            Effect::Allow => &mut kept.allowed,
            Effect::Deny => &mut kept.denied,
        };
        queue.push_back(id);
        if queue.len() > RECORDS_MAX / 2
            && let Some(oldest) = queue.pop_front()
        {
            kept.by_id.remove(&oldest);
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
    fn a_record_cannot_be_rewritten() {
        let records = Records::default();
        records.keep(record(1));
        records.keep(DecisionRecord { effect: Effect::Allow, ..record(1) });
        assert_eq!(records.find(record(1).id).map(|record| record.effect), Some(Effect::Deny));
    }
}
