//! Trust bundles (SPIFFE Trust Domain and Bundle §4): which authorities may vouch for which trust domain.

use crate::credentials::Link;
use crate::svid::{self, PeerRefusal};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use model::snapshot::TrustBundle;
use model::{Timestamp, TrustDomain};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::public_key::PublicKey;

/// LIMIT: trust domains of one set of bundles. Each handshake looks one up; the whole set is held in memory.
pub const TRUST_DOMAINS_MAX: usize = 256;
/// LIMIT: authorities of one trust domain. A chain may be tried against each of the same name.
pub const AUTHORITIES_MAX: usize = 64;
/// LIMIT: bytes of a PEM text.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Why something is not a set of trust bundles. Whoever configured it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// There is no authority at all, or none for this trust domain.
    #[error("the trust bundle of `{trust_domain}` has no authority")]
    Empty {
        /// The trust domain, or `-` where none is named.
        trust_domain: String,
    },
    /// A trust domain has two bundles.
    #[error("the trust domain `{trust_domain}` has two bundles")]
    Duplicate {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// There are more trust domains or authorities than the bound.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// Which bound: `trust domains`, `authorities in one trust domain` or `bytes of PEM`.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A certificate breaks a rule for signing certificates (SPIFFE X509-SVID §3.2, §4).
    #[error("authority {index}: {rule}")]
    Authority {
        /// Which one, from 1, in the order given.
        index: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A certificate names another trust domain than the bundle that it stands in.
    #[error("authority {index} is of the trust domain `{found}`, not of `{trust_domain}`")]
    Foreign {
        /// Which one, from 1, in the order given.
        index: usize,
        /// The trust domain of the bundle.
        trust_domain: TrustDomain,
        /// The trust domain that the certificate names.
        found: TrustDomain,
    },
    /// The text is not PEM, or holds something else than certificates.
    #[error("the text is not PEM with certificates only")]
    Pem,
}

/// The authorities by trust domain, and what is refused in spite of them. Immutable; a change is a new value.
#[derive(Clone)]
pub struct TrustBundles {
    domains: BTreeMap<TrustDomain, Vec<Anchor>>,
    revoked: HashSet<String>,
    post_quantum_required: bool,
}

#[derive(Clone)]
struct Anchor {
    der: Vec<u8>,
    anchor: TrustAnchor<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl TrustBundles {
    /// From the bundles of a snapshot. An authority without a URI SAN is taken as one of its bundle's trust domain.
    ///
    /// # Errors
    /// - [`BundleError`], naming the first authority that cannot be one.
    pub fn from_model(bundles: &[TrustBundle]) -> Result<Self, BundleError> {
        let mut domains = BTreeMap::new();
        for bundle in bundles {
            let trust_domain = bundle.trust_domain.clone();
            let mut anchors = Vec::new();
            for (at, der) in bundle.authorities.iter().enumerate() {
                let (anchor, named) = read_authority(der, at + 1)?;
                if let Some(found) = named.filter(|named| *named != trust_domain) {
                    return Err(BundleError::Foreign { index: at + 1, trust_domain, found });
                }
                push(&mut anchors, anchor)?;
            }
            if anchors.is_empty() {
                return Err(BundleError::Empty { trust_domain: trust_domain.to_string() });
            }
            if domains.insert(trust_domain.clone(), anchors).is_some() {
                return Err(BundleError::Duplicate { trust_domain });
            }
        }
        Self::bounded(domains)
    }

    /// From PEM with `CERTIFICATE` sections only. Each names its trust domain by its URI SAN, `spiffe://DOMAIN`; where an operator's
    /// root has none, the last line before it that is `spiffe://DOMAIN` counts (RFC 7468 §2 lets text stand there).
    ///
    /// # Errors
    /// - [`BundleError`], naming the first section that is not an authority.
    pub fn from_pem(text: &str) -> Result<Self, BundleError> {
        if text.len() > PEM_BYTES_MAX {
            return Err(BundleError::TooMany { what: "bytes of PEM", max: PEM_BYTES_MAX });
        }
        let mut domains: BTreeMap<TrustDomain, Vec<Anchor>> = BTreeMap::new();
        let mut index = 0;
        for (said, part) in parts(text)? {
            for der in certificates_from_pem(part)? {
                index += 1;
                let (anchor, named) = read_authority(&der, index)?;
                let no_name = BundleError::Authority {
                    index,
                    rule: "it has no URI SAN `spiffe://DOMAIN`, and no such line stands before it",
                };
                let trust_domain = match (&said, named) {
                    (Some(said), Some(found)) if *said != found => {
                        return Err(BundleError::Foreign { index, trust_domain: said.clone(), found });
                    }
                    (_, Some(named)) => named,
                    (Some(said), None) => said.clone(),
                    (None, None) => return Err(no_name),
                };
                push(domains.entry(trust_domain).or_default(), anchor)?;
            }
        }
        Self::bounded(domains)
    }

    fn bounded(domains: BTreeMap<TrustDomain, Vec<Anchor>>) -> Result<Self, BundleError> {
        if domains.is_empty() {
            return Err(BundleError::Empty { trust_domain: "-".to_owned() });
        }
        if domains.len() > TRUST_DOMAINS_MAX {
            return Err(BundleError::TooMany { what: "trust domains", max: TRUST_DOMAINS_MAX });
        }
        Ok(Self { domains, revoked: HashSet::new(), post_quantum_required: false })
    }

    /// Every authority as a PEM `CERTIFICATE` section (RFC 7468 §5), by trust domain, each under a line `spiffe://DOMAIN`.
    pub fn to_pem(&self) -> String {
        let mut out = String::new();
        for (domain, anchors) in &self.domains {
            out.push_str(&format!("spiffe://{domain}\n"));
            out.extend(anchors.iter().map(|anchor| pem_section("CERTIFICATE", &anchor.der)));
        }
        out
    }

    /// The bundles as a snapshot carries them, by trust domain, authorities in the order given.
    pub fn to_model(&self) -> Vec<TrustBundle> {
        let one = |(domain, anchors): (&TrustDomain, &Vec<Anchor>)| {
            TrustBundle::x509(domain.clone(), anchors.iter().map(|anchor| anchor.der.clone()).collect())
        };
        self.domains.iter().map(one).collect()
    }

    /// The same authorities, where peers with an SVID of these serial numbers (lower-case hexadecimal) are refused, and, if
    /// `post_quantum_required`, so are handshakes without a post-quantum key exchange.
    #[must_use]
    pub fn restricted(self, revoked: impl IntoIterator<Item = String>, post_quantum_required: bool) -> Self {
        Self { revoked: revoked.into_iter().collect(), post_quantum_required, ..self }
    }

    /// The same authorities, under everything that others refuse.
    pub(crate) fn restricted_as(self, others: &Self) -> Self {
        Self { revoked: others.revoked.clone(), post_quantum_required: others.post_quantum_required, ..self }
    }

    /// Whether an SVID of this serial number is refused.
    pub fn is_revoked(&self, serial: &str) -> bool {
        !self.revoked.is_empty() && self.revoked.contains(serial)
    }

    /// Whether handshakes without a post-quantum key exchange are refused.
    pub fn is_post_quantum_required(&self) -> bool {
        self.post_quantum_required
    }

    /// Whether anybody vouches for this trust domain.
    pub fn contains(&self, trust_domain: &TrustDomain) -> bool {
        self.domains.contains_key(trust_domain)
    }

    /// Every authority, as a link that can end.
    pub(crate) fn links(&self) -> impl Iterator<Item = Link> {
        let link = |domain: &TrustDomain, anchor: &Anchor| Link {
            kind: "authority",
            trust_domain: domain.to_string(),
            id: svid::read_certificate(&anchor.der).ok().and_then(|read| svid::subject_key_id(&read)).unwrap_or_default(),
            not_after: anchor.not_after,
        };
        self.domains.iter().flat_map(move |(domain, anchors)| anchors.iter().map(move |anchor| link(domain, anchor)))
    }

    /// The authorities of a trust domain that are valid at a moment. webpki does not look at an authority's dates itself.
    pub(crate) fn anchors(&self, trust_domain: &TrustDomain, at: Timestamp) -> Vec<TrustAnchor<'static>> {
        let valid = |anchor: &&Anchor| anchor.not_before <= at && at <= anchor.not_after;
        let anchors = self.domains.get(trust_domain).map(Vec::as_slice).unwrap_or_default();
        anchors.iter().filter(valid).map(|anchor| anchor.anchor.clone()).collect()
    }
}

impl PartialEq for TrustBundles {
    fn eq(&self, other: &Self) -> bool {
        self.to_model() == other.to_model()
            && self.revoked == other.revoked
            && self.post_quantum_required == other.post_quantum_required
    }
}

impl Eq for TrustBundles {}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.domains.iter().map(|(domain, anchors)| (domain, anchors.len()));
        f.debug_map().entries(counts).finish()
    }
}

/// One section of PEM (RFC 7468 §2).
pub fn pem_section(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {kind}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {kind}-----\n"));
    out
}

/// Every certificate of a PEM text, DER, in its order.
///
/// # Errors
/// - [`BundleError::Pem`] if anything else stands in it; [`BundleError::TooMany`] beyond [`PEM_BYTES_MAX`].
pub fn certificates_from_pem(text: &str) -> Result<Vec<Vec<u8>>, BundleError> {
    if text.len() > PEM_BYTES_MAX {
        return Err(BundleError::TooMany { what: "bytes of PEM", max: PEM_BYTES_MAX });
    }
    let one = |section| match section {
        Ok((SectionKind::Certificate, der)) => Ok(der),
        _ => Err(BundleError::Pem),
    };
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).map(one).collect()
}

/// The text cut at each line `spiffe://DOMAIN`, with the trust domain that it names.
fn parts(text: &str) -> Result<Vec<(Option<TrustDomain>, &str)>, BundleError> {
    let mut parts = vec![(None, 0)];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.trim_end().strip_prefix("spiffe://") {
            parts.push((Some(TrustDomain::parse(name).map_err(|_| BundleError::Pem)?), at));
        }
        at += line.len();
    }
    let ends: Vec<usize> = parts.iter().skip(1).map(|(_, begin)| *begin).chain([text.len()]).collect();
    let part = |((domain, begin), end): ((Option<TrustDomain>, usize), usize)| (domain, text.get(begin..end).unwrap_or_default());
    Ok(parts.into_iter().zip(ends).map(part).collect())
}

/// The key of a certificate as the parameters of a JSON Web Key (RFC 7518 §6); `None` for a kind that has no such form here.
pub(crate) fn public_jwk(der: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    let certificate = svid::read_certificate(der).ok()?;
    let text = |bytes: &[u8]| serde_json::Value::from(URL_SAFE_NO_PAD.encode(bytes));
    let mut jwk = serde_json::Map::new();
    match certificate.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            let (curve, bytes) = match point.data().len() {
                65 => ("P-256", 32),
                97 => ("P-384", 48),
                133 => ("P-521", 66),
                _ => return None,
            };
            let (x, y) = point.data().get(1..)?.split_at_checked(bytes)?;
            jwk.extend([("kty".into(), "EC".into()), ("crv".into(), curve.into()), ("x".into(), text(x)), ("y".into(), text(y))]);
        }
        PublicKey::RSA(key) => {
            let modulus = key.modulus.iter().position(|byte| *byte != 0).and_then(|first| key.modulus.get(first..))?;
            jwk.extend([("kty".into(), "RSA".into()), ("n".into(), text(modulus)), ("e".into(), text(key.exponent))]);
        }
        // RFC 8037 §2.
        PublicKey::Unknown(key) if certificate.public_key().algorithm.algorithm == OID_SIG_ED25519 => {
            jwk.extend([("kty".into(), "OKP".into()), ("crv".into(), "Ed25519".into()), ("x".into(), text(key))]);
        }
        _ => return None,
    }
    Some(jwk)
}

fn push(anchors: &mut Vec<Anchor>, anchor: Anchor) -> Result<(), BundleError> {
    if anchors.iter().any(|known| known.der == anchor.der) {
        return Ok(());
    }
    if anchors.len() == AUTHORITIES_MAX {
        return Err(BundleError::TooMany { what: "authorities in one trust domain", max: AUTHORITIES_MAX });
    }
    anchors.push(anchor);
    Ok(())
}

/// Reads a signing certificate, and the trust domain that its URI SAN names.
fn read_authority(der: &[u8], index: usize) -> Result<(Anchor, Option<TrustDomain>), BundleError> {
    let facts = authority_facts(der).map_err(|rule| BundleError::Authority { index, rule })?;
    let anchor = anchor(der).map_err(|rule| BundleError::Authority { index, rule })?;
    let anchor = Anchor { der: der.to_vec(), anchor, not_before: facts.not_before, not_after: facts.not_after };
    Ok((anchor, facts.trust_domain))
}

/// Checks that a certificate can be an authority of a bundle; gives the trust domain that it names. The error is the rule that it breaks.
pub(crate) fn authority(der: &[u8]) -> Result<Option<TrustDomain>, &'static str> {
    let facts = authority_facts(der)?;
    anchor(der)?;
    Ok(facts.trust_domain)
}

/// What a path is verified with. The library that does that is stricter than the parser.
fn anchor(der: &[u8]) -> Result<TrustAnchor<'static>, &'static str> {
    let certificate = CertificateDer::from(der);
    webpki::anchor_from_trusted_cert(&certificate).map(|anchor| anchor.to_owned()).map_err(|_| "its encoding is broken")
}

/// What a signing certificate says of itself.
pub(crate) struct AuthorityFacts {
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) public_key_info: Vec<u8>,
    pub(crate) subject_key_id: Option<String>,
    /// How many authorities may stand below it; `None` for any number.
    pub(crate) path_length: Option<u32>,
}

/// Checks the rules for signing certificates (SPIFFE X509-SVID §3.2, §4). The error is the rule that is broken.
pub(crate) fn authority_facts(der: &[u8]) -> Result<AuthorityFacts, &'static str> {
    let rule = |refusal| match refusal {
        PeerRefusal::Profile { rule } => rule,
        PeerRefusal::Untrusted | PeerRefusal::Revoked | PeerRefusal::Expired { .. } | PeerRefusal::NotYetValid { .. } => {
            "it cannot be read"
        }
    };
    let certificate = svid::read_certificate(der).map_err(rule)?;
    if !svid::is_ca(&certificate).map_err(rule)? {
        return Err("an authority must have CA=true");
    }
    if !svid::signs_certificates(&certificate).map_err(rule)? {
        return Err("an authority must have the key usage keyCertSign");
    }
    if constrains_uris(&certificate)? {
        return Err("it has URI name constraints, under which no SVID could ever be verified");
    }
    let trust_domain = match svid::only_uri(&certificate).map_err(rule)? {
        None => None,
        Some(uri) => Some(svid::authority_domain(uri).ok_or("its URI SAN is not `spiffe://DOMAIN` without a path")?),
    };
    let validity = certificate.validity();
    Ok(AuthorityFacts {
        trust_domain,
        not_before: svid::timestamp(validity.not_before),
        not_after: svid::timestamp(validity.not_after),
        public_key_info: certificate.public_key().raw.to_vec(),
        subject_key_id: svid::subject_key_id(&certificate),
        path_length: certificate.basic_constraints().ok().flatten().and_then(|constraints| constraints.value.path_len_constraint),
    })
}

fn constrains_uris(certificate: &X509Certificate<'_>) -> Result<bool, &'static str> {
    let constraints = certificate.name_constraints().map_err(|_| "its name constraints cannot be read")?;
    let Some(constraints) = constraints.map(|extension| extension.value) else { return Ok(false) };
    let subtrees = constraints.permitted_subtrees.iter().chain(&constraints.excluded_subtrees).flatten();
    Ok(subtrees.into_iter().any(|subtree| matches!(subtree.base, GeneralName::URI(_) | GeneralName::Invalid(..))))
}
