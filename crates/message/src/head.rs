//! The head of a request or of a response, whichever version of HTTP carried it.

use crate::Fields;
use std::fmt;

/// What a message was written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

/// A head, as plain bytes. What is not there is empty (or 0). Used again after [`Head::clear`], it costs no allocation.
///
/// One from [`http2::Connection::take_head`](crate::http2::Connection::take_head) obeys RFC 9113 §8.2 and §8.3: a request has
/// `method`, and either `authority` alone (CONNECT) or `scheme` and `path`; a response has `status`. `fields` holds no
/// pseudo-header, no connection-specific field, one `cookie` and one `content-length` at most, and no value with control characters.
///
/// `Debug` prints names only: values and paths may hold tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// What it was written in.
    pub version: Version,
    /// The method, as sent.
    pub method: Vec<u8>,
    /// `:scheme`, or that of an absolute request target.
    pub scheme: Vec<u8>,
    /// `:authority` without the deprecated user part, or that of an absolute request target.
    pub authority: Vec<u8>,
    /// `:path`, or the request target without scheme and authority.
    pub path: Vec<u8>,
    /// `:protocol` of an extended CONNECT. RFC 8441 §4.
    pub protocol: Vec<u8>,
    /// The status of a response: 100 to 999. 0 in a request.
    pub status: u16,
    /// The phrase behind a status of HTTP/1.
    pub reason: Vec<u8>,
    /// The header lines, in order.
    pub fields: Fields,
}

impl Head {
    /// Forgets what it says and keeps the memory.
    pub fn clear(&mut self) {
        self.version = Version::default();
        self.status = 0;
        for part in
            [&mut self.method, &mut self.scheme, &mut self.authority, &mut self.path, &mut self.protocol, &mut self.reason]
        {
            part.clear();
        }
        self.fields.clear();
    }

    /// Replaces one part.
    pub fn set(part: &mut Vec<u8>, value: &[u8]) {
        part.clear();
        part.extend_from_slice(value);
    }

    /// Whether this is the head of a response that says: the final one comes later. RFC 9110 §15.2.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Bytes of memory that are held for the next head.
    pub fn capacity(&self) -> usize {
        let texts = [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol, &self.reason];
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
