//! One request and its answer: sends, waits, collects output, and climbs the cancel ladder.
//!
//! The ladder: flag, cancel frame and SIGINT to the group at once; the frame and the signal again
//! after half of the grace (for code that polls its flag and was left alone at first); SIGKILL to
//! the group after the grace. Nothing here waits for a killed process: that is the reaper's work.

use std::time::Duration;

use super::execution::Cause;
use super::output::{Capture, Pipe, Read};
use super::process::Process;
use super::request::{OutputCallback, Stream};
use super::transport::{Ready, Transport};
use crate::cancel::CancelToken;
use crate::clock::Moment;

/// The last bytes of stderr that a post-mortem keeps.
pub(crate) const STDERR_TAIL: usize = 4 << 10;

/// How long a worker that has closed a channel is given to end: its exit says more than the channel.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(1);

/// A request on its way, with everything that may end it.
pub(crate) struct Exchange<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) process: &'a Process,
    pub(crate) request: u64,
    /// When the ladder begins by itself.
    pub(crate) limit: Option<Moment>,
    pub(crate) grace: Duration,
    pub(crate) tokens: [Option<&'a CancelToken>; 2],
    pub(crate) output: Outputs<'a>,
}

/// Collected output, and who else sees it.
pub(crate) struct Outputs<'a> {
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
    pub(crate) observer: Option<OutputCallback<'a>>,
}

/// An exchange that is over.
pub(crate) struct Ended {
    pub(crate) end: End,
    /// Whether and why the worker was asked to stop.
    pub(crate) stop: Option<Stop>,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
}

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The answer is the first frame in the transport's inbox.
    Answered,
    /// The process ended.
    Died,
    /// The ladder came to its last rung.
    Killed,
    /// The worker broke the protocol; its group is killed.
    Broken(String),
}

/// A ladder on its way up.
struct Ladder {
    why: Stop,
    /// When the worker is asked again, until it was.
    again_at: Option<Moment>,
    kill_at: Moment,
}

/// Why the ladder was climbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    TimeLimit,
    Cancelled,
}

impl Exchange<'_> {
    /// Sends `frame` and waits for its answer.
    pub(crate) fn run(mut self, frame: &[u8]) -> Ended {
        let mut stop: Option<Ladder> = None;
        let end = self.converse(frame, &mut stop);
        if let End::Broken(reason) = &end {
            self.process.kill_group(Cause::Protocol(reason.clone()));
        }
        if end != End::Answered {
            // What the worker said before its end is in the pipes.
            self.drain(true, true);
        }
        let Outputs { stdout, stderr, .. } = self.output;
        Ended { end, stop: stop.map(|ladder| ladder.why), stdout, stderr }
    }

    fn converse(&mut self, frame: &[u8], stop: &mut Option<Ladder>) -> End {
        let mut unsent = match self.send(frame) {
            Ok(unsent) => unsent,
            Err(end) => return end,
        };
        loop {
            let deadline = match self.climb(stop, !unsent.is_empty()) {
                Ok(deadline) => deadline,
                Err(end) => return end,
            };
            let ready = match self.transport.wait(deadline) {
                Ok(ready) => ready,
                Err(error) => return End::Broken(format!("waiting for it failed: {error}")),
            };
            if ready.nothing() {
                continue;
            }
            if ready.wake() {
                self.transport.waker().clear();
            }
            self.read_output(ready);
            if ready.requests() {
                match self.send_rest(unsent) {
                    Ok(rest) => unsent = rest,
                    Err(end) => return end,
                }
            }
            if let Some(end) = self.read_answer(ready) {
                if end == End::Answered {
                    if !unsent.is_empty() {
                        // The rest would be taken for the next request.
                        return End::Broken("it answered a request that it had not read".to_owned());
                    }
                    self.drain(ready.stdout(), ready.stderr());
                }
                return end;
            }
        }
    }

    /// One look at the ladder: returns until when to wait, or the end. `sending`: a part of the
    /// request is still to be sent.
    fn climb(&self, stop: &mut Option<Ladder>, sending: bool) -> Result<Option<Moment>, End> {
        let cancelled = || self.tokens.iter().flatten().any(|token| token.is_cancelled());
        let Some(ladder) = stop else {
            let why = match self.limit {
                _ if cancelled() => Stop::Cancelled,
                Some(limit) if Moment::now() >= limit => Stop::TimeLimit,
                limit => return Ok(limit),
            };
            let now = Moment::now();
            let (again_at, kill_at) = (now + self.grace / 2, now + self.grace);
            self.interrupt(0, sending);
            *stop = Some(Ladder { why, again_at: Some(again_at), kill_at });
            return Ok(Some(again_at));
        };
        let now = Moment::now();
        if now >= ladder.kill_at {
            self.process.kill_group(match ladder.why {
                Stop::TimeLimit => Cause::TimeLimit,
                Stop::Cancelled => Cause::Cancelled,
            });
            return Err(End::Killed);
        }
        if ladder.again_at.is_some_and(|again_at| now >= again_at) {
            ladder.again_at = None;
            self.interrupt(1, sending);
        }
        Ok(ladder.again_at.or(Some(ladder.kill_at)))
    }

    fn interrupt(&self, attempt: u8, sending: bool) {
        // In line it would land in the middle of the request; the worker has not begun anyway.
        if !(sending && self.transport.is_inline()) {
            self.transport.cancel(self.request, attempt);
        }
        self.process.interrupt_group();
    }

    /// Writes what the worker takes at once; the rest goes when the channel has room.
    fn send<'f>(&mut self, frame: &'f [u8]) -> Result<&'f [u8], End> {
        if frame.is_empty() {
            return Ok(frame);
        }
        let written = self.transport.write_some(frame).map_err(|error| self.cannot_send(error))?;
        let rest = &frame[written..];
        if !rest.is_empty() {
            self.transport.watch_requests(true).map_err(|error| self.cannot_send(error))?;
        }
        Ok(rest)
    }

    fn send_rest<'f>(&mut self, rest: &'f [u8]) -> Result<&'f [u8], End> {
        let written = self.transport.write_some(rest).map_err(|error| self.cannot_send(error))?;
        let rest = &rest[written..];
        if rest.is_empty() {
            self.transport.watch_requests(false).map_err(|error| self.cannot_send(error))?;
        }
        Ok(rest)
    }

    /// A worker that has closed its request channel has ended, or lives on without it.
    fn cannot_send(&self, error: rustix::io::Errno) -> End {
        if self.process.ends_within(END_PATIENCE) {
            End::Died
        } else {
            End::Broken(format!("it does not take requests: {error}"))
        }
    }

    fn read_output(&mut self, ready: Ready) {
        if ready.stdout() && self.output.read(self.transport.stdout.as_mut(), Stream::Stdout) == Read::Closed
        {
            self.transport.close_stdout();
        }
        if ready.stderr() && self.output.read(self.transport.stderr.as_mut(), Stream::Stderr) == Read::Closed
        {
            self.transport.close_stderr();
        }
    }

    /// Reads replies; the exchange's end, if this was it.
    fn read_answer(&mut self, ready: Ready) -> Option<End> {
        if ready.replies() {
            let open = match self.transport.read_replies() {
                Ok(open) => open,
                Err(error) => return Some(End::Broken(format!("reading its replies failed: {error}"))),
            };
            match self.transport.next_frame() {
                Ok(Some((frame, _))) if frame.header.request == self.request => return Some(End::Answered),
                Ok(Some((frame, _))) => {
                    let (kind, other) = (frame.header.kind, frame.header.request);
                    return Some(End::Broken(format!(
                        "it sent {kind:?} for request {other}, not {}",
                        self.request
                    )));
                }
                Ok(None) => {}
                Err(malformed) => return Some(End::Broken(malformed.0)),
            }
            if !open {
                return Some(if self.process.ends_within(END_PATIENCE) {
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

    /// Reads what the pipes hold at this moment: a flood from a background thread or child cannot
    /// hold the caller.
    fn drain(&mut self, stdout: bool, stderr: bool) {
        if stdout {
            self.output.drain(self.transport.stdout.as_mut(), Stream::Stdout);
        }
        if stderr {
            self.output.drain(self.transport.stderr.as_mut(), Stream::Stderr);
        }
    }
}

impl Outputs<'_> {
    fn read(&mut self, pipe: Option<&mut Pipe>, stream: Stream) -> Read {
        let Some(pipe) = pipe else { return Read::Empty };
        let capture = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let observer = &mut self.observer;
        let read = capture.read_from(pipe, &mut |bytes| {
            if let (Some(observer), false) = (observer.as_mut(), bytes.is_empty()) {
                observer(stream, bytes);
            }
        });
        if let Read::Bytes(count) = read {
            pipe.carried(count);
        }
        read
    }

    fn drain(&mut self, mut pipe: Option<&mut Pipe>, stream: Stream) {
        let mut left = pipe.as_deref().map_or(0, Pipe::waiting);
        while left > 0 {
            let Read::Bytes(count) = self.read(pipe.as_deref_mut(), stream) else { return };
            left = left.saturating_sub(count);
        }
    }
}
