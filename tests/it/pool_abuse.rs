//! User code that does its worst, in a pool: a typed outcome in time, and a healthy pool afterwards.

use std::time::Duration;

use remuda::{Execution, Omitted, Outcome, Request, Reuse, Runtime, SessionPool};

use crate::support::{GENEROUS, isolated};

/// Code, and what must come of it.
type Case = (&'static str, &'static str, fn(&Execution) -> bool);

fn completed(run: &Execution) -> bool {
    run.outcome == Outcome::Completed
}

fn failed(run: &Execution) -> bool {
    run.outcome == Outcome::Failed && run.error.is_some()
}

fn died(run: &Execution) -> bool {
    run.outcome == Outcome::Died && run.post_mortem.is_some()
}

fn stopped(run: &Execution) -> bool {
    matches!(run.outcome, Outcome::TimedOut { .. })
}

const CASES: [Case; 19] = [
    ("os._exit(3)", "import os; os._exit(3)", died),
    ("abort", "import os; os.abort()", died),
    ("kills itself", "import os; os.kill(os.getpid(), 9)", died),
    ("closes fds 0-2", "import os\nfor fd in (0, 1, 2): os.close(fd)", completed),
    ("os.system", "import os; os.system('echo hi')", |run| completed(run) && run.stdout == "hi\n"),
    ("prints 1 GB", "for _ in range(1024): print('x' * ((1 << 20) - 1))", |run| {
        completed(run) && run.dropped.0 > 1 << 29
    }),
    (
        "prints from a thread later",
        "import threading\nthreading.Timer(0.02, print, ('late',)).start()",
        // Not so late for a machine that stands still for a moment.
        |run| completed(run) && ["", "late\n"].contains(&run.stdout.as_str()),
    ),
    ("forks and falls through", "import os\nos.fork()\n'me'", completed),
    ("forks and leaves a child", "import os, time\nif os.fork() == 0: time.sleep(600)", completed),
    ("leaves a process", "import subprocess; subprocess.Popen(['sleep', '600']); None", completed),
    (
        "ignores SIGINT",
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)",
        stopped,
    ),
    (
        "ignores every interrupt",
        "import signal, time\nfor s in (2, 29): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)",
        stopped,
    ),
    (
        "recurses to death",
        "import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(s, n): return getattr(s, n)\nA().x",
        |run| died(run) || failed(run),
    ),
    ("returns no JSON", "{1, 2}", |run| completed(run) && matches!(run.omitted, Some(Omitted::NotJson(_)))),
    ("an int of 10 000 digits", "10**10000", |run| {
        completed(run) && run.omitted.is_some() && run.repr.is_some()
    }),
    ("a lone surrogate", "'\\ud800'", |run| {
        completed(run) && matches!(run.omitted, Some(Omitted::NotJson(_)))
    }),
    ("64 MiB of text", "'x' * (64 << 20)", |run| {
        completed(run) && matches!(run.omitted, Some(Omitted::TooLarge { .. }))
    }),
    (
        "changes the world",
        "import os, sys, builtins\nos.chdir('/')\nos.environ['A'] = 'b'\nsys.path.clear()\nbuiltins.answer = 42\nsys.stdout = None\nos.umask(0)\nsecret = 1",
        completed,
    ),
    (
        "swallows its interrupt",
        "import time\ndef f():\n    while True:\n        try: time.sleep(600)\n        except BaseException: pass\nf()",
        stopped,
    ),
];

/// What a user sees of the process he gets; the same for each of them.
const VIEW: &str = "import os, sys, builtins\n\
    [os.getcwd() == '/', 'A' in os.environ, len(sys.path) > 0, hasattr(builtins, 'answer'), 'secret' in globals(), \
    sys.stdout is not None, 1 + 1]";

fn abuse(reuse: Reuse) {
    let pool = SessionPool::builder(Runtime::python("python3"))
        .min_idle(1)
        .max_sessions(2)
        .reuse(reuse)
        .start()
        .unwrap();
    for (what, code, expected) in CASES {
        let endless = std::ptr::fn_addr_eq(expected, stopped as fn(&Execution) -> bool);
        let limit = if endless { Duration::from_millis(200) } else { GENEROUS };
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        let run = session.execute(Request::code(code).time_limit(limit)).unwrap();
        assert!(expected(&run), "{what}: {run:?}");
        drop(session);
        // The next users: more of them than sessions, so that each process is seen.
        for _ in 0..3 {
            let mut session = pool.acquire_timeout(GENEROUS).unwrap();
            let run = session.execute(VIEW).unwrap();
            let clean = serde_json::json!([false, false, true, false, false, true, 2]);
            assert_eq!(run.value, clean, "after: {what}: {run:?}");
            assert_eq!(run.stdout, "", "after: {what}");
        }
    }
    let counts = pool.info().counts;
    assert_eq!(counts.busy, 0, "{counts:?}");
    assert_eq!(counts.idle + counts.resetting + counts.starting + counts.retiring, counts.total);
    pool.shutdown(GENEROUS);
    // At once: a program may exit now.
    assert_eq!(
        std::fs::read_dir(std::env::temp_dir()).unwrap().count(),
        0,
        "directories of sessions are left"
    );
}

isolated! {
    fn a_pool_that_resets_is_healthy_and_clean_after_any_user() {
        abuse(Reuse::Reset);
    }
}

isolated! {
    fn a_pool_of_fresh_processes_is_healthy_and_clean_after_any_user() {
        abuse(Reuse::Fresh);
    }
}
