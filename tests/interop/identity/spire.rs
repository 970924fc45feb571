//! SPIRE: its agent as a sidecar's identity source, and its server as the federation peer of a mesh.

use super::openssl::{called, holds, openssl};
use super::workload::{self, Serving};
use super::{Beside, Files, Loopback, Made, PEER_ID};
use crate::Shown;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PARTNER_ID: &str = "spiffe://partner.example/billing";
/// An agent asks its server for entries every five seconds, and a mesh asks for a bundle again after a quarter of a minute.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server and an agent of one trust domain; they end when it is dropped.
struct Spire {
    dir: PathBuf,
    _server: Beside,
    _agent: Beside,
    /// The Workload API of the agent.
    socket: PathBuf,
    agent_id: String,
}

fn program(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/interop/spire").join(name)
}

/// What this machine lacks.
fn missing() -> Option<Shown> {
    let lacks_spire = !program("spire-server").exists() || !program("spire-agent").exists();
    let what = if lacks_spire { "SPIRE is not built: tests/interop/spire.sh" } else { "`openssl` is not installed" };
    (lacks_spire || crate::pods::which("openssl").is_none()).then(|| Shown::Skipped(what.into()))
}

/// What one of SPIRE's programs prints when it is told something at a socket.
fn told(name: &str, what: &[&str], socket: &Path, more: &[&str]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.arg("30").arg(program(name)).args(what).arg("-socketPath").arg(socket).args(more);
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

/// Tries until it succeeds.
fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) if Instant::now() > deadline => return Err(format!("{what}: {failure}")),
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

impl Spire {
    /// Starts both. `server` and `plugins` are added to the server's configuration.
    fn start(dir: &Path, trust_domain: &str, server: &str, plugins: &str) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        let (port, at) = (testkit::ports::free(), dir.display());
        let common = format!("log_level = \"INFO\"\n  trust_domain = \"{trust_domain}\"");
        let memory = "KeyManager \"memory\" { plugin_data {} }\n  NodeAttestor \"join_token\" { plugin_data {} }";
        let config = format!(
            "server {{\n  {common}\n  bind_address = \"127.0.0.1\"\n  bind_port = \"{}\"\n  socket_path = \"{at}/server.sock\"\n  \
             data_dir = \"{at}/server\"\n  ca_key_type = \"ec-p256\"\n  ca_ttl = \"24h\"\n  default_x509_svid_ttl = \"30s\"\n{server}}}\n\
             plugins {{\n  {memory}\n  DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" \
             connection_string = \"{at}/server.sqlite3\" }} }}\n{plugins}}}\n",
            port.port()
        );
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).map_err(|error| error.to_string());
        write("server.conf", &config)?;
        let mut command = Command::new(program("spire-server"));
        command.arg("run").arg("-config").arg(dir.join("server.conf")).env("SSL_CERT_FILE", dir.join("../web-root.pem"));
        let started = Beside::start(&mut command, &dir.join("server.log"), port)?;

        let api = dir.join("server.sock");
        let asked = |what: &[&str], more: &[&str]| told("spire-server", what, &api, more);
        until("SPIRE's server answers", || asked(&["healthcheck"], &[]))?;
        write("bundle.pem", &asked(&["bundle", "show"], &[])?)?;
        let said = asked(&["token", "generate"], &["-output", "json"])?;
        let token: serde_json::Value = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        let token = token["value"].as_str().ok_or(said.clone())?;
        let config = format!(
            "agent {{\n  {common}\n  data_dir = \"{at}/agent\"\n  server_address = \"127.0.0.1\"\n  server_port = \"{}\"\n  \
             socket_path = \"{at}/agent.sock\"\n  trust_bundle_path = \"{at}/bundle.pem\"\n  \
             workload_x509_svid_key_type = \"ec-p256\"\n}}\n\
             plugins {{\n  {memory}\n  WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n}}\n",
            port.port()
        );
        write("agent.conf", &config)?;
        let mut command = Command::new(program("spire-agent"));
        command.arg("run").arg("-config").arg(dir.join("agent.conf")).arg("-joinToken").arg(token);
        let socket = dir.join("agent.sock");
        let agent = Beside::start_until(&mut command, &dir.join("agent.log"), || socket.exists())?;
        let agent_id = format!("spiffe://{trust_domain}/spire/agent/join_token/{token}");
        Ok(Self { dir: dir.to_owned(), _server: started, _agent: agent, socket, agent_id })
    }

    fn server(&self, what: &[&str], more: &[&str]) -> Result<String, String> {
        told("spire-server", what, &self.dir.join("server.sock"), more)
    }

    /// Every process of this user is this workload.
    fn register(&self, id: &str, more: &[&str]) -> Result<(), String> {
        let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
        let entry = ["-parentID", &self.agent_id, "-spiffeID", id, "-selector", &selector];
        self.server(&["entry", "create"], &[&entry[..], more].concat()).map(drop)
    }
}

/// An operator's root, as files.
fn operators_root(dir: &Path) -> Result<(PathBuf, PathBuf), String> {
    let (certificate, key) = (dir.join("root.pem"), dir.join("root.key"));
    let (out, secret) = (certificate.display().to_string(), key.display().to_string());
    let new =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=root"];
    let more = ["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", &out, "-keyout", &secret];
    match openssl(&[&new[..], &more].concat(), "")? {
        (true, _) => Ok((certificate, key)),
        (false, said) => Err(said),
    }
}

fn number(loopback: &Loopback, admin: SocketAddr, metric: &str) -> u64 {
    let metrics = loopback.runtime.block_on(crate::http::get(admin, "/metrics")).map(|(_, text)| text).unwrap_or_default();
    let found = metrics.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
    found.unwrap_or_default()
}

/// A mesh and a SPIRE under one root: a sidecar whose SVIDs are SPIRE's calls and is called, through a rotation of them.
pub(crate) fn source() -> Result<Shown, String> {
    if let Some(missing) = missing() {
        return Ok(missing);
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (certificate, key) = operators_root(dir.path())?;
    let (certificate, key) = (certificate.display(), key.display());
    let certificates = format!(", upstream: {{ files: {{ certificate: {certificate}, key: {key} }} }}");
    let loopback = Loopback::start_as(&Made { certificates: &certificates, ..Made::default() })?;
    let disk = format!(
        "  UpstreamAuthority \"disk\" {{ plugin_data {{ cert_file_path = \"{certificate}\" key_file_path = \"{key}\" }} }}\n"
    );
    let spire = Spire::start(&dir.path().join("spire"), "shop.example", "", &disk)?;
    spire.register(PEER_ID, &[])?;

    let (home, admin) = (loopback.mesh.dir.path().join("peer-spire"), testkit::ports::free());
    std::fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let mut command = workload::sidecar(&loopback, "shop/peer", &home, admin)?;
    command.arg("--identity-socket").arg(&spire.socket).arg("--trust-bundle").arg(&loopback.files.bundle);
    let log = home.join("proxy.log");
    let _sidecar = Beside::start(&mut command, &log, admin)?;
    let told = |failure: String| format!("{failure}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
    let call = |address| match loopback.runtime.block_on(crate::http::get(address, "/who")) {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    };
    let begun = Instant::now();
    let mut calls = 0;
    until("SPIRE's SVID serves in both directions", || {
        let body = call(loopback.from_peer)?;
        holds("what the server is told", &body, &[PEER_ID])?;
        holds("what the peer is told", &call(loopback.to_peer)?, &[super::CLIENT_ID])
    })
    .map_err(told)?;
    let first = begun.elapsed();
    while number(&loopback, admin, "rondel_svid_rotations_total ") < 3 {
        if begun.elapsed() > DEADLINE * 2 {
            return Err(told("its SVIDs do not rotate".into()));
        }
        call(loopback.from_peer).and_then(|_| call(loopback.to_peer)).map_err(told)?;
        calls += 2;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Shown::Yes(format!(
        "the first calls after {} ms, then {calls} in both directions through 2 rotations of SPIRE's, none failed",
        first.as_millis()
    )))
}

/// Bundles both ways by `https_web`; a workload of SPIRE's calls a sidecar; each judges the other's JWT-SVIDs; a new authority of the
/// mesh is known to SPIRE before it signs.
pub(crate) fn federation() -> Result<Shown, String> {
    if let Some(missing) = missing() {
        return Ok(missing);
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let web = testkit::web::write(dir.path());
    let (ours, theirs) = (testkit::ports::free(), testkit::ports::free());
    let (certificate, key) = (web.certificate.display(), web.key.display());
    let settings = format!(
        "  federation: [ {{ trustDomain: partner.example, bundleEndpoint: \"https://{theirs}/\" }} ]\n\
         \x20 bundleEndpoint: {{ listen: \"{ours}\", certificate: {certificate}, key: {key}, refreshHint: 60s }}"
    );
    let server = format!(
        "  federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {} profile \"https_web\" {{ serving_cert_file {{ \
         cert_file_path = \"{certificate}\" key_file_path = \"{key}\" file_sync_interval = \"1h\" }} }} }} }}\n",
        theirs.port()
    );
    let spire = Spire::start(&dir.path().join("spire"), "partner.example", &server, "")?;
    let environment = [("SSL_CERT_FILE".to_owned(), web.root.display().to_string())];
    let mut loopback = Loopback::start_as(&Made { settings: &settings, environment: &environment, ..Made::default() })?;
    let url = format!("https://{ours}/");
    let relation = ["-trustDomain", "shop.example", "-bundleEndpointProfile", "https_web", "-bundleEndpointURL", &url];
    spire.server(&["federation", "create"], &relation)?;
    // An entry may federate only with a trust domain whose bundle is there.
    until("SPIRE fetches our bundle", || spire.register(PARTNER_ID, &["-federatesWith", "spiffe://shop.example"]))?;

    let out = dir.path().join("svid");
    std::fs::create_dir_all(&out).map_err(|error| error.to_string())?;
    until("SPIRE has our bundle and gives an SVID", || {
        told("spire-agent", &["api", "fetch", "x509"], &spire.socket, &["-write", &out.display().to_string()])?;
        std::fs::metadata(out.join("federated_bundle.0.0.pem")).map(drop).map_err(|error| error.to_string())
    })?;
    let files = Files { svid: out.join("svid.0.pem"), key: out.join("svid.0.key"), bundle: out.join("federated_bundle.0.0.pem") };
    // Its SVIDs end soon: the files are those of this moment.
    until("a workload of SPIRE's is answered by a sidecar", || {
        told("spire-agent", &["api", "fetch", "x509"], &spire.socket, &["-write", &out.display().to_string()])?;
        let said = called(loopback.inbound(), &files, &["-verify_return_error", "-alpn", "http/1.1", "-ign_eof"])?;
        holds("s_client", &said, &["Verify return code: 0 (ok)", "HTTP/1.1 200", PARTNER_ID])
    })?;
    judged(&mut loopback, &spire)?;

    let bundle = || spire.server(&["bundle", "list"], &["-id", "spiffe://shop.example"]);
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    let before = count(&bundle()?);
    let (code, said) = loopback.mesh.rondel(&["ca", "rotate", "--no-wait"]);
    if code != 0 || before != 1 {
        return Err(format!("{before} authorities at SPIRE; rondel ca rotate: {said}"));
    }
    until("SPIRE knows the new authority", || {
        spire.server(&["federation", "refresh"], &["-id", "spiffe://shop.example"])?;
        let text = bundle()?;
        if count(&text) == 2 { Ok(()) } else { Err(text) }
    })?;
    let (_, status) = loopback.mesh.rondel(&["ca", "status"]);
    holds("the rotation waits for it", &status, &["prepared", "other trust domains"])?;
    Ok(Shown::Yes(
        "bundles by https_web both ways, an SVID of SPIRE's answered, JWT-SVIDs of each judged by the other, our new authority at SPIRE \
         before it signs"
            .into(),
    ))
}

/// SPIRE judges a JWT-SVID of ours, fetched by its own client, and we judge one of SPIRE's.
fn judged(loopback: &mut Loopback, spire: &Spire) -> Result<(), String> {
    let Serving { _sidecar, socket, .. } = workload::serving(loopback, "peer-judges", &[])?;
    for (from, by, id) in [(&socket, &spire.socket, PEER_ID), (&spire.socket, &socket, PARTNER_ID)] {
        let said = told("spire-agent", &["api", "fetch", "jwt"], from, &["-audience", "bank", "-output", "json"])?;
        let found: serde_json::Value = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        let token = found[0]["svids"][0]["svid"].as_str().ok_or(said.clone())?;
        let good = told("spire-agent", &["api", "validate", "jwt"], by, &["-audience", "bank", "-svid", token])?;
        holds("the JWT-SVID", &good, &[id])?;
        if let Ok(said) = told("spire-agent", &["api", "validate", "jwt"], by, &["-audience", "other", "-svid", token]) {
            return Err(format!("a JWT-SVID for another audience is good: {said}"));
        }
    }
    Ok(())
}
