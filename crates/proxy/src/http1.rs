//! HTTP/1 on a connection: the caller's side ([`Server`]) and the side towards an application or a peer ([`Client`]).
//!
//! The grammar is `framing`'s, what a message means is `facts`'; here are the bytes, read and written without a task or a copy of
//! their own. Both sides show a message alike: a head, then pieces of a body that are looked at where they lie.

mod client;
mod server;
mod writing;

pub use client::{Client, ClientFault};
pub use server::{BodyFault, Next, Server};
pub use writing::Length;

/// What a body did at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Some of it is there.
    Data,
    /// It has ended; trailers, if any, are there.
    Ended,
}

#[cfg(test)]
pub(crate) mod tests;
