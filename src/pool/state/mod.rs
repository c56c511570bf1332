//! The pool's whole state machine: who has which session, who waits, what is missing.
//!
//! Pure: no lock, thread, process or clock in here. One method per event; it takes `now` where
//! time matters, changes the state, and leaves in [`Effects`] what the caller must do after it has
//! unlocked (wake waiters, retire sessions, start some). So every interleaving of events is a
//! sequence of calls, which is what the model test in `tests.rs` plays.
//!
//! # Invariants, checked in debug builds after every event
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
//! 6. At most `max_starts` sessions are starting; only one while the breaker is not closed.
//! 7. Once closed, nobody waits, nothing is idle and no start is wanted.
//! 8. Aging sessions (those that leave when their replacements are there) lie at the bottom of the
//!    idle stack; there are at most `max_retirements` of them, leaving ones included.
//! 9. Who waits stands in the line of one tenant; a tenant's leases are the busy slots that name it,
//!    never more than its quota.

mod handover;
mod health;
mod holder;
mod memory;
mod operate;
mod queue;
mod removal;
mod retire;
#[cfg(test)]
mod retire_tests;
mod starts;
#[cfg(test)]
mod tenant_tests;
mod tenants;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Breaker, Roll};
use super::explain::Misses;
use super::metrics::Counters;
use super::quota::Quota;
use crate::clock::Moment;
use crate::error::Error;

pub(crate) use health::SETTLE;
pub(crate) use holder::{Claim, Nested, Who};
use queue::Waiter;
pub(crate) use queue::{Decision, Refusal, Ticket};
pub use removal::Removal;
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
    /// An idle session that was not heard of for this long is pinged.
    pub(crate) ping_interval: Option<Duration>,
    /// A lease this old is taken for a leak.
    pub(crate) leak_after: Option<Duration>,
    /// Bytes that one session may have, and all idle ones together.
    pub(crate) max_session_memory: Option<u64>,
    pub(crate) idle_memory_budget: Option<u64>,
}

/// One tenancy of a slot; a stale id fits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A session in the hands of its user.
#[derive(Debug)]
pub(crate) struct Lease<S> {
    pub(crate) slot: SlotId,
    pub(crate) session: S,
}

/// A session to be retired once the lock is released; its slot is free after
/// [`State::retired`].
#[derive(Debug)]
pub(crate) struct Departure<S> {
    pub(crate) slot: SlotId,
    pub(crate) session: S,
    pub(crate) reason: Removal,
    /// Whether a new session was ordered for it.
    pub(crate) replaced: bool,
}

/// What the caller must do after unlocking.
#[derive(Debug)]
#[must_use = "somebody sleeps until these are carried out"]
pub(crate) struct Effects<S, W> {
    /// Waiters whose decision is made.
    pub(crate) wake: Vec<W>,
    /// Sessions that leave.
    pub(crate) retire: Vec<Departure<S>>,
    /// Sessions that came back after their slots were taken from their users.
    pub(crate) orphans: Vec<S>,
    /// More starts are wanted than were announced before.
    pub(crate) starts: bool,
    /// A health pass is asked for.
    pub(crate) health: bool,
    /// Somebody waits for counts to change.
    pub(crate) observed: bool,
}

/// Answer to [`State::take`].
#[derive(Debug)]
pub(crate) enum Take<S> {
    Hit(Lease<S>),
    /// Nothing is idle, or the tenant has as much as it may.
    Empty,
    Closed,
}

/// A session that the monitor takes in hand.
#[derive(Debug)]
pub(crate) enum Look<S> {
    /// It was idle.
    Idle(S),
    /// It owes the answer to a reset.
    Reset(S),
    /// Nothing to look at: somebody uses it, or it is gone.
    Nothing,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, set and cleared one by one")]
struct Slot<S: Resource> {
    generation: u32,
    place: Place<S>,
    handle: Option<S::Handle>,
    /// Who has it: while it is busy, unless it is about to leave.
    holder: Option<Claim>,
    /// When it came to its place; unknown while the monitor has it in hand.
    since: Option<Moment>,
    /// Since when it was idle when it was taken in hand to be looked at: that is no use.
    rested: Option<Moment>,
    ready_at: Moment,
    leases: u64,
    executions: u64,
    /// Executions after which it is recycled, and the moment.
    budget: u64,
    expires: Moment,
    /// The monitor saw an event while the slot was busy or starting, so nothing is armed any more.
    signalled: bool,
    /// The monitor saw the process end while the slot was starting.
    died: bool,
    /// The monitor listens to this idle session.
    armed: bool,
    /// Why it should leave when its turn comes, apart from its budget and its age.
    due: Option<Removal>,
    /// Why it leaves once its replacement is there.
    aging: Option<Removal>,
    /// When it last gave a sign of life, as far as a reset, a release or a ping shows.
    heard: Moment,
    /// What it held when it was last weighed, and how many leases it had served by then.
    memory: Option<Weight>,
    /// Its lease was reported as a leak.
    reported: bool,
}

/// A session's memory at some moment.
#[derive(Clone, Copy, Debug)]
struct Weight {
    bytes: u64,
    at: Moment,
    leases: u64,
}

#[derive(Debug)]
enum Place<S> {
    Free,
    Starting,
    Idle(S),
    Busy,
    /// `None` while the monitor has it in hand.
    Resetting(Option<S>),
    Retiring,
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
    /// The last one released is the first one taken: its memory is warm, and the others can age.
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
    /// Replacements for sessions that were recycled or died, not yet started.
    owed: usize,
    /// How many starts the spawner was told of.
    announced: usize,
    breaker: Breaker,
    batch: Batch,
    last_start_error: Option<Arc<Error>>,
    /// Sessions that the user's check refused since one came back from a user.
    refusals: u32,

    health_requested: bool,
    roll: Roll,
    counters: Counters,
    misses: Misses,
}

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
            tenants: Tenants::default(),
            primed: false,
            owed: 0,
            announced: 0,
            breaker: Breaker::new(seed),
            batch: Batch::default(),
            last_start_error: None,
            refusals: 0,
            health_requested: false,
            roll: Roll::new(seed.rotate_left(17)),
            counters: Counters::default(),
            misses: Misses::default(),
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
    #[inline]
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

    /// The top of the idle stack that is alive, now busy. Dead ones on the way leave.
    #[inline]
    fn pop_idle(&mut self, now: Moment, fx: &mut Effects<S, W>) -> Option<Lease<S>> {
        while let Some(index) = self.idle.pop() {
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
                return Some(Lease { slot: SlotId { index, generation: slot.generation }, session });
            }
            self.depart(index, session, Removal::Dead, self.bounds.restart_if_dead, fx);
        }
        None
    }

    /// A user gives a session back that may be used again as it is.
    #[inline]
    pub(crate) fn release(&mut self, lease: Lease<S>, now: Moment, fx: &mut Effects<S, W>) {
        let Some(Lease { slot, session }) = self.current(lease, fx) else { return };
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
        self.depart(lease.slot.index, lease.session, reason, replace, fx);
        self.request_health(fx);
        self.evaluate(now, fx);
        self.check();
    }

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
        self.depart(slot.index, session, Removal::Dead, self.bounds.restart_if_dead, fx);
        self.request_health(fx);
        self.evaluate(now, fx);
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
        self.refusals = 0;
        let entry = &mut self.slots[slot.index as usize];
        debug_assert_eq!(entry.generation, slot.generation, "a lease fits its slot");
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
        if slot.generation == lease.slot.generation && !matches!(slot.place, Place::Retiring) {
            return Some(lease);
        }
        fx.orphans.push(lease.session);
        None
    }

    /// Gives a usable session that is in nobody's count to the first live waiter, or to idle.
    fn offer(&mut self, index: u32, session: S, now: Moment, fx: &mut Effects<S, W>) {
        let slot = &mut self.slots[index as usize];
        slot.signalled = false;
        let idle_since = slot.rested.take().unwrap_or(now);
        if let Some(ticket) = self.first_live_waiter(now) {
            let slot = &mut self.slots[index as usize];
            slot.place = Place::Busy;
            slot.since = Some(now);
            slot.leases += 1;
            self.busy += 1;
            self.counters.busy_max = self.counters.busy_max.max(self.busy);
            let slot = SlotId { index, generation: slot.generation };
            self.grant(ticket, Lease { slot, session }, fx);
        } else {
            let slot = &mut self.slots[index as usize];
            slot.place = Place::Idle(session);
            slot.since = Some(idle_since);
            slot.armed = false;
            if slot.aging.is_some() {
                self.aging_idle += 1;
                self.idle.insert(0, index);
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
        let slot = SlotId { index, generation: self.slots[index as usize].generation };
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
        slot.generation = slot.generation.wrapping_add(1) & GENERATIONS;
        self.free.push(index);
        self.ceiling = self.total().max(self.bounds.max_sessions);
    }

    fn entry(&mut self, slot: SlotId) -> Option<&mut Slot<S>> {
        self.slots.get_mut(slot.index as usize).filter(|entry| entry.generation == slot.generation)
    }

    fn total(&self) -> usize {
        self.idle.len() + self.busy + self.resetting + self.starting + self.retiring
    }

    #[inline]
    fn check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }
}

/// Generations have 31 bits, so that a slot id and one more bit fit an epoll token.
const GENERATIONS: u32 = u32::MAX >> 1;

impl<S, W> Effects<S, W> {
    pub(crate) fn none() -> Effects<S, W> {
        Effects {
            wake: Vec::new(),
            retire: Vec::new(),
            orphans: Vec::new(),
            starts: false,
            health: false,
            observed: false,
        }
    }

    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        !self.starts
            && !self.health
            && self.wake.is_empty()
            && self.retire.is_empty()
            && self.orphans.is_empty()
    }
}
