//! A pool as one would describe it: plain lists, and each rule as one would say it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use crate::clock::Moment;

/// What becomes of somebody who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Granted(u64),
    /// Its time was over before anything else came: it is refused, in whatever words.
    Late,
    Cancelled,
    Closed,
    StartFailing,
}

/// Somebody who waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) id: u64,
    pub(super) priority: i32,
    pub(super) deadline: Moment,
}

/// The pool as one would describe it.
#[derive(Debug)]
pub(super) struct Naive {
    pub(super) now: Moment,
    pub(super) open: bool,
    pub(super) paused: bool,
    pub(super) min_idle: usize,
    pub(super) max: usize,
    pub(super) idle_limit: Duration,
    pub(super) reset_limit: Duration,
    /// Idle sessions and since when; the last one is lent next.
    pub(super) idle: Vec<(u64, Moment)>,
    pub(super) held: Vec<u64>,
    /// Since when; the monitor has none of them in hand.
    pub(super) resetting: Vec<(u64, Moment)>,
    /// What the monitor has in hand, and since when it had been idle.
    pub(super) looked_at: Option<(u64, Option<Moment>)>,
    pub(super) starting: usize,
    pub(super) leaving: Vec<u64>,
    pub(super) dead: BTreeSet<u64>,
    /// In order of arrival. Those whose time is over stay until they notice.
    pub(super) queue: Vec<Wish>,
    pub(super) told: BTreeMap<u64, Fate>,
    /// A start of the batch that is under way has failed.
    pub(super) batch_failed: bool,
}

impl Naive {
    /// A session is fit for the next user.
    pub(super) fn fit(&mut self, session: u64, idle_since: Option<Moment>) {
        let live = self.idle.len() + self.held.len() + self.in_reset() + self.starting + 1;
        if !self.open || self.dead.contains(&session) || live > self.max {
            self.leaving.push(session);
        } else if let Some(wish) = self.next_in_line() {
            self.grant(wish, session);
        } else {
            let since = idle_since.unwrap_or(self.now);
            let at = idle_since.map_or(self.idle.len(), |since| {
                self.idle.iter().take_while(|(_, other)| *other < since).count()
            });
            self.idle.insert(at, (session, since));
        }
    }

    /// Highest priority first, then first come, first served; not those whose time is over.
    pub(super) fn next_in_line(&self) -> Option<Wish> {
        let live = self.queue.iter().filter(|wish| !self.paused && wish.deadline > self.now);
        live.rev().max_by_key(|wish| wish.priority).copied()
    }

    pub(super) fn grant(&mut self, wish: Wish, session: u64) {
        self.tell(wish.id, Fate::Granted(session));
        self.held.push(session);
    }

    pub(super) fn tell(&mut self, id: u64, fate: Fate) {
        let late = self.queue.iter().any(|wish| wish.id == id && wish.deadline <= self.now);
        self.queue.retain(|wish| wish.id != id);
        self.told.insert(id, if late { Fate::Late } else { fate });
    }

    /// The session that is lent next; dead ones are found on the way.
    pub(super) fn take_idle(&mut self) -> Option<u64> {
        while let Some((session, _)) = self.idle.pop() {
            if !self.dead.contains(&session) {
                return Some(session);
            }
            self.leaving.push(session);
        }
        None
    }

    /// After every gain or loss. `no_start`: the back-off has not passed.
    pub(super) fn settle(&mut self, no_start: bool) {
        while !self.idle.is_empty()
            && let Some(wish) = self.next_in_line()
            && let Some(session) = self.take_idle()
        {
            self.grant(wish, session);
        }
        let alive = self.idle.len() + self.held.len() + self.in_reset();
        if no_start && alive + self.starting == 0 {
            for wish in self.queue.clone() {
                self.tell(wish.id, Fate::StartFailing);
            }
        }
        while self.idle.len() + self.held.len() + self.in_reset() + self.starting > self.max
            && !self.idle.is_empty()
        {
            let (session, _) = self.idle.remove(0);
            self.leaving.push(session);
        }
    }

    pub(super) fn in_reset(&self) -> usize {
        self.resetting.len() + usize::from(self.looked_at.is_some())
    }

    pub(super) fn total(&self) -> usize {
        self.idle.len() + self.held.len() + self.in_reset() + self.starting + self.leaving.len()
    }

    pub(super) fn health_pass(&mut self) {
        let (now, mut left) = (self.now, self.idle.len());
        for (session, since) in mem::take(&mut self.idle) {
            let too_long = left > self.min_idle && now >= since + self.idle_limit;
            if self.dead.contains(&session) || too_long {
                self.leaving.push(session);
                left -= 1;
            } else {
                self.idle.push((session, since));
            }
        }
        let limit = self.reset_limit;
        let (overdue, in_time): (Vec<_>, Vec<_>) =
            self.resetting.drain(..).partition(|(_, since)| now >= *since + limit);
        self.resetting = in_time;
        self.leaving.extend(overdue.iter().map(|(session, _)| *session));
    }

    pub(super) fn close(&mut self) {
        self.open = false;
        self.paused = false;
        for wish in self.queue.clone() {
            self.tell(wish.id, Fate::Closed);
        }
        self.leaving.extend(self.idle.drain(..).map(|(session, _)| session));
        self.leaving.extend(self.resetting.drain(..).map(|(session, _)| session));
    }
}
