//! What sidecars know of the issuers: told on the configuration stream, asked for by the operator.

use crate::client::{CallFailure, within};
use crate::convert::ConvertError;
use crate::operator::OperatorClient;
use crate::proto;
use model::issuers::{IntrospectionReport, IssuerReport, KeyReport, Trouble};
use model::{Timestamp, WorkloadName};
use std::time::Duration;

/// LIMIT: issuers of one sidecar's report; further ones are not told.
const ISSUERS_MAX: usize = 256;
/// LIMIT: troubles of one sidecar; further ones are not told.
const TROUBLES_MAX: usize = 16;
/// LIMIT: bytes of one text of a report.
const TEXT_BYTES_MAX: usize = 4096;

/// One workload's issuers, as its sidecar told them last.
#[derive(Clone, Debug)]
pub struct WorkloadIssuers {
    /// The workload.
    pub workload: WorkloadName,
    /// When its sidecar told it; `None`: it is away, or has not yet.
    pub told_at: Option<Timestamp>,
    /// In the order of their names.
    pub issuers: Vec<IssuerReport>,
}

pub(crate) fn to_wire(issuers: &[IssuerReport]) -> proto::IssuersReport {
    proto::IssuersReport { issuers: issuers.iter().take(ISSUERS_MAX).map(report_to_wire).collect() }
}

pub(crate) fn troubles_to_wire(troubles: &[Trouble]) -> proto::TroublesReport {
    let fits = |(at, letter): &(usize, char)| at + letter.len_utf8() <= TEXT_BYTES_MAX;
    let one = |trouble: &Trouble| proto::Failure {
        at_ms: trouble.at.millis(),
        text: trouble.text.char_indices().take_while(fits).map(|(_, letter)| letter).collect(),
    };
    proto::TroublesReport { troubles: troubles.iter().take(TROUBLES_MAX).map(one).collect() }
}

/// The troubles of one sidecar.
///
/// # Errors
/// - [`ConvertError`] naming what is too long or too many.
pub fn troubles_from_wire(wire: proto::TroublesReport) -> Result<Vec<Trouble>, ConvertError> {
    if wire.troubles.len() > TROUBLES_MAX {
        return Err(ConvertError::new("troubles", format!("{} entries, {TROUBLES_MAX} at most", wire.troubles.len())));
    }
    let one = |failure: proto::Failure| {
        Ok(Trouble { at: Timestamp::from_millis(failure.at_ms), text: text("troubles.text", failure.text)? })
    };
    wire.troubles.into_iter().map(one).collect()
}

/// A report as the operator's answer holds it.
pub fn report_to_wire(report: &IssuerReport) -> proto::IssuerReport {
    let trouble = |failure: &Option<Trouble>| {
        failure.as_ref().map(|failure| proto::Failure { at_ms: failure.at.millis(), text: failure.text.clone() })
    };
    let key = |key: &KeyReport| proto::KeyReport { id: key.id.clone(), algorithm: key.algorithm.clone() };
    let millis = |at: Option<Timestamp>| at.map(Timestamp::millis);
    proto::IssuerReport {
        name: report.name.clone(),
        issuer: report.issuer.clone(),
        source: report.source.clone(),
        keys: report.keys.iter().map(key).collect(),
        ignored: report.ignored,
        fetched_at_ms: millis(report.fetched_at),
        next_at_ms: millis(report.next_at),
        believed_until_ms: millis(report.believed_until),
        failure: trouble(&report.failure),
        introspection: report.introspection.as_ref().map(|asked| proto::IntrospectionReport {
            endpoint: asked.endpoint.clone(),
            authentication: asked.authentication.clone(),
            prefix: asked.prefix.clone(),
            answered_at_ms: millis(asked.answered_at),
            asked: asked.asked,
            failed: asked.failed,
            failure: trouble(&asked.failure),
        }),
    }
}

/// A report that was received.
///
/// # Errors
/// - [`ConvertError`] naming what is too long or too many.
pub fn from_wire(wire: proto::IssuersReport) -> Result<Vec<IssuerReport>, ConvertError> {
    if wire.issuers.len() > ISSUERS_MAX {
        return Err(ConvertError::new("issuers", format!("{} entries, {ISSUERS_MAX} at most", wire.issuers.len())));
    }
    let report = |(index, report)| report_from_wire(report).map_err(|error| error.within(&format!("issuers[{index}]")));
    wire.issuers.into_iter().enumerate().map(report).collect()
}

fn report_from_wire(wire: proto::IssuerReport) -> Result<IssuerReport, ConvertError> {
    if wire.keys.len() > IssuerReport::KEYS_MAX {
        return Err(ConvertError::new("keys", format!("{} entries, {} at most", wire.keys.len(), IssuerReport::KEYS_MAX)));
    }
    let at = |at: Option<u64>| at.map(Timestamp::from_millis);
    let trouble = |failure: Option<proto::Failure>| -> Result<Option<Trouble>, ConvertError> {
        failure
            .map(|failure| Ok(Trouble { at: Timestamp::from_millis(failure.at_ms), text: text("failure", failure.text)? }))
            .transpose()
    };
    let key = |key: proto::KeyReport| -> Result<KeyReport, ConvertError> {
        Ok(KeyReport { id: key.id.map(|id| text("keys.id", id)).transpose()?, algorithm: text("keys.algorithm", key.algorithm)? })
    };
    let introspection = |asked: proto::IntrospectionReport| -> Result<IntrospectionReport, ConvertError> {
        Ok(IntrospectionReport {
            endpoint: text("introspection.endpoint", asked.endpoint)?,
            authentication: text("introspection.authentication", asked.authentication)?,
            prefix: text("introspection.prefix", asked.prefix)?,
            answered_at: at(asked.answered_at_ms),
            asked: asked.asked,
            failed: asked.failed,
            failure: trouble(asked.failure)?,
        })
    };
    Ok(IssuerReport {
        name: text("name", wire.name)?,
        issuer: text("issuer", wire.issuer)?,
        source: text("source", wire.source)?,
        keys: wire.keys.into_iter().map(key).collect::<Result<_, _>>()?,
        ignored: wire.ignored,
        fetched_at: at(wire.fetched_at_ms),
        next_at: at(wire.next_at_ms),
        believed_until: at(wire.believed_until_ms),
        failure: trouble(wire.failure)?,
        introspection: wire.introspection.map(introspection).transpose()?,
    })
}

fn text(path: &str, text: String) -> Result<String, ConvertError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ConvertError::new(path, format!("{} bytes, {TEXT_BYTES_MAX} at most", text.len())));
    }
    Ok(text)
}

impl OperatorClient {
    /// Asks for the issuers at every sidecar, or at one workload's.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn issuers(
        &mut self,
        workload: Option<&WorkloadName>,
        deadline: Duration,
    ) -> Result<Vec<WorkloadIssuers>, CallFailure> {
        let request = proto::IssuersRequest { workload: workload.map(ToString::to_string).unwrap_or_default() };
        let response = within(deadline, self.client.issuers(request)).await?.into_inner();
        let one = |(index, wire): (usize, proto::WorkloadIssuers)| -> Result<WorkloadIssuers, ConvertError> {
            let path = format!("workloads[{index}]");
            let name =
                WorkloadName::parse(&wire.workload).map_err(|error| ConvertError::new(format!("{path}.workload"), error))?;
            let report = |report| report_from_wire(report).map_err(|error| error.within(&path));
            let issuers = wire.issuers.into_iter().map(report).collect::<Result<_, _>>()?;
            Ok(WorkloadIssuers { workload: name, told_at: wire.told_at_ms.map(Timestamp::from_millis), issuers })
        };
        Ok(response.workloads.into_iter().enumerate().map(one).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> IssuerReport {
        let trouble = || Some(Trouble { at: Timestamp::from_millis(7), text: "status 503".into() });
        IssuerReport {
            name: "login".into(),
            issuer: "https://login.example".into(),
            source: "discovery".into(),
            keys: vec![
                KeyReport { id: Some("k1".into()), algorithm: "ES256".into() },
                KeyReport { id: None, algorithm: "EdDSA".into() },
            ],
            ignored: 2,
            fetched_at: Some(Timestamp::from_millis(1)),
            next_at: Some(Timestamp::from_millis(2)),
            believed_until: Some(Timestamp::from_millis(3)),
            failure: trouble(),
            introspection: Some(IntrospectionReport {
                endpoint: "https://login.example/introspect".into(),
                authentication: "private_key_jwt".into(),
                prefix: "op_".into(),
                answered_at: Some(Timestamp::from_millis(4)),
                asked: 5,
                failed: 6,
                failure: trouble(),
            }),
        }
    }

    #[test]
    fn a_report_arrives_as_it_was_told() {
        for sent in [vec![], vec![report()], vec![report(), IssuerReport { name: "other".into(), ..IssuerReport::default() }]] {
            assert_eq!(from_wire(to_wire(&sent)), Ok(sent));
        }
    }

    #[test]
    fn troubles_arrive_as_they_were_told_and_none_that_is_too_large() {
        let one = |text: &str| Trouble { at: Timestamp::from_millis(7), text: text.into() };
        for sent in [vec![], vec![one("a file is gone"), one("")]] {
            assert_eq!(troubles_from_wire(troubles_to_wire(&sent)), Ok(sent));
        }
        let many = troubles_to_wire(&vec![one(&"\u{e4}".repeat(TEXT_BYTES_MAX)); TROUBLES_MAX + 1]);
        assert!(many.troubles.len() == TROUBLES_MAX && many.troubles.iter().all(|each| each.text.len() <= TEXT_BYTES_MAX));
        assert!(troubles_from_wire(many).is_ok());
        let (long, short) = ("x".repeat(TEXT_BYTES_MAX + 1), String::new());
        for (text, count) in [(long, 1), (short, TROUBLES_MAX + 1)] {
            let failure = proto::Failure { at_ms: 0, text };
            assert!(troubles_from_wire(proto::TroublesReport { troubles: vec![failure; count] }).is_err());
        }
    }

    #[test]
    fn a_report_that_is_too_large_is_refused_and_none_is_told() {
        let many = vec![report(); ISSUERS_MAX + 1];
        assert_eq!(to_wire(&many).issuers.len(), ISSUERS_MAX);
        let wire = proto::IssuersReport { issuers: many.iter().map(report_to_wire).collect() };
        assert!(from_wire(wire).is_err());
        for change in [
            |report: &mut IssuerReport| report.name = "x".repeat(TEXT_BYTES_MAX + 1),
            |report: &mut IssuerReport| {
                report.failure = Some(Trouble { text: "x".repeat(TEXT_BYTES_MAX + 1), ..Trouble::default() })
            },
            |report: &mut IssuerReport| report.keys = vec![KeyReport::default(); IssuerReport::KEYS_MAX + 1],
        ] {
            let mut changed = report();
            change(&mut changed);
            assert!(from_wire(to_wire(&[changed])).is_err());
        }
    }
}
