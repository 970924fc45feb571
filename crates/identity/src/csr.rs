//! The certificate signing request (PKCS#10, RFC 2986): how a public key travels to the authority, with proof of possession.
//!
//! The authority believes nothing in a request but the key: what it asks for beside it is never read.

use crate::key::{KeyFailure, PrivateKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use model::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// LIMIT: bytes of a request. Ours have about 400; a longer one carries what nobody reads.
pub const CSR_BYTES_MAX: usize = 8192;
/// An uncompressed P-256 point: a tag and two coordinates (SEC 1 §2.3.3).
const POINT_BYTES: usize = 65;
/// The AlgorithmIdentifier `ecdsa-with-SHA256` without parameters (RFC 5758 §3.2), DER.
const ECDSA_WITH_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

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
    // The parser is lax about the tags in here, so the bytes between the signed part and the signature are compared.
    let signature = &request.signature_value.data;
    if !csr_der.strip_suffix(signature.as_ref()).is_some_and(|head| ends_in_ecdsa_sha256(head, signature.len())) {
        return Err(CsrRefusal::Algorithm);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(info.raw, signature).map_err(|_| CsrRefusal::Signature)?;
    Ok(ProvenPublicKey { point: point.to_vec() })
}

/// Whether `head` ends in the algorithm and the BIT STRING header of an ECDSA signature of this many bytes.
fn ends_in_ecdsa_sha256(head: &[u8], signature_bytes: usize) -> bool {
    let length = u8::try_from(signature_bytes + 1).unwrap_or(u8::MAX);
    head.strip_suffix(&[0x03, length, 0x00]).is_some_and(|head| head.ends_with(&ECDSA_WITH_SHA256))
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
