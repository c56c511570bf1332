//! Floors of the pool's rows: the least that a bounded pool of plain values can be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A mutex, a stack, a condvar. A newcomer may take what a sleeper was woken for.
#[derive(Debug)]
pub(crate) struct BargingQueue<T> {
    idle: Mutex<Vec<T>>,
    released: Condvar,
}

impl<T> BargingQueue<T> {
    pub(crate) fn new(values: impl IntoIterator<Item = T>) -> BargingQueue<T> {
        BargingQueue { idle: Mutex::new(values.into_iter().collect()), released: Condvar::new() }
    }

    pub(crate) fn acquire(&self) -> Barged<'_, T> {
        let mut idle = self.idle.lock();
        loop {
            if let Some(value) = idle.pop() {
                return Barged { queue: self, value: Some(value) };
            }
            self.released.wait(&mut idle);
        }
    }
}

/// A value of a [`BargingQueue`]; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Barged<'a, T> {
    queue: &'a BargingQueue<T>,
    value: Option<T>,
}

impl<T> Drop for Barged<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.queue.idle.lock().push(value);
            self.queue.released.notify_one();
        }
    }
}

/// First come, first served: the releaser hands its value to the longest waiter.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    idle: Vec<T>,
    waiters: VecDeque<Arc<Waiter<T>>>,
}

#[derive(Debug)]
struct Waiter<T> {
    given: Mutex<Option<T>>,
    filled: Condvar,
}

impl<T> FairQueue<T> {
    pub(crate) fn new(values: impl IntoIterator<Item = T>) -> FairQueue<T> {
        let state = State { idle: values.into_iter().collect(), waiters: VecDeque::new() };
        FairQueue { state: Mutex::new(state) }
    }

    pub(crate) fn acquire(&self) -> Handed<'_, T> {
        loop {
            if let Some(value) = self.acquire_until(None) {
                return value;
            }
        }
    }

    /// `None` when the deadline has passed.
    pub(crate) fn acquire_until(&self, deadline: Option<Instant>) -> Option<Handed<'_, T>> {
        let waiter = {
            let mut state = self.state.lock();
            if let Some(value) = state.idle.pop() {
                return Some(Handed { queue: self, value: Some(value) });
            }
            let waiter = Arc::new(Waiter { given: Mutex::new(None), filled: Condvar::new() });
            state.waiters.push_back(Arc::clone(&waiter));
            waiter
        };
        let mut given = waiter.given.lock();
        let mut late = false;
        while given.is_none() && !late {
            match deadline {
                None => waiter.filled.wait(&mut given),
                Some(deadline) => late = waiter.filled.wait_until(&mut given, deadline).timed_out(),
            }
        }
        if given.is_none() {
            // The releaser locks the state first: so must whoever leaves the queue.
            drop(given);
            let mut state = self.state.lock();
            state.waiters.retain(|other| !Arc::ptr_eq(other, &waiter));
            given = waiter.given.lock();
        }
        given.take().map(|value| Handed { queue: self, value: Some(value) })
    }

    fn release(&self, value: T) {
        let mut state = self.state.lock();
        let Some(waiter) = state.waiters.pop_front() else {
            state.idle.push(value);
            return;
        };
        *waiter.given.lock() = Some(value);
        drop(state);
        waiter.filled.notify_one();
    }
}

/// A value of a [`FairQueue`]; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Handed<'a, T> {
    queue: &'a FairQueue<T>,
    value: Option<T>,
}

impl<T> Drop for Handed<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.queue.release(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_that_gives_up_leaves_the_queue_and_loses_nothing() {
        let queue = FairQueue::new([1]);
        let held = queue.acquire();
        assert!(queue.acquire_until(Some(Instant::now())).is_none());
        drop(held);
        assert!(queue.acquire_until(Some(Instant::now())).is_some());
        assert!(queue.state.lock().waiters.is_empty());
    }
}
