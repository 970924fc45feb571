//! What this crate promises, seen from outside: one binary, a module for each file of the crate.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole crate is a test; the linter knows only its functions as such, not what they call"
)]

mod authority;
mod bundle;
mod credentials;
mod csr;
mod handshake;
mod rehearsal;
mod signed;
mod spiffe_bundle;
mod spiffe_id;
mod spiffe_jwt_svid;
mod spiffe_table;
mod spiffe_x509_svid;
mod svid;
mod upstream;
