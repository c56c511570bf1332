//! Ctrl-C and SIGTERM: the first asks for an orderly stop, the second ends it at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use remuda::CancelToken;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Listener};
use signal_hook::low_level::emulate_default_handler;

/// A signal that comes so soon after the first one is its echo.
const ECHO: Duration = Duration::from_millis(200);

/// Listens while it lives; dropping it ends and joins its thread.
pub(crate) struct Signals {
    first: Arc<AtomicI32>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// The first signal cancels `token`, the second calls `again`, a third ends this program as if
    /// nobody had listened. What follows the first at once is part of it: some senders signal a
    /// program and then its group.
    pub(crate) fn listen(token: CancelToken, again: impl Fn() + Send + 'static) -> io::Result<Signals> {
        let mut listener = Listener::new([SIGINT, SIGTERM])?;
        let handle = listener.handle();
        let first = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&first);
        let thread = thread::Builder::new().name("remuda-signals".to_owned()).spawn(move || {
            let mut count = 0;
            let mut began = Instant::now();
            for signal in listener.forever() {
                if count == 1 && began.elapsed() < ECHO {
                    continue;
                }
                count += 1;
                match count - 1 {
                    0 => {
                        began = Instant::now();
                        seen.store(signal, Ordering::SeqCst);
                        token.cancel();
                    }
                    1 => again(),
                    // It cannot fail for these signals, and there is nobody to tell.
                    _ => drop(emulate_default_handler(signal)),
                }
            }
        })?;
        Ok(Signals { first, handle, thread: Some(thread) })
    }

    /// What a shell reports for a program that the first signal ended: 130 or 143; `None` if none came.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self.first.load(Ordering::SeqCst) {
            0 => None,
            signal => u8::try_from(128 + signal).ok(),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It has no code of its own that could panic.
            drop(thread.join());
        }
    }
}
