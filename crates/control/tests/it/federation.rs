//! Bundles of another trust domain, fetched from a real endpoint by TLS.

use crate::bundle_endpoint::{Web, document, joined, ok, plane, until};
use identity::bundle_document::BundleDocument;
use testkit::pki::{self, TestAuthority};

#[tokio::test]
async fn a_foreign_bundle_is_fetched_refreshed_by_its_hint_and_kept_when_its_endpoint_fails() {
    let (one, two) = (TestAuthority::new("partner.example"), TestAuthority::new("partner.example"));
    let document = |authorities: &[&TestAuthority], sequence| document(authorities, Some(sequence), Some(1));
    let web = Web::new();
    let endpoint = web.endpoint(ok(&document(&[&one], 7))).await;
    let plane = plane(&web.roots(), &[("partner.example", &endpoint)]).await;
    until(&plane, "fetched", |all| all[0].authorities == 1 && all[0].failure.is_none()).await;
    // A sidecar is told of both.
    let own = joined(&plane, &["partner.example", "shop.example"]).await;
    // A workload of there is believed, and only by its own bundle.
    let partner = one.good(&one.id("web")).chain;
    identity::X509Svid::parse(&partner, own.bundles(), pki::now()).unwrap();
    let forged = one.mint(&pki::Leaf::good(&crate::plane::id("client"))).chain;
    identity::X509Svid::parse(&forged, own.bundles(), pki::now()).unwrap_err();

    endpoint.say(ok(&document(&[&one, &two], 8)));
    until(&plane, "refreshed", |all| all[0].authorities == 2).await;
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
        endpoint.say(text);
        until(&plane, told, |all| {
            all[0].authorities == 2 && all[0].failure.as_ref().is_some_and(|failure| failure.contains(told))
        })
        .await;
    }
}
