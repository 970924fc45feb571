//! HTTP/2 (RFC 9113) with HPACK (RFC 7541), without I/O: bytes in, events out, bytes to write.
//!
//! Read [`Connection`] first, then [`Head`]. One [`Connection`] is one side of one connection, server or client. The driver reads
//! from the socket into [`Connection::receive`], takes every [`Event`] with [`Connection::next_event`], answers, and writes
//! [`Connection::output`] once for all of it. Once a second it calls [`Connection::second_passed`].
//!
//! Deliberately not here: sockets, clocks and deadlines (a slow peer is the driver's matter), priorities (deprecated by
//! RFC 9113 §5.3, read and ignored), server push (refused), and whether `host` agrees with `:authority` (the application's
//! matter, as it can answer 400).

mod assembly;
mod connection;
mod error;
mod flood;
mod frame;
mod head;
mod headers;
mod hpack;
mod output;
mod receive;
mod send;
mod settings;
mod spare;
mod streams;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]
mod tests;

pub use connection::{BodyState, Connection, Event, Role, StreamId};
pub use error::{CannotOpen, CannotSend, ConnectionError, ErrorCode};
pub use head::{Arrival, ArrivalKind, Head};
pub use settings::{PeerSettings, Settings};
