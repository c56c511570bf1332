//! Who leaves when, and what an operator asks for.

use super::players::{Fake, LONG, Model, bounds, error, warm};
use super::*;
use crate::pool::config::IdleOrder;

const AGE: Duration = Duration::from_secs(60);

/// `count` idle sessions, all older than sessions get, before anybody has noticed.
fn old(count: usize, bounds: Bounds) -> Model {
    let mut model = warm(Bounds { max_lifetime: Some(AGE), ..bounds }, count);
    model.now = model.now + 2 * AGE;
    model
}

fn pass(model: &mut Model) {
    model.with(|state, now, fx| drop(state.health_pass(now, fx)));
}

fn start(model: &mut Model) {
    model.begin_start();
    model.end_start(0, true);
}

#[test]
fn an_old_session_serves_until_its_replacement_is_there() {
    let mut model = old(1, bounds());
    pass(&mut model);
    assert_eq!((model.state.counts().idle, model.departing.len()), (1, 0));
    assert_eq!(model.state.wanted(), 1, "its replacement is ordered");
    model.acquire(None);
    assert_eq!(model.leases.len(), 1, "and it still serves");
    model.with_lease(0, State::release);
    start(&mut model);
    assert_eq!((model.state.counts().idle, model.departing.len()), (1, 1), "now it leaves");
    assert_eq!(model.state.wanted(), 0);
    assert_eq!(model.state.counters().sessions_recycled, 1);
}

#[test]
fn at_the_maximum_the_old_one_makes_room_first() {
    let mut model = old(3, bounds());
    pass(&mut model);
    assert_eq!((model.state.counts().idle, model.departing.len()), (2, 1));
    assert_eq!(model.state.wanted(), 0, "no room until it is gone");
    model.retired(0);
    // The next one is already leaving; each makes room for one.
    assert_eq!((model.state.counts().idle, model.departing.len()), (2, 0));
    start(&mut model);
    assert_eq!((model.state.counts().idle, model.departing.len()), (2, 1));
}

#[test]
fn first_in_first_out_lends_the_one_that_was_idle_longest_and_aging_ones_last() {
    let bounds = Bounds { idle_order: IdleOrder::Fifo, max_sessions: 4, ..bounds() };
    let mut model = warm(bounds, 3);
    let lent = |model: &mut Model| {
        model.acquire(None);
        let id = model.leases[0].session.id;
        model.with_lease(0, State::release);
        id
    };
    assert_eq!((0..4).map(|_| lent(&mut model)).collect::<Vec<_>>(), [0, 1, 2, 0]);
    model.with(|state, now, fx| assert_eq!(state.outdate(now, fx), 3));
    // One of the three ages, and serves only when nothing else is there.
    let aging = model.state.slots.iter().position(|slot| slot.aging.is_some()).expect("one") as u64;
    assert!((0..6).all(|_| lent(&mut model) != aging));
    (0..3).for_each(|_| model.acquire(None));
    assert_eq!(model.leases[2].session.id, aging);
}

#[test]
fn sessions_of_one_age_leave_one_after_the_other() {
    let mut model = old(3, Bounds { max_sessions: 6, ..bounds() });
    for left in (0..3).rev() {
        pass(&mut model);
        assert_eq!(model.state.wanted(), 1, "one at a time");
        start(&mut model);
        assert_eq!((model.state.counts().idle, model.departing.len()), (3, 1), "{left} to go");
        model.retired(0);
    }
    pass(&mut model);
    assert_eq!((model.state.wanted(), model.departing.len()), (0, 0), "all are young");
}

#[test]
fn as_many_leave_together_as_may() {
    let mut model = old(3, Bounds { max_sessions: 9, max_starts: 9, max_retirements: 2, ..bounds() });
    pass(&mut model);
    assert_eq!(model.state.wanted(), 2);
}

#[test]
fn while_starts_fail_the_old_ones_stay() {
    let mut model = old(3, Bounds { max_sessions: 4, ..bounds() });
    pass(&mut model);
    for _ in 0..5 {
        model.begin_start();
        model.end_start(0, false);
        model.now = model.now + Duration::from_secs(40);
        pass(&mut model);
    }
    assert_eq!((model.state.counts().idle, model.departing.len()), (3, 0));
}

#[test]
fn a_busy_old_session_leaves_at_the_maximum_when_it_comes_back() {
    let mut model = old(3, bounds());
    (0..3).for_each(|_| model.acquire(None));
    pass(&mut model);
    model.acquire(LONG);
    assert_eq!(model.departing.len(), 0);
    (0..3).for_each(|_| model.with_lease(0, State::release));
    assert_eq!(model.departing.len(), 1);
    assert_eq!(model.state.counts().busy, 1, "the waiter got another one");
}

#[test]
fn an_execution_budget_is_never_overdrawn_and_its_last_tenth_is_for_the_replacement() {
    let mut model = warm(Bounds { budget: Some(100), ..bounds() }, 1);
    model.state.slots[0].budget = 95;
    for executions in 1..=100 {
        model.acquire(None);
        assert_eq!(model.leases[0].session.executions + 1, executions);
        model.with_lease(0, State::release);
        assert_eq!(model.state.wanted(), usize::from(executions >= 95), "after {executions}");
    }
    assert_eq!((model.state.counts().idle, model.departing.len()), (0, 1), "it is spent");
    start(&mut model);
    assert_eq!((model.state.counts().idle, model.state.wanted()), (1, 0), "one replacement for one");
}

#[test]
fn everything_is_replaced_in_turn() {
    let mut model = warm(Bounds { max_sessions: 4, ..bounds() }, 3);
    model.acquire(None);
    model.with(|state, now, fx| assert_eq!(state.outdate(now, fx), 3));
    let before: Vec<u64> = model.exist.iter().copied().collect();
    for _ in 0..20 {
        start(&mut model);
        while !model.departing.is_empty() {
            model.retired(0);
        }
        if let Some(at) = model.leases.iter().position(|lease| before.contains(&lease.session.id)) {
            model.with_lease(at, State::release);
        }
        assert!(model.state.alive() >= 2, "the pool stays able to serve");
    }
    assert_eq!(model.state.outdated(), 0);
    assert!(before.iter().all(|id| !model.exist.contains(id)));
    assert_eq!(model.state.counts().idle, 3);
}

#[test]
fn a_smaller_pool_lets_go_of_idle_ones_now_and_of_busy_ones_later() {
    let mut model = warm(Bounds { max_sessions: 3, ..bounds() }, 3);
    (0..2).for_each(|_| model.acquire(None));
    model.with(|state, now, fx| state.resize(1, 1, now, fx));
    assert_eq!((model.state.counts().idle, model.departing.len()), (0, 1));
    model.with_lease(0, State::release);
    assert_eq!((model.state.counts().busy, model.departing.len()), (1, 2));
    model.with_lease(0, State::release);
    assert_eq!((model.state.counts().idle, model.departing.len()), (1, 2), "one may stay");
    model.retired(0);
    model.retired(0);
    assert_eq!(model.state.wanted(), 0);
}

#[test]
fn a_larger_pool_starts_what_is_missing() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    model.acquire(None);
    model.acquire(LONG);
    assert_eq!(model.state.wanted(), 0);
    let mut fx = Effects::none();
    model.state.resize(2, 4, model.now, &mut fx);
    assert!(fx.starts);
    assert_eq!(model.state.wanted(), 3);
}

#[test]
fn a_paused_pool_lets_wait_and_serves_in_order_when_it_is_resumed() {
    let mut model = warm(bounds(), 1);
    model.state.pause();
    for _ in 0..2 {
        // Not `acquire`, which would see somebody sleep beside an idle session.
        let mut fx = Effects::none();
        let mut claim = Claim::new(1, None);
        assert!(matches!(model.state.take(&mut claim, model.now, &mut fx), Take::Empty));
        let id = model.next_waiter;
        model.next_waiter += 1;
        let until = model.now + AGE;
        let ticket = model.state.enqueue(claim, until, id, model.now, &mut fx).expect("queued");
        model.waiting.push_back((id, until, ticket));
        assert!(fx.wake.is_empty());
    }
    assert!(model.state.is_paused());
    model.with(|state, now, fx| assert!(state.resume(now, fx)));
    assert_eq!(model.woken.keys().copied().collect::<Vec<_>>(), [0]);
    model.with(|state, _, fx| {
        state.pause();
        state.close(fx);
    });
    assert!(!model.state.resume(model.now, &mut Effects::none()), "what is closed stays closed");
}

#[test]
fn a_session_that_holds_too_much_is_replaced() {
    let mut model = warm(Bounds { max_session_memory: Some(1_000), max_sessions: 4, ..bounds() }, 2);
    let slots: Vec<SlotId> = model.slots.values().copied().collect();
    model.state.weighed(slots[0], 1_001, model.now);
    model.with(State::enforce_memory);
    assert_eq!(model.state.wanted(), 0, "nobody has used it: another would weigh the same");
    (0..2).for_each(|_| model.acquire(None));
    (0..2).for_each(|_| model.with_lease(0, State::release));
    model.state.weighed(slots[0], 1_001, model.now);
    model.state.weighed(slots[1], 1_000, model.now);
    model.with(State::enforce_memory);
    start(&mut model);
    assert_eq!(model.departing.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [slots[0]]);
}

#[test]
fn a_session_that_was_weighed_in_use_is_weighed_again_when_it_comes_back() {
    let mut model = warm(Bounds { max_session_memory: Some(1_000), ..bounds() }, 1);
    model.acquire(None);
    let slot = model.leases[0].slot;
    model.state.weighed(slot, 500, model.now);
    model.with_lease(0, State::release);
    model.now = model.now + Duration::from_secs(2);
    let mut weigh = Vec::new();
    model.with(|state, now, fx| weigh.extend(state.health_pass(now, fx).weigh));
    assert_eq!(weigh.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [slot]);
}

#[test]
fn the_largest_leaves_when_all_idle_ones_hold_too_much_and_newcomers_stay() {
    let mut model = warm(Bounds { idle_memory_budget: Some(2_500), max_sessions: 4, ..bounds() }, 3);
    let slots: Vec<SlotId> = model.slots.values().copied().collect();
    for (slot, bytes) in slots.iter().zip([900, 1_000, 800]) {
        model.state.weighed(*slot, bytes, model.now);
    }
    model.with(State::enforce_memory);
    assert_eq!(model.state.wanted(), 0, "nobody has used them: others would weigh the same");
    (0..3).for_each(|_| model.acquire(None));
    (0..3).for_each(|_| model.with_lease(0, State::release));
    for (slot, bytes) in slots.iter().zip([900, 1_000, 800]) {
        model.state.weighed(*slot, bytes, model.now);
    }
    model.with(State::enforce_memory);
    start(&mut model);
    assert_eq!(model.departing.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [slots[1]]);
    assert_eq!(model.state.memory_held().0, 1_700);
}

#[test]
fn a_forgotten_lease_is_reported_once_and_its_place_can_be_taken_back() {
    let mut model = warm(Bounds { leak_after: Some(AGE), max_sessions: 1, ..bounds() }, 1);
    model.acquire(None);
    let mut leaks = Vec::new();
    for _ in 0..3 {
        model.now = model.now + 2 * AGE / 3;
        model.with(|state, now, fx| leaks.extend(state.health_pass(now, fx).leaks));
    }
    assert_eq!(leaks.len(), 1);
    assert_eq!(leaks[0].held, 4 * AGE / 3);
    let lease = model.leases.remove(0);
    let id = lease.session.id;
    let mut fx = Effects::none();
    model.state.reclaim(lease.slot, model.now, &mut fx).expect("it is held");
    assert!(model.state.reclaim(lease.slot, model.now, &mut fx).is_none(), "once");
    model.departing.push((lease.slot, id));
    model.verify();
    model.retired(0);
    start(&mut model);
    assert_eq!(model.state.counts().idle, 1, "the place is used again");
    let mut fx = Effects::none();
    model.state.release(lease, model.now, &mut fx);
    assert_eq!(fx.orphans.iter().map(|orphan: &Fake| orphan.id).collect::<Vec<_>>(), [id]);
    model.verify();
}

#[test]
fn a_session_that_was_silent_for_long_is_named_for_a_ping_and_can_be_taken_in_hand() {
    let mut model = warm(Bounds { ping_interval: Some(AGE), ..bounds() }, 1);
    let mut named = Vec::new();
    model.with(|state, now, fx| named.extend(state.health_pass(now, fx).ping));
    assert!(named.is_empty(), "it was heard of just now");
    model.now = model.now + AGE;
    model.with(|state, now, fx| named.extend(state.health_pass(now, fx).ping));
    let lease = model.state.check_out(named[0]).expect("it is idle");
    assert!(model.state.check_out(named[0]).is_none());
    assert_eq!(model.state.counts().resetting, 1);
    model.with(|state, now, fx| state.clean(lease, now, fx));
    named.clear();
    model.with(|state, now, fx| named.extend(state.health_pass(now, fx).ping));
    assert!(named.is_empty());
}

#[test]
fn to_be_rested_is_no_use_and_does_not_restart_the_idle_time() {
    let idle = Duration::from_secs(300);
    let mut model = warm(Bounds { ping_interval: Some(AGE), session_timeout: idle, ..bounds() }, 1);
    model.state.bounds.min_idle = 0;
    let slot = *model.slots.values().next().expect("one");
    for by_the_monitor in [true, false, true, false, true] {
        model.now = model.now + AGE;
        assert_eq!(model.departing.len(), 0);
        let lease = if by_the_monitor {
            let Look::Idle(session) = model.state.look(slot) else { panic!("it is idle") };
            Lease { slot, session }
        } else {
            model.state.check_out(slot).expect("it is idle")
        };
        model.with(|state, now, fx| state.clean(lease, now, fx));
        pass(&mut model);
    }
    assert_eq!(model.departing.len(), 1);
}

#[test]
fn a_check_that_is_never_content_backs_off() {
    let mut model = warm(Bounds { max_sessions: 2, ..bounds() }, 1);
    let mut starts = 0;
    for _ in 0..500 {
        model.acquire(LONG);
        model.collect();
        if !model.leases.is_empty() {
            let lease = model.leases.remove(0);
            model.with(|state, now, fx| state.refuse(lease, now, fx));
        }
        while !model.departing.is_empty() {
            model.retired(0);
        }
        model.begin_start();
        while !model.starting.is_empty() {
            starts += 1;
            model.end_start(0, true);
        }
        model.now = model.now + Duration::from_millis(1);
    }
    assert!(starts <= 3, "{starts} starts in half a second");
}

#[test]
fn expected_callers_raise_the_watermark_up_to_the_maximum_and_hold_the_idle_ones() {
    let mut model = warm(bounds(), 1);
    assert_eq!(model.state.wanted(), 0);
    model.with(|state, _, fx| state.set_target_idle(100, fx));
    assert_eq!(model.state.wanted(), 2, "three sessions at most");
    start(&mut model);
    start(&mut model);
    model.now = model.now + 2 * bounds().session_timeout;
    pass(&mut model);
    assert_eq!(model.state.counts().idle, 3, "no idle time-out while they are expected to be needed");
    model.with(|state, _, fx| state.set_target_idle(0, fx));
    pass(&mut model);
    assert_eq!((model.state.counts().idle, model.departing.len()), (1, 2), "back to min_idle");
    assert_eq!(model.state.wanted(), 0);
}

#[test]
fn a_lease_that_began_after_the_report_of_a_leak_is_not_taken_back() {
    let mut model = warm(Bounds { leak_after: Some(AGE), max_sessions: 1, ..bounds() }, 1);
    model.acquire(None);
    model.now = model.now + 2 * AGE;
    let mut leaks = Vec::new();
    model.with(|state, now, fx| leaks.extend(state.health_pass(now, fx).leaks));
    // Before the maintenance thread takes it back, its user returns it and somebody else gets it.
    model.with_lease(0, State::release);
    model.acquire(None);
    assert!(
        model.state.reclaim(leaks[0].slot, model.now, &mut Effects::none()).is_none(),
        "this user has just come"
    );
    model.verify();
}

#[test]
fn what_a_session_held_is_forgotten_when_it_is_gone() {
    let mut model = warm(bounds(), 2);
    let slots: Vec<SlotId> = model.slots.values().copied().collect();
    for slot in slots {
        model.state.weighed(slot, 1_000, model.now);
    }
    assert_eq!(model.state.memory_held(), (2_000, 2_000));
    model.acquire(None);
    model.with_lease(0, |state, lease, now, fx| state.discard(lease, Removal::Discarded, false, now, fx));
    model.retired(0);
    assert_eq!(model.state.memory_held(), (1_000, 1_000));
}

#[test]
fn a_limit_below_what_a_new_session_holds_does_not_replace_sessions_without_end() {
    let bounds = Bounds { max_session_memory: Some(1_000), max_sessions: 4, ..bounds() };
    let mut model = warm(bounds, 1);
    for _ in 0..20 {
        let slots: Vec<SlotId> = model.slots.values().copied().collect();
        for slot in slots {
            model.state.weighed(slot, 2_000, model.now);
        }
        model.with(State::enforce_memory);
        start(&mut model);
        while !model.departing.is_empty() {
            model.retired(0);
        }
    }
    assert_eq!(model.next_session, 1, "nobody has used it: another one would weigh the same");
}

#[test]
fn a_long_lease_does_not_keep_other_old_sessions_from_being_replaced() {
    let mut model = warm(Bounds { max_sessions: 4, ..bounds() }, 3);
    (0..3).for_each(|_| model.acquire(None));
    model.leases.sort_by_key(|lease| lease.slot.index);
    (1..3).for_each(|_| model.with_lease(1, State::release));
    model.with(|state, now, fx| assert_eq!(state.outdate(now, fx), 3));
    for _ in 0..5 {
        start(&mut model);
        while !model.departing.is_empty() {
            model.retired(0);
        }
    }
    assert_eq!(model.state.outdated(), 1, "only the one in use is left");
    model.with_lease(0, State::release);
    start(&mut model);
    model.retired(0);
    assert_eq!(model.state.outdated(), 0);
}

#[test]
fn sessions_that_come_back_to_be_thrown_away_count_as_used_ones_between_refusals() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    for _ in 0..10 {
        for refused in [true, false] {
            model.acquire(None);
            model.with_lease(0, |state, lease, now, fx| {
                if refused {
                    state.refuse(lease, now, fx);
                } else {
                    state.discard(lease, Removal::Fresh, true, now, fx);
                }
            });
            model.retired(0);
            start(&mut model);
        }
    }
    assert_eq!(model.state.counters().start_failures, 0, "never two refusals in a row");
    assert_eq!(model.state.counts().idle, 1);
}

#[test]
fn the_error_of_an_earlier_start_is_dropped_without_the_lock() {
    let mut model = warm(bounds(), 1);
    model.acquire(None);
    model.acquire(LONG);
    let first = error();
    let watch = Arc::downgrade(&first);
    let mut fail = |cause| {
        let slot = model.state.begin_start(model.now).expect("one is wanted");
        let mut fx = Effects::none();
        model.state.start_failed(slot, Some(cause), model.now, &mut fx);
        model.now = model.now + AGE;
        fx
    };
    drop(fail(first));
    let fx = fail(error());
    assert!(watch.upgrade().is_some(), "a user's hook may have made it: it leaves with the effects");
    assert!(!fx.is_nothing(), "what is nothing is forgotten");
    drop(fx);
    assert!(watch.upgrade().is_none());
}

#[test]
fn a_breaker_that_refusals_open_is_counted() {
    let mut model = warm(Bounds { max_sessions: 1, ..bounds() }, 1);
    for _ in 0..3 {
        model.acquire(None);
        model.with_lease(0, State::refuse);
        model.retired(0);
        start(&mut model);
    }
    assert_eq!(model.state.breaker(model.now).1, 1);
    assert_eq!(model.state.counters().breaker_opened, 1);
}
