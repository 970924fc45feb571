//! Where other trust domains fetch this mesh's bundle (SPIFFE Federation §5, profile `https_web`).
//!
//! It follows the configuration while the process lives, and what is wrong with it is told by `rondel ca status`: a bundle that
//! nobody can fetch ends in refused calls long after.

use crate::desired::Board;
use config::BundleEndpoint;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::bundle_document::{self, BundleDocument};
use identity::web::Site;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at once; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// From accept to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// From the handshake to the last byte of the answer.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// How often the files are read: whoever renews them tells nobody.
const REREAD_EVERY: Duration = Duration::from_secs(10);
/// LIMIT: bytes of each file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is known of the endpoint.
#[derive(Debug, Default)]
pub(crate) struct Served {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// What stands in the way; `None` where all is well.
    pub(crate) failure: Option<String>,
    /// Documents that were given since the process started.
    pub(crate) count: u64,
}

impl Served {
    /// What is known now.
    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    fn note(&self, failure: Option<String>) {
        let mut state = self.state.lock();
        if let Some(failure) = failure.as_ref().filter(|failure| state.failure.as_ref() != Some(*failure)) {
            tracing::error!(failure, "the bundle endpoint does not serve as it should");
        }
        state.failure = failure;
    }
}

/// Serves as the configuration says, for as long as the process lives.
pub(crate) async fn run(served: Arc<Served>, board: Arc<Board>) {
    let mut desired = board.subscribe();
    loop {
        let wanted = desired.borrow_and_update().mesh.settings.bundle_endpoint.clone();
        let is_other = desired.wait_for(|desired| desired.mesh.settings.bundle_endpoint != wanted);
        tokio::select! {
            ended = async { is_other.await.map(|_| ()) } => if ended.is_err() { return },
            () = serve(wanted.as_ref(), &served, &board) => {}
        }
        served.note(None);
    }
}

async fn serve(wanted: Option<&BundleEndpoint>, served: &Arc<Served>, board: &Arc<Board>) {
    let Some(wanted) = wanted else { return std::future::pending().await };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (mut listener, mut site) = (None, None);
    loop {
        let failure = prepare(wanted, &mut listener, &mut site).await.err();
        served.note(failure);
        let (Some(listener), Some(site)) = (&listener, &site) else {
            tokio::time::sleep(REREAD_EVERY).await;
            continue;
        };
        // Until it is time to read the files again.
        let _time = tokio::time::timeout(REREAD_EVERY, accept(listener, site, &places, served, board)).await;
    }
}

/// Listens, and reads the files. What was good before stays: a certificate may be a moment newer than its key.
async fn prepare(wanted: &BundleEndpoint, listener: &mut Option<TcpListener>, site: &mut Option<Site>) -> Result<(), String> {
    let (certificate, key) = (wanted.certificate.clone(), wanted.key.clone());
    let read = tokio::task::spawn_blocking(move || read(&certificate, &key)).await.map_err(|error| error.to_string())?;
    let outcome = read.map(|fresh| *site = Some(fresh));
    if listener.is_none() {
        let bound = TcpListener::bind(wanted.listen).await;
        *listener = Some(bound.map_err(|error| format!("cannot listen at {}: {error}", wanted.listen))?);
    }
    outcome
}

fn read(certificate: &Path, key: &Path) -> Result<Site, String> {
    let bytes = |path: &Path| {
        let failed = |why: String| format!("`{}`: {why}", path.display());
        let file = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        if file.len() > FILE_BYTES_MAX {
            return Err(failed(format!("it has {} bytes, more than {FILE_BYTES_MAX}", file.len())));
        }
        std::fs::read(path).map_err(|error| failed(error.to_string()))
    };
    let (chain, secret) = (bytes(certificate)?, zeroize::Zeroizing::new(bytes(key)?));
    let (one, other) = (certificate.display(), key.display());
    Site::from_pem(&chain, &secret).map_err(|error| format!("`{one}` and `{other}`: {error}"))
}

async fn accept(listener: &TcpListener, site: &Site, places: &Arc<Semaphore>, served: &Arc<Served>, board: &Arc<Board>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { continue };
        let (site, served, board) = (site.clone(), Arc::clone(served), Arc::clone(board));
        tokio::spawn(async move {
            let _place = place;
            // A caller who is slow, or speaks something else, concerns only itself.
            let _ended =
                tokio::time::timeout(HANDSHAKE_DEADLINE + EXCHANGE_DEADLINE, exchange(stream, &site, &served, &board)).await;
        });
    }
}

/// One question on a connection: whoever asks comes back minutes later.
async fn exchange(stream: TcpStream, site: &Site, served: &Arc<Served>, board: &Arc<Board>) {
    let Ok(stream) = site.accept(stream, HANDSHAKE_DEADLINE).await else { return };
    let service = service_fn(|request| {
        let response = respond(&request, served, board);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(EXCHANGE_DEADLINE).keep_alive(false);
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn respond(request: &Request<Incoming>, served: &Served, board: &Board) -> Response<Full<Bytes>> {
    let answer = |status, kind: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
        response
    };
    if request.uri().path() != "/" {
        return answer(StatusCode::NOT_FOUND, "text/plain", "the bundle is at /\n".into());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
        refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    served.state.lock().count += 1;
    answer(StatusCode::OK, "application/json", document(board))
}

/// The mesh's own bundle as it is believed now. Its sequence is the revision since which it is, which never goes back.
fn document(board: &Board) -> String {
    let desired = board.current();
    let settings = &desired.mesh.settings;
    let own = desired.trust.bundles.iter().find(|bundle| bundle.trust_domain == settings.trust_domain);
    bundle_document::write(&BundleDocument {
        x509_authorities: own.map(|own| own.authorities.clone()).unwrap_or_default(),
        jwt_authorities: own.map(|own| own.jwt_authorities.clone()).unwrap_or_default(),
        sequence: Some(desired.trust_revision.0),
        refresh_hint: settings.bundle_endpoint.as_ref().map(|endpoint| endpoint.refresh_hint),
        ignored: 0,
    })
}
