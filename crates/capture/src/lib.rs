//! Transparent capture: one nftables table that leads a pod's TCP connections through its sidecar.
//!
//! Read [`Rules`] first; [`apply`], [`remove`] and [`check`] put its table in force, take it away and look at it. The table is
//! loaded in one transaction, so that it is there whole or not at all, and touches no other table.
//!
//! What is not captured: UDP, traffic on `lo`, DNS, the sidecar's own connections and ports, and what the rules exclude.

mod cidr;
mod nft;
mod rules;

pub use cidr::{Cidr, CidrError};
pub use nft::{CaptureError, State, apply, check, remove};
pub use rules::{PROBE_OWN, PROBE_V4, PROBE_V6, Rules};
