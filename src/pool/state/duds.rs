//! Sessions that got ready and were no good: the user's check refused them, or they ended or misbehaved
//! before anybody used them.
//!
//! Each start of such a session went well, so the breaker alone would have them replaced without end.
//! From the third in a row on each counts as a failed start, and the back-off grows as if no start in
//! between had gone well. A session that comes back from a user begins the count anew.

use std::sync::Arc;
use std::time::Duration;

use super::{Effects, Lease, Opened, Removal, Resource, State};
use crate::clock::Moment;
use crate::error::Error;

/// So many one after the other are many.
const MANY: u32 = 3;
/// What lasted longer without use has proven that it can live.
const YOUNG: Duration = Duration::from_secs(10);

/// The count of them.
#[derive(Debug, Default)]
pub(super) struct Duds {
    in_a_row: u32,
    /// How many sessions had become ready when the last one of those that nobody used was counted.
    born: u64,
}

impl Duds {
    /// A user had a session.
    #[inline]
    pub(super) fn forget(&mut self) {
        self.in_a_row = 0;
    }
}

impl<S: Resource, W> State<S, W> {
    /// The user's check refused a session that was just taken.
    pub(crate) fn refuse(&mut self, lease: Lease<S>, now: Moment, fx: &mut Effects<S, W>) {
        self.one_more_dud(|_| Error::Unfit { refused: 1 }, now, fx);
        self.discard(lease, Removal::Unfit, self.bounds.restart_if_dead, now, fx);
    }

    /// A session is about to leave: it may be a dud that nobody used. Those that were there when the last
    /// one was counted may have had the same end from outside, and count as one with it.
    #[cold]
    pub(super) fn note_dud(&mut self, index: u32, reason: Removal, now: Moment, fx: &mut Effects<S, W>) {
        let slot = &self.slots[index as usize];
        let unused = slot.leases == 0 && now < slot.ready_at + YOUNG;
        if self.is_open() && unused && reason.is_defect() && slot.born > self.duds.born {
            self.duds.born = self.counters.sessions_created;
            self.one_more_dud(|sessions| Error::EndedUnused { sessions }, now, fx);
        }
    }

    fn one_more_dud(&mut self, cause: impl FnOnce(u32) -> Error, now: Moment, fx: &mut Effects<S, W>) {
        self.duds.in_a_row = self.duds.in_a_row.saturating_add(1);
        let Some(before) = self.duds.in_a_row.checked_sub(MANY) else { return };
        let cause = Arc::new(cause(self.duds.in_a_row));
        self.counters.start_failures += 1;
        self.counters.breaker_opened += 1;
        self.breaker.brought_a_dud(before, now);
        let (_, failures, retry_in) = self.breaker(now);
        fx.opened =
            Some(Opened { failures, retry_in: retry_in.unwrap_or_default(), cause: Arc::clone(&cause) });
        fx.error = self.last_start_error.replace(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::super::players::{Model, bounds, warm};
    use super::super::{Bounds, Refusal};
    use super::*;

    /// As the threads of a pool do for so long: what is wanted is started, two at a time, which takes each of
    /// them ten milliseconds, and a session ends by itself after its `life`. Returns how many starts there were.
    fn starts_within(model: &mut Model, time: Duration, life: Option<Duration>) -> usize {
        let (mut starts, until) = (Vec::new(), model.now + time);
        while model.now < until {
            for _ in 0..model.state.bounds.max_starts {
                let under_way = model.starting.len();
                model.begin_start();
                starts.extend((model.starting.len() > under_way).then_some(model.now));
            }
            let first_under_way = starts.len() - model.starting.len();
            if starts
                .get(first_under_way)
                .is_some_and(|began| model.now >= *began + Duration::from_millis(10))
            {
                model.end_start(0, true);
            }
            for pick in 0..model.state.handles().len() {
                let age = |row: &super::super::Row<_>| life.is_some_and(|life| row.age >= life);
                if model.state.rows(model.now).get(pick).is_some_and(age) {
                    model.kill(pick, true);
                }
            }
            while !model.departing.is_empty() {
                model.retired(0);
            }
            model.now = model.now + Duration::from_millis(1);
        }
        starts.len()
    }

    fn kill_all(model: &mut Model) {
        (0..model.state.handles().len()).for_each(|pick| model.kill(pick, true));
    }

    #[test]
    fn workers_that_end_soon_after_they_are_ready_are_started_less_and_less() {
        for life in [0, 4, 15, 40, 200] {
            let mut model = warm(Bounds { min_idle: 2, max_sessions: 4, ..bounds() }, 2);
            let life = Some(Duration::from_millis(life));
            let starts = starts_within(&mut model, Duration::from_secs(2), life);
            assert!((2..=12).contains(&starts), "{starts} starts in two seconds, life {life:?}");
            let later = starts_within(&mut model, Duration::from_secs(60), life);
            assert!((2..=20).contains(&later), "{later} starts in a minute, life {life:?}");
            let counters = model.state.counters();
            assert!(counters.breaker_opened > 2 && counters.start_failures > 2, "{counters:?}");
            let cause = model.state.last_start_error().expect("it is told");
            assert!(matches!(&**cause, Error::EndedUnused { sessions } if *sessions > 2), "{cause}");
        }
    }

    #[test]
    fn whoever_waits_for_workers_that_end_at_once_is_told_why_nobody_comes() {
        let mut model = warm(Bounds { min_idle: 1, max_sessions: 1, ..bounds() }, 1);
        kill_all(&mut model);
        starts_within(&mut model, Duration::from_millis(100), Some(Duration::ZERO));
        let claim = super::super::Claim::new(1, None);
        let refusal = model.state.give_up_at_once(&claim, model.now);
        assert!(matches!(refusal, Refusal::StartFailing { .. }), "{refusal:?}");
    }

    #[test]
    fn many_that_are_killed_together_are_replaced_at_once() {
        let mut model = warm(Bounds { min_idle: 20, max_sessions: 20, max_starts: 20, ..bounds() }, 20);
        for _ in 0..2 {
            kill_all(&mut model);
            (0..20).for_each(|_| model.retired(0));
            let all = starts_within(&mut model, Duration::from_millis(300), None);
            assert_eq!((all, model.state.counters().breaker_opened), (20, 0));
        }
    }

    #[test]
    fn those_that_lived_or_were_used_in_between_are_no_duds() {
        let mut model = warm(Bounds { min_idle: 1, max_sessions: 1, ..bounds() }, 1);
        for turn in 0..10 {
            if turn % 2 == 0 {
                model.now = model.now + YOUNG;
            } else {
                model.acquire(None);
                model.with_lease(0, State::release);
            }
            kill_all(&mut model);
            model.retired(0);
            starts_within(&mut model, Duration::from_millis(30), None);
            assert_eq!(model.state.counts().idle, 1, "turn {turn}: replaced at once");
        }
        assert_eq!(model.state.counters().breaker_opened, 0);
    }
}
