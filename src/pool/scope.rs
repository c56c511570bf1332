//! A scope: what one user of a shared pool owns, and what ends with that user's token.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::acquire::{Acquire, Patience};
use super::core::Core;
use super::guard::PooledSession;
use super::job::{self, AsCompleted, Job};
use super::runners;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::session::Request;

/// One user's part of a shared pool.
///
/// When the token is cancelled, everything that was acquired or submitted through the scope ends,
/// and nothing else does: queued acquires return [`Error::Cancelled`](crate::Error::Cancelled),
/// queued jobs are done with it, running executions are interrupted and, after the grace, killed.
/// The pool replaces what was killed; its other users notice nothing.
///
/// A scope is cheap to make and to clone. Dropping it cancels nothing, and it does not keep the
/// pool running.
#[derive(Clone)]
pub struct Scope {
    core: Arc<Core>,
    token: CancelToken,
    /// In whose name, with what priority, under which label.
    ask: Acquire,
}

impl Scope {
    pub(super) fn new(core: Arc<Core>, token: &CancelToken) -> Scope {
        Scope { core, token: token.clone(), ask: Acquire::new() }
    }

    /// The token that ends this scope.
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// This scope in the name of a tenant: what it acquires and submits from now on counts for the
    /// tenant's [`Quota`](super::Quota). A name of more than 256 bytes is refused with
    /// [`Error::TenantName`](crate::Error::TenantName) when it is used.
    pub fn as_tenant(mut self, name: impl Into<Arc<str>>) -> Scope {
        self.ask = self.ask.tenant(name);
        self
    }

    /// This scope with a priority: see [`Acquire::priority`]. Default: 0.
    pub fn with_priority(mut self, priority: i32) -> Scope {
        self.ask = self.ask.priority(priority);
        self
    }

    /// This scope with a label for what it acquires and submits: see [`Acquire::label`].
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Scope {
        self.ask = self.ask.label(label);
        self
    }

    /// As [`SessionPool::acquire`](super::SessionPool::acquire); the session's executions belong to
    /// this scope until it is given back.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`](crate::Error::Cancelled) once the token is cancelled.
    #[track_caller]
    pub fn acquire(&self) -> Result<PooledSession> {
        self.core.acquire(Patience::Forever, Some(&self.token), self.ask.who()?)
    }

    /// As [`SessionPool::acquire_timeout`](super::SessionPool::acquire_timeout), within this scope.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`](crate::Error::Cancelled) once the token is cancelled.
    #[track_caller]
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<PooledSession> {
        self.core.acquire(Patience::For(timeout), Some(&self.token), self.ask.who()?)
    }

    /// As [`SessionPool::try_acquire`](super::SessionPool::try_acquire), within this scope.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`](crate::Error::Cancelled) once the token is cancelled.
    #[track_caller]
    pub fn try_acquire(&self) -> Result<PooledSession> {
        self.acquire_timeout(Duration::ZERO)
    }

    /// Queues work that one of the pool's threads runs on the next free session. Does not wait.
    #[track_caller]
    pub fn submit(&self, request: impl Into<Request<'static>>) -> Job {
        match self.ask.who() {
            Ok(who) => runners::submit(&self.core, request.into(), Some(&self.token), who),
            Err(error) => job::refused(request.into(), error),
        }
    }

    /// Yields jobs in the order in which they end: see [`as_completed`](super::as_completed).
    pub fn as_completed(&self, jobs: impl IntoIterator<Item = Job>) -> AsCompleted {
        job::as_completed(jobs)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("token", &self.token)
            .field("tenant", &self.ask.tenant)
            .finish_non_exhaustive()
    }
}
