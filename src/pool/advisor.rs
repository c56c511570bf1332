//! What would have been with other bounds: recorded calls, replayed against a pool that is only
//! simulated.
//!
//! The simulation follows the rules of the real pool: first come, first served; the last session
//! that came back is the first one taken; what is missing for the waiters and for the watermark is
//! started, so many at a time; what was idle too long leaves, down to the watermark. It leaves out
//! what is rare or small: deaths, recycling, the time of resets and of the hand-off. Calls come when
//! they came, except that a thread that comes again right after it gave a session back does so in the
//! replay as well: who waits less comes back sooner.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::recorder::{Arrival, Recording};
use crate::histogram::seconds;

/// Answers "what if": replays a [`Recording`] against other bounds.
///
/// ```
/// use remuda::{Advisor, Recording, Target};
/// use std::time::Duration;
///
/// // Bursts of four calls each second, each for 100 ms.
/// let (ms, burst) = (Duration::from_millis, |n: u64| (0..4).map(move |_| n * 1000));
/// let calls = (0..60).flat_map(burst).map(|at| (ms(at), ms(100)));
/// let recording = Recording::of(calls);
/// let advisor = Advisor::new(&recording).start_time(ms(200)).memory_per_session(30 << 20);
/// assert!(advisor.replay(4, 4).hit_rate > 0.99);
/// let advice = advisor.advise(Target::HitRate(1.0));
/// assert_eq!((advice.min_idle, advice.max_sessions), (4, 4));
/// println!("{advice}");
/// ```
#[derive(Clone, Debug)]
#[must_use = "it answers only when it is asked"]
pub struct Advisor<'a> {
    recording: &'a Recording,
    start_time: Duration,
    memory_per_session: Option<u64>,
}

/// What would have been, from [`Advisor::replay`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Replay {
    /// The watermark.
    pub min_idle: usize,
    /// The limit.
    pub max_sessions: usize,
    /// Calls served from idle without queueing.
    pub hits: u64,
    /// Other calls that got a session.
    pub misses: u64,
    /// Calls that gave up. Only those that gave up in the recording can: the others wait.
    pub timeouts: u64,
    /// `hits / (hits + misses)`, zero without calls.
    pub hit_rate: f64,
    /// Half of the calls that got a session waited no longer than this.
    #[serde(serialize_with = "seconds")]
    pub wait_p50: Duration,
    /// 99 of 100 did.
    #[serde(serialize_with = "seconds")]
    pub wait_p99: Duration,
    /// All did.
    #[serde(serialize_with = "seconds")]
    pub wait_max: Duration,
    /// Sessions started, those of the warm-up included.
    pub sessions_started: u64,
    /// The most sessions at the same time.
    pub peak_sessions: usize,
    /// Sessions on average over time.
    pub mean_sessions: f64,
    /// Memory of the most sessions, in bytes, if it is known what one takes.
    pub peak_memory: Option<u64>,
}

/// What [`Advisor::advise`] is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// At least this share of the calls is served from idle without queueing (0 to 1).
    HitRate(f64),
    /// 99 of 100 calls wait no longer than this.
    WaitP99(Duration),
}

/// The smallest bounds that reach a [`Target`], from [`Advisor::advise`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// For [`PoolConfig::min_idle`](crate::PoolConfig::min_idle).
    pub min_idle: usize,
    /// For [`PoolConfig::max_sessions`](crate::PoolConfig::max_sessions).
    pub max_sessions: usize,
    /// Whether the target is reached; if not, nothing reaches it, and these come near.
    pub met: bool,
    /// What would have been with them.
    pub replay: Replay,
}

/// A start takes this long if nobody says otherwise: an interpreter's.
const START_TIME: Duration = Duration::from_millis(50);

impl<'a> Advisor<'a> {
    /// One for these calls, with what the recording knows of starts and memory.
    pub fn new(recording: &'a Recording) -> Advisor<'a> {
        let start_time = recording.start_time.unwrap_or(START_TIME);
        Advisor { recording, start_time, memory_per_session: recording.memory_per_session }
    }

    /// What a start is to take: that of a template, for example. Default: what the recording says, or
    /// 50 ms.
    pub fn start_time(mut self, time: Duration) -> Advisor<'a> {
        self.start_time = time;
        self
    }

    /// What a session takes in memory, in bytes. Default: what the recording says.
    pub fn memory_per_session(mut self, bytes: u64) -> Advisor<'a> {
        self.memory_per_session = Some(bytes);
        self
    }

    /// What would have been with these bounds, in a pool that was warm when the first call came. A
    /// pure calculation: about a microsecond for each call. `max_sessions` is at least 1, `min_idle` at
    /// most that.
    pub fn replay(&self, min_idle: usize, max_sessions: usize) -> Replay {
        let max_sessions = max_sessions.max(1);
        Simulation::new(self, min_idle.min(max_sessions), max_sessions).run()
    }

    /// The smallest `max_sessions` that reaches the target with any `min_idle`, and the smallest
    /// `min_idle` with it. Replays the recording some twenty times.
    pub fn advise(&self, target: Target) -> Advice {
        // More than all calls at once can use, each beside an idle session.
        let most = self.replay(0, usize::MAX).peak_sessions.max(1) * 2;
        let max_sessions = smallest(1, most, |max| target.is_met(&self.replay(max, max)));
        let min_idle = smallest(0, max_sessions, |min| target.is_met(&self.replay(min, max_sessions)));
        let replay = self.replay(min_idle, max_sessions);
        Advice { min_idle, max_sessions, met: target.is_met(&replay), replay }
    }
}

impl Target {
    fn is_met(self, replay: &Replay) -> bool {
        match self {
            Target::HitRate(rate) => replay.hit_rate >= rate,
            Target::WaitP99(limit) => replay.timeouts == 0 && replay.wait_p99 <= limit,
        }
    }
}

/// The smallest number from `from` to `to` that is enough, `to` if none is. Bisects: that more is better
/// holds nearly always, but not by a law, so the result is replayed once more.
fn smallest(from: usize, to: usize, enough: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.met { "" } else { " (the target is out of reach)" };
        write!(f, "min_idle {}, max_sessions {}{not}: {}", self.min_idle, self.max_sessions, self.replay)
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hits, p99) = (self.hit_rate * 100.0, self.wait_p99.as_secs_f64() * 1e3);
        write!(f, "{hits:.1} % hits, p99 of the wait {p99:.1} ms, at most {} sessions", self.peak_sessions)?;
        match self.peak_memory {
            Some(bytes) => write!(f, " ({} MiB)", bytes >> 20),
            None => Ok(()),
        }
    }
}

/// Something that happens. Of what happens at the same moment, the earlier variant comes first: what
/// brings sessions before what takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Started,
    Released(usize),
    Arrives(usize),
    GivesUp(usize),
}

/// A pool of numbers. Times are nanoseconds since the first call.
struct Simulation<'a> {
    recording: &'a Recording,
    memory_per_session: Option<u64>,
    start_time: u64,
    idle_timeout: u64,
    /// For calls of which nobody knows how long they kept their session.
    usual_hold: u64,
    min_idle: usize,
    max_sessions: usize,
    agenda: BinaryHeap<Reverse<(u64, Event)>>,
    /// For each call the next one of its thread that waits for its end, and for how long after it.
    next: Vec<Option<(usize, u64)>>,
    /// When each call came in the replay.
    came: Vec<u64>,
    /// Since when each idle session is, those that were idle longest first.
    idle: VecDeque<u64>,
    starting: usize,
    busy: usize,
    waiting: VecDeque<usize>,
    waits: Vec<u64>,
    hits: u64,
    timeouts: u64,
    started: u64,
    peak: usize,
    /// Sessions times nanoseconds, up to `then`.
    session_time: f64,
    then: u64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A thread that calls again within this time of its last call's end came back because of it: in a
/// replay it waits for that end, too.
const AT_ONCE: Duration = Duration::from_millis(10);

/// For each call the next one of its thread, if that came at once, with the pause between them; and the
/// calls that are nobody's next.
fn chains(arrivals: &[Arrival]) -> (Vec<Option<(usize, u64)>>, Vec<usize>) {
    let mut next = vec![None; arrivals.len()];
    let mut last_of = HashMap::new();
    let mut by_themselves = Vec::new();
    for (call, arrival) in arrivals.iter().enumerate() {
        let follows = last_of.insert(arrival.caller, call).and_then(|before| {
            let earlier: &Arrival = &arrivals[before];
            let hold = if earlier.served { earlier.hold? } else { Duration::ZERO };
            let pause = arrival.at.checked_sub(earlier.at + earlier.wait + hold)?;
            (pause <= AT_ONCE).then_some((before, nanos(pause)))
        });
        match follows {
            Some((before, pause)) => next[before] = Some((call, pause)),
            None => by_themselves.push(call),
        }
    }
    (next, by_themselves)
}

#[allow(clippy::cast_precision_loss, reason = "figures to look at")]
impl<'a> Simulation<'a> {
    fn new(advisor: &Advisor<'a>, min_idle: usize, max_sessions: usize) -> Simulation<'a> {
        let recording = advisor.recording;
        let holds: Vec<u64> =
            recording.arrivals.iter().filter_map(|arrival| arrival.hold).map(nanos).collect();
        let (next, by_themselves) = chains(&recording.arrivals);
        let agenda = by_themselves
            .into_iter()
            .map(|call| Reverse((nanos(recording.arrivals[call].at), Event::Arrives(call))));
        Simulation {
            recording,
            memory_per_session: advisor.memory_per_session,
            start_time: nanos(advisor.start_time),
            idle_timeout: nanos(recording.session_timeout),
            usual_hold: holds.iter().sum::<u64>().checked_div(holds.len() as u64).unwrap_or(0),
            min_idle,
            max_sessions,
            agenda: agenda.collect(),
            next,
            came: vec![0; recording.arrivals.len()],
            idle: std::iter::repeat_n(0, min_idle).collect(),
            starting: 0,
            busy: 0,
            waiting: VecDeque::new(),
            waits: Vec::new(),
            hits: 0,
            timeouts: 0,
            started: min_idle as u64,
            peak: min_idle,
            session_time: 0.0,
            then: 0,
        }
    }

    fn run(mut self) -> Replay {
        let mut left = self.recording.arrivals.len();
        while let Some(Reverse((now, event))) = self.agenda.pop() {
            // What is started for the watermark when nobody comes any more changes nothing.
            if left == 0 && self.waiting.is_empty() && self.busy == 0 {
                break;
            }
            self.retire_idle(now);
            self.pass_time(now);
            match event {
                Event::Arrives(call) => {
                    left -= 1;
                    self.arrive(call, now);
                }
                Event::GivesUp(call) => {
                    if let Some(place) = self.waiting.iter().position(|waiting| *waiting == call) {
                        self.waiting.remove(place);
                        self.timeouts += 1;
                        self.come_again(call, now);
                    }
                }
                Event::Released(call) => {
                    self.busy -= 1;
                    self.come_again(call, now);
                    if !self.recording.fresh {
                        self.offer(now);
                    }
                }
                Event::Started => {
                    self.starting -= 1;
                    self.offer(now);
                }
            }
            self.start_what_is_missing(now);
        }
        self.result()
    }

    /// The thread of a call that is over makes its next one.
    fn come_again(&mut self, call: usize, now: u64) {
        if let Some((next, pause)) = self.next[call].take() {
            self.agenda.push(Reverse((now.saturating_add(pause), Event::Arrives(next))));
        }
    }

    fn arrive(&mut self, call: usize, now: u64) {
        self.came[call] = now;
        if self.idle.pop_back().is_some() {
            self.hits += 1;
            self.lend(call, now);
            return;
        }
        let arrival = &self.recording.arrivals[call];
        if !arrival.served {
            let patience = now.saturating_add(nanos(arrival.wait));
            self.agenda.push(Reverse((patience, Event::GivesUp(call))));
        }
        self.waiting.push_back(call);
    }

    /// A session for whoever waits, or for later.
    fn offer(&mut self, now: u64) {
        match self.waiting.pop_front() {
            Some(call) => self.lend(call, now),
            None => self.idle.push_back(now),
        }
    }

    fn lend(&mut self, call: usize, now: u64) {
        let arrival = &self.recording.arrivals[call];
        self.busy += 1;
        self.waits.push(now - self.came[call]);
        let hold = arrival.hold.map_or(self.usual_hold, nanos);
        self.agenda.push(Reverse((now.saturating_add(hold), Event::Released(call))));
    }

    fn start_what_is_missing(&mut self, now: u64) {
        let room = self.max_sessions - self.total();
        let missing = (self.waiting.len() + self.min_idle).saturating_sub(self.idle.len() + self.starting);
        let may_start = self.recording.max_concurrent_starts.max(1).saturating_sub(self.starting);
        for _ in 0..missing.min(room).min(may_start) {
            self.starting += 1;
            self.started += 1;
            self.agenda.push(Reverse((now.saturating_add(self.start_time), Event::Started)));
        }
        self.peak = self.peak.max(self.total());
    }

    fn retire_idle(&mut self, now: u64) {
        while self.idle.len() > self.min_idle {
            let Some(end) = self.idle.front().map(|since| since.saturating_add(self.idle_timeout)) else {
                return;
            };
            if end > now {
                return;
            }
            self.pass_time(end);
            self.idle.pop_front();
        }
    }

    fn pass_time(&mut self, now: u64) {
        self.session_time += self.total() as f64 * now.saturating_sub(self.then) as f64;
        self.then = self.then.max(now);
    }

    fn total(&self) -> usize {
        self.idle.len() + self.starting + self.busy
    }

    fn result(mut self) -> Replay {
        self.waits.sort_unstable();
        let served = self.waits.len() as u64;
        let wait = |q: f64| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
            let rank = ((self.waits.len() as f64 * q).ceil() as usize).max(1);
            Duration::from_nanos(self.waits.get(rank - 1).copied().unwrap_or(0))
        };
        Replay {
            min_idle: self.min_idle,
            max_sessions: self.max_sessions,
            hits: self.hits,
            misses: served - self.hits,
            timeouts: self.timeouts,
            hit_rate: if served == 0 { 0.0 } else { self.hits as f64 / served as f64 },
            wait_p50: wait(0.5),
            wait_p99: wait(0.99),
            wait_max: wait(1.0),
            sessions_started: self.started,
            peak_sessions: self.peak,
            mean_sessions: if self.then == 0 {
                self.min_idle as f64
            } else {
                self.session_time / self.then as f64
            },
            peak_memory: self.memory_per_session.map(|bytes| bytes.saturating_mul(self.peak as u64)),
        }
    }
}

#[cfg(test)]
#[path = "advisor_tests.rs"]
mod tests;
