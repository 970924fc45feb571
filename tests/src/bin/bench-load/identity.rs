//! An SVID as a sidecar gets its first one: a join token over a connection that is checked against the trust bundle.

use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The control plane's address
    control: SocketAddr,
    /// The directory that `rondel join-token` wrote; `svid.pem` and `key.pem` come beside the token
    directory: PathBuf,
    /// The workload that the token is for, `namespace/name`
    workload: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    scenarios::issue(arguments.control, &arguments.workload, &arguments.directory).await
}
