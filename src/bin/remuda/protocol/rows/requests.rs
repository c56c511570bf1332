//! Requests and their answers: values, errors, calls, output.

use remuda::protocol::{Kind, flag};
use serde_json::json;

use super::Row;
use crate::protocol::dialect::Words;
use crate::protocol::driver::{Driver, Subject};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("ping: answered with pong", ping),
    ("execute: a value", value),
    ("execute: no value, a byte string, a value without JSON", forms),
    ("execute: an error, and the next request is fine", error),
    ("execute: output comes before the result and in order", output),
    ("execute: output of a child process breaks no frame", child_output),
    ("call: a function with arguments", call),
    ("call: an error when there is no such function", unknown_function),
];

/// Lines that [`output`] has written to each stream: more than a pipe holds.
const LINES: usize = 20_000;

fn ping(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.ping()?;
    driver.ping()
}

fn value(subject: &Subject) -> Checked {
    let mut driver = executing(subject)?;
    driver.run_small()?;
    driver.run_small()?;
    driver.ping()
}

fn forms(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let answer = driver.run(words.defines)?.frame;
    expect((answer.kind, answer.flags) == (Kind::Result, 0), "a result without a value", || answer.tell())?;
    let answer = driver.run(words.bytes)?.frame;
    let flags = flag::HAS_VALUE | flag::IS_BYTES;
    expect((answer.kind, answer.flags) == (Kind::Result, flags), "a byte string", || answer.tell())?;
    expect(answer.first == [0, 1, 255], "the bytes 0, 1 and 255", || answer.tell())?;
    let answer = driver.run(words.odd)?.frame;
    let flags = flag::HAS_VALUE | flag::NOT_JSON;
    expect((answer.kind, answer.flags) == (Kind::Result, flags), "a value without JSON", || answer.tell())?;
    expect(!answer.second.is_empty(), "its repr", || answer.tell())
}

fn error(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let (code, kind, message) = words.raises;
    for _ in 0..2 {
        let error = driver.run(code)?.error()?;
        expect(error["type"] == kind && error["message"] == message, &format!("{kind}: {message}"), || {
            error.to_string()
        })?;
        let trace = error["traceback"].as_str().unwrap_or_default();
        expect(trace.contains(message), "a traceback that ends with the message", || trace.to_owned())?;
        driver.run_small()?;
    }
    driver.ping()
}

fn output(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let answer = driver.run(&words.lines.replace('N', &LINES.to_string()))?;
    answer.is(&"done".into())?;
    let expected: String = (0..LINES).flat_map(|line| [line.to_string(), "\n".to_owned()]).collect();
    for (name, bytes) in [("stdout", &answer.stdout), ("stderr", &answer.stderr)] {
        expect(*bytes == expected.as_bytes(), &format!("every line on {name} before the result"), || {
            let same = bytes.iter().zip(expected.as_bytes()).take_while(|(a, b)| a == b).count();
            let rest = String::from_utf8_lossy(&bytes[same..bytes.len().min(same + 40)]).into_owned();
            format!("{} of {} bytes, {same} as they should be, then {rest:?}", bytes.len(), expected.len())
        })?;
    }
    driver.run_small()
}

fn child_output(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let answer = driver.run(words.child_writes)?;
    answer.is(&0.into())?;
    // With stdio a child's output may go to stderr, or travel as *output*; among the frames it must not.
    let heard = [answer.stdout, answer.stderr].concat();
    expect(heard == b"child\n", "the child's line", || String::from_utf8_lossy(&heard).into_owned())?;
    driver.run_small()
}

fn call(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.needs("call")?;
    let calls = driver.dialect.call.clone();
    if calls.is_empty() {
        return Err(Miss::skipped(
            "this program does not know the worker's functions; give --call FUNCTION=ARGS=JSON",
        ));
    }
    for (function, args, value) in calls {
        let body = json!({ "function": function, "args": args, "kwargs": {} }).to_string();
        let request = driver.next_request();
        driver.send(Kind::Call, 0, request, b"", body.as_bytes());
        driver.answer(request)?.is(&value)?;
    }
    driver.ping()
}

fn unknown_function(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.needs("call")?;
    let body = json!({ "function": "no_such_module:no_such_function", "args": [], "kwargs": {} }).to_string();
    let request = driver.next_request();
    driver.send(Kind::Call, 0, request, b"", body.as_bytes());
    driver.answer(request)?.error()?;
    driver.ping()
}

/// A worker that runs code.
pub(super) fn executing(subject: &Subject) -> Checked<Driver> {
    let driver = subject.start()?;
    driver.needs("execute")?;
    driver.dialect.small(0)?;
    Ok(driver)
}

/// A worker that runs code in a language that this program knows.
pub(super) fn speaking(subject: &Subject) -> Checked<(Driver, &'static Words)> {
    let driver = subject.start()?;
    driver.needs("execute")?;
    let words = driver.dialect.words()?;
    Ok((driver, words))
}
