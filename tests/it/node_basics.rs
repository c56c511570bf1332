//! Node sessions: values, output, errors, calls, bytes, displays, input.

use std::time::Duration;

use remuda::{Call, Error, Event, Omitted, Outcome, Request, Runtime, Session, SessionConfig, Stream};
use serde_json::{Value, json};

use crate::support::isolated;

/// The options of a Node session, or `None` with a word to whoever runs the tests. With
/// `REMUDA_REQUIRE=node` Node must be there.
pub(crate) fn config() -> Option<SessionConfig> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|directory| directory.join("node").is_file()) {
        return Some(SessionConfig::new(Runtime::node("node")));
    }
    let required = std::env::var("REMUDA_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "node"), "node is required but not installed");
    eprintln!("SKIPPED: it needs node");
    None
}

pub(crate) fn session() -> Option<Session> {
    config().map(|config| config.start().expect("a Node session starts"))
}

/// The value of code that completes.
pub(crate) fn value(session: &mut Session, code: &str) -> Value {
    let run = session.execute(code).unwrap();
    assert_eq!(run.outcome, Outcome::Completed, "{code}: {:?}", run.error);
    run.value
}

isolated! {
    fn values_that_json_holds_exactly_come_as_json() {
        let Some(mut session) = session() else { return };
        assert!(session.info().runtime.contains("node"), "{}", session.info().runtime);
        for (code, expected) in [
            ("6 * 7", json!(42)),
            ("0.5", json!(0.5)),
            ("'ä\\u{1F40E}'", json!("ä🐎")),
            ("({a: [1, null, true, {b: 'c'}]})", json!({"a": [1, null, true, {"b": "c"}]})),
            ("{ let x = 5; x + 1 }", json!(6)),
            ("null", Value::Null),
            ("Array.from({length: 100000}, (_, i) => i).length", json!(100_000)),
            ("JSON.parse('['.repeat(90) + ']'.repeat(90)).length", json!(1)),
            ("await Promise.resolve([1, 2])", json!([1, 2])),
            ("for (const i of [1, 2, 3]) i * 10", json!(30)),
        ] {
            assert_eq!(value(&mut session, code), expected, "{code}");
        }
        let run = session.execute("({a: 1})").unwrap();
        assert_eq!(run.repr.as_deref(), Some("{ a: 1 }"));
        let run = session.execute("undefined").unwrap();
        assert_eq!((run.value, run.repr, run.omitted), (Value::Null, None, None));
    }
}

isolated! {
    fn values_that_json_cannot_hold_say_why() {
        let Some(mut session) = session() else { return };
        for (code, reason, repr) in [
            ("10n", "bigint", "10n"),
            ("[NaN]", "NaN at [0]", "[ NaN ]"),
            ("-0", "-0", "-0"),
            ("({a: undefined})", "undefined at .a", "{ a: undefined }"),
            ("(() => 1)", "function", "[Function (anonymous)]"),
            ("let o = {}; o.o = o; o", "a cycle at .o", "<ref *1> { o: [Circular *1] }"),
            ("new Map([[1, 2]])", "Map", "Map(1) { 1 => 2 }"),
            ("new Date(0)", "Date", "1970-01-01T00:00:00.000Z"),
            ("Symbol('s')", "symbol", "Symbol(s)"),
        ] {
            let run = session.execute(code).unwrap();
            let Some(Omitted::NotJson(why)) = &run.omitted else { panic!("{code}: {:?}", run.omitted) };
            assert!(why.contains(reason), "{code}: {why}");
            assert_eq!((run.outcome, run.repr.as_deref()), (Outcome::Completed, Some(repr)), "{code}");
        }
        // Deep values are told apart from cycles, and neither ends the session.
        let run = session.execute("let deep = []; for (let i = 0; i < 5000; i++) deep = [deep]; deep").unwrap();
        assert!(matches!(&run.omitted, Some(Omitted::NotJson(why)) if why.contains("levels")), "{:?}", run.omitted);
    }
}

isolated! {
    fn large_values_and_bytes_arrive_whole() {
        let Some(config) = config() else { return };
        let mut session = config.frame_cap(4 << 20).start().unwrap();
        let run = session.execute("Array.from({length: 200000}, (_, i) => i)").unwrap();
        assert_eq!(run.value.as_array().unwrap().len(), 200_000);
        let run = session.execute("Buffer.from(Uint8Array.from({length: 1 << 20}, (_, i) => i & 255))").unwrap();
        let bytes = run.bytes.unwrap();
        assert!(bytes.len() == 1 << 20 && bytes.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i & 255));
        let run = session.execute("'x'.repeat(5 << 20)").unwrap();
        assert_eq!(run.omitted, Some(Omitted::TooLarge { bytes: (5 << 20) + 2 }));
        assert!(run.repr.unwrap().len() < 100 << 10);
        assert_eq!(value(&mut session, "1 + 1"), 2);
    }
}

isolated! {
    fn declarations_stay_and_may_be_made_again() {
        let Some(mut session) = session() else { return };
        session.execute("const a = 1; let b = 2; var c = 3; function f() { return a + b + c } class K { m() { return 7 } }").unwrap();
        assert_eq!(value(&mut session, "[f(), new K().m()]"), json!([6, 7]));
        session.execute("const a = 10; let b = await Promise.resolve(20); class K { m() { return 8 } }").unwrap();
        assert_eq!(value(&mut session, "[f(), new K().m()]"), json!([33, 8]));
        // A syntax error runs nothing, and a name that failed to get its value can be made again.
        let run = session.execute("globalThis.ran = true; let d = ;").unwrap();
        assert_eq!(run.error.unwrap().kind, "SyntaxError");
        assert_eq!(value(&mut session, "typeof ran"), "undefined");
        session.execute("const e = (() => { throw new Error('no') })()").unwrap();
        assert_eq!(value(&mut session, "const e = 5; e"), 5);
    }
}

isolated! {
    fn the_last_value_and_the_history_are_at_hand() {
        let Some(config) = config() else { return };
        let mut session = config.history(2).start().unwrap();
        assert_eq!(value(&mut session, "20 + 1"), 21);
        assert_eq!(value(&mut session, "_ * 2"), 42);
        assert_eq!(value(&mut session, "[In[2], Out[2], 1 in Out]"), json!(["_ * 2", 42, true]));
        assert_eq!(value(&mut session, "[1 in Out, 1 in In]"), json!([false, false]));
        // Whoever uses the name keeps it.
        session.execute("_ = 'mine'").unwrap();
        session.execute("99").unwrap();
        assert_eq!(value(&mut session, "_"), "mine");
    }
}

isolated! {
    fn modules_of_both_kinds_can_be_loaded() {
        let Some(mut session) = session() else { return };
        let code = "const fs = require('fs'); fs.writeFileSync('old.cjs', 'exports.a = 1'); fs.writeFileSync('new.mjs', 'export const b = 2'); \
                    [require('./old.cjs').a, require('node:path').join('x', 'y')]";
        assert_eq!(value(&mut session, code), json!([1, "x/y"]));
        assert_eq!(value(&mut session, "(await remuda.import('./new.mjs')).b"), 2);
        // Errors, arrays and buffers of Node's own realm pass for those of the context.
        let code = "let seen; try { fs.readFileSync('none') } catch (error) { seen = [error instanceof Error, error.code, Buffer.alloc(1) instanceof Uint8Array] } seen";
        assert_eq!(value(&mut session, code), json!([true, "ENOENT", true]));
        let import = session.execute("(await import('fs')).existsSync('.')").unwrap();
        let supported = value(&mut session, "const [major, minor] = process.versions.node.split('.').map(Number); major > 21 || (major === 20 && minor > 11)");
        assert!(supported == false || import.value == true, "{:?}", import.error);
        assert_eq!(import.stderr, "", "no warning about the worker's own ways");
    }
}

isolated! {
    fn output_comes_before_the_result_and_in_order() {
        let Some(mut session) = session() else { return };
        let run = session.execute("console.log('one', {a: 1}); process.stdout.write('two\\n'); console.info('three'); console.error('bad'); process.stderr.write('worse\\n'); 5").unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str(), run.value), ("one { a: 1 }\ntwo\nthree\n", "bad\nworse\n", json!(5)));
        let mut seen = String::new();
        let run = session
            .execute(Request::code("for (let i = 0; i < 3; i++) { console.log('out', i); console.error('err', i) }").on_text(|stream, text| {
                seen.push_str(if stream == Stream::Stdout { "O:" } else { "E:" });
                seen.push_str(text);
            }))
            .unwrap();
        assert_eq!(run.outcome, Outcome::Completed);
        assert_eq!(seen, "O:out 0\nE:err 0\nO:out 1\nE:err 1\nO:out 2\nE:err 2\n", "frames keep the order between the streams too");
    }
}

isolated! {
    fn ten_mebibytes_of_output_arrive_whole() {
        let Some(config) = config() else { return };
        let mut session = config.output_cap(64 << 20).start().unwrap();
        let run = session.execute("for (let i = 0; i < 160; i++) console.log(String(i % 10).repeat(65535)); process.stdout.write('é'.repeat(1000000))").unwrap();
        assert_eq!(run.stdout.len(), (160 << 16) + 2_000_000);
        assert!(run.stdout.lines().take(160).enumerate().all(|(i, line)| line.starts_with(&(i % 10).to_string()) && line.len() == 65535));
        assert!(run.stdout.ends_with('é'));
    }
}

isolated! {
    fn what_goes_around_the_console_arrives_as_stderr_and_breaks_nothing() {
        let Some(mut session) = session() else { return };
        let code = "const fs = require('fs'), { execSync } = require('child_process'); fs.writeSync(1, 'raw\\n'); \
                    execSync('echo child', { stdio: 'inherit' }); [fs.readFileSync(0, 'utf8'), execSync('ls -l /proc/self/fd').toString().includes(fs.readlinkSync('/proc/self/fd/3'))]";
        let run = session.execute(code).unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", "raw\nchild\n"));
        assert_eq!(run.value, json!(["", false]), "an empty stdin, and no channel in a child");
        session.execute("for (const fd of [0, 1]) fs.closeSync(fd)").unwrap();
        assert_eq!(value(&mut session, "console.log('lives'); 1"), 1);
    }
}

isolated! {
    fn errors_have_type_message_and_a_stack_of_their_own_frames() {
        let Some(mut session) = session() else { return };
        let run = session.execute("function inner() {\n  throw new RangeError('too far')\n}\ninner()").unwrap();
        let error = run.error.unwrap();
        assert_eq!((run.outcome, error.kind.as_str(), error.message.as_str()), (Outcome::Failed, "RangeError", "too far"));
        assert_eq!(error.traceback, "RangeError: too far\n    at inner (cell-1:2:9)\n    at cell-1:4:1");
        for (code, kind, message) in [
            ("class Mine extends Error {} throw new Mine('m')", "Mine", "m"),
            ("throw 'text'", "string", "text"),
            ("throw {a: 1}", "Object", "{ a: 1 }"),
            ("throw null", "null", "null"),
            ("throw undefined", "undefined", "undefined"),
            ("await Promise.reject(new TypeError('late'))", "TypeError", "late"),
            ("missing", "ReferenceError", "missing is not defined"),
            ("require('no-such-module')", "Error", "Cannot find module"),
        ] {
            let error = session.execute(code).unwrap().error.unwrap_or_else(|| panic!("{code} fails"));
            assert_eq!(error.kind, kind, "{code}");
            assert!(error.message.starts_with(message), "{code}: {}", error.message);
            assert!(!error.traceback.contains("remuda-worker") && !error.traceback.contains("node:inspector"), "{}", error.traceback);
        }
        let error = session.execute("\n\nlet a b").unwrap().error.unwrap();
        assert!(error.traceback.contains(":3:7\nSyntaxError"), "{}", error.traceback);
        let error = session.execute("throw new Error('o'.repeat(1 << 20), { cause: new Error('inner') })").unwrap().error.unwrap();
        assert!(error.message.len() < 300 << 10);
    }
}

isolated! {
    fn errors_that_nobody_waits_for_leave_the_worker_alive() {
        let Some(mut session) = session() else { return };
        let code = "setTimeout(() => { throw new Error('from a timer') }); Promise.reject(new Error('unhandled')); \
                    process.nextTick(() => { throw new Error('from a tick') }); await new Promise((done) => setTimeout(done, 20)); 'fine'";
        let run = session.execute(code).unwrap();
        assert_eq!(run.value, "fine");
        for what in ["from a timer", "unhandled", "from a tick"] {
            assert!(run.stderr.contains(&format!("Uncaught Error: {what}")), "{}", run.stderr);
        }
        // After the request too.
        session.execute("setImmediate(() => { throw new Error('late') }); 1").unwrap();
        session.execute("process.removeAllListeners()").unwrap();
        assert_eq!(value(&mut session, "Promise.reject(1); await new Promise((done) => setTimeout(done, 5)); 2"), 2);
    }
}

isolated! {
    fn process_exit_ends_the_execution_and_not_the_worker() {
        let Some(mut session) = session() else { return };
        for (code, status) in [("process.exit(3)", 3), ("process.exit()", 0), ("setTimeout(() => process.exit(4)); await new Promise(() => {})", 4)] {
            let run = session.execute(code).unwrap();
            let error = run.error.unwrap();
            assert_eq!((run.outcome, error.kind.as_str(), error.exit_code), (Outcome::Failed, "ProcessExit", Some(status)), "{code}");
        }
        assert_eq!(value(&mut session, "1 + 1"), 2);
    }
}

isolated! {
    fn functions_are_called_by_module_and_by_name() {
        let Some(mut session) = session() else { return };
        let run = session.execute(Call::new("path:posix.join").arg("a").arg("b")).unwrap();
        assert_eq!(run.value, "a/b");
        session.execute("const add = async (a, b, { scale = 1 } = {}) => (a + b) * scale; const box = { n: 5, get() { return this.n } }; require('fs').writeFileSync('esm.mjs', 'export const twice = (x) => 2 * x')").unwrap();
        assert_eq!(session.execute(Call::new("__main__:add").arg(1).arg(2).kwarg("scale", 10)).unwrap().value, 30);
        assert_eq!(session.execute(Call::new("add").arg(1).arg(2)).unwrap().value, 3);
        assert_eq!(session.execute(Call::new("box.get")).unwrap().value, 5, "this is the object");
        assert_eq!(session.execute(Call::new("./esm.mjs:twice").arg(21)).unwrap().value, 42);
        for name in ["fs:nothing", "no-such-module:f", "nowhere", "box.n", "a b", "fs:"] {
            assert_eq!(session.execute(Call::new(name)).unwrap().outcome, Outcome::Failed, "{name}");
        }
    }
}

isolated! {
    fn attachments_go_both_ways() {
        let Some(mut session) = session() else { return };
        let data: Vec<u8> = (0..=255).collect();
        let run = session.execute(Request::code("remuda.attach('copy', remuda.attachments.blob); remuda.attachments.blob.length").attach("blob", data.clone())).unwrap();
        assert_eq!((run.value, &run.attachments[0].name, &run.attachments[0].data), (json!(256), &"copy".to_owned(), &data));
        session.execute("const size = (options) => options.attachments.blob.length + options.more").unwrap();
        let call: Request<'_> = Call::new("size").kwarg("more", 1).into();
        assert_eq!(session.execute(call.attach("blob", data)).unwrap().value, 257);
        assert_eq!(value(&mut session, "Object.keys(remuda.attachments)"), json!([]), "they are those of one request");
    }
}

isolated! {
    fn displays_and_progress_arrive_in_order() {
        let Some(mut session) = session() else { return };
        let mut fractions = Vec::new();
        let code = "remuda.progress(0.5, 'half'); remuda.display({'text/html': '<b>é</b>', 'image/png': Buffer.from([1, 2])}); \
                    remuda.display([1]); remuda.progress(1); ({ [Symbol.for('remuda.display')]: () => ({ 'text/markdown': '# t' }) })";
        let run = session.execute(Request::code(code).on_progress(|step| fractions.push((step.fraction, step.message.clone())))).unwrap();
        assert_eq!(fractions, [(Some(0.5), Some("half".to_owned())), (Some(1.0), None)]);
        assert_eq!(run.displays.len(), 3);
        assert_eq!((run.displays[0].text("text/html"), run.displays[0].get("image/png")), (Some("<b>é</b>"), Some(&[1, 2][..])));
        assert_eq!((run.displays[1].text("text/plain"), run.displays[1].is_result), (Some("[ 1 ]"), false));
        assert_eq!((run.displays[2].text("text/markdown"), run.displays[2].is_result), (Some("# t"), true));
    }
}

isolated! {
    fn input_is_asked_for_with_and_without_waiting_for_the_event_loop() {
        let Some(mut session) = session() else { return };
        let code = "const answers = await Promise.all([remuda.input('first? '), remuda.input('second? ')]); [...answers, remuda.inputSync('third? ', { secret: true })]";
        let mut asked = Vec::new();
        let request = Request::code(code).on_input(|prompt| {
            asked.push((prompt.text().to_owned(), prompt.is_secret()));
            let line = format!("line {}", asked.len());
            prompt.answer(line);
        });
        assert_eq!(session.execute(request).unwrap().value, json!(["line 1", "line 2", "line 3"]));
        assert_eq!(asked, [("first? ".to_owned(), false), ("second? ".to_owned(), false), ("third? ".to_owned(), true)]);
        let ended = session.execute(Request::code("[await remuda.input(), remuda.inputSync()]").on_input(remuda::Prompt::end)).unwrap();
        assert_eq!(ended.value, json!([null, null]));
        assert_eq!(value(&mut session, "[await remuda.input(), remuda.inputSync()]"), json!([null, null]), "nobody answers");
        let mut kept = Vec::new();
        let request = Request::code("await remuda.input()").on_input(|prompt| kept.push(prompt)).input_timeout(Duration::from_millis(20));
        let late = session.execute(request).unwrap();
        assert_eq!(late.error.unwrap().message, "nobody answered in time");
    }
}

isolated! {
    fn a_running_execution_is_an_iterator_of_its_events() {
        let Some(mut session) = session() else { return };
        let mut running = session.begin("console.log('a'); remuda.progress(0.1); 3").unwrap();
        let seen: Vec<&str> = running
            .by_ref()
            .map(|event| match event {
                Event::Output(..) => "output",
                Event::Progress(..) => "progress",
                _ => "other",
            })
            .collect();
        assert_eq!(seen, ["output", "progress"]);
        assert_eq!(running.finish().unwrap().value, 3);
        let run = session.execute(Request::code("let n = 0; for (let i = 0; i < 1e7; i++) n += i; 1").measure(true)).unwrap();
        assert!(run.usage.unwrap().cpu_time > Duration::ZERO);
    }
}

isolated! {
    fn scripts_see_their_file_and_arguments() {
        let Some(mut session) = session() else { return };
        let code = "#!/usr/bin/env node\nconsole.log(process.argv.slice(2).join(), require('path').basename(__filename)); 5";
        let run = session.execute(Request::script(code, "some dir/tool.js", ["x".to_owned(), "y z".to_owned()])).unwrap();
        assert_eq!((run.stdout.as_str(), run.value), ("x,y z tool.js\n", Value::Null));
    }
}

isolated! {
    fn a_missing_node_says_what_to_do() {
        for name in ["/nowhere/node", "no-such-node"] {
            match SessionConfig::new(Runtime::node(name)).start() {
                Err(Error::Runtime { reason, .. }) => assert!(reason.contains("there is no such program"), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

isolated! {
    fn node_variables_of_the_host_reach_it_only_if_they_are_wanted() {
        let Some(config) = config() else { return };
        // Set for this process alone: the test runs in its own, see the parent branch of `isolated`.
        if std::env::var_os("NODE_REMUDA_PROBE").is_none() {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "node_basics::node_variables_of_the_host_reach_it_only_if_they_are_wanted", "--nocapture"])
                .env("NODE_REMUDA_PROBE", "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let code = "process.env.NODE_REMUDA_PROBE ?? null";
        for (config, expected) in [
            (config.clone(), Value::Null),
            (config.inherit_env(true), Value::Null),
            (SessionConfig::new(Runtime::node("node").with_user_environment()).inherit_env(true), json!("1")),
        ] {
            assert_eq!(value(&mut config.start().unwrap(), code), expected);
        }
    }
}
