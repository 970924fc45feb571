//! One worker thread per core, each with its own single-threaded runtime, connections and pools (design §8).

use crate::upstream::pool::Pool;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// One worker: whatever it accepted it serves to the end.
#[derive(Debug)]
pub struct Worker {
    handle: Handle,
    connections: AtomicUsize,
    /// The connections that this worker keeps to applications and peers.
    pub pool: Pool,
}

/// All workers of the process.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Arc<Worker>>,
    stop: watch::Sender<bool>,
}

impl Workers {
    /// Starts `count` workers, or one per core for 0.
    ///
    /// # Errors
    /// - the operating system's, if a thread or a runtime cannot be made.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let count = if count == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { count };
        let stop = watch::Sender::new(false);
        let mut workers = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let mut stopped = stop.subscribe();
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                // The sender lives in `Workers`; its end and its word both mean stop.
                runtime.block_on(async {
                    let _told = stopped.wait_for(|stop| *stop).await.is_ok();
                });
            })?;
            workers.push(Arc::new(Worker { handle, connections: AtomicUsize::new(0), pool: Pool::default() }));
        }
        Ok(Self { workers, stop })
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
        worker.handle.spawn(async move {
            let _place = place;
            future.await;
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
