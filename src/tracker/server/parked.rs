//! Who waits for news of a session: beats that are parked, alone or in batches.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::replies::{GO_ON, heard, missed_word, not_found};
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{BatchAnswer, Heartbeat, HeartbeatAnswers, HeartbeatResponse};
use crate::tracker::http::{Response, Ticket};
use crate::tracker::store::Missed;

/// To a batch: nobody has anything to hear.
pub(super) const NOTHING: Response = Response::fixed_json(r#"{"answers":[]}"#);

/// Who waits for news of each session.
///
/// An entry outlives its wait until the session's next beat or end: at most one for each session, and
/// answering it does nothing.
#[derive(Default)]
pub(super) struct ParkedBeats(Mutex<HashMap<TrackedId, Parked>>);

impl ParkedBeats {
    /// Enters who waits for news of this session. Returns whose wait is over because of that: who was
    /// there before, or this one if a newer request has overtaken it on its way here.
    pub(super) fn enter(&self, id: &TrackedId, entry: Parked) -> Option<Waiter> {
        match self.0.lock().entry(id.clone()) {
            Entry::Vacant(place) => {
                place.insert(entry);
                None
            }
            Entry::Occupied(place) if place.get().waiter.ticket().is_newer_than(entry.waiter.ticket()) => {
                Some(entry.waiter)
            }
            Entry::Occupied(mut place) => Some(place.insert(entry).waiter),
        }
    }

    /// Takes an entry back, if it is still there.
    pub(super) fn leave(&self, id: &TrackedId, waiter: &Waiter) {
        if let Entry::Occupied(place) = self.0.lock().entry(id.clone())
            && place.get().waiter.same(waiter)
        {
            place.remove();
        }
    }

    pub(super) fn of(&self, id: &TrackedId) -> Option<Parked> {
        self.0.lock().get(id).cloned()
    }
}

/// Who waits for news of a session.
#[derive(Clone)]
pub(super) struct Parked {
    pub(super) waiter: Waiter,
    pub(super) reading: Reading,
}

/// The request that waits.
#[derive(Clone)]
pub(super) enum Waiter {
    /// The session's own beat.
    Alone(Ticket),
    /// A batch with its beat.
    Batch(Arc<Ticket>),
}

impl Waiter {
    fn ticket(&self) -> &Ticket {
        match self {
            Waiter::Alone(ticket) => ticket,
            Waiter::Batch(ticket) => ticket,
        }
    }

    /// Whether this is the same request.
    pub(super) fn same(&self, other: &Waiter) -> bool {
        self.ticket().same(other.ticket())
    }

    /// Answers with what this session shall hear, or that it is gone.
    pub(super) fn send(&self, id: &TrackedId, reply: Option<HeartbeatResponse>) {
        match self {
            Waiter::Alone(ticket) => ticket.send(reply.as_ref().map_or_else(not_found, heard)),
            Waiter::Batch(ticket) => ticket.send(batch_answer(id, reply)),
        }
    }

    /// A newer beat has come.
    pub(super) fn send_nothing(&self) {
        match self {
            Waiter::Alone(ticket) => ticket.send(GO_ON),
            Waiter::Batch(ticket) => ticket.send(NOTHING),
        }
    }
}

/// The answer for a session that has something to hear, or is gone.
fn batch_answer(id: &TrackedId, reply: Option<HeartbeatResponse>) -> Response {
    let missed = reply.is_none().then(|| missed_word(Missed::Gone(None)).to_owned());
    let reply = reply.unwrap_or_default();
    Response::json(&HeartbeatAnswers { answers: vec![BatchAnswer { session_id: id.clone(), missed, reply }] })
}

/// What a beat tells of how its client reads answers.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// It numbers its beats, and so reads why one counts for nothing.
    pub(super) is_numbered: bool,
    /// The last verbs that it has read; nothing if it never reads them.
    verbs: Option<u64>,
    /// It knows that it shall stop; only a batch says so.
    pub(super) heard_kill: bool,
    /// The kill that it acknowledges.
    acknowledged: Option<u64>,
}

impl Reading {
    pub(super) fn of(beat: &Heartbeat) -> Reading {
        Reading {
            is_numbered: beat.beat_number.is_some(),
            verbs: beat.verbs_number,
            heard_kill: false,
            acknowledged: beat.kill.map(|kill| kill.kill_id),
        }
    }

    /// Whether the client shall hear this at once. One that reads no verbs is not kept from parking
    /// by them.
    pub(super) fn is_news(self, reply: &HeartbeatResponse) -> bool {
        let is_another = || reply.kill_id.is_some() && reply.kill_id != self.acknowledged;
        let kill = reply.kill_requested && (!self.heard_kill || is_another());
        kill || self.verbs.is_some_and(|read| read != reply.verbs_number.unwrap_or(0))
    }

    /// The answer as this client reads it: who has read orders to an older registration reads that there
    /// are none to this one, and says so from then on.
    pub(super) fn answer(self, mut reply: HeartbeatResponse) -> HeartbeatResponse {
        if reply.verbs_number.is_none() && self.verbs.is_some_and(|read| read > 0) {
            reply.verbs_number = Some(0);
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_of_two_requests_waits_whichever_comes_first() {
        let [older, newer] = Ticket::of_nobody().map(|ticket| Waiter::Batch(Arc::new(ticket)));
        let entry =
            |waiter: &Waiter| Parked { waiter: waiter.clone(), reading: Reading::of(&Heartbeat::default()) };
        let id = TrackedId::from("one");
        for (first, second) in [(&older, &newer), (&newer, &older)] {
            let beats = ParkedBeats::default();
            assert!(beats.enter(&id, entry(first)).is_none());
            let over = beats.enter(&id, entry(second)).expect("one of the two is over");
            assert!(over.same(&older));
            beats.leave(&id, &older);
            assert!(beats.of(&id).expect("it waits").waiter.same(&newer));
            beats.leave(&id, &newer);
            assert!(beats.of(&id).is_none());
        }
    }
}
