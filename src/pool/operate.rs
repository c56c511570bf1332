//! What an operator does with a running pool: pause, drain, resize, replace its sessions.

use std::time::Duration;

use super::SessionPool;
use super::events::PoolEvent;
use crate::error::{Error, Result};

impl SessionPool {
    /// Hands out no more sessions until [`resume`](SessionPool::resume): who asks waits in the queue
    /// (time limits and tokens go on), [`try_acquire`](SessionPool::try_acquire) finds nothing. Leases go
    /// on, and the pool stays warm.
    pub fn pause(&self) {
        if self.core().with(|state, _| state.pause()) {
            self.core().emit(PoolEvent::Paused);
        }
    }

    /// Hands out sessions again after [`pause`](SessionPool::pause) or [`drain`](SessionPool::drain),
    /// to those who wait first.
    pub fn resume(&self) {
        if self.core().with(|state, fx| state.resume(self.core().clock().now(), fx)) {
            self.core().emit(PoolEvent::Resumed);
        }
    }

    /// Whether the pool is paused.
    pub fn is_paused(&self) -> bool {
        self.core().lock().state.is_paused()
    }

    /// [Pauses](SessionPool::pause) the pool and waits until nobody holds a session any more, at most
    /// `timeout`. Returns whether that came true; the pool stays paused either way.
    ///
    /// Who is asked to hurry is up to you: the pool ends no lease by itself. A job gives its session back
    /// before it is done, so [`Job::wait`](crate::Job::wait) may take a moment longer.
    ///
    /// # Errors
    /// [`Error::Closed`] if the pool is or gets closed.
    pub fn drain(&self, timeout: Duration) -> Result<bool> {
        self.pause();
        let deadline = self.core().clock().now() + timeout;
        let core = self.core();
        let drained = core.gate.observe(Some(deadline), |state| {
            !state.is_open() || (state.counts().busy == 0 && state.is_paused())
        });
        if !self.is_open() {
            return Err(Error::Closed);
        }
        if drained {
            core.emit(PoolEvent::Drained);
        }
        Ok(drained)
    }

    /// Changes [`min_idle`](super::PoolConfig::min_idle) and
    /// [`max_sessions`](super::PoolConfig::max_sessions) of the running pool. Does not wait: what is
    /// missing is started, idle sessions that are too many leave at once, those in use when they come
    /// back. Nobody's work is ended.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] as for [`start`](SessionPool::start), [`Error::Closed`].
    pub fn resize(&self, min_idle: usize, max_sessions: usize) -> Result<()> {
        let core = self.core();
        core.config.clone().min_idle(min_idle).max_sessions(max_sessions).validate()?;
        if !self.is_open() {
            return Err(Error::Closed);
        }
        core.with(|state, fx| {
            state.prime(fx);
            state.resize(min_idle, max_sessions, core.clock().now(), fx);
        });
        core.emit(PoolEvent::Resized { min_idle, max_sessions });
        Ok(())
    }

    /// Has every session replaced by a new one, at most
    /// [`max_concurrent_retirements`](super::PoolConfig::max_concurrent_retirements) at the same time, each
    /// when its replacement is ready (where there is room for one): after an update of what they have
    /// imported, for example. Sessions in use leave when they come back. Returns how many are to be
    /// replaced; does not wait for it.
    ///
    /// A [`template`](super::PoolConfig::template) is started anew first, with all of its warm-up.
    pub fn recycle_all(&self) -> usize {
        // First, or the new ones would be made like the old ones.
        self.core().source.renew();
        let marked = self.core().with(|state, fx| state.outdate(self.core().clock().now(), fx));
        self.core().emit(PoolEvent::Outdated { sessions: marked });
        marked
    }

    /// Waits until all that [`recycle_all`](SessionPool::recycle_all) marked are gone, at most `timeout`;
    /// returns whether they are.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn wait_recycled(&self, timeout: Duration) -> Result<bool> {
        let deadline = self.core().clock().now() + timeout;
        let gone = |state: &super::core::PoolState| !state.is_open() || state.outdated() == 0;
        let reached = self.core().gate.observe(Some(deadline), gone);
        if self.is_open() { Ok(reached) } else { Err(Error::Closed) }
    }
}
