//! What goes on by itself until it becomes an outage, and an operator must look at: told by `rondel status`, by `rondel up`, and
//! counted by a metric.

use crate::bundle_endpoint::Served;
use crate::ca::Ca;
use crate::federation::Federation;
use model::Timestamp;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// What is wrong, what it leads to, and what to do.
    pub(crate) message: String,
    /// Since when, if that is known.
    pub(crate) since: Option<Timestamp>,
}

/// All of this moment, the gravest first.
pub(crate) fn troubles(ca: &Ca, federation: &Federation, bundle_endpoint: &Served, now: Timestamp) -> Vec<Trouble> {
    let mut found = Vec::new();
    let ends = ca.authorities().active.not_after();
    if ends <= now {
        let message = "the authority has ended: no workload gets an SVID until `rondel ca rotate` makes another".to_owned();
        found.push(Trouble { message, since: Some(ends) });
    }
    if let Some((failure, since)) = ca.failing() {
        let what = if ends <= now { "" } else { &format!(" (the authority ends at {ends})") };
        let message = format!("the authority's rotation fails and is tried again{what}: {failure}");
        found.push(Trouble { message, since: Some(since) });
    }
    for (domain, foreign) in federation.each() {
        let Some(failure) = foreign.failure else { continue };
        let stays = if foreign.bundle.is_some() { "; the one fetched last stays in force" } else { "; nobody of it is believed" };
        let message = format!("the bundle of `{domain}` cannot be fetched{stays}: {failure}");
        found.push(Trouble { message, since: foreign.bundle.map(|bundle| bundle.fetched_at) });
    }
    if let Some(failure) = bundle_endpoint.state().failure {
        found.push(Trouble { message: format!("the bundle endpoint does not serve as it should: {failure}"), since: None });
    }
    found
}
