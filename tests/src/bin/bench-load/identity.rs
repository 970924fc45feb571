//! An SVID as a sidecar gets its first one: a join token over a connection that is checked against the trust bundle.

use anyhow::Context;
use hyper_util::rt::TokioIo;
use identity::handshake::connect_without_identity;
use identity::{PrivateKey, TrustBundles, csr};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use wire::client::{ControlClient, IssueCall};

const DEADLINE: Duration = Duration::from_secs(10);

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
    identity::install_provider();
    let read = |name: &str| std::fs::read_to_string(arguments.directory.join(name)).with_context(|| format!("read `{name}`"));
    let bundles = Arc::new(TrustBundles::from_pem(&read("bundle.pem")?)?);
    let control_plane = bundles.to_model().first().context("an empty trust bundle")?.trust_domain.control_plane();

    let stream = TcpStream::connect(arguments.control).await.context("connect to the control plane")?;
    let (stream, _peer) = connect_without_identity(stream, &bundles, &control_plane, DEADLINE).await?;
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let taken = once.take().ok_or_else(|| std::io::Error::other("the connection was used up"));
        async move { taken }
    });
    // The address is not used: the connector hands out the stream that was checked above.
    let channel = Endpoint::from_static("http://control.rondel.internal").connect_with_connector(connector).await?;

    let key = PrivateKey::generate()?;
    let request = csr::build(&key, &control_plane)?;
    let token = read("join-token")?.trim().to_owned();
    let call = IssueCall { csr: request, join_token: Some(token), workload: arguments.workload, ..IssueCall::default() };
    let issued = ControlClient::new(channel).issue(call, DEADLINE).await.context("the issue call")?;
    let chain: String = issued.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    for (name, text) in [("svid.pem", chain), ("key.pem", pem("PRIVATE KEY", &key.to_pkcs8_der()))] {
        let file =
            std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(arguments.directory.join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("write `{name}`"))?;
    }
    Ok(())
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: String = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}
