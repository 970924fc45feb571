//! What goes on for long is decided again when the policies change, and ended if they no longer permit it.

use crate::headers::{over_http2, recorded};
use crate::sidecar::{ALLOW_ALL, DEADLINE, Setup, Sidecar, Tls, application_of_http2, read_all};
use bytes::Bytes;
use http::{Request, Response};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

/// Longer than a request may go on by the policies that let it in.
const LONG: Duration = Duration::from_millis(2500);
/// What begins with `/kept` stays permitted.
const ONLY_KEPT: &str = r#"@id("kept") permit (principal, action, resource) when { context.request.path like "/kept*" };"#;

/// An application that answers a head with an event every 50 ms (`/events`), after a second (`/slow`), or never, and reads everything.
async fn events() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = String::from_utf8_lossy(&seen).into_owned();
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { while read.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} });
                if head.contains("/slow") {
                    sleep(Duration::from_millis(1000)).await;
                    let _gone = write.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await;
                } else if head.contains("events") {
                    let start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                    let mut going = write.write_all(start).await;
                    while going.is_ok() {
                        going = write.write_all(b"9\r\ndata: x\n\n\r\n").await;
                        sleep(Duration::from_millis(50)).await;
                    }
                } else {
                    sleep(DEADLINE).await;
                }
            });
        }
    });
    address
}

async fn ask(sidecar: &Sidecar, request: &str) -> Tls {
    let mut caller = sidecar.caller().await;
    caller.write_all(format!("{request} HTTP/1.1\r\nhost: server\r\n").as_bytes()).await.unwrap();
    caller
}

/// Waits for so many events more.
async fn several(stream: &mut Tls, count: usize) {
    let mut seen = Vec::new();
    while seen.windows(7).filter(|seven| seven == b"data: x").count() < count {
        let read = timeout(DEADLINE, stream.read_buf(&mut seen)).await.expect("in time").unwrap();
        assert!(read > 0, "ended: {}", String::from_utf8_lossy(&seen));
    }
}

#[tokio::test]
async fn a_long_answer_and_a_long_upload_end_when_the_policies_no_longer_permit_them() {
    let mut sidecar = Sidecar::start(events().await, Setup { policy: ALLOW_ALL, ..Setup::default() }).await;
    let mut answers = ask(&sidecar, "GET /events").await;
    answers.write_all(b"\r\n").await.unwrap();
    let mut kept = ask(&sidecar, "GET /kept/events").await;
    kept.write_all(b"\r\n").await.unwrap();
    let mut upload = ask(&sidecar, "POST /upload").await;
    upload.write_all(b"content-length: 1000000\r\n\r\nsome of it").await.unwrap();
    several(&mut answers, 2).await;
    sleep(LONG).await;
    // Permitted by other policies, they go on.
    sidecar.enforce("@id(\"other\") permit (principal, action, resource);").await;
    several(&mut answers, 2).await;
    several(&mut kept, 2).await;

    let begun = Instant::now();
    sidecar.enforce(ONLY_KEPT).await;
    let rest = read_all(&mut answers).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "it does not look whole: {rest}");
    let refused = read_all(&mut upload).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("not_permitted"), "{refused}");
    several(&mut kept, 2).await;

    let line = sidecar.logged("not_permitted").await;
    assert_eq!(line["revision"], 3, "{line}");
    let id = refused.lines().find_map(|line| line.strip_prefix("x-rondel-decision: ")).expect("an id");
    let record = recorded(&sidecar, id).await;
    assert_eq!((record.path.as_str(), record.revision.0, record.effect), ("/upload", 3, model::Effect::Deny));
    // The application is let go of in both.
    let deadline = Instant::now() + DEADLINE;
    while !sidecar.log().lines().any(|line| line.contains("\"/events\"") && line.contains("no longer permitted at revision 3")) {
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_short_request_ends_by_the_policies_that_it_began_by() {
    let mut sidecar = Sidecar::start(events().await, Setup { policy: ALLOW_ALL, ..Setup::default() }).await;
    let mut caller = ask(&sidecar, "GET /slow").await;
    caller.write_all(b"connection: close\r\n\r\n").await.unwrap();
    // Under way at the application.
    let deadline = Instant::now() + DEADLINE;
    while sidecar.admin("/metrics").await.is_empty() {
        assert!(Instant::now() < deadline);
    }
    sleep(Duration::from_millis(200)).await;
    sidecar.enforce(ONLY_KEPT).await;
    let answer = read_all(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    // Once it is longer than a request, it is decided again although the change was before.
    let mut young = ask(&sidecar, "GET /kept/events").await;
    young.write_all(b"\r\n").await.unwrap();
    several(&mut young, 1).await;
    sidecar.enforce("@id(\"none\") forbid (principal, action, resource);").await;
    assert!(!read_all(&mut young).await.ends_with("0\r\n\r\n"));
    assert_eq!(sidecar.logged("denied_by_policy").await["path"], "/kept/events");
}

/// An application that speaks HTTP/2: it answers `/grpc` with a message every 50 ms, and `/silent` never.
async fn messages() -> SocketAddr {
    application_of_http2(|request, mut respond| async move {
        if request.uri().path().contains("silent") {
            sleep(DEADLINE).await;
            return;
        }
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        while body.send_data(Bytes::from_static(b"message"), false).is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test]
async fn streams_of_http2_end_one_by_one_when_the_policies_no_longer_permit_them() {
    let mut sidecar = Sidecar::start(messages().await, Setup { policy: ALLOW_ALL, ..Setup::default() }).await;
    let (client, connection) = h2::client::handshake(over_http2(&sidecar).await).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let mut open = |path: &str| {
        let request = Request::post(format!("http://server{path}")).header("content-type", "application/grpc");
        client.send_request(request.body(()).unwrap(), false).unwrap()
    };
    let ((denied, _upload), (kept, _upload_of_kept), (silent, _upload_of_silent)) =
        (open("/grpc"), open("/kept/grpc"), open("/silent"));
    let mut denied = timeout(DEADLINE, denied).await.unwrap().unwrap().into_body();
    let mut kept = timeout(DEADLINE, kept).await.unwrap().unwrap().into_body();
    sleep(LONG).await;
    sidecar.enforce(ONLY_KEPT).await;
    // What waits for its head is answered, in the words of gRPC.
    let answered = timeout(DEADLINE, silent).await.unwrap().unwrap();
    assert_eq!((answered.status().as_u16(), &answered.headers()["grpc-status"]), (200, &http::HeaderValue::from_static("7")));
    let reset = async {
        loop {
            match denied.data().await {
                Some(Ok(data)) => denied.flow_control().release_capacity(data.len()).unwrap(),
                Some(Err(error)) => return error,
                None => panic!("it looks whole"),
            }
        }
    };
    assert!(timeout(DEADLINE, reset).await.expect("in time").is_reset());
    // The others on the same connection go on.
    for _ in 0..100 {
        let data = timeout(DEADLINE, kept.data()).await.expect("in time").expect("goes on").unwrap();
        kept.flow_control().release_capacity(data.len()).unwrap();
    }
    let line = sidecar.logged("not_permitted").await;
    assert_eq!(line["revision"], 2, "{line}");
}
