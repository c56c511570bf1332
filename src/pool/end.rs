//! The end of a pool: gentle, or at once.
//!
//! Closing is one event of the state machine; it wakes everybody who waits. Whoever ends the pool
//! from outside then waits for the processes and joins the threads. The pool's own threads never
//! wait for that: they are what is waited for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::{Core, inside};
use super::events::PoolEvent;
use super::state::Effects;
use crate::clock::Moment;
use crate::session::Cause;

/// How long `terminate` waits for killed processes: far beyond what the kernel needs, except for a
/// process stuck in a device.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Core {
    /// No sessions for anybody from here on; what nobody holds leaves, starts are given up.
    pub(super) fn close(self: &Arc<Core>) {
        let mut fx = Effects::none();
        let (closed, _) = self.gate.with(&mut fx, |state, fx| {
            let was_open = state.is_open();
            state.close(fx);
            // Under the lock: the ends of its sessions are told after it, and whoever finds the pool closed
            // may end the telling.
            was_open.then(|| self.outlet.put(PoolEvent::Closed))
        });
        if let Some(losing) = closed {
            self.log_closed(losing);
        }
        self.carry_out(fx);
        if closed.is_none() {
            return;
        }
        self.gate.wake_all();
        self.monitor.stop();
        self.stop.cancel();
        self.jobs.close();
        if self.lock().state.counts().total == 0 {
            self.outlet.finish();
        }
    }

    /// Waits for leases until `deadline`, then kills what is left, waits for its end, joins.
    pub(super) fn shutdown(self: &Arc<Core>, deadline: Moment) {
        self.close();
        let killing = || self.killing.load(Ordering::SeqCst);
        self.gate.observe(Some(deadline), |state| state.counts().total == 0 || killing());
        self.terminate();
    }

    /// Kills every session, those in use too, and waits until their processes have ended.
    pub(super) fn terminate(self: &Arc<Core>) {
        self.killing.store(true, Ordering::SeqCst);
        self.close();
        let all = self.lock().state.handles();
        for handle in all {
            handle.process.kill_group(Cause::Retired);
        }
        self.gate.wake_all();
        if inside() {
            // One of the pool's own threads: it cannot wait for itself. Whoever ends the pool from
            // outside waits.
            return;
        }
        // The kernel goes by no manual clock: by that one it is waited for without limit.
        let patience = (!self.clock().is_manual()).then(|| self.clock().after(KILL_PATIENCE));
        self.await_departures(patience);
        // Those in use are reaped when their holders let go; their processes end now.
        let busy = self.lock().state.busy_handles();
        for handle in busy {
            handle.process.ends_within(KILL_PATIENCE);
            // A child of a template can tell how it ended only as long as that lives.
            handle.process.exit();
        }
        self.join();
        // What the last jobs gave back.
        self.await_departures(patience);
        self.source.terminate();
    }

    /// Waits until all that is left are sessions in use.
    fn await_departures(&self, patience: Option<Moment>) {
        self.gate.observe(patience, |state| {
            let counts = state.counts();
            counts.total == counts.busy
        });
    }

    fn join(&self) {
        // The leases that are still held are not waited for, nor what there is to tell of them.
        self.outlet.finish();
        let _joining = self.joining.lock();
        loop {
            // A thread that is about to end may just have started another one.
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                return;
            }
            drop(threads);
        }
    }
}
