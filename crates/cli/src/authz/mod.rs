//! `rondel authz`: policies, and what came of them.

mod can;
mod check;
mod junit;
mod question;
mod records;
mod schema;
mod shadow;
mod test;

use crate::operator::Where;
use crate::or_two;
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
    /// Say whether a call may be made, by the policies in force or those of a directory, and why; those in shadow mode are not asked
    ///
    /// Exit codes: 0 it may; 1 it may not; 2 it could not be asked.
    Can(Box<can::Can>),
    /// Run files of cases against the policies of a directory
    ///
    /// Exit codes: 0 all passed; 1 a case failed; 2 they could not be run.
    Test(test::Test),
    /// Say what is wrong with the policies of a directory, and what is probably not meant
    ///
    /// Exit codes: 0 nothing that is denied; 1 an error, or a warning with `--deny warnings`; 2 the directory could not be read.
    Check(check::Check),
    /// Print the Cedar schema that the policies of a service are checked against
    ///
    /// Exit codes: 0 it is printed; 2 it could not be asked.
    Schema(schema::Schema),
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
        Authz::Can(can) => Ok(or_two(can::run(&can, output).await)),
        Authz::Test(test) => Ok(or_two(test::run(&test, output).await)),
        Authz::Check(check) => Ok(or_two(check::run(&check, output))),
        Authz::Schema(schema) => Ok(or_two(schema::run(&schema, output).await)),
        Authz::Decisions { denied, limit, at } => records::decisions(denied, limit, &at, output).await,
    }
}
