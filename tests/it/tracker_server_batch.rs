//! `POST /heartbeats`: the beats of many sessions in one request.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::support::{GENEROUS, isolated, poll};
use crate::tracker_support::{Http, server};

/// A batch of bare beats.
fn batch(ids: &[String]) -> Value {
    json!({"beats": ids.iter().map(|id| json!({"session_id": id})).collect::<Vec<_>>()})
}

fn register(http: &mut Http, count: usize) -> Vec<String> {
    (0..count).map(|_| http.register("a")).collect()
}

/// Sends a batch that waits, and returns when the server has it.
fn park(http: &mut Http, watcher: &mut Http, batch: &Value) {
    let mut batch = batch.clone();
    let id = batch["beats"][0]["session_id"].as_str().unwrap().to_owned();
    let before = watcher.row(&id).unwrap()["attached"]["mark"].as_u64().unwrap_or(0);
    let mark = json!({"mark": before + 1});
    batch["beats"][0]["attached"] = mark.clone();
    http.send("POST", "/heartbeats?wait=60", &batch.to_string());
    let watcher = RefCell::new(watcher);
    poll(
        || watcher.borrow_mut().row(&id).is_some_and(|row| row["attached"] == mark),
        || "the batch never arrives".to_owned(),
    );
}

isolated! {
    fn a_batch_counts_as_a_beat_of_each_and_answers_for_whom_there_is_news() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut ids = register(&mut http, 5);
        assert_eq!(http.ok("POST", "/heartbeats", &batch(&ids)), json!({"answers": []}));
        http.ok("POST", &format!("/sessions/{}/kill", ids[1]), &json!({"reason": "why not"}));
        http.ok("POST", &format!("/sessions/{}/pause", ids[2]), &Value::Null);
        http.ok("DELETE", &format!("/sessions/{}", ids[3]), &Value::Null);
        ids.push("nobody".to_owned());
        let mut beats = batch(&ids);
        for at in 0..6 {
            beats["beats"][at]["verbs_number"] = json!(0);
            beats["beats"][at]["beat_number"] = json!(7);
            beats["beats"][at]["progress"] = json!(0.5);
        }
        let answers = http.ok("POST", "/heartbeats", &beats)["answers"].as_array().unwrap().clone();
        let of = |id: &str| answers.iter().find(|answer| answer["session_id"] == id);
        assert_eq!(answers.len(), 4, "{answers:?}");
        let killed = of(&ids[1]).unwrap();
        assert_eq!((&killed["kill_requested"], &killed["kill_reason"]), (&json!(true), &json!("why not")));
        assert!(killed["kill_id"].is_u64());
        assert_eq!(of(&ids[2]).unwrap()["verbs"], json!(["pause"]));
        assert_eq!(of(&ids[3]).unwrap()["missed"], "ended");
        assert_eq!(of("nobody").unwrap()["missed"], "unknown");
        assert!([0, 1, 2, 4].iter().all(|at| http.row(&ids[*at]).unwrap()["progress"] == 0.5));
        // The same numbers again are late, and nothing else is.
        let late = http.ok("POST", "/heartbeats", &beats)["answers"].as_array().unwrap().clone();
        assert_eq!(late.iter().filter(|answer| answer["missed"] == "late_beat").count(), 4, "{late:?}");
    }
}

isolated! {
    fn a_kill_answers_the_parked_batch_of_its_session_only() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let groups: Vec<Vec<String>> = (0..3).map(|_| register(&mut operator, 100)).collect();
        let mut parked: Vec<Http> = groups
            .iter()
            .map(|ids| {
                let mut http = Http::connect(server.local_addr());
                park(&mut http, &mut operator, &batch(ids));
                http
            })
            .collect();
        operator.ok("POST", &format!("/sessions/{}/kill", groups[1][42]), &Value::Null);
        let answers = parked[1].answer().unwrap().json();
        assert_eq!(answers["answers"].as_array().unwrap().len(), 1, "{answers}");
        assert_eq!(answers["answers"][0]["session_id"], *groups[1][42]);
        assert_eq!(answers["answers"][0]["kill_requested"], true);
        assert!(!parked[0].has_input() && !parked[2].has_input(), "a neighbour was answered");
        // A second kill, between two batches, is told by the next.
        operator.ok("POST", &format!("/sessions/{}/kill", groups[1][7]), &Value::Null);
        let next = parked[1].ok("POST", "/heartbeats?wait=60", &batch(&groups[1]));
        assert_eq!(next["answers"].as_array().unwrap().len(), 2, "{next}");
    }
}

/// What a batch acknowledges is written beside the wait.
fn await_state(operator: &mut Http, kill_id: &Value, state: &str) {
    let path = format!("/kills/{kill_id}");
    let began = std::time::Instant::now();
    while operator.ok("GET", &path, &Value::Null)["state"] != state {
        assert!(began.elapsed() < GENEROUS, "{path} never got {state}");
    }
}

isolated! {
    fn a_kill_that_its_client_has_heard_of_keeps_no_batch_from_waiting() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let ids = register(&mut operator, 3);
        let mut http = Http::connect(server.local_addr());
        operator.ok("POST", &format!("/sessions/{}/kill", ids[0]), &Value::Null);
        let told = http.ok("POST", "/heartbeats?wait=60", &batch(&ids));
        let kill_id = &told["answers"][0]["kill_id"];
        let mut beats = batch(&ids);
        beats["beats"][0]["heard_kill"] = json!(true);
        beats["beats"][0]["kill"] = json!({"kill_id": kill_id, "step": "stopping"});
        park(&mut http, &mut operator, &beats);
        assert!(!http.has_input());
        await_state(&mut operator, kill_id, "stopping");
        // Confirmed: the session is wanted to stop still, but nobody waits for more.
        beats["beats"][0]["kill"]["step"] = json!("confirmed");
        let mut renewed = Http::connect(server.local_addr());
        park(&mut renewed, &mut operator, &beats);
        assert_eq!(http.answer().unwrap().json(), json!({"answers": []}), "a newer batch ends the older one");
        await_state(&mut operator, kill_id, "confirmed");
        operator.ok("POST", &format!("/sessions/{}/kill", ids[2]), &Value::Null);
        assert_eq!(renewed.answer().unwrap().json()["answers"][0]["session_id"], *ids[2]);
    }
}

isolated! {
    fn whatever_happens_to_one_of_its_sessions_ends_the_wait() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let mut http = Http::connect(server.local_addr());
        let ids = register(&mut operator, 3);
        let mut beats = batch(&ids);
        for at in 0..3 {
            beats["beats"][at]["verbs_number"] = json!(0);
        }
        park(&mut http, &mut operator, &beats);
        operator.ok("POST", &format!("/sessions/{}/drain", ids[1]), &Value::Null);
        assert_eq!(http.answer().unwrap().json()["answers"][0]["verbs"], json!(["drain"]));
        beats["beats"][1]["verbs_number"] = json!(1);
        park(&mut http, &mut operator, &beats);
        // A beat that comes alone.
        operator.ok("POST", &format!("/sessions/{}/heartbeat", ids[1]), &json!({}));
        assert!(!http.has_input(), "a plain beat that waits for nothing takes nobody's place");
        operator.send("POST", &format!("/sessions/{}/heartbeat?wait=60", ids[1]), "");
        assert_eq!(http.answer().unwrap().json(), json!({"answers": []}));
        let mut operator = Http::connect(server.local_addr());
        park(&mut http, &mut operator, &beats);
        operator.ok("DELETE", &format!("/sessions/{}", ids[2]), &Value::Null);
        let gone = http.answer().unwrap().json();
        assert_eq!((&gone["answers"][0]["session_id"], &gone["answers"][0]["kill_requested"]), (&json!(ids[2]), &json!(false)));
        assert!(gone["answers"][0]["missed"].is_string(), "{gone}");
        park(&mut http, &mut operator, &batch(&ids[..2]));
        server.shutdown();
        assert_eq!(http.answer().unwrap().json(), json!({"answers": []}));
    }
}

isolated! {
    fn what_makes_no_sense_is_refused_whole_and_says_where() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids = register(&mut http, 2);
        let refused = |http: &mut Http, body: &Value, part: &str| {
            let answer = http.call("POST", "/heartbeats", &body.to_string());
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert_eq!(answer.status, 422, "{detail}");
            assert!(detail.contains(part), "{detail}");
        };
        refused(&mut http, &json!({}), "beats");
        refused(&mut http, &json!([]), "object");
        refused(&mut http, &json!({"beats": [{"progress": 1}]}), "session_id");
        refused(&mut http, &batch(&[ids[0].clone(), ids[0].clone()]), "twice");
        let mut beats = batch(&ids);
        beats["beats"][1]["progress"] = json!(2);
        refused(&mut http, &beats, "beats: 1: progress");
        beats["beats"][1]["progress"] = json!(1);
        beats["beats"][1]["status"] = json!("");
        refused(&mut http, &beats, "beats: 1: status");
        beats["beats"][1]["status"] = json!("busy");
        beats["beats"][0]["attached"] = json!({"x": "x".repeat(70_000)});
        refused(&mut http, &beats, "beats: 0: attached");
        assert!(http.row(&ids[1]).unwrap()["progress"].is_null(), "nothing of it counted");
        beats["beats"][0]["attached"] = json!({});
        beats["beats"][1]["current_task"] = json!("t");
        assert_eq!(http.ok("POST", "/heartbeats", &beats), json!({"answers": []}));
        assert_eq!(http.row(&ids[1]).unwrap()["current_task"], "t");
        assert_eq!(http.ok("POST", "/heartbeats", &json!({"beats": []})), json!({"answers": []}));
        let answer = http.call("GET", "/heartbeats", "");
        assert_eq!((answer.status, answer.field("allow")), (405, Some("POST")));
    }
}

isolated! {
    fn a_batch_may_have_a_mebibyte_and_no_more() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids = register(&mut http, 20);
        let mut beats = batch(&ids);
        for at in 0..20 {
            beats["beats"][at]["attached"] = json!({"x": "x".repeat(50_000)});
        }
        let text = beats.to_string();
        assert!(text.len() > 1_000_000 && text.len() < 1024 * 1024, "{}", text.len());
        assert_eq!(http.call("POST", "/heartbeats", &text).status, 200);
        assert_eq!(http.row(&ids[19]).unwrap()["attached"]["x"].as_str().unwrap().len(), 50_000);
        let answer = http.call("POST", "/heartbeats", &(text + &" ".repeat(100_000)));
        assert_eq!(answer.status, 413);
    }
}

isolated! {
    fn a_kill_or_order_that_was_read_before_ends_no_batch() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let ids = register(&mut operator, 3);
        let mut http = Http::connect(server.local_addr());
        operator.ok("POST", &format!("/sessions/{}/kill", ids[0]), &Value::Null);
        operator.ok("POST", &format!("/sessions/{}/pause", ids[1]), &Value::Null);
        let told = http.ok("POST", "/heartbeats?wait=60", &batch(&ids));
        let mut beats = batch(&ids);
        beats["beats"][0]["heard_kill"] = json!(true);
        beats["beats"][0]["kill"] = json!({"kill_id": told["answers"][0]["kill_id"], "step": "stopping"});
        beats["beats"][1]["verbs_number"] = json!(1);
        park(&mut http, &mut operator, &beats);
        operator.ok("POST", &format!("/sessions/{}/kill", ids[0]), &Value::Null);
        operator.ok("POST", &format!("/sessions/{}/pause", ids[1]), &Value::Null);
        operator.ok("POST", &format!("/sessions/{}/kill", ids[2]), &Value::Null);
        let answers = http.answer().unwrap().json();
        assert_eq!(answers["answers"].as_array().unwrap().len(), 1, "{answers}");
        assert_eq!(answers["answers"][0]["session_id"], *ids[2]);
    }
}

isolated! {
    /// Its number of what it has read is about a row that is gone.
    fn who_has_read_orders_of_an_older_registration_hears_that_there_are_none_and_of_the_next() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids = register(&mut http, 1);
        let path = |word: &str| format!("/sessions/{}{word}", ids[0]);
        for word in ["/pause", "/resume", "/drain"] {
            http.ok("POST", &path(word), &Value::Null);
        }
        let mut beats = batch(&ids);
        beats["beats"][0]["verbs_number"] = json!(0);
        assert_eq!(http.ok("POST", "/heartbeats", &beats)["answers"][0]["verbs_number"], 3);
        beats["beats"][0]["verbs_number"] = json!(3);
        assert_eq!(http.ok("POST", "/heartbeats", &beats), json!({"answers": []}));
        http.ok("DELETE", &path(""), &Value::Null);
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": ids[0]}));
        let none = json!({"answers": [{"session_id": ids[0], "kill_requested": false, "verbs_number": 0}]});
        assert_eq!(http.ok("POST", "/heartbeats", &beats), none);
        http.ok("POST", &path("/pause"), &Value::Null);
        assert_eq!(http.ok("POST", "/heartbeats", &beats)["answers"][0]["verbs"], json!(["pause"]));
        beats["beats"][0]["verbs_number"] = json!(1);
        assert_eq!(http.ok("POST", "/heartbeats", &beats), json!({"answers": []}));
    }
}
