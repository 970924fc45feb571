//! From documents to a mesh: every reference resolved, every value in range, every policy compiled. Reports all errors at once.

use crate::certificates;
use crate::compiles::{Checked, policies_compile};
use crate::error::{ConfigError, RESOURCE, SELECTS_NOBODY, suggestion};
use crate::keys;
use crate::mesh::{Mesh, Process, SelectedPolicy, Settings, Workload};
use crate::source::{Document, Source, documents};
use crate::tokens;
use crate::workload;
use crate::yaml::{self, IssuerSpec, MeshSpec, PolicySpec, ProcessSpec, Resource, Written, at};
use model::authz::AttributeType;
use model::ids;
use model::snapshot::{AuthorizationPolicy, ClaimMapping, CountryHeader, Egress, JwtAlgorithm, Protocol, Sensitive, TokenIssuer};
use model::{Limit, Limits, ServiceName, SpiffeId, TrustDomain, WorkloadName};
use serde_saphyr::{Location, Spanned};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// Errors that are reported; a file with more has one cause.
const ERRORS_MAX: usize = 100;
const HOUR: Duration = Duration::from_secs(3600);

/// The errors so far. Checking goes on after one, so that a user mends them all at once.
#[derive(Default)]
pub(crate) struct Errors(Vec<ConfigError>);

impl Errors {
    pub(crate) fn at(&mut self, document: Document<'_>, location: Location, message: impl Display) {
        self.push(at(document, location, message.to_string()));
    }

    fn push(&mut self, error: ConfigError) {
        if self.0.len() < ERRORS_MAX {
            self.0.push(error);
        }
    }

    pub(crate) fn all(&mut self, found: impl Iterator<Item = ConfigError>) {
        self.0.extend(found);
    }

    /// The value, or `None` and one more error.
    pub(crate) fn take<T, E: Display>(&mut self, document: Document<'_>, location: Location, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|error| self.at(document, location, error)).ok()
    }
}

/// Reads the sources as one mesh.
///
/// # Errors
/// - every [`ConfigError`] that was found, at most 100, in the order of the files; never empty.
pub fn parse(sources: &[Source]) -> Result<Mesh, Vec<ConfigError>> {
    parse_again(sources, &mut Checked::default())
}

/// The same for whoever reads again and again: policies that `checked` knows to be sound are not compiled once more.
///
/// # Errors
/// - as [`parse`].
pub fn parse_again(sources: &[Source], checked: &mut Checked) -> Result<Mesh, Vec<ConfigError>> {
    let mut errors = Errors(Vec::new());
    let mut resources = Vec::new();
    for document in sources.iter().flat_map(documents) {
        match yaml::resource(document) {
            Ok(resource) => resources.push(resource),
            Err(error) => errors.0.push(error),
        }
    }
    names_are_unique(&resources, &mut errors);
    let mesh = build(&resources, sources, &mut errors);
    if let Some(mesh) = &mesh
        && errors.0.is_empty()
    {
        policies_compile(mesh, checked, &mut errors);
    }
    errors.0.sort_by(|one, other| (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column)));
    errors.0.dedup();
    errors.0.truncate(ERRORS_MAX);
    match mesh {
        Some(mesh) if errors.0.is_empty() => Ok(mesh),
        Some(_) | None => Err(errors.0),
    }
}

fn build(resources: &[Resource<'_>], sources: &[Source], errors: &mut Errors) -> Option<Mesh> {
    let settings = the_mesh(resources, sources, errors)?;
    let (settings, spec) = settings_of(settings, errors)?;
    let domain = settings.trust_domain.clone();
    let mut mesh = Mesh { settings, workloads: Vec::new(), issuers: Vec::new(), policies: Vec::new() };
    for resource in resources {
        match resource {
            Resource::Mesh(_) => {}
            Resource::Workload(written) => mesh.workloads.extend(workload::workload(written, &domain, errors)),
            Resource::Authentication(_) | Resource::Issuer(_) => {}
            Resource::Policy(written) => mesh.policies.extend(policy(written, errors)),
        }
    }
    mesh.workloads.sort_by(|one, other| one.name.cmp(&other.name));
    let mut said = BTreeMap::new();
    for resource in resources {
        match resource {
            Resource::Authentication(written) => workload::authenticate(&mut mesh, written, &mut said, errors),
            Resource::Issuer(written) => {
                let hidden = written.spec.claims.attributes.iter().filter(|(_, claim)| claim.sensitive);
                mesh.settings.sensitive_attributes.extend(hidden.map(|(attribute, _)| attribute.clone()));
                mesh.issuers.extend(issuer(written, &mesh.workloads, errors));
            }
            Resource::Mesh(_) | Resource::Workload(_) | Resource::Policy(_) => {}
        }
    }
    mesh.issuers.sort_by(|one, other| one.name.cmp(&other.name));
    references(&mesh, resources, errors);
    issuers_agree(&mesh, resources, errors);
    keys::references(&mesh, resources, errors);
    let (document, spec) = spec;
    if let Some(country) = &spec.country {
        mesh.settings.country = country_header(&mesh, document, country, errors);
        let database = country.value.database.as_ref();
        mesh.settings.country_database = database.and_then(|file| keys::absolute(document, file, errors));
    }
    mesh.settings.forwarders = identities(&mesh, document, &spec.forwarders, errors);
    Some(mesh)
}

/// The one `MeshConfig`.
fn the_mesh<'a, 'b>(resources: &'b [Resource<'a>], sources: &[Source], errors: &mut Errors) -> Option<&'b Written<'a, MeshSpec>> {
    let mut found = resources.iter().filter_map(|resource| match resource {
        Resource::Mesh(written) => Some(written.as_ref()),
        Resource::Workload(_) | Resource::Issuer(_) | Resource::Policy(_) | Resource::Authentication(_) => None,
    });
    let first = found.next();
    for other in found {
        errors.at(other.document, other.metadata.name.defined, "a second `MeshConfig`; a mesh has one");
    }
    if first.is_none() && errors.0.is_empty() {
        let file = sources.first().map_or_else(|| ".".to_owned(), |source| source.file.clone());
        errors.0.push(ConfigError {
            file,
            line: 1,
            column: 1,
            message: "no `MeshConfig` in any file; it names the trust domain".to_owned(),
            code: RESOURCE,
        });
    }
    first
}

/// A kind and a name stand once.
fn names_are_unique(resources: &[Resource<'_>], errors: &mut Errors) {
    let mut seen: BTreeMap<(&str, String), String> = BTreeMap::new();
    for resource in resources {
        let (kind, metadata, document) = match resource {
            Resource::Mesh(written) => ("MeshConfig", &written.metadata, written.document),
            Resource::Workload(written) => ("Workload", &written.metadata, written.document),
            Resource::Issuer(written) => ("TokenIssuer", &written.metadata, written.document),
            Resource::Policy(written) => ("AuthorizationPolicy", &written.metadata, written.document),
            Resource::Authentication(written) => ("PeerAuthentication", &written.metadata, written.document),
        };
        let namespace = metadata.namespace.as_ref().map_or("", |namespace| namespace.value.as_str());
        let name = format!("{namespace}/{}", metadata.name.value);
        let place = at(document, metadata.name.defined, String::new());
        let place = format!("{}:{}", place.file, place.line);
        if let Some(first) = seen.insert((kind, name), place) {
            let message =
                format!("a second `{kind}` of the name `{}`; the first stands at {first}", ids::printable(&metadata.name.value));
            errors.at(document, metadata.name.defined, message);
        }
        if namespace.is_empty() && matches!(kind, "Workload" | "AuthorizationPolicy" | "PeerAuthentication") {
            errors.at(document, metadata.name.defined, format!("`{kind}` needs `metadata.namespace`"));
        }
        if !namespace.is_empty() && matches!(kind, "MeshConfig" | "TokenIssuer") {
            errors.at(document, metadata.name.defined, format!("a `{kind}` is for the whole mesh: remove `metadata.namespace`"));
        }
    }
}

/// What can be resolved only when all workloads are known.
type Unresolved<'a, 'b> = (Document<'a>, &'b MeshSpec);

fn settings_of<'a, 'b>(written: &'b Written<'a, MeshSpec>, errors: &mut Errors) -> Option<(Settings, Unresolved<'a, 'b>)> {
    let (document, spec) = (written.document, &written.spec);
    let trust_domain = errors.take(document, spec.trust_domain.defined, TrustDomain::parse(&spec.trust_domain.value));
    let written_certificates = &spec.certificates;
    let svid = ranged(document, written_certificates.lifetime.as_ref(), HOUR, (Duration::from_secs(10), 24 * HOUR), errors);
    let authority = ranged(
        document,
        written_certificates.authority_lifetime.as_ref(),
        87_600 * HOUR,
        (Duration::from_secs(20), 30 * 8766 * HOUR),
        errors,
    );
    let age = ranged(document, written_certificates.connection_age.as_ref(), svid / 2, (Duration::from_secs(1), svid), errors);
    if authority < svid * 2 {
        let place = written_certificates.authority_lifetime.as_ref().map_or(spec.trust_domain.defined, |written| written.defined);
        errors.at(document, place, "the authority must live at least twice as long as the certificates that it issues");
    }
    let mut limits = Limits::default();
    for (name, value) in &spec.limits {
        match Limit::named(name) {
            Some(limit) => {
                errors.take(document, value.defined, limits.set(limit, value.value));
            }
            None => {
                let near = suggestion(name, Limit::ALL.map(Limit::name));
                errors.at(document, value.defined, format!("no limit `{}`{near}", ids::printable(name)));
            }
        }
    }
    let egress = egress(document, spec.egress.as_ref(), errors);
    let federation = certificates::federation(document, &spec.federation, trust_domain.as_ref(), errors);
    let processes = spec.processes.iter().filter_map(|each| process(document, each, errors)).collect();
    let settings = Settings {
        name: written.metadata.name.value.clone(),
        trust_domain: trust_domain?,
        svid_lifetime: svid,
        authority_lifetime: authority,
        upstream: certificates::upstream_authority(document, written_certificates.upstream.as_ref(), errors),
        post_quantum_required: certificates::post_quantum(document, written_certificates.post_quantum.as_ref(), errors),
        federation,
        bundle_endpoint: certificates::bundle_endpoint(document, spec.bundle_endpoint.as_ref(), errors),
        connection_age_max: age,
        country: None,
        country_database: None,
        roles: crate::roles::roles(document, &spec.roles, errors),
        forwarders: Vec::new(),
        egress,
        sensitive_attributes: BTreeSet::new(),
        limits,
        processes,
    };
    Some((settings, (document, spec)))
}

fn process(document: Document<'_>, spec: &ProcessSpec, errors: &mut Errors) -> Option<Process> {
    errors.take(document, spec.name.defined, ids::label(&spec.name.value))?;
    command(document, &spec.command, errors)?;
    Some(Process { name: spec.name.value.clone(), command: spec.command.value.clone(), environment: spec.environment.clone() })
}

pub(crate) fn command(document: Document<'_>, command: &Spanned<Vec<String>>, errors: &mut Errors) -> Option<()> {
    let is_good = command.value.first().is_some_and(|program| !program.is_empty());
    if !is_good {
        errors.at(document, command.defined, "a command needs at least the program's name");
    }
    is_good.then_some(())
}

/// A duration within a range, or the default.
pub(crate) fn ranged(
    document: Document<'_>,
    written: Option<&Spanned<String>>,
    default: Duration,
    (least, most): (Duration, Duration),
    errors: &mut Errors,
) -> Duration {
    let Some(written) = written else { return default };
    match duration(&written.value) {
        Some(value) if value >= least && value <= most => value,
        Some(_) => {
            let range = format!("{} s to {} s", least.as_secs(), most.as_secs());
            errors.at(document, written.defined, format!("`{}` is outside {range}", ids::printable(&written.value)));
            default
        }
        None => {
            errors.at(
                document,
                written.defined,
                format!("`{}` is not a duration: write `30s`, `10m`, `1h` or `30d`", ids::printable(&written.value)),
            );
            default
        }
    }
}

/// `500ms`, `30s`, `10m`, `1h`: a whole number and one unit.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn country_header(
    mesh: &Mesh,
    document: Document<'_>,
    written: &Spanned<yaml::Country>,
    errors: &mut Errors,
) -> Option<CountryHeader> {
    let country = &written.value;
    let Some(named) = &country.header else {
        if !country.trusted.is_empty() {
            errors.at(document, written.defined, "`trusted` without `header`: the header in which they say the country");
        } else if country.database.is_none() {
            errors.at(document, written.defined, "`country` says nothing: write `header` with `trusted`, or `database`");
        }
        return None;
    };
    if country.trusted.is_empty() {
        errors.at(document, named.defined, "`header` without `trusted`: the services whose word is taken");
    }
    let header = named.value.to_ascii_lowercase();
    let is_token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if header.is_empty() || !header.bytes().all(is_token) || header.starts_with("x-rondel-") {
        errors.at(document, named.defined, format!("`{}` cannot be the header of the country", ids::printable(&header)));
    }
    let trusted = identities(mesh, document, &country.trusted, errors);
    Some(CountryHeader { header, trusted })
}

/// The identities of the workloads of these services.
fn identities(mesh: &Mesh, document: Document<'_>, services: &[Spanned<String>], errors: &mut Errors) -> Vec<SpiffeId> {
    let mut found = Vec::new();
    for name in services {
        let Some(service) = errors.take(document, name.defined, ServiceName::parse(&name.value)) else { continue };
        match mesh.workloads.iter().find(|workload| workload.service == service) {
            Some(workload) => found.push(workload.identity.clone()),
            None => errors.at(document, name.defined, no_service(mesh, &service)),
        }
    }
    found
}

fn egress(document: Document<'_>, written: Option<&Spanned<String>>, errors: &mut Errors) -> Egress {
    match written.map(|written| (written, written.value.as_str())) {
        None | Some((_, "allow")) => Egress::Allow,
        Some((_, "refuse")) => Egress::Refuse,
        Some((written, other)) => {
            let message = format!("egress `{}` is not one of `allow` and `refuse`", ids::printable(other));
            errors.at(document, written.defined, message);
            Egress::Refuse
        }
    }
}

pub(crate) fn no_service(mesh: &Mesh, service: &ServiceName) -> String {
    let near = suggestion(service.as_str(), mesh.workloads.iter().map(|workload| workload.service.as_str()));
    format!("no workload of service `{service}`{near}")
}

pub(crate) fn address(document: Document<'_>, written: &Spanned<String>, errors: &mut Errors) -> Option<SocketAddr> {
    let parsed = SocketAddr::from_str(&written.value).ok().filter(|address| address.port() != 0);
    if parsed.is_none() {
        let message = format!(
            "`{}` is not an address with a port, such as `127.0.0.1:8080` or `[::1]:8080`",
            ids::printable(&written.value)
        );
        errors.at(document, written.defined, message);
    }
    parsed
}

pub(crate) fn loopback(document: Document<'_>, written: &Spanned<String>, why: &str, errors: &mut Errors) -> Option<SocketAddr> {
    let parsed = address(document, written, errors)?;
    if !parsed.ip().is_loopback() {
        errors.at(document, written.defined, format!("`{parsed}` must be a loopback address: {why}"));
        return None;
    }
    Some(parsed)
}

/// The declared protocol; none declared means that it is detected.
pub(crate) fn protocol(document: Document<'_>, written: Option<&Spanned<String>>, errors: &mut Errors) -> Option<Protocol> {
    let Some(written) = written else { return Some(Protocol::Detect) };
    match written.value.as_str() {
        "http" => Some(Protocol::Http),
        "tcp" => Some(Protocol::Tcp),
        other => {
            let message = format!(
                "protocol `{}` is not one of `http` (HTTP/1.1, HTTP/2, gRPC) and `tcp`; left out, it is detected",
                ids::printable(other)
            );
            errors.at(document, written.defined, message);
            None
        }
    }
}

fn issuer(written: &Written<'_, IssuerSpec>, workloads: &[Workload], errors: &mut Errors) -> Option<TokenIssuer> {
    let (document, spec, name) = (written.document, &written.spec, &written.metadata.name);
    errors.take(document, name.defined, ids::label(&name.value));
    if spec.audiences.value.is_empty() || spec.audiences.value.iter().any(String::is_empty) {
        errors.at(
            document,
            spec.audiences.defined,
            "`audiences` needs at least one audience: without it a token for anybody would do",
        );
    }
    let (iss, keys) = keys::source(written, workloads, errors)?;
    let introspection = keys::introspection(written, &keys, errors);
    let mut algorithms = Vec::new();
    match &spec.algorithms {
        // SPIFFE JWT-SVID §2.1.
        None if spec.jwt_svid.is_some() => {
            algorithms.extend(JwtAlgorithm::ALL.into_iter().filter(|each| *each != JwtAlgorithm::EdDsa));
        }
        None => algorithms.extend(JwtAlgorithm::ALL),
        Some(written) if written.value.is_empty() => {
            errors.at(document, written.defined, "`algorithms` is empty; leave it out for all")
        }
        Some(written) => {
            for each in &written.value {
                match JwtAlgorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == each.value) {
                    Some(JwtAlgorithm::EdDsa) if spec.jwt_svid.is_some() => {
                        let message = "`EdDSA` beside `jwtSvid`: no JWT-SVID is signed by it (SPIFFE JWT-SVID §2.1); remove it";
                        errors.at(document, each.defined, message);
                    }
                    Some(algorithm) => algorithms.push(algorithm),
                    None => {
                        let known = JwtAlgorithm::ALL.map(JwtAlgorithm::as_str);
                        let near = suggestion(&each.value, known);
                        let message =
                            format!("algorithm `{}` is not one of {}{near}", ids::printable(&each.value), known.join(", "));
                        errors.at(document, each.defined, message);
                    }
                }
            }
        }
    }
    let mut attributes = BTreeMap::new();
    for (attribute, claim) in &spec.claims.attributes {
        if matches!(attribute.as_str(), "issuer" | "subject" | "scopes") || !tokens::is_identifier(attribute) {
            errors.at(document, claim.kind.defined, format!("`{}` cannot be an attribute's name", ids::printable(attribute)));
        }
        let path = tokens::path(document, claim.claim.defined, &claim.claim.value, errors);
        if let (Some(kind), Some(claim)) = (attribute_type(document, claim.kind.defined, &claim.kind.value, errors), path) {
            attributes.insert(attribute.clone(), ClaimMapping { claim, kind });
        }
    }
    Some(TokenIssuer {
        name: name.value.clone(),
        issuer: iss,
        audiences: spec.audiences.value.clone(),
        keys,
        introspection,
        algorithms,
        roles_claim: spec.claims.roles.as_ref().and_then(|path| tokens::path(document, path.defined, &path.value, errors)),
        attributes,
        require: tokens::requirements(document, spec, errors),
    })
}

fn attribute_type(document: Document<'_>, place: Location, written: &str, errors: &mut Errors) -> Option<AttributeType> {
    let found = AttributeType::ALL.into_iter().find(|kind| kind.as_str() == written);
    if found.is_none() {
        let known = AttributeType::ALL.map(AttributeType::as_str);
        let near = suggestion(written, known);
        errors.at(document, place, format!("type `{}` is not one of {}{near}", ids::printable(written), known.join(", ")));
    }
    found
}

fn policy(written: &Written<'_, PolicySpec>, errors: &mut Errors) -> Option<SelectedPolicy> {
    let (document, spec, name) = (written.document, &written.spec, &written.metadata.name);
    let namespace = written.metadata.namespace.as_ref()?;
    let named = errors.take(document, name.defined, WorkloadName::new(&namespace.value, &name.value))?;
    if let Some(selector) = &spec.selector {
        errors.take(document, selector.account.defined, ids::label(&selector.account.value));
    }
    let mut body = BTreeMap::new();
    for (field, written) in &spec.body {
        if !tokens::is_identifier(field) {
            errors.at(
                document,
                written.defined,
                format!(
                    "`{}` cannot be a field's name: fields are those at the top of the body, of letters, digits and `_`",
                    ids::printable(field)
                ),
            );
        }
        if let Some(kind) = attribute_type(document, written.defined, &written.value.kind, errors) {
            body.insert(field.clone(), kind);
        }
    }
    for (header, written) in &spec.headers {
        if *header != header.to_ascii_lowercase() || !spec.policies.value.contains(header.as_str()) {
            let message = format!("no policy of this resource reads the header `{}`", ids::printable(header));
            errors.at(document, written.defined, message);
        }
    }
    let hidden = |field: &(&String, &Spanned<yaml::FieldSpec>)| field.1.value.sensitive;
    let sensitive = Sensitive {
        body: spec.body.iter().filter(hidden).map(|(field, _)| field.clone()).collect(),
        headers: spec.headers.iter().filter(|(_, written)| written.value.sensitive).map(|(header, _)| header.clone()).collect(),
        user: BTreeSet::new(),
    };
    Some(SelectedPolicy {
        namespace: namespace.value.clone(),
        account: spec.selector.as_ref().map(|selector| selector.account.value.clone()),
        is_shadow: is_shadow(document, spec.mode.as_ref(), errors)?,
        sensitive,
        policy: AuthorizationPolicy {
            name: named.to_string(),
            file: document.file.to_owned(),
            line: text_line(document, spec.policies.defined),
            text: spec.policies.value.clone(),
            body,
        },
    })
}

/// What `mode` says; a policy without one is enforced.
fn is_shadow(document: Document<'_>, written: Option<&Spanned<String>>, errors: &mut Errors) -> Option<bool> {
    let Some(written) = written else { return Some(false) };
    match written.value.as_str() {
        "enforce" => Some(false),
        "shadow" => Some(true),
        other => {
            let near = suggestion(other, ["enforce", "shadow"]);
            let message = format!("mode `{}` is not one of `enforce` and `shadow`{near}", ids::printable(other));
            errors.at(document, written.defined, message);
            None
        }
    }
}

/// The line of the file on which a text begins: a block scalar's text begins below its indicator.
fn text_line(document: Document<'_>, location: Location) -> u32 {
    let line = at(document, location, String::new()).line;
    let row = usize::try_from(line - document.lines_before).unwrap_or(1).saturating_sub(1);
    let written = document.text.lines().nth(row).unwrap_or_default();
    let indicator = written.split_once("policies:").map_or("", |(_, rest)| rest.trim_start());
    if indicator.starts_with(['|', '>']) { line + 1 } else { line }
}

/// Upstreams lead to services that exist and carry the protocol, selectors select somebody, and no address is used twice.
fn references(mesh: &Mesh, resources: &[Resource<'_>], errors: &mut Errors) {
    let mut taken = workload::Taken::new();
    for resource in resources {
        match resource {
            Resource::Workload(written) => workload::references(mesh, written, &mut taken, errors),
            Resource::Policy(written) => {
                let (Some(namespace), Some(selector)) = (&written.metadata.namespace, &written.spec.selector) else { continue };
                let wanted = format!("{}/{}", namespace.value, selector.account.value);
                if !mesh.workloads.iter().any(|workload| workload.service.as_str() == wanted) {
                    let near = suggestion(&wanted, mesh.workloads.iter().map(|workload| workload.service.as_str()));
                    let message =
                        format!("the policy selects nobody: no workload of service `{}`{near}", ids::printable(&wanted));
                    let error = at(written.document, selector.account.defined, message);
                    errors.push(ConfigError { code: SELECTS_NOBODY, ..error });
                }
            }
            Resource::Mesh(_) | Resource::Issuer(_) | Resource::Authentication(_) => {}
        }
    }
}

/// Issuers are told apart by their `iss`, and an attribute has one type in the whole mesh.
fn issuers_agree(mesh: &Mesh, resources: &[Resource<'_>], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    let mut types: BTreeMap<&str, AttributeType> = BTreeMap::new();
    for resource in resources {
        let Resource::Issuer(written) = resource else { continue };
        let Some(built) = mesh.issuers.iter().find(|issuer| issuer.name == written.metadata.name.value) else { continue };
        if !seen.insert(built.issuer.as_str()) {
            let place = written.spec.issuer.as_ref().map_or(written.metadata.name.defined, |issuer| issuer.defined);
            errors.at(written.document, place, format!("a second `TokenIssuer` for `{}`", ids::printable(&built.issuer)));
        }
        for (attribute, mapping) in &built.attributes {
            let first = *types.entry(attribute).or_insert(mapping.kind);
            if first != mapping.kind {
                let message = format!(
                    "attribute `{attribute}` is `{}` here and `{}` at another issuer",
                    mapping.kind.as_str(),
                    first.as_str()
                );
                errors.at(written.document, written.metadata.name.defined, message);
            }
        }
    }
}
