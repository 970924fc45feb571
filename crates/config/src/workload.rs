//! The workloads: what they are built from, and whether what they refer to exists.

use crate::build::{Errors, address, command, loopback, no_service, protocol};
use crate::error::suggestion;
use crate::keys;
use crate::mesh::{Call, Mesh, Process, Workload};
use crate::source::Document;
use crate::tokens;
use crate::yaml::{AuthenticationSpec, InboundSpec, UpstreamSpec, WorkloadSpec, Written};
use model::ids;
use model::snapshot::{Inbound, Protocol};
use model::{ServiceName, SpiffeId, TrustDomain, WorkloadName};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;

/// Builds one workload; whom its calls lead to is looked up when all are there.
pub(crate) fn workload(written: &Written<'_, WorkloadSpec>, domain: &TrustDomain, errors: &mut Errors) -> Option<Workload> {
    let (document, spec, name) = (written.document, &written.spec, &written.metadata.name);
    let namespace = written.metadata.namespace.as_ref()?;
    let account = spec.account.as_ref().unwrap_or(name);
    let named = errors.take(document, name.defined, WorkloadName::new(&namespace.value, &name.value));
    let service = errors.take(document, account.defined, ServiceName::new(&namespace.value, &account.value));
    let admin = loopback(document, &spec.admin, "it has no authentication", errors);
    let inbound = spec.inbound.iter().filter_map(|each| inbound(document, each, spec.captured, errors)).collect();
    let upstreams = spec.upstreams.iter().filter_map(|each| call(document, each, spec.captured, errors)).collect();
    let run = match &spec.run {
        Some(run) => command(document, &run.command, errors).map(|()| Process {
            name: name.value.clone(),
            command: run.command.value.clone(),
            environment: run.environment.clone(),
        }),
        None => None,
    };
    let issuers = spec.issuers.as_ref().map(|names| names.iter().map(|name| name.value.clone()).collect());
    let (named, service) = (named?, service?);
    let (space, account) = service.as_str().split_once('/')?;
    let identity: SpiffeId = errors.take(document, account_place(written), SpiffeId::workload(domain, space, account))?;
    let token = tokens::token_use(document, spec, errors);
    let admin = admin?;
    Some(Workload { name: named, identity, captured: spec.captured, admin, inbound, upstreams, issuers, token, run, service })
}

fn account_place(written: &Written<'_, WorkloadSpec>) -> Location {
    written.spec.account.as_ref().map_or(written.metadata.name.defined, |account| account.defined)
}

fn inbound(document: Document<'_>, spec: &InboundSpec, captured: bool, errors: &mut Errors) -> Option<Inbound> {
    let listen = address(document, &spec.listen, errors)?;
    let protocol = match as_in_a_service(spec) {
        Some(protocol) if spec.protocol.is_none() => protocol,
        _ => protocol(document, spec.protocol.as_ref(), errors)?,
    };
    let application = match &spec.application {
        Some(written) if captured => {
            let application = address(document, written, errors)?;
            if !application.ip().is_loopback() && application.ip() != listen.ip() {
                let message = format!("`{application}` is neither on loopback nor at the address of `listen`");
                errors.at(document, written.defined, message);
            }
            application
        }
        Some(written) => loopback(document, written, "the application must not be reachable around its sidecar", errors)?,
        // Nothing but the redirection stands between the two then.
        None if captured => listen,
        None => {
            let message = "`application` is missing: only a workload with `captured: true` may leave it out";
            errors.at(document, spec.listen.defined, message);
            return None;
        }
    };
    Some(Inbound { listen, application, protocol, permissive: false })
}

/// What a port is declared to carry in the words of a Kubernetes Service: by `appProtocol`, or else by its name up to the first hyphen.
/// Other words are anybody's there, and declare nothing.
fn as_in_a_service(spec: &InboundSpec) -> Option<Protocol> {
    let by_name = || declared(spec.name.as_ref()?.split('-').next()?);
    spec.app_protocol.as_deref().and_then(declared).or_else(by_name)
}

fn declared(word: &str) -> Option<Protocol> {
    match word {
        "http" | "http2" | "grpc" | "grpc-web" | "kubernetes.io/h2c" | "kubernetes.io/ws" => Some(Protocol::Http),
        // What is encrypted already is carried as it is.
        "tcp" | "tls" | "https" | "kubernetes.io/wss" | "mongo" | "mysql" | "redis" => Some(Protocol::Tcp),
        _ => None,
    }
}

fn call(document: Document<'_>, spec: &UpstreamSpec, captured: bool, errors: &mut Errors) -> Option<Call> {
    let service = errors.take(document, spec.service.defined, ServiceName::parse(&spec.service.value));
    let declared = match &spec.protocol {
        Some(written) => Some(protocol(document, Some(written), errors)?),
        None => None,
    };
    let listen = match &spec.listen {
        Some(written) if captured => Some(address(document, written, errors)?),
        Some(written) => Some(loopback(document, written, "whoever reaches it speaks with this workload's identity", errors)?),
        None if captured => None,
        None => {
            let message = "`listen` is missing: only a workload with `captured: true` may leave it out";
            errors.at(document, spec.service.defined, message);
            return None;
        }
    };
    Some(Call { service: service?, listen, port: spec.port.as_ref().map(|port| port.value), protocol: declared })
}

/// The addresses of a mesh, each of which belongs to one thing. Those on loopback are a captured workload's own.
pub(crate) type Taken = BTreeMap<(String, SocketAddr), String>;

/// The calls of a workload lead to ports that exist, and no address is used twice.
pub(crate) fn references(mesh: &Mesh, written: &Written<'_, WorkloadSpec>, taken: &mut Taken, errors: &mut Errors) {
    let (document, spec) = (written.document, &written.spec);
    let own = written.metadata.name.value.as_str();
    let mut take = |address: &Spanned<String>, is_local: bool, what: String, errors: &mut Errors| {
        let Ok(parsed) = SocketAddr::from_str(&address.value) else { return };
        let network = if spec.captured && (is_local || parsed.ip().is_loopback()) { own.to_owned() } else { String::new() };
        if let Some(other) = taken.insert((network, parsed), what.clone()) {
            errors.at(document, address.defined, format!("{parsed} ({what}) is used already: {other}"));
        }
    };
    take(&spec.admin, true, format!("admin port of {own}"), errors);
    for each in &spec.inbound {
        take(&each.listen, false, format!("inbound port of {own}"), errors);
    }
    keys::chosen(mesh, document, spec.issuers.as_deref().unwrap_or_default(), errors);
    for each in &spec.upstreams {
        if let Some(listen) = &each.listen {
            // A captured workload only looks the address up, so that others may mean the same service by it.
            take(listen, true, format!("port of {own} for {}", each.service.value), errors);
        }
        reachable(mesh, document, each, errors);
    }
}

fn reachable(mesh: &Mesh, document: Document<'_>, spec: &UpstreamSpec, errors: &mut Errors) {
    let Ok(service) = ServiceName::parse(&spec.service.value) else { return };
    let instances: Vec<&Workload> = mesh.workloads.iter().filter(|workload| workload.service == service).collect();
    if instances.is_empty() {
        errors.at(document, spec.service.defined, no_service(mesh, &service));
        return;
    }
    let declared = spec.protocol.as_ref().and_then(|written| protocol(document, Some(written), &mut Errors::default()));
    let port = spec.port.as_ref().map(|port| port.value);
    let call = Call { service: service.clone(), listen: None, port, protocol: declared };
    let mut found: Vec<&'static str> = instances
        .iter()
        .flat_map(|workload| workload.inbound.iter().filter(|inbound| call.reaches(inbound)))
        .map(|inbound| declared.unwrap_or(inbound.protocol).as_str())
        .collect();
    found.sort_unstable();
    found.dedup();
    let protocol = spec.protocol.as_ref().map(|written| format!(" with protocol `{}`", ids::printable(&written.value)));
    let port = port.map(|port| format!(" {port}")).unwrap_or_default();
    let place = spec.protocol.as_ref().map_or(spec.service.defined, |written| written.defined);
    if found.is_empty() {
        let message = format!("no workload of service `{service}` has an inbound port{port}{}", protocol.unwrap_or_default());
        errors.at(document, place, message);
    } else if let [_, _, ..] = found.as_slice()
        && let Some(listen) = &spec.listen
    {
        let message =
            format!("the ports of service `{service}` carry {}: write `port` or `protocol` to say which", found.join(" and "));
        errors.at(document, listen.defined, message);
    }
}

/// Applies a `PeerAuthentication` to the ports that it selects.
pub(crate) fn authenticate(
    mesh: &mut Mesh,
    written: &Written<'_, AuthenticationSpec>,
    said: &mut BTreeMap<SocketAddr, String>,
    errors: &mut Errors,
) {
    let (document, spec) = (written.document, &written.spec);
    let Some(namespace) = &written.metadata.namespace else { return };
    let name = format!("{}/{}", namespace.value, written.metadata.name.value);
    let permissive = match spec.mode.value.as_str() {
        "strict" => false,
        "permissive" => true,
        other => {
            let near = suggestion(other, ["strict", "permissive"]);
            let message = format!("mode `{}` is not one of `strict` and `permissive`{near}", ids::printable(other));
            errors.at(document, spec.mode.defined, message);
            return;
        }
    };
    let wanted = |workload: &&mut Workload| {
        let Some((space, account)) = workload.service.as_str().split_once('/') else { return false };
        space == namespace.value && spec.selector.as_ref().is_none_or(|selector| selector.account.value == account)
    };
    let mut selected = Vec::new();
    for workload in mesh.workloads.iter_mut().filter(wanted) {
        let ports = spec.ports.as_ref().map(|ports| &ports.value);
        let is_named =
            |inbound: &&mut Inbound| ports.is_none_or(|ports| ports.iter().any(|port| port.value == inbound.listen.port()));
        for inbound in workload.inbound.iter_mut().filter(is_named) {
            if let Some(other) = said.insert(inbound.listen, name.clone()) {
                let message = format!("`PeerAuthentication` {other} speaks of port {} already", inbound.listen);
                errors.at(document, written.metadata.name.defined, message);
            }
            inbound.permissive = permissive;
            selected.push(inbound.listen.port());
        }
    }
    let missing = spec.ports.iter().flat_map(|ports| &ports.value).filter(|port| !selected.contains(&port.value));
    for port in missing {
        errors.at(document, port.defined, format!("no selected workload has an inbound port {}", port.value));
    }
    if selected.is_empty() && spec.ports.is_none() {
        let place = spec.selector.as_ref().map_or(written.metadata.name.defined, |selector| selector.account.defined);
        errors.at(document, place, "it selects nobody: no such workload has an inbound port");
    }
}
