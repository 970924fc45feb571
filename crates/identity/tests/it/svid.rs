use identity::svid::{CERTIFICATE_BYTES_MAX, PeerRefusal, X509Svid};
use model::{Reason, Timestamp};
use std::time::Duration;
use testkit::pki::{self, Flaw, Leaf, TestAuthority, authority_params, set_life};

const HOUR: Duration = Duration::from_secs(3600);

fn rule(refusal: Option<PeerRefusal>) -> &'static str {
    match refusal {
        Some(PeerRefusal::Profile { rule }) => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_chain_says_who_when_and_which() {
    let authority = TestAuthority::new("bank.example");
    let leaf = Leaf { dns: vec!["web.bank.example".to_owned()], ..Leaf::good(&authority.id("web")) };
    let presented = authority.mint(&leaf);
    let svid = X509Svid::parse(&presented.chain, &authority.bundles(), pki::now()).expect("good");
    assert_eq!(svid.id(), &authority.id("web"));
    assert_eq!((svid.not_before(), svid.not_after()), (leaf.not_before, leaf.not_after));
    assert_eq!(svid.serial().len(), 32);
    assert_eq!(svid.chain(), presented.chain);
}

#[test]
fn every_flaw_is_refused_and_says_its_rule() {
    let authority = TestAuthority::new("bank.example");
    for flaw in Flaw::ALL {
        let presented = authority.flawed(flaw, &authority.id("web"));
        let refusal = X509Svid::parse(&presented.chain, &authority.bundles(), pki::now()).expect_err("refused");
        assert_eq!(refusal.reason(), flaw.reason(), "{flaw:?}: {refusal}");
        let expected = match flaw {
            Flaw::TwoUriSans => "more than one URI SAN",
            Flaw::UnreadableUriSan => "a name in its SAN extension cannot be read",
            Flaw::NoSan | Flaw::DnsSanOnly => "no URI SAN",
            Flaw::NoPath | Flaw::OtherScheme => "not the SPIFFE ID of a workload",
            Flaw::CaLeaf => "CA=false",
            Flaw::NoKeyUsage => "no keyUsage",
            Flaw::NoDigitalSignature => "digitalSignature",
            Flaw::KeyCertSign | Flaw::CrlSign => "must not have",
            Flaw::NoExtendedKeyUsage | Flaw::ServerAuthOnly | Flaw::ClientAuthOnly => "serverAuth and clientAuth",
            Flaw::UnknownCriticalExtension => "critical extension",
            Flaw::TwinAuthority | Flaw::OtherTrustDomain | Flaw::Expired | Flaw::NotYetValid | Flaw::TwoSanExtensions => "",
        };
        assert!(refusal.to_string().contains(expected), "{flaw:?}: {refusal}");
    }
}

#[test]
fn the_dates_hold_to_the_second_at_both_ends() {
    let authority = TestAuthority::new("bank.example");
    let leaf = Leaf::good(&authority.id("web"));
    let presented = authority.mint(&leaf);
    let parse = |now: Timestamp| X509Svid::parse(&presented.chain, &authority.bundles(), now).err().map(|r| r.reason());
    let (second, milli) = (Duration::from_secs(1), Duration::from_millis(1));
    for (now, expected) in [
        (leaf.not_before.minus(milli), Some(Reason::PeerNotYetValid)),
        (leaf.not_before, None),
        // RFC 5280 §4.1.2.5: the period includes both ends, in whole seconds.
        (leaf.not_after.plus(second).minus(milli), None),
        (leaf.not_after.plus(second), Some(Reason::PeerExpired)),
    ] {
        assert_eq!(parse(now), expected, "{now}");
    }
}

#[test]
fn a_strangers_certificate_is_untrusted_whatever_its_dates() {
    let (authority, stranger) = (TestAuthority::new("bank.example"), TestAuthority::new("bank.example"));
    for flaw in [Flaw::Expired, Flaw::NotYetValid] {
        let presented = stranger.flawed(flaw, &stranger.id("web"));
        let refusal = X509Svid::parse(&presented.chain, &authority.bundles(), pki::now()).err();
        assert_eq!(refusal, Some(PeerRefusal::Untrusted), "{flaw:?}");
    }
}

#[test]
fn an_authority_vouches_only_while_it_is_valid_itself() {
    let domain = model::TrustDomain::parse("bank.example").expect("domain");
    let mut params = authority_params(&domain, "old root");
    set_life(&mut params, pki::now().minus(2 * HOUR), pki::now().minus(HOUR));
    let authority = TestAuthority::root(params, domain);
    let leaf = Leaf { not_before: pki::now().minus(2 * HOUR), ..Leaf::good(&authority.id("web")) };
    let presented = authority.mint(&leaf);
    let parse = |now| X509Svid::parse(&presented.chain, &authority.bundles(), now).err();
    assert_eq!(parse(pki::now().minus(HOUR).minus(Duration::from_secs(60))), None);
    assert_eq!(parse(pki::now()), Some(PeerRefusal::Untrusted));
}

#[test]
fn a_chain_is_bounded_in_length_and_in_size() {
    let authority = TestAuthority::new("bank.example");
    let middle = |above: &TestAuthority, name| above.intermediate(authority_params(authority.trust_domain(), name));
    let (one, now) = (middle(&authority, "one"), pki::now());
    let (two, bundles) = (middle(&one, "two"), authority.bundles());
    let three = middle(&two, "three");
    let four = middle(&three, "four");
    let id = authority.id("web");
    for (issuer, length) in [(&authority, 1), (&one, 2), (&two, 3), (&three, 4)] {
        let chain = issuer.good(&id).chain;
        assert_eq!(chain.len(), length);
        X509Svid::parse(&chain, &bundles, now).expect("within the bound");
    }
    assert_eq!(rule(X509Svid::parse(&four.good(&id).chain, &bundles, now).err()), "a chain has 1 to 4 certificates");
    assert_eq!(rule(X509Svid::parse(&[], &bundles, now).err()), "a chain has 1 to 4 certificates");

    let filler = |bytes| rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 2], octets(bytes));
    let sized = |bytes| authority.mint(&Leaf { extensions: vec![filler(bytes)], ..Leaf::good(&id) }).chain;
    let base = sized(10_000).concat().len() - 10_000;
    let fits = sized(CERTIFICATE_BYTES_MAX - base - 8);
    assert!(fits[0].len() <= CERTIFICATE_BYTES_MAX && fits[0].len() > CERTIFICATE_BYTES_MAX - 16);
    X509Svid::parse(&fits, &bundles, now).expect("within the bound");
    let long = sized(CERTIFICATE_BYTES_MAX - base + 8);
    assert_eq!(rule(X509Svid::parse(&long, &bundles, now).err()), "a certificate has at most 16384 bytes");
}

/// A DER OCTET STRING with this many bytes, at least 256.
fn octets(bytes: usize) -> Vec<u8> {
    let length = u16::try_from(bytes).expect("short").to_be_bytes();
    [&[0x04, 0x82, length[0], length[1]], vec![0; bytes].as_slice()].concat()
}

#[test]
fn an_intermediate_must_be_an_authority_of_the_leafs_trust_domain() {
    use rcgen::{IsCa, KeyUsagePurpose};
    let authority = TestAuthority::new("bank.example");
    let domain = authority.trust_domain().clone();
    let good = || authority_params(&domain, "middle");
    let parse = |params| {
        let presented = authority.intermediate(params).good(&authority.id("web"));
        X509Svid::parse(&presented.chain, &authority.bundles(), pki::now()).err()
    };
    assert_eq!(parse(good()), None);
    let mut unnamed = good();
    unnamed.subject_alt_names = Vec::new();
    assert_eq!(parse(unnamed), None, "a URI SAN is optional in a signing certificate");
    let foreign = authority_params(&model::TrustDomain::parse("partner.example").expect("domain"), "middle");
    assert_eq!(rule(parse(foreign)), "an intermediate must belong to the leaf's trust domain");
    let mut workload = good();
    workload.subject_alt_names = vec![rcgen::SanType::URI("spiffe://bank.example/ns/bank/sa/web".try_into().expect("ASCII"))];
    assert_eq!(rule(parse(workload)), "an intermediate must belong to the leaf's trust domain");
    let mut leaf = good();
    leaf.is_ca = IsCa::ExplicitNoCa;
    assert_eq!(rule(parse(leaf)), "an intermediate must have CA=true and keyCertSign");
    let mut unable = good();
    unable.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert_eq!(rule(parse(unable)), "an intermediate must have CA=true and keyCertSign");
}

#[test]
fn a_workload_cannot_issue_for_another_workload() {
    // Its own leaf stands where an intermediate should.
    let authority = TestAuthority::new("bank.example");
    let web = authority.good(&authority.id("web"));
    let forged = authority.twin().good(&authority.id("ledger"));
    let chain = [forged.chain, web.chain].concat();
    let refusal = X509Svid::parse(&chain, &authority.bundles(), pki::now()).err();
    assert_eq!(rule(refusal), "an intermediate must have CA=true and keyCertSign");
}

#[test]
fn a_leaf_changed_in_any_byte_is_refused() {
    let authority = TestAuthority::new("bank.example");
    let (bundles, now) = (authority.bundles(), pki::now());
    let leaf = authority.good(&authority.id("web")).chain.concat();
    for at in 0..leaf.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut changed = leaf.clone();
            changed[at] ^= mask;
            assert!(X509Svid::parse(&[changed], &bundles, now).is_err(), "byte {at} ^ {mask:#x}");
        }
        assert!(X509Svid::parse(&[leaf[..at].to_vec()], &bundles, now).is_err(), "cut at {at}");
    }
    assert!(X509Svid::parse(&[[leaf, vec![0]].concat()], &bundles, now).is_err(), "a byte behind it");
}
