//! The one set of cryptographic choices: TLS 1.3 suites and key exchange groups, in our order.

use crate::bundle::TrustBundles;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use std::sync::{Arc, LazyLock};

/// The hybrid group alone: a peer without it gets no connection.
static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(CryptoProvider { kx_groups: vec![kx_group::X25519MLKEM768], ..CryptoProvider::clone(&PROVIDER) }));

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // AES-128 is about 40 % faster than AES-256, and no weaker link of the handshake.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // The hybrid group first: what is recorded today must not be readable by tomorrow's quantum computer.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

/// The provider of every handshake under these bundles.
pub(crate) fn provider(bundles: &TrustBundles) -> Arc<CryptoProvider> {
    Arc::clone(if bundles.is_post_quantum_required() { &POST_QUANTUM } else { &PROVIDER })
}

/// The signature algorithms that a chain or a handshake may use.
pub(crate) fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// Makes our cryptographic choices the default of the process, for libraries that ask for one.
///
/// Call it first in `main`. Calling it again changes nothing.
pub fn install_provider() {
    // The only error is that a default stands already: ours, from an earlier call.
    let _already = CryptoProvider::clone(&PROVIDER).install_default();
}
