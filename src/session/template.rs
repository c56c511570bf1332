//! Templates: a worker that does its warm-up once and then makes sessions, by fork.
//!
//! [`Template`] is what users and pools hold: it starts the process when it is needed, starts it again
//! after its death, and starts sessions cold where there is none. What talks to the process is in
//! [`forker`](super::forker).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::forker::Forker;
use super::interrupt::Asks;
use super::start::{self, Origin};
use super::{Session, SessionConfig, SessionId};
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, wait_until};

/// The pause after a template that could not be started, or died before it was of any use; doubled each
/// time, up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Libraries of numbers start a thread for each processor when they are loaded, and a process with
/// threads cannot be forked. Unless the user says something else, they are asked not to.
const THREADS_OF_LIBRARIES: [&str; 3] = ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"];

/// A Python worker that has done its warm imports and its warm-up code, and makes sessions by fork: each
/// is there in about a millisecond, whatever was imported, and shares the memory that the imports took.
///
/// ```no_run
/// use remuda::{Runtime, Session, Template};
///
/// let config = Session::builder(Runtime::python("python3")).warm_import("json").warmup_code("base = 40");
/// let template = Template::start(&config)?;
/// let mut session = template.session()?;
/// assert_eq!(session.execute("base + 2")?.value, 42);
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// A session that was made by a template is like any other: own process, process group, directory,
/// limits; [`restart`](Session::restart) gets it a new process from its template. It outlives the death
/// of the template's process, which is started again for the next session.
///
/// A template never makes a start fail. Where there is no process to fork (its warm-up left threads, it
/// has died and cannot be started again), sessions start cold; that is logged and counted:
/// [`info`](Template::info) says why. See the guide for what siblings share.
///
/// Dropping a template ends its process as soon as no session of it is left: at once, which blocks for
/// milliseconds, or with the last of them.
pub struct Template {
    shared: Arc<Shared>,
}

/// A snapshot of a template, from [`Template::info`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TemplateInfo {
    /// Its process; `None` while there is none.
    pub pid: Option<u32>,
    /// Sessions that it has made.
    pub forked: u64,
    /// Sessions that were started cold instead.
    pub cold_starts: u64,
    /// How often its process became ready: more than once if it has died, or was started anew by
    /// [`recycle_all`](crate::SessionPool::recycle_all).
    pub starts: u64,
    /// Why sessions start cold, if they do now; else why the last one did.
    pub why_not: Option<String>,
}

/// What a template and its sessions share.
pub(crate) struct Shared {
    /// What its sessions are made of, and what it is made of itself.
    config: Arc<SessionConfig>,
    own: Arc<SessionConfig>,
    life: Mutex<Life>,
    /// For those who wait while another thread starts the process.
    changed: Condvar,
    forked: AtomicU64,
    cold_starts: AtomicU64,
}

struct Life {
    phase: Phase,
    starts: u64,
    failures: u32,
    /// No process is started before.
    retry_at: Moment,
    why_not: Option<String>,
    /// It was to be started anew while it was starting.
    outdated: bool,
}

enum Phase {
    /// None is there; the next session has it started.
    Absent,
    Starting,
    Live(Arc<Forker>),
    /// It was started and said why it cannot be one.
    Unfit,
    Ended,
}

impl Template {
    /// Starts a template for sessions like this. Blocks as [`Session::start`] does.
    ///
    /// A warm-up after which the process cannot be forked (it left threads, connections, …) is no error:
    /// [`info`](Template::info) says so, and sessions start cold.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a runtime that cannot be forked: other than Python, or behind a
    /// [remote](crate::Runtime::remote) wrapper. Else as [`Session::start`].
    pub fn start(config: &SessionConfig) -> Result<Template> {
        let template = Template::lazy(config)?;
        template.shared.forker(None)?;
        Ok(template)
    }

    /// A template whose process starts with the first session.
    pub(crate) fn lazy(config: &SessionConfig) -> Result<Template> {
        config.validate()?;
        check(config)?;
        let life = Life {
            phase: Phase::Absent,
            starts: 0,
            failures: 0,
            retry_at: Moment::LONG_AGO,
            why_not: None,
            outdated: false,
        };
        Ok(Template {
            shared: Arc::new(Shared {
                own: Arc::new(own_config(config)),
                config: Arc::new(config.clone()),
                life: Mutex::new(life),
                changed: Condvar::new(),
                forked: AtomicU64::new(0),
                cold_starts: AtomicU64::new(0),
            }),
        })
    }

    /// A new session. Blocks for about a millisecond; if the process has to be started again first, or
    /// there is none, as [`Session::start`] does.
    ///
    /// # Errors
    /// As [`Session::start`], of a session that starts cold.
    pub fn session(&self) -> Result<Session> {
        self.shared.session(start::next_id(), None, Arc::default())
    }

    /// As [`session`](Template::session), until `stop` gives it up.
    pub(crate) fn session_unless(&self, stop: &CancelToken) -> Result<Session> {
        let mut session = self.shared.session(start::next_id(), Some(stop.clone()), Arc::default())?;
        session.bind(None);
        Ok(session)
    }

    /// Has the next session start the process anew, with all of its warm-up: after an update of what it
    /// has imported, for example. Sessions that it made live on. Does not wait.
    pub fn renew(&self) {
        let old = {
            let mut life = self.shared.life.lock();
            match &life.phase {
                Phase::Live(_) | Phase::Unfit => {
                    life.retry_at = Moment::LONG_AGO;
                    std::mem::replace(&mut life.phase, Phase::Absent)
                }
                Phase::Starting => {
                    life.outdated = true;
                    return;
                }
                Phase::Absent | Phase::Ended => return,
            }
        };
        drop(old);
    }

    /// A snapshot.
    pub fn info(&self) -> TemplateInfo {
        let life = self.shared.life.lock();
        let pid = match &life.phase {
            Phase::Live(forker) if forker.is_alive() => Some(forker.pid()),
            _ => None,
        };
        TemplateInfo {
            pid,
            forked: self.shared.forked.load(Ordering::Relaxed),
            cold_starts: self.shared.cold_starts.load(Ordering::Relaxed),
            starts: life.starts,
            why_not: life.why_not.clone(),
        }
    }

    /// Ends the process now, whoever else needs it, and waits for that: sessions live on, how they end
    /// cannot be told any more. Later sessions start cold.
    pub(crate) fn terminate(&self) {
        if let Some(forker) = self.shared.end() {
            match Arc::try_unwrap(forker) {
                Ok(forker) => forker.terminate(),
                Err(forker) => forker.kill_and_wait(),
            }
        }
    }

    /// As dropping it, without waiting for anything.
    pub(crate) fn let_go(&self) {
        drop(self.shared.end());
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // With others that hold it, its process ends with the last of them.
        if let Some(Ok(forker)) = self.shared.end().map(Arc::try_unwrap) {
            forker.terminate();
        }
    }
}

/// Refuses what can never be forked.
pub(crate) fn check(config: &SessionConfig) -> Result<()> {
    if config.runtime.forks() {
        return Ok(());
    }
    let reason = "templates are made of Python workers on this machine; this runtime is another language, \
                  or behind a remote wrapper";
    Err(Error::config("template", reason))
}

/// What the template itself is made of.
fn own_config(config: &SessionConfig) -> SessionConfig {
    let mut own = config.clone();
    for name in THREADS_OF_LIBRARIES {
        if !(own.inherit_env && std::env::var_os(name).is_some()) {
            own.env.entry(name.to_owned()).or_insert_with(|| "1".to_owned());
        }
    }
    // Its sessions have an account of their own each; its own would be spent by making them.
    own.limits.cpu_seconds = None;
    own
}

impl Shared {
    /// A session, by fork or cold.
    pub(crate) fn session(
        self: &Arc<Shared>,
        id: SessionId,
        stop: Option<CancelToken>,
        asks: Arc<Asks>,
    ) -> Result<Session> {
        let forked = self.fork(id, stop.as_ref(), &asks)?;
        let mut session = match forked {
            Some(session) => session,
            None => self.start_cold(id, stop, asks)?,
        };
        session.template = Some(Arc::clone(self));
        Ok(session)
    }

    fn start_cold(&self, id: SessionId, stop: Option<CancelToken>, asks: Arc<Asks>) -> Result<Session> {
        self.cold_starts.fetch_add(1, Ordering::Relaxed);
        start::start_as(id, Arc::clone(&self.config), stop, asks, Origin::Program)
    }

    /// A session by fork; `None` if a cold start is to be tried. Errors are those that it would meet too.
    fn fork(&self, id: SessionId, stop: Option<&CancelToken>, asks: &Arc<Asks>) -> Result<Option<Session>> {
        let forker = match self.forker(stop) {
            Ok(Some(forker)) => forker,
            // A cold start would run the same code.
            Err(error @ (Error::Cancelled | Error::WarmUp { .. })) => return Err(error),
            Err(_) | Ok(None) => return Ok(None),
        };
        let (config, origin) = (Arc::clone(&self.config), Origin::Template(&forker));
        match start::start_as(id, config, stop.cloned(), Arc::clone(asks), origin) {
            Ok(session) => {
                forker.count();
                self.forked.fetch_add(1, Ordering::Relaxed);
                Ok(Some(session))
            }
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                log::warn!(session = id.number(); "a fork failed, so the session starts cold: {error}");
                self.life.lock().why_not = Some(error.to_string());
                Ok(None)
            }
        }
    }

    /// The process, started if need be; `None` if there is none now. Waits while another thread starts it.
    fn forker(&self, stop: Option<&CancelToken>) -> Result<Option<Arc<Forker>>> {
        let deadline = Moment::now() + self.own.start_timeout;
        let mut dead = None;
        let mut life = self.life.lock();
        loop {
            match &life.phase {
                Phase::Live(forker) if forker.is_alive() => return Ok(Some(Arc::clone(forker))),
                Phase::Live(forker) => {
                    if !forker.was_of_use() {
                        life.fail("it died before it made a session".to_owned());
                    }
                    let Phase::Live(forker) = std::mem::replace(&mut life.phase, Phase::Absent) else {
                        unreachable!("looked at under the same lock")
                    };
                    dead = Some(forker);
                }
                Phase::Unfit | Phase::Ended => return Ok(None),
                Phase::Starting => {
                    if wait_until(&self.changed, &mut life, Some(deadline)) {
                        return Ok(None);
                    }
                }
                Phase::Absent if Moment::now() < life.retry_at => return Ok(None),
                Phase::Absent => break,
            }
        }
        life.phase = Phase::Starting;
        drop(life);
        if let Some(forker) = dead {
            log::warn!(pid = forker.pid(); "the template has died; it is started again");
        }
        self.start(stop)
    }

    /// Starts the process; only the thread that has set [`Phase::Starting`] comes here.
    fn start(&self, stop: Option<&CancelToken>) -> Result<Option<Arc<Forker>>> {
        let starting = Starting { shared: self, outcome: Phase::Absent };
        let started = Forker::start(&self.own, stop);
        match started {
            Ok(Ok(forker)) => {
                log::info!(pid = forker.pid(); "template ready");
                let forker = Arc::new(forker);
                {
                    let mut life = self.life.lock();
                    life.starts += 1;
                    life.why_not = None;
                }
                starting.end(Phase::Live(Arc::clone(&forker)));
                Ok(Some(forker))
            }
            Ok(Err(why_not)) => {
                log::warn!("no template, sessions start cold: {why_not}");
                self.life.lock().why_not = Some(why_not);
                starting.end(Phase::Unfit);
                Ok(None)
            }
            Err(error) => {
                if !matches!(error, Error::Cancelled | Error::WarmUp { .. }) {
                    log::warn!("the template could not be started: {error}");
                    self.life.lock().fail(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// From now on there is no process; returns the one that was there.
    fn end(&self) -> Option<Arc<Forker>> {
        let phase = std::mem::replace(&mut self.life.lock().phase, Phase::Ended);
        self.changed.notify_all();
        if let Phase::Live(forker) = phase { Some(forker) } else { None }
    }
}

/// Says that nobody starts the process any more, also after an error or a panic.
struct Starting<'a> {
    shared: &'a Shared,
    outcome: Phase,
}

impl Starting<'_> {
    fn end(mut self, outcome: Phase) {
        self.outcome = outcome;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut outcome = std::mem::replace(&mut self.outcome, Phase::Absent);
        {
            let mut life = self.shared.life.lock();
            // Ended meanwhile: what was started goes, after unlocking.
            if matches!(life.phase, Phase::Starting) {
                if std::mem::take(&mut life.outdated) {
                    life.phase = Phase::Absent;
                } else {
                    std::mem::swap(&mut life.phase, &mut outcome);
                }
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Life {
    fn fail(&mut self, why_not: String) {
        let (first, longest) = PAUSES;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.retry_at = Moment::after(pause);
        self.why_not = Some(why_not);
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info().fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("forked", &self.forked).finish_non_exhaustive()
    }
}
