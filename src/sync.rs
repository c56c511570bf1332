//! The one door to locks and condition variables.
//!
//! Everything that blocks goes through this module, so that a model checker can take the place of
//! `parking_lot` without a change elsewhere: with `--cfg shuttle` the unit tests run on its locks
//! (see `pool/gate/model.rs`), where deadlines are fired by moving a manual clock. Waiting always happens in a `while` loop around an
//! absolute deadline: a wake-up is a hint, never a promise.

#[cfg(all(test, shuttle))]
mod modelled;

#[cfg(all(test, shuttle))]
pub(crate) use modelled::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard};
#[cfg(not(all(test, shuttle)))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::atomic::AtomicBool;
#[cfg(all(feature = "testing", not(all(test, shuttle))))]
pub(crate) use std::sync::atomic::AtomicU64;
pub(crate) use std::sync::atomic::Ordering;

use crate::clock::{Clock, Moment};

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

/// As [`wait_until`], by this clock. By a manual one no deadline comes by itself: whoever moves the
/// clock notifies `condvar` under the lock of `guard`.
pub(crate) fn wait_by<T>(
    clock: &Clock,
    condvar: &Condvar,
    guard: &mut MutexGuard<'_, T>,
    deadline: Option<Moment>,
) -> bool {
    if !clock.is_manual() {
        return wait_until(condvar, guard, deadline);
    }
    let late = || deadline.is_some_and(|deadline| clock.now() >= deadline);
    if !late() {
        condvar.wait(guard);
    }
    late()
}
