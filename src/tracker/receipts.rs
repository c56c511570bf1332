//! The state machine of a kill's receipt. Pure: it takes `now`, and knows no lock, clock or table.
//!
//! ```text
//! requested ──▶ delivered ──▶ stopping ──▶ confirmed
//!     └────────────┴─────────────┴───────▶ expired
//! ```
//!
//! Invariants:
//! 1. A step is taken once: its time never changes.
//! 2. Times do not decrease along the line; a step that was skipped has the time of the next one that
//!    the client named.
//! 3. Confirmed and expired are final, and a receipt has at most one of them.

use std::collections::VecDeque;
use std::time::Duration;

use super::api::{Asker, KillReceipt, KillScope, KillState, KillStats, KillStep, StepLatency};
use super::{TrackedId, civil};
use crate::clock::Moment;
use crate::histogram::{self, HistogramSnapshot};

/// One kill of one session.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Receipt {
    pub(super) kill_id: u64,
    pub(super) session_id: TrackedId,
    pub(super) app_name: String,
    pub(super) scope: KillScope,
    pub(super) asked_by: Option<Box<Asker>>,
    pub(super) requested_by: Option<String>,
    pub(super) reason: Option<String>,
    /// For display, and for the time after a restart.
    pub(super) requested_millis: i64,
    /// What the steps are measured from.
    pub(super) requested: Moment,
    /// How many answers to beats carried it.
    pub(super) told: u32,
    pub(super) delivered: Option<Duration>,
    pub(super) stopping: Option<Duration>,
    pub(super) end: Option<(End, Duration)>,
}

/// How a receipt was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Confirmed,
    Expired,
}

/// What happened to a receipt, for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Delivered(Duration),
    Stopping(Duration),
    Confirmed(Duration),
    Expired,
}

impl Receipt {
    pub(super) fn is_open(&self) -> bool {
        self.end.is_none()
    }

    pub(super) fn state(&self) -> KillState {
        match self.end {
            Some((End::Confirmed, _)) => KillState::Confirmed,
            Some((End::Expired, _)) => KillState::Expired,
            None if self.stopping.is_some() => KillState::Stopping,
            None if self.delivered.is_some() => KillState::Delivered,
            None => KillState::Requested,
        }
    }

    /// The client has come to `step`, and so through all before it. Returns the steps that are new:
    /// none for a repeated or late word.
    pub(super) fn acknowledge(&mut self, step: KillStep, now: Moment) -> Vec<Passed> {
        let mut passed = Vec::new();
        if !self.is_open() {
            return passed;
        }
        let after = self.after(now);
        if self.delivered.is_none() {
            self.delivered = Some(after);
            passed.push(Passed::Delivered(after));
        }
        if step >= KillStep::Stopping && self.stopping.is_none() {
            self.stopping = Some(after);
            passed.push(Passed::Stopping(after));
        }
        if step >= KillStep::Confirmed {
            self.end = Some((End::Confirmed, after));
            passed.push(Passed::Confirmed(after));
        }
        passed
    }

    /// The session has left by itself: what was wanted is the case, whether it had heard of it or not.
    pub(super) fn leave(&mut self, now: Moment) -> Vec<Passed> {
        self.close(End::Confirmed, now)
    }

    /// Nobody waits for it any more.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<Passed> {
        self.close(End::Expired, now)
    }

    fn close(&mut self, end: End, now: Moment) -> Vec<Passed> {
        if !self.is_open() {
            return Vec::new();
        }
        let after = self.after(now);
        self.end = Some((end, after));
        vec![if end == End::Confirmed { Passed::Confirmed(after) } else { Passed::Expired }]
    }

    /// The time since the request, not less than that of any step before.
    fn after(&self, now: Moment) -> Duration {
        let before = self.stopping.or(self.delivered).unwrap_or_default();
        now.saturating_since(self.requested).max(before)
    }

    /// As it is shown.
    pub(super) fn shown(&self) -> KillReceipt {
        let at = |after: Option<Duration>| {
            let millis = |after: Duration| i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
            after.map(|after| civil::rfc3339(self.requested_millis.saturating_add(millis(after))))
        };
        let seconds = |after: Option<Duration>| after.map(|after| after.as_secs_f64());
        let ended = |as_what| self.end.filter(|(end, _)| *end == as_what).map(|(_, after)| after);
        let (confirmed, expired) = (ended(End::Confirmed), ended(End::Expired));
        KillReceipt {
            kill_id: self.kill_id,
            session_id: self.session_id.clone(),
            app_name: self.app_name.clone(),
            scope: self.scope,
            asked_by: self.asked_by.as_deref().cloned(),
            requested_by: self.requested_by.clone(),
            reason: self.reason.clone(),
            state: self.state(),
            told: self.told,
            requested_at: civil::rfc3339(self.requested_millis),
            delivered_at: at(self.delivered),
            stopping_at: at(self.stopping),
            confirmed_at: at(confirmed),
            expired_at: at(expired),
            delivered_seconds: seconds(self.delivered),
            stopping_seconds: seconds(self.stopping),
            confirmed_seconds: seconds(confirmed),
            expired_seconds: seconds(expired),
        }
    }
}

/// So many of the last latencies are kept for each step.
const KEPT: usize = 1_024;

/// What is counted of the kills of each scope.
const OUTCOMES: [&str; 3] = ["requested", "confirmed", "expired"];
const REQUESTED: usize = 0;
const CONFIRMED: usize = 1;
const EXPIRED: usize = 2;

/// What kills have come to since the start, for metrics.
#[derive(Debug)]
pub(super) struct KillCounts {
    scopes: [[u64; OUTCOMES.len()]; KillScope::ALL.len()],
    stages: [(&'static str, HistogramSnapshot); 3],
    pub(super) open: usize,
}

impl KillCounts {
    /// How many were requested, confirmed, expired.
    pub(super) fn of(&self, scope: KillScope) -> [(&'static str, u64); OUTCOMES.len()] {
        std::array::from_fn(|outcome| (OUTCOMES[outcome], self.scopes[scope as usize][outcome]))
    }

    /// The time from the request to each step.
    pub(super) fn stages(&self) -> &[(&'static str, HistogramSnapshot)] {
        &self.stages
    }
}

/// What kills have come to since the start.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Requested, confirmed and expired, for each scope.
    scopes: [[u64; OUTCOMES.len()]; KillScope::ALL.len()],
    delivered: Latencies,
    stopping: Latencies,
    confirmed: Latencies,
}

impl Tally {
    pub(super) fn opened(&mut self, scope: KillScope) {
        self.scopes[scope as usize][REQUESTED] += 1;
    }

    pub(super) fn note(&mut self, scope: KillScope, passed: &[Passed]) {
        let counts = &mut self.scopes[scope as usize];
        for step in passed {
            match *step {
                Passed::Delivered(after) => self.delivered.note(after),
                Passed::Stopping(after) => self.stopping.note(after),
                Passed::Confirmed(after) => {
                    counts[CONFIRMED] += 1;
                    self.confirmed.note(after);
                }
                Passed::Expired => counts[EXPIRED] += 1,
            }
        }
    }

    pub(super) fn stats(&self, open: usize) -> KillStats {
        let sum = |outcome: usize| self.scopes.iter().map(|counts| counts[outcome]).sum();
        KillStats {
            requested: sum(REQUESTED),
            open: open as u64,
            expired: sum(EXPIRED),
            delivered: self.delivered.stats(),
            stopping: self.stopping.stats(),
            confirmed: self.confirmed.stats(),
        }
    }

    pub(super) fn counts(&self, open: usize) -> KillCounts {
        let stages = [
            ("delivered", self.delivered.all.snapshot(0)),
            ("stopping", self.stopping.all.snapshot(0)),
            ("confirmed", self.confirmed.all.snapshot(0)),
        ];
        KillCounts { scopes: self.scopes, stages, open }
    }
}

#[derive(Debug, Default)]
struct Latencies {
    all: histogram::Tally,
    last: VecDeque<Duration>,
}

impl Latencies {
    fn note(&mut self, after: Duration) {
        self.all.record(after);
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(after);
    }

    fn stats(&self) -> StepLatency {
        let mut sorted: Vec<Duration> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        // The smallest value that so many of a hundred do not exceed.
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).map(Duration::as_secs_f64)
        };
        StepLatency { count: self.all.count(), p50_seconds: percentile(50), p99_seconds: percentile(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> Moment {
        Moment::LONG_AGO + BEGIN + Duration::from_secs(seconds)
    }

    fn receipt() -> Receipt {
        Receipt {
            kill_id: 7,
            session_id: TrackedId::from("s"),
            app_name: "a".to_owned(),
            scope: KillScope::Session,
            asked_by: None,
            requested_by: None,
            reason: None,
            requested_millis: 0,
            requested: at(0),
            told: 0,
            delivered: None,
            stopping: None,
            end: None,
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_kill_goes_through_its_steps_in_order_and_each_has_its_time() {
        let mut receipt = receipt();
        assert_eq!(receipt.state(), KillState::Requested);
        assert_eq!(receipt.acknowledge(KillStep::Delivered, at(1)), [Passed::Delivered(secs(1))]);
        assert_eq!(receipt.state(), KillState::Delivered);
        assert_eq!(receipt.acknowledge(KillStep::Stopping, at(2)), [Passed::Stopping(secs(2))]);
        assert_eq!(receipt.state(), KillState::Stopping);
        assert_eq!(receipt.acknowledge(KillStep::Confirmed, at(5)), [Passed::Confirmed(secs(5))]);
        let shown = receipt.shown();
        assert_eq!((shown.state, shown.state.is_final()), (KillState::Confirmed, true));
        assert_eq!(shown.requested_at, "1970-01-01T00:00:00.000+00:00");
        assert_eq!(shown.delivered_at.as_deref(), Some("1970-01-01T00:00:01.000+00:00"));
        assert_eq!((shown.stopping_seconds, shown.confirmed_seconds), (Some(2.0), Some(5.0)));
        assert_eq!((shown.expired_at, shown.expired_seconds), (None, None));
    }

    #[test]
    fn a_word_that_comes_twice_or_too_late_changes_nothing() {
        let mut receipt = receipt();
        receipt.acknowledge(KillStep::Stopping, at(2));
        let before = receipt.clone();
        assert_eq!(receipt.acknowledge(KillStep::Stopping, at(3)), []);
        assert_eq!(receipt.acknowledge(KillStep::Delivered, at(4)), []);
        assert_eq!(receipt, before);
        receipt.leave(at(5));
        let closed = receipt.clone();
        assert_eq!(receipt.acknowledge(KillStep::Confirmed, at(6)), []);
        assert_eq!((receipt.leave(at(7)), receipt.expire(at(8))), (vec![], vec![]));
        assert_eq!(receipt, closed);
    }

    #[test]
    fn a_step_that_was_skipped_has_the_time_of_the_one_that_was_named() {
        let mut receipt = receipt();
        let passed = receipt.acknowledge(KillStep::Confirmed, at(3));
        let all = [Passed::Delivered(secs(3)), Passed::Stopping(secs(3)), Passed::Confirmed(secs(3))];
        assert_eq!(passed, all);
    }

    #[test]
    fn who_leaves_unheard_is_confirmed_without_a_delivery() {
        let mut receipt = receipt();
        assert_eq!(receipt.leave(at(4)), [Passed::Confirmed(secs(4))]);
        assert_eq!((receipt.state(), receipt.delivered), (KillState::Confirmed, None));
    }

    #[test]
    fn who_is_never_heard_of_again_expires_and_stays_so() {
        let mut receipt = receipt();
        receipt.acknowledge(KillStep::Delivered, at(1));
        assert_eq!(receipt.expire(at(600)), [Passed::Expired]);
        assert_eq!(receipt.leave(at(601)), []);
        let shown = receipt.shown();
        assert_eq!((shown.state, shown.expired_seconds), (KillState::Expired, Some(600.0)));
        assert_eq!((shown.confirmed_at, shown.delivered_seconds), (None, Some(1.0)));
    }

    #[test]
    fn times_never_run_backwards() {
        let mut receipt = receipt();
        receipt.acknowledge(KillStep::Delivered, at(9));
        receipt.acknowledge(KillStep::Stopping, at(2));
        receipt.leave(Moment::LONG_AGO);
        assert_eq!((receipt.stopping, receipt.end), (Some(secs(9)), Some((End::Confirmed, secs(9)))));
    }

    #[test]
    fn latencies_are_told_as_percentiles_of_the_last_ones() {
        let mut tally = Tally::default();
        assert_eq!(tally.stats(0), KillStats::default());
        for _ in 0..KEPT {
            tally.opened(KillScope::App);
            tally.note(KillScope::App, &[Passed::Delivered(secs(1_000_000)), Passed::Expired]);
        }
        for number in 1..=1_024 {
            tally.note(KillScope::Session, &[Passed::Delivered(secs(number))]);
        }
        let stats = tally.stats(3);
        assert_eq!((stats.requested, stats.expired, stats.open), (1_024, 1_024, 3));
        assert_eq!(stats.delivered.count, 2_048);
        assert_eq!((stats.delivered.p50_seconds, stats.delivered.p99_seconds), (Some(512.0), Some(1_014.0)));
        assert_eq!(stats.confirmed, StepLatency::default());
        let counts = tally.counts(3);
        assert_eq!(counts.of(KillScope::App), [("requested", 1_024), ("confirmed", 0), ("expired", 1_024)]);
        assert_eq!(counts.of(KillScope::Session)[2], ("expired", 0));
        assert_eq!((counts.stages()[0].0, counts.stages()[0].1.count), ("delivered", 2_048));
    }
}
