//! The beats of many sessions of one process in one request.
//!
//! | route | body → answer |
//! |---|---|
//! | `POST /heartbeats?wait=SECONDS` | [`HeartbeatBatch`] → [`HeartbeatAnswers`] |
//!
//! Each beat counts as if it had come alone, and its answer is what it would have been alone; but only
//! who has something to hear is answered for. The body may have
//! [`MAX_BATCH_BODY`](super::MAX_BATCH_BODY) bytes, and no session may be in it twice.
//!
//! With a wait the request is parked until the first of its sessions has something to hear: a kill, an
//! order, its end; or until a newer beat of one of them is parked. A session that is being killed keeps the others
//! from waiting only until its client says
//! [`heard_kill`](BatchBeat::heard_kill).

use serde::{Deserialize, Serialize};

use super::{Heartbeat, HeartbeatResponse};
use crate::tracker::TrackedId;

/// The body of `POST /heartbeats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatBatch {
    /// The beats, each of another session.
    pub beats: Vec<BatchBeat>,
}

/// One beat of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchBeat {
    /// Whose it is.
    pub session_id: TrackedId,
    /// Its client knows that it shall stop, and need not hear it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heard_kill: bool,
    /// What it carries.
    #[serde(flatten)]
    pub beat: Heartbeat,
}

/// The answer to a batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatAnswers {
    /// For whom there is something to hear. Whoever is not among them goes on.
    pub answers: Vec<BatchAnswer>,
}

/// The answer to one beat of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchAnswer {
    /// To whose beat.
    pub session_id: TrackedId,
    /// Why the beat counted for nothing: `late_beat`, as 409 would say, or `ended`, `lost` or
    /// `unknown`, as 404 would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
    /// What the session shall hear.
    #[serde(flatten)]
    pub reply: HeartbeatResponse,
}
