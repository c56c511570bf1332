//! Frames as a stream: large ones, many, numbers of any size, cut and joined.

use remuda::protocol::{Kind, flag};

use super::Row;
use super::requests::speaking;
use crate::protocol::driver::{Opening, Subject, encode};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("frames: a thousand small requests", many),
    ("frames: numbers far apart", numbers),
    ("frames: cut into single bytes", byte_by_byte),
    ("frames: several in one write", joined),
    ("frames: a body of just the cap", at_the_cap),
    ("frames: a value over the cap is reported by its size", over_the_cap),
    ("frames: 32 MiB each way", large),
];

/// A cap that is reached quickly.
const SMALL_CAP: usize = 1 << 20;
/// What a worker may keep of the cap for a value's repr.
const FOR_THE_REPR: usize = 128 << 10;

fn many(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    if driver.has("execute") && driver.dialect.small(0).is_ok() {
        for _ in 0..1000 {
            driver.run_small()?;
        }
    }
    for _ in 0..1000 {
        driver.ping()?;
    }
    Ok(())
}

fn numbers(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    let runs = driver.has("execute") && driver.dialect.small(0).is_ok();
    // 2^53 + 1 is no double; 2^63 is no signed number of 64 bits.
    for number in [5, 1_000_000, (1 << 32) + 1, (1 << 53) + 1, 1 << 63, u64::MAX - 1] {
        driver.send(Kind::Ping, 0, number, b"", b"");
        driver.pong(number)?;
        if runs {
            driver.run_small_as(number + 1)?;
        }
    }
    Ok(())
}

fn byte_by_byte(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.send_byte_by_byte(&encode(Kind::Ping, 0, 1, b"", b""))?;
    driver.pong(1)?;
    if driver.has("execute")
        && let Ok((code, value)) = driver.dialect.small(2)
    {
        driver.send_byte_by_byte(&encode(Kind::Execute, 0, 2, b"", code.as_bytes()))?;
        driver.answer(2)?.is(&value)?;
    }
    Ok(())
}

/// Frames that a host may send without waiting in between: a cancel that is too late (with stdio),
/// a reply that nobody waits for, attachments; each with a request behind it.
fn joined(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    let stdio = subject.channels == remuda::Channels::Stdio;
    let mut bytes = Vec::new();
    for attempt in 0..2 {
        if stdio {
            bytes.extend(encode(Kind::Cancel, attempt, 1, b"", b""));
        }
        if driver.has("input") {
            bytes.extend(encode(Kind::InputReply, 0, 1, b"", b"stale"));
        }
    }
    driver.ping()?;
    let request = driver.next_request();
    if driver.has("attachments") {
        bytes.extend(encode(Kind::Attachment, 0, request, br#"{"name":"in"}"#, b"data"));
        bytes.extend(encode(Kind::Attachment, 0, request, br#"{"name":"empty"}"#, b""));
    }
    if bytes.is_empty() {
        return Err(Miss::skipped("without stdio, `input` and `attachments` no two frames go together"));
    }
    match driver.dialect.small(request) {
        Ok((code, value)) if driver.has("execute") => {
            bytes.extend(encode(Kind::Execute, 0, request, b"", code.as_bytes()));
            driver.requests().send(&bytes);
            driver.answer(request)?.is(&value)?;
        }
        _ => {
            bytes.extend(encode(Kind::Ping, 0, request, b"", b""));
            driver.requests().send(&bytes);
            driver.pong(request)?;
        }
    }
    driver.ping()
}

fn at_the_cap(subject: &Subject) -> Checked {
    let mut driver = subject.open(&Opening { cap: SMALL_CAP, ..Opening::default() })?;
    driver.needs("execute")?;
    let words = driver.dialect.words()?;
    let (code, value) = words.long(SMALL_CAP - 4);
    driver.run(&code)?.is(&value)?;
    // With the quotes of a JSON text.
    let letters = SMALL_CAP - FOR_THE_REPR - 2;
    driver.run(&words.repeat(letters))?.is(&"x".repeat(letters).into())?;
    driver.run_small()
}

fn over_the_cap(subject: &Subject) -> Checked {
    let mut driver = subject.open(&Opening { cap: SMALL_CAP, ..Opening::default() })?;
    driver.needs("execute")?;
    let words = driver.dialect.words()?;
    for size in [SMALL_CAP + 1, 3 * SMALL_CAP] {
        let answer = driver.run(&words.repeat(size - 2))?.frame;
        let flags = flag::HAS_VALUE | flag::TOO_LARGE;
        let told = answer.kind == Kind::Result && answer.flags == flags;
        expect(told, "a result with flag 8", || answer.tell())?;
        expect(answer.first == size.to_string().as_bytes(), &format!("the size {size}"), || answer.tell())?;
    }
    driver.run_small()
}

fn large(subject: &Subject) -> Checked {
    const SIZE: usize = 32 << 20;
    let (mut driver, words) = speaking(subject)?;
    let (code, value) = words.long(SIZE);
    driver.run(&code)?.is(&value)?;
    let found = driver.run(&words.repeat(SIZE))?.value()?;
    let letters = found.as_str().map_or(0, |text| text.bytes().filter(|byte| *byte == b'x').count());
    expect(letters == SIZE, "32 MiB of the letter x", || format!("{letters} of them"))?;
    driver.run_small()
}
