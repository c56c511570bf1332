//! Receipts and embargoes in their tables.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Params, Row, params, params_from_iter};

use super::audit::{self, Asked};
use super::memory::{Held, Memory};
use super::write::Now;
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{Asker, KillScope, MAX_EMBARGO, ReceiptQuery, Whom};
use crate::tracker::receipts::{End, Receipt};

const COLUMNS: &str = "kill_id, session_id, app_name, scope, requested_by, reason, requested_at, told, \
                       delivered_us, stopping_us, outcome, ended_us, asked";

/// What a kill is asked for with.
#[derive(Clone, Debug, Default)]
pub(in crate::tracker) struct KillOrder {
    pub(in crate::tracker) asked_by: Option<Asker>,
    pub(in crate::tracker) requested_by: Option<String>,
    pub(in crate::tracker) reason: Option<String>,
    /// A protected session is hit too, if it is the one that was named.
    pub(in crate::tracker) force: bool,
    pub(in crate::tracker) generation: Option<String>,
    pub(in crate::tracker) embargo: Option<Duration>,
}

impl KillOrder {
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            by: self.asked_by.as_ref(),
            requested_by: self.requested_by.as_deref(),
            reason: self.reason.as_deref(),
        }
    }
}

/// A session that a kill or an order means.
pub(super) struct Target {
    pub(super) id: TrackedId,
    pub(super) app_name: String,
    pub(super) protected: bool,
}

/// Whom it means, in the order of their registration.
pub(super) fn targets(connection: &Connection, whom: &Whom) -> rusqlite::Result<Vec<Target>> {
    let (condition, parameters) = meant(whom);
    let query =
        format!("SELECT session_id, app_name, protected FROM sessions WHERE {condition} ORDER BY row");
    let target = |row: &Row<'_>| {
        let id = TrackedId::from(row.get::<_, String>(0)?);
        Ok(Target { id, app_name: row.get(1)?, protected: row.get(2)? })
    };
    connection.prepare_cached(&query)?.query_map(params_from_iter(parameters), target)?.collect()
}

/// The condition that a row of the sessions fulfils which is meant, and its parameters.
pub(super) fn meant(whom: &Whom) -> (&'static str, Vec<&str>) {
    match whom {
        Whom::Session(id) => ("session_id = ?", vec![id.as_str()]),
        Whom::App(name) => ("app_name = ?", vec![name]),
        Whom::Label { key, value } => (
            "EXISTS (SELECT 1 FROM json_each(sessions.labels) AS label WHERE label.key = ? AND label.value = ?)",
            vec![key, value],
        ),
    }
}

/// Opens a receipt for a session that has none open.
pub(super) fn open(
    connection: &Connection,
    (id, app_name): (&TrackedId, &str),
    scope: KillScope,
    asked: Asked<'_>,
    now: Now,
) -> rusqlite::Result<Receipt> {
    let Asked { by, requested_by, reason } = asked;
    connection
        .prepare_cached(
            "INSERT INTO kills (session_id, app_name, scope, requested_by, reason, requested_at, told, asked)
             VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
        )?
        .execute(params![
            id.as_str(),
            app_name,
            scope.as_str(),
            requested_by,
            reason,
            now.millis,
            audit::column(by)
        ])?;
    Ok(Receipt {
        kill_id: u64::try_from(connection.last_insert_rowid()).unwrap_or_default(),
        session_id: id.clone(),
        app_name: app_name.to_owned(),
        scope,
        asked_by: by.cloned().map(Box::new),
        requested_by: requested_by.map(str::to_owned),
        reason: reason.map(str::to_owned),
        requested_millis: now.millis,
        requested: now.moment,
        told: 0,
        delivered: None,
        stopping: None,
        end: None,
    })
}

/// Writes what has changed of a receipt.
pub(super) fn save(connection: &Connection, receipt: &Receipt) -> rusqlite::Result<()> {
    let micros =
        |after: Option<Duration>| after.map(|after| i64::try_from(after.as_micros()).unwrap_or(i64::MAX));
    let outcome = receipt.end.map(|(end, _)| word(end));
    connection
        .prepare_cached(
            "UPDATE kills SET told = ?2, delivered_us = ?3, stopping_us = ?4, outcome = ?5, ended_us = ?6
             WHERE kill_id = ?1",
        )?
        .execute(params![
            i64::try_from(receipt.kill_id).unwrap_or(i64::MAX),
            receipt.told,
            micros(receipt.delivered),
            micros(receipt.stopping),
            outcome,
            micros(receipt.end.map(|(_, after)| after)),
        ])?;
    Ok(())
}

/// The receipt of this session that is open, to be changed. What only memory knows is filled in: when
/// exactly it was requested, and how often it was told.
pub(super) fn open_one(
    connection: &Connection,
    memory: &Mutex<Memory>,
    id: &TrackedId,
    now: Now,
) -> rusqlite::Result<Option<Receipt>> {
    let query = format!("SELECT {COLUMNS} FROM kills WHERE session_id = ? AND outcome IS NULL");
    let mut found = one(connection, &query, [id.as_str()], now)?;
    if let Some(receipt) = &mut found {
        memory.lock().fill_in(receipt);
    }
    Ok(found)
}

/// The receipt of this session's last kill.
pub(super) fn last_one(
    connection: &Connection,
    id: &TrackedId,
    now: Now,
) -> rusqlite::Result<Option<Receipt>> {
    let query = format!("SELECT {COLUMNS} FROM kills WHERE session_id = ? ORDER BY kill_id DESC LIMIT 1");
    one(connection, &query, [id.as_str()], now)
}

/// The receipt of this number.
pub(super) fn numbered(connection: &Connection, kill_id: u64, now: Now) -> rusqlite::Result<Option<Receipt>> {
    let query = format!("SELECT {COLUMNS} FROM kills WHERE kill_id = ?");
    one(connection, &query, [i64::try_from(kill_id).unwrap_or(i64::MAX)], now)
}

/// Receipts, newest first.
pub(super) fn page(
    connection: &Connection,
    wanted: &ReceiptQuery,
    now: Now,
) -> rusqlite::Result<Vec<Receipt>> {
    let query = format!(
        "SELECT {COLUMNS} FROM kills
         WHERE kill_id < ?1 AND (?2 IS NULL OR app_name = ?2) AND (?3 IS NULL OR session_id = ?3)
               AND (?4 = 0 OR outcome IS NULL)
         ORDER BY kill_id DESC LIMIT ?5"
    );
    let before = wanted.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let session = wanted.session.as_ref().map(TrackedId::as_str);
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement
        .query_map(params![before, wanted.app, session, wanted.open, limit], |row| receipt(row, now))?;
    rows.collect()
}

fn one(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    now: Now,
) -> rusqlite::Result<Option<Receipt>> {
    connection.prepare_cached(query)?.query_row(parameters, |row| receipt(row, now)).optional()
}

fn receipt(row: &Row<'_>, now: Now) -> rusqlite::Result<Receipt> {
    let after =
        |micros: Option<i64>| micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
    let requested_millis: i64 = row.get(6)?;
    let age = Duration::from_millis(u64::try_from(now.millis - requested_millis).unwrap_or(0));
    let outcome: Option<String> = row.get(10)?;
    let end = match outcome.as_deref() {
        None => None,
        Some("confirmed") => Some(End::Confirmed),
        Some(_) => Some(End::Expired),
    };
    Ok(Receipt {
        kill_id: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        session_id: TrackedId::from(row.get::<_, String>(1)?),
        app_name: row.get(2)?,
        scope: scope(&row.get::<_, String>(3)?),
        asked_by: audit::asker(row.get(12)?).map(Box::new),
        requested_by: row.get(4)?,
        reason: row.get(5)?,
        requested_millis,
        requested: now.moment - age,
        told: row.get(7)?,
        delivered: after(row.get(8)?),
        stopping: after(row.get(9)?),
        end: end.zip(after(row.get(11)?)),
    })
}

fn word(end: End) -> &'static str {
    match end {
        End::Confirmed => "confirmed",
        End::Expired => "expired",
    }
}

fn scope(word: &str) -> KillScope {
    [KillScope::App, KillScope::Label, KillScope::Embargo, KillScope::Returned]
        .into_iter()
        .find(|scope| scope.as_str() == word)
        .unwrap_or(KillScope::Session)
}

/// Notes an embargo, in the place of an older one on the same app.
pub(super) fn lay_embargo(
    connection: &Connection,
    app_name: &str,
    lasts: Duration,
    order: &KillOrder,
    now: Now,
) -> rusqlite::Result<Held> {
    let lasts = lasts.min(MAX_EMBARGO);
    let until = now.millis.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX));
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO embargoes (app_name, until, requested_by, reason, asked)
             VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![
            app_name,
            until,
            order.requested_by,
            order.reason,
            audit::column(order.asked_by.as_ref())
        ])?;
    let (requested_by, reason) = (order.requested_by.clone(), order.reason.clone());
    Ok(Held { until: now.moment + lasts, until_millis: until, requested_by, reason })
}

/// The embargo that was laid on this app last, even if it is over.
pub(super) fn embargo(connection: &Connection, app_name: &str) -> rusqlite::Result<Option<Laid>> {
    connection
        .prepare_cached("SELECT until, requested_by, reason, asked FROM embargoes WHERE app_name = ?")?
        .query_row([app_name], |row| {
            let wish =
                Wish { requested_by: row.get(1)?, reason: row.get(2)?, asked_by: audit::asker(row.get(3)?) };
            Ok(Laid { until_millis: row.get(0)?, wish })
        })
        .optional()
}

/// An embargo as its row has it.
pub(super) struct Laid {
    pub(super) until_millis: i64,
    pub(super) wish: Wish,
}

/// Who asked for a kill that is opened later, and why.
#[derive(Default)]
pub(super) struct Wish {
    pub(super) asked_by: Option<Asker>,
    pub(super) requested_by: Option<String>,
    pub(super) reason: Option<String>,
}

impl Wish {
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            by: self.asked_by.as_ref(),
            requested_by: self.requested_by.as_deref(),
            reason: self.reason.as_deref(),
        }
    }
}

/// The embargoes that an earlier process has laid, for what is left of them.
pub(super) fn embargoes(connection: &Connection, now: Now) -> rusqlite::Result<Vec<(String, Held)>> {
    let mut statement = connection.prepare("SELECT app_name, until, requested_by, reason FROM embargoes")?;
    let rows = statement.query_map([], |row| {
        let until_millis: i64 = row.get(1)?;
        let left = Duration::from_millis(u64::try_from(until_millis - now.millis).unwrap_or(0));
        let until = now.moment + left.min(MAX_EMBARGO);
        Ok((row.get(0)?, Held { until, until_millis, requested_by: row.get(2)?, reason: row.get(3)? }))
    })?;
    rows.collect()
}
