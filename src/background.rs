//! Owned, named, joined threads.
//!
//! Every thread that remuda starts is a [`Background`]: it has a name of at most 15 bytes (so that
//! `ps -L` and a debugger show it whole), somebody who owns it, and a join. A panic is caught at
//! its root, logged and counted: it never takes the process or a lock down.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// Background threads and caught callbacks that panicked since the process started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// A thread that is joined when its owner ends it.
///
/// The owner makes the thread's loop end first (a flag and a wake-up), then calls
/// [`join`](Background::join) or drops the value.
#[must_use = "dropping a background thread joins it at once"]
pub(crate) struct Background {
    name: &'static str,
    handle: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts `body` on a thread called `name`.
    pub(crate) fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> io::Result<Background> {
        Background::build(name, thread::Builder::new(), body)
    }

    /// As [`spawn`](Background::spawn), with a stack of this size: for threads that there may be
    /// thousands of and that run no user code with needs of its own.
    #[cfg(feature = "client")]
    pub(crate) fn spawn_small(
        name: &'static str,
        stack: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Background> {
        Background::build(name, thread::Builder::new().stack_size(stack), body)
    }

    fn build(
        name: &'static str,
        builder: thread::Builder,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Background> {
        debug_assert!(name.len() <= 15, "the kernel cuts thread names at 15 bytes");
        let handle = builder.name(name.to_owned()).spawn(move || {
            shielded(name, body);
        })?;
        Ok(Background { name, handle: Some(handle) })
    }

    /// Whether the thread has ended, so that joining it does not wait.
    pub(crate) fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the thread end by itself: for one that its owner has told to end but must not wait for.
    #[cfg(any(feature = "client", feature = "testing"))]
    pub(crate) fn leave(mut self) {
        self.handle = None;
    }

    /// The thread's id; that of the calling thread once it was joined.
    #[cfg(feature = "client")]
    pub(crate) fn id(&self) -> thread::ThreadId {
        self.handle.as_ref().map_or_else(|| thread::current().id(), |handle| handle.thread().id())
    }

    /// Waits for the end of the thread. Does nothing on the thread itself: whoever drops the last
    /// owner there leaves the thread to end by itself.
    pub(crate) fn join(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if handle.thread().id() == thread::current().id() {
            return;
        }
        if handle.join().is_err() {
            log::error!("thread {} ended by a panic that was not caught", self.name);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.join();
    }
}

/// Runs code that may panic (a thread's body, a user's callback) and reports a panic instead of
/// passing it on.
pub(crate) fn shielded<T>(what: &str, body: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(panic) => {
            PANICS.fetch_add(1, Ordering::Relaxed);
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            log::error!("{what} panicked: {text}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_counted() {
        let before = PANICS.load(Ordering::Relaxed);
        let mut thread = Background::spawn("remuda-test", || panic!("on purpose")).expect("spawn");
        thread.join();
        assert!(PANICS.load(Ordering::Relaxed) > before);
        assert_eq!(shielded("test", || 7), Some(7));
    }
}
