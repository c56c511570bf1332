//! The pool's whole state machine: who has which session, who waits, what is missing.
//!
//! Pure: no lock, thread, process or clock in here. One method per event; it takes `now` where
//! time matters, changes the state, and leaves in [`Effects`] what the caller must do after it has
//! unlocked (wake waiters, retire sessions, start some). So every interleaving of events is a
//! sequence of calls, which is what the model test in `tests.rs` plays.
//!
//! # Invariants, checked in debug builds after every event (of a large pool, after every so many)
//! 1. `idle + busy + resetting + starting + retiring == total <= max_sessions`; each number is
//!    that of the slots in this place. (After `max_sessions` was lowered the total may only fall
//!    until it fits.)
//! 2. The idle stack holds each idle slot once and nothing else; the free list likewise.
//! 3. A session is in exactly one hand: its slot (idle, resetting), a grant not yet collected, its
//!    holder, the monitor, or whoever retires it. A lease is a value, so it cannot be released twice.
//! 4. A ticket is waiting or decided, never both; a decision is made once.
//! 5. No live waiter that its tenant's quota would let have a session stands beside an idle one, and
//!    none waits for something that cannot come: some session is alive or starting, or a start is
//!    wanted that nothing forbids for good.
//! 6. At most `max_starts` sessions are starting; only one begins while the breaker is not closed.
//! 7. Once closed, nobody waits, nothing is idle and no start is wanted.
//! 8. Aging sessions (those that leave when their replacements are there) lie at the bottom of the
//!    idle stack; there are at most `max_retirements` of them, leaving ones included.
//! 9. Who waits stands in the line of one tenant; a tenant's leases are the busy slots that name it,
//!    never more than its quota.

mod check;
mod duds;
mod effects;
mod handover;
mod health;
mod holder;
mod memory;
#[cfg(test)]
mod model_tests;
mod operate;
#[cfg(test)]
mod players;
mod queue;
mod removal;
mod retire;
#[cfg(test)]
mod retire_tests;
mod slot;
mod starts;
#[cfg(test)]
mod tenant_tests;
mod tenants;
#[cfg(test)]
mod tests;
mod view;
mod watch;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Breaker, Roll};
use super::config::IdleOrder;
use super::explain::Misses;
use super::metrics::Counters;
use super::quota::Quota;
use crate::clock::Moment;
use crate::error::Error;

use duds::Duds;
pub(crate) use effects::{Departure, Effects, Lease, Look, Opened, Take};
pub(crate) use health::SETTLE;
pub(crate) use holder::{Claim, Nested, Who};
#[cfg(test)]
pub(crate) use players::bounds;
use queue::Waiter;
pub(crate) use queue::{Decision, Refusal, Ticket};
pub use removal::Removal;
pub(crate) use slot::SlotId;
use slot::{GENERATIONS, Place, Slot, Weight};
pub(crate) use tenants::TenantRow;
use tenants::Tenants;
pub(crate) use view::Row;

/// What the pool hands out.
pub(crate) trait Resource {
    /// What the pool keeps while somebody else holds the session.
    type Handle: Clone + std::fmt::Debug;

    /// Whether it can still be used. Called under the pool's lock: a flag, not a system call.
    fn is_alive(&self) -> bool;

    /// Executions begun so far.
    fn executions(&self) -> u64;
}

/// The numbers that the state machine obeys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) min_idle: usize,
    pub(crate) max_sessions: usize,
    pub(crate) max_starts: usize,
    pub(crate) max_waiters: usize,
    pub(crate) session_timeout: Duration,
    pub(crate) reset_timeout: Duration,
    pub(crate) health_interval: Duration,
    /// Executions after which a session is recycled.
    pub(crate) budget: Option<u64>,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) restart_if_dead: bool,
    /// Sessions that age or leave of age at the same time.
    pub(crate) max_retirements: usize,
    pub(crate) idle_order: IdleOrder,
    /// An idle session that was not heard of for this long is pinged.
    pub(crate) ping_interval: Option<Duration>,
    /// A lease this old is taken for a leak.
    pub(crate) leak_after: Option<Duration>,
    /// Bytes that one session may have, and all idle ones together.
    pub(crate) max_session_memory: Option<u64>,
    pub(crate) idle_memory_budget: Option<u64>,
}

/// Whether sessions are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Not now: who asks waits.
    Paused,
    /// Never again.
    Closed,
}

/// What came of the starts of the current batch so far.
#[derive(Debug, Default)]
struct Batch {
    failed: bool,
    succeeded: bool,
}

/// The state of one pool: sessions `S`, wake handles of waiters `W`.
#[derive(Debug)]
pub(crate) struct State<S: Resource, W> {
    bounds: Bounds,
    phase: Phase,
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    /// By default the last one released is the first one taken: its memory is warm, and the others can age.
    /// Those that leave anyway lie at the bottom.
    idle: Vec<u32>,
    /// How many of the idle are aging.
    aging_idle: usize,
    /// Slots that are marked as aging, leaving ones included.
    aging: usize,
    /// More sessions are due than may age at the same time.
    more_due: bool,
    /// The total before `max_sessions` was lowered, falling with it.
    ceiling: usize,
    busy: usize,
    resetting: usize,
    starting: usize,
    retiring: usize,

    waiters: BTreeMap<Ticket, Waiter<W>>,
    decided: BTreeMap<Ticket, Decision<S>>,
    next_ticket: u64,
    /// Of the waiters: the jobs.
    queued_jobs: usize,
    tenants: Tenants,

    /// Whether the watermark counts: from the first demand on, or from the start.
    primed: bool,
    /// Idle sessions that are expected to be needed soon.
    target_idle: usize,
    /// Replacements for sessions that were recycled or died, not yet started.
    owed: usize,
    /// How many starts the spawner was told of.
    announced: usize,
    breaker: Breaker,
    batch: Batch,
    last_start_error: Option<Arc<Error>>,
    /// Sessions that were no good, since one came back from a user.
    duds: Duds,

    health_requested: bool,
    roll: Roll,
    counters: Counters,
    misses: Misses,
    /// What events since the last check of the invariants have earned for the next one.
    saved_up: Cell<usize>,
}

#[allow(clippy::inline_always, reason = "measured: acquire and release take half as long again without it")]
impl<S: Resource, W> State<S, W> {
    /// An open pool without sessions. `seed` feeds the jitter.
    pub(crate) fn new(bounds: Bounds, seed: u64) -> State<S, W> {
        State {
            bounds,
            phase: Phase::Open,
            slots: Vec::new(),
            free: Vec::new(),
            idle: Vec::new(),
            aging_idle: 0,
            aging: 0,
            more_due: false,
            ceiling: bounds.max_sessions,
            busy: 0,
            resetting: 0,
            starting: 0,
            retiring: 0,
            waiters: BTreeMap::new(),
            decided: BTreeMap::new(),
            next_ticket: 0,
            queued_jobs: 0,
            tenants: Tenants::new(Quota::new(), None),
            primed: false,
            target_idle: 0,
            owed: 0,
            announced: 0,
            breaker: Breaker::new(seed),
            batch: Batch::default(),
            last_start_error: None,
            duds: Duds::default(),
            health_requested: false,
            roll: Roll::new(seed.rotate_left(17)),
            counters: Counters::default(),
            misses: Misses::default(),
            saved_up: Cell::new(0),
        }
    }

    /// What tenants may have: those who are named here, and all others.
    pub(crate) fn with_quotas(
        mut self,
        default: Quota,
        of: impl IntoIterator<Item = (Arc<str>, Quota)>,
    ) -> State<S, W> {
        self.tenants = Tenants::new(default, of);
        self
    }

    /// Somebody asks for a session: the fast path, without allocation.
    #[inline(always)]
    pub(crate) fn take(&mut self, claim: &mut Claim, now: Moment, fx: &mut Effects<S, W>) -> Take<S> {
        if self.phase != Phase::Open {
            return self.take_from_closed();
        }
        self.counters.acquisition_attempts += 1;
        if claim.who.is_some() && self.tenants.lease_limit(claim.tenant()).is_some() {
            return Take::Empty;
        }
        // Nobody is overtaken: while something is idle, nobody who could have it stands in the queue
        // (invariant 5).
        let taken = self.pop_idle(now, fx);
        if let Some(lease) = &taken {
            self.lend(lease.slot.index, claim);
            self.counters.acquisition_success += 1;
            self.counters.pool_hits += 1;
        }
        self.announce(fx);
        self.check();
        taken.map_or(Take::Empty, Take::Hit)
    }

    /// The pool is paused or closed.
    #[cold]
    fn take_from_closed(&mut self) -> Take<S> {
        if self.phase == Phase::Closed {
            return Take::Closed;
        }
        self.counters.acquisition_attempts += 1;
        Take::Empty
    }

    /// The idle session that is lent next; those that leave anyway come last.
    #[inline]
    fn next_idle(&mut self) -> Option<u32> {
        match self.bounds.idle_order {
            IdleOrder::Lifo => self.idle.pop(),
            IdleOrder::Fifo => self.oldest_idle(),
        }
    }

    #[cold]
    fn oldest_idle(&mut self) -> Option<u32> {
        let fresh = self.aging_idle < self.idle.len();
        if fresh { Some(self.idle.remove(self.aging_idle)) } else { self.idle.pop() }
    }

    /// The next idle session that is alive, now busy. Dead ones on the way leave.
    #[inline(always)]
    fn pop_idle(&mut self, now: Moment, fx: &mut Effects<S, W>) -> Option<Lease<S>> {
        while let Some(index) = self.next_idle() {
            let slot = &mut self.slots[index as usize];
            let Place::Idle(session) = mem::replace(&mut slot.place, Place::Busy) else {
                unreachable!("invariant 2: the idle stack holds idle slots")
            };
            self.aging_idle -= usize::from(slot.aging.is_some());
            self.busy += 1;
            if session.is_alive() {
                slot.since = Some(now);
                slot.signalled = false;
                slot.leases += 1;
                self.counters.busy_max = self.counters.busy_max.max(self.busy);
                return Some(Lease { slot: slot.id, session });
            }
            self.note_dud(index, Removal::Dead, now, fx);
            self.depart(index, session, Removal::Dead, self.bounds.restart_if_dead, fx);
        }
        None
    }

    /// A user gives a session back that may be used again as it is.
    #[inline(always)]
    pub(crate) fn release(&mut self, lease: Lease<S>, now: Moment, fx: &mut Effects<S, W>) {
        let Some(Lease { slot, session }) = self.current(lease, fx) else { return };
        self.duds.forget();
        if let Some(reason) = self.unusable(slot, &session, now) {
            self.depart(slot.index, session, reason, self.bounds.restart_if_dead, fx);
            self.evaluate(now, fx);
        } else {
            self.end_lease(slot.index);
            self.busy -= 1;
            self.offer(slot.index, session, now, fx);
            if !self.waiters.is_empty() || self.announced != 0 || self.aging != 0 {
                self.evaluate(now, fx);
            }
        }
        self.request_health(fx);
        self.check();
    }

    /// A user gave a session back and its worker has been asked to reset. Returns whether the
    /// monitor must look at it at once, because an event came and went before this call.
    pub(crate) fn resetting(&mut self, lease: Lease<S>, now: Moment, fx: &mut Effects<S, W>) -> bool {
        let Some(Lease { slot, session }) = self.current(lease, fx) else { return false };
        let mut look = false;
        self.duds.forget();
        if let Some(reason) = self.unusable(slot, &session, now) {
            self.depart(slot.index, session, reason, self.bounds.restart_if_dead, fx);
        } else {
            self.end_lease(slot.index);
            self.busy -= 1;
            self.resetting += 1;
            let slot = &mut self.slots[slot.index as usize];
            look = mem::take(&mut slot.signalled);
            slot.place = Place::Resetting(Some(session));
            slot.since = Some(now);
        }
        self.request_health(fx);
        self.evaluate(now, fx);
        self.check();
        look
    }

    /// A session that a user or the monitor has in hand leaves; `replace` asks for another.
    pub(crate) fn discard(
        &mut self,
        lease: Lease<S>,
        reason: Removal,
        replace: bool,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) {
        let Some(lease) = self.current(lease, fx) else { return };
        let of_monitor = matches!(self.slots[lease.slot.index as usize].place, Place::Resetting(_));
        if of_monitor && reason != Removal::Tainted {
            self.counters.sessions_removed_by_health += 1;
        }
        if !of_monitor && reason != Removal::Unfit {
            self.duds.forget();
        }
        self.note_dud(lease.slot.index, reason, now, fx);
        self.depart(lease.slot.index, lease.session, reason, replace, fx);
        self.request_health(fx);
        self.evaluate(now, fx);
        self.check();
    }

    /// The process of a retired session is gone: its slot is free.
    pub(crate) fn retired(&mut self, slot: SlotId, now: Moment, fx: &mut Effects<S, W>) {
        debug_assert!(self.entry(slot).is_some_and(|entry| matches!(entry.place, Place::Retiring)));
        self.retiring -= 1;
        self.vacate(slot.index);
        if self.more_due {
            self.age_due(now);
        }
        self.evaluate(now, fx);
        self.check();
    }

    /// Why a session that comes back cannot be used again, if so. Notes what it has executed.
    fn unusable(&mut self, slot: SlotId, session: &S, now: Moment) -> Option<Removal> {
        let executions = session.executions();
        let entry = &mut self.slots[slot.index as usize];
        debug_assert_eq!(entry.id, slot, "a lease fits its slot");
        entry.executions = executions;
        entry.heard = now;
        if !session.is_alive() {
            Some(if self.is_open() { Removal::Dead } else { Removal::Shutdown })
        } else if executions >= entry.budget
            || now >= entry.expires
            || entry.aging.is_some()
            || entry.due.is_some()
            || self.ceiling > self.bounds.max_sessions
            || self.phase == Phase::Closed
        {
            self.leaves_instead(slot.index, now)
        } else {
            None
        }
    }

    /// The lease, unless its slot was taken from its user: the session is an orphan then.
    #[inline]
    fn current(&self, lease: Lease<S>, fx: &mut Effects<S, W>) -> Option<Lease<S>> {
        let slot = &self.slots[lease.slot.index as usize];
        if slot.id == lease.slot && !matches!(slot.place, Place::Retiring) {
            return Some(lease);
        }
        fx.orphans.push(lease.session);
        None
    }

    /// Gives a usable session that is in nobody's count to the first live waiter, or to idle.
    fn offer(&mut self, index: u32, session: S, now: Moment, fx: &mut Effects<S, W>) {
        let slot = &mut self.slots[index as usize];
        slot.signalled = false;
        let rested = slot.rested.take();
        if !self.waiters.is_empty()
            && let Some(ticket) = self.first_live_waiter(now)
        {
            let slot = &mut self.slots[index as usize];
            slot.place = Place::Busy;
            slot.since = Some(now);
            slot.leases += 1;
            self.busy += 1;
            self.counters.busy_max = self.counters.busy_max.max(self.busy);
            let slot = slot.id;
            self.grant(ticket, Lease { slot, session }, fx);
        } else {
            let slot = &mut self.slots[index as usize];
            slot.place = Place::Idle(session);
            slot.since = Some(rested.unwrap_or(now));
            slot.armed = false;
            if slot.aging.is_some() {
                self.aging_idle += 1;
                self.idle.insert(0, index);
            } else if let Some(since) = rested {
                let fresh = &self.idle[self.aging_idle..];
                let older = fresh.partition_point(|other| self.slots[*other as usize].since < Some(since));
                self.idle.insert(self.aging_idle + older, index);
            } else {
                self.idle.push(index);
            }
        }
    }

    /// Takes a slot off the idle stack; its place has changed already.
    fn unlist(&mut self, index: u32) {
        self.idle.retain(|other| *other != index);
        self.aging_idle -= usize::from(self.slots[index as usize].aging.is_some());
    }

    /// Marks a session that is busy or in the monitor's hand as leaving.
    fn depart(&mut self, index: u32, session: S, reason: Removal, replace: bool, fx: &mut Effects<S, W>) {
        self.end_lease(index);
        // What dies with the pool is not replaced.
        let reason = if self.is_open() { reason } else { Removal::Shutdown };
        let slot = &mut self.slots[index as usize];
        match mem::replace(&mut slot.place, Place::Retiring) {
            Place::Busy => self.busy -= 1,
            Place::Resetting(_) => self.resetting -= 1,
            _ => unreachable!("only a session in hand departs"),
        }
        slot.since = None;
        self.retiring += 1;
        self.counters.sessions_removed += 1;
        self.counters.removed_because[reason as usize] += 1;
        let replaced = reason.is_recycling() || replace && reason.is_defect();
        if replaced {
            self.counters.sessions_recycled += u64::from(reason.is_recycling());
            self.counters.sessions_restarted += u64::from(reason.is_defect());
            self.owe_for(index);
        }
        let slot = self.slots[index as usize].id;
        fx.retire.push(Departure { slot, session, reason, replaced });
    }

    /// Orders a replacement for a slot that is leaving, unless it had one ordered when it began to age.
    fn owe_for(&mut self, index: u32) {
        if self.slots[index as usize].aging.is_none() {
            self.owe();
        }
    }

    fn owe(&mut self) {
        self.owed = (self.owed + 1).min(self.bounds.max_sessions);
    }

    fn vacate(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.aging.take().is_some() {
            self.aging -= 1;
        }
        slot.place = Place::Free;
        slot.handle = None;
        slot.memory = None;
        slot.id.generation = slot.id.generation.wrapping_add(1) & GENERATIONS;
        self.free.push(index);
        self.ceiling = self.total().max(self.bounds.max_sessions);
    }

    fn entry(&mut self, slot: SlotId) -> Option<&mut Slot<S>> {
        self.slots.get_mut(slot.index as usize).filter(|entry| entry.id == slot)
    }

    fn total(&self) -> usize {
        self.idle.len() + self.busy + self.resetting + self.starting + self.retiring
    }
}
