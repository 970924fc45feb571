//! The certificate signing request (PKCS#10, RFC 2986): how a public key travels to the authority, with proof of possession.
//!
//! The authority believes nothing in a request but the key: what it asks for beside it is never read.

use crate::key::{KeyFailure, PrivateKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use model::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// LIMIT: bytes of a request. Ours have about 400; a longer one carries what nobody reads.
pub const CSR_BYTES_MAX: usize = 8192;
/// An uncompressed P-256 point: a tag and two coordinates (SEC 1 §2.3.3).
const POINT_BYTES: usize = 65;

/// Why a request is refused. Whoever made it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrRefusal {
    /// It is longer than [`CSR_BYTES_MAX`].
    #[error("the request has {bytes} bytes, more than {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// It is not a DER-encoded PKCS#10 request and nothing else.
    #[error("the request is not PKCS#10 in DER")]
    Malformed,
    /// Its key is not an uncompressed P-256 point.
    #[error("the request's key is not a P-256 key")]
    KeyKind,
    /// It is signed by another algorithm than ECDSA with SHA-256.
    #[error("the request is not signed by ECDSA with SHA-256")]
    Algorithm,
    /// Whoever made it does not hold the key.
    #[error("the request's signature does not match its key")]
    Signature,
}

/// A public key whose private half the requester holds. Evidence: only [`prove`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenPublicKey {
    point: Vec<u8>,
}

/// Makes a request for `key` that names `id` (a courtesy to the reader: the authority decides the identity). DER.
///
/// # Errors
/// - [`KeyFailure`] if it cannot be encoded or signed.
pub fn build(key: &PrivateKey, id: &SpiffeId) -> Result<Vec<u8>, KeyFailure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(|_| KeyFailure::Encoding)?)];
    let request = params.serialize_request(key.signer()).map_err(|_| KeyFailure::Sign)?;
    Ok(request.der().to_vec())
}

/// Takes the public key out of a request, and nothing else, once the request's own signature proved possession of it.
///
/// # Errors
/// - [`CsrRefusal`], naming what is wrong.
pub fn prove(csr_der: &[u8]) -> Result<ProvenPublicKey, CsrRefusal> {
    if csr_der.len() > CSR_BYTES_MAX {
        return Err(CsrRefusal::TooLarge { bytes: csr_der.len(), max: CSR_BYTES_MAX });
    }
    let (rest, request) = X509CertificationRequest::from_der(csr_der).map_err(|_| CsrRefusal::Malformed)?;
    let info = &request.certification_request_info;
    if !rest.is_empty() || request.signature_value.unused_bits != 0 {
        return Err(CsrRefusal::Malformed);
    }
    let point = p256_point(&info.subject_pki)?;
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CsrRefusal::Algorithm);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| CsrRefusal::Signature)?;
    Ok(ProvenPublicKey { point: point.to_vec() })
}

fn p256_point<'a>(info: &'a SubjectPublicKeyInfo<'_>) -> Result<&'a [u8], CsrRefusal> {
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let key = &info.subject_public_key;
    let sound = info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256)
        && key.unused_bits == 0
        && key.data.len() == POINT_BYTES
        && key.data.first() == Some(&4);
    if sound { Ok(&key.data) } else { Err(CsrRefusal::KeyKind) }
}

impl rcgen::PublicKeyData for ProvenPublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
