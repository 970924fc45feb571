//! Authorities under an operator's root.

use identity::authority::{Authority, AuthorityError, UpstreamKey};
use identity::bundle::pem_section;
use identity::handshake::{self, Alpn, Serves};
use identity::{Credentials, PrivateKey, TrustBundles, X509Svid, csr};
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::sync::Arc;
use std::time::Duration;
use testkit::pki;
use tokio::io::duplex;

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("bank.example").expect("domain")
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://bank.example/ns/bank/sa/{account}")).expect("id")
}

/// An operator's certificate and key, as they have it: no SPIFFE ID anywhere.
struct Operator {
    der: Vec<u8>,
    params: CertificateParams,
    key: KeyPair,
}

fn params(name: &str, path: BasicConstraints, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    pki::set_life(&mut params, pki::now().minus(HOUR), pki::now().plus(life));
    params
}

impl Operator {
    fn root(algorithm: &'static rcgen::SignatureAlgorithm, path: BasicConstraints) -> Self {
        let (params, key) = (params("the bank's root", path, HOUR * 24), KeyPair::generate_for(algorithm).expect("key"));
        Self { der: params.self_signed(&key).expect("root").der().to_vec(), params, key }
    }

    fn below(&self, life: Duration) -> Self {
        let (params, key) = (params("the mesh's", BasicConstraints::Constrained(1), life), KeyPair::generate().expect("key"));
        let issuer = Issuer::new(self.params.clone(), &self.key);
        let der = params.signed_by(&key, &issuer).expect("intermediate").der().to_vec();
        Self { der, params, key }
    }

    fn signer(&self) -> UpstreamKey {
        UpstreamKey::from_pem(&pem_section("CERTIFICATE", &self.der), &self.key.serialize_pem()).expect("signer")
    }

    /// The certificate of a new authority that this one signed, and its key.
    fn authority(&self, life: Duration) -> (Vec<u8>, PrivateKey) {
        let key = PrivateKey::generate().expect("key");
        let request = csr::prove(&Authority::signing_request(&key, &domain()).expect("request")).expect("proven");
        (self.signer().sign_intermediate(&request, &domain(), life, pki::now()).expect("signed"), key)
    }
}

fn issued(authority: &Authority, account: &str, now: Timestamp) -> (PrivateKey, Vec<Vec<u8>>) {
    let key = PrivateKey::generate().expect("key");
    let request = csr::prove(&csr::build(&key, &id(account)).expect("request")).expect("proven");
    let chain = authority.issue(&request, &id(account), Duration::from_secs(60), now).expect("issued").chain;
    (key, chain)
}

#[tokio::test]
async fn sidecars_meet_under_an_operators_root_that_names_no_trust_domain() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let root = Operator::root(algorithm, BasicConstraints::Unconstrained);
        let middle = root.below(HOUR * 12);
        let (own, key) = middle.authority(HOUR);
        let chain = vec![own, middle.der.clone()];
        let authority =
            Authority::load_chain(chain, key, std::slice::from_ref(&root.der), &domain(), pki::now()).expect("authority");
        let bundle = TrustBundle::x509(domain(), vec![root.der.clone()]);
        let bundles = Arc::new(TrustBundles::from_model(&[bundle]).expect("bundle"));
        let credentials = |account| {
            let (key, chain) = issued(&authority, account, pki::now());
            assert_eq!(chain.len(), 3, "the root is not sent");
            Credentials::build(&key, chain, Arc::clone(&bundles), pki::now()).expect("credentials")
        };
        let (client, server) = (credentials("web"), credentials("ledger"));
        assert_eq!(client.svid().authority_key_id(), Some(authority.subject_key_id().as_str()));
        assert_eq!(
            client.links().iter().map(|link| link.kind).collect::<Vec<_>>(),
            ["svid", "intermediate", "intermediate", "authority"]
        );
        let (near, far) = duplex(64 * 1024);
        let expected = [id("ledger")];
        let (accepted, connected) = tokio::join!(
            handshake::accept(near, &server, Serves::Http, Duration::from_secs(5)),
            handshake::connect(far, &client, &expected, &[Alpn::Http2], Duration::from_secs(5)),
        );
        assert_eq!(accepted.expect("accepts").1.id(), &id("web"));
        connected.expect("connects");
        // The file that a sidecar is given names the trust domain for the root.
        assert_eq!(TrustBundles::from_pem(&bundles.to_pem()).expect("reads"), *bundles);
    }
}

#[test]
fn an_authority_ends_with_what_stands_above_it() {
    let root = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let middle = root.below(HOUR / 2);
    let (own, key) = middle.authority(HOUR * 24);
    let chain = vec![own, middle.der.clone()];
    let authority = Authority::load_chain(chain, key, std::slice::from_ref(&root.der), &domain(), pki::now()).expect("authority");
    let left = authority.not_after().since(pki::now());
    assert!(left <= HOUR / 2 && left > HOUR / 3, "{left:?}");
}

#[test]
fn an_authority_begins_with_what_stands_above_it() {
    let (begin, key) = (pki::now().minus(Duration::from_secs(60)), KeyPair::generate().expect("key"));
    let mut young = params("the bank's new root", BasicConstraints::Unconstrained, HOUR);
    pki::set_life(&mut young, begin, begin.plus(HOUR));
    let root = Operator { der: young.self_signed(&key).expect("root").der().to_vec(), params: young, key };
    // The authority itself is back-dated by ten minutes, and is believed by nobody whose clock is two behind.
    let (own, key) = root.authority(HOUR);
    let authority =
        Authority::load_chain(vec![own], key, std::slice::from_ref(&root.der), &domain(), pki::now()).expect("authority");
    assert_eq!(authority.not_before().seconds(), begin.seconds());
}

#[test]
fn a_chain_that_no_peer_would_believe_is_refused_at_once() {
    let root = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let other = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let narrow = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Constrained(0));
    let foreign = TrustDomain::parse("other.example").expect("domain");
    let load = |chain: Vec<Vec<u8>>, key, root: &Operator, domain: &TrustDomain| {
        Authority::load_chain(chain, key, std::slice::from_ref(&root.der), domain, pki::now()).map(drop)
    };
    let told = |outcome: Result<(), AuthorityError>| outcome.expect_err("refused").to_string();
    let (own, key) = root.authority(HOUR);
    assert!(
        told(load(vec![own.clone()], key, &other, &domain())).contains("an SVID that it signs: no authority"),
        "another root"
    );
    let (under_narrow, key) = narrow.authority(HOUR);
    let refused = told(load(vec![under_narrow], key, &narrow, &domain()));
    assert!(refused.contains("root 1: its path length"), "{refused}");
    let (_, stranger) = root.authority(HOUR);
    assert_eq!(load(vec![own.clone()], stranger, &root, &domain()), Err(AuthorityError::KeyMismatch));
    let (named, key) = root.authority(HOUR);
    assert!(told(load(vec![named], key, &root, &foreign)).contains("of the trust domain `bank.example`"));
    for chain in [Vec::new(), vec![own.clone(); 4]] {
        assert!(told(load(chain, PrivateKey::generate().expect("key"), &root, &domain())).contains("1 to 3"));
    }
    assert!(told(load(vec![vec![7; 90]], PrivateKey::generate().expect("key"), &root, &domain())).contains("certificate 1"));
    // One that has ended is loaded: its operator must be able to replace it.
    let late = pki::now().plus(HOUR * 2);
    let (ended, key) = root.authority(HOUR);
    Authority::load_chain(vec![ended], key, std::slice::from_ref(&root.der), &domain(), late).expect("ended");
}

#[test]
fn a_signer_needs_its_own_key_and_the_right_to_sign() {
    let root = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let pem = pem_section("CERTIFICATE", &root.der);
    let other = KeyPair::generate().expect("key").serialize_pem();
    assert_eq!(UpstreamKey::from_pem(&pem, &other).err(), Some(AuthorityError::KeyMismatch));
    let authority = Authority::generate(&domain(), pki::now(), HOUR).expect("authority");
    let (_, chain) = issued(&authority, "web", pki::now());
    let leaf = pem_section("CERTIFICATE", &chain[0]);
    for (name, certificate, key) in
        [("a leaf", leaf.as_str(), other.as_str()), ("nothing", "", &other), ("no key", &pem, "nothing")]
    {
        assert!(matches!(UpstreamKey::from_pem(certificate, key), Err(AuthorityError::Chain { .. })), "{name}");
    }
    let (signed, key) = root.authority(HOUR * 9999);
    let authority =
        Authority::load_chain(vec![signed], key, std::slice::from_ref(&root.der), &domain(), pki::now()).expect("authority");
    assert!(authority.not_after() <= pki::now().plus(HOUR * 24), "no longer than its signer");
    let (_, chain) = issued(&authority, "web", pki::now());
    let bundle = TrustBundle::x509(domain(), vec![root.der.clone()]);
    X509Svid::parse(&chain, &TrustBundles::from_model(&[bundle]).expect("bundle"), pki::now()).expect("believed");
}

/// The certificate with other bytes in place of these, wherever they stand. Its signature is nobody's then.
fn replaced(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut out = der.to_vec();
    let places: Vec<usize> = (0..=der.len() - from.len()).filter(|&at| der[at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        out[at..at + to.len()].copy_from_slice(to);
    }
    out
}

#[test]
fn a_subject_that_cannot_be_written_into_another_certificate_is_refused_by_name() {
    const COMMON_NAME: &[u8] = &[6, 3, 0x55, 4, 3];
    let root = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let (own, key) = root.authority(HOUR);
    // The parts of the subject (RFC 5280 §4.1.2.4), whole.
    let (roots, owns) = (26, 50);
    let begin = |der: &[u8], text: &[u8]| der.windows(text.len()).rposition(|window| window == text).expect("there") - 11;
    let (at, own_at) = (begin(&root.der, b"the bank's root"), begin(&own, b"Rondel"));
    for (name, bad_root, bad_own) in [
        ("empty parts", replaced(&root.der, &root.der[at..at + roots], &[0x31, 0].repeat(roots / 2)), {
            replaced(&own, &own[own_at..own_at + owns], &[0x31, 0].repeat(owns / 2))
        }),
        ("no OID", replaced(&root.der, COMMON_NAME, &[6, 3, 0x7f, 4, 3]), replaced(&own, COMMON_NAME, &[6, 3, 0x7f, 4, 3])),
        ("half an OID", replaced(&root.der, COMMON_NAME, &[6, 3, 0x80, 0x80, 0x80]), {
            replaced(&own, COMMON_NAME, &[6, 3, 0x80, 0x80, 0x80])
        }),
    ] {
        let signer = UpstreamKey::from_pem(&pem_section("CERTIFICATE", &bad_root), &root.key.serialize_pem()).map(drop);
        let told = signer.expect_err(name).to_string();
        assert!(told.starts_with("the signing certificate: its subject is"), "{name}: {told}");
        let key = PrivateKey::from_pkcs8_der(&key.to_pkcs8_der()).expect("key");
        let loaded = Authority::load_chain(vec![bad_own], key, std::slice::from_ref(&root.der), &domain(), pki::now()).map(drop);
        let told = loaded.expect_err(name).to_string();
        assert!(told.starts_with("the authority's certificate cannot be used: its subject is"), "{name}: {told}");
    }
}

#[test]
fn no_byte_of_a_certificate_makes_us_stumble() {
    let root = Operator::root(&rcgen::PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained);
    let (own, key) = root.authority(HOUR);
    let (document, file) = (key.to_pkcs8_der(), root.key.serialize_pem());
    let request = csr::prove(&Authority::signing_request(&key, &domain()).expect("request")).expect("proven");
    for mask in [0x01, 0x1f, 0x80, 0xff] {
        for at in 0..own.len() {
            let mut changed = own.clone();
            changed[at] ^= mask;
            let key = PrivateKey::from_pkcs8_der(&document).expect("key");
            let loaded = Authority::load_chain(vec![changed], key, std::slice::from_ref(&root.der), &domain(), pki::now());
            // One that has ended is loaded unproven.
            assert!(!loaded.is_ok_and(|loaded| loaded.not_after() > pki::now()), "byte {at} ^ {mask:#x}");
        }
        for at in 0..root.der.len() {
            let mut changed = root.der.clone();
            changed[at] ^= mask;
            // Some bytes of a root are nobody's to check, as its own signature: only that nothing breaks is asked here.
            if let Ok(signer) = UpstreamKey::from_pem(&pem_section("CERTIFICATE", &changed), &file) {
                let _signed_or_not = signer.sign_intermediate(&request, &domain(), HOUR, pki::now());
            }
        }
    }
}
