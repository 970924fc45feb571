//! A server of the web on loopback: a root of its own, and a certificate for 127.0.0.1, as files.

#![expect(clippy::expect_used, reason = "a test that cannot make its files ends")]

use crate::pki;
use identity::bundle::{certificates_from_pem, pem_section};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where the files are.
#[derive(Clone, Debug)]
pub struct WebFiles {
    /// The root that a client must believe: what `SSL_CERT_FILE` names.
    pub root: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Makes a root and a server's certificate, valid for a day, and writes them into a directory.
pub fn write(dir: &Path) -> WebFiles {
    let (root, root_key) = (params(true), KeyPair::generate().expect("key"));
    let root_der = root.self_signed(&root_key).expect("root").der().to_vec();
    let key = KeyPair::generate().expect("key");
    let leaf = params(false).signed_by(&key, &Issuer::new(root, &root_key)).expect("leaf").der().to_vec();
    let files = WebFiles { root: dir.join("web-root.pem"), certificate: dir.join("web-tls.pem"), key: dir.join("web-tls.key") };
    std::fs::write(&files.root, pem_section("CERTIFICATE", &root_der)).expect("write");
    std::fs::write(&files.certificate, pem_section("CERTIFICATE", &leaf)).expect("write");
    std::fs::write(&files.key, key.serialize_pem()).expect("write");
    files
}

/// Connects as a client of the web that believes the root of these files.
///
/// # Errors
/// - What the handshake says.
pub async fn connect(stream: TcpStream, files: &WebFiles) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for der in certificates_from_pem(&std::fs::read_to_string(&files.root)?).expect("PEM") {
        roots.add(CertificateDer::from(der)).expect("root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    TlsConnector::from(config).connect(ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST)), stream).await
}

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
