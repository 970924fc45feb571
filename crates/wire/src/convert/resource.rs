//! Snapshots as named, content-addressed resources.

use super::token::{self, requirements_from_wire, requirements_to_wire};
use super::{ConvertError, Parts, issuer_keys};
use crate::proto;
use model::authz::AttributeType;
use model::snapshot::{
    AuthorizationPolicy, ClaimMapping, CountryHeader, Egress, Endpoint, Inbound, JwtAlgorithm, Protocol, RevokedSvid, Sensitive,
    TokenIssuer, TrustBundle, Upstream,
};
use model::token::RevokedTokens;
use model::{ClaimPath, Limit, Limits, Revision, Roles, ServiceName, Snapshot, SpiffeId, Timestamp, TrustDomain, WorkloadName};
use proto::resource::Body;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

type Result<T> = std::result::Result<T, ConvertError>;

/// The key of the one workload resource.
const WORKLOAD: &str = "workload/self";
/// The key of the one list of revoked SVIDs.
const REVOCATIONS: &str = "revocations/self";
/// The key of the one list of nested roles.
const ROLES: &str = "roles/self";
/// The key of what is sensitive.
const SENSITIVE: &str = "sensitive/self";
/// LIMIT: names of one list of what is sensitive.
const SENSITIVE_MAX: usize = 1000;
/// LIMIT: revoked SVIDs in one snapshot; each is remembered only until it ends.
const REVOKED_MAX: usize = 10_000;
/// LIMIT: digits of a serial number (RFC 5280 §4.1.2.2: 20 bytes).
const SERIAL_DIGITS_MAX: usize = 40;
/// LIMIT: JWT authorities, and tainted authorities, of one bundle.
const BUNDLE_KEYS_MAX: usize = 64;
/// What is said of a resource without a body that this version can read.
const UNKNOWN_KIND: &str = "a resource of a kind that this version does not know";

/// `kind/name` of a resource.
pub(super) fn key(resource: &proto::Resource) -> Result<String> {
    let kind = match &resource.body {
        Some(Body::Workload(_)) => "workload",
        Some(Body::Upstream(_)) => "upstream",
        Some(Body::Issuer(_)) => "issuer",
        Some(Body::Policy(_)) => "policy",
        Some(Body::Bundle(_)) => "bundle",
        Some(Body::Revocations(_)) => "revocations",
        Some(Body::Roles(_)) => "roles",
        Some(Body::ShadowPolicy(_)) => "shadow",
        Some(Body::Sensitive(_)) => "sensitive",
        None => return Err(ConvertError::new(model::ids::printable(&resource.name), UNKNOWN_KIND)),
    };
    Ok(format!("{kind}/{}", resource.name))
}

/// The key of a resource that was received.
///
/// # Errors
/// - [`ConvertError`] if its kind is not known.
pub(crate) fn key_of(resource: &proto::Resource) -> Result<String> {
    key(resource)
}

/// The parts of a snapshot by key.
pub fn resources(snapshot: &Snapshot) -> Parts {
    let mut parts = Parts::new();
    let mut put = |kind: &str, name: String, body: Body| {
        parts.insert(format!("{kind}/{name}"), proto::Resource { name, body: Some(body) });
    };
    put("workload", "self".to_owned(), Body::Workload(workload_to_wire(snapshot)));
    for upstream in &snapshot.upstreams {
        put("upstream", upstream_name(upstream), Body::Upstream(upstream_to_wire(upstream)));
    }
    for issuer in &snapshot.issuers {
        put("issuer", issuer.name.clone(), Body::Issuer(issuer_to_wire(issuer)));
    }
    for policy in &snapshot.policies {
        put("policy", policy.name.clone(), Body::Policy(policy_to_wire(policy)));
    }
    for policy in &snapshot.shadow {
        put("shadow", policy.name.clone(), Body::ShadowPolicy(policy_to_wire(policy)));
    }
    for bundle in &snapshot.bundles {
        put("bundle", bundle.trust_domain.to_string(), Body::Bundle(bundle_to_wire(bundle)));
    }
    if !snapshot.revoked.is_empty() || !snapshot.revoked_tokens.is_empty() {
        put("revocations", "self".to_owned(), Body::Revocations(revocations_to_wire(snapshot)));
    }
    if !snapshot.sensitive.is_empty() {
        put("sensitive", "self".to_owned(), Body::Sensitive(sensitive_to_wire(&snapshot.sensitive)));
    }
    if !snapshot.roles.is_empty() {
        put("roles", "self".to_owned(), Body::Roles(roles_to_wire(&snapshot.roles)));
    }
    parts
}

/// One service may be called through several ports, so that the port belongs to the name.
fn upstream_name(upstream: &Upstream) -> String {
    match upstream.listen {
        Some(listen) => format!("{}@{listen}", upstream.service),
        None => format!("{}@{}", upstream.service, upstream.protocol.as_str()),
    }
}

/// Puts a snapshot together from its parts. Policies stand in the order of `policy_order`, everything else in the order of its key.
///
/// # Errors
/// - [`ConvertError`] naming the field: malformed, missing, dangling, superfluous or under a name that is not its own.
pub fn assemble(revision: u64, parts: &Parts) -> Result<Snapshot> {
    let Some(Body::Workload(workload)) = parts.get(WORKLOAD).and_then(|resource| resource.body.as_ref()) else {
        return Err(ConvertError::new(WORKLOAD, "missing"));
    };
    let mut snapshot = workload_from_wire(workload).map_err(|error| error.within(WORKLOAD))?;
    snapshot.revision = Revision(revision);
    let mut policies = BTreeMap::new();
    for (key, resource) in parts {
        let within = |error: ConvertError| error.within(key);
        // The key that the content itself gives: two parts of one name under different keys would hide each other.
        let owed = match &resource.body {
            Some(Body::Workload(_)) => WORKLOAD.to_owned(),
            Some(Body::Upstream(wire)) => {
                let upstream = upstream_from_wire(wire, workload.captured).map_err(within)?;
                let owed = format!("upstream/{}", upstream_name(&upstream));
                snapshot.upstreams.push(upstream);
                owed
            }
            Some(Body::Issuer(wire)) => {
                snapshot.issuers.push(issuer_from_wire(wire).map_err(within)?);
                format!("issuer/{}", wire.name)
            }
            Some(Body::Bundle(wire)) => {
                snapshot.bundles.push(bundle_from_wire(wire).map_err(within)?);
                format!("bundle/{}", wire.trust_domain)
            }
            Some(Body::Revocations(wire)) => {
                (snapshot.revoked, snapshot.revoked_tokens) = revocations_from_wire(wire).map_err(within)?;
                REVOCATIONS.to_owned()
            }
            Some(Body::Roles(wire)) => {
                snapshot.roles = roles_from_wire(wire).map_err(within)?;
                ROLES.to_owned()
            }
            Some(Body::Policy(wire)) => {
                policies.insert(key.clone(), policy_from_wire(wire).map_err(within)?);
                format!("policy/{}", wire.name)
            }
            Some(Body::Sensitive(wire)) => {
                snapshot.sensitive = sensitive_from_wire(wire).map_err(within)?;
                SENSITIVE.to_owned()
            }
            Some(Body::ShadowPolicy(wire)) => {
                snapshot.shadow.push(policy_from_wire(wire).map_err(within)?);
                format!("shadow/{}", wire.name)
            }
            None => return Err(ConvertError::new(key.clone(), UNKNOWN_KIND)),
        };
        if owed != *key {
            let problem = format!("its content is that of `{}`", model::ids::printable(&owed));
            return Err(ConvertError::new(format!("{key}.name"), problem));
        }
    }
    for (index, key) in workload.policy_order.iter().enumerate() {
        let path = || format!("{WORKLOAD}.policy_order[{index}]");
        let policy = policies.remove(key).ok_or_else(|| ConvertError::new(path(), format!("no policy `{key}`")))?;
        snapshot.policies.push(policy);
    }
    if let Some(key) = policies.keys().next() {
        return Err(ConvertError::new(key.clone(), format!("a policy that `{WORKLOAD}.policy_order` does not name")));
    }
    let own = snapshot.identity.trust_domain();
    if !snapshot.bundles.iter().any(|bundle| bundle.trust_domain == *own) {
        return Err(ConvertError::new(format!("bundle/{own}"), "missing: the bundle of the workload's own trust domain"));
    }
    Ok(snapshot)
}

pub(super) fn parsed<T, E: Display>(path: &str, outcome: std::result::Result<T, E>) -> Result<T> {
    outcome.map_err(|error| ConvertError::new(path, error))
}

fn address(path: &str, text: &str) -> Result<SocketAddr> {
    // Port 0 would listen somewhere else at every start.
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    address.ok_or_else(|| ConvertError::new(path, format!("`{}` is not an address with a port", model::ids::printable(text))))
}

pub(super) fn filled<T>(path: &str, list: Vec<T>) -> Result<Vec<T>> {
    if list.is_empty() { Err(ConvertError::new(path, "empty")) } else { Ok(list) }
}

pub(super) fn text(path: &str, value: &str) -> Result<String> {
    if value.is_empty() { Err(ConvertError::new(path, "empty")) } else { Ok(value.to_owned()) }
}

fn workload_to_wire(snapshot: &Snapshot) -> proto::Workload {
    let defaults = Limits::default();
    let limits = Limit::ALL.into_iter().filter(|limit| snapshot.limits.of(*limit) != defaults.of(*limit));
    proto::Workload {
        name: snapshot.workload.to_string(),
        identity: snapshot.identity.to_string(),
        service: snapshot.service.to_string(),
        inbound: snapshot.inbound.iter().map(inbound_to_wire).collect(),
        connection_age_max_ms: u64::try_from(snapshot.connection_age_max.as_millis()).unwrap_or(u64::MAX),
        country: snapshot.country.as_ref().map(|country| proto::CountryHeader {
            header: country.header.clone(),
            trusted: country.trusted.iter().map(ToString::to_string).collect(),
        }),
        country_database: snapshot.country_database.clone().unwrap_or_default(),
        limits: limits
            .map(|limit| proto::LimitValue { name: limit.name().to_owned(), value: snapshot.limits.of(limit) })
            .collect(),
        policy_order: snapshot.policies.iter().map(|policy| format!("policy/{}", policy.name)).collect(),
        forwarders: snapshot.forwarders.iter().map(ToString::to_string).collect(),
        captured: snapshot.captured,
        egress_refused: snapshot.egress == Egress::Refuse,
        post_quantum_required: snapshot.post_quantum_required,
        token: token::use_to_wire(&snapshot.token),
    }
}

/// The workload's own part; the rest of the snapshot is still empty.
fn workload_from_wire(wire: &proto::Workload) -> Result<Snapshot> {
    let mut limits = Limits::default();
    for (index, value) in wire.limits.iter().enumerate() {
        let path = format!("limits[{index}]");
        let limit = Limit::named(&value.name).ok_or_else(|| ConvertError::new(&path, "no limit of this name"))?;
        parsed(&path, limits.set(limit, value.value))?;
    }
    if wire.connection_age_max_ms == 0 {
        return Err(ConvertError::new("connection_age_max_ms", "0"));
    }
    let country = wire.country.as_ref().map(|country| -> Result<CountryHeader> {
        let id = |(index, text): (usize, &String)| parsed(&format!("country.trusted[{index}]"), SpiffeId::parse(text));
        let trusted = country.trusted.iter().enumerate().map(id).collect::<Result<_>>()?;
        let header = http::HeaderName::from_lowercase(country.header.as_bytes());
        let header = parsed("country.header", header.map_err(|_| "not the name of a header in lower case"))?;
        Ok(CountryHeader { header: header.as_str().to_owned(), trusted })
    });
    let inbound = wire.inbound.iter().enumerate();
    let forwarders = wire.forwarders.iter().enumerate();
    let forwarders = forwarders.map(|(index, text)| parsed(&format!("forwarders[{index}]"), SpiffeId::parse(text)));
    Ok(Snapshot {
        revision: Revision(0),
        workload: parsed("name", WorkloadName::parse(&wire.name))?,
        identity: parsed("identity", SpiffeId::parse(&wire.identity))?,
        service: parsed("service", ServiceName::parse(&wire.service))?,
        bundles: Vec::new(),
        inbound: inbound
            .map(|(index, wire)| inbound_from_wire(wire).map_err(|error| error.within(&format!("inbound[{index}]"))))
            .collect::<Result<_>>()?,
        upstreams: Vec::new(),
        issuers: Vec::new(),
        token: wire.token.as_ref().map(token::use_from_wire).transpose()?.unwrap_or_default(),
        policies: Vec::new(),
        roles: Roles::default(),
        shadow: Vec::new(),
        sensitive: Sensitive::default(),
        country: country.transpose()?,
        country_database: match wire.country_database.as_str() {
            "" => None,
            path => Some(issuer_keys::absolute("country_database", path)?),
        },
        forwarders: forwarders.collect::<Result<_>>()?,
        captured: wire.captured,
        egress: if wire.egress_refused { Egress::Refuse } else { Egress::Allow },
        connection_age_max: Duration::from_millis(wire.connection_age_max_ms),
        limits,
        revoked: Vec::new(),
        revoked_tokens: Vec::new(),
        post_quantum_required: wire.post_quantum_required,
    })
}

fn sensitive_to_wire(sensitive: &Sensitive) -> proto::Sensitive {
    let Sensitive { body, user, headers } = sensitive;
    let [body, user, headers] = [body, user, headers].map(|names| names.iter().cloned().collect());
    proto::Sensitive { body, user, headers }
}

fn sensitive_from_wire(wire: &proto::Sensitive) -> Result<Sensitive> {
    let names = |path: &str, names: &[String]| {
        if names.len() > SENSITIVE_MAX {
            return Err(ConvertError::new(path, format!("{} names, {SENSITIVE_MAX} at most", names.len())));
        }
        Ok(names.iter().cloned().collect())
    };
    let sensitive = Sensitive {
        body: names("body", &wire.body)?,
        user: names("user", &wire.user)?,
        headers: names("headers", &wire.headers)?,
    };
    if sensitive.is_empty() {
        return Err(ConvertError::new("body", "nothing is sensitive; then it is absent"));
    }
    Ok(sensitive)
}

fn roles_to_wire(roles: &Roles) -> proto::Roles {
    let role = |(name, within): (&String, &BTreeSet<String>)| proto::Role {
        name: name.clone(),
        within: within.iter().cloned().collect(),
    };
    proto::Roles { roles: roles.declared().iter().map(role).collect() }
}

fn roles_from_wire(wire: &proto::Roles) -> Result<Roles> {
    let mut roles = BTreeMap::new();
    for (index, role) in wire.roles.iter().enumerate() {
        let wrong = |problem: String| ConvertError::new(format!("roles[{index}]"), problem);
        if role.within.len() > model::roles::ROLES_ABOVE_MAX || index >= model::roles::ROLES_MAX {
            return Err(wrong("more roles than there may be".to_owned()));
        }
        if roles.insert(role.name.clone(), role.within.iter().cloned().collect()).is_some() {
            return Err(wrong(format!("`{}` stands twice", model::ids::printable(&role.name))));
        }
    }
    // An empty list is sent as none.
    let roles = filled("roles", roles.into_iter().collect::<Vec<_>>())?.into_iter().collect();
    parsed("roles", Roles::new(roles))
}

fn inbound_to_wire(inbound: &Inbound) -> proto::Inbound {
    proto::Inbound {
        listen: inbound.listen.to_string(),
        application: inbound.application.to_string(),
        protocol: protocol_to_wire(inbound.protocol).into(),
        permissive: inbound.permissive,
    }
}

fn inbound_from_wire(wire: &proto::Inbound) -> Result<Inbound> {
    Ok(Inbound {
        listen: address("listen", &wire.listen)?,
        application: address("application", &wire.application)?,
        protocol: protocol_from_wire(wire.protocol)?,
        permissive: wire.permissive,
    })
}

const fn protocol_to_wire(protocol: Protocol) -> proto::Protocol {
    match protocol {
        Protocol::Http => proto::Protocol::Http,
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Detect => proto::Protocol::Detect,
    }
}

fn protocol_from_wire(value: i32) -> Result<Protocol> {
    match proto::Protocol::try_from(value) {
        Ok(proto::Protocol::Http) => Ok(Protocol::Http),
        Ok(proto::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(proto::Protocol::Detect) => Ok(Protocol::Detect),
        Ok(proto::Protocol::Unspecified) | Err(_) => Err(ConvertError::new("protocol", format!("unknown value {value}"))),
    }
}

fn upstream_to_wire(upstream: &Upstream) -> proto::Upstream {
    proto::Upstream {
        service: upstream.service.to_string(),
        listen: upstream.listen.map_or_else(String::new, |listen| listen.to_string()),
        protocol: protocol_to_wire(upstream.protocol).into(),
        endpoints: upstream.endpoints.iter().map(endpoint_to_wire).collect(),
    }
}

fn upstream_from_wire(wire: &proto::Upstream, captured: bool) -> Result<Upstream> {
    let endpoint = |(index, endpoint): (usize, &proto::Endpoint)| {
        endpoint_from_wire(endpoint).map_err(|error| error.within(&format!("endpoints[{index}]")))
    };
    let listen = if captured && wire.listen.is_empty() { None } else { Some(address("listen", &wire.listen)?) };
    if !captured && !listen.is_some_and(|listen| listen.ip().is_loopback()) {
        let problem = "not a loopback address: whoever reaches it speaks with this workload's identity";
        return Err(ConvertError::new("listen", problem));
    }
    Ok(Upstream {
        service: parsed("service", ServiceName::parse(&wire.service))?,
        listen,
        protocol: protocol_from_wire(wire.protocol)?,
        endpoints: wire.endpoints.iter().enumerate().map(endpoint).collect::<Result<_>>()?,
    })
}

pub(super) fn endpoint_to_wire(endpoint: &Endpoint) -> proto::Endpoint {
    proto::Endpoint { address: endpoint.address.to_string(), identity: endpoint.identity.to_string() }
}

pub(super) fn endpoint_from_wire(wire: &proto::Endpoint) -> Result<Endpoint> {
    Ok(Endpoint { address: address("address", &wire.address)?, identity: parsed("identity", SpiffeId::parse(&wire.identity))? })
}

fn issuer_to_wire(issuer: &TokenIssuer) -> proto::TokenIssuer {
    let mapping = |(attribute, mapping): (&String, &ClaimMapping)| proto::ClaimMapping {
        attribute: attribute.clone(),
        claim: mapping.claim.to_string(),
        r#type: type_to_wire(mapping.kind).into(),
    };
    let mut wire = proto::TokenIssuer {
        name: issuer.name.clone(),
        issuer: issuer.issuer.clone(),
        audiences: issuer.audiences.clone(),
        algorithms: issuer.algorithms.iter().map(|algorithm| algorithm_to_wire(*algorithm).into()).collect(),
        roles_claim: issuer.roles_claim.as_ref().map(ToString::to_string).unwrap_or_default(),
        attributes: issuer.attributes.iter().map(mapping).collect(),
        introspection: issuer.introspection.as_ref().map(issuer_keys::introspection_to_wire),
        require: requirements_to_wire(&issuer.require),
        ..proto::TokenIssuer::default()
    };
    issuer_keys::keys_to_wire(&issuer.keys, &mut wire);
    wire
}

fn issuer_from_wire(wire: &proto::TokenIssuer) -> Result<TokenIssuer> {
    let algorithm = |(index, value): (usize, &i32)| {
        let found = JwtAlgorithm::ALL.into_iter().find(|each| i32::from(algorithm_to_wire(*each)) == *value);
        found.ok_or_else(|| ConvertError::new(format!("algorithms[{index}]"), format!("unknown value {value}")))
    };
    let mut attributes = BTreeMap::new();
    for (index, mapping) in wire.attributes.iter().enumerate() {
        let path = format!("attributes[{index}]");
        let kind = type_from_wire(mapping.r#type).map_err(|error| error.within(&path))?;
        let mapped = ClaimMapping { claim: parsed(&format!("{path}.claim"), ClaimPath::parse(&mapping.claim))?, kind };
        if attributes.insert(text(&format!("{path}.attribute"), &mapping.attribute)?, mapped).is_some() {
            return Err(ConvertError::new(path, "the attribute stands twice"));
        }
    }
    Ok(TokenIssuer {
        name: text("name", &wire.name)?,
        issuer: text("issuer", &wire.issuer)?,
        audiences: filled("audiences", wire.audiences.clone())?,
        keys: issuer_keys::keys_from_wire(wire)?,
        introspection: wire.introspection.as_ref().map(issuer_keys::introspection_from_wire).transpose()?,
        algorithms: filled("algorithms", wire.algorithms.iter().enumerate().map(algorithm).collect::<Result<_>>()?)?,
        roles_claim: match wire.roles_claim.as_str() {
            "" => None,
            path => Some(parsed("roles_claim", ClaimPath::parse(path))?),
        },
        attributes,
        require: wire.require.as_ref().map(requirements_from_wire).transpose()?.unwrap_or_default(),
    })
}

const fn algorithm_to_wire(algorithm: JwtAlgorithm) -> proto::JwtAlgorithm {
    match algorithm {
        JwtAlgorithm::Rs256 => proto::JwtAlgorithm::Rs256,
        JwtAlgorithm::Rs384 => proto::JwtAlgorithm::Rs384,
        JwtAlgorithm::Rs512 => proto::JwtAlgorithm::Rs512,
        JwtAlgorithm::Ps256 => proto::JwtAlgorithm::Ps256,
        JwtAlgorithm::Ps384 => proto::JwtAlgorithm::Ps384,
        JwtAlgorithm::Ps512 => proto::JwtAlgorithm::Ps512,
        JwtAlgorithm::Es256 => proto::JwtAlgorithm::Es256,
        JwtAlgorithm::Es384 => proto::JwtAlgorithm::Es384,
        JwtAlgorithm::Es512 => proto::JwtAlgorithm::Es512,
        JwtAlgorithm::EdDsa => proto::JwtAlgorithm::Eddsa,
    }
}

const fn type_to_wire(kind: AttributeType) -> proto::AttributeType {
    match kind {
        AttributeType::Long => proto::AttributeType::Long,
        AttributeType::String => proto::AttributeType::String,
        AttributeType::Boolean => proto::AttributeType::Boolean,
        AttributeType::StringSet => proto::AttributeType::StringSet,
    }
}

fn type_from_wire(value: i32) -> Result<AttributeType> {
    match proto::AttributeType::try_from(value) {
        Ok(proto::AttributeType::Long) => Ok(AttributeType::Long),
        Ok(proto::AttributeType::String) => Ok(AttributeType::String),
        Ok(proto::AttributeType::Boolean) => Ok(AttributeType::Boolean),
        Ok(proto::AttributeType::StringSet) => Ok(AttributeType::StringSet),
        Ok(proto::AttributeType::Unspecified) | Err(_) => Err(ConvertError::new("type", format!("unknown value {value}"))),
    }
}

fn policy_to_wire(policy: &AuthorizationPolicy) -> proto::AuthorizationPolicy {
    let field =
        |(name, kind): (&String, &AttributeType)| proto::BodyField { name: name.clone(), r#type: type_to_wire(*kind).into() };
    proto::AuthorizationPolicy {
        name: policy.name.clone(),
        file: policy.file.clone(),
        line: policy.line,
        text: policy.text.clone(),
        body: policy.body.iter().map(field).collect(),
    }
}

fn policy_from_wire(wire: &proto::AuthorizationPolicy) -> Result<AuthorizationPolicy> {
    let mut body = BTreeMap::new();
    for (index, field) in wire.body.iter().enumerate() {
        let path = format!("body[{index}]");
        let kind = type_from_wire(field.r#type).map_err(|error| error.within(&path))?;
        if body.insert(text(&format!("{path}.name"), &field.name)?, kind).is_some() {
            return Err(ConvertError::new(path, "the field stands twice"));
        }
    }
    if wire.line == 0 {
        return Err(ConvertError::new("line", "0; lines count from 1"));
    }
    Ok(AuthorizationPolicy {
        name: text("name", &wire.name)?,
        file: wire.file.clone(),
        line: wire.line,
        text: wire.text.clone(),
        body,
    })
}

/// A trust bundle as it travels.
pub fn bundle_to_wire(bundle: &TrustBundle) -> proto::TrustBundle {
    proto::TrustBundle {
        trust_domain: bundle.trust_domain.to_string(),
        authorities: bundle.authorities.clone(),
        jwt_authorities: bundle.jwt_authorities.clone(),
        tainted: bundle.tainted.clone(),
    }
}

/// A trust bundle that was received.
///
/// # Errors
/// - [`ConvertError`] naming the field.
pub fn bundle_from_wire(wire: &proto::TrustBundle) -> Result<TrustBundle> {
    for (path, length) in [("jwt_authorities", wire.jwt_authorities.len()), ("tainted", wire.tainted.len())] {
        if length > BUNDLE_KEYS_MAX {
            return Err(ConvertError::new(path, format!("{length} entries, {BUNDLE_KEYS_MAX} at most")));
        }
    }
    Ok(TrustBundle {
        trust_domain: parsed("trust_domain", TrustDomain::parse(&wire.trust_domain))?,
        authorities: filled("authorities", wire.authorities.clone())?,
        jwt_authorities: wire.jwt_authorities.clone(),
        tainted: wire.tainted.clone(),
    })
}

fn revocations_to_wire(snapshot: &Snapshot) -> proto::Revocations {
    let svid = |each: &RevokedSvid| proto::RevokedSvid { serial: each.serial.clone(), until_ms: each.until.millis() };
    let tokens = snapshot.revoked_tokens.iter().map(token::revoked_to_wire).collect();
    proto::Revocations { svids: snapshot.revoked.iter().map(svid).collect(), tokens }
}

fn revocations_from_wire(wire: &proto::Revocations) -> Result<(Vec<RevokedSvid>, Vec<RevokedTokens>)> {
    if wire.svids.len() > REVOKED_MAX {
        return Err(ConvertError::new("svids", format!("{} entries, {REVOKED_MAX} at most", wire.svids.len())));
    }
    let svid = |(index, each): (usize, &proto::RevokedSvid)| {
        let is_digit = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        let is_serial = (1..=SERIAL_DIGITS_MAX).contains(&each.serial.len()) && each.serial.bytes().all(is_digit);
        if !is_serial {
            return Err(ConvertError::new(format!("svids[{index}].serial"), "not a serial number in lower-case hexadecimal"));
        }
        Ok(RevokedSvid { serial: each.serial.clone(), until: Timestamp::from_millis(each.until_ms) })
    };
    let svids = wire.svids.iter().enumerate().map(svid).collect::<Result<Vec<_>>>()?;
    let tokens = token::revoked_from_wire(&wire.tokens)?;
    // Nothing revoked has no resource, so that equal snapshots are equal values.
    let svids = if tokens.is_empty() { filled("svids", svids)? } else { svids };
    Ok((svids, tokens))
}
