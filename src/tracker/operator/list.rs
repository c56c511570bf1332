//! The list of sessions, page by page.

use serde::Deserialize;
use serde_json::Value;
use ureq::http;

use super::{TrackerOperator, encoded};
use crate::Result;
use crate::tracker::TrackedSession;
use crate::tracker::api::{Glance, SessionPage, SessionQuery, SortKey};

impl TrackerOperator {
    /// A page of the tracked sessions that are asked for.
    ///
    /// A tracker of another kind knows no pages: then all sessions that fit are on this one, in the order that
    /// is asked for, however many there are.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn sessions_page(&self, query: &SessionQuery) -> Result<SessionPage> {
        let path = format!("/sessions?{}", parameters(query));
        let answer: Answer = self.call(http::Method::GET, &path)?.ok_or_else(|| self.no_tracker())?;
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
    pub fn session_pages(&self, query: SessionQuery) -> SessionPages<'_> {
        SessionPages { operator: self, query: Some(query) }
    }
}

/// Pages of sessions; see [`TrackerOperator::session_pages`].
#[derive(Debug)]
#[must_use = "nothing is asked before the first step"]
pub struct SessionPages<'a> {
    operator: &'a TrackerOperator,
    /// Nothing behind the end.
    query: Option<SessionQuery>,
}

impl Iterator for SessionPages<'_> {
    type Item = Result<SessionPage>;

    fn next(&mut self) -> Option<Result<SessionPage>> {
        let mut query = self.query.take()?;
        let page = self.operator.sessions_page(&query);
        if let Ok(SessionPage { next_cursor: Some(cursor), .. }) = &page {
            if query.cursor.as_ref() == Some(cursor) {
                return Some(Err(self.operator.trouble("its list does not go on")));
            }
            query.cursor = Some(cursor.clone());
            self.query = Some(query);
        }
        Some(page)
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
fn parameters(query: &SessionQuery) -> String {
    let SessionQuery { limit, cursor, app, user, status, state, label, id, search, sort } = query;
    let word =
        |status: &Option<crate::TrackedStatus>| status.as_ref().map(|status| status.as_str().to_owned());
    let named = [
        ("cursor", cursor.clone()),
        ("app", app.clone()),
        ("user", user.clone()),
        ("status", word(status)),
        ("state", word(state)),
        ("label", label.clone()),
        ("id", id.clone()),
        ("q", search.clone()),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some(format!("&{name}={}", encoded(&value?))));
    format!("limit={limit}&sort={sort}{}", named.collect::<String>())
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
