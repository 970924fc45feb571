//! The port for sidecars: handshakes in tasks of their own, so that a slow or hostile one stalls nobody.

use crate::ca::{Ca, Wanted};
use crate::clock;
use crate::desired::{Board, Desired};
use identity::credentials::{Credentials, CredentialsError};
use identity::csr;
use identity::handshake::{self, ServerStream, VerifiedPeer};
use identity::key::PrivateKey;
use identity::rotation::{self, RotationState, Step};
use identity::{bundle::BundleError, bundle::TrustBundles};
use model::Timestamp;
use model::snapshot::TrustBundle;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// From accept to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes under way; further connections wait in the kernel's backlog.
const HANDSHAKES_MAX: usize = 256;
/// Open connections; further ones are closed.
const CONNECTIONS_MAX: usize = 20_000;
/// Of them, those of callers without an SVID: whoever needs nothing to connect must not take the places of those who hold one.
const ANONYMOUS_MAX: usize = 256;
/// How long such a connection lives: enough to ask for a first SVID.
const ANONYMOUS_AGE_MAX: Duration = Duration::from_secs(30);
/// Connections that are shaken and wait for the server.
const SHAKEN_MAX: usize = 64;
/// The longest sleep of the renewal, so that a clock that was set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// Who opened a connection; every call can ask for it.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Option<VerifiedPeer>);

/// A shaken connection.
#[derive(Debug)]
pub(crate) struct Shaken {
    stream: ServerStream<TcpStream>,
    caller: Caller,
    _place: OwnedSemaphorePermit,
    anonymous: Option<Anonymous>,
}

/// The bounded stay of a caller without an SVID.
#[derive(Debug)]
struct Anonymous {
    _place: OwnedSemaphorePermit,
    end: Pin<Box<Sleep>>,
}

/// Accepts and shakes for as long as the process lives; the server takes the connections from the returned stream.
pub(crate) fn incoming(
    listener: TcpListener,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
) -> (impl Future<Output = ()>, ReceiverStream<io::Result<Shaken>>) {
    let (shaken, server) = mpsc::channel(SHAKEN_MAX);
    let accepting = async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let nameless = Arc::new(Semaphore::new(ANONYMOUS_MAX));
        loop {
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let Ok((stream, remote)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
                tracing::warn!(%remote, max = CONNECTIONS_MAX, "too many connections; this one is closed");
                continue;
            };
            // Without an SVID of our own nobody would believe us: the authority has ended.
            let Some(credentials) = credentials.borrow().clone() else { continue };
            let (shaken, nameless) = (shaken.clone(), Arc::clone(&nameless));
            tokio::spawn(async move {
                let _unsupported = stream.set_nodelay(true);
                match handshake::accept_optional(stream, &credentials, HANDSHAKE_DEADLINE).await {
                    Ok((stream, peer)) => {
                        drop(handshake);
                        let anonymous = match (&peer, nameless.try_acquire_owned()) {
                            (Some(_), _) => None,
                            (None, Ok(place)) => {
                                Some(Anonymous { _place: place, end: Box::pin(tokio::time::sleep(ANONYMOUS_AGE_MAX)) })
                            }
                            (None, Err(_)) => {
                                tracing::warn!(%remote, max = ANONYMOUS_MAX, "too many callers without an SVID; this one is closed");
                                return;
                            }
                        };
                        // The server may be gone: then the connection ends with this task.
                        let _ended = shaken.send(Ok(Shaken { stream, caller: Caller(peer), _place: place, anonymous })).await;
                    }
                    Err(refusal) => tracing::info!(%remote, reason = %refusal.reason(), %refusal, "handshake refused"),
                }
            });
        }
    };
    (accepting, ReceiverStream::new(server))
}

impl Connected for Shaken {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Shaken {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(anonymous) = &mut self.anonymous
            && anonymous.end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a caller without an SVID stayed too long")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shaken {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Why the control plane has no SVID of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnFailure {
    /// The authority refuses.
    #[error("own SVID: {0}")]
    Issue(#[from] crate::ca::IssueFailure),
    /// No key.
    #[error("own SVID: {0}")]
    Key(#[from] identity::key::KeyFailure),
    /// The bundle cannot be used.
    #[error("own SVID: {0}")]
    Bundle(#[from] BundleError),
    /// It does not pass as any peer would check it.
    #[error("own SVID: {0}")]
    Credentials(#[from] CredentialsError),
}

/// Issues this process its own SVID: the same way as everybody's, with a new key each time.
pub(crate) fn own_credentials(ca: &Ca, board: &Board) -> Result<Credentials, OwnFailure> {
    let desired = board.current();
    let id = desired.mesh.settings.trust_domain.control_plane();
    let key = PrivateKey::generate()?;
    let request = csr::build(&key, &id)?;
    let now = clock::now();
    let lifetime = desired.mesh.settings.svid_lifetime;
    let wanted = Wanted { id: &id, shown: None, workload: "", application: false, lifetime };
    let (issued, _) = ca.issue(&request, &wanted, now)?;
    Ok(Credentials::build(&key, issued.chain, Arc::new(believed(&desired)?), now)?)
}

/// Whom the control plane's port believes: workloads of its own trust domain, and none that is revoked.
fn believed(desired: &Desired) -> Result<TrustBundles, BundleError> {
    let own = &desired.mesh.settings.trust_domain;
    let bundles: Vec<TrustBundle> = desired.trust.bundles.iter().filter(|bundle| bundle.trust_domain == *own).cloned().collect();
    let revoked = desired.trust.revoked.iter().map(|svid| svid.serial.clone());
    Ok(TrustBundles::from_model(&bundles)?.restricted(revoked, desired.mesh.settings.post_quantum_required))
}

/// Renews the own SVID for as long as the process lives, by the same plan as every sidecar, and at once where another authority
/// signs; takes over who is believed whenever that changes.
pub(crate) async fn renew(ca: Arc<Ca>, board: Arc<Board>, credentials: watch::Sender<Option<Arc<Credentials>>>) {
    let (mut desired, mut signers) = (board.subscribe(), ca.changes());
    let (mut failures, mut last_attempt, mut issued_at) = (0, None, clock::now());
    loop {
        let now = clock::now();
        let own = credentials.borrow().clone();
        if let Some(own) = &own {
            let board = Arc::clone(&desired.borrow_and_update());
            believe(own, &board, now, &credentials);
        }
        let state = own.as_ref().map(|own| life(own, issued_at, failures, last_attempt));
        let signer = signers.borrow_and_update().active().map(|active| active.id.clone());
        let is_overtaken = own.as_ref().is_some_and(|own| own.svid().authority_key_id() != signer.as_deref());
        let step = match &state {
            Some(state) => rotation::next_of(now, state, is_overtaken.then_some(now), 0.0),
            None => last_attempt.map_or(Step::Issue, |attempt| rotation::retry(now, attempt, failures, 0.5)),
        };
        match step {
            Step::WaitUntil(at) => {
                let sleep = tokio::time::sleep(at.since(now).clamp(Duration::from_millis(50), SLEEP_MAX));
                tokio::select! {
                    () = sleep => {}
                    Ok(()) = desired.changed() => {}
                    Ok(()) = signers.changed() => {}
                }
            }
            Step::Issue => {
                last_attempt = Some(now);
                let (ca, board) = (Arc::clone(&ca), Arc::clone(&board));
                match tokio::task::spawn_blocking(move || own_credentials(&ca, &board)).await {
                    Ok(Ok(fresh)) => {
                        (failures, issued_at) = (0, now);
                        credentials.send_replace(Some(Arc::new(fresh)));
                    }
                    outcome => {
                        failures += 1;
                        if failures == 1 || failures % 10 == 0 {
                            tracing::error!(?outcome, failures, "the own SVID could not be renewed");
                        }
                    }
                }
            }
        }
    }
}

/// The same SVID, and who is believed now.
fn believe(own: &Credentials, desired: &Desired, now: Timestamp, credentials: &watch::Sender<Option<Arc<Credentials>>>) {
    let Ok(bundles) = believed(desired) else { return };
    if **own.bundles() == bundles {
        return;
    }
    match own.with_bundles(Arc::new(bundles), now) {
        Ok(fresh) => {
            credentials.send_replace(Some(Arc::new(fresh)));
        }
        // An SVID that nobody believes any more is renewed in the same turn of the loop.
        Err(failure) => tracing::warn!(%failure, "the own SVID does not stand under the new bundle"),
    }
}

fn life(own: &Credentials, issued_at: Timestamp, failures: u32, last_attempt: Option<Timestamp>) -> RotationState {
    let svid = own.svid();
    RotationState { not_before: svid.not_before(), not_after: svid.not_after(), issued_at, failures, last_attempt }
}
