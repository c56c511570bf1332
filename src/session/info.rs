//! What a session tells of itself.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use super::proc::Memory;

use crate::named::show_by_name;

/// Number of a session, unique in this process; used in logs and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(pub(crate) u64);

impl SessionId {
    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A snapshot of a session, from [`Session::info`](crate::Session::info).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// Its process id.
    pub pid: u32,
    /// Whether it can be used.
    pub state: SessionState,
    /// Language and version of the worker, such as `python 3.11.7`.
    pub runtime: String,
    /// When its process was started.
    pub created_at: SystemTime,
    /// When its last execution ended; when it was started, before the first.
    pub last_used_at: SystemTime,
    /// Executions begun since its process was started.
    pub execution_count: u64,
    /// Executions among them that did not complete.
    pub error_count: u64,
    /// Bytes of output that came after the execution that caused them had ended, and were dropped.
    pub late_output: u64,
    /// Resident memory; `None` once the process is gone.
    pub memory_usage: Option<Memory>,
}

/// Whether a session can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionState {
    /// Its process lives and waits for a request.
    Ready,
    /// Its process has ended or must not be used again (the Python ancestor's `ERROR`).
    Dead,
}

impl SessionState {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionState::Ready => "ready",
            SessionState::Dead => "dead",
        }
    }
}

show_by_name!(SessionState);
