//! The monitor: one thread that hears of every sign of life and every death in the pool.
//!
//! Each session has two registrations in one epoll. Its pidfd is listened to for its whole life;
//! a death marks the process and takes an idle session out at once. Its channels are listened to
//! once per arming: after a reset was asked for, and while it is idle for a while. An event of a
//! session that somebody uses is only noted: it is the user's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::core::{Core, Pooled};
use super::events::TARGET;
use super::state::{Lease, Look, Removal, SlotId};
use crate::background::shielded;
use crate::error::{Error, Result};
use crate::session::Session;

/// The token of the stop event; no slot has it, because generations have 31 bits and `DEATH` one.
const STOP: u64 = u64::MAX;
/// Set in the tokens of pidfds.
const DEATH: u64 = 1 << 63;
/// Events read at a time.
const BATCH: usize = 64;

/// What the monitor listens with; the thread runs [`run`].
pub(super) struct Monitor {
    epoll: OwnedFd,
    stop: OwnedFd,
}

impl Monitor {
    pub(super) fn new() -> Result<Monitor> {
        let epoll =
            epoll::create(CreateFlags::CLOEXEC).map_err(|error| Error::io("creating an epoll", error))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("creating an eventfd", error))?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)
            .map_err(|error| Error::io("listening to an eventfd", error))?;
        Ok(Monitor { epoll, stop })
    }

    /// Ends the thread. The event stays, so it is never missed.
    pub(super) fn stop(&self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Registers a new session: its death from now on, its channels when armed.
    pub(super) fn watch(&self, slot: SlotId, session: &Session) -> Result<()> {
        let sign = EventFlags::ONESHOT;
        epoll::add(&self.epoll, session.events_fd(), EventData::new_u64(token(slot)), sign)
            .and_then(|()| {
                let death = EventData::new_u64(token(slot) | DEATH);
                let flags = EventFlags::IN | EventFlags::ONESHOT;
                epoll::add(&self.epoll, session.process().pidfd(), death, flags)
            })
            .map_err(|error| Error::io("listening to a session", error))
    }

    /// Listens to the session's channels for one event.
    pub(super) fn arm(&self, slot: SlotId, session: &Session) {
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        let data = EventData::new_u64(token(slot));
        if let Err(error) = epoll::modify(&self.epoll, session.events_fd(), data, flags) {
            // Left to the reset's time limit and the watch on the process.
            let (session, reason) = (session.id().number(), error.to_string());
            log::warn!(target: TARGET, session, reason = reason.as_str(); "cannot listen to a session");
        }
    }

    fn wait(&self, events: &mut Vec<Event>) {
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!(target: TARGET, reason = error.to_string().as_str(); "the monitor cannot wait");
            }
        }
    }
}

fn token(slot: SlotId) -> u64 {
    u64::from(slot.generation) << 32 | u64::from(slot.index)
}

fn slot_of(token: u64) -> SlotId {
    #[allow(clippy::cast_possible_truncation, reason = "takes the halves apart")]
    let (generation, index) = ((token >> 32) as u32 & (u32::MAX >> 1), token as u32);
    SlotId { index, generation }
}

/// The monitor's thread.
pub(super) fn run(core: &Arc<Core>) {
    let mut events = Vec::with_capacity(BATCH);
    loop {
        core.monitor.wait(&mut events);
        for event in &events {
            let token = event.data.u64();
            if token == STOP {
                return;
            }
            let slot = slot_of(token);
            if token & DEATH != 0 {
                death(core, slot);
            } else {
                look(core, slot);
            }
        }
    }
}

fn death(core: &Arc<Core>, slot: SlotId) {
    if let Some(handle) = core.with(|state, _| state.handle(slot)) {
        if handle.process.check_alive() {
            // An earlier process of a session that was restarted.
            return;
        }
        let pool = core.config.name.as_str();
        log::debug!(target: TARGET, pool, session = handle.id.number(); "the process has ended");
    }
    core.with(|state, fx| state.died(slot, core.clock().now(), fx));
}

/// Takes a session in hand, looks what it has to say, and gives it back or sends it away.
fn look(core: &Arc<Core>, slot: SlotId) {
    let (pool, replace) = (core.config.name.as_str(), core.config.restart_if_dead);
    match core.with(|state, _| state.look(slot)) {
        Look::Nothing => {}
        Look::Idle(mut session) => {
            let id = session.id().number();
            match shielded("looking at an idle session", || session.check_idle()) {
                Some(Ok(stray)) => {
                    if stray > 0 {
                        log::debug!(target: TARGET, pool, session = id, bytes = stray; "dropped output of an idle session");
                    }
                    clean(core, slot, session);
                }
                Some(Err(error)) => {
                    let reason = error.to_string();
                    log::info!(target: TARGET, pool, session = id, reason = reason.as_str(); "an idle session is unfit");
                    let dead = matches!(error, Error::SessionDead { .. });
                    let reason = if dead { Removal::Dead } else { Removal::Misbehaved };
                    core.discard(slot, session, reason, replace);
                }
                None => core.discard(slot, session, Removal::Tainted, replace),
            }
        }
        Look::Reset(mut session) => {
            let id = session.id().number();
            match shielded("reading the answer to a reset", || session.poll_reset()) {
                Some(Ok(None)) => {
                    // Armed before it is put back: the event comes to this very thread, later.
                    core.monitor.arm(slot, &session);
                    core.with(|state, fx| state.put_back(Lease { slot, session }, fx));
                }
                Some(Ok(Some(report))) if report.taint.is_empty() => clean(core, slot, session),
                Some(Ok(Some(report))) => {
                    let reason = report.taint.join(", ");
                    log::info!(target: TARGET, pool, session = id, reason = reason.as_str(); "not clean after a reset");
                    core.discard(slot, session, Removal::Tainted, replace);
                }
                Some(Err(error)) => {
                    let reason = error.to_string();
                    log::info!(target: TARGET, pool, session = id, reason = reason.as_str(); "a reset failed");
                    core.discard(slot, session, Removal::ResetFailed, replace);
                }
                None => core.discard(slot, session, Removal::ResetFailed, replace),
            }
        }
    }
}

fn clean(core: &Arc<Core>, slot: SlotId, session: Box<Pooled>) {
    core.with(|state, fx| state.clean(Lease { slot, session }, core.clock().now(), fx));
}
