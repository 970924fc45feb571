//! DPoP proofs (RFC 9449): a small token by which a caller shows, for one request, that it has the key that its access token is
//! bound to.

use crate::claims::moment;
use crate::header::{self, Parts};
use crate::holder::Nonces;
use crate::json::{Json, Object};
use crate::key_set;
use crate::refusal::Refusal;
use crate::replay::Proofs;
use crate::verify::digest_of;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::{Limit, Limits, Timestamp};
use std::time::Duration;

/// LIMIT: bytes of a proof's `jti` and `nonce`.
const TEXT_BYTES_MAX: usize = 256;

/// What a request asks: what its proof must be about.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// Host in lower case, and the port if it was said.
    pub authority: &'a str,
    /// The normalised path.
    pub path: &'a str,
    /// How that was normalised; `Err` for what is no path.
    pub normalise: fn(&[u8], &mut String) -> Result<(), &'static str>,
}

/// Checks a proof (RFC 9449 §4.3), in the order of that list; but whose key it is first, so that no other key costs a signature check.
///
/// `https` and `http` are both taken for the scheme of `htu`: an application in the mesh calls its sidecar in plaintext, and between
/// sidecars it is always mutual TLS.
#[expect(clippy::too_many_arguments, reason = "each is another thing that a proof is about")]
pub(crate) fn check(
    proof: &str,
    token: &str,
    bound_to: [u8; 32],
    wants_nonce: bool,
    asked: &Asked<'_>,
    known: &Proofs,
    limits: &Limits,
    now: Timestamp,
) -> Result<Nonces, Refusal> {
    let bad = |rule| Refusal::Proof { rule };
    if proof.len() > limits.size(Limit::TokenBytes) {
        return Err(bad("it is longer than limit `tokenBytes`"));
    }
    let parts = Parts::split(proof).map_err(|refusal| bad(rule_of(&refusal)))?;
    let thumbprint = signed_by(&parts, bound_to)?;
    let claim = |name: &str| parts.payload.get(name).and_then(Json::text);
    let jti = claim("jti").filter(|jti| !jti.is_empty() && jti.len() <= TEXT_BYTES_MAX);
    let jti = jti.ok_or(bad("its `jti` is not a text of at most 256 bytes"))?;
    if claim("htm") != Some(asked.method) {
        return Err(bad("its `htm` is not the method of the request"));
    }
    if !claim("htu").is_some_and(|htu| is_address(htu, asked)) {
        return Err(bad("its `htu` is not the address of the request"));
    }
    let (age_max, skew) = (limits.duration(Limit::DpopProofMs), limits.duration(Limit::ClockSkewMs));
    let made_at = made_now(&parts.payload, age_max, skew, now)?;
    if claim("ath") != Some(URL_SAFE_NO_PAD.encode(digest_of(token)).as_str()) {
        return Err(bad("its `ath` is not the SHA-256 of the token"));
    }
    // One that came before this process began is not remembered: its nonce says that it is for this one.
    let nonces = nonce(claim("nonce"), wants_nonce || known.may_have_come_before(made_at), known, now)?;
    let mut digest = [0; 16];
    for (to, from) in digest.iter_mut().zip(digest_of(jti)) {
        *to = from;
    }
    // From the first moment that it is accepted, `skew` before it was made, to the last.
    let life = age_max.saturating_add(skew).saturating_add(skew);
    known.take(thumbprint, digest, life, limits.size(Limit::DpopProofs), now)?;
    Ok(nonces)
}

/// The thumbprint of the key in the header, by which the proof is signed; it is the one that the token is bound to.
fn signed_by(parts: &Parts<'_>, bound_to: [u8; 32]) -> Result<[u8; 32], Refusal> {
    let bad = |rule| Refusal::Proof { rule };
    if parts.header.get("typ").and_then(Json::text) != Some("dpop+jwt") {
        return Err(bad("its `typ` is not dpop+jwt"));
    }
    if parts.header.contains_key("crit") || parts.header.contains_key("b64") {
        return Err(bad("its header has `crit` or `b64`"));
    }
    let algorithm = parts.header.get("alg").and_then(Json::text).and_then(header::algorithm);
    let algorithm = algorithm.ok_or(bad("its `alg` is not an asymmetric one that is supported"))?;
    let Some(Json::Object(jwk)) = parts.header.get("jwk") else {
        return Err(bad("its header has no `jwk`"));
    };
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|private| jwk.contains_key(*private)) {
        return Err(bad("its `jwk` has a private part"));
    }
    let thumbprint = thumbprint(jwk).ok_or(bad("its `jwk` is not a sound key for its `alg`"))?;
    // INVARIANT: only who holds the key of a good token can have a proof remembered, so that nobody else can fill the memory.
    if thumbprint != bound_to {
        return Err(bad("its key is not the one that the token is bound to"));
    }
    let key = key_set::proof_key(jwk, algorithm).ok_or(bad("its `jwk` is not a sound key for its `alg`"))?;
    key.check(parts.signed, &parts.signature).map_err(|_| bad("its signature is not valid by its `jwk`"))?;
    Ok(thumbprint)
}

/// RFC 7638 §3: the SHA-256 of the required members in the order of their names.
pub(crate) fn thumbprint(jwk: &Object) -> Option<[u8; 32]> {
    let names: &[&str] = match jwk.get("kty")?.text()? {
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let mut text = String::from("{");
    for name in names {
        let value = jwk.get(*name)?.text()?;
        // Else it could close the text that it stands in.
        if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        let comma = if text.len() > 1 { "," } else { "" };
        text.push_str(&format!("{comma}\"{name}\":\"{value}\""));
    }
    text.push('}');
    Some(digest_of(&text))
}

/// When it was made: its `iat`, which is now, within the skew, or up to `age_max` ago.
fn made_now(payload: &Object, age_max: Duration, skew: Duration, now: Timestamp) -> Result<Timestamp, Refusal> {
    let bad = |rule| Refusal::Proof { rule };
    let at = payload.get("iat").and_then(|at| moment("iat", at).ok()).ok_or(bad("its `iat` is not a number of seconds"))?;
    if now.plus(skew) < at {
        return Err(bad("its `iat` is ahead"));
    }
    if at.plus(age_max).plus(skew) < now {
        return Err(bad("its `iat` is longer ago than limit `dpopProofMs`"));
    }
    Ok(at)
}

/// A nonce is demanded where the issuer's configuration says so, and must be ours wherever one stands.
fn nonce(given: Option<&str>, wanted: bool, known: &Proofs, now: Timestamp) -> Result<Nonces, Refusal> {
    let current = given.filter(|given| given.len() <= TEXT_BYTES_MAX).and_then(|given| known.is_current(given, now));
    match (current, wanted || given.is_some()) {
        (Some(true), _) | (None, false) => Ok(Nonces::default()),
        (Some(false), _) => Ok(Nonces { next: Some(known.nonce(now)) }),
        (None, true) => Err(Refusal::ProofNonce { nonce: known.nonce(now) }),
    }
}

/// Whether `htu` is the address of the request, without query and fragment, both normalised (RFC 9449 §4.3, RFC 3986 §6.2).
fn is_address(htu: &str, asked: &Asked<'_>) -> bool {
    if htu.contains(['?', '#']) {
        return false;
    }
    let Some((scheme, rest)) = htu.split_once("://") else { return false };
    let port = match scheme {
        _ if scheme.eq_ignore_ascii_case("https") => "443",
        _ if scheme.eq_ignore_ascii_case("http") => "80",
        _ => return false,
    };
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let (host, its_port) = with_port(authority, port);
    let (asked_host, asked_port) = with_port(asked.authority, port);
    let path = if path.is_empty() { "/" } else { path };
    let mut normalised = String::new();
    !host.is_empty()
        && host.eq_ignore_ascii_case(asked_host)
        && its_port == asked_port
        && (asked.normalise)(path.as_bytes(), &mut normalised).is_ok()
        && normalised == asked.path
}

/// Host and port of an authority. The colons in the brackets of an IPv6 address begin no port.
fn with_port<'a>(authority: &'a str, default: &'a str) -> (&'a str, &'a str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !port.is_empty() => (host, port),
        Some((host, "")) => (host, default),
        Some(_) | None => (authority, default),
    }
}

fn rule_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Malformed { rule } => rule,
        _ => "it is not one signed JWT",
    }
}
