//! What sessions hold in memory, and who leaves when that is too much.

use std::time::Duration;

use super::{Effects, Place, Removal, Resource, SlotId, State, Weight};
use crate::clock::Moment;

/// A session that was used is weighed again no sooner than this, if there is a budget.
const WEIGH_AGAIN: Duration = Duration::from_secs(1);

impl<S: Resource, W> State<S, W> {
    /// The sessions whose memory should be looked at now, and when the next ones are due.
    pub(super) fn to_weigh(&self, now: Moment) -> (Vec<(SlotId, S::Handle)>, Moment) {
        let (mut due, mut next) = (Vec::new(), Moment::FAR_FUTURE);
        let budgeted = self.bounds.max_session_memory.is_some() || self.bounds.idle_memory_budget.is_some();
        for slot in &self.slots {
            if !matches!(slot.place, Place::Idle(_) | Place::Busy) {
                continue;
            }
            let Some(handle) = &slot.handle else { continue };
            let at = match slot.memory {
                None => now,
                Some(weight) if budgeted && weight.leases != slot.leases => weight.at + WEIGH_AGAIN,
                Some(weight) => weight.at + self.bounds.health_interval,
            };
            if now >= at {
                due.push((slot.id, handle.clone()));
            } else {
                next = next.min(at);
            }
        }
        (due, next)
    }

    /// A session holds this many bytes. One above its budget is due to leave, unless it served nobody
    /// yet: its successor would weigh the same, and be replaced in turn, without end.
    pub(crate) fn weighed(&mut self, slot: SlotId, bytes: u64, now: Moment) {
        let most = self.bounds.max_session_memory.unwrap_or(u64::MAX);
        let Some(entry) = self.entry(slot) else { return };
        // What a session holds in the middle of a lease says nothing about its end.
        let leases = entry.leases - u64::from(matches!(entry.place, Place::Busy));
        entry.memory = Some(Weight { bytes, at: now, leases });
        if bytes > most && leases > 0 && entry.due.is_none() {
            entry.due = Some(Removal::Memory);
        }
    }

    /// All are weighed: what is due begins to age; if the idle ones together hold more than they may,
    /// the largest are due too, one after the other. Those that served nobody yet stay while the
    /// watermark needs them: their successors would weigh the same.
    pub(crate) fn enforce_memory(&mut self, now: Moment, fx: &mut Effects<S, W>) {
        if let Some(budget) = self.bounds.idle_memory_budget {
            let weight = |index: &u32| self.slots[*index as usize].memory.map_or(0, |weight| weight.bytes);
            let mut candidates: Vec<(u64, u32)> =
                self.idle.iter().map(|index| (weight(index), *index)).collect();
            candidates.sort_unstable_by(|one, other| other.cmp(one));
            let mut held: u64 = candidates.iter().map(|(bytes, _)| bytes).sum();
            let spare = self.idle.len().saturating_sub(self.watermark());
            let mut unused = 0;
            for (bytes, index) in candidates {
                if held <= budget {
                    break;
                }
                let slot = &mut self.slots[index as usize];
                if slot.leases == 0 {
                    unused += 1;
                    if unused > spare {
                        continue;
                    }
                }
                held -= bytes;
                if slot.due.is_none() {
                    slot.due = Some(Removal::Memory);
                }
            }
        }
        self.age_due(now);
        self.evaluate(now, fx);
        self.check();
    }

    /// Bytes that all idle sessions together were seen to hold, and all sessions.
    pub(crate) fn memory_held(&self) -> (u64, u64) {
        let bytes = |slot: &super::Slot<S>| slot.memory.map_or(0, |weight| weight.bytes);
        let idle = self.idle.iter().map(|index| bytes(&self.slots[*index as usize])).sum();
        (idle, self.slots.iter().map(bytes).sum())
    }
}
