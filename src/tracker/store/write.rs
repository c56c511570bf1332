//! The changes: what each does to the tables, and to memory once it is on the disk.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::memory::Memory;
use crate::clock::{Moment, wall};
use crate::sync::Mutex;
use crate::tracker::api::SessionCreate;
use crate::tracker::{TrackedId, civil};

/// A change that is durable before anybody hears of it.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Register {
        id: TrackedId,
        session: Box<SessionCreate>,
    },
    Delete(TrackedId),
    Status {
        id: TrackedId,
        status: String,
        current_task: Option<String>,
        number: Option<i64>,
    },
    Kill(TrackedId),
    KillApp(String),
    /// Moves who was last seen at `seen_before` or earlier to the history.
    Purge {
        seen_before: Moment,
    },
    TrimHistory {
        age: Duration,
    },
}

/// What a change came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Whether there was such a session.
    Changed(bool),
    /// The sessions that were changed.
    Ids(Vec<TrackedId>),
}

/// What memory learns after the commit.
#[derive(Debug)]
pub(super) enum Lesson {
    Nothing,
    Registered { id: TrackedId, row: i64, kill_requested: bool },
    Gone(Vec<TrackedId>),
    Kill(Vec<TrackedId>),
}

impl Lesson {
    pub(super) fn teach(self, memory: &mut Memory) {
        match self {
            Lesson::Nothing => {}
            Lesson::Registered { id, row, kill_requested } => memory.insert(id, row, kill_requested),
            Lesson::Gone(ids) => {
                for id in &ids {
                    memory.remove(id);
                }
            }
            Lesson::Kill(ids) => {
                for id in &ids {
                    memory.set_kill(id);
                }
            }
        }
    }
}

impl Write {
    /// Changes the tables, inside a transaction.
    pub(super) fn apply(
        &self,
        connection: &Connection,
        memory: &Mutex<Memory>,
    ) -> rusqlite::Result<(Outcome, Lesson)> {
        match self {
            Write::Register { id, session } => register(connection, id, session),
            Write::Delete(id) => {
                let known = bury(connection, id, "ended")?;
                let gone = if known { Lesson::Gone(vec![id.clone()]) } else { Lesson::Nothing };
                Ok((Outcome::Changed(known), gone))
            }
            Write::Status { id, status, current_task, number } => {
                let known = set_status(connection, id, status, current_task.as_deref(), *number)?;
                Ok((Outcome::Changed(known), Lesson::Nothing))
            }
            Write::Kill(id) => {
                let known = connection
                    .prepare_cached("UPDATE sessions SET kill_requested = 1 WHERE session_id = ?")?
                    .execute([id.as_str()])?;
                Ok((Outcome::Changed(known > 0), Lesson::Kill(vec![id.clone()])))
            }
            Write::KillApp(app_name) => {
                let ids = connection
                    .prepare_cached(
                        "UPDATE sessions SET kill_requested = 1 WHERE app_name = ? RETURNING session_id",
                    )?
                    .query_map([app_name], |row| Ok(TrackedId::from(row.get::<_, String>(0)?)))?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                Ok((Outcome::Ids(ids.clone()), Lesson::Kill(ids)))
            }
            Write::Purge { seen_before } => {
                // Decided here and not by the caller: somebody may have beaten meanwhile.
                let mut ids = memory.lock().silent(*seen_before);
                ids.sort_unstable();
                for id in &ids {
                    bury(connection, id, "lost")?;
                }
                Ok((Outcome::Ids(ids.clone()), Lesson::Gone(ids)))
            }
            Write::TrimHistory { age } => {
                let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
                connection
                    .prepare_cached("DELETE FROM history WHERE end_time < ?")?
                    .execute([civil::millis(wall()).saturating_sub(age)])?;
                Ok((Outcome::Changed(true), Lesson::Nothing))
            }
        }
    }
}

/// Inserts, or updates what is there and keeps its start and its pending kill. Whoever was lost
/// with a pending kill gets it back.
fn register(
    connection: &Connection,
    id: &TrackedId,
    session: &SessionCreate,
) -> rusqlite::Result<(Outcome, Lesson)> {
    let now = civil::millis(wall());
    let uptime = session.uptime_seconds.unwrap_or(0.0).clamp(0.0, 1e9);
    #[allow(clippy::cast_possible_truncation, reason = "at most 10^12")]
    let start = now - (uptime * 1e3) as i64;
    let labels = (!session.labels.is_empty()).then(|| serde_json::json!(session.labels).to_string());
    let was_wanted: Option<bool> = connection
        .prepare_cached(
            "SELECT kill_requested AND outcome = 'lost' FROM history WHERE session_id = ?
             ORDER BY entry DESC LIMIT 1",
        )?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    let (row, kill_requested) = connection
        .prepare_cached(
            "INSERT INTO sessions (session_id, app_name, user_id, start_time, status, current_task,
                                   kill_requested, host, pid, labels)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (session_id) DO UPDATE SET
                app_name = excluded.app_name, user_id = excluded.user_id, status = excluded.status,
                current_task = excluded.current_task, status_number = NULL, host = excluded.host,
                pid = excluded.pid, labels = excluded.labels
             RETURNING row, kill_requested",
        )?
        .query_row(
            params![
                id.as_str(),
                session.app_name,
                session.user_id,
                start,
                session.status.as_deref().unwrap_or("idle"),
                session.current_task,
                was_wanted.unwrap_or(false),
                session.host,
                session.pid,
                labels,
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO beats (row, last_heartbeat) VALUES (?, ?)")?
        .execute([row, now])?;
    Ok((Outcome::Changed(true), Lesson::Registered { id: id.clone(), row, kill_requested }))
}

fn set_status(
    connection: &Connection,
    id: &TrackedId,
    status: &str,
    current_task: Option<&str>,
    number: Option<i64>,
) -> rusqlite::Result<bool> {
    let changed = connection
        .prepare_cached(
            "UPDATE sessions SET status = ?2, current_task = ?3, status_number = coalesce(?4, status_number)
             WHERE session_id = ?1 AND coalesce(status_number <= ?4, TRUE)",
        )?
        .execute(params![id.as_str(), status, current_task, number])?;
    if changed > 0 {
        return Ok(true);
    }
    connection.prepare_cached("SELECT 1 FROM sessions WHERE session_id = ?")?.exists([id.as_str()])
}

/// Moves a session to the history.
fn bury(connection: &Connection, id: &TrackedId, outcome: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "INSERT INTO history (session_id, app_name, user_id, start_time, last_heartbeat, end_time,
                                  outcome, status, current_task, kill_requested, host, pid, labels)
             SELECT session_id, app_name, user_id, start_time, coalesce(last_heartbeat, start_time), ?,
                    ?, status, current_task, kill_requested, host, pid, labels
             FROM sessions LEFT JOIN beats USING (row) WHERE session_id = ?",
        )?
        .execute(params![civil::millis(wall()), outcome, id.as_str()])?;
    connection
        .prepare_cached("DELETE FROM beats WHERE row = (SELECT row FROM sessions WHERE session_id = ?)")?
        .execute([id.as_str()])?;
    let deleted =
        connection.prepare_cached("DELETE FROM sessions WHERE session_id = ?")?.execute([id.as_str()])?;
    Ok(deleted > 0)
}
