//! Operating a running pool: pause, drain, resize, rolling replacement, hooks, leaks, hung workers.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::unbounded;
use remuda::testing::{FakeKind, FakeWorker, ManualClock};
use remuda::{CancelToken, Error, PoolEvent, Removal, Reuse, SessionPool};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{GENEROUS, is_running, isolated, poll, pool, scripted};

fn pids(pool: &SessionPool) -> BTreeSet<u32> {
    pool.info().sessions.iter().map(|row| row.pid).collect()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn removed_because(pool: &SessionPool, reason: Removal) -> u64 {
    pool.info().removals.iter().find(|row| row.reason == reason).map_or(0, |row| row.count)
}

isolated! {
    fn a_paused_pool_lets_callers_wait_and_serves_them_when_it_is_resumed() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        pool.pause();
        pool.pause();
        assert!(pool.is_paused() && pool.info().paused && pool.is_open());
        assert!(matches!(pool.try_acquire(), Err(Error::AcquireTimeout { .. })));
        assert!(matches!(pool.acquire_timeout(Duration::from_millis(5)), Err(Error::AcquireTimeout { .. })));
        let token = CancelToken::new();
        thread::scope(|threads| {
            let waits = threads.spawn(|| pool.acquire().unwrap().execute("1").unwrap().value);
            let gives_up = threads.spawn(|| pool.acquire_cancellable(&token).map(drop));
            poll(|| pool.info().counts.waiters == 2, || format!("{:?}", pool.info()));
            token.cancel();
            assert!(matches!(gives_up.join().unwrap(), Err(Error::Cancelled)));
            assert_eq!(pool.info().counts.idle, 1, "nobody got it");
            pool.resume();
            assert_eq!(waits.join().unwrap(), 1);
        });
        // A paused pool can be ended, and its waiters hear of it.
        pool.pause();
        thread::scope(|threads| {
            let waits = threads.spawn(|| pool.acquire().map(drop));
            poll(|| pool.info().counts.waiters == 1, || format!("{:?}", pool.info()));
            pool.shutdown(GENEROUS);
            assert!(matches!(waits.join().unwrap(), Err(Error::Closed)));
        });
        pool.resume();
        assert!(matches!(pool.acquire(), Err(Error::Closed)));
    }
}

isolated! {
    fn a_pool_drains_when_the_last_lease_comes_back() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        assert!(pool.drain(Duration::ZERO).unwrap(), "nobody holds anything");
        pool.resume();
        let lease = pool.acquire().unwrap();
        assert!(!pool.drain(Duration::from_millis(5)).unwrap());
        assert!(pool.is_paused());
        thread::scope(|threads| {
            let drains = threads.spawn(|| pool.drain(GENEROUS));
            drop(lease);
            assert!(drains.join().unwrap().unwrap());
        });
        pool.terminate();
        assert!(matches!(pool.drain(GENEROUS), Err(Error::Closed)));
    }
}

isolated! {
    fn a_pool_grows_and_shrinks_while_it_is_used() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let first = pool.acquire().unwrap();
        thread::scope(|threads| {
            let second = threads.spawn(|| pool.acquire().unwrap());
            poll(|| pool.info().counts.waiters == 1, || format!("{:?}", pool.info()));
            pool.resize(2, 4).unwrap();
            let second = second.join().unwrap();
            let jobs: Vec<_> = (0..8).map(|n| pool.submit(format!("{n}"))).collect();
            for (n, job) in jobs.into_iter().enumerate() {
                assert_eq!(job.wait().unwrap().value, n);
            }
            pool.wait_ready(4, GENEROUS).unwrap();
            assert_eq!((pool.info().config.min_idle, pool.info().config.max_sessions), (2, 4));
            pool.resize(0, 1).unwrap();
            poll(|| pool.info().counts.total == 2, || format!("{:?}", pool.info()));
            drop(second);
        });
        poll(|| pool.info().counts.total == 1, || format!("{:?}", pool.info()));
        drop(first);
        poll(|| pool.info().counts.idle == 1, || format!("{:?}", pool.info()));
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
        assert!(removed_because(&pool, Removal::Resized) >= 3, "{:?}", pool.info().removals);
        for (min_idle, max_sessions) in [(2, 1), (0, 0)] {
            assert!(matches!(pool.resize(min_idle, max_sessions), Err(Error::InvalidConfig { .. })));
        }
    }
}

isolated! {
    fn all_sessions_are_replaced_in_turn_while_somebody_works() {
        let pool = pool().min_idle(3).max_sessions(4).recycle_after_executions(None).start().unwrap();
        let before = pids(&pool);
        let mut lease = pool.acquire().unwrap();
        // A fourth may be starting.
        assert!((3..=4).contains(&pool.recycle_all()));
        assert_eq!(lease.execute("1").unwrap().value, 1);
        assert!(!pool.wait_recycled(Duration::from_millis(5)).unwrap(), "one is in use");
        thread::scope(|threads| {
            // Somebody always gets one meanwhile.
            let waits = threads.spawn(|| pool.wait_recycled(GENEROUS));
            while pids(&pool).intersection(&before).count() > 1 {
                assert_eq!(pool.acquire_timeout(GENEROUS).unwrap().execute("2").unwrap().value, 2);
            }
            drop(lease);
            assert!(waits.join().unwrap().unwrap());
        });
        poll(|| pool.info().counts.idle >= 3, || format!("{:?}", pool.info()));
        assert!(pids(&pool).is_disjoint(&before), "{:?} {before:?}", pids(&pool));
        assert!(removed_because(&pool, Removal::Outdated) >= 3, "{:?}", pool.info());
    }
}

isolated! {
    fn at_the_maximum_the_replaced_make_room_first() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        let before = pids(&pool);
        assert_eq!(pool.recycle_all(), 2);
        assert!(pool.wait_recycled(GENEROUS).unwrap());
        poll(|| pool.info().counts.idle == 2, || format!("{:?}", pool.info()));
        assert!(pids(&pool).is_disjoint(&before));
    }
}

isolated! {
    fn old_sessions_are_replaced_before_they_leave() {
        let pool = pool().min_idle(1).max_sessions(2).max_lifetime(Duration::from_millis(300)).start().unwrap();
        let first = pids(&pool);
        let never_without = AtomicUsize::new(0);
        poll(
            || {
                let counts = pool.info().counts;
                if counts.idle + counts.resetting == 0 {
                    never_without.fetch_add(1, Ordering::SeqCst);
                }
                pool.metrics().sessions_recycled >= 3
            },
            || format!("{:?}", pool.info()),
        );
        assert_eq!(never_without.into_inner(), 0, "there is always one that is ready");
        assert!(pids(&pool).is_disjoint(&first));
        assert!(removed_because(&pool, Removal::MaxAge) >= 3);
    }
}

isolated! {
    fn a_stopped_worker_is_found_while_it_is_idle_and_replaced() {
        let (told, hung) = unbounded();
        let pool = pool()
            .min_idle(2)
            .max_sessions(3)
            .ping_interval(Duration::from_millis(50))
            .ping_timeout(Duration::from_millis(500))
            .health_check_interval(Duration::from_millis(50))
            .listener(move |event| {
                if let PoolEvent::Removed { pid, reason: Removal::Hung, .. } = event {
                    let _ = told.send(*pid);
                }
            })
            .start()
            .unwrap();
        let stopped = pool.info().sessions[0].pid;
        signal(stopped, Signal::STOP);
        // On a machine that stands still for a moment another one may be late too.
        while hung.recv_timeout(GENEROUS).expect("it is found") != stopped {}
        assert!(!is_running(stopped));
        poll(|| pool.info().counts.idle >= 2, || format!("{:?}", pool.info()));
        for _ in 0..4 {
            assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
        }
    }
}

isolated! {
    fn idle_sessions_that_answer_stay_however_often_they_are_asked() {
        let (clock, fake) = (ManualClock::new(), FakeWorker::new());
        let interval = Duration::from_secs(30);
        let config = scripted(&fake).clock(&clock).min_idle(2).max_sessions(2);
        // The clock runs on while they answer.
        let pool = config.ping_interval(interval).ping_timeout(interval * 1_000_000).start().unwrap();
        let before = pids(&pool);
        let pings = || fake.requests().iter().filter(|request| request.kind == FakeKind::Ping).count();
        let asked_often = || {
            clock.advance(interval);
            pings() >= 6
        };
        poll(asked_often, || format!("{} pings", pings()));
        poll(|| pool.info().counts.idle == 2, || format!("{:?}", pool.info()));
        assert_eq!((pids(&pool), pool.metrics().sessions_removed), (before, 0));
    }
}

isolated! {
    fn a_forgotten_lease_is_reported_with_its_session() {
        let (told, events) = unbounded();
        let pool = pool()
            .min_idle(1)
            .leak_after(Duration::from_millis(20))
            .listener(move |event| drop(told.send(event.clone())))
            .start()
            .unwrap();
        let lease = pool.acquire().unwrap();
        let suspected = events.iter().find_map(|event| match event {
            PoolEvent::LeakSuspected { session, held, .. } => Some((session, held)),
            _ => None,
        });
        let (session, held) = suspected.unwrap();
        assert_eq!(session, lease.id());
        assert!(held >= Duration::from_millis(16), "{held:?}");
        assert_eq!((pool.metrics().leaks, pool.metrics().leaks_reclaimed), (1, 0));
        assert!(is_running(lease.pid()), "only reported");
    }
}

isolated! {
    fn a_forgotten_session_is_taken_back_and_its_holder_finds_it_dead() {
        let (clock, limit) = (ManualClock::new(), Duration::from_secs(20));
        let pool = pool()
            .clock(&clock)
            .min_idle(1)
            .max_sessions(1)
            .leak_after(limit)
            .reclaim_leaks(true)
            .start()
            .unwrap();
        let mut lease = pool.acquire().unwrap();
        let pid = lease.pid();
        clock.advance(limit);
        // The place is free although the lease still exists; nobody else's time is over.
        let next = pool.acquire().unwrap();
        assert_ne!(next.pid(), pid);
        assert!(!is_running(pid));
        assert!(matches!(lease.execute("1"), Err(Error::SessionDead { .. })));
        drop(next);
        drop(lease);
        assert_eq!(pool.metrics().leaks_reclaimed, 1, "{:?}", pool.info());
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_session_that_grew_beyond_its_budget_is_replaced() {
        let pool = pool()
            .min_idle(1)
            .max_sessions(2)
            .reuse(Reuse::Keep)
            .max_session_memory(60 << 20)
            .health_check_interval(Duration::from_millis(50))
            .start()
            .unwrap();
        let mut lease = pool.acquire().unwrap();
        let pid = lease.pid();
        lease.execute("kept = bytearray(100 << 20)").unwrap();
        drop(lease);
        poll(|| removed_because(&pool, Removal::Memory) >= 1, || format!("{:?}", pool.info()));
        poll(|| !is_running(pid), || "it still runs".to_owned());
        let info = pool.info();
        assert!(info.memory.weighed_idle < 60 << 20, "{info:?}");
    }
}

isolated! {
    fn the_largest_of_the_idle_goes_when_they_hold_too_much_together() {
        let pool = pool()
            .min_idle(2)
            .max_sessions(4)
            .reuse(Reuse::Keep)
            .idle_memory_budget(100 << 20)
            .health_check_interval(Duration::from_millis(50))
            .start()
            .unwrap();
        let (mut small, mut large) = (pool.acquire().unwrap(), pool.acquire().unwrap());
        small.execute("kept = bytearray(30 << 20)").unwrap();
        large.execute("kept = bytearray(90 << 20)").unwrap();
        let (stays, leaves) = (small.pid(), large.pid());
        drop((small, large));
        poll(|| !is_running(leaves), || format!("{:?}", pool.info()));
        assert!(is_running(stays));
    }
}

isolated! {
    fn a_creation_hook_prepares_sessions_and_its_panic_loses_no_place() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let pool = pool()
            .min_idle(2)
            .max_sessions(2)
            // A start of which nothing but the second session is left fails.
            .pre_warm_on_start(false)
            .on_create(move |session| {
                assert!(counted.fetch_add(1, Ordering::SeqCst) != 1, "on purpose");
                session.execute("prepared = 42")?;
                Ok(())
            })
            .reuse(Reuse::Keep)
            .start()
            .unwrap();
        let mut both = [pool.acquire_timeout(GENEROUS).unwrap(), pool.acquire_timeout(GENEROUS).unwrap()];
        for session in &mut both {
            assert_eq!(session.execute("prepared").unwrap().value, 42);
        }
        assert!(calls.load(Ordering::SeqCst) >= 3);
    }
}

isolated! {
    fn a_creation_hook_that_always_refuses_is_told_with_its_reason_and_starts_few_processes() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let pool = pool()
            .min_idle(1)
            .pre_warm_on_start(false)
            .on_create(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                Err("no licence".into())
            })
            .start()
            .unwrap();
        match pool.acquire() {
            Err(Error::StartFailing { cause, .. }) => {
                assert!(matches!(&*cause, Error::Hook { source, .. } if source.to_string() == "no licence"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        for _ in 0..1_000 {
            assert!(matches!(pool.try_acquire(), Err(Error::StartFailing { .. } | Error::AcquireTimeout { .. })));
        }
        assert!(calls.load(Ordering::SeqCst) <= 10, "{calls:?} starts");
    }
}

isolated! {
    fn a_check_before_use_replaces_what_it_refuses_and_its_panic_loses_no_place() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let pool = pool()
            .min_idle(2)
            .max_sessions(2)
            .validate_with(move |session| match counted.fetch_add(1, Ordering::SeqCst) {
                0 => false,
                1 => panic!("on purpose"),
                _ => session.execute("True").is_ok_and(|run| run.value == true),
            })
            .start()
            .unwrap();
        let first = pool.acquire_timeout(GENEROUS).unwrap();
        let second = pool.acquire_timeout(GENEROUS).unwrap();
        assert_ne!(first.pid(), second.pid());
        assert_eq!(removed_because(&pool, Removal::Unfit), 2);
    }
}

isolated! {
    fn a_check_that_is_never_content_ends_the_acquire_and_starts_few_processes() {
        let pool = pool().min_idle(1).max_sessions(2).validate_with(|_| false).start().unwrap();
        for _ in 0..20 {
            match pool.acquire_timeout(Duration::from_millis(20)) {
                Err(Error::Unfit { refused: 3 } | Error::AcquireTimeout { .. }) => {}
                Err(Error::StartFailing { cause, .. }) => assert!(matches!(&*cause, Error::Unfit { .. }), "{cause}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(pool.metrics().sessions_created <= 20, "{:?}", pool.metrics());
    }
}

isolated! {
    fn a_panic_while_holding_retires_the_session() {
        let pool = pool().min_idle(1).max_sessions(1).reuse(Reuse::Keep).start().unwrap();
        let mut pid = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let lease = pool.acquire().unwrap();
            pid = lease.pid();
            panic!("on purpose");
        }));
        assert!(result.is_err());
        assert_ne!(pool.acquire_timeout(GENEROUS).unwrap().pid(), pid);
        assert!(!is_running(pid));
    }
}
