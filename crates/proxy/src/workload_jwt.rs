//! JWT-SVIDs for the application: asked of the control plane, remembered for half of their life, and checked.

use crate::anchor::Anchor;
use crate::clock;
use crate::control_link::{self, LinkFailure};
use crate::state::{Active, Shared};
use identity::jwt_svid::{self, AUDIENCE_BYTES_MAX, AUDIENCES_MAX, JwkError, JwtBundles, JwtRefusal, JwtSvid};
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use wire::client::{CallFailure, ControlClient};

/// LIMIT: sets of audiences whose token is remembered.
const TOKENS_MAX: usize = 64;
/// LIMIT: calls for a token under way.
const CALLS_MAX: usize = 16;
/// For one call.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no token, or one is not believed.
#[derive(Debug, thiserror::Error)]
pub enum JwtFailure {
    /// The audiences cannot be those of a token. The application must mend it.
    #[error("`audience`: {problem}")]
    Audience {
        /// What is wrong with them.
        problem: String,
    },
    /// The token that was to be checked is not believed. Whoever sent it must mend it.
    #[error("{0}")]
    Token(#[from] JwtRefusal),
    /// The control plane cannot be reached.
    #[error("{0}")]
    Link(#[from] LinkFailure),
    /// The control plane refused.
    #[error("JWT-SVID from the control plane: {0}")]
    Call(#[from] CallFailure),
    /// Nobody would believe what the control plane sent.
    #[error("JWT-SVID from the control plane: {0}")]
    Issued(JwtRefusal),
    /// The control plane sent the token of somebody else.
    #[error("JWT-SVID from the control plane is for `{got}`, not for `{wanted}`")]
    Foreign {
        /// Who we are.
        wanted: SpiffeId,
        /// Whose it is.
        got: SpiffeId,
    },
    /// Without a configuration no key is known.
    #[error("no configuration applied yet, so that no keys are known; try again later")]
    NoConfiguration,
    /// The configuration holds a key that is none.
    #[error("JWT authorities of the trust bundles: {0}")]
    Keys(#[from] JwkError),
    /// Too many calls at once.
    #[error("{CALLS_MAX} calls for a JWT-SVID are under way, which is the limit; try again later")]
    Busy,
}

/// The tokens that are remembered, and what tokens are checked with.
#[derive(Debug)]
pub struct Tokens {
    known: Mutex<HashMap<Vec<String>, Known>>,
    /// Of the configuration that they were made from.
    keys: Mutex<Option<(Weak<Active>, Arc<JwtBundles>)>>,
    calls: Semaphore,
}

struct Known {
    token: String,
    /// Half of its life.
    renew_at: Timestamp,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("renew_at", &self.renew_at).finish_non_exhaustive()
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self { known: Mutex::default(), keys: Mutex::default(), calls: Semaphore::new(CALLS_MAX) }
    }
}

impl Tokens {
    /// A token of this workload for these audiences (see [`audiences`]): a remembered one until half of its life, else a new one; if
    /// there is no new one, a remembered one until its end.
    ///
    /// # Errors
    /// - [`JwtFailure`].
    pub async fn obtain(
        &self,
        shared: &Shared,
        anchor: &Anchor,
        own: &SpiffeId,
        audiences: Vec<String>,
    ) -> Result<String, JwtFailure> {
        let known = self.known.lock().get(&audiences).map(|known| (known.token.clone(), known.renew_at));
        // Its key may be trusted no longer, or the identity be another.
        let known = known.filter(|(token, _)| self.stands(shared, own, token, &audiences).is_ok());
        if let Some((token, renew_at)) = &known
            && clock::now() < *renew_at
        {
            return Ok(token.clone());
        }
        match self.issue(shared, anchor, own, audiences).await {
            Ok(token) => Ok(token),
            Err(failure) => known.map(|(token, _)| token).ok_or(failure),
        }
    }

    async fn issue(
        &self,
        shared: &Shared,
        anchor: &Anchor,
        own: &SpiffeId,
        audiences: Vec<String>,
    ) -> Result<String, JwtFailure> {
        let _place = self.calls.try_acquire().map_err(|_| JwtFailure::Busy)?;
        let channel = control_link::channel(shared, anchor).await?;
        let token = ControlClient::new(channel).issue_jwt(audiences.clone(), CALL_DEADLINE).await?.token;
        let now = clock::now();
        let expires_at = self.stands(shared, own, &token, &audiences)?;
        let mut known = self.known.lock();
        if known.len() >= TOKENS_MAX && !known.contains_key(&audiences) {
            let oldest = known.iter().min_by_key(|(_, known)| known.renew_at).map(|(audiences, _)| audiences.clone());
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        let renew_at = now.plus(expires_at.since(now) / 2);
        known.insert(audiences, Known { token: token.clone(), renew_at });
        Ok(token)
    }

    /// Checks a token of our own as whoever gets it will. Returns its end.
    fn stands(&self, shared: &Shared, own: &SpiffeId, token: &str, audiences: &[String]) -> Result<Timestamp, JwtFailure> {
        let first = audiences.first().map(String::as_str).unwrap_or_default();
        let verified = self.verify(shared, token, first).map_err(|failure| match failure {
            JwtFailure::Token(refusal) => JwtFailure::Issued(refusal),
            other => other,
        })?;
        if verified.id() != own {
            return Err(JwtFailure::Foreign { wanted: own.clone(), got: verified.id().clone() });
        }
        match audiences.iter().find(|audience| !verified.audiences().contains(audience)) {
            Some(missing) => Err(JwtFailure::Issued(JwtRefusal::Audience { expected: missing.clone() })),
            None => Ok(verified.expires_at()),
        }
    }

    /// Checks a token under the bundles in force. The only place that does.
    ///
    /// # Errors
    /// - [`JwtFailure::Token`], or what keeps it from being checked.
    pub fn verify(&self, shared: &Shared, token: &str, audience: &str) -> Result<JwtSvid, JwtFailure> {
        Ok(jwt_svid::verify(token, audience, self.keys(shared)?.as_ref(), clock::now())?)
    }

    /// The keys of the configuration in force, read once for each.
    fn keys(&self, shared: &Shared) -> Result<Arc<JwtBundles>, JwtFailure> {
        let active = shared.active().ok_or(JwtFailure::NoConfiguration)?;
        let of = Arc::downgrade(&active);
        let mut keys = self.keys.lock();
        if let Some((known, bundles)) = keys.as_ref()
            && known.ptr_eq(&of)
        {
            return Ok(Arc::clone(bundles));
        }
        let bundles = Arc::new(JwtBundles::from_model(&active.snapshot.bundles)?);
        *keys = Some((of, Arc::clone(&bundles)));
        Ok(bundles)
    }
}

/// The audiences of a request, in one order and each once, so that the same set finds the same token.
///
/// # Errors
/// - [`JwtFailure::Audience`] if there is none, one is empty, or there are more or longer ones than a token may have.
pub fn audiences(mut asked: Vec<String>) -> Result<Vec<String>, JwtFailure> {
    let wrong = |problem: String| Err(JwtFailure::Audience { problem });
    asked.sort_unstable();
    asked.dedup();
    if asked.is_empty() || asked.iter().any(String::is_empty) {
        return wrong("it is required, and none may be empty".to_owned());
    }
    if asked.len() > AUDIENCES_MAX || asked.iter().any(|audience| audience.len() > AUDIENCE_BYTES_MAX) {
        return wrong(format!("at most {AUDIENCES_MAX} of {AUDIENCE_BYTES_MAX} bytes"));
    }
    Ok(asked)
}

/// The JWT authorities of a bundle as a JSON Web Key Set (RFC 7517 §5).
pub fn key_set(bundle: &TrustBundle) -> Vec<u8> {
    let keys = bundle.jwt_authorities.iter().filter_map(|jwk| serde_json::from_slice(jwk).ok());
    let keys: Vec<serde_json::Value> = keys.collect();
    serde_json::json!({ "keys": keys }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_set_of_audiences_is_the_same_whatever_its_order() {
        let of = |names: &[&str]| audiences(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(of(&["b", "a", "b"]).expect("sound"), of(&["a", "b"]).expect("sound"));
        let many: Vec<String> = (0..=AUDIENCES_MAX).map(|index| index.to_string()).collect();
        let long = "x".repeat(AUDIENCE_BYTES_MAX + 1);
        for wrong in [vec![], vec![String::new()], vec!["a".to_owned(), String::new()], many, vec![long]] {
            assert!(matches!(audiences(wrong), Err(JwtFailure::Audience { .. })));
        }
    }

    #[test]
    fn workload_api_6_2_2_a_key_set_holds_every_key_of_the_bundle() {
        let domain = model::TrustDomain::parse("a.example").expect("a trust domain");
        let mut bundle = TrustBundle::x509(domain, Vec::new());
        assert_eq!(key_set(&bundle), br#"{"keys":[]}"#);
        bundle.jwt_authorities = vec![br#"{"kid":"1","kty":"EC"}"#.to_vec()];
        assert_eq!(key_set(&bundle), br#"{"keys":[{"kid":"1","kty":"EC"}]}"#);
    }
}
