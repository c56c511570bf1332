//! Ends of templates and of their sessions, in whatever order; and templates that cannot be.

use std::time::Duration;

use remuda::{Exit, Limits, Outcome, Request, Runtime, Session, SessionConfig, Template, TimeLimit, WorkDir};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{
    GENEROUS, doomed, installed, is_running, isolated, nothing_outlives_a_killed_host, poll, python,
    run_until_killed,
};
use crate::template_basics::{forked, template};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn pid_of(template: &Template) -> u32 {
    template.info().pid.expect("it lives")
}

isolated! {
    fn sessions_outlive_the_death_of_their_template_and_the_next_one_gets_a_new_one() {
        let template = template(&python().grace(GENEROUS).warmup_code("base = 40"));
        let (mut first, mut second, third) = (forked(&template), forked(&template), forked(&template));
        let dead = pid_of(&template);
        signal(dead, Signal::KILL);
        poll(|| template.info().pid.is_none(), || "it lives".to_owned());
        assert_eq!(first.execute("base + 2").unwrap().value, 42);
        let run = first.execute(Request::code("while True: pass").time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        // Who has waited for it is not us: whether that can be told is a matter of who comes first.
        let run = second.execute("import os\nos._exit(7)").unwrap();
        assert_eq!(run.outcome, Outcome::Died);
        assert!(matches!(run.post_mortem.unwrap().exit, Exit::Unknown | Exit::Code(7)));
        assert!(matches!(third.terminate().exit, Exit::Unknown | Exit::Signal(9)));
        let mut next = forked(&template);
        assert_eq!((template.info().starts, pid_of(&template) == dead), (2, false));
        assert_eq!(next.execute("base").unwrap().value, 40);
        second.restart().unwrap();
        assert_eq!(second.execute("import os\nos.getppid()").unwrap().value, json!(pid_of(&template)));
    }
}

isolated! {
    fn a_template_that_is_dropped_ends_with_its_last_session() {
        let template = template(&python());
        let (mut first, second) = (forked(&template), forked(&template));
        let pid = pid_of(&template);
        drop(template);
        assert!(is_running(pid), "it has sessions to tell about");
        assert_eq!(second.terminate().exit, Exit::Signal(9));
        let run = first.execute("import os\nos._exit(7)").unwrap();
        assert_eq!(run.post_mortem.unwrap().exit, Exit::Code(7));
        first.restart().expect("cold, for there is no template any more");
        poll(|| !is_running(pid), || "a template outlives its last session".to_owned());
        let alone = Template::start(&python()).unwrap();
        let pid = pid_of(&alone);
        drop(alone);
        assert!(!is_running(pid));
    }
}

isolated! {
    fn a_template_that_does_not_answer_is_replaced_and_the_session_starts_all_the_same() {
        let template = template(&python());
        let mut before = forked(&template);
        signal(pid_of(&template), Signal::STOP);
        let mut cold = template.session().unwrap();
        assert_eq!(cold.execute("1 + 1").unwrap().value, 2);
        let info = template.info();
        assert_eq!((info.forked, info.cold_starts), (1, 1), "{info:?}");
        assert!(info.why_not.is_some());
        assert_eq!(before.execute("1 + 1").unwrap().value, 2);
        assert_eq!(forked(&template).execute("1 + 1").unwrap().value, 2);
        assert_eq!((template.info().starts, template.info().why_not), (2, None));
    }
}

isolated! {
    fn a_fork_that_fails_is_a_cold_start() {
        // No free number is below this limit, so that the descriptors of a new session do not come through.
        let template = Template::start(&python().warmup_code("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))")).unwrap();
        for count in 1..=2 {
            assert_eq!(template.session().unwrap().execute("1 + 1").unwrap().value, 2);
            let info = template.info();
            assert_eq!((info.forked, info.cold_starts, info.starts), (0, count, 1), "{info:?}");
            assert!(info.why_not.unwrap().contains("did not come along"));
        }
    }
}

isolated! {
    fn a_warm_up_that_leaves_what_cannot_be_shared_makes_no_template() {
        let leaves = [
            ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "2 threads"),
            ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])", "child processes"),
            ("import socket\npair = socket.socketpair()", "descriptor"),
            ("import os\npipe = os.pipe()", "descriptor"),
            ("log = open('log', 'w')", "descriptor"),
            ("import asyncio\nawait asyncio.sleep(0)", "event loop"),
            ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 600)", "timer"),
        ];
        for (code, why) in leaves {
            let template = Template::start(&python().warmup_code(code)).unwrap();
            let info = template.info();
            assert!(info.why_not.as_ref().is_some_and(|why_not| why_not.contains(why)), "{code}: {info:?}");
            assert_eq!((info.pid, template.session().unwrap().execute("6 * 7").unwrap().value), (None, json!(42)), "{code}");
            assert_eq!((template.info().forked, template.info().cold_starts), (0, 1));
        }
    }
}

isolated! {
    fn a_warm_up_may_use_threads_and_leave_files_open_to_read() {
        let code = "import threading\nfor _ in range(50):\n    t = threading.Thread(target=int)\n    t.start()\n    t.join()\n\
                    zero = open('/dev/zero', 'rb')\nimport signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)";
        let template = template(&python().warmup_code(code));
        let mut session = forked(&template);
        assert_eq!(session.execute("zero.read(2) == bytes(2), signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN").unwrap().value, json!([true, true]));
        let run = session.execute("import os\nos._exit(5)").unwrap();
        assert_eq!(run.post_mortem.unwrap().exit, Exit::Code(5));
    }
}

isolated! {
    fn a_directory_that_is_gone_is_the_error_of_a_cold_start() {
        let directory = std::env::temp_dir().join("short-lived");
        std::fs::create_dir(&directory).unwrap();
        let template = template(&python().work_dir(WorkDir::Path(directory.clone())));
        assert_eq!(forked(&template).execute("import os\nos.getcwd()").unwrap().value, json!(directory));
        std::fs::remove_dir(&directory).unwrap();
        template.session().unwrap_err();
        std::fs::create_dir(&directory).unwrap();
        drop(forked(&template));
        std::fs::remove_dir(&directory).unwrap();
    }
}

isolated! {
    fn killing_the_host_leaves_no_process_of_a_template() {
        let busy = ["while True: pass", "import signal\nfor n in signal.SIGINT, signal.SIGIO: signal.signal(n, signal.SIG_IGN)\nsum(range(10**12))"];
        if let Some(number) = doomed() {
            let template = template(&python());
            let mut session = forked(&template);
            let code = format!(
                "import os, subprocess\nsubprocess.Popen(['sleep', '600'])\nprint(os.getpid(), os.getppid(), flush=True)\n{}",
                busy[number.parse::<usize>().unwrap()]
            );
            run_until_killed(&mut session, Request::code(code));
        }
        for number in 0..busy.len() {
            nothing_outlives_a_killed_host("template_ends::killing_the_host_leaves_no_process_of_a_template", &number.to_string());
        }
        // What the session has started would be found by its working directory.
    }
}

/// A template in a sandbox, with a PID namespace of its own.
fn sandboxed() -> Option<SessionConfig> {
    let directory = std::env::temp_dir().display().to_string();
    let sandbox =
        "bwrap --unshare-pid --unshare-net --die-with-parent --ro-bind / / --proc /proc --dev /dev --bind";
    let mut argv: Vec<String> = sandbox.split(' ').map(str::to_owned).collect();
    argv.extend([directory.clone(), directory]);
    installed("bwrap").then(|| SessionConfig::new(Runtime::python("python3").prefix(argv)).grace(GENEROUS))
}

isolated! {
    fn sessions_of_a_template_in_a_sandbox_are_born_inside_it() {
        let Some(config) = sandboxed() else { return };
        let template = template(&config.limits(Limits::new().data(1 << 30)));
        let mut siblings: Vec<Session> = (0..3).map(|_| template.session().unwrap()).collect();
        assert_eq!((template.info().forked, template.info().cold_starts), (3, 0), "{:?}", template.info().why_not);
        for session in &mut siblings {
            let run = session.execute("import os, socket\n[os.getpid() < 100, os.getpgrp() == os.getpid(), [name for _, name in socket.if_nameindex()]]").unwrap();
            assert_eq!(run.value, json!([true, true, ["lo"]]), "{:?}", run.error);
            for code in ["while True: pass", "import subprocess\nsubprocess.run(['sleep', '600'])"] {
                let run = session.execute(Request::code(code).time_limit(Duration::from_millis(50))).unwrap();
                assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{code}");
            }
            assert!(session.memory().unwrap().unique < Some(16 << 20));
            assert!(is_running(session.pid()), "its number is that of this side");
        }
        let run = siblings[0].execute("import os\nos._exit(7)").unwrap();
        assert_eq!(run.post_mortem.unwrap().exit, Exit::Code(7));
        siblings[1].execute("import subprocess\nsubprocess.Popen(['sleep', '600'])").unwrap();
        assert_eq!(siblings.remove(1).terminate().exit, Exit::Signal(9));
        assert_eq!(siblings.remove(1).shutdown(GENEROUS).exit, Exit::Code(0));
    }
}

isolated! {
    /// A pipe holds 64 KiB, and nobody reads what the template writes.
    fn what_hooks_of_the_warm_up_print_at_each_fork_does_not_block_the_forks_after() {
        let hook = "import os, sys\ndef hook():\n    print('x' * 9000)\n    print('x' * 9000, file=sys.stderr)\n\
                    os.register_at_fork(before=hook, after_in_parent=hook, after_in_child=hook)";
        let template = template(&python().start_timeout(Duration::from_secs(10)).warmup_code(hook));
        for _ in 0..12 {
            let mut session = forked(&template);
            let run = session.execute("import sys\nprint('out')\nprint('err', file=sys.stderr)").unwrap();
            assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
        }
        assert_eq!(template.info().starts, 1);
    }
}

isolated! {
    /// Python says that a thread has ended while the kernel is still busy with its end.
    fn a_thread_of_the_warm_up_that_is_just_ending_costs_no_template() {
        let code = "import ctypes\nc = ctypes.CDLL(None)\nassert c.pthread_create(ctypes.byref(ctypes.c_ulong()), None, c.usleep, ctypes.c_void_p(50000)) == 0";
        forked(&template(&python().warmup_code(code)));
    }
}

isolated! {
    fn hundreds_of_sessions_leave_nothing_in_their_template() {
        let template = template(&python());
        let pid = pid_of(&template);
        for _ in 0..500 {
            drop(template.session().unwrap());
        }
        let info = template.info();
        assert_eq!((info.forked, info.cold_starts, info.starts), (500, 0, 1), "{:?}", info.why_not);
        let zombies = || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            children.split_ascii_whitespace().count()
        };
        poll(|| zombies() == 0, || format!("{} children are left", zombies()));
    }
}
