//! The client of the walk: HTTP from a chosen source address, tokens from the issuer.

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// A client in Germany, as the bank's table of networks says.
pub(crate) const GERMANY: Ipv4Addr = Ipv4Addr::new(127, 0, 49, 1);
/// A client in France.
pub(crate) const FRANCE: Ipv4Addr = Ipv4Addr::new(127, 0, 33, 1);
/// A client nowhere in particular.
pub(crate) const NOWHERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

const CALL_DEADLINE: Duration = Duration::from_secs(15);
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// `403 not_permitted` or `201`.
    pub(crate) fn short(&self) -> String {
        format!("{} {}", self.status, self.header("x-rondel-reason")).trim().to_owned()
    }
}

/// One call on a connection of its own, from `source`.
pub(crate) async fn call(
    source: Ipv4Addr,
    to: SocketAddr,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: &Value,
) -> anyhow::Result<Answer> {
    let what = format!("{method} {path} at {to}");
    let answer = timeout(CALL_DEADLINE, exchange(source, to, method, path, token, body)).await;
    answer.with_context(|| format!("{what}: no answer in time"))?.with_context(|| what)
}

async fn exchange(
    source: Ipv4Addr,
    to: SocketAddr,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: &Value,
) -> anyhow::Result<Answer> {
    let socket = TcpSocket::new_v4()?;
    socket
        .bind(SocketAddr::new(IpAddr::V4(source), 0))
        .with_context(|| format!("use {source} as source; all of 127.0.0.0/8 must be loopback, as on Linux"))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", to.to_string());
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let text = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = request.header("content-type", "application/json").body(Full::new(text))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    driver.abort();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// A token of the bank's issuer.
pub(crate) async fn token(issuer: SocketAddr, order: &Value) -> anyhow::Result<String> {
    let answer = call(NOWHERE, issuer, Method::POST, "/token", None, order).await?;
    let text = answer.json().get("access_token").and_then(Value::as_str).map(str::to_owned);
    text.with_context(|| format!("the issuer gave no token: {} {}", answer.status, answer.body))
}
