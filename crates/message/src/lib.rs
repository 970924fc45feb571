//! HTTP messages as bytes: what a message says and where it ends. No I/O, no async, no clock.
//!
//! Read [`Fields`] first, then [`http2::Connection`].

pub mod fields;
pub mod http2;

pub use fields::Fields;
