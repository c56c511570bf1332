//! What apps attach to their beats, for whoever looks after their pools.
//!
//! | route | answer |
//! |---|---|
//! | `GET /pools?limit=100&after=ROW` | → [`PoolPage`], in the order of registration; also `&app=`, `&session=`, `&name=` |
//!
//! A client attaches a snapshot under a name: [`SessionClient::attach`](crate::SessionClient::attach), or
//! [`Heartbeat::attached`](super::Heartbeat::attached). That of a pool is
//! `serde_json::to_value(pool.info())`. The tracker understands none of it and keeps the last one of each
//! name, in memory, until the session is gone or the tracker is started again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// The answer to `GET /pools`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolPage {
    /// All snapshots of some sessions.
    pub pools: Vec<AttachedPool>,
    /// What to give as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_after: Option<u64>,
}
