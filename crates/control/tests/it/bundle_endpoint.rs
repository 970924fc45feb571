//! A bundle endpoint of another trust domain, that answers what the test says.

use crate::plane::{DEADLINE, MESH, Plane};
use identity::Credentials;
use identity::bundle_document::{BundleDocument, write};
use identity::web::Site;
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::TestAuthority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use wire::operator::FederatedBundle;

/// The roots of the web, and who has a certificate of them.
pub(crate) struct Web {
    _dir: tempfile::TempDir,
    web: testkit::web::Web,
}

/// An endpoint on loopback.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) answer: Arc<Mutex<String>>,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Writes its root to a file.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { web: testkit::web::Web::new(dir.path()), _dir: dir }
    }

    pub(crate) fn roots(&self) -> PathBuf {
        self.web.root()
    }

    /// An endpoint with a certificate for 127.0.0.1.
    pub(crate) async fn endpoint(&self, answer: String) -> Endpoint {
        self.endpoint_named(Ipv4Addr::LOCALHOST, answer).await
    }

    /// An endpoint on 127.0.0.1 with a certificate for this address.
    pub(crate) async fn endpoint_named(&self, ip: Ipv4Addr, answer: String) -> Endpoint {
        let files = self.web.site(ip);
        let read = |path| std::fs::read(path).unwrap();
        let site = Site::from_pem(&read(&files.certificate), &read(&files.key)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, requests) = (Arc::new(Mutex::new(answer)), Arc::new(Mutex::new(Vec::new())));
        let endpoint = Endpoint { address, answer: Arc::clone(&answer), requests: Arc::clone(&requests) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = site.accept(stream, DEADLINE).await else { continue };
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                requests.lock().push(String::from_utf8_lossy(head.get(..read).unwrap_or_default()).into_owned());
                let text = answer.lock().clone();
                let _gone = stream.write_all(text.as_bytes()).await;
                let _gone = stream.shutdown().await;
            }
        });
        endpoint
    }
}

impl Endpoint {
    pub(crate) fn say(&self, answer: String) {
        *self.answer.lock() = answer;
    }
}

/// The answer with this document.
pub(crate) fn ok(document: &BundleDocument) -> String {
    let body = write(document);
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn document(authorities: &[&TestAuthority], sequence: Option<u64>, refresh_hint: Option<u64>) -> BundleDocument {
    BundleDocument {
        x509_authorities: authorities.iter().map(|authority| authority.certificate_der().to_vec()).collect(),
        sequence,
        refresh_hint: refresh_hint.map(Duration::from_secs),
        ..BundleDocument::default()
    }
}

/// The usual mesh, federated with these trust domains.
pub(crate) fn federated(with: &[(&str, &Endpoint)]) -> String {
    let entries = with.iter().map(|(domain, endpoint)| {
        format!("{{ trustDomain: {domain}, bundleEndpoint: \"https://{}/{domain}?v=1\" }}", endpoint.address)
    });
    let federation = format!("  federation: [ {} ]\n", entries.collect::<Vec<_>>().join(", "));
    MESH.replacen("---\n", &format!("{federation}---\n"), 1)
}

/// A control plane that is federated with these.
pub(crate) async fn plane(roots: &Path, with: &[(&str, &Endpoint)]) -> Plane {
    Plane::start_in(&federated(with), &[("SSL_CERT_FILE", &roots.display().to_string())]).await
}

/// The first status of the foreign bundles, in the order of their names, that `seen` likes.
pub(crate) async fn until(plane: &Plane, what: &str, seen: impl Fn(&[FederatedBundle]) -> bool) -> Vec<FederatedBundle> {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let status = plane.operator().await.unwrap().authority_status(DEADLINE).await.unwrap();
        if seen(&status.federated) {
            return status.federated;
        }
        assert!(Instant::now() < deadline, "{what}: {:?}", status.federated);
        sleep(Duration::from_millis(100)).await;
    }
}

/// The credentials of a workload that joins when these trust domains are believed, and no other.
pub(crate) async fn joined(plane: &Plane, believed: &[&str]) -> Credentials {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let own = plane.joined("shop/client").await;
        let domains: Vec<String> = own.bundles().to_model().iter().map(|bundle| bundle.trust_domain.to_string()).collect();
        if domains == believed {
            return own;
        }
        assert!(Instant::now() < deadline, "{domains:?}");
        sleep(Duration::from_millis(100)).await;
    }
}
