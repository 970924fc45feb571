//! Decision records as they travel.

use super::ConvertError;
use crate::proto;
use model::decision::{Explanation, Outcome, PolicyOutcome};
use model::{DecisionId, DecisionRecord, Effect, PolicyId, Reason, Revision, Timestamp};

/// Entries of an explanation's lists.
const ENTRIES_MAX: usize = 200;
/// Bytes of one text.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// A record on its way to the control plane or the operator. Texts that are too long are cut.
pub fn record_to_wire(record: &DecisionRecord) -> proto::DecisionRecord {
    proto::DecisionRecord {
        id: record.id.to_string(),
        at_ms: record.at.millis(),
        workload: record.workload.clone(),
        resource: record.resource.clone(),
        allowed: record.effect == Effect::Allow,
        reason: record.reason.clone().unwrap_or_default(),
        detail: cut(record.detail.as_deref().unwrap_or_default()),
        status: record.status.into(),
        revision: record.revision.0,
        principal: record.principal.clone().unwrap_or_default(),
        user: record.user.as_deref().map(cut),
        action: cut(&record.action),
        path: cut(&record.path),
        explanation: record.explanation.as_ref().map(explanation_to_wire),
    }
}

fn explanation_to_wire(explanation: &Explanation) -> proto::Explanation {
    let policy = |policy: &PolicyOutcome| proto::PolicyOutcome {
        id: policy.id.to_string(),
        kind: policy.kind.clone(),
        position: policy.position.clone(),
        outcome: match policy.outcome {
            Outcome::Applied => proto::Outcome::Applied,
            Outcome::NotApplied => proto::Outcome::NotApplied,
            Outcome::Errored => proto::Outcome::Errored,
        }
        .into(),
        failed: policy.failed.iter().take(ENTRIES_MAX).map(|text| cut(text)).collect(),
    };
    let attribute = |(path, value): &(String, String)| proto::Attribute { path: cut(path), value: cut(value) };
    proto::Explanation {
        policies: explanation.policies.iter().take(ENTRIES_MAX).map(policy).collect(),
        attributes: explanation.attributes.iter().take(ENTRIES_MAX).map(attribute).collect(),
        nearest_miss: explanation.nearest_miss.as_deref().map(cut),
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// A record that was received.
///
/// # Errors
/// - [`ConvertError`] naming the field: not an id, an unknown reason or outcome, too long, too many.
pub fn record_from_wire(wire: proto::DecisionRecord) -> Result<DecisionRecord, ConvertError> {
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
    })
}

fn bounded(path: &str, text: &str) -> Result<(), ConvertError> {
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
        for text in policy.failed.iter().chain([&policy.id, &policy.kind, &policy.position]) {
            bounded(&path, text)?;
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
