//! The changes: what each does to the tables, and to memory once it is on the disk.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::audit::{self, Asked, Deed};
use super::kills::{self, KillOrder, Target, Wish};
use super::looks;
use super::memory::{Held, Known, Memory};
use crate::clock::Moment;
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    Asker, AuditAction, AuditResult, EndReason, HEARTBEAT_INTERVAL, KillAcknowledgement, KillReceipt,
    KillScope, MAX_EMBARGO, SessionCreate, Verb, Whom,
};
use crate::tracker::events::{At, Told};
use crate::tracker::life::{Gone, Interval, Verbs};
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
type Moved = (Receipt, Vec<Passed>);

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
    fn at(self) -> At {
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

/// Inserts, or updates what is there and keeps its start and its pending kill. Whoever was lost
/// with a pending kill gets it back, and whoever is new to an app under embargo is killed at once.
fn register(
    connection: &Connection,
    memory: &Mutex<Memory>,
    (id, owner): (&TrackedId, Option<&str>),
    session: &SessionCreate,
    now: Now,
    told: &mut Told,
) -> rusqlite::Result<(Outcome, Lesson)> {
    let uptime = session.uptime_seconds.unwrap_or(0.0).clamp(0.0, 1e9);
    #[allow(clippy::cast_possible_truncation, reason = "at most 10^12")]
    let start = now.millis - (uptime * 1e3) as i64;
    let interval = session.interval_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let interval = interval.unwrap_or(HEARTBEAT_INTERVAL);
    let labels = (!session.labels.is_empty()).then(|| serde_json::json!(session.labels).to_string());
    let before: Option<Option<String>> = connection
        .prepare_cached("SELECT owner FROM sessions WHERE session_id = ?")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    let is_new = before.is_none();
    // What belongs to nobody yet was registered before there were tokens.
    if let (Some(Some(before)), Some(owner)) = (&before, owner)
        && before != owner
    {
        return Ok((Outcome::Changed(false), Lesson::Nothing));
    }
    let wanted = if is_new { wanted(connection, memory, id, session, now)? } else { None };
    let (row, start_millis, kill_requested, bits, verbs_number, owner) = connection
        .prepare_cached(
            "INSERT INTO sessions (session_id, app_name, user_id, start_time, status, current_task,
                                   kill_requested, host, pid, labels, version, interval_ms, protected, owner)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (session_id) DO UPDATE SET
                app_name = excluded.app_name, user_id = excluded.user_id, status = excluded.status,
                current_task = excluded.current_task, status_number = NULL, host = excluded.host,
                pid = excluded.pid, labels = excluded.labels, version = excluded.version,
                interval_ms = excluded.interval_ms, protected = max(protected, excluded.protected),
                owner = coalesce(owner, excluded.owner)
             RETURNING row, start_time, kill_requested, verbs, verbs_number, owner",
        )?
        .query_row(
            params![
                id.as_str(),
                session.app_name,
                session.user_id,
                start,
                session.status.as_deref().unwrap_or("idle"),
                session.current_task,
                wanted.is_some(),
                session.host,
                session.pid,
                labels,
                session.version,
                i64::try_from(interval.as_millis()).unwrap_or(i64::MAX),
                session.protected,
                owner,
            ],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get::<_, bool>(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get::<_, Option<String>>(5)?,
                ))
            },
        )?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO beats (row, last_heartbeat) VALUES (?, ?)")?
        .execute([row, now.millis])?;
    let kill = match wanted {
        Some((scope, wish)) => {
            Some(kills::open(connection, (id, &session.app_name), scope, wish.asked(), now)?)
        }
        None if kill_requested => {
            let open = kills::open_one(connection, memory, id, now)?;
            if open.is_some() { open } else { kills::last_one(connection, id, now)? }
        }
        None => None,
    };
    told.push(now.at().registered(id, session));
    let opened = kill.as_ref().filter(|_| is_new);
    told.extend(opened.map(|receipt| now.at().kill_requested(receipt)));
    let opened = opened.map(|receipt| receipt.scope);
    let known = Known {
        row,
        start_millis,
        kill_requested,
        kill: kill.map(Box::new),
        interval: Interval::of(interval),
        verbs: Verbs::from_bits(bits),
        verbs_number,
        owner: owner.and_then(|name| memory.lock().owner(&name)),
    };
    let (id, number) = (id.clone(), session.beat_number);
    Ok((Outcome::Changed(true), Lesson::Registered { id, known, number, opened, now: now.moment }))
}

/// Why a session that is new to the list shall stop at once, if it shall.
fn wanted(
    connection: &Connection,
    memory: &Mutex<Memory>,
    id: &TrackedId,
    session: &SessionCreate,
    now: Now,
) -> rusqlite::Result<Option<(KillScope, Wish)>> {
    let was_wanted: Option<bool> = connection
        .prepare_cached(
            "SELECT kill_requested AND outcome = 'lost' FROM history WHERE session_id = ?
             ORDER BY entry DESC LIMIT 1",
        )?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    if was_wanted == Some(true) {
        let last = kills::last_one(connection, id, now)?;
        let wish = last.map_or_else(Wish::default, |last| Wish {
            asked_by: last.asked_by.map(|asker| *asker),
            requested_by: last.requested_by,
            reason: last.reason,
        });
        return Ok(Some((KillScope::Returned, wish)));
    }
    if session.protected {
        return Ok(None);
    }
    let laid = kills::embargo(connection, &session.app_name)?;
    let laid = laid.filter(|laid| memory.lock().is_on(&session.app_name, laid.until_millis, now.moment));
    Ok(laid.map(|laid| (KillScope::Embargo, laid.wish)))
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

/// Moves a session to the history and closes its receipt: confirmed if it left by itself (no
/// `reason`), else expired. Returns whether there was such a session.
fn bury(
    connection: &Connection,
    memory: &Mutex<Memory>,
    id: &TrackedId,
    reason: Option<EndReason>,
    now: Now,
    told: &mut Told,
) -> rusqlite::Result<(bool, Option<Moved>)> {
    let found: Option<(bool, String)> = connection
        .prepare_cached("SELECT kill_requested, app_name FROM sessions WHERE session_id = ?")?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((kill_requested, app_name)) = found else { return Ok((false, None)) };
    let last = if kill_requested { kills::last_one(connection, id, now)? } else { None };
    let open = if kill_requested { kills::open_one(connection, memory, id, now)? } else { None };
    let was_told =
        open.as_ref().or(last.as_ref()).is_some_and(|kill| kill.told > 0 || kill.delivered.is_some());
    let outcome = if reason.is_some() { "lost" } else { "ended" };
    let why = reason.unwrap_or(if was_told { EndReason::Killed } else { EndReason::Left });
    let kill_id = last.map(|last| i64::try_from(last.kill_id).unwrap_or(i64::MAX));
    connection
        .prepare_cached(
            "INSERT INTO history (session_id, app_name, user_id, start_time, last_heartbeat, end_time,
                                  outcome, status, current_task, kill_requested, host, pid, labels,
                                  version, reason, kill_id)
             SELECT session_id, app_name, user_id, start_time, coalesce(last_heartbeat, start_time), ?,
                    ?, status, current_task, kill_requested, host, pid, labels, version, ?, ?
             FROM sessions LEFT JOIN beats USING (row) WHERE session_id = ?",
        )?
        .execute(params![now.millis, outcome, why.as_str(), kill_id, id.as_str()])?;
    connection
        .prepare_cached("DELETE FROM beats WHERE row = (SELECT row FROM sessions WHERE session_id = ?)")?
        .execute([id.as_str()])?;
    connection.prepare_cached("DELETE FROM sessions WHERE session_id = ?")?.execute([id.as_str()])?;
    let closed = open.map(|mut receipt| {
        let passed = if reason.is_some() { receipt.expire(now.moment) } else { receipt.leave(now.moment) };
        (receipt, passed)
    });
    if let Some((receipt, passed)) = &closed {
        kills::save(connection, receipt)?;
        told.extend(now.at().kill_passed(receipt, passed));
    }
    told.push(now.at().ended(id, &app_name, why));
    Ok((true, closed))
}
