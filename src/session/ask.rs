//! Requests that run no user code: is it there, what is in it, what did its user leave?

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::decode_error;
use super::collector::Collector;
use super::exchange::{END_PATIENCE, End, Exchange, STDERR_TAIL};
use super::execution::{Cause, ExecutionError};
use super::features::Feature;
use super::ladder::{Stop, Stops};
use super::{Session, Worker};
use crate::cancel::{CancelToken, Registration, Wake};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// Time that a worker gets to look into itself.
const INSPECTION_LIMIT: Duration = Duration::from_secs(10);

/// One name in a worker's namespace, from [`Session::names`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Name {
    /// The name.
    pub name: String,
    /// The type of its value, such as `DataFrame`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The size of its value in bytes as far as the language knows, without what it refers to.
    #[serde(default)]
    pub size: Option<u64>,
    /// Whether the warm-up made it: a reset keeps it.
    #[serde(default)]
    pub warm: bool,
}

/// What a worker's user left behind, compared with its warm state, from [`Session::fingerprint`].
/// Lists hold at most 1 000 entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Fingerprint {
    /// Global names that are new, changed or gone.
    pub globals: Vec<String>,
    /// Modules that were imported.
    pub modules: Vec<String>,
    /// Names of environment variables that are new, changed or gone.
    pub environment: Vec<String>,
    /// The working directory, if it is another one.
    pub cwd: Option<String>,
    /// Threads that go on.
    pub threads: u64,
    /// Child processes.
    pub children: u64,
    /// Open file descriptors: number, and what it leads to.
    pub fds: Vec<String>,
}

impl Fingerprint {
    /// Whether nothing was left but modules, which do no harm by being loaded.
    pub fn is_clean(&self) -> bool {
        *self == Fingerprint { modules: self.modules.clone(), ..Fingerprint::default() }
    }
}

/// What came of a request besides its answer.
pub(super) struct Asked {
    /// The answer's first part, or the exception that it was; else why there is none.
    pub(super) answer: Result<Result<Vec<u8>, ExecutionError>, Silence>,
    /// The last bytes of stderr.
    pub(super) stderr: String,
}

/// Why a request has no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// The token was cancelled; its group is killed.
    Cancelled,
    /// It was asked to stop, did not, and its group is killed.
    Late,
    /// The process ended.
    Died,
    /// It broke the protocol; its group is killed.
    Broken(String),
}

impl Session {
    /// Asks whether the worker still answers, and returns how long it took. A worker that does not
    /// answer within `limit` (stopped by SIGSTOP, stuck in a thread that keeps the interpreter's
    /// lock) is killed. Blocks for `limit` at most.
    ///
    /// # Errors
    /// [`Error::Unresponsive`], [`Error::Cancelled`] (its [`Scope`](crate::Scope) was, and it had not
    /// answered; it is killed), [`Error::SessionDead`], [`Error::Protocol`], [`Error::Io`].
    pub fn ping(&mut self, limit: Duration) -> Result<Duration> {
        let started = Moment::now();
        self.question(Kind::Ping, b"", Kind::Pong, limit)?;
        Ok(Moment::now().saturating_since(started))
    }

    /// The global names of the worker: type and size of each. Blocks until the worker answers, at
    /// most 10 s, then it is killed.
    ///
    /// # Errors
    /// [`Error::Unsupported`], else as [`ping`](Session::ping).
    pub fn names(&mut self) -> Result<Vec<Name>> {
        self.inspect("names")
    }

    /// What differs from the state that the worker had after its warm-up. Blocks as
    /// [`names`](Session::names) does.
    ///
    /// # Errors
    /// As [`names`](Session::names).
    pub fn fingerprint(&mut self) -> Result<Fingerprint> {
        self.inspect("fingerprint")
    }

    /// Has the worker go back to the state after its warm-up: namespace, history, environment,
    /// directory, streams, signal handlers. Returns what could not be undone (threads, children, open
    /// descriptors, …): if that is not empty, only a [`restart`](Session::restart) makes it clean.
    /// Modules stay imported, and objects of the warm state that were changed in place stay changed.
    /// Blocks as [`names`](Session::names) does.
    ///
    /// # Errors
    /// As [`names`](Session::names).
    pub fn reset(&mut self) -> Result<Vec<String>> {
        self.require(Feature::Reset)?;
        let answer = self.question(Kind::Reset, b"", Kind::Clean, INSPECTION_LIMIT)?;
        let left: Vec<String> = serde_json::from_slice(&answer)
            .map_err(|error| self.break_off(format!("a reset report that cannot be read: {error}")))?;
        self.tainted |= !left.is_empty();
        Ok(left)
    }

    fn inspect<T: for<'de> Deserialize<'de>>(&mut self, what: &str) -> Result<T> {
        self.require(Feature::Inspect)?;
        let first = serde_json::json!({ "what": what }).to_string();
        let answer = self.question(Kind::Inspect, first.as_bytes(), Kind::Inspected, INSPECTION_LIMIT)?;
        serde_json::from_slice(&answer)
            .map_err(|error| self.break_off(format!("an inspection that cannot be read: {error}")))
    }

    pub(super) fn question(
        &mut self,
        kind: Kind,
        first: &[u8],
        answer: Kind,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        self.question_with_flags(kind, 0, first, answer, limit)
    }

    pub(super) fn question_with_flags(
        &mut self,
        kind: Kind,
        flags: u8,
        first: &[u8],
        answer: Kind,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        self.settle()?;
        self.ensure_usable(Moment::now())?;
        let (id, cap) = (self.next_request(), self.config.frame_cap);
        let frame = protocol::encode_with_flags(kind, flags, id, first, b"", cap)
            .ok_or(Error::RequestTooLarge { bytes: first.len(), cap })?;
        let bound = self.bound.clone();
        if bound.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        let _registration = self.register(bound.as_ref());
        let stops = Stops { soft: Some(Moment::after(limit)), tokens: [bound, None], ..self.stops() };
        let Asked { answer, stderr } = self.ask(id, frame, answer, stops, Collector::quiet(STDERR_TAIL));
        match answer {
            Ok(Ok(first)) => Ok(first),
            Ok(Err(error)) => Err(self.break_off(format!("it answered {kind:?} with an error: {error}"))),
            Err(Silence::Broken(reason)) => {
                self.bury(stderr, Some(id));
                Err(Error::Protocol { session: self.id, reason })
            }
            Err(Silence::Died) => {
                self.bury(stderr, Some(id));
                Err(self.dead())
            }
            Err(Silence::Late) => {
                self.bury(stderr, Some(id));
                Err(Error::Unresponsive { session: self.id, limit })
            }
            Err(Silence::Cancelled) => {
                self.bury(stderr, Some(id));
                Err(Error::Cancelled)
            }
        }
    }

    /// Has the token wake whoever waits for the worker.
    pub(super) fn register(&self, token: Option<&CancelToken>) -> Option<Registration> {
        let (token, worker) = (token?, self.worker.as_ref()?);
        Some(token.register(Arc::clone(worker.transport.waker()) as Arc<dyn Wake>))
    }

    /// How a request without user code is stopped: at its deadline, without a grace.
    pub(super) fn stops(&self) -> Stops {
        Stops { sigint: self.sigint, ..Stops::default() }
    }

    /// Sends a request and waits for an answer of this kind, or an *error*.
    pub(super) fn ask(
        &mut self,
        id: u64,
        frame: Vec<u8>,
        answer: Kind,
        stops: Stops,
        collector: Collector<'_>,
    ) -> Asked {
        let Some(Worker { transport, process, .. }) = &mut self.worker else {
            return Asked { answer: Err(Silence::Died), stderr: String::new() };
        };
        let mut exchange = Exchange::new(id, frame, stops, collector);
        let end = match exchange.begin(transport, process) {
            Some(end) => end,
            None => exchange.run(transport, process),
        };
        let cancelled = exchange.stops.tokens.iter().flatten().any(CancelToken::is_cancelled);
        let stop = exchange.stop();
        let answer = match end {
            End::Answered => self.take_asked(answer).map_err(Silence::Broken),
            _ if cancelled && stop == Some(Stop::Cancelled) => Err(Silence::Cancelled),
            End::Killed => Err(Silence::Late),
            End::Died => Err(Silence::Died),
            End::Broken(reason) => Err(Silence::Broken(reason)),
        };
        match &answer {
            Err(Silence::Cancelled) => self.process().kill_group(Cause::Retired),
            Err(Silence::Broken(reason)) => self.process().kill_group(Cause::Protocol(reason.clone())),
            _ => {}
        }
        Asked { answer, stderr: exchange.collector.stderr.last(STDERR_TAIL) }
    }

    fn take_asked(&mut self, kind: Kind) -> Result<Result<Vec<u8>, ExecutionError>, String> {
        let Some(worker) = &mut self.worker else { return Err("no worker".to_owned()) };
        let (answer, used) = match worker.transport.next_frame() {
            Ok(Some((frame, used))) if frame.header.kind == kind => (Ok(frame.first.to_vec()), used),
            Ok(Some((frame, used))) if frame.header.kind == Kind::Error => {
                (Err(decode_error(frame.first)?), used)
            }
            Ok(Some((frame, _))) => {
                return Err(format!("it sent {:?} instead of {kind:?}", frame.header.kind));
            }
            Ok(None) => return Err("an incomplete answer".to_owned()),
            Err(malformed) => return Err(malformed.to_string()),
        };
        worker.transport.consume(used);
        if worker.transport.has_unread() {
            return Err(format!("it sent more than {kind:?}"));
        }
        Ok(answer)
    }

    /// Ends a session that broke the protocol.
    pub(super) fn break_off(&mut self, reason: String) -> Error {
        self.process().kill_group(Cause::Protocol(reason.clone()));
        self.process().ends_within(END_PATIENCE);
        self.bury(String::new(), None);
        Error::Protocol { session: self.id, reason }
    }
}
