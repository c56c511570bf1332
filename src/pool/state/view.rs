//! What the state machine shows of itself.

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
}
