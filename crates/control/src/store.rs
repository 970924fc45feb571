//! The embedded store: what must outlive the process. One writer, every commit on disk before it counts.

use config::Source;
use model::{Revision, SpiffeId, Timestamp};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Join tokens that may wait to be used; beyond it the expired ones must be gone first.
const JOIN_TOKENS_MAX: u64 = 10_000;
/// Issued serials that are remembered; beyond it those that expired first are forgotten.
const ISSUED_MAX: u64 = 200_000;
/// The layout of the store; another one is refused.
const SCHEMA: u64 = 1;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const JOIN: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("join_tokens");
const ISSUED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("issued");

/// What went wrong with the store. The operator must look at the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreFailure {
    /// The database's own error.
    #[error("store: {0}")]
    Database(#[from] redb::Error),
    /// The operating system's error.
    #[error("store: {0}")]
    Io(#[from] std::io::Error),
    /// A value is not what this version wrote.
    #[error("store: `{key}` cannot be read: {detail}")]
    Value {
        /// Which one.
        key: String,
        /// Why not.
        detail: String,
    },
    /// The store was written by another version.
    #[error("store: layout {found}, this program knows layout {SCHEMA}")]
    Schema {
        /// The layout found.
        found: u64,
    },
    /// A table is full.
    #[error("store: {what} holds {max} entries, its maximum")]
    Full {
        /// Which table.
        what: &'static str,
        /// Its bound.
        max: u64,
    },
}

/// The authority as it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredAuthority {
    pub(crate) trust_domain: String,
    pub(crate) certificate: Vec<u8>,
    /// PKCS#8, in a file that only the owner reads.
    pub(crate) key: Vec<u8>,
}

/// The last good configuration as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredConfig {
    revision: u64,
    sources: Vec<(String, String)>,
}

/// A join token as it is stored, under the SHA-256 of its text.
#[derive(Debug, Serialize, Deserialize)]
struct StoredJoin {
    id: String,
    expires_at: Timestamp,
}

/// An issued SVID as it is stored, under its serial.
#[derive(Debug, Serialize, Deserialize)]
struct StoredIssue {
    id: String,
    not_after: Timestamp,
}

/// The store. Every call blocks: use it from a blocking thread.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens or makes the store at `path`, readable by the owner alone.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreFailure> {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let backend = redb::backends::FileBackend::new(file).map_err(redb::Error::from)?;
        let database = redb::Builder::new().create_with_backend(backend).map_err(redb::Error::from)?;
        let store = Self { database };
        match store.read::<u64>("schema")? {
            Some(SCHEMA) => {}
            Some(found) => return Err(StoreFailure::Schema { found }),
            None => store.write("schema", &SCHEMA)?,
        }
        Ok(store)
    }

    pub(crate) fn authority(&self) -> Result<Option<StoredAuthority>, StoreFailure> {
        self.read("authority")
    }

    pub(crate) fn keep_authority(&self, authority: &StoredAuthority) -> Result<(), StoreFailure> {
        self.write("authority", authority)
    }

    /// The last good configuration and its revision.
    pub(crate) fn config(&self) -> Result<Option<(Revision, Vec<Source>)>, StoreFailure> {
        let stored: Option<StoredConfig> = self.read("config")?;
        Ok(stored.map(|stored| {
            let sources = stored.sources.into_iter().map(|(file, text)| Source { file, text });
            (Revision(stored.revision), sources.collect())
        }))
    }

    pub(crate) fn keep_config(&self, revision: Revision, sources: &[Source]) -> Result<(), StoreFailure> {
        let sources = sources.iter().map(|source| (source.file.clone(), source.text.clone())).collect();
        self.write("config", &StoredConfig { revision: revision.0, sources })
    }

    /// Keeps the digest of a join token; forgets those that expired.
    pub(crate) fn keep_join(
        &self,
        digest: [u8; 32],
        id: &SpiffeId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreFailure> {
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(JOIN).map_err(redb::Error::from)?;
            let alive =
                |_: &[u8], bytes: &[u8]| serde_json::from_slice(bytes).is_ok_and(|join: StoredJoin| now < join.expires_at);
            table.retain(alive).map_err(redb::Error::from)?;
            if table.len().map_err(redb::Error::from)? >= JOIN_TOKENS_MAX {
                return Err(StoreFailure::Full { what: "join tokens", max: JOIN_TOKENS_MAX });
            }
            let join = encode("join token", &StoredJoin { id: id.to_string(), expires_at })?;
            table.insert(digest.as_slice(), join.as_slice()).map_err(redb::Error::from)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// Takes a join token out of the store, so that nobody can use it again; its identity and expiry if it was there.
    pub(crate) fn take_join(&self, digest: [u8; 32]) -> Result<Option<(String, Timestamp)>, StoreFailure> {
        let transaction = self.begin_write()?;
        let taken = {
            let mut table = transaction.open_table(JOIN).map_err(redb::Error::from)?;
            let removed = table.remove(digest.as_slice()).map_err(redb::Error::from)?;
            removed.map(|value| value.value().to_vec())
        };
        transaction.commit().map_err(redb::Error::from)?;
        let Some(bytes) = taken else { return Ok(None) };
        let join: StoredJoin = decode("join token", &bytes)?;
        Ok(Some((join.id, join.expires_at)))
    }

    /// Records an issued SVID before it is handed out; forgets those that have ended.
    pub(crate) fn record_issue(
        &self,
        serial: &str,
        id: &SpiffeId,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreFailure> {
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(ISSUED).map_err(redb::Error::from)?;
            if table.len().map_err(redb::Error::from)? >= ISSUED_MAX {
                let alive =
                    |_: &str, bytes: &[u8]| serde_json::from_slice(bytes).is_ok_and(|issue: StoredIssue| now < issue.not_after);
                table.retain(alive).map_err(redb::Error::from)?;
                if table.len().map_err(redb::Error::from)? >= ISSUED_MAX {
                    return Err(StoreFailure::Full { what: "issued SVIDs", max: ISSUED_MAX });
                }
            }
            let issue = encode("issued SVID", &StoredIssue { id: id.to_string(), not_after })?;
            table.insert(serial, issue.as_slice()).map_err(redb::Error::from)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// Every issued SVID that has not ended: serial, identity, end.
    pub(crate) fn issued(&self, now: Timestamp) -> Result<Vec<(String, String, Timestamp)>, StoreFailure> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let table = match transaction.open_table(ISSUED) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let mut issued = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (serial, bytes) = row.map_err(redb::Error::from)?;
            let issue: StoredIssue = decode("issued SVID", bytes.value())?;
            if now < issue.not_after {
                issued.push((serial.value().to_owned(), issue.id, issue.not_after));
            }
        }
        Ok(issued)
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, StoreFailure> {
        let mut transaction = self.database.begin_write().map_err(redb::Error::from)?;
        // The store holds the authority's key and what an attacker may influence: two-phase commit, and fast recovery.
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, StoreFailure> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let value = table.get(key).map_err(redb::Error::from)?;
        value.map(|bytes| decode(key, bytes.value())).transpose()
    }

    fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreFailure> {
        let bytes = zeroize::Zeroizing::new(encode(key, value)?);
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(META).map_err(redb::Error::from)?;
            table.insert(key, bytes.as_slice()).map_err(redb::Error::from)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, StoreFailure> {
    serde_json::to_vec(value).map_err(|error| StoreFailure::Value { key: key.to_owned(), detail: error.to_string() })
}

fn decode<T: for<'de> Deserialize<'de>>(key: &str, bytes: &[u8]) -> Result<T, StoreFailure> {
    serde_json::from_slice(bytes).map_err(|error| StoreFailure::Value { key: key.to_owned(), detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(&dir.path().join("control.redb")).expect("open");
        (dir, store)
    }

    #[test]
    fn what_is_kept_is_there_after_reopening_and_only_the_owner_reads_it() {
        let (dir, store) = store();
        let path = dir.path().join("control.redb");
        let sources = vec![Source { file: "a.yaml".into(), text: "x".into() }];
        store.keep_config(Revision(7), &sources).expect("keep");
        drop(store);
        let again = Store::open(&path).expect("reopen");
        let (revision, kept) = again.config().expect("read").expect("there");
        assert_eq!((revision, kept.len()), (Revision(7), 1));
        assert_eq!(std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_join_token_can_be_taken_once() {
        let (_dir, store) = store();
        let id = SpiffeId::parse("spiffe://a/ns/b/sa/c").expect("id");
        let (now, end) = (Timestamp::from_seconds(10), Timestamp::from_seconds(20));
        store.keep_join([1; 32], &id, end, now).expect("keep");
        assert_eq!(store.take_join([2; 32]).expect("other"), None);
        assert_eq!(store.take_join([1; 32]).expect("first"), Some((id.to_string(), end)));
        assert_eq!(store.take_join([1; 32]).expect("second"), None);
    }

    #[test]
    fn expired_join_tokens_and_ended_svids_are_forgotten() {
        let (_dir, store) = store();
        let id = SpiffeId::parse("spiffe://a/ns/b/sa/c").expect("id");
        let at = Timestamp::from_seconds;
        store.keep_join([1; 32], &id, at(20), at(10)).expect("keep");
        store.keep_join([2; 32], &id, at(40), at(30)).expect("keep");
        assert_eq!(store.take_join([1; 32]).expect("expired"), None);
        store.record_issue("aa", &id, at(20), at(10)).expect("record");
        store.record_issue("bb", &id, at(50), at(10)).expect("record");
        assert_eq!(store.issued(at(30)).expect("issued").len(), 1);
    }
}
