//! A pool's numbers as text for Prometheus and its kin, without a server: put it behind whatever
//! route a program has, or into a file for the node exporter.
//!
//! Two forms: OpenMetrics 1.0 and the classic format 0.0.4. Labels come from closed sets; sessions,
//! users and tenants are never labels. Each series is there from the start, with zero.

use std::fmt::Display;

use super::breaker::BreakerState;
use super::events::RefusalReason;
use super::explain::MissReason;
use super::metrics::PoolInfo;
use super::placement::PlacementRow;
use super::state::Removal;
use crate::histogram::HistogramSnapshot;
use crate::openmetrics::{Family, Form, Kind, Text, float};

impl PoolInfo {
    /// These numbers as OpenMetrics text; its media type is
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`. The names are explained in
    /// `docs/guide/metrics.md`.
    pub fn open_metrics(&self) -> String {
        PoolInfo::open_metrics_of(std::slice::from_ref(self))
    }

    /// As [`open_metrics`](PoolInfo::open_metrics), for several pools in one text. Their
    /// [names](crate::PoolConfig::name) must differ.
    pub fn open_metrics_of(pools: &[PoolInfo]) -> String {
        PoolText::of(Form::OpenMetrics, pools)
    }

    /// These numbers in the classic Prometheus format; its media type is `text/plain; version=0.0.4`.
    pub fn prometheus(&self) -> String {
        PoolInfo::prometheus_of(std::slice::from_ref(self))
    }

    /// As [`prometheus`](PoolInfo::prometheus), for several pools in one text. Their names must differ.
    pub fn prometheus_of(pools: &[PoolInfo]) -> String {
        PoolText::of(Form::Prometheus, pools)
    }
}

/// The text of pools: each series has the label `pool`.
struct PoolText(Text);

/// One family of theirs, while it is written.
struct PoolFamily<'a>(Family<'a>);

/// Labels of a series beside `pool`.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl PoolText {
    fn of(form: Form, pools: &[PoolInfo]) -> String {
        let mut text = PoolText(Text::new(form));
        write(&mut text, pools);
        text.0.finish()
    }

    fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> PoolFamily<'_> {
        PoolFamily(self.0.family(kind, name, help))
    }

    fn gauges<V: Display>(
        &mut self,
        name: &'static str,
        help: &str,
        pools: &[PoolInfo],
        of: impl Fn(&PoolInfo) -> V,
    ) {
        let mut family = self.family(Kind::Gauge, name, help);
        for pool in pools {
            family.value(pool, &[], of(pool));
        }
    }

    fn counters(
        &mut self,
        name: &'static str,
        help: &str,
        pools: &[PoolInfo],
        of: impl Fn(&PoolInfo) -> u64,
    ) {
        let mut family = self.family(Kind::Counter, name, help);
        for pool in pools {
            family.value(pool, &[], of(pool));
        }
    }

    fn histograms(
        &mut self,
        name: &'static str,
        help: &str,
        pools: &[PoolInfo],
        of: impl Fn(&PoolInfo) -> &HistogramSnapshot,
    ) {
        let mut family = self.family(Kind::Histogram, name, help);
        for pool in pools {
            family.0.histogram(&[("pool", &pool.name)], of(pool));
        }
    }
}

impl PoolFamily<'_> {
    fn value(&mut self, pool: &PoolInfo, labels: Labels<'_>, value: impl Display) {
        self.0.value(&with_pool(pool, labels), value);
    }

    fn sample(&mut self, suffix: &str, pool: &PoolInfo, labels: Labels<'_>, value: impl Display) {
        self.0.sample(suffix, &with_pool(pool, labels), value);
    }
}

fn with_pool<'a>(pool: &'a PoolInfo, labels: Labels<'a>) -> Vec<(&'a str, &'a str)> {
    [&[("pool", pool.name.as_str())], labels].concat()
}

fn write(text: &mut PoolText, pools: &[PoolInfo]) {
    sessions(text, pools);
    acquires(text, pools);
    lives(text, pools);
    starts(text, pools);
    work(text, pools);
    upkeep(text, pools);
}

fn sessions(text: &mut PoolText, pools: &[PoolInfo]) {
    let help = "Sessions by where they are.";
    let mut family = text.family(Kind::Gauge, "remuda_pool_sessions", help);
    for pool in pools {
        let counts = pool.counts;
        family.value(pool, &[("state", "idle")], counts.idle);
        family.value(pool, &[("state", "busy")], counts.busy);
        family.value(pool, &[("state", "resetting")], counts.resetting);
        family.value(pool, &[("state", "starting")], counts.starting);
        family.value(pool, &[("state", "retiring")], counts.retiring);
    }
    let help = "The bounds of the number of sessions.";
    let mut family = text.family(Kind::Gauge, "remuda_pool_sessions_limit", help);
    for pool in pools {
        family.value(pool, &[("bound", "min_idle")], pool.config.min_idle);
        family.value(pool, &[("bound", "max")], pool.config.max_sessions);
    }
    let most = |pool: &PoolInfo| pool.metrics.active_sessions_max;
    text.gauges("remuda_pool_busy_sessions_max", "The most sessions held at the same time.", pools, most);
    let memory = |pool: &PoolInfo| pool.memory.resident;
    text.gauges("remuda_pool_resident_memory_bytes", "Resident memory of all sessions.", pools, memory);
    let help = "What memory may be held: by one session, by all idle ones together. Absent without a limit.";
    let mut family = text.family(Kind::Gauge, "remuda_pool_memory_limit_bytes", help);
    for pool in pools {
        let limits =
            [("session", pool.config.max_session_memory), ("all_idle", pool.config.idle_memory_budget)];
        for (bound, limit) in limits.iter().filter_map(|(bound, limit)| Some((bound, (*limit)?))) {
            family.value(pool, &[("bound", bound)], limit);
        }
    }
    text.gauges("remuda_pool_paused", "Whether the pool is paused.", pools, |pool| u8::from(pool.paused));
    text.gauges("remuda_pool_open", "Whether the pool is not closed; it may be paused.", pools, |pool| {
        u8::from(pool.open)
    });
}

fn acquires(text: &mut PoolText, pools: &[PoolInfo]) {
    let help = "Calls that asked for a session, by what came of them.";
    let mut family = text.family(Kind::Counter, "remuda_pool_acquires", help);
    for pool in pools {
        let metrics = &pool.metrics;
        let refused = |wanted: RefusalReason| {
            pool.refusals.iter().filter(|row| row.reason == wanted).map(|row| row.count).sum::<u64>()
        };
        let (shutdown, breaker) = (refused(RefusalReason::Closed), refused(RefusalReason::StartFailing));
        let rejected = metrics.acquisitions_refused - shutdown - breaker;
        family.value(pool, &[("outcome", "hit")], metrics.pool_hits);
        family.value(pool, &[("outcome", "miss")], metrics.pool_misses);
        family.value(pool, &[("outcome", "timeout")], metrics.acquisition_timeouts);
        family.value(pool, &[("outcome", "cancelled")], metrics.acquisitions_cancelled);
        family.value(pool, &[("outcome", "shutdown")], shutdown);
        family.value(pool, &[("outcome", "rejected")], rejected);
        family.value(pool, &[("outcome", "breaker_open")], breaker);
    }
    let help = "Time that calls which got a session spent in the queue.";
    text.histograms("remuda_pool_acquire_duration_seconds", help, pools, |pool| &pool.acquire_duration);
    text.gauges("remuda_pool_waiters", "Callers that wait for a session.", pools, |pool| pool.counts.waiters);
    text.gauges("remuda_pool_queued_jobs", "Jobs that wait for a session.", pools, |pool| pool.counts.jobs);
    let most = |pool: &PoolInfo| pool.metrics.waiting_max;
    text.gauges("remuda_pool_waiters_max", "The most callers that waited at the same time.", pools, most);
    let help = "Calls that were about to wait while their thread held a session already.";
    text.counters("remuda_pool_nested_acquires", help, pools, |pool| pool.metrics.nested_acquires);
    let help = "Callers that found nothing idle, by the reason.";
    let mut family = text.family(Kind::Counter, "remuda_pool_misses", help);
    for pool in pools {
        for reason in MissReason::ALL {
            let rows = pool.misses.iter().filter(|row| row.reason == reason);
            family.value(pool, &[("reason", reason.as_str())], rows.map(|row| row.count).sum::<u64>());
        }
    }
}

fn lives(text: &mut PoolText, pools: &[PoolInfo]) {
    let help = "Sessions that became ready, by whether somebody got them at once.";
    let mut family = text.family(Kind::Counter, "remuda_pool_sessions_created", help);
    for pool in pools {
        let (all, warm) = (pool.metrics.sessions_created, pool.metrics.sessions_created_from_warmup);
        family.value(pool, &[("cause", "demand")], all.saturating_sub(warm));
        family.value(pool, &[("cause", "warmup")], warm);
    }
    let removed = |pool: &PoolInfo, reason: Removal| {
        pool.removals.iter().filter(|row| row.reason == reason).map(|row| row.count).sum::<u64>()
    };
    let help = "Sessions that left, by the reason.";
    let mut family = text.family(Kind::Counter, "remuda_pool_sessions_removed", help);
    for pool in pools {
        for reason in Removal::ALL {
            family.value(pool, &[("reason", reason.as_str())], removed(pool, reason));
        }
    }
    let help = "Sessions that were replaced because of executions, age or memory, or by recycle_all.";
    let mut family = text.family(Kind::Counter, "remuda_pool_sessions_recycled", help);
    for pool in pools {
        for reason in Removal::ALL.into_iter().filter(|reason| reason.is_recycling()) {
            family.value(pool, &[("reason", reason.as_str())], removed(pool, reason));
        }
    }
    let help = "Sessions that were replaced because they were dead or unusable.";
    text.counters("remuda_pool_sessions_restarted", help, pools, |pool| pool.metrics.sessions_restarted);
    let help = "Leases that lasted longer than allowed, each counted once.";
    text.counters("remuda_pool_leaks_suspected", help, pools, |pool| pool.metrics.leaks);
}

fn placements<V: Display>(mut family: PoolFamily<'_>, pools: &[PoolInfo], of: impl Fn(&PlacementRow) -> V) {
    for pool in pools {
        for row in &pool.placements {
            family.value(pool, &[("placement", &row.name)], of(row));
        }
    }
}

fn starts(text: &mut PoolText, pools: &[PoolInfo]) {
    let help = "Time that starts took which brought a session, warm-up included.";
    text.histograms("remuda_pool_start_duration_seconds", help, pools, |pool| &pool.start_duration);
    let help = "Starts that failed.";
    text.counters("remuda_pool_start_failures", help, pools, |pool| pool.metrics.start_failures);
    let help = "Whether the breaker of session starts is in this state.";
    let mut family = text.family(Kind::Gauge, "remuda_pool_breaker_state", help);
    for pool in pools {
        let states = [
            ("closed", BreakerState::Closed),
            ("open", BreakerState::Open),
            ("half_open", BreakerState::HalfOpen),
        ];
        for (label, state) in states {
            family.value(pool, &[("state", label)], u8::from(pool.breaker.state == state));
        }
    }
    let help = "Times that the breaker opened.";
    text.counters("remuda_pool_breaker_opened", help, pools, |pool| pool.metrics.breaker_opened);
    let help = "Processes at each placement.";
    placements(text.family(Kind::Gauge, "remuda_pool_placement_sessions", help), pools, |row| row.sessions);
    let help = "Whether the last start at a placement succeeded.";
    let family = text.family(Kind::Gauge, "remuda_pool_placement_up", help);
    placements(family, pools, |row| u8::from(row.last_error.is_none()));
    let help = "Starts that failed at a placement.";
    let family = text.family(Kind::Counter, "remuda_pool_placement_start_failures", help);
    placements(family, pools, |row| row.failed);
    let help = "Time of warm imports.";
    let mut family = text.family(Kind::Summary, "remuda_pool_warm_import_duration_seconds", help);
    for pool in pools {
        for import in &pool.warm_imports {
            let labels: Labels<'_> = &[("module", &import.module)];
            family.sample("_sum", pool, labels, float(import.total_time));
            family.sample("_count", pool, labels, import.imports);
        }
    }
    let help = "Warm imports that failed.";
    let mut family = text.family(Kind::Counter, "remuda_pool_warm_import_failures", help);
    for pool in pools {
        for import in &pool.warm_imports {
            family.value(pool, &[("module", &import.module)], import.failures);
        }
    }
}

fn work(text: &mut PoolText, pools: &[PoolInfo]) {
    let mut family = text.family(Kind::Counter, "remuda_executions", "Executions, by their outcome.");
    for pool in pools {
        let counts = pool.executions;
        family.value(pool, &[("outcome", "completed")], counts.completed);
        family.value(pool, &[("outcome", "failed")], counts.failed);
        family.value(pool, &[("outcome", "cancelled")], counts.cancelled);
        family.value(pool, &[("outcome", "timed_out")], counts.timed_out);
        family.value(pool, &[("outcome", "limit_exceeded")], counts.limit_exceeded);
        family.value(pool, &[("outcome", "died")], counts.died);
        family.value(pool, &[("outcome", "broken")], counts.broken);
    }
    let help = "Time from a request to its result.";
    text.histograms("remuda_execution_duration_seconds", help, pools, |pool| &pool.execution_duration);
}

fn upkeep(text: &mut PoolText, pools: &[PoolInfo]) {
    let help = "Times that sessions began to be missing.";
    text.counters("remuda_pool_warmup_triggers", help, pools, |pool| pool.metrics.warmup_triggers);
    let help = "Batches of starts.";
    text.counters("remuda_pool_warmup_iterations", help, pools, |pool| pool.metrics.warmup_loop_iterations);
    let help = "Requests for a health pass.";
    text.counters("remuda_pool_health_triggers", help, pools, |pool| pool.metrics.health_check_triggers);
    let help = "Health passes.";
    text.counters("remuda_pool_health_runs", help, pools, |pool| pool.metrics.health_check_runs);
    let help = "Sessions removed by a health pass or the monitor.";
    let removed = |pool: &PoolInfo| pool.metrics.sessions_removed_by_health;
    text.counters("remuda_pool_sessions_removed_by_health", help, pools, removed);
    let help = "Events that the listener was too slow for.";
    text.counters("remuda_pool_events_dropped", help, pools, |pool| pool.events_dropped);
}
