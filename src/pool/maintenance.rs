//! The maintenance thread: health passes on a timer and on request.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::events::PoolEvent;
use super::state::SETTLE;
use crate::background::shielded;
use crate::clock::Moment;
use crate::sync::wait_until;

/// Rest after a pass that failed: the Python ancestor's.
const ERROR_REST: Duration = Duration::from_secs(1);

/// The maintenance thread.
pub(super) fn run(core: &Arc<Core>) {
    let mut due = Moment::after(core.config.health_check_interval);
    while wait_for_request(core, due) {
        let next = shielded("a health pass", || pass(core));
        let rest = if next.is_some() { SETTLE } else { ERROR_REST };
        due = next.unwrap_or_else(|| Moment::after(ERROR_REST));
        if !sleep(core, rest) {
            return;
        }
    }
}

/// One pass; returns when the next one is due.
fn pass(core: &Arc<Core>) -> Moment {
    let pass = core.with(|state, fx| state.health_pass(Moment::now(), fx));
    for slot in pass.arm {
        core.listen(slot);
    }
    if pass.removed > 0 {
        core.emit(PoolEvent::HealthPass { removed: pass.removed });
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
        if inner.state.health_requested() || wait_until(&core.gate.health, &mut inner, Some(due)) {
            return inner.state.is_open();
        }
    }
}

/// Sleeps through requests, which wait for the next pass; false once the pool is closed.
fn sleep(core: &Core, rest: Duration) -> bool {
    let until = Moment::after(rest);
    let mut inner = core.lock();
    while inner.state.is_open() {
        if wait_until(&core.gate.closing, &mut inner, Some(until)) {
            break;
        }
    }
    inner.state.is_open()
}
