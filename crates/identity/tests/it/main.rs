//! What this crate promises, seen from outside: one binary, a module for each file of the crate.

mod authority;
mod bundle;
mod credentials;
mod csr;
mod handshake;
mod signed;
mod svid;
