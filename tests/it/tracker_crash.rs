//! `kill -9` of a real server under load: what it has acknowledged is there afterwards.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{ScratchDir, isolated, poll};
use crate::tracker_support::{Http, Served};

/// What the server has acknowledged about one session.
#[derive(Default)]
struct Acknowledged {
    registered: Vec<String>,
    statuses: Vec<(String, String)>,
    killed: Vec<String>,
    deleted: Vec<String>,
    /// A status or deletion that was sent; whether it took place nobody knows.
    open: Vec<String>,
}

/// Registers, beats, works, kills and deletes until the server is gone.
fn load(mut http: Http, worker: usize, acknowledged: &Mutex<Acknowledged>) {
    for round in 0.. {
        let mut exchange = |method: &str, target: &str, body: &Value| -> Option<Value> {
            http.send(method, target, &body.to_string());
            let answer = http.answer()?;
            assert_eq!(answer.status, 200);
            Some(answer.json())
        };
        let mut step = || -> Option<()> {
            let created = exchange("POST", "/sessions", &json!({"app_name": format!("w{worker}")}))?;
            let id = created["session_id"].as_str()?.to_owned();
            acknowledged.lock().unwrap().registered.push(id.clone());
            exchange("POST", &format!("/sessions/{id}/heartbeat"), &json!({}))?;
            acknowledged.lock().unwrap().open.push(id.clone());
            let status = format!("s{round}");
            exchange("PUT", &format!("/sessions/{id}/status"), &json!({ "status": status }))?;
            acknowledged.lock().unwrap().statuses.push((id.clone(), status));
            match round % 3 {
                0 => {
                    exchange("POST", &format!("/sessions/{id}/kill"), &json!({}))?;
                    acknowledged.lock().unwrap().killed.push(id.clone());
                }
                1 => {
                    exchange("DELETE", &format!("/sessions/{id}"), &json!({}))?;
                    acknowledged.lock().unwrap().deleted.push(id.clone());
                }
                _ => {}
            }
            let mut acknowledged = acknowledged.lock().unwrap();
            acknowledged.open.retain(|open| *open != id);
            Some(())
        };
        if step().is_none() {
            return;
        }
    }
}

isolated! {
    fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
        let directory = ScratchDir::new();
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        for _ in 0..3 {
            let before = acknowledged.lock().unwrap().registered.len();
            let server = Served::start(directory.path(), "remuda.db");
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    // Here: the others may have done all that is waited for before this thread begins.
                    let (http, acknowledged) = (Http::connect(server.address), Arc::clone(&acknowledged));
                    thread::Builder::new().spawn(move || load(http, worker, &acknowledged)).unwrap()
                })
                .collect();
            poll(
                || acknowledged.lock().unwrap().registered.len() >= before + 60,
                || "the load does not get going".to_owned(),
            );
            server.signal(rustix::process::Signal::KILL);
            for worker in workers {
                worker.join().unwrap();
            }
            drop(server);
        }
        let server = Served::start(directory.path(), "remuda.db");
        let mut http = Http::connect(server.address);
        let rows: HashMap<String, Value> =
            http.list().into_iter().map(|row| (row["session_id"].as_str().unwrap().to_owned(), row)).collect();
        let acknowledged = acknowledged.lock().unwrap();
        for id in &acknowledged.registered {
            let gone = acknowledged.deleted.contains(id) || acknowledged.open.contains(id);
            assert!(gone || rows.contains_key(id), "a registration was lost");
        }
        for id in &acknowledged.deleted {
            assert!(!rows.contains_key(id), "a deletion was lost");
        }
        for (id, status) in &acknowledged.statuses {
            assert!(rows.get(id).is_none_or(|row| row["status"] == **status), "a status was lost");
        }
        for id in &acknowledged.killed {
            assert_eq!(rows[id]["kill_requested"], true, "a kill was lost");
            let beat = http.ok("POST", &format!("/sessions/{id}/heartbeat?wait=60"), &Value::Null);
            assert_eq!(beat["kill_requested"], true, "a pending kill does not arrive");
        }
        assert!(rows.values().all(|row| row["is_stale"] == false), "nobody is stale right after a restart");
        assert!(acknowledged.killed.len() > 10 && acknowledged.deleted.len() > 10);
    }
}

/// When each session's last beat was acknowledged, and the longest that a durable change took meanwhile.
#[derive(Default)]
struct Beaten {
    last: HashMap<String, Instant>,
    slowest: Duration,
}

/// Registers a few sessions and has them beat, and register more, until the server is gone.
fn beat(address: SocketAddr, begun: &AtomicUsize) -> Beaten {
    let mut http = Http::connect(address);
    let mut beaten = Beaten::default();
    let ids: Vec<String> = (0..8).map(|_| http.register("beats")).collect();
    begun.fetch_add(1, Ordering::SeqCst);
    loop {
        for id in &ids {
            http.send("POST", &format!("/sessions/{id}/heartbeat"), "");
            let Some(answer) = http.answer() else { return beaten };
            assert_eq!(answer.status, 200);
            beaten.last.insert(id.clone(), Instant::now());
        }
        let before = Instant::now();
        http.send("POST", "/sessions", r#"{"app_name":"more"}"#);
        let answer = http.answer();
        // Also of one that the kill cut off: it was that slow at least.
        beaten.slowest = beaten.slowest.max(before.elapsed());
        if answer.is_none() {
            return beaten;
        }
    }
}

isolated! {
    fn at_most_one_second_of_beats_is_lost_when_the_server_is_killed_under_load() {
        let directory = ScratchDir::new();
        for _ in 0..3 {
            let server = Served::start(directory.path(), "remuda.db");
            let begun = Arc::new(AtomicUsize::new(0));
            let workers: Vec<_> = (0..3)
                .map(|_| {
                    let (address, begun) = (server.address, Arc::clone(&begun));
                    thread::Builder::new().spawn(move || beat(address, &begun)).unwrap()
                })
                .collect();
            poll(|| begun.load(Ordering::SeqCst) == 3, || "nobody registers".to_owned());
            let started = Instant::now();
            poll(|| started.elapsed() > Duration::from_millis(2_500), || "time stands still".to_owned());
            server.signal(rustix::process::Signal::KILL);
            let beaten: Vec<Beaten> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            drop(server);
            // On a machine that is slow at the moment everything is, the writing of beats included.
            let slowest = beaten.iter().map(|beaten| beaten.slowest).max().unwrap();
            let allowed = Duration::from_secs(1) + 4 * slowest;

            let server = Served::start(directory.path(), "remuda.db");
            let asked = Instant::now();
            let rows = Http::connect(server.address).list();
            let ages: HashMap<&str, f64> = rows
                .iter()
                .map(|row| (row["session_id"].as_str().unwrap(), row["beat_age_seconds"].as_f64().unwrap()))
                .collect();
            for (id, last) in beaten.iter().flat_map(|beaten| &beaten.last) {
                // Between the beat that the disk has and the last one that was acknowledged.
                let lost = ages[id.as_str()] - (asked - *last).as_secs_f64();
                assert!(lost <= allowed.as_secs_f64(), "{lost} s of beats are lost, allowed {allowed:?}");
            }
            assert_eq!(beaten.iter().map(|beaten| beaten.last.len()).sum::<usize>(), 24);
        }
    }
}
