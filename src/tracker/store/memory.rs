//! What beats touch, in memory: who is known, when they were seen, who is wanted to stop.
//!
//! Rows come and go only by the writer, after its commit and in the order of its commits; beats
//! only move times. So a session is known here no earlier than it is on the disk.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;

use crate::clock::{Moment, wall};
use crate::tracker::{TrackedId, civil};

#[derive(Default)]
pub(super) struct Memory {
    sessions: HashMap<TrackedId, Live>,
    /// Beats that are not on the disk yet: row → wall-clock milliseconds.
    unwritten: HashMap<i64, i64>,
}

/// One session's part.
pub(super) struct Live {
    row: i64,
    seen: Moment,
    seen_millis: i64,
    /// The last beat came to an earlier process; `seen` is when the store was opened.
    carried_over: bool,
    kill_requested: bool,
    attached: BTreeMap<String, Value>,
}

impl Live {
    pub(super) fn seen_millis(&self) -> i64 {
        self.seen_millis
    }

    /// The silence that thresholds are held against.
    pub(super) fn silence(&self, now: Moment) -> Duration {
        now.saturating_since(self.seen)
    }

    /// The age of the last beat, for display.
    pub(super) fn beat_age(&self, now: Moment, now_millis: i64) -> Duration {
        if self.carried_over {
            Duration::from_millis(u64::try_from(now_millis - self.seen_millis).unwrap_or(0))
        } else {
            self.silence(now)
        }
    }

    pub(super) fn attached(&self) -> &BTreeMap<String, Value> {
        &self.attached
    }
}

impl Memory {
    /// A session found in the database when it was opened.
    pub(super) fn carry_over(
        &mut self,
        id: TrackedId,
        row: i64,
        seen_millis: i64,
        kill_requested: bool,
        now: Moment,
    ) {
        let attached = BTreeMap::new();
        let live = Live { row, seen: now, seen_millis, carried_over: true, kill_requested, attached };
        self.sessions.insert(id, live);
    }

    pub(super) fn insert(&mut self, id: TrackedId, row: i64, kill_requested: bool) {
        let (seen, seen_millis) = (Moment::now(), civil::millis(wall()));
        let attached = BTreeMap::new();
        let live = Live { row, seen, seen_millis, carried_over: false, kill_requested, attached };
        self.sessions.insert(id, live);
    }

    pub(super) fn remove(&mut self, id: &TrackedId) {
        if let Some(live) = self.sessions.remove(id) {
            self.unwritten.remove(&live.row);
        }
    }

    pub(super) fn set_kill(&mut self, id: &TrackedId) {
        if let Some(live) = self.sessions.get_mut(id) {
            live.kill_requested = true;
        }
    }

    pub(super) fn get(&self, id: &TrackedId) -> Option<&Live> {
        self.sessions.get(id)
    }

    pub(super) fn kill_requested(&self, id: &TrackedId) -> Option<bool> {
        self.sessions.get(id).map(|live| live.kill_requested)
    }

    /// Notes a beat. Returns whether the session is wanted to stop, and whether this is the first
    /// beat that waits to be written.
    pub(super) fn beat(
        &mut self,
        id: &TrackedId,
        attached: Option<BTreeMap<String, Value>>,
        now: Moment,
    ) -> Option<(bool, bool)> {
        let live = self.sessions.get_mut(id)?;
        live.seen = now;
        live.seen_millis = civil::millis(wall());
        live.carried_over = false;
        if let Some(attached) = attached {
            live.attached = attached;
        }
        let first = self.unwritten.is_empty();
        self.unwritten.insert(live.row, live.seen_millis);
        Some((live.kill_requested, first))
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Who was last seen at `seen_before` or earlier.
    pub(super) fn silent(&self, seen_before: Moment) -> Vec<TrackedId> {
        let silent = self.sessions.iter().filter(|(_, live)| live.seen <= seen_before);
        silent.map(|(id, _)| id.clone()).collect()
    }

    /// The beats to write, in the order of the rows: neighbours share pages.
    pub(super) fn take_unwritten(&mut self) -> Vec<(i64, i64)> {
        let mut beats: Vec<_> = std::mem::take(&mut self.unwritten).into_iter().collect();
        beats.sort_unstable();
        beats
    }

    /// Takes beats back that could not be written. Newer ones win.
    pub(super) fn put_back(&mut self, beats: Vec<(i64, i64)>) {
        for (row, millis) in beats {
            self.unwritten.entry(row).or_insert(millis);
        }
    }
}
