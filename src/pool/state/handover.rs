//! From one user to the next without the detour over a reset of its own: see `session/handover.rs`.

use super::{Effects, Lease, Place, Resource, SlotId, State};
use crate::clock::Moment;

impl<S: Resource, W> State<S, W> {
    /// A user gives a session back that the next user may have as it is, but nobody else may keep: it goes
    /// to the first waiter. Returned if nobody waits.
    pub(crate) fn hand_over(
        &mut self,
        lease: Lease<S>,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) -> Option<Lease<S>> {
        if self.first_live_waiter(now).is_none() {
            self.check();
            return Some(lease);
        }
        self.release(lease, now, fx);
        None
    }

    /// A session in the hands of its user has a new process, because it could not be reset. False if the
    /// slot is not the user's any more, or the pool is closed: nobody watches over that process.
    pub(crate) fn renewed(&mut self, slot: SlotId, handle: S::Handle, now: Moment) -> bool {
        let renewed = self.restored(slot, handle, now);
        self.counters.sessions_restarted += u64::from(renewed);
        renewed
    }

    /// As [`renewed`](State::renewed), but its user has asked for it: a copy of a checkpoint.
    pub(crate) fn restored(&mut self, slot: SlotId, handle: S::Handle, now: Moment) -> bool {
        let is_open = self.is_open();
        let Some(entry) = self.entry(slot).filter(|entry| is_open && matches!(entry.place, Place::Busy))
        else {
            return false;
        };
        entry.signalled = false;
        if entry.aging.is_none() {
            // What was due was the old process; one that ages has its replacement ordered.
            entry.due = None;
        }
        self.begin_life(slot.index, handle, now);
        self.check();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::players::{LONG, Model, bounds, warm};
    use super::super::{Bounds, Removal, State};

    #[test]
    fn only_a_live_waiter_gets_a_session_that_was_not_reset() {
        let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
        let hand_over = |model: &mut Model| {
            let mut handed_over = false;
            model.with_lease(0, |state, lease, now, fx| match state.hand_over(lease, now, fx) {
                Some(lease) => state.release(lease, now, fx),
                None => handed_over = true,
            });
            handed_over
        };
        model.acquire(None);
        assert!(!hand_over(&mut model), "nobody waits");
        assert_eq!(model.state.counts().idle, 1);

        model.acquire(None);
        model.acquire(Some(Duration::from_millis(1)));
        model.now = model.now + Duration::from_millis(2);
        assert!(!hand_over(&mut model), "the waiter's time is over");

        model.acquire(None);
        model.acquire(LONG);
        assert!(hand_over(&mut model));
        model.collect();
        assert_eq!((model.leases.len(), model.state.counts().busy), (1, 1));
    }

    #[test]
    fn a_spent_session_leaves_instead_of_being_handed_over() {
        let mut model = warm(Bounds { max_sessions: 1, budget: Some(1), ..bounds() }, 1);
        model.acquire(None);
        model.acquire(LONG);
        model.with_lease(0, |state, lease, now, fx| assert!(state.hand_over(lease, now, fx).is_none()));
        assert_eq!((model.leases.len(), model.departing.len()), (0, 1));
        assert_eq!(model.state.wanted(), 0, "there is no room yet");
    }

    #[test]
    fn a_new_process_has_a_life_of_its_own() {
        let mut model = warm(Bounds { budget: Some(5), ..bounds() }, 1);
        model.acquire(None);
        let slot = model.leases[0].slot;
        model.with(|state, now, fx| {
            assert_eq!(state.outdate(now, fx), 1);
            let handle = state.handle(slot).expect("a busy slot");
            assert!(state.renewed(slot, handle, now));
            assert_eq!(state.outdated(), 0, "what was to be replaced has been");
        });
        model.with(|state, now, _| {
            let handle = state.handle(slot).expect("a busy slot");
            assert!(state.restored(slot, handle, now));
        });
        assert_eq!(model.state.counters().sessions_restarted, 1, "its user asked for the second process");
        model.leases[0].session.executions = 0;
        model.with_lease(0, State::release);
        assert_eq!(model.state.counts().idle, 1);

        model.acquire(None);
        let slot = model.leases[0].slot;
        let mut renewed = true;
        model.with(|state, now, fx| {
            let handle = state.handle(slot).expect("a busy slot");
            state.close(fx);
            renewed = state.renewed(slot, handle, now);
        });
        assert!(!renewed, "nobody watches over a process of a closed pool");
        model.with_lease(0, |state, lease, now, fx| state.discard(lease, Removal::Dead, false, now, fx));
    }
}
