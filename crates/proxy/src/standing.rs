//! A request that has been under way for long is a stream: it is decided again when the policies change, and ended if they no longer
//! permit it. A short one ends as it began, by one version of the policies.

use crate::authenticate::Authenticated;
use crate::body;
use crate::clock;
use crate::connection::Connection;
use crate::country::Origin;
use crate::facts::{self, Facts};
use crate::reply::Refusal;
use crate::telemetry::access_log::Entry;
use crate::workers;
use message::Head;
use model::{DecisionId, Question, Revision};
use policy::BodyFacts;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;
use token::VerifiedClaims;

/// LIMIT: how long a request may go on by the policies that let it in. One that has taken longer is ended as soon as they change.
pub const STREAM_AFTER: Duration = Duration::from_secs(2);

/// What of the facts that let a request in is not in its head any more.
#[derive(Debug)]
pub struct Admitted {
    /// Counts the configurations that came before the one that let it in, or that one too.
    pub generation: u64,
    /// What the policies read of its body.
    pub body: Option<BodyFacts>,
    /// What its token says.
    pub claims: Option<VerifiedClaims>,
}

impl Admitted {
    /// `generation`: from before the configuration was taken.
    pub const fn of(generation: u64) -> Self {
        Self { generation, body: None, claims: None }
    }

    /// With what was read of its body, and its token.
    pub fn with(self, body: Option<BodyFacts>, user: Option<&Authenticated>) -> Self {
        Self { body, claims: user.map(|user| user.claims.clone()), ..self }
    }
}

/// A request under way, with what it takes to ask for it again. Borrows everything.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    connection: &'a Connection,
    request: &'a Head,
    facts: &'a Facts,
    entry: &'a Entry,
    admitted: Option<&'a Admitted>,
}

/// The policies no longer permit a request that they let in, or its token is revoked or its issuer not believed any more.
#[derive(Debug)]
pub struct Ended {
    /// Names the decision.
    pub decision: DecisionId,
    /// By which it was made.
    pub revision: Revision,
    /// Why.
    pub refusal: Refusal,
}

impl<'a> Standing<'a> {
    /// `request`: the head as the application gets it. `admitted`: what else let it in; `None` for a request of the application, which is
    /// decided where it arrives.
    pub const fn of(
        connection: &'a Connection,
        request: &'a Head,
        facts: &'a Facts,
        entry: &'a Entry,
        admitted: Option<&'a Admitted>,
    ) -> Self {
        Self { connection, request, facts, entry, admitted }
    }

    /// Goes on with what is under way for as long as the policies permit it, its token is not revoked and its issuer believed.
    /// Costs one relaxed load whenever it is polled.
    ///
    /// # Errors
    /// - [`Ended`] if changed policies do not permit it any more, or its token is not taken any more: that however short it has gone on.
    pub fn hold<F: Future>(self, mut under_way: Pin<&mut F>) -> impl Future<Output = Result<F::Output, Box<Ended>>> {
        let mut seen = self.admitted.map(|admitted| [admitted.generation; 2]);
        poll_fn(move |cx| {
            if let (Some([looked, asked]), Some(admitted)) = (&mut seen, self.admitted) {
                let now = self.connection.shared.generation.load(Ordering::Relaxed);
                if now != *looked {
                    *looked = now;
                    self.look_at_token(admitted)?;
                }
                if self.is_due(asked, now) {
                    self.ask_again(admitted)?;
                }
            }
            under_way.as_mut().poll(cx).map(Ok)
        })
    }

    /// Whether the configuration has changed since it was looked at, and the request is old enough to be asked for again.
    fn is_due(&self, seen: &mut u64, now: u64) -> bool {
        if now == *seen || self.entry.begun().elapsed() < STREAM_AFTER {
            return false;
        }
        *seen = now;
        true
    }

    fn look_at_token(&self, admitted: &Admitted) -> Result<(), Box<Ended>> {
        let (Some(claims), Some(active)) = (&admitted.claims, self.connection.shared.active()) else { return Ok(()) };
        let taken = active.still_takes(claims, clock::now());
        let (decision, revision) = (DecisionId::from_random(workers::random_bytes()), active.snapshot.revision);
        taken.map_err(|refusal| Box::new(Ended { decision, revision, refusal: refusal.into() }))
    }

    fn ask_again(&self, admitted: &Admitted) -> Result<(), Box<Ended>> {
        let Self { connection, request, facts, .. } = *self;
        let shared = &connection.shared;
        let (Some(active), Some(principal)) = (shared.active(), connection.principal()) else { return Ok(()) };
        let (id, revision) = (DecisionId::from_random(workers::random_bytes()), active.snapshot.revision);
        let ended = |refusal| Box::new(Ended { decision: id, revision, refusal });
        if active.inbound_at(connection.local).is_some_and(|listener| !connection.may_speak(listener)) {
            return Err(ended(Refusal::Plaintext));
        }
        let (body, body_note) = body::seen(admitted.body.as_ref());
        let action = facts.method.as_str();
        let headers = facts::read_headers(&request.fields, active.header_names(action));
        let question = Question {
            principal: &principal,
            user: self.entry.user.as_ref(),
            action,
            resource: &active.snapshot.service,
            path: &facts.path,
            host: &facts.host,
            headers: &headers,
            body,
            body_note,
            address: connection.remote.ip(),
            country: Origin::of_forwarded(&active, connection, request).country(&active, connection, action),
            now: clock::now(),
        };
        let Err(denied) = policy::decide(&active.policies, &question, id, revision) else { return Ok(()) };
        let decision = denied.decision.clone();
        let refusal = Refusal::denied(denied, &active);
        shared.try_beside(&question, &decision, Some(&refusal), &active);
        Err(ended(refusal))
    }
}
