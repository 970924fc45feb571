//! A server of the web on loopback: a root of its own, and a certificate for 127.0.0.1, as files.

#![expect(clippy::expect_used, reason = "a test that cannot make its files ends")]

use crate::pki;
use identity::bundle::{certificates_from_pem, pem_section};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
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

/// The root of a web of its own, and whom it gives a certificate.
#[derive(Debug)]
pub struct Web {
    dir: PathBuf,
    root: CertificateParams,
    key: KeyPair,
}

/// The files of one server.
#[derive(Clone, Debug)]
pub struct WebFiles {
    /// The root that a client must believe: what `SSL_CERT_FILE` names.
    pub root: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Web {
    /// Makes a root, valid for a day, and writes it into a directory.
    pub fn new(dir: &Path) -> Self {
        let web = Self { dir: dir.to_owned(), root: params(None), key: KeyPair::generate().expect("key") };
        let der = web.root.self_signed(&web.key).expect("root").der().to_vec();
        std::fs::write(web.root(), pem_section("CERTIFICATE", &der)).expect("write");
        web
    }

    /// Where the root is.
    pub fn root(&self) -> PathBuf {
        self.dir.join("web-root.pem")
    }

    /// A certificate for this address, and its key.
    pub fn site(&self, ip: Ipv4Addr) -> WebFiles {
        let key = KeyPair::generate().expect("key");
        let leaf = params(Some(ip)).signed_by(&key, &Issuer::new(self.root.clone(), &self.key)).expect("leaf").der().to_vec();
        let (certificate, path) = (self.dir.join("web-tls.pem"), self.dir.join("web-tls.key"));
        std::fs::write(&certificate, pem_section("CERTIFICATE", &leaf)).expect("write");
        std::fs::write(&path, key.serialize_pem()).expect("write");
        WebFiles { root: self.root(), certificate, key: path }
    }
}

/// A root and a certificate for 127.0.0.1, in a directory.
pub fn write(dir: &Path) -> WebFiles {
    Web::new(dir).site(Ipv4Addr::LOCALHOST)
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

fn params(ip: Option<Ipv4Addr>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = if ip.is_some() { "a site" } else { "a root of the web" };
    params.distinguished_name.push(DnType::CommonName, name);
    let now = pki::now();
    pki::set_life(&mut params, now.minus(Duration::from_secs(3600)), now.plus(Duration::from_secs(86_400)));
    match ip {
        None => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }
        Some(ip) => {
            params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(ip))];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
    }
    params
}
