//! Checkpoints: a session goes back to a moment, and others begin there.

use remuda::{Error, Outcome, Reuse, Runtime, Session, SessionPool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{GENEROUS, cancelled_when_busy, is_running, isolated, poll, python, session};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

isolated! {
    fn a_session_goes_back_as_often_as_it_is_told_to() {
        let mut session = session();
        session.execute("import os\nrows = [1, 2, 3]; open('log', 'w').write('loaded')").unwrap();
        let loaded = session.checkpoint().unwrap();
        let id = session.id();
        for round in 0..3 {
            let before = session.pid();
            let run = session.execute(format!("rows.append({round}); open('log', 'a').write('!'); (rows, open('log').read())")).unwrap();
            assert_eq!(run.value, json!([[1, 2, 3, round], "loaded!"]));
            session.restore(&loaded).unwrap();
            assert_eq!((session.id(), session.execution_count()), (id, 0));
            assert_ne!(session.pid(), before);
            poll(|| !is_running(before), || "the old process lives".to_owned());
        }
        // A later checkpoint does not take the earlier one's place.
        session.execute("rows = 'second'").unwrap();
        let second = session.checkpoint().unwrap();
        session.restore(&loaded).unwrap();
        assert_eq!(session.execute("rows").unwrap().value, json!([1, 2, 3]));
        session.restore(&second).unwrap();
        assert_eq!(session.execute("rows").unwrap().value, "second");
        let memory = second.memory().unwrap();
        assert!(memory.unique < Some(memory.resident), "{memory:?}");
    }
}

isolated! {
    fn sessions_begin_at_a_checkpoint_and_outlive_it() {
        let mut first = python().warmup_code("base = 40").start().unwrap();
        first.execute("step = 2").unwrap();
        let checkpoint = first.checkpoint().unwrap();
        let pid = checkpoint.pid();
        first.terminate();
        let mut sessions: Vec<Session> = (0..3).map(|_| checkpoint.session().unwrap()).collect();
        for session in &mut sessions {
            assert_eq!(session.execute("base += step; base").unwrap().value, 42);
        }
        drop(checkpoint);
        assert!(is_running(pid), "it has sessions to tell about");
        assert_eq!(sessions[0].execute("base").unwrap().value, 42);
        // A reset goes back to the warm state, not to the checkpoint; so does a restart.
        assert_eq!(sessions[0].reset().unwrap(), [""; 0]);
        assert_eq!(sessions[0].execute("'step' in globals()").unwrap().value, false);
        sessions[1].restart().unwrap();
        assert_eq!(sessions[1].execute("('step' in globals(), base)").unwrap().value, json!([false, 40]));
        drop(sessions);
        poll(|| !is_running(pid), || "a checkpoint outlives its last session".to_owned());
    }
}

isolated! {
    fn a_dead_session_comes_back_and_its_handles_reach_the_new_process() {
        let mut session = session();
        session.execute("x = 1").unwrap();
        let checkpoint = session.checkpoint().unwrap();
        let handle = session.interrupt_handle();
        assert_eq!(session.execute("import os\nos._exit(3)").unwrap().outcome, Outcome::Died);
        session.restore(&checkpoint).unwrap();
        assert!(session.is_alive() && session.post_mortem().is_none());
        let run = session.execute(remuda::Request::code("print('go', flush=True)\nwhile True: pass").on_output(|_, _| { handle.interrupt(); })).unwrap();
        assert_eq!(run.error.unwrap().kind, "KeyboardInterrupt");
        assert_eq!(cancelled_when_busy(&mut session, "print('go', flush=True)\nwhile True: pass"), Outcome::Cancelled { killed: false });
        assert_eq!(session.execute("x").unwrap().value, 1);
    }
}

isolated! {
    fn a_checkpoint_whose_process_is_gone_is_an_error_and_the_session_keeps_its_own() {
        let mut session = session();
        session.execute("x = 1").unwrap();
        let checkpoint = session.checkpoint().unwrap();
        assert!(checkpoint.is_alive());
        kill(checkpoint.pid());
        poll(|| !checkpoint.is_alive(), || "it lives".to_owned());
        let pid = session.pid();
        for refused in [session.restore(&checkpoint).unwrap_err(), checkpoint.session().unwrap_err()] {
            assert!(matches!(refused, Error::Io { .. }), "{refused:?}");
        }
        assert_eq!((session.pid(), session.execute("x").unwrap().value), (pid, json!(1)));
        assert!(checkpoint.memory().is_none());
    }
}

isolated! {
    fn what_is_in_the_way_of_a_copy_is_in_the_way_of_a_checkpoint() {
        let mut session = session();
        session.execute("f = open('data', 'w')").unwrap();
        match session.checkpoint() {
            Err(Error::NotForkable { session: id, obstacles }) => {
                assert_eq!((id, obstacles.len()), (session.id(), 1), "{obstacles:?}");
            }
            other => panic!("{other:?}"),
        }
        session.execute("f.close()").unwrap();
        session.checkpoint().unwrap();
    }
}

isolated! {
    fn a_scope_reaches_the_copies_of_its_sessions() {
        let pool = SessionPool::builder(Runtime::python("python3")).max_sessions(1).start().unwrap();
        let token = remuda::CancelToken::new();
        let scope = pool.scope(&token);
        let mut lease = scope.acquire().unwrap();
        let checkpoint = lease.checkpoint().unwrap();
        let (mut copy, mut later) = (lease.fork().unwrap(), checkpoint.session().unwrap());
        drop(lease);
        std::thread::scope(|threads| {
            for session in [&mut copy, &mut later] {
                let cancel = || token.cancel();
                threads.spawn(move || {
                    let request = remuda::Request::code("print('go', flush=True)\nwhile True: pass").on_output(|_, _| { cancel(); });
                    match session.execute(request) {
                        Ok(run) => assert!(matches!(run.outcome, Outcome::Cancelled { .. }), "{run:?}"),
                        // The other one was quicker.
                        Err(error) => assert!(matches!(error, Error::Cancelled), "{error:?}"),
                    }
                });
            }
        });
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn a_pool_lends_a_session_again_that_went_back_to_its_own_state_only() {
        let pool = SessionPool::builder(Runtime::python("python3")).max_sessions(1).reuse(Reuse::Reset).start().unwrap();
        let foreign = {
            let mut other = python().warmup_code("secret = 1").start().unwrap();
            other.checkpoint().unwrap()
        };
        let (id, pid) = {
            let mut lease = pool.acquire().unwrap();
            lease.execute("x = 1").unwrap();
            let own = lease.checkpoint().unwrap();
            lease.execute("x = 2").unwrap();
            lease.restore(&own).unwrap();
            assert_eq!(lease.execute("x").unwrap().value, 1);
            (lease.id(), lease.pid())
        };
        {
            let mut lease = pool.acquire().unwrap();
            assert_eq!((lease.id(), lease.pid()), (id, pid), "it was reset and lent again");
            assert_eq!(lease.execute("'x' in globals()").unwrap().value, false);
            lease.restore(&foreign).unwrap();
            assert_eq!(lease.execute("secret").unwrap().value, 1);
        }
        let mut lease = pool.acquire().unwrap();
        assert_eq!(lease.execute("'secret' in globals()").unwrap().value, false);
        assert_eq!(lease.fork().unwrap().execute("1").unwrap().value, 1, "a copy is nobody's but its owner's");
        drop(lease);
        pool.shutdown(GENEROUS);
    }
}
