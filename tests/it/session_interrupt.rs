//! Stopping from any thread: interrupt handles, hard limits, code that is hard to stop.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use remuda::{Cause, Exit, InterruptHandle, Outcome, Request, Session, TimeLimit};

use crate::hostile_worker::hostile;
use crate::support::{GENEROUS, isolated, poll, python, session};

/// Runs code and calls `stop` from another thread once the code has printed something.
fn stopped(session: &mut Session, code: &str, stop: fn(&InterruptHandle) -> bool) -> remuda::Execution {
    let handle = session.interrupt_handle();
    let (started, starts) = mpsc::channel();
    let stopper = thread::spawn(move || {
        starts.recv().expect("the code says that it runs");
        assert!(stop(&handle), "code is running");
    });
    let request = Request::code(code).on_output(move |_, _| {
        // Only the first time: afterwards nobody listens.
        let _ = started.send(());
    });
    let run = session.execute(request).unwrap();
    stopper.join().unwrap();
    run
}

isolated! {
    fn a_handle_interrupts_from_another_thread_and_the_session_lives() {
        let mut session = session();
        let run = stopped(&mut session, "print('go', flush=True)\nwhile True: pass", InterruptHandle::interrupt);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        assert_eq!(run.error.unwrap().kind, "KeyboardInterrupt");
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn an_interrupt_never_kills_code_that_goes_on() {
        let mut session = python().grace(Duration::from_millis(1)).start().unwrap();
        // It goes on until it has seen the interrupt, and well beyond the grace.
        let code = "import time\nseen = False\nfor i in range(10**9):\n    try:\n        \
                    if i == 0: print('go', flush=True)\n        time.sleep(0.02)\n        if seen and i > 10: break\n    \
                    except KeyboardInterrupt: seen = True\n'at leisure'";
        let run = stopped(&mut session, code, InterruptHandle::interrupt);
        assert_eq!(run.value, "at leisure");
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "it noticed");
    }
}

isolated! {
    fn a_handle_cancels_with_the_whole_ladder_and_kills_at_once() {
        let deaf = "import time\ndef f():\n    while True:\n        try:\n            print('go', flush=True)\n            time.sleep(600)\n        except BaseException: pass\nf()";
        let mut session = session();
        let run = stopped(&mut session, deaf, InterruptHandle::cancel);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
        let mut patient = python().grace(GENEROUS).start().unwrap();
        let run = stopped(&mut patient, deaf, InterruptHandle::kill);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
        assert_eq!(run.post_mortem.unwrap().cause, Cause::Cancelled);
    }
}

isolated! {
    fn a_handle_does_nothing_between_executions_and_survives_a_restart() {
        let mut session = session();
        let handle = session.interrupt_handle();
        assert!(!handle.interrupt() && !handle.cancel() && !handle.kill());
        assert_eq!(session.execute("1").unwrap().value, 1);
        session.restart().unwrap();
        assert!(!handle.kill());
        let run = stopped(&mut session, "print('go', flush=True)\nwhile True: pass", InterruptHandle::interrupt);
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        drop(session);
        assert!(!handle.kill(), "a handle may outlive its session");
    }
}

isolated! {
    fn an_interrupt_that_comes_late_never_hits_the_next_execution() {
        let mut session = session();
        let handle = session.interrupt_handle();
        let (end, ended) = mpsc::channel::<()>();
        let stopper = thread::spawn(move || {
            let mut hits = 0_u64;
            while ended.try_recv().is_err() {
                hits += u64::from(handle.interrupt());
                thread::yield_now();
            }
            hits
        });
        // Interrupts rain; whatever they end, what says that it was not ended has its value.
        let mut completed = 0;
        while completed < 300 {
            let run = session.execute("sum(range(1000))").unwrap();
            match run.outcome {
                Outcome::Completed => {
                    assert_eq!(run.value, 499_500);
                    completed += 1;
                }
                Outcome::Cancelled { killed: false } => {}
                other => panic!("{other:?}: {:?}", run.error),
            }
        }
        end.send(()).unwrap();
        assert!(stopper.join().unwrap() > 0, "some hit");
        assert_eq!(session.execute("'clean'").unwrap().outcome, Outcome::Completed);
    }
}

isolated! {
    fn the_hard_limit_kills_without_asking() {
        let mut session = python().grace(GENEROUS).start().unwrap();
        let code = "import atexit\nprint('go', flush=True)\nwhile True: pass";
        let run = session.execute(Request::code(code).hard_time_limit(Duration::from_millis(200))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Hard, killed: true });
        let death = run.post_mortem.unwrap();
        assert_eq!((death.exit, death.cause), (Exit::Signal(9), Cause::TimeLimit));
    }
}

isolated! {
    fn a_soft_limit_comes_first_and_the_hard_limit_cuts_its_grace_short() {
        let mut session = python().grace(GENEROUS).start().unwrap();
        let limited = Request::code("while True: pass").time_limit(Duration::from_millis(100));
        let run = session.execute(limited.hard_time_limit(GENEROUS)).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        let mut deaf = hostile("ready()\nrequest(5)\nhang()").grace(GENEROUS).start().unwrap();
        let limited = Request::code("1").time_limit(Duration::from_millis(100));
        let run = deaf.execute(limited.hard_time_limit(Duration::from_secs(1))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Hard, killed: true });
    }
}

isolated! {
    fn code_that_waits_for_eight_busy_threads_is_interrupted() {
        let mut session = session();
        let code = "import threading\ndef spin():\n    while True: pass\n\
                    threads = [threading.Thread(target=spin, daemon=True) for _ in range(8)]\n\
                    for t in threads: t.start()\nprint('go', flush=True)\nfor t in threads: t.join()";
        let run = stopped(&mut session, code, InterruptHandle::cancel);
        // With eight threads before it, the main thread may come too late for its grace.
        assert!(matches!(run.outcome, Outcome::Cancelled { .. }), "{:?}", run.outcome);
        if session.is_alive() {
            assert_eq!(session.execute("1 + 1").unwrap().value, 2);
            assert_eq!(session.execute("import threading; threading.active_count()").unwrap().value, 9);
        }
    }
}

isolated! {
    fn a_ping_tells_a_worker_that_answers_from_one_that_is_stopped() {
        let mut session = session();
        assert!(session.ping(GENEROUS).unwrap() < GENEROUS);
        let pid = session.pid();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(), rustix::process::Signal::STOP).unwrap();
        let error = session.ping(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, remuda::Error::Unresponsive { .. }), "{error}");
        poll(|| !session.is_alive(), || "the stopped worker is given up".to_owned());
    }
}
