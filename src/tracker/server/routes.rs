//! The routes: requests to calls of the store, and the beats that are parked.

use std::collections::HashMap;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::batch::{Parked, batch_answer};
use crate::Result;
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::Whom;
use crate::tracker::api::{
    CleanupResponse, EndReason, ErrorBody, Heartbeat, HeartbeatResponse, MAX_ATTACHED, MAX_BATCH_BODY,
    MAX_BODY, MAX_WAIT, NOT_FOUND, PURGE_AFTER, SessionCreate, SessionCreated, SessionList, SessionStatus,
    Verb, is_unspeakable,
};
use crate::tracker::http::{Action, Method, Request, Response, Service, Ticket};
use crate::tracker::life::{Gone, Guard};
use crate::tracker::store::{Missed, SessionStore};

pub(super) const GO_ON: Response = Response::fixed_json(r#"{"kill_requested":false}"#);
const UPDATED: Response = Response::fixed_json(r#"{"status":"updated"}"#);
const DELETED: Response = Response::fixed_json(r#"{"status":"deleted"}"#);
const ALIVE: Response = Response::fixed_json(r#"{"status":"alive"}"#);
const READY: Response = Response::fixed_json(r#"{"status":"ready"}"#);

/// The store, and who waits for a kill.
///
/// A kill, and a session's end, look at `parked` after the store has changed; a beat enters itself
/// in `parked` before it looks at the store for the last time. So one of the two always sees the
/// other. An entry outlives its wait until the session's next beat or end: at most one for each
/// session, and answering it does nothing.
pub(super) struct Tracker {
    store: SessionStore,
    parked: Mutex<HashMap<TrackedId, Parked>>,
    /// Keeps sessions during a mass silence.
    pub(super) guard: Mutex<Guard>,
    /// How often clients shall beat that can be told.
    interval: Option<Duration>,
}

/// What a beat tells of how its client reads answers.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// It numbers its beats, and so reads why one counts for nothing.
    is_numbered: bool,
    /// The last verbs that it has read; nothing if it never reads them.
    verbs: Option<u64>,
}

impl Reading {
    pub(super) fn of(beat: &Heartbeat) -> Reading {
        Reading { is_numbered: beat.beat_number.is_some(), verbs: beat.verbs_number }
    }

    /// Whether the client shall hear this at once. One that reads no verbs is not kept from parking
    /// by them.
    fn is_news(self, reply: &HeartbeatResponse) -> bool {
        reply.kill_requested || self.has_new_verbs(reply)
    }

    pub(super) fn has_new_verbs(self, reply: &HeartbeatResponse) -> bool {
        self.verbs.is_some_and(|read| reply.verbs_number.is_some_and(|now| now > read))
    }
}

/// What a method and a path ask for.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Register,
    List,
    CleanUp,
    Delete(TrackedId),
    Heartbeat(TrackedId),
    Batch,
    Status(TrackedId),
    Kill(Whom),
    Order(Whom, Verb),
    Receipts,
    Receipt(u64),
    History,
    State,
    Alive,
    Ready,
    Asset(&'static Asset),
}

/// A file of the dashboard.
#[derive(Debug, PartialEq, Eq)]
struct Asset {
    content_type: &'static str,
    text: &'static str,
}

static PAGE: Asset =
    Asset { content_type: "text/html; charset=utf-8", text: include_str!("../dashboard/index.html") };
static STYLE: Asset =
    Asset { content_type: "text/css; charset=utf-8", text: include_str!("../dashboard/dashboard.css") };
static SCRIPT: Asset =
    Asset { content_type: "text/javascript; charset=utf-8", text: include_str!("../dashboard/dashboard.js") };

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const PAGE_FIELDS: &[(&str, &str)] = &[
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

impl Tracker {
    pub(super) fn new(store: SessionStore, interval: Option<Duration>) -> Tracker {
        Tracker { store, parked: Mutex::new(HashMap::new()), guard: Mutex::default(), interval }
    }

    pub(super) fn store(&self) -> &SessionStore {
        &self.store
    }

    /// Moves sessions that have been silent for `older_than` to the history.
    pub(super) fn clean_up(&self, older_than: Duration, reason: EndReason) -> Result<Vec<TrackedId>> {
        let gone = self.store.remove_silent(older_than, reason)?;
        for id in &gone {
            self.tell_parked(id);
        }
        Ok(gone)
    }

    /// Answers whoever waits for news of this session with what it shall hear now, or that it is gone.
    pub(super) fn tell_parked(&self, id: &TrackedId) {
        let entry = self.parked.lock().remove(id);
        match entry {
            Some(Parked::Alone(ticket)) => {
                ticket.send(self.store.tell(id).as_ref().map_or_else(not_found, heard));
            }
            Some(Parked::Batch(ticket)) => ticket.send(batch_answer(id, self.store.tell(id))),
            None => {}
        }
    }

    /// Enters who waits for news of this session; returns who did before, unless it is the same.
    pub(super) fn park(&self, id: &TrackedId, entry: Parked) -> Option<Parked> {
        self.parked.lock().insert(id.clone(), entry)
    }

    /// Takes an entry back, if it is still there.
    pub(super) fn unpark(&self, id: &TrackedId, entry: &Parked) {
        let mut parked = self.parked.lock();
        if parked.get(id).is_some_and(|found| found.same(entry)) {
            parked.remove(id);
        }
    }

    /// Notes a beat that has nothing for the disk, and answers or parks it.
    fn beat(&self, id: &TrackedId, beat: Heartbeat, wait: Duration, ticket: &Ticket) -> Action {
        let reading = Reading::of(&beat);
        match self.store.beat(id, beat, wait) {
            Ok(reply) => self.answer_beat(id, &reply, reading, wait, ticket),
            Err(missed) => Action::Respond(missed_beat(missed, reading.is_numbered)),
        }
    }

    /// Notes a beat with a status or a word about a kill: neither counts if the beat is late.
    fn beat_with_news(
        &self,
        id: &TrackedId,
        mut beat: Heartbeat,
        wait: Duration,
        ticket: &Ticket,
    ) -> Result<Action> {
        let reading = Reading::of(&beat);
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
            Some(reply) => self.answer_beat(id, &reply, reading, wait, ticket),
            None => Action::Respond(missed_beat(Missed::Gone(None), reading.is_numbered)),
        })
    }

    /// Answers a beat with this reply, or parks it.
    fn answer_beat(
        &self,
        id: &TrackedId,
        reply: &HeartbeatResponse,
        reading: Reading,
        wait: Duration,
        ticket: &Ticket,
    ) -> Action {
        if wait.is_zero() || reading.is_news(reply) {
            return Action::Respond(heard(reply));
        }
        if let Some(older) = self.park(id, Parked::Alone(ticket.clone())) {
            older.send_nothing();
        }
        let response = match self.store.tell(id) {
            Some(reply) if !reading.is_news(&reply) => {
                return Action::Park { wait, otherwise: heard(&reply) };
            }
            Some(reply) => heard(&reply),
            None => missed_beat(Missed::Gone(None), reading.is_numbered),
        };
        self.unpark(id, &Parked::Alone(ticket.clone()));
        Action::Respond(response)
    }

    /// Answers what waits for the disk.
    fn answer(&self, route: Route, request: &Request, ticket: &Ticket) -> Result<Action, Refusal> {
        let response = match route {
            Route::Register => {
                let mut session = checked(body::<SessionCreate>(&request.body)?)?;
                // Whoever says how often it beats reads how often it shall.
                let told = self.interval.filter(|_| session.interval_seconds.is_some());
                let interval_seconds = told.map(|interval| interval.as_secs_f64());
                session.interval_seconds = interval_seconds.or(session.interval_seconds);
                let session_id = self.store.register(session)?;
                let max_wait_seconds = Some(MAX_WAIT.as_secs());
                Response::json(&SessionCreated { session_id, max_wait_seconds, interval_seconds })
            }
            Route::List => Response::json(&SessionList { sessions: self.store.get_all_sessions()? }),
            Route::CleanUp => {
                let age = older_than(request)?;
                let deleted_count = self.clean_up_by_hand(age)?.len() as u64;
                Response::json(&CleanupResponse { deleted_count })
            }
            Route::Delete(id) => {
                let known = self.store.delete_session(&id)?;
                self.tell_parked(&id);
                if known { DELETED } else { not_found() }
            }
            Route::Heartbeat(id) => {
                let (beat, wait) = (heartbeat(&request.body)?, wait(request)?);
                if let Some(status) = &beat.status {
                    check_status(status).map_err(|refusal| unprocessable(&refusal))?;
                }
                return Ok(self.beat_with_news(&id, beat, wait, ticket)?);
            }
            Route::Batch => return self.answer_batch(request, ticket),
            Route::Status(id) => {
                let new: SessionStatus = body(&request.body)?;
                check_status(&new.status).map_err(|refusal| unprocessable(&refusal))?;
                let task = new.current_task.as_deref();
                let known = self.store.update_numbered_status(&id, &new.status, task, new.status_number)?;
                if known { UPDATED } else { not_found() }
            }
            Route::Kill(whom) => self.answer_kill(whom, request)?,
            Route::Order(whom, verb) => self.answer_order(whom, verb)?,
            Route::Receipts => self.answer_receipts(request)?,
            Route::Receipt(kill_id) => self.answer_receipt(kill_id)?,
            Route::History => self.answer_history(request)?,
            Route::State => Response::json(&self.state()),
            Route::Alive => ALIVE,
            // Not logged: it is asked every few seconds.
            Route::Ready => match self.store.check() {
                Ok(()) => READY,
                Err(error) => Response::detail(503, &error.to_string()),
            },
            Route::Asset(asset) => page(asset),
        };
        Ok(Action::Respond(response))
    }
}

impl Service for Tracker {
    /// Beats and files never wait for the disk.
    fn quick(&self, request: Request, ticket: &Ticket) -> Result<Action, Request> {
        match route(&request) {
            Ok(Route::Heartbeat(id)) => {
                let parsed = heartbeat(&request.body).and_then(|beat| Ok((beat, wait(&request)?)));
                match parsed {
                    Ok((beat, _)) if beat.status.is_some() || beat.kill.is_some() => Err(request),
                    Ok((beat, wait)) => Ok(self.beat(&id, beat, wait, ticket)),
                    Err(Refusal(response)) => Ok(Action::Respond(response)),
                }
            }
            Ok(Route::Asset(asset)) => Ok(Action::Respond(page(asset))),
            Ok(Route::Alive) => Ok(Action::Respond(ALIVE)),
            Ok(_) => Err(request),
            Err(Refusal(response)) => Ok(Action::Respond(response)),
        }
    }

    /// Lists grow with the number of sessions; whoever asks for many shall not hold up a kill.
    fn takes_long(&self, request: &Request) -> bool {
        match route(request) {
            Ok(Route::List | Route::Receipts | Route::History) => true,
            Ok(Route::Kill(_)) => super::kills::is_dry_run(request),
            _ => false,
        }
    }

    fn handle(&self, request: Request, ticket: &Ticket) -> Action {
        let answered = route(&request).and_then(|route| self.answer(route, &request, ticket));
        answered.unwrap_or_else(|Refusal(response)| Action::Respond(response))
    }
}

/// An answer that ends the handling of a request.
pub(super) struct Refusal(pub(super) Response);

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Refusal {
        log::warn!("a request is refused: {error}");
        Refusal(Response::detail(503, &error.to_string()))
    }
}

pub(super) fn unprocessable(detail: &str) -> Refusal {
    Refusal(Response::detail(422, detail))
}

pub(super) fn not_found() -> Response {
    Response::detail(404, NOT_FOUND)
}

/// A refusal with a word for programs.
pub(super) fn refusal(status: u16, detail: &str, reason: &str) -> Response {
    let body = ErrorBody { detail: detail.to_owned(), reason: Some(reason.to_owned()) };
    Response { status, ..Response::json(&body) }
}

/// What a session hears.
fn heard(reply: &HeartbeatResponse) -> Response {
    if *reply == HeartbeatResponse::default() { GO_ON } else { Response::json(reply) }
}

/// A beat that counts for nothing. The ancestors' clients, which number no beats, know one 404.
fn missed_beat(missed: Missed, is_numbered: bool) -> Response {
    match missed {
        Missed::Late => refusal(409, "a newer beat of this session has come before", missed_word(missed)),
        Missed::Gone(_) if !is_numbered => not_found(),
        Missed::Gone(_) => refusal(404, NOT_FOUND, missed_word(missed)),
    }
}

/// Why a beat counts for nothing, for programs.
pub(super) fn missed_word(missed: Missed) -> &'static str {
    match missed {
        Missed::Late => "late_beat",
        Missed::Gone(how) => how.map_or("unknown", Gone::as_str),
    }
}

fn page(asset: &Asset) -> Response {
    Response::new(200, asset.content_type, asset.text.as_bytes()).with_fields(PAGE_FIELDS)
}

/// How long the body of this request may be.
pub(super) fn max_body(request: &Request) -> usize {
    if request.path == ["heartbeats"] { MAX_BATCH_BODY } else { MAX_BODY }
}

/// Literal parts come before parameters: `/sessions/stale` is never the session `stale`.
fn route(request: &Request) -> Result<Route, Refusal> {
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let method = if request.method == Method::Head { Method::Get } else { request.method };
    let wrong_method = |allowed: &'static [(&'static str, &'static str)]| {
        Err(Refusal(Response::detail(405, "Method Not Allowed").with_fields(allowed)))
    };
    let get = |route| match method {
        Method::Get => Ok(route),
        _ => wrong_method(&[("Allow", "GET")]),
    };
    match path.as_slice() {
        [""] => get(Route::Asset(&PAGE)),
        ["dashboard.css"] => get(Route::Asset(&STYLE)),
        ["dashboard.js"] => get(Route::Asset(&SCRIPT)),
        ["livez"] => get(Route::Alive),
        ["readyz"] => get(Route::Ready),
        ["sessions"] => match method {
            Method::Get => Ok(Route::List),
            Method::Post => Ok(Route::Register),
            _ => wrong_method(&[("Allow", "GET, POST")]),
        },
        ["sessions", "stale"] => match method {
            Method::Delete => Ok(Route::CleanUp),
            _ => wrong_method(&[("Allow", "DELETE")]),
        },
        ["sessions", id] if !id.is_empty() => match method {
            Method::Delete => Ok(Route::Delete((*id).into())),
            _ => wrong_method(&[("Allow", "DELETE")]),
        },
        ["sessions", id, "heartbeat"] => match method {
            Method::Post => Ok(Route::Heartbeat((*id).into())),
            _ => wrong_method(&[("Allow", "POST")]),
        },
        ["sessions", id, "status"] => match method {
            Method::Put => Ok(Route::Status((*id).into())),
            _ => wrong_method(&[("Allow", "PUT")]),
        },
        ["heartbeats"] => match method {
            Method::Post => Ok(Route::Batch),
            _ => wrong_method(&[("Allow", "POST")]),
        },
        ["kills"] => match method {
            Method::Get => Ok(Route::Receipts),
            _ => wrong_method(&[("Allow", "GET")]),
        },
        ["kills", number] => match (number.parse(), method) {
            (Ok(kill_id), Method::Get) => Ok(Route::Receipt(kill_id)),
            (Ok(_), _) => wrong_method(&[("Allow", "GET")]),
            (Err(_), _) => Err(Refusal(Response::detail(404, "Not Found"))),
        },
        ["history"] => match method {
            Method::Get => Ok(Route::History),
            _ => wrong_method(&[("Allow", "GET")]),
        },
        ["tracker"] => match method {
            Method::Get => Ok(Route::State),
            _ => wrong_method(&[("Allow", "GET")]),
        },
        _ => match order(&path) {
            Some(_) if method != Method::Post => wrong_method(&[("Allow", "POST")]),
            Some(route) => Ok(route),
            None => Err(Refusal(Response::detail(404, "Not Found"))),
        },
    }
}

/// The routes that ask something of sessions: `…/kill`, `…/pause-all` and so on.
fn order(path: &[&str]) -> Option<Route> {
    let (whom, word) = match path {
        ["sessions", id, word] if !id.is_empty() => (Whom::Session((*id).into()), *word),
        // A name whose slashes were not encoded is understood as well: no other route is below.
        ["apps", name @ .., word] if !name.is_empty() => {
            (Whom::App(name.join("/")), word.strip_suffix("-all")?)
        }
        ["labels", key, value, word] if !key.is_empty() => {
            (Whom::Label { key: (*key).to_owned(), value: (*value).to_owned() }, word.strip_suffix("-all")?)
        }
        _ => return None,
    };
    if word == "kill" {
        return Some(Route::Kill(whom));
    }
    Verb::named(word).map(|verb| Route::Order(whom, verb))
}

pub(super) fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // An object first: serde would also read a list of the fields' values.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)
        .map_err(|error| unprocessable(&format!("the body is not a JSON object: {error}")))?;
    T::deserialize(serde_json::Value::Object(object))
        .map_err(|error| unprocessable(&format!("the body: {error}")))
}

/// A beat without a body is the usual one.
fn heartbeat(bytes: &[u8]) -> Result<Heartbeat, Refusal> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Heartbeat::default());
    }
    let beat: Heartbeat = body(bytes)?;
    check_beat(&beat, bytes.len()).map_err(|refusal| unprocessable(&refusal))?;
    Ok(beat)
}

/// Whether a beat makes sense that came in a body of that many bytes.
pub(super) fn check_beat(beat: &Heartbeat, bytes: usize) -> Result<(), String> {
    if beat.progress.is_some_and(|progress| !(0.0..=1.0).contains(&progress)) {
        return Err("progress: must be from 0 to 1".to_owned());
    }
    if let Some(attached) = &beat.attached
        && bytes > MAX_ATTACHED
        && serde_json::to_string(attached).is_ok_and(|json| json.len() > MAX_ATTACHED)
    {
        return Err(format!("attached: must have at most {MAX_ATTACHED} bytes"));
    }
    Ok(())
}

fn checked(session: SessionCreate) -> Result<SessionCreate, Refusal> {
    if session.app_name.is_empty() || session.app_name.len() > 1_024 {
        return Err(unprocessable("app_name: must have 1 to 1024 bytes"));
    }
    if is_unspeakable(&session.app_name) {
        return Err(unprocessable("app_name: must not contain NUL, because no path can name that"));
    }
    if session.session_id.as_ref().is_some_and(|id| !id.is_uuid()) {
        return Err(unprocessable("session_id: must be a UUID"));
    }
    if session.uptime_seconds.is_some_and(|uptime| !uptime.is_finite() || uptime < 0.0) {
        return Err(unprocessable("uptime_seconds: must not be negative"));
    }
    if session.interval_seconds.is_some_and(|interval| !(0.001..=31_536_000.0).contains(&interval)) {
        return Err(unprocessable("interval_seconds: must be from 0.001 to 31536000 (a year)"));
    }
    if session.version.as_ref().is_some_and(|version| version.len() > 256) {
        return Err(unprocessable("version: must have at most 256 bytes"));
    }
    if let Some(status) = &session.status {
        check_status(status).map_err(|refusal| unprocessable(&refusal))?;
    }
    Ok(session)
}

pub(super) fn check_status(status: &str) -> Result<(), String> {
    if status.is_empty() || status.len() > 64 {
        return Err("status: must have 1 to 64 bytes".to_owned());
    }
    Ok(())
}

/// The `wait` parameter, at most [`MAX_WAIT`].
pub(super) fn wait(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "wait")?.map_or(Duration::ZERO, |seconds| duration(seconds).min(MAX_WAIT)))
}

/// The `older_than_minutes` parameter, 10 by default.
fn older_than(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "older_than_minutes")?.map_or(PURGE_AFTER, |minutes| duration(minutes * 60.0)))
}

pub(super) fn number(request: &Request, name: &str) -> Result<Option<f64>, Refusal> {
    let Some(text) = request.parameter(name) else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
        _ => Err(unprocessable(&format!("{name}: must be a number that is not negative"))),
    }
}

pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
