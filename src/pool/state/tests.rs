//! The state machine against a naive model: random events, and after each one every session is
//! where the model says, nobody was overtaken, and nobody sleeps beside an idle session.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::players::{Fake, LONG, Model, bounds, warm};
use super::*;

#[derive(Clone, Debug)]
enum Event {
    Acquire(Option<u16>),
    Cancel(usize),
    Collect,
    BeginStart,
    EndStart(usize, bool),
    Release(usize),
    Reset(usize),
    Discard(usize),
    Kill(usize, bool),
    Look(usize),
    Looked(u8),
    Retired(usize),
    Health,
    Prime,
    Pass(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => proptest::option::weighted(0.9, 0..3_000_u16).prop_map(Event::Acquire),
        1 => any::<usize>().prop_map(Event::Cancel),
        4 => Just(Event::Collect),
        4 => Just(Event::BeginStart),
        4 => (any::<usize>(), proptest::bool::weighted(0.7)).prop_map(|(pick, well)| Event::EndStart(pick, well)),
        4 => any::<usize>().prop_map(Event::Release),
        3 => any::<usize>().prop_map(Event::Reset),
        1 => any::<usize>().prop_map(Event::Discard),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(pick, tell)| Event::Kill(pick, tell)),
        3 => any::<usize>().prop_map(Event::Look),
        3 => any::<u8>().prop_map(Event::Looked),
        4 => any::<usize>().prop_map(Event::Retired),
        1 => Just(Event::Health),
        1 => Just(Event::Prime),
        3 => (0..2_000_u16).prop_map(Event::Pass),
    ]
}

fn play(model: &mut Model, event: &Event) {
    match *event {
        Event::Acquire(timeout) => model.acquire(timeout.map(|millis| Duration::from_millis(millis.into()))),
        Event::Cancel(pick) => {
            if !model.waiting.is_empty() {
                let (_, _, ticket) = model.waiting[pick % model.waiting.len()];
                model.with(|state, _, fx| state.cancel(ticket, fx));
            }
        }
        Event::Collect => model.collect(),
        Event::BeginStart => model.begin_start(),
        Event::EndStart(pick, well) => model.end_start(pick, well),
        Event::Release(pick) => model.with_lease(pick, State::release),
        Event::Reset(pick) => model.with_lease(pick, |state, lease, now, fx| {
            state.resetting(lease, now, fx);
        }),
        Event::Discard(pick) => {
            model.with_lease(pick, |state, lease, now, fx| {
                state.discard(lease, Removal::Tainted, true, now, fx);
            });
        }
        Event::Kill(pick, tell) => model.kill(pick, tell),
        Event::Look(pick) => model.look(pick),
        Event::Looked(how) => model.looked(how),
        Event::Retired(pick) => model.retired(pick),
        Event::Health => model.with(|state, now, fx| drop(state.health_pass(now, fx))),
        Event::Prime => model.with(|state, _, fx| state.prime(fx)),
        Event::Pass(millis) => model.now = model.now + Duration::from_millis(millis.into()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_loses_a_session_or_a_waiter(
        min_idle in 0..3_usize,
        extra in 1..3_usize,
        budget in proptest::option::of(1..4_u64),
        lifetime in proptest::option::of(1..5_u64),
        restart_if_dead in any::<bool>(),
        events in proptest::collection::vec(event(), 1..200),
    ) {
        let mut model = Model::new(Bounds {
            min_idle,
            max_sessions: min_idle + extra,
            budget,
            max_lifetime: lifetime.map(Duration::from_secs),
            session_timeout: Duration::from_secs(1),
            restart_if_dead,
            ..bounds()
        });
        for event in &events {
            play(&mut model, event);
        }
        model.end();
    }
}

#[test]
fn a_waiter_is_served_when_a_slot_frees_by_removal_with_min_idle_zero() {
    let mut model = Model::new(Bounds { min_idle: 0, max_sessions: 1, ..bounds() });
    model.acquire(LONG);
    model.begin_start();
    model.end_start(0, true);
    model.collect();
    model.acquire(LONG);
    assert_eq!(model.state.wanted(), 0, "there is no room");
    model.with_lease(0, |state, lease, now, fx| state.discard(lease, Removal::Dead, false, now, fx));
    assert_eq!(model.state.wanted(), 0, "its process is not gone yet");
    let mut fx = Effects::none();
    let (slot, id) = model.departing.remove(0);
    model.exist.remove(&id);
    model.state.retired(slot, model.now, &mut fx);
    assert!(fx.starts, "the spawner hears of the free slot");
    model.begin_start();
    model.end_start(0, true);
    model.collect();
    assert_eq!(model.leases.len(), 1);
}

#[test]
fn waiters_are_served_in_order_and_the_expired_are_skipped() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    model.acquire(LONG);
    model.acquire(Some(Duration::from_millis(10)));
    model.acquire(LONG);
    model.acquire(LONG);
    model.now = model.now + Duration::from_millis(20);
    model.with_lease(0, State::release);
    assert_eq!(model.woken.keys().copied().collect::<Vec<_>>(), [1], "the first one's time was over");
    model.collect();
    model.with_lease(0, State::release);
    assert_eq!(model.woken.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(model.state.counters().acquisition_timeouts, 1);
}

#[test]
fn a_grant_beats_a_time_out_that_comes_later() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    model.acquire(LONG);
    model.acquire(Some(Duration::from_millis(10)));
    let ticket = model.waiting[0].2;
    model.with_lease(0, State::release);
    model.now = model.now + Duration::from_secs(1);
    model.state.expire(ticket);
    model.collect();
    assert_eq!((model.leases.len(), model.state.counters().acquisition_timeouts), (1, 0));
}

#[test]
fn a_late_creation_is_kept() {
    let mut model = Model::new(Bounds { min_idle: 0, ..bounds() });
    model.acquire(Some(Duration::from_millis(10)));
    model.begin_start();
    model.now = model.now + Duration::from_secs(1);
    model.collect();
    model.end_start(0, true);
    assert_eq!(model.state.counts().idle, 1);
    model.acquire(LONG);
    assert_eq!((model.leases.len(), model.state.counters().sessions_created), (1, 1));
}

#[test]
fn a_failed_batch_fails_waiters_fast_and_is_one_step_of_the_back_off() {
    let mut model = Model::new(Bounds { min_idle: 2, ..bounds() });
    model.acquire(LONG);
    model.begin_start();
    model.begin_start();
    assert_eq!(model.starting.len(), 2);
    model.end_start(0, false);
    model.begin_start();
    assert_eq!(model.starting.len(), 1, "a batch takes no start after a failure");
    assert_eq!(model.waiting.len(), 1, "the other start may still succeed");
    model.end_start(0, false);
    assert_eq!(model.state.breaker(model.now).1, 1);
    let ticket = *model.woken.values().next().expect("the waiter is told");
    model.woken.clear();
    match model.state.collect(ticket, Duration::ZERO) {
        Some(Decision::Refused(Refusal::StartFailing { retry_in, .. })) => {
            assert!(retry_in >= Duration::from_millis(500));
        }
        other => panic!("{other:?}"),
    }
    model.begin_start();
    assert_eq!(model.starting.len(), 0, "no start while the breaker is open");
    model.now = model.now + Duration::from_secs(1);
    model.acquire(LONG);
    model.begin_start();
    model.begin_start();
    assert_eq!(model.starting.len(), 1, "one probe");
    model.end_start(0, true);
    model.collect();
    assert_eq!(model.leases.len(), 1);
    assert_eq!(model.state.breaker(model.now).1, 0);
}

#[test]
fn waiters_keep_waiting_while_a_session_lives_although_starts_fail() {
    let mut model = warm(Bounds { max_sessions: 2, ..bounds() }, 1);
    model.acquire(LONG);
    model.acquire(LONG);
    model.begin_start();
    model.end_start(0, false);
    assert_eq!(model.waiting.len(), 1, "the one in use will be released");
    model.with_lease(0, State::release);
    model.collect();
    assert_eq!(model.leases.len(), 1);
}

#[test]
fn a_health_pass_ends_the_idle_down_to_the_watermark_oldest_first() {
    let mut model = warm(Bounds { session_timeout: Duration::from_secs(10), ..bounds() }, 3);
    model.state.bounds.min_idle = 1;
    model.now = model.now + Duration::from_secs(20);
    model.with(|state, now, fx| drop(state.health_pass(now, fx)));
    assert_eq!(model.departing.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(model.state.counts().idle, 1);
    assert_eq!(model.state.counters().sessions_removed_by_health, 2);
}

#[test]
fn a_health_pass_leaves_idle_sessions_where_they_are() {
    let mut model = warm(bounds(), 2);
    model.now = model.now + Duration::from_secs(1);
    model.with(|state, now, fx| {
        let pass = state.health_pass(now, fx);
        assert_eq!(pass.arm.len(), 2, "it listens to those that are idle for a while");
    });
    model.with(|state, now, fx| assert!(state.health_pass(now, fx).arm.is_empty(), "once"));
    assert_eq!(model.state.counts().idle, 2);
}

#[test]
fn requests_for_a_health_pass_are_coalesced() {
    let mut model = warm(bounds(), 1);
    model.with(|state, now, fx| drop(state.health_pass(now, fx)));
    let mut wakes = 0;
    for _ in 0..50 {
        model.acquire(None);
        let lease = model.leases.pop().expect("idle");
        let mut fx = Effects::none();
        model.state.release(lease, model.now, &mut fx);
        wakes += usize::from(fx.health);
    }
    assert_eq!((wakes, model.state.counters().health_check_triggers), (1, 51), "one came with the start");
}

#[test]
fn an_overdue_reset_is_replaced() {
    let mut model = warm(bounds(), 1);
    model.acquire(None);
    model.with_lease(0, |state, lease, now, fx| assert!(!state.resetting(lease, now, fx)));
    assert_eq!(model.state.counts().resetting, 1);
    model.now = model.now + Duration::from_secs(3);
    model.with(|state, now, fx| drop(state.health_pass(now, fx)));
    assert_eq!((model.departing.len(), model.state.counters().sessions_restarted), (1, 1));
    assert!(model.state.wanted() > 0);
}

#[test]
fn an_event_that_came_before_the_reset_is_not_lost() {
    let mut model = warm(bounds(), 1);
    model.acquire(None);
    let slot = model.leases[0].slot;
    assert!(matches!(model.state.look(slot), Look::Nothing));
    model.with_lease(0, |state, lease, now, fx| assert!(state.resetting(lease, now, fx), "look at once"));
}

#[test]
fn budgets_are_lowered_by_a_tenth_at_most_and_exact_below_ten() {
    let mut state: State<Fake, u64> = State::new(Bounds { budget: Some(100), ..bounds() }, 5);
    let rolled: BTreeSet<u64> = (0..500).map(|_| state.roll_budget()).collect();
    assert!(rolled.iter().all(|budget| (90..=100).contains(budget)) && rolled.len() > 5);
    state.bounds.budget = Some(9);
    assert!((0..100).all(|_| state.roll_budget() == 9));
}

#[test]
fn a_spent_session_is_recycled_and_replaced_even_above_the_watermark() {
    let mut model = warm(Bounds { budget: Some(2), ..bounds() }, 1);
    model.state.bounds.min_idle = 0;
    for _ in 0..2 {
        model.acquire(None);
        model.with_lease(0, State::release);
    }
    assert_eq!((model.departing.len(), model.state.counters().sessions_recycled), (1, 1));
    assert_eq!(model.state.wanted(), 1);
    model.begin_start();
    assert_eq!(model.state.wanted(), 0, "one replacement for one");
}

#[test]
fn a_fork_bomb_of_failing_starts_is_bounded() {
    let mut model = Model::new(Bounds { min_idle: 2, ..bounds() });
    let mut starts = 0;
    for _ in 0..2_000 {
        model.acquire(LONG);
        model.begin_start();
        while !model.starting.is_empty() {
            starts += 1;
            model.end_start(0, false);
        }
        model.collect();
        model.now = model.now + Duration::from_millis(1);
    }
    assert!(starts <= 5, "{starts} starts in two seconds");
}

#[test]
fn the_health_interval_is_what_was_asked_for() {
    // Peer defect A10: 30 s were silently stretched to 60 s.
    let mut model = Model::new(Bounds { min_idle: 0, ..bounds() });
    model.with(|state, now, fx| {
        assert_eq!(state.health_pass(now, fx).next, now + Duration::from_secs(30));
    });
}

#[test]
fn the_next_health_pass_comes_when_the_first_idle_time_is_over() {
    let mut model = warm(Bounds { session_timeout: Duration::from_secs(10), ..bounds() }, 2);
    model.state.bounds.min_idle = 1;
    let since = model.now;
    model.now = model.now + Duration::from_secs(1);
    model.with(|state, now, fx| {
        assert_eq!(state.health_pass(now, fx).next, since + Duration::from_secs(10));
    });
}

#[test]
fn one_who_tries_once_gets_an_idle_session_beside_expired_waiters() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    model.acquire(LONG);
    model.acquire(Some(Duration::from_millis(10)));
    model.now = model.now + Duration::from_secs(1);
    model.with_lease(0, State::release);
    model.acquire(None);
    assert_eq!(model.leases.len(), 1);
}

#[test]
fn a_session_that_was_rested_lies_where_it_lay() {
    let mut model = warm(Bounds { session_timeout: Duration::from_secs(10), ..bounds() }, 2);
    model.state.bounds.min_idle = 1;
    let ids = |model: &Model| -> Vec<u64> {
        let place = |index: &u32| match &model.state.slots[*index as usize].place {
            Place::Idle(session) => session.id,
            other => panic!("{other:?}"),
        };
        model.state.idle.iter().map(place).collect()
    };
    let since = model.now;
    model.now = model.now + Duration::from_secs(5);
    model.acquire(None);
    model.with_lease(0, State::release);
    assert_eq!(ids(&model), [0, 1]);
    model.now = model.now + Duration::from_secs(1);
    model.look_at(0);
    assert_eq!(ids(&model), [1]);
    model.looked(2);
    assert_eq!(ids(&model), [0, 1], "where it was");
    model.with(|state, now, fx| {
        assert_eq!(state.health_pass(now, fx).next, since + Duration::from_secs(10));
    });
}
