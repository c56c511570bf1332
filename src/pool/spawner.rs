//! Spawner threads: the only place where a pool starts sessions.
//!
//! Callers never start one themselves: they wait for whatever comes first, a release or a start,
//! and a start that comes late goes idle. The first spawner is there from the pool's start; more
//! come, up to `max_concurrent_starts`, when several sessions are wanted at once.

use std::io;
use std::sync::Arc;

use super::core::{Core, Handle};
use super::state::SlotId;
use crate::background::shielded;
use crate::error::{Error, Result};
use crate::session::Session;

/// The name of the threads.
const NAME: &str = "remuda-spawn";

/// A slot held for a session that is being started. Dropping it gives the slot back and has the
/// queue looked at again: neither an error nor a panic can lose it.
#[must_use = "dropping a reservation gives the slot back"]
struct Reservation<'a> {
    core: &'a Arc<Core>,
    slot: Option<SlotId>,
}

/// Starts the first spawner.
pub(super) fn start(core: &Arc<Core>) -> Result<()> {
    core.lock().spawners += 1;
    core.spawn_thread(NAME, run)
}

fn run(core: &Arc<Core>) {
    while let Some(reservation) = next(core) {
        call(core);
        log::debug!("warm-up: starting a session");
        reservation.fill();
    }
}

/// Waits for a start that is wanted; `None` once the pool is closed.
fn next(core: &Arc<Core>) -> Option<Reservation<'_>> {
    let mut inner = core.lock();
    loop {
        if !inner.state.is_open() {
            return None;
        }
        let now = core.clock().now();
        if let Some(slot) = inner.state.begin_start(now) {
            return Some(Reservation { core, slot: Some(slot) });
        }
        let retry = inner.state.next_attempt(now);
        inner.parked_spawners += 1;
        core.gate.sleep(&core.gate.starts, &mut inner, retry);
        inner.parked_spawners -= 1;
    }
}

/// Has a spawner look for work: one that waits or, if all of them are busy with a start, one more.
pub(super) fn call(core: &Arc<Core>) {
    let spawn = {
        let mut inner = core.lock();
        // A spawner that neither waits nor starts a session is about to look by itself.
        let all_busy = inner.state.counts().starting >= inner.spawners;
        let spawn =
            all_busy && inner.spawners < core.config.max_concurrent_starts && inner.state.wants_more_starts();
        inner.spawners += usize::from(spawn);
        spawn
    };
    if !spawn {
        core.gate.starts.notify_one();
    } else if let Err(error) = core.spawn_thread(NAME, run) {
        core.lock().spawners -= 1;
        log::warn!("sessions start one after the other: {error}");
    }
}

impl Reservation<'_> {
    /// Starts the session and hands it to the pool.
    fn fill(mut self) {
        let core = self.core;
        let Some(slot) = self.slot else { return };
        let started = shielded("starting a session", || {
            let mut session = Box::new(Session::start_unless(&core.session_config, &core.stop)?);
            if let Some(hook) = &core.config.on_create {
                let id = session.id();
                hook.0(&mut session).map_err(|source| Error::Hook { session: id, source })?;
                session.forget_handles();
            }
            core.monitor.watch(slot, &session)?;
            Ok(session)
        });
        match started {
            Some(Ok(session)) => {
                self.slot = None;
                let handle = Handle { id: session.id(), process: Arc::clone(session.process()) };
                log::info!(session = handle.id.number(), pid = handle.process.id(); "session created");
                core.with(|state, fx| state.started(slot, session, handle, core.clock().now(), fx));
            }
            Some(Err(error)) => self.give_back(error),
            None => self.give_back(panicked()),
        }
    }

    fn give_back(&mut self, error: Error) {
        let Some(slot) = self.slot.take() else { return };
        // The pool's own end is nobody's failure.
        let cause = if self.core.stop.is_cancelled() { None } else { Some(Arc::new(error)) };
        if let Some(cause) = &cause {
            log::warn!("a session could not be started: {cause}");
        }
        let now = self.core.clock().now();
        self.core.with(|state, fx| state.start_failed(slot, cause, now, fx));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.give_back(panicked());
    }
}

fn panicked() -> Error {
    Error::io("starting a session", io::Error::other("it panicked; the log has the message"))
}
