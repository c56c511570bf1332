//! What operators have asked for, in its table.

use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::write::Now;
use crate::tracker::api::{Asker, AuditAction, AuditEntry, AuditQuery, AuditResult, Whom};
use crate::tracker::{TrackedId, civil};

/// So many of the sessions that were hit are named.
const NAMED: usize = 100;
/// How long entries are kept, and how many.
const KEPT: Duration = Duration::from_secs(365 * 24 * 3_600);
const MOST: i64 = 100_000;

/// Who asks for something, and what he says of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) by: Option<&'a Asker>,
    pub(super) requested_by: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
}

/// What he asked for, and what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deed<'a> {
    pub(super) action: AuditAction,
    /// Nobody in particular: all who are silent.
    pub(super) whom: Option<&'a Whom>,
    pub(super) result: AuditResult,
}

/// Who asked, for a column.
pub(super) fn column(by: Option<&Asker>) -> Option<String> {
    by.and_then(|by| serde_json::to_string(by).ok())
}

/// Who asked, from its column.
pub(super) fn asker(column: Option<String>) -> Option<Asker> {
    column.and_then(|json| serde_json::from_str(&json).ok())
}

/// Adds an entry, in the transaction of what it tells of.
pub(super) fn note<'a>(
    connection: &Connection,
    deed: Deed<'_>,
    asked: Asked<'_>,
    hit: impl Iterator<Item = &'a TrackedId> + Clone,
    now: Now,
) -> rusqlite::Result<()> {
    let (session, app, label) = match deed.whom {
        Some(Whom::Session(id)) => (Some(id.as_str()), None, None),
        Some(Whom::App(name)) => (None, Some(name), None),
        Some(Whom::Label { key, value }) => (None, None, Some(format!("{key}={value}"))),
        None => (None, None, None),
    };
    let sessions = i64::try_from(hit.clone().count()).unwrap_or(i64::MAX);
    let named: Vec<&TrackedId> = hit.take(NAMED).collect();
    let named = (!named.is_empty()).then(|| serde_json::json!(named).to_string());
    connection
        .prepare_cached(
            "INSERT INTO audit (time, action, session_id, app_name, label, asked, requested_by, reason,
                                result, sessions, session_ids)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            now.millis,
            deed.action.as_str(),
            session,
            app,
            label,
            column(asked.by),
            asked.requested_by,
            asked.reason,
            deed.result.as_str(),
            sessions,
            named,
        ])?;
    Ok(())
}

/// Entries, newest first.
pub(super) fn page(connection: &Connection, query: &AuditQuery) -> rusqlite::Result<Vec<AuditEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT entry, time, action, session_id, app_name, label, asked, requested_by, reason, result, sessions,
                session_ids
         FROM audit
         WHERE entry < ?1 AND (?2 IS NULL OR action = ?2) AND (?3 IS NULL OR asked ->> 'token' = ?3)
         ORDER BY entry DESC LIMIT ?4",
    )?;
    let before = query.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let action = query.action.map(AuditAction::as_str);
    statement.query_map(params![before, action, query.token, limit], entry)?.collect()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let (action, result): (String, String) = (row.get(2)?, row.get(9)?);
    let named: Option<String> = row.get(11)?;
    Ok(AuditEntry {
        entry: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        time: civil::rfc3339(row.get(1)?),
        // Words that this version does not know are in no table that it opens.
        action: AuditAction::named(&action).unwrap_or(AuditAction::Kill),
        result: AuditResult::named(&result).unwrap_or(AuditResult::Done),
        session_id: row.get::<_, Option<String>>(3)?.map(TrackedId::from),
        app_name: row.get(4)?,
        label: row.get(5)?,
        asked_by: asker(row.get(6)?),
        requested_by: row.get(7)?,
        reason: row.get(8)?,
        sessions: u64::try_from(row.get::<_, i64>(10)?).unwrap_or_default(),
        session_ids: named.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
    })
}

/// Forgets what is old, and of the rest all but the last entries.
pub(super) fn trim(connection: &Connection, now: Now) -> rusqlite::Result<()> {
    let since = now.millis.saturating_sub(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX));
    connection
        .prepare_cached("DELETE FROM audit WHERE time < ?1 OR entry <= (SELECT max(entry) FROM audit) - ?2")?
        .execute([since, MOST])?;
    Ok(())
}
