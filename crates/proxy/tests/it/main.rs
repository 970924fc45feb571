//! The sidecar as a program: real process, real sockets, a control plane that the test plays, and callers of every kind.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod applied;
mod attacks;
mod claims;
mod control;
mod country;
mod edits;
mod ends;
mod explained;
mod faults;
mod flood;
mod headers;
mod holding;
mod hostile;
mod identity_socket;
mod keys;
mod lifecycle;
mod opaque;
mod reasons;
mod redaction;
mod resource_server;
mod seeds;
mod shadow;
mod sidecar;
mod streams;
mod token_attacks;
mod tokens;
mod traffic;
mod workload_api;
