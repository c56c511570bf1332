//! The end: asked for, or because the host is gone.

use std::time::Instant;

use remuda::protocol::Kind;

use super::Row;
use super::requests::speaking;
use crate::protocol::driver::{Driver, Opening, Subject};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("end: shutdown ends the worker with code 0", shutdown),
    ("end: shutdown after work", shutdown_after_work),
    ("end: the end of input while idle", idle),
    ("end: the end of input while idle takes the children along", idle_with_child),
    ("end: the end of input while code runs takes all along", busy),
    ("end: the end of input before go", before_go),
];

fn shutdown(subject: &Subject) -> Checked {
    leaves(subject.start()?)
}

fn shutdown_after_work(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    if driver.has("execute") && driver.dialect.small(0).is_ok() {
        driver.run_small()?;
    }
    driver.ping()?;
    leaves(driver)
}

fn leaves(mut driver: Driver) -> Checked {
    let request = driver.next_request();
    driver.send(Kind::Shutdown, 0, request, b"", b"");
    let gone = driver.is_gone_by(driver.deadline);
    expect(gone, "the end of the worker in time", || driver.child.end())?;
    expect(driver.child.exit_code() == Some(0), "exit code 0", || driver.child.end())?;
    match driver.frame_by(Instant::now(), "no answer to shutdown")? {
        Some(frame) if !frame.kind.is_event() => Err(Miss::failed("no answer to shutdown", frame.tell())),
        _ => Ok(()),
    }
}

fn idle(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.ping()?;
    host_is_gone(subject, &mut driver)
}

fn idle_with_child(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.run(words.child)?.value()?;
    host_is_gone(subject, &mut driver)
}

fn busy(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let request = driver.begin(0, words.child_and_busy);
    driver.await_word(request)?;
    host_is_gone(subject, &mut driver)
}

fn host_is_gone(subject: &Subject, driver: &mut Driver) -> Checked {
    let limit = subject.timeout / 10;
    driver.hang_up();
    let gone = driver.is_gone_by(Instant::now() + limit);
    expect(gone, &format!("its process group gone within {limit:?}"), || {
        format!("{}; alive in its group: {:?}", driver.child.end(), driver.child.group())
    })
}

fn before_go(subject: &Subject) -> Checked {
    let mut driver = subject.spawn(&Opening::default())?;
    driver.hang_up();
    let gone = driver.is_gone_by(driver.deadline);
    expect(gone, "the end of a worker that nobody ever told to go", || driver.child.end())
}
