//! The Python worker behind wrappers: where only three streams are left, and where it leads no group.

use remuda::{Event, Outcome, Request, Runtime, Session, SessionConfig, Stream};
use serde_json::json;

use crate::support::{isolated, python};

/// Hands on the socket, or copies everything through pipes.
const RELAYS: [&str; 2] = ["exec \"$@\"", "cat | \"$@\" | cat"];

fn behind(relay: &str) -> Session {
    let runtime = Runtime::python("python3").remote(["sh", "-c", relay, "sh"]);
    SessionConfig::new(runtime).start().unwrap()
}

isolated! {
    fn output_travels_in_order_with_everything_else() {
        for relay in RELAYS {
            let mut session = behind(relay);
            let mut running = session.begin("import sys, remuda\nprint('one')\nprint('two', file=sys.stderr)\nremuda.progress(0.5)\nsys.stdout.write('three')\nsys.stdout.flush()\nsys.stdout.buffer.write(b'\\xc3\\xbc')\n4").unwrap();
            let mut seen = Vec::new();
            for event in &mut running {
                seen.push(match event {
                    Event::Output(Stream::Stdout, text) => format!("out {text}"),
                    Event::Output(Stream::Stderr, text) => format!("err {text}"),
                    Event::Progress(_) => "progress".to_owned(),
                    other => format!("{other:?}"),
                });
            }
            assert_eq!(seen.concat(), "out one\nerr two\nprogressout threeout ü", "{relay}");
            assert_eq!(running.finish().unwrap().value, 4);
        }
    }
}

isolated! {
    fn a_child_cannot_come_between_frames() {
        for relay in RELAYS {
            let mut session = behind(relay);
            let run = session.execute("import os\nos.system('echo from a child; cat')\nos.write(1, b'raw\\n')\nprint('frame')\n5").unwrap();
            assert_eq!((run.value, run.stdout.as_str()), (json!(5), "frame\n"), "{relay}");
        }
    }
}

isolated! {
    fn cancels_in_line_stop_code_wherever_it_is_and_only_once() {
        for relay in RELAYS {
            let mut session = behind(relay);
            let handle = session.interrupt_handle();
            for code in [
                "while True: pass",
                "import time; time.sleep(1000)",
                "import asyncio\nawait asyncio.sleep(1000)",
                "while True: print('x' * 1000)",
                // Cancels that follow the first leave its cleaning up alone.
                "import time\ntry:\n    while True: pass\nfinally:\n    time.sleep(0.05)",
            ] {
                let mut running = session.begin(format!("print('go')\n{code}")).unwrap();
                assert!(running.next().is_some());
                assert!(handle.interrupt());
                let run = running.finish().unwrap();
                assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "{relay}: {code}");
                assert!(!run.error.unwrap().traceback.contains("During handling"), "{relay}: {code}");
                assert_eq!(session.execute("6").unwrap().value, 6, "{relay}: {code}");
            }
            let polls = "import remuda\nremuda.cancelled()\nprint('go')\nwhile not remuda.cancelled(): pass\n'in good order'";
            let mut running = session.begin(polls).unwrap();
            assert!(running.next().is_some());
            assert!(handle.interrupt());
            assert_eq!(running.finish().unwrap().value, "in good order", "{relay}");
        }
    }
}

isolated! {
    fn input_and_big_frames_pass_the_relay() {
        for relay in RELAYS {
            let mut session = behind(relay);
            let run = session.execute(Request::code("input('a'), input('b')").on_input(|prompt| {
                let answer = format!("{}!", prompt.text());
                prompt.answer(answer);
            })).unwrap();
            assert_eq!(run.value, json!(["a!", "b!"]), "{relay}");
            let run = session.execute(
                Request::code("import remuda\nremuda.attach('back', remuda.attachments['big'])\nprint('x' * (3 << 20))").attach("big", vec![7; 5 << 20]),
            ).unwrap();
            assert_eq!(run.attachments[0].data.len(), 5 << 20, "{relay}");
            let handle = session.interrupt_handle();
            let run = session.execute(Request::code("input()").on_input(|prompt| {
                handle.interrupt();
                drop(prompt);
            })).unwrap();
            assert_ne!(run.outcome, Outcome::Completed);
            assert_eq!(session.execute("1").unwrap().value, 1, "{relay}");
        }
    }
}

isolated! {
    fn a_worker_that_does_not_lead_its_group_signals_its_own_children() {
        // The shell stays and leads the group, and shields what it runs from the host's SIGINT.
        let runtime = Runtime::python("python3").prefix(["sh", "-c", "trap '' INT; \"$@\"; exit", "sh"]);
        let mut session = python_of(runtime);
        let handle = session.interrupt_handle();
        let code = "import subprocess\nchild = subprocess.Popen(['python3', '-c', 'import signal\\nsignal.signal(signal.SIGINT, lambda *a: exit(3))\\nprint(1, flush=True)\\nsignal.pause()'], stdout=subprocess.PIPE, start_new_session=True)\nchild.stdout.readline()\ntry:\n    print('go', flush=True)\n    child.wait()\nexcept KeyboardInterrupt: pass\nchild.wait()";
        let mut running = session.begin(code).unwrap();
        assert!(running.next().is_some());
        assert!(handle.interrupt());
        let run = running.finish().unwrap();
        assert_eq!(run.value, 3, "{run:?}");
    }
}

fn python_of(runtime: Runtime) -> Session {
    let mut config = python();
    config.runtime = runtime;
    config.start().unwrap()
}
