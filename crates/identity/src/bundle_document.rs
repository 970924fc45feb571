//! A trust bundle as a document (SPIFFE Trust Domain and Bundle §4): a JSON Web Key Set of the authorities of one trust domain.

use crate::bundle::{self, AUTHORITIES_MAX};
use crate::jwt_svid::{JwkError, JwtAuthority};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::TrustDomain;
use serde::Deserialize;
use std::time::Duration;

/// LIMIT: bytes of a document.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
/// LIMIT: bytes of a document's authorities: 64 of RSA-4096 fit. They travel in every configuration of every sidecar, which is bounded
/// as a whole.
pub const AUTHORITY_BYTES_MAX: usize = 128 * 1024;
/// LIMIT: keys of a document, those included that are ignored.
const KEYS_MAX: usize = 256;

/// Why a document is no bundle. Whoever serves it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleDocumentError {
    /// It is larger than the bound.
    #[error("the document has {bytes} bytes, more than {DOCUMENT_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is no JSON Web Key Set with a `keys` array.
    #[error("the document is not a JSON Web Key Set: {detail}")]
    NotKeySet {
        /// What the reader says.
        detail: String,
    },
    /// Too many keys.
    #[error("the document has more than {max} {what}")]
    TooMany {
        /// Which.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// An authority is not one.
    #[error("key {index}: {rule}")]
    Authority {
        /// Which key, from 1.
        index: usize,
        /// The rule that it breaks.
        rule: String,
    },
    /// An authority names another trust domain than the one whose bundle was asked for.
    #[error("key {index} is of the trust domain `{found}`, not of `{trust_domain}`")]
    Foreign {
        /// Which key, from 1.
        index: usize,
        /// The one asked for.
        trust_domain: TrustDomain,
        /// The one that it names.
        found: TrustDomain,
    },
}

/// What a document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleDocument {
    /// X.509 authorities, DER.
    pub x509_authorities: Vec<Vec<u8>>,
    /// Public keys of JWT-SVIDs, each a JSON Web Key with a `kid`.
    pub jwt_authorities: Vec<Vec<u8>>,
    /// `spiffe_sequence`: grows with each change.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how often to look again.
    pub refresh_hint: Option<Duration>,
    /// Keys that were passed over, because their `use` or their `kty` is missing or unknown, or SVIDs cannot be checked with them.
    pub ignored: usize,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
    #[serde(default, deserialize_with = "crate::present")]
    spiffe_sequence: Option<u64>,
    #[serde(default, deserialize_with = "crate::present")]
    spiffe_refresh_hint: Option<u64>,
}

/// Reads the document of a trust domain's bundle. One without any key is sound: it revokes what an earlier one said.
///
/// # Errors
/// - [`BundleDocumentError`], naming the key.
pub fn parse(json: &[u8], trust_domain: &TrustDomain) -> Result<BundleDocument, BundleDocumentError> {
    if json.len() > DOCUMENT_BYTES_MAX {
        return Err(BundleDocumentError::TooLarge { bytes: json.len() });
    }
    let read: Document =
        serde_json::from_slice(json).map_err(|error| BundleDocumentError::NotKeySet { detail: error.to_string() })?;
    if read.keys.len() > KEYS_MAX {
        return Err(BundleDocumentError::TooMany { what: "keys", max: KEYS_MAX });
    }
    let mut document = BundleDocument {
        sequence: read.spiffe_sequence,
        // Zero says nothing about when.
        refresh_hint: read.spiffe_refresh_hint.filter(|hint| *hint > 0).map(Duration::from_secs),
        ..BundleDocument::default()
    };
    for (at, key) in read.keys.iter().enumerate() {
        let wrong = |rule: &str| BundleDocumentError::Authority { index: at + 1, rule: rule.to_owned() };
        let text = |name| key.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        match (text("use"), text("kty")) {
            ("x509-svid", "EC" | "RSA" | "OKP") => {
                // SPIFFE X509-SVID §6.2: an entry without a certificate is passed over.
                let Some(der) = first_certificate(key).map_err(wrong)? else {
                    document.ignored += 1;
                    continue;
                };
                // Read as every sidecar will: what one of them cannot use would make it refuse the whole configuration.
                let named = bundle::authority(&der).map_err(wrong)?;
                if let Some(found) = named.filter(|named| named != trust_domain) {
                    return Err(BundleDocumentError::Foreign { index: at + 1, trust_domain: trust_domain.clone(), found });
                }
                if !document.x509_authorities.contains(&der) {
                    document.x509_authorities.push(der);
                }
            }
            ("jwt-svid", "EC" | "RSA") => match JwtAuthority::from_jwk_json(key.to_string().as_bytes()) {
                Ok(authority) if document.jwt_authorities.contains(&authority.to_jwk_json()) => {}
                Ok(authority) => document.jwt_authorities.push(authority.to_jwk_json()),
                // RFC 7517 §5: a curve or a strength that is not supported.
                Err(JwkError::Kind) => document.ignored += 1,
                Err(error) => return Err(wrong(&error.to_string())),
            },
            // SPIFFE Trust Domain and Bundle §4.2.1 and §4.2.2: other uses and types, and none at all, are for somebody else.
            _ => document.ignored += 1,
        }
    }
    let count = document.x509_authorities.len().max(document.jwt_authorities.len());
    if count > AUTHORITIES_MAX {
        return Err(BundleDocumentError::TooMany { what: "authorities of one kind", max: AUTHORITIES_MAX });
    }
    let bytes = document.x509_authorities.iter().chain(&document.jwt_authorities).map(Vec::len).sum::<usize>();
    if bytes > AUTHORITY_BYTES_MAX {
        return Err(BundleDocumentError::TooMany { what: "bytes of authorities", max: AUTHORITY_BYTES_MAX });
    }
    Ok(document)
}

/// Only the first value of `x5c` counts.
fn first_certificate(key: &serde_json::Value) -> Result<Option<Vec<u8>>, &'static str> {
    let Some(certificates) = key.get("x5c") else { return Ok(None) };
    let certificates = certificates.as_array().ok_or("its `x5c` is not a list")?;
    let Some(first) = certificates.first() else { return Ok(None) };
    let text = first.as_str().ok_or("its certificate is not base64")?;
    STANDARD.decode(text).map(Some).map_err(|_| "its certificate is not base64")
}

/// The document of a bundle. An authority that cannot be read is left out, so that the rest is served.
pub fn write(document: &BundleDocument) -> String {
    let x509 = document.x509_authorities.iter().filter_map(|der| {
        let mut key = bundle::public_jwk(der)?;
        key.insert("use".into(), "x509-svid".into());
        key.insert("x5c".into(), vec![STANDARD.encode(der)].into());
        Some(serde_json::Value::Object(key))
    });
    let jwt = document.jwt_authorities.iter().filter_map(|jwk| serde_json::from_slice(jwk).ok());
    let keys: Vec<serde_json::Value> = x509.chain(jwt).collect();
    let mut out = serde_json::Map::from_iter([("keys".to_owned(), keys.into())]);
    out.extend(document.sequence.map(|sequence| ("spiffe_sequence".to_owned(), sequence.into())));
    out.extend(document.refresh_hint.map(|hint| ("spiffe_refresh_hint".to_owned(), hint.as_secs().into())));
    serde_json::Value::Object(out).to_string()
}
