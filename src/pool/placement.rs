//! Places where a pool's sessions run: which one is next, and what if it fails.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::cancel::CancelToken;
use crate::clock::{Clock, Moment};
use crate::error::{Error, Result};
use crate::histogram::seconds;
use crate::session::{Process, Runtime, Session, SessionConfig};
use crate::sync::Mutex;

/// The pause after a start that failed, doubled with each further one, up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// One of the places where the sessions of a pool run: see
/// [`PoolConfig::placements`](crate::PoolConfig::placements).
///
/// ```
/// use remuda::{Placement, Runtime, SessionPool};
///
/// let python = || Runtime::python("python3");
/// let config = SessionPool::builder(python()).max_sessions(12).placements([
///     Placement::new("here", python()).max_sessions(4),
///     Placement::new("big", python().remote(["ssh", "big.example"])).weight(2),
/// ]);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Placement {
    /// Its name in reports, events and metrics.
    pub name: String,
    /// How a worker is started there.
    pub runtime: Runtime,
    /// Sessions that it has at most, those that start or leave included. Default: no limit.
    pub max_sessions: usize,
    /// Its share: one of weight 2 gets twice as many sessions as one of weight 1. Default: 1.
    pub weight: u32,
}

impl Placement {
    /// A place with this name where workers are started like this.
    pub fn new(name: impl Into<String>, runtime: Runtime) -> Placement {
        Placement { name: name.into(), runtime, max_sessions: usize::MAX, weight: 1 }
    }

    /// Sets [`max_sessions`](Placement::max_sessions).
    pub fn max_sessions(mut self, count: usize) -> Placement {
        self.max_sessions = count;
        self
    }

    /// Sets [`weight`](Placement::weight).
    pub fn weight(mut self, weight: u32) -> Placement {
        self.weight = weight;
        self
    }
}

/// Refuses places that make no sense.
pub(crate) fn check(placements: &[Placement], session: &SessionConfig, max_sessions: usize) -> Result<()> {
    let refuse = |reason: String| Err(Error::config("placements", reason));
    for (index, placement) in placements.iter().enumerate() {
        let name = &placement.name;
        if name.is_empty() || placements[..index].iter().any(|other| other.name == *name) {
            return refuse(format!("the name {name:?} is empty, or there twice"));
        }
        if placement.max_sessions == 0 || placement.weight == 0 {
            return refuse(format!("{name:?} has a weight or max_sessions of zero; leave it out"));
        }
        session.with_runtime(placement.runtime.clone()).validate()?;
    }
    let room = placements.iter().fold(0_usize, |sum, placement| sum.saturating_add(placement.max_sessions));
    if !placements.is_empty() && room < max_sessions {
        return refuse(format!("all together have room for {room} sessions, max_sessions is {max_sessions}"));
    }
    Ok(())
}

/// A placement as it is, from [`PoolInfo::placements`](crate::PoolInfo::placements).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlacementRow {
    /// Its name.
    pub name: String,
    /// Its share.
    pub weight: u32,
    /// Its limit, if it has one.
    pub max_sessions: Option<usize>,
    /// Processes there, those that start or leave included.
    pub sessions: usize,
    /// Sessions that became ready there, since the pool's start.
    pub started: u64,
    /// Starts that failed there, since the pool's start.
    pub failed: u64,
    /// Why the last start failed, while the last one did.
    pub last_error: Option<String>,
    /// How long no start is tried there, in seconds; zero if it gets sessions.
    #[serde(serialize_with = "seconds")]
    pub retry_in: Duration,
}

/// All places of a pool.
pub(super) struct Placements(Mutex<Vec<Desk>>);

struct Desk {
    placement: Placement,
    config: Arc<SessionConfig>,
    /// Those that may live yet.
    processes: Vec<Weak<Process>>,
    starting: usize,
    started: u64,
    failed: u64,
    /// Starts that failed one after the other.
    failures: u32,
    retry_at: Moment,
    last_error: Option<String>,
    /// Whether the listener knows that it fails.
    told: bool,
}

/// What has become of a placement.
pub(super) enum Turn {
    Failed { placement: String, cause: String },
    Recovered { placement: String },
}

impl Placements {
    pub(super) fn new(placements: &[Placement], session: &SessionConfig) -> Placements {
        let desk = |placement: &Placement| Desk {
            placement: placement.clone(),
            config: Arc::new(session.with_runtime(placement.runtime.clone())),
            processes: Vec::new(),
            starting: 0,
            started: 0,
            failed: 0,
            failures: 0,
            retry_at: Moment::LONG_AGO,
            last_error: None,
            told: false,
        };
        Placements(Mutex::new(placements.iter().map(desk).collect()))
    }

    /// Whether a worker could be started anywhere, as far as that is known without starting one.
    pub(super) fn check_programs(placements: &[Placement], limit: Duration) -> Result<()> {
        let mut last = Ok(());
        for placement in placements {
            last = placement.runtime.launch(limit).map(drop);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Starts a session where there is most room; if that fails, at the next. The error is the last one.
    pub(super) fn start(&self, clock: &Clock, stop: &CancelToken) -> Result<Session> {
        let mut tried = Vec::new();
        loop {
            let (index, config) = self.take(&tried, clock.now());
            let attempt = Attempt { placements: self, index };
            let started = Session::start_unless(&config, stop);
            match &started {
                Ok(session) => attempt.succeeded(session),
                Err(_) if stop.is_cancelled() => return started,
                Err(error) => attempt.failed(error, clock),
            }
            tried.push(index);
            if started.is_ok() || !self.is_any_left(&tried, clock.now()) {
                return started;
            }
        }
    }

    /// Takes a place for a start. If all of them have failed lately, the one whose pause ends first.
    fn take(&self, tried: &[usize], now: Moment) -> (usize, Arc<SessionConfig>) {
        // Before the guard, and so dropped after it.
        let mut seen = Vec::new();
        let mut desks = self.0.lock();
        let loads = loads(&mut desks, &mut seen);
        let earliest =
            || (0..loads.len()).min_by_key(|index| (loads[*index].is_full(), loads[*index].retry_at));
        let index = choose(&loads, tried, now).or_else(earliest).unwrap_or(0);
        desks[index].starting += 1;
        (index, Arc::clone(&desks[index].config))
    }

    fn is_any_left(&self, tried: &[usize], now: Moment) -> bool {
        let mut seen = Vec::new();
        choose(&loads(&mut self.0.lock(), &mut seen), tried, now).is_some()
    }

    /// A session has a new process, where it was.
    pub(super) fn note(&self, session: &Session) {
        let mut desks = self.0.lock();
        if let Some(desk) = desks.iter_mut().find(|desk| session.is_made_of(&desk.config)) {
            desk.processes.push(Arc::downgrade(session.process()));
        }
    }

    /// Where this process runs.
    pub(super) fn of(&self, process: &Arc<Process>) -> Option<String> {
        let desks = self.0.lock();
        let has = |desk: &&Desk| desk.processes.iter().any(|known| known.as_ptr() == Arc::as_ptr(process));
        desks.iter().find(has).map(|desk| desk.placement.name.clone())
    }

    pub(super) fn rows(&self, now: Moment) -> Vec<PlacementRow> {
        let mut seen = Vec::new();
        let mut desks = self.0.lock();
        let loads = loads(&mut desks, &mut seen);
        let row = |(desk, load): (&Desk, &Load)| PlacementRow {
            name: desk.placement.name.clone(),
            weight: load.weight,
            max_sessions: Some(load.max).filter(|max| *max < usize::MAX),
            sessions: load.sessions,
            started: desk.started,
            failed: desk.failed,
            last_error: desk.last_error.clone(),
            retry_in: load.retry_at.saturating_since(now),
        };
        desks.iter().zip(&loads).map(row).collect()
    }

    /// What has changed since this was asked the last time.
    pub(super) fn news(&self) -> Vec<Turn> {
        let mut desks = self.0.lock();
        let turned = desks.iter_mut().filter(|desk| desk.told != desk.last_error.is_some());
        turned
            .map(|desk| {
                desk.told = desk.last_error.is_some();
                let placement = desk.placement.name.clone();
                match &desk.last_error {
                    Some(cause) => Turn::Failed { placement, cause: cause.clone() },
                    None => Turn::Recovered { placement },
                }
            })
            .collect()
    }
}

/// A start at a place, until it has ended.
struct Attempt<'a> {
    placements: &'a Placements,
    index: usize,
}

impl Attempt<'_> {
    fn succeeded(&self, session: &Session) {
        let desk = &mut self.placements.0.lock()[self.index];
        desk.processes.push(Arc::downgrade(session.process()));
        desk.started += 1;
        (desk.failures, desk.retry_at, desk.last_error) = (0, Moment::LONG_AGO, None);
    }

    fn failed(&self, error: &Error, clock: &Clock) {
        let (first, longest) = PAUSES;
        let desk = &mut self.placements.0.lock()[self.index];
        let pause = first.saturating_mul(1 << desk.failures.min(16)).min(longest);
        desk.failed += 1;
        desk.failures = desk.failures.saturating_add(1);
        desk.retry_at = clock.after(pause);
        desk.last_error = Some(error.to_string());
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.placements.0.lock()[self.index].starting -= 1;
    }
}

/// How much a place has to do.
struct Load {
    sessions: usize,
    max: usize,
    weight: u32,
    retry_at: Moment,
}

impl Load {
    fn is_full(&self) -> bool {
        self.sessions >= self.max
    }
}

/// Asks the kernel which processes have ended (0.3 µs each): no count has to be kept right by anybody.
/// Whom it has `seen` is to be let go without the lock.
fn loads(desks: &mut [Desk], seen: &mut Vec<Arc<Process>>) -> Vec<Load> {
    let mut lives = |process: &Weak<Process>| {
        let Some(process) = process.upgrade() else { return false };
        let lives = !process.has_ended();
        seen.push(process);
        lives
    };
    let load = |desk: &mut Desk| {
        desk.processes.retain(&mut lives);
        Load {
            sessions: desk.processes.len() + desk.starting,
            max: desk.placement.max_sessions,
            weight: desk.placement.weight,
            retry_at: desk.retry_at,
        }
    };
    desks.iter_mut().map(load).collect()
}

/// The place that would be least loaded for its weight with one session more; the first of equals. Not
/// one that is full, has failed a moment ago, or was tried already.
fn choose(loads: &[Load], tried: &[usize], now: Moment) -> Option<usize> {
    let open = loads
        .iter()
        .enumerate()
        .filter(|(index, load)| !tried.contains(index) && !load.is_full() && load.retry_at <= now);
    // a/b < c/d without a division.
    let lighter = |a: &Load, b: &Load| {
        let share = |load: &Load, other: &Load| (load.sessions as u128 + 1) * u128::from(other.weight);
        share(a, b).cmp(&share(b, a))
    };
    open.min_by(|(_, a), (_, b)| lighter(a, b)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sessions: usize, max: usize, weight: u32) -> Load {
        Load { sessions, max, weight, retry_at: Moment::LONG_AGO }
    }

    #[test]
    fn sessions_are_spread_by_weight_up_to_the_limits() {
        let mut loads = [load(0, usize::MAX, 1), load(0, 3, 2), load(0, 5, 2)];
        let mut order = Vec::new();
        while let Some(index) = choose(&loads, &[], Moment::now()).filter(|_| order.len() < 12) {
            loads[index].sessions += 1;
            order.push(index);
        }
        assert_eq!(order, [1, 2, 0, 1, 2, 1, 2, 0, 2, 2, 0, 0]);
        assert_eq!([loads[0].sessions, loads[1].sessions, loads[2].sessions], [4, 3, 5]);
    }

    #[test]
    fn a_place_that_has_failed_or_was_tried_is_passed_over() {
        let now = Moment::now();
        let mut loads = [load(0, 9, 1), load(5, 9, 1)];
        assert_eq!(choose(&loads, &[0], now), Some(1));
        assert_eq!(choose(&loads, &[0, 1], now), None);
        loads[0].retry_at = now + Duration::from_secs(1);
        assert_eq!(choose(&loads, &[], now), Some(1));
        assert_eq!(choose(&loads, &[], now + Duration::from_secs(1)), Some(0));
    }
}
