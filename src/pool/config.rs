//! Options of a pool: what they mean, their defaults, what makes no sense.

mod setters;
mod summary;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::summary::ConfigSummary;
use super::SessionPool;
use super::acquire::NestedAcquire;
use super::events::Listener;
use super::foresight::Foresight;
use super::placement::{self, Placement};
use super::quota::{Quota, check_name};
use crate::clock::Clock;
#[cfg(feature = "testing")]
use crate::clock::ManualClock;
use crate::error::{Error, Result};
use crate::session::{Runtime, Session, SessionConfig, check_template};

/// Options of a [`SessionPool`]; each field has a setter of the same name, and the setters of
/// [`SessionConfig`] that a pool's sessions need are here as well.
///
/// ```
/// use remuda::{PoolConfig, Runtime};
///
/// let config = PoolConfig::new(Runtime::python("python3")).min_idle(4).max_sessions(8);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "options that are on or off")]
pub struct PoolConfig {
    /// What each session is made of.
    pub session: SessionConfig,
    /// The pool's name: the key `pool` of its log lines, the label `pool` of its metrics. Pools of
    /// one program that are told apart there need different ones. Default: `pool`.
    pub name: String,
    /// Hears of each [`PoolEvent`](crate::PoolEvent), on a thread of its own (`remuda-events`) and in order. It may take
    /// its time: up to 1024 events wait for it, more are dropped and counted
    /// ([`events_dropped`](crate::PoolInfo::events_dropped)). What is queued when the pool ends is
    /// still told before [`shutdown`](SessionPool::shutdown) returns. A panic in it is caught and
    /// logged. One that holds a [`SessionPool`] of this pool keeps it from ending by itself. Default: none.
    pub listener: Option<Listener>,
    /// Idle sessions that the pool keeps ready, on top of those in use (as far as `max_sessions`
    /// allows). Alias: `min_size`. Default: `None`, that is 2, or `max_sessions` if that is 1.
    pub min_idle: Option<usize>,
    /// Processes that the pool has at most, those that start or leave included. Alias:
    /// `max_size`. Default: 10.
    pub max_sessions: usize,
    /// An idle session beyond `min_idle` leaves after this time. Default: 300 s.
    pub session_timeout: Duration,
    /// A health pass is made at least this often; releases, removals and new sessions ask for one earlier.
    /// Default: 30 s.
    pub health_check_interval: Duration,
    /// Whether [`start`](PoolConfig::start) waits until `min_idle` sessions are ready. If not, the
    /// first acquire (or [`ensure_min_sessions`](SessionPool::ensure_min_sessions)) begins the
    /// warm-up. Default: true.
    pub pre_warm_on_start: bool,
    /// A session is replaced after this many executions (up to a tenth earlier, at random, if this
    /// is 10 or more, so that sessions do not all leave together). `None` or 0: never.
    /// Default: 100.
    pub recycle_after_executions: Option<u64>,
    /// A session is replaced after this time (up to a tenth earlier, at random). Default: never.
    pub max_lifetime: Option<Duration>,
    /// What happens to a session between two users. Default: [`Reuse::Reset`].
    pub reuse: Reuse,
    /// Time that a worker has to answer a reset; afterwards it is replaced. Default: 2 s.
    pub reset_timeout: Duration,
    /// Whether a session that died or became unusable is replaced by a new one. If not, it is only
    /// removed, and new sessions come for the watermark and for waiters alone. Default: true.
    pub restart_if_dead: bool,
    /// Sessions that may be starting at the same time. Default: the number of processors, at
    /// least 2.
    pub max_concurrent_starts: usize,
    /// Callers that may wait for a session at the same time; the next one gets
    /// [`Error::TooManyWaiters`]. Jobs do not count. Default: no limit.
    pub max_waiters: Option<usize>,
    /// What each named tenant may have, see [`SessionPool::acquire_as`]; those who acquire without a
    /// name have no quota. Default: no limits.
    pub quota: Quota,
    /// Tenants that may have something else. Set by [`tenant_quota`](PoolConfig::tenant_quota).
    /// Default: none.
    pub tenant_quotas: BTreeMap<Arc<str>, Quota>,
    /// What happens when a thread that holds a session of this pool would wait for another one.
    /// Default: [`NestedAcquire::Warn`].
    pub nested_acquire: NestedAcquire,
    /// Time that an idle session has to leave by itself when it is retired. Default: 250 ms.
    pub retire_grace: Duration,
    /// Whether sessions are made by a [`Template`](crate::Template): a Python worker that does the warm-up
    /// once and then forks, which takes about a millisecond and shares memory. Its process is none of
    /// `max_sessions`; where it cannot fork, sessions start cold. Python on this machine only. Default:
    /// false.
    pub template: bool,
    /// Where sessions run, instead of with the runtime that the pool was made with: each new one at the place
    /// that is least loaded for its [`weight`](Placement::weight). Where a start fails, none is tried for a second,
    /// doubled up to a minute, and the session starts at the next place; only if all fail has the
    /// start failed. Not with a [`template`](PoolConfig::template). Default: none.
    pub placements: Vec<Placement>,
    /// So many of the last acquires are recorded, with their moment, wait and length, for an
    /// [`Advisor`](crate::Advisor). Each then reads the precise clock three times and takes a lock twice.
    /// Default: 0, which costs nothing.
    pub record_arrivals: usize,
    /// Whether more sessions than `min_idle` are kept ready while many callers come. Default:
    /// [`Foresight::Off`].
    pub foresight: Foresight,
    /// Which idle session is lent next. Default: [`IdleOrder::Lifo`].
    pub idle_order: IdleOrder,
    /// Sessions that may be replaced at the same time because of their budget, age or memory. Each
    /// serves on until its replacement is ready, where there is room for one. Default: 1.
    pub max_concurrent_retirements: usize,
    /// An idle session that was not heard of for this long is asked whether it still answers, and is
    /// replaced if it does not within [`ping_timeout`](PoolConfig::ping_timeout): it may be stopped or
    /// stuck. `None`: never. Default: 30 s.
    pub ping_interval: Option<Duration>,
    /// Time that an idle session has to answer when it is asked. Default: 2 s.
    pub ping_timeout: Duration,
    /// Memory, in bytes, beyond which a session is replaced when its user has given it back. Looked at
    /// when a session comes to rest (at most once a second for each, so the next user may still get it)
    /// and with each [`health_check_interval`](PoolConfig::health_check_interval). It must be well above
    /// what a session has after its warm-up (some 15 MiB for a bare Python): below that, sessions are
    /// replaced after each use. Counted in parts where several
    /// processes share pages (PSS), so that children of a template are not charged for what they
    /// share. A session that nobody has used yet stays: the next one would weigh the same. Default: no
    /// limit.
    pub max_session_memory: Option<u64>,
    /// Memory, in bytes, that all idle sessions together may hold; beyond, the largest are replaced or,
    /// above the watermark, only removed. Default: no limit.
    pub idle_memory_budget: Option<u64>,
    /// A lease that is held longer than this is reported as a leak: logged, counted, told to the
    /// listener; once. Default: never.
    pub leak_after: Option<Duration>,
    /// Whether a session whose lease was reported as a leak is taken back: its process is killed, its
    /// place is free, and whoever still holds the lease finds it dead. Default: false.
    pub reclaim_leaks: bool,
    /// Called with each new session before anybody gets it: see [`on_create`](PoolConfig::on_create()).
    pub(crate) on_create: Option<Hook<CreateHook>>,
    /// Called with a session before somebody gets it: see [`validate_with`](PoolConfig::validate_with()).
    pub(crate) validate: Option<Hook<ValidateHook>>,
    /// For tests: the clock that this pool goes by. Default: the system's.
    #[cfg(feature = "testing")]
    pub clock: Option<ManualClock>,
}

/// Prepares a new session or says why it cannot.
pub(crate) type CreateHook =
    dyn Fn(&mut Session) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + Sync;
/// Says whether a session is fit for use.
pub(crate) type ValidateHook = dyn Fn(&mut Session) -> bool + Send + Sync;

/// Code of the user's that a pool calls.
pub(crate) struct Hook<F: ?Sized>(pub(crate) Arc<F>);

impl<F: ?Sized> Clone for Hook<F> {
    fn clone(&self) -> Hook<F> {
        Hook(Arc::clone(&self.0))
    }
}

impl<F: ?Sized> fmt::Debug for Hook<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }
}

/// Which idle session is lent next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IdleOrder {
    /// The one that was used last: its memory is warm, and those that are not needed reach their
    /// [`session_timeout`](PoolConfig::session_timeout).
    #[default]
    Lifo,
    /// The one that was idle longest: use is spread evenly, and fewer leave.
    Fifo,
}

/// What happens to a session between two users.
///
/// Only a new process is clean: files, environment changes of libraries, threads and memory of C
/// extensions survive a reset. A session whose lease ended in a panic, a time-out or a death gets
/// a new process under every policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reuse {
    /// It stays as it is: the next user finds what the last one left (as in the Python
    /// ancestor).
    Keep,
    /// Its namespace goes back to its warm state before the next user gets it. A runtime without
    /// reset, and a worker that reports that it cannot get clean, gets a new process.
    Reset,
    /// Each user gets a new process.
    Fresh,
}

impl PoolConfig {
    /// The defaults, for sessions of this runtime.
    pub fn new(runtime: Runtime) -> PoolConfig {
        PoolConfig::of(SessionConfig::new(runtime))
    }

    /// The defaults, for sessions made like this.
    pub fn of(session: SessionConfig) -> PoolConfig {
        PoolConfig {
            session,
            name: "pool".to_owned(),
            listener: None,
            min_idle: None,
            max_sessions: 10,
            session_timeout: Duration::from_mins(5),
            health_check_interval: Duration::from_secs(30),
            pre_warm_on_start: true,
            recycle_after_executions: Some(100),
            max_lifetime: None,
            reuse: Reuse::Reset,
            reset_timeout: Duration::from_secs(2),
            restart_if_dead: true,
            max_concurrent_starts: std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2),
            max_waiters: None,
            quota: Quota::new(),
            tenant_quotas: BTreeMap::new(),
            nested_acquire: NestedAcquire::Warn,
            retire_grace: Duration::from_millis(250),
            template: false,
            placements: Vec::new(),
            record_arrivals: 0,
            foresight: Foresight::Off,
            idle_order: IdleOrder::Lifo,
            max_concurrent_retirements: 1,
            ping_interval: Some(Duration::from_secs(30)),
            ping_timeout: Duration::from_secs(2),
            max_session_memory: None,
            idle_memory_budget: None,
            leak_after: None,
            reclaim_leaks: false,
            on_create: None,
            validate: None,
            #[cfg(feature = "testing")]
            clock: None,
        }
    }

    /// Starts the pool: see [`SessionPool::start`].
    ///
    /// # Errors
    /// As [`SessionPool::start`].
    pub fn start(self) -> Result<SessionPool> {
        SessionPool::start(self)
    }

    /// Checks what can be checked without starting anything.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first option that makes no sense and says what to do.
    pub fn validate(&self) -> Result<()> {
        self.session.validate()?;
        if self.template {
            check_template(&self.session)?;
            if !self.placements.is_empty() {
                return Err(Error::config("placements", "a template makes its sessions here; leave one out"));
            }
        }
        placement::check(&self.placements, &self.session, self.max_sessions)?;
        if self.max_sessions == 0 {
            return Err(Error::config(
                "max_sessions",
                "it is zero, so nobody could ever acquire; use at least 1",
            ));
        }
        if u32::try_from(self.max_sessions).is_err() {
            return Err(Error::config("max_sessions", "more than 2^32 sessions; the default is 10"));
        }
        if self.watermark() > self.max_sessions {
            let (min, max) = (self.watermark(), self.max_sessions);
            let reason =
                format!("{min} is more than max_sessions ({max}); raise max_sessions or lower min_idle");
            return Err(Error::config("min_idle", reason));
        }
        if self.max_concurrent_starts == 0 {
            return Err(Error::config("max_concurrent_starts", "it is zero, so no session could ever start"));
        }
        if self.max_waiters == Some(0) {
            return Err(Error::config(
                "max_waiters",
                "it is zero; use try_acquire to never wait, or None for no limit",
            ));
        }
        self.quota.validate("quota")?;
        for (tenant, quota) in &self.tenant_quotas {
            quota.validate("tenant_quota").map_err(|error| match error {
                Error::InvalidConfig { option, reason } => {
                    Error::config(option, format!("of {tenant:?}: {reason}"))
                }
                other => other,
            })?;
            check_name(tenant).map_err(|error| Error::config("tenant_quota", error.to_string()))?;
        }
        if self.max_concurrent_retirements == 0 {
            return Err(Error::config(
                "max_concurrent_retirements",
                "it is zero, so no session would ever be replaced; use at least 1",
            ));
        }
        if self.reclaim_leaks && self.leak_after.is_none() {
            return Err(Error::config("reclaim_leaks", "it needs leak_after to tell what a leak is"));
        }
        let sizes = [
            ("max_session_memory", self.max_session_memory),
            ("idle_memory_budget", self.idle_memory_budget),
        ];
        if let Some((option, _)) = sizes.iter().find(|(_, bytes)| *bytes == Some(0)) {
            return Err(Error::config(
                option,
                "it is zero, so sessions would never be kept; None means no limit",
            ));
        }
        let times = [
            ("ping_interval", self.ping_interval),
            ("ping_timeout", Some(self.ping_timeout)),
            ("leak_after", self.leak_after),
            ("health_check_interval", Some(self.health_check_interval)),
            ("session_timeout", Some(self.session_timeout)),
            ("reset_timeout", Some(self.reset_timeout)),
            ("max_lifetime", self.max_lifetime),
        ];
        match times.iter().find(|(_, time)| time.is_some_and(|time| time.is_zero())) {
            Some((option, _)) => Err(Error::config(option, "it is zero; Duration::MAX means never")),
            None => Ok(()),
        }
    }

    /// How many idle sessions are kept ready: [`min_idle`](PoolConfig::min_idle), or its default.
    pub(crate) fn watermark(&self) -> usize {
        self.min_idle.unwrap_or(self.max_sessions.min(2))
    }

    /// The execution budget, with zero read as "never".
    pub(crate) fn budget(&self) -> Option<u64> {
        self.recycle_after_executions.filter(|executions| *executions > 0)
    }

    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self, reason = "the option is not there"))]
    pub(crate) fn the_clock(&self) -> Clock {
        #[cfg(feature = "testing")]
        if let Some(clock) = &self.clock {
            return Clock::manual(clock.clone());
        }
        Clock::system()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PoolConfig {
        PoolConfig::new(Runtime::python("python3"))
    }

    #[test]
    fn the_defaults_are_those_of_the_python_ancestor() {
        let config = config();
        assert_eq!((config.min_idle, config.watermark()), (None, 2));
        assert_eq!(config.max_sessions, 10);
        assert_eq!(config.session_timeout, Duration::from_mins(5));
        assert_eq!(config.health_check_interval, Duration::from_secs(30));
        assert!(config.pre_warm_on_start && config.restart_if_dead);
        assert_eq!(config.recycle_after_executions, Some(100));
        assert_eq!(config.session.warmup_code, None);
        assert_eq!((config.max_lifetime, config.max_waiters), (None, None));
        assert_eq!((config.quota, config.tenant_quotas.len()), (Quota::new(), 0));
        assert_eq!(config.nested_acquire, NestedAcquire::Warn);
        assert_eq!((config.reuse, config.reset_timeout), (Reuse::Reset, Duration::from_secs(2)));
        assert!(config.max_concurrent_starts >= 2);
        assert_eq!(config.retire_grace, Duration::from_millis(250));
        assert!(!config.template);
        assert_eq!((config.name.as_str(), config.record_arrivals), ("pool", 0));
        assert!(config.listener.is_none() && config.foresight == Foresight::Off);
        assert!(config.validate().is_ok());
    }

    #[test]
    fn the_old_names_are_aliases() {
        let config = config().min_size(3).max_size(7);
        assert_eq!((config.min_idle, config.max_sessions), (Some(3), 7));
    }

    #[test]
    fn a_pool_of_one_needs_no_other_option() {
        assert!(config().max_sessions(1).validate().is_ok());
        assert_eq!(config().max_sessions(1).watermark(), 1);
        assert_eq!(config().max_sessions(1).min_idle(0).watermark(), 0);
        assert!(config().max_sessions(1).min_idle(2).validate().is_err(), "who says two shall have two");
    }

    #[test]
    fn a_budget_of_zero_means_never() {
        assert_eq!(config().recycle_after_executions(0).budget(), None);
        assert_eq!(config().recycle_after_executions(None).budget(), None);
        assert_eq!(config().budget(), Some(100));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        let cases: [(PoolConfig, &str); 12] = [
            (config().max_sessions(0), "max_sessions"),
            (config().min_idle(11), "min_idle"),
            (config().max_concurrent_starts(0), "max_concurrent_starts"),
            (config().max_waiters(0), "max_waiters"),
            (config().session_timeout(Duration::ZERO), "session_timeout"),
            (config().quota(Quota::new().max_leases(0)), "quota"),
            (config().tenant_quota("alice", Quota::new().weight(0)), "tenant_quota"),
            (config().tenant_quota("x".repeat(257), Quota::new()), "tenant_quota"),
            (config().max_lifetime(Duration::ZERO), "max_lifetime"),
            (config().max_session_memory(0), "max_session_memory"),
            (config().idle_memory_budget(0), "idle_memory_budget"),
            (config().start_timeout(Duration::ZERO), "start_timeout"),
        ];
        for (config, name) in cases {
            match config.validate() {
                Err(Error::InvalidConfig { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
