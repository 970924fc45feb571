//! Who a call is for: reads and verifies OAuth2 access tokens that are JWTs (RFC 7519, RFC 9068), and says which keys to
//! fetch and when.
//!
//! Read [`verify`] first: one function with every check in order. [`VerifiedClaims`] has no other constructor. Sockets are
//! deliberately not here: [`jwks`] says *what* to fetch and *when*, a program fetches.
//!
//! - `bearer.rs` finds the token in a request's head
//! - `verify.rs` the order of checks, `header.rs` and `claims.rs` the two halves of a token, `refusal.rs` every no
//! - `key_set.rs` an issuer's keys, `jwks.rs` their addresses and the fetch schedule
//! - `cache.rs` remembers what was verified
//! - `json.rs` JSON in which no key stands twice

mod bearer;
mod cache;
mod claims;
mod header;
mod json;
pub mod jwks;
mod key_set;
mod refusal;
mod verify;

pub use bearer::bearer;
pub use cache::TokenCache;
pub use jwks::KeySetError;
pub use key_set::{KeySet, KeySets};
pub use refusal::Refusal;
pub use verify::{VerifiedClaims, verify};
