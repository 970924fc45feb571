//! The connection to the control plane: server-authenticated for the first issue call, mutual TLS ever after.

use crate::anchor::Anchor;
use crate::clock;
use crate::rotate;
use crate::state::Shared;
use hyper_util::rt::TokioIo;
use identity::handshake::{self, Alpn, HandshakeRefusal};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// For the TCP connection, the handshake and HTTP/2's first frames, each.
const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// Why the control plane cannot be reached. The operator must mend the address, the network or the trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    /// The TCP connection failed.
    #[error("connect to the control plane: {0}")]
    Connect(#[from] io::Error),
    /// The TCP connection was not made in time.
    #[error("connect to the control plane: not done within {} ms", STEP_DEADLINE.as_millis())]
    Timeout,
    /// Whoever answers is not this mesh's control plane, or does not take us.
    #[error("handshake with the control plane: {0}")]
    Handshake(#[from] HandshakeRefusal),
    /// HTTP/2 could not begin.
    #[error("begin HTTP/2 with the control plane: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Opens a channel with the SVID if there is one that is still good, else without.
///
/// # Errors
/// - [`LinkFailure`] naming the step.
pub async fn channel(shared: &Shared, anchor: &Anchor) -> Result<Channel, LinkFailure> {
    let stream =
        timeout(STEP_DEADLINE, TcpStream::connect(shared.settings.control)).await.map_err(|_| LinkFailure::Timeout)??;
    stream.set_nodelay(true)?;
    let credentials = shared.credentials().filter(|credentials| rotate::is_good(credentials, clock::now()));
    let (stream, _peer) = match credentials {
        Some(credentials) => {
            let expected = std::slice::from_ref(&anchor.control_plane);
            let (stream, peer, _) = handshake::connect(stream, &credentials, expected, &[Alpn::Http2], STEP_DEADLINE).await?;
            (stream, peer)
        }
        None => handshake::connect_without_identity(stream, &anchor.bundles(), &anchor.control_plane, STEP_DEADLINE).await?,
    };
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let taken = once.take().ok_or_else(|| io::Error::other("the connection was used up"));
        async move { taken }
    });
    // The address is not used: the connector hands out the stream that was checked above.
    let endpoint = Endpoint::from_static("http://control.rondel.internal")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_timeout(STEP_DEADLINE);
    Ok(endpoint.connect_with_connector(connector).await?)
}
