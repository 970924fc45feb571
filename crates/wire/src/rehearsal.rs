//! The rehearsal of a rotation on the configuration stream: an order of the control plane, and what a sidecar reports.

use crate::convert::{ConvertError, bundle_from_wire, bundle_to_wire};
use crate::proto;
use model::SpiffeId;
use model::snapshot::TrustBundle;
use std::net::SocketAddr;

/// LIMIT: handshakes of one sidecar's report; further endpoints are not tried.
pub const HANDSHAKES_MAX: usize = 256;
/// LIMIT: bytes of a rehearsal's id.
const ID_BYTES_MAX: usize = 64;
/// LIMIT: bytes of a failure's text; the rest is cut.
const FAILURE_BYTES_MAX: usize = 1024;

/// What a sidecar is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Get an SVID of the shadow authority, and answer the rehearsal's handshakes with it.
    Prepare(TrustBundle),
    /// Make the handshakes.
    Shake,
    /// Forget it.
    End,
}

/// An order of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which rehearsal.
    pub id: String,
    /// What to do.
    pub step: Step,
}

/// Which moment of a rotation a handshake stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// One side has an SVID of the new authority, the other one of the old; both are trusted.
    Activate,
    /// Both sides have an SVID of the new authority, and it alone is trusted.
    Retire,
}

impl Phase {
    /// `activate` or `retire`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Retire => "retire",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Activate, Self::Retire].into_iter().find(|phase| phase.as_str() == text)
    }
}

/// One handshake between two sidecars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Where.
    pub address: SocketAddr,
    /// Who must answer there.
    pub identity: SpiffeId,
    /// What it stands for.
    pub phase: Phase,
    /// Why it failed; `None` if it did not.
    pub failure: Option<String>,
}

/// What a sidecar says of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which rehearsal.
    pub id: String,
    /// Why the step could not be taken; `None` if it was.
    pub failure: Option<String>,
    /// The handshakes that were made, at most [`HANDSHAKES_MAX`].
    pub handshakes: Vec<Handshake>,
}

pub(crate) fn order_from_wire(wire: proto::Rehearsal) -> Result<Order, ConvertError> {
    let step = match (proto::RehearsalStep::try_from(wire.step), wire.bundle) {
        (Ok(proto::RehearsalStep::Prepare), Some(bundle)) => {
            Step::Prepare(bundle_from_wire(&bundle).map_err(|error| error.within("rehearsal.bundle"))?)
        }
        (Ok(proto::RehearsalStep::Prepare), None) => return Err(ConvertError::new("rehearsal.bundle", "missing")),
        (Ok(proto::RehearsalStep::Shake), _) => Step::Shake,
        (Ok(proto::RehearsalStep::End), _) => Step::End,
        (Ok(proto::RehearsalStep::Unspecified) | Err(_), _) => {
            return Err(ConvertError::new("rehearsal.step", format!("unknown value {}", wire.step)));
        }
    };
    Ok(Order { id: id(wire.id, "rehearsal.id")?, step })
}

/// An order, alone in its message.
pub fn order_to_wire(order: &Order) -> proto::ConfigUpdate {
    let (step, bundle) = match &order.step {
        Step::Prepare(bundle) => (proto::RehearsalStep::Prepare, Some(bundle_to_wire(bundle))),
        Step::Shake => (proto::RehearsalStep::Shake, None),
        Step::End => (proto::RehearsalStep::End, None),
    };
    let rehearsal = proto::Rehearsal { id: order.id.clone(), step: step.into(), bundle };
    proto::ConfigUpdate { rehearsal: Some(rehearsal), ..proto::ConfigUpdate::default() }
}

pub(crate) fn report_to_wire(report: Report) -> proto::RehearsalReport {
    let handshake = |each: Handshake| proto::RehearsedHandshake {
        address: each.address.to_string(),
        identity: each.identity.to_string(),
        phase: each.phase.as_str().to_owned(),
        failure: each.failure.map_or_else(String::new, told),
    };
    proto::RehearsalReport {
        id: report.id,
        failure: report.failure.map_or_else(String::new, told),
        handshakes: report.handshakes.into_iter().take(HANDSHAKES_MAX).map(handshake).collect(),
    }
}

/// A report that was received.
///
/// # Errors
/// - [`ConvertError`] naming the field.
pub fn report_from_wire(wire: proto::RehearsalReport) -> Result<Report, ConvertError> {
    if wire.handshakes.len() > HANDSHAKES_MAX {
        return Err(ConvertError::new("handshakes", format!("{} entries, {HANDSHAKES_MAX} at most", wire.handshakes.len())));
    }
    let handshake = |(index, each): (usize, proto::RehearsedHandshake)| {
        let wrong = |field: &str, problem: String| ConvertError::new(format!("handshakes[{index}].{field}"), problem);
        Ok(Handshake {
            address: each.address.parse().map_err(|_| wrong("address", "not an address with a port".to_owned()))?,
            identity: SpiffeId::parse(&each.identity).map_err(|error| wrong("identity", error.to_string()))?,
            phase: Phase::parse(&each.phase).ok_or_else(|| wrong("phase", "unknown".to_owned()))?,
            failure: (!each.failure.is_empty()).then(|| told(each.failure)),
        })
    };
    Ok(Report {
        id: id(wire.id, "id")?,
        failure: (!wire.failure.is_empty()).then(|| told(wire.failure)),
        handshakes: wire.handshakes.into_iter().enumerate().map(handshake).collect::<Result<_, ConvertError>>()?,
    })
}

fn id(id: String, path: &str) -> Result<String, ConvertError> {
    let is_sound = (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_sound { Ok(id) } else { Err(ConvertError::new(path, format!("1 to {ID_BYTES_MAX} letters, digits and hyphens"))) }
}

/// The text, cut to its bound.
fn told(mut text: String) -> String {
    let mut end = text.len().min(FAILURE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
