//! The process of a template: a worker that was told to freeze, and then only makes children.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;

use super::features::Feature;
use super::fork_line::{Child, ForkLine, Peer};
use super::process::Parent;
use super::{Cause, Memory, Process, Session, SessionConfig, WarmReport, start};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::protocol::Kind;

/// How long a worker has to collect its garbage and freeze.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
/// How long its end is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Flag of *freeze*: for one fork; then it is a session as before.
const ONCE: u8 = 1;

/// A frozen worker.
pub(crate) struct Forker {
    /// `None` only while it is taken apart. It runs nothing any more: only its process and its control
    /// socket are used.
    session: Option<Box<Session>>,
    line: ForkLine,
    /// Whether its sessions have copies of the files in its directory.
    with_files: bool,
    made: AtomicU64,
}

#[derive(Deserialize)]
struct FrozenReport {
    #[serde(default)]
    obstacles: Vec<String>,
}

impl Forker {
    /// Starts a worker, has it warm up and freeze. The inner error says why it cannot be a template.
    pub(crate) fn start(
        config: &Arc<SessionConfig>,
        stop: Option<&CancelToken>,
    ) -> Result<Result<Forker, String>> {
        let session = start::start(Arc::clone(config), stop.cloned())?;
        if !session.can(Feature::Fork) {
            return Ok(Err(
                "this interpreter cannot make descriptors of processes (os.pidfd_open)".to_owned()
            ));
        }
        Forker::of(session, false)
    }

    /// Has a session freeze, which ends its life as one.
    pub(crate) fn of(mut session: Session, with_files: bool) -> Result<Result<Forker, String>> {
        let obstacles = session.freeze(false)?;
        if !obstacles.is_empty() {
            return Ok(Err(obstacles.join("; ")));
        }
        session.bind(None);
        Ok(Ok(Forker {
            session: Some(Box::new(session)),
            line: ForkLine::default(),
            with_files,
            made: AtomicU64::new(0),
        }))
    }

    /// Whether its sessions have copies of the files in its directory.
    pub(crate) fn is_with_files(&self) -> bool {
        self.with_files
    }

    /// Has it make a process for a session; its limits are set.
    pub(crate) fn fork(self: &Arc<Forker>, child: Child<'_>, stop: Option<&CancelToken>) -> Result<Process> {
        let peer = Peer { control: self.control(), process: self.process() };
        self.line.fork(peer, child, Arc::<Forker>::clone(self), stop)
    }

    fn session(&self) -> &Session {
        match &self.session {
            Some(session) => session,
            None => unreachable!("it is taken apart by its drop only"),
        }
    }

    fn process(&self) -> &Arc<Process> {
        self.session().process()
    }

    fn control(&self) -> BorrowedFd<'_> {
        match &self.session().worker {
            Some(worker) => worker.transport.control(),
            None => unreachable!("a session without a worker is only ever dropped"),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process().check_alive()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().id()
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        self.process().memory_in_detail()
    }

    /// What came of the warm-up that all of its sessions have.
    pub(crate) fn warm_report(&self) -> &WarmReport {
        self.session().warm_report()
    }

    /// One session more.
    pub(crate) fn count(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether any session came of it.
    pub(crate) fn was_of_use(&self) -> bool {
        self.made.load(Ordering::Relaxed) > 0
    }

    /// Kills the process and waits until it is reaped.
    pub(crate) fn terminate(mut self) {
        if let Some(session) = self.session.take() {
            session.terminate();
        }
    }

    /// Kills the process and waits for its end; it is reaped with the last of its sessions.
    pub(crate) fn kill_and_wait(&self) {
        self.process().kill_group(Cause::Retired);
        self.process().ends_within(KILL_PATIENCE);
    }
}

impl Session {
    /// Has the worker get ready to fork: `once`, with the next frame that it is sent on its control socket, or
    /// for good. If anything is in the way, it stays what it was.
    pub(super) fn freeze(&mut self, once: bool) -> Result<Vec<String>> {
        if self.process().worker_id().is_none() {
            return Ok(vec!["its process cannot be seen from here".to_owned()]);
        }
        let flags = if once { ONCE } else { 0 };
        let report = self.question_with_flags(Kind::Freeze, flags, b"", Kind::Frozen, FREEZE_LIMIT)?;
        let report: FrozenReport = serde_json::from_slice(&report)
            .map_err(|error| self.break_off(format!("a freeze report that cannot be read: {error}")))?;
        Ok(report.obstacles)
    }
}

impl Parent for Forker {
    fn reap(&self, child: u64) {
        self.line.reap(self.control(), child);
    }
}

impl Drop for Forker {
    /// Without waiting: the last owner may be a session that the reaper buries.
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.retire(Duration::ZERO, |_| ());
        }
    }
}

impl fmt::Debug for Forker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forker").field("made", &self.made).finish_non_exhaustive()
    }
}
