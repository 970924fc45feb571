//! The control plane's side of the configuration stream: the difference to what the sidecar has acknowledged, one at a time.

use crate::convert::{Parts, resources};
use crate::proto;
use model::{Revision, Snapshot};

/// What a sidecar said makes no sense at this point; its stream is closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// It answers an update that is not under way.
    #[error("an answer to `{got}`, which is not under way")]
    Nonce {
        /// The nonce that it names, cut to a printable length.
        got: String,
    },
}

/// An update that was sent and not answered yet.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    revision: Revision,
    parts: Parts,
}

/// The state machine of one stream.
#[derive(Debug, Default)]
pub struct Publication {
    acked: Parts,
    acked_revision: Revision,
    in_flight: Option<InFlight>,
    refused: Option<(InFlight, String)>,
    sent: u64,
}

impl Publication {
    /// At the beginning of a stream: nothing is acknowledged.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next update towards `desired`, or `None` while one is under way, when nothing is new, or when exactly this was
    /// refused already: it is not offered again until it changes. `signature` is the control plane's over the snapshot's digest.
    pub fn next(&mut self, desired: &Snapshot, signature: impl FnOnce() -> Vec<u8>) -> Option<proto::ConfigUpdate> {
        if self.in_flight.is_some() || desired.revision == self.acked_revision {
            return None;
        }
        let parts = resources(desired);
        if self.refused.as_ref().is_some_and(|(refused, _)| refused.parts == parts) {
            return None;
        }
        let changed =
            parts.iter().filter(|(key, part)| self.acked.get(*key) != Some(part)).map(|(_, part)| part.clone()).collect();
        let removed = self.acked.keys().filter(|key| !parts.contains_key(*key)).cloned().collect();
        self.sent += 1;
        let nonce = format!("{}-{}", desired.revision, self.sent);
        self.in_flight = Some(InFlight { nonce: nonce.clone(), revision: desired.revision, parts });
        Some(proto::ConfigUpdate {
            nonce,
            revision: desired.revision.0,
            changed,
            removed,
            signature: signature(),
            rehearsal: None,
        })
    }

    /// The sidecar has put the update in force. Returns its revision.
    ///
    /// # Errors
    /// - [`ProtocolError::Nonce`] if that update is not under way.
    pub fn ack(&mut self, nonce: &str) -> Result<Revision, ProtocolError> {
        let done = self.answered(nonce)?;
        self.acked = done.parts;
        self.acked_revision = done.revision;
        self.refused = None;
        Ok(done.revision)
    }

    /// The sidecar refuses the update and keeps what it had. Returns the refused revision.
    ///
    /// # Errors
    /// - [`ProtocolError::Nonce`] if that update is not under way.
    pub fn nack(&mut self, nonce: &str, reason: &str) -> Result<Revision, ProtocolError> {
        let refused = self.answered(nonce)?;
        let revision = refused.revision;
        self.refused = Some((refused, reason.to_owned()));
        Ok(revision)
    }

    /// The revision that the sidecar has acknowledged on this stream, 0 for none.
    pub fn acked_revision(&self) -> Revision {
        self.acked_revision
    }

    /// What the sidecar refuses at this moment, and why.
    pub fn rejected(&self) -> Option<(Revision, &str)> {
        self.refused.as_ref().map(|(refused, reason)| (refused.revision, reason.as_str()))
    }

    fn answered(&mut self, nonce: &str) -> Result<InFlight, ProtocolError> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.nonce == nonce => Ok(in_flight),
            other => {
                self.in_flight = other;
                Err(ProtocolError::Nonce { got: model::ids::printable(nonce) })
            }
        }
    }
}
