//! The pool's mutex, its condition variables, and the hand-off to those who wait.
//!
//! Knows no session and no process: what is handed out is any [`Resource`], so that a model checker
//! can drive this very code. The mutex is held in two ways only: for the length of a short closure
//! ([`Gate::with`]), and in the wait loops of this file and of the background threads. What an
//! event asks for comes out as [`Effects`]; the gate wakes whom it should, the pool does the rest.

#[cfg(all(test, shuttle))]
mod model;

use std::fmt;
use std::sync::Arc;

use super::breaker::BreakerState;
use super::state::{Decision, Effects, Resource, SlotId, State, Ticket};
use crate::clock::{Clock, Moment};
use crate::sync::{Condvar, Mutex, MutexGuard, wait_by};

/// What stands between a pool's users and its state.
pub(super) struct Gate<S: Resource> {
    inner: Mutex<Inner<S>>,
    /// What all deadlines in the pool go by.
    pub(super) clock: Clock,
    /// For those who wait for counts to change: `wait_ready`, `shutdown`. Only notified while
    /// `Inner::observers` says that somebody does.
    pub(super) changed: Condvar,
    /// For spawners.
    pub(super) starts: Condvar,
    /// For the maintenance thread between two passes.
    pub(super) health: Condvar,
    /// For the maintenance thread when it must rest: notified when the pool closes.
    pub(super) closing: Condvar,
}

/// What the mutex protects.
pub(super) struct Inner<S: Resource> {
    pub(super) state: State<S, Arc<Waiter>>,
    observers: usize,
    /// Everybody in [`Gate::await_decision`], if a test moves the clock.
    sleepers: Vec<Arc<Waiter>>,
    /// Spawner threads that exist.
    pub(super) spawners: usize,
}

/// A start that a spawner has begun.
pub(super) struct Begun {
    pub(super) slot: SlotId,
    pub(super) began: Moment,
    /// Whether this is the one start that is tried after a back-off.
    pub(super) probe: bool,
}

/// Who waits for its turn: a thread that sleeps until it is decided (the condvar belongs to the gate's
/// mutex), or a job.
pub(super) struct Waiter {
    decided: Condvar,
    job: Option<Arc<dyn Decided>>,
}

/// Something that is told of its turn instead of being woken.
pub(super) trait Decided: Send + Sync {
    /// Its fate is decided, and to be [collected](State::collect). Called once, without any lock held.
    fn decided(self: Arc<Self>);
}

impl Waiter {
    pub(super) fn new() -> Arc<Waiter> {
        Arc::new(Waiter { decided: Condvar::new(), job: None })
    }

    pub(super) fn of_job(job: Arc<dyn Decided>) -> Arc<Waiter> {
        Arc::new(Waiter { decided: Condvar::new(), job: Some(job) })
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.job.is_some() { "a job" } else { "a thread" })
    }
}

impl<S: Resource> Gate<S> {
    pub(super) fn new(state: State<S, Arc<Waiter>>, clock: Clock) -> Gate<S> {
        let inner = Inner { state, observers: 0, sleepers: Vec::new(), spawners: 0 };
        Gate {
            inner: Mutex::new(inner),
            clock,
            changed: Condvar::new(),
            starts: Condvar::new(),
            health: Condvar::new(),
            closing: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.inner.lock()
    }

    /// One event of the state machine. Returns its result and whether there is something to carry
    /// out: if so, [`wake`](Gate::wake) must be called with these effects.
    #[inline]
    pub(super) fn with<R>(
        &self,
        fx: &mut Effects<S, Arc<Waiter>>,
        event: impl FnOnce(&mut State<S, Arc<Waiter>>, &mut Effects<S, Arc<Waiter>>) -> R,
    ) -> (R, bool) {
        let mut inner = self.inner.lock();
        let result = event(&mut inner.state, fx);
        fx.observed = inner.observers > 0;
        (result, fx.observed || !fx.is_nothing())
    }

    /// Wakes whom an event concerns.
    pub(super) fn wake(&self, fx: &mut Effects<S, Arc<Waiter>>) {
        if fx.observed {
            self.changed.notify_all();
        }
        for waiter in &fx.wake {
            waiter.decided.notify_one();
        }
        if fx.health {
            self.health.notify_one();
        }
        // Last: it may start a thread.
        for job in fx.wake.drain(..).filter_map(|waiter| waiter.job.clone()) {
            job.decided();
        }
    }

    /// Wakes everybody but the waiters: the pool has been closed. Whoever waits looks at the state
    /// under the lock before it sleeps.
    pub(super) fn wake_all(&self) {
        let inner = self.inner.lock();
        self.ring(&inner);
    }

    /// Has everybody who waits look at the clock, which a test has moved.
    pub(super) fn clock_moved(&self) {
        let inner = self.inner.lock();
        self.ring(&inner);
        for waiter in &inner.sleepers {
            waiter.decided.notify_one();
        }
    }

    fn ring(&self, _locked: &Inner<S>) {
        self.starts.notify_all();
        self.health.notify_all();
        self.closing.notify_all();
        self.changed.notify_all();
    }

    /// Waits until the ticket's fate is decided, which its deadline does at the latest.
    pub(super) fn await_decision(
        &self,
        waiter: &Arc<Waiter>,
        ticket: Ticket,
        began: Moment,
        deadline: Option<Moment>,
    ) -> Decision<S> {
        let mut inner = self.inner.lock();
        if self.clock.is_manual() {
            inner.sleepers.push(Arc::clone(waiter));
        }
        let decision = loop {
            let so_far = self.clock.now().saturating_since(began);
            if let Some(decision) = inner.state.collect(ticket, so_far) {
                break decision;
            }
            if self.sleep(&waiter.decided, &mut inner, deadline) {
                // Decided under the lock: a grant that came before stands.
                inner.state.expire(ticket);
            }
        };
        if self.clock.is_manual() {
            inner.sleepers.retain(|sleeper| !Arc::ptr_eq(sleeper, waiter));
        }
        decision
    }

    /// Waits on a condvar of this gate until notified or until `deadline`; returns whether that has
    /// passed. The caller waits in a loop.
    pub(super) fn sleep(
        &self,
        condvar: &Condvar,
        inner: &mut MutexGuard<'_, Inner<S>>,
        deadline: Option<Moment>,
    ) -> bool {
        wait_by(&self.clock, condvar, inner, deadline)
    }

    /// For a spawner: waits for a start that is wanted and begins it; `None` once the pool is closed.
    pub(super) fn next_start(&self) -> Option<Begun> {
        let mut inner = self.inner.lock();
        loop {
            if !inner.state.is_open() {
                return None;
            }
            let began = self.clock.now();
            if let Some(slot) = inner.state.begin_start(began) {
                let probe = inner.state.breaker(began).0 == BreakerState::HalfOpen;
                return Some(Begun { slot, began, probe });
            }
            let retry = inner.state.next_attempt(began);
            self.sleep(&self.starts, &mut inner, retry);
        }
    }

    /// Has a spawner look for work: one that waits or, if all of them are busy with a start, one more
    /// of at most `max`. Returns true for that one, which the caller must bring, counted already.
    pub(super) fn call_spawner(&self, max: usize) -> bool {
        let one_more = {
            let mut inner = self.inner.lock();
            // A spawner that neither waits nor starts a session is about to look by itself.
            let all_busy = inner.state.counts().starting >= inner.spawners;
            let one_more = all_busy && inner.spawners < max && inner.state.wants_more_starts();
            inner.spawners += usize::from(one_more);
            one_more
        };
        if !one_more {
            self.starts.notify_one();
        }
        one_more
    }

    /// Waits until `done` says so, looking after every change; false when `deadline` passes first.
    pub(super) fn observe(
        &self,
        deadline: Option<Moment>,
        mut done: impl FnMut(&State<S, Arc<Waiter>>) -> bool,
    ) -> bool {
        let mut inner = self.inner.lock();
        inner.observers += 1;
        let reached = loop {
            if done(&inner.state) {
                break true;
            }
            if self.sleep(&self.changed, &mut inner, deadline) {
                break done(&inner.state);
            }
        };
        inner.observers -= 1;
        reached
    }
}
