//! Watches the configuration's directory: told by the operating system, and looking for itself now and then as a safety net.

use crate::desired::{Board, Outcome};
use notify::{Event, RecursiveMode, Watcher};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// An editor's save is several events; the directory is read when it has been quiet for this long.
const QUIET: Duration = Duration::from_millis(30);
/// … or has been changing for this long.
const RESTLESS_MAX: Duration = Duration::from_millis(500);
/// Events can be lost (network file systems, a replaced directory): it is read this often in any case.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reads the directory whenever it may have changed, for as long as the process lives.
pub(crate) async fn run(board: Arc<Board>, dir: PathBuf) {
    let (changed, mut changes) = mpsc::channel(1);
    let root = dir.canonicalize().unwrap_or_else(|_| dir.clone());
    let watched = root.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| concerns(&event, &root)) {
            // A full queue already says what this event would say.
            let _told = changed.try_send(());
        }
    });
    let watcher = watcher.and_then(|mut watcher| watcher.watch(&watched, RecursiveMode::Recursive).map(|()| watcher));
    if let Err(error) = &watcher {
        tracing::warn!(%error, every_s = LOOK_EVERY.as_secs(), "the directory cannot be watched; it is read at intervals");
    }
    loop {
        // Without a watcher the channel is closed: then only the interval counts.
        tokio::select! {
            Some(()) = changes.recv(), if watcher.is_ok() => {
                let latest = Instant::now() + RESTLESS_MAX;
                while timeout_at((Instant::now() + QUIET).min(latest), changes.recv()).await.is_ok() {}
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let (board, dir) = (Arc::clone(&board), dir.clone());
        let outcome = tokio::task::spawn_blocking(move || board.update(config::read(&dir))).await;
        match outcome {
            Ok(Ok(Outcome::Published(revision))) => tracing::info!(%revision, "configuration published"),
            Ok(Ok(Outcome::Unchanged | Outcome::Refused)) => {}
            Ok(Err(failure)) => {
                tracing::error!(%failure, "the new configuration could not be stored; the last one stays in force")
            }
            Err(failure) => tracing::error!(%failure, "reading the configuration failed"),
        }
    }
}

/// Whether an event may have changed the configuration: not a mere reading, and not in a hidden directory such as `.rondel`,
/// where the mesh of one machine keeps its logs.
fn concerns(event: &Event, root: &Path) -> bool {
    let is_visible = |path: &PathBuf| {
        let below = path.strip_prefix(root).unwrap_or(path);
        below.components().all(|part| !matches!(part, Component::Normal(name) if name.to_string_lossy().starts_with('.')))
    };
    !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(is_visible))
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::EventKind;
    use notify::event::{AccessKind, ModifyKind};

    #[test]
    fn own_reads_and_hidden_files_do_not_cause_another_reading() {
        let root = Path::new("/mesh");
        let modified = EventKind::Modify(ModifyKind::Any);
        for (kind, path, expected) in [
            (modified, "/mesh/policy.yaml", true),
            (modified, "/mesh/sub/policy.yaml", true),
            (modified, "/mesh/.rondel/logs/web.log", false),
            (modified, "/mesh/.policy.yaml.swp", false),
            (EventKind::Access(AccessKind::Any), "/mesh/policy.yaml", false),
        ] {
            let event = Event::new(kind).add_path(path.into());
            assert_eq!(concerns(&event, root), expected, "{path} {kind:?}");
        }
    }
}
