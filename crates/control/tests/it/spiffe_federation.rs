//! SPIFFE Federation, clause by clause: the client of a bundle endpoint, and our own endpoint. The table is in `docs/spiffe.md`.

use crate::bundle_endpoint::{Web, document, federated, joined, ok, plane, until};
use crate::plane::{DEADLINE, MESH, Plane};
use crate::served_bundle::try_asked;
use identity::bundle_document::{self, BundleDocument};
use identity::{PeerRefusal, X509Svid};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use testkit::pki::{self, Leaf, TestAuthority};
use testkit::web::{self, WebFiles};
use tokio::time::{Instant, sleep};

/// What a mesh with this line is told, or nothing.
fn told(line: &str) -> String {
    let text = MESH.replacen("---\n", &format!("  federation: [ {line} ]\n---\n"), 1);
    let errors = config::parse(&[config::Source { file: "mesh.yaml".to_owned(), text }]).err().unwrap_or_default();
    errors.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn federation_4_1_a_bundle_is_fetched_again_by_its_hint_or_after_five_minutes() {
    let web = Web::new();
    let mut endpoints = Vec::new();
    for (domain, hint, seconds) in
        [("a.example", None, 300), ("b.example", Some(90), 90), ("c.example", Some(1), 10), ("d.example", Some(1 << 40), 86_400)]
    {
        let authority = TestAuthority::new(domain);
        endpoints.push((domain, web.endpoint(ok(&document(&[&authority], None, hint))).await, seconds));
    }
    let with: Vec<_> = endpoints.iter().map(|(domain, endpoint, _)| (*domain, endpoint)).collect();
    let plane = plane(&web.roots(), &with).await;
    let all = until(&plane, "all are fetched", |all| all.iter().all(|each| each.fetched_at.is_some())).await;
    for (found, (domain, _, seconds)) in all.iter().zip(&endpoints) {
        let after = found.next_at.since(found.fetched_at.unwrap());
        assert_eq!((found.trust_domain.as_str(), after), (*domain, Duration::from_secs(*seconds)));
    }
}

#[tokio::test]
async fn federation_4_2_the_latest_bundle_is_stored_and_without_a_sequence_the_last_one_counts() {
    let (web, one) = (Web::new(), TestAuthority::new("partner.example"));
    let endpoint = web.endpoint(ok(&document(&[&one, &one.twin()], Some(7), Some(1)))).await;
    let mut plane = plane(&web.roots(), &[("partner.example", &endpoint)]).await;
    until(&plane, "fetched", |all| all[0].authorities == 2).await;
    endpoint.say(ok(&document(&[&one], None, Some(1))));
    let last = until(&plane, "the last one counts", |all| all[0].authorities == 1).await;
    endpoint.say("HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n".to_owned());
    plane.restart().await;
    let stored = until(&plane, "it is not known any more", |all| all[0].failure.is_some()).await;
    assert_eq!((stored[0].authorities, stored[0].fetched_at), (1, last[0].fetched_at));
    joined(&plane, &["partner.example", "shop.example"]).await;
}

#[tokio::test]
async fn federation_4_2_bundles_of_different_trust_domains_are_never_merged() {
    let (web, a, b) = (Web::new(), TestAuthority::new("a.example"), TestAuthority::new("b.example"));
    let endpoints = [web.endpoint(ok(&document(&[&a], None, None))).await, web.endpoint(ok(&document(&[&b], None, None))).await];
    let plane = plane(&web.roots(), &[("a.example", &endpoints[0]), ("b.example", &endpoints[1])]).await;
    until(&plane, "fetched", |all| all.iter().all(|each| each.authorities == 1)).await;
    let own = joined(&plane, &["a.example", "b.example", "shop.example"]).await;
    X509Svid::parse(&a.good(&a.id("web")).chain, own.bundles(), pki::now()).unwrap();
    for id in [b.id("web"), crate::plane::id("client")] {
        let forged = X509Svid::parse(&a.mint(&Leaf::good(&id)).chain, own.bundles(), pki::now());
        assert_eq!(forged.err(), Some(PeerRefusal::Untrusted), "{id}");
    }
}

#[test]
fn federation_5_1_trust_domain_and_url_are_both_told_and_neither_is_guessed() {
    assert_eq!(told("{ trustDomain: a.example, bundleEndpoint: \"https://b.example/\" }"), "", "they need not agree");
    for (line, missing) in
        [("{ bundleEndpoint: \"https://a.example/\" }", "trustDomain"), ("{ trustDomain: a.example }", "bundleEndpoint")]
    {
        assert!(told(line).contains(missing), "{}", told(line));
    }
}

#[test]
fn federation_5_2_1_1_the_url_is_https_and_has_no_user() {
    let url = |url: &str| told(&format!("{{ trustDomain: a.example, bundleEndpoint: \"{url}\" }}"));
    for good in ["https://a.example", "https://a.example:8443/b/bundle.json?x=1", "https://[::1]:1/"] {
        assert_eq!(url(good), "", "{good}");
    }
    for (wrong, rule) in [
        ("http://127.0.0.1/", "by `https://` only"),
        ("http://a.example/", "plaintext"),
        ("ftp://a.example/", "neither `https://`"),
        ("a.example", "neither `https://`"),
        ("https://user@a.example/", "user name"),
        ("https://user:word@a.example/", "user name"),
    ] {
        assert!(url(wrong).contains(rule), "{wrong}: {}", url(wrong));
    }
}

#[tokio::test]
async fn federation_5_2_1_4_the_endpoints_certificate_leads_to_a_trusted_root_and_names_its_host() {
    let (web, other, one) = (Web::new(), Web::new(), TestAuthority::new("partner.example"));
    let answer = |domain| ok(&document(&[&TestAuthority::new(domain)], None, None));
    let good = web.endpoint(ok(&document(&[&one], None, None))).await;
    let stranger = other.endpoint(answer("stranger.example")).await;
    let misnamed = web.endpoint_named(Ipv4Addr::new(127, 0, 0, 2), answer("misnamed.example")).await;
    let with = [("misnamed.example", &misnamed), ("partner.example", &good), ("stranger.example", &stranger)];
    let plane = plane(&web.roots(), &with).await;
    let is_told =
        |all: &[wire::operator::FederatedBundle]| all.iter().all(|each| each.fetched_at.is_some() || each.failure.is_some());
    let all = until(&plane, "all are tried", is_told).await;
    assert_eq!(all.iter().map(|each| each.authorities).collect::<Vec<_>>(), [0, 1, 0], "{all:?}");
    for each in [&all[0], &all[2]] {
        assert!(each.failure.as_ref().is_some_and(|failure| failure.contains("TLS handshake")), "{each:?}");
    }
    assert!(stranger.requests.lock().is_empty() && misnamed.requests.lock().is_empty(), "nothing is asked of them");
}

#[tokio::test]
async fn federation_5_2_1_4_the_path_of_the_url_is_asked_for_by_get_and_by_nobody_in_particular() {
    let (web, one) = (Web::new(), TestAuthority::new("partner.example"));
    let endpoint = web.endpoint(ok(&document(&[&one], None, None))).await;
    let plane = plane(&web.roots(), &[("partner.example", &endpoint)]).await;
    until(&plane, "fetched", |all| all[0].authorities == 1).await;
    let request = endpoint.requests.lock()[0].to_lowercase();
    assert!(request.starts_with("get /partner.example?v=1 http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: {}\r\n", endpoint.address)), "{request}");
    assert!(!request.contains("authorization") && !request.contains("cookie"), "{request}");
}

#[tokio::test]
async fn federation_6_3_a_trust_domain_that_is_no_longer_federated_with_is_no_longer_believed() {
    let (web, a, b) = (Web::new(), TestAuthority::new("a.example"), TestAuthority::new("b.example"));
    let kept = web.endpoint(ok(&document(&[&a], None, None))).await;
    let ended = web.endpoint(ok(&document(&[&b], None, None))).await;
    let plane = plane(&web.roots(), &[("a.example", &kept), ("b.example", &ended)]).await;
    until(&plane, "fetched", |all| all.iter().all(|each| each.authorities == 1)).await;
    std::fs::write(plane.config("mesh.yaml"), federated(&[("a.example", &kept)])).unwrap();
    until(&plane, "forgotten", |all| all.len() == 1).await;
    joined(&plane, &["a.example", "shop.example"]).await;
}

/// A control plane that serves its bundle here.
async fn serving(files: &WebFiles, listen: SocketAddr) -> Plane {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    let endpoint = format!("  bundleEndpoint: {{ listen: \"{listen}\", certificate: {certificate}, key: {key} }}\n---\n");
    Plane::start_with(&MESH.replacen("---\n", &endpoint, 1)).await
}

/// The head of the answer, and the bundle, as soon as it is served. Who asks has no certificate and says nothing of itself.
async fn served(files: &WebFiles, listen: SocketAddr) -> (String, BundleDocument) {
    let deadline = Instant::now() + DEADLINE;
    let answer = loop {
        match try_asked(files, listen, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await {
            Some(answer) => break answer,
            None => assert!(Instant::now() < deadline, "nobody answers"),
        }
        sleep(Duration::from_millis(20)).await;
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let domain = model::TrustDomain::parse("shop.example").unwrap();
    (head.to_lowercase(), bundle_document::parse(body.as_bytes(), &domain).unwrap())
}

#[tokio::test]
async fn federation_5_2_1_3_the_latest_bundle_is_given_as_json_to_whoever_asks_by_get() {
    let (dir, listen) = (tempfile::tempdir().unwrap(), testkit::ports::free());
    let files = web::write(dir.path());
    let plane = serving(&files, listen).await;
    let (head, first) = served(&files, listen).await;
    assert!(head.starts_with("http/1.1 200 ok") && head.contains("\r\ncontent-type: application/json"), "{head}");
    assert_eq!(first.x509_authorities, plane.bundles().to_model()[0].authorities);
    plane.operator().await.unwrap().rotate_authority(DEADLINE).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while served(&files, listen).await.1.x509_authorities.len() < 2 {
        assert!(Instant::now() < deadline, "the new authority is not given");
        sleep(Duration::from_millis(50)).await;
    }
}

/// SPIFFE Trust Domain and Bundle §4.1.1.
#[tokio::test]
async fn bundle_4_1_1_the_sequence_rises_with_every_change_and_a_restart_is_none() {
    let (dir, listen) = (tempfile::tempdir().unwrap(), testkit::ports::free());
    let files = web::write(dir.path());
    let mut plane = serving(&files, listen).await;
    let (_, last) = served(&files, listen).await;
    plane.restart().await;
    assert_eq!(served(&files, listen).await.1, last);
    plane.operator().await.unwrap().rotate_authority(DEADLINE).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (_, now) = served(&files, listen).await;
        assert!(now.sequence >= last.sequence, "it went back");
        if now.x509_authorities != last.x509_authorities || now.jwt_authorities != last.jwt_authorities {
            assert!(now.sequence > last.sequence, "another bundle of the same number");
            break;
        }
        assert!(Instant::now() < deadline, "nothing has changed");
        sleep(Duration::from_millis(20)).await;
    }
}

/// SPIFFE Trust Domain and Bundle §4.1.3.
#[tokio::test]
async fn bundle_4_1_3_a_trust_domain_that_publishes_no_key_is_no_longer_believed() {
    let (web, one) = (Web::new(), TestAuthority::new("partner.example"));
    let endpoint = web.endpoint(ok(&document(&[&one], None, Some(1)))).await;
    let plane = plane(&web.roots(), &[("partner.example", &endpoint)]).await;
    until(&plane, "fetched", |all| all[0].authorities == 1).await;
    endpoint.say("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"keys\":[]}".to_owned());
    let all = until(&plane, "revoked", |all| all[0].authorities == 0).await;
    assert_eq!(all[0].failure, None, "that is no failure");
    joined(&plane, &["shop.example"]).await;
}
