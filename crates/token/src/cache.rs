//! Remembers verified tokens, so that a signature is checked once and not on every request.

use crate::verify::{VerifiedClaims, digest_of};
use model::Timestamp;
use moka::sync::Cache;
use std::fmt;
use std::time::Duration;

/// How long claims that nobody asks for stay in memory.
const IDLE: Duration = Duration::from_secs(300);

/// What claims were verified under. Claims of one generation are never taken for those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// Which configuration; it belongs to the configuration itself, so that a request that waits cannot mistake it.
    pub config: u64,
    /// Which keys at the earliest: read before the keys were.
    pub keys: u64,
}

/// Verified claims by the SHA-256 of their token and the generation of keys and configuration that verified them. Bounded;
/// shared between threads; never holds a token.
pub struct TokenCache {
    entries: Cache<([u8; 32], Generation), VerifiedClaims>,
}

impl TokenCache {
    /// An empty cache of at most `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        let capacity = u64::try_from(capacity).unwrap_or(u64::MAX);
        Self { entries: Cache::builder().max_capacity(capacity).time_to_idle(IDLE).build() }
    }

    /// The claims of a token that was verified under this very generation and can still be believed at `now`. Costs one SHA-256.
    ///
    /// Clock skew is not allowed for here: within the skew after its `exp` a token is verified anew on every request.
    pub fn find(&self, token: &str, generation: Generation, now: Timestamp) -> Option<VerifiedClaims> {
        self.entries.get(&(digest_of(token), generation)).filter(|claims| now < claims.remember_until())
    }

    /// Remembers claims that were verified by the configuration of `generation`, and by its keys or later ones.
    pub fn remember(&self, claims: &VerifiedClaims, generation: Generation) {
        self.entries.insert((claims.digest(), generation), claims.clone());
    }

    /// How many tokens are remembered, those of old generations included.
    pub fn len(&self) -> usize {
        self.entries.run_pending_tasks();
        usize::try_from(self.entries.entry_count()).unwrap_or(usize::MAX)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").field("entries", &self.entries.entry_count()).finish()
    }
}
