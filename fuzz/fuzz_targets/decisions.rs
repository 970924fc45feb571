#![no_main]

#[path = "../../crates/policy/tests/agreement/mod.rs"]
#[allow(dead_code)]
mod agreement;

use agreement::dice::Dice;
use agreement::{Tally, compare};

// The bytes choose a mesh, its policies and the requests: compiled and reference must agree on each.
libfuzzer_sys::fuzz_target!(|input: &[u8]| compare(&mut Dice::of(input), 8, &mut Tally::default()));
