//! What the tracker tells as it happens.
//!
//! | route | answer |
//! |---|---|
//! | `GET /events` with `Accept: text/event-stream` | a stream of server-sent events: `id`, `event` (the kind), `data` (a [`TrackerEvent`] in one line) |
//! | `GET /events?after=ID&limit=100&wait=SECONDS` | [`EventPosition`], [`EventQuery`] → [`EventList`], at once or, if there is nothing, when something happens within `wait` |
//!
//! Both take `app=`, `session=` and `kind=` (several with commas between them) and tell the same.
//!
//! # Where to begin
//! Without an id both begin now. An id says where: after that event. A stream reads it from
//! `Last-Event-ID`, which a browser sends when it connects again, or from `after=`; `after=oldest` is
//! the first event that is still known. Ids are opaque; an id is of use until the tracker has seen some
//! 10 000 events more, or is started again. After that nobody knows what was missed: a stream then
//! begins with the event [`EventKind::Reset`], an [`EventList`] says [`reset`](EventList::reset), and
//! both go on from now. Whoever keeps a copy of a list follows first, then reads the list, and reads it again
//! after a reset.
//!
//! # What is told
//! Changes, after they are on the disk and in the order in which they got there. Beats, and what they
//! carry (progress, memory, snapshots), are no events: there are too many of them, and
//! `GET /sessions` has the last ones. Text that clients chose is cut after 1 KiB.
//!
//! A stream says a comment every 15 s when there is nothing else. Whoever reads so slowly that it
//! falls behind what is known is cut off; one stream more than the tracker can hold gets 503 with
//! `Retry-After`, one waiting request more an answer at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DEFAULT_PAGE, EndReason, KillScope, Verb, known};
use crate::named::show_by_name;
use crate::tracker::TrackedId;

/// The most events of one [`EventList`].
pub const MAX_EVENTS: usize = 1_000;
/// How often a stream says something in any case.
pub const EVENT_COMMENT: Duration = Duration::from_secs(15);

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A session has registered, or an instance that was known has done so again.
    Registered,
    /// A session has said its status and task.
    Status,
    /// Somebody wants a session to stop.
    KillRequested,
    /// The session has heard of it.
    KillDelivered,
    /// The session is stopping.
    KillStopping,
    /// The session has stopped, or has left.
    KillConfirmed,
    /// Nobody waits for it any more.
    KillExpired,
    /// Somebody has given an order: see [`TrackerEvent::verb`].
    Ordered,
    /// A session is no more: see [`TrackerEvent::ended`].
    Ended,
    /// No beat came for the stale threshold.
    Stale,
    /// A stale session beats again.
    Back,
    /// New sessions of an app are killed at once from now on, for [`TrackerEvent::seconds`].
    Embargo,
    /// Nearly all of many sessions have fallen silent; nobody is removed for [`TrackerEvent::seconds`].
    MassSilence,
    /// Enough of them are back or gone, or that time is up.
    MassSilenceOver,
    /// The database takes no changes: see [`SessionStore::check`](crate::SessionStore::check).
    StoreFailing,
    /// It takes changes again.
    StoreReady,
    /// What was before is not known any more: read the lists again.
    Reset,
    /// One that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl EventKind {
    const ALL: [EventKind; 17] = [
        EventKind::Registered,
        EventKind::Status,
        EventKind::KillRequested,
        EventKind::KillDelivered,
        EventKind::KillStopping,
        EventKind::KillConfirmed,
        EventKind::KillExpired,
        EventKind::Ordered,
        EventKind::Ended,
        EventKind::Stale,
        EventKind::Back,
        EventKind::Embargo,
        EventKind::MassSilence,
        EventKind::MassSilenceOver,
        EventKind::StoreFailing,
        EventKind::StoreReady,
        EventKind::Reset,
    ];

    /// The word that stands for it in JSON and in `kind=`.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Registered => "registered",
            EventKind::Status => "status",
            EventKind::KillRequested => "kill_requested",
            EventKind::KillDelivered => "kill_delivered",
            EventKind::KillStopping => "kill_stopping",
            EventKind::KillConfirmed => "kill_confirmed",
            EventKind::KillExpired => "kill_expired",
            EventKind::Ordered => "ordered",
            EventKind::Ended => "ended",
            EventKind::Stale => "stale",
            EventKind::Back => "back",
            EventKind::Embargo => "embargo",
            EventKind::MassSilence => "mass_silence",
            EventKind::MassSilenceOver => "mass_silence_over",
            EventKind::StoreFailing => "store_failing",
            EventKind::StoreReady => "store_ready",
            EventKind::Reset => "reset",
            EventKind::Unknown => "unknown",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

show_by_name!(EventKind);

/// Something that has happened. Members that make no sense for its kind are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrackerEvent {
    /// Where it stands among the events; to go on after it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// When: RFC 3339, UTC.
    pub time: String,
    /// What.
    pub kind: EventKind,
    /// The session that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<TrackedId>,
    /// The app that it is about, or the app of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// With [`Registered`](EventKind::Registered): who uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// With [`Registered`](EventKind::Registered) and [`Status`](EventKind::Status): its status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The task it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_task: Option<String>,
    /// With kills: the receipt's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_id: Option<u64>,
    /// With kills: what was named.
    #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
    pub scope: Option<KillScope>,
    /// With kills and embargoes: who asked for it, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// With kills and embargoes: why, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With [`Ordered`](EventKind::Ordered): the order.
    #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
    pub verb: Option<Verb>,
    /// With [`Ended`](EventKind::Ended): why.
    #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndReason>,
    /// With the steps of a kill: since it was requested. With embargoes and silences: how long it lasts.
    /// With [`Stale`](EventKind::Stale): since its last beat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// With mass silences: how many are stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<u64>,
    /// With mass silences: of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
}

/// Which events are of interest. The fields are parameters of `GET /events`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventQuery {
    /// Events of one answer at most, from 1 to [`MAX_EVENTS`]; default [`DEFAULT_PAGE`].
    pub limit: usize,
    /// About this app and its sessions only.
    pub app: Option<String>,
    /// About this session only.
    pub session: Option<TrackedId>,
    /// Of these kinds only; default: of all.
    pub kinds: Vec<EventKind>,
}

impl Default for EventQuery {
    fn default() -> EventQuery {
        EventQuery { limit: DEFAULT_PAGE, app: None, session: None, kinds: Vec::new() }
    }
}

impl EventQuery {
    /// All of them.
    pub fn new() -> EventQuery {
        EventQuery::default()
    }

    /// Sets [`limit`](EventQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`app`](EventQuery::app).
    pub fn app(mut self, app_name: impl Into<String>) -> Self {
        self.app = Some(app_name.into());
        self
    }

    /// Sets [`session`](EventQuery::session).
    pub fn session(mut self, id: impl Into<TrackedId>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Sets [`kinds`](EventQuery::kinds).
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }
}

/// Where to begin among the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventPosition {
    /// With what happens from now on.
    #[default]
    Now,
    /// With the first event that is still known.
    Oldest,
    /// Behind the event with this id: a [`TrackerEvent::id`], or [`EventList::last`].
    After(String),
}

/// The answer to `GET /events`, unless a stream was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<TrackerEvent>,
    /// What to ask with next time: `after=` this. It is the newest event that was looked at, whether or
    /// not it is listed.
    pub last: String,
    /// What was after the given id is not known any more: read the lists again.
    pub reset: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_word_in_json_and_by_name() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(EventKind::named(kind.as_str()), Some(kind));
        }
        assert_eq!(EventKind::named("unknown"), None);
        assert_eq!(serde_json::from_str::<EventKind>("\"something_new\"").unwrap(), EventKind::Unknown);
    }

    #[test]
    fn an_event_of_a_newer_tracker_is_understood_as_far_as_it_can_be() {
        let read = |ended: &str, verb: &str| {
            let text =
                format!(r#"{{"time": "t", "kind": "new", "ended": {ended}, "verb": {verb}, "more": []}}"#);
            serde_json::from_str::<TrackerEvent>(&text)
                .map(|event| (event.kind, event.ended, event.verb))
                .ok()
        };
        assert_eq!(
            read("\"left\"", "\"pause\""),
            Some((EventKind::Unknown, Some(EndReason::Left), Some(Verb::Pause)))
        );
        assert_eq!(read("\"moved\"", "null"), Some((EventKind::Unknown, None, None)));
        assert_eq!(read("7", "null"), None);
    }
}
