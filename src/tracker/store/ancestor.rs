//! Taking over a database of the Python ancestor.
//!
//! It has one table `sessions` without a version. Its columns are known, how it writes times is
//! not: texts in ISO 8601, with or without an offset, and epoch seconds all occur in such code and
//! are all read. The old table stays in the file under another name.

use std::collections::HashMap;

use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, params};

use crate::clock::wall;
use crate::tracker::{TrackedId, civil};

const ASIDE: &str = "ancestor_sessions";

/// The columns that the old table has.
pub(super) struct Ancestor {
    columns: Vec<String>,
}

/// Whether there are tables, and they are not the ancestor's: other programs have a table `sessions`
/// too, and would miss it.
pub(super) fn is_of_another_program(connection: &Connection) -> rusqlite::Result<bool> {
    let tables: i64 = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        [],
        |row| row.get(0),
    )?;
    let known: i64 = connection.query_row(
        "SELECT count(*) FROM pragma_table_info('sessions') WHERE lower(name) IN ('session_id', 'app_name')",
        [],
        |row| row.get(0),
    )?;
    Ok(tables > 0 && known < 2)
}

/// Renames an older `sessions` table out of the way, if there is one.
pub(super) fn set_aside(transaction: &Transaction<'_>) -> rusqlite::Result<Option<Ancestor>> {
    if !transaction.table_exists(None, "sessions")? {
        return Ok(None);
    }
    transaction.execute_batch(&format!("ALTER TABLE sessions RENAME TO {ASIDE}"))?;
    let columns: Vec<String> =
        transaction.prepare(&format!("SELECT * FROM {ASIDE}"))?.column_names().map(str::to_owned).collect();
    Ok(Some(Ancestor { columns }))
}

/// Copies the old rows into the new tables.
pub(super) fn copy(transaction: &Transaction<'_>, ancestor: &Ancestor) -> rusqlite::Result<()> {
    let now = civil::millis(wall());
    let mut copied = 0_usize;
    let mut statement = transaction.prepare(&format!("SELECT * FROM {ASIDE} ORDER BY rowid"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut old: HashMap<&str, Value> = HashMap::new();
        for (at, column) in ancestor.columns.iter().enumerate() {
            old.insert(column, row.get(at)?);
        }
        let mut take = |column: &str| old.remove(column).unwrap_or(Value::Null);
        let Some(id) = text(take("session_id")) else { continue };
        let start = time(&take("start_time")).unwrap_or(now);
        let last_beat = time(&take("last_heartbeat")).unwrap_or(start);
        transaction.execute(
            "INSERT OR REPLACE INTO sessions
                (session_id, app_name, user_id, start_time, status, current_task, kill_requested)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![
                TrackedId::from(id).as_str(),
                text(take("app_name")).unwrap_or_else(|| "unknown".to_owned()),
                text(take("user_id")),
                start,
                text(take("status")).unwrap_or_else(|| "idle".to_owned()),
                text(take("current_task")),
                truth(&take("kill_requested")),
            ],
        )?;
        let row = transaction.last_insert_rowid();
        transaction
            .execute("INSERT INTO beats (row, last_heartbeat) VALUES (?, ?)", params![row, last_beat])?;
        copied += 1;
    }
    log::info!("took over {copied} tracked sessions of an older tracker");
    Ok(())
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Real(number) => Some(number.to_string()),
        Value::Null | Value::Blob(_) => None,
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Integer(number) => *number != 0,
        Value::Real(number) => *number != 0.0,
        Value::Text(text) => matches!(text.trim().to_ascii_lowercase().as_str(), "1" | "true" | "t" | "yes"),
        Value::Null | Value::Blob(_) => false,
    }
}

/// Milliseconds since 1970, from whatever the column holds.
fn time(value: &Value) -> Option<i64> {
    match value {
        #[allow(clippy::cast_precision_loss, reason = "a time of this century is exact to the millisecond")]
        Value::Integer(number) => epoch(*number as f64),
        Value::Real(number) => epoch(*number),
        Value::Text(text) => civil::parse(text).or_else(|| epoch(text.trim().parse().ok()?)),
        Value::Null | Value::Blob(_) => None,
    }
}

/// Seconds, milliseconds or microseconds, told apart by their size: seconds stay below 10^11 for
/// three thousand years.
fn epoch(number: f64) -> Option<i64> {
    let millis = match number {
        _ if !number.is_finite() || number < 0.0 => return None,
        _ if number < 1e11 => number * 1e3,
        _ if number < 1e14 => number,
        _ if number < 1e17 => number / 1e3,
        _ => return None,
    };
    #[allow(clippy::cast_possible_truncation, reason = "below 10^14")]
    Some(millis as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_kind_are_read() {
        let millis = Some(1_795_251_337_000);
        for value in [
            Value::Integer(1_795_251_337),
            Value::Integer(1_795_251_337_000),
            Value::Real(1_795_251_337.0),
            Value::Text("2026-11-21T08:55:37".into()),
            Value::Text("2026-11-21 08:55:37.000000+00:00".into()),
            Value::Text("1795251337".into()),
        ] {
            assert_eq!(time(&value), millis, "{value:?}");
        }
        for value in [Value::Null, Value::Text("soon".into()), Value::Real(f64::NAN), Value::Real(-1.0)] {
            assert_eq!(time(&value), None, "{value:?}");
        }
    }
}
