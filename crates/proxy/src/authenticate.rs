//! Who a request is for: the user of its token, verified or remembered, and sent by whom it belongs to.

use crate::connection::Connection;
use crate::facts::{self, Facts};
use crate::introspect;
use crate::state::{Active, KeyRequest, Shared};
use identity::handshake::VerifiedPeer;
use message::{Fields, Head};
use model::Limit;
use model::Timestamp;
use model::token::TokenUse;
use std::sync::atomic::Ordering;
use token::{Asked, Caller, Generation, Presented, Refusal, Request, Rules, VerifiedClaims};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The user of a request, by a token that is the caller's own.
#[derive(Debug)]
pub struct Authenticated {
    /// What the token says.
    pub claims: VerifiedClaims,
    /// The nonce that the answer is to give for the next DPoP proof.
    pub nonce: Option<String>,
}

impl Authenticated {
    /// The nonce alone.
    pub fn into_nonce(self) -> Option<Box<str>> {
        self.nonce.map(String::into_boxed_str)
    }
}

/// The verified claims of the request's token; `None` if it carries none.
///
/// A token by a key that its issuer did not have yet waits for a fetch of the keys, which `jwksRefetchFloorMs` bounds. An opaque token
/// waits for its issuer's word on it, which `introspectionMs` bounds.
///
/// # Errors
/// - [`Refusal`] of the token; whatever the policies would say.
pub async fn user(
    head: &Head,
    facts: &Facts,
    active: &Active,
    connection: &Connection,
    now: Timestamp,
) -> Result<Option<Authenticated>, Refusal> {
    let places = &active.snapshot.token;
    let sent = Request {
        header: head.fields.values(places.header.as_bytes()),
        cookies: head.fields.values(b"cookie"),
        query: facts.path_and_query.split_once('?').map(|(_, query)| query),
    };
    let Some(presented) = token::presented(places, sent)? else {
        return Ok(None);
    };
    let claims = verified(&presented, active, connection, now).await?;
    let caller = Caller {
        certificate: connection.peer().map(VerifiedPeer::fingerprint_sha256),
        proofs: head.fields.values(b"dpop"),
        asked: Asked {
            method: facts.method.as_str(),
            authority: &facts.authority,
            path: &facts.path,
            normalise: model::path::normalise,
        },
    };
    let nonces = token::held(&claims, &presented, caller, &connection.shared.proofs, &active.snapshot.limits, now)?;
    Ok(Some(Authenticated { claims, nonce: nonces.next }))
}

/// The claims of a token that was verified before under this very configuration and these keys, or that is verified now.
async fn verified(
    presented: &Presented<'_>,
    active: &Active,
    connection: &Connection,
    now: Timestamp,
) -> Result<VerifiedClaims, Refusal> {
    let shared = connection.shared.as_ref();
    // INVARIANT: the configuration's part is that of the configuration that judges, and the keys' part was read before the keys were:
    // a request that waits while either changes remembers nothing that holds for the new one.
    let generation = Generation { config: active.generation, keys: shared.keys_generation.load(Ordering::Acquire) };
    if let Some(claims) = shared.tokens.find(&presented.text, generation, now) {
        return Ok(claims);
    }
    if let Some(asked) = token::introspection::opaque(&presented.text, &active.snapshot.issuers)? {
        // No key vouches for it, so that none that comes or goes ends it.
        let generation = Generation { keys: u64::MAX, ..generation };
        if let Some(claims) = shared.tokens.find(&presented.text, generation, now) {
            return Ok(claims);
        }
        let claims = Box::pin(introspect::claims(&presented.text, asked, generation.config, active, connection, now)).await?;
        active.revoked_tokens.check(&claims, now)?;
        shared.tokens.remember(&claims, generation);
        return Ok(claims);
    }
    let (claims, generation) = Box::pin(checked(presented, generation, active, shared, now)).await?;
    shared.tokens.remember(&claims, generation);
    Ok(claims)
}

/// Checks a token that nobody checked before, when it is its turn, and once more with the keys that it asked for.
async fn checked(
    presented: &Presented<'_>,
    mut generation: Generation,
    active: &Active,
    shared: &Shared,
    now: Timestamp,
) -> Result<(VerifiedClaims, Generation), Refusal> {
    let mut judged = in_turn(presented, active, shared, now).await;
    // A fetch that was under way may bring what the issuer said before it began to sign with this key; then one more is asked for.
    for _ in 0..2 {
        let Err(Refusal::KeyUnknown { issuer } | Refusal::IssuerUnavailable { issuer }) = &judged else { break };
        // Keys may also have come between the look and the question: then no fetch is due, and they are there.
        let is_fetched = fetched(issuer, active, shared).await;
        if !is_fetched && shared.keys_generation.load(Ordering::Acquire) == generation.keys {
            break;
        }
        generation.keys = shared.keys_generation.load(Ordering::Acquire);
        // Those who waited for the keys come all at once.
        judged = in_turn(presented, active, shared, now).await;
    }
    Ok((judged?, generation))
}

async fn in_turn(presented: &Presented<'_>, active: &Active, shared: &Shared, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
    let turn = shared.turns.take().await;
    let judged = verify(presented, active, shared, now);
    turn.give_on().await;
    judged
}

fn verify(presented: &Presented<'_>, active: &Active, shared: &Shared, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
    let keys = shared.keys.borrow().clone();
    let snapshot = &active.snapshot;
    let rules = Rules { issuers: &snapshot.issuers, keys: &keys, limits: &snapshot.limits, told: &snapshot.token.claims };
    let claims = token::verify(&presented.text, &rules, now)?;
    active.revoked_tokens.check(&claims, now)?;
    Ok(claims)
}

/// Asks for the issuer's keys and waits until they were fetched or are not due; false if nobody could be asked.
async fn fetched(issuer: &str, active: &Active, shared: &Shared) -> bool {
    let (done, answered) = oneshot::channel();
    let asked = shared.key_requests.try_send(KeyRequest { issuer: issuer.to_owned(), done });
    asked.is_ok() && matches!(timeout(active.snapshot.limits.duration(Limit::JwksFetchMs), answered).await, Ok(Ok(())))
}

/// Tells the application of the token's claims, by the configured headers. Whatever the caller sent under their names is removed, in
/// every spelling and whether or not there is a token.
pub fn tell(fields: &mut Fields, places: &TokenUse, user: Option<&Authenticated>) {
    if places.claims.is_empty() {
        return;
    }
    fields.retain(|name, _| !places.claims.keys().any(|told| facts::is_spelt(name, told)));
    for (name, value) in user.into_iter().flat_map(|user| user.claims.told()) {
        fields.push(name.as_bytes(), value.as_bytes());
    }
}

/// Takes the token, and the proof beside it, out of the request, if that is configured.
pub fn strip(fields: &mut Fields, facts: &mut Facts, places: &TokenUse) {
    if !places.strip {
        return;
    }
    fields.retain(|name, _| name != b"dpop" && !facts::is_spelt(name, &places.header));
    if let Some(cookie) = &places.cookie {
        let left: Vec<Vec<u8>> = fields.values(b"cookie").filter_map(|line| token::without_cookie(line, cookie)).collect();
        fields.retain(|name, _| name != b"cookie");
        left.iter().for_each(|line| fields.push(b"cookie", line));
    }
    if let Some(parameter) = &places.query {
        facts.path_and_query = token::without_parameter(&facts.path_and_query, parameter);
    }
}
