//! Native workers: values, errors, panics, output, in both ways that frames can travel.

use remuda::{Call, Omitted, Outcome, Request, Reuse, Runtime, SessionConfig, SessionPool};
use serde_json::{Value, json};

use crate::native_support::{native, native_config, program, relayed_config};
use crate::support::GENEROUS;

/// The worker with pipes, and behind a relay.
fn both() -> [(&'static str, SessionConfig); 2] {
    [("pipes", native_config()), ("stdio", relayed_config())]
}

native! {
    fn calls_have_values_of_every_kind() {
        for (way, config) in both() {
            let mut session = config.start().unwrap();
            assert_eq!(session.info().runtime, "test 1.2");
            let run = session.execute(Call::new("echo").arg(1).arg("grüße\n").arg(json!({"a": [null]}))).unwrap();
            assert_eq!((run.outcome, run.value), (Outcome::Completed, json!([1, "grüße\n", {"a": [null]}])), "{way}");
            assert_eq!(run.repr.as_deref(), Some(r#"[1,"grüße\n",{"a":[null]}]"#));
            let run = session.execute(Call::new("named").kwarg("deep", true)).unwrap();
            assert_eq!(run.value, json!({"deep": true}));
            assert_eq!(session.execute(Call::new("sum").arg(40).arg(2)).unwrap().value, 42);
            let run = session.execute(Call::new("nothing")).unwrap();
            assert_eq!((run.outcome, run.value, run.repr), (Outcome::Completed, Value::Null, None));
            assert_eq!(session.execute(Call::new("shown")).unwrap().repr.as_deref(), Some("seven"));
            let run = session.execute(Call::new("pairs")).unwrap();
            assert!(matches!(run.omitted, Some(Omitted::NotJson(_))), "{:?}", run.omitted);
            assert_eq!(session.execute(Call::new("session")).unwrap().value, json!(session.id()));
        }
    }
}

native! {
    fn code_keeps_its_state_and_a_script_has_its_file() {
        for (way, config) in both() {
            let mut session = config.start().unwrap();
            session.execute("count 3").unwrap();
            assert_eq!(session.execute("count 4").unwrap().value, 7, "{way}");
            let run = session.execute(Request::script("x", "main.t", ["--fast".to_owned()])).unwrap();
            assert_eq!(run.value, json!(["main.t", ["--fast"]]));
            assert_eq!(session.execute("nonsense").unwrap().error.unwrap().kind, "SyntaxError");
        }
    }
}

native! {
    fn errors_name_their_kind_and_the_session_lives() {
        let mut session = native_config().start().unwrap();
        let mut error = |call: Call| {
            let run = session.execute(call).unwrap();
            assert_eq!(run.outcome, Outcome::Failed);
            let error = run.error.unwrap();
            (error.kind, error.message)
        };
        let (kind, message) = error(Call::new("parse").arg("x"));
        assert_eq!((kind.as_str(), message.as_str()), ("ParseIntError", "invalid digit found in string"));
        assert_eq!(error(Call::new("parse")).0, "ArgumentError");
        let (kind, message) = error(Call::new("nowhere"));
        assert_eq!((kind.as_str(), message.as_str()), ("UnknownFunction", "there is no function \"nowhere\""));
        assert_eq!(session.execute(Call::new("parse").arg("5")).unwrap().value, 5);
    }
}

native! {
    fn a_panic_is_an_error_with_its_place_and_the_worker_goes_on() {
        for (way, config) in both() {
            let mut session = config.env("RUST_BACKTRACE", "1").start().unwrap();
            let pid = session.pid();
            for _ in 0..3 {
                let run = session.execute(Call::new("panic")).unwrap();
                let error = run.error.unwrap();
                assert_eq!((error.kind.as_str(), error.message.as_str()), ("panic", "no way on"), "{way}");
                assert!(error.traceback.contains("native_test_worker.rs:"), "{}", error.traceback);
                assert!(error.traceback.contains("main"), "no backtrace: {}", error.traceback);
                let run = session.execute(Call::new("panic_late")).unwrap();
                assert!(run.error.unwrap().message.contains("out of bounds"));
                assert_eq!(run.stdout, "before it\n");
            }
            assert_eq!((session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, session.pid()), (json!(2), pid));
        }
    }
}

native! {
    fn output_comes_before_the_answer_and_in_order() {
        for (way, config) in both() {
            let mut session = config.start().unwrap();
            for times in [0, 1, 200, 3] {
                let run = session.execute(Call::new("print").arg(times)).unwrap();
                let lines = |word| (0..times).map(|n| format!("{word} {n}\n")).collect::<Vec<_>>().concat();
                assert_eq!(run.stdout, lines("line") + "half a line", "{way}");
                if way == "pipes" {
                    assert_eq!(run.stderr, lines("error"));
                }
            }
            let run = session.execute(Call::new("child")).unwrap();
            assert_eq!(run.stdout, "mine\nof a child\nmine again\n", "{way}");
            let run = session.execute(Call::new("flood").arg(3 << 20)).unwrap();
            assert_eq!(run.stdout, "f".repeat(3 << 20), "{way}");
            assert_eq!(session.info().late_output, 0);
            assert_eq!(session.execute(Call::new("stdin")).unwrap().value, "");
        }
    }
}

native! {
    fn large_values_and_requests_cross_whole() {
        for (way, config) in both() {
            let mut session = config.frame_cap(128 << 20).start().unwrap();
            let run = session.execute(Call::new("bytes").arg(100 << 20)).unwrap();
            assert_eq!((run.bytes.map(|bytes| bytes.len()), run.repr.as_deref()), (Some(100 << 20), Some("104857600 bytes")), "{way}");
            let run = session.execute(Call::new("bytes").arg(130 << 20)).unwrap();
            assert_eq!(run.omitted, Some(Omitted::TooLarge { bytes: 130 << 20 }));
            let run = session.execute(Call::new("text").arg(10 << 20)).unwrap();
            assert_eq!(run.value.as_str().map(str::len), Some(10 << 20), "{way}");
            assert!(run.repr.unwrap().len() <= 64 << 10);
            let run = session.execute(Call::new("length").arg("y".repeat(10 << 20))).unwrap();
            assert_eq!(run.value, 10 << 20);
            assert_eq!(session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, 2);
        }
    }
}

native! {
    fn a_value_over_the_cap_is_told_by_its_size() {
        let mut session = native_config().frame_cap(1 << 20).start().unwrap();
        let run = session.execute(Call::new("text").arg(1 << 20)).unwrap();
        assert_eq!(run.omitted, Some(Omitted::TooLarge { bytes: (1 << 20) + 2 }));
        assert_eq!(run.repr.unwrap().len(), 64 << 10);
        assert_eq!(session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, 2);
    }
}

native! {
    fn warm_up_and_reset_are_the_worker_s_own() {
        let mut session = native_config().warm_import("counter").warmup_code("count 1").start().unwrap();
        assert_eq!(session.execute("count 1").unwrap().value, 42);
        let error = native_config().warmup_code("nonsense").start().unwrap_err();
        assert!(error.to_string().contains("SyntaxError"), "{error}");
        let error = native_config().warm_import("luck").require_warm_imports(true).start().unwrap_err();
        assert!(error.to_string().contains("NoSuchThing: luck"), "{error}");
        session.shutdown(GENEROUS);
    }
}

native! {
    fn a_pool_lends_native_sessions_and_takes_a_new_process_for_what_cannot_be_reset() {
        for reuse in [Reuse::Keep, Reuse::Reset] {
            let runtime = Runtime::native(program("native_test_worker"), [""; 0]);
            let pool = SessionPool::builder(runtime).warm_import("counter").reuse(reuse).reset_timeout(GENEROUS).min_idle(0).max_sessions(1).start().unwrap();
            let lease = |function: &str| {
                let mut session = pool.acquire().unwrap();
                session.execute(Call::new(function)).unwrap();
                (session.pid(), session.execute("count 1").unwrap().value)
            };
            let (first, count) = lease("nothing");
            assert_eq!(count, 41);
            let (second, count) = lease("stain");
            assert_eq!((second, count), (first, json!(if reuse == Reuse::Keep { 42 } else { 41 })), "{reuse:?}");
            let (third, _) = lease("nothing");
            assert_eq!(third == second, reuse == Reuse::Keep, "{reuse:?}");
            pool.shutdown(GENEROUS);
        }
    }
}

native! {
    fn a_program_is_host_and_worker_in_one() {
        let output = std::process::Command::new(program("native_worker")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text,
            "primes 1.0\n9592 primes; it printed: looked at 100000 numbers\n\
             panic: index out of bounds: the len is 3 but the index is 7\nRefused: not today\n\
             UnknownFunction: there is no function \"nonsense\"\nCancelled { killed: false }: \"stopped in good order\"\n"
        );
        assert!(output.status.success());
    }
}
