//! What the server's answers say, and their absence.

use log::Level;

use super::super::config::obeyed;
use super::super::link::Trouble;
use super::{Contact, PATIENCE, Phase, Shared, Standing};
use crate::clock::Moment;
use crate::error::Result;
use crate::tracker::api::{SessionCreate, SessionCreated};

impl Shared {
    /// Waits for the end of the first registration, whatever it is, at most [`PATIENCE`].
    pub(in crate::tracker::client) fn await_first_contact(&self) {
        let deadline = Moment::after(PATIENCE);
        let mut state = self.lock();
        while state.contact == Contact::Untried && state.phase == Phase::Open {
            if self.wait(&mut state, Some(deadline)) {
                return;
            }
        }
    }

    /// The first registration has to wait: the client is offline for now.
    pub(in crate::tracker::client) fn give_up_waiting(&self) {
        let mut state = self.lock();
        if state.contact == Contact::Untried {
            state.contact = Contact::Offline;
        }
        drop(state);
        self.notify();
    }

    /// The body of a registration and the number of the status in it; `None` once the client is
    /// being stopped, which also waits for the end of this one.
    pub(in crate::tracker::client) fn begin_registration(&self) -> Option<(SessionCreate, u64)> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return None;
        }
        state.standing = Standing::Registering;
        let (status, number) = state.tasks.report();
        let body = SessionCreate {
            app_name: self.config.app_name.clone(),
            user_id: self.config.user_id.clone(),
            session_id: Some(state.id.clone()),
            host: host_name(),
            pid: Some(std::process::id()),
            labels: self.config.labels.clone(),
            uptime_seconds: Some(Moment::now().saturating_since(self.born).as_secs_f64()),
            status: Some(status.status),
            current_task: status.current_task,
            version: self.config.version.clone(),
            interval_seconds: Some(self.config.heartbeat_interval.as_secs_f64()),
            beat_number: Some(state.beats),
            protected: self.config.protected,
        };
        Some((body, number))
    }

    /// Notes what became of a registration.
    pub(in crate::tracker::client) fn end_registration(
        &self,
        result: &Result<SessionCreated, Trouble>,
        number: u64,
    ) {
        let mut state = self.lock();
        state.standing = if result.is_ok() { Standing::Known } else { Standing::Unknown };
        if let Ok(created) = result {
            if state.id != created.session_id {
                log::info!("the tracker calls tracked session {} {}", state.id, created.session_id);
                state.id = created.session_id.clone();
            }
            state.tasks.delivered(number);
            state.interval = obeyed(created.interval_seconds, self.config.heartbeat_interval);
        }
        drop(state);
        match result {
            Ok(_) => self.heard(),
            Err(trouble) => self.troubled(trouble),
        }
    }

    /// The server answered well.
    pub(in crate::tracker::client) fn heard(&self) {
        let mut state = self.lock();
        state.answers += 1;
        state.heard_at = Moment::now();
        state.trouble = None;
        let was_lost = std::mem::replace(&mut state.lost, false);
        let before = std::mem::replace(&mut state.contact, Contact::Connected);
        let (id, open) = (state.id.clone(), state.phase == Phase::Open);
        drop(state);
        if open && before != Contact::Connected {
            let word = if before == Contact::Untried { "registered with" } else { "back at" };
            // A group tells of itself, and once for all, that it is back.
            let level = if word == "back at" && self.group.is_some() { Level::Debug } else { Level::Info };
            log::log!(
                level, tracked_session = id.as_str();
                "tracked session {id} of {} is {word} the tracker at {}", self.config.app_name, self.config.server_url
            );
        }
        if was_lost {
            self.orders.set_lost(false);
        }
        // Last, so that whoever sees the change finds it in the log.
        self.notify();
    }

    /// The server did not answer well: the client is offline.
    pub(in crate::tracker::client) fn troubled(&self, trouble: &Trouble) {
        let mut state = self.lock();
        let open = state.phase == Phase::Open;
        // The farewell breaks the beats' connection itself: that is no news.
        let before =
            if open { std::mem::replace(&mut state.contact, Contact::Offline) } else { state.contact };
        if open {
            state.trouble = Some(trouble.to_string());
        }
        drop(state);
        let url = &self.config.server_url;
        if open && before != Contact::Offline && self.group.is_none() {
            log::warn!("offline, {} goes on without the tracker at {url}: {trouble}", self.config.app_name);
        } else {
            log::debug!("still no use of the tracker at {url}: {trouble}");
        }
        self.notify();
    }

    /// The server does not know the session (any more): the beat thread registers it again, with
    /// the same id.
    pub(in crate::tracker::client) fn forgotten(&self) {
        let mut state = self.lock();
        state.standing = Standing::Unknown;
        drop(state);
        self.notify();
        self.poke();
    }

    /// Somebody wants the session to stop.
    pub(in crate::tracker::client) fn kill(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Open || std::mem::replace(&mut state.killed, true) {
            return;
        }
        let id = state.id.clone();
        drop(state);
        log::info!(tracked_session = id.as_str(); "tracked session {id} of {} is asked to stop", self.config.app_name);
        self.callbacks.fire();
    }
}

/// The name of this machine, for the tracker's list.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}
