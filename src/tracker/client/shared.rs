//! What the threads of one client share: its state, and its end.
//!
//! One lock, one condition variable. No request is made and no user code runs under the lock.
//!
//! Threads: `remuda-beat` registers and beats, `remuda-status` (from the first task on) reports
//! tasks, `remuda-kill` (when the time has come) runs the callbacks, `remuda-orders` those for a pause
//! or drain, `remuda-deadman` watches how long the server has been away. The user's threads never talk
//! to the server, except for the farewell in [`Shared::close`], which has one deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use serde_json::Value;

use super::beat;
use super::callbacks::{Callbacks, Stage};
use super::config::{ClientConfig, obeyed};
use super::dead_man::{self, DeadMan};
use super::group::Owner;
use super::link::{Link, Trouble};
use super::orders::Orders;
use super::status::{self, Tasks};
use crate::background::Background;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, MutexGuard, wait_until};
use crate::tracker::TrackedId;
use crate::tracker::api::{SessionCreate, SessionCreated};

/// The longest time that a call of the user waits for the server.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// The HTTP client needs less than half of it in a debug build.
const STACK: usize = 256 * 1024;

/// What makes the value of an attachment.
pub(super) type Snapshot = Arc<dyn Fn() -> Value + Send + Sync>;

/// One client, without the handle whose drop ends it.
pub(super) struct Shared {
    pub(super) config: ClientConfig,
    /// The beats' connection: it may be parked.
    pub(super) beats: Arc<Link>,
    /// The connection for what cannot wait for a parked beat.
    pub(super) side: Arc<Link>,
    /// Beats for this session, if it has no threads and connections of its own.
    group: Option<Arc<Owner>>,
    pub(super) callbacks: Arc<Callbacks>,
    pub(super) orders: Arc<Orders>,
    born: Moment,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    pub(super) id: TrackedId,
    pub(super) phase: Phase,
    pub(super) contact: Contact,
    pub(super) standing: Standing,
    /// Counts what the server answered well, so that the status thread sees a server that is back.
    pub(super) answers: u64,
    /// When that was the last time; before the first, when the client was made.
    pub(super) heard_at: Moment,
    /// Why the server could not be used the last time; nothing while it can.
    pub(super) trouble: Option<String>,
    /// The dead-man policy has struck, and the server is not back.
    pub(super) lost: bool,
    /// The time between two beats: the client's own unless the server has set another.
    interval: Duration,
    /// The number of the last beat.
    beats: u64,
    killed: bool,
    /// `stop` was called; the phase changes once the callbacks are over.
    stopping: bool,
    pub(super) tasks: Tasks,
    attached: BTreeMap<String, Snapshot>,
    beat: Worker,
    pub(super) status: Worker,
    dead_man: Worker,
}

/// `Open` until the client is stopped. The threads end in `Closing`, `Closed` is for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Closing,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contact {
    /// The first registration has not ended.
    Untried,
    Connected,
    Offline,
}

/// Whether the server knows the session, as far as the client can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Unknown,
    /// A registration is on its way.
    Registering,
    Known,
}

/// A thread of the client.
#[derive(Default)]
pub(super) struct Worker {
    thread: Option<Background>,
    running: bool,
}

impl Worker {
    pub(super) fn is_running(&self) -> bool {
        self.running
    }
}

impl Shared {
    /// A client whose beat thread runs, or that of its group.
    pub(super) fn start(config: ClientConfig, group: Option<Arc<Owner>>) -> Result<Arc<Shared>> {
        config.validate()?;
        let born = Moment::now();
        let (beats, side) = match &group {
            Some(owner) => (Arc::clone(&owner.group.beats), Arc::clone(&owner.group.side)),
            None => (Arc::new(Link::new(&config)?), Arc::new(Link::new(&config)?)),
        };
        let shared = Arc::new(Shared {
            beats,
            side,
            group,
            callbacks: Arc::default(),
            orders: Arc::default(),
            born,
            state: Mutex::new(State {
                id: TrackedId::random(),
                phase: Phase::Open,
                contact: Contact::Untried,
                standing: Standing::Unknown,
                answers: 0,
                heard_at: born,
                trouble: None,
                lost: false,
                interval: config.heartbeat_interval,
                beats: 0,
                killed: false,
                stopping: false,
                tasks: Tasks::default(),
                attached: BTreeMap::new(),
                beat: Worker::default(),
                status: Worker::default(),
                dead_man: Worker::default(),
            }),
            changed: Condvar::new(),
            config,
        });
        let weak = Arc::downgrade(&shared);
        shared.callbacks.on_change(move || {
            if let Some(shared) = weak.upgrade() {
                // Under the lock, or the beat thread would miss it on its way to sleep.
                drop(shared.lock());
                shared.notify();
                shared.poke();
            }
        });
        if let Some(owner) = &shared.group {
            // The group reports tasks as well.
            shared.lock().status.running = true;
            owner.admit(&shared)?;
            return Ok(shared);
        }
        let mut state = shared.state.lock();
        let (thread, of) = (Arc::clone(&shared), Shared::beat_worker as fn(&mut State) -> &mut Worker);
        shared
            .launch(&mut state, "remuda-beat", of, move || beat::run(&thread))
            .map_err(|error| Error::io("starting the heartbeat thread", error))?;
        if shared.config.on_server_lost != DeadMan::Continue {
            let (thread, of) =
                (Arc::clone(&shared), Shared::dead_man_worker as fn(&mut State) -> &mut Worker);
            let launched = shared.launch(&mut state, "remuda-deadman", of, move || dead_man::run(&thread));
            if let Err(error) = launched {
                drop(state);
                shared.close();
                return Err(Error::io("starting the dead-man thread", error));
            }
        }
        drop(state);
        Ok(shared)
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
    pub(super) fn ensure_status_thread(self: &Arc<Self>, state: &mut State) {
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

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Tells everybody who waits that the state has changed.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Tells the group, if there is one, that it may have something to do for this session.
    pub(super) fn poke(&self) {
        if let Some(owner) = &self.group {
            owner.group.poke();
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }

    pub(super) fn standing(&self) -> Standing {
        self.lock().standing
    }

    /// The id, while the server knows it.
    pub(super) fn known_id(&self) -> Option<TrackedId> {
        let state = self.lock();
        (state.phase == Phase::Open && state.standing == Standing::Known).then(|| state.id.clone())
    }

    /// Waits for a change, at most until `deadline`; true when that has passed.
    pub(super) fn wait(&self, state: &mut MutexGuard<'_, State>, deadline: Option<Moment>) -> bool {
        wait_until(&self.changed, state, deadline)
    }

    /// Waits for the end of the first registration, whatever it is, at most [`PATIENCE`].
    pub(super) fn await_first_contact(&self) {
        let deadline = Moment::after(PATIENCE);
        let mut state = self.lock();
        while state.contact == Contact::Untried && state.phase == Phase::Open {
            if self.wait(&mut state, Some(deadline)) {
                return;
            }
        }
    }

    /// The first registration has to wait: the client is offline for now.
    pub(super) fn give_up_waiting(&self) {
        let mut state = self.lock();
        if state.contact == Contact::Untried {
            state.contact = Contact::Offline;
        }
        drop(state);
        self.notify();
    }

    /// Notes that the client is to end, when its callbacks are over.
    pub(super) fn begin_stop(&self) {
        self.lock().stopping = true;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    pub(super) fn is_killed(&self) -> bool {
        self.lock().killed
    }

    pub(super) fn interval(&self) -> Duration {
        self.lock().interval
    }

    /// The number of the next beat, and how far the task is that is shown.
    pub(super) fn count_beat(&self) -> (u64, Option<f64>) {
        let mut state = self.lock();
        state.beats += 1;
        (state.beats, state.tasks.progress())
    }

    /// Attaches a snapshot, in the place of one of the same name.
    pub(super) fn attach(&self, name: String, snapshot: Snapshot) {
        let mut state = self.lock();
        let replaced =
            if state.phase == Phase::Open { state.attached.insert(name, snapshot) } else { Some(snapshot) };
        drop(state);
        drop(replaced);
    }

    /// The attachments, to be asked without the lock.
    pub(super) fn attached(&self) -> Vec<(String, Snapshot)> {
        let state = self.lock();
        state.attached.iter().map(|(name, snapshot)| (name.clone(), Arc::clone(snapshot))).collect()
    }

    /// The body of a registration and the number of the status in it; `None` once the client is
    /// being stopped, which also waits for the end of this one.
    pub(super) fn begin_registration(&self) -> Option<(SessionCreate, u64)> {
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
    pub(super) fn end_registration(&self, result: &Result<SessionCreated, Trouble>, number: u64) {
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
    pub(super) fn heard(&self) {
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
    pub(super) fn troubled(&self, trouble: &Trouble) {
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
    pub(super) fn forgotten(&self) {
        let mut state = self.lock();
        state.standing = Standing::Unknown;
        drop(state);
        self.notify();
        self.poke();
    }

    /// Somebody wants the session to stop.
    pub(super) fn kill(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Open || std::mem::replace(&mut state.killed, true) {
            return;
        }
        let id = state.id.clone();
        drop(state);
        log::info!(tracked_session = id.as_str(); "tracked session {id} of {} is asked to stop", self.config.app_name);
        self.callbacks.fire();
    }

    /// Rests, but not once the session must be registered again or the kill callbacks have gone on from
    /// `said`; false once the client is being stopped.
    pub(super) fn rest(&self, rest: Duration, said: Option<Stage>) -> bool {
        let deadline = Moment::after(rest);
        let mut state = self.lock();
        let standing = state.standing;
        let is_said = || said.is_none_or(|said| self.callbacks.stage() == said);
        while state.phase == Phase::Open && state.standing == standing && is_said() {
            if self.wait(&mut state, Some(deadline)) {
                break;
            }
        }
        state.phase == Phase::Open
    }

    /// Ends the threads and takes leave of the server, within [`PATIENCE`]. The callbacks are over.
    /// Whoever comes second waits for the first.
    pub(super) fn close(&self) {
        let deadline = Moment::after(PATIENCE);
        let mut state = self.lock();
        if state.phase != Phase::Open {
            while state.phase != Phase::Closed && !self.wait(&mut state, Some(deadline)) {}
            return;
        }
        state.phase = Phase::Closing;
        self.notify();
        // A registration that lands after the farewell would leave a row behind until it is stale.
        while state.standing == Standing::Registering && !self.wait(&mut state, Some(deadline - PATIENCE / 2))
        {
        }
        let known = state.standing != Standing::Unknown;
        let id = state.id.clone();
        let attached = std::mem::take(&mut state.attached);
        drop(state);
        drop(attached);
        self.orders.close(deadline - PATIENCE / 2);
        if known {
            self.say_farewell(&id, deadline - PATIENCE / 10);
        }
        if self.group.is_none() {
            self.beats.shut();
            self.side.shut();
        }
        self.end_threads(deadline);
    }

    fn say_farewell(&self, id: &TrackedId, deadline: Moment) {
        let left = deadline.saturating_since(Moment::now());
        match self.side.delete(id, left) {
            Ok(()) => log::info!(tracked_session = id.as_str(); "tracked session {id} has ended"),
            Err(trouble) => log::debug!("the tracker did not hear that {id} has ended: {trouble}"),
        }
    }

    /// Joins what ends by the deadline. What still hangs in the system's name lookup or in a
    /// snapshot of the user ends by itself: it finds its connections broken and nobody to call.
    fn end_threads(&self, deadline: Moment) {
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

/// The name of this machine, for the tracker's list.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}
