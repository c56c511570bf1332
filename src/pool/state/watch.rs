//! What the monitor finds out about sessions that nobody has in hand.

use std::mem;

use super::{Effects, Lease, Look, Place, Removal, Resource, SlotId, State};
use crate::clock::Moment;

impl<S: Resource, W> State<S, W> {
    /// The monitor takes a session in hand that showed a sign of life.
    pub(crate) fn look(&mut self, slot: SlotId) -> Look<S> {
        let Some(entry) = self.entry(slot) else { return Look::Nothing };
        match mem::replace(&mut entry.place, Place::Free) {
            Place::Idle(session) => {
                entry.place = Place::Resetting(None);
                entry.rested = entry.since.take();
                self.resetting += 1;
                self.unlist(slot.index);
                self.check();
                Look::Idle(session)
            }
            Place::Resetting(Some(session)) => {
                entry.place = Place::Resetting(None);
                Look::Reset(session)
            }
            other => {
                entry.place = other;
                entry.signalled = true;
                Look::Nothing
            }
        }
    }

    /// The monitor gives a session back whose answer is not complete yet. Returns it to the
    /// monitor's hand (to be discarded) if the pool has been closed meanwhile.
    pub(crate) fn put_back(&mut self, lease: Lease<S>, fx: &mut Effects<S, W>) {
        if self.is_open() && lease.session.is_alive() {
            let slot = &mut self.slots[lease.slot.index as usize];
            slot.place = Place::Resetting(Some(lease.session));
        } else {
            let reason = if self.is_open() { Removal::Dead } else { Removal::Shutdown };
            self.depart(lease.slot.index, lease.session, reason, self.bounds.restart_if_dead, fx);
            self.announce(fx);
        }
        self.check();
    }

    /// The monitor gives a session back that is fit for the next user.
    pub(crate) fn clean(&mut self, lease: Lease<S>, now: Moment, fx: &mut Effects<S, W>) {
        if let Some(reason) = self.unusable(lease.slot, &lease.session, now) {
            self.note_dud(lease.slot.index, reason, now, fx);
            self.depart(lease.slot.index, lease.session, reason, self.bounds.restart_if_dead, fx);
        } else {
            self.resetting -= 1;
            self.offer(lease.slot.index, lease.session, now, fx);
        }
        self.evaluate(now, fx);
        self.check();
    }

    /// The process of a slot ended. Whoever has the session in hand finds out by itself.
    pub(crate) fn died(&mut self, slot: SlotId, now: Moment, fx: &mut Effects<S, W>) {
        let Some(entry) = self.entry(slot) else { return };
        match mem::replace(&mut entry.place, Place::Free) {
            Place::Idle(session) => {
                entry.place = Place::Busy;
                self.busy += 1;
                self.unlist(slot.index);
                self.counters.sessions_removed_by_health += 1;
                self.lost(slot, session, now, fx);
            }
            Place::Resetting(Some(session)) => {
                entry.place = Place::Resetting(None);
                self.counters.sessions_removed_by_health += 1;
                self.lost(slot, session, now, fx);
            }
            other => {
                entry.place = other;
                entry.died = true;
            }
        }
        self.check();
    }

    fn lost(&mut self, slot: SlotId, session: S, now: Moment, fx: &mut Effects<S, W>) {
        self.note_dud(slot.index, Removal::Dead, now, fx);
        self.depart(slot.index, session, Removal::Dead, self.bounds.restart_if_dead, fx);
        self.request_health(fx);
        self.evaluate(now, fx);
    }
}
