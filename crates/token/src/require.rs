//! What an issuer's configuration demands of a token beyond signature, audience and time.

use crate::claims::{at, moment, required, wrong};
use crate::json::{Json, Object};
use crate::refusal::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::snapshot::TokenIssuer;
use model::{ClaimPath, Timestamp, User};
use std::collections::BTreeMap;
use std::time::Duration;

/// LIMIT: bytes of a header that tells the application of a claim.
const TOLD_BYTES_MAX: usize = 4096;

/// Checks claims, scopes and login, in this order. Gives the moment from which on the login is too long ago.
pub(crate) fn fulfilled(
    payload: &Object,
    user: &User,
    issuer: &TokenIssuer,
    skew: Duration,
    now: Timestamp,
) -> Result<Option<Timestamp>, Refusal> {
    for (path, values) in &issuer.require.claims {
        claim(payload, path, values, issuer)?;
    }
    scopes(&user.scopes, issuer)?;
    acr(payload, issuer)?;
    login(payload, issuer, skew, now)
}

/// RFC 9068 §2.2; `iss`, `exp`, `aud` and `sub` are demanded of every token.
pub(crate) fn profile(payload: &Object) -> Result<(), Refusal> {
    moment("iat", required(payload, "iat")?)?;
    for claim in ["client_id", "jti"] {
        let is_text = required(payload, claim)?.text().is_some_and(|text| !text.is_empty());
        if !is_text {
            return Err(wrong(claim, "a text with at least one character"));
        }
    }
    Ok(())
}

/// Whether a claim is there with one of these values.
pub(crate) fn claim(payload: &Object, path: &ClaimPath, values: &[String], issuer: &TokenIssuer) -> Result<(), Refusal> {
    let value = at(payload, path).ok_or_else(|| Refusal::ClaimMissing { claim: path.to_string() })?;
    let is_one = has_one_of(value, values);
    if is_one { Ok(()) } else { Err(Refusal::ClaimValue { claim: path.to_string(), issuer: issuer.name.clone() }) }
}

/// Whether every scope that is demanded is there.
pub(crate) fn scopes(scopes: &[String], issuer: &TokenIssuer) -> Result<(), Refusal> {
    let wanted = &issuer.require.scopes;
    let Some(missing) = wanted.iter().find(|scope| !scopes.contains(scope)) else { return Ok(()) };
    Err(Refusal::Scope { issuer: issuer.name.clone(), missing: missing.clone(), required: wanted.join(" ") })
}

fn step_up(what: &'static str, issuer: &TokenIssuer) -> Refusal {
    Refusal::StepUp {
        issuer: issuer.name.clone(),
        what,
        acr_values: issuer.require.acr.join(" "),
        max_age: issuer.require.max_age.map(|age| age.as_secs()),
    }
}

/// RFC 9470 §4: how the user logged in.
pub(crate) fn acr(payload: &Object, issuer: &TokenIssuer) -> Result<(), Refusal> {
    let accepted = &issuer.require.acr;
    let acr = payload.get("acr").and_then(Json::text);
    let is_enough = accepted.is_empty() || acr.is_some_and(|acr| accepted.iter().any(|accepted| accepted == acr));
    if is_enough { Ok(()) } else { Err(step_up("`acr`", issuer)) }
}

/// RFC 9470 §4: when the user logged in. Gives the moment from which on that is too long ago.
pub(crate) fn login(
    payload: &Object,
    issuer: &TokenIssuer,
    skew: Duration,
    now: Timestamp,
) -> Result<Option<Timestamp>, Refusal> {
    let Some(max_age) = issuer.require.max_age else { return Ok(None) };
    let at = payload.get("auth_time").map(|at| moment("auth_time", at)).transpose()?;
    let until = at.map(|at| at.plus(max_age)).filter(|until| now < until.plus(skew));
    until.map(Some).ok_or_else(|| step_up("`auth_time`", issuer))
}

fn has_one_of(value: &Json, wanted: &[String]) -> bool {
    match value {
        Json::Text(text) => wanted.contains(text),
        Json::Integer(number) => wanted.contains(&number.to_string()),
        Json::Boolean(flag) => wanted.iter().any(|each| each == if *flag { "true" } else { "false" }),
        Json::List(items) => items.iter().any(|item| !matches!(item, Json::List(_)) && has_one_of(item, wanted)),
        Json::Null | Json::Number(_) | Json::Object(_) => false,
    }
}

/// What a certificate or a key is told by.
type Thumbprint = [u8; 32];

/// To which certificate and to which key the token is bound (RFC 7800 §3.1): `x5t#S256` and `jkt` of `cnf`.
pub(crate) fn binding(payload: &Object) -> Result<(Option<Thumbprint>, Option<Thumbprint>), Refusal> {
    let Some(cnf) = payload.get("cnf") else { return Ok((None, None)) };
    let Json::Object(cnf) = cnf else { return Err(Refusal::SenderConstrained) };
    // A member that is not understood may bind it to something that the others do not.
    if cnf.is_empty() || cnf.keys().any(|member| member != "x5t#S256" && member != "jkt") {
        return Err(Refusal::SenderConstrained);
    }
    let thumbprint = |member: &str| match cnf.get(member) {
        None => Ok(None),
        Some(value) => {
            let bytes = value.text().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            bytes.and_then(|bytes| bytes.try_into().ok()).map(Some).ok_or(Refusal::SenderConstrained)
        }
    };
    Ok((thumbprint("x5t#S256")?, thumbprint("jkt")?))
}

/// The headers that tell of claims. One that is not there, or no text, number, truth value or list of them, is told by no header.
pub(crate) fn told(payload: &Object, headers: &BTreeMap<String, ClaimPath>) -> Result<Vec<(String, String)>, Refusal> {
    let mut told = Vec::new();
    for (header, path) in headers {
        let Some(value) = at(payload, path).and_then(readable) else { continue };
        if value.len() > TOLD_BYTES_MAX {
            return Err(wrong(path, "of at most 4096 bytes, as a header"));
        }
        told.push((header.clone(), value));
    }
    Ok(told)
}

/// A value that no two readers of a head can see differently: visible ASCII, everything else and `%` by percent-encoding (RFC 3986
/// §2.1). The texts of a list stand with `,` between, and one in a text is encoded.
fn readable(value: &Json) -> Option<String> {
    let one = |value: &Json, is_item: bool| match value {
        Json::Text(text) => Some(encoded(text, is_item)),
        Json::Integer(number) => Some(number.to_string()),
        Json::Boolean(flag) => Some(flag.to_string()),
        Json::Null | Json::Number(_) | Json::List(_) | Json::Object(_) => None,
    };
    match value {
        Json::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(|item| one(item, true)).collect();
            items.map(|items| items.join(","))
        }
        other => one(other, false),
    }
}

fn encoded(text: &str, is_item: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        // Spaces at an end are not part of a header's value (RFC 9110 §5.5).
        let is_kept =
            byte.is_ascii_graphic() && byte != b'%' && !(is_item && byte == b',') || byte == b' ' && index != 0 && index != last;
        if is_kept {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn object(text: &str) -> Object {
        match json::parse(text.as_bytes()) {
            Ok(Json::Object(object)) => object,
            Ok(_) | Err(_) => panic!("{text}"),
        }
    }

    #[test]
    fn a_claim_becomes_a_header_that_can_be_read_in_one_way() {
        let path = |text| ClaimPath::parse(text).expect(text);
        for (value, expected) in [
            (r#""tina""#, Some("tina")),
            (r#""Müller, A""#, Some("M%C3%BCller, A")),
            (r#""a\r\nx-admin: 1""#, Some("a%0D%0Ax-admin: 1")),
            (r#"" a ""#, Some("%20a%20")),
            (r#""100%""#, Some("100%25")),
            (r#""\u0000\u007f""#, Some("%00%7F")),
            ("7", Some("7")),
            ("true", Some("true")),
            (r#"["a","b,c",3]"#, Some("a,b%2Cc,3")),
            ("[]", Some("")),
            ("1.5", None),
            ("null", None),
            (r#"{"a":1}"#, None),
            (r#"[["a"]]"#, None),
        ] {
            let payload = object(&format!(r#"{{"c":{{"d":{value}}}}}"#));
            let told = told(&payload, &BTreeMap::from([("x-c".to_owned(), path("c.d"))])).expect(value);
            let expected: Vec<_> = expected.map(|text| ("x-c".to_owned(), text.to_owned())).into_iter().collect();
            assert_eq!(told, expected, "{value}");
        }
        let long = object(&format!(r#"{{"c":"{}"}}"#, "ü".repeat(700)));
        assert!(told(&long, &BTreeMap::from([("x-c".to_owned(), path("c"))])).is_err());
        assert_eq!(told(&long, &BTreeMap::from([("x-c".to_owned(), path("c.d"))])), Ok(Vec::new()), "within a text");
    }

    #[test]
    fn rfc7800_3_1_and_rfc8705_3_1_what_is_not_understood_of_cnf_refuses() {
        let sha = "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0";
        for (cnf, is_good) in [
            (format!(r#"{{"x5t#S256":"{sha}"}}"#), true),
            (format!(r#"{{"jkt":"{sha}"}}"#), true),
            (format!(r#"{{"jkt":"{sha}","x5t#S256":"{sha}"}}"#), true),
            (format!(r#"{{"jkt":"{sha}","kid":"a"}}"#), false),
            (format!(r#"{{"jkt":"{sha}="}}"#), false),
            (r#"{"jkt":"AAAA"}"#.to_owned(), false),
            (r#"{"jkt":1}"#.to_owned(), false),
            ("{}".to_owned(), false),
            ("null".to_owned(), false),
            (r#"{"jwk":{}}"#.to_owned(), false),
        ] {
            let payload = object(&format!(r#"{{"cnf":{cnf}}}"#));
            assert_eq!(binding(&payload).is_ok(), is_good, "{cnf}");
        }
        assert_eq!(binding(&object("{}")), Ok((None, None)));
    }
}
