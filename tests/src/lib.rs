//! What the programs of the tests share: an SVID as a sidecar gets its first one.

use anyhow::Context;
use hyper_util::rt::TokioIo;
use identity::bundle::pem_section;
use identity::handshake::connect_without_identity;
use identity::{PrivateKey, TrustBundles, csr};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use wire::client::{ControlClient, IssueCall};

const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the control plane for an SVID of `workload` with the join token and the trust bundle that `rondel join-token` wrote into
/// `directory`; `svid.pem` (leaf first) and `key.pem` (PKCS#8) come beside them.
///
/// # Errors
/// - whatever failed, and at which step.
pub async fn issue(control: SocketAddr, workload: &str, directory: &Path) -> anyhow::Result<()> {
    identity::install_provider();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).with_context(|| format!("read `{name}`"));
    let bundles = Arc::new(TrustBundles::from_pem(&read("bundle.pem")?)?);
    let control_plane = bundles.to_model().first().context("an empty trust bundle")?.trust_domain.control_plane();

    let stream = TcpStream::connect(control).await.context("connect to the control plane")?;
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
    let call = IssueCall { csr: request, join_token: Some(token), workload: workload.to_owned(), ..IssueCall::default() };
    let issued = ControlClient::new(channel).issue(call, DEADLINE).await.context("the issue call")?;
    let chain: String = issued.chain.iter().map(|der| pem_section("CERTIFICATE", der)).collect();
    for (name, text) in [("svid.pem", chain), ("key.pem", pem_section("PRIVATE KEY", &key.to_pkcs8_der()))] {
        let file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(directory.join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("write `{name}`"))?;
    }
    Ok(())
}
