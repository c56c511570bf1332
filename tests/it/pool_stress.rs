//! Everything at once: a thousand threads on eight sessions, or a hundred on ten behind bad links, while
//! workers die, stop and are replaced, and the pool is resized, paused and short of what the system gives.
//! Afterwards the counts add up and nothing is left.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use remuda::{CancelToken, Error, Outcome, PoolConfig, Removal, Request, Reuse, Runtime, SessionPool};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::support::{GENEROUS, ScratchDir, isolated, poll, pool};

/// A small generator, so that a run can be repeated (threads still take turns as they like).
struct Dice(u64);

impl Dice {
    /// Each thread has its own, unlike all others.
    fn of(seed: u64, thread: u64) -> Dice {
        let mut dice = Dice(seed.wrapping_add(thread.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1);
        dice.roll(1);
        dice.roll(1);
        dice
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % sides
    }
}

/// The ends of a call.
const ENDS: [&str; 4] = ["served", "timed out", "cancelled", "refused"];

/// How calls ended, by name.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    fn count(&self, end: &'static str) {
        *self.0.lock().unwrap().entry(end).or_default() += 1;
    }

    fn of(&self, ends: &[&str]) -> u64 {
        let ends_seen = self.0.lock().unwrap();
        ends.iter().map(|end| ends_seen.get(end).copied().unwrap_or(0)).sum()
    }
}

/// One call of one user: a lease in some way, some work with it, and some way to end it. Returns whether
/// there was a lease.
fn use_once(pool: &SessionPool, dice: &mut Dice, tally: &Tally) -> bool {
    let token = CancelToken::new();
    let lease = match dice.roll(4) {
        0 => pool.try_acquire(),
        1 => pool.acquire_timeout(Duration::from_millis(dice.roll(200))),
        2 => {
            let early = token.clone();
            let canceller = thread::Builder::new().stack_size(64 << 10).spawn(move || early.cancel());
            let lease = pool.scope(&token).acquire();
            canceller.unwrap().join().unwrap();
            lease
        }
        _ => pool.acquire_timeout(GENEROUS),
    };
    let mut lease = match lease {
        Ok(lease) => lease,
        Err(error) => {
            tally.count(match error {
                Error::AcquireTimeout { .. } => "timed out",
                Error::Cancelled => "cancelled",
                Error::StartFailing { .. } | Error::TooManyWaiters { .. } => "refused",
                other => panic!("{other}"),
            });
            return false;
        }
    };
    tally.count("served");
    let request = match dice.roll(6) {
        0 => Request::code("while True: pass").time_limit(Duration::from_millis(20)),
        1 => Request::code("import os; os._exit(3)"),
        2 => Request::code("raise ValueError('on purpose')"),
        3 => {
            lease.discard();
            return true;
        }
        4 => {
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let _lease = lease;
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
            assert!(ended.is_err());
            return true;
        }
        _ => Request::code("sum(range(1000))"),
    };
    match lease.execute(request) {
        Ok(run) => match run.outcome {
            Outcome::Completed
            | Outcome::Failed
            | Outcome::Died
            | Outcome::TimedOut { .. }
            | Outcome::Cancelled { .. } => {}
            other => panic!("{other:?}"),
        },
        // Killed or stopped from outside, or its user's token had fired.
        Err(Error::SessionDead { .. } | Error::Protocol { .. } | Error::Cancelled) => {}
        Err(other) => panic!("{other}"),
    }
    true
}

/// Kills, stops, resizes, pauses and replaces until it is `over`.
fn disturb(pool: &SessionPool, max: usize, pause: Duration, dice: &mut Dice, over: &AtomicBool) {
    let mut killed = BTreeSet::new();
    while !over.load(Ordering::SeqCst) {
        let rows = pool.info().sessions;
        let victim = rows.get(usize::try_from(dice.roll(16)).unwrap());
        let signal = |signal| {
            if let Some(pid) = victim.and_then(|row| Pid::from_raw(i32::try_from(row.pid).unwrap())) {
                let _ = kill_process(pid, signal);
            }
        };
        match dice.roll(16) {
            0..=6 => {
                signal(Signal::KILL);
                killed.extend(victim.map(|row| row.pid));
            }
            7 => signal(Signal::STOP),
            8 | 9 => pool.resize(1, max / 2 + usize::try_from(dice.roll(3)).unwrap()).unwrap(),
            10..=12 => pool.resize(2, max).unwrap(),
            13 | 14 => {
                pool.pause();
                thread::park_timeout(Duration::from_millis(2));
                pool.resume();
            }
            _ => drop(pool.recycle_all()),
        }
        thread::park_timeout(pause);
    }
    pool.resume();
    pool.resize(2, max).unwrap();
    // What nobody has used since would go to the first who looks whether all are well: those that were
    // stopped go on, and the pool notices the last kills.
    for row in pool.info().sessions {
        let _ = kill_process(Pid::from_raw(row.pid.cast_signed()).unwrap(), Signal::CONT);
    }
    let noticed = || pool.info().sessions.iter().all(|row| !killed.contains(&row.pid));
    poll(noticed, || format!("{killed:?} {:?}", pool.info()));
}

fn stressed(runtime: Runtime, max: usize) -> PoolConfig {
    SessionPool::builder(runtime)
        .min_idle(2)
        .max_sessions(max)
        .recycle_after_executions(20)
        .max_concurrent_retirements(2)
        // What is stopped is found out by its user's limit, a ping, or the limit of a reset.
        .time_limit(Duration::from_millis(500))
        .grace(Duration::from_millis(100))
        .ping_interval(Duration::from_millis(200))
        .ping_timeout(Duration::from_millis(500))
        .reset_timeout(Duration::from_millis(500))
        .health_check_interval(Duration::from_millis(100))
}

/// Everything came to rest, the counts add up, and the pool still works.
fn is_whole(pool: &SessionPool, tally: &Tally) {
    let metrics = pool.metrics();
    assert_eq!(metrics.acquisition_success, tally.of(&["served"]));
    assert_eq!(metrics.acquisition_timeouts, tally.of(&["timed out"]));
    assert_eq!(metrics.acquisitions_refused, tally.of(&["refused"]));
    // A token that has fired already ends a call before it is an attempt.
    assert!(metrics.acquisitions_cancelled <= tally.of(&["cancelled"]));
    let answers = metrics.acquisition_success
        + metrics.acquisition_timeouts
        + metrics.acquisitions_cancelled
        + metrics.acquisitions_refused;
    assert_eq!(metrics.acquisition_attempts, answers);
    // One look: a moment later the next session may be asked whether it answers.
    let at_rest = Cell::new(None);
    poll(
        || {
            let info = pool.info();
            let counts = info.counts;
            let rests = counts.idle == counts.total && counts.waiters == 0 && counts.idle >= 2;
            at_rest.set(rests.then_some(info));
            rests
        },
        || format!("{:#?}", pool.info()),
    );
    let info = at_rest.take().unwrap();
    assert_eq!(
        info.metrics.sessions_created - info.metrics.sessions_removed,
        info.counts.total as u64,
        "what was created was removed, or is there"
    );
    assert_eq!(info.removals.iter().map(|row| row.count).sum::<u64>(), info.metrics.sessions_removed);
    let mut all: Vec<_> =
        (0..info.config.max_sessions).map(|_| pool.acquire_timeout(GENEROUS).unwrap()).collect();
    for session in &mut all {
        let request = Request::code("6 * 7").time_limit(GENEROUS);
        assert_eq!(session.execute(request).unwrap().value, 42);
    }
    assert!(matches!(pool.try_acquire(), Err(Error::AcquireTimeout { .. })));
}

/// So many users at once. With `pause` between two disturbances; each user calls once, or again `until` it
/// is served.
fn storm(pool: &SessionPool, users: u64, until_served: bool, pause: Duration, seed: u64) -> Tally {
    let max = pool.info().config.max_sessions;
    let (tally, over) = (Tally::default(), AtomicBool::new(false));
    thread::scope(|threads| {
        let disturber = threads.spawn(|| disturb(pool, max, pause, &mut Dice::of(seed, 0), &over));
        let users: Vec<_> = (1..=users)
            .map(|user| {
                let tally = &tally;
                let calls = move || {
                    let mut dice = Dice::of(seed, user);
                    while !use_once(pool, &mut dice, tally) && until_served {
                        thread::park_timeout(Duration::from_millis(5));
                    }
                };
                thread::Builder::new().stack_size(256 << 10).spawn_scoped(threads, calls).unwrap()
            })
            .collect();
        let ends: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        disturber.join().unwrap();
        assert!(ends.iter().all(Result::is_ok), "a user failed");
    });
    tally
}

/// A thousand threads call once each.
fn storm_of_a_thousand(reuse: Reuse, seed: u64) {
    let pool = stressed(Runtime::python("python3"), 8).reuse(reuse).start().unwrap();
    let tally = storm(&pool, 1_000, false, Duration::from_millis(30), seed);
    assert_eq!(tally.of(&ENDS), 1_000, "each call has one end");
    assert!(tally.of(&["served"]) > 100, "{:?}", tally.0);
    is_whole(&pool, &tally);
}

isolated! {
    fn a_thousand_threads_on_eight_disturbed_sessions_lose_nothing() {
        storm_of_a_thousand(Reuse::Reset, 0x9E37_79B9_7F4A_7C15);
    }
}

isolated! {
    fn a_thousand_threads_on_eight_disturbed_sessions_that_keep_their_state_lose_nothing() {
        storm_of_a_thousand(Reuse::Keep, 0x2545_F491_4F6C_DD1D);
    }
}

isolated! {
    fn a_hundred_tasks_on_ten_disturbed_sessions_behind_slow_links_that_break_are_all_served() {
        let directory = ScratchDir::new();
        let bad = directory.path().join("bad");
        let relay = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/relay.py");
        let link = ["python3".as_ref(), "-IS".as_ref(), relay.as_ref(), "--bad".as_ref(), bad.as_os_str()];
        let pool = stressed(Runtime::python("python3").remote(link), 10).start().unwrap();
        // From here on all links are bad, those that are there and new ones.
        std::fs::write(&bad, "").unwrap();
        let tally = storm(&pool, 100, true, Duration::from_millis(100), 0x1234_5678_9ABC_DEF1);
        assert_eq!(tally.of(&["served"]), 100);
        let died = pool.info().removals.iter().filter(|row| row.reason == Removal::Dead).map(|row| row.count).sum::<u64>();
        assert!(died > 0, "{:?}", pool.info().removals);
        std::fs::remove_file(&bad).unwrap();
        is_whole(&pool, &tally);
    }
}

/// With no more of `resource` than `so_much`, a call has an answer in time that tells why; with it back,
/// the pool is whole again.
fn exhausted(resource: Resource, so_much: u64) {
    let pool = pool().min_idle(1).max_sessions(4).start().unwrap();
    let before = getrlimit(resource);
    let first = pool.acquire().unwrap();
    setrlimit(resource, Rlimit { current: Some(so_much), maximum: before.maximum }).unwrap();
    // A session that started just before is no failure.
    let mut got = Vec::new();
    let told = loop {
        match pool.acquire_timeout(Duration::from_millis(300)) {
            Ok(lease) => got.push(lease),
            Err(
                Error::AcquireTimeout { last_start_error: Some(cause), .. }
                | Error::StartFailing { cause, .. },
            ) => break cause.to_string(),
            // The first start has not failed yet.
            Err(Error::AcquireTimeout { last_start_error: None, .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
        assert!(got.len() < 3, "there is nothing to start sessions with");
    };
    assert!(told.contains("os error") || told.contains("file") || told.contains("resource"), "{told}");
    setrlimit(resource, before).unwrap();
    drop((first, got));
    let all: Vec<_> = (0..4).map(|_| pool.acquire_timeout(GENEROUS)).collect();
    // The back-off of the failed starts may still run: those who come meanwhile wait, or are served.
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert!(pool.metrics().start_failures > 0);
}

isolated! {
    fn a_pool_without_descriptors_says_so_and_recovers() {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        exhausted(Resource::Nofile, open + 25);
    }
}

isolated! {
    fn a_pool_without_processes_says_so_and_recovers() {
        // Root has no such limit; a user of whom nothing else runs does the test for it.
        const NOBODY: u32 = 65_534;
        const TEST: &str = "pool_stress::a_pool_without_processes_says_so_and_recovers";
        const AS_NOBODY: &str = "REMUDA_TEST_AS_NOBODY";
        if rustix::process::geteuid().is_root() && std::env::var_os(AS_NOBODY).is_none() {
            let home = std::env::temp_dir();
            rustix::fs::chown(&home, Some(rustix::fs::Uid::from_raw(NOBODY)), None).unwrap();
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
                .env(AS_NOBODY, "1")
                .uid(NOBODY)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        exhausted(Resource::Nproc, 0);
    }
}
