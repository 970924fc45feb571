//! For tests and the demo only: a test PKI, a token issuer, and peers without manners.

pub mod countries;
pub mod issuer;
pub mod pki;
pub mod ports;
pub mod web;
