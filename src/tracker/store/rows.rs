//! Reading sessions: once when the store opens, then for every list.

use std::time::Duration;

use rusqlite::{Connection, Row};

use super::memory::Memory;
use crate::clock::{Moment, wall};
use crate::tracker::{TrackedId, TrackedSession, TrackedStatus, civil};

/// What memory starts with.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Memory> {
    let mut memory = Memory::default();
    let now = Moment::now();
    let mut statement = connection.prepare(
        "SELECT session_id, sessions.row, coalesce(last_heartbeat, start_time), kill_requested
         FROM sessions LEFT JOIN beats USING (row)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = TrackedId::from(row.get::<_, String>(0)?);
        memory.carry_over(id, row.get(1)?, row.get(2)?, row.get(3)?, now);
    }
    Ok(memory)
}

/// A row as the disk has it.
pub(super) struct Stored {
    session: TrackedSession,
    start_millis: i64,
}

/// All rows, newest first. What beats touch is filled in by [`complete`].
pub(super) fn list(connection: &Connection) -> rusqlite::Result<Vec<Stored>> {
    let mut statement = connection.prepare_cached(
        "SELECT session_id, app_name, user_id, start_time, status, current_task, kill_requested,
                host, pid, labels
         FROM sessions ORDER BY start_time DESC, row DESC",
    )?;
    statement.query_map([], stored)?.collect()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let start_millis = row.get(3)?;
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
    };
    Ok(Stored { session, start_millis })
}

/// Adds what memory knows. A row that memory does not know has just been deleted.
pub(super) fn complete(rows: Vec<Stored>, memory: &Memory, stale_after: Duration) -> Vec<TrackedSession> {
    let (now, now_millis) = (Moment::now(), civil::millis(wall()));
    let seconds = |millis: i64| Duration::from_millis(u64::try_from(millis).unwrap_or(0)).as_secs_f64();
    rows.into_iter()
        .filter_map(|Stored { mut session, start_millis }| {
            let live = memory.get(&session.session_id)?;
            session.last_heartbeat = civil::rfc3339(live.seen_millis());
            session.duration_seconds = seconds(now_millis.saturating_sub(start_millis));
            session.beat_age_seconds = Some(live.beat_age(now, now_millis).as_secs_f64());
            session.is_stale = live.silence(now) >= stale_after;
            if session.is_stale {
                session.status = TrackedStatus::Stale;
            }
            session.attached.clone_from(live.attached());
            Some(session)
        })
        .collect()
}
