//! The walk of `make demo`: a whole mesh on this machine, step by step, each promise checked against what really happened.

#![expect(clippy::indexing_slicing, reason = "only JSON is indexed here, which yields null where there is nothing")]

mod client;
mod denials;
mod mesh;
mod report;
mod steps;

use clap::Parser;
use mesh::Bank;
use report::Report;
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
    let arguments = Arguments::parse();
    let mut report = Report::default();
    let kept = tokio::select! {
        walked = walk(&arguments, &mut report) => match walked {
            Ok(kept) => kept,
            Err(error) => {
                eprintln!("\nbank-demo: {error:#}");
                false
            }
        },
        () = interrupted() => {
            eprintln!("\nbank-demo: interrupted");
            false
        }
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The whole walk. The mesh ends when this does, whatever way it ends.
async fn walk(arguments: &Arguments, report: &mut Report) -> anyhow::Result<bool> {
    let mut bank = Bank::start(&arguments.mesh, arguments.port_offset).await?;
    steps::allowed(&bank, report).await?;
    denials::walk(&bank, report).await?;
    steps::policy(&bank, report).await?;
    steps::rotation(&bank, report).await?;
    steps::control_plane(&bank, report).await?;
    let kept = report.summary();
    if !arguments.once {
        bank.print_addresses();
        tokio::select! {
            () = interrupted() => println!("\nending"),
            ended = bank.ended() => anyhow::bail!("the mesh ended by itself: {ended}"),
        }
    }
    bank.stop().await;
    Ok(kept)
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
