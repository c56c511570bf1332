//! *go* and *ready*.

use remuda::Channels;

use super::Row;
use crate::protocol::driver::{Opening, Subject};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("start: go is answered with ready", is_ready),
    ("start: what is announced is enough", is_enough),
    ("start: numbers of go that nobody knows are ignored", more_numbers),
    ("start: fds 0 and 1 may be one socket", one_socket),
    ("start: go may come byte by byte", byte_by_byte),
];

fn is_ready(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    if let Some(ready) = &driver.ready_frame {
        ready.check()?;
    }
    driver.ping()
}

fn is_enough(subject: &Subject) -> Checked {
    let driver = subject.start()?;
    let runs = driver.has("execute") || driver.has("call");
    expect(runs, "`execute` or `call` among the features", || driver.ready["features"].to_string())
}

fn more_numbers(subject: &Subject) -> Checked {
    subject.open(&Opening { more_numbers: true, ..Opening::default() })?.ping()
}

fn one_socket(subject: &Subject) -> Checked {
    only_stdio(subject)?;
    subject.open(&Opening { one_socket: true, ..Opening::default() })?.ping()
}

fn byte_by_byte(subject: &Subject) -> Checked {
    only_stdio(subject)?;
    subject.open(&Opening { byte_by_byte: true, ..Opening::default() })?.ping()
}

fn only_stdio(subject: &Subject) -> Checked {
    if subject.channels == Channels::Stdio { Ok(()) } else { Err(Miss::skipped("only with stdio")) }
}
