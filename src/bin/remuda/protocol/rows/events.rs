//! Events: input, attachments, displays, progress, usage.

use std::time::{Duration, Instant};

use remuda::protocol::{Kind, flag};
use serde_json::json;

use super::Row;
use super::requests::{executing, speaking};
use crate::protocol::dialect::Words;
use crate::protocol::driver::{Driver, Subject};
use crate::protocol::report::{Checked, Miss, expect};

pub(super) const ROWS: &[(&str, Row)] = &[
    ("input: a line", line),
    ("input: the end of input", end_of_input),
    ("input: nobody answers in time", no_answer),
    ("input: a cancel while the code waits, and the late reply is ignored", cancelled),
    ("input: a reply that nobody waits for is ignored", stale),
    ("input: the end of the file where the host does not answer", unasked),
    ("attachments: both ways", attachments),
    ("display: forms whose sizes add up", display),
    ("progress: fraction and message", progress),
    ("usage: processor time before the answer where it is asked for", usage),
];

/// Has the code ask for a line; returns the number of its request.
fn asking(subject: &Subject) -> Checked<(Driver, &'static Words, u64)> {
    let mut driver = subject.start()?;
    driver.needs("input")?;
    driver.needs("execute")?;
    let words = driver.dialect.words()?;
    let request = ask(&mut driver, words)?;
    Ok((driver, words, request))
}

fn ask(driver: &mut Driver, words: &Words) -> Checked<u64> {
    let request = driver.begin(flag::ANSWERS_INPUT, words.input);
    loop {
        let frame = driver.next(request)?;
        match frame.kind {
            Kind::Input => {
                let prompt = frame.json()?["prompt"].clone();
                expect(prompt == "name? ", "the prompt \"name? \"", || prompt.to_string())?;
                return Ok(request);
            }
            kind if kind.is_event() => {}
            _ => return Err(Miss::failed("input", frame.tell())),
        }
    }
}

fn line(subject: &Subject) -> Checked {
    let (mut driver, words, request) = asking(subject)?;
    driver.send(Kind::InputReply, 0, request, b"", "Ada Ünï".as_bytes());
    driver.answer(request)?.is(&"Ada Ünï".into())?;
    let request = ask(&mut driver, words)?;
    driver.send(Kind::InputReply, 0, request, b"", b"");
    driver.answer(request)?.is(&"".into())?;
    driver.ping()
}

fn end_of_input(subject: &Subject) -> Checked {
    let (mut driver, _, request) = asking(subject)?;
    driver.send(Kind::InputReply, flag::END_OF_INPUT, request, b"", b"");
    no_text(&mut driver, request)
}

fn no_answer(subject: &Subject) -> Checked {
    let (mut driver, _, request) = asking(subject)?;
    driver.send(Kind::InputReply, flag::NO_ANSWER, request, b"", b"");
    no_text(&mut driver, request)
}

/// How code learns that there is no line is a matter of its language: an error, or no text.
fn no_text(driver: &mut Driver, request: u64) -> Checked {
    let answer = driver.answer(request)?;
    let is_text = answer.value().is_ok_and(|value| value.is_string());
    expect(!is_text, "an error, or a value that is no text", || answer.frame.tell())?;
    driver.run_small()
}

fn cancelled(subject: &Subject) -> Checked {
    let (mut driver, _, request) = asking(subject)?;
    driver.needs("interrupt")?;
    let answer = driver.cancelled(request, 0)?;
    expect(answer.frame.kind == Kind::Error && answer.is_stopped(), "an error with flag 16", || {
        answer.frame.tell()
    })?;
    driver.send(Kind::InputReply, 0, request, b"", b"late");
    driver.run_small()?;
    driver.ping()
}

fn stale(subject: &Subject) -> Checked {
    let (mut driver, words, request) = asking(subject)?;
    // Of a request that is over, and of none.
    driver.send(Kind::InputReply, 0, request - 1, b"", b"wrong");
    driver.send(Kind::InputReply, 0, request, b"", b"right");
    driver.answer(request)?.is(&"right".into())?;
    driver.send(Kind::InputReply, 0, request, b"", b"late");
    driver.ping()?;
    let request = ask(&mut driver, words)?;
    driver.send(Kind::InputReply, 0, request, b"", b"right again");
    driver.answer(request)?.is(&"right again".into())?;
    driver.ping()
}

fn unasked(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let request = driver.begin(0, words.input);
    let answer = driver.answer(request)?;
    let asked = answer.events(Kind::Input).len();
    expect(asked == 0, "no input frame without flag 1", || format!("{asked} of them"))?;
    let is_text = answer.value().is_ok_and(|value| value.is_string());
    expect(!is_text, "the end of the file: an error, or a value that is no text", || answer.frame.tell())?;
    driver.run_small()
}

fn attachments(subject: &Subject) -> Checked {
    let mut driver = subject.start()?;
    driver.needs("attachments")?;
    driver.needs("execute")?;
    let words = driver.dialect.words()?;
    let bytes: Vec<u8> = (0..=255).collect();
    let request = driver.next_request();
    driver.send(Kind::Attachment, 0, request, br#"{"name":"in"}"#, &bytes);
    driver.send(Kind::Attachment, 0, request, br#"{"name":"empty"}"#, b"");
    driver.send(Kind::Execute, 0, request, b"", words.attachments.as_bytes());
    let answer = driver.answer(request)?;
    answer.is(&json!(bytes))?;
    let back: Vec<u8> = bytes.into_iter().rev().collect();
    let found = answer.events(Kind::Attachment);
    let [out] = found[..] else {
        return Err(Miss::failed("one attachment", format!("{} of them", found.len())));
    };
    expect(out.json()?["name"] == "out", "an attachment named \"out\"", || out.tell())?;
    expect(out.second == back, "the bytes in reverse", || out.tell())?;
    // They belong to their request.
    let answer = driver.run(words.attachments)?;
    answer.error()?;
    driver.ping()
}

fn display(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let answer = driver.run(words.display)?;
    answer
        .frame
        .kind
        .eq(&Kind::Result)
        .then_some(())
        .ok_or_else(|| Miss::failed("a result", answer.frame.tell()))?;
    let found = answer.events(Kind::Display);
    let [shown] = found[..] else {
        return Err(Miss::failed("one display", format!("{} of them", found.len())));
    };
    let types = shown.json()?["types"].clone();
    let mut rest = &shown.second[..];
    let mut forms = Vec::new();
    for entry in types.as_array().into_iter().flatten() {
        let size = entry[1].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        let (form, after) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        forms.push((entry[0].as_str().unwrap_or_default(), form));
        rest = after;
    }
    for wanted in [("text/plain", &b"plain"[..]), ("text/html", b"<b>rich</b>")] {
        expect(forms.contains(&wanted), &format!("a form {} among them", wanted.0), || types.to_string())?;
    }
    driver.ping()
}

fn progress(subject: &Subject) -> Checked {
    let (mut driver, words) = speaking(subject)?;
    let answer = driver.run(words.progress)?;
    let said = answer.events(Kind::Progress).last().map(|event| event.json()).transpose()?;
    let wanted = json!({ "fraction": 0.5, "message": "half" });
    let found = said.unwrap_or_default();
    let same = found["fraction"] == wanted["fraction"] && found["message"] == wanted["message"];
    expect(same, &wanted.to_string(), || format!("{found}; {}", answer.frame.tell()))?;
    driver.ping()
}

fn usage(subject: &Subject) -> Checked {
    let mut driver = executing(subject)?;
    let code = match driver.dialect.words() {
        Ok(words) => words.works.to_owned(),
        Err(_) => driver.dialect.small(1)?.0,
    };
    for (flags, wanted) in [(flag::MEASURE, 1), (0, 0)] {
        let started = Instant::now();
        let request = driver.begin(flags, &code);
        let answer = driver.answer(request)?;
        let found = answer.events(Kind::Usage);
        // Optional: only workers that are known to send it must.
        if found.is_empty() && wanted > 0 && driver.dialect.words().is_err() {
            return Err(Miss::skipped("the worker sends no usage"));
        }
        expect(found.len() == wanted, &format!("{wanted} usage frames with flags {flags}"), || {
            format!("{} of them", found.len())
        })?;
        for usage in found {
            // More than every core together could have given it since is made up.
            let seconds = usage.json()?["cpu_seconds"].as_f64().unwrap_or_default();
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4096));
            let most = (started.elapsed() + Duration::from_secs(1)).as_secs_f64()
                * f64::from(u32::try_from(cores).unwrap_or(1));
            expect(seconds <= most, "processor time of this request", || usage.tell())?;
        }
    }
    driver.ping()
}
