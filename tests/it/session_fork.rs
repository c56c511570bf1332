//! Copies of live sessions: both go on from the same moment and are nothing to each other.

use std::time::Duration;

use remuda::{
    CancelToken, Error, Exit, Feature, Limit, Limits, Outcome, Request, Runtime, Session, SessionConfig,
    Template, WorkDir,
};
use serde_json::json;

use crate::support::{GENEROUS, cancelled_when_busy, is_running, isolated, poll, python, session};

/// What is in the way of a copy.
fn obstacles(session: &mut Session) -> Vec<String> {
    match session.fork() {
        Err(Error::NotForkable { obstacles, .. }) => obstacles,
        other => panic!("{other:?}"),
    }
}

isolated! {
    fn a_copy_goes_on_from_the_same_moment_and_neither_sees_what_the_other_does() {
        let mut first = python().warmup_code("base = 40").start().unwrap();
        first.execute("import os, json\nclass Point:\n    def __init__(self, x): self.x = x\np = Point(1)\nbig = list(range(100_000))\nos.environ['MARK'] = 'set'\np.x").unwrap();
        let mut second = first.fork().unwrap();
        assert_ne!((first.id(), first.pid()), (second.id(), second.pid()));
        assert_eq!(second.execution_count(), 0);
        for (session, step) in [(&mut second, 10), (&mut first, 1)] {
            let run = session.execute(format!("p.x += {step}; big.append(p.x)\n(base, p.x, len(big), type(p) is Point, os.environ['MARK'], _)")).unwrap();
            assert_eq!(run.value, json!([40, 1 + step, 100_001, true, "set", 1]), "{run:?}");
        }
        let run = second.execute("import sys\nprint('out'); print('err', file=sys.stderr); os.system('echo child')").unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\nchild\n", "err\n"));
        let third = second.fork().unwrap().execute("p.x").unwrap();
        assert_eq!(third.value, 11, "a copy of a copy");
        assert_eq!(second.warm_report(), first.warm_report());
    }
}

isolated! {
    fn a_copy_has_copies_of_the_files_and_stands_where_the_session_stood() {
        let mut first = session();
        first.execute("import os\nos.makedirs('deep/er'); open('deep/er/data', 'w').write('before'); open('tool', 'w').close(); os.chmod('tool', 0o750); os.utime('tool', (5, 5)); os.symlink('deep/er/data', 'link'); os.mkfifo('pipe'); os.chdir('deep')").unwrap();
        let mut second = first.fork().unwrap();
        let run = second.execute("open('er/data', 'a').write(' and after'); t = os.stat('../tool')\n(sorted(os.listdir('..')), open('../link').read(), t.st_mode & 0o777, t.st_mtime)").unwrap();
        assert_eq!(run.value, json!([["deep", "link", "tool"], "before and after", 0o750, 5.0]));
        assert_eq!(first.execute("open('er/data').read()").unwrap().value, "before");
        assert_eq!(second.files().unwrap().read("deep/er/data").unwrap(), b"before and after");
        assert_eq!(second.reset().unwrap(), [""; 0]);
        let places = second.execute("import os\nos.getcwd()").unwrap().value;
        assert_ne!(places, first.execute("os.path.dirname(os.getcwd())").unwrap().value);
        assert!(second.execute("sorted(os.listdir())").unwrap().value.as_array().unwrap().contains(&json!("tool")));
        // Outside of its directory there is nothing to copy.
        first.execute("os.chdir('/')").unwrap();
        assert_eq!(first.fork().unwrap().execute("os.getcwd()").unwrap().value, "/");
        let mut shared = python().work_dir(WorkDir::Inherit).start().unwrap();
        let here = shared.execute("import os\nos.getcwd()").unwrap().value;
        assert_eq!(shared.fork().unwrap().execute("os.getcwd()").unwrap().value, here);
    }
}

isolated! {
    fn what_two_processes_cannot_both_have_is_in_the_way_and_the_session_goes_on() {
        let cases = [
            ("import threading\ne = threading.Event(); t = threading.Thread(target=e.wait); t.start()", "e.set(); t.join()", "threads"),
            ("import subprocess\nc = subprocess.Popen(['sleep', '600'])", "c.kill(); c.wait()", "child processes"),
            ("import socket\na, b = socket.socketpair()", "a.close(); b.close()", "socket"),
            ("f = open('data', 'w')", "f.close()", "data"),
            ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 600)", "signal.setitimer(signal.ITIMER_REAL, 0)", "timer"),
            ("import asyncio\nt = asyncio.create_task(asyncio.sleep(600)); await asyncio.sleep(0)", "t.cancel(); await asyncio.sleep(0)", "event loop"),
        ];
        for (make, undo, what) in cases {
            let mut session = session();
            session.execute(make).unwrap();
            let found = obstacles(&mut session);
            assert!(found.iter().any(|obstacle| obstacle.contains(what)), "{what}: {found:?}");
            assert_eq!(session.execute(undo).unwrap().outcome, Outcome::Completed, "{what}");
            assert_eq!(session.fork().expect(what).execute("6 * 7").unwrap().value, 42);
        }
    }
}

isolated! {
    fn an_idle_event_loop_and_a_file_to_read_are_not_in_the_way() {
        let mut first = session();
        first.execute("import asyncio\nf = open('/proc/version'); n = 1\nasync def more():\n    global n\n    await asyncio.to_thread(lambda: None)\n    n += 1\n    return n\nawait more()").unwrap();
        let mut second = first.fork().unwrap();
        for session in [&mut first, &mut second] {
            assert_eq!(session.execute("(await more(), f.read()[:5])").unwrap().value, json!([3, "Linux"]));
        }
        // What the user had open before the copy was made is the user's in the copy, too.
        assert_eq!(second.fingerprint().unwrap().fds.len(), 1);
        assert_eq!((second.reset().unwrap(), second.fingerprint().unwrap().is_clean()), (vec![], true));
        assert_eq!(second.execute("'f' in globals()").unwrap().value, false);
    }
}

isolated! {
    fn a_session_and_its_copies_end_in_any_order() {
        let mut first = session();
        first.execute("import os; me = os.getpid()").unwrap();
        let mut copies: Vec<Session> = (0..4).map(|_| first.fork().unwrap()).collect();
        let pids: Vec<u32> = copies.iter().map(Session::pid).collect();
        // They are no children that its user has left.
        assert_eq!(first.fingerprint().unwrap().children, 0);
        assert_eq!(first.reset().unwrap(), [""; 0]);
        let run = copies[0].execute("os._exit(7)").unwrap();
        assert_eq!((run.outcome, run.post_mortem.unwrap().exit), (Outcome::Died, Exit::Code(7)));
        assert_eq!(copies.remove(1).terminate().exit, Exit::Signal(9));
        assert_eq!(copies.remove(1).shutdown(GENEROUS).exit, Exit::Code(0));
        copies[0].restart().unwrap();
        assert_eq!(copies[0].execute("'me' in globals()").unwrap().value, false, "a restart is a fresh start");
        drop(copies.remove(0));
        let left = "import os\nopen('/proc/self/task/%d/children' % os.getpid()).read().split()";
        poll(|| !pids[..3].iter().any(|pid| is_running(*pid)), || "they live".to_owned());
        assert_eq!(first.execute(left).unwrap().value, json!([pids[3].to_string()]), "who has ended is reaped");
        first.terminate();
        let mut last = copies.remove(0);
        assert!(last.execute("me").unwrap().value.is_u64());
        assert_eq!(last.fork().unwrap().execute("1").unwrap().value, 1);
        let run = last.execute("os.kill(os.getpid(), 15)").unwrap();
        assert_eq!(run.outcome, Outcome::Died);
    }
}

isolated! {
    fn a_stop_reaches_one_of_the_two_only() {
        let mut first = session();
        // The flag is mapped before the copy is made.
        first.execute("import remuda\nremuda.cancelled()").unwrap();
        let mut second = first.fork().unwrap();
        let poll_flag = "print('go', flush=True)\nwhile not remuda.cancelled(): pass\n'seen'";
        for (one, other) in [(0, 1), (1, 0)] {
            let both = [&mut first, &mut second];
            assert_eq!(cancelled_when_busy(both[one], "print('go', flush=True)\nwhile True: pass"), Outcome::Cancelled { killed: false });
            assert_eq!(cancelled_when_busy(both[one], poll_flag), Outcome::Cancelled { killed: false });
            assert_eq!(both[other].execute("remuda.cancelled()").unwrap().value, false);
        }
        let run = second.execute(Request::code("while True: pass").time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!(run.error.unwrap().kind, "KeyboardInterrupt");
        let stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGIO, signal.SIG_IGN)\nprint('go', flush=True)\nwhile True: pass";
        assert_eq!(cancelled_when_busy(&mut second, stubborn), Outcome::Cancelled { killed: true });
        assert_eq!(first.execute("2").unwrap().value, 2, "its group is another one");
    }
}

isolated! {
    fn a_copy_has_the_limits_and_options_of_its_session() {
        let limits = Limits::new().data(256 << 20).open_files(64);
        let mut first = python().limits(limits).history(3).env("MARK", "set").start().unwrap();
        let mut second = first.fork().unwrap();
        let run = second.execute("x = bytearray(1 << 30)").unwrap();
        assert!(matches!(run.outcome, Outcome::LimitExceeded { limit: Limit::Data, .. }), "{run:?}");
        assert_eq!(second.execute("import os, resource\n(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.environ['MARK'], len(In))").unwrap().value, json!([64, "set", 2]));
    }
}

isolated! {
    fn sessions_of_templates_and_behind_wrappers_have_copies() {
        let template = Template::start(&python().warmup_code("base = 40")).unwrap();
        let mut first = template.session().unwrap();
        first.execute("base += 1").unwrap();
        let mut second = first.fork().unwrap();
        drop(first);
        assert_eq!(second.execute("base += 1; base").unwrap().value, 42);
        second.restart().unwrap();
        let parent = second.execute("import os\nos.getppid()").unwrap().value;
        assert_eq!(parent, json!(template.info().pid), "a restart is by the template");
        let nice = Runtime::python("python3").prefix(["nice", "-n", "3"]);
        let mut first = SessionConfig::new(nice).start().unwrap();
        first.execute("x = 1").unwrap();
        assert_eq!(first.fork().unwrap().execute("import os\n(x, os.nice(0))").unwrap().value, json!([1, 3]));
    }
}

isolated! {
    fn a_copy_that_cannot_be_made_is_an_error_and_the_session_goes_on() {
        let mut node = Session::builder(Runtime::node("node")).start().unwrap();
        assert!(matches!(node.fork(), Err(Error::Unsupported { feature: Feature::Branch, .. })));
        assert_eq!(node.execute("6 * 7").unwrap().value, 42);
        let mut session = session();
        // Deeper than a path can name.
        session.execute("import os\nfor _ in range(3000): os.mkdir('d' * 8); os.chdir('d' * 8)\nos.chdir('/')").unwrap();
        match session.fork() {
            Err(Error::StartDied { post_mortem }) => assert!(post_mortem.stderr_tail.contains("Error"), "{post_mortem}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(session.execute("6 * 7").unwrap().value, 42);
        assert_eq!(session.reset().unwrap(), [""; 0], "what was begun has ended");
        session.terminate();
        assert!(matches!(node.shutdown(GENEROUS).exit, Exit::Code(0)));
    }
}

isolated! {
    fn what_hooks_print_at_the_fork_goes_nowhere_and_hooks_that_fail_change_nothing() {
        let mut first = session();
        first.execute("import os, sys\ndef talk(): print('x' * (4 << 20)); print('y', file=sys.stderr); os.write(1, b'z')\ndef fail(): raise ValueError('no')\nfor hook in (talk, fail): os.register_at_fork(before=hook, after_in_parent=hook, after_in_child=hook)").unwrap();
        for _ in 0..2 {
            let mut second = first.fork().unwrap();
            for session in [&mut first, &mut second] {
                let run = session.execute("print('out'); print('err', file=sys.stderr)").unwrap();
                assert_eq!((run.stdout.as_str(), run.stderr.as_str(), run.dropped), ("out\n", "err\n", (0, 0)));
            }
            assert_eq!(second.reset().unwrap(), [""; 0]);
            assert_eq!(second.terminate().exit, Exit::Signal(9));
        }
        assert_eq!(first.reset().unwrap(), [""; 0]);
    }
}

isolated! {
    fn a_session_without_descriptors_is_not_copied_and_goes_on() {
        let mut session = python().limits(Limits::new().open_files(64)).start().unwrap();
        let all = "files = []\ntry:\n    while True: files.append(open('/proc/version'))\nexcept OSError: pass";
        for spare in 0..8 {
            session.execute(all).unwrap();
            session.execute(format!("for _ in range({spare}): files.pop().close()")).unwrap();
            // With some it is a copy; with fewer it is told why it is none, and nothing else is lost.
            if let Err(error) = session.fork() {
                assert!(matches!(error, Error::NotForkable { .. } | Error::Io { .. } | Error::StartDied { .. }), "{error:?}");
            }
            assert_eq!(session.execute("print('still here')").unwrap().stdout, "still here\n", "{spare} spare");
            session.execute("for f in files: f.close()").unwrap();
        }
    }
}

isolated! {
    fn code_that_answers_for_its_worker_hands_over_no_process_of_others() {
        // The answer to the first fork, before it is asked for: with a descriptor of the host itself.
        let lie = "import os, socket, struct\nbody = struct.pack('<I', 0)\nframe = struct.pack('<IBBHQ', len(body), 27, 0, 0, 1) + body\nfor name in os.listdir('/proc/self/fd'):\n    try:\n        if os.readlink('/proc/self/fd/' + name).startswith('socket:'):\n            s = socket.socket(fileno=os.dup(int(name)))\n            pidfd = os.pidfd_open(os.getppid())\n            s.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', pidfd))])\n            os.close(pidfd); s.close()\n    except OSError: pass";
        let mut session = session();
        assert_eq!(session.execute(lie).unwrap().outcome, Outcome::Completed);
        let copy = session.fork();
        assert!(copy.is_err(), "{copy:?}");
        // Whatever became of the liar: this process is still here, and others are unharmed.
        let token = CancelToken::new();
        token.cancel();
        drop(session);
        assert_eq!(self::session().execute("1").unwrap().value, 1);
    }
}
