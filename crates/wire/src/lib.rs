//! The edge: protobuf to `model` and back, and who may send what next.
//!
//! Read [`subscription`] (the sidecar's side of the configuration stream) and [`publication`] (the control plane's) first:
//! both are values without I/O. [`convert`] is the one gate through which bytes become words; a field that is missing,
//! unknown or malformed refuses the whole message with the path of the field.

pub mod client;
pub mod convert;
#[cfg(test)]
mod fixture;
pub mod issuers;
pub mod operator;
pub mod publication;
pub mod rehearsal;
pub mod subscription;
#[cfg(test)]
mod tests;
pub mod workload;

/// Generated from `proto/rondel/v1`. The control plane implements the server traits; nobody else names this.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the comments stand in the .proto files"
)]
pub mod proto {
    tonic::include_proto!("rondel.v1");
}

pub use convert::{ConvertError, decode_snapshot, encode_snapshot};
pub use publication::{ProtocolError, Publication};
pub use subscription::{Answer, Candidate, Nack, Subscription, Update};
