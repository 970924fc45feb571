//! Full handshakes in series: connect, shake hands with a client certificate, say goodbye, see the other end go.

use crate::Latencies;
use crate::identity::presenting;
use anyhow::bail;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::pki::LawlessClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(5);
/// So many failures show that nothing will come of it.
const ERRORS_MAX: u64 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to connect
    address: SocketAddr,
    /// PEM file of the client's certificate chain, leaf first
    #[arg(long)]
    certificate: PathBuf,
    /// PEM file of its key, PKCS #8
    #[arg(long)]
    key: PathBuf,
    /// Offer X25519MLKEM768 before X25519 instead of X25519 alone
    #[arg(long)]
    hybrid: bool,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<serde_json::Value> {
    let client = if arguments.hybrid { LawlessClient::new() } else { LawlessClient::classical() };
    let client = presenting(client, &arguments.certificate, &arguments.key)?.without_resumption();

    let (mut latencies, mut errors, mut group) = (Latencies::default(), 0, String::new());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < arguments.seconds {
        let begun = Instant::now();
        match timeout(DEADLINE, shake(&client, arguments.address)).await {
            Ok(Ok((took, agreed))) => {
                latencies.add(took);
                group = agreed;
            }
            failed => {
                errors += 1;
                if errors >= ERRORS_MAX {
                    let why = failed
                        .map_or_else(|late| late.into(), |failed| failed.err().unwrap_or_else(|| anyhow::anyhow!("no reason")));
                    bail!("{errors} handshakes failed, the last after {} ms: {why:#}", begun.elapsed().as_millis());
                }
            }
        }
    }
    let mut figures = latencies.figures(start.elapsed(), errors);
    if let Some(fields) = figures.as_object_mut() {
        fields.insert("group".to_owned(), group.into());
    }
    Ok(figures)
}

/// One handshake: how long it took, and the key exchange that was agreed on.
async fn shake(client: &LawlessClient, address: SocketAddr) -> anyhow::Result<(Duration, String)> {
    let begun = Instant::now();
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = client.connect(stream).await?;
    let took = begun.elapsed();
    let group =
        stream.get_ref().1.negotiated_key_exchange_group().map_or_else(String::new, |group| format!("{:?}", group.name()));
    stream.shutdown().await?;
    // The server believes the client's certificate only now: an alert here is its refusal.
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest).await {
            Ok(0) => return Ok((took, group)),
            Ok(_) => {}
            // Whoever has our goodbye may go without its own.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset) => {
                return Ok((took, group));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
