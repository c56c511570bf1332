//! The waiters: whose turn it is says `tenants.rs`; each has a deadline.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::holder::Claim;
use super::{Effects, Lease, Phase, Resource, State};
use crate::clock::Moment;
use crate::error::{Error, QuotaKind};
use crate::pool::breaker::BreakerState;
use crate::pool::events::RefusalReason;
use crate::pool::explain::{WaitReason, WaiterRow};

/// A place in the queue. Smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(super) u64);

#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub(super) since: Moment,
    pub(super) deadline: Moment,
    pub(super) claim: Claim,
    wake: W,
}

/// What became of a waiter; made once, under the same lock under which a waiter gives up.
#[derive(Debug)]
pub(crate) enum Decision<S> {
    Granted(Lease<S>),
    Refused(Refusal),
}

/// Why somebody gets no session.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    TimedOut {
        /// How many of its tenant stood in front of it.
        ahead: usize,
        /// The limit that its tenant was at.
        max_leases: Option<usize>,
    },
    Cancelled,
    Closed,
    StartFailing {
        cause: Arc<Error>,
        retry_in: Duration,
    },
    TooManyWaiters,
    /// Its tenant has as much as it may.
    Quota {
        tenant: Arc<str>,
        limit: usize,
        kind: QuotaKind,
    },
    /// Its thread holds a session already.
    Nested {
        held_at: &'static Location<'static>,
    },
}

impl Refusal {
    /// For metrics and the listener; `None` if the caller gave up by itself.
    pub(crate) fn reason(&self) -> Option<RefusalReason> {
        match self {
            Refusal::TimedOut { .. } | Refusal::Cancelled => None,
            Refusal::Closed => Some(RefusalReason::Closed),
            Refusal::StartFailing { .. } => Some(RefusalReason::StartFailing),
            Refusal::TooManyWaiters => Some(RefusalReason::TooManyWaiters),
            Refusal::Quota { .. } => Some(RefusalReason::Quota),
            Refusal::Nested { .. } => Some(RefusalReason::Nested),
        }
    }
}

/// Waiters in front are counted up to here only: the count is for a message, and a storm of
/// time-outs must not make each of them walk a long queue under the lock.
const COUNT_AHEAD: usize = 1_000;

impl<S: Resource, W> State<S, W> {
    /// Somebody whom [`take`](State::take) could not serve waits until `deadline`.
    pub(crate) fn enqueue(
        &mut self,
        claim: Claim,
        deadline: Moment,
        wake: W,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) -> Result<Ticket, Refusal> {
        if let Some(refusal) = self.no_entry(&claim, now) {
            self.counters.refused(&refusal);
            self.tenants.turned_away(claim.tenant());
            if matches!(refusal, Refusal::StartFailing { .. }) {
                // What this caller found dead may have been the last hope of those who wait.
                self.refuse_all(&refusal, fx);
            }
            self.check();
            return Err(refusal);
        }
        self.misses.note(self.miss_reason(&claim, now), now);
        self.primed = true;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tenants.join(&claim, ticket);
        self.queued_jobs += usize::from(claim.is_job());
        self.waiters.insert(ticket, Waiter { since: now, deadline, claim, wake });
        self.counters.waiters_max = self.counters.waiters_max.max(self.callers());
        self.evaluate(now, fx);
        self.check();
        Ok(ticket)
    }

    /// Why somebody may not join the queue, if so.
    fn no_entry(&self, claim: &Claim, now: Moment) -> Option<Refusal> {
        if !self.is_open() {
            return Some(Refusal::Closed);
        }
        // Jobs hold no caller up.
        if !claim.is_job() && self.callers() >= self.bounds.max_waiters {
            return Some(Refusal::TooManyWaiters);
        }
        let full = self.tenants.queue_limit(claim.tenant());
        full.and_then(|limit| over(claim, limit, QuotaKind::Queued)).or_else(|| self.stuck(now))
    }

    /// Somebody who tries once was not served by [`take`](State::take).
    pub(crate) fn give_up_at_once(&mut self, claim: &Claim, now: Moment) -> Refusal {
        let full = self.tenants.lease_limit(claim.tenant());
        let over = full.and_then(|limit| over(claim, limit, QuotaKind::Leases));
        if let Some(refusal) = over.or_else(|| self.stuck(now)) {
            self.counters.refused(&refusal);
            self.tenants.turned_away(claim.tenant());
            return refusal;
        }
        self.misses.note(self.miss_reason(claim, now), now);
        self.tenants.gave_up(claim.tenant());
        let refusal = Refusal::TimedOut { ahead: self.tenants.queued(claim, COUNT_AHEAD), max_leases: None };
        self.counters.refused(&refusal);
        refusal
    }

    /// A waiter asks what became of it. `waited` is its time in the queue so far.
    pub(crate) fn collect(&mut self, ticket: Ticket, waited: Duration) -> Option<Decision<S>> {
        let decision = self.decided.remove(&ticket)?;
        let counters = &mut self.counters;
        match &decision {
            Decision::Granted(_) => {
                counters.acquisition_success += 1;
                counters.total_acquisition_time += waited;
                counters.acquire_waits.record(waited);
            }
            Decision::Refused(refusal) => counters.refused(refusal),
        }
        Some(decision)
    }

    /// A waiter's time is over. A decision that was made before stands: nothing granted is lost.
    pub(crate) fn expire(&mut self, ticket: Ticket) {
        self.time_out(ticket);
        self.announced = self.announced.min(self.wanted());
        self.check();
    }

    /// The token of a waiter was cancelled.
    pub(crate) fn cancel(&mut self, ticket: Ticket, fx: &mut Effects<S, W>) {
        self.turn_down(ticket, Refusal::Cancelled, fx);
        self.announced = self.announced.min(self.wanted());
        self.check();
    }

    /// The queue, for [`explain`](crate::SessionPool::explain): as many of the first as `most`.
    pub(crate) fn waiter_rows(&self, now: Moment, most: usize) -> Vec<WaiterRow> {
        let order = self.tenants.order(self.busy, most);
        let row = |(ahead, (ticket, eligible)): (usize, (Ticket, bool))| {
            let waiter = self.waiters.get(&ticket)?;
            let text = |text: Option<&Arc<str>>| text.map(|text| text.as_ref().to_owned());
            Some(WaiterRow {
                waited: now.saturating_since(waiter.since),
                ahead,
                tenant: text(waiter.claim.tenant()),
                label: text(waiter.claim.label()),
                priority: waiter.claim.priority(),
                job: waiter.claim.is_job(),
                reason: self.wait_reason(ahead, eligible, now),
            })
        };
        order.into_iter().enumerate().filter_map(row).collect()
    }

    /// What the waiter with so many ahead of it waits for.
    fn wait_reason(&self, ahead: usize, eligible: bool, now: Moment) -> WaitReason {
        let full = self.total() >= self.bounds.max_sessions;
        if self.phase == Phase::Paused {
            WaitReason::Paused
        } else if !eligible {
            WaitReason::Quota
        } else if ahead < self.resetting {
            WaitReason::Resetting
        } else if ahead < self.resetting + self.starting {
            WaitReason::Starting
        } else if full || self.breaker.state(now) != BreakerState::Open {
            WaitReason::AtMaxSessions
        } else {
            WaitReason::BreakerOpen
        }
    }

    /// Callers that wait; jobs are not among them.
    pub(super) fn callers(&self) -> usize {
        self.waiters.len() - self.queued_jobs
    }

    /// Removes a waiter that has left its line.
    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let waiter = self.waiters.remove(&ticket)?;
        self.queued_jobs -= usize::from(waiter.claim.is_job());
        Some(waiter)
    }

    /// Gives a waiter a session, which is busy from now on, and has it woken.
    pub(super) fn grant(&mut self, ticket: Ticket, lease: Lease<S>, fx: &mut Effects<S, W>) {
        let Some(Waiter { claim, wake, .. }) = self.remove(ticket) else {
            unreachable!("invariant 4: who stands in a line waits")
        };
        // First: the tenant's entry must not fall to nothing between the line and the lease.
        self.count_lease(&claim);
        self.tenants.called(&claim, ticket);
        self.hold(lease.slot.index, claim);
        self.decided.insert(ticket, Decision::Granted(lease));
        fx.wake.push(wake);
    }

    /// Refuses a waiter and has it woken.
    pub(super) fn turn_down(&mut self, ticket: Ticket, refusal: Refusal, fx: &mut Effects<S, W>) {
        if let Some(Waiter { claim, wake, .. }) = self.remove(ticket) {
            self.tenants.refused(&claim, ticket);
            self.decided.insert(ticket, Decision::Refused(refusal));
            fx.wake.push(wake);
        }
    }

    /// A waiter leaves because its time is over. It wakes by itself.
    fn time_out(&mut self, ticket: Ticket) {
        if let Some(Waiter { claim, .. }) = self.remove(ticket) {
            let max_leases = self.tenants.lease_limit(claim.tenant());
            let ahead = self.tenants.timed_out(&claim, ticket, COUNT_AHEAD);
            self.decided.insert(ticket, Decision::Refused(Refusal::TimedOut { ahead, max_leases }));
        }
    }

    /// The waiter whose turn it is. Those whose time is over leave the queue on the way: each is
    /// passed over once. Those whose tenant has as much as it may are not looked at.
    pub(super) fn first_live_waiter(&mut self, now: Moment) -> Option<Ticket> {
        if self.phase == Phase::Paused {
            return None;
        }
        loop {
            let ticket = self.tenants.next(self.busy)?;
            if self.waiters.get(&ticket)?.deadline > now {
                return Some(ticket);
            }
            self.time_out(ticket);
        }
    }

    /// Looks at the whole after any gain or loss: serves waiters from idle, refuses them if
    /// nothing can ever come, and says what should be started.
    pub(super) fn evaluate(&mut self, now: Moment, fx: &mut Effects<S, W>) {
        while !self.idle.is_empty() {
            let Some(ticket) = self.first_live_waiter(now) else { break };
            let Some(lease) = self.pop_idle(now, fx) else { break };
            self.grant(ticket, lease, fx);
        }
        if !self.waiters.is_empty()
            && let Some(refusal) = self.stuck(now)
        {
            self.refuse_all(&refusal, fx);
        }
        self.shed(fx);
        self.announce(fx);
    }

    pub(super) fn refuse_all(&mut self, refusal: &Refusal, fx: &mut Effects<S, W>) {
        while let Some((ticket, _)) = self.waiters.first_key_value() {
            self.turn_down(*ticket, refusal.clone(), fx);
        }
    }
}

fn over(claim: &Claim, limit: usize, kind: QuotaKind) -> Option<Refusal> {
    claim.tenant().map(|tenant| Refusal::Quota { tenant: Arc::clone(tenant), limit, kind })
}
