//! Running code: values, output, errors, state, scripts, calls.

use remuda::{Call, Error, Exit, Omitted, Outcome, Request, SessionState, Stream, WorkDir};
use serde_json::{Value, json};

use crate::support::{ScratchDir, isolated, poll, python, session};

isolated! {
    fn the_value_of_the_trailing_expression_is_returned_and_evaluated_once() {
        let mut session = session();
        let run = session.execute("calls = []\ndef f():\n    calls.append(1)\n    return len(calls)\ny = 5\nf()").unwrap();
        assert_eq!((run.value, run.repr.as_deref()), (json!(1), Some("1")));
        // Peer bug B2: a trailing expression that ran twice.
        assert_eq!(session.execute("len(calls)").unwrap().value, 1);
        let run = session.execute("y = 1\nprint('hello')").unwrap();
        assert_eq!((run.stdout.as_str(), run.value), ("hello\n", Value::Null));
    }
}

isolated! {
    fn values_cross_as_json_or_say_why_not() {
        let mut session = session();
        for (code, value) in [
            ("None", json!(null)),
            ("True", json!(true)),
            ("-7", json!(-7)),
            ("2**64 - 1", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            ("'grüße\\n\\x00\"'", json!("grüße\n\0\"")),
            ("[1, 'a', None, {'b': [2.0]}]", json!([1, "a", null, {"b": [2.0]}])),
            ("(1, 2)", json!([1, 2])),
        ] {
            let run = session.execute(code).unwrap();
            assert_eq!((run.outcome, run.value), (Outcome::Completed, value), "{code}");
            assert_eq!(run.omitted, None, "{code}");
        }
        for code in ["{1, 2}", "float('nan')", "'\\ud800'", "10**5000", "object()", "[1, {2}]"] {
            let run = session.execute(code).unwrap();
            assert_eq!((run.outcome, run.value), (Outcome::Completed, Value::Null), "{code}");
            assert!(matches!(run.omitted, Some(Omitted::NotJson(_))), "{code}: {:?}", run.omitted);
            assert!(run.repr.is_some(), "{code}");
        }
        let run = session.execute("2**64").unwrap();
        assert_eq!((run.value, run.omitted), (Value::Null, Some(Omitted::InexactNumber)));
        assert_eq!(run.repr.as_deref(), Some("18446744073709551616"));
    }
}

isolated! {
    fn a_value_larger_than_a_frame_is_omitted_and_the_session_lives() {
        let mut session = session();
        let run = session.execute("'x' * (64 << 20)").unwrap();
        assert_eq!(run.outcome, Outcome::Completed);
        assert!(matches!(run.omitted, Some(Omitted::TooLarge { bytes }) if bytes > 64 << 20), "{:?}", run.omitted);
        assert!(run.repr.unwrap().len() < 128 << 10);
        let run = session.execute("'x' * (32 << 20)").unwrap();
        assert_eq!(run.value.as_str().map(str::len), Some(32 << 20));
    }
}

isolated! {
    fn an_exception_brings_its_traceback_without_frames_of_the_worker() {
        let mut session = session();
        session.execute("def inner():\n    raise ValueError('so it goes')").unwrap();
        let run = session.execute("def outer():\n    inner()\nouter()").unwrap();
        assert_eq!(run.outcome, Outcome::Failed);
        let error = run.error.unwrap();
        assert_eq!((error.kind.as_str(), error.message.as_str()), ("ValueError", "so it goes"));
        assert!(error.traceback.contains("raise ValueError('so it goes')"), "{}", error.traceback);
        assert!(error.traceback.contains("inner()"), "{}", error.traceback);
        assert!(!error.traceback.contains("remuda"), "{}", error.traceback);
        let error = session.execute("x = = 1").unwrap().error.unwrap();
        assert_eq!(error.kind, "SyntaxError");
        assert!(!error.traceback.contains("During handling"), "{}", error.traceback);
        let error = session.execute("class E(Exception):\n    def __str__(self): raise OSError\nraise E").unwrap().error.unwrap();
        assert_eq!(error.kind, "E");
        let error = session.execute("raise SystemExit(3)").unwrap().error.unwrap();
        assert_eq!(error.exit_code, Some(3));
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_death_that_was_only_looked_at_is_explained_all_the_same() {
        let mut session = session();
        session.execute("import os, signal, threading\nthreading.Timer(0.05, lambda: (os.write(2, b'last words'), os.kill(os.getpid(), signal.SIGKILL))).start()").unwrap();
        poll(|| !session.is_alive(), || "it kills itself".to_owned());
        let Error::SessionDead { post_mortem: Some(death), .. } = session.execute("1").unwrap_err() else {
            panic!("a death without a post-mortem");
        };
        assert_eq!((death.exit, death.stderr_tail.as_str()), (Exit::Signal(9), "last words"));
    }
}

isolated! {
    fn a_reset_goes_back_to_the_warm_state_and_says_what_it_cannot_undo() {
        let mut session = python().warmup_code("base = 40").start().unwrap();
        session.execute("import os\nbase, extra = 1, 2\nos.environ['X'] = 'y'\nos.chdir('/')").unwrap();
        assert_eq!(session.reset().unwrap(), Vec::<String>::new());
        assert_eq!(session.execute("import os\n[base, 'extra' in globals(), 'X' in os.environ, os.getcwd() == '/']").unwrap().value, json!([40, false, false, false]));
        assert!(session.fingerprint().unwrap().globals.iter().all(|name| name == "os" || name == "_"));
        session.execute("import threading\nstop = threading.Event()\nthreading.Thread(target=stop.wait, daemon=True).start()").unwrap();
        assert_eq!(session.reset().unwrap(), ["threads"]);
        assert_eq!(session.execute("base").unwrap().value, 40);
    }
}

isolated! {
    fn a_session_keeps_its_state_and_a_restart_does_not() {
        let mut session = session();
        session.execute("secret = 42").unwrap();
        assert_eq!(session.execute("secret").unwrap().value, 42);
        assert_eq!(session.execution_count(), 2);
        let (id, pid) = (session.id(), session.pid());
        session.restart().unwrap();
        assert_eq!(session.id(), id);
        assert_ne!(session.pid(), pid);
        // Peer bug B4: counters of the old process decided about the new one.
        assert_eq!(session.execution_count(), 0);
        assert_eq!(session.execute("secret").unwrap().error.unwrap().kind, "NameError");
        let info = session.info();
        assert_eq!((info.state, info.execution_count, info.error_count), (SessionState::Ready, 1, 1));
        assert!(info.memory_usage.unwrap().peak > 1 << 20);
        assert!(info.runtime.starts_with("python 3."));
    }
}

isolated! {
    fn output_streams_to_a_callback_before_the_result() {
        let mut session = session();
        let mut seen = Vec::new();
        let request = Request::code("import sys\nfor i in range(3): print(i)\nprint('oops', file=sys.stderr)\nimport os; os.system('echo child')")
            .on_output(|stream, bytes| seen.push((stream, String::from_utf8_lossy(bytes).into_owned())));
        let run = session.execute(request).unwrap();
        let text = |wanted| seen.iter().filter(|(s, _)| *s == wanted).map(|(_, text)| text.as_str()).collect::<String>();
        assert_eq!(text(Stream::Stdout), "0\n1\n2\nchild\n");
        assert_eq!(text(Stream::Stderr), "oops\n");
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("0\n1\n2\nchild\n", "oops\n"));
    }
}

isolated! {
    fn no_output_is_lost_or_misplaced_over_many_runs() {
        let mut session = session();
        for i in 0..500 {
            let run = session.execute(format!("print({i})")).unwrap();
            assert_eq!(run.stdout, format!("{i}\n"));
        }
    }
}

isolated! {
    fn more_output_than_the_cap_keeps_head_and_tail_and_counts_the_rest() {
        let mut session = session();
        let run = session.execute(Request::code("print('a' * 1000 + 'b' * 1000)").output_cap(100)).unwrap();
        assert_eq!(run.dropped, (1901, 0));
        assert!(run.stdout.starts_with("aaaa") && run.stdout.ends_with("bbb\n"), "{}", run.stdout);
        assert!(run.stdout.contains("1901 bytes dropped"), "{}", run.stdout);
    }
}

isolated! {
    fn a_script_runs_as_the_program_its_file_would() {
        let directory = ScratchDir::new();
        directory.write("helper.py", "NAME = 'helper'\n");
        let file = directory.write("main.py", "");
        let source = "import sys, helper\nassert __name__ == '__main__'\nprint(__file__ == sys.argv[0], sys.argv[1:], helper.NAME)";
        let mut session = session();
        let request = Request::script(source, file.to_str().unwrap(), ["--fast".to_owned()]);
        let run = session.execute(request).unwrap();
        assert_eq!(run.stdout, "True ['--fast'] helper\n", "{:?}", run.error);
    }
}

isolated! {
    fn a_function_is_called_with_json_arguments() {
        let mut session = session();
        let run = session.execute(Call::new("math:hypot").arg(3).arg(4)).unwrap();
        assert_eq!(run.value, 5.0);
        let run = session.execute(Call::new("builtins:sorted").arg(json!([2, 3, 1])).kwarg("reverse", true)).unwrap();
        assert_eq!(run.value, json!([3, 2, 1]));
        session.execute("def twice(x): return 2 * x").unwrap();
        assert_eq!(session.execute(Call::new("__main__:twice").arg(21)).unwrap().value, 42);
        assert_eq!(session.execute(Call::new("math:nope")).unwrap().error.unwrap().kind, "AttributeError");
        assert_eq!(session.execute(Call::new("nope:nope")).unwrap().error.unwrap().kind, "ModuleNotFoundError");
    }
}

isolated! {
    fn the_environment_is_clean_and_the_directory_its_own() {
        // SAFETY of the test: this process has one thread.
        let mut session = python().env("GREETING", "hello").start().unwrap();
        let run = session.execute("import os; [os.environ.get('GREETING'), 'REMUDA_TEST_IN_CHILD' in os.environ, os.listdir()]").unwrap();
        assert_eq!(run.value, json!(["hello", false, []]));
        let mut own = python().inherit_env(true).work_dir(WorkDir::Inherit).start().unwrap();
        let run = own.execute("import os; ['REMUDA_TEST_IN_CHILD' in os.environ, os.getcwd()]").unwrap();
        assert_eq!(run.value, json!([true, std::env::current_dir().unwrap().to_str()]));
    }
}

isolated! {
    fn a_request_over_the_frame_cap_is_refused_and_the_session_lives() {
        let mut session = python().frame_cap(64 << 10).start().unwrap();
        let error = session.execute("#".repeat(100 << 10)).unwrap_err();
        assert!(matches!(error, Error::RequestTooLarge { .. }), "{error}");
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_large_request_crosses_whole() {
        let mut session = session();
        let text = "x".repeat(8 << 20);
        let run = session.execute(format!("len('{text}')")).unwrap();
        assert_eq!(run.value, 8 << 20);
    }
}

isolated! {
    fn the_peak_of_memory_is_that_of_the_execution() {
        let mut session = session();
        let run = session.execute(Request::code("x = bytearray(64 << 20); del x").measure(true)).unwrap();
        assert!(run.usage.unwrap().peak_memory.unwrap() > 64 << 20);
        let run = session.execute(Request::code("1").measure(true)).unwrap();
        assert!(run.usage.unwrap().peak_memory.unwrap() < 64 << 20);
    }
}

isolated! {
    fn a_session_outlives_thousands_of_executions_that_write_to_stderr() {
        // Peer bug B1: a worker hung for good after 85 executions, because nobody read its stderr.
        let mut session = session();
        for _ in 0..2_000 {
            let run = session.execute("import sys; print('x' * 100, file=sys.stderr)").unwrap();
            assert_eq!(run.stderr.len(), 101);
        }
        assert_eq!(session.info().late_output, 0);
    }
}

isolated! {
    fn input_finds_the_end_of_a_file_every_time() {
        // Peer bug B3: the second execution that asked for input failed in another way than the first.
        let mut session = session();
        for _ in 0..3 {
            assert_eq!(session.execute("input()").unwrap().error.unwrap().kind, "EOFError");
        }
    }
}
