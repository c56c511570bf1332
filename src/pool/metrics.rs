//! The pool's numbers, each defined once, here.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::breaker::BreakerState;
use super::config::ConfigSummary;
use super::events::RefusalReason;
use super::explain::MissCount;
use super::placement::PlacementRow;
use super::quota::Quota;
use super::state::{Claim, Refusal, Removal, TenantRow};
use super::tallies::{ExecutionCounts, WarmImportStats};
use super::threads;
use crate::histogram::{HistogramSnapshot, Tally, seconds};
use crate::session::{PostMortem, SessionId, TemplateInfo};

/// What the pool counts. Written under the pool's lock, so a snapshot is consistent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acquisition_attempts: u64,
    pub(crate) acquisition_success: u64,
    pub(crate) acquisition_timeouts: u64,
    pub(crate) acquisitions_cancelled: u64,
    pub(crate) refused_because: [u64; RefusalReason::ALL.len()],
    pub(crate) nested_acquires: u64,
    pub(crate) total_acquisition_time: Duration,
    /// Times in the queue of successful calls.
    pub(crate) acquire_waits: Tally,
    pub(crate) pool_hits: u64,
    pub(crate) sessions_created: u64,
    pub(crate) sessions_removed: u64,
    pub(crate) sessions_recycled: u64,
    pub(crate) sessions_restarted: u64,
    pub(crate) start_failures: u64,
    pub(crate) warmup_triggers: u64,
    pub(crate) warmup_loop_iterations: u64,
    pub(crate) sessions_created_from_warmup: u64,
    pub(crate) health_check_triggers: u64,
    pub(crate) health_check_runs: u64,
    pub(crate) sessions_removed_by_health: u64,
    pub(crate) leaks: u64,
    pub(crate) leaks_reclaimed: u64,
    pub(crate) removed_because: [u64; Removal::ALL.len()],
    pub(crate) breaker_opened: u64,
    pub(crate) busy_max: usize,
    pub(crate) waiters_max: usize,
}

impl Counters {
    /// A caller got no session.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        match refusal.reason() {
            Some(reason) => self.refused_because[reason as usize] += 1,
            None if matches!(refusal, Refusal::Cancelled) => self.acquisitions_cancelled += 1,
            None => self.acquisition_timeouts += 1,
        }
    }
}

/// How many sessions are in each place: `idle + busy + resetting + starting + retiring == total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolCounts {
    /// Waiting to be acquired.
    pub idle: usize,
    /// Acquired by somebody.
    pub busy: usize,
    /// On the way back to their warm state, or being looked at by the monitor.
    pub resetting: usize,
    /// Being started.
    pub starting: usize,
    /// Leaving; their processes are not gone yet.
    pub retiring: usize,
    /// The sum of the five, at most `max_sessions`.
    pub total: usize,
    /// Callers that wait for a session.
    pub waiters: usize,
    /// Jobs that wait for a session.
    pub jobs: usize,
}

/// A snapshot of the pool's counters and gauges, taken at one moment under the pool's lock.
///
/// The names are those of the Python ancestor; each means exactly what stands here.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolMetrics {
    /// Calls that asked for a session (in any way) while the pool was open; each job asks when it is
    /// submitted.
    pub acquisition_attempts: u64,
    /// Calls that got one.
    pub acquisition_success: u64,
    /// Calls that gave up because their time had passed, those that try once included.
    pub acquisition_timeouts: u64,
    /// Calls that ended because their token was cancelled.
    pub acquisitions_cancelled: u64,
    /// Calls that were refused: too many waiters, starts failing, a quota used up, a nested acquire,
    /// or the pool closed under them. [`PoolInfo::refusals`] tells them apart.
    pub acquisitions_refused: u64,
    /// Calls that were about to wait while their thread held a session of this pool already: see
    /// [`NestedAcquire`](crate::NestedAcquire).
    pub nested_acquires: u64,
    /// Time that successful calls spent in the queue, in seconds. A call that is served from idle
    /// without queueing adds nothing: it reads no clock.
    #[serde(serialize_with = "seconds")]
    pub total_acquisition_time: Duration,
    /// `total_acquisition_time / acquisition_success`, zero before the first success.
    #[serde(serialize_with = "seconds")]
    pub avg_acquisition_time: Duration,
    /// Successful calls that were served from idle without queueing.
    pub pool_hits: u64,
    /// All other successful calls. Time-outs are neither hits nor misses.
    pub pool_misses: u64,
    /// `pool_hits / (pool_hits + pool_misses)`, zero before the first success.
    pub hit_rate: f64,
    /// Sessions that became ready.
    pub sessions_created: u64,
    /// Sessions that left the pool, for whatever reason; counted when they begin to leave.
    pub sessions_removed: u64,
    /// Of those: replaced for their executions, age or memory, or by
    /// [`recycle_all`](crate::SessionPool::recycle_all).
    pub sessions_recycled: u64,
    /// Dead or unusable sessions that were removed and for which a new one was ordered, and sessions that
    /// got a new process in their place because they could not be reset in front of a request.
    pub sessions_restarted: u64,
    /// Starts that failed. A session that got ready and was no good counts as one from the third in a row on:
    /// the [check before use](crate::PoolConfig::validate_with()) refused it, or it ended within ten seconds
    /// before anybody used it.
    pub start_failures: u64,
    /// Gauge: sessions that wait to be acquired.
    pub idle_sessions: usize,
    /// Gauge: sessions that somebody holds.
    pub active_sessions: usize,
    /// Gauge: sessions in any place, starting and retiring ones included.
    pub total_sessions: usize,
    /// Gauge: callers that wait for a session; jobs are in [`PoolCounts::jobs`].
    pub waiting: usize,
    /// The most sessions that were held at the same time.
    pub active_sessions_max: usize,
    /// The most callers that waited at the same time.
    pub waiting_max: usize,
    /// Times that the breaker opened: batches of starts that failed whole, and sessions that were no good as
    /// [`start_failures`](PoolMetrics::start_failures) has it.
    pub breaker_opened: u64,
    /// Times that sessions began to be missing: fewer on hand or on the way than the watermark
    /// and the waiters want, when a moment before there were enough.
    pub warmup_triggers: u64,
    /// Batches of starts. A batch begins with a start while none is under way.
    pub warmup_loop_iterations: u64,
    /// Sessions that went to idle when they became ready, because nobody waited.
    pub sessions_created_from_warmup: u64,
    /// `warmup_loop_iterations / warmup_triggers`: batches a trigger took; zero before the first.
    pub warmup_efficiency: f64,
    /// Requests for a health pass: one for each release, each removal and each session that becomes
    /// ready.
    pub health_check_triggers: u64,
    /// Health passes made, on request or by the timer.
    pub health_check_runs: u64,
    /// Sessions removed by a health pass or the monitor: idle too long, too old, found dead,
    /// found talking, or stuck in a reset.
    pub sessions_removed_by_health: u64,
    /// `health_check_runs / health_check_triggers`: low means that requests were coalesced well;
    /// zero before the first.
    pub health_check_efficiency: f64,
    /// Leases that were held longer than [`leak_after`](super::PoolConfig::leak_after), each counted
    /// once.
    pub leaks: u64,
    /// Of those: sessions that were taken back.
    pub leaks_reclaimed: u64,
}

/// Everything worth knowing about a pool at one moment, fit for JSON: `serde_json::to_value(pool.info())`
/// is a snapshot to attach to a tracker's beats. Times are seconds, sizes bytes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolInfo {
    /// The pool's [name](crate::PoolConfig::name).
    pub name: String,
    /// The options in effect.
    pub config: ConfigSummary,
    /// Whether the pool is not closed; it may be paused.
    pub open: bool,
    /// Whether it is paused: it hands out nothing until it is resumed.
    pub paused: bool,
    /// How many sessions are where.
    pub counts: PoolCounts,
    /// The counters.
    pub metrics: PoolMetrics,
    /// The circuit breaker of session starts.
    pub breaker: BreakerInfo,
    /// One row for each tenant that has or waits for a session, or has a quota of its own, by name.
    pub quotas: Vec<QuotaRow>,
    /// Where its sessions come from, with [`PoolConfig::template`](crate::PoolConfig::template).
    pub template: Option<TemplateInfo>,
    /// The [`placements`](crate::PoolConfig::placements), in their order.
    pub placements: Vec<PlacementRow>,
    /// Why sessions left, and how many for which reason; reasons that never held are left out.
    pub removals: Vec<RemovalCount>,
    /// Why callers were refused; reasons that never held are left out.
    pub refusals: Vec<RefusalCount>,
    /// Why callers found nothing idle; reasons that never held are left out.
    pub misses: Vec<MissCount>,
    /// Times in the queue of calls that got a session. Hits count in the shortest bucket.
    pub acquire_duration: HistogramSnapshot,
    /// Times from the request to its result, of all executions in leases and jobs.
    pub execution_duration: HistogramSnapshot,
    /// Times that starts took which brought a session, warm-up included.
    pub start_duration: HistogramSnapshot,
    /// How those executions ended.
    pub executions: ExecutionCounts,
    /// What came of each module of [`warm_imports`](crate::SessionConfig::warm_imports), over all
    /// processes that have warmed up so far: sessions, or the template instead of them.
    pub warm_imports: Vec<WarmImportStats>,
    /// What the sessions hold in memory.
    pub memory: MemoryInfo,
    /// Events that the [listener](crate::PoolConfig::listener) did not hear of because it was too slow.
    pub events_dropped: u64,
    /// One row for each session that is ready, by slot.
    pub sessions: Vec<SessionRow>,
    /// How the last sessions ended, the latest last (at most 16).
    pub post_mortems: Vec<PostMortem>,
    /// When this was written. In JSON an object, `secs_since_epoch` and `nanos_since_epoch`.
    pub at: SystemTime,
}

/// The state of the circuit breaker.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BreakerInfo {
    /// Whether sessions are being started.
    pub state: BreakerState,
    /// Batches of starts that failed whole since the last success; more if the sessions that earlier ones
    /// brought were no good.
    pub failures: u32,
    /// When the next attempt may begin, in seconds from now.
    #[serde(serialize_with = "maybe_seconds")]
    pub retry_in: Option<Duration>,
    /// Why the last start failed, even if later ones succeeded.
    pub last_error: Option<String>,
}

/// One session of a pool.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SessionRow {
    /// Its number.
    pub id: SessionId,
    /// Its process.
    pub pid: u32,
    /// On which of the [`placements`](crate::PoolConfig::placements) it runs, if there are any.
    pub placement: Option<String>,
    /// Where it is.
    pub state: PlaceName,
    /// How long it has been there, in seconds.
    #[serde(serialize_with = "seconds")]
    pub since: Duration,
    /// Time since it became ready, in seconds.
    #[serde(serialize_with = "seconds")]
    pub age: Duration,
    /// Leases it has served or is serving.
    pub leases: u64,
    /// Executions begun, as of its last release.
    pub executions: u64,
    /// Who has it, while it is busy.
    pub holder: Option<HolderRow>,
    /// Its resident memory, in bytes; `None` once its process is gone, or if that is elsewhere.
    pub memory: Option<u64>,
    /// Processor time of its process since it started, in seconds; `None` as for `memory`.
    #[serde(serialize_with = "maybe_seconds")]
    pub cpu_time: Option<Duration>,
}

/// Who has a session.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HolderRow {
    /// See [`Acquire::tenant`](crate::Acquire::tenant).
    pub tenant: Option<String>,
    /// See [`Acquire::label`](crate::Acquire::label).
    pub label: Option<String>,
    /// See [`Acquire::priority`](crate::Acquire::priority).
    pub priority: i32,
    /// Where in the program it was acquired, or its job submitted: file, line and column.
    pub at: String,
    /// The number of the thread that acquired it; none for a job.
    pub thread: Option<u64>,
    /// The name of that thread, if it has one and still runs.
    pub thread_name: Option<String>,
}

/// What a tenant has of a pool and what it may have.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QuotaRow {
    /// Its name.
    pub tenant: String,
    /// What it may have. In JSON its fields stand beside the others.
    #[serde(flatten)]
    pub quota: Quota,
    /// Sessions that it has in use.
    pub leases: usize,
    /// Callers and jobs of it that wait for a session.
    pub queued: usize,
    /// Leases that it has had. This and the next two numbers are kept as long as the row is: for a
    /// tenant without a quota of its own, until it neither has nor waits for a session.
    pub served: u64,
    /// Calls and jobs that were refused or cancelled.
    pub refused: u64,
    /// Calls that gave up because their time had passed.
    pub timed_out: u64,
}

/// Memory of a pool's sessions, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// Resident memory of all sessions that are ready or in use, now. What several processes share
    /// counts for each.
    pub resident: u64,
    /// What all sessions held when they were last looked at, pages that are shared counted in parts: after
    /// their start and with each [`health_check_interval`](crate::PoolConfig::health_check_interval), more
    /// often with a [budget](crate::PoolConfig::max_session_memory).
    pub weighed: u64,
    /// Of that: the idle sessions.
    pub weighed_idle: u64,
}

/// Sessions that left for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RemovalCount {
    /// The reason.
    pub reason: Removal,
    /// How many, since the pool's start.
    pub count: u64,
}

/// Callers that were refused for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RefusalCount {
    /// The reason.
    pub reason: RefusalReason,
    /// How many, since the pool's start.
    pub count: u64,
}

/// The place of a session in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlaceName {
    /// Waiting to be acquired.
    Idle,
    /// Acquired by somebody.
    Busy,
    /// On the way back to its warm state.
    Resetting,
    /// Being started.
    Starting,
    /// Leaving.
    Retiring,
}

impl HolderRow {
    pub(super) fn new(claim: &Claim) -> HolderRow {
        HolderRow {
            tenant: claim.tenant().map(|name| name.as_ref().to_owned()),
            label: claim.label().map(|label| label.as_ref().to_owned()),
            priority: claim.priority(),
            at: claim.place.to_string(),
            thread: (!claim.is_job()).then_some(claim.thread),
            thread_name: threads::name(claim.thread),
        }
    }
}

/// In one line: `src/main.rs:10:5, thread 3 (web-1), tenant alice, label nightly`.
impl fmt::Display for HolderRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.at)?;
        match self.thread {
            Some(thread) => write!(f, ", thread {thread}")?,
            None => f.write_str(", a job")?,
        }
        if let Some(name) = &self.thread_name {
            write!(f, " ({name})")?;
        }
        let names = [("tenant", &self.tenant), ("label", &self.label)];
        names
            .iter()
            .filter_map(|(what, name)| Some((what, name.as_ref()?)))
            .try_for_each(|(what, name)| write!(f, ", {what} {name}"))
    }
}

impl QuotaRow {
    pub(super) fn new(row: &TenantRow) -> QuotaRow {
        QuotaRow {
            tenant: row.name.as_ref().to_owned(),
            quota: row.quota,
            leases: row.leases,
            queued: row.queued,
            served: row.served,
            refused: row.refused,
            timed_out: row.timed_out,
        }
    }
}

impl PoolMetrics {
    pub(crate) fn new(counters: &Counters, counts: PoolCounts) -> PoolMetrics {
        let c = counters;
        PoolMetrics {
            acquisition_attempts: c.acquisition_attempts,
            acquisition_success: c.acquisition_success,
            acquisition_timeouts: c.acquisition_timeouts,
            acquisitions_cancelled: c.acquisitions_cancelled,
            acquisitions_refused: c.refused_because.iter().sum(),
            nested_acquires: c.nested_acquires,
            total_acquisition_time: c.total_acquisition_time,
            avg_acquisition_time: average(c.total_acquisition_time, c.acquisition_success),
            pool_hits: c.pool_hits,
            pool_misses: c.acquisition_success - c.pool_hits,
            hit_rate: ratio(c.pool_hits, c.acquisition_success),
            sessions_created: c.sessions_created,
            sessions_removed: c.sessions_removed,
            sessions_recycled: c.sessions_recycled,
            sessions_restarted: c.sessions_restarted,
            start_failures: c.start_failures,
            idle_sessions: counts.idle,
            active_sessions: counts.busy,
            total_sessions: counts.total,
            waiting: counts.waiters,
            active_sessions_max: c.busy_max,
            waiting_max: c.waiters_max,
            breaker_opened: c.breaker_opened,
            warmup_triggers: c.warmup_triggers,
            warmup_loop_iterations: c.warmup_loop_iterations,
            sessions_created_from_warmup: c.sessions_created_from_warmup,
            warmup_efficiency: ratio(c.warmup_loop_iterations, c.warmup_triggers),
            health_check_triggers: c.health_check_triggers,
            health_check_runs: c.health_check_runs,
            sessions_removed_by_health: c.sessions_removed_by_health,
            health_check_efficiency: ratio(c.health_check_runs, c.health_check_triggers),
            leaks: c.leaks,
            leaks_reclaimed: c.leaks_reclaimed,
        }
    }
}

/// Reasons that held, with their counts.
pub(crate) fn counted<R: Copy, T>(reasons: &[R], counts: &[u64], row: impl Fn(R, u64) -> T) -> Vec<T> {
    let held = reasons.iter().zip(counts).filter(|(_, count)| **count > 0);
    held.map(|(reason, count)| row(*reason, *count)).collect()
}

fn average(total: Duration, count: u64) -> Duration {
    match u128::from(count) {
        0 => Duration::ZERO,
        count => Duration::from_nanos(u64::try_from(total.as_nanos() / count).unwrap_or(u64::MAX)),
    }
}

#[allow(clippy::cast_precision_loss, reason = "counters stay far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[allow(clippy::ref_option, reason = "the signature that serde calls")]
pub(crate) fn maybe_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_numbers_follow_their_formulas() {
        let counters = Counters {
            acquisition_success: 4,
            pool_hits: 3,
            total_acquisition_time: Duration::from_secs(2),
            warmup_triggers: 2,
            warmup_loop_iterations: 3,
            health_check_triggers: 8,
            health_check_runs: 2,
            ..Counters::default()
        };
        let metrics = PoolMetrics::new(&counters, PoolCounts::default());
        assert_eq!(metrics.pool_misses, 1);
        assert!((metrics.hit_rate - 0.75).abs() < 1e-9);
        assert_eq!(metrics.avg_acquisition_time, Duration::from_millis(500));
        assert!((metrics.warmup_efficiency - 1.5).abs() < 1e-9);
        assert!((metrics.health_check_efficiency - 0.25).abs() < 1e-9);
    }

    #[test]
    fn nothing_divides_by_zero() {
        let metrics = PoolMetrics::new(&Counters::default(), PoolCounts::default());
        assert_eq!(metrics.avg_acquisition_time, Duration::ZERO);
        assert!(metrics.hit_rate.abs() < 1e-9 && metrics.health_check_efficiency.abs() < 1e-9);
    }
}
