use identity::TrustBundles;
use identity::bundle::{AUTHORITIES_MAX, BundleError, PEM_BYTES_MAX};
use model::TrustDomain;
use model::snapshot::TrustBundle;
use testkit::pki::{TestAuthority, authority_params, bundles};

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("a trust domain")
}

#[test]
fn bundles_read_back_what_they_print() {
    let (bank, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    let twin = bank.twin();
    let thrice = [bank.certificate_der(), twin.certificate_der(), bank.certificate_der()].map(<[u8]>::to_vec);
    let two = TrustBundle::x509(bank.trust_domain().clone(), thrice.to_vec());
    let all = TrustBundles::from_model(&[partner.bundle(), two]).expect("sound");
    let model = all.to_model();
    assert_eq!(model.iter().map(|bundle| bundle.trust_domain.as_str()).collect::<Vec<_>>(), ["bank.example", "partner.example"]);
    assert_eq!(model[0].authorities, [bank.certificate_der(), twin.certificate_der()], "a repeated authority stands once");
    assert_eq!(TrustBundles::from_pem(&all.to_pem()).expect("reads back"), all);
    assert_eq!(TrustBundles::from_model(&model).expect("reads back"), all);
    assert!(all.to_pem().lines().all(|line| line.len() <= 64));
    assert!(all.contains(&domain("bank.example")) && !all.contains(&domain("bank.example.org")));
}

#[test]
fn pem_says_its_trust_domain_itself_and_holds_nothing_else() {
    let authority = TestAuthority::new("bank.example");
    let pem = authority.bundles().to_pem();
    assert!(TrustBundles::from_pem(&format!("a comment\n{pem}\n")).is_ok());
    let mut unnamed = authority_params(authority.trust_domain(), "root");
    unnamed.subject_alt_names = Vec::new();
    let unnamed = TestAuthority::root(unnamed, domain("bank.example"));
    assert!(unnamed.bundles().contains(&domain("bank.example")), "a snapshot's bundle names it from outside");
    // An operator's root is named by the line above it, and by nothing else.
    let text = unnamed.bundles().to_pem();
    assert_eq!(TrustBundles::from_pem(&text), Ok((*unnamed.bundles()).clone()));
    let (line, section) = text.split_once('\n').expect("a line");
    assert_eq!(line, "spiffe://bank.example");
    let refused = TrustBundles::from_pem(section).err();
    assert!(matches!(&refused, Some(BundleError::Authority { index: 1, rule }) if rule.contains("no URI SAN")), "{refused:?}");
    let foreign = TrustBundles::from_pem(&pem.replace("spiffe://bank.example", "spiffe://other.example")).err();
    assert!(matches!(foreign, Some(BundleError::Foreign { index: 1, .. })), "{foreign:?}");
    for wrong in ["spiffe://", "spiffe://bank.example/path", "spiffe://BANK"] {
        assert_eq!(TrustBundles::from_pem(&format!("{wrong}\n{section}")).err(), Some(BundleError::Pem), "{wrong}");
    }
    let key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    let table = [
        ("a private key", format!("{pem}{key}"), BundleError::Pem),
        ("a cut section", pem.replace("-----END CERTIFICATE-----", ""), BundleError::Pem),
        ("not base64", pem.replacen('M', "!", 1), BundleError::Pem),
        ("nothing", String::new(), BundleError::Empty { trust_domain: "-".to_owned() }),
        ("no section", "hello".to_owned(), BundleError::Empty { trust_domain: "-".to_owned() }),
        ("too long", "x".repeat(PEM_BYTES_MAX + 1), BundleError::TooMany { what: "bytes of PEM", max: PEM_BYTES_MAX }),
    ];
    for (name, text, expected) in table {
        assert_eq!(TrustBundles::from_pem(&text).err(), Some(expected), "{name}");
    }
}

#[test]
fn what_cannot_vouch_does_not_enter_a_bundle() {
    use rcgen::{GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType};
    let bank = domain("bank.example");
    let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
    type Spoil = Box<dyn Fn(&mut rcgen::CertificateParams)>;
    let cases: [(&str, Spoil, &str); 6] = [
        ("not a CA", Box::new(|params| params.is_ca = IsCa::ExplicitNoCa), "CA=true"),
        ("no keyCertSign", Box::new(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), "keyCertSign"),
        ("no keyUsage", Box::new(|params| params.key_usages = Vec::new()), "keyCertSign"),
        ("a path", Box::new(move |params| params.subject_alt_names = vec![uri("spiffe://bank.example/x")]), "without a path"),
        (
            "two URIs",
            Box::new(move |params| params.subject_alt_names = vec![uri("spiffe://bank.example"), uri("spiffe://b.example")]),
            "more than one URI SAN",
        ),
        (
            "URI constraints",
            Box::new(|params| {
                // rcgen has no URI subtrees, so the extension is written out: permitted [0] { base [6] "a.example" }.
                let base = b"\x86\x09a.example";
                let content = [&[0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b], &base[..]].concat();
                let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            }),
            "URI name constraints",
        ),
    ];
    for (name, spoil, expected) in cases {
        let mut params = authority_params(&bank, "root");
        spoil(&mut params);
        let root = TestAuthority::root(params, bank.clone());
        let error = TrustBundles::from_model(&[root.bundle()]).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    let mut dns = authority_params(&bank, "root");
    let permitted_subtrees = vec![GeneralSubtree::DnsName("bank.example".to_owned())];
    dns.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    TrustBundles::from_model(&[TestAuthority::root(dns, bank.clone()).bundle()]).expect("DNS constraints do no harm");
    for noise in [vec![], vec![0x30], vec![0x30; 400], vec![0; 20_000]] {
        let bundle = TrustBundle::x509(bank.clone(), vec![noise]);
        assert!(matches!(TrustBundles::from_model(&[bundle]), Err(BundleError::Authority { index: 1, .. })));
    }
}

#[test]
fn an_authority_of_one_trust_domain_cannot_stand_in_the_bundle_of_another() {
    let partner = TestAuthority::new("partner.example");
    let smuggled = TrustBundle { trust_domain: domain("bank.example"), ..partner.bundle() };
    let expected = BundleError::Foreign { index: 1, trust_domain: domain("bank.example"), found: domain("partner.example") };
    assert_eq!(TrustBundles::from_model(&[smuggled]).err(), Some(expected));
}

#[test]
fn a_set_of_bundles_is_never_empty_twofold_or_boundless() {
    let bank = TestAuthority::new("bank.example");
    let empty = TrustBundle { authorities: Vec::new(), ..bank.bundle() };
    assert_eq!(TrustBundles::from_model(&[empty]).err(), Some(BundleError::Empty { trust_domain: "bank.example".to_owned() }));
    assert!(matches!(TrustBundles::from_model(&[]), Err(BundleError::Empty { .. })));
    let twice = TrustBundles::from_model(&[bank.bundle(), bank.twin().bundle()]).err();
    assert_eq!(twice, Some(BundleError::Duplicate { trust_domain: domain("bank.example") }));
    let authorities: Vec<Vec<u8>> = (0..=AUTHORITIES_MAX).map(|_| bank.twin().certificate_der().to_vec()).collect();
    let most = TrustBundle { authorities: authorities[..AUTHORITIES_MAX].to_vec(), ..bank.bundle() };
    TrustBundles::from_model(&[most]).expect("at the bound");
    let many = TrustBundles::from_model(&[TrustBundle { authorities, ..bank.bundle() }]).err();
    assert!(matches!(many, Some(BundleError::TooMany { max: AUTHORITIES_MAX, .. })), "{many:?}");
    assert_eq!(format!("{:?}", bundles(&[&bank])), "{bank.example: 1}");
}
