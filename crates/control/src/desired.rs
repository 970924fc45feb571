//! What the mesh should be: the last good configuration, its revision, and what is wrong with the one on disk.

use crate::clock;
use crate::store::{Store, StoreFailure};
use config::{ConfigError, Mesh, Source};
use model::{Revision, Timestamp};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// One revision of the whole mesh.
#[derive(Debug)]
pub(crate) struct Desired {
    pub(crate) revision: Revision,
    pub(crate) mesh: Mesh,
    /// When it was published, for the time to the last ack.
    pub(crate) published_at: Instant,
    sources: Vec<Source>,
}

/// An error of the configuration on disk, while the last good one stays in force.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) error: ConfigError,
    pub(crate) since: Timestamp,
}

/// The live cell of the desired state.
#[derive(Debug)]
pub(crate) struct Board {
    current: watch::Sender<Arc<Desired>>,
    problems: Mutex<Vec<Problem>>,
    store: Arc<Store>,
}

/// Why there is nothing to serve at the start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginFailure {
    /// Neither the directory nor the store has a good configuration.
    #[error("the configuration has errors, and the store has no earlier good one:\n  {}", list(.0))]
    Config(Vec<ConfigError>),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreFailure),
}

fn list(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// What came of reading the directory again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As before.
    Unchanged,
    /// A new revision is in force.
    Published(Revision),
    /// It has errors; the last good one stays in force.
    Refused,
}

impl Board {
    /// Starts from the directory, or, where that has errors, from the last good configuration of the store.
    pub(crate) fn begin(store: Arc<Store>, read: Result<Vec<Source>, ConfigError>) -> Result<Self, BeginFailure> {
        let stored = store.config()?;
        let fresh = read.map_err(|error| vec![error]).and_then(|sources| Ok((config::parse(&sources)?, sources)));
        let (desired, errors) = match (fresh, stored) {
            (Ok((mesh, sources)), stored) => {
                let revision = match &stored {
                    Some((revision, old)) if same(old, &sources) => *revision,
                    Some((revision, _)) => Revision(revision.0 + 1),
                    None => Revision(1),
                };
                store.keep_config(revision, &sources)?;
                (Desired { revision, mesh, published_at: Instant::now(), sources }, Vec::new())
            }
            (Err(errors), Some((revision, sources))) => match config::parse(&sources) {
                Ok(mesh) => (Desired { revision, mesh, published_at: Instant::now(), sources }, errors),
                // What an older version took may be an error to this one: then nothing is left to serve.
                Err(_) => return Err(BeginFailure::Config(errors)),
            },
            (Err(errors), None) => return Err(BeginFailure::Config(errors)),
        };
        let board = Self { current: watch::Sender::new(Arc::new(desired)), problems: Mutex::default(), store };
        board.note(errors);
        Ok(board)
    }

    /// The revision in force.
    pub(crate) fn current(&self) -> Arc<Desired> {
        Arc::clone(&self.current.borrow())
    }

    /// Told of every new revision.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Desired>> {
        self.current.subscribe()
    }

    /// What is wrong with the configuration on disk.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.problems.lock().clone()
    }

    /// Takes what was read from the directory: publishes it if it is good and new. Blocks on the store.
    pub(crate) fn update(&self, read: Result<Vec<Source>, ConfigError>) -> Result<Outcome, StoreFailure> {
        let current = self.current();
        let sources = match read {
            Ok(sources) if same(&sources, &current.sources) => {
                self.note(Vec::new());
                return Ok(Outcome::Unchanged);
            }
            Ok(sources) => sources,
            Err(error) => return Ok(self.refuse(vec![error])),
        };
        let mesh = match config::parse(&sources) {
            Ok(mesh) => mesh,
            Err(errors) => return Ok(self.refuse(errors)),
        };
        let (old, new) = (&current.mesh.settings.trust_domain, &mesh.settings.trust_domain);
        if old != new {
            let message = format!(
                "the trust domain cannot change from `{old}` to `{new}` while the mesh runs; start it anew with another state directory"
            );
            let file = sources.first().map_or_else(String::new, |source| source.file.clone());
            return Ok(self.refuse(vec![ConfigError { file, line: 1, column: 1, message }]));
        }
        let revision = Revision(current.revision.0 + 1);
        self.store.keep_config(revision, &sources)?;
        self.note(Vec::new());
        self.current.send_replace(Arc::new(Desired { revision, mesh, published_at: Instant::now(), sources }));
        Ok(Outcome::Published(revision))
    }

    fn refuse(&self, errors: Vec<ConfigError>) -> Outcome {
        self.note(errors);
        Outcome::Refused
    }

    /// Replaces the list of problems; one that was there before keeps its `since`. Each new one is logged once.
    fn note(&self, errors: Vec<ConfigError>) {
        let mut problems = self.problems.lock();
        let now = clock::now();
        let noted = errors.into_iter().map(|error| {
            let text = error.to_string();
            let before = problems.iter().find(|problem| problem.error.to_string() == text);
            if before.is_none() {
                tracing::error!(error = text, "configuration refused; the last good one stays in force");
            }
            Problem { error, since: before.map_or(now, |problem| problem.since) }
        });
        *problems = noted.collect();
    }
}

fn same(one: &[Source], other: &[Source]) -> bool {
    let pairs = |sources: &[Source]| sources.iter().map(|source| (source.file.clone(), source.text.clone())).collect::<Vec<_>>();
    pairs(one) == pairs(other)
}
