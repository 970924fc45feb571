//! What the mesh promises.

use crate::http::{call, serve};
use crate::mesh::{CHANGE_DEADLINE, Mesh, NAMESPACE, Plan, policy_yaml, signal};
use ::http::{Request, Version};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

const ALLOW_CLIENT: &str = r#"@id("client")
permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action, resource);"#;

fn plan(application: SocketAddr) -> Plan<'static> {
    Plan { protocol: "http", application, lifetime: "1h", policy: ALLOW_CLIENT, more: String::new(), settings: "" }
}

fn edit_policy(mesh: &Mesh, cedar: &str) {
    // A new file moved over the old one, as editors do.
    let path = mesh.dir.path().join("policy.yaml");
    let fresh = mesh.dir.path().join(".policy.yaml.new");
    std::fs::write(&fresh, policy_yaml(cedar)).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_crosses_two_sidecars_with_both_identities_verified() {
    let mut mesh = Mesh::start(&plan(serve().await)).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let answer = call(mesh.to_server(), version, Request::post("/a/../b?q=1"), "hello").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.version, version);
        let seen = answer.json();
        assert_eq!(seen["path"], "/b?q=1");
        assert_eq!(seen["body"], "hello");
        assert_eq!(seen["version"], format!("{version:?}"), "the caller's version is kept from end to end");
        let header = |name: &str| {
            let pairs = seen["headers"].as_array().unwrap();
            pairs.iter().find(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned()).unwrap_or_default()
        };
        assert_eq!(header("x-rondel-principal"), "spiffe://shop.example/ns/shop/sa/client");
        assert!(header("x-forwarded-client-cert").contains("URI=spiffe://shop.example/ns/shop/sa/client"));
        assert!(answer.header("x-rondel-decision").starts_with("d-"));
        if version == Version::HTTP_2 {
            assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
        }
    }
    // Lines are written some 20 ms after what they tell of.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let inbound = mesh.access_log("server");
    assert!(inbound.iter().any(|line| line["principal"] == "spiffe://shop.example/ns/shop/sa/client"
        && line["key_exchange"] == "X25519MLKEM768"
        && line["status"] == 200));
    let pids = all_pids(&mesh);
    assert!(mesh.stop().await.success());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} was left behind");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_is_not_called_up_without_a_word_of_the_application_that_cannot_run() {
    let more = format!(
        "---\napiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: broken, namespace: {NAMESPACE} }}\n\
         spec:\n  admin: {}\n  run: {{ command: [\"false\"] }}\n",
        testkit::ports::free()
    );
    let mesh = Mesh::start(&Plan { more, ..plan(serve().await) }).await;
    let deadline = Instant::now() + CHANGE_DEADLINE;
    let said = loop {
        let said = std::fs::read_to_string(mesh.dir.path().join("up.log")).unwrap();
        if said.contains("the mesh is up") {
            break said;
        }
        assert!(Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(said.contains("the mesh is up: 3 workloads, but `broken` ended"), "{said}");
}

fn all_pids(mesh: &Mesh) -> Vec<u64> {
    fn collect(value: &serde_json::Value, found: &mut Vec<u64>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    if key.contains("pid")
                        && let Some(pid) = value.as_u64()
                    {
                        found.push(pid);
                    }
                    collect(value, found);
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&mesh.processes(), &mut found);
    assert!(found.len() >= 3, "up.json names {} processes", found.len());
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_streams_both_ways_at_once_and_is_never_held_back() {
    let mesh = Mesh::start(&plan(serve().await)).await;
    let mut stream = TcpStream::connect(mesh.to_server()).await.unwrap();
    stream.write_all(b"PUT /echo HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    for round in 0..20 {
        let word = format!("round-{round:03};");
        stream.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
        // The word comes back before the next is sent: nothing on the way waits for the end of the body.
        let arrived = async {
            while !String::from_utf8_lossy(&seen).contains(&word) {
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "closed after {}", String::from_utf8_lossy(&seen));
                seen.extend_from_slice(&buffer[..count]);
            }
        };
        timeout(Duration::from_secs(5), arrived).await.unwrap_or_else(|_| panic!("round {round} did not come back"));
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_megabytes_passes_whole_in_both_versions() {
    let mesh = Mesh::start(&plan(serve().await)).await;
    let body = "0123456789abcdef".repeat(256 * 1024);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let answer = call(mesh.to_server(), version, Request::put("/echo"), &body).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body == body, "{version:?}: {} of {} bytes", answer.body.len(), body.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_tcp_is_carried_with_half_close_and_ends_when_the_policy_changes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A server that speaks first, then answers when the client's side has ended.
                stream.write_all(b"welcome\n").await.unwrap();
                let mut asked = Vec::new();
                stream.read_to_end(&mut asked).await.unwrap();
                asked.reverse();
                stream.write_all(&asked).await.unwrap();
            });
        }
    });
    let policy = r#"@id("connect")
permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action == Action::"connect", resource);"#;
    let mesh = Mesh::start(&Plan { protocol: "tcp", policy, ..plan(application) }).await;

    let mut stream = TcpStream::connect(mesh.to_server()).await.unwrap();
    let mut welcome = [0; 8];
    timeout(Duration::from_secs(5), stream.read_exact(&mut welcome)).await.expect("the server speaks first").unwrap();
    assert_eq!(&welcome, b"welcome\n");
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("answer after half-close").unwrap();
    assert_eq!(answer, b"cba");

    let mut open = TcpStream::connect(mesh.to_server()).await.unwrap();
    timeout(Duration::from_secs(5), open.read_exact(&mut welcome)).await.unwrap().unwrap();
    edit_policy(&mesh, &policy.replace("sa/client", "sa/nobody"));
    let mut rest = Vec::new();
    let ended =
        timeout(CHANGE_DEADLINE, open.read_to_end(&mut rest)).await.expect("an open connection that is no longer permitted ends");
    drop(ended);
    let mut denied = TcpStream::connect(mesh.to_server()).await.unwrap();
    let count = timeout(Duration::from_secs(5), denied.read(&mut welcome)).await.expect("closed").unwrap_or(0);
    assert_eq!(count, 0, "a connection that is not permitted carries nothing");
}

/// Calls again and again; counts answers and failures.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize, version: Version) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicU64::new(0));
        let client = |_| {
            let (stop, good) = (Arc::clone(&stop), Arc::clone(&good));
            tokio::spawn(async move {
                let mut bad = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match call(address, version, Request::get("/load"), "").await {
                        Ok(answer) if answer.status == 200 => {
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        other => bad.push(format!("{other:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                bad
            })
        };
        Self { tasks: (0..clients).map(client).collect(), stop, good }
    }

    async fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut bad = Vec::new();
        for task in self.tasks {
            bad.extend(task.await.unwrap());
        }
        (self.good.load(Ordering::Relaxed), bad)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn svid_rotation_under_load_drops_no_request() {
    let mesh = Mesh::start(&Plan { lifetime: "10s", ..plan(serve().await) }).await;
    let serials = |status: &serde_json::Value| {
        let list = status["workloads"].as_array().unwrap().iter();
        list.map(|workload| workload["serial"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let load = [Load::start(mesh.to_server(), 3, Version::HTTP_11), Load::start(mesh.to_server(), 2, Version::HTTP_2)];
    for _rotation in 0..3 {
        let before = serials(&mesh.status());
        mesh.until("both sidecars rotated", |status| serials(status).iter().zip(&before).all(|(now, then)| now != then)).await;
    }
    for load in load {
        let (good, bad) = load.end().await;
        assert!(bad.is_empty(), "{} of {good} failed: {:?}", bad.len(), bad.first());
        assert!(good > 100, "only {good} requests were made");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_control_plane_stops_no_traffic_and_comes_back_with_the_same_trust_root() {
    let mesh = Mesh::start(&plan(serve().await)).await;
    let bundle = || std::fs::read(mesh.state().join("control/bundle.pem")).unwrap();
    let before = bundle();
    let pid = mesh.processes()["control"]["pid"].as_u64().unwrap();
    let load = Load::start(mesh.to_server(), 3, Version::HTTP_11);
    signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
    tokio::time::sleep(Duration::from_secs(2)).await;
    mesh.until("the control plane is back and both sidecars are connected", |status| {
        status["workloads"].as_array().is_some_and(|list| list.len() == 2 && list.iter().all(|each| each["connected"] == true))
    })
    .await;
    let (good, bad) = load.end().await;
    assert!(bad.is_empty(), "{} of {good} failed: {:?}", bad.len(), bad.first());
    assert!(before == bundle(), "the trust root changed");
    // What is changed after the restart arrives.
    edit_policy(&mesh, "");
    until_status(&mesh, 403).await;
}

async fn until_status(mesh: &Mesh, wanted: u16) {
    let deadline = Instant::now() + CHANGE_DEADLINE;
    loop {
        let answer = call(mesh.to_server(), Version::HTTP_11, Request::get("/"), "").await.unwrap();
        if answer.status == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_policy_is_in_force_and_a_broken_one_changes_nothing() {
    let mesh = Mesh::start(&plan(serve().await)).await;
    until_status(&mesh, 200).await;
    let may = || mesh.rondel(&["authz", "can", "--as", "shop/client", "GET", "/"]);
    let (code, text) = may();
    assert!(code == 0 && text.starts_with("ALLOW") && text.contains("in force, revision"), "{text}");
    edit_policy(&mesh, r#"@id("nobody") forbid (principal, action, resource);"#);
    until_status(&mesh, 403).await;
    let (code, text) = may();
    assert!(code == 1 && text.starts_with("DENY (denied_by_policy)") && text.contains("shop/server/nobody"), "{text}");
    let (code, text) = mesh.rondel(&["authz", "schema", "shop/server"]);
    assert!(code == 0 && text.contains("entity User in [Role]"), "{text}");
    edit_policy(&mesh, ALLOW_CLIENT);
    until_status(&mesh, 200).await;

    edit_policy(&mesh, "@id(\"broken\")\npermit (principal, action, resource) when { context.request.pth == \"/\" };");
    let status = mesh.until("the error is told", |status| status["errors"].as_array().is_some_and(|list| !list.is_empty())).await;
    let error = &status["errors"][0];
    assert_eq!(error["file"], "policy.yaml");
    assert_eq!(error["line"], 9, "{error}");
    assert!(error["message"].as_str().unwrap().contains("pth"), "{error}");
    until_status(&mesh, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_countries_is_asked_and_rondel_status_tells_when_it_cannot_be_read() {
    let policy = r#"@id("home") permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action, resource)
when { context.source has country && context.source.country == "DE" };"#;
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("country.mmdb");
    let put = |bytes: &[u8]| {
        std::fs::write(files.path().join("fresh"), bytes).unwrap();
        std::fs::rename(files.path().join("fresh"), &path).unwrap();
    };
    let networks = vec![("192.0.2.0/24", testkit::countries::country("DE"))];
    let whole = testkit::countries::Database { networks, ..Default::default() }.to_bytes();
    put(&whole);
    let settings = format!("  country: {{ database: {} }}\n  forwarders: [shop/client]\n", path.display());
    let mesh = Mesh::start(&Plan { policy, settings: &settings, ..plan(serve().await) }).await;
    let from = async |address: &str| {
        let request = Request::get("/").header("x-forwarded-for", address);
        call(mesh.to_server(), Version::HTTP_11, request, "").await.unwrap().status
    };
    assert_eq!((from("192.0.2.9").await, from("198.51.100.9").await), (200, 403));
    assert_eq!(mesh.rondel(&["status"]).0, 0);

    let troubles = |status: &serde_json::Value| status["troubles"].as_array().map_or(0, Vec::len);
    put(b"a download that failed");
    let status = mesh.until("the trouble is told", |status| troubles(status) == 1).await;
    let told = status["troubles"][0]["message"].as_str().unwrap();
    assert!(told.starts_with("shop/server: the database of countries") && told.contains("stays in use"), "{told}");
    let (code, text) = mesh.rondel(&["status"]);
    assert!(code == 1 && text.contains("TROUBLE") && text.contains("country.mmdb"), "{text}");
    assert_eq!(from("192.0.2.9").await, 200, "the one read before stays in use");

    put(&whole);
    mesh.until("the trouble is over", |status| troubles(status) == 0).await;
    assert_eq!(mesh.rondel(&["status"]).0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_explained_with_its_nearest_miss() {
    let policy = r#"@id("small")
permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action == Action::"POST", resource)
when { context.request has body && context.request.body.amount <= 100 };"#;
    let mesh = Mesh::start(&Plan { policy, ..plan(serve().await) }).await;
    let post = |amount: u32| {
        let request = Request::post("/pay").header("content-type", "application/json");
        let address = mesh.to_server();
        async move { call(address, Version::HTTP_11, request, &format!("{{\"amount\": {amount}}}")).await.unwrap() }
    };
    assert_eq!(post(100).await.status, 200);
    let denied = post(101).await;
    assert_eq!(denied.status, 403);
    assert_eq!(denied.header("x-rondel-reason"), "not_permitted");
    assert_eq!(denied.header("content-type"), "application/problem+json");
    let id = denied.header("x-rondel-decision").to_owned();
    // The id is made of chance, and may hold any number.
    let said = denied.body.replace(&id, "");
    assert!(!said.contains("small") && !said.contains("100"), "a client learns no rule: {}", denied.body);
    let deadline = Instant::now() + CHANGE_DEADLINE;
    let text = loop {
        let (code, text) = mesh.rondel(&["authz", "explain", &id]);
        if code == 0 {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for expected in [&format!("{NAMESPACE}/server/small"), "policy.yaml:8", "101 <= 100", "would be allowed"] {
        assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_in_shadow_mode_denies_nobody_and_is_reported() {
    let policy = r#"@id("all") permit (principal, action, resource);
@mode("shadow") @id("no-reads") forbid (principal, action in Action::"read", resource);
@mode("shadow") @id("quiet") forbid (principal, action == Action::"DELETE", resource);"#;
    let mesh = Mesh::start(&Plan { policy, ..plan(serve().await) }).await;
    for _ in 0..3 {
        assert_eq!(call(mesh.to_server(), Version::HTTP_11, Request::get("/"), "").await.unwrap().status, 200);
    }
    let workload = format!("{NAMESPACE}/server");
    let deadline = Instant::now() + CHANGE_DEADLINE;
    let report = loop {
        let (code, text) = mesh.rondel(&["authz", "shadow", "--workload", &workload, "--since", "1h", "--output", "json"]);
        let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if code == 0 && told[0]["tallies"][0]["counts"][0]["count"].as_u64() >= Some(3) {
            break told[0].clone();
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&report["workload"], &report["tried"]), (&workload.clone().into(), &report["tallies"][0]["counts"][0]["count"]));
    let [reads, quiet] = [&report["tallies"][0], &report["tallies"][1]];
    assert_eq!(reads["policy"], format!("{workload}/no-reads"), "{report:#}");
    assert_eq!((&reads["kind"], &reads["counts"][0]["would"]), (&"forbid".into(), &"would_deny".into()));
    assert_eq!((&quiet["policy"], quiet["counts"].as_array().map(Vec::len)), (&format!("{workload}/quiet").into(), Some(0)));
    let id = reads["counts"][0]["examples"][0].as_str().expect("an example").to_owned();
    let (code, text) = mesh.rondel(&["authz", "explain", &id]);
    assert!(code == 0 && text.contains(&format!("would be denied by {workload}/no-reads")), "{text}");
    let (_, text) = mesh.rondel(&["authz", "shadow"]);
    assert!(text.contains(" calls tried") && text.contains("changes nothing") && text.contains("would_deny "), "{text}");
    assert_ne!(mesh.rondel(&["authz", "shadow", "--workload", "shop/nobody"]).0, 0, "a workload that is not configured");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_open_requests_end() {
    let mesh = Mesh::start(&plan(serve().await)).await;
    let mut stream = TcpStream::connect(mesh.to_server()).await.unwrap();
    stream.write_all(b"PUT /echo HTTP/1.1\r\nhost: server\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    let mut seen = vec![0; 2048];
    let mut length = 0;
    while !seen[..length].ends_with(b"abc") {
        let count = timeout(Duration::from_secs(5), stream.read(&mut seen[length..])).await.expect("first half").unwrap();
        assert!(count > 0);
        length += count;
    }
    let processes = mesh.processes();
    let proxy = processes["workloads"].as_array().unwrap().iter().find(|each| each["name"] == "shop/server").unwrap();
    signal(u32::try_from(proxy["proxy_pid"].as_u64().unwrap()).unwrap(), rustix::process::Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.write_all(b"def").await.unwrap();
    let mut rest = Vec::new();
    let mut buffer = [0; 64];
    while !rest.ends_with(b"def") {
        let count = timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("second half after SIGTERM").unwrap();
        assert!(count > 0, "the request was cut off");
        rest.extend_from_slice(&buffer[..count]);
    }
}
