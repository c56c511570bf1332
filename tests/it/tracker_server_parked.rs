//! Beats that wait for a kill.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::support::{isolated, poll};
use crate::tracker_support::{Http, server};

/// Sends a beat that waits, and returns when the server has it.
fn park(http: &mut Http, watcher: &mut Http, id: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mark = json!({"count": COUNT.fetch_add(1, Ordering::Relaxed)});
    let beat = json!({ "attached": mark }).to_string();
    http.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), &beat);
    let watcher = RefCell::new(watcher);
    poll(
        || watcher.borrow_mut().row(id).is_some_and(|row| row["attached"] == mark),
        || "the beat never arrives".to_owned(),
    );
}

isolated! {
    fn a_kill_answers_the_parked_beat_of_its_session_only() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let mut parked: Vec<(String, Http)> = (0..20)
            .map(|_| {
                let (id, mut http) = (operator.register("a"), Http::connect(server.local_addr()));
                park(&mut http, &mut operator, &id);
                (id, http)
            })
            .collect();
        let (victim, mut http) = parked.swap_remove(7);
        operator.ok("POST", &format!("/sessions/{victim}/kill"), &Value::Null);
        assert_eq!(http.answer().unwrap().json()["kill_requested"], true);
        for (_, http) in &mut parked {
            assert!(!http.has_input(), "a neighbour was answered");
        }
        assert_eq!(operator.ok("POST", "/apps/a/kill-all", &Value::Null)["killed_count"], 20);
        for (_, http) in &mut parked {
            assert_eq!(http.answer().unwrap().json()["kill_requested"], true);
        }
    }
}

isolated! {
    fn a_beat_is_not_parked_when_the_kill_is_there_already() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        http.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        let beat = http.ok("POST", &format!("/sessions/{id}/heartbeat?wait=60"), &Value::Null);
        assert_eq!(beat["kill_requested"], true);
    }
}

isolated! {
    fn the_wait_ends_by_itself() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        for wait in ["0", "0.05", "0.05"] {
            let beat = http.ok("POST", &format!("/sessions/{id}/heartbeat?wait={wait}"), &Value::Null);
            assert_eq!(beat["kill_requested"], false);
        }
    }
}

isolated! {
    fn deleting_a_session_ends_its_parked_beat() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let mut http = Http::connect(server.local_addr());
        for target in ["/sessions/{}", "/sessions/stale?older_than_minutes=0"] {
            let id = operator.register("a");
            park(&mut http, &mut operator, &id);
            operator.ok("DELETE", &target.replace("{}", &id), &Value::Null);
            let answer = http.answer().unwrap();
            assert_eq!((answer.status, answer.json()), (404, json!({"detail": "Session not found"})));
        }
    }
}

isolated! {
    fn a_newer_beat_of_the_session_ends_the_older_one() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let id = operator.register("a");
        let (mut older, mut newer) = (Http::connect(server.local_addr()), Http::connect(server.local_addr()));
        park(&mut older, &mut operator, &id);
        newer.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
        assert_eq!(older.answer().unwrap().json(), json!({"kill_requested": false}));
        operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        assert_eq!(newer.answer().unwrap().json()["kill_requested"], true);
    }
}

isolated! {
    fn stopping_the_server_answers_parked_beats() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let id = operator.register("a");
        let mut http = Http::connect(server.local_addr());
        park(&mut http, &mut operator, &id);
        server.shutdown();
        let answer = http.answer().unwrap();
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
        assert_eq!(answer.json(), json!({"kill_requested": false}));
        assert!(http.answer().is_none());
    }
}

isolated! {
    fn a_client_that_stops_sending_gets_its_answer_and_one_that_is_gone_hurts_nobody() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let id = operator.register("a");
        let mut half = Http::connect(server.local_addr());
        half.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
        half.finish_sending();
        assert_eq!(half.answer().unwrap().json(), json!({"kill_requested": false}));
        let mut gone = Http::connect(server.local_addr());
        park(&mut gone, &mut operator, &id);
        drop(gone);
        operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        let beat = operator.ok("POST", &format!("/sessions/{id}/heartbeat?wait=60"), &Value::Null);
        assert_eq!(beat["kill_requested"], true);
    }
}

isolated! {
    fn a_request_behind_a_parked_beat_is_answered_after_it() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let id = operator.register("a");
        let mut http = Http::connect(server.local_addr());
        park(&mut http, &mut operator, &id);
        http.send("GET", "/sessions", "");
        operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        assert_eq!(http.answer().unwrap().json()["kill_requested"], true);
        assert_eq!(http.answer().unwrap().json()["sessions"][0]["session_id"], *id);
    }
}

isolated! {
    /// A thousand and more, each on a connection of its own, in one process with the server.
    fn a_thousand_parked_beats_cost_no_thread_and_one_kill_finds_its_own() {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: files.maximum, maximum: files.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let mut parked: Vec<(String, Http)> = (0..1_000)
            .map(|_| {
                let (id, mut http) = (operator.register("a"), Http::connect(server.local_addr()));
                http.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
                (id, http)
            })
            .collect();
        for victim in [0, 500, 997] {
            let (id, mut http) = parked.swap_remove(victim);
            operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
            assert_eq!(http.answer().unwrap().json()["kill_requested"], true);
        }
        assert_eq!(threads(), before);
        assert!(parked.iter().all(|(_, http)| !http.has_input()), "a neighbour was answered");
        assert_eq!(operator.ok("POST", "/apps/a/kill-all", &Value::Null)["killed_count"], 1_000);
        for (_, http) in &mut parked {
            assert_eq!(http.answer().unwrap().json()["kill_requested"], true);
        }
    }
}

isolated! {
    fn an_order_that_changes_nothing_leaves_a_parked_beat_alone() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let mut app = Http::connect(server.local_addr());
        let id = operator.register("a");
        let path = |what: &str| format!("/sessions/{id}/{what}");
        operator.ok("POST", &path("pause"), &Value::Null);
        app.send("POST", &path("heartbeat?wait=60"), r#"{"verbs_number": 1, "progress": 0.5}"#);
        let watcher = RefCell::new(&mut operator);
        poll(
            || watcher.borrow_mut().row(&id).is_some_and(|row| row["progress"] == 0.5),
            || "the beat never arrives".to_owned(),
        );
        // It has read of the pause. One who hears nothing new would take the tracker for one that
        // cannot hold beats.
        for word in ["pause", "protect", "unprotect", "pause"] {
            operator.ok("POST", &path(word), &Value::Null);
        }
        operator.ok("POST", &path("drain"), &Value::Null);
        assert_eq!(app.answer().unwrap().json()["verbs"], json!(["pause", "drain"]));
    }
}
