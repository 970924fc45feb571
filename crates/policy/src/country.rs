//! The country of a call: who reads it, and what is wrong with one that could not be looked up.

use crate::compile::Policies;
use crate::reads::Reads;
use model::Country;
use model::authz::Question;

/// The path of the country in a policy.
pub(crate) const COUNTRY: [&str; 3] = ["context", "source", "country"];

impl Policies {
    /// Whether a policy of this action reads the country of the call.
    pub fn reads_country(&self, action: &str) -> bool {
        self.actions.get(action).is_some_and(|action| action.slice.reads_country)
    }

    /// Whether a policy of any action does.
    pub fn reads_any_country(&self) -> bool {
        self.actions.values().any(|action| action.slice.reads_country)
    }
}

/// Whether something that reads `reads` can tell one country from another, or from none.
pub(crate) fn is_read(reads: &Reads) -> bool {
    reads.see(&COUNTRY)
}

/// Why nothing can be decided by the country of this call, in words.
pub(crate) fn flaw(question: &Question<'_>) -> Option<&'static str> {
    let is_unavailable = question.country == Country::Unavailable;
    is_unavailable.then_some("the country could not be looked up: the sidecar's database of countries cannot be read")
}
