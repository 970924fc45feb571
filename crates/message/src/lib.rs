//! HTTP messages as bytes: what a message says, and HTTP/2 to its last bit. No I/O, no async, no clock.
//!
//! Read [`Head`] and [`Fields`] first, then [`http2::Connection`].

pub mod fields;
pub mod head;
pub mod http2;

pub use fields::Fields;
pub use head::{Head, Version};
