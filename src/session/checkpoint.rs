//! Copies of a live session: one that goes on beside it, or one that stands still and can be gone back to.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::features::Feature;
use super::fork_line::{Child, ForkLine, Peer};
use super::forker::Forker;
use super::interrupt::Asks;
use super::process::Parent;
use super::start::{self, Origin};
use super::{Memory, PostMortem, Process, Session, SessionConfig, SessionId, Worker, template};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};

/// The state of a session at one moment: everything that its code has made, imported and loaded.
///
/// It is a copy of the session's process that never runs anything again, made by fork: it shares all memory
/// that neither side has changed since. From it, [`restore`](Session::restore) takes a session back to that moment,
/// and [`session`](Checkpoint::session) makes further sessions, as often as wanted, in about a millisecond each.
///
/// ```no_run
/// use remuda::{Runtime, Session};
///
/// let mut session = Session::builder(Runtime::python("python3")).start()?;
/// session.execute("rows = list(range(1_000_000))")?;
/// let loaded = session.checkpoint()?;
/// session.execute("rows.clear()")?;
/// session.restore(&loaded)?;
/// assert_eq!(session.execute("len(rows)")?.value, 1_000_000);
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// It outlives the session that it was made of. Dropping it ends its process as soon as no session that came
/// from it is left: at once, or with the last of them.
pub struct Checkpoint {
    forker: Arc<Forker>,
    config: Arc<SessionConfig>,
    /// What makes fresh processes for the session that it was made of, if that came from a template.
    template: Option<Arc<template::Shared>>,
    /// What ends the executions of its sessions, too.
    bound: Option<CancelToken>,
}

impl Session {
    /// A second session that goes on from this moment as this one does: same names and values, imports,
    /// working directory (copies of the files, if it is the session's [own](crate::WorkDir::Temporary)),
    /// environment, options and limits, but a process of its own. What one does from now on is nothing to the
    /// other. Blocks for about a millisecond, and for the copy of the files.
    ///
    /// Only Python workers can ([`Feature::Branch`]), and only while nothing is there that two processes
    /// cannot both have. An idle event loop is closed for it. Generators of random numbers start differently in
    /// the copy, as after `os.fork`. In this session, the copy is a child process that `os.wait` would find. It
    /// belongs to no pool, even if this session does; a [`Scope`](crate::Scope) that this session was acquired
    /// from ends what runs in both.
    ///
    /// # Errors
    /// [`Error::NotForkable`]: threads, child processes, connections, files open to write, tasks in the event loop, a
    /// running timer; this session goes on. [`Error::Unsupported`]. [`Error::Io`]: no
    /// descriptors, processes or memory left. Else as [`ping`](Session::ping) of this session, or as
    /// [`Session::start`] of the new one.
    pub fn fork(&mut self) -> Result<Session> {
        let (config, template, bound) = (Arc::clone(&self.config), self.template.clone(), self.bound.clone());
        let mut copy =
            start::start_as(start::next_id(), config, bound, Arc::default(), Origin::Session(self))?;
        copy.template = template;
        Ok(copy)
    }

    /// Keeps the state of this moment. The session goes on; blocks as [`fork`](Session::fork) does, and for a
    /// collection of the copy's garbage.
    ///
    /// # Errors
    /// As [`fork`](Session::fork).
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let copy = self.fork()?;
        let (config, template, bound) = (Arc::clone(&copy.config), copy.template.clone(), copy.bound.clone());
        let forker = Forker::of(copy, true)?
            .map_err(|obstacle| Error::NotForkable { session: self.id, obstacles: vec![obstacle] })?;
        Ok(Checkpoint { forker: Arc::new(forker), config, template, bound })
    }

    /// Goes back to the moment of a checkpoint, of this session or of another: in a new process; the number of
    /// the session stays, its counters start anew, and the old process group is killed and reaped by the
    /// reaper. Also brings back a session that has died. Its options are from then on those of the session that
    /// the checkpoint was made of; a pool that owns this session does not lend it again if those are others
    /// than its own. Blocks for about a millisecond, and for the copy of the files.
    ///
    /// # Errors
    /// [`Error::Io`]: the checkpoint's process has ended, or no descriptors, processes or memory are left. Else as
    /// [`Session::start`]. The session keeps its old process then, if that lives.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.restore_bound(checkpoint, self.bound.clone(), |_| ())
    }

    /// [`restore`](Session::restore) that `stop` gives up; `gone` hears of the old process's end.
    pub(crate) fn restore_unless(
        &mut self,
        checkpoint: &Checkpoint,
        stop: &CancelToken,
        gone: impl FnOnce(PostMortem) + Send + 'static,
    ) -> Result<()> {
        let bound = self.bound.take();
        let restored = self.restore_bound(checkpoint, Some(stop.clone()), gone);
        self.bind(bound);
        restored
    }

    fn restore_bound(
        &mut self,
        checkpoint: &Checkpoint,
        stop: Option<CancelToken>,
        gone: impl FnOnce(PostMortem) + Send + 'static,
    ) -> Result<()> {
        let mut fresh = checkpoint.start(self.id, stop, Arc::clone(&self.asks))?;
        fresh.tainted = !Arc::ptr_eq(&self.config, &fresh.config);
        self.replace_by(fresh, gone);
        Ok(())
    }

    /// Has the worker make a copy of itself.
    pub(super) fn branch(&mut self, child: Child<'_>) -> Result<Process> {
        self.require(Feature::Branch)?;
        let obstacles = self.freeze(true)?;
        if !obstacles.is_empty() {
            return Err(Error::NotForkable { session: self.id, obstacles });
        }
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let branches = worker.branches()?;
        let peer = Peer { control: worker.transport.control(), process: &worker.process };
        let parent: Arc<dyn Parent> = Arc::<Branches>::clone(&branches);
        branches.line.fork(peer, child, parent, None)
    }
}

impl Worker {
    fn branches(&mut self) -> Result<Arc<Branches>> {
        if let Some(branches) = &self.branches {
            return Ok(Arc::clone(branches));
        }
        let control = self.transport.control().try_clone_to_owned();
        let control = control.map_err(|error| Error::io("duplicating a control socket", error))?;
        let branches = Arc::new(Branches { control, line: ForkLine::default() });
        self.branches = Some(Arc::clone(&branches));
        Ok(branches)
    }
}

impl Checkpoint {
    /// A new session in this state. Blocks for about a millisecond, and for the copy of the files.
    ///
    /// # Errors
    /// As [`restore`](Session::restore).
    pub fn session(&self) -> Result<Session> {
        self.start(start::next_id(), self.bound.clone(), Arc::default())
    }

    fn start(&self, id: SessionId, stop: Option<CancelToken>, asks: Arc<Asks>) -> Result<Session> {
        let config = Arc::clone(&self.config);
        let mut session = start::start_as(id, config, stop, asks, Origin::Template(&self.forker))?;
        session.template.clone_from(&self.template);
        self.forker.count();
        Ok(session)
    }

    /// The process that keeps the state.
    pub fn pid(&self) -> u32 {
        self.forker.pid()
    }

    /// Whether that process lives: one atomic load and one system call.
    pub fn is_alive(&self) -> bool {
        self.forker.is_alive()
    }

    /// What it takes, with what it shares with the sessions told apart. `None` once its process is gone.
    pub fn memory(&self) -> Option<Memory> {
        self.forker.memory()
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

/// A live worker as the parent of its copies, for as long as one of them is there.
pub(super) struct Branches {
    control: OwnedFd,
    line: ForkLine,
}

impl Parent for Branches {
    fn reap(&self, child: u64) {
        self.line.reap(self.control.as_fd(), child);
    }
}

impl fmt::Debug for Branches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Branches").finish_non_exhaustive()
    }
}
