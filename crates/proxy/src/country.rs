//! Where a call comes from: the country that a trusted caller says in its header, or that a database on this machine knows of an
//! address.
//!
//! The database is a file in MaxMind's format (<https://maxmind.github.io/MaxMind-DB/>). It is read and checked when a configuration is
//! put in force in which a policy reads the country, and again when the file has changed; a request only looks an address up.

mod database;

pub use database::{Database, DatabaseFlaw};

use crate::clock;
use crate::connection::Connection;
use crate::facts;
use crate::state::{Active, Shared};
use identity::handshake::VerifiedPeer;
use message::Head;
use model::issuers::Trouble;
use model::snapshot::CountryHeader;
use model::{Country, CountryCode, Limit, Limits, Timestamp};
use parking_lot::{Mutex, RwLock};
use std::fs::Metadata;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use wire::client::Answers;

/// How often it is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether there is something to tell the control plane.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What a call says of where it comes from: enough to ask for its country whenever it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What a trusted caller says in the configured header.
    claimed: Option<Country>,
    /// The address to ask the database about; `None` if it is not known.
    address: Option<IpAddr>,
}

impl Origin {
    /// Of a request as it came: one value of the configured header, from a caller that is believed about it, and the address of who
    /// called: that of the connection's other end, or the last of `x-forwarded-for` if the other end is a forwarder, whom that called.
    pub fn of_request(active: &Active, connection: &Connection, head: &Head) -> Self {
        Self::of(active, connection, head, false)
    }

    /// The same of a request whose head was made ready for the application: we stand in `x-forwarded-for` too.
    pub fn of_forwarded(active: &Active, connection: &Connection, head: &Head) -> Self {
        Self::of(active, connection, head, true)
    }

    fn of(active: &Active, connection: &Connection, head: &Head, is_forwarded: bool) -> Self {
        let Some(peer) = connection.peer().map(VerifiedPeer::id) else { return Self::of_connection(connection) };
        let claim = |CountryHeader { header, trusted }: &CountryHeader| {
            Country::said(trusted.contains(peer).then(|| head.fields.values(header.as_bytes()))?)
        };
        let (remote, is_forwarder) = (connection.remote.ip(), active.snapshot.forwarders.contains(peer));
        let address = if is_forwarder { called_for(head, remote, is_forwarded) } else { Some(remote) };
        Self { claimed: active.snapshot.country.as_ref().and_then(claim), address }
    }

    /// Of a connection whose bytes say nothing.
    pub const fn of_connection(connection: &Connection) -> Self {
        Self { claimed: None, address: Some(connection.remote.ip()) }
    }

    /// The country, as far as a policy of this action reads it. Costs a look-up in the database, of some hundred nanoseconds, unless the
    /// address is that of the connection's other end and was asked for before.
    pub fn country(self, active: &Active, connection: &Connection, action: &str) -> Country {
        if let Some(claimed) = self.claimed {
            return claimed;
        }
        let (Some(file), Some(address)) = (&active.country_file, self.address) else { return Country::Unknown };
        if !active.reads_country(action) {
            return Country::Unknown;
        }
        let is_fixed = address == connection.remote.ip();
        file.country_of(address, is_fixed.then_some(&connection.located))
    }
}

/// Whom a forwarder calls for: what it has put last into `x-forwarded-for`. What stands before that, the one who called it may have
/// invented. An address of loopback is that of a proxy within the forwarder's own machine, and says nothing. `is_forwarded`: the last of
/// all is `remote`, and ours.
fn called_for(head: &Head, remote: IpAddr, is_forwarded: bool) -> Option<IpAddr> {
    let hops = head.fields.values(facts::FORWARDED_FOR.as_bytes()).flat_map(facts::elements);
    let mut hops = hops.filter(|hop| !hop.is_empty()).peekable();
    // Without one it calls for itself.
    let mut last = Some(remote);
    let mut is_first = true;
    while let Some(hop) = hops.next() {
        if is_forwarded && hops.peek().is_none() {
            break;
        }
        // One that is no text hides itself alone: its caller may have invented it, and not what the forwarder has added.
        let address = std::str::from_utf8(hop).ok().and_then(address_of);
        if !address.is_some_and(|address| address.to_canonical().is_loopback()) {
            last = address;
        } else if is_first {
            last = None;
        }
        is_first = false;
    }
    last
}

/// `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, and each with a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = || text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(bracketed)
}

/// The countries that were looked up for one connection's other end, in one number: by which reading of the file, and what it said.
#[derive(Debug, Default)]
pub struct Located(AtomicU64);

impl Located {
    /// What `reading` said, if it was asked.
    fn known(&self, reading: u32) -> Option<Option<CountryCode>> {
        let packed = self.0.load(Ordering::Relaxed);
        let [.., asked, one, two] = packed.to_be_bytes();
        if asked == 0 || packed >> 32 != u64::from(reading) {
            return None;
        }
        Some(std::str::from_utf8(&[one, two]).ok().and_then(CountryCode::parse))
    }

    fn note(&self, reading: u32, country: Option<CountryCode>) {
        let [one, two] = country.map_or([0, 0], CountryCode::as_bytes);
        let said = u32::from_be_bytes([0, 1, one, two]);
        self.0.store(u64::from(reading) << 32 | u64::from(said), Ordering::Relaxed);
    }
}

/// Counts the readings of all files, so that what a connection keeps of one file is never taken for what another says.
static READINGS: AtomicU32 = AtomicU32::new(0);

/// The database of one configuration, as its file was read last. A file that can no longer be read leaves what was read before.
#[derive(Debug)]
pub struct CountryFile {
    path: String,
    /// What was there when it was looked last; locked for as long as it takes to read it.
    seen: Mutex<Option<Seen>>,
    read: RwLock<Read>,
    /// Which of all [`READINGS`] the last one was; 0: it was never read.
    reading: AtomicU32,
}

#[derive(Debug, Default)]
struct Read {
    database: Option<Arc<Database>>,
    failure: Option<Trouble>,
}

/// What tells one content of the file from another, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Device, inode, bytes, and the changes of content and of anything, in seconds and nanoseconds; `None` if there is no file.
    file: Option<[i128; 5]>,
    bytes_max: u64,
}

impl Seen {
    fn of(found: &io::Result<Metadata>, bytes_max: u64) -> Self {
        let moment = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let file = found.as_ref().ok().map(|found| {
            let changed = [moment(found.mtime(), found.mtime_nsec()), moment(found.ctime(), found.ctime_nsec())];
            [found.dev().into(), found.ino().into(), found.len().into(), changed[0], changed[1]]
        });
        Self { file, bytes_max }
    }
}

impl CountryFile {
    /// The database that a configuration names, read now; that of the configuration before if it is the same file. Reads from disk.
    pub fn open(path: &str, limits: &Limits, before: Option<&Arc<Self>>) -> Arc<Self> {
        let known = before.filter(|before| before.path == path).map(Arc::clone);
        let file = known.unwrap_or_else(|| {
            let (seen, read, reading) = (Mutex::default(), RwLock::default(), AtomicU32::new(0));
            Arc::new(Self { path: path.to_owned(), seen, read, reading })
        });
        file.look(limits);
        file
    }

    /// Reads the file if it is another than when it was looked at last. Costs one stat(2) if it is not; else up to seconds.
    pub fn look(&self, limits: &Limits) {
        let mut seen = self.seen.lock();
        let bytes_max = limits.of(Limit::CountryDatabaseBytes);
        let found = std::fs::metadata(&self.path);
        let now = Seen::of(&found, bytes_max);
        if seen.as_ref() == Some(&now) {
            return;
        }
        *seen = Some(now);
        // Whatever stands in it must not end who looks: nobody would be told.
        let load = || found.map_err(DatabaseFlaw::Io).and_then(|found| Database::load(&self.path, &found, bytes_max));
        match catch_unwind(AssertUnwindSafe(load)).unwrap_or(Err(DatabaseFlaw::Bug)) {
            Ok(database) => {
                tracing::info!(file = self.path, database = %database.title(), "the database of countries is in use");
                *self.read.write() = Read { database: Some(Arc::new(database)), failure: None };
                self.reading.store(READINGS.fetch_add(1, Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            }
            Err(flaw) => {
                let mut read = self.read.write();
                let then = read.database.as_ref().map_or_else(
                    || "calls whose policies read the country are denied".to_owned(),
                    |before| format!("the one read before ({}) stays in use", before.title()),
                );
                let text = format!("the database of countries `{}` {flaw}; {then}", model::ids::printable(&self.path));
                tracing::warn!("{text}");
                read.failure = Some(Trouble { at: clock::now(), text });
            }
        }
    }

    /// What the database knows of an address. `located`: where the answer is kept, if it will be asked for again.
    fn country_of(&self, address: IpAddr, located: Option<&Located>) -> Country {
        let reading = self.reading.load(Ordering::Acquire);
        if let Some(known) = located.and_then(|located| located.known(reading)) {
            return known.into();
        }
        let Some(database) = self.read.read().database.clone() else { return Country::Unavailable };
        let Ok(country) = database.country(address) else { return Country::Unavailable };
        if let Some(located) = located {
            located.note(reading, country);
        }
        country.into()
    }

    /// What is wrong with the file as it is now.
    pub fn failure(&self) -> Option<Trouble> {
        self.read.read().failure.clone()
    }

    /// When the database in use was made; `None` if there is none.
    pub fn built_at(&self) -> Option<Timestamp> {
        self.read.read().database.as_ref().map(|database| database.built_at())
    }
}

/// Looks at the file again and again, for as long as a configuration names one.
pub async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(active) = shared.active().filter(|active| active.country_file.is_some()) else { continue };
        let looked = tokio::task::spawn_blocking(move || {
            if let Some(file) = &active.country_file {
                file.look(&active.snapshot.limits);
            }
        });
        if looked.await.is_err() {
            tracing::error!("the database of countries could not be looked at: that ended by a panic; please report it");
        }
        note(&shared);
    }
}

/// Shows the state of the database in the metrics.
pub fn note(shared: &Shared) {
    let active = shared.active();
    let file = active.as_ref().and_then(|active| active.country_file.as_ref());
    let seconds = |at: Timestamp| i64::try_from(at.seconds()).unwrap_or(i64::MAX);
    shared.metrics.country_database_failed.set(file.is_some_and(|file| file.failure().is_some()).into());
    shared.metrics.country_database_built_at_seconds.set(file.and_then(|file| file.built_at()).map_or(0, seconds));
}

/// Tells the control plane of what an operator must look at at this sidecar, for as long as one stream lives.
pub async fn tell(shared: &Shared, answers: Answers) {
    let mut told: Vec<Trouble> = Vec::new();
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let now: Vec<Trouble> = shared.active().and_then(|active| active.country_file.as_ref()?.failure()).into_iter().collect();
        if now != told {
            if answers.troubles(&now).await.is_err() {
                // The stream is gone; who serves it knows.
                return std::future::pending().await;
            }
            told = now;
        }
    }
}

#[cfg(test)]
mod tests;
