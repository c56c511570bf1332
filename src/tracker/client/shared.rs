//! What the threads of one client share: its state, and its end.
//!
//! One lock, one condition variable. No request is made and no user code runs under the lock.
//!
//! Threads: `remuda-beat` registers and beats, `remuda-status` (from the first task on) reports
//! tasks, `remuda-kill` (when the time has come) runs the callbacks, `remuda-orders` those for a pause
//! or drain, `remuda-deadman` watches how long the server has been away. The user's threads never talk
//! to the server, except for the farewell in [`Shared::close`], which has one deadline. How they start and
//! end is in [`threads`], what answers change in [`contact`].

mod contact;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::callbacks::{Callbacks, Stage};
use super::config::ClientConfig;
use super::group::Owner;
use super::link::Link;
use super::orders::Orders;
use super::status::Tasks;
use crate::clock::Moment;
use crate::error::Result;
use crate::sync::{Condvar, Mutex, MutexGuard, wait_until};
use crate::tracker::TrackedId;
use threads::Worker;

/// The longest time that a call of the user waits for the server.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
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
            Shared::has_no_status_thread(&mut shared.lock());
            owner.admit(&shared)?;
            return Ok(shared);
        }
        shared.start_threads()?;
        Ok(shared)
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

    /// That of the group it beats in.
    pub(super) fn owner(&self) -> Option<&Arc<Owner>> {
        self.group.as_ref()
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
        // On a machine that stands still for a while, or with a snapshot that is slow to drop, there may be
        // none left: the row would stay until it is stale.
        let left = deadline.saturating_since(Moment::now()).max(PATIENCE / 10);
        match self.side.delete(id, left) {
            Ok(()) => log::info!(tracked_session = id.as_str(); "tracked session {id} has ended"),
            Err(trouble) => log::debug!("the tracker did not hear that {id} has ended: {trouble}"),
        }
    }
}
