//! SPIFFE-ID, clause by clause. The table is in `docs/spiffe.md`.

use crate::spiffe_x509_svid::{parse, rule};
use identity::PeerRefusal;
use identity::jwt_svid::{self, JwtBundles, JwtKey};
use model::{SpiffeId, TrustDomain};
use std::time::Duration;
use testkit::pki::{self, Flaw, Leaf, TestAuthority};

fn refused(texts: &[&str]) {
    for text in texts {
        assert!(SpiffeId::parse(text).is_err(), "{text}");
    }
}

fn good(texts: &[&str]) {
    for text in texts {
        assert_eq!(SpiffeId::parse(text).map(|id| id.to_string()).as_deref(), Ok(*text));
    }
}

#[test]
fn spiffe_id_2_the_scheme_is_spiffe_and_there_is_no_query_or_fragment() {
    good(&["spiffe://bank.example/web"]);
    refused(&[
        "https://bank.example/web",
        "bank.example/web",
        "spiffe:bank.example/web",
        "spiffe:/bank.example/web",
        "//a/b",
        "",
    ]);
    refused(&["spiffe://bank.example/web?x=1", "spiffe://bank.example/web?", "spiffe://bank.example/web#x", "spiffe://a/b#"]);
    refused(&["spiffe://bank.example?x/web", "spiffe://bank.example#x/web"]);
}

#[test]
fn spiffe_id_2_1_the_trust_domain_is_not_empty() {
    assert!(TrustDomain::parse("").is_err());
    refused(&["spiffe:///web", "spiffe://"]);
}

#[test]
fn spiffe_id_2_1_there_is_no_userinfo_and_no_port() {
    refused(&["spiffe://user@bank.example/x", "spiffe://user:pass@bank.example/x", "spiffe://@bank.example/x"]);
    refused(&["spiffe://bank.example:443/x", "spiffe://bank.example:/x"]);
}

#[test]
fn spiffe_id_2_1_the_trust_domain_has_lower_case_letters_digits_dots_dashes_and_underscores() {
    good(&["spiffe://a-b_c.9/x", "spiffe://_/x", "spiffe://-/x", "spiffe://a..b/x"]);
    refused(&["spiffe://Bank.example/x", "spiffe://bank.examplE/x", "spiffe://b\u{e4}nk.example/x", "spiffe://a b/x"]);
    refused(&["spiffe://bank%2eexample/x", "spiffe://bank.example%00/x", "spiffe://a,b/x", "spiffe://a*b/x", "spiffe://a~b/x"]);
}

#[test]
fn spiffe_id_2_1_an_address_is_a_trust_domain_like_any_other() {
    good(&["spiffe://10.0.0.1/x", "spiffe://999.0.0.1/x", "spiffe://1/x"]);
    refused(&["spiffe://[::1]/x", "spiffe://::1/x"]);
}

#[test]
fn spiffe_id_2_2_the_path_has_no_empty_and_no_relative_segment_and_no_slash_at_its_end() {
    good(&["spiffe://a/b", "spiffe://a/b/c/d", "spiffe://a/...", "spiffe://a/.b/c."]);
    refused(&["spiffe://a/b/", "spiffe://a/", "spiffe://a//b", "spiffe://a/b//c", "spiffe://a/b/c//"]);
    refused(&["spiffe://a/.", "spiffe://a/..", "spiffe://a/./b", "spiffe://a/b/../c", "spiffe://a/b/."]);
}

#[test]
fn spiffe_id_2_2_a_segment_has_letters_digits_dots_dashes_and_underscores() {
    good(&["spiffe://a/aZ09.-_"]);
    refused(&[
        "spiffe://a/b%20c",
        "spiffe://a/%2e%2e",
        "spiffe://a/b c",
        "spiffe://a/b\u{e4}",
        "spiffe://a/b:c",
        "spiffe://a/b@c",
    ]);
    refused(&["spiffe://a/b\0", "spiffe://a/b\n", "spiffe://a/b\\c", "spiffe://a/b~", "spiffe://a/b+c", "spiffe://a/b;c"]);
}

#[test]
fn spiffe_id_2_3_up_to_2048_bytes_are_supported_and_not_one_more() {
    let authority = TestAuthority::new("bank.example");
    let sized = |bytes: usize| format!("spiffe://bank.example/{}", "x".repeat(bytes - 22));
    let longest = SpiffeId::parse(&sized(2048)).expect("supported");
    refused(&[&sized(2049)]);
    assert_eq!(parse(&authority, &authority.mint(&Leaf::good(&longest)).chain).expect("in a certificate").id(), &longest);
    let key = JwtKey::generate().expect("key");
    let audience = [longest.to_string()];
    let token = jwt_svid::issue(&key, &longest, &audience, Duration::from_secs(60), pki::now()).expect("issued").token;
    let bundle = model::snapshot::TrustBundle { jwt_authorities: vec![key.public().to_jwk_json()], ..authority.bundle() };
    let bundles = JwtBundles::from_model(&[bundle]).expect("bundles");
    assert_eq!(jwt_svid::verify(&token, &audience[0], &bundles, pki::now()).expect("in a token").id(), &longest);
    assert!(TrustDomain::parse(&"d".repeat(255)).is_ok() && TrustDomain::parse(&"d".repeat(256)).is_err());
}

#[test]
fn spiffe_id_2_4_the_path_is_compared_letter_by_letter() {
    let parse = |text| SpiffeId::parse(text).expect("id");
    assert_ne!(parse("spiffe://a/web"), parse("spiffe://a/Web"));
    // What another could read as the same id never enters: §2.1 wants it in lower case anyway.
    refused(&["SPIFFE://a/web", "Spiffe://a/web", "spiffe://A/web"]);
}

#[test]
fn spiffe_id_3_an_svid_is_valid_only_if_an_authority_of_its_own_trust_domain_signed_it() {
    let (bank, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    let both = pki::bundles(&[&bank, &partner]);
    let forged = partner.mint(&Leaf::good(&bank.id("web"))).chain;
    let refused = identity::X509Svid::parse(&forged, &both, pki::now()).err();
    assert_eq!(refused, Some(PeerRefusal::Untrusted));
    let own = partner.good(&partner.id("web")).chain;
    assert_eq!(identity::X509Svid::parse(&own, &both, pki::now()).expect("its own").id(), &partner.id("web"));
    assert_eq!(parse(&bank, &bank.flawed(Flaw::TwinAuthority, &bank.id("web")).chain).err(), Some(PeerRefusal::Untrusted));
}

#[test]
fn spiffe_id_3_1_an_authority_is_an_svid_of_its_trust_domain_without_a_path() {
    let domain = TrustDomain::parse("bank.example").expect("domain");
    let authority = identity::Authority::generate(&domain, pki::now(), Duration::from_secs(3600)).expect("authority");
    let bundle = model::snapshot::TrustBundle::x509(domain.clone(), vec![authority.certificate_der().to_vec()]);
    let pem = identity::TrustBundles::from_model(&[bundle]).expect("bundles").to_pem();
    let nameless = pem.split_once('\n').expect("lines").1;
    assert!(identity::TrustBundles::from_pem(nameless).expect("it names itself").contains(&domain));
    let bank = TestAuthority::new("bank.example");
    assert_eq!(rule(&bank, Flaw::NoPath), "its URI SAN is not the SPIFFE ID of a workload");
}
