//! The test kit: a clock that stands still, scripted workers, and the faults they are told to have.

use std::thread;
use std::time::Duration;

use remuda::testing::{ManualClock, eventually};
use remuda::{Error, PoolConfig};

use crate::support::{isolated, pool};

const MINUTE: Duration = Duration::from_secs(60);

fn timed(clock: &ManualClock) -> PoolConfig {
    pool().clock(clock)
}

isolated! {
    fn an_idle_session_leaves_when_the_clock_is_moved_and_not_before() {
        let clock = ManualClock::new();
        let pool = timed(&clock).min_idle(0).session_timeout(10 * MINUTE).start().unwrap();
        drop(pool.acquire().unwrap());
        eventually(|| pool.info().counts.idle == 1, || format!("{:?}", pool.info()));
        let passes = pool.metrics().health_check_runs;
        clock.advance(5 * MINUTE);
        eventually(|| pool.metrics().health_check_runs > passes, || "no pass".to_owned());
        assert_eq!(pool.info().counts.idle, 1, "its time is not over");
        clock.advance(6 * MINUTE);
        eventually(|| pool.info().counts.total == 0, || format!("{:?}", pool.info()));
    }
}

isolated! {
    fn an_acquire_times_out_when_the_clock_is_moved() {
        let clock = ManualClock::new();
        let pool = timed(&clock).min_idle(1).max_sessions(1).start().unwrap();
        let lease = pool.acquire().unwrap();
        let waits = {
            let pool = pool.clone();
            thread::spawn(move || pool.acquire_timeout(60 * MINUTE).map(drop))
        };
        eventually(|| pool.info().counts.waiters == 1, || "nobody waits".to_owned());
        eventually(
            || {
                clock.advance(20 * MINUTE);
                waits.is_finished()
            },
            || "it still waits".to_owned(),
        );
        match waits.join().unwrap() {
            Err(Error::AcquireTimeout { waited, .. }) => assert!(waited >= 60 * MINUTE),
            other => panic!("{other:?}"),
        }
        drop(lease);
    }
}
