//! Field compression of RFC 7541: [`Decoder`] and [`Encoder`], one of each per connection.

mod decoder;
mod encoder;
mod huffman;
mod statics;
mod table;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]
mod tests;

pub(super) use decoder::{Decoder, Lines};
pub(super) use encoder::{Encoder, Section};
pub(super) use statics::{Class, is_sound_value};

/// A field block that says nothing sensible: the state of both sides is no longer the same. RFC 7541 §3, RFC 9113 §4.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Size of the dynamic table before anybody says otherwise. RFC 9113 §6.5.2.
pub(super) const TABLE_BYTES: u32 = 4096;

/// What a line costs beside its text. RFC 7541 §4.1.
pub(super) const LINE_OVERHEAD: usize = 32;
