//! What the tests of the state machine share: somebody who plays the threads around it and looks after each
//! event whether every session is where it should be.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::*;
use crate::pool::metrics::PoolCounts;

#[derive(Debug)]
pub(super) struct Fake {
    pub(super) id: u64,
    alive: Rc<Cell<bool>>,
    pub(super) executions: u64,
}

impl Resource for Fake {
    type Handle = (u64, Rc<Cell<bool>>);

    fn is_alive(&self) -> bool {
        self.alive.get()
    }

    fn executions(&self) -> u64 {
        self.executions
    }
}

pub(super) type Fx = Effects<Fake, u64>;

pub(crate) fn bounds() -> Bounds {
    Bounds {
        min_idle: 1,
        max_sessions: 3,
        max_starts: 2,
        max_waiters: 4,
        session_timeout: Duration::from_secs(300),
        reset_timeout: Duration::from_secs(2),
        health_interval: Duration::from_secs(30),
        budget: None,
        max_lifetime: None,
        restart_if_dead: true,
        max_retirements: 1,
        idle_order: IdleOrder::Lifo,
        ping_interval: None,
        leak_after: None,
        max_session_memory: None,
        idle_memory_budget: None,
    }
}

pub(super) fn error() -> Arc<Error> {
    Arc::new(Error::Cancelled)
}

/// Plays the threads around the state machine and remembers what each of them has in hand.
pub(super) struct Model {
    pub(super) state: State<Fake, u64>,
    pub(super) now: Moment,
    pub(super) next_session: u64,
    pub(super) next_waiter: u64,
    /// Deadline and ticket of those who wait, in order of arrival.
    pub(super) waiting: VecDeque<(u64, Moment, Ticket)>,
    pub(super) woken: BTreeMap<u64, Ticket>,
    pub(super) leases: Vec<Lease<Fake>>,
    pub(super) starting: Vec<SlotId>,
    pub(super) departing: Vec<(SlotId, u64)>,
    pub(super) monitor: Vec<(Lease<Fake>, bool)>,
    /// Sessions that exist, by id; leaves when its retirement ends.
    pub(super) exist: BTreeSet<u64>,
    pub(super) slots: BTreeMap<u64, SlotId>,
    pub(super) granted: u64,
}

impl Model {
    pub(super) fn new(bounds: Bounds) -> Model {
        Model {
            state: State::new(bounds, 42),
            now: Moment::FAR_FUTURE - Duration::from_secs(10_000_000),
            next_session: 0,
            next_waiter: 0,
            waiting: VecDeque::new(),
            woken: BTreeMap::new(),
            leases: Vec::new(),
            starting: Vec::new(),
            departing: Vec::new(),
            monitor: Vec::new(),
            exist: BTreeSet::new(),
            slots: BTreeMap::new(),
            granted: 0,
        }
    }

    /// Does what the threads would do after unlocking.
    pub(super) fn apply(&mut self, fx: Fx) {
        for waiter in fx.wake {
            let at =
                self.waiting.iter().position(|(id, ..)| *id == waiter).expect("woken once, while waiting");
            let (_, _, ticket) = self.waiting.remove(at).expect("just found");
            self.woken.insert(waiter, ticket);
            if matches!(self.state.decided.get(&ticket), Some(Decision::Granted(_))) {
                for (_, deadline, earlier) in self.waiting.iter().take(at) {
                    assert!(*deadline <= self.now || *earlier > ticket, "a live waiter was overtaken");
                }
            }
        }
        for departure in fx.retire {
            self.departing.push((departure.slot, departure.session.id));
        }
    }

    pub(super) fn with(&mut self, event: impl FnOnce(&mut State<Fake, u64>, Moment, &mut Fx)) {
        let mut fx = Effects::none();
        event(&mut self.state, self.now, &mut fx);
        self.apply(fx);
        self.verify();
    }

    pub(super) fn acquire(&mut self, timeout: Option<Duration>) {
        let mut fx = Effects::none();
        let mut claim = Claim::new(1, None);
        match self.state.take(&mut claim, self.now, &mut fx) {
            Take::Hit(lease) => self.leases.push(lease),
            Take::Closed => {}
            Take::Empty => match timeout {
                None => drop(self.state.give_up_at_once(&claim, self.now)),
                Some(timeout) => {
                    let id = self.next_waiter;
                    self.next_waiter += 1;
                    let deadline = self.now + timeout;
                    if let Ok(ticket) = self.state.enqueue(claim, deadline, id, self.now, &mut fx) {
                        self.waiting.push_back((id, deadline, ticket));
                    }
                }
            },
        }
        self.apply(fx);
        self.verify();
    }

    /// Each woken or expired waiter collects what became of it.
    pub(super) fn collect(&mut self) {
        let expired: Vec<_> =
            self.waiting.iter().filter(|(_, deadline, _)| *deadline <= self.now).copied().collect();
        for (id, _, ticket) in expired {
            self.state.expire(ticket);
            self.waiting.retain(|(other, ..)| *other != id);
            self.woken.insert(id, ticket);
        }
        for ticket in mem::take(&mut self.woken).into_values() {
            match self.state.collect(ticket, Duration::ZERO).expect("a woken waiter is decided") {
                Decision::Granted(lease) => {
                    self.granted += 1;
                    self.leases.push(lease);
                }
                Decision::Refused(_) => {}
            }
        }
        self.verify();
    }

    pub(super) fn begin_start(&mut self) {
        if let Some(slot) = self.state.begin_start(self.now) {
            self.starting.push(slot);
        }
        self.verify();
    }

    pub(super) fn end_start(&mut self, pick: usize, ends_well: bool) {
        if self.starting.is_empty() {
            return;
        }
        let slot = self.starting.remove(pick % self.starting.len());
        let id = self.next_session;
        if ends_well {
            self.next_session += 1;
            self.exist.insert(id);
            self.slots.insert(id, slot);
            let alive = Rc::new(Cell::new(true));
            let session = Fake { id, alive: Rc::clone(&alive), executions: 0 };
            self.with(|state, now, fx| state.started(slot, session, (id, alive), now, fx));
        } else {
            self.with(|state, now, fx| state.start_failed(slot, Some(error()), now, fx));
        }
    }

    pub(super) fn with_lease(
        &mut self,
        pick: usize,
        event: impl FnOnce(&mut State<Fake, u64>, Lease<Fake>, Moment, &mut Fx),
    ) {
        if self.leases.is_empty() {
            return;
        }
        let mut lease = self.leases.remove(pick % self.leases.len());
        lease.session.executions += 1;
        self.with(|state, now, fx| event(state, lease, now, fx));
    }

    pub(super) fn kill(&mut self, pick: usize, tell: bool) {
        let handles = self.state.handles();
        if handles.is_empty() {
            return;
        }
        let (id, alive) = &handles[pick % handles.len()];
        alive.set(false);
        let slot = self.slots[id];
        if tell {
            self.with(|state, now, fx| state.died(slot, now, fx));
        }
    }

    pub(super) fn look(&mut self, pick: usize) {
        let handles = self.state.handles();
        if handles.is_empty() || !self.monitor.is_empty() {
            return;
        }
        self.look_at(handles[pick % handles.len()].0);
    }

    pub(super) fn look_at(&mut self, session: u64) {
        let slot = self.slots[&session];
        match self.state.look(slot) {
            Look::Idle(session) => self.monitor.push((Lease { slot, session }, false)),
            Look::Reset(session) => self.monitor.push((Lease { slot, session }, true)),
            Look::Nothing => {}
        }
        self.verify();
    }

    pub(super) fn looked(&mut self, how: u8) {
        let Some((lease, reset)) = self.monitor.pop() else { return };
        self.with(|state, now, fx| match how % 3 {
            0 if reset => state.put_back(lease, fx),
            1 => state.discard(lease, Removal::Misbehaved, true, now, fx),
            _ => state.clean(lease, now, fx),
        });
    }

    pub(super) fn retired(&mut self, pick: usize) {
        if self.departing.is_empty() {
            return;
        }
        let (slot, id) = self.departing.remove(pick % self.departing.len());
        assert!(self.exist.remove(&id), "a session leaves once");
        self.slots.remove(&id);
        self.with(|state, now, fx| state.retired(slot, now, fx));
    }

    pub(super) fn verify(&self) {
        self.state.check_invariants();
        let counts = self.state.counts();
        let grants = self.state.decided.values().filter(|d| matches!(d, Decision::Granted(_))).count();
        assert_eq!(counts.busy, self.leases.len() + grants, "each busy session is in somebody's hand");
        assert_eq!(counts.retiring, self.departing.len());
        assert_eq!(counts.starting, self.starting.len());
        let ready = counts.idle + counts.busy + counts.resetting + counts.retiring;
        assert_eq!(ready, self.exist.len(), "no session is lost, none is there twice");
        if counts.idle > 0 {
            assert!(
                self.waiting.iter().all(|(_, deadline, _)| *deadline <= self.now),
                "sleeps beside an idle session"
            );
        }
        // A live waiter has something to wait for.
        let live = self.waiting.iter().any(|(_, deadline, _)| *deadline > self.now);
        if live && counts.total < self.state.bounds.max_sessions && counts.starting + counts.resetting == 0 {
            assert!(self.state.wanted() > 0, "somebody waits and nothing is wanted");
        }
        let counters = self.state.counters();
        assert!(
            counters.acquisition_attempts
                >= counters.acquisition_success
                    + counters.acquisition_timeouts
                    + counters.acquisitions_cancelled
        );
    }

    /// Closes the pool and plays everything to its end.
    pub(super) fn end(mut self) {
        self.with(|state, _, fx| state.close(fx));
        let now = self.now;
        assert!(self.waiting.iter().all(|(_, deadline, _)| *deadline <= now), "closing wakes every waiter");
        self.collect();
        while !self.starting.is_empty() {
            self.end_start(0, true);
        }
        while !self.leases.is_empty() {
            self.with_lease(0, State::release);
        }
        self.looked(2);
        while !self.departing.is_empty() {
            self.retired(0);
        }
        assert_eq!(self.state.counts(), PoolCounts::default(), "a closed pool becomes empty");
        assert!(self.exist.is_empty());
        let c = self.state.counters();
        assert_eq!(c.sessions_created, c.sessions_removed);
        let answers = c.acquisition_success
            + c.acquisition_timeouts
            + c.acquisitions_cancelled
            + c.refused_because.iter().sum::<u64>();
        assert_eq!(c.acquisition_attempts, answers, "each attempt has one answer");
    }
}

/// A model with `count` idle sessions.
pub(super) fn warm(bounds: Bounds, count: usize) -> Model {
    let mut model = Model::new(Bounds { min_idle: count, ..bounds });
    model.with(|state, _, fx| state.prime(fx));
    for _ in 0..count {
        model.begin_start();
        model.end_start(0, true);
    }
    assert_eq!(model.state.counts().idle, count);
    model
}

pub(super) const LONG: Option<Duration> = Some(Duration::from_secs(3_600));
