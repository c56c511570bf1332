//! The lease: a session in the hands of its user.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::config::ValidateHook;
use super::core::Core;
use super::state::{Lease, Removal, SlotId};
use crate::background::shielded;
use crate::error::{Error, Result};
use crate::session::{Execution, Fingerprint, Name, Request, Running, Session};

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
    core: Arc<Core>,
    slot: SlotId,
    /// `None` only while the lease ends.
    session: Option<Box<Session>>,
    /// Whether the session is bound to the token of a scope.
    bound: bool,
    /// Its number in the pool's recorder, if it has one.
    pub(super) recorded: Option<u64>,
}

impl PooledSession {
    #[inline]
    pub(super) fn new(core: Arc<Core>, lease: Lease<Box<Session>>, bound: bool) -> PooledSession {
        PooledSession { core, slot: lease.slot, session: Some(lease.session), bound, recorded: None }
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

    /// The session, without what its last user left: see `session/handover.rs`.
    fn settled(&mut self) -> Result<&mut Session> {
        if let Err(failure) = self.session_mut().settle() {
            if !self.session_mut().reset_has_failed() {
                return Err(failure);
            }
            self.renew(&failure)?;
        }
        Ok(self.session_mut())
    }

    fn renew(&mut self, failure: &Error) -> Result<()> {
        let PooledSession { core, slot, session, .. } = self;
        match session {
            Some(session) => core.renew(*slot, session, failure),
            None => unreachable!("the session is taken when the lease ends"),
        }
    }

    /// Not handed out: a session that was restarted or moved away would be lost to the pool.
    fn session_mut(&mut self) -> &mut Session {
        match &mut self.session {
            Some(session) => session,
            None => unreachable!("the session is taken when the lease ends"),
        }
    }

    /// Gives the session back, as dropping does; `restart_if_dead` decides for this once whether a
    /// dead or unusable session is replaced by a new one or only removed.
    pub fn release(mut self, restart_if_dead: bool) {
        self.end(restart_if_dead);
    }

    /// Ends the session: nobody gets it again. A new one comes if the watermark or a waiter needs
    /// one. Does not wait for the process.
    pub fn discard(mut self) {
        if let Some(session) = self.take() {
            self.core.discard(self.slot, session, Removal::Discarded, false);
        }
    }

    /// Whether the user's check finds the session fit. A check that panics says no.
    pub(super) fn passes(&mut self, fit: &ValidateHook) -> bool {
        shielded("the check before use", || fit(self.session_mut())).unwrap_or(false)
    }

    /// The user's check refused the session.
    pub(super) fn refuse(mut self) {
        if let Some(session) = self.take() {
            self.core.refuse(self.slot, session);
        }
    }

    fn take(&mut self) -> Option<Box<Session>> {
        let mut session = self.session.take()?;
        if self.bound {
            session.bind(None);
        }
        if let (Some(number), Some(recorder)) = (self.recorded, &self.core.recorder) {
            recorder.given_back(number, self.core.clock().now());
        }
        session.forget_handles();
        Some(session)
    }

    #[inline]
    fn end(&mut self, restart_if_dead: bool) {
        if let Some(session) = self.take() {
            self.core.give_back(self.slot, session, restart_if_dead);
        }
    }
}

impl Deref for PooledSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.session {
            Some(session) => session,
            None => unreachable!("the session is taken when the lease ends"),
        }
    }
}

impl Drop for PooledSession {
    #[inline]
    fn drop(&mut self) {
        self.end(self.core.config.restart_if_dead);
    }
}

impl fmt::Debug for PooledSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledSession").field("session", &self.session).finish_non_exhaustive()
    }
}
