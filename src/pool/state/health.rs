//! The health pass: what time does to sessions. Examines in place: an acquire that comes between
//! two passes finds every idle session where it was.

use std::mem;
use std::time::Duration;

use super::{Claim, Effects, Lease, Place, Removal, Resource, SlotId, State};
use crate::clock::Moment;

/// An idle session is listened to after this time without use, and two passes are at least this
/// far apart.
pub(crate) const SETTLE: Duration = Duration::from_millis(100);

/// What a health pass found.
#[derive(Debug)]
pub(crate) struct Pass<H> {
    /// Idle sessions that the monitor should listen to from now on.
    pub(crate) arm: Vec<SlotId>,
    /// Idle sessions that should be asked whether they still answer.
    pub(crate) ping: Vec<SlotId>,
    /// Sessions whose memory should be looked at.
    pub(crate) weigh: Vec<(SlotId, H)>,
    /// Leases that are older than leases get.
    pub(crate) leaks: Vec<Leak<H>>,
    /// When the next pass is due, unless one is asked for earlier.
    pub(crate) next: Moment,
    /// Sessions that it sent away.
    pub(crate) removed: usize,
}

/// A lease that its user seems to have forgotten.
#[derive(Debug)]
pub(crate) struct Leak<H> {
    pub(crate) slot: SlotId,
    pub(crate) handle: H,
    pub(crate) held: Duration,
    /// Who holds it.
    pub(crate) claim: Option<Claim>,
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

    /// One health pass: the dead, the overdue and the too long idle leave, those that are due begin
    /// to age, and what has to be looked at without the lock is named.
    pub(crate) fn health_pass(&mut self, now: Moment, fx: &mut Effects<S, W>) -> Pass<S::Handle> {
        self.health_requested = false;
        self.counters.health_check_runs += 1;
        let (weigh, next_weighing) = self.to_weigh(now);
        let mut pass = Pass {
            arm: Vec::new(),
            ping: Vec::new(),
            weigh,
            leaks: Vec::new(),
            next: (now + self.bounds.health_interval).min(next_weighing),
            removed: 0,
        };
        self.examine_idle(now, &mut pass, fx);
        self.examine_others(now, &mut pass, fx);
        self.age_due(now);
        self.counters.sessions_removed_by_health += pass.removed as u64;
        self.evaluate(now, fx);
        self.check();
        pass
    }

    fn examine_idle(&mut self, now: Moment, pass: &mut Pass<S::Handle>, fx: &mut Effects<S, W>) {
        let mut kept = Vec::with_capacity(self.idle.len());
        // Aging ones do not count: they leave anyway.
        let mut fresh = self.idle.len() - mem::take(&mut self.aging_idle);
        // From the bottom: those that were idle longest leave first.
        let kept_idle = self.kept();
        for index in mem::take(&mut self.idle) {
            let slot = &mut self.slots[index as usize];
            let since = slot.since.unwrap_or(now);
            let Place::Idle(session) = &slot.place else {
                unreachable!("invariant 2: the idle stack holds idle slots")
            };
            let timeout = since + self.bounds.session_timeout;
            let aging = slot.aging.is_some();
            let reason = if !session.is_alive() {
                Some(Removal::Dead)
            } else if !aging && fresh > kept_idle && now >= timeout {
                Some(Removal::Idle)
            } else {
                None
            };
            let Some(reason) = reason else {
                let id = slot.id;
                if !slot.armed && now >= since + SETTLE {
                    slot.armed = true;
                    pass.arm.push(id);
                }
                if let Some(interval) = self.bounds.ping_interval {
                    if now >= slot.heard + interval {
                        pass.ping.push(id);
                    } else {
                        pass.next = pass.next.min(slot.heard + interval);
                    }
                }
                let settle = if slot.armed { Moment::FAR_FUTURE } else { since + SETTLE };
                let timeout = if fresh > kept_idle { timeout } else { Moment::FAR_FUTURE };
                let expires = if aging { Moment::FAR_FUTURE } else { slot.expires.max(now + SETTLE) };
                pass.next = pass.next.min(settle).min(timeout).min(expires);
                self.aging_idle += usize::from(aging);
                kept.push(index);
                continue;
            };
            let Place::Idle(session) = mem::replace(&mut slot.place, Place::Busy) else { continue };
            self.busy += 1;
            fresh -= usize::from(!aging);
            pass.removed += 1;
            self.note_dud(index, reason, now, fx);
            self.depart(index, session, reason, self.bounds.restart_if_dead, fx);
        }
        self.idle = kept;
    }

    fn examine_others(&mut self, now: Moment, pass: &mut Pass<S::Handle>, fx: &mut Effects<S, W>) {
        for index in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let slot = &mut self.slots[index as usize];
            let since = *slot.since.get_or_insert(now);
            match &mut slot.place {
                Place::Busy => {
                    let Some(limit) = self.bounds.leak_after.filter(|_| !slot.reported) else { continue };
                    if now < since + limit {
                        pass.next = pass.next.min(since + limit);
                    } else if let Some(handle) = slot.handle.clone() {
                        slot.reported = true;
                        self.counters.leaks += 1;
                        let id = slot.id;
                        let (held, claim) = (now.saturating_since(since), slot.holder.clone());
                        pass.leaks.push(Leak { slot: id, handle, held, claim });
                    }
                }
                Place::Resetting(held) => {
                    let deadline = since + self.bounds.reset_timeout;
                    if now < deadline {
                        pass.next = pass.next.min(deadline);
                    } else if let Some(session) = held.take() {
                        pass.removed += 1;
                        let replace = self.bounds.restart_if_dead;
                        self.depart(index, session, Removal::ResetFailed, replace, fx);
                    } else {
                        // Somebody has it in hand and gives it back in a moment.
                        pass.next = pass.next.min(now + SETTLE);
                    }
                }
                _ => {}
            }
        }
    }

    /// An idle session is taken in hand to be pinged; [`clean`](State::clean) or
    /// [`discard`](State::discard) ends that. `None` if somebody was faster.
    pub(crate) fn check_out(&mut self, slot: SlotId) -> Option<Lease<S>> {
        let entry = self.entry(slot)?;
        match mem::replace(&mut entry.place, Place::Resetting(None)) {
            Place::Idle(session) => {
                entry.rested = entry.since.take();
                self.resetting += 1;
                self.unlist(slot.index);
                self.check();
                Some(Lease { slot, session })
            }
            other => {
                entry.place = other;
                None
            }
        }
    }

    /// Takes a slot whose lease was reported from a user who does not give it back: its process is to be
    /// killed and reaped, then [`retired`](State::retired). The session itself is an orphan whenever it
    /// comes back.
    pub(crate) fn reclaim(&mut self, slot: SlotId, now: Moment, fx: &mut Effects<S, W>) -> Option<S::Handle> {
        let entry = self.entry(slot)?;
        // Between the pass that reported it and now its user may have returned it, and another one come.
        if !matches!(entry.place, Place::Busy) || !entry.reported {
            return None;
        }
        let handle = entry.handle.clone()?;
        entry.place = Place::Retiring;
        entry.since = None;
        self.busy -= 1;
        self.retiring += 1;
        self.counters.sessions_removed += 1;
        self.counters.removed_because[Removal::Reclaimed as usize] += 1;
        self.counters.leaks_reclaimed += 1;
        self.end_lease(slot.index);
        if self.is_open() && self.bounds.restart_if_dead {
            self.counters.sessions_restarted += 1;
            self.owe_for(slot.index);
        }
        self.evaluate(now, fx);
        self.check();
        Some(handle)
    }
}
