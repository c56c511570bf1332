//! Drives one worker frame by frame: its own host, which hides nothing.
//!
//! Every wait ends: with the row's deadline, or when the user has had enough. Dropping the driver
//! kills the worker's process group and reaps it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use remuda::protocol::{self, DEFAULT_FRAME_CAP, Frame, Kind};
use remuda::{CancelToken, Channels, Launch};
use serde_json::Value;

use super::channels::{Ends, Outgoing};
use super::child::Child;
use super::dialect::Dialect;
use super::frames::{Answer, Owned};
use super::report::{Checked, Miss};

/// How often a cancel is sent again where it travels among the requests.
const RESEND: Duration = Duration::from_millis(10);
/// How long at most to wait at once: the user's Ctrl-C is looked at in between.
const SLICE: Duration = Duration::from_millis(100);
/// The least numbers of *go*: version, session, frame cap, history.
const SESSION: u64 = 1;

/// What all rows share.
pub(super) struct Subject {
    pub(super) launch: Launch,
    pub(super) channels: Channels,
    /// How long a row may take.
    pub(super) timeout: Duration,
    /// Where workers run: empty, and empty again at the end.
    pub(super) directory: PathBuf,
    pub(super) stop: CancelToken,
    pub(super) given: super::dialect::Given,
}

/// How a worker is started, where it matters.
pub(super) struct Opening {
    pub(super) cap: usize,
    /// Numbers of *go* that no version knows yet.
    pub(super) more_numbers: bool,
    pub(super) one_socket: bool,
    pub(super) byte_by_byte: bool,
}

impl Default for Opening {
    fn default() -> Opening {
        Opening { cap: DEFAULT_FRAME_CAP, more_numbers: false, one_socket: false, byte_by_byte: false }
    }
}

/// A worker that is ready.
pub(super) struct Driver {
    pub(super) child: Child,
    pub(super) ends: Ends,
    pub(super) channels: Channels,
    pub(super) ready: Value,
    pub(super) ready_frame: Option<Owned>,
    pub(super) dialect: Dialect,
    pub(super) cap: usize,
    pub(super) deadline: Instant,
    /// The last request's number.
    pub(super) request: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stop: CancelToken,
}

impl Subject {
    /// A worker as every row but those of the start wants it.
    pub(super) fn start(&self) -> Checked<Driver> {
        self.open(&Opening::default())
    }

    pub(super) fn open(&self, opening: &Opening) -> Checked<Driver> {
        let mut driver = self.spawn(opening)?;
        let mut numbers = protocol::go_numbers(SESSION, opening.cap, 32);
        if opening.more_numbers {
            numbers.extend_from_slice(&[0xff; 24]);
        }
        let go = encode(Kind::Go, 0, 0, &numbers, b"");
        if opening.byte_by_byte {
            driver.send_byte_by_byte(&go)?;
        } else {
            driver.ends.go(&go);
        }
        let ready = driver.frame("ready")?;
        if (ready.kind, ready.request) != (Kind::Ready, 0) {
            return Err(Miss::failed("ready as the first frame, with number 0", ready.tell()));
        }
        driver.ready = ready.json()?;
        driver.ready_frame = Some(ready);
        driver.dialect = Dialect::of(driver.ready["language"].as_str().unwrap_or_default(), &self.given);
        Ok(driver)
    }

    /// A worker that has its boot code and waits for *go*.
    pub(super) fn spawn(&self, opening: &Opening) -> Checked<Driver> {
        let failed = |error: std::io::Error| Miss::failed("a worker that starts", error.to_string());
        let (ends, worker_ends) =
            Ends::open(self.channels, opening.one_socket).map_err(|error| failed(error.into()))?;
        let child = Child::spawn(&self.launch, &self.directory, worker_ends).map_err(|error| {
            Miss::NoProcess(format!("cannot start {}: {error}", self.launch.program.display()))
        })?;
        let mut driver = Driver {
            child,
            ends,
            channels: self.channels,
            ready: Value::Null,
            ready_frame: None,
            dialect: Dialect::default(),
            cap: opening.cap,
            deadline: Instant::now() + self.timeout,
            request: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            stop: self.stop.clone(),
        };
        driver.ends.control().send(&self.launch.boot);
        // File descriptors travel with the byte that they are sent with: nothing may stand before it.
        driver.flush("boot code that is read")?;
        Ok(driver)
    }
}

/// A frame of ours; the caps of this program's own frames are checked where they matter.
pub(super) fn encode(kind: Kind, flags: u8, request: u64, first: &[u8], second: &[u8]) -> Vec<u8> {
    protocol::encode_with_flags(kind, flags, request, first, second, protocol::MAX_FRAME_CAP)
        .unwrap_or_default()
}

impl Driver {
    pub(super) fn has(&self, feature: &str) -> bool {
        let features = self.ready["features"].as_array();
        features.is_some_and(|features| features.iter().any(|name| name == feature))
    }

    /// Skips the row unless the worker announces this feature.
    pub(super) fn needs(&self, feature: &str) -> Checked {
        if self.has(feature) { Ok(()) } else { Err(Miss::skipped(format!("`{feature}` is not announced"))) }
    }

    pub(super) fn next_request(&mut self) -> u64 {
        self.request += 1;
        self.request
    }

    // --- sending --------------------------------------------------------------------------------

    pub(super) fn send(&mut self, kind: Kind, flags: u8, request: u64, first: &[u8], second: &[u8]) {
        self.ends.requests.send(&encode(kind, flags, request, first, second));
    }

    /// Sends code under the next number, which it returns.
    pub(super) fn begin(&mut self, flags: u8, code: &str) -> u64 {
        let request = self.next_request();
        self.send(Kind::Execute, flags, request, b"", code.as_bytes());
        request
    }

    pub(super) fn cancel(&mut self, request: u64, attempt: u8) {
        self.ends.raise_flag(request);
        self.ends.control().send(&encode(Kind::Cancel, attempt, request, b"", b""));
    }

    /// Sends each byte so that the worker must read it alone. The pipe takes 16 at a time.
    pub(super) fn send_byte_by_byte(&mut self, bytes: &[u8]) -> Checked {
        let failed =
            |error: rustix::io::Errno| Miss::failed("a pipe that keeps bytes apart", error.to_string());
        self.ends.requests.in_packets(true).map_err(failed)?;
        for byte in bytes {
            self.ends.requests.send(std::slice::from_ref(byte));
            // A second byte would join one that waits.
            self.flush("frames that are read byte by byte")?;
        }
        self.ends.requests.in_packets(false).map_err(failed)
    }

    /// Waits until everything is on its way.
    pub(super) fn flush(&mut self, expected: &str) -> Checked {
        while !(self.ends.requests.is_flushed() && self.ends.control.is_flushed()) {
            self.pump(self.deadline, expected)?;
        }
        Ok(())
    }

    /// Ends the input, as the end of a host does.
    pub(super) fn hang_up(&mut self) {
        self.ends.requests.close();
        self.ends.control.close();
    }

    // --- receiving ------------------------------------------------------------------------------

    /// Waits a moment for anything to happen; fails when the row's time is over, and at the end of
    /// `until` returns false.
    fn pump(&mut self, until: Instant, expected: &str) -> Checked<bool> {
        if self.stop.is_cancelled() {
            return Err(Miss::Stopped);
        }
        let now = Instant::now();
        if now >= self.deadline {
            return Err(self.missing(expected, "nothing in time"));
        }
        if now >= until {
            return Ok(false);
        }
        let limit = until.min(self.deadline).saturating_duration_since(now).min(SLICE);
        self.ends.pump(limit);
        Ok(true)
    }

    fn missing(&self, expected: &str, what: &str) -> Miss {
        let stderr = [&self.stderr[..], &self.ends.stderr.bytes].concat();
        let tail = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(400)..]).trim().to_owned();
        let said = if tail.is_empty() { String::new() } else { format!("; stderr: {tail}") };
        Miss::broken(expected, format!("{what}; {}{said}", self.child.end()), &self.ends.replies.bytes)
    }

    /// The next frame.
    pub(super) fn frame(&mut self, expected: &str) -> Checked<Owned> {
        loop {
            if let Some(frame) = self.arrived(expected)? {
                return Ok(frame);
            }
            if !self.ends.replies.is_open() {
                // Its end is worth more than that of its channel.
                self.child.ends_by(self.deadline.min(Instant::now() + Duration::from_secs(1)));
                return Err(self.missing(expected, "the end of its replies"));
            }
            self.pump(self.deadline, expected)?;
        }
    }

    /// The next frame, unless `until` comes first.
    pub(super) fn frame_by(&mut self, until: Instant, expected: &str) -> Checked<Option<Owned>> {
        loop {
            let frame = self.arrived(expected)?;
            if frame.is_some() || !self.ends.replies.is_open() || !self.pump(until, expected)? {
                return Ok(frame);
            }
        }
    }

    fn arrived(&mut self, expected: &str) -> Checked<Option<Owned>> {
        let inbox = &mut self.ends.replies.bytes;
        let (frame, used) = match Frame::decode(inbox, self.cap) {
            Ok(Some((frame, used))) => (Owned::of(&frame), used),
            Ok(None) => return Ok(None),
            Err(malformed) => return Err(Miss::broken(expected, malformed.to_string(), inbox)),
        };
        inbox.drain(..used);
        // What *ready* says wrong is one row's failure, not everybody's.
        if frame.kind != Kind::Ready {
            frame.check()?;
        }
        Ok(Some(frame))
    }

    /// The next event or answer of this request.
    pub(super) fn next(&mut self, request: u64) -> Checked<Owned> {
        let frame = self.frame("an answer")?;
        if frame.request == request {
            return Ok(frame);
        }
        Err(Miss::failed(format!("a frame of request {request}"), frame.tell()))
    }

    /// The answer to a request, with what came before it.
    pub(super) fn answer(&mut self, request: u64) -> Checked<Answer> {
        let mut events = Vec::new();
        loop {
            let frame = self.next(request)?;
            if !frame.kind.is_event() {
                return Ok(self.complete(frame, events));
            }
            self.take_output(frame, &mut events);
        }
    }

    /// The answer to a request that is being cancelled.
    pub(super) fn cancelled(&mut self, request: u64, attempt: u8) -> Checked<Answer> {
        self.cancel(request, attempt);
        let mut events = Vec::new();
        loop {
            let Some(frame) = self.frame_by(Instant::now() + RESEND, "an answer to a cancelled request")?
            else {
                if !self.ends.replies.is_open() {
                    return Err(self.missing("an answer to a cancelled request", "the end of its replies"));
                }
                if self.channels == Channels::Stdio {
                    self.cancel(request, attempt);
                }
                continue;
            };
            if frame.request != request {
                return Err(Miss::failed(format!("a frame of request {request}"), frame.tell()));
            }
            if !frame.kind.is_event() {
                return Ok(self.complete(frame, events));
            }
            self.take_output(frame, &mut events);
        }
    }

    fn take_output(&mut self, frame: Owned, events: &mut Vec<Owned>) {
        match (frame.kind, frame.flags) {
            (Kind::Output, 0) => self.stdout.extend_from_slice(&frame.second),
            (Kind::Output, _) => self.stderr.extend_from_slice(&frame.second),
            _ => events.push(frame),
        }
    }

    /// An answer is there: what the pipes hold at this moment belongs to it.
    fn complete(&mut self, frame: Owned, events: Vec<Owned>) -> Answer {
        self.ends.stdout.read_all();
        self.ends.stderr.read_all();
        let mut stdout = std::mem::take(&mut self.stdout);
        let mut stderr = std::mem::take(&mut self.stderr);
        stdout.append(&mut self.ends.stdout.bytes);
        stderr.append(&mut self.ends.stderr.bytes);
        Answer { frame, events, stdout, stderr }
    }

    /// Waits for a first word on stdout of a request under way, but not for long: output may be
    /// held back until the answer.
    pub(super) fn await_word(&mut self, request: u64) -> Checked {
        let until = Instant::now() + self.deadline.saturating_duration_since(Instant::now()) / 8;
        while self.stdout.is_empty() && self.ends.stdout.bytes.is_empty() {
            if let Some(frame) = self.arrived("output")? {
                if frame.request != request || frame.kind != Kind::Output {
                    return Err(Miss::failed("output", frame.tell()));
                }
                self.take_output(frame, &mut Vec::new());
            } else if !self.pump(until, "output")? {
                break;
            }
        }
        Ok(())
    }

    // --- whole requests -------------------------------------------------------------------------

    pub(super) fn ping(&mut self) -> Checked {
        let request = self.next_request();
        self.send(Kind::Ping, 0, request, b"", b"");
        self.pong(request)
    }

    pub(super) fn pong(&mut self, request: u64) -> Checked {
        let frame = self.frame("pong")?;
        if (frame.kind, frame.request) == (Kind::Pong, request) {
            return Ok(());
        }
        Err(Miss::failed(format!("pong to request {request} and nothing before it"), frame.tell()))
    }

    pub(super) fn run(&mut self, code: &str) -> Checked<Answer> {
        let request = self.begin(0, code);
        self.answer(request)
    }

    /// Runs a small piece of code and checks its value.
    pub(super) fn run_small(&mut self) -> Checked {
        let request = self.next_request();
        self.run_small_as(request)
    }

    pub(super) fn run_small_as(&mut self, request: u64) -> Checked {
        let (code, value) = self.dialect.small(request)?;
        self.send(Kind::Execute, 0, request, b"", code.as_bytes());
        let answer = self.answer(request)?;
        answer.is(&value)?;
        if answer.is_stopped() {
            return Err(Miss::failed("a result without flag 16: nobody cancelled it", answer.frame.tell()));
        }
        Ok(())
    }

    /// Another request of a kind that has one answer and no events.
    pub(super) fn ask(&mut self, kind: Kind, first: &[u8], second: &[u8], answer: Kind) -> Checked<Owned> {
        let request = self.next_request();
        self.send(kind, 0, request, first, second);
        let frame = self.answer(request)?.frame;
        if frame.kind == answer {
            return Ok(frame);
        }
        Err(Miss::failed(format!("{answer:?}"), frame.tell()))
    }

    /// What a worker that has read something bad must do: answer with *error*, or end. Returns
    /// whether it lives.
    pub(super) fn objects(&mut self, request: u64) -> Checked<bool> {
        let expected = "an error with the number of the frame, or the end of the worker";
        loop {
            if let Some(frame) = self.arrived(expected)? {
                if (frame.kind, frame.request) == (Kind::Error, request) {
                    return Ok(true);
                }
                return Err(Miss::failed(expected, frame.tell()));
            }
            if !self.ends.replies.is_open() {
                return if self.child.ends_by(self.deadline) {
                    Ok(false)
                } else {
                    Err(self.missing(expected, "a worker that lives on without its replies"))
                };
            }
            self.pump(self.deadline, expected)?;
        }
    }

    /// Waits until the worker's whole group is gone.
    pub(super) fn is_gone_by(&mut self, until: Instant) -> bool {
        loop {
            if self.child.ends_by(Instant::now() + RESEND) && self.child.group().is_empty() {
                return true;
            }
            if Instant::now() >= until || self.stop.is_cancelled() {
                return false;
            }
            // A worker that cannot write cannot leave.
            self.ends.pump(RESEND);
        }
    }

    pub(super) fn requests(&mut self) -> &mut Outgoing {
        &mut self.ends.requests
    }
}
