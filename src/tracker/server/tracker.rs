//! Requests to calls of the store, and the beats that are parked.

use std::time::Duration;

use super::access::{Caller, Denied, Door};
use super::audit::tell;
use super::input::{body, check_status, heartbeat, older_than, registration, wait};
use super::metrics::Numbers;
use super::openapi::DESCRIPTION;
use super::pages::page;
use super::parked::{Parked, ParkedBeats, Reading, Waiter};
use super::replies::{Refusal, heard, missed_beat, not_found, unprocessable};
use super::routing::{Route, find, is_batch};
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    Asker, AuditAction, AuditResult, CleanupResponse, EndReason, Heartbeat, HeartbeatResponse,
    MAX_BATCH_BODY, MAX_BODY, MAX_WAIT, Role, SessionCreate, SessionCreated, SessionStatus, Whom,
};
use crate::tracker::http::{Action, Answered, Counts, Request, Response, Service, Ticket};
use crate::tracker::life::Guard;
use crate::tracker::store::{Missed, SessionStore};

const UPDATED: Response = Response::fixed_json(r#"{"status":"updated"}"#);
const DELETED: Response = Response::fixed_json(r#"{"status":"deleted"}"#);
const ALIVE: Response = Response::fixed_json(r#"{"status":"alive"}"#);
const READY: Response = Response::fixed_json(r#"{"status":"ready"}"#);

/// The store, and who waits for a kill.
///
/// A kill, and a session's end, look at `parked` after the store has changed; a beat enters itself
/// in `parked` before it looks at the store for the last time. So one of the two always sees the
/// other.
pub(super) struct Tracker {
    store: SessionStore,
    door: Door,
    pub(super) http: Counts,
    pub(super) numbers: Numbers,
    pub(super) parked: ParkedBeats,
    /// Keeps sessions during a mass silence.
    pub(super) guard: Mutex<Guard>,
    /// How often clients shall beat that can be told.
    interval: Option<Duration>,
}

impl Tracker {
    pub(super) fn new(store: SessionStore, door: Door, interval: Option<Duration>) -> Tracker {
        Tracker {
            store,
            door,
            http: Counts::default(),
            numbers: Numbers::new(),
            parked: ParkedBeats::default(),
            guard: Mutex::default(),
            interval,
        }
    }

    /// What a request asks for, and who asks, if he may.
    fn admit(&self, request: &Request, ticket: &Ticket) -> Result<(Route, Caller), Refusal> {
        let (endpoint, route) = find(request)?;
        ticket.is_about(endpoint.number());
        match self.door.admit(endpoint, request) {
            Ok(caller) => Ok((route, caller)),
            Err(Denied { response, to_tell }) => {
                if let Some(caller) = to_tell {
                    self.note_forbidden(&route, &caller);
                }
                Err(Refusal(response))
            }
        }
    }

    /// How long the body of this request may be. Whoever has no business here has no long one read.
    pub(super) fn max_body(&self, request: &Request) -> usize {
        if is_batch(request) && self.door.knows(request) { MAX_BATCH_BODY } else { MAX_BODY }
    }

    /// Whether this session is nothing to this caller: for him it is like none.
    pub(super) fn is_foreign(&self, caller: &Caller, id: &TrackedId) -> bool {
        caller.owner().is_some_and(|owner| self.store.is_foreign(id, owner))
    }

    /// Why a beat is none, if the session is nothing to this caller; it is counted.
    pub(super) fn refused_beat(&self, caller: &Caller, id: &TrackedId) -> Option<Missed> {
        let refused = self.is_foreign(caller, id).then_some(Missed::Gone(None));
        if let Some(missed) = refused {
            self.store.beats().note::<()>(&Err(missed));
        }
        refused
    }

    pub(super) fn store(&self) -> &SessionStore {
        &self.store
    }

    /// Moves sessions that have been silent for `older_than` to the history.
    pub(super) fn clean_up(
        &self,
        older_than: Duration,
        reason: EndReason,
        asked_by: Option<Asker>,
    ) -> crate::Result<Vec<TrackedId>> {
        let gone = self.store.remove_silent(older_than, reason, asked_by)?;
        for id in &gone {
            self.tell_parked(id);
        }
        Ok(gone)
    }

    /// Answers whoever waits for news of this session with what it shall hear now, or that it is gone.
    /// Who has nothing new to hear waits on: a client takes an early answer without news for a tracker
    /// that cannot hold its beats, and leaves it alone for a while.
    pub(super) fn tell_parked(&self, id: &TrackedId) {
        let Some(Parked { waiter, reading }) = self.parked.of(id) else { return };
        let reply = self.store.tell(id);
        if reply.as_ref().is_none_or(|reply| reading.is_news(reply)) {
            self.parked.leave(id, &waiter);
            waiter.send(id, reply.map(|reply| reading.answer(reply)));
        }
    }

    /// Notes a beat that has nothing for the disk, and answers or parks it.
    fn beat(
        &self,
        caller: &Caller,
        id: &TrackedId,
        beat: Heartbeat,
        wait: Duration,
        ticket: &Ticket,
    ) -> Action {
        let reading = Reading::of(&beat);
        if let Some(missed) = self.refused_beat(caller, id) {
            return Action::Respond(missed_beat(missed, reading.is_numbered));
        }
        match self.store.beat(id, beat, wait) {
            Ok(reply) => self.answer_beat(id, reply, reading, wait, ticket),
            Err(missed) => Action::Respond(missed_beat(missed, reading.is_numbered)),
        }
    }

    /// Notes a beat with a status or a word about a kill: neither counts if the beat is late.
    fn beat_with_news(
        &self,
        caller: &Caller,
        id: &TrackedId,
        mut beat: Heartbeat,
        wait: Duration,
        ticket: &Ticket,
    ) -> crate::Result<Action> {
        let reading = Reading::of(&beat);
        if let Some(missed) = self.refused_beat(caller, id) {
            return Ok(Action::Respond(missed_beat(missed, reading.is_numbered)));
        }
        let (kill, status, task) = (beat.kill.take(), beat.status.take(), beat.current_task.take());
        let number = beat.status_number;
        if let Err(missed) = self.store.note_beat(id, beat, wait) {
            return Ok(Action::Respond(missed_beat(missed, reading.is_numbered)));
        }
        if let Some(word) = kill {
            self.store.acknowledge(id, word)?;
        }
        if let Some(status) = status {
            self.store.update_numbered_status(id, &status, task.as_deref(), number)?;
        }
        Ok(match self.store.tell(id) {
            Some(reply) => self.answer_beat(id, reply, reading, wait, ticket),
            None => Action::Respond(missed_beat(Missed::Gone(None), reading.is_numbered)),
        })
    }

    /// Answers a beat with this reply, or parks it.
    fn answer_beat(
        &self,
        id: &TrackedId,
        reply: HeartbeatResponse,
        reading: Reading,
        wait: Duration,
        ticket: &Ticket,
    ) -> Action {
        if wait.is_zero() || reading.is_news(&reply) {
            return Action::Respond(heard(&reading.answer(reply)));
        }
        let waiter = Waiter::Alone(ticket.clone());
        if let Some(over) = self.parked.enter(id, Parked { waiter: waiter.clone(), reading }) {
            over.send_nothing();
        }
        let response = match self.store.tell(id) {
            Some(reply) if !reading.is_news(&reply) => {
                return Action::Park { wait, otherwise: heard(&reply) };
            }
            Some(reply) => heard(&reading.answer(reply)),
            None => missed_beat(Missed::Gone(None), reading.is_numbered),
        };
        self.parked.leave(id, &waiter);
        Action::Respond(response)
    }

    /// Answers what waits for the disk.
    fn answer(
        &self,
        route: Route,
        caller: &Caller,
        request: &Request,
        ticket: &Ticket,
    ) -> Result<Action, Refusal> {
        let response = match route {
            Route::Register => {
                let mut session = registration(body::<SessionCreate>(&request.body)?)?;
                // Whoever says how often it beats reads how often it shall.
                let told = self.interval.filter(|_| session.interval_seconds.is_some());
                let interval_seconds = told.map(|interval| interval.as_secs_f64());
                session.interval_seconds = interval_seconds.or(session.interval_seconds);
                let session_id = self.store.register_for(caller.owner(), session)?;
                let max_wait_seconds = Some(MAX_WAIT.as_secs());
                Response::json(&SessionCreated { session_id, max_wait_seconds, interval_seconds })
            }
            Route::List => self.answer_list(request)?,
            Route::CleanUp => {
                let age = older_than(request)?;
                let deleted_count = self.clean_up_by_hand(age, caller)?.len() as u64;
                Response::json(&CleanupResponse { deleted_count })
            }
            Route::Delete(id) if self.is_foreign(caller, &id) => not_found(),
            Route::Delete(id) => {
                // An app ends itself; an operator, with a token, ends somebody else.
                let asker = (caller.role == Some(Role::Operator)).then(|| caller.asker());
                let known = self.store.delete_for(asker.clone(), &id)?;
                self.tell_parked(&id);
                if let Some(asker) = asker {
                    let result = if known { AuditResult::Done } else { AuditResult::Unknown };
                    let whom = Whom::Session(id);
                    tell(AuditAction::Remove, Some(&whom), Some(&asker), result, usize::from(known));
                }
                if known { DELETED } else { not_found() }
            }
            Route::Heartbeat(id) => {
                let (beat, wait) = (heartbeat(&request.body)?, wait(request)?);
                return Ok(self.beat_with_news(caller, &id, beat, wait, ticket)?);
            }
            Route::Batch => return self.answer_batch(caller, request, ticket),
            Route::Status(id) => {
                let new: SessionStatus = body(&request.body)?;
                check_status(&new.status).map_err(|refusal| unprocessable(&refusal))?;
                let task = new.current_task.as_deref();
                let known = !self.is_foreign(caller, &id)
                    && self.store.update_numbered_status(&id, &new.status, task, new.status_number)?;
                if known { UPDATED } else { not_found() }
            }
            Route::Kill(whom) => self.answer_kill(&whom, caller, request)?,
            Route::Order(whom, verb) => self.answer_order(&whom, verb, caller)?,
            Route::Receipts => self.answer_receipts(request)?,
            Route::Receipt(kill_id) => self.answer_receipt(kill_id)?,
            Route::History => self.answer_history(request)?,
            Route::Audit => self.answer_audit(request)?,
            Route::State => Response::json(&self.state()),
            Route::Metrics => self.answer_metrics(request),
            Route::Pools => self.answer_pools(request)?,
            Route::Events => return self.answer_events(request, ticket),
            Route::Alive => ALIVE,
            // Not logged: it is asked every few seconds.
            Route::Ready => match self.store.check() {
                Ok(()) => READY,
                Err(error) => Response::detail(503, &error.to_string()),
            },
            Route::Description => DESCRIPTION,
            Route::Asset(asset) => page(asset),
        };
        Ok(Action::Respond(response))
    }
}

impl Service for Tracker {
    fn counts(&self) -> &Counts {
        &self.http
    }

    fn answered(&self, answered: Answered) {
        self.numbers.answered(answered);
    }

    /// Beats, events and files never wait for the disk.
    fn quick(&self, request: Request, ticket: &Ticket) -> Result<Action, Request> {
        let (route, caller) = match self.admit(&request, ticket) {
            Ok(admitted) => admitted,
            Err(Refusal(response)) => return Ok(Action::Respond(response)),
        };
        match route {
            Route::Heartbeat(id) => {
                let parsed = heartbeat(&request.body).and_then(|beat| Ok((beat, wait(&request)?)));
                match parsed {
                    Ok((beat, _)) if beat.status.is_some() || beat.kill.is_some() => Err(request),
                    Ok((beat, wait)) => Ok(self.beat(&caller, &id, beat, wait, ticket)),
                    Err(Refusal(response)) => {
                        self.numbers.beat_rejected();
                        Ok(Action::Respond(response))
                    }
                }
            }
            Route::Asset(asset) => Ok(Action::Respond(page(asset))),
            Route::Description => Ok(Action::Respond(DESCRIPTION)),
            Route::Alive => Ok(Action::Respond(ALIVE)),
            Route::Events => {
                let answered = self.answer_events(&request, ticket);
                Ok(answered.unwrap_or_else(|Refusal(response)| Action::Respond(response)))
            }
            _ => Err(request),
        }
    }

    /// Lists grow with the number of sessions; whoever asks for many shall not hold up a kill.
    fn takes_long(&self, request: &Request) -> bool {
        match find(request) {
            Ok((
                _,
                Route::List | Route::Receipts | Route::History | Route::Audit | Route::Metrics | Route::Pools,
            )) => true,
            Ok((_, Route::Kill(_))) => super::kills::is_dry_run(request),
            _ => false,
        }
    }

    fn handle(&self, request: Request, ticket: &Ticket) -> Action {
        let answered = self
            .admit(&request, ticket)
            .and_then(|(route, caller)| self.answer(route, &caller, &request, ticket));
        answered.unwrap_or_else(|Refusal(response)| Action::Respond(response))
    }
}
