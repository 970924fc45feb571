//! Cases that policies are tested with: calls, and what must become of them.
//!
//! A file of cases is no part of a mesh. It is read as strictly: every field is known, every reference resolved, every value in range.

use crate::error::{ConfigError, suggestion};
use crate::source::{Document, Source, documents};
use crate::yaml::{at, head, whole};
use model::authz::AttributeValue;
use model::{Effect, Reason, Timestamp};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The kind of a document of cases.
pub const KIND: &str = "AuthorizationTest";
/// LIMIT: cases of one run's file.
const CASES_MAX: usize = 10_000;
/// Reasons that an answer of the policies can have.
const REASONS: [Reason; 6] = [
    Reason::DeniedByPolicy,
    Reason::NotPermitted,
    Reason::PolicyError,
    Reason::TokenMissing,
    Reason::BodyAmbiguous,
    Reason::BodyTooLarge,
];

/// A call as a person writes it: nothing of it has been looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Who calls: a workload's `namespace/name`, a whole SPIFFE ID, or `unauthenticated`.
    pub caller: String,
    /// The called service, `namespace/name`. `None`: the one that the caller calls.
    pub on: Option<String>,
    /// On whose behalf.
    pub user: Option<CallUser>,
    /// The method, or `connect`.
    pub method: String,
    /// The path as policies see it.
    pub path: String,
    /// The host; `None`: the service's name.
    pub host: Option<String>,
    /// Names and values of header lines, in their order.
    pub headers: Vec<(String, String)>,
    /// The bytes of the body.
    pub body: Option<Vec<u8>>,
    /// Where the call comes from, if whoever says so is believed.
    pub country: Option<String>,
    /// The address of the connection's other end.
    pub address: Option<IpAddr>,
    /// When.
    pub at: Option<Timestamp>,
}

/// A user as a person writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallUser {
    /// The name of the token issuer; `None`: the only one.
    pub issuer: Option<String>,
    /// The token's subject.
    pub subject: String,
    /// Roles.
    pub roles: Vec<String>,
    /// OAuth scopes.
    pub scopes: Vec<String>,
    /// By the attribute's name in policies.
    pub attributes: BTreeMap<String, AttributeValue>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The document that holds it.
    pub suite: String,
    /// What it shows; unique in its document.
    pub name: String,
    /// The file, as it was given.
    pub file: String,
    /// The line on which it begins, from 1.
    pub line: u32,
    /// The call.
    pub call: Call,
    /// What must become of it.
    pub expected: Expected,
}

/// What must become of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Allowed or denied.
    pub effect: Effect,
    /// Exactly the policies that determine it; empty: any.
    pub by: Vec<String>,
    /// Why it is denied; `None`: whatever for.
    pub reason: Option<Reason>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestSpec {
    on: Option<Spanned<String>>,
    #[serde(default)]
    users: BTreeMap<String, UserSpec>,
    cases: Spanned<Vec<Spanned<CaseSpec>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserSpec {
    issuer: Option<String>,
    subject: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, AttributeValue>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseSpec {
    name: Spanned<String>,
    #[serde(rename = "as")]
    caller: String,
    on: Option<String>,
    user: Option<Spanned<String>>,
    request: RequestSpec,
    expect: ExpectSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequestSpec {
    method: String,
    path: Option<String>,
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Lines>,
    body: Option<serde_json::Value>,
    body_text: Option<Spanned<String>>,
    country: Option<String>,
    address: Option<Spanned<String>>,
    at: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Lines {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectSpec {
    decision: Spanned<String>,
    by: Option<Spanned<Vec<String>>>,
    reason: Option<Spanned<String>>,
}

/// Reads the cases of one file, in their order.
///
/// # Errors
/// - every [`ConfigError`] that was found; never empty.
pub fn parse(source: &Source) -> Result<Vec<Case>, Vec<ConfigError>> {
    let (mut cases, mut errors) = (Vec::new(), Vec::new());
    for document in documents(source) {
        if let Err(found) = read(document, &mut cases) {
            errors.extend(found);
        }
    }
    if errors.is_empty() { Ok(cases) } else { Err(errors) }
}

fn read(document: Document<'_>, cases: &mut Vec<Case>) -> Result<(), Vec<ConfigError>> {
    let head = head(document).map_err(|error| vec![error])?;
    if head.kind.value != KIND {
        let message = format!("`kind: {}` is not `{KIND}`", model::ids::printable(&head.kind.value));
        return Err(vec![at(document, head.kind.defined, message)]);
    }
    let written = whole::<TestSpec>(document).map_err(|error| vec![error])?;
    let spec = &written.spec;
    let mut errors = Vec::new();
    if let Some(namespace) = &written.metadata.namespace {
        errors.push(at(document, namespace.defined, "tests are of no namespace: remove it".to_owned()));
    }
    if spec.cases.value.is_empty() {
        errors.push(at(document, spec.cases.defined, "no case: a test that asks nothing shows nothing".to_owned()));
    }
    let mut names = BTreeMap::new();
    for each in &spec.cases.value {
        let line = at(document, each.defined, String::new()).line;
        if let Some(first) = names.insert(each.value.name.value.as_str(), line) {
            let name = model::ids::printable(&each.value.name.value);
            let message = format!("a second case `{name}`; the first stands at line {first}");
            errors.push(at(document, each.value.name.defined, message));
        }
        if cases.len() >= CASES_MAX {
            errors.push(at(document, each.defined, format!("more than {CASES_MAX} cases in one file")));
            break;
        }
        match case(spec, &each.value) {
            Ok((call, expected)) => cases.push(Case {
                suite: written.metadata.name.value.clone(),
                name: each.value.name.value.clone(),
                file: document.file.to_owned(),
                line,
                call,
                expected,
            }),
            Err((location, message)) => errors.push(at(document, location, message)),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

type Flaw = (Location, String);

fn case(spec: &TestSpec, case: &CaseSpec) -> Result<(Call, Expected), Flaw> {
    let request = &case.request;
    if case.name.value.trim().is_empty() {
        return Err((case.name.defined, "a case needs a name that says what it shows".to_owned()));
    }
    let user = case.user.as_ref().map(|name| user(spec, name)).transpose()?;
    let mut headers = Vec::new();
    for (name, lines) in &request.headers {
        match lines {
            Lines::One(value) => headers.push((name.clone(), value.clone())),
            Lines::Many(values) => headers.extend(values.iter().map(|value| (name.clone(), value.clone()))),
        }
    }
    let body = match (&request.body, &request.body_text) {
        (Some(_), Some(text)) => return Err((text.defined, "`body` and `bodyText` are two bodies".to_owned())),
        (Some(json), None) => Some(json.to_string().into_bytes()),
        (None, Some(text)) => Some(text.value.clone().into_bytes()),
        (None, None) => None,
    };
    let address = request.address.as_ref().map(|written| {
        let wrong = || (written.defined, format!("`{}` is not an IP address", model::ids::printable(&written.value)));
        written.value.parse().map_err(|_| wrong())
    });
    let time =
        request.at.as_ref().map(|written| Timestamp::parse(&written.value).map_err(|error| (written.defined, error.to_string())));
    let path = match (&request.path, request.method.as_str()) {
        (Some(path), _) => path.clone(),
        (None, "connect") => "/".to_owned(),
        (None, _) => return Err((case.name.defined, "`request.path` is missing".to_owned())),
    };
    let call = Call {
        caller: case.caller.clone(),
        on: case.on.clone().or_else(|| spec.on.as_ref().map(|on| on.value.clone())),
        user,
        method: request.method.clone(),
        path,
        host: request.host.clone(),
        headers,
        body,
        country: request.country.clone(),
        address: address.transpose()?,
        at: time.transpose()?,
    };
    Ok((call, expected(&case.expect)?))
}

fn user(spec: &TestSpec, name: &Spanned<String>) -> Result<CallUser, Flaw> {
    let Some(user) = spec.users.get(&name.value) else {
        let near = suggestion(&name.value, spec.users.keys().map(String::as_str));
        return Err((name.defined, format!("no user `{}` in `spec.users`{near}", model::ids::printable(&name.value))));
    };
    Ok(CallUser {
        issuer: user.issuer.clone(),
        subject: user.subject.clone().unwrap_or_else(|| name.value.clone()),
        roles: user.roles.clone(),
        scopes: user.scopes.clone(),
        attributes: user.attributes.clone(),
    })
}

fn expected(spec: &ExpectSpec) -> Result<Expected, Flaw> {
    let effect = match spec.decision.value.as_str() {
        "allow" => Effect::Allow,
        "deny" => Effect::Deny,
        other => {
            let near = suggestion(other, ["allow", "deny"]);
            let message = format!("decision `{}` is not one of `allow` and `deny`{near}", model::ids::printable(other));
            return Err((spec.decision.defined, message));
        }
    };
    let reason = match &spec.reason {
        None => None,
        Some(written) if effect == Effect::Allow => {
            return Err((written.defined, "what is allowed has no reason: remove it, or write `decision: deny`".to_owned()));
        }
        Some(written) => {
            let names = REASONS.map(Reason::as_str);
            let found = REASONS.into_iter().find(|reason| reason.as_str() == written.value);
            let near = suggestion(&written.value, names);
            let wrong =
                || format!("`{}` is no reason of policies: {}{near}", model::ids::printable(&written.value), names.join(", "));
            Some(found.ok_or_else(|| (written.defined, wrong()))?)
        }
    };
    let by = match &spec.by {
        Some(by) if by.value.is_empty() => return Err((by.defined, "`by` is empty; leave it out for any policy".to_owned())),
        Some(by) if effect == Effect::Deny && reason.is_some_and(|reason| reason != Reason::DeniedByPolicy) => {
            return Err((by.defined, "only a denial by a `forbid` (`denied_by_policy`) is determined by policies".to_owned()));
        }
        Some(by) => by.value.clone(),
        None => Vec::new(),
    };
    Ok(Expected { effect, by, reason })
}

#[cfg(test)]
mod tests;
