//! Pages of what only memory knows: in the order of the last beats, and those who are late or stale.
//!
//! Memory has no order. So each page looks at all sessions there and keeps the next ones; some
//! milliseconds at a million of them, and beats come in meanwhile.

use rusqlite::{Connection, OptionalExtension};

use super::cursor::Place;
use super::{GLANCES, Page};
use crate::tracker::TrackedStatus;
use crate::tracker::api::{SessionQuery, SortKey};
use crate::tracker::store::memory::Live;
use crate::tracker::store::{looks, rows};

/// What is wanted of memory.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    by_beat: bool,
    descending: bool,
    silence: Silence,
}

#[derive(Clone, Copy)]
enum Silence {
    Any,
    Late,
    Stale,
}

/// What memory is asked for by this query; `None` if an index is the better way.
pub(super) fn wanted(query: &SessionQuery) -> Option<Wanted> {
    let silence = match (&query.state, &query.status) {
        (Some(TrackedStatus::Stale), _) | (_, Some(TrackedStatus::Stale)) => Silence::Stale,
        (Some(TrackedStatus::Late), _) => Silence::Late,
        _ => Silence::Any,
    };
    let by_beat = match (query.sort.key, silence) {
        (SortKey::LastHeartbeat, _) => true,
        (SortKey::StartTime, Silence::Late | Silence::Stale) => false,
        _ => return None,
    };
    Some(Wanted { by_beat, descending: query.sort.descending, silence })
}

/// Whether more is wanted than memory knows.
fn is_mixed(query: &SessionQuery) -> bool {
    let is_silence = |status: &TrackedStatus| matches!(status, TrackedStatus::Stale | TrackedStatus::Late);
    let SessionQuery { app, user, status, state, label, id, search, .. } = query;
    let of_table = [app, user, label, id, search].iter().any(|wanted| wanted.is_some());
    let both = status.is_some() && state.is_some();
    of_table || both || [status, state].into_iter().flatten().any(|wanted| !is_silence(wanted))
}

/// Reads a page; whether the list ends with it, and how many fit, if that is known.
pub(super) fn read(
    page: &mut Page<'_>,
    tables: &Connection,
    wanted: Wanted,
    from: Option<&Place>,
) -> rusqlite::Result<(bool, Option<usize>)> {
    let is_mixed = is_mixed(page.query);
    // To find a row by its number takes longer than to find the next one of an index.
    let most = if is_mixed { GLANCES / 4 } else { page.query.limit + 1 };
    let (next, fitting) = next(page, wanted, from, most);
    let total = (!is_mixed).then_some(fitting);
    let query = format!("SELECT {} FROM sessions WHERE row = ?", rows::COLUMNS);
    let mut statement = tables.prepare_cached(&query)?;
    for &(millis, row) in &next {
        if page.is_full() {
            return Ok((false, total));
        }
        // One that is gone is not there.
        statement.query_row([row], |row| page.take(row)).optional()?;
        page.last = Some(Place { text: String::new(), millis, row });
    }
    Ok((next.len() < most, total))
}

/// The next sessions behind a place, by what they are sorted and their rows; and how many there are in all.
fn next(page: &Page<'_>, wanted: Wanted, from: Option<&Place>, most: usize) -> (Vec<(i64, i64)>, usize) {
    // Turned over, so that the smallest is always the next.
    let turned = |(millis, row): (i64, i64)| if wanted.descending { (!millis, !row) } else { (millis, row) };
    let from = from.map(|place| turned((place.millis, place.row)));
    let mut smallest = Smallest { most, found: Vec::with_capacity(2 * most), bound: None };
    let mut fitting = 0;
    looks::each(page.memory, |live| {
        if is_wanted(page, wanted, live) {
            fitting += 1;
            let millis = if wanted.by_beat { live.seen_millis() } else { live.start_millis() };
            let key = turned((millis, live.row()));
            if from.is_none_or(|from| from < key) {
                smallest.push(key);
            }
        }
    });
    (smallest.sorted().into_iter().map(turned).collect(), fitting)
}

/// The smallest of many, in a time that does not depend on how they come.
struct Smallest {
    most: usize,
    /// Up to twice as many.
    found: Vec<(i64, i64)>,
    /// Whatever is not smaller is none of them.
    bound: Option<(i64, i64)>,
}

impl Smallest {
    fn push(&mut self, key: (i64, i64)) {
        if self.bound.is_some_and(|bound| key >= bound) {
            return;
        }
        self.found.push(key);
        if self.found.len() == 2 * self.most {
            self.bound = Some(*self.found.select_nth_unstable(self.most).1);
            self.found.truncate(self.most);
        }
    }

    fn sorted(mut self) -> Vec<(i64, i64)> {
        self.found.sort_unstable();
        self.found.truncate(self.most);
        self.found
    }
}

fn is_wanted(page: &Page<'_>, wanted: Wanted, live: &Live) -> bool {
    let state = || page.thresholds.state(live.silence(page.now.moment), live.pace(), &TrackedStatus::Running);
    match wanted.silence {
        Silence::Any => true,
        Silence::Late => state() == TrackedStatus::Late,
        Silence::Stale => state() == TrackedStatus::Stale,
    }
}
