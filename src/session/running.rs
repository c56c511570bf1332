//! One execution, from its request to its [`Execution`]: all at once, or event by event.

use std::fmt;
use std::sync::Arc;

use super::accounting::{self, Meter};
use super::answer::Answer;
use super::artefacts::Snapshot;
use super::collector::Collector;
use super::events::Event;
use super::exchange::{End, Exchange, STDERR_TAIL};
use super::execution::{Cause, Execution, Limit, Outcome, TimeLimit};
use super::features::Feature;
use super::ladder::{Stop, Stops};
use super::request::{Request, Work};
use super::{Session, Worker};
use crate::cancel::{CancelToken, Registration, Wake};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Kind, flag};

/// Of what a worker that died has written to stderr, so much is searched for the limit behind it: a
/// runtime that is out of memory prints its stack after the reason.
const LAST_WORDS: usize = 16 << 10;

/// Code that is running, as an iterator of its [`Event`]s: output, displays, progress, questions.
/// From [`Session::begin`].
///
/// The worker is heard only while [`next`](Iterator::next) or [`finish`](Running::finish) waits. A
/// caller that takes its time between two events holds the code back once a pipe is full (64 KiB to
/// 1 MiB), and time limits and cancels wait for it too.
///
/// Dropping it stops the code as a cancelled token would: blocks for the grace at most.
///
/// ```no_run
/// use remuda::{Event, Runtime, Session};
///
/// let mut session = Session::builder(Runtime::python("python3")).start()?;
/// let mut running = session.begin("for i in range(3): print(i)\n'done'")?;
/// for event in &mut running {
///     if let Event::Output(_, text) = event {
///         print!("{text}");
///     }
/// }
/// assert_eq!(running.finish()?.value, "done");
/// # Ok::<(), remuda::Error>(())
/// ```
#[must_use = "dropping it stops the code"]
pub struct Running<'s, 'r> {
    session: &'s mut Session,
    exchange: Exchange<'r>,
    /// How it ended, once it has.
    end: Option<End>,
    meter: Option<Meter>,
    snapshot: Option<Snapshot>,
    registrations: [Option<Registration>; 2],
    started: Moment,
    finished: bool,
}

impl Session {
    /// Runs code or a call and waits for its end.
    ///
    /// Blocks until the code has ended, its time limit and grace have passed, or its token is
    /// cancelled and the grace has passed. What the code does, even killing its process, is the
    /// returned [`Execution`]'s outcome. After an outcome that took the process's life the session
    /// is dead; [`restart`](Session::restart) gives it a new process.
    ///
    /// # Errors
    /// [`Error::SessionDead`] if the process had ended before, [`Error::Cancelled`] if the token was
    /// cancelled before, [`Error::RequestTooLarge`], [`Error::Unsupported`] (the worker does not take
    /// such requests), [`Error::Protocol`] (the session is dead then), [`Error::Io`].
    ///
    /// # Panics
    /// If a callback panics; the session is dead then.
    pub fn execute<'a>(&mut self, request: impl Into<Request<'a>>) -> Result<Execution> {
        self.execute_request(&mut request.into())
    }

    /// As [`execute`](Session::execute); the request is as it was if it was not run.
    pub(crate) fn execute_request(&mut self, request: &mut Request<'_>) -> Result<Execution> {
        self.run(request, false)?.finish()
    }

    /// Begins to run code or a call and returns at once: iterate over what happens, then
    /// [`finish`](Running::finish). Callbacks of the request are called as well.
    ///
    /// # Errors
    /// As [`execute`](Session::execute), as far as they show before the code runs.
    pub fn begin<'s, 'r>(&'s mut self, request: impl Into<Request<'r>>) -> Result<Running<'s, 'r>> {
        self.run(&mut request.into(), true)
    }

    fn run<'s, 'r>(&'s mut self, request: &mut Request<'r>, queued: bool) -> Result<Running<'s, 'r>> {
        let tokens = [request.cancel.clone(), self.bound.clone()];
        if tokens.iter().flatten().any(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        let started = Moment::now();
        self.ensure_usable(started)?;
        let reset = self.owes_reset().then(|| self.next_request());
        let id = self.next_request();
        let answers_input = queued || request.observers.input.is_some();
        let mut frames = self.encode(id, request, answers_input)?;
        let config = Arc::clone(&self.config);
        let sigint = self.sigint;
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let registrations = tokens.each_ref().map(|token| {
            token.as_ref().map(|token| token.register(Arc::clone(worker.transport.waker()) as Arc<dyn Wake>))
        });
        let ask = self.asks.begin();
        self.executing = true;
        let (soft, hard) = (request.time_limit.or(config.time_limit), request.hard_time_limit);
        let (mut began, mut answer_of_reset) = (started, None);
        if let Some(reset) = reset {
            // What is looked at before and after it must not be the reset's work.
            let apart = request.artefacts || request.measure;
            let along = if apart { Vec::new() } else { std::mem::take(&mut frames) };
            let watched = soft.is_some() || hard.is_some();
            let ahead = self.reset_ahead(reset, along, &tokens, watched);
            let left = ahead.inspect_err(|_| self.does_not_begin())?;
            if !apart {
                frames = left.unsent;
            }
            (began, answer_of_reset) = (left.began.unwrap_or(started), left.answer);
        }
        let (soft, hard) = (soft.map(|limit| began + limit), hard.map(|limit| began + limit));
        let snapshot = if request.artefacts {
            let seen = self.files().and_then(|files| Snapshot::of(&files));
            Some(seen.inspect_err(|_| self.does_not_begin())?)
        } else {
            None
        };
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let meter = request.measure.then(|| Meter::start(&worker.process));
        let stops = Stops {
            soft,
            hard,
            grace: config.grace,
            tokens,
            asks: Some((Arc::clone(&self.asks), ask)),
            sigint,
        };
        let output_cap = request.output_cap.unwrap_or(config.output_cap);
        let observers = std::mem::take(&mut request.observers);
        let mut collector = Collector::new(output_cap, config.event_cap, observers);
        if queued {
            collector.queue_events();
        }
        let mut exchange = Exchange::new(id, frames, stops, collector);
        exchange.frame_cap = config.frame_cap;
        exchange.input_timeout = request.input_timeout;
        exchange.reset = answer_of_reset;
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let end = exchange.begin(&mut worker.transport, &worker.process);
        Ok(Running { session: self, exchange, end, meter, snapshot, registrations, started, finished: false })
    }

    /// The request that was announced is given up before anything of it was sent, or can run.
    fn does_not_begin(&mut self) {
        self.executing = false;
        self.asks.end();
    }

    /// All frames of a request: its attachments, then itself.
    fn encode(&self, id: u64, request: &Request<'_>, answers_input: bool) -> Result<Vec<u8>> {
        let cap = self.config.frame_cap;
        let mut frames = Vec::new();
        if !request.attachments.is_empty() {
            self.require(Feature::Attachments)?;
        }
        for attachment in &request.attachments {
            let name = serde_json::json!({ "name": attachment.name }).to_string();
            let frame = protocol::encode(Kind::Attachment, id, name.as_bytes(), &attachment.data, cap)
                .ok_or(Error::RequestTooLarge { bytes: attachment.size(), cap })?;
            frames.extend_from_slice(&frame);
        }
        let options;
        let (kind, first, second) = match &request.work {
            Work::Code { source, script } => {
                self.require(Feature::Execute)?;
                options = script.as_ref().map_or_else(String::new, |script| {
                    serde_json::json!({ "file": script.file, "args": script.args }).to_string()
                });
                (Kind::Execute, options.as_bytes(), source.as_bytes())
            }
            Work::Call(call) => {
                self.require(Feature::Call)?;
                let (function, args, kwargs) = (&call.function, &call.args, &call.kwargs);
                options =
                    serde_json::json!({ "function": function, "args": args, "kwargs": kwargs }).to_string();
                (Kind::Call, &b""[..], options.as_bytes())
            }
        };
        let mut flags = 0;
        if answers_input && self.can(Feature::Input) {
            flags |= flag::ANSWERS_INPUT;
        }
        if request.measure {
            flags |= flag::MEASURE;
        }
        if self.owes_reset() {
            flags |= flag::ONLY_IF_CLEAN;
        }
        let frame = protocol::encode_with_flags(kind, flags, id, first, second, cap)
            .ok_or(Error::RequestTooLarge { bytes: first.len() + second.len(), cap })?;
        if frames.is_empty() {
            return Ok(frame);
        }
        frames.extend_from_slice(&frame);
        Ok(frames)
    }

    /// What an exchange's end means for the caller and for this session.
    fn conclude(
        &mut self,
        end: End,
        stop: Option<Stop>,
        stderr: String,
        request: u64,
    ) -> Result<(Outcome, Answer)> {
        let stopped = |killed| match stop {
            Some(Stop::SoftLimit) => Some(Outcome::TimedOut { limit: TimeLimit::Soft, killed }),
            Some(Stop::HardLimit) => Some(Outcome::TimedOut { limit: TimeLimit::Hard, killed }),
            Some(Stop::Cancelled) => Some(Outcome::Cancelled { killed }),
            None => None,
        };
        let outcome = match end {
            End::Answered => match self.take_answer() {
                Ok(answer) => {
                    let limit = answer
                        .error
                        .as_ref()
                        .and_then(|error| accounting::exceeded_by_error(&self.config.limits, error));
                    let outcome = match stopped(false) {
                        Some(outcome) if answer.stopped => outcome,
                        _ if let Some(limit) = limit => Outcome::LimitExceeded { limit, killed: false },
                        _ if answer.error.is_some() => Outcome::Failed,
                        _ => Outcome::Completed,
                    };
                    // Code that was asked to stop in the middle may have left anything behind; a process
                    // without CPU time left is about to be killed.
                    self.tainted |= stop.is_some() || limit == Some(Limit::CpuTime);
                    return Ok((outcome, answer));
                }
                Err(reason) => {
                    self.process().kill_group(Cause::Protocol(reason.clone()));
                    self.bury(stderr, Some(request));
                    return Err(Error::Protocol { session: self.id, reason });
                }
            },
            End::Broken(reason) => {
                self.bury(stderr, Some(request));
                return Err(Error::Protocol { session: self.id, reason });
            }
            // SIGINT's default action, or the code's own way out.
            End::Died => stopped(true).unwrap_or(Outcome::Died),
            End::Killed => stopped(true).unwrap_or(Outcome::Cancelled { killed: true }),
        };
        self.bury(stderr, Some(request));
        Ok((outcome, Answer::default()))
    }

    fn take_answer(&mut self) -> Result<Answer, String> {
        let Some(worker) = &mut self.worker else { return Err("no worker".to_owned()) };
        let (answer, used) = match worker.transport.next_frame() {
            Ok(Some((frame, used))) => (Answer::decode(&frame)?, used),
            Ok(None) => return Err("an incomplete answer".to_owned()),
            Err(malformed) => return Err(malformed.to_string()),
        };
        worker.transport.consume(used);
        if worker.transport.has_unread() {
            return Err("it sent more than its answer".to_owned());
        }
        Ok(answer)
    }
}

impl Running<'_, '_> {
    /// Waits for the end and returns what came of it. Events that were not looked at are dropped;
    /// what they said is in the [`Execution`]. A question that nobody takes finds the end of input.
    ///
    /// # Errors
    /// As [`Session::execute`].
    pub fn finish(mut self) -> Result<Execution> {
        self.run_to_end();
        self.conclude()
    }

    fn run_to_end(&mut self) {
        // Also what the caller has not looked at: a question in there would wait for an answer.
        while self.exchange.collector.pop().is_some() {}
        while self.end.is_none() {
            self.step();
            while self.exchange.collector.pop().is_some() {}
        }
    }

    fn step(&mut self) {
        let Some(Worker { transport, process, .. }) = &mut self.session.worker else {
            self.end = Some(End::Died);
            return;
        };
        self.end = self.exchange.step(transport, process);
    }

    fn conclude(&mut self) -> Result<Execution> {
        self.finished = true;
        let session = &mut *self.session;
        session.executing = false;
        session.asks.end();
        self.registrations = [None, None];
        let exchange = &mut self.exchange;
        if exchange.stop().is_some() || exchange.stops.tokens.iter().flatten().any(CancelToken::is_cancelled)
        {
            // A wake-up that nobody waits for any more.
            if let Some(worker) = &session.worker {
                worker.transport.waker().clear();
            }
        }
        let now = Moment::now();
        let duration = now.saturating_since(self.started);
        session.last_answer = now;
        let collector = &mut exchange.collector;
        let usage = self.meter.take().map(|meter| meter.stop(session.process(), collector.cpu_time));
        session.executions += 1;

        let end = self.end.take().unwrap_or(End::Died);
        let stderr_tail =
            if end == End::Answered { String::new() } else { collector.stderr.last(STDERR_TAIL) };
        let (stop, id) = (exchange.stop(), exchange.request);
        let concluded = session.conclude(end, stop, stderr_tail, id);
        if concluded.is_err() {
            session.tell(None, duration);
        }
        let (mut outcome, answer) = concluded?;
        let collector = &mut self.exchange.collector;
        if outcome == Outcome::Died
            && let Some(limit) = accounting::exceeded_by_end(
                &session.config.limits,
                session.process(),
                &collector.stderr.last(LAST_WORDS),
            )
        {
            outcome = Outcome::LimitExceeded { limit, killed: true };
        }
        // Code that has removed its directory has left no file in it.
        let artefacts = self
            .snapshot
            .take()
            .map(|snapshot| session.files().and_then(|files| snapshot.changed(&files)).unwrap_or_default());
        let (stdout, stdout_dropped) = std::mem::take(&mut collector.stdout).finish();
        let (stderr, stderr_dropped) = std::mem::take(&mut collector.stderr).finish();
        if outcome != Outcome::Completed {
            session.errors += 1;
        }
        session.tell(Some(outcome), duration);
        let died = !session.process().is_alive();
        Ok(Execution {
            outcome,
            value: answer.value,
            repr: answer.repr,
            omitted: answer.omitted,
            bytes: answer.bytes,
            displays: std::mem::take(&mut collector.displays),
            attachments: std::mem::take(&mut collector.attachments),
            dropped_events: collector.dropped,
            error: answer.error,
            stdout,
            stderr,
            dropped: (stdout_dropped, stderr_dropped),
            duration,
            session: session.id,
            usage,
            artefacts,
            post_mortem: session.post_mortem.clone().filter(|_| died),
        })
    }
}

impl Iterator for Running<'_, '_> {
    type Item = Event;

    /// The next event, waited for; `None` once the code has ended.
    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.exchange.collector.pop() {
                return Some(event);
            }
            if self.end.is_some() {
                return None;
            }
            self.step();
        }
    }
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if std::thread::panicking() {
            // A callback has panicked: the worker is left in the middle of its answer.
            self.finished = true;
            self.session.asks.end();
            self.session.process().kill_group(Cause::Retired);
            return;
        }
        let token = CancelToken::new();
        token.cancel();
        self.exchange.stops.tokens[0] = Some(token);
        self.run_to_end();
        let _ = self.conclude();
    }
}

impl fmt::Debug for Running<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("session", &self.session.id)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
