//! The certificate authority of a trust domain: makes itself, and issues SVIDs.
//!
//! A certificate is built from scratch out of a proven key and an identity that the program decided. Nothing that a
//! requester wrote besides the key can reach it.

use crate::bundle::{self, AuthorityFacts};
use crate::csr::ProvenPublicKey;
use crate::key::{KeyFailure, PrivateKey, Signer};
use crate::{hex, random_bytes};
use model::{SpiffeId, Timestamp, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::time::Duration;

/// How far `notBefore` lies before the moment of issuing, so that a peer whose clock is behind believes the certificate.
pub const BACK_DATING: Duration = Duration::from_secs(300);
/// The last second that X.509 can express: 9999-12-31T23:59:59Z (RFC 5280 §4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;

/// Why there is no authority. Whoever keeps its certificate and key must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate breaks a rule for signing certificates.
    #[error("the authority's certificate cannot be used: {rule}")]
    Certificate {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The key is not the certificate's.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    /// It would never be valid, or for longer than X.509 can express.
    #[error("an authority cannot live for {lifetime:?} from {now}")]
    Lifetime {
        /// The lifetime that was asked for.
        lifetime: Duration,
        /// From when.
        now: Timestamp,
    },
    /// No key could be made or used.
    #[error("{0}")]
    Key(#[from] KeyFailure),
}

/// Why no SVID is issued. The operator must mend what was asked for, or the authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueRefusal {
    /// The identity is of another trust domain.
    #[error("the authority of `{own}` cannot issue for `{asked}`")]
    ForeignTrustDomain {
        /// The trust domain that was asked for.
        asked: TrustDomain,
        /// The authority's.
        own: TrustDomain,
    },
    /// The SVID would outlive the authority, and nobody would believe it then.
    #[error("an SVID until {asked} would outlive its authority, which ends at {authority}")]
    OutlivesAuthority {
        /// When the SVID would end.
        asked: Timestamp,
        /// When the authority ends.
        authority: Timestamp,
    },
    /// The authority itself is not valid yet.
    #[error("the authority is valid from {not_before}, it is {now}")]
    AuthorityNotYetValid {
        /// From when it is.
        not_before: Timestamp,
        /// The moment of the request.
        now: Timestamp,
    },
    /// A lifetime of less than a second.
    #[error("an SVID lives for at least a second")]
    NoLifetime,
    /// No random number, encoding or signature could be made.
    #[error("{0}")]
    Key(#[from] KeyFailure),
}

/// A newly issued SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedSvid {
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// The leaf's `notBefore`: five minutes before it was issued, or the authority's own if that is later.
    pub not_before: Timestamp,
    /// The leaf's `notAfter`.
    pub not_after: Timestamp,
}

/// An authority of one trust domain, with its key.
pub struct Authority {
    certificate: Vec<u8>,
    key: PrivateKey,
    issuer: Issuer<'static, Signer>,
    trust_domain: TrustDomain,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Authority {
    /// Makes a self-signed root with the URI SAN `spiffe://DOMAIN` (SPIFFE X509-SVID §3.2) that may sign leaves only.
    ///
    /// # Errors
    /// - [`AuthorityError::Lifetime`] if X.509 cannot express its end; [`AuthorityError::Key`] if no key could be made.
    pub fn generate(trust_domain: &TrustDomain, now: Timestamp, lifetime: Duration) -> Result<Self, AuthorityError> {
        let (not_before, not_after) = (whole_seconds(now.minus(BACK_DATING)), whole_seconds(now.plus(lifetime)));
        if lifetime < Duration::from_secs(1) || not_after.seconds() > LAST_SECOND {
            return Err(AuthorityError::Lifetime { lifetime, now });
        }
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        set_life(&mut params, not_before, not_after);
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Rondel");
        // A name of its own: two roots of one trust domain, as during rotation, can be told apart by name alone.
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", hex(&random_bytes::<6>()?)));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.signer()).map_err(|_| KeyFailure::Encoding)?;
        Self::load(certificate.der().to_vec(), key)
    }

    /// From what a program kept: the certificate (DER) and its key.
    ///
    /// # Errors
    /// - [`AuthorityError::Certificate`] if it is not a signing certificate that names its trust domain;
    /// - [`AuthorityError::KeyMismatch`] if the key is not its own.
    pub fn load(certificate: Vec<u8>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let facts = bundle::authority_facts(&certificate).map_err(|rule| AuthorityError::Certificate { rule })?;
        let AuthorityFacts { trust_domain, not_before, not_after, public_key_info } = facts;
        let trust_domain = trust_domain.ok_or(AuthorityError::Certificate { rule: "it has no URI SAN `spiffe://DOMAIN`" })?;
        if public_key_info != key.signer().public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key.signer().clone())
            .map_err(|_| AuthorityError::Certificate { rule: "its encoding is broken" })?;
        Ok(Self { certificate, key, issuer, trust_domain, not_before, not_after })
    }

    /// The certificate, DER. It belongs into the trust bundle.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The key, to be kept.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Whose authority it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When it ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Issues an SVID for `id` that begins five minutes ago and ends `lifetime` from now, in whole seconds.
    ///
    /// The serial number is random, also for a key that was certified before.
    ///
    /// # Errors
    /// - [`IssueRefusal::ForeignTrustDomain`], [`IssueRefusal::OutlivesAuthority`], [`IssueRefusal::AuthorityNotYetValid`],
    ///   [`IssueRefusal::NoLifetime`] for what this authority must not issue;
    /// - [`IssueRefusal::Key`] if the machine fails.
    pub fn issue(
        &self,
        key: &ProvenPublicKey,
        id: &SpiffeId,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<IssuedSvid, IssueRefusal> {
        if id.trust_domain() != &self.trust_domain {
            let (asked, own) = (id.trust_domain().clone(), self.trust_domain.clone());
            return Err(IssueRefusal::ForeignTrustDomain { asked, own });
        }
        if now < self.not_before {
            return Err(IssueRefusal::AuthorityNotYetValid { not_before: self.not_before, now });
        }
        if lifetime < Duration::from_secs(1) {
            return Err(IssueRefusal::NoLifetime);
        }
        let not_before = whole_seconds(now.minus(BACK_DATING)).max(self.not_before);
        let not_after = whole_seconds(now.plus(lifetime));
        if not_after > self.not_after {
            return Err(IssueRefusal::OutlivesAuthority { asked: not_after, authority: self.not_after });
        }
        let serial = random_serial()?;
        let params = leaf_profile(id, &serial, not_before, not_after)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(|_| KeyFailure::Encoding)?;
        Ok(IssuedSvid { chain: vec![certificate.der().to_vec()], serial: hex(&serial), not_before, not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// SPIFFE X509-SVID §2 to §4. The subject is empty: the identity is the SAN, which is critical therefore (RFC 5280 §4.2.1.6).
fn leaf_profile(
    id: &SpiffeId,
    serial: &[u8],
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, KeyFailure> {
    let mut params = CertificateParams::default();
    set_life(&mut params, not_before, not_after);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id.as_str())?];
    // Written out, not left out: only so does the leaf get a subject key identifier, too.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, KeyFailure> {
    Ok(SanType::URI(text.try_into().map_err(|_| KeyFailure::Encoding)?))
}

/// Sixteen random bytes. The first lies in 0x40 to 0x7f: a positive number whose hexadecimal form always has 32 digits.
fn random_serial() -> Result<[u8; 16], KeyFailure> {
    let mut serial: [u8; 16] = random_bytes()?;
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Ok(serial)
}

/// X.509 times have no fractions.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_seconds(at.seconds().min(LAST_SECOND + 1))
}

/// Both moments lie within X.509's range: the callers checked it.
fn set_life(params: &mut CertificateParams, not_before: Timestamp, not_after: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.seconds().min(LAST_SECOND));
    params.not_after = epoch + Duration::from_secs(not_after.seconds().min(LAST_SECOND));
}
