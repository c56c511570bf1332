//! The locks of the model checker, with the face of those that take its place elsewhere.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64};

const UNPOISONED: &str = "a model ends with its first panic";

#[derive(Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Without a lock only while its thread sleeps on a condvar.
pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

/// No wait ends by time: a model moves the clock and wakes whom that concerns.
pub(crate) struct NeverInTime(bool);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect(UNPOISONED)))
    }
}

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(shuttle::sync::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("held between two waits");
        guard.0 = Some(self.0.wait(held).expect(UNPOISONED));
    }

    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> NeverInTime {
        self.wait(guard);
        NeverInTime(false)
    }

    /// As elsewhere, returns whether there was one: here nobody knows.
    pub(crate) fn notify_one(&self) -> bool {
        self.0.notify_one();
        true
    }

    pub(crate) fn notify_all(&self) -> usize {
        self.0.notify_all();
        0
    }
}

impl NeverInTime {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("held between two waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("held between two waits")
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}
