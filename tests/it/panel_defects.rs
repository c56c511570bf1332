//! The defects of the ancestor, the session tracker of a dashboard framework: one test for each,
//! by its number in the list that this project began with.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use remuda::{Request, Runtime, SessionClient, SessionPool, SharedPool, TrackerServer};
use serde_json::{Value, json};

use crate::scripted_server::{connected, eventually, nobody};
use crate::support::{GENEROUS, isolated};
use crate::tracker_support::{Http, server};

fn client(server: &TrackerServer) -> SessionClient {
    let url = format!("http://{}", server.local_addr());
    connected(SessionClient::builder("panel").server_url(url))
}

isolated! {
    fn b1_a_kill_does_not_wait_for_the_next_beat() {
        let server = server();
        let url = format!("http://{}", server.local_addr());
        let hourly = SessionClient::builder("panel").server_url(url).heartbeat_interval(Duration::from_secs(3_600));
        let client = connected(hourly);
        assert!(server.kill(&client.id()).unwrap());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
    }
}

isolated! {
    fn b2_a_kill_is_acknowledged_and_killed_is_told_from_left() {
        let server = server();
        let (victim, other) = (client(&server), client(&server));
        let (victim_id, other_id) = (victim.id(), other.id());
        victim.on_kill(|| ());
        let mut operator = Http::connect(server.local_addr());
        let kill = operator.ok("POST", &format!("/sessions/{victim_id}/kill"), &json!({"requested_by": "ann"}));
        let receipt = format!("/kills/{}", kill["receipt"]["kill_id"]);
        let looking = std::cell::RefCell::new(operator);
        let state = || looking.borrow_mut().ok("GET", &receipt, &Value::Null)["state"].clone();
        eventually("the client confirms", || state() == "confirmed");
        drop((victim, other));
        for (id, reason, by) in [(victim_id, "killed", json!("ann")), (other_id, "left", Value::Null)] {
            let target = format!("/history?session={id}");
            let last = || looking.borrow_mut().ok("GET", &target, &Value::Null)["history"][0].clone();
            eventually("it is in the history", || !last().is_null());
            let entry = last();
            assert_eq!((&entry["reason"], &entry["kill"]["requested_by"]), (&json!(reason), &by));
        }
    }
}

isolated! {
    fn b3_the_server_removes_the_silent_and_looking_at_them_removes_nobody() {
        let silent = |purge_after| {
            let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
            builder.stale_after(Duration::from_millis(1)).purge_after(purge_after).start().unwrap()
        };
        let (keeping, purging) = (silent(Duration::from_secs(3_600)), silent(Duration::from_millis(100)));
        let mut viewer = Http::connect(keeping.local_addr());
        let id = viewer.register("a");
        eventually("it is stale", || keeping.store().get_all_sessions().unwrap()[0].is_stale);
        for _ in 0..10 {
            assert_eq!(viewer.row(&id).unwrap()["is_stale"], true);
        }
        // Nobody looks at this one; a kill is no sign of life.
        let id = purging.store().create_session("a", None).unwrap();
        eventually("it is removed", || !purging.kill(&id).unwrap());
    }
}

isolated! {
    fn b4_a_session_that_was_cleaned_up_comes_back_and_can_be_killed() {
        let server = server();
        let client = client(&server);
        let id = client.id();
        let mut operator = Http::connect(server.local_addr());
        // Its first beat may come at the very moment of the clean-up, and then it is not silent.
        let mut cleaned = json!(null);
        while cleaned != json!({"deleted_count": 1}) {
            cleaned = operator.ok("DELETE", "/sessions/stale?older_than_minutes=0", &Value::Null);
        }
        eventually("it is back", || server.store().kill_requested(&id).is_some());
        operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        assert!(client.cancel_token().wait_timeout(GENEROUS));
        assert_eq!(client.id(), id);
    }
}

isolated! {
    fn b5_a_client_that_starts_without_a_tracker_says_so_and_can_be_killed_later() {
        let address = nobody();
        let client = SessionClient::builder("panel").server_url(format!("http://{address}")).start().unwrap();
        assert!(!client.is_connected());
        let builder = TrackerServer::builder().listen(address.to_string()).database(":memory:");
        let server = builder.start().unwrap();
        eventually("it joins", || client.is_connected());
        assert!(server.kill(&client.id()).unwrap());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
    }
}

static POOL: SharedPool =
    SharedPool::new(|| SessionPool::builder(Runtime::python("python3")).min_idle(2).max_sessions(2));

isolated! {
    fn b7_a_kill_ends_the_work_of_its_session_and_the_pool_lives_on_for_the_others() {
        let server = server();
        let (tell, told) = mpsc::channel();
        let users: Vec<_> = ["one", "two"]
            .into_iter()
            .map(|name| {
                let (client, handle) = (client(&server), Arc::new(POOL.handle().unwrap()));
                let scope = handle.scope(&client.cancel_token());
                let tell = tell.clone();
                let endless = Request::code("import time\nprint('on', flush=True)\nwhile True: time.sleep(1)")
                    .on_output(move |_, _| tell.send(name).unwrap());
                let running = scope.submit(endless);
                assert_eq!(told.recv_timeout(GENEROUS), Ok(name));
                client.on_kill(move || handle.release());
                (client, scope, running)
            })
            .collect();
        // Both sessions of the pool are taken: these wait.
        let queued: Vec<_> = users.iter().map(|(_, scope, _)| scope.submit("print(1)")).collect();
        assert!(server.kill(&users[0].0.id()).unwrap());
        eventually("what ran and what waited has ended", || users[0].2.is_done() && queued[0].is_done());
        eventually("its handle is back", || POOL.users() == 1);
        assert!(!users[1].2.is_done(), "the neighbour's work goes on");
        assert!(!users[1].0.is_killed());
        assert!(server.kill(&users[1].0.id()).unwrap());
        eventually("the last one ends the pool", || POOL.users() == 0);
        drop((queued, users));
    }
}

isolated! {
    fn b6_who_registers_a_second_after_kill_all_does_not_survive_it() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let first = client(&server);
        let killed = operator.ok("POST", "/apps/panel/kill-all", &json!({"embargo_seconds": 600}));
        assert_eq!(killed["session_ids"], json!([first.id()]));
        let second = client(&server);
        for client in [first, second] {
            assert!(client.cancel_token().wait_timeout(GENEROUS));
        }
    }
}

isolated! {
    fn b8_a_kill_and_then_an_end_run_each_callback_once_and_give_a_handle_back_once() {
        let server = server();
        let client = client(&server);
        let (mine, others) = (POOL.handle().unwrap(), POOL.handle().unwrap());
        let (ran, runs) = mpsc::channel();
        client.on_kill(move || {
            mine.release();
            mine.release();
            ran.send(()).unwrap();
            // Dropped here for the third time.
        });
        assert!(server.kill(&client.id()).unwrap());
        assert_eq!(runs.recv_timeout(GENEROUS), Ok(()));
        client.stop();
        client.stop();
        drop(client);
        assert_eq!(runs.recv(), Err(mpsc::RecvError), "it ran again");
        assert_eq!(POOL.users(), 1);
        drop(others);
        assert_eq!(POOL.users(), 0);
    }
}

isolated! {
    fn b9_a_page_of_elsewhere_can_neither_look_nor_kill() {
        let server = server();
        let id = Http::connect(server.local_addr()).register("a");
        let kill = format!("/sessions/{id}/kill");
        for (method, target, fields) in [
            ("GET", "/sessions", "Host: tracker.example\r\n"),
            ("POST", &kill, "Host: tracker.example\r\nOrigin: http://tracker.example\r\n"),
            ("POST", &kill, "Host: localhost\r\nOrigin: http://elsewhere.example\r\n"),
            ("POST", &kill, "Host: localhost\r\nOrigin: null\r\n"),
            ("POST", "/apps/a/kill-all", "Host: localhost\r\nOrigin: http://localhost:1\r\n"),
        ] {
            let mut http = Http::connect(server.local_addr());
            http.raw(format!("{method} {target} HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n"));
            let answer = http.answer().unwrap();
            assert_eq!(answer.status, 403, "{method} {target} {fields:?}");
            assert_eq!(answer.field("access-control-allow-origin"), None);
        }
        let row = Http::connect(server.local_addr()).row(&id).unwrap();
        assert_eq!(row["kill_requested"], false);
    }
}

isolated! {
    fn b10_the_stale_are_never_the_session_of_that_name() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let named = http.call("POST", "/sessions", r#"{"app_name": "a", "session_id": "stale"}"#);
        assert_eq!(named.status, 422);
        assert_eq!(http.ok("DELETE", "/sessions/stale", &Value::Null), json!({"deleted_count": 0}));
        assert_eq!(http.call("POST", "/sessions/stale", "").status, 405);
        assert_eq!(http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null), json!({"status": "deleted"}));
    }
}
