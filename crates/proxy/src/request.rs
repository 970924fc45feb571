//! The life of one request, from top to bottom: [`answer`], and in it to the application ([`inbound`]) or from it ([`outbound`]).
//!
//! Nothing is registered elsewhere and nothing runs before or after by configuration. Each step is a plain call; a step that
//! refuses ends the request in [`reply::refuse`]. The access log line is written when the entry is dropped, exactly once.

use crate::authenticate::{self, Authenticated};
use crate::body;
use crate::connection::Connection;
use crate::country::Origin;
use crate::exchange::{Downstream, Exchange, Upload};
use crate::facts::{self, Facts, Hop};
use crate::reply::{self, Refusal};
use crate::response::{self, Received};
use crate::shadow::{Pending, Trial};
use crate::standing::{Admitted, Standing};
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::tunnel::LetIn;
use crate::upgrade::{self, Asked, Switched};
use crate::upstream;
use identity::handshake::VerifiedPeer;
use message::{Head, Version};
use model::snapshot::CountryHeader;
use model::{Decision, Question};
use policy::{BodyFacts, Permit};
use std::pin::pin;
use std::sync::Arc;

/// One request of a connection. Never fails: a refusal is an answer. What it gives is a connection that speaks another protocol now.
pub async fn answer(exchange: &mut Exchange, down: &mut Downstream<'_>, connection: &Arc<Connection>) -> Option<Switched> {
    let mut entry = Entry::begin(&connection.shared, "access", connection.direction(), connection.remote);
    entry.under_way = Some(connection.request_begins());
    entry.note_method(&exchange.request.method);

    // There.
    let received = match connection.direction() {
        Direction::Inbound => inbound(exchange, down, connection, &mut entry).await,
        Direction::Outbound => outbound(exchange, down, connection, &mut entry).await,
    };
    let received = match received {
        Ok(Some(received)) => received,
        Ok(None) => return None,
        Err(refusal) => {
            connection.shared.tell_refusal(&refusal, &entry);
            let form = reply::Form::of(&exchange.request);
            Box::pin(reply::refuse(refusal, form, entry, down, connection)).await;
            return None;
        }
    };

    // And back.
    if let Some(granted) = response::prepare(&received, &mut exchange.answer, &mut entry, connection) {
        return Box::pin(upgrade::grant(granted, received, &mut exchange.answer, down, entry, connection)).await;
    }
    response::carry(received, exchange, down, &mut entry, connection).await;
    None
}

/// A request from a peer to the application beside this sidecar: the steps, in the order in which they happen. `None`: it was
/// answered here.
async fn inbound(
    exchange: &mut Exchange,
    down: &mut Downstream<'_>,
    connection: &Connection,
    entry: &mut Entry,
) -> Result<Option<Received>, Refusal> {
    // One snapshot, taken once: the whole request is decided by one revision.
    let generation = connection.shared.generation();
    let active = connection.shared.active().ok_or(Refusal::NotReady)?;
    let listener = active.inbound_at(connection.local).ok_or(Refusal::NotReady)?;
    let principal = connection.principal().ok_or(Refusal::NotReady)?;
    entry.note_caller(active.snapshot.revision, &principal, connection.key_exchange());
    connection.may_speak(listener).then_some(()).ok_or(Refusal::Plaintext)?;

    // What the request says, read once; what is decided is what is forwarded.
    let Exchange { request, facts, answer } = exchange;
    facts.collect(request)?;
    entry.path.clone_from(&facts.path);
    entry.place = Some(connection.shared.gate.enter(&active.snapshot.limits).await?);

    // Whoever asks is told which tokens are wanted.
    if let Some(document) = active.resource.as_ref().filter(|_| facts.is_read()).and_then(|own| own.document_at(&facts.path)) {
        return Ok(Box::pin(reply::document(document, entry, down)).await);
    }

    // Who it is for, by a token that is the caller's own.
    let authenticated = authenticate::user(request, facts, &active, connection, entry.at()).await?;
    entry.user = authenticated.as_ref().map(|authenticated| Arc::clone(authenticated.claims.user()));

    // What it carries, if a policy asks.
    let (mut upload, carried) = read_for_policy(facts, request, down, &active).await?;
    let (body, body_note) = body::seen(carried.as_ref());

    // May it happen?
    let headers = facts::read_headers(&request.fields, active.header_names(facts.method.as_str()));
    let question = Question {
        principal: &principal,
        user: entry.user.as_ref(),
        action: facts.method.as_str(),
        resource: &active.snapshot.service,
        path: &facts.path,
        host: &facts.host,
        headers: &headers,
        body,
        body_note,
        address: connection.remote.ip(),
        country: Origin::of_request(&active, connection, request).country(&active, connection, facts.method.as_str()),
        now: entry.at(),
    };
    let asked_again = facts.upgrade.is_some().then(|| LetIn::of(&question, Origin::of_request(&active, connection, request)));
    let trial = Trial::of(&active, facts, request, &mut upload);
    let (permit, shadow) = decide(&question, trial, request, &active, connection, entry)?;
    let admitted = Admitted::of(generation).with(carried, authenticated.as_ref());
    body::go_ahead(down, request).await;

    // On to the application, with the caller's identity as we verified it and none that the caller claimed.
    authenticate::strip(&mut request.fields, facts, &active.snapshot.token);
    prepare(request, facts, Hop::Inbound);
    identify(request, &active, connection, entry, authenticated.as_ref());
    let asked = Asked::prepare(facts.upgrade.take(), request, asked_again);
    entry.upstream = Some(listener.application.into());
    let mut sending = upstream::Sending { request, facts, answer, down, upload, active: &active, interim: 0 };
    let sent = {
        let sending = pin!(upstream::send_to_application(permit, &mut sending, listener.application, &connection.worker));
        let held = Standing::of(connection, request, facts, entry, Some(&admitted)).hold(sending).await;
        held.map_err(|ended| entry.denied_again(*ended))??
    };
    let nonce = authenticated.and_then(Authenticated::into_nonce);
    Ok(Some(Received { sent, asked, nonce, active, shadow, admitted: Some(admitted) }))
}

/// A request from the application beside this sidecar to an upstream: the steps, in the order in which they happen.
async fn outbound(
    exchange: &mut Exchange,
    down: &mut Downstream<'_>,
    connection: &Connection,
    entry: &mut Entry,
) -> Result<Option<Received>, Refusal> {
    let shared = &connection.shared;
    let active = shared.active().ok_or(Refusal::NotReady)?;
    let called = active.upstream_at(connection.local).ok_or(Refusal::NotReady)?;
    entry.revision = active.snapshot.revision;
    entry.principal = Some(active.principal.clone());
    entry.upstream = Some((&called.upstream.service).into());

    let Exchange { request, facts, answer } = exchange;
    facts.collect(request)?;
    entry.path.clone_from(&facts.path);

    prepare(request, facts, Hop::Outbound);
    let asked = Asked::prepare(facts.upgrade.take(), request, None);
    let mut sending =
        upstream::Sending { request, facts, answer, upload: Upload::streaming(down), down, active: &active, interim: 0 };
    let received = upstream::send_to_peer(&mut sending, called, shared, &connection.worker).await?;
    Ok(Some(Received { sent: received, asked, nonce: None, active, shadow: None, admitted: None }))
}

/// A request of HTTP/2 whose head is larger than allowed; one of HTTP/1 is refused by its framing.
pub async fn too_large(down: &mut Downstream<'_>, connection: &Arc<Connection>) {
    let mut entry = Entry::begin(&connection.shared, "access", connection.direction(), connection.remote);
    entry.principal = connection.principal();
    entry.revision = connection.shared.revision();
    let limits = connection.shared.active().map_or_else(model::Limits::default, |active| active.snapshot.limits.clone());
    let refusal = Refusal::HeadTooLarge {
        bytes: limits.of(model::Limit::RequestHeadBytes),
        lines: limits.of(model::Limit::RequestHeaders),
    };
    connection.shared.tell_refusal(&refusal, &entry);
    reply::refuse(refusal, reply::Form::Problem, entry, down, connection).await;
}

/// Reads the body if a policy that could apply to this method reads it; otherwise it streams through untouched.
async fn read_for_policy(
    facts: &Facts,
    head: &mut Head,
    down: &mut Downstream<'_>,
    active: &Active,
) -> Result<(Upload, Option<BodyFacts>), Refusal> {
    let action = facts.method.as_str();
    let (mut upload, read) = match active.policies.body_fields(action) {
        None => (Upload::streaming(down), None),
        Some(declared) => {
            let limits = &active.snapshot.limits;
            let length = down.body_length();
            let bytes = Box::pin(body::hold(down, head, limits)).await?;
            let text = |name| facts::only_value(&head.fields, name);
            // Lines that are not one readable value are an encoding all the same.
            let coded = head.fields.first(b"content-encoding").is_some();
            let encoding = text("content-encoding").or_else(|| coded.then_some("unreadable"));
            let depth = limits.size(model::Limit::PolicyBodyDepth);
            let read = || policy::read_body(text("content-type"), encoding, &bytes, declared, depth);
            let read = (!bytes.is_empty()).then(read).transpose()?;
            (Upload::held(bytes, length), read)
        }
    };
    upload.withhold(withheld(active, action));
    Ok((upload, read))
}

/// Headers that mean something to the policies, carry the token, or tell the application of the user.
fn withheld<'a>(active: &'a Active, action: &str) -> impl Iterator<Item = &'a String> {
    let token = &active.snapshot.token;
    // That one is in no trailer anyway.
    let carrier = Some(&token.header).filter(|header| *header != "authorization");
    active.policies.header_names(action).iter().chain(token.claims.keys()).chain(carrier)
}

/// Asks the policies, then those in shadow mode, whose word changes nothing, and tells the operator's records of both.
fn decide(
    question: &Question<'_>,
    trial: Option<Trial>,
    head: &Head,
    active: &Arc<Active>,
    connection: &Connection,
    entry: &Entry,
) -> Result<(Permit, Option<Box<Pending>>), Refusal> {
    let decided = policy::decide(&active.policies, question, entry.decision, active.snapshot.revision);
    let shared = &connection.shared;
    let tell = |decision: &Decision, refusal: Option<&Refusal>| match trial {
        Some(trial) => trial.decide(question, decision, refusal, (shared, active), head),
        None => {
            shared.tell_decision(decision, question, active, refusal, None);
            None
        }
    };
    match decided {
        Ok(permit) => {
            let pending = tell(permit.decision(), None);
            Ok((permit, pending))
        }
        Err(denied) => {
            let decision = denied.decision.clone();
            let refusal = Refusal::denied(denied, active);
            tell(&decision, Some(&refusal));
            Err(refusal)
        }
    }
}

/// Makes the head ready for the next hop: the normalised path, no hop-by-hop headers, no identity that the caller claimed.
fn prepare(head: &mut Head, facts: &Facts, hop: Hop) {
    facts::forward_headers(&mut head.fields, hop);
    Head::set(&mut head.path, facts.path_and_query.as_bytes());
    if head.version == Version::Http2 {
        Head::set(&mut head.scheme, facts.scheme.as_bytes());
        Head::set(&mut head.authority, facts.authority.as_bytes());
        head.fields.retain(|name, _| name != b"host");
    }
}

/// Tells the application who calls: set after everything of that name was removed.
fn identify(head: &mut Head, active: &Active, connection: &Connection, entry: &Entry, user: Option<&Authenticated>) {
    let snapshot = &active.snapshot;
    let fields = &mut head.fields;
    authenticate::tell(fields, &snapshot.token, user);
    let caller = connection.peer().map(VerifiedPeer::id);
    let is_forwarder = caller.is_some_and(|id| snapshot.forwarders.contains(id));
    facts::forwarded_for(fields, connection.remote.ip(), is_forwarder);
    if let Some(CountryHeader { header, trusted }) = &snapshot.country {
        // The claim goes in every spelling; that of a trusted caller stays in the one that was read.
        let is_trusted = caller.is_some_and(|id| trusted.contains(id));
        fields.retain(|name, _| !facts::is_spelt(name, header) || is_trusted && name == header.as_bytes());
    }
    fields.push(b"x-rondel-decision", entry.decision.text().as_bytes());
    // A plaintext caller has no identity, and so its requests carry none.
    if let Some(line) = connection.identity_line(&snapshot.identity) {
        fields.push(b"x-forwarded-client-cert", line.as_bytes());
    }
    if let Some(peer) = connection.peer() {
        fields.push(b"x-rondel-principal", peer.id().as_str().as_bytes());
    }
    if let Some(user) = &entry.user
        && facts::is_readable(user.subject.as_bytes())
    {
        fields.push(b"x-rondel-user", user.subject.as_bytes());
    }
}
