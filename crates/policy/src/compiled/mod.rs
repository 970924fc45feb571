//! Policies as the request path runs them: translated once, evaluated against the question itself, without building anything.
//!
//! The reference evaluator walks a tree of shared nodes over a map of entities that is made for each request. Here a policy is a
//! list of conditions over [`code::Fact`]s, each read straight from the [`model::Question`]; an index leads a call to the policies
//! that can apply to it. What Cedar can say and this cannot translate is left to the reference evaluator ([`translate`] says `None`).

pub(crate) mod code;
mod constant;
pub(crate) mod evaluate;
mod extension;
pub(crate) mod index;
pub(crate) mod sets;
pub(crate) mod translate;

#[cfg(test)]
mod tests;
