//! The maintenance thread: health passes on a timer and on request.

use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Handle};
use super::events::{PoolEvent, TARGET};
use super::foresight::{Forecast, Foresight, TICK};
use super::metrics::HolderRow;
use super::state::{Lease, Removal, SETTLE, SlotId};
use crate::background::shielded;
use crate::clock::Moment;
use crate::error::Error;

/// Rest after a pass that failed: the Python ancestor's.
const ERROR_REST: Duration = Duration::from_secs(1);

/// The maintenance thread. The first pass is `due` by itself.
pub(super) fn run(core: &Arc<Core>, mut due: Moment) {
    let mut forecast = (core.config.foresight != Foresight::Off).then(|| Forecast::new(core.clock().now()));
    while wait_for_request(core, due) {
        // Read once: time that passes during the pass counts for the rest and for the next pass.
        let now = core.clock().now();
        let next = shielded("a health pass", || pass(core, now));
        let rest = now + if next.is_some() { SETTLE } else { ERROR_REST };
        due = next.unwrap_or(rest);
        if let Some(forecast) = &mut forecast
            && foresee(core, forecast, now)
        {
            due = due.min(now + TICK);
        }
        if !sleep_until(core, rest) {
            return;
        }
    }
}

/// One pass; returns when the next one is due.
fn pass(core: &Arc<Core>, now: Moment) -> Moment {
    let pass = core.with(|state, fx| state.health_pass(now, fx));
    for slot in pass.arm {
        core.listen(slot);
    }
    for leak in pass.leaks {
        let (session, pid, held) = (leak.handle.id, leak.handle.process.id(), leak.held);
        let holder = leak.claim.as_ref().map_or(String::new(), |claim| HolderRow::new(claim).to_string());
        core.emit(PoolEvent::LeakSuspected { session, pid, held, holder });
        if core.config.reclaim_leaks {
            core.reclaim(leak.slot);
        }
    }
    weigh(core, pass.weigh);
    // One that is stuck takes long: the time limits of resets must not wait for more than one of them.
    // The next pass names the others again.
    let all_answer = pass.ping.into_iter().all(|slot| ping(core, slot));
    if pass.removed > 0 {
        core.emit(PoolEvent::HealthPass { removed: pass.removed });
    }
    if all_answer { pass.next } else { now }
}

/// Has as many sessions kept ready as callers are expected. Returns whether that is to be looked at
/// again soon: while more than the watermark is.
fn foresee(core: &Arc<Core>, forecast: &mut Forecast, now: Moment) -> bool {
    let start_time = core.tallies.start_time();
    core.with(|state, fx| {
        let (min_idle, max_sessions) = state.sizes();
        let heard_before = forecast.observe(now, state.counters().acquisition_attempts);
        let target = forecast.target(start_time, min_idle, max_sessions);
        state.set_target_idle(target, fx);
        heard_before || target > min_idle
    })
}

/// Looks what sessions hold in memory, without the pool's lock: the kernel walks their pages.
fn weigh(core: &Arc<Core>, sessions: Vec<(SlotId, Handle)>) {
    if sessions.is_empty() {
        return;
    }
    for (slot, handle) in sessions {
        let Some(memory) = handle.process.memory_in_detail() else { continue };
        let bytes = memory.proportional.unwrap_or(memory.resident);
        core.with(|state, _| state.weighed(slot, bytes, core.clock().now()));
    }
    core.with(|state, fx| state.enforce_memory(core.clock().now(), fx));
}

/// Asks an idle session whether it still answers. It is in nobody's reach meanwhile: some 0.1 ms, or
/// the time limit of a ping if it is stuck. Returns whether it was not.
fn ping(core: &Arc<Core>, slot: SlotId) -> bool {
    let Some(Lease { mut session, .. }) = core.with(|state, _| state.check_out(slot)) else { return true };
    let id = session.id().number();
    // The end of the pool does not wait for a worker that is stuck.
    session.bind(Some(core.stop.clone()));
    let answer = shielded("pinging an idle session", || session.ping(core.config.ping_timeout));
    session.bind(None);
    match answer {
        // A worker that knows no ping can only be taken at its word.
        Some(Ok(_) | Err(Error::Unsupported { .. })) => {
            core.with(|state, fx| state.clean(Lease { slot, session }, core.clock().now(), fx));
            return true;
        }
        Some(Err(Error::Cancelled)) => core.discard(slot, session, Removal::Shutdown, false),
        Some(Err(error)) => {
            let (pool, reason) = (core.config.name.as_str(), error.to_string());
            log::info!(target: TARGET, pool, session = id, reason = reason.as_str(); "an idle session does not answer");
            core.discard(slot, session, Removal::Hung, core.config.restart_if_dead);
        }
        None => core.discard(slot, session, Removal::Hung, core.config.restart_if_dead),
    }
    false
}

/// Waits until a pass is asked for or due; false once the pool is closed.
fn wait_for_request(core: &Core, due: Moment) -> bool {
    let mut inner = core.lock();
    loop {
        if !inner.state.is_open() {
            return false;
        }
        if inner.state.health_requested() || core.gate.sleep(&core.gate.health, &mut inner, Some(due)) {
            return inner.state.is_open();
        }
    }
}

/// Sleeps through requests, which wait for the next pass; false once the pool is closed.
fn sleep_until(core: &Core, until: Moment) -> bool {
    let mut inner = core.lock();
    while inner.state.is_open() {
        if core.gate.sleep(&core.gate.closing, &mut inner, Some(until)) {
            break;
        }
    }
    inner.state.is_open()
}
