//! A mesh on loopback whose sidecars run under callgrind: the real `rondel up`, which takes the `rondel-proxy` that lies beside it.

use anyhow::{Context, bail, ensure};
use model::snapshot::JwtAlgorithm;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testkit::issuer::{Issuer, IssuerServer};
use testkit::pki;
use testkit::ports::free;
use tokio::time::{Instant, sleep};

const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const CLIENT: &str = "spiffe://shop.example/ns/shop/sa/client";

/// What the sidecars have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// One policy that permits the client; no token, no access log.
    Plain,
    /// An ES256 token with every call, twenty policies of which one reads the token's roles and one a header, and the access log.
    Everything,
}

/// The policy that reads a header.
const BY_HEADER: &str = r#"forbid (principal, action, resource) when { context.request.headers has "x-channel" && context.request.headers["x-channel"] == "blocked" };"#;

pub(crate) struct Mesh {
    dir: tempfile::TempDir,
    up: Child,
    /// What the application of `client` calls: HTTP, and opaque bytes.
    pub(crate) http: SocketAddr,
    pub(crate) tcp: SocketAddr,
    /// Headers of every request.
    pub(crate) headers: Vec<(&'static str, String)>,
    sidecars: Vec<(&'static str, u64)>,
    control: u64,
    _issuer: Option<IssuerServer>,
}

/// Why nothing can be counted on this machine; `None` if it can.
pub(crate) fn missing(proxy: &Path) -> Option<String> {
    for program in ["valgrind", "vgdb", "timeout"] {
        if Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Some(format!("`{program}` is not installed"));
        }
    }
    if !proxy.is_file() {
        return Some(format!("`{}` is not built", proxy.display()));
    }
    let own = programs().ok()?;
    let absent = ["rondel", "rondel-control"].into_iter().find(|name| !own.join(name).is_file());
    absent.map(|name| format!("`{name}` is not built; `make build` makes it"))
}

/// The folder of the programs that are not measured.
fn programs() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.parent().and_then(Path::parent).context("target directory")?.to_path_buf())
}

impl Mesh {
    /// Starts the mesh with its applications and the issuer of its tokens, and begins to count.
    pub(crate) async fn start(proxy: &Path, setup: Setup) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let applications = crate::lanes::Applications::start().await?;
        let (http, tcp) = (free(), free());
        let (mut more, mut headers, mut issuer) = (String::new(), Vec::new(), None);
        if setup == Setup::Everything {
            let keys = Issuer::generate(JwtAlgorithm::Es256, "guard-1");
            let server = keys.serve(std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            })?)?;
            let now = i64::try_from(pki::now().seconds())?;
            let claims =
                json!({ "iss": server.url(), "sub": "tina", "aud": "shop", "iat": now, "exp": now + 3600, "roles": ["teller"] });
            headers.push(("authorization", format!("Bearer {}", keys.mint(&claims))));
            headers.push(("x-channel", "web".to_owned()));
            more = format!(
                "---
apiVersion: rondel.dev/v1alpha1
kind: TokenIssuer
metadata: {{ name: guard }}
spec: {{ issuer: \"{0}\", jwksUri: \"{0}/jwks\", audiences: [shop], algorithms: [ES256], claims: {{ roles: roles }} }}
",
                server.url()
            );
            issuer = Some(server);
        }
        let mesh = dir.path().join("mesh");
        std::fs::create_dir(&mesh)?;
        std::fs::write(mesh.join("mesh.yaml"), mesh_yaml(setup, &applications, http, tcp) + &more)?;
        let up = up(dir.path(), proxy, setup)?;
        let mut mesh = Self { dir, up, http, tcp, headers, sidecars: Vec::new(), control: 0, _issuer: issuer };
        mesh.wait().await.map_err(|error| error.context(mesh.logs()))?;
        mesh.cut_off();
        for (_, pid) in &mesh.sidecars {
            crate::profile::tell(*pid, &["instrumentation", "on"])?;
        }
        Ok(mesh)
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let file = self.dir.path().join("mesh/.rondel/up.json");
        while !file.exists() {
            if let Some(status) = self.up.try_wait()? {
                bail!("`rondel up` ended with {status}");
            }
            ensure!(Instant::now() < deadline, "the mesh was not up within {} s", START_DEADLINE.as_secs());
            sleep(Duration::from_millis(50)).await;
        }
        let told: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
        for side in ["client", "server"] {
            let workloads = told.get("workloads").and_then(Value::as_array).context("up.json")?;
            let own = workloads.iter().find(|each| each.get("name").and_then(Value::as_str) == Some(&format!("shop/{side}")));
            let pid =
                own.and_then(|own| own.get("proxy_pid")).and_then(Value::as_u64).context("a sidecar's process id in up.json")?;
            self.sidecars.push((side, pid));
        }
        self.control =
            told.pointer("/control/pid").and_then(Value::as_u64).context("the control plane's process id in up.json")?;
        Ok(())
    }

    /// Takes the control plane away for good: a sidecar explains decisions to it when it finds time, some in each second, and that
    /// is no part of a request. `rondel up` is held so that it does not start another.
    fn cut_off(&self) {
        signal(u64::from(self.up.id()), Signal::STOP);
        signal(self.control, Signal::KILL);
    }

    /// Begins at nothing.
    pub(crate) fn zero(&self) -> anyhow::Result<()> {
        self.sidecars.iter().try_for_each(|(_, pid)| crate::profile::tell(*pid, &["zero"]))
    }

    /// What each sidecar has done since the last call of this or of [`Mesh::zero`].
    pub(crate) fn counts(&self) -> anyhow::Result<Vec<(&'static str, crate::profile::Counts)>> {
        let mut all = Vec::new();
        for (side, pid) in &self.sidecars {
            crate::profile::tell(*pid, &["dump"])?;
            let number = (1..).find(|number| !self.dump(*pid, number + 1).exists()).unwrap_or(1);
            all.push((*side, crate::profile::read(&self.dump(*pid, number))?));
        }
        Ok(all)
    }

    fn dump(&self, pid: u64, number: u32) -> PathBuf {
        self.dir.path().join(format!("callgrind.{pid}.{number}"))
    }

    /// The ends of the logs.
    pub(crate) fn logs(&self) -> String {
        let folder = std::fs::read_dir(self.dir.path().join("mesh/.rondel/logs"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let mut out = String::new();
        for path in folder.chain([self.dir.path().join("up.log")]) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(5).collect();
            out += &format!("--- {}\n", path.file_name().unwrap_or_default().to_string_lossy());
            out.extend(tail.into_iter().rev().map(|line| format!("{line}\n")));
        }
        out
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        signal(u64::from(self.up.id()), Signal::TERM);
        signal(u64::from(self.up.id()), Signal::CONT);
        let deadline = std::time::Instant::now() + STOP_DEADLINE;
        while matches!(self.up.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.up.kill();
        let _reaped = self.up.wait();
    }
}

fn signal(pid: u64, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Who has gone needs no signal.
        let _gone = kill_process(pid, signal);
    }
}

/// Starts `rondel up` from a folder of its own, where `rondel-proxy` is valgrind with the sidecar in it.
fn up(dir: &Path, proxy: &Path, setup: Setup) -> anyhow::Result<Child> {
    let bin = dir.join("bin");
    std::fs::create_dir(&bin)?;
    let own = programs()?;
    let rondel = bin.join("rondel");
    std::fs::hard_link(own.join("rondel"), &rondel).or_else(|_| std::fs::copy(own.join("rondel"), &rondel).map(|_| ()))?;
    script(&bin.join("rondel-control"), &format!("exec '{}' \"$@\"", own.join("rondel-control").display()))?;
    let options = "--tool=callgrind --instr-atstart=no --compress-strings=no --compress-pos=no --dump-line=no --vgdb-poll=500";
    let (out, log, proxy) = (dir.join("callgrind.%p"), dir.join("valgrind.%p.log"), proxy.canonicalize()?);
    let command = format!(
        "exec valgrind {options} --callgrind-out-file='{}' --log-file='{}' '{}' \"$@\"",
        out.display(),
        log.display(),
        proxy.display()
    );
    script(&bin.join("rondel-proxy"), &command)?;

    let log = std::fs::File::create(dir.join("up.log"))?;
    let mut command = Command::new(rondel);
    command.arg("up").arg(dir.join("mesh"));
    command.args(["--control-listen", &free().to_string(), "--control-admin", &free().to_string()]);
    command.env("RONDEL_WORKERS", "1").env("RONDEL_ACCESS_LOG", (setup == Setup::Everything).to_string());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("start `rondel up`")
}

fn script(path: &Path, line: &str) -> anyhow::Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{line}\n"))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

fn mesh_yaml(setup: Setup, applications: &crate::lanes::Applications, http: SocketAddr, tcp: SocketAddr) -> String {
    let (to_http, to_tcp) = (free(), free());
    let policies = match setup {
        Setup::Plain => vec![format!("@id(\"client\") permit (principal == Workload::\"{CLIENT}\", action, resource);")],
        Setup::Everything => {
            let teller = format!(
                "@id(\"teller\") permit (principal == Workload::\"{CLIENT}\", action, resource) \
                 when {{ context has user && context.user in Role::\"teller\" }};"
            );
            let other = |number| {
                format!(
                    "@id(\"other-{number}\") permit (principal == Workload::\"spiffe://shop.example/ns/shop/sa/other-{number}\", action, resource) \
                     when {{ context.request.path like \"/other-{number}/*\" }};"
                )
            };
            [teller, format!("@id(\"header\") {BY_HEADER}")].into_iter().chain((0..18).map(other)).collect()
        }
    };
    let policies: String = policies.iter().map(|policy| format!("    {policy}\n")).collect();
    format!(
        "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: {{ name: guard }}
spec:
  trustDomain: shop.example
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: {{ name: client, namespace: shop }}
spec:
  admin: \"{client_admin}\"
  upstreams:
    - {{ service: shop/server, port: {http_port}, listen: \"{http}\", protocol: http }}
    - {{ service: shop/server, port: {tcp_port}, listen: \"{tcp}\", protocol: tcp }}
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: {{ name: server, namespace: shop }}
spec:
  admin: \"{server_admin}\"
  inbound:
    - {{ listen: \"{to_http}\", application: \"{application}\", protocol: http }}
    - {{ listen: \"{to_tcp}\", application: \"{echo}\", protocol: tcp }}
---
apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: server, namespace: shop }}
spec:
  selector: {{ account: server }}
  policies: |
{policies}",
        client_admin = free(),
        server_admin = free(),
        http_port = to_http.port(),
        tcp_port = to_tcp.port(),
        application = applications.http,
        echo = applications.echo,
    )
}
