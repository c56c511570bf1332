//! Reading what became of the sessions that are gone.

use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::kills;
use super::write::Now;
use crate::tracker::api::{EndReason, HistoryEntry, HistoryQuery};
use crate::tracker::{TrackedId, TrackedStatus, civil};

/// Entries, newest first.
pub(super) fn page(
    connection: &Connection,
    query: &HistoryQuery,
    now: Now,
) -> rusqlite::Result<Vec<HistoryEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT entry, session_id, app_name, user_id, start_time, last_heartbeat, end_time, outcome, reason,
                status, current_task, kill_requested, host, pid, version, kill_id
         FROM history
         WHERE entry < ?1 AND (?2 IS NULL OR app_name = ?2) AND (?3 IS NULL OR session_id = ?3)
         ORDER BY entry DESC LIMIT ?4",
    )?;
    let before = query.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let session = query.session.as_ref().map(TrackedId::as_str);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![before, query.app, session, limit], |row| {
        Ok((entry(row)?, row.get::<_, Option<i64>>(15)?))
    })?;
    let mut entries = Vec::new();
    for row in rows {
        let (mut entry, kill_id) = row?;
        if let Some(kill_id) = kill_id.and_then(|kill_id| u64::try_from(kill_id).ok()) {
            entry.kill = kills::numbered(connection, kill_id, now)?.map(|receipt| receipt.shown());
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<HistoryEntry> {
    let (start, end): (i64, i64) = (row.get(4)?, row.get(6)?);
    let ran = Duration::from_millis(u64::try_from(end.saturating_sub(start)).unwrap_or(0));
    Ok(HistoryEntry {
        entry: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        session_id: TrackedId::from(row.get::<_, String>(1)?),
        app_name: row.get(2)?,
        user_id: row.get(3)?,
        start_time: civil::rfc3339(start),
        last_heartbeat: civil::rfc3339(row.get(5)?),
        end_time: civil::rfc3339(end),
        duration_seconds: ran.as_secs_f64(),
        outcome: TrackedStatus::from(row.get::<_, String>(7)?),
        reason: row.get::<_, Option<String>>(8)?.and_then(|word| reason(&word)),
        status: TrackedStatus::from(row.get::<_, String>(9)?),
        current_task: row.get(10)?,
        kill_requested: row.get(11)?,
        kill: None,
        host: row.get(12)?,
        pid: row.get(13)?,
        version: row.get(14)?,
    })
}

fn reason(word: &str) -> Option<EndReason> {
    [EndReason::Left, EndReason::Killed, EndReason::Silent, EndReason::CleanedUp]
        .into_iter()
        .find(|reason| reason.as_str() == word)
}
