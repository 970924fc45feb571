//! A written call as the question that the called sidecar would ask, and the answer.

use crate::origin::Site;
use config::cases::{Call, CallUser};
use model::authz::{AttributeValue, AuthzRequest, Header, HeaderRead, Principal, Source, User};
use model::decision::{Explanation, Outcome};
use model::snapshot::TokenIssuer;
use model::{Country, CountryCode, DecisionId, Effect, Limit, PolicyId, Reason, Timestamp};
use policy::BodyFacts;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The action of an opaque connection.
const CONNECT: &str = "connect";

/// What the policies say of a call.
#[derive(Debug, serde::Serialize)]
pub(super) struct Answer {
    pub(super) allowed: bool,
    #[serde(serialize_with = "named")]
    pub(super) reason: Option<Reason>,
    /// What exactly was wrong, where that is no policy's word.
    pub(super) detail: Option<String>,
    /// The policies that determined it, sorted.
    pub(super) determining: Vec<PolicyId>,
    pub(super) request: AuthzRequest,
    pub(super) explanation: Option<Explanation>,
}

fn named<S: serde::Serializer>(reason: &Option<Reason>, serializer: S) -> Result<S::Ok, S::Error> {
    match reason {
        Some(reason) => serializer.serialize_some(reason.as_str()),
        None => serializer.serialize_none(),
    }
}

impl Answer {
    /// Why it was not allowed, in one line.
    pub(super) fn nearest(&self) -> Option<&str> {
        self.explanation.as_ref().and_then(|explanation| explanation.nearest_miss.as_deref()).or(self.detail.as_deref())
    }
}

/// Asks the policies of a workload.
///
/// # Errors
/// - a text for a call that cannot be: it says what to write instead.
pub(super) fn ask(site: &Site, principal: Principal, call: &Call, now: Timestamp) -> Result<Answer, String> {
    let snapshot = &site.snapshot;
    check(site, &principal, call)?;
    let user = call.user.as_ref().map(|user| of_token(user, &snapshot.issuers)).transpose()?.map(Arc::new);
    let mut request = AuthzRequest {
        user,
        action: call.method.clone(),
        resource: snapshot.service.clone(),
        path: call.path.clone(),
        host: match &call.host {
            Some(host) => host.to_ascii_lowercase(),
            None if call.method == CONNECT => String::new(),
            None => snapshot.service.as_str().rsplit('/').next().unwrap_or_default().to_owned(),
        },
        headers: headers(call, site.policies.header_names(&call.method)),
        body: None,
        body_note: None,
        source: Source {
            address: call.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            country: country(site, &principal, call)?,
        },
        now: call.at.unwrap_or(now),
        principal,
    };
    match body(site, call) {
        Ok(Some(BodyFacts::Fields(fields))) => request.body = Some(fields),
        Ok(Some(BodyFacts::Unreadable { why })) => request.body_note = Some(why),
        Ok(None) => {}
        Err((reason, detail)) => {
            let (detail, determining) = (Some(detail), Vec::new());
            return Ok(Answer { allowed: false, reason: Some(reason), detail, determining, request, explanation: None });
        }
    }
    // Nobody is told this id: the answer is no decision that was made.
    let decided = policy::decide(&site.policies, &request.as_question(), DecisionId::from_random([0; 16]), snapshot.revision);
    let (decision, reason, detail) = match decided {
        Ok(permit) => (permit.decision().clone(), None, None),
        Err(denied) => {
            // As the sidecar answers: a token could be what is missing.
            let reason = if denied.user_could_be_allowed { Some(Reason::TokenMissing) } else { denied.decision.reason };
            let detail = (!denied.errors.is_empty()).then(|| denied.errors.join("; "));
            (denied.decision, reason, detail)
        }
    };
    let explanation = Some(policy::explain(&site.policies, &request, &decision));
    let allowed = decision.effect == Effect::Allow;
    Ok(Answer { allowed, reason, detail, determining: decision.determining.to_vec(), request, explanation })
}

/// What no caller can bring to this workload.
fn check(site: &Site, principal: &Principal, call: &Call) -> Result<(), String> {
    let snapshot = &site.snapshot;
    let opaque = call.method == CONNECT;
    let says_country = call.country.is_some() && snapshot.country_database.is_none();
    if opaque && (call.user.is_some() || call.body.is_some() || !call.headers.is_empty() || says_country) {
        return Err("an opaque connection (`connect`) has no user, headers, body or country".to_owned());
    }
    if !site.carries(opaque) {
        let what = if opaque { "opaque connections" } else { "HTTP" };
        return Err(format!("no inbound port of `{}` carries {what}", snapshot.workload));
    }
    if *principal == Principal::Unauthenticated && !snapshot.inbound.iter().any(|inbound| inbound.permissive) {
        return Err(format!("no inbound port of `{}` is permissive: a plaintext caller does not get in", snapshot.workload));
    }
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if call.method.is_empty() || !call.method.bytes().all(token) {
        return Err(format!("`{}` is not a method", model::ids::printable(&call.method)));
    }
    let shown = model::ids::printable(&call.path);
    normal(&call.method, &call.path).map_err(|rule| format!("`{shown}` is not a path as policies see it: {rule}"))
}

/// Policies see one form of a path; what they would never see is no question.
fn normal(method: &str, path: &str) -> Result<(), String> {
    if path == "*" {
        return if method == "OPTIONS" { Ok(()) } else { Err("it is for `OPTIONS` alone".to_owned()) };
    }
    if path.contains(['?', '#']) {
        return Err("it is without the query".to_owned());
    }
    let mut seen = String::new();
    model::path::normalise(path.as_bytes(), &mut seen).map_err(|rule| format!("the sidecar refuses one that {rule}"))?;
    if seen == path { Ok(()) } else { Err(format!("they see `{}`", model::ids::printable(&seen))) }
}

/// What the sidecar would make of this user's token.
fn of_token(user: &CallUser, issuers: &[TokenIssuer]) -> Result<User, String> {
    let names = || issuers.iter().map(|issuer| issuer.name.as_str());
    let issuer = match (&user.issuer, issuers) {
        (_, []) => return Err("the mesh has no `TokenIssuer`: no call has a user".to_owned()),
        (Some(name), _) => issuers
            .iter()
            .find(|issuer| issuer.name == *name)
            .ok_or_else(|| format!("no `TokenIssuer` `{}`{}", model::ids::printable(name), config::suggestion(name, names())))?,
        (None, [only]) => only,
        (None, _) => return Err(format!("whose user? Write the issuer: one of {}", names().collect::<Vec<_>>().join(", "))),
    };
    if user.subject.is_empty() {
        return Err("a user has a subject".to_owned());
    }
    if issuer.roles_claim.is_none() && !user.roles.is_empty() {
        return Err(format!("issuer `{}` maps no claim to roles: its users have none", issuer.name));
    }
    for (name, value) in &user.attributes {
        let Some(mapping) = issuer.attributes.get(name) else {
            let near = config::suggestion(name, issuer.attributes.keys().map(String::as_str));
            return Err(format!(
                "issuer `{}` maps no claim to the attribute `{}`{near}",
                issuer.name,
                model::ids::printable(name)
            ));
        };
        if !fits(value, mapping.kind) {
            return Err(format!("the attribute `{name}` is a {}", mapping.kind.as_str()));
        }
    }
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names.dedup();
        names
    };
    Ok(User {
        issuer: issuer.name.clone(),
        subject: user.subject.clone(),
        roles: sorted(&user.roles),
        scopes: sorted(&user.scopes),
        attributes: user.attributes.clone(),
    })
}

const fn fits(value: &AttributeValue, kind: model::authz::AttributeType) -> bool {
    use model::authz::AttributeType;
    matches!(
        (value, kind),
        (AttributeValue::Long(_), AttributeType::Long)
            | (AttributeValue::Boolean(_), AttributeType::Boolean)
            | (AttributeValue::String(_), AttributeType::String)
            | (AttributeValue::StringSet(_), AttributeType::StringSet)
    )
}

/// The lines of a header, in its exact spelling.
fn lines<'a>(call: &'a Call, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let is_it = move |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
    let found: Vec<&[u8]> = call.headers.iter().filter(is_it).map(|(_, value)| value.as_bytes()).collect();
    found.into_iter()
}

/// What the sidecar would read of the lines.
fn headers(call: &Call, names: &[String]) -> Vec<Header<'static>> {
    let lines = call.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let read = |name: &String| Header { name: name.clone().into(), read: HeaderRead::among(lines.clone(), name).into_owned() };
    names.iter().map(read).collect()
}

/// The country: that of the call as it is written down, where somebody can know it; else from the trusted header of a trusted caller.
fn country(site: &Site, principal: &Principal, call: &Call) -> Result<Country, String> {
    let has_database = site.snapshot.country_database.is_some();
    let header = site.snapshot.country.as_ref();
    if header.is_none() && !has_database {
        return match &call.country {
            Some(_) => Err("the mesh's `MeshConfig` says no `country`: no call has one".to_owned()),
            None => Ok(Country::Unknown),
        };
    }
    let trusting = header.filter(|header| principal.workload().is_some_and(|id| header.trusted.contains(id)));
    match &call.country {
        Some(_) if trusting.is_none() && !has_database => {
            let who = header.iter().flat_map(|header| &header.trusted).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(format!("`{principal}` is not believed about the country; believed are: {who}"))
        }
        Some(code) => CountryCode::parse(code)
            .map(Country::Known)
            .ok_or_else(|| format!("`{}` is not a country: two upper-case letters (ISO 3166-1)", model::ids::printable(code))),
        // What the database would say of the address, nobody asks here.
        None => Ok(trusting.and_then(|header| Country::said(lines(call, &header.header))).unwrap_or_default()),
    }
}

/// The body, if a policy of the method reads it.
fn body(site: &Site, call: &Call) -> Result<Option<BodyFacts>, (Reason, String)> {
    let Some(declared) = site.policies.body_fields(&call.method) else { return Ok(None) };
    let limits = &site.snapshot.limits;
    let bytes = call.body.as_deref().unwrap_or_default();
    let most = limits.size(Limit::PolicyBodyBytes);
    if bytes.len() > most {
        return Err((Reason::BodyTooLarge, format!("a body of {} bytes is more than `policyBodyBytes` ({most})", bytes.len())));
    }
    let text = |name: &str| {
        let line: Option<Vec<u8>> = lines(call, name).next().map(<[u8]>::to_vec);
        line.map(|line| String::from_utf8(line).unwrap_or_else(|_| "unreadable".to_owned()))
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    // A body without a type is what `curl --json` would send.
    let content_type = text("content-type").or_else(|| call.body.as_ref().map(|_| "application/json".to_owned()));
    let depth = limits.size(Limit::PolicyBodyDepth);
    let read = policy::read_body(content_type.as_deref(), text("content-encoding").as_deref(), bytes, declared, depth);
    read.map(Some).map_err(|refusal| (refusal.reason(), refusal.to_string()))
}

/// The word of an outcome, for people.
pub(super) const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Applied => "applied",
        Outcome::NotApplied => "did not apply",
        Outcome::Errored => "FAILED",
    }
}

/// Attributes as `name=value` from the command line, by the types that issuers map.
pub(super) fn typed(written: &[(String, String)], issuers: &[TokenIssuer]) -> Result<BTreeMap<String, AttributeValue>, String> {
    use model::authz::AttributeType;
    let mut typed = BTreeMap::new();
    for (name, text) in written {
        let mapping = issuers.iter().find_map(|issuer| issuer.attributes.get(name));
        let kind = mapping.map(|mapping| mapping.kind).ok_or_else(|| {
            let known = issuers.iter().flat_map(|issuer| issuer.attributes.keys()).map(String::as_str);
            format!(
                "no `TokenIssuer` maps a claim to the attribute `{}`{}",
                model::ids::printable(name),
                config::suggestion(name, known)
            )
        })?;
        let wrong = || format!("`{name}={}`: the attribute is a {}", model::ids::printable(text), kind.as_str());
        let value = match kind {
            AttributeType::Long => AttributeValue::Long(text.parse().map_err(|_| wrong())?),
            AttributeType::Boolean => AttributeValue::Boolean(text.parse().map_err(|_| wrong())?),
            AttributeType::String => AttributeValue::String(text.clone()),
            AttributeType::StringSet => AttributeValue::StringSet(text.split(',').map(str::to_owned).collect()),
        };
        if typed.insert(name.clone(), value).is_some() {
            return Err(format!("the attribute `{name}` is given twice"));
        }
    }
    Ok(typed)
}
