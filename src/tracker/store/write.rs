//! The changes: what each does to the tables, and to memory once it is on the disk.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::audit::{self, Asked, Deed};
use super::kills::{self, KillOrder, Target};
use super::looks;
use super::membership::{bury, register};
use super::memory::{Held, Known, Memory};
use crate::clock::Moment;
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    Asker, AuditAction, AuditResult, EndReason, KillAcknowledgement, KillReceipt, KillScope, MAX_EMBARGO,
    SessionCreate, Verb, Whom,
};
use crate::tracker::events::{At, Told};
use crate::tracker::life::{Gone, Verbs};
use crate::tracker::preview::generation;
use crate::tracker::receipts::{Passed, Receipt};

/// A change that is durable before anybody hears of it.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// Refused if somebody else has a session with this id.
    Register {
        id: TrackedId,
        owner: Option<String>,
        session: Box<SessionCreate>,
    },
    Delete {
        id: TrackedId,
        /// Who asked, if it is not the session itself.
        asked_by: Option<Box<Asker>>,
    },
    Status {
        id: TrackedId,
        status: String,
        current_task: Option<String>,
        number: Option<i64>,
    },
    Kill {
        whom: Whom,
        order: Box<KillOrder>,
    },
    /// What a client says of a kill.
    Acknowledge {
        id: TrackedId,
        word: KillAcknowledgement,
    },
    /// Gives up waiting for kills that were requested at `before` or earlier.
    ExpireKills {
        before: Moment,
    },
    Order {
        whom: Whom,
        verb: Verb,
        asked_by: Option<Box<Asker>>,
    },
    /// Moves who has been silent for `older_than` to the history.
    Purge {
        older_than: Duration,
        reason: EndReason,
        asked_by: Option<Box<Asker>>,
    },
    /// Notes what somebody was not let do.
    Forbidden {
        action: AuditAction,
        whom: Option<Whom>,
        asked_by: Box<Asker>,
    },
    /// Forgets what ended before that time, and of the rest all but the last ones.
    TrimHistory {
        age: Duration,
        most: usize,
    },
}

/// The time of a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// What ages are decided by.
    pub(super) moment: Moment,
    /// What is shown.
    pub(super) millis: i64,
}

/// What a change came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Whether there was such a session.
    Changed(bool),
    /// The sessions that were changed.
    Ids(Vec<TrackedId>),
    Kills(Result<Killed, NotKilled>),
}

/// Whom a kill has hit.
#[derive(Debug)]
pub(in crate::tracker) struct Killed {
    pub(in crate::tracker) receipts: Vec<KillReceipt>,
    pub(in crate::tracker) protected: Vec<TrackedId>,
}

/// Why a kill has hit nobody.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tracker) enum NotKilled {
    /// There is no session with this id.
    Unknown,
    /// The session is protected.
    Protected,
    /// The sessions are not those that the operator has seen.
    StaleGeneration,
}

/// A receipt that has moved on, and through which steps.
pub(super) type Moved = (Receipt, Vec<Passed>);

/// What memory learns after the commit.
#[derive(Debug)]
pub(super) enum Lesson {
    Nothing,
    Registered { id: TrackedId, known: Known, number: Option<u64>, opened: Option<KillScope>, now: Moment },
    Gone { ids: Vec<TrackedId>, how: Gone, closed: Vec<Moved> },
    Killed { opened: Vec<Receipt>, embargo: Option<(String, Held)> },
    MovedOn(Vec<Moved>),
    Verbs(Vec<(TrackedId, Verbs, u32)>),
}

impl Lesson {
    pub(super) fn teach(self, memory: &mut Memory) {
        match self {
            Lesson::Nothing => {}
            Lesson::Registered { id, known, number, opened, now } => {
                memory.insert(&id, known, number, now);
                if let Some(scope) = opened {
                    memory.count_opened(scope);
                }
            }
            Lesson::Gone { ids, how, closed } => {
                for (receipt, passed) in closed {
                    memory.moved_on(receipt, &passed);
                }
                for id in &ids {
                    memory.remove(id, how);
                }
            }
            Lesson::Killed { opened, embargo } => {
                for receipt in opened {
                    memory.opened(receipt);
                }
                if let Some((app_name, held)) = embargo {
                    memory.set_embargo(app_name, held);
                }
            }
            Lesson::MovedOn(receipts) => {
                for (receipt, passed) in receipts {
                    memory.moved_on(receipt, &passed);
                }
            }
            Lesson::Verbs(changes) => {
                for (id, verbs, number) in changes {
                    memory.set_verbs(&id, verbs, number);
                }
            }
        }
    }
}

impl Now {
    pub(super) fn at(self) -> At {
        At { millis: self.millis }
    }
}

impl Write {
    /// Changes the tables, inside a transaction. Adds to `told` what there is to tell after the commit.
    pub(super) fn apply(
        &self,
        connection: &Connection,
        memory: &Mutex<Memory>,
        now: Now,
        told: &mut Told,
    ) -> rusqlite::Result<(Outcome, Lesson)> {
        match self {
            Write::Register { id, owner, session } => {
                register(connection, memory, (id, owner.as_deref()), session, now, told)
            }
            Write::Delete { id, asked_by } => {
                let (known, closed) = bury(connection, memory, id, None, now, told)?;
                if asked_by.is_some() {
                    let result = if known { AuditResult::Done } else { AuditResult::Unknown };
                    let whom = Whom::Session(id.clone());
                    let deed = Deed { action: AuditAction::Remove, whom: Some(&whom), result };
                    let hit = known.then_some(id);
                    audit::note(connection, deed, by(asked_by.as_deref()), hit.into_iter(), now)?;
                }
                let ids = if known { vec![id.clone()] } else { Vec::new() };
                let gone = Lesson::Gone { ids, how: Gone::Ended, closed: closed.into_iter().collect() };
                Ok((Outcome::Changed(known), gone))
            }
            Write::Status { id, status, current_task, number } => {
                let current_task = current_task.as_deref();
                let changed = set_status(connection, id, status, current_task, *number)?;
                if let Some(app_name) = &changed {
                    told.push(now.at().status(id, app_name, status, current_task));
                }
                let known = changed.is_some() || is_known(connection, id)?;
                Ok((Outcome::Changed(known), Lesson::Nothing))
            }
            Write::Kill { whom, order } => kill(connection, memory, whom, order, now, told),
            Write::Acknowledge { id, word } => {
                let receipt = kills::open_one(connection, memory, id, now)?;
                let Some(mut receipt) = receipt.filter(|receipt| receipt.kill_id == word.kill_id) else {
                    return Ok((Outcome::Changed(false), Lesson::Nothing));
                };
                let passed = receipt.acknowledge(word.step, now.moment);
                kills::save(connection, &receipt)?;
                told.extend(now.at().kill_passed(&receipt, &passed));
                Ok((Outcome::Changed(true), Lesson::MovedOn(vec![(receipt, passed)])))
            }
            Write::ExpireKills { before } => {
                let ids = memory.lock().unconfirmed(*before);
                let mut moved = Vec::new();
                for id in &ids {
                    let receipt = kills::open_one(connection, memory, id, now)?;
                    if let Some(mut receipt) = receipt {
                        let passed = receipt.expire(now.moment);
                        kills::save(connection, &receipt)?;
                        told.extend(now.at().kill_passed(&receipt, &passed));
                        moved.push((receipt, passed));
                    }
                }
                Ok((Outcome::Ids(ids), Lesson::MovedOn(moved)))
            }
            Write::Order { whom, verb, asked_by } => {
                give_order(connection, whom, *verb, asked_by.as_deref(), now, told)
            }
            Write::Purge { older_than, reason, asked_by } => {
                // Decided here and not by the caller: somebody may have beaten meanwhile.
                let (mut ids, mut closed) = (Vec::new(), Vec::new());
                for row in looks::silent(memory, *older_than, now.moment) {
                    // One that this transaction has removed is known to memory still.
                    let Some(id) = id_of(connection, row)? else { continue };
                    closed.extend(bury(connection, memory, &id, Some(*reason), now, told)?.1);
                    ids.push(id);
                }
                // The ancestors' pages ask all the time: what hits nobody is not worth an entry.
                if *reason == EndReason::CleanedUp && !ids.is_empty() {
                    let deed = Deed { action: AuditAction::CleanUp, whom: None, result: AuditResult::Done };
                    audit::note(connection, deed, by(asked_by.as_deref()), ids.iter(), now)?;
                }
                Ok((Outcome::Ids(ids.clone()), Lesson::Gone { ids, how: Gone::Lost, closed }))
            }
            Write::Forbidden { action, whom, asked_by } => {
                let deed = Deed { action: *action, whom: whom.as_ref(), result: AuditResult::Forbidden };
                audit::note(connection, deed, by(Some(&**asked_by)), std::iter::empty(), now)?;
                Ok((Outcome::Changed(true), Lesson::Nothing))
            }
            Write::TrimHistory { age, most } => {
                trim(connection, *age, *most, now)?;
                Ok((Outcome::Changed(true), Lesson::Nothing))
            }
        }
    }
}

/// Who asks, and says nothing of it.
fn by(asked_by: Option<&Asker>) -> Asked<'_> {
    Asked { by: asked_by, ..Asked::default() }
}

/// Asks whoever is meant to stop; who has an open receipt keeps it.
fn kill(
    connection: &Connection,
    memory: &Mutex<Memory>,
    whom: &Whom,
    order: &KillOrder,
    now: Now,
    told: &mut Told,
) -> rusqlite::Result<(Outcome, Lesson)> {
    let deed = |result| Deed { action: AuditAction::Kill, whom: Some(whom), result };
    let refused = |why| {
        let result = match why {
            NotKilled::Unknown => AuditResult::Unknown,
            NotKilled::Protected => AuditResult::Protected,
            NotKilled::StaleGeneration => AuditResult::StaleGeneration,
        };
        audit::note(connection, deed(result), order.asked(), std::iter::empty(), now)?;
        Ok((Outcome::Kills(Err(why)), Lesson::Nothing))
    };
    let (scope, single) = match whom {
        Whom::Session(_) => (KillScope::Session, true),
        Whom::App(_) => (KillScope::App, false),
        Whom::Label { .. } => (KillScope::Label, false),
    };
    let meant = kills::targets(connection, whom)?;
    if single && meant.is_empty() {
        return refused(NotKilled::Unknown);
    }
    let (spared, hit): (Vec<Target>, Vec<Target>) =
        meant.into_iter().partition(|target| target.protected && !(single && order.force));
    if single && hit.is_empty() {
        return refused(NotKilled::Protected);
    }
    if order.generation.as_ref().is_some_and(|seen| *seen != generation(hit.iter().map(|target| &target.id)))
    {
        return refused(NotKilled::StaleGeneration);
    }
    let (mut receipts, mut opened) = (Vec::new(), Vec::new());
    for target in &hit {
        connection
            .prepare_cached("UPDATE sessions SET kill_requested = 1 WHERE session_id = ?")?
            .execute([target.id.as_str()])?;
        let open = kills::open_one(connection, memory, &target.id, now)?;
        if let Some(open) = open {
            receipts.push(open.shown());
            continue;
        }
        let receipt = kills::open(connection, (&target.id, &target.app_name), scope, order.asked(), now)?;
        receipts.push(receipt.shown());
        told.push(now.at().kill_requested(&receipt));
        opened.push(receipt);
    }
    let embargo = match (whom, order.embargo) {
        (Whom::App(app_name), Some(lasts)) => {
            let asked = (order.requested_by.as_ref(), order.reason.as_ref());
            told.push(now.at().embargo(app_name, lasts.min(MAX_EMBARGO), asked));
            Some((app_name.clone(), kills::lay_embargo(connection, app_name, lasts, order, now)?))
        }
        _ => None,
    };
    let ids = hit.iter().map(|target| &target.id);
    audit::note(connection, deed(AuditResult::Done), order.asked(), ids, now)?;
    let protected = spared.into_iter().map(|target| target.id).collect();
    Ok((Outcome::Kills(Ok(Killed { receipts, protected })), Lesson::Killed { opened, embargo }))
}

/// Changes what whoever is meant is ordered to do. A verb that changes nothing counts nothing up.
fn give_order(
    connection: &Connection,
    whom: &Whom,
    verb: Verb,
    asked_by: Option<&Asker>,
    now: Now,
    told: &mut Told,
) -> rusqlite::Result<(Outcome, Lesson)> {
    let meant = kills::targets(connection, whom)?;
    let mut changes = Vec::new();
    for Target { id, app_name, protected } in &meant {
        let mut tell = || told.push(now.at().ordered(id, app_name, verb));
        if let Verb::Protect | Verb::Unprotect = verb {
            let protect = verb == Verb::Protect;
            connection
                .prepare_cached("UPDATE sessions SET protected = ?2 WHERE session_id = ?1")?
                .execute(params![id.as_str(), protect])?;
            if protect != *protected {
                tell();
            }
            continue;
        }
        let (bits, number): (u8, u32) = connection
            .prepare_cached("SELECT verbs, verbs_number FROM sessions WHERE session_id = ?")?
            .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let before = Verbs::from_bits(bits);
        let after = match verb {
            Verb::Pause => Verbs { pause: true, ..before },
            Verb::Drain => Verbs { drain: true, ..before },
            _ => Verbs::default(),
        };
        if after == before {
            continue;
        }
        let number = number.saturating_add(1);
        connection
            .prepare_cached("UPDATE sessions SET verbs = ?2, verbs_number = ?3 WHERE session_id = ?1")?
            .execute(params![id.as_str(), after.bits(), number])?;
        tell();
        changes.push((id.clone(), after, number));
    }
    let meant: Vec<TrackedId> = meant.into_iter().map(|target| target.id).collect();
    let is_unknown = meant.is_empty() && matches!(whom, Whom::Session(_));
    let result = if is_unknown { AuditResult::Unknown } else { AuditResult::Done };
    let deed = Deed { action: verb.into(), whom: Some(whom), result };
    audit::note(connection, deed, by(asked_by), meant.iter(), now)?;
    Ok((Outcome::Ids(meant), Lesson::Verbs(changes)))
}

fn trim(connection: &Connection, age: Duration, most: usize, now: Now) -> rusqlite::Result<()> {
    let since = now.millis.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "DELETE FROM history WHERE end_time < ?1 OR entry <= (SELECT max(entry) FROM history) - ?2",
        )?
        .execute([since, most])?;
    connection
        .prepare_cached(
            "DELETE FROM kills WHERE outcome IS NOT NULL
                AND (requested_at < ?1 OR kill_id <= (SELECT max(kill_id) FROM kills) - ?2)",
        )?
        .execute([since, most])?;
    connection.prepare_cached("DELETE FROM embargoes WHERE until < ?")?.execute([now.millis])?;
    audit::trim(connection, now)
}

/// Returns the session's app; nothing if there is no such session, or the status comes late.
fn set_status(
    connection: &Connection,
    id: &TrackedId,
    status: &str,
    current_task: Option<&str>,
    number: Option<i64>,
) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached(
            "UPDATE sessions SET status = ?2, current_task = ?3, status_number = coalesce(?4, status_number)
             WHERE session_id = ?1 AND coalesce(status_number <= ?4, TRUE)
             RETURNING app_name",
        )?
        .query_row(params![id.as_str(), status, current_task, number], |row| row.get(0))
        .optional()
}

fn is_known(connection: &Connection, id: &TrackedId) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM sessions WHERE session_id = ?")?.exists([id.as_str()])
}

fn id_of(connection: &Connection, row: i64) -> rusqlite::Result<Option<TrackedId>> {
    let mut statement = connection.prepare_cached("SELECT session_id FROM sessions WHERE row = ?")?;
    statement.query_row([row], |row| row.get::<_, String>(0)).optional().map(|id| id.map(TrackedId::from))
}
