//! Who a request is for: the user of its token, verified or remembered.

use crate::introspect;
use crate::state::{Active, KeyRequest, Shared};
use message::Fields;
use model::Limit;
use model::Timestamp;
use std::sync::atomic::Ordering;
use token::{Refusal, VerifiedClaims};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The verified claims of the request's token; `None` if it carries none.
///
/// A token by a key that its issuer did not have yet waits for one fetch of the keys, which `jwksRefetchFloorMs` bounds. An opaque token
/// waits for its issuer's word on it, which `introspectionMs` bounds.
///
/// # Errors
/// - [`Refusal`] of the token; whatever the policies would say.
pub async fn user(fields: &Fields, active: &Active, shared: &Shared, now: Timestamp) -> Result<Option<VerifiedClaims>, Refusal> {
    let Some(text) = token::bearer(fields.values(b"authorization"))? else {
        return Ok(None);
    };
    // Taken before the keys, so that claims verified by old keys are never remembered under a new generation.
    let generation = shared.generation.load(Ordering::Acquire);
    if let Some(claims) = shared.tokens.find(text, generation, now) {
        return Ok(Some(claims));
    }
    if let Some(asked) = token::introspection::opaque(text, &active.snapshot.issuers)? {
        let claims = Box::pin(introspect::claims(text, asked, generation, active, shared, now)).await?;
        shared.tokens.remember(&claims, generation);
        return Ok(Some(claims));
    }
    let mut verified = verify(text, active, shared, now);
    // Keys may also have come between the look and the question: then no fetch is due, and they are there.
    if let Err(Refusal::KeyUnknown { issuer } | Refusal::IssuerUnavailable { issuer }) = &verified
        && (Box::pin(fetched(issuer, active, shared)).await || shared.generation.load(Ordering::Acquire) != generation)
    {
        verified = verify(text, active, shared, now);
    }
    let claims = verified?;
    shared.tokens.remember(&claims, generation);
    Ok(Some(claims))
}

fn verify(text: &str, active: &Active, shared: &Shared, now: Timestamp) -> Result<VerifiedClaims, Refusal> {
    let keys = shared.keys.borrow().clone();
    token::verify(text, &active.snapshot.issuers, &keys, &active.snapshot.limits, now)
}

/// Asks for the issuer's keys and waits until they were fetched or are not due; false if nobody could be asked.
async fn fetched(issuer: &str, active: &Active, shared: &Shared) -> bool {
    let (done, answered) = oneshot::channel();
    let asked = shared.key_requests.try_send(KeyRequest { issuer: issuer.to_owned(), done });
    asked.is_ok() && matches!(timeout(active.snapshot.limits.duration(Limit::JwksFetchMs), answered).await, Ok(Ok(())))
}
