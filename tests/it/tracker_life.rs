//! The life of a tracked session, from its registration to the history. Time is moved by hand.

use std::cell::RefCell;
use std::time::Duration;

use remuda::TrackerServer;
use remuda::testing::ManualClock;
use serde_json::{Value, json};

use crate::support::{ScratchDir, isolated, poll};
use crate::tracker_support::{Http, server};

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A tracker with the usual thresholds whose time stands still.
fn still(clock: &ManualClock) -> TrackerServer {
    TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").clock(clock).start().unwrap()
}

fn beat(http: &mut Http, id: &str, body: &Value) -> Value {
    http.ok("POST", &format!("/sessions/{id}/heartbeat"), body)
}

fn state(http: &mut Http, id: &str) -> Value {
    http.row(id).map_or(Value::Null, |row| row["state"].clone())
}

fn tracker(http: &mut Http) -> Value {
    http.ok("GET", "/tracker", &Value::Null)
}

isolated! {
    fn silence_is_late_then_stale_then_lost() {
        let clock = ManualClock::new();
        let server = still(&clock);
        let http = RefCell::new(Http::connect(server.local_addr()));
        let id = http.borrow_mut().register("a");
        assert_eq!(state(&mut http.borrow_mut(), &id), "idle");
        http.borrow_mut().ok("PUT", &format!("/sessions/{id}/status"), &json!({"status": "running"}));
        assert_eq!(state(&mut http.borrow_mut(), &id), "running");
        clock.advance(secs(46));
        assert_eq!(state(&mut http.borrow_mut(), &id), "late");
        let row = http.borrow_mut().row(&id).unwrap();
        assert_eq!((&row["status"], &row["is_stale"]), (&json!("running"), &json!(false)), "as the ancestors know it");
        clock.advance(secs(74));
        let row = http.borrow_mut().row(&id).unwrap();
        assert_eq!((&row["state"], &row["status"], &row["is_stale"]), (&json!("stale"), &json!("stale"), &json!(true)));
        beat(&mut http.borrow_mut(), &id, &Value::Null);
        assert_eq!(state(&mut http.borrow_mut(), &id), "running", "a beat is enough");
        clock.advance(secs(599));
        assert_eq!(state(&mut http.borrow_mut(), &id), "stale");
        clock.advance(secs(60));
        poll(|| http.borrow_mut().row(&id).is_none(), || "it is never lost".to_owned());
        let page = http.borrow_mut().ok("GET", &format!("/history?session={id}"), &Value::Null);
        let entry = &page["history"][0];
        assert_eq!((&entry["outcome"], &entry["reason"]), (&json!("lost"), &json!("silent")));
        assert_eq!(entry["status"], "running", "what it was in when it was lost");
    }
}

isolated! {
    fn who_beats_seldom_may_be_silent_for_longer_unless_its_beats_are_parked() {
        let clock = ManualClock::new();
        let server = still(&clock);
        let http = RefCell::new(Http::connect(server.local_addr()));
        let hourly = json!({"app_name": "a", "session_id": UUID, "interval_seconds": 3_600});
        http.borrow_mut().ok("POST", "/sessions", &hourly);
        let frequent = http.borrow_mut().register("a");
        clock.advance(secs(300));
        assert_eq!(state(&mut http.borrow_mut(), UUID), "idle");
        assert_eq!(state(&mut http.borrow_mut(), &frequent), "stale");
        beat(&mut http.borrow_mut(), &frequent, &Value::Null);
        let (mut older, mut newer) = (Http::connect(server.local_addr()), Http::connect(server.local_addr()));
        older.send("POST", &format!("/sessions/{UUID}/heartbeat?wait=60"), "");
        poll(|| http.borrow_mut().row(UUID).unwrap()["beat_age_seconds"] == 0.0, || "no beat".to_owned());
        newer.send("POST", &format!("/sessions/{UUID}/heartbeat?wait=60"), "");
        assert_eq!(older.answer().unwrap().json(), json!({"kill_requested": false}), "the newer one is parked");
        clock.advance(secs(241));
        assert_eq!(state(&mut http.borrow_mut(), UUID), "stale");
        for interval in [0.0, -1.0, 1e9] {
            let body = json!({"app_name": "a", "interval_seconds": interval}).to_string();
            assert_eq!(http.borrow_mut().call("POST", "/sessions", &body).status, 422, "{interval}");
        }
    }
}

isolated! {
    fn after_a_restart_nobody_is_stale_before_one_lease_has_passed() {
        let clock = ManualClock::new();
        let directory = ScratchDir::new();
        let start = || {
            let database = directory.path().join("tracker.db");
            TrackerServer::builder().listen("127.0.0.1:0").database(database).clock(&clock).start().unwrap()
        };
        let first = start();
        let id = Http::connect(first.local_addr()).register("a");
        first.shutdown();
        clock.advance(secs(100_000));
        let second = start();
        let mut http = Http::connect(second.local_addr());
        assert_eq!(state(&mut http, &id), "idle");
        assert_eq!(tracker(&mut http)["restart_grace_seconds"], 120.0);
        clock.advance(secs(119));
        assert_eq!(http.row(&id).unwrap()["is_stale"], false);
        clock.advance(secs(1));
        assert_eq!(http.row(&id).unwrap()["is_stale"], true);
        assert_eq!(tracker(&mut http)["restart_grace_seconds"], 0.0);
    }
}

isolated! {
    fn a_mass_silence_is_held_visibly_and_ends_by_itself() {
        let clock = ManualClock::new();
        let server = still(&clock);
        let http = RefCell::new(Http::connect(server.local_addr()));
        for _ in 0..20 {
            http.borrow_mut().register("a");
        }
        assert_eq!(tracker(&mut http.borrow_mut())["mass_silence"], Value::Null);
        clock.advance(secs(121));
        let held = || tracker(&mut http.borrow_mut())["mass_silence"].clone();
        poll(|| held() != Value::Null, || "nobody notices".to_owned());
        assert_eq!((&held()["stale"], &held()["sessions"]), (&json!(20), &json!(20)));
        assert_eq!(held()["ends_in_seconds"], 1_080.0);
        clock.advance(secs(1_000));
        // What the ancestors' dashboard does at every poll is no order to forget them all.
        let cleaned = http.borrow_mut().ok("DELETE", "/sessions/stale?older_than_minutes=10", &Value::Null);
        assert_eq!(cleaned, json!({"deleted_count": 0}));
        assert_eq!(http.borrow_mut().list().len(), 20, "they are late for long, and kept");
        clock.advance(secs(80));
        poll(|| http.borrow_mut().list().is_empty(), || "they are kept for ever".to_owned());
        poll(|| held() == Value::Null, || "it never ends".to_owned());
    }
}

isolated! {
    fn a_mass_silence_ends_when_they_come_back_and_an_operator_may_insist() {
        let clock = ManualClock::new();
        let server = still(&clock);
        let http = RefCell::new(Http::connect(server.local_addr()));
        let ids: Vec<_> = (0..20).map(|_| http.borrow_mut().register("a")).collect();
        clock.advance(secs(130));
        let held = || tracker(&mut http.borrow_mut())["mass_silence"] != Value::Null;
        poll(held, || "nobody notices".to_owned());
        for id in &ids[..10] {
            beat(&mut http.borrow_mut(), id, &Value::Null);
        }
        clock.advance(secs(31));
        poll(|| !held(), || "it goes on although half of them beat".to_owned());
        let cleaned = http.borrow_mut().ok("DELETE", "/sessions/stale?older_than_minutes=2", &Value::Null);
        assert_eq!(cleaned, json!({"deleted_count": 10}));
        let page = http.borrow_mut().ok("GET", "/history?limit=1", &Value::Null);
        assert_eq!(page["history"][0]["reason"], "cleaned_up");
    }
}

isolated! {
    fn a_beat_that_comes_after_a_newer_one_changes_nothing() {
        let clock = ManualClock::new();
        let server = still(&clock);
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let path = format!("/sessions/{id}/heartbeat");
        beat(&mut http, &id, &json!({"beat_number": 5, "progress": 0.5}));
        clock.advance(secs(200));
        for (number, progress) in [(4, 0.4), (5, 0.45)] {
            let late = json!({"beat_number": number, "progress": progress, "status": "running"}).to_string();
            let answer = http.call("POST", &path, &late);
            assert_eq!((answer.status, &answer.json()["reason"]), (409, &json!("late_beat")), "{number}");
        }
        let row = http.row(&id).unwrap();
        assert_eq!((&row["is_stale"], &row["progress"]), (&json!(true), &json!(0.5)));
        assert_eq!(row["beat_age_seconds"], 200.0);
        beat(&mut http, &id, &json!({"beat_number": 6}));
        // A new process under the same id counts anew; what the old one still has under way is late.
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": id, "beat_number": 9}));
        assert_eq!(http.call("POST", &path, r#"{"beat_number": 9}"#).status, 409);
        beat(&mut http, &id, &json!({"beat_number": 10}));
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": id}));
        beat(&mut http, &id, &json!({"beat_number": 1}));
    }
}

isolated! {
    fn a_beat_of_a_session_that_is_gone_revives_nothing_and_learns_why() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let (ended, lost) = (http.register("a"), http.register("a"));
        http.ok("DELETE", &format!("/sessions/{ended}"), &Value::Null);
        http.ok("DELETE", "/sessions/stale?older_than_minutes=0", &Value::Null);
        for (id, reason) in [(&*ended, "ended"), (&*lost, "lost"), (UUID, "unknown")] {
            let path = format!("/sessions/{id}/heartbeat");
            for target in [path.clone(), format!("{path}?wait=30")] {
                let answer = http.call("POST", &target, r#"{"beat_number": 7}"#);
                let body = json!({"detail": "Session not found", "reason": reason});
                assert_eq!((answer.status, answer.json()), (404, body));
            }
            let answer = http.call("POST", &path, "");
            assert_eq!((answer.status, answer.json()), (404, json!({"detail": "Session not found"})));
        }
        assert!(http.list().is_empty());
    }
}

isolated! {
    fn progress_memory_and_version_are_shown_and_checked() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": UUID, "version": "1.2"}));
        beat(&mut http, UUID, &json!({"progress": 0.25, "memory_bytes": 4096}));
        beat(&mut http, UUID, &Value::Null);
        let row = http.row(UUID).unwrap();
        assert_eq!((&row["progress"], &row["memory_bytes"], &row["version"]), (&json!(0.25), &json!(4096), &json!("1.2")));
        let heavy = json!({"attached": {"pool": "x".repeat(62 * 1024)}});
        for body in [json!({"progress": 1.5}), json!({"progress": -0.1}), json!({"memory_bytes": -1}), heavy] {
            let answer = http.call("POST", &format!("/sessions/{UUID}/heartbeat"), &body.to_string());
            assert_eq!(answer.status, 422, "{:.60}", body.to_string());
        }
        let long = json!({"app_name": "a", "version": "v".repeat(257)}).to_string();
        assert_eq!(http.call("POST", "/sessions", &long).status, 422);
        http.ok("DELETE", &format!("/sessions/{UUID}"), &Value::Null);
        assert_eq!(http.ok("GET", "/history", &Value::Null)["history"][0]["version"], "1.2");
    }
}

isolated! {
    fn verbs_reach_a_parked_beat_once_and_others_with_every_answer() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let path = |rest: &str| format!("/sessions/{id}/{rest}");
        let mut app = Http::connect(server.local_addr());
        app.send("POST", &path("heartbeat?wait=60"), r#"{"verbs_number": 0}"#);
        assert_eq!(http.ok("POST", &path("pause"), &Value::Null), json!({"session_ids": [id]}));
        let paused = json!({"kill_requested": false, "verbs": ["pause"], "verbs_number": 1});
        assert_eq!(app.answer().unwrap().json(), paused);
        // Whoever has not read it hears it at once, whoever has waits for the next.
        app.send("POST", &path("heartbeat?wait=60"), r#"{"verbs_number": 0}"#);
        assert_eq!(app.answer().unwrap().json(), paused);
        app.send("POST", &path("heartbeat?wait=60"), r#"{"verbs_number": 1}"#);
        http.ok("POST", &path("pause"), &Value::Null);
        http.ok("POST", &path("drain"), &Value::Null);
        let heard = app.answer().unwrap().json();
        let heard = if heard == paused { beat(&mut app, &id, &Value::Null) } else { heard };
        assert_eq!((&heard["verbs"], &heard["verbs_number"]), (&json!(["pause", "drain"]), &json!(2)));
        assert_eq!(http.row(&id).unwrap()["verbs"], json!(["pause", "drain"]));
        http.ok("POST", &path("resume"), &Value::Null);
        assert_eq!(beat(&mut http, &id, &Value::Null), json!({"kill_requested": false, "verbs_number": 3}));
        assert_eq!(http.call("POST", &format!("/sessions/{UUID}/pause"), "").status, 404);
        assert_eq!(http.call("POST", &path("jump"), "").status, 404);
        assert_eq!(http.call("GET", &path("pause"), "").status, 405);
    }
}

isolated! {
    fn orders_reach_an_app_or_a_label_and_outlive_a_restart() {
        let directory = ScratchDir::new();
        let start = || {
            let database = directory.path().join("tracker.db");
            TrackerServer::builder().listen("127.0.0.1:0").database(database).start().unwrap()
        };
        let first = start();
        let mut http = Http::connect(first.local_addr());
        let (one, two) = (http.register("a"), http.register("a"));
        http.ok("POST", "/sessions", &json!({"app_name": "b", "session_id": UUID, "labels": {"k": "v"}}));
        assert_eq!(http.ok("POST", "/apps/a/drain-all", &Value::Null), json!({"session_ids": [one, two]}));
        assert_eq!(http.ok("POST", "/labels/k/v/pause-all", &Value::Null), json!({"session_ids": [UUID]}));
        assert_eq!(http.ok("POST", "/apps/nobody/pause-all", &Value::Null), json!({"session_ids": []}));
        http.ok("POST", &format!("/sessions/{one}/protect"), &Value::Null);
        drop(http);
        first.shutdown();
        let second = start();
        let mut http = Http::connect(second.local_addr());
        assert_eq!(beat(&mut http, &one, &Value::Null)["verbs"], json!(["drain"]));
        assert_eq!(beat(&mut http, UUID, &Value::Null)["verbs"], json!(["pause"]));
        assert_eq!(http.row(&one).unwrap()["protected"], true);
        assert_eq!(http.ok("POST", "/apps/a/kill-all", &Value::Null)["session_ids"], json!([two]));
        // Registering again neither takes the protection away nor lets go.
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": one}));
        assert_eq!(beat(&mut http, &one, &Value::Null)["verbs"], json!(["drain"]));
        http.ok("POST", &format!("/sessions/{one}/unprotect"), &Value::Null);
        assert_eq!(http.ok("POST", "/apps/a/kill-all", &Value::Null)["killed_count"], 2);
    }
}

isolated! {
    fn the_history_is_paged_and_filtered() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for app in ["a", "b", "a"] {
            let id = http.register(app);
            http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        }
        let mut page = |query: &str| {
            let page = http.ok("GET", &format!("/history{query}"), &Value::Null);
            let apps: Vec<_> =
                page["history"].as_array().unwrap().iter().map(|row| row["app_name"].clone()).collect();
            (apps, page["next_before"].clone())
        };
        assert_eq!(page(""), (vec![json!("a"), json!("b"), json!("a")], Value::Null));
        let (first, next) = page("?limit=2");
        assert_eq!(first, ["a", "b"]);
        assert_eq!(page(&format!("?limit=2&before={next}")), (vec![json!("a")], Value::Null));
        assert_eq!(page("?app=b").0, ["b"]);
        assert_eq!(http.call("GET", "/history?limit=-1", "").status, 422);
        assert_eq!(http.call("DELETE", "/history", "").status, 405);
    }
}
