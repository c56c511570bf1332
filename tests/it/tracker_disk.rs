//! A disk that is full, files that must not be written, a file that disappears: the server as a program.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use remuda::TrackerServer;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{collect_log, eventually};
use crate::support::{ScratchDir, isolated, poll};
use crate::tracker_support::{Answer, Http, Served, call};

/// Caps the size of the server's files, which stands for a disk that is full; `None` takes the cap away.
fn cap_files(server: &Served, bytes: Option<u64>) {
    let pid = Some(Pid::from_child(&server.child));
    rustix::process::prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

fn is_refused_by_the_database(answer: &Answer) {
    assert_eq!(answer.status, 503);
    let body = answer.json();
    assert!(body["detail"].as_str().unwrap().starts_with("the tracker's database: "), "{body}");
}

fn status(server: &Served, path: &str) -> u16 {
    call(server.address, "GET", path, "").status
}

isolated! {
    fn a_full_disk_refuses_what_must_be_kept_goes_on_with_beats_and_recovers() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "small.db");
        let mut http = Http::connect(server.address);
        let (one, two) = (http.register("a"), http.register("a"));
        let path = |id: &str, what: &str| format!("/sessions/{id}{what}");
        http.ok("POST", &path(&one, "/kill"), &Value::Null);
        assert_eq!(status(&server, "/readyz"), 200);

        // It becomes full in the middle of changes.
        cap_files(&server, Some(200_000));
        let large = json!({"app_name": "a", "user_id": "u".repeat(20_000)}).to_string();
        let mut registered = 2;
        let refused = loop {
            let answer = http.call("POST", "/sessions", &large);
            if answer.status != 200 {
                break answer;
            }
            registered += 1;
        };
        is_refused_by_the_database(&refused);
        // Now not even the smallest change fits.
        cap_files(&server, Some(1));
        for (method, target, body) in [
            ("POST", "/sessions".to_owned(), r#"{"app_name":"a"}"#),
            ("PUT", path(&two, "/status"), r#"{"status":"running"}"#),
            ("POST", path(&two, "/kill"), ""),
            ("DELETE", path(&two, ""), ""),
        ] {
            is_refused_by_the_database(&http.call(method, &target, body));
        }
        is_refused_by_the_database(&http.call("GET", "/readyz", ""));
        assert_eq!(status(&server, "/livez"), 200, "a restart would not help");
        // Beats are taken, and bring the kills that are on the disk.
        let beat = |http: &mut Http, id: &str| http.ok("POST", &path(id, "/heartbeat"), &Value::Null);
        assert_eq!(beat(&mut http, &one)["kill_requested"], true);
        assert_eq!(beat(&mut http, &two)["kill_requested"], false, "what was refused did not happen");
        assert_eq!(http.list().len(), registered);
        assert_eq!(http.row(&two).unwrap()["status"], "idle");

        cap_files(&server, None);
        poll(|| status(&server, "/readyz") == 200, || "it does not recover by itself".to_owned());
        http.ok("DELETE", &path(&two, ""), &Value::Null);
        let three = http.register("a");
        server.signal(Signal::KILL);
        drop(server);
        let server = Served::start(directory.path(), "small.db");
        let mut http = Http::connect(server.address);
        assert_eq!(http.list().len(), registered, "nothing that was acknowledged is lost");
        assert!(http.row(&two).is_none() && http.row(&three).is_some());
        assert_eq!(beat(&mut http, &one)["kill_requested"], true);
    }
}

isolated! {
    fn of_a_database_that_is_taken_away_a_warning_tells_though_nobody_asks() {
        let log = collect_log();
        let directory = ScratchDir::new();
        let file = directory.path().join("remuda.db");
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(&file);
        // It looks every 20 ms.
        let silence = Duration::from_millis(400);
        let _server = server.stale_after(silence).purge_after(silence).start().unwrap();
        fs::remove_file(&file).unwrap();
        eventually("a warning tells", || log.count("is gone or another one") > 0);
    }
}

isolated! {
    fn a_database_that_is_taken_away_is_noticed() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        let (here, aside) = (directory.path().join("remuda.db"), directory.path().join("aside.db"));
        assert_eq!(status(&server, "/readyz"), 200);
        fs::rename(&here, &aside).unwrap();
        let answer = call(server.address, "GET", "/readyz", "");
        is_refused_by_the_database(&answer);
        fs::write(&here, "somebody else's").unwrap();
        assert_eq!(status(&server, "/readyz"), 503, "another file in its place is no comfort");
        fs::rename(&aside, &here).unwrap();
        assert_eq!(status(&server, "/readyz"), 200);
    }
}

isolated! {
    /// It may be a part of a larger program, which has its own reasons to go elsewhere.
    fn a_server_keeps_its_database_when_its_process_changes_its_working_directory() {
        let (directory, elsewhere) = (ScratchDir::new(), ScratchDir::new());
        std::env::set_current_dir(directory.path()).unwrap();
        let server = TrackerServer::builder().listen("127.0.0.1:0").database("here.db").start().unwrap();
        std::env::set_current_dir(elsewhere.path()).unwrap();
        let mut http = Http::connect(server.local_addr());
        http.register("a");
        assert_eq!(http.list().len(), 1);
        server.store().check().unwrap();
        server.shutdown();
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(directory.path().join("here.db").is_file());
        std::env::set_current_dir(std::env::temp_dir()).unwrap();
    }
}

/// Runs `remuda serve` as somebody for whom permissions count; `None` if that cannot be.
fn serve_unprivileged(directory: &Path) -> Option<Output> {
    let mut command = remuda(directory, &["serve", "--listen", "127.0.0.1:0", "--db", "remuda.db"]);
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED: another user cannot run the program from here");
            return None;
        }
        child => child.unwrap(),
    };
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if !line.is_empty() {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it runs: {line}");
    }
    Some(child.wait_with_output().unwrap())
}

isolated! {
    fn a_database_that_must_not_be_written_is_refused_and_left_as_it_is() {
        let directory = ScratchDir::new();
        let database = directory.path().join("remuda.db");
        let server = Served::start(directory.path(), "remuda.db");
        Http::connect(server.address).register("a");
        server.signal(Signal::TERM);
        poll(|| !directory.path().join("remuda.db-wal").exists(), || "the server does not end".to_owned());
        drop(server);
        let before = fs::read(&database).unwrap();
        let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        allow(&database, 0o444);
        allow(&directory.path().join("remuda.db-lock"), 0o666);
        for (mode, said) in [(0o777, "must not be written"), (0o555, "ermission denied")] {
            if mode == 0o555 {
                fs::remove_file(directory.path().join("remuda.db-lock")).unwrap();
            }
            allow(directory.path(), mode);
            let Some(output) = serve_unprivileged(directory.path()) else { break };
            let (status, stdout, stderr) = outcome(output);
            assert_eq!((status, stdout.as_str()), (Some(2), ""), "{stderr}");
            assert!(stderr.contains("the tracker's database: ") && stderr.contains(said), "{stderr}");
            assert!(stderr.contains("remuda.db"), "it names the file: {stderr}");
        }
        allow(directory.path(), 0o755);
        assert!(fs::read(&database).unwrap() == before, "the file was changed");
        allow(&database, 0o644);
        let server = Served::start(directory.path(), "remuda.db");
        assert_eq!(Http::connect(server.address).list().len(), 1);
    }
}
