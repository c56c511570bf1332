//! *warm*, *reset*, *inspect*: the state that a worker keeps.

use remuda::protocol::{Kind, flag};
use serde_json::{Value, json};

use super::Row;
use super::requests::speaking;
use crate::protocol::dialect::Words;
use crate::protocol::driver::{Driver, Subject};
use crate::protocol::report::{Checked, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("warm: nothing to do", warm_nothing),
    ("warm: modules and code, and a line for each module", warm),
    ("warm: a module that is not there is a line, not an error", missing_module),
    ("warm: code that raises is an error", warm_raises),
    ("reset: answered with clean", reset_nothing),
    ("reset: the state is gone, the warm state is not", reset),
    ("reset: a request behind it runs in a clean worker", reset_and_request),
    ("inspect: names", names),
    ("inspect: what differs from the warm state", fingerprint),
];

const MISSING: &str = "no_such_module_of_anyone";

/// A worker that announces `feature` and whose language is known.
fn with(subject: &Subject, feature: &str) -> Checked<(Driver, &'static Words)> {
    subject.start()?.needs(feature)?;
    speaking(subject)
}

fn warm_nothing(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.needs("warm")?;
    let report = driver.ask(Kind::Warm, b"[]", b"", Kind::Warmed)?.json()?;
    expect(report == json!([]), "an empty report", || report.to_string())?;
    driver.ping()
}

fn warm(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "warm")?;
    let modules = json!([words.module]).to_string();
    let report =
        driver.ask(Kind::Warm, modules.as_bytes(), words.defines.as_bytes(), Kind::Warmed)?.json()?;
    let is_line = report[0]["module"] == words.module && report[0]["error"].is_null();
    expect(
        is_line && report.as_array().is_some_and(|lines| lines.len() == 1),
        "one line without error",
        || report.to_string(),
    )?;
    driver.run(words.reads)?.is(&41.into())?;
    driver.ping()
}

fn missing_module(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "warm")?;
    let modules = json!([MISSING, words.module]).to_string();
    let report = driver.ask(Kind::Warm, modules.as_bytes(), b"", Kind::Warmed)?.json()?;
    let right = report[0]["module"] == MISSING
        && report[0]["error"].is_string()
        && report[1]["module"] == words.module
        && report[1]["error"].is_null();
    expect(right, "a line with an error and one without", || report.to_string())?;
    driver.run_small()
}

fn warm_raises(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "warm")?;
    let (code, kind, _) = words.raises;
    let error = driver.ask(Kind::Warm, b"[]", code.as_bytes(), Kind::Error)?.json()?;
    expect(error["type"] == kind, kind, || error.to_string())?;
    driver.run_small()
}

fn reset_nothing(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.needs("reset")?;
    for _ in 0..2 {
        let reasons = driver.ask(Kind::Reset, b"", b"", Kind::Clean)?.json()?;
        expect(reasons == json!([]), "nothing that could not be undone", || reasons.to_string())?;
    }
    driver.ping()
}

fn reset(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "reset")?;
    let warm = driver.has("warm");
    if warm {
        driver.ask(Kind::Warm, b"[]", words.defines.as_bytes(), Kind::Warmed)?;
    }
    driver.run(&words.defines.replace("leftover", "other"))?;
    driver.run(&words.reads.replace("leftover", "other"))?.is(&41.into())?;
    driver.ask(Kind::Reset, b"", b"", Kind::Clean)?;
    driver.run(&words.reads.replace("leftover", "other"))?.error()?;
    if warm {
        driver.run(words.reads)?.is(&41.into())?;
    }
    driver.run_small()
}

fn reset_and_request(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "only_if_clean")?;
    driver.run(words.defines)?;
    let reset = driver.next_request();
    driver.send(Kind::Reset, flag::REQUEST_FOLLOWS | flag::REQUEST_IS_HERE, reset, b"", b"");
    let request = driver.begin(flag::ONLY_IF_CLEAN, words.reads);
    let clean = driver.next(reset)?;
    expect(clean.kind == Kind::Clean, "clean", || clean.tell())?;
    driver.answer(request)?.error()?;
    driver.run_small()
}

fn names(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "inspect")?;
    let warm = driver.has("warm");
    if warm {
        driver.ask(Kind::Warm, b"[]", words.defines.as_bytes(), Kind::Warmed)?;
    }
    driver.run(&words.defines.replace("leftover", "other"))?;
    let names = inspect(&mut driver, "names")?;
    let rows = names.as_array().cloned().unwrap_or_default();
    let formed = names.is_array()
        && rows.iter().all(|row| {
            row["name"].is_string()
                && row["type"].is_string()
                && (row["size"].is_null() || row["size"].is_u64())
                && row["warm"].is_boolean()
        });
    expect(formed, "a list of name, type, size and warm", || names.to_string())?;
    let has = |name: &str, warm: bool| rows.iter().any(|row| row["name"] == name && row["warm"] == warm);
    expect(has("other", false), "`other`, which is not warm", || names.to_string())?;
    expect(!warm || has("leftover", true), "`leftover`, which is warm", || names.to_string())?;
    driver.ping()
}

fn fingerprint(subject: &Subject) -> Checked {
    let (mut driver, words) = with(subject, "inspect")?;
    if driver.has("warm") {
        driver.ask(Kind::Warm, b"[]", b"", Kind::Warmed)?;
    }
    let clean = inspect(&mut driver, "fingerprint")?;
    check_fingerprint(&clean)?;
    expect(clean["globals"] == json!([]) && clean["cwd"].is_null(), "no difference at first", || {
        clean.to_string()
    })?;
    driver.run(words.defines)?;
    driver.run(words.wanders)?;
    let left = inspect(&mut driver, "fingerprint")?;
    check_fingerprint(&left)?;
    let lists = |name: &str, entry: &str| {
        left[name].as_array().into_iter().flatten().filter_map(Value::as_str).any(|text| text.contains(entry))
    };
    expect(lists("globals", "leftover"), "`leftover` among the globals", || left.to_string())?;
    expect(lists("environment", "REMUDA_CHECK"), "the variable that was set", || left.to_string())?;
    expect(left["cwd"] == "/", "the working directory /", || left.to_string())?;
    if driver.has("reset") {
        driver.ask(Kind::Reset, b"", b"", Kind::Clean)?;
        let again = inspect(&mut driver, "fingerprint")?;
        let same =
            again["globals"] == json!([]) && again["environment"] == json!([]) && again["cwd"].is_null();
        expect(same, "no difference after a reset", || again.to_string())?;
    }
    driver.ping()
}

fn inspect(driver: &mut Driver, what: &str) -> Checked<Value> {
    let first = json!({ "what": what }).to_string();
    driver.ask(Kind::Inspect, first.as_bytes(), b"", Kind::Inspected)?.json()
}

fn check_fingerprint(found: &Value) -> Checked {
    let list = |name: &str| found[name].as_array().is_some_and(|list| list.iter().all(Value::is_string));
    let right = ["globals", "modules", "environment", "fds"].into_iter().all(list)
        && (found["cwd"].is_null() || found["cwd"].is_string())
        && found["threads"].is_u64()
        && found["children"].is_u64();
    expect(right, "lists of globals, modules, environment and fds; cwd, threads, children", || {
        found.to_string()
    })
}
