//! What the state machine shows of itself, and the check of its invariants.

use std::mem;
use std::time::Duration;

use super::{Claim, Phase, Place, Resource, Slot, SlotId, State, TenantRow};
use crate::clock::Moment;
use crate::pool::breaker::BreakerState;
use crate::pool::explain::{MissReason, Misses};
use crate::pool::metrics::{Counters, PlaceName, PoolCounts};

/// One row of [`State::rows`].
#[derive(Debug)]
pub(crate) struct Row<H> {
    pub(crate) handle: H,
    pub(crate) place: PlaceName,
    pub(crate) since: Duration,
    pub(crate) age: Duration,
    pub(crate) leases: u64,
    pub(crate) executions: u64,
    pub(crate) holder: Option<Claim>,
}

impl<S: Resource, W> State<S, W> {
    /// Sessions that work now or will be back: those that could serve a waiter one day.
    pub(crate) fn alive(&self) -> usize {
        self.idle.len() + self.busy + self.resetting
    }

    /// Whether it is not closed; it may be paused.
    pub(crate) fn is_open(&self) -> bool {
        self.phase != Phase::Closed
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        PoolCounts {
            idle: self.idle.len(),
            busy: self.busy,
            resetting: self.resetting,
            starting: self.starting,
            retiring: self.retiring,
            total: self.total(),
            waiters: self.callers(),
            jobs: self.queued_jobs,
        }
    }

    /// What each named tenant has and may have, by name.
    pub(crate) fn tenant_rows(&self) -> Vec<TenantRow> {
        self.tenants.rows()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How often callers found nothing idle and why, and the last of them.
    pub(crate) fn misses(&self) -> &Misses {
        &self.misses
    }

    /// Why a caller that asks now finds nothing idle.
    pub(super) fn miss_reason(&self, claim: &Claim, now: Moment) -> MissReason {
        let waiters = self.tenants.servable();
        if self.phase == Phase::Paused {
            MissReason::Paused
        } else if self.tenants.lease_limit(claim.tenant()).is_some() {
            MissReason::Quota
        } else if self.resetting > waiters {
            MissReason::Resetting
        } else if self.resetting + self.starting > waiters {
            MissReason::Starting
        } else if self.total() >= self.bounds.max_sessions {
            MissReason::AtMaxSessions
        } else if self.breaker.state(now) == BreakerState::Open {
            MissReason::BreakerOpen
        } else {
            MissReason::BurstBeyondWatermark
        }
    }

    /// The session in a slot, if nobody has it in hand: for the monitor to listen to.
    pub(crate) fn in_place(&self, slot: SlotId) -> Option<&S> {
        let entry = self.slots.get(slot.index as usize).filter(|entry| entry.id == slot)?;
        match &entry.place {
            Place::Idle(session) | Place::Resetting(Some(session)) => Some(session),
            _ => None,
        }
    }

    pub(crate) fn handle(&self, slot: SlotId) -> Option<S::Handle> {
        let entry = self.slots.get(slot.index as usize).filter(|entry| entry.id == slot)?;
        entry.handle.clone()
    }

    /// The handles of all sessions that are ready or leaving.
    pub(crate) fn handles(&self) -> Vec<S::Handle> {
        self.slots.iter().filter_map(|slot| slot.handle.clone()).collect()
    }

    /// The handles of the sessions that users hold.
    pub(crate) fn busy_handles(&self) -> Vec<S::Handle> {
        let busy = self.slots.iter().filter(|slot| matches!(slot.place, Place::Busy));
        busy.filter_map(|slot| slot.handle.clone()).collect()
    }

    /// All sessions that have become ready, by slot.
    pub(crate) fn rows(&self, now: Moment) -> Vec<Row<S::Handle>> {
        let row = |slot: &Slot<S>| -> Option<Row<S::Handle>> {
            let place = match slot.place {
                Place::Free | Place::Starting => return None,
                Place::Idle(_) => PlaceName::Idle,
                Place::Busy => PlaceName::Busy,
                Place::Resetting(_) => PlaceName::Resetting,
                Place::Retiring => PlaceName::Retiring,
            };
            Some(Row {
                handle: slot.handle.clone()?,
                place,
                since: slot.since.map_or(Duration::ZERO, |since| now.saturating_since(since)),
                age: now.saturating_since(slot.ready_at),
                leases: slot.leases,
                executions: slot.executions,
                holder: slot.holder.clone(),
            })
        };
        self.slots.iter().filter_map(row).collect()
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
