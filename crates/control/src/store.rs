//! The embedded store: what must outlive the process. One writer, every commit on disk before it counts.

use crate::authorities::StoredAuthorities;
use crate::token_revocations::TokenRevocation;
use identity::authority::BACK_DATING;
use model::{Revision, SpiffeId, Timestamp};
use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Join tokens that may wait to be used; beyond it the expired ones must be gone first.
const JOIN_TOKENS_MAX: u64 = 10_000;
/// Issued serials that are remembered; beyond it those that have ended must be gone first.
const ISSUED_MAX: u64 = 200_000;
/// Revoked serials; every sidecar holds them all, each until nobody believes it.
pub(crate) const REVOKED_MAX: u64 = 10_000;
/// The layout of the store; another one is refused.
const SCHEMA: u64 = 2;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const JOIN: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("join_tokens");
const ISSUED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("issued");
const REVOKED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("revoked");

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
    /// The store was written by another version. Nothing in it is changed.
    #[error(
        "store: layout {found}, this program knows layout {SCHEMA}; start it with the version that wrote it, or with another --state"
    )]
    Schema {
        /// The layout found.
        found: u64,
    },
    /// Another control plane has it open.
    #[error("store: another control plane has it open; two must not share one state directory")]
    InUse,
    /// A table is full.
    #[error("store: {what} holds {max} entries, its maximum")]
    Full {
        /// Which table.
        what: &'static str,
        /// Its bound.
        max: u64,
    },
}

/// The last good configuration as it is stored, with the revision since which the same peers are believed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredConfig {
    pub(crate) revision: Revision,
    pub(crate) sources: Vec<(String, String)>,
    /// SHA-256 over whom the mesh believes, hexadecimal.
    pub(crate) trust: String,
    pub(crate) trust_revision: Revision,
}

/// The bundle of another trust domain as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredBundle {
    pub(crate) trust_domain: String,
    pub(crate) url: String,
    pub(crate) authorities: Vec<Vec<u8>>,
    pub(crate) jwt_authorities: Vec<Vec<u8>>,
    pub(crate) sequence: Option<u64>,
    pub(crate) refresh_hint: Option<u64>,
    pub(crate) fetched_at: Timestamp,
}

/// A join token as it is stored, under the SHA-256 of its text.
#[derive(Debug, Serialize, Deserialize)]
struct StoredJoin {
    id: String,
    expires_at: Timestamp,
}

/// An issued SVID, under its serial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// Whole SPIFFE ID.
    pub(crate) id: String,
    pub(crate) not_after: Timestamp,
    /// Subject key id of the authority that signed it.
    pub(crate) authority: String,
    /// `namespace/name`; empty for the control plane's own.
    pub(crate) workload: String,
    /// Handed on to the application, which keeps it as long as it likes.
    pub(crate) application: bool,
}

/// A revoked SVID, under its serial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revoked {
    /// Whole SPIFFE ID.
    pub(crate) id: String,
    /// The SVID's end.
    pub(crate) until: Timestamp,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
}

impl Revoked {
    /// Whether it must still be refused: somebody whose clock is behind believes it for longer than its end. Certificates are
    /// back-dated for the same reason, and by as much.
    pub(crate) fn counts(&self, now: Timestamp) -> bool {
        now < self.until.plus(BACK_DATING)
    }
}

/// The store. Every call blocks: use it from a blocking thread.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// `None` after an error of the disk from which it could not be opened again yet.
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens or makes the store at `path`, readable by the owner alone.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreFailure> {
        let database = database_at(path)?;
        let store = Self { path: path.to_owned(), database: RwLock::new(Some(database)) };
        match store.read::<u64>("schema")? {
            Some(SCHEMA) => {}
            Some(found) => return Err(StoreFailure::Schema { found }),
            None => store.write("schema", &SCHEMA)?,
        }
        Ok(store)
    }

    /// The authorities, without their keys.
    pub(crate) fn authorities(&self) -> Result<Option<StoredAuthorities>, StoreFailure> {
        self.read("authorities")
    }

    pub(crate) fn keep_authorities(&self, authorities: &StoredAuthorities) -> Result<(), StoreFailure> {
        self.write("authorities", authorities)
    }

    /// The last good configuration.
    pub(crate) fn config(&self) -> Result<Option<StoredConfig>, StoreFailure> {
        self.read("config")
    }

    pub(crate) fn keep_config(&self, config: &StoredConfig) -> Result<(), StoreFailure> {
        self.write("config", config)
    }

    /// The bundles of other trust domains as they were fetched last, by trust domain.
    pub(crate) fn federated(&self) -> Result<Vec<StoredBundle>, StoreFailure> {
        Ok(self.read("federated")?.unwrap_or_default())
    }

    pub(crate) fn keep_federated(&self, bundles: &[StoredBundle]) -> Result<(), StoreFailure> {
        self.write("federated", &bundles)
    }

    /// Revocations of tokens, those that have ended included.
    pub(crate) fn token_revocations(&self) -> Result<Vec<TokenRevocation>, StoreFailure> {
        Ok(self.read("token_revocations")?.unwrap_or_default())
    }

    pub(crate) fn keep_token_revocations(&self, all: &[TokenRevocation]) -> Result<(), StoreFailure> {
        self.write("token_revocations", &all)
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
        // Anybody may ask for anything: only what is there is worth the disk's time and the one place of a writer.
        if !self.has_join(digest)? {
            return Ok(None);
        }
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

    fn has_join(&self, digest: [u8; 32]) -> Result<bool, StoreFailure> {
        let transaction = self.begin(|database| database.begin_read())?;
        let table = match transaction.open_table(JOIN) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        Ok(table.get(digest.as_slice()).map_err(redb::Error::from)?.is_some())
    }

    /// Records an issued SVID before it is handed out; forgets those that have ended where there is no room.
    pub(crate) fn record_issue(&self, serial: &str, issued: &Issued, now: Timestamp) -> Result<(), StoreFailure> {
        self.record(ISSUED, ("issued SVIDs", ISSUED_MAX), &[(serial, issued)], |issued: Issued| now < issued.not_after)
    }

    /// Every issued SVID that has not ended, with its serial.
    pub(crate) fn issued(&self, now: Timestamp) -> Result<Vec<(String, Issued)>, StoreFailure> {
        self.all(ISSUED, "issued SVID", |issued: &Issued| now < issued.not_after)
    }

    /// Revokes SVIDs, all or none.
    pub(crate) fn revoke(&self, revoked: &[(&str, &Revoked)], now: Timestamp) -> Result<(), StoreFailure> {
        self.record(REVOKED, ("revoked SVIDs", REVOKED_MAX), revoked, |revoked: Revoked| revoked.counts(now))
    }

    /// Every revoked SVID that has not ended, with its serial.
    pub(crate) fn revoked(&self, now: Timestamp) -> Result<Vec<(String, Revoked)>, StoreFailure> {
        self.all(REVOKED, "revoked SVID", |revoked: &Revoked| revoked.counts(now))
    }

    /// Adds rows to a bounded table; those that no longer count make room.
    fn record<T: Serialize + for<'de> Deserialize<'de>>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
        (what, max): (&'static str, u64),
        rows: &[(&str, &T)],
        counts: impl Fn(T) -> bool,
    ) -> Result<(), StoreFailure> {
        let more = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(table).map_err(redb::Error::from)?;
            let length = |table: &redb::Table<'_, &str, &[u8]>| table.len().map_err(redb::Error::from);
            if length(&table)?.saturating_add(more) > max {
                let keep = |_: &str, bytes: &[u8]| serde_json::from_slice(bytes).is_ok_and(&counts);
                table.retain(keep).map_err(redb::Error::from)?;
                if length(&table)?.saturating_add(more) > max {
                    return Err(StoreFailure::Full { what, max });
                }
            }
            for (key, row) in rows {
                table.insert(*key, encode(what, *row)?.as_slice()).map_err(redb::Error::from)?;
            }
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// Every row that counts, with its key.
    fn all<T: for<'de> Deserialize<'de>>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
        what: &str,
        counts: impl Fn(&T) -> bool,
    ) -> Result<Vec<(String, T)>, StoreFailure> {
        let transaction = self.begin(|database| database.begin_read())?;
        let table = match transaction.open_table(table) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let mut found = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (key, bytes) = row.map_err(redb::Error::from)?;
            let value = decode(what, bytes.value())?;
            if counts(&value) {
                found.push((key.value().to_owned(), value));
            }
        }
        Ok(found)
    }

    /// Begins a transaction. After an error of the disk the database refuses everything: it is opened anew, so that a disk that was
    /// full costs no restart.
    fn begin<T>(&self, begin: impl Fn(&Database) -> Result<T, redb::TransactionError>) -> Result<T, StoreFailure> {
        if let Some(database) = &*self.database.read() {
            match begin(database) {
                Err(redb::TransactionError::Storage(redb::StorageError::PreviousIo)) => {}
                begun => return Ok(begun.map_err(redb::Error::from)?),
            }
        }
        let mut database = self.database.write();
        // The file is locked by the one that is open.
        *database = None;
        let opened = database.insert(database_at(&self.path)?);
        tracing::warn!("the store was opened again after an error of the disk");
        Ok(begin(opened).map_err(redb::Error::from)?)
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, StoreFailure> {
        let mut transaction = self.begin(Database::begin_write)?;
        // The store holds what an attacker may influence: two-phase commit, and fast recovery.
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, StoreFailure> {
        let transaction = self.begin(|database| database.begin_read())?;
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let value = table.get(key).map_err(redb::Error::from)?;
        value.map(|bytes| decode(key, bytes.value())).transpose()
    }

    fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreFailure> {
        let bytes = encode(key, value)?;
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(META).map_err(redb::Error::from)?;
            table.insert(key, bytes.as_slice()).map_err(redb::Error::from)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }
}

/// Opens or makes the database, readable by the owner alone.
fn database_at(path: &Path) -> Result<Database, StoreFailure> {
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let backend = match redb::backends::FileBackend::new(file) {
        Ok(backend) => backend,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(StoreFailure::InUse),
        Err(error) => return Err(redb::Error::from(error).into()),
    };
    let database = match redb::Builder::new().create_with_backend(backend) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(StoreFailure::InUse),
        Err(error) => return Err(redb::Error::from(error).into()),
    };
    Ok(database)
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
        let sources = vec![("a.yaml".into(), "x".into())];
        let config = StoredConfig { revision: Revision(7), sources, trust: "0a".into(), trust_revision: Revision(3) };
        store.keep_config(&config).expect("keep");
        assert!(matches!(Store::open(&path), Err(StoreFailure::InUse)), "two control planes on one store");
        drop(store);
        let again = Store::open(&path).expect("reopen");
        let kept = again.config().expect("read").expect("there");
        assert_eq!((kept.revision, kept.sources.len(), kept.trust_revision), (Revision(7), 1, Revision(3)));
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
    fn an_unknown_join_token_costs_no_writing() {
        let (_dir, store) = store();
        let id = SpiffeId::parse("spiffe://a/ns/b/sa/c").expect("id");
        let (now, end) = (Timestamp::from_seconds(10), Timestamp::from_seconds(20));
        for name in ["without any", "beside a good one"] {
            // There is one writer at a time: whoever needs to be it would wait here.
            let writing = store.begin_write().expect("write");
            std::thread::scope(|scope| {
                let (done, answer) = std::sync::mpsc::sync_channel(1);
                let store = &store;
                scope.spawn(move || done.send(store.take_join([2; 32]).expect("read")));
                let answer = answer.recv_timeout(std::time::Duration::from_secs(5));
                drop(writing);
                assert_eq!(answer, Ok(None), "{name}");
            });
            store.keep_join([1; 32], &id, end, now).expect("keep");
        }
    }

    #[test]
    fn expired_join_tokens_and_ended_svids_are_forgotten() {
        let (_dir, store) = store();
        let id = SpiffeId::parse("spiffe://a/ns/b/sa/c").expect("id");
        let at = Timestamp::from_seconds;
        store.keep_join([1; 32], &id, at(20), at(10)).expect("keep");
        store.keep_join([2; 32], &id, at(40), at(30)).expect("keep");
        assert_eq!(store.take_join([1; 32]).expect("expired"), None);
        let issued = |end| Issued {
            id: id.to_string(),
            not_after: at(end),
            authority: "0a".into(),
            workload: "a/b".into(),
            application: false,
        };
        store.record_issue("aa", &issued(20), at(10)).expect("record");
        store.record_issue("bb", &issued(50), at(10)).expect("record");
        assert_eq!(store.issued(at(30)).expect("issued"), [("bb".to_owned(), issued(50))]);
        let revoked = |end| Revoked { id: id.to_string(), until: at(end), at: at(10), reason: String::new() };
        store.revoke(&[("aa", &revoked(20)), ("bb", &revoked(50))], at(10)).expect("revoke");
        let late = at(20).plus(BACK_DATING);
        assert_eq!(store.revoked(late).expect("revoked"), [("bb".to_owned(), revoked(50))]);
    }

    #[test]
    fn a_full_table_takes_nothing_new_and_what_has_ended_makes_room() {
        let (_dir, store) = store();
        let at = Timestamp::from_seconds;
        let revoked = |end| Revoked { id: String::new(), until: at(end), at: at(1), reason: String::new() };
        let serials: Vec<String> = (0..=REVOKED_MAX).map(|number| format!("{number:x}")).collect();
        let (short, long) = (revoked(20), revoked(50));
        let rows: Vec<(&str, &Revoked)> = serials.iter().map(|serial| (serial.as_str(), &short)).collect();
        assert!(matches!(store.revoke(&rows, at(1)), Err(StoreFailure::Full { what: "revoked SVIDs", .. })), "one too many");
        assert!(store.revoked(at(1)).expect("none").is_empty(), "all or none");
        store.revoke(&rows[1..], at(1)).expect("as many as there is room for");
        assert!(store.revoke(&[("new", &long)], at(1)).is_err());
        let late = at(20).plus(BACK_DATING);
        store.revoke(&[("new", &long)], late).expect("what has ended made room");
        assert_eq!(store.revoked(late).expect("one").len(), 1);
    }
}
