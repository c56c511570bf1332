//! The thread that moves silent sessions to the history, whether anybody looks or not.
//!
//! During a mass silence it keeps them; see [`Guard`](crate::tracker::life::Guard).

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::tracker::Tracker;
use crate::Result;
use crate::background::Background;
use crate::cancel::Wake;
use crate::clock::Moment;
use crate::sync::{Condvar, Mutex, wait_by};
use crate::tracker::api::{EndReason, KILL_EXPIRES_AFTER};

/// How long ended sessions are remembered.
const HISTORY: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How many of them, and how many receipts.
const MOST_HISTORY: usize = 100_000;
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
    /// A reaper that holds a mass silence for `mass_silence`.
    pub(super) fn start(
        tracker: Arc<Tracker>,
        purge_after: Duration,
        mass_silence: Duration,
    ) -> io::Result<Reaper> {
        let stop = Arc::new(Stop::default());
        let seen = Arc::clone(&stop);
        let sleeper: Weak<Stop> = Arc::downgrade(&stop);
        tracker.store().clock().on_advance(sleeper);
        let thread =
            Background::spawn("remuda-purge", move || run(&tracker, purge_after, mass_silence, &seen))?;
        Ok(Reaper { stop, thread })
    }
}

impl Wake for Stop {
    /// A test has moved the clock.
    fn wake(&self) {
        drop(self.requested.lock());
        self.changed.notify_all();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        *self.stop.requested.lock() = true;
        self.stop.changed.notify_all();
        self.thread.join();
    }
}

fn run(tracker: &Tracker, purge_after: Duration, mass_silence: Duration, stop: &Stop) {
    let clock = tracker.store().clock().clone();
    let period = (purge_after / 20).clamp(Duration::from_millis(20), Duration::from_secs(10));
    let mut trim_at = clock.now();
    let mut told = HashSet::new();
    let mut failing = false;
    loop {
        let now = clock.now();
        let pass = reap(tracker, now, (purge_after, mass_silence), &mut told, &mut trim_at);
        match (&pass, failing) {
            (Err(error), false) => log::warn!("silent sessions cannot be removed: {error}"),
            (Ok(()), true) => log::info!("silent sessions are removed again"),
            _ => {}
        }
        failing = pass.is_err();
        // Warns of a file that is gone, though nobody asks whether it is ready.
        let _ = tracker.store().check();
        let mut requested = stop.requested.lock();
        while !*requested {
            if wait_by(&clock, &stop.changed, &mut requested, Some(now + period)) {
                break;
            }
        }
        if *requested {
            return;
        }
    }
}

/// One thing that fails keeps no other from its turn: the first error.
///
/// Who is stale is asked as of one moment, however long the pass takes: else the sessions of a mass silence
/// that begins meanwhile would be told of before it is.
fn reap(
    tracker: &Tracker,
    now: Moment,
    (purge_after, mass_silence): (Duration, Duration),
    told: &mut HashSet<i64>,
    trim_at: &mut Moment,
) -> Result<()> {
    let removed = remove(tracker, now, purge_after, mass_silence);
    let told = tracker.tell_of_silence(now, told);
    removed.and(told).and(expire(tracker)).and(trim(tracker, trim_at))
}

fn remove(tracker: &Tracker, now: Moment, purge_after: Duration, mass_silence: Duration) -> Result<()> {
    if !tracker.look_for_mass_silence(now, mass_silence) {
        for id in tracker.clean_up(purge_after, EndReason::Silent, None)? {
            log::info!(session_id = id.as_str(); "a tracked session was silent for {purge_after:?} and is removed");
        }
    }
    Ok(())
}

fn expire(tracker: &Tracker) -> Result<()> {
    for id in tracker.store().expire_kills(KILL_EXPIRES_AFTER)? {
        log::warn!(session_id = id.as_str(); "tracked session {id} goes on {KILL_EXPIRES_AFTER:?} after its kill");
    }
    Ok(())
}

fn trim(tracker: &Tracker, trim_at: &mut Moment) -> Result<()> {
    let now = tracker.store().clock().now();
    if *trim_at <= now {
        tracker.store().trim_history(HISTORY, MOST_HISTORY)?;
        *trim_at = now + TRIM_EVERY;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::super::access::Door;
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::tracker::TrackedId;
    use crate::tracker::api::{EventKind, PURGE_AFTER, STALE_AFTER};
    use crate::tracker::events::{Filter, Kept};
    use crate::tracker::store::SessionStore;

    #[test]
    fn silence_is_told_while_nobody_can_be_removed() {
        let path = std::env::temp_dir().join(format!("remuda-reaper-{}.db", TrackedId::random()));
        let hand = ManualClock::new();
        let store = SessionStore::open_with(&path, STALE_AFTER, Clock::manual(hand.clone())).unwrap();
        store.create_session("a", None).unwrap();
        let raw = Connection::open(&path).unwrap();
        let refuses = "BEFORE DELETE ON sessions BEGIN SELECT raise(ABORT, 'on purpose'); END";
        raw.execute_batch(&format!("CREATE TRIGGER stays {refuses}")).unwrap();
        let tracker = Tracker::new(store, Door::new(None), None);
        let (mut told, mut trim_at) = (HashSet::new(), tracker.store().clock().now());
        let after = (PURGE_AFTER, PURGE_AFTER);
        hand.advance(PURGE_AFTER);
        let now = tracker.store().clock().now();
        assert!(reap(&tracker, now, after, &mut told, &mut trim_at).is_err());
        assert_eq!(told.len(), 1);
        assert_eq!(tracker.store().feed().recorded(), 2, "registered, stale");
        assert!(trim_at > tracker.store().clock().now(), "the history is trimmed too");
        raw.execute_batch("DROP TRIGGER stays").unwrap();
        reap(&tracker, now, after, &mut told, &mut trim_at).unwrap();
        assert_eq!((told.len(), tracker.store().feed().recorded()), (0, 3), "ended");
        drop(tracker);
        for end in ["", "-wal", "-shm", "-lock"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
    }

    #[test]
    fn a_silence_that_becomes_one_of_all_during_a_pass_is_told_by_the_next_and_first_as_such() {
        let hand = ManualClock::new();
        let store =
            SessionStore::open_with(":memory:".as_ref(), STALE_AFTER, Clock::manual(hand.clone())).unwrap();
        for _ in 0..20 {
            store.create_session("a", None).unwrap();
        }
        let tracker = Tracker::new(store, Door::new(None), None);
        let now = || tracker.store().clock().now();
        let (mut told, mut trim_at) = (HashSet::new(), now());
        let mut pass = |at| reap(&tracker, at, (PURGE_AFTER, PURGE_AFTER), &mut told, &mut trim_at).unwrap();
        let before = now();
        hand.advance(STALE_AFTER);
        pass(before);
        pass(now());
        let mut kinds = Vec::new();
        let note = |_: &str, event: &Kept| {
            kinds.push(event.kind);
            true
        };
        tracker.store().feed().read(21, &Filter::default(), note).unwrap();
        assert_eq!(kinds.len(), 21);
        assert_eq!((kinds[0], kinds[1]), (EventKind::MassSilence, EventKind::Stale));
    }
}
