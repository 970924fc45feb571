use identity::credentials::{Credentials, CredentialsError};
use identity::{PeerRefusal, PrivateKey};
use model::Reason;
use testkit::pki::{self, Flaw, TestAuthority};

#[test]
fn credentials_check_themselves_as_a_peer_would() {
    let authority = TestAuthority::new("bank.example");
    for flaw in Flaw::ALL {
        let presented = authority.flawed(flaw, &authority.id("web"));
        match Credentials::build(&presented.key, presented.chain, authority.bundles(), pki::now()) {
            Err(CredentialsError::Refused(refusal)) => assert_eq!(refusal.reason(), flaw.reason(), "{flaw:?}"),
            other => panic!("{flaw:?}: {other:?}"),
        }
    }
}

#[test]
fn a_key_that_is_not_the_leafs_makes_no_credentials() {
    let authority = TestAuthority::new("bank.example");
    let presented = authority.good(&authority.id("web"));
    let other = PrivateKey::generate().expect("key");
    let refused = Credentials::build(&other, presented.chain, authority.bundles(), pki::now()).err();
    assert_eq!(refused, Some(CredentialsError::KeyMismatch));
}

#[test]
fn new_bundles_must_still_bear_the_svid() {
    let (authority, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    let credentials = authority.credentials(&authority.id("web"));
    let wider = credentials.with_bundles(pki::bundles(&[&authority, &partner]), pki::now()).expect("still believed");
    assert!(wider.bundles().contains(partner.trust_domain()));
    assert_eq!(wider.svid().serial(), credentials.svid().serial());
    let refused = credentials.with_bundles(partner.bundles(), pki::now()).err();
    assert_eq!(refused, Some(CredentialsError::Refused(PeerRefusal::Untrusted)));
    let late = credentials.svid().not_after().plus(std::time::Duration::from_secs(1));
    match credentials.with_bundles(authority.bundles(), late) {
        Err(CredentialsError::Refused(refusal)) => assert_eq!(refusal.reason(), Reason::PeerExpired),
        other => panic!("{other:?}"),
    }
}

#[test]
fn debug_shows_who_but_no_key() {
    let authority = TestAuthority::new("bank.example");
    let text = format!("{:?}", authority.credentials(&authority.id("web")));
    assert!(text.contains("spiffe://bank.example/ns/bank/sa/web"), "{text}");
    assert!(!text.to_lowercase().contains("signer") && text.len() < 400, "{text}");
}
