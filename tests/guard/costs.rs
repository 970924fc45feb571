//! The committed costs, and when a new one is too high.

use anyhow::Context;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Instructions may be so much above the committed ones, in parts of a thousand; a figure as much below is worth writing down.
/// Two runs of the same program differ by some 5 % at times: what wakes at which moment is due to chance.
const MORE_MAX: u32 = 80;
/// The same where another compiler or another kind of processor made the program than the one that was written down.
const MORE_ELSEWHERE_MAX: u32 = 200;
/// Allocations may be so much above: whole ones are found, what is due to chance is not.
const ALLOCATIONS_MORE_MAX: f64 = 0.9;

/// What one request costs one sidecar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
}

/// `costs.json`: by lane, by side.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    made_with: String,
    lanes: Map<String, Value>,
}

impl Costs {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path()).with_context(|| format!("read `{}`", path().display()))?;
        let read: Value = serde_json::from_str(&text).context("costs.json")?;
        let lanes = read.get("lanes").and_then(Value::as_object).context("costs.json: `lanes` is missing")?;
        let made_with = read.get("made_with").and_then(Value::as_str).unwrap_or_default();
        Ok(Self { made_with: made_with.to_owned(), lanes: lanes.clone() })
    }

    pub(crate) fn store(&self) -> anyhow::Result<()> {
        let text = json!({ "made_with": made_with(), "lanes": self.lanes });
        std::fs::write(path(), format!("{text:#}\n")).with_context(|| format!("write `{}`", path().display()))
    }

    /// Takes a cost as the committed one; says what changed.
    pub(crate) fn write(&mut self, lane: &str, side: &str, cost: Cost) -> String {
        let before = self.committed(lane, side).map_or_else(|| "new".to_owned(), |before| format!("before: {before}"));
        let lane = self.lanes.entry(lane).or_insert_with(|| json!({}));
        if let Some(sides) = lane.as_object_mut() {
            sides.insert(side.to_owned(), json!({ "instructions": whole(cost.instructions), "allocations": cost.allocations }));
        }
        format!("{cost} written; {before}")
    }

    /// Whether a cost is within what is committed; the text says both. `chance`: how many more allocations are chance, in
    /// parts of a thousand.
    pub(crate) fn check(&self, lane: &str, side: &str, cost: Cost, chance: u32) -> Result<String, String> {
        let Some(committed) = self.committed(lane, side) else {
            return Err(format!("{cost}: nothing is committed; `make guard ARGS=--write` takes it"));
        };
        let here = made_with();
        let is_same = here == self.made_with;
        let more_max = if is_same { MORE_MAX } else { MORE_ELSEWHERE_MAX };
        let made = if is_same { String::new() } else { format!(" by {}, here {here}", self.made_with) };
        let told = format!("{cost}; committed{made}: {committed}");
        let instructions = committed.instructions * f64::from(more_max) / 1000.0;
        let allocations = committed.allocations * f64::from(chance) / 1000.0 + ALLOCATIONS_MORE_MAX;
        let mut wrong = Vec::new();
        if cost.instructions > committed.instructions + instructions {
            wrong.push(format!("instructions more than {} % above", f64::from(more_max) / 10.0));
        }
        if cost.allocations > committed.allocations + allocations {
            wrong.push("more allocations".to_owned());
        }
        if !wrong.is_empty() {
            return Err(format!("{told}: {}; mend it, or take it by `make guard ARGS=--write` and say why", wrong.join(", ")));
        }
        let is_less =
            cost.instructions < committed.instructions - instructions || cost.allocations < committed.allocations - allocations;
        Ok(if is_less { format!("{told}: lower; `make guard ARGS=--write` keeps it so") } else { told })
    }

    fn committed(&self, lane: &str, side: &str) -> Option<Cost> {
        let cost = self.lanes.get(lane)?.get(side)?;
        Some(Cost { instructions: cost.get("instructions")?.as_f64()?, allocations: cost.get("allocations")?.as_f64()? })
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} instructions, {} allocations", self.instructions, self.allocations)
    }
}

/// A count, which JSON writes without a point.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of instructions is whole and not negative")]
const fn whole(count: f64) -> u64 {
    count as u64
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guard/costs.json")
}

/// What decides, beside our code, how many instructions there are.
fn made_with() -> String {
    let output = Command::new("rustc").arg("--version").output();
    let rustc = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let version = rustc.split(' ').nth(1).unwrap_or("unknown");
    format!("rustc {version} on {}", std::env::consts::ARCH)
}
