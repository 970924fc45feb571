//! A signed envelope: bytes that a workload may keep on its disk and believe again later, because the control plane signed them.
//!
//! Layout, numbers big-endian: 16 bytes magic with the version, chain length (1), each certificate (4 + n), signing time in
//! milliseconds (8), purpose (2 + n), payload (4 + n), and an ECDSA P-256 SHA-256 signature (2 + n) over all that precedes it.

use crate::bundle::TrustBundles;
use crate::credentials::Credentials;
use crate::key::KeyFailure;
use crate::svid::{CERTIFICATE_BYTES_MAX, CHAIN_LENGTH_MAX, PeerRefusal, X509Svid};
use model::{SpiffeId, Timestamp};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// The first bytes. They also keep this signature apart from every other that the same key makes: a TLS handshake's begins
/// with spaces (RFC 8446 §4.4.3) and a certificate request's with a DER sequence. The last byte is the version.
const MAGIC: &[u8; 16] = b"rondel-envelope\x01";
/// LIMIT: bytes of a purpose.
const PURPOSE_BYTES_MAX: usize = 64;
/// LIMIT: bytes of a payload. A snapshot travels in one message of the configuration stream, which is bounded lower.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why nothing was signed. The caller must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignFailure {
    /// The purpose is empty or too long.
    #[error("a purpose has 1 to 64 bytes")]
    Purpose,
    /// The payload is too long.
    #[error("a payload has at most {max} bytes, this one {bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The signature could not be made.
    #[error("{0}")]
    Key(#[from] KeyFailure),
}

/// Why an envelope is not believed. Whoever wrote or replaced it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedRefusal {
    /// It is not an envelope of this version, or was cut or extended.
    #[error("it is not a signed envelope of this version")]
    Malformed,
    /// It was signed for another purpose.
    #[error("it was signed for another purpose than `{expected}`")]
    Purpose {
        /// The purpose that was expected.
        expected: String,
    },
    /// The signer's certificate is not believed, as of the signing time.
    #[error("its signer: {0}")]
    Peer(#[from] PeerRefusal),
    /// It was signed by somebody else.
    #[error("it was signed by `{got}`, not by `{expected}`")]
    Signer {
        /// Who should have signed.
        expected: SpiffeId,
        /// Who did.
        got: SpiffeId,
    },
    /// The signature does not match.
    #[error("its signature does not match")]
    Signature,
}

/// Signs a payload with the SVID's key. `purpose` (1 to 64 bytes) says what it is and for whom, so that one file cannot
/// stand in for another.
///
/// # Errors
/// - [`SignFailure`].
///
/// Cost: one copy of the payload and one signature.
pub fn sign(credentials: &Credentials, purpose: &str, payload: &[u8], now: Timestamp) -> Result<Vec<u8>, SignFailure> {
    if purpose.is_empty() || purpose.len() > PURPOSE_BYTES_MAX {
        return Err(SignFailure::Purpose);
    }
    let too_large = SignFailure::TooLarge { bytes: payload.len(), max: PAYLOAD_BYTES_MAX };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_large);
    }
    let chain = credentials.svid().chain();
    let mut out = Vec::with_capacity(payload.len() + 2048);
    out.extend_from_slice(MAGIC);
    // The chain was parsed under its bounds, so these lengths fit; if not, nothing is signed.
    out.push(u8::try_from(chain.len()).map_err(|_| KeyFailure::Encoding)?);
    for certificate in chain {
        put_u32(&mut out, certificate)?;
    }
    out.extend_from_slice(&now.millis().to_be_bytes());
    put_u16(&mut out, purpose.as_bytes())?;
    put_u32(&mut out, payload)?;
    let signature = credentials.sign(&out)?;
    put_u16(&mut out, &signature)?;
    Ok(out)
}

/// Opens an envelope that `signer` signed for `purpose`, and gives its payload.
///
/// The chain must have been valid at the signing time, not now: a sidecar boots from its last good snapshot also when the
/// control plane's SVID has ended since. Whether an envelope is too old is for the caller, who knows the revision inside.
///
/// # Errors
/// - [`SignedRefusal`].
pub fn verify(envelope: &[u8], bundles: &TrustBundles, signer: &SpiffeId, purpose: &str) -> Result<Vec<u8>, SignedRefusal> {
    let read = read(envelope).ok_or(SignedRefusal::Malformed)?;
    if read.purpose != purpose.as_bytes() {
        return Err(SignedRefusal::Purpose { expected: purpose.to_owned() });
    }
    let svid = X509Svid::parse(&read.chain, bundles, read.signed_at)?;
    if svid.id() != signer {
        return Err(SignedRefusal::Signer { expected: signer.clone(), got: svid.id().clone() });
    }
    let leaf = svid.chain().first().ok_or(SignedRefusal::Malformed)?;
    let leaf = CertificateDer::from(leaf.as_slice());
    let leaf = EndEntityCert::try_from(&leaf).map_err(|_| SignedRefusal::Malformed)?;
    leaf.verify_signature(ECDSA_P256_SHA256, read.signed, read.signature).map_err(|_| SignedRefusal::Signature)?;
    Ok(read.payload.to_vec())
}

struct Read<'a> {
    signed: &'a [u8],
    chain: Vec<Vec<u8>>,
    signed_at: Timestamp,
    purpose: &'a [u8],
    payload: &'a [u8],
    signature: &'a [u8],
}

/// Takes an envelope apart; `None` if its form is wrong anywhere.
fn read(envelope: &[u8]) -> Option<Read<'_>> {
    let mut rest = envelope.strip_prefix(MAGIC)?;
    let length = usize::from(*take(&mut rest, 1)?.first()?);
    if length == 0 || length > CHAIN_LENGTH_MAX {
        return None;
    }
    let mut chain = Vec::with_capacity(length);
    for _ in 0..length {
        chain.push(take_u32(&mut rest, CERTIFICATE_BYTES_MAX)?.to_vec());
    }
    let signed_at = Timestamp::from_millis(u64::from_be_bytes(take(&mut rest, 8)?.try_into().ok()?));
    let purpose = take_u16(&mut rest)?;
    let payload = take_u32(&mut rest, PAYLOAD_BYTES_MAX)?;
    let signed = envelope.get(..envelope.len() - rest.len())?;
    let signature = take_u16(&mut rest)?;
    rest.is_empty().then_some(Read { signed, chain, signed_at, purpose, payload, signature })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    Some(head)
}

fn take_u16<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    take(rest, usize::from(length))
}

fn take_u32<'a>(rest: &mut &'a [u8], max: usize) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::from_be_bytes(take(rest, 4)?.try_into().ok()?)).ok()?;
    if length > max { None } else { take(rest, length) }
}

fn put_u16(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), KeyFailure> {
    out.extend_from_slice(&u16::try_from(bytes.len()).map_err(|_| KeyFailure::Encoding)?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_u32(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), KeyFailure> {
    out.extend_from_slice(&u32::try_from(bytes.len()).map_err(|_| KeyFailure::Encoding)?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}
