//! Client and server together, over real sockets.

use std::sync::mpsc;
use std::time::Duration;

use remuda::{SessionClient, TrackedId, TrackedStatus, TrackerServer};
use serde_json::json;

use crate::scripted_server::{connected, eventually, takes_effect};
use crate::support::{GENEROUS, ScratchDir, isolated, own_loopback};

fn server() -> TrackerServer {
    TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap()
}

fn url(server: &TrackerServer) -> String {
    format!("http://{}", server.local_addr())
}

fn client(server: &TrackerServer) -> SessionClient {
    connected(SessionClient::builder("pair").user_id("ada").server_url(url(server)))
}

/// A thousand clients and their server hold four descriptors each.
fn raise_the_file_limit() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, maximum: files.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

isolated! {
    fn a_tracked_session_is_listed_with_its_task_and_attachments_and_leaves_at_its_end() {
        let server = server();
        let client = client(&server);
        client.attach("pool", || json!({"idle": 4}));
        let status = || server.store().get_all_sessions().unwrap().remove(0).status;
        let task = takes_effect(|| client.task("work"), || status() == TrackedStatus::Running);
        let rows = server.store().get_all_sessions().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].session_id, client.id());
        assert_eq!((rows[0].app_name.as_str(), rows[0].user_id.as_deref()), ("pair", Some("ada")));
        assert_eq!((&rows[0].status, rows[0].current_task.as_deref()), (&TrackedStatus::Running, Some("work")));
        assert_eq!(rows[0].pid, Some(std::process::id()));
        takes_effect(|| drop(task), || status() == TrackedStatus::Idle);
        takes_effect(|| drop(client), || server.store().get_all_sessions().unwrap().is_empty());
        server.shutdown();
    }
}

isolated! {
    fn a_kill_reaches_one_of_many_and_no_other() {
        let server = server();
        let clients: Vec<_> = (0..100).map(|_| client(&server)).collect();
        let (heard, kills) = mpsc::channel();
        for client in &clients {
            let (heard, id) = (heard.clone(), client.id());
            client.on_kill(move || heard.send(id).unwrap());
        }
        for victim in [17, 3, 99] {
            assert!(server.kill(&clients[victim].id()).unwrap());
            assert_eq!(kills.recv_timeout(GENEROUS), Ok(clients[victim].id()));
        }
        let alive = clients.iter().filter(|client| !client.is_killed()).count();
        assert_eq!(alive, 97);
        assert_eq!(kills.try_recv(), Err(mpsc::TryRecvError::Empty));
        server.shutdown();
        drop(clients);
    }
}

isolated! {
    /// A thousand clients as an app would have them, with their threads and connections.
    fn of_a_thousand_sessions_in_one_process_a_random_one_is_killed_and_all_others_live() {
        raise_the_file_limit();
        let server = server();
        let url = url(&server);
        let clients: Vec<SessionClient> = std::thread::scope(|threads| {
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| {
                        let start = |_| SessionClient::builder("thousand").server_url(&*url).start().unwrap();
                        (0..125).map(start).collect::<Vec<_>>()
                    })
                })
                .collect();
            starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect()
        });
        eventually("all are registered", || server.store().get_all_sessions().unwrap().len() == 1_000);
        let (heard, kills) = mpsc::channel();
        for client in &clients {
            let (heard, id) = (heard.clone(), client.id());
            client.on_kill(move || heard.send(id).unwrap());
        }
        // Ids are random: the smallest belongs to a random client.
        let victim = clients.iter().map(SessionClient::id).min().unwrap();
        assert!(server.kill(&victim).unwrap());
        assert_eq!(kills.recv_timeout(GENEROUS), Ok(victim.clone()));
        for client in &clients {
            assert_eq!(client.is_killed(), client.id() == victim);
            assert_eq!(client.cancel_token().is_cancelled(), client.id() == victim);
        }
        assert_eq!(kills.try_recv(), Err(mpsc::TryRecvError::Empty), "somebody else heard a kill");
        let rows = server.store().get_all_sessions().unwrap();
        assert_eq!(rows.len(), 1_000);
        assert!(rows.iter().all(|row| row.kill_requested == (row.session_id == victim)));
        std::thread::scope(|threads| {
            for part in clients.chunks(125) {
                threads.spawn(|| part.iter().for_each(SessionClient::stop));
            }
        });
        // Each callback has run once by now: one for the kill, the others for the end.
        let ended: std::collections::BTreeSet<_> = kills.try_iter().collect();
        assert_eq!(ended.len(), 999);
        assert!(!ended.contains(&victim));
        eventually("they leave the list", || server.store().get_all_sessions().unwrap().is_empty());
        server.shutdown();
        drop(clients);
    }
}

isolated! {
    fn clients_carry_on_over_a_restart_and_hear_the_kill_that_was_pending() {
        let directory = ScratchDir::new();
        let database = directory.path().join("tracker.db");
        let start = |listen: String| TrackerServer::builder().listen(listen).database(&database).start();
        let server = start(own_loopback()).unwrap();
        let address = server.local_addr().to_string();
        let (victim, other) = (client(&server), client(&server));
        let _task = other.task("goes on");
        server.shutdown();
        eventually("the clients notice", || !victim.is_connected() && !other.is_connected());
        // A kill that comes in while the clients are away: by another connection to the same file.
        let server = start(address).unwrap();
        assert!(server.store().request_kill(&victim.id()).unwrap());
        assert!(victim.cancel_token().wait_timeout(GENEROUS));
        eventually("the other one is back", || other.is_connected());
        eventually("with its task", || {
            let rows = server.store().get_all_sessions().unwrap();
            let row = rows.iter().find(|row| row.session_id == other.id()).unwrap();
            row.current_task.as_deref() == Some("goes on")
        });
        assert!(!other.is_killed());
        drop((victim, other));
        server.shutdown();
    }
}

isolated! {
    fn a_session_that_was_cleaned_up_comes_back_with_its_id() {
        let server = server();
        let client = client(&server);
        let id: TrackedId = client.id();
        eventually("it is gone", || server.store().delete_session(&id).unwrap());
        // Nothing answers the parked beat of a row that was removed in the store itself; a status does.
        eventually("it is back", || {
            drop(client.task("knock"));
            server.store().get_all_sessions().unwrap().iter().any(|row| row.session_id == id)
        });
        assert!(server.kill(&id).unwrap());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
        server.shutdown();
    }
}

isolated! {
    fn stopping_is_quick_with_a_parked_beat() {
        let server = server();
        // Each stop ends a parked beat; a wait for its end would take half a minute each.
        for _ in 0..20 {
            let client = client(&server);
            eventually("a beat", || server.store().get_all_sessions().unwrap().len() == 1);
            let (done, stopped) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                client.stop();
                done.send(()).unwrap();
            });
            stopped.recv_timeout(Duration::from_secs(20)).expect("stop returns");
            thread.join().unwrap();
        }
        server.shutdown();
    }
}
