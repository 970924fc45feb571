//! What the policies in shadow mode would have changed, counted.

use crate::decision::Would;
use crate::ids::{DecisionId, PolicyId};
use crate::time::Timestamp;

/// LIMIT: policies of one report.
pub const TALLIES_MAX: usize = 1000;
/// LIMIT: decisions that stand for a count.
pub const EXAMPLES_MAX: usize = 5;

/// What one sidecar counted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShadowReport {
    /// `namespace/name`.
    pub workload: String,
    /// Names the run of the sidecar: counts grow within one. Empty in what an operator is told.
    #[serde(skip)]
    pub run: String,
    /// Calls that were decided a second time.
    pub tried: u64,
    /// Calls that could not be: a policy in shadow mode reads a body that was not there to be read.
    pub untried: u64,
    /// Why none is tried, if those of the configuration in force cannot be.
    pub refused: Option<String>,
    /// Every policy in shadow mode, and those that were; at most [`TALLIES_MAX`].
    pub tallies: Vec<ShadowTally>,
}

/// What one policy would have changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShadowTally {
    /// The policy; `-` where none can be named, `other` beyond the bound.
    pub policy: PolicyId,
    /// `permit` or `forbid`; empty if it is not in shadow mode any more.
    pub kind: String,
    /// `file:line`; empty as above.
    pub position: String,
    /// At most one of each answer; none: it changed nothing.
    pub counts: Vec<ShadowCount>,
}

/// How often a policy would have brought about one answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShadowCount {
    /// The answer.
    pub would: Would,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
    /// Decisions that were recorded, the newest last; at most [`EXAMPLES_MAX`].
    pub examples: Vec<DecisionId>,
}

impl ShadowCount {
    /// Of none so far.
    pub const fn new(would: Would, at: Timestamp) -> Self {
        Self { would, count: 0, first: at, last: at, examples: Vec::new() }
    }
}
