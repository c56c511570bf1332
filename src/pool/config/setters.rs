//! The setters: one for each option, and those of [`SessionConfig`] that a pool's sessions need.

use std::sync::Arc;
use std::time::Duration;

use super::{Hook, IdleOrder, PoolConfig, Reuse};
#[cfg(feature = "testing")]
use crate::clock::ManualClock;
use crate::pool::acquire::NestedAcquire;
use crate::pool::events::{Listener, PoolEvent};
use crate::pool::foresight::Foresight;
use crate::pool::placement::Placement;
use crate::pool::quota::Quota;
use crate::session::{Limits, Session, SessionConfig, WorkDir};

impl PoolConfig {
    /// Sets [`session`](PoolConfig::session), all of it.
    pub fn session(mut self, session: SessionConfig) -> PoolConfig {
        self.session = session;
        self
    }

    /// Sets [`name`](PoolConfig::name).
    pub fn name(mut self, name: impl Into<String>) -> PoolConfig {
        self.name = name.into();
        self
    }

    /// Sets [`listener`](PoolConfig::listener).
    pub fn listener(mut self, hear: impl Fn(&PoolEvent) + Send + Sync + 'static) -> PoolConfig {
        self.listener = Some(Listener::new(hear));
        self
    }

    /// Sets [`min_idle`](PoolConfig::min_idle).
    pub fn min_idle(mut self, count: impl Into<Option<usize>>) -> PoolConfig {
        self.min_idle = count.into();
        self
    }

    /// The old name of [`min_idle`](PoolConfig::min_idle).
    pub fn min_size(self, count: usize) -> PoolConfig {
        self.min_idle(count)
    }

    /// Sets [`max_sessions`](PoolConfig::max_sessions).
    pub fn max_sessions(mut self, count: usize) -> PoolConfig {
        self.max_sessions = count;
        self
    }

    /// The old name of [`max_sessions`](PoolConfig::max_sessions).
    pub fn max_size(self, count: usize) -> PoolConfig {
        self.max_sessions(count)
    }

    /// Sets [`placements`](PoolConfig::placements).
    pub fn placements(mut self, placements: impl IntoIterator<Item = Placement>) -> PoolConfig {
        self.placements = placements.into_iter().collect();
        self
    }

    /// Sets [`session_timeout`](PoolConfig::session_timeout).
    pub fn session_timeout(mut self, timeout: Duration) -> PoolConfig {
        self.session_timeout = timeout;
        self
    }

    /// Sets [`health_check_interval`](PoolConfig::health_check_interval).
    pub fn health_check_interval(mut self, interval: Duration) -> PoolConfig {
        self.health_check_interval = interval;
        self
    }

    /// Sets [`pre_warm_on_start`](PoolConfig::pre_warm_on_start).
    pub fn pre_warm_on_start(mut self, pre_warm: bool) -> PoolConfig {
        self.pre_warm_on_start = pre_warm;
        self
    }

    /// Sets [`recycle_after_executions`](PoolConfig::recycle_after_executions).
    pub fn recycle_after_executions(mut self, executions: impl Into<Option<u64>>) -> PoolConfig {
        self.recycle_after_executions = executions.into();
        self
    }

    /// Sets [`max_lifetime`](PoolConfig::max_lifetime).
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> PoolConfig {
        self.max_lifetime = lifetime.into();
        self
    }

    /// Sets [`reuse`](PoolConfig::reuse).
    pub fn reuse(mut self, reuse: Reuse) -> PoolConfig {
        self.reuse = reuse;
        self
    }

    /// Sets [`reset_timeout`](PoolConfig::reset_timeout).
    pub fn reset_timeout(mut self, timeout: Duration) -> PoolConfig {
        self.reset_timeout = timeout;
        self
    }

    /// Sets [`restart_if_dead`](PoolConfig::restart_if_dead).
    pub fn restart_if_dead(mut self, restart: bool) -> PoolConfig {
        self.restart_if_dead = restart;
        self
    }

    /// Sets [`max_concurrent_starts`](PoolConfig::max_concurrent_starts).
    pub fn max_concurrent_starts(mut self, count: usize) -> PoolConfig {
        self.max_concurrent_starts = count;
        self
    }

    /// Sets [`max_waiters`](PoolConfig::max_waiters).
    pub fn max_waiters(mut self, count: impl Into<Option<usize>>) -> PoolConfig {
        self.max_waiters = count.into();
        self
    }

    /// Sets [`quota`](PoolConfig::quota).
    pub fn quota(mut self, quota: Quota) -> PoolConfig {
        self.quota = quota;
        self
    }

    /// Sets the quota of one tenant, instead of [`quota`](PoolConfig::quota).
    pub fn tenant_quota(mut self, tenant: impl Into<Arc<str>>, quota: Quota) -> PoolConfig {
        self.tenant_quotas.insert(tenant.into(), quota);
        self
    }

    /// Sets [`nested_acquire`](PoolConfig::nested_acquire).
    pub fn nested_acquire(mut self, nested: NestedAcquire) -> PoolConfig {
        self.nested_acquire = nested;
        self
    }

    /// Sets [`retire_grace`](PoolConfig::retire_grace).
    pub fn retire_grace(mut self, grace: Duration) -> PoolConfig {
        self.retire_grace = grace;
        self
    }

    /// Sets [`template`](PoolConfig::template).
    pub fn template(mut self, template: bool) -> PoolConfig {
        self.template = template;
        self
    }

    /// Sets [`record_arrivals`](PoolConfig::record_arrivals).
    pub fn record_arrivals(mut self, count: usize) -> PoolConfig {
        self.record_arrivals = count;
        self
    }

    /// Sets [`foresight`](PoolConfig::foresight).
    pub fn foresight(mut self, foresight: Foresight) -> PoolConfig {
        self.foresight = foresight;
        self
    }

    /// Sets [`idle_order`](PoolConfig::idle_order).
    pub fn idle_order(mut self, order: IdleOrder) -> PoolConfig {
        self.idle_order = order;
        self
    }

    /// Sets [`max_concurrent_retirements`](PoolConfig::max_concurrent_retirements).
    pub fn max_concurrent_retirements(mut self, count: usize) -> PoolConfig {
        self.max_concurrent_retirements = count;
        self
    }

    /// Sets [`ping_interval`](PoolConfig::ping_interval).
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> PoolConfig {
        self.ping_interval = interval.into();
        self
    }

    /// Sets [`ping_timeout`](PoolConfig::ping_timeout).
    pub fn ping_timeout(mut self, timeout: Duration) -> PoolConfig {
        self.ping_timeout = timeout;
        self
    }

    /// Sets [`max_session_memory`](PoolConfig::max_session_memory), in bytes.
    pub fn max_session_memory(mut self, bytes: impl Into<Option<u64>>) -> PoolConfig {
        self.max_session_memory = bytes.into();
        self
    }

    /// Sets [`idle_memory_budget`](PoolConfig::idle_memory_budget), in bytes.
    pub fn idle_memory_budget(mut self, bytes: impl Into<Option<u64>>) -> PoolConfig {
        self.idle_memory_budget = bytes.into();
        self
    }

    /// Sets [`leak_after`](PoolConfig::leak_after).
    pub fn leak_after(mut self, held: impl Into<Option<Duration>>) -> PoolConfig {
        self.leak_after = held.into();
        self
    }

    /// Sets [`reclaim_leaks`](PoolConfig::reclaim_leaks).
    pub fn reclaim_leaks(mut self, reclaim: bool) -> PoolConfig {
        self.reclaim_leaks = reclaim;
        self
    }

    /// Has `hook` called with each new session before anybody gets it, on the thread that started it:
    /// to look at its version, to fill a cache of a module, to try what it will need. It may take as long
    /// as it needs; a caller that waits is served by whatever else comes first. An error or a panic counts
    /// as a failed start: the session is ended, and the [breaker](crate::BreakerState) decides when the
    /// next is tried. What it executes is interrupted when the pool is closed.
    ///
    /// Names, environment and connections that it leaves are not part of the warm state: with
    /// [`Reuse::Reset`], the default, the first user has them and the next one does
    /// not. What every user needs belongs into [`warmup_code`](PoolConfig::warmup_code).
    ///
    /// ```
    /// use remuda::{PoolConfig, Runtime};
    ///
    /// let config = PoolConfig::new(Runtime::python("python3")).on_create(|session| {
    ///     let run = session.execute("import sys; sys.version_info >= (3, 9)")?;
    ///     if run.value == true { Ok(()) } else { Err("this Python is too old".into()) }
    /// });
    /// ```
    pub fn on_create(
        mut self,
        hook: impl Fn(&mut Session) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> PoolConfig {
        self.on_create = Some(Hook(Arc::new(hook)));
        self
    }

    /// Has `hook` called with a session before somebody gets it, on the thread of whoever gets it. If it
    /// says no, or panics, the session is replaced and the next one is looked at. After three refusals
    /// the acquire returns [`Error::Unfit`](crate::Error::Unfit); further ones in a row count as failed
    /// starts, so that a check that is never content does not have processes started without end. In the
    /// metrics each session that is looked at counts as a call that got one.
    ///
    /// ```
    /// use remuda::{PoolConfig, Runtime};
    ///
    /// let config = PoolConfig::new(Runtime::python("python3"))
    ///     .validate_with(|session| session.execute("1 + 1").is_ok_and(|run| run.value == 2));
    /// ```
    ///
    /// A pool looks by itself whether a process is alive, without a system call; this is for what only
    /// the user knows, and its time is added to each acquire.
    #[doc(alias = "test_on_check_out")]
    pub fn validate_with(
        mut self,
        hook: impl Fn(&mut Session) -> bool + Send + Sync + 'static,
    ) -> PoolConfig {
        self.validate = Some(Hook(Arc::new(hook)));
        self
    }

    /// Sets [`clock`](PoolConfig::clock): nothing in the pool moves by itself then.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: impl Into<ManualClock>) -> PoolConfig {
        self.clock = Some(clock.into());
        self
    }

    /// Adds a module that each session imports: see [`SessionConfig::warm_imports`].
    pub fn warm_import(mut self, module: impl Into<String>) -> PoolConfig {
        self.session = self.session.warm_import(module);
        self
    }

    /// Sets code that each new session runs: see [`SessionConfig::warmup_code`].
    pub fn warmup_code(mut self, code: impl Into<String>) -> PoolConfig {
        self.session = self.session.warmup_code(code);
        self
    }

    /// See [`SessionConfig::start_timeout`].
    pub fn start_timeout(mut self, limit: Duration) -> PoolConfig {
        self.session = self.session.start_timeout(limit);
        self
    }

    /// See [`SessionConfig::grace`].
    pub fn grace(mut self, grace: Duration) -> PoolConfig {
        self.session = self.session.grace(grace);
        self
    }

    /// See [`SessionConfig::time_limit`].
    pub fn time_limit(mut self, limit: Duration) -> PoolConfig {
        self.session = self.session.time_limit(limit);
        self
    }

    /// Adds an environment variable: see [`SessionConfig::env`].
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> PoolConfig {
        self.session = self.session.env(name, value);
        self
    }

    /// See [`SessionConfig::inherit_env`].
    pub fn inherit_env(mut self, inherit: bool) -> PoolConfig {
        self.session = self.session.inherit_env(inherit);
        self
    }

    /// See [`SessionConfig::work_dir`].
    pub fn work_dir(mut self, dir: WorkDir) -> PoolConfig {
        self.session = self.session.work_dir(dir);
        self
    }

    /// See [`SessionConfig::limits`].
    pub fn limits(mut self, limits: Limits) -> PoolConfig {
        self.session = self.session.limits(limits);
        self
    }

    /// See [`SessionConfig::output_cap`].
    pub fn output_cap(mut self, bytes: usize) -> PoolConfig {
        self.session = self.session.output_cap(bytes);
        self
    }
}
