//! One sidecar process under test, with the application that it fronts, and clients that speak mutual TLS to it.

use crate::control::{Control, JOIN_TOKEN};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use model::snapshot::{AuthorizationPolicy, Egress, Inbound, Protocol, Snapshot, TokenIssuer};
use model::token::TokenUse;
use model::{Limit, Limits, Revision, ServiceName, SpiffeId, WorkloadName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::LawlessClient;
pub(crate) use testkit::ports::free;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) type Tls = identity::ClientStream<TcpStream>;

pub(crate) struct Sidecar {
    pub(crate) control: Arc<Control>,
    pub(crate) inbound: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) snapshot: Snapshot,
    pub(crate) dir: tempfile::TempDir,
    arguments: Vec<String>,
    /// Keys of what was sent last.
    sent: BTreeSet<String>,
    process: Child,
}

pub(crate) fn policy(text: &str) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: "shop/server".into(),
        file: "policy.yaml".into(),
        line: 8,
        text: text.into(),
        body: BTreeMap::from([("amount".into(), model::authz::AttributeType::Long)]),
    }
}

pub(crate) const ALLOW_ALL: &str = "@id(\"all\") permit (principal, action, resource);";

/// What differs from the usual test.
pub(crate) struct Setup {
    pub(crate) protocol: Protocol,
    pub(crate) policy: &'static str,
    pub(crate) issuers: Vec<TokenIssuer>,
    pub(crate) token: TokenUse,
    pub(crate) limits: &'static [(Limit, u64)],
    pub(crate) lifetime: Duration,
    pub(crate) age: Duration,
    pub(crate) permissive: bool,
    pub(crate) post_quantum_required: bool,
    /// More of the command line; `{dir}` is the directory of this sidecar.
    pub(crate) arguments: Vec<String>,
    /// What stands in the file of the join token.
    pub(crate) join_token: &'static str,
    /// The control plane, where another sidecar's must be of the same mesh.
    pub(crate) control: Option<Arc<Control>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http,
            policy: ALLOW_ALL,
            issuers: Vec::new(),
            token: TokenUse::default(),
            limits: &[],
            lifetime: Duration::from_secs(3600),
            age: Duration::from_secs(1800),
            permissive: false,
            post_quantum_required: false,
            arguments: Vec::new(),
            join_token: JOIN_TOKEN,
            control: None,
        }
    }
}

impl Sidecar {
    /// Starts a sidecar that fronts `application` and waits until it is ready.
    pub(crate) async fn start(application: SocketAddr, setup: Setup) -> Self {
        let sidecar = Self::launch(application, setup).await;
        sidecar.until_ready().await;
        assert_eq!(sidecar.control.answer().await, Ok("first".to_owned()));
        sidecar
    }

    /// As [`start`](Self::start), without waiting.
    pub(crate) async fn launch(application: SocketAddr, setup: Setup) -> Self {
        let control = match setup.control {
            Some(control) => control,
            None => Control::start(setup.lifetime).await,
        };
        let mut limits = Limits::default();
        for (limit, value) in setup.limits {
            limits.set(*limit, *value).unwrap();
        }
        let inbound = free();
        let snapshot = Snapshot {
            revision: Revision(1),
            workload: WorkloadName::parse("shop/server").unwrap(),
            identity: SpiffeId::parse("spiffe://shop.example/ns/shop/sa/server").unwrap(),
            service: ServiceName::parse("shop/server").unwrap(),
            bundles: vec![control.bundle()],
            inbound: vec![Inbound { listen: inbound, application, protocol: setup.protocol, permissive: setup.permissive }],
            upstreams: Vec::new(),
            issuers: setup.issuers,
            token: setup.token,
            policies: vec![policy(setup.policy)],
            roles: model::Roles::default(),
            shadow: Vec::new(),
            sensitive: model::snapshot::Sensitive::default(),
            country: None,
            country_database: None,
            forwarders: Vec::new(),
            captured: false,
            egress: Egress::Allow,
            connection_age_max: setup.age,
            limits,
            revoked: Vec::new(),
            revoked_tokens: Vec::new(),
            post_quantum_required: setup.post_quantum_required,
        };
        control.send(control.whole(&snapshot, "first"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("join-token"), setup.join_token).unwrap();
        std::fs::write(dir.path().join("bundle.pem"), control.bundle_pem()).unwrap();
        let admin = free();
        let place = dir.path().display().to_string();
        let arguments: Vec<String> = setup.arguments.iter().map(|argument| argument.replace("{dir}", &place)).collect();
        let process = spawn(&dir, &control, admin, &arguments);
        let sent = wire::convert::resources(&snapshot).into_keys().collect();
        Self { control, inbound, admin, snapshot, dir, arguments, sent, process }
    }

    /// Ends the process at once and starts another in the same directory.
    pub(crate) fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(&self.dir, &self.control, self.admin, &self.arguments);
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn until_ended(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts another policy in force.
    pub(crate) async fn enforce(&mut self, text: &str) {
        self.snapshot.policies = vec![policy(text)];
        self.publish().await;
    }

    /// Puts the snapshot as it stands in force.
    pub(crate) async fn publish(&mut self) {
        self.snapshot.revision = Revision(self.snapshot.revision.0 + 1);
        let nonce = format!("revision-{}", self.snapshot.revision.0);
        let mut update = self.control.whole(&self.snapshot, &nonce);
        let before = std::mem::replace(&mut self.sent, wire::convert::resources(&self.snapshot).into_keys().collect());
        update.removed = before.difference(&self.sent).cloned().collect();
        self.control.send(update);
        assert_eq!(self.control.answer().await, Ok(nonce));
    }

    /// A gauge or counter of the process, 0 where it does not stand.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(0)
    }

    /// Resident memory, in KiB (proc(5)).
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) async fn until_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.admin("/ready").await.starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "not ready: {}\n{}", self.admin("/ready").await, self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One GET at the admin port; empty if it does not answer.
    pub(crate) async fn admin(&self, path: &str) -> String {
        self.admin_request("GET", path).await
    }

    /// One POST at the admin port.
    pub(crate) async fn admin_post(&self, path: &str) -> String {
        self.admin_request("POST", path).await
    }

    async fn admin_request(&self, method: &str, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin).await else { return String::new() };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ended = timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// A mutual TLS connection of a good caller.
    pub(crate) async fn caller(&self) -> Tls {
        let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
        let presented = self.control.hostile.good(&id);
        let client = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
        let stream = TcpStream::connect(self.inbound).await.unwrap();
        // Else the first request waits for the sidecar's delayed acknowledgement of the handshake's end.
        stream.set_nodelay(true).unwrap();
        client.connect(stream).await.unwrap()
    }

    /// Sends bytes on a fresh connection and reads until the sidecar closes it.
    pub(crate) async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.caller().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        read_all(&mut stream).await
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits for a line of the access log with this reason and returns it.
    pub(crate) async fn logged(&self, reason: &str) -> serde_json::Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log = self.log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            if let Some(line) = lines.rfind(|line| line["reason"] == reason) {
                return line;
            }
            assert!(Instant::now() < deadline, "no `{reason}` in\n{log}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn spawn(dir: &tempfile::TempDir, control: &Control, admin: SocketAddr, arguments: &[String]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).unwrap();
    // With as few descriptors as a login shell or a service has until it asks for more.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 1024; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_rondel-proxy")]);
    command.args(["--workload", "shop/server", "--control", &control.address.to_string()]);
    if !arguments.iter().any(|argument| argument == "--workers") {
        command.args(["--workers", "1"]);
    }
    if !arguments.iter().any(|argument| argument == "--identity-socket") {
        command.arg("--join-token-file").arg(dir.path().join("join-token"));
    }
    command.arg("--trust-bundle").arg(dir.path().join("bundle.pem"));
    command.arg("--state").arg(dir.path().join("state")).args(["--admin", &admin.to_string()]);
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

pub(crate) async fn read_all(stream: &mut Tls) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end too.
    let _ended = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("the sidecar closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An application that answers every request with 200 and the head that it received, and closes no connection.
pub(crate) async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let Ok(count) = stream.read(&mut buffer).await else { return };
                    if count == 0 {
                        return;
                    }
                    seen.extend_from_slice(&buffer[..count]);
                    while let Some(end) = whole(&seen) {
                        let head = String::from_utf8_lossy(&seen[..end]).into_owned();
                        seen.drain(..end);
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// An application that speaks HTTP/2 and gives each request to `serve`.
pub(crate) async fn application_of_http2<F>(
    serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Copy + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, answer))) = connection.accept().await {
                    tokio::spawn(serve(request, answer));
                }
            });
        }
    });
    address
}

/// The length of the first whole message with a Content-Length or no body.
fn whole(seen: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(seen);
    let head = text.find("\r\n\r\n")? + 4;
    let length = text[..head].to_ascii_lowercase();
    if length.contains("transfer-encoding: chunked") {
        // The last chunk, whatever trailers follow it, and the empty line.
        let last = head + text[head..].find("0\r\n")?;
        return text[last..].find("\r\n\r\n").map(|end| last + end + 4);
    }
    let length = length
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    (seen.len() >= head + length).then_some(head + length)
}
