//! What is counted outside the pool's lock: executions, starts, warm imports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::histogram::{Histogram, HistogramSnapshot, seconds};
use crate::session::{Outcome, WarmReport, Witness};
use crate::sync::Mutex;

/// How executions ended, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExecutionCounts {
    /// [`Outcome::Completed`].
    pub completed: u64,
    /// [`Outcome::Failed`].
    pub failed: u64,
    /// [`Outcome::Cancelled`].
    pub cancelled: u64,
    /// [`Outcome::TimedOut`].
    pub timed_out: u64,
    /// [`Outcome::LimitExceeded`].
    pub limit_exceeded: u64,
    /// [`Outcome::Died`].
    pub died: u64,
    /// The worker broke the protocol: [`Error::Protocol`].
    pub broken: u64,
}

/// What came of one warm import, over all processes that warmed up: sessions, or their template.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmImportStats {
    /// The module.
    pub module: String,
    /// How often it was imported.
    pub imports: u64,
    /// How often that failed.
    pub failures: u64,
    /// Time of all imports together, in seconds.
    #[serde(serialize_with = "seconds")]
    pub total_time: Duration,
    /// Time of the last one, in seconds.
    #[serde(serialize_with = "seconds")]
    pub last_time: Duration,
    /// What the last one that told added to its worker's resident memory, in bytes.
    pub memory: Option<u64>,
    /// Why the last one that failed did.
    pub last_error: Option<String>,
}

/// The counts of one pool.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    executions: Histogram,
    outcomes: [AtomicU64; 7],
    starts: Histogram,
    warm: Mutex<BTreeMap<String, WarmImportStats>>,
}

impl Tallies {
    /// A start took `time` and brought a session.
    pub(super) fn started(&self, time: Duration) {
        self.starts.record(time);
    }

    /// A process has warmed up.
    pub(super) fn warmed_up(&self, report: &WarmReport) {
        for import in &report.imports {
            self.imported(&import.module, import.time, import.memory, import.error.as_deref());
        }
    }

    /// A start failed, perhaps at an import without which no session may start.
    pub(super) fn start_failed(&self, error: &Error) {
        if let Error::WarmUp { what, message, .. } = error
            && let Some(module) = what.strip_prefix("import of ")
        {
            self.imported(module, Duration::ZERO, None, Some(message));
        }
    }

    fn imported(&self, module: &str, time: Duration, memory: Option<u64>, error: Option<&str>) {
        let mut warm = self.warm.lock();
        let stats = warm.entry(module.to_owned()).or_insert_with(|| WarmImportStats {
            module: module.to_owned(),
            imports: 0,
            failures: 0,
            total_time: Duration::ZERO,
            last_time: Duration::ZERO,
            memory: None,
            last_error: None,
        });
        stats.imports += 1;
        stats.total_time += time;
        stats.last_time = time;
        stats.memory = memory.or(stats.memory);
        if let Some(error) = error {
            stats.failures += 1;
            stats.last_error = Some(error.to_owned());
        }
    }

    pub(super) fn warm_imports(&self) -> Vec<WarmImportStats> {
        self.warm.lock().values().cloned().collect()
    }

    pub(super) fn executions(&self) -> (ExecutionCounts, HistogramSnapshot) {
        let [completed, failed, cancelled, timed_out, limit_exceeded, died, broken] =
            self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed));
        let counts =
            ExecutionCounts { completed, failed, cancelled, timed_out, limit_exceeded, died, broken };
        (counts, self.executions.snapshot())
    }

    /// The mean time of starts that brought a session.
    pub(super) fn start_time(&self) -> Duration {
        self.starts.mean()
    }

    /// The times of starts that brought a session.
    pub(super) fn starts(&self) -> HistogramSnapshot {
        self.starts.snapshot()
    }
}

impl Witness for Tallies {
    fn executed(&self, outcome: Option<Outcome>, duration: Duration) {
        let index = match outcome {
            Some(Outcome::Completed) => 0,
            Some(Outcome::Failed) => 1,
            Some(Outcome::Cancelled { .. }) => 2,
            Some(Outcome::TimedOut { .. }) => 3,
            Some(Outcome::LimitExceeded { .. }) => 4,
            Some(Outcome::Died) => 5,
            None => 6,
        };
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
        self.executions.record(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_counts_under_its_own_name() {
        let tallies = Tallies::default();
        let outcomes = [Some(Outcome::Completed), Some(Outcome::Failed), Some(Outcome::Died), None];
        for (times, outcome) in outcomes.into_iter().enumerate() {
            for _ in 0..=times {
                tallies.executed(outcome, Duration::from_millis(1));
            }
        }
        let (counts, durations) = tallies.executions();
        assert_eq!((counts.completed, counts.failed, counts.died, counts.broken), (1, 2, 3, 4));
        assert_eq!((durations.count, durations.sum), (10, Duration::from_millis(10)));
    }

    #[test]
    fn warm_imports_add_up_by_module() {
        let tallies = Tallies::default();
        tallies.imported("json", Duration::from_millis(2), Some(100), None);
        tallies.imported("json", Duration::from_millis(3), None, None);
        let message = "No module named 'nosuch'".to_owned();
        let error = Error::WarmUp { what: "import of nosuch".to_owned(), message, traceback: String::new() };
        tallies.start_failed(&error);
        let [json, nosuch] = &tallies.warm_imports()[..] else { panic!("two modules") };
        assert_eq!((json.imports, json.failures, json.memory), (2, 0, Some(100)));
        assert_eq!((json.total_time, json.last_time), (Duration::from_millis(5), Duration::from_millis(3)));
        assert_eq!((nosuch.module.as_str(), nosuch.failures), ("nosuch", 1));
        assert_eq!(nosuch.last_error.as_deref(), Some("No module named 'nosuch'"));
    }
}
