//! The proof, from the inside, that the application's traffic is led through this sidecar: without it, it is not ready.
//!
//! The table that [`capture`] loads redirects one destination although the sidecar itself connects to it. Only where the table
//! is in force, in this network namespace and towards this process, does such a connection come back to the outbound port. The
//! table is loaded whole, so that its other rules are in force too. Another destination is redirected for everybody but the user
//! that the table excludes: if a connection to it comes back, so would everything else that this sidecar connects to, for ever. What this cannot show is whether somebody changed single
//! rules afterwards: `rondel-proxy capture check` compares them.

use crate::state::Shared;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// For one connection to come back.
const DEADLINE: Duration = Duration::from_secs(2);
/// Between two attempts as long as the proof fails.
const RETRY: Duration = Duration::from_millis(250);
/// Between two proofs as long as it holds: somebody may take the table away.
const AGAIN: Duration = Duration::from_secs(5);

/// Proves it at the start and from time to time, for ever. Does nothing without `--capture`.
pub async fn run(shared: Arc<Shared>) {
    if !shared.settings.capture {
        return std::future::pending().await;
    }
    loop {
        // First of all: until it is known, every connection of the application might go round in circles.
        let loops = is_led_back(&shared).await;
        if shared.capture_loops.swap(loops, Ordering::AcqRel) != loops && loops {
            tracing::error!(
                "the sidecar's own connections are redirected back to it: it runs as another user than the table excludes"
            );
        }
        let found = prove(&shared).await;
        let is_proven = found.is_ok();
        shared.metrics.capture_proven.set(i64::from(is_proven));
        if shared.capture_proven.swap(is_proven, Ordering::AcqRel) != is_proven {
            match &found {
                Ok(()) => tracing::info!("the application's traffic is captured"),
                Err(missing) => tracing::error!("{missing}"),
            }
        }
        sleep(if is_proven { AGAIN } else { RETRY }).await;
    }
}

async fn prove(shared: &Shared) -> Result<(), String> {
    for probe in [capture::PROBE_V4, capture::PROBE_V6] {
        let came_back = timeout(DEADLINE, comes_back(shared, probe)).await;
        match came_back {
            Ok(Ok(true)) => {}
            // A network namespace without IPv6 has nothing of it to capture.
            Ok(Err(error)) if probe.is_ipv6() && is_without_ipv6(&error) => {}
            Ok(_) | Err(_) => {
                return Err(format!("a connection to {probe} was not redirected to this sidecar: the table is not in force"));
            }
        }
    }
    Ok(())
}

/// Whether this process' own connections come back to it. Where they are left alone, nobody listens at the destination.
async fn is_led_back(shared: &Shared) -> bool {
    matches!(timeout(DEADLINE, comes_back(shared, capture::PROBE_OWN)).await, Ok(Ok(true)))
}

/// Connects to the probe and waits until the listener reports this very connection.
async fn comes_back(shared: &Shared, probe: SocketAddr) -> io::Result<bool> {
    let mut seen = shared.capture_seen.subscribe();
    let stream = TcpStream::connect(probe).await?;
    let own = stream.local_addr()?;
    Ok(seen.wait_for(|last| *last == Some(own)).await.is_ok())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
        || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Linux: the kernel was built without the address family.
const EAFNOSUPPORT: i32 = 97;
