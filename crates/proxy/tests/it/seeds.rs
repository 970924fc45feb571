//! The seeds of the fuzz targets, every beginning of them, and seeds that were changed here and there, as ordinary tests.

#[path = "../../../../fuzz/invariants.rs"]
mod invariants;

use std::path::Path;

/// How many times each seed is changed. Deterministic: a failing test fails again.
const CHANGED: u64 = 100;

/// A seed with some bytes changed, doubled, left out or put in.
fn changed(seed: &[u8], round: u64) -> Vec<u8> {
    let (mut bytes, mut state) = (seed.to_vec(), round);
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound.max(1)
    };
    for _ in 0..=random(4) {
        let at = random(bytes.len());
        let odd = [b'\r', b'\n', 0, b' ', b':', 0xff, random(256).to_le_bytes()[0]][random(7)];
        match random(5) {
            _ if bytes.is_empty() => bytes.push(odd),
            0 => bytes[at] = odd,
            1 => bytes[at] ^= 1 << random(8),
            2 => bytes.insert(at, odd),
            3 => drop(bytes.drain(at..(at + random(9)).min(bytes.len()))),
            _ => {
                let part = bytes[at..(at + random(60)).min(bytes.len())].to_vec();
                bytes.extend(part);
            }
        }
    }
    bytes
}

fn every_beginning_and_change_holds(target: &str, invariant: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let seed = std::fs::read(entry.path()).unwrap();
        for end in 0..=seed.len() {
            invariant(&seed[..end]);
        }
        for round in 0..CHANGED {
            invariant(&changed(&seed, round));
        }
        count += 1;
    }
    assert!(count >= 8, "{count} seeds in {}", folder.display());
}

#[test]
fn requests_read_the_same_however_they_arrive_for_every_seed() {
    every_beginning_and_change_holds("framing", invariants::framing);
}

#[test]
fn detection_holds_for_every_seed() {
    every_beginning_and_change_holds("detect", invariants::detect);
}

#[test]
fn what_is_forwarded_is_accepted_as_the_same_for_every_seed() {
    every_beginning_and_change_holds("target", invariants::target);
}

#[test]
fn no_claim_of_a_caller_is_forwarded_for_every_seed() {
    every_beginning_and_change_holds("claims", invariants::claims);
}

#[test]
fn responses_read_the_same_however_they_arrive_for_every_seed() {
    every_beginning_and_change_holds("answer", invariants::answer);
}

#[test]
fn streams_between_sidecars_are_the_same_however_they_arrive_for_every_seed() {
    every_beginning_and_change_holds("mux", invariants::mux);
}

#[test]
fn http2_says_the_same_however_it_arrives_for_every_seed() {
    every_beginning_and_change_holds("http2", invariants::http2);
}
