//! The maintenance thread: health passes on a timer and on request.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::state::SETTLE;
use crate::background::shielded;
use crate::clock::Moment;

/// Rest after a pass that failed: the Python ancestor's.
const ERROR_REST: Duration = Duration::from_secs(1);

/// The maintenance thread. The first pass is `due` by itself.
pub(super) fn run(core: &Arc<Core>, mut due: Moment) {
    while wait_for_request(core, due) {
        // Read once: time that passes during the pass counts for the rest and for the next pass.
        let now = core.clock().now();
        let next = shielded("a health pass", || pass(core, now));
        let rest = now + if next.is_some() { SETTLE } else { ERROR_REST };
        due = next.unwrap_or(rest);
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
    if pass.removed > 0 {
        log::info!("health pass: {} sessions removed", pass.removed);
    }
    pass.next
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
