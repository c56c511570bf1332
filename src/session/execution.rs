//! What came of a request: outcome, value, output, and the post-mortem of a dead worker.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SessionId;
use super::artefacts::Artefacts;
use super::events::{Attachment, Display};

/// What came of one request. User code's failures are here, not in [`Error`](crate::Error).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Execution {
    /// How it ended.
    pub outcome: Outcome,
    /// The value of the trailing expression or call; null if there is none, or none that JSON can
    /// hold exactly (then [`omitted`](Execution::omitted) says why).
    pub value: Value,
    /// The value as the worker's language prints it; `None` if there is no value. Cut at 64 KiB.
    pub repr: Option<String>,
    /// Why `value` is null although there is a value.
    pub omitted: Option<Omitted>,
    /// The value's bytes, if it is a byte string (Python `bytes`, Node `Buffer`); `value` is null then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// What it showed, in order: see [`Display`].
    pub displays: Vec<Display>,
    /// Bytes that it attached to its result, in order.
    pub attachments: Vec<Attachment>,
    /// Displays and attachments that were dropped because of the
    /// [`event_cap`](crate::SessionConfig::event_cap).
    pub dropped_events: u64,
    /// What was written to file descriptor 1, as text (invalid UTF-8 replaced).
    pub stdout: String,
    /// What was written to file descriptor 2, as text (invalid UTF-8 replaced).
    pub stderr: String,
    /// Bytes of stdout and stderr that were dropped from the middle because of the output cap.
    pub dropped: (u64, u64),
    /// The exception, when the outcome is `Failed` (or when interrupted code raised one).
    pub error: Option<ExecutionError>,
    /// From the request to its result.
    pub duration: Duration,
    /// The session that ran it.
    pub session: SessionId,
    /// What it used, if [`measure`](crate::Request::measure) was asked for.
    pub usage: Option<Usage>,
    /// Files of the working directory that it made or changed, if
    /// [`artefacts`](crate::Request::artefacts) was asked for. Removed ones are not told.
    pub artefacts: Option<Artefacts>,
    /// How the worker ended, if it did.
    pub post_mortem: Option<Box<PostMortem>>,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It ran to its end.
    Completed,
    /// It raised an exception.
    Failed,
    /// Its token was cancelled, or its [`InterruptHandle`](crate::InterruptHandle) used, and it ended
    /// because of that.
    Cancelled {
        /// Whether the process group had to be killed.
        killed: bool,
    },
    /// A time limit passed and it ended because of that.
    TimedOut {
        /// Which one: [`time_limit`](crate::Request::time_limit) (soft) or
        /// [`hard_time_limit`](crate::Request::hard_time_limit).
        limit: TimeLimit,
        /// Whether the process group had to be killed.
        killed: bool,
    },
    /// It ran into one of the session's [`Limits`](crate::Limits).
    LimitExceeded {
        /// Which one.
        limit: Limit,
        /// Whether that ended the process.
        killed: bool,
    },
    /// The worker process ended under it; see the post-mortem.
    Died,
}

/// Which of the two time limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLimit {
    /// The code was asked to stop, and killed only if it did not within its grace.
    Soft,
    /// The process group was killed at this moment.
    Hard,
}

/// A limit that the kernel holds: see [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// Private memory.
    Data,
    /// All mapped memory.
    AddressSpace,
    /// CPU time of the process's whole life.
    #[serde(rename = "cpu")]
    CpuTime,
    /// Open file descriptors.
    OpenFiles,
    /// Size of a file that is written.
    FileSize,
    /// Processes of the worker's user.
    Processes,
}

/// Why a value is not in [`Execution::value`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Omitted {
    /// JSON has no form for it: a set, NaN, a lone surrogate, an object.
    NotJson(String),
    /// Its JSON is larger than the frame cap.
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
    },
    /// It holds an integer beyond 64 bits, which would lose digits.
    InexactNumber,
}

/// What an execution used of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time of the worker process, all its threads, without its children. From the worker
    /// itself to the microsecond; of one that died, from the kernel in steps of 10 ms.
    pub cpu_time: Duration,
    /// Peak of the worker's resident memory during the execution, in bytes.
    pub peak_memory: Option<u64>,
    /// Its resident memory afterwards, in bytes.
    pub memory: Option<u64>,
}

/// An exception of user code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecutionError {
    /// The exception's type, such as `ValueError`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its message.
    pub message: String,
    /// Its traceback, without frames of the worker.
    pub traceback: String,
    /// The exit status that the code asked for, if this is a `SystemExit`.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The limit that the code ran into, as far as the worker can tell.
    #[serde(default)]
    pub limit: Option<Limit>,
}

/// What is known of the end of a worker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PostMortem {
    /// The session.
    pub session: SessionId,
    /// Its process id.
    pub pid: u32,
    /// Exit code or signal.
    pub exit: Exit,
    /// Who ended it and why.
    pub cause: Cause,
    /// The last bytes of stderr (at most 4 KiB), as text.
    pub stderr_tail: String,
    /// The largest resident size seen, in bytes, if it was ever looked at.
    pub peak_memory: Option<u64>,
    /// Requests that it had executed before.
    pub executions: u64,
    /// Number of the request that was running, if one was.
    pub running: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exit {
    /// It left with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It had not ended, or nobody could tell, when this was written.
    Unknown,
}

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// It ended by itself, or somebody outside remuda killed it.
    Itself,
    /// Killed: the hard time limit had passed, or the grace after the soft one.
    TimeLimit,
    /// Killed after its grace because the token was cancelled, or by an interrupt handle.
    Cancelled,
    /// Killed: it broke the protocol in this way.
    Protocol(String),
    /// Ended by its owner: shutdown, terminate, recycling, or a drop.
    Retired,
    /// Killed by its pool, because its lease was held for longer than
    /// [`leak_after`](crate::PoolConfig::leak_after).
    Reclaimed,
}

/// Lines of stderr that a message shows; the post-mortem has them all.
const LAST_LINES: usize = 3;

impl Execution {
    /// Whether it ran to its end.
    pub fn is_completed(&self) -> bool {
        self.outcome == Outcome::Completed
    }
}

impl Outcome {
    /// One word for tables and metrics: `completed`, `failed`, `cancelled`, `timed_out`, `limit_exceeded`,
    /// `died`.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Cancelled { .. } => "cancelled",
            Outcome::TimedOut { .. } => "timed_out",
            Outcome::LimitExceeded { .. } => "limit_exceeded",
            Outcome::Died => "died",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Cancelled { killed: true } => "cancelled (killed)",
            Outcome::TimedOut { killed: false, .. } => "timed out",
            Outcome::TimedOut { killed: true, .. } => "timed out (killed)",
            Outcome::LimitExceeded { limit: Limit::Data, .. } => "memory limit exceeded",
            Outcome::LimitExceeded { limit: Limit::AddressSpace, .. } => "address space limit exceeded",
            Outcome::LimitExceeded { limit: Limit::Processes, .. } => "process limit exceeded",
            Outcome::LimitExceeded { limit: Limit::CpuTime, .. } => "CPU time limit exceeded",
            Outcome::LimitExceeded { limit: Limit::OpenFiles, .. } => "open file limit exceeded",
            Outcome::LimitExceeded { limit: Limit::FileSize, .. } => "file size limit exceeded",
            other => other.as_str(),
        })
    }
}

impl fmt::Display for ExecutionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("unknown exit"),
        }
    }
}

impl fmt::Display for PostMortem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.exit)?;
        match &self.cause {
            Cause::Itself => {}
            Cause::TimeLimit => f.write_str(", killed after its time limit")?,
            Cause::Cancelled => f.write_str(", killed because it was cancelled")?,
            Cause::Protocol(reason) => write!(f, ", killed because it broke the protocol: {reason}")?,
            Cause::Retired => f.write_str(", retired")?,
            Cause::Reclaimed => f.write_str(", taken back by its pool: the lease was held for too long")?,
        }
        let last_lines: Vec<&str> = self.stderr_tail.trim_end().lines().rev().take(LAST_LINES).collect();
        if last_lines.is_empty() {
            return Ok(());
        }
        f.write_str("; its last words:")?;
        last_lines.iter().rev().try_for_each(|line| write!(f, " {line}"))
    }
}
