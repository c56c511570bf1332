//! What travels about the list of sessions in pages.
//!
//! | route | answer |
//! |---|---|
//! | `GET /sessions` | [`SessionList`](super::SessionList): every session, newest first |
//! | `GET /sessions?limit=100` and what else is wanted | [`SessionPage`] |
//!
//! | parameter | meaning |
//! |---|---|
//! | `limit` | at most so many sessions, from 1; more than 1 000 counts as 1 000; 100 if another parameter of these is there |
//! | `cursor` | go on behind a page: its `next_cursor`, with the same `sort` |
//! | `app`, `user` | the app's name, the user: exactly this one |
//! | `status` | the status as it is shown: a silent session has the status `stale` |
//! | `state` | `running`, `idle`, `late` or `stale` |
//! | `label` | `KEY:VALUE`: has this label |
//! | `id` | its id begins with this; the list is sorted by `id` then |
//! | `q` | its app, user, id, task or host contains this, in small or capital letters; at most 256 characters |
//! | `sort` | `-start_time` (newest first, the default), `start_time`, `app`, `user`, `id`, `last_heartbeat`; each with a `-` in front for the other direction |
//!
//! A session must fit all that is named. What is named and is none of these is ignored.
//!
//! # Pages
//! A cursor is a place in the order, not a number of rows: sessions that come and go between two pages
//! neither hide others nor show them twice. A session that moves in the order meanwhile (by
//! `last_heartbeat` it does so with every beat) may be missed or be shown twice. A cursor never runs out.
//!
//! One request looks at no more than 20 000 sessions. So a page of a search that finds little may hold
//! fewer sessions than `limit`, or none, and still have a `next_cursor`: the list is complete when there is
//! none. [`SessionPage::total`] is told where it costs little: for all sessions, for those of one app or one
//! user on the first page if they are no more than 10 000, for those who are silent, and where the first page
//! is the whole list.
//!
//! # Costs
//! At a million sessions a page costs about a millisecond if it is sorted by `start_time`, `app`, `user` or
//! `id`, also with `app` or `user`. `status` (any but `idle`) and `state=running` are found among those
//! who are not idle. To sort by
//! `last_heartbeat`, and to find `state=late` or `state=stale` in the order of their start, each page looks
//! at all sessions in memory: some 20 ms. All else is searched in the order of the list.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::tracker::{TrackedSession, TrackedStatus};

/// Sessions on a page if nothing is said.
pub const DEFAULT_PAGE: usize = 100;
/// Sessions on a page at most.
pub const LONGEST_PAGE: usize = 1_000;
/// The longest text to search for, in characters.
pub const LONGEST_SEARCH: usize = 256;

/// The answer to `GET /sessions` with a `limit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionPage {
    /// The rows.
    pub sessions: Vec<TrackedSession>,
    /// Where the next page begins; `null` at the end of the list.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// How many sessions fit, on this page and all others; `null` where counting them would cost more
    /// than the page.
    #[serde(default)]
    pub total: Option<u64>,
}

/// By what a list of sessions is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SortKey {
    /// When they started.
    #[default]
    StartTime,
    /// The app's name; those of one app by their start.
    App,
    /// The user, by its first 128 characters; those of one user by their start. Who has none stands as the
    /// empty name.
    User,
    /// The id.
    Id,
    /// When their last beat came.
    LastHeartbeat,
}

/// An order of sessions; newest first by default. In JSON and parameters: the key's word, with a `-` in front if
/// it is descending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSort {
    /// By what.
    pub key: SortKey,
    /// The largest first.
    pub descending: bool,
}

impl Default for SessionSort {
    fn default() -> SessionSort {
        SessionSort { key: SortKey::StartTime, descending: true }
    }
}

const SORT_WORDS: [(SortKey, &str); 5] = [
    (SortKey::StartTime, "start_time"),
    (SortKey::App, "app"),
    (SortKey::User, "user"),
    (SortKey::Id, "id"),
    (SortKey::LastHeartbeat, "last_heartbeat"),
];

impl fmt::Display for SessionSort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = SORT_WORDS.iter().find(|(key, _)| *key == self.key).map_or("", |(_, word)| word);
        write!(f, "{}{word}", if self.descending { "-" } else { "" })
    }
}

impl FromStr for SessionSort {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<SessionSort, crate::Error> {
        let word = text.strip_prefix('-').unwrap_or(text);
        let found = SORT_WORDS.iter().find(|(_, known)| *known == word);
        let sort = found.map(|(key, _)| SessionSort { key: *key, descending: word.len() < text.len() });
        sort.ok_or_else(|| {
            let words = SORT_WORDS.map(|(_, word)| word).join(", ");
            crate::Error::config(
                "sort",
                format!("must be one of {words}, with a - in front for the other direction"),
            )
        })
    }
}

/// Which sessions to list, and how. The fields are those of `GET /sessions`, described at the
/// [module](crate::tracker::api).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionQuery {
    /// Sessions on a page at most, from 1 to [`LONGEST_PAGE`]; default [`DEFAULT_PAGE`].
    pub limit: usize,
    /// A page's [`next_cursor`](SessionPage::next_cursor); default: from the beginning.
    pub cursor: Option<String>,
    /// Of this app only.
    pub app: Option<String>,
    /// Of this user only.
    pub user: Option<String>,
    /// With this status only, as it is shown.
    pub status: Option<TrackedStatus>,
    /// In this state only: running, idle, late or stale.
    pub state: Option<TrackedStatus>,
    /// With this label only: `KEY:VALUE`.
    pub label: Option<String>,
    /// Whose id begins with this only. The list is then sorted by [`SortKey::Id`].
    pub id: Option<String>,
    /// Whose app, user, id, task or host contains this only, whatever the case of its letters; at most
    /// [`LONGEST_SEARCH`] characters.
    pub search: Option<String>,
    /// The order; default newest first.
    pub sort: SessionSort,
}

impl Default for SessionQuery {
    fn default() -> SessionQuery {
        SessionQuery {
            limit: DEFAULT_PAGE,
            cursor: None,
            app: None,
            user: None,
            status: None,
            state: None,
            label: None,
            id: None,
            search: None,
            sort: SessionSort::default(),
        }
    }
}

impl SessionQuery {
    /// All sessions, newest first.
    pub fn new() -> SessionQuery {
        SessionQuery::default()
    }

    /// Sets [`limit`](SessionQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`cursor`](SessionQuery::cursor).
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Sets [`app`](SessionQuery::app).
    pub fn app(mut self, app_name: impl Into<String>) -> Self {
        self.app = Some(app_name.into());
        self
    }

    /// Sets [`user`](SessionQuery::user).
    pub fn user(mut self, user_id: impl Into<String>) -> Self {
        self.user = Some(user_id.into());
        self
    }

    /// Sets [`status`](SessionQuery::status).
    pub fn status(mut self, status: TrackedStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Sets [`state`](SessionQuery::state).
    pub fn state(mut self, state: TrackedStatus) -> Self {
        self.state = Some(state);
        self
    }

    /// Sets [`label`](SessionQuery::label).
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.label = Some(format!("{key}:{value}"));
        self
    }

    /// Sets [`id`](SessionQuery::id).
    pub fn id(mut self, beginning: impl Into<String>) -> Self {
        self.id = Some(beginning.into());
        self.sort = SessionSort { key: SortKey::Id, descending: false };
        self
    }

    /// Sets [`search`](SessionQuery::search).
    pub fn search(mut self, text: impl Into<String>) -> Self {
        self.search = Some(text.into());
        self
    }

    /// Sets [`sort`](SessionQuery::sort).
    pub fn sort(mut self, sort: SessionSort) -> Self {
        self.sort = sort;
        self
    }
}

/// What a query looks at in a session before its row is read as a whole.
#[cfg(any(feature = "client", feature = "server"))]
#[derive(Clone, Copy)]
pub(in crate::tracker) struct Glance<'a> {
    pub(in crate::tracker) id: &'a str,
    pub(in crate::tracker) app: &'a str,
    pub(in crate::tracker) user: Option<&'a str>,
    pub(in crate::tracker) task: Option<&'a str>,
    pub(in crate::tracker) host: Option<&'a str>,
    /// As it says itself.
    pub(in crate::tracker) status: &'a str,
}

#[cfg(feature = "client")]
impl<'a> Glance<'a> {
    pub(in crate::tracker) fn of(session: &'a TrackedSession) -> Glance<'a> {
        Glance {
            id: session.session_id.as_str(),
            app: &session.app_name,
            user: session.user_id.as_deref(),
            task: session.current_task.as_deref(),
            host: session.host.as_deref(),
            status: session.status.as_str(),
        }
    }
}

#[cfg(any(feature = "client", feature = "server"))]
impl SessionQuery {
    /// Whether a session fits as far as one can see from this.
    pub(in crate::tracker) fn fits(&self, glance: &Glance<'_>) -> bool {
        let contains = |wanted: &str| {
            let texts = [Some(glance.app), glance.user, Some(glance.id), glance.task, glance.host];
            texts.into_iter().flatten().any(|text| contains(text, wanted))
        };
        let is_idle = glance.status == TrackedStatus::Idle.as_str();
        let may_be_shown = |status: &TrackedStatus| match status {
            TrackedStatus::Stale => true,
            said => said.as_str() == glance.status,
        };
        let may_be = |state: &TrackedStatus| match state {
            TrackedStatus::Idle => is_idle,
            TrackedStatus::Running => !is_idle,
            _ => true,
        };
        self.app.as_deref().is_none_or(|app| app == glance.app)
            && self.user.as_deref().is_none_or(|user| user == glance.user.unwrap_or_default())
            && self.id.as_deref().is_none_or(|beginning| glance.id.starts_with(beginning))
            && self.status.as_ref().is_none_or(may_be_shown)
            && self.state.as_ref().is_none_or(may_be)
            && self.search.as_deref().is_none_or(contains)
    }

    /// Whether a session fits that is wholly known; `fits` has been asked.
    pub(in crate::tracker) fn fits_whole(&self, session: &TrackedSession) -> bool {
        let is_labelled = |wanted: &str| {
            let is_it = |key: &str, value: &str| {
                wanted.strip_prefix(key)?.strip_prefix(':').map(|rest| rest == value)
            };
            session.labels.iter().any(|(key, value)| is_it(key, value) == Some(true))
        };
        self.status.as_ref().is_none_or(|status| *status == session.status)
            && self
                .state
                .as_ref()
                .is_none_or(|state| state == session.state.as_ref().unwrap_or(&session.status))
            && self.label.as_deref().is_none_or(is_labelled)
    }
}

/// Whatever the case of the letters.
#[cfg(any(feature = "client", feature = "server"))]
fn contains(text: &str, wanted: &str) -> bool {
    if text.is_ascii() {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        return wanted.is_empty() || text.windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted));
    }
    text.to_lowercase().contains(&wanted.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_and_its_word() {
        assert_eq!(SessionSort::default().to_string(), "-start_time");
        for (key, word) in SORT_WORDS {
            for (text, descending) in [(word.to_owned(), false), (format!("-{word}"), true)] {
                let sort: SessionSort = text.parse().unwrap();
                assert_eq!((sort, sort.to_string()), (SessionSort { key, descending }, text));
            }
        }
        for text in ["", "-", "--app", "APP", "app ", "task"] {
            let error = text.parse::<SessionSort>().unwrap_err().to_string();
            assert!(error.contains("last_heartbeat"), "{text:?}: {error}");
        }
    }

    #[cfg(any(feature = "client", feature = "server"))]
    #[test]
    fn a_text_is_found_whatever_its_case() {
        for (text, wanted, found) in [
            ("Reports of May", "OF may", true),
            ("Reports", "", true),
            ("", "a", false),
            ("", "", true),
            ("a", "ab", false),
            ("100%_done", "%_D", true),
            ("100 done", "%", false),
            ("Ärger in Łódź", "ärger IN łÓDŹ", true),
            ("plain", "ä", false),
        ] {
            assert_eq!(contains(text, wanted), found, "{wanted:?} in {text:?}");
        }
    }
}
