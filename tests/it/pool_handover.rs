//! Sessions that go to a waiting user before they were reset: the users stay apart all the same.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use remuda::{
    CancelToken, Error, Outcome, PoolConfig, PooledSession, Request, Reuse, SessionPool, Stream, TimeLimit,
};

use crate::support::{GENEROUS, ScratchDir, isolated, poll, pool};

/// A pool whose one session is reset between two users.
fn one() -> PoolConfig {
    pool().min_idle(1).max_sessions(1).reuse(Reuse::Reset)
}

/// One user runs `left` and gives the session back while another waits for it: that one's `then`, which
/// also gets the process that the first user had.
fn hand_over<T: Send>(
    pool: &SessionPool,
    left: &str,
    then: impl FnOnce(PooledSession, u32) -> T + Send,
) -> T {
    let mut first = pool.acquire().unwrap();
    let pid = first.pid();
    let run = first.execute(left).unwrap();
    assert_eq!(run.outcome, Outcome::Completed, "{:?}", run.error);
    thread::scope(|threads| {
        let second = threads.spawn(|| then(pool.acquire().unwrap(), pid));
        poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
        drop(first);
        second.join().unwrap()
    })
}

/// Code that leaves a line in a file each time it runs, and says where it runs.
fn counted(directory: &ScratchDir) -> (String, impl Fn() -> usize + use<>) {
    let file = directory.path().join("runs");
    let code = format!("import os\nopen('{}', 'a').write('once\\n')\nos.getpid()", file.display());
    (code, move || std::fs::read_to_string(&file).unwrap_or_default().lines().count())
}

/// Leaves something that never comes to an end when the worker is reset.
const ENDLESS: &str = "class Endless:\n    def __del__(self):\n        while True: pass\nkept = Endless()";

isolated! {
    fn the_next_user_finds_the_process_but_nothing_of_the_last_one() {
        let pool = one().start().unwrap();
        let left = "import os, sys\nsecret = 41\nos.environ['SECRET'] = '1'\nos.chdir('/')\nsys.argv.append('x')";
        let (found, same) = hand_over(&pool, left, |mut session, pid| {
            let look = "import os, sys\n['secret' in globals(), 'SECRET' in os.environ, os.getcwd() == '/', sys.argv]";
            (session.execute(look).unwrap().value, session.pid() == pid)
        });
        assert_eq!(found, serde_json::json!([false, false, false, [""]]));
        assert!(same, "all could be undone");
        assert_eq!(pool.metrics().sessions_restarted, 0);
    }
}

isolated! {
    fn a_session_that_is_handed_over_and_not_used_is_reset_for_the_one_after() {
        let pool = one().start().unwrap();
        hand_over(&pool, "secret = 41", |session, _| drop(session));
        let found = pool.acquire().unwrap().execute("'secret' in globals()").unwrap();
        assert_eq!(found.value, false);
    }
}

isolated! {
    fn what_cannot_be_undone_costs_the_process_and_not_the_next_request() {
        let directory = ScratchDir::new();
        let (code, runs) = counted(&directory);
        let pool = one().start().unwrap();
        let left = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()";
        hand_over(&pool, left, |mut session, pid| {
            let (id, handle) = (session.id(), session.interrupt_handle());
            let run = session.execute(code).unwrap();
            assert_ne!(run.value, pid, "a thread goes on in the old one");
            assert_eq!((session.id(), run.value), (id, session.pid().into()));
            let stop = move |_: Stream, _: &[u8]| assert!(handle.interrupt());
            let run = session.execute(Request::code("print()\nwhile True: pass").on_output(stop)).unwrap();
            assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "the handle is of both processes");
        });
        assert_eq!(runs(), 1);
        let info = pool.info();
        assert!(info.metrics.sessions_restarted >= 1, "{info:?}");
        let removed: u64 = info.removals.iter().map(|row| row.count).sum();
        assert_eq!(removed, info.metrics.sessions_removed, "each has a reason");
        poll(|| !pool.info().post_mortems.is_empty(), || format!("{:?}", pool.info()));
    }
}

isolated! {
    fn a_reset_that_never_ends_is_given_up_and_the_next_request_runs_once() {
        let directory = ScratchDir::new();
        let (code, runs) = counted(&directory);
        let pool = one().reset_timeout(Duration::from_millis(100)).start().unwrap();
        hand_over(&pool, ENDLESS, |mut session, pid| {
            assert_ne!(session.execute(code).unwrap().value, pid);
        });
        assert_eq!(runs(), 1);
    }
}

isolated! {
    fn a_reset_that_ends_the_process_is_not_the_next_requests_end() {
        let directory = ScratchDir::new();
        let (code, runs) = counted(&directory);
        let pool = one().start().unwrap();
        let left = "import os\nclass Last:\n    def __del__(self, leave=os._exit):\n        leave(3)\nkept = Last()";
        hand_over(&pool, left, |mut session, pid| {
            assert_ne!(session.execute(code).unwrap().value, pid);
        });
        assert_eq!(runs(), 1);
    }
}

isolated! {
    fn a_request_that_ends_the_process_is_not_run_again() {
        let directory = ScratchDir::new();
        let (code, runs) = counted(&directory);
        let pool = one().start().unwrap();
        let run = hand_over(&pool, "1", |mut session, _| {
            session.execute(format!("{code}\nos._exit(3)")).unwrap()
        });
        assert_eq!((run.outcome, runs()), (Outcome::Died, 1));
    }
}

isolated! {
    fn last_words_reach_nobody() {
        let pool = one().start().unwrap();
        let left = "class Last:\n    def __del__(self):\n        print('secret')\n        print('secret', end='')\nkept = Last()";
        let mut seen = String::new();
        let look = |_: Stream, text: &str| seen.push_str(text);
        let run = hand_over(&pool, left, |mut session, pid| {
            let run = session.execute(Request::code("print('mine')").on_text(look)).unwrap();
            assert_eq!(session.pid(), pid);
            run
        });
        assert_eq!((run.stdout.as_str(), seen.as_str()), ("mine\n", "mine\n"));
    }
}

isolated! {
    fn the_words_of_a_child_reach_nobody() {
        let directory = ScratchDir::new();
        let gate = directory.path().join("gate");
        let pool = one().start().unwrap();
        let left = format!(
            "import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'until test -e {}; do :; done; echo secret'])\n0",
            gate.display()
        );
        let run = hand_over(&pool, &left, |mut session, pid| {
            std::fs::write(&gate, "").unwrap();
            let run = session.execute("print('mine')").unwrap();
            assert_ne!(session.pid(), pid);
            run
        });
        assert_eq!(run.stdout, "mine\n");
    }
}

isolated! {
    fn output_of_a_first_request_is_seen_while_it_runs() {
        let directory = ScratchDir::new();
        let gate = directory.path().join("gate");
        let pool = one().start().unwrap();
        let code = format!("import os\nprint('open it')\nwhile not os.path.exists('{}'): pass\n'open'", gate.display());
        let open = |_: Stream, _: &[u8]| std::fs::write(&gate, "").unwrap();
        let run = hand_over(&pool, "1", |mut session, _| {
            session.execute(Request::code(code).on_output(open)).unwrap()
        });
        assert_eq!(run.value, "open");
    }
}

isolated! {
    fn events_of_a_first_request_arrive_before_its_end() {
        let pool = one().start().unwrap();
        let asked = AtomicU32::new(0);
        let run = hand_over(&pool, "1", |mut session, _| {
            let answer = |prompt: remuda::Prompt| {
                asked.fetch_add(1, Ordering::SeqCst);
                prompt.answer("blue");
            };
            session.execute(Request::code("remuda = __import__('remuda')\nremuda.progress(0.5)\ninput('colour? ')")
                .on_input(answer)).unwrap()
        });
        assert_eq!((run.value, asked.into_inner()), ("blue".into(), 1));
    }
}

isolated! {
    fn limits_and_tokens_stop_a_first_request() {
        let pool = one().grace(GENEROUS).start().unwrap();
        let limit = Duration::from_millis(50);
        let run = hand_over(&pool, "1", |mut session, _| {
            session.execute(Request::code("while True: pass").time_limit(limit)).unwrap()
        });
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        let token = CancelToken::new();
        let run = hand_over(&pool, "1", |mut session, _| {
            let cancel = |_: Stream, _: &[u8]| token.cancel();
            let request = Request::code("print()\nwhile True: pass").cancel_token(&token).on_output(cancel);
            session.execute(request).unwrap()
        });
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn a_token_ends_the_wait_for_a_reset_that_never_ends() {
        let pool = one().reset_timeout(Duration::from_secs(600)).start().unwrap();
        let directory = ScratchDir::new();
        let (code, runs) = counted(&directory);
        let reached = directory.path().join("reached");
        let left = format!(
            "class Endless:\n    def __del__(self, open=open):\n        open('{}', 'w')\n        while True: pass\nkept = Endless()",
            reached.display()
        );
        let token = CancelToken::new();
        let result = hand_over(&pool, &left, |mut session, _| {
            let request = Request::code(code).cancel_token(&token);
            thread::scope(|threads| {
                threads.spawn(|| {
                    poll(|| reached.exists(), || "the reset does not reach the finalizer".to_owned());
                    token.cancel();
                });
                session.execute(request)
            })
        });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(runs(), 0);
    }
}

isolated! {
    fn a_large_first_request_and_other_requests_find_a_clean_worker() {
        let pool = one().start().unwrap();
        let large = format!("'secret' in globals() # {}", "x".repeat(1 << 20));
        let found = hand_over(&pool, "secret = 1", |mut session, _| session.execute(large).unwrap());
        assert_eq!(found.value, false);
        let names = hand_over(&pool, "secret = 1", |mut session, _| session.names().unwrap());
        assert!(names.is_empty(), "{names:?}");
        hand_over(&pool, "secret = 1", |mut session, pid| {
            session.ping(Duration::from_secs(10)).unwrap();
            let running = session.begin("'secret' in globals()").unwrap();
            assert_eq!(running.finish().unwrap().value, false);
            assert_eq!(session.pid(), pid);
        });
        let left = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()";
        hand_over(&pool, left, |mut session, pid| {
            assert!(session.names().unwrap().is_empty());
            assert_ne!(session.pid(), pid);
        });
    }
}

isolated! {
    fn a_pool_that_ends_meanwhile_starts_no_process_any_more() {
        let pool = one().reset_timeout(Duration::from_secs(600)).start().unwrap();
        let result = hand_over(&pool, ENDLESS, |mut session, _| {
            thread::scope(|threads| {
                threads.spawn(|| pool.terminate());
                session.execute("1")
            })
        });
        assert!(matches!(result, Err(Error::Closed | Error::SessionDead { .. })), "{result:?}");
    }
}

isolated! {
    fn the_last_words_of_tasks_and_of_what_hangs_on_builtins_reach_nobody() {
        let pool = one().start().unwrap();
        let task = "import asyncio\nasync def f():\n    try:\n        await asyncio.sleep(600)\n    finally:\n        print('secret')\n\
                    task = asyncio.create_task(f())\nawait asyncio.sleep(0)";
        let last = "import builtins, sys\nclass Last:\n    def __del__(self, say=print):\n        say('secret')\n        say('secret', end='')\n";
        for left in [task.to_owned(), format!("{last}builtins.kept = Last()"), format!("{last}sys.argv.append(Last())")] {
            let stdout = hand_over(&pool, &left, |mut session, pid| {
                let run = session.execute("print('mine')").unwrap();
                assert_eq!(session.pid(), pid, "{left}");
                run.stdout
            });
            assert_eq!(stdout, "mine\n", "{left}");
        }
    }
}

isolated! {
    /// There the worker cannot keep finalizers silent: what it finds in the pipes costs the process.
    fn last_words_reach_nobody_where_the_warm_up_has_redirected_a_stream() {
        let code = "import os\nlog = os.open(os.devnull, os.O_WRONLY)\nos.dup2(log, 2)\nos.close(log)";
        let pool = one().warmup_code(code).start().unwrap();
        let left = "class Last:\n    def __del__(self):\n        print('secret')\nkept = Last()";
        let stdout = hand_over(&pool, left, |mut session, _| session.execute("print('mine')").unwrap().stdout);
        assert_eq!(stdout, "mine\n");
    }
}

isolated! {
    fn a_thread_or_a_program_that_a_finalizer_starts_costs_the_process() {
        let pool = one().start().unwrap();
        let thread = "import threading, time\nclass Last:\n    def __del__(self, thread=threading.Thread, sleep=time.sleep):\n\
                      \x20       thread(target=sleep, args=(600,), daemon=True).start()\nkept = Last()";
        let child = "import subprocess\nclass Last:\n    def __del__(self, start=subprocess.Popen):\n        start(['sleep', '600'])\nkept = Last()";
        for left in [thread, child] {
            hand_over(&pool, left, |mut session, pid| {
                assert_eq!(session.execute("1 + 1").unwrap().value, 2);
                assert_ne!(session.pid(), pid, "{left}");
            });
        }
    }
}

isolated! {
    fn threads_and_programs_of_the_warm_up_do_not_cost_a_process_at_each_hand_over() {
        let thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()";
        let child = "import subprocess\nprogram = subprocess.Popen(['sleep', '600'])";
        for code in [thread, child] {
            let pool = one().warmup_code(code).start().unwrap();
            hand_over(&pool, "secret = 41", |mut session, pid| {
                assert_eq!(session.execute("'secret' in globals()").unwrap().value, false);
                assert_eq!(session.pid(), pid, "{code}");
            });
            hand_over(&pool, "import subprocess\nmore = subprocess.Popen(['sleep', '600'])\n0", |mut session, pid| {
                session.execute("1").unwrap();
                assert_ne!(session.pid(), pid, "{code}");
            });
        }
    }
}

isolated! {
    fn what_the_reset_writes_and_uses_is_not_put_down_to_the_first_request() {
        let pool = one().start().unwrap();
        let left = "file = open('left', 'w')\nfile.write('secret')";
        let run = hand_over(&pool, left, |mut session, _| session.execute(Request::code("1").artefacts(true)).unwrap());
        let artefacts = run.artefacts.expect("asked for");
        assert!(artefacts.files.is_empty(), "{artefacts:?}");
        let left = "large = b'x' * (256 << 20)";
        let run = hand_over(&pool, left, |mut session, _| session.execute(Request::code("1").measure(true)).unwrap());
        let peak = run.usage.expect("measured").peak_memory.expect("of this machine");
        assert!(peak < 128 << 20, "{peak} bytes");
    }
}

isolated! {
    fn a_slow_reset_does_not_use_up_the_time_limit_of_the_first_request() {
        // Long enough for a machine that stands still for a moment while the request itself runs.
        let limit = Duration::from_secs(5);
        let left = "import time\nclass Slow:\n    def __del__(self, sleep=time.sleep): sleep(6)\nkept = Slow()";
        thread::scope(|threads| {
            for request in [Request::code("1").hard_time_limit(limit), Request::code("1").time_limit(limit)] {
                threads.spawn(move || {
                    let pool = one().reset_timeout(GENEROUS).start().unwrap();
                    let run = hand_over(&pool, left, |mut session, _| session.execute(request).unwrap());
                    assert_eq!(run.outcome, Outcome::Completed);
                });
            }
        });
    }
}

/// Calls `then` of a handle to the first request of a session whose reset does not end before `gate` is
/// there, once the reset has begun; returns what comes of the request.
fn asked_during_the_reset(
    pool: &SessionPool,
    (code, after): (&str, &str),
    then: impl Fn(&remuda::InterruptHandle) -> bool + Sync,
) -> remuda::Result<remuda::Execution> {
    let directory = ScratchDir::new();
    let (reached, gate) = (directory.path().join("reached"), directory.path().join("gate"));
    let left = format!(
        "import os\nclass Slow:\n    def __del__(self, os=os, open=open):\n        open('{}', 'w')\n\
         \x20       while not os.path.exists('{}'): pass\n        {after}\nkept = Slow()",
        reached.display(),
        gate.display()
    );
    hand_over(pool, &left, |mut session, _| {
        let handle = session.interrupt_handle();
        thread::scope(|threads| {
            threads.spawn(|| {
                poll(|| reached.exists(), || "the reset does not reach the finalizer".to_owned());
                assert!(then(&handle));
                std::fs::write(&gate, "").unwrap();
            });
            session.execute(code)
        })
    })
}

isolated! {
    fn an_interrupt_during_the_reset_stops_the_first_request_once_it_runs() {
        let pool = one().reset_timeout(GENEROUS).start().unwrap();
        let run = asked_during_the_reset(&pool, ("while True: pass", "pass"), remuda::InterruptHandle::interrupt).unwrap();
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn an_interrupt_during_a_reset_that_fails_is_not_forgotten() {
        let pool = one().reset_timeout(GENEROUS).start().unwrap();
        for after in ["os._exit(3)", "os.fork() or os._exit(3)"] {
            let result = asked_during_the_reset(&pool, ("while True: pass", after), remuda::InterruptHandle::interrupt);
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
            assert_eq!(pool.acquire().unwrap().execute("'kept' in globals()").unwrap().value, false);
        }
    }
}

isolated! {
    fn a_cancel_or_kill_by_handle_ends_the_wait_for_a_reset() {
        let pool = one().reset_timeout(Duration::from_secs(600)).start().unwrap();
        for cancel in [true, false] {
            let stop = |handle: &remuda::InterruptHandle| if cancel { handle.cancel() } else { handle.kill() };
            let result = asked_during_the_reset(&pool, ("1", "\n        while True: pass"), stop);
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        }
    }
}

isolated! {
    fn executions_after_a_reset_that_failed_are_counted() {
        let pool = one().start().unwrap();
        let left = "import os\nclass Last:\n    def __del__(self, leave=os._exit):\n        leave(3)\nkept = Last()";
        hand_over(&pool, left, |mut session, pid| {
            session.execute("1").unwrap();
            assert_ne!(session.pid(), pid);
        });
        let counts = pool.info().executions;
        assert_eq!(counts.completed, 2, "{counts:?}");
    }
}
