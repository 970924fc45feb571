//! What one request costs each sidecar, counted and not timed: instructions and allocations, by callgrind.
//!
//! A real mesh of two workloads, whose sidecars run under valgrind, rests and then carries a number of requests; what was done
//! beyond resting, divided by the number, is the cost of one. No clock and no neighbour on the machine is in it. It is compared with `costs.json`, which only `make guard ARGS=--write` changes. Run it with `make guard`.

#![expect(clippy::disallowed_methods, reason = "tests")]

mod costs;
mod lanes;
mod mesh;
mod profile;

use costs::{Cost, Costs};
use lanes::{LANES, Lane};
use mesh::{Mesh, Setup};
use std::process::ExitCode;

/// Names the sidecar that is measured; without it there is nothing to do.
const PROXY: &str = "RONDEL_GUARD_PROXY";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_writing = arguments.iter().any(|argument| argument == "--write");
    let only = arguments.iter().find(|argument| !argument.starts_with("--"));
    let Some(proxy) = std::env::var_os(PROXY) else {
        println!("guard: skipped: {PROXY} does not say which sidecar to measure; `make guard` builds one");
        return ExitCode::SUCCESS;
    };
    if let Some(missing) = mesh::missing(std::path::Path::new(&proxy)) {
        println!("guard: skipped: {missing}");
        return ExitCode::SUCCESS;
    }
    let lanes: Vec<&Lane> = LANES.iter().filter(|lane| only.is_none_or(|only| lane.name == only)).collect();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(std::path::Path::new(&proxy), &lanes, is_writing)),
        Err(error) => {
            println!("guard: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(proxy: &std::path::Path, lanes: &[&Lane], is_writing: bool) -> ExitCode {
    let mut costs = match Costs::load() {
        Ok(costs) => costs,
        Err(error) if !is_writing => {
            println!("guard: {error}");
            return ExitCode::FAILURE;
        }
        Err(_) => Costs::default(),
    };
    let (mut passed, mut failed) = (0, 0);
    for setup in [Setup::Plain, Setup::Everything] {
        let lanes: Vec<&&Lane> = lanes.iter().filter(|lane| lane.setup == setup).collect();
        if lanes.is_empty() {
            continue;
        }
        let measured = measure(proxy, setup, &lanes).await;
        for (lane, measured) in lanes.iter().zip(&measured) {
            match measured {
                Ok(sides) => {
                    for (side, cost) in sides {
                        let told = if is_writing {
                            Ok(costs.write(lane.name, side, *cost))
                        } else {
                            costs.check(lane.name, side, *cost, lane.chance)
                        };
                        let word = if told.is_ok() { "ok" } else { "FAILED" };
                        let (Ok(what) | Err(what)) = &told;
                        println!("guard: {} {side} ... {word}: {what}", lane.name);
                        if told.is_ok() { passed += 1 } else { failed += 1 }
                    }
                }
                Err(error) => {
                    println!("guard: {} ... FAILED: {error:#}", lane.name);
                    failed += 1;
                }
            }
        }
    }
    if is_writing
        && failed == 0
        && let Err(error) = costs.store()
    {
        println!("guard: {error:#}");
        failed += 1;
    }
    println!("test result: {}. {passed} passed; {failed} failed;", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Sides = Vec<(&'static str, Cost)>;

/// The cost of one request on each lane of one mesh.
async fn measure(proxy: &std::path::Path, setup: Setup, lanes: &[&&Lane]) -> Vec<anyhow::Result<Sides>> {
    let mesh = match Mesh::start(proxy, setup).await {
        Ok(mesh) => mesh,
        Err(error) => {
            let text = format!("{error:#}");
            return lanes.iter().map(|_| Err(anyhow::anyhow!("the mesh did not start: {text}"))).collect();
        }
    };
    let mut all = Vec::new();
    for lane in lanes {
        all.push(lane.measure(&mesh).await.map_err(|error| error.context(mesh.logs())));
    }
    all
}
