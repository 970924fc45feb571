#![no_main]

#[path = "../../crates/policy/tests/agreement/mod.rs"]
#[allow(dead_code)]
mod agreement;

// The bytes choose a mesh, its policies and the requests: compiled and reference must agree on each.
libfuzzer_sys::fuzz_target!(|input: &[u8]| agreement::of_bytes(input));
