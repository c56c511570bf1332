//! The part that a thread plays: a worker, as `docs/worker-protocol.md` has it.

use std::sync::Arc;

use serde_json::json;

use super::fake::Script;
use super::faults::{Fault, When};
use super::hold::Hold;
use super::link::{Came, Link, Over, Unlinked, half};
use super::reply::{Ending, FakeKind, FakeReply, FakeRequest, Step};
use crate::clock::Moment;
use crate::protocol::{self, Kind, VERSION, flag};
use crate::session::SessionId;

/// Bytes that are no frame: a length beyond every cap.
const GARBAGE: [u8; protocol::HEADER] = [0xFF; protocol::HEADER];

/// One worker.
struct Part {
    session: SessionId,
    script: Arc<Script>,
    start: u64,
    link: Link,
    /// Code and calls so far.
    number: u64,
    /// The last request that was cancelled, heeded or not.
    cancelled: u64,
}

/// How a request that has taken its steps goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    Cancelled,
}

/// Kind, flags and request of a frame.
type Head = (Kind, u8, u64);

/// Plays a worker to its end.
pub(super) fn play(session: SessionId, script: Arc<Script>, unlinked: Unlinked) {
    let Ok(link) = unlinked.go() else { return };
    let mut part = Part { session, script, start: 0, link, number: 0, cancelled: 0 };
    let mut going = part.get_ready();
    while going.is_ok() {
        going = part.next_request().and_then(|(request, number)| part.serve(&request, number));
    }
}

impl Part {
    fn get_ready(&mut self) -> Result<(), Over> {
        let (start, fault, hold) = self.script.begin_start();
        self.start = start;
        if let Some(hold) = hold {
            // Nothing cancels a start but its end.
            self.stop_at(&hold, None)?;
        }
        let ready = json!({
            "protocol": VERSION,
            "pid": self.link.pid,
            "language": "fake",
            "version": env!("CARGO_PKG_VERSION"),
            "features": ["execute", "call", "warm", "reset", "interrupt"],
        });
        let fault = fault.map(|fault| if fault == Fault::Refuse { Fault::Exit(1) } else { fault });
        self.send_unless(fault, (Kind::Ready, 0, 0), ready.to_string().as_bytes(), b"")
    }

    /// One request from the host, and its number there.
    fn next_request(&mut self) -> Result<(FakeRequest, u64), Over> {
        loop {
            let (session, start) = (self.session, self.start);
            let taken = self
                .link
                .next_frame(|frame| (FakeRequest::of(frame, session, start), frame.header.request))?;
            match taken {
                Some((Some(mut request), number)) => {
                    let work = matches!(request.kind, FakeKind::Code | FakeKind::Call);
                    self.number += u64::from(work);
                    request.number = self.number;
                    self.script.record(&request);
                    return Ok((request, number));
                }
                Some((None, number)) => {
                    self.send_error(
                        (Kind::Error, 0, number),
                        "ProtocolError",
                        "a fake worker cannot do that",
                    )?;
                }
                None => self.hear()?,
            }
        }
    }

    fn serve(&mut self, request: &FakeRequest, number: u64) -> Result<(), Over> {
        match request.kind {
            FakeKind::Code | FakeKind::Call => {
                let reply = self.script.reply(request);
                let goes = self.take_steps(&reply, number)?;
                let fault = self.script.fault(When::Request, request);
                self.end(reply, goes, number, fault)
            }
            FakeKind::WarmUp => self.warm_up(request, number),
            FakeKind::Reset => {
                let (fault, report) = match self.script.fault(When::Reset, request) {
                    Some(Fault::Refuse) => (None, json!(["it refuses, as it was told"])),
                    fault => (fault, json!([])),
                };
                self.send_unless(fault, (Kind::Clean, 0, number), report.to_string().as_bytes(), b"")
            }
            FakeKind::Ping => match self.script.fault(When::Ping, request) {
                Some(Fault::Refuse) => Ok(()),
                fault => self.send_unless(fault, (Kind::Pong, 0, number), b"", b""),
            },
            FakeKind::Shutdown => Err(Over),
            // Those that count come on the control socket.
            FakeKind::Cancel => Ok(()),
        }
    }

    /// Each module is a line of the report; the code is replied to as any other.
    fn warm_up(&mut self, request: &FakeRequest, number: u64) -> Result<(), Over> {
        let reply = if request.text.is_empty() { FakeReply::none() } else { self.script.reply(request) };
        let goes = self.take_steps(&reply, number)?;
        let well = matches!(reply.ending, Ending::None | Ending::Value(_) | Ending::Bytes(_));
        if goes == Goes::Cancelled || !well {
            return self.end(reply, goes, number, None);
        }
        let line = |module| json!({ "module": module, "milliseconds": 0 });
        let report: Vec<_> = request.args.iter().map(line).collect();
        self.send((Kind::Warmed, 0, number), json!(report).to_string().as_bytes(), b"")
    }

    fn take_steps(&mut self, reply: &FakeReply, number: u64) -> Result<Goes, Over> {
        for step in &reply.steps {
            match step {
                Step::Output(stream, bytes) => self.link.print(*stream, bytes)?,
                Step::Hold(hold) => {
                    let heeds = self.heeds(reply, number);
                    if self.stop_at(hold, heeds)? == Goes::Cancelled {
                        return Ok(Goes::Cancelled);
                    }
                }
            }
        }
        Ok(Goes::On)
    }

    /// The request whose cancel is listened to.
    fn heeds(&self, reply: &FakeReply, number: u64) -> Option<u64> {
        let deaf = reply.ignores_cancel || self.script.plan().deaf;
        (!deaf).then_some(number)
    }

    /// The answer to code or a call, or what comes in its place.
    fn end(&mut self, reply: FakeReply, goes: Goes, number: u64, fault: Option<Fault>) -> Result<(), Over> {
        let hangs = fault == Some(Fault::Hang) || matches!(reply.ending, Ending::Hang);
        if goes == Goes::On && hangs {
            let heeds = self.heeds(&reply, number);
            self.hang(heeds)?;
        }
        if goes == Goes::Cancelled || hangs {
            let head = (Kind::Error, flag::STOPPED, number);
            return self.send_error(head, "Cancelled", "the request was cancelled");
        }
        if fault == Some(Fault::Refuse) {
            return self.send_error((Kind::Error, 0, number), "Refused", "as it was told");
        }
        let result = |flags| (Kind::Result, flag::HAS_VALUE | flags, number);
        let repr = |default: &str| reply.repr.as_deref().unwrap_or(default).as_bytes().to_vec();
        match reply.ending {
            Ending::Exit(code) => Err(self.link.die("exit", i32::from(code))),
            Ending::Signal(signal) => Err(self.link.die("signal", signal)),
            Ending::None | Ending::Hang => self.send_unless(fault, (Kind::Result, 0, number), b"", b""),
            Ending::Value(value) => {
                let json = value.to_string();
                self.send_unless(fault, result(flag::IS_JSON), json.as_bytes(), &repr(&json))
            }
            Ending::NotJson(why) => {
                self.send_unless(fault, result(flag::NOT_JSON), why.as_bytes(), &repr("?"))
            }
            Ending::Bytes(bytes) => {
                let shown = repr(&format!("{} bytes", bytes.len()));
                self.send_unless(fault, result(flag::IS_BYTES), &bytes, &shown)
            }
            Ending::Error { kind, message } => {
                let body = error_body(&kind, &message);
                self.send_unless(fault, (Kind::Error, 0, number), body.as_bytes(), b"")
            }
        }
    }

    fn send_error(&mut self, head: Head, kind: &str, message: &str) -> Result<(), Over> {
        self.send(head, error_body(kind, message).as_bytes(), b"")
    }

    /// Sends a frame, unless something goes wrong with it.
    fn send_unless(
        &mut self,
        fault: Option<Fault>,
        head: Head,
        first: &[u8],
        second: &[u8],
    ) -> Result<(), Over> {
        match fault {
            None | Some(Fault::Refuse) => self.send(head, first, second),
            Some(Fault::Exit(code)) => Err(self.link.die("exit", i32::from(code))),
            Some(Fault::Signal(signal)) => Err(self.link.die("signal", signal)),
            // No code runs that a cancel could be meant for.
            Some(Fault::Hang) => self.hang(None),
            Some(Fault::Garble) => self.reply(&GARBAGE),
            Some(Fault::Cut) => {
                let frame = self.frame(head, first, second);
                self.reply(half(&frame))?;
                Err(self.link.die("exit", 0))
            }
        }
    }

    fn send(&mut self, head: Head, first: &[u8], second: &[u8]) -> Result<(), Over> {
        let frame = self.frame(head, first, second);
        self.reply(&frame)
    }

    /// The frame, or one that says how large it would be.
    fn frame(&self, (kind, flags, number): Head, first: &[u8], second: &[u8]) -> Vec<u8> {
        let cap = self.link.frame_cap;
        protocol::encode_with_flags(kind, flags, number, first, second, cap)
            .or_else(|| {
                let size = first.len().to_string();
                let flags = flag::HAS_VALUE | flag::TOO_LARGE;
                protocol::encode_with_flags(Kind::Result, flags, number, size.as_bytes(), b"", cap)
            })
            .unwrap_or_default()
    }

    /// Bytes on the reply channel, as fast as the link is.
    fn reply(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let Some(slow) = self.script.plan().link else { return self.link.reply(bytes) };
        for part in bytes.chunks(slow.bytes) {
            self.link.reply(part)?;
            let until = Moment::after(slow.pause);
            while self.link.wait(None, Some(until.saturating_since(Moment::now())))? != Came::Nothing {
                self.hear()?;
            }
        }
        Ok(())
    }

    /// Stops where the test wants it to; a cancel of the request that it heeds ends that.
    fn stop_at(&mut self, hold: &Hold, heeds: Option<u64>) -> Result<Goes, Over> {
        let Some(bell) = hold.enter()? else { return Ok(Goes::On) };
        let stopped = loop {
            if bell.is_free() {
                break Ok(Goes::On);
            }
            if heeds == Some(self.cancelled) {
                break Ok(Goes::Cancelled);
            }
            let waited = self.link.wait(Some(bell.event()), None).and_then(|_| self.hear());
            if let Err(over) = waited {
                break Err(over);
            }
        };
        hold.leave(&bell);
        stopped
    }

    /// Waits for a cancel of the request that it heeds; without one, for the end.
    fn hang(&mut self, heeds: Option<u64>) -> Result<(), Over> {
        while heeds != Some(self.cancelled) {
            self.link.wait(None, None)?;
            self.hear()?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), Over> {
        for (request, attempt) in self.link.hear()? {
            if attempt == 0 {
                self.script.record(&FakeRequest::cancel(self.session, self.start, self.number));
            }
            self.cancelled = self.cancelled.max(request);
        }
        Ok(())
    }
}

fn error_body(kind: &str, message: &str) -> String {
    json!({ "type": kind, "message": message, "traceback": "" }).to_string()
}
