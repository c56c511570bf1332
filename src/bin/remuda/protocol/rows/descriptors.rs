//! What user code and its children see of the channels: nothing.

use std::thread;
use std::time::{Duration, Instant};

use super::Row;
use super::requests::speaking;
use crate::protocol::driver::Subject;
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("descriptors: a child inherits none of the channels", inherited),
    ("descriptors: fd 0 of user code is empty", empty_stdin),
    ("descriptors: the host hears the end although a child lives", end_is_heard),
];

fn inherited(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let found = driver.run(&words.inherited())?.value()?;
    let channels: Vec<_> = found
        .as_array()
        .ok_or_else(|| Miss::failed("a list", found.to_string()))?
        .iter()
        .filter_map(|entry| entry.as_str())
        .filter(|entry| ["socket:", "pipe:", "/memfd:"].iter().any(|kind| entry.starts_with(kind)))
        .collect();
    expect(channels.is_empty(), "no socket, pipe or memory file above fd 2 in a child", || {
        channels.join(", ")
    })?;
    driver.ping()
}

fn empty_stdin(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    driver.run(words.stdin)?.is(&0.into())?;
    driver.run_small()
}

/// A child that held the reply channel would keep it open.
fn end_is_heard(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let child = driver.run(words.child)?.value()?;
    let worker = driver.ready["pid"].as_u64();
    expect(child.as_u64().is_some_and(|child| Some(child) != worker), "the number of a child", || {
        child.to_string()
    })?;
    driver.child.kill_alone();
    let until = driver.deadline;
    while driver.ends.replies.is_open() {
        if Instant::now() >= until {
            return Err(Miss::failed(
                "the end of the replies when the worker has ended",
                "a child holds them",
            ));
        }
        driver.ends.pump(Duration::from_millis(10));
        thread::yield_now();
    }
    Ok(())
}
