//! The tables, how older ones become the present ones, how a connection is set up.
//!
//! `user_version` counts migrations, `application_id` says that the file is ours.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::ancestor;
use crate::{Error, Result, StoreFault};

/// "rmda".
const APPLICATION: i64 = 0x726d_6461;

/// One migration each, applied in order; a released one is never changed.
pub(super) const MIGRATIONS: [fn(&Transaction<'_>) -> rusqlite::Result<()>; 4] =
    [first, lives_and_kills, owners_and_audit, pages];

/// Sets the connection up and brings the tables up to date.
pub(super) fn prepare(connection: &mut Connection) -> Result<()> {
    let failed = |error| Error::store("opening it", error);
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    let version: i64 = pragma(connection, "user_version")?;
    let application: i64 = pragma(connection, "application_id")?;
    let foreign = match version {
        0 => ancestor::is_of_another_program(connection).map_err(failed)?,
        _ => application != APPLICATION,
    };
    if foreign {
        let reason = "the file is a database of another program";
        return Err(Error::store_fault(StoreFault::Foreign, "opening it", reason));
    }
    let version = usize::try_from(version).unwrap_or(0);
    if version > MIGRATIONS.len() {
        let reason = "the file was written by a newer version of remuda";
        return Err(Error::store_fault(StoreFault::Newer, "opening it", reason));
    }
    // SQLite falls back to reading, and would say so with the first change only.
    if connection.is_readonly("main").map_err(failed)? {
        let reason = "the file must not be written by this user";
        return Err(Error::store_fault(StoreFault::ReadOnly, "opening it", reason));
    }
    // A write-ahead log lets readers go on beside the writer; FULL has every commit on the disk.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    let migrating = |error| Error::store("bringing its tables up to date", error);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(migrating)?;
    migrate(&transaction, version, MIGRATIONS.len()).map_err(migrating)?;
    transaction.commit().map_err(migrating)
}

fn migrate(transaction: &Transaction<'_>, from: usize, to: usize) -> rusqlite::Result<()> {
    for migration in &MIGRATIONS[from..to] {
        migration(transaction)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(to).unwrap_or(i64::MAX))?;
    transaction.pragma_update(None, "application_id", APPLICATION)
}

/// An empty database as that version of remuda left it.
#[cfg(test)]
pub(super) fn create_version(connection: &mut Connection, version: usize) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    migrate(&transaction, 0, version)?;
    transaction.commit()
}

/// Writes what is there already, to see whether writing works.
pub(super) fn touch(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    transaction.pragma_update(None, "user_version", version)
}

/// A connection that reads beside the writer.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn pragma(connection: &Connection, name: &str) -> Result<i64> {
    connection
        .pragma_query_value(None, name, |row| row.get(0))
        .map_err(|error| Error::store("opening it", error))
}

/// Times are milliseconds since 1970. Beats have a narrow table of their own, because they are
/// written most: a page of it holds hundreds.
fn first(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let ancestor = ancestor::set_aside(transaction)?;
    transaction.execute_batch(
        "CREATE TABLE sessions (
            row INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id TEXT NOT NULL UNIQUE,
            app_name TEXT NOT NULL,
            user_id TEXT,
            start_time INTEGER NOT NULL,
            status TEXT NOT NULL,
            current_task TEXT,
            status_number INTEGER,
            kill_requested INTEGER NOT NULL,
            host TEXT,
            pid INTEGER,
            labels TEXT
        );
        CREATE INDEX remuda_sessions_by_app ON sessions (app_name);
        CREATE INDEX remuda_sessions_by_start ON sessions (start_time, row);
        CREATE TABLE beats (row INTEGER PRIMARY KEY, last_heartbeat INTEGER NOT NULL);
        CREATE TABLE history (
            entry INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id TEXT NOT NULL,
            app_name TEXT NOT NULL,
            user_id TEXT,
            start_time INTEGER NOT NULL,
            last_heartbeat INTEGER NOT NULL,
            end_time INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            status TEXT NOT NULL,
            current_task TEXT,
            kill_requested INTEGER NOT NULL,
            host TEXT,
            pid INTEGER,
            labels TEXT
        );
        CREATE INDEX remuda_history_by_id ON history (session_id);
        CREATE INDEX remuda_history_by_end ON history (end_time);",
    )?;
    if let Some(ancestor) = ancestor { ancestor::copy(transaction, &ancestor) } else { Ok(()) }
}

/// What a session is ordered to do, why it ended, and a receipt for each kill. Steps of a kill are
/// microseconds since it was requested.
fn lives_and_kills(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE sessions ADD COLUMN version TEXT;
        ALTER TABLE sessions ADD COLUMN interval_ms INTEGER;
        ALTER TABLE sessions ADD COLUMN protected INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE sessions ADD COLUMN verbs INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE sessions ADD COLUMN verbs_number INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE history ADD COLUMN version TEXT;
        ALTER TABLE history ADD COLUMN reason TEXT;
        ALTER TABLE history ADD COLUMN kill_id INTEGER;
        CREATE TABLE kills (
            kill_id INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id TEXT NOT NULL,
            app_name TEXT NOT NULL,
            scope TEXT NOT NULL,
            requested_by TEXT,
            reason TEXT,
            requested_at INTEGER NOT NULL,
            told INTEGER NOT NULL,
            delivered_us INTEGER,
            stopping_us INTEGER,
            outcome TEXT,
            ended_us INTEGER
        );
        CREATE INDEX remuda_kills_by_session ON kills (session_id, kill_id);
        CREATE UNIQUE INDEX remuda_open_kills ON kills (session_id) WHERE outcome IS NULL;
        CREATE TABLE embargoes (
            app_name TEXT PRIMARY KEY, until INTEGER NOT NULL, requested_by TEXT, reason TEXT
        );",
    )
}

/// To whom sessions belong, who asked for kills (as JSON), and everything that operators have asked for.
fn owners_and_audit(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE sessions ADD COLUMN owner TEXT;
        ALTER TABLE kills ADD COLUMN asked TEXT;
        ALTER TABLE embargoes ADD COLUMN asked TEXT;
        CREATE TABLE audit (
            entry INTEGER PRIMARY KEY AUTOINCREMENT,
            time INTEGER NOT NULL,
            action TEXT NOT NULL,
            session_id TEXT,
            app_name TEXT,
            label TEXT,
            asked TEXT,
            requested_by TEXT,
            reason TEXT,
            result TEXT NOT NULL,
            sessions INTEGER NOT NULL,
            session_ids TEXT
        );
        CREATE INDEX remuda_audit_by_time ON audit (time);",
    )
}

/// The ways along which pages of the list are read; the rowid stands at the end of each index anyway.
/// Most sessions are idle, so that those which are not are soon found in an index of their own. An app's name is
/// short, a user's may be anything: it is sorted by its beginning, which fits into a cursor.
fn pages(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "DROP INDEX remuda_sessions_by_app;
        CREATE INDEX remuda_sessions_by_app ON sessions (app_name, start_time);
        ALTER TABLE sessions ADD COLUMN user_key TEXT AS (substr(coalesce(user_id, ''), 1, 128));
        CREATE INDEX remuda_sessions_by_user ON sessions (user_key, start_time);
        CREATE INDEX remuda_busy_sessions ON sessions (start_time) WHERE status <> 'idle';",
    )
}
