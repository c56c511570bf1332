//! `POST /heartbeats`: the beats of many sessions in one request, which waits for all of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::access::Caller;
use super::input::{body, check_beat, wait};
use super::parked::{NOTHING, Parked, Reading, Waiter};
use super::replies::{Refusal, missed_word, unprocessable};
use super::tracker::Tracker;
use crate::tracker::TrackedId;
use crate::tracker::api::{BatchAnswer, HeartbeatAnswers, HeartbeatBatch, HeartbeatResponse};
use crate::tracker::http::{Action, Request, Response, Ticket};
use crate::tracker::store::{Missed, News};

/// A session of a batch, as far as its client has read its answers.
struct Member {
    id: TrackedId,
    reading: Reading,
    missed: Option<Missed>,
}

impl Member {
    /// What it shall hear at once.
    fn news(&self, tracker: &Tracker) -> Option<BatchAnswer> {
        // Nothing is told of a session whose beat counted for nothing: it may be somebody else's.
        let told = if self.missed.is_none() { tracker.store().tell(&self.id) } else { None };
        let (missed, reply) = match told {
            Some(reply) => (None, reply),
            None => (self.missed.or(Some(Missed::Gone(None))), HeartbeatResponse::default()),
        };
        if missed.is_none() && !self.reading.is_news(&reply) {
            return None;
        }
        let missed = missed.map(|missed| missed_word(missed).to_owned());
        Some(BatchAnswer { session_id: self.id.clone(), missed, reply: self.reading.answer(reply) })
    }
}

impl Tracker {
    /// Notes the beats, then answers or parks them.
    pub(super) fn answer_batch(
        &self,
        caller: &Caller,
        request: &Request,
        ticket: &Ticket,
    ) -> Result<Action, Refusal> {
        let (batch, wait) = (checked(request)?, wait(request)?);
        let members = self.note_batch(caller, batch, wait)?;
        let answers = self.news_of(&members);
        if wait.is_zero() || !answers.is_empty() {
            return Ok(Action::Respond(answered(answers)));
        }
        let parked = Arc::new(ticket.clone());
        self.park_batch(&members, &parked);
        // Whoever changed something before has not seen the entries; whoever does now, will.
        let answers = self.news_of(&members);
        if answers.is_empty() {
            return Ok(Action::Park { wait, otherwise: NOTHING });
        }
        let waiter = Waiter::Batch(parked);
        for member in &members {
            self.parked.leave(&member.id, &waiter);
        }
        Ok(Action::Respond(answered(answers)))
    }

    fn note_batch(
        &self,
        caller: &Caller,
        batch: HeartbeatBatch,
        wait: Duration,
    ) -> Result<Vec<Member>, Refusal> {
        let mut news = Vec::new();
        let mut members = Vec::with_capacity(batch.beats.len());
        for one in batch.beats {
            let (id, mut beat) = (one.session_id, one.beat);
            let mut reading = Reading::of(&beat);
            reading.heard_kill = one.heard_kill;
            let of_disk = News {
                id: id.clone(),
                kill: beat.kill.take(),
                status: beat.status.take().map(|status| (status, beat.current_task.take())),
                status_number: beat.status_number,
            };
            let noted = match self.refused_beat(caller, &id) {
                None => self.store().note_beat(&id, beat, wait),
                Some(missed) => Err(missed),
            };
            let missed = noted.err();
            if missed.is_none() && (of_disk.kill.is_some() || of_disk.status.is_some()) {
                news.push(of_disk);
            }
            members.push(Member { id, reading, missed });
        }
        self.store().note_news(news)?;
        Ok(members)
    }

    fn news_of(&self, members: &[Member]) -> Vec<BatchAnswer> {
        members.iter().filter_map(|member| member.news(self)).collect()
    }

    /// Enters the batch under each of its sessions, and ends older waits; if a newer batch is there, its own.
    fn park_batch(&self, members: &[Member], parked: &Arc<Ticket>) {
        let waiter = Waiter::Batch(Arc::clone(parked));
        let mut ended: Option<Waiter> = None;
        for Member { id, reading, .. } in members {
            let entry = Parked { waiter: waiter.clone(), reading: *reading };
            let Some(over) = self.parked.enter(id, entry) else { continue };
            // The process's batch before this one stands under all of its sessions.
            if ended.as_ref().is_none_or(|last| !last.same(&over)) {
                over.send_nothing();
                ended = Some(over);
            }
        }
    }
}

fn answered(answers: Vec<BatchAnswer>) -> Response {
    if answers.is_empty() { NOTHING } else { Response::json(&HeartbeatAnswers { answers }) }
}

fn checked(request: &Request) -> Result<HeartbeatBatch, Refusal> {
    let batch: HeartbeatBatch = body(&request.body)?;
    let mut seen = HashSet::new();
    for (at, one) in batch.beats.iter().enumerate() {
        if !seen.insert(&one.session_id) {
            return Err(unprocessable(&format!("beats: {at}: session_id: it is in the batch twice")));
        }
        let of_this = |refusal: String| unprocessable(&format!("beats: {at}: {refusal}"));
        check_beat(&one.beat, request.body.len()).map_err(of_this)?;
    }
    Ok(batch)
}
