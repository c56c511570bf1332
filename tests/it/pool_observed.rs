//! What a pool shows of itself: `info()` and its JSON, `explain()`, histograms.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeWorker, ManualClock};
use remuda::{
    Advisor, Error, Foresight, MissReason, PlaceName, Removal, Request, Reuse, SessionPool, WaitReason,
};
use serde_json::Value;

use crate::support::{ANCESTOR_METRICS, GENEROUS, isolated, poll, pool, scripted};

fn await_rest(pool: &SessionPool) {
    let moving = || {
        let counts = pool.info().counts;
        counts.starting + counts.resetting + counts.retiring
    };
    poll(|| moving() == 0, || format!("{:?}", pool.info().counts));
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

isolated! {
    fn info_is_json_of_a_known_shape() {
        let pool = pool().name("scores").min_idle(1).max_sessions(2).warm_import("json").start().unwrap();
        let mut held = pool.acquire().unwrap();
        held.execute("1 + 1").unwrap();
        await_rest(&pool);
        // As it is attached to the beats of a tracker's client.
        let info = serde_json::to_value(pool.info()).unwrap();
        for key in [
            "name", "config", "open", "paused", "counts", "metrics", "breaker", "removals", "refusals", "misses",
            "acquire_duration", "execution_duration", "start_duration", "executions", "warm_imports", "memory",
            "events_dropped", "sessions", "post_mortems", "at",
        ] {
            assert!(info.get(key).is_some(), "no {key} in {:?}", keys(&info));
        }
        assert_eq!((&info["name"], &info["open"]), (&"scores".into(), &true.into()));
        let config = &info["config"];
        assert_eq!((&config["min_idle"], &config["max_sessions"]), (&1.into(), &2.into()));
        assert_eq!((&config["foresight"], &config["reuse"]), (&"off".into(), &"reset".into()));
        assert_eq!((&config["session_timeout"], &config["warm_imports"][0]), (&300.0.into(), &"json".into()));
        assert_eq!(info["breaker"]["state"], "closed");
        assert_eq!(info["executions"]["completed"], 1);
        let metrics = &info["metrics"];
        // The names of the Python ancestor.
        for key in ANCESTOR_METRICS {
            assert!(metrics[key].is_number(), "{key}: {metrics}");
        }
        let rows = info["sessions"].as_array().unwrap();
        let busy: Vec<&Value> = rows.iter().filter(|row| row["state"] == "busy").collect();
        assert_eq!(busy.len(), 1, "{rows:?}");
        assert_eq!((&busy[0]["id"], &busy[0]["leases"]), (&held.id().number().into(), &1.into()));
        for key in ["pid", "since", "age", "executions", "memory"] {
            assert!(busy[0][key].is_number(), "{key}: {}", busy[0]);
        }
        assert!(busy[0]["memory"].as_u64().unwrap() > 1 << 20, "a Python takes more than a MiB");
        assert!(info["memory"]["resident"].as_u64().unwrap() >= busy[0]["memory"].as_u64().unwrap() / 2);
    }
}

isolated! {
    fn executions_of_leases_jobs_and_events_are_counted_by_outcome() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        session.execute("1").unwrap();
        session.execute("1 / 0").unwrap();
        session.begin("2").unwrap().finish().unwrap();
        // Dropping it stops the code: cancelled.
        drop(session.begin("import time\nwhile True: time.sleep(0.01)").unwrap());
        drop(session);
        pool.submit("3").wait().unwrap();
        let mut session = pool.acquire().unwrap();
        session.execute(Request::code("while True: pass").time_limit(Duration::from_millis(1))).unwrap();
        drop(session);
        pool.submit("import os; os._exit(1)").wait().unwrap();
        let info = pool.info();
        let counts = info.executions;
        assert_eq!((counts.completed, counts.failed, counts.cancelled), (3, 1, 1), "{counts:?}");
        assert_eq!((counts.timed_out, counts.died, counts.broken), (1, 1, 0), "{counts:?}");
        assert_eq!(info.execution_duration.count, 7);
        assert!(info.execution_duration.max >= Duration::from_millis(1));
        assert!(info.execution_duration.p99 <= info.execution_duration.max);
    }
}

isolated! {
    fn hits_stand_in_the_shortest_bucket_and_waits_where_they_belong() {
        let pool = pool().min_idle(1).max_sessions(1).reuse(Reuse::Keep).start().unwrap();
        for _ in 0..9 {
            drop(pool.acquire().unwrap());
        }
        let held = pool.acquire().unwrap();
        let waited = thread::scope(|threads| {
            let waiter = threads.spawn(|| drop(pool.acquire().unwrap()));
            poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
            let before = pool.explain();
            assert_eq!(before.waiters.len(), 1);
            assert_eq!((before.waiters[0].ahead, before.waiters[0].reason), (0, WaitReason::AtMaxSessions));
            assert_eq!((before.misses[0].reason, before.misses[0].count), (MissReason::AtMaxSessions, 1));
            assert_eq!(before.recent.len(), 1);
            drop(held);
            waiter.join().unwrap();
            pool.metrics().total_acquisition_time
        });
        let info = pool.info();
        let waits = &info.acquire_duration;
        assert_eq!((waits.count, waits.buckets[0].count), (11, 10), "{waits:?}");
        assert_eq!((waits.sum, waits.max), (waited, waited));
        assert_eq!((info.metrics.active_sessions_max, info.metrics.waiting_max), (1, 1));
        assert!(pool.explain().to_string().contains("raise max_sessions"), "{}", pool.explain());
    }
}

isolated! {
    fn reasons_of_removals_and_refusals_are_counted() {
        let pool = pool().min_idle(1).max_sessions(1).max_waiters(1).start().unwrap();
        pool.acquire().unwrap().execute("import os; os._exit(1)").unwrap();
        pool.acquire_timeout(GENEROUS).unwrap().discard();
        let held = pool.acquire_timeout(GENEROUS).unwrap();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire_timeout(GENEROUS).map(drop));
            poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
            assert!(matches!(pool.acquire(), Err(Error::TooManyWaiters { .. })));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
        let info = pool.info();
        let removed = |reason| info.removals.iter().find(|row| row.reason == reason).map(|row| row.count);
        assert_eq!((removed(Removal::Dead), removed(Removal::Discarded)), (Some(1), Some(1)), "{:?}", info.removals);
        let [refusal] = &info.refusals[..] else { panic!("{:?}", info.refusals) };
        assert_eq!((serde_json::json!(refusal.reason), refusal.count), ("too_many_waiters".into(), 1));
        assert_eq!(info.metrics.sessions_removed, info.removals.iter().map(|row| row.count).sum::<u64>());
    }
}

isolated! {
    fn warm_imports_are_told_by_module() {
        let pool = pool().min_idle(2).max_sessions(2).warm_import("json").warm_import("nosuchmodule");
        let pool = pool.start().unwrap();
        let info = pool.info();
        let [json, nosuch] = &info.warm_imports[..] else { panic!("{:?}", info.warm_imports) };
        assert_eq!((json.module.as_str(), json.imports, json.failures), ("json", 2, 0));
        assert!(json.total_time >= json.last_time && json.last_time > Duration::ZERO);
        assert_eq!((nosuch.imports, nosuch.failures), (2, 2));
        assert!(nosuch.last_error.as_ref().unwrap().contains("nosuchmodule"), "{nosuch:?}");
        assert_eq!(info.start_duration.count, 2);
    }
}

isolated! {
    fn foresight_keeps_sessions_for_a_burst_that_came_before() {
        let pool = pool().min_idle(1).max_sessions(6).reuse(Reuse::Fresh);
        let pool = pool.foresight(Foresight::ArrivalRate).start().unwrap();
        // Each use takes its process with it: at rest one session is idle, unless more are expected.
        let burst = || drop((0..6).map(|_| pool.acquire_timeout(GENEROUS).unwrap()).collect::<Vec<_>>());
        poll(
            || {
                let counts = pool.info().counts;
                if counts.idle < 2 && counts.starting + counts.retiring == 0 {
                    burst();
                }
                counts.idle >= 2
            },
            || format!("{:?}", pool.info().counts),
        );
        assert!(pool.info().counts.total <= 6);
    }
}

isolated! {
    fn a_busy_session_is_told_with_its_state() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        let held = pool.acquire().unwrap();
        let rows = pool.info().sessions;
        let of = |state| rows.iter().filter(|row| row.state == state).count();
        assert_eq!((of(PlaceName::Busy), of(PlaceName::Idle)), (1, 1), "{rows:?}");
        drop(held);
    }
}

isolated! {
    fn a_replay_of_what_a_pool_recorded_is_what_happened() {
        const ROUNDS: u64 = 10;
        let (clock, fake) = (ManualClock::new(), FakeWorker::new());
        let config = scripted(&fake).clock(&clock).min_idle(2).max_sessions(2).reuse(Reuse::Keep);
        let pool = config.recycle_after_executions(None).record_arrivals(1_000).start().unwrap();
        let (all, holders, step) = (Barrier::new(4), Barrier::new(3), Duration::from_millis(5));
        // Three come at once, two find a session, the third waits for a step and keeps it for another one.
        thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    for _ in 0..ROUNDS {
                        let session = pool.acquire().unwrap();
                        all.wait();
                        holders.wait();
                        drop(session);
                        all.wait();
                        all.wait();
                        all.wait();
                    }
                });
            }
            threads.spawn(|| {
                for _ in 0..ROUNDS {
                    all.wait();
                    let session = pool.acquire().unwrap();
                    all.wait();
                    all.wait();
                    drop(session);
                    all.wait();
                }
            });
            for _ in 0..ROUNDS {
                all.wait();
                poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
                clock.advance(step);
                holders.wait();
                all.wait();
                clock.advance(step);
                all.wait();
                // What was kept is given back; the next ones come at this moment.
                all.wait();
            }
        });
        let (recording, metrics) = (pool.recording(), pool.metrics());
        assert_eq!((recording.arrivals.len() as u64, recording.forgotten), (3 * ROUNDS, 0));
        assert!(recording.arrivals.iter().all(|arrival| arrival.served && arrival.hold.is_some()));
        let advisor = Advisor::new(&recording);
        let replay = advisor.replay(2, 2);
        assert_eq!((metrics.pool_hits, replay.hits, replay.misses), (2 * ROUNDS, 2 * ROUNDS, ROUNDS));
        assert_eq!((replay.wait_max, replay.timeouts), (step, 0));
        // With one more nobody would have waited; with one less only the first of each round would not.
        assert_eq!(advisor.replay(3, 3).hits, 3 * ROUNDS);
        assert!(advisor.replay(1, 1).hits < replay.hits, "{:?}", advisor.replay(1, 1));
    }
}

isolated! {
    fn a_recording_tells_what_a_session_costs() {
        let pool = pool().min_idle(1).max_sessions(1).record_arrivals(1).start().unwrap();
        let recording = pool.recording();
        assert!(recording.start_time.unwrap() > Duration::ZERO && recording.memory_per_session.unwrap() > 1 << 20);
    }
}

isolated! {
    fn nothing_is_recorded_unless_it_is_asked_for() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        drop(pool.acquire().unwrap());
        assert!(pool.recording().arrivals.is_empty());
    }
}
