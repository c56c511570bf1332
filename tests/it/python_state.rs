//! What a Python session holds and what its users leave: warm report, names, fingerprint, resets.

use remuda::{Outcome, PooledSession};
use serde_json::json;

use crate::support::{GENEROUS, isolated, pool, python, session};

isolated! {
    fn the_warm_report_names_time_memory_and_failure_of_each_module() {
        let session = python().warm_import("decimal").warm_import("no_such_module").start().unwrap();
        let [decimal, missing] = &session.warm_report().imports[..] else { panic!("two modules") };
        assert!(decimal.error.is_none() && decimal.memory.is_some(), "{decimal:?}");
        assert!(missing.error.as_deref().unwrap().contains("No module named"), "{missing:?}");
    }
}

isolated! {
    fn warm_up_code_that_fails_leaves_its_state_warm() {
        let mut session = python().warmup_code("made = 1\nraise ValueError('half way')").ignore_warmup_errors(true).start().unwrap();
        assert_eq!(session.warm_report().code_error.as_ref().unwrap().kind, "ValueError");
        let names = session.names().unwrap();
        assert!(names.iter().any(|name| name.name == "made" && name.warm), "{names:?}");
    }
}

isolated! {
    fn names_are_the_users_and_those_of_the_warm_up() {
        let mut session = python().warmup_code("warm = [1]\nchanged = 1").start().unwrap();
        session.execute("new = {}\nchanged = 2.5\nclass Odd:\n    def __sizeof__(self): raise OSError\nodd = Odd()\n7").unwrap();
        let names: Vec<_> = session.names().unwrap().into_iter().map(|name| (name.name, name.kind, name.size.is_some(), name.warm)).collect();
        let name = |name: &str, kind: &str, size, warm| (name.to_owned(), kind.to_owned(), size, warm);
        assert_eq!(names, [
            name("warm", "list", true, true),
            name("changed", "float", true, false),
            name("new", "dict", true, false),
            name("Odd", "type", true, false),
            name("odd", "Odd", false, false),
        ]);
    }
}

isolated! {
    fn the_fingerprint_is_what_differs_from_the_warm_state() {
        let mut session = python().warmup_code("kept = open('/dev/null')\ngone = 1").start().unwrap();
        let before = session.fingerprint().unwrap();
        assert!(before.is_clean(), "{before:?}");
        session.execute("import remuda\nremuda.cancelled()\nimport asyncio\nawait asyncio.sleep(0)").unwrap();
        // The worker's own map of the flag and its event loop are nobody's leftovers.
        assert_eq!(session.fingerprint().unwrap().fds, Vec::<String>::new());
        let code = "import os, csv, subprocess, threading\nos.environ['NEW'] = '1'\nos.chdir('/')\nleft = open('/dev/zero')\nchild = subprocess.Popen(['sleep', '1000'])\nstop = threading.Event()\nthread = threading.Thread(target=stop.wait)\nthread.start()\ndel gone";
        assert_eq!(session.execute(code).unwrap().error, None);
        let after = session.fingerprint().unwrap();
        assert!(after.globals.contains(&"left".to_owned()) && after.globals.contains(&"gone".to_owned()), "{after:?}");
        assert!(after.modules.contains(&"csv".to_owned()), "{after:?}");
        assert_eq!((&after.environment[..], after.cwd.as_deref()), (&["NEW".to_owned()][..], Some("/")));
        assert_eq!((after.threads, after.children), (1, 1));
        let [fd] = &after.fds[..] else { panic!("{after:?}") };
        assert!(fd.ends_with(" -> /dev/zero"), "{fd}");
        session.execute("child.kill(); child.wait(); stop.set()").unwrap();
    }
}

/// The number of the process that the next user gets after `code`.
fn pid_after(code: &str) -> (u32, u32, Option<remuda::ExecutionError>) {
    let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
    let mut first = pool.acquire().unwrap();
    let pid = first.pid();
    let error = first.execute(code).unwrap().error;
    drop(first);
    let mut second: PooledSession = pool.acquire().unwrap();
    let value =
        second.execute("len([name for name in globals() if not name.startswith('_')])").unwrap().value;
    assert_eq!(value, 2, "In and Out");
    let next = second.pid();
    drop(second);
    pool.shutdown(GENEROUS);
    (pid, next, error)
}

isolated! {
    fn a_reset_keeps_the_process_where_all_could_be_undone() {
        for code in [
            "f = open('/dev/null')",
            "a = [open('/dev/null')]\na.append(a)",
            "import remuda\nremuda.cancelled()",
            "import asyncio\nt = asyncio.ensure_future(asyncio.sleep(1000))\nawait asyncio.sleep(0)",
            "import subprocess\nsubprocess.run(['true'])",
            "import builtins\nbuiltins.input = None",
        ] {
            let (pid, next, error) = pid_after(code);
            assert_eq!((pid, error), (next, None), "{code}");
        }
    }
}

isolated! {
    fn a_reset_gives_up_on_what_only_a_new_process_undoes() {
        for code in [
            "import os\nos.open('/dev/null', 0)",
            // Its neighbour is closed again: the lowest free number is the old one.
            "import os\na = os.open('/dev/null', 0)\nb = os.open('/dev/null', 0)\nos.close(a)",
            "import subprocess\nsubprocess.Popen(['sleep', '1000'])",
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
            "import sys\nsys.stdout.close()",
            "import sys\nsys.stderr.buffer.close()",
            "import sys\nsys.stdin.close()",
            "import sys\nsys.stdout.detach()",
        ] {
            let (pid, next, error) = pid_after(code);
            assert_eq!(error, None, "{code}");
            assert_ne!(pid, next, "{code}");
        }
    }
}

isolated! {
    fn a_loop_of_the_warm_up_and_its_tasks_survive_a_reset() {
        let code = "import asyncio\nticks = []\nasync def tick():\n    while True:\n        ticks.append(1)\n        await asyncio.sleep(0)\nticking = asyncio.ensure_future(tick())\nawait asyncio.sleep(0)";
        let pool = pool().session(python().warmup_code(code)).min_idle(1).max_sessions(1).start().unwrap();
        let mut pids = Vec::new();
        for _ in 0..3 {
            let mut session = pool.acquire().unwrap();
            pids.push(session.pid());
            let run = session.execute("before = len(ticks)\nmine = asyncio.ensure_future(asyncio.sleep(1000))\nawait asyncio.sleep(0.001)\nlen(ticks) > before, len(asyncio.all_tasks())").unwrap();
            // The ticking one, the one that this user leaves, and that of the request itself.
            assert_eq!((run.error, run.value), (None, json!([true, 3])));
        }
        assert_eq!((pids[1], pids[2]), (pids[0], pids[0]));
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn our_input_survives_a_reset() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        for _ in 0..3 {
            let mut session = pool.acquire().unwrap();
            let request = remuda::Request::code("import sys\nsys.stdin.readline(), input()").on_input(|prompt| prompt.answer("line"));
            assert_eq!(session.execute(request).unwrap().value, json!(["line\n", "line"]));
        }
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn a_forked_child_cannot_speak_for_the_session() {
        let mut session = session();
        let run = session.execute("import os, remuda\nread, write = os.pipe()\npid = os.fork()\nif pid == 0:\n    try: remuda.progress(1)\n    except RuntimeError as e: os.write(write, b'refused')\n    os._exit(0)\nos.waitpid(pid, 0)\nos.read(read, 100).decode()").unwrap();
        assert_eq!((run.outcome, run.value), (Outcome::Completed, json!("refused")));
    }
}
