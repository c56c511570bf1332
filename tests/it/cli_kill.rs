//! `remuda kill`, `pause` and its like: what they ask of a tracker, and what they tell.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::Stdio;

use remuda::{SessionClient, TrackerServer};
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{Reply, ScriptedServer, connected, fine};
use crate::support::{ScratchDir, isolated};
use crate::tracker_support::{Http, Served, server};

type Outcome = (Option<i32>, String, String);

fn run(server: &TrackerServer, args: &[&str]) -> Outcome {
    run_at(&format!("http://{}", server.local_addr()), args)
}

fn run_at(url: &str, args: &[&str]) -> Outcome {
    let directory = ScratchDir::new();
    outcome(remuda(directory.path(), &[args, &["--server", url]].concat()).output().unwrap())
}

fn client(server: &TrackerServer) -> SessionClient {
    connected(SessionClient::builder("a").server_url(format!("http://{}", server.local_addr())))
}

isolated! {
    fn kill_and_wait_tells_how_long_each_step_took() {
        let server = server();
        let clients = [client(&server), client(&server)];
        for client in &clients {
            client.on_kill(|| ());
        }
        let (status, stdout, stderr) = run(&server, &["kill", "--app", "a", "--wait", "--reason", "release"]);
        assert_eq!(status, Some(0), "{stderr}");
        assert!(stdout.starts_with("kill requested: 2 of a\n"), "{stdout}");
        for client in &clients {
            let ended = format!("confirmed: {} (delivered after ", client.id());
            assert!(stdout.contains(&ended), "{stdout}");
        }
        let receipt = Http::connect(server.local_addr()).ok("GET", "/kills/1", &Value::Null);
        assert_eq!((&receipt["reason"], &receipt["scope"]), (&json!("release"), &json!("app")));
    }
}

isolated! {
    fn a_wait_in_vain_is_told_apart_from_a_failure() {
        let server = server();
        let id = Http::connect(server.local_addr()).register("deaf");
        let (status, stdout, _) = run(&server, &["kill", &id, "--wait", "--timeout", "0.05"]);
        assert_eq!(status, Some(124));
        assert!(stdout.contains(&format!("requested: {id} (nothing is heard yet)")), "{stdout}");
        let (status, stdout, _) = run(&server, &["kill", &id, "--wait", "--timeout=0", "--json"]);
        let receipt: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((status, &receipt["state"]), (Some(124), &json!("requested")));
        server.store().cleanup_stale_sessions(std::time::Duration::ZERO).unwrap();
        let id = Http::connect(server.local_addr()).register("deaf");
        assert_eq!(run(&server, &["kill", &id]).0, Some(0));
        server.store().cleanup_stale_sessions(std::time::Duration::ZERO).unwrap();
        assert_eq!(run(&server, &["kill", &id, "--wait"]).0, Some(1), "it is gone");
    }
}

isolated! {
    fn a_dry_run_kills_nobody_and_its_generation_kills_whom_it_named() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let me = json!({"app_name": "a", "host": "h", "pid": 7, "status": "running", "current_task": "\u{1b}[2J"});
        let one = http.ok("POST", "/sessions", &me)["session_id"].as_str().unwrap().to_owned();
        let snapshot = json!({"attached": {"pool": {"sessions": [{"pid": 99, "holder": {"tenant": "ann", "label": "\u{1b}", "thread_name": "main", "priority": 0, "at": "a.rs:1:2"}}]}}});
        http.ok("POST", &format!("/sessions/{one}/heartbeat"), &snapshot);
        let two = http.register("a");
        assert_eq!(run(&server, &["protect", &two]), (Some(0), format!("protect: {two}\n"), String::new()));

        let (status, stdout, _) = run(&server, &["kill", "--app", "a", "--dry-run"]);
        assert_eq!(status, Some(0));
        assert!(stdout.contains(&format!("would stop: {one} of a")) && stdout.contains("process 7 on h"), "{stdout}");
        assert!(stdout.contains("of pool pool, held by tenant ann, label \u{fffd}, thread main\n"), "{stdout}");
        assert!(stdout.contains(&format!("protected: {two}")) && !stdout.contains('\u{1b}'), "{stdout}");
        assert_eq!(http.row(&one).unwrap()["kill_requested"], false);
        let (_, stdout, _) = run(&server, &["kill", "--app", "a", "--dry-run", "--json"]);
        let preview: Value = serde_json::from_str(&stdout).unwrap();
        let seen = preview["generation"].as_str().unwrap();

        let late = http.register("a");
        let (status, _, stderr) = run(&server, &["kill", "--app", "a", "--generation", seen]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("409") && stderr.contains("nobody is killed"), "{stderr}");
        http.ok("DELETE", &format!("/sessions/{late}"), &Value::Null);
        let (status, _, stderr) = run(&server, &["kill", "--app", "a", "--generation", seen, "--embargo", "600"]);
        assert_eq!(status, Some(0));
        assert!(stderr.contains("1 protected session of"), "{stderr}");
        let (_, _, stderr) = run(&server, &["ps"]);
        assert!(stderr.contains("new sessions of a are killed for another 10 min"), "{stderr}");

        let (status, _, stderr) = run(&server, &["kill", &two]);
        assert_eq!(status, Some(1));
        assert_eq!(stderr, format!("remuda: {two} is protected; --force kills it all the same\n"));
        assert_eq!(run(&server, &["kill", &two, "--force"]).0, Some(0));
        assert_eq!(http.row(&two).unwrap()["kill_requested"], true);
    }
}

isolated! {
    fn a_kill_that_hits_nobody_says_why_and_what_it_has_done_all_the_same() {
        let server = server();
        let (status, _, stderr) = run(&server, &["kill", "--app", "ghost", "--embargo", "30", "--wait"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("new sessions of app \"ghost\" are killed for 30 s"), "{stderr}");
        assert!(stderr.contains("no tracked session to kill") && !stderr.contains("receipts"), "{stderr}");
        let mut http = Http::connect(server.local_addr());
        let id = http.register("ghost");
        assert_eq!(http.row(&id).unwrap()["kill_requested"], true);
        let (_, _, stderr) = run(&server, &["kill", "--app", "ghost", "--embargo", "0"]);
        assert!(stderr.contains("no embargo on app \"ghost\" any more"), "{stderr}");
        let id = http.register("ghost");
        assert_eq!(http.row(&id).unwrap()["kill_requested"], false);

        let safe = http.register("safe");
        http.ok("POST", &format!("/sessions/{safe}/protect"), &Value::Null);
        let (status, stdout, stderr) = run(&server, &["kill", "--app", "safe", "--wait"]);
        assert_eq!((status, stdout.as_str()), (Some(1), ""));
        assert_eq!(stderr, "remuda: 1 protected session of app \"safe\": not killed\n");
    }
}

isolated! {
    fn a_wait_outlasts_a_restart_of_the_tracker() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), "remuda.db");
        let (address, url) = (server.address, server.url());
        let id = Http::connect(address).register("a");
        let mut command = remuda(directory.path(), &["kill", &id, "--wait", "--server", &url]);
        let mut kill = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(kill.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("receipt 1"), "{line}");
        drop(server);
        // It looks while there is no answer.
        let closed = TcpListener::bind(address).unwrap();
        drop(closed.accept().unwrap());
        drop(closed);
        let again = ["serve", "--listen", &address.to_string(), "--db", "remuda.db"];
        let server = Served::from(remuda(directory.path(), &again));
        Http::connect(server.address).ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        line.clear();
        stdout.read_to_string(&mut line).unwrap();
        let (status, _, stderr) = outcome(kill.wait_with_output().unwrap());
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{line}");
        assert!(line.starts_with(&format!("confirmed: {id}")), "{line}");
    }
}

isolated! {
    fn pause_and_its_like_reach_whom_they_name_and_are_shown() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let labelled = json!({"app_name": "b", "labels": {"team": "x"}});
        let two = http.ok("POST", "/sessions", &labelled)["session_id"].as_str().unwrap().to_owned();
        let one = http.register("a");
        assert_eq!(run(&server, &["pause", &one[..8]]).1, format!("pause: {one}\n"));
        assert_eq!(run(&server, &["drain", "--label", "team=x"]).1, format!("drain: {two}\n"));
        assert_eq!(run(&server, &["protect", "--app", "a"]).0, Some(0));
        let (_, stdout, _) = run(&server, &["ps"]);
        assert!(stdout.contains("idle, pause, protected") && stdout.contains("idle, drain"), "{stdout}");
        assert_eq!(run(&server, &["resume", &one, &two]).0, Some(0));
        assert_eq!(run(&server, &["unprotect", &one]).0, Some(0));
        let row = http.row(&one).unwrap();
        assert_eq!((row.get("verbs"), row.get("protected")), (None, None));
        for args in [&["pause", "--app", "nobody"][..], &["pause", "nobody"], &["kill", "--label", "team=y"]] {
            let (status, stdout, stderr) = run(&server, args);
            assert_eq!((status, stdout.as_str()), (Some(1), ""), "{args:?}");
            assert!(stderr.contains("no tracked session"), "{stderr}");
        }
    }
}

isolated! {
    /// A tracker of the ancestors gives no receipts, and would take a dry run for a kill.
    fn an_older_tracker_is_killed_through_but_never_previewed() {
        let server = ScriptedServer::start(|asked| match asked.path.as_str() {
            "/apps/a/kill-all" => fine(json!({"killed_count": 2})),
            _ => Reply::Json(404, json!({"detail": "Not Found"})),
        });
        let (status, _, stderr) = run_at(&server.url(), &["kill", "--app", "a", "--dry-run"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("knows no previews"), "{stderr}");
        assert_eq!(server.count("POST", "/kill-all"), 0);
        let (status, stdout, _) = run_at(&server.url(), &["kill", "--app", "a"]);
        assert_eq!((status, stdout.as_str()), (Some(0), "kill requested: 2 of a\n"));
        assert_eq!(server.count("POST", "/kill-all"), 1);
        let (status, _, stderr) = run_at(&server.url(), &["kill", "--app", "a", "--wait"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("no receipts"), "{stderr}");
    }
}
