//! The workload's identity from a SPIFFE Workload API that somebody else serves, SPIRE's agent say, in place of join tokens and
//! issue calls: its stream is followed, and each SVID that passes with every peer is put in force.
//!
//! What cannot be used changes nothing: the SVID that is in force stays until it ends.

use crate::anchor::Anchor;
use crate::clock;
use crate::state::{Active, Shared};
use crate::sync;
use identity::bundle::{BundleError, TrustBundles};
use identity::credentials::{Credentials, CredentialsError};
use identity::key::PrivateKey;
use identity::svid::PeerRefusal;
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Streaming;
use wire::client::CallFailure;
use wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use wire::workload::{self, X509svid, X509svidRequest, X509svidResponse};

/// For the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For the first message; the later ones come when something has changed.
const FIRST_DEADLINE: Duration = Duration::from_secs(30);
/// First pause after a stream that ended; it doubles up to the maximum.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// LIMIT: bytes of one message.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why the identity socket gave nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TakeFailure {
    /// Nobody answers, or whoever answers says no.
    #[error("{0}")]
    Call(#[from] CallFailure),
    /// A field is missing or malformed (SPIFFE Workload API §4.5). Whoever serves the socket is at fault.
    #[error("`{field}` {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It gives the identities of others. Its registration of this workload must be mended.
    #[error("it gives {got}, and not this workload's `{wanted}`")]
    NotOurs {
        /// Who we are.
        wanted: SpiffeId,
        /// What is there.
        got: String,
    },
    /// The certificate names somebody else than the field beside it.
    #[error("the SVID is that of `{got}`, and is said to be that of `{said}`")]
    Foreign {
        /// What the message says.
        said: String,
        /// What the certificate says.
        got: SpiffeId,
    },
    /// The key is of a kind that is not used here.
    #[error("its key is {kind}, and only P-256 is used here; set `workload_x509_svid_key_type = \"ec-p256\"` for SPIRE's agent")]
    KeyKind {
        /// What it seems to be.
        kind: &'static str,
    },
    /// The bundle beside the SVID, or one of the configuration in force, cannot be used.
    #[error("trust bundle: {0}")]
    Bundle(#[from] BundleError),
    /// No peer would believe it, or the key is another's.
    #[error("its SVID: {0}")]
    Svid(#[from] CredentialsError),
}

/// Follows the socket for as long as the process lives.
pub async fn run(shared: Arc<Shared>, anchor: Anchor, socket: PathBuf) {
    let configured = shared.config.subscribe();
    let mut source = Source { shared, anchor, configured, authorities: Vec::new(), failures: 0 };
    let mut pause = PAUSE_MIN;
    loop {
        // The operator may have replaced the bundle that the control plane is checked against.
        if let Err(failure) = source.anchor.reread() {
            tracing::warn!(%failure, "the trust bundle stays as it was");
        }
        let (ended, has_given) = source.follow(&socket).await;
        if has_given {
            pause = PAUSE_MIN;
        }
        source.failed(&socket, &ended);
        // Whatever a configuration says meanwhile is looked at with the next message.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What is remembered between messages.
struct Source {
    shared: Arc<Shared>,
    anchor: Anchor,
    configured: watch::Receiver<Option<Arc<Active>>>,
    /// The own trust domain's authorities of the last message.
    authorities: Vec<Vec<u8>>,
    failures: u32,
}

impl Source {
    /// One stream, to its end. Says why it ended, and whether it gave anything that could be used.
    async fn follow(&mut self, socket: &Path) -> (TakeFailure, bool) {
        let mut messages = match open(socket).await {
            Ok(messages) => messages,
            Err(failure) => return (failure.into(), false),
        };
        let mut has_given = false;
        let mut deadline = Some(FIRST_DEADLINE);
        loop {
            let next = match deadline.take() {
                Some(after) => match timeout(after, messages.message()).await {
                    Ok(next) => next,
                    Err(_) => return (CallFailure::Timeout { after }.into(), has_given),
                },
                None => tokio::select! {
                    next = messages.message() => next,
                    // A configuration brings the mesh's bundle for the control plane, in which this socket's may be missing.
                    Ok(()) = self.configured.changed() => {
                        self.learn(self.authorities.clone());
                        continue;
                    }
                },
            };
            match next {
                Ok(Some(message)) => match self.take(message) {
                    Ok(()) => {
                        has_given = true;
                        if std::mem::take(&mut self.failures) > 0 {
                            tracing::info!("the identity socket gives an SVID again");
                        }
                    }
                    Err(failure) => self.failed(socket, &failure),
                },
                Ok(None) => return (CallFailure::Ended.into(), has_given),
                Err(status) => return (CallFailure::from(status).into(), has_given),
            }
        }
    }

    /// Says so once per change of state, then at every tenth time.
    fn failed(&mut self, socket: &Path, failure: &TakeFailure) {
        self.failures += 1;
        self.shared.metrics.svid_failures.inc();
        if self.failures == 1 || self.failures.is_multiple_of(10) {
            let (socket, failures) = (socket.display(), self.failures);
            tracing::warn!(%socket, failures, %failure, "the identity socket gave no SVID; the one in force stays until it ends");
        }
    }

    /// Puts the SVID of one message in force, or leaves everything as it is.
    fn take(&mut self, message: X509svidResponse) -> Result<(), TakeFailure> {
        let wanted = self.wanted();
        let chosen = choose(&message.svids, wanted.as_ref())?;
        let id = SpiffeId::parse(&chosen.spiffe_id);
        let id = id.map_err(|_| TakeFailure::Field { field: "spiffe_id", problem: "is not the SPIFFE ID of a workload" })?;
        let key = PrivateKey::from_pkcs8_der(&chosen.x509_svid_key);
        let key = key.map_err(|_| TakeFailure::KeyKind { kind: kind_of(&chosen.x509_svid_key) })?;
        let chain = certificates("x509_svid", &chosen.x509_svid)?;
        let authorities = certificates("bundle", &chosen.bundle)?;
        let own = TrustBundle::x509(id.trust_domain().clone(), authorities.clone());
        let now = clock::now();
        let credentials = self.build(&key, chain, &own, &message, now)?;
        let got = credentials.svid().id();
        if *got != id {
            return Err(TakeFailure::Foreign { said: chosen.spiffe_id.clone(), got: got.clone() });
        }
        if own.trust_domain == *self.anchor.control_plane.trust_domain() {
            self.learn(authorities);
        }
        self.put_in_force(credentials, now);
        Ok(())
    }

    /// Who we are, once that is known: by the configuration, or by what was taken first.
    fn wanted(&self) -> Option<SpiffeId> {
        let configured = self.shared.active().map(|active| active.snapshot.identity.clone());
        configured.or_else(|| Some(self.shared.credentials()?.svid().id().clone()))
    }

    /// The SVID with the bundles of the configuration in force; where those do not bear it (yet), with those that came with it.
    fn build(
        &self,
        key: &PrivateKey,
        chain: Vec<Vec<u8>>,
        own: &TrustBundle,
        message: &X509svidResponse,
        now: Timestamp,
    ) -> Result<Credentials, TakeFailure> {
        let active = self.shared.active();
        if let Some(active) = &active {
            let bundles = Arc::new(sync::bundles_of(&active.snapshot)?);
            match Credentials::build(key, chain.clone(), bundles, now) {
                Err(CredentialsError::Refused(PeerRefusal::Untrusted)) => {}
                outcome => return Ok(outcome?),
            }
        }
        let mut bundles = vec![own.clone()];
        for (name, der) in &message.federated_bundles {
            match federated(name, der) {
                Ok(bundle) if bundle.trust_domain == own.trust_domain => {}
                Ok(bundle) => bundles.push(bundle),
                // Its trust domain is not believed, and the SVID is put in force all the same.
                Err(failure) => tracing::warn!(%failure, "a federated bundle of the identity socket is left out"),
            }
        }
        let mut bundles = TrustBundles::from_model(&bundles)?;
        if let Some(active) = &active {
            bundles = sync::restricted(bundles, &active.snapshot);
        }
        Ok(Credentials::build(key, chain, Arc::new(bundles), now)?)
    }

    /// The control plane may have its SVID of the same authorities: what this socket adds is believed, what it took back is not any
    /// longer, and what is known from elsewhere stays.
    fn learn(&mut self, authorities: Vec<Vec<u8>>) {
        let trust_domain = self.anchor.control_plane.trust_domain().clone();
        let mut believed: Vec<Vec<u8>> =
            self.anchor.bundles().to_model().into_iter().flat_map(|known| known.authorities).collect();
        believed.retain(|known| !self.authorities.contains(known) || authorities.contains(known));
        believed.extend(authorities.iter().cloned());
        self.authorities = authorities;
        if let Err(failure) = self.anchor.learn(&[TrustBundle::x509(trust_domain, believed)]) {
            tracing::warn!(%failure, "the trust bundle in force could not be kept on disk");
        }
    }

    fn put_in_force(&self, credentials: Credentials, now: Timestamp) {
        let svid = credentials.svid();
        let before = self.shared.credentials();
        let is_known = before.as_ref().is_some_and(|before| before.svid().serial() == svid.serial());
        if is_known && before.is_some_and(|before| before.bundles() == credentials.bundles()) {
            return;
        }
        let issued_at = if is_known { Timestamp::from_millis(self.shared.issued_at.load(Ordering::Acquire)) } else { now };
        if !is_known {
            self.shared.metrics.svid_rotations.inc();
            tracing::info!(id = %svid.id(), serial = svid.serial(), not_after = %svid.not_after(), "SVID taken from the identity socket");
        }
        self.shared.replace_credentials(Arc::new(credentials), issued_at);
    }
}

async fn open(socket: &Path) -> Result<Streaming<X509svidResponse>, CallFailure> {
    let channel = timeout(CONNECT_DEADLINE, workload::connect(socket, CONNECT_DEADLINE)).await;
    let channel = channel.map_err(|_| CallFailure::Timeout { after: CONNECT_DEADLINE })??;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    // It answers with the first message's headers, for which a server may wait until it has an SVID.
    let call = timeout(FIRST_DEADLINE, client.fetch_x509svid(workload::request(X509svidRequest {}))).await;
    Ok(call.map_err(|_| CallFailure::Timeout { after: FIRST_DEADLINE })??.into_inner())
}

/// The SVID of this workload; while nobody knows who it is, the first, which is the default (SPIFFE Workload API §8).
fn choose<'a>(svids: &'a [X509svid], wanted: Option<&SpiffeId>) -> Result<&'a X509svid, TakeFailure> {
    let empty = |field| TakeFailure::Field { field, problem: "is missing or empty" };
    let first = svids.first().ok_or(empty("svids"))?;
    let chosen = match wanted {
        None => first,
        Some(wanted) => svids.iter().find(|svid| svid.spiffe_id == wanted.as_str()).ok_or_else(|| {
            let got = svids.iter().take(10).map(|svid| format!("`{}`", model::ids::printable(&svid.spiffe_id)));
            TakeFailure::NotOurs { wanted: wanted.clone(), got: got.collect::<Vec<_>>().join(", ") }
        })?,
    };
    let mandatory = [("x509_svid", &chosen.x509_svid), ("x509_svid_key", &chosen.x509_svid_key), ("bundle", &chosen.bundle)];
    if chosen.spiffe_id.is_empty() {
        return Err(empty("spiffe_id"));
    }
    match mandatory.into_iter().find(|(_, bytes)| bytes.is_empty()) {
        Some((field, _)) => Err(empty(field)),
        None => Ok(chosen),
    }
}

fn federated(name: &str, der: &[u8]) -> Result<TrustBundle, TakeFailure> {
    let problem = "has a key that is not the SPIFFE ID of a trust domain";
    let domain = name.strip_prefix("spiffe://").and_then(|name| TrustDomain::parse(name).ok());
    let domain = domain.ok_or(TakeFailure::Field { field: "federated_bundles", problem })?;
    let bundle = TrustBundle::x509(domain, certificates("federated_bundles", der)?);
    // Alone it must be one too, so that a bad one is left out by itself.
    TrustBundles::from_model(std::slice::from_ref(&bundle))?;
    Ok(bundle)
}

/// Cuts DER certificates that stand one after the other (ITU-T X.690 §8.1.3, definite lengths only).
fn certificates(field: &'static str, mut der: &[u8]) -> Result<Vec<Vec<u8>>, TakeFailure> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let length = element_length(der).filter(|length| *length <= der.len());
        let (certificate, rest) = length
            .and_then(|length| der.split_at_checked(length))
            .ok_or(TakeFailure::Field { field, problem: "is not a sequence of DER certificates" })?;
        found.push(certificate.to_vec());
        der = rest;
    }
    Ok(found)
}

/// The length of the SEQUENCE that `der` begins with, its head included.
fn element_length(der: &[u8]) -> Option<usize> {
    let (&[0x30, first], rest) = der.split_first_chunk::<2>()? else { return None };
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    // A certificate's length has at most three bytes.
    let count = usize::from(first & 0x7f);
    let digits = rest.get(..count).filter(|_| (1..=3).contains(&count))?;
    let length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
    Some(2 + count + length)
}

/// What a PKCS#8 document that is not one of a P-256 key holds, by the object identifier of its algorithm (RFC 5958 §2).
fn kind_of(pkcs8: &[u8]) -> &'static str {
    const HEAD_BYTES: usize = 64;
    let head = pkcs8.get(..HEAD_BYTES.min(pkcs8.len())).unwrap_or_default();
    let has = |oid: &[u8]| head.windows(oid.len()).any(|window| window == oid);
    let known: [(&[u8], &str); 5] = [
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01], "RSA"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x22], "EC on P-384"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x23], "EC on P-521"),
        (&[0x2b, 0x65, 0x70], "Ed25519"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], "broken (it says P-256)"),
    ];
    known.into_iter().find(|(oid, _)| has(oid)).map_or("not PKCS#8 of a known kind", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::pki::TestAuthority;

    fn svid(id: &str) -> X509svid {
        let (x509_svid, x509_svid_key, bundle) = (vec![1], vec![2], vec![3]);
        X509svid { spiffe_id: id.into(), x509_svid, x509_svid_key, bundle, hint: String::new() }
    }

    #[test]
    fn workload_api_8_the_first_svid_is_the_default_and_the_own_one_is_found_by_its_name() {
        let svids = [svid("spiffe://a.example/one"), svid("spiffe://a.example/two")];
        let two = SpiffeId::parse("spiffe://a.example/two").expect("id");
        let three = SpiffeId::parse("spiffe://a.example/three").expect("id");
        assert_eq!(choose(&svids, None).expect("first").spiffe_id, "spiffe://a.example/one");
        assert_eq!(choose(&svids, Some(&two)).expect("own").spiffe_id, "spiffe://a.example/two");
        let Err(TakeFailure::NotOurs { got, .. }) = choose(&svids, Some(&three)) else { panic!("somebody else's") };
        assert_eq!(got, "`spiffe://a.example/one`, `spiffe://a.example/two`");
    }

    #[test]
    fn workload_api_4_5_a_message_with_an_empty_mandatory_field_is_an_error() {
        assert!(matches!(choose(&[], None), Err(TakeFailure::Field { field: "svids", .. })));
        let whole = svid("spiffe://a.example/one");
        for (field, broken) in [
            ("spiffe_id", X509svid { spiffe_id: String::new(), ..whole.clone() }),
            ("x509_svid", X509svid { x509_svid: Vec::new(), ..whole.clone() }),
            ("x509_svid_key", X509svid { x509_svid_key: Vec::new(), ..whole.clone() }),
            ("bundle", X509svid { bundle: Vec::new(), ..whole.clone() }),
        ] {
            let failure = choose(&[broken], None).expect_err(field);
            assert!(matches!(failure, TakeFailure::Field { field: named, .. } if named == field), "{failure}");
        }
    }

    #[test]
    fn certificates_that_stand_one_after_the_other_are_cut_and_nothing_else_is() {
        let (one, two) = (TestAuthority::new("a.example"), TestAuthority::new("b.example"));
        let both = [one.certificate_der(), two.certificate_der()].concat();
        assert_eq!(certificates("bundle", &both).expect("two"), [one.certificate_der(), two.certificate_der()]);
        assert_eq!(certificates("bundle", &[0x30, 0x00, 0x30, 0x81, 0x01, 0xff]).expect("two").len(), 2);
        let cut = &both[..both.len() - 1];
        let after = [both.as_slice(), &[0]].concat();
        let endless: &[u8] = &[0x30, 0x80, 0, 0];
        let huge: &[u8] = &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff];
        for wrong in [cut, &after, endless, huge, &[0x30], &[0x30, 0x82, 0x01], b"-----BEGIN"] {
            assert!(certificates("bundle", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn workload_api_4_6_a_federated_bundle_is_that_of_the_trust_domain_that_its_key_names() {
        let foreign = TestAuthority::new("b.example");
        let der = foreign.certificate_der();
        assert_eq!(federated("spiffe://b.example", der).expect("bundle"), foreign.bundle());
        for (name, der) in
            [("b.example", der), ("spiffe://b.example/x", der), ("spiffe://c.example", der), ("spiffe://b.example", b"x")]
        {
            assert!(federated(name, der).is_err(), "{name}");
        }
    }

    #[test]
    fn a_key_of_another_kind_is_named() {
        let rsa =
            [&[0x30, 0x82, 0x04, 0xbd, 0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09][..], &[42, 134, 72, 134, 247, 13, 1, 1, 1]];
        for (der, kind) in [
            (rsa.concat(), "RSA"),
            (vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70], "Ed25519"),
            (vec![7; 200], "not PKCS#8 of a known kind"),
            (Vec::new(), "not PKCS#8 of a known kind"),
        ] {
            assert_eq!(kind_of(&der), kind);
        }
    }
}
