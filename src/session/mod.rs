//! A session: one live worker process that runs code, one request at a time.
//!
//! ```no_run
//! use remuda::{Runtime, Session};
//!
//! # fn main() -> remuda::Result<()> {
//! let mut session = Session::builder(Runtime::python("python3")).start()?;
//! let run = session.execute("print('hi'); 6 * 7")?;
//! assert_eq!(run.stdout, "hi\n");
//! assert_eq!(run.value, 42);
//! # Ok(())
//! # }
//! ```
//!
//! Files, in the order of a request: [`config`] and [`runtime`] say what to start, [`process`]
//! starts and watches it, [`start`] and [`warm`] make a session of it. [`running`] is one execution;
//! [`exchange`] carries its frames over the channels that [`transport`] owns, [`collector`] takes
//! what comes meanwhile ([`output`], [`events`]), [`answer`] decodes what came back, [`ask`] is for
//! requests without user code. [`interrupt`] stops it, [`accounting`] says what it used. [`reaper`]
//! and [`watchdog`] see to the end, held together by [`keeper`]; [`lending`] is what a pool needs.
//! [`template`] makes sessions by fork, with the process behind it in [`forker`]; [`checkpoint`] copies
//! live ones; [`fork_line`] is how both have a worker fork.

mod accounting;
mod answer;
mod artefacts;
mod ask;
mod checkpoint;
mod collector;
mod config;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod events;
mod exchange;
mod execution;
mod features;
mod files;
mod fork_line;
mod forker;
mod handover;
mod info;
mod interrupt;
mod keeper;
mod ladder;
mod lending;
mod limits;
mod output;
mod proc;
mod process;
mod reaper;
mod request;
mod running;
mod runtime;
mod scratch;
#[cfg(feature = "testing")]
pub(crate) mod stand_in;
mod start;
mod template;
mod transport;
mod warm;
mod watchdog;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use artefacts::{Artefact, Artefacts};
pub use ask::{Fingerprint, Name};
pub use checkpoint::Checkpoint;
pub use config::{SessionConfig, WorkDir};
pub use events::{Attachment, Display, Event, Progress, Prompt};
pub use execution::{
    Cause, Execution, ExecutionError, Exit, Limit, Omitted, Outcome, PostMortem, TimeLimit, Usage,
};
pub use features::Feature;
pub use files::Files;
pub use info::{SessionId, SessionInfo, SessionState};
pub use interrupt::InterruptHandle;
pub use limits::Limits;
pub use proc::Memory;
#[cfg(feature = "testing")]
pub(crate) use process::ChildEnds;
pub use request::{Call, OutputCallback, Request, Stream};
pub use running::Running;
pub use runtime::{Channels, Launch, Runtime};
pub use template::{Template, TemplateInfo};
pub use warm::{WarmImport, WarmReport};

pub(crate) use keeper::Keeper;
pub(crate) use process::Process;
pub(crate) use template::check as check_template;

use features::Features;
use interrupt::Asks;
use reaper::Ward;
use scratch::Scratch;
use start::Origin;
use transport::Transport;

use crate::cancel::CancelToken;
use crate::clock::{self, Moment};
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// How long dropping or terminating a session waits for its killed process: far beyond what the
/// kernel needs (72 ms for a GiB of memory), except for a process stuck in a device.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A session whose last answer is younger than this is not looked at before its next request: its
/// channels were, a moment ago. What is late by less than that could be late by a little more too.
const FRESH: Duration = Duration::from_micros(100);

/// One worker process and its channels.
///
/// A session belongs to one caller at a time (`&mut self`); it can move between threads. Its
/// process leads a process group of its own and ends with the session, whatever it started itself
/// included, and with this program, even when that is killed. (A child that makes a session or group
/// of its own, such as a daemon, leaves the worker's and outlives it.)
///
/// # Outcomes
///
/// What user code does is the [`Outcome`] of an [`Execution`], never an error of the call. After one that
/// says `killed: true`, and after [`Outcome::Died`], the session is dead: [`restart`](Session::restart) it.
///
/// # Stopping
///
/// By a [`time_limit`](Request::time_limit), a [`hard_time_limit`](Request::hard_time_limit), a
/// [`CancelToken`], or from any thread by an [`interrupt_handle`](Session::interrupt_handle). Code is asked
/// first, and its process group killed after the [`grace`](SessionConfig::grace).
///
/// # Languages
///
/// Not every worker can do everything: [`can`](Session::can) tells, and what it cannot do is an
/// [`Error::Unsupported`].
///
/// # End
///
/// Dropping a session kills its process group and waits until the process is reaped (milliseconds);
/// [`shutdown`](Session::shutdown) lets it leave by itself first.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    config: Arc<SessionConfig>,
    /// `None` only while the session is being taken apart.
    worker: Option<Worker>,
    bound: Option<CancelToken>,
    requests: u64,
    executions: u64,
    errors: u64,
    late_output: u64,
    tainted: bool,
    /// The time for a reset that the next request brings along: see `handover`.
    owed: Option<Duration>,
    language: String,
    language_version: String,
    features: Features,
    /// Whether SIGINT to the group is understood.
    sigint: bool,
    asks: Arc<Asks>,
    warm: WarmReport,
    created_at: SystemTime,
    last_answer: Moment,
    /// Between the request of an execution and its end. Still set afterwards if a [`Running`] was
    /// forgotten, or kept over a panic: its code may run yet, its request may be half sent.
    executing: bool,
    post_mortem: Option<Box<PostMortem>>,
    /// What makes its processes, if it came from a template.
    template: Option<Arc<template::Shared>>,
    /// Hears how each execution ended.
    witness: Option<Arc<dyn Witness>>,
}

/// Whoever counts the executions of a session.
pub(crate) trait Witness: Send + Sync + fmt::Debug {
    /// An execution has ended; without an outcome if the worker broke the protocol.
    fn executed(&self, outcome: Option<Outcome>, duration: Duration);
}

/// What is replaced by a restart and handed to the reaper at the end.
struct Worker {
    process: Arc<Process>,
    transport: Transport,
    scratch: Option<Scratch>,
    /// Where it was started.
    directory: PathBuf,
    /// Who answers for the copies that were made of it.
    branches: Option<Arc<checkpoint::Branches>>,
    // Dropped last: the reaper must outlive the hand-over.
    keeper: Arc<Keeper>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("pid", &self.process.id()).finish_non_exhaustive()
    }
}

impl Session {
    /// Options for a session of this runtime, with their defaults; ends with `.start()`.
    pub fn builder(runtime: Runtime) -> SessionConfig {
        SessionConfig::new(runtime)
    }

    /// Starts a worker process, has it do its warm-up, and returns when it is ready.
    ///
    /// Blocks for the start of the interpreter (about 10 ms for Python) and the warm-up, at most
    /// [`start_timeout`](SessionConfig::start_timeout). An interpreter that this process has not
    /// used before is asked for its version first, which costs as much again.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::Runtime`] (missing, wrong or too old program),
    /// [`Error::StartTimeout`], [`Error::StartDied`], [`Error::WarmUp`], [`Error::Protocol`] and
    /// [`Error::Io`] (no descriptors or processes left). In every case no process is left.
    pub fn start(config: &SessionConfig) -> Result<Session> {
        start::start(Arc::new(config.clone()), None)
    }

    /// Has `witness` told how each execution ends from now on.
    pub(crate) fn report_to(&mut self, witness: Arc<dyn Witness>) {
        self.witness = Some(witness);
    }

    fn tell(&self, outcome: Option<Outcome>, duration: Duration) {
        if let Some(witness) = &self.witness {
            witness.executed(outcome, duration);
        }
    }

    /// Its number.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its process id; also the number of its process group.
    pub fn pid(&self) -> u32 {
        self.process().id()
    }

    /// Whether the session can execute: its process lives and has kept to the protocol. One atomic
    /// load and, while that says yes, one system call (0.3 µs).
    pub fn is_alive(&self) -> bool {
        self.process().check_alive()
    }

    /// How its process ended, once that has been noticed by a call.
    pub fn post_mortem(&self) -> Option<&PostMortem> {
        self.post_mortem.as_deref()
    }

    /// A snapshot. Reads the process's memory from the kernel (about 30 µs).
    pub fn info(&self) -> SessionInfo {
        let alive = self.is_alive();
        SessionInfo {
            id: self.id,
            pid: self.pid(),
            state: if alive { SessionState::Ready } else { SessionState::Dead },
            runtime: format!("{} {}", self.language, self.language_version),
            created_at: self.created_at,
            last_used_at: self.last_used_at(),
            execution_count: self.executions,
            error_count: self.errors,
            late_output: self.late_output,
            memory_usage: if alive { self.process().memory() } else { None },
        }
    }

    /// Its memory now, with what it shares with other processes told apart
    /// ([`proportional`](Memory::proportional), [`unique`](Memory::unique)). `None` once the process is
    /// gone, and of a worker that cannot be seen from here: behind a [remote](Runtime::remote) wrapper,
    /// or one that a wrapper started and let go.
    ///
    /// The kernel walks every page of the process for it: 0.2 ms for a bare Python, 10 ms for each GiB.
    /// [`info`](Session::info) tells the resident size alone for less.
    pub fn memory(&self) -> Option<Memory> {
        self.process().memory_in_detail()
    }

    /// Processor time of all threads of the worker since its start, in steps of 10 ms (a few microseconds,
    /// does not wait). `None` once the process is gone, or if it is on another machine.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.process().cpu_time()
    }

    /// The files in its working directory, from the host's side.
    ///
    /// # Errors
    /// [`Error::FilesElsewhere`] behind a [remote](Runtime::remote) wrapper, [`Error::SessionDead`]
    /// after its end, [`Error::Io`] if the directory is gone.
    pub fn files(&self) -> Result<Files<'_>> {
        if self.config.runtime.is_remote() {
            return Err(Error::FilesElsewhere { session: self.id });
        }
        let Some(worker) = &self.worker else { return Err(self.dead()) };
        let opened = match &worker.scratch {
            Some(scratch) => scratch.open(),
            None => files::open_directory(&worker.directory),
        };
        opened.map(Files::of).map_err(|error| Error::io("opening a session's directory", error))
    }

    /// Stops what this session runs, from any thread.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        InterruptHandle::new(Arc::clone(&self.asks))
    }

    /// Whether the worker can do this, by its own account.
    pub fn can(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    fn require(&self, feature: Feature) -> Result<()> {
        if self.can(feature) { Ok(()) } else { Err(Error::Unsupported { session: self.id, feature }) }
    }

    /// What came of the warm-up of this process.
    pub fn warm_report(&self) -> &WarmReport {
        &self.warm
    }

    /// Told from the time that has passed since: an execution reads one clock less.
    fn last_used_at(&self) -> SystemTime {
        if self.last_answer == Moment::LONG_AGO {
            return self.created_at;
        }
        let passed = Moment::now().saturating_since(self.last_answer);
        clock::wall().checked_sub(passed).unwrap_or(self.created_at)
    }

    /// Executions begun since the process was started.
    pub fn execution_count(&self) -> u64 {
        self.executions
    }

    /// Writes the post-mortem of a process that has ended or was just killed.
    fn bury(&mut self, stderr_tail: String, running: Option<u64>) {
        let process = self.process();
        process.give_up();
        // A killed process takes its time; nobody waits for it here.
        let exit = process.exit().unwrap_or(Exit::Signal(rustix::process::Signal::KILL.as_raw()));
        let mut post_mortem = self.post_mortem_now(stderr_tail, running);
        post_mortem.exit = exit;
        post_mortem.cause = self.process().cause();
        let exit = post_mortem.exit.to_string();
        log::info!(session = self.id.0, pid = post_mortem.pid, exit = exit.as_str(); "session died");
        self.post_mortem = Some(Box::new(post_mortem));
    }

    fn post_mortem_now(&self, stderr_tail: String, running: Option<u64>) -> PostMortem {
        PostMortem {
            session: self.id,
            pid: self.pid(),
            exit: Exit::Unknown,
            cause: Cause::Itself,
            stderr_tail,
            peak_memory: self.process().peak_seen(),
            executions: self.executions,
            running,
        }
    }

    /// Fails if the session cannot take a request; drops output that came late.
    fn ensure_usable(&mut self, now: Moment) -> Result<()> {
        if !self.process().is_alive() {
            if self.post_mortem.is_none() {
                // Somebody only looked whether it lives.
                let tail = self.discard_output().1;
                self.bury(tail, None);
            }
            return Err(self.dead());
        }
        if self.executing {
            self.process().kill_group(Cause::Retired);
            self.bury(String::new(), Some(self.requests));
            return Err(self.dead());
        }
        // What the last user's code wrote late is not the next user's.
        if self.owed.is_none() && now.saturating_since(self.last_answer) < FRESH {
            return Ok(());
        }
        self.check_idle().map(|late| self.late_output += late)
    }

    fn dead(&self) -> Error {
        Error::SessionDead { session: self.id, post_mortem: self.post_mortem.clone() }
    }

    fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Gives the session a new process, warmed up as the first was; its counters start anew, its
    /// number stays. The old process group is killed and reaped by the reaper. Blocks as
    /// [`start`](Session::start) does.
    ///
    /// # Errors
    /// As [`start`](Session::start); the session keeps its old process then, if that lives.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_bound(self.bound.clone(), |_| ())
    }

    fn restart_bound(
        &mut self,
        stop: Option<CancelToken>,
        gone: impl FnOnce(PostMortem) + Send + 'static,
    ) -> Result<()> {
        let asks = Arc::clone(&self.asks);
        let fresh = match &self.template {
            Some(template) => template.session(self.id, stop, asks)?,
            None => start::start_as(self.id, Arc::clone(&self.config), stop, asks, Origin::Program)?,
        };
        self.replace_by(fresh, gone);
        Ok(())
    }

    /// Goes on as `fresh`; the old process is retired.
    fn replace_by(&mut self, mut fresh: Session, gone: impl FnOnce(PostMortem) + Send + 'static) {
        fresh.witness = self.witness.take();
        let old = std::mem::replace(self, fresh);
        old.retire(Duration::ZERO, gone);
    }

    /// Asks the worker to leave by itself (Python runs its `atexit` functions), waits at most
    /// `grace`, then kills its group. Returns how it ended.
    pub fn shutdown(self, grace: Duration) -> PostMortem {
        self.end(grace)
    }

    /// Kills the process group and waits until the process is reaped. Returns how it ended.
    pub fn terminate(self) -> PostMortem {
        self.end(Duration::ZERO)
    }

    fn end(mut self, grace: Duration) -> PostMortem {
        let unknown = self.post_mortem_now(String::new(), None);
        self.hand_over_and_wait(grace).unwrap_or(unknown)
    }

    fn hand_over_and_wait(&mut self, grace: Duration) -> Option<PostMortem> {
        // Kept here: were it the last handle, letting go would wait for the reaper without limit.
        let _keeper = Arc::clone(&self.worker.as_ref()?.keeper);
        let (told, gone) = crossbeam_channel::bounded(1);
        self.hand_over(grace, move |post_mortem| {
            let _ = told.send(post_mortem);
        });
        gone.recv_timeout(grace.saturating_add(KILL_PATIENCE)).ok()
    }

    /// Gives the worker to the reaper.
    fn hand_over(&mut self, grace: Duration, gone: impl FnOnce(PostMortem) + Send + 'static) {
        let post_mortem = match self.post_mortem.take() {
            Some(known) => *known,
            None => self.post_mortem_now(String::new(), None),
        };
        let Some(mut worker) = self.worker.take() else { return };
        self.asks.let_go(worker.transport.waker());
        self.requests += 1;
        let polite = !grace.is_zero()
            && !self.executing
            && worker.process.is_alive()
            && worker.ask_to_leave(self.requests);
        if !polite {
            worker.process.kill_group(Cause::Retired);
        }
        let kill_at = if polite { Moment::after(grace) } else { Moment::FAR_FUTURE };
        let Worker { process, transport, scratch, keeper, directory: _, branches: _ } = worker;
        let transport = Some(transport);
        keeper.reaper.take(Ward { process, transport, scratch, kill_at, post_mortem, gone: Box::new(gone) });
    }
}

impl Worker {
    fn ask_to_leave(&mut self, request: u64) -> bool {
        let Some(frame) = protocol::encode(Kind::Shutdown, request, b"", b"", protocol::MIN_FRAME_CAP) else {
            return false;
        };
        // Before it can end because of it.
        self.process.expect_end(Cause::Retired);
        self.transport.write_some(&frame).is_ok_and(|written| written == frame.len())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hand_over_and_wait(Duration::ZERO);
    }
}
