//! Why somebody waits, and why somebody had to: a closed set of reasons, counted.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::metrics::counted;
use crate::clock::Moment;
use crate::histogram::seconds;
use crate::named::show_by_name;

/// Waiters that are explained: the lock is held for them.
pub(super) const MOST_ROWS: usize = 1_000;
/// Waiters that stand in the text; all rows are in the value.
const SHOWN: usize = 20;
/// Callers that found nothing idle, as many of the last ones as a pool remembers.
const REMEMBERED: usize = 32;

/// Why a caller found no idle session at the moment it asked. Of several reasons the first in this
/// list that holds is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MissReason {
    /// The pool is paused.
    Paused,
    /// The quota of its tenant is used up.
    Quota,
    /// Enough sessions for it were on their way back to their warm state.
    Resetting,
    /// Enough sessions for it were on their way already, being started.
    Starting,
    /// `max_sessions` processes exist, all of them busy, starting or leaving.
    AtMaxSessions,
    /// Sessions cannot be started at the moment: the breaker is open.
    BreakerOpen,
    /// More came at once than the watermark keeps idle: a session is started for it.
    BurstBeyondWatermark,
}

impl MissReason {
    pub(crate) const ALL: [MissReason; 7] = [
        MissReason::Paused,
        MissReason::Quota,
        MissReason::Resetting,
        MissReason::Starting,
        MissReason::AtMaxSessions,
        MissReason::BreakerOpen,
        MissReason::BurstBeyondWatermark,
    ];

    /// Its name in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            MissReason::Paused => "paused",
            MissReason::Quota => "quota",
            MissReason::BreakerOpen => "breaker_open",
            MissReason::Resetting => "resetting",
            MissReason::Starting => "starting",
            MissReason::AtMaxSessions => "at_max_sessions",
            MissReason::BurstBeyondWatermark => "burst_beyond_watermark",
        }
    }

    /// What would have helped.
    pub fn remedy(self) -> &'static str {
        match self {
            MissReason::Paused => "resume the pool",
            MissReason::Quota => "raise the tenant's quota, or let it queue less",
            MissReason::BreakerOpen => "look at the breaker's cause: sessions fail to start",
            MissReason::Resetting => "raise min_idle by the sessions that reset at the same time",
            MissReason::Starting => "raise min_idle, or make the start shorter with a template",
            MissReason::AtMaxSessions => "raise max_sessions, or hold sessions for a shorter time",
            MissReason::BurstBeyondWatermark => "raise min_idle to the size of the bursts",
        }
    }
}

show_by_name!(MissReason, WaitReason);

/// What a caller in the queue waits for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WaitReason {
    /// The pool is paused.
    Paused,
    /// The quota of its tenant is used up: for a release by the same tenant.
    Quota,
    /// The breaker is open: for the next attempt to start a session, or a release.
    BreakerOpen,
    /// A session on its way back to its warm state.
    Resetting,
    /// A session that is being started for it.
    Starting,
    /// `max_sessions` is reached: for a release.
    AtMaxSessions,
}

impl WaitReason {
    /// Its name in JSON and in the text of an [`Explanation`].
    pub fn as_str(self) -> &'static str {
        match self {
            WaitReason::Paused => "paused",
            WaitReason::Quota => "quota",
            WaitReason::BreakerOpen => "breaker_open",
            WaitReason::Resetting => "resetting",
            WaitReason::Starting => "starting",
            WaitReason::AtMaxSessions => "at_max_sessions",
        }
    }
}

/// One caller or job in the queue.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WaiterRow {
    /// How long it has waited, in seconds.
    #[serde(serialize_with = "seconds")]
    pub waited: Duration,
    /// How many are served before it, as things stand: if nothing is given back that makes room in a
    /// quota, and nobody comes.
    pub ahead: usize,
    /// On whose behalf it asked, if it said so.
    pub tenant: Option<String>,
    /// What it called its acquire, if it did.
    pub label: Option<String>,
    /// The priority it asked with, which counts within its tenant.
    pub priority: i32,
    /// Whether it is a job, so that no thread waits.
    pub job: bool,
    /// What it waits for.
    pub reason: WaitReason,
}

/// The callers that found nothing idle: how many for which reason, and the last of them.
#[derive(Debug, Default)]
pub(crate) struct Misses {
    pub(crate) counts: [u64; MissReason::ALL.len()],
    recent: VecDeque<(Moment, MissReason)>,
}

impl Misses {
    pub(crate) fn note(&mut self, reason: MissReason, now: Moment) {
        self.counts[reason as usize] += 1;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((now, reason));
    }

    pub(crate) fn recent(&self, now: Moment) -> Vec<Miss> {
        let miss =
            |(at, reason): &(Moment, MissReason)| Miss { ago: now.saturating_since(*at), reason: *reason };
        self.recent.iter().map(miss).collect()
    }
}

/// One caller that found nothing idle.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Miss {
    /// How long ago, in seconds.
    #[serde(serialize_with = "seconds")]
    pub ago: Duration,
    /// Why.
    pub reason: MissReason,
}

/// How often each reason held. Every caller that found nothing idle counts once, whether it got a
/// session in the end or gave up; those that were refused at once do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MissCount {
    /// The reason.
    pub reason: MissReason,
    /// How often, since the pool's start.
    pub count: u64,
}

/// Why callers wait and had to wait, from [`SessionPool::explain`](crate::SessionPool::explain). Its
/// `Display` form is a few lines for a person.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The queue, the next to be served first (at most 1,000).
    pub waiters: Vec<WaiterRow>,
    /// How often each reason held, the most frequent first; reasons that never held are left out.
    pub misses: Vec<MissCount>,
    /// The last callers that found nothing idle, the latest last (at most 32).
    pub recent: Vec<Miss>,
    /// Why sessions cannot be started, while that is so.
    pub start_trouble: Option<String>,
}

impl Explanation {
    pub(crate) fn new(
        waiters: Vec<WaiterRow>,
        counts: &[u64; MissReason::ALL.len()],
        recent: Vec<Miss>,
        start_trouble: Option<String>,
    ) -> Explanation {
        let mut misses = counted(&MissReason::ALL, counts, |reason, count| MissCount { reason, count });
        misses.sort_by_key(|miss| std::cmp::Reverse(miss.count));
        Explanation { waiters, misses, recent, start_trouble }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cause) = &self.start_trouble {
            writeln!(f, "sessions cannot be started: {cause}")?;
        }
        if self.waiters.is_empty() {
            writeln!(f, "nobody waits")?;
        }
        for waiter in self.waiters.iter().take(SHOWN) {
            let (waited, ahead) = (waiter.waited.as_secs_f64(), waiter.ahead);
            write!(f, "waits for {waited:.3} s with {ahead} ahead: {}", waiter.reason.as_str())?;
            let names = [("tenant", &waiter.tenant), ("label", &waiter.label)];
            for (what, name) in names.iter().filter_map(|(what, name)| Some((what, name.as_ref()?))) {
                write!(f, ", {what} {name}")?;
            }
            if waiter.priority != 0 {
                write!(f, ", priority {}", waiter.priority)?;
            }
            if waiter.job {
                write!(f, ", a job")?;
            }
            writeln!(f)?;
        }
        match self.waiters.len() {
            0..=SHOWN => {}
            MOST_ROWS.. => writeln!(f, "and {} or more behind them", MOST_ROWS - SHOWN)?,
            more => writeln!(f, "and {} behind them", more - SHOWN)?,
        }
        for MissCount { reason, count } in &self.misses {
            writeln!(f, "{count} found nothing idle, {reason}: {}", reason.remedy())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_queue_is_a_few_lines_for_a_person() {
        let lines = |waiting: usize| {
            let row = |ahead| WaiterRow {
                waited: Duration::from_secs(1),
                ahead,
                tenant: None,
                label: None,
                priority: 0,
                job: true,
                reason: WaitReason::AtMaxSessions,
            };
            let waiters = (0..waiting).map(row).collect();
            let text = Explanation::new(waiters, &[0; MissReason::ALL.len()], Vec::new(), None).to_string();
            (text.lines().count(), text.lines().last().unwrap().to_owned())
        };
        assert_eq!(lines(20), (20, "waits for 1.000 s with 19 ahead: at_max_sessions, a job".to_owned()));
        assert_eq!(lines(23), (21, "and 3 behind them".to_owned()));
        assert_eq!(lines(1_000), (21, "and 980 or more behind them".to_owned()));
    }

    #[test]
    fn the_most_frequent_reason_comes_first_with_its_remedy() {
        let mut counts = [0; MissReason::ALL.len()];
        counts[MissReason::AtMaxSessions as usize] = 3;
        counts[MissReason::Starting as usize] = 5;
        let explanation = Explanation::new(Vec::new(), &counts, Vec::new(), None);
        let reasons: Vec<MissReason> = explanation.misses.iter().map(|miss| miss.reason).collect();
        assert_eq!(reasons, [MissReason::Starting, MissReason::AtMaxSessions]);
        let text = explanation.to_string();
        assert!(text.starts_with("nobody waits\n5 found nothing idle, starting: raise min_idle"), "{text}");
    }

    #[test]
    fn each_reason_stands_at_its_own_place_in_the_list() {
        for (index, reason) in MissReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(serde_json::json!(reason), reason.as_str());
        }
    }

    #[test]
    fn a_waiter_is_told_with_its_names() {
        let waiter = WaiterRow {
            waited: Duration::from_millis(1_500),
            ahead: 2,
            tenant: Some("alice".to_owned()),
            label: None,
            priority: 0,
            job: false,
            reason: WaitReason::AtMaxSessions,
        };
        let explanation = Explanation::new(vec![waiter], &[0; MissReason::ALL.len()], Vec::new(), None);
        assert_eq!(
            explanation.to_string(),
            "waits for 1.500 s with 2 ahead: at_max_sessions, tenant alice\n"
        );
    }
}
