use identity::PrivateKey;
use identity::csr::{self, CSR_BYTES_MAX, CsrRefusal};
use model::SpiffeId;
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

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

/// A DER element with fewer than 65536 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).expect("short").to_be_bytes();
    let header = match (high, low) {
        (0, ..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [header, content.to_vec()].concat()
}

/// A request by `pair` whose signed part had `from` replaced by `to` (of one length) before it was signed, under this algorithm.
fn tampered(pair: &KeyPair, from: &[u8], to: &[u8], algorithm: &[u8]) -> Vec<u8> {
    let request = CertificateParams::default().serialize_request(pair).expect("request");
    let (_, parsed) = X509CertificationRequest::from_der(request.der()).expect("parses");
    let mut info = parsed.certification_request_info.raw.to_vec();
    let at = find(&info, from);
    info[at..at + from.len()].copy_from_slice(to);
    let signature = pair.sign(&info).expect("signature");
    der(0x30, &[info, algorithm.to_vec(), der(0x03, &[vec![0], signature].concat())].concat())
}

#[test]
fn the_curve_and_the_algorithm_are_those_that_were_signed_for() {
    let pair = KeyPair::generate().expect("key");
    // 1.2.840.10045.3.1.7 is P-256, .6 another curve; 1.2.840.10045.4.3.2 is ECDSA with SHA-256, .3 with SHA-384.
    let (p256, p239) = (b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xce\x3d\x03\x01\x06");
    let (sha256, sha384) =
        (b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03");
    csr::prove(&tampered(&pair, p256, p256, sha256)).expect("nothing was changed");
    assert_eq!(csr::prove(&tampered(&pair, p256, p239, sha256)), Err(CsrRefusal::KeyKind));
    assert_eq!(csr::prove(&tampered(&pair, p256, p256, sha384)), Err(CsrRefusal::Algorithm));
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
