//! The words of Rondel: plain values that every other crate speaks in.
//!
//! Read [`ids`] and [`snapshot`] first: who takes part, and what a proxy works from. Nothing here performs I/O, reads a
//! clock or makes a random number; a value that must have been *checked* (a verified peer, verified claims, a permit)
//! is deliberately not here but in the crate that makes the check.

pub mod authz;
pub mod country;
pub mod decision;
pub mod ids;
pub mod introspection;
pub mod issuers;
pub mod limits;
pub mod path;
pub mod reason;
pub mod roles;
pub mod shadow;
pub mod snapshot;
mod status;
pub mod time;
pub mod token;

pub use authz::{AttributeValue, AuthzRequest, Header, HeaderRead, Principal, Question, Source, User};
pub use country::{Country, CountryCode};
pub use decision::{Decision, DecisionRecord, Effect};
pub use ids::{DecisionId, PolicyId, Revision, ServiceName, SpiffeId, TrustDomain, WorkloadName};
pub use limits::{Limit, Limits};
pub use reason::{Reason, Side};
pub use roles::Roles;
pub use snapshot::Snapshot;
pub use time::Timestamp;
pub use token::ClaimPath;

/// An error with what caused it, each once: many errors repeat their cause in their own text.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = inner.source();
    }
    out
}
