//! What takes a look at all sessions in memory: a few thousand at a time, so that beats come in between.

use std::collections::HashSet;
use std::time::Duration;

use super::memory::{Live, Memory, Said};
use crate::clock::Moment;
use crate::sync::Mutex;
use crate::tracker::TrackedStatus;
use crate::tracker::life::{Thresholds, scaled};

/// Who has become stale, and who was and is no more.
#[derive(Debug, Default)]
pub(in crate::tracker) struct Turned {
    /// Rows, and for how long they have been silent.
    pub(in crate::tracker) stale: Vec<(i64, Duration)>,
    pub(in crate::tracker) back: Vec<i64>,
    pub(in crate::tracker) gone: HashSet<i64>,
}

/// Looks at every session.
pub(super) fn each(memory: &Mutex<Memory>, mut look: impl FnMut(&Live)) {
    for number in 0.. {
        let memory = memory.lock();
        let Some(stretch) = memory.stretch(number) else { return };
        stretch.for_each(&mut look);
    }
}

/// How many sessions are stale, and how many there are.
pub(super) fn count_stale(memory: &Mutex<Memory>, thresholds: Thresholds, now: Moment) -> (usize, usize) {
    let (mut stale, mut all) = (0, 0);
    each(memory, |live| {
        stale += usize::from(thresholds.is_stale(live.silence(now), live.pace()));
        all += 1;
    });
    (stale, all)
}

/// The rows of those who are stale and not among `told`, at most so many, and of those who were and are no
/// more.
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

/// The rows behind `after` of those who attach something, or something of this name; in order.
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

/// The rows of those whose beats are overdue, and whether they are stale.
pub(super) fn overdue(memory: &Mutex<Memory>, thresholds: Thresholds, now: Moment) -> Vec<(i64, bool)> {
    let mut overdue = Vec::new();
    each(memory, |live| match thresholds.state(live.silence(now), live.pace(), &TrackedStatus::Idle) {
        TrackedStatus::Stale => overdue.push((live.row(), true)),
        TrackedStatus::Late => overdue.push((live.row(), false)),
        _ => {}
    });
    overdue
}

/// The rows of those who have been silent for `older_than`, or longer if they beat more seldom; in order.
pub(super) fn silent(memory: &Mutex<Memory>, older_than: Duration, now: Moment) -> Vec<i64> {
    let mut rows = Vec::new();
    each(memory, |live| {
        if live.silence(now) >= scaled(older_than, live.pace()) {
            rows.push(live.row());
        }
    });
    rows.sort_unstable();
    rows
}
