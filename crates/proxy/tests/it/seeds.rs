//! The seeds of the fuzz targets, and every beginning of them, as ordinary tests.

#[path = "../../../../fuzz/invariants.rs"]
mod invariants;

use std::path::Path;

fn every_beginning_holds(target: &str, invariant: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let seed = std::fs::read(entry.path()).unwrap();
        for end in 0..=seed.len() {
            invariant(&seed[..end]);
        }
        count += 1;
    }
    assert!(count >= 8, "{count} seeds in {}", folder.display());
}

#[test]
fn the_framing_guard_holds_for_every_seed() {
    every_beginning_holds("framing", invariants::framing);
}

#[test]
fn detection_holds_for_every_seed() {
    every_beginning_holds("detect", invariants::detect);
}

#[test]
fn what_is_forwarded_is_accepted_as_the_same_for_every_seed() {
    every_beginning_holds("target", invariants::target);
}
