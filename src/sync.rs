//! The one door to locks and condition variables.
//!
//! Everything that blocks goes through this module, so that a model checker can take the place of
//! `parking_lot` without a change elsewhere. Waiting always happens in a `while` loop around an
//! absolute deadline: a wake-up is a hint, never a promise.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::clock::Moment;

/// Waits until notified or until `deadline`; `None` waits without limit. Returns true when the
/// deadline has passed.
pub(crate) fn wait_until<T>(
    condvar: &Condvar,
    guard: &mut MutexGuard<'_, T>,
    deadline: Option<Moment>,
) -> bool {
    let Some(deadline) = deadline else {
        condvar.wait(guard);
        return false;
    };
    let left = deadline.saturating_since(Moment::now());
    if left.is_zero() {
        return true;
    }
    condvar.wait_for(guard, left).timed_out()
}
