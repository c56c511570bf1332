//! What one user of a pooled Python session leaves, and whether the next one finds it: code that is
//! ordinary or careless, not hostile. Each case is tried when the session lies idle between the two, and
//! when the second one waits for it and its request brings the reset along.

use std::thread;

use remuda::{PoolConfig, SessionPool};
use serde_json::{Value, json};

use crate::support::{GENEROUS, isolated, poll, pool, python, session};

fn one() -> PoolConfig {
    pool().min_idle(1).max_sessions(1)
}

/// What the second user gets.
#[derive(Debug)]
struct Found {
    /// The process that the first one had.
    same: bool,
    value: Value,
    output: String,
}

/// One user runs `left`, the next one `look`; `waits`: while the first has the session.
fn next_user(pool: &SessionPool, left: &str, look: &str, waits: bool) -> Found {
    let mut first = pool.acquire().unwrap();
    let pid = first.pid();
    assert_eq!(first.execute(left).unwrap().error, None, "{left}");
    let second = || {
        let mut session = pool.acquire().unwrap();
        let run = session.execute(look).unwrap();
        assert_eq!(run.error, None, "{look} after {left}");
        Found { same: session.pid() == pid, value: run.value, output: run.stdout + &run.stderr }
    };
    if !waits {
        drop(first);
        return second();
    }
    thread::scope(|threads| {
        let second = threads.spawn(second);
        poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
        drop(first);
        second.join().unwrap()
    })
}

/// Both ways, each in a pool of its own.
fn both_ways(config: impl Fn() -> PoolConfig, left: &str, look: &str) -> [Found; 2] {
    [false, true].map(|waits| {
        let pool = config().start().unwrap();
        let found = next_user(&pool, left, look, waits);
        pool.shutdown(GENEROUS);
        found
    })
}

/// The next user has the same process, and finds `value` and `output` there.
fn assert_undone(left: &str, look: &str, value: &Value, output: &str) {
    for found in both_ways(one, left, look) {
        assert_eq!((found.same, &found.value, found.output.as_str()), (true, value, output), "{left}");
    }
}

isolated! {
    fn what_a_user_sets_about_the_streams_is_set_back() {
        for left in [
            "import sys\nsys.stdout.reconfigure(encoding='ascii', errors='strict', newline='\\r\\n')",
            "import sys\nsys.stdout.reconfigure(newline='\\r\\n')",
            "import sys\nsys.stdout.write = lambda text: None",
            "import sys\nsys.stdout.reconfigure = None\nsys.stdout.secret = 1",
        ] {
            assert_undone(left, "import sys\nprint('ä')\nhasattr(sys.stdout, 'secret')", &json!(false), "ä\n");
        }
        let left = "import sys\nsys.stdin.reconfigure(encoding='utf-16')";
        assert_undone(left, "import sys\nsys.stdin.encoding == 'utf-16'", &json!(false), "");
    }
}

isolated! {
    fn streams_stay_as_the_warm_up_has_set_them() {
        let code = "import sys\nsys.stdout.reconfigure(encoding='ascii')\nsys.stdout.warm = 1";
        let left = "import sys\nsys.stdout.reconfigure(encoding='latin-1')\ndel sys.stdout.warm";
        for found in both_ways(|| one().warmup_code(code), left, "import sys\n[sys.stdout.encoding, sys.stdout.warm]") {
            assert_eq!((found.same, found.value), (true, json!(["ascii", 1])));
        }
    }
}

isolated! {
    fn a_stream_of_the_warm_up_that_cannot_be_closed_costs_no_process() {
        let code = "import sys\nclass Tee:\n    def write(self, text): return sys.__stdout__.write(text)\n    def flush(self): pass\n\
                    sys.stdout, sys.stdin = Tee(), None";
        for found in both_ways(|| one().warmup_code(code), "1", "print('mine')\n7") {
            assert_eq!((found.same, found.value, found.output.as_str()), (true, json!(7), "mine\n"));
        }
    }
}

isolated! {
    fn a_reset_reports_each_stream_that_is_closed_or_detached() {
        for stream in ["stdin", "stdout", "stderr"] {
            for end in ["close()", "detach()", "buffer.close()", "buffer.detach()"] {
                let mut session = session();
                let run = session.execute(format!("import sys\nend = sys.{stream}.{end}")).unwrap();
                assert_eq!(run.error, None, "{stream}.{end}");
                assert_eq!(session.reset().unwrap(), ["closed streams"], "{stream}.{end}");
            }
        }
    }
}

isolated! {
    fn lists_of_sys_that_a_user_replaces_or_deletes_cost_no_process() {
        let look = "import sys, decimal\n[sys.argv, '/nowhere' in sys.path]";
        for left in [
            "import sys\nsys.argv = ('a', 'b')",
            "import sys\ndel sys.argv",
            "import sys\nsys.path = ('/nowhere',)",
            "import sys\nsys.path.clear()",
            "import sys\nsys.meta_path = (*sys.meta_path,)",
        ] {
            assert_undone(left, look, &json!([[""], false]), "");
        }
        let held = "import sys\nheld, sys.path = sys.path, ['/nowhere']\nsys.modules['held'] = held\nheld.append('/nowhere')";
        assert_undone(held, "import sys\n[sys.modules['held'] is sys.path, '/nowhere' in sys.path]", &json!([true, false]), "");
    }
}

isolated! {
    fn a_hidden_module_costs_no_process() {
        for left in ["import sys\nsys.modules['mmap'] = None", "import sys\nsys.modules['termios'] = None"] {
            assert_undone(left, "1", &json!(1), "");
        }
    }
}

isolated! {
    fn a_descriptor_that_takes_the_place_of_one_of_the_workers_is_seen() {
        let pool = one().start().unwrap();
        // The reset that came along has made the worker map its memory file.
        assert!(next_user(&pool, "1", "1", true).same);
        let left = "import os\nos.closerange(3, 20)\nopened = os.open('/dev/null', 0)\nopened";
        assert!(!next_user(&pool, left, "1", false).same);
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn a_descriptor_that_takes_the_place_of_a_closed_loops_is_seen() {
        for waits in [false, true] {
            let pool = one().start().unwrap();
            let mut session = pool.acquire().unwrap();
            let pid = session.pid();
            assert_eq!(session.execute("import asyncio\nawait asyncio.sleep(0)\nloop = asyncio.get_running_loop()").unwrap().error, None);
            let run = session.execute("import os\nloop.close()\nopened = os.open('/dev/null', 0)").unwrap();
            assert_eq!(run.error, None);
            thread::scope(|threads| {
                let second = || {
                    let mut session = pool.acquire().unwrap();
                    session.execute("1").unwrap();
                    session.pid()
                };
                let next = if waits {
                    let second = threads.spawn(second);
                    poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
                    drop(session);
                    second.join().unwrap()
                } else {
                    drop(session);
                    second()
                };
                assert_ne!(next, pid);
            });
            pool.shutdown(GENEROUS);
        }
    }
}

isolated! {
    fn threads_that_a_loop_has_lent_cost_no_process() {
        let pool = one().start().unwrap();
        for round in 0..20 {
            let code = "import asyncio, time\nawait asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(4)))\n1";
            assert!(next_user(&pool, code, "1", round % 2 == 0).same, "round {round}");
        }
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn hooks_and_handlers_that_show_nowhere_do_not_see_the_next_user() {
        let look = "import os, signal\n\
                    async def numbers():\n    yield 1\n\
                    def plain():\n    return 1\n\
                    plain()\nasync_numbers = numbers()\n\
                    try: async_numbers.__anext__().send(None)\nexcept StopIteration: pass\n\
                    signal.signal(signal.SIGUSR2, lambda *a: None)\n\
                    os.kill(os.getpid(), signal.SIGUSR2)\n\
                    signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n7";
        for left in [
            "import asyncio, sys\nsys.set_asyncgen_hooks(firstiter=lambda a: print('seen'))",
            "import cProfile\ncProfile.Profile().enable()",
            "import faulthandler, signal\nfaulthandler.register(signal.SIGUSR2)",
            "import os, signal\nos.set_blocking(1, False)\nsignal.set_wakeup_fd(1)",
        ] {
            assert_undone(left, look, &json!(7), "");
        }
    }
}

isolated! {
    /// It sees each step of the worker up to the reset: the process stays only if it has said nothing.
    fn what_watches_the_code_of_one_user_does_not_see_the_next() {
        let look = "def plain():\n    return 1\nplain()";
        for left in [
            "import sys\nsys.settrace(lambda *a: print('seen'))",
            "import sys\nsys.setprofile(lambda *a: print('seen'))",
            "import sys\nwatch = getattr(sys, 'monitoring', None)\nif watch:\n    watch.use_tool_id(3, 'mine')\n\
             \x20   watch.register_callback(3, watch.events.LINE, lambda *a: print('seen'))\n    watch.set_events(3, watch.events.LINE)",
        ] {
            for found in both_ways(one, left, look) {
                assert_eq!((found.value, found.output.as_str()), (json!(1), ""), "{left}");
            }
        }
        let left = "import cProfile\nprofile = cProfile.Profile()\nprofile.enable()";
        assert_undone(left, "import cProfile\nmine = cProfile.Profile()\nmine.enable()\nmine.disable()\n7", &json!(7), "");
    }
}

isolated! {
    fn a_timer_and_a_handler_do_not_outlive_the_module_that_set_them() {
        // So far away that a busy machine resets in time.
        let look = "import signal\n[signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL]";
        for left in [
            "import sys\nbefore = set(sys.modules)\nimport signal\nsignal.setitimer(signal.ITIMER_REAL, 600)\n\
             signal.signal(signal.SIGUSR1, print)\nfor name in set(sys.modules) - before: del sys.modules[name]",
            "import _signal\n_signal.setitimer(_signal.ITIMER_REAL, 600)\n_signal.signal(_signal.SIGUSR1, print)",
        ] {
            assert_undone(left, look, &json!([0.0, true]), "");
        }
    }
}

isolated! {
    fn a_pipe_that_a_program_left_not_blocking_blocks_again() {
        let left = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.set_blocking(1, False)'])\n1";
        assert_undone(left, "import os\nos.get_blocking(1)", &json!(true), "");
    }
}

isolated! {
    fn the_time_zone_goes_back_with_the_environment() {
        let left = "import os, time\nos.environ['TZ'] = 'XYZ-5'\ntime.tzset()\ntime.tzname[0]";
        for found in both_ways(one, left, "import time\ntime.tzname[0]") {
            assert!(found.same && found.value != "XYZ", "{found:?}");
        }
    }
}

isolated! {
    fn a_template_and_its_sessions_map_their_own_file() {
        let config = || one().session(python().warmup_code("import remuda\nremuda.cancelled()")).template(true);
        for found in both_ways(config, "import remuda\nremuda.cancelled()", "import os, remuda\n[remuda.cancelled(), os.dup(0) < 20]") {
            assert_eq!((found.same, found.value), (true, json!([false, true])));
        }
    }
}
