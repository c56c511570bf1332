//! What goes in and out of the state machine.

use std::sync::Arc;
use std::time::Duration;

use super::{Removal, SlotId};
use crate::error::Error;

/// A session in the hands of its user.
#[derive(Debug)]
pub(crate) struct Lease<S> {
    pub(crate) slot: SlotId,
    pub(crate) session: S,
}

/// A session to be retired once the lock is released; its slot is free after
/// [`State::retired`](super::State::retired).
#[derive(Debug)]
pub(crate) struct Departure<S> {
    pub(crate) slot: SlotId,
    pub(crate) session: S,
    pub(crate) reason: Removal,
    /// Whether a new session was ordered for it.
    pub(crate) replaced: bool,
}

/// What the caller must do after unlocking.
#[derive(Debug)]
#[must_use = "somebody sleeps until these are carried out"]
pub(crate) struct Effects<S, W> {
    /// Waiters whose decision is made.
    pub(crate) wake: Vec<W>,
    /// Sessions that leave.
    pub(crate) retire: Vec<Departure<S>>,
    /// Sessions that came back after their slots were taken from their users.
    pub(crate) orphans: Vec<S>,
    /// The error of an earlier start, which a hook of the user's may have made: not dropped under the lock.
    pub(crate) error: Option<Arc<Error>>,
    /// Sessions were no good and the breaker has opened. Comes with a departure.
    pub(crate) opened: Option<Opened>,
    /// More starts are wanted than were announced before.
    pub(crate) starts: bool,
    /// A health pass is asked for.
    pub(crate) health: bool,
    /// Somebody waits for counts to change.
    pub(crate) observed: bool,
}

/// What there is to tell of a breaker that has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Time until the next start.
    pub(crate) retry_in: Duration,
    pub(crate) cause: Arc<Error>,
}

/// Answer to [`State::take`](super::State::take).
#[derive(Debug)]
pub(crate) enum Take<S> {
    Hit(Lease<S>),
    /// Nothing is idle, or the tenant has as much as it may.
    Empty,
    Closed,
}

/// A session that the monitor takes in hand.
#[derive(Debug)]
pub(crate) enum Look<S> {
    /// It was idle.
    Idle(S),
    /// It owes the answer to a reset.
    Reset(S),
    /// Nothing to look at: somebody uses it, or it is gone.
    Nothing,
}

impl<S, W> Effects<S, W> {
    pub(crate) fn none() -> Effects<S, W> {
        Effects {
            wake: Vec::new(),
            retire: Vec::new(),
            orphans: Vec::new(),
            error: None,
            opened: None,
            starts: false,
            health: false,
            observed: false,
        }
    }

    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        !self.starts
            && !self.health
            && self.wake.is_empty()
            && self.retire.is_empty()
            && self.orphans.is_empty()
            && self.error.is_none()
    }
}
