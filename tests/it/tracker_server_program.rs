//! `remuda serve` and the commands around it, as programs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use remuda::SessionClient;
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::support::{GENEROUS, ScratchDir, isolated, poll};
use crate::tracker_support::{Http, call};

/// A running `remuda serve`; killed and reaped at its end.
struct Served {
    child: Child,
    address: SocketAddr,
}

impl Served {
    fn start(directory: &Path, database: &str) -> Served {
        Served::from(remuda(directory, &["serve", "--listen", "127.0.0.1:0", "--db", database]))
    }

    fn from(mut command: Command) -> Served {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split(['/', ',']).nth(2).and_then(|address| address.parse().ok());
        Served { child, address: address.unwrap_or_else(|| panic!("no address in {line:?}")) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

isolated! {
    /// The script plays the ancestor's client and dashboard.
    fn the_ancestors_python_clients_work_unchanged() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/ancestor.py");
        let (status, stdout, stderr) =
            outcome(Command::new("python3").arg(script).arg(server.url()).output().unwrap());
        assert_eq!((status, stdout.as_str()), (Some(0), "the ancestor is content\n"), "{stderr}");
    }
}

isolated! {
    fn sessions_are_listed_and_killed_from_the_command_line() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), ":memory:");
        let url = server.url();
        let run = |args: &[&str]| {
            outcome(remuda(directory.path(), &[args, &["--server", &url]].concat()).output().unwrap())
        };
        let (status, stdout, _) = run(&["ps", "--json"]);
        assert_eq!((status, stdout.as_str()), (Some(0), ""));
        let mut http = Http::connect(server.address);
        let me = json!({"app_name": "team/app x", "user_id": "\u{1b}[2J", "status": "running"});
        http.ok("POST", "/sessions", &me);
        let (one, two) = (http.register("a"), http.register("a"));

        let (status, stdout, _) = run(&["ps"]);
        assert_eq!((status, stdout.lines().count()), (Some(0), 4), "{stdout}");
        assert!(stdout.contains("team/app x") && stdout.contains(&one), "{stdout}");
        assert!(!stdout.contains('\u{1b}'), "a name cannot write to the terminal");
        let (_, stdout, _) = run(&["ps", "--json"]);
        let rows: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0]["session_id"], *two);

        let (status, _, stderr) = run(&["kill", &one, "nobody"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("nobody"), "{stderr}");
        assert_eq!(http.row(&one).unwrap()["kill_requested"], false, "all or nothing");
        let (status, stdout, _) = run(&["kill", &one]);
        assert_eq!((status, stdout), (Some(0), format!("kill requested: {one}, receipt 1\n")));
        assert_eq!(http.row(&one).unwrap()["kill_requested"], true);
        assert_eq!(http.row(&two).unwrap()["kill_requested"], false);
        let (status, stdout, _) = run(&["kill", "--app", "team/app x"]);
        assert!(stdout.starts_with("kill requested: 1 of team/app x\n"), "{stdout}");
        assert_eq!((status, stdout.lines().count()), (Some(0), 2));
        let (status, stdout, _) = run(&["cleanup"]);
        assert_eq!((status, stdout.as_str()), (Some(0), "0 removed\n"));
        let (_, stdout, _) = run(&["cleanup", "--older-than", "0"]);
        assert_eq!(stdout, "3 removed\n");
        drop(http);
        drop(server);
        let (status, _, stderr) = run(&["ps"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("does not answer"), "{stderr}");
    }
}

isolated! {
    fn sigterm_ends_the_server_in_good_order() {
        let directory = ScratchDir::new();
        let mut server = Served::start(directory.path(), "remuda.db");
        let mut http = Http::connect(server.address);
        let id = http.register("a");
        http.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
        // Its answer proves that the beat before it is there.
        Http::connect(server.address).list();
        server.signal(rustix::process::Signal::TERM);
        assert_eq!(http.answer().unwrap().json(), json!({"kill_requested": false}));
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        assert!(!directory.path().join("remuda.db-wal").exists(), "the database is closed");
        let server = Served::start(directory.path(), "remuda.db");
        assert!(Http::connect(server.address).row(&id).is_some());
    }
}

isolated! {
    fn what_serve_cannot_use_is_refused() {
        let directory = ScratchDir::new();
        directory.write("text.db", "this is no database, it only lies where one should be".repeat(100));
        let server = Served::start(directory.path(), "used.db");
        let address = server.address.to_string();
        for (args, said) in [
            (&["--listen", "0.0.0.0:0"][..], "no access tokens yet"),
            (&["--listen", "here"][..], "127.0.0.1:8000"),
            (&["--listen", &address, "--db", ":memory:"][..], "cannot listen on"),
            (&["--listen", "127.0.0.1:0", "--db", "used.db"][..], "another tracker uses it"),
            (&["--listen", "127.0.0.1:0", "--db", "text.db"][..], "not a database"),
            (&["--listen", "127.0.0.1:0", "--db", ""][..], "path is empty"),
            (&["--listen", "127.0.0.1:0", "--db", "no/such/directory/x.db"][..], "lock file"),
        ] {
            let (status, stdout, stderr) =
                outcome(remuda(directory.path(), &[&["serve"], args].concat()).output().unwrap());
            assert_eq!((status, stdout.as_str()), (Some(2), ""), "{args:?}");
            assert!(stderr.contains(said), "{args:?}: {stderr}");
        }
    }
}

isolated! {
    /// SQLite would take it for an address: of a file in memory, say, of which each connection has its own.
    fn a_database_whose_name_begins_with_file_and_a_colon_is_a_file() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "file:x.db?mode=memory");
        let mut http = Http::connect(server.address);
        let id = http.register("a");
        assert!(http.row(&id).is_some());
        assert!(directory.path().join("file:x.db?mode=memory").is_file());
    }
}

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
fn load(address: SocketAddr, worker: usize, acknowledged: &Mutex<Acknowledged>, running: &AtomicBool) {
    let mut http = Http::connect(address);
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
        running.store(true, Ordering::SeqCst);
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
            let running = Arc::new(AtomicBool::new(false));
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (address, acknowledged, running) =
                        (server.address, Arc::clone(&acknowledged), Arc::clone(&running));
                    thread::Builder::new().spawn(move || load(address, worker, &acknowledged, &running)).unwrap()
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
        let rows: std::collections::HashMap<String, Value> =
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

isolated! {
    fn clients_carry_on_after_a_server_was_killed_and_a_kill_that_was_pending_arrives() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        let (address, url) = (server.address.to_string(), server.url());
        let client = || SessionClient::builder("app").server_url(&url).start().unwrap();
        let (victim, neighbour) = (client(), client());
        let task = neighbour.task("goes on");
        server.signal(rustix::process::Signal::KILL);
        drop(server);
        poll(|| !victim.is_connected() && !neighbour.is_connected(), || "nobody notices".to_owned());
        // Where the clients do not look: the kill stays pending, and this server is killed as well.
        let elsewhere = Served::start(directory.path(), "remuda.db");
        let kill = format!("/sessions/{}/kill", victim.id());
        assert_eq!(call(elsewhere.address, "POST", &kill, "").status, 200);
        elsewhere.signal(rustix::process::Signal::KILL);
        drop(elsewhere);
        assert!(!victim.is_killed());
        let server =
            Served::from(remuda(directory.path(), &["serve", "--listen", &address, "--db", "remuda.db"]));
        assert!(victim.cancel_token().wait_timeout(GENEROUS), "the kill does not arrive");
        poll(|| neighbour.is_connected(), || "the neighbour does not come back".to_owned());
        let row = Http::connect(server.address).row(neighbour.id().as_str()).unwrap();
        assert_eq!((&row["status"], &row["current_task"]), (&json!("running"), &json!("goes on")));
        assert!(!neighbour.is_killed());
        drop(task);
        drop((victim, neighbour));
        assert!(Http::connect(server.address).list().is_empty());
    }
}

isolated! {
    /// The limit on file sizes stands for a full disk.
    fn a_full_disk_refuses_what_must_be_kept_and_goes_on_with_beats() {
        let directory = ScratchDir::new();
        let program = env!("CARGO_BIN_EXE_remuda");
        let mut command = Command::new("sh");
        // An ignored SIGXFSZ stays ignored in the program, so that writing fails instead of killing.
        command.arg("-c").arg(format!(
            "trap '' XFSZ; ulimit -f 400; exec '{program}' serve --listen 127.0.0.1:0 --db small.db"
        ));
        command.current_dir(directory.path()).stderr(Stdio::null());
        let server = Served::from(command);
        let mut http = Http::connect(server.address);
        let id = http.register("a");
        let body = json!({"app_name": "a", "user_id": "u".repeat(20_000)}).to_string();
        let refused = loop {
            let answer = http.call("POST", "/sessions", &body);
            if answer.status != 200 {
                break answer;
            }
        };
        assert_eq!(refused.status, 503);
        assert!(refused.json()["detail"].as_str().unwrap().starts_with("the tracker's database"));
        let beat = http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
        assert_eq!(beat["kill_requested"], false);
        assert!(!http.list().is_empty());
        assert_eq!(call(server.address, "GET", "/", "").status, 200);
    }
}
