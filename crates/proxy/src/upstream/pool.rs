//! Connections that one worker keeps to its application and to peers: the warmest first, none older than allowed.

use crate::http1::Client;
use crate::http2::{Called, Calls};
use crate::mux::{self, Mux};
use crate::upstream::Failure;
use model::Reason;
use model::snapshot::Endpoint;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// The application beside this sidecar, in plaintext on loopback.
    Application(SocketAddr),
    /// A peer's sidecar, by mutual TLS.
    Peer(&'a Endpoint),
}

/// A target that connections are kept to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The application.
    Application(SocketAddr),
    /// A peer's sidecar.
    Peer(Endpoint),
}

impl Target<'_> {
    const fn key(&self) -> (bool, SocketAddr) {
        match self {
            Self::Application(address) => (true, *address),
            Self::Peer(endpoint) => (false, endpoint.address),
        }
    }

    fn is(&self, known: &Known) -> bool {
        match (self, known) {
            (Self::Application(address), Known::Application(known)) => address == known,
            (Self::Peer(endpoint), Known::Peer(known)) => *endpoint == known,
            _ => false,
        }
    }

    fn known(&self) -> Known {
        match self {
            Self::Application(address) => Known::Application(*address),
            Self::Peer(endpoint) => Known::Peer((*endpoint).clone()),
        }
    }
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    hosts: Mutex<HashMap<(bool, SocketAddr), Arc<Host>>>,
}

/// The connections to one target.
#[derive(Debug)]
pub struct Host {
    target: Known,
    idle: Mutex<Vec<Warm>>,
    shared: Mutex<Vec<(Mux, Instant)>>,
    http2: Mutex<Vec<SharedHttp2>>,
    /// Held by whoever makes a connection that others can share.
    turn: tokio::sync::Mutex<()>,
    /// Whether the target takes many streams on a connection. Believed until it chose otherwise.
    shares: AtomicBool,
    open: AtomicUsize,
    in_flight: AtomicUsize,
    /// Nobody looks for it any more: what it kept would be kept for ever.
    left: AtomicBool,
}

/// An open connection that can take a request.
#[derive(Debug)]
pub struct Warm {
    /// The connection.
    pub client: Box<Client>,
    /// When it must no longer be used for new requests.
    pub retire_at: Instant,
    used_at: Instant,
}

/// An open connection of HTTP/2.
#[derive(Debug)]
struct SharedHttp2 {
    calls: Calls,
    retire_at: Instant,
    used_at: Instant,
}

/// The right to send one request; given back when its response has ended.
#[derive(Debug)]
pub struct Lease {
    host: Arc<Host>,
}

impl Pool {
    /// The connections to a target. Hosts without connections are forgotten by `sweep`.
    pub fn host(&self, target: Target<'_>) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        match hosts.get(&target.key()) {
            // An address may have passed to another identity.
            Some(host) if target.is(&host.target) => Arc::clone(host),
            _ => {
                let host = Arc::new(Host::to(target.known()));
                if let Some(before) = hosts.insert(target.key(), Arc::clone(&host)) {
                    before.leave();
                }
                host
            }
        }
    }

    /// Forgets every connection: what drove them is gone.
    pub fn forget(&self) {
        for (_, host) in self.hosts.lock().drain() {
            host.leave();
        }
    }

    /// Closes every connection to a peer, at once or when the requests on it have ended; the next request makes a new handshake.
    pub fn leave_peers(&self) {
        self.hosts.lock().retain(|_, host| {
            let is_peer = matches!(host.target, Known::Peer(_));
            if is_peer {
                host.leave();
            }
            !is_peer
        });
    }

    /// Closes what is too old, closed by the peer, or idle for longer than `idle`.
    pub fn sweep(&self, now: Instant, idle: Duration) {
        let mut hosts = self.hosts.lock();
        for host in hosts.values() {
            host.idle.lock().retain_mut(|warm| {
                now < warm.retire_at && now.saturating_duration_since(warm.used_at) < idle && !warm.client.is_spent()
            });
            host.shared.lock().retain(|(streams, retire_at)| {
                if now >= *retire_at {
                    streams.leave();
                }
                !streams.is_over()
            });
            host.http2.lock().retain(|each| {
                let is_idle = each.calls.streams() == 0 && now.saturating_duration_since(each.used_at) >= idle;
                if now >= each.retire_at || is_idle {
                    each.calls.leave();
                }
                !each.calls.is_over()
            });
        }
        hosts.retain(|_, host| host.open.load(Ordering::Relaxed) > 0 || Arc::strong_count(host) > 1);
    }
}

impl Host {
    fn to(target: Known) -> Self {
        Self {
            target,
            idle: Mutex::default(),
            shared: Mutex::default(),
            http2: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            shares: AtomicBool::new(true),
            open: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            left: AtomicBool::new(false),
        }
    }

    /// Closes what is kept, at once or when the requests on it have ended, and keeps nothing more.
    fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.idle.lock().clear();
        for (streams, _) in self.shared.lock().drain(..) {
            streams.leave();
        }
        for each in self.http2.lock().drain(..) {
            each.calls.leave();
        }
    }

    fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// What was made for a request while its host was left serves this request alone.
    pub fn leave_if_left(&self) {
        if self.is_left() {
            self.leave();
        }
    }

    /// Requests that wait for the end of their response.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Where the connections lead.
    pub const fn target(&self) -> &Known {
        &self.target
    }

    /// A warm connection of HTTP/1, the last used first.
    pub fn warm_http1(&self) -> Option<Warm> {
        let mut idle = self.idle.lock();
        if idle.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(mut warm) = idle.pop() {
            if now < warm.retire_at && !warm.client.is_spent() {
                return Some(warm);
            }
        }
        None
    }

    /// Whether the target is believed to take many streams on a connection.
    pub fn shares(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }

    /// What the target chose.
    pub fn learn_shares(&self, shares: bool) {
        self.shares.store(shares, Ordering::Relaxed);
    }

    /// Waits for the turn to make a connection that others can share.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// A new stream on a connection that is open and young enough.
    pub fn stream(&self) -> Option<(mux::Stream, Instant)> {
        let now = Instant::now();
        let shared = self.shared.lock();
        let mut young = shared.iter().filter(|(_, retire_at)| now < *retire_at);
        young.find_map(|(streams, retire_at)| Some((streams.open()?, *retire_at)))
    }

    /// Offers a connection's streams to later requests.
    pub fn share(&self, streams: Mux, retire_at: Instant) {
        self.shared.lock().push((streams, retire_at));
    }

    /// A request on a connection of HTTP/2 that is open, young enough, and takes one more now.
    pub fn call(&self) -> Option<(Called, Instant)> {
        let mut shared = self.http2.lock();
        if shared.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut young = shared.iter_mut().filter(|each| now < each.retire_at);
        young.find_map(|each| {
            let called = each.calls.begin()?;
            each.used_at = now;
            Some((called, each.retire_at))
        })
    }

    /// Offers a connection of HTTP/2 to later requests.
    pub fn share_http2(&self, calls: Calls, retire_at: Instant) {
        self.http2.lock().push(SharedHttp2 { calls, retire_at, used_at: Instant::now() });
    }

    /// Counts a connection that is about to be opened, until the returned place is dropped.
    ///
    /// # Errors
    /// - [`Failure::Full`] if `limit` are open.
    pub fn open(self: &Arc<Self>, limit: usize) -> Result<OpenPlace, Failure> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::Full { limit });
        }
        Ok(OpenPlace(Arc::clone(self)))
    }

    /// Counts a request until the lease ends.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Lease { host: Arc::clone(self) }
    }
}

/// One counted open connection.
#[derive(Debug)]
pub struct OpenPlace(Arc<Host>);

impl Drop for OpenPlace {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// Keeps a connection for the next request.
    pub fn keep(self, client: Box<Client>, retire_at: Instant) {
        if !self.host.is_left() {
            self.host.idle.lock().push(Warm { client, retire_at, used_at: Instant::now() });
        }
    }

    /// What to call it when the response breaks.
    pub fn reset(&self) -> Reason {
        match self.host.target {
            Known::Application(_) => Reason::ApplicationReset,
            Known::Peer(_) => Reason::UpstreamReset,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.host.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Io;
    use model::SpiffeId;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    fn endpoint(address: SocketAddr, account: &str) -> Endpoint {
        let identity = SpiffeId::parse(&format!("spiffe://shop.example/ns/shop/sa/{account}")).expect("SPIFFE ID");
        Endpoint { address, identity }
    }

    #[tokio::test]
    async fn an_address_that_passes_to_another_identity_leaves_no_connection_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (before, after) = (endpoint(address, "before"), endpoint(address, "after"));
        let pool = Pool::default();
        let later = Instant::now() + Duration::from_secs(60);
        let mut ends = Vec::new();
        // One is kept when the address passes on, the other is in use and comes back after it.
        let host = pool.host(Target::Peer(&before));
        let mut leases = Vec::new();
        for _ in 0..2 {
            let stream = TcpStream::connect(address).await.expect("connect");
            ends.push(listener.accept().await.expect("accept").0);
            let client = Box::new(Client::new(Io::Plain(stream)).placed(host.open(2).expect("a place")));
            leases.push((host.lease(), client));
        }
        let (used, kept) = (leases.pop().expect("one"), leases.pop().expect("another"));
        kept.0.keep(kept.1, later);
        assert!(host.warm_http1().map(|warm| host.lease().keep(warm.client, later)).is_some(), "it was kept");
        pool.host(Target::Peer(&after));
        used.0.keep(used.1, later);
        for mut end in ends {
            let read = tokio::time::timeout(Duration::from_secs(5), end.read(&mut [0; 1])).await;
            assert_eq!(read.expect("the connection was closed").expect("read"), 0);
        }
        assert_eq!(host.open.load(Ordering::Relaxed), 0);
    }
}
