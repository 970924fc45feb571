//! Protobuf to `model` and back. Every conversion from the wire is strict.

mod issuer_keys;
mod record;
mod resource;
mod shadow;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use record::RECORD_BYTES_MAX;
pub use record::{record_from_wire, record_to_wire};
pub(crate) use resource::key_of;
pub use resource::{assemble, bundle_from_wire, bundle_to_wire, resources};
pub use shadow::{shadow_report_from_wire, shadow_report_to_wire};
pub use token::{revoked_from_wire as revoked_tokens_from_wire, revoked_to_wire as revoked_token_to_wire};

use crate::proto;
use model::Snapshot;
use prost::Message;
use std::collections::BTreeMap;

/// A field of a message is not what the contract says. The sender is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {problem}")]
pub struct ConvertError {
    /// The field, from the message's root: `upstream/bank/ledger.endpoints[0].address`.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ConvertError {
    /// A problem with one field.
    pub fn new(path: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self { path: path.into(), problem: problem.to_string() }
    }

    /// The same problem, seen from a message further out.
    #[must_use]
    pub fn within(self, outer: &str) -> Self {
        let path = if self.path.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.path) };
        Self { path, problem: self.problem }
    }
}

/// The parts of a snapshot, by their key (`kind/name`).
pub type Parts = BTreeMap<String, proto::Resource>;

/// The bytes of a snapshot: the same snapshot always gives the same bytes, so that a digest of them can be signed.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let changed = resources(snapshot).into_values().collect();
    let whole = proto::ConfigUpdate {
        nonce: String::new(),
        revision: snapshot.revision.0,
        changed,
        removed: Vec::new(),
        signature: Vec::new(),
        rehearsal: None,
    };
    whole.encode_to_vec()
}

/// Reads what [`encode_snapshot`] wrote.
///
/// # Errors
/// - [`ConvertError`] naming the field; nothing is taken then.
pub fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, ConvertError> {
    let whole = proto::ConfigUpdate::decode(bytes).map_err(|error| ConvertError::new("snapshot", error))?;
    let mut parts = Parts::new();
    for resource in whole.changed {
        let key = resource::key(&resource)?;
        if parts.insert(key.clone(), resource).is_some() {
            return Err(ConvertError::new(key, "it stands twice"));
        }
    }
    assemble(whole.revision, &parts)
}
