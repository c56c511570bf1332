//! The state machine against a naive model of what a pool promises: plain lists, each rule written
//! down as one would say it. The model shares nothing with the state machine but its answers to "may
//! a start be tried now" and its slot numbers; the state's own invariants are checked besides, in
//! every event.
//!
//! What it says: who has which session, who is served by which, in which order, who is told what, and
//! when; that nobody is served who should not be, and nobody sleeps who should have been woken.
//! Tenants, ageing and memory have tests of their own.

mod naive;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;

use naive::{Fate, Naive, Wish};

use super::holder::Who;
use super::*;
use crate::pool::breaker::BreakerState;

#[derive(Debug)]
struct Fake {
    id: u64,
    alive: Rc<Cell<bool>>,
}

impl Resource for Fake {
    type Handle = u64;

    fn is_alive(&self) -> bool {
        self.alive.get()
    }

    fn executions(&self) -> u64 {
        0
    }
}

type Fx = Effects<Fake, u64>;

/// Both, side by side, and what the threads around them have in hand.
struct Both {
    state: State<Fake, u64>,
    naive: Naive,
    primed: bool,
    max_starts: usize,
    sessions: u64,
    wishes: u64,
    tickets: BTreeMap<u64, Ticket>,
    leases: Vec<Lease<Fake>>,
    in_hand: Option<(Lease<Fake>, bool)>,
    starts: Vec<SlotId>,
    departed: Vec<(SlotId, u64)>,
    slots: BTreeMap<u64, SlotId>,
    lives: BTreeMap<u64, Rc<Cell<bool>>>,
}

impl Both {
    fn new(bounds: Bounds) -> Both {
        let now = Moment::FAR_FUTURE - Duration::from_secs(10_000_000);
        Both {
            state: State::new(bounds, 42),
            naive: Naive {
                now,
                open: true,
                paused: false,
                min_idle: bounds.min_idle,
                max: bounds.max_sessions,
                idle_limit: bounds.session_timeout,
                reset_limit: bounds.reset_timeout,
                idle: Vec::new(),
                held: Vec::new(),
                resetting: Vec::new(),
                looked_at: None,
                starting: 0,
                leaving: Vec::new(),
                dead: BTreeSet::new(),
                queue: Vec::new(),
                told: BTreeMap::new(),
                batch_failed: false,
            },
            primed: false,
            max_starts: bounds.max_starts,
            sessions: 0,
            wishes: 0,
            tickets: BTreeMap::new(),
            leases: Vec::new(),
            in_hand: None,
            starts: Vec::new(),
            departed: Vec::new(),
            slots: BTreeMap::new(),
            lives: BTreeMap::new(),
        }
    }

    /// One event for the state machine, the same for the model, and a look at everything.
    fn event<R>(
        &mut self,
        real: impl FnOnce(&mut State<Fake, u64>, Moment, &mut Fx) -> R,
        naive: impl FnOnce(&mut Naive),
    ) -> R {
        let mut fx = Effects::none();
        let before: BTreeSet<u64> = self.naive.told.keys().copied().collect();
        let result = real(&mut self.state, self.naive.now, &mut fx);
        naive(&mut self.naive);
        // Those whose time is over wake by themselves; it does no harm if they are woken.
        let told = self.naive.told.iter().filter(|(id, fate)| !before.contains(id) && **fate != Fate::Late);
        let told: BTreeSet<u64> = told.map(|(id, _)| *id).collect();
        let late = |id: &u64| self.naive.told.get(id) == Some(&Fate::Late);
        let woken: BTreeSet<u64> = fx.wake.iter().copied().filter(|id| !late(id)).collect();
        assert_eq!(woken, told, "exactly those are woken whose fate was decided");
        let left = fx.retire.iter().map(|departure| (departure.slot, departure.session.id));
        self.departed.extend(left);
        assert!(fx.orphans.is_empty(), "no lease outlives its slot");
        self.compare();
        result
    }

    /// As [`event`](Both::event), where the pool looks at the whole of itself afterwards.
    fn settling<R>(
        &mut self,
        real: impl FnOnce(&mut State<Fake, u64>, Moment, &mut Fx) -> R,
        naive: impl FnOnce(&mut Naive),
    ) -> R {
        let no_start = Cell::new(false);
        let real = |state: &mut State<Fake, u64>, now, fx: &mut Fx| {
            let result = real(state, now, fx);
            no_start.set(state.breaker(now).0 == BreakerState::Open);
            result
        };
        self.event(real, |model| {
            naive(model);
            model.settle(no_start.get());
        })
    }

    fn compare(&self) {
        let (state, naive) = (&self.state, &self.naive);
        let idle = state.idle.iter().map(|index| match &state.slots[*index as usize].place {
            Place::Idle(session) => session.id,
            other => panic!("idle, but {other:?}"),
        });
        let expected: Vec<u64> = naive.idle.iter().map(|(session, _)| *session).collect();
        assert_eq!(idle.collect::<Vec<_>>(), expected, "idle sessions, the next one last");
        let granted = state.decided.values().filter_map(|decision| match decision {
            Decision::Granted(lease) => Some(lease.session.id),
            Decision::Refused(_) => None,
        });
        let mut held: Vec<u64> = self.leases.iter().map(|lease| lease.session.id).chain(granted).collect();
        let mut expected = naive.held.clone();
        held.sort_unstable();
        expected.sort_unstable();
        // A lease that a hit has just brought is not in the test's hands yet.
        assert!(held.iter().all(|session| expected.contains(session)), "{held:?} are held, not {expected:?}");
        let mut leaving: Vec<u64> = self.departed.iter().map(|(_, session)| *session).collect();
        let mut expected = naive.leaving.clone();
        leaving.sort_unstable();
        expected.sort_unstable();
        assert_eq!(leaving, expected, "sessions that leave");
        let counts = state.counts();
        let (busy, resetting) = (naive.held.len(), naive.in_reset());
        assert_eq!((counts.busy, counts.resetting), (busy, resetting), "busy and resetting");
        assert_eq!((counts.starting, counts.retiring), (naive.starting, naive.leaving.len()));
        assert_eq!(counts.total, naive.total());
    }

    fn acquire(&mut self, timeout: Option<u16>, priority: i32) {
        let who = (priority != 0).then(|| Box::new(Who { priority, ..Who::default() }));
        let mut claim = Claim::new(1, who);
        let naive = &mut self.naive;
        let expected = if naive.open && !naive.paused { naive.take_idle() } else { None };
        naive.held.extend(expected);
        let (now, open) = (naive.now, naive.open);
        let taken = self.event(|state, now, fx| state.take(&mut claim, now, fx), |_| {});
        match taken {
            Take::Hit(lease) => {
                assert_eq!(Some(lease.session.id), expected, "the one that was used last is lent");
                self.leases.push(lease);
                return;
            }
            Take::Closed => return assert!(!open),
            Take::Empty => assert!(expected.is_none() && open, "an idle session is lent at once"),
        }
        let Some(timeout) = timeout else {
            drop(self.state.give_up_at_once(&claim, now));
            return;
        };
        let (id, deadline) = (self.wishes, now + Duration::from_millis(timeout.into()));
        self.wishes += 1;
        let nothing_comes = self.nothing_comes();
        let entered = self.settling(
            |state, now, fx| state.enqueue(claim, deadline, id, now, fx),
            |naive| {
                if !nothing_comes {
                    naive.queue.push(Wish { id, priority, deadline });
                }
            },
        );
        self.primed |= !nothing_comes;
        match entered {
            Ok(ticket) => {
                assert!(!nothing_comes, "it waits for nothing");
                self.tickets.insert(id, ticket);
            }
            Err(Refusal::StartFailing { .. }) => assert!(nothing_comes, "something may come"),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// No session is there or on its way, and none may be started.
    fn nothing_comes(&self) -> bool {
        let naive = &self.naive;
        let alive = naive.idle.len() + naive.held.len() + naive.in_reset();
        alive + naive.starting == 0 && self.state.breaker(naive.now).0 == BreakerState::Open
    }

    /// Everybody whose fate is decided or whose time is over collects it.
    fn collect(&mut self, pick: usize) {
        let Some((id, ticket)) = self.tickets.iter().nth(pick % self.tickets.len().max(1)) else { return };
        let (id, ticket) = (*id, *ticket);
        let late = self.naive.queue.iter().any(|wish| wish.id == id && wish.deadline <= self.naive.now);
        if late {
            self.state.expire(ticket);
            self.naive.tell(id, Fate::Late);
        }
        let decision = self.state.collect(ticket, Duration::ZERO);
        let expected = self.naive.told.remove(&id);
        let got = decision.map(|decision| match decision {
            Decision::Granted(lease) => {
                let session = lease.session.id;
                self.leases.push(lease);
                Fate::Granted(session)
            }
            Decision::Refused(Refusal::TimedOut { .. }) => Fate::Late,
            Decision::Refused(Refusal::Cancelled) => Fate::Cancelled,
            Decision::Refused(Refusal::Closed) => Fate::Closed,
            Decision::Refused(Refusal::StartFailing { .. }) => Fate::StartFailing,
            Decision::Refused(other) => panic!("{other:?}"),
        });
        let refused_late = expected == Some(Fate::Late) && !matches!(got, None | Some(Fate::Granted(_)));
        assert!(got == expected || refused_late, "waiter {id}: {got:?}, not {expected:?}");
        if got.is_some() {
            self.tickets.remove(&id);
        }
    }

    /// Whoever's time is over notices in the end; here everybody does before the clock goes on too far.
    fn expire_all(&mut self) {
        let now = self.naive.now;
        let late: Vec<u64> =
            self.naive.queue.iter().filter(|wish| wish.deadline <= now).map(|wish| wish.id).collect();
        for id in late {
            self.state.expire(self.tickets[&id]);
            self.naive.tell(id, Fate::Late);
        }
    }

    fn cancel(&mut self, pick: usize) {
        let Some(id) = self.tickets.keys().nth(pick % self.tickets.len().max(1)).copied() else { return };
        let ticket = self.tickets[&id];
        self.event(
            |state, _, fx| state.cancel(ticket, fx),
            |naive| {
                if naive.queue.iter().any(|wish| wish.id == id) {
                    naive.tell(id, Fate::Cancelled);
                }
            },
        );
    }

    fn begin_start(&mut self) {
        let (naive, now) = (&self.naive, self.naive.now);
        let room = naive.total() < naive.max && naive.starting < self.max_starts;
        let breaker = self.state.breaker(now).0;
        let missing = naive.queue.iter().filter(|wish| wish.deadline > now).count()
            + if self.primed { naive.min_idle } else { 0 };
        let on_hand = naive.idle.len() + naive.starting + naive.in_reset();
        if let Some(slot) = self.state.begin_start(now) {
            assert!(naive.open && room && breaker != BreakerState::Open, "a start that may not begin");
            assert!(breaker == BreakerState::Closed || naive.starting == 0, "one probe");
            self.naive.batch_failed &= self.naive.starting > 0;
            self.naive.starting += 1;
            self.starts.push(slot);
        } else {
            let may = naive.open && room && breaker == BreakerState::Closed && !naive.batch_failed;
            assert!(!may || missing <= on_hand, "{missing} are missing, {on_hand} are on hand");
        }
        self.compare();
    }

    fn end_start(&mut self, pick: usize, ends_well: bool) {
        if self.starts.is_empty() {
            return;
        }
        let slot = self.starts.remove(pick % self.starts.len());
        if !ends_well {
            let cause = Arc::new(Error::Cancelled);
            return self.settling(
                |state, now, fx| state.start_failed(slot, Some(cause), now, fx),
                |naive| {
                    naive.starting -= 1;
                    naive.batch_failed = naive.starting > 0;
                },
            );
        }
        let (id, alive) = (self.sessions, Rc::new(Cell::new(true)));
        self.sessions += 1;
        self.slots.insert(id, slot);
        self.lives.insert(id, Rc::clone(&alive));
        self.settling(
            |state, now, fx| state.started(slot, Fake { id, alive }, id, now, fx),
            |naive| {
                naive.starting -= 1;
                naive.batch_failed &= naive.starting > 0;
                // One too many since a resize is shed afterwards, if nobody waits for it.
                let max = mem::replace(&mut naive.max, usize::MAX);
                naive.fit(id, None);
                naive.max = max;
            },
        );
    }

    fn lease(&mut self, pick: usize) -> Option<Lease<Fake>> {
        if self.leases.is_empty() {
            return None;
        }
        let at = pick % self.leases.len();
        Some(self.leases.remove(at))
    }

    fn release(&mut self, pick: usize) {
        let Some(lease) = self.lease(pick) else { return };
        let id = lease.session.id;
        self.settling(
            |state, now, fx| state.release(lease, now, fx),
            |naive| {
                naive.held.retain(|held| *held != id);
                naive.fit(id, None);
            },
        );
    }

    fn reset(&mut self, pick: usize) {
        let Some(lease) = self.lease(pick) else { return };
        let id = lease.session.id;
        self.settling(
            |state, now, fx| {
                state.resetting(lease, now, fx);
            },
            |naive| {
                let live = naive.total() - naive.leaving.len();
                naive.held.retain(|held| *held != id);
                if !naive.open || naive.dead.contains(&id) || live > naive.max {
                    naive.leaving.push(id);
                } else {
                    naive.resetting.push((id, naive.now));
                }
            },
        );
    }

    fn discard(&mut self, pick: usize) {
        let Some(lease) = self.lease(pick) else { return };
        let id = lease.session.id;
        self.settling(
            |state, now, fx| state.discard(lease, Removal::Tainted, true, now, fx),
            |naive| {
                naive.held.retain(|held| *held != id);
                naive.leaving.push(id);
            },
        );
    }

    /// A process ends; the monitor hears of it or has not heard yet.
    fn kill(&mut self, pick: usize, heard: bool) {
        let Some((id, alive)) = self.lives.iter().nth(pick % self.lives.len().max(1)) else { return };
        let id = *id;
        alive.set(false);
        self.naive.dead.insert(id);
        if !heard {
            return;
        }
        let slot = self.slots[&id];
        let in_reach = self.naive.idle.iter().chain(&self.naive.resetting).any(|(other, _)| *other == id);
        if in_reach {
            self.settling(
                |state, now, fx| state.died(slot, now, fx),
                |naive| {
                    naive.idle.retain(|(other, _)| *other != id);
                    naive.resetting.retain(|(other, _)| *other != id);
                    naive.leaving.push(id);
                },
            );
        } else {
            self.event(|state, now, fx| state.died(slot, now, fx), |_| {});
        }
    }

    fn look(&mut self, pick: usize) {
        if self.in_hand.is_some() {
            return;
        }
        let Some((id, slot)) = self.slots.iter().nth(pick % self.slots.len().max(1)) else { return };
        let (id, slot) = (*id, *slot);
        let look = self.event(
            |state, _, _| state.look(slot),
            |naive| {
                if let Some(at) = naive.idle.iter().position(|(other, _)| *other == id) {
                    naive.looked_at = Some((id, Some(naive.idle.remove(at).1)));
                } else if let Some(at) = naive.resetting.iter().position(|(other, _)| *other == id) {
                    naive.resetting.remove(at);
                    naive.looked_at = Some((id, None));
                }
            },
        );
        self.in_hand = match look {
            Look::Idle(session) => Some((Lease { slot, session }, false)),
            Look::Reset(session) => Some((Lease { slot, session }, true)),
            Look::Nothing => None,
        };
        assert_eq!(self.in_hand.is_some(), self.naive.looked_at.is_some());
    }

    /// The monitor has read what there was: all well, unfit, or (of a reset) not all yet.
    fn looked(&mut self, how: u8) {
        let Some((lease, reset)) = self.in_hand.take() else { return };
        let (id, since) = self.naive.looked_at.take().expect("both have it in hand");
        match how % 3 {
            0 if reset => {
                // It goes on from when it was asked, as far as the next health pass is concerned.
                let asked = self.state.slots[lease.slot.index as usize].since.expect("known");
                self.event(
                    |state, _, fx| state.put_back(lease, fx),
                    |naive| {
                        if naive.open && !naive.dead.contains(&id) {
                            naive.resetting.push((id, asked));
                        } else {
                            naive.leaving.push(id);
                        }
                    },
                );
            }
            1 => self.settling(
                |state, now, fx| state.discard(lease, Removal::Misbehaved, true, now, fx),
                |naive| naive.leaving.push(id),
            ),
            _ => self.settling(|state, now, fx| state.clean(lease, now, fx), |naive| naive.fit(id, since)),
        }
    }

    fn retired(&mut self, pick: usize) {
        if self.departed.is_empty() {
            return;
        }
        let (slot, id) = self.departed.remove(pick % self.departed.len());
        self.slots.remove(&id);
        self.lives.remove(&id);
        self.settling(
            |state, now, fx| state.retired(slot, now, fx),
            |naive| naive.leaving.retain(|leaving| *leaving != id),
        );
    }

    fn play(&mut self, (kind, pick, number): (u8, usize, u16)) {
        match kind % 40 {
            0..7 => self.acquire((pick % 10 > 0).then_some(number % 3_000), i32::from(pick % 7 > 4)),
            7..12 => self.collect(pick),
            12..16 => self.begin_start(),
            16..20 => self.end_start(pick, number % 10 < 7),
            20..24 => self.release(pick),
            24..27 => self.reset(pick),
            27 => self.discard(pick),
            28 => self.kill(pick, number % 2 == 0),
            29 | 30 => self.look(pick),
            31 | 32 => self.looked(number.to_le_bytes()[0]),
            33..36 => self.retired(pick),
            36 => self.cancel(pick),
            37 => {
                self.naive.now = self.naive.now + Duration::from_millis(u64::from(number % 1_500));
                // Some notice at once that their time is over, some when it is too late.
                if pick % 2 == 0 {
                    self.expire_all();
                }
            }
            38 => self.settling(|state, now, fx| drop(state.health_pass(now, fx)), Naive::health_pass),
            _ => self.operate(pick, number),
        }
    }

    fn operate(&mut self, pick: usize, number: u16) {
        match number % 6 {
            0 => {
                self.naive.paused = self.naive.open;
                self.state.pause();
            }
            1..4 if self.naive.paused => {
                self.settling(State::resume_at, |naive| naive.paused = false);
            }
            4 if pick.is_multiple_of(4) => {
                let (min, max) = (pick % 3, pick % 3 + 1 + usize::from(number) % 3);
                self.settling(
                    |state, now, fx| state.resize(min, max, now, fx),
                    |naive| (naive.min_idle, naive.max) = (min, max),
                );
            }
            _ => {
                self.primed = true;
                self.event(State::prime_at, |_| {});
            }
        }
        self.compare();
    }

    /// Closes the pool and plays everything to its end.
    fn end(mut self) {
        self.event(|state, _, fx| state.close(fx), Naive::close);
        while !self.tickets.is_empty() {
            self.collect(0);
        }
        while !self.starts.is_empty() {
            self.end_start(0, true);
        }
        while !self.leases.is_empty() {
            self.release(0);
        }
        self.looked(2);
        while !self.departed.is_empty() {
            self.retired(0);
        }
        assert_eq!((self.state.counts().total, self.naive.total()), (0, 0), "nothing is left");
        let counters = self.state.counters();
        assert_eq!(counters.sessions_created, self.sessions);
        assert_eq!(counters.sessions_removed, self.sessions);
    }
}

impl State<Fake, u64> {
    fn resume_at(&mut self, now: Moment, fx: &mut Fx) {
        self.resume(now, fx);
    }

    fn prime_at(&mut self, _now: Moment, fx: &mut Fx) {
        self.prime(fx);
    }
}

/// Events of one sequence, on average.
const SEQUENCE: u32 = 500;

/// A hundred thousand events, or as many as the environment says.
fn cases() -> u32 {
    let events = std::env::var("REMUDA_MODEL_EVENTS").ok().and_then(|events| events.parse().ok());
    events.unwrap_or(100_000_u32).div_ceil(SEQUENCE)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_pool_does_what_a_naive_one_would_do(
        min_idle in 0..3_usize,
        extra in 1..4_usize,
        restart_if_dead in any::<bool>(),
        events in proptest::collection::vec(any::<(u8, usize, u16)>(), 1..2 * SEQUENCE as usize),
    ) {
        let mut both = Both::new(Bounds {
            min_idle,
            max_sessions: min_idle + extra,
            max_waiters: usize::MAX,
            session_timeout: Duration::from_secs(3),
            restart_if_dead,
            ..bounds()
        });
        for event in events {
            both.play(event);
        }
        both.end();
    }
}
