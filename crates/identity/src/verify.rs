//! The two rustls verifiers, and the way of a refusal through rustls and back.
//!
//! rustls wants its own error type. Where it has a word for a refusal we use that word, because it also chooses the TLS
//! alert by it, and the peer's operator reads the alert. The others travel inside.

use crate::bundle::TrustBundles;
use crate::handshake::HandshakeRefusal;
use crate::provider;
use crate::svid::{self, Leaf, PeerRefusal};
use model::{SpiffeId, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;

/// Whether a client must present an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientSvid {
    /// Always: every port but the control plane's.
    Required,
    /// A first issue call comes without one. One that is presented is checked all the same.
    Optional,
}

/// The server's side: any SVID of any trust domain that has a bundle. Who may do what is for the policies.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) bundles: Arc<TrustBundles>,
    pub(crate) svid: ClientSvid,
}

/// The client's side: an SVID of one of the workloads that are called, and of nobody else.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) bundles: Arc<TrustBundles>,
    pub(crate) expected: Vec<SpiffeId>,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.svid == ClientSvid::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint would tell every stranger our authorities' names, and a workload has one SVID to offer anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        check(end_entity, intermediates, &self.bundles, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider::signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::signature_algorithms().supported_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = check(end_entity, intermediates, &self.bundles, now)?;
        // Here and not after the handshake: a stranger is never shown our own certificate.
        if !self.expected.contains(&leaf.id) {
            let refusal = HandshakeRefusal::Unexpected { expected: self.expected.clone(), got: leaf.id };
            return Err(CertificateError::Other(OtherError(Arc::new(refusal))).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider::signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::signature_algorithms().supported_schemes()
    }
}

fn check(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    now: UnixTime,
) -> Result<Leaf, rustls::Error> {
    let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
    let leaf = svid::check(&chain, bundles, Timestamp::from_seconds(now.as_secs())).map_err(to_rustls)?;
    // Last, so that nobody but its holder learns that an SVID is revoked.
    if bundles.is_revoked(&leaf.serial) {
        return Err(to_rustls(PeerRefusal::Revoked));
    }
    Ok(leaf)
}

/// TLS 1.2 is not in our configurations. Should a build ever bring it back, it still does not pass here.
fn only_tls13() -> rustls::Error {
    rustls::PeerIncompatible::Tls13RequiredForQuic.into()
}

fn to_rustls(refusal: PeerRefusal) -> rustls::Error {
    let time = |at: Timestamp| UnixTime::since_unix_epoch(Duration::from_secs(at.seconds()));
    let error = match refusal {
        PeerRefusal::Untrusted => CertificateError::UnknownIssuer,
        PeerRefusal::Revoked => CertificateError::Revoked,
        PeerRefusal::Expired { not_after, now } => {
            CertificateError::ExpiredContext { time: time(now), not_after: time(not_after) }
        }
        PeerRefusal::NotYetValid { not_before, now } => {
            CertificateError::NotValidYetContext { time: time(now), not_before: time(not_before) }
        }
        PeerRefusal::Profile { .. } => CertificateError::Other(OtherError(Arc::new(HandshakeRefusal::Peer(refusal)))),
    };
    error.into()
}

/// The refusal that one of our verifiers made, if `error` came from one.
pub(crate) fn from_rustls(error: &rustls::Error) -> Option<HandshakeRefusal> {
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    let moment = |time: &UnixTime| Timestamp::from_seconds(time.as_secs());
    match error {
        CertificateError::UnknownIssuer => Some(PeerRefusal::Untrusted.into()),
        CertificateError::Revoked => Some(PeerRefusal::Revoked.into()),
        CertificateError::ExpiredContext { time, not_after } => {
            Some(PeerRefusal::Expired { not_after: moment(not_after), now: moment(time) }.into())
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            Some(PeerRefusal::NotYetValid { not_before: moment(not_before), now: moment(time) }.into())
        }
        CertificateError::Other(OtherError(inner)) => inner.downcast_ref::<HandshakeRefusal>().cloned(),
        _ => None,
    }
}
