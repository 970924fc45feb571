//! Fetches the issuers' key sets: what and when is `token::jwks`'s rule, here are the sockets.

use crate::clock;
use crate::state::{Active, KeyRequest, Shared};
use crate::telemetry::metrics::IssuerLabels;
use crate::upstream;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use identity::handshake::Alpn;
use model::snapshot::{Endpoint, KeySource, TokenIssuer};
use model::{Limit, Limits, Timestamp};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use token::jwks::{self, FetchState, FetchStep};
use token::{KeySet, KeySetError, KeySets};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// The longest sleep, so that a clock that was set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// Requests that may wait for one issuer's fetch.
const WAITING_MAX: usize = 1024;

/// Why a key set could not be had.
#[derive(Debug, thiserror::Error)]
enum FetchFailure {
    #[error("{0}")]
    Document(#[from] KeySetError),
    #[error("`{url}` is not an address: {detail}")]
    Address { url: String, detail: String },
    #[error("`{host}` has no address that may be fetched from")]
    NoAddress { host: String },
    #[error("{url}: {detail}")]
    Exchange { url: String, detail: String },
    #[error("{url}: status {status}, expected 200; redirects are not followed")]
    Status { url: String, status: StatusCode },
    #[error("{url}: no whole answer within limit `jwksFetchMs` ({limit} ms)")]
    Timeout { url: String, limit: u64 },
}

/// One issuer under watch.
struct Watched {
    issuer: TokenIssuer,
    state: FetchState,
    waiting: Vec<oneshot::Sender<()>>,
    fetching: bool,
    told: bool,
}

/// Keeps every issuer's keys fresh for as long as the process lives.
pub async fn run(shared: Arc<Shared>, mut requests: mpsc::Receiver<KeyRequest>) {
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    let mut fetches = JoinSet::new();
    let mut configs = shared.config.subscribe();
    // One may have been applied before.
    configs.mark_changed();
    loop {
        // Without a configuration there is no issuer to watch.
        let wake_at = shared.active().and_then(|active| start_due(&shared, &active, &mut watched, &mut fetches));
        let sleep = wake_at.map_or(SLEEP_MAX, |at| at.since(clock::now()).clamp(Duration::from_millis(10), SLEEP_MAX));
        tokio::select! {
            // The first first: a request may ask for the keys of an issuer that came with the very configuration it is decided by.
            biased;
            changed = configs.changed() => {
                if changed.is_err() {
                    return;
                }
                follow(&shared, &mut watched);
            }
            Some(request) = requests.recv() => want(&mut watched, request),
            Some(Ok((name, outcome))) = fetches.join_next(), if !fetches.is_empty() => note(&shared, &mut watched, &name, outcome),
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Starts every fetch that is due and returns when the next one will be. Whoever waits for one that is not due is let go.
fn start_due(
    shared: &Arc<Shared>,
    active: &Arc<Active>,
    watched: &mut BTreeMap<String, Watched>,
    fetches: &mut JoinSet<(String, Result<KeySet, FetchFailure>)>,
) -> Option<Timestamp> {
    let now = clock::now();
    let mut wake_at: Option<Timestamp> = None;
    for (name, each) in watched.iter_mut().filter(|(_, each)| !each.fetching) {
        match jwks::next(&each.state, &active.snapshot.limits, now) {
            FetchStep::Fetch => {
                each.fetching = true;
                each.state.attempted_at = Some(now);
                let (name, issuer) = (name.clone(), each.issuer.clone());
                let (active, shared) = (Arc::clone(active), Arc::clone(shared));
                fetches.spawn(async move {
                    let outcome = key_set(&issuer, &active, &shared).await;
                    (name, outcome)
                });
            }
            FetchStep::WaitUntil(at) => {
                each.waiting.clear();
                wake_at = Some(wake_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
    }
    wake_at
}

/// Takes over the issuers of a new configuration; an issuer that changed starts anew.
fn follow(shared: &Shared, watched: &mut BTreeMap<String, Watched>) {
    let Some(active) = shared.active() else { return };
    let issuers = &active.snapshot.issuers;
    watched.retain(|_, each| issuers.contains(&each.issuer));
    for issuer in issuers {
        watched.entry(issuer.name.clone()).or_insert_with(|| Watched {
            issuer: issuer.clone(),
            state: FetchState::default(),
            waiting: Vec::new(),
            fetching: false,
            told: false,
        });
    }
    let keys = shared.keys.borrow().clone();
    shared.replace_keys(keys.retain(|name| watched.get(name).is_some_and(|each| each.state.fetched_at.is_some())));
}

fn want(watched: &mut BTreeMap<String, Watched>, request: KeyRequest) {
    let Some(each) = watched.get_mut(&request.issuer) else { return };
    each.state.wanted_at = Some(clock::now());
    if each.waiting.len() < WAITING_MAX {
        each.waiting.push(request.done);
    }
}

/// Notes the end of a fetch, puts new keys in force, and lets the waiting requests look again.
fn note(shared: &Shared, watched: &mut BTreeMap<String, Watched>, name: &str, outcome: Result<KeySet, FetchFailure>) {
    let Some(each) = watched.get_mut(name) else { return };
    let labels = IssuerLabels { issuer: name.to_owned() };
    each.fetching = false;
    each.state.wanted_at = None;
    match outcome {
        Ok(keys) => {
            let now = clock::now();
            each.state.failures = 0;
            each.state.fetched_at = Some(now);
            let seconds = i64::try_from(now.seconds()).unwrap_or(i64::MAX);
            shared.metrics.keys_fetched_at_seconds.get_or_create(&labels).set(seconds);
            if std::mem::take(&mut each.told) {
                tracing::info!(issuer = name, "the issuer's keys could be fetched again");
            }
            let sets: KeySets = shared.keys.borrow().with(name, Arc::new(keys));
            shared.replace_keys(sets);
        }
        Err(failure) => {
            each.state.failures = each.state.failures.saturating_add(1);
            shared.metrics.keys_fetch_failures.get_or_create(&labels).inc();
            if !std::mem::replace(&mut each.told, true) {
                tracing::warn!(issuer = name, %failure, "the issuer's keys could not be fetched; known ones stay in use");
            }
        }
    }
    for waiting in each.waiting.drain(..) {
        // The request may have given up.
        let _gone = waiting.send(());
    }
}

/// Finds and reads an issuer's key set.
async fn key_set(issuer: &TokenIssuer, active: &Active, shared: &Shared) -> Result<KeySet, FetchFailure> {
    let limits = &active.snapshot.limits;
    let document = match &issuer.keys {
        KeySource::JwksUri(uri) => get(uri, limits).await?,
        KeySource::Workload { uri, endpoint } => {
            within_deadline(uri, limits, get_within_mesh(uri, endpoint, active, shared)).await?
        }
        KeySource::Discovery => {
            let document = get(&jwks::discovery_url(issuer), limits).await?;
            get(&jwks::parse_discovery(&document, issuer, limits)?, limits).await?
        }
    };
    Ok(KeySet::parse(&document, issuer, clock::now(), limits)?)
}

/// One GET by mutual TLS, to that identity only. The issuer's own sidecar asks the application beside it.
async fn get_within_mesh(url: &str, issuer: &Endpoint, active: &Active, shared: &Shared) -> Result<Bytes, FetchFailure> {
    let failed = |error: &dyn std::fmt::Display| FetchFailure::Exchange { url: url.to_owned(), detail: error.to_string() };
    let uri: Uri = url.parse().map_err(|error| failed(&error))?;
    let limits = &active.snapshot.limits;
    if let Some(own) = active.inbound_at(issuer.address) {
        let stream = TcpStream::connect(own.application).await.map_err(|error| failed(&error))?;
        return exchange(stream, &uri, url, limits).await;
    }
    let (stream, _) = upstream::connect_peer(issuer, &[Alpn::Http1], active, shared).await.map_err(|failure| failed(&failure))?;
    exchange(stream, &uri, url, limits).await
}

/// One GET, bounded in time and size, without redirects, to an address outside the mesh that may be fetched from.
async fn get(url: &str, limits: &Limits) -> Result<Bytes, FetchFailure> {
    jwks::fetchable(url)?;
    within_deadline(url, limits, get_unbounded(url, limits)).await
}

async fn within_deadline(
    url: &str,
    limits: &Limits,
    fetch: impl Future<Output = Result<Bytes, FetchFailure>>,
) -> Result<Bytes, FetchFailure> {
    match tokio::time::timeout(limits.duration(Limit::JwksFetchMs), fetch).await {
        Ok(outcome) => outcome,
        Err(_) => Err(FetchFailure::Timeout { url: url.to_owned(), limit: limits.of(Limit::JwksFetchMs) }),
    }
}

async fn get_unbounded(url: &str, limits: &Limits) -> Result<Bytes, FetchFailure> {
    let bad_address = |detail: &str| FetchFailure::Address { url: url.to_owned(), detail: detail.to_owned() };
    let uri: Uri = url.parse().map_err(|_| bad_address("it does not parse"))?;
    let failed = |error: &dyn std::fmt::Display| FetchFailure::Exchange { url: url.to_owned(), detail: error.to_string() };
    let host = uri.host().ok_or_else(|| bad_address("it has no host"))?.trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|error| failed(&error))?;
    let address = found.into_iter().find(|address| may_fetch_from(address, is_tls));
    let address = address.ok_or_else(|| FetchFailure::NoAddress { host: host.clone() })?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    if is_tls {
        let deadline = limits.duration(Limit::JwksFetchMs);
        let stream = identity::web::connect(stream, &host, deadline).await.map_err(|error| failed(&error))?;
        exchange(stream, &uri, url, limits).await
    } else {
        exchange(stream, &uri, url, limits).await
    }
}

/// A name may lead anywhere: what it resolves to is held to the same rule as a literal address. Plaintext stays on loopback.
fn may_fetch_from(address: &SocketAddr, is_tls: bool) -> bool {
    let ip = address.ip().to_canonical();
    jwks::fetchable_address(ip) && (is_tls || ip.is_loopback())
}

async fn exchange<S>(stream: S, uri: &Uri, url: &str, limits: &Limits) -> Result<Bytes, FetchFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn std::fmt::Display| FetchFailure::Exchange { url: url.to_owned(), detail: error.to_string() };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let driver = AbortOnDrop(tokio::spawn(async move {
        let _ended = connection.await;
    }));
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let request = Request::get(path).header("host", authority).header("accept", "application/json").body(Empty::new());
    let request = request.map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::OK {
        return Err(FetchFailure::Status { url: url.to_owned(), status: response.status() });
    }
    let body = Limited::new(response.into_body(), limits.size(Limit::JwksBytes)).collect().await;
    drop(driver);
    Ok(body.map_err(|error| failed(&error))?.to_bytes())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_the_fetch_to_a_metadata_address() {
        for (address, is_tls, expected) in [
            ("127.0.0.1:80", false, true),
            ("[::1]:80", false, true),
            ("10.0.0.1:80", false, false),
            ("10.0.0.1:443", true, true),
            ("169.254.169.254:443", true, false),
            ("[::ffff:169.254.169.254]:443", true, false),
            ("[fe80::1]:443", true, false),
            ("0.0.0.0:443", true, false),
            ("[::]:443", true, false),
            ("224.0.0.1:443", true, false),
        ] {
            assert_eq!(may_fetch_from(&address.parse().expect(address), is_tls), expected, "{address}");
        }
    }
}
