//! Connections that one worker keeps to its application and to peers: the warmest first, none older than allowed.

use crate::body::Body;
use crate::upstream::Failure;
use hyper::client::conn::{http1, http2};
use model::Reason;
use model::snapshot::Endpoint;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The application beside this sidecar, in plaintext on loopback.
    Application(SocketAddr),
    /// A peer's sidecar, by mutual TLS.
    Peer(Endpoint),
}

impl Target {
    /// What to call a connection of this target that broke.
    pub const fn reset(&self) -> Reason {
        match self {
            Self::Application(_) => Reason::ApplicationReset,
            Self::Peer(_) => Reason::UpstreamReset,
        }
    }
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    hosts: Mutex<HashMap<Target, Arc<Host>>>,
}

/// The connections to one target.
#[derive(Debug)]
pub struct Host {
    target: Target,
    idle: Mutex<Vec<Warm<http1::SendRequest<Body>>>>,
    shared: Mutex<Vec<Warm<http2::SendRequest<Body>>>>,
    open: AtomicUsize,
    in_flight: AtomicUsize,
}

/// An open connection that can take a request.
#[derive(Debug)]
struct Warm<S> {
    sender: S,
    /// When it must no longer be used for new requests.
    retire_at: Instant,
    used_at: Instant,
}

/// The right to send one request; given back when its response has ended.
#[derive(Debug)]
pub struct Lease {
    host: Arc<Host>,
    http1: Option<Warm<http1::SendRequest<Body>>>,
}

/// What a lease sends with.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time; comes back through the lease.
    Http1(http1::SendRequest<Body>, Instant),
    /// Shared by many requests.
    Http2(http2::SendRequest<Body>),
}

impl Pool {
    /// The connections to a target. Hosts without connections are forgotten by `sweep`.
    pub fn host(&self, target: &Target) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        Arc::clone(hosts.entry(target.clone()).or_insert_with(|| {
            Arc::new(Host {
                target: target.clone(),
                idle: Mutex::default(),
                shared: Mutex::default(),
                open: AtomicUsize::new(0),
                in_flight: AtomicUsize::new(0),
            })
        }))
    }

    /// Forgets every connection: what drove them is gone.
    pub fn forget(&self) {
        self.hosts.lock().clear();
    }

    /// Closes what is too old, closed by the peer, or idle for longer than `idle`.
    pub fn sweep(&self, now: Instant, idle: Duration) {
        let mut hosts = self.hosts.lock();
        for host in hosts.values() {
            host.idle.lock().retain(|warm| warm.fresh(now, idle) && !warm.sender.is_closed());
            let busy = host.in_flight.load(Ordering::Relaxed) > 0;
            host.shared.lock().retain(|warm| (busy || warm.fresh(now, idle)) && now < warm.retire_at && !warm.sender.is_closed());
        }
        hosts.retain(|_, host| host.open.load(Ordering::Relaxed) > 0 || Arc::strong_count(host) > 1);
    }
}

impl<S> Warm<S> {
    fn fresh(&self, now: Instant, idle: Duration) -> bool {
        now < self.retire_at && now.saturating_duration_since(self.used_at) < idle
    }
}

impl Host {
    /// Requests that wait for the end of their response.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Where the connections lead.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A warm HTTP/1.1 connection, the last used first. One whose last request is still being sent is left where it is.
    pub fn warm_http1(&self) -> Option<Sender> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|warm| now < warm.retire_at && !warm.sender.is_closed());
        let ready = idle.iter().rposition(|warm| warm.sender.is_ready())?;
        let warm = idle.remove(ready);
        Some(Sender::Http1(warm.sender, warm.retire_at))
    }

    /// A warm HTTP/2 connection.
    pub fn warm_http2(&self) -> Option<Sender> {
        let now = Instant::now();
        let mut shared = self.shared.lock();
        shared.retain(|warm| now < warm.retire_at && !warm.sender.is_closed());
        let warm = shared.iter_mut().find(|warm| warm.sender.is_ready())?;
        warm.used_at = now;
        Some(Sender::Http2(warm.sender.clone()))
    }

    /// Offers a new HTTP/2 connection to later requests.
    pub fn share(&self, sender: http2::SendRequest<Body>, retire_at: Instant) {
        self.shared.lock().push(Warm { sender, retire_at, used_at: Instant::now() });
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
        Lease { host: Arc::clone(self), http1: None }
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
    /// Keeps an HTTP/1.1 connection with the lease while its response is under way.
    pub fn keep(&mut self, sender: http1::SendRequest<Body>, retire_at: Instant) {
        self.http1 = Some(Warm { sender, retire_at, used_at: Instant::now() });
    }

    /// What to call it when the response breaks.
    pub fn reset(&self) -> Reason {
        self.host.target.reset()
    }

    /// The response has ended: its connection may serve another request.
    pub fn give_back(mut self) {
        if let Some(mut warm) = self.http1.take()
            && !warm.sender.is_closed()
        {
            warm.used_at = Instant::now();
            self.host.idle.lock().push(warm);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.host.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
