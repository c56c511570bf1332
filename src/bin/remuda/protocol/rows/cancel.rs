//! *cancel*: it stops its own request, and never another one.

use remuda::protocol::Kind;

use super::Row;
use super::requests::{executing, speaking};
use crate::protocol::driver::Subject;
use crate::protocol::report::{Checked, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("cancel: while the code runs", running),
    ("cancel: before the request is read", early),
    ("cancel: after the answer", late),
    ("cancel: again and again", repeated),
    ("cancel: an unknown request", unknown),
    ("cancel: code that polls is asked once, and ends in its own way", polled),
    ("cancel: request 2^63", large_number),
];

/// Steps that [`repeated`] goes on for after it was interrupted.
const STEPS: &str = "300000";

fn running(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.needs("interrupt")?;
    for _ in 0..3 {
        let request = driver.begin(0, words.busy);
        driver.await_word(request)?;
        let answer = driver.cancelled(request, 0)?;
        let stopped = answer.frame.kind == Kind::Error && answer.is_stopped();
        expect(stopped, "an error with flag 16", || answer.frame.tell())?;
        driver.run_small()?;
    }
    driver.ping()
}

fn early(subject: &Subject) -> Checked {
    let mut driver = executing(subject)?;
    let interrupts = driver.has("interrupt");
    let code = match driver.dialect.words() {
        // It would run for ever.
        Ok(words) if interrupts => words.busy.to_owned(),
        _ => driver.dialect.small(1)?.0,
    };
    for _ in 0..3 {
        let request = driver.request + 1;
        driver.cancel(request, 0);
        driver.begin(0, &code);
        let answer = driver.answer(request)?;
        if interrupts {
            let stopped = answer.frame.kind == Kind::Error && answer.is_stopped();
            expect(stopped, "an error with flag 16", || answer.frame.tell())?;
        }
        driver.run_small()?;
    }
    driver.ping()
}

fn late(subject: &Subject) -> Checked {
    let mut driver = executing(subject)?;
    for _ in 0..50 {
        driver.run_small()?;
        driver.cancel(driver.request, 0);
        driver.run_small()?;
        driver.cancel(driver.request, 1);
    }
    driver.ping()
}

fn repeated(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.needs("interrupt")?;
    let code = words.swallows.unwrap_or(words.busy).replace('N', STEPS);
    let request = driver.begin(0, &code);
    driver.await_word(request)?;
    for _ in 0..20 {
        driver.cancel(request, 0);
    }
    let answer = driver.cancelled(request, 1)?;
    expect(answer.is_stopped(), "an answer with flag 16", || answer.frame.tell())?;
    if words.swallows.is_some() {
        // At most once by exception: the code that swallowed it goes on to its end.
        answer.is(&"went on".into())?;
    }
    for _ in 0..20 {
        driver.cancel(request, 1);
        driver.run_small()?;
    }
    driver.ping()
}

fn unknown(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.cancel(0, 0);
    driver.cancel(u64::MAX, 1);
    driver.ping()?;
    if driver.has("execute") && driver.dialect.small(0).is_ok() {
        driver.run_small()?;
        driver.cancel(driver.request + 1_000_000, 0);
        driver.run_small()?;
    }
    driver.ping()
}

fn polled(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.needs("interrupt")?;
    for _ in 0..3 {
        let request = driver.begin(0, words.polls);
        driver.await_word(request)?;
        let answer = driver.cancelled(request, 0)?;
        expect(answer.is_stopped(), "an answer with flag 16", || answer.frame.tell())?;
        answer.is(&"seen".into())?;
        driver.run_small()?;
    }
    driver.ping()
}

fn large_number(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.needs("interrupt")?;
    driver.request = (1 << 63) - 1;
    let request = driver.begin(0, words.busy);
    driver.await_word(request)?;
    let answer = driver.cancelled(request, 0)?;
    expect(answer.is_stopped(), "an answer with flag 16", || answer.frame.tell())?;
    driver.cancel(request, 1);
    driver.run_small()?;
    driver.ping()
}
