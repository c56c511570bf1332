//! Which requests there are: one table, from which requests are understood, refused and described.

use std::borrow::Cow;

use super::pages::{Asset, PAGE, part};
use super::replies::Refusal;
use crate::tracker::TrackedId;
use crate::tracker::api::{Verb, Whom};
use crate::tracker::http::{Method, Request, Response};

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
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
    Audit,
    State,
    Events,
    Metrics,
    Pools,
    Alive,
    Ready,
    Description,
    Asset(&'static Asset),
}

/// Who may ask, once there are access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever reaches the server.
    Everybody,
    /// Apps, for their own sessions.
    App,
    /// Who looks.
    Viewer,
    /// Who may also kill and order.
    Operator,
}

#[cfg(feature = "testing")]
impl Access {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Access::Everybody => "everybody",
            Access::App => "app",
            Access::Viewer => "viewer",
            Access::Operator => "operator",
        }
    }
}

/// What can be asked for.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) method: Method,
    /// As the API's description writes it: `{name}` stands for any part that is not empty.
    pub(super) path: &'static str,
    pub(super) access: Access,
    /// From the texts in the place of `{…}`; nothing if they make no sense there.
    route: fn(&Filled<'_>) -> Option<Route>,
}

/// What stands in the place of `{…}`.
type Filled<'a> = [&'a str; 2];

const fn endpoint(
    method: Method,
    path: &'static str,
    access: Access,
    route: fn(&Filled<'_>) -> Option<Route>,
) -> Endpoint {
    Endpoint { method, path, access, route }
}

/// The three paths of something that can be asked of one session, of an app's and of those with a label.
macro_rules! asked_of_sessions {
    ($word:literal, $route:expr) => {
        [
            endpoint(Method::Post, concat!("/sessions/{session_id}/", $word), Access::Operator, |[id, _]| {
                Some($route(Whom::Session((*id).into())))
            }),
            endpoint(
                Method::Post,
                concat!("/apps/{app_name}/", $word, "-all"),
                Access::Operator,
                |[app, _]| Some($route(Whom::App((*app).to_owned()))),
            ),
            endpoint(
                Method::Post,
                concat!("/labels/{key}/{value}/", $word, "-all"),
                Access::Operator,
                |[k, v]| Some($route(Whom::Label { key: (*k).to_owned(), value: (*v).to_owned() })),
            ),
        ]
    };
}

/// All of them. Literal paths stand before those with `{…}` in the same place: `/sessions/stale` is
/// never the session `stale`. What is asked most stands first.
static ENDPOINTS: [&[Endpoint]; 7] = [
    &[
        endpoint(Method::Post, "/sessions/{session_id}/heartbeat", Access::App, |[id, _]| {
            Some(Route::Heartbeat((*id).into()))
        }),
        endpoint(Method::Post, "/heartbeats", Access::App, |_| Some(Route::Batch)),
        endpoint(Method::Put, "/sessions/{session_id}/status", Access::App, |[id, _]| {
            Some(Route::Status((*id).into()))
        }),
        endpoint(Method::Get, "/sessions", Access::Viewer, |_| Some(Route::List)),
        endpoint(Method::Post, "/sessions", Access::App, |_| Some(Route::Register)),
        endpoint(Method::Delete, "/sessions/stale", Access::Operator, |_| Some(Route::CleanUp)),
        endpoint(Method::Delete, "/sessions/{session_id}", Access::App, |[id, _]| {
            Some(Route::Delete((*id).into()))
        }),
        endpoint(Method::Get, "/kills", Access::Viewer, |_| Some(Route::Receipts)),
        endpoint(Method::Get, "/kills/{kill_id}", Access::Viewer, |[number, _]| {
            number.parse().ok().map(Route::Receipt)
        }),
        endpoint(Method::Get, "/history", Access::Viewer, |_| Some(Route::History)),
        endpoint(Method::Get, "/audit", Access::Operator, |_| Some(Route::Audit)),
        endpoint(Method::Get, "/tracker", Access::Viewer, |_| Some(Route::State)),
        endpoint(Method::Get, "/events", Access::Viewer, |_| Some(Route::Events)),
        endpoint(Method::Get, "/metrics", Access::Viewer, |_| Some(Route::Metrics)),
        endpoint(Method::Get, "/pools", Access::Viewer, |_| Some(Route::Pools)),
        endpoint(Method::Get, "/livez", Access::Everybody, |_| Some(Route::Alive)),
        endpoint(Method::Get, "/readyz", Access::Everybody, |_| Some(Route::Ready)),
        endpoint(Method::Get, "/openapi.json", Access::Everybody, |_| Some(Route::Description)),
        endpoint(Method::Get, "/", Access::Everybody, |_| Some(Route::Asset(&PAGE))),
        endpoint(Method::Get, "/dashboard/{file}", Access::Everybody, |[name, _]| {
            part(name).map(Route::Asset)
        }),
    ],
    &asked_of_sessions!("kill", Route::Kill),
    &asked_of_sessions!("pause", |whom| Route::Order(whom, Verb::Pause)),
    &asked_of_sessions!("drain", |whom| Route::Order(whom, Verb::Drain)),
    &asked_of_sessions!("resume", |whom| Route::Order(whom, Verb::Resume)),
    &asked_of_sessions!("protect", |whom| Route::Order(whom, Verb::Protect)),
    &asked_of_sessions!("unprotect", |whom| Route::Order(whom, Verb::Unprotect)),
];

impl Endpoint {
    /// Its place in the table.
    pub(super) fn number(&'static self) -> u16 {
        let place = endpoints().position(|endpoint| std::ptr::eq(endpoint, self));
        place.and_then(|place| u16::try_from(place).ok()).unwrap_or(u16::MAX)
    }
}

/// Everything that can be asked for.
pub(super) fn endpoints() -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().copied().flatten()
}

/// What a request asks for, and the place in the table that says so.
pub(super) fn find(request: &Request) -> Result<(&'static Endpoint, Route), Refusal> {
    let method = if request.method == Method::Head { Method::Get } else { request.method };
    let path = parts(&request.path);
    let mut allowed = Vec::new();
    for endpoint in endpoints() {
        let Some(route) = fill(endpoint.path, &path).and_then(|filled| (endpoint.route)(&filled)) else {
            continue;
        };
        if endpoint.method == method {
            return Ok((endpoint, route));
        }
        // A literal path hides what could stand for it as well.
        let is_literal = !endpoint.path.contains('{');
        allowed.push(endpoint.method);
        if is_literal && path.len() > 1 {
            break;
        }
    }
    Err(Refusal(match allowed.as_slice() {
        [] => Response::detail(404, "Not Found"),
        [only] => wrong_method(allow(*only)),
        _ => wrong_method(&[("Allow", "GET, POST")]),
    }))
}

fn wrong_method(allowed: &'static [(&'static str, &'static str)]) -> Response {
    Response::detail(405, "Method Not Allowed").with_fields(allowed)
}

fn allow(method: Method) -> &'static [(&'static str, &'static str)] {
    match method {
        Method::Get | Method::Head | Method::Other => &[("Allow", "GET")],
        Method::Post => &[("Allow", "POST")],
        Method::Put => &[("Allow", "PUT")],
        Method::Delete => &[("Allow", "DELETE")],
    }
}

/// The parts of a path. An app's name whose slashes were not encoded is understood as well, because
/// nothing else is below it.
fn parts(path: &[String]) -> Vec<Cow<'_, str>> {
    match path {
        [first, name @ .., last] if first == "apps" && name.len() > 1 => {
            vec![Cow::from(first), Cow::from(name.join("/")), Cow::from(last)]
        }
        _ => path.iter().map(Cow::from).collect(),
    }
}

/// What stands in the place of `{…}` if the path is of this shape.
fn fill<'a>(shape: &str, path: &'a [Cow<'_, str>]) -> Option<Filled<'a>> {
    let mut filled = [""; 2];
    let mut free = filled.iter_mut();
    let mut path = path.iter();
    for part in shape[1..].split('/') {
        let found = path.next()?;
        if !part.starts_with('{') {
            if part != found {
                return None;
            }
        } else if !found.is_empty() || part == "{value}" {
            *free.next()? = found;
        } else {
            return None;
        }
    }
    path.next().is_none().then_some(filled)
}

/// Whether its body may be a long one.
pub(super) fn is_batch(request: &Request) -> bool {
    request.path == ["heartbeats"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str) -> Request {
        let path = path[1..].split('/').map(str::to_owned).collect();
        Request::new(method, path)
    }

    fn found(method: Method, path: &str) -> Result<Route, u16> {
        find(&request(method, path)).map(|(_, route)| route).map_err(|Refusal(response)| response.status)
    }

    #[test]
    fn every_endpoint_is_found_by_its_own_path() {
        for endpoint in endpoints() {
            let path =
                endpoint.path.replace("{kill_id}", "7").replace("{file}", "main.js").replace(['{', '}'], "");
            let found = find(&request(endpoint.method, &path));
            let Ok((found, _)) = found else { panic!("{path}") };
            assert!(std::ptr::eq(found, endpoint), "{path} is {}", found.path);
        }
    }

    #[test]
    fn literal_parts_win_over_names() {
        assert_eq!(found(Method::Delete, "/sessions/stale"), Ok(Route::CleanUp));
        assert_eq!(found(Method::Delete, "/sessions/stale2"), Ok(Route::Delete("stale2".into())));
        assert_eq!(found(Method::Get, "/sessions/stale"), Err(405));
    }

    #[test]
    fn what_is_not_there_is_told_from_what_is_asked_wrongly() {
        for path in ["/sessions/", "/sessions//kill", "/nothing", "/kills/x", "/apps//kill-all", "/livez/"] {
            assert_eq!(found(Method::Post, path), Err(404), "{path}");
        }
        for path in ["/kills/7", "/livez", "/sessions/a", "/sessions/a/status"] {
            assert_eq!(found(Method::Post, path), Err(405), "{path}");
        }
    }

    #[test]
    fn an_apps_name_may_have_slashes() {
        let app = Route::Kill(Whom::App("a/b".to_owned()));
        assert_eq!(found(Method::Post, "/apps/a/b/kill-all"), Ok(app));
    }
}
