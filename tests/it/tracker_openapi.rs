//! `GET /openapi.json` says what a real tracker answers: each operation, each member of an answer.

use std::cell::RefCell;
use std::time::Duration;

use remuda::testing::ManualClock;
use remuda::{Tokens, TrackerServer};
use serde_json::{Value, json};

use crate::description::Description;
use crate::support::{isolated, poll};
use crate::tracker_support::{Http, server};

const ANN: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const BOB: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
const OPERATOR: &str = "an-operator's-token";
const APP: &str = "the-token-of-an-app";
const NULL: Value = Value::Null;

fn tokens() -> Tokens {
    Tokens::parse(&format!("operator ops {OPERATOR}\napp reports {APP}\n")).unwrap()
}

isolated! {
    fn real_answers_are_as_described_and_nothing_is_described_that_is_never_answered() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").clock(&clock);
        let builder = builder.heartbeat_interval(Duration::from_secs(10));
        let server = builder.purge_after(Duration::from_secs(7_200)).tokens(tokens()).start().unwrap();
        let mut http = Http::connect(server.local_addr()).with_token(OPERATOR);
        let described = Description::of(&mut http);
        two_sessions_share_a_pool(&described, &mut http);
        one_is_ordered_and_killed(&described, &mut http);
        all_are_killed(&described, &mut http);
        kills_expire_and_all_fall_silent(&described, &mut http, &clock);
        everybody_is_asked(&described, &mut http);
        assert!(described.unseen().is_empty(), "described, and never answered: {:?}", described.unseen());
        drop(http);
        server.shutdown();
    }
}

fn two_sessions_share_a_pool(described: &Description, http: &mut Http) {
    let ann = json!({
        "app_name": "reports", "user_id": "ann", "session_id": ANN, "host": "node3", "pid": 4711, "version": "1.2",
        "labels": {"team": "north"}, "uptime_seconds": 5, "status": "running", "current_task": "Q3",
        "interval_seconds": 30, "beat_number": 0, "protected": false,
    });
    described.ok(http, "POST", "/sessions", &ann);
    let bob = json!({"app_name": "dashboard", "session_id": BOB, "host": "node3", "pid": 4711});
    described.ok(http, "POST", "/sessions", &bob);
    described.ok(http, "POST", "/sessions", &json!({"app_name": "reports", "protected": true}));
    let pool = json!({"pool": {"sessions": [{"pid": 99, "holder": {"tenant": "ann"}}]}});
    let beat = json!({"beat_number": 1, "attached": pool, "progress": 0.5, "memory_bytes": 1 << 20});
    described.ok(http, "POST", &format!("/sessions/{ANN}/heartbeat?wait=0"), &beat);
    described.ok(http, "POST", &format!("/sessions/{BOB}/heartbeat"), &json!({"attached": pool}));
    described.ok(http, "POST", &format!("/sessions/{BOB}/heartbeat"), &NULL);
    let status = json!({"status": "running", "current_task": "Q3", "status_number": 1});
    described.ok(http, "PUT", &format!("/sessions/{ANN}/status"), &status);
    assert_eq!(described.ok(http, "GET", "/pools?limit=1&name=pool", &NULL)["pools"][0]["user_id"], "ann");
}

fn one_is_ordered_and_killed(described: &Description, http: &mut Http) {
    let path = |word: &str| format!("/sessions/{ANN}/{word}");
    for target in [path("kill?dry_run=1"), "/apps/reports/kill-all?dry_run=true".to_owned()] {
        let preview = described.ok(http, "POST", &target, &NULL);
        assert_eq!(preview["neighbours"][0]["session_id"], BOB, "{target}");
    }
    for verb in ["drain", "resume", "protect", "unprotect", "pause"] {
        described.ok(http, "POST", &path(verb), &NULL);
    }
    assert_eq!(described.call(http, "POST", &path("kill"), &json!({"generation": "old"})).status, 409);
    described.ok(http, "POST", &path("kill"), &json!({"requested_by": "ann", "reason": "a bad release"}));
    let acknowledge = |step: &str| json!({"verbs_number": 0, "kill": {"kill_id": 1, "step": step}});
    for step in ["delivered", "stopping"] {
        described.ok(http, "POST", &path("heartbeat"), &acknowledge(step));
    }
    let late = described.call(http, "POST", &path("heartbeat"), &json!({"beat_number": 1}));
    assert_eq!((late.status, &late.json()["reason"]), (409, &json!("late_beat")));
    let mut beats = json!({"beats": [acknowledge("stopping"), {"session_id": "nobody", "beat_number": 1}]});
    beats["beats"][0]["session_id"] = json!(ANN);
    assert_eq!(described.ok(http, "POST", "/heartbeats?wait=1", &beats)["answers"][1]["missed"], "unknown");
    described.ok(http, "GET", "/sessions", &NULL);
    let page = described.ok(http, "GET", "/sessions?limit=1&sort=app", &NULL);
    assert_eq!(page["total"], 3);
    let next = format!("/sessions?limit=1&sort=app&cursor={}", page["next_cursor"].as_str().unwrap());
    described.ok(http, "GET", &next, &NULL);
    described.ok(http, "POST", &path("heartbeat"), &acknowledge("confirmed"));
    described.ok(http, "GET", "/kills/1", &NULL);
}

fn all_are_killed(described: &Description, http: &mut Http) {
    let why = json!({"requested_by": "ann", "reason": "a bad release", "embargo_seconds": 3_600});
    described.ok(http, "POST", "/apps/reports/kill-all", &why);
    assert_eq!(described.ok(http, "GET", "/tracker", &NULL)["embargoes"][0]["requested_by"], "ann");
    described.ok(http, "DELETE", &format!("/sessions/{ANN}"), &NULL);
    described.ok(http, "GET", "/history?limit=1&app=reports", &NULL);
    described.ok(http, "POST", "/apps/dashboard/kill-all", &NULL);
    described.ok(http, "POST", "/labels/team/north/pause-all", &NULL);
    described.ok(http, "GET", "/audit?limit=10", &NULL);
}

fn kills_expire_and_all_fall_silent(described: &Description, http: &mut Http, clock: &ManualClock) {
    for _ in 0..20 {
        described.ok(http, "POST", "/sessions", &json!({"app_name": "many"}));
    }
    clock.advance(Duration::from_secs(700));
    let http = RefCell::new(http);
    let ask = |target: &str| described.ok(&mut http.borrow_mut(), "GET", target, &NULL);
    poll(|| !ask("/tracker")["mass_silence"].is_null(), || "nobody notices the silence".to_owned());
    poll(
        || ask("/kills?limit=1&app=dashboard")["kills"][0]["state"] == "expired",
        || "none expires".to_owned(),
    );
    ask("/sessions");
    ask("/events?after=oldest&limit=1000");
}

/// Every operation once, for nobody: it finds nobody, or does nothing.
fn everybody_is_asked(described: &Description, http: &mut Http) {
    for file in ["style.css", "icon.svg", "main.js"] {
        assert_eq!(described.call(http, "GET", &format!("/dashboard/{file}"), &NULL).status, 200);
    }
    for operation in described.operations() {
        let target = operation.target();
        let answer = described.call(http, &operation.method, &target, &NULL);
        let unknown = operation.has(404);
        let expected: &[u16] = if unknown { &[404, 422] } else { &[200, 422] };
        assert!(expected.contains(&answer.status), "{} {target}: {}", operation.method, answer.status);
    }
}

isolated! {
    fn what_makes_no_sense_is_refused_as_described() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let described = Description::of(&mut http);
        for operation in described.operations() {
            let target = operation.target();
            for kind in ["integer", "number"] {
                for name in described.parameters(&operation, kind) {
                    let target = format!("{target}?{name}=some");
                    let answer = described.call(&mut http, &operation.method, &target, &NULL);
                    assert_eq!(answer.status, 422, "{target}");
                }
            }
            if operation.takes_a_body() {
                let answer = described.call(&mut http, &operation.method, &target, &json!([]));
                assert_eq!(answer.status, 422, "{target}");
            }
        }
        drop(http);
        server.shutdown();
    }
}

isolated! {
    fn who_may_not_is_refused_as_described() {
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(tokens());
        let server = builder.start().unwrap();
        let mut stranger = Http::connect(server.local_addr());
        let mut app = Http::connect(server.local_addr()).with_token(APP);
        let described = Description::of(&mut stranger);
        for operation in described.operations() {
            let target = operation.target();
            let is_for = |role: &str| operation.roles().is_empty() || operation.roles().contains(&role);
            let refused = described.call(&mut stranger, &operation.method, &target, &NULL).status == 401;
            assert_eq!(refused, !operation.roles().is_empty(), "{} {target}", operation.method);
            let forbidden = described.call(&mut app, &operation.method, &target, &NULL).status == 403;
            assert_eq!(forbidden, !is_for("app"), "{} {target}", operation.method);
        }
        drop((stranger, app));
        server.shutdown();
    }
}
