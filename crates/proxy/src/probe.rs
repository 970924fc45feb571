//! Health probes of the application, answered for whoever has no SVID to ask with: the kubelet.
//!
//! Only what was declared at the start is asked, exactly as declared, so that no policy is needed and none is got around.

use crate::state::Shared;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// For one probe, from its first byte to its answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// For the head of a request for a probe.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);
/// LIMIT: probes under way.
const PROBES_MAX: usize = 32;
/// LIMIT: bytes of an answer to a gRPC probe; a status needs seven.
const PROBE_ANSWER_BYTES_MAX: usize = 4096;
/// Pause after an accept error such as a full descriptor table.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One declared probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    port: u16,
    asks: Asks,
}

/// What is asked of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asks {
    /// Whether the port takes connections.
    Connect,
    /// `GET` of this path.
    Http(String),
    /// `grpc.health.v1.Health/Check` of this service; empty for the server as a whole.
    Grpc(String),
}

/// A probe was not written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a probe: write `http://:8080/healthz`, `grpc://:8080`, `grpc://:8080/SERVICE` or `tcp://:8080`")]
pub struct ProbeError(String);

impl Probe {
    /// Reads `http://:PORT/PATH`, `grpc://:PORT[/SERVICE]` or `tcp://:PORT`.
    ///
    /// # Errors
    /// - [`ProbeError`] with the forms.
    pub fn parse(text: &str) -> Result<Self, ProbeError> {
        let wrong = || ProbeError(model::ids::printable(text));
        let port = |digits: &str| digits.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
        if let Some(digits) = text.strip_prefix("tcp://:") {
            return Ok(Self { port: port(digits)?, asks: Asks::Connect });
        }
        if let Some(rest) = text.strip_prefix("grpc://:") {
            let (digits, service) = rest.split_once('/').unwrap_or((rest, ""));
            let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            // The name's length must fit the one byte in which it is sent.
            if service.len() > 127 || !service.bytes().all(named) {
                return Err(wrong());
            }
            return Ok(Self { port: port(digits)?, asks: Asks::Grpc(service.to_owned()) });
        }
        let rest = text.strip_prefix("http://:").ok_or_else(wrong)?;
        let (digits, path) = rest.split_at(rest.find('/').ok_or_else(wrong)?);
        path.parse::<http::uri::PathAndQuery>().map_err(|_| wrong())?;
        Ok(Self { port: port(digits)?, asks: Asks::Http(path.to_owned()) })
    }

    /// Where it is answered.
    fn address(&self) -> String {
        match &self.asks {
            Asks::Connect => format!("/probe/{}", self.port),
            Asks::Http(path) => format!("/probe/{}{path}", self.port),
            Asks::Grpc(service) if service.is_empty() => format!("/probe/{}/grpc", self.port),
            Asks::Grpc(service) => format!("/probe/{}/grpc/{service}", self.port),
        }
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
    let mut under_way: VecDeque<AbortHandle> = VecDeque::with_capacity(PROBES_MAX);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        under_way.retain(|probe| !probe.is_finished());
        // Anybody may connect here: who has taken longest makes room, since a probe takes milliseconds.
        if under_way.len() >= PROBES_MAX
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.abort();
        }
        let shared = Arc::clone(&shared);
        let probe = tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&shared)));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).keep_alive(false);
            // Whoever asks has gone, or is too slow: nothing to tell anybody.
            let _ended = timeout(PROBE_DEADLINE * 2, builder.serve_connection(TokioIo::new(stream), service)).await;
        });
        under_way.push_back(probe.abort_handle());
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
    let path = match &probe.asks {
        Asks::Connect => return Ok(StatusCode::OK),
        Asks::Grpc(service) => return ask_grpc(stream, service, target).await,
        Asks::Http(path) => path,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path.as_str()).header(http::header::HOST, target.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => anyhow::bail!("the connection ended: {ended:?}"),
    }
}

/// One call of the health checking protocol of gRPC. Its messages are one field each, so they are written and read as bytes:
/// field 1 of the request is the service's name, field 1 of the response the status, and `SERVING` is 1.
async fn ask_grpc(stream: TcpStream, service: &str, target: SocketAddr) -> anyhow::Result<StatusCode> {
    let length = u8::try_from(service.len())?;
    let mut message = Vec::new();
    if length > 0 {
        message.extend([0x0a, length]);
        message.extend(service.bytes());
    }
    let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len())?];
    framed.extend(message);
    let (mut sender, connection) =
        hyper::client::conn::http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(Bytes::from(framed)))?;
    let call = async {
        let response = sender.send_request(request).await?;
        let status = response.headers().get("grpc-status").cloned();
        let collected =
            Limited::new(response.into_body(), PROBE_ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
        let status = collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(status);
        anyhow::Ok((status, collected.to_bytes()))
    };
    let (status, answer) = tokio::select! {
        called = call => called?,
        ended = connection => anyhow::bail!("the connection ended: {ended:?}"),
    };
    let status = status.as_ref().and_then(|status| status.to_str().ok()).unwrap_or("missing");
    if status != "0" {
        anyhow::bail!("`grpc-status` {status}");
    }
    let serving = answer.as_ref() == [0, 0, 0, 0, 2, 0x08, 1];
    Ok(if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
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
            ("grpc://:50051", "/probe/50051/grpc"),
            ("grpc://:50051/bank.v1.Ledger", "/probe/50051/grpc/bank.v1.Ledger"),
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
            "grpc://:0",
            "grpc://:1/a/b",
            "grpc://:1/\u{e9}",
            "http://:80/ x",
        ] {
            assert!(Probe::parse(wrong).is_err(), "{wrong}");
        }
    }
}
