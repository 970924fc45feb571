//! The SPIFFE Workload API of a sidecar, asked by others' software and by another sidecar.

use super::{Beside, Loopback, PEER_ID};
use crate::Shown;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A sidecar of `peer`; it ends when it is dropped.
pub(crate) struct Serving {
    pub(crate) _sidecar: Beside,
    pub(crate) admin: SocketAddr,
    pub(crate) dir: PathBuf,
    pub(crate) socket: PathBuf,
}

/// The sidecar of `peer`, started by hand with a Workload API socket, in this environment.
pub(crate) fn serving(loopback: &Loopback, name: &str, environment: &[(&str, &str)]) -> Result<Serving, String> {
    let dir = loopback.mesh.dir.path().join(name);
    let out = dir.join("join");
    let (code, said) = loopback.mesh.rondel(&["join-token", "shop/peer", "--out", &out.display().to_string()]);
    if code != 0 {
        return Err(format!("rondel join-token: {said}"));
    }
    let socket = dir.join("workload.sock");
    let admin = testkit::ports::free();
    let mut command = sidecar(loopback, "shop/peer", &dir, admin)?;
    command.envs(environment.iter().copied());
    command.arg("--join-token-file").arg(out.join("join-token")).arg("--trust-bundle").arg(out.join("bundle.pem"));
    command.arg("--workload-api").arg(&socket);
    // Its inbound port listens once it has an SVID and a configuration.
    let sidecar = Beside::start(&mut command, &dir.join("proxy.log"), loopback.peer)?;
    Ok(Serving { _sidecar: sidecar, admin, dir, socket })
}

/// A sidecar of a workload that `rondel up` does not run.
pub(crate) fn sidecar(loopback: &Loopback, workload: &str, dir: &Path, admin: SocketAddr) -> Result<Command, String> {
    let control = super::control(&loopback.mesh)?;
    let mut command = Command::new(crate::mesh::program("rondel-proxy"));
    command.args(["--workload", workload, "--control", &control.to_string(), "--workers", "1"]);
    command.args(["--admin", &admin.to_string()]).arg("--state").arg(dir.join("state"));
    Ok(command)
}

/// The Python package `spiffe` makes every call of the API.
pub(crate) fn python(loopback: &mut Loopback) -> Result<Shown, String> {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/interop/venv/bin/python");
    let has_package = Command::new(&python).args(["-c", "import spiffe"]).stderr(Stdio::null()).status();
    if !has_package.is_ok_and(|status| status.success()) {
        return Ok(Shown::Skipped("the Python package `spiffe` is not installed".into()));
    }
    let Serving { _sidecar, socket, .. } = serving(loopback, "peer-asked", &[])?;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop/workload_api.py");
    let mut command = Command::new("timeout");
    command.arg("60").arg(&python).arg(script).arg(&socket).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() || !said.contains(PEER_ID) {
        return Err(said);
    }
    Ok(Shown::Yes(format!("{} calls: X.509 and JWT, fetched, streamed and validated", said.lines().count())))
}

/// Another sidecar takes its identity from the socket instead of the control plane.
pub(crate) fn source(loopback: &mut Loopback) -> Result<Shown, String> {
    let Serving { _sidecar, socket, .. } = serving(loopback, "peer-serves", &[])?;
    let dir = loopback.mesh.dir.path().join("peer-source");
    std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let admin = testkit::ports::free();
    let mut command = sidecar(loopback, "shop/peer", &dir, admin)?;
    command.arg("--identity-socket").arg(&socket).arg("--trust-bundle").arg(&loopback.files.bundle);
    let _source = Beside::start(&mut command, &dir.join("proxy.log"), admin)?;
    let deadline = std::time::Instant::now() + super::DEADLINE;
    loop {
        let metrics = loopback.runtime.block_on(crate::http::get(admin, "/metrics")).map(|(_, text)| text).unwrap_or_default();
        let ends = metrics.lines().find_map(|line| line.strip_prefix("rondel_svid_expires_at_seconds "));
        if ends.is_some_and(|ends| ends.trim() != "0") {
            return Ok(Shown::Yes("a sidecar holds an SVID that came from a Workload API socket".into()));
        }
        if std::time::Instant::now() > deadline {
            return Err(format!("no SVID: {}", std::fs::read_to_string(dir.join("proxy.log")).unwrap_or_default()));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
