use identity::PrivateKey;
use identity::csr::{self, CSR_BYTES_MAX, CsrRefusal};
use model::SpiffeId;
use rcgen::{CertificateParams, KeyPair};

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web").expect("id")
}

fn request() -> Vec<u8> {
    csr::build(&PrivateKey::generate().expect("key"), &id()).expect("request")
}

/// The only place of `needle` in `hay`.
fn find(hay: &[u8], needle: &[u8]) -> usize {
    let places: Vec<usize> = hay.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 1);
    places[0]
}

#[test]
fn a_request_proves_its_own_key() {
    let key = PrivateKey::generate().expect("key");
    let first = csr::prove(&csr::build(&key, &id()).expect("request")).expect("proven");
    let again = csr::prove(&csr::build(&key, &id()).expect("request")).expect("proven");
    assert_eq!(first, again);
    assert_ne!(first, csr::prove(&request()).expect("proven"));
}

#[test]
fn a_request_for_someone_elses_key_is_refused() {
    let (own, others) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
    let mut request = CertificateParams::default().serialize_request(&own).expect("request").der().to_vec();
    let at = find(&request, own.public_key_raw());
    request[at..at + 65].copy_from_slice(others.public_key_raw());
    assert_eq!(csr::prove(&request), Err(CsrRefusal::Signature));
}

#[test]
fn a_request_changed_in_any_byte_is_refused() {
    let request = request();
    for at in 0..request.len() {
        let mut changed = request.clone();
        changed[at] ^= 0x01;
        assert!(csr::prove(&changed).is_err(), "byte {at} {:02x?}", &request[at - 20..at + 20]);
        assert_eq!(csr::prove(&request[..at]), Err(CsrRefusal::Malformed), "cut at {at}");
    }
    assert_eq!(csr::prove(&[request, vec![0]].concat()), Err(CsrRefusal::Malformed));
}

#[test]
fn only_p256_keys_of_bounded_requests_are_taken() {
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).expect("key");
        let request = CertificateParams::default().serialize_request(&key).expect("request");
        assert_eq!(csr::prove(request.der()), Err(CsrRefusal::KeyKind));
    }
    let mut request = request();
    let zeros = vec![0; CSR_BYTES_MAX];
    assert_eq!(csr::prove(&zeros), Err(CsrRefusal::Malformed), "at the bound it is looked at");
    request.extend(zeros);
    assert_eq!(csr::prove(&request), Err(CsrRefusal::TooLarge { bytes: request.len(), max: CSR_BYTES_MAX }));
}

#[test]
fn a_point_that_is_not_on_the_curve_is_refused() {
    let key = KeyPair::generate().expect("key");
    let request = CertificateParams::default().serialize_request(&key).expect("request").der().to_vec();
    let at = find(&request, key.public_key_raw());
    let mut off = request.clone();
    off[at + 1..at + 65].fill(0xff);
    assert_eq!(csr::prove(&off), Err(CsrRefusal::Signature));
    let mut infinite = request;
    infinite[at..at + 65].fill(0);
    assert_eq!(csr::prove(&infinite), Err(CsrRefusal::KeyKind));
}
