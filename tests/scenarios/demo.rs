//! `make demo ARGS=--once` itself: it keeps its promises, and it notices when the mesh does not.

use crate::mesh::program;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The walk takes about 45 s; a busy machine may take longer.
const DEADLINE: Duration = Duration::from_secs(240);

fn bank() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/bank/mesh")
}

/// Ports of its own for each run: blocks that lie apart, below the ephemeral ones.
fn offset(slot: u32) -> String {
    (300 + (std::process::id() % 14) * 700 + slot * 350).to_string()
}

/// Runs the walk; its exit code and output.
async fn walk(mesh: &Path, slot: u32) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("directory");
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).expect("log");
    let mut command = Command::new(program("bank-demo"));
    command.args(["--once", "--port-offset", &offset(slot), "--mesh"]).arg(mesh);
    let mut child = command.stdin(Stdio::null()).stdout(file.try_clone().expect("log")).stderr(file).spawn().expect("start");
    let deadline = Instant::now() + DEADLINE;
    let code = loop {
        if let Ok(Some(status)) = child.try_wait() {
            break status.code();
        }
        if Instant::now() > deadline {
            crate::mesh::signal(child.id(), rustix::process::Signal::TERM);
            let _ended = child.wait();
            break None;
        }
        sleep(Duration::from_millis(100)).await;
    };
    (code, std::fs::read_to_string(log).unwrap_or_default())
}

/// A copy of the bank's mesh with one line of a file changed.
fn changed(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    for folder in ["", "workloads", "policies"] {
        std::fs::create_dir_all(dir.path().join(folder)).expect("folder");
        for entry in std::fs::read_dir(bank().join(folder)).expect("mesh").flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), dir.path().join(folder).join(entry.file_name())).expect("copy");
        }
    }
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).expect("file");
    assert!(text.contains(from), "`{from}` is not in {file}");
    std::fs::write(path, text.replace(from, to)).expect("write");
    dir
}

#[tokio::test]
async fn the_demo_keeps_every_promise() {
    let (code, text) = walk(&bank(), 0).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(" promises kept") && !text.contains("FAIL"), "{text}");
}

#[tokio::test]
async fn one_wrong_line_in_the_banks_policy_fails_the_demo() {
    // It still compiles, and says something else.
    let wrong = changed(
        "policies/payments.yaml",
        "context.request.body.amount <= context.user.limit",
        "context.request.body.amount <= 9000",
    );
    let (code, text) = walk(wrong.path(), 1).await;
    assert_eq!(code, Some(1), "{text}");
    // It does not compile.
    let broken =
        changed("policies/ledger.yaml", "context.request.path == \"/entries\" &&", "context.request.pth == \"/entries\" &&");
    let (code, text) = walk(broken.path(), 1).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("policies/ledger.yaml:") && text.contains("pth"), "{text}");
}
