//! The test kit: scripted workers, the faults they are told to have, and a clock that stands still.

use std::thread;
use std::time::Duration;

use remuda::testing::{FakeKind, FakeReply, FakeWorker, Fault, FaultPlan, Hold, ManualClock, eventually};
use remuda::{
    Call, CancelToken, Error, Exit, Outcome, Request, Reuse, Session, SessionConfig, TimeLimit, as_completed,
};
use serde_json::json;

use crate::support::{GENEROUS, is_running, isolated, scripted as pool};

const MINUTE: Duration = Duration::from_secs(60);

fn session(fake: &FakeWorker) -> Session {
    SessionConfig::new(fake.runtime()).start_timeout(GENEROUS).start().unwrap()
}

/// One that gives what is cancelled all the time to end.
fn patient(fake: &FakeWorker) -> Session {
    SessionConfig::new(fake.runtime()).start_timeout(GENEROUS).grace(GENEROUS).start().unwrap()
}

isolated! {
    fn a_scripted_worker_answers_prints_fails_and_remembers_what_it_was_asked() {
        let fake = FakeWorker::new()
            .answer("1 + 1", 2)
            .fail("boom", "ValueError", "no")
            .reply("talk", FakeReply::value("x").repr("'x'").stdout("out\n").stderr("err\n"))
            .reply("raw", FakeReply::bytes(*b"\0\xff"))
            .reply("nothing", FakeReply::none())
            .otherwise(|request| FakeReply::value(json!([request.text, request.args, request.kwargs])));
        let mut session = session(&fake);
        assert_eq!(session.info().runtime.split_whitespace().next(), Some("fake"));
        assert!(is_running(session.pid()));
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        let failed = session.execute("boom").unwrap();
        assert_eq!(failed.outcome, Outcome::Failed);
        let error = failed.error.unwrap();
        assert_eq!((error.kind.as_str(), error.message.as_str()), ("ValueError", "no"));
        let run = session.execute("talk").unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str(), run.repr.as_deref()), ("out\n", "err\n", Some("'x'")));
        assert_eq!(session.execute("raw").unwrap().bytes.unwrap(), b"\0\xff");
        assert_eq!(session.execute("nothing").unwrap().repr, None);
        let run = session.execute(Call::new("m:f").arg(1).kwarg("deep", true)).unwrap();
        assert_eq!(run.value, json!(["m:f", [1], {"deep": true}]));
        assert_eq!(fake.asked(), ["1 + 1", "boom", "talk", "raw", "nothing", "m:f"]);
        assert_eq!(fake.asked_of(session.id()), fake.asked());
        assert_eq!(fake.requests()[5].kind, FakeKind::Call);
        assert_eq!((fake.requests()[5].number, fake.starts()), (6, 1));
    }
}

isolated! {
    fn expectations_are_met_once_and_what_never_came_is_told() {
        let fake = FakeWorker::new().answer("n", "later").expect("n", FakeReply::value(1)).expect("n", FakeReply::value(2));
        let mut session = session(&fake);
        let values: Vec<_> = (0..2).map(|_| session.execute("n").unwrap().value).collect();
        assert_eq!(values, [1, 2]);
        fake.assert_used_up();
        assert_eq!(session.execute("n").unwrap().value, "later");
        let unscripted = session.execute("what?").unwrap().error.unwrap();
        assert_eq!(unscripted.kind, "Unscripted");
        let fake = fake.expect("never", FakeReply::none());
        let told = thread::spawn(move || fake.assert_used_up()).join().unwrap_err();
        assert!(told.downcast_ref::<String>().unwrap().contains("never"));
    }
}

isolated! {
    fn a_held_request_is_where_the_test_wants_it_and_goes_on_when_it_is_released() {
        let (hold, half) = (Hold::new(), Hold::new());
        let fake = FakeWorker::new().reply("slow", FakeReply::value(7).stdout("a").hold(&hold).stdout("b").hold(&half));
        let mut session = patient(&fake);
        let other = {
            let (hold, half) = (hold.clone(), half.clone());
            thread::spawn(move || {
                hold.await_held(1);
                half.release_one();
                hold.release();
            })
        };
        let run = session.execute("slow").unwrap();
        assert_eq!((run.stdout.as_str(), run.value), ("ab", json!(7)));
        other.join().unwrap();
        assert_eq!((hold.held(), half.held()), (0, 0));
        assert_eq!(session.execute(Request::code("slow").time_limit(Duration::from_millis(1))).unwrap().outcome,
            Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "the pass is used up");
    }
}

isolated! {
    fn those_who_are_held_go_first_come_first_served() {
        let hold = Hold::new();
        let fake = FakeWorker::new()
            .reply("x", FakeReply::none().hold(&hold))
            .otherwise(|_| FakeReply::none());
        let pool = pool(&fake).min_idle(0).max_sessions(3).start().unwrap();
        let scope = pool.scope(&CancelToken::new());
        let mut jobs = Vec::new();
        for count in 1..=3 {
            jobs.push(scope.submit("x"));
            hold.await_held(count);
        }
        let order: Vec<_> = jobs.iter().map(remuda::Job::id).collect();
        let mut ended = Vec::new();
        let mut done = as_completed(jobs);
        for _ in 0..3 {
            hold.release_one();
            ended.push(done.next_timeout(GENEROUS).unwrap().id());
        }
        assert_eq!(ended, order);
    }
}

isolated! {
    fn a_cancel_reaches_a_held_request_as_it_reaches_real_code_and_a_deaf_worker_is_killed() {
        let hold = Hold::new();
        let fake = FakeWorker::new()
            .reply("polite", FakeReply::none().hold(&hold))
            .reply("hangs", FakeReply::hang().stdout("."))
            .reply("deaf", FakeReply::none().stdout("busy").hold(&hold).ignoring_cancels())
            .answer("1", 1);
        let (mut hasty, mut session) = (session(&fake), patient(&fake));
        let outcome = |session: &mut Session, code: &str, token: &CancelToken| {
            session.execute(Request::code(code).cancel_token(token)).unwrap().outcome
        };
        let token = CancelToken::new();
        let kills = {
            let (hold, token) = (hold.clone(), token.clone());
            thread::spawn(move || {
                hold.await_held(1);
                token.cancel();
            })
        };
        assert_eq!(outcome(&mut session, "polite", &token), Outcome::Cancelled { killed: false });
        kills.join().unwrap();
        assert_eq!(crate::support::cancelled_when_busy(&mut session, "hangs"), Outcome::Cancelled { killed: false });
        assert_eq!(session.execute("1").unwrap().value, 1, "it lives");
        assert!(fake.requests().iter().any(|request| request.kind == FakeKind::Cancel));
        let pid = hasty.pid();
        assert_eq!(crate::support::cancelled_when_busy(&mut hasty, "deaf"), Outcome::Cancelled { killed: true });
        assert!(!hasty.is_alive());
        eventually(|| !is_running(pid), || "its process lives".to_owned());
        eventually(|| hold.held() == 0, || "its thread is still held".to_owned());
    }
}

isolated! {
    fn a_worker_dies_with_an_exit_code_by_a_signal_or_by_a_kill_from_outside() {
        let hold = Hold::new();
        let fake = FakeWorker::new()
            .reply("exit", FakeReply::exit(3).stderr("last words\n"))
            .reply("crash", FakeReply::signal(11))
            .reply("wait", FakeReply::none().hold(&hold));
        let died = |code: &str| session(&fake).execute(code).unwrap();
        let run = died("exit");
        assert_eq!((run.outcome, run.stderr.as_str()), (Outcome::Died, "last words\n"));
        assert_eq!(run.post_mortem.unwrap().exit, Exit::Code(3));
        assert_eq!(died("crash").post_mortem.unwrap().exit, Exit::Signal(11));
        let mut session = session(&fake);
        let pid = session.pid();
        let murder = {
            let hold = hold.clone();
            thread::spawn(move || {
                hold.await_held(1);
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            })
        };
        let run = session.execute("wait").unwrap();
        assert_eq!((run.outcome, run.post_mortem.unwrap().exit), (Outcome::Died, Exit::Signal(9)));
        murder.join().unwrap();
        eventually(|| hold.held() == 0, || "its thread is still held".to_owned());
    }
}

isolated! {
    fn a_garbled_frame_and_one_that_is_cut_end_the_session_with_what_it_was() {
        let plan = FaultPlan::none().at_request(2, Fault::Garble).at_request(3, Fault::Cut);
        let fake = FakeWorker::new().answer("1", 1).faults(plan);
        let mut first = session(&fake);
        assert_eq!(first.execute("1").unwrap().value, 1);
        match first.execute("1") {
            Err(Error::Protocol { reason, .. }) => assert!(reason.contains("over the cap"), "{reason}"),
            other => panic!("{other:?}"),
        }
        let run = session(&fake).execute("1").unwrap();
        assert_eq!((run.outcome, run.post_mortem.unwrap().exit), (Outcome::Died, Exit::Code(0)));
    }
}

isolated! {
    fn a_slow_link_delays_an_answer_and_loses_nothing() {
        let plan = FaultPlan::none().slow_link(3, Duration::from_micros(50));
        let long = "x".repeat(500);
        let fake = FakeWorker::new().answer("long", &long).faults(plan);
        assert_eq!(session(&fake).execute("long").unwrap().value, *long);
    }
}

isolated! {
    fn a_start_fails_or_hangs_as_it_was_planned() {
        let plan = FaultPlan::none()
            .at_start(1, Fault::Exit(7))
            .at_start(2, Fault::Garble)
            .at_start(3, Fault::Refuse)
            .at_start(4, Fault::Hang);
        let fake = FakeWorker::new().answer("1", 1).faults(plan);
        let start = || SessionConfig::new(fake.runtime()).start_timeout(GENEROUS).start();
        match start() {
            Err(Error::StartDied { post_mortem }) => assert_eq!(post_mortem.exit, Exit::Code(7)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(start(), Err(Error::Protocol { .. })));
        match start() {
            Err(Error::StartDied { post_mortem }) => assert_eq!(post_mortem.exit, Exit::Code(1)),
            other => panic!("{other:?}"),
        }
        let hanging = SessionConfig::new(fake.runtime()).start_timeout(Duration::from_millis(20)).start();
        assert!(matches!(hanging, Err(Error::StartTimeout { .. })));
        assert_eq!(start().unwrap().execute("1").unwrap().value, 1);
        assert_eq!(fake.starts(), 5);
    }
}

isolated! {
    fn warm_ups_and_resets_reach_the_script() {
        let plan = FaultPlan::none().at_reset(2, Fault::Refuse);
        let fake = FakeWorker::new().answer("1", 1).fail("bad", "SyntaxError", "no").faults(plan);
        let config = || pool(&fake).min_idle(1).max_sessions(1).warm_import("numpy");
        assert!(matches!(config().warmup_code("bad").start(), Err(Error::WarmUp { .. })));
        let pool = config().warmup_code("1").start().unwrap();
        let warm: Vec<_> =
            fake.requests().into_iter().filter(|request| request.kind == FakeKind::WarmUp).collect();
        assert!(warm.iter().any(|request| request.args == [json!("numpy")]));
        assert_eq!(warm.last().unwrap().text, "1");
        let first = pool.acquire().unwrap();
        assert_eq!(first.warm_report().imports[0].module, "numpy");
        let id = first.id();
        drop(first);
        let second = pool.acquire().unwrap();
        assert_eq!(second.id(), id, "reset and lent again");
        drop(second);
        assert_ne!(pool.acquire().unwrap().id(), id, "it was not clean");
    }
}

isolated! {
    fn a_pool_heals_whatever_a_seeded_plan_does_to_it_and_no_answer_is_wrong() {
        let plan = FaultPlan::seeded(11)
            .starts(0.1, Fault::Exit(1))
            .requests(0.05, Fault::Signal(9))
            .requests(0.05, Fault::Garble)
            .requests(0.05, Fault::Cut)
            .resets(0.1, Fault::Refuse)
            .resets(0.05, Fault::Exit(2));
        let fake = FakeWorker::new().otherwise(|request| FakeReply::value(&request.text)).faults(plan);
        let clock = ManualClock::new();
        let pool = pool(&fake).min_idle(2).max_sessions(3).clock(&clock).start().unwrap();
        let (mut well, mut ill) = (0, 0);
        for number in 0..200 {
            let mut session = loop {
                match pool.acquire() {
                    Ok(session) => break session,
                    // All of a batch of starts failed: the next one comes after a while.
                    Err(Error::StartFailing { .. }) => clock.advance(MINUTE),
                    Err(other) => panic!("{other}"),
                }
            };
            match session.execute(number.to_string()) {
                Ok(run) if run.outcome == Outcome::Completed => {
                    assert_eq!(run.value, number.to_string());
                    well += 1;
                }
                Ok(run) => {
                    assert_eq!(run.outcome, Outcome::Died);
                    ill += 1;
                }
                Err(Error::Protocol { .. }) => ill += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(well > 140 && ill > 10, "{well} went well, {ill} did not");
        pool.shutdown(GENEROUS);
        assert_eq!(pool.info().counts.total, 0);
    }
}

isolated! {
    fn a_start_that_is_held_is_a_start_that_is_under_way() {
        let hold = Hold::new();
        let fake = FakeWorker::new().answer("1", 1).hold_starts(&hold);
        let pool = pool(&fake).pre_warm_on_start(false).min_idle(1).max_sessions(2).start().unwrap();
        let waits = {
            let pool = pool.clone();
            thread::spawn(move || pool.acquire().unwrap().execute("1").unwrap().value)
        };
        hold.await_held(1);
        assert!(pool.info().counts.starting >= 1 && pool.info().counts.waiters == 1);
        hold.release();
        assert_eq!(waits.join().unwrap(), 1);
    }
}

isolated! {
    fn an_idle_session_leaves_when_the_clock_is_moved_and_not_before() {
        let (clock, fake) = (ManualClock::new(), FakeWorker::new());
        let pool = pool(&fake).clock(&clock).min_idle(0).session_timeout(10 * MINUTE).start().unwrap();
        drop(pool.acquire().unwrap());
        eventually(|| pool.info().counts.idle == 1, || format!("{:?}", pool.info()));
        let passes = pool.metrics().health_check_runs;
        clock.advance(5 * MINUTE);
        eventually(|| pool.metrics().health_check_runs > passes, || "no pass".to_owned());
        assert_eq!(pool.info().counts.total, 1, "its time is not over");
        clock.advance(6 * MINUTE);
        eventually(|| pool.info().counts.total == 0, || format!("{:?}", pool.info()));
    }
}

isolated! {
    fn an_acquire_times_out_when_the_clock_is_moved() {
        let (clock, fake) = (ManualClock::new(), FakeWorker::new());
        let pool = pool(&fake).clock(&clock).min_idle(1).max_sessions(1).start().unwrap();
        let lease = pool.acquire().unwrap();
        let waits = {
            let pool = pool.clone();
            thread::spawn(move || pool.acquire_timeout(60 * MINUTE).map(drop))
        };
        eventually(|| pool.info().counts.waiters == 1, || "nobody waits".to_owned());
        clock.advance(59 * MINUTE);
        assert_eq!(pool.info().counts.waiters, 1);
        clock.advance(MINUTE);
        match waits.join().unwrap() {
            Err(Error::AcquireTimeout { waited, .. }) => assert_eq!(waited, 60 * MINUTE),
            other => panic!("{other:?}"),
        }
        drop(lease);
    }
}

isolated! {
    fn a_pool_tries_again_when_the_back_off_has_passed_by_its_clock() {
        let clock = ManualClock::new();
        let fake = FakeWorker::new().faults(FaultPlan::none().at_start(1, Fault::Exit(1)));
        let config = pool(&fake).clock(&clock).min_idle(1).max_sessions(1).pre_warm_on_start(false);
        let pool = config.reuse(Reuse::Keep).start().unwrap();
        assert!(matches!(pool.acquire(), Err(Error::StartFailing { .. })));
        assert!(matches!(pool.acquire(), Err(Error::StartFailing { .. })), "time stands still");
        assert_eq!(fake.starts(), 1);
        clock.advance(MINUTE);
        drop(pool.acquire().unwrap());
        assert_eq!(fake.starts(), 2);
    }
}

isolated! {
    fn a_shutdown_waits_for_leases_until_the_clock_says_so() {
        let (clock, fake) = (ManualClock::new(), FakeWorker::new().answer("1", 1));
        let pool = pool(&fake).clock(&clock).min_idle(1).start().unwrap();
        let mut lease = pool.acquire().unwrap();
        let ends = {
            let pool = pool.clone();
            thread::spawn(move || pool.shutdown(MINUTE))
        };
        eventually(|| !pool.is_open(), || "it is open".to_owned());
        assert_eq!(lease.execute("1").unwrap().value, 1, "it is not killed");
        clock.advance(MINUTE);
        ends.join().unwrap();
        assert!(!lease.is_alive());
    }
}

isolated! {
    fn a_scripted_worker_has_no_wrapper() {
        let config = SessionConfig::new(FakeWorker::new().runtime().prefix(["nice"]));
        assert!(matches!(config.start(), Err(Error::InvalidConfig { option: "runtime", .. })));
    }
}
