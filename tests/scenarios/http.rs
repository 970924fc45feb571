//! The applications that the tests play: an HTTP client and an HTTP server, both real, both unaware of the mesh.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

/// One plain GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let answer = call(address, Version::HTTP_11, Request::get(path), "").await?;
    Ok((answer.status, answer.body))
}

/// One call on a connection of its own.
pub(crate) async fn call(
    address: SocketAddr,
    version: Version,
    request: http::request::Builder,
    body: &str,
) -> Result<Answer, String> {
    timeout(CALL_DEADLINE, exchange(address, version, request, body.to_owned()))
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

async fn exchange(
    address: SocketAddr,
    version: Version,
    request: http::request::Builder,
    body: String,
) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let body = Full::new(Bytes::from(body));
    let response = if version == Version::HTTP_2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut request = request.body(body).map_err(|error| error.to_string())?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = format!("http://server.shop{path}").parse().map_err(|_| "uri".to_owned())?;
        sender.send_request(request).await
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = request.header("host", "server.shop").body(body).map_err(|error| error.to_string())?;
        sender.send_request(request).await
    };
    let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
    let collected = body.collect().await.map_err(|error| error.to_string())?;
    let trailers = collected.trailers().cloned();
    let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
    Ok(Answer { status: head.status.as_u16(), version: head.version, headers: head.headers, trailers, body })
}

/// Serves h1 and h2c on a free port for as long as the test's runtime lives.
///
/// `/echo` streams the request's body back; everything else answers JSON that tells what was received, with a trailer on h2.
pub(crate) async fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ended = builder.serve_connection(TokioIo::new(stream), service_fn(respond)).await;
            });
        }
    });
    address
}

async fn respond(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/echo" {
        return Ok(Response::new(body.boxed()));
    }
    if head.uri.path() == "/gone" {
        // The application breaks off in the middle of its answer.
        let frames = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
        let response = Response::builder().header("content-length", "100").body(BodyExt::boxed(StreamBody::new(frames)));
        return Ok(response.expect("response"));
    }
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let version = format!("{:?}", head.version);
    let received = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answer = serde_json::json!({
        "method": head.method.as_str(), "path": head.uri.path_and_query().map(|path| path.as_str()), "version": version,
        "headers": headers, "body": String::from_utf8_lossy(&received),
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let mut frames: Vec<Result<Frame<Bytes>, hyper::Error>> = vec![Ok(Frame::data(Bytes::from(answer.to_string())))];
    if head.version == Version::HTTP_2 {
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    Ok(Response::builder().status(StatusCode::OK).body(body).expect("response"))
}
