//! The life of a tracked session and what the tracker makes of silence. Pure: it takes `now`, and
//! knows no lock, clock or table.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::api::{HEARTBEAT_INTERVAL, MassSilence};
use super::{TrackedId, TrackedStatus};
use crate::clock::Moment;

/// How silence is judged: the thresholds are for a client that beats as often as by default.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    pub(super) stale: Duration,
}

/// A threshold for a client with this interval: whoever beats more seldom may be silent for longer.
pub(super) fn scaled(threshold: Duration, interval: Duration) -> Duration {
    if interval <= HEARTBEAT_INTERVAL {
        return threshold;
    }
    let times = interval.as_secs_f64() / HEARTBEAT_INTERVAL.as_secs_f64();
    Duration::try_from_secs_f64(threshold.as_secs_f64() * times).unwrap_or(Duration::MAX)
}

/// How often a client beats, in milliseconds: four bytes, because there may be a million of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interval(u32);

impl Interval {
    /// At most 49 days.
    pub(super) fn from_millis(millis: u128) -> Interval {
        Interval(u32::try_from(millis).unwrap_or(u32::MAX))
    }

    pub(super) fn of(duration: Duration) -> Interval {
        Interval::from_millis(duration.as_millis())
    }

    pub(super) fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0))
    }
}

/// In what time the beat after this one is due: a beat that is parked for `wait` is followed by the
/// next, whatever the client's interval.
pub(super) fn pace(interval: Duration, wait: Duration) -> Duration {
    if wait.is_zero() { interval } else { interval.min(wait.max(HEARTBEAT_INTERVAL)) }
}

impl Thresholds {
    pub(super) fn is_stale(self, silence: Duration, interval: Duration) -> bool {
        silence >= scaled(self.stale, interval)
    }

    /// Its life in one word; `said` is what it says of itself.
    pub(super) fn state(self, silence: Duration, interval: Duration, said: &TrackedStatus) -> TrackedStatus {
        match said {
            _ if self.is_stale(silence, interval) => TrackedStatus::Stale,
            _ if silence > interval.mul_f64(1.5) => TrackedStatus::Late,
            TrackedStatus::Idle => TrackedStatus::Idle,
            _ => TrackedStatus::Running,
        }
    }
}

/// What a session is ordered to do beside going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verbs {
    pub(super) pause: bool,
    pub(super) drain: bool,
}

impl Verbs {
    pub(super) fn words(self) -> Vec<String> {
        let words = [(self.pause, "pause"), (self.drain, "drain")];
        words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned()).collect()
    }

    /// One number, for a column.
    pub(super) fn bits(self) -> u8 {
        u8::from(self.pause) | u8::from(self.drain) << 1
    }

    pub(super) fn from_bits(bits: u8) -> Verbs {
        Verbs { pause: bits & 1 != 0, drain: bits & 2 != 0 }
    }
}

/// Fewer sessions than this may well all end at once.
const MANY: usize = 20;
/// More than this part of them is nearly all.
const NEARLY_ALL_PERCENT: usize = 85;

/// When nearly all of many sessions fall silent at once, the fault is more likely the tracker's own or
/// the network's than theirs. Then nobody is removed for a time, and that time ends by itself: after
/// it, or once enough sessions beat again.
#[derive(Debug, Default)]
pub(super) struct Guard {
    holding: Option<Holding>,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    since: Moment,
    until: Moment,
    stale: usize,
    all: usize,
    /// That its time is up was told.
    told: bool,
}

/// What a look at the counts came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Began,
    /// Enough sessions are back, or gone.
    Over,
    /// The silence goes on, but the time is up.
    RanOut,
}

impl Guard {
    /// Looks at the counts. A silence is held for `lasts`, and once only.
    pub(super) fn look(&mut self, now: Moment, stale: usize, all: usize, lasts: Duration) -> Change {
        let mass = all >= MANY && stale * 100 > all * NEARLY_ALL_PERCENT;
        match &mut self.holding {
            None if mass => {
                self.holding = Some(Holding { since: now, until: now + lasts, stale, all, told: false });
                Change::Began
            }
            None => Change::None,
            Some(_) if !mass => {
                self.holding = None;
                Change::Over
            }
            Some(holding) => {
                (holding.stale, holding.all) = (stale, all);
                let up = now >= holding.until;
                if up && !std::mem::replace(&mut holding.told, up) { Change::RanOut } else { Change::None }
            }
        }
    }

    /// Whether nobody is to be removed.
    pub(super) fn holds(&self, now: Moment) -> bool {
        self.holding.is_some_and(|holding| now < holding.until)
    }

    /// For whoever looks.
    pub(super) fn shown(&self, now: Moment) -> Option<MassSilence> {
        let holding = self.holding.filter(|holding| now < holding.until)?;
        Some(MassSilence {
            since_seconds: now.saturating_since(holding.since).as_secs_f64(),
            ends_in_seconds: holding.until.saturating_since(now).as_secs_f64(),
            stale: holding.stale as u64,
            sessions: holding.all as u64,
        })
    }
}

/// How a session that is gone has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    Ended,
    Lost,
}

impl Gone {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Gone::Ended => "ended",
            Gone::Lost => "lost",
        }
    }
}

/// So many of those that went last are remembered without the disk.
const REMEMBERED: usize = 10_000;

/// Who went last, and how: for the answer to a beat that comes too late.
#[derive(Debug, Default)]
pub(super) struct Departed {
    how: HashMap<TrackedId, Gone>,
    order: VecDeque<TrackedId>,
}

impl Departed {
    pub(super) fn note(&mut self, id: TrackedId, how: Gone) {
        if self.how.insert(id.clone(), how).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.how.remove(&oldest);
        }
    }

    pub(super) fn how(&self, id: &TrackedId) -> Option<Gone> {
        self.how.get(id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: u64) -> Moment {
        Moment::LONG_AGO + secs(10_000 + seconds)
    }

    #[test]
    fn silence_is_first_late_then_stale() {
        let thresholds = Thresholds { stale: secs(120) };
        let state = |silence, said: &str| {
            let said = TrackedStatus::from(said.to_owned());
            thresholds.state(secs(silence), secs(30), &said).as_str().to_owned()
        };
        assert_eq!((state(45, "idle"), state(45, "running")), ("idle".into(), "running".into()));
        assert_eq!((state(46, "idle"), state(119, "running")), ("late".into(), "late".into()));
        assert_eq!(state(120, "running"), "stale");
        assert_eq!((state(0, "on a break"), state(0, "lost")), ("running".into(), "running".into()));
    }

    #[test]
    fn who_beats_seldom_may_be_silent_for_longer_and_who_beats_often_not_shorter() {
        let thresholds = Thresholds { stale: secs(120) };
        assert!(!thresholds.is_stale(secs(14_399), secs(3_600)));
        assert!(thresholds.is_stale(secs(14_400), secs(3_600)));
        assert!(!thresholds.is_stale(secs(119), secs(1)));
        assert_eq!(scaled(secs(600), secs(60)), secs(1_200));
        assert_eq!(scaled(Duration::MAX, secs(60)), Duration::MAX);
        assert_eq!(thresholds.state(secs(2), secs(1), &TrackedStatus::Idle), TrackedStatus::Late);
    }

    #[test]
    fn a_parked_beat_is_followed_by_the_next_whatever_the_interval() {
        let hour = secs(3_600);
        assert_eq!((pace(hour, secs(60)), pace(hour, secs(0))), (secs(60), hour));
        assert_eq!((pace(secs(30), secs(27)), pace(secs(2), secs(2))), (secs(30), secs(2)));
    }

    #[test]
    fn only_nearly_all_of_many_is_mass_silence() {
        for (stale, all, mass) in
            [(20, 20, true), (86, 100, true), (85, 100, false), (19, 19, false), (0, 0, false)]
        {
            let mut guard = Guard::default();
            let change = guard.look(at(0), stale, all, secs(10));
            assert_eq!(change == Change::Began, mass, "{stale} of {all}");
            assert_eq!(guard.holds(at(1)), mass);
        }
    }

    #[test]
    fn the_guard_ends_when_enough_beat_again() {
        let mut guard = Guard::default();
        assert_eq!(guard.look(at(0), 100, 100, secs(600)), Change::Began);
        assert_eq!(guard.look(at(10), 90, 100, secs(600)), Change::None);
        let shown = guard.shown(at(10)).unwrap();
        assert_eq!((shown.stale, shown.sessions), (90, 100));
        assert_eq!((shown.since_seconds, shown.ends_in_seconds), (10.0, 590.0));
        assert_eq!(guard.look(at(20), 50, 100, secs(600)), Change::Over);
        assert!(!guard.holds(at(20)) && guard.shown(at(20)).is_none());
        assert_eq!(guard.look(at(30), 100, 100, secs(600)), Change::Began);
    }

    #[test]
    fn the_guard_ends_by_itself_and_holds_one_silence_only_once() {
        let mut guard = Guard::default();
        guard.look(at(0), 100, 100, secs(600));
        assert!(guard.holds(at(599)) && !guard.holds(at(600)));
        assert_eq!(guard.look(at(600), 100, 100, secs(600)), Change::RanOut);
        assert_eq!(guard.look(at(610), 100, 100, secs(600)), Change::None);
        assert!(!guard.holds(at(611)));
        assert_eq!(guard.look(at(620), 0, 0, secs(600)), Change::Over);
    }

    #[test]
    fn the_last_departures_are_remembered_and_no_more() {
        let mut departed = Departed::default();
        let id = |number: usize| TrackedId::from(number.to_string());
        for number in 0..=REMEMBERED {
            departed.note(id(number), Gone::Ended);
        }
        departed.note(id(1), Gone::Lost);
        assert_eq!((departed.how(&id(0)), departed.how(&id(1))), (None, Some(Gone::Lost)));
        assert_eq!((departed.how.len(), departed.order.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn verbs_survive_their_column() {
        for bits in 0..4 {
            assert_eq!(Verbs::from_bits(bits).bits(), bits);
        }
        assert_eq!(Verbs { pause: true, drain: true }.words(), ["pause", "drain"]);
    }
}
