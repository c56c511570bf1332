//! What travels about kills: how one is asked for, what the client says of it, and the receipt.
//!
//! | route | body → answer |
//! |---|---|
//! | `POST /sessions/{id}/kill` | nothing or [`KillRequest`] → [`KillResponse`](super::KillResponse) |
//! | `POST /apps/{app_name}/kill-all` | nothing or [`KillRequest`] → [`KillAllResponse`](super::KillAllResponse) |
//! | `POST /labels/{key}/{value}/kill-all` | nothing or [`KillRequest`] → [`KillAllResponse`](super::KillAllResponse) |
//! | each of these with `"dry_run": true` or `?dry_run=1` | → [`KillPreview`], and nothing is done |
//! | `GET /kills?limit=100&before=KILL_ID` | [`ReceiptQuery`] → [`ReceiptList`], newest first; also `&app=`, `&session=`, `&open=1` |
//! | `GET /kills/{kill_id}` | → [`KillReceipt`] |
//!
//! # What a receipt promises
//! A kill is told in every answer to a beat from its request until the session is gone, and a parked
//! beat is answered with it at once. So it arrives at least once, as long as the session beats.
//! A client that acknowledges moves the receipt on with its next beats: *delivered* when it has read
//! the answer, *stopping* when its callbacks begin, *confirmed* when they have ended, or when the
//! session has left the tracker by itself. A client that does not acknowledge goes from *requested*
//! to *confirmed* when it leaves. *Expired* means that the tracker gave up waiting: the session was
//! lost to silence, or goes on in spite of the kill.

use serde::{Deserialize, Serialize};

use super::{Asker, DEFAULT_PAGE};
use crate::named::show_by_name;
use crate::tracker::TrackedId;

/// Whom a kill or an order means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The session with this id.
    Session(TrackedId),
    /// All sessions of this app.
    App(String),
    /// All sessions with this label.
    Label {
        /// The label's name.
        key: String,
        /// Its value.
        value: String,
    },
}

/// The body of a kill; every member may be left out, and the whole body too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KillRequest {
    /// Who asks, for the receipt: at most 256 bytes. The tracker keeps beside it what it knows itself:
    /// [`KillReceipt::asked_by`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, for the receipt: at most 1 024 bytes. The session hears it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only tell what would be hit: the answer is a [`KillPreview`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Kill the session even if it is protected. Only with an id: `kill-all` never hits a protected
    /// session.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// The [`KillPreview::generation`] that the operator has seen: if the sessions that would be hit
    /// are others by now, nobody is killed and the answer is 409 with the reason `stale_generation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// With `kill-all` of an app: a session of the app that registers within this time is killed at
    /// once. At most one hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embargo_seconds: Option<f64>,
}

/// How far a kill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KillState {
    /// It is on the disk, and told with every beat.
    Requested,
    /// The client has read it.
    Delivered,
    /// The client's callbacks run.
    Stopping,
    /// The callbacks have ended, or the session has left.
    Confirmed,
    /// The tracker gave up waiting.
    Expired,
}

impl KillState {
    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            KillState::Requested => "requested",
            KillState::Delivered => "delivered",
            KillState::Stopping => "stopping",
            KillState::Confirmed => "confirmed",
            KillState::Expired => "expired",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, KillState::Confirmed | KillState::Expired)
    }
}

/// What a client says of a kill, in [`Heartbeat::kill`](super::Heartbeat::kill).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillAcknowledgement {
    /// Which kill: [`HeartbeatResponse::kill_id`](super::HeartbeatResponse::kill_id).
    pub kill_id: u64,
    /// How far the client is with it.
    pub step: KillStep,
}

/// A step of a client on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillStep {
    /// It has read the kill.
    Delivered,
    /// Its callbacks have begun.
    Stopping,
    /// Its callbacks have ended.
    Confirmed,
}

impl KillStep {
    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            KillStep::Delivered => "delivered",
            KillStep::Stopping => "stopping",
            KillStep::Confirmed => "confirmed",
        }
    }
}

/// What a kill was asked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KillScope {
    /// The session's id.
    Session,
    /// The name of its app.
    App,
    /// One of its labels.
    Label,
    /// It registered during an embargo on its app.
    Embargo,
    /// It was lost with a pending kill and came back.
    Returned,
}

impl KillScope {
    #[cfg(feature = "server")]
    pub(in crate::tracker) const ALL: [KillScope; 5] =
        [KillScope::Session, KillScope::App, KillScope::Label, KillScope::Embargo, KillScope::Returned];

    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            KillScope::Session => "session",
            KillScope::App => "app",
            KillScope::Label => "label",
            KillScope::Embargo => "embargo",
            KillScope::Returned => "returned",
        }
    }
}

show_by_name!(KillState, KillStep, KillScope);

/// One kill of one session, and how far it is. Asking again while it is open gives the same receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KillReceipt {
    /// Its number: they count up.
    pub kill_id: u64,
    /// The session.
    pub session_id: TrackedId,
    /// The session's app.
    pub app_name: String,
    /// What it was asked for by.
    pub scope: KillScope,
    /// Who asked, as the tracker knows it. Empty if it was the tracker's own program, and not a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<Asker>,
    /// Who asked, as he said himself.
    pub requested_by: Option<String>,
    /// Why, if it was said.
    pub reason: Option<String>,
    /// How far it is.
    pub state: KillState,
    /// How many answers to beats carried it.
    pub told: u32,
    /// When it was on the disk: RFC 3339, UTC.
    pub requested_at: String,
    /// When the client said that it has read it. Empty if it never said so.
    pub delivered_at: Option<String>,
    /// When the client said that its callbacks have begun.
    pub stopping_at: Option<String>,
    /// When the client said that its callbacks have ended, or left.
    pub confirmed_at: Option<String>,
    /// When the tracker gave up.
    pub expired_at: Option<String>,
    /// From the request to `delivered_at`, by the tracker's monotonic clock; the others likewise.
    pub delivered_seconds: Option<f64>,
    /// From the request to `stopping_at`.
    pub stopping_seconds: Option<f64>,
    /// From the request to `confirmed_at`.
    pub confirmed_seconds: Option<f64>,
    /// From the request to `expired_at`.
    pub expired_seconds: Option<f64>,
}

/// Which receipts to list. The fields are the parameters of `GET /kills`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiptQuery {
    /// Receipts on a page at most, from 1 to [`LONGEST_PAGE`](super::LONGEST_PAGE); default [`DEFAULT_PAGE`].
    pub limit: usize,
    /// Only those with a smaller number: a page's [`next_before`](ReceiptList::next_before).
    /// Default: from the newest on.
    pub before: Option<u64>,
    /// Of this app only.
    pub app: Option<String>,
    /// Of this session only.
    pub session: Option<TrackedId>,
    /// Open ones only: neither confirmed nor expired.
    pub open: bool,
}

impl Default for ReceiptQuery {
    fn default() -> ReceiptQuery {
        ReceiptQuery { limit: DEFAULT_PAGE, before: None, app: None, session: None, open: false }
    }
}

impl ReceiptQuery {
    /// All of them, newest first.
    pub fn new() -> ReceiptQuery {
        ReceiptQuery::default()
    }

    /// Sets [`limit`](ReceiptQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`before`](ReceiptQuery::before).
    pub fn before(mut self, kill_id: u64) -> Self {
        self.before = Some(kill_id);
        self
    }

    /// Sets [`app`](ReceiptQuery::app).
    pub fn app(mut self, app_name: impl Into<String>) -> Self {
        self.app = Some(app_name.into());
        self
    }

    /// Sets [`session`](ReceiptQuery::session).
    pub fn session(mut self, id: impl Into<TrackedId>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Sets [`open`](ReceiptQuery::open).
    pub fn open(mut self, open: bool) -> Self {
        self.open = open;
        self
    }
}

/// The answer to `GET /kills`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptList {
    /// The receipts, newest first.
    pub kills: Vec<KillReceipt>,
    /// What to give as `before` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before: Option<u64>,
}

/// How long a step of kills took, over the last 1 024 of them: from the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepLatency {
    /// How many kills came to this step since the server's start.
    pub count: u64,
    /// Half of the last ones took no longer.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99_seconds: Option<f64>,
}

/// The kills since the server's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KillStats {
    /// Receipts that were opened.
    pub requested: u64,
    /// Receipts that are open now.
    pub open: u64,
    /// Receipts that expired.
    pub expired: u64,
    /// From the request until the client had read it.
    pub delivered: StepLatency,
    /// From the request until the client's callbacks began.
    pub stopping: StepLatency,
    /// From the request until it was over.
    pub confirmed: StepLatency,
}

/// What a kill would hit: the answer to a `dry_run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KillPreview {
    /// Stands for exactly these sessions; for [`KillRequest::generation`].
    pub generation: String,
    /// Who would be asked to stop, and with what.
    pub sessions: Vec<PreviewedSession>,
    /// Who is protected and would go on.
    pub protected: Vec<TrackedId>,
    /// Who would go on in the same pools.
    pub neighbours: Vec<Neighbour>,
}

/// A session that a kill would hit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PreviewedSession {
    /// Its id.
    pub session_id: TrackedId,
    /// Its app.
    pub app_name: String,
    /// Who uses it.
    pub user_id: Option<String>,
    /// The task it is in.
    pub current_task: Option<String>,
    /// The host it runs on.
    pub host: Option<String>,
    /// Its process on that host.
    pub pid: Option<u32>,
    /// It has been asked to stop already.
    pub kill_requested: bool,
    /// What it holds, as far as it attaches snapshots of its pools.
    pub leases: Vec<PreviewedLease>,
}

/// A worker process that a session holds: a row of the `sessions` of an attached snapshot that has a
/// `holder` or is `busy`, such as [`PoolInfo`](crate::PoolInfo) gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewedLease {
    /// The name of the attached snapshot.
    pub pool: String,
    /// The worker's process.
    pub pid: Option<u32>,
    /// Who holds it, as the snapshot says.
    pub holder: Option<serde_json::Value>,
}

/// A session that would not be hit, but shares a pool with one that would: it attaches a snapshot of
/// the same name from the same process, or one with the same `pool_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its id.
    pub session_id: TrackedId,
    /// Its app.
    pub app_name: String,
    /// The name of the snapshot by which it is known to share.
    pub pool: String,
}
