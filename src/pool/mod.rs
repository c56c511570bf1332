//! The pool: warm sessions, handed out fairly, kept healthy.
//!
//! `state/` is the state machine, pure; `core` puts it behind a mutex and carries out what it asks
//! for; `spawner`, `monitor`, `maintenance` and `runners` are its threads; `guard`, `job`, `scope` and `shared`
//! are what users hold.

mod acquire;
mod advisor;
mod breaker;
mod config;
mod core;
mod end;
mod events;
mod explain;
mod foresight;
mod gate;
mod guard;
mod info;
mod job;
mod maintenance;
mod metrics;
mod monitor;
mod openmetrics;
mod operate;
mod placement;
mod quota;
mod recorder;
mod runners;
mod scope;
mod shared;
mod source;
mod spawner;
mod state;
mod tallies;
mod threads;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use acquire::{Acquire, NestedAcquire};
pub use advisor::{Advice, Advisor, Replay, Target};
pub use breaker::BreakerState;
pub use config::{ConfigSummary, IdleOrder, PoolConfig, Reuse};
pub use events::{Listener, PoolEvent, RefusalReason, StartCause, StartWay};
pub use explain::{Explanation, Miss, MissCount, MissReason, WaitReason, WaiterRow};
pub use foresight::Foresight;
pub use guard::PooledSession;
pub use job::{AsCompleted, Job, JobId, as_completed};
pub use metrics::{
    BreakerInfo, HolderRow, MemoryInfo, PlaceName, PoolCounts, PoolInfo, PoolMetrics, QuotaRow, RefusalCount,
    RemovalCount, SessionRow,
};
pub use placement::{Placement, PlacementRow};
pub use quota::Quota;
pub use recorder::{Arrival, Recording};
pub use scope::Scope;
pub use shared::{SharedHandle, SharedPool};
pub use state::Removal;
pub use tallies::{ExecutionCounts, WarmImportStats};

use self::acquire::Patience;
use self::core::Core;
use self::source::Source;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::session::{Request, Runtime};

/// A pool of warm sessions.
///
/// ```no_run
/// use remuda::{Runtime, SessionPool};
///
/// let pool = SessionPool::builder(Runtime::python("python3")).min_idle(2).max_sessions(8).start()?;
/// let mut session = pool.acquire()?;
/// let run = session.execute("print('hi'); 6 * 7")?;
/// assert_eq!((run.stdout.as_str(), run.repr.as_deref()), ("hi\n", Some("42")));
/// drop(session); // gives it back
/// pool.shutdown(std::time::Duration::from_secs(5));
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// Clones are handles of one pool. Leases, jobs and scopes do not keep it running: when the last
/// handle is dropped, the pool is [terminated](SessionPool::terminate).
///
/// # Threads
/// `remuda-spawn` (one, more while several sessions start), `remuda-monitor`, `remuda-maint`,
/// `remuda-job` (one for each job that runs, at most `max_sessions`, gone after 10 s without work),
/// and `remuda-events` if there is a [listener](PoolConfig::listener).
/// They end with the pool.
#[derive(Clone)]
pub struct SessionPool {
    handle: Arc<Handle>,
}

/// What the clones share; dropping it ends the pool.
struct Handle {
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.terminate();
    }
}

impl SessionPool {
    /// Options for a pool of sessions of this runtime, with their defaults; ends with `.start()`.
    pub fn builder(runtime: Runtime) -> PoolConfig {
        PoolConfig::new(runtime)
    }

    /// Starts a pool.
    ///
    /// With [`pre_warm_on_start`](PoolConfig::pre_warm_on_start) (the default) this blocks until
    /// `min_idle` sessions are ready, else only for the check of the runtime.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Runtime`] if the program cannot be used; what
    /// [`Session::start`](crate::Session::start) returns if no session of the first batch became
    /// ready. No process and no thread is left then.
    pub fn start(config: PoolConfig) -> Result<SessionPool> {
        config.validate()?;
        Source::check(&config)?;
        let pre_warm = config.pre_warm_on_start;
        let pool = SessionPool { handle: Arc::new(Handle { core: Core::new(config)? }) };
        let core = &pool.handle.core;
        if core.outlet.has_listener() {
            core.spawn_thread(events::NAME, events::run)?;
        }
        core.spawn_thread("remuda-monitor", monitor::run)?;
        let first_pass = core.clock().after(core.config.health_check_interval);
        core.spawn_thread("remuda-maint", move |core| maintenance::run(core, first_pass))?;
        spawner::start(core)?;
        if pre_warm {
            pool.ensure_min_sessions().map_err(|error| match error {
                // Whoever starts a pool wants to know what is wrong, not when it will be tried again.
                Error::StartFailing { cause, retry_in } => {
                    drop(core.with(|state, _| state.forget_start_error()));
                    Arc::try_unwrap(cause).unwrap_or_else(|cause| Error::StartFailing { cause, retry_in })
                }
                other => other,
            })?;
        }
        Ok(pool)
    }

    /// A session, from idle if there is one, else after waiting in the queue: whatever comes first, a
    /// release or the start of a new session. First come, first served.
    ///
    /// Blocks without limit.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::StartFailing`] when no session is alive and none can be started;
    /// [`Error::TooManyWaiters`]; [`Error::NestedAcquire`] if the pool refuses that.
    #[doc(alias = "get")]
    #[doc(alias = "checkout")]
    #[track_caller]
    pub fn acquire(&self) -> Result<PooledSession> {
        self.core().acquire(Patience::Forever, None, None)
    }

    /// As [`acquire`](SessionPool::acquire), waiting at most `timeout`; zero tries once.
    ///
    /// # Errors
    /// Also [`Error::AcquireTimeout`], which carries the error of the last start if sessions could
    /// not be started lately. A session whose start outlives the wait is kept for the next caller.
    #[track_caller]
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<PooledSession> {
        self.core().acquire(Patience::For(timeout), None, None)
    }

    /// A session if one is idle. Never waits, and has no session started.
    ///
    /// # Errors
    /// [`Error::AcquireTimeout`] if none is idle; [`Error::Closed`], [`Error::StartFailing`].
    #[doc(alias = "try_get")]
    #[track_caller]
    pub fn try_acquire(&self) -> Result<PooledSession> {
        self.acquire_timeout(Duration::ZERO)
    }

    /// As [`acquire`](SessionPool::acquire), until `token` is cancelled. The token also ends what the
    /// session executes until it is given back: this is `scope(token).acquire()`.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`].
    #[track_caller]
    pub fn acquire_cancellable(&self, token: &CancelToken) -> Result<PooledSession> {
        self.core().acquire(Patience::Forever, Some(token), None)
    }

    /// As [`acquire`](SessionPool::acquire), in the name of a tenant, to whom the pool's quotas apply:
    /// see [`Quota`].
    ///
    /// # Errors
    /// Also [`Error::QuotaExceeded`] when as many of it wait as may, and [`Error::TenantName`].
    #[track_caller]
    pub fn acquire_as(&self, tenant: &str) -> Result<PooledSession> {
        self.acquire_with(Acquire::new().tenant(tenant))
    }

    /// As [`acquire`](SessionPool::acquire), with a tenant, a priority, a time limit, a token or a
    /// label.
    ///
    /// # Errors
    /// As [`acquire_timeout`](SessionPool::acquire_timeout),
    /// [`acquire_cancellable`](SessionPool::acquire_cancellable) and
    /// [`acquire_as`](SessionPool::acquire_as) where these things are given. With a time limit of zero
    /// [`Error::QuotaExceeded`] also says that the tenant holds as many sessions as it may.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value, reason = "options that are made for one call")]
    pub fn acquire_with(&self, ask: Acquire) -> Result<PooledSession> {
        self.core().acquire(ask.patience(), ask.token.as_ref(), ask.who()?)
    }

    /// Fills the pool up to `min_idle` idle sessions, as far as `max_sessions` allows, and waits
    /// until they are ready.
    ///
    /// # Errors
    /// [`Error::StartFailing`] with the cause if a batch of starts failed whole, [`Error::Closed`].
    pub fn ensure_min_sessions(&self) -> Result<()> {
        let core = self.core();
        core.with(state::State::prime);
        let mut failed = None;
        core.gate.observe(None, |state| {
            if state.is_open() && !state.is_filled() {
                // Once the back-off has passed an attempt is made, and its outcome counts.
                failed = state.start_trouble(core.clock().now()).filter(|(_, retry_in)| !retry_in.is_zero());
                return failed.is_some();
            }
            true
        });
        match failed {
            Some((cause, retry_in)) => Err(Error::StartFailing { cause, retry_in }),
            None if self.is_open() => Ok(()),
            None => Err(Error::Closed),
        }
    }

    /// Waits until at least `sessions` sessions are ready, in use or not; has none started that
    /// nobody asked for.
    ///
    /// # Errors
    /// [`Error::NotReady`] when `timeout` has passed, with the error of the last start if that failed;
    /// [`Error::Closed`].
    pub fn wait_ready(&self, sessions: usize, timeout: Duration) -> Result<()> {
        let core = self.core();
        let began = core.clock().now();
        let reached =
            core.gate.observe(Some(began + timeout), |state| !state.is_open() || state.alive() >= sessions);
        if !self.is_open() {
            return Err(Error::Closed);
        }
        if reached {
            return Ok(());
        }
        let now = core.clock().now();
        let (ready, last_start_error) = {
            let inner = core.lock();
            (inner.state.alive(), inner.state.start_trouble(now).map(|(cause, _)| cause))
        };
        let waited = now.saturating_since(began);
        Err(Error::NotReady { waited, ready, wanted: sessions, last_start_error })
    }

    /// One user's part of this pool: what is acquired and submitted through it ends when `token` is
    /// cancelled, and nothing else does.
    pub fn scope(&self, token: &CancelToken) -> Scope {
        Scope::new(Arc::clone(self.core()), token)
    }

    /// Queues work that one of the pool's threads runs on the next free session. Does not wait; if the
    /// pool is closed, the job is done with [`Error::Closed`].
    #[track_caller]
    pub fn submit(&self, request: impl Into<Request<'static>>) -> Job {
        runners::submit(self.core(), request.into(), None, None)
    }

    /// Everything worth knowing about the pool at this moment. Holds the pool's lock for about a
    /// microsecond per session; without it, asks the kernel for the memory of each (30 µs).
    #[doc(alias = "status")]
    #[doc(alias = "state")]
    pub fn info(&self) -> PoolInfo {
        info::of(self.core())
    }

    /// The last calls for a session, for an [`Advisor`]: as many as
    /// [`record_arrivals`](PoolConfig::record_arrivals) asked for, which is none by default. Asks the
    /// kernel for the memory of each session (30 µs).
    pub fn recording(&self) -> Recording {
        recorder::recording(self.core())
    }

    /// Why callers wait, and why callers had to. Holds the pool's lock for microseconds.
    pub fn explain(&self) -> Explanation {
        let now = self.core().clock().now();
        let (rows, counts, recent, trouble) = {
            let state = &self.core().lock().state;
            let misses = state.misses();
            let rows = state.waiter_rows(now, explain::MOST_ROWS);
            (rows, misses.counts, misses.recent(now), state.start_trouble(now))
        };
        Explanation::new(rows, &counts, recent, trouble.map(|(cause, _)| cause.to_string()))
    }

    /// [`info`](SessionPool::info) by its name in the Python ancestor.
    pub fn get_info(&self) -> PoolInfo {
        self.info()
    }

    /// A snapshot of the pool's numbers.
    pub fn metrics(&self) -> PoolMetrics {
        let inner = self.core().lock();
        PoolMetrics::new(inner.state.counters(), inner.state.counts())
    }

    /// [`metrics`](SessionPool::metrics) by its name in the Python ancestor.
    pub fn get_metrics(&self) -> PoolMetrics {
        self.metrics()
    }

    /// Whether the pool still hands out sessions.
    pub fn is_open(&self) -> bool {
        self.core().lock().state.is_open()
    }

    /// Ends the pool gently: nobody gets a session any more (waiters and queued jobs end with
    /// [`Error::Closed`]), idle sessions leave, those in use are waited for until `deadline` has
    /// passed and killed then.
    ///
    /// Blocks until all processes have ended and the pool's threads are joined. Can be called from
    /// any thread and more than once. On one of the pool's own threads (the output callback of a
    /// job) it returns after the deadline without waiting for the end.
    pub fn shutdown(&self, deadline: Duration) {
        self.core().shutdown(self.core().clock().after(deadline));
    }

    /// [`shutdown`](SessionPool::shutdown) by its name in the Python ancestor.
    pub fn stop(&self, deadline: Duration) {
        self.shutdown(deadline);
    }

    /// Ends the pool at once: kills every session, those in use too.
    ///
    /// Blocks until all processes have ended (milliseconds) and the pool's threads are joined; a job
    /// whose output callback is running is waited for. Can be called from any thread and more than
    /// once, also by who holds a session. On one of the pool's own threads it does not wait.
    pub fn terminate(&self) {
        self.core().terminate();
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }
}

impl fmt::Debug for SessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.core().lock().state.counts();
        f.debug_struct("SessionPool").field("counts", &counts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared_between_threads<T: Send + Sync>() {}
    fn moved_between_threads<T: Send>() {}

    #[test]
    fn handles_can_be_shared_and_leases_moved_between_threads() {
        shared_between_threads::<SessionPool>();
        shared_between_threads::<Scope>();
        shared_between_threads::<Job>();
        shared_between_threads::<SharedPool>();
        shared_between_threads::<SharedHandle>();
        moved_between_threads::<PooledSession>();
        moved_between_threads::<AsCompleted>();
    }
}
