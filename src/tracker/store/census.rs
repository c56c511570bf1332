//! How many sessions there are, by app and state; and what came of beats.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::Missed;
use super::{SessionStore, looks};
use crate::Result;

/// Apps that are counted on their own: those with the most sessions. All others are one, called `other`.
const APPS: usize = 100;
const OTHER: &str = "other";

/// Sessions by app: how many are in each of [`STATES`].
#[derive(Debug, Default)]
pub(in crate::tracker) struct Census(BTreeMap<String, [u64; STATES.len()]>);

/// Each session is in the first of those that fits, from the right.
const STATES: [&str; 5] = ["running", "idle", "late", "killing", "stale"];
const RUNNING: usize = 0;
const IDLE: usize = 1;
const LATE: usize = 2;
const KILLING: usize = 3;
const STALE: usize = 4;

impl Census {
    /// Each app, and how many of its sessions are in each state.
    pub(in crate::tracker) fn apps(&self) -> Vec<(&str, [(&'static str, u64); STATES.len()])> {
        let of = |counts: &[u64; STATES.len()]| std::array::from_fn(|state| (STATES[state], counts[state]));
        self.0.iter().map(|(app, counts)| (app.as_str(), of(counts))).collect()
    }

    fn count(&mut self, app: &str, state: usize, count: u64) {
        match self.0.get_mut(app) {
            Some(counts) => counts[state] += count,
            None => self.0.entry(app.to_owned()).or_default()[state] = count,
        }
    }

    /// One session is in another state than its row says.
    fn moves(&mut self, app: &str, from: usize, to: usize) {
        if let Some(counts) = self.0.get_mut(app).filter(|_| to > from) {
            counts[from] = counts[from].saturating_sub(1);
            counts[to] += 1;
        }
    }

    /// Leaves the names of the largest apps only.
    fn capped(self) -> Census {
        let mut apps: Vec<_> = self.0.into_iter().collect();
        apps.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.iter().sum::<u64>()));
        let mut census = Census::default();
        for (at, (app, counts)) in apps.into_iter().enumerate() {
            let app = if at < APPS { app.as_str() } else { OTHER };
            for (state, count) in counts.into_iter().enumerate() {
                census.count(app, state, count);
            }
        }
        census
    }
}

/// What the row says.
fn state_of(is_idle: bool, kill_requested: bool) -> usize {
    match (is_idle, kill_requested) {
        (_, true) => KILLING,
        (true, _) => IDLE,
        _ => RUNNING,
    }
}

impl SessionStore {
    /// Counts the sessions. Those whose beats are in time are counted by their rows; for the others
    /// each row is looked up.
    pub(in crate::tracker) fn census(&self) -> Result<Census> {
        let overdue = looks::overdue(&self.memory, self.thresholds, self.clock.now());
        self.read("counting the sessions", move |tables| {
            let mut census = Census::default();
            let mut groups = tables.prepare_cached(
                "SELECT app_name, status = 'idle', kill_requested, count(*) FROM sessions
                 GROUP BY app_name, status = 'idle', kill_requested",
            )?;
            let mut rows = groups.query([])?;
            while let Some(row) = rows.next()? {
                census.count(
                    row.get_ref(0)?.as_str()?,
                    state_of(row.get(1)?, row.get(2)?),
                    u64::from(row.get::<_, u32>(3)?),
                );
            }
            let mut one = tables.prepare_cached(
                "SELECT app_name, status = 'idle', kill_requested FROM sessions WHERE row = ?",
            )?;
            for (row, is_stale) in overdue {
                let mut found = one.query([row])?;
                if let Some(row) = found.next()? {
                    let (app, to) = (row.get_ref(0)?.as_str()?, if is_stale { STALE } else { LATE });
                    census.moves(app, state_of(row.get(1)?, row.get(2)?), to);
                }
            }
            Ok(census.capped())
        })
    }

    /// What came of beats.
    pub(in crate::tracker) fn beats(&self) -> &BeatCounts {
        &self.beats
    }
}

/// What came of a beat.
#[derive(Clone, Copy, Debug)]
pub(in crate::tracker) enum BeatOutcome {
    Ok,
    /// There is no such session.
    Unknown,
    /// A newer one came before.
    Late,
}

/// Beats by what came of them, since the store was opened.
#[derive(Debug, Default)]
pub(in crate::tracker) struct BeatCounts([AtomicU64; 3]);

impl BeatCounts {
    // Relaxed: these are numbers to look at, and nobody decides by them.
    pub(in crate::tracker) fn note<T>(&self, beat: &Result<T, Missed>) {
        let outcome = match beat {
            Ok(_) => BeatOutcome::Ok,
            Err(Missed::Gone(_)) => BeatOutcome::Unknown,
            Err(Missed::Late) => BeatOutcome::Late,
        };
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::tracker) fn count(&self, outcome: BeatOutcome) -> u64 {
        self.0[outcome as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_apps_keep_their_names_and_nobody_is_left_out() {
        let mut census = Census::default();
        for number in 0..150_u64 {
            census.count(&format!("app-{number}"), RUNNING, number + 1);
        }
        census.moves("app-149", RUNNING, STALE);
        census.moves("app-149", STALE, LATE);
        let census = census.capped();
        let apps = census.apps();
        assert_eq!(apps.len(), APPS + 1);
        let counts = |name: &str| apps.iter().find(|(app, _)| *app == name).unwrap().1;
        assert_eq!(counts(OTHER)[RUNNING], ("running", (1..=50).sum::<u64>()));
        assert_eq!((counts("app-149")[RUNNING].1, counts("app-149")[STALE].1), (149, 1));
        assert_eq!(counts("app-149")[LATE].1, 0, "who is stale is no more late");
        assert!(!apps.iter().any(|(app, _)| *app == "app-49"));
    }
}
