//! Tokens that are no JWTs: which issuer one is meant for, how it is asked (RFC 7662 §2.1), and what its answer is worth (§2.2).
//! Asking is the program's: one `POST`, no redirects, within limit `introspectionMs`.

use crate::assertion::ClientKey;
use crate::claims;
use crate::json::{self, Json};
use crate::refusal::Refusal;
use crate::verify::{Rules, VerifiedClaims, evidence};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::TokenIssuer;
use model::{Limit, Timestamp};
use std::fmt;
use zeroize::Zeroizing;

/// LIMIT: bytes of an introspection answer.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// LIMIT: bytes of a file with a secret or a private key.
pub const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// Why an issuer cannot be asked, or its answer not be used. The operator, or the issuer's, must mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntrospectionError {
    /// The file holds no secret.
    #[error("the secret is empty, or has more than one line")]
    Secret,
    /// The file holds no key that signs.
    #[error("the key is not PKCS#8 in PEM with a P-256, Ed25519 or RSA key of 2048 bits or more")]
    Key,
    /// The signature could not be computed. The machine is at fault.
    #[error("the assertion could not be signed")]
    Sign,
    /// The answer is no unambiguous JSON object with a boolean `active`.
    #[error("the answer is not a JSON object with a boolean `active`, or a member stands twice in it")]
    Answer,
    /// The answer is about another issuer's token.
    #[error("the answer's `iss` is not the issuer that was asked")]
    OtherIssuer,
}

/// What is sent to an introspection endpoint. `Debug` shows nothing of it.
pub struct Ask {
    /// The form (`application/x-www-form-urlencoded`).
    pub body: Zeroizing<String>,
    /// The value of `authorization`, if the client authenticates by it.
    pub authorization: Option<Zeroizing<String>>,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask(redacted)")
    }
}

/// The issuer that must be asked about a token; `None` if the token is a JWT, or none of the issuers may be asked.
///
/// What begins as an issuer's `prefix` says is that issuer's. Of the rest, what has the form of JOSE (it begins with `eyJ`, or has two or four
/// dots) is a JWT, and is never sent anywhere. Everything else is for the one issuer without a prefix.
///
/// # Errors
/// - [`Refusal::Malformed`] if the token is opaque, and of none of the issuers that may be asked.
pub fn opaque<'i>(token: &str, issuers: &'i [TokenIssuer]) -> Result<Option<(&'i TokenIssuer, &'i Introspection)>, Refusal> {
    let mut asked = issuers.iter().filter_map(|issuer| issuer.introspection.as_ref().map(|asked| (issuer, asked))).peekable();
    if asked.peek().is_none() {
        return Ok(None);
    }
    let mut rest = None;
    for (issuer, introspection) in asked {
        if introspection.prefix.is_empty() {
            rest = Some((issuer, introspection));
        } else if token.starts_with(&introspection.prefix) {
            return Ok(Some((issuer, introspection)));
        }
    }
    let dots = token.bytes().filter(|byte| *byte == b'.').count();
    if token.starts_with("eyJ") || dots == 2 || dots == 4 {
        return Ok(None);
    }
    rest.map(Some).ok_or(Refusal::Malformed { rule: "it is not a JWT, and does not begin as the opaque tokens of any issuer" })
}

/// What to send to the endpoint of `issuer` about `token`.
///
/// - `credential`: the bytes of the file that the client's authentication names; empty for mutual TLS
///
/// # Errors
/// - [`IntrospectionError::Secret`], [`IntrospectionError::Key`], [`IntrospectionError::Sign`].
pub fn ask(
    token: &str,
    issuer: &TokenIssuer,
    introspection: &Introspection,
    credential: &[u8],
    now: Timestamp,
) -> Result<Ask, IntrospectionError> {
    let id = introspection.client_id.as_str();
    let mut body = Zeroizing::new(format!("token={}&token_type_hint=access_token", encoded(token)));
    let mut authorization = None;
    match &introspection.authentication {
        ClientAuthentication::SecretBasic { .. } => {
            // RFC 6749 §2.3.1: both halves are form-encoded first.
            let pair = Zeroizing::new(format!("{}:{}", encoded(id), *encoded_secret(credential)?));
            authorization = Some(Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))));
        }
        ClientAuthentication::SecretPost { .. } => {
            let secret = encoded_secret(credential)?;
            *body = format!("{}&client_id={}&client_secret={}", *body, encoded(id), *secret);
        }
        ClientAuthentication::PrivateKeyJwt { key_id, .. } => {
            let key = ClientKey::from_pem(credential)?;
            let assertion = key.assertion(id, &issuer.issuer, key_id.as_deref(), now)?;
            *body = format!(
                "{}&client_id={}&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer\
                 &client_assertion={assertion}",
                *body,
                encoded(id)
            );
        }
        ClientAuthentication::Svid => *body = format!("{}&client_id={}", *body, encoded(id)),
    }
    Ok(Ask { body, authorization })
}

/// The secret of a file, form-encoded; a line break at the end is not part of it.
fn encoded_secret(file: &[u8]) -> Result<Zeroizing<String>, IntrospectionError> {
    let text = std::str::from_utf8(file).map_err(|_| IntrospectionError::Secret)?;
    let secret = text.strip_suffix('\n').unwrap_or(text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() || secret.chars().any(char::is_control) {
        return Err(IntrospectionError::Secret);
    }
    Ok(Zeroizing::new(encoded(secret)))
}

/// Form encoding (RFC 6749 appendix B); what is not unreserved is escaped.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What an issuer's answer says of a token.
#[derive(Clone, Debug)]
pub enum Introspected {
    /// The token is good; to be believed for limit `introspectionCacheMs` at most.
    Active(VerifiedClaims),
    /// The token is not active, or not acceptable here.
    Refused(Refusal),
}

/// Reads the answer of `issuer` about `token`.
///
/// `active` must be true, `aud` one of the configured audiences, `exp`, `nbf` and `iat` as in a JWT; `iss`, where it is said, is the issuer.
/// Without `exp` the answer is good for limit `introspectionCacheMs`; without `sub` the client itself (`client_id`) is the subject, as RFC
/// 9068 §2.2 has it.
///
/// # Errors
/// - [`IntrospectionError::Answer`], [`IntrospectionError::OtherIssuer`]: the issuer said nothing that could be used.
pub fn introspected(
    answer: &[u8],
    token: &str,
    issuer: &TokenIssuer,
    rules: &Rules<'_>,
    now: Timestamp,
) -> Result<Introspected, IntrospectionError> {
    let Ok(Json::Object(mut payload)) = json::parse(answer) else {
        return Err(IntrospectionError::Answer);
    };
    match payload.get("active") {
        Some(Json::Boolean(true)) => {}
        Some(Json::Boolean(false)) => {
            return Ok(Introspected::Refused(Refusal::Inactive { issuer: issuer.name.clone() }));
        }
        _ => return Err(IntrospectionError::Answer),
    }
    if payload.get("iss").is_some_and(|iss| iss.text() != Some(issuer.issuer.as_str())) {
        return Err(IntrospectionError::OtherIssuer);
    }
    let believed_until = now.plus(rules.limits.duration(Limit::IntrospectionCacheMs));
    if !payload.contains_key("exp") {
        let seconds = i64::try_from(believed_until.seconds().saturating_add(1)).unwrap_or(i64::MAX);
        payload.insert("exp".to_owned(), Json::Integer(seconds));
    }
    if let (None, Some(client)) = (payload.get("sub"), payload.get("client_id")) {
        payload.insert("sub".to_owned(), client.clone());
    }
    Ok(match judged(&payload, token, issuer, rules, believed_until, now) {
        Ok(claims) => Introspected::Active(claims),
        Err(refusal) => Introspected::Refused(refusal),
    })
}

fn judged(
    payload: &json::Object,
    token: &str,
    issuer: &TokenIssuer,
    rules: &Rules<'_>,
    believed_until: Timestamp,
    now: Timestamp,
) -> Result<VerifiedClaims, Refusal> {
    Ok(evidence(claims::judge(payload, issuer, rules, now)?, issuer, believed_until, token))
}

#[cfg(test)]
mod tests;
