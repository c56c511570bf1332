//! What is missing, and the starts that bring it.

use std::sync::Arc;
use std::time::Duration;

use super::{Batch, Effects, GENERATIONS, Phase, Place, Refusal, Removal, Resource, Slot, SlotId, State};
use crate::clock::Moment;
use crate::error::Error;
use crate::pool::breaker::BreakerState;

impl<S: Resource, W> State<S, W> {
    /// How many sessions should be started now, as far as there is room.
    ///
    /// What is on hand (idle) or on the way (starting, resetting) serves the waiters first and the
    /// watermark then; what is missing is started. A waiter whose tenant has as much as it may is
    /// not served by a start. Decided on counts of live things alone.
    pub(super) fn wanted(&self) -> usize {
        if !self.is_open() {
            return 0;
        }
        let have = self.idle.len() - self.aging_idle + self.starting + self.resetting;
        let missing = (self.tenants.servable() + self.watermark()).saturating_sub(have).max(self.owed);
        missing.min(self.bounds.max_sessions.saturating_sub(self.total()))
    }

    /// How many idle sessions should be ready.
    pub(super) fn watermark(&self) -> usize {
        if self.primed { self.kept() } else { 0 }
    }

    /// How many idle sessions no idle time-out takes away.
    pub(super) fn kept(&self) -> usize {
        self.bounds.min_idle.max(self.target_idle.min(self.bounds.max_sessions))
    }

    /// So many idle sessions are expected to be needed soon; fewer than `min_idle` changes nothing.
    pub(crate) fn set_target_idle(&mut self, target: usize, fx: &mut Effects<S, W>) {
        self.target_idle = target;
        self.announce(fx);
        self.check();
    }

    /// Tells the spawner when more is wanted than it knows of.
    #[inline]
    pub(super) fn announce(&mut self, fx: &mut Effects<S, W>) {
        let wanted = self.wanted();
        if wanted > self.announced {
            if self.announced == 0 {
                self.counters.warmup_triggers += 1;
            }
            fx.starts = true;
        }
        self.announced = wanted;
    }

    /// From now on the watermark counts.
    pub(crate) fn prime(&mut self, fx: &mut Effects<S, W>) {
        self.primed = true;
        self.announce(fx);
        self.check();
    }

    /// A spawner is ready to start a session: reserves a slot, if one is wanted and may begin.
    pub(crate) fn begin_start(&mut self, now: Moment) -> Option<SlotId> {
        if self.wanted() == 0 || self.starting >= self.bounds.max_starts {
            return None;
        }
        let probing = match self.breaker.state(now) {
            BreakerState::Closed => self.batch.failed,
            BreakerState::Open => return None,
            BreakerState::HalfOpen => true,
        };
        // After a failure the batch takes no more: its end decides whether to back off.
        if probing && self.starting > 0 {
            return None;
        }
        if self.starting == 0 {
            self.batch = Batch::default();
            self.counters.warmup_loop_iterations += 1;
        }
        self.starting += 1;
        self.owed = self.owed.saturating_sub(1);
        self.announced = self.wanted();
        let index = self.free.pop().unwrap_or_else(|| self.grow(now));
        let slot = &mut self.slots[index as usize];
        slot.place = Place::Starting;
        slot.since = Some(now);
        slot.signalled = false;
        slot.rested = None;
        slot.died = false;
        slot.due = None;
        slot.reported = false;
        let id = slot.id;
        self.check();
        Some(id)
    }

    fn grow(&mut self, now: Moment) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("validated: max_sessions fits 32 bits");
        self.slots.push(Slot {
            id: SlotId { index, generation: index.wrapping_mul(0x9E37_79B1) & GENERATIONS },
            place: Place::Free,
            handle: None,
            holder: None,
            since: None,
            rested: None,
            ready_at: now,
            born: 0,
            leases: 0,
            executions: 0,
            budget: u64::MAX,
            expires: Moment::FAR_FUTURE,
            signalled: false,
            died: false,
            armed: false,
            due: None,
            aging: None,
            heard: now,
            memory: None,
            reported: false,
        });
        index
    }

    /// When a start that is wanted may begin, if only the back-off stands in its way.
    pub(crate) fn next_attempt(&self, now: Moment) -> Option<Moment> {
        match self.breaker.state(now) {
            BreakerState::Open if self.wanted() > 0 => self.breaker.retry_at(),
            _ => None,
        }
    }

    /// Whether another spawner would find something to do.
    pub(crate) fn wants_more_starts(&self) -> bool {
        self.wanted() > 0 && self.starting < self.bounds.max_starts && self.breaker.failures() == 0
    }

    /// A slot has a new process, with an age and budgets of its own.
    pub(super) fn begin_life(&mut self, index: u32, handle: S::Handle, now: Moment) {
        let budget = self.roll_budget();
        let lifetime = self.bounds.max_lifetime.map(|lifetime| self.roll.shorten(lifetime));
        let entry = &mut self.slots[index as usize];
        entry.handle = Some(handle);
        (entry.ready_at, entry.heard) = (now, now);
        entry.executions = 0;
        entry.memory = None;
        entry.budget = budget;
        entry.expires = lifetime.map_or(Moment::FAR_FUTURE, |lifetime| now + lifetime);
    }

    /// A start brought a session: it serves the first waiter or goes idle, however late it comes.
    pub(crate) fn started(
        &mut self,
        slot: SlotId,
        session: S,
        handle: S::Handle,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) {
        self.starting -= 1;
        self.batch.succeeded = true;
        // One that began before the breaker opened says nothing of what made it open.
        if self.breaker.state(now) != BreakerState::Open {
            self.breaker.succeeded();
        }
        self.counters.sessions_created += 1;
        self.begin_life(slot.index, handle, now);
        let entry = &mut self.slots[slot.index as usize];
        entry.leases = 0;
        entry.born = self.counters.sessions_created;
        let open = self.phase != Phase::Closed;
        if !open || entry.died || !session.is_alive() {
            let reason = if open { Removal::Dead } else { Removal::Shutdown };
            entry.place = Place::Busy;
            self.busy += 1;
            self.note_dud(slot.index, reason, now, fx);
            self.depart(slot.index, session, reason, self.bounds.restart_if_dead, fx);
        } else {
            let idle = self.idle.len();
            self.offer(slot.index, session, now, fx);
            self.counters.sessions_created_from_warmup += (self.idle.len() - idle) as u64;
            // Its idle time and its lifetime begin: the next pass may be due earlier than known.
            self.request_health(fx);
        }
        self.evaluate(now, fx);
        self.check();
    }

    /// A start failed or was given up. `cause` is `None` if the pool's closing ended it.
    pub(crate) fn start_failed(
        &mut self,
        slot: SlotId,
        cause: Option<Arc<Error>>,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) {
        self.starting -= 1;
        self.vacate(slot.index);
        if let Some(cause) = cause {
            self.batch.failed = true;
            self.counters.start_failures += 1;
            fx.error = self.last_start_error.replace(cause);
        }
        if self.starting == 0 && self.batch.failed && !self.batch.succeeded {
            self.breaker.batch_failed(now);
            self.counters.breaker_opened += 1;
        }
        self.evaluate(now, fx);
        self.check();
    }

    /// Why a waiter would wait in vain, if so: no session is alive or starting, and no start may
    /// begin for a while.
    pub(super) fn stuck(&self, now: Moment) -> Option<Refusal> {
        if self.alive() + self.starting > 0 || self.breaker.state(now) != BreakerState::Open {
            return None;
        }
        let cause = self.last_start_error.clone()?;
        let retry_in = self.breaker.retry_at()?.saturating_since(now);
        Some(Refusal::StartFailing { cause, retry_in })
    }

    /// Why no session could be started, while that is the latest news.
    pub(crate) fn start_trouble(&self, now: Moment) -> Option<(Arc<Error>, Duration)> {
        let retry_at = self.breaker.retry_at()?;
        Some((self.last_start_error.clone()?, retry_at.saturating_since(now)))
    }

    /// Lets go of the error of the last start, whose owner takes it elsewhere.
    #[must_use = "it must not be dropped under the lock"]
    pub(crate) fn forget_start_error(&mut self) -> Option<Arc<Error>> {
        self.last_start_error.take()
    }

    pub(crate) fn last_start_error(&self) -> Option<&Arc<Error>> {
        self.last_start_error.as_ref()
    }

    pub(crate) fn breaker(&self, now: Moment) -> (BreakerState, u32, Option<Duration>) {
        let retry_in = self.breaker.retry_at().map(|at| at.saturating_since(now));
        (self.breaker.state(now), self.breaker.failures(), retry_in)
    }

    /// Whether the watermark is reached, or nothing more can be done for it.
    pub(crate) fn is_filled(&self) -> bool {
        self.idle.len() - self.aging_idle + self.resetting >= self.bounds.min_idle
            || self.alive() >= self.bounds.max_sessions
    }

    /// An execution budget, up to a tenth below the configured one, exact below 10.
    pub(super) fn roll_budget(&mut self) -> u64 {
        match self.bounds.budget {
            None => u64::MAX,
            Some(budget) => budget - self.roll.below(budget / 10 + 1),
        }
    }
}
