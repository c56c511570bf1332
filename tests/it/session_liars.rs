//! Workers that announce what they cannot do, and pools that have to live with bad workers.

use std::time::Duration;

use remuda::{Error, Outcome, Request, Reuse, SessionPool};

use crate::hostile_worker::{assert_broken, assert_retired, hostile, runtime};
use crate::support::{GENEROUS, isolated, poll};

isolated! {
    fn what_a_worker_does_not_announce_is_not_asked_of_it() {
        // Whatever it is sent, it dies of.
        let mut session = hostile("ready('execute')\nrequest()\nos._exit(9)").start().unwrap();
        assert!(matches!(session.names(), Err(Error::Unsupported { .. })));
        assert!(matches!(session.fingerprint(), Err(Error::Unsupported { .. })));
        assert!(session.is_alive());
        let warm = hostile("ready('execute')\nrequest()\nos._exit(9)").warmup_code("1").start();
        assert!(matches!(warm, Err(Error::Unsupported { .. })), "{warm:?}");
    }
}

isolated! {
    fn unknown_features_are_of_no_interest() {
        let mut session = hostile("ready('execute teleport')\nserve()").start().unwrap();
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_feature_that_is_announced_and_missing_is_an_error_that_says_so() {
        let error = "send(8, request(21), b'{\"type\":\"ProtocolError\",\"message\":\"what?\",\"traceback\":\"\"}')";
        for (answer, broken) in [
            (error, false),
            ("send(13, request(21))", true),
            ("send(22, request(21), b'{}')", true),
            ("send(22, request(21), b'no json')", true),
            ("send(22, request(21), b'[{\"name\":7}]')", true),
            ("send(22, request(21) + 1, b'[]')", true),
        ] {
            let mut session = hostile(&format!("ready('execute inspect')\n{answer}\nserve()")).start().unwrap();
            let result = session.names();
            assert!(result.is_err(), "{answer}: {result:?}");
            if broken {
                assert_broken(answer, result, "");
                assert_retired(answer, &mut session);
            }
        }
    }
}

isolated! {
    fn a_warm_up_that_is_announced_and_missing_fails_the_start() {
        for (answer, reason) in [
            ("send(13, request(3))", "Pong"),
            ("send(4, request(3), b'{}')", ""),
            ("send(4, request(3), b'[{\"module\":\"m\",\"milliseconds\":NaN}]')", ""),
            ("send(4, request(3) + 1, b'[]')", "request"),
        ] {
            let script = format!("ready('execute warm')\n{answer}\nhang()");
            assert_broken(answer, hostile(&script).warm_import("m").start(), reason);
        }
        let dies = hostile("ready('execute warm')\nrequest(3)\nos._exit(3)").warmup_code("1").start();
        assert!(matches!(dies, Err(Error::StartDied { .. })), "{dies:?}");
        let hangs = hostile("ready('execute warm')\nrequest(3)\nhang()").warmup_code("1");
        let hangs = hangs.start_timeout(Duration::from_millis(300)).start();
        assert!(matches!(hangs, Err(Error::StartTimeout { .. })), "{hangs:?}");
    }
}

isolated! {
    fn a_worker_that_does_not_answer_a_ping_is_not_kept() {
        let mut session = hostile("ready()\nhang()").start().unwrap();
        let result = session.ping(Duration::from_millis(50));
        assert!(matches!(result, Err(Error::Unresponsive { .. })), "{result:?}");
        assert_retired("no pong", &mut session);
        let mut session = hostile("ready()\nsend(13, request(12) + 1)\nhang()").start().unwrap();
        assert_broken("another pong", session.ping(GENEROUS), "request");
        assert_retired("another pong", &mut session);
    }
}

isolated! {
    fn a_pool_goes_on_with_others_when_a_worker_breaks_the_protocol() {
        // The first two processes break it at their first request, each in its own way; the others serve.
        let script = "ready()\n\
                      for bad in ('raw(bytes(16))', 'raw(frame(7, 99, b\"1\"))'):\n    \
                      try: os.mkdir(os.path.join(WHERE, str(len(bad))))\n    \
                      except FileExistsError: continue\n    \
                      n = request(5)\n    exec(bad)\n    hang()\nserve()";
        let place = std::env::temp_dir().join("broken");
        std::fs::create_dir(&place).unwrap();
        let script = format!("WHERE = {place:?}\n{script}");
        // One after the other: of two that start at once, either may be the next that breaks it.
        let pool = SessionPool::builder(runtime(&script)).min_idle(1).max_sessions(1).reuse(Reuse::Fresh).start().unwrap();
        let mut broken = 0;
        while broken < 2 {
            match pool.acquire_timeout(GENEROUS).unwrap().execute(Request::code("1").time_limit(GENEROUS)) {
                Err(Error::Protocol { .. }) => broken += 1,
                other => panic!("{other:?}"),
            }
        }
        for _ in 0..4 {
            assert_eq!(pool.acquire_timeout(GENEROUS).unwrap().execute("1").unwrap().value, 1);
        }
        std::fs::remove_dir_all(&place).unwrap();
    }
}

isolated! {
    fn a_pool_of_liars_fails_its_callers_with_the_cause() {
        let pool = SessionPool::builder(runtime("ready(protocol='7')\nhang()")).pre_warm_on_start(false).start().unwrap();
        match pool.acquire_timeout(GENEROUS) {
            Err(Error::StartFailing { cause, .. }) => {
                assert!(matches!(&*cause, Error::Protocol { reason, .. } if reason.contains("version 7")), "{cause}");
            }
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn an_idle_worker_that_talks_is_replaced() {
        let (place, go) = (std::env::temp_dir().join("talks"), std::env::temp_dir().join("go"));
        let script = format!(
            "ready()\ntry: os.mkdir({place:?})\nexcept FileExistsError: serve()\n\
             result(request(5))\nwhile not os.path.exists({go:?}): pass\nsend(13, 5)\nhang()"
        );
        let pool = SessionPool::builder(runtime(&script)).min_idle(1).max_sessions(1).reuse(Reuse::Keep).start().unwrap();
        let first = {
            let mut session = pool.acquire().unwrap();
            assert_eq!(session.execute("1").unwrap().value, 1);
            session.pid()
        };
        std::fs::write(&go, "").unwrap();
        // Found by the pool, before anybody asks.
        poll(
            || pool.info().sessions.iter().any(|row| row.pid != first) && pool.info().counts.idle == 1,
            || format!("{:?}", pool.info()),
        );
        assert_eq!(pool.metrics().sessions_created, 2);
        let run = pool.acquire_timeout(GENEROUS).unwrap().execute("1").unwrap();
        assert_eq!((run.outcome, run.value), (Outcome::Completed, 1.into()));
        std::fs::remove_dir(&place).unwrap();
        std::fs::remove_file(&go).unwrap();
    }
}
