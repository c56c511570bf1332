//! Values, history, top-level await and cookies of the Python worker.

use remuda::{Error, Event, Limit, Outcome, Request, Runtime, SessionConfig};
use serde_json::json;

use crate::support::{GENEROUS, isolated, pool, python, session};

isolated! {
    fn byte_strings_cross_raw_and_their_repr_is_cut() {
        let mut session = session();
        for code in ["b'\\x00\\xff'", "bytearray(b'\\x00\\xff')", "memoryview(b'\\x00\\xff')"] {
            let run = session.execute(code).unwrap();
            assert_eq!((run.outcome, run.bytes.as_deref()), (Outcome::Completed, Some(&[0, 0xff][..])), "{code}");
        }
        let run = session.execute("bytes(3 << 20)").unwrap();
        assert_eq!(run.bytes.map(|bytes| bytes.len()), Some(3 << 20));
        assert!(run.repr.unwrap().len() < 1 << 20);
        let run = session.execute("bytes(65 << 20)").unwrap();
        assert!(matches!(run.omitted, Some(remuda::Omitted::TooLarge { bytes }) if bytes == 65 << 20), "{:?}", run.omitted);
    }
}

isolated! {
    fn floats_cross_exactly_both_ways() {
        let mut session = session();
        session.execute("import random\nr = random.Random(7)\nxs = [r.uniform(-1, 1) * 10.0 ** r.randint(-300, 300) for _ in range(2000)]").unwrap();
        session.execute("xs.append(3984742586471774.0)").unwrap();
        let bits = session.execute("__import__('struct').pack('<2001d', *xs)").unwrap().bytes.unwrap();
        let floats = session.execute("xs").unwrap().value;
        let read: Vec<u8> =
            floats.as_array().unwrap().iter().flat_map(|x| x.as_f64().unwrap().to_le_bytes()).collect();
        assert!(read == bits, "a float has changed");
        let back = session.execute(remuda::Call::new("builtins:list").arg(floats.clone())).unwrap().value;
        assert_eq!(back, floats);
    }
}

isolated! {
    fn underscore_is_the_last_value_that_is_not_none() {
        let mut session = session();
        session.execute("6 * 7").unwrap();
        session.execute("None").unwrap();
        session.execute("x = 1").unwrap();
        assert_eq!(session.execute("_").unwrap().value, 42);
    }
}

isolated! {
    fn history_keeps_the_last_sources_and_values_and_drops_the_oldest() {
        let mut session = python().history(3).start().unwrap();
        session.execute("'one'").unwrap();
        session.execute("x = 2").unwrap();
        assert_eq!(session.execute("[In[1], In[2], Out[1], 2 in Out]").unwrap().value, json!(["'one'", "x = 2", "one", false]));
        assert_eq!(session.execute("sorted(In), sorted(Out)").unwrap().value, json!([[2, 3, 4], [3]]));
        let mut plain = python().history(0).start().unwrap();
        assert_eq!(plain.execute("In").unwrap().error.unwrap().kind, "NameError");
    }
}

isolated! {
    fn a_reset_clears_the_history() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let mut first = pool.acquire().unwrap();
        let pid = first.pid();
        first.execute("'secret'").unwrap();
        drop(first);
        let mut second = pool.acquire().unwrap();
        assert_eq!(second.pid(), pid);
        assert_eq!(second.execute("'_' in globals(), len(In), dict(Out)").unwrap().value, json!([false, 1, {}]));
        drop(second);
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn code_awaits_at_its_top_level_in_one_loop() {
        let mut session = session();
        let run = session.execute("import asyncio\nloop = asyncio.get_running_loop()\nawait asyncio.sleep(0, 'slept')").unwrap();
        assert_eq!((run.value, run.error), (json!("slept"), None));
        assert_eq!(session.execute("(await asyncio.sleep(0)) is None and asyncio.get_running_loop() is loop").unwrap().value, true);
        let run = session.execute("async def numbers():\n    for i in range(3): yield i\nfound = []\nasync for i in numbers(): found.append(i)\nfound").unwrap();
        assert_eq!(run.value, json!([0, 1, 2]));
        let run = session.execute("lock = asyncio.Lock()\nasync with lock: held = lock.locked()\nheld").unwrap();
        assert_eq!(run.value, true);
        assert_eq!(session.execute("asyncio.run(asyncio.sleep(0, 'nested'))").unwrap().value, "nested");
        // What is left behind goes on when a later request awaits.
        session.execute("left = asyncio.ensure_future(asyncio.sleep(0, 'left'), loop=loop)").unwrap();
        assert_eq!(session.execute("left.done()").unwrap().value, false);
        assert_eq!(session.execute("await left").unwrap().value, "left");
    }
}

isolated! {
    fn an_error_in_awaiting_code_has_a_traceback_of_the_users_code_only() {
        let mut session = session();
        let error = session.execute("async def f():\n    raise ValueError('deep')\nawait f()").unwrap().error.unwrap();
        assert_eq!(error.kind, "ValueError");
        assert!(error.traceback.contains("await f()") && error.traceback.contains("raise ValueError"), "{}", error.traceback);
        assert!(!error.traceback.contains("asyncio") && !error.traceback.contains("remuda"), "{}", error.traceback);
    }
}

/// Says itself that it runs: an interrupt before would leave it to the next request, whose loop it then keeps.
const SPINNING_TASK: &str = "async def spin():\n    print('go', flush=True)\n    while True: pass\n\
                             t = asyncio.create_task(spin())\nawait asyncio.sleep(1000)";

isolated! {
    fn awaiting_code_is_interrupted_wherever_it_is_and_the_loop_goes_on() {
        let mut session = session();
        let handle = session.interrupt_handle();
        session.execute("import asyncio").unwrap();
        for waits in [
            "await asyncio.sleep(1000)",
            "while True: await asyncio.sleep(0)",
            "while True: pass",
            SPINNING_TASK,
            "asyncio.run(asyncio.sleep(1000))",
        ] {
            // The first line makes all of it a coroutine, but for the last.
            let code = if waits.starts_with("asyncio") {
                format!("print('go', flush=True)\n{waits}")
            } else if waits == SPINNING_TASK {
                waits.to_owned()
            } else {
                format!("await asyncio.sleep(0)\nprint('go', flush=True)\n{waits}")
            };
            let mut running = session.begin(code).unwrap();
            assert!(matches!(running.next(), Some(Event::Output(..))));
            assert!(handle.interrupt());
            let run = running.finish().unwrap();
            assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "{waits}");
            assert_eq!(run.error.unwrap().kind, "KeyboardInterrupt", "{waits}");
            assert_eq!(session.execute("await asyncio.sleep(0, 7)").unwrap().value, 7, "{waits}");
        }
    }
}

isolated! {
    fn a_cookie_for_another_encoding_means_nothing() {
        let mut session = session();
        let source = "# -*- coding: latin-1 -*-\ntext = 'grüße'\ntext";
        assert_eq!(session.execute(source).unwrap().value, "grüße");
        let run = session.execute(Request::script(format!("{source}\nprint(text)"), "s.py", Vec::<String>::new())).unwrap();
        assert_eq!((run.error, run.stdout.as_str()), (None, "grüße\n"));
    }
}

isolated! {
    fn an_error_names_the_limit_that_it_stands_for() {
        let mut session = session();
        for (code, limit) in [
            ("raise MemoryError", Limit::Data),
            ("import errno\nraise OSError(errno.EMFILE, 'many')", Limit::OpenFiles),
            ("import errno\nraise OSError(errno.EFBIG, 'big')", Limit::FileSize),
        ] {
            assert_eq!(session.execute(code).unwrap().error.unwrap().limit, Some(limit), "{code}");
        }
        assert_eq!(session.execute("raise OSError(2, 'no')").unwrap().error.unwrap().limit, None);
    }
}

isolated! {
    fn the_whole_worker_runs_in_every_installed_python() {
        let mut tried = 0;
        for version in 9..=13 {
            let program = format!("python3.{version}");
            let mut session = match SessionConfig::new(Runtime::python(&program)).start() {
                Ok(session) => session,
                Err(Error::Runtime { .. }) => continue,
                Err(error) => panic!("{program}: {error}"),
            };
            let run = session.execute("import remuda, asyncio\nremuda.progress(0.5)\nremuda.display(7)\nawait asyncio.sleep(0, 1)").unwrap();
            assert_eq!((run.value, run.displays.len()), (json!(1), 1), "{program}");
            let run = session.execute(Request::code("input('?')").on_input(|prompt| prompt.answer("yes"))).unwrap();
            assert_eq!(run.value, "yes", "{program}");
            assert!(session.names().unwrap().iter().any(|name| name.name == "asyncio"), "{program}");
            session.fingerprint().unwrap();
            tried += 1;
        }
        println!("{tried} Python versions by name");
    }
}
