//! `remuda protocol check` from outside: our workers pass it, broken ones do not.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cli_run::{outcome, remuda};
use crate::hostile_worker::PRELUDE;
use crate::support::{ScratchDir, isolated};

/// Exit status, stdout, stderr.
fn check(dir: &ScratchDir, args: &[&str]) -> (Option<i32>, String, String) {
    outcome(remuda(dir.path(), &[&["protocol", "check"], args].concat()).output().unwrap())
}

/// Status and rows by name.
fn rows(dir: &ScratchDir, args: &[&str]) -> (Option<i32>, BTreeMap<String, Value>) {
    let (status, stdout, stderr) = check(dir, &[&["--json"], args].concat());
    assert_eq!(stderr, "");
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["row"].as_str().unwrap().to_owned(), row)
    };
    (status, stdout.lines().map(row).collect())
}

fn with<'a>(rows: &'a BTreeMap<String, Value>, status: &str) -> Vec<&'a Value> {
    rows.values().filter(|row| row["status"] == status).collect()
}

/// Every row passes, but those that `skipped` says.
fn passes(args: &[&str], skipped: &[&str]) {
    let dir = ScratchDir::new();
    let (status, rows) = rows(&dir, &[&["--timeout", "60"], args].concat());
    assert_eq!(with(&rows, "failed"), Vec::<&Value>::new(), "{args:?}");
    assert_eq!(status, Some(0));
    assert!(rows.len() > 60, "{} rows", rows.len());
    let found: Vec<_> = with(&rows, "skipped").iter().map(|row| row["reason"].as_str().unwrap()).collect();
    assert!(found.iter().all(|reason| skipped.contains(reason)), "{args:?}: {found:?}");
}

const NOT_BEHIND_A_RESET: &str = "`only_if_clean` is not announced";

isolated! {
    fn the_python_worker_passes_with_pipes() {
        passes(&["--python", "python3"], &["only with stdio"]);
    }
}

isolated! {
    fn the_python_worker_passes_with_stdio() {
        passes(&["--python", "python3", "--stdio"], &["only with pipes", NOT_BEHIND_A_RESET]);
    }
}

isolated! {
    fn the_node_worker_passes() {
        passes(&["--node", "node"], &["only with pipes", NOT_BEHIND_A_RESET]);
    }
}

/// The rows of a worker that runs this script after *go*.
fn check_script(script: &str, args: &[&str]) -> (Option<i32>, BTreeMap<String, Value>) {
    let dir = ScratchDir::new();
    let code = [PRELUDE, script].concat();
    rows(&dir, &[args, &["--timeout", "10", "--", "python3", "-I", "-S", "-c", &code]].concat())
}

/// Serves what a worker must be able to do at least, but for what `change` takes over.
const LEAST: &str = "
ready()
def serve_least(change):
    while True:
        head = b''
        while len(head) < 16:
            more = os.read(0, 16 - len(head))
            if not more: os.kill(0, 9)
            head += more
        size, kind, flags, zero, number = struct.unpack('<IBBHQ', head)
        if zero or size > CAP or size < 4: os._exit(1)
        body = b''
        while len(body) < size:
            more = os.read(0, size - len(body))
            if not more: os.kill(0, 9)
            body += more
        if int.from_bytes(body[:4], 'little') > size - 4: os._exit(1)
        if change(kind, number, body[4:]): continue
        if kind == 5: send(23, number, b'{\"cpu_seconds\":0}') if flags & 2 else None; result(number, b'4')
        elif kind == 12: send(13, number)
        elif kind == 14: os._exit(0)
        elif kind != 9: os._exit(1)
";

isolated! {
    fn a_worker_in_an_unknown_language_passes_with_the_code_that_is_given() {
        let script = format!("{LEAST}\nserve_least(lambda *request: False)");
        let (status, found) = check_script(&script, &["--execute", "2 + 2=4"]);
        assert_eq!(with(&found, "failed"), Vec::<&Value>::new());
        assert_eq!(status, Some(0));
        let passed: Vec<_> = with(&found, "ok").iter().map(|row| row["row"].as_str().unwrap()).collect();
        for row in ["execute: a value", "frames: a thousand small requests", "cancel: after the answer"] {
            assert!(passed.contains(&row), "{row}: {passed:?}");
        }
        // Without it those rows are skipped, and say what to give.
        let (status, found) = check_script(&script, &[]);
        assert_eq!(status, Some(0));
        assert!(found["execute: a value"]["reason"].as_str().unwrap().contains("--execute"));
        assert_eq!(found["call: a function with arguments"]["reason"], "`call` is not announced");
    }
}

isolated! {
    fn each_fault_fails_its_row() {
        for (change, row, found) in [
            // Kind, number, and what it does instead.
            ("kind == 12 and (send(13, number + 1) or 1)", "ping: answered with pong", "request 2"),
            ("kind == 12 and (send(13, number, flags=4) or 1)", "ping: answered with pong", "flags 4"),
            ("kind == 12 and (raw(bytes([1, 2, 3, 4] * 8)) or 1)", "ping: answered with pong", "over the cap"),
            ("kind == 12 and (raw(frame(77, number)) or 1)", "ping: answered with pong", "unknown frame kind 77"),
            ("kind == 5 and (send(7, number, b'nan', b'nan', flags=3) or 1)", "execute: a value", "nan"),
            ("kind == 5 and (result(number, b'5') or 1)", "execute: a value", "5"),
            ("kind == 9 and (send(8, number) or 1)", "cancel: after the answer", "EOF"),
            ("kind == 31 and (send(13, number) or 1)", "garbage: an unknown kind", "Pong"),
            ("kind == 14 and os._exit(4)", "end: shutdown ends the worker with code 0", "code 4"),
            ("kind == 5 and (made_up(number) or 1)", "usage: processor time before the answer where it is asked for", "1e9"),
        ] {
            let script = format!(
                "{LEAST}\ndef made_up(number): send(23, number, b'{{\"cpu_seconds\":1e9}}'), result(number, b'4')\nserve_least(lambda kind, number, body: {change})"
            );
            let (status, rows) = check_script(&script, &["--execute", "2 + 2=4", "--row", row]);
            assert_eq!(status, Some(1), "{change}: {rows:?}");
            let failed = &rows[row];
            assert_eq!(failed["status"], "failed", "{failed}");
            assert!(failed["found"].as_str().unwrap().contains(found), "{change}: {failed}");
            assert!(!failed["expected"].as_str().unwrap().is_empty());
        }
    }
}

isolated! {
    fn a_worker_that_hangs_fails_in_time_and_is_gone() {
        let script = format!("{LEAST}\nif os.fork() == 0: hang()\nserve_least(lambda kind, number, body: kind == 12 and hang())");
        let dir = ScratchDir::new();
        let code = [PRELUDE, &script].concat();
        let (status, found) =
            rows(&dir, &["--timeout", "0.5", "--row", "ping", "--", "python3", "-I", "-S", "-c", &code]);
        assert_eq!(status, Some(1));
        assert!(found["ping: answered with pong"]["found"].as_str().unwrap().contains("nothing in time"), "{found:?}");
    }
}

isolated! {
    fn a_worker_that_lives_on_without_its_host_is_told() {
        let script = "ready()\nwhile True:\n    if not os.read(0, 100): hang()\n    raw(frame(13, 1))";
        let row = "end: the end of input while idle";
        let (status, found) = check_script(script, &["--row", row]);
        assert_eq!(status, Some(1));
        assert!(found[row]["found"].as_str().unwrap().contains("it lives"), "{found:?}");
    }
}

isolated! {
    fn the_small_worker_of_the_guide_passes() {
        let page = include_str!("../../docs/guide/writing-a-worker.md");
        let code = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
        let dir = ScratchDir::new();
        let args = ["--timeout", "60", "--call", "add=[1,2]=3", "--", "python3", "-I", "-S", "-c", code];
        let (status, found) = rows(&dir, &args);
        assert_eq!((status, with(&found, "failed")), (Some(0), Vec::<&Value>::new()));
        assert_eq!(found["call: a function with arguments"]["status"], "ok");
        assert!(with(&found, "ok").len() > 20, "{found:?}");
    }
}

isolated! {
    fn a_program_that_is_no_worker_fails_once_and_not_in_every_row() {
        let dir = ScratchDir::new();
        let (status, stdout, stderr) = check(&dir, &["--", "echo", "I am no worker, and never was one"]);
        assert_eq!((status, stderr.as_str()), (Some(1), ""));
        assert_eq!(stdout.matches("FAILED").count(), 1, "{stdout}");
        assert!(stdout.contains("bytes:    49 20 61 6d"), "{stdout}");
        assert!(stdout.contains("the worker does not start"), "{stdout}");
        assert!(stdout.lines().count() < 10, "{stdout}");
        let (status, stdout, stderr) = check(&dir, &["--", "no-such-worker"]);
        assert_eq!((status, stdout.as_str()), (Some(2), ""));
        assert!(stderr.contains("cannot start no-such-worker: No such file"), "{stderr}");
        let (status, _, stderr) = check(&dir, &["--row", "no such row", "--", "true"]);
        assert_eq!(status, Some(2));
        assert!(stderr.contains("no row has"), "{stderr}");
        let (status, _, stderr) = check(&dir, &["--python", "no-such-python"]);
        assert_eq!(status, Some(2));
        assert!(stderr.contains("no such program"), "{stderr}");
        let (status, _, stderr) = check(&dir, &["--wat"]);
        assert_eq!(status, Some(2));
        assert!(stderr.contains("remuda help protocol"), "{stderr}");
    }
}
