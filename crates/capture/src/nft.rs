//! Loading the table, taking it away, and looking at it, by the program `nft`.

use crate::rules::Rules;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For one run of `nft`.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: bytes of its output that are read.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// The rules could not be put in force, taken away or looked at.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The program is not there.
    #[error("`nft` cannot be run ({0}): install the package `nftables`")]
    Missing(std::io::Error),
    /// The caller may not change the rules of this network namespace.
    #[error("no permission to change the rules of this network namespace: run as root, or with CAP_NET_ADMIN")]
    Permission,
    /// The kernel does not know what the rules need.
    #[error("the kernel lacks what the rules need (nf_tables with nat and redirect): {0}")]
    Unsupported(String),
    /// `nft` did not end.
    #[error("`nft` did not end within {} s and was ended", NFT_DEADLINE.as_secs())]
    Timeout,
    /// `nft` refused the rules.
    #[error("`nft` refused: {0}")]
    Refused(String),
    /// `nft` said what we cannot read.
    #[error("what `nft` says cannot be read: {0}")]
    Unreadable(serde_json::Error),
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Exactly the rules that were asked for.
    InForce,
    /// No table of ours.
    Absent,
    /// A table of ours that was made from other rules.
    OtherRules,
    /// A table of ours that was changed after it was loaded.
    Changed,
}

impl State {
    /// The word for people and scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Absent => "absent",
            Self::OtherRules => "other_rules",
            Self::Changed => "changed",
        }
    }
}

/// Puts the rules in force in this network namespace, whole, in place of what was there. Connections that are open already are
/// not touched.
///
/// # Errors
/// - [`CaptureError`]; nothing is changed then.
pub fn apply(rules: &Rules) -> Result<(), CaptureError> {
    run(&["-f", "-"], &rules.render()).map(drop)
}

/// Takes the table away; it is no error if there is none.
///
/// # Errors
/// - [`CaptureError`]; nothing is changed then.
pub fn remove() -> Result<(), CaptureError> {
    run(&["-f", "-"], "table inet rondel\ndelete table inet rondel\n").map(drop)
}

/// Compares what is in force with the rules.
///
/// # Errors
/// - [`CaptureError`] if it cannot be looked at.
pub fn check(rules: &Rules) -> Result<State, CaptureError> {
    let text = match run(&["-j", "list", "table", "inet", "rondel"], "") {
        Ok(text) => text,
        Err(CaptureError::Refused(detail)) if detail.contains("No such file") => return Ok(State::Absent),
        Err(error) => return Err(error),
    };
    let listed: serde_json::Value = serde_json::from_str(&text).map_err(CaptureError::Unreadable)?;
    let objects = listed.get("nftables").and_then(serde_json::Value::as_array).map_or(&[][..], Vec::as_slice);
    let chains = objects.iter().filter_map(|object| object.pointer("/chain/name")?.as_str());
    if !chains.into_iter().any(|name| name == rules.mark()) {
        return Ok(State::OtherRules);
    }
    let count = objects.iter().filter(|object| object.get("rule").is_some()).count();
    Ok(if count == rules.count() { State::InForce } else { State::Changed })
}

fn run(arguments: &[&str], input: &str) -> Result<String, CaptureError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CaptureError::Missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended before it read everything says why on its standard error.
        let _ended = stdin.write_all(input.as_bytes());
    }
    let (out, complaint) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let succeeded = wait(&mut child)?;
    let (out, complaint) = (out.join().unwrap_or_default(), complaint.join().unwrap_or_default());
    if succeeded { Ok(out) } else { Err(classify(complaint.trim())) }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until the pipe broke is all there is to tell.
        let _ended = pipe.map(|pipe| pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[expect(clippy::disallowed_methods, reason = "a program that runs to its end, not a server")]
fn wait(child: &mut Child) -> Result<bool, CaptureError> {
    let deadline = Instant::now() + NFT_DEADLINE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => {
                let _killed = child.kill();
                let _reaped = child.wait();
                return Err(CaptureError::Timeout);
            }
        }
    }
}

fn classify(complaint: &str) -> CaptureError {
    let first: String = complaint.lines().next().unwrap_or("no word of why").chars().take(300).collect();
    if complaint.contains("Operation not permitted") || complaint.contains("must be root") {
        CaptureError::Permission
    } else if complaint.contains("not supported") || complaint.contains("Could not process rule: No such file") {
        CaptureError::Unsupported(first)
    } else {
        CaptureError::Refused(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_of_nft_becomes_what_to_do() {
        assert!(matches!(classify("Error: Could not process rule: Operation not permitted\n"), CaptureError::Permission));
        assert!(matches!(
            classify("netlink: Error: cache initialization failed: Operation not permitted"),
            CaptureError::Permission
        ));
        assert!(matches!(classify("/dev/stdin:1:1-2: Error: syntax error"), CaptureError::Refused(_)));
        assert!(matches!(classify("Error: Could not process rule: Operation not supported"), CaptureError::Unsupported(_)));
        assert!(CaptureError::Permission.to_string().contains("CAP_NET_ADMIN"));
    }
}
