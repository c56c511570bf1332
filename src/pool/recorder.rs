//! The last acquires of a pool, recorded for an [`Advisor`](super::Advisor): when somebody came, how
//! long it waited, how long it kept its session.

use std::collections::{HashMap, VecDeque};
use std::thread::{self, ThreadId};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::clock::Moment;
use crate::sync::Mutex;

/// One call for a session. In JSON all times are seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Arrival {
    /// When it came, since the first of the recording.
    #[serde(with = "in_seconds")]
    pub at: Duration,
    /// How long it waited: until it had a session, or gave up.
    #[serde(with = "in_seconds")]
    pub wait: Duration,
    /// How long it kept its session; `None` if it got none, or still has it.
    #[serde(with = "maybe_in_seconds")]
    pub hold: Option<Duration>,
    /// Whether it got a session.
    pub served: bool,
    /// The thread that called, by a number within this recording.
    pub caller: usize,
}

/// What a pool recorded, from [`SessionPool::recording`](crate::SessionPool::recording). It can be
/// kept as JSON and read again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recording {
    /// The calls, in the order in which they came.
    pub arrivals: Vec<Arrival>,
    /// Earlier calls that there was no room for.
    pub forgotten: u64,
    /// The mean time that a start took in this pool, if there was one. The start of a
    /// [`template`](crate::PoolConfig::template) is in the time of the first sessions: while there are few,
    /// set [`Advisor::start_time`](crate::Advisor::start_time) by hand.
    #[serde(with = "maybe_in_seconds")]
    pub start_time: Option<Duration>,
    /// The mean resident memory of its sessions, in bytes, if that is known. What the children of a
    /// template share counts for each: see [`Advisor::memory_per_session`](crate::Advisor::memory_per_session).
    pub memory_per_session: Option<u64>,
    /// The pool's [`session_timeout`](crate::PoolConfig::session_timeout).
    #[serde(with = "in_seconds")]
    pub session_timeout: Duration,
    /// The pool's [`max_concurrent_starts`](crate::PoolConfig::max_concurrent_starts).
    pub max_concurrent_starts: usize,
    /// Whether each user got a new process: [`Reuse::Fresh`](crate::Reuse::Fresh).
    pub fresh: bool,
}

impl Recording {
    /// A made-up recording: calls that come at these times and keep their session for so long, each from
    /// a thread of its own. The rest is as a pool has it by default.
    pub fn of(calls: impl IntoIterator<Item = (Duration, Duration)>) -> Recording {
        let arrival = |(caller, (at, hold))| Arrival {
            at,
            wait: Duration::ZERO,
            hold: Some(hold),
            served: true,
            caller,
        };
        let mut arrivals: Vec<Arrival> = calls.into_iter().enumerate().map(arrival).collect();
        arrivals.sort_by_key(|arrival| arrival.at);
        Recording {
            arrivals,
            forgotten: 0,
            start_time: None,
            memory_per_session: None,
            session_timeout: Duration::from_secs(300),
            max_concurrent_starts: 2,
            fresh: false,
        }
    }
}

/// Keeps the last calls.
pub(super) struct Recorder {
    ring: Mutex<Ring>,
    room: usize,
}

struct Ring {
    calls: VecDeque<Call>,
    /// The number of the first call that is still there.
    first: u64,
}

#[derive(Clone, Copy)]
struct Call {
    came: Moment,
    decided: Moment,
    given_back: Option<Moment>,
    served: bool,
    caller: ThreadId,
}

impl Recorder {
    /// One with room for so many calls; `None` if that is zero.
    pub(super) fn with_room(room: usize) -> Option<Recorder> {
        let ring = || Mutex::new(Ring { calls: VecDeque::new(), first: 0 });
        (room > 0).then(|| Recorder { ring: ring(), room })
    }

    /// A call has got a session, or has given up. Returns its number, for
    /// [`given_back`](Recorder::given_back).
    pub(super) fn note(&self, came: Moment, decided: Moment, served: bool) -> u64 {
        let mut ring = self.ring.lock();
        if ring.calls.len() == self.room {
            ring.calls.pop_front();
            ring.first += 1;
        }
        ring.calls.push_back(Call {
            came,
            decided,
            given_back: None,
            served,
            caller: thread::current().id(),
        });
        ring.first + ring.calls.len() as u64 - 1
    }

    /// The session of this call came back.
    pub(super) fn given_back(&self, number: u64, now: Moment) {
        let mut ring = self.ring.lock();
        let place = number.checked_sub(ring.first).and_then(|place| usize::try_from(place).ok());
        if let Some(call) = place.and_then(|place| ring.calls.get_mut(place)) {
            call.given_back = Some(now);
        }
    }

    /// The calls by the moment in which they came, and how many were forgotten.
    fn arrivals(&self) -> (Vec<Arrival>, u64) {
        // Copied and no more under the lock, which each acquire and release takes.
        let (mut calls, forgotten) = {
            let ring = self.ring.lock();
            (ring.calls.iter().copied().collect::<Vec<Call>>(), ring.first)
        };
        // They are noted in the order in which they were decided.
        calls.sort_by_key(|call| call.came);
        let Some(began) = calls.first().map(|call| call.came) else { return (Vec::new(), forgotten) };
        let mut callers = HashMap::new();
        let mut arrival = |call: &Call| Arrival {
            at: call.came.saturating_since(began),
            wait: call.decided.saturating_since(call.came),
            hold: call.given_back.map(|back| back.saturating_since(call.decided)),
            served: call.served,
            caller: {
                let next = callers.len();
                *callers.entry(call.caller).or_insert(next)
            },
        };
        (calls.iter().map(&mut arrival).collect(), forgotten)
    }
}

/// What the pool recorded; nothing if it was not asked to.
pub(super) fn recording(core: &Core) -> Recording {
    let (arrivals, forgotten) = core.recorder.as_ref().map(Recorder::arrivals).unwrap_or_default();
    let starts = core.tallies.starts();
    let handles = core.lock().state.handles();
    let memory: Vec<u64> =
        handles.iter().filter_map(|handle| handle.process.memory()).map(|memory| memory.resident).collect();
    Recording {
        arrivals,
        forgotten,
        start_time: (starts.count > 0).then(|| starts.mean()),
        memory_per_session: memory.iter().sum::<u64>().checked_div(memory.len() as u64),
        session_timeout: core.config.session_timeout,
        max_concurrent_starts: core.config.max_concurrent_starts,
        fresh: core.config.reuse == super::Reuse::Fresh,
    }
}

/// Times as seconds.
mod in_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        // A time-out of `Duration::MAX` is rounded up to more than one can hold.
        let seconds = f64::deserialize(deserializer)?;
        if seconds >= Duration::MAX.as_secs_f64() {
            return Ok(Duration::MAX);
        }
        Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)
    }
}

/// Times that may be missing, as seconds.
mod maybe_in_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[allow(clippy::ref_option, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        seconds.map(Duration::try_from_secs_f64).transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::FAR_FUTURE - Duration::from_secs(1_000_000) + Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_last_calls_are_kept_in_the_order_in_which_they_came() {
        let recorder = Recorder::with_room(2).expect("room");
        let forgotten = recorder.note(at(0), at(0), true);
        let late = recorder.note(at(10), at(50), true);
        recorder.note(at(20), at(40), false);
        recorder.given_back(forgotten, at(60));
        recorder.given_back(late, at(80));
        let (arrivals, before) = recorder.arrivals();
        assert_eq!(before, 1);
        let [first, second] = arrivals[..] else { panic!("{arrivals:?}") };
        assert_eq!((first.at, first.wait), (Duration::ZERO, Duration::from_millis(40)));
        assert_eq!((first.hold, first.served), (Some(Duration::from_millis(30)), true));
        assert_eq!((second.at, second.hold, second.served), (Duration::from_millis(10), None, false));
    }

    #[test]
    fn a_recording_survives_json() {
        let mut recording = Recording::of([(Duration::from_millis(250), Duration::from_millis(1))]);
        recording.session_timeout = Duration::MAX;
        recording.start_time = Some(Duration::from_millis(8));
        let text = serde_json::to_string(&recording).expect("fit for JSON");
        let back: Recording = serde_json::from_str(&text).expect("readable");
        assert_eq!(back, recording);
    }
}
