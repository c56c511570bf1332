//! A client and a tracker that behaves: registering, beating, tasks, kills, the end.

use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use remuda::{ClientConfig, SessionClient};
use serde_json::json;

use crate::scripted_server::{Memory, ScriptedServer, collect_log, connected, eventually, takes_effect};
use crate::support::{GENEROUS, isolated, poll};

/// Beats often, so that a tracker that parks nothing is heard soon.
fn quick(server: &ScriptedServer) -> ClientConfig {
    SessionClient::builder("app").server_url(server.url()).heartbeat_interval(Duration::from_millis(20))
}

fn parked(server: &ScriptedServer) -> ClientConfig {
    SessionClient::builder("app").server_url(server.url())
}

isolated! {
    fn a_client_registers_with_all_that_it_knows_of_itself_and_leaves_the_list_at_its_end() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let config = SessionClient::builder("my app / bücher").user_id("ada").label("room", "7");
        let start = || config.server_url(server.url()).start().unwrap();
        let client = takes_effect(start, || !memory.ids().is_empty());
        let register = server.await_count(1, "POST", "/sessions");
        assert_eq!(register.body["app_name"], "my app / bücher");
        assert_eq!(register.body["user_id"], "ada");
        assert_eq!(register.body["labels"], json!({"room": "7"}));
        assert_eq!(register.body["pid"], std::process::id());
        assert_eq!(register.body["session_id"], client.id().as_str());
        assert!(client.id().is_uuid());
        assert_eq!(register.headers["content-type"], "application/json");
        assert!(!register.headers.contains_key("origin") && !register.headers.contains_key("transfer-encoding"));
        // The first beat comes at once and is not parked for long: what is attached next follows soon.
        assert_eq!(server.await_count(1, "POST", "/heartbeat").wait(), Some(2));
        takes_effect(|| drop(client), || memory.ids().is_empty());
        assert_eq!(server.count("POST", "/sessions"), 1);
    }
}

isolated! {
    fn a_kill_is_heard_while_the_beat_is_parked() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let other = connected(parked(&server));
        let (heard, kills) = mpsc::channel();
        client.on_kill(move || heard.send(()).unwrap());
        server.await_count(2, "POST", "/heartbeat");
        memory.kill(client.id().as_str());
        // A plain beat would be half a minute away.
        kills.recv_timeout(Duration::from_secs(20)).expect("the kill arrives");
        assert!(client.is_killed() && client.cancel_token().is_cancelled());
        assert!(!other.is_killed() && !other.cancel_token().is_cancelled());
    }
}

isolated! {
    fn a_kill_is_heard_with_the_next_beat_of_a_tracker_that_parks_none() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(quick(&server));
        let beat = server.await_count(3, "POST", "/heartbeat");
        assert_eq!(beat.wait(), None);
        memory.kill(client.id().as_str());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
        // It goes on beating: it lives until it is dropped.
        let beats = server.count("POST", "/heartbeat");
        server.await_count(beats + 3, "POST", "/heartbeat");
        assert!(memory.row(client.id().as_str()).is_some());
    }
}

isolated! {
    fn beats_keep_to_the_interval_where_none_is_parked() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(parked(&server));
        let quick = connected(quick(&server));
        // Many beats of the quick one, at most the first of the other, due within 30 s.
        server.await_count(50, "POST", "/heartbeat");
        let own = format!("/{}/heartbeat", client.id());
        assert!(server.count("POST", &own) <= 1);
        drop(quick);
    }
}

isolated! {
    fn beats_reuse_their_connection() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(quick(&server));
        server.await_count(20, "POST", "/heartbeat");
        assert_eq!(server.connections(), 1);
        drop(client);
    }
}

isolated! {
    fn a_task_is_shown_from_its_start_to_its_end() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let row = || memory.row(client.id().as_str()).map(|row| (row.status, row.task)).unwrap();
        let idle = || ("idle".to_owned(), None);
        let running = |task: &str| ("running".to_owned(), Some(task.to_owned()));
        assert_eq!(row(), idle());
        let outer = takes_effect(|| client.task("outer"), || row() == running("outer"));
        let inner = takes_effect(|| client.task("inner"), || row() == running("inner"));
        takes_effect(|| drop(outer), || row() == running("inner"));
        takes_effect(|| drop(inner), || row() == idle());
    }
}

isolated! {
    fn a_task_ends_when_its_work_panics() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _task = client.task("doomed");
            panic!("on purpose");
        }));
        assert!(work.is_err());
        memory.await_row(client.id().as_str(), |row| row.status == "idle");
    }
}

isolated! {
    fn callbacks_run_once_in_order_and_a_panic_stops_none() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let (ran, order) = mpsc::channel();
        for number in 0..4 {
            let ran = ran.clone();
            client.on_kill(move || {
                ran.send(number).unwrap();
                assert_ne!(number, 1, "on purpose");
            });
        }
        server.await_count(1, "POST", "/heartbeat");
        memory.kill(client.id().as_str());
        assert_eq!(order.iter().take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
        // One that comes late runs at once; none runs again at the end.
        client.on_kill(move || ran.send(4).unwrap());
        assert_eq!(order.recv_timeout(GENEROUS), Ok(4));
        client.stop();
        drop(client);
        assert_eq!(order.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}

isolated! {
    fn beats_go_on_while_a_callback_takes_its_time() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(quick(&server));
        let (entered, inside) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        client.on_kill(move || {
            entered.send(()).unwrap();
            left.recv_timeout(GENEROUS).unwrap();
        });
        memory.kill(client.id().as_str());
        inside.recv_timeout(GENEROUS).expect("the callback runs");
        let beats = server.count("POST", "/heartbeat");
        server.await_count(beats + 5, "POST", "/heartbeat");
        leave.send(()).unwrap();
    }
}

isolated! {
    fn stop_runs_the_callbacks_while_the_session_is_still_on_the_list() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let (id, rows) = (client.id(), memory.clone());
        let (ran, order) = mpsc::channel();
        client.on_kill(move || ran.send(rows.row(id.as_str()).is_some()).unwrap());
        takes_effect(|| client.stop(), || memory.ids().is_empty());
        assert_eq!(order.recv(), Ok(true));
        assert!(client.is_stopped() && !client.is_connected() && !client.is_killed());
        assert!(client.cancel_token().is_cancelled());
        client.stop();
        drop(client.task("after the end"));
        client.attach("late", || json!(1));
        assert_eq!(server.count("DELETE", ""), 1);
    }
}

isolated! {
    fn stop_inside_a_callback_does_not_deadlock_and_the_later_callbacks_run_before_the_end() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = Arc::new(connected(parked(&server)));
        let (ran, order) = mpsc::channel();
        let (inside, id, rows) = (Arc::downgrade(&client), client.id(), memory.clone());
        client.on_kill(move || inside.upgrade().expect("it lives").stop());
        client.on_kill(move || ran.send(rows.row(id.as_str()).is_some()).unwrap());
        server.await_count(1, "POST", "/heartbeat");
        memory.kill(client.id().as_str());
        assert_eq!(order.recv_timeout(GENEROUS), Ok(true));
        eventually("the session leaves the list", || memory.ids().is_empty());
        eventually("the client is stopped", || client.is_stopped());
    }
}

isolated! {
    fn a_callback_may_drop_the_last_owner_of_its_client() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = Arc::new(connected(parked(&server)));
        let (mine, id) = (Arc::clone(&client), client.id());
        client.on_kill(move || drop(mine));
        server.await_count(1, "POST", "/heartbeat");
        drop(client);
        memory.kill(id.as_str());
        eventually("the session leaves the list", || memory.ids().is_empty());
    }
}

isolated! {
    fn stopping_from_many_threads_runs_each_callback_once() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let (ran, order) = mpsc::channel();
        client.on_kill(move || ran.send(()).unwrap());
        // Before the first stop: that one takes the row away. The kill is heard while they stop.
        memory.kill(client.id().as_str());
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| client.stop());
            }
        });
        assert_eq!(order.iter().count(), 1);
        assert_eq!(server.count("POST", "/sessions"), 1);
    }
}

isolated! {
    fn one_client_lives_per_key() {
        let log = collect_log();
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let clients: Vec<_> = std::thread::scope(|threads| {
            let threads: Vec<_> = (0..8)
                .map(|_| threads.spawn(|| SessionClient::get_tracker("a key", parked(&server)).unwrap()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(clients.iter().all(|client| Arc::ptr_eq(client, &clients[0])));
        let other = SessionClient::get_tracker("another key", parked(&server)).unwrap();
        assert_ne!(other.id(), clients[0].id());
        assert_eq!(log.count("keeps its own"), 0);
        let same = SessionClient::get_tracker("a key", parked(&server).user_id("eve")).unwrap();
        assert!(Arc::ptr_eq(&same, &clients[0]) && same.config().user_id.is_none());
        assert_eq!(log.count("keeps its own user_id"), 1);
        eventually("both are registered", || memory.ids().len() == 2);
        let gone: Weak<SessionClient> = Arc::downgrade(&other);
        drop(other);
        assert!(gone.upgrade().is_none(), "the registry keeps nobody alive");
        // One that was stopped is not handed out again, not even while its callbacks run.
        let (url, (asked, answers)) = (server.url(), mpsc::channel());
        clients[0].on_kill(move || {
            let config = SessionClient::builder("app").server_url(url);
            asked.send(SessionClient::get_tracker("a key", config).unwrap().id()).unwrap();
        });
        let stopped = clients[0].id();
        clients[0].stop();
        assert_ne!(answers.recv_timeout(GENEROUS), Ok(stopped));
        let next = SessionClient::get_tracker("a key", parked(&server)).unwrap();
        assert!(!Arc::ptr_eq(&next, &clients[0]) && !next.is_stopped());
    }
}

isolated! {
    fn what_is_attached_travels_with_the_beats() {
        let log = collect_log();
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(quick(&server));
        assert!(server.await_count(1, "POST", "/heartbeat").body.get("attached").is_none());
        client.attach("pool", || json!({"idle": 1}));
        client.attach("pool", || json!({"idle": 2}));
        client.attach("broken", || panic!("on purpose"));
        client.attach("heavy", || json!("x".repeat(70_000)));
        eventually("a beat with it", || {
            server.asked().last().is_some_and(|last| last.body["attached"] == json!({"pool": {"idle": 2}}))
        });
        log.await_count(1, "does not fit");
        let beats = server.count("POST", "/heartbeat");
        server.await_count(beats + 3, "POST", "/heartbeat");
        assert_eq!(log.count("does not fit"), 1);
        assert!(client.is_connected());
    }
}

/// Takes longer to go than a client waits for anything at its end.
struct Reluctant;

impl Drop for Reluctant {
    fn drop(&mut self) {
        let began = Instant::now();
        poll(|| began.elapsed() > Duration::from_millis(1_100), || "time stands still".to_owned());
    }
}

isolated! {
    fn the_farewell_is_said_however_long_the_end_takes() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let client = connected(parked(&server));
        let reluctant = Reluctant;
        client.attach("slow", move || {
            let _goes_with_this = &reluctant;
            json!(1)
        });
        drop(client);
        eventually("the session leaves the list", || memory.ids().is_empty());
    }
}

isolated! {
    fn a_snapshot_may_stop_its_client() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = Arc::new(connected(quick(&server)));
        let inside = Arc::downgrade(&client);
        client.attach("last words", move || {
            inside.upgrade().inspect(|client| client.stop());
            json!(null)
        });
        eventually("the client is stopped", || client.is_stopped());
        eventually("the session leaves the list", || memory.ids().is_empty());
    }
}
