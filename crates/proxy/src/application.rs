//! The application beside the sidecar, as far as its end concerns us: the sidecar is there before it and goes after it.

use crate::settings::Settings;
use crate::state::Shared;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How often the process is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For asking whether a port of the application still takes connections.
const CONNECT_DEADLINE: Duration = Duration::from_millis(200);

/// Its process, where we were told of it.
#[derive(Clone, Debug)]
pub struct Application {
    process: Option<Process>,
}

/// A process, and when it began: its number may be given to another one after its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    started: Option<String>,
}

impl Application {
    /// The process that `--application-pid` names, if it does.
    pub fn of(settings: &Settings) -> Self {
        Self { process: settings.application_pid.map(|pid| Process { pid, started: started(pid) }) }
    }

    /// Waits for the end of its process; for ever if we were not told of it.
    pub async fn gone(&self) {
        let Some(process) = &self.process else { return std::future::pending().await };
        while process.runs() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether it has ended: its process where we know it, otherwise its ports, which refuse connections then. One that has no
    /// port and whose process we don't know is taken to be gone when it calls nobody.
    pub async fn is_gone(&self, shared: &Shared) -> bool {
        if let Some(process) = &self.process {
            return !process.runs();
        }
        let Some(active) = shared.active() else { return true };
        for inbound in &active.snapshot.inbound {
            if let Ok(Ok(_)) = timeout(CONNECT_DEADLINE, TcpStream::connect(inbound.application)).await {
                return false;
            }
        }
        true
    }
}

impl Process {
    fn runs(&self) -> bool {
        self.started.is_some() && started(self.pid) == self.started
    }
}

/// When a process began, in the kernel's own count (proc(5), field 22 of `stat`); `None` if it is not there or is a zombie.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, so that the fields are counted behind it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| started.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test of another process")]
    fn a_process_runs_until_it_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = Process { pid: child.id(), started: started(child.id()) };
        assert!(process.runs());
        assert!(!Process { started: Some("1".to_owned()), ..process.clone() }.runs(), "another process of the same number");
        child.kill().expect("kill");
        assert!((0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !process.runs()
        }));
        child.wait().expect("reap");
        assert!(!process.runs());
    }
}
