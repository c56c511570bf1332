//! A pool's numbers as text for Prometheus and its kin, without a server: put it behind whatever
//! route a program has, or into a file for the node exporter.
//!
//! Two forms: OpenMetrics 1.0 and the classic format 0.0.4. Labels come from closed sets; sessions,
//! users and tenants are never labels. Each series is there from the start, with zero.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use super::breaker::BreakerState;
use super::events::RefusalReason;
use super::explain::MissReason;
use super::histogram::HistogramSnapshot;
use super::metrics::PoolInfo;
use super::state::Removal;

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
        let mut text = Text { out: String::new(), open: true };
        write(&mut text, pools);
        text.out.push_str("# EOF\n");
        text.out
    }

    /// These numbers in the classic Prometheus format; its media type is `text/plain; version=0.0.4`.
    pub fn prometheus(&self) -> String {
        PoolInfo::prometheus_of(std::slice::from_ref(self))
    }

    /// As [`prometheus`](PoolInfo::prometheus), for several pools in one text. Their names must differ.
    pub fn prometheus_of(pools: &[PoolInfo]) -> String {
        let mut text = Text { out: String::new(), open: false };
        write(&mut text, pools);
        text.out
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
    Summary,
}

/// The text so far.
struct Text {
    out: String,
    open: bool,
}

/// One family of series, while it is written.
struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    kind: Kind,
}

/// Labels of a series beside `pool`.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> Family<'_> {
        // In the classic form a counter is called as its samples are.
        let suffix = if matches!(kind, Kind::Counter) && !self.open { "_total" } else { "" };
        let word = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        };
        let _ = writeln!(self.out, "# TYPE {name}{suffix} {word}");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
        if let Some(unit) = unit.filter(|_| self.open) {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}");
        Family { text: self, name, kind }
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
            family.histogram(pool, of(pool));
        }
    }
}

impl Family<'_> {
    fn value(&mut self, pool: &PoolInfo, labels: Labels<'_>, value: impl Display) {
        let suffix = if matches!(self.kind, Kind::Counter) { "_total" } else { "" };
        self.sample(suffix, pool, labels, value);
    }

    fn sample(&mut self, suffix: &str, pool: &PoolInfo, labels: Labels<'_>, value: impl Display) {
        let out = &mut self.text.out;
        let _ = write!(out, "{}{suffix}{{pool=\"{}\"", self.name, escaped(&pool.name));
        for (label, value) in labels {
            let _ = write!(out, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(out, "}} {value}");
    }

    fn histogram(&mut self, pool: &PoolInfo, histogram: &HistogramSnapshot) {
        for bucket in &histogram.buckets {
            self.sample("_bucket", pool, &[("le", &float(bucket.at_most))], bucket.count);
        }
        self.sample("_bucket", pool, &[("le", "+Inf")], histogram.count);
        self.sample("_sum", pool, &[], float(histogram.sum));
        self.sample("_count", pool, &[], histogram.count);
    }
}

/// Seconds, written as a float also where they are whole.
fn float(time: Duration) -> String {
    let text = time.as_secs_f64().to_string();
    if text.contains('.') { text } else { text + ".0" }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn write(text: &mut Text, pools: &[PoolInfo]) {
    sessions(text, pools);
    acquires(text, pools);
    lives(text, pools);
    starts(text, pools);
    work(text, pools);
    upkeep(text, pools);
}

fn sessions(text: &mut Text, pools: &[PoolInfo]) {
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

fn acquires(text: &mut Text, pools: &[PoolInfo]) {
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
    let help = "Callers that found nothing idle, by the reason.";
    let mut family = text.family(Kind::Counter, "remuda_pool_misses", help);
    for pool in pools {
        for reason in MissReason::ALL {
            let rows = pool.misses.iter().filter(|row| row.reason == reason);
            family.value(pool, &[("reason", reason.label())], rows.map(|row| row.count).sum::<u64>());
        }
    }
}

fn lives(text: &mut Text, pools: &[PoolInfo]) {
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
            family.value(pool, &[("reason", reason.label())], removed(pool, reason));
        }
    }
    let help = "Sessions that were replaced because of executions, age or memory, or by recycle_all.";
    let mut family = text.family(Kind::Counter, "remuda_pool_sessions_recycled", help);
    for pool in pools {
        for reason in Removal::ALL.into_iter().filter(|reason| reason.is_recycling()) {
            family.value(pool, &[("reason", reason.label())], removed(pool, reason));
        }
    }
    let help = "Sessions that were replaced because they were dead or unusable.";
    text.counters("remuda_pool_sessions_restarted", help, pools, |pool| pool.metrics.sessions_restarted);
    let help = "Leases that lasted longer than allowed, each counted once.";
    text.counters("remuda_pool_leaks_suspected", help, pools, |pool| pool.metrics.leaks);
}

fn starts(text: &mut Text, pools: &[PoolInfo]) {
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

fn work(text: &mut Text, pools: &[PoolInfo]) {
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

fn upkeep(text: &mut Text, pools: &[PoolInfo]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn whole_seconds_are_floats_too() {
        assert_eq!(float(Duration::from_secs(100)), "100.0");
        assert_eq!(float(Duration::from_micros(2)), "0.000002");
    }
}
