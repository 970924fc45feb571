//! What the mesh should be: the last good configuration, its revision, and what is wrong with the one on disk.

use crate::clock;
use crate::store::{Store, StoreFailure, StoredConfig};
use config::{Checked, ConfigError, Mesh, Source, Trust};
use model::{Revision, Timestamp};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// One revision of the whole mesh.
#[derive(Debug)]
pub(crate) struct Desired {
    pub(crate) revision: Revision,
    pub(crate) mesh: Arc<Mesh>,
    /// Who is believed.
    pub(crate) trust: Arc<Trust>,
    /// The revision since which that is so.
    pub(crate) trust_revision: Revision,
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
    /// Held by whoever makes the next revision: what it need not compile again.
    writing: Mutex<Checked>,
    store: Arc<Store>,
}

/// A good configuration to begin with, before it is known who is believed.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) mesh: Mesh,
    sources: Vec<Source>,
    errors: Vec<ConfigError>,
    stored: Option<StoredConfig>,
    checked: Checked,
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

impl Begun {
    /// Takes the directory, or, where that has errors, the last good configuration of the store.
    pub(crate) fn read(store: &Store, read: Result<Vec<Source>, ConfigError>) -> Result<Self, BeginFailure> {
        let stored = store.config()?;
        let mut checked = Checked::default();
        let fresh = read.map_err(|error| vec![error]);
        let fresh = fresh.and_then(|sources| Ok((config::parse_again(&sources, &mut checked)?, sources)));
        match (fresh, stored) {
            (Ok((mesh, sources)), stored) => Ok(Self { mesh, sources, errors: Vec::new(), stored, checked }),
            (Err(errors), Some(stored)) => {
                let sources = stored.sources.iter().map(|(file, text)| Source { file: file.clone(), text: text.clone() });
                let sources: Vec<Source> = sources.collect();
                match config::parse_again(&sources, &mut checked) {
                    Ok(mesh) => Ok(Self { mesh, sources, errors, stored: Some(stored), checked }),
                    // What an older version took may be an error to this one: then nothing is left to serve.
                    Err(_) => Err(BeginFailure::Config(errors)),
                }
            }
            (Err(errors), None) => Err(BeginFailure::Config(errors)),
        }
    }
}

impl Board {
    /// Starts with what was begun with and who is believed. The revision is a later one if either has changed.
    pub(crate) fn begin(store: Arc<Store>, begun: Begun, trust: Trust) -> Result<Self, StoreFailure> {
        let Begun { mesh, sources, errors, stored, checked } = begun;
        let digest = digest(&trust);
        let is_same = |stored: &StoredConfig| stored.trust == digest && stored.sources == pairs(&sources);
        let (revision, trust_revision) = match &stored {
            Some(stored) if is_same(stored) => (stored.revision, stored.trust_revision),
            Some(stored) => {
                let next = Revision(stored.revision.0 + 1);
                (next, if stored.trust == digest { stored.trust_revision } else { next })
            }
            None => (Revision(1), Revision(1)),
        };
        store.keep_config(&StoredConfig { revision, sources: pairs(&sources), trust: digest, trust_revision })?;
        let (mesh, trust) = (Arc::new(mesh), Arc::new(trust));
        let desired = Desired { revision, mesh, trust, trust_revision, published_at: Instant::now(), sources };
        let (current, writing) = (watch::Sender::new(Arc::new(desired)), Mutex::new(checked));
        let board = Self { current, problems: Mutex::default(), writing, store };
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
        let mut checked = self.writing.lock();
        let current = self.current();
        let sources = match read {
            Ok(sources) if same(&sources, &current.sources) => {
                self.note(Vec::new());
                return Ok(Outcome::Unchanged);
            }
            Ok(sources) => sources,
            Err(error) => return Ok(self.refuse(vec![error])),
        };
        let mesh = match config::parse_again(&sources, &mut checked) {
            Ok(mesh) => mesh,
            Err(errors) => return Ok(self.refuse(errors)),
        };
        let (old, new) = (&current.mesh.settings.trust_domain, &mesh.settings.trust_domain);
        if old != new {
            let message = format!(
                "the trust domain cannot change from `{old}` to `{new}` while the mesh runs; start it anew with another state directory"
            );
            let file = sources.first().map_or_else(String::new, |source| source.file.clone());
            return Ok(self.refuse(vec![ConfigError { file, line: 1, column: 1, message, code: config::RESOURCE }]));
        }
        let revision = Revision(current.revision.0 + 1);
        let (trust, trust_revision) = (Arc::clone(&current.trust), current.trust_revision);
        self.publish(Desired { revision, mesh: Arc::new(mesh), trust, trust_revision, published_at: Instant::now(), sources })?;
        self.note(Vec::new());
        Ok(Outcome::Published(revision))
    }

    /// Publishes who is believed, if that has changed. Blocks on the store.
    pub(crate) fn set_trust(&self, trust: Trust) -> Result<(), StoreFailure> {
        let _writing = self.writing.lock();
        let current = self.current();
        if *current.trust == trust {
            return Ok(());
        }
        let revision = Revision(current.revision.0 + 1);
        self.publish(Desired {
            revision,
            mesh: Arc::clone(&current.mesh),
            trust: Arc::new(trust),
            trust_revision: revision,
            published_at: Instant::now(),
            sources: current.sources.clone(),
        })
    }

    /// On disk first: a revision that was told must not come again with another content.
    fn publish(&self, desired: Desired) -> Result<(), StoreFailure> {
        self.store.keep_config(&StoredConfig {
            revision: desired.revision,
            sources: pairs(&desired.sources),
            trust: digest(&desired.trust),
            trust_revision: desired.trust_revision,
        })?;
        self.current.send_replace(Arc::new(desired));
        Ok(())
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
    pairs(one) == pairs(other)
}

fn pairs(sources: &[Source]) -> Vec<(String, String)> {
    sources.iter().map(|source| (source.file.clone(), source.text.clone())).collect()
}

/// SHA-256 over who is believed, hexadecimal. It tells two of them apart, nothing more.
fn digest(trust: &Trust) -> String {
    hex::encode(identity::sha256(format!("{trust:?}").as_bytes()))
}
