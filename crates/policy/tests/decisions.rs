//! Compiled policies decide as Cedar does.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

mod agreement;

use agreement::dice::Dice;
use agreement::{Tally, compare};
use std::io::Write as _;

/// Requests of one mesh: making and validating policies costs more than asking them.
const REQUESTS: usize = 40;

/// `CASES` asks for more than the ten thousand of every run; `SEED` for others.
#[test]
fn compiled_policies_decide_as_cedar_does() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (cases, seed) = (number("CASES", 10_000), number("SEED", 2026));
    let mut tally = Tally::default();
    let mut mesh = 0;
    while (tally.cases as u64) < cases {
        compare(&mut Dice::seeded(seed.wrapping_mul(1_000_003).wrapping_add(mesh)), REQUESTS, &mut tally);
        mesh += 1;
        if mesh % 4000 == 0 {
            writeln!(std::io::stdout(), "{} of {cases} cases agreed", tally.cases).expect("out");
        }
    }
    let Tally { meshes, policies, interpreted, cases, outcomes } = tally;
    // Past the test harness, which keeps what a passing test prints: whoever runs the tests should see how much was compared.
    let mut out = std::io::stdout();
    let counted = format!("{policies} policies of {meshes} meshes, {interpreted} of them interpreted");
    writeln!(out, "\ncompiled and reference agreed in {cases} cases: {counted}").expect("out");
    for (reason, count) in &outcomes {
        writeln!(out, "  {count} x {}", reason.map_or("allowed", |reason| reason.as_str())).expect("out");
    }
    assert!(
        outcomes.len() == 4 && outcomes.values().all(|count| *count * 50 > cases),
        "every outcome is met often: {outcomes:?}"
    );
    assert!(interpreted > 0 && interpreted * 4 < policies, "{interpreted} of {policies}");
}

/// The body of the fuzz target, for a few inputs: none, those that choose the same all the time, and some that choose anything.
#[test]
fn whatever_bytes_choose_is_decided_as_cedar_does() {
    agreement::of_bytes(&[]);
    for byte in [0, 1, 2, 0x7f, 0xff] {
        agreement::of_bytes(&[byte; 600]);
    }
    for seed in 0..20 {
        let mut dice = Dice::seeded(seed);
        let bytes: Vec<u8> = (0..700).map(|_| u8::try_from(dice.roll(256)).expect("a byte")).collect();
        agreement::of_bytes(&bytes);
    }
}
