//! The file itself: read whole, and every record of it once before it is believed.

use maxminddb::{MaxMindDbError, Reader, WithinOptions, path};
use model::{CountryCode, Limit, Timestamp};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// LIMIT: how long the records of a database may take to be read: a configuration waits for it. A City database takes some seconds.
const READING_MAX: Duration = Duration::from_secs(60);
/// How many networks are read between two looks at the clock. One takes half a millisecond at most, by the reader's own bounds.
const LOOK_EVERY: usize = 256;

/// Why a file is no database of countries. The text follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseFlaw {
    /// It is not there or cannot be opened.
    #[error("cannot be read ({0}): put it where the `MeshConfig` says, readable for the sidecar")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("is no file: put the database there")]
    NotAFile,
    /// It is larger than allowed.
    #[error(
        "has {bytes} bytes, more than limit `{}` ({bytes_max}): take a database of countries alone, or raise the limit",
        Limit::CountryDatabaseBytes.name()
    )]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// It is of another format, or a part of it is missing or damaged.
    #[error("is not a whole database in MaxMind's format (`.mmdb`, not packed): fetch it again ({0})")]
    Format(#[from] MaxMindDbError),
    /// More records than there can be: the tree of networks leads into itself.
    #[error("is damaged: its tree of networks leads into itself; fetch it again")]
    Tree,
    /// Its records are so large, or so many, that they are not read in time.
    #[error("takes more than {} s to read: take a database of countries alone, and fetch it again if it is one", READING_MAX.as_secs())]
    Slow,
    /// A country that is not one.
    #[error("is damaged: it says `{found}` where the two letters of a country belong; fetch it again")]
    Code {
        /// What it says, printable.
        found: String,
    },
    /// The reading ended by a panic.
    #[error("cannot be read: the reading ended by itself; please report it, and fetch the file again")]
    Bug,
    /// It is about something else.
    #[error(
        "is a `{kind}`, and none of its records has `country.iso_code`: take a database of countries, such as GeoLite2-Country"
    )]
    NoCountry {
        /// What it says it is, printable.
        kind: String,
    },
}

/// A database all of whose records could be read, and some of which name a country. Held in memory.
pub struct Database {
    reader: Reader<Vec<u8>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.title())
    }
}

impl Database {
    /// Reads a file that was found.
    ///
    /// # Errors
    /// - [`DatabaseFlaw`].
    pub fn load(path: &str, found: &Metadata, bytes_max: u64) -> Result<Self, DatabaseFlaw> {
        if !found.is_file() {
            return Err(DatabaseFlaw::NotAFile);
        }
        let too_large = |bytes: u64| if bytes > bytes_max { Err(DatabaseFlaw::TooLarge { bytes, bytes_max }) } else { Ok(()) };
        too_large(found.len())?;
        let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
        // What was found may have been replaced since: a pipe has nobody wait for who writes, and a file may have grown.
        let file = File::from(
            rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                .map_err(io::Error::from)?,
        );
        if !file.metadata()?.is_file() {
            return Err(DatabaseFlaw::NotAFile);
        }
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
        too_large(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        Self::parse(bytes)
    }

    /// Reads every record once. Cost: some hundred nanoseconds for each network; GeoLite2-Country has about a million.
    ///
    /// # Errors
    /// - [`DatabaseFlaw`], but for what only a file can be.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DatabaseFlaw> {
        Self::parse_until(bytes, Instant::now() + READING_MAX)
    }

    /// The same, for as long as there is time.
    pub(super) fn parse_until(bytes: Vec<u8>, deadline: Instant) -> Result<Self, DatabaseFlaw> {
        let reader = Reader::from_source(bytes)?;
        // A tree of so many nodes has one leaf more; aliases of networks may lead to some twice.
        let mut left = usize::try_from(reader.metadata().node_count).unwrap_or(usize::MAX).saturating_mul(3);
        let mut countries = 0_usize;
        for (at, network) in reader.networks(WithinOptions::default())?.enumerate() {
            if at % LOOK_EVERY == 0 && Instant::now() > deadline {
                return Err(DatabaseFlaw::Slow);
            }
            left = left.checked_sub(1).ok_or(DatabaseFlaw::Tree)?;
            countries += usize::from(code(&network?)?.is_some());
        }
        if countries == 0 {
            return Err(DatabaseFlaw::NoCountry { kind: model::ids::printable(&reader.metadata().database_type) });
        }
        Ok(Self { reader })
    }

    /// The country of an address: where it is, not where its owner is registered. `None` for one of a private network, for one that the
    /// database does not know, and for one of IPv6 if it knows only IPv4.
    ///
    /// # Errors
    /// - [`DatabaseFlaw`]; never for a database that was read once.
    pub fn country(&self, address: IpAddr) -> Result<Option<CountryCode>, DatabaseFlaw> {
        let address = address.to_canonical();
        if is_within_a_site(address) || (address.is_ipv6() && self.reader.metadata().ip_version == 4) {
            return Ok(None);
        }
        code(&self.reader.lookup(address)?)
    }

    /// What it is and when it was made, for people.
    pub fn title(&self) -> String {
        format!("{} of {}", model::ids::printable(&self.reader.metadata().database_type), self.built_at())
    }

    /// When it was made, as it says.
    pub fn built_at(&self) -> Timestamp {
        Timestamp::from_millis(self.reader.metadata().build_epoch.saturating_mul(1000))
    }
}

/// The country of a record, if it names one.
fn code(found: &maxminddb::LookupResult<'_, Vec<u8>>) -> Result<Option<CountryCode>, DatabaseFlaw> {
    let Some(text) = found.decode_path::<&str>(&path!["country", "iso_code"])? else { return Ok(None) };
    CountryCode::parse(text).map(Some).ok_or_else(|| DatabaseFlaw::Code { found: model::ids::printable(text) })
}

/// Loopback, link-local, private and unspecified addresses: they are everywhere, whatever a database says.
const fn is_within_a_site(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}
