//! User code that does its worst: a typed outcome in time, and a session that says whether it lives.

use std::time::Duration;

use remuda::{Exit, Outcome, Request, TimeLimit};

use crate::support::{GENEROUS, cancelled_when_busy, is_running, isolated, poll, python, session};

isolated! {
    fn leaving_by_os_exit_is_a_death_with_its_code() {
        let mut session = session();
        let run = session.execute("import os, sys; print('out'); print('last words', file=sys.stderr); os._exit(3)").unwrap();
        assert_eq!(run.outcome, Outcome::Died);
        assert_eq!(run.post_mortem.as_ref().unwrap().exit, Exit::Code(3));
        assert_eq!(run.post_mortem.unwrap().stderr_tail, "last words\n");
        assert_eq!(run.stdout, "out\n");
        assert!(!session.is_alive());
    }
}

isolated! {
    fn closing_the_standard_descriptors_harms_only_the_code_itself() {
        // Peer bug B12: fds 0 and 1 of user code were the protocol.
        let mut session = session();
        let run = session.execute("import os\nfor fd in (0, 1, 2): os.close(fd)\n7").unwrap();
        assert_eq!(run.value, 7);
        assert_eq!(session.execute("print('nobody hears this')").unwrap().outcome, Outcome::Failed);
        assert_eq!(session.execute("8").unwrap().value, 8);
    }
}

isolated! {
    fn output_of_child_processes_arrives_and_frames_stay_whole() {
        let mut session = session();
        let run = session.execute("import os; os.system('echo hi; echo ho >&2')").unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str(), run.value), ("hi\n", "ho\n", 0.into()));
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_gigabyte_of_output_is_capped_and_counted() {
        let mut session = session();
        let code = "import sys\nblock = b'x' * (1 << 20)\nfor _ in range(1024): sys.stdout.buffer.write(block)\n'done'";
        let mut seen = 0_u64;
        let run = session.execute(Request::code(code).on_output(|_, bytes| seen += bytes.len() as u64)).unwrap();
        assert_eq!(run.value, "done");
        assert_eq!(seen, 1 << 30);
        assert_eq!(run.dropped.0, (1 << 30) - (16 << 20));
        assert!(run.stdout.len() < (16 << 20) + 100);
    }
}

isolated! {
    fn a_thread_that_prints_after_its_execution_does_not_disturb_the_next() {
        let mut session = session();
        let code = "import threading\ngo = threading.Event()\ndef late():\n    go.wait()\n    print('late')\n    done.set()\ndone = threading.Event()\nthreading.Thread(target=late, daemon=True).start()";
        session.execute(code).unwrap();
        // Another thread lets it go after this execution has ended.
        session.execute("threading.Timer(0.05, go.set).start()").unwrap();
        poll(
            || session_has_late_output(&session),
            || "the late line never came".to_owned(),
        );
        let run = session.execute("print('mine')").unwrap();
        assert_eq!(run.stdout, "mine\n");
        assert_eq!(session.info().late_output, 5);
    }
}

/// Bytes that wait in the worker's stdout, seen from outside: the pipe's reader is this process.
fn session_has_late_output(_: &remuda::Session) -> bool {
    std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok).any(|entry| {
        let fd: i32 = entry.file_name().to_string_lossy().parse().unwrap_or(-1);
        let is_pipe =
            std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("pipe:"));
        is_pipe && waiting(fd) == 5
    })
}

/// FIONREAD through a descriptor of our own for the same pipe.
fn waiting(fd: i32) -> u64 {
    std::fs::File::open(format!("/proc/self/fd/{fd}"))
        .ok()
        .and_then(|file| rustix::io::ioctl_fionread(&file).ok())
        .unwrap_or(0)
}

isolated! {
    fn a_forked_child_that_falls_through_never_answers_for_its_parent() {
        let mut session = session();
        let run = session.execute("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'parent' if pid else 'child'").unwrap();
        assert_eq!(run.value, "parent");
        for i in 0..20 {
            let run = session.execute(format!("import os\nos.fork()\n{i}")).unwrap();
            assert_eq!(run.value, i);
        }
        let run = session.execute("import os\nif not os.fork(): raise ValueError('in the child')\nos.wait()[1]").unwrap();
        assert_eq!(run.outcome, Outcome::Completed, "{:?}", run.error);
        assert_eq!(session.execute("'still me'").unwrap().value, "still me");
    }
}

isolated! {
    fn recursion_to_death_is_an_error_or_a_post_mortem() {
        let mut session = session();
        let run = session.execute("def f(): f()\nf()").unwrap();
        assert_eq!(run.error.unwrap().kind, "RecursionError");
        let code = "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, name): return getattr(self, name)\nA().x";
        let run = session.execute(Request::code(code).time_limit(Duration::from_secs(30))).unwrap();
        assert!(matches!(run.outcome, Outcome::Died | Outcome::Failed), "{:?}", run.outcome);
    }
}

isolated! {
    fn a_segfault_is_a_death_by_signal_with_the_interpreters_words() {
        let mut session = session();
        let run = session.execute("import faulthandler, ctypes; faulthandler.enable(); ctypes.string_at(1)").unwrap();
        assert_eq!(run.outcome, Outcome::Died);
        let post_mortem = run.post_mortem.unwrap();
        assert_eq!(post_mortem.exit, Exit::Signal(11));
        assert!(post_mortem.stderr_tail.contains("Segmentation fault"), "{}", post_mortem.stderr_tail);
    }
}

isolated! {
    fn closing_every_descriptor_ends_the_session_with_a_typed_error() {
        let mut session = session();
        let result = session.execute(Request::code("import os; os.closerange(0, 1000)").time_limit(Duration::from_secs(30)));
        match result {
            Ok(run) => assert_eq!(run.outcome, Outcome::Died),
            Err(error) => assert!(matches!(error, remuda::Error::Protocol { .. }), "{error}"),
        }
        assert!(!session.is_alive());
    }
}

isolated! {
    fn a_stopped_worker_is_killed_when_its_time_is_up() {
        let mut session = session();
        let pid = rustix::process::Pid::from_raw(session.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let run = session.execute(Request::code("1").time_limit(Duration::from_millis(100))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: true });
    }
}

isolated! {
    fn replaced_streams_and_broken_builtins_do_not_break_the_worker() {
        let mut session = session();
        session.execute("import sys, io\nsys.stdout = io.StringIO()\nprint('captured')\nsys.stderr = None").unwrap();
        let run = session.execute("sys.stdout.getvalue()").unwrap();
        assert_eq!(run.value, "captured\n");
        session.execute("del sys.stdout").unwrap();
        assert_eq!(session.execute("3").unwrap().value, 3);
    }
}

isolated! {
    fn bytes_that_user_code_puts_on_the_reply_channel_end_the_session_and_harm_nobody() {
        let mut session = session();
        let scribble = "import os, stat\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass";
        let error = session.execute(scribble).unwrap_err();
        assert!(matches!(error, remuda::Error::Protocol { .. }), "{error}");
        assert!(!session.is_alive());
        session.restart().unwrap();
        // While nobody executes: found before the next request.
        // On a slow machine the thread is early, and the request that started it is hit.
        let late = format!("import threading\ndef late():\n    {}\nthreading.Timer(0.01, late).start()\n1", scribble.replace('\n', "\n    "));
        let mut result = session.execute(late);
        while let Ok(run) = result {
            assert_eq!(run.value, 1);
            result = session.execute("1");
        }
        let error = result.unwrap_err();
        assert!(matches!(error, remuda::Error::Protocol { .. }), "{error}");
    }
}

isolated! {
    fn a_channel_that_closes_in_the_middle_of_a_frame_is_not_waited_for() {
        let mut session = session();
        let code = "import os, time\nfor fd in range(20, 64):\n    try: os.write(fd, b'\\x20\\0\\0\\0\\x07')\n    except OSError: pass\n\
                    os.closerange(20, 64)\ntime.sleep(600)";
        let error = session.execute(Request::code(code).time_limit(GENEROUS)).unwrap_err();
        assert!(matches!(error, remuda::Error::Protocol { .. }), "{error}");
        assert!(!session.is_alive());
    }
}

isolated! {
    fn a_frame_that_announces_too_much_is_refused_without_being_awaited() {
        let mut session = session();
        let code = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff\\xff\\xff\\x7f' + bytes([7]) + bytes(11))\n    except OSError: pass\nwhile True: pass";
        let error = session.execute(Request::code(code).time_limit(GENEROUS)).unwrap_err();
        assert!(matches!(&error, remuda::Error::Protocol { reason, .. } if reason.contains("over the cap")), "{error}");
    }
}

isolated! {
    fn a_worker_that_leaves_its_process_group_is_killed_all_the_same() {
        let mut session = session();
        let pid = session.pid();
        // The group of the host: a signal to the worker's first group reaches nobody any more.
        let code = "import os, signal\nos.setpgid(0, os.getpgid(os.getppid()))\n\
                    for s in (signal.SIGINT, signal.SIGIO): signal.signal(s, signal.SIG_IGN)\n\
                    print('go', flush=True)\nwhile True: pass";
        assert_eq!(cancelled_when_busy(&mut session, code), Outcome::Cancelled { killed: true });
        poll(|| !is_running(pid), || "the worker has outlived its kill".to_owned());
    }
}

isolated! {
    fn an_exception_in_the_middle_of_a_cancel_does_not_make_the_code_deaf() {
        // Stands for a stack that is full, or a handler of the user's that raises, at this moment.
        let code = "import posix\nread = posix.read\ndef fails_once(*args):\n    posix.read = read\n    raise RecursionError\n\
                    posix.read = fails_once\nwhile True:\n    try:\n        for _ in iter(int, 1): pass\n    except RecursionError: pass";
        let mut session = python().grace(GENEROUS).start().unwrap();
        let run = session.execute(Request::code(code).time_limit(Duration::from_millis(100))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{run:?}");
    }
}
