//! Acquiring and giving back: order, time-outs, reuse, recycling, numbers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeWorker, Hold, ManualClock};
use remuda::{Error, PlaceName, Reuse, SessionPool};

use crate::support::{ANCESTOR_METRICS, GENEROUS, isolated, poll, pool, scripted};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until `count` callers stand in the queue.
fn await_waiters(pool: &SessionPool, count: usize) {
    poll(|| pool.metrics().waiting == count, || format!("{:?}", pool.metrics()));
}

/// Waits until nothing is being started, reset or retired.
fn await_rest(pool: &SessionPool) {
    let moving = |pool: &SessionPool| {
        let counts = pool.info().counts;
        counts.starting + counts.resetting + counts.retiring
    };
    poll(|| moving(pool) == 0, || format!("{:?}", pool.info().counts));
}

isolated! {
    fn a_session_is_acquired_used_and_given_back() {
        let pool = pool().start().unwrap();
        assert_eq!(pool.info().counts.idle, 2, "min_idle sessions are ready after the start");
        let mut session = pool.acquire().unwrap();
        assert_eq!(session.execute("6 * 7").unwrap().value, 42);
        assert!(session.is_alive());
        drop(session);
        let metrics = pool.metrics();
        assert_eq!((metrics.pool_hits, metrics.pool_misses), (1, 0));
        assert_eq!(metrics.total_acquisition_time, Duration::ZERO, "a hit reads no clock");
    }
}

isolated! {
    fn a_hundred_tasks_on_ten_sessions_all_complete() {
        let pool = pool().min_idle(0).max_sessions(10).start().unwrap();
        let (most, now) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|threads| {
            for task in 0..100_u64 {
                let (pool, most, now) = (&pool, &most, &now);
                threads.spawn(move || {
                    let mut session = pool.acquire_timeout(GENEROUS).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    assert_eq!(session.execute(format!("{task} + 1")).unwrap().value, task + 1);
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= 10);
        let metrics = pool.metrics();
        assert_eq!((metrics.acquisition_attempts, metrics.acquisition_success), (100, 100));
        assert!(metrics.total_sessions <= 10 && metrics.acquisition_timeouts == 0, "{metrics:?}");
        assert_eq!(metrics.pool_hits + metrics.pool_misses, 100);
        assert!(metrics.total_acquisition_time > Duration::ZERO);
    }
}

isolated! {
    fn twenty_tasks_on_ten_sessions_are_served_in_order() {
        let pool = scripted(&FakeWorker::new()).min_idle(10).max_sessions(10).start().unwrap();
        let held: Vec<_> = (0..10).map(|_| pool.acquire().unwrap()).collect();
        let order = Mutex::new(Vec::new());
        thread::scope(|threads| {
            for number in 0..10 {
                let (pool, order) = (&pool, &order);
                threads.spawn(move || {
                    let session = pool.acquire().unwrap();
                    order.lock().unwrap().push(number);
                    drop(session);
                });
                await_waiters(pool, number + 1);
            }
            // One session alone, so that the hand-overs come one after the other.
            let mut held = held.into_iter();
            drop(held.next());
            await_waiters(&pool, 0);
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), (0..10).collect::<Vec<_>>());
    }
}

isolated! {
    fn a_zero_time_limit_tries_once() {
        // Peer defect A3: zero was read as "no limit".
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let held = pool.acquire_timeout(Duration::ZERO).unwrap();
        match pool.acquire_timeout(Duration::ZERO) {
            Err(Error::AcquireTimeout { ahead: 0, last_start_error: None, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(pool.try_acquire(), Err(Error::AcquireTimeout { .. })));
        assert_eq!(pool.metrics().acquisition_timeouts, 2);
        drop(held);
    }
}

isolated! {
    fn a_time_limit_ends_a_wait_and_is_counted() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let held = pool.acquire().unwrap();
        match pool.acquire_timeout(Duration::from_millis(20)) {
            Err(Error::AcquireTimeout { waited, .. }) => assert!(waited >= Duration::from_millis(20)),
            other => panic!("{other:?}"),
        }
        assert_eq!(pool.metrics().acquisition_timeouts, 1);
        drop(held);
        drop(pool.acquire().unwrap());
    }
}

isolated! {
    fn waiters_are_limited_in_number() {
        let pool = pool().min_idle(1).max_sessions(1).max_waiters(1).start().unwrap();
        let held = pool.acquire().unwrap();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire().map(drop));
            await_waiters(&pool, 1);
            assert!(matches!(pool.acquire(), Err(Error::TooManyWaiters { limit: 1 })));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
    }
}

isolated! {
    fn nothing_leaks_to_the_next_user_after_a_reset() {
        // Peer defects A5 and B8: the next user read the last one's secret.
        let pool = pool().min_idle(1).max_sessions(1).warmup_code("warm = 1").start().unwrap();
        let mut session = pool.acquire().unwrap();
        session.execute("secret = 42; warm = 2").unwrap();
        let pid = session.pid();
        drop(session);
        let mut session = pool.acquire().unwrap();
        assert_eq!(session.pid(), pid, "the process stays");
        assert_eq!(session.execute("warm").unwrap().value, 1);
        assert_eq!(session.execute("'secret' in globals()").unwrap().value, false);
        drop(session);
        assert_eq!(pool.metrics().sessions_created, 1);
    }
}

isolated! {
    fn no_timer_mask_or_setting_of_the_last_user_hits_the_next() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        let pid = session.pid();
        let code = "import faulthandler, gc, signal, sys\n\
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)\nsignal.setitimer(signal.ITIMER_PROF, 0.2)\n\
                    signal.signal(signal.SIGWINCH, lambda *a: print('mine'))\n\
                    signal.signal(signal.SIGRTMIN, lambda *a: print('mine'))\n\
                    faulthandler.dump_traceback_later(600, exit=True)\n\
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO, signal.SIGINT])\n\
                    gc.disable()\nsys.setswitchinterval(10)";
        assert!(session.execute(code).unwrap().is_completed());
        drop(session);
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        assert_eq!(session.pid(), pid);
        // The first two would end the process by now; the last one waits in a thread, as long as it is on.
        let code = "import gc, os, signal, sys, time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n\
                    [len(os.listdir('/proc/self/task')), gc.isenabled(), len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), sys.getswitchinterval() < 1,\n \
                    {signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGRTMIN)} == {signal.SIG_DFL}]";
        let run = session.execute(code).unwrap();
        assert_eq!(run.value, serde_json::json!([1, true, 0, true, true]), "{run:?}");
    }
}

isolated! {
    fn fresh_gives_each_user_a_new_process_and_keep_the_same_state() {
        let fresh = pool().reuse(Reuse::Fresh).min_idle(1).max_sessions(2).start().unwrap();
        let mut pids = Vec::new();
        for _ in 0..3 {
            let mut session = fresh.acquire().unwrap();
            assert_eq!(session.execute("'secret' in globals()").unwrap().value, false);
            session.execute("secret = 42").unwrap();
            pids.push(session.pid());
        }
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 3);
        let keep = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        keep.acquire().unwrap().execute("kept = 42").unwrap();
        assert_eq!(keep.acquire().unwrap().execute("kept").unwrap().value, 42);
    }
}

isolated! {
    fn a_session_is_recycled_after_its_executions_and_its_successor_has_the_whole_budget() {
        // Peer bug B4: the count was not reset, so every release restarted.
        let pool = pool().min_idle(1).max_sessions(1).recycle_after_executions(3).start().unwrap();
        for _ in 0..9 {
            pool.acquire_timeout(GENEROUS).unwrap().execute("1").unwrap();
        }
        poll(|| pool.metrics().sessions_created == 4, || format!("{:?}", pool.metrics()));
        await_rest(&pool);
        let metrics = pool.metrics();
        assert_eq!((metrics.sessions_recycled, metrics.sessions_created), (3, 4), "{metrics:?}");
    }
}

isolated! {
    fn a_lifetime_ends_an_idle_session_and_another_takes_its_place() {
        let clock = ManualClock::new();
        let config = scripted(&FakeWorker::new()).clock(&clock).min_idle(1).max_sessions(2);
        let pool = config.session_timeout(Duration::MAX).max_lifetime(100 * MINUTE).start().unwrap();
        let first = pool.info().sessions[0].id;
        // Up to a tenth earlier than configured.
        clock.advance(89 * MINUTE);
        assert_eq!(pool.acquire().unwrap().id(), first);
        await_rest(&pool);
        clock.advance(11 * MINUTE);
        poll(|| pool.metrics().sessions_recycled == 1, || format!("{:?}", pool.metrics()));
        await_rest(&pool);
        assert_ne!(pool.acquire().unwrap().id(), first);
        // A third was started if the watermark saw the first in use.
        assert!((2..=3).contains(&pool.metrics().sessions_created));
    }
}

isolated! {
    fn idle_sessions_beyond_the_watermark_leave_after_the_time_limit() {
        let clock = ManualClock::new();
        let config = scripted(&FakeWorker::new()).clock(&clock).min_idle(1).max_sessions(4);
        let pool = config.session_timeout(10 * MINUTE).start().unwrap();
        let held: Vec<_> = (0..4).map(|_| pool.acquire().unwrap()).collect();
        drop(held);
        poll(|| pool.info().counts.idle == 4, || format!("{:?}", pool.info().counts));
        clock.advance(9 * MINUTE);
        assert_eq!(pool.info().counts.total, 4, "their time is not over");
        clock.advance(MINUTE);
        poll(|| pool.info().counts.total == 1, || format!("{:?}", pool.info().counts));
        let metrics = pool.metrics();
        assert_eq!(metrics.sessions_removed_by_health, 3, "{metrics:?}");
        assert!(metrics.health_check_runs > 0 && metrics.health_check_triggers >= 4);
    }
}

isolated! {
    fn the_watermark_is_filled_again_when_a_session_is_taken() {
        let pool = pool().min_idle(2).max_sessions(5).start().unwrap();
        let held = [pool.acquire().unwrap(), pool.acquire().unwrap()];
        poll(|| pool.info().counts.idle == 2, || format!("{:?}", pool.info().counts));
        let metrics = pool.metrics();
        assert_eq!((metrics.sessions_created, metrics.sessions_created_from_warmup), (4, 4));
        assert!(metrics.warmup_triggers >= 2 && metrics.warmup_loop_iterations >= 2, "{metrics:?}");
        drop(held);
    }
}

isolated! {
    fn ensure_min_sessions_fills_a_pool_that_was_not_warmed() {
        let pool = pool().pre_warm_on_start(false).min_idle(3).start().unwrap();
        assert_eq!(pool.info().counts.total, 0);
        pool.ensure_min_sessions().unwrap();
        assert!(pool.info().counts.idle >= 3);
        pool.wait_ready(3, Duration::ZERO).unwrap();
        match pool.wait_ready(9, Duration::from_millis(1)) {
            Err(error @ Error::NotReady { ready: 3, wanted: 9, .. }) => {
                assert!(error.to_string().starts_with("3 of 9 sessions were ready within "), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn a_release_serves_a_caller_while_the_pool_starts_another_session_for_it() {
        let (gate, fake) = (Hold::new(), FakeWorker::new());
        let pool = scripted(&fake).min_idle(1).max_sessions(2).start().unwrap();
        // From here on a start takes until this test lets it.
        let _ = fake.hold_starts(&gate);
        let first = pool.acquire().unwrap();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire().map(|session| session.pid()));
            await_waiters(&pool, 1);
            poll(|| pool.info().counts.starting == 1, || "its start".to_owned());
            let pid = first.pid();
            gate.await_held(1);
            drop(first);
            assert_eq!(waiter.join().unwrap().unwrap(), pid, "served by the release");
        });
        gate.release();
        poll(|| pool.info().counts.idle == 2, || "the late start is kept".to_owned());
    }
}

isolated! {
    fn a_caller_that_comes_during_a_start_has_another_one_begun() {
        let gate = Hold::new();
        let config = scripted(&FakeWorker::new().hold_starts(&gate)).min_idle(0).max_sessions(2);
        let pool = config.max_concurrent_starts(2).pre_warm_on_start(false).start().unwrap();
        thread::scope(|threads| {
            let first = threads.spawn(|| pool.acquire().map(drop));
            gate.await_held(1);
            let second = threads.spawn(|| pool.acquire().map(drop));
            gate.await_held(2);
            gate.release();
            first.join().unwrap().unwrap();
            second.join().unwrap().unwrap();
        });
    }
}

isolated! {
    fn a_discarded_session_makes_room_for_a_waiter_with_min_idle_zero() {
        // Peer defects A1 and B15: the waiter slept for ever beside free capacity.
        let pool = pool().min_idle(0).max_sessions(1).start().unwrap();
        let held = pool.acquire().unwrap();
        let pid = held.pid();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire().map(|session| session.pid()));
            await_waiters(&pool, 1);
            held.discard();
            assert_ne!(waiter.join().unwrap().unwrap(), pid);
        });
        await_rest(&pool);
        assert_eq!(pool.metrics().sessions_restarted, 0);
    }
}

isolated! {
    fn leases_are_values_that_cannot_be_shared_or_given_back_twice() {
        // Peer defect A4 (double release) does not compile; this shows that no two callers ever hold
        // one session.
        let pool = pool().min_idle(2).max_sessions(3).start().unwrap();
        let held = Mutex::new(std::collections::HashSet::new());
        let barrier = Barrier::new(6);
        thread::scope(|threads| {
            for _ in 0..6 {
                threads.spawn(|| {
                    barrier.wait();
                    for _ in 0..20 {
                        let session = pool.acquire().unwrap();
                        assert!(held.lock().unwrap().insert(session.id()), "two holders");
                        thread::yield_now();
                        assert!(held.lock().unwrap().remove(&session.id()));
                        session.release(true);
                    }
                });
            }
        });
        assert_eq!(pool.metrics().acquisition_success, 120);
    }
}

isolated! {
    fn info_tells_what_is_where_and_is_json() {
        let pool = pool().start().unwrap();
        let mut held = pool.acquire().unwrap();
        held.execute("1").unwrap();
        let info = pool.get_info();
        let row = info.sessions.iter().find(|row| row.id == held.id()).unwrap();
        assert_eq!((row.state, row.pid, row.leases), (PlaceName::Busy, held.pid(), 1));
        let counts = info.counts;
        let sum = counts.idle + counts.busy + counts.resetting + counts.starting + counts.retiring;
        assert_eq!((sum, counts.busy), (counts.total, 1));
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!(json["config"]["min_idle"], 2);
        assert_eq!(json["config"]["reuse"], "reset");
        assert_eq!(json["breaker"]["state"], "closed");
        assert_eq!(json["metrics"]["active_sessions"], 1);
        for name in ANCESTOR_METRICS {
            assert!(json["metrics"][name].is_number(), "{name}");
        }
        drop(held);
        assert_eq!(pool.get_metrics().acquisition_success, 1);
    }
}
