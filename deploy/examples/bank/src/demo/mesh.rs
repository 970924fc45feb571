//! The bank mesh as a child process: a copy of its YAML, a real `rondel up`, and the CLI to ask it.

use crate::client;
use crate::report::say;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// For the mesh to be up, and for an expected change to be seen.
const START_DEADLINE: Duration = Duration::from_secs(60);
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// For `rondel up` to take everything down.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How often a change is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The life of a certificate in the walk.
const SHORT_LIFETIME: &str = "20s";

/// The running mesh. Everything ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Bank {
    dir: tempfile::TempDir,
    up: Child,
    offset: u16,
}

impl Bank {
    /// Copies the mesh, shortens the life of its certificates, starts it and waits until every workload is connected and ready.
    pub(crate) async fn start(source: &Path, offset: u16) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("rondel-bank-").tempdir().context("make a directory for the demo")?;
        copy(source, &dir.path().join("mesh"), offset).with_context(|| format!("copy the mesh `{}`", source.display()))?;
        say(&format!(
            "Rondel: the bank mesh, from `{}`; certificates live {SHORT_LIFETIME} here, so that they rotate while you watch",
            source.display()
        ));
        let log = std::fs::File::create(dir.path().join("up.log"))?;
        let mut command = Command::new(program("rondel")?);
        // Through `exec-child`, so that the mesh ends even if this process is killed.
        command.arg("exec-child").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program("rondel")?);
        command.arg("up").arg(dir.path().join("mesh")).arg("--control-listen").arg(at(17_400, offset).to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut bank = Self { up: command.spawn().context("start `rondel up`")?, dir, offset };
        bank.wait_until_up().await?;
        Ok(bank)
    }

    async fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let mut told = 0;
        loop {
            let log = self.log();
            for line in log.lines().skip(told) {
                say(&format!("   {line}"));
                told += 1;
            }
            if let Ok(Some(status)) = self.up.try_wait() {
                bail!("`rondel up` ended with {status}");
            }
            if self.state().join("up.json").exists() && self.all_synced(&self.status()?) && self.answers().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the mesh was not up within {} s", START_DEADLINE.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the four applications and the issuer answer, and payments has the issuer's keys.
    async fn answers(&self) -> bool {
        let user = json!({ "user": "aura" });
        let Ok(token) = client::token(self.issuer(), &user).await else { return false };
        let read = client::call(client::GERMANY, self.web(), http::Method::GET, "/transfers", Some(&token), &Value::Null).await;
        read.is_ok_and(|answer| answer.status == 200)
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
    pub(crate) fn rondel(&self, arguments: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        let mut command = Command::new(program("rondel")?);
        command.args(arguments).env("RONDEL_STATE", self.state()).env("NO_COLOR", "1").stdin(Stdio::null());
        let output = command.output().context("run `rondel`")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status, text))
    }

    /// `rondel status --output json`; null while the control plane is away.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let (status, text) = self.rondel(&["status", "--output", "json"])?;
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
            let status = self.status()?;
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
        say(&format!("\nThe mesh stays up until Ctrl-C. State and logs: {}", self.state().display()));
        say("Try, in another terminal:");
        say(&format!(
            "  TOKEN=$(curl -s http://{issuer}/token -d '{{\"user\":\"tina\"}}' | sed 's/.*access_token\":\"\\([^\"]*\\).*/\\1/')"
        ));
        say(&format!(
            "  curl -i --interface 127.0.49.1 http://{web}/transfers -H \"Authorization: Bearer $TOKEN\" -d '{{\"from\":\"a\",\"to\":\"b\",\"amount\":250}}'"
        ));
        say(&format!("  export RONDEL_STATE={}", self.state().display()));
        say("  rondel status; rondel authz decisions --denied; rondel authz explain ID");
        say(&format!("  curl -s http://{}/metrics | grep rondel_requests", at(15_002, self.offset)));
    }

    /// Waits until `rondel up` ends by itself.
    pub(crate) async fn ended(&mut self) -> String {
        loop {
            if let Ok(Some(status)) = self.up.try_wait() {
                return status.to_string();
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Takes the mesh down and waits for it.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(self.up.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.up.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        if matches!(self.up.try_wait(), Ok(None)) {
            self.terminate();
            // `rondel up` takes its children down and then ends; the wait is bounded by its own deadlines.
            let _ended = self.up.wait();
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

/// Copies the YAML, with short certificates and moved ports.
fn copy(from: &Path, to: &Path, offset: u16) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, offset)?;
        } else {
            let text = std::fs::read_to_string(entry.path())?.replace("lifetime: 1h", &format!("lifetime: {SHORT_LIFETIME}"));
            std::fs::write(target, moved(&text, offset))?;
        }
    }
    Ok(())
}

/// Adds `offset` to every `127.0.0.1:PORT` of a text.
fn moved(text: &str, offset: u16) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut parts = text.split(HOST);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (port, rest) = part.split_at(digits);
        let port = port.parse::<u16>().map_or_else(|_| port.to_owned(), |port| port.saturating_add(offset).to_string());
        out.push_str(&format!("{HOST}{port}{rest}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_moved_and_nothing_else() {
        let text = "listen: \"127.0.0.1:15102\", command: [--country, 127.0.49.0/24=DE]\nissuer: http://127.0.0.1:18100\n";
        assert_eq!(moved(text, 0), text);
        let expected = "listen: \"127.0.0.1:15107\", command: [--country, 127.0.49.0/24=DE]\nissuer: http://127.0.0.1:18105\n";
        assert_eq!(moved(text, 5), expected);
    }

    #[test]
    fn the_banks_mesh_is_a_good_configuration() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh");
        let mesh =
            config::read(&dir).map_err(|error| vec![error]).and_then(|sources| config::parse(&sources)).expect("a good mesh");
        assert_eq!((mesh.workloads.len(), mesh.issuers.len(), mesh.policies.len()), (4, 1, 3));
    }
}
