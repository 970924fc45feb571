//! The one place of this program that reads the wall clock.

use model::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock now. A clock before 1970 reads as the epoch, at which every certificate and token is invalid.
#[expect(clippy::disallowed_methods, reason = "this is the program's clock")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
