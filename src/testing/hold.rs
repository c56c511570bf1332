//! A place where scripted workers stop until the test lets them go.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;

use super::GENEROUS;
use crate::clock::Moment;
use crate::sync::{Condvar, Mutex, wait_until};

/// A gate for scripted workers: whoever comes to it stops until the test releases it.
///
/// A hold begins closed. Those it holds go first come, first served. A worker that is cancelled or
/// killed there leaves. Clones are the same hold.
#[derive(Clone, Default)]
pub struct Hold {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    /// How many may pass that have not come yet.
    passes: u64,
    held: VecDeque<Arc<Bell>>,
}

/// Rings for one that is held.
pub(super) struct Bell {
    free: AtomicBool,
    event: OwnedFd,
}

impl Hold {
    /// A closed one.
    pub fn new() -> Hold {
        Hold::default()
    }

    /// Opens it: all go on, those too that come later.
    pub fn release(&self) {
        let held = {
            let mut state = self.inner.state.lock();
            state.open = true;
            std::mem::take(&mut state.held)
        };
        for bell in held {
            bell.ring();
        }
        self.inner.changed.notify_all();
    }

    /// Lets one go: who is held longest or, if nobody is, the next to come.
    pub fn release_one(&self) {
        let first = {
            let mut state = self.inner.state.lock();
            let first = state.held.pop_front();
            state.passes += u64::from(first.is_none());
            first
        };
        if let Some(bell) = first {
            bell.ring();
        }
        self.inner.changed.notify_all();
    }

    /// How many are held now.
    pub fn held(&self) -> usize {
        self.inner.state.lock().held.len()
    }

    /// Waits until at least `count` are held: they are where the test wants them, for certain.
    ///
    /// # Panics
    /// After a minute.
    #[track_caller]
    pub fn await_held(&self, count: usize) {
        let deadline = Moment::after(GENEROUS);
        let mut state = self.inner.state.lock();
        while state.held.len() < count {
            let late = wait_until(&self.inner.changed, &mut state, Some(deadline));
            assert!(!late || state.held.len() >= count, "{} are held, not {count}", state.held.len());
        }
    }

    /// Somebody comes: `None` if it may pass.
    pub(super) fn enter(&self) -> rustix::io::Result<Option<Arc<Bell>>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut state = self.inner.state.lock();
        if state.open {
            return Ok(None);
        }
        if state.passes > 0 {
            state.passes -= 1;
            return Ok(None);
        }
        let bell = Arc::new(Bell { free: AtomicBool::new(false), event });
        state.held.push_back(Arc::clone(&bell));
        drop(state);
        self.inner.changed.notify_all();
        Ok(Some(bell))
    }

    /// Somebody leaves, released or not.
    pub(super) fn leave(&self, bell: &Arc<Bell>) {
        self.inner.state.lock().held.retain(|held| !Arc::ptr_eq(held, bell));
    }
}

impl Bell {
    fn ring(&self) {
        self.free.store(true, Ordering::SeqCst);
        // Fails when the counter is full only.
        let _ = write(&self.event, &1_u64.to_ne_bytes());
    }

    pub(super) fn is_free(&self) -> bool {
        self.free.load(Ordering::SeqCst)
    }

    /// Readable once it is free.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("held", &self.held()).finish_non_exhaustive()
    }
}
