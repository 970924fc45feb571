//! Which tokens an operator has revoked: on disk before anybody is told, and forgotten when they need not be remembered.

use crate::ca::{Ca, ChangeFailure};
use crate::desired::Board;
use crate::store::{Store, StoreFailure};
use model::Timestamp;
use model::token::RevokedTokens;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// LIMIT: revocations of tokens; every sidecar holds them all, each until it ends.
const REVOKED_TOKENS_MAX: usize = 10_000;

/// What an operator has revoked, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRevocation {
    pub(crate) what: RevokedTokens,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
}

/// All that count, in the order in which they were made.
#[derive(Debug)]
pub(crate) struct TokenRevocations(RwLock<Vec<TokenRevocation>>);

impl TokenRevocations {
    pub(crate) fn open(store: &Store, now: Timestamp) -> Result<Self, StoreFailure> {
        let mut all: Vec<TokenRevocation> = store.token_revocations()?;
        all.retain(|each| now < each.what.until);
        Ok(Self(RwLock::new(all)))
    }

    /// Those that have not ended.
    pub(crate) fn all(&self, now: Timestamp) -> Vec<TokenRevocation> {
        self.0.read().iter().filter(|each| now < each.what.until).cloned().collect()
    }

    /// Adds one. Who says the same again makes it last longer, and never shorter.
    fn add(&self, store: &Store, fresh: TokenRevocation, now: Timestamp) -> Result<TokenRevocation, StoreFailure> {
        let mut all = self.all(now);
        let says_the_same = |each: &TokenRevocation| {
            let RevokedTokens { until, .. } = fresh.what;
            RevokedTokens { until, ..each.what.clone() } == fresh.what
        };
        let known = all.iter().position(says_the_same);
        if known.is_none() && all.len() >= REVOKED_TOKENS_MAX {
            return Err(StoreFailure::Full { what: "revocations of tokens", max: REVOKED_TOKENS_MAX as u64 });
        }
        let kept = match known.and_then(|place| all.get_mut(place)) {
            Some(known) => {
                known.what.until = known.what.until.max(fresh.what.until);
                known.clone()
            }
            None => {
                all.push(fresh.clone());
                fresh
            }
        };
        store.keep_token_revocations(&all)?;
        *self.0.write() = all;
        Ok(kept)
    }
}

impl Ca {
    /// Revokes the tokens that `what` means, everywhere, until it ends.
    pub(crate) fn revoke_tokens(
        &self,
        what: RevokedTokens,
        reason: &str,
        board: &Board,
        now: Timestamp,
    ) -> Result<TokenRevocation, ChangeFailure> {
        let _changing = self.changing.lock();
        let fresh = TokenRevocation { what, at: now, reason: reason.to_owned() };
        let kept = self.tokens.add(&self.store, fresh, now)?;
        board.set_trust(self.trust(now))?;
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn jti(name: &str, until: u64) -> TokenRevocation {
        let what = RevokedTokens { jti: Some(name.into()), until: Timestamp::from_seconds(until), ..RevokedTokens::default() };
        TokenRevocation { what, at: NOW, reason: "lost".into() }
    }

    #[test]
    fn what_is_revoked_stays_so_over_a_restart_until_its_end_and_is_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("store")).expect("store");
        let revocations = TokenRevocations::open(&store, NOW).expect("open");
        let (soon, late) = (NOW.seconds() + 10, NOW.seconds() + 100);
        revocations.add(&store, jti("a", soon), NOW).expect("room");
        revocations.add(&store, jti("b", late), NOW).expect("room");
        let again = revocations.add(&store, jti("b", soon), NOW).expect("room");
        assert_eq!(again.what.until.seconds(), late, "never shorter");
        revocations.add(&store, jti("a", soon + 1), NOW).expect("room");
        let reopened = TokenRevocations::open(&store, NOW).expect("open");
        assert_eq!(reopened.all(NOW), [jti("a", soon + 1), jti("b", late)]);
        assert_eq!(reopened.all(Timestamp::from_seconds(soon + 1)), [jti("b", late)]);
        *reopened.0.write() = (0..REVOKED_TOKENS_MAX).map(|number| jti(&number.to_string(), soon)).collect();
        assert!(matches!(reopened.add(&store, jti("x", late), NOW), Err(StoreFailure::Full { .. })));
        reopened.add(&store, jti("x", late), Timestamp::from_seconds(soon)).expect("what has ended made room");
        assert_eq!(TokenRevocations::open(&store, Timestamp::from_seconds(soon)).expect("open").all(NOW).len(), 1);
    }
}
