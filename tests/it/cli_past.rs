//! `remuda history`, `remuda events` and `remuda audit`.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdout, Stdio};

use remuda::TrackerServer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{Reply, ScriptedServer, nobody};
use crate::support::{ScratchDir, isolated};
use crate::tracker_support::{Http, Served, server};

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789";

fn run(directory: &ScratchDir, url: &str, args: &[&str]) -> (Option<i32>, String, String) {
    outcome(remuda(directory.path(), &[args, &["--server", url]].concat()).output().unwrap())
}

fn url(server: &TrackerServer) -> String {
    format!("http://{}", server.local_addr())
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

isolated! {
    fn the_command_line_lists_who_is_no_more() {
        let directory = ScratchDir::new();
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut ids = Vec::new();
        for (app, user) in [("a", "ann"), ("evil\u{1b}[2J", "bob"), ("a", "cid")] {
            let created = http.ok("POST", "/sessions", &json!({"app_name": app, "user_id": user}));
            ids.push(created["session_id"].as_str().unwrap().to_owned());
            http.ok("DELETE", &format!("/sessions/{}", ids.last().unwrap()), &Value::Null);
        }
        let run = |args: &[&str]| {
            let (status, stdout, stderr) = run(&directory, &url(&server), args);
            assert_eq!((status, stderr.as_str()), (Some(0), ""));
            stdout
        };
        let table = run(&["history"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines.len() == 4 && lines[0].starts_with("ENDED") && lines[0].ends_with("RAN FOR"), "{table}");
        assert!(lines[1].contains(&ids[2]) && lines[1].contains("cid") && lines[1].contains("ended, left"), "{table}");
        assert!(lines[2].contains("evil\u{fffd}[2J") && !table.contains('\u{1b}'), "{table}");
        let users = |args: &[&str]| {
            let found = rows(&run(&[&["history", "--json"], args].concat()));
            found.iter().map(|row| row["user_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(users(&[]), ["cid", "bob", "ann"]);
        assert_eq!(users(&["--limit", "2"]), ["cid", "bob"]);
        assert_eq!(users(&["--app", "a"]), ["cid", "ann"]);
        assert_eq!(users(&["--session", &ids[1]]), ["bob"]);
        assert_eq!(run(&["history", "--app", "none"]).lines().count(), 1, "a table says that it is empty");
        assert_eq!(run(&["history", "--app", "none", "--json"]), "");
    }
}

isolated! {
    fn the_command_line_lists_more_of_the_past_than_a_page_holds() {
        let directory = ScratchDir::new();
        let server = server();
        for _ in 0..1_002 {
            let id = server.store().create_session("a", None).unwrap();
            assert!(server.store().delete_session(&id).unwrap());
        }
        for (args, count) in [(&["--json"][..], 1_002), (&["--json", "--limit", "1001"], 1_001), (&[], 1_003)] {
            let (status, stdout, stderr) = run(&directory, &url(&server), &[&["history"], args].concat());
            assert_eq!((status, stdout.lines().count()), (Some(0), count), "{stderr}");
        }
        // Registered and ended, each of them.
        let (_, stdout, _) = run(&directory, &url(&server), &["events", "--json"]);
        assert_eq!(stdout.lines().count(), 2_004);
    }
}

isolated! {
    fn the_command_line_lists_who_has_asked_for_what() {
        let directory = ScratchDir::new();
        let private = |name: &str, text: &str| {
            let path = directory.write(name, text);
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        };
        private("tokens", &format!("operator ops {OPERATOR}\nviewer {VIEWER}\n"));
        private("operator", OPERATOR);
        private("viewer", VIEWER);
        let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:", "--tokens", "tokens"];
        let server = Served::from(remuda(directory.path(), &args));
        let run = |args: &[&str]| run(&directory, &server.url(), args);
        let mut http = Http::connect(server.address).with_token(OPERATOR);
        let id = http.register("a");
        http.ok("POST", &format!("/sessions/{id}/kill"), &json!({"requested_by": "the boss", "reason": "it\nhangs"}));
        http.ok("POST", "/apps/a/pause-all", &Value::Null);

        let (status, stdout, stderr) = run(&["audit", "--token-file", "operator"]);
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!((status, stderr.as_str(), lines.len()), (Some(0), "", 3), "{stdout}");
        assert!(lines[0].starts_with("TIME") && lines[1].contains("pause") && lines[1].contains("app a"), "{stdout}");
        for part in [id.as_str(), "kill", "done", "ops (operator)", "127.0.0.1", "the boss", "it\u{fffd}hangs"] {
            assert!(lines[2].contains(part), "{part}: {stdout}");
        }
        let asked = |args: &[&str]| {
            let (status, stdout, stderr) =
                run(&[&["audit", "--json", "--token-file", "operator"], args].concat());
            assert_eq!(status, Some(0), "{stderr}");
            rows(&stdout).iter().map(|row| row["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(asked(&[]), ["pause", "kill"]);
        assert_eq!(asked(&["--limit", "1"]), ["pause"]);
        assert_eq!(asked(&["--action", "kill"]), ["kill"]);
        assert_eq!((asked(&["--by", "ops"]).len(), asked(&["--by", "x"]).len()), (2, 0));

        let (status, _, stderr) = run(&["audit", "--token-file", "viewer"]);
        assert!(status == Some(1) && stderr.contains("403"), "{stderr}");
        for command in ["history", "events"] {
            let (status, _, stderr) = run(&[command]);
            assert!(status == Some(1) && stderr.contains("401") && stderr.contains("--token-file"), "{stderr}");
            assert_eq!(run(&[command, "--token-file", "viewer"]).0, Some(0));
        }
    }
}

isolated! {
    fn the_command_line_tells_what_has_happened() {
        let directory = ScratchDir::new();
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let status = json!({"status": "running", "current_task": "x\u{7}"});
        http.ok("PUT", &format!("/sessions/{id}/status"), &status);
        http.ok("POST", &format!("/sessions/{id}/kill"), &json!({"reason": "r", "requested_by": "bob"}));
        http.register("b");
        let run = |args: &[&str]| {
            let (status, stdout, stderr) = run(&directory, &url(&server), args);
            assert_eq!((status, stderr.as_str()), (Some(0), ""));
            stdout
        };
        let table = run(&["events"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines.len() == 5 && lines[0].starts_with("TIME"), "{table}");
        assert!(lines[2].contains("status") && lines[2].ends_with("running, task x\u{fffd}"), "{table}");
        assert!(lines[3].contains("kill_requested") && lines[3].contains("receipt 1, by bob, r"), "{table}");
        let kinds = |args: &[&str]| {
            let found = rows(&run(&[&["events", "--json"], args].concat()));
            found.iter().map(|row| row["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&["--app", "b"]), ["registered"]);
        assert_eq!(kinds(&["--session", &id]), ["registered", "status", "kill_requested"]);
        let some = ["registered", "kill_requested", "registered"];
        assert_eq!(kinds(&["--kind", "registered", "--kind", "kill_requested"]), some);
    }
}

/// A program that follows, and has begun to.
fn follow(directory: &ScratchDir, url: &str, args: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = remuda(directory.path(), &[&["events", "--follow", "--server", url], args].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let head = line(&mut stdout);
    assert!(head.starts_with("TIME"), "{head:?}");
    (child, stdout)
}

fn line(stdout: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    line
}

isolated! {
    fn who_follows_on_the_command_line_ends_with_the_signals_status() {
        let directory = ScratchDir::new();
        let server = server();
        let mut http = Http::connect(server.local_addr());
        http.register("before");
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let (child, mut stdout) = follow(&directory, &url(&server), &["--kind", "ended", "--kind", "registered"]);
            let id = http.register("a");
            let told = line(&mut stdout);
            assert!(told.contains("registered") && told.contains(&id), "{told}");
            http.ok("PUT", &format!("/sessions/{id}/status"), &json!({"status": "running"}));
            http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
            let told = line(&mut stdout);
            assert!(told.contains("ended") && told.contains("left"), "{told}");
            kill_process(Pid::from_child(&child), signal).unwrap();
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
            assert_eq!((code, rest.as_str(), stderr.as_str()), (Some(status), "", ""));
        }
    }
}

isolated! {
    fn who_follows_on_the_command_line_goes_on_when_the_tracker_is_back() {
        let directory = ScratchDir::new();
        let first = server();
        let address = first.local_addr();
        let (mut child, mut stdout) = follow(&directory, &url(&first), &[]);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        first.shutdown();
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("it does not answer") && said.ends_with("asking again\n"), "{said}");
        let second =
            TrackerServer::builder().listen(address.to_string()).database(":memory:").start().unwrap();
        said.clear();
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("not known any more"), "{said}");
        second.store().create_session("back", None).unwrap();
        assert!(line(&mut stdout).contains("back"));
        // Nobody reads any more.
        drop(stdout);
        second.store().create_session("unheard", None).unwrap();
        said.clear();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(141), ""));
    }
}

isolated! {
    fn commands_about_the_past_say_what_a_tracker_lacks() {
        let directory = ScratchDir::new();
        let ancestor = ScriptedServer::start(|_| Reply::Json(404, json!({"detail": "Not Found"})));
        let detail = "\u{1b}[2J".repeat(10_000);
        let hostile = ScriptedServer::start(move |_| Reply::Json(503, json!({ "detail": detail })));
        for (args, said) in [
            (&["history"][..], "it keeps no history"),
            (&["audit"], "it keeps no audit"),
            (&["events"], "it tells no events"),
            (&["events", "--follow"], "it tells no events"),
        ] {
            let (status, stdout, stderr) = run(&directory, &ancestor.url(), args);
            assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
            let (status, stdout, stderr) = run(&directory, &format!("http://{}", nobody()), args);
            assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
            assert!(stderr.contains("it does not answer") && stderr.contains("remuda serve"), "{stderr}");
            assert_eq!(run(&directory, "nonsense", args).0, Some(1));
            let (status, _, stderr) = run(&directory, &hostile.url(), args);
            assert_eq!(status, Some(1));
            assert!(stderr.contains("503: \u{fffd}[2J") && stderr.len() < 2_000, "{stderr:?}");
        }
    }
}
