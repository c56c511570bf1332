//! Workers that nothing but a byte stream reaches, as by `ssh` or `docker exec -i`: through a relay
//! that keeps signals, descriptors, directory and environment to itself.

use std::process::Command;
use std::time::Duration;

use remuda::{Error, Outcome, Request, Runtime, Session, SessionConfig, Stream, TimeLimit};
use serde_json::json;

use crate::support::{
    GENEROUS, cancelled_when_busy, doomed, is_running, isolated, nothing_outlives_a_killed_host, poll,
    run_until_killed,
};

const RELAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/relay.py");

/// Python behind the relay, and behind a shell behind the relay.
fn remote() -> [(&'static str, SessionConfig); 2] {
    let python = || Runtime::python("python3");
    [
        ("remote", python().remote(["python3", RELAY])),
        ("remote shell", python().prefix(["nice", "-n", "0"]).remote_shell(["python3", RELAY, "--shell"])),
    ]
    .map(|(name, runtime)| (name, SessionConfig::new(runtime).grace(GENEROUS)))
}

isolated! {
    fn code_runs_behind_a_relay() {
        for (name, config) in remote() {
            let mut session = config.warm_import("json").start().unwrap();
            let run = session.execute("import os, sys\nprint('out')\nprint('grüße', file=sys.stderr)\n[os.environ['FAR'], os.getpid()]").unwrap();
            assert_eq!((run.outcome, run.stdout.as_str(), run.stderr.as_str()), (Outcome::Completed, "out\n", "grüße\n"), "{name}: {:?}", run.error);
            assert_eq!(run.value[0], "yes");
            assert_ne!(run.value[1], json!(session.pid()));
            let large = "x".repeat(3 << 20);
            assert_eq!(session.execute(format!("len('{large}')")).unwrap().value, 3 << 20, "{name}");
            assert_eq!(session.execute("print('y' * (3 << 20))").unwrap().stdout.len(), (3 << 20) + 1, "{name}");
            assert!(session.info().memory_usage.is_none() && session.memory().is_none());
            let usage = session.execute(Request::code("sum(range(10**6))").measure(true)).unwrap().usage.unwrap();
            assert!(usage.memory.is_none() && usage.cpu_time > Duration::ZERO, "{name}: {usage:?}");
            assert_eq!(session.shutdown(GENEROUS).exit.to_string(), "exit code 0", "{name}");
        }
    }
}

isolated! {
    fn output_streams_through_a_relay() {
        for (name, config) in remote() {
            let mut session = config.start().unwrap();
            let mut seen = Vec::new();
            // What else writes to fd 1 finds stderr there, and comes when it comes: frames stay whole.
            let request = Request::code("import os, subprocess\nprint(1)\nsubprocess.run(['echo', '2'])\nos.write(1, b'3\\n')\nprint(4)")
                .on_output(|stream, bytes| if stream == Stream::Stdout { seen.extend_from_slice(bytes) });
            let run = session.execute(request).unwrap();
            assert_eq!((run.stdout.as_str(), seen.as_slice()), ("1\n4\n", &b"1\n4\n"[..]), "{name}");
        }
    }
}

isolated! {
    fn a_busy_loop_is_stopped_through_a_relay_and_the_session_lives() {
        for (name, config) in remote() {
            let mut session = config.start().unwrap();
            for code in ["while True: pass", "import time\ntime.sleep(600)", "while True: print('x' * 100)"] {
                let run = session.execute(Request::code(code).time_limit(Duration::from_millis(100))).unwrap();
                assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{name} {code}: {:?}", run.post_mortem);
                assert_eq!(session.execute("6 * 7").unwrap().value, 42, "{name}");
            }
        }
    }
}

/// Starts something on the other side and tells the numbers of the worker and its child.
const SETTLED: &str = "import os, subprocess\np = subprocess.Popen(['sleep', '600'])\n[os.getpid(), p.pid]";

fn settle(session: &mut Session) -> Vec<u32> {
    serde_json::from_value(session.execute(SETTLED).unwrap().value).unwrap()
}

isolated! {
    fn a_killed_session_leaves_nothing_on_the_other_side() {
        for (name, config) in remote() {
            let mut idle = config.start().unwrap();
            let mut busy = config.clone().grace(Duration::from_millis(50)).start().unwrap();
            let pids = [settle(&mut idle), settle(&mut busy)].concat();
            let stubborn = "while True:\n    try:\n        print('busy')\n        while True: pass\n    except KeyboardInterrupt: pass";
            let outcome = cancelled_when_busy(&mut busy, stubborn);
            assert_eq!(outcome, Outcome::Cancelled { killed: true }, "{name}");
            idle.terminate();
            for pid in pids {
                poll(|| !is_running(pid), || format!("{name}: process {pid} outlives its session"));
            }
        }
    }
}

isolated! {
    fn killing_the_host_leaves_nothing_on_the_other_side() {
        if let Some(number) = doomed() {
            let mut session = remote()[number.parse::<usize>().unwrap()].1.start().unwrap();
            let pids = settle(&mut session);
            println!("\nsettled {} {}", pids[0], pids[1]);
            run_until_killed(&mut session, Request::code("while True: pass"));
        }
        for number in 0..remote().len() {
            let test = "runtime_remote::killing_the_host_leaves_nothing_on_the_other_side";
            nothing_outlives_a_killed_host(test, &number.to_string());
        }
    }
}

isolated! {
    fn node_runs_and_stops_behind_a_relay() {
        let node = || Runtime::node("node");
        for runtime in [node().remote(["python3", RELAY]), node().remote_shell(["python3", RELAY, "--shell"])] {
            let mut session = SessionConfig::new(runtime.clone()).grace(GENEROUS).start().unwrap();
            let run = session.execute("console.log('out'); process.env.FAR").unwrap();
            assert_eq!((run.value, run.stdout.as_str()), (json!("yes"), "out\n"), "{runtime:?}: {:?}", run.error);
            let run = session.execute(Request::code("for (;;) {}").time_limit(Duration::from_millis(100))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{runtime:?}: {:?}", run.post_mortem);
            let pid = session.execute("process.pid").unwrap().value.as_u64().unwrap();
            session.terminate();
            let pid = u32::try_from(pid).unwrap();
            poll(|| !is_running(pid), || format!("process {pid} outlives its session"));
        }
    }
}

isolated! {
    fn arguments_arrive_as_they_are_whatever_they_hold() {
        let nasty = ["", "two words", "it's", "\"quoted\"", "$HOME `id` $(id)", "a\nb", "\\", "*", "~", "grüße 🐎", "-x", "A=b"];
        // Instead of becoming a worker it says what it was given.
        let says = "import sys\nsys.stderr.write(repr(sys.argv[1:]))";
        let args = || ["-I", "-X", "utf8", "-c", says].into_iter().chain(nasty);
        let expected = Command::new("python3").args(args()).output().unwrap().stderr;
        let expected = String::from_utf8(expected).unwrap();
        for runtime in [
            Runtime::command("python3", args()).remote(["env"]),
            Runtime::command("python3", args()).remote_shell(["sh", "-c"]),
            Runtime::command("python3", args()).prefix(["env"]).remote_shell(["sh", "-c"]).prefix(["nice", "-n", "0"]),
        ] {
            let error = SessionConfig::new(runtime.clone()).start().unwrap_err();
            let Error::StartDied { post_mortem } = &error else { panic!("{runtime:?}: {error}") };
            assert_eq!(post_mortem.stderr_tail, expected, "{runtime:?}");
        }
    }
}

isolated! {
    fn an_other_side_without_the_program_says_so() {
        let runtime = Runtime::python("no-such-python").remote_shell(["python3", RELAY, "--shell"]);
        let error = SessionConfig::new(runtime).start().unwrap_err().to_string();
        assert!(error.contains("no-such-python") && error.contains("not found"), "{error}");
    }
}
