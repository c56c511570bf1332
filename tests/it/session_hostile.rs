//! Workers that break the protocol: a typed error in time, the session retired, nothing left.

use std::time::Duration;

use remuda::{Error, Exit, Omitted, Outcome, Request, TimeLimit};

use crate::hostile_worker::{assert_broken, assert_retired, hostile, session};
use crate::support::{GENEROUS, isolated};

isolated! {
    fn a_start_that_breaks_the_protocol_is_refused_with_the_reason() {
        for (script, reason) in [
            ("ready(protocol='2'); hang()", "version 2"),
            ("ready(protocol='18446744073709551615'); hang()", "version 18446744073709551615"),
            ("ready(protocol='-1'); hang()", "ready frame"),
            ("ready(protocol='NaN'); hang()", "ready frame"),
            ("send(2, 0, b''); hang()", "ready frame"),
            ("send(2, 0, b'{\"protocol\":1,\"language\":\"\\xff\",\"version\":\"\"}'); hang()", "ready frame"),
            ("send(2, 0, b'[' * 100000); hang()", "ready frame"),
            ("send(2, 0, b'{\"protocol\":1,\"language\":\"x\",\"version\":\"1\",\"features\":{}}'); hang()", "ready frame"),
            ("send(2, 5, b'{}'); hang()", "request 5"),
            ("send(13, 0); hang()", "Pong"),
            ("send(7, 0, b'1', b'1', flags=3); hang()", "Result"),
            ("raw(bytes(16)); hang()", "unknown frame kind 0"),
            ("raw(frame(99, 0)); hang()", "unknown frame kind 99"),
            ("raw(b'\\xff\\xff\\xff\\xff' + frame(2, 0)[4:]); hang()", "over the cap"),
            ("raw(frame(2, 0)[:6] + b'\\1\\0' + frame(2, 0)[8:]); hang()", "reserved"),
            ("raw(struct.pack('<IBBHQI', 4, 2, 0, 0, 0, 1)); hang()", "longer than the body"),
            ("raw(struct.pack('<IBBHQ', 3, 2, 0, 0, 0) + b'abc'); hang()", "shorter than its first length"),
            ("os.close(1); os.close(0); hang()", "closed its"),
        ] {
            assert_broken(script, hostile(script).start(), reason);
        }
    }
}

isolated! {
    fn a_worker_that_ends_or_hangs_before_it_is_ready_is_an_error_in_time() {
        for script in [
            "sys.exit(7)",
            "raw(frame(2, 0)[:3]); sys.exit(7)",
            "raw(frame(2, 0)[:16]); sys.exit(7)",
            "raw(frame(2, 0, b'{\"protocol\":1')[:-1]); sys.exit(7)",
        ] {
            match hostile(script).start() {
                Err(Error::StartDied { post_mortem }) => assert_eq!(post_mortem.exit, Exit::Code(7), "{script}"),
                other => panic!("{script}: {other:?}"),
            }
        }
        let soon = Duration::from_millis(300);
        for script in [
            "hang()",
            "raw(frame(2, 0)[:15]); hang()",
            "raw(frame(2, 0, b'{}')[:-1]); hang()",
            "os.close(2); hang()",
            "while True: os.write(2, b'not ready ' * 1000)",
        ] {
            let result = hostile(script).start_timeout(soon).start();
            assert!(matches!(result, Err(Error::StartTimeout { limit, .. }) if limit == soon), "{script}: {result:?}");
        }
    }
}

isolated! {
    fn a_flood_of_stderr_at_the_start_holds_nobody() {
        let script = "for _ in range(2000): os.write(2, b'warning ' * 1000)\nready()\nserve()";
        let mut session = hostile(script).start().unwrap();
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn an_answer_that_breaks_the_protocol_ends_the_session_with_the_reason() {
        let error = r#"b'{"type":"E","message":"","traceback":""'"#;
        for (answer, reason) in [
            ("result(n + 1)", "request"),
            ("result(0)", "request 0"),
            ("raw(frame(7, n, b'1')[:4] + b'\\x2a' + frame(7, n, b'1')[5:])", "unknown frame kind 42"),
            ("raw(frame(7, n)[:7] + b'\\1' + frame(7, n)[8:])", "reserved"),
            ("raw(struct.pack('<IBBHQ', 0xffffffff, 7, 3, 0, n))", "over the cap"),
            ("raw(struct.pack('<IBBHQI', 5, 7, 3, 0, n, 2) + b'1')", "longer than the body"),
            ("raw(struct.pack('<IBBHQ', 0, 7, 3, 0, n))", "shorter than its first length"),
            ("send(13, n)", "Pong"),
            ("ready()", "request 0"),
            ("send(2, n)", "Ready"),
            ("send(5, n, b'', b'1')", "Execute"),
            ("send(4, n, b'[]')", "Warmed"),
            ("send(7, n, b'', b'', flags=1)", "without a form"),
            ("send(7, n, b'many', b'', flags=9)", "no number"),
            ("send(8, n, b'no json')", "error frame"),
            ("send(8, n, b'{\"type\":\"\\xff\",\"message\":\"\",\"traceback\":\"\"}')", "error frame"),
            (&format!("send(8, n, {error})"), "error frame"),
            ("send(8, n, b'[' * 100000)", "error frame"),
            ("send(16, n, b'{\"types\":[[\"a/b\",2]]}', b'x')", ""),
            ("send(16, n, b'{\"types\":[[\"a/b\",1]]}', b'xyz')", ""),
            ("send(16, n, b'{\"types\":[[\"a/b\",18446744073709551615],[\"c/d\",18446744073709551615]]}', b'x')", ""),
            ("send(16, n, b'{\"types\":[[\"a/b\",-1]]}', b'x')", ""),
            ("send(16, n, b'{\"types\":7}', b'')", ""),
            ("send(17, n, b'{\"fraction\":NaN,\"message\":null}')", ""),
            ("send(17, n, b'{\"fraction\":\"half\"}')", ""),
            ("send(18, n, b'{\"prompt\":7}')", ""),
            ("send(18, n)", ""),
            ("send(20, n, b'{}', b'x')", ""),
            ("send(20, n, b'\\xff\\xfe', b'x')", ""),
            ("send(23, n, b'{\"cpu_seconds\":-1}')", ""),
            ("send(23, n, b'{\"cpu_seconds\":1e300}')", ""),
            ("send(23, n, b'{\"cpu_seconds\":NaN}')", ""),
            ("send(15, n + 1, b'', b'output of another request')", "request"),
            ("send(16, 0, b'{\"types\":[]}')", "request 0"),
            ("os.close(1); os.close(0)", "closed its reply channel"),
        ] {
            // It would give a right answer if nobody minded.
            let mut session = session(&format!("n = request(5)\n{answer}\ntry: result(n)\nexcept OSError: pass\nhang()"));
            assert_broken(answer, session.execute(Request::code("1").time_limit(GENEROUS)), reason);
            assert_retired(answer, &mut session);
        }
    }
}

isolated! {
    fn two_questions_at_once_break_the_protocol() {
        let ask = "send(18, n, b'{\"prompt\":\"\",\"secret\":false}')";
        let mut session = session(&format!("n = request(5)\n{ask}\n{ask}\nhang()"));
        let mut prompts = Vec::new();
        let request = Request::code("1").time_limit(GENEROUS).on_input(|prompt| prompts.push(prompt));
        let result = session.execute(request);
        assert_broken("two questions", result, "asked again");
        assert_retired("two questions", &mut session);
        // It may be answered whenever: nobody hears it.
        drop(prompts);
    }
}

isolated! {
    fn what_comes_between_requests_ends_the_session_before_the_next_one() {
        for (then, reason) in [
            ("result(n)", ""),
            ("result(n + 1)", ""),
            ("send(15, n, b'', b'late output')", ""),
            ("send(16, n, b'{\"types\":[]}')", ""),
            ("send(13, 0)", ""),
            ("raw(b'x')", ""),
            ("raw(frame(7, n + 1, b'1')[:16])", ""),
            ("raw(bytes(100))", ""),
        ] {
            // In one write with the answer, so that it is there when the next request comes.
            let script = format!(
                "n = request(5)\nwrite, parts = raw, []\nraw = parts.append\nresult(n)\n{then}\nwrite(b''.join(parts))\nhang()"
            );
            let mut session = session(&script);
            let first = session.execute(Request::code("1").time_limit(GENEROUS));
            let result = match first {
                // What follows the answer may be seen with it, or only before the next request.
                Ok(run) => {
                    assert_eq!(run.value, 1, "{then}");
                    session.execute(Request::code("1").time_limit(GENEROUS))
                }
                broken => broken,
            };
            assert_broken(then, result, reason);
            assert_retired(then, &mut session);
        }
    }
}

isolated! {
    fn json_that_cannot_be_taken_is_a_value_that_was_left_out() {
        for json in [
            "NaN", "Infinity", "[1,]", "", "nul", "{\"a\":1", "1 2", "\"\\ud800\"", "1e999",
        ] {
            let mut session = session(&format!("result(request(5), {json:?}.encode())\nserve()"));
            let run = session.execute("1").unwrap();
            assert_eq!((&run.outcome, run.value.is_null()), (&Outcome::Completed, true), "{json}: {run:?}");
            assert!(matches!(run.omitted, Some(Omitted::NotJson(_))), "{json}: {run:?}");
            assert_eq!(session.execute("1").unwrap().value, 1);
        }
        for json in ["b'\"\\xff\"'", "b'[' * 1000000", "b'{\"a\":' * 200 + b'1' + b'}' * 200"] {
            let mut session = session(&format!("result(request(5), {json})\nserve()"));
            let run = session.execute("1").unwrap();
            assert!(matches!(run.omitted, Some(Omitted::NotJson(_))), "{json}: {run:?}");
            assert_eq!(session.execute("1").unwrap().value, 1);
        }
    }
}

isolated! {
    fn a_death_between_any_two_frames_is_a_death_with_what_was_said_before() {
        let frames = [
            "frame(15, n, b'', b'out')",
            "frame(15, n, b'', b'err', flags=1)",
            "frame(17, n, b'{\"fraction\":0.5,\"message\":null}')",
            "frame(16, n, b'{\"types\":[[\"a/b\",1]]}', b'x')",
            "frame(20, n, b'{\"name\":\"a\"}', b'y')",
            "frame(23, n, b'{\"cpu_seconds\":0.5}')",
        ];
        for count in 0..=frames.len() {
            for rest in ["b''", "frame(15, n, b'', b'cut')[:-1]", "frame(7, n, b'1')[:10]"] {
                let sent = frames[..count].join(" + ");
                let sent = if sent.is_empty() { "b''".to_owned() } else { sent };
                let mut session = session(&format!("n = request(5)\nraw({sent} + {rest})\nos._exit(9)"));
                let run = session.execute("1").unwrap();
                let name = format!("{count} frames and {rest}");
                assert_eq!(run.outcome, Outcome::Died, "{name}");
                assert_eq!(run.post_mortem.as_ref().unwrap().exit, Exit::Code(9), "{name}");
                assert_eq!(run.stdout, if count > 0 { "out" } else { "" }, "{name}");
                assert_eq!(run.stderr, if count > 1 { "err" } else { "" }, "{name}");
                assert_eq!((run.displays.len(), run.attachments.len()), (usize::from(count > 3), usize::from(count > 4)), "{name}");
                assert_retired(&name, &mut session);
            }
        }
    }
}

isolated! {
    fn a_death_right_after_the_answer_costs_the_answer_nothing() {
        for _ in 0..20 {
            let mut session = session("result(request(5))\nos._exit(9)");
            assert_eq!(session.execute("1").unwrap().value, 1);
            let next = session.execute("1");
            // Noticed before the request, or by it.
            match next {
                Err(Error::SessionDead { .. }) => {}
                Ok(run) => assert_eq!(run.outcome, Outcome::Died),
                other => panic!("{other:?}"),
            }
            assert_retired("after the answer", &mut session);
        }
    }
}

isolated! {
    fn an_answer_after_its_deadline_is_a_time_out_and_the_next_request_is_its_own() {
        // Answers when it is cancelled: after the limit, within the grace.
        let script = "while True:\n    n = request(5)\n    while request(9) != n: pass\n    send(7, n, b'\"late\"', b'', flags=19)";
        let mut session = hostile(&format!("ready()\n{script}")).grace(GENEROUS).start().unwrap();
        for _ in 0..3 {
            let run = session.execute(Request::code("1").time_limit(Duration::from_millis(30))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{run:?}");
        }
    }
}

isolated! {
    fn a_worker_that_ignores_everything_is_killed_after_its_grace() {
        let mut ignores = session("n = request(5)\nhang()");
        let run = ignores.execute(Request::code("1").time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: true });
        assert_retired("ignores", &mut ignores);
        let mut hard = session("n = request(5)\nhang()");
        let run = hard.execute(Request::code("1").hard_time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Hard, killed: true });
        assert_retired("hard", &mut hard);
    }
}

isolated! {
    fn a_flood_without_end_is_stopped_by_the_time_limit() {
        for flood in [
            "send(15, n, b'', b'x' * 60000)",
            "send(15, n)",
            "send(16, n, b'{\"types\":[[\"a/b\",50000]]}', b'x' * 50000)",
            "send(17, n, b'{\"fraction\":0.5,\"message\":\"\"}')",
            "send(20, n, b'{\"name\":\"a\"}', b'x' * 50000)",
            "os.write(2, b'x' * 60000)",
        ] {
            let mut session = session(&format!("n = request(5)\nwhile True: {flood}"));
            let run = session.execute(Request::code("1").time_limit(Duration::from_millis(200))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: true }, "{flood}");
            assert_retired(flood, &mut session);
        }
    }
}

isolated! {
    fn events_beyond_the_cap_are_counted_and_dropped() {
        let script = "n = request(5)\n\
                      for _ in range(5000): send(16, n, b'{\"types\":[[\"a/b\",10000]]}', b'x' * 10000)\n\
                      result(n)\nserve()";
        let mut session = hostile(&format!("ready()\n{script}")).event_cap(1 << 20).start().unwrap();
        let run = session.execute(Request::code("1").time_limit(GENEROUS)).unwrap();
        assert_eq!(run.value, 1);
        assert!(run.displays.len() <= 104, "{}", run.displays.len());
        assert_eq!(run.displays.len() as u64 + run.dropped_events, 5000);
        assert_eq!(session.execute("1").unwrap().dropped_events, 0);
    }
}

isolated! {
    fn an_unfinished_frame_is_waited_for_no_longer_than_the_time_limit() {
        for part in ["frame(7, n, b'1')[:1]", "frame(7, n, b'1')[:16]", "struct.pack('<IBBHQI', 60 << 20, 7, 3, 0, n, 1)"] {
            let mut session = session(&format!("n = request(5)\nraw({part})\nhang()"));
            let run = session.execute(Request::code("1").time_limit(Duration::from_millis(50))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: true }, "{part}");
            assert_retired(part, &mut session);
        }
    }
}

isolated! {
    fn a_request_that_nobody_reads_is_bounded_by_the_time_limit() {
        let mut session = session("hang()");
        let request = Request::code("x".repeat(8 << 20)).time_limit(Duration::from_millis(50));
        assert_eq!(session.execute(request).unwrap().outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: true });
        assert_retired("reads nothing", &mut session);
    }
}
