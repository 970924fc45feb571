//! The bank mesh as a child process: a copy of its YAML, a real `rondel up`, and the CLI to ask it.

use crate::client;
use crate::files::{self, SHORT_LIFETIME};
use crate::report::{quote, say};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// For the mesh to be up, and for an expected change to be seen.
const START_DEADLINE: Duration = Duration::from_secs(60);
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// For `rondel up` to take everything down; its own deadlines add up to less.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// For one command of the CLI.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// How often a change is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How often the start is looked at: each look is a process.
const START_LOOK_EVERY: Duration = Duration::from_millis(200);
/// Where the control plane listens; its admin port is the next one.
const CONTROL_PORT: u16 = 17_400;
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// The running mesh. Everything ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Bank {
    dir: tempfile::TempDir,
    up: RefCell<Child>,
    offset: u16,
}

impl Bank {
    /// Copies the mesh, shortens the life of its certificates, starts it and waits until every workload is connected and ready.
    pub(crate) async fn start(source: &Path, offset: u16) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("rondel-bank-").tempdir().context("make a directory for the demo")?;
        let copied = files::copy(source, &dir.path().join("mesh"), offset);
        let mut ports = copied.with_context(|| format!("copy the mesh `{}`", source.display()))?.ports;
        // Of all that listens, the applications are the ones that `rondel up` cannot look at before it starts them.
        ports.extend([at(CONTROL_PORT, offset).port(), at(CONTROL_PORT + 1, offset).port()]);
        files::check_free(&ports)?;
        say(&format!("Rondel: the bank mesh, from `{}`", source.display()));
        say(&format!("Certificates live {SHORT_LIFETIME} here, so that they rotate while you watch."));
        let log = std::fs::File::create(dir.path().join("up.log"))?;
        let mut command = Command::new(program("rondel")?);
        // Through `exec-child`, so that the mesh ends even if this process is killed.
        command.arg("exec-child").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program("rondel")?);
        command.arg("up").arg(dir.path().join("mesh")).arg("--control-listen").arg(at(CONTROL_PORT, offset).to_string());
        // A group of its own: Ctrl-C at the terminal reaches this process, which takes the mesh down once and in order.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let up = RefCell::new(command.spawn().context("start `rondel up`")?);
        let bank = Self { dir, up, offset };
        bank.wait_until_up().await?;
        Ok(bank)
    }

    async fn wait_until_up(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let mut told = 0;
        loop {
            // Before the log is read, so that the last words of a child that has ended are among what is told.
            let ended = self.exit_status();
            let log = self.log();
            for line in log.lines().skip(told) {
                quote(3, line);
                told += 1;
            }
            if let Some(status) = ended {
                bail!("`rondel up` ended with {status}");
            }
            if self.state().join("up.json").exists() && self.all_synced(&self.status().await?) && self.answers().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the mesh was not up within {} s", START_DEADLINE.as_secs());
            }
            sleep(START_LOOK_EVERY).await;
        }
    }

    /// Whether the four applications and the issuer answer, and payments has the issuer's keys.
    async fn answers(&self) -> bool {
        let user = json!({ "user": "aura" });
        let Ok(token) = client::token(self.issuer(), &user).await else { return false };
        let read = client::call(client::GERMANY, self.web(), http::Method::GET, "/transfers", Some(&token), &Value::Null).await;
        read.is_ok_and(|answer| answer.status == 200)
    }

    /// The end of what `rondel up` printed.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        tail.iter().map(|line| format!("\n  {line}")).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    pub(crate) fn issuer(&self) -> SocketAddr {
        at(18_100, self.offset)
    }

    pub(crate) fn web(&self) -> SocketAddr {
        at(18_101, self.offset)
    }

    /// The inbound port of the sidecar of payments.
    pub(crate) fn payments_inbound(&self) -> SocketAddr {
        at(15_102, self.offset)
    }

    /// The local port through which the fraud service reaches the ledger.
    pub(crate) fn fraud_to_ledger(&self) -> SocketAddr {
        at(15_243, self.offset)
    }

    pub(crate) fn mesh_dir(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.mesh_dir().join(".rondel")
    }

    /// Runs the CLI; its exit code and output.
    pub(crate) async fn rondel(&self, arguments: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        let mut command = tokio::process::Command::new(program("rondel")?);
        command.args(arguments).env("RONDEL_STATE", self.state()).env("NO_COLOR", "1").stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(COMMAND_DEADLINE, command.output()).await;
        let late = || format!("`rondel {}` did not end within {} s", arguments.join(" "), COMMAND_DEADLINE.as_secs());
        let output = output.with_context(late)?.context("run `rondel`")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status, text))
    }

    /// `rondel status --output json`; null while the control plane is away.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let (status, text) = self.rondel(&["status", "--output", "json"]).await?;
        Ok(if status.success() { serde_json::from_str(&text).context("status as JSON")? } else { Value::Null })
    }

    /// Whether every workload is connected and has the newest revision.
    pub(crate) fn all_synced(&self, status: &Value) -> bool {
        workloads(status).iter().all(|each| each["connected"] == true && each["state"] == "SYNCED")
            && workloads(status).len() == 4
    }

    /// Waits until the status is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        loop {
            let status = self.status().await?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{what}: not seen within {} s; the last status was {status:#}", CHANGE_DEADLINE.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The process id of the control plane.
    pub(crate) fn control_pid(&self) -> anyhow::Result<i32> {
        let text = std::fs::read_to_string(self.state().join("up.json")).context("read up.json")?;
        let up: Value = serde_json::from_str(&text).context("up.json")?;
        up["control"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("up.json names no control plane")
    }

    pub(crate) fn print_addresses(&self) {
        let (web, issuer) = (self.web(), self.issuer());
        say("\nThe mesh stays up until Ctrl-C.");
        say(&format!("  web       http://{web}/transfers (from 127.0.49.x you are in DE, from 127.0.33.x in FR)"));
        say(&format!("  issuer    http://{issuer}/token (users tina, frank, aura)"));
        say(&format!(
            "  payments  {} (mutual TLS), metrics at http://{}/metrics",
            self.payments_inbound(),
            at(15_002, self.offset)
        ));
        say(&format!("  policies  {}", self.mesh_dir().join("policies").display()));
        say(&format!("  logs      {}", self.state().join("logs").display()));
        say("Try, in another terminal:");
        say(&format!("  TOKEN=$(curl -s http://{issuer}/token -d user=tina | cut -d'\"' -f4)"));
        say(&format!("  curl -i --interface 127.0.49.1 http://{web}/transfers \\"));
        say("    -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\");
        say("    -d '{\"from\":\"alice\",\"to\":\"bob\",\"amount\":250,\"currency\":\"EUR\"}'");
        say(&format!("  export RONDEL_STATE={}", self.state().display()));
        if let Some(folder) = program("rondel").ok().as_deref().and_then(Path::parent) {
            say(&format!("  export PATH=$PATH:{}", folder.display()));
        }
        say("  rondel status");
        say("  rondel authz decisions --denied");
        say("  rondel authz explain ID      (the x-rondel-decision of a refusal: make the amount 5000)");
    }

    /// Waits until `rondel up` ends by itself.
    pub(crate) async fn ended(&self) -> String {
        loop {
            if let Some(status) = self.exit_status() {
                return status.to_string();
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Takes the mesh down and waits for it.
    pub(crate) async fn stop(&self) {
        self.terminate();
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.exit_status().is_none() && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
        self.kill();
    }

    /// Ends `rondel up` if it still runs. Its children die with it: it started them through `exec-child`.
    fn kill(&self) {
        if self.exit_status().is_none() {
            let mut up = self.up.borrow_mut();
            let _gone = up.kill();
            let _ended = up.wait();
        }
    }

    /// How `rondel up` ended, if it has.
    fn exit_status(&self) -> Option<ExitStatus> {
        self.up.borrow_mut().try_wait().ok().flatten()
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.up.borrow().id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        if self.exit_status().is_none() {
            self.terminate();
            let deadline = std::time::Instant::now() + STOP_DEADLINE;
            while self.exit_status().is_none() && std::time::Instant::now() < deadline {
                // A destructor cannot await.
                std::thread::park_timeout(LOOK_EVERY);
            }
            self.kill();
        }
    }
}

/// The workloads of a status.
pub(crate) fn workloads(status: &Value) -> &[Value] {
    status["workloads"].as_array().map_or(&[], Vec::as_slice)
}

fn at(port: u16, offset: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port.saturating_add(offset)))
}

/// A program beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let path = own.parent().map(|folder| folder.join(name)).context("find this program's folder")?;
    if !path.is_file() {
        bail!("`{}` is not built: run `make build`", path.display());
    }
    Ok(path)
}
