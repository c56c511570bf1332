//! Pools whose sessions run at several places: spread by weight, moved away from a place that fails.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::unbounded;
use remuda::testing::{FakeWorker, Fault, FaultPlan, ManualClock};
use remuda::{Error, Placement, PoolEvent, PoolInfo, Reuse, Runtime, SessionPool};
use serde_json::json;

use crate::support::{GENEROUS, ScratchDir, isolated, poll, scripted};

/// How many sessions are at each place.
fn spread(info: &PoolInfo) -> BTreeMap<&str, usize> {
    info.placements.iter().map(|row| (row.name.as_str(), row.sessions)).collect()
}

isolated! {
    fn sessions_are_spread_by_weight_and_limit_and_each_row_says_where_it_is() {
        let (near, far, small) = (FakeWorker::new(), FakeWorker::new(), FakeWorker::new());
        let pool = scripted(&near)
            .min_idle(8)
            .max_sessions(8)
            .max_concurrent_starts(1)
            .placements([
                Placement::new("near", near.runtime()),
                Placement::new("far", far.runtime()).weight(2),
                Placement::new("small", small.runtime()).weight(9).max_sessions(2),
            ])
            .start()
            .unwrap();
        let info = pool.info();
        assert_eq!(spread(&info), BTreeMap::from([("near", 2), ("far", 4), ("small", 2)]));
        assert_eq!((near.starts(), far.starts(), small.starts()), (2, 4, 2));
        let on = |name: &str| info.sessions.iter().filter(|row| row.placement.as_deref() == Some(name)).count();
        assert_eq!((on("near"), on("far"), on("small")), (2, 4, 2));
        let row = &json!(info)["placements"][2];
        assert_eq!((&row["name"], &row["max_sessions"], &row["weight"], &row["started"]), (&json!("small"), &json!(2), &json!(9), &json!(2)));
        assert!(info.open_metrics().contains("remuda_pool_placement_sessions{pool=\"pool\",placement=\"far\"} 4"), "{}", info.open_metrics());
    }
}

isolated! {
    fn a_place_that_fails_is_left_alone_for_a_while_and_comes_back() {
        let clock = ManualClock::new();
        let (good, bad) = (FakeWorker::new(), FakeWorker::new().faults(FaultPlan::none().at_start(1, Fault::Exit(1)).at_start(2, Fault::Exit(1))));
        let (told, events) = unbounded();
        let pool = scripted(&good)
            .clock(&clock)
            .min_idle(0)
            .max_sessions(4)
            .reuse(Reuse::Fresh)
            .placements([Placement::new("bad", bad.runtime()), Placement::new("good", good.runtime())])
            .listener(move |event| {
                if matches!(event, PoolEvent::PlacementFailed { .. } | PoolEvent::PlacementRecovered { .. }) {
                    let _ = told.send(event.clone());
                }
            })
            .start()
            .unwrap();
        // It is tried first, and the caller gets a session of the other all the same.
        drop(pool.acquire().unwrap());
        let failed = pool.info();
        assert_eq!((failed.placements[0].failed, failed.placements[0].retry_in), (1, Duration::from_secs(1)));
        assert!(failed.placements[0].last_error.is_some() && failed.breaker.failures == 0, "{failed:?}");
        assert!(matches!(events.recv().unwrap(), PoolEvent::PlacementFailed { placement, .. } if placement == "bad"));
        // Not within its pause.
        for _ in 0..3 {
            drop(pool.acquire().unwrap());
        }
        assert_eq!(bad.starts(), 1);
        clock.advance(Duration::from_secs(1));
        drop(pool.acquire().unwrap());
        assert_eq!((bad.starts(), pool.info().placements[0].retry_in), (2, Duration::from_secs(2)));
        clock.advance(Duration::from_secs(2));
        let lease = pool.acquire().unwrap();
        let row = |info: &PoolInfo| info.sessions.iter().find(|row| row.id == lease.id()).unwrap().placement.clone();
        assert_eq!(row(&pool.info()).as_deref(), Some("bad"), "it starts again");
        assert!(matches!(events.recv().unwrap(), PoolEvent::PlacementRecovered { placement, .. } if placement == "bad"));
        assert_eq!(pool.info().placements[0].last_error, None);
    }
}

isolated! {
    fn where_all_places_fail_the_caller_hears_why() {
        let broken = |what| FakeWorker::new().faults(FaultPlan::none().from_start(1, what));
        let (first, second) = (broken(Fault::Exit(1)), broken(Fault::Garble));
        let pool = scripted(&first)
            .pre_warm_on_start(false)
            .placements([Placement::new("one", first.runtime()), Placement::new("two", second.runtime())])
            .start()
            .unwrap();
        match pool.acquire_timeout(GENEROUS) {
            Err(Error::StartFailing { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(first.starts() >= 1 && second.starts() >= 1, "one after the other");
        assert!(pool.info().placements.iter().all(|row| row.failed > 0 && row.sessions == 0));
    }
}

isolated! {
    fn real_workers_move_to_the_other_host_when_theirs_goes_down() {
        // A host is a relay; it goes down with its file.
        let hosts = ScratchDir::new();
        let relay = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/relay.py");
        let host = |name: &str| {
            let up = hosts.write(name, "");
            let script = format!("[ -e '{}' ] || {{ echo no route to host >&2; exit 255; }}; exec python3 -IS '{relay}' \"$@\"", up.display());
            Placement::new(name, Runtime::python("python3").remote(["sh", "-c", &script, "sh"]))
        };
        let pool = SessionPool::builder(Runtime::python("python3"))
            .min_idle(4)
            .max_sessions(6)
            .start_timeout(GENEROUS)
            .placements([host("left"), host("right")])
            .start()
            .unwrap();
        assert_eq!(spread(&pool.info()), BTreeMap::from([("left", 2), ("right", 2)]));
        std::fs::remove_file(hosts.path().join("left")).unwrap();
        for row in pool.info().sessions.iter().filter(|row| row.placement.as_deref() == Some("left")) {
            let pid = rustix::process::Pid::from_raw(i32::try_from(row.pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        poll(
            || spread(&pool.info()) == BTreeMap::from([("left", 0), ("right", 4)]),
            || format!("{:?}", pool.info().placements),
        );
        let cause = pool.info().placements[0].last_error.clone().unwrap();
        assert!(cause.contains("no route to host"), "{cause}");
        assert_eq!(pool.acquire_timeout(GENEROUS).unwrap().execute("6 * 7").unwrap().value, 42);
        pool.shutdown(GENEROUS);
        assert!(pool.info().placements.iter().all(|row| row.sessions == 0));
    }
}

isolated! {
    fn a_restart_in_the_lease_is_counted_where_it_is() {
        let fake = FakeWorker::new().faults(FaultPlan::none().at_reset(1, Fault::Exit(1)));
        let other = FakeWorker::new();
        let pool = scripted(&fake)
            .min_idle(0)
            .max_sessions(2)
            .placements([Placement::new("one", fake.runtime()), Placement::new("two", other.runtime()).max_sessions(1)])
            .start()
            .unwrap();
        for _ in 0..3 {
            let mut lease = pool.acquire_timeout(GENEROUS).unwrap();
            lease.execute("x").ok();
        }
        poll(|| pool.info().placements.iter().map(|row| row.sessions).sum::<usize>() == pool.info().counts.total, || format!("{:?}", pool.info()));
    }
}

isolated! {
    fn what_makes_no_sense_is_refused() {
        let python = || Runtime::python("python3");
        let pool = |placements: Vec<Placement>| SessionPool::builder(python()).max_sessions(4).placements(placements).validate();
        let here = || Placement::new("here", python());
        assert!(pool(vec![]).is_ok() && pool(vec![here()]).is_ok());
        for placements in [
            vec![here(), here()],
            vec![Placement::new("", python())],
            vec![here().weight(0)],
            vec![here().max_sessions(0)],
            vec![here().max_sessions(1), Placement::new("there", python()).max_sessions(2)],
            vec![Placement::new("there", Runtime::python("python3").remote(Vec::<&str>::new()))],
        ] {
            let refused = pool(placements.clone());
            assert!(matches!(refused, Err(Error::InvalidConfig { .. })), "{placements:?}: {refused:?}");
        }
        let both = SessionPool::builder(python()).template(true).placements([here()]).validate();
        assert!(matches!(both, Err(Error::InvalidConfig { option: "placements", .. })), "{both:?}");
    }
}
