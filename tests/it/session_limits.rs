//! Limits that the kernel holds, the outcome of code that runs into one, and accounting.

use std::time::Duration;

use remuda::{Error, Execution, Limit, Limits, Outcome, Request, Runtime, Session, SessionConfig};
use serde_json::json;

use crate::support::{installed, isolated, python};

fn limited(limits: Limits) -> Session {
    python().limits(limits).start().unwrap()
}

fn died_of(limit: Limit, run: &Execution) {
    let expected = Outcome::LimitExceeded { limit, killed: true };
    assert_eq!(run.outcome, expected, "{:?} {:?}", run.error, run.post_mortem);
    assert!(run.post_mortem.is_some());
}

isolated! {
    fn a_worker_knows_its_limits_from_its_first_line_on() {
        let limits = Limits::new().data(1 << 30).address_space(2 << 30).cpu_seconds(50).open_files(100)
            .file_size(1 << 20).processes(5000).niceness(7);
        let code = "import resource, os\n\
            limits = [resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in ('DATA', 'AS', 'CPU', 'NOFILE', 'FSIZE', 'NPROC', 'CORE')]";
        let expected = json!([[1 << 30, 1 << 30], [2_u64 << 30, 2_u64 << 30], [50, 51], [100, 100], [1 << 20, 1 << 20], [5000, 5000], [0, 0]]);
        let wrappers = [&[][..], &["nice", "-n", "0"], &["sh", "-c", "\"$@\"; exit", "sh"], &["timeout", "600"]];
        for wrapper in wrappers {
            let runtime = Runtime::python("python3").prefix(wrapper.iter().copied());
            let config = SessionConfig::new(runtime).limits(limits).warmup_code(code);
            let mut session = config.start().unwrap();
            let run = session.execute("[list(pair) for pair in limits]").unwrap();
            assert_eq!(run.value, expected, "{wrapper:?}: {:?}", run.error);
            assert_eq!(session.execute("os.nice(0)").unwrap().value, 7);
            // Children inherit them.
            let child = "import subprocess, sys\nint(subprocess.run([sys.executable, '-c', 'import resource; \
                         print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])'], capture_output=True).stdout)";
            assert_eq!(session.execute(child).unwrap().value, 100, "{wrapper:?}");
        }
    }
}

isolated! {
    fn a_sandboxed_worker_is_limited_before_the_sandbox_forks() {
        if !installed("bwrap") {
            return;
        }
        let sandbox = ["bwrap", "--unshare-pid", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"];
        // Set too late, a limit would miss the worker now and then.
        for _ in 0..10 {
            let config = SessionConfig::new(Runtime::python("python3").prefix(sandbox)).limits(Limits::new().open_files(99));
            let mut session = config.start().unwrap();
            assert_eq!(session.execute("import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0]").unwrap().value, 99);
        }
    }
}

isolated! {
    fn the_least_limits_that_are_allowed_let_a_worker_start() {
        let limits = Limits::new().open_files(32).cpu_seconds(1).file_size(0).data(64 << 20).address_space(256 << 20).niceness(19);
        let mut session = limited(limits);
        assert_eq!(session.execute("import json\nprint('x')\n1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn a_busy_loop_dies_of_its_cpu_time() {
        let mut session = limited(Limits::new().cpu_seconds(1));
        died_of(Limit::CpuTime, &session.execute("while True: pass").unwrap());
        assert!(matches!(session.execute("1"), Err(Error::SessionDead { .. })));
    }
}

isolated! {
    fn code_that_ignores_the_end_of_its_cpu_time_is_killed_a_second_later() {
        let mut session = limited(Limits::new().cpu_seconds(1));
        let code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
        let run = session.execute(code).unwrap();
        died_of(Limit::CpuTime, &run);
        assert_eq!(run.post_mortem.unwrap().exit.to_string(), "signal 9");
    }
}

isolated! {
    fn a_worker_behind_a_wrapper_that_waits_dies_of_its_cpu_time_too() {
        for code in ["while True: pass", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"] {
            let runtime = Runtime::python("python3").prefix(["sh", "-c", "\"$@\"; exit $?", "sh"]);
            let mut session = SessionConfig::new(runtime).limits(Limits::new().cpu_seconds(1)).start().unwrap();
            died_of(Limit::CpuTime, &session.execute(code).unwrap());
        }
    }
}

isolated! {
    fn a_program_that_does_not_ignore_the_signal_dies_of_too_large_a_file() {
        let mut session = limited(Limits::new().file_size(1 << 20));
        let code = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nwith open('big', 'wb') as f: f.write(b'x' * (2 << 20))";
        died_of(Limit::FileSize, &session.execute(code).unwrap());
    }
}

isolated! {
    fn a_death_without_the_limit_is_a_death() {
        for code in [
            "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)",
            "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGXFSZ)",
            "import os, sys\nprint('out of memory', file=sys.stderr, flush=True)\nos.abort()",
            "import os\nos.kill(os.getpid(), 9)",
        ] {
            let mut session = limited(Limits::new().niceness(19).processes(5000));
            assert_eq!(session.execute(code).unwrap().outcome, Outcome::Died, "{code}");
        }
        // The limit is set, and something else ended the worker.
        let mut session = limited(Limits::new().cpu_seconds(60).data(1 << 30));
        assert_eq!(session.execute("import os\nos.kill(os.getpid(), 9)").unwrap().outcome, Outcome::Died);
    }
}

isolated! {
    fn a_runtime_that_aborts_for_want_of_memory_says_so_by_its_last_words() {
        let mut session = limited(Limits::new().data(1 << 30));
        // As V8 does it: the reason first, then a stack that is longer than a post-mortem's last words.
        let code = "import os, sys\nprint('FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory', file=sys.stderr)\n\
                    for i in range(100): print(i, '0xb78db3 node::OOMErrorHandler(char const*, v8::OOMDetails const&) [node]', file=sys.stderr)\n\
                    sys.stderr.flush()\nos.abort()";
        died_of(Limit::Data, &session.execute(code).unwrap());
    }
}

isolated! {
    fn code_that_runs_into_a_limit_gets_its_name_and_the_session_lives() {
        let exceeded = |limit| Outcome::LimitExceeded { limit, killed: false };
        let mut session = limited(Limits::new().data(256 << 20).open_files(64).file_size(1 << 20));
        for (code, limit) in [
            ("x = bytearray(1 << 30)", Limit::Data),
            ("files = [open('/dev/null') for _ in range(100)]", Limit::OpenFiles),
            ("with open('big', 'wb') as f: f.write(b'x' * (2 << 20))", Limit::FileSize),
        ] {
            let run = session.execute(code).unwrap();
            assert_eq!(run.outcome, exceeded(limit), "{code}: {:?}", run.error);
            assert!(run.error.is_some());
        }
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        let mut session = limited(Limits::new().address_space(512 << 20));
        assert_eq!(session.execute("x = bytearray(1 << 30)").unwrap().outcome, exceeded(Limit::AddressSpace));
        // The same exceptions without a limit of ours are exceptions.
        let mut session = limited(Limits::new());
        for code in ["raise MemoryError", "raise OSError(24, 'Too many open files')", "raise OSError(27, 'File too large')"] {
            assert_eq!(session.execute(code).unwrap().outcome, Outcome::Failed, "{code}");
        }
    }
}

isolated! {
    fn memory_that_runs_out_to_the_last_byte_is_named() {
        let codes = [
            "hoard = []\nwhile True: hoard.append(bytearray(1 << 12))",
            "def dig(n):\n    hoard = [object() for _ in range(10000)]\n    return dig(n + 1), hoard\nimport sys\nsys.setrecursionlimit(10**6)\ndig(0)",
        ];
        for code in codes {
            let mut session = limited(Limits::new().data(128 << 20));
            let run = session.execute(code).unwrap();
            assert!(matches!(run.outcome, Outcome::LimitExceeded { limit: Limit::Data, .. }), "{code}: {:?} {:?} {:?}", run.outcome, run.error, run.post_mortem);
        }
    }
}

isolated! {
    fn node_dies_of_its_memory_and_its_cpu_time() {
        let session = |limits| SessionConfig::new(Runtime::node("node")).limits(limits).start().unwrap();
        let hoard = "const hoard = []; for (;;) hoard.push(new Array(1e6).fill({}))";
        died_of(Limit::Data, &session(Limits::new().data(400 << 20)).execute(hoard).unwrap());
        died_of(Limit::CpuTime, &session(Limits::new().cpu_seconds(1)).execute("for (;;) {}").unwrap());
    }
}

isolated! {
    fn a_fork_beyond_the_users_processes_is_named() {
        let user = rustix::process::getuid();
        if !user.is_root() || !installed("setpriv") || !std::path::Path::new("/usr/bin/python3").exists() {
            eprintln!("SKIPPED: it needs root, setpriv and /usr/bin/python3");
            return;
        }
        // A user that nobody else is: all processes of a user count.
        let stranger = (200_000 + std::process::id()).to_string();
        let runtime = Runtime::python("/usr/bin/python3").prefix(["setpriv", "--clear-groups", "--reuid", &stranger, "--regid", &stranger]);
        let mut session = SessionConfig::new(runtime).limits(Limits::new().processes(4)).start().unwrap();
        let run = session.execute("import subprocess\nall = [subprocess.Popen(['sleep', '600']) for _ in range(10)]").unwrap();
        assert_eq!(run.outcome, Outcome::LimitExceeded { limit: Limit::Processes, killed: false }, "{:?}", run.error);
        let run = session.execute("import threading, time\nfor _ in range(10): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()").unwrap();
        assert_eq!(run.outcome, Outcome::LimitExceeded { limit: Limit::Processes, killed: false }, "{:?}", run.error);
    }
}

isolated! {
    fn limits_that_make_no_sense_are_refused_with_a_reason() {
        let remote = SessionConfig::new(Runtime::python("python3").remote(["env"])).limits(Limits::new().data(1 << 30));
        let mut refused = vec![(remote, "remote wrapper")];
        for (limits, reason) in [
            (Limits::new().open_files(3), "open_files"),
            (Limits::new().data(1000), "data"),
            (Limits::new().cpu_seconds(0), "cpu_seconds"),
            (Limits::new().niceness(100), "niceness"),
            (Limits::new().open_files(u64::MAX), "open_files"),
        ] {
            refused.push((python().limits(limits), reason));
        }
        for (config, expected) in refused {
            let error = config.start().unwrap_err();
            assert!(matches!(&error, Error::InvalidConfig { option: "limits", reason } if reason.contains(expected)), "{expected}: {error}");
        }
    }
}

isolated! {
    fn usage_is_that_of_the_execution() {
        let mut session = limited(Limits::new());
        let measured = |session: &mut Session, code: &str| {
            session.execute(Request::code(code).measure(true)).unwrap().usage.unwrap()
        };
        let busy = measured(&mut session, "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass");
        assert!(busy.cpu_time >= Duration::from_millis(180), "{busy:?}");
        let idle = measured(&mut session, "1");
        assert!(idle.cpu_time < busy.cpu_time, "{idle:?}");
        let large = measured(&mut session, "x = b'x' * (100 << 20)\ndel x");
        assert!(large.peak_memory.unwrap() > 100 << 20 && large.memory.unwrap() < large.peak_memory.unwrap(), "{large:?}");
        let small = measured(&mut session, "1");
        assert!(small.peak_memory.unwrap() < 100 << 20, "{small:?}");
        // Also of one that died under it.
        let died = measured(&mut session, "import time, os\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nos._exit(1)");
        assert!(died.cpu_time >= Duration::from_millis(180), "{died:?}");
        assert!(session.memory().is_none());
    }
}
