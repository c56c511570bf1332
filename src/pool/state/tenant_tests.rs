//! Tenants: fair shares, quotas, and that nobody who may have a session waits for ever.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::error::QuotaKind;
use crate::pool::explain::WaitReason;

/// A session that lives until somebody kills it.
#[derive(Debug)]
struct Fake;

impl Resource for Fake {
    type Handle = ();

    fn is_alive(&self) -> bool {
        true
    }

    fn executions(&self) -> u64 {
        0
    }
}

type Name = Option<&'static str>;

/// A pool and those who use it, by name.
struct Play {
    state: State<Fake, u64>,
    now: Moment,
    /// Who waits or waited, by the number that is woken.
    asked: BTreeMap<u64, (Name, Ticket, Moment)>,
    leases: Vec<(Name, Lease<Fake>)>,
    /// The names of those who were served, in order.
    served: Rc<RefCell<Vec<Name>>>,
    next: u64,
}

fn bounds(sessions: usize) -> Bounds {
    Bounds {
        min_idle: 0,
        max_sessions: sessions,
        max_starts: sessions,
        max_waiters: usize::MAX,
        ..players::bounds()
    }
}

fn who(name: Name, priority: i32) -> Claim {
    let who = Who { tenant: name.map(Arc::from), label: None, priority };
    Claim::new(7, (name.is_some() || priority != 0).then(|| Box::new(who)))
}

const HOUR: Duration = Duration::from_secs(3_600);

impl Play {
    /// `sessions` idle ones.
    fn new(sessions: usize, default: Quota, of: &[(&'static str, Quota)]) -> Play {
        let of = of.iter().map(|(name, quota)| (Arc::from(*name), *quota));
        let mut state = State::new(bounds(sessions), 42).with_quotas(default, of);
        let now = Moment::FAR_FUTURE - Duration::from_secs(1_000_000);
        let mut fx = Effects::none();
        state.bounds.min_idle = sessions;
        state.prime(&mut fx);
        while let Some(slot) = state.begin_start(now) {
            state.started(slot, Fake, (), now, &mut fx);
        }
        assert_eq!(state.counts().idle, sessions);
        Play { state, now, asked: BTreeMap::new(), leases: Vec::new(), served: Rc::default(), next: 0 }
    }

    fn ask(&mut self, name: Name) {
        self.ask_with(name, 0, HOUR).expect("nothing refuses it");
    }

    fn ask_with(&mut self, name: Name, priority: i32, timeout: Duration) -> Result<(), Refusal> {
        let mut fx = Effects::none();
        let mut claim = who(name, priority);
        if let Take::Hit(lease) = self.state.take(&mut claim, self.now, &mut fx) {
            self.leases.push((name, lease));
            self.served.borrow_mut().push(name);
            return Ok(());
        }
        let (id, deadline) = (self.next, self.now + timeout);
        self.next += 1;
        let ticket = self.state.enqueue(claim, deadline, id, self.now, &mut fx)?;
        self.asked.insert(id, (name, ticket, deadline));
        self.wake(fx);
        Ok(())
    }

    fn wake(&mut self, fx: Effects<Fake, u64>) {
        for id in fx.wake {
            let (name, ticket, _) = self.asked.remove(&id).expect("each is woken once");
            if let Some(Decision::Granted(lease)) = self.state.collect(ticket, Duration::ZERO) {
                self.leases.push((name, lease));
                self.served.borrow_mut().push(name);
            }
        }
    }

    /// The `pick`th lease ends.
    fn give_back(&mut self, pick: usize) {
        let (_, lease) = self.leases.remove(pick);
        let mut fx = Effects::none();
        self.state.release(lease, self.now, &mut fx);
        self.wake(fx);
    }

    /// The oldest lease of a tenant ends.
    fn give_back_of(&mut self, name: Name) {
        let pick = self.leases.iter().position(|(holder, _)| *holder == name).expect("it has one");
        self.give_back(pick);
    }

    /// The next `count` who are served, while leases end in the order in which they began.
    fn next_served(&mut self, count: usize) -> Vec<Name> {
        let before = self.served.borrow().len();
        while self.served.borrow().len() < before + count {
            self.give_back(0);
        }
        self.served.borrow()[before..][..count].to_vec()
    }

    fn held(&self, name: Name) -> usize {
        self.leases.iter().filter(|(holder, _)| *holder == name).count()
    }

    fn row(&self, name: &str) -> TenantRow {
        let rows = self.state.tenant_rows();
        rows.into_iter().find(|row| row.name.as_ref() == name).expect("it has a row")
    }
}

const A: Name = Some("alice");
const B: Name = Some("bob");

#[test]
fn a_long_queue_of_one_tenant_does_not_delay_another() {
    let mut play = Play::new(1, Quota::new(), &[]);
    for _ in 0..50 {
        play.ask(A);
    }
    play.ask(B);
    assert_eq!(play.next_served(4), [A, B, A, A], "bob stands behind one of alice's, not behind fifty");
}

#[test]
fn sessions_in_use_follow_the_weights() {
    let mut play = Play::new(8, Quota::new(), &[("bob", Quota::new().weight(3))]);
    for _ in 0..100 {
        play.ask(A);
        play.ask(B);
    }
    play.next_served(40);
    assert_eq!((play.held(A), play.held(B)), (2, 6));
}

#[test]
fn those_without_a_name_share_like_a_tenant() {
    let mut play = Play::new(4, Quota::new(), &[]);
    for _ in 0..50 {
        play.ask(None);
    }
    for _ in 0..10 {
        play.ask(A);
    }
    play.next_served(12);
    assert_eq!((play.held(None), play.held(A)), (2, 2));
}

#[test]
fn a_tenant_at_its_quota_waits_beside_idle_sessions_and_blocks_nobody() {
    let mut play = Play::new(3, Quota::new().max_leases(1), &[]);
    (play.state.bounds.min_idle, play.state.bounds.max_sessions) = (0, 9);
    play.ask(A);
    play.ask(A);
    assert_eq!((play.held(A), play.state.counts().waiters, play.state.counts().idle), (1, 1, 2));
    assert_eq!(play.state.wanted(), 0, "no start helps alice");
    play.ask(B);
    play.ask(None);
    assert_eq!((play.held(B), play.held(None)), (1, 1), "they pass her by");
    play.give_back_of(B);
    assert_eq!((play.held(A), play.state.counts().idle), (1, 1), "still one is the most she may have");
    play.give_back_of(A);
    assert_eq!((play.held(A), play.state.counts().waiters, play.state.counts().idle), (1, 0, 1));
}

#[test]
fn the_queue_is_explained_in_the_order_in_which_it_is_served() {
    let carol = Some("carol");
    let quotas = [("bob", Quota::new().weight(3)), ("carol", Quota::new().max_leases(1))];
    let mut play = Play::new(1, Quota::new(), &quotas);
    (play.state.bounds.min_idle, play.state.bounds.max_sessions) = (0, 20);
    for name in [None, A, A, carol, B, B, carol, B, A, B, None] {
        play.ask(name);
    }
    let rows = play.state.waiter_rows(play.now, 100);
    assert_eq!(rows.last().map(|row| (row.tenant.as_deref(), row.reason)), Some((carol, WaitReason::Quota)));
    let (quota, ahead) = rows.iter().map(|row| (row.reason == WaitReason::Quota, row.ahead)).unzip();
    let (quota, ahead): (Vec<bool>, Vec<usize>) = (quota, ahead);
    assert_eq!((quota.iter().filter(|quota| **quota).count(), ahead), (1, (0..10).collect()));
    let explained: Vec<_> = rows[..9].iter().map(|row| row.tenant.clone()).collect();
    assert_eq!(play.state.waiter_rows(play.now, 3).len(), 3, "no more than asked for");

    let before = play.served.borrow().len();
    while let Some(slot) = play.state.begin_start(play.now) {
        let mut fx = Effects::none();
        play.state.started(slot, Fake, (), play.now, &mut fx);
        play.wake(fx);
    }
    let served: Vec<_> = play.served.borrow()[before..].iter().map(|name| name.map(str::to_owned)).collect();
    assert_eq!(served, explained);
    play.state.pause();
    assert!(play.state.waiter_rows(play.now, 9).iter().all(|row| row.reason == WaitReason::Paused));
}

#[test]
fn every_way_in_which_a_lease_ends_makes_room_for_the_tenant() {
    type End = fn(&mut State<Fake, u64>, Lease<Fake>, Moment, &mut Effects<Fake, u64>);
    let ends: [End; 3] = [
        State::release,
        |state, lease, now, fx| {
            state.resetting(lease, now, fx);
        },
        |state, lease, now, fx| state.discard(lease, Removal::Tainted, true, now, fx),
    ];
    for end in ends {
        let mut play = Play::new(2, Quota::new().max_leases(1), &[]);
        play.ask(A);
        play.ask(A);
        assert_eq!(play.state.counts().idle, 1);
        let (_, lease) = play.leases.remove(0);
        let mut fx = Effects::none();
        end(&mut play.state, lease, play.now, &mut fx);
        play.wake(fx);
        assert_eq!((play.held(A), play.row("alice").leases, play.row("alice").queued), (1, 1, 0));
    }
}

#[test]
fn who_tries_once_hears_of_the_quota_and_a_full_queue_refuses_at_once() {
    let mut play = Play::new(2, Quota::new().max_leases(1).max_queued(1), &[]);
    play.ask(A);
    let refusal = play.state.give_up_at_once(&who(A, 0), play.now);
    assert!(matches!(refusal, Refusal::Quota { limit: 1, kind: QuotaKind::Leases, .. }), "{refusal:?}");
    let refusal = play.state.give_up_at_once(&who(B, 0), play.now);
    assert!(matches!(refusal, Refusal::TimedOut { ahead: 0, max_leases: None }), "{refusal:?}");
    play.ask(A);
    match play.ask_with(A, 0, HOUR) {
        Err(Refusal::Quota { tenant, limit: 1, kind: QuotaKind::Queued }) => assert_eq!(&*tenant, "alice"),
        other => panic!("{other:?}"),
    }
    assert_eq!((play.row("alice").refused, play.row("alice").served), (2, 1));
}

#[test]
fn within_a_tenant_the_higher_priority_comes_first_and_then_the_earlier() {
    let mut play = Play::new(1, Quota::new(), &[]);
    play.ask(A);
    for (priority, millis) in [(0, 1), (5, 2), (-1, 3), (5, 4)] {
        play.ask_with(A, priority, HOUR + Duration::from_millis(millis)).unwrap();
    }
    let mut order = Vec::new();
    while !play.asked.is_empty() {
        let before: Vec<u64> = play.asked.keys().copied().collect();
        play.give_back(0);
        order.extend(before.into_iter().filter(|id| !play.asked.contains_key(id)));
    }
    assert_eq!(order, [1, 3, 0, 2]);
}

#[test]
fn a_high_priority_counts_for_nothing_between_tenants() {
    let mut play = Play::new(1, Quota::new(), &[]);
    play.ask(A);
    play.ask_with(A, i32::MIN, HOUR).unwrap();
    play.ask_with(B, i32::MAX, HOUR).unwrap();
    assert_eq!(play.next_served(2), [A, B], "alice was served before bob came");
}

#[test]
fn ever_new_names_do_not_keep_an_old_one_waiting() {
    let mut play = Play::new(1, Quota::new(), &[]);
    play.ask(A);
    play.ask(A);
    for name in ["b", "c", "d", "e", "f"] {
        play.ask(Some(name));
        play.give_back(0);
        if play.held(A) == 1 {
            return;
        }
    }
    assert_eq!(play.served.borrow().last(), Some(&A), "alice is served once those before her were");
}

#[test]
fn nothing_is_kept_of_a_tenant_that_has_left() {
    let mut play = Play::new(2, Quota::new(), &[("bob", Quota::new().max_leases(1))]);
    for number in 0..1_000 {
        let name: &'static str = Box::leak(format!("user {number}").into_boxed_str());
        play.ask(Some(name));
        play.give_back(0);
    }
    let rows: Vec<_> = play.state.tenant_rows().into_iter().map(|row| row.name).collect();
    assert_eq!(rows, [Arc::from("bob")], "but what is configured stays");
}

#[test]
fn a_cancelled_and_an_expired_waiter_leave_their_line() {
    let mut play = Play::new(1, Quota::new().max_queued(2), &[]);
    play.ask(None);
    play.ask(A);
    play.ask_with(A, 0, Duration::from_millis(5)).unwrap();
    let tickets: Vec<Ticket> = play.asked.values().map(|(_, ticket, _)| *ticket).collect();
    let mut fx = Effects::none();
    play.state.cancel(tickets[0], &mut fx);
    play.wake(fx);
    assert_eq!((play.row("alice").queued, play.row("alice").refused), (1, 1));
    play.now = play.now + Duration::from_millis(5);
    play.state.expire(tickets[1]);
    assert!(play.state.tenant_rows().is_empty(), "nothing holds the entry");
    let decision = play.state.collect(tickets[1], Duration::ZERO);
    assert!(matches!(decision, Some(Decision::Refused(Refusal::TimedOut { ahead: 0, .. }))), "{decision:?}");
}

#[test]
fn closing_refuses_the_waiters_of_every_tenant() {
    let mut play = Play::new(1, Quota::new().max_leases(1), &[]);
    for name in [A, A, B, None] {
        play.ask(name);
    }
    let mut fx = Effects::none();
    play.state.close(&mut fx);
    play.wake(fx);
    assert!(play.asked.is_empty());
    assert_eq!(play.held(A), 1);
}

#[test]
fn a_thread_that_holds_a_session_is_known_when_it_waits_and_only_then() {
    let mut play = Play::new(2, Quota::new(), &[]);
    let mut mine = Claim::new(7, None);
    assert!(play.state.nested(&mine).is_none());
    let Take::Hit(lease) = play.state.take(&mut mine, play.now, &mut Effects::none()) else { panic!("idle") };
    let nested = play.state.nested(&mine).expect("held");
    assert!(std::ptr::eq(nested.held_at, mine.place) && nested.first);
    assert!(!play.state.nested(&mine).expect("held").first);
    assert!(play.state.nested(&Claim::new(8, None)).is_none(), "another thread");
    assert!(play.state.nested(&Claim::new(0, None)).is_none(), "a job");
    assert!(matches!(play.state.refuse_nested(&mine), Err(Refusal::Nested { .. })));
    play.state.release(lease, play.now, &mut Effects::none());
    assert!(play.state.nested(&mine).is_none(), "given back");
    assert_eq!(play.state.counters().nested_acquires, 3);
}

#[test]
fn jobs_are_not_among_the_callers_that_are_limited() {
    let mut play = Play::new(1, Quota::new(), &[]);
    play.state.bounds.max_waiters = 1;
    play.ask(A);
    let mut fx = Effects::none();
    for id in 100..103 {
        play.state.enqueue(Claim::new(0, None), Moment::FAR_FUTURE, id, play.now, &mut fx).unwrap();
    }
    play.ask(A);
    assert!(matches!(play.ask_with(A, 0, HOUR), Err(Refusal::TooManyWaiters)));
    assert_eq!((play.state.counts().jobs, play.state.counts().waiters), (3, 1));
}

#[test]
fn a_batch_of_jobs_without_a_name_is_not_in_the_way_of_callers() {
    let mut play = Play::new(1, Quota::new(), &[]);
    play.ask(None);
    let mut fx = Effects::none();
    for id in 100..150 {
        let job = Claim::new(0, None);
        let ticket = play.state.enqueue(job, Moment::FAR_FUTURE, id, play.now, &mut fx).unwrap();
        play.asked.insert(id, (Some("job"), ticket, Moment::FAR_FUTURE));
    }
    play.ask(None);
    play.ask(None);
    let job = Some("job");
    assert_eq!(play.next_served(5), [None, job, None, job, job], "they take turns");
    let mut wide = Play::new(4, Quota::new(), &[]);
    for _ in 0..4 {
        let mut job = Claim::new(0, None);
        let Take::Hit(lease) = wide.state.take(&mut job, wide.now, &mut fx) else { panic!("idle") };
        wide.leases.push((Some("job"), lease));
    }
    wide.ask(None);
    wide.give_back(0);
    assert_eq!(wide.held(None), 1);
}

/// What a naive reader of the rules would do: go through everybody.
fn next_by_the_rules(play: &Play, quotas: &BTreeMap<Name, Quota>) -> Option<Vec<Name>> {
    let share = |name: &Name| {
        let weight = quotas[name].weight;
        #[allow(clippy::cast_precision_loss, reason = "a handful")]
        let leases = play.held(*name) as f64;
        leases / f64::from(weight)
    };
    let may = |name: &Name| quotas[name].max_leases.is_none_or(|most| play.held(*name) < most);
    let live = |name: &&Name| {
        may(name) && play.asked.values().any(|(of, _, deadline)| of == *name && *deadline > play.now)
    };
    let names: Vec<Name> = quotas.keys().filter(live).copied().collect();
    let least = names.iter().map(share).min_by(f64::total_cmp)?;
    Some(names.into_iter().filter(|name| share(name) <= least + 1e-9).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_grant_goes_to_a_tenant_with_the_least_share_and_none_starves(
        sessions in 1..4_usize,
        quotas in proptest::collection::vec((proptest::option::of(1..3_usize), 1..4_u32), 4),
        events in proptest::collection::vec((0..4_u8, 0..4_usize, -1..2_i32, 1..400_u64), 1..150),
    ) {
        let names = [A, B, Some("carol"), None];
        let quotas: BTreeMap<Name, Quota> = names.into_iter().zip(quotas).map(|(name, (most, weight))| {
            let quota = Quota::new().max_leases(most).weight(weight);
            (name, if name.is_none() { Quota::new() } else { quota })
        }).collect();
        let of: Vec<_> = quotas.iter().filter_map(|(name, quota)| Some(((*name)?, *quota))).collect();
        let mut play = Play::new(sessions, Quota::new(), &of);
        // Grants since a tenant without leases has had a live waiter.
        let mut passed: BTreeMap<Name, usize> = BTreeMap::new();
        for (what, pick, priority, millis) in events {
            let before = play.served.borrow().len();
            match what {
                0 | 1 => drop(play.ask_with(names[pick], priority, Duration::from_millis(millis))),
                2 if !play.leases.is_empty() => {
                    let (_, lease) = play.leases.remove(pick % play.leases.len());
                    let rightful = next_by_the_rules(&play, &quotas);
                    let mut fx = Effects::none();
                    play.state.release(lease, play.now, &mut fx);
                    play.wake(fx);
                    match (rightful, play.served.borrow()[before..].first()) {
                        (Some(rightful), Some(got)) => prop_assert!(rightful.contains(got), "{got:?}, not {rightful:?}"),
                        (None, None) => {}
                        (rightful, got) => prop_assert!(false, "{got:?} was served instead of {rightful:?}"),
                    }
                }
                3 => play.now = play.now + Duration::from_millis(millis),
                _ => {}
            }
            for name in names {
                let live = play.asked.values().any(|(of, _, deadline)| *of == name && *deadline > play.now);
                let served = play.served.borrow()[before..].to_vec();
                let count = passed.entry(name).or_default();
                if !live || play.held(name) > 0 || served.contains(&name) {
                    *count = 0;
                } else {
                    *count += served.len();
                    prop_assert!(*count < names.len(), "{name:?} has nothing and was passed over {count} times");
                }
            }
            // Invariant 5.
            if play.state.counts().idle > 0 {
                prop_assert_eq!(next_by_the_rules(&play, &quotas), None);
            }
        }
    }
}
