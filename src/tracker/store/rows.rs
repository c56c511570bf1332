//! Reading sessions: once when the store opens, then for every list.

use std::time::Duration;

use rusqlite::{Connection, Row};

use super::kills;
use super::memory::{Known, Memory};
use super::write::Now;
use crate::tracker::api::HEARTBEAT_INTERVAL;
use crate::tracker::life::{Interval, Thresholds, Verbs};
use crate::tracker::{TrackedId, TrackedSession, TrackedStatus, civil};

/// What memory starts with.
pub(super) fn load(connection: &Connection, now: Now) -> rusqlite::Result<Memory> {
    let count: i64 = connection.query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))?;
    let mut memory = Memory::with_room_for(usize::try_from(count).unwrap_or(0));
    let mut statement = connection.prepare(
        "SELECT session_id, sessions.row, coalesce(last_heartbeat, start_time), kill_requested, interval_ms,
                verbs, verbs_number, start_time, owner
         FROM sessions LEFT JOIN beats USING (row)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?.as_str()?;
        let kill_requested = row.get(3)?;
        let kill = if kill_requested { kills::last_one(connection, &id.into(), now)? } else { None };
        let interval: Option<i64> = row.get(4)?;
        let known = Known {
            row: row.get(1)?,
            start_millis: row.get(7)?,
            kill_requested,
            kill: kill.map(Box::new),
            interval: interval.map_or(Interval::of(HEARTBEAT_INTERVAL), |millis| {
                Interval::from_millis(u128::try_from(millis).unwrap_or(0))
            }),
            verbs: Verbs::from_bits(row.get(5)?),
            verbs_number: row.get(6)?,
            owner: row.get::<_, Option<String>>(8)?.and_then(|name| memory.owner(&name)),
        };
        memory.carry_over(id, known, row.get(2)?, now.moment);
    }
    for (app_name, held) in kills::embargoes(connection, now)? {
        memory.set_embargo(app_name, held);
    }
    Ok(memory)
}

/// A row as the disk has it.
pub(super) struct Stored {
    session: TrackedSession,
    start_millis: i64,
}

/// What is read of a session.
pub(super) const COLUMNS: &str = "session_id, app_name, user_id, start_time, status, current_task, kill_requested, \
                                  host, pid, labels, version, protected, row";
/// Where its start stands there, and its row.
pub(super) const START: usize = 3;
pub(super) const ROW: usize = 12;

/// All rows, newest first. What beats touch is filled in by [`complete`].
pub(super) fn list(connection: &Connection) -> rusqlite::Result<Vec<Stored>> {
    let query = format!("SELECT {COLUMNS} FROM sessions ORDER BY start_time DESC, row DESC");
    connection.prepare_cached(&query)?.query_map([], stored)?.collect()
}

/// A row of [`COLUMNS`].
pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let start_millis = row.get(START)?;
    let labels: Option<String> = row.get(9)?;
    let session = TrackedSession {
        session_id: TrackedId::from(row.get::<_, String>(0)?),
        app_name: row.get(1)?,
        user_id: row.get(2)?,
        start_time: civil::rfc3339(start_millis),
        last_heartbeat: String::new(),
        duration_seconds: 0.0,
        status: TrackedStatus::from(row.get::<_, String>(4)?),
        current_task: row.get(5)?,
        is_stale: false,
        kill_requested: row.get(6)?,
        beat_age_seconds: None,
        host: row.get(7)?,
        pid: row.get(8)?,
        labels: labels.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        attached: std::collections::BTreeMap::new(),
        state: None,
        version: row.get(10)?,
        progress: None,
        memory_bytes: None,
        verbs: Vec::new(),
        protected: row.get(11)?,
        kill: None,
    };
    Ok(Stored { session, start_millis })
}

/// Adds what memory knows; `None` for a session that has just gone.
pub(super) fn complete(
    stored: Stored,
    memory: &Memory,
    thresholds: Thresholds,
    now: Now,
) -> Option<TrackedSession> {
    let Stored { mut session, start_millis } = stored;
    let Now { moment: now, millis: now_millis } = now;
    let ran = Duration::from_millis(u64::try_from(now_millis.saturating_sub(start_millis)).unwrap_or(0));
    let live = memory.get(&session.session_id)?;
    session.last_heartbeat = civil::rfc3339(live.seen_millis());
    session.duration_seconds = ran.as_secs_f64();
    session.beat_age_seconds = Some(live.beat_age(now, now_millis).as_secs_f64());
    let (silence, interval) = (live.silence(now), live.pace());
    session.is_stale = thresholds.is_stale(silence, interval);
    session.state = Some(thresholds.state(silence, interval, &session.status));
    if session.is_stale {
        session.status = TrackedStatus::Stale;
    }
    if let Some(said) = live.said() {
        session.attached.clone_from(&said.attached);
        (session.progress, session.memory_bytes) = (said.progress, said.memory_bytes);
    }
    session.verbs = live.verbs().words();
    session.kill = live.kill();
    Some(session)
}
