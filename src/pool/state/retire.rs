//! Who is due to leave although it works, and in which order: a replacement comes first, and only
//! a few leave at the same time.
//!
//! A session is *due* when its execution budget or its lifetime is nearly spent (both are drawn up
//! to a tenth early, so that there is time left), when it holds too much memory, or when all
//! sessions are to be replaced. While fewer than `max_retirements` age or leave, a due one begins
//! to *age*: its replacement is ordered, it goes on serving whoever needs it, and it leaves as soon
//! as it is idle and nothing is on the way any more. Where there is no room for a replacement the
//! aging session leaves first, as soon as nobody holds it. While starts fail it stays.

use std::mem;

use super::{Effects, Place, Removal, Resource, State};
use crate::clock::Moment;

impl<S: Resource, W> State<S, W> {
    /// Why a session that comes back leaves although it is alive, if it does. Begins to age it if it
    /// is due.
    #[cold]
    pub(super) fn leaves_instead(&mut self, index: u32, now: Moment) -> Option<Removal> {
        if !self.is_open() {
            return Some(Removal::Shutdown);
        }
        if self.live() > self.bounds.max_sessions {
            return Some(Removal::Resized);
        }
        let slot = &self.slots[index as usize];
        // Budgets below ten have no early part; and none is ever overdrawn, aging or not.
        if self.bounds.budget.is_some_and(|budget| slot.executions >= budget) {
            return Some(Removal::Recycled);
        }
        self.age_if_due(index, now);
        let aging = self.slots[index as usize].aging;
        aging.filter(|_| self.leaves_before_its_replacement())
    }

    /// Begins to age what is due, as far as may age at the same time.
    pub(super) fn age_due(&mut self, now: Moment) {
        self.more_due = false;
        for index in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            // One in use begins when it comes back: held for long, it would keep the others from leaving.
            if matches!(self.slots[index as usize].place, Place::Idle(_) | Place::Resetting(_)) {
                self.age_if_due(index, now);
            }
        }
    }

    fn age_if_due(&mut self, index: u32, now: Moment) {
        let slot = &self.slots[index as usize];
        let reason = match slot.due {
            _ if slot.aging.is_some() => return,
            Some(reason) => reason,
            None if slot.executions >= slot.budget => Removal::Recycled,
            None if now >= slot.expires => Removal::MaxAge,
            None => return,
        };
        if self.aging >= self.bounds.max_retirements {
            self.more_due = true;
            return;
        }
        self.aging += 1;
        let slot = &mut self.slots[index as usize];
        slot.aging = Some(reason);
        if matches!(slot.place, Place::Idle(_)) {
            self.idle.retain(|other| *other != index);
            self.idle.insert(0, index);
            self.aging_idle += 1;
        }
        self.owe();
    }

    /// Whether an aging session has to make room for its own replacement.
    fn leaves_before_its_replacement(&self) -> bool {
        // What starts is the replacement, or makes one; what is leaving makes room for it.
        self.live() >= self.bounds.max_sessions && self.starting == 0 && self.breaker.failures() == 0
    }

    /// Lets go of idle sessions that are aging and not needed any more, and of those that are too
    /// many since the pool was resized.
    pub(super) fn shed(&mut self, fx: &mut Effects<S, W>) {
        while self.live() > self.bounds.max_sessions && !self.idle.is_empty() {
            self.send_off(Removal::Resized, fx);
        }
        while self.aging_idle > 0 {
            let fresh = self.idle.len() - self.aging_idle;
            let replaced = self.owed == 0
                && self.starting == 0
                && self.breaker.failures() == 0
                && fresh >= self.watermark();
            if !replaced && !self.leaves_before_its_replacement() {
                break;
            }
            let oldest = self.idle[0];
            let Some(reason) = self.slots[oldest as usize].aging else {
                unreachable!("invariant 8: aging ones lie at the bottom")
            };
            self.send_off(reason, fx);
        }
    }

    /// The lowest session of the idle stack leaves.
    fn send_off(&mut self, reason: Removal, fx: &mut Effects<S, W>) {
        let index = self.idle.remove(0);
        let slot = &mut self.slots[index as usize];
        let Place::Idle(session) = mem::replace(&mut slot.place, Place::Busy) else {
            unreachable!("invariant 2: the idle stack holds idle slots")
        };
        self.aging_idle -= usize::from(slot.aging.is_some());
        self.busy += 1;
        self.depart(index, session, reason, false, fx);
    }

    /// Sessions that hold a place and are not leaving.
    pub(super) fn live(&self) -> usize {
        self.total() - self.retiring
    }
}
