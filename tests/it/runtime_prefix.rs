//! Programs in front of a worker, on this machine: each must let it run, stop and end as it does
//! alone.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use remuda::{Call, Error, Limits, Outcome, Request, Runtime, Session, SessionConfig, TimeLimit};
use serde_json::json;

use crate::support::{GENEROUS, cancelled_when_busy, installed, is_running, isolated, poll};

/// A program in front, and whether it stays there as the process that the host sees.
struct Wrapped {
    argv: Vec<String>,
    stays: bool,
    /// Whether the worker stays in the group of the process that the host sees.
    keeps_group: bool,
}

/// Every wrapper of the tests that this machine has.
fn wrappers() -> Vec<Wrapped> {
    let directory = std::env::temp_dir().display().to_string();
    let sandbox = format!(
        "bwrap --unshare-pid --die-with-parent --ro-bind / / --proc /proc --dev /dev --bind {directory} {directory}"
    );
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut all = vec![
        Wrapped { argv: words("nice -n 5"), stays: false, keeps_group: true },
        Wrapped {
            argv: ["sh", "-c", "exec \"$@\"", "sh"].map(str::to_owned).to_vec(),
            stays: false,
            keeps_group: true,
        },
        Wrapped {
            argv: ["sh", "-c", "\"$@\"; exit", "sh"].map(str::to_owned).to_vec(),
            stays: true,
            keeps_group: true,
        },
        Wrapped { argv: words("env -u HOME GREETING=hello"), stays: false, keeps_group: true },
        Wrapped { argv: words("timeout --foreground 600"), stays: true, keeps_group: true },
        Wrapped { argv: words("timeout 600"), stays: true, keeps_group: true },
        Wrapped { argv: words("setsid --fork --wait"), stays: true, keeps_group: false },
        Wrapped {
            argv: words("nice -n 5 env -u HOME sh -c exec\t\"$@\" sh"),
            stays: false,
            keeps_group: true,
        },
    ];
    if installed("bwrap") {
        all.push(Wrapped { argv: words(&sandbox), stays: true, keeps_group: true });
    }
    all
}

fn behind(wrapper: &[String]) -> SessionConfig {
    // A worker that waits for a second signal must not be helped by a kill.
    SessionConfig::new(Runtime::python("python3").prefix(wrapper.iter().cloned())).grace(GENEROUS)
}

isolated! {
    fn code_runs_behind_every_wrapper() {
        for Wrapped { argv, stays, .. } in wrappers() {
            let mut session = behind(&argv).start().unwrap_or_else(|error| panic!("{argv:?}: {error}"));
            let run = session.execute("import os, sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)\nos.getpid()").unwrap();
            assert_eq!((run.outcome, run.stdout.as_str(), run.stderr.as_str()), (Outcome::Completed, "out\n", "err\n"), "{argv:?}");
            assert_eq!(run.value != json!(session.pid()), stays, "{argv:?}");
            let post_mortem = session.shutdown(GENEROUS);
            assert_eq!(post_mortem.exit.to_string(), "exit code 0", "{argv:?}");
        }
    }
}

isolated! {
    fn a_busy_loop_is_stopped_behind_every_wrapper_and_the_session_lives() {
        for Wrapped { argv, .. } in wrappers() {
            let mut session = behind(&argv).start().unwrap();
            for code in ["while True: pass", "import time\ntime.sleep(600)"] {
                let run = session.execute(Request::code(code).time_limit(Duration::from_millis(50))).unwrap();
                assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{argv:?} {code}: {:?}", run.post_mortem);
            }
            assert_eq!(session.execute("6 * 7").unwrap().value, 42, "{argv:?}");
        }
    }
}

isolated! {
    fn a_killed_session_leaves_nothing_behind_any_wrapper() {
        for Wrapped { argv, .. } in wrappers() {
            let mut session = behind(&argv).start().unwrap();
            let child = "import subprocess\np = subprocess.Popen(['sleep', '600'])\np.pid";
            assert_eq!(session.execute(child).unwrap().outcome, Outcome::Completed, "{argv:?}");
            assert_eq!(session.terminate().exit.to_string(), "signal 9", "{argv:?}");
        }
        // What is left would be found by its working directory.
    }
}

isolated! {
    fn a_worker_that_does_not_stop_is_killed_behind_every_wrapper() {
        let code = "import signal, subprocess\nsubprocess.Popen(['sleep', '600'])\nfor n in signal.SIGINT, signal.SIGIO: signal.signal(n, signal.SIG_IGN)\nprint('busy', flush=True)\n\
                    while True:\n    try: sum(range(10**6))\n    except KeyboardInterrupt: pass";
        for Wrapped { argv, .. } in wrappers().into_iter().filter(|wrapper| wrapper.keeps_group) {
            let mut session = behind(&argv).grace(Duration::from_millis(100)).start().unwrap();
            let outcome = cancelled_when_busy(&mut session, code);
            assert_eq!(outcome, Outcome::Cancelled { killed: true }, "{argv:?}");
        }
    }
}

const HOST: &str = "REMUDA_TEST_WRAPPED_HOST";

isolated! {
    fn killing_the_host_leaves_nothing_behind_any_wrapper() {
        let wrappers = wrappers();
        if let Ok(number) = std::env::var(HOST) {
            let Wrapped { argv, keeps_group, .. } = &wrappers[number.parse::<usize>().unwrap()];
            let mut session = behind(argv).start().unwrap();
            print!("\nsession {} ", session.pid());
            let print = |_, bytes: &[u8]| print!("{}", String::from_utf8_lossy(bytes));
            // A worker in a group of its own sees to its end itself, between two steps of its code.
            let busy = if *keeps_group { "sum(range(10**12))" } else { "while True: pass" };
            let code = format!("import subprocess\np = subprocess.Popen(['sleep', '600'])\nprint('busy', flush=True)\n{busy}");
            let _ = session.execute(Request::code(code).on_output(print));
            unreachable!("the host is killed while its session is busy");
        }
        for (number, Wrapped { argv, .. }) in wrappers.iter().enumerate() {
            let mut host = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "runtime_prefix::killing_the_host_leaves_nothing_behind_any_wrapper", "--nocapture", "--test-threads=1"])
                .env(HOST, number.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let busy = BufReader::new(host.stdout.take().unwrap()).lines().find_map(|line| {
                line.unwrap().strip_prefix("session ").and_then(|rest| rest.strip_suffix(" busy")?.parse::<u32>().ok())
            });
            host.kill().unwrap();
            host.wait().unwrap();
            let pid = busy.unwrap_or_else(|| panic!("{argv:?}: the host says that its session is busy"));
            poll(|| !is_running(pid), || format!("{argv:?}: process {pid} outlives its killed host"));
        }
        // What the worker started would be found by its working directory.
    }
}

isolated! {
    fn a_worker_is_accounted_for_behind_every_wrapper() {
        for Wrapped { argv, .. } in wrappers() {
            let mut session = behind(&argv).start().unwrap();
            let code = "x = bytearray(64 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nsum(range(10**6))";
            let usage = session.execute(Request::code(code).measure(true)).unwrap().usage.unwrap();
            let large = |bytes: Option<u64>| bytes.is_some_and(|bytes| bytes > 64 << 20);
            assert!(large(usage.peak_memory) && large(usage.memory), "{argv:?}: {usage:?}");
            let memory = session.memory().unwrap();
            assert!(large(memory.unique) && memory.proportional >= memory.unique, "{argv:?}: {memory:?}");
            assert!(large(session.info().memory_usage.map(|memory| memory.resident)), "{argv:?}");
        }
    }
}

isolated! {
    fn node_runs_and_stops_behind_every_wrapper() {
        for Wrapped { argv, .. } in wrappers() {
            let runtime = Runtime::node("node").prefix(argv.iter().cloned());
            let limits = Limits::new().data(2 << 30).open_files(200);
            let mut session = SessionConfig::new(runtime).grace(GENEROUS).limits(limits).start().unwrap();
            let run = session.execute("console.log('out'); 6 * 7").unwrap();
            assert_eq!((run.value, run.stdout.as_str()), (json!(42), "out\n"), "{argv:?}: {:?}", run.error);
            let run = session.execute(Request::code("for (;;) {}").time_limit(Duration::from_millis(100))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{argv:?}: {:?}", run.post_mortem);
            assert_eq!(session.execute("6 * 7").unwrap().value, 42, "{argv:?}");
            assert!(session.memory().unwrap().unique > Some(1 << 20), "{argv:?}");
        }
    }
}

crate::native_support::native! {
    fn a_native_worker_runs_and_ends_behind_every_wrapper() {
        for Wrapped { argv, .. } in wrappers() {
            let mut config = crate::native_support::native_config();
            config.runtime = config.runtime.prefix(argv.iter().cloned());
            let mut session = config.limits(Limits::new().data(1 << 30)).start().unwrap();
            assert_eq!(session.execute(Call::new("echo").arg(7)).unwrap().value, json!([7]), "{argv:?}");
            assert!(session.memory().unwrap().unique > Some(0), "{argv:?}");
            assert_eq!(session.shutdown(GENEROUS).exit.to_string(), "exit code 0", "{argv:?}");
        }
    }
}

isolated! {
    fn a_wrapper_changes_what_it_is_there_to_change() {
        let mut nice = behind(&["nice", "-n", "5"].map(str::to_owned)).start().unwrap();
        let host = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(nice.execute("import os\nos.nice(0)").unwrap().value, (host + 5).min(19));
        let mut env = behind(&["env", "GREETING=hello"].map(str::to_owned)).start().unwrap();
        assert_eq!(env.execute("import os\nos.environ['GREETING']").unwrap().value, "hello");
    }
}

isolated! {
    fn a_wrapper_that_is_missing_or_refuses_is_named() {
        let missing = behind(&["no-such-wrapper".to_owned()]).start().unwrap_err();
        assert!(matches!(&missing, Error::Runtime { program, .. } if program.ends_with("no-such-wrapper")), "{missing}");
        let refuses = behind(&["sh", "-c", "echo not today >&2; exit 3"].map(str::to_owned)).start().unwrap_err().to_string();
        assert!(refuses.contains("not today") && refuses.contains('3'), "{refuses}");
        let command = SessionConfig::new(Runtime::command("cat", [""; 0]).prefix(["no-such-wrapper"])).start().unwrap_err();
        assert!(command.to_string().contains("no-such-wrapper"), "{command}");
        let empty = SessionConfig::new(Runtime::python("python3").remote([""; 0])).start().unwrap_err();
        assert!(matches!(empty, Error::InvalidConfig { option: "runtime", .. }), "{empty}");
        let none: Session = behind(&[]).start().unwrap();
        assert!(none.is_alive());
    }
}
