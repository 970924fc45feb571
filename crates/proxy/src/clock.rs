//! The one place of this program that reads the wall clock.

use model::Timestamp;
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock now. A clock before 1970 reads as the epoch, at which every certificate and token is invalid.
#[expect(clippy::disallowed_methods, reason = "this is the program's clock")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

thread_local! {
    /// The last date that was written, and its second: many responses share one.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// A moment as a `Date` line says it (RFC 9110 §5.6.7).
pub fn with_http_date<T>(at: Timestamp, then: impl FnOnce(&str) -> T) -> T {
    DATE.with_borrow_mut(|(second, text)| {
        if *second != at.seconds() {
            *second = at.seconds();
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at.seconds().min(LAST_SECOND)));
        }
        then(text)
    })
}

thread_local! {
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// A moment to its second, as RFC 3339 says it without a zone: `2026-11-24T10:00:00`.
pub fn with_second<T>(at: Timestamp, then: impl FnOnce(&str) -> T) -> T {
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != at.seconds() {
            *second = at.seconds();
            *text = Timestamp::from_seconds(at.seconds()).to_string();
            text.truncate(text.len() - ".000Z".len());
        }
        then(text)
    })
}

/// The last second of the year 9999, after which the form has no room.
const LAST_SECOND: u64 = 253_402_300_799;
