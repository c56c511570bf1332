//! `GET /events`: what happens, as a stream or on request; and what only the reaper sees happen.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::input::{limit, wait};
use super::replies::{Refusal, unprocessable};
use super::tracker::Tracker;
use crate::Result as RemudaResult;
use crate::clock::{Moment, wall};
use crate::tracker::api::{EVENT_COMMENT, EventKind, TrackerEvent};
use crate::tracker::events::{At, Begin, Behind, Cursor, Filter, Kept, Told};
use crate::tracker::feed::{Feed, Following};
use crate::tracker::http::{Action, Piece, Request, Response, Source, Stream, Ticket};
use crate::tracker::{TrackedId, civil};

const EVENT_STREAM: &str = "text/event-stream";
/// About the size of a piece of a stream.
const PIECE: usize = 16 * 1024;
/// About the size of a list, if its events are long.
const LIST: usize = 256 * 1024;
/// How soon a client shall try again after its stream has ended.
const RETRY: Duration = Duration::from_secs(2);
const TOO_MANY: &[(&str, &str)] = &[("Retry-After", "10")];
/// So many sessions are told of as stale or back in one pass; the others in the next ones.
const TURNED_AT_ONCE: usize = 500;

impl Tracker {
    pub(super) fn answer_events(&self, request: &Request, ticket: &Ticket) -> Result<Action, Refusal> {
        let filter = filter(request)?;
        // A browser that connects again asks for the same address as at first.
        let after = request.last_event_id().or_else(|| request.parameter("after"));
        let feed = Arc::clone(self.store().feed());
        if accepts(request, EVENT_STREAM) {
            let following = follow(&feed, ticket);
            let otherwise =
                Response::detail(503, "too many streams of events are open").with_fields(TOO_MANY);
            let begin = feed.begin(after);
            let source = Follower {
                feed,
                filter,
                begin: Some(begin),
                cursor: 0,
                comment_at: None,
                _following: following,
            };
            let head = Response::new(200, EVENT_STREAM, &b""[..]);
            return Ok(Action::Stream(Stream { head, source: Box::new(source), otherwise }));
        }
        let (limit, wait) = (limit(request)?, wait(request)?);
        let following = follow(&feed, ticket);
        let (cursor, is_reset) = match feed.begin(after) {
            Begin::At(cursor) => (cursor, false),
            Begin::Reset(cursor) => (cursor, true),
        };
        let mut poll =
            Poll { feed, filter, limit, cursor, is_reset, until: None, wait, _following: following };
        let found = poll.list();
        if !found.is_empty() || wait.is_zero() || poll.is_reset {
            return Ok(Action::Respond(json(poll.answer(&found))));
        }
        let (head, otherwise) = (json(Vec::new()), json(poll.answer(&found)));
        Ok(Action::Stream(Stream { head, source: Box::new(poll), otherwise }))
    }

    /// Tells who has become stale since the last time, and who is not any more; `told` are the rows of
    /// those of whom it was told.
    pub(super) fn tell_of_silence(&self, now: Moment, told: &mut HashSet<i64>) -> RemudaResult<()> {
        let turned = self.store().turned(told, now, TURNED_AT_ONCE);
        let (stale, back) = (turned.stale.clone(), turned.back.clone());
        let rows = stale.iter().map(|(row, _)| row).chain(&back).copied().collect();
        self.store().tell_of(rows, move |names| {
            let (at, mut events) = (this_moment(), Told::default());
            for (row, silence) in stale {
                if let Some((id, app_name)) = names.get(&row) {
                    let seconds = Some(silence.as_secs_f64());
                    events.push(TrackerEvent { seconds, ..at.of_session(EventKind::Stale, id, app_name) });
                }
            }
            let back = back.iter().filter_map(|row| names.get(row));
            events.extend(back.map(|(id, app_name)| at.of_session(EventKind::Back, id, app_name)));
            events
        })?;
        // One without a name has just gone: that is told otherwise, and it is among the gone next time.
        told.extend(turned.stale.iter().map(|(row, _)| row));
        for row in turned.back.iter().chain(&turned.gone) {
            told.remove(row);
        }
        Ok(())
    }

    /// Tells that a mass silence has begun, for so long, or is over.
    pub(super) fn tell_of_mass_silence(&self, stale: usize, all: usize, lasts: Option<Duration>) {
        self.store().feed().record(this_moment().mass_silence(stale, all, lasts).into());
    }
}

fn this_moment() -> At {
    At { millis: civil::millis(wall()) }
}

fn follow(feed: &Feed, ticket: &Ticket) -> Following {
    feed.follow(|| {
        let bell = ticket.doorbell();
        Box::new(move || bell.ring())
    })
}

/// Whether the client asks for this media type by its name.
pub(super) fn accepts(request: &Request, media_type: &str) -> bool {
    let types = request.accept().into_iter().flat_map(|accept| accept.split(','));
    let mut names = types.filter_map(|one| one.split(';').next());
    names.any(|name| name.trim().eq_ignore_ascii_case(media_type))
}

fn filter(request: &Request) -> Result<Filter, Refusal> {
    let kinds = request.parameter("kind").into_iter().flat_map(|kinds| kinds.split(','));
    let kinds = kinds.filter(|kind| !kind.is_empty()).map(|kind| {
        EventKind::named(kind).ok_or_else(|| unprocessable(&format!("kind: there is no kind {kind:?}")))
    });
    Ok(Filter {
        app: request.parameter("app").map(str::to_owned),
        session: request.parameter("session").map(TrackedId::from),
        kinds: kinds.collect::<Result<_, _>>()?,
    })
}

fn json(body: Vec<u8>) -> Response {
    Response::new(200, "application/json", body)
}

/// Somebody who follows the events as a stream.
struct Follower {
    feed: Arc<Feed>,
    filter: Filter,
    /// Until the stream has begun.
    begin: Option<Begin>,
    cursor: Cursor,
    /// When it has been silent for long enough.
    comment_at: Option<Moment>,
    _following: Following,
}

impl Follower {
    /// The first lines: where the stream begins, and that something was missed.
    fn greet(&mut self, begin: Begin, out: &mut Vec<u8>) {
        let (Begin::At(cursor) | Begin::Reset(cursor)) = begin;
        self.cursor = cursor;
        let id = self.feed.id_before(cursor);
        if let Begin::Reset(_) = begin {
            let reset = Kept::new(this_moment().reset());
            write_event(&id, &reset, out);
        }
        out.extend_from_slice(format!("retry: {}\nid: {id}\n\n", RETRY.as_millis()).as_bytes());
    }
}

impl Source for Follower {
    fn next(&mut self, now: Moment, last: bool) -> Piece {
        let mut out = Vec::new();
        if let Some(begin) = self.begin.take() {
            self.greet(begin, &mut out);
        }
        let before = self.cursor;
        let read = self.feed.read(self.cursor, &self.filter, |id, event| {
            let has_room = out.len() < PIECE;
            if has_room {
                write_event(id, event, &mut out);
            }
            has_room
        });
        match read {
            Ok(next) => self.cursor = next,
            Err(Behind) => return Piece::TooSlow,
        }
        if last {
            return Piece::End(out);
        }
        // Also when it has only skipped some: there may be more behind them.
        if !out.is_empty() || self.cursor != before {
            if !out.is_empty() {
                self.comment_at = Some(now + EVENT_COMMENT);
            }
            return Piece::Some(out);
        }
        let comment_at = *self.comment_at.get_or_insert(now + EVENT_COMMENT);
        if now < comment_at {
            return Piece::Later(comment_at);
        }
        self.comment_at = Some(now + EVENT_COMMENT);
        // With the id, so that whoever wants few events need not begin at an old one.
        Piece::Some(format!(": still here\nid: {}\n\n", self.feed.id_before(self.cursor)).into_bytes())
    }
}

fn write_event(id: &str, event: &Kept, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("id: {id}\nevent: {}\ndata: ", event.kind.as_str()).as_bytes());
    event.write(id, out);
    out.extend_from_slice(b"\n\n");
}

/// Somebody who has asked for what there is after some event.
struct Poll {
    feed: Arc<Feed>,
    filter: Filter,
    limit: usize,
    cursor: Cursor,
    is_reset: bool,
    wait: Duration,
    /// Since it was asked for the first time.
    until: Option<Moment>,
    _following: Following,
}

impl Poll {
    /// The next events as members of a JSON list; moves on behind them.
    fn list(&mut self) -> Vec<u8> {
        let (mut out, mut left) = (Vec::new(), self.limit);
        loop {
            let read = self.feed.read(self.cursor, &self.filter, |id, event| {
                let has_room = left > 0 && out.len() < LIST;
                if has_room {
                    left -= 1;
                    if !out.is_empty() {
                        out.push(b',');
                    }
                    event.write(id, &mut out);
                }
                has_room
            });
            match read {
                Ok(next) if next == self.cursor => return out,
                Ok(next) => self.cursor = next,
                Err(Behind) => {
                    let (Begin::At(end) | Begin::Reset(end)) = self.feed.begin(None);
                    (self.cursor, self.is_reset) = (end, true);
                    return Vec::new();
                }
            }
        }
    }

    fn answer(&self, found: &[u8]) -> Vec<u8> {
        let (last, reset) = (self.feed.id_before(self.cursor), self.is_reset);
        [b"{\"events\":[", found, format!("],\"last\":\"{last}\",\"reset\":{reset}}}").as_bytes()].concat()
    }
}

impl Source for Poll {
    fn next(&mut self, now: Moment, last: bool) -> Piece {
        let until = *self.until.get_or_insert(now + self.wait);
        let found = self.list();
        if found.is_empty() && !self.is_reset && !last && now < until {
            return Piece::Later(until);
        }
        Piece::End(self.answer(&found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(feed: &Arc<Feed>, after: Option<&str>) -> Follower {
        Follower {
            feed: Arc::clone(feed),
            filter: Filter { app: Some("a".to_owned()), ..Filter::default() },
            begin: Some(feed.begin(after)),
            cursor: 0,
            comment_at: None,
            _following: feed.follow(|| Box::new(|| {})),
        }
    }

    fn record(feed: &Feed, app: &str) {
        feed.record(this_moment().of_session(EventKind::Registered, &"s".into(), app).into());
    }

    fn text(piece: Piece) -> String {
        match piece {
            Piece::Some(bytes) | Piece::End(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stream_that_has_nothing_to_say_says_so_every_fifteen_seconds() {
        let feed = Arc::new(Feed::new());
        let mut follower = follower(&feed, None);
        let start = Moment::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(text(follower.next(at(0), false)).starts_with("retry: 2000\nid: "));
        assert_eq!(follower.next(at(0), false), Piece::Later(at(15)));
        record(&feed, "a");
        assert!(text(follower.next(at(5), false)).contains("\nevent: registered\ndata: {\"id\":\""));
        assert_eq!(follower.next(at(5), false), Piece::Later(at(20)));
        assert_eq!(follower.next(at(19), false), Piece::Later(at(20)));
        // Of another app: it moves the place, and nothing is said.
        record(&feed, "b");
        assert_eq!(follower.next(at(19), false), Piece::Some(Vec::new()));
        let id = feed.id_before(3);
        assert_eq!(text(follower.next(at(40), false)), format!(": still here\nid: {id}\n\n"));
        assert_eq!(follower.next(at(40), true), Piece::End(Vec::new()));
    }

    #[test]
    fn a_long_story_comes_in_pieces_of_bounded_size() {
        let feed = Arc::new(Feed::new());
        for _ in 0..1_000 {
            record(&feed, "a");
        }
        let mut follower = follower(&feed, Some("oldest"));
        let (mut found, mut pieces) = (0, 0);
        while found < 1_000 {
            let piece = text(follower.next(Moment::now(), false));
            assert!(piece.len() < PIECE + 1_000);
            found += piece.matches("\ndata: ").count();
            pieces += 1;
        }
        assert!(pieces > 5, "{pieces}");
    }
}
