//! A tracker that is away for too long, and one that comes back without its memory.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use remuda::tracker::api::Verb;
use remuda::{ClientConfig, DeadMan, SessionClient, TrackedStatus, TrackerServer};

use crate::scripted_server::{Memory, Reply, ScriptedServer, collect_log, connected, eventually, nobody};
use crate::support::{GENEROUS, ScratchDir, isolated, own_loopback};
use crate::tracker_client_trouble::during_first_request;

/// Gives up soon.
fn impatient(address: std::net::SocketAddr, policy: DeadMan) -> ClientConfig {
    SessionClient::builder("app")
        .server_url(format!("http://{address}"))
        .heartbeat_interval(Duration::from_millis(20))
        .on_server_lost(policy)
        .lost_after(Duration::from_millis(100))
}

/// A client that has met its tracker before its patience was over, which is short: on a busy machine that may
/// take some attempts.
pub(crate) fn in_time(start: impl Fn() -> SessionClient) -> SessionClient {
    let began = Instant::now();
    loop {
        let client = start();
        if client.is_connected() && !client.is_lost() && !client.cancel_token().is_cancelled() {
            return client;
        }
        assert!(began.elapsed() < GENEROUS, "it never meets its tracker in time");
    }
}

fn start(listen: &str, database: &std::path::Path) -> TrackerServer {
    TrackerServer::builder().listen(listen).database(database).start().unwrap()
}

isolated! {
    fn a_client_that_wants_to_stop_without_its_tracker_is_stopped_once() {
        let log = collect_log();
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let address = server.address();
        let client = in_time(|| impatient(address, DeadMan::Stop).start().unwrap());
        let told_before = log.count("is told to stop");
        let (ran, order) = mpsc::channel();
        for number in 0..3 {
            let ran = ran.clone();
            client.on_kill(move || ran.send(number).unwrap());
        }
        drop(ran);
        // Several times its patience, with a tracker that answers.
        server.await_count(20, "POST", "/heartbeat");
        assert!(!client.is_lost() && !client.cancel_token().is_cancelled());
        drop(server);
        assert!(client.cancel_token().wait_timeout(GENEROUS));
        assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert!(client.is_lost() && !client.is_connected());
        assert!(!client.is_killed(), "no operator has asked for it");
        // It is back on the list: it lives until it is dropped, and stays cancelled.
        let server = ScriptedServer::at(address, memory.plain());
        eventually("the client is back", || client.is_connected() && !client.is_lost());
        server.await_count(3, "POST", "/heartbeat");
        assert!(client.cancel_token().is_cancelled());
        assert_eq!(log.count("is told to stop"), told_before + 1, "{:?}", log.lines());
    }
}

isolated! {
    fn a_client_that_wants_to_pause_without_its_tracker_resumes_when_it_is_back() {
        let log = collect_log();
        let memory = Memory::default();
        let mut server = ScriptedServer::start(memory.plain());
        let address = server.address();
        let client = in_time(|| impatient(address, DeadMan::Pause).start().unwrap());
        let (told_before, back_before) = (log.count("is told to pause"), log.count("back at"));
        let (tell, told) = mpsc::channel();
        client.on_verb(move |verb| tell.send(verb).unwrap());
        for round in 1..=3 {
            drop(server);
            assert_eq!(told.recv_timeout(GENEROUS), Ok(Verb::Pause));
            assert!(client.is_paused() && client.is_lost() && !client.is_connected());
            assert_eq!(log.count("is told to pause"), told_before + round, "{:?}", log.lines());
            server = ScriptedServer::at(address, memory.plain());
            assert_eq!(told.recv_timeout(GENEROUS), Ok(Verb::Resume));
            eventually("the client is back", || client.is_connected());
            assert!(!client.is_paused() && !client.is_lost() && !client.cancel_token().is_cancelled());
        }
        assert_eq!(log.count("back at"), back_before + 3, "{:?}", log.lines());
    }
}

isolated! {
    fn a_client_that_never_met_its_tracker_and_one_whose_tracker_hangs_give_up_as_well() {
        let client = impatient(nobody(), DeadMan::Stop).start().unwrap();
        assert!(client.cancel_token().wait_timeout(GENEROUS));
        let server = ScriptedServer::start(|_| Reply::Hang);
        // Before the end of the registration, which waits for its answer.
        let give_up = || {
            let client = impatient(server.address(), DeadMan::Stop).start().unwrap();
            assert!(client.cancel_token().wait_timeout(GENEROUS));
            client
        };
        assert!(during_first_request(give_up, &server).is_lost());
    }
}

isolated! {
    fn by_default_the_work_goes_on_however_long_the_tracker_is_away() {
        let address = nobody();
        let (stays, goes) = (impatient(address, DeadMan::Continue), impatient(address, DeadMan::Stop));
        let (stays, goes) = (stays.start().unwrap(), goes.start().unwrap());
        assert!(goes.cancel_token().wait_timeout(GENEROUS));
        assert!(!stays.is_lost() && !stays.is_paused() && !stays.cancel_token().is_cancelled());
    }
}

isolated! {
    /// What a status said last, also while the tracker was away, is what its new list shows.
    fn a_tracker_that_has_lost_its_database_gets_every_session_again() {
        let log = collect_log();
        let directory = ScratchDir::new();
        let database = |number: u32| directory.path().join(format!("{number}.db"));
        let server = start(&own_loopback(), &database(0));
        let address = server.local_addr().to_string();
        let url = format!("http://{address}");
        let clients: Vec<_> = (0..3)
            .map(|number| connected(SessionClient::builder(format!("app {number}")).server_url(&*url)))
            .collect();
        let before = server.store().get_all_sessions().unwrap();
        let done = clients[1].task("done while it was away");
        server.shutdown();
        eventually("the clients notice", || clients.iter().all(|client| !client.is_connected()));
        let _task = clients[0].task("begun while it was away");
        drop(done);
        let server = start(&address, &database(1));
        eventually("all are back", || {
            clients.iter().all(SessionClient::is_connected)
                && server.store().get_all_sessions().unwrap().len() == clients.len()
        });
        let rows = server.store().get_all_sessions().unwrap();
        let row = |at: usize| rows.iter().find(|row| row.session_id == clients[at].id()).expect("the same id");
        assert_eq!((&row(0).status, row(0).current_task.as_deref()), (&TrackedStatus::Running, Some("begun while it was away")));
        assert_eq!((&row(1).status, &row(1).current_task), (&TrackedStatus::Idle, &None));
        for old in &before {
            let new = rows.iter().find(|new| new.session_id == old.session_id).unwrap();
            assert_eq!((&new.app_name, new.pid), (&old.app_name, old.pid));
            assert!(new.duration_seconds >= old.duration_seconds, "it did not start anew");
        }
        assert_eq!(log.count("offline"), 3, "{:?}", log.lines());
        // A kill finds its way on the new list.
        assert!(server.kill(&clients[2].id()).unwrap());
        assert!(clients[2].cancel_token().wait_timeout(GENEROUS));
        assert!(!clients[0].is_killed() && !clients[1].is_killed());
        drop(clients);
        eventually("they leave the list", || server.store().get_all_sessions().unwrap().is_empty());
    }
}
