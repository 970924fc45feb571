//! Policies that read request headers: over real sockets, and in every way in which a header could be read twice.

use crate::sidecar::{DEADLINE, Setup, Sidecar, Tls, application, application_of_http2, read_all};
use crate::traffic::{ASK, SWITCH, head, switching};
use http::{Request, Response};
use model::SpiffeId;
use std::net::SocketAddr;
use testkit::pki::LawlessClient;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const TENANTS: &str = r#"
@id("acme") permit (principal, action, resource)
when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] == "acme" };
@id("beta") permit (principal, action == Action::"PUT", resource)
when { context.request.headers has beta };
@id("banned") forbid (principal, action, resource)
when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] == "evil" };
@id("open") permit (principal, action == Action::"DELETE", resource);
"#;

fn lines(method: &str, headers: &str) -> Vec<u8> {
    format!("{method} /page HTTP/1.1\r\nhost: server\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

#[tokio::test]
async fn a_policy_that_reads_a_header_permits_and_denies_by_its_one_value() {
    let sidecar = Sidecar::start(application().await, Setup { policy: TENANTS, ..Setup::default() }).await;
    for (method, headers, status) in [
        ("GET", "x-tenant: acme\r\n", 200),
        ("GET", "X-Tenant:   acme \r\n", 200),
        ("GET", "", 403),
        ("GET", "x-tenant: Acme\r\n", 403),
        ("GET", "x-tenant: acme, evil\r\n", 403),
        ("PUT", "beta: \r\n", 200),
        ("GET", "beta: \r\n", 403),
        ("DELETE", "", 200),
        ("DELETE", "x-tenant: evil\r\n", 403),
    ] {
        // Twice: decided anew, and as it is remembered.
        for _ in 0..2 {
            let answer = sidecar.exchange(&lines(method, headers)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {headers:?}: {answer}");
            assert!(
                status != 200 || answer.to_ascii_lowercase().contains(headers.trim_end()) || headers.contains("  "),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_header_that_could_be_read_in_two_ways_denies_with_its_name_for_the_operator() {
    let sidecar = Sidecar::start(application().await, Setup { policy: TENANTS, ..Setup::default() }).await;
    for (headers, detail) in [
        ("x-tenant: acme\r\nx-tenant: evil\r\n", "header `x-tenant` stands more than once"),
        ("x-tenant: evil\r\nX-TENANT: acme\r\n", "header `x-tenant` stands more than once"),
        ("x-tenant: acme\r\nx-tenant: acme\r\n", "header `x-tenant` stands more than once"),
        ("x-tenant: ac\u{e4}me\r\n", "header `x-tenant` is not visible ASCII"),
        ("x-tenant: acme\r\nx_tenant: evil\r\n", "header `x-tenant` comes in another spelling"),
        ("X_Tenant: evil\r\n", "header `x-tenant` comes in another spelling"),
        ("x-tenant: acme\r\nconnection: x-tenant\r\n", "header `x-tenant` is named by `Connection`"),
    ] {
        for method in ["GET", "DELETE"] {
            let answer = sidecar.exchange(&lines(method, headers)).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("policy_error"), "{method} {headers:?}: {answer}");
            assert!(!answer.contains("x-tenant"), "the caller is not told which: {answer}");
            let id = answer.lines().find_map(|line| line.strip_prefix("x-rondel-decision: ")).expect("an id").to_owned();
            let record = recorded(&sidecar, &id).await;
            assert!(record.detail.as_deref().unwrap_or("").contains(detail), "{headers:?}: {record:#?}");
            let shown = &record.explanation.expect("explained").attributes;
            let header = "context.request.headers[\"x-tenant\"]";
            assert!(shown.iter().any(|(path, value)| path == header && value.contains(detail)), "{headers:?}: {shown:#?}");
        }
    }
    // Where no policy of the method reads it, it goes on as it came.
    let answer = sidecar.exchange(&lines("GET", "x-tenant: acme\r\nbeta: 1\r\nbeta: 2\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("beta: 1") && answer.contains("beta: 2"), "{answer}");
}

pub(crate) async fn recorded(sidecar: &Sidecar, id: &str) -> model::DecisionRecord {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let known = sidecar.control.records.lock().iter().find(|record| record.id.to_string() == id).cloned();
        if let Some(record) = known {
            return record;
        }
        assert!(Instant::now() < deadline, "no record of {id}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub(crate) async fn over_http2(sidecar: &Sidecar) -> Tls {
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let good = sidecar.control.hostile.good(&id);
    let client = LawlessClient::new().presenting(&good.chain, &good.key).alpn(&["h2"]);
    client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap()
}

/// An application that speaks HTTP/2 and answers everything with 200.
async fn welcoming() -> SocketAddr {
    application_of_http2(|_, mut answer| async move { drop(answer.send_response(Response::new(()), true).unwrap()) }).await
}

#[tokio::test]
async fn http2_is_decided_by_headers_like_http1() {
    let sidecar = Sidecar::start(welcoming().await, Setup { policy: TENANTS, ..Setup::default() }).await;
    let (client, connection) = h2::client::handshake(over_http2(&sidecar).await).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for (values, status) in
        [(vec!["acme"], 200), (vec!["evil"], 403), (vec![], 403), (vec!["acme", "acme"], 403), (vec!["acme", "evil"], 403)]
    {
        let mut request = Request::get("http://server/page");
        for value in &values {
            request = request.header("x-tenant", *value);
        }
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap().status(), status, "{values:?}");
    }
    // RFC 9113 §8.2.1: a value that begins or ends with white space makes a request that nobody has to understand.
    for value in ["acme ", " evil"] {
        let request = Request::get("http://server/page").header("x-tenant", value).body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let reset = timeout(DEADLINE, answer).await.unwrap().unwrap_err();
        assert_eq!(reset.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{value:?}");
    }
}

#[tokio::test]
async fn an_open_upgrade_ends_if_changed_policies_read_a_header_that_was_not_looked_at() {
    let mut sidecar = Sidecar::start(switching(SWITCH).await, Setup::default()).await;
    let mut open = sidecar.caller().await;
    open.write_all(ASK.replace("\r\n\r\n", "\r\nx-banned: yes\r\n\r\n").as_bytes()).await.unwrap();
    assert!(head(&mut open).await.starts_with("HTTP/1.1 101"));
    let banned = "forbid (principal, action, resource) when { context.request.headers has \"x-banned\" };";
    sidecar.enforce(&format!("permit (principal, action, resource); {banned}")).await;
    assert_eq!(read_all(&mut open).await, "");
    assert_eq!(sidecar.logged("policy_error").await["path"], "/chat");
}
