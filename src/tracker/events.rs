//! The last events: what has happened, numbered, and where each reader is. Pure: it knows no lock, clock
//! or connection.
//!
//! Invariants:
//! 1. Events have the numbers 1, 2, 3 … in the order in which they were pushed; those that are kept
//!    have no gap between them.
//! 2. At most so many are kept, and of so many bytes; the oldest leave first.
//! 3. An id says of which process its number is. A reader with an id that is unknown here, or whose
//!    next event has left, is told so: it never skips an event unawares.

use std::collections::VecDeque;
use std::time::Duration;

use super::api::{EndReason, EventKind, KillScope, SessionCreate, TrackerEvent, Verb};
use super::receipts::{Passed, Receipt};
use super::{TrackedId, civil};

/// At most this many events are kept.
const MOST: usize = 10_000;
/// And at most so many bytes of them.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// What an event costs beside its text, about.
const OVERHEAD: usize = 160;
/// Text that clients chose is cut after this many bytes.
const LONGEST_TEXT: usize = 1_024;
/// So many events one reading looks at, whoever of them it wants.
const LOOKED_AT: usize = 2_000;
/// The word for the first event that is still known.
const OLDEST: &str = "oldest";

/// The numbers of the next event that a reader wants to see.
pub(super) type Cursor = u64;

/// An event in the ring.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) kind: EventKind,
    session: Option<TrackedId>,
    app: Option<String>,
    /// A [`TrackerEvent`] as JSON in one line, without its id.
    text: Box<str>,
}

/// The last events.
#[derive(Debug)]
pub(super) struct Ring {
    /// Tells this process's ids from those of others.
    boot: String,
    /// The number of the oldest event that is kept, or of the next one.
    first: Cursor,
    events: VecDeque<Kept>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

/// What a change has to tell once it is on the disk: of very many events the last ones, which are all
/// that would be kept.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How many there were before these.
    skipped: u64,
    last: VecDeque<TrackerEvent>,
}

/// Which events a reader wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) app: Option<String>,
    pub(super) session: Option<TrackedId>,
    /// Any, if there are none.
    pub(super) kinds: Vec<EventKind>,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    At(Cursor),
    /// Here, but nobody knows what was missed.
    Reset(Cursor),
}

/// That a reader's next event has left the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind;

impl Kept {
    /// Makes the text, which takes a while; numbers are given later.
    pub(super) fn new(event: TrackerEvent) -> Kept {
        // Only maps with odd keys cannot be written.
        let text = serde_json::to_string(&event).unwrap_or_default();
        Kept { kind: event.kind, session: event.session_id, app: event.app_name, text: text.into() }
    }

    /// The whole JSON text.
    pub(super) fn write(&self, id: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(self.text.strip_prefix('{').unwrap_or("}").as_bytes());
    }

    fn cost(&self) -> usize {
        self.text.len() + self.app.as_ref().map_or(0, String::len) + OVERHEAD
    }
}

impl Told {
    pub(super) fn push(&mut self, event: TrackerEvent) {
        if self.last.len() == MOST {
            self.last.pop_front();
            self.skipped += 1;
        }
        self.last.push_back(event);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// How many were left out, and the others with their texts.
    pub(super) fn kept(self) -> (u64, Vec<Kept>) {
        (self.skipped, self.last.into_iter().map(Kept::new).collect())
    }
}

impl Extend<TrackerEvent> for Told {
    fn extend<I: IntoIterator<Item = TrackerEvent>>(&mut self, events: I) {
        for event in events {
            self.push(event);
        }
    }
}

impl From<TrackerEvent> for Told {
    fn from(event: TrackerEvent) -> Told {
        Told { skipped: 0, last: VecDeque::from([event]) }
    }
}

impl Filter {
    fn wants(&self, event: &Kept) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.session.is_none() || self.session == event.session)
            && (self.app.is_none() || self.app == event.app)
    }
}

impl Ring {
    /// An empty one; `boot` is without a hyphen and no other process's.
    pub(super) fn new(boot: String) -> Ring {
        Ring { boot, first: 1, events: VecDeque::new(), bytes: 0, most: MOST, most_bytes: MOST_BYTES }
    }

    pub(super) fn push(&mut self, event: Kept) {
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.events.len() > self.most || self.bytes > self.most_bytes {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.cost();
            self.first += 1;
        }
    }

    /// So many events have happened that leave before anybody sees them.
    pub(super) fn skip(&mut self, count: u64) {
        if count > 0 {
            self.first = self.end() + count;
            self.events.clear();
            self.bytes = 0;
        }
    }

    /// What the next event's number will be.
    pub(super) fn end(&self) -> Cursor {
        self.first + self.events.len() as u64
    }

    /// The id of the last event before this place.
    pub(super) fn id_before(&self, cursor: Cursor) -> String {
        format!("{}-{}", self.boot, cursor - 1)
    }

    /// Where a reader begins who has seen the event with this id, or none yet.
    pub(super) fn begin(&self, after: Option<&str>) -> Begin {
        let next = match after {
            None => return Begin::At(self.end()),
            Some(OLDEST) => return Begin::At(self.first),
            Some(id) => {
                let own = id.strip_prefix(&self.boot).and_then(|rest| rest.strip_prefix('-'));
                own.and_then(|number| number.parse::<Cursor>().ok()).and_then(|number| number.checked_add(1))
            }
        };
        match next {
            Some(next) if (self.first..=self.end()).contains(&next) => Begin::At(next),
            _ => Begin::Reset(self.end()),
        }
    }

    /// Shows events from `cursor` on to `take`, with their ids, until it returns false (then the event
    /// counts as not seen) or all of a good number have been looked at. Returns where to go on.
    pub(super) fn read(
        &self,
        cursor: Cursor,
        filter: &Filter,
        mut take: impl FnMut(&str, &Kept) -> bool,
    ) -> Result<Cursor, Behind> {
        let skip = cursor.checked_sub(self.first).ok_or(Behind)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.events.len());
        let mut next = self.first + skip as u64;
        for event in self.events.range(skip..).take(LOOKED_AT) {
            if filter.wants(event) && !take(&self.id_before(next + 1), event) {
                break;
            }
            next += 1;
        }
        Ok(next)
    }
}

/// Cuts long text between two characters.
fn short(text: &str) -> String {
    if text.len() <= LONGEST_TEXT {
        return text.to_owned();
    }
    let end = (0..=LONGEST_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn maybe_short(text: Option<&String>) -> Option<String> {
    text.map(|text| short(text))
}

/// What happens at one moment, as events.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// The wall clock, for display.
    pub(super) millis: i64,
}

impl At {
    fn event(self, kind: EventKind) -> TrackerEvent {
        TrackerEvent { time: civil::rfc3339(self.millis), kind, ..TrackerEvent::default() }
    }

    pub(super) fn of_session(self, kind: EventKind, id: &TrackedId, app_name: &str) -> TrackerEvent {
        let (session_id, app_name) = (Some(id.clone()), Some(app_name.to_owned()));
        TrackerEvent { session_id, app_name, ..self.event(kind) }
    }

    pub(super) fn registered(self, id: &TrackedId, session: &SessionCreate) -> TrackerEvent {
        TrackerEvent {
            user_id: maybe_short(session.user_id.as_ref()),
            status: Some(session.status.clone().unwrap_or_else(|| "idle".to_owned())),
            current_task: maybe_short(session.current_task.as_ref()),
            ..self.of_session(EventKind::Registered, id, &session.app_name)
        }
    }

    pub(super) fn status(
        self,
        id: &TrackedId,
        app_name: &str,
        status: &str,
        current_task: Option<&str>,
    ) -> TrackerEvent {
        TrackerEvent {
            status: Some(status.to_owned()),
            current_task: current_task.map(short),
            ..self.of_session(EventKind::Status, id, app_name)
        }
    }

    fn of_kill(self, kind: EventKind, receipt: &Receipt) -> TrackerEvent {
        TrackerEvent {
            kill_id: Some(receipt.kill_id),
            scope: Some(receipt.scope),
            requested_by: receipt.requested_by.clone(),
            reason: receipt.reason.clone(),
            ..self.of_session(kind, &receipt.session_id, &receipt.app_name)
        }
    }

    pub(super) fn kill_requested(self, receipt: &Receipt) -> TrackerEvent {
        self.of_kill(EventKind::KillRequested, receipt)
    }

    /// The steps that a kill has just gone through.
    pub(super) fn kill_passed(self, receipt: &Receipt, passed: &[Passed]) -> Vec<TrackerEvent> {
        let event = |step: &Passed| {
            let (kind, after) = match *step {
                Passed::Delivered(after) => (EventKind::KillDelivered, Some(after)),
                Passed::Stopping(after) => (EventKind::KillStopping, Some(after)),
                Passed::Confirmed(after) => (EventKind::KillConfirmed, Some(after)),
                Passed::Expired => (EventKind::KillExpired, receipt.end.map(|(_, after)| after)),
            };
            TrackerEvent { seconds: after.map(|after| after.as_secs_f64()), ..self.of_kill(kind, receipt) }
        };
        passed.iter().map(event).collect()
    }

    pub(super) fn ordered(self, id: &TrackedId, app_name: &str, verb: Verb) -> TrackerEvent {
        TrackerEvent { verb: Some(verb), ..self.of_session(EventKind::Ordered, id, app_name) }
    }

    pub(super) fn ended(self, id: &TrackedId, app_name: &str, ended: EndReason) -> TrackerEvent {
        TrackerEvent { ended: Some(ended), ..self.of_session(EventKind::Ended, id, app_name) }
    }

    pub(super) fn embargo(
        self,
        app_name: &str,
        lasts: Duration,
        (requested_by, reason): (Option<&String>, Option<&String>),
    ) -> TrackerEvent {
        TrackerEvent {
            app_name: Some(app_name.to_owned()),
            scope: Some(KillScope::App),
            seconds: Some(lasts.as_secs_f64()),
            requested_by: requested_by.cloned(),
            reason: reason.cloned(),
            ..self.event(EventKind::Embargo)
        }
    }

    pub(super) fn mass_silence(self, stale: usize, sessions: usize, lasts: Option<Duration>) -> TrackerEvent {
        let kind = if lasts.is_some() { EventKind::MassSilence } else { EventKind::MassSilenceOver };
        let (stale, sessions) = (Some(stale as u64), Some(sessions as u64));
        TrackerEvent { stale, sessions, seconds: lasts.map(|lasts| lasts.as_secs_f64()), ..self.event(kind) }
    }

    pub(super) fn store(self, is_ready: bool) -> TrackerEvent {
        self.event(if is_ready { EventKind::StoreReady } else { EventKind::StoreFailing })
    }

    pub(super) fn reset(self) -> TrackerEvent {
        self.event(EventKind::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: At = At { millis: 0 };

    fn event(kind: EventKind, session: &str, app: &str) -> Kept {
        Kept::new(NOW.of_session(kind, &TrackedId::from(session), app))
    }

    fn ring(count: usize) -> Ring {
        let mut ring = Ring { most: 100, ..Ring::new("b".to_owned()) };
        for number in 1..=count {
            ring.push(event(EventKind::Status, &number.to_string(), "a"));
        }
        ring
    }

    fn seen(ring: &Ring, cursor: Cursor, filter: &Filter) -> Result<(Vec<String>, Cursor), Behind> {
        let mut ids = Vec::new();
        let next = ring.read(cursor, filter, |id, _| {
            ids.push(id.to_owned());
            true
        })?;
        Ok((ids, next))
    }

    #[test]
    fn a_reader_goes_on_where_it_has_stopped() {
        let mut ring = ring(3);
        assert_eq!(ring.begin(None), Begin::At(4));
        assert_eq!(ring.begin(Some("oldest")), Begin::At(1));
        assert_eq!(ring.begin(Some("b-1")), Begin::At(2));
        let (ids, next) = seen(&ring, 2, &Filter::default()).unwrap();
        assert_eq!((ids, next), (vec!["b-2".to_owned(), "b-3".to_owned()], 4));
        assert_eq!(seen(&ring, 4, &Filter::default()).unwrap(), (vec![], 4));
        ring.push(event(EventKind::Back, "4", "a"));
        assert_eq!(seen(&ring, 4, &Filter::default()).unwrap().0, ["b-4"]);
        assert_eq!(ring.id_before(5), "b-4");
    }

    #[test]
    fn an_id_of_another_process_or_from_long_ago_or_from_the_future_is_told() {
        let ring = ring(150);
        assert_eq!(ring.begin(Some("b-50")), Begin::At(51));
        assert_eq!(ring.begin(Some("b-49")), Begin::Reset(151));
        assert_eq!(ring.begin(Some("b-150")), Begin::At(151));
        let most = format!("b-{}", u64::MAX);
        for id in ["b-151", "c-100", "b100", "b-", "", "nonsense", "b--1", most.as_str()] {
            assert_eq!(ring.begin(Some(id)), Begin::Reset(151), "{id}");
        }
        assert_eq!(seen(&ring, 50, &Filter::default()), Err(Behind));
        assert_eq!(seen(&ring, 51, &Filter::default()).unwrap().0.len(), 100);
    }

    #[test]
    fn the_oldest_leave_when_there_are_too_many_bytes() {
        let cost = event(EventKind::Status, "1", "a").cost();
        let mut ring = Ring { most_bytes: 10 * cost, ..Ring::new("b".to_owned()) };
        for _ in 0..25 {
            ring.push(event(EventKind::Status, "1", "a"));
        }
        assert_eq!((ring.first, ring.end(), ring.bytes), (16, 26, 10 * cost));
        ring.push(event(EventKind::Status, "1", &"a".repeat(20 * cost)));
        assert_eq!((ring.events.len(), ring.bytes, ring.end()), (0, 0, 27), "one that never fits");
    }

    #[test]
    fn of_a_change_with_very_many_events_the_last_are_kept_and_readers_are_told() {
        let mut told = Told::default();
        assert!(told.is_empty());
        told.extend(
            (0..MOST + 7)
                .map(|number| NOW.of_session(EventKind::Ended, &TrackedId::from(number.to_string()), "a")),
        );
        let (skipped, kept) = told.kept();
        assert_eq!((skipped, kept.len(), kept[0].session.as_ref().unwrap().as_str()), (7, MOST, "7"));
        let mut ring = ring(3);
        ring.skip(0);
        assert_eq!(ring.begin(Some("b-2")), Begin::At(3));
        ring.skip(skipped);
        ring.push(event(EventKind::Ended, "7", "a"));
        assert_eq!((ring.first, ring.end(), ring.bytes), (11, 12, ring.events[0].cost()));
        assert_eq!(ring.begin(Some("b-3")), Begin::Reset(12));
        assert_eq!(seen(&ring, 4, &Filter::default()), Err(Behind));
    }

    #[test]
    fn a_filter_leaves_out_and_goes_on_behind_what_it_has_left_out() {
        let mut ring = ring(0);
        ring.push(event(EventKind::Status, "1", "a"));
        ring.push(event(EventKind::Ended, "1", "a"));
        ring.push(event(EventKind::Status, "2", "b"));
        let of = |filter: Filter| seen(&ring, 1, &filter).unwrap();
        let ids = |found: &[&str]| (found.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(), 4);
        let session = Some(TrackedId::from("1"));
        assert_eq!(of(Filter { session: session.clone(), ..Filter::default() }), ids(&["b-1", "b-2"]));
        assert_eq!(of(Filter { app: Some("b".to_owned()), ..Filter::default() }), ids(&["b-3"]));
        let kinds = vec![EventKind::Ended, EventKind::Back];
        assert_eq!(of(Filter { kinds: kinds.clone(), ..Filter::default() }), ids(&["b-2"]));
        assert_eq!(of(Filter { app: Some("b".to_owned()), session, kinds }), ids(&[]));
    }

    #[test]
    fn what_a_reader_has_no_room_for_comes_next_time() {
        let ring = ring(3);
        let mut room = 2;
        let next = ring.read(1, &Filter::default(), |_, _| {
            room -= 1;
            room >= 0
        });
        assert_eq!(next, Ok(3));
    }

    #[test]
    fn one_reading_looks_at_a_bounded_number() {
        let mut ring = Ring::new("b".to_owned());
        for _ in 0..LOOKED_AT + 5 {
            ring.push(event(EventKind::Status, "1", "a"));
        }
        let nobody = Filter { app: Some("x".to_owned()), ..Filter::default() };
        let (ids, next) = seen(&ring, 1, &nobody).unwrap();
        assert_eq!((ids.len(), next), (0, 1 + LOOKED_AT as u64));
        assert_eq!(seen(&ring, next, &nobody).unwrap(), (vec![], ring.end()));
    }

    #[test]
    fn the_text_is_one_line_of_json_with_the_id_in_it() {
        let mut out = Vec::new();
        Kept::new(NOW.status(&"s".into(), "a\nb", "idle", Some(&"ä".repeat(1_000)))).write("b-7", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains('\n'));
        let event: TrackerEvent = serde_json::from_str(&text).unwrap();
        assert_eq!((event.id.as_str(), event.kind), ("b-7", EventKind::Status));
        assert_eq!(
            (event.app_name.as_deref(), event.time.as_str()),
            (Some("a\nb"), "1970-01-01T00:00:00.000+00:00")
        );
        let task = event.current_task.unwrap();
        assert_eq!((task.chars().count(), task.ends_with('…')), (513, true));
    }

    proptest::proptest! {
        /// However many come between two readings, a reader sees each once, or is told.
        #[test]
        fn nobody_misses_an_event_unawares(
            steps in proptest::collection::vec((0_usize..40, 1_usize..50), 1..60),
        ) {
            let mut ring = Ring { most: 30, ..Ring::new("b".to_owned()) };
            let (mut cursor, mut expected, mut pushed) = (1, 1_u64, 0_u64);
            for (come, mut room) in steps {
                for _ in 0..come {
                    pushed += 1;
                    ring.push(event(EventKind::Status, &pushed.to_string(), "a"));
                }
                proptest::prop_assert_eq!(ring.end(), pushed + 1);
                let read = ring.read(cursor, &Filter::default(), |id, event| {
                    if room == 0 {
                        return false;
                    }
                    room -= 1;
                    assert_eq!((id, event.session.as_ref().unwrap().as_str()), (format!("b-{expected}").as_str(), expected.to_string().as_str()));
                    expected += 1;
                    true
                });
                if let Ok(next) = read {
                    cursor = next;
                } else {
                    proptest::prop_assert!(pushed - expected >= 29);
                    cursor = ring.end();
                    expected = cursor;
                }
                proptest::prop_assert_eq!(cursor, expected);
            }
        }
    }
}
