//! A control plane as a process of its own, and the sidecars and operators that a test plays against it.

use hyper_util::rt::TokioIo;
use identity::bundle::TrustBundles;
use identity::credentials::Credentials;
use identity::csr;
use identity::handshake::{self, Alpn};
use identity::key::PrivateKey;
use model::{SpiffeId, TrustDomain, WorkloadName};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::pki;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use wire::client::{CallFailure, ControlClient, IssueCall, Issued};
use wire::operator::{MeshStatus, OperatorClient};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// The configuration that most tests begin with; SVIDs live as shortly as they may.
pub(crate) const MESH: &str = "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: test }
spec:
  trustDomain: shop.example
  certificates: { lifetime: 10s }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: server, namespace: shop }
spec:
  admin: 127.0.0.1:15002
  inbound: [ { listen: \"127.0.0.1:15102\", application: \"127.0.0.1:18102\", protocol: http } ]
";

/// A second workload, in a file of its own.
pub(crate) const CLIENT: &str = "apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop }
spec:
  admin: 127.0.0.1:15001
  upstreams: [ { service: shop/server, listen: \"127.0.0.1:15201\", protocol: http } ]
";

/// The process and its directories. Dropped, it is killed.
pub(crate) struct Plane {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    environment: Vec<(String, String)>,
    child: Child,
}

impl Drop for Plane {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Plane {
    /// Starts one with the configuration of both workloads and waits until it answers its operator.
    pub(crate) async fn start() -> Self {
        Self::start_with(MESH).await
    }

    /// The same with another `mesh.yaml`.
    pub(crate) async fn start_with(mesh: &str) -> Self {
        Self::start_in(mesh, &[]).await
    }

    /// The same in this environment.
    pub(crate) async fn start_in(mesh: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mesh")).unwrap();
        std::fs::write(dir.path().join("mesh/mesh.yaml"), mesh).unwrap();
        std::fs::write(dir.path().join("mesh/client.yaml"), CLIENT).unwrap();
        let (listen, admin) = (testkit::ports::free(), testkit::ports::free());
        let mut command = command(&dir.path().join("mesh"), &dir.path().join("state"), listen, admin);
        let child = command.envs(environment.iter().copied()).spawn().unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut plane = Self { dir, listen, admin, environment, child };
        plane.until_ready().await;
        plane
    }

    /// Kills it as a crash would, and starts it on the same directories.
    pub(crate) async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut command = command(&self.config(""), &self.state(), self.listen, self.admin);
        self.child = command.envs(self.environment.iter().map(|(name, value)| (name, value))).spawn().unwrap();
        self.until_ready().await;
    }

    /// The same, and it may write no file larger than so many blocks of 512 bytes: it is told so, as on a full disk.
    pub(crate) async fn restart_limited(&mut self, blocks: u64) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let plain = command(&self.config(""), &self.state(), self.listen, self.admin);
        let log = std::fs::OpenOptions::new().append(true).open(self.dir.path().join("control.log")).unwrap();
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$@\"")).arg("sh").arg(plain.get_program());
        limited.args(plain.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = limited.spawn().unwrap();
        self.until_ready().await;
    }

    /// There is room again.
    pub(crate) fn unlimit(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        rustix::process::prlimit(pid, rustix::process::Resource::Fsize, unlimited).unwrap();
    }

    async fn until_ready(&mut self) {
        let begun = Instant::now();
        while self.operator().await.is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            assert!(begun.elapsed() < Duration::from_secs(20), "not ready: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn config(&self, file: &str) -> PathBuf {
        self.dir.path().join("mesh").join(file)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("control.log")).unwrap_or_default()
    }

    pub(crate) async fn operator(&self) -> Result<OperatorClient, CallFailure> {
        OperatorClient::connect(&self.state().join("operator.sock"), DEADLINE).await
    }

    pub(crate) async fn join_token(&self, workload: &str) -> String {
        let name = WorkloadName::parse(workload).unwrap();
        self.operator().await.unwrap().create_join_token(&name, DEADLINE).await.unwrap().token
    }

    /// The first status that `wanted` likes.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&MeshStatus) -> bool) -> MeshStatus {
        let begun = Instant::now();
        loop {
            let status = self.operator().await.unwrap().status(DEADLINE).await.unwrap();
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {status:?}\n{}", self.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn bundles(&self) -> Arc<TrustBundles> {
        let pem = std::fs::read_to_string(self.state().join("bundle.pem")).unwrap();
        Arc::new(TrustBundles::from_pem(&pem).unwrap())
    }

    /// A channel of a caller that has no SVID.
    pub(crate) async fn anonymous(&self) -> Channel {
        let stream = TcpStream::connect(self.listen).await.unwrap();
        let (stream, _) = handshake::connect_without_identity(stream, &self.bundles(), &control_plane(), DEADLINE).await.unwrap();
        channel(stream).await
    }

    /// A channel of whoever holds these credentials.
    pub(crate) async fn proven(&self, credentials: &Credentials) -> Channel {
        let stream = TcpStream::connect(self.listen).await.unwrap();
        let expected = [control_plane()];
        let (stream, _, _) = handshake::connect(stream, credentials, &expected, &[Alpn::Http2], DEADLINE).await.unwrap();
        channel(stream).await
    }

    /// The credentials of a workload that joins now.
    pub(crate) async fn joined(&self, workload: &str) -> Credentials {
        let token = self.join_token(workload).await;
        let (key, request) = asked(workload.rsplit('/').next().unwrap());
        let issued =
            ControlClient::new(self.anonymous().await).issue(call(workload, request, Some(token)), DEADLINE).await.unwrap();
        credentials(&key, issued)
    }
}

/// The program as a supervisor would start it, its log beside the state.
pub(crate) fn command(config: &std::path::Path, state: &std::path::Path, listen: SocketAddr, admin: SocketAddr) -> Command {
    let log = state.with_file_name("control.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondel-control"));
    command.args(["--config".as_ref(), config.as_os_str(), "--state".as_ref(), state.as_os_str()]);
    command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

pub(crate) fn control_plane() -> SpiffeId {
    TrustDomain::parse("shop.example").unwrap().control_plane()
}

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://shop.example/ns/shop/sa/{account}")).unwrap()
}

/// A new key and the request for it, in this account's name.
pub(crate) fn asked(account: &str) -> (PrivateKey, Vec<u8>) {
    let key = PrivateKey::generate().unwrap();
    let request = csr::build(&key, &id(account)).unwrap();
    (key, request)
}

/// An issue call as a sidecar makes it.
pub(crate) fn call(workload: &str, csr: Vec<u8>, join_token: Option<String>) -> IssueCall {
    IssueCall { csr, join_token, workload: workload.to_owned(), ..IssueCall::default() }
}

/// What the key and the answer make together, checked as any peer would.
pub(crate) fn credentials(key: &PrivateKey, issued: Issued) -> Credentials {
    let bundles = Arc::new(TrustBundles::from_model(&issued.bundles).unwrap());
    Credentials::build(key, issued.chain, bundles, pki::now()).unwrap()
}

async fn channel<S>(stream: S) -> Channel
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let taken = once.take().ok_or_else(|| std::io::Error::other("used up"));
        async move { taken }
    });
    Endpoint::from_static("http://control.test").connect_with_connector(connector).await.unwrap()
}
