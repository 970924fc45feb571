//! The payload of a token: which claims must hold (RFC 7519 §4.1, RFC 9068 §2.2), and what becomes of them.

use crate::json::{Json, Object};
use crate::refusal::Refusal;
use crate::require;
use crate::verify::Rules;
use model::authz::AttributeType;
use model::snapshot::{ClaimMapping, KeySource, TokenIssuer};
use model::{AttributeValue, ClaimPath, Limit, Limits, SpiffeId, Timestamp, User};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
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

/// What a payload says, judged by its issuer's configuration.
pub(crate) struct Judged {
    pub(crate) user: User,
    pub(crate) said: Said,
    /// `exp`, clock skew not counted.
    pub(crate) expires_at: Timestamp,
    /// From when on it must be judged anew: `exp`, or when the login is too long ago.
    pub(crate) holds_until: Timestamp,
}

/// What a token says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) jti: Option<String>,
    /// `client_id` (RFC 9068 §2.2) and `azp` (OpenID Connect Core §2): whichever is there, and both where they differ.
    pub(crate) clients: [Option<String>; 2],
    pub(crate) issued_at: Option<Timestamp>,
    /// The caller's certificate, SHA-256 (RFC 8705 §3.1).
    pub(crate) certificate: Option<[u8; 32]>,
    /// The thumbprint of the caller's key (RFC 9449 §6.1).
    pub(crate) key: Option<[u8; 32]>,
    /// Headers for the application.
    pub(crate) told: Vec<(String, String)>,
}

/// Judges a payload that its issuer vouched for: by whom and for whom, for now, and everything that `require` demands.
pub(crate) fn judge(payload: &Object, issuer: &TokenIssuer, rules: &Rules<'_>, now: Timestamp) -> Result<Judged, Refusal> {
    let skew = skew(issuer, rules.limits);
    audience(payload, issuer)?;
    let expires_at = expires(payload, skew, now)?;
    // A token from the future (`iat`) tells of a wrong clock, and its `exp` cannot be trusted more than that.
    for claim in ["nbf", "iat"] {
        begun(payload, claim, skew, now)?;
    }
    let (certificate, key) = require::binding(payload)?;
    let user = user(payload, issuer)?;
    let logged_in_until = require::fulfilled(payload, &user, issuer, skew, now)?;
    let text = |claim: &str| payload.get(claim).and_then(Json::text).map(str::to_owned);
    let said = Said {
        jti: text("jti"),
        clients: [text("client_id"), text("azp")],
        issued_at: payload.get("iat").map(|at| moment("iat", at)).transpose()?,
        certificate,
        key,
        told: require::told(payload, rules.told)?,
    };
    let holds_until = logged_in_until.map_or(expires_at, |until| until.min(expires_at));
    Ok(Judged { user, said, expires_at, holds_until })
}

/// The clock difference that is tolerated in an issuer's tokens.
pub(crate) fn skew(issuer: &TokenIssuer, limits: &Limits) -> Duration {
    issuer.require.clock_skew.unwrap_or_else(|| limits.duration(Limit::ClockSkewMs))
}

/// RFC 7519 §4.1.4: now must be before `exp`, which is returned.
pub(crate) fn expires(payload: &Object, skew: Duration, now: Timestamp) -> Result<Timestamp, Refusal> {
    let expires_at = moment("exp", required(payload, "exp")?)?;
    if now >= expires_at.plus(skew) {
        return Err(Refusal::Expired { ago: now.since(expires_at) });
    }
    Ok(expires_at)
}

/// RFC 7519 §4.1.5, §4.1.6: `nbf` and `iat`, where they are said, must not be ahead.
pub(crate) fn begun(payload: &Object, claim: &'static str, skew: Duration, now: Timestamp) -> Result<(), Refusal> {
    let Some(value) = payload.get(claim) else { return Ok(()) };
    let at = moment(claim, value)?;
    if now.plus(skew) < at { Err(Refusal::NotYetValid { claim, ahead: at.since(now) }) } else { Ok(()) }
}

/// RFC 7519 §4.1.3: one text or a list of texts; one of them must be ours.
pub(crate) fn audience(payload: &Object, issuer: &TokenIssuer) -> Result<(), Refusal> {
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
fn user(payload: &Object, issuer: &TokenIssuer) -> Result<User, Refusal> {
    let subject = subject(payload)?;
    let roles = roles(payload, issuer)?;
    let scopes = scopes(payload)?;
    let mut attributes = BTreeMap::new();
    for (name, mapping) in &issuer.attributes {
        if let Some(value) = attribute(payload, mapping)? {
            attributes.insert(name.clone(), value);
        }
    }
    Ok(User { issuer: issuer.name.clone(), subject, roles, scopes, attributes })
}

/// RFC 7519 §4.1.2. Whom the token is about.
pub(crate) fn subject(payload: &Object) -> Result<String, Refusal> {
    let subject = required(payload, "sub")?.text().unwrap_or_default();
    // The subject becomes a header's value and a log field: a line break in it could forge either.
    if subject.is_empty() || subject.chars().any(char::is_control) {
        return Err(wrong("sub", "a text with at least one and no control character"));
    }
    Ok(subject.to_owned())
}

/// The roles that the claim lists which is mapped to them.
pub(crate) fn roles(payload: &Object, issuer: &TokenIssuer) -> Result<Vec<String>, Refusal> {
    match &issuer.roles_claim {
        Some(claim) => Ok(words(at(payload, claim), claim)?.unwrap_or_default()),
        None => Ok(Vec::new()),
    }
}

/// What the token may be used for.
pub(crate) fn scopes(payload: &Object) -> Result<Vec<String>, Refusal> {
    // RFC 8693 §4.2 says `scope`; `scp` is what several issuers write instead.
    match words(payload.get("scope"), &"scope")? {
        Some(scopes) => Ok(scopes),
        None => Ok(words(payload.get("scp"), &"scp")?.unwrap_or_default()),
    }
}

/// A claim's value as an attribute of exactly the declared type; nothing is converted. `None` if the claim is not there.
pub(crate) fn attribute(payload: &Object, mapping: &ClaimMapping) -> Result<Option<AttributeValue>, Refusal> {
    let Some(value) = at(payload, &mapping.claim) else { return Ok(None) };
    let value = match (mapping.kind, value) {
        (AttributeType::Long, Json::Integer(number)) => Some(AttributeValue::Long(*number)),
        (AttributeType::Boolean, Json::Boolean(flag)) => Some(AttributeValue::Boolean(*flag)),
        (AttributeType::String, Json::Text(text)) => Some(AttributeValue::String(text.clone())),
        (AttributeType::StringSet, list) => list.texts().map(|texts| AttributeValue::StringSet(distinct(texts))),
        _ => None,
    };
    value.map(Some).ok_or_else(|| wrong(&mapping.claim, mapping.kind.as_str()))
}

/// A claim that is a list of texts, or one text of words with spaces between (RFC 6749 §3.3). `None` if it is absent.
fn words(value: Option<&Json>, claim: &dyn Display) -> Result<Option<Vec<String>>, Refusal> {
    let Some(value) = value else {
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

/// The claim at this path. A name within what is no object is not there.
pub(crate) fn at<'p>(payload: &'p Object, path: &ClaimPath) -> Option<&'p Json> {
    let (last, outer) = path.names().split_last()?;
    let within = outer.iter().try_fold(payload, |object, name| match object.get(name) {
        Some(Json::Object(inner)) => Some(inner),
        Some(_) | None => None,
    });
    within?.get(last)
}

/// A NumericDate (RFC 7519 §2): seconds since the epoch, possibly with a fraction, which is cut to milliseconds.
pub(crate) fn moment(claim: &'static str, value: &Json) -> Result<Timestamp, Refusal> {
    let at = match value {
        Json::Integer(seconds) => u64::try_from(*seconds).ok().map(Timestamp::from_seconds),
        Json::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok().map(|since| Timestamp::default().plus(since)),
        _ => None,
    };
    at.ok_or_else(|| wrong(claim, "a number of seconds since 1970"))
}

pub(crate) fn required<'p>(payload: &'p Object, claim: &'static str) -> Result<&'p Json, Refusal> {
    payload.get(claim).ok_or_else(|| Refusal::ClaimMissing { claim: claim.to_owned() })
}

pub(crate) fn wrong(claim: impl Display, expected: &'static str) -> Refusal {
    Refusal::ClaimType { claim: claim.to_string(), expected }
}
