//! A workload's own SVID and the bundles that it trusts, as one immutable value with the TLS configurations made from them.
//!
//! Rotation and bundle changes make a new value; a handshake takes one value and keeps it to its end.

use crate::bundle::TrustBundles;
use crate::handshake::Alpn;
use crate::key::{KeyFailure, PrivateKey, Signer};
use crate::provider;
use crate::svid::{self, PeerRefusal, X509Svid};
use crate::verify::{ClientSvid, ClientVerifier, ServerVerifier};
use model::{SpiffeId, Timestamp};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::sync::Arc;

/// Why a chain and a key are not credentials. The control plane that issued them must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Every peer with the same bundles would refuse it.
    #[error("peers would refuse this SVID: {0}")]
    Refused(#[from] PeerRefusal),
    /// The key is not the leaf's.
    #[error("the key does not belong to the SVID")]
    KeyMismatch,
    /// The TLS library does not take them. We are at fault.
    #[error("tls configuration: {detail}")]
    Tls {
        /// What it says.
        detail: String,
    },
}

impl From<rustls::Error> for CredentialsError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls { detail: error.to_string() }
    }
}

/// Own SVID, its key, and the bundles to check peers with.
pub struct Credentials {
    svid: X509Svid,
    bundles: Arc<TrustBundles>,
    signer: Signer,
    certified: Arc<SingleCertAndKey>,
    http: Arc<ServerConfig>,
    tcp: Arc<ServerConfig>,
    any: Arc<ServerConfig>,
    control: Arc<ServerConfig>,
}

/// One certificate whose end matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// `svid`, `intermediate` or `authority`.
    pub kind: &'static str,
    /// Whose it is.
    pub trust_domain: String,
    /// Its subject key id, lower-case hexadecimal; empty for the SVID, which changes all the time.
    pub id: String,
    /// Its `notAfter`.
    pub not_after: Timestamp,
}

impl Credentials {
    /// Puts an SVID in use after checking it as any peer would: chain, profile, dates, and that the key is the leaf's.
    ///
    /// `chain`: DER, leaf first. `now`: the moment of the check.
    ///
    /// # Errors
    /// - [`CredentialsError::Refused`] with what a peer would say;
    /// - [`CredentialsError::KeyMismatch`] if the key is another one.
    pub fn build(
        key: &PrivateKey,
        chain: Vec<Vec<u8>>,
        bundles: Arc<TrustBundles>,
        now: Timestamp,
    ) -> Result<Self, CredentialsError> {
        let svid = X509Svid::parse(&chain, &bundles, now)?;
        if svid.public_key_info() != key.signer().public_key_info() {
            return Err(CredentialsError::KeyMismatch);
        }
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let signing_key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8())))?;
        let certified = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signing_key)));
        Self::assemble(svid, bundles, key.signer().clone(), certified)
    }

    /// The same SVID with other bundles. It must still be believed under them.
    ///
    /// # Errors
    /// - [`CredentialsError::Refused`] if the new bundles, or the time, do not bear the SVID any longer.
    pub fn with_bundles(&self, bundles: Arc<TrustBundles>, now: Timestamp) -> Result<Self, CredentialsError> {
        let svid = X509Svid::parse(self.svid.chain(), &bundles, now)?;
        Self::assemble(svid, bundles, self.signer.clone(), Arc::clone(&self.certified))
    }

    fn assemble(
        svid: X509Svid,
        bundles: Arc<TrustBundles>,
        signer: Signer,
        certified: Arc<SingleCertAndKey>,
    ) -> Result<Self, CredentialsError> {
        let server = |alpn: &[Alpn], svid| server_config(Arc::clone(&certified), Arc::clone(&bundles), alpn, svid);
        let http = server(&[Alpn::Http2, Alpn::Mux, Alpn::Http1], ClientSvid::Required)?;
        let tcp = server(&[Alpn::Tcp], ClientSvid::Required)?;
        let any = server(&[Alpn::Http2, Alpn::Mux, Alpn::Http1, Alpn::Tcp], ClientSvid::Required)?;
        let control = server(&[Alpn::Http2], ClientSvid::Optional)?;
        Ok(Self { svid, bundles, signer, certified, http, tcp, any, control })
    }

    /// The own SVID.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// Every certificate whose end matters: the own chain's, and the authorities that are trusted.
    pub fn links(&self) -> Vec<Link> {
        let own = self.svid.id().trust_domain().to_string();
        let mut links =
            vec![Link { kind: "svid", trust_domain: own.clone(), id: String::new(), not_after: self.svid.not_after() }];
        for der in self.svid.chain().iter().skip(1) {
            links.extend(svid::read_certificate(der).ok().map(|certificate| Link {
                kind: "intermediate",
                trust_domain: own.clone(),
                id: svid::subject_key_id(&certificate).unwrap_or_default(),
                not_after: svid::timestamp(certificate.validity().not_after),
            }));
        }
        links.extend(self.bundles.links());
        links
    }

    /// The bundles that peers are checked with.
    pub fn bundles(&self) -> &Arc<TrustBundles> {
        &self.bundles
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyFailure> {
        self.signer.sign(message)
    }

    pub(crate) fn certified(&self) -> Arc<SingleCertAndKey> {
        Arc::clone(&self.certified)
    }

    pub(crate) fn http(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.http)
    }

    pub(crate) fn tcp(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tcp)
    }

    pub(crate) fn any(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.any)
    }

    pub(crate) fn control(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.control)
    }

    /// For one connection: a client configuration knows whom it expects.
    pub(crate) fn client(&self, expected: &[SpiffeId], alpn: &[Alpn]) -> Result<Arc<ClientConfig>, rustls::Error> {
        client_config(Some(Arc::clone(&self.certified)), Arc::clone(&self.bundles), expected, alpn)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", self.svid.id())
            .field("serial", &self.svid.serial())
            .field("not_after", &self.svid.not_after())
            .field("bundles", &self.bundles)
            .finish_non_exhaustive()
    }
}

pub(crate) fn server_config(
    certified: Arc<SingleCertAndKey>,
    bundles: Arc<TrustBundles>,
    alpn: &[Alpn],
    svid: ClientSvid,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider::provider(&bundles));
    // The guarantee is this call: a feature of the library may be switched on by any other crate of the build.
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let verifier = Arc::new(ClientVerifier { bundles, svid });
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(certified);
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.wire().to_vec()).collect();
    // A resumed session is not verified again, so that an expired or revoked peer would go on connecting.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Presents `certified`, or nothing.
pub(crate) fn client_config(
    certified: Option<Arc<SingleCertAndKey>>,
    bundles: Arc<TrustBundles>,
    expected: &[SpiffeId],
    alpn: &[Alpn],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider::provider(&bundles));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let verifier = Arc::new(ServerVerifier { bundles, expected: expected.to_vec() });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match certified {
        Some(certified) => builder.with_client_cert_resolver(certified),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.wire().to_vec()).collect();
    config.resumption = Resumption::disabled();
    // Peers are found by their SPIFFE ID; a server name would say nothing, in clear text.
    config.enable_sni = false;
    Ok(Arc::new(config))
}
