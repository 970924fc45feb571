//! What is asked of tokens (`TokenIssuer`), and where a workload's sidecar takes them from (`Workload`).

use crate::build::{Errors, ranged};
use crate::error::suggestion;
use crate::source::Document;
use crate::yaml::{IssuerSpec, RequireSpec, Scalar, TokenSpec, Values, WorkloadSpec};
use model::ids::printable;
use model::token::{Requirements, SenderConstraint, TokenUse};
use model::{ClaimPath, HeaderRead};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest clock difference that one issuer's tokens may be allowed.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The path of a claim.
pub(crate) fn path(document: Document<'_>, location: Location, text: &str, errors: &mut Errors) -> Option<ClaimPath> {
    let read = ClaimPath::parse(text).map_err(|error| format!("`{}` is not the path of a claim: {error}", printable(text)));
    errors.take(document, location, read)
}

/// What Cedar can write after a dot.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut chars = text.bytes();
    chars.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_') && chars.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `require` and `clockSkew` of an issuer.
pub(crate) fn requirements(document: Document<'_>, spec: &IssuerSpec, errors: &mut Errors) -> Requirements {
    let clock_skew = spec.clock_skew.as_ref();
    let clock_skew =
        clock_skew.map(|skew| ranged(document, Some(skew), Duration::ZERO, (Duration::ZERO, CLOCK_SKEW_MAX), errors));
    let Some(written) = &spec.require else { return Requirements { clock_skew, ..Requirements::default() } };
    let (require, place) = (&written.value, written.defined);
    let sender = sender(document, require, errors);
    if let (Some(profile), Some(_)) = (&require.profile, &spec.jwt_svid) {
        let message = "`profile` beside `jwtSvid`: a JWT-SVID says `JWT` or `JOSE`, and none is of RFC 9068; remove one of them";
        errors.at(document, profile.defined, message);
    }
    let dpop_nonce = require.dpop_nonce.as_ref().is_some_and(|wanted| wanted.value);
    if let (true, Some(wanted)) =
        (dpop_nonce && !matches!(sender, SenderConstraint::Dpop | SenderConstraint::Any), &require.dpop_nonce)
    {
        errors.at(document, wanted.defined, "`dpopNonce` is for `sender: dpop` or `any`: without it tokens need no proof");
    }
    Requirements {
        at_jwt: at_jwt(document, require, errors),
        scopes: words(document, "scope", &require.scopes, errors),
        claims: claims(document, place, &require.claims, errors),
        acr: words(document, "acr", &require.acr, errors),
        max_age: require
            .max_age
            .as_ref()
            .map(|age| ranged(document, Some(age), Duration::ZERO, (Duration::from_secs(1), YEAR), errors)),
        sender,
        dpop_nonce,
        clock_skew,
    }
}

fn at_jwt(document: Document<'_>, require: &RequireSpec, errors: &mut Errors) -> bool {
    let Some(profile) = &require.profile else { return false };
    if profile.value != "at+jwt" {
        let message = format!("profile `{}` is not `at+jwt` (RFC 9068), the only one there is", printable(&profile.value));
        errors.at(document, profile.defined, message);
    }
    true
}

fn sender(document: Document<'_>, require: &RequireSpec, errors: &mut Errors) -> SenderConstraint {
    let Some(written) = &require.sender else { return SenderConstraint::None };
    let found = SenderConstraint::ALL.into_iter().find(|each| each.as_str() == written.value);
    found.unwrap_or_else(|| {
        let known = SenderConstraint::ALL.map(SenderConstraint::as_str);
        let near = suggestion(&written.value, known);
        let message = format!("sender `{}` is not one of {}{near}", printable(&written.value), known.join(", "));
        errors.at(document, written.defined, message);
        SenderConstraint::Any
    })
}

/// RFC 6749 §3.3 and RFC 9470 §3: words that can stand in a challenge, in quotes and with spaces between.
fn words(document: Document<'_>, what: &str, written: &[Spanned<String>], errors: &mut Errors) -> Vec<String> {
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'!' | b'#'..=b'[' | b']'..=b'~'));
    for each in written.iter().filter(|each| !is_word(&each.value)) {
        let message = format!("{what} `{}` is not one word of visible ASCII without `\"` and `\\`", printable(&each.value));
        errors.at(document, each.defined, message);
    }
    written.iter().map(|each| each.value.clone()).collect()
}

fn claims(
    document: Document<'_>,
    place: Location,
    written: &BTreeMap<String, Values>,
    errors: &mut Errors,
) -> BTreeMap<ClaimPath, Vec<String>> {
    let mut claims = BTreeMap::new();
    for (claim, values) in written {
        let Some(path) = path(document, place, claim, errors) else { continue };
        let values: Vec<String> = match values {
            Values::One(one) => vec![one.to_string()],
            Values::Many(many) => many.iter().map(Scalar::to_string).collect(),
        };
        if values.is_empty() {
            errors.at(document, place, format!("claim `{path}` is demanded with no value; name at least one"));
        }
        if claims.insert(path, values).is_some() {
            errors.at(document, place, format!("claim `{}` is written in two ways", printable(claim)));
        }
    }
    claims
}

/// Headers that decide how a request is read, or that the sidecar sets itself.
const RESERVED: [&str; 14] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `token` and `resource` of a workload.
pub(crate) fn token_use(document: Document<'_>, spec: &WorkloadSpec, errors: &mut Errors) -> TokenUse {
    let defaults = TokenUse::default();
    let resource = spec.resource.as_ref().and_then(|written| resource(document, written, errors));
    let Some(written) = &spec.token else { return TokenUse { resource, ..defaults } };
    let TokenSpec { header, cookie, query, strip, headers } = &written.value;
    let carrier = header.as_ref().map_or(defaults.header, |written| {
        let name = written.value.to_ascii_lowercase();
        if name != "authorization" {
            header_name(document, written.defined, &name, errors);
        }
        name
    });
    let mut claims = BTreeMap::new();
    for (name, claim) in headers {
        let name = name.to_ascii_lowercase();
        header_name(document, claim.defined, &name, errors);
        if name == carrier {
            errors.at(document, claim.defined, format!("header `{name}` carries the token, and cannot tell of a claim too"));
        }
        if let Some(path) = path(document, claim.defined, &claim.value, errors)
            && claims.insert(name.clone(), path).is_some()
        {
            errors.at(document, claim.defined, format!("header `{name}` is written twice"));
        }
    }
    let cookie = cookie.as_ref().and_then(|written| name(document, "cookie", written, errors));
    let query = query.as_ref().and_then(|written| name(document, "parameter", written, errors));
    TokenUse { header: carrier, cookie, query, strip: *strip, claims, resource }
}

fn header_name(document: Document<'_>, place: Location, name: &str, errors: &mut Errors) {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_ours = ["x-rondel-", "x-forwarded-", "proxy-"].iter().any(|prefix| name.starts_with(prefix));
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_token) || is_ours || RESERVED.contains(&name) {
        let message = format!(
            "`{}` cannot be this header: at most 64 letters, digits and `-`, and none that frames a request or is the sidecar's own",
            printable(name)
        );
        errors.at(document, place, message);
    }
}

/// The name of a cookie or a parameter.
fn name(document: Document<'_>, what: &str, written: &Spanned<String>, errors: &mut Errors) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_name = !written.value.is_empty() && written.value.len() <= 64 && written.value.bytes().all(is_plain);
    if !is_name {
        let message = format!("`{}` cannot be the {what}'s name: letters, digits, `_`, `-` and `.`", printable(&written.value));
        errors.at(document, written.defined, message);
    }
    is_name.then(|| written.value.clone())
}

/// RFC 9728 §1.2: an `https` URL without a fragment. A query would make the address of its metadata ambiguous.
fn resource(document: Document<'_>, written: &Spanned<String>, errors: &mut Errors) -> Option<String> {
    let text = written.value.as_str();
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'[' | b']');
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~' | b':' | b'@');
    let path = rest.get(host.len()..).unwrap_or_default();
    let is_normal = !path.contains("//") && !path.split('/').any(|segment| segment == "." || segment == "..");
    let is_good = !host.is_empty() && host.bytes().all(is_host) && path.bytes().all(is_path) && is_normal;
    if !is_good || text.len() > HeaderRead::BYTES_MAX / 4 {
        let message = format!(
            "`{}` cannot be the resource's identifier: `https://HOST` or `https://HOST/PATH`, without query and fragment",
            printable(text)
        );
        errors.at(document, written.defined, message);
        return None;
    }
    Some(text.to_owned())
}
