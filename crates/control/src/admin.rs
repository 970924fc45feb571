//! The admin port: metrics, readiness, liveness.

use crate::bundle_endpoint::Served;
use crate::ca::Ca;
use crate::clock;
use crate::desired::Board;
use crate::federation::Federation;
use crate::records::Records;
use crate::rollout::Rollout;
use crate::troubles::troubles;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::Credentials;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

const CONNECTIONS_MAX: usize = 64;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// What the admin port tells of.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) board: Arc<Board>,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) records: Arc<Records>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub(crate) federation: Arc<Federation>,
    pub(crate) bundle_endpoint: Arc<Served>,
}

/// Serves for as long as the process lives.
pub(crate) async fn run(listener: TcpListener, seen: Seen) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let seen = seen.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let response = respond(&request, &seen);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
            // A broken admin connection concerns only whoever opened it.
            let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn respond(request: &Request<Incoming>, seen: &Seen) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, metrics(seen)),
        "/live" => text(StatusCode::OK, "live\n".to_owned()),
        "/ready" => ready(seen),
        _ => text(StatusCode::NOT_FOUND, "/metrics /ready /live\n".to_owned()),
    }
}

/// Not ready in the last fifth of the own SVID's life: it should have been renewed long before.
fn ready(seen: &Seen) -> Response<Full<Bytes>> {
    let now = clock::now();
    let Some(svid) = seen.credentials.borrow().clone().filter(|_| now < seen.ca.authorities().active.not_after()) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the authority has ended; `rondel ca rotate` makes another\n".to_owned());
    };
    let (begin, end) = (svid.svid().not_before(), svid.svid().not_after());
    // Its own `notBefore` is earlier than its life, which may be shorter now than when it was issued.
    let life = seen.board.current().mesh.settings.svid_lifetime.min(end.since(begin));
    if now >= begin && end.since(now) > life / 5 {
        text(StatusCode::OK, "ready\n".to_owned())
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("the own SVID ends at {end} and was not renewed\n"))
    }
}

/// Few numbers, read at the moment of the scrape.
fn metrics(seen: &Seen) -> String {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let publish_ms = seen.rollout.last().map_or(0, |(_, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let authorities = seen.ca.authorities();
    let mut registry = Registry::with_prefix("rondel_control");
    for (name, help, value) in [
        ("revision", "Revision in force", seen.board.current().revision.0),
        (
            "troubles",
            "What an operator must look at; `rondel status` tells each",
            (troubles(&seen.ca, &seen.federation, &seen.bundle_endpoint, clock::now()).len() + seen.rollout.troubles().len())
                as u64,
        ),
        (
            "config_errors",
            "Errors of the configuration on disk; the last good one is in force",
            seen.board.problems().len() as u64,
        ),
        ("proxies_connected", "Sidecars whose configuration stream is up", seen.rollout.connections() as u64),
        ("publish_to_last_ack_ms", "From the last publication to the last connected sidecar's ack", publish_ms),
        ("decision_records", "Decision records that are kept", seen.records.len() as u64),
        (
            "authority_expires_at_seconds",
            "When the authority that signs ends, seconds since the epoch",
            authorities.active.not_after().seconds(),
        ),
        (
            "authorities",
            "Authorities that are believed; more than one during a rotation",
            authorities.stored.authorities.len() as u64,
        ),
        ("svids_revoked", "SVIDs that are refused although they have not ended", seen.ca.revoked(clock::now()).len() as u64),
        (
            "svid_expires_at_seconds",
            "When the own SVID ends, seconds since the epoch",
            seen.credentials.borrow().as_ref().map_or(0, |own| own.svid().not_after().seconds()),
        ),
    ] {
        let gauge: Gauge = Gauge::default();
        gauge.set(number(value));
        registry.register(name, help, gauge);
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ok = encode(&mut text, &registry);
    text
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
