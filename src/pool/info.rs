//! The snapshot behind [`SessionPool::info`](super::SessionPool::info).

use super::core::{Core, Handle};
use super::events::RefusalReason;
use super::explain::{MissCount, MissReason};
use super::metrics::{
    BreakerInfo, HolderRow, MemoryInfo, PlaceName, PoolInfo, PoolMetrics, QuotaRow, RefusalCount,
    RemovalCount, SessionRow, counted,
};
use super::state::{Removal, Row};
use crate::clock;

/// Takes a snapshot: what the lock protects in one go, everything else without it.
pub(super) fn of(core: &Core) -> PoolInfo {
    let now = core.clock().now();
    let (open, counts, counters, misses, rows, breaker, last_error, now_and_then) = {
        let state = &core.lock().state;
        let now_and_then = (state.is_paused(), state.sizes(), state.memory_held(), state.tenant_rows());
        let last_error = state.last_start_error().cloned();
        let (counters, misses) = (state.counters().clone(), state.misses().counts);
        (
            state.is_open(),
            state.counts(),
            counters,
            misses,
            state.rows(now),
            state.breaker(now),
            last_error,
            now_and_then,
        )
    };
    let (paused, sizes, (weighed_idle, weighed), tenants) = now_and_then;
    let row = |row: Row<Handle>| SessionRow {
        id: row.handle.id,
        pid: row.handle.process.id(),
        placement: core.source.place_of(&row.handle.process),
        state: row.place,
        since: row.since,
        age: row.age,
        leases: row.leases,
        executions: row.executions,
        holder: row.holder.as_ref().map(HolderRow::new),
        memory: row.handle.process.memory().map(|memory| memory.resident),
        cpu_time: row.handle.process.cpu_time(),
    };
    let sessions: Vec<SessionRow> = rows.into_iter().map(row).collect();
    let resident =
        sessions.iter().filter(|row| row.state != PlaceName::Retiring).filter_map(|row| row.memory).sum();
    let (state, failures, retry_in) = breaker;
    let last_error = last_error.map(|error| error.to_string());
    let (executions, execution_duration) = core.tallies.executions();
    PoolInfo {
        name: core.config.name.clone(),
        config: core.config.summary(sizes),
        open,
        paused,
        counts,
        metrics: PoolMetrics::new(&counters, counts),
        breaker: BreakerInfo { state, failures, retry_in, last_error },
        quotas: tenants.iter().map(QuotaRow::new).collect(),
        template: core.source.info(),
        placements: core.source.placements(now),
        removals: counted(&Removal::ALL, &counters.removed_because, |reason, count| RemovalCount {
            reason,
            count,
        }),
        refusals: counted(&RefusalReason::ALL, &counters.refused_because, |reason, count| RefusalCount {
            reason,
            count,
        }),
        misses: counted(&MissReason::ALL, &misses, |reason, count| MissCount { reason, count }),
        acquire_duration: counters.acquire_waits.snapshot(counters.pool_hits),
        execution_duration,
        start_duration: core.tallies.starts(),
        executions,
        warm_imports: core.tallies.warm_imports(),
        memory: MemoryInfo { resident, weighed, weighed_idle },
        events_dropped: core.outlet.dropped(),
        sessions,
        post_mortems: core.post_mortems(),
        at: clock::wall(),
    }
}
