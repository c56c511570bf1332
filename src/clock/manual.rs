//! A clock that stands still until a test moves it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Moment;
use crate::cancel::Wake;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Where a manual clock starts: far enough from zero for any age.
const START: u64 = 1 << 60;

/// A pool's clock in the hands of a test: it stands still until [`advance`](ManualClock::advance).
///
/// Given to a pool by [`PoolConfig::clock`](crate::PoolConfig::clock), everything the pool does by
/// time goes by it: acquire time-outs, idle time-outs, lifetimes, the back-off of failed starts, the
/// rhythm of health passes, limits of resets, the deadline of
/// [`shutdown`](crate::SessionPool::shutdown). Nothing of that moves by itself, so a test of an hour
/// takes a millisecond and gives the same result each time.
///
/// Clones are the same clock, and several pools may share one.
///
/// ```
/// use remuda::SessionPool;
/// use remuda::testing::{FakeWorker, ManualClock, eventually};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let pool = SessionPool::builder(FakeWorker::new().runtime())
///     .min_idle(0)
///     .session_timeout(Duration::from_secs(300))
///     .clock(&clock)
///     .start()?;
/// drop(pool.acquire()?);
/// eventually(|| pool.info().counts.idle == 1, || format!("not given back: {:?}", pool.info()));
/// clock.advance(Duration::from_secs(301));
/// eventually(|| pool.info().counts.total == 0, || format!("still there: {:?}", pool.info()));
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// # What keeps the system's clock
/// Sessions: their start time-out, the time limits and the grace of an execution, what a retired
/// process is given to leave. So does whoever waits for a [`Job`](crate::Job) or a
/// [`CancelToken`](crate::CancelToken) with a time-out, and the times in reports for people.
#[derive(Clone, Default)]
pub struct ManualClock {
    inner: Arc<Inner>,
}

struct Inner {
    nanos: AtomicU64,
    /// The pools that go by this clock.
    sleepers: Mutex<Vec<Weak<dyn Wake>>>,
}

impl Default for Inner {
    fn default() -> Inner {
        Inner { nanos: AtomicU64::new(START), sleepers: Mutex::new(Vec::new()) }
    }
}

impl ManualClock {
    /// A clock that shows zero.
    pub fn new() -> ManualClock {
        ManualClock::default()
    }

    /// Lets this much time pass at once, and has everybody who waits by this clock look at it.
    ///
    /// Does not wait for what they do then: the pool's threads run on their own. See
    /// [`eventually`](crate::testing::eventually).
    ///
    /// # Panics
    /// If the clock would show more than five hundred years.
    pub fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).ok();
        let before = self.inner.nanos.load(Ordering::SeqCst);
        assert!(nanos.and_then(|nanos| before.checked_add(nanos)).is_some(), "beyond the end of time");
        self.inner.nanos.fetch_add(nanos.unwrap_or_default(), Ordering::SeqCst);
        let pools: Vec<Arc<dyn Wake>> = {
            let mut sleepers = self.inner.sleepers.lock();
            sleepers.retain(|pool| pool.strong_count() > 0);
            sleepers.iter().filter_map(Weak::upgrade).collect()
        };
        // The time was set before: each sleeper sees it under its own lock before it sleeps, or
        // sleeps already and is woken under that lock.
        for pool in pools {
            pool.wake();
        }
    }

    /// The time that has passed since this clock was made.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.inner.nanos.load(Ordering::SeqCst) - START)
    }

    #[inline]
    pub(super) fn moment(&self) -> Moment {
        Moment(self.inner.nanos.load(Ordering::SeqCst))
    }

    pub(super) fn wake_later(&self, sleepers: Weak<dyn Wake>) {
        self.inner.sleepers.lock().push(sleepers);
    }
}

impl From<&ManualClock> for ManualClock {
    fn from(clock: &ManualClock) -> ManualClock {
        clock.clone()
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock").field(&self.now()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::sync::{Condvar, wait_by};

    #[derive(Default)]
    struct Sleeper {
        lock: Mutex<()>,
        bell: Condvar,
    }

    impl Wake for Sleeper {
        fn wake(&self) {
            let _guard = self.lock.lock();
            self.bell.notify_all();
        }
    }

    #[test]
    fn a_wait_ends_when_the_clock_has_been_moved_past_its_deadline_and_not_before() {
        let hand = ManualClock::new();
        let clock = Clock::manual(hand.clone());
        let sleeper = Arc::new(Sleeper::default());
        let other: Arc<dyn Wake> = sleeper.clone();
        clock.on_advance(Arc::downgrade(&other));
        let deadline = clock.after(Duration::from_secs(3_600));
        let waits = {
            let clock = clock.clone();
            std::thread::spawn(move || {
                let mut guard = sleeper.lock.lock();
                let mut wakes = 0;
                while !wait_by(&clock, &sleeper.bell, &mut guard, Some(deadline)) {
                    wakes += 1;
                }
                (wakes, clock.now() >= deadline)
            })
        };
        hand.advance(Duration::from_secs(3_599));
        assert!(!waits.is_finished(), "its time has not come");
        hand.advance(Duration::from_secs(1));
        let (wakes, late) = waits.join().expect("the waiter ends");
        assert!(wakes <= 1 && late);
    }

    #[test]
    fn both_readings_stand_still_and_clones_are_one_clock() {
        let hand = ManualClock::new();
        let clock = Clock::manual(ManualClock::from(&hand));
        let now = clock.now();
        assert_eq!((clock.coarse(), clock.now()), (now, now));
        hand.advance(Duration::from_millis(7));
        assert_eq!(clock.now().saturating_since(now), Duration::from_millis(7));
        assert_eq!(hand.now(), Duration::from_millis(7));
        assert!(clock.is_manual() && !Clock::system().is_manual());
    }

    #[test]
    #[should_panic(expected = "beyond the end of time")]
    fn time_has_an_end() {
        ManualClock::new().advance(Duration::MAX);
    }
}
