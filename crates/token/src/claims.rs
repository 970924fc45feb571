//! The payload of a token: which claims must hold (RFC 7519 §4.1, RFC 9068 §2.2), and what becomes of them.

use crate::json::{Json, Object};
use crate::refusal::Refusal;
use model::authz::AttributeType;
use model::snapshot::{KeySource, TokenIssuer};
use model::{AttributeValue, Limit, Limits, SpiffeId, Timestamp, User};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The issuer that the payload names, not verified: it only selects whose keys are tried.
///
/// Two configured issuers with the same `iss` cannot be told apart; the first counts.
pub(crate) fn issuer<'i>(payload: &Object, issuers: &'i [TokenIssuer]) -> Result<&'i TokenIssuer, Refusal> {
    let said = payload.get("iss");
    let is_named = |each: &&TokenIssuer| {
        !matches!(each.keys, KeySource::JwtSvid(_)) && said.and_then(Json::text) == Some(each.issuer.as_str())
    };
    if let Some(found) = issuers.iter().find(is_named).or_else(|| trust_domain(payload, issuers)) {
        return Ok(found);
    }
    required(payload, "iss")?.text().ok_or_else(|| wrong("iss", "a text"))?;
    Err(Refusal::IssuerUnknown { configured: issuers.len() })
}

/// The issuer of a JWT-SVID: the trust domain of its `sub`, whatever its `iss` says, if anything (SPIFFE JWT-SVID §3.1).
fn trust_domain<'i>(payload: &Object, issuers: &'i [TokenIssuer]) -> Option<&'i TokenIssuer> {
    let is_jwt_svid = |each: &TokenIssuer| matches!(each.keys, KeySource::JwtSvid(_));
    if !issuers.iter().any(is_jwt_svid) {
        return None;
    }
    let subject = SpiffeId::parse(payload.get("sub")?.text()?).ok()?;
    issuers.iter().find(|each| matches!(&each.keys, KeySource::JwtSvid(domain) if domain == subject.trust_domain()))
}

/// Checks that the token is for us, and for now. Returns its `exp`.
pub(crate) fn check(payload: &Object, issuer: &TokenIssuer, limits: &Limits, now: Timestamp) -> Result<Timestamp, Refusal> {
    audience(payload, issuer)?;
    let skew = limits.duration(Limit::ClockSkewMs);
    let expires_at = moment("exp", required(payload, "exp")?)?;
    // RFC 7519 §4.1.4: now must be before `exp`.
    if now >= expires_at.plus(skew) {
        return Err(Refusal::Expired { ago: now.since(expires_at) });
    }
    // A token from the future (`iat`) tells of a wrong clock, and its `exp` cannot be trusted more than that.
    for claim in ["nbf", "iat"] {
        if let Some(value) = payload.get(claim) {
            let at = moment(claim, value)?;
            if now.plus(skew) < at {
                return Err(Refusal::NotYetValid { claim, ahead: at.since(now) });
            }
        }
    }
    if payload.contains_key("cnf") {
        return Err(Refusal::SenderConstrained);
    }
    Ok(expires_at)
}

/// RFC 7519 §4.1.3: one text or a list of texts; one of them must be ours.
fn audience(payload: &Object, issuer: &TokenIssuer) -> Result<(), Refusal> {
    let audience = required(payload, "aud")?;
    let given = match audience {
        Json::Text(one) => Some(vec![one.as_str()]),
        other => other.texts(),
    };
    let given = given.ok_or_else(|| wrong("aud", "a text or a list of texts"))?;
    if given.iter().any(|each| issuer.audiences.iter().any(|ours| ours == each)) {
        return Ok(());
    }
    Err(Refusal::Audience { issuer: issuer.name.clone(), given: given.len() })
}

/// The user that the claims describe.
pub(crate) fn user(payload: &Object, issuer: &TokenIssuer) -> Result<User, Refusal> {
    let subject = required(payload, "sub")?.text().unwrap_or_default();
    // The subject becomes a header's value and a log field: a line break in it could forge either.
    if subject.is_empty() || subject.chars().any(char::is_control) {
        return Err(wrong("sub", "a text with at least one and no control character"));
    }
    let roles = match &issuer.roles_claim {
        Some(claim) => words(payload, claim)?.unwrap_or_default(),
        None => Vec::new(),
    };
    // RFC 8693 §4.2 says `scope`; `scp` is what several issuers write instead.
    let scopes = match words(payload, "scope")? {
        Some(scopes) => scopes,
        None => words(payload, "scp")?.unwrap_or_default(),
    };
    let mut attributes = BTreeMap::new();
    for (name, mapping) in &issuer.attributes {
        if let Some(value) = payload.get(&mapping.claim) {
            attributes.insert(name.clone(), attribute(&mapping.claim, mapping.kind, value)?);
        }
    }
    Ok(User { issuer: issuer.name.clone(), subject: subject.to_owned(), roles, scopes, attributes })
}

/// A claim's value as an attribute of exactly the declared type; nothing is converted.
fn attribute(claim: &str, kind: AttributeType, value: &Json) -> Result<AttributeValue, Refusal> {
    let value = match (kind, value) {
        (AttributeType::Long, Json::Integer(number)) => Some(AttributeValue::Long(*number)),
        (AttributeType::Boolean, Json::Boolean(flag)) => Some(AttributeValue::Boolean(*flag)),
        (AttributeType::String, Json::Text(text)) => Some(AttributeValue::String(text.clone())),
        (AttributeType::StringSet, list) => list.texts().map(|texts| AttributeValue::StringSet(distinct(texts))),
        _ => None,
    };
    value.ok_or_else(|| wrong(claim, kind.as_str()))
}

/// A claim that is a list of texts, or one text of words with spaces between (RFC 6749 §3.3). `None` if it is absent.
fn words(payload: &Object, claim: &str) -> Result<Option<Vec<String>>, Refusal> {
    let Some(value) = payload.get(claim) else {
        return Ok(None);
    };
    let found = match value {
        Json::Text(text) => Some(text.split(' ').filter(|word| !word.is_empty()).collect()),
        other => other.texts(),
    };
    found.map(|found| Some(distinct(found))).ok_or_else(|| wrong(claim, "a text or a list of texts"))
}

fn distinct(texts: Vec<&str>) -> Vec<String> {
    let set: BTreeSet<&str> = texts.into_iter().collect();
    set.into_iter().map(str::to_owned).collect()
}

/// A NumericDate (RFC 7519 §2): seconds since the epoch, possibly with a fraction, which is cut to milliseconds.
fn moment(claim: &'static str, value: &Json) -> Result<Timestamp, Refusal> {
    let at = match value {
        Json::Integer(seconds) => u64::try_from(*seconds).ok().map(Timestamp::from_seconds),
        Json::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok().map(|since| Timestamp::default().plus(since)),
        _ => None,
    };
    at.ok_or_else(|| wrong(claim, "a number of seconds since 1970"))
}

fn required<'p>(payload: &'p Object, claim: &'static str) -> Result<&'p Json, Refusal> {
    payload.get(claim).ok_or(Refusal::ClaimMissing { claim })
}

fn wrong(claim: &str, expected: &'static str) -> Refusal {
    Refusal::ClaimType { claim: claim.to_owned(), expected }
}
