//! The routes: requests to calls of the store, and the beats that are parked.

use std::collections::HashMap;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::Result;
use crate::sync::Mutex;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    CleanupResponse, Heartbeat, KillAllResponse, MAX_BATCH_BODY, MAX_BODY, MAX_WAIT, NOT_FOUND, PURGE_AFTER,
    SessionCreate, SessionCreated, SessionList, SessionStatus, is_unspeakable,
};
use crate::tracker::http::{Action, Method, Request, Response, Service, Ticket};
use crate::tracker::store::SessionStore;

const GO_ON: Response = Response::fixed_json(r#"{"kill_requested":false}"#);
const STOP: Response = Response::fixed_json(r#"{"kill_requested":true}"#);
const UPDATED: Response = Response::fixed_json(r#"{"status":"updated"}"#);
const DELETED: Response = Response::fixed_json(r#"{"status":"deleted"}"#);
const ALIVE: Response = Response::fixed_json(r#"{"status":"alive"}"#);
const READY: Response = Response::fixed_json(r#"{"status":"ready"}"#);
const KILL_REQUESTED: Response = Response::fixed_json(r#"{"status":"kill_requested"}"#);

/// The store, and who waits for a kill.
///
/// A kill, and a session's end, look at `parked` after the store has changed; a beat enters itself
/// in `parked` before it looks at the store for the last time. So one of the two always sees the
/// other. An entry outlives its wait until the session's next beat or end: at most one for each
/// session, and answering it does nothing.
pub(super) struct Tracker {
    store: SessionStore,
    parked: Mutex<HashMap<TrackedId, Ticket>>,
}

/// What a method and a path ask for.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Register,
    List,
    CleanUp,
    Delete(TrackedId),
    Heartbeat(TrackedId),
    Status(TrackedId),
    Kill(TrackedId),
    KillAll(String),
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
    pub(super) fn new(store: SessionStore) -> Tracker {
        Tracker { store, parked: Mutex::new(HashMap::new()) }
    }

    pub(super) fn store(&self) -> &SessionStore {
        &self.store
    }

    /// Moves sessions that have been silent for `older_than` to the history.
    pub(super) fn clean_up(&self, older_than: Duration) -> Result<Vec<TrackedId>> {
        let gone = self.store.remove_silent(older_than)?;
        for id in &gone {
            self.answer_parked(id, not_found);
        }
        Ok(gone)
    }

    pub(super) fn kill(&self, id: &TrackedId) -> Result<bool> {
        let known = self.store.request_kill(id)?;
        if known {
            self.answer_parked(id, || STOP);
        }
        Ok(known)
    }

    fn answer_parked(&self, id: &TrackedId, response: impl Fn() -> Response) {
        let ticket = self.parked.lock().remove(id);
        if let Some(ticket) = ticket {
            ticket.send(response());
        }
    }

    /// Answers a beat, or parks it.
    fn beat(&self, id: &TrackedId, beat: Heartbeat, wait: Duration, ticket: &Ticket) -> Action {
        match self.store.beat(id, beat.attached) {
            None => return Action::Respond(not_found()),
            Some(true) => return Action::Respond(STOP),
            Some(false) if wait.is_zero() => return Action::Respond(GO_ON),
            Some(false) => {}
        }
        let older = self.parked.lock().insert(id.clone(), ticket.clone());
        if let Some(older) = older {
            older.send(GO_ON);
        }
        let response = match self.store.kill_requested(id) {
            Some(false) => return Action::Park { wait, otherwise: GO_ON },
            Some(true) => STOP,
            None => not_found(),
        };
        let mut parked = self.parked.lock();
        if parked.get(id).is_some_and(|entry| entry.same(ticket)) {
            parked.remove(id);
        }
        Action::Respond(response)
    }

    /// Answers what waits for the disk.
    fn answer(&self, route: Route, request: &Request, ticket: &Ticket) -> Result<Action, Refusal> {
        let response = match route {
            Route::Register => {
                let session = checked(body::<SessionCreate>(&request.body)?)?;
                let session_id = self.store.register(session)?;
                Response::json(&SessionCreated { session_id, max_wait_seconds: Some(MAX_WAIT.as_secs()) })
            }
            Route::List => Response::json(&SessionList { sessions: self.store.get_all_sessions()? }),
            Route::CleanUp => {
                let age = older_than(request)?;
                let deleted_count = self.clean_up(age)?.len() as u64;
                Response::json(&CleanupResponse { deleted_count })
            }
            Route::Delete(id) => {
                let known = self.store.delete_session(&id)?;
                self.answer_parked(&id, not_found);
                if known { DELETED } else { not_found() }
            }
            Route::Heartbeat(id) => {
                let (beat, wait) = (heartbeat(&request.body)?, wait(request)?);
                if let Some(status) = &beat.status {
                    check_status(status)?;
                    let task = beat.current_task.as_deref();
                    self.store.update_numbered_status(&id, status, task, beat.status_number)?;
                }
                return Ok(self.beat(&id, beat, wait, ticket));
            }
            Route::Status(id) => {
                let new: SessionStatus = body(&request.body)?;
                check_status(&new.status)?;
                let task = new.current_task.as_deref();
                let known = self.store.update_numbered_status(&id, &new.status, task, new.status_number)?;
                if known { UPDATED } else { not_found() }
            }
            Route::Kill(id) => {
                if self.kill(&id)? {
                    KILL_REQUESTED
                } else {
                    not_found()
                }
            }
            Route::KillAll(app_name) => {
                let session_ids = self.store.kill_app(&app_name)?;
                for id in &session_ids {
                    self.answer_parked(id, || STOP);
                }
                Response::json(&KillAllResponse { killed_count: session_ids.len() as u64, session_ids })
            }
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
                    Ok((beat, _)) if beat.status.is_some() => Err(request),
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
        matches!(route(request), Ok(Route::List))
    }

    fn handle(&self, request: Request, ticket: &Ticket) -> Action {
        let answered = route(&request).and_then(|route| self.answer(route, &request, ticket));
        answered.unwrap_or_else(|Refusal(response)| Action::Respond(response))
    }
}

/// An answer that ends the handling of a request.
struct Refusal(Response);

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Refusal {
        log::warn!("a request is refused: {error}");
        Refusal(Response::detail(503, &error.to_string()))
    }
}

fn unprocessable(detail: &str) -> Refusal {
    Refusal(Response::detail(422, detail))
}

fn not_found() -> Response {
    Response::detail(404, NOT_FOUND)
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
        ["sessions", id, "kill"] => match method {
            Method::Post => Ok(Route::Kill((*id).into())),
            _ => wrong_method(&[("Allow", "POST")]),
        },
        // A name whose slashes were not encoded is understood as well: no other route is below.
        ["apps", name @ .., "kill-all"] if !name.is_empty() => match method {
            Method::Post => Ok(Route::KillAll(name.join("/"))),
            _ => wrong_method(&[("Allow", "POST")]),
        },
        _ => Err(Refusal(Response::detail(404, "Not Found"))),
    }
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // An object first: serde would also read a list of the fields' values.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)
        .map_err(|error| unprocessable(&format!("the body is not a JSON object: {error}")))?;
    T::deserialize(serde_json::Value::Object(object))
        .map_err(|error| unprocessable(&format!("the body: {error}")))
}

/// A beat without a body is the usual one.
fn heartbeat(bytes: &[u8]) -> Result<Heartbeat, Refusal> {
    if bytes.trim_ascii().is_empty() { Ok(Heartbeat::default()) } else { body(bytes) }
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
    if let Some(status) = &session.status {
        check_status(status)?;
    }
    Ok(session)
}

fn check_status(status: &str) -> Result<(), Refusal> {
    if status.is_empty() || status.len() > 64 {
        return Err(unprocessable("status: must have 1 to 64 bytes"));
    }
    Ok(())
}

/// The `wait` parameter, at most [`MAX_WAIT`].
fn wait(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "wait")?.map_or(Duration::ZERO, |seconds| duration(seconds).min(MAX_WAIT)))
}

/// The `older_than_minutes` parameter, 10 by default.
fn older_than(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "older_than_minutes")?.map_or(PURGE_AFTER, |minutes| duration(minutes * 60.0)))
}

fn number(request: &Request, name: &str) -> Result<Option<f64>, Refusal> {
    let Some(text) = request.parameter(name) else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
        _ => Err(unprocessable(&format!("{name}: must be a number that is not negative"))),
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
