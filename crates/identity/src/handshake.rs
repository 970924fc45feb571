//! The TLS handshake: from a stream to a stream with a [`VerifiedPeer`]. The only place where one is made.

use crate::bundle::TrustBundles;
use crate::credentials::{self, Credentials};
use crate::rehearsal::Shadow;
use crate::svid::{self, PeerRefusal};
use crate::{hex, verify};
use aws_lc_rs::digest::{SHA256, digest};
use model::snapshot::Protocol;
use model::{Reason, SpiffeId, Timestamp};
use rustls::server::Acceptor;
use rustls::{AlertDescription, ClientConfig, CommonState, InvalidMessage, NamedGroup, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// The stream of a connection that we accepted.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;
/// The stream of a connection that we opened.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// What is spoken inside, as ALPN says it (RFC 7301). Nothing is sniffed between sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1: `http/1.1`.
    Http1,
    /// HTTP/2: `h2`.
    Http2,
    /// Many streams of HTTP/1.1 on one connection: `rondel-mux`.
    Mux,
    /// Opaque bytes: `rondel-tcp`.
    Tcp,
    /// Nothing: the handshake itself is the rehearsal of a rotation, `rondel-rehearse-activated`.
    RehearseActivated,
    /// Nothing: the handshake itself is the rehearsal of a rotation, `rondel-rehearse-retired`.
    RehearseRetired,
}

impl Alpn {
    /// The name: `http/1.1`, `h2`, `rondel-mux`, `rondel-tcp`, `rondel-rehearse-…`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
            Self::Mux => "rondel-mux",
            Self::Tcp => "rondel-tcp",
            Self::RehearseActivated => "rondel-rehearse-activated",
            Self::RehearseRetired => "rondel-rehearse-retired",
        }
    }

    pub(crate) const fn wire(self) -> &'static [u8] {
        self.as_str().as_bytes()
    }

    fn from_wire(name: &[u8]) -> Option<Self> {
        const ALL: [Alpn; 6] = [Alpn::Http1, Alpn::Http2, Alpn::Mux, Alpn::Tcp, Alpn::RehearseActivated, Alpn::RehearseRetired];
        ALL.into_iter().find(|alpn| alpn.wire() == name)
    }
}

/// What a listener carries, and so which ALPN names it selects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Serves {
    /// HTTP: `h2`, `rondel-mux` or `http/1.1`, in this order.
    Http,
    /// Opaque bytes: `rondel-tcp`.
    Tcp,
    /// Whichever of them the caller asks for.
    Any,
}

impl From<Protocol> for Serves {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Self::Http,
            Protocol::Tcp => Self::Tcp,
            Protocol::Detect => Self::Any,
        }
    }
}

/// The workload at the other end of a connection. Evidence: its chain was verified and it proved to hold the key, in the
/// handshake of this very connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VerifiedPeer(Arc<Shown>);

/// What a peer showed. Behind one pointer: a connection keeps it for as long as it lives.
#[derive(Debug)]
struct Shown {
    id: SpiffeId,
    not_after: Timestamp,
    serial: String,
    fingerprint: String,
    group: &'static str,
    authority: Option<String>,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// When its certificate ends. A connection may outlive it, up to its maximum age.
    pub fn not_after(&self) -> Timestamp {
        self.0.not_after
    }

    /// The serial number of its certificate, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// The subject key id of the authority that issued its certificate, lower-case hexadecimal; `None` if it does not say.
    pub fn authority_key_id(&self) -> Option<&str> {
        self.0.authority.as_deref()
    }

    /// SHA-256 over its certificate (DER), lower-case hexadecimal.
    pub fn fingerprint_sha256(&self) -> &str {
        &self.0.fingerprint
    }

    /// The negotiated key exchange: `X25519MLKEM768` between sidecars.
    pub fn key_exchange_group(&self) -> &'static str {
        self.0.group
    }

    /// From a handshake that has ended: the verifier has passed the chain, and its leaf is read once more for what it says.
    fn of(connection: &CommonState, chain: &[CertificateDer<'_>]) -> Result<Self, HandshakeRefusal> {
        let first = chain.first().ok_or(HandshakeRefusal::CertificateMissing)?;
        let leaf = svid::read_leaf(first)?;
        Ok(Self(Arc::new(Shown {
            id: leaf.id,
            not_after: leaf.not_after,
            serial: leaf.serial,
            authority: leaf.authority_key_id,
            fingerprint: hex(digest(&SHA256, first).as_ref()),
            group: connection.negotiated_key_exchange_group().map_or("unknown", |group| group_name(group.name())),
        })))
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeRefusal {
    /// The handshake did not end in time. The peer or the network is slow, or somebody holds connections open.
    #[error("the TLS handshake did not end within limit `handshakeMs` ({} ms)", deadline.as_millis())]
    Timeout {
        /// How long it had.
        deadline: Duration,
    },
    /// The other end does not speak TLS.
    #[error("the other end does not speak TLS")]
    Plaintext,
    /// The client presented no certificate where one is required.
    #[error("the client presented no certificate")]
    CertificateMissing,
    /// The peer's certificate is not believed.
    #[error("{0}")]
    Peer(#[from] PeerRefusal),
    /// The peer is genuine, but not a workload that was called.
    #[error("the peer is `{got}`, not {}", one_of(expected))]
    Unexpected {
        /// Who was called.
        expected: Vec<SpiffeId>,
        /// Who answered.
        got: SpiffeId,
    },
    /// The peer does not believe our certificate.
    #[error("the peer refused with the alert `{alert}`")]
    NotBelieved {
        /// Its alert, as RFC 8446 §6 names it.
        alert: String,
    },
    /// Version, cipher or ALPN did not fit, the connection broke, or the peer refused us.
    #[error("{detail}")]
    Failed {
        /// What happened; names the alert if the peer sent one.
        detail: String,
    },
}

impl HandshakeRefusal {
    /// The word for logs, metrics and headers.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::HandshakeTimeout,
            Self::Plaintext => Reason::PlaintextRefused,
            Self::CertificateMissing => Reason::PeerCertificateMissing,
            Self::Peer(refusal) => refusal.reason(),
            Self::Unexpected { .. } => Reason::PeerUnexpected,
            Self::NotBelieved { .. } | Self::Failed { .. } => Reason::HandshakeFailed,
        }
    }

    /// The word where this side called. Whose certificate is wrong is told as such; what else broke is the upstream's.
    pub const fn reason_of_call(&self) -> Reason {
        match self {
            Self::Peer(_) | Self::Unexpected { .. } => self.reason(),
            Self::NotBelieved { .. } => Reason::IdentityRefused,
            Self::Timeout { .. } | Self::Plaintext | Self::CertificateMissing | Self::Failed { .. } => Reason::UpstreamHandshake,
        }
    }

    fn failed(detail: impl Into<String>) -> Self {
        Self::Failed { detail: detail.into() }
    }
}

/// Accepts a peer that presents an SVID of any trust domain that has a bundle. TLS 1.3 only.
///
/// The `Option<Alpn>` is `None` only if the peer offered no ALPN at all; one that offers others than `serves` is refused.
///
/// # Errors
/// - [`HandshakeRefusal`]. Where TLS was spoken, the peer has been sent the alert that fits.
///
/// Cancel safety: dropping the future closes the stream.
pub async fn accept<S>(
    stream: S,
    credentials: &Credentials,
    serves: Serves,
    deadline: Duration,
) -> Result<(ServerStream<S>, VerifiedPeer, Option<Alpn>), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    accept_or_rehearse(stream, credentials, None, serves, deadline).await
}

/// As [`accept`]; while a rehearsal is under way (`shadow`), a peer that asks for it by ALPN gets its handshake, and nothing more.
///
/// # Errors
/// - As [`accept`].
pub async fn accept_or_rehearse<S>(
    stream: S,
    credentials: &Credentials,
    shadow: Option<&Shadow>,
    serves: Serves,
    deadline: Duration,
) -> Result<(ServerStream<S>, VerifiedPeer, Option<Alpn>), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = match serves {
        Serves::Http => credentials.http(),
        Serves::Tcp => credentials.tcp(),
        Serves::Any => credentials.any(),
    };
    let stream = within(deadline, accept_with(stream, shadow, config)).await?;
    let connection = stream.get_ref().1;
    let peer = VerifiedPeer::of(connection, connection.peer_certificates().unwrap_or_default())?;
    let alpn = connection.alpn_protocol().and_then(Alpn::from_wire);
    Ok((stream, peer, alpn))
}

/// Accepts a peer on the control plane's port: one without a certificate is let in as `None`, so that it can ask for its first.
/// A certificate that is presented must pass all the same.
///
/// # Errors
/// - As [`accept`], without [`HandshakeRefusal::CertificateMissing`].
pub async fn accept_optional<S>(
    stream: S,
    credentials: &Credentials,
    deadline: Duration,
) -> Result<(ServerStream<S>, Option<VerifiedPeer>), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = within(deadline, accept_with(stream, None, credentials.control())).await?;
    let connection = stream.get_ref().1;
    let peer = match connection.peer_certificates() {
        None | Some([]) => None,
        Some(chain) => Some(VerifiedPeer::of(connection, chain)?),
    };
    Ok((stream, peer))
}

/// Connects to a workload that must be one of `expected`, compared as whole SPIFFE IDs, and that must select one of `alpn`, which it
/// is offered in this order and which is given back.
///
/// Who is expected is checked inside the handshake: anybody else never sees our certificate. In TLS 1.3 a client learns only
/// by its first read that the server refused *its* certificate; [`refused_by_peer`] reads that error.
///
/// # Errors
/// - [`HandshakeRefusal`].
///
/// Cancel safety: dropping the future closes the stream.
pub async fn connect<S>(
    stream: S,
    credentials: &Credentials,
    expected: &[SpiffeId],
    alpn: &[Alpn],
    deadline: Duration,
) -> Result<(ClientStream<S>, VerifiedPeer, Alpn), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = credentials.client(expected, alpn).map_err(|error| refusal_of(&error))?;
    connect_with(stream, config, alpn, deadline).await
}

/// Connects as nobody, for the first issue call: only the server proves who it is. ALPN is `h2`.
///
/// # Errors
/// - As [`connect`].
pub async fn connect_without_identity<S>(
    stream: S,
    bundles: &Arc<TrustBundles>,
    expected: &SpiffeId,
    deadline: Duration,
) -> Result<(ClientStream<S>, VerifiedPeer), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let expected = std::slice::from_ref(expected);
    let config = credentials::client_config(None, Arc::clone(bundles), expected, &[Alpn::Http2]);
    let config = config.map_err(|error| refusal_of(&error))?;
    let (stream, peer, _) = connect_with(stream, config, &[Alpn::Http2], deadline).await?;
    Ok((stream, peer))
}

/// The peer's refusal, if that is what `error` (of a read or write, or anything that one caused) comes from.
pub fn refused_by_peer(error: &(dyn Error + 'static)) -> Option<HandshakeRefusal> {
    let alert = find_tls_error(error)?;
    matches!(alert, rustls::Error::AlertReceived(_)).then(|| refusal_of(alert))
}

async fn accept_with<S>(
    stream: S,
    shadow: Option<&Shadow>,
    config: Arc<ServerConfig>,
) -> Result<ServerStream<S>, HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Two steps, so that "not TLS" can be told from a broken record later on: only the first message can be plaintext.
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
    let start = start.map_err(|error| first_message(&error))?;
    let rehearsed = shadow.zip(start.client_hello().alpn()).and_then(|(shadow, offered)| shadow.answering(offered));
    start.into_stream(rehearsed.unwrap_or(config)).await.map_err(|error| refusal(&error))
}

pub(crate) async fn connect_with<S>(
    stream: S,
    config: Arc<ClientConfig>,
    alpn: &[Alpn],
    deadline: Duration,
) -> Result<(ClientStream<S>, VerifiedPeer, Alpn), HandshakeRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The library wants a name; it is neither sent nor compared.
    let name = ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let connecting = async { TlsConnector::from(config).connect(name, stream).await.map_err(|error| first_message(&error)) };
    let stream = within(deadline, connecting).await?;
    let connection = stream.get_ref().1;
    let selected = connection.alpn_protocol().and_then(Alpn::from_wire).filter(|selected| alpn.contains(selected));
    let Some(selected) = selected else {
        let offered: Vec<&str> = alpn.iter().map(|alpn| alpn.as_str()).collect();
        return Err(HandshakeRefusal::failed(format!("the peer did not select the protocol `{}`", offered.join("` or `"))));
    };
    let peer = VerifiedPeer::of(connection, connection.peer_certificates().unwrap_or_default())?;
    Ok((stream, peer, selected))
}

async fn within<T>(
    deadline: Duration,
    handshake: impl Future<Output = Result<T, HandshakeRefusal>>,
) -> Result<T, HandshakeRefusal> {
    timeout(deadline, handshake).await.unwrap_or(Err(HandshakeRefusal::Timeout { deadline }))
}

/// As [`refusal`], where the failing message may have been the first: what is no TLS record then is plaintext.
fn first_message(error: &io::Error) -> HandshakeRefusal {
    match find_tls_error(error) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => HandshakeRefusal::Plaintext,
        _ => refusal(error),
    }
}

pub(crate) fn refusal(error: &io::Error) -> HandshakeRefusal {
    match find_tls_error(error) {
        Some(error) => refusal_of(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            HandshakeRefusal::failed("the peer closed the connection during the handshake")
        }
        None => HandshakeRefusal::failed(format!("the connection broke during the handshake: {error}")),
    }
}

pub(crate) fn refusal_of(error: &rustls::Error) -> HandshakeRefusal {
    if let Some(refusal) = verify::from_rustls(error) {
        return refusal;
    }
    match error {
        rustls::Error::NoCertificatesPresented => HandshakeRefusal::CertificateMissing,
        rustls::Error::PeerIncompatible(rustls::PeerIncompatible::NoKxGroupsInCommon) => HandshakeRefusal::failed(
            "the two sides share no key exchange; where `postQuantum` is `required`, the peer lacks X25519MLKEM768",
        ),
        rustls::Error::AlertReceived(alert) if is_of_certificate(*alert) => {
            HandshakeRefusal::NotBelieved { alert: alert_name(*alert) }
        }
        rustls::Error::AlertReceived(alert) => {
            HandshakeRefusal::failed(format!("the peer refused with the alert `{}`", alert_name(*alert)))
        }
        other => HandshakeRefusal::failed(format!("TLS handshake: {other}")),
    }
}

fn find_tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = Some(error);
    while let Some(each) = error {
        if let Some(found) = each.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An io::Error's own `source` skips the error that it wraps.
        let wrapped = each.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = wrapped.map_or_else(|| each.source(), |wrapped| Some(wrapped));
    }
    None
}

/// Whether an alert says that the certificate was not believed, or not shown (RFC 8446 §6.2).
const fn is_of_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// The alert's name in RFC 8446 §6, for those that tell an operator something.
fn alert_name(alert: AlertDescription) -> String {
    let name = match alert {
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateRevoked => "certificate_revoked",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::CertificateRequired => "certificate_required",
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::NoApplicationProtocol => "no_application_protocol",
        AlertDescription::ProtocolVersion => "protocol_version",
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::DecryptError => "decrypt_error",
        other => return format!("{other:?}"),
    };
    name.to_owned()
}

fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "secp256r1",
        _ => "unknown",
    }
}

/// The expected ids for a message; a long list is cut.
fn one_of(expected: &[SpiffeId]) -> String {
    let mut text: Vec<String> = expected.iter().take(3).map(|id| format!("`{id}`")).collect();
    if expected.len() > 3 {
        text.push(format!("{} others", expected.len() - 3));
    }
    if text.is_empty() { "anybody: no identity is expected there".to_owned() } else { text.join(" or ") }
}
