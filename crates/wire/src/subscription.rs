//! The sidecar's side of the configuration stream: what an update makes of what was acknowledged before.

use crate::convert::{ConvertError, Parts, assemble, key_of};
use crate::proto;
use model::{Limit, Revision, Snapshot};
use proto::config_request::Message;

/// Bytes of a nack's reason.
const REASON_BYTES_MAX: usize = 4096;
/// Bytes of a nonce.
const NONCE_BYTES_MAX: usize = 64;
/// Parts of one snapshot.
const PARTS_MAX: usize = 100_000;
/// Bytes of a whole update beside its parts: nonce, revision, and the signature with its chain.
const BESIDE_PARTS_BYTES: usize = 16 * 1024;
/// Bytes that protobuf puts before one part: a tag and a length.
const FRAMING_BYTES: usize = 6;

/// One update as it came.
#[derive(Clone, Debug)]
pub struct Update(pub(crate) proto::ConfigUpdate);

/// What is sent back: exactly one per update.
#[derive(Clone, Debug)]
pub struct Answer(pub(crate) proto::ConfigRequest);

/// A snapshot that was received and could be read. Nothing has changed until it is accepted.
#[derive(Debug)]
pub struct Candidate {
    /// What would be in force.
    pub snapshot: Snapshot,
    /// The control plane's signature over the snapshot's digest.
    pub signature: Vec<u8>,
    nonce: String,
    parts: Parts,
}

/// An update that cannot be read: a message to send back, and the reason for the log.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Nack {
    nonce: String,
    /// What is wrong with the update.
    pub reason: ConvertError,
}

/// The state machine. It changes in [`Subscription::accept`] only.
#[derive(Debug, Default)]
pub struct Subscription {
    parts: Parts,
    revision: Revision,
}

impl Subscription {
    /// At the beginning of a stream: nothing is acknowledged.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an update against what was acknowledged.
    ///
    /// # Errors
    /// - [`Nack`] if a part is malformed, unknown, dangling or stands twice, a removal names nothing, the revision goes back,
    ///   or the whole is larger than `configMessageBytes`.
    pub fn receive(&self, update: Update) -> Result<Candidate, Nack> {
        let proto::ConfigUpdate { nonce, revision, changed, removed, signature, rehearsal: _ } = update.0;
        let refuse = |reason| Nack { nonce: nonce.chars().take(NONCE_BYTES_MAX).collect(), reason };
        if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX {
            return Err(refuse(ConvertError::new("nonce", format!("1 to {NONCE_BYTES_MAX} bytes"))));
        }
        if revision < self.revision.0 {
            let text = format!("{revision} after {}: a revision never goes back", self.revision);
            return Err(refuse(ConvertError::new("revision", text)));
        }
        let mut parts = self.parts.clone();
        for key in removed {
            if parts.remove(&key).is_none() {
                return Err(refuse(ConvertError::new("removed", format!("no `{}` to remove", model::ids::printable(&key)))));
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        for resource in changed {
            let key = key_of(&resource).map_err(refuse)?;
            if !seen.insert(key.clone()) {
                return Err(refuse(ConvertError::new(key, "it stands twice")));
            }
            parts.insert(key, resource);
        }
        if parts.len() > PARTS_MAX {
            return Err(refuse(ConvertError::new("changed", format!("{} parts, {PARTS_MAX} at most", parts.len()))));
        }
        let snapshot = assemble(revision, &parts).map_err(refuse)?;
        sendable(&snapshot, &parts).map_err(refuse)?;
        Ok(Candidate { snapshot, signature, nonce, parts })
    }

    /// The candidate is in force: later updates are read against it.
    pub fn accept(&mut self, candidate: Candidate) -> Answer {
        self.revision = candidate.snapshot.revision;
        self.parts = candidate.parts;
        Answer::of(Message::Ack(proto::Ack { nonce: candidate.nonce }))
    }

    /// The candidate could not be put in force: everything stays as it was.
    pub fn refuse(&self, candidate: Candidate, reason: &str) -> Answer {
        Nack { nonce: candidate.nonce, reason: ConvertError::new("apply", reason) }.with_text(reason)
    }
}

/// Differences may add up to a whole that the next stream could not begin with: refused now, by name, and not then.
fn sendable(snapshot: &Snapshot, parts: &Parts) -> Result<(), ConvertError> {
    let bytes_max = snapshot.limits.size(Limit::ConfigMessageBytes);
    let parts = parts.values().map(|part| prost::Message::encoded_len(part).saturating_add(FRAMING_BYTES));
    let bytes = parts.fold(BESIDE_PARTS_BYTES, usize::saturating_add);
    if bytes > bytes_max {
        let name = Limit::ConfigMessageBytes.name();
        return Err(ConvertError::new("changed", format!("the whole takes {bytes} bytes; limit `{name}` is {bytes_max}")));
    }
    Ok(())
}

impl Nack {
    fn with_text(self, text: &str) -> Answer {
        let mut end = text.len().min(REASON_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let reason = text.get(..end).unwrap_or_default().to_owned();
        Answer::of(Message::Nack(proto::Nack { nonce: self.nonce, reason }))
    }
}

impl From<Nack> for Answer {
    fn from(nack: Nack) -> Self {
        let text = nack.reason.to_string();
        nack.with_text(&text)
    }
}

impl Answer {
    const fn of(message: Message) -> Self {
        Self(proto::ConfigRequest { message: Some(message) })
    }
}
