//! Configurations, good and bad, and what the sidecar keeps of them.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application, free, policy, read_all};
use model::snapshot::{Inbound, Protocol, RevokedSvid};
use model::{Revision, SpiffeId, WorkloadName};
use std::time::Duration;
use testkit::pki::{self, LawlessClient};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use wire::proto;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_control_plane_that_sends_garbage_changes_nothing() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let control = &sidecar.control;
    let mut good = sidecar.snapshot.clone();
    good.revision = Revision(2);
    let whole = |nonce: &str| control.whole(&good, nonce);
    let policy_key = "policy/shop/server".to_owned();
    let garbage: Vec<(&str, proto::ConfigUpdate, &str)> = vec![
        ("empty resource", proto::ConfigUpdate { changed: vec![proto::Resource::default()], ..whole("a") }, "kind"),
        ("no signature", proto::ConfigUpdate { signature: Vec::new(), ..whole("b") }, "signature"),
        ("other signature", proto::ConfigUpdate { revision: 3, ..whole("c") }, "signature"),
        ("older", proto::ConfigUpdate { revision: 0, ..whole("d") }, "revision"),
        ("removes what is not there", proto::ConfigUpdate { removed: vec!["upstream/x/y".into()], ..whole("e") }, "removed"),
        (
            "removes a policy that is named",
            proto::ConfigUpdate { changed: Vec::new(), removed: vec![policy_key], ..whole("f") },
            "policy",
        ),
    ];
    for (name, update, said) in garbage {
        control.send(update);
        let reason = control.answer().await.expect_err(name);
        assert!(reason.contains(said), "{name}: {reason}");
        assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"), "{name}: the last good configuration is in force");
    }
    // The stream survived all of it.
    control.send(whole("good"));
    assert_eq!(control.answer().await, Ok("good".to_owned()));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_put_in_force_is_refused_whole() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let control = &sidecar.control;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = {
        let mut base = sidecar.snapshot.clone();
        base.revision = Revision(2);
        base
    };

    let mut broken_policy = base.clone();
    broken_policy.policies = vec![policy("permit (principal, action, resource) when { context.nothing };")];
    let mut foreign = base.clone();
    foreign.workload = WorkloadName::parse("shop/other").unwrap();
    let mut port_in_use = base.clone();
    port_in_use.policies = vec![policy("forbid (principal, action, resource);")];
    let extra = Inbound { listen: taken.local_addr().unwrap(), application: free(), protocol: Protocol::Http, permissive: false };
    port_in_use.inbound.push(extra);
    for (name, snapshot, said) in [
        ("policy", broken_policy, "policy.yaml:8"),
        ("workload", foreign, "shop/other"),
        ("listener", port_in_use, "cannot listen"),
    ] {
        control.send(control.whole(&snapshot, name));
        let reason = control.answer().await.expect_err(name);
        assert!(reason.contains(said), "{name}: {reason}");
        assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"), "{name}: no part of it is in force");
    }
    assert!(sidecar.admin("/metrics").await.contains("rondel_config_rejected_total 3"), "refusals are counted");
}

#[tokio::test]
async fn a_revocation_is_in_force_even_if_the_configuration_that_brings_it_is_refused() {
    let sidecar = Sidecar::start(application().await, Setup::default()).await;
    let control = &sidecar.control;
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let stolen = control.hostile.good(&id);
    let svid = identity::X509Svid::parse(&stolen.chain, &control.hostile.bundles(), pki::now()).unwrap();
    let call = async || {
        let client = LawlessClient::new().presenting(&stolen.chain, &stolen.key).alpn(&["http/1.1"]);
        let mut stream = client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
        stream.write_all(GET).await.unwrap();
        // A refusal of the certificate is an alert, which the client sees at its first read.
        read_all(&mut stream).await
    };
    assert!(call().await.starts_with("HTTP/1.1 200"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut refused = sidecar.snapshot.clone();
    refused.revision = Revision(2);
    refused.policies = vec![policy("forbid (principal, action, resource);")];
    refused.revoked = vec![RevokedSvid { serial: svid.serial().to_owned(), until: svid.not_after() }];
    let extra = Inbound { listen: taken.local_addr().unwrap(), application: free(), protocol: Protocol::Http, permissive: false };
    refused.inbound.push(extra);
    control.send(control.whole(&refused, "refused"));
    let reason = control.answer().await.expect_err("the port is taken");
    assert!(reason.contains("cannot listen"), "{reason}");
    assert_eq!(call().await, "", "a revoked certificate is served");
    sidecar.logged("peer_revoked").await;
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"), "no policy of it is in force");
    assert!(sidecar.admin("/metrics").await.contains("rondel_config_revision 1\n"));
}

#[tokio::test]
async fn no_policy_denies_everything() {
    let sidecar = Sidecar::start(application().await, Setup { policy: "", ..Setup::default() }).await;
    let answer = sidecar.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("not_permitted"), "{answer}");
}

#[tokio::test]
async fn a_restarted_sidecar_begins_with_its_last_good_configuration_and_no_private_key_is_on_disk() {
    let mut sidecar = Sidecar::start(application().await, Setup::default()).await;
    let state = sidecar.dir.path().join("state");
    let mut files = 0;
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"));
        // PKCS#8 of a P-256 key begins with this algorithm identifier followed by an OCTET STRING.
        assert!(!bytes.windows(7).any(|window| window == [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x04]), "{}", path.display());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        files += 1;
    }
    assert_eq!(files, 1, "only the snapshot");
    sidecar.restart();
    let deadline = Instant::now() + DEADLINE;
    while !sidecar.log().contains("began with the last good configuration") {
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
    sidecar.until_ready().await;
    assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_snapshot_on_disk_that_was_touched_is_not_used() {
    let mut sidecar = Sidecar::start(application().await, Setup::default()).await;
    let path = sidecar.dir.path().join("state/snapshot");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    sidecar.restart();
    let deadline = Instant::now() + DEADLINE;
    while !sidecar.log().contains("the configuration on disk is not used") {
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_short_lived_svid_is_renewed_again_and_again() {
    let sidecar = Sidecar::start(application().await, Setup { lifetime: Duration::from_secs(4), ..Setup::default() }).await;
    let rotations = |text: &str| -> u32 {
        text.lines().find_map(|line| line.strip_prefix("rondel_svid_rotations_total ")).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let deadline = Instant::now() + DEADLINE;
    while rotations(&sidecar.admin("/metrics").await) < 4 {
        assert!(sidecar.exchange(GET).await.starts_with("HTTP/1.1 200"));
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"));
    assert!(sidecar.pid() > 0);
}

#[tokio::test]
async fn a_connection_ends_at_its_maximum_age_and_not_within_a_request() {
    let age = Duration::from_secs(1);
    let sidecar = Sidecar::start(application().await, Setup { age, ..Setup::default() }).await;
    let began = Instant::now();
    let mut idle = sidecar.caller().await;
    let mut busy = sidecar.caller().await;
    busy.write_all(b"POST /busy HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe").await.unwrap();
    assert_eq!(crate::sidecar::read_all(&mut idle).await, "", "an idle connection is ended");
    assert!(began.elapsed() >= age, "not before its age: {:?}", began.elapsed());
    busy.write_all(b"llo").await.unwrap();
    let answer = crate::sidecar::read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("POST /busy"), "the request under way ends first: {answer}");
}
