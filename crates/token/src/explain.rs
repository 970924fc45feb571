//! Why a token is good or bad, step by step, for a person who has it in hand. Shows claims, never the signature: nothing for a log.
//!
//! Every step is taken by the function that [`verify`] takes it by, in its order, and the verdict is its own.

use crate::claims::{self, at};
use crate::header::{Header, Parts};
use crate::holder;
use crate::introspection::opaque;
use crate::json::{Json, Object};
use crate::refusal::Refusal;
use crate::require;
use crate::revocation::Revocations;
use crate::verify::{self, Rules, VerifiedClaims, verify};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::ids::printable;
use model::snapshot::{JwtAlgorithm, KeySource, TokenIssuer};
use model::token::SenderConstraint;
use model::{ClaimPath, Limit, Timestamp, User};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// LIMIT: keys of an issuer that are listed.
const KEYS_TOLD_MAX: usize = 8;

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not: the token is refused.
    Refused(Refusal),
    /// It could not be looked at, and why not.
    Unknown(&'static str),
}

/// One step of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is looked at: `signature`, `aud`.
    pub what: String,
    /// What would do.
    pub wanted: String,
    /// What is there.
    pub found: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a sidecar would say of a token.
#[derive(Debug)]
pub enum Verdict {
    /// It is good, if what is [`Explained::provided`] is true.
    Good(VerifiedClaims),
    /// It is refused, for this reason if several; where the signature could not be checked it may be that instead.
    Refused(Refusal),
    /// That cannot be said here, and why not.
    Unknown(&'static str),
}

/// Every step, and what becomes of the token.
#[derive(Debug)]
pub struct Explained {
    /// In the order in which a sidecar takes them. Unlike a sidecar this goes on after one that fails, where it can.
    pub steps: Vec<Step>,
    /// What a sidecar would say.
    pub verdict: Verdict,
    /// The name of the `TokenIssuer` whose token it says it is.
    pub issuer: Option<String>,
    /// What its claims say of the user, believed or not; `None` if they say nothing that could be read.
    pub user: Option<User>,
    /// What else must be true whenever it is used.
    pub provided: Vec<String>,
}

/// What is known beside the rules.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What is revoked; `None` if that is not known.
    pub revoked: Option<&'a Revocations>,
    /// The SHA-256 of the certificate of whoever is to send the token; `None` if that is not known.
    pub certificate: Option<[u8; 32]>,
    /// Names of attributes whose values are shown nowhere.
    pub sensitive: &'a BTreeSet<String>,
}

/// Takes every step with a token.
///
/// - `rules`: whose tokens are accepted. An issuer without a key set leaves the signature unknown.
///
/// Costs two signature checks.
pub fn explain(token: &str, rules: &Rules<'_>, known: &Known<'_>, now: Timestamp) -> Explained {
    let mut walk =
        Walk { rules, known, now, steps: Vec::new(), issuer: None, hidden: Vec::new(), user: None, provided: Vec::new() };
    let verdict = match opaque(token, rules.issuers) {
        Ok(Some((issuer, introspection))) => {
            walk.issuer = Some(issuer.name.clone());
            let size = walk.size(token);
            walk.holds("form", "an opaque token, or a JWT", "opaque: its issuer is asked about it (RFC 7662)".to_owned());
            let endpoint = match &introspection.endpoint {
                Some(endpoint) => endpoint.clone(),
                None => format!("the `introspection_endpoint` of the metadata of {}", issuer.issuer),
            };
            let asked = format!(
                "asked of `{}` at {endpoint}, as client `{}` by {}",
                issuer.name,
                printable(&introspection.client_id),
                introspection.authentication.as_str()
            );
            walk.unknown("introspection", "`active` is true, and the claims that come with it are good", asked, ASK);
            size.map_or(Verdict::Unknown(ASK), Verdict::Refused)
        }
        Err(refusal) => {
            let wanted = "a JWT, or an opaque token of an issuer that is asked";
            walk.add("form", wanted, "neither".to_owned(), Outcome::Refused(refusal.clone()));
            Verdict::Refused(refusal)
        }
        Ok(None) => {
            let verified = verify(token, rules, now);
            walk.jwt(token, verified.as_ref().ok());
            walk.verdict(verified)
        }
    };
    let Walk { steps, issuer, user, provided, .. } = walk;
    Explained { steps, verdict, issuer, user, provided }
}

const ASK: &str = "only its issuer can say whether an opaque token is good";
const NO_KEYS: &str = "the issuer's keys are not at hand";
const NO_REVOCATIONS: &str = "only a running mesh knows what is revoked";
const NOT_GOOD: &str = "revocations are looked up for tokens that are good otherwise";
const NO_CERTIFICATE: &str = "the caller's certificate is not at hand";
const NO_PROOF: &str = "each request brings a proof of its own";

/// The walk through the steps.
struct Walk<'w, 'r> {
    rules: &'w Rules<'r>,
    known: &'w Known<'w>,
    now: Timestamp,
    steps: Vec<Step>,
    issuer: Option<String>,
    /// Claims whose values are not shown.
    hidden: Vec<ClaimPath>,
    user: Option<User>,
    provided: Vec<String>,
}

impl<'r> Walk<'_, 'r> {
    fn add(&mut self, what: &str, wanted: &str, found: String, outcome: Outcome) {
        self.steps.push(Step { what: what.to_owned(), wanted: wanted.to_owned(), found, outcome });
    }

    fn holds(&mut self, what: &str, wanted: &str, found: String) {
        self.add(what, wanted, found, Outcome::Holds);
    }

    fn unknown(&mut self, what: &str, wanted: &str, found: String, why: &'static str) {
        self.add(what, wanted, found, Outcome::Unknown(why));
    }

    /// A step that a function of the check took.
    fn outcome<T>(&mut self, what: &str, wanted: &str, found: &str, outcome: Result<T, Refusal>) -> Option<T> {
        let (value, outcome) = match outcome {
            Ok(value) => (Some(value), Outcome::Holds),
            Err(refusal) => (None, Outcome::Refused(refusal)),
        };
        self.add(what, wanted, found.to_owned(), outcome);
        value
    }

    /// The first refusal there was.
    fn refused(&self) -> Option<Refusal> {
        self.steps.iter().find_map(|step| match &step.outcome {
            Outcome::Refused(refusal) => Some(refusal.clone()),
            Outcome::Holds | Outcome::Unknown(_) => None,
        })
    }

    /// What `verify` says counts; where it had no keys, what the other steps say.
    fn verdict(&self, verified: Result<VerifiedClaims, Refusal>) -> Verdict {
        match verified {
            // Revocation and holder come after it.
            Ok(claims) => self.refused().map_or(Verdict::Good(claims), Verdict::Refused),
            Err(Refusal::IssuerUnavailable { issuer }) if self.rules.keys.get(&issuer).is_none() => {
                self.refused().map_or(Verdict::Unknown(NO_KEYS), Verdict::Refused)
            }
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    fn size(&mut self, token: &str) -> Option<Refusal> {
        let limit = self.rules.limits.size(Limit::TokenBytes);
        let outcome = verify::is_short_enough(token, self.rules.limits);
        let refusal = outcome.clone().err();
        self.outcome("size", &format!("at most {limit} bytes (limit `tokenBytes`)"), &format!("{} bytes", token.len()), outcome);
        refusal
    }

    fn jwt(&mut self, token: &str, verified: Option<&VerifiedClaims>) {
        let is_long = self.size(token).is_some();
        if is_long {
            return;
        }
        let split = Parts::split(token);
        let found = if split.is_ok() { "a JWT" } else { "no JWT" };
        let wanted = "a JWT: three parts of base64url, two JSON objects in which nothing stands twice and a signature";
        let Some(parts) = self.outcome("form", wanted, found, split) else { return };
        let said = ["alg", "typ", "kid"].map(|name| format!("{name} {}", shown(parts.header.get(name))));
        let wanted = "an `alg` that signs with a private key, no `crit`, a `typ` of access tokens, a `kid` that is a text";
        let header = self.outcome("header", wanted, &said.join(", "), Header::read(&parts.header));
        let Some(issuer) = self.issuer(&parts.payload) else { return };
        if let Some(header) = header {
            self.key(&parts, &header, issuer);
        }
        self.claims(&parts.payload, issuer, verified);
    }

    /// Whose token it says it is.
    fn issuer(&mut self, payload: &Object) -> Option<&'r TokenIssuer> {
        let issuers = self.rules.issuers;
        let url = |issuer: &TokenIssuer| match &issuer.keys {
            KeySource::JwtSvid(domain) => format!("a `sub` of trust domain {domain} (`{}`)", issuer.name),
            _ => format!("{} (`{}`)", issuer.issuer, issuer.name),
        };
        let wanted = match issuers {
            [] => "an issuer: this workload believes none".to_owned(),
            issuers => format!("one of {}", issuers.iter().map(url).collect::<Vec<_>>().join(", ")),
        };
        let found = claims::issuer(payload, issuers);
        let told = match &found {
            Ok(issuer) => format!("{}: `{}`", shown(payload.get("iss")), issuer.name),
            Err(_) => shown(payload.get("iss")),
        };
        let issuer = self.outcome("iss", &wanted, &told, found)?;
        self.issuer = Some(issuer.name.clone());
        let hidden = issuer.attributes.iter().filter(|(name, _)| self.known.sensitive.contains(*name));
        self.hidden = hidden.map(|(_, mapping)| mapping.claim.clone()).collect();
        Some(issuer)
    }

    /// Whether the issuer made it.
    fn key(&mut self, parts: &Parts<'_>, header: &Header<'_>, issuer: &TokenIssuer) {
        let wanted = match &issuer.keys {
            KeySource::JwtSvid(_) => "absent, JWT or JOSE, and nothing but `alg` and `kid` beside it (SPIFFE JWT-SVID §2)",
            _ if issuer.require.at_jwt => "at+jwt (RFC 9068)",
            _ => "absent, JWT or at+jwt",
        };
        self.outcome(
            "typ",
            wanted,
            &shown(parts.header.get("typ")),
            verify::is_header_allowed(&parts.header, header.typ, issuer),
        );
        let allowed = issuer.algorithms.iter().map(|each| each.as_str()).collect::<Vec<_>>().join(", ");
        let outcome = verify::is_algorithm_allowed(header.algorithm, issuer);
        self.outcome("alg", &format!("one of {allowed}"), header.algorithm.as_str(), outcome);
        let wanted = "a signature by a key of the issuer";
        let Some(set) = self.rules.keys.get(&issuer.name) else {
            return self.unknown("signature", wanted, "not checked".to_owned(), NO_KEYS);
        };
        let count = set.keys().count();
        let came = format!("{count} {}, of {}", if count == 1 { "key" } else { "keys" }, set.fetched_at());
        let believed = verify::believed_keys(issuer, self.rules, self.now);
        let wanted_keys = "keys that are not older than limit `jwksMaxAgeMs`";
        let Some((set, _)) = self.outcome("keys", wanted_keys, &came, believed) else { return };
        let found = set.find(header.key_id, header.algorithm, &issuer.name);
        let named = header.key_id.map_or_else(|| "(absent)".to_owned(), printable);
        let Some(key) = self.outcome("kid", &format!("one of {}", listed(set.keys())), &named, found) else { return };
        let signed = verify::is_signed(parts, key, issuer);
        let found = if signed.is_ok() { "good by that key" } else { "not that key's over this header and payload" };
        self.outcome("signature", wanted, found, signed);
    }

    /// Whether what it says is for us, for now, and enough.
    fn claims(&mut self, payload: &Object, issuer: &TokenIssuer, verified: Option<&VerifiedClaims>) {
        if issuer.require.at_jwt {
            let said = ["iat", "client_id", "jti"].map(|name| format!("{name} {}", self.claim(payload, name)));
            let wanted = "`iat`, `client_id` and `jti` (RFC 9068 §2.2)";
            self.outcome("profile", wanted, &said.join(", "), require::profile(payload));
        }
        self.times(payload, issuer);
        let binding = require::binding(payload);
        let told = match &binding {
            Ok((None, None)) => "not bound".to_owned(),
            _ => self.claim(payload, "cnf"),
        };
        let wanted = "nothing, `x5t#S256` or `jkt` (RFC 7800)";
        let binding = self.outcome("cnf", wanted, &told, binding);
        self.user(payload, issuer);
        self.demands(payload, issuer);
        self.told(payload);
        self.revoked(verified);
        if let Some((certificate, key)) = binding {
            self.sender(issuer, certificate, key);
        }
    }

    /// For whom, and for now.
    fn times(&mut self, payload: &Object, issuer: &TokenIssuer) {
        let ours = format!("one of {}", issuer.audiences.join(", "));
        self.outcome("aud", &ours, &self.claim(payload, "aud"), claims::audience(payload, issuer));
        let skew = claims::skew(issuer, self.rules.limits);
        let allowed = format!("{}, with {} of clock skew allowed", self.now, spoken(skew));
        let outcome = claims::expires(payload, skew, self.now);
        self.outcome("exp", &format!("after {allowed}"), &self.when(payload, "exp"), outcome);
        for claim in ["nbf", "iat"] {
            let found = self.when(payload, claim);
            let outcome = claims::begun(payload, claim, skew, self.now);
            self.outcome(claim, &format!("absent, or not after {allowed}"), &found, outcome);
        }
    }

    /// What it says of the user.
    fn user(&mut self, payload: &Object, issuer: &TokenIssuer) {
        let wanted = "a text with at least one and no control character";
        let subject = self.outcome("sub", wanted, &self.claim(payload, "sub"), claims::subject(payload));
        let roles = claims::roles(payload, issuer);
        let roles = match &issuer.roles_claim {
            Some(path) => {
                let wanted = format!("`{path}`: absent, or a text or a list of texts");
                self.outcome("roles", &wanted, &self.value_at(payload, path), roles)
            }
            None => roles.ok(),
        };
        let scope = if payload.contains_key("scope") { "scope" } else { "scp" };
        let (found, scopes) = (self.claim(payload, scope), claims::scopes(payload));
        let scopes = self.outcome("scopes", &format!("`{scope}`: absent, or a text or a list of texts"), &found, scopes);
        let mut attributes = Some(BTreeMap::new());
        for (name, mapping) in &issuer.attributes {
            let wanted = format!("`{}`: absent, or a {}", mapping.claim, mapping.kind.as_str());
            let found = self.value_at(payload, &mapping.claim);
            match self.outcome(&format!("attribute {name}"), &wanted, &found, claims::attribute(payload, mapping)) {
                Some(Some(value)) => attributes.iter_mut().for_each(|all| drop(all.insert(name.clone(), value.clone()))),
                Some(None) => {}
                None => attributes = None,
            }
        }
        if let (Some(subject), Some(roles), Some(scopes), Some(attributes)) = (subject, roles, scopes, attributes) {
            self.user = Some(User { issuer: issuer.name.clone(), subject, roles, scopes, attributes });
        }
    }

    /// What the issuer's configuration demands.
    fn demands(&mut self, payload: &Object, issuer: &TokenIssuer) {
        let require = &issuer.require;
        for (path, values) in &require.claims {
            let is_hidden = self.is_hidden(path.names());
            let wanted = if is_hidden { REDACTED.to_owned() } else { format!("one of {}", values.join(", ")) };
            let found = self.value_at(payload, path);
            self.outcome(&format!("claim {path}"), &wanted, &found, require::claim(payload, path, values, issuer));
        }
        if let (false, Ok(scopes)) = (require.scopes.is_empty(), claims::scopes(payload)) {
            self.outcome("scope", &require.scopes.join(" "), &scopes.join(" "), require::scopes(&scopes, issuer));
        }
        if !require.acr.is_empty() {
            let wanted = format!("one of {} (RFC 9470)", require.acr.join(", "));
            self.outcome("acr", &wanted, &self.claim(payload, "acr"), require::acr(payload, issuer));
        }
        if let Some(age) = require.max_age {
            let skew = claims::skew(issuer, self.rules.limits);
            let wanted = format!("a login at most {} ago, with {} of clock skew allowed", spoken(age), spoken(skew));
            let found = self.when(payload, "auth_time");
            self.outcome("auth_time", &wanted, &found, require::login(payload, issuer, skew, self.now));
        }
    }

    /// What the application is told by headers.
    fn told(&mut self, payload: &Object) {
        if !self.rules.told.is_empty() {
            let names = self.rules.told.iter().map(|(header, path)| format!("{header} of `{path}`")).collect::<Vec<_>>();
            let wanted = "claims that fit a header";
            self.outcome("headers", wanted, &names.join(", "), require::told(payload, self.rules.told));
        }
    }

    /// Whether the operator has revoked it. Looked up only for a token that is good otherwise.
    fn revoked(&mut self, verified: Option<&VerifiedClaims>) {
        let wanted = "no revocation means it";
        let Some(revoked) = self.known.revoked else {
            self.provided.push("it is not revoked, which only a running mesh knows".to_owned());
            return self.unknown("revoked", wanted, "not looked up".to_owned(), NO_REVOCATIONS);
        };
        match verified.map(|claims| revoked.check(claims, self.now)) {
            Some(outcome) => {
                let found = if outcome.is_ok() { "none does" } else { "one does" };
                self.outcome("revoked", wanted, found, outcome);
            }
            None => self.unknown("revoked", wanted, "not looked up".to_owned(), NOT_GOOD),
        }
    }

    /// By whom it may be sent.
    fn sender(&mut self, issuer: &TokenIssuer, certificate: Option<[u8; 32]>, key: Option<[u8; 32]>) {
        let demanded = issuer.require.sender;
        let wanted = match demanded {
            SenderConstraint::None => "a bearer token or a bound one",
            SenderConstraint::Certificate => "bound to a certificate, as `sender: mtls` demands",
            SenderConstraint::Dpop => "bound to a key, as `sender: dpop` demands",
            SenderConstraint::Any => "bound to a certificate or a key, as `sender: any` demands",
        };
        let found = match (certificate, key) {
            (None, None) => "a bearer token",
            (Some(_), None) => "bound to a certificate",
            (None, Some(_)) => "bound to a key",
            (Some(_), Some(_)) => "bound to a certificate and a key",
        };
        self.outcome("sender", wanted, found, holder::is_bound(demanded, certificate.is_some(), key.is_some()));
        if let Some(bound_to) = certificate {
            let wanted = format!("the certificate of SHA-256 {}, by mutual TLS (RFC 8705)", holder::hexadecimal(&bound_to));
            match self.known.certificate {
                Some(own) => {
                    let own = holder::hexadecimal(&own);
                    let outcome = holder::is_certificate(&bound_to, Some(&own));
                    self.outcome("certificate", &wanted, &format!("SHA-256 {own}"), outcome);
                }
                None => {
                    self.provided.push(format!("its sender presents {wanted}"));
                    self.unknown("certificate", &wanted, "not said".to_owned(), NO_CERTIFICATE);
                }
            }
        }
        if let Some(bound_to) = key {
            let nonce = if issuer.require.dpop_nonce { ", with a nonce of the sidecar" } else { "" };
            let wanted = format!("`DPoP` and a proof by the key of thumbprint {}{nonce}", URL_SAFE_NO_PAD.encode(bound_to));
            self.provided.push(format!("each request is sent with {wanted} (RFC 9449)"));
            self.unknown("proof", &wanted, "not looked at".to_owned(), NO_PROOF);
        }
    }

    /// Whether a claim, or what is within it, is shown nowhere.
    fn is_hidden(&self, names: &[String]) -> bool {
        let is_within = |one: &[String], other: &[String]| one.iter().zip(other).all(|(one, other)| one == other);
        self.hidden.iter().any(|path| is_within(path.names(), names))
    }

    fn value_at(&self, payload: &Object, path: &ClaimPath) -> String {
        if self.is_hidden(path.names()) { REDACTED.to_owned() } else { shown(at(payload, path)) }
    }

    fn claim(&self, payload: &Object, name: &str) -> String {
        if self.is_hidden(&[name.to_owned()]) { REDACTED.to_owned() } else { shown(payload.get(name)) }
    }

    /// A moment as a person reads it.
    fn when(&self, payload: &Object, claim: &'static str) -> String {
        let moment = payload.get(claim).and_then(|value| claims::moment(claim, value).ok());
        let Some(at) = moment.filter(|_| !self.is_hidden(&[claim.to_owned()])) else { return self.claim(payload, claim) };
        match at.cmp(&self.now) {
            Ordering::Greater => format!("{at}, in {}", spoken(at.since(self.now))),
            Ordering::Equal => format!("{at}, now"),
            Ordering::Less => format!("{at}, {} ago", spoken(self.now.since(at))),
        }
    }
}

const REDACTED: &str = "(redacted)";

/// A duration in its two largest units: `3 h 12 min`.
pub(crate) fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, other: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {other}"),
    };
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) if duration.is_zero() => "0 s".to_owned(),
        (0, 0, 0, 0) => format!("{} ms", duration.as_millis()),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => two(m, "min", s, "s"),
        (0, h, m, _) => two(h, "h", m, "min"),
        (d, h, _, _) => two(d, "d", h, "h"),
    }
}

/// Keys by id and algorithm.
fn listed<'k>(keys: impl Iterator<Item = (Option<&'k str>, JwtAlgorithm)>) -> String {
    let named = |(id, algorithm): (Option<&str>, JwtAlgorithm)| {
        format!("{} ({})", id.map_or_else(|| "without id".to_owned(), printable), algorithm.as_str())
    };
    let mut keys: Vec<String> = keys.map(named).collect();
    let more = keys.len().saturating_sub(KEYS_TOLD_MAX);
    keys.truncate(KEYS_TOLD_MAX);
    if more > 0 {
        keys.push(format!("{more} more"));
    }
    keys.join(", ")
}

/// A value as it stands in a token, cut to a printable length.
fn shown(value: Option<&Json>) -> String {
    value.map_or_else(|| "(absent)".to_owned(), |value| printable(&written(value)))
}

fn written(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Boolean(flag) => flag.to_string(),
        Json::Integer(number) => number.to_string(),
        Json::Number(number) => number.to_string(),
        Json::Text(text) => text.clone(),
        Json::List(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Json::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{name}: {}", written(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
