//! SVIDs that an authority issues per second on one core, beside the plain signature that each contains.
//!
//! `cargo run --release --package identity --example issuance [SECONDS]`; part of `make bench`.

#![expect(clippy::expect_used, reason = "a measurement, of an authority that is known to be sound")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use identity::{Authority, PrivateKey, csr};
use model::{SpiffeId, Timestamp, TrustDomain};
use std::time::{Duration, Instant};

/// Calls `work` for so long; how often it was done per second.
fn rate(length: Duration, mut work: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut done = 0_u32;
    while begun.elapsed() < length {
        work();
        done += 1;
    }
    f64::from(done) / begun.elapsed().as_secs_f64()
}

fn main() {
    let length = Duration::from_secs(std::env::args().nth(1).map_or(3, |text| text.parse().expect("seconds")));
    let (now, lifetime) = (Timestamp::from_seconds(1_800_000_000), Duration::from_secs(3600));
    let domain = TrustDomain::parse("bench.example").expect("domain");
    let id = SpiffeId::parse("spiffe://bench.example/ns/bench/sa/web").expect("id");
    let authority = Authority::generate(&domain, now, lifetime * 24).expect("authority");
    let request = csr::build(&PrivateKey::generate().expect("key"), &id).expect("request");
    let key = csr::prove(&request).expect("proven");
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key");
    let random = SystemRandom::new();
    // As many bytes as the signed part of an SVID has.
    let message = [7; 400];
    let signed = rate(length, || {
        let _signature = pair.sign(&random, &message).expect("signature");
    });
    let issued = rate(length, || drop(authority.issue(&key, &id, lifetime, now).expect("issued")));
    let answered = rate(length, || {
        let key = csr::prove(&request).expect("proven");
        drop(authority.issue(&key, &id, lifetime, now).expect("issued"));
    });
    println!("plain P-256 signatures per second and core        {signed:>9.0}");
    println!("SVIDs issued for a proven key                     {issued:>9.0}  ({:.2} of the signatures)", issued / signed);
    println!("requests answered: proof of the key, then an SVID {answered:>9.0}  ({:.2} of the signatures)", answered / signed);
}
