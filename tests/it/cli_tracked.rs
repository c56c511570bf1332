//! `remuda run` as a tracked session: seen, killed, and unharmed when there is no tracker.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use remuda::tracker::api::{Verb, Whom};
use remuda::{TrackedSession, TrackedStatus, TrackerOperator, TrackerServer};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{Memory, ScriptedServer, eventually, nobody};
use crate::support::{ScratchDir, isolated, own_loopback};

const LOOP: &str = "import time\nprint('ready', flush=True)\nwhile True:\n    time.sleep(0.01)\n";

/// Starts a run; its script is under way when this returns.
fn start(dir: &ScratchDir, args: &[&str]) -> Child {
    let mut child = remuda(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line}");
    // What comes later is read by nobody but fits into the pipe.
    child.stdout = Some(stdout.into_inner());
    child
}

/// A tracker that asks for frequent beats, a run there with one script at a time, and its stderr.
struct Ordered {
    server: TrackerServer,
    operator: TrackerOperator,
    run: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

const WAITS: &str =
    "import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n";

impl Ordered {
    /// The first script is under way; it ends when there is a file `go`. The others leave a file `came`.
    fn start(dir: &ScratchDir) -> Ordered {
        dir.write("waits.py", WAITS);
        dir.write("comes.py", "open('came', 'a').close()");
        let server = TrackerServer::builder().listen(own_loopback()).database(":memory:");
        let server = server.heartbeat_interval(Duration::from_secs(1)).start().unwrap();
        let url = format!("http://{}", server.local_addr());
        let args = ["run", "-j", "1", "--server", &url, "waits.py", "comes.py", "comes.py"];
        let mut run = start(dir, &args);
        let stderr = BufReader::new(run.stderr.take().unwrap());
        eventually("the run is registered", || !server.store().get_all_sessions().unwrap().is_empty());
        Ordered { operator: TrackerOperator::new(&url).unwrap(), server, run, stderr }
    }

    fn row(&self) -> TrackedSession {
        self.server.store().get_all_sessions().unwrap().remove(0)
    }

    /// Gives an order, and waits until the run says that it obeys.
    fn order(&mut self, verb: Verb, said: &str) {
        let whom = Whom::Session(self.row().session_id);
        assert!(self.operator.order(&whom, verb).unwrap().is_some());
        let mut line = String::new();
        while !line.contains(said) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "it ended without a word of {said:?}");
        }
    }

    /// Waits until one script of three has ended, as its beats tell.
    fn await_first(&self) {
        let third = |row: &TrackedSession| row.progress.is_some_and(|done| (done * 3.0 - 1.0).abs() < 0.01);
        eventually("a beat tells that a third is done", || third(&self.row()));
    }

    /// Exit status, stdout and the rest of stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        let (code, stdout, _) = outcome(self.run.wait_with_output().unwrap());
        eventually("it leaves the list", || self.server.store().get_all_sessions().unwrap().is_empty());
        (code, stdout, rest)
    }
}

fn answer(authority: &str, method: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(authority).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body}"))
}

isolated! {
    fn a_run_brings_its_own_tracker_and_can_be_killed_there() {
        let dir = ScratchDir::new();
        dir.write("endless.py", LOOP);
        let mut child = start(&dir, &["run", "endless.py", "endless.py"]);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let authority = line.split("http://").nth(1).unwrap().trim_end().trim_end_matches('/').to_owned();
        let row = || answer(&authority, "GET", "/sessions")["sessions"][0].clone();
        // On a busy machine the run has not waited for it.
        eventually("it says what it does", || row()["status"] == "running");
        let row = row();
        assert_eq!(row["app_name"], "remuda run");
        assert_eq!(row["current_task"], "2 scripts: endless.py#1, endless.py#2");
        assert_eq!(row["pid"], child.id());
        let path = format!("/sessions/{}/kill", row["session_id"].as_str().unwrap());
        assert_eq!(answer(&authority, "POST", &path)["status"], "kill_requested");
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let (code, stdout, _) = outcome(child.wait_with_output().unwrap());
        assert_eq!(code, Some(1), "{stdout}");
        assert!(rest.contains("stopped by somebody"), "{rest}");
        // On a busy machine the second one has not begun by then.
        assert!(stdout.contains("2 cancelled") || stdout.contains("1 cancelled, 1 not started"), "{stdout}");
    }
}

isolated! {
    fn a_run_joins_a_tracker_and_its_neighbour_there_lives_on_when_it_is_killed() {
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap();
        let url = format!("http://{}", server.local_addr());
        let dir = ScratchDir::new();
        dir.write("endless.py", LOOP);
        let (victim, other) =
            (start(&dir, &["run", "--server", &url, "endless.py"]), start(&dir, &["run", "--server", &url, "endless.py"]));
        eventually("both are registered", || server.store().get_all_sessions().unwrap().len() == 2);
        let rows = server.store().get_all_sessions().unwrap();
        let of = |child: &Child| rows.iter().find(|row| row.pid == Some(child.id())).unwrap().session_id.clone();
        let other_id = of(&other);
        assert!(server.kill(&of(&victim)).unwrap());
        assert_eq!(outcome(victim.wait_with_output().unwrap()).0, Some(1));
        eventually("it leaves the list", || server.store().get_all_sessions().unwrap().len() == 1);
        let row = || server.store().get_all_sessions().unwrap().remove(0);
        assert_eq!(row().session_id, other_id);
        eventually("and it runs", || row().status == TrackedStatus::Running);
        assert!(server.kill(&other_id).unwrap());
        assert_eq!(outcome(other.wait_with_output().unwrap()).0, Some(1));
        eventually("and the other one", || server.store().get_all_sessions().unwrap().is_empty());
        server.shutdown();
    }
}

isolated! {
    fn a_run_without_a_tracker_goes_on_and_says_so_if_one_was_named() {
        let dir = ScratchDir::new();
        dir.write("fine.py", "print('fine')");
        let nobody = format!("http://{}", nobody());
        let unseen = format!("remuda: the tracker at {nobody} does not answer; the scripts run unseen until it does\n");
        for (args, said) in [
            (&["run", "--no-tracker", "fine.py"][..], ""),
            (&["run", "--server", &nobody, "fine.py"][..], unseen.as_str()),
        ] {
            let (code, stdout, stderr) = outcome(remuda(dir.path(), args).output().unwrap());
            assert_eq!((code, stderr.as_str()), (Some(0), said));
            assert!(stdout.contains("fine.py | fine"), "{stdout}");
        }
    }
}

isolated! {
    fn a_run_outlives_its_tracker() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.parking());
        let dir = ScratchDir::new();
        dir.write("waits.py", WAITS);
        let child = start(&dir, &["run", "--server", &server.url(), "waits.py"]);
        eventually("the run registers", || !memory.ids().is_empty());
        drop(server);
        dir.write("go", "");
        assert_eq!(outcome(child.wait_with_output().unwrap()).0, Some(0));
    }
}

isolated! {
    fn a_run_that_is_paused_begins_nothing_until_it_is_resumed() {
        let dir = ScratchDir::new();
        let mut ordered = Ordered::start(&dir);
        ordered.order(Verb::Pause, "remuda: paused by somebody");
        dir.write("go", "");
        ordered.await_first();
        assert!(!dir.path().join("came").exists());
        ordered.order(Verb::Resume, "remuda: resumed by somebody");
        let (code, stdout, _) = ordered.end();
        assert_eq!(code, Some(0), "{stdout}");
        assert!(stdout.contains("3 completed"), "{stdout}");
    }
}

isolated! {
    fn a_run_that_is_drained_finishes_what_runs_and_leaves() {
        let dir = ScratchDir::new();
        let mut ordered = Ordered::start(&dir);
        ordered.order(Verb::Drain, "remuda: drained by somebody");
        dir.write("go", "");
        let (code, stdout, stderr) = ordered.end();
        assert_eq!(code, Some(1), "{stdout}");
        assert!(stdout.contains("1 completed, 2 not started"), "{stdout}");
        assert!(stderr.contains("remuda: drained by somebody at the tracker: 2 of 3 did not run"), "{stderr}");
    }
}

isolated! {
    fn a_run_can_be_drained_and_stopped_while_it_is_paused() {
        for (verb, summary) in [(Some(Verb::Drain), "1 completed, 2 not started"), (None, "2 not started")] {
            let dir = ScratchDir::new();
            let mut ordered = Ordered::start(&dir);
            ordered.order(Verb::Pause, "remuda: paused by somebody");
            dir.write("go", "");
            ordered.await_first();
            match verb {
                Some(verb) => ordered.order(verb, "remuda: drained by somebody"),
                None => assert!(ordered.operator.kill(&ordered.row().session_id).unwrap()),
            }
            let (code, stdout, stderr) = ordered.end();
            assert_eq!(code, Some(1), "{stdout}");
            assert!(stdout.contains(summary), "{stdout}");
            assert_eq!(stderr.contains("stopped by somebody"), verb.is_none(), "{stderr}");
        }
    }
}

isolated! {
    fn a_run_that_is_paused_ends_when_its_user_interrupts_it() {
        let dir = ScratchDir::new();
        let mut ordered = Ordered::start(&dir);
        ordered.order(Verb::Pause, "remuda: paused by somebody");
        dir.write("go", "");
        ordered.await_first();
        rustix::process::kill_process(Pid::from_child(&ordered.run), Signal::INT).unwrap();
        let (code, stdout, _) = ordered.end();
        assert_eq!(code, Some(130), "{stdout}");
        assert!(stdout.contains("1 completed, 2 not started"), "{stdout}");
        assert!(!dir.path().join("came").exists());
    }
}

isolated! {
    /// Who paused it was at a tracker that is gone, with all it knew.
    fn a_pause_ends_with_the_tracker_when_another_one_takes_its_place() {
        let dir = ScratchDir::new();
        let mut ordered = Ordered::start(&dir);
        ordered.order(Verb::Pause, "remuda: paused by somebody");
        let address = ordered.server.local_addr().to_string();
        let start = |address: &str| TrackerServer::builder().listen(address).database(":memory:").start().unwrap();
        drop(std::mem::replace(&mut ordered.server, start(&own_loopback())));
        dir.write("go", "");
        ordered.server = start(&address);
        let (code, stdout, stderr) = ordered.end();
        assert_eq!(code, Some(0), "{stdout}");
        assert!(stdout.contains("3 completed"), "{stdout}");
        assert!(stderr.contains("remuda: resumed by somebody"), "{stderr}");
    }
}
