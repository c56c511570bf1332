//! The requests of a client, and what can come back. Knows nothing of sessions' states.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::{Agent, Body, http};

use super::config::ClientConfig;
use crate::background::shielded;
use crate::error::{Error, Result};
use crate::tracker::api::{
    CONNECTION_IDLE, ErrorBody, Heartbeat, HeartbeatAnswers, HeartbeatBatch, HeartbeatResponse,
    SessionCreate, SessionCreated, SessionStatus, StatusReply,
};
use crate::tracker::{AccessToken, TrackedId};

/// A connection is not reused after this time, so that the server is never the one who closes first.
const KEEP: Duration = CONNECTION_IDLE.saturating_sub(Duration::from_secs(5));
/// A server that does not accept within this time is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// The buffers of a connection; the default of 128 KiB each is dear with a thousand clients.
const BUFFER: usize = 4 * 1024;
/// No answer that a client understands is longer, but to a batch.
const LONGEST_ANSWER: u64 = 64 * 1024;
/// A thousand kills with their reasons.
const LONGEST_ANSWERS: u64 = 8 * 1024 * 1024;
/// No id that a server gives is longer.
const LONGEST_ID: usize = 256;

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server does not know the session.
    Unknown,
    /// No connection, or it broke.
    Unreachable(String),
    /// No answer came in time.
    Silent,
    /// The server answered that it cannot or will not.
    Refused { status: u16, detail: String },
    /// The answer makes no sense: something else listens there.
    Garbage(String),
}

impl Trouble {
    /// It would be the same the next time: the server does not let this client in.
    pub(super) fn is_denial(&self) -> bool {
        matches!(self, Trouble::Refused { status: 401 | 403, .. })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unknown => f.write_str("it does not know the session"),
            Trouble::Unreachable(reason) => write!(f, "it cannot be reached: {reason}"),
            Trouble::Silent => f.write_str("it does not answer in time"),
            Trouble::Refused { status, detail } => write!(f, "it answers {status}: {detail}"),
            Trouble::Garbage(reason) => write!(f, "what it answers makes no sense: {reason}"),
        }
    }
}

/// Connections to one tracker.
pub(super) struct Link {
    agent: Agent,
    base: String,
    authorization: Option<http::HeaderValue>,
}

impl Link {
    pub(super) fn new(config: &ClientConfig) -> Result<Link> {
        let base = parse_server_url(&config.server_url)?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The tracker is near; a proxy from the environment is meant for the web.
            .proxy(None)
            .user_agent(concat!("remuda/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .max_idle_age(KEEP)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .timeout_connect(Some(CONNECT))
            .build()
            .new_agent();
        let authorization = config.token.as_ref().and_then(authorization);
        Ok(Link { agent, base, authorization })
    }

    /// `POST /sessions`
    pub(super) fn register(
        &self,
        body: &SessionCreate,
        timeout: Duration,
    ) -> std::result::Result<SessionCreated, Trouble> {
        let created: SessionCreated =
            self.exchange(http::Method::POST, "/sessions", Some(body), timeout).map_err(|trouble| {
                match trouble {
                    // A 404 to a registration: whatever listens there has no such route.
                    Trouble::Unknown => Trouble::Refused { status: 404, detail: "no such route".to_owned() },
                    trouble => trouble,
                }
            })?;
        match created.session_id.as_str().len() {
            1..=LONGEST_ID => Ok(created),
            bytes => Err(Trouble::Garbage(format!("a session id of {bytes} bytes"))),
        }
    }

    /// `POST /sessions/{id}/heartbeat`, held by the server for `wait` seconds unless that is 0.
    pub(super) fn beat(
        &self,
        id: &TrackedId,
        body: &Heartbeat,
        wait: u64,
        timeout: Duration,
    ) -> std::result::Result<HeartbeatResponse, Trouble> {
        let wait = if wait == 0 { String::new() } else { format!("?wait={wait}") };
        let path = format!("{}/heartbeat{wait}", session_path(id));
        self.exchange(http::Method::POST, &path, Some(body), timeout)
    }

    /// `POST /heartbeats`, held by the server for `wait` seconds unless that is 0.
    pub(super) fn beats(
        &self,
        body: &HeartbeatBatch,
        wait: u64,
        timeout: Duration,
    ) -> std::result::Result<HeartbeatAnswers, Trouble> {
        let wait = if wait == 0 { String::new() } else { format!("?wait={wait}") };
        let path = format!("/heartbeats{wait}");
        self.exchange_long(http::Method::POST, &path, Some(body), timeout, LONGEST_ANSWERS)
    }

    /// `PUT /sessions/{id}/status`
    pub(super) fn status(
        &self,
        id: &TrackedId,
        body: &SessionStatus,
        timeout: Duration,
    ) -> std::result::Result<(), Trouble> {
        let path = format!("{}/status", session_path(id));
        self.exchange::<StatusReply>(http::Method::PUT, &path, Some(body), timeout).map(drop)
    }

    /// `DELETE /sessions/{id}`
    pub(super) fn delete(&self, id: &TrackedId, timeout: Duration) -> std::result::Result<(), Trouble> {
        self.exchange::<StatusReply>(http::Method::DELETE, &session_path(id), None::<&()>, timeout).map(drop)
    }

    /// Breaks every connection, also those that a request of another thread waits on, and lets no
    /// new one be made.
    pub(super) fn shut(&self) {
        self.agent.clone().shutdown();
    }

    fn exchange<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
    ) -> std::result::Result<T, Trouble> {
        self.exchange_long(method, path, body, timeout, LONGEST_ANSWER)
    }

    fn exchange_long<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
        longest: u64,
    ) -> std::result::Result<T, Trouble> {
        // The HTTP client starts a thread to look a name up and panics when it cannot.
        shielded("a request to the tracker", || self.raw(method, path, body, timeout, longest))
            .unwrap_or_else(|| Err(Trouble::Unreachable("the request panicked".to_owned())))
            .and_then(|(status, bytes)| read(status, &bytes))
    }

    fn raw(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
        longest: u64,
    ) -> std::result::Result<(u16, Vec<u8>), Trouble> {
        let garbled = |error: &dyn fmt::Display| Trouble::Garbage(error.to_string());
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(http::header::AUTHORIZATION, authorization);
        }
        let mut response = match body {
            None => {
                let request = request.body(()).map_err(|error| garbled(&error))?;
                self.agent.run(self.limited(request, timeout))
            }
            Some(body) => {
                let bytes = serde_json::to_vec(body).map_err(|error| garbled(&error))?;
                let request = request
                    .header("content-type", "application/json")
                    .body(bytes)
                    .map_err(|error| garbled(&error))?;
                self.agent.run(self.limited(request, timeout))
            }
        }
        .map_err(trouble)?;
        let bytes = read_body(response.body_mut(), longest).map_err(trouble)?;
        Ok((response.status().as_u16(), bytes))
    }

    fn limited<S: ureq::AsSendBody>(&self, request: http::Request<S>, timeout: Duration) -> http::Request<S> {
        self.agent.configure_request(request).timeout_global(Some(timeout)).build()
    }
}

/// The header field that shows a token, and is not shown itself.
pub(in crate::tracker) fn authorization(token: &AccessToken) -> Option<http::HeaderValue> {
    let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.as_str())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn read_body(body: &mut Body, longest: u64) -> std::result::Result<Vec<u8>, ureq::Error> {
    body.with_config().limit(longest).read_to_vec()
}

/// The answer's meaning.
fn read<T: DeserializeOwned>(status: u16, bytes: &[u8]) -> std::result::Result<T, Trouble> {
    match status {
        200 => serde_json::from_slice(bytes).map_err(|error| Trouble::Garbage(error.to_string())),
        404 => Err(Trouble::Unknown),
        _ => {
            let detail = serde_json::from_slice::<ErrorBody>(bytes)
                .map_or_else(|_| "no detail".to_owned(), |body| body.detail);
            Err(Trouble::Refused { status, detail: detail.chars().take(200).collect() })
        }
    }
}

fn trouble(error: ureq::Error) -> Trouble {
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Trouble::Unreachable("no connection in time".to_owned())
        }
        ureq::Error::Timeout(_) => Trouble::Silent,
        ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            Trouble::Unreachable(error.to_string())
        }
        other => Trouble::Garbage(other.to_string()),
    }
}

/// Checks a tracker's address and returns it without the slash at its end.
pub(in crate::tracker) fn parse_server_url(url: &str) -> Result<String> {
    let refuse = |reason: &str| Err(Error::config("server_url", format!("{url:?}: {reason}")));
    let Some(rest) = url.strip_prefix("http://") else {
        return refuse("http://HOST:PORT is wanted");
    };
    if rest.contains(['?', '#']) {
        return refuse("it must end with the host, the port or a path");
    }
    let Ok(uri) = url.parse::<http::Uri>() else { return refuse("it is not an address") };
    match uri.authority() {
        None => refuse("it names no host"),
        Some(authority) if authority.host().is_empty() => refuse("it names no host"),
        Some(authority) if authority.as_str().contains('@') => refuse("credentials do not belong in it"),
        Some(_) => Ok(url.trim_end_matches('/').to_owned()),
    }
}

/// `/sessions/{id}`, whatever a foreign server uses for ids.
fn session_path(id: &TrackedId) -> String {
    let mut path = "/sessions/".to_owned();
    for byte in id.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::api::HEARTBEAT_INTERVAL;
    use crate::tracker::client::pace::{jittered, random};

    /// The HTTP client makes a new connection when the last one has rested for [`KEEP`] or longer.
    /// `hundreds_of_beats_and_statuses_need_two_connections` counts them over a wire, where no rests are
    /// that long.
    #[test]
    fn an_hour_of_beats_is_no_reason_for_a_second_connection() {
        let (mut passed, mut beats, mut connections) = (Duration::ZERO, 0, 1);
        while passed < Duration::from_secs(3600) {
            let rest = jittered(HEARTBEAT_INTERVAL, random());
            connections += usize::from(rest >= KEEP);
            (passed, beats) = (passed + rest, beats + 1);
        }
        assert_eq!(connections, 1);
        assert!((108..=135).contains(&beats), "{beats}");
        // Nor is it the tracker who closes a connection that rests.
        assert!(KEEP < CONNECTION_IDLE);
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_path() {
        assert_eq!(session_path(&TrackedId::from("a/../b c?ö")), "/sessions/a%2F..%2Fb%20c%3F%C3%B6");
    }

    #[test]
    fn an_address_may_have_a_path_and_ends_without_a_slash() {
        for (url, base) in [
            ("http://localhost:8000", "http://localhost:8000"),
            ("http://[::1]:80/", "http://[::1]:80"),
            ("http://h/tracker/", "http://h/tracker"),
        ] {
            assert_eq!(parse_server_url(url).expect(url), base);
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let beat = |status, body: &str| read::<HeartbeatResponse>(status, body.as_bytes());
        assert!(beat(200, r#"{"kill_requested": true, "more": 1}"#).is_ok_and(|reply| reply.kill_requested));
        assert!(matches!(beat(200, "<html>"), Err(Trouble::Garbage(_))));
        assert!(matches!(beat(404, ""), Err(Trouble::Unknown)));
        assert!(matches!(beat(302, "moved"), Err(Trouble::Refused { status: 302, .. })));
        match beat(503, r#"{"detail": "the disk is full"}"#) {
            Err(Trouble::Refused { status: 503, detail }) => assert_eq!(detail, "the disk is full"),
            other => panic!("{other:?}"),
        }
    }
}
