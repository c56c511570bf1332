//! Acquiring: what a caller may ask for, and the way from the call to the lease.

use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::config::ValidateHook;
use super::core::{Core, Fx, PoolState, Pooled};
use super::events::{PoolEvent, TARGET};
use super::gate::Waiter;
use super::guard::PooledSession;
use super::quota::check_name;
use super::state::{Claim, Decision, Effects, Lease, Nested, Refusal, SlotId, Take, Ticket, Who};
use super::threads;
use crate::cancel::{CancelToken, Wake};
use crate::clock::Moment;
use crate::error::{Error, Result};

/// Sessions that one acquire has looked at by the user's check before it gives up.
const MOST_REFUSALS: u32 = 3;

/// What a caller of [`SessionPool::acquire_with`](super::SessionPool::acquire_with) asks for. Each
/// field has a setter of the same name.
///
/// ```no_run
/// # fn example(pool: &remuda::SessionPool) -> remuda::Result<()> {
/// use remuda::Acquire;
/// use std::time::Duration;
///
/// let ask = Acquire::new().tenant("alice").priority(5).timeout(Duration::from_secs(2)).label("nightly");
/// let session = pool.acquire_with(ask)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Acquire {
    /// In whose name: see [`Quota`](super::Quota). At most 256 bytes. Default: nobody's, without a
    /// quota.
    pub tenant: Option<Arc<str>>,
    /// Of the waiters of one tenant, those with a higher priority are served first. It counts for
    /// nothing between tenants. Default: 0.
    pub priority: i32,
    /// How long to wait at most; zero tries once. Default: no limit.
    pub timeout: Option<Duration>,
    /// Ends the wait, and what the session executes until it is given back. Default: none.
    pub token: Option<CancelToken>,
    /// What it is for, shown in [`PoolInfo`](super::PoolInfo). Default: none.
    pub label: Option<Arc<str>>,
}

/// How long an acquire may wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    Forever,
    /// Zero tries once.
    For(Duration),
}

/// What happens when a thread that holds a session of a pool would wait for another one of the same
/// pool: once every session is held by somebody who waits like this, nobody is ever served.
///
/// A thread counts as the holder of what it acquired until that is given back, by whichever thread.
/// Acquires that find an idle session never wait, so they are not looked at; nor are jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NestedAcquire {
    /// It waits.
    Allow,
    /// It waits; the first time in a pool is logged, with both places in the program, and every time
    /// is counted in [`PoolMetrics::nested_acquires`](crate::PoolMetrics::nested_acquires).
    Warn,
    /// It gets [`Error::NestedAcquire`]. Counted as well.
    Refuse,
}

impl Acquire {
    /// Waits without limit, in nobody's name.
    pub fn new() -> Acquire {
        Acquire::default()
    }

    /// Sets [`tenant`](Acquire::tenant).
    pub fn tenant(mut self, name: impl Into<Arc<str>>) -> Acquire {
        self.tenant = Some(name.into());
        self
    }

    /// Sets [`priority`](Acquire::priority).
    pub fn priority(mut self, priority: i32) -> Acquire {
        self.priority = priority;
        self
    }

    /// Sets [`timeout`](Acquire::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Acquire {
        self.timeout = Some(timeout);
        self
    }

    /// Sets [`token`](Acquire::token), to a clone of this one.
    pub fn token(mut self, token: &CancelToken) -> Acquire {
        self.token = Some(token.clone());
        self
    }

    /// Sets [`label`](Acquire::label).
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Acquire {
        self.label = Some(label.into());
        self
    }

    pub(super) fn patience(&self) -> Patience {
        self.timeout.map_or(Patience::Forever, Patience::For)
    }

    /// The caller, checked.
    pub(super) fn who(&self) -> Result<Option<Box<Who>>> {
        self.tenant.as_deref().map_or(Ok(()), check_name)?;
        if self.tenant.is_none() && self.label.is_none() && self.priority == 0 {
            return Ok(None);
        }
        let who = Who { tenant: self.tenant.clone(), label: self.label.clone(), priority: self.priority };
        Ok(Some(Box::new(who)))
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("tenant", &self.tenant)
            .field("priority", &self.priority)
            .field("timeout", &self.timeout)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// A session for the caller that passes the user's check, if there is one.
    #[inline]
    #[track_caller]
    pub(super) fn acquire(
        self: &Arc<Core>,
        patience: Patience,
        token: Option<&CancelToken>,
        who: Option<Box<Who>>,
    ) -> Result<PooledSession> {
        let claim = Claim::new(threads::number(), who);
        if self.recorder.is_none() && self.config.validate.is_none() {
            return self.acquire_any(claim, patience, token);
        }
        self.acquire_watched(claim, patience, token)
    }

    /// With the user's check, and recorded, as the pool was asked to.
    #[cold]
    fn acquire_watched(
        self: &Arc<Core>,
        claim: Claim,
        patience: Patience,
        token: Option<&CancelToken>,
    ) -> Result<PooledSession> {
        let came = self.clock().now();
        let mut result = match &self.config.validate {
            None => self.acquire_any(claim, patience, token),
            Some(fit) => self.acquire_fit(None, &claim, patience, token, &*fit.0),
        };
        let Some(recorder) = &self.recorder else { return result };
        match &mut result {
            Ok(session) => session.record(recorder.note(came, self.clock().now(), true)),
            Err(Error::AcquireTimeout { .. }) => _ = recorder.note(came, self.clock().now(), false),
            Err(_) => {}
        }
        result
    }

    /// For a job, which has this session: it, or another one, that passes the user's check.
    pub(super) fn fit_for(
        self: &Arc<Core>,
        session: PooledSession,
        claim: &Claim,
        token: &CancelToken,
    ) -> Result<PooledSession> {
        match &self.config.validate {
            None => Ok(session),
            Some(fit) => self.acquire_fit(Some(session), claim, Patience::Forever, Some(token), &*fit.0),
        }
    }

    #[cold]
    fn acquire_fit(
        self: &Arc<Core>,
        mut first: Option<PooledSession>,
        claim: &Claim,
        mut patience: Patience,
        token: Option<&CancelToken>,
        fit: &ValidateHook,
    ) -> Result<PooledSession> {
        let began = self.clock().now();
        let given = patience;
        for _ in 0..MOST_REFUSALS {
            let mut session = match first.take() {
                Some(session) => session,
                None => self.acquire_any(claim.clone(), patience, token)?,
            };
            if session.passes(fit) {
                return Ok(session);
            }
            session.refuse();
            // One limit for all of it.
            if let Patience::For(limit) = given {
                patience = Patience::For(limit.saturating_sub(self.clock().now().saturating_since(began)));
            }
        }
        if token.is_some_and(CancelToken::is_cancelled) {
            // The check may have failed because of that.
            return Err(Error::Cancelled);
        }
        Err(Error::Unfit { refused: MOST_REFUSALS })
    }

    /// A session for the caller: from idle at once, or after a wait in the queue.
    #[inline]
    fn acquire_any(
        self: &Arc<Core>,
        mut claim: Claim,
        patience: Patience,
        token: Option<&CancelToken>,
    ) -> Result<PooledSession> {
        if token.is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        let now = self.clock().coarse();
        let mut fx = Effects::none();
        // What could be dropped while something unwinds must lie in memory: this stays in registers.
        let take = |state: &mut PoolState, fx: &mut Fx| ManuallyDrop::new(state.take(&mut claim, now, fx));
        let (found, something) = self.gate.with(&mut fx, take);
        let found = ManuallyDrop::into_inner(found);
        if something {
            return self.acquire_slowly(found, fx, claim, patience, token);
        }
        mem::forget(fx);
        match found {
            Take::Hit(Lease { slot, session }) => Ok(self.lend(slot, session, token)),
            other => self.acquire_slowly(other, Effects::none(), claim, patience, token),
        }
    }

    /// The rest of [`acquire_any`](Core::acquire_any) if there is no session at once, or something to
    /// carry out.
    #[cold]
    fn acquire_slowly(
        self: &Arc<Core>,
        found: Take<Box<Pooled>>,
        fx: Fx,
        claim: Claim,
        patience: Patience,
        token: Option<&CancelToken>,
    ) -> Result<PooledSession> {
        self.carry_out(fx);
        let Lease { slot, session } = match found {
            Take::Hit(lease) => lease,
            Take::Empty => self.wait(claim, patience, token)?,
            Take::Closed => return Err(Error::Closed),
        };
        Ok(self.lend(slot, session, token))
    }

    /// The lease as its user sees it, obeying `token`.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "measured: a lease that is passed on goes through memory twice")]
    pub(super) fn lend(
        self: &Arc<Core>,
        slot: SlotId,
        mut session: Box<Pooled>,
        token: Option<&CancelToken>,
    ) -> PooledSession {
        if let Some(token) = token {
            session.bind(Some(token.clone()));
        }
        PooledSession::new(Arc::clone(self), slot, session, token.is_some())
    }

    #[cold]
    fn wait(
        self: &Arc<Core>,
        claim: Claim,
        patience: Patience,
        token: Option<&CancelToken>,
    ) -> Result<Lease<Box<Pooled>>> {
        let (began, place) = (self.clock().now(), claim.place);
        let deadline = match patience {
            Patience::For(Duration::ZERO) => {
                let refusal = self.with(|state, _| state.give_up_at_once(&claim, began));
                return Err(self.refused(refusal, place, began, true));
            }
            Patience::For(timeout) => Some(began + timeout),
            Patience::Forever => None,
        };
        let waiter = Waiter::new();
        let queued = Arc::clone(&waiter);
        let until = deadline.unwrap_or(Moment::FAR_FUTURE);
        let nested = self.config.nested_acquire;
        let entered = self.with(|state, fx| {
            let nested = match nested {
                NestedAcquire::Allow => None,
                NestedAcquire::Warn => state.nested(&claim),
                NestedAcquire::Refuse => state.refuse_nested(&claim).map(|()| None)?,
            };
            let ticket = state.enqueue(claim, until, queued, began, fx)?;
            Ok((ticket, nested))
        });
        let (ticket, nested) = entered.map_err(|refusal| self.refused(refusal, place, began, false))?;
        if let Some(Nested { held_at, first: true }) = nested {
            let (pool, held_at, place) = (self.config.name.as_str(), held_at.to_string(), place.to_string());
            log::warn!(
                target: TARGET, pool, held_at = held_at.as_str(), asked_at = place.as_str();
                "a thread that holds a session waits for another one of the same pool: that can be for ever"
            );
        }
        // After the ticket exists: a token that has fired already cancels it here.
        let registration =
            token.map(|token| token.register(Arc::new(CancelledWaiter::new(Arc::clone(self), ticket))));
        let decision = self.gate.await_decision(&waiter, ticket, began, deadline);
        drop(registration);
        match decision {
            Decision::Granted(lease) => Ok(lease),
            Decision::Refused(refusal) => Err(self.refused(refusal, place, began, false)),
        }
    }

    /// The error for a caller who asked at `place`.
    pub(super) fn refused(
        &self,
        refusal: Refusal,
        place: &'static Location<'static>,
        began: Moment,
        tried_once: bool,
    ) -> Error {
        if let Some(reason) = refusal.reason() {
            self.emit(PoolEvent::Refused { reason });
        }
        match refusal {
            Refusal::TimedOut { ahead, max_leases } => {
                let now = self.clock().now();
                let (trouble, paused) = {
                    let inner = self.lock();
                    (inner.state.start_trouble(now), inner.state.is_paused())
                };
                let waited = now.saturating_since(began);
                if !tried_once {
                    self.emit(PoolEvent::AcquireTimedOut { waited, ahead });
                }
                let last_start_error = trouble.map(|(cause, _)| cause);
                Error::AcquireTimeout { waited, ahead, last_start_error, paused, max_leases }
            }
            Refusal::Cancelled => Error::Cancelled,
            Refusal::Closed => Error::Closed,
            Refusal::StartFailing { cause, retry_in } => Error::StartFailing { cause, retry_in },
            Refusal::TooManyWaiters => {
                Error::TooManyWaiters { limit: self.config.max_waiters.unwrap_or(usize::MAX) }
            }
            Refusal::Quota { tenant, limit, kind } => {
                Error::QuotaExceeded { tenant: tenant.as_ref().to_owned(), limit, kind }
            }
            Refusal::Nested { held_at } => Error::NestedAcquire { held_at, asked_at: place },
        }
    }
}

/// Ends the wait of a ticket when its token fires.
pub(super) struct CancelledWaiter {
    core: Arc<Core>,
    ticket: Ticket,
}

impl CancelledWaiter {
    pub(super) fn new(core: Arc<Core>, ticket: Ticket) -> CancelledWaiter {
        CancelledWaiter { core, ticket }
    }
}

impl Wake for CancelledWaiter {
    fn wake(&self) {
        self.core.with(|state, fx| state.cancel(self.ticket, fx));
    }
}
