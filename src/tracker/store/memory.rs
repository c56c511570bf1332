//! What beats touch, in memory: who is known, when they were seen, who is wanted to stop.
//!
//! Rows come and go only by the writer, after its commit and in the order of its commits; beats
//! only move times. So a session is known here no earlier than it is on the disk.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;

use super::crowd::Crowd;
use super::owners::{Owner, Owners};
use crate::clock::{Moment, wall};
use crate::tracker::api::{Heartbeat, HeartbeatResponse, KillReceipt, KillScope, KillStats};
use crate::tracker::life::{Departed, Gone, Interval, Verbs, pace};
use crate::tracker::receipts::{KillCounts, Passed, Receipt, Tally};
use crate::tracker::{TrackedId, civil};

#[derive(Default)]
pub(super) struct Memory {
    sessions: Crowd,
    /// Beats that are not on the disk yet: row → wall-clock milliseconds.
    unwritten: HashMap<i64, i64>,
    /// How often kills were told, as far as that is not on the disk yet: kill → times.
    unwritten_told: HashMap<u64, u32>,
    /// The open receipts, oldest first.
    open_kills: BTreeMap<u64, TrackedId>,
    tally: Tally,
    departed: Departed,
    /// Those that were laid, over or not: one for each app at most.
    embargoes: BTreeMap<String, Held>,
    owners: Owners,
}

/// One session's part.
pub(super) struct Live {
    seen: Moment,
    seen_millis: i64,
    /// The last beat came to an earlier process; `seen` is when the store was opened.
    carried_over: bool,
    /// In what time its next beat is due.
    pace: Interval,
    /// The least number that its next beat may have.
    next_number: u64,
    known: Known,
    /// What came with its beats; nothing for most.
    said: Option<Box<Said>>,
}

/// What a client says of itself with its beats.
#[derive(Default)]
pub(super) struct Said {
    pub(super) attached: BTreeMap<String, Value>,
    pub(super) progress: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
}

/// What a session's row says that beats are answered by.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) row: i64,
    pub(super) start_millis: i64,
    pub(super) kill_requested: bool,
    /// The receipt of the last kill.
    pub(super) kill: Option<Box<Receipt>>,
    pub(super) interval: Interval,
    pub(super) verbs: Verbs,
    pub(super) verbs_number: u32,
    /// To whom it belongs; nobody if it was registered without an access token of an app.
    pub(super) owner: Option<Owner>,
}

/// An embargo.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) until: Moment,
    /// The same as its row has it: tells this embargo from another one on the app.
    pub(super) until_millis: i64,
    pub(super) requested_by: Option<String>,
    pub(super) reason: Option<String>,
}

/// Why a beat counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tracker) enum Missed {
    /// There is no such session; how it went, if that is remembered.
    Gone(Option<Gone>),
    /// A newer beat has come before.
    Late,
}

impl Live {
    pub(super) fn new(known: Known, seen: Moment, seen_millis: i64) -> Live {
        Live {
            seen,
            seen_millis,
            carried_over: false,
            pace: known.interval,
            next_number: 0,
            known,
            said: None,
        }
    }

    /// A sign of life.
    fn touch(&mut self, now: Moment) {
        self.seen = now;
        self.seen_millis = civil::millis(wall());
        self.carried_over = false;
    }

    pub(super) fn row(&self) -> i64 {
        self.known.row
    }

    pub(super) fn start_millis(&self) -> i64 {
        self.known.start_millis
    }

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

    /// How often it beats.
    pub(super) fn pace(&self) -> Duration {
        self.pace.duration()
    }

    /// What came with its beats.
    pub(super) fn said(&self) -> Option<&Said> {
        self.said.as_deref()
    }

    pub(super) fn verbs(&self) -> Verbs {
        self.known.verbs
    }

    /// The receipt of the last kill.
    pub(super) fn kill(&self) -> Option<KillReceipt> {
        self.known.kill.as_ref().map(|receipt| receipt.shown())
    }

    /// What the session shall hear. Counts as told.
    fn tell(&mut self) -> HeartbeatResponse {
        let Known { kill_requested, kill, verbs, verbs_number, .. } = &mut self.known;
        let mut reply = HeartbeatResponse { kill_requested: *kill_requested, ..HeartbeatResponse::default() };
        if let Some(receipt) = kill.as_mut().filter(|receipt| receipt.is_open()) {
            receipt.told = receipt.told.saturating_add(1);
            reply.kill_id = Some(receipt.kill_id);
            reply.kill_reason.clone_from(&receipt.reason);
        }
        if *verbs_number > 0 {
            reply.verbs = verbs.words();
            reply.verbs_number = Some(u64::from(*verbs_number));
        }
        reply
    }
}

impl Memory {
    /// For a database that holds so many sessions.
    pub(super) fn with_room_for(count: usize) -> Memory {
        let mut memory = Memory::default();
        memory.sessions.reserve(count);
        memory
    }

    /// See [`Crowd::stretch`].
    pub(super) fn stretch(&self, number: usize) -> Option<impl Iterator<Item = &Live>> {
        self.sessions.stretch(number)
    }

    /// How many sessions there are.
    pub(super) fn count(&self) -> usize {
        self.sessions.len()
    }

    /// A session found in the database when it was opened.
    pub(super) fn carry_over(&mut self, id: &str, known: Known, seen_millis: i64, now: Moment) {
        self.put(id, Live { carried_over: true, ..Live::new(known, now, seen_millis) });
    }

    /// A session that has just registered.
    pub(super) fn insert(&mut self, id: &TrackedId, known: Known, number: Option<u64>, now: Moment) {
        let next_number = number.map_or(0, |number| number.saturating_add(1));
        self.put(id.as_str(), Live { next_number, ..Live::new(known, now, civil::millis(wall())) });
    }

    fn put(&mut self, id: &str, live: Live) {
        if let Some(receipt) = live.known.kill.as_ref().filter(|receipt| receipt.is_open()) {
            self.open_kills.insert(receipt.kill_id, id.into());
        }
        self.sessions.put(id, live);
    }

    /// A session is gone. Its receipt has been closed before.
    pub(super) fn remove(&mut self, id: &TrackedId, how: Gone) {
        if let Some(live) = self.sessions.remove(id) {
            self.unwritten.remove(&live.known.row);
            self.departed.note(id.clone(), how);
        }
    }

    /// A receipt was opened: its session shall stop.
    pub(super) fn opened(&mut self, receipt: Receipt) {
        self.tally.opened(receipt.scope);
        if let Some(live) = self.sessions.get_mut(&receipt.session_id) {
            self.open_kills.insert(receipt.kill_id, receipt.session_id.clone());
            live.known.kill_requested = true;
            live.known.kill = Some(Box::new(receipt));
        }
    }

    /// For a receipt that was opened by a registration: [`insert`](Memory::insert) has it.
    pub(super) fn count_opened(&mut self, scope: KillScope) {
        self.tally.opened(scope);
    }

    /// A receipt has moved on.
    pub(super) fn moved_on(&mut self, mut receipt: Receipt, passed: &[Passed]) {
        self.tally.note(receipt.scope, passed);
        if !receipt.is_open() {
            self.open_kills.remove(&receipt.kill_id);
        }
        let live = self.sessions.get_mut(&receipt.session_id);
        let held = live.and_then(|live| live.known.kill.as_mut());
        if let Some(held) = held.filter(|held| held.kill_id == receipt.kill_id) {
            // Beats are answered meanwhile.
            receipt.told = held.told.max(receipt.told);
            **held = receipt;
        }
    }

    /// Fills in what only memory knows of an open receipt: when exactly it was requested, and how often
    /// it was told.
    pub(super) fn fill_in(&self, receipt: &mut Receipt) {
        let held = self.receipt(&receipt.session_id);
        if let Some(held) = held.filter(|held| held.kill_id == receipt.kill_id) {
            receipt.requested = held.requested;
            receipt.told = held.told.max(receipt.told);
        }
    }

    fn receipt(&self, id: &TrackedId) -> Option<&Receipt> {
        self.sessions.get(id)?.known.kill.as_deref()
    }

    /// Whose open kill was requested at `before` or earlier.
    pub(super) fn unconfirmed(&self, before: Moment) -> Vec<TrackedId> {
        let is_old = |id: &&TrackedId| self.receipt(id).is_some_and(|receipt| receipt.requested <= before);
        self.open_kills.values().take_while(is_old).cloned().collect()
    }

    pub(super) fn kill_stats(&self) -> KillStats {
        self.tally.stats(self.open_kills.len())
    }

    pub(super) fn kill_counts(&self) -> KillCounts {
        self.tally.counts(self.open_kills.len())
    }

    pub(super) fn set_verbs(&mut self, id: &TrackedId, verbs: Verbs, number: u32) {
        if let Some(live) = self.sessions.get_mut(id) {
            (live.known.verbs, live.known.verbs_number) = (verbs, number);
        }
    }

    pub(super) fn set_embargo(&mut self, app_name: String, held: Held) {
        self.embargoes.insert(app_name, held);
    }

    /// Whether the embargo of this row is on. One that is not known here was laid by the transaction
    /// that asks.
    pub(super) fn is_on(&self, app_name: &str, until_millis: i64, now: Moment) -> bool {
        let held = self.embargoes.get(app_name).filter(|held| held.until_millis == until_millis);
        held.is_none_or(|held| now < held.until)
    }

    /// The embargoes that are on.
    pub(super) fn embargoes(&self, now: Moment) -> impl Iterator<Item = (&String, &Held)> {
        self.embargoes.iter().filter(move |(_, held)| now < held.until)
    }

    pub(super) fn get(&self, id: &TrackedId) -> Option<&Live> {
        self.sessions.get(id)
    }

    /// What stands for an owner's name.
    pub(super) fn owner(&mut self, name: &str) -> Option<Owner> {
        self.owners.of(name)
    }

    /// Whether this is a session of somebody else.
    pub(super) fn is_foreign(&self, id: &TrackedId, owner: &str) -> bool {
        let live = self.sessions.get(id);
        live.is_some_and(|live| live.known.owner.and_then(|found| self.owners.name(found)) != Some(owner))
    }

    pub(super) fn kill_requested(&self, id: &TrackedId) -> Option<bool> {
        self.sessions.get(id).map(|live| live.known.kill_requested)
    }

    /// What the session shall hear now, without a sign of life; counts as told.
    pub(super) fn tell(&mut self, id: &TrackedId) -> Option<HeartbeatResponse> {
        let live = self.sessions.get_mut(id)?;
        let reply = live.tell();
        if let Some(receipt) = live.known.kill.as_ref().filter(|_| reply.kill_id.is_some()) {
            self.unwritten_told.insert(receipt.kill_id, receipt.told);
        }
        Some(reply)
    }

    /// Notes a beat. Returns whether it is the first that waits to be written.
    pub(super) fn beat(
        &mut self,
        id: &TrackedId,
        beat: Heartbeat,
        wait: Duration,
        now: Moment,
    ) -> Result<bool, Missed> {
        let Some(live) = self.sessions.get_mut(id) else {
            return Err(Missed::Gone(self.departed.how(id)));
        };
        if let Some(number) = beat.beat_number {
            if number < live.next_number {
                return Err(Missed::Late);
            }
            live.next_number = number.saturating_add(1);
        }
        live.touch(now);
        live.pace = Interval::of(pace(live.known.interval.duration(), wait));
        if beat.attached.is_some() || beat.progress.is_some() || beat.memory_bytes.is_some() {
            let said = live.said.get_or_insert_default();
            said.attached = beat.attached.unwrap_or_else(|| std::mem::take(&mut said.attached));
            said.progress = beat.progress.or(said.progress);
            said.memory_bytes = beat.memory_bytes.or(said.memory_bytes);
        }
        let first = self.unwritten.is_empty();
        self.unwritten.insert(live.known.row, live.seen_millis);
        Ok(first)
    }

    /// Notes a sign of life that is answered without a word about kills. Returns whether it is the
    /// first that waits to be written.
    pub(super) fn touch(&mut self, id: &TrackedId, now: Moment) -> bool {
        let Some(live) = self.sessions.get_mut(id) else { return false };
        live.touch(now);
        let first = self.unwritten.is_empty();
        self.unwritten.insert(live.known.row, live.seen_millis);
        first
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

    /// The kills that were told since the last time, and how often by now.
    pub(super) fn take_unwritten_told(&mut self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.unwritten_told).into_iter().collect()
    }

    /// Takes those back that could not be written. Newer ones win.
    pub(super) fn put_back_told(&mut self, told: Vec<(u64, u32)>) {
        for (kill_id, count) in told {
            self.unwritten_told.entry(kill_id).or_insert(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_only_beats_costs_little() {
        assert!(size_of::<Option<Live>>() <= 80, "{}", size_of::<Option<Live>>());
    }
}
