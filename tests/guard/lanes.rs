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
use tokio::time::{Instant, sleep, timeout};

/// A sidecar under callgrind is some fifty times slower than it is.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Between the starts of two requests. In a second more of them are allowed than a sidecar records, so that it records as many as
/// it may, however slow the machine is.
const PACE: Duration = Duration::from_millis(25);
/// How long a sidecar that has nothing to do is counted.
const REST: Duration = Duration::from_secs(3);
/// Bytes of an answer, and of what goes through a tunnel there and back.
const SMALL: usize = 1024;
const BIG: usize = 1 << 20;

/// One kind of traffic.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    /// In how many pieces a body arrives depends on time, and each is allocated: so many more are chance, in parts of a thousand.
    pub(crate) chance: u32,
    traffic: Traffic,
    /// Requests before the counting and in it.
    warm: u32,
    counted: u32,
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
    Lane { name: "http1", setup: Setup::Plain, chance: 0, traffic: Traffic::Http1("/"), warm: 50, counted: 300 },
    Lane { name: "http2", setup: Setup::Plain, chance: 0, traffic: Traffic::Grpc, warm: 50, counted: 300 },
    Lane { name: "big", setup: Setup::Plain, chance: 250, traffic: Traffic::Http1("/big"), warm: 4, counted: 40 },
    Lane { name: "tcp", setup: Setup::Plain, chance: 0, traffic: Traffic::Tcp, warm: 50, counted: 300 },
    Lane { name: "http1-everything", setup: Setup::Everything, chance: 0, traffic: Traffic::Http1("/"), warm: 50, counted: 300 },
];

impl Lane {
    /// The cost of one request in each sidecar.
    pub(crate) async fn measure(&self, mesh: &Mesh) -> anyhow::Result<Vec<(&'static str, Cost)>> {
        let mut connection = Connection::open(self.traffic, mesh).await?;
        connection.send(self.warm, mesh).await.context("before the counting")?;
        mesh.zero()?;
        let began = Instant::now();
        sleep(REST).await;
        let idle = mesh.counts()?;
        let rested = began.elapsed();
        let began = Instant::now();
        connection.send(self.counted, mesh).await?;
        let busy = mesh.counts()?;
        let times = began.elapsed().as_secs_f64() / rested.as_secs_f64();
        let mut sides = Vec::new();
        for ((side, idle), (_, busy)) in idle.iter().zip(&busy) {
            // What a sidecar does by itself in that time is no part of a request.
            let of_one = |busy: u64, idle: u64| (busy as f64 - idle as f64 * times) / f64::from(self.counted);
            let instructions = of_one(busy.instructions, idle.instructions).round();
            ensure!(instructions > 0.0, "callgrind counted nothing in the sidecar of {side}");
            let allocations = (of_one(busy.allocations, idle.allocations) * 10.0).round() / 10.0;
            sides.push((*side, Cost { instructions, allocations }));
        }
        Ok(sides)
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
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Self::Grpc(sender)
            }
            Traffic::Tcp => Self::Tcp(stream),
        })
    }

    async fn send(&mut self, requests: u32, mesh: &Mesh) -> anyhow::Result<()> {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0..requests {
            pace.tick().await;
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
