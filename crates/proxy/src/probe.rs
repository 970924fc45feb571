//! Health probes of the application, answered for whoever has no SVID to ask with: the kubelet.
//!
//! Only what was declared at the start is asked, exactly as declared, so that no policy is needed and none is got around.

use crate::state::Shared;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// For one probe, from its first byte to its answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: probes under way.
const PROBES_MAX: usize = 32;
/// Pause after an accept error such as a full descriptor table.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One declared probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    port: u16,
    /// The path of an HTTP probe; `None` asks only whether the port takes connections.
    path: Option<String>,
}

/// A probe was not written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a probe: write `http://:8080/healthz` or `tcp://:8080`")]
pub struct ProbeError(String);

impl Probe {
    /// Reads `http://:PORT/PATH` or `tcp://:PORT`.
    ///
    /// # Errors
    /// - [`ProbeError`] with the two forms.
    pub fn parse(text: &str) -> Result<Self, ProbeError> {
        let wrong = || ProbeError(model::ids::printable(text));
        let port = |digits: &str| digits.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
        if let Some(digits) = text.strip_prefix("tcp://:") {
            return Ok(Self { port: port(digits)?, path: None });
        }
        let rest = text.strip_prefix("http://:").ok_or_else(wrong)?;
        let (digits, path) = rest.split_at(rest.find('/').ok_or_else(wrong)?);
        path.parse::<http::uri::PathAndQuery>().map_err(|_| wrong())?;
        Ok(Self { port: port(digits)?, path: Some(path.to_owned()) })
    }

    /// Where it is answered.
    fn address(&self) -> String {
        format!("/probe/{}{}", self.port, self.path.as_deref().unwrap_or_default())
    }
}

/// Binds the port at which probes are answered; `None` if none is declared.
///
/// # Errors
/// - the operating system's, with the address.
pub fn bind(shared: &Shared) -> anyhow::Result<Option<TcpListener>> {
    if shared.settings.probes.is_empty() {
        return Ok(None);
    }
    let address = shared.settings.probe_listen;
    let bound = crate::listener::listen(address);
    bound.map(Some).map_err(|error| anyhow::anyhow!("cannot listen for probes at {address} (`--probe-listen`): {error}"))
}

/// Answers probes for ever.
pub async fn run(listener: Option<TcpListener>, shared: Arc<Shared>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let places = Arc::new(Semaphore::new(PROBES_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request| answer(request, Arc::clone(&shared)));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PROBE_DEADLINE).keep_alive(false);
            // Whoever asks has gone, or is too slow: nothing to tell anybody.
            let _ended = timeout(PROBE_DEADLINE * 2, builder.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = request.uri().path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let Some(probe) = shared.settings.probes.iter().find(|probe| probe.address() == asked) else {
        return Ok(reply(StatusCode::NOT_FOUND, "no probe of this address was declared with `--probe`\n".to_owned()));
    };
    let target = target(probe, &shared);
    Ok(match timeout(PROBE_DEADLINE, ask(probe, target)).await {
        Ok(Ok(status)) => reply(status, String::new()),
        Ok(Err(error)) => {
            reply(StatusCode::SERVICE_UNAVAILABLE, format!("the application at {target} does not answer: {error}\n"))
        }
        Err(_) => reply(StatusCode::GATEWAY_TIMEOUT, format!("the application at {target} did not answer in time\n")),
    })
}

/// The application's own address where the configuration knows it.
fn target(probe: &Probe, shared: &Shared) -> SocketAddr {
    let active = shared.active();
    let known = active.iter().flat_map(|active| &active.snapshot.inbound).map(|inbound| inbound.application);
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), probe.port);
    known.into_iter().find(|application| application.port() == probe.port).unwrap_or(loopback)
}

async fn ask(probe: &Probe, target: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(target).await?;
    let Some(path) = &probe.path else { return Ok(StatusCode::OK) };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path.as_str()).header(http::header::HOST, target.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => anyhow::bail!("the connection ended: {ended:?}"),
    }
}

fn reply(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_answered_under_its_own_address() {
        for (text, address) in [
            ("http://:8080/healthz", "/probe/8080/healthz"),
            ("http://:80/", "/probe/80/"),
            ("http://:80/a?b=c", "/probe/80/a?b=c"),
            ("tcp://:5432", "/probe/5432"),
        ] {
            assert_eq!(Probe::parse(text).map(|probe| probe.address()).as_deref(), Ok(address));
        }
        for wrong in [
            "",
            "http://:8080",
            "http://127.0.0.1:8080/x",
            "tcp://:0",
            "tcp://:70000",
            "tcp://:80/x",
            "grpc://:1",
            "http://:80/ x",
        ] {
            assert!(Probe::parse(wrong).is_err(), "{wrong}");
        }
    }
}
