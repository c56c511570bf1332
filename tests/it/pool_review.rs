//! What an adversary found in the pool: user code at the wrong moment, and workers that are stuck.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeReply, FakeWorker, Fault, FaultPlan, ManualClock};
use remuda::{
    Acquire, CancelToken, Error, Foresight, PoolEvent, Quota, Removal, Request, Reuse, SessionPool,
};

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
        let asked = || pool.info().counts.resetting == 1 || !removed.lock().unwrap().is_empty();
        poll(asked, || format!("{:?}", pool.info()));
        // The first of three that are stuck is asked; time must pass before the next one is.
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

isolated! {
    fn a_job_that_is_cancelled_during_its_last_check_is_told_as_cancelled() {
        let (fake, token, checks) = (FakeWorker::new(), CancelToken::new(), AtomicUsize::new(0));
        let cancel = token.clone();
        let config = scripted(&fake).min_idle(1).max_sessions(1).validate_with(move |_| {
            if checks.fetch_add(1, Ordering::SeqCst) == 2 {
                cancel.cancel();
            }
            false
        });
        let pool = config.start().unwrap();
        let result = pool.scope(&token).submit("1").wait();
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    }
}

isolated! {
    fn everything_that_can_happen_to_a_pool_at_once_leaves_counts_that_add_up() {
        for seed in 1..=12_u64 {
            storm(seed);
        }
    }
}

/// A small generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % sides
    }

    fn index(&mut self, sides: usize) -> usize {
        usize::try_from(self.roll(sides.try_into().unwrap())).unwrap()
    }
}

fn storm(seed: u64) {
    let short = Duration::from_millis(3);
    let plan = FaultPlan::seeded(seed)
        .starts(0.05, Fault::Exit(1))
        .requests(0.05, Fault::Signal(9))
        .resets(0.05, Fault::Refuse)
        .resets(0.02, Fault::Hang);
    let fake = FakeWorker::new().faults(plan).answer("1", 1);
    let reuse = [Reuse::Reset, Reuse::Keep, Reuse::Fresh][usize::try_from(seed % 3).unwrap()];
    let mut config = scripted(&fake).pre_warm_on_start(false).min_idle(1).max_sessions(4).reuse(reuse);
    config = config
        .leak_after(short * 8)
        .reclaim_leaks(true)
        .ping_interval(short * 20)
        .recycle_after_executions(7);
    config = config.quota(Quota::new().max_leases(2).max_queued(3)).reset_timeout(short * 30).max_waiters(12);
    config = config.max_concurrent_retirements(2).record_arrivals(50).foresight(Foresight::ArrivalRate);
    if seed.is_multiple_of(2) {
        let looks = AtomicU64::new(0);
        config = config.validate_with(move |_| looks.fetch_add(1, Ordering::SeqCst) % 11 != 5);
        let made = AtomicU64::new(0);
        config = config.on_create(move |session| match made.fetch_add(1, Ordering::SeqCst) % 13 {
            5 => Err("no".into()),
            7 => panic!("on purpose"),
            _ => Ok(session.execute("1").map(drop)?),
        });
    }
    let heard = Arc::new(AtomicU64::new(0));
    let ear = Arc::clone(&heard);
    config = config.listener(move |_| _ = ear.fetch_add(1, Ordering::SeqCst));
    let pool = config.start().unwrap();
    thread::scope(|threads| {
        for number in 0..12_u64 {
            let pool = &pool;
            threads.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((number + 1) << 17) | 1);
                for _ in 0..40 {
                    use_once(pool, &mut dice);
                }
            });
        }
        let pool = &pool;
        threads.spawn(move || {
            let mut dice = Dice(seed << 20 | 1);
            for _ in 0..60 {
                match dice.roll(6) {
                    0 => pool.pause(),
                    1 => _ = pool.recycle_all(),
                    2 => {
                        let max = 1 + dice.index(5);
                        pool.resize(dice.index(max + 1), max).unwrap();
                    }
                    3 => _ = pool.drain(Duration::from_millis(dice.roll(4))),
                    4 => _ = (pool.explain(), pool.info(), pool.recording()),
                    _ => thread::park_timeout(Duration::from_millis(dice.roll(6))),
                }
                pool.resume();
            }
        });
    });
    poll(
        || {
            let counts = pool.info().counts;
            counts.waiters == 0 && counts.busy == 0 && counts.jobs == 0
        },
        || format!("{:?}", pool.info()),
    );
    let queued: Vec<_> = (0..20).map(|_| pool.submit("1")).collect();
    if seed.is_multiple_of(4) {
        pool.terminate();
    } else {
        pool.shutdown(Duration::from_secs(1));
    }
    for job in queued {
        drop(job.wait());
    }
    let info = pool.info();
    assert_eq!((info.counts.total, info.counts.waiters, info.counts.jobs), (0, 0, 0), "{info:?}");
    assert_eq!(info.metrics.sessions_removed, info.metrics.sessions_created, "{info:?}");
    assert_eq!(info.removals.iter().map(|row| row.count).sum::<u64>(), info.metrics.sessions_removed);
    assert!(info.quotas.iter().all(|row| row.leases == 0 && row.queued == 0), "{info:?}");
    assert!(heard.load(Ordering::SeqCst) > 0);
}

fn use_once(pool: &SessionPool, dice: &mut Dice) {
    let limit = Duration::from_millis(dice.roll(30));
    let tenant = ["alice", "bob", "carol"][dice.index(3)];
    let ask = Acquire::new().timeout(limit);
    let token = CancelToken::new();
    match dice.roll(8) {
        0 => {
            let job = pool.scope(&token).as_tenant(tenant).submit("1");
            if dice.roll(2) == 0 {
                token.cancel();
            }
            return drop(job.wait());
        }
        1 => {
            let job = pool.submit("1");
            if dice.roll(2) == 0 {
                job.cancel();
            }
            return drop(job.wait());
        }
        2 => return drop(pool.try_acquire()),
        _ => {}
    }
    let ask = match dice.roll(4) {
        0 => ask,
        1 => ask.tenant(tenant).priority(1),
        2 => ask.token(&token).label("storm"),
        _ => ask.tenant(tenant).token(&token),
    };
    let Ok(mut lease) = pool.acquire_with(ask) else { return };
    match dice.roll(8) {
        0 => lease.discard(),
        1 => token.cancel(),
        // Long enough to be taken for a leak.
        2 => {
            thread::park_timeout(Duration::from_millis(40));
            drop(lease.execute("1"));
        }
        3 => lease.release(false),
        _ => drop(lease.execute("1")),
    }
}
