//! Kills and their receipts: over plain HTTP, and with a client that acknowledges.

use std::cell::RefCell;
use std::sync::mpsc;
use std::time::Duration;

use remuda::testing::ManualClock;
use remuda::{SessionClient, TrackerServer};
use serde_json::{Value, json};

use crate::scripted_server::{connected, eventually, takes_effect};
use crate::support::{GENEROUS, ScratchDir, isolated, poll};
use crate::tracker_support::{Http, server};

fn kill(http: &mut Http, id: &str, body: &Value) -> Value {
    let answer = http.ok("POST", &format!("/sessions/{id}/kill"), body);
    assert_eq!(answer["status"], "kill_requested");
    answer["receipt"].clone()
}

fn beat(http: &mut Http, id: &str, body: &Value) -> Value {
    http.ok("POST", &format!("/sessions/{id}/heartbeat"), body)
}

fn receipt(http: &mut Http, kill_id: &Value) -> Value {
    http.ok("GET", &format!("/kills/{kill_id}"), &Value::Null)
}

isolated! {
    fn a_kill_has_a_receipt_that_goes_on_with_what_the_client_says() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let opened = kill(&mut http, &id, &json!({"requested_by": "ann", "reason": "it eats the disk"}));
        assert_eq!((&opened["state"], &opened["scope"]), (&json!("requested"), &json!("session")));
        assert_eq!((&opened["session_id"], &opened["app_name"]), (&json!(id), &json!("a")));
        assert_eq!((&opened["requested_by"], &opened["told"]), (&json!("ann"), &json!(0)));
        let kill_id = opened["kill_id"].clone();

        let heard = beat(&mut http, &id, &Value::Null);
        assert_eq!((&heard["kill_requested"], &heard["kill_id"]), (&json!(true), &kill_id));
        assert_eq!(heard["kill_reason"], "it eats the disk");
        let told = receipt(&mut http, &kill_id);
        assert_eq!((&told["state"], &told["told"]), (&json!("requested"), &json!(1)), "nobody said he heard");

        for (step, state) in [("delivered", "delivered"), ("stopping", "stopping"), ("delivered", "stopping")] {
            let again = beat(&mut http, &id, &json!({"kill": {"kill_id": kill_id, "step": step}}));
            assert_eq!(again["kill_id"], kill_id, "it is told until it is over");
            assert_eq!(receipt(&mut http, &kill_id)["state"], state);
        }
        assert_eq!(http.row(&id).unwrap()["kill"]["state"], "stopping");
        let last = beat(&mut http, &id, &json!({"kill": {"kill_id": kill_id, "step": "confirmed"}}));
        assert_eq!(last, json!({"kill_requested": true}), "there is nothing left to acknowledge");
        let closed = receipt(&mut http, &kill_id);
        assert_eq!(closed["state"], "confirmed");
        let seconds = |step: &str| closed[format!("{step}_seconds")].as_f64().unwrap();
        assert!(0.0 < seconds("delivered") && seconds("delivered") <= seconds("stopping"));
        assert!(seconds("stopping") <= seconds("confirmed"));
        assert!(closed["confirmed_at"].as_str().unwrap() >= closed["requested_at"].as_str().unwrap());
        assert_eq!((&closed["expired_at"], &closed["reason"]), (&Value::Null, &json!("it eats the disk")));
        http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        assert_eq!(receipt(&mut http, &kill_id), closed, "its end changes nothing any more");
    }
}

isolated! {
    fn asking_again_gives_the_same_receipt_and_a_foreign_word_changes_none() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let (one, two) = (http.register("a"), http.register("a"));
        let first = kill(&mut http, &one, &json!({"reason": "first"}));
        assert_eq!(kill(&mut http, &one, &json!({"reason": "second"})), first);
        let other = kill(&mut http, &two, &Value::Null);
        assert_ne!(other["kill_id"], first["kill_id"]);
        beat(&mut http, &two, &json!({"kill": {"kill_id": first["kill_id"], "step": "confirmed"}}));
        beat(&mut http, &two, &json!({"kill": {"kill_id": 4711, "step": "confirmed"}}));
        for opened in [first, other] {
            assert_eq!(receipt(&mut http, &opened["kill_id"])["state"], "requested");
        }
        for body in [
            json!({"kill": {"kill_id": -1, "step": "delivered"}}),
            json!({"kill": {"kill_id": 1, "step": "expired"}}),
            json!({"kill": 1}),
        ] {
            let answer = http.call("POST", &format!("/sessions/{one}/heartbeat"), &body.to_string());
            assert_eq!(answer.status, 422, "{body}");
        }
        assert_eq!(http.call("GET", "/kills/4711", "").status, 404);
        assert_eq!(http.call("GET", "/kills/first", "").status, 404);
        assert_eq!(http.call("POST", "/kills/1", "").status, 405);
    }
}

isolated! {
    /// The ancestors' clients acknowledge nothing: they leave.
    fn who_leaves_has_confirmed_and_the_history_tells_killed_from_left() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let (told, untold, free) = (http.register("told"), http.register("untold"), http.register("free"));
        let kills = [kill(&mut http, &told, &Value::Null), kill(&mut http, &untold, &Value::Null)];
        beat(&mut http, &told, &Value::Null);
        for id in [&told, &untold, &free] {
            http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        }
        for opened in &kills {
            let closed = receipt(&mut http, &opened["kill_id"]);
            assert_eq!((&closed["state"], &closed["delivered_at"]), (&json!("confirmed"), &Value::Null));
        }
        let page = http.ok("GET", "/history", &Value::Null);
        let entries = page["history"].as_array().unwrap();
        let seen: Vec<_> = entries.iter().map(|row| (&row["app_name"], &row["reason"], &row["outcome"])).collect();
        let (killed, left, ended) = (json!("killed"), json!("left"), json!("ended"));
        let names = [json!("free"), json!("untold"), json!("told")];
        assert_eq!(seen, [(&names[0], &left, &ended), (&names[1], &left, &ended), (&names[2], &killed, &ended)]);
        assert_eq!(entries[0]["kill"], Value::Null);
        assert_eq!(entries[2]["kill"]["kill_id"], kills[0]["kill_id"]);
        assert_eq!(entries[2]["kill"]["told"], 1);
    }
}

isolated! {
    fn a_parked_beat_is_answered_with_the_kill_and_its_number() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let mut app = Http::connect(server.local_addr());
        app.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
        let opened = kill(&mut http, &id, &json!({"reason": "now"}));
        let heard = app.answer().unwrap().json();
        assert_eq!(heard, json!({"kill_requested": true, "kill_id": opened["kill_id"], "kill_reason": "now"}));
    }
}

isolated! {
    fn a_client_acknowledges_delivery_then_its_callbacks_then_their_end() {
        let server = server();
        let client =
            connected(SessionClient::builder("a").server_url(format!("http://{}", server.local_addr())));
        let (begin, started) = mpsc::channel();
        let (let_go, gate) = mpsc::channel::<()>();
        client.on_kill(move || {
            begin.send(()).unwrap();
            gate.recv_timeout(GENEROUS).unwrap();
        });
        let http = RefCell::new(Http::connect(server.local_addr()));
        let opened = kill(&mut http.borrow_mut(), client.id().as_str(), &json!({"requested_by": "ann"}));
        let state = || receipt(&mut http.borrow_mut(), &opened["kill_id"])["state"].clone();
        started.recv_timeout(GENEROUS).unwrap();
        eventually("the callbacks are known to run", || state() == "stopping");
        let_go.send(()).unwrap();
        eventually("their end is known, while the session goes on", || state() == "confirmed");
        assert!(client.is_connected());
        assert_eq!(server.store().get_all_sessions().unwrap().len(), 1);
        let closed = receipt(&mut http.borrow_mut(), &opened["kill_id"]);
        assert!(closed["delivered_at"].is_string() && closed["told"].as_u64().unwrap() >= 1, "{closed}");
        drop(client);
    }
}

isolated! {
    fn a_client_without_callbacks_confirms_when_it_leaves_and_not_before() {
        let server = server();
        let client =
            connected(SessionClient::builder("a").server_url(format!("http://{}", server.local_addr())));
        let http = RefCell::new(Http::connect(server.local_addr()));
        let opened = kill(&mut http.borrow_mut(), client.id().as_str(), &Value::Null);
        let state = || receipt(&mut http.borrow_mut(), &opened["kill_id"])["state"].clone();
        eventually("its token is cancelled", || state() == "stopping");
        assert!(client.cancel_token().is_cancelled());
        takes_effect(|| drop(client), || state() == "confirmed");
    }
}

isolated! {
    fn a_kill_by_app_or_label_gives_a_receipt_for_each_and_spares_the_protected() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let register = |http: &mut Http, body: Value| {
            http.ok("POST", "/sessions", &body)["session_id"].as_str().unwrap().to_owned()
        };
        let tricky = json!({"team's \"a\"/b": "x%"});
        let one = register(&mut http, json!({"app_name": "a", "labels": tricky}));
        let two = register(&mut http, json!({"app_name": "b", "labels": tricky, "protected": true}));
        let three = register(&mut http, json!({"app_name": "b", "labels": {"team": "x%"}}));
        let four = http.register("b");

        let by_label = http.ok("POST", "/labels/team's%20%22a%22%2Fb/x%25/kill-all", &Value::Null);
        assert_eq!((&by_label["killed_count"], &by_label["session_ids"]), (&json!(1), &json!([one])));
        assert_eq!(by_label["protected"], json!([two]));
        assert_eq!(by_label["receipts"][0]["scope"], "label");
        let by_app = http.ok("POST", "/apps/b/kill-all", &json!({"force": true, "reason": "r"}));
        assert_eq!((&by_app["session_ids"], &by_app["protected"]), (&json!([three, four]), &json!([two])));
        let nobody = http.ok("POST", "/labels/team/nobody/kill-all", &Value::Null);
        assert_eq!(nobody, json!({"killed_count": 0}));

        let target = format!("/sessions/{two}/kill");
        let refused = http.call("POST", &target, "");
        assert_eq!((refused.status, &refused.json()["reason"]), (409, &json!("protected")));
        assert_eq!(beat(&mut http, &two, &Value::Null), json!({"kill_requested": false}));
        let forced = http.ok("POST", &target, &json!({"force": true}));
        assert_eq!(forced["receipt"]["state"], "requested");
        assert_eq!(beat(&mut http, &two, &Value::Null)["kill_requested"], true);
    }
}

isolated! {
    fn a_preview_hits_nobody_and_its_generation_holds_for_these_sessions_only() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let me = json!({"app_name": "a", "host": "h", "pid": 7, "status": "running", "current_task": "t"});
        let id = http.ok("POST", "/sessions", &me)["session_id"].as_str().unwrap().to_owned();
        let neighbour = http.ok("POST", "/sessions", &json!({"app_name": "b", "host": "h", "pid": 7}));
        let pool = json!({"attached": {"pool": {"sessions": [{"pid": 99, "state": "busy"}]}}});
        beat(&mut http, &id, &pool);
        beat(&mut http, neighbour["session_id"].as_str().unwrap(), &pool);

        let preview = http.ok("POST", "/apps/a/kill-all", &json!({"dry_run": true}));
        assert_eq!(preview, http.ok("POST", "/apps/a/kill-all?dry_run=1", &Value::Null));
        assert_eq!(preview["sessions"].as_array().unwrap().len(), 1);
        assert_eq!(preview["sessions"][0]["current_task"], "t");
        assert_eq!(preview["sessions"][0]["leases"][0]["pid"], 99);
        assert_eq!(preview["neighbours"][0]["session_id"], neighbour["session_id"]);
        assert_eq!(http.row(&id).unwrap()["kill_requested"], false);

        let order = json!({"generation": preview["generation"]});
        let late = http.register("a");
        let refused = http.call("POST", "/apps/a/kill-all", &order.to_string());
        assert_eq!((refused.status, &refused.json()["reason"]), (409, &json!("stale_generation")));
        assert_eq!(beat(&mut http, &id, &Value::Null), json!({"kill_requested": false}));
        http.ok("DELETE", &format!("/sessions/{late}"), &Value::Null);
        assert_eq!(http.ok("POST", "/apps/a/kill-all", &order)["killed_count"], 1);

        let gone = "/sessions/0f8fad5b-d9cb-469f-a165-70867728950e/kill?dry_run=1";
        assert_eq!(http.call("POST", gone, "").status, 404);
        assert_eq!(http.call("POST", "/apps/a/kill-all?dry_run=maybe", "").status, 422);
    }
}

isolated! {
    fn during_an_embargo_who_is_new_to_the_app_is_killed_at_once() {
        let clock = ManualClock::new();
        let directory = ScratchDir::new();
        let database = directory.path().join("tracker.db");
        let start = || {
            let builder = TrackerServer::builder().listen("127.0.0.1:0").database(&database).clock(&clock);
            builder.start().unwrap()
        };
        let first = start();
        let mut http = Http::connect(first.local_addr());
        let order = json!({"embargo_seconds": 600, "requested_by": "ann", "reason": "a bad release"});
        assert_eq!(http.ok("POST", "/apps/a/kill-all", &order), json!({"killed_count": 0}));
        let (victim, other) = (http.register("a"), http.register("b"));
        let heard = beat(&mut http, &victim, &Value::Null);
        assert_eq!((&heard["kill_requested"], &heard["kill_reason"]), (&json!(true), &json!("a bad release")));
        let opened = receipt(&mut http, &heard["kill_id"]);
        assert_eq!((&opened["scope"], &opened["requested_by"]), (&json!("embargo"), &json!("ann")));
        assert_eq!(beat(&mut http, &other, &Value::Null)["kill_requested"], false);
        drop(http);
        first.shutdown();

        let second = start();
        let mut http = Http::connect(second.local_addr());
        assert_eq!(http.ok("GET", "/tracker", &Value::Null)["embargoes"][0]["app_name"], "a");
        let victim = http.register("a");
        assert_eq!(beat(&mut http, &victim, &Value::Null)["kill_requested"], true, "it outlives a restart");
        clock.advance(Duration::from_secs(600));
        let late = http.register("a");
        assert_eq!(beat(&mut http, &late, &Value::Null)["kill_requested"], false, "it ends by itself");
        assert_eq!(http.ok("GET", "/tracker", &Value::Null)["embargoes"], json!([]));
        for (target, seconds) in [("/apps/a/kill-all", 3_601.0), ("/apps/a/kill-all", -1.0), ("/labels/k/v/kill-all", 1.0)] {
            let body = json!({"embargo_seconds": seconds}).to_string();
            assert_eq!(http.call("POST", target, &body).status, 422, "{target} {seconds}");
        }
    }
}

isolated! {
    fn a_kill_that_is_not_obeyed_expires_and_is_told_on() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").clock(&clock);
        let server = builder.purge_after(Duration::from_secs(3_600)).start().unwrap();
        let http = RefCell::new(Http::connect(server.local_addr()));
        let id = http.borrow_mut().register("a");
        let opened = kill(&mut http.borrow_mut(), &id, &Value::Null);
        let state = || receipt(&mut http.borrow_mut(), &opened["kill_id"])["state"].clone();
        clock.advance(Duration::from_secs(599));
        assert_eq!(state(), "requested");
        clock.advance(Duration::from_secs(1_200));
        poll(|| state() == "expired", || "it never expires".to_owned());
        assert_eq!(beat(&mut http.borrow_mut(), &id, &Value::Null), json!({"kill_requested": true}));
        let again = kill(&mut http.borrow_mut(), &id, &Value::Null);
        assert_ne!(again["kill_id"], opened["kill_id"], "a new request has a new receipt");
        assert_eq!(beat(&mut http.borrow_mut(), &id, &Value::Null)["kill_id"], again["kill_id"]);
    }
}

isolated! {
    fn who_was_lost_with_a_kill_has_a_new_receipt_when_it_comes_back() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let opened = kill(&mut http, &id, &json!({"requested_by": "ann", "reason": "r"}));
        http.ok("DELETE", "/sessions/stale?older_than_minutes=0", &Value::Null);
        assert_eq!(receipt(&mut http, &opened["kill_id"])["state"], "expired");
        http.ok("POST", "/sessions", &json!({"app_name": "a", "session_id": id}));
        let heard = beat(&mut http, &id, &Value::Null);
        assert_ne!(heard["kill_id"], opened["kill_id"]);
        let new = receipt(&mut http, &heard["kill_id"]);
        assert_eq!((&new["scope"], &new["requested_by"]), (&json!("returned"), &json!("ann")));
    }
}

isolated! {
    fn receipts_outlive_a_restart_and_go_on_there() {
        let directory = ScratchDir::new();
        let database = directory.path().join("tracker.db");
        let start = || TrackerServer::builder().listen("127.0.0.1:0").database(&database).start().unwrap();
        let first = start();
        let mut http = Http::connect(first.local_addr());
        let id = http.register("a");
        let opened = kill(&mut http, &id, &json!({"reason": "r"}));
        beat(&mut http, &id, &json!({"kill": {"kill_id": opened["kill_id"], "step": "delivered"}}));
        let before = receipt(&mut http, &opened["kill_id"]);
        drop(http);
        first.shutdown();
        let second = start();
        let mut http = Http::connect(second.local_addr());
        assert_eq!(receipt(&mut http, &opened["kill_id"]), before);
        assert_eq!(beat(&mut http, &id, &Value::Null)["kill_id"], opened["kill_id"]);
        http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        let after = receipt(&mut http, &opened["kill_id"]);
        assert_eq!((&after["state"], &after["delivered_at"]), (&json!("confirmed"), &before["delivered_at"]));
    }
}

isolated! {
    fn receipts_are_listed_in_pages_and_by_app_session_and_openness() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids: Vec<_> = (0..5).map(|number| http.register(if number < 3 { "a" } else { "b" })).collect();
        for id in &ids {
            kill(&mut http, id, &Value::Null);
        }
        http.ok("DELETE", &format!("/sessions/{}", ids[4]), &Value::Null);
        let mut list = |query: &str| {
            let page = http.ok("GET", &format!("/kills{query}"), &Value::Null);
            let of = page["kills"].as_array().unwrap().iter();
            let of: Vec<_> = of.map(|kill| kill["session_id"].as_str().unwrap().to_owned()).collect();
            (of, page["next_before"].clone())
        };
        let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
        assert_eq!(list(""), (newest_first.clone(), Value::Null));
        let (first, next) = list("?limit=2");
        assert_eq!(first, newest_first[..2]);
        let (second, next) = list(&format!("?limit=2&before={next}"));
        assert_eq!(second, newest_first[2..4]);
        assert_eq!(list(&format!("?limit=2&before={next}")), (newest_first[4..].to_vec(), Value::Null));
        assert_eq!(list("?app=b").0, newest_first[..2]);
        assert_eq!(list("?app=b&open=1").0, newest_first[1..2]);
        assert_eq!(list(&format!("?session={}", ids[0])).0, ids[..1]);
        for query in ["?limit=0", "?limit=many", "?before=x", "?open=perhaps"] {
            assert_eq!(http.call("GET", &format!("/kills{query}"), "").status, 422, "{query}");
        }
    }
}

isolated! {
    fn the_tracker_tells_how_long_each_step_takes() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let kills = |http: &mut Http| http.ok("GET", "/tracker", &Value::Null)["kills"].clone();
        assert_eq!((&kills(&mut http)["requested"], &kills(&mut http)["delivered"]["p50_seconds"]), (&json!(0), &Value::Null));
        for step in ["delivered", "confirmed"] {
            let id = http.register("a");
            let opened = kill(&mut http, &id, &Value::Null);
            beat(&mut http, &id, &json!({"kill": {"kill_id": opened["kill_id"], "step": step}}));
        }
        let stats = kills(&mut http);
        assert_eq!((&stats["requested"], &stats["open"], &stats["expired"]), (&json!(2), &json!(1), &json!(0)));
        assert_eq!((&stats["delivered"]["count"], &stats["confirmed"]["count"]), (&json!(2), &json!(1)));
        let p50 = stats["delivered"]["p50_seconds"].as_f64().unwrap();
        assert!(p50 > 0.0 && p50 <= stats["delivered"]["p99_seconds"].as_f64().unwrap());
    }
}
