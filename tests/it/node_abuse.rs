//! Node code that redefines, breaks and leaves things: its session answers all the same, and the next user sees
//! none of it.

use remuda::{Outcome, Request, Runtime, SessionPool};
use serde_json::json;

use crate::node_basics::{config, session};
use crate::support::{GENEROUS, isolated};

/// A pool of one process, whose resets may take long on a busy machine.
fn pool() -> SessionPool {
    let builder = SessionPool::builder(Runtime::node("node")).min_idle(1).max_sessions(1);
    builder.reset_timeout(GENEROUS).start().unwrap()
}

isolated! {
    fn results_come_whatever_names_user_code_has_taken() {
        for code in [
            "let $_ = 8; var one = 1",
            "var $_ = 7",
            "globalThis[Symbol.for('remuda.take')] = null; Symbol = null",
            "Promise = JSON = Array = Object = Buffer = process = console = setTimeout = null",
        ] {
            let Some(mut session) = session() else { return };
            let run = session.execute(code).unwrap();
            assert_eq!(run.error, None, "{code}");
            assert_eq!(session.execute("({a: [1]})").unwrap().value, json!({"a": [1]}), "{code}");
            assert_eq!(session.execute("'ä'").unwrap().value, "ä", "{code}");
            assert_eq!(session.execute("true").unwrap().value, true, "{code}");
            assert_eq!(session.execute("2.5").unwrap().value, 2.5, "{code}");
            for shown in ["null", "10n", "-5n", "-0", "NaN", "-Infinity"] {
                assert_eq!(session.execute(shown).unwrap().repr.as_deref(), Some(shown), "{code}");
            }
            assert_eq!(session.execute("throw new Error('thrown')").unwrap().error.unwrap().message, "thrown", "{code}");
        }
    }
}

isolated! {
    fn values_and_slots_that_resist_are_answered() {
        let Some(mut session) = session() else { return };
        for (code, repr) in [
            ("Out = Object.freeze([]); In = Object.freeze([]); 5", "5"),
            ("Out = new Proxy([], { set() { throw new Error('no') }, deleteProperty() { throw 1 } }); 6", "6"),
            ("Object.defineProperty(globalThis, 'In', { get() { throw new Error('no') } }); 7", "7"),
            ("const given = new Uint8Array(8); structuredClone(given.buffer, { transfer: [given.buffer] }); given", "Uint8Array(0) []"),
        ] {
            let run = session.execute(Request::code(code).time_limit(GENEROUS)).unwrap();
            assert_eq!((run.outcome, run.repr.as_deref()), (Outcome::Completed, Some(repr)), "{code}: {:?}", run.error);
        }
        let run = session.execute(Request::code("class Odd extends Uint8Array { get byteLength() { return 1e9 } }; new Odd(4)").time_limit(GENEROUS)).unwrap();
        assert_eq!(run.bytes.as_deref(), Some(&[0; 4][..]));
    }
}

isolated! {
    fn lone_surrogates_pass_in_every_frame() {
        let Some(mut session) = session() else { return };
        let code = "remuda.progress(0.5, '\\ud800 \\\\ud800'); remuda.attach('\\udfff', 'x'); globalThis['\\ud800'] = 1; remuda.inputSync('\\ud83d')";
        let mut seen = Vec::new();
        let run = session.execute(Request::code(code).on_input(|prompt| {
            let answer = prompt.text().to_owned();
            prompt.answer(answer);
        }).on_progress(|progress| seen.push(progress.message.clone()))).unwrap();
        assert_eq!((run.error, run.value), (None, json!("\u{fffd}")));
        assert_eq!(run.attachments[0].name, "\u{fffd}");
        assert_eq!(seen, [Some("\u{fffd} \\ud800".to_owned())]);
        assert!(session.names().unwrap().iter().any(|name| name.name == "\u{fffd}"));
        assert!(session.fingerprint().unwrap().globals.contains(&"\u{fffd}".to_owned()));
    }
}

isolated! {
    fn a_thread_that_was_left_costs_the_process() {
        if config().is_none() {
            return;
        }
        let pool = pool();
        let mut first = pool.acquire().unwrap();
        let pid = first.pid();
        let code = "const { Worker } = require('worker_threads');\nconst ended = new Worker('', { eval: true });\nawait new Promise((done) => ended.on('exit', done));\nconst left = new Worker('setInterval(() => {}, 1000)', { eval: true });\nleft.unref();\nawait new Promise((done) => left.on('online', done))";
        assert_eq!(first.execute(code).unwrap().error, None);
        assert_eq!(first.fingerprint().unwrap().threads, 1);
        drop(first);
        let second = pool.acquire().unwrap();
        assert_ne!(second.pid(), pid);
        drop(second);
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn what_was_put_in_the_place_of_processs_own_is_undone() {
        if config().is_none() {
            return;
        }
        let pool = pool();
        let mut first = pool.acquire().unwrap();
        let pid = first.pid();
        let code = "process.stdout.write = () => { throw new Error('taken') }; process.exit = null; process.nextTick = null; process.left = 1; console.left = 1; console.log = null; require('util').inspect.defaultOptions.depth = 0; 1";
        assert_eq!(first.execute(code).unwrap().error, None);
        drop(first);
        let mut second = pool.acquire().unwrap();
        assert_eq!(second.pid(), pid);
        let run = second.execute("console.log({ a: { b: { c: 1 } } }); process.stdout.write('raw\\n'); [typeof process.exit, typeof process.nextTick, typeof process.left, typeof console.left]").unwrap();
        assert_eq!((run.error, run.stdout.as_str()), (None, "{ a: { b: { c: 1 } } }\nraw\n"));
        assert_eq!(run.value, json!(["function", "function", "undefined", "undefined"]));
        let run = second.execute("process.exit(2)").unwrap();
        assert_eq!(run.error.unwrap().exit_code, Some(2));
        drop(second);
        pool.shutdown(GENEROUS);
    }
}
