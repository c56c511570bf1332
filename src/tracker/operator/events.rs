//! What happens, as it happens.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ureq::{Agent, http};

use super::{TrackerOperator, agent, is_away, parameters};
use crate::cancel::{CancelToken, Registration, Wake};
use crate::clock::Moment;
use crate::tracker::api::{EventList, EventPosition, EventQuery, HTTP_TIMEOUT, MAX_WAIT};
use crate::{Error, Result};

/// How long a follower has the tracker hold a request. A connection that is dead is found after this time and
/// [`HTTP_TIMEOUT`].
const HELD: Duration = Duration::from_secs(20);
/// A tracker that does not accept within this time is away. Until then a follower cannot be stopped.
const CONNECT: Duration = Duration::from_secs(3);
/// Between two requests if the first was not held, or the tracker is away.
const PAUSE: Duration = Duration::from_secs(1);
/// No id that a tracker gives is longer.
const LONGEST_ID: usize = 256;

impl TrackerOperator {
    /// What has happened after `position`; if that is nothing, what happens next within `wait`. Ask the next
    /// time [`After`](EventPosition::After) the list's [`last`](EventList::last). The list is empty when the
    /// time is over, or earlier if the tracker ends or holds too many such requests already. `None` if the
    /// tracker is one of another kind: it tells no events.
    ///
    /// Blocks for `wait`, which counts as [`MAX_WAIT`] (60 s) if it is longer, and at most 10 s more. What
    /// can be interrupted is [`follow_events`](TrackerOperator::follow_events).
    ///
    /// # Errors
    /// [`Error::Tracker`], also if the query makes no sense.
    pub fn events_after(
        &self,
        position: &EventPosition,
        query: &EventQuery,
        wait: Duration,
    ) -> Result<Option<EventList>> {
        let wait = wait.min(MAX_WAIT);
        let EventQuery { limit, app, session, kinds } = query;
        let after = match position {
            EventPosition::Now => None,
            EventPosition::Oldest => Some("oldest".to_owned()),
            EventPosition::After(id) => Some(id.clone()),
        };
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        let named = [
            ("after", after.clone()),
            ("app", app.clone()),
            ("session", session.as_ref().map(ToString::to_string)),
            ("kind", (!kinds.is_empty()).then(|| kinds.join(","))),
            ("wait", (!wait.is_zero()).then(|| wait.as_secs_f64().to_string())),
        ];
        let path = format!("/events?{}", parameters(*limit, named));
        let list = self.request::<EventList>(http::Method::GET, &path, None, wait + HTTP_TIMEOUT)?;
        let goes_on = |list: &EventList| {
            let is_id = (1..=LONGEST_ID).contains(&list.last.len());
            // Whoever tells the same again would do so for ever.
            is_id && (list.events.is_empty() || after.as_ref() != Some(&list.last))
        };
        match list {
            Some(list) if !goes_on(&list) => Err(self.trouble("its events do not go on")),
            list => Ok(list),
        }
    }

    /// Follows what happens after `position` until `token` is cancelled. Asks once for what is there already:
    /// so nothing that happens after this has returned is missed, even from [`EventPosition::Now`]. `None` if
    /// the tracker is one of another kind: it tells no events.
    ///
    /// Whoever keeps a copy of a list follows first, then reads the list, and reads it again after each
    /// [`reset`](EventList::reset).
    ///
    /// ```
    /// # use remuda::TrackerServer;
    /// use remuda::{CancelToken, TrackerOperator};
    /// use remuda::tracker::api::{EventPosition, EventQuery};
    ///
    /// # let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
    /// # let operator = TrackerOperator::new(format!("http://{}", server.local_addr()))?;
    /// let stop = CancelToken::new();
    /// let lists = operator.follow_events(&EventPosition::Now, EventQuery::new(), &stop)?;
    /// # server.store().create_session("reports", None)?;
    /// for list in lists.expect("it tells events") {
    ///     for event in list?.events {
    ///         println!("{} {}", event.time, event.kind);
    ///         stop.cancel();
    ///     }
    /// }
    /// # Ok::<(), remuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Tracker`], also if the query makes no sense. [`Error::Cancelled`].
    pub fn follow_events(
        &self,
        position: &EventPosition,
        query: EventQuery,
        token: &CancelToken,
    ) -> Result<Option<EventFollower>> {
        // With connections of its own, which are broken when it shall stop.
        let agent = agent(CONNECT);
        let operator = TrackerOperator {
            agent: agent.clone(),
            base: self.base.clone(),
            authorization: self.authorization.clone(),
        };
        let breaks = token.register(Arc::new(Breaks(agent)));
        let first = match operator.events_after(position, &query, Duration::ZERO) {
            Err(_) if token.is_cancelled() => return Err(Error::Cancelled),
            first => first?,
        };
        let Some(first) = first else { return Ok(None) };
        Ok(Some(EventFollower {
            operator,
            query,
            position: position.clone(),
            first: Some(first),
            pause: Duration::ZERO,
            is_over: false,
            token: token.clone(),
            _breaks: breaks,
        }))
    }
}

/// Follows what happens: see [`TrackerOperator::follow_events`].
///
/// Each step of the iterator blocks until something has happened, and gives an [`EventList`] that has events, or
/// says [`reset`](EventList::reset), or both. It ends when the token is cancelled: at once,
/// or within 3 s if a connection is just being made.
///
/// While the tracker does not answer, or answers 503, each step is an error, one second after the one before:
/// whoever goes on asking hears what was missed when the tracker is back, or of a reset if it was started again.
/// Any other error is the end.
#[must_use = "nothing is heard without a step"]
pub struct EventFollower {
    operator: TrackerOperator,
    query: EventQuery,
    /// Behind what is told.
    position: EventPosition,
    /// What was there already.
    first: Option<EventList>,
    /// Before the next request.
    pause: Duration,
    is_over: bool,
    token: CancelToken,
    _breaks: Registration,
}

impl EventFollower {
    /// Where the next step begins: another follower can go on from here.
    pub fn position(&self) -> &EventPosition {
        &self.position
    }
}

impl Iterator for EventFollower {
    type Item = Result<EventList>;

    fn next(&mut self) -> Option<Result<EventList>> {
        while !self.is_over && !self.token.wait_timeout(self.pause) {
            let began = Moment::now();
            let first = self.first.take();
            let is_first = first.is_some();
            let answer = match first {
                Some(first) => Ok(Some(first)),
                None => self.operator.events_after(&self.position, &self.query, HELD),
            };
            if self.token.is_cancelled() {
                break;
            }
            self.pause = PAUSE;
            match answer {
                Ok(Some(list)) => {
                    let is_held = Moment::now().saturating_since(began) >= PAUSE;
                    if !list.events.is_empty() || is_held || is_first {
                        self.pause = Duration::ZERO;
                    }
                    self.position = EventPosition::After(list.last.clone());
                    if list.reset || !list.events.is_empty() {
                        return Some(Ok(list));
                    }
                }
                Ok(None) => {
                    self.is_over = true;
                    return Some(Err(self.operator.trouble("it tells no events")));
                }
                Err(error) => {
                    self.is_over = !matches!(&error, Error::Tracker { reason, .. } if is_away(reason));
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl fmt::Debug for EventFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventFollower")
            .field("url", &self.operator.base)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Breaks the connections of a follower.
struct Breaks(Agent);

impl Wake for Breaks {
    fn wake(&self) {
        self.0.clone().shutdown();
    }
}
