//! Start-up as one readable function, and the list of every task of the process.

use crate::api::Plane;
use crate::bundle_endpoint::{self, Served};
use crate::ca::{Ca, IssueFailure};
use crate::desired::{Begun, Board};
use crate::federation::Federation;
use crate::records::Records;
use crate::rehearsal::Rehearsals;
use crate::rollout::Rollout;
use crate::serve::OwnFailure;
use crate::settings::Settings;
use crate::shadows::Shadows;
use crate::store::Store;
use crate::{admin, clock, rotation, serve, watch};
use anyhow::{Context, bail};
use identity::TrustBundles;
use proto::config_server::ConfigServer;
use proto::identity_server::IdentityServer;
use proto::operator_server::OperatorServer;
use proto::telemetry_server::TelemetryServer;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use wire::proto;

/// Bytes of one message from a sidecar.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Calls under way on one connection.
const CALLS_PER_CONNECTION_MAX: usize = 16;
/// For open streams to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Builds the parts in order, runs the tasks, and ends at SIGTERM or when a task died.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    identity::install_provider();
    owner_only_dir(&settings.state)?;
    let store = Arc::new(Store::open(&settings.state.join("control.redb")).context("open the store")?);
    let begun = Begun::read(&store, config::read(&settings.config))
        .with_context(|| format!("begin with `{}`", settings.config.display()))?;
    let now = clock::now();
    let ca = Arc::new(Ca::open(Arc::clone(&store), &settings.state, &begun.mesh.settings, now)?);
    let federation = Arc::new(Federation::open(Arc::clone(&store), Arc::clone(&ca), &begun.mesh.settings)?);
    let trust = ca.trust(now);
    let board = Arc::new(Board::begin(Arc::clone(&store), begun, trust)?);
    let desired = board.current();
    let domain = &desired.mesh.settings.trust_domain;
    write_bundle(&settings.state, &ca)?;
    // With an authority that has ended the operator is still answered, and nobody else is.
    let own = serve::own_credentials(&ca, &board).map(|own| Some(Arc::new(own))).or_else(|failure| match failure {
        OwnFailure::Issue(IssueFailure::AuthorityEnded { at }) => {
            tracing::error!(%at, "the authority has ended: no workload gets an SVID until `rondel ca rotate` makes another");
            Ok(None)
        }
        other => Err(other),
    })?;
    let (credentials, own) = tokio::sync::watch::channel(own);

    let listener = TcpListener::bind(settings.listen).await.with_context(|| format!("listen at {}", settings.listen))?;
    let admin_listener = TcpListener::bind(settings.admin).await.with_context(|| format!("listen at {}", settings.admin))?;
    let operator = operator_socket(&settings.state.join("operator.sock"))?;
    let rollout = Arc::new(restored(&store, &board)?);
    let records = Arc::new(Records::default());
    let served = Arc::new(Served::default());
    let plane = Plane {
        board: Arc::clone(&board),
        rollout: Arc::clone(&rollout),
        records: Arc::clone(&records),
        shadows: Arc::new(Shadows::default()),
        ca: Arc::clone(&ca),
        credentials: own.clone(),
        rehearsals: Arc::new(Rehearsals::default()),
        federation: Arc::clone(&federation),
        bundle_endpoint: Arc::clone(&served),
    };
    tracing::info!(%domain, revision = %desired.revision, listen = %settings.listen, "starting");

    // Every task of the process. The death of one ends it.
    let mut tasks = JoinSet::new();
    let (accepting, shaken) = serve::incoming(listener, own.clone());
    tasks.spawn(accepting);
    let sidecars = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .max_concurrent_streams(Some(64))
        .add_service(IdentityServer::new(plane.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(ConfigServer::new(plane.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(TelemetryServer::new(plane.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX));
    tasks.spawn(async move { told("sidecars", sidecars.serve_with_incoming(shaken).await) });
    let operators = Server::builder().add_service(OperatorServer::new(plane).max_decoding_message_size(MESSAGE_BYTES_MAX));
    tasks.spawn(async move { told("operators", operators.serve_with_incoming(UnixListenerStream::new(operator)).await) });
    tasks.spawn(serve::renew(Arc::clone(&ca), Arc::clone(&board), credentials));
    tasks.spawn(rotation::run(Arc::clone(&ca), Arc::clone(&board), Arc::clone(&rollout), own.clone()));
    tasks.spawn(Arc::clone(&federation).run(Arc::clone(&board)));
    tasks.spawn(bundle_endpoint::run(Arc::clone(&served), Arc::clone(&board)));
    tasks.spawn(keep_bundle(settings.state.clone(), Arc::clone(&ca), Arc::clone(&board)));
    tasks.spawn(watch::run(Arc::clone(&board), settings.config.clone()));
    tasks.spawn(admin::run(
        admin_listener,
        admin::Seen { board, rollout, records, ca, credentials: own, federation, bundle_endpoint: served },
    ));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = tasks.join_next() => bail!("a task of the process ended: {ended:?}"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    tokio::time::timeout(STOP_DEADLINE, tasks.shutdown()).await.ok();
    std::fs::remove_file(settings.state.join("operator.sock")).ok();
    Ok(())
}

/// What was known of the sidecars before this process started.
fn restored(store: &Store, board: &Board) -> anyhow::Result<Rollout> {
    let rollout = Rollout::default();
    let desired = board.current();
    for (serial, issued) in store.issued(clock::now())?.into_iter().filter(|(_, issued)| !issued.application) {
        if let Some(workload) = desired.mesh.workloads.iter().find(|workload| workload.name.as_str() == issued.workload) {
            rollout.restored(&workload.name, &serial, &issued.authority, issued.not_after);
        }
    }
    Ok(rollout)
}

/// Keeps the file of the trust bundle as the bundle is: sidecars that are started later are given it.
async fn keep_bundle(state: PathBuf, ca: Arc<Ca>, board: Arc<Board>) {
    let mut desired = board.subscribe();
    loop {
        if desired.changed().await.is_err() {
            return;
        }
        let (state, ca) = (state.clone(), Arc::clone(&ca));
        let written = tokio::task::spawn_blocking(move || write_bundle(&state, &ca)).await;
        if let Ok(Err(failure)) = written {
            tracing::error!(failure = model::told(failure.as_ref()), "the file of the trust bundle is out of date");
        }
    }
}

/// Whole or not at all.
fn write_bundle(state: &Path, ca: &Ca) -> anyhow::Result<()> {
    let (path, fresh) = (state.join("bundle.pem"), state.join("bundle.new"));
    let text = TrustBundles::from_model(&[ca.bundle()])?.to_pem();
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
    written.with_context(|| format!("write `{}`", path.display()))
}

fn told(who: &str, outcome: Result<(), tonic::transport::Error>) {
    if let Err(error) = outcome {
        tracing::error!(who, %error, "a server ended");
    }
}

fn owner_only_dir(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("make the state directory `{}`", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(failed)
}

/// Binds the operator socket in the owner-only directory. A socket on which somebody answers belongs to another control plane.
fn operator_socket(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another control plane answers at `{}`", path.display());
    }
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| format!("listen at `{}`", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(|| format!("protect `{}`", path.display()))?;
    Ok(listener)
}
