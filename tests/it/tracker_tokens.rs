//! Access tokens in programs: `remuda serve`, `remuda token`, clients and operators.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use remuda::{AccessToken, ClientConfig, SessionGroup, Tokens, TrackerOperator, TrackerServer};
use serde_json::json;

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{
    Memory, Reply, ScriptedServer, collect_log, connected, eventually, takes_effect,
};
use crate::support::{GENEROUS, ScratchDir, isolated};
use crate::tracker_support::{Http, Served};

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789";
const APP: &str = "app-one-0123456789";

/// Writes a file that only its owner may read.
fn private(directory: &ScratchDir, name: &str, text: &str) {
    let path = directory.write(name, text);
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

isolated! {
    fn serve_asks_for_tokens_and_tells_of_refused_requests_without_showing_them() {
        let directory = ScratchDir::new();
        private(&directory, "tokens", &format!("operator ops {OPERATOR}\n"));
        let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:"];
        for from_file in [true, false] {
            let told = directory.path().join("stderr");
            let mut command = remuda(directory.path(), &args);
            command.stderr(File::create(&told).unwrap());
            if from_file {
                command.args(["--tokens", "tokens"]);
            } else {
                command.env("REMUDA_TOKENS", format!("# all\noperator {OPERATOR}"));
            }
            let server = Served::from(command);
            for _ in 0..5 {
                let mut stranger = Http::connect(server.address).with_token("wrong-0123456789abcdef");
                assert_eq!(stranger.call("GET", "/sessions", "").status, 401);
                assert_eq!(Http::connect(server.address).call("GET", "/sessions", "").status, 401);
            }
            assert_eq!(Http::connect(server.address).with_token(OPERATOR).list().len(), 0);
            assert_eq!(Http::connect(server.address).call("GET", "/livez", "").status, 200);
            drop(server);
            let told = fs::read_to_string(told).unwrap();
            let lines = told.lines().filter(|line| line.contains("a request from 127.0.0.1 is refused"));
            assert!((1..10).contains(&lines.count()), "{told}");
            assert!(!told.contains("0123456789"), "{told}");
        }
    }
}

isolated! {
    fn serve_refuses_tokens_that_make_no_sense_without_showing_them() {
        let directory = ScratchDir::new();
        private(&directory, "short", "\noperator ops 0123456789");
        private(&directory, "empty", "# nothing\n");
        directory.write("open", format!("operator ops {OPERATOR}\n"));
        fs::set_permissions(directory.path().join("open"), Permissions::from_mode(0o644)).unwrap();
        for (file, said) in [
            ("short", "line 2: the token has 10 bytes"),
            ("empty", "there is no token"),
            ("open", "mode 644"),
            ("missing", "missing"),
        ] {
            let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:", "--tokens", file];
            let (status, stdout, stderr) = outcome(remuda(directory.path(), &args).output().unwrap());
            assert_eq!((status, stdout.as_str()), (Some(2), ""), "{file}");
            assert!(stderr.contains(said) && !stderr.contains("0123456789"), "{file}: {stderr}");
        }
    }
}

isolated! {
    /// An empty variable is more likely a mistake than the wish for a tracker that is open to everybody.
    fn serve_says_whether_it_asks_for_tokens_and_refuses_an_empty_variable() {
        let directory = ScratchDir::new();
        private(&directory, "tokens", &format!("operator ops {OPERATOR}\nviewer wall {VIEWER}\n"));
        let serve = |args: &[&str], variable: Option<&str>| {
            let args = [&["serve", "--listen", "127.0.0.1:0", "--db", ":memory:"], args].concat();
            let mut command = remuda(directory.path(), &args);
            command.envs(variable.map(|tokens| ("REMUDA_TOKENS", tokens)));
            command.stderr(File::create(directory.path().join("stderr")).unwrap());
            command
        };
        let told = || fs::read_to_string(directory.path().join("stderr")).unwrap();
        assert!(Served::from(serve(&[], None)).line.ends_with(", nobody is asked for a token\n"));
        let both = Served::from(serve(&["--tokens", "tokens"], Some("viewer 0123456789abcdef")));
        assert!(both.line.ends_with(", access tokens: 2\n"), "{}", both.line);
        assert!(told().contains("REMUDA_TOKENS are not taken"), "{}", told());
        for empty in ["", " \n"] {
            let (status, stdout, _) = outcome(serve(&[], Some(empty)).output().unwrap());
            assert_eq!((status, stdout.as_str()), (Some(2), ""));
            assert!(told().contains("REMUDA_TOKENS is set and empty"), "{}", told());
        }
        // The warning names hosts as people write them.
        let hosts = Served::from(serve(&["--allow-host", "a.example", "--allow-host", "b.example"], None));
        assert!(told().contains("reaches the tracker as a.example or b.example may kill"), "{}", told());
        drop(hosts);
    }
}

isolated! {
    fn a_new_token_is_one_that_a_tracker_takes() {
        let directory = ScratchDir::new();
        let make = || outcome(remuda(directory.path(), &["token"]).output().unwrap());
        let ((status, one, _), (_, two, _)) = (make(), make());
        assert_eq!(status, Some(0));
        assert_ne!(one, two);
        assert!(one.trim_end().len() == 64 && one.ends_with('\n'), "{one}");
        assert_eq!(Tokens::parse(&format!("viewer {one}")).unwrap().len(), 1);
        assert_eq!(outcome(remuda(directory.path(), &["token", "x"]).output().unwrap()).0, Some(2));
    }
}

isolated! {
    fn the_command_line_shows_a_token_from_a_file_or_else_the_environment() {
        let directory = ScratchDir::new();
        private(&directory, "tokens", &format!("operator ops {OPERATOR}\nviewer {VIEWER}\napp reports {APP}\n"));
        private(&directory, "operator", &format!("{OPERATOR}\n"));
        private(&directory, "viewer", VIEWER);
        let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:", "--tokens", "tokens"];
        let server = Served::from(remuda(directory.path(), &args));
        let id = Http::connect(server.address).with_token(APP).register("reports");
        let url = server.url();
        let ask = |args: &[&str], variable: Option<&str>| {
            let mut command = remuda(directory.path(), &[args, &["--server", &url]].concat());
            command.envs(variable.map(|token| ("REMUDA_TOKEN", token)));
            outcome(command.output().unwrap())
        };
        let (status, _, stderr) = ask(&["ps"], None);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("401") && stderr.contains("--token-file"), "{stderr}");
        let (status, stdout, _) = ask(&["ps", "--token-file", "viewer"], None);
        assert!(status == Some(0) && stdout.contains("reports"), "{stdout}");
        assert_eq!(ask(&["ps"], Some(VIEWER)).0, Some(0));
        let (status, _, stderr) = ask(&["kill", &id], Some(VIEWER));
        assert!(status == Some(1) && stderr.contains("403"), "{stderr}");
        let (status, _, stderr) = ask(&["pause", &id, "--token-file", "operator"], Some(VIEWER));
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "the file counts, not the variable");
        assert_eq!(ask(&["cleanup", "--token-file", "operator"], None).0, Some(0));
        assert_eq!(ask(&["kill", "--app", "reports"], Some(OPERATOR)).0, Some(0));
        assert_eq!(ask(&["ps", "--token-file", "missing"], Some(OPERATOR)).0, Some(1));
        assert_eq!(ask(&["ps"], Some("short")).0, Some(1));
        let (status, _, stderr) = ask(&["ps", "--token-file", "tokens"], None);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("tokens: a token is") && stderr.contains("ROLE NAME TOKEN"), "{stderr}");
    }
}

fn tracker() -> TrackerServer {
    let text = format!("operator ops {OPERATOR}\nviewer {VIEWER}\napp reports {APP}\n");
    let tokens = Tokens::parse(&text).unwrap();
    TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(tokens).start().unwrap()
}

fn client(server: &TrackerServer) -> ClientConfig {
    ClientConfig::new("reports").server_url(format!("http://{}", server.local_addr()))
}

fn access(text: &str) -> AccessToken {
    AccessToken::new(text).unwrap()
}

isolated! {
    fn clients_and_operators_with_tokens_do_all_that_they_do_without() {
        let server = tracker();
        let url = format!("http://{}", server.local_addr());
        let single = connected(client(&server).token(access(APP)));
        let group = SessionGroup::with_token(&url, access(APP)).unwrap();
        let member = group.start(client(&server)).unwrap();
        eventually("the member is registered", || member.is_connected());
        assert_eq!((single.last_trouble(), member.last_trouble()), (None, None));
        let operator = TrackerOperator::new(&url).unwrap().with_token(&access(OPERATOR));
        let is_shown = || operator.sessions().unwrap().iter().any(|row| row.current_task.as_deref() == Some("work"));
        let task = takes_effect(|| single.task("work"), is_shown);
        drop(task);
        assert_eq!(operator.kill_app("reports").unwrap(), 2);
        eventually("both hear their kill", || single.is_killed() && member.is_killed());
        drop((single, member, group));
        eventually("both have left", || operator.sessions().unwrap().is_empty());
        let viewer = TrackerOperator::new(&url).unwrap().with_token(&access(VIEWER));
        assert!(viewer.sessions().is_ok() && viewer.kill_app("reports").is_err());
        assert!(TrackerOperator::new(&url).unwrap().sessions().is_err());
    }
}

isolated! {
    fn a_client_that_is_not_let_in_says_why_and_goes_on() {
        let server = tracker();
        for (token, said) in [(None, "401"), (Some("wrong-0123456789abcdef"), "401"), (Some(VIEWER), "403")] {
            let mut config = client(&server);
            config.token = token.map(access);
            assert!(!format!("{config:?}").contains("0123456789"), "{config:?}");
            let client = config.start().unwrap();
            eventually("the registration is refused", || client.last_trouble().is_some());
            assert!(!client.is_connected() && !client.is_killed());
            let trouble = client.last_trouble().unwrap();
            assert!(trouble.contains(said) && !trouble.contains("0123456789"), "{trouble}");
            drop(client.task("work"));
        }
        let url = format!("http://{}", server.local_addr());
        let group = SessionGroup::with_token(&url, access("wrong-0123456789abcdef")).unwrap();
        let member = group.start(client(&server).token(access(APP))).unwrap();
        eventually("the group's token counts", || member.last_trouble().is_some_and(|why| why.contains("401")));
        assert!(!member.is_connected());
        drop((member, group));
        assert_eq!(server.store().get_all_sessions().unwrap().len(), 0);
    }
}

isolated! {
    /// A token that is taken away in the middle: one beat is refused, and the client does not come again
    /// for half a minute, neither to register nor to report.
    fn a_client_whose_token_is_taken_away_does_not_storm_the_tracker() {
        let log = collect_log();
        let memory = Memory::default();
        let (plain, closed) = (memory.plain(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&closed);
        let server = ScriptedServer::start(move |asked| {
            let token = asked.headers.get("authorization").map(String::as_str);
            assert_eq!(token, Some(format!("Bearer {APP}").as_str()));
            if seen.load(Ordering::SeqCst) {
                return Reply::Json(401, json!({"detail": "an access token is needed", "reason": "unauthorized"}));
            }
            plain(asked)
        });
        let config = ClientConfig::new("reports").server_url(server.url()).token(access(APP));
        let client = connected(config.heartbeat_interval(Duration::from_millis(20)));
        closed.store(true, Ordering::SeqCst);
        eventually("it is told", || client.last_trouble().is_some());
        assert!(!client.is_connected());
        let refused = server.asked().len();
        // Tasks come and go, and the client leaves: only its farewell is sent.
        for number in 0..20 {
            drop(client.task(format!("task {number}")));
        }
        drop(client);
        assert_eq!(server.count("POST", "/sessions"), 1, "it has registered once");
        assert!(server.asked().len() <= refused + 1, "{} {refused}", server.asked().len());
        assert_eq!(log.count("offline"), 1, "{:?}", log.lines());
        assert!(!log.lines().concat().contains(APP));
    }
}

isolated! {
    fn a_run_shows_its_token_to_the_tracker_and_goes_on_without_one() {
        let directory = ScratchDir::new();
        let server = tracker();
        let url = format!("http://{}", server.local_addr());
        private(&directory, "app", APP);
        directory.write("hello.py", "print('hello')");
        let run = |args: &[&str], variable: Option<&str>| {
            let mut command = remuda(directory.path(), &[&["run", "--server", &url], args, &["hello.py"]].concat());
            command.envs(variable.map(|token| ("REMUDA_TOKEN", token)));
            outcome(command.output().unwrap())
        };
        // A run waits a second for the answer, which on a busy machine may not do.
        let told = |variable: Option<&str>| {
            let began = Instant::now();
            loop {
                let (status, stdout, stderr) = run(&[], variable);
                if !stderr.contains("does not answer") {
                    return (status, stdout, stderr);
                }
                assert!(began.elapsed() < GENEROUS, "{stderr}");
            }
        };
        let ended = || {
            let mut operator = Http::connect(server.local_addr()).with_token(OPERATOR);
            operator.ok("GET", "/history?app=remuda%20run", &json!(null))["history"].as_array().unwrap().len()
        };
        let (status, stdout, stderr) = told(None);
        assert!(status == Some(0) && stdout.contains("hello"), "{stdout}");
        assert!(stderr.contains(": it answers 401") && stderr.contains("run unseen"), "{stderr}");
        assert!(stderr.contains("--token-file, or in REMUDA_TOKEN"), "{stderr}");
        let (status, _, stderr) = told(Some(VIEWER));
        assert!(status == Some(0) && stderr.contains(": it answers 403"), "{stderr}");
        for (args, variable) in [(&["--token-file", "app"][..], None), (&[], Some(APP))] {
            // As it waits for its farewell.
            let (began, before) = (Instant::now(), ended());
            while ended() == before {
                assert_eq!(run(args, variable).0, Some(0));
                assert!(began.elapsed() < GENEROUS, "it was never on the list");
            }
        }
        let before = ended();
        let (status, _, stderr) = run(&["--token-file", "missing"], Some(APP));
        assert!(status == Some(0) && stderr.contains("the run is not tracked"), "{stderr}");
        assert_eq!(ended(), before);
    }
}
