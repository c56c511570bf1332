//! Predictive warm-up: how many sessions to keep ready, told from how fast callers came lately.
//!
//! Pure: the maintenance thread brings the time and the number of calls so far. Acquiring pays
//! nothing for it.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Moment;

/// Calls are counted over at least this time, and looked at this often while they come.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// After this time without calls half of the expectation is left.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// Whether a pool keeps more sessions ready than `min_idle` while many callers come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Foresight {
    /// `min_idle` is the watermark.
    #[default]
    Off,
    /// The watermark is as many sessions as callers came, at the highest rate of late, in the time that
    /// a session takes to start; at least `min_idle`, at most `max_sessions`. It halves with every 5 s
    /// in which fewer come.
    ///
    /// Worth its memory where bursts come again and again and sessions do not stay: with
    /// [`Reuse::Fresh`](crate::Reuse::Fresh), or a [`session_timeout`](crate::PoolConfig::session_timeout)
    /// shorter than the pauses. Under [`Reuse::Keep`](crate::Reuse::Keep) and the default time-out the
    /// sessions of one burst are still idle for the next, and this adds nothing.
    ArrivalRate,
}

/// What is expected of the callers of one pool.
#[derive(Debug)]
pub(crate) struct Forecast {
    /// Calls a second.
    rate: f64,
    /// When they were counted the last time.
    then: Moment,
    before: u64,
}

impl Forecast {
    /// Nothing yet: no call has come by `now`.
    pub(crate) fn new(now: Moment) -> Forecast {
        Forecast { rate: 0.0, then: now, before: 0 }
    }

    /// Notes how many calls have come so far. Returns whether some came since the last time.
    #[allow(clippy::cast_precision_loss, reason = "calls within a tick are far below 2^52")]
    pub(crate) fn observe(&mut self, now: Moment, calls: u64) -> bool {
        let (passed, new) = (now.saturating_since(self.then), calls.saturating_sub(self.before));
        // A shorter time would make a rate of a thousand out of one call.
        if passed >= TICK {
            let came = new as f64 / passed.as_secs_f64();
            let faded = self.rate * 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
            self.rate = came.max(faded);
            (self.then, self.before) = (now, calls);
        }
        new > 0
    }

    /// Sessions to keep ready if a start takes `start_time`: as many as callers are expected until
    /// one that is ordered at the next look is ready.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is never negative"
    )]
    pub(crate) fn target(&self, start_time: Duration, min_idle: usize, max_sessions: usize) -> usize {
        let expected = (self.rate * (start_time + TICK).as_secs_f64()).round() as usize;
        expected.clamp(min_idle.min(max_sessions), max_sessions)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_millis(100);

    fn begin() -> (Forecast, Moment) {
        let now = Moment::FAR_FUTURE - Duration::from_secs(1_000_000);
        (Forecast::new(now), now)
    }

    #[test]
    fn a_burst_raises_the_target_at_once_and_it_halves_every_five_seconds() {
        let (mut forecast, now) = begin();
        assert_eq!(forecast.target(START, 2, 100), 2);
        forecast.observe(now + TICK, 8);
        // 80 a second, for a start and a tick: 0.2 s.
        assert_eq!(forecast.target(START, 2, 100), 16);
        forecast.observe(now + TICK + HALF_LIFE, 8);
        assert_eq!(forecast.target(START, 2, 100), 8);
        forecast.observe(now + TICK + HALF_LIFE * 20, 8);
        assert_eq!(forecast.target(START, 0, 100), 0, "nothing stays for ever");
    }

    #[test]
    fn calls_of_less_than_a_tick_are_looked_at_with_the_next() {
        let (mut forecast, now) = begin();
        forecast.observe(now + TICK / 10, 4);
        assert_eq!(forecast.target(START, 1, 100), 1);
        forecast.observe(now + TICK, 4);
        assert_eq!(forecast.target(START, 1, 100), 8);
    }

    proptest! {
        #[test]
        fn the_target_keeps_its_bounds_and_comes_back_to_the_watermark(
            ticks in proptest::collection::vec((100_u64..2_000, 0_u64..500), 1..60),
            min_idle in 0_usize..20,
            more in 0_usize..100,
            start in 0_u64..5_000,
        ) {
            let (mut forecast, mut now) = begin();
            let (start, max) = (Duration::from_millis(start), min_idle + more);
            let mut calls = 0;
            for (passed, came) in ticks {
                now = now + Duration::from_millis(passed);
                calls += came;
                forecast.observe(now, calls);
                let target = forecast.target(start, min_idle, max);
                prop_assert!((min_idle..=max).contains(&target));
                prop_assert!(target <= forecast.target(start + TICK, min_idle, max), "a longer start wants more");
            }
            let mut last = forecast.target(start, min_idle, max);
            for _ in 0..40 {
                now = now + HALF_LIFE;
                forecast.observe(now, calls);
                let target = forecast.target(start, min_idle, max);
                prop_assert!(target <= last, "it only falls while nobody comes");
                last = target;
            }
            prop_assert_eq!(last, min_idle);
        }
    }
}
