//! What Python code says while it runs: input, display, progress, attachments.

use std::process::Command;

use remuda::{Call, Outcome, Request, Runtime, SessionConfig};
use serde_json::{Value, json};

use crate::support::{isolated, python, session};

isolated! {
    fn input_asks_the_host_and_what_was_printed_comes_first() {
        let mut session = session();
        let asked = std::sync::Mutex::new(Vec::new());
        let run = session.execute(
            Request::code("import getpass\nname = input('name? ')\nword = getpass.getpass('word? ')\nname, word")
                .on_input(|prompt| {
                    asked.lock().unwrap().push((prompt.text().to_owned(), prompt.is_secret()));
                    let secret = prompt.is_secret();
                    prompt.answer(if secret { "psst" } else { "grüße" });
                }),
        );
        assert_eq!(run.unwrap().value, json!(["grüße", "psst"]));
        assert_eq!(*asked.lock().unwrap(), [("name? ".to_owned(), false), ("word? ".to_owned(), true)]);
    }
}

isolated! {
    fn stdin_is_read_line_by_line_until_its_end() {
        let mut session = session();
        let mut lines = vec!["b", "a"];
        let run = session.execute(Request::code("import sys\n[line for line in sys.stdin]").on_input(|prompt| {
            match lines.pop() {
                Some(line) => prompt.answer(line),
                None => prompt.end(),
            }
        }));
        assert_eq!(run.unwrap().value, json!(["a\n", "b\n"]));
    }
}

isolated! {
    fn input_ends_where_nobody_answers() {
        let mut session = session();
        let kind = |run: remuda::Execution| run.error.map(|error| error.kind);
        assert_eq!(kind(session.execute("input()").unwrap()).as_deref(), Some("EOFError"));
        let run = session.execute(Request::code("input()").on_input(remuda::Prompt::end)).unwrap();
        assert_eq!(kind(run).as_deref(), Some("EOFError"));
        // Also after a host has offered it once, and for the stream.
        assert_eq!(kind(session.execute("input()").unwrap()).as_deref(), Some("EOFError"));
        assert_eq!(session.execute("import sys\nsys.stdin.read()").unwrap().value, "");
        let mut kept = None;
        let run = session.execute(
            Request::code("input()").on_input(|prompt| kept = Some(prompt)).input_timeout(std::time::Duration::from_millis(1)),
        ).unwrap();
        assert_eq!(kind(run).as_deref(), Some("TimeoutError"));
    }
}

isolated! {
    fn waiting_for_input_can_be_interrupted_and_a_late_answer_is_ignored() {
        let mut session = session();
        let handle = session.interrupt_handle();
        let mut late = None;
        let run = session.execute(Request::code("input('x')").on_input(|prompt| {
            late = Some(prompt);
            assert!(handle.interrupt());
        })).unwrap();
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        late.unwrap().answer("late");
        let run = session.execute(Request::code("input('y')").on_input(|prompt| prompt.answer("right"))).unwrap();
        assert_eq!(run.value, "right");
    }
}

isolated! {
    fn only_the_main_thread_may_ask() {
        let mut session = session();
        let code = "import threading\nsaid = []\ndef ask():\n    try: input()\n    except RuntimeError as e: said.append(str(e))\nt = threading.Thread(target=ask)\nt.start()\nt.join()\nsaid, input()";
        let run = session.execute(Request::code(code).on_input(|prompt| prompt.answer("main"))).unwrap();
        assert_eq!(run.value[1], "main");
        assert!(run.value[0][0].as_str().unwrap().contains("main thread"), "{}", run.value);
    }
}

isolated! {
    fn a_trailing_value_is_shown_in_every_form_that_it_has() {
        let mut session = session();
        let run = session.execute(
            "import base64\nclass Rich:\n    def _repr_html_(self): return '<b>grüße</b>'\n    def _repr_png_(self): return b'\\x89PNG'\n    def _repr_jpeg_(self): return base64.b64encode(b'jpeg').decode()\n    def _repr_json_(self): return {'a': [1]}\n    def _repr_markdown_(self): return None\nRich()",
        ).unwrap();
        let [display] = &run.displays[..] else { panic!("{:?}", run.displays) };
        assert!(display.is_result);
        let types: Vec<&str> = display.forms.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(types, ["text/html", "image/png", "image/jpeg", "application/json"]);
        assert_eq!(display.text("text/html"), Some("<b>grüße</b>"));
        assert_eq!(display.get("image/png"), Some(&b"\x89PNG"[..]));
        assert_eq!(display.get("image/jpeg"), Some(&b"jpeg"[..]));
        assert_eq!(display.text("application/json"), Some(r#"{"a":[1]}"#));
        assert!(run.repr.unwrap().contains("Rich object"));
        let run = session.execute("class Bundle:\n    def _repr_mimebundle_(self, **kwargs): return {'text/plain': 'p', 'application/x-own': 'o'}, {}\nBundle()").unwrap();
        assert_eq!(run.displays[0].forms[0].0, "application/x-own");
        for plain in ["[1]", "'text'", "object()", "Rich", "x = Rich()"] {
            assert!(session.execute(plain).unwrap().displays.is_empty(), "{plain}");
        }
    }
}

isolated! {
    fn a_form_that_fails_is_left_out_and_named_on_stderr() {
        let mut session = session();
        let run = session.execute("class Bad:\n    def _repr_html_(self): raise ValueError('no\\nhtml')\n    def _repr_latex_(self): return '$x$'\nBad()").unwrap();
        assert_eq!(run.outcome, Outcome::Completed);
        assert_eq!(run.stderr, "remuda: _repr_html_ of Bad failed: ValueError: no html\n");
        assert_eq!(run.displays[0].text("text/latex"), Some("$x$"));
    }
}

isolated! {
    fn code_that_shows_itself_can_be_interrupted() {
        let mut session = session();
        let handle = session.interrupt_handle();
        let code = "class Slow:\n    def _repr_html_(self):\n        print('in it', flush=True)\n        while True: pass\nSlow()";
        let mut running = session.begin(code).unwrap();
        assert!(running.next().is_some());
        assert!(handle.interrupt());
        assert_eq!(running.finish().unwrap().outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn code_displays_what_it_likes() {
        let mut session = session();
        let run = session.execute("import remuda\nremuda.display({'text/html': '<i>', 'application/json': [1]}, raw=True)\nremuda.display([1, 2])\n3").unwrap();
        let forms: Vec<_> = run.displays.iter().map(|display| (display.forms.clone(), display.is_result)).collect();
        let form = |name: &str, data: &str| (name.to_owned(), data.as_bytes().to_vec());
        assert_eq!(forms, [
            (vec![form("text/html", "<i>"), form("application/json", "[1]")], false),
            (vec![form("text/plain", "[1, 2]")], false),
        ]);
    }
}

isolated! {
    fn progress_and_attachments_arrive_while_the_code_runs() {
        let mut session = session();
        let mut seen = Vec::new();
        let run = session.execute(
            Request::code("import remuda\nremuda.progress(0.25, 'step')\nremuda.progress(None)\nremuda.progress(7)\nremuda.attach('out.bin', remuda.attachments['in.bin'][::-1])")
                .attach("in.bin", *b"\x00ab")
                .on_progress(|progress| seen.push((progress.fraction, progress.message.clone()))),
        ).unwrap();
        assert_eq!(run.error, None);
        assert_eq!((run.attachments[0].name.as_str(), &run.attachments[0].data[..]), ("out.bin", &b"ba\x00"[..]));
        assert_eq!(seen, [(Some(0.25), Some("step".to_owned())), (None, None), (Some(1.0), None)]);
        assert_eq!(session.execute("remuda.attachments").unwrap().value, json!({}));
        session.execute("def f(a, data): return [a, len(data)]").unwrap();
        let call = Request::from(Call::new("__main__:f").arg(1)).attach("data", vec![0; 5]);
        assert_eq!(session.execute(call).unwrap().value, json!([1, 5]));
    }
}

isolated! {
    fn a_frame_over_the_cap_is_an_exception_and_nothing_worse() {
        let mut session = python().frame_cap(64 << 10).start().unwrap();
        session.execute("import remuda").unwrap();
        for code in ["remuda.attach('a', bytes(65 << 10))", "remuda.display({'image/png': bytes(65 << 10)}, raw=True)", "remuda.progress(0, 'x' * (65 << 10))"] {
            let error = session.execute(code).unwrap().error.unwrap();
            assert_eq!(error.kind, "ValueError", "{code}");
            assert!(error.message.contains("frame cap"), "{}", error.message);
        }
        let run = session.execute("class Big:\n    def _repr_html_(self): return 'x' * (65 << 10)\nBig()").unwrap();
        assert_eq!((run.outcome, run.displays.len()), (Outcome::Completed, 0));
        assert!(run.stderr.contains("frame cap"), "{}", run.stderr);
    }
}

isolated! {
    fn events_of_many_threads_never_mix_nor_come_after_the_answer() {
        let mut session = session();
        let code = "import remuda, threading\ndef say():\n    for i in range(200): remuda.progress(i / 200, 'x' * 9000)\nthreads = [threading.Thread(target=say) for _ in range(4)]\nfor t in threads: t.start()\nfor t in threads: t.join()";
        let mut count = 0;
        let run = session.execute(Request::code(code).on_progress(|_| count += 1)).unwrap();
        assert_eq!((run.error, count), (None, 800));
        // These go on while the answer is sent, and find that nobody listens between two requests.
        session.execute("go_on = True\ndef say():\n    while go_on:\n        try: remuda.progress(0.5, 'x' * 9000)\n        except RuntimeError: pass\nthreads = [threading.Thread(target=say) for _ in range(2)]\nfor t in threads: t.start()").unwrap();
        for i in 0..50 {
            assert_eq!(session.execute(format!("{i}")).unwrap().value, i);
        }
        assert_eq!(session.execute("go_on = False\nfor t in threads: t.join()\n'done'").unwrap().value, "done");
    }
}

isolated! {
    fn an_interrupt_never_cuts_a_frame_in_two() {
        let mut session = session();
        let handle = session.interrupt_handle();
        session.execute("import remuda").unwrap();
        for _ in 0..20 {
            let mut count = 0;
            let run = session.execute(Request::code("while True: remuda.progress(0.5, 'x' * 20000)").on_progress(|_| {
                count += 1;
                if count == 3 {
                    handle.interrupt();
                }
            })).unwrap();
            assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        }
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn cpu_time_is_measured_on_demand() {
        let mut session = session();
        let spin = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass";
        let run = session.execute(Request::code(spin).measure(true)).unwrap();
        let usage = run.usage.unwrap();
        assert!(usage.cpu_time.as_secs_f64() >= 0.05, "{usage:?}");
    }
}

isolated! {
    fn open_figures_are_sent_as_images_and_closed() {
        let mut session = session();
        // As much of it as the worker touches.
        let fake = "import sys, types\nplt = types.ModuleType('matplotlib.pyplot')\nfigures = {}\nclass Figure:\n    def __init__(self, n): self.n = n\n    def savefig(self, file, format): file.write(b'%s %d' % (format.encode(), self.n))\nplt.get_fignums = lambda: sorted(figures)\nplt.figure = lambda n: figures.setdefault(n, Figure(n))\nplt.close = lambda what: figures.clear()\nsys.modules['matplotlib.pyplot'] = plt";
        session.execute(fake).unwrap();
        let run = session.execute("plt.figure(1); plt.figure(2); 5").unwrap();
        let images: Vec<_> = run.displays.iter().map(|display| display.get("image/png").unwrap().to_vec()).collect();
        assert_eq!(images, [b"png 1".to_vec(), b"png 2".to_vec()]);
        assert_eq!((run.value, session.execute("len(figures)").unwrap().value), (json!(5), json!(0)));
        let run = session.execute("plt.figure(3); 1/0").unwrap();
        assert_eq!((run.outcome, run.displays.len()), (Outcome::Failed, 0));
        assert_eq!(session.execute("len(figures)").unwrap().value, 0);
        session.execute("def fail(*args, **more): raise OSError('disk')\nFigure.savefig = fail").unwrap();
        let run = session.execute("plt.figure(4); 6").unwrap();
        assert_eq!((run.value, run.stderr.as_str()), (json!(6), "remuda: showing a figure failed: OSError: disk\n"));
    }
}

/// An interpreter that has matplotlib, or `None` with a word to whoever runs the tests. With
/// `REMUDA_REQUIRE=matplotlib` there must be one; `REMUDA_MATPLOTLIB_PYTHON` names it if it is not the
/// plain one.
fn with_matplotlib() -> Option<String> {
    let python = std::env::var("REMUDA_MATPLOTLIB_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-I", "-c", "import matplotlib"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let required = std::env::var("REMUDA_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == "matplotlib"),
        "matplotlib is required but not installed"
    );
    eprintln!("SKIPPED: it needs matplotlib");
    None
}

isolated! {
    fn matplotlib_draws_without_a_screen() {
        let Some(python) = with_matplotlib() else { return };
        let mut session = SessionConfig::new(Runtime::python(python)).start().unwrap();
        let run = session.execute("import matplotlib\nfrom matplotlib import pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()\nmatplotlib.get_backend().lower()").unwrap();
        assert_eq!((run.error, run.value), (None, Value::from("agg")));
        assert!(run.displays[0].get("image/png").unwrap().starts_with(b"\x89PNG\r\n"), "{:?}", run.displays);
        assert_eq!(session.execute("plt.get_fignums()").unwrap().value, json!([]));
    }
}
