//! Listening sockets: bound before a configuration is put in force, and handed to the workers from one accept loop each.

use crate::accept::{self, Arrival};
use crate::state::{Active, Shared};
use crate::telemetry::access_log::{Direction, Entry};
use crate::workers::Workers;
use model::{Limit, Reason};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// Connections that the kernel keeps before they are accepted.
const BACKLOG: i32 = 1024;
/// Pause after an accept error such as a full descriptor table, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener could not be bound; the configuration that asks for it is refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {error}")]
pub struct BindFailure {
    /// Where.
    pub address: SocketAddr,
    /// The operating system's word.
    pub error: io::Error,
}

/// The listening sockets of the process, by side and address.
#[derive(Debug, Default)]
pub struct Listeners {
    running: BTreeMap<(bool, SocketAddr), AbortHandle>,
    captured: BTreeSet<(bool, SocketAddr)>,
    open: Arc<[AtomicUsize; 2]>,
}

/// Sockets that were bound for a configuration that is not in force yet.
#[derive(Debug)]
pub struct Bound {
    new: Vec<(bool, SocketAddr, TcpListener)>,
    wanted: BTreeSet<(bool, SocketAddr)>,
}

impl Listeners {
    /// Binds the addresses at which redirected connections arrive. They are kept whatever the configuration says.
    ///
    /// # Errors
    /// - [`BindFailure`] naming the first address that cannot be bound.
    pub fn capture(
        &mut self,
        addresses: &[(bool, SocketAddr)],
        shared: &Arc<Shared>,
        workers: &Arc<Workers>,
    ) -> Result<(), BindFailure> {
        for &(is_inbound, address) in addresses {
            let listener = listen(address).map_err(|error| BindFailure { address, error })?;
            self.accept(listener, address, is_inbound, shared, workers);
        }
        self.captured = addresses.iter().copied().collect();
        Ok(())
    }

    fn accept(
        &mut self,
        listener: TcpListener,
        address: SocketAddr,
        is_inbound: bool,
        shared: &Arc<Shared>,
        workers: &Arc<Workers>,
    ) {
        let accepting =
            accept_loop(listener, address, is_inbound, Arc::clone(shared), Arc::clone(workers), Arc::clone(&self.open));
        self.running.insert((is_inbound, address), tokio::spawn(accepting).abort_handle());
    }

    /// Binds what a configuration asks for and is not open yet. Nothing is accepted until [`Listeners::switch`].
    ///
    /// # Errors
    /// - [`BindFailure`] naming the first address that cannot be bound; all that were bound for it are closed again.
    pub fn bind(&self, active: &Active) -> Result<Bound, BindFailure> {
        let snapshot = &active.snapshot;
        let inbound = snapshot.inbound.iter().map(|inbound| (true, inbound.listen));
        let outbound = snapshot.upstreams.iter().filter_map(|upstream| Some((false, upstream.listen?)));
        let wanted: BTreeSet<_> = if snapshot.captured { self.captured.clone() } else { inbound.chain(outbound).collect() };
        let mut new = Vec::new();
        for &(is_inbound, address) in &wanted {
            if !self.running.contains_key(&(is_inbound, address)) {
                let listener = listen(address).map_err(|error| BindFailure { address, error })?;
                new.push((is_inbound, address, listener));
            }
        }
        Ok(Bound { new, wanted })
    }

    /// Starts to accept on the new sockets and closes those that are no longer wanted; open connections go on.
    pub fn switch(&mut self, bound: Bound, shared: &Arc<Shared>, workers: &Arc<Workers>) {
        self.running.retain(|key, task| {
            let keep = bound.wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (is_inbound, address, listener) in bound.new {
            self.accept(listener, address, is_inbound, shared, workers);
        }
    }

    /// Closes the listening sockets of the inbound side.
    pub fn close_inbound(&mut self) {
        self.running.retain(|(is_inbound, _), task| {
            if *is_inbound {
                task.abort();
            }
            !is_inbound
        });
    }
}

/// A listening TCP socket that may take over an address in TIME_WAIT.
///
/// # Errors
/// - the operating system's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept_loop(
    listener: TcpListener,
    local: SocketAddr,
    is_inbound: bool,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    open: Arc<[AtomicUsize; 2]>,
) {
    let captured = shared.settings.capture && local.ip().is_unspecified();
    let (direction, limit) = match is_inbound {
        true => (Direction::Inbound, Limit::InboundConnections),
        false => (Direction::Outbound, Limit::OutboundConnections),
    };
    let mut fails = false;
    loop {
        let accepted = listener.accept().await.and_then(|(stream, remote)| Ok((stream.into_std()?, remote)));
        let failed_before = std::mem::replace(&mut fails, accepted.is_err());
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !failed_before {
                    tracing::error!(%error, %local, "connections cannot be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let limit_value = shared.active().map_or_else(|| limit.default_value(), |active| active.snapshot.limits.of(limit));
        let Some(place) = Place::take(&open, is_inbound, limit_value) else {
            let mut entry = Entry::begin(&shared, "connection", direction, remote);
            entry.reason = Some(Reason::Overloaded);
            entry.detail = Some(format!("limit `{}` ({limit_value}) is reached", limit.name()));
            continue;
        };
        let shared = Arc::clone(&shared);
        workers.spawn(move |worker| async move {
            let _place = place;
            // The socket is registered with the runtime of the worker that serves it.
            let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
            let _unsupported = stream.set_nodelay(true);
            let local = if captured { original_destination(&stream) } else { Some(local) };
            let remote = canonical(remote);
            let Some(local) = local else {
                return accept::refuse_connection(&shared, remote, direction, Reason::RedirectLoop, NOT_REDIRECTED.to_owned());
            };
            if captured && [capture::PROBE_V4, capture::PROBE_V6, capture::PROBE_OWN].contains(&local) {
                shared.capture_seen.send_replace(Some(remote));
                return;
            }
            if captured && !is_inbound && shared.capture_loops.load(Ordering::Acquire) {
                let detail = format!("{OWN_REDIRECTED}; it was going to {local}");
                return accept::refuse_connection(&shared, remote, direction, Reason::RedirectLoop, detail);
            }
            let arrival = Arrival { stream, remote, local, shared, worker };
            if is_inbound {
                accept::inbound(arrival).await;
            } else {
                accept::outbound(arrival).await;
            }
        });
    }
}

const NOT_REDIRECTED: &str = "the connection was made to the sidecar's own port: no redirection brought it here";

const OWN_REDIRECTED: &str = "the sidecar's own connections are redirected back to it, and this one would be too";

/// Where a redirected connection was going; `None` if nothing redirected it, which would lead back here for ever.
fn original_destination(stream: &tokio::net::TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let own = canonical(stream.local_addr().ok()?);
    let found = if own.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = canonical(found.ok()?.as_socket()?);
    (original != own).then_some(original)
}

/// An IPv4 address in its own form, also where a socket of both families saw it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Counts one open connection of a side.
struct Place {
    open: Arc<[AtomicUsize; 2]>,
    is_inbound: bool,
}

impl Place {
    fn take(open: &Arc<[AtomicUsize; 2]>, is_inbound: bool, limit: u64) -> Option<Self> {
        let place = Self { open: Arc::clone(open), is_inbound };
        let before = place.counter().fetch_add(1, Ordering::Relaxed);
        // Dropping the place takes the count back.
        (u64::try_from(before).unwrap_or(u64::MAX) < limit).then_some(place)
    }

    fn counter(&self) -> &AtomicUsize {
        let [inbound, outbound] = &*self.open;
        if self.is_inbound { inbound } else { outbound }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Ordering::Relaxed);
    }
}
