//! One connection: its bytes, its phase, its deadline. The loop decides when to call it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};

use mio::net::TcpStream;

use super::deadlines::Alarm;
use super::output::Output;
use super::parse::Refusal;
use super::requests::{Next, Requests};
use super::response::{Length, Rendering, Response};
use super::stream::{Framing, Piece, Stream, Streaming};
use super::{Limits, Method, Request};
use crate::background::shielded;
use crate::clock::Moment;

/// Buffers above this are given back while the connection waits.
const KEEP_BUFFER: usize = 1024;
/// What a client may still send after a refusal without losing the answer.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

pub(super) struct Connection {
    stream: TcpStream,
    /// Where it comes from.
    peer: IpAddr,
    /// Tells this connection from earlier ones in the same slot.
    pub(super) serial: u64,
    /// Tells the current request from earlier ones: a late reply to one of those goes nowhere.
    pub(super) exchange: u64,
    pub(super) phase: Phase,
    pub(super) alarm: Alarm,
    input: Requests,
    output: Output,
    /// What is told of the current request when it is answered.
    pub(super) asked: Asked,
    /// What the current request said about its answer.
    rendering: Rendering,
    inflow: Inflow,
    /// Reading stopped at the cap: the socket may hold more and will not say so again.
    unread: bool,
    /// See [`hang_up`](Connection::hang_up).
    hung_up: bool,
    first_request: bool,
    /// When the current request's first byte was seen.
    started: Option<Moment>,
    /// When the last answer was given, or bytes of it were taken.
    since: Moment,
}

/// What a request is, for whoever counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) subject: Option<u16>,
    pub(super) method: Method,
    /// When it was complete, until it waits.
    pub(super) at: Option<Moment>,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked { subject: None, method: Method::Other, at: None }
    }
}

/// What more may come from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inflow {
    Open,
    /// The kernel said that the client has closed its side; bytes may still lie before its end.
    Closing,
    /// Everything has been read.
    Ended,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Waiting for a request or reading one.
    Reading,
    /// A handler thread has the request.
    Busy,
    /// The reply is parked.
    Parked { until: Moment, otherwise: Response },
    /// The answer goes on.
    Streaming(Box<Streaming>),
    /// The last answer is being written.
    Closing,
    /// Everything is written and our side is closed; what still comes is thrown away, so that the
    /// kernel does not answer it with a reset that would destroy the answer.
    Lingering { until: Moment, budget: usize },
}

/// What an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Parked,
    Streaming,
}

impl Phase {
    pub(super) fn waiting(&self) -> Option<Waiting> {
        match self {
            Phase::Parked { .. } => Some(Waiting::Parked),
            Phase::Streaming(_) => Some(Waiting::Streaming),
            _ => None,
        }
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: IpAddr, serial: u64, now: Moment) -> Connection {
        Connection {
            stream,
            peer: peer.to_canonical(),
            serial,
            exchange: 0,
            phase: Phase::Reading,
            alarm: Alarm::default(),
            input: Requests::default(),
            output: Output::default(),
            asked: Asked::default(),
            rendering: Rendering { keep_alive: true, head_only: false, framing: Framing::Chunked },
            inflow: Inflow::Open,
            unread: false,
            hung_up: false,
            first_request: true,
            started: None,
            since: now,
        }
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The kernel said that the client has closed its side.
    pub(super) fn note_closing(&mut self) {
        if self.inflow == Inflow::Open {
            self.inflow = Inflow::Closing;
        }
    }

    /// Everything that the client sent has been read.
    pub(super) fn has_ended(&self) -> bool {
        self.inflow == Inflow::Ended
    }

    /// Whether the client has closed its side while it waits, behind more bytes than are held: its end
    /// is not read, and nothing else would tell of it.
    pub(super) fn closes_while_it_waits(&self) -> bool {
        self.inflow == Inflow::Closing && self.unread && self.phase.waiting().is_some()
    }

    /// Takes the client for gone: what it waits for is answered, what it sent behind that is not.
    pub(super) fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Takes what the socket holds, as far as it is wanted now. An error is the end.
    pub(super) fn fill(&mut self, scratch: &mut [u8], limits: &Limits) -> io::Result<()> {
        self.unread = false;
        while self.inflow != Inflow::Ended {
            if let Phase::Lingering { budget: 0, .. } = self.phase {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if self.input.held() >= self.input.wanted(limits) {
                self.unread = true;
                break;
            }
            let read = match self.stream.read(scratch) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            match &mut self.phase {
                Phase::Lingering { budget, .. } => *budget = budget.saturating_sub(read),
                Phase::Closing => {}
                _ => self.input.push(&scratch[..read]),
            }
            if read == 0 {
                self.inflow = Inflow::Ended;
            }
            // A read that did not fill the buffer has emptied the socket, and what comes later is
            // told anew; except the end, if it was told together with these bytes.
            if read < scratch.len() && self.inflow == Inflow::Open {
                break;
            }
        }
        Ok(())
    }

    /// The next complete request in the input. Asks for the body when the client may wait for that.
    pub(super) fn next_request(&mut self, limits: &Limits, now: Moment) -> Result<Option<Request>, Refusal> {
        let next = self.input.next(limits);
        if !matches!(next, Ok(Next::Nothing)) {
            self.started.get_or_insert(now);
        }
        match next? {
            Next::Nothing | Next::Incomplete => Ok(None),
            Next::Asks => {
                self.output.end().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                self.since = now;
                Ok(None)
            }
            Next::Request { request, keep_alive, is_http_10 } => {
                let framing = if is_http_10 { Framing::UntilClose } else { Framing::Chunked };
                self.rendering = Rendering { keep_alive, head_only: request.method == Method::Head, framing };
                self.started = None;
                self.first_request = false;
                Ok(Some(Request { peer: self.peer, ..request }))
            }
        }
    }

    /// Since when nothing has happened here, if a request was answered and nothing of another one
    /// has been read.
    pub(super) fn idle_since(&self) -> Option<Moment> {
        let idle = matches!(self.phase, Phase::Reading)
            && !self.first_request
            && self.started.is_none()
            && self.input.held() == 0
            && !self.has_output();
        idle.then_some(self.since)
    }

    /// Whether the socket holds bytes that were not read yet.
    pub(super) fn has_unread_bytes(&mut self) -> bool {
        self.stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0)
    }

    /// Whether the input may hold another request or the socket more input.
    pub(super) fn has_more(&self) -> bool {
        matches!(self.phase, Phase::Reading) && self.unread
    }

    /// Whether unsent output is so long that no further request is taken up.
    pub(super) fn is_full(&self) -> bool {
        self.output.unsent().len() > 64 * 1024
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.unsent().is_empty()
    }

    /// Answers the current request; `close` makes it the last one.
    pub(super) fn answer(&mut self, response: &Response, date: &str, close: bool, now: Moment) {
        let keep_alive = self.stays_open(close);
        response.write(self.output.end(), date, Rendering { keep_alive, ..self.rendering });
        self.end_answer(close, now);
    }

    /// Begins to answer the current request with a body that goes on.
    pub(super) fn begin_stream(&mut self, stream: Stream, date: &str, close: bool, now: Moment) {
        if self.rendering.head_only {
            self.begin_body(&stream.head, date, close);
            self.end_answer(close, now);
        } else {
            self.phase = Phase::Streaming(Box::new(Streaming::new(stream, now)));
        }
    }

    /// Whether a stream's source shall be asked now.
    pub(super) fn is_due(&self) -> bool {
        matches!(&self.phase, Phase::Streaming(streaming) if streaming.is_due)
    }

    /// The stream's source may have something.
    pub(super) fn make_due(&mut self) {
        if let Phase::Streaming(streaming) = &mut self.phase {
            streaming.is_due = true;
        }
    }

    /// Asks the stream's source for its next piece, or for its end. An error is the end of the
    /// connection.
    pub(super) fn pull(&mut self, last: bool, date: &str, close: bool, now: Moment) -> io::Result<()> {
        let mut streaming = match std::mem::replace(&mut self.phase, Phase::Busy) {
            Phase::Streaming(streaming) => streaming,
            other => {
                self.phase = other;
                return Ok(());
            }
        };
        let source = &mut streaming.stream.source;
        let (bytes, ends) = match shielded("going on with an answer", || source.next(now, last)) {
            Some(Piece::Some(bytes)) => (bytes, last),
            Some(Piece::End(bytes)) => (bytes, true),
            Some(Piece::Later(_)) if last => (Vec::new(), true),
            Some(Piece::Later(until)) => {
                (streaming.is_due, streaming.until) = (false, until);
                self.phase = Phase::Streaming(streaming);
                return Ok(());
            }
            Some(Piece::TooSlow) => {
                self.phase = Phase::Streaming(streaming);
                return Err(ErrorKind::TimedOut.into());
            }
            None => return Err(ErrorKind::Other.into()),
        };
        if ends && !streaming.has_begun {
            let whole = Response { body: bytes.into(), ..streaming.stream.head };
            self.answer(&whole, date, close, now);
            return Ok(());
        }
        // What was owed before keeps its deadline.
        if !self.has_output() {
            self.since = now;
        }
        if !streaming.has_begun {
            self.begin_body(&streaming.stream.head, date, close);
            streaming.has_begun = true;
        }
        self.rendering.framing.piece(self.output.end(), &bytes);
        if ends {
            self.rendering.framing.end(self.output.end());
            self.end_answer(close, now);
        } else {
            self.phase = Phase::Streaming(streaming);
        }
        Ok(())
    }

    /// Writes the head of an answer that goes on.
    fn begin_body(&mut self, head: &Response, date: &str, close: bool) {
        let framing = self.rendering.framing;
        let keep_alive = self.stays_open(close) && framing == Framing::Chunked;
        self.rendering.keep_alive = keep_alive;
        head.write_head(self.output.end(), date, self.rendering, Length::Framed(framing));
    }

    fn stays_open(&self, close: bool) -> bool {
        self.rendering.keep_alive && !close && !self.has_ended() && !self.hung_up
    }

    fn end_answer(&mut self, close: bool, now: Moment) {
        self.phase = if self.stays_open(close) { Phase::Reading } else { Phase::Closing };
        self.since = now;
    }

    /// Refuses the request that is being read.
    pub(super) fn refuse(&mut self, refusal: &Refusal, date: &str, now: Moment) {
        self.rendering.head_only = false;
        self.answer(&Response::detail(refusal.status, refusal.detail), date, true, now);
    }

    /// Writes what the socket takes. Closes our side after the last answer.
    pub(super) fn flush(&mut self, limits: &Limits, now: Moment) -> io::Result<()> {
        while self.has_output() {
            match self.stream.write(self.output.unsent()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.output.note_sent(written);
                    self.since = now;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if matches!(self.phase, Phase::Closing) {
            self.stream.shutdown(Shutdown::Write)?;
            self.phase = Phase::Lingering { until: now + limits.linger_time, budget: LINGER_BYTES };
        }
        self.release_buffers();
        Ok(())
    }

    fn release_buffers(&mut self) {
        let keep = if self.phase.waiting().is_some() { 0 } else { KEEP_BUFFER };
        self.input.release(keep);
        self.output.release(keep);
    }

    /// When something must have happened.
    pub(super) fn deadline(&self, limits: &Limits) -> Moment {
        if self.has_output() {
            return self.since + limits.write_time;
        }
        match (&self.phase, self.started) {
            (Phase::Busy, _) => Moment::FAR_FUTURE,
            (Phase::Parked { until, .. } | Phase::Lingering { until, .. }, _) => *until,
            (Phase::Streaming(streaming), _) => streaming.until,
            (_, None) if self.first_request => self.since + limits.head_time,
            (_, None) => self.since + limits.idle_time,
            (_, Some(started)) if self.input.is_in_a_head() => started + limits.head_time,
            (_, Some(started)) => started + limits.body_time,
        }
    }

    /// Whether part of a request has been read.
    pub(super) fn is_in_a_request(&self) -> bool {
        matches!(self.phase, Phase::Reading) && self.started.is_some()
    }
}
