//! The lease: a session in the hands of its user.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::config::ValidateHook;
use super::core::{Core, Pooled};
use super::state::{Removal, SlotId};
use crate::background::shielded;
use crate::error::{Error, Result};
use crate::session::{Checkpoint, Execution, Fingerprint, Name, Request, Running, Session};

/// A session that was acquired from a pool. Reads like a [`Session`]; dropping it gives the session
/// back.
///
/// Giving back takes microseconds and never waits: what the pool's [`Reuse`](super::Reuse) policy
/// asks for happens on its own threads. A session whose code was stopped by a time limit or a
/// token, that died, or that was held while its thread panicked, is replaced by a new process.
///
/// A lease does not keep the pool running: when the last [`SessionPool`](super::SessionPool) handle
/// is dropped its process is killed.
#[must_use = "dropping it gives the session back at once"]
pub struct PooledSession {
    /// `None` only while the lease ends.
    pooled: Option<Box<Pooled>>,
}

impl PooledSession {
    #[inline]
    pub(super) fn new(core: Arc<Core>, slot: SlotId, mut pooled: Box<Pooled>, bound: bool) -> PooledSession {
        debug_assert!(pooled.lent_by.is_none(), "it is lent once");
        pooled.lent_by = Some(core);
        pooled.slot = slot;
        pooled.bound = bound;
        PooledSession { pooled: Some(pooled) }
    }

    /// Its number in the pool's recorder.
    pub(super) fn record(&mut self, number: u64) {
        self.pooled_mut().recorded = Some(number);
    }

    /// Runs code or a call: see [`Session::execute`].
    ///
    /// # Errors
    /// As [`Session::execute`].
    ///
    /// # Panics
    /// If a callback panics; the session is replaced then.
    pub fn execute<'a>(&mut self, request: impl Into<Request<'a>>) -> Result<Execution> {
        let mut request = request.into();
        match self.session_mut().execute_request(&mut request) {
            Err(failure) if !matches!(failure, Error::Cancelled) && self.session_mut().reset_has_failed() => {
                self.renew(&failure)?;
                self.session_mut().execute_request(&mut request)
            }
            result => result,
        }
    }

    /// Begins to run code or a call, event by event: see [`Session::begin`].
    ///
    /// # Errors
    /// As [`Session::begin`].
    pub fn begin<'s, 'r>(&'s mut self, request: impl Into<Request<'r>>) -> Result<Running<'s, 'r>> {
        self.settled()?.begin(request)
    }

    /// Asks whether the worker still answers: see [`Session::ping`].
    ///
    /// # Errors
    /// As [`Session::ping`].
    pub fn ping(&mut self, limit: Duration) -> Result<Duration> {
        self.settled()?.ping(limit)
    }

    /// The global names of the worker: see [`Session::names`].
    ///
    /// # Errors
    /// As [`Session::names`].
    pub fn names(&mut self) -> Result<Vec<Name>> {
        self.settled()?.names()
    }

    /// Has the worker go back to its warm state in the middle of the lease: see [`Session::reset`]. (At
    /// its end that is what [`Reuse::Reset`](super::Reuse::Reset) does by itself.)
    ///
    /// # Errors
    /// As [`Session::reset`].
    pub fn reset(&mut self) -> Result<Vec<String>> {
        self.settled()?.reset()
    }

    /// What differs from the worker's warm state: see [`Session::fingerprint`].
    ///
    /// # Errors
    /// As [`Session::fingerprint`].
    pub fn fingerprint(&mut self) -> Result<Fingerprint> {
        self.settled()?.fingerprint()
    }

    /// A copy of the session that goes on beside it, in no pool: see [`Session::fork`]. It does not count
    /// against [`max_sessions`](crate::PoolConfig::max_sessions), and outlives the lease.
    ///
    /// # Errors
    /// As [`Session::fork`].
    pub fn fork(&mut self) -> Result<Session> {
        self.settled()?.fork()
    }

    /// Keeps the state of this moment, for longer than the lease if need be: see [`Session::checkpoint`].
    ///
    /// # Errors
    /// As [`Session::checkpoint`].
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.settled()?.checkpoint()
    }

    /// Goes back to the moment of a checkpoint, in a new process: see [`Session::restore`]. After one of a
    /// session with other options than this pool's, the session is replaced at the end of the lease.
    ///
    /// # Errors
    /// As [`Session::restore`], and [`Error::Closed`].
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let pooled = self.pooled_mut();
        match &pooled.lent_by {
            Some(core) => Arc::clone(core).restore(pooled.slot, pooled, checkpoint),
            None => unreachable!("a session in hand is lent"),
        }
    }

    /// The session, without what its last user left: see `session/handover.rs`.
    fn settled(&mut self) -> Result<&mut Session> {
        if let Err(failure) = self.session_mut().settle() {
            if matches!(failure, Error::Cancelled) || !self.session_mut().reset_has_failed() {
                return Err(failure);
            }
            self.renew(&failure)?;
        }
        Ok(self.session_mut())
    }

    fn renew(&mut self, failure: &Error) -> Result<()> {
        let pooled = self.pooled_mut();
        match &pooled.lent_by {
            Some(core) => Arc::clone(core).renew(pooled.slot, pooled, failure),
            None => unreachable!("a session in hand is lent"),
        }
    }

    /// Not handed out: a session that was restarted or moved away would be lost to the pool.
    fn session_mut(&mut self) -> &mut Session {
        self.pooled_mut()
    }

    fn pooled_mut(&mut self) -> &mut Pooled {
        match &mut self.pooled {
            Some(pooled) => pooled,
            None => unreachable!("the session is taken when the lease ends"),
        }
    }

    /// Gives the session back, as dropping does; `restart_if_dead` decides for this once whether a
    /// dead or unusable session is replaced by a new one or only removed.
    pub fn release(mut self, restart_if_dead: bool) {
        self.end(Some(restart_if_dead));
    }

    /// Ends the session: nobody gets it again. A new one comes if the watermark or a waiter needs
    /// one. Does not wait for the process.
    pub fn discard(mut self) {
        if let Some((core, slot, session)) = self.take() {
            core.discard(slot, session, Removal::Discarded, false);
        }
    }

    /// Whether the user's check finds the session fit. A check that panics says no.
    pub(super) fn passes(&mut self, fit: &ValidateHook) -> bool {
        shielded("the check before use", || fit(self.session_mut())).unwrap_or(false)
    }

    /// The user's check refused the session.
    pub(super) fn refuse(mut self) {
        if let Some((core, slot, session)) = self.take() {
            core.refuse(slot, session);
        }
    }

    #[inline]
    fn take(&mut self) -> Option<(Arc<Core>, SlotId, Box<Pooled>)> {
        let mut session = self.pooled.take()?;
        let core = session.lent_by.take()?;
        if session.bound {
            session.bind(None);
        }
        if let Some(recorder) = &core.recorder
            && let Some(number) = session.recorded.take()
        {
            recorder.given_back(number, core.clock().now());
        }
        session.forget_handles();
        Some((core, session.slot, session))
    }

    /// `restart_if_dead`: else as the pool is configured.
    #[inline]
    fn end(&mut self, restart_if_dead: Option<bool>) {
        if let Some((core, slot, session)) = self.take() {
            core.give_back(slot, session, restart_if_dead.unwrap_or(core.config.restart_if_dead));
        }
    }
}

impl Deref for PooledSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.pooled {
            Some(pooled) => pooled,
            None => unreachable!("the session is taken when the lease ends"),
        }
    }
}

impl Drop for PooledSession {
    #[inline]
    fn drop(&mut self) {
        self.end(None);
    }
}

impl fmt::Debug for PooledSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledSession")
            .field("session", &self.pooled.as_deref().map(Deref::deref))
            .finish_non_exhaustive()
    }
}
