//! What is asked of tokens, where they are taken from and which are revoked, as they travel.

use super::ConvertError;
use super::resource::{filled, parsed, text};
use crate::proto;
use model::token::{Requirements, RevokedTokens, SenderConstraint, TokenUse};
use model::{ClaimPath, Timestamp, ids};
use std::collections::BTreeMap;
use std::time::Duration;

type Result<T> = std::result::Result<T, ConvertError>;

/// LIMIT: revocations of tokens in one snapshot; each is remembered only until it ends.
const REVOKED_TOKENS_MAX: usize = 10_000;

pub(super) fn requirements_to_wire(require: &Requirements) -> Option<proto::Requirements> {
    let claim =
        |(claim, values): (&ClaimPath, &Vec<String>)| proto::RequiredClaim { claim: claim.to_string(), values: values.clone() };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    (*require != Requirements::default()).then(|| proto::Requirements {
        at_jwt: require.at_jwt,
        scopes: require.scopes.clone(),
        claims: require.claims.iter().map(claim).collect(),
        acr: require.acr.clone(),
        max_age_ms: require.max_age.map(millis),
        sender: match require.sender {
            SenderConstraint::None => proto::SenderConstraint::None,
            SenderConstraint::Certificate => proto::SenderConstraint::Certificate,
            SenderConstraint::Dpop => proto::SenderConstraint::Dpop,
            SenderConstraint::Any => proto::SenderConstraint::Any,
        }
        .into(),
        dpop_nonce: require.dpop_nonce,
        clock_skew_ms: require.clock_skew.map(millis),
    })
}

pub(super) fn requirements_from_wire(wire: &proto::Requirements) -> Result<Requirements> {
    let mut claims = BTreeMap::new();
    for (index, required) in wire.claims.iter().enumerate() {
        let path = format!("require.claims[{index}]");
        let claim = parsed(&format!("{path}.claim"), ClaimPath::parse(&required.claim))?;
        let values = filled(&format!("{path}.values"), required.values.clone())?;
        if claims.insert(claim, values).is_some() {
            return Err(ConvertError::new(path, "the claim stands twice"));
        }
    }
    let words = |name: &str, words: &[String]| {
        words.iter().enumerate().map(|(index, word)| text(&format!("require.{name}[{index}]"), word)).collect::<Result<Vec<_>>>()
    };
    Ok(Requirements {
        at_jwt: wire.at_jwt,
        scopes: words("scopes", &wire.scopes)?,
        claims,
        acr: words("acr", &wire.acr)?,
        max_age: wire.max_age_ms.map(Duration::from_millis),
        sender: match proto::SenderConstraint::try_from(wire.sender) {
            Ok(proto::SenderConstraint::None) => SenderConstraint::None,
            Ok(proto::SenderConstraint::Certificate) => SenderConstraint::Certificate,
            Ok(proto::SenderConstraint::Dpop) => SenderConstraint::Dpop,
            Ok(proto::SenderConstraint::Any) => SenderConstraint::Any,
            Err(_) => return Err(ConvertError::new("require.sender", format!("unknown value {}", wire.sender))),
        },
        dpop_nonce: wire.dpop_nonce,
        clock_skew: wire.clock_skew_ms.map(Duration::from_millis),
    })
}

/// `None` for what holds where nothing is said.
pub(super) fn use_to_wire(token: &TokenUse) -> Option<proto::TokenUse> {
    let claim = |(header, claim): (&String, &ClaimPath)| proto::ClaimHeader { header: header.clone(), claim: claim.to_string() };
    (*token != TokenUse::default()).then(|| proto::TokenUse {
        header: token.header.clone(),
        cookie: token.cookie.clone().unwrap_or_default(),
        query: token.query.clone().unwrap_or_default(),
        strip: token.strip,
        claims: token.claims.iter().map(claim).collect(),
        resource: token.resource.clone().unwrap_or_default(),
    })
}

pub(super) fn use_from_wire(wire: &proto::TokenUse) -> Result<TokenUse> {
    let header = |path: &str, name: &str| {
        let known = http::HeaderName::from_lowercase(name.as_bytes());
        parsed(path, known.map(|name| name.as_str().to_owned()).map_err(|_| "not the name of a header in lower case"))
    };
    let mut claims = BTreeMap::new();
    for (index, each) in wire.claims.iter().enumerate() {
        let path = format!("token.claims[{index}]");
        let claim = parsed(&format!("{path}.claim"), ClaimPath::parse(&each.claim))?;
        if claims.insert(header(&format!("{path}.header"), &each.header)?, claim).is_some() {
            return Err(ConvertError::new(path, "the header stands twice"));
        }
    }
    let filled = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(TokenUse {
        header: header("token.header", &wire.header)?,
        cookie: filled(&wire.cookie),
        query: filled(&wire.query),
        strip: wire.strip,
        claims,
        resource: filled(&wire.resource),
    })
}

/// A revocation of tokens as it travels.
pub fn revoked_to_wire(revoked: &RevokedTokens) -> proto::RevokedTokens {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    proto::RevokedTokens {
        issuer: text(&revoked.issuer),
        jti: text(&revoked.jti),
        subject: text(&revoked.subject),
        client: text(&revoked.client),
        issued_before_ms: revoked.issued_before.map_or(0, Timestamp::millis),
        until_ms: revoked.until.millis(),
    }
}

/// Revocations of tokens that were received.
///
/// # Errors
/// - [`ConvertError`] naming one that says nothing of the tokens, and more than 10000.
pub fn revoked_from_wire(wire: &[proto::RevokedTokens]) -> Result<Vec<RevokedTokens>> {
    if wire.len() > REVOKED_TOKENS_MAX {
        return Err(ConvertError::new("tokens", format!("{} entries, {REVOKED_TOKENS_MAX} at most", wire.len())));
    }
    let filled = |text: &String| (!text.is_empty()).then(|| text.clone());
    let one = |(index, wire): (usize, &proto::RevokedTokens)| {
        let revoked = RevokedTokens {
            issuer: filled(&wire.issuer),
            jti: filled(&wire.jti),
            subject: filled(&wire.subject),
            client: filled(&wire.client),
            issued_before: (wire.issued_before_ms > 0).then(|| Timestamp::from_millis(wire.issued_before_ms)),
            until: Timestamp::from_millis(wire.until_ms),
        };
        // It would mean every token.
        if revoked.jti.is_none() && revoked.subject.is_none() && revoked.client.is_none() && revoked.issued_before.is_none() {
            let issuer = ids::printable(&wire.issuer);
            return Err(ConvertError::new(format!("tokens[{index}]"), format!("says nothing of the tokens of `{issuer}`")));
        }
        Ok(revoked)
    };
    wire.iter().enumerate().map(one).collect()
}
