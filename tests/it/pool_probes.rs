//! What goes wrong in pools: the probes that the peers were put to, one test a row, each at its best value.
//! (Those of panics in hooks and of a panic while holding are in `pool_operate`.)

use std::time::Duration;

use remuda::testing::{FakeWorker, Fault, FaultPlan, Hold, ManualClock};
use remuda::{Error, PoolConfig, Reuse, SessionPool};

use crate::hostile_worker;
use crate::support::{GENEROUS, is_running, isolated, poll};

fn pool(fake: &FakeWorker) -> PoolConfig {
    SessionPool::builder(fake.runtime()).reuse(Reuse::Keep).min_idle(0).max_sessions(2)
}

isolated! {
    fn my_start_is_slow_and_somebody_releases_i_am_served_by_the_release() {
        let starts = Hold::new();
        let fake = FakeWorker::new().hold_starts(&starts);
        let pool = pool(&fake).pre_warm_on_start(false).start().unwrap();
        let first = {
            let pool = pool.clone();
            std::thread::spawn(move || pool.acquire().unwrap())
        };
        starts.await_held(1);
        starts.release_one();
        let first = first.join().unwrap();
        let id = first.id();
        let second = {
            let pool = pool.clone();
            std::thread::spawn(move || pool.acquire().unwrap().id())
        };
        // The second one's start hangs for as long as the test likes.
        starts.await_held(1);
        drop(first);
        assert_eq!(second.join().unwrap(), id);
        starts.release();
    }
}

isolated! {
    fn a_start_that_is_later_than_its_caller_is_kept_for_the_next() {
        let starts = Hold::new();
        let fake = FakeWorker::new().hold_starts(&starts);
        let clock = ManualClock::new();
        let pool = pool(&fake).clock(&clock).pre_warm_on_start(false).start().unwrap();
        let second = Duration::from_secs(1);
        std::thread::scope(|threads| {
            let caller = threads.spawn(|| pool.acquire_timeout(second).map(drop));
            // A start that nobody waits for any more would not begin.
            starts.await_held(1);
            clock.advance(second);
            assert!(matches!(caller.join().unwrap(), Err(Error::AcquireTimeout { .. })));
        });
        starts.release();
        poll(|| pool.info().counts.idle == 1, || format!("{:?}", pool.info()));
        drop(pool.try_acquire().unwrap());
        assert_eq!(fake.starts(), 1, "nothing was thrown away");
    }
}

isolated! {
    fn a_slow_death_holds_up_neither_who_releases_nor_who_acquires() {
        // It does not hear that it should leave, and has a minute to do so.
        let pool = SessionPool::builder(hostile_worker::runtime("ready()\nserve()"))
            .reuse(Reuse::Keep)
            .min_idle(0)
            .max_sessions(2)
            .recycle_after_executions(1)
            .retire_grace(GENEROUS)
            .start()
            .unwrap();
        let mut lease = pool.acquire().unwrap();
        lease.execute("1").unwrap();
        let pid = lease.pid();
        drop(lease);
        assert_ne!(pool.acquire_timeout(GENEROUS).unwrap().pid(), pid);
        assert_eq!(pool.info().counts.retiring, 1, "it is still dying");
        assert!(is_running(pid));
        pool.terminate();
        assert!(!is_running(pid));
    }
}

isolated! {
    fn starts_that_always_fail_fail_callers_at_once_with_the_cause_and_are_few() {
        let fake = FakeWorker::new().faults(FaultPlan::none().from_start(1, Fault::Exit(3)));
        let clock = ManualClock::new();
        let pool = pool(&fake).clock(&clock).pre_warm_on_start(false).start().unwrap();
        for step in 1..=4 {
            let mut wait = Duration::ZERO;
            for _ in 0..100 {
                // Time stands still: who had to wait would never be told.
                match pool.acquire_timeout(GENEROUS) {
                    Err(Error::StartFailing { cause, retry_in }) => {
                        assert!(matches!(&*cause, Error::StartDied { .. }), "{cause}");
                        wait = retry_in;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(fake.starts(), step, "one for each step of the back-off");
            clock.advance(wait);
        }
    }
}

isolated! {
    fn one_start_that_fails_takes_no_place_away() {
        let fake = FakeWorker::new().faults(FaultPlan::none().at_start(1, Fault::Exit(3)));
        let pool = pool(&fake).pre_warm_on_start(false).start().unwrap();
        poll(|| pool.acquire().is_ok(), || format!("{:?}", pool.info()));
        let _both = [pool.acquire_timeout(GENEROUS).unwrap(), pool.acquire_timeout(GENEROUS).unwrap()];
    }
}
