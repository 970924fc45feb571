//! A small HTTP/1.1 server in front of an [`Issuer`], which can be told to behave badly.

use super::Issuer;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Open connections that the server keeps; older ones are dropped beyond it.
const CONNECTIONS_MAX: usize = 256;

/// How the server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// As an issuer should.
    #[default]
    Well,
    /// As it should, after this long.
    Slow(Duration),
    /// It closes every connection without an answer.
    Gone,
    /// With this status and no document.
    Status(u16),
    /// With bytes that are no JSON.
    Garbage,
    /// With a document of this many bytes, otherwise good.
    Oversized(usize),
    /// With a redirect to this address.
    Redirecting(String),
    /// With a discovery document of another issuer; the key set is good.
    OtherIssuer(String),
    /// As it should, but its metadata stand only where RFC 8414 §3.1 has them.
    OnlyRfc8414,
}

/// How often each document was asked for, whatever the answer was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetches {
    /// Requests for the discovery document.
    pub discovery: u32,
    /// Requests for the key set.
    pub jwks: u32,
    /// Questions about opaque tokens.
    pub introspection: u32,
}

/// A question about an opaque token as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The value of `authorization`.
    pub authorization: Option<String>,
    /// The form.
    pub body: String,
}

/// A running server. It ends when this value is dropped.
pub struct IssuerServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    issuer: Issuer,
    base_url: String,
    behaviour: Mutex<Behaviour>,
    discovery: AtomicU32,
    jwks: AtomicU32,
    introspection: AtomicU32,
    opaque: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<Option<Asked>>,
}

impl Issuer {
    /// Serves `/.well-known/openid-configuration`, `/jwks` and `/introspect` on this listener until the returned value is dropped. The `iss` of
    /// such an issuer is [`IssuerServer::url`].
    ///
    /// # Errors
    /// - [`io::Error`] if the listener has no address.
    pub fn serve(&self, listener: TcpListener) -> io::Result<IssuerServer> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            issuer: self.clone(),
            base_url: format!("http://{address}"),
            behaviour: Mutex::default(),
            discovery: AtomicU32::new(0),
            jwks: AtomicU32::new(0),
            introspection: AtomicU32::new(0),
            opaque: Mutex::default(),
            asked: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(IssuerServer { address, shared, task })
    }
}

impl IssuerServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base address, which is also its `issuer`: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.shared.base_url
    }

    /// From the next request on, answers like this.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// How often each document was asked for since the start.
    pub fn fetches(&self) -> Fetches {
        Fetches {
            discovery: self.shared.discovery.load(Ordering::Acquire),
            jwks: self.shared.jwks.load(Ordering::Acquire),
            introspection: self.shared.introspection.load(Ordering::Acquire),
        }
    }

    /// From now on, says this of an opaque token (RFC 7662 §2.2); of others that they are not active.
    pub fn says(&self, token: &str, answer: Value) {
        self.shared.opaque.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned(), answer);
    }

    /// The last question about an opaque token.
    pub fn asked(&self) -> Option<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for IssuerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerServer").field("url", &self.shared.base_url).field("fetches", &self.fetches()).finish()
    }
}

impl Drop for IssuerServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that failed while it waited is the client's loss.
                let Ok((stream, _)) = accepted else { continue };
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn(answer_all(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn answer_all(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    // A broken connection is the client's loss.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An error here makes hyper close the connection without an answer.
async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, io::Error> {
    let behaviour = shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let document = match request.uri().path() {
        "/.well-known/openid-configuration" if behaviour == Behaviour::OnlyRfc8414 => Document::None,
        "/.well-known/oauth-authorization-server" if behaviour != Behaviour::OnlyRfc8414 => Document::None,
        "/.well-known/openid-configuration" | "/.well-known/oauth-authorization-server" => Document::Discovery,
        "/jwks" => Document::Keys,
        "/introspect" => Document::Introspection,
        _ => Document::None,
    };
    let count = match document {
        Document::None => return response(StatusCode::NOT_FOUND, Bytes::new()),
        Document::Discovery => &shared.discovery,
        Document::Keys => &shared.jwks,
        Document::Introspection => &shared.introspection,
    };
    count.fetch_add(1, Ordering::AcqRel);
    let is_discovery = document == Document::Discovery;
    let answer = match document {
        Document::Discovery => shared.issuer.discovery(&shared.base_url),
        Document::Introspection => shared.introspect(request).await?,
        Document::Keys | Document::None => shared.issuer.jwks(),
    };
    let document = || answer.clone();
    match behaviour {
        Behaviour::Well | Behaviour::OnlyRfc8414 => response(StatusCode::OK, document().to_string().into()),
        Behaviour::Slow(delay) => {
            tokio::time::sleep(delay).await;
            response(StatusCode::OK, document().to_string().into())
        }
        Behaviour::Gone => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
        Behaviour::Status(code) => {
            let code = StatusCode::from_u16(code).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            response(code, Bytes::new())
        }
        Behaviour::Garbage => response(StatusCode::OK, Bytes::from_static(b"<html>\x00\xff not JSON")),
        Behaviour::Oversized(bytes) => {
            let mut text = document().to_string();
            text.extend(std::iter::repeat_n(' ', bytes.saturating_sub(text.len())));
            response(StatusCode::OK, text.into())
        }
        Behaviour::Redirecting(to) => {
            let mut found = response(StatusCode::FOUND, Bytes::new())?;
            let to = to.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            found.headers_mut().insert(LOCATION, to);
            Ok(found)
        }
        Behaviour::OtherIssuer(other) if is_discovery => {
            response(StatusCode::OK, shared.issuer.discovery(&other).to_string().into())
        }
        Behaviour::OtherIssuer(_) => response(StatusCode::OK, document().to_string().into()),
    }
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Document {
    Discovery,
    Keys,
    Introspection,
    None,
}

impl Shared {
    async fn introspect(&self, request: Request<Incoming>) -> io::Result<Value> {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        let token = body.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap_or_default().to_owned();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Asked { authorization, body });
        let known = self.opaque.lock().unwrap_or_else(PoisonError::into_inner).get(&token).cloned();
        Ok(known.unwrap_or_else(|| serde_json::json!({ "active": false })))
    }
}

fn response(status: StatusCode, body: Bytes) -> Result<Response<Full<Bytes>>, io::Error> {
    Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(Full::new(body)).map_err(io::Error::other)
}
