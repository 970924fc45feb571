use identity::authority::{Authority, AuthorityError, BACK_DATING, IssueRefusal};
use identity::csr::{self, ProvenPublicKey};
use identity::{Credentials, PrivateKey, TrustBundles, X509Svid};
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, SanType};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use testkit::pki;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn domain() -> TrustDomain {
    TrustDomain::parse("bank.example").expect("domain")
}

fn web() -> SpiffeId {
    SpiffeId::workload(&domain(), "bank", "web").expect("id")
}

fn authority() -> Authority {
    Authority::generate(&domain(), pki::now(), DAY).expect("authority")
}

fn bundles(authority: &Authority) -> Arc<TrustBundles> {
    let authorities = vec![authority.certificate_der().to_vec()];
    let bundle = TrustBundle::x509(authority.trust_domain().clone(), authorities);
    Arc::new(TrustBundles::from_model(&[bundle]).expect("bundles"))
}

fn proven(key: &PrivateKey) -> ProvenPublicKey {
    csr::prove(&csr::build(key, &web()).expect("request")).expect("proven")
}

#[test]
fn what_it_issues_is_believed_by_peers_for_exactly_its_life() {
    let (authority, key, now) = (authority(), PrivateKey::generate().expect("key"), pki::now());
    let issued = authority.issue(&proven(&key), &web(), HOUR, now).expect("issued");
    assert_eq!(issued.not_before, now.minus(BACK_DATING));
    assert_eq!(issued.not_after, now.plus(HOUR));
    let credentials = Credentials::build(&key, issued.chain.clone(), bundles(&authority), now).expect("credentials");
    let svid = credentials.svid();
    assert_eq!((svid.id(), svid.serial()), (&web(), issued.serial.as_str()));
    assert_eq!((svid.not_before(), svid.not_after()), (issued.not_before, issued.not_after));
    assert!(X509Svid::parse(&issued.chain, &bundles(&authority), issued.not_after.plus(Duration::from_secs(1))).is_err());
}

/// SPIFFE X509-SVID §2 to §4, each clause read by another parser than the one that wrote it.
#[test]
fn a_leaf_has_the_spiffe_profile_and_not_one_extension_more() {
    let (authority, key) = (authority(), PrivateKey::generate().expect("key"));
    let issued = authority.issue(&proven(&key), &web(), HOUR, pki::now()).expect("issued");
    assert_profile(&issued.chain[0], &authority, &web());
}

fn assert_profile(der: &[u8], authority: &Authority, id: &SpiffeId) {
    let (_, leaf) = X509Certificate::from_der(der).expect("parses");
    let (_, root) = X509Certificate::from_der(authority.certificate_der()).expect("parses");
    assert!(leaf.subject().iter().next().is_none(), "the subject is empty");
    assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    let san = leaf.subject_alternative_name().expect("readable").expect("there");
    assert!(san.critical, "RFC 5280 §4.2.1.6: critical where the subject is empty");
    assert_eq!(san.value.general_names, [GeneralName::URI(id.as_str())]);
    let constraints = leaf.basic_constraints().expect("readable").expect("there");
    assert!(constraints.critical && !constraints.value.ca && constraints.value.path_len_constraint.is_none());
    let usage = leaf.key_usage().expect("readable").expect("there");
    assert_eq!((usage.critical, usage.value.flags), (true, 1), "digitalSignature alone");
    let purposes = leaf.extended_key_usage().expect("readable").expect("there").value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any && purposes.other.is_empty());
    let identifier = |certificate: &X509Certificate<'_>| {
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        })
    };
    let issuer = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(identifier) => identifier.key_identifier.as_ref().map(|key| key.0.to_vec()),
        _ => None,
    });
    assert!(issuer.is_some() && issuer == identifier(&root) && identifier(&leaf).is_some());
    assert_eq!(leaf.extensions().len(), 6);
    assert_eq!(leaf.raw_serial().len(), 16);
}

#[test]
fn a_request_that_asks_for_more_gets_the_key_certified_and_nothing_else() {
    let (authority, pair) = (authority(), KeyPair::generate().expect("key"));
    let mut greedy = CertificateParams::default();
    let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
    let dns = SanType::DnsName("control.bank.example".try_into().expect("ASCII"));
    greedy.subject_alt_names = vec![uri("spiffe://bank.example/rondel/control"), uri("spiffe://other.example/x"), dns];
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 3], vec![5, 0])];
    let request = greedy.serialize_request(&pair).expect("request");
    let key = csr::prove(request.der()).expect("its key is its own");
    let issued = authority.issue(&key, &web(), HOUR, pki::now()).expect("issued");
    assert_profile(&issued.chain[0], &authority, &web());
    assert_eq!(issued.not_after, pki::now().plus(HOUR).min(issued.not_after), "not the year 4096");
    let svid = X509Svid::parse(&issued.chain, &bundles(&authority), pki::now()).expect("good");
    assert_eq!(svid.id(), &web());
}

#[test]
fn the_same_key_gets_another_serial_each_time() {
    let (authority, key) = (authority(), PrivateKey::generate().expect("key"));
    let key = proven(&key);
    let serials: BTreeSet<String> =
        (0..50).map(|_| authority.issue(&key, &web(), HOUR, pki::now()).expect("issued").serial).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 32));
}

#[test]
fn a_foreign_trust_domain_is_refused() {
    let (authority, key) = (authority(), proven(&PrivateKey::generate().expect("key")));
    for name in ["partner.example", "bank.example.org", "sub.bank.example", "bank"] {
        let asked = TrustDomain::parse(name).expect("domain");
        let id = SpiffeId::workload(&asked, "bank", "web").expect("id");
        let refused = authority.issue(&key, &id, HOUR, pki::now());
        assert_eq!(refused, Err(IssueRefusal::ForeignTrustDomain { asked, own: domain() }));
    }
}

#[test]
fn no_svid_outlives_its_authority_or_begins_before_it() {
    let (authority, key) = (authority(), proven(&PrivateKey::generate().expect("key")));
    let (end, second) = (authority.not_after(), Duration::from_secs(1));
    let last = end.minus(HOUR);
    assert_eq!(authority.issue(&key, &web(), HOUR, last).expect("at the bound").not_after, end);
    let refused = authority.issue(&key, &web(), HOUR + second, last);
    assert_eq!(refused, Err(IssueRefusal::OutlivesAuthority { asked: end.plus(second), authority: end }));
    assert!(matches!(authority.issue(&key, &web(), HOUR, end.plus(DAY)), Err(IssueRefusal::OutlivesAuthority { .. })));
    assert!(matches!(authority.issue(&key, &web(), Duration::MAX, last), Err(IssueRefusal::OutlivesAuthority { .. })));
    for lifetime in [Duration::ZERO, Duration::from_millis(999)] {
        assert_eq!(authority.issue(&key, &web(), lifetime, pki::now()), Err(IssueRefusal::NoLifetime));
    }
    let early = end.minus(DAY).minus(HOUR);
    assert!(matches!(authority.issue(&key, &web(), HOUR, early), Err(IssueRefusal::AuthorityNotYetValid { .. })));
    // A clock that went back a little since the authority was made: back-dating stops at the authority's own beginning.
    let soon = end.minus(DAY).minus(Duration::from_secs(299));
    let issued = authority.issue(&key, &web(), HOUR, soon).expect("issued");
    assert_eq!(issued.not_before, end.minus(DAY).minus(BACK_DATING));
}

#[test]
fn an_authority_is_a_self_signed_root_that_names_its_trust_domain() {
    let authority = authority();
    let (_, root) = X509Certificate::from_der(authority.certificate_der()).expect("parses");
    root.verify_signature(None).expect("signed by itself");
    assert_eq!(root.subject().as_raw(), root.issuer().as_raw());
    let names = &root.subject_alternative_name().expect("readable").expect("there").value.general_names;
    assert_eq!(*names, [GeneralName::URI("spiffe://bank.example")]);
    let constraints = root.basic_constraints().expect("readable").expect("there").value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    assert!(root.key_usage().expect("readable").expect("there").value.key_cert_sign());
    assert!(!root.key_usage().expect("readable").expect("there").value.digital_signature());
    assert_eq!(format!("{authority:?}").matches("key").count(), 0);
}

#[test]
fn a_kept_authority_goes_on_where_it_was() {
    let authority = authority();
    let key = PrivateKey::from_pkcs8_der(&authority.key().to_pkcs8_der()).expect("key");
    let loaded = Authority::load(authority.certificate_der().to_vec(), key).expect("loads");
    assert_eq!((loaded.trust_domain(), loaded.not_after()), (authority.trust_domain(), authority.not_after()));
    let key = PrivateKey::generate().expect("key");
    let issued = loaded.issue(&proven(&key), &web(), HOUR, pki::now()).expect("issued");
    Credentials::build(&key, issued.chain, bundles(&authority), pki::now()).expect("the first one's bundle bears it");
}

#[test]
fn an_authority_is_not_loaded_from_what_is_none() {
    let (authority, other) = (authority(), PrivateKey::generate().expect("key"));
    let refused = Authority::load(authority.certificate_der().to_vec(), other).err();
    assert_eq!(refused, Some(AuthorityError::KeyMismatch));
    let key = PrivateKey::generate().expect("key");
    let leaf = authority.issue(&proven(&key), &web(), HOUR, pki::now()).expect("issued").chain.concat();
    assert!(matches!(Authority::load(leaf, key), Err(AuthorityError::Certificate { .. })));
    let key = PrivateKey::generate().expect("key");
    assert!(matches!(Authority::load(vec![0x30, 0], key), Err(AuthorityError::Certificate { .. })));
}

#[test]
fn an_authority_lives_as_long_as_it_was_asked_to() {
    let now = Timestamp::from_seconds(1_795_514_400);
    let ten_years = DAY * 3650;
    assert_eq!(Authority::generate(&domain(), now, ten_years).expect("authority").not_after(), now.plus(ten_years));
    // 2050 is where X.509 changes its form of time (RFC 5280 §4.1.2.5).
    let far = DAY * 365 * 60;
    assert_eq!(Authority::generate(&domain(), now, far).expect("authority").not_after(), now.plus(far));
    for lifetime in [Duration::ZERO, Duration::MAX, DAY * 365 * 8000] {
        assert!(matches!(Authority::generate(&domain(), now, lifetime), Err(AuthorityError::Lifetime { .. })), "{lifetime:?}");
    }
}
