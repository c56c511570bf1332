//! The check of the state machine's invariants.

use std::mem;

use super::{Place, Resource, Slot, State};

/// What one event may cost debug builds on average, in slots, waiters and tenants looked at. So a queue of
/// thousands costs each event no more than this, and a pool of a program in development is not slow.
const EACH_EVENT: usize = 64;

impl<S: Resource, W> State<S, W> {
    /// After each event. The tests of the state machine look after every one, however long the queue is.
    #[inline]
    pub(super) fn check(&self) {
        if cfg!(debug_assertions) && (cfg!(test) || self.is_check_due()) {
            self.check_invariants();
        }
    }

    /// Whether the events up to this one have earned a check.
    pub(super) fn is_check_due(&self) -> bool {
        let earned = self.saved_up.get() + EACH_EVENT;
        let due = earned >= self.slots.len() + self.waiters.len() + self.tenants.count();
        self.saved_up.set(if due { 0 } else { earned });
        due
    }

    /// Panics if an invariant of the module's head is broken.
    pub(super) fn check_invariants(&self) {
        let count = |is: fn(&Place<S>) -> bool| self.slots.iter().filter(|slot| is(&slot.place)).count();
        assert_eq!(self.idle.len(), count(|place| matches!(place, Place::Idle(_))), "1: idle");
        assert_eq!(self.busy, count(|place| matches!(place, Place::Busy)), "1: busy");
        assert_eq!(self.resetting, count(|place| matches!(place, Place::Resetting(_))), "1: resetting");
        assert_eq!(self.starting, count(|place| matches!(place, Place::Starting)), "1: starting");
        assert_eq!(self.retiring, count(|place| matches!(place, Place::Retiring)), "1: retiring");
        assert_eq!(self.free.len(), count(|place| matches!(place, Place::Free)), "2: free");
        assert!(self.total() <= self.ceiling.max(self.bounds.max_sessions), "1: total");
        let mut seen = vec![false; self.slots.len()];
        for index in self.idle.iter().chain(&self.free) {
            assert!(!mem::replace(&mut seen[*index as usize], true), "2: twice in a list");
        }
        for index in &self.idle {
            assert!(matches!(self.slots[*index as usize].place, Place::Idle(_)), "2: not idle");
        }
        assert!(self.waiters.keys().all(|ticket| !self.decided.contains_key(ticket)), "4: decided");
        assert!(self.starting <= self.bounds.max_starts, "6: starts");
        assert_eq!(self.tenants.standing(), self.waiters.len(), "9: lines");
        let holders = self.slots.iter().filter_map(|slot| slot.holder.as_ref());
        self.tenants.check(|ticket| self.waiters.contains_key(ticket), holders);
        let held = |slot: &Slot<S>| slot.holder.is_none() || matches!(slot.place, Place::Busy);
        assert!(self.slots.iter().all(held), "9: holders");
        let aging = |index: &&u32| self.slots[**index as usize].aging.is_some();
        assert_eq!(self.aging_idle, self.idle.iter().filter(aging).count(), "8: aging idle");
        assert!(self.idle.iter().take(self.aging_idle).all(|index| aging(&index)), "8: not at the bottom");
        assert_eq!(self.aging, self.slots.iter().filter(|slot| slot.aging.is_some()).count(), "8: aging");
        assert!(self.aging <= self.bounds.max_retirements, "8: too many");
        if !self.is_open() {
            assert!(self.waiters.is_empty() && self.idle.is_empty() && self.wanted() == 0, "7: closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::players::{Fake, bounds};
    use super::super::{Bounds, Claim, Effects, State};
    use super::EACH_EVENT;
    use crate::clock::Moment;

    /// How often a check is due after each of `events` events in a pool with `waiting` callers in its queue.
    fn due_with(waiting: u64, events: usize) -> usize {
        let mut state: State<Fake, u64> = State::new(Bounds { max_waiters: usize::MAX, ..bounds() }, 1);
        let mut fx = Effects::none();
        let now = Moment::FAR_FUTURE;
        for wake in 0..waiting {
            let ticket = state.enqueue(Claim::new(0, None), now, wake, Moment::LONG_AGO, &mut fx);
            assert!(ticket.is_ok());
        }
        state.saved_up.set(0);
        (0..events).filter(|_| state.is_check_due()).count()
    }

    #[test]
    fn each_event_is_checked_in_a_small_pool_and_each_so_many_th_with_a_long_queue() {
        assert_eq!(due_with(60, 1000), 1000);
        assert_eq!(due_with(640, 10_000), 10_000 * EACH_EVENT / 640);
    }
}
