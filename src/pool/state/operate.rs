//! What an operator asks of a pool: pause, resume, resize, replace everything, end.

use std::mem;

use super::{Effects, Phase, Place, Refusal, Removal, Resource, State};
use crate::clock::Moment;

impl<S: Resource, W> State<S, W> {
    /// No sessions for anybody for now: who asks waits. Returns whether that changed anything.
    pub(crate) fn pause(&mut self) -> bool {
        let was_open = self.phase == Phase::Open;
        if was_open {
            self.phase = Phase::Paused;
        }
        self.check();
        was_open
    }

    /// Serves again, those who wait first. Returns whether the pool was paused.
    pub(crate) fn resume(&mut self, now: Moment, fx: &mut Effects<S, W>) -> bool {
        let was_paused = self.phase == Phase::Paused;
        if was_paused {
            self.phase = Phase::Open;
            self.evaluate(now, fx);
        }
        self.check();
        was_paused
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.phase == Phase::Paused
    }

    /// Changes how many sessions the pool keeps ready and has at most. What is idle and too much
    /// leaves now, what is in use and too much leaves when it comes back.
    pub(crate) fn resize(
        &mut self,
        min_idle: usize,
        max_sessions: usize,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) {
        self.bounds.min_idle = min_idle;
        self.bounds.max_sessions = max_sessions;
        self.ceiling = max_sessions.max(self.total());
        if self.is_open() {
            self.owed = self.owed.min(max_sessions);
            self.evaluate(now, fx);
            self.request_health(fx);
        }
        self.check();
    }

    /// `min_idle` and `max_sessions` as they are now.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.bounds.min_idle, self.bounds.max_sessions)
    }

    /// Marks every session that exists or is being started as one to be replaced. Returns how many.
    pub(crate) fn outdate(&mut self, now: Moment, fx: &mut Effects<S, W>) -> usize {
        if !self.is_open() {
            return 0;
        }
        let mut marked = 0;
        for slot in &mut self.slots {
            if matches!(slot.place, Place::Free | Place::Retiring) {
                continue;
            }
            slot.due = Some(Removal::Outdated);
            marked += 1;
        }
        self.age_due(now);
        self.evaluate(now, fx);
        self.check();
        marked
    }

    /// Sessions that are still to be replaced since [`outdate`](State::outdate), those that are leaving
    /// included.
    pub(crate) fn outdated(&self) -> usize {
        let outdated = |slot: &&super::Slot<S>| {
            !matches!(slot.place, Place::Free) && slot.due == Some(Removal::Outdated)
        };
        self.slots.iter().filter(outdated).count()
    }

    /// No more sessions for anybody: waiters are refused, whatever nobody holds leaves.
    pub(crate) fn close(&mut self, fx: &mut Effects<S, W>) {
        self.phase = Phase::Closed;
        self.owed = 0;
        self.announced = 0;
        self.refuse_all(&Refusal::Closed, fx);
        self.aging_idle = 0;
        while let Some(index) = self.idle.pop() {
            if let Place::Idle(session) = mem::replace(&mut self.slots[index as usize].place, Place::Busy) {
                self.busy += 1;
                self.depart(index, session, Removal::Shutdown, false, fx);
            }
        }
        for index in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            if let Place::Resetting(held @ Some(_)) = &mut self.slots[index as usize].place
                && let Some(session) = held.take()
            {
                self.depart(index, session, Removal::Shutdown, false, fx);
            }
        }
        self.check();
    }
}
