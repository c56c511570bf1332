//! The health pass: what time does to sessions. Examines in place: an acquire that comes between
//! two passes finds every idle session where it was.

use std::mem;
use std::time::Duration;

use super::{Effects, Place, Removal, Resource, SlotId, State};
use crate::clock::Moment;

/// An idle session is listened to after this time without use, and two passes are at least this
/// far apart.
pub(crate) const SETTLE: Duration = Duration::from_millis(100);

/// What a health pass found.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Idle sessions that the monitor should listen to from now on.
    pub(crate) arm: Vec<SlotId>,
    /// When the next pass is due, unless one is asked for earlier.
    pub(crate) next: Moment,
    /// Sessions that it sent away.
    pub(crate) removed: usize,
}

impl<S: Resource, W> State<S, W> {
    /// Asks for a health pass.
    #[inline]
    pub(super) fn request_health(&mut self, fx: &mut Effects<S, W>) {
        self.counters.health_check_triggers += 1;
        if !self.health_requested {
            self.health_requested = true;
            fx.health = true;
        }
    }

    /// Whether a health pass was asked for since the last one.
    pub(crate) fn health_requested(&self) -> bool {
        self.health_requested
    }

    /// One health pass: the dead, the overdue, the too old and the too long idle leave.
    pub(crate) fn health_pass(&mut self, now: Moment, fx: &mut Effects<S, W>) -> Pass {
        self.health_requested = false;
        self.counters.health_check_runs += 1;
        let mut pass = Pass { arm: Vec::new(), next: now + self.bounds.health_interval, removed: 0 };
        self.examine_idle(now, &mut pass, fx);
        self.examine_others(now, &mut pass, fx);
        self.counters.sessions_removed_by_health += pass.removed as u64;
        self.evaluate(now, fx);
        self.check();
        pass
    }

    fn examine_idle(&mut self, now: Moment, pass: &mut Pass, fx: &mut Effects<S, W>) {
        let mut recycled = false;
        let mut kept = Vec::with_capacity(self.idle.len());
        let mut left = self.idle.len();
        // From the bottom: those that were idle longest leave first.
        for index in mem::take(&mut self.idle) {
            let slot = &mut self.slots[index as usize];
            let since = slot.since.unwrap_or(now);
            let Place::Idle(session) = &slot.place else {
                unreachable!("invariant 2: the idle stack holds idle slots")
            };
            let timeout = since + self.bounds.session_timeout;
            let reason = if !session.is_alive() {
                Some(Removal::Dead)
            } else if now >= slot.expires && !recycled {
                // One in a pass, so that those that were born together do not leave together.
                recycled = true;
                Some(Removal::MaxAge)
            } else if left > self.bounds.min_idle && now >= timeout {
                Some(Removal::Idle)
            } else {
                None
            };
            let Some(reason) = reason else {
                if !slot.armed && now >= since + SETTLE {
                    slot.armed = true;
                    pass.arm.push(SlotId { index, generation: slot.generation });
                }
                let settle = if slot.armed { Moment::FAR_FUTURE } else { since + SETTLE };
                let timeout = if left > self.bounds.min_idle { timeout } else { Moment::FAR_FUTURE };
                pass.next = pass.next.min(settle).min(timeout).min(slot.expires.max(now + SETTLE));
                kept.push(index);
                continue;
            };
            let Place::Idle(session) = mem::replace(&mut slot.place, Place::Busy) else { continue };
            self.busy += 1;
            left -= 1;
            pass.removed += 1;
            self.depart(index, session, reason, self.bounds.restart_if_dead, fx);
        }
        self.idle = kept;
    }

    fn examine_others(&mut self, now: Moment, pass: &mut Pass, fx: &mut Effects<S, W>) {
        for index in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let slot = &mut self.slots[index as usize];
            let since = *slot.since.get_or_insert(now);
            let Place::Resetting(held) = &mut slot.place else { continue };
            let deadline = since + self.bounds.reset_timeout;
            if now < deadline {
                pass.next = pass.next.min(deadline);
            } else if let Some(session) = held.take() {
                pass.removed += 1;
                self.depart(index, session, Removal::ResetFailed, self.bounds.restart_if_dead, fx);
            } else {
                // The monitor has it in hand and gives it back in a moment.
                pass.next = pass.next.min(now + SETTLE);
            }
        }
    }
}
