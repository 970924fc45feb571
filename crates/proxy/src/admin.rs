//! The admin port: metrics, readiness, liveness, and the configuration in force.

use crate::issuers;
use crate::listener::{self, BindFailure};
use crate::state::Shared;
use crate::telemetry::recent::Found;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use model::DecisionId;
use model::snapshot::Snapshot;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Open connections of the admin port.
const CONNECTIONS_MAX: usize = 64;
/// How long one may stay idle or slow.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Binds the admin port.
///
/// # Errors
/// - [`BindFailure`] if the address cannot be bound.
pub fn bind(shared: &Shared) -> Result<TcpListener, BindFailure> {
    let address = shared.settings.admin;
    listener::listen(address).map_err(|error| BindFailure { address, error })
}

/// Serves the admin port for as long as the process lives.
pub async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, remote)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(respond(&request, &shared, remote.ip().to_canonical().is_loopback()).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
            // A broken admin connection concerns only whoever opened it.
            let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(request: &Request<Incoming>, shared: &Shared, is_local: bool) -> Response<Full<Bytes>> {
    if request.method() == Method::POST && request.uri().path() == "/quit" {
        if !is_local {
            return text(StatusCode::FORBIDDEN, "text/plain", "only from this machine\n".to_owned());
        }
        shared.quit.notify_one();
        return text(StatusCode::OK, "text/plain", "draining\n".to_owned());
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET, and POST /quit\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", shared.metrics.text()),
        "/live" => text(StatusCode::OK, "text/plain", "live\n".to_owned()),
        "/ready" => ready(shared),
        "/issuers" => {
            let issuers: Vec<serde_json::Value> = issuers::report(shared).iter().map(issuers::to_json).collect();
            text(StatusCode::OK, "application/json", format!("{:#}\n", serde_json::json!({ "issuers": issuers })))
        }
        "/config" => {
            let body = shared.active().map_or(serde_json::Value::Null, |active| describe(&active.snapshot));
            text(StatusCode::OK, "application/json", format!("{body:#}\n"))
        }
        path if path == "/decisions" || path.starts_with("/decisions/") => {
            if !is_local {
                return text(StatusCode::FORBIDDEN, "text/plain", "only from this machine\n".to_owned());
            }
            decisions(path.trim_start_matches("/decisions").trim_start_matches('/'), shared).await
        }
        _ => {
            let paths = "/metrics /ready /live /config /issuers /decisions /decisions/ID, and POST /quit\n";
            text(StatusCode::NOT_FOUND, "text/plain", paths.to_owned())
        }
    }
}

/// The latest decisions, or one of them with its explanation. `id`: empty for all.
async fn decisions(id: &str, shared: &Shared) -> Response<Full<Bytes>> {
    let json = |record: serde_json::Result<String>| match record {
        Ok(record) => text(StatusCode::OK, "application/json", format!("{record}\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    };
    if id.is_empty() {
        return json(serde_json::to_string_pretty(&shared.recent.list()));
    }
    match DecisionId::parse(id).ok().and_then(|id| shared.recent.find(id)) {
        Some(Found::Explained(record)) => json(serde_json::to_string_pretty(&*record)),
        Some(Found::Asked(told)) => match tokio::task::spawn_blocking(move || told.explained()).await {
            Ok(record) => json(serde_json::to_string_pretty(&record)),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "it could not be explained\n".to_owned()),
        },
        None => {
            let known = "not among the latest decisions of this sidecar; `rondel authz explain` asks the control plane\n";
            text(StatusCode::NOT_FOUND, "text/plain", known.to_owned())
        }
    }
}

/// 200 with what is degraded, or 503 with what is missing.
fn ready(shared: &Shared) -> Response<Full<Bytes>> {
    let missing = shared.missing();
    let body = serde_json::json!({ "ready": missing.is_empty(), "missing": missing, "degraded": shared.degraded() });
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, "application/json", format!("{body}\n"))
}

/// The configuration in force, without certificates' bytes.
fn describe(snapshot: &Snapshot) -> serde_json::Value {
    let inbound = snapshot.inbound.iter().map(|inbound| {
        serde_json::json!({
            "listen": inbound.listen, "application": inbound.application, "protocol": inbound.protocol.as_str(),
        })
    });
    let upstreams = snapshot.upstreams.iter().map(|upstream| {
        let endpoints = upstream.endpoints.iter();
        let endpoints =
            endpoints.map(|endpoint| serde_json::json!({ "address": endpoint.address, "identity": endpoint.identity }));
        serde_json::json!({
            "service": upstream.service, "listen": upstream.listen, "protocol": upstream.protocol.as_str(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    let policies = snapshot.policies.iter().map(|policy| {
        serde_json::json!({ "name": policy.name, "position": format!("{}:{}", policy.file, policy.line), "text": policy.text })
    });
    let issuers = snapshot
        .issuers
        .iter()
        .map(|issuer| serde_json::json!({ "name": issuer.name, "issuer": issuer.issuer, "audiences": issuer.audiences }));
    let limits = model::Limit::ALL.iter().map(|limit| (limit.name().to_owned(), snapshot.limits.of(*limit).into()));
    serde_json::json!({
        "revision": snapshot.revision,
        "workload": snapshot.workload,
        "identity": snapshot.identity,
        "trust_domains": snapshot.bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect::<Vec<_>>(),
        "inbound": inbound.collect::<Vec<_>>(),
        "upstreams": upstreams.collect::<Vec<_>>(),
        "policies": policies.collect::<Vec<_>>(),
        "issuers": issuers.collect::<Vec<_>>(),
        "country_database": snapshot.country_database,
        "limits": limits.collect::<serde_json::Map<_, serde_json::Value>>(),
    })
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
