//! The certificate authority of a trust domain: makes itself, and issues SVIDs.
//!
//! A certificate is built from scratch out of a proven key and an identity that the program decided. Nothing that a
//! requester wrote besides the key can reach it.

use crate::bundle::{self, AuthorityFacts, TrustBundles};
use crate::csr::{self, ProvenPublicKey};
use crate::key::{KeyFailure, PrivateKey, Signer};
use crate::svid::{self, CHAIN_LENGTH_MAX, X509Svid};
use crate::{hex, random_bytes};
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::time::Duration;

/// How far `notBefore` lies before the moment of issuing, so that a peer whose clock is up to ten minutes behind believes the
/// certificate.
pub const BACK_DATING: Duration = Duration::from_secs(600);
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
    /// An operator's signing certificate is not one, or nobody would believe what stands under it.
    #[error("{what}: {problem}")]
    Chain {
        /// Which certificate.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
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
    /// The leaf's `notBefore`: ten minutes before it was issued, or the authority's own if that is later.
    pub not_before: Timestamp,
    /// The leaf's `notAfter`.
    pub not_after: Timestamp,
}

/// An authority of one trust domain, with its key.
pub struct Authority {
    certificate: Vec<u8>,
    /// What a leaf is followed by: the own certificate and those above it, without the root. Empty for a root.
    chain: Vec<Vec<u8>>,
    key: PrivateKey,
    issuer: Issuer<'static, Signer>,
    trust_domain: TrustDomain,
    subject_key_id: String,
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
        let mut params = authority_profile(trust_domain)?;
        set_life(&mut params, not_before, not_after);
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
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
        let trust_domain = facts.trust_domain.clone();
        let trust_domain = trust_domain.ok_or(AuthorityError::Certificate { rule: "it has no URI SAN `spiffe://DOMAIN`" })?;
        Self::assemble(certificate, Vec::new(), key, facts, trust_domain)
    }

    /// An authority that stands under an operator's root.
    ///
    /// `chain`: DER, its own certificate first, then those above it, without the root. `roots`: DER, what belongs into the bundle.
    /// It is checked as every peer would check what it signs, unless it has ended.
    ///
    /// # Errors
    /// - [`AuthorityError::Chain`], naming the certificate that cannot stand where it does;
    /// - [`AuthorityError::KeyMismatch`] if the key is not the first certificate's.
    pub fn load_chain(
        chain: Vec<Vec<u8>>,
        key: PrivateKey,
        roots: &[Vec<u8>],
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        let wrong = |what: String, problem: String| AuthorityError::Chain { what, problem };
        if chain.is_empty() || chain.len() >= CHAIN_LENGTH_MAX {
            let problem =
                format!("{} certificates between a workload's and the root, 1 to {}", chain.len(), CHAIN_LENGTH_MAX - 1);
            return Err(wrong("the chain".into(), problem));
        }
        let mut facts = Vec::new();
        for (at, der) in chain.iter().chain(roots).enumerate() {
            let name =
                || if at < chain.len() { format!("certificate {}", at + 1) } else { format!("root {}", at + 1 - chain.len()) };
            let read = bundle::authority_facts(der).map_err(|rule| wrong(name(), rule.to_owned()))?;
            if let Some(other) = read.trust_domain.as_ref().filter(|named| *named != trust_domain) {
                return Err(wrong(name(), format!("it is of the trust domain `{other}`, not of `{trust_domain}`")));
            }
            // The library does not look at a root's; others do (RFC 5280 §4.2.1.9).
            let below = at.min(chain.len());
            if read.path_length.is_some_and(|most| usize::try_from(most).is_ok_and(|most| below > most)) {
                return Err(wrong(name(), format!("its path length does not allow {below} authorities below it")));
            }
            facts.push(read);
        }
        let ends = facts.iter().take(chain.len()).map(|facts| facts.not_after).min();
        let root_ends = facts.iter().skip(chain.len()).map(|facts| facts.not_after).max();
        let begins = facts.iter().take(chain.len()).map(|facts| facts.not_before).max();
        let root_begins = facts.iter().skip(chain.len()).map(|facts| facts.not_before).min();
        let first = facts.into_iter().next().ok_or_else(|| wrong("the chain".into(), "empty".into()))?;
        // What it signs is believed only from when and as long as everything above it is.
        let not_before = begins.max(root_begins).unwrap_or(first.not_before);
        let not_after = [Some(first.not_after), ends, root_ends].into_iter().flatten().min().unwrap_or(first.not_after);
        let certificate = chain.first().cloned().unwrap_or_default();
        let first = AuthorityFacts { not_before, not_after, ..first };
        let authority = Self::assemble(certificate, chain, key, first, trust_domain.clone())?;
        if now < authority.not_after {
            authority.prove(roots, now)?;
        }
        Ok(authority)
    }

    /// Signs an SVID for nobody and checks it as a peer would.
    fn prove(&self, roots: &[Vec<u8>], now: Timestamp) -> Result<(), AuthorityError> {
        let wrong = |problem: String| AuthorityError::Chain { what: "an SVID that it signs".into(), problem };
        let id = self.trust_domain.control_plane();
        let request = csr::build(&PrivateKey::generate()?, &id)?;
        let key = csr::prove(&request).map_err(|refusal| wrong(refusal.to_string()))?;
        let issued = self.issue(&key, &id, Duration::from_secs(1), now).map_err(|refusal| wrong(refusal.to_string()))?;
        let model = TrustBundle::x509(self.trust_domain.clone(), roots.to_vec());
        let bundles = TrustBundles::from_model(&[model]).map_err(|error| wrong(error.to_string()))?;
        X509Svid::parse(&issued.chain, &bundles, now).map(drop).map_err(|refusal| wrong(refusal.to_string()))
    }

    fn assemble(
        certificate: Vec<u8>,
        chain: Vec<Vec<u8>>,
        key: PrivateKey,
        facts: AuthorityFacts,
        trust_domain: TrustDomain,
    ) -> Result<Self, AuthorityError> {
        if facts.public_key_info != key.signer().public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = issuer(&certificate, key.signer().clone()).map_err(|rule| AuthorityError::Certificate { rule })?;
        let subject_key_id = facts.subject_key_id.filter(|id| !id.is_empty());
        let subject_key_id = subject_key_id.ok_or(AuthorityError::Certificate { rule: "it has no subject key identifier" })?;
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        Ok(Self { certificate, chain, key, issuer, trust_domain, subject_key_id, not_before, not_after })
    }

    /// A request (PKCS#10, DER) for the certificate of an authority under somebody's root.
    ///
    /// # Errors
    /// - [`KeyFailure`] if it cannot be encoded or signed.
    pub fn signing_request(key: &PrivateKey, trust_domain: &TrustDomain) -> Result<Vec<u8>, KeyFailure> {
        let request = authority_profile(trust_domain)?.serialize_request(key.signer()).map_err(|_| KeyFailure::Sign)?;
        Ok(request.der().to_vec())
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

    /// Its key's identifier, by which the SVIDs that it signs name it (RFC 5280 §4.2.1.2), lower-case hexadecimal.
    pub fn subject_key_id(&self) -> String {
        self.subject_key_id.clone()
    }

    /// When it begins.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// When it ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Issues an SVID for `id` that begins ten minutes ago and ends `lifetime` from now, in whole seconds.
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
        let chain = std::iter::once(certificate.der().to_vec()).chain(self.chain.iter().cloned()).collect();
        Ok(IssuedSvid { chain, serial: hex(&serial), not_before, not_after })
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

/// An operator's certificate authority, whose key is at hand: signs the certificates of authorities that stand under it.
pub struct UpstreamKey {
    issuer: Issuer<'static, KeyPair>,
    not_after: Timestamp,
}

impl UpstreamKey {
    /// From PEM: the signing certificate first (others may follow), and its key (PKCS#8).
    ///
    /// # Errors
    /// - [`AuthorityError`] if it cannot sign for an authority, or the key is not its own.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, AuthorityError> {
        let wrong = |problem: &str| AuthorityError::Chain { what: "the signing certificate".into(), problem: problem.to_owned() };
        let chain = bundle::certificates_from_pem(certificates).map_err(|error| wrong(&error.to_string()))?;
        let first = chain.into_iter().next().ok_or_else(|| wrong("the text holds no certificate"))?;
        let facts = bundle::authority_facts(&first).map_err(wrong)?;
        let key = KeyPair::from_pem(key).map_err(|_| wrong("its key is not PKCS#8 in PEM of a kind that is known here"))?;
        if key.subject_public_key_info() != facts.public_key_info {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = issuer(&first, key).map_err(wrong)?;
        Ok(Self { issuer, not_after: facts.not_after })
    }

    /// Signs the certificate of an authority for a proven key: DER. It ends with its signer at the latest.
    ///
    /// # Errors
    /// - [`AuthorityError::Lifetime`] if it would never be valid; [`AuthorityError::Key`] if it cannot be signed.
    pub fn sign_intermediate(
        &self,
        key: &ProvenPublicKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Vec<u8>, AuthorityError> {
        let not_after = whole_seconds(now.plus(lifetime)).min(self.not_after);
        if not_after <= now {
            return Err(AuthorityError::Lifetime { lifetime, now });
        }
        let mut params = authority_profile(trust_domain)?;
        set_life(&mut params, whole_seconds(now.minus(BACK_DATING)), not_after);
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(|_| KeyFailure::Sign)?;
        Ok(certificate.der().to_vec())
    }
}

impl fmt::Debug for UpstreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamKey").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// What the issuing library must know of a signing certificate. The error is the rule that is broken.
fn issuer<S: SigningKey>(certificate: &[u8], signer: S) -> Result<Issuer<'static, S>, &'static str> {
    let broken = "its encoding is broken";
    let unknown = "its subject is empty, or in a form that cannot be written into another certificate";
    let read = svid::read_certificate(certificate).map_err(|_| broken)?;
    // What the reader does not understand of a name it leaves out.
    if read.subject().iter().next().is_none() {
        return Err(unknown);
    }
    // The library panics when it writes a kind of part that is no OID (ITU-T X.660 §7.6).
    for kind in read.subject().iter_attributes() {
        let arcs: Option<Vec<u64>> = kind.attr_type().iter().map(Iterator::collect);
        if !arcs.is_some_and(|arcs| matches!(arcs.as_slice(), [0..=2, 0..40, ..])) {
            return Err(unknown);
        }
    }
    Issuer::from_ca_cert_der(&CertificateDer::from(certificate), signer).map_err(|_| unknown)
}

/// SPIFFE X509-SVID §3.2 and §4: signs leaves only. Life and serial number are for the caller.
fn authority_profile(trust_domain: &TrustDomain) -> Result<CertificateParams, KeyFailure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Rondel");
    // A name of its own: two authorities of one trust domain, as during rotation, can be told apart by name alone.
    params.distinguished_name.push(DnType::CommonName, format!("authority {}", hex(&random_bytes::<6>()?)));
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
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
