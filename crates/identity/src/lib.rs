//! Who a workload is: keys, requests, SVIDs, trust bundles, the TLS handshake, and when to rotate.
//!
//! Read [`svid`] first (the rules that every certificate must keep) and then [`handshake`], which is the only place where
//! a [`VerifiedPeer`] is made. Nothing here opens a socket, reads a file or a clock: streams and `now` are arguments.
//! (rustls reads the clock for itself during a handshake.) Alone in this workspace, this crate names rustls, webpki,
//! rcgen and x509-parser.

pub mod authority;
pub mod bundle;
pub mod bundle_document;
pub mod credentials;
pub mod csr;
pub mod handshake;
mod jwk;
pub mod jwt_svid;
pub mod key;
mod provider;
pub mod rehearsal;
pub mod rotation;
pub mod signed;
pub mod svid;
mod verify;
pub mod web;

pub use authority::{Authority, IssuedSvid};
pub use bundle::TrustBundles;
pub use credentials::Credentials;
pub use handshake::{Alpn, ClientStream, HandshakeRefusal, ServerStream, Serves, VerifiedPeer};
pub use key::PrivateKey;
pub use provider::install_provider;
pub use svid::{PeerRefusal, X509Svid};

use key::KeyFailure;

/// `N` bytes of the operating system's secure random generator.
///
/// # Errors
/// - [`KeyFailure::Random`] if the generator fails.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], KeyFailure> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyFailure::Random)?;
    Ok(bytes)
}

/// The SHA-256 digest of `bytes` (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// A member of a JSON object that may be missing, but not null.
fn present<'de, D: serde::Deserializer<'de>, T: serde::Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _written = write!(out, "{byte:02x}");
        out
    })
}
