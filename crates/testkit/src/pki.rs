//! A certificate authority for tests: makes good certificates, and every kind of bad one; and TLS peers without manners that
//! present them to a real listener or client.
//!
//! Begin with [`TestAuthority::new`]; [`Flaw::ALL`] is the table of attacks, with the reason that each must be refused for.
#![expect(clippy::expect_used, reason = "a test whose certificates cannot be made must end")]

use identity::{ClientStream, Credentials, PrivateKey, ServerStream, TrustBundles};
use model::snapshot::TrustBundle;
use model::{Reason, SpiffeId, Timestamp, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group, sign::any_ecdsa_type};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName as RootHint, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The wall clock in whole seconds. Handshakes look at the real one, so certificates for them are made around it.
pub fn now() -> Timestamp {
    Timestamp::from_seconds(UnixTime::now().as_secs())
}

/// A chain and the key of its leaf, ready to be presented.
#[derive(Debug)]
pub struct Presented {
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's key.
    pub key: PrivateKey,
}

/// What a certificate is to say. Every field may be made wrong.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// URI SANs, in order.
    pub uris: Vec<String>,
    /// DNS SANs, in order.
    pub dns: Vec<String>,
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
    /// Basic constraints.
    pub ca: IsCa,
    /// Key usages; empty leaves the extension out.
    pub usages: Vec<KeyUsagePurpose>,
    /// Extended key usages; empty leaves the extension out.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Further extensions, written as they are.
    pub extensions: Vec<CustomExtension>,
}

impl Leaf {
    /// A good SVID for one hour.
    pub fn good(id: &SpiffeId) -> Self {
        Self {
            uris: vec![id.to_string()],
            dns: Vec::new(),
            not_before: now().minus(Duration::from_secs(300)),
            not_after: now().plus(HOUR),
            ca: IsCa::ExplicitNoCa,
            usages: vec![KeyUsagePurpose::DigitalSignature],
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            extensions: Vec::new(),
        }
    }
}

/// One way in which a certificate is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Signed by an authority that has the same name and trust domain, but another key.
    TwinAuthority,
    /// Names a workload of a trust domain that this authority does not speak for.
    OtherTrustDomain,
    /// Ended an hour ago.
    Expired,
    /// Begins in an hour.
    NotYetValid,
    /// Two URI SANs, the right one first.
    TwoUriSans,
    /// The right URI SAN, and one that is not text.
    UnreadableUriSan,
    /// Two SAN extensions.
    TwoSanExtensions,
    /// No SAN at all.
    NoSan,
    /// Only a DNS SAN.
    DnsSanOnly,
    /// `spiffe://DOMAIN` without a path, which is the authority's own name.
    NoPath,
    /// A URI SAN of another scheme.
    OtherScheme,
    /// CA=true.
    CaLeaf,
    /// No key usage.
    NoKeyUsage,
    /// A key usage without digitalSignature.
    NoDigitalSignature,
    /// digitalSignature and keyCertSign.
    KeyCertSign,
    /// digitalSignature and cRLSign.
    CrlSign,
    /// No extended key usage.
    NoExtendedKeyUsage,
    /// serverAuth without clientAuth.
    ServerAuthOnly,
    /// clientAuth without serverAuth.
    ClientAuthOnly,
    /// A critical extension that nobody knows.
    UnknownCriticalExtension,
}

impl Flaw {
    /// Every flaw.
    pub const ALL: [Self; 20] = [
        Self::TwinAuthority,
        Self::OtherTrustDomain,
        Self::Expired,
        Self::NotYetValid,
        Self::TwoUriSans,
        Self::UnreadableUriSan,
        Self::TwoSanExtensions,
        Self::NoSan,
        Self::DnsSanOnly,
        Self::NoPath,
        Self::OtherScheme,
        Self::CaLeaf,
        Self::NoKeyUsage,
        Self::NoDigitalSignature,
        Self::KeyCertSign,
        Self::CrlSign,
        Self::NoExtendedKeyUsage,
        Self::ServerAuthOnly,
        Self::ClientAuthOnly,
        Self::UnknownCriticalExtension,
    ];

    /// What a peer with this flaw must be refused for.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TwinAuthority | Self::OtherTrustDomain => Reason::PeerUntrusted,
            Self::Expired => Reason::PeerExpired,
            Self::NotYetValid => Reason::PeerNotYetValid,
            Self::TwoUriSans
            | Self::UnreadableUriSan
            | Self::TwoSanExtensions
            | Self::NoSan
            | Self::DnsSanOnly
            | Self::NoPath
            | Self::OtherScheme
            | Self::CaLeaf
            | Self::NoKeyUsage
            | Self::NoDigitalSignature
            | Self::KeyCertSign
            | Self::CrlSign
            | Self::NoExtendedKeyUsage
            | Self::ServerAuthOnly
            | Self::ClientAuthOnly
            | Self::UnknownCriticalExtension => Reason::PeerProfile,
        }
    }
}

/// An authority that signs whatever a test wants.
#[derive(Debug)]
pub struct TestAuthority {
    trust_domain: TrustDomain,
    params: CertificateParams,
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
    /// What stands between a leaf and the root, nearest first.
    above: Vec<Vec<u8>>,
}

impl TestAuthority {
    /// A root of this trust domain (`bank.example`), valid from yesterday for ten years.
    pub fn new(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).expect("a trust domain");
        Self::root(authority_params(&trust_domain, "test root"), trust_domain)
    }

    /// An unrelated root with the same name and trust domain.
    pub fn twin(&self) -> Self {
        Self::root(self.params.clone(), self.trust_domain.clone())
    }

    /// A root of this trust domain with whatever is wrong in `params` (see [`authority_params`]).
    pub fn root(params: CertificateParams, trust_domain: TrustDomain) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").der().to_vec();
        let issuer = Issuer::new(params.clone(), key);
        Self { trust_domain, params, issuer, certificate, above: Vec::new() }
    }

    /// An intermediate under this authority with whatever is wrong in `params`; its certificates carry it in their chain.
    pub fn intermediate(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").der().to_vec();
        let mut above = vec![certificate.clone()];
        above.extend(self.above.iter().cloned());
        let issuer = Issuer::new(params.clone(), key);
        Self { trust_domain: self.trust_domain.clone(), params, issuer, certificate, above }
    }

    /// The authority's own certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Whose authority it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The bundle with this authority alone.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::x509(self.trust_domain.clone(), vec![self.certificate.clone()])
    }

    /// Bundles that trust this authority alone.
    pub fn bundles(&self) -> Arc<TrustBundles> {
        bundles(&[self])
    }

    /// A workload of this trust domain: `spiffe://DOMAIN/ns/bank/sa/ACCOUNT`.
    pub fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::workload(&self.trust_domain, "bank", account).expect("an account")
    }

    /// A certificate exactly as `leaf` says, with a new key.
    pub fn mint(&self, leaf: &Leaf) -> Presented {
        let key = PrivateKey::generate().expect("a key");
        let pair = KeyPair::try_from(key.to_pkcs8_der().as_slice()).expect("a P-256 key");
        let mut params = CertificateParams::default();
        set_life(&mut params, leaf.not_before, leaf.not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        params.distinguished_name = DistinguishedName::new();
        let uris = leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")));
        let dns = leaf.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("ASCII")));
        params.subject_alt_names = uris.chain(dns).collect();
        params.is_ca = leaf.ca;
        params.key_usages = leaf.usages.clone();
        params.extended_key_usages = leaf.purposes.clone();
        params.custom_extensions = leaf.extensions.clone();
        let certificate = params.signed_by(&pair, &self.issuer).expect("a certificate").der().to_vec();
        Presented { chain: [vec![certificate], self.above.clone()].concat(), key }
    }

    /// A good SVID.
    pub fn good(&self, id: &SpiffeId) -> Presented {
        self.mint(&Leaf::good(id))
    }

    /// An SVID that is good but for one flaw.
    pub fn flawed(&self, flaw: Flaw, id: &SpiffeId) -> Presented {
        if flaw == Flaw::TwinAuthority { self.twin().good(id) } else { self.mint(&flawed_leaf(flaw, id)) }
    }

    /// Credentials with a good SVID that trust this authority alone.
    pub fn credentials(&self, id: &SpiffeId) -> Arc<Credentials> {
        self.credentials_trusting(id, self.bundles())
    }

    /// Credentials with a good SVID and these bundles.
    pub fn credentials_trusting(&self, id: &SpiffeId, bundles: Arc<TrustBundles>) -> Arc<Credentials> {
        let Presented { chain, key } = self.good(id);
        Arc::new(Credentials::build(&key, chain, bundles, now()).expect("credentials"))
    }
}

/// Bundles that trust each of these authorities for its own trust domain.
pub fn bundles(authorities: &[&TestAuthority]) -> Arc<TrustBundles> {
    let bundles: Vec<TrustBundle> = authorities.iter().map(|authority| authority.bundle()).collect();
    Arc::new(TrustBundles::from_model(&bundles).expect("bundles"))
}

/// What a sound root or intermediate says, to be made wrong by a test.
pub fn authority_params(trust_domain: &TrustDomain, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    set_life(&mut params, now().minus(DAY), now().plus(DAY * 3650));
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().expect("ASCII"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Sets a certificate's first and last moment, whole seconds.
pub fn set_life(params: &mut CertificateParams, not_before: Timestamp, not_after: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.seconds());
    params.not_after = epoch + Duration::from_secs(not_after.seconds());
}

fn serial() -> [u8; 16] {
    let mut serial: [u8; 16] = identity::random_bytes().expect("random bytes");
    serial[0] = 0x42;
    serial
}

fn flawed_leaf(flaw: Flaw, id: &SpiffeId) -> Leaf {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    let good = Leaf::good(id);
    let elsewhere = format!("spiffe://elsewhere.example{}", id.path());
    match flaw {
        Flaw::TwinAuthority => good,
        Flaw::OtherTrustDomain => Leaf { uris: vec![elsewhere], ..good },
        Flaw::Expired => Leaf { not_before: now().minus(2 * HOUR), not_after: now().minus(HOUR), ..good },
        Flaw::NotYetValid => Leaf { not_before: now().plus(HOUR), not_after: now().plus(2 * HOUR), ..good },
        Flaw::TwoUriSans => Leaf { uris: vec![id.to_string(), format!("{id}-other")], ..good },
        Flaw::UnreadableUriSan => {
            let names = [(6, id.as_str().as_bytes()), (6, &b"spiffe://\xff\xfe/x"[..])];
            Leaf { uris: Vec::new(), extensions: vec![san(&names)], ..good }
        }
        Flaw::TwoSanExtensions => Leaf { extensions: vec![san(&[(6, id.as_str().as_bytes())])], ..good },
        Flaw::NoSan => Leaf { uris: Vec::new(), ..good },
        Flaw::DnsSanOnly => Leaf { uris: Vec::new(), dns: vec!["payments.bank.example".to_owned()], ..good },
        Flaw::NoPath => Leaf { uris: vec![format!("spiffe://{}", id.trust_domain())], ..good },
        Flaw::OtherScheme => Leaf { uris: vec![id.as_str().replacen("spiffe", "https", 1)], ..good },
        Flaw::CaLeaf => Leaf { ca: IsCa::Ca(BasicConstraints::Unconstrained), ..good },
        Flaw::NoKeyUsage => Leaf { usages: Vec::new(), ..good },
        Flaw::NoDigitalSignature => Leaf { usages: vec![KeyAgreement], ..good },
        Flaw::KeyCertSign => Leaf { usages: vec![DigitalSignature, KeyCertSign], ..good },
        Flaw::CrlSign => Leaf { usages: vec![DigitalSignature, CrlSign], ..good },
        Flaw::NoExtendedKeyUsage => Leaf { purposes: Vec::new(), ..good },
        Flaw::ServerAuthOnly => Leaf { purposes: vec![ServerAuth], ..good },
        Flaw::ClientAuthOnly => Leaf { purposes: vec![ClientAuth], ..good },
        Flaw::UnknownCriticalExtension => {
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            Leaf { extensions: vec![unknown], ..good }
        }
    }
}

/// A SAN extension from raw names: the number of the kind (2 DNS, 6 URI; RFC 5280 §4.2.1.6) and the bytes, fewer than 128 in all.
pub fn san(names: &[(u8, &[u8])]) -> CustomExtension {
    let short = |bytes: &[u8]| u8::try_from(bytes.len()).ok().filter(|length| *length < 128).expect("a short name");
    let entries: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[0x80 | kind, short(name)], *name].concat()).collect();
    let content = [&[0x30, short(&entries)], entries.as_slice()].concat();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], content)
}

/// A TLS client that believes every server and presents whatever it was given. For attacks on a listener.
///
/// It remembers tickets as browsers do, so that a second connection would resume if the server let it.
#[derive(Clone, Debug)]
pub struct LawlessClient {
    config: ClientConfig,
}

impl LawlessClient {
    /// Speaks TLS 1.3, offers no ALPN and presents nothing.
    pub fn new() -> Self {
        Self::speaking(aws_lc_rs::default_provider(), &rustls::version::TLS13)
    }

    /// Speaks nothing newer than TLS 1.2.
    #[cfg(feature = "tls12")]
    pub fn tls12() -> Self {
        Self::speaking(aws_lc_rs::default_provider(), &rustls::version::TLS12)
    }

    /// Speaks TLS 1.3 without hybrid key exchange.
    pub fn classical() -> Self {
        let provider = CryptoProvider { kx_groups: vec![kx_group::X25519], ..aws_lc_rs::default_provider() };
        Self::speaking(provider, &rustls::version::TLS13)
    }

    fn speaking(provider: CryptoProvider, version: &'static rustls::SupportedProtocolVersion) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[version]);
        let builder = builder.expect("a version").dangerous().with_custom_certificate_verifier(Arc::new(Believes { all: true }));
        Self { config: builder.with_no_client_auth() }
    }

    /// Presents this chain, and signs with this key whether it is the leaf's or not.
    #[must_use]
    pub fn presenting(mut self, chain: &[Vec<u8>], key: &PrivateKey) -> Self {
        self.config.client_auth_cert_resolver = Arc::new(Presents(certified(chain, key)));
        self
    }

    /// Offers these ALPN names, in this order.
    #[must_use]
    pub fn alpn(mut self, names: &[&str]) -> Self {
        self.config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Forgets every ticket: each handshake is a full one.
    #[must_use]
    pub fn without_resumption(mut self) -> Self {
        self.config.resumption = Resumption::disabled();
        self
    }

    /// Shakes hands. In TLS 1.3 the server's refusal of a client certificate comes only with the first read.
    ///
    /// # Errors
    /// - Whatever ended the handshake.
    pub async fn connect<S>(&self, stream: S) -> io::Result<ClientStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from("lawless.example").expect("a name");
        TlsConnector::from(Arc::new(self.config.clone())).connect(name, stream).await
    }
}

impl Default for LawlessClient {
    fn default() -> Self {
        Self::new()
    }
}

/// A TLS server that believes every client and presents whatever it was given. For attacks on a client.
///
/// It hands out tickets, as servers do by default.
#[derive(Clone, Debug)]
pub struct LawlessServer {
    config: Arc<ServerConfig>,
}

impl LawlessServer {
    /// Speaks TLS 1.3, presents this chain, signs with this key whether it is the leaf's or not, and selects from these ALPN
    /// names; an empty list selects none, whatever is offered.
    pub fn presenting(chain: &[Vec<u8>], key: &PrivateKey, alpn: &[&str]) -> Self {
        Self::with(Believes { all: true }, chain, key, alpn)
    }

    /// The same, and it knows no client's authority.
    pub fn believing_nobody(chain: &[Vec<u8>], key: &PrivateKey, alpn: &[&str]) -> Self {
        Self::with(Believes { all: false }, chain, key, alpn)
    }

    fn with(clients: Believes, chain: &[Vec<u8>], key: &PrivateKey, alpn: &[&str]) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.expect("a version").with_client_cert_verifier(Arc::new(clients));
        let mut config = builder.with_cert_resolver(Arc::new(Presents(certified(chain, key))));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config: Arc::new(config) }
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// - Whatever ended the handshake.
    pub async fn accept<S>(&self, stream: S) -> io::Result<ServerStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await
    }
}

fn certified(chain: &[Vec<u8>], key: &PrivateKey) -> Arc<CertifiedKey> {
    let chain = chain.iter().cloned().map(CertificateDer::from).collect();
    let document = key.to_pkcs8_der();
    let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(document.as_slice()))).expect("a P-256 key");
    Arc::new(CertifiedKey::new(chain, key))
}

#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Presents {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Believes {
    all: bool,
}

impl Believes {
    fn schemes() -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Believes {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[RootHint] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.all {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
