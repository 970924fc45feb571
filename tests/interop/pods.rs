//! A mesh of pods for these tests: `rondel up --pods` in a network namespace of its own, with the applications in its pods.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// For the mesh to be up.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// For one command in a pod.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(40);
/// For a mesh to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Where the tests' own outsider stands, and the two addresses of the server's pod.
pub(crate) const OUTSIDE: &str = "10.77.0.1";
pub(crate) const SERVER: &str = "10.77.1.2";
pub(crate) const SERVER_V6: &str = "fd77::12";
pub(crate) const CLIENT_ID: &str = "spiffe://shop.example/ns/shop/sa/client";

/// A running mesh; everything of it ends when it is dropped.
pub(crate) struct Pods {
    pub(crate) dir: tempfile::TempDir,
    namespace: &'static str,
    network: String,
    up: Child,
    applications: Vec<Child>,
}

/// Why this machine cannot run pods; `None` if it can.
pub(crate) fn missing() -> Option<String> {
    for program in ["ip", "nft", "nsenter", "timeout"] {
        if which(program).is_none() {
            return Some(format!("`{program}` is not installed"));
        }
    }
    let probe = format!("rondel-probe-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &probe]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        return Some("network namespaces cannot be made here (root is needed)".to_owned());
    }
    let _gone = Command::new("ip").args(["netns", "del", &probe]).status();
    None
}

/// Where a program is, on the PATH or where servers are kept.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/lib/postgresql/15/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The folder of this test's programs and libraries.
pub(crate) fn target() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    test.parent().and_then(Path::parent).expect("target directory").to_path_buf()
}

pub(crate) fn apps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/apps")
}

impl Pods {
    /// Starts a mesh of this configuration and waits until it is up.
    pub(crate) fn start(mesh: &str) -> Result<Self, String> {
        Self::start_with("shop", |folder| std::fs::write(folder.join("mesh.yaml"), mesh))
    }

    /// Starts a mesh whose configuration `write` puts into a folder, and waits until it is up.
    pub(crate) fn start_with(namespace: &'static str, write: impl Fn(&Path) -> std::io::Result<()>) -> Result<Self, String> {
        let dir = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
        let dir = dir.map_err(|error| error.to_string())?;
        std::fs::create_dir(dir.path().join("mesh")).expect("folder");
        write(&dir.path().join("mesh")).map_err(|error| format!("the mesh's configuration: {error}"))?;
        let network = format!("rondel-test-{namespace}-{}", std::process::id());
        ip(&["netns", "add", &network])?;
        ip(&["-n", &network, "link", "set", "lo", "up"])?;
        let log = File::create(dir.path().join("up.log")).expect("log");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{network}")).arg(target().join("rondel")).arg("up").arg(dir.path().join("mesh"));
        // Every sidecar of the mesh answers for these, if somebody asks.
        command.env("RONDEL_PROBES", "grpc://:50051,grpc://:50051/sick,grpc://:50051/absent");
        command.arg("--pods").stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let up = command.spawn().map_err(|error| error.to_string())?;
        let mut pods = Self { dir, namespace, network, up, applications: Vec::new() };
        pods.wait_for("the mesh is up", START_DEADLINE, |pods| pods.log("up.log").contains("the mesh is up"))?;
        Ok(pods)
    }

    /// Waits until something is so.
    pub(crate) fn wait_for(&mut self, what: &str, limit: Duration, is_so: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        while !is_so(self) {
            if Instant::now() > deadline || self.up.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(format!("not so within {} s: {what}\n{}", limit.as_secs(), self.log("up.log")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A file below the test's folder, empty if it is not there.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// The access log of a workload's sidecar. Lines are written some 20 ms after what they tell of.
    pub(crate) fn access_log(&self, workload: &str) -> String {
        let until = Instant::now() + Duration::from_millis(500);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        self.log(&format!("mesh/.rondel/logs/{workload}-proxy.log"))
    }

    /// What `up` tells of a workload.
    fn told(&self, workload: &str) -> Option<serde_json::Value> {
        let up: serde_json::Value = serde_json::from_str(&self.log("mesh/.rondel/up.json")).ok()?;
        let name = format!("{}/{workload}", self.namespace);
        up["workloads"].as_array()?.iter().find(|each| each["name"] == name).cloned()
    }

    /// The process of a workload's sidecar.
    pub(crate) fn sidecar_pid(&self, workload: &str) -> Result<String, String> {
        let told = self.told(workload).ok_or_else(|| format!("`up` tells of no {workload}"))?;
        Ok(told["proxy_pid"].to_string())
    }

    /// Resident memory of a workload's sidecar, in KiB (proc(5)).
    pub(crate) fn resident_kib(&self, workload: &str) -> Result<u64, String> {
        let path = format!("/proc/{}/status", self.sidecar_pid(workload)?);
        let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        line.ok_or_else(|| format!("{path} tells of no memory"))
    }

    /// The pod of a workload, as `ip netns` knows it; the outsider's network for any other name.
    fn network(&self, pod: &str) -> String {
        let told = self.told(pod).and_then(|workload| workload["namespace"].as_str().map(str::to_owned));
        told.unwrap_or_else(|| self.network.clone())
    }

    /// A command in a pod.
    pub(crate) fn command(&self, pod: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.network(pod)));
        command.args(["timeout", &COMMAND_DEADLINE.as_secs().to_string()]).arg(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command in a pod to its end; its output, or everything it said if it failed.
    pub(crate) fn run(&self, pod: &str, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(pod, program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
        said(program, &output)
    }

    /// Starts an application in a pod and waits until it listens there.
    pub(crate) fn serve(&mut self, program: &Path, arguments: &[&str], port: u16) -> Result<(), String> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::create(self.dir.path().join(format!("{name}-{port}.log"))).expect("log");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.network("server"))).arg(program).args(arguments);
        command.env("NODE_PATH", target().join("../interop/node_modules")).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        self.applications.push(command.spawn().map_err(|error| format!("{name}: {error}"))?);
        let pattern = format!(":{port}");
        self.wait_for(&format!("{name} listens at {port}"), Duration::from_secs(20), |pods| {
            let listed = pods.run("server", "ss", &["-Hltn"]).unwrap_or_default();
            listed.lines().any(|line| line.split_whitespace().nth(3).is_some_and(|address| address.ends_with(&pattern)))
        })
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for child in &mut self.applications {
            end(child);
        }
        if let Some(pid) = i32::try_from(self.up.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.up.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.up.kill();
        let _reaped = self.up.wait();
        let _gone = ip(&["netns", "del", &self.network]);
    }
}

/// Asks a process to end, which lets it end its own children, and ends it if it does not.
pub(crate) fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _gone = child.kill();
    let _reaped = child.wait();
}

fn said(program: &str, output: &Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{program} ended with {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    said("ip", &output).map(drop)
}
