//! The pool's mutex, its condition variables, and the hand-off to those who wait.
//!
//! Knows no session and no process: what is handed out is any [`Resource`], so that a model checker
//! can drive this very code. The mutex is held in two ways only: for the length of a short closure
//! ([`Gate::with`]), and in the wait loops of this file and of the background threads. What an
//! event asks for comes out as [`Effects`]; the gate wakes whom it should, the pool does the rest.

use std::sync::Arc;

use super::state::{Decision, Effects, Resource, State, Ticket};
use crate::clock::Moment;
use crate::sync::{Condvar, Mutex, MutexGuard, wait_until};

/// What stands between a pool's users and its state.
pub(super) struct Gate<S: Resource> {
    inner: Mutex<Inner<S>>,
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
    /// Spawner threads that exist, and those of them that wait for work.
    pub(super) spawners: usize,
    pub(super) parked_spawners: usize,
}

/// A thread that waits for its turn. The condvar belongs to the gate's mutex.
#[derive(Debug)]
pub(super) struct Waiter {
    decided: Condvar,
}

impl Waiter {
    pub(super) fn new() -> Arc<Waiter> {
        Arc::new(Waiter { decided: Condvar::new() })
    }
}

impl<S: Resource> Gate<S> {
    pub(super) fn new(state: State<S, Arc<Waiter>>) -> Gate<S> {
        Gate {
            inner: Mutex::new(Inner { state, observers: 0, spawners: 0, parked_spawners: 0 }),
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
        for waiter in fx.wake.drain(..) {
            waiter.decided.notify_one();
        }
        if fx.health {
            self.health.notify_one();
        }
    }

    /// Wakes everybody but the waiters: the pool has been closed. Whoever waits looks at the state
    /// under the lock before it sleeps.
    pub(super) fn wake_all(&self) {
        let _inner = self.inner.lock();
        self.starts.notify_all();
        self.health.notify_all();
        self.closing.notify_all();
        self.changed.notify_all();
    }

    /// Waits until the ticket's fate is decided, which its deadline does at the latest.
    pub(super) fn await_decision(
        &self,
        waiter: &Waiter,
        ticket: Ticket,
        began: Moment,
        deadline: Option<Moment>,
    ) -> Decision<S> {
        let mut inner = self.inner.lock();
        loop {
            let so_far = Moment::now().saturating_since(began);
            if let Some(decision) = inner.state.collect(ticket, so_far) {
                return decision;
            }
            if wait_until(&waiter.decided, &mut inner, deadline) {
                // Decided under the lock: a grant that came before stands.
                inner.state.expire(ticket);
            }
        }
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
            if wait_until(&self.changed, &mut inner, deadline) {
                break done(&inner.state);
            }
        };
        inner.observers -= 1;
        reached
    }
}
