//! Fetches the issuers' key sets: what and when is `token::jwks`'s rule, here are the sockets.

use crate::clock;
use crate::introspect;
use crate::issuers;
use crate::outside::{self, FetchFailure};
use crate::state::{Active, KeyRequest, Shared};
use crate::telemetry::metrics::IssuerLabels;
use crate::upstream;
use bytes::Bytes;
use identity::handshake::Alpn;
use model::snapshot::{Endpoint, KeySource, TokenIssuer};
use model::{Limit, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use token::jwks::{self, FetchState, FetchStep};
use token::{KeySet, KeySets};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// The longest sleep, so that a clock that was set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// Requests that may wait for one issuer's fetch.
const WAITING_MAX: usize = 1024;

/// One issuer under watch.
struct Watched {
    issuer: TokenIssuer,
    state: FetchState,
    waiting: Vec<oneshot::Sender<()>>,
    fetching: bool,
    told: bool,
    /// What the keys in use were read from, where the configuration itself holds them.
    told_by: Option<Vec<Vec<u8>>>,
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
        match step(each, active, now) {
            FetchStep::Fetch => {
                each.fetching = true;
                each.state.attempted_at = Some(now);
                each.state.demanded_at = each.state.wanted_at.map(|_| now).or(each.state.demanded_at);
                let (name, issuer) = (name.clone(), each.issuer.clone());
                each.told_by.clone_from(&told_by(&each.issuer, active));
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

/// What is to be done for an issuer. Keys that the configuration itself holds are read when it says others, and not again.
fn step(each: &Watched, active: &Active, now: Timestamp) -> FetchStep {
    match each.issuer.keys {
        KeySource::Inline(_) | KeySource::JwtSvid(_) if each.told_by == told_by(&each.issuer, active) => {
            FetchStep::WaitUntil(now.plus(SLEEP_MAX))
        }
        KeySource::Inline(_) | KeySource::JwtSvid(_) => FetchStep::Fetch,
        _ => jwks::next(&each.state, &each.issuer.keys, &active.snapshot.limits, now),
    }
}

/// What the configuration says of an issuer's keys; `None` where they are fetched.
fn told_by(issuer: &TokenIssuer, active: &Active) -> Option<Vec<Vec<u8>>> {
    match &issuer.keys {
        KeySource::Inline(_) => Some(Vec::new()),
        KeySource::JwtSvid(domain) => {
            let bundle = active.snapshot.bundles.iter().find(|bundle| bundle.trust_domain == *domain);
            Some(bundle.map(|bundle| bundle.jwt_authorities.clone()).unwrap_or_default())
        }
        KeySource::Discovery | KeySource::JwksUri(_) | KeySource::Workload { .. } | KeySource::File(_) => None,
    }
}

/// Takes over the issuers of a new configuration; an issuer that changed starts anew.
fn follow(shared: &Shared, watched: &mut BTreeMap<String, Watched>) {
    let Some(active) = shared.active() else { return };
    let issuers = &active.snapshot.issuers;
    watched.retain(|_, each| issuers.contains(&each.issuer));
    shared.issuers.retain(issuers);
    for issuer in issuers {
        watched.entry(issuer.name.clone()).or_insert_with(|| Watched {
            issuer: issuer.clone(),
            state: FetchState::default(),
            waiting: Vec::new(),
            fetching: false,
            told: false,
            told_by: None,
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
            // The same keys again end nothing that was verified by them.
            let same = shared.keys.borrow().get(name).filter(|old| old.is_same_document(&keys)).cloned();
            if let Some(same) = same {
                same.seen_again(now);
            } else {
                let sets: KeySets = shared.keys.borrow().with(name, Arc::new(keys));
                shared.replace_keys(sets);
            }
            issuers::fetched(shared, name, None, next_at(each, shared, now));
        }
        Err(failure) => {
            each.state.failures = each.state.failures.saturating_add(1);
            shared.metrics.keys_fetch_failures.get_or_create(&labels).inc();
            if each.told_by.is_some() {
                // What the configuration holds now is not what it held.
                let sets = shared.keys.borrow().retain(|other| other != name);
                shared.replace_keys(sets);
            }
            issuers::fetched(shared, name, Some(failure.to_string()), next_at(each, shared, clock::now()));
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

/// When the keys are fetched again, for people; `None` where they are not.
fn next_at(each: &Watched, shared: &Shared, now: Timestamp) -> Option<Timestamp> {
    let active = shared.active().filter(|_| each.told_by.is_none())?;
    match step(each, &active, now) {
        FetchStep::Fetch => Some(now),
        FetchStep::WaitUntil(at) => Some(at),
    }
}

/// Finds and reads an issuer's key set.
async fn key_set(issuer: &TokenIssuer, active: &Active, shared: &Shared) -> Result<KeySet, FetchFailure> {
    let limits = &active.snapshot.limits;
    let document = match &issuer.keys {
        KeySource::JwksUri(uri) => outside::get(uri, limits).await?,
        KeySource::Workload { uri, endpoint } => {
            outside::within(Limit::JwksFetchMs, uri, limits, get_within_mesh(uri, endpoint, active, shared)).await?
        }
        KeySource::Discovery => {
            let metadata = introspect::metadata(issuer, limits).await?;
            outside::get(metadata.jwks_uri()?, limits).await?
        }
        KeySource::File(file) => outside::read(file, limits.size(Limit::JwksBytes)).await?.into(),
        KeySource::Inline(jwks) => Bytes::copy_from_slice(jwks.as_bytes()),
        KeySource::JwtSvid(domain) => {
            let bundles = &active.snapshot.bundles;
            let bundle = bundles.iter().find(|bundle| bundle.trust_domain == *domain);
            let authorities = bundle.map(|bundle| bundle.jwt_authorities.as_slice()).unwrap_or_default();
            return Ok(KeySet::of_bundle(authorities, issuer, clock::now(), limits)?);
        }
    };
    Ok(KeySet::parse(&document, issuer, clock::now(), limits)?)
}

/// One GET by mutual TLS, to that identity only. The issuer's own sidecar asks the application beside it.
async fn get_within_mesh(url: &str, issuer: &Endpoint, active: &Active, shared: &Shared) -> Result<Bytes, FetchFailure> {
    let failed = |error: &dyn std::fmt::Display| FetchFailure::Exchange { url: url.to_owned(), detail: error.to_string() };
    let limits = &active.snapshot.limits;
    if let Some(own) = active.inbound_at(issuer.address) {
        let stream = TcpStream::connect(own.application).await.map_err(|error| failed(&error))?;
        return outside::get_over(stream, url, limits).await;
    }
    let (stream, _) = upstream::connect_peer(issuer, &[Alpn::Http1], active, shared).await.map_err(|failure| failed(&failure))?;
    outside::get_over(stream, url, limits).await
}
