//! The whole mesh, as scenarios named by their promise. Each starts its own `rondel up` on ports of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod demo;
mod http;
mod identity;
mod mesh;
mod partition;
mod promises;
mod revocation;
mod tokens;
