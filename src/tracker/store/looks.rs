//! Looks at all sessions in memory: who has turned stale, whose beats are overdue, who attaches something.
//! What is found are rows: the rest of a session is in the tables.

use std::collections::HashSet;
use std::time::Duration;

use super::memory::{Memory, Said, each};
use crate::clock::Moment;
use crate::sync::Mutex;
use crate::tracker::TrackedStatus;
use crate::tracker::life::Thresholds;

/// Who has become stale, and who was and is no more.
#[derive(Debug, Default)]
pub(in crate::tracker) struct Turned {
    /// And for how long they have been silent.
    pub(in crate::tracker) stale: Vec<(i64, Duration)>,
    pub(in crate::tracker) back: Vec<i64>,
    pub(in crate::tracker) gone: HashSet<i64>,
}

/// Who is stale and not among `told`, and who of those is no more; at most so many.
pub(super) fn turned(
    memory: &Mutex<Memory>,
    told: &HashSet<i64>,
    thresholds: Thresholds,
    now: Moment,
    most: usize,
) -> Turned {
    let mut turned = Turned { gone: told.clone(), ..Turned::default() };
    each(memory, |live| {
        let (row, silence) = (live.row(), live.silence(now));
        let (is_stale, was_told) = (thresholds.is_stale(silence, live.pace()), told.contains(&row));
        if was_told {
            turned.gone.remove(&row);
        }
        if is_stale && !was_told && turned.stale.len() < most {
            turned.stale.push((row, silence));
        } else if !is_stale && was_told && turned.back.len() < most {
            turned.back.push(row);
        }
    });
    turned
}

/// Those whose beats are overdue, and whether they are stale.
pub(super) fn overdue(memory: &Mutex<Memory>, thresholds: Thresholds, now: Moment) -> Vec<(i64, bool)> {
    let mut overdue = Vec::new();
    each(memory, |live| match thresholds.state(live.silence(now), live.pace(), &TrackedStatus::Idle) {
        TrackedStatus::Stale => overdue.push((live.row(), true)),
        TrackedStatus::Late => overdue.push((live.row(), false)),
        _ => {}
    });
    overdue
}

/// Those behind `after` who attach something, or something of this name; in order.
pub(super) fn attaching(memory: &Mutex<Memory>, after: i64, name: Option<&str>) -> Vec<i64> {
    let is_meant = |said: &Said| match name {
        Some(name) => said.attached.contains_key(name),
        None => !said.attached.is_empty(),
    };
    let mut rows = Vec::new();
    each(memory, |live| {
        if live.row() > after && live.said().is_some_and(is_meant) {
            rows.push(live.row());
        }
    });
    rows.sort_unstable();
    rows
}
