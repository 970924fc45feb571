//! Who a call is for: reads and verifies OAuth2 access tokens, JWTs (RFC 7519, RFC 9068) and opaque ones (RFC 7662), and says which
//! keys to fetch and when.
//!
//! Read [`verify`] first: one function with every check in order. [`VerifiedClaims`] has no other constructor. Sockets are
//! deliberately not here: [`jwks`] says *what* to fetch and *when*, a program fetches.
//!
//! - `bearer.rs` finds the token in a request's head
//! - `verify.rs` the order of checks, `header.rs` and `claims.rs` the two halves of a token, `refusal.rs` every no
//! - `key_set.rs` an issuer's keys, `jwks.rs` their addresses and the fetch schedule
//! - `introspection.rs` which issuer an opaque token is for and what its answer is worth, `assertion.rs` a client that shows its key
//! - `cache.rs` remembers what was verified, `inactive.rs` what its issuer would not have
//! - `json.rs` JSON in which no key stands twice

mod assertion;
mod bearer;
mod cache;
mod claims;
mod header;
mod inactive;
pub mod introspection;
mod json;
pub mod jwks;
mod key_set;
mod refusal;
mod verify;

pub use bearer::bearer;
pub use cache::TokenCache;
pub use inactive::InactiveTokens;
pub use jwks::KeySetError;
pub use key_set::{KeySet, KeySets};
pub use refusal::Refusal;
pub use verify::{VerifiedClaims, digest_of, verify};
