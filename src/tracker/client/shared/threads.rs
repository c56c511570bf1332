//! The threads of a client that stands alone: their start and their end.

use std::sync::Arc;

use super::super::beat;
use super::super::dead_man::{self, DeadMan};
use super::super::status;
use super::{Phase, Shared, State};
use crate::background::Background;
use crate::clock::Moment;
use crate::error::{Error, Result};

/// The HTTP client needs less than half of it in a debug build.
const STACK: usize = 256 * 1024;

/// A thread of the client.
#[derive(Default)]
pub(in crate::tracker::client) struct Worker {
    thread: Option<Background>,
    running: bool,
}

impl Worker {
    pub(in crate::tracker::client) fn is_running(&self) -> bool {
        self.running
    }
}

impl Shared {
    /// Starts the beat thread, and that of the dead-man policy if there is one.
    pub(super) fn start_threads(self: &Arc<Self>) -> Result<()> {
        let mut state = self.lock();
        let (thread, of) = (Arc::clone(self), Shared::beat_worker as fn(&mut State) -> &mut Worker);
        self.launch(&mut state, "remuda-beat", of, move || beat::run(&thread))
            .map_err(|error| Error::io("starting the heartbeat thread", error))?;
        if self.config.on_server_lost != DeadMan::Continue {
            let (thread, of) = (Arc::clone(self), Shared::dead_man_worker as fn(&mut State) -> &mut Worker);
            let launched = self.launch(&mut state, "remuda-deadman", of, move || dead_man::run(&thread));
            if let Err(error) = launched {
                drop(state);
                self.close();
                return Err(Error::io("starting the dead-man thread", error));
            }
        }
        Ok(())
    }

    /// For a client in a group, which reports its tasks: no thread of its own is ever started.
    pub(super) fn has_no_status_thread(state: &mut State) {
        state.status.running = true;
    }

    fn dead_man_worker(state: &mut State) -> &mut Worker {
        &mut state.dead_man
    }

    fn beat_worker(state: &mut State) -> &mut Worker {
        &mut state.beat
    }

    fn status_worker(state: &mut State) -> &mut Worker {
        &mut state.status
    }

    /// Starts the thread that reports tasks, if it does not run yet.
    pub(in crate::tracker::client) fn ensure_status_thread(self: &Arc<Self>, state: &mut State) {
        if state.status.running || state.phase != Phase::Open {
            return;
        }
        let thread = Arc::clone(self);
        if let Err(error) =
            self.launch(state, "remuda-status", Shared::status_worker, move || status::run(&thread))
        {
            log::error!("no thread to report tasks to the tracker: {error}");
        }
    }

    fn launch(
        self: &Arc<Self>,
        state: &mut State,
        name: &'static str,
        worker: fn(&mut State) -> &mut Worker,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let ended = Ended { shared: Arc::clone(self), worker };
        let thread = Background::spawn_small(name, STACK, move || {
            // Dropped last, even if the body panics: nobody waits for a thread that is gone.
            let _ended = ended;
            body();
        })?;
        *worker(state) = Worker { thread: Some(thread), running: true };
        Ok(())
    }

    /// Joins what ends by the deadline. What still hangs in the system's name lookup or in a
    /// snapshot of the user ends by itself: it finds its connections broken and nobody to call.
    pub(super) fn end_threads(&self, deadline: Moment) {
        let mut state = self.lock();
        let me = std::thread::current().id();
        let waits_for = |worker: &Worker| {
            worker.running && worker.thread.as_ref().is_some_and(|thread| thread.id() != me)
        };
        let wait =
            |state: &State| waits_for(&state.beat) || waits_for(&state.status) || waits_for(&state.dead_man);
        while wait(&state) && !self.wait(&mut state, Some(deadline)) {}
        let State { beat, status, dead_man, .. } = &mut *state;
        let threads = [beat, status, dead_man].map(std::mem::take);
        state.phase = Phase::Closed;
        drop(state);
        self.notify();
        for Worker { thread, running } in threads {
            match thread {
                Some(thread) if running => thread.leave(),
                ended => drop(ended),
            }
        }
    }
}

/// Notes the end of a thread.
struct Ended {
    shared: Arc<Shared>,
    worker: fn(&mut State) -> &mut Worker,
}

impl Drop for Ended {
    fn drop(&mut self) {
        (self.worker)(&mut self.shared.lock()).running = false;
        self.shared.notify();
    }
}
