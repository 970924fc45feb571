//! Policies that read the country of a call, where a database on the sidecar's disk says it.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application, read_all};
use crate::traffic::{ASK, SWITCH, head};
use model::SpiffeId;
use model::snapshot::CountryHeader;
use std::path::PathBuf;
use testkit::countries::{Database, country};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const BY_COUNTRY: &str = r#"
@id("open") permit (principal, action == Action::"DELETE", resource);
@id("all") permit (principal, action in Action::"read", resource);
@id("embargo") forbid (principal, action in Action::"read", resource)
when { context.source has country && context.source.country == "KP" };
@id("home") permit (principal, action == Action::"POST", resource)
when { context.source has country && context.source.country == "DE" };
"#;

fn database(networks: &[(&'static str, &str)]) -> Vec<u8> {
    let networks = networks.iter().map(|(network, code)| (*network, country(code))).collect();
    Database { networks, ..Default::default() }.to_bytes()
}

/// A sidecar that is not called yet, and where its database is to lie.
async fn sidecar_with_database() -> (Sidecar, PathBuf) {
    let mut sidecar = Sidecar::start(application().await, Setup { policy: BY_COUNTRY, ..Setup::default() }).await;
    let path = sidecar.dir.path().join("country.mmdb");
    sidecar.snapshot.country_database = Some(path.display().to_string());
    sidecar.snapshot.forwarders = vec![client()];
    (sidecar, path)
}

/// Puts a whole file in place of another, as who updates databases should.
fn put(path: &PathBuf, bytes: &[u8]) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

fn client() -> SpiffeId {
    SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap()
}

async fn ask(sidecar: &Sidecar, method: &str, headers: &str) -> (u16, String) {
    let head = format!("{method} /page HTTP/1.1\r\nhost: server\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n");
    let answer = sidecar.exchange(head.as_bytes()).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_country_is_that_of_the_address_that_a_forwarder_calls_for_unless_a_trusted_caller_says_it() {
    let (mut sidecar, path) = sidecar_with_database().await;
    put(&path, &database(&[("192.0.2.0/24", "DE"), ("198.51.100.0/24", "KP"), ("2001:db8::/32", "DE"), ("127.0.0.0/8", "DE")]));
    sidecar.publish().await;
    for (method, headers, status) in [
        ("POST", "x-forwarded-for: 192.0.2.1\r\n", 200),
        ("POST", "x-forwarded-for: 2001:db8::7\r\n", 200),
        ("POST", "X-Forwarded-For: 198.51.100.1, 192.0.2.1\r\n", 200),
        ("POST", "x-forwarded-for: 192.0.2.1, 198.51.100.1\r\n", 403),
        ("POST", "x-forwarded-for: 192.0.2.1\r\nx-forwarded-for: 203.0.113.1\r\n", 403),
        // Loopback is in no country, whatever the database says.
        ("POST", "", 403),
        ("POST", "x-country: DE\r\n", 403),
        ("GET", "x-forwarded-for: 192.0.2.1\r\n", 200),
        ("GET", "x-forwarded-for: 198.51.100.1\r\n", 403),
        ("GET", "x-forwarded-for: nonsense\r\n", 200),
        ("GET", "", 200),
    ] {
        let (found, answer) = ask(&sidecar, method, headers).await;
        assert_eq!(found, status, "{method} {headers:?}: {answer}");
    }

    // A trusted caller's word goes before the database, and what it leaves open the database is asked for.
    sidecar.snapshot.country = Some(CountryHeader { header: "x-country".into(), trusted: vec![client()] });
    sidecar.publish().await;
    for (method, headers, status) in [
        ("POST", "x-country: DE\r\n", 200),
        ("POST", "x-country: DE\r\nx-forwarded-for: 198.51.100.1\r\n", 200),
        ("GET", "x-country: KP\r\nx-forwarded-for: 192.0.2.1\r\n", 403),
        ("POST", "x-country: T1\r\nx-forwarded-for: 192.0.2.1\r\n", 200),
        ("POST", "x-country: DE\r\nx-country: KP\r\nx-forwarded-for: 198.51.100.1\r\n", 403),
        // Two countries are none that can be decided by: one of them may be the client's invention.
        ("GET", "x-country: DE\r\nx-country: KP\r\nx-forwarded-for: 192.0.2.1\r\n", 403),
        ("GET", "x-country: DE, KP\r\nx-forwarded-for: 192.0.2.1\r\n", 403),
        ("DELETE", "x-country: DE\r\nx-country: KP\r\n", 200),
    ] {
        let (found, answer) = ask(&sidecar, method, headers).await;
        assert_eq!(found, status, "{method} {headers:?}: {answer}");
    }

    // From who is no forwarder the header says nothing.
    sidecar.snapshot.country = None;
    sidecar.snapshot.forwarders.clear();
    sidecar.publish().await;
    let (status, answer) = ask(&sidecar, "POST", "x-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(status, 403, "{answer}");
}

#[tokio::test]
async fn without_a_readable_database_no_call_passes_whose_policies_read_the_country() {
    let (mut sidecar, path) = sidecar_with_database().await;
    sidecar.publish().await;
    let ready = sidecar.admin("/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("country: a policy reads it"), "{ready}");
    assert_eq!(sidecar.metric("rondel_country_database_failed").await, 1);
    let told = sidecar.control.trouble().await;
    assert!(told.len() == 1 && told[0].contains(&path.display().to_string()) && told[0].contains("are denied"), "{told:?}");
    // A forbid that asks with `has` must not be passed over.
    for method in ["GET", "POST"] {
        let (status, answer) = ask(&sidecar, method, "x-forwarded-for: 192.0.2.1\r\n").await;
        assert!(status == 403 && answer.contains("policy_error"), "{method}: {answer}");
        assert!(!answer.contains("database"), "that is for the operator: {answer}");
    }
    let (status, answer) = ask(&sidecar, "DELETE", "").await;
    assert_eq!(status, 200, "no policy of the method reads the country: {answer}");

    for garbage in [b"a text".as_slice(), &database(&[]), &database(&[("192.0.2.0/24", "DE")])[..60]] {
        put(&path, garbage);
        let told = sidecar.control.trouble().await;
        assert!(told.len() == 1 && told[0].contains("database of countries"), "{told:?}");
        assert_eq!(ask(&sidecar, "GET", "x-forwarded-for: 192.0.2.1\r\n").await.0, 403);
    }

    // As soon as it is there it is in use, without a restart.
    put(&path, &database(&[("192.0.2.0/24", "DE")]));
    sidecar.until_ready().await;
    assert_eq!(sidecar.control.trouble().await, Vec::<String>::new());
    assert_eq!(ask(&sidecar, "POST", "x-forwarded-for: 192.0.2.1\r\n").await.0, 200);
    assert_eq!(sidecar.metric("rondel_country_database_failed").await, 0);

    // It is there from the start of the next process on.
    sidecar.restart();
    sidecar.until_ready().await;
    assert_eq!(ask(&sidecar, "POST", "x-forwarded-for: 192.0.2.1\r\n").await.0, 200);
}

#[tokio::test]
async fn an_update_of_the_database_is_taken_up_and_a_bad_one_leaves_the_one_before() {
    let (mut sidecar, path) = sidecar_with_database().await;
    put(&path, &database(&[("192.0.2.0/24", "DE")]));
    sidecar.publish().await;
    const FROM: &str = "x-forwarded-for: 192.0.2.1\r\n";
    assert_eq!(ask(&sidecar, "POST", FROM).await.0, 200);

    put(&path, &database(&[("192.0.2.0/24", "KP")]));
    until("the update", async || ask(&sidecar, "GET", FROM).await.0 == 403).await;

    put(&path, b"a download that failed");
    until("the trouble", async || sidecar.admin("/ready").await.contains("stays in use")).await;
    assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"), "an older database is no reason to be left out");
    assert_eq!(ask(&sidecar, "GET", FROM).await.0, 403, "the embargo stands");
    assert_eq!(sidecar.metric("rondel_country_database_failed").await, 1);
    let told = sidecar.control.trouble().await;
    assert!(told.len() == 1 && told[0].contains("is not a whole database"), "{told:?}");

    // No policy reads the country: nothing is read, and nothing is wrong.
    sidecar.enforce(crate::sidecar::ALLOW_ALL).await;
    assert_eq!(sidecar.metric("rondel_country_database_failed").await, 0);
    assert_eq!(sidecar.control.trouble().await, Vec::<String>::new());
}

/// An application that echoes what comes behind a granted upgrade, and answers nothing else.
async fn switching_or_waiting() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
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
                let (mut read, mut write) = stream.split();
                if seen.starts_with(b"GET") {
                    write.write_all(SWITCH.as_bytes()).await.unwrap();
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                } else {
                    let _ended = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn what_is_open_is_decided_again_with_the_country_of_its_caller() {
    let mut sidecar = Sidecar::start(switching_or_waiting().await, Setup::default()).await;
    let path = sidecar.dir.path().join("country.mmdb");
    put(&path, &database(&[("192.0.2.0/24", "DE"), ("198.51.100.0/24", "KP")]));
    sidecar.snapshot.country_database = Some(path.display().to_string());
    sidecar.snapshot.forwarders = vec![client()];
    sidecar.publish().await;
    // No policy reads the country yet, and so nobody has asked for it.
    let mut open = Vec::new();
    for from in ["198.51.100.1", "192.0.2.1"] {
        let mut socket = sidecar.caller().await;
        socket.write_all(ASK.replace("\r\n\r\n", &format!("\r\nx-forwarded-for: {from}\r\n\r\n")).as_bytes()).await.unwrap();
        assert!(head(&mut socket).await.starts_with("HTTP/1.1 101"));
        open.push(socket);
    }
    // An upload that is under way for so long that it is decided again too.
    let mut upload = sidecar.caller().await;
    let begun = "POST /page HTTP/1.1\r\nhost: server\r\nx-forwarded-for: 198.51.100.1\r\ncontent-length: 9\r\n\r\nbegun";
    upload.write_all(begun.as_bytes()).await.unwrap();
    upload.flush().await.unwrap();
    sleep(proxy::standing::STREAM_AFTER).await;
    let embargo = "forbid (principal, action, resource) when { context.source has country && context.source.country == \"KP\" };";
    sidecar.enforce(&format!("permit (principal, action, resource); {embargo}")).await;
    assert_eq!(read_all(&mut open[0]).await, "");
    assert_eq!(sidecar.logged("denied_by_policy").await["reason"], "denied_by_policy");
    let answer = read_all(&mut upload).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    open[1].write_all(b"still here").await.unwrap();
    open[1].flush().await.unwrap();
    let mut echo = [0; 10];
    open[1].read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"still here");
}
