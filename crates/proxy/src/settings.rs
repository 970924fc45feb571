//! What the process is told at its start. Everything else comes from the control plane.

use clap::Parser;
use model::WorkloadName;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The sidecar of a Rondel mesh: holds a workload's identity, speaks mutual TLS for it, and decides every inbound call.
#[derive(Clone, Debug, Parser)]
#[command(name = "rondel-proxy", version)]
pub struct Settings {
    /// The workload beside which this sidecar stands, `namespace/name`
    #[arg(long, value_parser = parse_workload, env = "RONDEL_WORKLOAD")]
    pub workload: WorkloadName,
    /// Address of the control plane
    #[arg(long, env = "RONDEL_CONTROL")]
    pub control: SocketAddr,
    /// File with the join token of this workload: single use, lives minutes
    #[arg(long, env = "RONDEL_JOIN_TOKEN_FILE")]
    pub join_token_file: PathBuf,
    /// PEM file with the trust bundle that the first call to the control plane is checked against
    #[arg(long, env = "RONDEL_TRUST_BUNDLE")]
    pub trust_bundle: PathBuf,
    /// Directory for the last good snapshot; made owner-only
    #[arg(long, env = "RONDEL_STATE")]
    pub state: PathBuf,
    /// Address of /metrics, /ready, /live and /config; keep it on loopback or a scrape network
    #[arg(long, env = "RONDEL_ADMIN", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Worker threads; 0 means one per core
    #[arg(long, env = "RONDEL_WORKERS", default_value_t = 0)]
    pub workers: usize,
    /// Whether one JSON line per request and connection goes to standard output
    #[arg(long, env = "RONDEL_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// Log filter, in tracing's syntax; logs go to standard error
    #[arg(long, env = "RONDEL_LOG", default_value = "info")]
    pub log: String,
}

fn parse_workload(text: &str) -> Result<WorkloadName, model::ids::IdError> {
    WorkloadName::parse(text)
}
