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

    /// A session in the hands of its user has a new process. False if the slot is not the user's any
    /// more, or the pool is closed: nobody watches over that process.
    pub(crate) fn renewed(&mut self, slot: SlotId, handle: S::Handle, now: Moment) -> bool {
        let budget = self.roll_budget();
        let lifetime = self.bounds.max_lifetime.map(|lifetime| self.roll.shorten(lifetime));
        let is_open = self.is_open();
        let Some(entry) = self.entry(slot).filter(|entry| is_open && matches!(entry.place, Place::Busy))
        else {
            return false;
        };
        entry.handle = Some(handle);
        (entry.ready_at, entry.heard) = (now, now);
        entry.executions = 0;
        entry.budget = budget;
        entry.expires = lifetime.map_or(Moment::FAR_FUTURE, |lifetime| now + lifetime);
        (entry.signalled, entry.memory) = (false, None);
        self.counters.sessions_created += 1;
        self.counters.sessions_removed += 1;
        self.counters.sessions_restarted += 1;
        self.check();
        true
    }
}
