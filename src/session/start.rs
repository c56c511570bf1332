//! Starting a session: process, channels, ready, warm-up. Whatever fails leaves nothing behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::ReadyReport;
use super::config::WorkDir;
use super::exchange::END_PATIENCE;
use super::features::{Feature, Features};
use super::fork_line::Child;
use super::forker::Forker;
use super::interrupt::Asks;
use super::ladder::Stops;
use super::runtime::Channels;
use super::scratch::Scratch;
use super::transport::Unstarted;
use super::warm::WarmReport;
use super::{Cause, Keeper, Process, Session, SessionConfig, SessionId, Worker};
use crate::cancel::CancelToken;
use crate::clock::{self, Moment};
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// Starts a session; `stop` gives the start up, and the session stays bound to it.
pub(crate) fn start(config: Arc<SessionConfig>, stop: Option<CancelToken>) -> Result<Session> {
    config.validate()?;
    start_as(next_id(), config, stop, Arc::default(), Origin::Program)
}

/// A number that no other session of this process has.
pub(super) fn next_id() -> SessionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    SessionId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What becomes the worker.
pub(super) enum Origin<'a> {
    /// The program of the runtime, which warms up.
    Program,
    /// A copy of this, warm already.
    Template(&'a Arc<Forker>),
    /// A copy of this as it is now.
    Session(&'a mut Session),
}

/// Starts a process for the session with this number.
pub(crate) fn start_as(
    id: SessionId,
    config: Arc<SessionConfig>,
    stop: Option<CancelToken>,
    asks: Arc<Asks>,
    origin: Origin<'_>,
) -> Result<Session> {
    let started = Moment::now();
    let deadline = started + config.start_timeout;
    let keeper = Keeper::get()?;
    let (directory, scratch) = work_dir(&config.work_dir)?;
    let open = |channels| Unstarted::open(channels).map_err(|error| Error::io("opening channels", error));
    let (mut starting, transport, warm) = match origin {
        Origin::Program => {
            let launch = config.runtime.launch(config.start_timeout)?;
            let (unstarted, ends) = open(launch.channels)?;
            let process = Process::spawn(id, &launch, &config, &directory, ends)
                .inspect_err(|_| config.runtime.forget())?;
            let starting = Starting::of(process, scratch, keeper);
            starting.list(&directory)?;
            let transport =
                unstarted.go(starting.process(), &launch.boot, (config.frame_cap, config.history), deadline);
            (starting, transport, None)
        }
        Origin::Template(_) | Origin::Session(_) => {
            let (mut unstarted, ends) = open(Channels::Pipes)?;
            let child = |with_files| Child {
                id,
                config: &config,
                directory: &directory,
                with_files: with_files && scratch.is_some(),
                channels: (&mut unstarted, ends),
            };
            let (process, warm) = match origin {
                Origin::Template(forker) => {
                    let child = child(forker.is_with_files());
                    (forker.fork(child, stop.as_ref())?, forker.warm_report().clone())
                }
                Origin::Session(session) => (session.branch(child(true))?, session.warm.clone()),
                Origin::Program => unreachable!("another arm"),
            };
            let starting = Starting::of(process, scratch, keeper);
            starting.list(&directory)?;
            let transport = unstarted.watched(starting.process(), config.frame_cap);
            (starting, transport, Some(warm))
        }
    };
    let transport = transport.map_err(|error| Error::io("sending a worker its channels", error))?;
    // From here on the session's own end cleans up.
    let Some(process) = starting.process.take() else { unreachable!("taken here only") };
    let now = clock::wall();
    let mut session = Session {
        id,
        worker: Some(Worker {
            process,
            transport,
            scratch: starting.scratch.take(),
            directory,
            branches: None,
            keeper: Arc::clone(&starting.keeper),
        }),
        config,
        bound: stop,
        requests: 0,
        executions: 0,
        errors: 0,
        late_output: 0,
        tainted: false,
        owed: None,
        language: String::new(),
        language_version: String::new(),
        features: Features::default(),
        sigint: false,
        asks,
        warm: WarmReport::default(),
        created_at: now,
        last_answer: Moment::LONG_AGO,
        executing: false,
        post_mortem: None,
        template: None,
        witness: None,
    };
    session.wait_until_ready(deadline)?;
    match warm {
        None => session.warm_up(deadline)?,
        Some(report) => session.warm = report,
    }
    // Not before: a restart that fails leaves the handles to the old process.
    session.asks.end();
    if let Some(worker) = &session.worker {
        session.asks.set_waker(Arc::clone(worker.transport.waker()));
    }
    let milliseconds = Moment::now().saturating_since(started).as_secs_f64() * 1e3;
    log::debug!(session = id.0, pid = session.pid(), elapsed_ms = milliseconds; "session started");
    Ok(session)
}

fn work_dir(dir: &WorkDir) -> Result<(PathBuf, Option<Scratch>)> {
    match dir {
        WorkDir::Temporary => {
            let scratch =
                Scratch::create().map_err(|error| Error::io("creating a session directory", error))?;
            Ok((scratch.path().to_owned(), Some(scratch)))
        }
        WorkDir::Inherit => {
            let directory =
                std::env::current_dir().map_err(|error| Error::io("finding the working directory", error))?;
            Ok((directory, None))
        }
        WorkDir::Path(path) => Ok((path.clone(), None)),
    }
}

/// A process that has no session yet; killed and reaped if it gets none.
struct Starting {
    process: Option<Arc<Process>>,
    scratch: Option<Scratch>,
    keeper: Arc<Keeper>,
}

impl Starting {
    fn of(process: Process, scratch: Option<Scratch>, keeper: Arc<Keeper>) -> Starting {
        Starting { process: Some(Arc::new(process)), scratch, keeper }
    }

    fn process(&self) -> &Process {
        match &self.process {
            Some(process) => process,
            None => unreachable!("taken after this"),
        }
    }

    /// Lists the group, and a directory of its own, with the watchdog: before any code of the user's runs.
    fn list(&self, directory: &Path) -> Result<()> {
        let listed = self.scratch.as_ref().map(|_| directory);
        let group = self.process().group();
        let added = self.keeper.watchdog.add(group, listed);
        added.map_err(|error| Error::io("telling the watchdog of a worker", error))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.kill_group(Cause::Retired);
        process.ends_within(END_PATIENCE);
        self.keeper.watchdog.remove(process.group());
        process.reap();
    }
}

impl Session {
    /// Waits for *ready* and takes the worker at its word.
    fn wait_until_ready(&mut self, deadline: Moment) -> Result<()> {
        let stops = Stops { hard: Some(deadline), ..self.stops() };
        let answer = match self.start_step(0, Vec::new(), Kind::Ready, stops)? {
            Ok(answer) => answer,
            Err(error) => {
                let (what, message) = ("ready".to_owned(), error.to_string());
                return Err(Error::WarmUp { what, message, traceback: error.traceback });
            }
        };
        let ready: ReadyReport = serde_json::from_slice(&answer)
            .map_err(|error| self.break_off(format!("a ready frame that cannot be read: {error}")))?;
        if ready.protocol != protocol::VERSION {
            let (theirs, ours) = (ready.protocol, protocol::VERSION);
            return Err(self.break_off(format!("it speaks version {theirs}, this is version {ours}")));
        }
        let remote = self.config.runtime.is_remote();
        // A wrapper that stands in between would take the signal for itself. The child of a template is the
        // worker, whatever number it has in a namespace.
        let direct = ready.pid == self.pid() || self.process().is_forked();
        self.sigint = ready.features.has(Feature::Sigint) && direct && !remote;
        if !self.process().is_forked() {
            self.process().announced(if remote { None } else { Some(ready.pid) });
        }
        (self.language, self.language_version) = (ready.language, ready.version);
        self.features = ready.features;
        Ok(())
    }

    pub(super) fn died(&mut self, stderr: String) -> Error {
        // The interpreter may have been replaced since it was asked for its version.
        self.config.runtime.forget();
        self.process().ends_within(END_PATIENCE);
        self.bury(stderr.clone(), None);
        match self.post_mortem.clone() {
            Some(post_mortem) => Error::StartDied { post_mortem },
            None => Error::StartDied { post_mortem: Box::new(self.post_mortem_now(stderr, None)) },
        }
    }
}
