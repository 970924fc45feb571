//! Decision records as they travel.

use super::ConvertError;
use crate::proto;
use model::decision::{Explanation, Outcome, PolicyOutcome, Shadowed, Would};
use model::{DecisionId, DecisionRecord, Effect, PolicyId, Reason, Revision, Timestamp};
use prost::Message;

/// LIMIT: entries of an explanation's lists.
const ENTRIES_MAX: usize = 200;
/// LIMIT: bytes of one text.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// LIMIT: bytes of one record, so that neither a large policy nor a hostile caller can make a record that nobody takes, and
/// the thousand of one answer to an operator fit his client's bound.
pub(crate) const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Bytes that protobuf puts around one entry of a list: tags and lengths, of its texts too.
const FRAMING_BYTES: usize = 16;
/// Stands where something was left out.
const CUT: &str = "…";

/// A record on its way to the control plane or the operator. Texts that are too long are cut, and of an explanation that is
/// too large the conditions that did not hold go first; `…` stands where something is left out.
pub fn record_to_wire(record: &DecisionRecord) -> proto::DecisionRecord {
    let mut wire = proto::DecisionRecord {
        id: record.id.to_string(),
        at_ms: record.at.millis(),
        workload: cut(&record.workload),
        resource: cut(&record.resource),
        allowed: record.effect == Effect::Allow,
        reason: record.reason.clone().unwrap_or_default(),
        detail: cut(record.detail.as_deref().unwrap_or_default()),
        status: record.status.into(),
        revision: record.revision.0,
        principal: cut(record.principal.as_deref().unwrap_or_default()),
        user: record.user.as_deref().map(cut),
        action: cut(&record.action),
        path: cut(&record.path),
        explanation: None,
        shadow: record.shadow.as_ref().map(shadowed_to_wire),
    };
    if let Some(explanation) = &record.explanation {
        // One mark per policy, and the explanation's own frame, always fit.
        let kept = wire.encoded_len() + (ENTRIES_MAX + 1) * (FRAMING_BYTES + CUT.len());
        let mut room = Room(RECORD_BYTES_MAX.saturating_sub(kept));
        wire.explanation = Some(explanation_to_wire(explanation, &mut room));
    }
    wire
}

/// LIMIT: policies in shadow mode that one record names.
const SHADOW_POLICIES_MAX: usize = 20;

fn shadowed_to_wire(shadowed: &Shadowed) -> proto::Shadowed {
    proto::Shadowed {
        would: would_to_wire(shadowed.would).into(),
        policies: shadowed.policies.iter().take(SHADOW_POLICIES_MAX).map(|policy| cut(policy.as_str())).collect(),
        detail: cut(shadowed.detail.as_deref().unwrap_or_default()),
    }
}

pub(super) const fn would_to_wire(would: Would) -> proto::Would {
    match would {
        Would::Allow => proto::Would::Allow,
        Would::Deny => proto::Would::Deny,
        Would::Fail => proto::Would::Fail,
    }
}

pub(super) fn would_from_wire(value: i32) -> Result<Would, ConvertError> {
    match proto::Would::try_from(value) {
        Ok(proto::Would::Allow) => Ok(Would::Allow),
        Ok(proto::Would::Deny) => Ok(Would::Deny),
        Ok(proto::Would::Fail) => Ok(Would::Fail),
        Ok(proto::Would::Unspecified) | Err(_) => Err(ConvertError::new("would", format!("unknown value {value}"))),
    }
}

fn shadowed_from_wire(wire: proto::Shadowed) -> Result<Shadowed, ConvertError> {
    few("policies", &wire.policies)?;
    for (index, policy) in wire.policies.iter().enumerate() {
        bounded(&format!("policies[{index}]"), policy)?;
    }
    bounded("detail", &wire.detail)?;
    Ok(Shadowed {
        would: would_from_wire(wire.would)?,
        policies: wire.policies.iter().map(|policy| PolicyId::from_text(policy)).collect(),
        detail: (!wire.detail.is_empty()).then_some(wire.detail),
    })
}

/// The bytes of a record that are not used yet.
struct Room(usize);

impl Room {
    /// Takes an entry of these texts, if there is room for all of it.
    fn takes(&mut self, texts: &[&str]) -> bool {
        let bytes = texts.iter().map(|text| text.len()).sum::<usize>() + FRAMING_BYTES;
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// In the order of worth: what would have helped, which policies applied, what they read, and last which conditions failed.
fn explanation_to_wire(explanation: &Explanation, room: &mut Room) -> proto::Explanation {
    let nearest_miss = explanation.nearest_miss.as_deref().map(cut).filter(|text| room.takes(&[text]));
    let heads = explanation.policies.iter().take(ENTRIES_MAX).map(policy_to_wire);
    let mut policies: Vec<_> = heads.take_while(|policy| room.takes(&[&policy.id, &policy.kind, &policy.position])).collect();
    let attributes = explanation.attributes.iter().take(ENTRIES_MAX);
    let attributes = attributes.map(|(path, value)| proto::Attribute { path: cut(path), value: cut(value) });
    let attributes = attributes.take_while(|attribute| room.takes(&[&attribute.path, &attribute.value])).collect();
    for (wire, policy) in policies.iter_mut().zip(&explanation.policies) {
        let lines = policy.failed.iter().take(ENTRIES_MAX).map(|text| cut(text));
        wire.failed = lines.take_while(|line| room.takes(&[line])).collect();
        if wire.failed.len() < policy.failed.len() {
            wire.failed.truncate(ENTRIES_MAX - 1);
            wire.failed.push(CUT.to_owned());
        }
    }
    proto::Explanation { policies, attributes, nearest_miss }
}

/// Without the conditions that failed.
fn policy_to_wire(policy: &PolicyOutcome) -> proto::PolicyOutcome {
    let outcome = match policy.outcome {
        Outcome::Applied => proto::Outcome::Applied,
        Outcome::NotApplied => proto::Outcome::NotApplied,
        Outcome::Errored => proto::Outcome::Errored,
    };
    proto::PolicyOutcome {
        id: cut(policy.id.as_str()),
        kind: cut(&policy.kind),
        position: cut(&policy.position),
        outcome: outcome.into(),
        failed: Vec::new(),
    }
}

/// The text, or as much of it as fits with a mark behind.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_MAX - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", text.get(..end).unwrap_or_default())
}

/// A record that was received.
///
/// # Errors
/// - [`ConvertError`] naming the field: not an id, an unknown reason or outcome, too long, too many, an allowed call with a reason.
pub fn record_from_wire(wire: proto::DecisionRecord) -> Result<DecisionRecord, ConvertError> {
    let bytes = wire.encoded_len();
    if bytes > RECORD_BYTES_MAX {
        return Err(ConvertError::new("record", format!("{bytes} bytes, {RECORD_BYTES_MAX} at most")));
    }
    for (path, text) in [
        ("workload", &wire.workload),
        ("resource", &wire.resource),
        ("detail", &wire.detail),
        ("principal", &wire.principal),
        ("action", &wire.action),
        ("path", &wire.path),
    ] {
        bounded(path, text)?;
    }
    if !wire.reason.is_empty() && Reason::named(&wire.reason).is_none() {
        return Err(ConvertError::new("reason", format!("unknown word `{}`", model::ids::printable(&wire.reason))));
    }
    if wire.allowed && !wire.reason.is_empty() {
        return Err(ConvertError::new("reason", "an allowed call has none"));
    }
    let present = |text: String| (!text.is_empty()).then_some(text);
    Ok(DecisionRecord {
        id: DecisionId::parse(&wire.id).map_err(|error| ConvertError::new("id", error))?,
        at: Timestamp::from_millis(wire.at_ms),
        workload: wire.workload,
        resource: wire.resource,
        effect: if wire.allowed { Effect::Allow } else { Effect::Deny },
        reason: present(wire.reason),
        detail: present(wire.detail),
        status: u16::try_from(wire.status).map_err(|_| ConvertError::new("status", "not an HTTP status"))?,
        revision: Revision(wire.revision),
        principal: present(wire.principal),
        user: wire.user.map(|user| bounded("user", &user).map(|()| user)).transpose()?,
        action: wire.action,
        path: wire.path,
        explanation: wire.explanation.map(explanation_from_wire).transpose().map_err(|error| error.within("explanation"))?,
        shadow: wire.shadow.map(shadowed_from_wire).transpose().map_err(|error| error.within("shadow"))?,
    })
}

pub(super) fn bounded(path: &str, text: &str) -> Result<(), ConvertError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ConvertError::new(path, format!("{} bytes, {TEXT_BYTES_MAX} at most", text.len())));
    }
    Ok(())
}

fn few<T>(path: &str, list: &[T]) -> Result<(), ConvertError> {
    if list.len() > ENTRIES_MAX {
        return Err(ConvertError::new(path, format!("{} entries, {ENTRIES_MAX} at most", list.len())));
    }
    Ok(())
}

fn explanation_from_wire(wire: proto::Explanation) -> Result<Explanation, ConvertError> {
    few("policies", &wire.policies)?;
    few("attributes", &wire.attributes)?;
    let policy = |(index, policy): (usize, proto::PolicyOutcome)| -> Result<PolicyOutcome, ConvertError> {
        let path = format!("policies[{index}]");
        few(&format!("{path}.failed"), &policy.failed)?;
        for (field, text) in [("id", &policy.id), ("kind", &policy.kind), ("position", &policy.position)] {
            bounded(&format!("{path}.{field}"), text)?;
        }
        for (index, text) in policy.failed.iter().enumerate() {
            bounded(&format!("{path}.failed[{index}]"), text)?;
        }
        let outcome = match proto::Outcome::try_from(policy.outcome) {
            Ok(proto::Outcome::Applied) => Outcome::Applied,
            Ok(proto::Outcome::NotApplied) => Outcome::NotApplied,
            Ok(proto::Outcome::Errored) => Outcome::Errored,
            Ok(proto::Outcome::Unspecified) | Err(_) => {
                return Err(ConvertError::new(format!("{path}.outcome"), format!("unknown value {}", policy.outcome)));
            }
        };
        let id = PolicyId::from_text(&policy.id);
        Ok(PolicyOutcome { id, kind: policy.kind, position: policy.position, outcome, failed: policy.failed })
    };
    let attribute = |(index, attribute): (usize, proto::Attribute)| -> Result<(String, String), ConvertError> {
        bounded(&format!("attributes[{index}].path"), &attribute.path)?;
        bounded(&format!("attributes[{index}].value"), &attribute.value)?;
        Ok((attribute.path, attribute.value))
    };
    if let Some(text) = &wire.nearest_miss {
        bounded("nearest_miss", text)?;
    }
    Ok(Explanation {
        policies: wire.policies.into_iter().enumerate().map(policy).collect::<Result<_, _>>()?,
        attributes: wire.attributes.into_iter().enumerate().map(attribute).collect::<Result<_, _>>()?,
        nearest_miss: wire.nearest_miss,
    })
}

#[cfg(test)]
mod tests;
