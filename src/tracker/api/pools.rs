//! What apps attach to their beats, for whoever looks after their pools.
//!
//! | route | answer |
//! |---|---|
//! | `GET /pools?limit=100&after=ROW` | [`PoolQuery`] → [`PoolPage`], in the order of registration; also `&app=`, `&session=`, `&name=` |
//!
//! A client attaches a snapshot under a name: [`SessionClient::attach`](crate::SessionClient::attach), or
//! [`Heartbeat::attached`](super::Heartbeat::attached). That of a pool is
//! `serde_json::to_value(pool.info())`. The tracker understands none of it and keeps the last one of each
//! name, in memory, until the session is gone or the tracker is started again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DEFAULT_PAGE;
use crate::tracker::TrackedId;

/// One snapshot of one session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttachedPool {
    /// The session that attaches it.
    pub session_id: TrackedId,
    /// Its app.
    pub app_name: String,
    /// Who uses it, if it said so.
    pub user_id: Option<String>,
    /// The host it runs on, if it said so.
    pub host: Option<String>,
    /// Its process on that host, if it said so.
    pub pid: Option<u32>,
    /// The name that the client gave the snapshot.
    pub attached_name: String,
    /// The snapshot.
    pub snapshot: Value,
    /// When the session's last beat came: RFC 3339, UTC. The snapshot is no newer.
    pub last_heartbeat: String,
}

/// Which snapshots to list. The fields are the parameters of `GET /pools`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolQuery {
    /// Sessions on a page at most, from 1 to [`LONGEST_PAGE`](super::LONGEST_PAGE); default [`DEFAULT_PAGE`]. A page
    /// of heavy snapshots has fewer.
    pub limit: usize,
    /// A page's [`next_after`](PoolPage::next_after); default: from the beginning.
    pub after: Option<u64>,
    /// Of this app only.
    pub app: Option<String>,
    /// Of this session only.
    pub session: Option<TrackedId>,
    /// Those of this name only.
    pub name: Option<String>,
}

impl Default for PoolQuery {
    fn default() -> PoolQuery {
        PoolQuery { limit: DEFAULT_PAGE, after: None, app: None, session: None, name: None }
    }
}

impl PoolQuery {
    /// All of them, in the order in which their sessions registered.
    pub fn new() -> PoolQuery {
        PoolQuery::default()
    }

    /// Sets [`limit`](PoolQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`after`](PoolQuery::after).
    pub fn after(mut self, row: u64) -> Self {
        self.after = Some(row);
        self
    }

    /// Sets [`app`](PoolQuery::app).
    pub fn app(mut self, app_name: impl Into<String>) -> Self {
        self.app = Some(app_name.into());
        self
    }

    /// Sets [`session`](PoolQuery::session).
    pub fn session(mut self, id: impl Into<TrackedId>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Sets [`name`](PoolQuery::name).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// The answer to `GET /pools`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolPage {
    /// All snapshots of some sessions.
    pub pools: Vec<AttachedPool>,
    /// What to give as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_after: Option<u64>,
}
