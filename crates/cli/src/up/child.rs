//! One supervised process: its command, its log, its restarts.

use super::Places;
use super::pods::Inside;
use anyhow::Context;
use config::Process;
use model::WorkloadName;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// The pause before a restart doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A process that ran this long starts again with the shortest pause.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;

/// What a process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The control plane.
    Control,
    /// A process outside the mesh.
    Process,
    /// The sidecar of a workload.
    Proxy(WorkloadName),
    /// A workload's own command.
    Application(WorkloadName),
}

/// One process that is kept running.
#[derive(Debug)]
pub(super) struct Supervised {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) restarts: u32,
    process: Process,
    inside: Option<Inside>,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
    ended: Option<ExitStatus>,
    restart_at: Option<Instant>,
    failures: u32,
}

impl Supervised {
    /// Starts a process; its output goes to `logs/NAME.log`.
    pub(super) fn start(kind: Kind, name: &str, process: Process, places: &Places) -> anyhow::Result<Self> {
        let log = places.state.join("logs").join(format!("{name}.log"));
        let inside = places.inside(&kind);
        let child = spawn(&process, inside.as_ref(), &log, places)?;
        Ok(Self {
            kind,
            name: name.to_owned(),
            restarts: 0,
            process,
            inside,
            log,
            child: Some(child),
            started: Instant::now(),
            ended: None,
            restart_at: None,
            failures: 0,
        })
    }

    pub(super) fn is_proxy_of(&self, workload: &WorkloadName) -> bool {
        self.kind == Kind::Proxy(workload.clone())
    }

    /// The process id, if it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its exit status, once it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            self.ended = Some(status);
            self.child = None;
        }
        self.ended
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.ended();
        self.child.is_some()
    }

    /// Its exit status if it ended since the last look; plans the restart.
    pub(super) fn newly_ended(&mut self) -> Option<ExitStatus> {
        if self.restart_at.is_some() {
            return None;
        }
        let status = self.ended()?;
        self.failures = if self.started.elapsed() > STEADY_AFTER { 1 } else { self.failures + 1 };
        self.restart_at = Some(Instant::now() + self.pause());
        Some(status)
    }

    /// The pause before the next restart: doubles with each failure after the third, so that what is killed now and then comes back
    /// before a certificate ends. A control plane gets longer, so that its sockets are free again.
    pub(super) fn pause(&self) -> Duration {
        let first = if self.kind == Kind::Control { Duration::from_secs(3) } else { Duration::from_millis(500) };
        (first * 2_u32.saturating_pow(self.failures.saturating_sub(3).min(6))).min(PAUSE_MAX)
    }

    /// Whether it is time to start it again.
    pub(super) fn is_due(&self) -> bool {
        self.restart_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Tries again after another pause.
    pub(super) fn postpone(&mut self) {
        self.restart_at = Some(Instant::now() + Duration::from_secs(1));
    }

    /// Starts it again.
    pub(super) fn restart(&mut self, places: &Places) -> anyhow::Result<()> {
        self.postpone();
        self.child = Some(spawn(&self.process, self.inside.as_ref(), &self.log, places)?);
        self.started = Instant::now();
        self.ended = None;
        self.restart_at = None;
        self.restarts += 1;
        Ok(())
    }

    /// Asks it to end.
    pub(super) fn terminate(&mut self) {
        self.restart_at = None;
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _gone = kill_process(pid, Signal::TERM);
        }
    }

    /// Ends it if it still runs, and waits for it.
    pub(super) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill().await;
        }
    }

    /// The last lines of its log, indented.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        tail.iter().map(|line| format!("  {line}\n")).collect()
    }
}

/// Starts a command through `rondel exec-child`, so that it dies with this process.
fn spawn(process: &Process, inside: Option<&Inside>, log: &Path, places: &Places) -> anyhow::Result<Child> {
    let (program, rest) = process.command.split_first().context("an empty command")?;
    let program = find(program, &places.dir);
    let own = std::env::current_exe().context("find the program `rondel` itself")?;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let file = file.with_context(|| format!("open the log `{}`", log.display()))?;
    let errors = file.try_clone().with_context(|| format!("open the log `{}`", log.display()))?;
    let mut command = Command::new(own);
    command.arg("exec-child").arg("--parent").arg(std::process::id().to_string());
    if let Some(inside) = inside {
        command.arg("--namespace").arg(&inside.namespace);
        command.args(inside.gid.iter().flat_map(|gid| ["--gid".to_owned(), gid.to_string()]));
    }
    command.arg("--").arg(&program).args(rest);
    command.envs(&process.environment).env_remove("RONDEL_STATE").current_dir(&places.dir);
    // A group of its own: Ctrl-C at the terminal reaches `rondel`, which takes everything down in order.
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0).kill_on_drop(true);
    command.spawn().with_context(|| format!("start `{}`", program.display()))
}

/// A program beside `rondel` itself comes before one of the same name on the PATH; a path is relative to the mesh's directory.
pub(super) fn find(program: &str, dir: &Path) -> PathBuf {
    if program.contains('/') {
        return dir.join(program);
    }
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(|parent| parent.join(program)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(program))
}
