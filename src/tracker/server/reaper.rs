//! The thread that moves silent sessions to the history, whether anybody looks or not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::routes::Tracker;
use crate::background::Background;
use crate::clock::Moment;
use crate::sync::{Condvar, Mutex, wait_until};

/// How long ended sessions are remembered.
const HISTORY: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How often the history is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(3_600);

/// The running reaper. Dropping it ends it.
pub(super) struct Reaper {
    stop: Arc<Stop>,
    thread: Background,
}

#[derive(Default)]
struct Stop {
    requested: Mutex<bool>,
    changed: Condvar,
}

impl Reaper {
    pub(super) fn start(tracker: Arc<Tracker>, purge_after: Duration) -> io::Result<Reaper> {
        let stop = Arc::new(Stop::default());
        let seen = Arc::clone(&stop);
        let thread = Background::spawn("remuda-reaper", move || run(&tracker, purge_after, &seen))?;
        Ok(Reaper { stop, thread })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        *self.stop.requested.lock() = true;
        self.stop.changed.notify_all();
        self.thread.join();
    }
}

fn run(tracker: &Tracker, purge_after: Duration, stop: &Stop) {
    let period = (purge_after / 20).clamp(Duration::from_millis(20), Duration::from_secs(10));
    let mut trim_at = Moment::now();
    let mut failing = false;
    loop {
        let pass = reap(tracker, purge_after, &mut trim_at);
        match (&pass, failing) {
            (Err(error), false) => log::warn!("silent sessions cannot be removed: {error}"),
            (Ok(()), true) => log::info!("silent sessions are removed again"),
            _ => {}
        }
        failing = pass.is_err();
        let next = Moment::after(period);
        let mut requested = stop.requested.lock();
        while !*requested {
            if wait_until(&stop.changed, &mut requested, Some(next)) {
                break;
            }
        }
        if *requested {
            return;
        }
    }
}

fn reap(tracker: &Tracker, purge_after: Duration, trim_at: &mut Moment) -> crate::Result<()> {
    for id in tracker.clean_up(purge_after)? {
        log::info!(session_id = id.as_str(); "a tracked session was silent for {purge_after:?} and is removed");
    }
    let now = Moment::now();
    if *trim_at <= now {
        tracker.store().trim_history(HISTORY)?;
        *trim_at = now + TRIM_EVERY;
    }
    Ok(())
}
