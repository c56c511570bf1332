//! Which connection's deadline comes next, for many connections whose deadlines move all the time.
//!
//! Moving a deadline later costs nothing: the entry that stands in the heap comes up too early and
//! is put back. Only moving it before the earliest entry adds one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::Moment;

/// A heap of `(moment, slot, serial)`; an entry whose serial is not the slot's is of a connection
/// that is gone.
#[derive(Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Moment, usize, u64)>>);

/// The part that each connection keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    deadline: Moment,
    /// The earliest entry in the heap.
    armed: Moment,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm { deadline: Moment::FAR_FUTURE, armed: Moment::FAR_FUTURE }
    }
}

impl Deadlines {
    /// Moves a connection's deadline.
    pub(super) fn set(&mut self, alarm: &mut Alarm, deadline: Moment, slot: usize, serial: u64) {
        alarm.deadline = deadline;
        if deadline < alarm.armed {
            alarm.armed = deadline;
            self.0.push(Reverse((deadline, slot, serial)));
        }
    }

    /// When [`pop`](Deadlines::pop) should be asked next.
    pub(super) fn next(&self) -> Option<Moment> {
        self.0.peek().map(|Reverse((moment, ..))| *moment)
    }

    /// The slot and serial of an entry whose moment has come. The caller looks with
    /// [`is_due`](Deadlines::is_due) whether the connection's deadline has.
    pub(super) fn pop(&mut self, now: Moment) -> Option<(usize, u64)> {
        let due = self.next().is_some_and(|moment| moment <= now);
        let Reverse((_, slot, serial)) = due.then(|| self.0.pop()).flatten()?;
        Some((slot, serial))
    }

    /// Whether the deadline has passed; if not, makes sure that an entry stands for it.
    pub(super) fn is_due(&mut self, alarm: &mut Alarm, now: Moment, slot: usize, serial: u64) -> bool {
        if alarm.armed <= now {
            alarm.armed = Moment::FAR_FUTURE;
        }
        if alarm.deadline <= now {
            return true;
        }
        self.set(alarm, alarm.deadline, slot, serial);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_deadline_that_moves_later_keeps_one_entry_and_fires_once_at_its_time() {
        let (mut deadlines, mut alarm, start) = (Deadlines::default(), Alarm::default(), Moment::now());
        for step in 1..=1_000 {
            deadlines.set(&mut alarm, start + SECOND * step, 7, 1);
        }
        assert_eq!(deadlines.0.len(), 1);
        assert_eq!(deadlines.pop(start), None);
        let early = start + SECOND * 2;
        assert_eq!(deadlines.pop(early), Some((7, 1)));
        assert!(!deadlines.is_due(&mut alarm, early, 7, 1));
        let late = start + SECOND * 1_000;
        assert_eq!(deadlines.pop(late), Some((7, 1)));
        assert!(deadlines.is_due(&mut alarm, late, 7, 1));
        assert_eq!(deadlines.pop(late), None);
    }

    #[test]
    fn a_deadline_that_moves_earlier_fires_early() {
        let (mut deadlines, mut alarm, start) = (Deadlines::default(), Alarm::default(), Moment::now());
        deadlines.set(&mut alarm, start + SECOND * 75, 0, 0);
        deadlines.set(&mut alarm, start + SECOND, 0, 0);
        let now = start + SECOND;
        assert_eq!(deadlines.next(), Some(now));
        assert_eq!(deadlines.pop(now), Some((0, 0)));
        assert!(deadlines.is_due(&mut alarm, now, 0, 0));
    }
}
