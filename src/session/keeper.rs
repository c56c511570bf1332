//! What all sessions of this process share: the watchdog and the reaper.
//!
//! Created with the first session and ended with the last, so that a program without sessions has
//! no thread and no child of ours.

use std::sync::{Arc, Weak};

use super::execution::{Cause, Exit, PostMortem};
use super::process::Process;
use super::reaper::{Reaper, Ward};
use super::watchdog::Watchdog;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// Watchdog and reaper. Dropping the last handle waits until every ended worker is reaped.
pub(crate) struct Keeper {
    // Dropped in this order: the reaper still tells the watchdog.
    pub(crate) reaper: Reaper,
    pub(crate) watchdog: Arc<Watchdog>,
}

static CURRENT: Mutex<Weak<Keeper>> = Mutex::new(Weak::new());

impl Keeper {
    /// Kills and reaps a worker whose session somebody holds and never lets go. Never blocks; `gone` is
    /// called on the reaper's thread.
    pub(crate) fn reclaim(&self, process: &Arc<Process>, gone: impl FnOnce(PostMortem) + Send + 'static) {
        process.kill_group(Cause::Reclaimed);
        let post_mortem = PostMortem {
            session: process.session(),
            pid: process.id(),
            exit: Exit::Unknown,
            cause: Cause::Reclaimed,
            stderr_tail: String::new(),
            peak_memory: None,
            executions: 0,
            running: None,
        };
        self.reaper.take(Ward {
            process: Arc::clone(process),
            // They stay with the session, wherever it is.
            transport: None,
            scratch: None,
            kill_at: Moment::FAR_FUTURE,
            post_mortem,
            gone: Box::new(gone),
        });
    }

    /// The keeper of this process, started if need be.
    pub(crate) fn get() -> Result<Arc<Keeper>> {
        // Starting takes a process and a thread, but only the first session of a program waits for
        // it; two keepers would do no harm, only cost.
        let mut current = CURRENT.lock();
        if let Some(keeper) = current.upgrade() {
            return Ok(keeper);
        }
        let watchdog =
            Watchdog::start().map_err(|error| Error::io("starting the watchdog /bin/sh", error))?;
        let watchdog = Arc::new(watchdog);
        let reaper = Reaper::start(Arc::clone(&watchdog))?;
        let keeper = Arc::new(Keeper { reaper, watchdog });
        *current = Arc::downgrade(&keeper);
        Ok(keeper)
    }
}
