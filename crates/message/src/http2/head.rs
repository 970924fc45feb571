//! A message's head.

use std::fmt;

use crate::Fields;

/// Head of a request or of a response, as plain bytes. What is not there is empty (or 0). Used again after [`Head::clear`], it costs
/// no allocation.
///
/// A head from [`Connection::take_head`](super::Connection::take_head) obeys RFC 9113 §8.2 and §8.3: a request has `method`, and
/// either `authority` alone (CONNECT) or `scheme` and `path`; a response has `status`. `fields` holds no pseudo-header, no
/// connection-specific field, one `cookie` and one `content-length` at most, and no value with control characters.
///
/// `Debug` prints names only: values and paths may hold tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// `:method`, in a request.
    pub method: Vec<u8>,
    /// `:scheme`, in a request that is not CONNECT.
    pub scheme: Vec<u8>,
    /// `:authority`, in a request that has it. Without the deprecated user part.
    pub authority: Vec<u8>,
    /// `:path`, in a request that is not CONNECT: starts with `/`, or is `*` with OPTIONS.
    pub path: Vec<u8>,
    /// `:protocol` of an extended CONNECT. RFC 8441 §4.
    pub protocol: Vec<u8>,
    /// `:status`, in a response: 100 to 999. 0 in a request.
    pub status: u16,
    /// Everything else, in order.
    pub fields: Fields,
}

impl Head {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.method.clear();
        self.scheme.clear();
        self.authority.clear();
        self.path.clear();
        self.protocol.clear();
        self.status = 0;
        self.fields.clear();
    }

    /// Whether this is the head of a response that says: the final one comes later. RFC 9110 §15.2.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Bytes of memory that are held for the next head.
    pub(super) fn capacity(&self) -> usize {
        let texts = [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol];
        texts.iter().map(|text| text.capacity()).sum::<usize>() + self.fields.capacity()
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &String::from_utf8_lossy(&self.method))
            .field("status", &self.status)
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

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
