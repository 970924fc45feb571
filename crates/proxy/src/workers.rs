//! One worker thread per core, each with its own single-threaded runtime, connections and pools (design §8).

use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::Pool;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

/// One worker: whatever it accepted it serves to the end.
#[derive(Debug)]
pub struct Worker {
    handle: Mutex<Handle>,
    connections: AtomicUsize,
    /// The connections that this worker keeps to applications and peers.
    pub pool: Pool,
}

/// All workers of the process.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Arc<Worker>>,
    stop: watch::Sender<bool>,
    panics: Counter,
}

impl Workers {
    /// Starts `count` workers, or one per core for 0.
    ///
    /// # Errors
    /// - the operating system's, if a thread or a runtime cannot be made.
    pub fn start(count: usize, metrics: &Metrics) -> std::io::Result<Self> {
        let (panics, restarts) = (metrics.connection_panics.clone(), metrics.worker_restarts.clone());
        let count = if count == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { count };
        let stop = watch::Sender::new(false);
        let mut workers = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = runtime()?;
            let handle = Mutex::new(runtime.handle().clone());
            let worker = Arc::new(Worker { handle, connections: AtomicUsize::new(0), pool: Pool::default() });
            let (running, stopped, restarts) = (Arc::clone(&worker), stop.subscribe(), restarts.clone());
            let named = std::thread::Builder::new().name(format!("worker-{index}"));
            named.spawn(move || keep_running(runtime, &running, &stopped, &restarts))?;
            workers.push(worker);
        }
        Ok(Self { workers, stop, panics })
    }

    /// Runs `task` on the worker with the fewest connections. A panic ends this task only.
    pub fn spawn<F, T>(&self, task: F)
    where
        F: FnOnce(Arc<Worker>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed)) else {
            return;
        };
        let place = Place::take(worker);
        let future = task(Arc::clone(worker));
        let served = worker.handle.lock().spawn(async move {
            let _place = place;
            future.await;
        });
        let panics = self.panics.clone();
        // The runtime catches the panic; who watches counts it.
        let watched = worker.handle.lock().clone();
        watched.spawn(async move {
            if served.await.is_err_and(|error| error.is_panic()) {
                panics.inc();
                tracing::error!("a connection ended by a panic; please report it");
            }
        });
    }

    /// All workers, for the sweeping of their pools.
    pub fn each(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.connections.load(Ordering::Relaxed)).sum()
    }

    /// Ends every worker and whatever it still serves.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Runs a worker until it is told to stop. A runtime that breaks takes its connections with it and is replaced at once.
fn keep_running(mut runtime: Runtime, worker: &Worker, stop: &watch::Receiver<bool>, restarts: &Counter) {
    loop {
        let mut stopped = stop.clone();
        // The sender lives in `Workers`; its end and its word both mean stop.
        let told = async { stopped.wait_for(|stop| *stop).await.is_ok() };
        if catch_unwind(AssertUnwindSafe(|| runtime.block_on(told))).is_ok() {
            return;
        }
        restarts.inc();
        tracing::error!("a worker broke and is replaced");
        // What it kept open ended with it.
        worker.pool.forget();
        match self::runtime() {
            Ok(fresh) => {
                *worker.handle.lock() = fresh.handle().clone();
                runtime = fresh;
            }
            Err(error) => {
                tracing::error!(%error, "no new worker can be made");
                return;
            }
        }
    }
}

/// Counts one connection of a worker for as long as it lives, also through a panic.
struct Place(Arc<Worker>);

impl Place {
    fn take(worker: &Arc<Worker>) -> Self {
        worker.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
