//! The walk of `make demo`: a whole mesh on this machine, step by step, each promise checked against what really happened.

#![expect(clippy::indexing_slicing, reason = "only JSON is indexed here, which yields null where there is nothing")]

mod client;
mod denials;
mod files;
mod mesh;
mod report;
mod steps;

use anyhow::{anyhow, bail};
use clap::Parser;
use mesh::Bank;
use report::{Report, quote, say};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Start the bank mesh, walk through it, and stay up until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "bank-demo", version)]
struct Arguments {
    /// End after the walk: 0 if every promise was kept, 1 if not
    #[arg(long)]
    once: bool,
    /// Directory of the mesh's YAML; it is copied, never changed
    #[arg(long, default_value = "deploy/examples/bank/mesh")]
    mesh: PathBuf,
    /// Added to every port of the mesh, where the usual ones are taken
    #[arg(long, default_value_t = 0)]
    port_offset: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nbank-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything, from the start of the mesh to its end; true if every promise was kept. The mesh ends when this does, whatever
/// way it ends.
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let bank = tokio::select! {
        started = Bank::start(&arguments.mesh, arguments.port_offset) => started?,
        () = interrupted() => bail!("interrupted"),
    };
    let mut report = Report::default();
    let walked = tokio::select! {
        walked = walk(&bank, &mut report) => walked,
        ended = bank.ended() => Err(anyhow!("the mesh ended by itself: {ended}")),
        () = interrupted() => Err(anyhow!("interrupted")),
    };
    if let Err(error) = &walked {
        report.promise("walk", "goes to its end", &format!("{error:#}"), false);
        quote(3, &format!("the end of what `rondel up` printed:{}", bank.log_tail()));
    }
    let kept = report.summary();
    if !arguments.once && walked.is_ok() {
        bank.print_addresses();
        tokio::select! {
            () = interrupted() => say("\nending"),
            ended = bank.ended() => bail!("the mesh ended by itself: {ended}; the end of what it printed:{}", bank.log_tail()),
        }
    }
    bank.stop().await;
    Ok(kept)
}

/// The steps, in order.
async fn walk(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    steps::allowed(bank, report).await?;
    denials::walk(bank, report).await?;
    steps::policy(bank, report).await?;
    steps::rotation(bank, report).await?;
    steps::control_plane(bank, report).await
}

/// Waits for Ctrl-C, a request to end, or the end of the terminal.
async fn interrupted() {
    let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = all else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
