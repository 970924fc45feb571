//! What came with a message's head.

pub use crate::head::Head;

/// What [`Connection::take_head`](super::Connection::take_head) gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which head it is.
    pub kind: ArrivalKind,
    /// The message ends with it: there is no body and there are no trailers.
    pub end: bool,
}

/// Which head it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrivalKind {
    /// A request, or the final head of a response.
    Whole,
    /// A head of a response before the final one (status 1xx).
    Informational,
    /// Larger than `head_bytes_max` or of more lines than `fields_max`: there is only as much as is within the bounds, and
    /// pseudo-headers may be missing. A server answers 431, a client's peer has misbehaved.
    TooLarge,
}
