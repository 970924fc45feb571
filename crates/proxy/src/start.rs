//! Start-up as one readable function, and the list of every task of the process.

use crate::anchor::Anchor;
use crate::application::Application;
use crate::settings::Settings;
use crate::state::Shared;
use crate::sync::{self, Applier};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::decisions::{Decisions, Explainer};
use crate::telemetry::metrics::Metrics;
use crate::workers::Workers;
use crate::{admin, country, disk, fetch, probe, proof, rotate, workload_api, workload_client};
use anyhow::{Context, bail};
use model::Limit;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Requests for keys that may wait.
const KEY_REQUESTS_MAX: usize = 1024;
/// How often a drain looks whether it is over.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often pools are swept of old and idle connections, and those that are served are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Builds the parts in order, runs the tasks, and ends when SIGTERM's drain is over or a task died.
///
/// # Errors
/// - a setting that cannot be used, an address that cannot be bound, or a task that ended by itself.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    identity::install_provider();
    take_descriptors();
    disk::prepare(&settings.state)?;
    let anchor = Anchor::open(&settings.trust_bundle, &settings.state)?;

    let (decisions, told) = Decisions::queue(Limit::DecisionQueue.default_value().try_into().unwrap_or(1024));
    let (key_requests, wanted_keys) = mpsc::channel(KEY_REQUESTS_MAX);
    let access_log = AccessLog::start(settings.access_log)?;
    let explainer = Explainer::start().context("start the thread that explains")?;
    let metrics = Metrics::default();
    let workers = Arc::new(Workers::start(settings.workers, &metrics).context("start the workers")?);
    let shared = Arc::new(Shared::new(settings, key_requests, decisions, access_log, metrics));
    let admin = admin::bind(&shared)?;
    let probes = probe::bind(&shared)?;
    let workload_api = workload_api::bind(&shared.settings)?;
    tracing::info!(workload = %shared.settings.workload, admin = %shared.settings.admin, "starting");

    let mut applier = Applier::new(Arc::clone(&shared), Arc::clone(&workers));
    applier.capture()?;
    disk::boot(&mut applier, &shared, &anchor);

    // Every task of the process. The death of one ends it.
    let mut tasks = JoinSet::new();
    tasks.spawn(admin::run(admin, Arc::clone(&shared)));
    tasks.spawn(probe::run(probes, Arc::clone(&shared)));
    tasks.spawn(proof::run(Arc::clone(&shared)));
    match shared.settings.identity_socket.clone() {
        Some(socket) => tasks.spawn(workload_client::run(Arc::clone(&shared), anchor.clone(), socket)),
        None => tasks.spawn(rotate::run(Arc::clone(&shared), anchor.clone())),
    };
    if let Some(listener) = workload_api {
        tasks.spawn(workload_api::run(listener, Arc::clone(&shared), anchor.clone()));
    }
    tasks.spawn(country::run(Arc::clone(&shared)));
    tasks.spawn(fetch::run(Arc::clone(&shared), wanted_keys));
    tasks.spawn(sync::report(Arc::clone(&shared), anchor.clone(), told, explainer));
    tasks.spawn(sync::run(applier, anchor));
    tasks.spawn(sweep(Arc::clone(&shared), Arc::clone(&workers)));

    let application = Application::of(&shared.settings);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = tasks.join_next() => {
            workers.stop().await;
            shared.access_log.finish();
            bail!("a task of the process ended: {ended:?}");
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = shared.quit.notified() => tracing::info!("asked to quit"),
        () = application.gone() => tracing::info!("the application has ended"),
    }
    drain(&shared, &workers, &application).await;
    workers.stop().await;
    shared.access_log.finish();
    Ok(())
}

/// Every connection takes a descriptor or two, and what a process may open is 1,024 unless it asks for what it is allowed.
fn take_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Tells inbound connections to end gracefully, and goes on serving the application until it is gone, all up to `drainMs`.
async fn drain(shared: &Shared, workers: &Workers, application: &Application) {
    let limit = shared.active().map_or_else(model::Limits::default, |active| active.snapshot.limits.clone());
    let deadline = Instant::now() + limit.duration(Limit::DrainMs);
    shared.draining.send_replace(true);
    for worker in workers.each() {
        worker.connections.look();
    }
    tracing::info!(connections = workers.connections(), "draining");
    while Instant::now() < deadline {
        if workers.connections() == 0 && application.is_gone(shared).await {
            return;
        }
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
    }
    let left = workers.connections();
    if left > 0 {
        tracing::warn!(left, "limit `drainMs` is over; the connections that are left are closed");
    }
}

async fn sweep(shared: Arc<Shared>, workers: Arc<Workers>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let limits = shared.active().map_or_else(model::Limits::default, |active| active.snapshot.limits.clone());
        // Earlier than the other side would end it, so that no request meets a connection that is being closed.
        let idle = limits.duration(Limit::IdleMs) * 8 / 10;
        for worker in workers.each() {
            worker.pool.sweep(Instant::now(), idle);
            worker.connections.look();
        }
    }
}
