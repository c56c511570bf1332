//! What travels about the life of a tracked session: orders to it, and what became of those that are
//! gone.
//!
//! | route | body → answer |
//! |---|---|
//! | `POST /sessions/{id}/pause`, `/drain`, `/resume` | → [`OrderReply`] |
//! | `POST /sessions/{id}/protect`, `/unprotect` | → [`OrderReply`] |
//! | `POST /apps/{app_name}/pause-all` and so on, `POST /labels/{key}/{value}/pause-all` and so on | → [`OrderReply`] |
//! | `GET /history?limit=100&before=ENTRY` | [`HistoryQuery`] → [`HistoryPage`], newest first; also `&app=`, `&session=` |
//! | `GET /tracker` | → [`TrackerState`] |
//!
//! # Verbs
//! An answer to a beat lists in [`HeartbeatResponse::verbs`](super::HeartbeatResponse::verbs) what the
//! session shall do besides going on: `pause` (take no new task until it is resumed) or `drain`
//! (finish the task, take no other, leave). A client ignores a verb that it does not know.
//! [`HeartbeatResponse::verbs_number`](super::HeartbeatResponse::verbs_number) counts the changes; a
//! client that sends the last one it has read with its beats hears of a change at once, while its beat
//! is parked, and as often as it takes.
//!
//! # States
//! [`TrackedSession::state`](crate::TrackedSession::state) is *running* or *idle* while beats come,
//! *late* after one and a half intervals without, *stale* after 120 s; a session that is silent for
//! 600 s is *lost* and moves to the history, one that leaves by itself has *ended*. A client with an
//! interval of more than 30 s has the later two at as many times the length.

use serde::{Deserialize, Serialize};

use super::{DEFAULT_PAGE, KillReceipt, KillStats, known};
use crate::named::show_by_name;
use crate::tracker::{TrackedId, TrackedStatus};

/// What a session can be ordered to do. Unlike a kill it can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verb {
    /// Take no new task until it is resumed.
    Pause,
    /// Finish the task, take no other, leave.
    Drain,
    /// Forget a `pause` or `drain`.
    Resume,
    /// Be out of reach of `kill-all`.
    Protect,
    /// Be within reach of `kill-all` again.
    Unprotect,
}

impl Verb {
    /// The word that stands for it in a path and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Pause => "pause",
            Verb::Drain => "drain",
            Verb::Resume => "resume",
            Verb::Protect => "protect",
            Verb::Unprotect => "unprotect",
        }
    }

    /// The verb of this name.
    pub fn named(name: &str) -> Option<Verb> {
        [Verb::Pause, Verb::Drain, Verb::Resume, Verb::Protect, Verb::Unprotect]
            .into_iter()
            .find(|verb| verb.as_str() == name)
    }
}

/// The answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderReply {
    /// Whom it concerns.
    pub session_ids: Vec<TrackedId>,
}

/// Why a session is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndReason {
    /// It left by itself.
    Left,
    /// It left after it had been told of a kill.
    Killed,
    /// It was silent for too long.
    Silent,
    /// Somebody had silent sessions removed.
    CleanedUp,
}

impl EndReason {
    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Left => "left",
            EndReason::Killed => "killed",
            EndReason::Silent => "silent",
            EndReason::CleanedUp => "cleaned_up",
        }
    }
}

show_by_name!(Verb, EndReason);

/// A tracked session that is no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HistoryEntry {
    /// Its number in the history: they count up.
    pub entry: u64,
    /// Its id.
    pub session_id: TrackedId,
    /// Its app.
    pub app_name: String,
    /// Who used it.
    pub user_id: Option<String>,
    /// When it started: RFC 3339, UTC; the others likewise.
    pub start_time: String,
    /// When its last beat came.
    pub last_heartbeat: String,
    /// When it left the list.
    pub end_time: String,
    /// From its start to its end.
    pub duration_seconds: f64,
    /// [`Ended`](TrackedStatus::Ended) or [`Lost`](TrackedStatus::Lost).
    pub outcome: TrackedStatus,
    /// Why; absent for what an older tracker has noted.
    #[serde(default, deserialize_with = "known")]
    pub reason: Option<EndReason>,
    /// Its last status, as it said itself.
    pub status: TrackedStatus,
    /// The task it was in.
    pub current_task: Option<String>,
    /// Somebody wanted it to stop.
    pub kill_requested: bool,
    /// The receipt of its last kill.
    pub kill: Option<KillReceipt>,
    /// The host it ran on.
    pub host: Option<String>,
    /// Its process on that host.
    pub pid: Option<u32>,
    /// The version it said it was.
    pub version: Option<String>,
}

/// Which sessions that are no more to list. The fields are the parameters of `GET /history`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryQuery {
    /// Entries on a page at most, from 1 to [`LONGEST_PAGE`](super::LONGEST_PAGE); default [`DEFAULT_PAGE`].
    pub limit: usize,
    /// Only those with a smaller number: a page's [`next_before`](HistoryPage::next_before).
    /// Default: from the newest on.
    pub before: Option<u64>,
    /// Of this app only.
    pub app: Option<String>,
    /// What this session was only: it has several entries if it came back.
    pub session: Option<TrackedId>,
}

impl Default for HistoryQuery {
    fn default() -> HistoryQuery {
        HistoryQuery { limit: DEFAULT_PAGE, before: None, app: None, session: None }
    }
}

impl HistoryQuery {
    /// All of them, newest first.
    pub fn new() -> HistoryQuery {
        HistoryQuery::default()
    }

    /// Sets [`limit`](HistoryQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`before`](HistoryQuery::before).
    pub fn before(mut self, entry: u64) -> Self {
        self.before = Some(entry);
        self
    }

    /// Sets [`app`](HistoryQuery::app).
    pub fn app(mut self, app_name: impl Into<String>) -> Self {
        self.app = Some(app_name.into());
        self
    }

    /// Sets [`session`](HistoryQuery::session).
    pub fn session(mut self, id: impl Into<TrackedId>) -> Self {
        self.session = Some(id.into());
        self
    }
}

/// The answer to `GET /history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryPage {
    /// The sessions that are no more, newest first.
    pub history: Vec<HistoryEntry>,
    /// What to give as `before` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before: Option<u64>,
}

/// The answer to `GET /tracker`: how the tracker itself is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrackerState {
    /// The version of remuda.
    pub version: String,
    /// Since the server's start.
    pub uptime_seconds: f64,
    /// Tracked sessions, whatever their state.
    pub sessions: u64,
    /// Those that are stale.
    pub stale: u64,
    /// For so long yet nobody is called stale, because the server has just started.
    pub restart_grace_seconds: f64,
    /// Nearly all of many sessions have fallen silent: the fault may be the tracker's own or the
    /// network's, and nobody is removed for now.
    pub mass_silence: Option<MassSilence>,
    /// The kills.
    pub kills: KillStats,
    /// Apps whose new sessions are killed at once.
    pub embargoes: Vec<Embargo>,
}

/// What the tracker does about a mass silence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MassSilence {
    /// How long it has lasted.
    pub since_seconds: f64,
    /// In this time it ends by itself, even if nobody comes back.
    pub ends_in_seconds: f64,
    /// How many are stale.
    pub stale: u64,
    /// Of how many.
    pub sessions: u64,
}

/// An app whose new sessions are killed at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embargo {
    /// The app.
    pub app_name: String,
    /// How long it lasts yet.
    pub left_seconds: f64,
    /// Who asked for it, if it was said.
    pub requested_by: Option<String>,
    /// Why, if it was said.
    pub reason: Option<String>,
}
