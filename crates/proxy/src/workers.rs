//! One worker thread per core, each with its own single-threaded runtime, connections and pools (design §8).

use crate::connection::Connection;
use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::Pool;
use futures_util::FutureExt;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

/// For a worker to let go of what it serves when the process ends, and how often it is looked at.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
const STOP_LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often a worker wakes without a reason.
const TICK: Duration = Duration::from_secs(1);

/// LIMIT: workers that count for themselves; more than these share.
const COUNTS_MAX: usize = 64;
/// How much threads of the background give way, in the system's own measure (`nice`, from 0 to 19).
const BACKGROUND_NICE: i32 = 10;
/// Random bytes that a thread fetches at a time.
const RANDOM_BYTES: usize = 1024;

thread_local! {
    /// Which worker this thread is, from 1; 0 for every other thread.
    static INDEX: Cell<usize> = const { Cell::new(0) };
    static RANDOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Which worker the calling thread is, from 1; 0 for every other thread.
pub fn index() -> usize {
    INDEX.get()
}

/// The calling thread gives way to the workers where they want the same core: what it does is no part of a request.
pub fn give_way() {
    // Where the system does not let it, requests wait a little longer now and then.
    let _refused = rustix::process::setpriority_process(None, BACKGROUND_NICE);
}

/// How many places what is counted by worker has: one for each, and one for every other thread.
pub fn count_max() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(COUNTS_MAX) + 1
}

/// Random bytes for a name that nobody must guess. Fetched many at a time: the generator's price is mostly one by call.
pub fn random_bytes() -> [u8; 16] {
    RANDOM.with_borrow_mut(|pool| {
        if pool.len() < 16 {
            *pool = identity::random_bytes::<RANDOM_BYTES>().unwrap_or([0; RANDOM_BYTES]).into();
        }
        let mut bytes = [0; 16];
        let left = pool.len() - 16;
        bytes.copy_from_slice(pool.get(left..).unwrap_or(&[0; 16]));
        pool.truncate(left);
        bytes
    })
}

/// One worker: whatever it accepted it serves to the end.
#[derive(Debug)]
pub struct Worker {
    handle: Mutex<Handle>,
    served: AtomicUsize,
    /// Every connection that it serves, so that one look a second finds those that should end.
    pub connections: Register,
    /// The connections that this worker keeps to applications and peers.
    pub pool: Pool,
}

/// The connections of a worker, by number.
#[derive(Debug, Default)]
pub struct Register(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    known: Vec<Weak<Connection>>,
    free: Vec<usize>,
}

impl Register {
    /// Makes a connection that knows its own number. It must `forget` it when it ends.
    pub fn register(&self, make: impl FnOnce(usize) -> Connection) -> Arc<Connection> {
        let mut places = self.0.lock();
        let number = places.free.pop().unwrap_or(places.known.len());
        let connection = Arc::new(make(number));
        match places.known.get_mut(number) {
            Some(place) => *place = Arc::downgrade(&connection),
            None => places.known.push(Arc::downgrade(&connection)),
        }
        connection
    }

    /// Gives a number free.
    pub fn forget(&self, number: usize) {
        let mut places = self.0.lock();
        if let Some(place) = places.known.get_mut(number) {
            *place = Weak::new();
            places.free.push(number);
        }
    }

    /// Ends every connection at once: the process ends.
    fn cut(&self) {
        let known: Vec<_> = self.0.lock().known.iter().filter_map(Weak::upgrade).collect();
        for connection in known {
            connection.cut();
        }
    }

    /// Has every connection look whether it should end.
    pub fn look(&self) {
        let known: Vec<_> = self.0.lock().known.iter().filter_map(Weak::upgrade).collect();
        for connection in known {
            connection.look();
        }
    }
}

/// All workers of the process.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Arc<Worker>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
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
        let (mut workers, mut threads) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let runtime = runtime()?;
            let handle = Mutex::new(runtime.handle().clone());
            let worker =
                Arc::new(Worker { handle, served: AtomicUsize::new(0), connections: Register::default(), pool: Pool::default() });
            let (running, stopped, restarts) = (Arc::clone(&worker), stop.subscribe(), restarts.clone());
            let named = std::thread::Builder::new().name(format!("worker-{index}"));
            // The sender lives in `Workers`; its end and its word both mean stop.
            let told = move || {
                let mut stopped = stopped.clone();
                async move {
                    tokio::select! {
                        stop = stopped.wait_for(|stop| *stop) => stop.is_ok(),
                        () = tick() => false,
                    }
                }
            };
            threads.push(named.spawn(move || {
                INDEX.set(index + 1);
                keep_running(runtime, &running, &restarts, told);
            })?);
            workers.push(worker);
        }
        Ok(Self { workers, threads: Mutex::new(threads), stop, panics })
    }

    /// Runs `task` on the worker with the fewest connections. A panic ends this task only.
    pub fn spawn<F, T>(&self, task: F)
    where
        F: FnOnce(Arc<Worker>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.served.load(Ordering::Relaxed)) else {
            return;
        };
        let place = Place::take(worker);
        let panics = self.panics.clone();
        let told = move |ended: std::thread::Result<()>| {
            drop(place);
            if ended.is_err() {
                panics.inc();
                tracing::error!("a connection ended by a panic; please report it");
            }
        };
        // An `async` block would hold the task twice: where it was before it was waited for, and where it is.
        worker.handle.lock().spawn(AssertUnwindSafe(task(Arc::clone(worker))).catch_unwind().map(told));
    }

    /// All workers, for the sweeping of their pools.
    pub fn each(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.served.load(Ordering::Relaxed)).sum()
    }

    /// Ends every worker and whatever it still serves, which tells its end. Waits for them, up to a bound.
    pub async fn stop(&self) {
        for worker in &self.workers {
            worker.connections.cut();
        }
        self.stop.send_replace(true);
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.threads.lock().iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            tokio::time::sleep(STOP_LOOK_EVERY).await;
        }
    }
}

/// Keeps the runtime's next wake within a second. Each request sets a deadline far beyond that, which otherwise would be the
/// earliest one and cost a system call to tell the sleeping driver of.
async fn tick() {
    loop {
        tokio::time::sleep(TICK).await;
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Runs a worker until it is told to stop. A runtime that breaks takes its connections with it and is replaced at once.
fn keep_running<F: Future>(mut runtime: Runtime, worker: &Worker, restarts: &Counter, told: impl Fn() -> F) {
    loop {
        if catch_unwind(AssertUnwindSafe(|| runtime.block_on(told()))).is_ok() {
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
        worker.served.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.served.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_worker_that_breaks_is_replaced_and_counted() {
        let runtime = runtime().expect("runtime");
        let handle = Mutex::new(runtime.handle().clone());
        let worker = Worker { handle, served: AtomicUsize::new(0), connections: Register::default(), pool: Pool::default() };
        let (restarts, broken) = (Counter::default(), AtomicUsize::new(0));
        let (served, was_served) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                keep_running(runtime, &worker, &restarts, || {
                    let times = broken.fetch_add(1, Ordering::Relaxed);
                    if times == 2 {
                        // What is accepted from now on is handed to the runtime that took the place of the broken one.
                        let served = served.clone();
                        worker.handle.lock().spawn(async move { served.send(()).expect("the test waits") });
                    }
                    async move {
                        assert!(times >= 2, "break");
                        for _ in 0..100 {
                            tokio::task::yield_now().await;
                        }
                    }
                });
            });
            was_served.recv_timeout(Duration::from_secs(5)).expect("the worker serves again");
        });
        assert_eq!(restarts.get(), 2);
        assert_eq!(broken.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_connection_that_panics_is_counted_and_leaves_the_others_alone() {
        let metrics = Metrics::default();
        let workers = Workers::start(1, &metrics).expect("workers");
        workers.spawn(|_| async { std::panic::panic_any("a broken connection") });
        let (served, was_served) = mpsc::sync_channel(1);
        workers.spawn(move |_| async move { served.send(()).expect("the test waits") });
        was_served.recv_timeout(Duration::from_secs(5)).expect("the next connection is served");
        let counted = (0..500).any(|_| {
            let (tick, ticked) = mpsc::sync_channel(1);
            workers.spawn(move |_| async move { tick.send(()).expect("the test waits") });
            ticked.recv_timeout(Duration::from_secs(5)).expect("served");
            metrics.connection_panics.get() == 1
        });
        assert!(counted, "{} panics counted", metrics.connection_panics.get());
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime").block_on(workers.stop());
    }
}
