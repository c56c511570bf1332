//! The tracker: running programs register with it, and operators see and kill them.
//!
//! A *tracked session* is one running app. It registers over HTTP, beats every 30 s and learns
//! from the answer whether somebody wants it to stop. The tracker kills nothing itself: it keeps
//! the request until the app hears it.
//!
//! Nothing here knows of the pool: a program joins the two with a [`CancelToken`](crate::CancelToken).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::named::show_by_name;

pub mod api;
#[cfg(feature = "server")]
mod civil;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod events;
#[cfg(feature = "server")]
mod feed;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod life;
#[cfg(feature = "client")]
mod operator;
#[cfg(feature = "server")]
mod preview;
#[cfg(feature = "server")]
mod receipts;
mod secret;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod store;

#[cfg(feature = "client")]
pub use client::{ClientConfig, DeadMan, SessionClient, SessionGroup, TaskGuard};
#[cfg(all(fuzzing, feature = "server"))]
pub(crate) use http::read_requests;
#[cfg(feature = "client")]
pub use operator::{EventFollower, TrackerOperator, TrackerPages};
pub use secret::AccessToken;
#[cfg(feature = "server")]
pub use server::{Tokens, TrackerServer, TrackerServerBuilder};
#[cfg(feature = "server")]
pub use store::SessionStore;

/// The id of a tracked session.
///
/// Ids that remuda makes are random UUIDs (version 4). Other text occurs where a database of the
/// Python ancestor was taken over, and as an id that nobody has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrackedId(Box<str>);

impl TrackedId {
    /// A new random id.
    ///
    /// # Panics
    /// If the kernel has no random numbers, which Linux excludes once it has booted.
    pub fn random() -> TrackedId {
        let mut bytes = [0_u8; 16];
        let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled, Ok(bytes.len()), "the kernel gives random numbers");
        let bits = (u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        TrackedId([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-").into_boxed_str())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a UUID in its usual form, 8-4-4-4-12 hexadecimal digits.
    pub fn is_uuid(&self) -> bool {
        self.0.len() == 36
            && self.0.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    }
}

impl From<&str> for TrackedId {
    fn from(text: &str) -> TrackedId {
        TrackedId(text.into())
    }
}

impl From<String> for TrackedId {
    fn from(text: String) -> TrackedId {
        TrackedId(text.into_boxed_str())
    }
}

impl AsRef<str> for TrackedId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrackedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrackedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What a tracked session is doing, as far as the tracker knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum TrackedStatus {
    /// It has no task.
    Idle,
    /// It is in a task.
    Running,
    /// Its beat is overdue, but not long enough to worry. Only in [`TrackedSession::state`].
    Late,
    /// No beat came for the stale threshold (120 s).
    Stale,
    /// It was removed after a long silence (600 s). Only in the history.
    Lost,
    /// It said that it is done. Only in the history.
    Ended,
    /// What an app of another kind calls its status.
    Other(String),
}

impl TrackedStatus {
    /// The word that stands for it in JSON.
    pub fn as_str(&self) -> &str {
        match self {
            TrackedStatus::Idle => "idle",
            TrackedStatus::Running => "running",
            TrackedStatus::Late => "late",
            TrackedStatus::Stale => "stale",
            TrackedStatus::Lost => "lost",
            TrackedStatus::Ended => "ended",
            TrackedStatus::Other(word) => word,
        }
    }
}

impl From<String> for TrackedStatus {
    fn from(word: String) -> TrackedStatus {
        match word.as_str() {
            "idle" => TrackedStatus::Idle,
            "running" => TrackedStatus::Running,
            "late" => TrackedStatus::Late,
            "stale" => TrackedStatus::Stale,
            "lost" => TrackedStatus::Lost,
            "ended" => TrackedStatus::Ended,
            _ => TrackedStatus::Other(word),
        }
    }
}

impl From<TrackedStatus> for String {
    fn from(status: TrackedStatus) -> String {
        match status {
            TrackedStatus::Other(word) => word,
            known => known.as_str().to_owned(),
        }
    }
}

show_by_name!(TrackedStatus);

/// A tracked session as `GET /sessions` shows it.
///
/// The fields from `beat_age_seconds` on are additions: a tracker of the Python ancestor does not
/// send them, and then they are empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrackedSession {
    /// Its id.
    pub session_id: TrackedId,
    /// The app it is an instance of: what `kill-all` names.
    pub app_name: String,
    /// Who uses it, if it said so.
    pub user_id: Option<String>,
    /// When it started: RFC 3339, UTC.
    pub start_time: String,
    /// When its last beat came: RFC 3339, UTC.
    pub last_heartbeat: String,
    /// How long it has been running.
    pub duration_seconds: f64,
    /// Its status as it said itself, or [`TrackedStatus::Stale`].
    pub status: TrackedStatus,
    /// The task it is in.
    pub current_task: Option<String>,
    /// No beat came for the stale threshold.
    pub is_stale: bool,
    /// Somebody wants it to stop.
    pub kill_requested: bool,
    /// How long ago its last beat came, by the tracker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat_age_seconds: Option<f64>,
    /// The host it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its process on that host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What else it says of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Snapshots that travelled with its last beat, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attached: BTreeMap<String, serde_json::Value>,
    /// Its life in one word: running, idle, late or stale. A status of its own counts as running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TrackedStatus>,
    /// The version it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How far its task is, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// The memory that it has in RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What it is ordered to do: `pause` or `drain`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// It is out of reach of `kill-all`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// The receipt of its last kill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<api::KillReceipt>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_uuids_of_version_4_and_differ() {
        let id = TrackedId::random();
        assert!(id.is_uuid(), "{id}");
        assert_eq!(&id.as_str()[14..15], "4");
        assert!("89ab".contains(&id.as_str()[19..20]), "{id}");
        assert_ne!(id, TrackedId::random());
        assert!(!TrackedId::from("nothing").is_uuid());
    }

    #[test]
    fn every_status_survives_json() {
        for word in ["idle", "running", "late", "stale", "lost", "ended", "on a break"] {
            let status = TrackedStatus::from(word.to_owned());
            assert_eq!(status.as_str(), word);
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(serde_json::from_str::<TrackedStatus>(&json).unwrap(), status);
        }
    }

    #[test]
    fn a_row_of_the_ancestor_is_understood() {
        let row = r#"{"session_id":"x","app_name":"a","user_id":null,"start_time":"2026-01-01T00:00:00",
            "last_heartbeat":"2026-01-01T00:00:00","duration_seconds":3,"status":"idle",
            "current_task":null,"is_stale":false,"kill_requested":false}"#;
        let row: TrackedSession = serde_json::from_str(row).unwrap();
        assert_eq!((row.pid, row.labels.len(), row.attached.len()), (None, 0, 0));
    }
}
