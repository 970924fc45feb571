//! `rondel authz`: policies, and what came of them.

mod records;
mod shadow;

use crate::operator::Where;
use crate::output::Output;
use clap::Subcommand;
use model::{DecisionId, WorkloadName};
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum Authz {
    /// Show which policies determined a decision, the attributes that they read, and the nearest miss
    Explain {
        /// The decision id, as in the response header `x-rondel-decision`
        #[arg(value_parser = DecisionId::parse)]
        id: DecisionId,
        #[command(flatten)]
        at: Where,
    },
    /// Show what policies in shadow mode would have changed, by workload and policy
    Shadow {
        /// Only this workload, `namespace/name`
        #[arg(long, value_parser = WorkloadName::parse)]
        workload: Option<WorkloadName>,
        /// Only what happened within this time, such as `30s`, `10m`, `12h` or `7d`; left out, since the control plane started
        #[arg(long, value_parser = shadow::ago)]
        since: Option<std::time::Duration>,
        #[command(flatten)]
        at: Where,
    },
    /// List recent decisions, newest first
    Decisions {
        /// Only refused calls
        #[arg(long)]
        denied: bool,
        /// At most this many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        at: Where,
    },
}

/// Does what was asked for.
pub(crate) async fn run(verb: Authz, output: Output) -> anyhow::Result<ExitCode> {
    match verb {
        Authz::Explain { id, at } => records::explain(id, &at, output).await,
        Authz::Shadow { workload, since, at } => shadow::run(workload.as_ref(), since, &at, output).await,
        Authz::Decisions { denied, limit, at } => records::decisions(denied, limit, &at, output).await,
    }
}
