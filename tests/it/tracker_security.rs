//! Who may ask a tracker for what: tokens, roles, owners, names of hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use remuda::{AccessToken, Error, Tokens, TrackedId, TrackerServer, TrackerServerBuilder};
use serde_json::{Value, json};

use crate::support::{ScratchDir, isolated};
use crate::tracker_support::{Answer, Http};

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789abc";
const APP: &str = "app-one-0123456789";
const OTHER: &str = "app-two-0123456789";

fn tokens() -> Tokens {
    let text = format!(
        "operator ops-desk {OPERATOR}\nviewer {VIEWER}\napp one {APP}\napp two {OTHER}\napp one {APP}-new"
    );
    Tokens::parse(&text).unwrap()
}

fn builder() -> TrackerServerBuilder {
    TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(tokens())
}

fn connect(server: &TrackerServer, token: &str) -> Http {
    Http::connect(server.local_addr()).with_token(token)
}

/// The answer to a GET under this Host, with these further fields.
fn asked_as(server: &TrackerServer, host: &str, fields: &str) -> Answer {
    let mut http = Http::connect(server.local_addr());
    http.raw(format!("GET /sessions HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
    http.answer().expect("an answer")
}

isolated! {
    /// Every row of the server's own table: whoever adds one adds it here as well, whether he wants or not.
    fn each_endpoint_asks_for_the_token_that_its_row_names() {
        let server = builder().start().unwrap();
        let strangers = [None, Some("wrong-0123456789abcdef"), Some("")];
        let known = [("app", APP), ("viewer", VIEWER), ("operator", OPERATOR)];
        for (method, path, access) in TrackerServer::endpoints() {
            let target = path.replace("{session_id}", TrackedId::random().as_str()).replace("{kill_id}", "7");
            let target = target.replace(['{', '}'], "");
            let call = |token: Option<&str>| {
                let http = Http::connect(server.local_addr());
                let mut http = if let Some(token) = token { http.with_token(token) } else { http };
                http.call(method, &target, "")
            };
            for stranger in strangers {
                let answer = call(stranger);
                let refused = access != "everybody";
                assert_eq!(answer.status == 401, refused, "{method} {path} {stranger:?}: {answer:?}");
                assert_eq!(answer.field("www-authenticate").is_some(), refused, "{method} {path}");
                if refused {
                    assert_eq!(answer.json()["reason"], "unauthorized");
                }
            }
            for (role, token) in known {
                let answer = call(Some(token));
                let refused = role != "operator" && role != access && access != "everybody";
                assert_ne!(answer.status, 401, "{method} {path} {role}");
                assert_eq!(answer.status == 403, refused, "{method} {path} {role}: {answer:?}");
                if refused {
                    assert_eq!(answer.json()["reason"], "forbidden");
                }
            }
        }
    }
}

isolated! {
    fn a_new_endpoint_is_for_operators_unless_it_only_reads_or_is_listed_here() {
        for (method, path, access) in TrackerServer::endpoints() {
            let expected = match (method, path) {
                ("GET", "/" | "/livez" | "/readyz" | "/openapi.json" | "/dashboard/{file}") => "everybody",
                ("POST", "/sessions" | "/heartbeats" | "/sessions/{session_id}/heartbeat")
                | ("PUT", "/sessions/{session_id}/status")
                | ("DELETE", "/sessions/{session_id}") => "app",
                ("GET", "/audit") => "operator",
                ("GET", _) => "viewer",
                _ => "operator",
            };
            assert_eq!(access, expected, "{method} {path}");
        }
    }
}

isolated! {
    fn a_beat_without_a_token_is_not_parked_and_one_with_a_token_is() {
        let server = builder().start().unwrap();
        let mut app = connect(&server, APP);
        let id = app.register("a");
        let target = format!("/sessions/{id}/heartbeat?wait=60");
        assert_eq!(Http::connect(server.local_addr()).call("POST", &target, "").status, 401);
        assert_eq!(connect(&server, VIEWER).call("POST", &target, "").status, 403);
        app.send("POST", &target, "");
        connect(&server, OPERATOR).ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        assert_eq!(app.answer().unwrap().json()["kill_requested"], true);
    }
}

isolated! {
    fn an_app_touches_only_what_it_registered() {
        let server = builder().start().unwrap();
        let (mut one, mut two) = (connect(&server, APP), connect(&server, OTHER));
        let id = one.register("a");
        let unknown = TrackedId::random();
        for (method, path, body) in [
            ("POST", "/sessions/ID/heartbeat", json!({})),
            ("POST", "/sessions/ID/heartbeat", json!({"beat_number": 7})),
            ("POST", "/sessions/ID/heartbeat", json!({"status": "stolen", "beat_number": 7})),
            ("POST", "/sessions/ID/heartbeat?wait=60", json!({})),
            ("PUT", "/sessions/ID/status", json!({"status": "stolen"})),
            ("DELETE", "/sessions/ID", json!({})),
        ] {
            let body = body.to_string();
            let foreign = two.call(method, &path.replace("ID", &id), &body);
            let none = two.call(method, &path.replace("ID", unknown.as_str()), &body);
            assert_eq!((foreign.status, none.status), (404, 404), "{method} {path}");
            assert_eq!(foreign.body, none.body, "a stranger learns nothing: {method} {path}");
        }
        let batch = |id: &str| json!({"beats": [{"session_id": id, "beat_number": 9}]}).to_string();
        let foreign = two.call("POST", "/heartbeats?wait=60", &batch(&id)).json();
        assert_eq!(foreign["answers"][0]["missed"], "unknown");
        assert_eq!(foreign["answers"][0]["session_id"], id);

        let mut operator = connect(&server, OPERATOR);
        let row = operator.row(&id).expect("it is still there");
        assert_eq!(row["status"], "idle");
        let mine = one.ok("POST", &format!("/sessions/{id}/heartbeat"), &json!({"beat_number": 1}));
        assert_eq!(mine["kill_requested"], false);
        assert_eq!(one.ok("POST", "/heartbeats", &serde_json::from_str(&batch(&id)).unwrap()), json!({"answers": []}));
        // The token that takes the place of the first has its name.
        let mut renewed = connect(&server, &format!("{APP}-new"));
        renewed.ok("PUT", &format!("/sessions/{id}/status"), &json!({"status": "running"}));
        operator.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
        renewed.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        assert_eq!(operator.row(&id), None);
    }
}

isolated! {
    fn nobody_takes_over_a_session_by_registering_with_its_id() {
        let server = builder().start().unwrap();
        let (mut one, mut two) = (connect(&server, APP), connect(&server, OTHER));
        let id = TrackedId::random().to_string();
        let body = |app: &str| json!({"app_name": app, "session_id": id});
        assert_eq!(one.ok("POST", "/sessions", &body("a"))["session_id"], id);
        let other = two.ok("POST", "/sessions", &body("b"))["session_id"].as_str().unwrap().to_owned();
        assert_ne!(other, id, "it gets an id of its own");
        assert!(TrackedId::from(other.as_str()).is_uuid());
        assert_eq!(one.ok("POST", "/sessions", &body("a2"))["session_id"], id, "its owner may");
        let mut viewer = connect(&server, VIEWER);
        let apps: Vec<Value> = [&id, &other].map(|id| viewer.row(id).unwrap()["app_name"].clone()).to_vec();
        assert_eq!(apps, ["a2", "b"]);
        two.ok("POST", &format!("/sessions/{other}/heartbeat"), &Value::Null);
        assert_eq!(one.call("POST", &format!("/sessions/{other}/heartbeat"), "").status, 404);
    }
}

isolated! {
    /// Owners are on the disk; what was registered before there were tokens belongs to whoever comes back
    /// with its id first.
    fn owners_outlive_the_server_and_what_nobody_owns_is_adopted() {
        let directory = ScratchDir::new();
        let database = directory.path().join("tracker.db");
        let free = TrackerServer::builder().listen("127.0.0.1:0").database(&database).start().unwrap();
        let orphan = Http::connect(free.local_addr()).register("orphan");
        free.shutdown();
        let server = builder().database(&database).start().unwrap();
        let id = connect(&server, APP).register("a");
        server.shutdown();

        let server = builder().database(&database).start().unwrap();
        let (mut one, mut two) = (connect(&server, APP), connect(&server, OTHER));
        let beat = |id: &str| format!("/sessions/{id}/heartbeat");
        assert_eq!((two.call("POST", &beat(&id), "").status, one.call("POST", &beat(&id), "").status), (404, 200));
        assert_eq!(two.call("POST", &beat(&orphan), "").status, 404);
        let adopted = two.ok("POST", "/sessions", &json!({"app_name": "orphan", "session_id": orphan}));
        assert_eq!(adopted["session_id"], orphan);
        assert_eq!((two.call("POST", &beat(&orphan), "").status, one.call("POST", &beat(&orphan), "").status), (200, 404));
        server.shutdown();
        // Without tokens nobody is asked, and nobody's is taken away.
        let free = TrackerServer::builder().listen("127.0.0.1:0").database(&database).start().unwrap();
        let mut http = Http::connect(free.local_addr());
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": id}));
        http.ok("POST", &beat(&id), &Value::Null);
        free.shutdown();
        let server = builder().database(&database).start().unwrap();
        assert_eq!(connect(&server, OTHER).call("POST", &beat(&id), "").status, 404);
        assert_eq!(connect(&server, APP).call("POST", &beat(&id), "").status, 200);
        server.shutdown();
    }
}

isolated! {
    fn other_machines_are_let_in_with_tokens_only() {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let open = TrackerServer::builder().listen(listen).database(":memory:");
            match open.clone().start() {
                Err(Error::InvalidConfig { option: "listen", reason }) => {
                    assert!(reason.contains("takes access tokens"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
        let server = builder().listen("0.0.0.0:0").start().unwrap();
        let port = server.local_addr().port();
        let ask = |host: &str, token: &str| {
            let mut http = Http::connect(([127, 0, 0, 1], port).into());
            http.raw(format!("GET /sessions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"));
            http.answer().unwrap().status
        };
        assert_eq!(ask("192.0.2.7:8000", VIEWER), 200, "by an address, which nobody can bind to another one");
        assert_eq!(ask("192.0.2.7:8000", "wrong-0123456789abcdef"), 401);
        assert_eq!(ask("rebound.example", VIEWER), 403);
    }
}

isolated! {
    /// DNS rebinding: the browser of somebody on this machine asks under the attacker's own name, which
    /// he has bound to 127.0.0.1 meanwhile. Even the page of the tracker itself is not given away.
    fn a_name_that_was_rebound_gets_nothing() {
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap();
        let id = Http::connect(server.local_addr()).register("a");
        let port = server.local_addr().port();
        for host in [format!("rebound.example:{port}"), "rebound.example".to_owned(), "192.0.2.7".to_owned()] {
            for (method, path) in [("GET", "/"), ("GET", "/sessions"), ("POST", "/apps/a/kill-all")] {
                let mut http = Http::connect(server.local_addr());
                http.raw(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\r\n"));
                assert_eq!(http.answer().unwrap().status, 403, "{host} {path}");
                assert!(http.answer().is_none(), "the connection ends");
            }
        }
        assert_eq!(Http::connect(server.local_addr()).row(&id).unwrap()["kill_requested"], false);
    }
}

isolated! {
    fn a_name_that_is_allowed_may_be_that_of_a_proxy_with_tls() {
        let server = TrackerServer::builder()
            .listen("127.0.0.1:0")
            .database(":memory:")
            .allowed_hosts(["Tracker.example.org"])
            .start()
            .unwrap();
        let own = "Origin: https://tracker.example.org\r\n";
        for (host, fields, status) in [
            ("tracker.example.org", "", 200),
            ("TRACKER.example.org:8443", "", 200),
            ("tracker.example.org", own, 200),
            ("localhost", "", 200),
            ("localhost", own, 403),
            ("tracker.example.org", "Origin: https://evil.example\r\n", 403),
            ("tracker.example.org", "Origin: null\r\n", 403),
            ("evil.example", "", 403),
            ("evil.tracker.example.org", "", 403),
        ] {
            let answer = asked_as(&server, host, fields);
            assert_eq!(answer.status, status, "{host} {fields}");
            assert!(answer.field("access-control-allow-origin").is_none());
        }
        for wrong in ["", "a b", "host:80", "http://host", "[::1", "*", "h/p"] {
            match TrackerServer::builder().database(":memory:").allowed_hosts([wrong]).start() {
                Err(Error::InvalidConfig { option: "allowed_hosts", .. }) => {}
                other => panic!("{wrong}: {other:?}"),
            }
        }
    }
}

isolated! {
    fn what_is_no_token_is_like_none_and_two_are_refused() {
        let server = builder().start().unwrap();
        for (fields, status) in [
            (format!("Authorization: Basic {VIEWER}\r\n"), 401),
            (format!("Authorization: {VIEWER}\r\n"), 401),
            (format!("Authorization: Bearer {VIEWER} {VIEWER}\r\n"), 401),
            (format!("Authorization: Bearer {}\r\n", VIEWER.to_uppercase()), 401),
            (format!("Authorization: Bearer {}\r\n", &VIEWER[..VIEWER.len() - 1]), 401),
            (format!("Authorization: Bearer {VIEWER}{}\r\n", "x".repeat(8_000)), 401),
            (format!("authorization:bearer {VIEWER}\r\n"), 200),
            (format!("Authorization: Bearer {VIEWER}\r\nAuthorization: Bearer {VIEWER}\r\n"), 400),
        ] {
            assert_eq!(asked_as(&server, "localhost", &fields).status, status, "{fields}");
        }
        // In the address it would stand in every log on the way.
        let in_address = format!("/sessions?access_token={VIEWER}");
        assert_eq!(Http::connect(server.local_addr()).call("GET", &in_address, "").status, 401);
    }
}

isolated! {
    fn nobody_without_a_token_has_a_long_body_read() {
        let server = builder().start().unwrap();
        let head = |token: &str| {
            format!("POST /heartbeats HTTP/1.1\r\nHost: localhost\r\n{token}Content-Length: 1000000\r\n\r\n")
        };
        let mut stranger = Http::connect(server.local_addr());
        stranger.raw(head(""));
        assert_eq!(stranger.answer().unwrap().status, 413);
        let mut app = Http::connect(server.local_addr());
        app.raw(head(&format!("Authorization: Bearer {APP}\r\n")));
        app.raw(" ".repeat(1_000_000 - 12) + r#"{"beats":[]}"#);
        assert_eq!(app.answer().unwrap().json(), json!({"answers": []}));
    }
}

isolated! {
    fn without_tokens_a_token_changes_nothing() {
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap();
        let id = connect(&server, APP).register("a");
        connect(&server, OTHER).ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
        Http::connect(server.local_addr()).ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
    }
}

isolated! {
    fn every_answer_has_the_fields_that_keep_browsers_from_guessing() {
        let server = builder().start().unwrap();
        let mut operator = connect(&server, OPERATOR);
        let answers = [
            operator.call("GET", "/", ""),
            operator.call("GET", "/sessions", ""),
            operator.call("GET", "/nothing", ""),
            operator.call("POST", "/sessions", "x"),
            Http::connect(server.local_addr()).call("GET", "/sessions", ""),
            connect(&server, APP).call("GET", "/sessions", ""),
            asked_as(&server, "evil.example", ""),
        ];
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 404, 422, 401, 403, 403]);
        for answer in &answers {
            assert_eq!(answer.field("x-content-type-options"), Some("nosniff"), "{answer:?}");
            assert_eq!(answer.field("cross-origin-resource-policy"), Some("same-origin"), "{answer:?}");
            assert_eq!(answer.field("cache-control"), Some("no-store"), "{answer:?}");
            assert!(answer.field("set-cookie").is_none() && answer.field("server").is_none());
        }
        let policy = answers[0].field("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

isolated! {
    fn a_file_of_tokens_that_others_may_read_is_refused() {
        let directory = ScratchDir::new();
        let file = directory.write("tokens", format!("# ours\noperator ops {OPERATOR}\n"));
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            match Tokens::from_file(&file) {
                Ok(tokens) => assert!(fine && tokens.len() == 1, "{mode:o}"),
                Err(Error::InvalidConfig { option: "tokens", reason }) => {
                    assert!(!fine && reason.contains("may read it") && !reason.contains(OPERATOR), "{reason}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, format!("viewer {VIEWER}\noperator short\n")).unwrap();
        assert!(matches!(Tokens::from_file(&file), Err(Error::Tokens { line: 2, .. })));
        fs::write(&file, b"viewer \xff\xff0123456789abcdef").unwrap();
        assert!(matches!(Tokens::from_file(&file), Err(Error::InvalidConfig { .. })));
        fs::write(&file, format!("  {APP}\n")).unwrap();
        assert_eq!(AccessToken::from_file(&file).unwrap().as_str(), APP);
        assert!(AccessToken::from_file(directory.path().join("missing")).is_err());
    }
}

isolated! {
    /// The ids that the tracker gives are UUIDs of version 4 from the kernel's random numbers: no two of
    /// them are near each other.
    fn ids_cannot_be_guessed_from_others() {
        let server = builder().start().unwrap();
        let mut app = connect(&server, APP);
        let ids: Vec<u128> = (0..64)
            .map(|_| {
                let id = app.register("a");
                assert!(TrackedId::from(id.as_str()).is_uuid() && id.as_bytes()[14] == b'4', "{id}");
                u128::from_str_radix(&id.replace('-', ""), 16).unwrap()
            })
            .collect();
        for (at, one) in ids.iter().enumerate() {
            for other in &ids[..at] {
                // Of 122 random bits about 61 differ; 20 would be chance once in 10^14 pairs.
                assert!((one ^ other).count_ones() > 20, "{one:x} {other:x}");
            }
        }
    }
}

isolated! {
    fn beats_for_a_foreign_session_are_counted_as_those_of_none() {
        let server = builder().start().unwrap();
        let id = connect(&server, APP).register("a");
        let mut other = connect(&server, OTHER);
        let path = format!("/sessions/{id}/heartbeat");
        assert_eq!(other.call("POST", &path, "").status, 404);
        assert_eq!(other.call("POST", &path, r#"{"status":"busy"}"#).status, 404);
        let batch = format!(r#"{{"beats":[{{"session_id":"{id}"}}]}}"#);
        assert_eq!(other.call("POST", "/heartbeats", &batch).json()["answers"][0]["missed"], "unknown");
        let numbers = connect(&server, VIEWER).call("GET", "/metrics", "").body;
        let numbers = String::from_utf8(numbers).unwrap();
        assert!(numbers.contains("remuda_tracker_heartbeats_total{outcome=\"unknown\"} 3\n"), "{numbers}");
    }
}
