//! What travels over the tracker's wire: the JSON bodies of its routes, and the numbers that
//! client and server agree on.
//!
//! Readers ignore members they do not know, and every member beyond the ancestor's is optional: a
//! newer client works with an older tracker and the other way round.
//!
//! | route | body → answer |
//! |---|---|
//! | `POST /sessions` | [`SessionCreate`] → [`SessionCreated`] |
//! | `DELETE /sessions/stale?older_than_minutes=10` | → [`CleanupResponse`] |
//! | `DELETE /sessions/{id}` | → [`StatusReply`] `deleted` |
//! | `POST /sessions/{id}/heartbeat` | nothing or [`Heartbeat`] → [`HeartbeatResponse`] |
//! | `PUT /sessions/{id}/status` | [`SessionStatus`] → [`StatusReply`] `updated` |
//! | `POST /sessions/{id}/kill` | → [`KillResponse`] |
//! | `POST /apps/{app_name}/kill-all` | → [`KillAllResponse`] |
//! | `GET /sessions` | → [`SessionList`]; with a `limit` → [`SessionPage`] |
//! | `GET /livez` | → [`StatusReply`] `alive`: the tracker runs |
//! | `GET /readyz` | → [`StatusReply`] `ready`, or 503: its database takes no changes |
//!
//! Beside them there are the beats of many sessions in one request ([`HeartbeatBatch`]), the routes
//! about kills and their receipts ([`KillReceipt`]), pages of the list ([`SessionQuery`]), about the
//! life of sessions ([`TrackedSession::state`], [`Verb`], [`HistoryEntry`], [`TrackerState`]), about who
//! has asked for what ([`AuditEntry`]) and about what happens as it happens ([`TrackerEvent`]) and what
//! apps attach to beats ([`AttachedPool`]), listed where those are described. Who may ask for what: [`Role`].
//!
//! Names in a path are percent-encoded, a slash inside a name as `%2F`. Success is always 200.
//! Every refusal carries an [`ErrorBody`]: 404 for an id that the tracker does not know, 409 for a
//! request that no longer fits, 422 for a body or parameter that it does not understand, 401 and 403
//! for whom an access token is missing or is not enough, 403 also for a foreign `Host` or `Origin`, 503 when the store cannot write.
//!
//! # Beats in order
//! A client that numbers its beats ([`Heartbeat::beat_number`]) is safe from its own past: a beat that
//! arrives after a newer one is 409 `late_beat` and changes nothing, and the answer to a beat of a
//! session that is gone says in [`ErrorBody::reason`] why. No beat ever brings a session back.
//!
//! # The parked beat
//! `POST /sessions/{id}/heartbeat?wait=SECONDS` counts as a beat when it arrives and is answered
//! when a kill comes, when the session is deleted (404), when a newer beat of the session that waits as well arrives,
//! or after `SECONDS` (at most [`MAX_WAIT`]). A tracker that offers this says so with
//! [`SessionCreated::max_wait_seconds`]; one that does not answers at once. A tracker with too many
//! parked beats, or one that stops, answers at once as well: a client keeps to its own interval
//! when an answer comes early without a kill.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{IntoDeserializer as _, value};
use serde::{Deserialize, Deserializer, Serialize};

use super::{TrackedId, TrackedSession};

mod access;
mod audit;
mod batch;
mod events;
mod kills;
mod life;
mod list;
mod pools;

pub use access::Role;
pub use audit::{Asker, AuditAction, AuditEntry, AuditPage, AuditQuery, AuditResult};
pub use batch::{BatchAnswer, BatchBeat, HeartbeatAnswers, HeartbeatBatch};
pub use events::{EVENT_COMMENT, EventKind, EventList, EventPosition, EventQuery, MAX_EVENTS, TrackerEvent};
pub use kills::{
    KillAcknowledgement, KillPreview, KillReceipt, KillRequest, KillScope, KillState, KillStats, KillStep,
    Neighbour, PreviewedLease, PreviewedSession, ReceiptList, ReceiptQuery, StepLatency, Whom,
};
pub use life::{
    Embargo, EndReason, HistoryEntry, HistoryPage, HistoryQuery, MassSilence, OrderReply, TrackerState, Verb,
};
pub use pools::{AttachedPool, PoolPage, PoolQuery};

#[cfg(any(feature = "client", feature = "server"))]
pub(super) use list::Glance;
pub use list::{DEFAULT_PAGE, LONGEST_PAGE, LONGEST_SEARCH, SessionPage, SessionQuery, SessionSort, SortKey};

/// The port of the tracker.
pub const DEFAULT_PORT: u16 = 8000;
/// Where clients look for the tracker.
pub const DEFAULT_URL: &str = "http://localhost:8000";
/// How often a client beats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// How long a client waits for an answer (a parked beat: in addition to its wait).
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a tracked session is shown as stale: four intervals.
pub const STALE_AFTER: Duration = Duration::from_secs(120);
/// Silence after which a tracked session is moved to the history: twenty intervals.
pub const PURGE_AFTER: Duration = Duration::from_secs(600);
/// A kill that is not confirmed after this time has expired: it is told on, but nobody waits for it.
pub const KILL_EXPIRES_AFTER: Duration = Duration::from_secs(600);
/// The longest embargo of a `kill-all`.
pub const MAX_EMBARGO: Duration = Duration::from_secs(3_600);
/// What the snapshots that travel with a beat may weigh together: the rest of a beat's body is small.
pub const MAX_ATTACHED: usize = MAX_BODY - 4 * 1024;
/// How deep lists and objects in one of them may be nested. Lists show them further inside, where readers
/// that give up at 128 levels must come to what others attach.
pub const MAX_ATTACHED_DEPTH: usize = 64;
/// How often the page refreshes.
pub const DASHBOARD_REFRESH: Duration = Duration::from_secs(10);
/// The longest time a beat is parked.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may stay unused before the tracker closes it: longer than any wait.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(75);
/// The largest body that the tracker reads, but for batches.
pub const MAX_BODY: usize = 64 * 1024;
/// The largest body of `POST /heartbeats`.
pub const MAX_BATCH_BODY: usize = 1024 * 1024;
/// The `detail` of every 404 about a tracked session.
pub const NOT_FOUND: &str = "Session not found";

/// Whether no path can name this app, so that nobody could kill all of it: NUL is refused there.
pub(super) fn is_unspeakable(app_name: &str) -> bool {
    app_name.contains('\0')
}

/// A registration, the body of `POST /sessions`.
///
/// A registration with an id that is registered already updates that session and keeps its start
/// time and a pending kill. An id that was lost to a long silence gets its pending kill back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionCreate {
    /// The app's name: not empty, at most 1 024 bytes, without NUL.
    pub app_name: String,
    /// Who uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The id that the client chose: a UUID. Without it the tracker makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<TrackedId>,
    /// The host it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its process on that host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What else it wants to show.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For how long it has been running when it registers; by default it starts now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<f64>,
    /// Its status when it registers, `idle` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The task it is in when it registers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_task: Option<String>,
    /// The app's version: at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How often it beats, 30 s by default: it is late after one and a half of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<f64>,
    /// The number of its last beat before this registration: see [`Heartbeat::beat_number`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat_number: Option<u64>,
    /// It shall be out of reach of `kill-all`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionCreated {
    /// The session's id: the client's own if it sent one.
    pub session_id: TrackedId,
    /// The longest `?wait=` that the tracker honours; absent when it parks no beats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_seconds: Option<u64>,
    /// How often the tracker wants it to beat; absent when that is up to the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<f64>,
}

/// What may travel with a beat, the body of `POST /sessions/{id}/heartbeat`. No body is fine too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// A status that did not get through before. `current_task` counts only together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The task that belongs to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_task: Option<String>,
    /// See [`SessionStatus::status_number`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_number: Option<u64>,
    /// Snapshots to show beside the session, by name. Absent keeps the last ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<BTreeMap<String, serde_json::Value>>,
    /// Counts the client's beats up. One that does not exceed the last one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat_number: Option<u64>,
    /// How far the client is with a kill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<KillAcknowledgement>,
    /// The last [`HeartbeatResponse::verbs_number`] that the client has read, 0 before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs_number: Option<u64>,
    /// How far its task is, from 0 to 1. Absent keeps the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// The memory that it has in RAM. Absent keeps the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// The answer to a beat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// Somebody wants this session to stop. It stays true until the session is gone.
    pub kill_requested: bool,
    /// The kill to acknowledge with the next beats: see [`Heartbeat::kill`]. Absent when none is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_id: Option<u64>,
    /// Why it shall stop, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_reason: Option<String>,
    /// What it shall do beside going on: `pause` or `drain`. Unknown words are to be ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// Counts the changes of `verbs` since the session was registered anew; absent before the first, or 0
    /// for a client that has read another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs_number: Option<u64>,
}

/// The body of `PUT /sessions/{id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// `idle` or `running`; other words are kept and shown as they are (at most 64 bytes).
    pub status: String,
    /// The task it is in; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_task: Option<String>,
    /// Counts the client's statuses up: one that arrives after a newer one is ignored. Without it
    /// the last to arrive counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_number: Option<u64>,
}

/// The answer of routes that have nothing to say: `deleted`, `updated`, `alive`, `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// What was done.
    pub status: String,
}

/// The answer to a kill: the request is kept until the session is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KillResponse {
    /// Always `kill_requested`.
    pub status: String,
    /// The receipt: `GET /kills/{kill_id}` tells how it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<KillReceipt>,
}

/// The answer to `kill-all`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KillAllResponse {
    /// How many sessions are asked to stop: all that were named and are not protected.
    pub killed_count: u64,
    /// Which.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_ids: Vec<TrackedId>,
    /// A receipt for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<KillReceipt>,
    /// Who is protected and goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<TrackedId>,
}

/// The answer to a clean-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupResponse {
    /// How many silent sessions were moved to the history.
    pub deleted_count: u64,
}

/// The answer to `GET /sessions`: newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    /// The rows.
    pub sessions: Vec<TrackedSession>,
}

/// The body of every refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, for people.
    pub detail: String,
    /// What is wrong, for programs. On 409: `late_beat`, `protected`, `stale_generation`. On 404 to a
    /// numbered beat: `ended`, `lost` or, for an id that the tracker does not remember, `unknown`. On 401
    /// `unauthorized`, on 403 because of the access token `forbidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Reads a word that a newer tracker may say: one that this version does not know is as if it was not there.
fn known<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let word = Option::<String>::deserialize(deserializer)?;
    Ok(word.and_then(|word| T::deserialize(word.into_deserializer()).map_err(|_: value::Error| ()).ok()))
}

/// Whether lists and objects in an attachment are nested deeper than [`MAX_ATTACHED_DEPTH`].
pub(crate) fn is_too_deep(attached: &serde_json::Value) -> bool {
    fn is_deeper(value: &serde_json::Value, levels: usize) -> bool {
        use serde_json::Value;
        let is_inner_deeper = |value: &Value| is_deeper(value, levels.saturating_sub(1));
        match value {
            Value::Array(values) => levels == 0 || values.iter().any(is_inner_deeper),
            Value::Object(members) => levels == 0 || members.values().any(is_inner_deeper),
            _ => false,
        }
    }
    is_deeper(attached, MAX_ATTACHED_DEPTH)
}
