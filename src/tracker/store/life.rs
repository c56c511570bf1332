//! What the server asks of the store beyond the operations that everybody has: beats with all they
//! carry, kills with receipts, orders, silence, the history.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use rusqlite::OptionalExtension;

use super::looks::{self, Turned};
use super::memory::Missed;
use super::write::{Killed, NotKilled, Outcome, Write};
use super::writer::Command;
use super::{KillOrder, SessionStore, audit, history, kills};
use crate::clock::{Clock, Moment};
use crate::tracker::TrackedId;
use crate::tracker::api::{
    Asker, AuditAction, AuditEntry, AuditQuery, Embargo, EndReason, Heartbeat, HeartbeatResponse,
    HistoryEntry, HistoryQuery, KillAcknowledgement, KillReceipt, KillStats, ReceiptQuery, Verb, Whom,
};
use crate::tracker::events::Told;
use crate::tracker::feed::Feed;
use crate::tracker::receipts::{KillCounts, Receipt};
use crate::{Error, Result};

impl SessionStore {
    pub(in crate::tracker) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Notes a beat that may be parked for `wait`. Does not block.
    pub(in crate::tracker) fn note_beat(
        &self,
        id: &TrackedId,
        beat: Heartbeat,
        wait: Duration,
    ) -> Result<(), Missed> {
        let now = self.clock.now();
        let noted = self.memory.lock().beat(id, beat, wait, now);
        self.beats.note(&noted);
        self.beat_came(noted?);
        Ok(())
    }

    /// Notes a beat that may be parked for `wait`, and tells what the session shall hear. Does not
    /// block.
    pub(in crate::tracker) fn beat(
        &self,
        id: &TrackedId,
        beat: Heartbeat,
        wait: Duration,
    ) -> Result<HeartbeatResponse, Missed> {
        let now = self.clock.now();
        let noted = {
            let mut memory = self.memory.lock();
            memory.beat(id, beat, wait, now).map(|first| (first, memory.tell(id)))
        };
        self.beats.note(&noted);
        let (first, reply) = noted?;
        self.beat_came(first);
        reply.ok_or(Missed::Gone(None))
    }

    fn beat_came(&self, first: bool) {
        if first {
            self.writer.send(Command::BeatsCame);
        }
    }

    /// What the session shall hear now, without a sign of life; `None` if there is no such session.
    pub(in crate::tracker) fn tell(&self, id: &TrackedId) -> Option<HeartbeatResponse> {
        self.memory.lock().tell(id)
    }

    /// Asks whoever is meant to stop. Durable when it returns.
    pub(in crate::tracker) fn kill(&self, whom: Whom, order: KillOrder) -> Result<Result<Killed, NotKilled>> {
        let write = Write::Kill { whom, order: Box::new(order) };
        match self.write("requesting a kill", write)? {
            Outcome::Kills(outcome) => Ok(outcome),
            Outcome::Changed(_) | Outcome::Ids(_) => Ok(Err(NotKilled::Unknown)),
        }
    }

    /// Notes what a client says of a kill; a word about a kill that is closed is ignored. Durable when
    /// it returns.
    pub(in crate::tracker) fn acknowledge(&self, id: &TrackedId, word: KillAcknowledgement) -> Result<()> {
        self.write("noting what became of a kill", Write::Acknowledge { id: id.clone(), word }).map(drop)
    }

    /// Gives up waiting for kills that were requested so long ago; returns whose they are.
    pub(in crate::tracker) fn expire_kills(&self, age: Duration) -> Result<Vec<TrackedId>> {
        let before = self.clock.now() - age;
        if self.memory.lock().unconfirmed(before).is_empty() {
            return Ok(Vec::new());
        }
        self.moved("giving up on kills", Write::ExpireKills { before })
    }

    /// Orders whoever is meant to do something; returns who that is. Durable when it returns.
    pub(in crate::tracker) fn order(
        &self,
        whom: Whom,
        verb: Verb,
        asked_by: Option<Asker>,
    ) -> Result<Vec<TrackedId>> {
        let asked_by = asked_by.map(Box::new);
        self.moved("giving an order", Write::Order { whom, verb, asked_by })
    }

    /// Moves who has been silent for `older_than` to the history; returns who that is.
    pub(in crate::tracker) fn remove_silent(
        &self,
        older_than: Duration,
        reason: EndReason,
        asked_by: Option<Asker>,
    ) -> Result<Vec<TrackedId>> {
        if looks::silent(&self.memory, older_than, self.clock.now()).is_empty() {
            return Ok(Vec::new());
        }
        let asked_by = asked_by.map(Box::new);
        self.moved("moving silent sessions to the history", Write::Purge { older_than, reason, asked_by })
    }

    /// How many sessions are stale by then, and how many there are. Does not block.
    pub(in crate::tracker) fn count_stale(&self, now: Moment) -> (usize, usize) {
        looks::count_stale(&self.memory, self.thresholds, now)
    }

    /// Who has become stale since those were `told`, and who is stale no more; at most so many. Does
    /// not block.
    pub(in crate::tracker) fn turned(&self, told: &HashSet<i64>, now: Moment, most: usize) -> Turned {
        looks::turned(&self.memory, told, self.thresholds, now, most)
    }

    /// Has `tell` say something of the sessions in these rows, as far as they are there, by their ids and
    /// apps. It is called and heard on the thread that writes: nothing is told of a session after its end.
    pub(in crate::tracker) fn tell_of(
        &self,
        rows: Vec<i64>,
        tell: impl FnOnce(&HashMap<i64, (TrackedId, String)>) -> Told + Send + 'static,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let feed = Arc::clone(&self.feed);
        let said = self.writer.read(move |tables| {
            let mut query =
                tables.prepare_cached("SELECT session_id, app_name FROM sessions WHERE row = ?")?;
            let mut names = HashMap::with_capacity(rows.len());
            for row in rows {
                let name = query
                    .query_row([row], |found| Ok((found.get::<_, String>(0)?.into(), found.get(1)?)))
                    .optional()?;
                names.extend(name.map(|name| (row, name)));
            }
            feed.record(tell(&names));
            Ok(())
        });
        said.map_err(|error| Error::store("reading the names of sessions", error))
    }

    /// What happens here, as it happens.
    pub(in crate::tracker) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// For so long yet nobody can be stale, because nobody was heard before the store was opened.
    pub(in crate::tracker) fn restart_grace(&self) -> Duration {
        (self.opened + self.thresholds.stale).saturating_since(self.clock.now())
    }

    /// Since the store was opened.
    pub(in crate::tracker) fn uptime(&self) -> Duration {
        self.clock.now().saturating_since(self.opened)
    }

    pub(in crate::tracker) fn kill_stats(&self) -> KillStats {
        self.memory.lock().kill_stats()
    }

    /// The same for metrics.
    pub(in crate::tracker) fn kill_counts(&self) -> KillCounts {
        self.memory.lock().kill_counts()
    }

    /// The embargoes that are on.
    pub(in crate::tracker) fn embargoes(&self) -> Vec<Embargo> {
        let now = self.clock.now();
        let memory = self.memory.lock();
        let shown = memory.embargoes(now).map(|(app_name, held)| Embargo {
            app_name: app_name.clone(),
            left_seconds: held.until.saturating_since(now).as_secs_f64(),
            requested_by: held.requested_by.clone(),
            reason: held.reason.clone(),
        });
        shown.collect()
    }

    /// The receipt of this number.
    pub(in crate::tracker) fn receipt(&self, kill_id: u64) -> Result<Option<KillReceipt>> {
        let now = self.now();
        let found = self.read("reading a receipt", move |tables| kills::numbered(tables, kill_id, now))?;
        Ok(found.map(|mut receipt| {
            self.memory.lock().fill_in(&mut receipt);
            receipt.shown()
        }))
    }

    /// Receipts, newest first.
    pub(in crate::tracker) fn receipts(&self, query: ReceiptQuery) -> Result<Vec<KillReceipt>> {
        let now = self.now();
        let mut found = self.read("listing receipts", move |tables| kills::page(tables, &query, now))?;
        let memory = self.memory.lock();
        for receipt in &mut found {
            memory.fill_in(receipt);
        }
        drop(memory);
        Ok(found.iter().map(Receipt::shown).collect())
    }

    /// Sessions that are gone, newest first.
    pub(in crate::tracker) fn history(&self, query: HistoryQuery) -> Result<Vec<HistoryEntry>> {
        let now = self.now();
        self.read("listing the history", move |tables| history::page(tables, &query, now))
    }

    /// Notes what somebody was not let do. Does not wait for the disk.
    pub(in crate::tracker) fn note_forbidden(
        &self,
        action: AuditAction,
        whom: Option<Whom>,
        asked_by: Asker,
    ) {
        let write = Write::Forbidden { action, whom, asked_by: Box::new(asked_by) };
        let (reply, _) = bounded(1);
        self.writer.send(Command::Write { write, reply });
    }

    /// What operators have asked for, newest first.
    pub(in crate::tracker) fn audit(&self, query: AuditQuery) -> Result<Vec<AuditEntry>> {
        self.read("listing the audit", move |tables| audit::page(tables, &query))
    }

    /// Forgets what is in the history for longer than `age`, and all but the last `most`.
    pub(in crate::tracker) fn trim_history(&self, age: Duration, most: usize) -> Result<()> {
        self.write("trimming the history", Write::TrimHistory { age, most }).map(drop)
    }
}
