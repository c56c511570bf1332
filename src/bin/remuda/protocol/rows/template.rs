//! Templates: a worker that makes workers.

use remuda::Channels;
use remuda::protocol::{self, Kind};

use super::Row;
use crate::protocol::channels::Ends;
use crate::protocol::driver::{Driver, Subject, encode};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("template: a frozen worker answers pings and runs nothing", runs_nothing),
    ("template: a frozen worker leaves when it is asked to", leaves),
    ("template: each fork is a worker with channels of its own", forks),
    ("template: a worker that makes one copy goes on, and so does the copy", branches),
    ("template: what a fork needs and does not get is an error", incomplete),
];

/// A worker that has become a template.
fn frozen(subject: &Subject) -> Checked<Driver> {
    if subject.channels != Channels::Pipes {
        return Err(Miss::skipped("only with pipes"));
    }
    let mut driver = subject.start()?;
    driver.needs("fork")?;
    let report = driver.ask(Kind::Freeze, b"", b"", Kind::Frozen)?.json()?;
    expect(report["obstacles"] == serde_json::json!([]), "no obstacles in a new worker", || {
        report.to_string()
    })?;
    Ok(driver)
}

fn runs_nothing(subject: &Subject) -> Checked {
    let mut driver = frozen(subject)?;
    driver.ping()?;
    let (code, _) = driver.dialect.small(0)?;
    let request = driver.begin(0, &code);
    let frame = driver.answer(request)?.frame;
    expect(frame.kind == Kind::Error, "an error", || frame.tell())?;
    driver.ping()
}

fn leaves(subject: &Subject) -> Checked {
    let mut driver = frozen(subject)?;
    let request = driver.next_request();
    driver.send(Kind::Shutdown, 0, request, b"", b"");
    let gone = driver.is_gone_by(driver.deadline);
    expect(gone && driver.child.exit_code() == Some(0), "exit code 0", || driver.child.end())
}

fn forks(subject: &Subject) -> Checked {
    let mut driver = frozen(subject)?;
    for number in 1..=2 {
        fork(&mut driver, number)?;
    }
    driver.ping()
}

/// Has it make a worker that works, and lets that go.
fn fork(driver: &mut Driver, number: u64) -> Checked {
    let failed = |error: rustix::io::Errno| Miss::failed("channels", error.to_string());
    let (mut ends, of_child) = Ends::open(driver.channels, false).map_err(failed)?;
    let numbers = protocol::go_numbers(number, driver.cap, 32);
    driver.ends.fork(&encode(Kind::Fork, 0, number, &numbers, b"/"), &mut ends, of_child);
    // From here on its host is talking to the child.
    let (parent, requests) = (std::mem::replace(&mut driver.ends, ends), driver.request);
    let ready = driver.frame("ready of the new worker")?;
    expect((ready.kind, ready.request) == (Kind::Ready, 0), "ready of the new worker", || ready.tell())?;
    driver.request = 0;
    driver.run_small()?;
    driver.ping()?;
    (driver.ends, driver.request) = (parent, requests);
    driver.ends.control().send(&encode(Kind::Reap, 0, number, b"", b""));
    Ok(())
}

fn branches(subject: &Subject) -> Checked {
    if subject.channels != Channels::Pipes {
        return Err(Miss::skipped("only with pipes"));
    }
    let mut driver = subject.start()?;
    driver.needs("branch")?;
    for number in 1..=2 {
        driver.run_small()?;
        let request = driver.next_request();
        driver.send(Kind::Freeze, 1, request, b"", b"");
        let report = driver.answer(request)?.frame;
        let free = report.kind == Kind::Frozen && report.json()?["obstacles"] == serde_json::json!([]);
        expect(free, "frozen without obstacles in a new worker", || report.tell())?;
        fork(&mut driver, number)?;
    }
    driver.run_small()?;
    driver.ping()
}

/// Without descriptors; and the next one goes well.
fn incomplete(subject: &Subject) -> Checked {
    let mut driver = frozen(subject)?;
    driver.ends.control().send(&encode(Kind::Fork, 0, 1, b"", b"/"));
    driver.ping()
}
