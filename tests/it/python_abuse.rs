//! Python code that lies, raises and meddles: its session answers all the same, and the next user sees none of it.

use std::process::Command;

use remuda::{Outcome, Request, Runtime, Session, SessionConfig};
use serde_json::json;

use crate::support::{GENEROUS, isolated, pool, session};

/// With pipes, and with nothing but one pair of streams.
fn both() -> [Session; 2] {
    let remote = SessionConfig::new(Runtime::python("python3").remote(["env"]));
    [session(), remote.start().unwrap()]
}

isolated! {
    fn the_worker_does_not_use_what_user_code_put_in_the_place_of_modules_and_builtins() {
        for code in [
            "import builtins\nbuiltins.len = lambda x: 0\nbuiltins.type = builtins.bytes = builtins.map = builtins.sum = None",
            "import builtins\ndel builtins.len, builtins.getattr, builtins.Exception",
            "import posix\nposix.write = posix.read = lambda *a: b''",
            "import _thread, _signal\n_thread.get_ident = _signal.pthread_sigmask = None",
            "import json\njson.dumps = lambda *a, **k: 'garbage'",
        ] {
            for mut session in both() {
                // Loads what needs `import`: nobody's works any more once its builtins are gone.
                session.execute("['a']").unwrap();
                session.execute("1 / 0").unwrap();
                session.execute("'a'").unwrap();
                assert_eq!(session.execute(code).unwrap().error, None, "{code}");
                assert_eq!(session.execute("'ä'").unwrap().value, "ä", "{code}");
                assert_eq!(session.execute("b'ab'").unwrap().bytes.as_deref(), Some(&b"ab"[..]), "{code}");
                let run = session.execute("print('out')").unwrap();
                assert_eq!((run.outcome, run.stdout.as_str()), (Outcome::Completed, "out\n"), "{code}: {:?}", run.error);
                assert_eq!(session.execute("1 / 0").unwrap().error.unwrap().kind, "ZeroDivisionError", "{code}");
            }
        }
    }
}

isolated! {
    fn a_stream_of_the_users_cannot_end_the_session() {
        let stream = |body: &str| format!("import sys\nclass S:\n    def write(self, text): return len(text)\n    def flush(self): {body}\nsys.stdout = S()");
        let mut session = session();
        for body in ["sys.exit(3)", "raise KeyboardInterrupt", "raise GeneratorExit"] {
            session.execute(stream(body)).unwrap();
            assert_eq!(session.execute("1").unwrap().outcome, Outcome::Failed, "{body}");
            assert_eq!(session.execute("1 / 0").unwrap().error.unwrap().kind, "ZeroDivisionError", "{body}");
        }
        session.execute("class S:\n    def __eq__(self, other): sys.exit(4)\n    def flush(self): pass\nsys.stdout = S()").unwrap();
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn classes_that_lie_about_their_names_and_texts_are_answered() {
        let mut session = session();
        let lying = "class Meta(type):\n    @property\n    def __name__(self): raise ValueError\nclass Lie(Exception, metaclass=Meta): pass\nclass Text(str):\n    def encode(self, *a): return 5\n    def __len__(self): return 1 << 40\n    def __repr__(self): return Text('shown')\nclass Odd:\n    def __sizeof__(self): raise SystemExit(3)";
        assert_eq!(session.execute(lying).unwrap().error, None);
        assert_eq!(session.execute("raise Lie").unwrap().error.unwrap().kind, "Lie");
        assert_eq!(session.execute("raise ValueError(Text('why'))").unwrap().error.unwrap().message, "why");
        let run = session.execute("Text('held')").unwrap();
        assert_eq!((run.value, run.repr.as_deref()), (json!("held"), Some("shown")));
        session.execute("lie, odd = Lie(), Odd()").unwrap();
        let names = session.names().unwrap();
        assert!(names.iter().any(|name| name.name == "lie" && name.kind == "Lie"), "{names:?}");
        assert!(names.iter().any(|name| name.name == "odd" && name.size.is_none()), "{names:?}");
    }
}

isolated! {
    fn printing_on_a_full_stack_comes_to_an_end() {
        for mut session in both() {
            let code = "def f():\n    try: return f()\n    finally: print('x' * 10)\nf()";
            let run = session.execute(Request::code(code).time_limit(GENEROUS)).unwrap();
            assert_eq!((run.outcome, run.error.unwrap().kind.as_str()), (Outcome::Failed, "RecursionError"));
            assert_eq!(session.execute("1").unwrap().value, 1);
        }
    }
}

isolated! {
    fn a_question_that_a_signal_ended_does_not_spoil_the_next() {
        for mut session in both() {
            session.execute("import signal\ndef give_up(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, give_up)").unwrap();
            let pid = session.execute("import os; os.getpid()").unwrap().value.to_string();
            let code = "try: first = input('one')\nexcept TimeoutError: first = None\nfirst, input('two'), input('three')";
            for _ in 0..20 {
                let run = session.execute(Request::code(code).on_input(|prompt| {
                    if prompt.text() == "one" {
                        assert!(Command::new("kill").args(["-ALRM", &pid]).status().unwrap().success());
                    }
                    let answer = format!("{}!", prompt.text());
                    prompt.answer(answer);
                })).unwrap();
                assert_eq!((run.error, run.value), (None, json!([null, "two!", "three!"])));
            }
        }
    }
}

isolated! {
    fn a_signal_handler_cannot_ask_while_its_code_does() {
        for mut session in both() {
            session.execute("import signal\nsaid = []\ndef ask(*a):\n    try: said.append(input('inner'))\n    except RuntimeError: said.append('refused')\nsignal.signal(signal.SIGALRM, ask)").unwrap();
            let pid = session.execute("import os; os.getpid()").unwrap().value.to_string();
            let run = session.execute(Request::code("input('outer'), said").on_input(|prompt| {
                assert!(Command::new("kill").args(["-ALRM", &pid]).status().unwrap().success());
                let answer = format!("{}!", prompt.text());
                prompt.answer(answer);
            })).unwrap();
            assert_eq!((run.error, run.value), (None, json!(["outer!", ["refused"]])));
        }
    }
}

isolated! {
    fn a_cancel_ends_a_question_whichever_thread_gets_its_signal() {
        for mut session in both() {
            session.execute("import asyncio\nawait asyncio.to_thread(int)").unwrap();
            let handle = session.interrupt_handle();
            for round in 0..100 {
                let mut held = None;
                let run = session.execute(Request::code("await asyncio.sleep(0)\ninput('?')").on_input(|prompt| {
                    held = Some(prompt);
                    handle.interrupt();
                })).unwrap();
                assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "round {round}");
            }
        }
    }
}

isolated! {
    fn the_rest_of_a_line_is_not_left_for_the_next_user() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let mut pids = Vec::new();
        for code in ["import sys\nsys.stdin.read(1)", "import sys\nsys.stdin.readline()"] {
            let mut session = pool.acquire().unwrap();
            pids.push(session.pid());
            let run = session.execute(Request::code(code).on_input(|prompt| prompt.answer("secret"))).unwrap();
            assert_eq!(run.value, if pids.len() == 1 { "s" } else { "secret\n" });
        }
        assert_eq!(pids[0], pids[1]);
        pool.shutdown(GENEROUS);
    }
}

/// Whether the process stays for the next user, and what that one sees by `look`.
fn after(code: &str, look: &str) -> (bool, serde_json::Value, String) {
    let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
    let mut first = pool.acquire().unwrap();
    let pid = first.pid();
    assert_eq!(first.execute(code).unwrap().error, None, "{code}");
    drop(first);
    let mut second = pool.acquire().unwrap();
    let run = second.execute(look).unwrap();
    let stays = second.pid() == pid;
    drop(second);
    pool.shutdown(GENEROUS);
    (stays, run.value, run.stdout + &run.stderr)
}

isolated! {
    fn hooks_of_one_user_do_not_see_the_next() {
        let look = "import threading, gc\nthread = threading.Thread(target=int)\nthread.start(); thread.join()\ngc.collect()\nclass D:\n    def __del__(self): raise ValueError\nD()\n7";
        for code in [
            "import threading\nthreading.setprofile(lambda *a: print('seen'))\nthreading.settrace(lambda *a: print('seen'))",
            "import gc\ngc.callbacks.append(lambda *a: print('seen'))",
            "import sys\nsys.unraisablehook = lambda *a: print('seen')",
        ] {
            let (stays, value, output) = after(code, look);
            assert_eq!((stays, value), (true, json!(7)), "{code}");
            assert!(!output.contains("seen"), "{code}: {output}");
        }
        // Nothing takes one of these away again.
        let (stays, _, output) = after("import sys\nsys.addaudithook(lambda *a: print('seen'))", look);
        assert!(!stays && !output.contains("seen"), "{output}");
    }
}
