//! The mesh's own bundle endpoint, asked by another mesh and by whoever likes.

use crate::bundle_endpoint::until;
use crate::plane::{DEADLINE, MESH, Plane};
use std::net::SocketAddr;
use std::time::Duration;
use testkit::web::{self, WebFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use wire::operator::AuthorityStatus;

async fn status_until(plane: &Plane, what: &str, seen: impl Fn(&AuthorityStatus) -> bool) -> AuthorityStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = plane.operator().await.unwrap().authority_status(DEADLINE).await.unwrap();
        if seen(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Two meshes that federate with each other: one rotates its authority, and the other knows the new one before it signs.
#[tokio::test]
async fn a_mesh_that_rotates_its_authority_waits_until_other_trust_domains_have_looked() {
    let dir = tempfile::tempdir().unwrap();
    let files = web::write(dir.path());
    let listen = testkit::ports::free();
    let (certificate, key) = (files.certificate.display(), files.key.display());
    let serving =
        format!("  bundleEndpoint: {{ listen: \"{listen}\", certificate: {certificate}, key: {key}, refreshHint: 60s }}\n---\n");
    let serving = Plane::start_with(&MESH.replacen("---\n", &serving, 1)).await;
    let served = status_until(&serving, "it serves", |status| status.bundle_endpoint.is_some()).await;
    let active = served.authorities[0].id.clone();
    let fetching = format!("  federation: [ {{ trustDomain: shop.example, bundleEndpoint: \"https://{listen}/\" }} ]\n---\n");
    let fetching = MESH.replace("shop.example", "partner.example").replacen("---\n", &fetching, 1);
    let mut fetching = Plane::start_in(&fetching, &[("SSL_CERT_FILE", &files.root.display().to_string())]).await;
    until(&fetching, "fetched", |all| all[0].authorities == 1 && all[0].failure.is_none()).await;

    serving.operator().await.unwrap().rotate_authority(DEADLINE).await.unwrap();
    let held = status_until(&serving, "it waits", |status| !status.held_up_by.is_empty()).await;
    assert_eq!(held.held_up_by[0].0, "other trust domains", "{held:?}");
    // At its start it looks at once.
    fetching.restart().await;
    until(&fetching, "the other mesh knows the new authority", |all| all[0].authorities == 2).await;
    let now = status_until(&serving, "any", |_| true).await;
    assert!(now.authorities.iter().any(|each| each.id == active && each.state == "active"), "it signs later: {now:?}");
    let (first, last) = (served.bundle_endpoint.unwrap(), now.bundle_endpoint.unwrap());
    assert!(last.sequence > first.sequence && last.given >= 2 && last.failure.is_none(), "{first:?} {last:?}");
}

#[tokio::test]
async fn what_stands_in_the_way_of_the_bundle_endpoint_is_told_and_what_is_mended_serves() {
    let dir = tempfile::tempdir().unwrap();
    let files = web::write(dir.path());
    let key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, "no key").unwrap();
    let listen = testkit::ports::free();
    let (certificate, path) = (files.certificate.display(), files.key.display());
    let endpoint = format!("  bundleEndpoint: {{ listen: \"{listen}\", certificate: {certificate}, key: {path} }}\n---\n");
    let plane = Plane::start_with(&MESH.replacen("---\n", &endpoint, 1)).await;
    let failure = |status: &AuthorityStatus| status.bundle_endpoint.as_ref().and_then(|served| served.failure.clone());
    let told = status_until(&plane, "it is told", |status| failure(status).is_some()).await;
    assert!(failure(&told).unwrap().contains("the key is not PEM"), "{told:?}");
    assert!(failure(&told).unwrap().contains("web-tls.key"), "{told:?}");
    std::fs::write(&files.key, key).unwrap();
    status_until(&plane, "it serves", |status| failure(status).is_none()).await;

    for (request, expected) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK"),
        ("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 405"),
        ("GET /other HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 404"),
        ("nonsense\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let answer = asked(&files, listen, request).await;
        assert!(answer.starts_with(expected), "{request:?}: {answer}");
        if request.starts_with("GET / ") {
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            let domain = model::TrustDomain::parse("shop.example").unwrap();
            let document = identity::bundle_document::parse(body.as_bytes(), &domain).unwrap();
            assert_eq!((document.x509_authorities.len(), document.jwt_authorities.len()), (1, 1), "{body}");
            assert_eq!((document.refresh_hint, document.ignored), (Some(Duration::from_secs(300)), 0));
            assert_eq!(document.sequence, Some(1));
        }
    }
    // Those who say nothing take every place, and are ended.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(listen).await.unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut is_served = false;
    while !is_served && Instant::now() < deadline {
        is_served = tokio::time::timeout(DEADLINE, try_asked(&files, listen, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await
            .is_ok_and(|answer| answer.is_some_and(|answer| answer.contains("200 OK")));
        sleep(Duration::from_millis(200)).await;
    }
    assert!(is_served, "those who say nothing keep the others out");
}

async fn asked(files: &WebFiles, address: SocketAddr, request: &str) -> String {
    try_asked(files, address, request).await.unwrap()
}

/// What the endpoint answers, over TLS with the site's root; `None` if it hangs up.
pub(crate) async fn try_asked(files: &WebFiles, address: SocketAddr, request: &str) -> Option<String> {
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let mut stream = web::connect(stream, files).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // TLS may end without its alert when the server hangs up early.
    let _end = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).ok()
}
