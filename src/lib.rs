//! Warm worker processes for synchronous programs.
//!
//! Services, data apps, agents and test harnesses run other people's code. Each piece wants a
//! process of its own, none wants to wait for an interpreter to start, and all must be stoppable
//! without harm to their neighbours. remuda lends out worker processes that are already running: a
//! remuda is the herd of saddled horses from which a rider takes a fresh one.
//!
//! ```no_run
//! use remuda::{CancelToken, Call, Runtime, SessionPool};
//! use std::time::Duration;
//!
//! # fn main() -> remuda::Result<()> {
//! // Two Python processes wait, warm; at most eight run.
//! let pool = SessionPool::builder(Runtime::python("python3")).min_idle(2).max_sessions(8).start()?;
//!
//! // A lease: the session is ours until it is dropped.
//! let mut session = pool.acquire()?;
//! let run = session.execute("print('hi'); 6 * 7")?;
//! assert_eq!((run.stdout.as_str(), run.value), ("hi\n", 42.into()));
//! drop(session);
//!
//! // A scope: everything in it ends with its token, and nothing else does.
//! let token = CancelToken::new();
//! let scope = pool.scope(&token);
//! let jobs: Vec<_> = (0..100).map(|n| scope.submit(Call::new("math:factorial").arg(n))).collect();
//! for job in scope.as_completed(jobs) {
//!     println!("{:?}", job.wait()?.value);
//! }
//! pool.shutdown(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! # The nouns
//!
//! - [`Session`]: one live worker process. It runs code or calls, one at a time, streams output, and
//!   can be interrupted, limited and killed. A [`Runtime`] says which program that is.
//! - [`Request`] goes in, [`Execution`] comes out, with an [`Outcome`]: what user code does, even to
//!   its own process, is a value, not an error. [`Running`] is the same, [`Event`] by event.
//! - [`SessionPool`] keeps sessions warm and lends them out, first come, first served, and to each
//!   tenant its share ([`Quota`]); a [`PooledSession`] is a lease. What happens between two users is
//!   its [`Reuse`] policy.
//! - A [`Template`] (or [`PoolConfig::template`]) makes Python sessions by fork, each in about a millisecond.
//! - [`CancelToken`] asks work to stop; a [`Scope`] binds leases and [`Job`]s of one user of a shared
//!   pool to a token; a [`SharedPool`] lives from its first user to its last.
//!
//! - [`SessionClient`] (feature `client`) registers this program with a tracker, beats, and hears when
//!   an operator wants it to stop; [`TrackerServer`] (feature `server`) is that tracker: a small
//!   blocking HTTP server with SQLite inside and a page for the browser. The two halves of the crate
//!   meet in a [`CancelToken`]: `pool.scope(&client.cancel_token())`. See [`tracker`].
//!
//! # Errors
//!
//! One [`Error`] type with named fields. Time-outs say what they waited for; a pool that cannot start
//! sessions says why, fast.
//!
//! # Outcomes and stopping
//!
//! Code that is to stop (its token, its soft time limit, an [`InterruptHandle`]) first sees a flag, which
//! it can poll with `remuda.cancelled()`, and is interrupted within a millisecond; what it started gets
//! SIGINT. Code that goes on is killed after a grace (250 ms), with its whole process group. A hard time
//! limit kills at once, and [`Limits`] are held by the kernel. The [`Outcome`] says which of these it
//! was, and whether the process is gone. A pool replaces what was killed. Workers do not outlive the
//! program, even when that is killed by `SIGKILL`.
//!
//! # Languages
//!
//! Python 3.9 or later ([`Runtime::python`]), Node 18 or later ([`Runtime::node`]), programs in Rust
//! ([`Runtime::native`] with [`worker`], this one too), and any program that speaks the worker protocol ([`Runtime::command`],
//! `docs/worker-protocol.md`, [`protocol`]). Each can run behind a wrapper (`nice`, `bwrap`) or on
//! another machine (`ssh`, `docker exec -i`). A session knows what its worker can do: [`Session::can`].
//!
//! # Threads and processes
//!
//! No thread per session and no async runtime: the thread that executes waits for the worker itself.
//! All sessions of a program share one thread (`remuda-reaper`) and one tiny `/bin/sh` that kills
//! what is left if the program dies; a pool adds its own threads, listed at [`SessionPool`]. All end
//! with their owners.
//!
//! A worker that ends closes its pipes. As every Rust program does by default, the host must ignore
//! `SIGPIPE`.
//!
//! # Logging
//!
//! Through the `log` crate, with key-values: `info` for sessions that come and go, `warn` for what
//! an operator should look at, `error` for bugs, `debug` for the rest. Never code, values or output.
//!
//! # What it is not
//!
//! A process is isolation against crashes, leaks and hangs, not against an attacker: put bubblewrap
//! or the like around workers that run hostile code. Only a new process is clean
//! ([`Reuse::Fresh`]). Linux only, for now.

// The examples of the guide and the front page, compiled.
#[cfg(doctest)]
mod guide {
    macro_rules! pages {
        ($($name:ident: $file:literal),* $(,)?) => {
            $(#[doc = include_str!(concat!("../", $file))] struct $name;)*
        };
    }
    pages! {
        Readme: "README.md",
        Index: "docs/guide/README.md",
        RunningCode: "docs/guide/running-code.md",
        StreamingAndDisplay: "docs/guide/streaming-and-display.md",
        Stopping: "docs/guide/stopping.md",
        LimitsPage: "docs/guide/limits.md",
        OtherLanguages: "docs/guide/other-languages.md",
        WritingAWorker: "docs/guide/writing-a-worker.md",
        SharedPools: "docs/guide/shared-pools.md",
        Tenants: "docs/guide/tenants.md",
        Templates: "docs/guide/templates.md",
        Checkpoints: "docs/guide/checkpoints.md",
        Placements: "docs/guide/placements.md",
        Operating: "docs/guide/operating.md",
        Killing: "docs/guide/killing.md",
        Api: "docs/guide/api.md",
        Security: "docs/guide/security.md",
        Sizing: "docs/guide/sizing.md",
        Metrics: "docs/guide/metrics.md",
        Testing: "docs/guide/testing.md",
    }
}

#[cfg(not(target_os = "linux"))]
compile_error!("remuda supports Linux only for now: it watches processes by pidfd and epoll");

mod background;
mod cancel;
mod clock;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod histogram;
mod named;
mod openmetrics;
mod pool;
pub mod protocol;
mod session;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "client", feature = "server"))]
pub mod tracker;
pub mod worker;

pub use cancel::CancelToken;
pub use error::{Error, FileProblem, QuotaKind, Result, StoreFault};
pub use histogram::{HistogramBucket, HistogramSnapshot};
pub use pool::{
    Acquire, Advice, Advisor, Arrival, AsCompleted, BreakerInfo, BreakerState, ConfigSummary,
    ExecutionCounts, Explanation, Foresight, HolderRow, IdleOrder, Job, JobId, Listener, MemoryInfo, Miss,
    MissCount, MissReason, NestedAcquire, PlaceName, Placement, PlacementRow, PoolConfig, PoolCounts,
    PoolEvent, PoolInfo, PoolMetrics, PooledSession, Quota, QuotaRow, Recording, RefusalCount, RefusalReason,
    Removal, RemovalCount, Replay, Reuse, Scope, SessionPool, SessionRow, SharedHandle, SharedPool,
    StartCause, StartWay, Target, WaitReason, WaiterRow, WarmImportStats, as_completed,
};
pub use session::{
    Artefact, Artefacts, Attachment, Call, Cause, Channels, Checkpoint, Display, Event, Execution,
    ExecutionError, Exit, Feature, Files, Fingerprint, InterruptHandle, Launch, Limit, Limits, Memory, Name,
    Omitted, Outcome, OutputCallback, PostMortem, Progress, Prompt, Request, Running, Runtime, Session,
    SessionConfig, SessionId, SessionInfo, SessionState, Stream, Template, TemplateInfo, TimeLimit, Usage,
    WarmImport, WarmReport, WorkDir,
};
#[cfg(any(feature = "client", feature = "server"))]
pub use tracker::{AccessToken, TrackedId, TrackedSession, TrackedStatus};
#[cfg(feature = "client")]
pub use tracker::{
    ClientConfig, DeadMan, EventFollower, SessionClient, SessionGroup, TaskGuard, TrackerOperator,
    TrackerPages,
};
#[cfg(feature = "server")]
pub use tracker::{SessionStore, Tokens, TrackerServer, TrackerServerBuilder};
