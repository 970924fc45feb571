//! Who a call is for: reads and verifies OAuth2 access tokens, JWTs (RFC 7519, RFC 9068) and opaque ones (RFC 7662), and says which
//! keys to fetch and when.
//!
//! Read [`verify`] first: one function with every check in order. [`VerifiedClaims`] has no other constructor. Sockets are
//! deliberately not here: [`jwks`] says *what* to fetch and *when*, a program fetches.
//!
//! - `places.rs` finds the token in a request, and takes it out
//! - `verify.rs` the order of checks, `header.rs` and `claims.rs` the two halves of a token, `refusal.rs` every no
//! - `key_set.rs` an issuer's keys, `jwks.rs` their addresses and the fetch schedule
//! - `introspection.rs` which issuer an opaque token is for and what its answer is worth, `assertion.rs` a client that shows its key
//! - `require.rs` what an issuer's configuration demands beyond that, `revocation.rs` what the operator has revoked
//! - `holder.rs` whether the token is the caller's own, `dpop.rs` the proof of that, `replay.rs` that it comes once
//! - `challenge.rs` what a caller is told of the tokens that are wanted, `explain.rs` what a person is told of one
//! - `cache.rs` remembers what was verified, `inactive.rs` what its issuer would not have
//! - `json.rs` JSON in which no key stands twice

mod assertion;
mod cache;
mod challenge;
mod claims;
mod dpop;
mod explain;
mod header;
mod holder;
mod inactive;
pub mod introspection;
mod json;
pub mod jwks;
mod key_set;
mod places;
mod refusal;
mod replay;
mod require;
mod revocation;
mod verify;

pub use cache::{Generation, TokenCache};
pub use challenge::{Resource, challenges};
pub use dpop::Asked;
pub use explain::{Explained, Known, Outcome, Step, Verdict, explain};
pub use holder::{Caller, Nonces, held};
pub use inactive::InactiveTokens;
pub use jwks::KeySetError;
pub use key_set::{KeySet, KeySets};
pub use places::{Presented, Request, Scheme, presented, without_cookie, without_parameter};
pub use refusal::Refusal;
pub use replay::Proofs;
pub use revocation::Revocations;
pub use verify::{Rules, VerifiedClaims, digest_of, verify};
