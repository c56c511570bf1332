//! The waiters: first come, first served, each with a deadline.

use std::sync::Arc;
use std::time::Duration;

use super::{Effects, Lease, Phase, Resource, State};
use crate::clock::Moment;
use crate::error::Error;
use crate::pool::breaker::BreakerState;
use crate::pool::events::RefusalReason;
use crate::pool::explain::{WaitReason, WaiterRow};

/// A place in the queue. Smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(super) u64);

#[derive(Debug)]
pub(super) struct Waiter<W> {
    since: Moment,
    deadline: Moment,
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
        /// How many stood in front of it.
        ahead: usize,
    },
    Cancelled,
    Closed,
    StartFailing {
        cause: Arc<Error>,
        retry_in: Duration,
    },
    TooManyWaiters,
}

impl Refusal {
    /// For metrics and the listener; `None` if the caller gave up by itself.
    pub(crate) fn reason(&self) -> Option<RefusalReason> {
        match self {
            Refusal::TimedOut { .. } | Refusal::Cancelled => None,
            Refusal::Closed => Some(RefusalReason::Closed),
            Refusal::StartFailing { .. } => Some(RefusalReason::StartFailing),
            Refusal::TooManyWaiters => Some(RefusalReason::TooManyWaiters),
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
        deadline: Moment,
        wake: W,
        now: Moment,
        fx: &mut Effects<S, W>,
    ) -> Result<Ticket, Refusal> {
        let refusal = if !self.is_open() {
            Some(Refusal::Closed)
        } else if self.waiters.len() >= self.bounds.max_waiters {
            Some(Refusal::TooManyWaiters)
        } else {
            self.stuck(now)
        };
        if let Some(refusal) = refusal {
            self.counters.refused(&refusal);
            return Err(refusal);
        }
        self.misses.note(self.miss_reason(now), now);
        self.primed = true;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiters.insert(ticket, Waiter { since: now, deadline, wake });
        self.counters.waiters_max = self.counters.waiters_max.max(self.waiters.len());
        self.evaluate(now, fx);
        self.check();
        Ok(ticket)
    }

    /// Somebody who tries once was not served by [`take`](State::take).
    pub(crate) fn give_up_at_once(&mut self, now: Moment) -> Refusal {
        if let Some(refusal) = self.stuck(now) {
            self.counters.refused(&refusal);
            return refusal;
        }
        self.misses.note(self.miss_reason(now), now);
        let refusal = Refusal::TimedOut { ahead: self.waiters.len().min(COUNT_AHEAD) };
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
        if self.waiters.remove(&ticket).is_some() {
            let ahead = self.waiters.range(..ticket).take(COUNT_AHEAD).count();
            self.decided.insert(ticket, Decision::Refused(Refusal::TimedOut { ahead }));
        }
        self.announced = self.announced.min(self.wanted());
        self.check();
    }

    /// The token of a waiter was cancelled.
    pub(crate) fn cancel(&mut self, ticket: Ticket, fx: &mut Effects<S, W>) {
        if self.waiters.contains_key(&ticket) {
            self.decide(ticket, Decision::Refused(Refusal::Cancelled), fx);
        }
        self.announced = self.announced.min(self.wanted());
        self.check();
    }

    /// The queue, for [`explain`](crate::SessionPool::explain), the next to be served first.
    pub(crate) fn waiter_rows(&self, now: Moment) -> Vec<WaiterRow> {
        let reason = self.wait_reason(now);
        let row = |(ahead, waiter): (usize, &Waiter<W>)| WaiterRow {
            waited: now.saturating_since(waiter.since),
            ahead,
            tenant: None,
            label: None,
            reason: reason(ahead),
        };
        self.waiters.values().enumerate().map(row).collect()
    }

    /// What the waiter with so many ahead of it waits for.
    fn wait_reason(&self, now: Moment) -> impl Fn(usize) -> WaitReason {
        let (resetting, coming) = (self.resetting, self.resetting + self.starting);
        let open = self.breaker.state(now) == BreakerState::Open;
        let full = self.total() >= self.bounds.max_sessions;
        move |ahead| match ahead {
            _ if ahead < resetting => WaitReason::Resetting,
            _ if ahead < coming => WaitReason::Starting,
            _ if full || !open => WaitReason::AtMaxSessions,
            _ => WaitReason::BreakerOpen,
        }
    }

    /// Moves a waiter to the decided and has it woken.
    pub(super) fn decide(&mut self, ticket: Ticket, decision: Decision<S>, fx: &mut Effects<S, W>) {
        if let Some(waiter) = self.waiters.remove(&ticket) {
            fx.wake.push(waiter.wake);
            self.decided.insert(ticket, decision);
        }
    }

    /// The waiter whose turn it is. Those whose time is over leave the queue on the way: each is
    /// passed over once, and they wake by themselves.
    pub(super) fn first_live_waiter(&mut self, now: Moment) -> Option<Ticket> {
        if self.phase == Phase::Paused {
            return None;
        }
        loop {
            let (ticket, waiter) = self.waiters.first_key_value()?;
            let ticket = *ticket;
            if waiter.deadline > now {
                return Some(ticket);
            }
            self.waiters.remove(&ticket);
            self.decided.insert(ticket, Decision::Refused(Refusal::TimedOut { ahead: 0 }));
        }
    }

    /// Looks at the whole after any gain or loss: serves waiters from idle, refuses them if
    /// nothing can ever come, and says what should be started.
    pub(super) fn evaluate(&mut self, now: Moment, fx: &mut Effects<S, W>) {
        while !self.idle.is_empty() {
            let Some(ticket) = self.first_live_waiter(now) else { break };
            let Some(lease) = self.pop_idle(now, fx) else { break };
            self.decide(ticket, Decision::Granted(lease), fx);
        }
        if !self.waiters.is_empty()
            && let Some(refusal) = self.stuck(now)
        {
            while let Some((ticket, _)) = self.waiters.first_key_value() {
                self.decide(*ticket, Decision::Refused(refusal.clone()), fx);
            }
        }
        self.shed(fx);
        self.announce(fx);
    }
}
