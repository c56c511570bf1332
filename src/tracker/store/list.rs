//! The list of sessions in pages.
//!
//! A page is read along one of two ways, each of which goes on from any place and looks at a bounded
//! number of sessions: an index of the table in the order that is wanted, narrowed by at most one
//! condition, so that SQLite never searches on its own; or memory, for what only memory knows (silence).
//! All other conditions are held against each session on the way.

mod cursor;
mod index;
mod silence;

use std::sync::Arc;

use rusqlite::{Connection, Row};

use self::cursor::Place;
use super::SessionStore;
use super::memory::Memory;
use super::rows::{complete, stored};
use super::write::Now;
use crate::sync::Mutex;
use crate::tracker::api::{Glance, LONGEST_PAGE, LONGEST_SEARCH, SessionPage, SessionQuery, SortKey};
use crate::tracker::life::Thresholds;
use crate::tracker::{TrackedSession, TrackedStatus};
use crate::{Error, Result};

/// So many sessions are looked at for one page; in tests so few that a search takes several.
const GLANCES: usize = if cfg!(test) { 10 } else { 20_000 };
/// So many are counted.
const COUNTED: usize = 10_000;

impl SessionStore {
    /// A page of the list of sessions; see [`SessionQuery`]. Waits for the disk, and looks at no more than
    /// 20 000 sessions on it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the query makes no sense, also if its cursor is none or one of another
    /// order; [`Error::Store`].
    pub fn sessions_page(&self, query: &SessionQuery) -> Result<SessionPage> {
        let place = check(query)?;
        let (memory, thresholds, now) = (Arc::clone(&self.memory), self.thresholds, self.now());
        let query = query.clone();
        self.read("listing a page of sessions", move |tables| {
            let mut page =
                Page { query: &query, memory: &memory, thresholds, now, sessions: Vec::new(), last: None };
            let (is_complete, mut total) = match silence::wanted(&query) {
                Some(wanted) => silence::read(&mut page, tables, wanted, place.as_ref())?,
                None => (index::read(&mut page, tables, place.as_ref())?, None),
            };
            let Page { sessions, last, .. } = page;
            if total.is_none() && (place.is_none() || is_all(&query)) {
                total = count(tables, &memory, &query)?;
            }
            if total.is_none() && is_complete && place.is_none() {
                total = Some(sessions.len());
            }
            let next = if is_complete { None } else { last.or(place) };
            Ok(SessionPage {
                sessions,
                next_cursor: next.map(|place| place.written(query.sort)),
                total: total.map(|total| total as u64),
            })
        })
    }
}

/// Whether the query makes sense, and where it goes on.
fn check(query: &SessionQuery) -> Result<Option<Place>> {
    if !(1..=LONGEST_PAGE).contains(&query.limit) {
        return Err(Error::config("limit", format!("must be from 1 to {LONGEST_PAGE}")));
    }
    if query.search.as_ref().is_some_and(|text| text.chars().count() > LONGEST_SEARCH) {
        return Err(Error::config("q", format!("must have at most {LONGEST_SEARCH} characters")));
    }
    if query.label.as_ref().is_some_and(|label| !label.contains(':')) {
        return Err(Error::config("label", "must be KEY:VALUE"));
    }
    if query.id.is_some() && query.sort.key != SortKey::Id {
        return Err(Error::config("sort", "must be id or -id where an id's beginning is named"));
    }
    if let Some(state) = &query.state
        && !matches!(
            state,
            TrackedStatus::Running | TrackedStatus::Idle | TrackedStatus::Late | TrackedStatus::Stale
        )
    {
        return Err(Error::config("state", "must be running, idle, late or stale"));
    }
    let place = query.cursor.as_ref().map(|text| Place::read(text, query.sort));
    let none = || Error::config("cursor", "must be the next_cursor of a page in the same order");
    place.map(|place| place.ok_or_else(none)).transpose()
}

/// A page that is being read.
struct Page<'a> {
    query: &'a SessionQuery,
    memory: &'a Mutex<Memory>,
    thresholds: Thresholds,
    now: Now,
    sessions: Vec<TrackedSession>,
    /// The last session that was looked at.
    last: Option<Place>,
}

impl Page<'_> {
    fn is_full(&self) -> bool {
        self.sessions.len() >= self.query.limit
    }

    /// Takes a session that fits. Its columns are [`COLUMNS`](super::rows::COLUMNS).
    fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let text = |at| Ok::<_, rusqlite::Error>(row.get_ref(at)?.as_str_or_null()?);
        let glance = Glance {
            id: row.get_ref(0)?.as_str()?,
            app: row.get_ref(1)?.as_str()?,
            user: text(2)?,
            task: text(5)?,
            host: text(7)?,
            status: row.get_ref(4)?.as_str()?,
        };
        if !self.query.fits(&glance) {
            return Ok(());
        }
        if let Some(label) = &self.query.label
            && !text(9)?.is_some_and(|json| may_hold(json, label))
        {
            return Ok(());
        }
        let completed = complete(stored(row)?, &self.memory.lock(), self.thresholds, self.now);
        self.sessions.extend(completed.filter(|session| self.query.fits_whole(session)));
        Ok(())
    }
}

/// Whether nothing is left out.
fn is_all(query: &SessionQuery) -> bool {
    let SessionQuery { app, user, status, state, label, id, search, .. } = query;
    let of_text = [app, user, label, id, search].iter().all(|wanted| wanted.is_none());
    of_text && status.is_none() && state.is_none()
}

/// Whether labels written as JSON may hold `KEY:VALUE`: they end a text as that ends.
fn may_hold(json: &str, label: &str) -> bool {
    let end = label.rsplit(':').next().unwrap_or_default();
    let is_written_as_it_is = !end.contains(|c: char| c.is_control() || matches!(c, '"' | '\\'));
    !is_written_as_it_is || json.match_indices(end).any(|(at, _)| json[at + end.len()..].starts_with('"'))
}

/// How many sessions fit, if that is known soon.
fn count(
    tables: &Connection,
    memory: &Mutex<Memory>,
    query: &SessionQuery,
) -> rusqlite::Result<Option<usize>> {
    let SessionQuery { app, user, status, state, label, id, search, .. } = query;
    if status.is_some() || state.is_some() || label.is_some() || id.is_some() || search.is_some() {
        return Ok(None);
    }
    let (condition, wanted) = match (app, user) {
        (None, None) => return Ok(Some(memory.lock().count())),
        (Some(app), None) => (index::APP, app),
        // The index has the beginning of longer ones, and nothing behind a NUL.
        (None, Some(user)) if user.len() <= 128 && !user.contains('\0') => (index::USER, user),
        _ => return Ok(None),
    };
    let query = format!("SELECT count(*) FROM (SELECT 1 FROM sessions {} LIMIT ?2)", condition.equal());
    let most = i64::try_from(COUNTED + 1).unwrap_or(i64::MAX);
    let count: i64 =
        tables.prepare_cached(&query)?.query_row(rusqlite::params![wanted, most], |row| row.get(0))?;
    Ok(usize::try_from(count).ok().filter(|&count| count <= COUNTED))
}

#[cfg(test)]
mod tests;
