//! When an SVID is renewed: a plan without a clock. The program sleeps and acts.

use model::Timestamp;
use std::time::Duration;

/// The first pause after a failed attempt, and the least time between two attempts that succeeded.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause after failed attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// The shortest pause: a tenth of very little time left must not become a busy loop.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
/// The share of its life at whose end an SVID no longer counts as healthy.
const LAST_SHARE: f64 = 0.2;

/// What the plan knows of the SVID in use and of the attempts to replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationState {
    /// The certificate's `notBefore`. It is back-dated against clock skew, so its life is not counted from here.
    pub not_before: Timestamp,
    /// The certificate's `notAfter`.
    pub not_after: Timestamp,
    /// When it was issued, by this machine's clock. Half of its life counts from here.
    pub issued_at: Timestamp,
    /// Attempts that failed since the last one that did not.
    pub failures: u32,
    /// When the last attempt began, failed or not.
    pub last_attempt: Option<Timestamp>,
}

impl RotationState {
    /// When its life began: `issued_at`, or `not_before` where the clock was set since and `issued_at` lies outside of the life.
    fn begins(&self) -> Timestamp {
        let inside = self.issued_at >= self.not_before && self.issued_at < self.not_after;
        if inside { self.issued_at } else { self.not_before }
    }

    fn life(&self) -> Duration {
        self.not_after.since(self.begins())
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this moment, which lies in the future. Ask again then, or earlier: the clock may be set.
    WaitUntil(Timestamp),
    /// Ask for a new SVID now.
    Issue,
}

/// Says what to do about the SVID in use, `None` if there is none.
///
/// Renewal falls due at half of its life, up to a tenth of that earlier or later (`jitter`, 0 to 1, drawn once per SVID, so
/// that sidecars that started together do not renew together). It is due at once when there is no SVID or it has expired.
/// After a failure the pauses of [`retry`] hold, but never more than a tenth of the time left. Two attempts never lie closer
/// together than a second if the first succeeded, and a quarter of a second otherwise.
pub fn next(now: Timestamp, state: Option<&RotationState>, jitter: f64) -> Step {
    let Some(state) = state else { return Step::Issue };
    let due = state.begins().plus(state.life().mul_f64(0.45 + 0.1 * share(jitter)));
    let due = if now > state.not_after { now } else { due };
    let allowed = match state.last_attempt.filter(|attempt| *attempt <= now) {
        // A last attempt in the future means that the clock was set back: it says nothing.
        None => now,
        Some(attempt) if state.failures == 0 => attempt.plus(BACK_OFF_FIRST),
        Some(attempt) => {
            let left = state.not_after.since(now);
            let pause = pause(state.failures, jitter);
            attempt.plus(if left.is_zero() { pause } else { pause.min(left / 10).max(BACK_OFF_MIN) })
        }
    };
    wait_or_issue(now, due.max(allowed))
}

/// Says when to try again where there is no SVID at all: `failures` attempts failed, the last began at `last_attempt`.
///
/// The pause is 1 s, doubled with each failure up to 1 min, and up to a tenth shorter by `jitter` (0 to 1).
pub fn retry(now: Timestamp, last_attempt: Timestamp, failures: u32, jitter: f64) -> Step {
    if failures == 0 || last_attempt > now {
        return Step::Issue;
    }
    wait_or_issue(now, last_attempt.plus(pause(failures, jitter)))
}

/// Whether the SVID may be counted on: valid, and not in the last fifth of its life.
///
/// Readiness fails before expiry, so that a workload leaves service while its connections still work.
pub fn ready(now: Timestamp, state: &RotationState) -> bool {
    now >= state.not_before && now < state.not_after.minus(state.life().mul_f64(LAST_SHARE))
}

fn wait_or_issue(now: Timestamp, at: Timestamp) -> Step {
    if at <= now { Step::Issue } else { Step::WaitUntil(at) }
}

/// The pause after `failures` failures, at least one.
fn pause(failures: u32, jitter: f64) -> Duration {
    let doubled = BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(BACK_OFF_MAX).mul_f64(0.9 + 0.1 * share(jitter))
}

/// `jitter` as a share of 0 to 1, whatever was given.
fn share(jitter: f64) -> f64 {
    if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) }
}
