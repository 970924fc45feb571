//! The life of one request, from top to bottom: first to the application ([`inbound`]), then from it ([`outbound`]).
//!
//! Nothing is registered elsewhere and nothing runs before or after by configuration. Each step is a plain call; a step that
//! refuses ends the request in [`reply::refuse`]. The access log line is written when the entry is dropped, exactly once.

use crate::authenticate;
use crate::body::{self, Body};
use crate::connection::Connection;
use crate::facts::{self, Facts, Hop};
use crate::reply::{self, Refusal};
use crate::response::{self, Received};
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::upgrade::Asked;
use crate::upstream;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use identity::handshake::VerifiedPeer;
use model::snapshot::CountryHeader;
use model::{AuthzRequest, Header, Source};
use policy::{BodyFacts, Permit};
use std::sync::Arc;

/// A request from a peer to the application beside this sidecar.
pub async fn inbound(request: Request<Incoming>, connection: Arc<Connection>) -> Response<Body> {
    let mut entry = Entry::begin(&connection.shared, "access", Direction::Inbound, connection.remote);
    entry.under_way = Some(connection.request_begins());
    match permitted(request, &connection, &mut entry).await {
        Ok(received) => response::finish(received, entry, &connection),
        Err(refusal) => {
            connection.shared.tell_refusal(&refusal, &entry);
            reply::refuse(&refusal, entry, &connection.realm())
        }
    }
}

/// The steps of an inbound request, in the order in which they happen.
async fn permitted(request: Request<Incoming>, connection: &Connection, entry: &mut Entry) -> Result<Received, Refusal> {
    let shared = &connection.shared;
    let now = entry.at();

    // One snapshot, taken once: the whole request is decided by one revision.
    let active = shared.active().ok_or(Refusal::NotReady)?;
    let listener = active.inbound_at(connection.local).ok_or(Refusal::NotReady)?;
    let principal = connection.principal().ok_or(Refusal::NotReady)?;
    entry.revision = active.snapshot.revision;
    entry.principal = Some(principal.clone());
    if !connection.may_speak(listener) {
        return Err(Refusal::Plaintext);
    }

    // What the request says, read once; what is decided is what is forwarded.
    let (mut head, incoming) = request.into_parts();
    entry.method = head.method.to_string();
    let facts = facts::collect(&head)?;
    entry.path.clone_from(&facts.path);
    entry.place = Some(shared.gate.enter(&active.snapshot.limits).await?);

    // Who it is for.
    let claims = authenticate::user(&head.headers, &active, shared, now).await?;
    let user = claims.map(|claims| Arc::clone(claims.user()));
    entry.user = user.as_ref().map(|user| user.subject.clone());

    // What it carries, if a policy asks.
    let (body, fields) = read_for_policy(&facts, &head, incoming, &active).await?;
    let (fields, body_note) = match fields {
        Some(BodyFacts::Fields(fields)) => (Some(fields), None),
        Some(BodyFacts::Absent { why }) => (None, Some(why)),
        None => (None, None),
    };

    // May it happen?
    let question = AuthzRequest {
        principal,
        user,
        action: facts.method.to_string(),
        resource: active.snapshot.service.clone(),
        path: facts.path.clone(),
        host: facts.host.clone(),
        headers: headers_for_policy(&facts, &head, &active),
        body: fields,
        body_note,
        source: Source { address: connection.remote.ip(), country: country(&active, connection, &head) },
        now,
    };
    let asked_again = facts.upgrade.is_some().then(|| question.clone());
    let permit = decide(question, &active, connection, entry)?;

    // On to the application, with the caller's identity as we verified it and none that the caller claimed.
    prepare(&mut head, &facts, Hop::Inbound)?;
    identify(&mut head, &active, connection, entry);
    let asked = Asked::prepare(facts.upgrade, &mut head, asked_again);
    frame(&mut head, &body);
    let request = Request::from_parts(head, body);
    entry.upstream = Some(listener.application.to_string());
    let sent = upstream::send_to_application(permit, request, listener.application, &active, &connection.worker).await;
    let (response, lease) = sent?;
    Ok(Received { response, lease, asked, active })
}

/// A request from the application beside this sidecar to an upstream.
pub async fn outbound(request: Request<Incoming>, connection: Arc<Connection>) -> Response<Body> {
    let mut entry = Entry::begin(&connection.shared, "access", Direction::Outbound, connection.remote);
    entry.under_way = Some(connection.request_begins());
    match sent(request, &connection, &mut entry).await {
        Ok(received) => response::finish(received, entry, &connection),
        Err(refusal) => {
            connection.shared.tell_refusal(&refusal, &entry);
            reply::refuse(&refusal, entry, &connection.realm())
        }
    }
}

/// The steps of an outbound request, in the order in which they happen.
async fn sent(request: Request<Incoming>, connection: &Connection, entry: &mut Entry) -> Result<Received, Refusal> {
    let shared = &connection.shared;
    let active = shared.active().ok_or(Refusal::NotReady)?;
    let called = active.upstream_at(connection.local).ok_or(Refusal::NotReady)?;
    entry.revision = active.snapshot.revision;
    entry.principal = Some(active.snapshot.identity.clone().into());
    entry.upstream = Some(called.upstream.service.to_string());

    let (mut head, incoming) = request.into_parts();
    entry.method = head.method.to_string();
    let facts = facts::collect(&head)?;
    entry.path.clone_from(&facts.path);

    prepare(&mut head, &facts, Hop::Outbound)?;
    let asked = Asked::prepare(facts.upgrade, &mut head, None);
    let body = Body::Streaming(incoming);
    frame(&mut head, &body);
    let request = Request::from_parts(head, body);
    let (response, lease) = upstream::send_to_peer(request, called, &active, shared, &connection.worker).await?;
    Ok(Received { response, lease, asked, active })
}

/// Reads the body if a policy that could apply to this method reads it; otherwise it streams through untouched.
async fn read_for_policy(
    facts: &Facts,
    head: &Parts,
    incoming: Incoming,
    active: &Active,
) -> Result<(Body, Option<BodyFacts>), Refusal> {
    let Some(declared) = active.policies.body_fields(facts.method.as_str()) else {
        return Ok((Body::Streaming(incoming), None));
    };
    let limits = &active.snapshot.limits;
    let (bytes, body) = body::hold(incoming, limits).await?;
    let text = |name: HeaderName| facts::only_value(&head.headers, &name);
    let content_type = text(http::header::CONTENT_TYPE);
    // Lines that are not one readable value are an encoding all the same.
    let coded = head.headers.contains_key(http::header::CONTENT_ENCODING);
    let content_encoding = text(http::header::CONTENT_ENCODING).or_else(|| coded.then(|| "unreadable".to_owned()));
    let depth = limits.size(model::Limit::PolicyBodyDepth);
    let read = policy::read_body(content_type.as_deref(), content_encoding.as_deref(), &bytes, declared, depth)?;
    Ok((body, Some(read)))
}

/// Reads the headers that policies which could apply to this method read, and no others.
fn headers_for_policy(facts: &Facts, head: &Parts, active: &Active) -> Vec<Header<'static>> {
    let names = active.policies.header_names(facts.method.as_str());
    facts::read_headers(&head.headers, names).into_iter().map(Header::into_owned).collect()
}

/// Asks the policies and tells the operator's records of it.
fn decide(question: AuthzRequest, active: &Arc<Active>, connection: &Connection, entry: &Entry) -> Result<Permit, Refusal> {
    let mut memory = connection.worker.decisions.lock();
    let question = question.as_question();
    let decided = policy::decide_remembering(&active.policies, &mut memory, &question, entry.decision, active.snapshot.revision);
    drop(memory);
    match decided {
        Ok(permit) => {
            connection.shared.tell_decision(permit.decision(), &question, active, None);
            Ok(permit)
        }
        Err(denied) => {
            let decision = denied.decision.clone();
            let refusal = Refusal::Denied(Box::new(denied));
            connection.shared.tell_decision(&decision, &question, active, Some(&refusal));
            Err(refusal)
        }
    }
}

/// The call's country: one value of the configured header, believed only from the configured callers.
fn country(active: &Active, connection: &Connection, head: &Parts) -> Option<String> {
    let CountryHeader { header, trusted } = active.snapshot.country.as_ref()?;
    let peer = connection.peer()?;
    let name = HeaderName::from_bytes(header.as_bytes()).ok()?;
    let value = trusted.contains(peer.id()).then(|| facts::only_value(&head.headers, &name))??;
    (value.len() == 2 && value.bytes().all(|b| b.is_ascii_uppercase())).then_some(value)
}

/// Makes the head ready for the next hop: the normalised path, no hop-by-hop headers, no identity that the caller claimed.
fn prepare(head: &mut Parts, facts: &Facts, hop: Hop) -> Result<(), Refusal> {
    facts::forward_headers(&mut head.headers, hop);
    head.uri = facts.target(head.version)?;
    if head.version != Version::HTTP_2 {
        // The next hop is spoken to as HTTP/1.1; hyper answers a 1.0 caller as 1.0 by itself.
        head.version = Version::HTTP_11;
        if let Ok(host) = HeaderValue::from_str(&facts.authority) {
            head.headers.insert(http::header::HOST, host);
        }
    }
    Ok(())
}

/// Says by which framing a body of unknown length goes on. The HTTP library would send none with a method that seldom has one.
fn frame(head: &mut Parts, body: &Body) {
    use http_body::Body as _;
    if head.version == Version::HTTP_11 && body.size_hint().exact().is_none() {
        head.headers.insert(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Tells the application who calls: set after everything of that name was removed.
fn identify(head: &mut Parts, active: &Active, connection: &Connection, entry: &Entry) {
    let snapshot = &active.snapshot;
    let caller = connection.peer().map(VerifiedPeer::id);
    let is_forwarder = caller.is_some_and(|id| snapshot.forwarders.contains(id));
    facts::forwarded_for(&mut head.headers, connection.remote.ip(), is_forwarder);
    let decision = entry.decision.to_string();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("x-rondel-decision", &decision);
    // A plaintext caller has no identity, and so its requests carry none.
    if let Some(peer) = connection.peer() {
        let own = &snapshot.identity;
        set("x-forwarded-client-cert", &format!("By={own};Hash={};URI={}", peer.fingerprint_sha256(), peer.id()));
        set("x-rondel-principal", peer.id().as_str());
    }
    if let Some(user) = &entry.user {
        set("x-rondel-user", user);
    }
    if let Some(CountryHeader { header, trusted }) = &snapshot.country
        && !caller.is_some_and(|id| trusted.contains(id))
    {
        // Some applications read `_` as `-`: the claim goes in either spelling.
        let claims: Vec<HeaderName> =
            head.headers.keys().filter(|name| name.as_str().replace('_', "-") == *header).cloned().collect();
        for name in claims {
            head.headers.remove(name);
        }
    }
}
