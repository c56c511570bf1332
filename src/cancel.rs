//! Cooperative cancellation: an atomic flag that also wakes whoever waits.
//!
//! A [`CancelToken`] is cheap to clone and can be cancelled from any thread, any number of times;
//! the first time counts. Checking it is one atomic load. Whoever waits for something else
//! (a queue, a worker's answer) registers a [`Wake`] and is woken when the token fires.
//!
//! ```
//! use remuda::CancelToken;
//! use std::time::Duration;
//!
//! let token = CancelToken::new();
//! assert!(!token.wait_timeout(Duration::ZERO));
//! token.clone().cancel();
//! assert!(token.is_cancelled());
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::background::shielded;
use crate::clock::Moment;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, wait_until};

/// Something that a fired token wakes. Called without any lock held, on the cancelling thread: it
/// must not block.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// A flag that asks work to stop: set once, seen by every clone.
///
/// # Blocking
/// Only [`wait_timeout`](CancelToken::wait_timeout) blocks.
#[derive(Clone, Default)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    wakers: Mutex<Wakers>,
    changed: Condvar,
}

/// Registered wakers in a slab: registering and leaving are O(1).
#[derive(Default)]
struct Wakers {
    slots: Vec<Option<Arc<dyn Wake>>>,
    free: Vec<usize>,
}

impl CancelToken {
    /// A token that nobody has cancelled yet.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Asks everything that watches this token to stop. Later calls do nothing.
    ///
    /// Fit for a kill callback: it does not wait for the work to end.
    pub fn cancel(&self) {
        let wakers = {
            let mut wakers = self.inner.wakers.lock();
            if self.inner.cancelled.swap(true, Ordering::SeqCst) {
                return;
            }
            std::mem::take(&mut wakers.slots)
        };
        self.inner.changed.notify_all();
        for waker in wakers.into_iter().flatten() {
            shielded("a cancel waker", || waker.wake());
        }
    }

    /// True once [`cancel`](CancelToken::cancel) was called on any clone.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::SeqCst)
    }

    /// Waits until the token is cancelled, at most `timeout`; returns whether it is cancelled.
    /// A zero `timeout` only looks.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        if self.is_cancelled() || timeout.is_zero() {
            return self.is_cancelled();
        }
        let deadline = Moment::after(timeout);
        let mut wakers = self.inner.wakers.lock();
        while !self.is_cancelled() {
            if wait_until(&self.inner.changed, &mut wakers, Some(deadline)) {
                break;
            }
        }
        self.is_cancelled()
    }

    /// Has `waker` called once when the token fires; at once if it has fired already. Dropping the
    /// registration takes the waker back.
    #[allow(clippy::needless_pass_by_value, reason = "an `Arc` of a type goes in as an `Arc` of the trait")]
    pub(crate) fn register(&self, waker: Arc<dyn Wake>) -> Registration {
        let slot = {
            let mut wakers = self.inner.wakers.lock();
            // Decided under the lock that `cancel` holds when it sets the flag: no waker is missed.
            if self.is_cancelled() {
                None
            } else if let Some(slot) = wakers.free.pop() {
                wakers.slots[slot] = Some(Arc::clone(&waker));
                Some(slot)
            } else {
                wakers.slots.push(Some(Arc::clone(&waker)));
                Some(wakers.slots.len() - 1)
            }
        };
        if slot.is_none() {
            waker.wake();
        }
        Registration { token: Arc::clone(&self.inner), slot }
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.is_cancelled()).finish()
    }
}

/// A registered waker; dropping it ends the registration.
#[must_use = "dropping a registration takes the waker back"]
pub(crate) struct Registration {
    token: Arc<Inner>,
    slot: Option<usize>,
}

impl Registration {
    /// Whether its token was cancelled, though the waker may not have been told yet.
    pub(crate) fn has_fired(&self) -> bool {
        self.token.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let mut wakers = self.token.wakers.lock();
        // After `cancel` took the wakers the slab is empty and stays so.
        let taken = wakers.slots.get_mut(slot).and_then(Option::take);
        if taken.is_some() {
            wakers.free.push(slot);
        }
        drop(wakers);
        drop(taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn each_waker_is_called_exactly_once() {
        let token = CancelToken::new();
        let count = Arc::new(Count::default());
        let before = token.register(count.clone());
        let left = token.register(count.clone());
        drop(left);
        token.cancel();
        token.cancel();
        let after = token.register(count.clone());
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        drop((before, after));
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let token = CancelToken::new();
        let other = token.clone();
        let waiter = std::thread::spawn(move || other.wait_timeout(Duration::from_secs(60)));
        token.cancel();
        assert!(waiter.join().expect("the waiter does not panic"));
    }

    #[test]
    fn slots_are_reused() {
        let token = CancelToken::new();
        for _ in 0..100 {
            drop(token.register(Arc::new(Count::default())));
        }
        assert_eq!(token.inner.wakers.lock().slots.len(), 1);
    }

    #[test]
    fn a_panicking_waker_does_not_keep_the_others_asleep() {
        struct Panics;
        impl Wake for Panics {
            fn wake(&self) {
                panic!("on purpose");
            }
        }
        let token = CancelToken::new();
        let count = Arc::new(Count::default());
        let both = (token.register(Arc::new(Panics)), token.register(count.clone()));
        token.cancel();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        drop(both);
    }
}
