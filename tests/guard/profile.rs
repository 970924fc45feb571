//! Callgrind's counts of a running process.

use anyhow::{Context, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// The functions of libc that give memory. Only calls from outside are counted: libc does not call itself by these names.
const ALLOCATE: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// Costs between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) instructions: u64,
    pub(crate) allocations: u64,
}

/// Tells callgrind in a process what to do: `instrumentation on`, `zero`, `dump`.
pub(crate) fn tell(pid: u64, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("timeout");
    command.args(["30", "vgdb", &format!("--pid={pid}")]).args(words).stdin(Stdio::null());
    let output = command.output().context("run `vgdb`")?;
    if !output.status.success() {
        bail!("`vgdb {}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Reads one dump, as callgrind writes it with `--compress-strings=no`.
pub(crate) fn read(file: &Path) -> anyhow::Result<Counts> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    parse(&text).with_context(|| format!("`{}` is not a whole profile", file.display()))
}

fn parse(text: &str) -> Option<Counts> {
    let mut counts = Counts::default();
    let (mut called, mut is_whole) = ("", false);
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("cfn=") {
            called = function;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            if ALLOCATE.contains(&called) {
                counts.allocations += calls.split(' ').next()?.parse::<u64>().ok()?;
            }
        } else if let Some(total) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            counts.instructions = total.trim().parse().ok()?;
            is_whole = true;
        }
    }
    is_whole.then_some(counts)
}
