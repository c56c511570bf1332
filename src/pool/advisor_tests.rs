//! Small cases, calculated by hand.

use proptest::prelude::*;

use super::*;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn calls(calls: &[(u64, u64)]) -> Recording {
    Recording::of(calls.iter().map(|(at, hold)| (ms(*at), ms(*hold))))
}

#[test]
fn a_call_finds_what_is_idle_and_the_next_one_waits_for_a_start() {
    // At 0 both come; one session is ready, the other takes 50 ms.
    let recording = calls(&[(0, 100), (0, 100)]);
    let replay = Advisor::new(&recording).start_time(ms(50)).replay(1, 10);
    assert_eq!((replay.hits, replay.misses, replay.wait_max), (1, 1, ms(50)));
    // The one that was ready, one for the waiter and one for the watermark.
    assert_eq!((replay.sessions_started, replay.peak_sessions), (3, 3));
}

#[test]
fn a_release_that_comes_before_a_start_serves_the_waiter() {
    let recording = calls(&[(0, 10), (5, 10)]);
    let replay = Advisor::new(&recording).start_time(ms(50)).replay(1, 2);
    assert_eq!((replay.hits, replay.wait_max), (1, ms(5)));
}

#[test]
fn at_the_limit_calls_queue_in_order() {
    let recording = calls(&[(0, 10), (1, 10), (2, 10)]);
    let replay = Advisor::new(&recording).start_time(ms(1)).memory_per_session(7).replay(1, 1);
    // Served at 0, 10 and 20.
    assert_eq!((replay.hits, replay.wait_p50, replay.wait_max), (1, ms(9), ms(18)));
    assert_eq!((replay.sessions_started, replay.peak_memory), (1, Some(7)));
    assert!((replay.mean_sessions - 1.0).abs() < 1e-9);
}

#[test]
fn starts_come_so_many_at_a_time() {
    let mut recording = calls(&[(0, 1000), (0, 1000), (0, 1000), (0, 1000)]);
    recording.max_concurrent_starts = 2;
    let replay = Advisor::new(&recording).start_time(ms(50)).replay(0, 4);
    assert_eq!((replay.wait_p50, replay.wait_max), (ms(50), ms(100)));
}

#[test]
fn what_is_idle_too_long_leaves_down_to_the_watermark() {
    let mut recording = calls(&[(0, 10), (0, 10), (500, 10), (500, 10)]);
    recording.session_timeout = ms(100);
    let advisor = Advisor::new(&recording).start_time(ms(50));
    // The second call of the second burst finds nothing: its session left at 150 or 160.
    assert_eq!(advisor.replay(1, 2).hits, 2);
    recording.session_timeout = ms(1000);
    assert_eq!(Advisor::new(&recording).start_time(ms(50)).replay(1, 2).hits, 3);
}

#[test]
fn with_a_new_process_for_each_user_every_use_costs_a_start() {
    let mut recording = calls(&[(0, 10), (100, 10), (200, 10)]);
    recording.fresh = true;
    let replay = Advisor::new(&recording).start_time(ms(50)).replay(1, 2);
    assert_eq!((replay.hits, replay.misses), (3, 0), "the watermark is filled again in between");
    let replay = Advisor::new(&recording).start_time(ms(50)).replay(0, 2);
    assert_eq!((replay.hits, replay.misses, replay.wait_max), (0, 3, ms(50)));
}

#[test]
fn who_gave_up_gives_up_again_unless_it_is_served_in_time() {
    let mut recording = calls(&[(0, 100), (0, 100)]);
    recording.arrivals[1].served = false;
    recording.arrivals[1].hold = None;
    recording.arrivals[1].wait = ms(60);
    let advisor = Advisor::new(&recording).start_time(ms(50));
    assert_eq!(advisor.replay(1, 1).timeouts, 1);
    let enough = advisor.replay(1, 2);
    assert_eq!((enough.timeouts, enough.misses), (0, 1));
}

#[test]
fn a_thread_that_came_back_at_once_comes_back_when_it_has_been_served() {
    // One thread, twice: it waited 30 ms, held 10, came again 2 ms later.
    let mut recording = calls(&[(0, 10), (42, 10)]);
    recording.arrivals[0].wait = ms(30);
    recording.arrivals.iter_mut().for_each(|arrival| arrival.caller = 7);
    let replay = Advisor::new(&recording).start_time(ms(5)).replay(0, 1);
    assert_eq!((replay.hits, replay.misses, replay.wait_max), (1, 1, ms(5)));
    // Served at 5 and given back at 15, so it comes again at 17; slower, it would not wait for itself.
    let replay = Advisor::new(&recording).start_time(ms(90)).replay(0, 1);
    assert_eq!((replay.hits, replay.wait_max), (1, ms(90)));
    // Long after its first call it comes by itself.
    recording.arrivals[1].at = ms(60);
    let replay = Advisor::new(&recording).start_time(ms(90)).replay(0, 1);
    assert_eq!((replay.hits, replay.wait_max), (0, ms(90)));
}

#[test]
fn advice_is_the_smallest_that_reaches_the_target() {
    let burst = |at: u64| [(at, 50), (at, 50), (at, 50)];
    let recording = calls(&(0..20).flat_map(|n| burst(n * 1000)).collect::<Vec<_>>());
    let advisor = Advisor::new(&recording).start_time(ms(200));
    let advice = advisor.advise(Target::HitRate(1.0));
    assert_eq!((advice.min_idle, advice.max_sessions, advice.met), (3, 3, true));
    // Half of the hits: two sessions serve two of three.
    let advice = advisor.advise(Target::HitRate(0.6));
    assert_eq!((advice.max_sessions, advice.met), (2, true), "{advice}");
    let advice = advisor.advise(Target::WaitP99(ms(60)));
    assert_eq!(
        (advice.max_sessions, advice.met),
        (2, true),
        "the third waits for a release at 50 ms: {advice}"
    );
    assert!(!advisor.advise(Target::HitRate(1.1)).met);
    assert!(advisor.advise(Target::HitRate(1.1)).to_string().contains("out of reach"));
}

#[test]
fn nothing_recorded_is_no_trouble() {
    let recording = calls(&[]);
    let advisor = Advisor::new(&recording);
    assert_eq!((advisor.replay(2, 4).hits, advisor.replay(0, 0).max_sessions), (0, 1));
    assert_eq!(advisor.advise(Target::WaitP99(ms(1))).max_sessions, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_call_is_counted_once_and_the_bounds_hold(
        times in proptest::collection::vec((0_u64..2_000, 0_u64..300), 1..80),
        min_idle in 0_usize..6,
        more in 0_usize..6,
        start in 0_u64..200,
        timeout in 1_u64..500,
        fresh: bool,
    ) {
        let mut recording = calls(&times);
        recording.session_timeout = ms(timeout);
        recording.fresh = fresh;
        let max = (min_idle + more).max(1);
        let advisor = Advisor::new(&recording).start_time(ms(start));
        let replay = advisor.replay(min_idle, max);
        prop_assert_eq!(replay.hits + replay.misses, times.len() as u64);
        prop_assert!(replay.peak_sessions <= max);
        let peak = f64::from(u32::try_from(replay.peak_sessions).expect("at most twelve"));
        prop_assert!(replay.mean_sessions <= peak + 1e-9);
        prop_assert!(replay.wait_p50 <= replay.wait_p99 && replay.wait_p99 <= replay.wait_max);
        prop_assert_eq!(advisor.replay(min_idle, max), replay, "the same every time");
    }
}
