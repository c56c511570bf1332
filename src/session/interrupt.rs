//! Stopping a session's code from any thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::transport::WakeFd;
use crate::cancel::Wake;
use crate::sync::Mutex;

/// How far a request to stop goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    /// Only ask; never kill.
    Interrupt = 1,
    /// The whole ladder: ask, and kill after the grace.
    Cancel = 2,
    /// Kill at once.
    Kill = 3,
}

/// Stops what a session is running, from any thread, also while another one waits in
/// [`execute`](crate::Session::execute). From [`Session::interrupt_handle`](crate::Session::interrupt_handle).
///
/// Each call concerns the execution that is running at that moment and no other: one that comes
/// late does nothing. Nothing here blocks. The handle stays valid when the session is restarted,
/// and may outlive it. One of a [`PooledSession`](crate::PooledSession) ends with the lease: it never
/// stops the code of the next user.
///
/// What is asked is done by the thread that waits for the code: in [`Running`](crate::Running) not
/// before the next event is asked for.
#[derive(Clone)]
pub struct InterruptHandle {
    asks: Arc<Asks>,
}

/// The meeting place of an execution and those who want to stop it.
///
/// Executions are counted from 1; what is asked is kept together with the number that it is meant
/// for, so that nothing needs to be cleared and nothing can hit the next one.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    last: AtomicU64,
    /// Number of the running execution; 0 between two.
    running: AtomicU64,
    /// Number times 4, plus the [`Ask`].
    asked: AtomicU64,
    waker: Mutex<Option<Arc<WakeFd>>>,
}

impl Asks {
    /// Whom to wake; changes with the worker process.
    pub(crate) fn set_waker(&self, waker: Arc<WakeFd>) {
        *self.waker.lock() = Some(waker);
    }

    /// The worker process with this waker is done with. Handles that outlive it keep no descriptor.
    pub(crate) fn let_go(&self, waker: &Arc<WakeFd>) {
        let mut current = self.waker.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, waker)) {
            *current = None;
        }
    }

    /// An execution begins; returns its number.
    pub(crate) fn begin(&self) -> u64 {
        let number = self.last.load(Ordering::Relaxed) + 1;
        self.last.store(number, Ordering::Relaxed);
        self.running.store(number, Ordering::SeqCst);
        number
    }

    pub(crate) fn end(&self) {
        self.running.store(0, Ordering::SeqCst);
    }

    /// What the execution with this number was asked to do.
    pub(crate) fn asked(&self, number: u64) -> Option<Ask> {
        let asked = self.asked.load(Ordering::SeqCst);
        match (asked >> 2 == number, asked & 3) {
            (true, 1) => Some(Ask::Interrupt),
            (true, 2) => Some(Ask::Cancel),
            (true, 3) => Some(Ask::Kill),
            _ => None,
        }
    }

    /// What the running execution was asked to do, for the thread that runs it.
    pub(crate) fn asked_now(&self) -> Option<Ask> {
        self.asked(self.running.load(Ordering::Relaxed))
    }

    fn ask(&self, ask: Ask) -> bool {
        let running = self.running.load(Ordering::SeqCst);
        if running == 0 {
            return false;
        }
        self.asked.fetch_max(running << 2 | ask as u64, Ordering::SeqCst);
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl InterruptHandle {
    pub(crate) fn new(asks: Arc<Asks>) -> InterruptHandle {
        InterruptHandle { asks }
    }

    /// Asks the running code to stop (Python: `KeyboardInterrupt`) and leaves it at that: code that
    /// goes on is not killed, and is asked once, however often this is called. Returns whether code
    /// was running.
    pub fn interrupt(&self) -> bool {
        self.asks.ask(Ask::Interrupt)
    }

    /// Asks the running code to stop and has it killed after the session's grace, as a cancelled
    /// token does. Returns whether code was running.
    pub fn cancel(&self) -> bool {
        self.asks.ask(Ask::Cancel)
    }

    /// Has the process group killed at once, if code is running. Returns whether it was.
    pub fn kill(&self) -> bool {
        self.asks.ask(Ask::Kill)
    }
}

impl fmt::Debug for InterruptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptHandle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_concerns_the_running_execution_alone() {
        let asks = Arc::new(Asks::default());
        let handle = InterruptHandle::new(Arc::clone(&asks));
        assert!(!handle.kill(), "nothing runs");
        let first = asks.begin();
        assert!(handle.interrupt());
        assert_eq!(asks.asked(first), Some(Ask::Interrupt));
        asks.end();
        assert!(!handle.cancel());
        let second = asks.begin();
        assert_eq!(asks.asked(second), None);
    }

    #[test]
    fn the_strongest_wish_counts() {
        let asks = Arc::new(Asks::default());
        let handle = InterruptHandle::new(Arc::clone(&asks));
        let number = asks.begin();
        assert!(handle.kill() && handle.interrupt());
        assert_eq!(asks.asked(number), Some(Ask::Kill));
    }
}
