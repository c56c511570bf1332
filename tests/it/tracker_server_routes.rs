//! The eight routes, over real sockets.

use std::time::Duration;

use remuda::testing::ManualClock;
use remuda::{Error, TrackerServer};
use serde_json::{Value, json};

use crate::support::{isolated, poll};
use crate::tracker_support::{Http, call, server};

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

isolated! {
    fn a_session_is_registered_beats_works_is_killed_and_leaves() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let created = http.ok("POST", "/sessions", &json!({"app_name": "reports", "user_id": "ann"}));
        let id = created["session_id"].as_str().unwrap().to_owned();
        assert_eq!(created["max_wait_seconds"], 60);
        let path = |rest: &str| format!("/sessions/{id}{rest}");
        assert_eq!(http.ok("POST", &path("/heartbeat"), &Value::Null), json!({"kill_requested": false}));

        let status = json!({"status": "running", "current_task": "Q3 – Überblick"});
        assert_eq!(http.ok("PUT", &path("/status"), &status), json!({"status": "updated"}));
        let row = http.row(&id).unwrap();
        assert_eq!(row["app_name"], "reports");
        assert_eq!(row["user_id"], "ann");
        assert_eq!(row["status"], "running");
        assert_eq!(row["current_task"], "Q3 – Überblick");
        assert_eq!((&row["is_stale"], &row["kill_requested"]), (&json!(false), &json!(false)));
        assert!(row["duration_seconds"].as_f64().unwrap() >= 0.0);
        assert!(row["start_time"].as_str().unwrap().ends_with("+00:00"));
        assert!(row["last_heartbeat"].as_str().unwrap() >= row["start_time"].as_str().unwrap());

        http.ok("PUT", &path("/status"), &json!({"status": "idle"}));
        let row = http.row(&id).unwrap();
        assert_eq!((&row["status"], &row["current_task"]), (&json!("idle"), &Value::Null));

        assert_eq!(http.ok("POST", &path("/kill"), &Value::Null)["status"], "kill_requested");
        assert_eq!(http.row(&id).unwrap()["kill_requested"], true);
        // It is told as often as it asks: a lost answer loses no kill.
        for _ in 0..2 {
            assert_eq!(http.ok("POST", &path("/heartbeat"), &json!({}))["kill_requested"], true);
        }
        assert_eq!(http.ok("DELETE", &path(""), &Value::Null), json!({"status": "deleted"}));
        assert!(http.list().is_empty());
        drop(http);
        server.shutdown();
    }
}

isolated! {
    fn an_unknown_id_is_404_on_every_route() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for (method, target, body) in [
            ("POST", format!("/sessions/{UUID}/heartbeat"), ""),
            ("POST", format!("/sessions/{UUID}/heartbeat?wait=30"), ""),
            ("POST", format!("/sessions/{UUID}/heartbeat"), r#"{"status":"idle"}"#),
            ("PUT", format!("/sessions/{UUID}/status"), r#"{"status":"idle"}"#),
            ("POST", format!("/sessions/{UUID}/kill"), ""),
            ("DELETE", format!("/sessions/{UUID}"), ""),
            ("DELETE", "/sessions/no%20such%2Fid".to_owned(), ""),
        ] {
            let answer = http.call(method, &target, body);
            assert_eq!(answer.status, 404, "{method} {target}");
            assert_eq!(answer.body, br#"{"detail":"Session not found"}"#, "{method} {target}");
        }
    }
}

isolated! {
    fn bad_bodies_and_parameters_are_422_with_a_detail() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let (sessions, status) = ("/sessions".to_owned(), format!("/sessions/{id}/status"));
        let heartbeat = format!("/sessions/{id}/heartbeat");
        let deep = format!(r#"{{"app_name": {}1{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
        for (method, target, body) in [
            ("POST", &sessions, ""),
            ("POST", &sessions, "{"),
            ("POST", &sessions, "[]"),
            ("POST", &sessions, r#"["app"]"#),
            ("POST", &sessions, "{}"),
            ("POST", &sessions, r#"{"app_name": 1}"#),
            ("POST", &sessions, r#"{"app_name": null}"#),
            ("POST", &sessions, r#"{"app_name": ""}"#),
            ("POST", &sessions, r#"{"app_name": "a", "session_id": "mine"}"#),
            ("POST", &sessions, r#"{"app_name": "a", "uptime_seconds": -1}"#),
            ("POST", &sessions, r#"{"app_name": "a", "pid": -1}"#),
            ("POST", &sessions, r#"{"app_name": "\ud800"}"#),
            ("POST", &sessions, r#"{"app_name": "a\u0000b"}"#),
            ("POST", &sessions, &deep),
            ("PUT", &status, ""),
            ("PUT", &status, r#"{"current_task": "x"}"#),
            ("PUT", &status, r#"{"status": ""}"#),
            ("PUT", &status, r#"{"status": ["running"]}"#),
            ("POST", &heartbeat, "garbage"),
            ("POST", &format!("{heartbeat}?wait=soon"), ""),
            ("POST", &format!("{heartbeat}?wait=-1"), ""),
            ("POST", &format!("{heartbeat}?wait=nan"), ""),
            ("DELETE", &"/sessions/stale?older_than_minutes=x".to_owned(), ""),
            ("DELETE", &"/sessions/stale?older_than_minutes=-5".to_owned(), ""),
        ] {
            let answer = http.call(method, target, body);
            assert_eq!(answer.status, 422, "{method} {target} {body:.60}");
            assert!(answer.json()["detail"].is_string(), "{method} {target}");
        }
        assert_eq!(http.list().len(), 1, "nothing was registered");
    }
}

isolated! {
    fn kill_all_reaches_the_named_app_only_whatever_its_name() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for (name, target) in [
            ("my app", "my%20app"),
            ("team/app", "team%2Fapp"),
            ("team/app/x", "team/app/x"),
            ("größe 尺寸", "gr%C3%B6%C3%9Fe%20%E5%B0%BA%E5%AF%B8"),
            ("100%+?#", "100%25+%3F%23"),
            ("..", "%2E%2E"),
            ("stale", "stale"),
        ] {
            let (other, ids) = (http.register("other"), [http.register(name), http.register(name)]);
            let killed = http.ok("POST", &format!("/apps/{target}/kill-all"), &Value::Null);
            assert_eq!(killed["killed_count"], 2, "{name}");
            assert_eq!(killed["session_ids"].as_array().unwrap().len(), 2);
            for id in &ids {
                let beat = http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
                assert_eq!(beat["kill_requested"], true, "{name}");
            }
            let beat = http.ok("POST", &format!("/sessions/{other}/heartbeat"), &Value::Null);
            assert_eq!(beat["kill_requested"], false, "the neighbour of {name}");
        }
        let none = http.ok("POST", "/apps/nobody/kill-all", &Value::Null);
        assert_eq!(none["killed_count"], 0);
    }
}

isolated! {
    /// Defect B10 of the ancestor: the clean-up must not be taken for the deletion of a session.
    fn the_literal_route_stale_comes_before_the_route_of_an_id() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        for target in ["/sessions/stale?older_than_minutes=10", "/sessions/stale", "/sessions/%73tale"] {
            assert_eq!(http.ok("DELETE", target, &Value::Null), json!({"deleted_count": 0}));
        }
        assert!(http.row(&id).is_some());
        assert_eq!(
            http.ok("DELETE", "/sessions/stale?older_than_minutes=0", &Value::Null),
            json!({"deleted_count": 1})
        );
        assert!(http.list().is_empty());
    }
}

isolated! {
    fn rows_come_newest_first() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut ids: Vec<String> = (0..5).map(|_| http.register("a")).collect();
        let old = json!({"app_name": "a", "session_id": UUID, "uptime_seconds": 3600.5});
        http.ok("POST", "/sessions", &old);
        ids.insert(0, UUID.to_owned());
        let rows = http.list();
        let listed: Vec<_> = rows.iter().rev().map(|row| row["session_id"].as_str().unwrap()).collect();
        assert_eq!(listed, ids);
        assert!(rows.last().unwrap()["duration_seconds"].as_f64().unwrap() >= 3600.0);
    }
}

isolated! {
    fn registering_again_keeps_the_start_and_a_pending_kill() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let me = json!({"app_name": "a", "session_id": UUID, "host": "h", "pid": 7, "labels": {"k": "v"}});
        assert_eq!(http.ok("POST", "/sessions", &me)["session_id"], UUID);
        let start = http.row(UUID).unwrap()["start_time"].clone();
        http.ok("POST", &format!("/sessions/{UUID}/kill"), &Value::Null);
        http.ok("POST", "/sessions", &json!({"app_name": "b", "session_id": UUID, "status": "running"}));
        let row = http.row(UUID).unwrap();
        assert_eq!((&row["app_name"], &row["start_time"]), (&json!("b"), &start));
        assert_eq!((&row["status"], &row["kill_requested"]), (&json!("running"), &json!(true)));
        assert_eq!(http.list().len(), 1);
    }
}

isolated! {
    fn what_a_client_says_of_itself_and_attaches_is_shown() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let me = json!({"app_name": "a", "host": "h", "pid": 7, "labels": {"k": "v"}, "unheard_of": [1]});
        let id = http.ok("POST", "/sessions", &me)["session_id"].as_str().unwrap().to_owned();
        let beat = json!({"status": "running", "current_task": "t", "attached": {"pool": {"idle": 2}}});
        http.ok("POST", &format!("/sessions/{id}/heartbeat"), &beat);
        http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
        let row = http.row(&id).unwrap();
        assert_eq!((&row["host"], &row["pid"], &row["labels"]), (&json!("h"), &json!(7), &json!({"k": "v"})));
        assert_eq!((&row["status"], &row["current_task"]), (&json!("running"), &json!("t")));
        assert_eq!(row["attached"], json!({"pool": {"idle": 2}}));
    }
}

isolated! {
    fn a_status_that_comes_after_a_newer_one_is_ignored() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let target = format!("/sessions/{id}/status");
        for (number, status) in [(2, "running"), (1, "idle")] {
            let body = json!({"status": status, "status_number": number});
            assert_eq!(http.ok("PUT", &target, &body), json!({"status": "updated"}));
        }
        assert_eq!(http.row(&id).unwrap()["status"], "running");
        http.ok("PUT", &target, &json!({"status": "idle"}));
        assert_eq!(http.row(&id).unwrap()["status"], "idle");
    }
}

isolated! {
    fn silence_is_shown_then_moved_to_the_history_and_a_pending_kill_survives_that() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.clock(&clock).start().unwrap();
        let address = server.local_addr();
        let mut http = Http::connect(address);
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": UUID, "status": "running"}));
        http.ok("POST", &format!("/sessions/{UUID}/kill"), &Value::Null);
        clock.advance(Duration::from_secs(120));
        let row = http.row(UUID).unwrap();
        assert_eq!((&row["is_stale"], &row["status"]), (&json!(true), &json!("stale")));
        clock.advance(Duration::from_secs(480));
        poll(|| Http::connect(address).list().is_empty(), || "it is never removed".to_owned());
        assert_eq!(http.call("POST", &format!("/sessions/{UUID}/heartbeat"), "").status, 404);
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": UUID}));
        let beat = http.ok("POST", &format!("/sessions/{UUID}/heartbeat"), &Value::Null);
        assert_eq!(beat["kill_requested"], true);
        // Whoever leaves by itself takes its kill along.
        http.ok("DELETE", &format!("/sessions/{UUID}"), &Value::Null);
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": UUID}));
        let beat = http.ok("POST", &format!("/sessions/{UUID}/heartbeat"), &Value::Null);
        assert_eq!(beat["kill_requested"], false);
    }
}

isolated! {
    fn when_all_of_many_fall_silent_they_are_kept_for_twice_the_time() {
        let clock = ManualClock::new();
        let time = Duration::from_secs(600);
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.purge_after(time).clock(&clock).start().unwrap();
        let address = server.local_addr();
        let mut http = Http::connect(address);
        for _ in 0..20 {
            http.register("a");
        }
        clock.advance(time / 2);
        let is_held = || Http::connect(address).ok("GET", "/tracker", &Value::Null)["mass_silence"] != Value::Null;
        poll(is_held, || "nobody notices".to_owned());
        clock.advance(time);
        assert_eq!(http.list().len(), 20, "they were removed as early as a single one");
        clock.advance(time);
        poll(|| Http::connect(address).list().is_empty(), || "they are never removed".to_owned());
    }
}

isolated! {
    fn the_page_is_served_under_a_strict_policy() {
        let server = server();
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tracker/dashboard")).unwrap();
        let mut weight = 0;
        for file in files {
            let name = file.unwrap().file_name().into_string().unwrap();
            let (target, kind) = match name.rsplit_once('.').unwrap().1 {
                "html" => ("/".to_owned(), "text/html"),
                "css" => (format!("/dashboard/{name}"), "text/css"),
                "svg" => (format!("/dashboard/{name}"), "image/svg+xml"),
                _ => (format!("/dashboard/{name}"), "text/javascript"),
            };
            let answer = call(server.local_addr(), "GET", &target, "");
            weight += answer.body.len();
            assert_eq!(answer.status, 200, "{target}");
            assert!(answer.field("content-type").unwrap().starts_with(kind), "{target}");
            let policy = answer.field("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
            assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
            assert!(!answer.body.is_empty());
        }
        assert!(weight < 100 * 1024, "{weight} bytes");
        assert_eq!(call(server.local_addr(), "GET", "/dashboard/other.js", "").status, 404);
        let page = String::from_utf8(call(server.local_addr(), "GET", "/", "").body).unwrap();
        assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="));
        assert_eq!(page.matches("<script").count(), page.matches("<script src=").count(), "no inline script");
    }
}

isolated! {
    fn unknown_paths_and_methods_are_told_apart() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for target in ["/nothing", "/sessions/", "/sessions/a/b/c", "/apps/kill-all", "/apps/a", "//sessions"] {
            let answer = http.call("POST", target, "");
            assert_eq!((answer.status, answer.json()), (404, json!({"detail": "Not Found"})), "{target}");
        }
        for (method, target, allowed) in [
            ("PUT", "/sessions", "GET, POST"),
            ("GET", "/sessions/stale", "DELETE"),
            ("GET", "/sessions/x", "DELETE"),
            ("GET", "/sessions/x/kill", "POST"),
            ("GET", "/apps/a/kill-all", "POST"),
            ("POST", "/", "GET"),
            ("POST", "/readyz", "GET"),
            ("OPTIONS", "/sessions", "GET, POST"),
            ("PATCH", "/sessions/x/status", "PUT"),
        ] {
            let answer = http.call(method, target, "");
            assert_eq!((answer.status, answer.field("allow")), (405, Some(allowed)), "{method} {target}");
        }
    }
}

isolated! {
    /// What a supervisor asks; `tracker_disk` has the answers of one that is not ready.
    fn a_server_says_that_it_lives_and_is_ready() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        assert_eq!(http.ok("GET", "/livez", &Value::Null), json!({"status": "alive"}));
        assert_eq!(http.ok("GET", "/readyz", &Value::Null), json!({"status": "ready"}));
        assert!(server.store().check().is_ok());
    }
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8000"] {
        let refused = TrackerServer::builder().listen(listen).database(":memory:").start();
        match refused {
            Err(Error::InvalidConfig { option: "listen", reason }) => {
                assert!(reason.contains("takes access tokens"), "{reason}");
            }
            other => panic!("{listen}: {other:?}"),
        }
    }
    for listen in ["", "8000", "localhost", "127.0.0.1", "127.0.0.1:x", "example.org:80"] {
        let refused = TrackerServer::builder().listen(listen).database(":memory:").start();
        assert!(matches!(refused, Err(Error::InvalidConfig { option: "listen", .. })), "{listen}");
    }
    let odd = TrackerServer::builder().purge_after(Duration::from_secs(1)).start();
    assert!(matches!(odd, Err(Error::InvalidConfig { option: "purge_after", .. })));
}

isolated! {
    fn a_port_in_use_is_named() {
        let server = server();
        let address = server.local_addr();
        let second = TrackerServer::builder().listen(address.to_string()).database(":memory:").start();
        match second {
            Err(Error::Listen { address: refused, .. }) => assert_eq!(refused, address),
            other => panic!("{other:?}"),
        }
    }
}
