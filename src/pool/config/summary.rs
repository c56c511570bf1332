//! The options in effect, as they are reported.

use std::time::Duration;

use serde::Serialize;

use super::{IdleOrder, PoolConfig, Reuse};
use crate::pool::acquire::NestedAcquire;
use crate::pool::foresight::Foresight;
use crate::pool::quota::Quota;

/// The options in effect, for [`PoolInfo`](crate::PoolInfo).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "options that are on or off")]
pub struct ConfigSummary {
    /// The program of the runtime.
    pub program: String,
    /// See [`PoolConfig::min_idle`].
    pub min_idle: usize,
    /// See [`PoolConfig::max_sessions`].
    pub max_sessions: usize,
    /// See [`PoolConfig::session_timeout`], in seconds.
    pub session_timeout: f64,
    /// See [`PoolConfig::health_check_interval`], in seconds.
    pub health_check_interval: f64,
    /// See [`PoolConfig::pre_warm_on_start`].
    pub pre_warm_on_start: bool,
    /// See [`PoolConfig::recycle_after_executions`].
    pub recycle_after_executions: Option<u64>,
    /// See [`PoolConfig::max_lifetime`], in seconds.
    pub max_lifetime: Option<f64>,
    /// See [`PoolConfig::reuse`].
    pub reuse: Reuse,
    /// See [`PoolConfig::restart_if_dead`].
    pub restart_if_dead: bool,
    /// See [`PoolConfig::max_concurrent_starts`].
    pub max_concurrent_starts: usize,
    /// See [`PoolConfig::max_waiters`].
    pub max_waiters: Option<usize>,
    /// See [`PoolConfig::quota`]; those of tenants stand in [`PoolInfo::quotas`](crate::PoolInfo::quotas).
    pub quota: Quota,
    /// See [`PoolConfig::nested_acquire`].
    pub nested_acquire: NestedAcquire,
    /// See [`PoolConfig::template`].
    pub template: bool,
    /// See [`PoolConfig::reset_timeout`], in seconds.
    pub reset_timeout: f64,
    /// See [`PoolConfig::retire_grace`], in seconds.
    pub retire_grace: f64,
    /// See [`PoolConfig::idle_order`].
    pub idle_order: IdleOrder,
    /// See [`PoolConfig::max_concurrent_retirements`].
    pub max_concurrent_retirements: usize,
    /// See [`PoolConfig::ping_interval`], in seconds.
    pub ping_interval: Option<f64>,
    /// See [`PoolConfig::ping_timeout`], in seconds.
    pub ping_timeout: f64,
    /// See [`PoolConfig::max_session_memory`], in bytes.
    pub max_session_memory: Option<u64>,
    /// See [`PoolConfig::idle_memory_budget`], in bytes.
    pub idle_memory_budget: Option<u64>,
    /// See [`PoolConfig::leak_after`], in seconds.
    pub leak_after: Option<f64>,
    /// See [`PoolConfig::reclaim_leaks`].
    pub reclaim_leaks: bool,
    /// Whether there is a hook for new sessions: see [`PoolConfig::on_create`](PoolConfig::on_create()).
    pub on_create: bool,
    /// Whether there is a check before each use: see [`PoolConfig::validate_with`](PoolConfig::validate_with()).
    pub validate: bool,
    /// See [`SessionConfig::start_timeout`](crate::SessionConfig::start_timeout), in seconds.
    pub start_timeout: f64,
    /// See [`SessionConfig::grace`](crate::SessionConfig::grace), in seconds.
    pub grace: f64,
    /// See [`SessionConfig::time_limit`](crate::SessionConfig::time_limit), in seconds.
    pub time_limit: Option<f64>,
    /// Whether there is a [listener](PoolConfig::listener).
    pub listener: bool,
    /// See [`PoolConfig::record_arrivals`].
    pub record_arrivals: usize,
    /// See [`PoolConfig::foresight`].
    pub foresight: Foresight,
    /// Whether there is warm-up code.
    pub warmup_code: bool,
    /// See [`SessionConfig::warm_imports`](crate::SessionConfig::warm_imports).
    pub warm_imports: Vec<String>,
}

impl PoolConfig {
    /// With these bounds, which may have changed since the start.
    pub(crate) fn summary(&self, (min_idle, max_sessions): (usize, usize)) -> ConfigSummary {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        ConfigSummary {
            program: self.session.runtime.program().display().to_string(),
            min_idle,
            max_sessions,
            session_timeout: self.session_timeout.as_secs_f64(),
            health_check_interval: self.health_check_interval.as_secs_f64(),
            pre_warm_on_start: self.pre_warm_on_start,
            recycle_after_executions: self.budget(),
            max_lifetime: seconds(self.max_lifetime),
            reuse: self.reuse,
            restart_if_dead: self.restart_if_dead,
            max_concurrent_starts: self.max_concurrent_starts,
            max_waiters: self.max_waiters,
            quota: self.quota,
            nested_acquire: self.nested_acquire,
            template: self.template,
            idle_order: self.idle_order,
            max_concurrent_retirements: self.max_concurrent_retirements,
            ping_interval: seconds(self.ping_interval),
            ping_timeout: self.ping_timeout.as_secs_f64(),
            max_session_memory: self.max_session_memory,
            idle_memory_budget: self.idle_memory_budget,
            leak_after: seconds(self.leak_after),
            reclaim_leaks: self.reclaim_leaks,
            on_create: self.on_create.is_some(),
            validate: self.validate.is_some(),
            reset_timeout: self.reset_timeout.as_secs_f64(),
            retire_grace: self.retire_grace.as_secs_f64(),
            start_timeout: self.session.start_timeout.as_secs_f64(),
            grace: self.session.grace.as_secs_f64(),
            time_limit: seconds(self.session.time_limit),
            listener: self.listener.is_some(),
            record_arrivals: self.record_arrivals,
            foresight: self.foresight,
            warmup_code: self.session.warmup_code.is_some(),
            warm_imports: self.session.warm_imports.clone(),
        }
    }
}
