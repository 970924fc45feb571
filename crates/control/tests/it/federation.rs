//! Bundles of another trust domain, fetched from a real endpoint by TLS.

use crate::plane::{DEADLINE, MESH, Plane};
use identity::PrivateKey;
use identity::bundle::pem_section;
use identity::bundle_document::{BundleDocument, write};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::{self, LawlessServer, TestAuthority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use wire::operator::FederatedBundle;

fn params(is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = pki::now();
    pki::set_life(&mut params, now.minus(Duration::from_secs(3600)), now.plus(Duration::from_secs(86_400)));
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    } else {
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    params
}

/// An endpoint on loopback with a certificate of the web, whose root is written to `roots`. It answers what the text says now.
async fn endpoint(roots: &Path, answer: Arc<Mutex<String>>) -> SocketAddr {
    let (root, key) = (params(true), KeyPair::generate().unwrap());
    let der = root.self_signed(&key).unwrap().der().to_vec();
    std::fs::write(roots, pem_section("CERTIFICATE", &der)).unwrap();
    let own = PrivateKey::generate().unwrap();
    let pair = KeyPair::try_from(own.to_pkcs8_der().as_slice()).unwrap();
    let leaf = params(false).signed_by(&pair, &Issuer::new(root, &key)).unwrap().der().to_vec();
    let server = LawlessServer::presenting(&[leaf], &own, &["http/1.1"]);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = server.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _request = stream.read(&mut head).await;
            let text = answer.lock().clone();
            let _gone = stream.write_all(text.as_bytes()).await;
            let _gone = stream.shutdown().await;
        }
    });
    address
}

fn ok(document: &BundleDocument) -> String {
    let body = write(document);
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn until(plane: &Plane, what: &str, seen: impl Fn(&FederatedBundle) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let status = plane.operator().await.unwrap().authority_status(DEADLINE).await.unwrap();
        if status.federated.first().is_some_and(&seen) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {:?}", status.federated);
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_foreign_bundle_is_fetched_refreshed_by_its_hint_and_kept_when_its_endpoint_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (TestAuthority::new("partner.example"), TestAuthority::new("partner.example"));
    let document = |authorities: &[&TestAuthority], sequence| BundleDocument {
        x509_authorities: authorities.iter().map(|authority| authority.certificate_der().to_vec()).collect(),
        sequence: Some(sequence),
        refresh_hint: Some(Duration::from_secs(1)),
        ..BundleDocument::default()
    };
    let answer = Arc::new(Mutex::new(ok(&document(&[&one], 7))));
    let roots = dir.path().join("roots.pem");
    let address = endpoint(&roots, Arc::clone(&answer)).await;
    let federation =
        format!("  federation: [ {{ trustDomain: partner.example, bundleEndpoint: \"https://{address}/bundle\" }} ]\n");
    let mesh = MESH.replacen("---\n", &format!("{federation}---\n"), 1);
    let plane = Plane::start_in(&mesh, &[("SSL_CERT_FILE", &roots.display().to_string())]).await;
    until(&plane, "fetched", |bundle| bundle.authorities == 1 && bundle.failure.is_none()).await;
    let own = plane.joined("shop/client").await;
    let domains: Vec<String> = own.bundles().to_model().iter().map(|bundle| bundle.trust_domain.to_string()).collect();
    assert_eq!(domains, ["partner.example", "shop.example"], "a sidecar is told of both");
    // A workload of there is believed, and only by its own bundle.
    let partner = one.good(&one.id("web")).chain;
    identity::X509Svid::parse(&partner, own.bundles(), pki::now()).unwrap();
    let forged = one.mint(&pki::Leaf::good(&crate::plane::id("client"))).chain;
    identity::X509Svid::parse(&forged, own.bundles(), pki::now()).unwrap_err();

    *answer.lock() = ok(&document(&[&one, &two], 8));
    until(&plane, "refreshed", |bundle| bundle.authorities == 2).await;
    for (text, told) in [
        (ok(&document(&[&one], 7)), "went back from 8 to 7"),
        ("HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n".to_owned(), "status 503"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]".to_owned(), "not a JSON Web Key Set"),
        (
            ok(&BundleDocument {
                x509_authorities: vec![TestAuthority::new("other.example").certificate_der().to_vec()],
                ..document(&[], 9)
            }),
            "not of `partner.example`",
        ),
    ] {
        *answer.lock() = text;
        until(&plane, told, |bundle| {
            bundle.authorities == 2 && bundle.failure.as_ref().is_some_and(|failure| failure.contains(told))
        })
        .await;
    }
}
