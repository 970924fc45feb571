//! Proofs that came, so that none is accepted twice (RFC 9449 §11.1), and the nonces that they must hold (RFC 9449 §8).

use crate::refusal::Refusal;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::Timestamp;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a nonce is the current one; the one before it is still accepted, and replaced by the answer.
const NONCE_LIFE_MS: u64 = 120_000;
/// Which part of all proofs one key may have: so that the holder of one token cannot keep the others out.
const SHARE_OF_ONE_KEY: usize = 16;

/// The proofs of the last while, and the secret of nonces. Shared by the threads of a process: a proof counts once in all of them.
pub struct Proofs {
    seen: Mutex<Seen>,
    /// Proofs from before that may have come to the process before this one.
    since: Timestamp,
    nonces: Option<hmac::Key>,
}

/// Two spans of time, each at least as long as a proof can be used: what came before both can be used no more.
#[derive(Default)]
struct Seen {
    began: Timestamp,
    now: Span,
    before: Span,
}

/// Digests of the `jti` by the thumbprint of the key.
#[derive(Default)]
struct Span {
    by_key: HashMap<[u8; 32], HashSet<[u8; 16]>>,
    count: usize,
}

impl Proofs {
    /// Those of a process that began at this moment.
    pub fn since(since: Timestamp) -> Self {
        // Without a secret there is no nonce, and what needs one is refused.
        let nonces = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok();
        Self { seen: Mutex::default(), since, nonces }
    }

    /// Whether a proof that was made at this moment may have come to a process before this one.
    pub(crate) fn may_have_come_before(&self, made_at: Timestamp) -> bool {
        made_at < self.since
    }

    /// Notes a proof that is good otherwise. `life`: how long a proof can be used, from the first moment to the last.
    ///
    /// # Errors
    /// - [`Refusal::Proof`] if it came before.
    /// - [`Refusal::ProofsFull`] beyond `limit`, or its sixteenth by this key: then it is not known whether it came before.
    pub(crate) fn take(&self, key: [u8; 32], jti: [u8; 16], life: Duration, limit: usize, now: Timestamp) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= seen.began.plus(life) {
            let is_long_ago = now >= seen.began.plus(life).plus(life);
            let ended = std::mem::take(&mut seen.now);
            seen.before = if is_long_ago { Span::default() } else { ended };
            seen.began = now;
        }
        let of_key = |span: &Span| span.by_key.get(&key).map_or(0, HashSet::len);
        let came = |span: &Span| span.by_key.get(&key).is_some_and(|seen| seen.contains(&jti));
        if came(&seen.now) || came(&seen.before) {
            return Err(Refusal::Proof { rule: "it came before" });
        }
        let share = limit / SHARE_OF_ONE_KEY;
        if of_key(&seen.now) + of_key(&seen.before) >= share {
            return Err(Refusal::ProofsFull { limit: share, whose: "of one key" });
        }
        if seen.now.count + seen.before.count >= limit {
            return Err(Refusal::ProofsFull { limit, whose: "in all" });
        }
        seen.now.by_key.entry(key).or_default().insert(jti);
        seen.now.count += 1;
        Ok(())
    }

    /// The nonce that new proofs are to hold.
    pub fn nonce(&self, now: Timestamp) -> String {
        self.nonce_of(now.millis() / NONCE_LIFE_MS)
    }

    /// Whether a nonce is the current one (`Some(true)`), the one before it (`Some(false)`), or neither.
    pub(crate) fn is_current(&self, nonce: &str, now: Timestamp) -> Option<bool> {
        let turn = now.millis() / NONCE_LIFE_MS;
        self.nonces.as_ref()?;
        if nonce == self.nonce_of(turn) {
            return Some(true);
        }
        (nonce == self.nonce_of(turn.saturating_sub(1))).then_some(false)
    }

    fn nonce_of(&self, turn: u64) -> String {
        let tag = self.nonces.as_ref().map(|key| hmac::sign(key, &turn.to_be_bytes()));
        URL_SAFE_NO_PAD.encode(tag.as_ref().map_or(&[][..], |tag| tag.as_ref().get(..16).unwrap_or_default()))
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proofs").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn jti(number: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    #[test]
    fn a_proof_is_taken_once_for_as_long_as_it_can_be_used() {
        let proofs = Proofs::since(Timestamp::default());
        let at = |seconds: u64| Timestamp::from_seconds(1_000_000 + seconds);
        let take = |key: u8, number, seconds| proofs.take([key; 32], jti(number), LIFE, 1600, at(seconds)).is_ok();
        assert!(take(1, 1, 0) && take(2, 1, 0) && take(1, 2, 0), "another key, another proof");
        for seconds in [0, 1, 30, 59, 60] {
            assert!(!take(1, 1, seconds), "after {seconds} s");
        }
        assert!(take(1, 3, 119), "at the end of a span");
        for seconds in [120, 150, 178] {
            assert!(!take(1, 3, seconds), "after {seconds} s");
        }
        assert!(take(1, 1, 180), "forgotten when it can be used no more");
        assert!(take(1, 3, 1000), "after a long silence");
    }

    #[test]
    fn one_key_cannot_keep_the_others_out_and_the_whole_is_bounded() {
        let proofs = Proofs::since(Timestamp::default());
        let now = Timestamp::from_seconds(1_000_000);
        let take = |key: u8, number| proofs.take([key; 32], jti(number), LIFE, 160, now);
        for number in 0..10 {
            take(1, number).expect("within its share");
        }
        assert_eq!(take(1, 10), Err(Refusal::ProofsFull { limit: 10, whose: "of one key" }));
        for key in 2..=16 {
            for number in 0..10 {
                take(key, number).expect("another key");
            }
        }
        assert_eq!(take(17, 0), Err(Refusal::ProofsFull { limit: 160, whose: "in all" }));
        assert_eq!(take(1, 0), Err(Refusal::Proof { rule: "it came before" }));
        assert!(proofs.take([17; 32], jti(0), LIFE, 160, now.plus(LIFE * 2)).is_ok());
    }

    #[test]
    fn rfc9449_8_a_nonce_is_of_one_process_and_ends() {
        let (ours, theirs) = (Proofs::since(Timestamp::default()), Proofs::since(Timestamp::default()));
        let now = Timestamp::from_millis(NONCE_LIFE_MS * 1000);
        let later = |lives: u64| Timestamp::from_millis(NONCE_LIFE_MS * (1000 + lives));
        let nonce = ours.nonce(now);
        assert_eq!(ours.is_current(&nonce, now), Some(true));
        assert_eq!(ours.is_current(&nonce, later(1)), Some(false));
        assert_eq!(ours.is_current(&nonce, later(2)), None);
        assert_eq!(theirs.is_current(&nonce, now), None);
        assert_eq!(ours.is_current("", now), None);
    }
}
