//! One request and its answer: sends, waits, and has what comes collected. What may stop it is in
//! [`ladder`](super::ladder). Nothing here waits for a killed process: that is the reaper's work.

use std::sync::Arc;
use std::time::Duration;

use super::collector::{Collector, Reaction};
use super::events::{Question, Reply};
use super::execution::Cause;
use super::ladder::{Ladder, Stop, Stops};
use super::output::Read;
use super::process::Process;
use super::request::Stream;
use super::transport::{Ready, Transport};
use crate::clock::Moment;
use crate::protocol::{self, Kind, flag};

/// The last bytes of stderr that a post-mortem keeps.
pub(crate) const STDERR_TAIL: usize = 4 << 10;

/// How long a worker that has closed a channel is given to end: its exit says more than the channel.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(1);

/// A request on its way, with everything that may end it.
pub(crate) struct Exchange<'a> {
    pub(crate) request: u64,
    /// What is still to be sent: the request, later answers to questions.
    pub(crate) unsent: Vec<u8>,
    pub(crate) stops: Stops,
    pub(crate) collector: Collector<'a>,
    pub(crate) frame_cap: usize,
    /// Number of a reset whose answer may still come before the events of this request, or among them.
    pub(crate) reset: Option<u64>,
    /// How long a question may wait for its answer.
    pub(crate) input_timeout: Option<Duration>,
    sent: usize,
    /// Whether `unsent` holds answers to questions only: the request itself was sent.
    replying: bool,
    /// Events that came so far.
    events: u64,
    pub(super) ladder: Option<Ladder>,
    pub(super) question: Option<(Question, Option<Moment>)>,
}

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The answer is the first frame in the transport's inbox.
    Answered,
    /// The process ended.
    Died,
    /// The group was killed: the ladder came to its last rung, or the hard limit passed.
    Killed,
    /// The worker broke the protocol; its group is killed.
    Broken(String),
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(request: u64, frames: Vec<u8>, stops: Stops, collector: Collector<'a>) -> Exchange<'a> {
        Exchange {
            request,
            unsent: frames,
            stops,
            collector,
            frame_cap: protocol::DEFAULT_FRAME_CAP,
            reset: None,
            input_timeout: None,
            sent: 0,
            replying: false,
            events: 0,
            ladder: None,
            question: None,
        }
    }

    /// Whether and why the worker was asked to stop.
    pub(crate) fn stop(&self) -> Option<Stop> {
        self.ladder.as_ref().map(|ladder| ladder.why)
    }

    /// Sends the request; the rest goes when the worker takes it.
    pub(crate) fn begin(&mut self, transport: &mut Transport, process: &Process) -> Option<End> {
        if self.unsent.is_empty() {
            return None;
        }
        let end = self.start_sending(transport).err().map(|error| cannot_send(process, error))?;
        Some(self.wind_up(end, transport, process))
    }

    fn start_sending(&mut self, transport: &Transport) -> rustix::io::Result<()> {
        self.sent = transport.write_some(&self.unsent)?;
        if self.is_sending() {
            return transport.watch_requests(true);
        }
        // A large request is not kept while its code runs.
        (self.unsent, self.sent) = (Vec::new(), 0);
        Ok(())
    }

    /// Waits until something happens, at most until the next deadline, and sees to it. The end of
    /// the exchange, if this was it.
    pub(crate) fn step(&mut self, transport: &mut Transport, process: &Process) -> Option<End> {
        let end = self.advance(transport, process)?;
        Some(self.wind_up(end, transport, process))
    }

    /// What is left to do at every end.
    fn wind_up(&mut self, end: End, transport: &mut Transport, process: &Process) -> End {
        if let End::Broken(reason) = &end {
            process.kill_group(Cause::Protocol(reason.clone()));
        }
        if end != End::Answered {
            // What the worker said before its end is in the pipes.
            self.drain(transport, true, true);
        }
        self.collector.finish();
        end
    }

    /// Takes every step up to the end.
    pub(crate) fn run(&mut self, transport: &mut Transport, process: &Process) -> End {
        loop {
            if let Some(end) = self.step(transport, process) {
                return end;
            }
        }
    }

    fn advance(&mut self, transport: &mut Transport, process: &Process) -> Option<End> {
        let deadline = match self.climb(transport, process) {
            Ok(deadline) => deadline,
            Err(end) => return Some(end),
        };
        let ready = match transport.wait(deadline) {
            Ok(ready) => ready,
            Err(error) => return Some(End::Broken(format!("waiting for it failed: {error}"))),
        };
        if ready.nothing() {
            return None;
        }
        if ready.wake() {
            transport.waker().clear();
        }
        self.read_output(transport, ready);
        if ready.requests()
            && let Err(error) = self.send_rest(transport)
        {
            return Some(cannot_send(process, error));
        }
        let events = self.events;
        let end = self.read_frames(transport, process, ready)?;
        if end == End::Answered {
            transport.answered();
            if self.is_sending()
                && let Err(end) = self.send_needless(transport, process)
            {
                return Some(end);
            }
            // What was written before the answer was there when the answer came. But if an event woke us,
            // the answer may have come after the look at the pipes.
            let later = self.events > events;
            self.drain(transport, ready.stdout() || later, ready.stderr() || later);
        }
        Some(end)
    }

    /// Sends what is left after the answer: an input reply that the code, stopped meanwhile, does not
    /// wait for any more. A worker that takes requests again reads it and forgets it.
    fn send_needless(&mut self, transport: &mut Transport, process: &Process) -> Result<(), End> {
        let deadline = Moment::after(END_PATIENCE);
        while self.replying && self.is_sending() {
            let ready = transport
                .wait(Some(deadline))
                .map_err(|error| End::Broken(format!("waiting for it failed: {error}")))?;
            if ready.nothing() || ready.exit() {
                break;
            }
            if ready.wake() {
                transport.waker().clear();
            }
            self.read_output(transport, ready);
            self.send_rest(transport).map_err(|error| cannot_send(process, error))?;
            if ready.replies() && !transport.is_inline() {
                break;
            }
        }
        if self.is_sending() {
            // The rest would be taken for the next request.
            return Err(End::Broken("it answered a request that it had not read".to_owned()));
        }
        Ok(())
    }

    pub(super) fn is_sending(&self) -> bool {
        self.sent < self.unsent.len()
    }

    /// Passes an answer on, or tells the worker that none came; until when to wait for one.
    pub(super) fn settle_question(
        &mut self,
        transport: &mut Transport,
        process: &Process,
    ) -> Result<Option<Moment>, End> {
        let Some((question, deadline)) = &self.question else { return Ok(None) };
        let deadline = *deadline;
        let (flags, line) = match question.take() {
            Some(Reply::Line(line)) => (0, line),
            Some(Reply::End) => (flag::END_OF_INPUT, String::new()),
            None if deadline.is_some_and(|deadline| Moment::now() >= deadline) => {
                (flag::NO_ANSWER, String::new())
            }
            None => return Ok(deadline),
        };
        self.question = None;
        self.reply(transport, flags, &line).map_err(|error| cannot_send(process, error))?;
        Ok(None)
    }

    fn reply(&mut self, transport: &mut Transport, flags: u8, line: &str) -> rustix::io::Result<()> {
        let encode = |flags, line: &str| {
            protocol::encode_with_flags(
                Kind::InputReply,
                flags,
                self.request,
                b"",
                line.as_bytes(),
                self.frame_cap,
            )
        };
        // A line beyond the cap is no line.
        let frame = encode(flags, line).or_else(|| encode(flag::END_OF_INPUT, "")).unwrap_or_default();
        let was_sending = self.is_sending();
        self.replying |= !was_sending;
        self.unsent.drain(..self.sent);
        self.unsent.extend_from_slice(&frame);
        self.sent = 0;
        if was_sending { Ok(()) } else { self.start_sending(transport) }
    }

    fn send_rest(&mut self, transport: &mut Transport) -> rustix::io::Result<()> {
        self.sent += transport.write_some(&self.unsent[self.sent..])?;
        if self.is_sending() {
            return Ok(());
        }
        (self.unsent, self.sent) = (Vec::new(), 0);
        transport.watch_requests(false)
    }

    fn read_output(&mut self, transport: &mut Transport, ready: Ready) {
        if ready.stdout() && self.collector.read(transport.stdout.as_mut(), Stream::Stdout) == Read::Closed {
            transport.close_stdout();
        }
        if ready.stderr() && self.collector.read(transport.stderr.as_mut(), Stream::Stderr) == Read::Closed {
            transport.close_stderr();
        }
    }

    /// Reads what the worker sends; the exchange's end, if this was it.
    fn read_frames(&mut self, transport: &mut Transport, process: &Process, ready: Ready) -> Option<End> {
        if ready.replies() {
            let mut open = true;
            // An answer that came along with that to a reset needs no other look.
            if !matches!(transport.next_frame(), Ok(Some(_))) {
                open = match transport.read_replies() {
                    Ok(open) => open,
                    Err(error) => return Some(End::Broken(format!("reading its replies failed: {error}"))),
                };
            }
            loop {
                let kind = match transport.next_frame() {
                    Ok(Some((frame, used)))
                        if frame.header.kind == Kind::Clean && Some(frame.header.request) == self.reset =>
                    {
                        self.reset = None;
                        transport.consume(used);
                        continue;
                    }
                    Ok(Some((frame, _))) if frame.header.request != self.request => {
                        let (kind, other) = (frame.header.kind, frame.header.request);
                        let reason = format!("it sent {kind:?} for request {other}, not {}", self.request);
                        return Some(End::Broken(reason));
                    }
                    Ok(Some((frame, _))) => frame.header.kind,
                    Ok(None) => break,
                    Err(malformed) => return Some(End::Broken(malformed.to_string())),
                };
                if !kind.is_event() {
                    return Some(End::Answered);
                }
                if let Err(end) = self.take_event(transport, process) {
                    return Some(end);
                }
            }
            if !open {
                return Some(if process.ends_within(END_PATIENCE) {
                    End::Died
                } else {
                    End::Broken("it closed its reply channel".to_owned())
                });
            }
            return None;
        }
        // Only when no reply is left to read: an answer sent just before the end counts.
        ready.exit().then_some(End::Died)
    }

    fn take_event(&mut self, transport: &mut Transport, process: &Process) -> Result<(), End> {
        let waker = Arc::clone(transport.waker());
        let Ok(Some((frame, used))) = transport.next_frame() else { return Ok(()) };
        let reaction = self.collector.take(&frame, &waker).map_err(End::Broken)?;
        transport.consume(used);
        self.events += 1;
        if !matches!(reaction, Reaction::Nothing) && self.ladder.is_none() {
            // Code that is interrupted gives up its question and may ask anew; else it waits.
            if self.question.is_some() {
                return Err(End::Broken("it asked again before it had an answer".to_owned()));
            }
            if self.is_sending() {
                return Err(End::Broken("it asked before it had read what it was sent".to_owned()));
            }
        }
        match reaction {
            Reaction::Nothing => {}
            Reaction::Await(question) => {
                if self.question.take().is_some() {
                    // Each question has one answer, in their order: so the worker can tell them apart.
                    self.reply(transport, flag::END_OF_INPUT, "")
                        .map_err(|error| cannot_send(process, error))?;
                }
                self.question = Some((question, self.input_timeout.map(Moment::after)));
            }
            Reaction::NoInput => {
                self.reply(transport, flag::END_OF_INPUT, "").map_err(|error| cannot_send(process, error))?;
            }
        }
        Ok(())
    }

    /// Reads what the pipes hold at this moment.
    fn drain(&mut self, transport: &mut Transport, stdout: bool, stderr: bool) {
        if stdout {
            self.collector.drain(transport.stdout.as_mut(), Stream::Stdout);
        }
        if stderr {
            self.collector.drain(transport.stderr.as_mut(), Stream::Stderr);
        }
    }
}

/// A worker that has closed its request channel has ended, or lives on without it.
fn cannot_send(process: &Process, error: rustix::io::Errno) -> End {
    if process.ends_within(END_PATIENCE) {
        End::Died
    } else {
        End::Broken(format!("it does not take requests: {error}"))
    }
}
