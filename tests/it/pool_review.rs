//! What an adversary found in the pool: user code at the wrong moment, and workers that are stuck.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeReply, FakeWorker, Fault, FaultPlan, ManualClock};
use remuda::{CancelToken, Error, PoolEvent, Removal, Request, Reuse};

use crate::support::{isolated, poll, scripted};

isolated! {
    fn endless_code_of_a_hook_for_new_sessions_does_not_hold_up_the_end_of_a_pool() {
        let fake = FakeWorker::new().reply("endless", FakeReply::hang());
        let pool = scripted(&fake).pre_warm_on_start(false).min_idle(1).max_sessions(1);
        let pool = pool.on_create(|session| Ok(session.execute("endless").map(drop)?)).start().unwrap();
        thread::scope(|threads| {
            let waits = threads.spawn(|| pool.acquire().map(drop));
            poll(|| fake.asked().contains(&"endless".to_owned()), || format!("{:?}", fake.asked()));
            pool.terminate();
            assert!(matches!(waits.join().unwrap(), Err(Error::Closed)));
        });
        assert_eq!(pool.info().counts.total, 0);
    }
}

isolated! {
    fn a_worker_that_is_stuck_in_a_ping_does_not_hold_up_the_end_of_a_pool() {
        let endless = Duration::from_secs(3600);
        let clock = ManualClock::new();
        let fake = FakeWorker::new().faults(FaultPlan::none().from_ping(1, Fault::Hang));
        let config = scripted(&fake).clock(&clock).min_idle(1).max_sessions(1).ping_timeout(endless);
        let pool = config.start().unwrap();
        clock.advance(Duration::from_secs(31));
        poll(|| pool.info().counts.resetting == 1, || format!("{:?}", pool.info()));
        pool.shutdown(endless);
        assert_eq!(pool.info().counts.total, 0);
    }
}

isolated! {
    fn workers_that_are_stuck_one_after_the_other_do_not_hold_up_the_time_limit_of_a_reset() {
        let clock = ManualClock::new();
        let plan = FaultPlan::none().from_ping(1, Fault::Hang).at_reset(1, Fault::Hang);
        let fake = FakeWorker::new().faults(plan).answer("1", 1);
        let removed = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&removed);
        let listener = move |event: &PoolEvent| {
            if let PoolEvent::Removed { reason, .. } = event {
                seen.lock().unwrap().push(*reason);
            }
        };
        let config = scripted(&fake).clock(&clock).min_idle(4).max_sessions(4).listener(listener);
        let config = config.reuse(Reuse::Reset).ping_timeout(Duration::from_millis(300));
        let pool = config.start().unwrap();
        let mut lease = pool.acquire().unwrap();
        clock.advance(Duration::from_secs(31));
        poll(|| pool.info().counts.resetting == 1, || format!("{:?}", pool.info()));
        // The first of three that are stuck is asked.
        lease.execute("1").unwrap();
        drop(lease);
        clock.advance(Duration::from_secs(3));
        let all_left = || {
            clock.advance(Duration::from_millis(100));
            removed.lock().unwrap().len() >= 4
        };
        poll(all_left, || format!("{:?}", removed.lock().unwrap()));
        let reasons = removed.lock().unwrap().clone();
        let reset = reasons.iter().position(|reason| *reason == Removal::ResetFailed).expect("it never answers");
        let hung = reasons.iter().rposition(|reason| *reason == Removal::Hung).expect("they never answer");
        assert!(reset < hung, "{reasons:?}");
    }
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

/// A request whose callback cannot be dropped.
fn armed(code: &'static str) -> Request<'static> {
    let bomb = Bomb;
    Request::code(code).on_output(move |_, _| _ = &bomb)
}

isolated! {
    fn a_request_whose_drop_panics_ends_its_job_and_no_other() {
        let fake = FakeWorker::new().answer("1", 1);
        let unfit = Arc::new(AtomicBool::new(false));
        let fit = Arc::clone(&unfit);
        let config = scripted(&fake).min_idle(1).max_sessions(1).reuse(Reuse::Keep);
        let config = config.validate_with(move |_| !fit.load(Ordering::SeqCst));
        let pool = config.start().unwrap();
        // It is dropped by the runner: after the job, or because no session is fit.
        let _ = pool.submit(armed("1")).wait();
        unfit.store(true, Ordering::SeqCst);
        assert!(matches!(pool.submit(armed("1")).wait(), Err(Error::Unfit { .. })));
        unfit.store(false, Ordering::SeqCst);
        // Three refusals open the breaker for half a second; without a runner this would wait for ever.
        poll(|| pool.submit("1").wait().is_ok(), || format!("{:?}", pool.info()));
        // By whoever cancels it, and by the end of the pool.
        let lease = pool.acquire().unwrap();
        let token = CancelToken::new();
        let cancelled = pool.scope(&token).submit(armed("1"));
        let closed = (pool.submit(armed("1")), pool.submit("1"));
        token.cancel();
        assert!(matches!(cancelled.wait(), Err(Error::Cancelled)));
        pool.terminate();
        for job in [closed.0, closed.1] {
            assert!(matches!(job.wait(), Err(Error::Closed)));
        }
        drop(lease);
    }
}
