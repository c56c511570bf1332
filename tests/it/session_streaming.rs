//! Output as it comes: callbacks, the iterator, text from bytes, back-pressure, caps.

use std::time::Duration;

use remuda::{Event, Outcome, Request, Stream, TimeLimit};

use crate::support::{GENEROUS, isolated, poll, python, session};

isolated! {
    fn an_iterator_hands_out_output_as_it_comes_and_ends_with_the_result() {
        let mut session = session();
        let mut running = session.begin("import sys\nfor i in range(3): print(i, flush=True)\nprint('no', file=sys.stderr)\n'done'").unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        for event in &mut running {
            match event {
                Event::Output(Stream::Stdout, text) => out.push_str(&text),
                Event::Output(Stream::Stderr, text) => err.push_str(&text),
                other => panic!("{other:?}"),
            }
        }
        let run = running.finish().unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("0\n1\n2\n", "no\n"));
        assert_eq!((run.stdout, run.stderr, run.value), (out, err, serde_json::json!("done")));
        assert_eq!(run.outcome, Outcome::Completed);
    }
}

isolated! {
    fn the_first_event_comes_while_the_code_still_runs() {
        let mut session = session();
        let handle = session.interrupt_handle();
        let mut running = session.begin("print('first', flush=True)\nwhile True: pass").unwrap();
        assert!(matches!(running.next(), Some(Event::Output(Stream::Stdout, text)) if text == "first\n"));
        assert!(handle.interrupt());
        assert_eq!(running.finish().unwrap().outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn dropping_a_running_execution_stops_its_code_and_keeps_the_session() {
        let mut session = python().grace(GENEROUS).start().unwrap();
        let mut running = session.begin("print('go', flush=True)\nwhile True: pass").unwrap();
        assert!(running.next().is_some());
        drop(running);
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        let quick = session.begin("'never looked at'").unwrap();
        drop(quick);
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn code_waits_for_a_reader_that_takes_its_time() {
        let mut session = session();
        // Ten times what the widest pipe holds; the counter says how far the code has come.
        let code = "import os, mmap\nlimit = 10 << 20\nprogress = open('progress', 'w+b', 0)\nprogress.write(bytes(8))\n\
                    seen = memoryview(mmap.mmap(progress.fileno(), 8)).cast('Q')\n\
                    while seen[0] < limit: seen[0] += os.write(1, b'x' * 65536)\nseen[0]";
        let directory = session.execute("import os; os.getcwd()").unwrap().value;
        let counter = std::path::Path::new(directory.as_str().unwrap()).join("progress");
        let written = || {
            let bytes = std::fs::read(&counter).unwrap_or_default();
            bytes.first_chunk().map_or(0, |count| u64::from_ne_bytes(*count))
        };
        let mut running = session.begin(Request::code(code).output_cap(1 << 10)).unwrap();
        let first = running.next();
        assert!(matches!(first, Some(Event::Output(Stream::Stdout, _))));
        // It writes until the pipe is full, then it stands still for as long as nobody reads.
        let last = std::cell::Cell::new(u64::MAX);
        poll(|| last.replace(written()) == last.get(), || "the code goes on writing".to_owned());
        assert!(written() < 4 << 20, "{}", written());
        let run = running.finish().unwrap();
        assert_eq!(run.value, 10 << 20);
        assert!(run.dropped.0 > 9 << 20);
    }
}

isolated! {
    fn characters_arrive_whole_however_their_bytes_are_written() {
        let mut session = session();
        let code = "import os\nfor byte in 'größe → 𝄞\\n'.encode(): os.write(1, bytes([byte]))\nos.write(1, b'\\xff\\xe2\\x82')";
        let mut text = String::new();
        let mut bytes = Vec::new();
        let request = Request::code(code)
            .on_text(|_, piece| text.push_str(piece))
            .on_output(|_, piece| bytes.extend_from_slice(piece));
        let run = session.execute(request).unwrap();
        assert_eq!(text, "größe → 𝄞\n\u{fffd}\u{fffd}");
        assert_eq!(bytes, ["größe → 𝄞\n".as_bytes(), b"\xff\xe2\x82"].concat(), "bytes come as they are");
        assert_eq!(run.stdout, text);
    }
}

isolated! {
    fn a_time_limit_holds_for_code_that_floods_its_output() {
        let mut session = python().grace(GENEROUS).start().unwrap();
        let code = "import os\nwhile True: os.write(1, b'y' * 65536)";
        let run = session.execute(Request::code(code).time_limit(Duration::from_millis(200)).output_cap(1 << 20)).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        assert!(run.dropped.0 > 0 && run.stdout.contains("bytes dropped"));
        assert_eq!(session.execute("1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn a_cut_never_leaves_half_a_character() {
        let mut session = python().output_cap(1001).start().unwrap();
        let run = session.execute("print('€' * 1000, end='')").unwrap();
        assert!(!run.stdout.contains('\u{fffd}'), "{}", run.stdout);
        let kept = run.stdout.matches('€').count() as u64;
        assert_eq!(run.dropped.0, 3 * (1000 - kept));
        assert!(kept > 300);
    }
}
