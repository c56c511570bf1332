//! When the next start of a session may be tried. Pure: the caller brings the time.
//!
//! Starts come in batches: a batch begins with a start while none is under way and ends when none
//! is. A batch that failed whole is one failure, however many starts it had, so that ten sessions
//! that fail together do not push the back-off ten steps up.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Moment;
use crate::named::show_by_name;

/// Wait after the first batch that failed whole: the Python ancestor's.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait between two attempts.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Whether sessions are being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// The last batch of starts brought a session: starts run as wanted.
    Closed,
    /// The last batch failed whole, or the sessions that the last ones brought were no good: no start until
    /// the back-off has passed.
    Open,
    /// The back-off has passed: one start is tried, alone.
    HalfOpen,
}

impl BreakerState {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

show_by_name!(BreakerState);

/// The circuit breaker of session starts.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// Batches that failed whole, one after the other.
    failures: u32,
    /// When the next attempt may begin; meaningless while `failures` is zero.
    retry_at: Moment,
    roll: Roll,
}

impl Breaker {
    pub(crate) fn new(seed: u64) -> Breaker {
        Breaker { failures: 0, retry_at: Moment::FAR_FUTURE, roll: Roll::new(seed) }
    }

    pub(crate) fn state(&self, now: Moment) -> BreakerState {
        match self.failures {
            0 => BreakerState::Closed,
            _ if now < self.retry_at => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// A start brought a session.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = Moment::FAR_FUTURE;
    }

    /// A batch of starts ended without a session.
    pub(crate) fn batch_failed(&mut self, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        let steps = (self.failures - 1).min(16);
        let base = FIRST_BACKOFF.saturating_mul(1 << steps).min(MAX_BACKOFF);
        // Up to a fifth longer, so that pools that failed together do not try again together.
        self.retry_at = now + self.roll.stretch(base, 5).min(MAX_BACKOFF);
    }

    /// A session that had been started was no good, like `before` others before it: that they got ready
    /// was no success.
    pub(crate) fn brought_a_dud(&mut self, before: u32, now: Moment) {
        self.failures = self.failures.max(before);
        self.batch_failed(now);
    }

    /// Batches that failed whole since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next attempt may begin; `None` if nothing stands in its way by design.
    pub(crate) fn retry_at(&self) -> Option<Moment> {
        (self.failures > 0).then_some(self.retry_at)
    }
}

/// A small generator for jitter (xorshift): spread matters here, secrecy does not.
#[derive(Debug)]
pub(crate) struct Roll(u64);

impl Roll {
    pub(crate) fn new(seed: u64) -> Roll {
        Roll(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`, zero if `bound` is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// `base` and up to one `part`th of it more.
    fn stretch(&mut self, base: Duration, part: u32) -> Duration {
        base + self.up_to(base / part)
    }

    /// `base` or up to a tenth of it less.
    pub(crate) fn shorten(&mut self, base: Duration) -> Duration {
        base.saturating_sub(self.up_to(base / 10))
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(nanos.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Moment {
        Moment::FAR_FUTURE - Duration::from_secs(1_000_000)
    }

    #[test]
    fn the_first_failed_batch_waits_half_a_second_and_a_success_closes() {
        let mut breaker = Breaker::new(7);
        let now = start();
        assert_eq!(breaker.state(now), BreakerState::Closed);
        breaker.batch_failed(now);
        assert_eq!(breaker.state(now), BreakerState::Open);
        assert_eq!(breaker.state(now + Duration::from_millis(499)), BreakerState::Open);
        assert_eq!(breaker.state(now + Duration::from_millis(600)), BreakerState::HalfOpen);
        breaker.succeeded();
        assert_eq!(breaker.state(now), BreakerState::Closed);
        assert_eq!(breaker.retry_at(), None);
    }

    #[test]
    fn the_back_off_doubles_up_to_its_cap() {
        let mut breaker = Breaker::new(7);
        let now = start();
        let mut last = Duration::ZERO;
        for step in 0..40 {
            breaker.batch_failed(now);
            let wait = breaker.retry_at().expect("open").saturating_since(now);
            let base = FIRST_BACKOFF.saturating_mul(1 << step.min(16)).min(MAX_BACKOFF);
            assert!(wait >= base && wait <= MAX_BACKOFF, "step {step} waits {wait:?}");
            assert!(wait >= last || wait >= base);
            last = wait;
        }
        assert_eq!(last, MAX_BACKOFF);
    }

    #[test]
    fn jitter_only_shortens_a_budget_and_by_a_tenth_at_most() {
        let mut roll = Roll::new(3);
        let base = Duration::from_secs(100);
        for _ in 0..1000 {
            let short = roll.shorten(base);
            assert!(short <= base && short >= Duration::from_secs(90));
        }
        assert_eq!(roll.below(0), 0);
    }
}
