//! The other side of a tracker: who looks at what runs and asks it to stop.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::{Agent, http};

use super::api::{CleanupResponse, ErrorBody, HTTP_TIMEOUT, KillAllResponse, KillResponse, SessionList};
use super::client::parse_server_url;
use super::{TrackedId, TrackedSession};
use crate::background::shielded;
use crate::{Error, Result};

/// A million sessions fit.
const LONGEST_ANSWER: u64 = 1 << 30;

/// Lists and kills the tracked sessions of a tracker: what `remuda ps` and `remuda kill` stand on.
///
/// Every method is one request; it blocks until the tracker has answered, at most 10 s.
///
/// ```
/// use remuda::{TrackerOperator, TrackerServer};
///
/// let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
/// let operator = TrackerOperator::new(format!("http://{}", server.local_addr()))?;
/// let id = server.store().create_session("reports", None)?;
/// assert_eq!(operator.sessions()?.len(), 1);
/// assert!(operator.kill(&id)?);
/// assert_eq!(operator.kill_app("reports")?, 1);
/// # Ok::<(), remuda::Error>(())
/// ```
pub struct TrackerOperator {
    agent: Agent,
    base: String,
}

impl TrackerOperator {
    /// An operator of the tracker at `server_url`, such as
    /// [`DEFAULT_URL`](super::api::DEFAULT_URL). Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if that is no address of a tracker.
    pub fn new(server_url: impl AsRef<str>) -> Result<TrackerOperator> {
        let base = parse_server_url(server_url.as_ref())?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The tracker is near; a proxy from the environment is meant for the web.
            .proxy(None)
            .user_agent(concat!("remuda/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(HTTP_TIMEOUT))
            .build()
            .new_agent();
        Ok(TrackerOperator { agent, base })
    }

    /// All tracked sessions, newest first.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn sessions(&self) -> Result<Vec<TrackedSession>> {
        let list = self.call::<SessionList>(http::Method::GET, "/sessions")?;
        list.map(|list| list.sessions).ok_or_else(|| self.no_tracker())
    }

    /// Asks a tracked session to stop. False if the tracker does not know it.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn kill(&self, id: &TrackedId) -> Result<bool> {
        let path = format!("/sessions/{}/kill", encoded(id.as_str()));
        Ok(self.call::<KillResponse>(http::Method::POST, &path)?.is_some())
    }

    /// Asks all tracked sessions of an app to stop and returns how many there are.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn kill_app(&self, app_name: &str) -> Result<u64> {
        let path = format!("/apps/{}/kill-all", encoded(app_name));
        let killed = self.call::<KillAllResponse>(http::Method::POST, &path)?;
        killed.map(|killed| killed.killed_count).ok_or_else(|| self.no_tracker())
    }

    /// Has the tracker move sessions that were silent for `older_than` to its history; returns how
    /// many. The tracker does so by itself after 10 minutes.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn cleanup_stale(&self, older_than: Duration) -> Result<u64> {
        let path = format!("/sessions/stale?older_than_minutes={}", older_than.as_secs_f64() / 60.0);
        let reply = self.call::<CleanupResponse>(http::Method::DELETE, &path)?;
        reply.map(|reply| reply.deleted_count).ok_or_else(|| self.no_tracker())
    }

    /// `None` stands for 404.
    fn call<T: DeserializeOwned>(&self, method: http::Method, path: &str) -> Result<Option<T>> {
        // The HTTP client starts a thread to look a name up and panics when it cannot.
        let answer = shielded("a request to the tracker", || self.exchange(method, path));
        let (status, bytes) = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(self.trouble(format!("it does not answer: {error}"))),
            None => return Err(self.trouble("the request panicked")),
        };
        match status {
            200 => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| self.trouble(format!("what it answers makes no sense: {error}"))),
            404 => Ok(None),
            _ => {
                let detail = serde_json::from_slice::<ErrorBody>(&bytes).map(|body| body.detail);
                Err(self.trouble(format!("it answers {status}: {}", detail.unwrap_or_default())))
            }
        }
    }

    fn exchange(&self, method: http::Method, path: &str) -> std::result::Result<(u16, Vec<u8>), ureq::Error> {
        let has_body = method == http::Method::POST;
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        // A POST needs a body, or the HTTP client announces one of unknown length.
        let mut response = if has_body {
            self.agent.run(request.body(Vec::new())?)?
        } else {
            self.agent.run(request.body(())?)?
        };
        let bytes = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok((response.status().as_u16(), bytes))
    }

    fn no_tracker(&self) -> Error {
        self.trouble("there is a server, but it is no tracker")
    }

    fn trouble(&self, reason: impl Into<String>) -> Error {
        Error::Tracker { url: self.base.clone(), reason: reason.into() }
    }
}

impl fmt::Debug for TrackerOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackerOperator").field("url", &self.base).finish_non_exhaustive()
    }
}

/// A name as one part of a path.
fn encoded(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            part.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(part, "%{byte:02X}");
        }
    }
    part
}
