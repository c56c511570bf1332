//! Stopping: time limits, tokens, the ladder, shutdown, and the end of the host.

use std::sync::mpsc;
use std::time::Duration;

use remuda::{CancelToken, Cause, Error, Exit, Outcome, Request, Session, TimeLimit};

use crate::support::{
    GENEROUS, doomed, is_running, isolated, nothing_outlives_a_killed_host, poll, python, run_until_killed,
    session,
};

/// Cancels `token` when the code has printed its first bytes, so that it is surely running.
fn cancelled_while_running(session: &mut Session, code: &str) -> remuda::Execution {
    let token = CancelToken::new();
    let fire = token.clone();
    let request = Request::code(code).cancel_token(&token).on_output(move |_, _| fire.cancel());
    session.execute(request).expect("a cancelled execution is an outcome")
}

/// A session that gives its code all the time to stop.
fn patient() -> Session {
    python().grace(GENEROUS).start().unwrap()
}

isolated! {
    fn a_time_limit_interrupts_and_the_session_lives() {
        let mut session = patient();
        for code in ["while True: pass", "import time; time.sleep(600)", "import re; re.match('(a*)*b', 'a' * 64)"] {
            let run = session.execute(Request::code(code).time_limit(Duration::from_millis(100))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{code}");
            assert_eq!(run.error.unwrap().kind, "KeyboardInterrupt");
            assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        }
    }
}

isolated! {
    fn a_child_that_the_code_waits_for_is_interrupted_too() {
        let mut session = patient();
        let run = cancelled_while_running(&mut session, "import subprocess; print('go', flush=True); subprocess.run(['sleep', '600'])");
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        assert_eq!(session.execute("2").unwrap().value, 2);
    }
}

isolated! {
    fn code_that_polls_for_its_cancel_ends_in_good_order() {
        let mut session = patient();
        // Code that polls is not interrupted at once.
        let code = "import remuda, time\nremuda.cancelled()\nprint('go', flush=True)\nwhile not remuda.cancelled(): time.sleep(0.01)\nprint('tidy')\n'ended'";
        let run = cancelled_while_running(&mut session, code);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        assert_eq!((run.stdout.as_str(), run.value), ("go\ntidy\n", serde_json::json!("ended")));
        assert_eq!(session.execute("import remuda; remuda.cancelled()").unwrap().value, false);
    }
}

isolated! {
    fn code_that_cannot_be_interrupted_is_killed_after_its_grace() {
        let swallows = "import time\ndef f():\n    while True:\n        try:\n            print('go', flush=True)\n            time.sleep(600)\n        except BaseException: pass\nf()";
        let ignores = "import signal, time\nfor s in (signal.SIGINT, signal.SIGIO): signal.signal(s, signal.SIG_IGN)\nprint('go', flush=True)\ntime.sleep(600)";
        // The one interrupt may come before the call: then the handler makes it.
        let holds_the_lock = "def f():\n    try:\n        print('go', flush=True)\n        sum(range(10**12))\n    except BaseException: sum(range(10**12))\nf()";
        for code in [swallows, ignores, holds_the_lock] {
            let mut session = session();
            let run = cancelled_while_running(&mut session, code);
            assert_eq!(run.outcome, Outcome::Cancelled { killed: true }, "{code}");
            let post_mortem = run.post_mortem.unwrap();
            assert_eq!((post_mortem.exit, &post_mortem.cause), (Exit::Signal(9), &Cause::Cancelled));
            assert!(run.stdout.starts_with("go\n"), "{}", run.stdout);
            let error = session.execute("1").unwrap_err();
            assert!(matches!(error, Error::SessionDead { post_mortem: Some(_), .. }), "{error}");
            session.restart().unwrap();
            assert_eq!(session.execute("1").unwrap().value, 1);
        }
    }
}

isolated! {
    fn a_late_cancel_never_hits_the_next_request() {
        let mut session = patient();
        for i in 0..300 {
            let token = CancelToken::new();
            let fire = token.clone();
            // Fires at the end of the request, on another thread, as late as can be.
            let (go, gone) = mpsc::channel::<()>();
            let canceller = std::thread::spawn(move || {
                let _ = gone.recv();
                fire.cancel();
            });
            let request = Request::code(format!("print({i}, flush=True)")).cancel_token(&token).on_output(move |_, _| {
                let _ = go.send(());
            });
            let run = session.execute(request).unwrap();
            assert!(matches!(run.outcome, Outcome::Completed | Outcome::Cancelled { killed: false }), "{:?}", run.outcome);
            let next = session.execute("sum(range(1000))").unwrap();
            assert_eq!((next.outcome, next.value), (Outcome::Completed, serde_json::json!(499_500)));
            canceller.join().unwrap();
        }
    }
}

isolated! {
    fn a_token_that_was_cancelled_before_keeps_the_code_from_running() {
        let mut session = session();
        let token = CancelToken::new();
        token.cancel();
        let error = session.execute(Request::code("ran = True").cancel_token(&token)).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(session.execute("'ran' in globals()").unwrap().value, false);
    }
}

isolated! {
    fn encoding_a_value_can_be_interrupted() {
        let mut session = patient();
        let code = "class E:\n    def __repr__(self):\n        print('go', flush=True)\n        while True: pass\nE()";
        let run = cancelled_while_running(&mut session, code);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn shutdown_runs_exit_functions_and_terminate_does_not_wait() {
        let mut polite = session();
        let path = std::env::temp_dir().join("left");
        polite.execute(format!("import atexit; atexit.register(lambda: open({path:?}, 'w').close())")).unwrap();
        let post_mortem = polite.shutdown(GENEROUS);
        assert_eq!((post_mortem.exit, post_mortem.cause), (Exit::Code(0), Cause::Retired));
        assert!(path.exists());
        std::fs::remove_file(path).unwrap();

        let mut stubborn = session();
        stubborn.execute("import atexit, time; atexit.register(time.sleep, 600)").unwrap();
        let post_mortem = stubborn.shutdown(Duration::from_millis(100));
        assert_eq!(post_mortem.exit, Exit::Signal(9));

        let session = session();
        let pid = session.pid();
        assert_eq!(session.terminate().exit, Exit::Signal(9));
        assert!(!is_running(pid));
        assert_eq!(std::fs::read_dir(std::env::temp_dir()).unwrap().count(), 0, "directories of sessions are left");
    }
}

isolated! {
    fn dropping_a_session_ends_its_whole_group() {
        let mut session = session();
        // Peer bug B11: grandchildren lived on.
        let run = session.execute("import subprocess; subprocess.Popen(['sleep', '600']).pid").unwrap();
        let grandchild = u32::try_from(run.value.as_u64().unwrap()).unwrap();
        let pid = session.pid();
        drop(session);
        assert!(!is_running(pid));
        poll(|| !is_running(grandchild), || "the grandchild lives".to_owned());
    }
}

isolated! {
    fn killing_the_host_leaves_no_process() {
        let codes = [
            "import subprocess, os\np = subprocess.Popen(['sleep', '600'])\nprint(os.getpid(), p.pid, flush=True)\nwhile True: pass",
            // No signal reaches this one: the watchdog has to.
            "import subprocess, os, signal\np = subprocess.Popen(['sleep', '600'])\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nprint(os.getpid(), p.pid, flush=True)\nsum(range(10**12))",
        ];
        if let Some(number) = doomed() {
            let code = codes[number.parse::<usize>().unwrap()];
            run_until_killed(&mut session(), Request::code(code));
        }
        for number in 0..codes.len() {
            nothing_outlives_a_killed_host("session_stop::killing_the_host_leaves_no_process", &number.to_string());
        }
    }
}

isolated! {
    fn a_panic_in_the_callback_ends_the_session_and_nothing_else() {
        let mut session = python().start().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let request = Request::code("print('boo', flush=True)\nwhile True: pass").on_output(|_, _| panic!("on purpose"));
            session.execute(request)
        }));
        assert!(panicked.is_err());
        assert!(!session.is_alive());
        assert!(matches!(session.execute("1"), Err(Error::SessionDead { .. })));
        session.restart().unwrap();
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}
