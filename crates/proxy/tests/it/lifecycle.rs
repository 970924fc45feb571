//! The sidecar's beginning and end: after the application, and never in the middle of its calls.

use crate::holding::announcing;
use crate::sidecar::{ALLOW_ALL, DEADLINE, Setup, Sidecar, application, free, read_all};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::snapshot::{Protocol, Upstream};
use model::{Limit, ServiceName};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

fn terminate(sidecar: &Sidecar) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(sidecar.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// An application that answers slowly, and stops listening when it is told to.
async fn slow() -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! { accepted = listener.accept() => accepted, _ = &mut stopped => return };
            let Ok((mut stream, _)) = accepted else { return };
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                    sleep(Duration::from_millis(600)).await;
                    let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await;
                }
            });
        }
    });
    (address, stop)
}

#[tokio::test]
async fn a_request_under_way_is_answered_after_sigterm_and_the_sidecar_goes_after_its_application() {
    let (address, stop) = slow().await;
    let mut sidecar = Sidecar::start(address, Setup { limits: &[(Limit::DrainMs, 15_000)], ..Setup::default() }).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(200)).await;
    terminate(&sidecar);
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(sidecar.admin("/ready").await.contains("draining"));
    // The application still listens: the sidecar stays, and goes when it has gone.
    sleep(Duration::from_millis(500)).await;
    assert!(sidecar.admin("/live").await.starts_with("HTTP/1.1 200"), "the sidecar left its application alone");
    stop.send(()).unwrap();
    assert!(sidecar.until_ended().await.success());
}

#[tokio::test]
async fn a_caller_of_http_2_is_told_of_sigterm_by_goaway_and_its_request_under_way_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            tokio::spawn(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(600)).await;
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data(Bytes::from_static(b"slow"), true).unwrap();
                    });
                }
            });
        }
    });
    let sidecar = Sidecar::start(address, Setup { limits: &[(Limit::DrainMs, 15_000)], ..Setup::default() }).await;
    let (client, connection) = h2::client::handshake(announcing(&sidecar, &["h2"]).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let (answer, _) = client.send_request(Request::get("https://server/").body(()).unwrap(), true).unwrap();
    sleep(Duration::from_millis(200)).await;
    terminate(&sidecar);
    let mut body = timeout(DEADLINE, answer).await.expect("in time").unwrap().into_body();
    assert_eq!(timeout(DEADLINE, body.data()).await.expect("in time").unwrap().unwrap(), "slow");
    timeout(DEADLINE, connection).await.expect("the connection ends").unwrap().unwrap();
    let told = client.ready().await.map(drop).unwrap_err();
    assert!(told.is_go_away() && told.is_remote() && told.reason() == Some(h2::Reason::NO_ERROR), "{told}");
}

/// The status line of one plaintext request, or what became of the connection.
async fn status(address: SocketAddr) -> String {
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return error.kind().to_string(),
    };
    stream.write_all(b"GET / HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn after_sigterm_the_application_may_still_open_connections_and_peers_may_not() {
    let (address, _stop) = slow().await;
    let mut sidecar = Sidecar::start(address, Setup { limits: &[(Limit::DrainMs, 15_000)], ..Setup::default() }).await;
    let called = free();
    sidecar.snapshot.upstreams = vec![Upstream {
        service: ServiceName::parse("shop/other").unwrap(),
        listen: Some(called),
        protocol: Protocol::Http,
        endpoints: Vec::new(),
    }];
    sidecar.enforce(ALLOW_ALL).await;
    assert_eq!(status(called).await, "HTTP/1.1 503 Service Unavailable");
    terminate(&sidecar);
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(sidecar.inbound).await.is_ok() {
        assert!(Instant::now() < deadline, "peers are still accepted");
        sleep(Duration::from_millis(20)).await;
    }
    // No workload offers the service: the answer is the sidecar's own.
    assert_eq!(status(called).await, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(sidecar.logged("upstream_no_endpoint").await["direction"], "outbound");
}

#[tokio::test]
async fn the_grace_ends_for_an_application_that_stays() {
    let (address, _stop) = slow().await;
    let mut sidecar = Sidecar::start(address, Setup { limits: &[(Limit::DrainMs, 300)], ..Setup::default() }).await;
    let answer = sidecar.admin_post("/quit").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(sidecar.until_ended().await.success());
}

#[tokio::test]
async fn the_end_of_a_job_is_the_end_of_its_sidecar() {
    let mut job = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let arguments = vec!["--application-pid".to_owned(), job.id().to_string()];
    let (address, _stop) = slow().await;
    // Longer than the test waits: the end must come from the job.
    let limits = &[(Limit::DrainMs, 120_000)];
    let mut sidecar = Sidecar::start(address, Setup { arguments, limits, ..Setup::default() }).await;
    job.kill().unwrap();
    job.wait().unwrap();
    assert!(sidecar.until_ended().await.success());
}

#[tokio::test]
async fn health_probes_are_answered_without_a_certificate_and_only_as_declared() {
    let application = application().await;
    let (port, listen, refused) = (application.port(), free(), free().port());
    let arguments = [
        "--probe".to_owned(),
        format!("http://:{port}/healthz?full=1"),
        "--probe".to_owned(),
        format!("tcp://:{port}"),
        "--probe".to_owned(),
        format!("http://:{refused}/healthz"),
        "--probe-listen".to_owned(),
        listen.to_string(),
    ];
    // Nobody may call the application, and its probes are answered all the same.
    let policy = "@id(\"none\") forbid (principal, action, resource);";
    let sidecar = Sidecar::start(application, Setup { arguments: arguments.into(), policy, ..Setup::default() }).await;
    for (path, wanted) in [
        (format!("/probe/{port}/healthz?full=1"), "200"),
        (format!("/probe/{port}"), "200"),
        (format!("/probe/{refused}/healthz"), "503"),
        (format!("/probe/{port}/healthz"), "404"),
        (format!("/probe/{port}/healthz?full=1/../secret"), "404"),
        ("/secret".to_owned(), "404"),
    ] {
        let mut stream = TcpStream::connect(listen).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: probe\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{path}: {answer}");
    }
    assert!(!sidecar.log().contains("healthz"), "a probe became a question to the policies");
}

/// What a gRPC server says of its health, by the service that is asked for.
async fn health(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = std::io::Error>>, std::io::Error> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let (status, answer): (&str, &[u8]) = match &asked[..] {
        [0, 0, 0, 0, 0] | [0, 0, 0, 0, 4, 0x0a, 2, b'o', b'k'] => ("0", &[0, 0, 0, 0, 2, 8, 1]),
        [0, 0, 0, 0, 6, 0x0a, 4, b's', b'i', b'c', b'k'] => ("0", &[0, 0, 0, 0, 2, 8, 2]),
        [.., b'o', b'd', b'd'] => ("0", &[0, 0, 0, 0, 0]),
        _ => ("5", &[]),
    };
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))]);
    let frames = [Ok(Frame::data(Bytes::copy_from_slice(answer))), Ok(Frame::trailers(trailers))];
    Ok(Response::new(StreamBody::new(tokio_stream::iter(frames))))
}

#[tokio::test]
async fn a_grpc_server_is_well_only_if_it_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), hyper::service::service_fn(health)));
        }
    });
    let (port, listen, other) = (application.port(), free(), crate::sidecar::application().await.port());
    let probes = ["", "/ok", "/sick", "/odd", "/absent"].map(|service| format!("grpc://:{port}{service}"));
    let probes = format!("{},grpc://:{other}", probes.join(","));
    let arguments = ["--probe", &probes, "--probe-listen", &listen.to_string()].map(str::to_owned);
    let _sidecar = Sidecar::start(application, Setup { arguments: arguments.into(), ..Setup::default() }).await;
    for (path, wanted) in [
        (format!("{port}/grpc"), "200"),
        (format!("{port}/grpc/ok"), "200"),
        (format!("{port}/grpc/sick"), "503"),
        (format!("{port}/grpc/odd"), "503"),
        (format!("{port}/grpc/absent"), "503"),
        (format!("{port}/grpc/undeclared"), "404"),
        // It speaks HTTP/1.
        (format!("{other}/grpc"), "503"),
    ] {
        let mut stream = TcpStream::connect(listen).await.unwrap();
        stream.write_all(format!("GET /probe/{path} HTTP/1.1\r\nhost: probe\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_that_we_end_is_told_with_its_reason() {
    let limits = &[(Limit::IdleMs, 1000)];
    let sidecar = Sidecar::start(application().await, Setup { limits, ..Setup::default() }).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    read_all(&mut stream).await;
    let line = sidecar.logged("idle_timeout").await;
    assert_eq!((line["kind"].as_str(), line["direction"].as_str()), (Some("connection"), Some("inbound")), "{line}");
    assert_eq!(line["detail"], "no request for limit `idleMs` (1000 ms)");

    let sidecar = Sidecar::start(application().await, Setup { age: Duration::from_secs(1), ..Setup::default() }).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    read_all(&mut stream).await;
    assert_eq!(sidecar.logged("connection_age").await["kind"], "connection");

    let (address, stop) = slow().await;
    let sidecar = Sidecar::start(address, Setup::default()).await;
    let mut stream = sidecar.caller().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(200)).await;
    terminate(&sidecar);
    read_all(&mut stream).await;
    assert_eq!(sidecar.logged("draining").await["kind"], "connection");
    drop(stop);
}

#[tokio::test]
async fn a_connection_on_which_nobody_ever_speaks_is_told_when_it_ends() {
    let limits = &[(Limit::IdleMs, 1000)];
    let setup = Setup { limits, permissive: true, protocol: Protocol::Detect, ..Setup::default() };
    let mut sidecar = Sidecar::start(application().await, setup).await;
    let called = free();
    sidecar.snapshot.upstreams = vec![Upstream {
        service: ServiceName::parse("shop/other").unwrap(),
        listen: Some(called),
        protocol: Protocol::Http,
        endpoints: Vec::new(),
    }];
    sidecar.publish().await;
    let _plaintext = TcpStream::connect(sidecar.inbound).await.unwrap();
    let _application = TcpStream::connect(called).await.unwrap();
    let _peer = announcing(&sidecar, &["rondel-tcp"]).await;
    let deadline = Instant::now() + DEADLINE;
    for told in ["\"direction\":\"inbound\",\"workload\":\"shop/server\",\"principal\":\"spiffe:", "unauthenticated", "outbound"]
    {
        let is_told = |log: String| log.lines().any(|line| line.contains("\"idle_timeout\"") && line.contains(told));
        while !is_told(sidecar.log()) {
            assert!(Instant::now() < deadline, "{told}: {}", sidecar.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn waiting_for_the_sidecar_ends_when_it_is_ready_or_says_why_not() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let wait = |admin: SocketAddr| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rondel-proxy"));
        command.args(["wait", "--timeout", "0", "--admin", &admin.to_string()]).output().unwrap()
    };
    assert!(wait(sidecar.admin).status.success());
    let absent = wait(free());
    assert_eq!(absent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("does not answer"));
}
