//! `rondel up DIR`: a whole mesh on this machine. Real processes, started in order, watched, and all taken down at the end.

mod child;
mod pods;
mod view;

use crate::join_token;
use crate::operator::{self, DEADLINE, Where};
use crate::output::Output;
use anyhow::{Context, bail};
use child::{Kind, Supervised};
use config::{Call, Mesh, Workload};
use pods::{Inside, Pods};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use view::View;
use wire::operator::MeshStatus;

/// Where the control plane listens unless it is told.
const CONTROL_PORT: u16 = 7400;
/// For the control plane's socket to answer.
const CONTROL_DEADLINE: Duration = Duration::from_secs(15);
/// For a sidecar to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// For applications and sidecars to end after SIGTERM; a sidecar drains within it.
const STOP_DEADLINE: Duration = Duration::from_secs(13);
/// For an application that cannot run to end.
const FIRST_LOOK: Duration = Duration::from_millis(300);
/// LIMIT: bytes of a socket's path; the kernel takes 107, and the sidecar makes it under a longer name first.
const SOCKET_BYTES_MAX: usize = 100;
/// How often children are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the control plane is asked for the status.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory of YAML: MeshConfig, Workload, TokenIssuer, AuthorizationPolicy
    dir: PathBuf,
    /// Where state, logs and sockets go; keeps the authority from run to run [default: DIR/.rondel]
    // Not from the environment, as the other commands': the state of another mesh would become this one's.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Where the control plane listens for sidecars [default: 127.0.0.1:7400, with --pods 10.77.0.1:7400]
    #[arg(long)]
    control_listen: Option<SocketAddr>,
    /// Where the control plane serves /metrics, /ready and /live [default: the port after --control-listen]
    #[arg(long)]
    control_admin: Option<SocketAddr>,
    /// Give each workload a network namespace of its own with capture in force, as in a pod; needs root, `ip` and `nft`
    #[arg(long)]
    pods: bool,
}

/// The places and names of one run.
struct Places {
    dir: PathBuf,
    state: PathBuf,
    control_listen: SocketAddr,
    control_admin: SocketAddr,
    operator: Where,
    pods: Option<Pods>,
}

impl Places {
    /// The pod in which a process runs; `None` without `--pods`, and for what belongs to no workload.
    fn inside(&self, kind: &Kind) -> Option<Inside> {
        match kind {
            Kind::Control | Kind::Process => None,
            Kind::Proxy(workload) => self.pods.as_ref()?.sidecar(workload),
            Kind::Application(workload) => self.pods.as_ref()?.application(workload),
        }
    }
}

/// Everything that runs.
struct Running {
    places: Places,
    children: Vec<Supervised>,
    view: View,
}

/// Starts, watches, and takes down. Exit code 0 after Ctrl-C or SIGTERM, an error if the mesh could not be started.
pub(crate) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mesh = read(&arguments.dir)?;
    let mut places = places(&arguments, &mesh)?;
    if arguments.pods {
        places.pods = Some(Pods::make(&mesh)?);
    } else if let Some(captured) = mesh.workloads.iter().find(|workload| workload.captured) {
        bail!("{} has `captured: true`: start the mesh with `--pods`", captured.name);
    }
    check_ports(&places, &mesh)?;
    let mut running = Running { places, children: Vec::new(), view: View::new(output) };

    let outcome = tokio::select! {
        started = start(&mut running, &mesh) => match started {
            Ok(()) => {
                let fallen = fallen(&mut running).await;
                let but = if fallen.is_empty() { String::new() } else { format!(", but {} ended", fallen.join(" and ")) };
                running.view.say(&format!("the mesh is up: {} workloads{but}; Ctrl-C ends it", mesh.workloads.len()));
                watch(&mut running, &mesh, &mut interrupt, &mut terminate).await
            }
            Err(error) => Err(error),
        },
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    stop(&mut running).await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The applications that have ended already: what cannot start ends at once, and the mesh must not be called up without a word of it.
async fn fallen(running: &mut Running) -> Vec<String> {
    sleep(FIRST_LOOK).await;
    let children = running.children.iter_mut().filter(|child| matches!(child.kind, Kind::Application(_) | Kind::Process));
    let mut fallen = Vec::new();
    for child in children {
        if child.ended().is_some() {
            fallen.push(format!("`{}`", child.name));
        }
    }
    fallen
}

fn read(dir: &Path) -> anyhow::Result<Mesh> {
    let told = |errors: Vec<config::ConfigError>| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("`{}` is not a mesh:\n  {}", dir.display(), lines.join("\n  "))
    };
    let sources = config::read(dir).map_err(|error| told(vec![error]))?;
    config::parse(&sources).map_err(told)
}

fn places(arguments: &Arguments, mesh: &Mesh) -> anyhow::Result<Places> {
    let dir = arguments.dir.canonicalize().with_context(|| format!("directory `{}`", arguments.dir.display()))?;
    let state = arguments.state.clone().unwrap_or_else(|| dir.join(".rondel"));
    let make = |path: &Path| {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("make the state directory `{}`", path.display()))
    };
    make(&state)?;
    let state = state.canonicalize().with_context(|| format!("state directory `{}`", state.display()))?;
    for part in ["control", "logs", "proxies"] {
        make(&state.join(part))?;
    }
    let loopback = IpAddr::from(if arguments.pods { pods::GATEWAY } else { Ipv4Addr::LOCALHOST });
    let control_listen = arguments.control_listen.unwrap_or_else(|| SocketAddr::new(loopback, CONTROL_PORT));
    let free_after = |address: SocketAddr| SocketAddr::new(address.ip(), address.port().wrapping_add(1));
    let taken: Vec<SocketAddr> = addresses(mesh).into_iter().map(|(address, _)| address).collect();
    let control_admin = arguments.control_admin.unwrap_or_else(|| {
        let mut candidate = free_after(control_listen);
        while taken.contains(&candidate) {
            candidate = free_after(candidate);
        }
        candidate
    });
    let operator = Where { state: state.clone() };
    Ok(Places { dir, state, control_listen, control_admin, operator, pods: None })
}

/// Every address that a sidecar will listen at, with what it is for.
fn addresses(mesh: &Mesh) -> Vec<(SocketAddr, String)> {
    let mut all = Vec::new();
    for workload in &mesh.workloads {
        let name = &workload.name;
        all.push((workload.admin, format!("admin port of {name}")));
        all.extend(workload.inbound.iter().map(|inbound| (inbound.listen, format!("inbound port of {name}"))));
        let call = |up: &Call| Some((up.listen?, format!("port of {name} for {}", up.service)));
        all.extend(workload.upstreams.iter().filter_map(call));
    }
    all
}

/// Says which port is taken before anything is started.
fn check_ports(places: &Places, mesh: &Mesh) -> anyhow::Result<()> {
    // In a pod every address is free.
    let mut all = if places.pods.is_some() { Vec::new() } else { addresses(mesh) };
    all.push((places.control_listen, "control plane, --control-listen".to_owned()));
    all.push((places.control_admin, "control plane, --control-admin".to_owned()));
    let taken: Vec<String> = all
        .into_iter()
        .filter_map(|(address, what)| TcpListener::bind(address).err().map(|error| format!("{address} ({what}): {error}")))
        .collect();
    if taken.is_empty() {
        return Ok(());
    }
    bail!(
        "these addresses cannot be used:\n  {}\nend what uses them (`ss -ltnp` shows it), or write other ports into `{}`",
        taken.join("\n  "),
        places.dir.display()
    )
}

/// An authority that has ended is left to a person: a clock that was set wrong looks the same.
async fn authority_signs(running: &mut Running) -> anyhow::Result<()> {
    let mut is_told = false;
    loop {
        let status = running.places.operator.connect().await?.authority_status(DEADLINE).await?;
        let active = status.authorities.iter().find(|authority| authority.state == "active");
        let Some(ended) = active.map(|active| active.not_after).filter(|end| *end <= operator::now()) else { return Ok(()) };
        if !std::mem::replace(&mut is_told, true) {
            running.view.say(&format!(
                "the authority ended at {ended}, and nobody believes what it signs; if this machine's clock is right, replace it \
                 with `RONDEL_STATE={} rondel ca rotate`",
                running.places.state.display()
            ));
        }
        sleep(STATUS_EVERY).await;
    }
}

/// Starts everything in the order in which it depends on each other.
async fn start(running: &mut Running, mesh: &Mesh) -> anyhow::Result<()> {
    let places = &running.places;
    running.view.say("starting the control plane");
    let control = Supervised::start(Kind::Control, "control", control_command(places), places)?;
    running.children.push(control);
    control_answers(running).await?;
    authority_signs(running).await?;

    for process in &mesh.settings.processes {
        running.view.say(&format!("starting {}", process.name));
        let child = Supervised::start(Kind::Process, &process.name, process.clone(), &running.places)?;
        running.children.push(child);
    }
    for workload in &mesh.workloads {
        running.view.say(&format!("starting {}: {}", workload.name, workload.identity));
        attest(&running.places, workload).await?;
        capture(&running.places, workload)?;
        let name = format!("{}-proxy", workload.name.name());
        let kind = Kind::Proxy(workload.name.clone());
        running.children.push(Supervised::start(kind, &name, proxy_command(&running.places, workload), &running.places)?);
    }
    for workload in &mesh.workloads {
        sidecar_ready(running, workload).await?;
        // The sidecar is ready before the application: its first call must not fail.
        if let Some(process) = &workload.run {
            let kind = Kind::Application(workload.name.clone());
            let process = application(&running.places, workload, process);
            running.children.push(Supervised::start(kind, workload.name.name(), process, &running.places)?);
        }
    }
    for workload in &mesh.workloads {
        if let Some(name) = running.places.pods.as_ref().and_then(|pods| pods.name(&workload.name)) {
            running.view.say(&format!("the pod of {} is the network namespace `{name}`: ip netns exec {name} …", workload.name));
        }
    }
    view::write_up_json(&running.places, mesh, &running.children)
}

fn control_command(places: &Places) -> config::Process {
    let text = |path: &Path| path.display().to_string();
    let command = vec![
        "rondel-control".to_owned(),
        "--config".to_owned(),
        text(&places.dir),
        "--state".to_owned(),
        text(&places.state.join("control")),
        "--listen".to_owned(),
        places.control_listen.to_string(),
        "--admin".to_owned(),
        places.control_admin.to_string(),
    ];
    config::Process { name: "control".to_owned(), command, environment: BTreeMap::new() }
}

fn proxy_dir(places: &Places, workload: &Workload) -> PathBuf {
    places.state.join("proxies").join(workload.name.as_str().replace('/', "."))
}

/// Where the sidecar serves the SPIFFE Workload API to its application; `None` where the directory's name is too long for a socket.
fn workload_api(places: &Places, workload: &Workload) -> Option<PathBuf> {
    let socket = proxy_dir(places, workload).join("workload.sock");
    (socket.as_os_str().len() <= SOCKET_BYTES_MAX).then_some(socket)
}

/// The application's command; it finds its Workload API as the SPIFFE Workload Endpoint §4 says.
fn application(places: &Places, workload: &Workload, process: &config::Process) -> config::Process {
    let mut process = process.clone();
    if let Some(socket) = workload_api(places, workload) {
        let address = format!("unix:{}", socket.display());
        process.environment.entry("SPIFFE_ENDPOINT_SOCKET".to_owned()).or_insert(address);
    }
    process
}

fn proxy_command(places: &Places, workload: &Workload) -> config::Process {
    let dir = proxy_dir(places, workload);
    let text = |path: &Path| path.display().to_string();
    let command = vec![
        "rondel-proxy".to_owned(),
        "--workload".to_owned(),
        workload.name.to_string(),
        "--control".to_owned(),
        places.control_listen.to_string(),
        "--join-token-file".to_owned(),
        text(&dir.join(join_token::TOKEN_FILE)),
        "--trust-bundle".to_owned(),
        text(&dir.join(join_token::BUNDLE_FILE)),
        "--state".to_owned(),
        text(&dir),
        "--admin".to_owned(),
        workload.admin.to_string(),
    ];
    let api = workload_api(places, workload).map(|socket| vec!["--workload-api".to_owned(), text(&socket)]);
    let capture = workload.captured.then(|| vec!["--capture".to_owned()]);
    let command = [command, api.unwrap_or_default(), capture.unwrap_or_default()].concat();
    config::Process { name: workload.name.to_string(), command, environment: BTreeMap::new() }
}

/// Puts the capture of a pod in force, before anything runs in it.
fn capture(places: &Places, workload: &Workload) -> anyhow::Result<()> {
    let Some(inside) = places.pods.as_ref().and_then(|pods| pods.application(&workload.name)) else { return Ok(()) };
    let own = std::env::current_exe().context("find the program `rondel` itself")?;
    let gid = pods::PROXY_GID.to_string();
    let namespace = inside.namespace.display().to_string();
    let proxy = child::find("rondel-proxy", &places.dir).display().to_string();
    let arguments = ["exec-child", "--namespace", &namespace, "--", &proxy, "capture", "apply", "--proxy-gid", &gid];
    match pods::run(own, &arguments)? {
        (true, _) => Ok(()),
        (false, complaint) => bail!("capture in the pod of {}: {}", workload.name, complaint.trim()),
    }
}

/// Writes a fresh join token beside the trust bundle, for the sidecar's first call.
async fn attest(places: &Places, workload: &Workload) -> anyhow::Result<()> {
    let mut client = places.operator.connect().await?;
    join_token::write(&mut client, &workload.name, &proxy_dir(places, workload)).await
}

async fn control_answers(running: &mut Running) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONTROL_DEADLINE;
    loop {
        if let Ok(mut client) = running.places.operator.connect().await
            && client.status(DEADLINE).await.is_ok()
        {
            return Ok(());
        }
        for child in &mut running.children {
            if let Some(status) = child.ended() {
                bail!("the control plane ended with {status}; the end of its log:\n{}", child.log_tail());
            }
        }
        if Instant::now() >= deadline {
            let log = running.children.first().map(Supervised::log_tail).unwrap_or_default();
            bail!("the control plane did not answer within {} s; the end of its log:\n{log}", CONTROL_DEADLINE.as_secs());
        }
        sleep(TICK).await;
    }
}

async fn sidecar_ready(running: &mut Running, workload: &Workload) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let missing = match timeout(DEADLINE, ready(&running.places, workload)).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(missing))) => missing,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer from its admin port".to_owned(),
        };
        let proxy = running.children.iter_mut().find(|child| child.is_proxy_of(&workload.name));
        if let Some(proxy) = proxy {
            let ended = proxy.ended().map(|status| format!("ended with {status}"));
            let late =
                (Instant::now() >= deadline).then(|| format!("is not ready after {} s ({missing})", READY_DEADLINE.as_secs()));
            if let Some(what) = ended.or(late) {
                bail!("the sidecar of {} {what}; the end of its log:\n{}", workload.name, proxy.log_tail());
            }
        }
        sleep(TICK).await;
    }
}

/// `None` if the sidecar is ready, else what is missing.
async fn ready(places: &Places, workload: &Workload) -> anyhow::Result<Option<String>> {
    let Some(inside) = places.pods.as_ref().and_then(|pods| pods.application(&workload.name)) else {
        return view::ready(workload.admin).await;
    };
    // Its admin port is in the pod.
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("exec-child").arg("--namespace").arg(inside.namespace);
    command.arg("--").arg(child::find("rondel-proxy", &places.dir)).args(["wait", "--timeout", "0", "--admin"]);
    let output = command.arg(workload.admin.to_string()).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((!output.status.success()).then_some(said))
}

/// Restarts what ends and prints what changes, until a signal.
async fn watch(running: &mut Running, mesh: &Mesh, interrupt: &mut Signal, terminate: &mut Signal) -> anyhow::Result<()> {
    let mut next_status = Instant::now();
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = sleep(TICK) => {}
        }
        if restart_ended(running, mesh).await {
            view::write_up_json(&running.places, mesh, &running.children)?;
        }
        if Instant::now() >= next_status {
            next_status = Instant::now() + STATUS_EVERY;
            let status = match running.places.operator.connect().await {
                Ok(mut client) => client.status(DEADLINE).await.ok(),
                Err(_) => None,
            };
            running.view.show(status.as_ref(), &running.children);
            attest_the_expired(running, mesh, status.as_ref()).await;
        }
    }
}

/// A sidecar whose SVID ended while the control plane was away, or was revoked, needs a new join token: its first one was spent.
async fn attest_the_expired(running: &Running, mesh: &Mesh, status: Option<&MeshStatus>) {
    let Some(status) = status else { return };
    let now = operator::now();
    let mut revoked = None;
    for seen in status.workloads.iter().filter(|seen| !seen.connected) {
        // A control plane that was started again remembers none that had ended before.
        let has_ended = seen.svid_expires_at.is_none_or(|end| end <= now);
        if !has_ended {
            if revoked.is_none() {
                revoked = revoked_serials(running).await;
            }
            let is_revoked = |serials: &Vec<String>| seen.serial.as_ref().is_some_and(|serial| serials.contains(serial));
            if !revoked.as_ref().is_some_and(is_revoked) {
                continue;
            }
        }
        if let Some(workload) = mesh.workloads.iter().find(|workload| workload.name == seen.name)
            && let Err(error) = attest(&running.places, workload).await
        {
            running.view.say(&format!("{} cannot attest again yet: {}", seen.name, model::told(error.as_ref())));
        }
    }
}

async fn revoked_serials(running: &Running) -> Option<Vec<String>> {
    let mut client = running.places.operator.connect().await.ok()?;
    let status = client.authority_status(DEADLINE).await.ok()?;
    Some(status.revoked.into_iter().map(|revoked| revoked.serial).collect())
}

/// Starts again what ended, each with its back-off; true if something was.
async fn restart_ended(running: &mut Running, mesh: &Mesh) -> bool {
    let mut restarted = false;
    for index in 0..running.children.len() {
        let Some(child) = running.children.get_mut(index) else { break };
        if let Some(status) = child.newly_ended() {
            running.view.say(&format!(
                "{} ended with {status}; it is started again in {} ms",
                child.name,
                child.pause().as_millis()
            ));
        }
        if !child.is_due() {
            continue;
        }
        if let Kind::Proxy(name) = child.kind.clone()
            && let Some(workload) = mesh.workloads.iter().find(|workload| workload.name == name)
            && let Err(error) = attest(&running.places, workload).await
        {
            child.postpone();
            running.view.say(&format!("{name} cannot attest again yet: {}", model::told(error.as_ref())));
            continue;
        }
        match child.restart(&running.places) {
            Ok(()) => restarted = true,
            Err(error) => running.view.say(&format!("{}: {}", child.name, model::told(error.as_ref()))),
        }
    }
    restarted
}

/// Applications and sidecars first (these drain), then processes, the control plane last; whatever is left is killed.
async fn stop(running: &mut Running) {
    running.view.say("stopping");
    let is_late = |child: &Supervised| matches!(child.kind, Kind::Control | Kind::Process);
    for late in [false, true] {
        let deadline = Instant::now() + STOP_DEADLINE;
        for child in running.children.iter_mut().filter(|child| is_late(child) == late) {
            child.terminate();
        }
        while running.children.iter_mut().any(|child| is_late(child) == late && child.is_running()) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        for child in running.children.iter_mut().filter(|child| is_late(child) == late) {
            child.kill().await;
        }
    }
    let _absent = std::fs::remove_file(running.places.state.join("up.json"));
    running.view.say("everything has ended");
}
