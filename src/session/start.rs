//! Starting a session: process, channels, ready, warm-up. Whatever fails leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::answer::{ImportReport, ReadyReport, decode_error};
use super::config::WorkDir;
use super::exchange::{END_PATIENCE, End, Ended, Exchange, Outputs, STDERR_TAIL, Stop};
use super::output::Capture;
use super::scratch::Scratch;
use super::transport::Unstarted;
use super::{Cause, Keeper, Process, Session, SessionConfig, SessionId, Worker};
use crate::cancel::{CancelToken, Wake};
use crate::clock::{self, Moment};
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// Output of the warm-up that is kept, to be shown when it fails.
const OUTPUT_CAP: usize = 2 * STDERR_TAIL;

/// Starts a session; `stop` gives the start up, and the session stays bound to it.
pub(crate) fn start(config: Arc<SessionConfig>, stop: Option<CancelToken>) -> Result<Session> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    config.validate()?;
    start_as(SessionId(NEXT.fetch_add(1, Ordering::Relaxed)), config, stop)
}

/// Starts a process for the session with this number.
pub(crate) fn start_as(
    id: SessionId,
    config: Arc<SessionConfig>,
    stop: Option<CancelToken>,
) -> Result<Session> {
    let started = Moment::now();
    let deadline = started + config.start_timeout;
    let keeper = Keeper::get()?;
    let launch = config.runtime.launch(config.start_timeout)?;
    let (directory, scratch) = work_dir(&config.work_dir)?;
    let (unstarted, ends) =
        Unstarted::open(launch.channels).map_err(|error| Error::io("opening channels", error))?;
    let process = match Process::spawn(id, &launch, &config, &directory, ends) {
        Ok(process) => Arc::new(process),
        Err(error) => {
            config.runtime.forget();
            return Err(error);
        }
    };
    let mut starting = Starting { process: Some(process), scratch, keeper };
    let transport = starting.go(unstarted, &launch.boot, &config, &directory, deadline)?;
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
            keeper: Arc::clone(&starting.keeper),
        }),
        config,
        bound: stop,
        requests: 0,
        executions: 0,
        errors: 0,
        late_output: 0,
        tainted: false,
        language: String::new(),
        language_version: String::new(),
        created_at: now,
        last_used_at: now,
        post_mortem: None,
    };
    session.warm_up(deadline)?;
    let milliseconds = Moment::now().saturating_since(started).as_secs_f64() * 1e3;
    log::debug!(session = id.0, pid = session.pid(); "session started in {milliseconds:.1} ms");
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
    /// Lists the group with the watchdog, then tells the worker to go.
    fn go(
        &self,
        unstarted: Unstarted,
        boot: &[u8],
        config: &SessionConfig,
        directory: &std::path::Path,
        deadline: Moment,
    ) -> Result<super::Transport> {
        let Some(process) = &self.process else { unreachable!("taken after this") };
        let listed = self.scratch.as_ref().map(|_| directory);
        self.keeper
            .watchdog
            .add(process.group(), listed)
            .map_err(|error| Error::io("telling the watchdog of a worker", error))?;
        unstarted.go(process, boot, config.frame_cap, deadline).map_err(|error| {
            if !matches!(error, Errno::PIPE | Errno::CONNRESET) {
                return Error::io("sending a worker its channels", error);
            }
            // It closed its end, most likely by ending: then its exit says more than our broken pipe.
            process.ends_within(END_PATIENCE);
            match process.exit() {
                Some(exit) => Error::Runtime {
                    program: config.runtime.program().to_owned(),
                    reason: format!("it ended at once with {exit}"),
                    source: None,
                },
                None => {
                    Error::Protocol { session: process.session(), reason: "it closed its fd 0".to_owned() }
                }
            }
        })
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
    /// Waits for *ready*, then has the warm-up done.
    fn warm_up(&mut self, deadline: Moment) -> Result<()> {
        let ready: ReadyReport = self.step(0, &[], Kind::Ready, deadline, "ready", |first| {
            serde_json::from_slice(first)
                .map_err(|error| format!("a ready frame that cannot be read: {error}"))
        })?;
        if ready.protocol != protocol::VERSION {
            let (theirs, ours) = (ready.protocol, protocol::VERSION);
            return Err(self.broken(format!("it speaks version {theirs}, this is version {ours}")));
        }
        (self.language, self.language_version) = (ready.language, ready.version);
        let config = Arc::clone(&self.config);
        if config.warm_imports.is_empty() && config.warmup_code.is_none() {
            return Ok(());
        }
        let id = self.next_request();
        let modules = serde_json::json!(config.warm_imports).to_string();
        let code = config.warmup_code.as_deref().unwrap_or_default();
        let frame =
            protocol::encode(Kind::Warm, id, modules.as_bytes(), code.as_bytes(), config.frame_cap)
                .ok_or(Error::RequestTooLarge { bytes: modules.len() + code.len(), cap: config.frame_cap })?;
        let report: Vec<ImportReport> =
            self.step(id, &frame, Kind::Warmed, deadline, "warmup_code", |first| {
                serde_json::from_slice(first)
                    .map_err(|error| format!("a warm report that cannot be read: {error}"))
            })?;
        for import in report {
            let (module, milliseconds) = (&import.module, import.milliseconds);
            match import.error {
                None => log::debug!(session = self.id.0; "warm import of {module} took {milliseconds:.1} ms"),
                Some(error) => {
                    let what = format!("import of {module}");
                    return Err(Error::WarmUp { what, message: error, traceback: String::new() });
                }
            }
        }
        Ok(())
    }

    /// One request of the start, answered by a frame of `kind` that `decode` reads.
    fn step<T>(
        &mut self,
        id: u64,
        frame: &[u8],
        kind: Kind,
        deadline: Moment,
        what: &str,
        decode: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T> {
        let config = Arc::clone(&self.config);
        let stop = self.bound.clone();
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let waker: Arc<dyn Wake> = worker.transport.waker().clone();
        let registration = stop.as_ref().map(|token| token.register(waker));
        let exchange = Exchange {
            transport: &mut worker.transport,
            process: &worker.process,
            request: id,
            limit: Some(deadline),
            // A start that is late is not worth waiting for.
            grace: Duration::ZERO,
            tokens: [stop.as_ref(), None],
            output: Outputs {
                stdout: Capture::new(OUTPUT_CAP),
                stderr: Capture::new(OUTPUT_CAP),
                observer: None,
            },
        };
        let Ended { end, stop, stderr, .. } = exchange.run(frame);
        drop(registration);
        if stop == Some(Stop::Cancelled) {
            self.process().kill_group(Cause::Retired);
            return Err(Error::Cancelled);
        }
        let stderr = stderr.last(STDERR_TAIL);
        match end {
            End::Answered => {}
            End::Killed => {
                return Err(Error::StartTimeout { session: self.id, limit: config.start_timeout, stderr });
            }
            End::Died => return Err(self.died(stderr)),
            End::Broken(reason) => {
                if self.process().ends_within(END_PATIENCE) && !stderr.is_empty() {
                    return Err(self.died(stderr));
                }
                return Err(self.broken(reason));
            }
        }
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let decoded = match worker.transport.next_frame() {
            Ok(Some((frame, used))) if frame.header.kind == kind => {
                decode(frame.first).map(|value| (Ok(value), used))
            }
            Ok(Some((frame, used))) if frame.header.kind == Kind::Error => {
                decode_error(frame.first).map(|error| (Err(error), used))
            }
            Ok(Some((frame, _))) => Err(format!("it sent {:?} instead of {kind:?}", frame.header.kind)),
            Ok(None) => Err("an incomplete answer".to_owned()),
            Err(malformed) => Err(malformed.0),
        };
        match decoded {
            Ok((Ok(value), used)) => {
                worker.transport.consume(used);
                if worker.transport.has_unread() {
                    return Err(self.broken(format!("it sent more than {kind:?}")));
                }
                Ok(value)
            }
            Ok((Err(error), _)) => Err(Error::WarmUp {
                what: what.to_owned(),
                message: error.to_string(),
                traceback: error.traceback,
            }),
            Err(reason) => Err(self.broken(reason)),
        }
    }

    fn died(&mut self, stderr: String) -> Error {
        // The interpreter may have been replaced since it was asked for its version.
        self.config.runtime.forget();
        self.process().ends_within(END_PATIENCE);
        self.bury(stderr.clone(), None);
        match self.post_mortem.clone() {
            Some(post_mortem) => Error::StartDied { post_mortem },
            None => Error::StartDied { post_mortem: Box::new(self.post_mortem_now(stderr, None)) },
        }
    }

    fn broken(&mut self, reason: String) -> Error {
        self.process().kill_group(Cause::Protocol(reason.clone()));
        Error::Protocol { session: self.id, reason }
    }
}
