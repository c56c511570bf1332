//! Who has asked a tracker for what: in receipts, in the audit, in the log.

use std::cell::RefCell;

use remuda::{Tokens, TrackedId, TrackerServer, TrackerServerBuilder};
use serde_json::{Value, json};

use crate::scripted_server::{collect_log, eventually};
use crate::support::{ScratchDir, isolated};
use crate::tracker_support::Http;

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789abc";
const APP: &str = "app-one-0123456789";

fn builder() -> TrackerServerBuilder {
    let text = format!("operator ops-desk {OPERATOR}\nviewer wall {VIEWER}\napp one {APP}");
    TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(Tokens::parse(&text).unwrap())
}

fn connect(server: &TrackerServer, token: &str) -> Http {
    Http::connect(server.local_addr()).with_token(token)
}

/// The entries, newest first.
fn audit(http: &mut Http, query: &str) -> Vec<Value> {
    http.ok("GET", &format!("/audit{query}"), &Value::Null)["audit"].as_array().expect("entries").clone()
}

fn desk() -> Value {
    json!({"token": "ops-desk", "role": "operator", "address": "127.0.0.1"})
}

isolated! {
    fn a_receipt_and_the_audit_name_the_token_beside_what_the_caller_says() {
        let log = collect_log();
        let server = builder().start().unwrap();
        let id = connect(&server, APP).register("a");
        let mut operator = connect(&server, OPERATOR);
        let order = json!({"requested_by": "the boss", "reason": "it eats the disk"});
        let receipt = operator.ok("POST", &format!("/sessions/{id}/kill"), &order)["receipt"].clone();
        assert_eq!((&receipt["asked_by"], &receipt["requested_by"]), (&desk(), &json!("the boss")));
        let listed = connect(&server, VIEWER).ok("GET", "/kills", &Value::Null);
        assert_eq!(listed["kills"][0]["asked_by"], desk());
        assert_eq!(operator.row(&id).unwrap()["kill"]["asked_by"], desk());

        let entries = audit(&mut operator, "");
        let mut entry = entries[0].clone();
        let time = entry.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with("+00:00"), "{time}");
        assert_eq!(entry, json!({
            "entry": 1, "action": "kill", "result": "done", "session_id": id, "asked_by": desk(),
            "requested_by": "the boss", "reason": "it eats the disk", "sessions": 1, "session_ids": [id],
        }));
        assert_eq!(entries.len(), 1);
        log.await_count(1, "done, 1 sessions; asked by ops-desk (operator) from 127.0.0.1");
        assert!(!log.lines().concat().contains(OPERATOR));
    }
}

isolated! {
    fn whatever_an_operator_asks_for_is_in_the_audit_and_what_was_refused_too() {
        let server = builder().start().unwrap();
        let mut app = connect(&server, APP);
        let (one, two, three) = (app.register("a"), app.register("a"), app.register("b"));
        let mut operator = connect(&server, OPERATOR);
        let mut ask = |method: &str, target: &str, body: Value| {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            operator.call(method, target, &body).status
        };
        let unknown = TrackedId::random();
        for (status, method, target, body) in [
            (200, "POST", format!("/sessions/{one}/protect"), Value::Null),
            (409, "POST", format!("/sessions/{one}/kill"), json!({"reason": "r"})),
            (200, "POST", format!("/sessions/{one}/unprotect"), Value::Null),
            (404, "POST", format!("/sessions/{unknown}/kill"), Value::Null),
            (409, "POST", "/apps/a/kill-all".to_owned(), json!({"generation": "old"})),
            (200, "POST", "/apps/a/kill-all?dry_run=1".to_owned(), Value::Null),
            (200, "POST", "/apps/a/pause-all".to_owned(), Value::Null),
            (200, "POST", "/labels/team/x/drain-all".to_owned(), Value::Null),
            (404, "POST", format!("/sessions/{unknown}/resume"), Value::Null),
            (200, "POST", "/apps/a/kill-all".to_owned(), Value::Null),
            (200, "DELETE", format!("/sessions/{three}"), Value::Null),
            (404, "DELETE", format!("/sessions/{unknown}"), Value::Null),
            (200, "DELETE", "/sessions/stale?older_than_minutes=0".to_owned(), Value::Null),
            (200, "DELETE", "/sessions/stale?older_than_minutes=0".to_owned(), Value::Null),
        ] {
            assert_eq!(ask(method, &target, body), status, "{method} {target}");
        }
        let mut viewer = connect(&server, VIEWER);
        for _ in 0..3 {
            assert_eq!(viewer.call("POST", "/apps/a/kill-all", "").status, 403);
            assert_eq!(app.call("POST", &format!("/sessions/{one}/drain"), "").status, 403);
        }
        // Nobody who is refused waits for the disk.
        let operator = RefCell::new(operator);
        let last = || audit(&mut operator.borrow_mut(), "")[0]["asked_by"]["token"] == "one";
        eventually("what was refused is noted", last);
        let mut entries = audit(&mut operator.borrow_mut(), "");
        entries.reverse();
        let seen: Vec<(&str, &str, u64, &str)> = entries
            .iter()
            .map(|entry| {
                let text = |value: &'static str| entry[value].as_str().unwrap();
                let token = entry["asked_by"]["token"].as_str().unwrap();
                (text("action"), text("result"), entry["sessions"].as_u64().unwrap(), token)
            })
            .collect();
        let desk = |action, result, sessions| (action, result, sessions, "ops-desk");
        assert_eq!(seen, [
            desk("protect", "done", 1),
            desk("kill", "protected", 0),
            desk("unprotect", "done", 1),
            desk("kill", "unknown", 0),
            desk("kill", "stale_generation", 0),
            desk("pause", "done", 2),
            desk("drain", "done", 0),
            desk("resume", "unknown", 0),
            desk("kill", "done", 2),
            desk("remove", "done", 1),
            desk("remove", "unknown", 0),
            desk("clean_up", "done", 2),
            ("kill", "forbidden", 0, "wall"),
            ("drain", "forbidden", 0, "one"),
        ]);
        assert_eq!(entries[5]["app_name"], "a");
        assert_eq!(entries[6]["label"], "team=x");
        assert_eq!(entries[8]["session_ids"], json!([one, two]));
        assert_eq!((&entries[11]["session_id"], &entries[11]["app_name"]), (&Value::Null, &Value::Null));
        assert_eq!((&entries[13]["session_id"], &entries[13]["asked_by"]["role"]), (&json!(one), &json!("app")));
    }
}

isolated! {
    fn the_audit_is_read_in_pages_by_action_and_by_token() {
        let server = builder().start().unwrap();
        let mut operator = connect(&server, OPERATOR);
        for _ in 0..3 {
            operator.ok("POST", "/apps/a/pause-all", &Value::Null);
            operator.ok("POST", "/apps/a/kill-all", &Value::Null);
        }
        let page = operator.ok("GET", "/audit?limit=4", &Value::Null);
        assert_eq!((page["audit"].as_array().unwrap().len(), &page["next_before"]), (4, &json!(3)));
        let rest = operator.ok("GET", "/audit?limit=4&before=3", &Value::Null);
        let numbers: Vec<&Value> = rest["audit"].as_array().unwrap().iter().map(|entry| &entry["entry"]).collect();
        assert_eq!((numbers, &rest["next_before"]), (vec![&json!(2), &json!(1)], &Value::Null));
        assert_eq!(audit(&mut operator, "?action=pause").len(), 3);
        assert_eq!(audit(&mut operator, "?action=kill&token=ops-desk").len(), 3);
        assert_eq!(audit(&mut operator, "?token=somebody").len(), 0);
        for wrong in ["?action=explode", "?limit=0", "?before=x"] {
            assert_eq!(operator.call("GET", &format!("/audit{wrong}"), "").status, 422, "{wrong}");
        }
        assert_eq!(connect(&server, VIEWER).call("GET", "/audit", "").status, 403);
    }
}

isolated! {
    fn the_audit_outlives_the_server_and_a_later_kill_names_who_laid_the_embargo() {
        let directory = ScratchDir::new();
        let database = directory.path().join("tracker.db");
        let server = builder().database(&database).start().unwrap();
        let order = json!({"embargo_seconds": 600, "requested_by": "ann", "reason": "a bad release"});
        connect(&server, OPERATOR).ok("POST", "/apps/a/kill-all", &order);
        server.shutdown();

        let server = builder().database(&database).start().unwrap();
        let mut operator = connect(&server, OPERATOR);
        let before = audit(&mut operator, "");
        assert_eq!((before.len(), &before[0]["reason"]), (1, &json!("a bad release")));
        let id = connect(&server, APP).register("a");
        let receipt = operator.row(&id).unwrap()["kill"].clone();
        assert_eq!((&receipt["scope"], &receipt["asked_by"]), (&json!("embargo"), &desk()));
        assert_eq!(audit(&mut operator, "").len(), 1, "nobody has asked anew");
        server.shutdown();
        let server = builder().database(&database).start().unwrap();
        assert_eq!(connect(&server, OPERATOR).row(&id).unwrap()["kill"]["asked_by"], desk());
        server.shutdown();
    }
}

isolated! {
    fn without_tokens_the_address_is_what_is_known_and_of_the_program_itself_nothing() {
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap();
        let mut http = Http::connect(server.local_addr());
        let (one, two) = (http.register("a"), http.register("a"));
        http.ok("POST", &format!("/sessions/{one}/kill"), &Value::Null);
        assert!(server.kill(&TrackedId::from(two.as_str())).unwrap());
        http.ok("DELETE", &format!("/sessions/{one}"), &Value::Null);
        let entries = audit(&mut http, "");
        assert_eq!(entries.len(), 2, "a session that leaves by itself is none of the audit: {entries:?}");
        assert_eq!(entries[0]["asked_by"], Value::Null);
        assert_eq!(entries[1]["asked_by"], json!({"address": "127.0.0.1"}));
    }
}

isolated! {
    /// Else whoever is refused something harmless once a minute could try to kill unseen.
    fn a_refused_kill_is_in_the_audit_whatever_was_refused_before() {
        let text = format!("operator ops-desk {OPERATOR}\nviewer {VIEWER}\napp one {APP}");
        let server = builder().tokens(Tokens::parse(&text).unwrap()).start().unwrap();
        let mut stranger = Http::connect(server.local_addr());
        assert_eq!(stranger.call("POST", "/apps/a/kill-all", "").status, 401);
        for (token, harmless) in [(APP, "/sessions"), (VIEWER, "/audit")] {
            let mut http = connect(&server, token);
            assert_eq!(http.call("GET", harmless, "").status, 403);
            assert_eq!(http.call("POST", "/apps/a/kill-all", "").status, 403);
        }
        let operator = RefCell::new(connect(&server, OPERATOR));
        let roles = || -> Vec<Value> {
            let entries = audit(&mut operator.borrow_mut(), "?action=kill");
            entries.iter().map(|entry| entry["asked_by"]["role"].clone()).collect()
        };
        eventually("both are noted", || roles() == ["viewer", "app"]);
    }
}

isolated! {
    fn what_somebody_says_makes_no_lines_in_the_log() {
        let log = collect_log();
        let server = builder().start().unwrap();
        let mut app = connect(&server, APP);
        app.ok("POST", "/sessions", &json!({"app_name": "a\nFORGED app"}));
        let order = json!({"requested_by": "b\nFORGED name", "reason": "c\r\n\u{1b}[2JFORGED reason"});
        let mut operator = connect(&server, OPERATOR);
        operator.ok("POST", "/apps/a%0aFORGED%20app/kill-all", &order);
        assert_eq!(operator.call("POST", "/sessions/d%0aFORGED%20id/kill", "").status, 404);
        log.await_count(1, "FORGED reason");
        log.await_count(1, "FORGED id");
        for line in log.lines() {
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}
