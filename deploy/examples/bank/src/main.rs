//! `bank`: four services and an issuer of tokens, each a small HTTP program that knows nothing of the mesh.

mod country;
mod http1;
mod issuer;
mod services;
mod trace;

use clap::{Parser, Subcommand};
use country::CountryOf;
use std::net::SocketAddr;
use std::process::ExitCode;

/// One service of the bank.
#[derive(Debug, Parser)]
#[command(name = "bank", version)]
struct Arguments {
    /// All traffic is redirected to a sidecar: listen at any address, and take a client's own from x-forwarded-for
    #[arg(long, global = true)]
    captured: bool,
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// Faces the client; knows from its address in which country it sits
    Web {
        #[arg(long)]
        listen: SocketAddr,
        /// Where the payments service is reached
        #[arg(long)]
        payments: SocketAddr,
        /// NETWORK=COUNTRY, several times
        #[arg(long, value_parser = CountryOf::parse)]
        country: Vec<CountryOf>,
    },
    /// Makes transfers: asks fraud, then writes into the ledger
    Payments {
        #[arg(long)]
        listen: SocketAddr,
        /// Where the ledger is reached
        #[arg(long)]
        ledger: SocketAddr,
        /// Where the fraud service is reached
        #[arg(long)]
        fraud: SocketAddr,
    },
    /// Keeps entries
    Ledger {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Scores a transfer by what the ledger says of the account
    Fraud {
        #[arg(long)]
        listen: SocketAddr,
        /// Where the ledger is reached
        #[arg(long)]
        ledger: SocketAddr,
    },
    /// Mints development tokens for tina, frank and aura: not for production
    Issuer {
        #[arg(long)]
        listen: SocketAddr,
        /// The `iss` of its tokens [default: http://LISTEN]
        #[arg(long)]
        url: Option<String>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { captured, service } = Arguments::parse();
    match run(service, captured).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bank: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(service: Service, captured: bool) -> anyhow::Result<()> {
    let (Service::Web { listen, .. }
    | Service::Payments { listen, .. }
    | Service::Ledger { listen }
    | Service::Fraud { listen, .. }
    | Service::Issuer { listen, .. }) = service;
    http1::may_listen(listen, captured)?;
    match service {
        Service::Web { listen, payments, country } => services::web(listen, payments, country, captured).await,
        Service::Payments { listen, ledger, fraud } => services::payments(listen, ledger, fraud).await,
        Service::Ledger { listen } => services::ledger(listen).await,
        Service::Fraud { listen, ledger } => services::fraud(listen, ledger).await,
        Service::Issuer { listen, url } => issuer::run(listen, url).await,
    }
}
