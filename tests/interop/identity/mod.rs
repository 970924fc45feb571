//! Others' software that holds an SVID of the mesh, against sidecars on loopback. Needs neither pods nor root.

pub(crate) mod envoy;
pub(crate) mod h2spec;
pub(crate) mod openssl;
pub(crate) mod skew;
pub(crate) mod spire;
pub(crate) mod workload;

use crate::mesh::{Mesh, Plan};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);
/// The SPIFFE ID of the other software, and of the sidecars.
pub(crate) const PEER_ID: &str = "spiffe://shop.example/ns/shop/sa/peer";
pub(crate) const CLIENT_ID: &str = "spiffe://shop.example/ns/shop/sa/client";
pub(crate) const SERVER_ID: &str = "spiffe://shop.example/ns/shop/sa/server";

const POLICY: &str = r#"@id("peer")
permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/peer", action, resource);
@id("partner")
permit (principal == Workload::"spiffe://partner.example/billing", action, resource);"#;

/// What `peer`'s sidecar enforces.
const PEER_POLICY: &str = r#"---
apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: peer, namespace: shop }
spec:
  selector: { account: peer }
  policies: |
    @id("client")
    permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action, resource);
"#;

/// What a mesh of a check is made with.
#[derive(Default)]
pub(crate) struct Made<'a> {
    /// Behind the SVIDs' lifetime in `certificates`.
    pub(crate) certificates: &'a str,
    /// Lines under MeshConfig's `spec`, indented by two.
    pub(crate) settings: &'a str,
    /// Of `rondel up`.
    pub(crate) environment: &'a [(String, String)],
}

/// An SVID as files: `svid.pem` (leaf first), `key.pem` (PKCS#8), `bundle.pem`.
pub(crate) struct Files {
    pub(crate) svid: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) bundle: PathBuf,
}

/// A mesh of `client` and `server` on loopback, with `peer` a workload that has no sidecar: other software plays it.
pub(crate) struct Loopback {
    pub(crate) mesh: Mesh,
    pub(crate) runtime: tokio::runtime::Runtime,
    /// Where the software that plays `peer` listens.
    pub(crate) peer: SocketAddr,
    /// Where the application of `client` calls `peer`.
    pub(crate) to_peer: SocketAddr,
    /// Where the application of `peer` calls `server`.
    pub(crate) from_peer: SocketAddr,
    pub(crate) files: Files,
    /// An SVID of another workload, `other`.
    pub(crate) other: Files,
}

impl Loopback {
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_as(&Made::default())
    }

    pub(crate) fn start_as(made: &Made<'_>) -> Result<Self, String> {
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        identity::install_provider();
        let Made { certificates, settings, environment } = made;
        let application = runtime.block_on(crate::http::serve());
        let lifetime = format!("1h{certificates}");
        let (policy, more) = (POLICY, String::new());
        let plan = Plan { protocol: "http", application, lifetime: &lifetime, policy, more, settings };
        let mesh = runtime.block_on(Mesh::start_in(&plan, environment));
        let [peer, to_peer, from_peer] = [(); 3].map(|()| testkit::ports::free());
        // `up` has started its sidecars: those that come now are workloads without one.
        let path = mesh.dir.path().join("mesh.yaml");
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let call = format!("upstreams: [ {{ service: shop/peer, listen: \"{to_peer}\", protocol: http }}, ");
        let workload = |name: &str, inbound: &str| {
            format!(
                "---\napiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: {name}, namespace: shop }}\n\
                 spec:\n  admin: {}\n{inbound}",
                testkit::ports::free()
            )
        };
        let spec = format!(
            "  inbound: [ {{ listen: \"{peer}\", application: \"{application}\", protocol: http }} ]\n\
             \x20 upstreams: [ {{ service: shop/server, listen: \"{from_peer}\", protocol: http }} ]\n"
        );
        let all = text.replace("upstreams: [ ", &call) + &workload("peer", &spec) + &workload("other", "") + PEER_POLICY;
        let fresh = mesh.dir.path().join(".mesh.yaml.new");
        std::fs::write(&fresh, all).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|error| error.to_string())?;
        runtime.block_on(mesh.until("every sidecar runs revision 2", |_| std::net::TcpStream::connect(to_peer).is_ok()));
        let files = issue_to_files(&mesh, &runtime, "shop/peer", &mesh.dir.path().join("peer"))?;
        let other = issue_to_files(&mesh, &runtime, "shop/other", &mesh.dir.path().join("other"))?;
        Ok(Self { mesh, runtime, peer, to_peer, from_peer, files, other })
    }

    pub(crate) fn inbound(&self) -> SocketAddr {
        self.mesh.workload("server").inbound
    }
}

/// Issues an SVID by a join token, as a sidecar gets its first one, and writes it as files into `out`.
pub(crate) fn issue_to_files(
    mesh: &Mesh,
    runtime: &tokio::runtime::Runtime,
    workload: &str,
    out: &Path,
) -> Result<Files, String> {
    let (code, said) = mesh.rondel(&["join-token", workload, "--out", &out.display().to_string()]);
    if code != 0 {
        return Err(format!("rondel join-token: {said}"));
    }
    let issued = runtime.block_on(scenarios::issue(control(mesh)?, workload, out));
    issued.map_err(|error| format!("an SVID for {workload}: {error:#}"))?;
    Ok(Files { svid: out.join("svid.pem"), key: out.join("key.pem"), bundle: out.join("bundle.pem") })
}

/// Where the mesh's control plane listens.
fn control(mesh: &Mesh) -> Result<SocketAddr, String> {
    let processes = mesh.processes();
    let found = processes["control"]["listen"].as_str();
    found.and_then(|text| text.parse().ok()).ok_or_else(|| format!("no address of the control plane: {processes}"))
}

/// A program that runs beside the mesh; it ends when it is dropped.
pub(crate) struct Beside(Child);

impl Beside {
    /// Starts it with its output in `log` and waits until it listens at `address`.
    pub(crate) fn start(command: &mut Command, log: &Path, address: SocketAddr) -> Result<Self, String> {
        Self::start_until(command, log, || std::net::TcpStream::connect(address).is_ok())
    }

    /// The same until this is so.
    pub(crate) fn start_until(command: &mut Command, log: &Path, is_up: impl Fn() -> bool) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|error| error.to_string())?;
        let output = file.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(output).stderr(file).spawn().map_err(|error| error.to_string())?;
        let mut beside = Self(child);
        let deadline = std::time::Instant::now() + DEADLINE;
        while !is_up() {
            let has_ended = beside.0.try_wait().is_ok_and(|ended| ended.is_some());
            if has_ended || std::time::Instant::now() > deadline {
                return Err(format!("it does not listen: {}", std::fs::read_to_string(log).unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(beside)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        crate::pods::end(&mut self.0);
    }
}
