//! Many tracked sessions of one process that share their threads and connections.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use remuda::tracker::api::Verb;
use remuda::{
    ClientConfig, DeadMan, SessionClient, SessionGroup, TrackedSession, TrackedStatus, TrackerServer,
};
use serde_json::{Value, json};

use crate::scripted_server::{Memory, Reply, ScriptedServer, collect_log, eventually, fine, takes_effect};
use crate::support::{GENEROUS, isolated};
use crate::tracker_client_lost::in_time;
use crate::tracker_support::{Http, server};

fn group_of(server: &TrackerServer) -> SessionGroup {
    SessionGroup::new(format!("http://{}", server.local_addr())).unwrap()
}

fn start(group: &SessionGroup, count: usize) -> Vec<SessionClient> {
    (0..count).map(|_| group.start(ClientConfig::new("app")).unwrap()).collect()
}

/// Waits until the tracker knows them: a start waits a second for that, which may pass on a busy machine.
fn until_connected(clients: &[SessionClient]) {
    eventually("all are registered", || clients.iter().all(SessionClient::is_connected));
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// What a tracker of the real kind answers to a batch, from the memory of the scripted one: nothing.
fn batches(memory: &Memory) -> impl Fn(&crate::scripted_server::Asked) -> Reply + Send + Sync + 'static {
    let rows = memory.clone();
    move |asked| {
        if !asked.is("POST", "/heartbeats") {
            return rows.answer(asked, None);
        }
        let beats = asked.body["beats"].as_array().expect("beats").clone();
        let answer = |beat: &Value| match rows.row(beat["session_id"].as_str().unwrap()) {
            None => {
                Some(json!({"session_id": beat["session_id"], "kill_requested": false, "missed": "unknown"}))
            }
            Some(row) if row.killed && beat["heard_kill"] != json!(true) => {
                Some(json!({"session_id": beat["session_id"], "kill_requested": true}))
            }
            Some(_) => None,
        };
        fine(json!({"answers": beats.iter().filter_map(answer).collect::<Vec<_>>()}))
    }
}

isolated! {
    fn a_kill_of_one_of_the_group_arrives_at_once_and_at_nobody_else() {
        let server = server();
        let group = group_of(&server);
        let clients = start(&group, 200);
        until_connected(&clients);
        assert_eq!(group.len(), 200);
        let (heard, kills) = mpsc::channel();
        for client in &clients {
            let (heard, id) = (heard.clone(), client.id());
            client.on_kill(move || heard.send(id).unwrap());
        }
        // A batch that is not parked would be up to half a minute away; that it waits is seen by the
        // second and third kill at the latest.
        for victim in [17, 3, 199] {
            assert!(server.kill(&clients[victim].id()).unwrap());
            assert_eq!(kills.recv_timeout(Duration::from_secs(20)), Ok(clients[victim].id()));
        }
        assert_eq!(clients.iter().filter(|client| client.is_killed()).count(), 3);
        assert_eq!(kills.try_recv(), Err(mpsc::TryRecvError::Empty));
        // The callbacks are over, and the tracker hears of it while the others' beat is parked.
        let mut http = Http::connect(server.local_addr());
        eventually("all kills are confirmed", || {
            let kills = Http::connect(server.local_addr()).ok("GET", "/kills", &Value::Null);
            kills["kills"].as_array().unwrap().iter().filter(|kill| kill["state"] == "confirmed").count() == 3
        });
        assert_eq!(http.list().len(), 200, "they live until they are dropped");
        drop(clients);
        assert!(group.is_empty());
        eventually("they leave the list", || server.store().get_all_sessions().unwrap().is_empty());
    }
}

isolated! {
    fn a_group_has_two_threads_and_two_connections_however_many_sessions_it_has() {
        let memory = Memory::default();
        let server = ScriptedServer::start(batches(&memory));
        let group = SessionGroup::new(server.url()).unwrap();
        let quick = || ClientConfig::new("app").heartbeat_interval(Duration::from_millis(20));
        let first = group.start(quick()).unwrap();
        // From now on both connections are there, each with a thread of the scripted server.
        server.await_count(1, "POST", "/heartbeats");
        let before = threads();
        let clients: Vec<_> = (0..100).map(|_| group.start(quick()).unwrap()).collect();
        server.await_count(50, "POST", "/heartbeats");
        eventually("all of them are in one request", || {
            let last = server.asked().into_iter().rfind(|asked| asked.is("POST", "/heartbeats")).unwrap();
            last.body["beats"].as_array().unwrap().len() == 101
        });
        assert_eq!(server.connections(), 2);
        // The HTTP client looks a host up on a thread, which may have been on its last instructions before.
        assert!(threads() <= before);
        assert_eq!(server.count("POST", "/heartbeat"), 0);
        drop((first, clients));
        eventually("they leave the list", || memory.ids().is_empty());
    }
}

isolated! {
    fn tasks_orders_and_attachments_of_a_group_are_those_of_their_session() {
        let server = server();
        let group = group_of(&server);
        let clients = start(&group, 20);
        until_connected(&clients);
        let runs = || {
            let row = |row: &TrackedSession| row.session_id == clients[7].id() && row.status == TrackedStatus::Running;
            server.store().get_all_sessions().unwrap().iter().any(row)
        };
        let task = takes_effect(|| clients[7].task("seven"), runs);
        task.set_progress(0.5);
        clients[8].attach("pool", || json!({"idle": 4}));
        let rows = server.store().get_all_sessions().unwrap();
        let row = |at: usize| rows.iter().find(|row| row.session_id == clients[at].id()).unwrap();
        assert_eq!((&row(7).status, row(7).current_task.as_deref()), (&TrackedStatus::Running, Some("seven")));
        assert_eq!(rows.iter().filter(|row| row.status == TrackedStatus::Running).count(), 1);
        drop(task);
        let (tell, told) = mpsc::channel();
        for (at, client) in clients.iter().enumerate() {
            let tell = tell.clone();
            client.on_verb(move |verb| tell.send((at, verb)).unwrap());
        }
        let mut http = Http::connect(server.local_addr());
        let mut order = |at: usize, word: &str| {
            http.ok("POST", &format!("/sessions/{}/{word}", clients[at].id()), &Value::Null);
            told.recv_timeout(Duration::from_secs(20)).expect("it hears of it while the batch is parked")
        };
        assert_eq!(order(3, "pause"), (3, Verb::Pause));
        assert_eq!(order(4, "drain"), (4, Verb::Drain));
        // That of a neighbour takes nothing back.
        assert!(clients[3].is_paused() && clients[4].is_draining());
        assert_eq!(order(3, "resume"), (3, Verb::Resume));
        let rows = server.store().get_all_sessions().unwrap();
        let attached: Vec<_> = rows.iter().filter(|row| !row.attached.is_empty()).collect();
        assert_eq!(attached.len(), 1);
        assert_eq!((&attached[0].session_id, &attached[0].attached["pool"]), (&clients[8].id(), &json!({"idle": 4})));
    }
}

isolated! {
    fn a_group_comes_back_with_all_its_ids_and_tasks_and_says_so_once() {
        let log = collect_log();
        let memory = Memory::default();
        let server = ScriptedServer::start(batches(&memory));
        let address = server.address();
        let group = SessionGroup::new(server.url()).unwrap();
        let quick = || ClientConfig::new("app").heartbeat_interval(Duration::from_millis(20));
        let clients: Vec<_> = (0..20).map(|_| group.start(quick()).unwrap()).collect();
        until_connected(&clients);
        let ids: BTreeSet<String> = clients.iter().map(|client| client.id().to_string()).collect();
        server.await_count(2, "POST", "/heartbeats");
        drop(server);
        eventually("the clients notice", || clients.iter().all(|client| !client.is_connected()));
        let _task = clients[5].task("alone");
        // It has forgotten half of them.
        for id in ids.iter().take(10) {
            memory.forget(id);
        }
        let server = ScriptedServer::at(address, batches(&memory));
        eventually("the clients are back", || clients.iter().all(SessionClient::is_connected));
        eventually("with their ids", || memory.ids().into_iter().collect::<BTreeSet<_>>() == ids);
        memory.await_row(clients[5].id().as_str(), |row| row.task.as_deref() == Some("alone"));
        assert_eq!(log.count("offline"), 1, "{:?}", log.lines());
        log.await_count(1, "back at");
        assert_eq!(log.count("back at"), 1, "{:?}", log.lines());
        memory.kill(clients[0].id().as_str());
        assert!(clients[0].cancel_token().wait_timeout(GENEROUS));
        assert_eq!(clients.iter().filter(|client| client.is_killed()).count(), 1);
        let registered = server.asked().iter().filter(|asked| asked.method == "POST" && asked.path == "/sessions").count();
        assert_eq!(registered, 10, "who was not forgotten is not registered again");
    }
}

isolated! {
    fn a_group_that_starts_without_a_tracker_joins_one_that_comes_later() {
        let address = crate::scripted_server::nobody();
        let group = SessionGroup::new(format!("http://{address}")).unwrap();
        let clients = start(&group, 3);
        assert!(clients.iter().all(|client| !client.is_connected()));
        let builder = TrackerServer::builder().listen(address.to_string()).database(":memory:");
        let server = builder.start().unwrap();
        eventually("all are there", || server.store().get_all_sessions().unwrap().len() == 3);
        eventually("and know it", || clients.iter().all(SessionClient::is_connected));
        assert!(server.kill(&clients[1].id()).unwrap());
        assert!(clients[1].cancel_token().wait_timeout(GENEROUS));
    }
}

isolated! {
    fn a_tracker_that_takes_no_batches_hears_each_session_beat() {
        let memory = Memory::default();
        let rows = memory.clone();
        let server = ScriptedServer::start(move |asked| {
            if asked.is("POST", "/heartbeats") {
                return Reply::Json(404, json!({"detail": "Not Found"}));
            }
            rows.answer(asked, None)
        });
        let group = SessionGroup::new(server.url()).unwrap();
        let quick = || ClientConfig::new("app").heartbeat_interval(Duration::from_millis(20));
        let clients: Vec<_> = (0..5).map(|_| group.start(quick()).unwrap()).collect();
        for client in &clients {
            server.await_count(3, "POST", &format!("/{}/heartbeat", client.id()));
        }
        assert_eq!(server.count("POST", "/heartbeats"), 1);
        memory.kill(clients[2].id().as_str());
        assert!(clients[2].cancel_token().wait_timeout(GENEROUS));
        memory.forget(clients[3].id().as_str());
        memory.await_row(clients[3].id().as_str(), |_| true);
        assert_eq!(clients.iter().filter(|client| client.is_killed()).count(), 1);
    }
}

isolated! {
    fn a_tracker_that_takes_registrations_and_knows_nobody_is_not_asked_in_circles() {
        let memory = Memory::default();
        let (good, answers) = (Arc::new(AtomicBool::new(false)), batches(&memory));
        let now = Arc::clone(&good);
        let server = ScriptedServer::start(move |asked| match asked.body["beats"].as_array() {
            Some(beats) if !now.load(Ordering::SeqCst) => {
                let unknown = |beat: &Value| json!({"session_id": beat["session_id"], "kill_requested": false, "missed": "lost"});
                fine(json!({"answers": beats.iter().map(unknown).collect::<Vec<_>>()}))
            }
            _ => answers(asked),
        });
        let group = SessionGroup::new(server.url()).unwrap();
        let client = group.start(ClientConfig::new("app").heartbeat_interval(Duration::from_millis(20))).unwrap();
        server.await_count(4, "POST", "/sessions");
        good.store(true, Ordering::SeqCst);
        let registered = server.count("POST", "/sessions");
        let beats = server.count("POST", "/heartbeats");
        assert!(registered < 10, "{registered} registrations");
        server.await_count(beats + 5, "POST", "/heartbeats");
        assert!(client.is_connected());
    }
}

isolated! {
    fn a_dead_man_policy_holds_for_its_own_session_of_a_group() {
        let memory = Memory::default();
        let server = ScriptedServer::start(batches(&memory));
        let address = server.address();
        let group = SessionGroup::new(server.url()).unwrap();
        let with = |policy| {
            let config = ClientConfig::new("app").heartbeat_interval(Duration::from_millis(20));
            group.start(config.on_server_lost(policy).lost_after(Duration::from_millis(100))).unwrap()
        };
        let (goes_on, pauses) = (with(DeadMan::Continue), with(DeadMan::Pause));
        let stops = in_time(|| with(DeadMan::Stop));
        eventually("the others are there", || goes_on.is_connected() && pauses.is_connected() && !pauses.is_paused());
        let (tell, told) = mpsc::channel();
        pauses.on_verb(move |verb| tell.send(verb).unwrap());
        server.await_count(10, "POST", "/heartbeats");
        assert!(!stops.is_lost() && !pauses.is_paused());
        drop(server);
        assert_eq!(told.recv_timeout(GENEROUS), Ok(Verb::Pause));
        assert!(stops.cancel_token().wait_timeout(GENEROUS));
        assert!(!goes_on.is_lost() && !goes_on.cancel_token().is_cancelled() && !goes_on.is_paused());
        let _server = ScriptedServer::at(address, batches(&memory));
        assert_eq!(told.recv_timeout(GENEROUS), Ok(Verb::Resume));
        eventually("all are back", || [&goes_on, &pauses, &stops].iter().all(|client| client.is_connected()));
    }
}

isolated! {
    fn a_group_lives_as_long_as_a_client_of_it() {
        let server = server();
        let group = group_of(&server);
        let (one, other) = (group.start(ClientConfig::new("app")).unwrap(), group.start(ClientConfig::new("app")).unwrap());
        drop(group);
        drop(one);
        eventually("one is left", || server.store().get_all_sessions().unwrap().len() == 1);
        assert!(server.kill(&other.id()).unwrap());
        assert!(other.cancel_token().wait_timeout(GENEROUS));
        other.stop();
        eventually("it leaves the list", || server.store().get_all_sessions().unwrap().is_empty());
    }
}

isolated! {
    fn a_full_group_refuses_another_session_and_an_address_that_makes_no_sense_is_named() {
        let address = crate::scripted_server::nobody();
        let group = SessionGroup::new(format!("http://{address}")).unwrap();
        std::thread::scope(|threads| {
            // Each waits for its registration, as long as that is under way.
            let start = || (0..125).map(|_| group.start(ClientConfig::new("app")).unwrap()).collect::<Vec<_>>();
            let starters: Vec<_> = (0..8).map(|_| threads.spawn(start)).collect();
            let clients: Vec<_> = starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect();
            let error = group.start(ClientConfig::new("app")).unwrap_err();
            assert!(error.to_string().contains("start another group"), "{error}");
            drop(clients);
        });
        drop(group.start(ClientConfig::new("app")).unwrap());
        let error = SessionGroup::new("localhost").unwrap_err();
        assert!(error.to_string().contains("server_url"), "{error}");
    }
}

isolated! {
    fn one_client_lives_for_a_key_inside_or_outside_of_a_group() {
        let log = collect_log();
        let server = server();
        let (group, other) = (group_of(&server), group_of(&server));
        let of_user = |user: &str| ClientConfig::new("app").user_id(user);
        let ann = group.get_tracker("ann", of_user("ann")).unwrap();
        let bob = group.get_tracker("bob", of_user("bob")).unwrap();
        assert_eq!((group.len(), ann.id() == bob.id()), (2, false));
        // The address of a group counts, not that of the options.
        assert!(Arc::ptr_eq(&ann, &group.get_tracker("ann", of_user("ann")).unwrap()));
        assert_eq!(log.count("lives already"), 0);
        assert!(Arc::ptr_eq(&ann, &other.get_tracker("ann", of_user("ann")).unwrap()));
        let url = format!("http://{}", server.local_addr());
        assert!(Arc::ptr_eq(&ann, &SessionClient::get_tracker("ann", of_user("ann").server_url(url)).unwrap()));
        assert_eq!(log.count("the tracker client of ann lives already and keeps its own group"), 2);
        assert!(other.is_empty());
        drop(ann);
        assert_eq!(group.len(), 1);
        let again = other.get_tracker("ann", of_user("ann")).unwrap();
        assert_eq!((group.len(), other.len()), (1, 1));
        drop((again, bob));
    }
}

isolated! {
    /// The tracker was started anew without its database, say, or had given the session up.
    fn orders_end_with_the_registration_they_were_for_and_those_for_the_next_arrive() {
        let server = server();
        let alone = SessionClient::builder("app").server_url(format!("http://{}", server.local_addr()));
        for client in [start(&group_of(&server), 1).remove(0), alone.start().unwrap()] {
            eventually("it is registered", || client.is_connected());
            let mut http = Http::connect(server.local_addr());
            let path = |word: &str| format!("/sessions/{}{word}", client.id());
            for _ in 0..2 {
                http.ok("POST", &path("/pause"), &Value::Null);
                eventually("it hears of the pause", || client.is_paused());
                http.ok("DELETE", &path(""), &Value::Null);
                eventually("it is registered again, and not paused", || {
                    let listed = Http::connect(server.local_addr()).row(client.id().as_str()).is_some();
                    listed && !client.is_paused()
                });
            }
        }
    }
}
