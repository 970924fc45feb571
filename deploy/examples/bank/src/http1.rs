//! HTTP/1.1 for small programs: serve a function, make a call.

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Bytes of a request or an answer.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// For one call to an upstream.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Open connections; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;

/// A request that was read whole.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) remote: SocketAddr,
}

/// An answer that was read whole, or is to be sent.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// JSON.
    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        Self { status, headers, body: Bytes::from(body.to_string()) }
    }

    /// An error of the service itself.
    pub(crate) fn error(status: StatusCode, what: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": what }))
    }
}

/// Only on loopback unless traffic is captured: whoever reaches a service past its sidecar is not checked.
pub(crate) fn may_listen(listen: SocketAddr, captured: bool) -> anyhow::Result<()> {
    let is_behind = captured || listen.ip().is_loopback();
    anyhow::ensure!(
        is_behind,
        "`{listen}` is not a loopback address; a service is reached through its sidecar, or `--captured` is true"
    );
    Ok(())
}

/// Serves `respond` until the process ends.
pub(crate) async fn serve<F, R>(listen: SocketAddr, respond: F) -> anyhow::Result<()>
where
    F: Fn(Asked) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send,
{
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen at {listen}"))?;
    let respond = Arc::new(respond);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let Ok((stream, remote)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let respond = Arc::clone(&respond);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let respond = Arc::clone(&respond);
                async move {
                    let answer = match read(request, remote).await {
                        Ok(asked) => respond(asked).await,
                        Err(error) => Answer::error(StatusCode::BAD_REQUEST, &error),
                    };
                    let mut response = Response::new(Full::new(answer.body));
                    *response.status_mut() = answer.status;
                    *response.headers_mut() = answer.headers;
                    Ok::<_, Infallible>(response)
                }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
            // How a client's connection ends concerns only the client.
            let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn read(request: Request<Incoming>, remote: SocketAddr) -> Result<Asked, String> {
    let (head, body) = request.into_parts();
    let body = timeout(BODY_DEADLINE, Limited::new(body, BODY_BYTES_MAX).collect());
    let body = body.await.map_err(|_| "the body did not come in time")?.map_err(|error| error.to_string())?.to_bytes();
    Ok(Asked { method: head.method, path: head.uri.path().to_owned(), headers: head.headers, body, remote })
}

/// Makes one call; a failure is an answer of 502.
pub(crate) async fn call(to: SocketAddr, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Answer {
    match timeout(CALL_DEADLINE, exchange(to, method, path, headers, body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::error(StatusCode::BAD_GATEWAY, &format!("{error:#}")),
        Err(_) => Answer::error(StatusCode::GATEWAY_TIMEOUT, "no answer in time"),
    }
}

async fn exchange(to: SocketAddr, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse()?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_str(&to.to_string())?);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    driver.abort();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_listens_on_loopback_unless_its_traffic_is_captured() {
        for (listen, captured, expected) in
            [("127.0.0.1:80", false, true), ("[::1]:80", false, true), ("0.0.0.0:80", false, false), ("0.0.0.0:80", true, true)]
        {
            let allowed = may_listen(listen.parse().expect(listen), captured);
            assert_eq!(allowed.is_ok(), expected, "{listen} {captured}: {allowed:?}");
        }
    }
}
