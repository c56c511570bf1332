//! Spawner threads: the only place where a pool starts sessions.
//!
//! Callers never start one themselves: they wait for whatever comes first, a release or a start,
//! and a start that comes late goes idle. The first spawner is there from the pool's start; more
//! come, up to `max_concurrent_starts`, when several sessions are wanted at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Handle, Pooled};
use super::events::{PoolEvent, StartCause, StartWay, TARGET};
use super::gate::Begun;
use super::state::SlotId;
use crate::background::shielded;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::session::Witness;

/// The name of the threads.
const NAME: &str = "remuda-spawn";

/// A slot held for a session that is being started. Dropping it gives the slot back and has the
/// queue looked at again: neither an error nor a panic can lose it.
#[must_use = "dropping a reservation gives the slot back"]
struct Reservation<'a> {
    core: &'a Arc<Core>,
    slot: Option<SlotId>,
    began: Moment,
    /// Whether this is the one start that is tried after a back-off.
    probe: bool,
}

/// Starts the first spawner.
pub(super) fn start(core: &Arc<Core>) -> Result<()> {
    core.lock().spawners += 1;
    core.spawn_thread(NAME, run)
}

fn run(core: &Arc<Core>) {
    while let Some(reservation) = next(core) {
        call(core);
        reservation.fill();
    }
}

/// Waits for a start that is wanted; `None` once the pool is closed.
fn next(core: &Arc<Core>) -> Option<Reservation<'_>> {
    let Begun { slot, began, probe } = core.gate.next_start()?;
    Some(Reservation { core, slot: Some(slot), began, probe })
}

/// Has a spawner look for work: one that waits or, if all of them are busy with a start, one more.
pub(super) fn call(core: &Arc<Core>) {
    if !core.gate.call_spawner(core.config.max_concurrent_starts) {
        return;
    }
    if let Err(error) = core.spawn_thread(NAME, run) {
        core.lock().spawners -= 1;
        let (pool, reason) = (core.config.name.as_str(), error.to_string());
        log::warn!(target: TARGET, pool, reason = reason.as_str(); "sessions start one after the other");
    }
}

impl Reservation<'_> {
    /// Starts the session and hands it to the pool.
    fn fill(mut self) {
        let core = self.core;
        let Some(slot) = self.slot else { return };
        log::debug!(target: TARGET, pool = core.config.name.as_str(); "starting a session");
        if self.probe {
            core.emit(PoolEvent::BreakerHalfOpen);
        }
        let started = shielded("starting a session", || {
            let mut session = Pooled::new(core.source.start(core.clock(), &core.stop)?, slot);
            if let Some(hook) = &core.config.on_create {
                let id = session.id();
                // The state knows no process yet that it could kill: what the hook executes ends with the pool.
                session.bind(Some(core.stop.clone()));
                hook.0(&mut session).map_err(|source| Error::Hook { session: id, source })?;
                session.bind(None);
                session.forget_handles();
            }
            session.report_to(Arc::clone(&core.tallies) as Arc<dyn Witness>);
            core.monitor.watch(slot, &session)?;
            Ok(session)
        });
        let news = core.source.news();
        let warmed_up = news.iter().any(|event| matches!(event, PoolEvent::TemplateStarted { .. }));
        for event in news {
            core.emit(event);
        }
        match started {
            Some(Ok(session)) => {
                self.slot = None;
                let handle = Handle { id: session.id(), process: Arc::clone(session.process()) };
                let now = core.clock().now();
                let time = now.saturating_since(self.began);
                // The start of the template is in the first one's time: that is no session's.
                if !warmed_up {
                    core.tallies.started(time);
                }
                // A fork repeats the report of its template, which has warmed up once.
                if warmed_up || !handle.process.is_forked() {
                    core.tallies.warmed_up(session.warm_report());
                }
                self.tell_of(&handle, time);
                let closed = core.with(|state, fx| {
                    let was_failing = state.breaker(now).1 > 0;
                    state.started(slot, session, handle, now, fx);
                    was_failing && state.breaker(now).1 == 0
                });
                if closed {
                    core.emit(PoolEvent::BreakerClosed);
                }
            }
            Some(Err(error)) => self.give_back(error),
            None => self.give_back(panicked()),
        }
    }

    /// Before the pool gets the session: nothing else is told of it earlier.
    fn tell_of(&self, handle: &Handle, time: Duration) {
        let waited_for = self.core.lock().state.counts().waiters > 0;
        let cause = if waited_for { StartCause::Demand } else { StartCause::Warmup };
        let way = if handle.process.is_forked() { StartWay::Template } else { StartWay::Cold };
        let (session, pid) = (handle.id, handle.process.id());
        self.core.emit(PoolEvent::Created { session, pid, time, way, cause });
    }

    fn give_back(&mut self, error: Error) {
        let Some(slot) = self.slot.take() else { return };
        let (core, now) = (self.core, self.core.clock().now());
        // The pool's own end is nobody's failure.
        let cause = if core.stop.is_cancelled() { None } else { Some(Arc::new(error)) };
        let text = cause.as_deref().map(ToString::to_string);
        if let (Some(text), Some(error)) = (&text, &cause) {
            core.tallies.start_failed(error);
            let (cause, time) = (text.clone(), now.saturating_since(self.began));
            core.emit(PoolEvent::StartFailed { cause, time });
        }
        let opened = core.with(|state, fx| {
            let before = state.breaker(now).1;
            state.start_failed(slot, cause, now, fx);
            let (_, failures, retry_in) = state.breaker(now);
            (failures > before).then(|| (failures, retry_in.unwrap_or_default()))
        });
        if let (Some((failures, retry_in)), Some(cause)) = (opened, text) {
            core.emit(PoolEvent::BreakerOpened { failures, retry_in, cause });
        }
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
