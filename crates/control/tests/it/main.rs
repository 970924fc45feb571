//! The control plane as a program: real process, real sockets, sidecars and operators of every kind.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod bundle_endpoint;
mod disk;
mod federation;
mod issue;
mod plane;
mod served_bundle;
mod spiffe_federation;
mod stream;
mod upstream;
