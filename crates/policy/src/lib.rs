//! May it happen: authorization policies, compiled once, asked for every request, explained on demand.
//!
//! Read [`compile`] and [`decide`] first. The policies are Cedar; this crate alone knows that. It is pure: no clock, no
//! file, no socket. Three rules differ from plain Cedar and are kept here: a policy that the strict validator doubts is
//! refused when it is loaded, any evaluation error denies, and an action that the schema does not name is never allowed.
//! Verifying who the caller and the user are is deliberately not here: a [`model::Question`] holds proven facts only.

mod body;
mod compile;
mod compiled;
mod conceal;
mod conjuncts;
mod country;
mod decide;
mod entities;
mod explain;
mod facts;
#[cfg(test)]
mod fixture;
mod flaw;
mod headers;
mod known;
mod lint;
mod reads;
mod retell;
mod shadow;
mod slice;
mod text;
mod unreadable;
mod vocabulary;

pub use body::{BodyFacts, BodyRefusal, read_body};
pub use compile::{Policies, TEXT_BYTES_MAX, compile, schema};
pub use decide::{Denied, Permit, decide, decide_by_reference};
pub use explain::explain;
pub use flaw::{Flaw, PolicyError};
pub use known::{Known, check};
pub use lint::{Lint, Provided, lint};
pub use shadow::{Shadow, Tried};
