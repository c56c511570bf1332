//! The one reader of clocks.
//!
//! Every decision (deadlines, ages, back-off) uses the monotonic clock through [`Moment`]; wall
//! clock time appears in reports only. Pure code never reads a clock: it takes `now`. A pool reads
//! its [`Clock`], which a test can take into its own hands; sessions read the system's.

#[cfg(feature = "testing")]
mod manual;

use std::ops::{Add, Sub};
use std::sync::Weak;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};

#[cfg(feature = "testing")]
pub use manual::ManualClock;

use crate::cancel::Wake;

/// The clock of a pool: the system's or, with the feature `testing`, one that stands still until a
/// test moves it. Without the feature it is nothing at all.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    #[cfg(feature = "testing")]
    manual: Option<ManualClock>,
}

impl Clock {
    pub(crate) const fn system() -> Clock {
        Clock {
            #[cfg(feature = "testing")]
            manual: None,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn manual(clock: ManualClock) -> Clock {
        Clock { manual: Some(clock) }
    }

    /// See [`Moment::now`].
    #[inline]
    pub(crate) fn now(&self) -> Moment {
        self.set_by_hand().unwrap_or_else(Moment::now)
    }

    /// See [`Moment::coarse`].
    #[inline]
    pub(crate) fn coarse(&self) -> Moment {
        self.set_by_hand().unwrap_or_else(Moment::coarse)
    }

    /// See [`Moment::after`].
    pub(crate) fn after(&self, timeout: Duration) -> Moment {
        self.now() + timeout
    }

    /// Whether time passes only when a test says so: a wait for a deadline then ends by a wake-up.
    #[inline]
    pub(crate) fn is_manual(&self) -> bool {
        self.set_by_hand().is_some()
    }

    /// For jitter: another one for each pool, but always the same by a manual clock.
    pub(crate) fn seed(&self) -> u64 {
        let salt = if self.is_manual() { 0 } else { u64::from(std::process::id()) << 32 };
        self.now().0 ^ salt
    }

    #[inline]
    #[allow(clippy::unused_self, reason = "without the feature there is nothing to look at")]
    fn set_by_hand(&self) -> Option<Moment> {
        #[cfg(feature = "testing")]
        return self.manual.as_ref().map(ManualClock::moment);
        #[cfg(not(feature = "testing"))]
        None
    }

    /// Has `sleepers` woken each time a test moves the clock, for as long as they live.
    #[allow(clippy::unused_self, reason = "without the feature nobody moves the clock")]
    pub(crate) fn on_advance(&self, sleepers: Weak<dyn Wake>) {
        #[cfg(feature = "testing")]
        if let Some(manual) = &self.manual {
            manual.wake_later(sleepers);
        }
        #[cfg(not(feature = "testing"))]
        drop(sleepers);
    }
}

/// A point on the monotonic clock, in nanoseconds.
///
/// Unlike `std::time::Instant` it can be read from the coarse clock (a few milliseconds behind,
/// but without reading the hardware counter), compared with a precise reading, and made up in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Earlier than any moment that was ever read.
    pub(crate) const LONG_AGO: Moment = Moment(0);

    /// Later than any moment that is ever reached.
    pub(crate) const FAR_FUTURE: Moment = Moment(u64::MAX);

    pub(crate) fn now() -> Moment {
        Moment::from_timespec(clock_gettime(ClockId::Monotonic))
    }

    /// At most one kernel tick (4 ms) behind [`Moment::now`], for a quarter of its price.
    pub(crate) fn coarse() -> Moment {
        Moment::from_timespec(clock_gettime(ClockId::MonotonicCoarse))
    }

    #[allow(clippy::cast_sign_loss, reason = "the monotonic clock is never negative")]
    fn from_timespec(time: Timespec) -> Moment {
        Moment(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// The time from `earlier` to `self`, zero if `earlier` is the later one.
    pub(crate) fn saturating_since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The deadline that lies `timeout` after now; `FAR_FUTURE` when that cannot be told apart from never.
    pub(crate) fn after(timeout: Duration) -> Moment {
        Moment::now() + timeout
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, duration: Duration) -> Moment {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_sub(nanos))
    }
}

/// CPU time of all threads of this process so far.
pub(crate) fn process_cpu() -> Duration {
    Moment::from_timespec(clock_gettime(ClockId::ProcessCPUTime)).saturating_since(Moment(0))
}

/// Wall clock time, for display.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_is_comparable_with_the_precise_one() {
        let coarse = Moment::coarse();
        let now = Moment::now();
        assert!(coarse <= now);
        assert!(now.saturating_since(coarse) < Duration::from_secs(1));
    }

    #[test]
    fn adding_an_endless_duration_saturates() {
        assert_eq!(Moment::now() + Duration::MAX, Moment::FAR_FUTURE);
    }
}
