//! What all handles, leases, jobs and threads of one pool share.
//!
//! The state machine stands behind the mutex of the [`Gate`].
//! Nothing is spawned, killed, logged or dropped under it; what an event asks for comes out as
//! [`Effects`] and is carried out after unlocking. The one system call made
//! under it is `epoll_ctl`, which does not wait, when the monitor is to listen to a session that
//! nobody has in hand: without the lock its descriptor could be closed and its number reused.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::config::{PoolConfig, Reuse};
use super::events::{Outlet, PoolEvent, TARGET};
use super::gate::{Gate, Inner, Waiter};
use super::monitor::Monitor;
use super::recorder::Recorder;
use super::runners::Jobs;
use super::source::Source;
use super::spawner;
use super::state::{Bounds, Departure, Effects, Lease, Opened, Removal, Resource, SlotId, State};
use super::tallies::Tallies;
use crate::background::Background;
use crate::cancel::{CancelToken, Wake};
use crate::clock::{Clock, Moment};
use crate::error::{Error, Result};
use crate::session::{Cause, Checkpoint, Feature, Keeper, PostMortem, Process, Session, SessionId};
use crate::sync::{Mutex, MutexGuard};

/// Post-mortems that a pool remembers.
const POST_MORTEMS: usize = 16;

pub(super) type PoolState = State<Box<Pooled>, Arc<Waiter>>;
pub(super) type Fx = Effects<Box<Pooled>, Arc<Waiter>>;

/// One pool.
pub(super) struct Core {
    pub(super) config: PoolConfig,
    pub(super) source: Source,
    pub(super) gate: Gate<Box<Pooled>>,
    pub(super) monitor: Monitor,
    pub(super) jobs: Jobs,
    pub(super) outlet: Outlet,
    pub(super) tallies: Arc<Tallies>,
    pub(super) recorder: Option<Recorder>,
    /// Cancelled when the pool closes: ends the starts that are under way.
    pub(super) stop: CancelToken,
    /// Set when nothing is given time to leave any more.
    pub(super) killing: AtomicBool,
    pub(super) threads: Mutex<Vec<Background>>,
    /// Held while threads are joined, so that each `shutdown` returns after the join.
    pub(super) joining: Mutex<()>,
    /// Whether a session may go to its next user before it was reset: not where the user's hooks look at
    /// sessions, or make something of new processes.
    hands_over: bool,
    post_mortems: Mutex<VecDeque<PostMortem>>,
    /// Dropped last: retiring a session must not wait for the reaper's end.
    keeper: Arc<Keeper>,
}

/// What the pool keeps of a session that somebody holds.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) id: SessionId,
    pub(crate) process: Arc<Process>,
}

/// A session of a pool, with what its lease needs. So a lease is one pointer; and each of these is
/// written and read by itself, because whoever reads two fields at once just after they were written
/// one by one waits for the memory (measured: a quarter of acquire and release).
pub(super) struct Pooled {
    session: Session,
    /// The pool, while somebody has the session.
    pub(super) lent_by: Option<Arc<Core>>,
    /// Whose session it is then.
    pub(super) slot: SlotId,
    /// Whether it is bound to the token of a scope.
    pub(super) bound: bool,
    /// The lease's number in the pool's recorder, if that has one.
    pub(super) recorded: Option<u64>,
}

impl Pooled {
    pub(super) fn new(session: Session, slot: SlotId) -> Box<Pooled> {
        Box::new(Pooled { session, lent_by: None, slot, bound: false, recorded: None })
    }
}

impl Deref for Pooled {
    type Target = Session;

    #[inline]
    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Pooled {
    #[inline]
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.session.fmt(f)
    }
}

impl Resource for Box<Pooled> {
    type Handle = Handle;

    fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    fn executions(&self) -> u64 {
        self.execution_count()
    }
}

thread_local! {
    /// Set on the pool's own threads, and while the reaper calls a pool: they must not wait for
    /// what only they can bring about.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread does a pool's own work.
pub(super) fn inside() -> bool {
    INSIDE.get()
}

/// Hears how a process ended.
type Gone = Box<dyn FnOnce(PostMortem) + Send>;

fn as_insider<T>(work: impl FnOnce() -> T) -> T {
    let before = INSIDE.replace(true);
    let result = work();
    INSIDE.set(before);
    result
}

impl Core {
    pub(super) fn new(config: PoolConfig) -> Result<Arc<Core>> {
        let bounds = Bounds {
            min_idle: config.watermark(),
            max_sessions: config.max_sessions,
            max_starts: config.max_concurrent_starts,
            max_waiters: config.max_waiters.unwrap_or(usize::MAX),
            session_timeout: config.session_timeout,
            reset_timeout: config.reset_timeout,
            health_interval: config.health_check_interval,
            budget: config.budget(),
            max_lifetime: config.max_lifetime,
            restart_if_dead: config.restart_if_dead,
            max_retirements: config.max_concurrent_retirements,
            idle_order: config.idle_order,
            ping_interval: config.ping_interval,
            leak_after: config.leak_after,
            max_session_memory: config.max_session_memory,
            idle_memory_budget: config.idle_memory_budget,
        };
        let quotas = config.tenant_quotas.iter().map(|(name, quota)| (Arc::clone(name), *quota));
        let clock = config.the_clock();
        let hands_over = config.on_create.is_none() && config.validate.is_none();
        let state = State::new(bounds, clock.seed()).with_quotas(config.quota, quotas);
        let core = Arc::new(Core {
            source: Source::new(&config)?,
            jobs: Jobs::new(clock.clone()),
            outlet: Outlet::new(config.listener.as_ref()),
            tallies: Arc::default(),
            recorder: Recorder::with_room(config.record_arrivals),
            config,
            gate: Gate::new(state, clock),
            monitor: Monitor::new()?,
            stop: CancelToken::new(),
            killing: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
            joining: Mutex::new(()),
            hands_over,
            post_mortems: Mutex::new(VecDeque::new()),
            keeper: Keeper::get()?,
        });
        let sleepers: Weak<dyn Wake> = Arc::<Core>::downgrade(&core);
        core.clock().on_advance(sleepers);
        Ok(core)
    }

    /// What everything in this pool goes by; never [`Moment::now`].
    #[inline]
    pub(super) fn clock(&self) -> &Clock {
        &self.gate.clock
    }

    /// One event of the state machine: locks, changes, unlocks, carries out what follows.
    #[inline]
    pub(super) fn with<R>(self: &Arc<Core>, event: impl FnOnce(&mut PoolState, &mut Fx) -> R) -> R {
        let mut fx = Effects::none();
        let (result, something) = self.gate.with(&mut fx, event);
        if something {
            self.carry_out(fx);
        } else {
            // Nothing is in there, so there is nothing to look for.
            mem::forget(fx);
        }
        result
    }

    #[cold]
    pub(super) fn carry_out(self: &Arc<Core>, mut fx: Fx) {
        self.gate.wake(&mut fx);
        if let Some(Opened { failures, retry_in, cause }) = fx.opened {
            self.emit(PoolEvent::BreakerOpened { failures, retry_in, cause: cause.to_string() });
        }
        if fx.starts {
            spawner::call(self);
        }
        for departure in fx.retire {
            self.retire(departure);
        }
        drop(fx.orphans);
    }

    /// Sends a session to the reaper; its slot is free once the process is gone.
    fn retire(self: &Arc<Core>, departure: Departure<Box<Pooled>>) {
        let Departure { slot, session: worker, reason, replaced } = departure;
        let (session, pid, began) = (worker.id(), worker.pid(), self.clock().now());
        if replaced && reason.is_recycling() {
            self.emit(PoolEvent::Recycled { session, pid, reason });
        } else if replaced {
            self.emit(PoolEvent::Restarted { session, pid, reason });
        }
        let gentle = !reason.is_defect() && !self.killing.load(Ordering::SeqCst);
        let grace = if gentle { self.config.retire_grace } else { Duration::ZERO };
        let core = Arc::clone(self);
        worker.session.retire(grace, move |post_mortem| {
            as_insider(|| {
                core.gone(slot, (session, pid), reason, began, post_mortem);
            });
        });
    }

    /// The process of a session that left is gone: its slot is free.
    fn gone(
        self: &Arc<Core>,
        slot: SlotId,
        (session, pid): (SessionId, u32),
        reason: Removal,
        began: Moment,
        post_mortem: PostMortem,
    ) {
        self.remember(post_mortem.clone());
        let (time, post_mortem) = (self.clock().now().saturating_since(began), Box::new(post_mortem));
        // Before the slot is free: whoever waits for the pool's end has all of them queued.
        self.emit(PoolEvent::Removed { session, pid, reason, time, post_mortem });
        let now = self.clock().now();
        let ended = self.with(|state, fx| {
            state.retired(slot, now, fx);
            !state.is_open() && state.counts().total == 0
        });
        if ended {
            self.outlet.finish();
        }
    }

    /// Takes a session back from a user who does not return it.
    pub(super) fn reclaim(self: &Arc<Core>, slot: SlotId) {
        let began = self.clock().now();
        let Some(handle) = self.with(|state, fx| state.reclaim(slot, began, fx)) else { return };
        let session = (handle.id, handle.process.id());
        let core = Arc::clone(self);
        self.keeper.reclaim(&handle.process, move |post_mortem| {
            as_insider(|| {
                core.gone(slot, session, Removal::Reclaimed, began, post_mortem);
            });
        });
    }

    fn remember(&self, post_mortem: PostMortem) {
        let mut ring = self.post_mortems.lock();
        if ring.len() == POST_MORTEMS {
            ring.pop_front();
        }
        ring.push_back(post_mortem);
    }

    pub(super) fn post_mortems(&self) -> Vec<PostMortem> {
        self.post_mortems.lock().iter().cloned().collect()
    }

    /// Starts a thread of this pool. Fails at the system's limits.
    pub(super) fn spawn_thread(
        self: &Arc<Core>,
        name: &'static str,
        body: impl FnOnce(&Arc<Core>) + Send + 'static,
    ) -> Result<()> {
        let core = Arc::clone(self);
        let thread = Background::spawn(name, move || as_insider(|| body(&core)))
            .map_err(|error| Error::io("starting a thread of the pool", error))?;
        let ended: Vec<Background> = {
            let mut threads = self.threads.lock();
            threads.push(thread);
            threads.extract_if(.., |thread| thread.is_finished()).collect()
        };
        drop(ended);
        Ok(())
    }

    /// A lease ends. `restart_if_dead`: whether an unusable session is replaced.
    pub(super) fn give_back(self: &Arc<Core>, slot: SlotId, session: Box<Pooled>, restart_if_dead: bool) {
        let unusable = if !session.process().is_alive() {
            Some(Removal::Dead)
        } else if session.is_tainted() || std::thread::panicking() {
            Some(Removal::Tainted)
        } else if self.config.reuse == Reuse::Fresh {
            Some(Removal::Fresh)
        } else {
            None
        };
        if let Some(reason) = unusable {
            let now = self.clock().now();
            let lease = Lease { slot, session };
            self.with(|state, fx| state.discard(lease, reason, restart_if_dead, now, fx));
        } else if self.config.reuse == Reuse::Keep {
            self.with(|state, fx| state.release(Lease { slot, session }, self.clock().coarse(), fx));
        } else {
            self.reset(slot, session, restart_if_dead);
        }
    }

    /// A lease ends that nobody has used: the session is as it was.
    pub(super) fn give_back_unused(self: &Arc<Core>, lease: Lease<Box<Pooled>>) {
        if lease.session.owes_reset() {
            // What its last user left may stay only until the next one comes.
            self.reset(lease.slot, lease.session, self.config.restart_if_dead);
        } else {
            self.with(|state, fx| state.release(lease, self.clock().coarse(), fx));
        }
    }

    /// Asks the worker to go back to its warm state; the monitor reads the answer. If somebody waits, the
    /// session is theirs at once, and their first request brings the reset along.
    fn reset(self: &Arc<Core>, slot: SlotId, mut session: Box<Pooled>, restart_if_dead: bool) {
        if self.hands_over && session.can_owe_reset() {
            session.owe_reset(Some(self.config.reset_timeout));
            let (lease, now) = (Lease { slot, session }, self.clock().coarse());
            match self.with(|state, fx| state.hand_over(lease, now, fx)) {
                None => return,
                Some(lease) => session = lease.session,
            }
            session.owe_reset(None);
        }
        // Armed first: once the state has the session, its descriptor is not ours any more. An
        // event that comes before the state knows of the reset is noted there (`signalled`).
        self.monitor.arm(slot, &session);
        let asked = session.can(Feature::Reset).then(|| session.begin_reset());
        let reason = match asked {
            Some(Ok(())) => {
                let now = self.clock().coarse();
                let look = self.with(|state, fx| state.resetting(Lease { slot, session }, now, fx));
                if look {
                    self.listen(slot);
                }
                return;
            }
            Some(Err(error)) => {
                let (pool, reason) = (self.config.name.as_str(), error.to_string());
                let session = session.id().number();
                log::debug!(target: TARGET, pool, session, reason = reason.as_str(); "a reset could not be asked for");
                Removal::ResetFailed
            }
            None => Removal::Fresh,
        };
        self.discard(slot, session, reason, restart_if_dead);
    }

    /// Gives a leased session a new process because the reset that it owed failed. Blocks for its start.
    #[cold]
    pub(super) fn renew(
        self: &Arc<Core>,
        slot: SlotId,
        session: &mut Session,
        failure: &Error,
    ) -> Result<()> {
        let (id, pool) = (session.id(), self.config.name.as_str());
        log::debug!(target: TARGET, pool, session = id.number(); "not fit for its next user: {failure}");
        let pid = session.pid();
        self.emit(PoolEvent::Restarted { session: id, pid, reason: Removal::ResetFailed });
        let restart = |session: &mut Session, gone| session.restart_unless(&self.stop, gone);
        self.replace_process(slot, session, restart, State::renewed)
    }

    /// Has a leased session go back to a checkpoint. Blocks for that.
    pub(super) fn restore(
        self: &Arc<Core>,
        slot: SlotId,
        session: &mut Session,
        checkpoint: &Checkpoint,
    ) -> Result<()> {
        let restore = |session: &mut Session, gone| session.restore_unless(checkpoint, &self.stop, gone);
        self.replace_process(slot, session, restore, State::restored)?;
        self.emit(PoolEvent::Restored { session: session.id(), pid: session.pid() });
        Ok(())
    }

    /// Gives a session in the hands of its user a new process.
    fn replace_process(
        self: &Arc<Core>,
        slot: SlotId,
        session: &mut Session,
        replace: impl FnOnce(&mut Session, Gone) -> Result<()>,
        note: impl FnOnce(&mut PoolState, SlotId, Handle, Moment) -> bool,
    ) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(Error::Closed);
        }
        let core = Arc::clone(self);
        replace(session, Box::new(move |end| as_insider(|| core.remember(end))))?;
        self.source.note(session);
        // Without that nobody would learn of its end.
        self.monitor.watch(slot, session).inspect_err(|_| session.process().kill_group(Cause::Retired))?;
        let handle = Handle { id: session.id(), process: Arc::clone(session.process()) };
        let now = self.clock().now();
        if self.with(|state, _| note(state, slot, handle, now)) {
            Ok(())
        } else {
            session.process().kill_group(Cause::Retired);
            Err(Error::Closed)
        }
    }

    pub(super) fn discard(
        self: &Arc<Core>,
        slot: SlotId,
        session: Box<Pooled>,
        reason: Removal,
        replace: bool,
    ) {
        let now = self.clock().now();
        self.with(|state, fx| state.discard(Lease { slot, session }, reason, replace, now, fx));
    }

    /// The user's check refused a session: it is replaced.
    pub(super) fn refuse(self: &Arc<Core>, slot: SlotId, session: Box<Pooled>) {
        let now = self.clock().now();
        self.with(|state, fx| state.refuse(Lease { slot, session }, now, fx));
    }

    /// Has the monitor listen to a session that nobody has in hand.
    pub(super) fn listen(&self, slot: SlotId) {
        let inner = self.lock();
        if let Some(session) = inner.state.in_place(slot) {
            self.monitor.arm(slot, session);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<Box<Pooled>>> {
        self.gate.lock()
    }
}

/// A test has moved the clock.
impl Wake for Core {
    fn wake(&self) {
        self.gate.clock_moved();
        self.jobs.clock_moved();
    }
}
