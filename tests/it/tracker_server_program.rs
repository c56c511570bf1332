//! `remuda serve` and the commands around it, as programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use remuda::{SessionClient, TrackerServer};
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{connected, eventually};
use crate::support::{GENEROUS, ScratchDir, isolated, poll};
use crate::tracker_support::{Http, Served, call};

isolated! {
    /// The script plays the ancestor's client and dashboard.
    fn the_ancestors_python_clients_work_unchanged() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        the_ancestor_is_content(&[&server.url()]);
        let short = TrackerServer::builder()
            .listen("127.0.0.1:0")
            .database(":memory:")
            .stale_after(Duration::from_millis(300))
            .purge_after(Duration::from_secs(600))
            .start()
            .unwrap();
        the_ancestor_is_content(&[&format!("http://{}", short.local_addr()), "silence"]);
    }
}

fn the_ancestor_is_content(args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/ancestor.py");
    let (status, stdout, stderr) = outcome(Command::new("python3").arg(script).args(args).output().unwrap());
    assert_eq!((status, stdout.as_str()), (Some(0), "the ancestor is content\n"), "{stderr}");
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
        fs::create_dir(directory.path().join("folder")).unwrap();
        let foreign = rusqlite::Connection::open(directory.path().join("foreign.db")).unwrap();
        foreign.execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
        directory.write("a", "text".repeat(1_000));
        let server = Served::start(directory.path(), "used.db");
        let address = server.address.to_string();
        for (args, said) in [
            (&["--listen", "0.0.0.0:0"][..], "takes access tokens"),
            (&["--listen", "here"][..], "127.0.0.1:8000"),
            (&["--listen", &address, "--db", ":memory:"][..], "cannot listen on"),
            (&["--listen", "127.0.0.1:0", "--db", "used.db"][..], "another tracker uses it"),
            (&["--listen", "127.0.0.1:0", "--db", "text.db"][..], "not a database"),
            (&["--listen", "127.0.0.1:0", "--db", ""][..], "path is empty"),
            (&["--listen", "127.0.0.1:0", "--db", "folder"][..], "it is a directory"),
            (&["--listen", "127.0.0.1:0", "--db", "foreign.db"][..], "another program"),
            (&["--listen", "127.0.0.1:0", "--db", "a"][..], "(a)"),
            (&["--listen", "127.0.0.1:0", "--db", "no/such/directory/x.db"][..], "lock file"),
        ] {
            let (status, stdout, stderr) =
                outcome(remuda(directory.path(), &[&["serve"], args].concat()).output().unwrap());
            assert_eq!((status, stdout.as_str()), (Some(2), ""), "{args:?}");
            assert!(stderr.contains(said), "{args:?}: {stderr}");
            let database = Path::new(args.last().unwrap());
            let named = directory.path().join(database).display().to_string();
            assert!(stderr.matches(&named).count() <= 1 || args[3..] == [""], "{stderr}");
        }
        for refused in ["text.db", "foreign.db", "folder"] {
            let lock = directory.path().join(format!("{refused}-lock"));
            assert!(!lock.exists(), "nothing is left beside {refused}");
        }
        assert!(directory.path().join("used.db-lock").exists());
    }
}

isolated! {
    /// Whatever the umask is.
    fn a_new_database_is_for_its_owner_alone() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "new.db");
        Http::connect(server.address).register("a");
        for file in ["new.db", "new.db-wal", "new.db-lock"] {
            let metadata = fs::metadata(directory.path().join(file)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{file}");
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

isolated! {
    fn clients_carry_on_after_a_server_was_killed_and_a_kill_that_was_pending_arrives() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        let (address, url) = (server.address.to_string(), server.url());
        let client = || connected(SessionClient::builder("app").server_url(&url));
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
        // If a busy machine did not get it through in time, it comes now.
        eventually("its task is shown", || {
            let row = Http::connect(server.address).row(neighbour.id().as_str()).unwrap();
            row["status"] == "running" && row["current_task"] == "goes on"
        });
        assert!(!neighbour.is_killed());
        drop(task);
        drop((victim, neighbour));
        eventually("they leave the list", || Http::connect(server.address).list().is_empty());
    }
}
