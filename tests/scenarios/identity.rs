//! Identity for life: certificates and authorities change, and nobody notices; what is revoked is noticed at once.

use crate::http::{call, serve};
use crate::mesh::{CHANGE_DEADLINE, Mesh, NAMESPACE, Plan, Workload, signal};
use ::http::{Request, Version};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use testkit::ports::free;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use wire::workload::X509svidRequest;
use wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;

const ALLOW_MESH: &str = r#"@id("mesh")
permit (principal, action, resource);"#;
/// For a whole rotation: the SVID of a sidecar that is away must end first.
const ROTATION_DEADLINE: Duration = Duration::from_secs(90);

pub(crate) fn plan(application: SocketAddr, settings: &str, more: String) -> Plan<'_> {
    Plan { protocol: "http", application, lifetime: "10s", policy: ALLOW_MESH, more, settings }
}

/// A third workload, which calls `server` too.
pub(crate) fn third() -> (Workload, String) {
    let third = Workload { name: "third", admin: free(), inbound: free(), upstreams: vec![("server", free())] };
    let more = format!(
        "---\napiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: third, namespace: {NAMESPACE} }}\nspec:\n  \
         admin: {}\n  upstreams: [ {{ service: {NAMESPACE}/server, listen: \"{}\", protocol: http }} ]\n",
        third.admin, third.upstreams[0].1
    );
    (third, more)
}

/// Calls without a pause until it is told to stop; counts what was answered with 200, and notes the first that was not.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match call(to, Version::HTTP_11, Request::get("/"), "").await {
                    Ok(answer) if answer.status == 200 => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    other => failed.push(format!("{other:?}")),
                }
                sleep(Duration::from_millis(10)).await;
            }
            failed
        });
        Self { stop, answered, task }
    }

    pub(crate) async fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        (self.answered.load(Ordering::Relaxed), self.task.await.unwrap())
    }
}

impl Mesh {
    pub(crate) fn authorities(&self) -> Option<serde_json::Value> {
        let (code, text) = self.rondel(&["ca", "status", "--output", "json"]);
        (code == 0).then(|| serde_json::from_str(&text).expect("JSON"))
    }

    /// Waits until `seen` is true of the authorities.
    pub(crate) async fn until_authorities(&self, what: &str, seen: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + ROTATION_DEADLINE;
        loop {
            let now = self.authorities();
            if let Some(now) = now.as_ref().filter(|now| seen(now)) {
                return now.clone();
            }
            assert!(Instant::now() < deadline, "{what}: not seen in time; last: {now:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn control_pid(&self) -> u32 {
        u32::try_from(self.processes()["control"]["pid"].as_u64().unwrap_or(0)).unwrap()
    }

    fn proxy_pid(&self, workload: &str) -> u32 {
        let processes = self.processes();
        let found = processes["workloads"].as_array().unwrap().iter().find(|each| each["name"] == workload);
        u32::try_from(found.unwrap()["proxy_pid"].as_u64().unwrap()).unwrap()
    }

    /// Kills the control plane as a crash would; `up` starts it again.
    async fn kill_control(&self) {
        let before = self.control_pid();
        signal(before, Signal::KILL);
        let deadline = Instant::now() + CHANGE_DEADLINE;
        while self.control_pid() == before || self.authorities().is_none() {
            assert!(Instant::now() < deadline, "the control plane did not come back");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) fn stage(status: &serde_json::Value, wanted: &str) -> Option<String> {
    let all = status["authorities"].as_array()?;
    Some(all.iter().find(|each| each["state"] == wanted)?["id"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_rotation_drops_no_request_whatever_is_killed_or_away_meanwhile() {
    let (third, more) = third();
    // `up` lets a control plane that was killed rest for 3 s: half of an SVID's life outlasts that, also on a slow machine.
    let mut mesh = Mesh::start(&Plan { lifetime: "20s", ..plan(serve().await, "", more) }).await;
    mesh.workloads.push(third.clone());
    mesh.ready().await;
    let load = Load::start(mesh.to_server());

    let before = mesh.status();
    let (code, text) = mesh.rondel(&["ca", "rotate", "--rehearse", "--output", "json"]);
    let rehearsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &rehearsed["good"]), (0, &true.into()), "{text}");
    let shaken: usize =
        rehearsed["proxies"].as_array().unwrap().iter().map(|each| each["handshakes"].as_array().unwrap().len()).sum();
    assert_eq!((rehearsed["issued"].as_u64(), shaken), (Some(3), 4), "two callers, two moments: {text}");
    assert_eq!(mesh.status()["revision"], before["revision"], "a rehearsal changes nothing");

    let first = stage(&mesh.authorities().unwrap(), "active").unwrap();
    let mut active = first.clone();
    for (round, killed_at) in ["prepared", "old", "tainted"].into_iter().enumerate() {
        // A sidecar that is frozen is cut off and asleep at once.
        let away = mesh.proxy_pid("shop/third");
        signal(away, Signal::STOP);
        let (code, text) = mesh.rondel(&["ca", "rotate", "--no-wait", "--output", "json"]);
        assert_eq!(code, 0, "{text}");
        let held = mesh.until_authorities("it is held up", |now| !now["held_up_by"].as_array().unwrap().is_empty()).await;
        let third_holds =
            |now: &serde_json::Value| now["held_up_by"].as_array().unwrap().iter().any(|each| each["who"] == "shop/third");
        if !third_holds(&held) {
            mesh.until_authorities("whoever is away is named", third_holds).await;
        }
        mesh.until_authorities(killed_at, |now| stage(now, killed_at).is_some() || now["next_step"].is_null()).await;
        mesh.kill_control().await;
        let done = mesh.until_authorities("the rotation ends", |now| now["next_step"].is_null()).await;
        let next = stage(&done, "active").unwrap();
        assert_ne!(next, active, "round {round}");
        assert_eq!(done["authorities"].as_array().unwrap().len(), 1, "the old one is gone: {done}");
        active = next;

        signal(away, Signal::CONT);
        let deadline = Instant::now() + ROTATION_DEADLINE;
        while call(third.upstreams[0].1, Version::HTTP_11, Request::get("/"), "").await.map(|answer| answer.status) != Ok(200) {
            assert!(Instant::now() < deadline, "round {round}: whoever was away does not come back");
            sleep(Duration::from_millis(200)).await;
        }
    }
    // SVIDs change all the time beside it.
    let deadline = Instant::now() + Duration::from_secs(150);
    let rotations = || async {
        let metrics = crate::http::get(mesh.workload("client").admin, "/metrics").await.unwrap().1;
        let line = metrics.lines().find(|line| line.starts_with("rondel_svid_rotations_total")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    while rotations().await < 20 {
        assert!(Instant::now() < deadline, "SVIDs are not renewed");
        sleep(Duration::from_millis(500)).await;
    }
    let (answered, failed) = load.stop().await;
    assert!(failed.is_empty(), "{} of {answered} failed, first {:?}", failed.len(), failed.first());
    assert!(answered > 1000, "{answered}");
    println!("three authority rotations and 20 SVID rotations: {answered} requests, none failed");
    let (code, text) = mesh.rondel(&["certs", "--output", "json"]);
    let certs: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(
        code == 0 && certs["workloads"].as_array().unwrap().iter().all(|each| each["authority"] == active.as_str()),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_svid_gets_no_connection_and_loses_those_it_has() {
    let mesh = Mesh::start(&Plan { lifetime: "1h", ..plan(serve().await, "", String::new()) }).await;
    let mut stream = TcpStream::connect(mesh.to_server()).await.unwrap();
    stream.write_all(b"PUT /echo HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("abc") {
        let mut buffer = [0; 1024];
        let count = timeout(CHANGE_DEADLINE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    // With certificates that live longer than any rehearsal.
    let (code, text) = mesh.rondel(&["ca", "rotate", "--rehearse", "--output", "json"]);
    assert_eq!(code, 0, "{text}");
    let serial = mesh.status()["workloads"][0]["serial"].as_str().unwrap().to_owned();
    let begun = Instant::now();
    let (code, text) = mesh.rondel(&["identity", "revoke", &serial, "--reason", "the laptop was stolen", "--output", "json"]);
    assert_eq!(code, 0, "{text}");
    // The stream that was open ends, and not by its own end.
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the open stream goes on");
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"), "it looks whole: {}", String::from_utf8_lossy(&rest));
    println!("an open stream of a revoked SVID ended after {} ms", begun.elapsed().as_millis());

    // It is told whose it was, and stays in force over a crash of the control plane.
    mesh.kill_control().await;
    let status = mesh.authorities().unwrap();
    assert_eq!(
        (&status["revoked"][0]["serial"], &status["revoked"][0]["reason"]),
        (&serial.clone().into(), &"the laptop was stolen".into())
    );
    // The workload itself attests anew, and has another.
    let renewed = mesh
        .until("another SVID", |now| now["workloads"][0]["serial"] != serial.as_str() && now["workloads"][0]["connected"] == true)
        .await;
    assert_ne!(renewed["workloads"][0]["serial"], serial.as_str());
    let deadline = Instant::now() + CHANGE_DEADLINE;
    while call(mesh.to_server(), Version::HTTP_11, Request::get("/"), "").await.map(|answer| answer.status) != Ok(200) {
        assert!(Instant::now() < deadline, "the workload does not come back");
        sleep(Duration::from_millis(100)).await;
    }
    let inbound = mesh.access_log("server");
    assert!(inbound.iter().any(|line| line["reason"] == "peer_revoked"), "{inbound:?}");
    for nothing in ["spiffe://shop.example/ns/shop/sa/nobody", "0badcafe", "nonsense", "spiffe://other.example/x"] {
        assert_eq!(mesh.rondel(&["identity", "revoke", nothing]).0, 1, "{nothing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_has_ended_is_replaced_by_one_command() {
    let mut mesh = Mesh::start(&Plan { lifetime: "10s, authorityLifetime: 20s", ..plan(serve().await, "", String::new()) }).await;
    // As long as somebody is there it replaces itself.
    let first = stage(&mesh.authorities().unwrap(), "active").unwrap();
    mesh.until_authorities("another one by itself", |now| stage(now, "active").is_some_and(|active| active != first)).await;
    assert!(mesh.stop().await.success());
    sleep(Duration::from_secs(22)).await;
    mesh.start_again();
    let ended = mesh.until_authorities("the operator is answered", |now| stage(now, "active").is_some()).await;
    let ended = stage(&ended, "active").unwrap();
    let (code, text) = mesh.rondel(&["ca", "rotate"]);
    assert_eq!(code, 0, "{text}");
    mesh.ready().await;
    let answer = call(mesh.to_server(), Version::HTTP_11, Request::get("/"), "").await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(mesh.authorities().is_some_and(|now| stage(&now, "active").is_some_and(|active| active != ended)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_of_up_finds_the_workload_api_of_its_sidecar_and_is_known_by_what_it_gets() {
    let told = tempfile::tempdir().unwrap();
    let file = told.path().join("socket");
    let (_, more) = third();
    let script = format!("printf %s \\\"$SPIFFE_ENDPOINT_SOCKET\\\" > {}; exec sleep 600", file.display());
    let more = format!("{more}  run: {{ command: [sh, -c, \"{script}\"] }}\n");
    let mesh = Mesh::start(&Plan { lifetime: "1h", ..plan(serve().await, "", more) }).await;
    let deadline = Instant::now() + CHANGE_DEADLINE;
    let address = loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if !text.is_empty() {
            break text;
        }
        assert!(Instant::now() < deadline, "the application does not start");
        sleep(Duration::from_millis(50)).await;
    };
    let socket = Path::new(address.strip_prefix("unix:").expect("SPIFFE Workload Endpoint §4"));
    let channel = wire::workload::connect(socket, CHANGE_DEADLINE).await.unwrap();
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let mut stream = client.fetch_x509svid(wire::workload::request(X509svidRequest {})).await.unwrap().into_inner();
    let first = timeout(CHANGE_DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.svids[0].spiffe_id, "spiffe://shop.example/ns/shop/sa/third");
    mesh.until("it is counted", |now| now["workloads"].as_array().is_some_and(|all| all.len() == 3)).await;
    let (_, certs) = mesh.rondel(&["certs", "--output", "json"]);
    assert!(certs.contains("\"application_svids\": 1"), "{certs}");
}
