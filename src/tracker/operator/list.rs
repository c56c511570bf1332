//! The list of sessions, page by page.

use serde::Deserialize;
use serde_json::Value;
use ureq::http;

use super::{TrackerOperator, TrackerPages, parameters};
use crate::Result;
use crate::tracker::api::{Glance, SessionPage, SessionQuery, SortKey};
use crate::tracker::{TrackedSession, TrackedStatus};

impl TrackerOperator {
    /// A page of the tracked sessions that are asked for.
    ///
    /// A tracker of another kind knows no pages: then all sessions that fit are on this one, in the order that
    /// is asked for, however many there are.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn sessions_page(&self, query: &SessionQuery) -> Result<SessionPage> {
        let answer = self.call::<Answer>(http::Method::GET, &address(query))?;
        let answer = answer.ok_or_else(|| self.no_tracker())?;
        let Answer { sessions, next_cursor, total } = answer;
        Ok(match next_cursor {
            Value::Null => SessionPage { sessions, next_cursor: None, total },
            Value::String(cursor) => SessionPage { sessions, next_cursor: Some(cursor), total },
            _ => chosen(query, sessions),
        })
    }

    /// The tracked sessions that are asked for, page by page: each step of the iterator is one request. It ends
    /// behind the last page, and after an error.
    ///
    /// ```
    /// # use remuda::{TrackerOperator, TrackerServer};
    /// use remuda::tracker::api::SessionQuery;
    ///
    /// # let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
    /// # let operator = TrackerOperator::new(format!("http://{}", server.local_addr()))?;
    /// # for _ in 0..5 { server.store().create_session("reports", None)?; }
    /// let mut count = 0;
    /// for page in operator.session_pages(SessionQuery::new().app("reports").limit(2)) {
    ///     count += page?.sessions.len();
    /// }
    /// assert_eq!(count, 5);
    /// # Ok::<(), remuda::Error>(())
    /// ```
    pub fn session_pages(&self, query: SessionQuery) -> TrackerPages<'_, SessionQuery, SessionPage> {
        TrackerPages::new(self, query, TrackerOperator::sessions_page, |query, page| {
            let next = page.next_cursor.clone()?;
            let goes_on = query.cursor.as_ref() != Some(&next);
            query.cursor = Some(next);
            Some(goes_on)
        })
    }
}

/// A page as it comes.
#[derive(Deserialize)]
struct Answer {
    sessions: Vec<TrackedSession>,
    /// A tracker of another kind says nothing of it.
    #[serde(default = "no_pages")]
    next_cursor: Value,
    #[serde(default)]
    total: Option<u64>,
}

fn no_pages() -> Value {
    Value::Bool(false)
}

/// The query as an address has it.
fn address(query: &SessionQuery) -> String {
    let SessionQuery { limit, cursor, app, user, status, state, label, id, search, sort } = query;
    let word = |status: &Option<TrackedStatus>| status.as_ref().map(|status| status.as_str().to_owned());
    let named = [
        ("sort", Some(sort.to_string())),
        ("cursor", cursor.clone()),
        ("app", app.clone()),
        ("user", user.clone()),
        ("status", word(status)),
        ("state", word(state)),
        ("label", label.clone()),
        ("id", id.clone()),
        ("q", search.clone()),
    ];
    format!("/sessions?{}", parameters(*limit, named))
}

/// What a tracker that knows pages would have chosen.
fn chosen(query: &SessionQuery, mut sessions: Vec<TrackedSession>) -> SessionPage {
    sessions.retain(|session| query.fits(&Glance::of(session)) && query.fits_whole(session));
    match query.sort.key {
        // As they come: newest first.
        SortKey::StartTime => sessions.reverse(),
        SortKey::App => sessions.sort_by(|one, other| one.app_name.cmp(&other.app_name)),
        SortKey::User => sessions.sort_by(|one, other| one.user_id.cmp(&other.user_id)),
        SortKey::Id => sessions.sort_by(|one, other| one.session_id.cmp(&other.session_id)),
        SortKey::LastHeartbeat => {
            sessions.sort_by(|one, other| one.last_heartbeat.cmp(&other.last_heartbeat));
        }
    }
    if query.sort.descending {
        sessions.reverse();
    }
    SessionPage { total: Some(sessions.len() as u64), sessions, next_cursor: None }
}
