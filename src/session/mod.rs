//! A session: one live worker process.
mod config;
mod execution;
pub(crate) mod protocol;
mod request;
mod runtime;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use config::{Limits, SessionConfig, WorkDir};
pub use execution::{Cause, Execution, ExecutionError, Exit, Omitted, Outcome, PostMortem};
pub use request::{Call, OutputCallback, Request, Stream};
pub use runtime::Runtime;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};

/// Number of a session, unique in this process; used in logs and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(pub(crate) u64);
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One worker process. (contract)
#[derive(Debug)]
pub struct Session {}

/// Shared view of a worker process.
#[derive(Debug)]
pub(crate) struct Process {}

/// What a session looks like from outside.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// Process id.
    pub pid: u32,
    /// State.
    pub state: SessionState,
    /// When the process was started.
    pub created_at: SystemTime,
    /// When it last began or ended an execution.
    pub last_used_at: SystemTime,
    /// Executions begun since the process was started.
    pub execution_count: u64,
    /// Executions that did not complete.
    pub error_count: u64,
    /// Resident memory now and its peak, in bytes; `None` once the process is gone.
    pub memory_usage: Option<Memory>,
}
/// Memory.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// now
    pub resident: u64,
    /// peak
    pub peak: u64,
}
/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionState {
    /// waits
    Ready,
    /// executing
    Busy,
    /// gone
    Dead,
}

/// What a worker says of the state a user left, in its answer to a reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetReport {
    /// Reasons why only a new process is clean; empty when the worker is back in its warm state.
    pub(crate) taint: Vec<String>,
}

impl Session {
    /// Starts a worker and waits until it is ready (contract)
    pub fn start(config: &SessionConfig) -> Result<Session> {
        let _ = config;
        unimplemented!()
    }
    /// builder
    pub fn builder(runtime: Runtime) -> SessionConfig {
        SessionConfig::new(runtime)
    }
    /// id
    pub fn id(&self) -> SessionId {
        unimplemented!()
    }
    /// pid
    pub fn pid(&self) -> u32 {
        unimplemented!()
    }
    /// execute
    pub fn execute<'a>(&mut self, request: impl Into<Request<'a>>) -> Result<Execution> {
        let _ = request.into();
        unimplemented!()
    }
    /// Whether the process lives and the session can execute. One atomic load after the monitor or an execution saw the death.
    pub fn is_alive(&self) -> bool {
        unimplemented!()
    }
    /// info
    pub fn info(&self) -> SessionInfo {
        unimplemented!()
    }
    /// Executions begun.
    pub fn execution_count(&self) -> u64 {
        unimplemented!()
    }
    /// New process in the same session, counters of the process start anew.
    pub fn restart(&mut self) -> Result<()> {
        unimplemented!()
    }
    /// Asks the worker to leave, waits at most `grace`, then kills its group; returns how it ended.
    pub fn shutdown(self, grace: Duration) -> PostMortem {
        let _ = grace;
        unimplemented!()
    }
    /// Kills the group, waits until the process is gone.
    pub fn terminate(self) -> PostMortem {
        unimplemented!()
    }

    // ---- for the pool ----
    /// Executions of this session are also ended by `token` (the scope of the lease); `None` clears it.
    pub(crate) fn bind(&mut self, token: Option<CancelToken>) {
        let _ = token;
    }
    /// True if an execution was left in the middle (a panic in a callback) or ended badly, so that
    /// only a new process is clean.
    pub(crate) fn is_tainted(&self) -> bool {
        unimplemented!()
    }
    /// Sends the reset frame without blocking (about 2 µs).
    pub(crate) fn begin_reset(&mut self) -> Result<()> {
        unimplemented!()
    }
    /// Reads the answer to a reset if it is there, without blocking. `Ok(None)`: not complete yet.
    pub(crate) fn poll_reset(&mut self) -> Result<Option<ResetReport>> {
        unimplemented!()
    }
    /// Looks at an idle session without blocking: drops stray output (returns its bytes), and
    /// fails if the process has ended or sent bytes that nobody asked for.
    pub(crate) fn check_idle(&mut self) -> Result<u64> {
        unimplemented!()
    }
    /// Readable whenever the worker sent anything or ended: for a monitor's epoll.
    pub(crate) fn events_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
    /// The process, to be watched or killed while another thread uses the session.
    pub(crate) fn process(&self) -> &Arc<Process> {
        unimplemented!()
    }
    /// Ends the session off this thread: closes its channels, lets the worker leave by itself for
    /// `grace` (zero: kill at once), kills the group, reaps, removes its directory, then calls
    /// `gone` on the reaper's thread. Never blocks.
    pub(crate) fn retire(self: Box<Self>, grace: Duration, gone: impl FnOnce(PostMortem) + Send + 'static) {
        let _ = (grace, gone);
        unimplemented!()
    }
}
impl Process {
    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
    /// SIGKILL to the whole group, if the process is not yet reaped. Never blocks.
    pub(crate) fn kill_group(&self, cause: Cause) {
        let _ = cause;
        unimplemented!()
    }
    /// Whether the process is thought to live: one atomic load.
    pub(crate) fn is_alive(&self) -> bool {
        unimplemented!()
    }
    /// Looks at the pidfd and clears the alive flag if the process has ended; returns whether it lives.
    pub(crate) fn check_alive(&self) -> bool {
        unimplemented!()
    }
    /// Resident size now and its peak, from the kernel (about 30 µs); None when it is gone.
    pub(crate) fn memory(&self) -> Option<Memory> {
        unimplemented!()
    }
}
#[allow(dead_code)]
fn _keep(e: Error) -> Error {
    e
}
