//! Diagnostics of pools, as apps attach them to their beats.

use std::cell::RefCell;
use std::collections::BTreeSet;

use remuda::SessionClient;
use serde_json::{Value, json};

use crate::support::{isolated, poll, pool};
use crate::tracker_support::{Http, call, server};

fn pools(http: &mut Http, query: &str) -> Vec<Value> {
    http.ok("GET", &format!("/pools{query}"), &Value::Null)["pools"].as_array().unwrap().clone()
}

fn attach(http: &mut Http, id: &str, attached: &Value) {
    http.ok("POST", &format!("/sessions/{id}/heartbeat"), &json!({ "attached": attached }));
}

isolated! {
    fn a_pools_state_can_be_read_at_the_tracker() {
        let server = server();
        let pool = pool().name("scores").min_idle(1).max_sessions(2).start().unwrap();
        let lease = pool.acquire().unwrap();
        let url = format!("http://{}", server.local_addr());
        let client = SessionClient::builder("app").user_id("ann").server_url(url).start().unwrap();
        let seen = pool.clone();
        client.attach("pool", move || serde_json::to_value(seen.info()).unwrap());
        let http = RefCell::new(Http::connect(server.local_addr()));
        poll(|| !pools(&mut http.borrow_mut(), "").is_empty(), || "nothing is attached".to_owned());
        let rows = pools(&mut http.borrow_mut(), "?app=app");
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((&row["app_name"], &row["user_id"], &row["attached_name"]), (&json!("app"), &json!("ann"), &json!("pool")));
        assert_eq!(row["session_id"], client.id().as_str());
        assert_eq!(row["pid"], std::process::id());
        assert!(row["last_heartbeat"].as_str().unwrap().ends_with("+00:00"));
        let snapshot = &row["snapshot"];
        assert_eq!((&snapshot["name"], &snapshot["config"]["max_sessions"]), (&json!("scores"), &json!(2)));
        assert_eq!(snapshot["counts"]["busy"], 1);
        assert_eq!(snapshot["metrics"]["acquisition_attempts"], 1);
        drop(lease);
        client.stop();
        poll(|| pools(&mut http.borrow_mut(), "").is_empty(), || "who is gone attaches nothing".to_owned());
    }
}

isolated! {
    fn what_is_attached_is_listed_in_pages_and_by_filters() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids: Vec<String> = (0..7).map(|number| http.register(if number % 2 == 0 { "even" } else { "odd" })).collect();
        for id in &ids[..6] {
            attach(&mut http, id, &json!({"pool": {"of": id}, "other": 1}));
        }
        attach(&mut http, &ids[1], &json!({"pool": "newer"}));
        let (mut found, mut after) = (Vec::new(), 0);
        loop {
            let page = http.ok("GET", &format!("/pools?limit=2&after={after}"), &Value::Null);
            found.extend_from_slice(page["pools"].as_array().unwrap());
            let Some(next) = page["next_after"].as_u64() else { break };
            assert!(next > after);
            after = next;
        }
        assert_eq!(found, pools(&mut http, ""));
        assert_eq!(found.len(), 11);
        let sessions: BTreeSet<&str> = found.iter().map(|row| row["session_id"].as_str().unwrap()).collect();
        assert_eq!(sessions, ids[..6].iter().map(String::as_str).collect());
        assert_eq!(found[2], pools(&mut http, &format!("?session={}", ids[1]))[0]);
        assert_eq!(found[2]["snapshot"], "newer", "the last beat's take the place of those before");
        assert_eq!(pools(&mut http, "?app=odd&name=pool").len(), 3);
        assert_eq!(pools(&mut http, "?name=other").len(), 5);
        assert!(pools(&mut http, "?name=nothing").is_empty() && pools(&mut http, "?app=nobody").is_empty());
        for query in ["limit=0", "limit=x", "after=x", "after=-1"] {
            assert_eq!(call(server.local_addr(), "GET", &format!("/pools?{query}"), "").status, 422, "{query}");
        }
    }
}

isolated! {
    fn a_page_of_heavy_snapshots_ends_early() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let heavy = json!({"pool": "x".repeat(59_000)});
        for _ in 0..100 {
            let id = http.register("a");
            attach(&mut http, &id, &heavy);
        }
        let (mut found, mut after, mut pages) = (0, 0, 0);
        loop {
            let answer = http.call("GET", &format!("/pools?limit=1000&after={after}"), "");
            assert!(answer.body.len() < 5 * 1024 * 1024, "{}", answer.body.len());
            pages += 1;
            found += answer.json()["pools"].as_array().unwrap().len();
            let Some(next) = answer.json()["next_after"].as_u64() else { break };
            after = next;
        }
        assert_eq!((found, pages), (100, 2));
    }
}

isolated! {
    /// What a reader of usual depth can read when it comes is read when it is shown, deeper inside.
    fn what_is_nested_too_deep_is_refused_and_hides_nobody_from_readers() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("deep");
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let beat = |levels: usize| format!("{{\"attached\":{{\"pool\":{}}}}}", nested(levels));
        let path = format!("/sessions/{id}/heartbeat");
        let refused: Vec<usize> =
            (1..140).filter(|levels| http.call("POST", &path, &beat(*levels)).status != 200).collect();
        assert_eq!(refused, (65..140).collect::<Vec<_>>());
        let answer = http.call("POST", &path, &beat(100));
        assert_eq!(answer.status, 422);
        assert!(answer.json()["detail"].as_str().unwrap().contains("attached: must be nested"), "{answer:?}");
        let batch = format!("{{\"beats\":[{{\"session_id\":\"{id}\",{}]}}", &beat(100)[1..]);
        assert_eq!(http.call("POST", "/heartbeats", &batch).status, 422);
        // The reader of these is of the usual depth.
        assert_eq!(pools(&mut http, "").len(), 1);
        assert_eq!(http.list().len(), 1);
    }
}

isolated! {
    fn what_an_app_attaches_too_deep_stays_at_home_and_the_rest_travels() {
        let server = server();
        let url = format!("http://{}", server.local_addr());
        let client = SessionClient::builder("app").server_url(url).start().unwrap();
        client.attach("deep", || (0..100).fold(Value::Null, |inner, _| json!([inner])));
        client.attach("flat", || json!([1]));
        let http = RefCell::new(Http::connect(server.local_addr()));
        poll(|| !pools(&mut http.borrow_mut(), "").is_empty(), || "nothing is attached".to_owned());
        let rows = pools(&mut http.borrow_mut(), "");
        assert_eq!((rows.len(), &rows[0]["attached_name"]), (1, &json!("flat")));
        assert!(client.is_connected());
    }
}
