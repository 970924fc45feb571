//! The lanes: what is sent, by whom it is answered, and how it is counted.

use crate::costs::Cost;
use crate::mesh::{Mesh, Setup};
use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A sidecar under callgrind is some fifty times slower than it is.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Of an answer, and of what goes through a tunnel there and back.
const SMALL: usize = 1024;
const BIG: usize = 1 << 20;

/// One kind of traffic.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    traffic: Traffic,
    /// Before the counting, and then twice.
    warm: u32,
    few: u32,
    many: u32,
}

#[derive(Clone, Copy)]
enum Traffic {
    /// GETs on one connection.
    Http1(&'static str),
    /// POSTs of 100 bytes as gRPC sends them, with a trailer in the answer.
    Grpc,
    /// 1 KiB there and back in a tunnel.
    Tcp,
}

/// A request of `big` is one of a mebibyte.
pub(crate) const LANES: [Lane; 5] = [
    Lane { name: "http1", setup: Setup::Plain, traffic: Traffic::Http1("/"), warm: 100, few: 200, many: 1000 },
    Lane { name: "http2", setup: Setup::Plain, traffic: Traffic::Grpc, warm: 100, few: 200, many: 1000 },
    Lane { name: "big", setup: Setup::Plain, traffic: Traffic::Http1("/big"), warm: 4, few: 5, many: 25 },
    Lane { name: "tcp", setup: Setup::Plain, traffic: Traffic::Tcp, warm: 100, few: 200, many: 1000 },
    Lane { name: "http1-everything", setup: Setup::Everything, traffic: Traffic::Http1("/"), warm: 100, few: 200, many: 1000 },
];

impl Lane {
    /// The cost of one request in each sidecar.
    pub(crate) async fn measure(&self, mesh: &Mesh) -> anyhow::Result<Vec<(&'static str, Cost)>> {
        let mut connection = Connection::open(self.traffic, mesh).await?;
        connection.send(self.warm, mesh).await.context("before the counting")?;
        mesh.zero()?;
        connection.send(self.few, mesh).await?;
        let few = mesh.counts()?;
        connection.send(self.many, mesh).await?;
        let many = mesh.counts()?;
        let requests = u64::from(self.many - self.few);
        let cost = |((side, few), (_, many)): (&(&'static str, crate::profile::Counts), &(&'static str, crate::profile::Counts))| {
            let allocations = many.allocations.saturating_sub(few.allocations) as f64 / requests as f64;
            let instructions = many.instructions.saturating_sub(few.instructions) / requests;
            ensure!(instructions > 0, "callgrind counted nothing in the sidecar of {side}");
            Ok((*side, Cost { instructions, allocations: (allocations * 10.0).round() / 10.0 }))
        };
        few.iter().zip(&many).map(cost).collect()
    }
}

/// The client's connection to its sidecar.
enum Connection {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>, &'static str),
    Grpc(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
    Tcp(TcpStream),
}

impl Connection {
    async fn open(traffic: Traffic, mesh: &Mesh) -> anyhow::Result<Self> {
        let to = if matches!(traffic, Traffic::Tcp) { mesh.tcp } else { mesh.http };
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(match traffic {
            Traffic::Http1(path) => {
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Self::Http1(sender, path)
            }
            Traffic::Grpc => {
                let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Self::Grpc(sender)
            }
            Traffic::Tcp => Self::Tcp(stream),
        })
    }

    async fn send(&mut self, requests: u32, mesh: &Mesh) -> anyhow::Result<()> {
        for number in 0..requests {
            let one = timeout(CALL_DEADLINE, self.send_one(mesh)).await;
            one.map_err(|_| anyhow::anyhow!("no answer in time")).flatten().with_context(|| format!("request {number}"))?;
        }
        Ok(())
    }

    async fn send_one(&mut self, mesh: &Mesh) -> anyhow::Result<()> {
        let mut request = Request::builder();
        for (name, value) in &mesh.headers {
            request = request.header(*name, value);
        }
        let (response, size) = match self {
            Self::Http1(sender, path) => {
                let request = request.uri(*path).header("host", "server.shop").body(Full::default())?;
                sender.ready().await?;
                (sender.send_request(request).await?, if *path == "/" { SMALL } else { BIG })
            }
            Self::Grpc(sender) => {
                let request = request.method("POST").uri("http://server.shop/guard.Echo/Call");
                let request = request.header("content-type", "application/grpc").header("te", "trailers");
                sender.ready().await?;
                (sender.send_request(request.body(Full::from(vec![b'x'; 100]))?).await?, SMALL)
            }
            Self::Tcp(stream) => {
                let mut message = [b'x'; SMALL];
                stream.write_all(&message).await?;
                stream.read_exact(&mut message).await?;
                return Ok(());
            }
        };
        ensure!(response.status() == 200, "status {}", response.status());
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(body.len() == size, "{} bytes instead of {size}", body.len());
        Ok(())
    }
}

/// What stands behind the server's sidecar, on loopback.
pub(crate) struct Applications {
    pub(crate) http: SocketAddr,
    pub(crate) echo: SocketAddr,
}

impl Applications {
    /// Starts them for as long as the runtime lives.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (http, echo) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let addresses = Self { http: http.local_addr()?, echo: echo.local_addr()? };
        tokio::spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                let _whole = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service_fn(answer)).await.is_ok()
                });
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.is_ok()
                });
            }
        });
        Ok(addresses)
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> hyper::Result<Response<Body>> {
    let size = if request.uri().path() == "/big" { BIG } else { SMALL };
    let is_grpc = request.version() == Version::HTTP_2;
    request.into_body().collect().await?;
    let body = Full::from(vec![b'x'; size]);
    if !is_grpc {
        return Ok(Response::new(body.boxed()));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(Response::new(body.with_trailers(async { Some(Ok(trailers)) }).boxed()))
}
