//! What the process is told at its start.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The control plane of a Rondel mesh: issues certificates and distributes configuration.
#[derive(Clone, Debug, Parser)]
#[command(name = "rondel-control", version)]
pub(crate) struct Settings {
    /// Directory of YAML that says what the mesh should be; watched for changes
    #[arg(long, env = "RONDEL_CONFIG")]
    pub(crate) config: PathBuf,
    /// Directory of the authority's key, the store and the operator socket; made owner-only
    #[arg(long, env = "RONDEL_CONTROL_STATE")]
    pub(crate) state: PathBuf,
    /// Address for sidecars: gRPC over TLS
    #[arg(long, env = "RONDEL_LISTEN", default_value = "127.0.0.1:7400")]
    pub(crate) listen: SocketAddr,
    /// Address of /metrics, /ready and /live
    #[arg(long, env = "RONDEL_ADMIN", default_value = "127.0.0.1:7401")]
    pub(crate) admin: SocketAddr,
    /// Log filter, in tracing's syntax; logs go to standard error
    #[arg(long, env = "RONDEL_LOG", default_value = "info")]
    pub(crate) log: String,
}
