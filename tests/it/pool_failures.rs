//! What goes wrong: starts that fail, sessions that die, hang, talk, or are left dirty.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeWorker, Fault, FaultPlan, ManualClock};
use remuda::{
    BreakerState, CancelToken, Cause, Error, Exit, Outcome, PoolEvent, Request, Reuse, Runtime, SessionPool,
};

use crate::hostile_worker;
use crate::support::{GENEROUS, is_running, isolated, poll, pool, scripted};

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

isolated! {
    fn a_missing_interpreter_is_the_error_of_the_start() {
        for pre_warm in [true, false] {
            let config = SessionPool::builder(Runtime::python("no-such-python")).pre_warm_on_start(pre_warm);
            match config.start() {
                Err(Error::Runtime { program, .. }) => assert_eq!(program.to_str(), Some("no-such-python")),
                other => panic!("{other:?}"),
            }
        }
    }
}

isolated! {
    fn a_worker_that_never_gets_ready_or_ends_at_once_is_an_error_in_time() {
        // Peer bug B10: the start hung for ever and left its child behind.
        let never = SessionPool::builder(Runtime::command("sleep", ["600"]));
        match never.start_timeout(Duration::from_millis(200)).start() {
            Err(Error::StartTimeout { limit, .. }) => assert_eq!(limit, Duration::from_millis(200)),
            other => panic!("{other:?}"),
        }
        let ends = SessionPool::builder(Runtime::command("false", [""; 0])).start();
        assert!(matches!(ends, Err(Error::StartDied { .. } | Error::Runtime { .. })), "{ends:?}");
    }
}

isolated! {
    fn warm_up_code_that_fails_is_the_error_of_the_start() {
        match pool().warmup_code("1 / 0").start() {
            Err(Error::WarmUp { message, .. }) => assert!(message.contains("ZeroDivisionError"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn failing_starts_fail_callers_fast_and_are_few() {
        // Peer defect A14: a start was tried without end; peers spawn hundreds of thousands.
        let clock = ManualClock::new();
        let fake = FakeWorker::new().fail("warm", "ZeroDivisionError", "division by zero");
        let config = scripted(&fake).clock(&clock).pre_warm_on_start(false).min_idle(2);
        let pool = config.warmup_code("warm").start().unwrap();
        let refused = |pool: &SessionPool| match pool.acquire() {
            Err(Error::StartFailing { cause, retry_in }) => {
                assert!(matches!(*cause, Error::WarmUp { .. }), "{cause}");
                retry_in
            }
            other => panic!("{other:?}"),
        };
        let mut last = Duration::ZERO;
        for batch in 1..=4_u64 {
            for _ in 0..50 {
                // Those who come while a start is tried wait for it; time does not pass meanwhile.
                last = refused(&pool);
            }
            assert!(pool.metrics().start_failures <= batch + 1, "{:?}", pool.metrics());
            assert!(last >= Duration::from_millis(500) * (1 << (batch - 1)), "{last:?}: it doubles");
            clock.advance(last);
        }
        last += refused(&pool);
        assert!(last >= Duration::from_secs(8));
        let info = pool.info();
        assert!(info.breaker.failures >= 1 && info.breaker.state != BreakerState::Closed);
        assert!(info.breaker.last_error.unwrap().contains("ZeroDivisionError"));
        assert!(matches!(pool.ensure_min_sessions(), Err(Error::StartFailing { .. })));
        assert!(matches!(pool.try_acquire(), Err(Error::StartFailing { .. } | Error::AcquireTimeout { .. })));
    }
}

isolated! {
    fn workers_that_end_soon_after_they_are_ready_are_few_and_told() {
        // Each start goes well: the pool replaced them without end, some twenty a second.
        let (tell, told) = std::sync::mpsc::channel();
        let runtime = hostile_worker::runtime("ready()\ntime.sleep(0.01)");
        let pool = SessionPool::builder(runtime).min_idle(2).max_sessions(4).pre_warm_on_start(false);
        let pool = pool.listener(move |event| {
            if let PoolEvent::BreakerOpened { failures, cause, .. } = event {
                tell.send((*failures, cause.clone())).unwrap();
            }
        });
        let pool = pool.start().unwrap();
        let _ = pool.ensure_min_sessions();
        for failures in 1..=2 {
            let (told, cause) = told.recv_timeout(GENEROUS).expect("the breaker opens");
            assert!(told == failures && cause.contains("ended unused"), "{told}: {cause}");
        }
        let metrics = pool.metrics();
        assert!(metrics.sessions_created <= 12 && metrics.start_failures >= 2, "{metrics:?}");
        assert!(pool.info().breaker.last_error.unwrap().contains("sessions in a row"));
    }
}

isolated! {
    fn a_pool_recovers_when_its_sessions_can_be_started_again() {
        let clock = ManualClock::new();
        let fake = FakeWorker::new().answer("1", 1).faults(FaultPlan::none().at_start(1, Fault::Exit(1)));
        let config = scripted(&fake).clock(&clock).pre_warm_on_start(false).min_idle(1).max_sessions(1);
        let pool = config.start().unwrap();
        let Err(Error::StartFailing { retry_in, .. }) = pool.acquire() else { panic!("{:?}", pool.info()) };
        assert_eq!(fake.starts(), 1, "nothing is tried before its time");
        clock.advance(retry_in);
        // The watermark alone brings the probe after the back-off.
        pool.wait_ready(1, GENEROUS).unwrap();
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
        assert_eq!(pool.info().breaker.state, BreakerState::Closed);
    }
}

isolated! {
    fn a_time_out_carries_the_error_of_the_last_start() {
        let fake = FakeWorker::new().faults(FaultPlan::none().from_start(2, Fault::Exit(1)));
        let pool = scripted(&fake).min_idle(1).max_sessions(2).start().unwrap();
        let held = pool.acquire().unwrap();
        poll(|| pool.metrics().start_failures > 0, || format!("{:?}", pool.metrics()));
        match pool.acquire_timeout(Duration::from_millis(10)) {
            Err(Error::AcquireTimeout { last_start_error: Some(error), .. }) => {
                assert!(matches!(*error, Error::StartDied { .. }), "{error}");
            }
            other => panic!("{other:?}"),
        }
        drop(held);
    }
}

isolated! {
    fn a_killed_idle_session_is_replaced_at_once() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        let before: Vec<_> = pool.info().sessions.iter().map(|row| row.pid).collect();
        kill(before[0]);
        poll(|| pool.metrics().sessions_created == 3, || format!("{:?}", pool.metrics()));
        poll(|| pool.info().counts.idle == 2, || format!("{:?}", pool.info().counts));
        assert!(pool.info().sessions.iter().all(|row| row.pid != before[0]));
        let metrics = pool.metrics();
        // Whether the monitor heard of the end first or of the closed channels.
        assert_eq!((metrics.sessions_restarted, metrics.sessions_removed_by_health), (1, 1));
        let info = pool.info();
        assert_eq!((info.post_mortems.len(), info.post_mortems[0].exit), (1, Exit::Signal(9)));
    }
}

isolated! {
    fn a_dead_session_is_never_handed_out() {
        // Peer bug B9: a dead worker was handed out, its user waited for the whole time limit.
        let pool = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        for _ in 0..5 {
            let mut session = pool.acquire_timeout(GENEROUS).unwrap();
            assert_eq!(session.execute("1").unwrap().outcome, Outcome::Completed);
            let pid = session.pid();
            drop(session);
            kill(pid);
            poll(|| pool.info().sessions.iter().all(|row| row.pid != pid), || format!("{:?}", pool.info()));
        }
    }
}

isolated! {
    fn code_that_ends_its_process_costs_one_session_only() {
        // Peer bugs B9 and B15: the caller waited its whole time limit, and nobody woke the waiter.
        let pool = pool().min_idle(0).max_sessions(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire().unwrap().execute("7").unwrap().value);
            poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
            let run = session.execute("import os; os._exit(3)").unwrap();
            assert_eq!(run.outcome, Outcome::Died);
            assert_eq!(run.post_mortem.unwrap().exit, Exit::Code(3));
            drop(session);
            assert_eq!(waiter.join().unwrap(), 7);
        });
        assert_eq!(pool.metrics().sessions_restarted, 1);
    }
}

isolated! {
    fn a_dead_session_is_only_removed_when_so_configured_or_released() {
        let configured = pool().min_idle(0).restart_if_dead(false).start().unwrap();
        configured.acquire().unwrap().execute("import os; os._exit(0)").unwrap();
        poll(|| configured.info().counts.total == 0, || format!("{:?}", configured.info().counts));
        let pool = pool().min_idle(0).start().unwrap();
        let mut session = pool.acquire().unwrap();
        session.execute("import os; os._exit(0)").unwrap();
        session.release(false);
        poll(|| pool.info().counts.total == 0, || format!("{:?}", pool.info().counts));
        assert_eq!(pool.metrics().sessions_created, 1);
        pool.acquire().unwrap().execute("import os; os._exit(0)").unwrap();
        poll(|| pool.info().counts.idle == 1, || "the default replaces it".to_owned());
    }
}

isolated! {
    fn a_session_held_during_a_panic_is_replaced() {
        let pool = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        let pid = pool.acquire().unwrap().pid();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _held = pool.acquire().unwrap();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_ne!(pool.acquire_timeout(GENEROUS).unwrap().pid(), pid);
        assert_eq!(pool.metrics().sessions_restarted, 1);
    }
}

isolated! {
    fn a_session_whose_code_was_stopped_is_replaced() {
        // Peer bugs B5 and B16: the next holder got the same, still busy session.
        let pool = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        let pid = session.pid();
        let run = session.execute(Request::code("while True: pass").time_limit(Duration::from_millis(50))).unwrap();
        assert!(matches!(run.outcome, Outcome::TimedOut { .. }), "{:?}", run.outcome);
        drop(session);
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        assert_ne!(session.pid(), pid);
        assert_eq!(session.execute("1").unwrap().value, 1);
        assert!(!is_running(pid));
    }
}

isolated! {
    fn an_idle_session_that_talks_loses_its_output_and_stays() {
        let pool = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        let gate = std::env::temp_dir().join("talk");
        let code = format!(
            "import os, threading, time\ndef talk():\n    while not os.path.exists({gate:?}): time.sleep(0.005)\n    \
             print('late ' * 1000, flush=True)\n    os.unlink({gate:?})\nthreading.Thread(target=talk, daemon=True).start()"
        );
        let mut session = pool.acquire().unwrap();
        session.execute(code).unwrap();
        let pid = session.pid();
        drop(session);
        std::fs::write(&gate, "").unwrap();
        poll(|| !gate.exists(), || "the thread never talked".to_owned());
        let mut session = pool.acquire().unwrap();
        assert_eq!(session.pid(), pid);
        assert_eq!(session.execute("print('now')").unwrap().stdout, "now\n");
    }
}

isolated! {
    fn an_idle_session_that_writes_on_the_wire_is_replaced() {
        // A worker that sends a frame nobody asked for while it is idle.
        let pool = pool().reuse(Reuse::Keep).min_idle(1).max_sessions(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        let pid = session.pid();
        let gate = std::env::temp_dir().join("write");
        let code = format!(
            "import os, threading, time, stat\ndef write():\n    while not os.path.exists({gate:?}): time.sleep(0.005)\n    \
             for fd in range(3, 64):\n        try:\n            if stat.S_ISFIFO(os.fstat(fd).st_mode): os.write(fd, b'x' * 16)\n        \
             except OSError: pass\nthreading.Thread(target=write, daemon=True).start()"
        );
        session.execute(code).unwrap();
        drop(session);
        // The pool listens to sessions that are idle for a moment; then the worker writes.
        std::fs::write(&gate, "").unwrap();
        poll(|| pool.metrics().sessions_removed >= 1, || format!("{:?}", pool.info()));
        assert_ne!(pool.acquire_timeout(GENEROUS).unwrap().pid(), pid);
        std::fs::remove_file(&gate).unwrap();
    }
}

isolated! {
    fn a_stopped_worker_does_not_answer_its_reset_and_is_replaced() {
        // Peer bug B9: a SIGSTOPped worker stayed "alive" and was handed out.
        let pool = pool().min_idle(1).max_sessions(1).reset_timeout(Duration::from_millis(200)).start().unwrap();
        let session = pool.acquire().unwrap();
        let raw = session.pid();
        let pid = rustix::process::Pid::from_raw(i32::try_from(raw).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        drop(session);
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        assert_ne!(session.pid(), raw);
        assert_eq!(session.execute("1").unwrap().value, 1);
        assert_eq!(pool.metrics().sessions_removed_by_health, 1);
    }
}

isolated! {
    fn a_death_in_use_is_told_with_its_cause() {
        let pool = pool().min_idle(0).start().unwrap();
        let mut session = pool.acquire().unwrap();
        let token = CancelToken::new();
        let heard = token.clone();
        let code = "import signal, time\nfor s in (signal.SIGINT, signal.SIGIO): signal.signal(s, signal.SIG_IGN)\n\
                    print('go', flush=True)\ntime.sleep(600)";
        let request = Request::code(code).cancel_token(&token).on_output(move |_, _| heard.cancel());
        assert_eq!(session.execute(request).unwrap().outcome, Outcome::Cancelled { killed: true });
        drop(session);
        poll(|| !pool.info().post_mortems.is_empty(), || format!("{:?}", pool.info()));
        assert_eq!(pool.info().post_mortems[0].cause, Cause::Cancelled);
    }
}

isolated! {
    fn a_worker_that_says_more_than_that_it_is_clean_is_replaced() {
        let script = "ready('execute reset')\nresult(request(5))\nnumber = request(10)\nraw(frame(11, number, b'[]') + b'more')\nhang()";
        let pool = SessionPool::builder(hostile_worker::runtime(script)).min_idle(1).max_sessions(1).start().unwrap();
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        let pid = session.pid();
        assert_eq!(session.execute("1").unwrap().value, 1);
        drop(session);
        let mut session = pool.acquire_timeout(GENEROUS).unwrap();
        assert_ne!(session.pid(), pid);
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn ensure_min_sessions_waits_for_the_attempt_that_follows_a_failure() {
        let [broken, held, whole] = ["broken", "held", "whole"].map(|name| std::env::temp_dir().join(name));
        std::fs::write(&broken, "").unwrap();
        let code = format!(
            "import os, time\nassert not os.path.exists({broken:?})\nopen({whole:?}, 'w').close()\n\
             while os.path.exists({held:?}): time.sleep(0.005)"
        );
        let pool = pool().min_idle(1).pre_warm_on_start(false).warmup_code(code).start().unwrap();
        assert!(matches!(pool.ensure_min_sessions(), Err(Error::StartFailing { .. })));
        std::fs::write(&held, "").unwrap();
        std::fs::remove_file(&broken).unwrap();
        thread::scope(|threads| {
            // Attempts that began before the file was gone fail; this one goes well.
            poll(|| whole.exists(), || format!("{:?}", pool.info()));
            let info = pool.info();
            assert_eq!((info.counts.starting, info.breaker.state), (1, BreakerState::HalfOpen), "{info:?}");
            let asked = threads.spawn(|| pool.ensure_min_sessions());
            std::fs::remove_file(&held).unwrap();
            asked.join().unwrap().unwrap();
        });
        std::fs::remove_file(&whole).unwrap();
    }
}
