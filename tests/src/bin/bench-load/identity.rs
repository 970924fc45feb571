//! An SVID as a sidecar gets its first one: a join token over a connection that is checked against the trust bundle.

use anyhow::Context;
use identity::PrivateKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use testkit::pki::LawlessClient;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The control plane's address
    control: SocketAddr,
    /// The directory that `rondel join-token` wrote; `svid.pem` and `key.pem` come beside the token
    directory: PathBuf,
    /// The workload that the token is for, `namespace/name`
    workload: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    scenarios::issue(arguments.control, &arguments.workload, &arguments.directory).await
}

/// A client of HTTP/1.1 that presents the certificate of these files.
pub(crate) fn presenting(client: LawlessClient, certificate: &Path, key: &Path) -> anyhow::Result<LawlessClient> {
    identity::install_provider();
    let chain: Vec<Vec<u8>> = CertificateDer::pem_file_iter(certificate)?
        .map(|certificate| Ok(certificate.context("the certificate's file")?.to_vec()))
        .collect::<anyhow::Result<_>>()?;
    let key = PrivatePkcs8KeyDer::from_pem_file(key).context("the key's file")?;
    let key = PrivateKey::from_pkcs8_der(key.secret_pkcs8_der()).context("the key")?;
    Ok(client.presenting(&chain, &key).alpn(&["http/1.1"]))
}
