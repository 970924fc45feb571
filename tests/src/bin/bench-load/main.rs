//! `bench-load`: what `make bench` needs and the tools of a distribution do not do.
//!
//! Requests that are due at their own times, whatever the answers take ([`steady`]); full handshakes with a chosen key exchange
//! ([`handshakes`]); bad tokens ([`flood`]); an identity that the mesh itself issued ([`identity`]); and a core that is kept from falling asleep.

mod flood;
mod handshakes;
mod identity;
mod steady;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(name = "bench-load", version)]
struct Arguments {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Sends HTTP/1.1 requests at random times of a given mean rate; a latency counts from the time at which its request was due
    Steady(steady::Arguments),
    /// Makes full TLS 1.3 handshakes with a client certificate, one after the other
    Handshakes(handshakes::Arguments),
    /// Sends bad tokens, each another one, over mutual TLS
    Flood(flood::Arguments),
    /// Gets an SVID for a join token, as a sidecar does, and writes it down
    Identity(identity::Arguments),
    /// Keeps the core that it is bound to from sleeping; start it at idle priority
    Awake,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().load {
        Load::Steady(arguments) => steady::run(&arguments).map(Some),
        Load::Handshakes(arguments) => on_one_thread(handshakes::run(arguments)).map(Some),
        Load::Flood(arguments) => on_one_thread(flood::run(arguments)).map(Some),
        Load::Identity(arguments) => on_one_thread(identity::run(arguments)).map(|()| None),
        Load::Awake => loop {
            // A pause leaves the other half of a shared core alone.
            (0..16).for_each(|_| std::hint::spin_loop());
            std::thread::yield_now();
        },
    };
    match outcome {
        Ok(figures) => {
            if let Some(figures) = figures {
                println!("{figures}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Latencies in whole microseconds.
#[derive(Debug, Default)]
struct Latencies(Vec<u32>);

impl Latencies {
    fn add(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The latency below which so many of a thousand lie; the list must be sorted.
    fn at(&self, of_a_thousand: usize) -> Option<u32> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get((self.0.len() * of_a_thousand / 1000).min(last)).copied()
    }

    fn figures(mut self, over: Duration, errors: u64) -> serde_json::Value {
        self.0.sort_unstable();
        serde_json::json!({
            "requests": self.0.len(), "errors": errors, "rps": self.0.len() as f64 / over.as_secs_f64(),
            "p50": self.at(500), "p90": self.at(900), "p99": self.at(990), "p999": self.at(999), "max": self.0.last(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_sorted_list() {
        let mut latencies = Latencies::default();
        (1..=1000).rev().for_each(|micros| latencies.add(Duration::from_micros(micros)));
        let figures = latencies.figures(Duration::from_secs(2), 3);
        assert_eq!(
            (figures["p50"].as_u64(), figures["p99"].as_u64(), figures["max"].as_u64()),
            (Some(501), Some(991), Some(1000))
        );
        assert_eq!(
            (figures["requests"].as_u64(), figures["rps"].as_f64(), figures["errors"].as_u64()),
            (Some(1000), Some(500.0), Some(3))
        );
        assert_eq!(Latencies::default().figures(Duration::from_secs(1), 0)["p50"], serde_json::Value::Null);
    }
}
