//! Bytes that are no frames, where frames are expected: *error* or the end, in time, never a hang.

use std::fs;
use std::time::Instant;

use remuda::Channels;
use remuda::protocol::{Kind, MAX_FRAME_CAP};

use super::Row;
use super::requests::speaking;
use crate::protocol::driver::{Driver, Opening, Subject, encode};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("garbage: an unknown kind", unknown_kind),
    ("garbage: a kind that only workers send", wrong_direction),
    ("garbage: reserved bytes that are not zero", reserved_bytes),
    ("garbage: a length over the cap", over_the_cap),
    ("garbage: a frame just over the cap", just_over_the_cap),
    ("garbage: a first part longer than the body", inner_length),
    ("garbage: a body without its first length", short_body),
    ("garbage: a body that is no JSON", broken_json),
    ("garbage: random bytes", noise),
    ("garbage: a frame cut off by the end of input", cut_off),
    ("garbage: a header cut off by the end of input", cut_header),
    ("garbage: on the control channel", on_control),
];

/// The request that garbage pretends to be.
const NUMBER: u64 = 7;

/// Sends the bytes; a worker that lives on after its error must be of use.
fn send(subject: &Subject, bytes: &[u8]) -> Checked {
    let mut driver = subject.start()?;
    driver.requests().send(bytes);
    driver.request = NUMBER;
    if driver.objects(NUMBER)? { driver.ping() } else { Ok(()) }
}

/// A ping with one byte changed.
fn ping_with(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = encode(Kind::Ping, 0, NUMBER, b"", b"");
    bytes[at] = byte;
    bytes
}

fn unknown_kind(subject: &Subject) -> Checked {
    for kind in [0, 31, 255] {
        send(subject, &ping_with(4, kind))?;
    }
    Ok(())
}

fn wrong_direction(subject: &Subject) -> Checked {
    for kind in [Kind::Ready, Kind::Result, Kind::Pong, Kind::Usage, Kind::Forked] {
        send(subject, &encode(kind, 0, NUMBER, b"", b""))?;
    }
    Ok(())
}

fn reserved_bytes(subject: &Subject) -> Checked {
    send(subject, &ping_with(6, 1))?;
    send(subject, &ping_with(7, 0x80))
}

/// The header alone: a worker that waits for the body hangs.
fn over_the_cap(subject: &Subject) -> Checked {
    let mut bytes = encode(Kind::Execute, 0, NUMBER, b"", b"");
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes.truncate(16);
    let mut driver = subject.start()?;
    driver.requests().send(&bytes);
    // Whether it lives on is its own business: where the next frame would begin nobody can say.
    driver.objects(NUMBER).map(drop)
}

fn just_over_the_cap(subject: &Subject) -> Checked {
    const CAP: usize = 1 << 20;
    let mut driver = subject.open(&Opening { cap: CAP, ..Opening::default() })?;
    driver.requests().send(&encode(Kind::Execute, 0, NUMBER, b"", &vec![b' '; CAP - 3]));
    driver.objects(NUMBER).map(drop)
}

fn inner_length(subject: &Subject) -> Checked {
    for kind in [Kind::Ping, Kind::Execute] {
        let mut bytes = encode(kind, 0, NUMBER, b"", b"1");
        bytes[16..20].copy_from_slice(&2_u32.to_le_bytes());
        send(subject, &bytes)?;
        bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        send(subject, &bytes)?;
    }
    Ok(())
}

fn short_body(subject: &Subject) -> Checked {
    for length in [0_u8, 3] {
        let mut bytes = ping_with(0, length);
        bytes.truncate(16 + usize::from(length));
        send(subject, &bytes)?;
    }
    Ok(())
}

fn broken_json(subject: &Subject) -> Checked {
    let driver = subject.start()?;
    for (feature, kind, first, second) in [
        ("call", Kind::Call, &b""[..], &b"{\"function\""[..]),
        ("call", Kind::Call, b"", b"[]"),
        ("warm", Kind::Warm, b"\xff", b""),
        ("inspect", Kind::Inspect, b"{\"what\":\"tea leaves\"}", b""),
        ("inspect", Kind::Inspect, b"{", b""),
    ] {
        if driver.has(feature) {
            send(subject, &encode(kind, 0, NUMBER, first, second))?;
        }
    }
    if driver.has("attachments") { nameless_attachment(subject) } else { Ok(()) }
}

/// An attachment has no answer of its own: a worker may keep its objection for the request.
fn nameless_attachment(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.send(Kind::Attachment, 0, NUMBER, b"nameless", b"");
    driver.send(Kind::Ping, 0, NUMBER + 1, b"", b"");
    let expected = "pong, an error with the number of the attachment, or the end of the worker";
    match driver.frame(expected) {
        Ok(frame) => match (frame.kind, frame.request) {
            (Kind::Pong, number) if number == NUMBER + 1 => Ok(()),
            (Kind::Error, NUMBER) => driver.pong(NUMBER + 1),
            _ => Err(Miss::failed(expected, frame.tell())),
        },
        Err(Miss::Failed(_)) if driver.child.ends_by(Instant::now()) => Ok(()),
        Err(miss) => Err(miss),
    }
}

/// The same bytes each time: none of them is a frame, and no length is below the cap.
fn noise(subject: &Subject) -> Checked {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = (0..4096)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at % 4 == 3 { 0xff } else { state.to_le_bytes()[0] }
        })
        .collect();
    let mut driver = subject.start()?;
    driver.requests().send(&bytes);
    let number = bytes[8..16].try_into().map_or(0, u64::from_le_bytes);
    driver.objects(number).map(drop)
}

/// A frame of which only a part comes must not be acted on.
fn cut_off(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let bytes =
        encode(Kind::Execute, 0, NUMBER, b"", [words.leaves_a_file, "\n# and more"].concat().as_bytes());
    driver.requests().send(&bytes[..bytes.len() - 4]);
    driver.hang_up();
    ends(subject, &mut driver)
}

fn cut_header(subject: &Subject) -> Checked {
    for length in [1, 15, 16, 19] {
        let mut driver = subject.start()?;
        driver.requests().send(&encode(Kind::Ping, 0, NUMBER, b"", b"")[..length]);
        driver.hang_up();
        ends(subject, &mut driver)?;
    }
    Ok(())
}

fn ends(subject: &Subject, driver: &mut Driver) -> Checked {
    if !driver.is_gone_by(driver.deadline) {
        return Err(Miss::failed("the end of the worker's process group", driver.child.end()));
    }
    let left: Vec<_> = fs::read_dir(&subject.directory)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect())
        .unwrap_or_default();
    expect(left.is_empty(), "no trace of code that came in part", || format!("{left:?}"))
}

/// It carries small frames only; there is nobody to answer to, but a request must find an answer, or
/// the worker's end.
fn on_control(subject: &Subject) -> Checked {
    if subject.channels == Channels::Stdio {
        return Err(Miss::skipped("only with pipes"));
    }
    let too_long = u32::try_from(MAX_FRAME_CAP).unwrap_or(u32::MAX).to_le_bytes();
    for bytes in [ping_with(4, 99), ping_with(3, 0xff), [&too_long[..], &[9; 12]].concat()] {
        let mut driver = subject.start()?;
        driver.ends.control().send(&bytes);
        let request = driver.next_request();
        driver.send(Kind::Ping, 0, request, b"", b"");
        match driver.pong(request) {
            Err(Miss::Failed(_)) if driver.is_gone_by(driver.deadline) => {}
            other => other?,
        }
    }
    Ok(())
}
