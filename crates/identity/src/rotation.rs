//! When an SVID is renewed: a plan without a clock. The program sleeps and acts.

use model::Timestamp;
use std::time::Duration;

/// The first pause after a failed attempt, and the least time between two attempts that succeeded.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause after failed attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// The shortest pause: a tenth of very little time left must not become a busy loop.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
/// The longest spread of replacements before their time.
const URGENT_MAX: Duration = Duration::from_secs(60);
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
    wait_or_issue(now, due.max(allowed(now, state, jitter)))
}

/// The moment before which nothing is tried again.
fn allowed(now: Timestamp, state: &RotationState, jitter: f64) -> Timestamp {
    match state.last_attempt.filter(|attempt| *attempt <= now) {
        // A last attempt in the future means that the clock was set back: it says nothing.
        None => now,
        Some(attempt) if state.failures == 0 => attempt.plus(BACK_OFF_FIRST),
        Some(attempt) => {
            let left = state.not_after.since(now);
            let pause = pause(state.failures, jitter);
            attempt.plus(if left.is_zero() { pause } else { pause.min(left / 10).max(BACK_OFF_MIN) })
        }
    }
}

/// As [`next`] for an SVID that must be replaced before its time (`urgent`: since when that is known), because its authority is
/// about to be retired or it is revoked: within a tenth of its life and at most a minute, spread by `jitter`.
pub fn next_of(now: Timestamp, state: &RotationState, urgent: Option<Timestamp>, jitter: f64) -> Step {
    let planned = next(now, Some(state), jitter);
    let (Step::WaitUntil(_), Some(since)) = (planned, urgent) else { return planned };
    let due = since.plus((state.life() / 10).min(URGENT_MAX).mul_f64(share(jitter)));
    match planned {
        Step::WaitUntil(at) => wait_or_issue(now, at.min(due.max(allowed(now, state, jitter)))),
        Step::Issue => Step::Issue,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const ISSUED: Timestamp = Timestamp::from_seconds(1_795_514_400);

    /// An SVID of one hour, back-dated by five minutes, that nobody has tried to replace.
    fn fresh() -> RotationState {
        lasting(Duration::from_millis(HOUR_MS))
    }

    fn lasting(life: Duration) -> RotationState {
        let not_before = ISSUED.minus(Duration::from_secs(300));
        RotationState { not_before, not_after: ISSUED.plus(life), issued_at: ISSUED, failures: 0, last_attempt: None }
    }

    fn at(millis: u64) -> Timestamp {
        ISSUED.plus(Duration::from_millis(millis))
    }

    #[test]
    fn renewal_falls_due_at_half_of_life_give_or_take_a_tenth() {
        let due = |jitter| next(ISSUED, Some(&fresh()), jitter);
        for (jitter, share) in [(0.0, 45), (0.5, 50), (1.0, 55), (-7.0, 45), (9.0, 55), (f64::NAN, 50), (f64::INFINITY, 55)] {
            let expected = HOUR_MS * share / 100;
            let Step::WaitUntil(moment) = due(jitter) else { panic!("{jitter}") };
            assert!(moment.since(at(expected - 1)) <= Duration::from_millis(2), "{jitter}: {moment}");
        }
        let mut last = ISSUED;
        for tenth in 0..=10 {
            let Step::WaitUntil(moment) = due(f64::from(tenth) / 10.0) else { panic!("{tenth}") };
            assert!(moment > last, "jitter spreads");
            last = moment;
        }
    }

    #[test]
    fn what_to_do_depends_on_now_and_on_what_was_tried() {
        let failed = |failures, last: u64| RotationState { failures, last_attempt: Some(at(last)), ..fresh() };
        let wait = |millis| Step::WaitUntil(at(millis));
        let half = HOUR_MS / 2;
        let table = [
            ("before half of life", half - 1, fresh(), wait(half)),
            ("at half of life", half, fresh(), Step::Issue),
            ("a second after the first failure", half + 999, failed(1, half), Step::Issue),
            ("sooner than that", half + 900, failed(1, half), wait(half + 950)),
            ("after the third failure", half + 1, failed(3, half), wait(half + 3800)),
            ("after many failures: a minute", half + 1, failed(40, half), wait(half + 57_000)),
            ("a tenth of the time left", HOUR_MS - 100_000, failed(40, HOUR_MS - 100_000), wait(HOUR_MS - 90_000)),
            ("no less than a quarter of a second", HOUR_MS - 100, failed(40, HOUR_MS - 100), wait(HOUR_MS + 150)),
            ("asleep past expiry", HOUR_MS * 7, fresh(), Step::Issue),
            ("asleep past expiry after failures", HOUR_MS * 7, failed(5, half), Step::Issue),
            ("expired, and it fails", HOUR_MS + 5000, failed(4, HOUR_MS + 4000), wait(HOUR_MS + 4000 + 7600)),
            ("expired, and just replaced by another such", HOUR_MS + 5000, failed(0, HOUR_MS + 4500), wait(HOUR_MS + 5500)),
            ("an attempt in the future counts for nothing", half, failed(40, half * 9), Step::Issue),
            ("the clock was set back", 0, RotationState { issued_at: at(HOUR_MS * 9000), ..fresh() }, wait(half - 150_000)),
        ];
        for (name, now, state, expected) in table {
            assert_eq!(next(at(now), Some(&state), 0.5), expected, "{name}");
        }
        assert_eq!(next(ISSUED, None, 0.5), Step::Issue, "no SVID");
    }

    #[test]
    fn without_an_svid_the_pauses_double_up_to_a_minute() {
        let pauses = [1, 2, 4, 8, 16, 32, 60, 60, 60];
        for (failures, seconds) in (1..).zip(pauses).chain([(u32::MAX, 60)]) {
            for (jitter, tenths) in [(0.0, 9), (1.0, 10)] {
                let pause = seconds * 100 * tenths;
                assert_eq!(retry(ISSUED, ISSUED, failures, jitter), Step::WaitUntil(at(pause)), "{failures}");
                assert_eq!(retry(at(pause), ISSUED, failures, jitter), Step::Issue, "{failures}");
            }
        }
        assert_eq!(retry(ISSUED, ISSUED, 0, 0.5), Step::Issue);
        assert_eq!(retry(ISSUED, at(99), 3, 0.5), Step::Issue, "the clock was set back");
    }

    #[test]
    fn readiness_ends_before_the_svid_does() {
        let ready = |millis| super::ready(at(millis), &fresh());
        for (millis, expected) in [(0, true), (HOUR_MS * 8 / 10 - 1, true), (HOUR_MS * 8 / 10, false), (HOUR_MS * 2, false)] {
            assert_eq!(ready(millis), expected, "{millis}");
        }
        assert!(!super::ready(fresh().not_before.minus(Duration::from_millis(1)), &fresh()), "not valid yet");
    }

    /// What the program does with the plan, at a simulated clock: `succeeds` says when an attempt does.
    fn attempts(mut state: RotationState, jitter: f64, hours: u64, succeeds: impl Fn(Timestamp) -> bool) -> Vec<Timestamp> {
        let (life, end) = (state.life(), at(HOUR_MS * hours));
        let (mut now, mut attempts) = (ISSUED, Vec::new());
        while now < end {
            match next(now, Some(&state), jitter) {
                Step::WaitUntil(moment) => {
                    assert!(moment > now, "a wait that does not wait");
                    now = moment;
                }
                Step::Issue => {
                    attempts.push(now);
                    assert!(attempts.len() < 50_000, "a busy loop");
                    state.last_attempt = Some(now);
                    if succeeds(now) {
                        state = RotationState { issued_at: now, failures: 0, not_after: now.plus(life), ..state };
                    } else {
                        state.failures += 1;
                    }
                }
            }
        }
        attempts
    }

    #[test]
    fn the_plan_never_turns_into_a_busy_loop() {
        let lives = [0, 1, 999, 1000, 10_000, HOUR_MS, 24 * HOUR_MS].map(Duration::from_millis);
        for life in lives {
            for jitter in [0.0, 0.5, 1.0] {
                let gaps = |succeeds: &dyn Fn(Timestamp) -> bool| -> Duration {
                    let made = attempts(lasting(life), jitter, 3, succeeds);
                    let gaps = made.windows(2).map(|pair| pair[1].since(pair[0]));
                    gaps.min().unwrap_or(Duration::MAX)
                };
                assert!(gaps(&|_| false) >= BACK_OFF_MIN, "{life:?}: failing");
                assert!(gaps(&|_| true) >= BACK_OFF_FIRST, "{life:?}: succeeding");
                assert!(gaps(&|now| now.seconds().is_multiple_of(3)) >= BACK_OFF_MIN, "{life:?}: both");
            }
        }
        let failing = attempts(fresh(), 0.5, 3, |_| false);
        assert!(failing.len() < 300, "{} attempts in two and a half hours", failing.len());
        let healthy = attempts(fresh(), 0.5, 100, |_| true);
        assert_eq!(healthy.len(), 199, "once each half hour");
    }

    #[test]
    fn an_outage_that_ends_before_expiry_is_survived() {
        // The shorter the rest of life, the more often it is tried: the last attempt lies within a tenth of the end.
        for life in [10_000, 60_000, HOUR_MS] {
            let tried = attempts(lasting(Duration::from_millis(life)), 0.5, 2, |_| false);
            let last = tried.iter().filter(|moment| **moment < at(life)).max().expect("tried");
            assert!(at(life).since(*last) <= Duration::from_millis(life / 10).max(BACK_OFF_MIN), "{life}: {last}");
        }
    }
}
