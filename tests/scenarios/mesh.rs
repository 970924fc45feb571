//! A whole mesh for one test: real `rondel up`, real control plane, real sidecars, in a directory and on ports of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testkit::ports::free;
use tokio::time::{Instant, sleep};

/// How long a mesh may take to be ready on a slow machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long an expected change may take.
pub(crate) const CHANGE_DEADLINE: Duration = Duration::from_secs(20);

/// The namespace of every test mesh.
pub(crate) const NAMESPACE: &str = "shop";

/// One running mesh. Everything ends when it is dropped.
pub(crate) struct Mesh {
    pub(crate) dir: tempfile::TempDir,
    up: Child,
    pub(crate) workloads: Vec<Workload>,
    environment: Vec<(String, String)>,
}

/// One workload of a test mesh. The test itself plays its application.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) admin: SocketAddr,
    /// Where its sidecar listens for peers.
    pub(crate) inbound: SocketAddr,
    /// Local ports by upstream.
    pub(crate) upstreams: Vec<(&'static str, SocketAddr)>,
}

/// What to build a mesh from.
pub(crate) struct Plan<'a> {
    pub(crate) protocol: &'static str,
    /// The test's server, behind the workload `server`.
    pub(crate) application: SocketAddr,
    /// Certificate lifetime in YAML's form.
    pub(crate) lifetime: &'a str,
    /// Cedar text of the policy of `server`.
    pub(crate) policy: &'static str,
    /// More YAML documents, each with its leading `---`.
    pub(crate) more: String,
    /// Lines under MeshConfig's `spec`, indented by two.
    pub(crate) settings: &'a str,
}

/// The directory of the programs under test.
pub(crate) fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    test.parent().and_then(Path::parent).expect("target directory").to_path_buf()
}

pub(crate) fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.exists(), "`{name}` is not built; run `make build` first");
    path
}

impl Mesh {
    /// Starts `client` -> `server`, waits until both are ready.
    pub(crate) async fn start(plan: &Plan<'_>) -> Self {
        Self::start_in(plan, &[]).await
    }

    /// The same in this environment.
    pub(crate) async fn start_in(plan: &Plan<'_>, environment: &[(String, String)]) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let client = Workload { name: "client", admin: free(), inbound: free(), upstreams: vec![("server", free())] };
        let server = Workload { name: "server", admin: free(), inbound: free(), upstreams: Vec::new() };
        std::fs::write(dir.path().join("mesh.yaml"), mesh_yaml(plan, &client, &server)).expect("write");
        std::fs::write(dir.path().join("policy.yaml"), policy_yaml(plan.policy)).expect("write");
        let mut mesh =
            Self { up: up(dir.path(), environment), dir, workloads: vec![client, server], environment: environment.to_vec() };
        mesh.ready().await;
        mesh
    }

    /// Waits until every sidecar says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        for workload in self.workloads.clone() {
            loop {
                if let Ok((200, _)) = crate::http::get(workload.admin, "/ready").await {
                    break;
                }
                if let Ok(Some(status)) = self.up.try_wait() {
                    panic!("`rondel up` ended with {status}\n{}", self.logs());
                }
                assert!(Instant::now() < deadline, "`{}` did not become ready\n{}", workload.name, self.logs());
                sleep(Duration::from_millis(50)).await;
            }
        }
        // The last thing that `up` does before it watches.
        while !self.state().join("up.json").exists() {
            assert!(Instant::now() < deadline, "no up.json\n{}", self.logs());
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn workload(&self, name: &str) -> &Workload {
        self.workloads.iter().find(|workload| workload.name == name).expect("workload")
    }

    /// Where the application of `client` reaches `server`.
    pub(crate) fn to_server(&self) -> SocketAddr {
        self.workload("client").upstreams.iter().find(|(name, _)| *name == "server").expect("upstream").1
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join(".rondel")
    }

    /// Runs the CLI against this mesh; returns exit code and standard output.
    pub(crate) fn rondel(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(program("rondel"));
        command.args(arguments).env("RONDEL_STATE", self.state()).stdin(Stdio::null());
        let output = command.output().expect("run rondel");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The control plane's view.
    pub(crate) fn status(&self) -> serde_json::Value {
        let (code, text) = self.rondel(&["status", "--output", "json"]);
        assert_eq!(code, 0, "rondel status: {text}");
        serde_json::from_str(&text).expect("status as JSON")
    }

    /// What `up` wrote of its processes.
    pub(crate) fn processes(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.state().join("up.json")).expect("up.json");
        serde_json::from_str(&text).expect("up.json as JSON")
    }

    /// Waits until `seen` is true of the status.
    pub(crate) async fn until(&self, what: &str, seen: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        loop {
            let (code, text) = self.rondel(&["status", "--output", "json"]);
            if code == 0
                && let Ok(status) = serde_json::from_str(&text)
                && seen(&status)
            {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: not seen in time; last status: {text}\n{}", self.logs());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The access log of one sidecar, parsed.
    pub(crate) fn access_log(&self, workload: &str) -> Vec<serde_json::Value> {
        let path = self.state().join("logs").join(format!("{workload}-proxy.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &serde_json::Value| line["decision"].is_string())
            .collect()
    }

    /// Starts `rondel up` again on the same directory.
    pub(crate) fn start_again(&mut self) {
        self.up = up(self.dir.path(), &self.environment);
    }

    /// Asks `rondel up` to end and waits for it.
    pub(crate) async fn stop(&mut self) -> std::process::ExitStatus {
        signal(self.up.id(), rustix::process::Signal::TERM);
        let deadline = Instant::now() + CHANGE_DEADLINE;
        loop {
            if let Ok(Some(status)) = self.up.try_wait() {
                return status;
            }
            assert!(Instant::now() < deadline, "`rondel up` did not end\n{}", self.logs());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn logs(&self) -> String {
        let mut out = String::new();
        let mut paths = vec![self.dir.path().join("up.log")];
        paths.extend(std::fs::read_dir(self.state().join("logs")).into_iter().flatten().flatten().map(|entry| entry.path()));
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(15).collect();
            out.push_str(&format!("--- {}\n", path.file_name().unwrap_or_default().to_string_lossy()));
            out.extend(tail.into_iter().rev().map(|line| format!("{line}\n")));
        }
        out
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        signal(self.up.id(), rustix::process::Signal::TERM);
        let deadline = std::time::Instant::now() + Duration::from_secs(15);
        while matches!(self.up.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait otherwise")]
            std::thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.up.kill();
        let _reaped = self.up.wait();
    }
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

fn up(dir: &Path, environment: &[(String, String)]) -> Child {
    let log = std::fs::File::create(dir.join("up.log")).expect("log");
    let mut command = Command::new(program("rondel"));
    command
        .arg("up")
        .arg(dir)
        .arg("--control-listen")
        .arg(free().to_string())
        .arg("--control-admin")
        .arg(free().to_string())
        .arg("--output")
        .arg("json");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
    command.spawn().expect("start rondel up")
}

fn mesh_yaml(plan: &Plan<'_>, client: &Workload, server: &Workload) -> String {
    let Plan { protocol, application, lifetime, more, settings, .. } = plan;
    format!(
        "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: {{ name: test }}
spec:
  trustDomain: shop.example
  certificates: {{ lifetime: {lifetime} }}
{settings}
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: {{ name: client, namespace: {NAMESPACE} }}
spec:
  admin: {client_admin}
  upstreams: [ {{ service: {NAMESPACE}/server, listen: \"{to_server}\", protocol: {protocol} }} ]
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: {{ name: server, namespace: {NAMESPACE} }}
spec:
  admin: {server_admin}
  inbound: [ {{ listen: \"{inbound}\", application: \"{application}\", protocol: {protocol} }} ]
{more}",
        client_admin = client.admin,
        server_admin = server.admin,
        to_server = client.upstreams[0].1,
        inbound = server.inbound,
    )
}

/// The policy resource of `server`; the Cedar text begins at line 8.
pub(crate) fn policy_yaml(cedar: &str) -> String {
    let text: String = cedar.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: server, namespace: {NAMESPACE} }}
spec:
  selector: {{ account: server }}
  body: {{ amount: Long }}
  policies: |
{text}"
    )
}
