//! Many threads, many kills, many time-outs at once: at the end every session is where it belongs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use remuda::{CancelToken, Error, Outcome, Reuse, SessionPool};

use crate::support::{GENEROUS, isolated, poll, pool};

/// Nobody holds anything: all sessions are idle, and each of them works.
fn is_whole(pool: &SessionPool) {
    let rest = |pool: &SessionPool| {
        let counts = pool.info().counts;
        counts.idle == counts.total && counts.waiters == 0
    };
    poll(|| rest(pool), || format!("{:?}", pool.info()));
    let max = pool.info().config.max_sessions;
    let mut all: Vec<_> = (0..max).map(|_| pool.acquire_timeout(GENEROUS).unwrap()).collect();
    for session in &mut all {
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
    assert!(matches!(pool.try_acquire(), Err(Error::AcquireTimeout { .. })), "{:?}", pool.info());
}

isolated! {
    fn a_storm_of_kills_loses_no_session() {
        let pool = pool().min_idle(2).max_sessions(4).recycle_after_executions(7).start().unwrap();
        let (done, died) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let over = AtomicBool::new(false);
        thread::scope(|threads| {
            let disturber = threads.spawn(|| {
                let (mut turn, mut killed) = (0_usize, BTreeSet::new());
                while !over.load(Ordering::SeqCst) {
                    // Whoever is there: idle, busy, resetting, or gone between this look and the kill.
                    let rows = pool.info().sessions;
                    turn += 1;
                    if let Some(row) = rows.get(turn % rows.len().max(1))
                        && let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(row.pid).unwrap())
                    {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                        killed.insert(row.pid);
                    }
                    thread::park_timeout(Duration::from_millis(15));
                }
                killed
            });
            let users: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| {
                        for _ in 0..25 {
                            let mut session = pool.acquire_timeout(GENEROUS).unwrap();
                            match session.execute("sum(range(10_000))") {
                                Ok(run) if run.outcome == Outcome::Completed => done.fetch_add(1, Ordering::SeqCst),
                                Ok(run) if run.outcome == Outcome::Died => died.fetch_add(1, Ordering::SeqCst),
                                Err(Error::SessionDead { .. } | Error::Protocol { .. }) => died.fetch_add(1, Ordering::SeqCst),
                                other => panic!("{other:?}"),
                            };
                        }
                    })
                })
                .collect();
            let ends: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::SeqCst);
            assert!(ends.iter().all(Result::is_ok), "a user failed");
            let killed = disturber.join().unwrap();
            // Until the pool has noticed the last kills, the dead look idle.
            let noticed = || pool.info().sessions.iter().all(|row| !killed.contains(&row.pid));
            poll(noticed, || format!("{killed:?} {:?}", pool.info()));
        });
        assert_eq!(done.into_inner() + died.into_inner(), 200);
        is_whole(&pool);
    }
}

isolated! {
    fn a_storm_of_time_outs_and_cancels_loses_no_session() {
        // A waiter that gives up while it is being served must not take the session along.
        let pool = pool().reuse(Reuse::Keep).recycle_after_executions(None).min_idle(2).max_sessions(2).start().unwrap();
        let served = AtomicUsize::new(0);
        thread::scope(|threads| {
            for user in 0..8_u32 {
                let (pool, served) = (&pool, &served);
                threads.spawn(move || {
                    for round in 0..300_u32 {
                        let token = CancelToken::new();
                        let scope = pool.scope(&token);
                        let lease = match (user + round) % 3 {
                            0 => pool.acquire_timeout(Duration::from_micros(u64::from(round % 50))),
                            1 => {
                                // Cancelled by another thread, before, during or after the wait.
                                let canceller = thread::spawn(move || token.cancel());
                                let lease = scope.acquire();
                                canceller.join().unwrap();
                                lease
                            }
                            _ => pool.acquire(),
                        };
                        match lease {
                            Ok(lease) => {
                                served.fetch_add(1, Ordering::SeqCst);
                                thread::yield_now();
                                drop(lease);
                            }
                            Err(Error::AcquireTimeout { .. } | Error::Cancelled) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
        let metrics = pool.metrics();
        assert_eq!(metrics.acquisition_success, served.into_inner() as u64);
        assert_eq!(
            metrics.acquisition_attempts,
            metrics.acquisition_success + metrics.acquisition_timeouts + metrics.acquisitions_cancelled
        );
        is_whole(&pool);
    }
}
