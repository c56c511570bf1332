//! Starting sessions: warm-up, limits, and everything that can be wrong.

use std::time::Duration;

use remuda::testing::{FakeReply, FakeWorker};
use remuda::{Error, Exit, Limits, Request, Runtime, SessionConfig, WorkDir};
use serde_json::json;

use crate::support::{GENEROUS, ScratchDir, isolated, python, session};

isolated! {
    fn warm_imports_and_code_are_done_before_the_first_request() {
        let config = python().warm_import("json").warm_import("xml.dom").warmup_code("base = 40");
        let mut session = config.start().unwrap();
        let run = session.execute("import sys; ['xml.dom' in sys.modules, base + 2]").unwrap();
        assert_eq!(run.value, json!([true, 42]));
        assert_eq!(session.execution_count(), 1);
    }
}

isolated! {
    fn a_failing_warm_up_is_an_error_with_its_cause() {
        let error = python().warmup_code("def f():\n    1 / 0\nf()").start().unwrap_err();
        let Error::WarmUp { what, message, traceback } = error else { panic!("{error}") };
        assert_eq!(what, "warmup_code");
        assert!(message.contains("ZeroDivisionError"), "{message}");
        assert!(traceback.contains("1 / 0"), "{traceback}");
        let error = python().warm_import("no_such_module").require_warm_imports(true).start().unwrap_err();
        assert!(matches!(&error, Error::WarmUp { what, .. } if what.contains("no_such_module")), "{error}");
    }
}

isolated! {
    fn a_wrapper_that_fails_at_once_is_explained_by_its_last_words() {
        let runtime = Runtime::python("python3").remote(["/bin/sh", "-c", "echo 'hop: no route' >&2; exit 255", "hop"]);
        for _ in 0..20 {
            let error = SessionConfig::new(runtime.clone()).start().unwrap_err();
            let Error::StartDied { post_mortem } = &error else { panic!("{error}") };
            assert_eq!((post_mortem.exit, post_mortem.stderr_tail.as_str()), (Exit::Code(255), "hop: no route\n"));
        }
    }
}

isolated! {
    fn warm_up_code_that_takes_too_long_is_told_so() {
        let limited = |code: &str| python().warmup_code(code).warmup_time_limit(Duration::from_millis(200));
        let error = limited("import time; time.sleep(600)").grace(GENEROUS).start().unwrap_err().to_string();
        assert!(error.contains("time limit of 200ms (KeyboardInterrupt)"), "{error}");
        // Deaf from its first moment on, which code that first has to ignore signals is not.
        let fake = FakeWorker::new().reply("deaf", FakeReply::hang().ignoring_cancels());
        let config = SessionConfig::new(fake.runtime()).warmup_code("deaf");
        let error = config.warmup_time_limit(Duration::from_millis(200)).start().unwrap_err().to_string();
        assert!(error.contains("did not end within 200ms"), "{error}");
        let session = limited("while True: pass").ignore_warmup_errors(true).grace(GENEROUS).start().unwrap();
        assert_eq!(session.warm_report().code_error.as_ref().unwrap().kind, "KeyboardInterrupt");
    }
}

isolated! {
    fn a_worker_that_never_becomes_ready_is_killed_in_time() {
        // The interpreter is asked for its version in its own time.
        drop(session());
        // Peer bug B10: start() waited for ever and left the child.
        let error = python().warmup_code("import time; time.sleep(600)").start_timeout(Duration::from_millis(300)).start().unwrap_err();
        assert!(matches!(error, Error::StartTimeout { .. }), "{error}");
        let silent = SessionConfig::new(Runtime::command("sleep", ["600"])).start_timeout(Duration::from_millis(300));
        assert!(matches!(silent.start().unwrap_err(), Error::StartTimeout { .. }));
    }
}

isolated! {
    fn a_worker_that_dies_at_start_leaves_a_post_mortem() {
        let error = python().warmup_code("import os, sys; print('bye', file=sys.stderr); os._exit(9)").start().unwrap_err();
        let Error::StartDied { post_mortem } = &error else { panic!("{error}") };
        assert_eq!(post_mortem.exit.to_string(), "exit code 9");
        assert_eq!(post_mortem.stderr_tail, "bye\n");
    }
}

isolated! {
    fn wrong_programs_are_named_with_what_to_do() {
        let start = |runtime| SessionConfig::new(runtime).start().unwrap_err().to_string();
        let missing = start(Runtime::python("/nowhere/python3"));
        assert!(missing.contains("/nowhere/python3") && missing.contains("no such program"), "{missing}");
        let wrong = start(Runtime::python("/bin/true"));
        assert!(wrong.contains("name a Python 3.9 or later"), "{wrong}");
        let directory = start(Runtime::python("/"));
        assert!(directory.contains("may not be executed"), "{directory}");
        let missing = start(Runtime::command("no-such-worker", [""; 0]));
        assert!(missing.contains("no such program"), "{missing}");
    }
}

isolated! {
    fn a_program_that_does_not_speak_the_protocol_is_refused() {
        let start = |script: &str| SessionConfig::new(Runtime::command("/bin/sh", ["-c", script])).start().unwrap_err();
        for (script, expected) in [
            ("exit 3", "exit code 3"),
            ("echo I am no worker at all, sorry; cat", "broke the protocol"),
            ("exec 0<&- 1>&-; sleep 600", "broke the protocol"),
        ] {
            let error = start(script).to_string();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }
}

isolated! {
    fn a_command_that_speaks_the_protocol_is_a_session() {
        // READY for request 0, then the worker waits. 16-byte header, then the two-part body.
        let body = r#"{"protocol":1,"language":"sh","version":"0"}"#;
        let total = body.len() + 4;
        let script = format!(
            r"printf '\{total:03o}\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\{:03o}\0\0\0{body}'; cat >/dev/null",
            body.len()
        );
        let session = SessionConfig::new(Runtime::command("/bin/sh", ["-c", &script])).start().unwrap();
        assert!(session.is_alive());
        assert_eq!(session.info().runtime, "sh 0");
    }
}

/// A worker on fds 0 and 1 that reads the header of each request and then does `act`.
fn inline_worker(act: &str) -> SessionConfig {
    let script = format!(
        "import os, signal, struct\n\
         def read(n):\n    data = b''\n    while len(data) < n:\n        more = os.read(0, n - len(data))\n        \
         if not more: os._exit(0)\n        data += more\n    return data\n\
         def send(kind, flags, request, first):\n    \
         os.write(1, struct.pack('<IBBHQI', 4 + len(first), kind, flags, 0, request, len(first)) + first)\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n\
         head = read(16)\nread(*struct.unpack('<I', head[:4]))\n\
         send(2, 0, 0, b'{{\"protocol\":1,\"pid\":%d,\"language\":\"inline\",\"version\":\"0\",\"features\":[\"execute\",\"sigint\"]}}' % os.getpid())\n\
         while True:\n    head = read(16)\n    size, kind, _, _, request = struct.unpack('<IBBHQ', head)\n    \
         if kind == 9: read(size); continue\n    {act}"
    );
    SessionConfig::new(Runtime::command("python3", ["-c", &script]))
}

isolated! {
    fn a_cancel_never_lands_in_the_middle_of_a_request() {
        // The worker reads the rest of its request when the signal says that the cancel is under way.
        // By then it has read a part, so that the socket has room for a frame.
        let act = "body = read(min(size, 65536))\n    if size > 65536: signal.sigwait([signal.SIGINT])\n    \
                   body += read(size - len(body))\n    send(7, 3, request, b'true' if set(body[4:]) == {120} else b'false')";
        let mut session = inline_worker(act).grace(GENEROUS).start().unwrap();
        let request = Request::code("x".repeat(8 << 20)).time_limit(Duration::from_millis(100));
        assert_eq!(session.execute(request).unwrap().value, true);
        assert_eq!(session.execute("x").unwrap().value, true);
    }
}

isolated! {
    fn an_answer_to_a_request_that_was_not_read_breaks_the_protocol() {
        let mut session = inline_worker("send(7, 3, request, b'1')\n    read(size)").start().unwrap();
        let error = session.execute("x".repeat(8 << 20)).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert!(!session.is_alive());
    }
}

isolated! {
    fn senseless_options_are_refused_with_a_reason() {
        for (config, option) in [
            (python().start_timeout(Duration::ZERO), "start_timeout"),
            (python().time_limit(Duration::ZERO), "time_limit"),
            (python().frame_cap(1), "frame_cap"),
            (python().env("A=B", "c"), "env"),
            (python().work_dir(WorkDir::Path("/nowhere".into())), "work_dir"),
        ] {
            let error = config.start().unwrap_err();
            assert!(matches!(&error, Error::InvalidConfig { option: named, .. } if *named == option), "{error}");
        }
    }
}

isolated! {
    fn limits_hold_and_give_typed_outcomes() {
        let limits = Limits::new().data(256 << 20).open_files(64).file_size(1 << 20);
        let mut session = python().limits(limits).start().unwrap();
        let run = session.execute("x = bytearray(1 << 30)").unwrap();
        assert_eq!(run.error.unwrap().kind, "MemoryError");
        let run = session.execute("files = [open('/dev/null') for _ in range(100)]").unwrap();
        assert_eq!(run.error.unwrap().kind, "OSError");
        let run = session.execute("with open('big', 'wb') as f: f.write(b'x' * (2 << 20))").unwrap();
        assert_eq!(run.error.unwrap().kind, "OSError");
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn every_installed_python_runs_the_worker() {
        let mut tried = 0;
        for version in 9..=14 {
            let program = format!("python3.{version}");
            let mut session = match SessionConfig::new(Runtime::python(&program)).start() {
                Ok(session) => session,
                Err(Error::Runtime { .. }) => continue,
                Err(error) => panic!("{program}: {error}"),
            };
            let run = session.execute("import sys\nprint('out')\nsys.version_info[1]").unwrap();
            assert_eq!((run.value, run.stdout.as_str()), (json!(version), "out\n"));
            tried += 1;
        }
        println!("{tried} Python versions by name");
    }
}

isolated! {
    fn a_relative_interpreter_is_relative_to_the_host() {
        let directory = ScratchDir::new();
        let real = std::process::Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        std::os::unix::fs::symlink(real.trim(), directory.path().join("py")).unwrap();
        std::env::set_current_dir(directory.path()).unwrap();
        let session = SessionConfig::new(Runtime::python("./py")).start().unwrap();
        assert!(session.is_alive());
        std::env::set_current_dir("/").unwrap();
    }
}
