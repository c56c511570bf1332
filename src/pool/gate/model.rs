//! The waiting and the hand-off under a model checker: every lock, wake-up and wait of the gate, of
//! the state behind it, of a cancel token and of the clock is a point where shuttle may go on with
//! any other thread.
//!
//! What the pool hands out here are plain numbers. The threads around the gate (users, spawners,
//! monitor, reaper, whoever cancels, closes, or moves the clock) do what those of the pool do.
//! Deadlines are events: time passes when a thread says so. A lost wake-up is a deadlock, which
//! shuttle finds; everything else is asserted.
//!
//! A checker that finds nothing proves nothing unless it finds what is there: each [`Bug`] is planted
//! in the threads of the model and must be found.
//!
//! `RUSTFLAGS='--cfg shuttle' cargo test --lib --no-default-features gate::model`

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::thread::{JoinHandle, spawn, yield_now};

use super::*;
use crate::cancel::{CancelToken, Wake};
use crate::clock::ManualClock;
use crate::error::Error;
use crate::pool::state::{Bounds, Claim, Lease, Look, Refusal, Removal, Take};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What is handed out.
#[derive(Debug)]
struct Plain(Arc<Flags>);

#[derive(Debug)]
struct Flags {
    alive: AtomicBool,
    held: AtomicBool,
}

impl Resource for Plain {
    type Handle = Arc<Flags>;

    fn is_alive(&self) -> bool {
        self.0.alive.load(Ordering::SeqCst)
    }

    fn executions(&self) -> u64 {
        0
    }
}

type Fx = Effects<Plain, Arc<Waiter>>;
type PlainState = State<Plain, Arc<Waiter>>;

/// A mistake in the threads around the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Whoever gives a session back wakes the waiters, then decides who gets it.
    WakesBeforeItDecides,
    /// A failed start wakes nobody.
    FailsInSilence,
    /// Nobody calls a spawner.
    CallsNoSpawner,
    /// A waiter looks, lets go of the lock, then sleeps.
    SleepsWithoutALook,
    /// A cancelled waiter is not woken.
    CancelsInSilence,
    /// The spawners and the others are not woken when the pool closes.
    ClosesInSilence,
    /// A waiter whose time is over leaves whatever was decided.
    LeavesItsGrant,
    /// An event that came while the session was still its user's is forgotten.
    ForgetsAnEarlyEvent,
}

/// The pool around the gate.
struct World {
    gate: Gate<Plain>,
    hand: ManualClock,
    bug: Bug,
    /// Starts that are still to fail.
    failing: AtomicU64,
    created: AtomicU64,
    gone: AtomicU64,
    /// Spawners, monitors and reapers.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

const TIMEOUT: Duration = Duration::from_millis(10);
const MAX_STARTS: usize = 2;

fn bounds(min_idle: usize, max_sessions: usize) -> Bounds {
    Bounds {
        min_idle,
        max_sessions,
        max_starts: MAX_STARTS,
        max_waiters: usize::MAX,
        ..crate::pool::state::bounds()
    }
}

impl Wake for World {
    fn wake(&self) {
        self.gate.clock_moved();
    }
}

/// Ends the wait of a ticket when its token fires.
struct CancelledWaiter(Arc<World>, Ticket);

impl Wake for CancelledWaiter {
    fn wake(&self) {
        let CancelledWaiter(world, ticket) = self;
        world.with_silence(Bug::CancelsInSilence, |state, fx| state.cancel(*ticket, fx));
    }
}

impl World {
    /// A pool with one spawner.
    fn new(bounds: Bounds, failing: u64, bug: Bug) -> Arc<World> {
        let hand = ManualClock::new();
        let clock = Clock::manual(hand.clone());
        let world = Arc::new(World {
            gate: Gate::new(State::new(bounds, 7), clock.clone()),
            hand,
            bug,
            failing: AtomicU64::new(failing),
            created: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            threads: Mutex::new(Vec::new()),
        });
        let sleepers: std::sync::Weak<dyn Wake> = Arc::<World>::downgrade(&world);
        clock.on_advance(sleepers);
        world.gate.lock().spawners += 1;
        world.background(World::spawn_sessions);
        world
    }

    fn background(self: &Arc<World>, body: impl FnOnce(&Arc<World>) + Send + 'static) {
        let world = Arc::clone(self);
        let thread = spawn(move || body(&world));
        self.threads.lock().push(thread);
    }

    fn with<R>(self: &Arc<World>, event: impl FnOnce(&mut PlainState, &mut Fx) -> R) -> R {
        self.with_silence(Bug::None, event)
    }

    /// As `Core::with`; with this bug, it wakes no waiter.
    fn with_silence<R>(
        self: &Arc<World>,
        silent: Bug,
        event: impl FnOnce(&mut PlainState, &mut Fx) -> R,
    ) -> R {
        let mut fx = Effects::none();
        let (result, something) = self.gate.with(&mut fx, event);
        if silent != Bug::None && self.bug == silent {
            fx.wake.clear();
        }
        if something {
            self.carry_out(fx);
        }
        result
    }

    fn carry_out(self: &Arc<World>, mut fx: Fx) {
        self.gate.wake(&mut fx);
        if fx.starts {
            self.call_spawner();
        }
        for departure in fx.retire {
            self.background(move |world| {
                drop(departure.session);
                world.gone.fetch_add(1, Ordering::SeqCst);
                world.with(|state, fx| state.retired(departure.slot, world.gate.clock.now(), fx));
            });
        }
    }

    fn call_spawner(self: &Arc<World>) {
        if self.bug != Bug::CallsNoSpawner && self.gate.call_spawner(MAX_STARTS) {
            self.background(World::spawn_sessions);
        }
    }

    /// A spawner's thread.
    fn spawn_sessions(self: &Arc<World>) {
        while let Some(Begun { slot, .. }) = self.gate.next_start() {
            self.call_spawner();
            let fails =
                self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            let now = self.gate.clock.now();
            if fails.is_ok() {
                let cause = Some(Arc::new(Error::Cancelled));
                self.with_silence(Bug::FailsInSilence, |state, fx| state.start_failed(slot, cause, now, fx));
            } else {
                self.created.fetch_add(1, Ordering::SeqCst);
                let flags = Arc::new(Flags { alive: AtomicBool::new(true), held: AtomicBool::new(false) });
                let handle = Arc::clone(&flags);
                self.with(|state, fx| state.started(slot, Plain(flags), handle, now, fx));
            }
        }
    }

    /// As `Core::acquire`.
    fn acquire(
        self: &Arc<World>,
        timeout: Option<Duration>,
        token: Option<&CancelToken>,
    ) -> Result<Lease<Plain>, Refusal> {
        let began = self.gate.clock.now();
        let mut claim = Claim::new(1, None);
        match self.with(|state, fx| state.take(&mut claim, began, fx)) {
            Take::Hit(lease) => return Ok(lease),
            Take::Closed => return Err(Refusal::Closed),
            Take::Empty => {}
        }
        let deadline = timeout.map(|timeout| began + timeout);
        let until = deadline.unwrap_or(Moment::FAR_FUTURE);
        let waiter = Waiter::new();
        let queued = Arc::clone(&waiter);
        let ticket = self.with(|state, fx| state.enqueue(claim, until, queued, began, fx))?;
        let registration =
            token.map(|token| token.register(Arc::new(CancelledWaiter(Arc::clone(self), ticket))));
        let decision = match self.bug {
            Bug::SleepsWithoutALook => self.await_without_a_look(&waiter, ticket),
            Bug::LeavesItsGrant => self.await_and_leave(&waiter, ticket, deadline),
            _ => self.gate.await_decision(&waiter, ticket, began, deadline),
        };
        drop(registration);
        match decision {
            Decision::Granted(lease) => Ok(lease),
            Decision::Refused(refusal) => Err(refusal),
        }
    }

    /// [`Bug::SleepsWithoutALook`].
    fn await_without_a_look(&self, waiter: &Arc<Waiter>, ticket: Ticket) -> Decision<Plain> {
        loop {
            if let Some(decision) = self.gate.lock().state.collect(ticket, Duration::ZERO) {
                return decision;
            }
            let mut inner = self.gate.lock();
            self.gate.sleep(&waiter.decided, &mut inner, None);
        }
    }

    /// [`Bug::LeavesItsGrant`].
    fn await_and_leave(
        &self,
        waiter: &Arc<Waiter>,
        ticket: Ticket,
        deadline: Option<Moment>,
    ) -> Decision<Plain> {
        let mut inner = self.gate.lock();
        inner.sleepers.push(Arc::clone(waiter));
        loop {
            if let Some(decision) = inner.state.collect(ticket, Duration::ZERO) {
                return decision;
            }
            if self.gate.sleep(&waiter.decided, &mut inner, deadline) {
                inner.state.expire(ticket);
                return Decision::Refused(Refusal::TimedOut { ahead: 0, max_leases: None });
            }
        }
    }

    /// Uses a session: nobody else does at the same time.
    fn use_it(lease: &Lease<Plain>) {
        let flags = &lease.session.0;
        assert!(!flags.held.swap(true, Ordering::SeqCst), "two users have one session");
        yield_now();
        assert!(flags.held.swap(false, Ordering::SeqCst), "two users have one session");
    }

    fn release(self: &Arc<World>, lease: Lease<Plain>) {
        let now = self.gate.clock.now();
        if self.bug == Bug::WakesBeforeItDecides {
            for waiter in self.gate.lock().sleepers.clone() {
                waiter.decided.notify_one();
            }
            self.with_silence(self.bug, |state, fx| state.release(lease, now, fx));
        } else {
            self.with(|state, fx| state.release(lease, now, fx));
        }
    }

    fn discard(self: &Arc<World>, lease: Lease<Plain>) {
        lease.session.0.alive.store(false, Ordering::SeqCst);
        let now = self.gate.clock.now();
        self.with(|state, fx| state.discard(lease, Removal::Dead, true, now, fx));
    }

    /// Gives a session back to be reset: its answer comes at any time from here on.
    fn reset(self: &Arc<World>, lease: Lease<Plain>) {
        let slot = lease.slot;
        self.background(move |world| world.look(slot));
        let now = self.gate.clock.now();
        let again = self.with(|state, fx| state.resetting(lease, now, fx));
        if again && self.bug != Bug::ForgetsAnEarlyEvent {
            self.background(move |world| world.look(slot));
        }
    }

    /// The monitor's thread hears of a session.
    fn look(self: &Arc<World>, slot: SlotId) {
        match self.with(|state, _| state.look(slot)) {
            Look::Nothing => {}
            Look::Idle(session) | Look::Reset(session) => {
                yield_now();
                let now = self.gate.clock.now();
                self.with(|state, fx| state.clean(Lease { slot, session }, now, fx));
            }
        }
    }

    fn close(self: &Arc<World>) {
        self.with(PlainState::close);
        if self.bug != Bug::ClosesInSilence {
            self.gate.wake_all();
        }
    }

    /// A thread that acquires, uses and gives back.
    fn user(
        self: &Arc<World>,
        timeout: Option<Duration>,
        token: Option<CancelToken>,
        give_back: fn(&Arc<World>, Lease<Plain>),
    ) -> JoinHandle<Option<Refusal>> {
        let world = Arc::clone(self);
        spawn(move || match world.acquire(timeout, token.as_ref()) {
            Ok(lease) => {
                World::use_it(&lease);
                give_back(&world, lease);
                None
            }
            Err(refusal) => Some(refusal),
        })
    }

    /// Closes the pool once all users are through; nothing is left of it.
    fn end(self: &Arc<World>) {
        self.close();
        let empty = self.gate.observe(None, |state| state.counts().total == 0);
        assert!(empty, "there is no deadline");
        loop {
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                thread.join().expect("it does not panic");
            }
        }
        assert_eq!(self.created.load(Ordering::SeqCst), self.gone.load(Ordering::SeqCst));
        assert!(self.gate.lock().sleepers.is_empty(), "nobody waits any more");
    }
}

fn through(user: JoinHandle<Option<Refusal>>) -> Option<Refusal> {
    user.join().expect("a user does not panic")
}

/// Whoever waits without limit is served as long as the pool lives.
fn everybody_is_served(bug: Bug) {
    let world = World::new(bounds(0, 1), 0, bug);
    let users: Vec<_> = (0..3).map(|_| world.user(None, None, World::release)).collect();
    for user in users {
        assert!(through(user).is_none(), "served, if it waits long enough");
    }
    world.end();
}

/// A session that its user ruins frees its slot for the next one.
fn a_slot_that_frees_serves_the_next(bug: Bug) {
    let world = World::new(bounds(0, 1), 0, bug);
    let users: Vec<_> = (0..3).map(|_| world.user(None, None, World::discard)).collect();
    for user in users {
        assert!(through(user).is_none());
    }
    assert!(world.created.load(Ordering::SeqCst) >= 3);
    world.end();
}

/// A grant races the deadline of whom it is for: it is his, or the next one's, never nobody's.
fn a_grant_races_a_deadline(bug: Bug) {
    let world = World::new(bounds(0, 1), 0, bug);
    let patient = world.user(None, None, World::release);
    let hasty = world.user(Some(TIMEOUT), None, World::release);
    world.hand.advance(TIMEOUT);
    let last = world.user(None, None, World::release);
    let refusal = through(hasty);
    assert!(matches!(refusal, None | Some(Refusal::TimedOut { .. })), "{refusal:?}");
    assert!(through(patient).is_none() && through(last).is_none());
    world.end();
}

/// A cancel races the grant of whom it is for.
fn a_cancel_races_a_grant(bug: Bug) {
    let world = World::new(bounds(0, 1), 0, bug);
    let token = CancelToken::new();
    let patient = world.user(None, None, World::release);
    let cancelled = world.user(None, Some(token.clone()), World::release);
    // It holds the only session until the other one has left.
    let holder = world.acquire(None, None).expect("served");
    token.cancel();
    let refusal = through(cancelled);
    assert!(matches!(refusal, None | Some(Refusal::Cancelled)), "{refusal:?}");
    world.release(holder);
    assert!(through(patient).is_none());
    world.end();
}

/// A pool is closed while everything else goes on.
fn a_close_races_everything(bug: Bug) {
    let world = World::new(bounds(1, 2), 1, bug);
    let token = CancelToken::new();
    let users = [
        world.user(None, None, World::release),
        world.user(Some(TIMEOUT), None, World::discard),
        world.user(None, Some(token.clone()), World::reset),
    ];
    let others = [
        {
            let world = Arc::clone(&world);
            spawn(move || world.hand.advance(TIMEOUT))
        },
        spawn(move || token.cancel()),
        {
            let world = Arc::clone(&world);
            spawn(move || world.close())
        },
    ];
    for user in users {
        through(user);
    }
    for other in others {
        other.join().expect("it does not panic");
    }
    world.end();
}

/// Starts fail: whoever waits is told, or is served by a start that goes well.
fn a_failed_start_wakes_whoever_waits(bug: Bug) {
    let world = World::new(bounds(0, 2), 2, bug);
    let users = [(); 2].map(|()| world.user(None, None, World::release));
    for user in users {
        let refusal = through(user);
        assert!(matches!(refusal, None | Some(Refusal::StartFailing { .. })), "{refusal:?}");
    }
    world.end();
}

/// The back-off passes and the spawner tries again, although nobody asks anew.
fn a_spawner_tries_again_when_the_back_off_has_passed(bug: Bug) {
    let world = World::new(bounds(1, 1), 1, bug);
    world.with(PlainState::prime);
    world.gate.observe(None, |state| state.breaker(Moment::LONG_AGO).1 == 1);
    world.hand.advance(Duration::from_secs(1));
    world.gate.observe(None, |state| state.counts().idle == 1);
    world.end();
}

/// A reset's answer comes before, while or after the state knows of it, and the pool may be closed.
fn a_clean_session_goes_on_whenever_its_answer_comes(bug: Bug) {
    let world = World::new(bounds(0, 1), 0, bug);
    let users = [(); 2].map(|()| world.user(None, None, World::reset));
    for user in users {
        assert!(through(user).is_none());
    }
    let last = world.user(None, None, World::reset);
    world.close();
    let refusal = through(last);
    assert!(matches!(refusal, None | Some(Refusal::Closed)), "{refusal:?}");
    world.end();
}

/// Sessions die under their users, in idle and on their way to somebody.
fn a_death_races_a_hand_off(bug: Bug) {
    let world = World::new(bounds(0, 2), 0, bug);
    let dies = {
        let world = Arc::clone(&world);
        spawn(move || {
            let lease = world.acquire(None, None).expect("served");
            let (slot, flags) = (lease.slot, Arc::clone(&lease.session.0));
            world.background(move |world| {
                flags.alive.store(false, Ordering::SeqCst);
                let now = world.gate.clock.now();
                world.with(|state, fx| state.died(slot, now, fx));
            });
            world.release(lease);
        })
    };
    let users = [(); 2].map(|()| world.user(None, None, World::release));
    for user in users {
        assert!(through(user).is_none());
    }
    dies.join().expect("it does not panic");
    world.end();
}

/// How many interleavings of each scenario are played: a few seconds; more by environment variable.
fn rounds() -> usize {
    std::env::var("REMUDA_MODEL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2_000)
}

/// Half of the interleavings are random; the others keep to one thread and change to another at few,
/// random points, which finds what needs a long way without a change.
fn check(scenario: fn(Bug), bug: Bug) {
    shuttle::check_random(move || scenario(bug), rounds());
    shuttle::check_pct(move || scenario(bug), rounds(), 3);
}

#[test]
fn nobody_waits_in_vain_and_nobody_shares_a_session() {
    check(everybody_is_served, Bug::None);
    check(a_slot_that_frees_serves_the_next, Bug::None);
}

#[test]
fn deadlines_and_cancels_race_grants_without_loss() {
    check(a_grant_races_a_deadline, Bug::None);
    check(a_cancel_races_a_grant, Bug::None);
}

#[test]
fn a_pool_can_be_closed_at_any_point() {
    check(a_close_races_everything, Bug::None);
}

#[test]
fn failed_starts_are_told_and_tried_again() {
    check(a_failed_start_wakes_whoever_waits, Bug::None);
    check(a_spawner_tries_again_when_the_back_off_has_passed, Bug::None);
}

#[test]
fn answers_and_deaths_may_come_at_any_point() {
    check(a_clean_session_goes_on_whenever_its_answer_comes, Bug::None);
    check(a_death_races_a_hand_off, Bug::None);
}

#[test]
fn each_planted_bug_is_found() {
    let planted: [(Bug, fn(Bug)); 8] = [
        (Bug::WakesBeforeItDecides, everybody_is_served),
        (Bug::SleepsWithoutALook, everybody_is_served),
        (Bug::CallsNoSpawner, everybody_is_served),
        (Bug::FailsInSilence, a_failed_start_wakes_whoever_waits),
        (Bug::LeavesItsGrant, a_grant_races_a_deadline),
        (Bug::CancelsInSilence, a_cancel_races_a_grant),
        (Bug::ClosesInSilence, a_close_races_everything),
        (Bug::ForgetsAnEarlyEvent, a_clean_session_goes_on_whenever_its_answer_comes),
    ];
    for (bug, scenario) in planted {
        let found = catch_unwind(AssertUnwindSafe(|| check(scenario, bug)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
