//! Remembers opaque tokens that are not active, so that their issuer is not asked on every request.

use crate::refusal::Refusal;
use crate::verify::digest_of;
use model::Timestamp;
use moka::sync::Cache;
use std::fmt;
use std::time::Duration;

/// LIMIT: refused opaque tokens that are remembered; beyond it those that were not asked for go first.
const REMEMBERED_MAX: u64 = 10_000;
/// How long one that nobody sends any more stays in memory.
const IDLE: Duration = Duration::from_secs(60);

/// Refusals of opaque tokens by the SHA-256 of the token and the generation of the configuration that asked. Bounded apart from
/// what is good, so that invented tokens push no good one out; shared between threads; never holds a token.
pub struct InactiveTokens {
    entries: Cache<([u8; 32], u64), (Refusal, Timestamp)>,
}

impl Default for InactiveTokens {
    fn default() -> Self {
        Self { entries: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(IDLE).build() }
    }
}

impl InactiveTokens {
    /// Why a token was refused under this very generation, if that can still be believed at `now`. Costs one SHA-256.
    pub fn find(&self, token: &str, generation: u64, now: Timestamp) -> Option<Refusal> {
        let (refusal, until) = self.entries.get(&(digest_of(token), generation))?;
        (now < until).then_some(refusal)
    }

    /// Remembers a refusal until this moment.
    pub fn remember(&self, token: &str, generation: u64, refusal: &Refusal, until: Timestamp) {
        self.entries.insert((digest_of(token), generation), (refusal.clone(), until));
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.entries.run_pending_tasks();
        usize::try_from(self.entries.entry_count()).unwrap_or(usize::MAX)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for InactiveTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InactiveTokens").field("entries", &self.entries.entry_count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_believed_for_its_time_its_generation_and_its_very_token() {
        let inactive = InactiveTokens::default();
        let now = Timestamp::from_seconds(1_800_000_000);
        let refusal = Refusal::Inactive { issuer: "login".to_owned() };
        inactive.remember("opaque", 3, &refusal, now.plus(Duration::from_secs(5)));
        let after = |ms| now.plus(Duration::from_millis(ms));
        for (token, generation, at, expected) in [
            ("opaque", 3, now, Some(refusal.clone())),
            ("opaque", 3, after(4999), Some(refusal.clone())),
            ("opaque", 3, after(5000), None),
            ("opaque", 4, now, None),
            ("opaquE", 3, now, None),
        ] {
            assert_eq!(inactive.find(token, generation, at), expected, "{token} {generation} {at}");
        }
    }

    #[test]
    fn invented_tokens_are_never_remembered_beyond_the_bound() {
        let inactive = InactiveTokens::default();
        let now = Timestamp::from_seconds(1_800_000_000);
        for number in 0..REMEMBERED_MAX + 2000 {
            inactive.remember(&number.to_string(), 1, &Refusal::Inactive { issuer: "login".to_owned() }, now);
        }
        assert!(inactive.len() <= usize::try_from(REMEMBERED_MAX).expect("small"), "{}", inactive.len());
    }
}
