//! The latest decisions of this sidecar, for whoever asks it on its own machine.

use crate::telemetry::decisions::Told;
use model::{DecisionId, DecisionRecord};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// LIMIT: decisions that are kept; the oldest go first.
const RECENT_MAX: usize = 128;

/// The latest decisions that were recorded, the newest last.
#[derive(Debug, Default)]
pub struct Recent {
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
enum Kept {
    /// Not explained yet; it keeps the policies that it was decided by.
    Asked(Arc<Told>),
    /// Explained, or told without a question.
    Explained(Arc<DecisionRecord>),
}

impl Kept {
    fn record(&self) -> &DecisionRecord {
        match self {
            Self::Asked(told) => &told.record,
            Self::Explained(record) => record,
        }
    }
}

/// One decision that was asked for.
#[derive(Debug)]
pub enum Found {
    /// To be explained: costs up to milliseconds.
    Asked(Arc<Told>),
    /// As it is.
    Explained(Arc<DecisionRecord>),
}

impl Recent {
    /// Keeps a decision.
    pub fn keep(&self, told: &Arc<Told>) {
        let mut kept = self.kept.lock();
        if kept.len() >= RECENT_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept::Asked(Arc::clone(told)));
    }

    /// Replaces a decision by its explained record.
    pub fn explained(&self, record: &DecisionRecord) {
        let mut kept = self.kept.lock();
        // The newest are explained first.
        if let Some(place) = kept.iter_mut().rev().find(|each| each.record().id == record.id) {
            *place = Kept::Explained(Arc::new(record.clone()));
        }
    }

    /// Lets go of the policies that decisions were made by: others are in force.
    pub fn let_go(&self) {
        for place in self.kept.lock().iter_mut() {
            if let Kept::Asked(told) = place {
                *place = Kept::Explained(Arc::new(told.record.clone()));
            }
        }
    }

    /// The decision of this id.
    pub fn find(&self, id: DecisionId) -> Option<Found> {
        let kept = self.kept.lock();
        Some(match kept.iter().rev().find(|each| each.record().id == id)? {
            Kept::Asked(told) => Found::Asked(Arc::clone(told)),
            Kept::Explained(record) => Found::Explained(Arc::clone(record)),
        })
    }

    /// All of them without their explanations, the newest first.
    pub fn list(&self) -> Vec<DecisionRecord> {
        let bare = |each: &Kept| {
            let record = each.record();
            DecisionRecord { explanation: None, ..record.clone() }
        };
        self.kept.lock().iter().rev().map(bare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Reason, Revision, ServiceName, Timestamp, WorkloadName};

    fn told(number: u8) -> Arc<Told> {
        let (workload, service) = (WorkloadName::parse("a/b").expect("name"), ServiceName::parse("a/b").expect("name"));
        let (id, at) = (DecisionId::from_random([number; 16]), Timestamp::from_millis(number.into()));
        let record = DecisionRecord::refused(id, at, &workload, &service, Reason::NotPermitted, 403, Revision(1));
        Arc::new(Told { record, question: None })
    }

    #[test]
    fn the_latest_are_kept_and_the_newest_come_first() {
        let recent = Recent::default();
        (0..200).for_each(|number| recent.keep(&told(number)));
        let list = recent.list();
        assert_eq!((list.len(), list[0].at.millis(), list[127].at.millis()), (RECENT_MAX, 199, 72));
        assert!(recent.find(DecisionId::from_random([71; 16])).is_none());
        let id = DecisionId::from_random([100; 16]);
        assert!(matches!(recent.find(id), Some(Found::Asked(_))));
        let detail = Some("explained".to_owned());
        recent.explained(&DecisionRecord { detail: detail.clone(), ..told(100).record.clone() });
        assert!(matches!(recent.find(id), Some(Found::Explained(record)) if record.detail == detail));
        recent.let_go();
        assert!(matches!(recent.find(DecisionId::from_random([150; 16])), Some(Found::Explained(_))));
    }
}
