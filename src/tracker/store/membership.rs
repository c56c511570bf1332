//! How sessions come to the list and leave it.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::kills::{self, Wish};
use super::memory::{Known, Memory};
use super::write::{Lesson, Moved, Now, Outcome};
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{EndReason, HEARTBEAT_INTERVAL, KillScope, SessionCreate};
use crate::tracker::events::Told;
use crate::tracker::life::{Interval, Verbs};

/// Inserts, or updates what is there and keeps its start and its pending kill. Whoever was lost
/// with a pending kill gets it back, and whoever is new to an app under embargo is killed at once.
pub(super) fn register(
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

/// Moves a session to the history and closes its receipt: confirmed if it left by itself (no
/// `reason`), else expired. Returns whether there was such a session.
pub(super) fn bury(
    connection: &Connection,
    memory: &Mutex<Memory>,
    id: &TrackedId,
    reason: Option<EndReason>,
    now: Now,
    told: &mut Told,
) -> rusqlite::Result<(bool, Option<Moved>)> {
    let found: Option<(bool, String, i64)> = connection
        .prepare_cached("SELECT kill_requested, app_name, row FROM sessions WHERE session_id = ?")?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((kill_requested, app_name, row)) = found else { return Ok((false, None)) };
    let last_beat = memory.lock().unwritten_beat(row);
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
             SELECT session_id, app_name, user_id, start_time, coalesce(?, last_heartbeat, start_time), ?,
                    ?, status, current_task, kill_requested, host, pid, labels, version, ?, ?
             FROM sessions LEFT JOIN beats USING (row) WHERE session_id = ?",
        )?
        .execute(params![last_beat, now.millis, outcome, why.as_str(), kill_id, id.as_str()])?;
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
