//! SPIFFE X509-SVID, clause by clause. The table is in `docs/spiffe.md`.

use identity::bundle::BundleError;
use identity::bundle_document::{self, BundleDocument, BundleDocumentError};
use identity::csr;
use identity::svid::{PeerRefusal, X509Svid};
use identity::{Authority, PrivateKey, TrustBundles};
use model::{Reason, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::pki::{self, Flaw, Leaf, Presented, TestAuthority, authority_params, san, set_life};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn parse(authority: &TestAuthority, chain: &[Vec<u8>]) -> Result<X509Svid, PeerRefusal> {
    X509Svid::parse(chain, &authority.bundles(), pki::now())
}

/// The rule that a leaf with this flaw breaks.
pub(crate) fn rule(authority: &TestAuthority, flaw: Flaw) -> &'static str {
    broken(parse(authority, &authority.flawed(flaw, &authority.id("web")).chain))
}

fn broken<T: std::fmt::Debug>(refused: Result<T, PeerRefusal>) -> &'static str {
    match refused {
        Err(PeerRefusal::Profile { rule }) => rule,
        other => panic!("{other:?}"),
    }
}

fn bank() -> TestAuthority {
    TestAuthority::new("bank.example")
}

/// A leaf that is good but for what `spoil` does.
fn with(spoil: impl Fn(&mut Leaf)) -> Result<X509Svid, PeerRefusal> {
    let authority = bank();
    let mut leaf = Leaf::good(&authority.id("web"));
    spoil(&mut leaf);
    parse(&authority, &authority.mint(&leaf).chain)
}

/// A chain over an intermediate that is good but for what `spoil` does.
fn over(spoil: impl Fn(&mut CertificateParams)) -> Result<X509Svid, PeerRefusal> {
    let authority = bank();
    let mut params = authority_params(authority.trust_domain(), "middle");
    spoil(&mut params);
    parse(&authority, &authority.intermediate(params).good(&authority.id("web")).chain)
}

fn issued(read: impl Fn(&X509Certificate<'_>, &X509Certificate<'_>)) {
    let domain = TrustDomain::parse("bank.example").expect("domain");
    let authority = Authority::generate(&domain, pki::now(), 24 * HOUR).expect("authority");
    let id = model::SpiffeId::workload(&domain, "bank", "web").expect("id");
    let key = PrivateKey::generate().expect("key");
    let proven = csr::prove(&csr::build(&key, &id).expect("request")).expect("proven");
    let leaf = authority.issue(&proven, &id, HOUR, pki::now()).expect("issued").chain.concat();
    let (_, leaf) = X509Certificate::from_der(&leaf).expect("parses");
    let (_, root) = X509Certificate::from_der(authority.certificate_der()).expect("parses");
    read(&leaf, &root);
}

#[test]
fn x509_svid_2_exactly_one_uri_san() {
    let authority = bank();
    assert_eq!(rule(&authority, Flaw::TwoUriSans), "it has more than one URI SAN");
    assert_eq!(rule(&authority, Flaw::UnreadableUriSan), "a name in its SAN extension cannot be read");
    assert_eq!(rule(&authority, Flaw::NoSan), "it has no URI SAN");
    assert_eq!(rule(&authority, Flaw::DnsSanOnly), "it has no URI SAN");
    rule(&authority, Flaw::TwoSanExtensions);
    let twice = with(|leaf| leaf.uris = vec![leaf.uris[0].clone(), leaf.uris[0].clone()]);
    assert_eq!(broken(twice), "it has more than one URI SAN", "the same one twice, too");
    let beside = with(|leaf| leaf.uris = vec![leaf.uris[0].clone(), "https://bank.example".to_owned()]);
    assert_eq!(broken(beside), "it has more than one URI SAN", "of another scheme, too");
}

#[test]
fn x509_svid_2_any_other_san_may_stand_beside_it_and_means_nothing() {
    let svid = with(|leaf| leaf.dns = vec!["ledger.bank.example".to_owned(), "*.bank.example".to_owned()]).expect("good");
    assert_eq!(svid.id(), &bank().id("web"));
    let uri = bank().id("web").to_string();
    with(|leaf| {
        leaf.uris = Vec::new();
        leaf.extensions = vec![san(&[(1, b"web@bank.example"), (6, uri.as_bytes()), (7, &[10, 0, 0, 1])])];
    })
    .expect("a mail address and an IP address");
}

#[test]
fn x509_svid_3_1_a_leafs_id_has_a_path() {
    let authority = bank();
    assert_eq!(rule(&authority, Flaw::NoPath), "its URI SAN is not the SPIFFE ID of a workload");
    let slash = with(|leaf| leaf.uris = vec!["spiffe://bank.example/".to_owned()]);
    assert_eq!(broken(slash), "its URI SAN is not the SPIFFE ID of a workload");
}

#[test]
fn x509_svid_3_1_the_san_is_critical_where_the_subject_is_empty() {
    issued(|leaf, _| {
        assert!(leaf.subject().iter().next().is_none());
        assert!(leaf.subject_alternative_name().expect("readable").expect("there").critical);
    });
}

#[test]
fn x509_svid_3_2_a_signing_certificate_is_none_to_authenticate_with() {
    let authority = bank();
    let own = vec![authority.certificate_der().to_vec()];
    broken(parse(&authority, &own));
    // Also not if it names a workload.
    let named = with(|leaf| leaf.ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(broken(named), "a leaf must have CA=false");
}

#[test]
fn x509_svid_3_2_an_intermediate_is_a_signing_certificate_of_the_leafs_trust_domain() {
    over(|_| {}).expect("good");
    over(|params| params.subject_alt_names = Vec::new()).expect("a URI SAN is optional in a signing certificate");
    for uri in ["spiffe://partner.example", "spiffe://bank.example/ns/bank/sa/web", "spiffe://bank.example/", "https://x"] {
        let refused = over(|params| params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))]);
        assert_eq!(broken(refused), "an intermediate must belong to the leaf's trust domain", "{uri}");
    }
    let rule = "an intermediate must have CA=true and keyCertSign";
    assert_eq!(broken(over(|params| params.is_ca = IsCa::ExplicitNoCa)), rule);
    assert_eq!(broken(over(|params| params.is_ca = IsCa::NoCa)), rule);
    assert_eq!(broken(over(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign])), rule);
    assert_eq!(broken(over(|params| params.key_usages = Vec::new())), rule);
}

#[test]
fn x509_svid_3_2_an_authoritys_id_has_no_path() {
    let domain = TrustDomain::parse("bank.example").expect("domain");
    for uri in ["spiffe://bank.example/x", "spiffe://bank.example/"] {
        let mut params = authority_params(&domain, "root");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        let refused = TrustBundles::from_model(&[TestAuthority::root(params, domain.clone()).bundle()]).err();
        let rule = "its URI SAN is not `spiffe://DOMAIN` without a path";
        assert_eq!(refused, Some(BundleError::Authority { index: 1, rule }), "{uri}");
    }
}

#[test]
fn x509_svid_4_1_the_ca_flag_tells_leaf_from_authority() {
    assert_eq!(rule(&bank(), Flaw::CaLeaf), "a leaf must have CA=false");
    with(|leaf| leaf.ca = IsCa::NoCa).expect("absent means false");
    issued(|leaf, root| {
        assert!(!leaf.basic_constraints().expect("readable").expect("there").value.ca);
        assert!(root.basic_constraints().expect("readable").expect("there").value.ca);
    });
}

#[test]
fn x509_svid_4_1_a_path_length_is_kept() {
    let authority = bank();
    let params = |name, length| {
        let mut params = authority_params(authority.trust_domain(), name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params
    };
    for (length, is_good) in [(0, false), (1, true)] {
        let chain = authority.intermediate(params("one", length)).intermediate(params("two", 0)).good(&authority.id("web")).chain;
        assert_eq!(parse(&authority, &chain).is_ok(), is_good, "{length}");
    }
}

#[test]
fn x509_svid_4_3_the_key_usage_is_there_and_critical() {
    assert_eq!(rule(&bank(), Flaw::NoKeyUsage), "it has no keyUsage");
    issued(|leaf, root| {
        for certificate in [leaf, root] {
            assert!(certificate.key_usage().expect("readable").expect("there").critical);
        }
    });
}

#[test]
fn x509_svid_4_3_a_leaf_signs_data_and_never_certificates() {
    let authority = bank();
    assert_eq!(rule(&authority, Flaw::NoDigitalSignature), "a leaf must have the key usage digitalSignature");
    for flaw in [Flaw::KeyCertSign, Flaw::CrlSign] {
        assert_eq!(rule(&authority, flaw), "a leaf must not have the key usages keyCertSign or cRLSign");
    }
    for more in [KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement] {
        with(|leaf| leaf.usages = vec![KeyUsagePurpose::DigitalSignature, more]).expect("may be set");
    }
}

#[test]
fn x509_svid_4_4_the_extended_key_usage_is_for_clients_and_servers() {
    let authority = bank();
    for flaw in [Flaw::NoExtendedKeyUsage, Flaw::ServerAuthOnly, Flaw::ClientAuthOnly] {
        assert_eq!(rule(&authority, flaw), "a leaf must have the extended key usages serverAuth and clientAuth");
    }
    with(|leaf| leaf.purposes.push(ExtendedKeyUsagePurpose::EmailProtection)).expect("others may stand beside them");
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    over(|params| params.extended_key_usages = both.clone()).expect("a signing certificate may have it");
    let code = over(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    assert_eq!(code.err(), Some(PeerRefusal::Untrusted), "and then it binds what stands below it");
}

#[test]
fn x509_svid_5_1_the_path_is_validated_as_rfc_5280_says() {
    let authority = bank();
    for flaw in [Flaw::TwinAuthority, Flaw::OtherTrustDomain, Flaw::Expired, Flaw::NotYetValid, Flaw::UnknownCriticalExtension] {
        let refused = parse(&authority, &authority.flawed(flaw, &authority.id("web")).chain).expect_err("refused");
        assert_eq!(refused.reason(), flaw.reason(), "{flaw:?}");
    }
    let expired = over(|params| set_life(params, pki::now().minus(2 * HOUR), pki::now().minus(HOUR)));
    assert!(expired.is_err(), "an intermediate that has ended");
    let Presented { chain, .. } =
        authority.intermediate(authority_params(authority.trust_domain(), "m")).good(&authority.id("web"));
    assert_eq!(parse(&authority, &chain[..1]).expect_err("a link is missing").reason(), Reason::PeerUntrusted);
}

#[test]
fn x509_svid_5_2_a_leaf_cannot_sign_for_another() {
    // A workload's own leaf stands where an intermediate should.
    let authority = bank();
    let web = authority.good(&authority.id("web"));
    let forged = authority.twin().good(&authority.id("ledger"));
    let refused = parse(&authority, &[forged.chain, web.chain].concat());
    assert_eq!(broken(refused), "an intermediate must have CA=true and keyCertSign");
}

#[test]
fn x509_svid_5_2_the_scheme_of_the_id_is_spiffe() {
    assert_eq!(rule(&bank(), Flaw::OtherScheme), "its URI SAN is not the SPIFFE ID of a workload");
    let upper = with(|leaf| leaf.uris = vec![leaf.uris[0].replacen("spiffe", "SPIFFE", 1)]);
    assert_eq!(broken(upper), "its URI SAN is not the SPIFFE ID of a workload");
}

/// The entries of the bundle that publishes these authorities.
fn published(authorities: &[&TestAuthority]) -> Vec<Value> {
    let x509_authorities = authorities.iter().map(|authority| authority.certificate_der().to_vec()).collect();
    let text = bundle_document::write(&BundleDocument { x509_authorities, ..BundleDocument::default() });
    let set: Value = serde_json::from_str(&text).expect("JSON");
    set["keys"].as_array().expect("list").clone()
}

fn consumed(entries: &[Value]) -> Result<BundleDocument, BundleDocumentError> {
    bundle_document::parse(json!({ "keys": entries }).to_string().as_bytes(), bank().trust_domain())
}

#[test]
fn x509_svid_6_1_an_authority_is_published_with_one_certificate_and_no_id() {
    let (one, two) = (bank(), bank());
    let entries = published(&[&one, &two]);
    assert_eq!(entries.len(), 2, "one entry for each");
    for (entry, authority) in entries.iter().zip([&one, &two]) {
        assert_eq!(entry["use"], "x509-svid");
        let mut members: Vec<&String> = entry.as_object().expect("object").keys().collect();
        members.sort();
        assert_eq!(members, ["crv", "kty", "use", "x", "x5c", "y"], "no `kid`");
        use base64::Engine as _;
        let der = base64::engine::general_purpose::STANDARD.encode(authority.certificate_der());
        assert_eq!(entry["x5c"], json!([der]), "base64 with padding, not base64url (RFC 7517 §4.7)");
    }
}

#[test]
fn x509_svid_6_2_an_entry_without_a_certificate_is_ignored() {
    let good = published(&[&bank()]).remove(0);
    let mut without = good.clone();
    without.as_object_mut().expect("object").remove("x5c");
    let mut empty = good.clone();
    empty["x5c"] = json!([]);
    let read = consumed(&[without.clone(), good, empty.clone()]).expect("sound");
    assert_eq!((read.x509_authorities.len(), read.ignored), (1, 2));
    let none = consumed(&[without, empty]).expect("sound");
    assert!(none.x509_authorities.is_empty(), "then X509-SVIDs are not supported");
}

#[test]
fn x509_svid_6_2_only_the_first_certificate_of_an_entry_counts() {
    let (first, second) = (bank(), TestAuthority::new("partner.example"));
    let mut entry = published(&[&first]).remove(0);
    let more = published(&[&second]).remove(0)["x5c"][0].clone();
    entry["x5c"].as_array_mut().expect("list").extend([more, json!("not base64"), json!(7)]);
    let read = consumed(&[entry.clone(), entry]).expect("sound");
    assert_eq!(read.x509_authorities, [first.certificate_der()], "the union: one authority once");
    assert_eq!(read.ignored, 0);
}

#[test]
fn x509_svid_6_2_what_is_published_for_us_but_broken_is_refused() {
    let good = published(&[&bank()]).remove(0);
    let changed = |name: &str, value: Value| {
        let mut entry = good.clone();
        entry[name] = value;
        consumed(&[entry])
    };
    for (name, value, rule) in [
        ("x5c", json!(["!"]), "its certificate is not base64"),
        ("x5c", json!([7]), "its certificate is not base64"),
        ("x5c", json!("AAAA"), "its `x5c` is not a list"),
        ("x5c", json!(["AAAA"]), "its encoding is broken"),
    ] {
        let rule = rule.to_owned();
        assert_eq!(changed(name, value.clone()), Err(BundleDocumentError::Authority { index: 1, rule }), "{name} {value}");
    }
    let authority = bank();
    let leaf = authority.good(&authority.id("web")).chain.concat();
    use base64::Engine as _;
    let leaf = json!([base64::engine::general_purpose::STANDARD.encode(leaf)]);
    let rule = "an authority must have CA=true".to_owned();
    assert_eq!(changed("x5c", leaf), Err(BundleDocumentError::Authority { index: 1, rule }));
    let foreign = consumed(&published(&[&TestAuthority::new("partner.example")]));
    assert!(matches!(foreign, Err(BundleDocumentError::Foreign { index: 1, .. })), "{foreign:?}");
}

#[test]
fn a_document_is_refused_for_an_authority_that_sidecars_cannot_take() {
    // Two extended key usages: the parser passes over them, the verifier does not.
    let usage =
        rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 37], b"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01".to_vec());
    let domain = bank().trust_domain().clone();
    let mut params = authority_params(&domain, "root");
    params.custom_extensions = vec![usage.clone(), usage];
    let strange = TestAuthority::root(params, domain);
    // A sidecar would refuse the whole configuration for it, with everything that it revokes.
    let taken = TrustBundles::from_model(&[strange.bundle()]);
    assert!(matches!(taken, Err(BundleError::Authority { index: 1, .. })), "{taken:?}");
    let rule = "its encoding is broken".to_owned();
    assert_eq!(consumed(&published(&[&strange])), Err(BundleDocumentError::Authority { index: 1, rule }));
}

#[test]
fn a_document_is_refused_whose_authorities_would_fill_every_configuration() {
    let large = || {
        let domain = bank().trust_domain().clone();
        let mut params = authority_params(&domain, "root");
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![4; 15_000])];
        TestAuthority::root(params, domain)
    };
    let authorities: Vec<TestAuthority> = (0..9).map(|_| large()).collect();
    let entries = published(&authorities.iter().collect::<Vec<_>>());
    let refused = consumed(&entries);
    let max = bundle_document::AUTHORITY_BYTES_MAX;
    assert_eq!(refused, Err(BundleDocumentError::TooMany { what: "bytes of authorities", max }));
    consumed(&entries[..8]).expect("within the bound");
}
