use identity::PeerRefusal;
use identity::signed::{self, SignFailure, SignedRefusal};
use model::{Reason, SpiffeId};
use std::time::Duration;
use testkit::pki::{self, TestAuthority};

const PURPOSE: &str = "snapshot of bank/web";

struct Signed {
    authority: TestAuthority,
    control: SpiffeId,
    envelope: Vec<u8>,
}

fn signed(payload: &[u8]) -> Signed {
    let authority = TestAuthority::new("bank.example");
    let control = authority.trust_domain().control_plane();
    let envelope = signed::sign(&authority.credentials(&control), PURPOSE, payload, pki::now()).expect("signed");
    Signed { authority, control, envelope }
}

#[test]
fn an_envelope_gives_back_its_payload() {
    for payload in [&b""[..], b"x", &[7; 100_000]] {
        let Signed { authority, control, envelope } = signed(payload);
        assert_eq!(signed::verify(&envelope, &authority.bundles(), &control, PURPOSE).as_deref(), Ok(payload));
    }
}

#[test]
fn an_envelope_changed_in_any_byte_is_refused() {
    let Signed { authority, control, envelope } = signed(b"the whole configuration");
    let bundles = authority.bundles();
    let verify = |bytes: &[u8]| signed::verify(bytes, &bundles, &control, PURPOSE);
    for at in 0..envelope.len() {
        for mask in [0x01, 0x80] {
            let mut changed = envelope.clone();
            changed[at] ^= mask;
            assert!(verify(&changed).is_err(), "byte {at} ^ {mask:#x}");
        }
        assert!(verify(&envelope[..at]).is_err(), "cut at {at}");
        let doubled = [&envelope[..at], &envelope[at..=at], &envelope[at..]].concat();
        assert!(verify(&doubled).is_err(), "byte {at} twice");
    }
    assert_eq!(verify(&[envelope, vec![0]].concat()), Err(SignedRefusal::Malformed), "a byte behind it");
    assert_eq!(verify(b""), Err(SignedRefusal::Malformed));
}

#[test]
fn each_field_is_refused_for_its_own_reason() {
    let Signed { authority, control, envelope } = signed(b"payload");
    let bundles = authority.bundles();
    let at = |needle: &[u8]| envelope.windows(needle.len()).position(|window| window == needle).expect("there");
    let changed = |at: usize| {
        let mut bytes = envelope.clone();
        bytes[at] ^= 0x01;
        signed::verify(&bytes, &bundles, &control, PURPOSE)
    };
    let purpose = at(PURPOSE.as_bytes());
    assert_eq!(changed(15), Err(SignedRefusal::Malformed), "the version");
    assert_eq!(changed(16), Err(SignedRefusal::Malformed), "the chain's length");
    assert_eq!(changed(purpose), Err(SignedRefusal::Purpose { expected: PURPOSE.to_owned() }));
    assert_eq!(changed(purpose - 3), Err(SignedRefusal::Signature), "the last byte of the signing time");
    assert_eq!(changed(at(b"payload")), Err(SignedRefusal::Signature));
    assert_eq!(changed(envelope.len() - 1), Err(SignedRefusal::Signature));
}

#[test]
fn only_the_expected_signer_for_the_expected_purpose_is_believed() {
    let Signed { authority, control, envelope } = signed(b"payload");
    let bundles = authority.bundles();
    let refused = signed::verify(&envelope, &bundles, &control, "snapshot of bank/ledger");
    assert_eq!(refused, Err(SignedRefusal::Purpose { expected: "snapshot of bank/ledger".to_owned() }));
    // A workload of the same mesh signs for itself what the control plane should have signed.
    let web = authority.id("web");
    let forged = signed::sign(&authority.credentials(&web), PURPOSE, b"payload", pki::now()).expect("signed");
    let refused = signed::verify(&forged, &bundles, &control, PURPOSE);
    assert_eq!(refused, Err(SignedRefusal::Signer { expected: control.clone(), got: web }));
    // The same, from an authority of the same name.
    let refused = signed::verify(&envelope, &authority.twin().bundles(), &control, PURPOSE);
    assert_eq!(refused, Err(SignedRefusal::Peer(PeerRefusal::Untrusted)));
}

#[test]
fn the_chain_counts_as_of_the_signing_time() {
    let authority = TestAuthority::new("bank.example");
    let control = authority.trust_domain().control_plane();
    let credentials = authority.credentials(&control);
    let hour = Duration::from_secs(3600);
    let sign = |at| signed::sign(&credentials, PURPOSE, b"payload", at).expect("signed");
    let verify = |envelope: &[u8]| signed::verify(envelope, &authority.bundles(), &control, PURPOSE);
    assert!(verify(&sign(credentials.svid().not_after())).is_ok());
    for (at, reason) in [
        (credentials.svid().not_after().plus(hour), Reason::PeerExpired),
        (credentials.svid().not_before().minus(hour), Reason::PeerNotYetValid),
    ] {
        match verify(&sign(at)) {
            Err(SignedRefusal::Peer(refusal)) => assert_eq!(refusal.reason(), reason),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_purpose_has_a_length() {
    let authority = TestAuthority::new("bank.example");
    let credentials = authority.credentials(&authority.id("web"));
    let sign = |purpose: &str| signed::sign(&credentials, purpose, b"", pki::now()).map(drop);
    assert_eq!(sign(&"p".repeat(64)), Ok(()));
    for purpose in [String::new(), "p".repeat(65)] {
        assert_eq!(sign(&purpose), Err(SignFailure::Purpose));
    }
}
