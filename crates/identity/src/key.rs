//! The private key of a workload or an authority: ECDSA on P-256.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The largest PKCS#8 document that is looked at. One of a P-256 key has about 140 bytes.
const PKCS8_BYTES_MAX: usize = 1024;

/// Why there is no key, or nothing could be made with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFailure {
    /// The secure random generator failed. The machine is at fault.
    #[error("the secure random generator failed")]
    Random,
    /// The bytes are not a PKCS#8 document with a P-256 key. Whoever stored them must mend it.
    #[error("the key is not PKCS#8 with a P-256 key")]
    Rejected,
    /// The signature could not be computed. The machine is at fault.
    #[error("the signature could not be computed")]
    Sign,
    /// A request or certificate could not be encoded. We are at fault.
    #[error("the certificate or request could not be encoded")]
    Encoding,
}

/// A P-256 private key. Its memory is overwritten when it is dropped, and `Debug` shows nothing of it.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    signer: Signer,
}

impl PrivateKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// - [`KeyFailure::Random`] if the generator fails.
    pub fn generate() -> Result<Self, KeyFailure> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyFailure::Random)?;
        let document = pair.to_pkcs8v1().map_err(|_| KeyFailure::Random)?;
        Ok(Self { pkcs8: Zeroizing::new(document.as_ref().to_vec()), signer: Signer(Arc::new(pair)) })
    }

    /// Reads a key as [`to_pkcs8_der`](Self::to_pkcs8_der) writes it (RFC 5208, DER).
    ///
    /// # Errors
    /// - [`KeyFailure::Rejected`] if it is anything else, or a key of another curve.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyFailure> {
        if der.len() > PKCS8_BYTES_MAX {
            return Err(KeyFailure::Rejected);
        }
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| KeyFailure::Rejected)?;
        Ok(Self { pkcs8: Zeroizing::new(der.to_vec()), signer: Signer(Arc::new(pair)) })
    }

    /// The key as a PKCS#8 document (RFC 5208, DER), in memory that is overwritten when it is dropped.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// The signing half of a key, shared by all that sign with it. Holds no copy of the key outside the crypto library.
#[derive(Clone)]
pub(crate) struct Signer(Arc<EcdsaKeyPair>);

impl Signer {
    /// An ECDSA signature with SHA-256, DER (RFC 3279 §2.2.3).
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyFailure> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| KeyFailure::Sign)?;
        Ok(signature.as_ref().to_vec())
    }

    /// The public key as a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7, DER).
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(self)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(redacted)")
    }
}

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Self::sign(self, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;

    #[test]
    fn a_key_reads_back_what_it_writes_and_debug_shows_nothing_of_it() {
        let key = PrivateKey::generate().expect("key");
        let der = key.to_pkcs8_der();
        let again = PrivateKey::from_pkcs8_der(&der).expect("reads back");
        assert_eq!(again.signer().public_key_info(), key.signer().public_key_info());
        assert_eq!(format!("{key:?} {:?}", key.signer()), "PrivateKey(redacted) Signer(redacted)");
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).expect("key").to_pkcs8v1().expect("document");
        let good = PrivateKey::generate().expect("key").to_pkcs8_der();
        let cut = &good[..good.len() - 1];
        let long = vec![0x30; PKCS8_BYTES_MAX + 1];
        for (name, der) in [("p-384", p384.as_ref()), ("cut", cut), ("long", &long), ("empty", &[]), ("noise", &[7; 140])] {
            assert_eq!(PrivateKey::from_pkcs8_der(der).err(), Some(KeyFailure::Rejected), "{name}");
        }
    }
}
