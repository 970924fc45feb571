//! The SPIFFE Workload API for the application, at a unix socket: its own SVID and key, the trust bundles, and JWT-SVIDs.
//!
//! Who may ask is said by the socket's owner, group and directory (SPIFFE Workload Endpoint §5); nothing is asked of the caller but the
//! metadata that a forged web request cannot carry. Every message is a whole, and is sent again when it has changed.

use crate::anchor::Anchor;
use crate::application_svid::{ApplicationSvid, ApplicationSvids, Listener, NoSvid};
use crate::clock;
use crate::rotate::IssueFailure;
use crate::settings::Settings;
use crate::state::Shared;
use crate::workload_authority::Lenient;
use crate::workload_jwt::{self, JwtFailure, Tokens};
use anyhow::{Context, bail};
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, Stream, StreamExt};
use model::Timestamp;
use model::snapshot::TrustBundle;
use socket2::SockRef;
use std::collections::HashMap;
use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, timeout};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};
use wire::client::CallFailure;
use wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use wire::workload::{
    self, JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};

/// Only the owner and the group of the socket may ask.
const SOCKET_MODE: u32 = 0o660;
/// LIMIT: open connections.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may say nothing at its beginning, and then how long it may take for its preface.
const FIRST_WORD_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: calls under way on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 32;
/// LIMIT: open streams of all connections.
const STREAMS_MAX: usize = 256;
/// LIMIT: bytes of a request; the largest holds a token, or as many audiences as a token may have.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// How often a quiet connection is asked whether it lives, and how long the answer may take.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(60);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(20);
/// The longest sleep of a stream, so that a clock that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Listens where the settings say; `None` if the API is not wanted. A socket that nobody serves any longer is replaced.
///
/// # Errors
/// - somebody answers there, something else than a socket stands there, or the operating system refuses.
pub fn bind(settings: &Settings) -> anyhow::Result<Option<UnixListener>> {
    let Some(path) = &settings.workload_api else { return Ok(None) };
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("`{shown}` is there and is not a socket; remove it or name another path")
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!("somebody answers at `{shown}`; end that process or name another path")
        }
        Ok(_) => tracing::info!(path = %shown, "replacing a socket that nobody serves"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at `{shown}`")),
    }
    bind_at(path).with_context(|| format!("listen at `{shown}`")).map(Some)
}

/// The socket gets its mode in a directory that nobody else may enter, so that nobody finds it with more rights than it keeps: a
/// connection that was made before stays.
fn bind_at(path: &Path) -> std::io::Result<UnixListener> {
    let mut private = path.as_os_str().to_owned();
    private.push(".new");
    let private = Path::new(&private);
    let fresh = private.join("s");
    // What a start that was cut off left behind.
    let _left = std::fs::remove_file(&fresh);
    let _left = std::fs::remove_dir(private);
    DirBuilder::new().mode(0o700).create(private)?;
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(SOCKET_MODE))?;
    std::fs::rename(&fresh, path)?;
    std::fs::remove_dir(private)?;
    Ok(listener)
}

/// Serves the API, and keeps the application's SVID fresh, for as long as the process lives.
pub async fn run(listener: UnixListener, shared: Arc<Shared>, anchor: Anchor) {
    let svids = ApplicationSvids::new(Arc::clone(&shared), anchor.clone());
    let api = Api {
        shared,
        anchor,
        svids: Arc::clone(&svids),
        tokens: Tokens::default(),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
    };
    let service = SpiffeWorkloadApiServer::new(Served(Arc::new(api))).max_decoding_message_size(REQUEST_BYTES_MAX);
    let server = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_DEADLINE))
        // Before any service is looked for: what does not exist is not told to a forged request either.
        .layer(InterceptorLayer::new(demand_header))
        .add_service(service);
    tokio::select! {
        ended = server.serve_with_incoming(connections(listener)) => {
            if let Err(error) = ended {
                tracing::error!(%error, "the Workload API ended");
            }
        }
        () = svids.run() => {}
    }
}

/// SPIFFE Workload Endpoint §3: whoever can only make a server send requests elsewhere cannot send this metadata.
fn demand_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(workload::HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == workload::HEADER_VALUE => Ok(request),
        _ => Err(Status::invalid_argument("the metadata `workload.spiffe.io: true` is missing")),
    }
}

/// The connections that say something.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<Io>> {
    let first_word = |(stream, place): (UnixStream, OwnedSemaphorePermit)| async {
        // Looked at and left there; that it is said to be readable alone may be wrong.
        let look = || SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]);
        let heard = timeout(FIRST_WORD_DEADLINE, stream.async_io(Interest::READABLE, look)).await;
        matches!(heard, Ok(Ok(1..))).then(|| {
            let preface = Some(Box::pin(tokio::time::sleep(FIRST_WORD_DEADLINE)));
            Ok(Io { stream: Lenient::new(stream), preface, _place: place })
        })
    };
    accepted(listener).map(first_word).buffer_unordered(CONNECTIONS_MAX).filter_map(future::ready)
}

/// Accepts up to the bound and says who came.
fn accepted(listener: UnixListener) -> impl Stream<Item = (UnixStream, OwnedSemaphorePermit)> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    stream::unfold((listener, places, false), |(listener, places, mut is_full)| async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                if !std::mem::replace(&mut is_full, true) {
                    tracing::warn!(max = CONNECTIONS_MAX, "as many connections to the Workload API as may be; others are closed");
                }
                continue;
            };
            match stream.peer_cred() {
                Ok(peer) => {
                    tracing::info!(uid = peer.uid(), gid = peer.gid(), pid = peer.pid(), "connection to the Workload API")
                }
                Err(error) => tracing::info!(%error, "connection to the Workload API of an unknown process"),
            }
            return Some(((stream, place), (listener, places, false)));
        }
    })
}

/// A connection that holds its place until it ends.
struct Io {
    stream: Lenient<UnixStream>,
    /// The end of a connection that does not begin.
    preface: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.stream.has_begun() {
            self.preface = None;
        }
        if let Some(deadline) = &mut self.preface
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What every call works from.
#[derive(Debug)]
struct Api {
    shared: Arc<Shared>,
    anchor: Anchor,
    svids: Arc<ApplicationSvids>,
    tokens: Tokens,
    streams: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Served(Arc<Api>);

type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(&self, _: Request<X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let listener = self.0.svids.listen();
        Ok(Response::new(follow(&self.0, Some(listener), x509_svids)?))
    }

    async fn fetch_x509_bundles(&self, _: Request<X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(Response::new(follow(&self.0, None, x509_bundles)?))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        let audiences = workload_jwt::audiences(audience).map_err(|failure| jwt_status(&failure))?;
        let own = self.0.identity()?;
        if !spiffe_id.is_empty() && spiffe_id != own.as_str() {
            return Err(Status::permission_denied("that is not the identity of this workload"));
        }
        let svid = self.0.tokens.obtain(&self.0.shared, &self.0.anchor, &own, audiences).await;
        let svid = svid.map_err(|failure| jwt_status(&failure))?;
        let svids = vec![Jwtsvid { spiffe_id: own.to_string(), svid, hint: String::new() }];
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(&self, _: Request<JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(Response::new(follow(&self.0, None, jwt_bundles)?))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("`audience` and `svid` are required"));
        }
        self.0.identity()?;
        let verified = self.0.tokens.verify(&self.0.shared, &svid, &audience).map_err(|failure| jwt_status(&failure))?;
        let claims = workload::claims(verified.claims_json());
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id: verified.id().to_string(), claims }))
    }
}

impl Api {
    /// Whose identity is lent.
    fn identity(&self) -> Result<model::SpiffeId, Status> {
        let own = self.shared.credentials().filter(|_| self.shared.has_identity(clock::now()));
        own.map(|own| own.svid().id().clone()).ok_or_else(|| svid_status(&NoSvid::NoIdentity))
    }

    /// The bundle of the own trust domain, and the others.
    fn bundles(&self, own: &model::SpiffeId) -> Result<(TrustBundle, Vec<TrustBundle>), Status> {
        let (mine, others): (Vec<_>, Vec<_>) =
            self.shared.bundles().into_iter().partition(|bundle| bundle.trust_domain == *own.trust_domain());
        let mine =
            mine.into_iter().next().ok_or_else(|| Status::unavailable("there is no trust bundle of the own trust domain yet"))?;
        Ok((mine, others))
    }
}

/// A message that is whole, and until when it holds if nothing changes.
type Whole<M> = Result<(M, Option<Timestamp>), Status>;

/// One open stream: what it is made from, and what was sent last.
struct Follower<M> {
    api: Arc<Api>,
    listener: Option<Listener>,
    config: watch::Receiver<Option<Arc<crate::state::Active>>>,
    credentials: watch::Receiver<Option<Arc<identity::Credentials>>>,
    sent: Option<M>,
    until: Option<Timestamp>,
    _open: Open,
}

/// Counts a stream for as long as it is open.
struct Open {
    shared: Arc<Shared>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.workload_api_streams.dec();
    }
}

/// A stream of whole messages: the first at once, the next whenever `whole` has changed. It ends with the status of a call that can be
/// answered no longer: what was sent before counts as taken back then.
fn follow<M>(
    api: &Arc<Api>,
    listener: Option<Listener>,
    whole: for<'a> fn(&'a Api, Option<&'a mut Listener>) -> BoxFuture<'a, Whole<M>>,
) -> Result<Messages<M>, Status>
where
    M: Clone + PartialEq + Send + 'static,
{
    let place = Arc::clone(&api.streams).try_acquire_owned();
    let place =
        place.map_err(|_| Status::unavailable(format!("{STREAMS_MAX} streams are open, which is the limit; try again later")))?;
    api.shared.metrics.workload_api_streams.inc();
    let follower = Follower {
        api: Arc::clone(api),
        listener,
        config: api.shared.config.subscribe(),
        credentials: api.shared.credentials.subscribe(),
        sent: None,
        until: None,
        _open: Open { shared: Arc::clone(&api.shared), _place: place },
    };
    let messages = stream::unfold(Some(follower), move |follower| async move {
        let mut follower = follower?;
        loop {
            if follower.sent.is_some() {
                follower.changed().await;
            }
            match whole(&follower.api, follower.listener.as_mut()).await {
                Err(status) => return Some((Err(status), None)),
                Ok((message, until)) => {
                    follower.until = until;
                    if follower.sent.as_ref() != Some(&message) {
                        follower.sent = Some(message.clone());
                        return Some((Ok(message), Some(follower)));
                    }
                }
            }
        }
    });
    Ok(messages.boxed())
}

impl<M> Follower<M> {
    /// Waits until the message may have become another: one of its sources changed, or it ended.
    async fn changed(&mut self) {
        let left = self.until.map_or(LOOK_EVERY, |until| until.since(clock::now()).min(LOOK_EVERY));
        let listened = async {
            match self.listener.as_mut() {
                Some(listener) => listener.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = self.config.changed() => {}
            Ok(()) = self.credentials.changed() => {}
            () = listened => {}
            () = tokio::time::sleep(left.max(Duration::from_millis(20))) => {}
        }
    }
}

/// SPIFFE Workload API §5.2.1: the one identity of this workload.
fn x509_svids<'a>(api: &'a Api, listener: Option<&'a mut Listener>) -> BoxFuture<'a, Whole<X509svidResponse>> {
    Box::pin(async move {
        let listener = listener.ok_or_else(|| Status::internal("nobody listens"))?;
        let lent: Arc<ApplicationSvid> = listener.obtain().await.map_err(|no| svid_status(&no))?;
        let svid = lent.svid();
        let (mine, others) = api.bundles(svid.id())?;
        let message = X509svid {
            spiffe_id: svid.id().to_string(),
            x509_svid: svid.chain().concat(),
            x509_svid_key: lent.key().to_pkcs8_der().to_vec(),
            bundle: mine.authorities.concat(),
            hint: String::new(),
        };
        let federated_bundles = others.iter().map(x509_entry).collect();
        let whole = X509svidResponse { svids: vec![message], crl: Vec::new(), federated_bundles };
        Ok((whole, Some(svid.not_after())))
    })
}

/// SPIFFE Workload API §5.2.2.
fn x509_bundles<'a>(api: &'a Api, _: Option<&'a mut Listener>) -> BoxFuture<'a, Whole<X509BundlesResponse>> {
    Box::pin(async move {
        let (mine, others) = api.bundles(&api.identity()?)?;
        let bundles: HashMap<_, _> = std::iter::once(&mine).chain(&others).map(x509_entry).collect();
        Ok((X509BundlesResponse { crl: Vec::new(), bundles }, None))
    })
}

/// SPIFFE Workload API §6.2.2. A foreign trust domain without such keys is left out.
fn jwt_bundles<'a>(api: &'a Api, _: Option<&'a mut Listener>) -> BoxFuture<'a, Whole<JwtBundlesResponse>> {
    Box::pin(async move {
        let own = api.identity()?;
        if api.shared.active().is_none() {
            return Err(jwt_status(&JwtFailure::NoConfiguration));
        }
        let (mine, mut others) = api.bundles(&own)?;
        others.retain(|bundle| !bundle.jwt_authorities.is_empty());
        let entry = |bundle: &TrustBundle| (domain_id(bundle), workload_jwt::key_set(bundle));
        let bundles: HashMap<_, _> = std::iter::once(&mine).chain(&others).map(entry).collect();
        Ok((JwtBundlesResponse { bundles }, None))
    })
}

fn x509_entry(bundle: &TrustBundle) -> (String, Vec<u8>) {
    (domain_id(bundle), bundle.authorities.concat())
}

/// The SPIFFE ID of a trust domain.
fn domain_id(bundle: &TrustBundle) -> String {
    format!("spiffe://{}", bundle.trust_domain)
}

/// SPIFFE Workload Endpoint §6: `PermissionDenied` without an identity, `Unavailable` for what may be over soon.
fn svid_status(no: &NoSvid) -> Status {
    match no {
        NoSvid::NoIdentity => Status::permission_denied(no.to_string()),
        NoSvid::Failed(failure) => match failure.as_ref() {
            IssueFailure::Call(CallFailure::Refused { code: Code::PermissionDenied, .. }) => {
                Status::permission_denied(no.to_string())
            }
            _ => Status::unavailable(no.to_string()),
        },
        NoSvid::Timeout => Status::unavailable(no.to_string()),
    }
}

fn jwt_status(failure: &JwtFailure) -> Status {
    let text = failure.to_string();
    match failure {
        JwtFailure::Audience { .. } | JwtFailure::Token(_) => Status::invalid_argument(text),
        JwtFailure::Call(CallFailure::Refused { code: Code::PermissionDenied, .. }) => Status::permission_denied(text),
        JwtFailure::Call(CallFailure::Refused { code: Code::InvalidArgument, .. }) => Status::invalid_argument(text),
        JwtFailure::Call(_)
        | JwtFailure::Link(_)
        | JwtFailure::Issued(_)
        | JwtFailure::Foreign { .. }
        | JwtFailure::NoConfiguration
        | JwtFailure::Keys(_)
        | JwtFailure::Busy => Status::unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as Stream;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn nobody_reaches_the_socket_before_it_has_its_mode() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, fresh) = (dir.path().join("api.sock"), dir.path().join("api.sock.new"));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    if Stream::connect(&fresh).is_ok() {
                        return false;
                    }
                    let mode = std::fs::metadata(&fresh).map_or(0, |found| found.permissions().mode());
                    if mode & 0o077 != 0 {
                        return false;
                    }
                }
                true
            });
            for _ in 0..500 {
                drop(bind_at(&path).expect("bound"));
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(looking.join().expect("looked"), "it could be reached under another name");
        });
        let found = std::fs::metadata(&path).expect("there");
        assert!(found.file_type().is_socket() && found.permissions().mode() & 0o777 == SOCKET_MODE);
        assert!(!fresh.exists(), "nothing is left of the way there");
        // Nor does what a start that was cut off left behind stand in the way.
        std::fs::create_dir(&fresh).expect("directory");
        drop(std::os::unix::net::UnixListener::bind(fresh.join("s")).expect("bound"));
        bind_at(&path).expect("bound");
    }
}
