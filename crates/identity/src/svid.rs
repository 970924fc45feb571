//! The X.509-SVID (SPIFFE X509-SVID): every rule that a leaf and its chain must keep, in one place.
//!
//! [`X509Svid::parse`] is used by both sides of a handshake and by a workload on its own certificate, so that none of them
//! can be laxer than the others.

use crate::bundle::TrustBundles;
use crate::{hex, provider};
use model::{Reason, SpiffeId, Timestamp, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

/// LIMIT: certificates of a chain, leaf included. Path building costs a signature check for each.
pub const CHAIN_LENGTH_MAX: usize = 4;
/// LIMIT: bytes of one DER certificate. One of P-256 has about 500, one of RSA-4096 about 2000.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
/// LIMIT: bytes of a serial number (RFC 5280 §4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;

/// Why a peer's certificate is not believed. The peer, or whoever issued its certificate, must mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// No authority in the bundle of its own trust domain vouches for it, or there is no such bundle.
    #[error("no authority in the trust bundle of its trust domain vouches for the certificate")]
    Untrusted,
    /// The operator has revoked it.
    #[error("the certificate is revoked")]
    Revoked,
    /// It has expired.
    #[error("the certificate expired at {not_after}, it is {now}")]
    Expired {
        /// Its `notAfter`.
        not_after: Timestamp,
        /// The moment of the check.
        now: Timestamp,
    },
    /// It is not valid yet.
    #[error("the certificate is valid from {not_before}, it is {now}")]
    NotYetValid {
        /// Its `notBefore`.
        not_before: Timestamp,
        /// The moment of the check.
        now: Timestamp,
    },
    /// It breaks a rule of the SPIFFE X509-SVID profile, or of ours where that leaves a choice.
    #[error("the certificate is not an X.509-SVID: {rule}")]
    Profile {
        /// The rule that it breaks.
        rule: &'static str,
    },
}

impl PeerRefusal {
    /// The word for logs, metrics and headers.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Untrusted => Reason::PeerUntrusted,
            Self::Revoked => Reason::PeerRevoked,
            Self::Expired { .. } => Reason::PeerExpired,
            Self::NotYetValid { .. } => Reason::PeerNotYetValid,
            Self::Profile { .. } => Reason::PeerProfile,
        }
    }
}

const fn profile(rule: &'static str) -> PeerRefusal {
    PeerRefusal::Profile { rule }
}

/// A chain that kept every rule at the moment of its check.
#[derive(Clone, Debug)]
pub struct X509Svid {
    leaf: Leaf,
    chain: Vec<Vec<u8>>,
}

impl X509Svid {
    /// Checks a chain against the bundle of the trust domain that its own SAN names.
    ///
    /// `chain`: DER, leaf first, 1 to [`CHAIN_LENGTH_MAX`] certificates, the root may be left out.
    ///
    /// # Errors
    /// - [`PeerRefusal::Profile`] if the leaf or an intermediate breaks a rule of SPIFFE X509-SVID §2 to §4;
    /// - [`PeerRefusal::Untrusted`] if no authority that is valid at `now` vouches for it;
    /// - [`PeerRefusal::Expired`], [`PeerRefusal::NotYetValid`] for a chain that is ours at another time.
    ///
    /// Cost: one signature check per link, and a parse of each certificate.
    pub fn parse(chain: &[Vec<u8>], bundles: &TrustBundles, now: Timestamp) -> Result<Self, PeerRefusal> {
        let certificates: Vec<CertificateDer<'_>> = chain.iter().map(|der| der.as_slice().into()).collect();
        let leaf = check(&certificates, bundles, now)?;
        Ok(Self { leaf, chain: chain.to_vec() })
    }

    /// The workload.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The leaf's `notBefore`.
    pub fn not_before(&self) -> Timestamp {
        self.leaf.not_before
    }

    /// The leaf's `notAfter`.
    pub fn not_after(&self) -> Timestamp {
        self.leaf.not_after
    }

    /// The leaf's serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// The chain, DER, leaf first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The subject key id of the authority that issued the leaf, lower-case hexadecimal; `None` if the leaf does not say.
    pub fn authority_key_id(&self) -> Option<&str> {
        self.leaf.authority_key_id.as_deref()
    }

    pub(crate) fn public_key_info(&self) -> &[u8] {
        &self.leaf.public_key_info
    }
}

/// What a leaf says of itself. True only if the chain was checked.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) serial: String,
    pub(crate) public_key_info: Vec<u8>,
    pub(crate) authority_key_id: Option<String>,
}

/// The whole check of a chain, leaf first.
pub(crate) fn check(chain: &[CertificateDer<'_>], bundles: &TrustBundles, now: Timestamp) -> Result<Leaf, PeerRefusal> {
    let (first, intermediates) = chain.split_first().ok_or(profile("a chain has 1 to 4 certificates"))?;
    if chain.len() > CHAIN_LENGTH_MAX {
        return Err(profile("a chain has 1 to 4 certificates"));
    }
    let leaf = read_leaf(first)?;
    for intermediate in intermediates {
        check_intermediate(intermediate, leaf.id.trust_domain())?;
    }
    // A stranger's certificate is untrusted, whatever its dates; so the path is built at a time within the leaf's life, and
    // the leaf's own dates are compared after it.
    let at = Timestamp::from_seconds(now.seconds()).max(leaf.not_before).min(leaf.not_after);
    check_path(first, intermediates, &leaf, bundles, at)?;
    if now.seconds() > leaf.not_after.seconds() {
        return Err(PeerRefusal::Expired { not_after: leaf.not_after, now });
    }
    if now < leaf.not_before {
        return Err(PeerRefusal::NotYetValid { not_before: leaf.not_before, now });
    }
    Ok(leaf)
}

/// Reads a leaf and checks the rules that concern it alone. Says nothing about trust.
pub(crate) fn read_leaf(der: &[u8]) -> Result<Leaf, PeerRefusal> {
    let certificate = read_certificate(der)?;
    // SPIFFE X509-SVID §2: exactly one URI SAN. Other kinds of names may stand beside it, and mean nothing here.
    let uri = only_uri(&certificate)?.ok_or(profile("it has no URI SAN"))?;
    let id = SpiffeId::parse(uri).map_err(|_| profile("its URI SAN is not the SPIFFE ID of a workload"))?;
    // SPIFFE X509-SVID §4.1.
    if is_ca(&certificate)? {
        return Err(profile("a leaf must have CA=false"));
    }
    check_leaf_usages(&certificate)?;
    let validity = certificate.validity();
    let (not_before, not_after) = (timestamp(validity.not_before), timestamp(validity.not_after));
    if not_before > not_after {
        return Err(profile("its validity ends before it begins"));
    }
    let public_key_info = certificate.public_key().raw.to_vec();
    let authority_key_id = authority_key_id(&certificate);
    Ok(Leaf { id, not_before, not_after, serial: serial(&certificate)?, public_key_info, authority_key_id })
}

/// SPIFFE X509-SVID §4.3 and §4.4. The standard lets a leaf go without an extended key usage; every issuer sets it, so we ask.
fn check_leaf_usages(certificate: &X509Certificate<'_>) -> Result<(), PeerRefusal> {
    let usage = certificate.key_usage().map_err(|_| profile("its keyUsage cannot be read"))?;
    let usage = usage.ok_or(profile("it has no keyUsage"))?.value;
    if !usage.digital_signature() {
        return Err(profile("a leaf must have the key usage digitalSignature"));
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(profile("a leaf must not have the key usages keyCertSign or cRLSign"));
    }
    let purposes = certificate.extended_key_usage().map_err(|_| profile("its extended key usage cannot be read"))?;
    let both = purposes.is_some_and(|purposes| purposes.value.server_auth && purposes.value.client_auth);
    if both { Ok(()) } else { Err(profile("a leaf must have the extended key usages serverAuth and clientAuth")) }
}

/// SPIFFE X509-SVID §3.2 and §4: what signs is a CA, says so, and belongs to the leaf's trust domain if it names one.
fn check_intermediate(der: &[u8], domain: &TrustDomain) -> Result<(), PeerRefusal> {
    let certificate = read_certificate(der)?;
    if !is_ca(&certificate)? || !signs_certificates(&certificate)? {
        return Err(profile("an intermediate must have CA=true and keyCertSign"));
    }
    match only_uri(&certificate)? {
        None => Ok(()),
        Some(uri) if authority_domain(uri).as_ref() == Some(domain) => Ok(()),
        Some(_) => Err(profile("an intermediate must belong to the leaf's trust domain")),
    }
}

/// Builds and verifies a path from the leaf to an authority of its own trust domain, at one moment.
fn check_path(
    first: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    leaf: &Leaf,
    bundles: &TrustBundles,
    at: Timestamp,
) -> Result<(), PeerRefusal> {
    let anchors = bundles.anchors(leaf.id.trust_domain(), at);
    if anchors.is_empty() {
        return Err(PeerRefusal::Untrusted);
    }
    let end_entity = EndEntityCert::try_from(first).map_err(|error| refused(&error, at))?;
    // Two parsers must read the same name, lest one be led to trust what the other did not see.
    if !end_entity.valid_uri_names().eq([leaf.id.as_str()]) {
        return Err(profile("its URI SAN can be read in two ways"));
    }
    let time = UnixTime::since_unix_epoch(Duration::from_secs(at.seconds()));
    let algorithms = provider::signature_algorithms().all;
    end_entity
        .verify_for_usage(algorithms, &anchors, intermediates, time, KeyUsage::client_auth(), None, None)
        .map(|_| ())
        .map_err(|error| refused(&error, at))
}

/// What webpki's error means for a peer. Whatever is not plainly a matter of form is a matter of trust.
fn refused(error: &webpki::Error, at: Timestamp) -> PeerRefusal {
    use webpki::Error as E;
    let moment = |time: &UnixTime| Timestamp::from_seconds(time.as_secs());
    match error {
        E::CertExpired { not_after, .. } => PeerRefusal::Expired { not_after: moment(not_after), now: at },
        E::CertNotValidYet { not_before, .. } => PeerRefusal::NotYetValid { not_before: moment(not_before), now: at },
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions | E::ExtensionValueInvalid => {
            profile("its encoding is broken")
        }
        E::UnsupportedCriticalExtension => profile("it has a critical extension that nobody here knows"),
        E::UnsupportedCertVersion => profile("it is not of X.509 version 3"),
        _ => PeerRefusal::Untrusted,
    }
}

/// Parses a whole certificate of bounded size.
pub(crate) fn read_certificate(der: &[u8]) -> Result<X509Certificate<'_>, PeerRefusal> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(profile("a certificate has at most 16384 bytes"));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        Ok(([], _)) => Err(profile("it is not of X.509 version 3")),
        Ok(_) | Err(_) => Err(profile("its encoding is broken")),
    }
}

/// The URI SAN, if there is one. More than one, or any name that cannot be read, is refused.
pub(crate) fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<Option<&'a str>, PeerRefusal> {
    let names = certificate.subject_alternative_name().map_err(|_| profile("its SAN extension cannot be read"))?;
    let mut found = None;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(_) if found.is_some() => return Err(profile("it has more than one URI SAN")),
            GeneralName::URI(uri) => found = Some(*uri),
            GeneralName::Invalid(..) => return Err(profile("a name in its SAN extension cannot be read")),
            _ => {}
        }
    }
    Ok(found)
}

/// The trust domain of a signing certificate's SPIFFE ID, which has no path (SPIFFE X509-SVID §3.2).
pub(crate) fn authority_domain(uri: &str) -> Option<TrustDomain> {
    TrustDomain::parse(uri.strip_prefix("spiffe://")?).ok()
}

/// The basic constraints' CA flag; absent means false, and unreadable is refused (the parser's own accessor calls that absent).
pub(crate) fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, PeerRefusal> {
    let unreadable = profile("its basicConstraints cannot be read");
    let extension = certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(|_| unreadable)?;
    match extension.map(|extension| extension.parsed_extension()) {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(unreadable),
    }
}

/// Whether the key usage is there and has keyCertSign.
pub(crate) fn signs_certificates(certificate: &X509Certificate<'_>) -> Result<bool, PeerRefusal> {
    let usage = certificate.key_usage().map_err(|_| profile("its keyUsage cannot be read"))?;
    Ok(usage.is_some_and(|usage| usage.value.key_cert_sign()))
}

/// The key identifier of the issuer (RFC 5280 §4.2.1.1), lower-case hexadecimal.
fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| hex(id.0)),
        _ => None,
    })
}

/// The key identifier of an authority (RFC 5280 §4.2.1.2), lower-case hexadecimal.
pub(crate) fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(found) => Some(hex(found.0)),
        _ => None,
    })
}

/// The serial number, lower-case hexadecimal without a sign byte.
fn serial(certificate: &X509Certificate<'_>) -> Result<String, PeerRefusal> {
    let digits = match certificate.raw_serial() {
        [0, digits @ ..] if !digits.is_empty() => digits,
        digits => digits,
    };
    if digits.is_empty() || digits.len() > SERIAL_BYTES_MAX {
        return Err(profile("its serial number has not 1 to 20 bytes"));
    }
    Ok(hex(digits))
}

/// An X.509 time; one before 1970 counts as 1970.
pub(crate) fn timestamp(time: ASN1Time) -> Timestamp {
    Timestamp::from_seconds(u64::try_from(time.timestamp()).unwrap_or(0))
}
