//! A client and a tracker that is absent, goes away, hangs, refuses or talks nonsense: the work goes
//! on, and the client comes back by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use remuda::{ClientConfig, SessionClient};
use serde_json::json;

use crate::scripted_server::{
    Asked, Memory, Reply, ScriptedServer, collect_log, connected, eventually, fine, nobody,
};
use crate::support::{GENEROUS, isolated};

fn parked(address: std::net::SocketAddr) -> ClientConfig {
    SessionClient::builder("app").server_url(format!("http://{address}"))
}

fn quick(address: std::net::SocketAddr) -> ClientConfig {
    parked(address).heartbeat_interval(Duration::from_millis(20))
}

/// Requests that hang may be given up, after ten seconds each, before a busy machine has done what takes no
/// time elsewhere. So many are more than that.
const FEW: usize = 4;

/// Does what makes a first request, which hangs, and is over before that is given up; which on a busy machine
/// may take some attempts.
pub(crate) fn during_first_request<T>(act: impl Fn() -> T, server: &ScriptedServer) -> T {
    let began = Instant::now();
    loop {
        let (asked, given_up) = (server.asked().len(), server.given_up());
        let done = act();
        server.await_more(asked);
        if server.given_up() == given_up {
            return done;
        }
        assert!(began.elapsed() < GENEROUS, "it waits for the end of a request");
    }
}

isolated! {
    fn the_work_goes_on_without_a_tracker_and_the_client_joins_one_that_comes_later() {
        let log = collect_log();
        let address = nobody();
        let client = parked(address).start().expect("an absent tracker is no error");
        assert!(!client.is_connected());
        let (heard, kills) = mpsc::channel();
        client.on_kill(move || heard.send(()).unwrap());
        for _ in 0..100 {
            drop(client.task("unseen"));
        }
        let _task = client.task("seen later");
        log.await_count(1, "offline");
        let memory = Memory::default();
        let server = ScriptedServer::at(address, memory.parking());
        eventually("the client registers", || client.is_connected());
        let row = memory.row(client.id().as_str()).unwrap();
        assert_eq!((row.status.as_str(), row.task.as_deref()), ("running", Some("seen later")));
        log.await_count(1, "back at");
        assert_eq!(log.count("offline"), 1, "{:?}", log.lines());
        server.await_count(1, "POST", "/heartbeat");
        memory.kill(client.id().as_str());
        kills.recv_timeout(GENEROUS).expect("it can be killed now");
        drop(client);
        eventually("it leaves the list", || memory.ids().is_empty());
    }
}

isolated! {
    fn callbacks_run_at_the_end_of_a_client_that_never_met_its_tracker() {
        let client = parked(nobody()).start().unwrap();
        let (ran, order) = mpsc::channel();
        client.on_kill(move || ran.send(()).unwrap());
        drop(client);
        assert_eq!(order.recv(), Ok(()));
    }
}

isolated! {
    fn a_tracker_that_comes_back_is_used_again_and_each_change_is_logged_once() {
        let log = collect_log();
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let address = server.address();
        let client = parked(address).start().unwrap();
        server.await_count(1, "POST", "/heartbeat");
        drop(server);
        eventually("the client notices", || !client.is_connected());
        let task = client.task("alone");
        let server = ScriptedServer::at(address, memory.parking());
        eventually("the client is back", || client.is_connected());
        memory.await_row(client.id().as_str(), |row| row.task.as_deref() == Some("alone"));
        // The tracker has kept its list: no second registration.
        assert_eq!(server.count("POST", "/sessions"), 0);
        drop(task);
        memory.await_row(client.id().as_str(), |row| row.status == "idle");
        log.await_count(1, "back at");
        assert_eq!(log.count("offline"), 1, "{:?}", log.lines());
        assert_eq!(log.count("registered with"), 1);
    }
}

isolated! {
    fn a_kill_that_was_asked_for_while_the_tracker_was_away_arrives() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let address = server.address();
        let client = parked(address).start().unwrap();
        server.await_count(1, "POST", "/heartbeat");
        drop(server);
        memory.kill(client.id().as_str());
        let _server = ScriptedServer::at(address, memory.parking());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
    }
}

isolated! {
    fn a_session_that_the_tracker_has_forgotten_registers_again_with_the_same_id_and_task() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = parked(server.address()).start().unwrap();
        let id = client.id();
        let _task = client.task("long work");
        server.await_count(1, "POST", "/heartbeat");
        memory.forget(id.as_str());
        let again = server.await_count(2, "POST", "/sessions");
        assert_eq!(again.body["session_id"], id.as_str());
        memory.await_row(id.as_str(), |row| row.task.as_deref() == Some("long work"));
        assert_eq!(client.id(), id);
        // And it hears kills again.
        server.await_count(2, "POST", "/heartbeat");
        memory.kill(id.as_str());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
    }
}

isolated! {
    fn a_status_for_a_session_that_the_tracker_has_forgotten_brings_it_back() {
        let memory = Memory::default();
        // Parks nothing: the next beat is up to half a minute away.
        let server = ScriptedServer::start(memory.plain());
        let client = connected(parked(server.address()));
        let id = client.id();
        memory.forget(id.as_str());
        let _task = client.task("work");
        memory.await_row(id.as_str(), |row| row.task.as_deref() == Some("work"));
    }
}

isolated! {
    fn a_tracker_that_forgets_at_once_is_not_asked_in_circles() {
        let memory = Memory::default();
        let server = ScriptedServer::start(move |asked| {
            if asked.is("POST", "/heartbeat") {
                return Reply::Json(404, json!({"detail": "Session not found"}));
            }
            memory.answer(asked, Some(60))
        });
        let started = Instant::now();
        let client = parked(server.address()).start().unwrap();
        server.await_count(5, "POST", "/sessions");
        // Rests of at least a tenth of 0.5, 1, 2 and so on seconds lie between them.
        assert!(started.elapsed() > Duration::from_millis(300));
        drop(client);
    }
}

isolated! {
    fn a_tracker_that_offers_to_park_beats_and_does_not_is_not_flooded() {
        let memory = Memory::default();
        let server = ScriptedServer::start(move |asked| match asked.wait() {
            Some(_) => fine(json!({"kill_requested": false})),
            None => memory.answer(asked, Some(60)),
        });
        // Before the first one, which the test may see late.
        let began = Instant::now();
        let client = parked(server.address()).start().unwrap();
        server.await_count(2, "POST", "/heartbeat");
        assert!(began.elapsed() > Duration::from_secs(1));
        assert!(client.is_connected());
    }
}

isolated! {
    fn nonsense_is_as_good_as_no_tracker() {
        let log = collect_log();
        let mode = Arc::new(AtomicUsize::new(0));
        let (now, memory) = (Arc::clone(&mode), Memory::default());
        let rows = memory.clone();
        let raw = |text: &str| Reply::Raw(text.as_bytes().to_vec());
        let server = ScriptedServer::start(move |asked| match now.load(Ordering::SeqCst) {
            0 => raw("SSH-2.0-OpenSSH_9.6\r\n"),
            1 => Reply::Raw(vec![0xff; 4096]),
            2 => raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot JSON."),
            3 => raw("HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"session_id\""),
            4 => fine(json!(["a", "list"])),
            5 => fine(json!({"session_id": ""})),
            6 => fine(json!({"session_id": "x".repeat(10_000)})),
            7 => fine(json!({"session_id": "x", "filler": "x".repeat(10 << 20)})),
            8 => Reply::Json(302, json!({"detail": "elsewhere"})),
            9 => Reply::Json(404, json!("no such page")),
            10 => Reply::Json(422, json!({"detail": [{"loc": ["body"]}]})),
            11 => Reply::Json(500, json!({"detail": "the disk is full"})),
            12 => Reply::Close,
            13 => raw("HTTP/1.1 200 OK\r\ncontent-length: -1\r\ntransfer-encoding: what\r\n\r\n"),
            14 => Reply::Raw([b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".repeat(100_000)].concat()),
            _ => rows.answer(asked, Some(60)),
        });
        let work = |client: &SessionClient| {
            assert!(!client.is_connected());
            drop(client.task("work"));
            assert!(!client.is_killed());
        };
        for nonsense in 0..=14 {
            mode.store(nonsense, Ordering::SeqCst);
            let client = parked(server.address()).start().unwrap_or_else(|error| panic!("{nonsense}: {error}"));
            work(&client);
            log.await_count(nonsense + 1, "offline");
            assert_eq!(log.count("offline"), nonsense + 1, "{:?}", log.lines());
        }
        let client = parked(server.address()).start().unwrap();
        work(&client);
        log.await_count(16, "offline");
        mode.store(100, Ordering::SeqCst);
        eventually("the client registers", || client.is_connected());
        assert_eq!(memory.ids(), [client.id().as_str()]);
        assert_eq!(log.count("offline"), 16, "{:?}", log.lines());
        log.await_count(1, "back at");
        assert_eq!(log.count("back at"), 1);
    }
}

isolated! {
    fn nonsense_in_the_middle_is_not_a_kill() {
        let (good, memory) = (Arc::new(AtomicBool::new(true)), Memory::default());
        let (now, rows) = (Arc::clone(&good), memory.clone());
        let server = ScriptedServer::start(move |asked| match asked {
            _ if now.load(Ordering::SeqCst) => rows.answer(asked, None),
            Asked { method, .. } if method == "POST" => fine(json!({"kill_requested": "yes"})),
            _ => Reply::Json(500, json!({})),
        });
        let client = quick(server.address()).start().unwrap();
        server.await_count(1, "POST", "/heartbeat");
        good.store(false, Ordering::SeqCst);
        eventually("the client notices", || !client.is_connected());
        drop(client.task("work"));
        good.store(true, Ordering::SeqCst);
        eventually("the client is back", || client.is_connected());
        assert!(!client.is_killed() && !client.cancel_token().is_cancelled());
        memory.await_row(client.id().as_str(), |row| row.status == "idle");
    }
}

isolated! {
    fn a_tracker_that_never_answers_holds_nobody_up() {
        let server = ScriptedServer::start(|_| Reply::Hang);
        let client = during_first_request(|| parked(server.address()).start().unwrap(), &server);
        for _ in 0..50 {
            drop(client.task("work"));
        }
        // A second for each of them would be as long as ten registrations.
        assert!(server.given_up() < FEW, "{} were given up", server.given_up());
        assert!(!client.is_connected());
        drop(client);
    }
}

isolated! {
    fn a_tracker_that_begins_to_hang_holds_the_work_up_once_at_most() {
        let memory = Memory::default();
        let rows = memory.clone();
        let server = ScriptedServer::start(move |asked| match asked.method.as_str() {
            "PUT" | "DELETE" => Reply::Hang,
            _ => rows.answer(asked, Some(60)),
        });
        let client = parked(server.address()).start().unwrap();
        server.await_count(1, "POST", "/heartbeat");
        for _ in 0..50 {
            drop(client.task("work"));
        }
        // A second for each of them would be as long as ten requests.
        server.await_count(1, "PUT", "/status");
        assert!(server.given_up() < FEW, "{} were given up", server.given_up());
        client.stop();
        assert!(client.is_stopped());
    }
}

isolated! {
    fn a_status_that_the_tracker_could_not_store_is_sent_again() {
        let log = collect_log();
        let (full, memory) = (Arc::new(AtomicBool::new(true)), Memory::default());
        let (now, rows) = (Arc::clone(&full), memory.clone());
        let server = ScriptedServer::start(move |asked| match asked.method.as_str() {
            "PUT" if now.load(Ordering::SeqCst) => Reply::Json(503, json!({"detail": "the disk is full"})),
            _ => rows.answer(asked, Some(60)),
        });
        // Else the registration may be late, and tells the tasks itself.
        let client = connected(parked(server.address()));
        let _outer = client.task("outer");
        drop(client.task("inner"));
        server.await_count(4, "PUT", "/status");
        assert_eq!(log.count("did not take a status"), 1, "{:?}", log.lines());
        assert!(client.is_connected(), "the beats get through");
        full.store(false, Ordering::SeqCst);
        memory.await_row(client.id().as_str(), |row| row.task.as_deref() == Some("outer"));
    }
}

isolated! {
    fn an_id_that_the_tracker_insists_on_is_used() {
        let server = ScriptedServer::start(|asked| match asked.method.as_str() {
            "POST" if asked.is("POST", "/heartbeat") => fine(json!({"kill_requested": false})),
            "POST" => fine(json!({"session_id": "row 7/ü"})),
            "PUT" => fine(json!({"status": "updated"})),
            _ => fine(json!({"status": "deleted"})),
        });
        let client = connected(quick(server.address()));
        assert_eq!(client.id().as_str(), "row 7/ü");
        let task = client.task("work");
        server.await_count(1, "PUT", "/sessions/row%207%2F%C3%BC/status");
        drop(task);
        server.await_count(1, "POST", "/sessions/row%207%2F%C3%BC/heartbeat");
        server.await_count(2, "PUT", "/sessions/row%207%2F%C3%BC/status");
        drop(client);
        server.await_count(1, "DELETE", "/sessions/row%207%2F%C3%BC");
    }
}

isolated! {
    fn a_stopped_client_registers_no_more() {
        let address = nobody();
        let client = parked(address).start().unwrap();
        client.stop();
        let memory = Memory::default();
        let server = ScriptedServer::at(address, memory.parking());
        // Its threads have ended, so nothing can come any more; a client that lives is heard.
        let other = connected(parked(address));
        assert_eq!(server.count("POST", "/sessions"), 1);
        assert_eq!(memory.ids(), [other.id().as_str()]);
    }
}
