//! TLS of the web: to token issuers and bundle endpoints outside the mesh, checked against the machine's own roots, and for the
//! mesh's own bundle endpoint. No SPIFFE here.

use crate::credentials::Credentials;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why a server of the web was not connected to.
#[derive(Debug, thiserror::Error)]
pub enum WebRefusal {
    /// The name cannot be that of a server.
    #[error("`{name}` is not a server name")]
    Name {
        /// What was given.
        name: String,
    },
    /// The machine has no root certificates. The operator must install them (Debian: `ca-certificates`).
    #[error("no root certificates on this machine: {detail}")]
    NoRoots {
        /// What the loader says.
        detail: String,
    },
    /// The handshake failed.
    #[error("TLS handshake: {detail}")]
    Handshake {
        /// What TLS says.
        detail: String,
    },
    /// The handshake did not end in time.
    #[error("TLS handshake: not done within {} ms", limit.as_millis())]
    Timeout {
        /// The deadline.
        limit: Duration,
    },
}

/// What a server of the web shows: its certificate, what stands above it, and its key.
#[derive(Clone, Debug)]
pub struct Site(Arc<ServerConfig>);

/// Why a certificate and a key cannot serve. Whoever wrote the files must mend them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The certificate's file has none, or something that is not PEM.
    #[error("the certificate is not PEM: {detail}")]
    Certificate {
        /// What the reader says.
        detail: String,
    },
    /// The key's file has none, or something that is not PEM.
    #[error("the key is not PEM: {detail}")]
    Key {
        /// What the reader says.
        detail: String,
    },
    /// They do not belong together, or TLS cannot use them.
    #[error("the certificate and the key do not serve together: {detail}")]
    Unfit {
        /// What TLS says.
        detail: String,
    },
}

impl Site {
    /// Reads both, in PEM: the server's certificate first.
    ///
    /// # Errors
    /// - [`SiteError`], naming which of them is wrong.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, SiteError> {
        let wrong = |error: &dyn std::fmt::Display| SiteError::Certificate { detail: error.to_string() };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificates).collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
        if chain.is_empty() {
            return Err(wrong(&"no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| SiteError::Key { detail: error.to_string() })?;
        let unfit = |error: rustls::Error| SiteError::Unfit { detail: error.to_string() };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder.map_err(unfit)?.with_no_client_auth().with_single_cert(chain, key).map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }

    /// Accepts by TLS 1.3.
    ///
    /// # Errors
    /// - [`WebRefusal::Handshake`] and [`WebRefusal::Timeout`].
    pub async fn accept<S>(&self, stream: S, deadline: Duration) -> Result<crate::ServerStream<S>, WebRefusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match tokio::time::timeout(deadline, TlsAcceptor::from(Arc::clone(&self.0)).accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(WebRefusal::Handshake { detail: error.to_string() }),
            Err(_) => Err(WebRefusal::Timeout { limit: deadline }),
        }
    }
}

/// Connects by TLS 1.3 to the server of this name, whose certificate must lead to one of the machine's roots.
///
/// The roots are read once per process, from the files that the operating system (or `SSL_CERT_FILE`) names.
///
/// # Errors
/// - [`WebRefusal`] naming the step.
pub async fn connect<S>(stream: S, name: &str, deadline: Duration) -> Result<crate::ClientStream<S>, WebRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connect_by(stream, name, config()?, deadline).await
}

/// As [`connect`], and shows the own SVID to a server that asks for a certificate (RFC 8705 §2.1).
///
/// # Errors
/// - [`WebRefusal`] naming the step.
pub async fn connect_as<S>(
    stream: S,
    name: &str,
    credentials: &Credentials,
    deadline: Duration,
) -> Result<crate::ClientStream<S>, WebRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = ClientConfig::clone(&*config()?);
    config.client_auth_cert_resolver = credentials.certified();
    connect_by(stream, name, Arc::new(config), deadline).await
}

async fn connect_by<S>(
    stream: S,
    name: &str,
    config: Arc<ClientConfig>,
    deadline: Duration,
) -> Result<crate::ClientStream<S>, WebRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = ServerName::try_from(name.to_owned()).map_err(|_| WebRefusal::Name { name: model::ids::printable(name) })?;
    match tokio::time::timeout(deadline, TlsConnector::from(config).connect(server, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(WebRefusal::Handshake { detail: error.to_string() }),
        Err(_) => Err(WebRefusal::Timeout { limit: deadline }),
    }
}

fn config() -> Result<Arc<ClientConfig>, WebRefusal> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG.get_or_init(build).clone().map_err(|detail| WebRefusal::NoRoots { detail })
}

fn build() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(if errors.is_empty() { "none found".to_owned() } else { errors.join("; ") });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
