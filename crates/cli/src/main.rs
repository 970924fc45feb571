//! `rondel`: what a person types.

mod authz;
mod ca;
mod certs;
mod check;
mod exec_child;
mod identity;
mod issuers;
mod join_token;
mod operator;
mod origin;
mod output;
mod status;
mod token;
mod up;

use clap::{Parser, Subcommand};
use model::WorkloadName;
use output::Output;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run and ask a Rondel mesh.
///
/// Exit codes: 0 yes or done; 1 no, not found, or failed; 2 the command line is wrong; 141 whoever read the answer went away.
#[derive(Debug, Parser)]
#[command(name = "rondel", version, arg_required_else_help = true)]
struct Arguments {
    /// How answers are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a whole mesh on this machine from a directory of YAML, until Ctrl-C
    Up(up::Arguments),
    /// Read a directory of YAML as the control plane would, and say what is wrong
    Check {
        /// The directory
        dir: PathBuf,
    },
    /// Show every workload: identity, certificate, connection, revision
    Status(operator::Where),
    /// Show every workload's certificate: chain, authority, serial, time left, key exchange
    Certs(certs::Arguments),
    /// Show each token issuer's keys at every sidecar: their age, the next refresh, the last error, how it answers about opaque tokens
    Issuers(issuers::Arguments),
    /// Show and rotate the authority that signs certificates
    #[command(subcommand)]
    Ca(Ca),
    /// Revoke certificates
    #[command(subcommand)]
    Identity(Identity),
    /// Say why a token is good or bad; revoke tokens, and see which are
    #[command(subcommand)]
    Token(token::Token),
    /// Check, test and try policies; say what was decided and why
    #[command(subcommand)]
    Authz(authz::Authz),
    /// Make a single-use join token for a sidecar that is started by hand
    JoinToken {
        /// The workload, `namespace/name`
        #[arg(value_parser = WorkloadName::parse)]
        workload: WorkloadName,
        /// Owner-only directory for `join-token` and `bundle.pem`; made if it does not exist
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        at: operator::Where,
    },
    /// (internal) Bind a process to the life of its parent, then become it
    #[command(hide = true)]
    ExecChild(exec_child::Arguments),
}

#[derive(Debug, Subcommand)]
enum Ca {
    /// Show the authorities, how far a rotation is and what holds it up, foreign bundles and revoked certificates
    Status(operator::Where),
    /// Replace the authority: prepare, activate, taint, retire, each step when nothing holds it up
    Rotate(ca::Rotate),
}

#[derive(Debug, Subcommand)]
enum Identity {
    /// Refuse certificates everywhere from now on, and end the connections that they opened
    Revoke(identity::Revoke),
}

fn main() -> ExitCode {
    output::end_when_nobody_reads();
    let arguments = Arguments::parse();
    if let Verb::ExecChild(child) = arguments.verb {
        return exec_child::run(child);
    }
    // One thread: the death signal of children is bound to the thread that made them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rondel: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rondel: {}", model::told(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let output = arguments.output;
    match arguments.verb {
        Verb::Up(arguments) => up::run(arguments, output).await,
        Verb::Check { dir } => check::run(&dir, output),
        Verb::Status(at) => status::run(&at, output).await,
        Verb::Certs(arguments) => certs::run(&arguments, output).await,
        Verb::Issuers(arguments) => issuers::run(&arguments, output).await,
        Verb::Ca(Ca::Status(at)) => ca::status(&at, output).await,
        Verb::Ca(Ca::Rotate(arguments)) => ca::rotate(&arguments, output).await,
        Verb::Identity(Identity::Revoke(arguments)) => identity::revoke(&arguments, output).await,
        Verb::Authz(verb) => authz::run(verb, output).await,
        Verb::Token(verb) => token::run(verb, output).await,
        Verb::JoinToken { workload, out, at } => join_token::run(&workload, &out, &at, output).await,
        Verb::ExecChild(_) => Ok(ExitCode::from(2)),
    }
}

/// Where 1 is an answer, what could not be asked is 2.
fn or_two(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("rondel: {}", model::told(error.as_ref()));
        ExitCode::from(2)
    })
}
