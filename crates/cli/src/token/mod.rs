//! `rondel token`: which tokens are revoked, and why one is good or bad.

mod check;
mod revoke;

use crate::operator::Where;
use crate::output::Output;
use clap::Subcommand;
use std::process::ExitCode;

/// What to do about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Say step by step why a token is good or bad at a workload, and what its sidecar would answer
    ///
    /// Claims are shown, the signature is not. Exit codes: 0 it is good; 1 it is refused; 2 it could not be looked at; 3 that cannot be
    /// said here: the issuer's keys are not at hand, or the token is opaque.
    Check(Box<check::Check>),
    /// Refuse tokens everywhere from now on, and end what they keep open
    Revoke(revoke::Revoke),
    /// Show which tokens are revoked
    Revoked(Where),
}

/// Does it.
pub(crate) async fn run(verb: Token, output: Output) -> anyhow::Result<ExitCode> {
    match verb {
        Token::Check(arguments) => Ok(crate::or_two(check::run(&arguments, output).await)),
        Token::Revoke(arguments) => revoke::revoke(&arguments, output).await,
        Token::Revoked(at) => revoke::revoked(&at, output).await,
    }
}
