//! The thread that moves silent sessions to the history, whether anybody looks or not.
//!
//! When nearly all of many sessions fall silent at once, the fault is more likely the tracker's own
//! or the network's than theirs. Then nobody is removed before twice the time has passed.

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
        let thread = Background::spawn("remuda-purge", move || run(&tracker, purge_after, &seen))?;
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

/// Fewer sessions than this may well all end at once.
const MANY: usize = 20;
/// More than this part of them is nearly all.
const NEARLY_ALL_PERCENT: usize = 85;

fn run(tracker: &Tracker, purge_after: Duration, stop: &Stop) {
    let period = (purge_after / 20).clamp(Duration::from_millis(20), Duration::from_secs(10));
    let mut trim_at = Moment::now();
    let (mut failing, mut holding) = (false, false);
    loop {
        let (stale, all) = tracker.store().count_stale();
        let mass = is_mass_silence(stale, all);
        if mass && !holding {
            log::warn!(
                "{stale} of {all} tracked sessions are stale; they are kept for another {purge_after:?}"
            );
        }
        holding = mass;
        let pass = reap(tracker, if mass { purge_after * 2 } else { purge_after }, &mut trim_at);
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

fn is_mass_silence(stale: usize, all: usize) -> bool {
    all >= MANY && stale * 100 > all * NEARLY_ALL_PERCENT
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nearly_all_of_many_is_mass_silence() {
        assert!(is_mass_silence(20, 20) && is_mass_silence(86, 100));
        assert!(!is_mass_silence(85, 100) && !is_mass_silence(19, 19) && !is_mass_silence(0, 0));
    }
}
